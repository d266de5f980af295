//! Compact JWS with EdDSA (RFC 7515, RFC 8037), in one shape only.
//!
//! The header is exactly `{alg: EdDSA, jwk, kid, typ}`: `jwk` is the signer's public key, so that verifiers
//! need to pin nothing but its thumbprint, which `kid` repeats; `typ` keeps a document of one kind from being
//! taken for another. Whatever else a JWS may have is refused.

use std::fmt;

use super::jwk::{JwkError, PrivateJwk, PublicJwk, Thumbprint, shorten};
use super::members::Members;
use super::{base64url, from_base64url};

/// The largest JWS that is made or taken, in bytes: what a catalogue object may be.
pub const MAX_JWS_BYTES: usize = 1 << 20;

/// The largest header, in bytes of base64url. Ours has about 330.
const MAX_HEADER_CHARS: usize = 1_024;
const HEADER_MEMBERS: [&str; 4] = ["alg", "jwk", "kid", "typ"];

/// What a JWS of ours says: its exact `typ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum JwsType {
    /// A policy: `sealflow-policy`.
    Policy,
    /// A domain document: `sealflow-domain`.
    Domain,
    /// A lease of a policy: `sealflow-lease`.
    Lease,
    /// A checkpoint of an audit log: `sealflow-audit`.
    Audit,
    /// An answer of an enclave worker: `sealflow-enclave-answer`.
    EnclaveAnswer,
    /// The keys that clients seal enclave columns to: `sealflow-enclave-keys`.
    EnclaveKeys,
}

impl JwsType {
    /// The `typ` header member.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "sealflow-policy",
            Self::Domain => "sealflow-domain",
            Self::Lease => "sealflow-lease",
            Self::Audit => "sealflow-audit",
            Self::EnclaveAnswer => "sealflow-enclave-answer",
            Self::EnclaveKeys => "sealflow-enclave-keys",
        }
    }
}

impl fmt::Display for JwsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text is no JWS of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JwsError {
    /// Over [`MAX_JWS_BYTES`].
    #[error("the signed document is longer than {MAX_JWS_BYTES} bytes")]
    TooLarge,
    /// Not three parts with dots between.
    #[error("not a compact JWS (HEADER.PAYLOAD.SIGNATURE)")]
    NotCompact,
    /// A part in another spelling than canonical base64url.
    #[error("the {part} of the JWS is not base64url without padding")]
    BadEncoding {
        /// Which part.
        part: &'static str,
    },
    /// A header that is no JSON object of strings and one key, or has duplicated members.
    #[error("the header of the JWS is malformed")]
    BadHeader,
    /// `crit`, `b64`, `jku`, …
    #[error("unexpected header member {name} in the JWS")]
    UnexpectedMember {
        /// Its name.
        name: String,
    },
    /// One of the four members is not there.
    #[error("the header of the JWS lacks {name}")]
    MissingMember {
        /// Its name.
        name: &'static str,
    },
    /// `none`, `HS256`, …
    #[error("the JWS says alg {found}, only EdDSA is taken")]
    OtherAlgorithm {
        /// What it says.
        found: String,
    },
    /// A document of another kind.
    #[error("the JWS is of type {found}, expected {expected}")]
    OtherType {
        /// What was asked for.
        expected: JwsType,
        /// What it says.
        found: String,
    },
    /// The key in the header is none, or cannot be trusted.
    #[error("the key in the header of the JWS cannot be used: {0}")]
    BadKey(JwkError),
    /// `kid` is not the thumbprint of the key.
    #[error("the kid of the JWS is not the thumbprint of its key")]
    WrongKid,
    /// The signature is not that of the key over header and payload.
    #[error("the signature does not verify: the document or its signature was changed")]
    BadSignature,
}

/// Signs `payload` as a document of type `typ`. The same input gives the same text.
///
/// # Errors
/// [`JwsError::TooLarge`]
pub fn sign(typ: JwsType, payload: &[u8], key: &PrivateJwk) -> Result<String, JwsError> {
    let public = key.public();
    let header = format!(
        r#"{{"alg":"EdDSA","jwk":{},"kid":"{}","typ":"{typ}"}}"#,
        public.to_json(),
        public.thumbprint()
    );
    let mut jws = format!("{}.{}", base64url(header.as_bytes()), base64url(payload));
    let signature = key.sign(jws.as_bytes());
    jws.push('.');
    jws.push_str(&base64url(&signature));
    if jws.len() > MAX_JWS_BYTES {
        return Err(JwsError::TooLarge);
    }
    Ok(jws)
}

/// A document that was signed by the key in its own header, which anybody can do. It says nothing until
/// [`signer`](Self::signer) is one that the reader pins.
#[derive(Debug)]
pub struct SelfSigned {
    payload: Vec<u8>,
    signer: Thumbprint,
}

impl SelfSigned {
    /// Checks shape, header and signature of a JWS of type `typ`.
    ///
    /// # Errors
    /// [`JwsError`]
    pub fn verify(jws: &str, typ: JwsType) -> Result<Self, JwsError> {
        if jws.len() > MAX_JWS_BYTES {
            return Err(JwsError::TooLarge);
        }
        let (signed, signature) = jws.rsplit_once('.').ok_or(JwsError::NotCompact)?;
        let (header, payload) = signed.split_once('.').ok_or(JwsError::NotCompact)?;
        if payload.contains('.') {
            return Err(JwsError::NotCompact);
        }
        if header.len() > MAX_HEADER_CHARS {
            return Err(JwsError::BadHeader);
        }
        let decode = |text, part| from_base64url(text).ok_or(JwsError::BadEncoding { part });
        let header = decode(header, "header")?;
        let key = check_header(&header, typ)?;
        let signature = decode(signature, "signature")?;
        if !key.verifies(signed.as_bytes(), &signature) {
            return Err(JwsError::BadSignature);
        }
        Ok(Self {
            payload: decode(payload, "payload")?,
            signer: key.thumbprint(),
        })
    }

    /// Who signed: compare it with what is pinned before anything else.
    #[must_use]
    pub fn signer(&self) -> Thumbprint {
        self.signer
    }

    /// What was signed, once the signer is known to be pinned.
    #[must_use]
    pub fn into_payload(self) -> Vec<u8> {
        self.payload
    }
}

fn check_header(header: &[u8], typ: JwsType) -> Result<PublicJwk, JwsError> {
    let header = Members::from_json(header).ok_or(JwsError::BadHeader)?;
    if let Some(name) = header.other_than(&HEADER_MEMBERS) {
        return Err(JwsError::UnexpectedMember { name: shorten(name) });
    }
    let text = |name| header.text(name).ok_or(JwsError::MissingMember { name });
    let algorithm = text("alg")?;
    if algorithm != "EdDSA" {
        return Err(JwsError::OtherAlgorithm {
            found: shorten(algorithm),
        });
    }
    let found = text("typ")?;
    if found != typ.as_str() {
        return Err(JwsError::OtherType {
            expected: typ,
            found: shorten(found),
        });
    }
    let jwk = header.object("jwk").ok_or(JwsError::MissingMember { name: "jwk" })?;
    let key = PublicJwk::from_header(jwk).map_err(JwsError::BadKey)?;
    if text("kid")? != key.thumbprint().to_string() {
        return Err(JwsError::WrongKid);
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::jwk::tests::RFC_PRIVATE;
    use super::*;

    fn key() -> PrivateJwk {
        PrivateJwk::from_json(RFC_PRIVATE.as_bytes()).unwrap()
    }

    fn verify(jws: &str) -> Result<Vec<u8>, JwsError> {
        SelfSigned::verify(jws, JwsType::Policy).map(SelfSigned::into_payload)
    }

    /// A JWS with a header of choice and a signature that is right for it.
    fn with_header(header: &str) -> String {
        let signed = format!("{}.{}", base64url(header.as_bytes()), base64url(b"dataset: d"));
        let signature = base64url(&key().sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    fn good_header() -> String {
        let key = key().public();
        format!(
            r#"{{"alg":"EdDSA","jwk":{},"kid":"{}","typ":"sealflow-policy"}}"#,
            key.to_json(),
            key.thumbprint()
        )
    }

    #[test]
    fn signature_of_rfc_8037_appendix_a_4() {
        let signed = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
        let signature = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
        assert_eq!(base64url(&key().sign(signed.as_bytes())), signature);
        assert!(
            key()
                .public()
                .verifies(signed.as_bytes(), &from_base64url(signature).unwrap())
        );
        // The RFC's header names neither key nor type, so it is no document of ours.
        assert_eq!(
            verify(&format!("{signed}.{signature}")),
            Err(JwsError::MissingMember { name: "typ" })
        );
    }

    #[test]
    fn what_is_signed_verifies_and_says_who_signed() {
        let jws = sign(JwsType::Policy, b"dataset: d", &key()).unwrap();
        let signed = SelfSigned::verify(&jws, JwsType::Policy).unwrap();
        assert_eq!(signed.signer(), key().thumbprint());
        assert_eq!(signed.into_payload(), b"dataset: d");
        assert_eq!(with_header(&good_header()), jws);
    }

    #[test]
    fn an_edit_of_any_byte_is_refused() {
        let jws = sign(JwsType::Policy, b"dataset: payments\nversion: 1\n", &key()).unwrap();
        for at in 0..jws.len() {
            for with in ["A", "B", "_", ".", "=", " ", "\n", ""] {
                let mut edited = jws.clone();
                edited.replace_range(at..=at, with);
                if edited != jws {
                    assert!(verify(&edited).is_err(), "byte {at} as {with:?}");
                }
            }
        }
        for at in 0..=jws.len() {
            let mut longer = jws.clone();
            longer.insert(at, 'A');
            assert!(verify(&longer).is_err(), "a byte more at {at}");
        }
    }

    #[test]
    fn every_bit_of_payload_header_and_signature_counts() {
        let jws = sign(JwsType::Policy, b"dataset: d\n", &key()).unwrap();
        let parts: Vec<Vec<u8>> = jws.split('.').map(|part| from_base64url(part).unwrap()).collect();
        for part in 0..3 {
            for bit in 0..parts[part].len() * 8 {
                let mut edited = parts.clone();
                edited[part][bit / 8] ^= 1 << (bit % 8);
                let edited: Vec<String> = edited.iter().map(|part| base64url(part)).collect();
                assert!(verify(&edited.join(".")).is_err(), "part {part}, bit {bit}");
            }
        }
    }

    #[test]
    fn a_document_of_one_type_is_not_taken_for_another() {
        let jws = sign(JwsType::Domain, b"dataset: d", &key()).unwrap();
        let found = "sealflow-domain".to_owned();
        assert_eq!(
            verify(&jws),
            Err(JwsError::OtherType {
                expected: JwsType::Policy,
                found
            })
        );
        // Swapping the header in breaks the signature.
        let policy = sign(JwsType::Policy, b"other: x", &key()).unwrap();
        let header = policy.split('.').next().unwrap();
        let rest = jws.split_once('.').unwrap().1;
        assert_eq!(verify(&format!("{header}.{rest}")), Err(JwsError::BadSignature));
    }

    #[test]
    fn other_headers_are_refused_even_with_a_right_signature() {
        let header = |from: &str, to: &str| {
            let changed = good_header().replacen(from, to, 1);
            assert_ne!(changed, good_header());
            verify(&with_header(&changed)).unwrap_err()
        };
        let other = |found: &str| JwsError::OtherAlgorithm {
            found: found.to_owned(),
        };
        let unexpected = |name: &str| JwsError::UnexpectedMember { name: name.to_owned() };
        let other_type = |found: &str| JwsError::OtherType {
            expected: JwsType::Policy,
            found: found.to_owned(),
        };
        for algorithm in ["none", "HS256", "eddsa", "ES256", "Ed25519"] {
            assert_eq!(header("EdDSA", algorithm), other(algorithm));
        }
        for member in [
            r#""crit":"b64""#,
            r#""b64":"false""#,
            r#""jku":"https://example.com""#,
            r#""cty":"x""#,
        ] {
            let name = member.split('"').nth(1).unwrap();
            assert_eq!(header("{", &format!("{{{member},")), unexpected(name));
        }
        assert_eq!(header("{", r#"{"crit":["b64"],"#), JwsError::BadHeader);
        assert_eq!(header("{", r#"{"alg":"EdDSA","#), JwsError::BadHeader, "duplicated");
        assert_eq!(
            header("{", r#"{"\u0061lg":"none","#),
            JwsError::BadHeader,
            "duplicated by an escape"
        );
        assert_eq!(header("sealflow-policy", "JWT"), other_type("JWT"));
        assert_eq!(
            header("sealflow-policy", "sealflow-policy "),
            other_type("sealflow-policy ")
        );
        assert_eq!(
            header(r#","typ":"sealflow-policy""#, ""),
            JwsError::MissingMember { name: "typ" }
        );
        assert_eq!(header(r#""kid":""#, r#""kid":"x"#), JwsError::WrongKid);
        assert_eq!(
            header(r#""crv":"#, r#""d":"x","crv":"#),
            JwsError::BadKey(JwkError::UnexpectedMember { name: "d".into() })
        );
        assert_eq!(verify(&with_header("[]")), Err(JwsError::BadHeader));
        assert_eq!(verify(&with_header(&" ".repeat(2_000))), Err(JwsError::BadHeader));
    }

    #[test]
    fn another_key_in_the_header_is_refused() {
        let other = PrivateJwk::generate().unwrap().public();
        let header = good_header().replace(&key().public().to_json(), &other.to_json());
        assert_eq!(verify(&with_header(&header)), Err(JwsError::WrongKid));
        let header = header.replace(&key().thumbprint().to_string(), &other.thumbprint().to_string());
        assert_eq!(verify(&with_header(&header)), Err(JwsError::BadSignature));
    }

    #[test]
    fn a_signature_whose_point_is_of_small_order_is_refused() {
        // R is the neutral element and S = H(R, A, M)·a: RFC 8032 itself lets it pass, strict verification does not.
        let signature = "0100000000000000000000000000000000000000000000000000000000000000\
                         12e86bd949ae1d005694defe310f210749747dacac3e4892bcd54b29c32a5c0f";
        let signature = hex::decode(signature).unwrap();
        assert!(!key().public().verifies(b"dataset: d", &signature));
    }

    #[test]
    fn other_shapes_and_spellings_are_refused() {
        let jws = sign(JwsType::Policy, b"d", &key()).unwrap();
        for text in ["", "a", "a.b", "....", &format!("{jws}.x"), &jws.replacen('.', "", 1)] {
            assert!(verify(text).is_err(), "{text}");
        }
        let bad = |part| Err(JwsError::BadEncoding { part });
        assert_eq!(verify(&format!("{jws}==")), bad("signature"));
        assert_eq!(verify(&format!("{jws}\n")), bad("signature"));
        assert_eq!(verify(&format!("={jws}")), bad("header"));
        // The last character of 64 bytes carries four unused bits: only zeros are canonical.
        assert_eq!(verify(&with_unused_bits(&jws)), bad("signature"));
        assert_eq!(verify(&"a".repeat(MAX_JWS_BYTES + 1)), Err(JwsError::TooLarge));
        assert_eq!(
            sign(JwsType::Policy, &vec![b'a'; MAX_JWS_BYTES], &key()),
            Err(JwsError::TooLarge)
        );
    }

    /// The same bytes in a spelling whose unused bits are not zero.
    fn with_unused_bits(jws: &str) -> String {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut bytes = jws.as_bytes().to_vec();
        let last = bytes.pop().unwrap();
        let value = ALPHABET.iter().position(|c| *c == last).unwrap();
        bytes.push(ALPHABET[value | 1]);
        String::from_utf8(bytes).unwrap()
    }

    proptest! {
        #[test]
        fn no_text_makes_the_verifier_panic(text in "[A-Za-z0-9_.=-]{0,300}", header in "[ -~]{0,200}") {
            prop_assert!(verify(&text).is_err());
            let _ = verify(&with_header(&header));
        }

        #[test]
        fn whatever_is_signed_comes_back(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let jws = sign(JwsType::Policy, &payload, &key()).unwrap();
            prop_assert_eq!(verify(&jws).unwrap(), payload);
        }
    }
}
