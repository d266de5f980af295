//! Reading for somebody: what each reader sees of the same records, with keys in memory.
#![cfg(all(feature = "pipeline", feature = "testing"))]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use proptest::prelude::*;
use sealflow::acl::Identity;
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{DomainKeys, OpeningKeys, SealingKeys};
use sealflow::pipeline::{
    ColumnOutcome, Format, Header, KeysPlacement, Position, ReadError, Reader, Reading, Record, SealTransform,
    SealedText, Timestamp, Transform, Withheld,
};
use sealflow::policy::{PolicySource, PolicySourceError, VerifiedDomain, VerifiedPolicy};
use sealflow::seal::{KeyId, UsageLimits};
use serde_json::{Value, json};

const NOW: UnixMillis = UnixMillis(1_767_225_600_000); // 2026-01-01T00:00:00Z
const PII_KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111";
const POLICY: &str = r#"
dataset: payments
version: VERSION
keys:
  pii: { arn: "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111" }
  ops: { arn: "arn:aws:kms:eu-central-1:111122223333:key/22222222-2222-2222-2222-222222222222" }
acls:
  pii:
    allow:
      - arn:aws:iam::111122223333:role/analyst
      - { principal: "arn:aws:iam::111122223333:role/temp", until: "2026-01-01T00:00:00Z" }
      - { principal: "arn:aws:iam::111122223333:role/fraud", purposes: [fraud] }
    refused: redact
  ops:
    allow: ["arn:aws:iam::111122223333:role/analyst", "arn:aws:iam::111122223333:role/support"]
columns:
  - { path: user.email, key: pii, acl: pii }
  - { path: "cards[*].number", key: pii, acl: pii, bind_row: order }
  - { path: note, key: ops, acl: ops }
  - { path: $key, key: ops, acl: ops }
  - { path: $header.trace, key: pii, acl: pii }
"#;
const RECORD: &str = r#"{"order":7, "user":{"email":"ann@example.com"},"cards":[{"number":4111},{"number":null}], "note":"call \u0061t 9","open":1.50}"#;

/// The newest policy, which tests replace.
#[derive(Debug)]
struct Newest(Mutex<Result<Arc<VerifiedPolicy>, PolicySourceError>>);

#[async_trait]
impl PolicySource for Newest {
    async fn policy(&self, _: &str) -> Result<Arc<VerifiedPolicy>, PolicySourceError> {
        self.0.lock().unwrap().clone()
    }

    async fn domain(&self, name: &str, _: Option<KeyId>) -> Result<Arc<VerifiedDomain>, PolicySourceError> {
        Err(PolicySourceError::Missing { what: name.to_owned() })
    }

    fn holds(&self, _: &VerifiedPolicy) -> bool {
        true
    }
}

struct Bench {
    kms: Arc<MemoryKms>,
    newest: Arc<Newest>,
    seal: SealTransform,
    keys: OpeningKeys,
    domains: DomainKeys,
}

fn policy(yaml: &str, version: u32) -> Arc<VerifiedPolicy> {
    let yaml = yaml.replace("VERSION", &version.to_string());
    Arc::new(VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap())
}

impl Bench {
    fn new(yaml: &str) -> Self {
        let (kms, catalogue) = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
        let policy = policy(yaml, 1);
        let newest = Arc::new(Newest(Mutex::new(Ok(policy.clone()))));
        let clock = Arc::new(ManualClock::at(NOW));
        let age = Duration::from_secs(300);
        let domains = DomainKeys::new(kms.clone(), catalogue.clone(), newest.clone(), clock.clone(), age);
        let sealer = DirectSealer {
            keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
            domains: domains.clone(),
        };
        let keys = OpeningKeys::new(kms.clone(), catalogue, newest.clone(), clock, age, 1_000);
        let seal = SealTransform::new(policy, Format::Json, KeysPlacement::Header, sealer).unwrap();
        Self {
            kms,
            newest,
            seal,
            keys,
            domains,
        }
    }

    fn reader(&self) -> Reader {
        let policies = self.newest.clone();
        let keys = self.keys.clone();
        Reader::new("payments", Format::Json, policies, keys, self.domains.clone())
    }

    async fn sealed(&self, values: &[&str]) -> Vec<Record> {
        let records: Vec<Record> = values.iter().enumerate().map(|(n, value)| record(n, value)).collect();
        let outcomes = self.seal.apply(&records).await.unwrap();
        outcomes.into_iter().map(|outcome| outcome.record).collect()
    }

    async fn read(&self, records: Vec<Record>, role: &str, purpose: Option<&str>) -> Reading {
        self.reader().read(records, &who(role), purpose, NOW).await.unwrap()
    }
}

fn record(n: usize, value: &str) -> Record {
    Record {
        position: Position {
            topic: "payments.sealed".into(),
            partition: 3,
            offset: n as i64,
        },
        timestamp: Timestamp::Created(1),
        key: Some(Bytes::from_static(b"customer-9")),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: [Header {
            name: "trace".into(),
            value: Some(Bytes::from_static(b"t-1")),
        }]
        .into(),
    }
}

fn who(role: &str) -> Identity {
    Identity::from_arn(&format!("arn:aws:sts::111122223333:assumed-role/{role}/session")).unwrap()
}

/// Value, key and header of the first record.
fn shown(reading: &Reading) -> (String, Option<String>, Option<String>) {
    let record = reading.records[0].as_ref().unwrap();
    let text = |bytes: &Option<Bytes>| bytes.as_ref().map(|b| String::from_utf8(b.to_vec()).unwrap());
    (
        text(&record.value).unwrap(),
        text(&record.key),
        text(&record.headers[0].value),
    )
}

/// Label, outcome and count of what was decided.
fn decided(reading: &Reading) -> Vec<(&str, ColumnOutcome, u64)> {
    let decisions = reading.decisions.iter();
    let mut all: Vec<_> = decisions.map(|d| (d.label.as_str(), d.outcome, d.count)).collect();
    all.sort_by_key(|(label, _, _)| *label);
    all
}

#[tokio::test]
async fn everybody_sees_exactly_their_columns_of_the_same_records_and_every_other_byte() {
    let bench = Bench::new(POLICY);
    let records = bench.sealed(&[RECORD; 2]).await;
    let masked = |email: &str, number: &str, note: &str| {
        format!(
            r#"{{"order":7, "user":{{"email":{email}}},"cards":[{{"number":{number}}},{{"number":null}}], "note":{note},"open":1.50}}"#
        )
    };
    let (customer, trace, redacted) = (
        Some("customer-9".to_owned()),
        Some("t-1".to_owned()),
        Some("[redacted]".to_owned()),
    );
    let redact = "\"[redacted]\"";
    let (opened, refused) = (ColumnOutcome::Opened, ColumnOutcome::Refused);
    for (role, purpose, expected, outcomes) in [
        (
            "analyst",
            None,
            (RECORD.to_owned(), customer.clone(), trace.clone()),
            [opened; 5],
        ),
        (
            "support",
            None,
            (
                masked(redact, redact, "\"call \\u0061t 9\""),
                customer,
                redacted.clone(),
            ),
            [opened, refused, refused, opened, refused],
        ),
        // Over at this very moment.
        (
            "temp",
            None,
            (masked(redact, redact, "null"), None, redacted.clone()),
            [refused; 5],
        ),
        (
            "nobody",
            None,
            (masked(redact, redact, "null"), None, redacted.clone()),
            [refused; 5],
        ),
        (
            "fraud",
            Some("fraud"),
            (masked("\"ann@example.com\"", "4111", "null"), None, trace),
            [refused, opened, opened, refused, opened],
        ),
        (
            "fraud",
            Some("sales"),
            (masked(redact, redact, "null"), None, redacted),
            [refused; 5],
        ),
    ] {
        let reading = bench.read(records.clone(), role, purpose).await;
        assert_eq!(shown(&reading), expected, "{role} {purpose:?}");
        let labels = ["$header.trace", "$key", "cards[*].number", "note", "user.email"];
        // In the order of the labels, `outcomes` in that of: $key first.
        let order = [4, 0, 2, 3, 1];
        let expected: Vec<_> = labels
            .iter()
            .zip(order)
            .map(|(label, n)| (*label, outcomes[n], 2))
            .collect();
        assert_eq!(decided(&reading), expected, "{role} {purpose:?}");
        let positions = |d: &sealflow::pipeline::ColumnDecision| (d.first.offset, d.last.offset);
        assert!(reading.decisions.iter().all(|d| positions(d) == (0, 1)));
    }
}

#[tokio::test]
async fn the_rule_that_decided_is_told_and_nobody_asks_for_keys_for_a_reader_who_is_refused() {
    let bench = Bench::new(POLICY);
    let records = bench.sealed(&[RECORD]).await;
    let reading = bench.read(records.clone(), "temp", None).await;
    let because = |reading: &Reading, label: &str| {
        let decision = reading.decisions.iter().find(|d| d.label == label).unwrap();
        decision.because.clone()
    };
    assert_eq!(
        because(&reading, "user.email"),
        "acls.pii.allow[1] names it, and ended at 2026-01-01T00:00:00Z"
    );
    assert_eq!(because(&reading, "note"), "nothing in acls.ops.allow names it");
    assert_eq!(bench.kms.unwrap_calls(), 0);
    let reading = bench.read(records, "analyst", None).await;
    assert_eq!(
        because(&reading, "note"),
        "acls.ops.allow[0] allows arn:aws:iam::111122223333:role/analyst"
    );
    assert_eq!(bench.kms.unwrap_calls(), 2);
}

#[tokio::test]
async fn a_key_that_kms_refuses_takes_its_columns_away_and_no_others() {
    let bench = Bench::new(POLICY);
    let records = bench.sealed(&[RECORD]).await;
    bench.kms.set_unusable(PII_KEY, true);
    let reading = bench.read(records, "analyst", None).await;
    let (value, key, trace) = shown(&reading);
    let value: Value = serde_json::from_str(&value).unwrap();
    assert_eq!(value["user"]["email"], Value::Null);
    assert_eq!(value["note"], "call at 9");
    assert_eq!((key.as_deref(), trace), (Some("customer-9"), None));
    let failed: Vec<_> = reading
        .decisions
        .iter()
        .filter(|d| matches!(d.outcome, ColumnOutcome::Failed(_)))
        .collect();
    assert_eq!(failed.len(), 3);
    assert!(failed.iter().all(|d| d.because.contains("key/11111111")), "{failed:?}");
}

#[tokio::test]
async fn a_value_at_another_place_does_not_open_there_whoever_reads() {
    let bench = Bench::new(POLICY);
    let mut records = bench.sealed(&[RECORD]).await;
    let sealed: Value = serde_json::from_slice(records[0].value.as_ref().unwrap()).unwrap();
    let email = sealed["user"]["email"].clone();
    let mut moved = sealed.clone();
    moved["note"] = email.clone();
    moved["open"] = email.clone();
    records[0].value = Some(moved.to_string().into());
    for role in ["support", "analyst"] {
        let reading = bench.read(records.clone(), role, None).await;
        let value: Value = serde_json::from_str(&shown(&reading).0).unwrap();
        // At a place that is no column it stays what it is: sealed.
        assert_eq!((&value["note"], &value["open"]), (&Value::Null, &email), "{role}");
        let decision = reading.decisions.iter().find(|d| d.label == "note").unwrap();
        assert_eq!(decision.outcome, ColumnOutcome::Failed("cannot-open"));
        assert_eq!(decision.because, "a value of user.email was found at note", "{role}");
    }
    // Renamed on purpose: the ACL of the label that it proves counts, not that of the place.
    let reader = bench.reader().with_moved(true);
    for (role, expected) in [("support", json!("[redacted]")), ("analyst", json!("ann@example.com"))] {
        let reading = reader.read(records.clone(), &who(role), None, NOW).await.unwrap();
        let value: Value = serde_json::from_str(&shown(&reading).0).unwrap();
        assert_eq!(value["note"], expected, "{role}");
    }
}

/// Records that have everything go wrong that can: values at other places, of other rows, spoilt, in clear, null.
async fn hard_records(bench: &Bench) -> Vec<Record> {
    let other = RECORD.replace("7", "8").replace("ann", "bob");
    let mut records = bench.sealed(&[RECORD, &other, RECORD, RECORD, &other, RECORD]).await;
    let edit = |record: &mut Record, change: &dyn Fn(&mut Value)| {
        let mut value = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
        change(&mut value);
        record.value = Some(value.to_string().into());
    };
    let second: Value = serde_json::from_slice(records[1].value.as_ref().unwrap()).unwrap();
    edit(&mut records[0], &|value| value["note"] = value["user"]["email"].clone());
    edit(&mut records[2], &|value| {
        value["cards"][0]["number"] = second["cards"][0]["number"].clone();
    });
    edit(&mut records[3], &|value| {
        let spoilt = value["user"]["email"].as_str().unwrap().replace(['A', 'B', 'C'], "d");
        value["user"]["email"] = spoilt.into();
        value["note"] = "in clear".into();
    });
    edit(&mut records[4], &|value| value["order"] = 9.into());
    records[5].headers.retain(|header| header.name != "trace");
    records
}

#[tokio::test]
async fn records_that_are_read_together_are_shown_as_if_each_were_read_alone() {
    let bench = Bench::new(POLICY);
    let records = hard_records(&bench).await;
    for (role, purpose) in [
        ("analyst", None),
        ("support", None),
        ("fraud", Some("fraud")),
        ("fraud", None),
        ("nobody", None),
    ] {
        for moved in [false, true] {
            let reader = bench.reader().with_moved(moved);
            let together = reader.read(records.clone(), &who(role), purpose, NOW).await.unwrap();
            let (mut alone, mut counts) = (Vec::new(), BTreeMap::new());
            for record in &records {
                let reading = reader
                    .read(vec![record.clone()], &who(role), purpose, NOW)
                    .await
                    .unwrap();
                for decision in &reading.decisions {
                    let of = (
                        decision.label.clone(),
                        format!("{:?}", decision.outcome),
                        decision.because.clone(),
                    );
                    *counts.entry(of).or_insert(0) += decision.count;
                }
                alone.extend(reading.records);
            }
            let values = |all: &[Result<Record, Withheld>]| -> Vec<Record> {
                all.iter().map(|one| one.clone().unwrap()).collect()
            };
            assert_eq!(values(&together.records), values(&alone), "{role}, moved: {moved}");
            for decision in &together.decisions {
                let of = (
                    decision.label.clone(),
                    format!("{:?}", decision.outcome),
                    decision.because.clone(),
                );
                assert_eq!(
                    counts.remove(&of),
                    Some(decision.count),
                    "{role}, moved: {moved}: {of:?}"
                );
            }
            assert!(counts.is_empty(), "{role}, moved: {moved}: {counts:?}");
        }
    }
}

#[tokio::test]
async fn a_record_whose_row_ids_are_larger_together_than_records_may_be_is_withheld_and_no_other() {
    let bench = Bench::new(POLICY);
    let mut records = bench.sealed(&[RECORD; 2]).await;
    // A row id is held for each value, and each of these has the whole of `order`.
    let numbers = vec![r#"{"number":"sf1.AA"}"#; 2_000].join(",");
    let order = "o".repeat(10_000);
    let value = format!(r#"{{"order":"{order}","cards":[{numbers}]}}"#);
    assert!(value.len() < 64 << 10);
    records.insert(
        1,
        Record {
            headers: records[0].headers.clone(),
            ..record(9, &value)
        },
    );
    let reader = bench.reader().with_largest_record(1 << 20);
    let reading = reader.read(records, &who("analyst"), None, NOW).await.unwrap();
    assert_eq!(reading.records[1].as_ref().unwrap_err().code, "too-large");
    for n in [0, 2] {
        let value = reading.records[n].as_ref().unwrap().value.clone().unwrap();
        assert!(String::from_utf8(value.to_vec()).unwrap().contains("4111"));
    }
}

#[tokio::test]
async fn what_is_no_sealed_value_at_a_column_is_shown_to_nobody() {
    let bench = Bench::new(POLICY);
    bench.sealed(&[RECORD]).await;
    let clear = record(0, RECORD);
    for role in ["analyst", "nobody"] {
        let reading = bench.read(vec![clear.clone()], role, None).await;
        let (value, key, trace) = shown(&reading);
        for secret in ["ann", "4111", "call"] {
            assert!(!value.contains(secret), "{role} {value}");
        }
        assert!(key.is_none() && trace != Some("t-1".to_owned()), "{role}");
        if role == "analyst" {
            let outcome = |d: &sealflow::pipeline::ColumnDecision| d.outcome == ColumnOutcome::Failed("not-sealed");
            assert!(reading.decisions.iter().all(outcome), "{:?}", reading.decisions);
        }
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_taken_apart_is_withheld_and_the_others_are_read() {
    let bench = Bench::new(POLICY);
    let mut records = bench.sealed(&[RECORD; 2]).await;
    records.insert(1, record(5, r#"{"note":"in clear", "user":"#));
    let reading = bench.read(records, "analyst", None).await;
    let withheld = reading.records[1].as_ref().unwrap_err();
    assert_eq!((withheld.position.offset, withheld.code), (5, "truncated-json"));
    assert!(reading.records[0].is_ok() && reading.records[2].is_ok());
}

#[tokio::test]
async fn what_the_newest_policy_takes_away_is_refused_at_the_next_call_and_no_policy_opens_nothing() {
    let bench = Bench::new(POLICY);
    let records = bench.sealed(&[RECORD]).await;
    let reader = bench.reader();
    let note = |reading: &Reading| serde_json::from_str::<Value>(&shown(reading).0).unwrap()["note"].clone();
    let support = who("support");
    let before = reader.read(records.clone(), &support, None, NOW).await.unwrap();
    assert_eq!(note(&before), "call at 9");
    let revoked = POLICY.replace(", \"arn:aws:iam::111122223333:role/support\"", "");
    *bench.newest.0.lock().unwrap() = Ok(policy(&revoked, 2));
    let after = reader.read(records.clone(), &support, None, NOW).await.unwrap();
    assert_eq!(note(&after), Value::Null);
    assert_eq!(after.policy.policy().version, 2);
    let over = PolicySourceError::Untrusted {
        what: "policy of dataset payments".to_owned(),
        reason: "the lease ended".to_owned(),
        help: "sign another".to_owned(),
    };
    *bench.newest.0.lock().unwrap() = Err(over);
    let error = reader.read(records, &support, None, NOW).await.unwrap_err();
    assert!(
        matches!(error, ReadError::Policy(_)) && !error.is_retryable(),
        "{error}"
    );
}

#[tokio::test]
async fn single_values_open_by_the_label_that_they_prove_and_masks_stand_for_the_others() {
    let bench = Bench::new(POLICY);
    let records = bench.sealed(&[RECORD]).await;
    let sealed: Value = serde_json::from_slice(records[0].value.as_ref().unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (email, number, note) = (
        text(&sealed["user"]["email"]),
        text(&sealed["cards"][0]["number"]),
        text(&sealed["note"]),
    );
    let value = |label, text| SealedText { label, text };
    let values = [
        value(None, email.as_str()),
        value(Some("user.email"), &email),
        value(Some("note"), &email),
        // Bound to its row, which is not here.
        value(Some("cards[*].number"), &number),
        value(None, &note),
        value(Some("note"), "in clear"),
        value(Some("no.such"), &note),
        value(None, "sf1."),
    ];
    let reader = bench.reader();
    let opened = |role| {
        let (reader, values) = (&reader, &values);
        async move { reader.open_values(values, &who(role), None, NOW).await.unwrap().values }
    };
    let (ann, note, redacted) = ("\"ann@example.com\"", "\"call \\u0061t 9\"", "\"[redacted]\"");
    assert_eq!(
        opened("analyst").await,
        [ann, ann, "null", "null", note, "null", "null", "null"]
    );
    assert_eq!(
        opened("support").await,
        [redacted, redacted, "null", redacted, note, "null", "null", "null"]
    );
    assert_eq!(
        opened("nobody").await,
        ["null", redacted, "null", redacted, "null", "null", "null", "null"]
    );
    // Nobody asks for a key for whom no column is open, with a label or without.
    let refused = [value(Some("user.email"), email.as_str()), value(None, email.as_str())];
    let calls = bench.kms.unwrap_calls();
    let reading = bench
        .reader()
        .open_values(&refused, &who("nobody"), None, NOW)
        .await
        .unwrap();
    assert!(
        reading
            .decisions
            .iter()
            .all(|decision| decision.outcome == ColumnOutcome::Refused)
    );
    assert_eq!(bench.kms.unwrap_calls(), calls);
    // What was opened is in no `Debug`.
    let opened = reader.open_values(&values, &who("analyst"), None, NOW).await.unwrap();
    assert!(!format!("{opened:?}").contains("ann@example.com"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the lists say: a column is shown if and only if the policy lets the reader open it, and the decision
    /// that is told is the policy's own.
    #[test]
    fn what_is_shown_is_what_the_policy_says_of_each_column(
        lists in proptest::collection::vec((0_u8..8, 0_u8..8), 3), role in 0_usize..3,
    ) {
        let roles = ["a", "b", "c"];
        let named = |bits: u8| {
            let chosen = roles.iter().enumerate().filter(move |(n, _)| bits >> n & 1 == 1);
            let arns = chosen.map(|(_, role)| format!("\"arn:aws:iam::111122223333:role/{role}\""));
            arns.collect::<Vec<_>>().join(", ")
        };
        let acls: Vec<_> = lists.iter().enumerate().map(|(n, (allow, deny))| {
            format!("  l{n}: {{ allow: [{}], deny: [{}] }}\n", named(*allow), named(*deny))
        }).collect();
        let columns: Vec<_> = (0..3).map(|n| format!("  - {{ path: c{n}, key: k, acl: l{n} }}\n")).collect();
        let yaml = format!(
            "dataset: payments\nversion: VERSION\nkeys: {{ k: {{ arn: \"{PII_KEY}\" }} }}\nacls:\n{}columns:\n{}",
            acls.concat(), columns.concat()
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new(&yaml);
            let records = bench.sealed(&[r#"{"c0":0,"c1":1,"c2":2}"#]).await;
            let reading = bench.read(records, roles[role], None).await;
            let value: Value = serde_json::from_str(&shown(&reading).0).unwrap();
            for (n, (allow, deny)) in lists.iter().enumerate() {
                let label = format!("c{n}");
                let may = allow >> role & 1 == 1 && deny >> role & 1 == 0;
                let expected = if may { json!(n) } else { Value::Null };
                assert_eq!(value[&label], expected, "{yaml}");
                let access = reading.policy.policy().access(&label, &who(roles[role]), None, NOW, |_| None);
                let decision = reading.decisions.iter().find(|d| d.label == label).unwrap();
                assert_eq!(decision.because, access.because.to_string());
                assert_eq!(decision.outcome == ColumnOutcome::Opened, access.is_allowed());
            }
        });
    }
}
