//! Records on their way into a table: what a policy seals by value is sealed before, what it seals by column is in no other
//! column, and the leak corpus leaves no trace anywhere else.
#![cfg(all(feature = "table", feature = "testing"))]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::DataType;
use bytes::Bytes;
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::columns::testing::{CORPUS_CANARY, CORPUS_CANARY_NUMBER, Case, Expect, contains_canary, parse_index};
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{DomainKeys, SealingKeys};
use sealflow::pipeline::{
    Format, Headers, KeysPlacement, Outcome, Position, Record, Route, SealTransform, Timestamp, Transform as _,
};
use sealflow::policy::{ColumnPath, FixedPolicies, Segment, VerifiedPolicy};
use sealflow::seal::{SealedColumn, UsageLimits};
use sealflow::table::{FieldType, LeafPlace, RowEncoder, RowRejection, SchemaField, TableLayout, TableSchema};

const HEAD: &str = r#"
dataset: logs
version: 1
keys: { default: { arn: "arn:aws:kms:eu-central-1:111122223333:key/1" } }
acls: { pii: {} }
dead_letters: { key: default, acl: pii }
"#;

fn policy(columns: &str) -> Arc<VerifiedPolicy> {
    let yaml = format!("{HEAD}columns: [ {columns} ]\n");
    Arc::new(VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap())
}

fn transform(policy: &Arc<VerifiedPolicy>) -> SealTransform {
    let (kms, catalogue) = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
    let clock = Arc::new(ManualClock::at(UnixMillis(1)));
    let policies = Arc::new(FixedPolicies::new(vec![policy.clone()]));
    let sealer = DirectSealer {
        keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
        domains: DomainKeys::new(kms, catalogue, policies, clock, Duration::from_secs(300)),
    };
    SealTransform::new(policy.clone(), Format::Json, KeysPlacement::Catalogue, sealer).unwrap()
}

fn record(value: &[u8]) -> Record {
    Record {
        position: Position {
            topic: "logs".into(),
            partition: 0,
            offset: 7,
        },
        timestamp: Timestamp::None,
        key: Some(Bytes::from_static(b"the key")),
        value: Some(Bytes::copy_from_slice(value)),
        headers: Headers::new(),
    }
}

async fn sealed(transform: &SealTransform, value: &[u8]) -> Outcome {
    transform.apply(&[record(value)]).await.unwrap().remove(0)
}

/// One row, with some bytes in place of a sealed `_extra`, and what is to be sealed into it.
fn row(encoder: &mut RowEncoder, record: &Record) -> Result<(RecordBatch, Vec<u8>), RowRejection> {
    encoder.append(record)?;
    let rows = encoder.finish().unwrap();
    let extra = rows.extra().and_then(|extra| extra.get(0)).unwrap_or_default().to_vec();
    let mut column = SealedColumn::with_capacity(0, 0);
    column.push(&[0x11; 64]).unwrap();
    let batch = rows.with_extra((!extra.is_empty()).then_some(&column)).unwrap();
    Ok((batch, extra))
}

/// The leaves of a batch in the order of the layout: their bytes, and how many entries are not null.
fn leaves(batch: &RecordBatch) -> Vec<(Vec<u8>, usize)> {
    fn visit(array: &dyn Array, leaves: &mut Vec<(Vec<u8>, usize)>) {
        let data = array.to_data();
        if matches!(data.data_type(), DataType::List(_) | DataType::Struct(_)) {
            for child in data.child_data() {
                visit(&arrow::array::make_array(child.clone()), leaves);
            }
            return;
        }
        let bytes: Vec<&[u8]> = data.buffers().iter().map(arrow::buffer::Buffer::as_slice).collect();
        leaves.push((bytes.concat(), array.len() - array.null_count()));
    }
    let mut leaves = Vec::new();
    for column in batch.columns() {
        visit(column, &mut leaves);
    }
    leaves
}

fn leaks(bytes: &[u8]) -> bool {
    contains_canary(bytes, CORPUS_CANARY) || contains_canary(bytes, CORPUS_CANARY_NUMBER)
}

fn cases() -> Vec<(Case, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/leak-corpus");
    let index = fs::read_to_string(folder.join("index.tsv")).unwrap();
    let cases = parse_index(&index).unwrap();
    cases
        .into_iter()
        .map(|case| {
            let record = fs::read(folder.join(&case.file)).unwrap();
            (case, record)
        })
        .collect()
}

/// The fields of a schema that has exactly these paths, each of type `leaf`; `None` if a schema cannot have one of them.
fn fields_of(paths: &[Vec<Segment>], leaf: &FieldType) -> Option<Vec<SchemaField>> {
    let mut fields: Vec<SchemaField> = Vec::new();
    for path in paths {
        let Some((Segment::Name(name), _)) = path.split_first() else {
            return None;
        };
        let same: Vec<Vec<Segment>> = paths
            .iter()
            .filter(|other| other.first() == path.first())
            .map(|other| other[1..].to_vec())
            .collect();
        if fields.iter().any(|field| field.name == *name) {
            continue;
        }
        let field_type = type_of(&same, leaf)?;
        fields.push(SchemaField {
            name: name.clone(),
            field_type,
        });
    }
    Some(fields)
}

fn type_of(paths: &[Vec<Segment>], leaf: &FieldType) -> Option<FieldType> {
    if paths.iter().all(Vec::is_empty) {
        return Some(leaf.clone());
    }
    if paths.iter().all(|path| path.first() == Some(&Segment::Each)) {
        let below: Vec<Vec<Segment>> = paths.iter().map(|path| path[1..].to_vec()).collect();
        return Some(FieldType::List(Box::new(type_of(&below, leaf)?)));
    }
    Some(FieldType::Struct(fields_of(paths, leaf)?))
}

fn schema_of(case: &Case, leaf: &FieldType) -> Option<TableSchema> {
    let paths: Vec<Vec<Segment>> = case
        .columns
        .iter()
        .map(|path| path.parse::<ColumnPath>().unwrap().segments().to_vec())
        .collect();
    TableSchema::new("logs", 1, &fields_of(&paths, leaf)?).ok()
}

fn rules(case: &Case, rest: &str) -> String {
    let rule = |path: &String| {
        let path = serde_json::to_string(path).unwrap();
        format!("{{ path: {path}, key: default, acl: pii{rest} }}")
    };
    case.columns.iter().map(rule).collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn the_leak_corpus_is_in_columns_of_its_own_or_nowhere() {
    let (mut rows, mut refused, mut without_schema) = (0, 0, 0);
    for (case, value) in cases() {
        for leaf in [FieldType::Json, FieldType::String] {
            let Some(schema) = schema_of(&case, &leaf) else {
                without_schema += 1;
                continue;
            };
            let policy = policy(&rules(&case, ", at: column"));
            let outcome = sealed(&transform(&policy).for_table(), &value).await;
            if let Expect::DeadLetter(_) = &case.expect {
                assert_eq!(outcome.route, Route::DeadLetter, "{}", case.file);
                continue;
            }
            assert_eq!(outcome.route, Route::Target, "{}", case.file);
            assert_eq!(outcome.record.value.as_deref(), Some(value.as_slice()), "{}", case.file);
            let layout = Arc::new(TableLayout::new(&schema, policy.policy()).unwrap());
            let mut encoder = RowEncoder::new(layout.clone(), Format::Json);
            match row(&mut encoder, &outcome.record) {
                Err(error) => {
                    assert_eq!(error.code(), "schema-conflict", "{}: {error}", case.file);
                    assert!(!leaks(format!("{error} {error:?}").as_bytes()), "{}", case.file);
                    refused += 1;
                }
                Ok((batch, extra)) => {
                    let may_stay = matches!(case.expect, Expect::Clear(_));
                    assert_eq!(leaks(&extra), may_stay, "{}: _extra", case.file);
                    for (leaf, (bytes, _)) in layout.leaves().iter().zip(leaves(&batch)) {
                        let is_own = matches!(leaf.place, LeafPlace::Column { .. });
                        assert!(is_own || !leaks(&bytes), "{}: {}", case.file, leaf.path);
                    }
                    rows += 1;
                }
            }
        }
    }
    assert!(
        rows >= 50 && refused >= 30,
        "{rows} rows, {refused} refused, {without_schema} without a schema"
    );
}

#[tokio::test]
async fn the_leak_corpus_sealed_by_value_is_nowhere_in_clear() {
    let mut rows = 0;
    for (case, value) in cases() {
        let policy = policy(&rules(&case, ""));
        let outcome = sealed(&transform(&policy).for_table(), &value).await;
        if let Expect::DeadLetter(_) = &case.expect {
            assert_eq!(outcome.route, Route::DeadLetter, "{}", case.file);
            continue;
        }
        let undeclared = SchemaField {
            name: "no such member".to_owned(),
            field_type: FieldType::Bool,
        };
        let schemas = [
            schema_of(&case, &FieldType::Json),
            TableSchema::new("logs", 1, &[undeclared]).ok(),
        ];
        for schema in schemas.into_iter().flatten() {
            let layout = Arc::new(TableLayout::new(&schema, policy.policy()).unwrap());
            let mut encoder = RowEncoder::new(layout.clone(), Format::Json);
            let may_stay = matches!(case.expect, Expect::Clear(_));
            match row(&mut encoder, &outcome.record) {
                Err(error) => assert_eq!(error.code(), "not-an-object", "{}: {error}", case.file),
                Ok((batch, extra)) => {
                    assert_eq!(leaks(&extra), may_stay, "{}: _extra", case.file);
                    assert!(leaves(&batch).iter().all(|(bytes, _)| !leaks(bytes)), "{}", case.file);
                    rows += 1;
                }
            }
            // What nobody has sealed is refused, wherever it would have gone.
            if let Expect::Sealed(_) = &case.expect {
                let error = row(&mut encoder, &record(&value)).err().unwrap();
                assert!(
                    ["not-sealed", "not-an-object"].contains(&error.code()),
                    "{}: {error}",
                    case.file
                );
                assert!(!leaks(format!("{error} {error:?}").as_bytes()), "{}", case.file);
            }
        }
    }
    assert!(rows >= 90, "{rows} rows");
}

const COLUMNS: &str = "{ path: card, key: default, acl: pii, at: column, on_missing: reject }, { path: email, key: default, acl: pii, hints: [ { derive: last4, acl: pii } ] }, { path: $key, key: default, acl: pii, at: column }";

/// Fail closed: only a table encrypts columns as a whole.
#[tokio::test]
async fn columns_at_column_are_sealed_value_by_value_in_topics_and_stay_for_tables() {
    let policy = policy(COLUMNS);
    assert_eq!(policy.policy().unsupported(), []);
    let value = br#"{"card":"4111 1111","email":"somebody@example.com","x":1}"#;
    let text = |outcome: &Outcome| String::from_utf8(outcome.record.value.clone().unwrap().to_vec()).unwrap();

    let topic = sealed(&transform(&policy), value).await;
    assert!(text(&topic).starts_with(r#"{"card":"sf1."#), "{}", text(&topic));
    assert!(topic.record.key.as_ref().unwrap().starts_with(b"sf1."));

    let table = sealed(&transform(&policy).for_table(), value).await;
    let table_text = text(&table);
    assert!(
        table_text.starts_with(r#"{"card":"4111 1111","email":"sf1."#),
        "{table_text}"
    );
    assert!(table_text.contains(r#","email#last4":"sf1."#), "{table_text}");
    assert_eq!(table.record.key.as_deref(), Some(&b"the key"[..]));

    // What must be there is missed all the same, and shapes that hide the column are dead letters.
    for value in [
        &br#"{"email":"a"}"#[..],
        b"[]",
        b"{\"card\":1}{",
        br#"{"card":1,"email":{"x":1},"email#last4":1}"#,
    ] {
        let outcome = sealed(&transform(&policy).for_table(), value).await;
        assert_eq!(outcome.route, Route::DeadLetter, "{}", String::from_utf8_lossy(value));
    }
}

#[tokio::test]
async fn a_sealed_record_becomes_a_row_with_each_value_in_its_leaf() {
    let policy = policy(COLUMNS);
    let schema = b"dataset: logs\nversion: 1\nfields: [ { name: card, type: string }, { name: email, type: string }, { name: x, type: int64 } ]";
    let layout = Arc::new(TableLayout::new(&TableSchema::parse(schema).unwrap(), policy.policy()).unwrap());
    let mut encoder = RowEncoder::new(layout.clone(), Format::Json);
    let value = br#"{"card":"4111 1111","email":"somebody@example.com","x":1}"#;
    let outcome = sealed(&transform(&policy).for_table(), value).await;
    let (batch, extra) = row(&mut encoder, &outcome.record).unwrap();
    assert!(extra.is_empty());
    let found: Vec<(&str, usize, bool)> = layout
        .leaves()
        .iter()
        .zip(leaves(&batch))
        .map(|(leaf, (bytes, values))| (leaf.path.as_str(), values, bytes.windows(4).any(|four| four == b"4111")))
        .collect();
    assert_eq!(
        found,
        [
            ("_partition", 1, false),
            ("_offset", 1, false),
            ("_timestamp", 0, false),
            ("_key", 1, false),
            ("card", 1, true),
            ("email", 1, false),
            ("email#last4", 1, false),
            ("x", 1, false),
            ("_extra", 0, false),
        ]
    );
}
