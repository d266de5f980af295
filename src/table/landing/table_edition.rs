//! Files of one version of policy and schema: records sealed, as rows, encrypted.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::bucket::PartitionBy;
use super::edition::Edition;
use super::file::{FileDraft, FileStore, OpenFile};
use super::intent::PlannedFile;
use crate::flow::direct::{DirectError, DirectSealer};
use crate::keys::envelope::{KEYS_HEADER, read_header};
use crate::keys::{KeySpec, Put};
use crate::pipeline::{Format, Record, StopKind, Transform, TransformError, from_direct};
use crate::policy::{ColumnPath, VerifiedPolicy};
use crate::table::keys::spec;
use crate::table::write::MAX_FILE_ENVELOPES;
use crate::table::{
    LayoutError, Origin, RowEncoder, Rows, TableError, TableKeys, TableLayout, TableSchema, TableWriter, WriteOptions,
};

/// A file whose values are under this many data keys takes no more: it carries the envelope of each, at most twice as many.
const MANY_ENVELOPES: usize = MAX_FILE_ENVELOPES / 2;

/// What files of an edition are made with, beside policy and schema.
#[derive(Clone)]
pub struct TableParts {
    /// What a record's value is.
    pub format: Format,
    /// Keys of files.
    pub keys: TableKeys,
    /// Keys of what is sealed into `_extra`.
    pub sealer: DirectSealer,
    /// How files are written.
    pub options: WriteOptions,
    /// Where they go.
    pub store: Arc<dyn FileStore>,
}

/// Why a policy and a schema make no files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EditionError {
    /// The policy says nothing about tables.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Schema and policy do not fit.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The time of the event is sealed: its day would be read from the names of folders.
    #[error("the policy seals {path}, and partition_by would write its day into the names of folders")]
    SealedEventTime {
        /// The path.
        path: String,
    },
    /// The time of the event has no column, so it is sealed into `_extra`.
    #[error(
        "{path} is not in the schema, so it is sealed into _extra, and partition_by would write its day into the names of folders"
    )]
    UndeclaredEventTime {
        /// The path.
        path: String,
    },
}

impl EditionError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Table(error) => error.help(),
            Self::Layout(error) => error.help().to_owned(),
            Self::UndeclaredEventTime { .. } => "declare it in the schema, or take another field".to_owned(),
            Self::SealedEventTime { .. } => {
                "take another field, or none: then the record's time stamp counts".to_owned()
            }
        }
    }
}

/// One version of policy and schema.
pub struct TableEdition {
    policy: Arc<VerifiedPolicy>,
    layout: Arc<TableLayout>,
    schema: u64,
    extra: Option<KeySpec>,
    transform: Arc<dyn Transform>,
    parts: TableParts,
}

impl TableEdition {
    /// An edition of `policy` and `schema`. `transform` is the policy's, for tables.
    ///
    /// # Errors
    /// [`EditionError`]
    pub fn new(
        policy: Arc<VerifiedPolicy>,
        schema: &TableSchema,
        by: &PartitionBy,
        transform: Arc<dyn Transform>,
        parts: TableParts,
    ) -> Result<Self, EditionError> {
        let model = policy.policy();
        if model.table.is_none() {
            let dataset = model.dataset.clone();
            return Err(TableError::NoTableRule { dataset }.into());
        }
        let event_time: Option<ColumnPath> = by.event_time.as_deref().and_then(|path| path.parse().ok());
        if let Some(path) = &event_time
            && model
                .columns
                .iter()
                .any(|rule| rule.path.covers(path) || path.covers(&rule.path))
        {
            return Err(EditionError::SealedEventTime { path: path.to_string() });
        }
        let layout = TableLayout::new(schema, model)?;
        if let Some(path) = &event_time
            && !schema.declares(path)
        {
            return Err(EditionError::UndeclaredEventTime { path: path.to_string() });
        }
        Ok(Self {
            layout: Arc::new(layout),
            schema: schema.version(),
            extra: model.extra_group().and_then(|group| spec(model, &group)),
            transform,
            parts,
            policy,
        })
    }
}

#[async_trait]
impl Edition for TableEdition {
    fn version(&self) -> ([u8; 32], u64) {
        (self.policy.policy().sha256, self.schema)
    }

    fn most_records(&self) -> usize {
        // Keys of a template may be other ones with every record.
        let keys = &self.policy.policy().keys;
        let templates = keys.values().filter(|key| key.name.is_template()).count();
        match templates {
            0 => usize::MAX,
            templates => MANY_ENVELOPES.saturating_sub(4 * keys.len()) / templates,
        }
    }

    fn transform(&self) -> &dyn Transform {
        &*self.transform
    }

    async fn begin(&self, file: &PlannedFile, path: &str) -> Result<Box<dyn OpenFile>, TransformError> {
        let (place, out) = ((file.folder.as_str(), file.id), Shared::default());
        let (keys, options) = (&self.parts.keys, self.parts.options);
        let writer = TableWriter::begin(&self.policy, &self.layout, place, keys, options, out.clone()).await;
        let writer = writer.map_err(failed)?;
        Ok(Box::new(TableFile {
            writer: Some(writer),
            out,
            draft: self.parts.store.begin(path).await?,
            layout: Arc::clone(&self.layout),
            format: self.parts.format,
            schema: self.schema,
            extra: self.extra.clone(),
            sealer: self.parts.sealer.clone(),
            rows: 0,
            written: 0,
        }))
    }
}

/// A file of an edition. Its writer is gone after an error.
struct TableFile {
    writer: Option<TableWriter<Shared>>,
    out: Shared,
    draft: Box<dyn FileDraft>,
    layout: Arc<TableLayout>,
    format: Format,
    schema: u64,
    extra: Option<KeySpec>,
    sealer: DirectSealer,
    rows: u64,
    written: u64,
}

impl TableFile {
    /// Encoding and encrypting is work: it is done where it holds nobody up.
    async fn work(
        &mut self,
        work: impl FnOnce(&mut TableWriter<Shared>) -> Result<(), TableError> + Send + 'static,
    ) -> Result<(), TransformError> {
        let mut writer = self.writer.take().ok_or_else(lost)?;
        let worked = tokio::task::spawn_blocking(move || work(&mut writer).map(|()| writer)).await;
        let writer = worked.map_err(|_| TransformError::bug("writing rows panicked"))?;
        self.writer = Some(writer.map_err(failed)?);
        self.drain().await
    }

    /// Hands on what the writer has written.
    async fn drain(&mut self) -> Result<(), TransformError> {
        let bytes = self.out.take();
        if bytes.is_empty() {
            return Ok(());
        }
        self.written += bytes.len() as u64;
        if let Err(error) = self.draft.write(bytes).await {
            self.writer = None;
            return Err(error.into());
        }
        Ok(())
    }
}

#[async_trait]
impl OpenFile for TableFile {
    async fn add(&mut self, records: Vec<Record>) -> Result<Vec<Option<&'static str>>, TransformError> {
        // Of the transform: it takes away what the producer may have put there.
        let mut envelopes: BTreeSet<Vec<u8>> = BTreeSet::new();
        for header in records.iter().flat_map(|record| &record.headers) {
            if header.name == KEYS_HEADER
                && let Some(value) = &header.value
                && let Ok(found) = read_header(value)
            {
                envelopes.extend(found.into_iter().map(<[u8]>::to_vec));
            }
        }
        let (layout, format) = (Arc::clone(&self.layout), self.format);
        let encoded = tokio::task::spawn_blocking(move || encode(&layout, format, &records)).await;
        let (rows, codes) = encoded.map_err(|_| TransformError::bug("encoding rows panicked"))??;
        let added = rows.len() as u64;
        if added == 0 {
            return Ok(codes);
        }
        let sealed = match (rows.extra(), &self.extra) {
            (Some(plain), Some(spec)) => {
                let (key, sealed) = self.sealer.seal(spec, 0, None, plain).await.map_err(from_direct)?;
                envelopes.insert(key.envelope_bytes.clone());
                Some(sealed)
            }
            _ => None,
        };
        let batch = rows.with_extra(sealed.as_ref());
        let batch = batch.map_err(|_| TransformError::bug("rows do not make a batch"))?;
        self.work(move |writer| {
            envelopes
                .iter()
                .try_for_each(|envelope| writer.add_envelope(envelope))?;
            writer.write(&batch)
        })
        .await?;
        self.rows += added;
        Ok(codes)
    }

    async fn spill(&mut self) -> Result<(), TransformError> {
        self.work(TableWriter::flush).await
    }

    fn rows(&self) -> u64 {
        self.rows
    }

    fn sizes(&self) -> (u64, u64) {
        let held = |writer: &TableWriter<Shared>| writer.sizes().2 + writer.envelopes().1;
        let held = self.writer.as_ref().map_or(0, held) as u64;
        (self.written, held + self.draft.buffered())
    }

    fn is_full(&self) -> bool {
        let many = |writer: &TableWriter<Shared>| writer.envelopes().0 >= MANY_ENVELOPES;
        self.writer.as_ref().is_some_and(many)
    }

    async fn close(&mut self, origin: &Origin) -> Result<(), TransformError> {
        let writer = self.writer.take().ok_or_else(lost)?;
        // Of the file, whatever counts by now.
        let origin = Origin {
            schema: self.schema,
            ..origin.clone()
        };
        let finished = tokio::task::spawn_blocking(move || writer.finish(&origin)).await;
        finished
            .map_err(|_| TransformError::bug("writing a footer panicked"))?
            .map_err(failed)?;
        self.drain().await
    }

    async fn finish(self: Box<Self>) -> Result<Put, TransformError> {
        Ok(self.draft.finish().await?)
    }
}

/// The rows of the records that can be one, and the codes of the others.
fn encode(
    layout: &Arc<TableLayout>,
    format: Format,
    records: &[Record],
) -> Result<(Rows, Vec<Option<&'static str>>), TransformError> {
    let mut encoder = RowEncoder::new(Arc::clone(layout), format);
    let codes = records
        .iter()
        .map(|record| encoder.append(record).err().map(|rejection| rejection.code()))
        .collect();
    let rows = encoder.finish();
    let rows = rows.map_err(|_| TransformError::bug("rows do not make columns"))?;
    Ok((rows, codes))
}

/// An earlier error has ended the file.
fn lost() -> TransformError {
    TransformError::Retry {
        reason: "a file was given up".to_owned(),
    }
}

fn failed(error: TableError) -> TransformError {
    let (reason, help) = (error.to_string(), error.help());
    let stop = |kind| TransformError::Stop { kind, reason, help };
    match error {
        TableError::Key(error) => from_direct(DirectError::Key(error)),
        TableError::Seal(error) => from_direct(DirectError::Seal(error)),
        TableError::NoTableRule { .. } => stop(StopKind::Config),
        TableError::Rows { .. } => stop(StopKind::Data),
        TableError::Output { .. } | TableError::NoRandomness => stop(StopKind::Unavailable),
        _ => stop(StopKind::Internal),
    }
}

/// Bytes between the writer, which blocks, and the store, which waits.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn take(&self) -> Bytes {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
