//! Guards between what is opened and what is shown: the log first, then policy and proof once more; places, and the end of
//! patience.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

use std::sync::Mutex;

use async_trait::async_trait;
use aws_lc_rs::signature::Ed25519KeyPair;
use hyper::header::AUTHORIZATION;
use sealflow::clock::ManualClock;
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::ClientKeyService as _;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{DomainKeys, OpeningKeys, SealingKeys};
use sealflow::pipeline::{Format, Headers, KeysPlacement, Position, Record, SealTransform, Timestamp, Transform as _};
use sealflow::policy::enclave_keys::attested::Trust;
use sealflow::policy::enclave_keys::signed;
use sealflow::policy::signed::sign;
use sealflow::policy::{CataloguePolicies, EnclaveKeys, OwnerKey, PolicySource, TrustedOwners};
use sealflow::seal::UsageLimits;
use sealflow::units::Span;
use sealflow_client::{Answers, OpenError, PrivateKey, RsaBits};
use serde_json::{Value, json};

use super::*;
use crate::config::{IdentityConfig, OidcConfig};
use crate::identity::tests::{Canned, ISSUER, NOW, PEER, SERVER, claims, jwks, key, token};

const NOTE: &str = "canary-note-8d1f";
const AGE: Duration = Duration::from_secs(300);
const REFRESH: Duration = Duration::from_secs(1);

type Hook = Box<dyn FnOnce() + Send>;

/// Keeps lines, if it is let.
struct Log {
    events: Mutex<Vec<Event>>,
    is_full: AtomicBool,
    /// Holds writers up while it has no permits.
    gate: Semaphore,
    waiting: Mutex<(usize, usize)>,
    /// Done once, when a line is written.
    meanwhile: Mutex<Option<Hook>>,
}

impl Log {
    fn meanwhile(&self, act: impl FnOnce() + Send + 'static) {
        *self.meanwhile.lock().unwrap() = Some(Box::new(act));
    }

    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.events.lock().unwrap())
    }

    /// Those who wait for a line now, and the most who ever did.
    fn waiting(&self) -> (usize, usize) {
        *self.waiting.lock().unwrap()
    }
}

#[async_trait]
impl AuditLog for Log {
    async fn record(&self, events: Vec<Event>) -> Result<(), AuditError> {
        {
            let mut waiting = self.waiting.lock().unwrap();
            waiting.0 += 1;
            waiting.1 = waiting.1.max(waiting.0);
        }
        let passed = self.gate.acquire().await;
        self.waiting.lock().unwrap().0 -= 1;
        drop(passed.unwrap());
        if self.is_full.load(Ordering::SeqCst) {
            return Err(AuditError::Write {
                to: "test".to_owned(),
                reason: "full".to_owned(),
            });
        }
        if let Some(act) = self.meanwhile.lock().unwrap().take() {
            act();
        }
        self.events.lock().unwrap().extend(events);
        Ok(())
    }
}

struct Bench {
    owner: OwnerKey,
    issuer: Ed25519KeyPair,
    clock: Arc<ManualClock>,
    catalogue: Arc<MemoryCatalogue>,
    kms: Arc<MemoryKms>,
    log: Arc<Log>,
    service: Arc<Service>,
    /// A sealed note.
    sealed: String,
}

const RSA_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/22222222-2222-2222-2222-222222222222";
const OLD_RSA_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/33333333-3333-3333-3333-333333333333";

fn policy(version: u32, allow: &str) -> String {
    let arn = "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111";
    format!(
        "dataset: payments\nversion: {version}\nkeys: {{ default: {{ arn: \"{arn}\" }} }}\n\
         client: {{ keys: {{ web: {{ arn: \"{RSA_ARN}\", previous: [\"{OLD_RSA_ARN}\"] }} }} }}\n\
         acls: {{ ops: {{ allow: [{allow}] }} }}\ncolumns: [{{ path: note, key: default, acl: ops }}]\n"
    )
}

fn publish(catalogue: &MemoryCatalogue, owner: &OwnerKey, version: u32, allow: &str) {
    let jws = sign(policy(version, allow).as_bytes(), owner).unwrap();
    catalogue.overwrite(&format!("policies/payments/{version:010}.jws"), jws.as_bytes());
}

impl Bench {
    /// A service for alice and the group of friends.
    async fn new(limits: LimitsConfig) -> Self {
        let (owner, issuer) = (OwnerKey::generate().unwrap(), key());
        let (kms, catalogue) = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
        let clock = Arc::new(ManualClock::at(NOW));
        let web = Arc::new(Canned::default());
        web.says(200, &jwks(&[("k", &issuer)]));
        let allow = format!("\"oidc:{ISSUER}#sub=alice\", \"oidc:{ISSUER}#group=friends\"");
        publish(&catalogue, &owner, 1, &allow);
        let trusted = TrustedOwners::everywhere(vec![owner.thumbprint()]).unwrap();
        let policies = CataloguePolicies::new(catalogue.clone(), trusted, clock.clone()).with_ages(REFRESH, AGE);
        let policies: Arc<dyn PolicySource> = Arc::new(policies);
        let domains = DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), AGE);
        let keys = OpeningKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), AGE, 10);
        let sealer = DirectSealer {
            keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
            domains: domains.clone(),
        };
        let newest = policies.policy("payments").await.unwrap();
        let seal = SealTransform::new(newest, Format::Json, KeysPlacement::Header, sealer).unwrap();
        let record = Record {
            position: Position {
                topic: "payments".into(),
                partition: 0,
                offset: 0,
            },
            timestamp: Timestamp::None,
            key: None,
            value: Some(Bytes::from(json!({ "note": NOTE }).to_string())),
            headers: Headers::new(),
        };
        let sealed = seal.apply(&[record]).await.unwrap().remove(0).record.value.unwrap();
        let sealed: Value = serde_json::from_slice(&sealed).unwrap();
        let identity = IdentityConfig {
            server_id: SERVER.to_owned(),
            sts: None,
            oidc: vec![OidcConfig {
                issuer: ISSUER.to_owned(),
                audiences: vec![SERVER.to_owned()],
                jwks_uri: "https://login.example.com/keys".to_owned(),
                groups_claim: "groups".to_owned(),
            }],
        };
        let log = Arc::new(Log {
            events: Mutex::default(),
            is_full: AtomicBool::new(false),
            gate: Semaphore::new(1_000),
            waiting: Mutex::default(),
            meanwhile: Mutex::default(),
        });
        let published = PublishedKeys::new(
            kms.clone(),
            policies.clone(),
            vec!["payments".to_owned()],
            clock.clone(),
        );
        let owners = TrustedOwners::of(owner.thumbprint());
        let datasets = vec!["payments".to_owned()];
        let enclave_keys = PublishedEnclaveKeys::new(
            catalogue.clone(),
            owners,
            policies.clone(),
            Trust::nitro(),
            datasets,
            clock.clone(),
        );
        let prover = Prover::new(&identity, &limits, web, clock.clone()).unwrap();
        prover.warm_up().await.unwrap();
        let service = Service::new(Parts {
            prover,
            opening: Opening::new(policies, keys, domains),
            audit: log.clone(),
            clock: clock.clone(),
            limits,
            metrics: Metrics::default(),
            published: Some(published),
            enclave_keys: Some(enclave_keys),
        });
        Self {
            sealed: sealed["note"].as_str().unwrap().to_owned(),
            owner,
            issuer,
            clock,
            catalogue,
            kms,
            log,
            service,
        }
    }

    /// Asks as a friend for the note; the answer.
    fn ask(&self, who: &str) -> impl Future<Output = Response<Full<Bytes>>> + use<> {
        let body = json!({ "dataset": "payments", "values": [{ "value": self.sealed }] });
        self.ask_for(who, &body.to_string())
    }

    fn ask_for(&self, who: &str, body: &str) -> impl Future<Output = Response<Full<Bytes>>> + use<> {
        let mut claims = claims();
        (claims["sub"], claims["groups"]) = (json!(who), json!(["friends"]));
        let request = Request::post("/v1/open")
            .header(AUTHORIZATION, token("k", &self.issuer, &claims))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        Arc::clone(&self.service).answer(request, PEER)
    }

    /// What alice hears: the note, or a code.
    async fn heard(&self) -> Result<(), String> {
        heard(self.ask("alice").await).await
    }
}

async fn heard(answer: Response<Full<Bytes>>) -> Result<(), String> {
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let json: Value = serde_json::from_slice(&body).unwrap();
    if status == StatusCode::OK && json["values"] == json!([NOTE]) {
        return Ok(());
    }
    assert!(!String::from_utf8_lossy(&body).contains(NOTE), "{status}: {json}");
    Err(json["code"].as_str().unwrap_or("masked").to_owned())
}

fn code<T>(code: &str) -> Result<T, String> {
    Err(code.to_owned())
}

#[tokio::test(start_paused = true)]
async fn nothing_is_shown_before_its_line_is_written_nor_without() {
    let bench = Bench::new(LimitsConfig::default()).await;
    bench.log.gate.forget_permits(1_000);
    let mut asking = tokio::spawn(bench.ask("alice"));
    let early = tokio::time::timeout(Duration::from_secs(10), &mut asking).await;
    assert!(early.is_err() && bench.log.waiting().0 == 1, "{early:?}");
    assert!(bench.log.take().is_empty());
    bench.log.gate.add_permits(1_000);
    assert_eq!(heard(asking.await.unwrap()).await, Ok(()));
    let lines = bench.log.take();
    assert_eq!((lines.len(), lines[0].decision), (1, Verdict::Allowed));

    bench.log.is_full.store(true, Ordering::SeqCst);
    assert_eq!(bench.heard().await, code("audit-unavailable"));
}

#[tokio::test(start_paused = true)]
async fn readiness_comes_back_by_itself_when_the_log_can_be_written_again_and_a_line_says_so() {
    let bench = Bench::new(LimitsConfig::default()).await;
    bench.log.is_full.store(true, Ordering::SeqCst);
    assert_eq!(bench.heard().await, code("audit-unavailable"));
    for _ in 0..3 {
        assert!(!bench.service.is_writing());
        let _ = bench.service.tick().await;
    }
    bench.log.is_full.store(false, Ordering::SeqCst);
    bench.service.tick().await.unwrap();
    assert!(bench.service.is_writing());
    let lines = bench.log.take();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].rule.starts_with("audit-unavailable: "), "{lines:?}");
    // Nothing is written where all is well.
    bench.service.tick().await.unwrap();
    assert!(bench.log.take().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_counts_by_the_time_of_the_answer_counts_for_it() {
    let bench = Bench::new(LimitsConfig::default()).await;
    assert_eq!(bench.heard().await, Ok(()));
    let (catalogue, clock) = (bench.catalogue.clone(), bench.clock.clone());
    let jws = sign(policy(2, "").as_bytes(), &bench.owner).unwrap();
    bench.log.meanwhile(move || {
        catalogue.overwrite("policies/payments/0000000002.jws", jws.as_bytes());
        clock.advance(REFRESH);
    });
    assert_eq!(bench.heard().await, code("policy-unavailable"));
    assert_eq!(bench.heard().await, code("masked"), "decided by the new one");
}

#[tokio::test(start_paused = true)]
async fn a_proof_that_ends_before_the_answer_shows_nothing() {
    let bench = Bench::new(LimitsConfig::default()).await;
    let clock = bench.clock.clone();
    bench.log.meanwhile(move || clock.advance(Duration::from_secs(86_400)));
    assert_eq!(bench.heard().await, code("proof-ended"));
    assert_eq!(bench.heard().await, code("token-expired"));
}

#[tokio::test(start_paused = true)]
async fn of_many_requests_at_once_as_many_are_worked_on_as_there_are_places() {
    let limits = LimitsConfig {
        in_flight: 4,
        in_flight_per_principal: 3,
        ..LimitsConfig::default()
    };
    let bench = Bench::new(limits).await;
    // All of them wait for their line, so that nobody makes room for the next.
    bench.log.gate.forget_permits(1_000);
    let mut asking = Vec::new();
    for who in ["ann", "bob", "carol"] {
        for _ in 0..10 {
            asking.push(tokio::spawn(bench.ask(who)));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert_eq!(bench.log.waiting(), (4, 4));
    bench.log.gate.add_permits(1_000);
    let mut codes = Vec::new();
    for asking in asking {
        codes.push(heard(asking.await.unwrap()).await.err().unwrap_or_default());
    }
    let expected = [("", 3), ("too-many-at-once", 7), ("", 1), ("busy", 9), ("busy", 10)];
    let expected: Vec<&str> = expected.iter().flat_map(|(code, count)| vec![*code; *count]).collect();
    assert_eq!(codes, expected);
    // The places are free again.
    assert_eq!(bench.heard().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_takes_too_long_is_written_down_with_who_asked_for_what() {
    let limits = LimitsConfig {
        request_timeout: Span(Duration::from_secs(3)),
        ..LimitsConfig::default()
    };
    let bench = Bench::new(limits).await;
    bench.kms.set_delay(Duration::from_secs(60));
    assert_eq!(bench.heard().await, code("took-too-long"));
    assert_eq!(bench.kms.unwrap_calls(), 1, "a key was asked for");
    let lines = bench.log.take();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let alice = format!("oidc:{ISSUER}#sub=alice");
    assert_eq!(
        (
            lines[0].decision,
            lines[0].principal.as_deref(),
            lines[0].dataset.as_deref(),
            lines[0].count
        ),
        (Verdict::Refused, Some(alice.as_str()), Some("payments"), 1)
    );
    assert!(lines[0].rule.starts_with("took-too-long: "), "{lines:?}");
    // Whoever asks for nothing leaves no line, and where none can be written that is what the caller hears.
    bench.log.is_full.store(true, Ordering::SeqCst);
    assert_eq!(bench.heard().await, code("audit-unavailable"));
    bench.log.is_full.store(false, Ordering::SeqCst);
    bench.service.tick().await.unwrap();
    // The log itself takes for ever.
    bench.kms.set_delay(Duration::ZERO);
    bench.log.gate.forget_permits(1_000);
    let asked = tokio::time::Instant::now();
    assert_eq!(bench.heard().await, code("audit-unavailable"));
    assert_eq!(asked.elapsed().as_secs(), 8);
    assert!(!bench.service.is_writing());
}

#[tokio::test(start_paused = true)]
async fn records_that_cannot_be_taken_apart_are_one_line_however_many_they_are() {
    let bench = Bench::new(LimitsConfig::default()).await;
    let deep = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
    let records = vec![deep; 200].join(",");
    let body = format!(r#"{{"dataset":"payments","records":[{records}]}}"#);
    let answer = bench.ask_for("alice", &body).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let lines = bench.log.take();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let place = lines[0].place.as_ref().unwrap();
    assert_eq!((lines[0].count, place.first, place.last), (200, Some(0), Some(199)));
}

/// Asks as alice with more claims, for the note as a value and in a record.
async fn asked_with(bench: &Bench, more: Value, seal_to: Option<Value>, in_record: bool) -> (StatusCode, Value) {
    let mut body = json!({ "dataset": "payments" });
    match in_record {
        true => body["records"] = json!([{ "note": bench.sealed, "x": 1 }]),
        false => body["values"] = json!([{ "value": bench.sealed }]),
    }
    if let Some(key) = seal_to {
        body["seal_to"] = key;
    }
    let mut claims = claims();
    claims["sub"] = json!("alice");
    claims
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let request = Request::post("/v1/open")
        .header(AUTHORIZATION, token("k", &bench.issuer, &claims))
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap();
    let answer = Arc::clone(&bench.service).answer(request, PEER).await;
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(!String::from_utf8_lossy(&body).contains(NOTE));
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test(start_paused = true)]
async fn answers_are_sealed_to_the_key_that_the_callers_proof_commits_to_and_to_no_other() {
    let bench = Bench::new(LimitsConfig::default()).await;
    let (key, other) = (
        PrivateKey::generate(RsaBits::Rsa2048).unwrap(),
        PrivateKey::generate(RsaBits::Rsa2048).unwrap(),
    );
    let public = |key: &PrivateKey| serde_json::from_str::<Value>(&key.public().unwrap().to_published_json()).unwrap();
    let name = |key: &PrivateKey| key.public().unwrap().thumbprint().to_string();
    for commits in [json!({ "cnf": { "jkt": name(&key) } }), json!({ "nonce": name(&key) })] {
        let (status, body) = asked_with(&bench, commits.clone(), Some(public(&key)), false).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let jwe = body["values"][0].as_str().unwrap();
        let answers = Answers::new(&key, "payments");
        assert_eq!(answers.value(jwe, "note"), Ok(json!(NOTE)));
        assert_eq!(answers.value(jwe, "x"), Err(OpenError::OtherPlace));
        assert_eq!(
            Answers::new(&other, "payments").value(jwe, "note"),
            Err(OpenError::DoesNotOpen)
        );
        let header = sealflow::jose::jwe::Jwe::parse(jwe).unwrap().header().unwrap();
        assert_eq!(
            (header.dataset.as_deref(), header.label.as_deref()),
            (Some("payments"), Some("note"))
        );
        let (_, body) = asked_with(&bench, commits, Some(public(&key)), true).await;
        let (opened, count) = answers.document(body["records"].to_string().as_bytes(), &[]).unwrap();
        assert_eq!(count, 1);
        let opened: Value = serde_json::from_slice(opened.expose()).unwrap();
        assert_eq!(opened, json!([{ "note": NOTE, "x": 1 }]));
    }
    let lines = bench.log.take();
    assert!(
        lines.len() == 4 && lines.iter().all(|line| line.decision == Verdict::Allowed),
        "{lines:?}"
    );

    for (commits, seal_to, code) in [
        (json!({}), Some(public(&key)), "seal-to-not-committed"),
        (
            json!({ "cnf": { "jkt": name(&other) } }),
            Some(public(&key)),
            "seal-to-not-committed",
        ),
        (
            json!({ "nonce": "n-0S6_WzA2Mj" }),
            Some(public(&key)),
            "seal-to-not-committed",
        ),
        // A stolen token that is bound to a key reads nothing without that key.
        (json!({ "cnf": { "jkt": name(&key) } }), None, "token-bound"),
        (
            json!({ "nonce": name(&key), "cnf": { "jkt": name(&other) } }),
            Some(public(&key)),
            "seal-to-not-committed",
        ),
    ] {
        let (_, body) = asked_with(&bench, commits.clone(), seal_to, false).await;
        assert_eq!(body["code"], code, "{commits}: {body}");
        let lines = bench.log.take();
        assert!(
            lines.len() == 1 && lines[0].decision == Verdict::Refused && lines[0].rule.starts_with(code),
            "{lines:?}"
        );
    }
    let committed = json!({ "nonce": name(&key) });
    for bad in [
        json!("x"),
        json!({ "kty": "RSA", "n": "AQAB", "e": "AQAB" }),
        json!({ "kty": "oct", "k": "AAAA" }),
        json!(null),
    ] {
        let (status, body) = asked_with(&bench, committed.clone(), Some(bad), false).await;
        assert_eq!(
            (status, &body["code"]),
            (StatusCode::BAD_REQUEST, &json!("malformed-request")),
            "{body}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_keys_that_clients_seal_to_are_published_to_everybody_and_asked_for_once_a_minute() {
    let bench = Bench::new(LimitsConfig::default()).await;
    let ask = async |method: &str| {
        let request = Request::builder()
            .method(method)
            .uri("/.well-known/jwks.json")
            .body(Full::new(Bytes::new()))
            .unwrap();
        let answer = Arc::clone(&bench.service).answer(request, PEER).await;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, headers, serde_json::from_slice::<Value>(&body).unwrap())
    };
    // No such keys yet.
    let (status, _, body) = ask("GET").await;
    assert_eq!(
        (status, &body["code"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("service-unavailable"))
    );
    for arn in [RSA_ARN, OLD_RSA_ARN] {
        bench.kms.create_rsa_key(arn, RsaBits::Rsa2048).unwrap();
    }
    bench.clock.advance(Duration::from_secs(5));
    let (status, headers, set) = ask("GET").await;
    assert_eq!(status, StatusCode::OK, "{set}");
    assert_eq!(headers[CONTENT_TYPE], "application/jwk-set+json");
    assert_eq!(headers[CACHE_CONTROL], "public, max-age=300");
    let keys: Vec<Vec<u8>> = vec![
        bench.kms.public_key(RSA_ARN).await.unwrap(),
        bench.kms.public_key(OLD_RSA_ARN).await.unwrap(),
    ];
    let names: Vec<String> = keys
        .iter()
        .map(|der| RsaPublicJwk::from_spki_der(der).unwrap().thumbprint().to_string())
        .collect();
    assert_eq!(set["keys"].as_array().unwrap().len(), 2);
    assert_eq!(
        (&set["keys"][0]["kid"], &set["keys"][1]["kid"]),
        (&json!(names[0]), &json!(names[1]))
    );
    let calls = bench.kms.public_key_calls();
    for _ in 0..100 {
        assert_eq!(ask("GET").await.2, set);
    }
    assert_eq!(bench.kms.public_key_calls(), calls);
    // A key that cannot be had any more takes nothing from whoever asks later.
    bench.kms.set_unusable(RSA_ARN, true);
    bench.clock.advance(Duration::from_secs(61));
    assert_eq!(ask("GET").await.2, set);
    assert_eq!(ask("POST").await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test(start_paused = true)]
async fn documents_of_enclave_keys_are_for_everybody_and_may_be_kept_for_five_minutes() {
    let bench = Bench::new(LimitsConfig::default()).await;
    let ask = async |method: &str| {
        let request = Request::builder()
            .method(method)
            .uri("/.well-known/enclave-keys")
            .body(Full::new(Bytes::new()))
            .unwrap();
        let answer = Arc::clone(&bench.service).answer(request, PEER).await;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, headers, serde_json::from_slice::<Value>(&body).unwrap())
    };
    let key = PrivateKey::generate(RsaBits::Rsa2048).unwrap().public().unwrap();
    let keys = EnclaveKeys::new("payments", vec!["card".to_owned()], vec![key]).unwrap();
    let document = signed::sign(&keys, NOW, Duration::from_secs(600), &bench.owner).unwrap();
    let path = "enclave-keys/payments/0000000000";
    bench.catalogue.overwrite(path, document.as_bytes());
    let (status, headers, answer) = ask("GET").await;
    assert_eq!((status, &answer), (StatusCode::OK, &json!({ "documents": [document] })));
    assert_eq!(headers[CONTENT_TYPE], "application/json");
    assert_eq!(headers[CACHE_CONTROL], "public, max-age=300");
    assert_eq!(ask("POST").await.0, StatusCode::METHOD_NOT_ALLOWED);
}
