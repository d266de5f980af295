//! G8: what a batch becomes is bounded, whatever its records are. One test, in a process of its own, because it
//! measures the memory of the process.
#![cfg(all(feature = "pipeline", feature = "testing", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealflow::acl::Identity;
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{DomainKeys, OpeningKeys, SealingKeys};
use sealflow::pipeline::{
    DeadLetter, Format, Headers, KeysPlacement, OpenTransform, Outcome, OutputLimits, Position, Reader, Record, Route,
    SealTransform, TOO_LARGE, Timestamp, Transform,
};
use sealflow::policy::{FixedPolicies, VerifiedPolicy};
use sealflow::seal::UsageLimits;
use sealflow::units::ByteSize;

const POLICY: &str = r#"
dataset: payments
version: 1
keys: { default: { arn: "arn:aws:kms:eu-central-1:111122223333:key/1" } }
acls: { pii: {} }
dead_letters: { key: default, acl: pii }
columns:
  - { path: "a[*]", key: default, acl: pii }
  - { path: "padded[*]", key: default, acl: pii, pad_to: 64 }
  - { path: "bound[*]", key: default, acl: pii, bind_row: id }
"#;
const MIB: usize = 1 << 20;
const LIMITS: OutputLimits = OutputLimits {
    batch: ByteSize(4 << 20),
    record: ByteSize(8 << 20),
};

fn transforms(format: Format) -> (SealTransform, OpenTransform) {
    let policy = Arc::new(VerifiedPolicy::unsigned_for_development(POLICY.as_bytes()).unwrap());
    let policies = Arc::new(FixedPolicies::new(vec![policy.clone()]));
    let clock = Arc::new(ManualClock::at(UnixMillis(1)));
    let (kms, catalogue) = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
    let age = Duration::from_secs(300);
    let sealer = DirectSealer {
        keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
        domains: DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age),
    };
    let keys = OpeningKeys::new(kms, catalogue, policies, clock, age, 1_000);
    let placement = KeysPlacement::Header;
    let seal = SealTransform::new(policy.clone(), format, placement, sealer.clone()).unwrap();
    let open = OpenTransform::new(policy, format, placement, keys, sealer).unwrap();
    (seal.with_limits(LIMITS), open.with_limits(LIMITS))
}

fn reader() -> Reader {
    let policy = Arc::new(VerifiedPolicy::unsigned_for_development(POLICY.as_bytes()).unwrap());
    let policies = Arc::new(FixedPolicies::new(vec![policy]));
    let clock = Arc::new(ManualClock::at(UnixMillis(1)));
    let (kms, catalogue) = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
    let age = Duration::from_secs(300);
    let domains = DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age);
    let keys = OpeningKeys::new(kms, catalogue, policies.clone(), clock, age, 1_000);
    Reader::new("payments", Format::Json, policies, keys, domains)
}

fn record(offset: usize, value: String) -> Record {
    Record {
        position: Position {
            topic: "payments".into(),
            partition: 0,
            offset: i64::try_from(offset).unwrap(),
        },
        timestamp: Timestamp::None,
        key: None,
        value: Some(Bytes::from(value)),
        headers: Headers::new(),
    }
}

/// `{"NAME":[1,1,1,…]}`.
fn ones(name: &str, count: usize) -> String {
    format!(r#"{{"id":"7","{name}":[1{}]}}"#, ",1".repeat(count - 1))
}

/// A line of /proc/self/status, in bytes.
fn memory(what: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    let kibibytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kibibytes * 1024
}

/// How far the memory grows beyond the start while that is done.
async fn grown_by<F: Future<Output = ()>>(work: impl FnOnce() -> F) -> usize {
    // 5: forget the highest so far (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS:");
    work().await;
    // The kernel adds its per-thread counts up late, so that the highest may seem lower than what was there before.
    memory("VmHWM:").saturating_sub(before)
}

/// All outcomes, piece by piece as the runner takes them, and how far the memory grew beyond the start.
async fn pieces(transform: &dyn Transform, mut records: Vec<Record>, mut each: impl FnMut(Vec<Outcome>)) -> usize {
    grown_by(|| async {
        while !records.is_empty() {
            let outcomes = transform.apply(&records).await.unwrap();
            assert!((1..=records.len()).contains(&outcomes.len()));
            for (record, outcome) in records.drain(..outcomes.len()).zip(&outcomes) {
                assert_eq!(record.position, outcome.record.position, "in order");
            }
            each(outcomes);
        }
    })
    .await
}

fn code(outcome: &Outcome) -> String {
    let json = outcome.record.value.as_deref().unwrap();
    assert_eq!(outcome.route, Route::DeadLetter);
    DeadLetter::from_json(json).unwrap().code
}

/// The bound of `docs/operations.md`: of the work on one batch, without the batch itself.
fn bound(largest: usize) -> usize {
    let (batch, record) = (
        usize::try_from(LIMITS.batch.0).unwrap(),
        usize::try_from(LIMITS.record.0).unwrap(),
    );
    4 * (batch + record.max(largest * 4 / 3))
}

#[tokio::test]
async fn what_a_batch_becomes_is_bounded_whatever_its_records_are() {
    let (seal, open) = transforms(Format::Json);
    let batch = |name: &str, count: usize, bytes: usize| -> Vec<Record> {
        let value = ones(name, count);
        (0..bytes / value.len()).map(|n| record(n, value.clone())).collect()
    };
    // Warm: keys, and what the allocator keeps.
    pieces(&seal, batch("a", 1_000, MIB), drop).await;

    // Sealed whole, this would be 36 times its 8 MiB.
    let tiny = batch("a", 10_000, 8 * MIB);
    let count = tiny.len();
    let (mut sealed, mut answers) = (Vec::new(), 0);
    let grown = pieces(&seal, tiny, |outcomes| {
        answers += 1;
        let bytes: usize = outcomes.iter().map(|outcome| outcome.record.payload_bytes()).sum();
        let one = outcomes.last().unwrap().record.payload_bytes();
        assert!(bytes - one < 5 * MIB, "a piece of {bytes} bytes");
        if sealed.is_empty() {
            sealed.extend(outcomes.into_iter().map(|outcome| outcome.record));
        }
    })
    .await;
    assert!(answers > 50, "{answers} pieces of {count} records");
    println!("tiny values: {} MiB", grown / MIB);
    assert!(grown < bound(0), "tiny values took {} MiB", grown / MIB);

    let grown = pieces(&open, sealed, |outcomes| assert_eq!(outcomes[0].route, Route::Target)).await;
    println!("opening: {} MiB", grown / MIB);
    assert!(grown < bound(0), "opening took {} MiB", grown / MIB);

    // Sealed, one of these would be beyond the limit of a record, and all of them 600 MiB.
    let padded = batch("padded", 60_000, 4 * MIB);
    let grown = pieces(&seal, padded, |outcomes| assert_eq!(code(&outcomes[0]), TOO_LARGE)).await;
    println!("padded values: {} MiB", grown / MIB);
    assert!(grown < bound(0), "padded values took {} MiB", grown / MIB);

    // A row id is part of every value's context: this one is as long as they are many.
    let long_id = format!(r#"{{"id":"{}","bound":[1{}]}}"#, "i".repeat(MIB), ",1".repeat(50_000));
    let grown = pieces(&seal, vec![record(0, long_id)], |outcomes| {
        assert_eq!(code(&outcomes[0]), TOO_LARGE);
    })
    .await;
    println!("long row ids: {} MiB", grown / MIB);
    assert!(grown < bound(0), "long row ids took {} MiB", grown / MIB);

    // The same of records that come as sealed, of 17 KB each: with their row ids they are more than a record may be.
    let bound_to = |values: usize| {
        let (id, texts) = ("i".repeat(10_000), r#","sf1.""#.repeat(values - 1));
        record(0, format!(r#"{{"id":"{id}","bound":["sf1."{texts}]}}"#))
    };
    let grown = pieces(&open, vec![bound_to(1_000); 300], |outcomes| {
        assert!(outcomes.iter().all(|outcome| code(outcome) == TOO_LARGE));
    })
    .await;
    println!("opening too many long row ids: {} MiB", grown / MIB);
    assert!(
        grown < bound(0),
        "opening too many long row ids took {} MiB",
        grown / MIB
    );

    // Of some that open, nearly as much: each is a batch of its own.
    let long_id = format!(r#"{{"id":"{}","bound":[1{}]}}"#, "i".repeat(10_000), ",1".repeat(750));
    let mut sealed = Vec::new();
    pieces(&seal, vec![record(0, long_id.clone()); 12], |outcomes| {
        sealed.extend(outcomes.into_iter().map(|outcome| outcome.record));
    })
    .await;
    let grown = pieces(&open, sealed.clone(), |outcomes| {
        assert!(
            outcomes
                .iter()
                .all(|outcome| outcome.record.value.as_deref() == Some(long_id.as_bytes()))
        );
    })
    .await;
    println!("opening long row ids: {} MiB", grown / MIB);
    assert!(grown < bound(0), "opening long row ids took {} MiB", grown / MIB);

    // A reader takes all records at once, and writes no row id of values that he may not see.
    let reader = reader();
    let grown = grown_by(|| async {
        let nobody = Identity::from_arn("arn:aws:iam::111122223333:user/nobody").unwrap();
        let reading = reader
            .read(vec![bound_to(750); 100], &nobody, None, UnixMillis(1))
            .await
            .unwrap();
        assert!(reading.records.iter().all(Result::is_ok));
    })
    .await;
    println!("reading long row ids: {} MiB", grown / MIB);
    assert!(grown < bound(0), "reading long row ids took {} MiB", grown / MIB);

    // One value that is nearly as long as one may be.
    let long = format!(r#"{{"a":["{}"]}}"#, "x".repeat(3 * MIB));
    let mut sealed = Vec::new();
    pieces(&seal, vec![record(0, long.clone())], |outcomes| {
        sealed.extend(outcomes.into_iter().map(|outcome| outcome.record));
    })
    .await;
    assert_eq!(sealed[0].value.as_ref().unwrap().len() / MIB, 4);
    let grown = pieces(&open, sealed, |outcomes| {
        assert!(outcomes[0].route == Route::Target, "{}", code(&outcomes[0]));
        assert!(outcomes[0].record.value.as_deref() == Some(long.as_bytes()));
    })
    .await;
    println!("opening a long value: {} MiB", grown / MIB);
    assert!(grown < bound(0), "opening a long value took {} MiB", grown / MIB);

    // Millions of texts that are no sealed values, in lines that have fewer each than a document may.
    let (_, open_lines) = transforms(Format::Ndjson);
    let line = format!("{{\"a\":[\"sf1.\"{}]}}\n", r#","sf1.""#.repeat(50_000));
    let lines = record(0, line.repeat(8 * MIB / line.len()));
    let grown = pieces(&open_lines, vec![lines], |outcomes| {
        assert_eq!(code(&outcomes[0]), "not-sealed");
    })
    .await;
    println!("many empty values: {} MiB", grown / MIB);
    assert!(grown < bound(0), "many empty values took {} MiB", grown / MIB);

    // Millions of documents without a value.
    let lines = record(0, "{}\n".repeat(7 * MIB / 3));
    let grown = pieces(&open_lines, vec![lines], |outcomes| {
        assert_eq!(outcomes[0].route, Route::Target);
    })
    .await;
    println!("many documents: {} MiB", grown / MIB);
    assert!(grown < bound(0) / 2, "many documents took {} MiB", grown / MIB);

    // Beyond the limit before it is sealed, so it is not even read.
    let largest = 64 * MIB;
    let huge = record(0, format!(r#"{{"a":"{}"}}"#, "x".repeat(largest)));
    let grown = pieces(&seal, vec![huge.clone()], |outcomes| {
        assert_eq!(code(&outcomes[0]), TOO_LARGE);
    })
    .await;
    println!("huge: {} MiB", grown / MIB);
    assert!(grown < bound(largest), "a record of 64 MiB took {} MiB", grown / MIB);
    let grown = pieces(&open, vec![huge], |outcomes| assert_eq!(code(&outcomes[0]), TOO_LARGE)).await;
    assert!(
        grown < bound(largest),
        "a record of 64 MiB took {} MiB to open",
        grown / MIB
    );
}

#[tokio::test]
async fn records_that_were_refused_are_set_aside_piece_by_piece() {
    let (seal, _) = transforms(Format::Json);
    let mut records: Vec<_> = (0..6).map(|n| record(n, "x".repeat(MIB))).collect();
    let mut answers = Vec::new();
    while !records.is_empty() {
        let outcomes = seal.refuse(&records, TOO_LARGE).await.unwrap();
        records.drain(..outcomes.len());
        answers.push(outcomes.len());
        assert!(outcomes.iter().all(|outcome| code(outcome) == TOO_LARGE));
    }
    assert_eq!(answers, [3, 3]);
}
