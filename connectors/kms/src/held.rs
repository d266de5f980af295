//! Private halves of pairs in memory: everything that touches one is aws-lc-rs's.

use std::fmt;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use sealflow::keys::{PrivateHalf, RsaBits};
use sealflow::secret::SecretBytes;
use zeroize::Zeroizing;

/// A private half. AWS-LC wipes what it frees.
pub(crate) struct HeldKey {
    opener: OaepPrivateDecryptingKey,
    public: Vec<u8>,
    bits: RsaBits,
}

impl HeldKey {
    /// Of PKCS #8, DER; `None` for all but an RSA key of 2048, 3072 or 4096 bits. It is checked, which takes milliseconds.
    pub(crate) fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let key = PrivateDecryptingKey::from_pkcs8(der).ok()?;
        let bits = RsaBits::ALL
            .into_iter()
            .find(|bits| bits.bits() == key.key_size_bits())?;
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().ok()?;
        Some(Self {
            public: public.as_ref().to_vec(),
            opener: OaepPrivateDecryptingKey::new(key).ok()?,
            bits,
        })
    }

    /// The size of its modulus.
    pub(crate) fn bits(&self) -> RsaBits {
        self.bits
    }
}

impl PrivateHalf for HeldKey {
    fn public(&self) -> &[u8] {
        &self.public
    }

    fn decrypt(&self, ciphertext: &[u8]) -> Option<SecretBytes> {
        let mut plaintext = Zeroizing::new(vec![0; self.opener.min_output_size()]);
        let decrypted = self
            .opener
            .decrypt(&OAEP_SHA256_MGF1SHA256, ciphertext, &mut plaintext, None);
        let decrypted: &[u8] = decrypted.ok()?;
        (!decrypted.is_empty()).then(|| SecretBytes::new(decrypted.to_vec()))
    }
}

impl fmt::Debug for HeldKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HeldKey([redacted])")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use aws_lc_rs::encoding::Pkcs8V1Der;
    use aws_lc_rs::rsa::{KeySize, OaepPublicEncryptingKey};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

    use super::*;

    #[test]
    fn only_rsa_keys_are_held_and_nothing_of_them_is_shown() {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
        let held = HeldKey::from_pkcs8(der.as_ref()).unwrap();
        assert_eq!(held.bits(), RsaBits::Rsa2048);
        let sealer = OaepPublicEncryptingKey::new(key.public_key()).unwrap();
        let mut sealed = vec![0; sealer.ciphertext_size()];
        sealer
            .encrypt(&OAEP_SHA256_MGF1SHA256, b"session", &mut sealed, None)
            .unwrap();
        assert_eq!(held.decrypt(&sealed).unwrap().expose(), b"session");
        sealed[7] ^= 1;
        assert!(held.decrypt(&sealed).is_none() && held.decrypt(b"").is_none());
        assert_eq!(format!("{held:?}"), "HeldKey([redacted])");

        let other = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let other = other.to_pkcs8v1().unwrap();
        let cut = &der.as_ref()[..der.as_ref().len() - 1];
        for bad in [other.as_ref(), cut, b"", &[7; 32]] {
            assert!(HeldKey::from_pkcs8(bad).is_none());
        }
    }
}
