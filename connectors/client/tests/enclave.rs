//! The enclave flow around the worker, which runs in this process here: whatever clients seal for it goes to it as it came, and comes
//! back sealed for storage; columns of the three flows stand side by side.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::flow::enclave::{ClientBatch, EnclaveError, EnclaveWorker, ResealedColumn, Resealer};
use sealflow::flow::hybrid::ClientKeys;
use sealflow::jose::jwe::session_id;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{
    ClientKeyService as _, DomainKeys, EncryptionContext, GeneratedKey, KeyDescription, KeyService, KeyServiceError,
    OpeningKeys, SealingKeys,
};
use sealflow::pipeline::{
    Clients, Format, Header, KeysPlacement, OpenTransform, Outcome, Position, Record, Route, SealTransform, Timestamp,
    Transform as _, TransformError, apply_all,
};
use sealflow::policy::{FixedPolicies, VerifiedPolicy};
use sealflow::seal::UsageLimits;
use sealflow::secret::SecretBytes;
use sealflow_client::{RowId, RsaBits, RsaPublicJwk, Session};

const BACKEND_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111";
const BACKEND_RSA: &str = "arn:aws:kms:eu-central-1:111122223333:key/22222222-2222-2222-2222-222222222222";
const ENCLAVE_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/33333333-3333-3333-3333-333333333333";
const ENCLAVE_RSA: &str = "arn:aws:kms:eu-central-1:111122223333:key/44444444-4444-4444-4444-444444444444";

/// A worker that counts what it is asked, and does it in this process.
#[derive(Debug)]
struct Worker {
    inner: Resealer,
    batches: AtomicUsize,
    /// What comes instead of an answer.
    fails: std::sync::Mutex<Option<EnclaveError>>,
    /// Drops the last column of its answers.
    forgets: std::sync::atomic::AtomicBool,
}

#[async_trait]
impl EnclaveWorker for Worker {
    async fn reseal(&self, batch: ClientBatch) -> Result<Vec<ResealedColumn>, EnclaveError> {
        self.batches.fetch_add(1, Ordering::Relaxed);
        if let Some(error) = self.fails.lock().unwrap().clone() {
            return Err(error);
        }
        let mut columns = self.inner.reseal(batch).await?;
        if self.forgets.load(Ordering::Relaxed) {
            columns.pop();
        }
        Ok(columns)
    }

    fn is_ready(&self) -> bool {
        true
    }
}

/// The key services of backend and worker as one.
#[derive(Debug)]
struct Both(Arc<MemoryKms>, Arc<MemoryKms>);

impl Both {
    fn of(&self, arn: &str) -> &MemoryKms {
        if arn == ENCLAVE_ARN { &self.1 } else { &self.0 }
    }
}

#[async_trait]
impl KeyService for Both {
    async fn generate(
        &self,
        arn: &str,
        len: usize,
        context: &EncryptionContext,
    ) -> Result<GeneratedKey, KeyServiceError> {
        self.of(arn).generate(arn, len, context).await
    }

    async fn unwrap(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretBytes, KeyServiceError> {
        self.of(arn).unwrap(arn, wrapped, context).await
    }

    async fn describe(&self, arn: &str) -> Result<KeyDescription, KeyServiceError> {
        self.of(arn).describe(arn).await
    }

    async fn identity(&self) -> Result<String, KeyServiceError> {
        self.0.identity().await
    }
}

struct Bench {
    /// The worker's key service: the host's knows none of its keys.
    kms: Arc<MemoryKms>,
    /// The host's.
    backend: Arc<MemoryKms>,
    worker: Arc<Worker>,
    seal: SealTransform,
    open: OpenTransform,
}

/// RFC 7638, section 3.1: whoever has the private half can open dead letters.
const MODULUS: &str = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";
const CARD: &str = "  - { path: card, key: regulated, acl: a, flow: enclave }\n";

fn policy(columns: &str, enclave: &str) -> String {
    format!(
        "dataset: payments\nversion: 1\nlease: required\nkeys:\n  pii: {{ arn: \"{BACKEND_ARN}\" }}\n  regulated: {{ arn: \"{ENCLAVE_ARN}\" }}\nclient: {{ keys: {{ web: {{ arn: \"{BACKEND_RSA}\" }} }} }}\nenclave:\n  keys: {{ web: {{ arn: \"{ENCLAVE_RSA}\" }} }}\n  measurements: {{ v1: {{ image: \"{}\" }} }}\n{enclave}acls: {{ a: {{}} }}\ncolumns:\n{columns}dead_letters: {{ recipient: {{ kty: RSA, n: {MODULUS}, e: AQAB }} }}\n",
        "ab".repeat(48)
    )
}

fn bench(columns: &str, enclave: &str) -> Bench {
    let (kms, backend) = (Arc::new(MemoryKms::new()), Arc::new(MemoryKms::new()));
    kms.create_rsa_key(ENCLAVE_RSA, RsaBits::Rsa2048).unwrap();
    backend.create_rsa_key(BACKEND_RSA, RsaBits::Rsa2048).unwrap();
    let policy = VerifiedPolicy::unsigned_for_development(policy(columns, enclave).as_bytes()).unwrap();
    let policy = Arc::new(policy);
    let policies = Arc::new(FixedPolicies::new(vec![policy.clone()]));
    let catalogue = Arc::new(MemoryCatalogue::new());
    let clock = Arc::new(ManualClock::at(UnixMillis(1_700_000_000_000)));
    let age = Duration::from_secs(300);
    let sealer = |kms: &Arc<MemoryKms>| DirectSealer {
        keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
        domains: DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age),
    };
    let worker = Arc::new(Worker {
        inner: Resealer::new(
            policies.clone(),
            ClientKeys::new(kms.clone(), clock.clone(), age, 1_000),
            sealer(&kms),
        ),
        batches: AtomicUsize::new(0),
        fails: std::sync::Mutex::default(),
        forgets: std::sync::atomic::AtomicBool::default(),
    });
    let clients = Clients::new(backend.clone(), clock.clone(), age, 1_000);
    let seal = SealTransform::new(policy.clone(), Format::Json, KeysPlacement::Header, sealer(&backend)).unwrap();
    // Reads everything, as nobody can outside of a test: its key service has the keys of both.
    let all = Arc::new(Both(backend.clone(), kms.clone()));
    let opening = OpeningKeys::new(
        all.clone(),
        catalogue.clone(),
        policies.clone(),
        clock.clone(),
        age,
        1_000,
    );
    Bench {
        open: OpenTransform::new(policy, Format::Json, KeysPlacement::Header, opening, sealer(&backend)).unwrap(),
        seal: seal.with_clients(clients).with_enclave(worker.clone()),
        worker,
        kms,
        backend,
    }
}

impl Bench {
    async fn session(&self) -> Session {
        Session::begin(&public_key(&self.kms, ENCLAVE_RSA).await, "payments").unwrap()
    }

    async fn sealed(&self, records: Vec<Record>) -> Vec<Outcome> {
        apply_all(&self.seal, &records).await.unwrap()
    }

    /// The code of the one dead letter that becomes of `record`.
    async fn refusal(&self, record: Record) -> String {
        let outcomes = self.sealed(vec![record]).await;
        let [outcome] = outcomes.as_slice() else {
            panic!("one outcome")
        };
        assert_eq!(outcome.route, Route::DeadLetter);
        let letter: serde_json::Value = serde_json::from_slice(outcome.record.value.as_ref().unwrap()).unwrap();
        letter["code"].as_str().unwrap().to_owned()
    }

    async fn opened(&self, outcomes: Vec<Outcome>) -> Vec<String> {
        assert!(
            outcomes.iter().all(|outcome| outcome.route == Route::Target),
            "{outcomes:?}"
        );
        let records: Vec<Record> = outcomes.into_iter().map(|outcome| outcome.record).collect();
        let opened = apply_all(&self.open, &records).await.unwrap();
        opened.into_iter().map(|outcome| text(&outcome.record)).collect()
    }
}

async fn public_key(kms: &MemoryKms, arn: &str) -> RsaPublicJwk {
    RsaPublicJwk::from_spki_der(&kms.public_key(arn).await.unwrap()).unwrap()
}

fn text(record: &Record) -> String {
    String::from_utf8(record.value.as_ref().unwrap().to_vec()).unwrap()
}

fn record(value: &str, sessions: &[&str]) -> Record {
    let header = |value: &&str| Header {
        name: "sealflow-session".into(),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
    };
    Record {
        position: Position {
            topic: "payments".into(),
            partition: 0,
            offset: 7,
        },
        timestamp: Timestamp::Created(1_700_000_000_000),
        key: Some(Bytes::from_static(b"customer-9")),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: sessions.iter().map(header).collect(),
    }
}

fn with_card(card: &str, session: &Session) -> Record {
    record(&format!(r#"{{"card":"{card}"}}"#), &[session.token()])
}

#[tokio::test]
async fn columns_of_the_three_flows_stand_side_by_side_and_every_other_byte_stays() {
    let columns = format!(
        "  - {{ path: email, key: pii, acl: a }}\n  - {{ path: amount, key: pii, acl: a, flow: hybrid }}\n{CARD}  - {{ path: \"ibans[*]\", key: regulated, acl: a, flow: enclave, pad_to: 64 }}\n"
    );
    let bench = bench(&columns, "");
    let mut session = bench.session().await;
    let mut hybrid = Session::begin(&public_key(&bench.backend, BACKEND_RSA).await, "payments").unwrap();
    let mut records = Vec::new();
    for n in 0..100 {
        let card = session.seal("card", format!("\"4111{n:012}\"").as_bytes()).unwrap();
        let iban = session.seal("ibans[*]", br#""DE89""#).unwrap();
        let amount = hybrid.seal("amount", b"1.50").unwrap();
        let value = format!(
            r#" {{"n":{n}, "email":"ann@example.com","ibans":["{iban}",null], "card": "{card}","amount":"{amount}" }} "#
        );
        records.push(record(&value, &[session.token(), hybrid.token()]));
    }
    let outcomes = bench.sealed(records).await;
    for outcome in &outcomes {
        let sealed = text(&outcome.record);
        assert_eq!(sealed.matches("sf1.").count(), 4);
        assert!(!sealed.contains("\"eyJ") && !sealed.contains("ann@"));
        let names: Vec<&str> = outcome.record.headers.iter().map(|header| &*header.name).collect();
        assert_eq!(names, ["sealflow-keys"], "sessions go");
    }
    let expected: Vec<String> = (0..100)
        .map(|n| format!(r#" {{"n":{n}, "email":"ann@example.com","ibans":["DE89",null], "card": "4111{n:012}","amount":1.50 }} "#))
        .collect();
    assert_eq!(bench.opened(outcomes).await, expected);
    assert_eq!(
        bench.worker.batches.load(Ordering::Relaxed),
        1,
        "whole columns at a time"
    );
    assert_eq!(bench.kms.decrypt_rsa_calls(), 1, "one call for the session");
    assert_eq!(bench.backend.decrypt_rsa_calls(), 1);
}

#[tokio::test]
async fn whatever_is_wrong_with_a_value_says_the_same_and_takes_nothing_from_the_others() {
    let columns = format!("{CARD}  - {{ path: other, key: regulated, acl: a, flow: enclave, label: second }}\n");
    let bench = bench(&columns, "");
    let mut session = bench.session().await;
    let mut stranger = bench.session().await;
    let mut elsewhere = Session::begin(&public_key(&bench.kms, ENCLAVE_RSA).await, "refunds").unwrap();
    // To the backend's key, which the worker does not have.
    let mut backends = Session::begin(&public_key(&bench.backend, BACKEND_RSA).await, "payments").unwrap();
    let card = session.seal("card", b"1").unwrap();
    let flip = |text: &str, part: usize| {
        let mut parts: Vec<String> = text.split('.').map(str::to_owned).collect();
        let first = if parts[part].starts_with('A') { "B" } else { "A" };
        parts[part].replace_range(0..1, first);
        parts.join(".")
    };
    let token = session.token().to_owned();
    let mut values = vec![
        (stranger.seal("card", b"1").unwrap(), token.clone()),
        (session.seal("second", b"1").unwrap(), token.clone()),
        (elsewhere.seal("card", b"1").unwrap(), elsewhere.token().to_owned()),
        (backends.seal("card", b"1").unwrap(), backends.token().to_owned()),
        (card[..card.len() - 4].to_owned(), token.clone()),
        (format!("{card}.A"), token.clone()),
        (card.clone(), token[..token.len() - 4].to_owned()),
    ];
    for part in [2, 3, 4] {
        values.push((flip(&card, part), token.clone()));
        values.push((card.clone(), flip(&token, part)));
    }
    for (card, token) in &values {
        let value = format!(r#"{{"card":"{card}"}}"#);
        assert_eq!(bench.refusal(record(&value, &[token])).await, "cannot-open", "{value}");
    }
    // What only the worker sees, beside good ones in one batch: each in its place.
    let bad = |n: usize| with_card(&flip(&card, 3 + n % 2), &session);
    let records: Vec<Record> = (0..9)
        .map(|n| if n % 3 == 0 { with_card(&card, &session) } else { bad(n) })
        .collect();
    let routes: Vec<Route> = bench
        .sealed(records)
        .await
        .iter()
        .map(|outcome| outcome.route)
        .collect();
    let expected: Vec<Route> = (0..9)
        .map(|n| if n % 3 == 0 { Route::Target } else { Route::DeadLetter })
        .collect();
    assert_eq!(routes, expected);
    // In clear, where it has to be sealed.
    let clear = record(r#"{"card":"4111111111111111"}"#, &[&token]);
    assert_eq!(bench.refusal(clear).await, "not-client-sealed");
    assert_eq!(
        bench.refusal(with_card(&session_id(&token), &session)).await,
        "not-client-sealed"
    );
}

#[tokio::test]
async fn nothing_leaves_while_the_worker_is_away_or_answers_nonsense() {
    let bench = bench(CARD, "");
    let mut session = bench.session().await;
    let records = vec![with_card(&session.seal("card", b"1").unwrap(), &session)];
    let fail = |error: Option<EnclaveError>| *bench.worker.fails.lock().unwrap() = error;
    let reason = || "it restarts".to_owned();
    fail(Some(EnclaveError::Unavailable { reason: reason() }));
    let error = bench.seal.apply(&records).await.unwrap_err();
    assert!(matches!(error, TransformError::Retry { .. }), "{error}");
    for error in [
        EnclaveError::Refused { reason: reason() },
        EnclaveError::BadAnswer { reason: reason() },
    ] {
        fail(Some(error));
        let error = bench.seal.apply(&records).await.unwrap_err();
        assert!(matches!(error, TransformError::Stop { .. }), "{error}");
    }
    fail(None);
    bench.worker.forgets.store(true, Ordering::Relaxed);
    let error = bench.seal.apply(&records).await.unwrap_err();
    assert!(matches!(error, TransformError::Stop { .. }), "{error}");
    bench.worker.forgets.store(false, Ordering::Relaxed);
    assert_eq!(
        bench.opened(bench.sealed(records.clone()).await).await,
        [r#"{"card":1}"#]
    );
    // Without a worker at all.
    let columns = format!("{CARD}  - {{ path: email, key: pii, acl: a }}\n");
    let yaml = policy(&columns, "");
    let policy = Arc::new(VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap());
    let policies = Arc::new(FixedPolicies::new(vec![policy.clone()]));
    let (catalogue, clock) = (
        Arc::new(MemoryCatalogue::new()),
        Arc::new(ManualClock::at(UnixMillis(0))),
    );
    let kms = bench.backend.clone();
    let sealer = DirectSealer {
        keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
        domains: DomainKeys::new(kms, catalogue, policies, clock, Duration::from_secs(300)),
    };
    let alone = SealTransform::new(policy, Format::Json, KeysPlacement::Header, sealer).unwrap();
    let outcomes = alone.apply(&records).await.unwrap();
    assert_eq!(outcomes[0].route, Route::DeadLetter);
}

#[tokio::test]
async fn values_in_clear_pass_where_the_policy_lets_them_and_the_worker_seals_them() {
    let bench = bench(
        "  - { path: card, key: regulated, acl: a, flow: enclave, client_sealed: optional }\n",
        "",
    );
    let mut session = bench.session().await;
    let sealed = session.seal("card", br#""4111""#).unwrap();
    let records = vec![
        record(r#"{"card":"5500"}"#, &[]),
        with_card(&sealed, &session),
        record(r#"{"card":7.50}"#, &[]),
    ];
    let opened = bench.opened(bench.sealed(records).await).await;
    assert_eq!(opened, [r#"{"card":"5500"}"#, r#"{"card":"4111"}"#, r#"{"card":7.50}"#]);
    assert_eq!(bench.worker.batches.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_value_of_a_bound_column_opens_in_its_row_only_and_keys_and_single_values_are_sealed_too() {
    let columns = "  - { path: \"cards[*]\", key: regulated, acl: a, flow: enclave, bind_row: order }\n  - { path: \"$key\", key: regulated, acl: a, flow: enclave }\n";
    let bench = bench(columns, "");
    let mut session = bench.session().await;
    let row = |index| RowId::new("\"o-7\"", &[index]).unwrap();
    let cards = [
        session.seal_in_row("cards[*]", b"1", &row(0)).unwrap(),
        session.seal_in_row("cards[*]", b"2", &row(1)).unwrap(),
    ];
    // Wrapped for itself: a value without a session.
    let to = public_key(&bench.kms, ENCLAVE_RSA).await;
    let key = sealflow_client::seal_value(&to, "payments", "$key", b"9", None, None).unwrap();
    let with = |first: &str, second: &str, key: &str| Record {
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        ..record(
            &format!(r#"{{"order":"o-7","cards":["{first}","{second}"]}}"#),
            &[session.token()],
        )
    };
    let outcomes = bench.sealed(vec![with(&cards[0], &cards[1], &key)]).await;
    assert!(outcomes[0].record.key.as_ref().unwrap().starts_with(b"sf1."));
    assert_eq!(bench.opened(outcomes).await, [r#"{"order":"o-7","cards":[1,2]}"#]);
    assert_eq!(bench.refusal(with(&cards[1], &cards[0], &key)).await, "cannot-open");
    assert_eq!(bench.refusal(with(&cards[0], &cards[0], &key)).await, "cannot-open");
}

#[tokio::test]
async fn a_session_in_a_field_of_its_own_goes_or_stays_as_the_policy_says() {
    for keep in [false, true] {
        let bench = bench(CARD, &format!("  session: meta.enclave\n  keep_session: {keep}\n"));
        let mut session = bench.session().await;
        let card = session.seal("card", b"1").unwrap();
        let token = session.token();
        let value = format!(r#"{{"meta":{{"a":1,"enclave":"{token}"}},"card":"{card}"}}"#);
        let outcomes = bench.sealed(vec![record(&value, &[])]).await;
        assert_eq!(text(&outcomes[0].record).contains(token), keep);
        let meta = if keep {
            format!(r#"{{"a":1,"enclave":"{token}"}}"#)
        } else {
            r#"{"a":1}"#.to_owned()
        };
        assert_eq!(bench.opened(outcomes).await, [format!(r#"{{"meta":{meta},"card":1}}"#)]);
    }
}
