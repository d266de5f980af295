//! An edition as a landing uses it: what its files carry, and what it does not take.

use std::sync::Mutex;

use super::*;
use crate::keys::{KEYS_HEADER, Put};
use crate::pipeline::Header;
use crate::table::landing::{
    Edition as _, EditionError, FileDraft, FileStore, OpenFile, PartitionBy, PlannedFile, StoreError, TableEdition,
    TableParts,
};

/// The bytes of the one file that is written.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<Vec<u8>>>);

#[async_trait::async_trait]
impl FileStore for Store {
    async fn begin(&self, _: &str) -> Result<Box<dyn FileDraft>, StoreError> {
        Ok(Box::new(self.clone()))
    }

    async fn open(&self, _: &str) -> Result<Option<Box<dyn FileSource>>, StoreError> {
        Ok(None)
    }
}

#[async_trait::async_trait]
impl FileDraft for Store {
    async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.0.lock().unwrap().extend_from_slice(&bytes);
        Ok(())
    }

    fn buffered(&self) -> u64 {
        0
    }

    async fn finish(self: Box<Self>) -> Result<Put, StoreError> {
        Ok(Put::Created)
    }
}

const SCHEMA: &str = "{ dataset: payments, version: 1, fields: [ { name: id, type: int64 }, { name: at, type: timestamp }, \
    { name: email, type: string }, { name: card, type: string }, \
    { name: nested, type: struct, fields: [ { name: at, type: timestamp } ] }, \
    { name: items, type: list, items: { type: struct, fields: [ { name: serial, type: string } ] } } ] }";

fn edition(bench: &Bench, by: &PartitionBy, store: Store) -> Result<TableEdition, EditionError> {
    let sealer = DirectSealer {
        keys: bench.sealer.clone(),
        domains: bench.domains(),
    };
    let seal = SealTransform::new(
        bench.policy.clone(),
        Format::Json,
        KeysPlacement::Header,
        sealer.clone(),
    )
    .unwrap();
    let parts = TableParts {
        format: Format::Json,
        keys: bench.keys.clone(),
        sealer,
        options: WriteOptions::default(),
        store: Arc::new(store),
    };
    let schema = TableSchema::parse(SCHEMA.as_bytes()).unwrap();
    TableEdition::new(bench.policy.clone(), &schema, by, Arc::new(seal.for_table()), parts)
}

fn record(offset: i64, text: &str, headers: Vec<Header>) -> Record {
    Record {
        position: Position {
            topic: Arc::from("orders"),
            partition: 3,
            offset,
        },
        timestamp: Timestamp::Appended(1_767_225_600_000),
        key: None,
        value: Some(Bytes::copy_from_slice(text.as_bytes())),
        headers: headers.into(),
    }
}

fn planned() -> PlannedFile {
    PlannedFile {
        folder: PLACE.to_owned(),
        name: "a.parquet".to_owned(),
        id: FileId::random().unwrap(),
        rows: 0,
        first: 0,
        last: 0,
    }
}

async fn add(edition: &TableEdition, file: &mut Box<dyn OpenFile>, record: Record) -> Option<&'static str> {
    let outcome = edition.transform().apply(&[record]).await.unwrap().remove(0);
    assert_eq!(outcome.route, Route::Target);
    file.add(vec![outcome.record]).await.unwrap().remove(0)
}

/// Writes these records, and opens the file as somebody who may see everything.
async fn written(bench: &Bench, records: Vec<Record>) -> (Vec<Option<&'static str>>, OpenTable) {
    let store = Store::default();
    let edition = edition(bench, &PartitionBy::default(), store.clone()).unwrap();
    let mut file = edition.begin(&planned(), "payments/a.parquet").await.unwrap();
    let mut codes = Vec::new();
    for record in records {
        codes.push(add(&edition, &mut file, record).await);
    }
    let origin = Origin {
        schema: 1,
        topic: "orders".to_owned(),
        partition: 3,
        first: 0,
        last: 9,
        rows: file.rows(),
    };
    file.close(&origin).await.unwrap();
    let bytes: Bytes = store.0.lock().unwrap().clone().into();
    let who = Identity::from_arn("arn:aws:iam::111122223333:role/analyst").unwrap();
    let asking = Asking {
        who: &who,
        purpose: None,
        now: NOW,
    };
    let table = bench.reader().open(Arc::new(bytes), PATH, asking).await;
    (codes, table.unwrap())
}

#[tokio::test]
async fn a_file_carries_the_key_of_its_values_also_if_its_first_records_were_no_rows() {
    let bench = Bench::new(POLICY);
    // Nobody has said who may read what is left over.
    let refused = record(1, r#"{"id":1,"email":"a@example.com","more":1}"#, vec![]);
    let row = record(2, r#"{"id":2,"email":"b@example.com"}"#, vec![]);
    let (codes, table) = written(&bench, vec![refused, row]).await;
    assert_eq!(codes, [Some("unknown-field"), None]);
    assert_eq!(table.envelopes(), 1);
}

#[tokio::test]
async fn what_a_producer_gives_out_for_key_envelopes_is_in_no_file() {
    let bench = Bench::new(POLICY);
    // Far more than a file takes.
    let noise = |n: u32| {
        let entry = |k: u8| [n.to_be_bytes().as_slice(), &[k]].concat();
        let entries: Vec<Vec<u8>> = (0..64).map(entry).collect();
        Header {
            name: KEYS_HEADER.into(),
            value: Some(crate::keys::envelope::write_header(entries.iter().map(Vec::as_slice)).into()),
        }
    };
    let with_noise = |n: u32| record(i64::from(n), r#"{"id":2,"email":"b@example.com"}"#, vec![noise(n)]);
    let (codes, table) = written(&bench, (0..70).map(with_noise).collect()).await;
    assert!(codes.iter().all(Option::is_none));
    assert_eq!(table.envelopes(), 1);
}

#[test]
fn no_day_of_a_value_that_is_sealed_becomes_the_name_of_a_folder() {
    let bench = Bench::new(POLICY);
    let by = |path: &str| PartitionBy {
        event_time: Some(path.to_owned()),
        ..PartitionBy::default()
    };
    let made = |path: &str| edition(&bench, &by(path), Store::default()).map(drop);
    assert!(made("at").is_ok());
    assert!(made("nested.at").is_ok());
    assert!(matches!(made("card"), Err(EditionError::SealedEventTime { .. })));
    for path in ["elsewhere", "nested", "nested.other", "at.more"] {
        assert!(
            matches!(made(path), Err(EditionError::UndeclaredEventTime { .. })),
            "{path}"
        );
    }
}
