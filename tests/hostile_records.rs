//! Records that a hostile or careless producer sends: they are sealed or set aside, and never stand in the way of
//! others or of opening.
#![cfg(all(feature = "pipeline", feature = "testing"))]
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{CatalogueError, DomainKeys, KEYS_HEADER, OpeningKeys, SealingKeys, envelope};
use sealflow::pipeline::{
    Format, Header, KeysPlacement, OpenTransform, Outcome, OutputLimits, Position, Record, Route, SealTransform,
    StopKind, Timestamp, Transform, TransformError,
};
use sealflow::policy::{FixedPolicies, VerifiedPolicy};
use sealflow::seal::UsageLimits;

const HEAD: &str = r#"
dataset: payments
version: 1
keys:
  default: { arn: "arn:aws:kms:eu-central-1:111122223333:key/1" }
  "tenant-{tenant}": { arn: "arn:aws:kms:eu-central-1:111122223333:key/2", max_live: 1000 }
acls: { pii: {} }
dead_letters: { key: default, acl: pii }
"#;

/// What several processes share.
struct Bench {
    kms: Arc<MemoryKms>,
    catalogue: Arc<MemoryCatalogue>,
}

impl Bench {
    fn new() -> Self {
        let (kms, catalogue) = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
        Self { kms, catalogue }
    }

    /// Transforms of a process of its own.
    fn process(&self, columns: &str, format: Format) -> (SealTransform, OpenTransform) {
        let policy = VerifiedPolicy::unsigned_for_development(format!("{HEAD}columns: [ {columns} ]\n").as_bytes());
        let policy = Arc::new(policy.unwrap());
        let policies = Arc::new(FixedPolicies::new(vec![policy.clone()]));
        let clock = Arc::new(ManualClock::at(UnixMillis(1)));
        let age = Duration::from_secs(300);
        let (kms, catalogue) = (self.kms.clone(), self.catalogue.clone());
        let sealer = DirectSealer {
            keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
            domains: DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age),
        };
        let keys = OpeningKeys::new(kms, catalogue, policies, clock, age, 1_000);
        let placement = KeysPlacement::Header;
        let seal = SealTransform::new(policy.clone(), format, placement, sealer.clone()).unwrap();
        (
            seal,
            OpenTransform::new(policy, format, placement, keys, sealer).unwrap(),
        )
    }
}

fn record(value: &str, keys_header: Option<&[u8]>) -> Record {
    let header = |name: &str, value: &[u8]| Header {
        name: name.to_owned().into(),
        value: Some(Bytes::copy_from_slice(value)),
    };
    let mut headers = vec![header("trace", b"1")];
    headers.extend(keys_header.map(|bytes| header(KEYS_HEADER, bytes)));
    Record {
        position: Position {
            topic: "payments".into(),
            partition: 0,
            offset: 0,
        },
        timestamp: Timestamp::None,
        key: None,
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: headers.into(),
    }
}

async fn apply(transform: &dyn Transform, record: Record) -> Outcome {
    transform.apply(&[record]).await.unwrap().remove(0)
}

const EMAIL: &str = "{ path: email, key: default, acl: pii }";

#[tokio::test]
async fn a_keys_header_that_somebody_else_sent_stays_and_does_not_keep_a_record_from_opening() {
    let (seal, open) = Bench::new().process(EMAIL, Format::Json);
    for theirs in [&b"garbage"[..], b"", b"\x80", b"\x81\x41\x00"] {
        let original = record(r#"{"email":"a@b.c"}"#, Some(theirs));
        let sealed = apply(&seal, original.clone()).await;
        assert_eq!(sealed.record.headers.len(), 3);
        let opened = apply(&open, sealed.record).await;
        assert_eq!((opened.route, opened.record), (Route::Target, original));
    }
}

#[tokio::test]
async fn a_record_that_is_sealed_twice_opens_twice() {
    let bench = Bench::new();
    let ((first, _), (second, open)) = (bench.process(EMAIL, Format::Json), bench.process(EMAIL, Format::Json));
    let original = record(r#"{"email":"a@b.c"}"#, None);
    let once = apply(&first, original.clone()).await.record;
    let twice = apply(&second, once.clone()).await.record;
    assert_eq!(twice.headers.len(), 3);
    let opened = apply(&open, twice).await.record;
    assert_eq!(opened, once);
    assert_eq!(apply(&open, opened).await.record, original);
}

#[tokio::test]
async fn a_record_with_more_keys_than_a_header_holds_opens_again() {
    let columns = r#"{ path: email, key: "tenant-{tenant}", acl: pii }"#;
    let (seal, open) = Bench::new().process(columns, Format::Ndjson);
    let mut lines = String::new();
    for tenant in 0..envelope::MAX_ENVELOPES + 1 {
        writeln!(lines, r#"{{"tenant":"{tenant}","email":"a@b.c"}}"#).unwrap();
    }
    let original = record(&lines, None);
    let sealed = apply(&seal, original.clone()).await;
    assert_eq!(sealed.route, Route::Target);
    let opened = apply(&open, sealed.record).await;
    assert_eq!((opened.route, opened.record), (Route::Target, original));
}

#[tokio::test]
async fn padding_cannot_blow_one_record_up_without_bound() {
    let column = r#"{ path: "a[*]", key: default, acl: pii, pad_to: 65536 }"#;
    let (seal, _) = Bench::new().process(column, Format::Json);
    // The limit of a record would be reached before.
    let seal = seal.with_limits(OutputLimits::FILES);
    for (values, route) in [(256, Route::Target), (257, Route::DeadLetter)] {
        let list = vec!["1"; values].join(",");
        let outcome = apply(&seal, record(&format!(r#"{{"a":[{list}]}}"#), None)).await;
        assert_eq!(outcome.route, route, "{values}");
    }
}

#[tokio::test]
async fn values_of_a_key_that_nobody_knows_do_not_storm_the_catalogue() {
    let bench = Bench::new();
    let (seal, open) = bench.process(EMAIL, Format::Json);
    let mut sealed = apply(&seal, record(r#"{"email":"a@b.c"}"#, None)).await.record;
    let text = String::from_utf8(sealed.value.unwrap().to_vec()).unwrap();
    // Another key id: characters 4 to 20 of the text are of it.
    sealed.value = Some(Bytes::from(format!("{}AAAA{}", &text[..20], &text[24..])));
    for _ in 0..50 {
        assert_eq!(apply(&open, sealed.clone()).await.route, Route::DeadLetter);
    }
    assert_eq!(bench.catalogue.list_calls(), 1);
}

#[tokio::test]
async fn a_catalogue_that_refuses_to_be_read_stops_opening_and_sets_nothing_aside() {
    let bench = Bench::new();
    let (seal, open) = bench.process(EMAIL, Format::Json);
    let mut sealed = apply(&seal, record(r#"{"email":"a@b.c"}"#, None)).await.record;
    sealed.headers.clear();
    // The pipeline can still seal dead letters.
    apply(&open, record("no JSON", None)).await;
    let path = "keys".to_owned();
    bench.catalogue.fail_with(Some(CatalogueError::NotPermitted { path }));
    let stopped = open.apply(&[sealed]).await;
    let kind = StopKind::NotPermitted;
    assert!(
        matches!(stopped, Err(TransformError::Stop { kind: k, .. }) if k == kind),
        "{stopped:?}"
    );
}
