//! Tables with their keys in memory: the whole of Sealflow on the way from records to encrypted Parquet and back, except
//! Kafka, KMS and storage; and the same rows in plain Parquet by the same crate.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression as ParquetCompression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use sealflow::acl::Identity;
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::envelope::read_header;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{DomainKeys, OpeningKeys, SealingKeys};
use sealflow::pipeline::{Format, KeysPlacement, Record, Route, SealTransform, apply_all};
use sealflow::policy::{FixedPolicies, PolicySource, VerifiedPolicy};
use sealflow::seal::UsageLimits;
use sealflow::table::{
    Asking, Compression, EmbeddedPolicies, FileId, FileSource, Origin, Query, RowEncoder, TableKeys, TableLayout,
    TableReader, TableSchema, TableWriter, WriteOptions,
};
use tokio::runtime::Runtime;

use crate::Error;
use crate::engine::samples;

const NOW: UnixMillis = UnixMillis(1_767_225_600_000);
const FOLDER: &str = "topic=payments/date=2026-01-01";
const READER: &str = "arn:aws:iam::111122223333:role/analyst";
/// So many records a schema is inferred from.
const SEEN: u64 = 2_000;
/// The fields that are protected.
pub const PROTECTED: [&str; 4] = ["client_ip", "user.email", "user.name", "payment.cards[*].number"];

/// How the columns of a policy are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// As they are, in columns under keys of their own.
    Column,
    /// Each value sealed for itself.
    Value,
}

/// A table of sample records under a policy of its own.
pub struct Table {
    runtime: Runtime,
    policy: Arc<VerifiedPolicy>,
    layout: Arc<TableLayout>,
    seal: SealTransform,
    keys: TableKeys,
    reader: TableReader,
    who: Identity,
}

/// Rows on their way into files, with the envelopes of what is sealed in them.
pub struct Batches {
    /// The rows.
    pub rows: Vec<RecordBatch>,
    envelopes: Vec<Vec<u8>>,
}

impl Table {
    /// Of the protected fields, by column or by value.
    pub fn new(protection: Protection) -> Result<Self, Error> {
        let policy = VerifiedPolicy::unsigned_for_development(policy(protection).as_bytes())
            .map_err(|error| format!("{error:?}"))?;
        let policy = Arc::new(policy);
        let (kms, catalogue) = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
        let clock = Arc::new(ManualClock::at(NOW));
        let policies: Arc<dyn PolicySource> = Arc::new(FixedPolicies::new(vec![Arc::clone(&policy)]));
        let (age, limits) = (Duration::from_secs(300), UsageLimits::STANDARD);
        let domains = DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age);
        let sealer = DirectSealer {
            keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), limits),
            domains: domains.clone(),
        };
        let seen = samples(SEEN);
        let schema = TableSchema::infer("payments", seen.iter().filter_map(|record| record.value.as_deref()))?;
        let reader = TableReader::new(
            policies.clone(),
            EmbeddedPolicies::Development,
            OpeningKeys::of(
                kms.clone(),
                catalogue.clone(),
                policies.clone(),
                clock.clone(),
                age,
                1_000,
            ),
            OpeningKeys::new(kms.clone(), catalogue.clone(), policies, clock.clone(), age, 1_000),
            domains,
        );
        Ok(Self {
            runtime: tokio::runtime::Builder::new_current_thread().enable_time().build()?,
            layout: Arc::new(TableLayout::new(&schema, policy.policy())?),
            seal: SealTransform::new(policy.clone(), Format::Json, KeysPlacement::Header, sealer)?.for_table(),
            keys: TableKeys::of(kms, catalogue, clock, limits),
            policy,
            reader,
            who: Identity::from_arn(READER).map_err(|error| format!("{error:?}"))?,
        })
    }

    /// The rows of these records, sealed where the policy says so.
    pub fn rows(&self, records: &[Record]) -> Result<Batches, Error> {
        let outcomes = self.runtime.block_on(apply_all(&self.seal, records))?;
        let mut encoder = RowEncoder::new(Arc::clone(&self.layout), Format::Json);
        let (mut rows, mut envelopes) = (Vec::new(), Vec::new());
        for outcome in outcomes {
            if outcome.route != Route::Target {
                return Err("a record was set aside".into());
            }
            for header in &outcome.record.headers {
                let value = header.value.as_deref().unwrap_or_default();
                for envelope in read_header(value)? {
                    if !envelopes.iter().any(|known: &Vec<u8>| known == envelope) {
                        envelopes.push(envelope.to_vec());
                    }
                }
            }
            encoder.append(&outcome.record)?;
            if encoder.rows() == 8_192 {
                rows.push(encoder.finish()?.with_extra(None)?);
            }
        }
        if encoder.rows() > 0 {
            rows.push(encoder.finish()?.with_extra(None)?);
        }
        Ok(Batches { rows, envelopes })
    }

    /// Begins a file.
    pub fn begin<W: Write + Send>(&self, options: WriteOptions, out: W) -> Result<TableWriter<W>, Error> {
        let place = (FOLDER, FileId::random()?);
        let writer = TableWriter::begin(&self.policy, &self.layout, place, &self.keys, options, out);
        Ok(self.runtime.block_on(writer)?)
    }

    /// Adds rows to a file.
    pub fn add<W: Write + Send>(writer: &mut TableWriter<W>, batches: &Batches) -> Result<(), Error> {
        for envelope in &batches.envelopes {
            writer.add_envelope(envelope)?;
        }
        for rows in &batches.rows {
            writer.write(rows)?;
        }
        Ok(())
    }

    /// A file of these rows, in memory.
    pub fn write(&self, batches: &Batches, options: WriteOptions) -> Result<Bytes, Error> {
        let mut writer = self.begin(options, Vec::new())?;
        Self::add(&mut writer, batches)?;
        Ok(writer
            .finish(&origin(batches.rows.iter().map(RecordBatch::num_rows).sum()))?
            .1
            .into())
    }

    /// Reads a file to its end; says how many rows it showed.
    pub fn read(&self, source: Arc<dyn FileSource>) -> Result<u64, Error> {
        let path = format!("payments/{FOLDER}/a.parquet");
        let asking = Asking {
            who: &self.who,
            purpose: None,
            now: NOW,
        };
        self.runtime.block_on(async {
            let table = self.reader.open(source, &path, asking).await?;
            if table
                .leaves()
                .iter()
                .any(|leaf| !matches!(leaf.state, sealflow::table::LeafState::Shown { .. }))
            {
                return Err("a column is not shown".into());
            }
            let mut rows = table.rows(&Query::default(), asking, "a.parquet")?;
            let mut count = 0;
            while let Some(batch) = rows.next().await? {
                count += std::hint::black_box(batch).num_rows() as u64;
                drop(rows.take_decisions());
            }
            Ok(count)
        })
    }
}

/// Where rows of samples come from.
#[must_use]
pub fn origin(rows: usize) -> Origin {
    Origin {
        schema: 1,
        topic: "payments".to_owned(),
        partition: 0,
        first: 0,
        last: i64::try_from(rows).unwrap_or(i64::MAX) - 1,
        rows: rows as u64,
    }
}

/// The same rows in plain Parquet, as somebody writes it who has Arrow and this crate.
pub fn write_plain(rows: &[RecordBatch], compression: Compression, group_rows: usize) -> Result<Bytes, Error> {
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(group_rows))
        .set_compression(match compression {
            Compression::Zstd => ParquetCompression::ZSTD(ZstdLevel::try_new(3)?),
            Compression::Snappy => ParquetCompression::SNAPPY,
            Compression::None => ParquetCompression::UNCOMPRESSED,
        })
        .build();
    let schema = rows.first().ok_or("no rows")?.schema();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties))?;
    for rows in rows {
        writer.write(rows)?;
    }
    Ok(writer.into_inner()?.into())
}

/// Reads plain Parquet to its end; says how many rows there were.
pub fn read_plain(file: &Bytes) -> Result<u64, Error> {
    let rows = ParquetRecordBatchReaderBuilder::try_new(file.clone())?
        .with_batch_size(8_192)
        .build()?;
    let mut count = 0;
    for batch in rows {
        count += std::hint::black_box(batch?).num_rows() as u64;
    }
    Ok(count)
}

fn policy(protection: Protection) -> String {
    let at = match protection {
        Protection::Column => ", at: column",
        Protection::Value => "",
    };
    let column = |path: &str| format!("  - {{ path: \"{path}\", key: pii, acl: pii{at} }}\n");
    let columns: String = PROTECTED.map(column).concat();
    format!(
        r#"
dataset: payments
version: 1
keys:
  pii: {{ arn: "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111" }}
  ops: {{ arn: "arn:aws:kms:eu-central-1:111122223333:key/22222222-2222-2222-2222-222222222222" }}
acls:
  pii: {{ allow: ["{READER}"] }}
  ops: {{ allow: ["{READER}"] }}
columns:
{columns}table: {{ key: ops, acl: ops }}
"#
    )
}
