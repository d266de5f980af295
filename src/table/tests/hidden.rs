//! A thousand true values of each kind of protected column, looked for in files without a key.

use std::collections::{HashMap, HashSet};

use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression as ParquetCompression, ZstdLevel};
use parquet::file::metadata::ParquetMetaDataReader;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::*;

const ROWS: i64 = 1_000;
const VALUES: &str = r#"
dataset: payments
version: 1
fields:
  - { name: id, type: int64 }
  - { name: email, type: string }
  - { name: account, type: int64 }
  - { name: card, type: string }
  - { name: city, type: string }
  - { name: amount, type: int64 }
  - { name: tags, type: list, items: { type: string } }
"#;
const COLUMNS: &str = r#"columns:
  - { path: email, key: pii, acl: pii }
  - { path: account, key: pii, acl: pii }
  - { path: card, key: pii, acl: pii, at: column }
  - { path: city, key: pii, acl: pii, at: column }
  - { path: amount, key: pii, acl: pii, at: column }
  - { path: "tags[*]", key: pii, acl: pii, at: column }
"#;
/// Columns `at: column`, as Parquet names them.
const PROTECTED: [&str; 4] = ["card", "city", "amount", "tags.list.element"];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

fn policy(table: &str) -> String {
    let (head, rest) = POLICY.split_once("columns:").unwrap();
    let table = match table {
        "duckdb" => "table: { key: pii, acl: pii, profile: duckdb }".to_owned(),
        footer => format!("table: {{ key: ops, acl: ops, footer: {footer} }}"),
    };
    assert!(rest.contains("table:"));
    format!("{head}{COLUMNS}{table}\n")
}

/// Values of a column that has few, so that it has a dictionary.
fn city(n: i64) -> String {
    format!("Sankt-Nimmerlein-{:02}", n % 50)
}

fn account(n: i64) -> i64 {
    0x5ea1_f10a_0000_0000 + n * 7_919
}

fn amount(n: i64) -> i64 {
    0x0bad_cafe_0000_0000 + n * 104_729
}

fn tag(n: i64) -> String {
    format!("diagnosis-{n:04}")
}

fn text(n: i64) -> String {
    format!(
        r#"{{"id":{n},"email":"{}","account":{},"card":"{}","city":"{}","amount":{},"tags":["{}"]}}"#,
        email(n),
        account(n),
        card(n),
        city(n),
        amount(n),
        tag(n)
    )
}

/// What each column holds, in every form in which it could stand in a file.
fn true_values() -> HashMap<&'static str, Vec<Vec<u8>>> {
    let texts = |of: &dyn Fn(i64) -> String| (0..ROWS).map(|n| of(n).into_bytes()).collect::<Vec<_>>();
    let numbers = |of: &dyn Fn(i64) -> i64| (0..ROWS).map(|n| of(n).to_le_bytes().to_vec()).collect::<Vec<_>>();
    HashMap::from([
        ("email", texts(&email)),
        ("account", numbers(&account)),
        (
            "account, big endian",
            (0..ROWS).map(|n| account(n).to_be_bytes().to_vec()).collect(),
        ),
        ("account, as text", texts(&|n| account(n).to_string())),
        ("card", texts(&card)),
        ("city", texts(&city)),
        ("amount", numbers(&amount)),
        ("amount, as text", texts(&|n| amount(n).to_string())),
        ("tags", texts(&tag)),
    ])
}

/// How many of the values are in the file.
fn found(file: &[u8], values: &[Vec<u8>]) -> usize {
    let mut by_length: HashMap<usize, HashSet<&[u8]>> = HashMap::new();
    for value in values {
        by_length.entry(value.len()).or_default().insert(value);
    }
    let mut hits = HashSet::new();
    for (length, wanted) in by_length {
        hits.extend(file.windows(length).filter(|window| wanted.contains(window)));
    }
    values.iter().filter(|value| hits.contains(value.as_slice())).count()
}

/// The same rows with nothing protected, by the same crate, with all that it can write beside the values.
fn in_the_open(rows: &RecordBatch, compression: Compression) -> Bytes {
    let properties = WriterProperties::builder()
        .set_bloom_filter_enabled(true)
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_compression(match compression {
            Compression::Zstd => ParquetCompression::ZSTD(ZstdLevel::try_new(3).unwrap()),
            Compression::Snappy => ParquetCompression::SNAPPY,
            Compression::None => ParquetCompression::UNCOMPRESSED,
        })
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), Some(properties)).unwrap();
    writer.write(rows).unwrap();
    writer.into_inner().unwrap().into()
}

async fn protected(bench: &Bench, compression: Compression) -> Bytes {
    let options = WriteOptions {
        compression,
        row_group_rows: 400,
        ..WriteOptions::default()
    };
    bench.written(VALUES, (0..ROWS).map(text), options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_true_values_of_every_protected_column_are_nowhere_in_a_file() {
    let values = true_values();
    for table in ["encrypted", "signed-plaintext", "duckdb"] {
        let bench = Bench::new(&policy(table));
        for compression in [Compression::None, Compression::Snappy, Compression::Zstd] {
            let file = protected(&bench, compression).await;
            for (column, values) in &values {
                assert_eq!(found(&file, values), 0, "{table}, {compression:?}: {column}");
            }
            // Compressed pages are under the cipher too: none can be unpacked.
            assert!(!holds(&file, &ZSTD_MAGIC), "{table}, {compression:?}");

            // The same search finds the same values where nothing protects them.
            let (rows, _) = bench.read(&file, "analyst", &Query::default()).await.unwrap();
            assert_eq!(rows.num_rows(), ROWS as usize);
            let open = in_the_open(&rows, compression);
            for column in ["email", "account", "card", "city", "amount", "tags"] {
                let hits = found(&open, &values[column]);
                // Compressed, the smallest and largest of the statistics at least.
                let least = if compression == Compression::None { 1_000 } else { 2 };
                assert!(hits >= least, "{compression:?}, {column}: {hits}");
            }
            assert_eq!(holds(&open, &ZSTD_MAGIC), compression == Compression::Zstd);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plaintext_footer_has_no_statistics_of_any_column_and_shows_no_value_without_keys() {
    let bench = Bench::new(&policy("signed-plaintext"));
    let file = protected(&bench, Compression::Zstd).await;
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&file).unwrap();
    assert_eq!(
        (metadata.num_row_groups(), metadata.file_metadata().num_rows()),
        (3, ROWS)
    );
    for group in metadata.row_groups() {
        assert_eq!(group.columns().len(), 11);
        for column in group.columns() {
            let path = column.column_path().string();
            assert!(column.crypto_metadata().is_some(), "{path}");
            assert!(column.statistics().is_none(), "{path}");
            assert!(column.page_encoding_stats().is_none(), "{path}");
            assert!(column.bloom_filter_offset().is_none(), "{path}");
        }
    }
    let options = ArrowReaderOptions::new();
    for column in PROTECTED.iter().copied().chain(["id", "email", "account"]) {
        let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file.clone(), options.clone()).unwrap();
        let mask = parquet::arrow::ProjectionMask::columns(builder.parquet_schema(), [column]);
        let rows = builder.with_projection(mask).build().map(|mut rows| rows.next());
        assert!(!matches!(rows, Ok(Some(Ok(_)))), "{column} was read without keys");
    }

    // With keys the statistics are there, of all but the ciphertexts.
    let who = Identity::from_arn("arn:aws:iam::111122223333:role/analyst").unwrap();
    let asking = Asking {
        who: &who,
        purpose: None,
        now: NOW,
    };
    let table = bench.reader().open(Arc::new(file), PATH, asking).await.unwrap();
    for column in table.metadata.metadata().row_group(0).columns() {
        let path = column.column_path().string();
        let is_ciphertext = ["email", "account", "_extra"].contains(&path.as_str());
        assert_eq!(column.statistics().is_none(), is_ciphertext, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_has_a_bloom_filter_since_the_format_library_writes_them_in_clear() {
    for table in ["encrypted", "signed-plaintext", "duckdb"] {
        let bench = Bench::new(&policy(table));
        let file = protected(&bench, Compression::Zstd).await;
        let who = Identity::from_arn("arn:aws:iam::111122223333:role/analyst").unwrap();
        let asking = Asking {
            who: &who,
            purpose: None,
            now: NOW,
        };
        let opened = bench.reader().open(Arc::new(file), PATH, asking).await.unwrap();
        for group in opened.metadata.metadata().row_groups() {
            for column in group.columns() {
                assert!(
                    column.bloom_filter_offset().is_none(),
                    "{table}: {}",
                    column.column_path()
                );
            }
        }
    }
    // The reason: all true values match without a key. Once this fails, filters can be thought about again.
    let cards = (0..ROWS).map(|n| Some(card(n)));
    let cards: arrow::array::ArrayRef = Arc::new(arrow::array::StringArray::from_iter(cards));
    let rows = RecordBatch::try_from_iter([("card", cards)]).unwrap();
    let keys = parquet::encryption::encrypt::FileEncryptionProperties::builder(vec![1; 32])
        .with_column_key("card", vec![2; 32])
        .with_plaintext_footer(true)
        .build()
        .unwrap();
    let properties = WriterProperties::builder()
        .set_column_bloom_filter_enabled(ColumnPath::from("card"), true)
        .with_file_encryption_properties(keys)
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), Some(properties)).unwrap();
    writer.write(&rows).unwrap();
    let file = Bytes::from(writer.into_inner().unwrap());
    assert_eq!(found(&file, &true_values()["card"]), 0);
    // Its header says what it is: a Thrift struct, and behind it the bits. Whoever looks for one finds it.
    let sealed = parquet::encryption::decrypt::FileDecryptionProperties::builder(vec![1; 32])
        .with_column_key("card", vec![2; 32])
        .build()
        .unwrap();
    let mut options = ArrowReaderOptions::new();
    options = options.with_file_decryption_properties(sealed);
    let with_keys = ParquetRecordBatchReaderBuilder::try_new_with_options(file.clone(), options).unwrap();
    let chunk = with_keys.metadata().row_group(0).column(0);
    let (at, length) = (
        chunk.bloom_filter_offset().unwrap() as usize,
        chunk.bloom_filter_length().unwrap() as usize,
    );
    let filter = parquet::bloom_filter::Sbbf::from_bytes(&file[at..at + length]).unwrap();
    assert!((0..ROWS).all(|n| filter.check(&card(n).as_str())));
    assert!(
        (0..ROWS)
            .filter(|n| filter.check(&format!("none-{n}").as_str()))
            .count()
            < 100
    );
}
