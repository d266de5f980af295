//! Every fault of a KMS against the whole road to a data key (client, caches, catalogue), sealing and opening: what kind of
//! error comes out, how often KMS is asked by 64 callers, and that all goes on by itself when the fault has passed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::keys::testing::MemoryCatalogue;
use sealflow::keys::{
    Catalogue as _, Envelope, KeyError, KeyService, KeyServiceError, KeySpec, LabelEntry, OpenKeyError, OpeningKeys,
    SealingKeys, envelope_path,
};
use sealflow::policy::{FixedPolicies, VerifiedPolicy};
use sealflow::seal::{KeyId, UsageLimits};
use sealflow::secret::SecretString;
use sealflow::units::Span;
use sealflow_kms::{AwsKms, KmsConfig};
use sealflow_local_kms::{Failure, Fault, Principal, RunningServer, Server, ServerConfig};

const WRITER: &str = "arn:aws:iam::111122223333:role/writer";
const CALLERS: usize = 64;
const HOUR: Duration = Duration::from_secs(3600);
/// Longer than any failure is answered from memory.
const HOLD: Duration = Duration::from_secs(10);
const ATTEMPTS: u64 = 3;

/// How a fault is made.
#[derive(Clone, Copy, Debug)]
enum Inject {
    Error(u16, &'static str),
    Disconnect,
    Slow,
    Disabled,
    Denied,
    /// This code, and then no other credentials.
    Ended(&'static str),
}

/// What an error means to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Throttled,
    Unavailable,
    KeyUnusable,
    NotPermitted,
    Refused,
}

/// A fault, what it comes to, and how many requests 64 callers make of it together.
const FAULTS: &[(Inject, Kind, u64)] = &[
    (Inject::Error(400, "ThrottlingException"), Kind::Throttled, ATTEMPTS),
    (Inject::Error(400, "LimitExceededException"), Kind::Throttled, ATTEMPTS),
    (Inject::Error(500, "KMSInternalException"), Kind::Unavailable, ATTEMPTS),
    (
        Inject::Error(503, "DependencyTimeoutException"),
        Kind::Unavailable,
        ATTEMPTS,
    ),
    (
        Inject::Error(500, "KeyUnavailableException"),
        Kind::Unavailable,
        ATTEMPTS,
    ),
    (Inject::Error(502, "NotOfKms"), Kind::Unavailable, ATTEMPTS),
    (Inject::Disconnect, Kind::Unavailable, ATTEMPTS),
    (Inject::Slow, Kind::Unavailable, ATTEMPTS),
    (Inject::Disabled, Kind::KeyUnusable, 1),
    (Inject::Error(400, "KMSInvalidStateException"), Kind::KeyUnusable, 1),
    (Inject::Error(400, "NotFoundException"), Kind::KeyUnusable, 1),
    (Inject::Denied, Kind::NotPermitted, 1),
    // The provider has no others to try with.
    (Inject::Error(400, "ExpiredTokenException"), Kind::NotPermitted, 1),
    (Inject::Error(400, "UnrecognizedClientException"), Kind::NotPermitted, 1),
    // The session has ended, and who gives out the next one is away: that passes.
    (Inject::Ended("ExpiredTokenException"), Kind::Unavailable, 1),
    (Inject::Ended("UnrecognizedClientException"), Kind::Unavailable, 1),
];

fn kind(error: &KeyServiceError) -> Kind {
    match error {
        KeyServiceError::Throttled { .. } => Kind::Throttled,
        KeyServiceError::Unavailable { .. } => Kind::Unavailable,
        KeyServiceError::KeyUnusable { .. } => Kind::KeyUnusable,
        KeyServiceError::NotPermitted { .. } => Kind::NotPermitted,
        KeyServiceError::Refused { .. } => Kind::Refused,
        other => panic!("{other:?}"),
    }
}

struct Bench {
    server: RunningServer,
    arn: String,
    kms: Arc<AwsKms>,
    catalogue: Arc<MemoryCatalogue>,
    clock: Arc<ManualClock>,
    sealing: SealingKeys,
    provider: Sessions,
}

/// Gives the same credentials always, unless it is away.
#[derive(Clone, Debug, Default)]
struct Sessions {
    is_away: Arc<AtomicBool>,
}

impl ProvideCredentials for Sessions {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(if self.is_away.load(Ordering::SeqCst) {
            Err(CredentialsError::provider_error("away"))
        } else {
            Ok(Credentials::new("AKIAWRITER", "secret", None, None, "test"))
        })
    }
}

async fn bench() -> Bench {
    let principal = Principal {
        access_key_id: "AKIAWRITER".to_owned(),
        secret_access_key: SecretString::new("secret".to_owned()),
        session_token: None,
        arn: WRITER.to_owned(),
    };
    let server = Server::start(ServerConfig::in_memory(vec![principal])).await.unwrap();
    let arn = server.create_key(None, "", None).unwrap();
    let config = KmsConfig {
        endpoint: Some(server.endpoint()),
        timeout: Span(Duration::from_millis(500)),
        attempts: 3,
        ..KmsConfig::default()
    };
    let provider = Sessions::default();
    let kms = Arc::new(AwsKms::with_provider(&config, provider.clone()).await.unwrap());
    // STS is asked once, outside of every count.
    kms.identity().await.unwrap();
    let catalogue = Arc::new(MemoryCatalogue::new());
    let clock = Arc::new(ManualClock::at(UnixMillis(1_700_000_000_000)));
    let sealing = SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD);
    Bench {
        server,
        arn,
        kms,
        catalogue,
        clock,
        sealing,
        provider,
    }
}

impl Bench {
    fn spec(&self) -> KeySpec {
        let labels = Arc::from([LabelEntry {
            label: "email".into(),
            bind_row: None,
        }]);
        KeySpec {
            dataset: "payments".into(),
            key_name: "default".into(),
            template: "default".into(),
            arn: self.arn.clone(),
            acl: "pii".into(),
            labels,
            policy: (1, [1; 32]),
            max_age: HOUR,
            max_live: 1,
        }
    }

    /// A reader that knows nothing yet.
    fn opening(&self) -> OpeningKeys {
        let yaml = format!(
            "dataset: payments\nversion: 1\nkeys: {{ default: {{ arn: \"{}\" }} }}\nacls: {{ pii: {{}}, ops: {{}} }}\n\
             columns: [{{ path: email, key: default, acl: pii }}]\n",
            self.arn
        );
        let policy = VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap();
        let policies = Arc::new(FixedPolicies::new(vec![Arc::new(policy)]));
        let (kms, clock) = (self.kms.clone(), self.clock.clone());
        OpeningKeys::new(kms, self.catalogue.clone(), policies, clock, HOUR, 100)
    }

    fn begin(&self, fault: Inject, operation: &str) {
        let set = |delay, failure| {
            let operation = Some(operation.to_owned());
            self.server.set_fault(Some(Fault {
                operation,
                delay,
                failure,
                times: None,
            }));
        };
        match fault {
            Inject::Error(status, code) => set(Duration::ZERO, Some(Failure::Error { status, code })),
            Inject::Ended(code) => {
                self.provider.is_away.store(true, Ordering::SeqCst);
                set(Duration::ZERO, Some(Failure::Error { status: 400, code }));
            }
            Inject::Disconnect => set(Duration::ZERO, Some(Failure::Disconnect)),
            Inject::Slow => set(Duration::from_secs(5), None),
            Inject::Disabled => self.server.set_enabled(&self.arn, false).unwrap(),
            Inject::Denied => self.server.set_key_policy(&self.arn, &policy("Deny")).unwrap(),
        }
    }

    fn end(&self) {
        self.provider.is_away.store(false, Ordering::SeqCst);
        self.server.set_fault(None);
        self.server.set_enabled(&self.arn, true).unwrap();
        self.server.set_key_policy(&self.arn, &policy("Allow")).unwrap();
    }

    /// 64 callers at once; the one kind of error that they all get.
    async fn seal_at_once(&self) -> Result<(), KeyError> {
        let callers = (0..CALLERS).map(|_| {
            let (keys, spec) = (self.sealing.clone(), self.spec());
            tokio::spawn(async move { keys.get(&spec).await.map(drop) })
        });
        let callers: Vec<_> = callers.collect();
        let mut answers = Vec::new();
        for caller in callers {
            answers.push(caller.await.unwrap());
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }

    async fn open_at_once(&self, keys: &OpeningKeys, id: KeyId) -> Result<(), OpenKeyError> {
        let callers = (0..CALLERS).map(|_| {
            let keys = keys.clone();
            tokio::spawn(async move { keys.get(id, &[]).await.map(drop) })
        });
        let callers: Vec<_> = callers.collect();
        let mut answers = Vec::new();
        for caller in callers {
            answers.push(caller.await.unwrap());
        }
        answers.dedup();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.remove(0)
    }
}

fn policy(effect: &str) -> String {
    format!(
        r#"{{"Statement":[{{"Effect":"{effect}","Principal":{{"AWS":"{WRITER}"}},"Action":"kms:*","Resource":"*"}}]}}"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_while_sealing_is_told_apart_asked_about_once_and_recovered_from() {
    for (fault, expected, requests) in FAULTS {
        let bench = bench().await;
        let asked = || bench.server.requests("GenerateDataKey");
        // A key that is there serves through the fault to its age, and not one millisecond longer.
        let first = bench.sealing.get(&bench.spec()).await.unwrap().key.id();
        bench.begin(*fault, "GenerateDataKey");
        bench.clock.advance(HOUR * 79 / 100);
        assert_eq!(
            bench.sealing.get(&bench.spec()).await.unwrap().key.id(),
            first,
            "{fault:?}"
        );
        assert_eq!(asked(), 1, "{fault:?}: a young key needs no KMS");
        bench.clock.advance(HOUR * 21 / 100);
        let error = bench.seal_at_once().await.unwrap_err();
        let KeyError::Service(cause) = &error else {
            panic!("{fault:?}: {error:?}");
        };
        assert_eq!(kind(cause), *expected, "{fault:?}");
        let passes = matches!(expected, Kind::Throttled | Kind::Unavailable);
        assert_eq!(error.is_retryable(), passes, "{fault:?}");
        assert_eq!(asked(), 1 + requests, "{fault:?}: stampede");
        // Remembered for a moment, then tried again, and well as soon as KMS is.
        assert_eq!(bench.seal_at_once().await, Err(error), "{fault:?}");
        assert_eq!(asked(), 1 + requests, "{fault:?}: not remembered");
        bench.end();
        bench.clock.advance(HOLD);
        assert_eq!(bench.seal_at_once().await, Ok(()), "{fault:?}: no recovery");
        assert_eq!(asked(), 2 + requests, "{fault:?}");
        let second = bench.sealing.get(&bench.spec()).await.unwrap();
        assert_ne!(second.key.id(), first, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_while_opening_is_told_apart_asked_about_once_and_recovered_from() {
    for (fault, expected, requests) in FAULTS {
        let bench = bench().await;
        let asked = || bench.server.requests("Decrypt");
        let id = bench.sealing.get(&bench.spec()).await.unwrap().key.id();
        let keys = bench.opening();
        bench.begin(*fault, "Decrypt");
        let error = bench.open_at_once(&keys, id).await.unwrap_err();
        let OpenKeyError::Service(cause) = &error else {
            panic!("{fault:?}: {error:?}");
        };
        assert_eq!(kind(cause), *expected, "{fault:?}");
        let passes = matches!(expected, Kind::Throttled | Kind::Unavailable);
        assert_eq!(error.is_retryable(), passes, "{fault:?}");
        assert_eq!(asked(), *requests, "{fault:?}: stampede");
        assert_eq!(bench.open_at_once(&keys, id).await, Err(error), "{fault:?}");
        assert_eq!(asked(), *requests, "{fault:?}: not remembered");
        bench.end();
        bench.clock.advance(HOLD);
        assert_eq!(bench.open_at_once(&keys, id).await, Ok(()), "{fault:?}: no recovery");
        assert_eq!(asked(), 1 + requests, "{fault:?}");
        // An opened key serves through the fault to its age, whatever the wall clock says.
        bench.begin(*fault, "Decrypt");
        bench.clock.set(UnixMillis(0));
        bench.clock.advance(HOUR - Duration::from_millis(1));
        assert_eq!(bench.open_at_once(&keys, id).await, Ok(()), "{fault:?}");
        bench.clock.advance(Duration::from_millis(1));
        assert!(
            bench.open_at_once(&keys, id).await.is_err(),
            "{fault:?}: beyond its age"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_contexts_and_tampered_blobs_are_refused_and_asked_about_once() {
    let edits: [fn(&mut Envelope); 3] = [
        |envelope| envelope.acl = "ops".to_owned(),
        |envelope| *envelope.wrapped.last_mut().unwrap() ^= 1,
        |envelope| envelope.wrapped.truncate(20),
    ];
    for edit in edits {
        let bench = bench().await;
        let id = bench.sealing.get(&bench.spec()).await.unwrap().key.id();
        let path = envelope_path(id, 0);
        let genuine = bench.catalogue.get(&path).await.unwrap().unwrap();
        let mut envelope = Envelope::from_bytes(&genuine).unwrap();
        edit(&mut envelope);
        bench.catalogue.overwrite(&path, &envelope.to_bytes().unwrap());
        let keys = bench.opening();
        let error = bench.open_at_once(&keys, id).await.unwrap_err();
        let OpenKeyError::Service(cause) = &error else {
            panic!("{error:?}");
        };
        assert_eq!((kind(cause), error.is_retryable()), (Kind::Refused, false));
        assert_eq!(bench.server.requests("Decrypt"), 1);
        // The genuine one, when it comes with the data, opens at once: the refusal was of those bytes only.
        assert!(keys.get(id, &[&genuine]).await.is_ok());
        assert_eq!(bench.server.requests("Decrypt"), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_forged_envelopes_costs_a_bounded_number_of_requests_and_keeps_nobody_else_out() {
    const FORGED: u64 = 600;
    let bench = bench().await;
    let active = bench.sealing.get(&bench.spec()).await.unwrap();
    let genuine = Envelope::from_bytes(&active.envelope_bytes).unwrap();
    let keys = bench.opening();
    let mut flooded = 0;
    for n in 0..FORGED {
        let id = KeyId::from_bytes(u128::from(n).to_be_bytes());
        let mut wrapped = genuine.wrapped.clone();
        wrapped.extend_from_slice(&n.to_be_bytes());
        let forged = forged(&genuine, id, wrapped);
        let error = keys.get(id, &[&forged]).await.unwrap_err();
        assert!(!error.is_retryable(), "a forgery must not stop a pipeline: {error:?}");
        flooded += u64::from(matches!(error, OpenKeyError::TooManyRefused { .. }));
    }
    let asked = bench.server.requests("Decrypt");
    assert!(asked < FORGED / 2 && asked + flooded == FORGED, "{asked} requests");
    // What the catalogue holds opens as ever.
    assert!(keys.get(active.key.id(), &[]).await.is_ok());
    // A minute later strangers' envelopes are looked at again.
    bench.clock.advance(Duration::from_secs(60));
    bench.catalogue.remove(&envelope_path(active.key.id(), 0));
    let reader = bench.opening();
    assert!(reader.get(active.key.id(), &[&active.envelope_bytes]).await.is_ok());
}

fn forged(genuine: &Envelope, key_id: KeyId, wrapped: Vec<u8>) -> Vec<u8> {
    let parts = sealflow::keys::envelope::EnvelopeParts {
        key_id,
        arn: genuine.arn.clone(),
        wrapped,
        dataset: genuine.dataset.clone(),
        key_name: genuine.key_name.clone(),
        acl: genuine.acl.clone(),
        policy: (genuine.policy_id.clone(), genuine.policy_version, genuine.policy_sha256),
        labels: genuine.labels.clone(),
        created: genuine.created(),
        not_after: genuine.not_after(),
    };
    Envelope::new(parts).to_bytes().unwrap()
}
