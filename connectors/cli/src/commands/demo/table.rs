//! The same records as a table: a topic landed in encrypted Parquet, read as three principals, tampered with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::json::LineDelimitedWriter;
use bytes::Bytes;
use sealflow::acl::Identity;
use sealflow::clock::Clock as _;
use sealflow::keys::{DomainKeys, OpeningKeys};
use sealflow::pipeline::{BatchLimits, Counters, Format};
use sealflow::policy::OwnerKey;
use sealflow::seal::UsageLimits;
use sealflow::table::landing::{FileStore, Landing, PartitionBy, RollLimits, TableEdition, TableParts};
use sealflow::table::{
    Asking, EmbeddedPolicies, FileId, OpenTable, Origin, Query, TableError, TableKeys, TableLayout, TableReader,
    TableSchema, TableWriter, WriteOptions,
};
use sealflow_kafka::{DeadLetters, KafkaSource, LandingCounters, LandingOptions, LandingRunner, Shutdown};
use sealflow_storage::{BucketConfig, Location, Place};
use tokio::sync::watch;

use super::bench::{Bench, TOPICS, Who, policy_yaml, signed_policy};
use super::refusals::Refusal;
use super::stream::{joined, produce, wrong};
use crate::clock::MachineClock;
use crate::failure::Result;
use crate::landing::{Lander, PlaceFiles};
use crate::metrics::Metrics;
use crate::reload::Reloading;

/// Records that go into the table: fewer than the mock cluster keeps.
const RECORDS: u64 = 20_000;
/// What is asked for when somebody reads.
const COLUMNS: [&str; 3] = ["id", "user", "payment"];
const SCHEMA: &str = "
dataset: payments
version: 1
fields:
  - { name: id, type: string }
  - { name: time, type: timestamp }
  - { name: client_ip, type: string }
  - { name: user, type: struct, fields: [ { name: email, type: string }, { name: country, type: string } ] }
  - name: payment
    type: struct
    fields:
      - { name: amount, type: decimal, precision: 12, scale: 2 }
      - { name: cards, type: list, items: { type: struct, fields: [ { name: number, type: string } ] } }
";

/// What the table showed.
pub(super) struct Shown {
    pub(super) records: u64,
    pub(super) files: usize,
    pub(super) bytes: u64,
    /// Below the table's folder.
    pub(super) first: String,
    /// How many plaintexts were looked for in the files.
    pub(super) secrets: usize,
    /// Each column of a file, and who may see it.
    pub(super) columns: Vec<String>,
    /// Who, and the first row of a file as they see it.
    pub(super) readers: Vec<(&'static str, String)>,
    pub(super) refusals: Vec<Refusal>,
}

/// Lands the records and reads them.
pub(super) async fn run(bench: &Bench, seed: u64, records: u64) -> Result<Shown> {
    let records = records.min(RECORDS);
    let brokers = bench.brokers();
    joined(tokio::task::spawn_blocking(move || produce(&brokers, TOPICS[4], seed, records, None)).await)?;
    let summary = land(bench).await?;
    if summary.records != records || summary.dead_letters != 0 {
        return Err(wrong(&format!(
            "{} of {records} records are in the table",
            summary.records
        )));
    }
    let lake = bench.lake();
    let files = files_below(&lake)?;
    let secrets: Vec<String> = sealflow_samples::generate(seed, records.min(25))
        .flat_map(|sample| sample.secrets)
        .filter(|secret| secret.len() > 8)
        .collect();
    let mut bytes = 0;
    for path in &files {
        let content = read_file(path)?;
        bytes += content.len() as u64;
        for secret in &secrets {
            if content.windows(secret.len()).any(|window| window == secret.as_bytes()) {
                return Err(wrong("a plaintext is in a file of the table"));
            }
        }
    }
    let first = files.first().ok_or_else(|| wrong("the table has no file"))?;
    let content = read_file(first)?;
    let mut columns = Vec::new();
    let mut readers = Vec::new();
    for who in [Who::Auditor, Who::Support] {
        let table = open(bench, who, content.clone(), first)
            .await
            .map_err(|error| failed(&error))?;
        if columns.is_empty() {
            columns = columns_of(&table);
        }
        let row = row(&table, who).await.map_err(|error| failed(&error))?;
        readers.push((who.role(), row));
    }
    if readers[0].1 == readers[1].1 {
        return Err(wrong("a partly permitted principal saw everything"));
    }
    let below = first.strip_prefix(&lake).unwrap_or(first);
    Ok(Shown {
        records,
        files: files.len(),
        bytes,
        first: below.display().to_string(),
        secrets: secrets.len(),
        columns,
        readers,
        refusals: refusals(bench, content, first).await?,
    })
}

/// `sealflow run` of a pipeline to a table, without its configuration.
async fn land(bench: &Bench) -> Result<sealflow_kafka::Summary> {
    let service = bench.service(Who::Pipeline).await?;
    let place = Place::open(&Location::Folder(bench.lake()), &BucketConfig::default()).await?;
    let store: Arc<dyn FileStore> = Arc::new(PlaceFiles(place));
    let parts = TableParts {
        format: Format::Json,
        keys: table_keys(bench).await?,
        sealer: bench.sealer(service),
        options: WriteOptions::default(),
        store: Arc::clone(&store),
    };
    let schema = schema()?;
    let transform = Arc::new(bench.seal_transform(Who::Pipeline).await?.for_table());
    let make = move |policy| {
        let edition = TableEdition::new(
            policy,
            &schema,
            &PartitionBy::default(),
            transform.clone(),
            parts.clone(),
        );
        edition.map(Arc::new).map_err(|error| wrong(&error.to_string()))
    };
    let metrics = Arc::new(Metrics::new("demo-table"));
    let editions = Reloading::new(Arc::clone(&bench.policy), bench.policies(), metrics, Box::new(make))?;
    let landing: Arc<dyn Landing> = Arc::new(Lander {
        editions: Arc::new(editions),
        store,
    });
    let source = KafkaSource {
        brokers: bench.brokers(),
        topics: vec![TOPICS[4].to_owned()],
        pattern: None,
        group: None,
        properties: Default::default(),
    };
    let dead_letters = DeadLetters {
        topic: TOPICS[3].to_owned(),
        max_ratio: 0.01,
        oversize: None,
    };
    let options = LandingOptions {
        pipeline: "demo-table".to_owned(),
        instance: "a".to_owned(),
        dataset: bench.policy.policy().dataset.clone(),
        format: Format::Json,
        partition_by: PartitionBy::default(),
        roll: RollLimits {
            bytes: 64 << 20,
            rows: 1_000_000,
            after: Duration::from_secs(60),
        },
        open_files: 64,
        memory: 64 << 20,
        threads: 1,
        batch: BatchLimits::default(),
        until_end: true,
    };
    let counters = (Arc::new(Counters::default()), Arc::new(LandingCounters::default()));
    let runner = LandingRunner::new(
        (source, Some(dead_letters)),
        options,
        landing,
        bench.catalogue(),
        counters,
    );
    let (_stop, signal) = watch::channel(Shutdown::Run);
    let runner = runner.map_err(|error| wrong(&error.to_string()))?;
    runner.run(signal).await.map_err(|error| wrong(&error.to_string()))
}

async fn table_keys(bench: &Bench) -> Result<TableKeys> {
    let (service, clock) = (bench.service(Who::Pipeline).await?, Arc::new(MachineClock));
    Ok(TableKeys::of(service, bench.catalogue(), clock, UsageLimits::STANDARD))
}

fn schema() -> Result<TableSchema> {
    TableSchema::parse(SCHEMA.as_bytes()).map_err(|_| wrong("the table's schema is refused"))
}

/// Opens a file, which is found at `path`, as somebody.
async fn open(bench: &Bench, who: Who, content: Bytes, path: &Path) -> std::result::Result<OpenTable, TableError> {
    let reader = reader(bench, who).await.map_err(|_| TableError::Damaged)?;
    let identity = identity(who)?;
    let asking = Asking {
        who: &identity,
        purpose: None,
        now: MachineClock.now(),
    };
    reader
        .open(Arc::new(content), &path.display().to_string(), asking)
        .await
}

fn identity(who: Who) -> std::result::Result<Identity, TableError> {
    Identity::from_arn(&who.arn()).map_err(|_| TableError::Damaged)
}

async fn reader(bench: &Bench, who: Who) -> Result<TableReader> {
    const AGE: Duration = Duration::from_secs(300);
    let (service, policies, clock) = (bench.service(who).await?, bench.policies(), Arc::new(MachineClock));
    let embedded = EmbeddedPolicies::OwnedBy(bench.trusted.as_ref().clone());
    let (keys, catalogue) = (|| Arc::clone(&service) as _, || bench.catalogue());
    Ok(TableReader::new(
        policies.clone(),
        embedded,
        OpeningKeys::of(keys(), catalogue(), policies.clone(), clock.clone(), AGE, 1_000),
        OpeningKeys::new(keys(), catalogue(), policies.clone(), clock.clone(), AGE, 1_000),
        DomainKeys::new(keys(), catalogue(), policies, clock, AGE),
    ))
}

/// The first row that has a card, as JSON.
async fn row(table: &OpenTable, who: Who) -> std::result::Result<String, TableError> {
    let identity = identity(who)?;
    let asking = Asking {
        who: &identity,
        purpose: None,
        now: MachineClock.now(),
    };
    let query = Query {
        columns: Some(COLUMNS.map(str::to_owned).to_vec()),
        limit: Some(1),
        ..Query::default()
    };
    let mut rows = table.rows(&query, asking, "demo")?;
    let mut text = Vec::new();
    while let Some(batch) = rows.next().await? {
        let mut writer = LineDelimitedWriter::new(&mut text);
        let written = writer.write(&batch).and_then(|()| writer.finish());
        written.map_err(|_| TableError::Damaged)?;
    }
    Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
}

fn columns_of(table: &OpenTable) -> Vec<String> {
    let leaves = table.leaves().iter();
    leaves
        .map(|leaf| match (&leaf.leaf.sealed, &leaf.label) {
            (Some(_), _) => format!("{}: values sealed one by one", leaf.leaf.column),
            (None, Some(label)) => format!("{}: under the key of {label}", leaf.leaf.column),
            (None, None) => format!("{}: under the key of the footer", leaf.leaf.column),
        })
        .collect()
}

/// What must not work on a file of a table.
async fn refusals(bench: &Bench, content: Bytes, path: &Path) -> Result<Vec<Refusal>> {
    let mut refusals = Vec::new();
    let mut refused = |who, answer: std::result::Result<String, TableError>| match answer {
        Err(error) => {
            refusals.push(Refusal {
                who,
                answer: error.to_string(),
            });
            Ok(())
        }
        Ok(_) => Err(wrong(&format!("{who} was opened"))),
    };
    let reading = async |who: Who, content: Bytes, path: &Path| {
        let table = open(bench, who, content, path).await?;
        row(&table, who).await
    };
    refused(
        "role/intern, in no ACL",
        reading(Who::Intern, content.clone(), path).await,
    )?;

    // In the columns, which begin behind `PARE`; the footer stays.
    let mut tampered = content.to_vec();
    for at in (4..tampered.len() / 2).step_by(97) {
        tampered[at] ^= 1;
    }
    refused(
        "a file with changed bytes",
        reading(Who::Auditor, tampered.into(), path).await,
    )?;

    let elsewhere = bench
        .lake()
        .join("payments/topic=payments.lake/date=1999-01-01/moved.parquet");
    refused(
        "a file moved to another day",
        reading(Who::Auditor, content, &elsewhere).await,
    )?;

    let forged = forged_file(bench, path).await?;
    refused(
        "a file whose ACL somebody else has signed",
        reading(Who::Intern, forged, path).await,
    )?;
    Ok(refusals)
}

/// A file as the pipeline would write it, under a policy that grants everything to the intern, signed by a key of his.
async fn forged_file(bench: &Bench, path: &Path) -> Result<Bytes> {
    let yaml = policy_yaml(&bench.key_arn).replace(&Who::Auditor.arn(), &Who::Intern.arn());
    let forger = OwnerKey::generate().map_err(|error| wrong(&error.to_string()))?;
    let (policy, _) = signed_policy(&yaml, &forger)?;
    let layout = TableLayout::new(&schema()?, policy.policy()).map_err(|error| wrong(&error.to_string()))?;
    let (layout, keys) = (Arc::new(layout), table_keys(bench).await?);
    let dataset = bench.lake().join(&policy.policy().dataset);
    let folder = path.parent().and_then(|folder| folder.strip_prefix(&dataset).ok());
    let folder = folder
        .and_then(Path::to_str)
        .ok_or_else(|| wrong("a file is not below its dataset"))?;
    let place = (folder, FileId::random().map_err(|error| failed(&error))?);
    let policy = Arc::new(policy);
    let writer = TableWriter::begin(&policy, &layout, place, &keys, WriteOptions::default(), Vec::new()).await;
    let origin = Origin {
        schema: 1,
        topic: TOPICS[4].to_owned(),
        partition: 0,
        first: 0,
        last: 0,
        rows: 0,
    };
    let (_, bytes) = writer
        .and_then(|writer| writer.finish(&origin))
        .map_err(|error| failed(&error))?;
    Ok(bytes.into())
}

fn failed(error: &TableError) -> crate::failure::Failure {
    wrong(&error.to_string())
}

fn read_file(path: &Path) -> Result<Bytes> {
    let content = std::fs::read(path).map_err(|error| crate::failure::Failure::io("read", path, &error))?;
    Ok(content.into())
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let io = |error| crate::failure::Failure::io("read", folder, &error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_dir() {
            found.extend(files_below(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
