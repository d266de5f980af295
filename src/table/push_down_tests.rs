//! Pages that a filter or a limit rules out are not fetched, and what is shown is the same as if all had been.

use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex};

use arrow::array::{Array as _, AsArray as _, RecordBatch};
use arrow::datatypes::Int64Type;
use async_trait::async_trait;
use bytes::Bytes;
use parquet::data_type::FixedLenByteArray;
use parquet::file::metadata::{ColumnChunkMetaDataBuilder, ParquetMetaData};
use parquet::file::statistics::{Statistics, ValueStatistics};
use proptest::prelude::*;

use super::read::reader_metadata;
use super::tests::Bench;
use super::*;
use crate::acl::Identity;
use crate::clock::UnixMillis;
use crate::pipeline::{Format, Headers, Position, Record, Timestamp};

const ROWS: i64 = 70_000;
const GROUP: usize = 45_000;
const POLICY: &str = r#"
dataset: payments
version: 1
keys:
  pii: { arn: "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111" }
  ops: { arn: "arn:aws:kms:eu-central-1:111122223333:key/22222222-2222-2222-2222-222222222222" }
acls:
  pii: { allow: ["arn:aws:iam::111122223333:role/analyst"] }
  ops: { allow: ["arn:aws:iam::111122223333:role/analyst", "arn:aws:iam::111122223333:role/support"] }
columns:
  - { path: card, key: pii, acl: pii, at: column }
  - { path: note, key: pii, acl: pii, at: column }
table: { key: ops, acl: ops }
"#;
const SCHEMA: &str = r#"
dataset: payments
version: 1
fields:
  - { name: id, type: int64 }
  - { name: card, type: string }
  - { name: note, type: string }
  - { name: amount, type: int64 }
  - { name: price, type: decimal, precision: 30, scale: 2 }
  - { name: tags, type: list, items: { type: struct, fields: [{ name: tag, type: int64 }] } }
"#;
const PLACE: &str = "topic=orders/date=2026-01-01";
const PATH: &str = "/data/payments/topic=orders/date=2026-01-01/a.parquet";

/// A file, and how to read it.
struct Whole {
    bench: Bench,
    file: Bytes,
    rows: RecordBatch,
}

static WHOLE: LazyLock<Whole> = LazyLock::new(|| runtime().block_on(whole()));

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .unwrap()
}

/// Nothing in it repeats, so that no page is small; where numbers are not there they are not for whole pages.
fn record(n: i64) -> Record {
    let mixed = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let note: String = (1..8)
        .map(|k| format!("{:016x}", mixed.rotate_left(k * 9).wrapping_mul(mixed | 1)))
        .collect();
    let amount = match n / 15_000 % 2 {
        0 => format!("{}", n / 100 - 200),
        _ => "null".to_owned(),
    };
    let tags: Vec<String> = (0..n % 4).map(|tag| format!("{{\"tag\":{}}}", n * 10 + tag)).collect();
    let value = format!(
        r#"{{"id":{n},"card":"4111-{n:07}","note":"{note}","amount":{amount},"price":{n}.25,"tags":[{}]}}"#,
        tags.join(",")
    );
    Record {
        position: Position {
            topic: Arc::from("orders"),
            partition: 0,
            offset: n,
        },
        timestamp: Timestamp::Appended(1_767_225_600_000 + n),
        key: None,
        value: Some(value.into()),
        headers: Headers::new(),
    }
}

async fn whole() -> Whole {
    let bench = Bench::new(POLICY);
    let schema = TableSchema::parse(SCHEMA.as_bytes()).unwrap();
    let layout = Arc::new(TableLayout::new(&schema, bench.policy.policy()).unwrap());
    let options = WriteOptions {
        compression: Compression::None,
        row_group_rows: GROUP,
        threads: 2,
        ..WriteOptions::default()
    };
    let place = (PLACE, FileId::random().unwrap());
    let mut writer = TableWriter::begin(&bench.policy, &layout, place, bench.keys(), options, Vec::new())
        .await
        .unwrap();
    let mut encoder = RowEncoder::new(Arc::clone(&layout), Format::Json);
    for n in 0..ROWS {
        encoder.append(&record(n)).unwrap();
    }
    writer
        .write(&encoder.finish().unwrap().with_extra(None).unwrap())
        .unwrap();
    let origin = Origin {
        schema: 1,
        topic: "orders".to_owned(),
        partition: 0,
        first: 0,
        last: ROWS - 1,
        rows: ROWS as u64,
    };
    let (_, file) = writer.finish(&origin).unwrap();
    let file = Bytes::from(file);
    let (rows, _) = read(&bench, &file, &Query::default()).await.unwrap();
    assert_eq!(rows.num_rows() as i64, ROWS);
    Whole { bench, file, rows }
}

/// A file that counts what is asked of it.
struct Counted(Bytes, Arc<Mutex<Vec<Range<u64>>>>);

#[async_trait]
impl FileSource for Counted {
    fn size(&self) -> u64 {
        self.0.size()
    }

    async fn range(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        self.1.lock().unwrap().push(range.clone());
        self.0.range(range).await
    }
}

/// The rows, and the ranges that were read behind the footer's.
async fn read(bench: &Bench, file: &Bytes, query: &Query) -> Result<(RecordBatch, Vec<Range<u64>>), TableError> {
    let who = Identity::from_arn("arn:aws:iam::111122223333:role/analyst").unwrap();
    let asking = Asking {
        who: &who,
        purpose: None,
        now: UnixMillis(1_767_225_600_000),
    };
    let ranges = Arc::new(Mutex::default());
    let source = Arc::new(Counted(file.clone(), Arc::clone(&ranges)));
    let table = bench.reader().open(source, PATH, asking).await?;
    assert_eq!(ranges.lock().unwrap().len(), 1, "the footer is one read");
    ranges.lock().unwrap().clear();
    let mut rows = table.rows(query, asking, "a.parquet")?;
    let mut batches = Vec::new();
    while let Some(batch) = rows.next().await? {
        batches.push(batch);
    }
    let batch = arrow::compute::concat_batches(rows.schema(), &batches).unwrap();
    let ranges = ranges.lock().unwrap().clone();
    Ok((batch, ranges))
}

fn query(columns: &[&str], filter: &str) -> Query {
    Query {
        columns: (!columns.is_empty()).then(|| columns.iter().map(|&name| name.to_owned()).collect()),
        filter: if filter.is_empty() {
            Filter::default()
        } else {
            Filter::parse(filter).unwrap()
        },
        ..Query::default()
    }
}

fn bytes(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

#[test]
fn a_filter_by_one_value_fetches_its_pages_and_not_the_column_chunks() {
    let whole = &*WHOLE;
    let read = |query: Query| runtime().block_on(read(&whole.bench, &whole.file, &query)).unwrap();
    let (rows, all) = read(query(&["note"], ""));
    assert_eq!(rows.num_rows() as i64, ROWS);
    for filter in [
        "id = 20500",
        "card = '4111-0020500'",
        "_offset = 20500",
        "id >= 20500 and id < 20501",
    ] {
        let (rows, some) = read(query(&["note"], filter));
        assert_eq!(
            rows.column_by_name("note").unwrap().as_ref(),
            whole.rows.column_by_name("note").unwrap().slice(20_500, 1).as_ref(),
            "{filter}"
        );
        // One page in eight of the notes, one of the column that is compared, and their dictionaries.
        assert!(
            bytes(&some) * 5 < bytes(&all) * 2,
            "{filter}: {} of {}",
            bytes(&some),
            bytes(&all)
        );
        assert!(some.len() <= 6, "{filter}: {some:?}");
    }
    // Row groups and pages that are ruled out cost nothing at all.
    for filter in ["id > 1000000", "card = '9'"] {
        let (rows, some) = read(query(&["note"], filter));
        assert_eq!((rows.num_rows(), some.len()), (0, 0), "{filter}");
    }
}

#[test]
fn a_limit_fetches_the_first_pages_and_a_whole_read_few_large_ranges() {
    let whole = &*WHOLE;
    let read = |query: Query| runtime().block_on(read(&whole.bench, &whole.file, &query)).unwrap();
    let (_, all) = read(query(&[], ""));
    assert!(all.len() <= 8, "{all:?}");
    let limited = Query {
        limit: Some(10),
        ..query(&[], "")
    };
    let (rows, some) = read(limited);
    assert_eq!(rows, whole.rows.slice(0, 10));
    assert!(bytes(&some) * 3 < bytes(&all), "{} of {}", bytes(&some), bytes(&all));
}

#[test]
fn a_changed_page_index_is_refused_where_it_is_used() {
    let whole = &*WHOLE;
    let runtime = runtime();
    let asked = query(&["id"], "id = 20500");
    let (expected, _) = runtime.block_on(read(&whole.bench, &whole.file, &asked)).unwrap();
    let length = u32::from_le_bytes(whole.file[whole.file.len() - 8..][..4].try_into().unwrap()) as usize;
    let footer = whole.file.len() - 8 - length;
    let mut refused = 0;
    // The indexes stand before the footer.
    for at in (footer - 3_000..footer).step_by(61) {
        let mut changed = whole.file.to_vec();
        changed[at] ^= 1;
        match runtime.block_on(read(&whole.bench, &changed.into(), &asked)) {
            Ok((rows, _)) => assert_eq!(rows, expected, "{at}"),
            Err(error) => {
                assert!(matches!(error, TableError::Damaged), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
}

#[test]
fn numbers_of_a_footer_that_make_no_sense_are_damage() {
    type Change = fn(ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder;
    fn bounds(chunk: ColumnChunkMetaDataBuilder, len: usize) -> ColumnChunkMetaDataBuilder {
        let bound = FixedLenByteArray::from(vec![1; len]);
        let bounds = ValueStatistics::new(Some(bound.clone()), Some(bound), None, None, false);
        chunk.set_statistics(Statistics::FixedLenByteArray(bounds))
    }
    let changes: [(&str, Change); 4] = [
        ("nothing", |chunk| chunk),
        ("a page before the file", |chunk| {
            chunk.set_dictionary_page_offset(None).set_data_page_offset(-1)
        }),
        ("a decimal of no bytes", |chunk| bounds(chunk, 0)),
        ("a decimal of too many bytes", |chunk| bounds(chunk, 17)),
    ];
    let whole = &*WHOLE;
    let who = Identity::from_arn("arn:aws:iam::111122223333:role/analyst").unwrap();
    let asking = Asking {
        who: &who,
        purpose: None,
        now: UnixMillis(1_767_225_600_000),
    };
    let asked = query(&["id"], "price > 20500 and price < 20501");
    for (what, change) in changes {
        let read = runtime().block_on(async {
            let source = Arc::new(whole.file.clone());
            let mut table = whole.bench.reader().open(source, PATH, asking).await.unwrap();
            let metadata = ParquetMetaData::clone(table.metadata.metadata());
            let mut file = metadata.into_builder();
            let groups = file.take_row_groups().into_iter().map(|group| {
                let mut group = group.into_builder();
                let chunks = group.take_columns().into_iter().map(|chunk| {
                    let is_meant = chunk.column_path().string() == "price";
                    let chunk = chunk.into_builder();
                    if is_meant { change(chunk) } else { chunk }.build().unwrap()
                });
                let chunks = chunks.collect();
                group.set_column_metadata(chunks).build().unwrap()
            });
            let groups = groups.collect();
            table.metadata = reader_metadata(file.set_row_groups(groups).build()).unwrap();
            let mut rows = table.rows(&asked, asking, "a.parquet")?;
            rows.next().await.map(|batch| batch.map_or(0, |batch| batch.num_rows()))
        });
        match (what, read) {
            ("nothing", read) => assert_eq!(read.unwrap(), 1),
            (_, read) => assert!(matches!(read, Err(TableError::Damaged)), "{what}: {read:?}"),
        }
    }
}

/// Whether the row passes, told from the value itself.
fn passes(rows: &RecordBatch, row: usize, column: &str, compare: &str, constant: i64) -> bool {
    let ordering = if column == "card" {
        let text = rows.column_by_name("card").unwrap().as_string::<i32>().value(row);
        text.cmp(format!("4111-{constant:07}").as_str())
    } else {
        let numbers = rows.column_by_name(column).unwrap().as_primitive::<Int64Type>();
        if numbers.is_null(row) {
            return false;
        }
        numbers.value(row).cmp(&constant)
    };
    match compare {
        "=" => ordering.is_eq(),
        "!=" => ordering.is_ne(),
        "<" => ordering.is_lt(),
        "<=" => ordering.is_le(),
        ">" => ordering.is_gt(),
        _ => ordering.is_ge(),
    }
}

fn term() -> impl Strategy<Value = (&'static str, &'static str, i64)> {
    let column = prop::sample::select(vec!["id", "card", "amount", "_offset"]);
    let compare = prop::sample::select(vec!["=", "!=", "<", "<=", ">", ">="]);
    // Ends of pages and row groups too.
    let constant = prop_oneof![
        0..ROWS,
        -250_i64..600,
        prop::sample::select(vec![0, 14_999, 15_000, 44_999, 45_000, 69_999])
    ];
    (column, compare, constant)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_the_same_with_and_without_what_is_pushed_down(
        terms in prop::collection::vec(term(), 1..4),
        limit in prop::option::of(1_u64..60_000),
        batch_rows in prop::sample::select(vec![1_000_usize, 8_192, 50_000]),
    ) {
        let whole = &*WHOLE;
        let text: Vec<String> = terms
            .iter()
            .map(|(column, compare, constant)| match *column {
                "card" => format!("card {compare} '4111-{constant:07}'"),
                column => format!("{column} {compare} {constant}"),
            })
            .collect();
        let asked = Query { limit, batch_rows, ..query(&["id", "note", "amount", "tags"], &text.join(" and ")) };
        let (rows, _) = runtime().block_on(read(&whole.bench, &whole.file, &asked)).unwrap();
        let kept: Vec<u64> = (0..ROWS as usize)
            .filter(|row| terms.iter().all(|(column, compare, constant)| passes(&whole.rows, *row, column, compare, *constant)))
            .take(usize::try_from(limit.unwrap_or(u64::MAX)).unwrap())
            .map(|row| row as u64)
            .collect();
        prop_assert_eq!(rows.num_rows(), kept.len(), "{:?}", text);
        let indices = arrow::array::UInt64Array::from(kept);
        for column in ["id", "note", "amount", "tags"] {
            let all = whole.rows.column_by_name(column).unwrap();
            let expected = arrow::compute::take(all, &indices, None).unwrap();
            prop_assert_eq!(rows.column_by_name(column).unwrap().as_ref(), expected.as_ref(), "{:?} {}", text, column);
        }
    }
}
