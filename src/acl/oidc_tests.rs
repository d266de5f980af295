//! Tests of OIDC tokens, signed here by another implementation (AWS-LC) with keys of all three types.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

use std::sync::LazyLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::oidc::{MAX_GROUPS, MAX_TOKEN_BYTES, OidcError, ProvenToken, Token, TrustedIssuer};
use crate::acl::Identity;
use crate::clock::UnixMillis;
use crate::jose::{JwkSet, base64url};

const NOW: UnixMillis = UnixMillis(1_767_225_600_000); // 2026-01-01T00:00:00Z
const SECONDS: u64 = NOW.0 / 1_000;
const ISSUER: &str = "https://login.example.com";

/// An issuer's keys, made once: RSA keys take a while.
struct Keys {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
}

static KEYS: LazyLock<Keys> = LazyLock::new(Keys::generate);
static OTHERS: LazyLock<Keys> = LazyLock::new(Keys::generate);

impl Keys {
    fn generate() -> Self {
        Self {
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            ed25519: Ed25519KeyPair::generate().unwrap(),
        }
    }

    fn jwks(&self) -> Value {
        let parts = PublicKeyComponents::<Vec<u8>>::from(self.rsa.public_key());
        let point = self.p256.public_key().as_ref();
        json!({ "keys": [
            { "kty": "RSA", "kid": "r", "use": "sig", "alg": "RS256", "n": base64url(&parts.n), "e": base64url(&parts.e) },
            { "kty": "EC", "kid": "e", "crv": "P-256", "x": base64url(&point[1..33]), "y": base64url(&point[33..]) },
            { "kty": "OKP", "kid": "d", "crv": "Ed25519", "x": base64url(self.ed25519.public_key().as_ref()) },
        ]})
    }

    /// Signs by the algorithm of the key that `kid` names.
    fn sign(&self, kid: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match kid {
            "r" => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                self.rsa
                    .sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .unwrap();
                signature
            }
            "e" => self.p256.sign(&random, message).unwrap().as_ref().to_vec(),
            _ => self.ed25519.sign(message).as_ref().to_vec(),
        }
    }

    fn token(&self, header: &str, claims: &str, kid: &str) -> String {
        let signed = format!("{}.{}", base64url(header.as_bytes()), base64url(claims.as_bytes()));
        let signature = base64url(&self.sign(kid, signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

fn algorithm(kid: &str) -> &'static str {
    match kid {
        "r" => "RS256",
        "e" => "ES256",
        _ => "EdDSA",
    }
}

fn header(kid: &str) -> Value {
    json!({"alg": algorithm(kid), "kid": kid, "typ": "JWT"})
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "alice", "aud": ["other", "sealflow"], "exp": SECONDS + 300, "iat": SECONDS,
        "groups": ["fraud", "ops"],
    })
}

fn trusted() -> TrustedIssuer {
    TrustedIssuer::new(ISSUER, vec!["sealflow".into()])
}

fn verify(token: &str) -> Result<ProvenToken, OidcError> {
    verify_at(token, NOW)
}

fn verify_at(token: &str, now: UnixMillis) -> Result<ProvenToken, OidcError> {
    let keys = JwkSet::parse(KEYS.jwks().to_string().as_bytes()).unwrap();
    Token::parse(token)?.verify(&trusted(), &keys, now)
}

/// A rightly signed token whose claims were changed so.
fn with(change: impl FnOnce(&mut Value)) -> Result<ProvenToken, OidcError> {
    let mut changed = claims();
    change(&mut changed);
    verify(&KEYS.token(&header("d").to_string(), &changed.to_string(), "d"))
}

/// A rightly signed token with this header.
fn with_header(header: &str) -> Result<ProvenToken, OidcError> {
    verify(&KEYS.token(header, &claims().to_string(), "r"))
}

fn set(name: &str, value: Value) -> impl FnOnce(&mut Value) {
    move |claims| claims[name] = value
}

fn without(name: &str) -> impl FnOnce(&mut Value) {
    move |claims| drop(claims.as_object_mut().unwrap().remove(name))
}

#[test]
fn a_token_of_each_algorithm_says_who_somebody_is() {
    let expected = Identity::Oidc {
        issuer: ISSUER.into(),
        subject: "alice".into(),
        groups: ["fraud".to_owned(), "ops".to_owned()].into(),
        lists_groups: true,
    };
    for kid in ["r", "e", "d"] {
        let proven = verify(&KEYS.token(&header(kid).to_string(), &claims().to_string(), kid)).unwrap();
        assert_eq!(proven.identity, expected, "{kid}");
        assert_eq!(proven.expires, UnixMillis((SECONDS + 300) * 1_000));
        assert_eq!(proven.bound_to, None);
        let unnamed = json!({"alg": algorithm(kid)}).to_string();
        assert!(
            verify(&KEYS.token(&unnamed, &claims().to_string(), kid)).is_ok(),
            "{kid}: one key of its type"
        );
    }
}

#[test]
fn another_key_and_every_changed_byte_are_refused() {
    for kid in ["r", "e", "d"] {
        let (header, claims) = (header(kid).to_string(), claims().to_string());
        let token = OTHERS.token(&header, &claims, kid);
        assert_eq!(verify(&token), Err(OidcError::BadSignature), "{kid}");
        let token = KEYS.token(&header, &claims, kid);
        for at in (0..token.len()).step_by(7) {
            for with in ["A", "B", "_", ".", "=", "\n", ""] {
                let mut edited = token.clone();
                edited.replace_range(at..=at, with);
                assert!(
                    edited == token || verify(&edited).is_err(),
                    "{kid}: byte {at} as {with:?}"
                );
            }
        }
    }
}

#[test]
fn the_algorithm_is_that_of_the_key_and_never_chosen_by_the_token() {
    for algorithm in ["none", "HS256", "RS512", "PS256", "ES384", "Ed25519", "rs256", ""] {
        let header = json!({"alg": algorithm, "kid": "r"}).to_string();
        assert_eq!(with_header(&header), Err(OidcError::OtherAlgorithm), "{algorithm}");
    }
    // An unsigned token, and one that is "signed" by a MAC under the public key's text.
    let unsigned = format!(
        "{}.{}.",
        base64url(br#"{"alg":"none"}"#),
        base64url(claims().to_string().as_bytes())
    );
    assert_eq!(verify(&unsigned), Err(OidcError::OtherAlgorithm));
    for (algorithm, kid) in [("ES256", "r"), ("EdDSA", "r"), ("RS256", "e"), ("RS256", "d")] {
        let header = json!({"alg": algorithm, "kid": kid}).to_string();
        let token = KEYS.token(&header, &claims().to_string(), kid);
        assert_eq!(verify(&token), Err(OidcError::OtherKeyType), "{algorithm} under {kid}");
    }
    // The key that a token brings along is not looked at.
    let jwk = OTHERS.jwks()["keys"][2].clone();
    let header = json!({"alg": "EdDSA", "kid": "d", "jwk": jwk, "jku": "https://evil.example.com"}).to_string();
    assert_eq!(
        verify(&OTHERS.token(&header, &claims().to_string(), "d")),
        Err(OidcError::BadSignature)
    );
    assert!(verify(&KEYS.token(&header, &claims().to_string(), "d")).is_ok());
}

#[test]
fn headers_that_change_what_a_token_is_are_refused() {
    let changed = |name: &str, value: Value| {
        let mut header = header("r");
        header[name] = value;
        with_header(&header.to_string())
    };
    for typ in ["JWT", "jwt", "at+jwt", "application/at+jwt"] {
        assert!(changed("typ", json!(typ)).is_ok(), "{typ}");
    }
    for typ in ["sealflow-policy", "dpop+jwt", "logout+jwt", "secevent+jwt", ""] {
        assert_eq!(changed("typ", json!(typ)), Err(OidcError::OtherType), "{typ}");
    }
    for name in ["crit", "b64", "zip", "enc", "cty"] {
        assert_eq!(changed(name, json!(["x"])), Err(OidcError::UnexpectedHeader { name }));
    }
    assert_eq!(changed("kid", json!("x")), Err(OidcError::UnknownKey));
    assert!(OidcError::UnknownKey.may_be_a_newer_key() && !OidcError::BadSignature.may_be_a_newer_key());
    for (name, value) in [
        ("kid", json!(1)),
        ("typ", json!(1)),
        ("alg", json!(1)),
        ("alg", Value::Null),
    ] {
        assert_eq!(
            changed(name, value.clone()),
            Err(OidcError::BadHeader),
            "{name}: {value}"
        );
    }
    for header in [
        "[]",
        "",
        r#"{"alg":"RS256","alg":"RS256"}"#,
        r#"{"alg":"RS256","\u0061lg":"none"}"#,
    ] {
        assert_eq!(with_header(header), Err(OidcError::BadHeader), "{header}");
    }
}

#[test]
fn issuer_and_audience_are_compared_exactly() {
    for issuer in [
        "https://login.example.com/",
        "https://LOGIN.example.com",
        "http://login.example.com",
        "",
    ] {
        assert_eq!(with(set("iss", json!(issuer))), Err(OidcError::OtherIssuer), "{issuer}");
    }
    for issuer in [json!(null), json!([ISSUER])] {
        assert_eq!(with(set("iss", issuer)), Err(OidcError::BadClaim { name: "iss" }));
    }
    assert!(with(set("aud", json!("sealflow"))).is_ok());
    for audience in [
        json!("Sealflow"),
        json!("sealflow "),
        json!([]),
        json!(["other"]),
        json!(["seal", "flow"]),
    ] {
        assert_eq!(
            with(set("aud", audience.clone())),
            Err(OidcError::OtherAudience),
            "{audience}"
        );
    }
    for audience in [json!(null), json!({"sealflow": 1}), json!(["sealflow", 1])] {
        assert_eq!(with(set("aud", audience)), Err(OidcError::BadClaim { name: "aud" }));
    }
    assert_eq!(with(without("aud")), Err(OidcError::BadClaim { name: "aud" }));
}

#[test]
fn a_token_counts_from_its_beginning_with_a_minute_of_grace_to_its_end_without() {
    let token = KEYS.token(&header("d").to_string(), &claims().to_string(), "d");
    let end = UnixMillis((SECONDS + 300) * 1_000);
    assert!(verify_at(&token, UnixMillis(end.0 - 1)).is_ok());
    assert_eq!(verify_at(&token, end), Err(OidcError::Expired { at: end }));
    for name in ["iat", "nbf"] {
        assert!(with(set(name, json!(SECONDS + 60))).is_ok(), "{name}");
        let at = UnixMillis((SECONDS + 61) * 1_000);
        assert_eq!(
            with(set(name, json!(SECONDS + 61))),
            Err(OidcError::NotYet { at }),
            "{name}"
        );
    }
    assert!(with(set("exp", json!(SECONDS as f64 + 0.5))).is_ok());
    for name in ["exp", "iat"] {
        assert_eq!(with(without(name)), Err(OidcError::BadClaim { name }));
    }
    for name in ["exp", "iat", "nbf"] {
        for value in [json!("1"), json!(-1), json!(null), json!([1])] {
            assert_eq!(
                with(set(name, value.clone())),
                Err(OidcError::BadClaim { name }),
                "{name}: {value}"
            );
        }
    }
    assert!(with(set("exp", json!(u64::MAX))).is_ok() && with(set("exp", json!(1e300))).is_ok());
}

#[test]
fn subject_and_groups_are_names_and_too_many_groups_are_refused_not_cut() {
    let groups = |value: Value| {
        with(set("groups", value)).map(|proven| match proven.identity {
            Identity::Oidc { groups, .. } => groups.into_iter().collect::<Vec<_>>(),
            other => panic!("{other}"),
        })
    };
    let bad = Err(OidcError::BadClaim { name: "of groups" });
    for (proven, listed) in [(with(set("groups", json!([]))), true), (with(without("groups")), false)] {
        let Identity::Oidc {
            lists_groups, groups, ..
        } = proven.unwrap().identity
        else {
            panic!()
        };
        assert_eq!(
            (lists_groups, groups.len()),
            (listed, 0),
            "none, and nothing said of groups, are two things"
        );
    }
    assert_eq!(groups(json!("one")), Ok(vec!["one".to_owned()]));
    assert_eq!(groups(json!([])), Ok(vec![]));
    for value in [
        json!(null),
        json!(1),
        json!({"a": 1}),
        json!(["a", 1]),
        json!([""]),
        json!(["a\nb"]),
        json!(["a".repeat(256)]),
    ] {
        assert_eq!(groups(value.clone()), bad, "{value}");
    }
    let many = |n: usize| json!((0..n).map(|n| format!("g{n}")).collect::<Vec<_>>());
    assert_eq!(groups(many(MAX_GROUPS)).map(|groups| groups.len()), Ok(MAX_GROUPS));
    assert_eq!(groups(many(MAX_GROUPS + 1)), Err(OidcError::TooManyGroups));
    for subject in [
        json!(null),
        json!(7),
        json!(""),
        json!("a\u{202e}b"),
        json!("a".repeat(256)),
    ] {
        assert_eq!(with(set("sub", subject)), Err(OidcError::BadClaim { name: "sub" }));
    }
    // Left out because they are too many: a policy may deny one of them.
    for (name, value) in [("hasgroups", json!(true)), ("_claim_names", json!({"groups": "src1"}))] {
        assert_eq!(with(set(name, value)), Err(OidcError::GroupsElsewhere), "{name}");
    }
    assert!(with(set("_claim_names", json!({"address": "src1"}))).is_ok());
    assert_eq!(with(set("events", json!({}))), Err(OidcError::EventToken));
}

#[test]
fn groups_may_stand_in_another_claim() {
    let keys = JwkSet::parse(KEYS.jwks().to_string().as_bytes()).unwrap();
    let mut claims = claims();
    claims["roles"] = json!(["auditor"]);
    let token = KEYS.token(&header("e").to_string(), &claims.to_string(), "e");
    let proven = Token::parse(&token)
        .unwrap()
        .verify(&trusted().with_groups_claim("roles"), &keys, NOW);
    let Identity::Oidc { groups, .. } = proven.unwrap().identity else {
        panic!()
    };
    assert_eq!(groups, ["auditor".to_owned()].into());
}

#[test]
fn a_token_bound_to_a_key_says_so_and_other_bindings_are_refused() {
    let thumbprint = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";
    let bound = with(set("cnf", json!({"jkt": thumbprint}))).unwrap().bound_to.unwrap();
    assert_eq!(bound.to_string(), thumbprint);
    for value in [
        json!(null),
        json!({}),
        json!({"jkt": "x"}),
        json!({"x5t#S256": thumbprint}),
        json!({"jkt": thumbprint, "x5t#S256": thumbprint}),
    ] {
        assert_eq!(
            with(set("cnf", value.clone())),
            Err(OidcError::BadClaim { name: "cnf" }),
            "{value}"
        );
    }
}

/// <https://cloud.google.com/iam/docs/create-short-lived-credentials-direct#sa-credentials-oidc>: issuer, numeric `sub`
/// (the account's unique id), RS256; `email` can come to mean another account, so it counts for nothing.
#[test]
fn a_service_account_of_google_cloud_is_its_number_and_not_its_email() {
    let google = TrustedIssuer::new(
        "https://accounts.google.com",
        vec!["https://sealflow.example.com".into()],
    );
    let keys = JwkSet::parse(KEYS.jwks().to_string().as_bytes()).unwrap();
    let claims = json!({
        "aud": "https://sealflow.example.com", "azp": "112233445566778899001", "email": "reader@project.iam.gserviceaccount.com",
        "email_verified": true, "exp": SECONDS + 3_600, "iat": SECONDS, "iss": "https://accounts.google.com",
        "sub": "112233445566778899001",
    });
    let token = KEYS.token(&header("r").to_string(), &claims.to_string(), "r");
    let proven = Token::parse(&token).unwrap().verify(&google, &keys, NOW).unwrap();
    assert_eq!(
        proven.identity.to_string(),
        "oidc:https://accounts.google.com#sub=112233445566778899001"
    );
    let names = |principal: &str| principal.parse::<super::Principal>().unwrap().names(&proven.identity);
    assert!(names("oidc:https://accounts.google.com#sub=112233445566778899001"));
    assert!(!names(
        "oidc:https://accounts.google.com#sub=reader@project.iam.gserviceaccount.com"
    ));
}

#[test]
fn long_tokens_and_other_shapes_are_refused_before_anything_is_decoded() {
    assert_eq!(verify(&"a".repeat(MAX_TOKEN_BYTES + 1)), Err(OidcError::TooLarge));
    for text in ["", "a", "a.b", "a.b.c.d", "....", "é.é.é"] {
        assert_eq!(verify(text), Err(OidcError::NotCompact), "{text}");
    }
    for claims in ["[]", "", r#"{"iss":1,"iss":1}"#, r#"{"aud":{"a":1,"a":1}}"#] {
        let token = KEYS.token(&header("d").to_string(), claims, "d");
        assert_eq!(verify(&token), Err(OidcError::BadClaims), "{claims}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic_or_proves_anybody(text in "[A-Za-z0-9_.=-]{0,200}", header in "[ -~]{0,80}", claims in "[ -~]{0,80}") {
        prop_assert!(verify(&text).is_err());
        let parts = [header, claims, text].map(|part| base64url(part.as_bytes()));
        prop_assert!(verify(&parts.join(".")).is_err());
    }
}
