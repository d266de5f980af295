//! OIDC tokens and key sets: no input panics, and nothing proves anybody that was not signed.
#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use libfuzzer_sys::fuzz_target;
use sealflow::acl::Identity;
use sealflow::acl::oidc::{MAX_GROUPS, Token, TrustedIssuer};
use sealflow::clock::UnixMillis;
use sealflow::jose::{JwkSet, TokenAlgorithm};

/// The public keys of RFC 8037 (A.2), RFC 7517 (A.1) and RFC 7515 (A.3).
const KEYS: &str = include_str!("../corpus/oidc_token/keys.json");
/// Signed with the private key of RFC 8037 (A.1): the one token that verifies.
const SIGNED: &str = include_str!("../corpus/oidc_token/signed.jwt");
const NOW: UnixMillis = UnixMillis(1_767_225_600_000); // 2026-01-01T00:00:00Z

/// `{"alg":"EdDSA","kid":"e"}`
const EDDSA_HEADER: &str = "eyJhbGciOiJFZERTQSIsImtpZCI6ImUifQ";

/// The private key of RFC 8037 (A.1), which everybody knows.
static SIGNER: LazyLock<SigningKey> = LazyLock::new(|| {
    let seed = URL_SAFE_NO_PAD
        .decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
        .unwrap();
    SigningKey::from_bytes(&seed.try_into().unwrap())
});
static SET: LazyLock<JwkSet> = LazyLock::new(|| JwkSet::parse(KEYS.as_bytes()).unwrap());
static ISSUER: LazyLock<TrustedIssuer> =
    LazyLock::new(|| TrustedIssuer::new("https://login.example.com", vec!["sealflow".into()]));

fuzz_target!(|bytes: &[u8]| {
    let verify = |text: &str| Token::parse(text).and_then(|token| token.verify(&ISSUER, &SET, NOW));
    assert!(verify(SIGNED).is_ok());
    if let Ok(text) = std::str::from_utf8(bytes)
        && verify(text).is_ok()
    {
        assert_eq!(text, SIGNED);
    }
    // As claims that the issuer did sign: past the signature, to everything that a token must say.
    let signed = format!("{EDDSA_HEADER}.{}", URL_SAFE_NO_PAD.encode(bytes));
    let signature = URL_SAFE_NO_PAD.encode(SIGNER.sign(signed.as_bytes()).to_bytes());
    if let Ok(proven) = verify(&format!("{signed}.{signature}")) {
        assert!(proven.expires > NOW);
        assert!(
            matches!(&proven.identity, Identity::Oidc { issuer, subject, groups, .. }
            if issuer == "https://login.example.com" && !subject.is_empty() && groups.len() <= MAX_GROUPS)
        );
    }
    // As header and claims, where base64url is no obstacle, with signatures of each length that are right for nothing.
    let split = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (header, claims) = bytes.split_at(split);
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    for length in [0, 64, 256] {
        let signature = URL_SAFE_NO_PAD.encode(vec![7; length]);
        assert!(verify(&format!("{header}.{claims}.{signature}")).is_err());
    }
    // As a key set, which verifies nothing by chance.
    if let Ok(set) = JwkSet::parse(bytes) {
        assert!(set.len() + set.skipped() <= 64);
        for algorithm in [TokenAlgorithm::Rs256, TokenAlgorithm::Es256, TokenAlgorithm::EdDsa] {
            for kid in [None, Some("k")] {
                let Ok(key) = set.find(algorithm, kid) else { continue };
                assert_eq!(key.algorithm(), algorithm);
                assert!(!key.verifies(b"message", &[7; 64]) && !key.verifies(b"message", &[7; 256]));
            }
        }
    }
});
