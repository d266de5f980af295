//! Writing encrypted Parquet: rows in, row groups out, each column under its key.
//!
//! What is written leaves in plaintext only inside the process: pages are encrypted before they reach the output.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{
    ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, ArrowWriterOptions, compute_leaves,
};
use parquet::basic::{Compression as ParquetCompression, ZstdLevel};
use parquet::encryption::encrypt::FileEncryptionProperties;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;
use serde::{Deserialize, Serialize};

use super::TableError;
use super::keys::{FileKeys, TableKeys};
use super::layout::{LeafPlace, TableLayout};
use super::place::{Claims, FileId};
use crate::keys::envelope::{MAX_ENVELOPE_BYTES, text_of};
use crate::policy::{Footer, Profile, VerifiedPolicy};

/// The metadata key of the signed policy.
pub(super) const POLICY_KEY: &str = "sealflow.policy";
/// The metadata key of an unsigned policy.
pub(super) const UNSIGNED_POLICY_KEY: &str = "sealflow.policy.unsigned";
/// The metadata key of the envelopes of the sealed values: their text forms, one per line, as in a `.sfkeys` file.
pub(super) const KEYS_KEY: &str = "sealflow.keys";
/// The metadata key of what the file is: JSON of [`Origin`].
pub(super) const FILE_KEY: &str = "sealflow.file";

/// The most envelopes of sealed values in one file.
pub(super) const MAX_FILE_ENVELOPES: usize = 4_096;
/// The most row groups that the encryption of Parquet counts.
const MAX_ROW_GROUPS: usize = 32_767;
/// A row group of the DuckDB profile.
const DUCKDB_ROWS: usize = 65_536;
/// A page that a column chunk does not exceed.
const ONE_PAGE: usize = 1 << 30;

/// How pages are compressed, before they are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Zstandard, level 3.
    #[default]
    Zstd,
    /// Snappy.
    Snappy,
    /// Not at all.
    None,
}

/// How files are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOptions {
    /// How pages are compressed.
    pub compression: Compression,
    /// Most rows of a row group.
    pub row_group_rows: usize,
    /// Most bytes of a row group in memory, as Arrow counts them.
    pub row_group_bytes: usize,
    /// How many columns are encoded at the same time.
    pub threads: usize,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            compression: Compression::default(),
            row_group_rows: 1 << 20,
            row_group_bytes: 64 << 20,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// Where the rows of a file come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Version of the table's schema.
    pub schema: u64,
    /// Topic, or file that was read.
    pub topic: String,
    /// Partition of the topic.
    pub partition: i32,
    /// Offset of the first row.
    pub first: i64,
    /// Offset of the last row.
    pub last: i64,
    /// How many rows.
    pub rows: u64,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Rows.
    pub rows: u64,
    /// Row groups.
    pub row_groups: usize,
    /// Bytes.
    pub bytes: u64,
}

/// Writes one file. Its work is done on the calling thread and as many others as the options say; call it where
/// blocking is allowed.
pub struct TableWriter<W: Write + Send> {
    writer: SerializedFileWriter<Counted<W>>,
    columns: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    options: WriteOptions,
    buffered: Vec<RecordBatch>,
    buffered_rows: usize,
    buffered_bytes: usize,
    rows: u64,
    row_groups: usize,
    envelopes: BTreeSet<Vec<u8>>,
}

/// An output that counts what it was given.
struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// The columns of one field of the schema, on their way to be encoded.
struct Work {
    field: usize,
    writers: Vec<ArrowColumnWriter>,
}

impl<W: Write + Send> TableWriter<W> {
    /// Begins the file `file` in the folder `partition` below the dataset's root, with fresh keys.
    ///
    /// # Errors
    /// [`TableError`] if the policy has no tables, there is no key, or `out` refuses.
    pub async fn begin(
        policy: &VerifiedPolicy,
        layout: &TableLayout,
        (partition, file): (&str, FileId),
        keys: &TableKeys,
        options: WriteOptions,
        out: W,
    ) -> Result<Self, TableError> {
        let model = policy.policy();
        let mut claims = Claims::new(&model.dataset, partition, file);
        claims.policy = policy.jws().map(str::to_owned);
        if claims.policy.is_none() {
            claims.unsigned_policy = Some(STANDARD.encode(policy.yaml()));
        }
        let keys = FileKeys::fresh(model, layout.leaves(), &claims, keys).await?;
        Self::with_keys(policy, layout, (&claims, file), keys, options, out)
    }

    /// Begins a file that claims `claims`, with these keys.
    pub(super) fn with_keys(
        policy: &VerifiedPolicy,
        layout: &TableLayout,
        (claims, file): (&Claims, FileId),
        keys: FileKeys,
        options: WriteOptions,
        out: W,
    ) -> Result<Self, TableError> {
        let model = policy.policy();
        let rule = model.table.as_ref().ok_or_else(|| TableError::NoTableRule {
            dataset: model.dataset.clone(),
        })?;
        let prefix = (rule.profile == Profile::Standard).then(|| claims.aad_prefix(file, &model.sha256));
        let encryption = encryption(keys, prefix, rule.footer)?;
        let mut options = options;
        options.row_group_rows = options.row_group_rows.max(1);
        if rule.profile == Profile::DuckDb {
            options.row_group_rows = options.row_group_rows.min(DUCKDB_ROWS);
        }
        let properties = properties(layout, claims, options.compression, rule.profile, encryption)?;
        let schema = layout.arrow_schema();
        let writer = ArrowWriter::try_new_with_options(
            Counted { inner: out, bytes: 0 },
            Arc::clone(&schema),
            ArrowWriterOptions::new().with_properties(properties),
        );
        let (writer, columns) = writer.and_then(ArrowWriter::into_serialized_writer).map_err(failed)?;
        Ok(Self {
            writer,
            columns,
            schema,
            options,
            buffered: Vec::new(),
            buffered_rows: 0,
            buffered_bytes: 0,
            rows: 0,
            row_groups: 0,
            envelopes: BTreeSet::new(),
        })
    }

    /// Adds rows. They are kept in memory until a row group is full.
    ///
    /// # Errors
    /// [`TableError::Rows`] for rows of another schema, [`TableError::Output`].
    pub fn write(&mut self, rows: &RecordBatch) -> Result<(), TableError> {
        if rows.schema().fields() != self.schema.fields() {
            return Err(TableError::Rows {
                what: "they are of another schema",
            });
        }
        let mut rest = rows.clone();
        while rest.num_rows() > 0 {
            let room = self.options.row_group_rows - self.buffered_rows;
            let take = room.min(rest.num_rows());
            let now = rest.slice(0, take);
            rest = rest.slice(take, rest.num_rows() - take);
            self.buffered_rows += take;
            self.buffered_bytes += now.get_array_memory_size();
            self.buffered.push(now);
            if self.buffered_rows >= self.options.row_group_rows || self.buffered_bytes >= self.options.row_group_bytes
            {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Adds the envelope of a data key that values of the rows are sealed under.
    ///
    /// # Errors
    /// [`TableError::Rows`] beyond 4,096 of them.
    pub fn add_envelope(&mut self, envelope: &[u8]) -> Result<(), TableError> {
        if self.envelopes.contains(envelope) {
            return Ok(());
        }
        if self.envelopes.len() == MAX_FILE_ENVELOPES || envelope.len() > MAX_ENVELOPE_BYTES {
            return Err(TableError::Rows {
                what: "their values are sealed under more data keys than a file carries",
            });
        }
        self.envelopes.insert(envelope.to_vec());
        Ok(())
    }

    /// How many envelopes were added, and their bytes.
    #[must_use]
    pub fn envelopes(&self) -> (usize, usize) {
        (self.envelopes.len(), self.envelopes.iter().map(Vec::len).sum())
    }

    /// Bytes that were given to the output so far, rows that were added, and bytes of rows in memory.
    #[must_use]
    pub fn sizes(&self) -> (u64, u64, usize) {
        let written = self.writer.bytes_written() as u64;
        (written, self.rows + self.buffered_rows as u64, self.buffered_bytes)
    }

    /// Writes the rows in memory as a row group.
    ///
    /// # Errors
    /// [`TableError`]
    pub fn flush(&mut self) -> Result<(), TableError> {
        if self.buffered_rows == 0 {
            return Ok(());
        }
        if self.row_groups == MAX_ROW_GROUPS {
            return Err(TableError::Rows {
                what: "more row groups than a file carries",
            });
        }
        let batches = std::mem::take(&mut self.buffered);
        let chunks = self.encode(&batches)?;
        let mut group = self.writer.next_row_group().map_err(failed)?;
        for chunk in chunks {
            chunk.append_to_row_group(&mut group).map_err(failed)?;
        }
        group.close().map_err(failed)?;
        self.rows += self.buffered_rows as u64;
        self.row_groups += 1;
        (self.buffered_rows, self.buffered_bytes) = (0, 0);
        Ok(())
    }

    /// Writes what is left, and the footer.
    ///
    /// # Errors
    /// [`TableError`]
    pub fn finish(mut self, origin: &Origin) -> Result<(Written, W), TableError> {
        self.flush()?;
        let lines: Vec<String> = self.envelopes.iter().map(|bytes| text_of(bytes)).collect();
        let mut put = |key: &str, value: String| {
            self.writer
                .append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        };
        put(KEYS_KEY, lines.join("\n"));
        put(FILE_KEY, serde_json::to_string(origin).unwrap_or_default());
        let mut out = self.writer.into_inner().map_err(failed)?;
        out.inner
            .flush()
            .map_err(|error| TableError::Output { kind: error.kind() })?;
        let written = Written {
            rows: self.rows,
            row_groups: self.row_groups,
            bytes: out.bytes,
        };
        Ok((written, out.inner))
    }

    /// Encodes and encrypts the columns of one row group, several at the same time.
    fn encode(&self, batches: &[RecordBatch]) -> Result<Vec<ArrowColumnChunk>, TableError> {
        // The additional data of each page holds the row group's number.
        let mut writers = self
            .columns
            .create_column_writers(self.row_groups)
            .map_err(failed)?
            .into_iter();
        let mut works = VecDeque::new();
        for (field, column) in self.schema.fields().iter().enumerate() {
            let leaves = leaves_of(column.data_type());
            works.push_back(Work {
                field,
                writers: writers.by_ref().take(leaves).collect(),
            });
        }
        let count = works.len();
        let queue = Mutex::new(works);
        let done = Mutex::new(Vec::with_capacity(count));
        let schema = &self.schema;
        let run = || {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(work) = next else { return };
                let field = work.field;
                let chunks = encode_field(schema, work, batches);
                done.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((field, chunks));
            }
        };
        let others = self.options.threads.clamp(1, count.max(1)) - 1;
        std::thread::scope(|scope| {
            for _ in 0..others {
                scope.spawn(run);
            }
            run();
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_unstable_by_key(|(field, _)| *field);
        let mut chunks = Vec::new();
        for (_, of_field) in done {
            chunks.extend(of_field.map_err(failed)?);
        }
        Ok(chunks)
    }
}

impl<W: Write + Send> fmt::Debug for TableWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the writer: its properties hold keys.
        f.debug_struct("TableWriter")
            .field("rows", &self.rows)
            .field("row_groups", &self.row_groups)
            .finish_non_exhaustive()
    }
}

fn encode_field(
    schema: &SchemaRef,
    work: Work,
    batches: &[RecordBatch],
) -> Result<Vec<ArrowColumnChunk>, ParquetError> {
    let Work { field, mut writers } = work;
    for batch in batches {
        let leaves = compute_leaves(schema.field(field), batch.column(field))?;
        for (writer, leaf) in writers.iter_mut().zip(&leaves) {
            writer.write(leaf)?;
        }
    }
    writers.into_iter().map(ArrowColumnWriter::close).collect()
}

/// How many Parquet columns a type has.
fn leaves_of(data_type: &arrow::datatypes::DataType) -> usize {
    use arrow::datatypes::DataType;
    match data_type {
        DataType::Struct(fields) => fields.iter().map(|field| leaves_of(field.data_type())).sum(),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => leaves_of(item.data_type()),
        _ => 1,
    }
}

fn encryption(
    keys: FileKeys,
    prefix: Option<Vec<u8>>,
    footer: Footer,
) -> Result<Arc<FileEncryptionProperties>, TableError> {
    let mut builder = FileEncryptionProperties::builder(keys.footer.key.expose().to_vec())
        .with_footer_key_metadata(keys.footer.material)
        .with_plaintext_footer(footer == Footer::SignedPlaintext);
    if let Some(prefix) = prefix {
        // Stored, because other readers cannot know it; ours compares it.
        builder = builder.with_aad_prefix(prefix).with_aad_prefix_storage(true);
    }
    for (leaf, module) in keys.columns {
        builder = builder.with_column_key_and_metadata(&leaf, module.key.expose().to_vec(), module.material);
    }
    builder.build().map_err(failed)
}

fn properties(
    layout: &TableLayout,
    claims: &Claims,
    compression: Compression,
    profile: Profile,
    encryption: Arc<FileEncryptionProperties>,
) -> Result<WriterProperties, TableError> {
    let policy = match (&claims.policy, &claims.unsigned_policy) {
        (Some(jws), _) => KeyValue::new(POLICY_KEY.to_owned(), jws.clone()),
        (None, yaml) => KeyValue::new(UNSIGNED_POLICY_KEY.to_owned(), yaml.clone()),
    };
    let mut builder = WriterProperties::builder()
        .set_created_by(format!("sealflow {}", env!("CARGO_PKG_VERSION")))
        .set_key_value_metadata(Some(vec![policy]))
        .set_max_row_group_row_count(None)
        // Bloom filters are written in clear (parquet 58 to 60).
        .set_bloom_filter_enabled(false)
        .set_compression(match compression {
            Compression::Zstd => ParquetCompression::ZSTD(ZstdLevel::try_new(3).map_err(failed)?),
            Compression::Snappy => ParquetCompression::SNAPPY,
            Compression::None => ParquetCompression::UNCOMPRESSED,
        })
        .with_file_encryption_properties(encryption);
    if profile == Profile::DuckDb {
        builder = builder
            .set_dictionary_enabled(false)
            .set_data_page_row_count_limit(usize::MAX)
            .set_data_page_size_limit(ONE_PAGE);
    }
    for leaf in layout.leaves() {
        if matches!(leaf.place, LeafPlace::Value { .. } | LeafPlace::Extra) {
            // Ciphertexts do not repeat, do not compress, and their smallest says nothing.
            let path = ColumnPath::new(leaf.path.split('.').map(str::to_owned).collect());
            builder = builder
                .set_column_dictionary_enabled(path.clone(), false)
                .set_column_statistics_enabled(path.clone(), EnabledStatistics::None)
                .set_column_compression(path, ParquetCompression::UNCOMPRESSED);
        }
    }
    Ok(builder.build())
}

/// The crate's texts are not repeated: nobody has checked that they hold no value.
fn failed(error: ParquetError) -> TableError {
    let kind =
        |error: &(dyn std::error::Error + 'static)| error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    match error {
        ParquetError::External(source) => match kind(source.as_ref()) {
            Some(kind) => TableError::Output { kind },
            None => TableError::Rows {
                what: "the table format refuses them",
            },
        },
        _ => TableError::Rows {
            what: "the table format refuses them",
        },
    }
}
