//! The key pair of a client that reads: answers are sealed to its public half. Private-key operations go through AWS-LC.

use std::fmt;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::jose::jwe::{ContentKey, Jwe, KeyManagement};
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::keys::{PrivateHalf, RsaBits};
use sealflow::secret::SecretBytes;
use zeroize::Zeroizing;

use crate::answer::OpenError;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
/// The longest key file that is read, in bytes: RSA-4096 has about 3,300.
const MAX_PEM_BYTES: usize = 16 << 10;

/// Why there is no private key. Never holds a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not PEM of an unencrypted PKCS #8 private key.
    #[error("not the PEM of a PKCS #8 private key (BEGIN PRIVATE KEY)")]
    NotPem,
    /// Another kind or size of key, or a broken one.
    #[error("not an RSA key of 2048 to 4096 bits with the exponent 65537")]
    BadKey,
    /// The key could not be made.
    #[error("the operating system gives no random numbers")]
    NoRandom,
}

/// An RSA private key. `Debug` shows nothing of it.
pub struct PrivateKey {
    key: PrivateDecryptingKey,
    /// `SubjectPublicKeyInfo` of the public half, DER.
    public: Vec<u8>,
}

impl PrivateKey {
    /// A new key.
    ///
    /// # Errors
    /// [`KeyError::NoRandom`]
    pub fn generate(bits: RsaBits) -> Result<Self, KeyError> {
        let size = match bits {
            RsaBits::Rsa2048 => KeySize::Rsa2048,
            RsaBits::Rsa3072 => KeySize::Rsa3072,
            RsaBits::Rsa4096 => KeySize::Rsa4096,
        };
        Self::of(PrivateDecryptingKey::generate(size).map_err(|_| KeyError::NoRandom)?)
    }

    fn of(key: PrivateDecryptingKey) -> Result<Self, KeyError> {
        let der: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| KeyError::BadKey)?;
        let public = der.as_ref().to_vec();
        Ok(Self { key, public })
    }

    /// Reads a key file (PKCS #8, RFC 5958, in PEM, RFC 7468).
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        if pem.len() > MAX_PEM_BYTES {
            return Err(KeyError::NotPem);
        }
        let body = pem.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
        let mut text = Zeroizing::new(String::with_capacity(pem.len()));
        text.extend(body.ok_or(KeyError::NotPem)?.split_ascii_whitespace());
        let der = Zeroizing::new(STANDARD.decode(text.as_bytes()).map_err(|_| KeyError::NotPem)?);
        let key = Self::of(PrivateDecryptingKey::from_pkcs8(&der).map_err(|_| KeyError::BadKey)?)?;
        key.public().map(|_| key)
    }

    /// The key file: keep it secret, and with mode 0600.
    ///
    /// # Errors
    /// [`KeyError::BadKey`]: never for a key that was read or made.
    pub fn to_pem(&self) -> Result<SecretBytes, KeyError> {
        let der: Pkcs8V1Der<'_> = self.key.as_der().map_err(|_| KeyError::BadKey)?;
        let text = Zeroizing::new(STANDARD.encode(der.as_ref()));
        // With room for everything, so that no copy is left behind by growing.
        let mut pem = Vec::with_capacity(text.len() + text.len() / 64 + BEGIN.len() + END.len() + 8);
        pem.extend_from_slice(BEGIN.as_bytes());
        for line in text.as_bytes().chunks(64) {
            pem.push(b'\n');
            pem.extend_from_slice(line);
        }
        pem.push(b'\n');
        pem.extend_from_slice(END.as_bytes());
        pem.push(b'\n');
        Ok(SecretBytes::new(pem))
    }

    /// The public half, to which answers are sealed.
    ///
    /// # Errors
    /// [`KeyError::BadKey`] for a size or exponent that nobody seals to.
    pub fn public(&self) -> Result<RsaPublicJwk, KeyError> {
        RsaPublicJwk::from_spki_der(&self.public).map_err(|_| KeyError::BadKey)
    }

    /// Opens a compact JWE that was sealed to this key (`RSA-OAEP-256`, `A256GCM`).
    ///
    /// # Errors
    /// [`OpenError::DoesNotOpen`]
    pub fn open(&self, jwe: &str) -> Result<SecretBytes, OpenError> {
        let parsed = Jwe::parse(jwe).map_err(|_| OpenError::DoesNotOpen)?;
        let header = parsed.header().map_err(|_| OpenError::DoesNotOpen)?;
        if header.key_management != KeyManagement::RsaOaep256 {
            return Err(OpenError::DoesNotOpen);
        }
        let wrapped = parsed.encrypted_key().map_err(|_| OpenError::DoesNotOpen)?;
        let secret = self.decrypt(&wrapped).ok_or(OpenError::DoesNotOpen)?;
        let secret: &[u8; 32] = secret.expose().try_into().map_err(|_| OpenError::DoesNotOpen)?;
        let mut plain = Zeroizing::new(Vec::with_capacity(parsed.plaintext_len() + 3));
        let opened = ContentKey::new(secret).open(&parsed, &mut plain);
        opened.map_err(|_| OpenError::DoesNotOpen)?;
        Ok(SecretBytes::new(std::mem::take(&mut *plain)))
    }
}

/// What is sealed to this key opens with it wherever the core asks for a private half: dead letters to a recipient.
impl PrivateHalf for PrivateKey {
    fn public(&self) -> &[u8] {
        &self.public
    }

    fn decrypt(&self, ciphertext: &[u8]) -> Option<SecretBytes> {
        let key = OaepPrivateDecryptingKey::new(self.key.clone()).ok()?;
        let mut out = Zeroizing::new(vec![0; key.min_output_size()]);
        let secret = key.decrypt(&OAEP_SHA256_MGF1SHA256, ciphertext, &mut out, None).ok()?;
        Some(SecretBytes::new(secret.to_vec()))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey([redacted])")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use super::*;

    #[test]
    fn a_key_comes_back_from_its_file_and_shows_nothing() {
        let key = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
        let pem = key.to_pem().unwrap();
        let text = std::str::from_utf8(pem.expose()).unwrap();
        let again = PrivateKey::from_pem(text).unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(format!("{key:?}"), "PrivateKey([redacted])");
        assert!(text.lines().all(|line| line.len() <= 64));
        for bad in [
            "",
            "x",
            &text.replace("PRIVATE", "RSA PRIVATE"),
            &text[..text.len() / 2],
        ] {
            assert_eq!(PrivateKey::from_pem(bad).unwrap_err(), KeyError::NotPem);
        }
        let broken = text.replacen("MII", "MIJ", 1);
        assert_eq!(PrivateKey::from_pem(&broken).unwrap_err(), KeyError::BadKey);
    }
}
