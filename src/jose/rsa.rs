//! RSA public keys to seal to, as JWKs (RFC 7517; RFC 7518, section 6.3.1) named by their thumbprint (RFC 7638), and as
//! `SubjectPublicKeyInfo` (RFC 5280, section 4.1.2.7). Public-key operations only.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rsa::BoxedUint;
use rsa::pkcs8::{DecodePublicKey as _, EncodePublicKey as _};
use rsa::traits::PublicKeyParts as _;
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest as _, Sha256};

use super::jwk::{MAX_JWK_BYTES, Thumbprint};
use super::{base64url, from_base64url};

/// Sizes of moduli, in bits: what KMS has, and what a client can afford.
const BITS: std::ops::RangeInclusive<usize> = 2_048..=4_096;
/// 65537, the one exponent that KMS, WebCrypto and everybody else makes.
const EXPONENT: [u8; 3] = [1, 0, 1];
const ALGORITHM: &str = "RSA-OAEP-256";

/// Why something is no RSA key to seal to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RsaKeyError {
    /// Over [`MAX_JWK_BYTES`].
    #[error("longer than {MAX_JWK_BYTES} bytes")]
    TooLarge,
    /// No JWK: no JSON object, a member twice, or of a wrong type.
    #[error("not a JWK (RFC 7517): a JSON object with kty, n and e as strings")]
    NotAJwk,
    /// Another type of key.
    #[error("not an RSA key (kty RSA)")]
    NotRsa,
    /// A private key where a public one belongs.
    #[error("this is a private key, a public one is expected here")]
    IsPrivate,
    /// `alg`, `use` or `key_ops` say that the key is for something else.
    #[error("the key is not for {ALGORITHM} encryption (alg, use, key_ops)")]
    OtherUse,
    /// No modulus of 2048 to 4096 bits with the exponent 65537, in canonical base64url.
    #[error("not an RSA key of 2048 to 4096 bits with the exponent 65537 (n, e)")]
    BadKey,
    /// No `SubjectPublicKeyInfo` of such a key.
    #[error("not the DER or PEM of an RSA public key")]
    NotDer,
    /// The operating system gave no random numbers.
    #[error("the operating system gives no random numbers")]
    NoRandom,
}

/// An RSA public key that something can be sealed to.
#[derive(Clone, PartialEq, Eq)]
pub struct RsaPublicJwk {
    key: rsa::PublicKey,
    /// Member `n`.
    modulus: String,
}

/// The members that say something. Others (`x5c`, `ext`, …) make no difference.
#[derive(Deserialize)]
struct Raw {
    kty: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    d: Option<IgnoredAny>,
    p: Option<IgnoredAny>,
    q: Option<IgnoredAny>,
}

impl RsaPublicJwk {
    /// Reads a JWK, as WebCrypto, JOSE libraries and [`to_published_json`](Self::to_published_json) write them. What it
    /// says of its own name (`kid`) does not count.
    ///
    /// # Errors
    /// [`RsaKeyError`]; a private key is refused, because it does not belong where a public one is read.
    pub fn from_json(json: &[u8]) -> Result<Self, RsaKeyError> {
        if json.len() > MAX_JWK_BYTES {
            return Err(RsaKeyError::TooLarge);
        }
        let raw: Raw = serde_json::from_slice(json).map_err(|_| RsaKeyError::NotAJwk)?;
        if raw.kty != "RSA" {
            return Err(RsaKeyError::NotRsa);
        }
        if raw.d.is_some() || raw.p.is_some() || raw.q.is_some() {
            return Err(RsaKeyError::IsPrivate);
        }
        let seals = |operation: &String| operation == "encrypt" || operation == "wrapKey";
        let is_for_sealing = raw.alg.is_none_or(|alg| alg == ALGORITHM)
            && raw.usage.is_none_or(|usage| usage == "enc")
            && raw.key_ops.is_none_or(|operations| operations.iter().any(seals));
        if !is_for_sealing {
            return Err(RsaKeyError::OtherUse);
        }
        // Base64 is a third longer: what is far too long is not even decoded.
        if raw.n.len() > BITS.end() / 6 + 2 || raw.e != base64url(&EXPONENT) {
            return Err(RsaKeyError::BadKey);
        }
        let modulus = from_base64url(&raw.n).ok_or(RsaKeyError::BadKey)?;
        let is_minimal = modulus.first().is_some_and(|first| *first != 0);
        let is_odd = modulus.last().is_some_and(|last| last % 2 == 1);
        if !is_minimal || !is_odd {
            return Err(RsaKeyError::BadKey);
        }
        let modulus = BoxedUint::from_be_slice_vartime(&modulus);
        let exponent = BoxedUint::from_be_slice_vartime(&EXPONENT);
        let key = rsa::PublicKey::new_with_size_limits(modulus, exponent, BITS).map_err(|_| RsaKeyError::BadKey)?;
        Ok(Self { key, modulus: raw.n })
    }

    /// Reads a `SubjectPublicKeyInfo`, as KMS gives it.
    ///
    /// # Errors
    /// [`RsaKeyError::NotDer`], [`RsaKeyError::BadKey`]
    pub fn from_spki_der(der: &[u8]) -> Result<Self, RsaKeyError> {
        let key = rsa::PublicKey::from_public_key_der(der).map_err(|_| RsaKeyError::NotDer)?;
        let bits = usize::try_from(key.n().bit_width()).unwrap_or(usize::MAX);
        if !BITS.contains(&bits) || *key.e().to_be_bytes_trimmed_vartime() != EXPONENT {
            return Err(RsaKeyError::BadKey);
        }
        let modulus = base64url(&key.n().to_be_bytes_trimmed_vartime());
        Ok(Self { key, modulus })
    }

    /// The JWK with its required members in order: what RFC 7638 hashes.
    #[must_use]
    pub fn to_json(&self) -> String {
        format!(
            r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#,
            base64url(&EXPONENT),
            self.modulus
        )
    }

    /// The JWK as it is published: with `alg`, `kid` (its thumbprint) and `use`.
    #[must_use]
    pub fn to_published_json(&self) -> String {
        format!(
            r#"{{"alg":"{ALGORITHM}","e":"{}","kid":"{}","kty":"RSA","n":"{}","use":"enc"}}"#,
            base64url(&EXPONENT),
            self.thumbprint(),
            self.modulus
        )
    }

    /// `SubjectPublicKeyInfo` in PEM (RFC 7468, section 13).
    ///
    /// # Errors
    /// [`RsaKeyError::NotDer`]: never for a key that was read.
    pub fn to_pem(&self) -> Result<String, RsaKeyError> {
        let der = self.key.to_public_key_der().map_err(|_| RsaKeyError::NotDer)?;
        let text = STANDARD.encode(der.as_bytes());
        let mut pem = "-----BEGIN PUBLIC KEY-----\n".to_owned();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, more) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = more;
        }
        pem.push_str("-----END PUBLIC KEY-----\n");
        Ok(pem)
    }

    /// The RFC 7638 thumbprint: the name of this key.
    #[must_use]
    pub fn thumbprint(&self) -> Thumbprint {
        Thumbprint::of(self.to_json().as_bytes())
    }

    /// Size of the modulus, in bits.
    #[must_use]
    pub fn bits(&self) -> usize {
        usize::try_from(self.key.n().bit_width()).unwrap_or(usize::MAX)
    }

    /// Wraps a content key of 32 bytes: RSAES-OAEP (RFC 8017, section 7.1) with SHA-256 for label and mask, empty label.
    ///
    /// # Errors
    /// [`RsaKeyError::NoRandom`]
    pub fn wrap(&self, key: &[u8; 32]) -> Result<Vec<u8>, RsaKeyError> {
        self.key.oaep_encrypt::<Sha256>(key).map_err(|_| RsaKeyError::NoRandom)
    }
}

impl fmt::Debug for RsaPublicJwk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RsaPublicJwk({})", self.thumbprint())
    }
}

/// A JWK set (RFC 7517, section 5) of these keys, in their order.
#[must_use]
pub fn to_jwks(keys: &[RsaPublicJwk]) -> String {
    let keys: Vec<String> = keys.iter().map(RsaPublicJwk::to_published_json).collect();
    format!(r#"{{"keys":[{}]}}"#, keys.join(","))
}

impl Thumbprint {
    /// Of a JWK with its required members in order.
    fn of(json: &[u8]) -> Self {
        Self::from_digest(Sha256::digest(json).into())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// RFC 7638, section 3.1.
    const RFC_N: &str = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
    const RFC_THUMBPRINT: &str = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";

    fn jwk(more: &str) -> String {
        format!(r#"{{"kty":"RSA","n":"{RFC_N}","e":"AQAB"{more}}}"#)
    }

    fn error(json: &str) -> RsaKeyError {
        RsaPublicJwk::from_json(json.as_bytes()).unwrap_err()
    }

    #[test]
    fn the_thumbprint_of_rfc_7638_section_3_1() {
        let key = RsaPublicJwk::from_json(jwk(r#","alg":"RSA-OAEP-256","kid":"2011-04-29""#).as_bytes()).unwrap();
        assert_eq!(key.thumbprint().to_string(), RFC_THUMBPRINT);
        assert_eq!(key.bits(), 2048);
    }

    #[test]
    fn a_key_comes_back_from_json_der_and_pem() {
        let key = RsaPublicJwk::from_json(jwk("").as_bytes()).unwrap();
        for json in [key.to_json(), key.to_published_json()] {
            assert_eq!(RsaPublicJwk::from_json(json.as_bytes()), Ok(key.clone()));
        }
        let pem = key.to_pem().unwrap();
        let lines: Vec<&str> = pem.lines().collect();
        assert!(lines.iter().all(|line| line.len() <= 64));
        let der = STANDARD.decode(lines[1..lines.len() - 1].concat()).unwrap();
        assert_eq!(RsaPublicJwk::from_spki_der(&der), Ok(key.clone()));
        let set: serde_json::Value = serde_json::from_str(&to_jwks(&[key.clone(), key])).unwrap();
        assert_eq!(set["keys"].as_array().unwrap().len(), 2);
        assert_eq!(set["keys"][0]["kid"], RFC_THUMBPRINT);
    }

    #[test]
    fn web_cryptos_export_is_read() {
        let exported = jwk(r#","alg":"RSA-OAEP-256","ext":true,"key_ops":["encrypt"]"#);
        assert!(RsaPublicJwk::from_json(exported.as_bytes()).is_ok());
    }

    #[test]
    fn what_is_no_key_to_seal_to_is_refused() {
        assert_eq!(error(&jwk(r#","d":"AQAB""#)), RsaKeyError::IsPrivate);
        for other in [
            r#","alg":"RSA-OAEP""#,
            r#","alg":"RS256""#,
            r#","use":"sig""#,
            r#","key_ops":["verify"]"#,
        ] {
            assert_eq!(error(&jwk(other)), RsaKeyError::OtherUse, "{other}");
        }
        for bad in [
            jwk("").replace("AQAB", "Aw"),
            jwk("").replace("AQAB", "AAEAAQ"),
            jwk("").replace("0vx7", "AAAA"),
            jwk("").replace("qDKgw", "qDKgg"),
            jwk("").replace(&RFC_N[..200], ""),
            jwk("").replace(RFC_N, &"_".repeat(4_000)),
        ] {
            assert_eq!(error(&bad), RsaKeyError::BadKey, "{bad}");
        }
        assert_eq!(error(r#"{"kty":"EC"}"#), RsaKeyError::NotRsa);
        for bad in ["", "[]", "{}", &jwk(r#","n":"AQAB""#), r#"{"kty":"RSA","n":1}"#] {
            assert_eq!(error(bad), RsaKeyError::NotAJwk, "{bad}");
        }
        assert_eq!(
            error(&jwk(&format!(r#","x":"{}""#, "a".repeat(9_000)))),
            RsaKeyError::TooLarge
        );
        assert_eq!(RsaPublicJwk::from_spki_der(b"0\x03abc"), Err(RsaKeyError::NotDer));
    }
}
