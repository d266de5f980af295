//! The direct flow through the whole core: records in, sealed records out, and back, with keys in memory.
#![cfg(all(feature = "pipeline", feature = "testing"))]
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::envelope::EnvelopeParts;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{
    DomainKeys, Envelope, KEYS_HEADER, KeyServiceError, LabelEntry, OpeningKeys, SealingKeys, envelope,
};
use sealflow::keys::{EncryptionContext, KeyService as _};
use sealflow::pipeline::dead_letter::decode_record;
use sealflow::pipeline::{
    DeadLetter, Format, Header, Headers, KeysPlacement, OpenTransform, Outcome, Position, Record, Route, SealTransform,
    Timestamp, Transform, TransformError, apply_all,
};
use sealflow::policy::{FixedPolicies, VerifiedPolicy};
use sealflow::seal::{ColumnContext, PlainColumn, SealedValue, SealingKey, UsageLimits, value};

const HEAD: &str = r#"
dataset: payments
version: 1
keys:
  default: { arn: "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111" }
  "tenant-{tenant}": { arn: "arn:aws:kms:eu-central-1:111122223333:key/22222222-2222-2222-2222-222222222222", max_live: 10 }
acls: { pii: { allow: ["arn:aws:iam::111122223333:role/analyst"] }, ops: {} }
"#;
const DEAD: &str = "dead_letters: { key: default, acl: ops }\n";
const COLUMNS: &str = r#"
columns:
  - { path: user.email, key: default, acl: pii, pad_to: 32 }
  - { path: "cards[*].number", key: default, acl: pii, bind_row: order_id }
  - { path: amount, key: "tenant-{tenant}", acl: pii, seal_nulls: true }
  - { path: $key, key: default, acl: pii }
  - { path: $header.trace, key: default, acl: pii }
"#;

struct Bench {
    kms: Arc<MemoryKms>,
    seal: SealTransform,
    open: OpenTransform,
}

fn bench(columns: &str, format: Format, placement: KeysPlacement) -> Bench {
    bench_with(
        Arc::new(MemoryKms::new()),
        Arc::new(MemoryCatalogue::new()),
        columns,
        format,
        placement,
    )
}

fn bench_with(
    kms: Arc<MemoryKms>,
    catalogue: Arc<MemoryCatalogue>,
    columns: &str,
    format: Format,
    placement: KeysPlacement,
) -> Bench {
    let yaml = format!("{HEAD}{columns}");
    let policy = Arc::new(VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap());
    let policies = Arc::new(FixedPolicies::new(vec![policy.clone()]));
    let clock = Arc::new(ManualClock::at(UnixMillis(1_700_000_000_000)));
    let age = Duration::from_secs(300);
    let sealer = DirectSealer {
        keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
        domains: DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age),
    };
    let keys = OpeningKeys::new(kms.clone(), catalogue, policies, clock, age, 1_000);
    let seal = SealTransform::new(policy.clone(), format, placement, sealer.clone()).unwrap();
    let open = OpenTransform::new(policy, format, placement, keys, sealer).unwrap();
    Bench { kms, seal, open }
}

fn record(offset: i64, value: &[u8]) -> Record {
    let header = |name: &str, value: &str| Header {
        name: name.to_owned().into(),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
    };
    Record {
        position: Position {
            topic: "payments".into(),
            partition: 1,
            offset,
        },
        timestamp: Timestamp::Created(1_700_000_000_000 + offset),
        key: Some(Bytes::from_static(b"customer-9")),
        value: Some(Bytes::copy_from_slice(value)),
        headers: vec![header("trace", "t-1"), header("other", "x"), header("trace", "t-2")].into(),
    }
}

const RECORD: &str = r#" {"order_id": 77, "tenant":"acme", "user": {"email":"ann\u0065@example.com" , "name":"A"},
 "cards":[{"number":4111111111111111,"x":1.50},{"number":"5500-0000"},{}], "amount": 12345678901234567890123.10, "user": {"email": null} } "#;

async fn sealed(bench: &Bench, records: Vec<Record>) -> Vec<Outcome> {
    bench.seal.apply(&records).await.unwrap()
}

fn records(outcomes: Vec<Outcome>) -> Vec<Record> {
    outcomes.into_iter().map(|outcome| outcome.record).collect()
}

#[tokio::test]
async fn what_was_sealed_opens_to_the_same_bytes_in_every_part_of_the_record() {
    for placement in [KeysPlacement::Header, KeysPlacement::Catalogue] {
        let bench = bench(COLUMNS, Format::Json, placement);
        let original = vec![record(0, RECORD.as_bytes()), record(1, RECORD.as_bytes())];
        let outcomes = sealed(&bench, original.clone()).await;
        assert!(outcomes.iter().all(|outcome| outcome.route == Route::Target));
        for outcome in &outcomes {
            let text = String::from_utf8(outcome.record.value.clone().unwrap().to_vec()).unwrap();
            for secret in ["example", "4111", "5500", "1234567890", "customer"] {
                assert!(!text.contains(secret), "{secret}");
            }
            assert_eq!(text.matches("sf1.").count(), 4);
            assert!(
                text.contains(r#""name":"A"}"#) && text.contains(r#""x":1.50"#) && text.contains(r#"{"email": null}"#)
            );
            let header = outcome
                .record
                .headers
                .iter()
                .filter(|header| header.name == KEYS_HEADER)
                .count();
            assert_eq!(header, usize::from(placement == KeysPlacement::Header));
            assert!(outcome.record.key.as_ref().unwrap().starts_with(b"sf1."));
            assert_eq!(outcome.record.headers[1].value.as_deref(), Some(&b"x"[..]));
        }
        let opened = bench.open.apply(&records(outcomes)).await.unwrap();
        assert_eq!(records(opened), original);
    }
}

#[tokio::test]
async fn equal_values_never_look_equal() {
    let bench = bench(COLUMNS, Format::Json, KeysPlacement::Header);
    let outcomes = sealed(&bench, vec![record(0, RECORD.as_bytes()), record(0, RECORD.as_bytes())]).await;
    assert_ne!(outcomes[0].record.value, outcomes[1].record.value);
}

/// The names of the keys whose envelopes travel with a record, in order.
fn names(record: &Record) -> Vec<String> {
    let header = record.headers.iter().find(|header| header.name == KEYS_HEADER);
    let bytes = header.and_then(|header| header.value.as_ref());
    let envelopes = bytes
        .map(|bytes| envelope::read_header(bytes).unwrap())
        .unwrap_or_default();
    let mut names: Vec<_> = envelopes
        .iter()
        .map(|bytes| Envelope::from_bytes(bytes).unwrap().key_name)
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_record_carries_only_the_envelopes_that_it_uses() {
    let bench = bench(COLUMNS, Format::Json, KeysPlacement::Header);
    let mut bare = record(0, br#"{"order_id":1,"user":{"email":"a@b.c"}}"#);
    (bare.key, bare.headers) = (None, Headers::new());
    let mut nothing = record(1, br#"{"order_id":1}"#);
    (nothing.key, nothing.headers) = (None, Headers::new());
    let outcomes = sealed(&bench, vec![bare, nothing.clone(), record(2, RECORD.as_bytes())]).await;
    assert_eq!(names(&outcomes[0].record), ["default"]);
    assert_eq!(outcomes[1].record, nothing);
    assert_eq!(names(&outcomes[2].record), ["default", "tenant-acme"]);
}

#[tokio::test]
async fn no_record_and_no_document_is_sealed_under_the_key_of_the_one_before() {
    let columns = r#"
columns:
  - { path: $key, key: "tenant-{tenant}", acl: pii }
  - { path: amount, key: "tenant-{tenant}", acl: pii }
"#;
    let bench = bench(&format!("{columns}{DEAD}"), Format::Ndjson, KeysPlacement::Header);
    let mut tombstone = record(1, b"");
    tombstone.value = None;
    let original = vec![
        record(0, b"{\"tenant\":\"acme\",\"amount\":1}"),
        tombstone,
        record(2, b""),
        record(
            3,
            b"{\"tenant\":\"berg\",\"amount\":2}\n{\"tenant\":\"coop\",\"amount\":3}\n",
        ),
        record(4, b"{\"amount\":4}"),
        record(5, b"{\"tenant\":\"acme\",\"amount\":5}"),
    ];
    let outcomes = sealed(&bench, original.clone()).await;
    assert_eq!(names(&outcomes[0].record), ["tenant-acme"]);
    assert_eq!(names(&outcomes[3].record), ["tenant-berg", "tenant-coop"]);
    assert_eq!(names(&outcomes[5].record), ["tenant-acme"]);
    for n in [1, 2, 4] {
        assert_eq!(outcomes[n].route, Route::DeadLetter, "{n}");
        let letter = outcomes[n].record.value.as_ref().unwrap();
        assert_eq!(DeadLetter::code_of(letter).unwrap(), "missing-field", "{n}");
    }
    let kept = [0, 3, 5].map(|n: usize| outcomes[n].record.clone()).to_vec();
    let opened = records(bench.open.apply(&kept).await.unwrap());
    let wanted = [0, 3, 5].map(|n: usize| original[n].clone()).to_vec();
    assert_eq!(opened, wanted);
}

#[tokio::test]
async fn a_tombstone_keeps_its_null_value() {
    let columns = "columns: [ { path: user.email, key: default, acl: pii }, { path: $key, key: default, acl: pii } ]\n";
    let bench = bench(columns, Format::Json, KeysPlacement::Header);
    let tombstone = Record {
        value: None,
        ..record(0, b"")
    };
    let outcomes = sealed(&bench, vec![tombstone.clone()]).await;
    assert_eq!((outcomes[0].route, &outcomes[0].record.value), (Route::Target, &None));
    assert!(outcomes[0].record.key.as_ref().unwrap().starts_with(b"sf1."));
    assert_eq!(
        records(bench.open.apply(&records(outcomes)).await.unwrap()),
        [tombstone]
    );
}

#[tokio::test]
async fn lines_and_registry_prefixes_keep_every_byte() {
    let columns = "columns: [ { path: email, key: default, acl: pii } ]\n";
    let lines = b"{\"email\":\"a@b.c\"}\r\n\n{\"email\":\"d@e.f\"}";
    let registry = b"\x00\x00\x00\x00\x07{\"email\":\"a@b.c\"}";
    for (format, value) in [(Format::Ndjson, &lines[..]), (Format::JsonSr, &registry[..])] {
        let bench = bench(columns, format, KeysPlacement::Header);
        let original = record(0, value);
        let outcomes = sealed(&bench, vec![original.clone()]).await;
        let out = outcomes[0].record.value.clone().unwrap();
        assert!(
            outcomes[0].route == Route::Target && !out.windows(3).any(|window| window == b"@b." || window == b"@e.")
        );
        assert_eq!(out[..5] == registry[..5], format == Format::JsonSr);
        assert_eq!(records(bench.open.apply(&records(outcomes)).await.unwrap()), [original]);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_record_does_not_depend_on_its_neighbours() {
    let columns = r#"
columns:
  - { path: $key, key: default, acl: pii, bind_row: id }
  - { path: "cards[*]", key: default, acl: pii, bind_row: id }
  - { path: email, key: default, acl: pii }
"#;
    let bench = bench(&format!("{columns}{DEAD}"), Format::Ndjson, KeysPlacement::Header);
    let original: Vec<Record> = (0..60)
        .map(|n| {
            record(
                n,
                format!(r#"{{"id":"{n}","cards":["a{n}","b{n}"],"email":"{n}@x"}}"#).as_bytes(),
            )
        })
        .collect();
    let mut damaged = records(sealed(&bench, original.clone()).await);
    let mut expected = Vec::new();
    for (n, record) in damaged.iter_mut().enumerate() {
        let text = String::from_utf8(record.value.as_ref().unwrap().to_vec()).unwrap();
        let (value, code) = match n % 6 {
            // A key whose record has no document at all: its row is nowhere.
            1 => (String::new(), Some("empty-record")),
            // Another row than the values are bound to.
            2 => (
                text.replace(&format!(r#""id":"{n}""#), r#""id":"x""#),
                Some("cannot-open"),
            ),
            // No sealed value, behind some that are.
            3 => (
                text.replace(r#""email":"sf1."#, r#""email":"sf1.="#),
                Some("not-sealed"),
            ),
            4 => (text.replace('}', ""), Some("truncated-json")),
            _ => (text, None),
        };
        record.value = Some(value.into());
        expected.push(code);
    }
    for batch in [1, 7, 60] {
        for (chunk, from) in damaged.chunks(batch).zip((0..).step_by(batch)) {
            let outcomes = bench.open.apply(chunk).await.unwrap();
            assert_eq!(outcomes.len(), chunk.len());
            for (outcome, n) in outcomes.iter().zip(from..) {
                let value = outcome.record.value.as_deref().unwrap();
                assert_eq!(outcome.route == Route::Target, expected[n].is_none());
                match expected[n] {
                    Some(code) => assert_eq!(DeadLetter::code_of(value).unwrap(), code, "{n} in batches of {batch}"),
                    None => assert_eq!(outcome.record, original[n], "{n} in batches of {batch}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_becomes_a_dead_letter_sealed_whole() {
    let bench = bench(&format!("{COLUMNS}{DEAD}"), Format::Json, KeysPlacement::Header);
    for (value, code) in [
        (&b"{\"user\":{\"email\":\"canary@x\"}} trailing"[..], "trailing-bytes"),
        (
            b"{\"tenant\":\"a/b\",\"amount\":1,\"note\":\"canary@x\"}",
            "bad-template-field",
        ),
        (b"{\"amount\":1,\"note\":\"canary@x\"}", "missing-field"),
        (b"{\"cards\":[{\"number\":1}],\"note\":\"canary@x\"}", "missing-field"),
        (
            b"{\"cards\":[{\"number\":1}],\"order_id\":1.5,\"note\":\"canary@x\"}",
            "bad-row-id",
        ),
        (
            b"{\"cards\":[{\"number\":1}],\"order_id\":1,\"order_id\":2,\"note\":\"canary@x\"}",
            "ambiguous-field",
        ),
        (b"\xff canary@x", "invalid-utf8"),
    ] {
        let outcomes = sealed(&bench, vec![record(0, RECORD.as_bytes()), record(1, value)]).await;
        assert_eq!(outcomes[0].route, Route::Target);
        assert_eq!(outcomes[1].route, Route::DeadLetter);
        let json = outcomes[1].record.value.clone().unwrap();
        let letter = DeadLetter::from_json(&json).unwrap();
        assert_eq!((letter.code.as_str(), letter.offset, letter.partition), (code, 1, 1));
        assert!(!String::from_utf8_lossy(&json).contains("canary"));
        assert_eq!((&outcomes[1].record.key, outcomes[1].record.headers.len()), (&None, 1));
    }
}

#[tokio::test]
async fn without_a_dead_letter_section_a_bad_record_stops_the_pipeline_and_nothing_of_the_batch_leaves() {
    let bench = bench(COLUMNS, Format::Json, KeysPlacement::Header);
    let batch = vec![
        record(0, RECORD.as_bytes()),
        record(1, b"{\"user\":{\"email\":\"canary@x\"}"),
    ];
    let error = bench.seal.apply(&batch).await.unwrap_err();
    let TransformError::Stop { reason, .. } = error else {
        panic!("{error}")
    };
    assert!(
        reason.contains("payments/1/1") && reason.contains("truncated") && !reason.contains("canary"),
        "{reason}"
    );
}

#[tokio::test]
async fn without_a_key_service_nothing_leaves_and_the_same_batch_passes_later() {
    let bench = bench(COLUMNS, Format::Json, KeysPlacement::Header);
    bench.kms.fail_with(Some(KeyServiceError::NotPermitted {
        arn: "arn".into(),
        code: "AccessDeniedException".into(),
    }));
    let refused = bench.seal.apply(&[record(0, RECORD.as_bytes())]).await;
    assert!(matches!(refused, Err(TransformError::Stop { .. })));
    bench.kms.fail_with(None);
    let bench = bench_with(
        bench.kms.clone(),
        Arc::new(MemoryCatalogue::new()),
        COLUMNS,
        Format::Json,
        KeysPlacement::Header,
    );
    bench
        .kms
        .fail_with(Some(KeyServiceError::Unavailable { reason: "test".into() }));
    assert!(matches!(
        bench.seal.apply(&[record(0, RECORD.as_bytes())]).await,
        Err(TransformError::Retry { .. })
    ));
}

/// Exchanges the sealed texts at two places of a sealed record.
fn swapped(value: &[u8], a: usize, b: usize) -> Vec<u8> {
    let text = String::from_utf8(value.to_vec()).unwrap();
    let starts: Vec<_> = text.match_indices("\"sf1.").map(|(at, _)| at).collect();
    let whole = |at: usize| at..at + 2 + text[at + 1..].find('"').unwrap();
    let (first, second) = (whole(starts[a]), whole(starts[b]));
    [
        &text[..first.start],
        &text[second.clone()],
        &text[first.end..second.start],
        &text[first],
        &text[second.end..],
    ]
    .concat()
    .into_bytes()
}

#[tokio::test]
async fn moved_swapped_edited_and_foreign_values_do_not_open() {
    let bench = bench(&format!("{COLUMNS}{DEAD}"), Format::Json, KeysPlacement::Header);
    let out = records(sealed(&bench, vec![record(0, RECORD.as_bytes())]).await).remove(0);
    let value = out.value.clone().unwrap();
    let text = String::from_utf8(value.to_vec()).unwrap();
    let edited = text.replacen("sf1.E", "sf1.A", 1);
    let flipped = {
        let at = text.find("sf1.").unwrap() + 60;
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        bytes
    };
    let other_row = text.replacen("\"order_id\": 77", "\"order_id\": 78", 1).into_bytes();
    let in_clear = r#"{"order_id":1,"user":{"email":"plain@x"}}"#.as_bytes().to_vec();
    let cases = [
        ("another label", swapped(&value, 0, 1), "cannot-open"),
        ("another index of the same list", swapped(&value, 1, 2), "cannot-open"),
        ("another row", other_row, "cannot-open"),
        ("a flipped bit", flipped, "cannot-open"),
        ("another suite", edited.into_bytes(), "not-sealed"),
        ("plaintext where a sealed value belongs", in_clear, "not-sealed"),
    ];
    for (what, value, code) in cases {
        let moved = Record {
            value: Some(value.into()),
            ..out.clone()
        };
        let outcome = bench.open.apply(&[moved]).await.unwrap().remove(0);
        assert_eq!(outcome.route, Route::DeadLetter, "{what}");
        assert_eq!(
            DeadLetter::from_json(&outcome.record.value.unwrap()).unwrap().code,
            code,
            "{what}"
        );
    }
}

#[tokio::test]
async fn an_edited_or_forged_envelope_gains_nothing() {
    // Envelopes travel only, so that the forged ones are what the reader sees.
    let kms = Arc::new(MemoryKms::new());
    let columns = format!("columns: [ {{ path: user.email, key: default, acl: pii }} ]\n{DEAD}");
    let sealing = bench_with(
        kms.clone(),
        Arc::new(MemoryCatalogue::new()),
        &columns,
        Format::Json,
        KeysPlacement::Header,
    );
    let mut input = record(0, br#"{"user":{"email":"a@b.c"}}"#);
    (input.key, input.headers) = (None, Headers::new());
    let out = records(sealed(&sealing, vec![input.clone()]).await).remove(0);
    let header = out.headers[0].value.clone().unwrap();
    let genuine = Envelope::from_bytes(envelope::read_header(&header).unwrap()[0]).unwrap();
    let reader = || {
        bench_with(
            kms.clone(),
            Arc::new(MemoryCatalogue::new()),
            &columns,
            Format::Json,
            KeysPlacement::Header,
        )
    };
    let with = |envelope: &Envelope| {
        let bytes = envelope.to_bytes().unwrap();
        let header = envelope::write_header([&bytes[..]].into_iter());
        Record {
            headers: [Header {
                name: KEYS_HEADER.into(),
                value: Some(header.into()),
            }]
            .into(),
            ..out.clone()
        }
    };
    assert_eq!(records(reader().open.apply(&[with(&genuine)]).await.unwrap()), [input]);
    let edit = |change: fn(&mut Envelope)| {
        let mut envelope = genuine.clone();
        change(&mut envelope);
        envelope
    };
    let label = |label: &str, row: Option<&str>| LabelEntry {
        label: label.into(),
        bind_row: row.map(Into::into),
    };
    let mut relabelled = genuine.clone();
    relabelled.labels = vec![label("user.name", None)];
    let mut bound = genuine.clone();
    bound.labels = vec![label("user.email", Some("user.email"))];
    let forged = [
        ("another acl", edit(|e| e.acl = "ops".into())),
        ("an unknown acl", edit(|e| e.acl = "everybody".into())),
        ("an unknown key name", edit(|e| e.key_name = "mine".into())),
        (
            "another arn",
            edit(|e| e.arn = e.arn.replace("1111-111111111111", "1111-999999999999")),
        ),
        ("another dataset", edit(|e| e.dataset = "payments2".into())),
        (
            "the dead letters' dataset",
            edit(|e| e.dataset = "payments#dead-letters".into()),
        ),
        ("another wrapped key", edit(|e| e.wrapped.reverse())),
        ("no labels", edit(|e| e.labels.clear())),
        ("another label", relabelled),
        ("a row binding", bound),
    ];
    for (what, envelope) in forged {
        let outcome = reader().open.apply(&[with(&envelope)]).await.unwrap().remove(0);
        assert_eq!(outcome.route, Route::DeadLetter, "{what}");
    }
    // One record's forged envelope does not spoil another's genuine one.
    let forged = edit(|e| e.wrapped = vec![0; 60]);
    let outcomes = reader().open.apply(&[with(&forged), with(&genuine)]).await.unwrap();
    assert_eq!(
        (outcomes[0].route, outcomes[1].route),
        (Route::DeadLetter, Route::Target)
    );
}

#[tokio::test]
async fn a_missing_column_is_refused_where_the_policy_says_so() {
    let columns = format!("columns: [ {{ path: user.email, key: default, acl: pii, on_missing: reject }} ]\n{DEAD}");
    let bench = bench(&columns, Format::Json, KeysPlacement::Header);
    let outcomes = sealed(
        &bench,
        vec![record(0, br#"{"user":{}}"#), record(1, br#"{"user":{"email":null}}"#)],
    )
    .await;
    assert_eq!(
        (outcomes[0].route, outcomes[1].route),
        (Route::DeadLetter, Route::Target)
    );
}

#[tokio::test]
async fn every_kind_of_json_value_comes_back_as_it_was_spelled() {
    let columns = "columns: [ { path: v, key: default, acl: pii, seal_nulls: true } ]\n";
    let bench = bench(columns, Format::Json, KeysPlacement::Header);
    let values = [
        "9223372036854775807",
        "-9223372036854775809",
        "123456789012345678901234567890",
        "0.1",
        "1e400",
        "-0",
        "-0.0",
        "1.0",
        "1E5",
        "5e-324",
        "\"\"",
        "\"\\u0000\\ud83d\\ude00\"",
        "\"\\ud800\"",
        "null",
        "true",
        "false",
        "{}",
        "[]",
        "{ \"a\" : [ 1 , {\"b\":null} ] }",
        "\"ünï\"",
        "\"\\/\"",
    ];
    let original: Vec<_> = values
        .iter()
        .enumerate()
        .map(|(n, value)| record(i64::try_from(n).unwrap(), format!("{{\"v\":{value}}}").as_bytes()))
        .collect();
    let outcomes = sealed(&bench, original.clone()).await;
    for outcome in &outcomes {
        let text = String::from_utf8(outcome.record.value.clone().unwrap().to_vec()).unwrap();
        let mut bytes = Vec::new();
        value::read_text(text[5..text.len() - 1].trim_matches('"').as_bytes(), &mut bytes).unwrap();
        assert!(matches!(SealedValue::parse(&bytes), Ok(SealedValue::Randomised { .. })));
    }
    assert_eq!(records(bench.open.apply(&records(outcomes)).await.unwrap()), original);
}

#[tokio::test]
async fn a_dead_letter_opens_to_the_whole_record_for_whoever_has_its_key() {
    let kms = Arc::new(MemoryKms::new());
    let (catalogue, columns) = (Arc::new(MemoryCatalogue::new()), format!("{COLUMNS}{DEAD}"));
    let bench = bench_with(
        kms.clone(),
        catalogue.clone(),
        &columns,
        Format::Json,
        KeysPlacement::Header,
    );
    let broken = record(7, b"{\"user\":{\"email\":\"canary@x\"}} trailing");
    let outcome = sealed(&bench, vec![broken.clone()]).await.remove(0);
    let letter = DeadLetter::from_json(&outcome.record.value.unwrap()).unwrap();
    let mut sealed = Vec::new();
    value::read_text(letter.record.as_bytes(), &mut sealed).unwrap();
    let SealedValue::Randomised {
        key,
        column,
        nonce,
        ciphertext,
        tag,
    } = SealedValue::parse(&sealed).unwrap()
    else {
        panic!("another suite");
    };
    let yaml = format!("{HEAD}{columns}");
    let policy = Arc::new(VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap());
    let clock = Arc::new(ManualClock::at(UnixMillis(1_700_000_000_000)));
    let policies = Arc::new(FixedPolicies::new(vec![policy]));
    let keys = OpeningKeys::new(kms, catalogue, policies, clock, Duration::from_secs(300), 10);
    let opened = keys.get(key, &[]).await.unwrap();
    assert_eq!((opened.envelope.dataset.as_str(), column), ("payments#dead-letters", 0));
    let mut plain = Vec::new();
    let mut opener = opened
        .key
        .opener(&opened.envelope.dataset, &opened.envelope.labels[0].label);
    opener.open(nonce, ciphertext, tag, None, &mut plain).unwrap();
    assert_eq!(plain[0], 7, "bytes");
    assert_eq!(decode_record(&plain[1..], broken.position.clone()), Ok(broken));
}

#[tokio::test]
async fn an_envelope_that_kms_would_unwrap_but_the_policy_does_not_name_is_refused() {
    let kms = Arc::new(MemoryKms::new());
    let columns = format!("columns: [ {{ path: user.email, key: default, acl: pii }} ]\n{DEAD}");
    let (arn, stranger) = (
        "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111",
        "arn:aws:kms:eu-central-1:111122223333:key/99999999-9999-9999-9999-999999999999",
    );
    for (arn, key_name, acl, opens) in [
        (arn, "default", "pii", true),
        (arn, "default", "everybody", false),
        (arn, "mine", "pii", false),
        (stranger, "default", "pii", false),
    ] {
        // Whoever has rights at the KMS key can make such a key and envelope, all genuine but for the policy.
        let context = EncryptionContext::for_data_key("payments", key_name, acl);
        let generated = kms.generate(arn, 32, &context).await.unwrap();
        let key = SealingKey::from_generated(&generated.plaintext, UsageLimits::STANDARD).unwrap();
        let envelope = Envelope::new(EnvelopeParts {
            key_id: key.id(),
            arn: arn.into(),
            wrapped: generated.wrapped,
            dataset: "payments".into(),
            key_name: key_name.into(),
            acl: acl.into(),
            policy: ("payments".into(), 1, [0; 32]),
            labels: vec![LabelEntry {
                label: "user.email".into(),
                bind_row: None,
            }],
            created: UnixMillis(0),
            not_after: UnixMillis(1),
        });
        let mut plain = PlainColumn::with_capacity(1, 8);
        plain.push(b"\x06x").unwrap();
        let context = ColumnContext {
            dataset: "payments",
            label: "user.email",
            column: 0,
            rows: None,
        };
        let sealed = key.seal(&context, plain.view()).unwrap();
        let mut text = Vec::new();
        value::write_text(sealed.view().get(0).unwrap(), &mut text);
        let json = format!(r#"{{"user":{{"email":"{}"}}}}"#, String::from_utf8(text).unwrap());
        let header = envelope::write_header([envelope.to_bytes().unwrap().as_slice()].into_iter());
        let mut forged = record(0, json.as_bytes());
        (forged.key, forged.headers) = (
            None,
            [Header {
                name: KEYS_HEADER.into(),
                value: Some(header.into()),
            }]
            .into(),
        );
        let reader = bench_with(
            kms.clone(),
            Arc::new(MemoryCatalogue::new()),
            &columns,
            Format::Json,
            KeysPlacement::Header,
        );
        let outcome = reader.open.apply(&[forged]).await.unwrap().remove(0);
        assert_eq!(outcome.route == Route::Target, opens, "{arn} {key_name} {acl}");
    }
}

#[tokio::test]
async fn a_value_of_another_dataset_does_not_open_at_a_place_of_the_same_label() {
    let kms = Arc::new(MemoryKms::new());
    let columns = "columns: [ { path: user.email, key: default, acl: pii } ]\n";
    let policy = |dataset: &str| {
        let yaml = format!("{HEAD}{columns}{DEAD}").replace("dataset: payments", &format!("dataset: {dataset}"));
        Arc::new(VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap())
    };
    let policies = Arc::new(FixedPolicies::new(vec![policy("payments"), policy("refunds")]));
    let catalogue = Arc::new(MemoryCatalogue::new());
    let clock = Arc::new(ManualClock::at(UnixMillis(1_700_000_000_000)));
    let age = Duration::from_secs(300);
    let sealer = DirectSealer {
        keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
        domains: DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age),
    };
    let keys = OpeningKeys::new(kms, catalogue, policies, clock, age, 100);
    let seal = SealTransform::new(policy("refunds"), Format::Json, KeysPlacement::Header, sealer.clone()).unwrap();
    let opens = |dataset| {
        OpenTransform::new(
            policy(dataset),
            Format::Json,
            KeysPlacement::Header,
            keys.clone(),
            sealer.clone(),
        )
        .unwrap()
    };
    let mut input = record(0, br#"{"user":{"email":"a@b.c"}}"#);
    (input.key, input.headers) = (None, Headers::new());
    let sealed = records(seal.apply(&[input.clone()]).await.unwrap());
    assert_eq!(records(opens("refunds").apply(&sealed).await.unwrap()), [input]);
    assert_eq!(
        opens("payments").apply(&sealed).await.unwrap()[0].route,
        Route::DeadLetter
    );
}

#[tokio::test]
async fn two_columns_of_one_key_cannot_change_places() {
    // Neither is bound to a row, so that the label alone keeps them apart.
    let columns =
        format!("columns: [ {{ path: a, key: default, acl: pii }}, {{ path: b, key: default, acl: pii }} ]\n{DEAD}");
    let bench = bench(&columns, Format::Json, KeysPlacement::Header);
    let mut input = record(0, br#"{"a":"one","b":"two"}"#);
    (input.key, input.headers) = (None, Headers::new());
    let out = records(sealed(&bench, vec![input]).await).remove(0);
    let value = swapped(out.value.as_deref().unwrap(), 0, 1);
    let moved = Record {
        value: Some(value.into()),
        ..out
    };
    let outcome = bench.open.apply(&[moved]).await.unwrap().remove(0);
    assert_eq!(outcome.route, Route::DeadLetter);
}

/// The last four bytes of the nonce of the one value that a record has.
fn nonce_end(record: &Record) -> u32 {
    let json = record.value.as_deref().unwrap();
    let start = json.windows(4).position(|four| four == b"sf1.").unwrap();
    let len = json[start..].iter().position(|byte| *byte == b'"').unwrap();
    let mut bytes = Vec::new();
    value::read_text(&json[start..start + len], &mut bytes).unwrap();
    let SealedValue::Randomised { nonce, .. } = SealedValue::parse(&bytes).unwrap() else {
        unreachable!("not randomised")
    };
    u32::from_be_bytes(nonce[8..].try_into().unwrap())
}

#[tokio::test]
async fn a_large_batch_is_sealed_part_by_part_in_its_order() {
    let columns = "columns: [ { path: email, key: default, acl: pii } ]\n";
    let bench = bench(&format!("{columns}{DEAD}"), Format::Json, KeysPlacement::Header);
    let filler = "x".repeat(1_000);
    let original: Vec<Record> = (0..5_000)
        .map(|n| match n % 1_000 {
            // No JSON; nothing at all; nothing to seal.
            600 => record(n, format!(r#"{{"email":"canary-{n}"#).as_bytes()),
            601 => Record {
                value: None,
                ..record(n, b"")
            },
            602 => record(n, format!(r#"{{"other":"{filler}"}}"#).as_bytes()),
            _ => record(n, format!(r#"{{"email":"canary-{n}","other":"{filler}"}}"#).as_bytes()),
        })
        .collect();
    let outcomes = sealed(&bench, original.clone()).await;
    assert_eq!(outcomes.len(), original.len());
    let (mut last, mut parts) = (None, 0);
    for (n, (outcome, original)) in outcomes.iter().zip(&original).enumerate() {
        let record = &outcome.record;
        assert_eq!(record.position, original.position);
        let leaks = |text: &Bytes| text.windows(6).any(|six| six == b"canary");
        assert!(!record.value.as_ref().is_some_and(leaks), "{n}");
        match n % 1_000 {
            600 => {
                assert_eq!(outcome.route, Route::DeadLetter, "{n}");
                let letter = record.value.as_ref().unwrap();
                assert_eq!(DeadLetter::from_json(letter).unwrap().offset, original.position.offset);
            }
            601 | 602 => assert_eq!((outcome.route, record), (Route::Target, original)),
            _ => {
                assert_eq!(outcome.route, Route::Target, "{n}");
                assert_eq!(names(record), ["default"]);
                // The values of a part are numbered from a start of its own.
                let nonce = nonce_end(record);
                parts += usize::from(last.is_none_or(|last: u32| last.wrapping_add(1) != nonce));
                last = Some(nonce);
            }
        }
    }
    assert!((3..=10).contains(&parts), "{parts} parts");
    assert_eq!(
        bench.kms.generate_calls(),
        2,
        "one key for the column, one for dead letters"
    );
    let is_letter = |outcome: &Outcome| outcome.route == Route::DeadLetter;
    assert_eq!(outcomes.iter().filter(|outcome| is_letter(outcome)).count(), 5);
    let kept: Vec<Outcome> = outcomes.into_iter().filter(|outcome| !is_letter(outcome)).collect();
    let wanted: Vec<Record> = original
        .into_iter()
        .filter(|record| record.position.offset % 1_000 != 600)
        .collect();
    let opened = apply_all(&bench.open, &records(kept)).await.unwrap();
    assert!(records(opened) == wanted, "every record is what it was");
}
