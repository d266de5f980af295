//! Who is proved, by whom that is asked, and how often.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use sealflow::clock::ManualClock;
use serde_json::{Value, json};

use super::web::{Answer, NoAnswer};
use super::*;
use crate::config::{OidcConfig, StsConfig};

pub(crate) const NOW: UnixMillis = UnixMillis(1_767_225_600_000); // 2026-01-01T00:00:00Z
const SECONDS: u64 = NOW.0 / 1_000;
pub(crate) const ISSUER: &str = "https://login.example.com";
const GOOGLE: &str = "https://accounts.google.com";
pub(crate) const SERVER: &str = "read.example.com";
pub(crate) const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

/// Answers what the test says, slowly, and counts.
#[derive(Default)]
pub(crate) struct Canned {
    answer: Mutex<Option<(u16, String)>>,
    asked: AtomicUsize,
    last: Mutex<String>,
}

impl Canned {
    pub(crate) fn says(&self, status: u16, body: &impl ToString) {
        *self.answer.lock().unwrap() = Some((status, body.to_string()));
    }

    fn is_away(&self) {
        *self.answer.lock().unwrap() = None;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Web for Canned {
    async fn get(&self, url: &str, headers: &[(&'static str, &str)], _: usize) -> Result<Answer, NoAnswer> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        *self.last.lock().unwrap() = format!("{url} {headers:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (status, body) = self.answer.lock().unwrap().clone().ok_or(NoAnswer("away"))?;
        Ok(Answer {
            status,
            body: Bytes::from(body),
        })
    }
}

struct Bench {
    web: Arc<Canned>,
    clock: Arc<ManualClock>,
    prover: Prover,
}

impl Bench {
    fn new() -> Self {
        Self::serving(&[])
    }

    /// Callers of these accounts only, or of all.
    fn serving(accounts: &[&str]) -> Self {
        let (web, clock) = (Arc::new(Canned::default()), Arc::new(ManualClock::at(NOW)));
        let oidc = |issuer: &str, jwks_uri: &str| OidcConfig {
            issuer: issuer.to_owned(),
            audiences: vec![SERVER.to_owned()],
            jwks_uri: jwks_uri.to_owned(),
            groups_claim: "groups".to_owned(),
        };
        let config = IdentityConfig {
            server_id: SERVER.to_owned(),
            sts: Some(StsConfig {
                regions: vec!["eu-west-1".to_owned()],
                accounts: accounts.iter().map(|account| (*account).to_owned()).collect(),
                ..StsConfig::default()
            }),
            oidc: vec![
                oidc(ISSUER, "https://login.example.com/keys"),
                oidc(GOOGLE, "https://www.googleapis.com/oauth2/v3/certs"),
            ],
        };
        let limits = LimitsConfig {
            unproven_burst: 3,
            unproven_per_second: 1,
            ..LimitsConfig::default()
        };
        let prover = Prover::new(&config, &limits, web.clone(), clock.clone()).unwrap();
        Self { web, clock, prover }
    }

    async fn prove(&self, authorization: &str) -> Result<String, Code> {
        self.prove_from(authorization, PEER).await
    }

    async fn prove_from(&self, authorization: &str, peer: IpAddr) -> Result<String, Code> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        let proved = self.prover.prove(&headers, peer, self.clock.now()).await;
        proved
            .map(|proven| proven.identity.to_string())
            .map_err(|problem| problem.code)
    }
}

pub(crate) fn key() -> Ed25519KeyPair {
    Ed25519KeyPair::generate().unwrap()
}

pub(crate) fn jwks(keys: &[(&str, &Ed25519KeyPair)]) -> Value {
    let jwk = |(kid, key): &(&str, &Ed25519KeyPair)| {
        let x = URL_SAFE_NO_PAD.encode(key.public_key().as_ref());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x })
    };
    json!({ "keys": keys.iter().map(jwk).collect::<Vec<_>>() })
}

pub(crate) fn token(kid: &str, key: &Ed25519KeyPair, claims: &Value) -> String {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let signed = format!(
        "{}.{}",
        part(&json!({ "alg": "EdDSA", "kid": kid, "typ": "JWT" })),
        part(claims)
    );
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()).as_ref());
    format!("Bearer {signed}.{signature}")
}

pub(crate) fn claims() -> Value {
    json!({ "iss": ISSUER, "sub": "alice", "aud": SERVER, "iat": SECONDS, "exp": SECONDS + 86_400 })
}

const ALICE: &str = "oidc:https://login.example.com#sub=alice";

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_once_for_many_and_again_for_a_newer_one_but_not_for_every_stranger() {
    let bench = Bench::new();
    let (old, new) = (key(), key());
    bench.web.says(200, &jwks(&[("old", &old)]));
    let good = token("old", &old, &claims());
    let peers = (0..50).map(|n| IpAddr::from([198, 51, 100, n]));
    let proofs: Vec<_> = peers.map(|peer| bench.prove_from(&good, peer)).collect();
    for proof in futures_all(proofs).await {
        assert_eq!(proof.as_deref(), Ok(ALICE));
    }
    assert_eq!(bench.web.asked(), 1, "no stampede");
    // The issuer rotates.
    bench.web.says(200, &jwks(&[("old", &old), ("new", &new)]));
    let newer = token("new", &new, &claims());
    assert_eq!(
        bench.prove(&newer).await,
        Err(Code::TokenUnknownKey),
        "one was fetched just before"
    );
    bench.clock.advance(BETWEEN);
    assert_eq!(bench.prove(&newer).await.as_deref(), Ok(ALICE));
    assert_eq!(bench.web.asked(), 2);
    // Unknown names of keys, however many, cost one fetch per span.
    bench.clock.advance(BETWEEN);
    for n in 0..20 {
        let forged = token(&format!("k{n}"), &new, &claims());
        let peer = IpAddr::from([203, 0, 113, n]);
        assert_eq!(bench.prove_from(&forged, peer).await, Err(Code::TokenUnknownKey));
    }
    assert_eq!(bench.web.asked(), 3);
    // A key that the issuer takes away counts until the set is fetched again, at the latest.
    bench.web.says(200, &jwks(&[("new", &new)]));
    bench.clock.advance(REFRESH);
    assert_eq!(bench.prove(&good).await, Err(Code::TokenUnknownKey));
    assert_eq!(bench.prove(&newer).await.as_deref(), Ok(ALICE));
}

#[tokio::test(start_paused = true)]
async fn an_issuer_that_is_away_is_done_without_for_a_while_and_not_for_ever() {
    let bench = Bench::new();
    let key = key();
    let good = token("k", &key, &claims());
    bench.web.is_away();
    assert_eq!(bench.prove(&good).await, Err(Code::KeysUnavailable));
    bench.clock.advance(BETWEEN);
    bench.web.says(200, &jwks(&[("k", &key)]));
    assert_eq!(bench.prove(&good).await.as_deref(), Ok(ALICE));
    for (status, body) in [(500, "{}"), (302, "{}"), (200, "<html>"), (200, "{}")] {
        bench.web.says(status, &body);
        bench.clock.advance(REFRESH);
        assert_eq!(bench.prove(&good).await.as_deref(), Ok(ALICE), "{status} {body}");
    }
    bench.clock.advance(REFRESH + MAX_STALE - 4 * REFRESH);
    assert_eq!(bench.prove(&good).await, Err(Code::KeysUnavailable));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_proves_nothing_is_told_apart_and_asks_nobody() {
    let bench = Bench::new();
    let (own, other) = (key(), key());
    bench.web.says(200, &jwks(&[("k", &own)]));
    bench.prover.issuers[0]
        .newer(None, &*bench.web, &*bench.clock)
        .await
        .unwrap();
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        token("k", &own, &claims)
    };
    let cases = [
        (with("aud", json!("other.example.com")), Code::TokenOtherAudience),
        (with("iss", json!("https://evil.example.com")), Code::TokenOtherIssuer),
        (with("exp", json!(SECONDS)), Code::TokenExpired),
        (with("nbf", json!(SECONDS + 3_600)), Code::TokenNotYet),
        (with("sub", Value::Null), Code::TokenBadClaim),
        (with("hasgroups", json!(true)), Code::TokenGroups),
        (with("cnf", json!({ "x5t#S256": "abc" })), Code::TokenBadClaim),
        (with("events", json!({})), Code::TokenEvent),
        (token("k", &other, &claims()), Code::TokenBadSignature),
        ("Bearer abc".to_owned(), Code::TokenMalformed),
        ("Basic abc".to_owned(), Code::OtherProof),
        ("Bearer".to_owned(), Code::OtherProof),
        ("Bearer a b".to_owned(), Code::OtherProof),
    ];
    for (authorization, code) in cases {
        assert_eq!(bench.prove(&authorization).await, Err(code), "{authorization}");
        bench.clock.advance(Duration::from_millis(1));
        bench.prover.unproven.give_back(&of_peer(PEER));
    }
    assert_eq!(bench.web.asked(), 1, "and nobody was asked");
    let none = bench.prover.prove(&HeaderMap::new(), PEER, NOW).await.unwrap_err();
    assert_eq!((none.code, bench.prover.challenges(&none).len()), (Code::NoProof, 2));
    let mut twice = HeaderMap::new();
    twice.append(AUTHORIZATION, token("k", &own, &claims()).parse().unwrap());
    twice.append(AUTHORIZATION, token("k", &own, &claims()).parse().unwrap());
    assert_eq!(
        bench.prover.prove(&twice, PEER, NOW).await.unwrap_err().code,
        Code::OtherProof
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_account_of_google_cloud_is_its_numeric_subject() {
    let bench = Bench::new();
    let key = key();
    bench.web.says(200, &jwks(&[("k", &key)]));
    // As the metadata server of Google Cloud answers for `audience=read.example.com&format=full`. Google signs with RS256;
    // which algorithm it is, is the core's business.
    let claims = json!({
        "aud": SERVER,
        "azp": "112233445566778899001",
        "email": "reader@project.iam.gserviceaccount.com",
        "email_verified": true,
        "exp": SECONDS + 3_600,
        "google": { "compute_engine": { "instance_id": "1", "project_id": "project", "zone": "europe-west3-a" } },
        "iat": SECONDS,
        "iss": GOOGLE,
        "sub": "112233445566778899001",
    });
    let proved = bench.prove(&token("k", &key, &claims)).await;
    assert_eq!(
        proved.as_deref(),
        Ok("oidc:https://accounts.google.com#sub=112233445566778899001")
    );
    assert_eq!(
        *bench.web.last.lock().unwrap(),
        "https://www.googleapis.com/oauth2/v3/certs []"
    );
}

fn presigned(server: &str, date: &str) -> String {
    let url = format!(
        "https://sts.eu-west-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15&X-Amz-Algorithm=AWS4-HMAC-SHA256\
         &X-Amz-Credential=ASIAEXAMPLE%2F20260101%2Feu-west-1%2Fsts%2Faws4_request&X-Amz-Date={date}&X-Amz-Expires=300\
         &X-Amz-SignedHeaders=host%3Bx-sealflow-server-id&X-Amz-Signature={}",
        "a".repeat(64)
    );
    let json = json!({ "url": url, "headers": { "x-sealflow-server-id": server } });
    format!("{STS_SCHEME} {}", URL_SAFE_NO_PAD.encode(json.to_string()))
}

const CALLER: &str = "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
    <Arn>arn:aws:sts::111122223333:assumed-role/analyst/alice</Arn><UserId>A</UserId><Account>111122223333</Account>\
    </GetCallerIdentityResult></GetCallerIdentityResponse>";

#[tokio::test(start_paused = true)]
async fn sts_is_asked_once_for_equal_requests_and_again_never_while_they_count() {
    let bench = Bench::new();
    bench.web.says(200, &CALLER);
    let good = presigned(SERVER, "20260101T000000Z");
    let peers = (0..50).map(|n| IpAddr::from([198, 51, 100, n]));
    let proofs: Vec<_> = peers.map(|peer| bench.prove_from(&good, peer)).collect();
    for proof in futures_all(proofs).await {
        assert_eq!(proof.as_deref(), Ok("arn:aws:iam::111122223333:role/analyst"));
    }
    assert_eq!(bench.web.asked(), 1);
    bench.web.is_away();
    bench.clock.advance(Duration::from_secs(299));
    assert!(bench.prove(&good).await.is_ok());
    bench.clock.advance(Duration::from_secs(1));
    assert_eq!(bench.prove(&good).await, Err(Code::RequestTooOld));
    assert_eq!(bench.web.asked(), 1);
    bench.prover.tick().await;
    assert_eq!(bench.prover.sts.as_ref().unwrap().proven_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn callers_of_accounts_that_are_not_listed_are_strangers_although_sts_knows_them() {
    for (accounts, expected) in [
        (
            &["111122223333"][..],
            Ok("arn:aws:iam::111122223333:role/analyst".to_owned()),
        ),
        (&["999999999999"], Err(Code::RequestOtherAccount)),
    ] {
        let bench = Bench::serving(accounts);
        bench.web.says(200, &CALLER);
        let request = presigned(SERVER, "20260101T000000Z");
        assert_eq!(bench.prove(&request).await, expected);
        // Remembered or not.
        assert_eq!(bench.prove(&request).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_for_another_server_is_never_sent_and_refusals_are_not_remembered() {
    let bench = Bench::new();
    bench.web.says(403, &"");
    assert_eq!(
        bench.prove(&presigned("other", "20260101T000000Z")).await,
        Err(Code::RequestOtherServer)
    );
    assert_eq!(
        bench.prove(&presigned(SERVER, "20251231T235500Z")).await,
        Err(Code::RequestOtherHost),
        "of another day"
    );
    assert_eq!(bench.web.asked(), 0);
    let good = presigned(SERVER, "20260101T000000Z");
    bench.clock.advance(Duration::from_secs(10));
    assert_eq!(bench.prove(&good).await, Err(Code::RequestRefused));
    bench.web.says(503, &"");
    assert_eq!(bench.prove(&good).await, Err(Code::StsUnavailable));
    bench.web.says(200, &CALLER);
    assert!(bench.prove(&good).await.is_ok());
    assert_eq!(bench.web.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_proves_nobody_too_often_asks_nobody_any_more_and_hurts_no_other() {
    let bench = Bench::new();
    bench.web.says(200, &CALLER);
    let good = presigned(SERVER, "20260101T000000Z");
    assert!(bench.prove(&good).await.is_ok());
    bench.web.says(403, &"");
    let mut refused = Vec::new();
    for n in 1..=6 {
        let forged = presigned(SERVER, &format!("20260101T00000{n}Z"));
        refused.push(bench.prove(&forged).await.unwrap_err());
    }
    let (asked, not_asked) = refused.split_at(3);
    assert_eq!(asked, [Code::RequestRefused; 3]);
    assert_eq!(not_asked, [Code::TooManyUnproven; 3]);
    assert_eq!(bench.web.asked(), 4);
    // Whoever is known is known there too, and other addresses are asked for.
    assert!(bench.prove(&good).await.is_ok());
    let other = IpAddr::from([198, 51, 100, 1]);
    assert_eq!(
        bench.prove_from(&presigned(SERVER, "20260101T000009Z"), other).await,
        Err(Code::RequestRefused)
    );
    // Bad tokens pay from the same bucket.
    assert_eq!(bench.prove("Bearer abc").await, Err(Code::TooManyUnproven));
    bench.clock.advance(Duration::from_secs(1));
    assert_eq!(bench.prove("Bearer abc").await, Err(Code::TokenMalformed));
}

async fn futures_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in futures.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *done = Some(value);
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}
