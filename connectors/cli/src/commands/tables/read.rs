//! `sealflow read` of files: rows of a table, as somebody may see them.

use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use parquet::arrow::ArrowWriter;
use sealflow::audit::Event;
use sealflow::clock::{Clock, UnixMillis};
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::pipeline::ColumnDecision;
use sealflow::table::{Asking, Query, TableError};
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::sealing::RowSealing;
use super::{FILES, Files, Opener, TableFile, of_table};
use crate::audit::Log;
use crate::commands::read::told::{Columns, print_table};
use crate::failure::{Exit, Failure, Result};
use crate::term::harmless;

/// Batches of one file that wait to be written.
const WAITING: usize = 2;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) enum To {
    Table,
    Json,
    Csv,
    Arrow,
    Parquet,
}

/// Who reads what, and how.
pub(in crate::commands) struct TableRead {
    pub(in crate::commands) opener: Opener,
    pub(in crate::commands) purpose: Option<String>,
    pub(in crate::commands) query: Query,
    pub(in crate::commands) clock: Arc<dyn Clock>,
    pub(in crate::commands) to: To,
    /// The key that protected columns are sealed to; rows are written as JSON then.
    pub(in crate::commands) seal_to: Option<RsaPublicJwk>,
}

/// What a file gives, in order.
enum Piece {
    Rows {
        batch: RecordBatch,
        sealing: Option<Arc<RowSealing>>,
        decisions: Vec<ColumnDecision>,
        by: DecidedBy,
    },
    /// The last piece: decisions about rows that were not kept, or about a file without rows.
    Decisions {
        decisions: Vec<ColumnDecision>,
        by: DecidedBy,
    },
}

/// Dataset and version of the policy that decided; `None` for files without one.
type DecidedBy = Option<(String, u64)>;

impl TableRead {
    /// Reads all files, several at the same time, and writes their rows in order.
    pub(in crate::commands) async fn all(self, mut files: Files, audit: &Log, about: &mut Event) -> Result<ExitCode> {
        let read = Arc::new(self);
        let mut is_more = true;
        let mut running = std::collections::VecDeque::new();
        let mut writer = RowWriter::new(read.to)?;
        let mut told = Columns::default();
        let mut left = read.query.limit.unwrap_or(u64::MAX);
        loop {
            while is_more && running.len() < FILES {
                match files.next().await? {
                    Some(file) => running.push_back(start(Arc::clone(&read), file)),
                    None => is_more = false,
                }
            }
            let Some(mut pieces) = running.pop_front() else { break };
            let mut is_whole = false;
            while !is_whole {
                let (batch, decisions, by) = match pieces.next().await? {
                    Piece::Rows {
                        batch,
                        sealing,
                        decisions,
                        by,
                    } => (Some((batch, sealing)), decisions, by),
                    Piece::Decisions { decisions, by } => {
                        is_whole = true;
                        (None, decisions, by)
                    }
                };
                about.at = read.clock.now();
                (about.dataset, about.policy_version) = by.unzip();
                let events = decisions.iter().map(|decision| decision.event(about)).collect();
                // What cannot be written down is not shown.
                audit.record(events).await?;
                told.add(&decisions);
                let Some((batch, sealing)) = batch else { continue };
                let batch = batch.slice(0, batch.num_rows().min(usize::try_from(left).unwrap_or(usize::MAX)));
                left -= batch.num_rows() as u64;
                if writer.write(&batch, sealing.as_deref())? == ControlFlow::Break(()) || left == 0 {
                    writer.finish()?;
                    return tell(&told);
                }
            }
        }
        writer.finish()?;
        tell(&told)
    }

    async fn file(&self, file: &TableFile, pieces: &mpsc::Sender<Result<Piece>>) -> Result<()> {
        let asking = |now: UnixMillis| Asking {
            who: &self.opener.who.who,
            purpose: self.purpose.as_deref(),
            now,
        };
        let failed = |error: TableError| of_table(&file.path, &error);
        let table = self.opener.open(file, asking(self.clock.now())).await;
        let table = table.map_err(|error| error.of(file))?;
        let policy = table.policy().map(|policy| policy.policy());
        let by = policy.map(|policy| (policy.dataset.clone(), policy.version));
        let sealing = match &self.seal_to {
            Some(key) => {
                let sealing = RowSealing::new(&table, key).ok_or_else(|| {
                    Failure::new(
                        Exit::Data,
                        format_args!("{}: its columns cannot be sealed to a key", file.path),
                        "read it without --seal-to",
                    )
                })?;
                Some(Arc::new(sealing))
            }
            None => None,
        };
        let mut rows = table
            .rows(&self.query, asking(self.clock.now()), &file.path)
            .map_err(failed)?;
        while let Some(batch) = rows.next().await.map_err(failed)? {
            let piece = Piece::Rows {
                batch,
                sealing: sealing.clone(),
                decisions: rows.take_decisions(),
                by: by.clone(),
            };
            if pieces.send(Ok(piece)).await.is_err() {
                return Ok(());
            }
        }
        let decisions = rows.take_decisions();
        let _ = pieces.send(Ok(Piece::Decisions { decisions, by })).await;
        Ok(())
    }
}

fn start(read: Arc<TableRead>, file: TableFile) -> Pieces {
    let (sender, receiver) = mpsc::channel(WAITING);
    let path = file.path.clone();
    tokio::spawn(async move {
        if let Err(failure) = read.file(&file, &sender).await {
            let _ = sender.send(Err(failure)).await;
        }
    });
    Pieces { path, receiver }
}

/// What is read of a file, up to [`Piece::Decisions`] or a failure.
struct Pieces {
    path: String,
    receiver: mpsc::Receiver<Result<Piece>>,
}

impl Pieces {
    async fn next(&mut self) -> Result<Piece> {
        self.receiver.recv().await.unwrap_or_else(|| {
            // The panic hook has said where.
            Err(Failure::new(
                Exit::Internal,
                format_args!("{}: reading it broke off, and rows of it may be missing", self.path),
                "do not use what was written",
            ))
        })
    }
}

/// Writes rows to standard output.
struct RowWriter {
    to: To,
    schema: Option<SchemaRef>,
    rows: Vec<Vec<String>>,
    csv: Option<csv::Writer<io::Stdout>>,
    arrow: Option<StreamWriter<io::Stdout>>,
    parquet: Option<ArrowWriter<io::Stdout>>,
}

impl RowWriter {
    fn new(to: To) -> Result<Self> {
        if matches!(to, To::Arrow | To::Parquet) && io::stdout().is_terminal() {
            return Err(Failure::usage(
                "this output is nothing for a terminal",
                "write it to a file or a pipe: `sealflow read … --output parquet > rows.parquet`",
            ));
        }
        Ok(Self {
            to,
            schema: None,
            rows: Vec::new(),
            csv: None,
            arrow: None,
            parquet: None,
        })
    }

    fn write(&mut self, batch: &RecordBatch, sealing: Option<&RowSealing>) -> Result<ControlFlow<()>> {
        let schema = self.schema.get_or_insert_with(|| batch.schema());
        if *schema != batch.schema() {
            return Err(Failure::new(
                Exit::Data,
                "the files are of different schemas",
                "read them one by one, or name the columns that they have in common with --columns",
            ));
        }
        match self.put(batch, sealing) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            Err(error) => Err(Failure::io("write", Path::new("standard output"), &error)),
        }
    }

    fn put(&mut self, batch: &RecordBatch, sealing: Option<&RowSealing>) -> io::Result<()> {
        if let Some(sealing) = sealing {
            let mut out = BufWriter::new(io::stdout().lock());
            out.write_all(&sealing.lines(&lines(batch)?)?)?;
            return out.flush();
        }
        match self.to {
            To::Json => {
                let mut out = BufWriter::new(io::stdout().lock());
                out.write_all(&lines(batch)?)?;
                out.flush()
            }
            To::Table => {
                for object in objects(batch)? {
                    self.rows.push(object.iter().map(|(_, value)| text(value)).collect());
                }
                Ok(())
            }
            To::Csv => {
                let out = match &mut self.csv {
                    Some(out) => out,
                    None => {
                        let mut out = csv::Writer::from_writer(io::stdout());
                        let schema = batch.schema();
                        out.write_record(schema.fields().iter().map(|field| field.name()))?;
                        self.csv.insert(out)
                    }
                };
                let is_for_eyes = io::stdout().is_terminal();
                for object in objects(batch)? {
                    let cells = object.iter().map(|(_, value)| match is_for_eyes {
                        true => harmless(&text(value)),
                        false => text(value),
                    });
                    out.write_record(cells)?;
                }
                out.flush()
            }
            To::Arrow => {
                let out = match &mut self.arrow {
                    Some(out) => out,
                    None => {
                        let out = StreamWriter::try_new(io::stdout(), &batch.schema()).map_err(unwritable)?;
                        self.arrow.insert(out)
                    }
                };
                out.write(batch).map_err(unwritable)
            }
            To::Parquet => {
                let out = match &mut self.parquet {
                    Some(out) => out,
                    None => {
                        let out = ArrowWriter::try_new(io::stdout(), batch.schema(), None).map_err(unwritable)?;
                        self.parquet.insert(out)
                    }
                };
                out.write(batch).map_err(unwritable)
            }
        }
    }

    fn finish(mut self) -> Result<()> {
        let finished = match self.to {
            To::Table => self.print(),
            To::Arrow => self
                .arrow
                .take()
                .map_or(Ok(()), |mut out| out.finish().map_err(unwritable)),
            To::Parquet => self
                .parquet
                .take()
                .map_or(Ok(()), |out| out.close().map(drop).map_err(unwritable)),
            To::Json | To::Csv => Ok(()),
        };
        match finished {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::io("write", Path::new("standard output"), &error))
            }
            _ => Ok(()),
        }
    }

    fn print(&self) -> io::Result<()> {
        let Some(schema) = &self.schema else { return Ok(()) };
        print_table(schema.fields().iter().map(|field| field.name().as_str()), &self.rows)
    }
}

/// A batch as lines of JSON; nulls are written.
fn lines(batch: &RecordBatch) -> io::Result<Vec<u8>> {
    let builder = WriterBuilder::new().with_explicit_nulls(true);
    let mut writer = builder.build::<_, LineDelimited>(Vec::new());
    writer.write(&in_utc(batch)?).map_err(unwritable)?;
    writer.finish().map_err(unwritable)?;
    Ok(writer.into_inner())
}

/// The batch with all moments in UTC, spelled as an offset: names of zones need a database of them.
fn in_utc(batch: &RecordBatch) -> io::Result<RecordBatch> {
    let schema = batch.schema();
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| Field::new(field.name(), utc(field.data_type()), true))
        .collect();
    let columns = batch.columns().iter().zip(&fields);
    let columns: std::result::Result<Vec<ArrayRef>, ArrowError> =
        columns.map(|(column, field)| cast(column, field.data_type())).collect();
    let batch = columns.and_then(|columns| RecordBatch::try_new(Arc::new(Schema::new(fields)), columns));
    batch.map_err(unwritable)
}

fn utc(data_type: &DataType) -> DataType {
    let inner = |field: &FieldRef| Arc::new(Field::new(field.name(), utc(field.data_type()), true));
    match data_type {
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some(Arc::from("+00:00"))),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        DataType::List(item) => DataType::List(inner(item)),
        DataType::LargeList(item) => DataType::LargeList(inner(item)),
        other => other.clone(),
    }
}

/// The library's texts are not repeated: some of them hold the value that they are about.
fn unwritable<E>(_: E) -> io::Error {
    io::Error::other("rows cannot be written in this form")
}

fn objects(batch: &RecordBatch) -> io::Result<Vec<Map<String, Value>>> {
    let lines = lines(batch)?;
    let objects = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    objects
        .map(|line| serde_json::from_slice(line).map_err(unwritable))
        .collect()
}

/// A cell: texts as they are, nothing for null, the rest as JSON.
fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The last lines, and the exit code.
fn tell(columns: &Columns) -> Result<ExitCode> {
    columns.tell();
    columns
        .check_opened("the lines above say which: columns that were changed or moved, or keys that KMS refuses you")?;
    match columns.not_masked() {
        0 => Ok(ExitCode::SUCCESS),
        others => Err(Failure::new(
            Exit::Data,
            format_args!("{others} values could not be shown as the table declares them"),
            "the lines above say which",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_whose_reading_panics_is_never_taken_for_whole() {
        let (sender, receiver) = mpsc::channel(WAITING);
        let path = "a.parquet".to_owned();
        let mut pieces = Pieces { path, receiver };
        let rows = Piece::Rows {
            batch: RecordBatch::new_empty(Arc::new(Schema::empty())),
            sealing: None,
            decisions: Vec::new(),
            by: None,
        };
        let reading = tokio::spawn(async move {
            sender.send(Ok(rows)).await.map_err(drop).unwrap();
            panic!("on purpose");
        });
        assert!(matches!(pieces.next().await, Ok(Piece::Rows { .. })));
        assert!(matches!(pieces.next().await, Err(failure) if failure.exit == Exit::Internal));
        assert!(reading.await.unwrap_err().is_panic());
    }
}
