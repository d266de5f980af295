//! Records as tables, JSON lines, CSV and Arrow.

use std::collections::BTreeSet;
use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::ipc::writer::StreamWriter;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::clock::UnixMillis;
use sealflow::keys::KEYS_HEADER;
use sealflow::pipeline::{Format, Reading, Record, Timestamp, Withheld};
use serde_json::json;

use super::fields::{cell, walk};
use super::told::print_table;
use crate::failure::{Exit, Failure, Result};
use crate::term::{harmless, note};

/// Fields that are shown without being asked for.
const MAX_FOUND: usize = 64;
/// Bytes of a schema registry's prefix, which are not shown.
const REGISTRY_PREFIX: usize = 5;
/// Fields that are named if they were not shown.
const MAX_OTHERS: usize = 5;
/// Rows that are made before they are written.
const ROWS: usize = 1_000;
/// A table is for looking at, also where one record holds many documents.
const MAX_TABLE_ROWS: usize = 10_000;
/// As labels spell what is beside the value, so that no field of a record has such a name.
const PLACE: [&str; 4] = ["$partition", "$offset", "$timestamp", "$key"];

/// How records are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// For people: one row a record, up to 100 of them
    #[default]
    Table,
    /// One JSON document a line: where the record was, its key and headers, and its value as it is spelled
    Json,
    /// RFC 4180, one row a record
    Csv,
    /// An Arrow IPC stream; fields of records as text, those of tables with their types
    Arrow,
    /// Of tables: a Parquet file that nothing protects, with what you may see
    Parquet,
}

/// Writes what was read to standard output.
pub(super) struct Writer {
    format: Format,
    /// Paths, as they were asked for or found in the first records.
    columns: Vec<String>,
    were_asked_for: bool,
    are_found: bool,
    /// Fields of later records that are in no column.
    others: BTreeSet<String>,
    /// Rows for which a table has no room.
    left_out: usize,
    to: To,
}

enum To {
    Table(Vec<Vec<String>>),
    Json(BufWriter<io::Stdout>),
    Csv(Option<Box<csv::Writer<io::Stdout>>>),
    Arrow(Option<Box<StreamWriter<io::Stdout>>>),
}

/// One document of a record, in cells.
struct Row<'r> {
    record: &'r Record,
    cells: Vec<Option<String>>,
}

impl Writer {
    pub(super) fn new(output: Output, columns: Vec<String>, format: Format) -> Result<Self> {
        let to = match output {
            Output::Table => To::Table(Vec::new()),
            Output::Json => To::Json(BufWriter::new(io::stdout())),
            Output::Csv => To::Csv(None),
            Output::Arrow if io::stdout().is_terminal() => {
                return Err(Failure::usage(
                    "an Arrow stream is nothing for a terminal",
                    "write it to a file or a pipe: `sealflow read … --output arrow > records.arrows`",
                ));
            }
            Output::Arrow | Output::Parquet => To::Arrow(None),
        };
        Ok(Self {
            format,
            were_asked_for: !columns.is_empty(),
            are_found: false,
            columns,
            others: BTreeSet::new(),
            left_out: 0,
            to,
        })
    }

    /// Writes a batch. It breaks if nobody takes the output any more.
    pub(super) fn write(&mut self, reading: &Reading) -> Result<ControlFlow<()>> {
        let written = if matches!(self.to, To::Json(_)) {
            self.write_lines(reading)
        } else {
            self.write_rows(reading)
        };
        match written {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
            Err(error) => Err(Failure::io("write", Path::new("standard output"), &error)),
        }
    }

    /// Ends the output, and says what it left out.
    pub(super) fn finish(mut self) -> Result<()> {
        let finished = match &mut self.to {
            To::Table(rows) => print_table(PLACE.into_iter().chain(self.columns.iter().map(String::as_str)), rows),
            To::Json(out) => out.flush(),
            To::Csv(out) => match out {
                Some(out) => out.flush(),
                None => Ok(()),
            },
            To::Arrow(out) => {
                // A stream without records has a schema too.
                let out = match out.take() {
                    Some(out) => Ok(out),
                    None => start_arrow(&self.columns),
                };
                out.and_then(|mut out| out.finish().map_err(io::Error::other))
            }
        };
        match finished {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(Failure::new(
                    Exit::Io,
                    format_args!("cannot write standard output: {error}"),
                    "check disk and permissions",
                ));
            }
            _ => {}
        }
        if self.left_out > 0 {
            note(format_args!(
                "{} documents were left out: a table has {MAX_TABLE_ROWS} rows at most, --output json has none",
                self.left_out
            ));
        }
        if !self.others.is_empty() && !self.were_asked_for {
            let names: Vec<String> = self.others.iter().take(MAX_OTHERS).map(|path| harmless(path)).collect();
            note(format_args!(
                "there are more fields than those of the first records: {}{}; name those to show with --columns",
                names.join(", "),
                if self.others.len() > MAX_OTHERS { ", …" } else { "" }
            ));
        }
        Ok(())
    }

    fn write_lines(&mut self, reading: &Reading) -> io::Result<()> {
        let (format, columns) = (self.format, &self.columns);
        let To::Json(out) = &mut self.to else { return Ok(()) };
        for record in &reading.records {
            let line = match record {
                Ok(record) => line(record, format, columns),
                Err(withheld) => withheld_line(withheld),
            };
            writeln!(out, "{line}")?;
        }
        // Whoever reads along a pipe sees batches as they come.
        out.flush()
    }

    fn write_rows(&mut self, reading: &Reading) -> io::Result<()> {
        let format = self.format;
        let shown = || reading.records.iter().filter_map(|record| record.as_ref().ok());
        if !self.were_asked_for && !self.are_found {
            // Once: the columns of an output do not change on the way.
            self.are_found = reading.records.iter().any(std::result::Result::is_ok);
            for document in shown().flat_map(|record| documents(record, format)) {
                walk(document, &mut |path, _, is_leaf| {
                    if is_leaf && self.columns.len() < MAX_FOUND && !self.columns.iter().any(|known| known == path) {
                        self.columns.push(path.to_owned());
                    }
                });
            }
        }
        // A record may hold many documents: never more of them at once than a batch of rows.
        let mut rows = Vec::new();
        for record in shown() {
            for document in documents(record, format) {
                rows.push(self.row(record, document));
                if rows.len() == ROWS {
                    self.put(&rows)?;
                    rows.clear();
                }
            }
        }
        self.put(&rows)?;
        if let To::Csv(Some(out)) = &mut self.to {
            out.flush()?;
        }
        Ok(())
    }

    fn put(&mut self, rows: &[Row<'_>]) -> io::Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        match &mut self.to {
            To::Table(table) => {
                let room = MAX_TABLE_ROWS.saturating_sub(table.len());
                self.left_out += rows.len().saturating_sub(room);
                table.extend(rows.iter().take(room).map(Row::texts));
            }
            To::Json(_) => {}
            To::Csv(out) => {
                let out = match out {
                    Some(out) => out,
                    None => {
                        let mut writer = csv::Writer::from_writer(io::stdout());
                        let names = PLACE.into_iter().chain(self.columns.iter().map(String::as_str));
                        writer.write_record(names).map_err(of_csv)?;
                        out.insert(Box::new(writer))
                    }
                };
                let is_for_eyes = io::stdout().is_terminal();
                for row in rows {
                    let texts = row.texts();
                    // What producers wrote steers no terminal.
                    let written = if is_for_eyes {
                        out.write_record(texts.iter().map(|text| harmless(text)))
                    } else {
                        out.write_record(texts)
                    };
                    written.map_err(of_csv)?;
                }
            }
            To::Arrow(out) => {
                let out = match out {
                    Some(out) => out,
                    None => out.insert(start_arrow(&self.columns)?),
                };
                let batch = arrow_batch(&self.columns, rows).map_err(io::Error::other)?;
                out.write(&batch).map_err(of_arrow)?;
            }
        }
        Ok(())
    }

    fn row<'r>(&mut self, record: &'r Record, document: &str) -> Row<'r> {
        let mut cells = vec![None; self.columns.len()];
        walk(document, &mut |path, json, is_leaf| {
            match self.columns.iter().position(|column| column == path) {
                // Of a member that occurs twice the last one, as most parsers have it.
                Some(n) => cells[n] = cell(json),
                None if is_leaf && self.others.len() <= MAX_OTHERS => {
                    self.others.insert(path.to_owned());
                }
                None => {}
            }
        });
        Row { record, cells }
    }
}

impl Row<'_> {
    /// Place, key and cells as text.
    fn texts(&self) -> Vec<String> {
        let position = &self.record.position;
        let place = [
            position.partition.to_string(),
            position.offset.to_string(),
            moment(self.record.timestamp).unwrap_or_default(),
            key(self.record).unwrap_or_default(),
        ];
        let cells = self.cells.iter().map(|cell| cell.clone().unwrap_or_default());
        place.into_iter().chain(cells).collect()
    }
}

/// The JSON documents of a record that was shown.
fn documents(record: &Record, format: Format) -> Vec<&str> {
    let value = record.value.as_deref().unwrap_or_default();
    let value = match format {
        Format::JsonSr => value.get(REGISTRY_PREFIX..).unwrap_or_default(),
        _ => value,
    };
    // The locator has read it, so it is UTF-8.
    let text = std::str::from_utf8(value).unwrap_or_default();
    let lines: Vec<&str> = match format {
        Format::Ndjson => text.lines().collect(),
        _ => vec![text],
    };
    let documents = lines.into_iter().map(str::trim);
    documents.filter(|document| !document.is_empty()).collect()
}

fn moment(timestamp: Timestamp) -> Option<String> {
    millis(timestamp).map(|millis| UnixMillis(millis).to_rfc3339_millis())
}

fn millis(timestamp: Timestamp) -> Option<u64> {
    match timestamp {
        Timestamp::None => None,
        Timestamp::Created(millis) | Timestamp::Appended(millis) => u64::try_from(millis).ok(),
    }
}

/// A key as text; what is no UTF-8 as base64.
fn key(record: &Record) -> Option<String> {
    record.key.as_deref().map(text)
}

fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("base64:{}", STANDARD.encode(bytes)),
    }
}

/// A record as one line, the value as it is spelled.
fn line(record: &Record, format: Format, columns: &[String]) -> String {
    let headers = record.headers.iter().filter(|header| header.name != KEYS_HEADER);
    let headers: Vec<_> = headers
        .map(|header| json!({"name": header.name, "value": header.value.as_deref().map(text)}))
        .collect();
    let position = &record.position;
    let head = json!({
        "topic": &*position.topic,
        "partition": position.partition,
        "offset": position.offset,
        "timestamp": moment(record.timestamp),
        "key": key(record),
        "headers": headers,
    });
    let documents: Vec<String> = documents(record, format)
        .into_iter()
        .map(|document| chosen(document, columns))
        .collect();
    let value = match (format, &documents[..]) {
        (_, []) if record.value.is_none() => "null".to_owned(),
        (Format::Ndjson, documents) => format!("[{}]", documents.join(",")),
        (_, documents) => documents.concat(),
    };
    let head = head.to_string();
    format!("{},\"value\":{value}}}", head.strip_suffix('}').unwrap_or(&head))
}

/// The document, or an object of the fields that were asked for.
fn chosen(document: &str, columns: &[String]) -> String {
    if columns.is_empty() {
        // A line has no line breaks but its own; JSON has none inside of strings.
        return document.replace(['\n', '\r'], " ");
    }
    let mut fields = vec![None; columns.len()];
    walk(document, &mut |path, json, _| {
        if let Some(n) = columns.iter().position(|column| column == path) {
            fields[n] = Some(json.replace(['\n', '\r'], " "));
        }
    });
    let named = columns.iter().zip(fields);
    let members: Vec<String> = named
        .filter_map(|(path, json)| json.map(|json| format!("{}:{json}", serde_json::Value::from(path.as_str()))))
        .collect();
    format!("{{{}}}", members.join(","))
}

fn withheld_line(withheld: &Withheld) -> String {
    let position = &withheld.position;
    json!({
        "topic": &*position.topic,
        "partition": position.partition,
        "offset": position.offset,
        "withheld": withheld.code,
    })
    .to_string()
}

fn arrow_schema(columns: &[String]) -> Schema {
    let time = DataType::Timestamp(TimeUnit::Millisecond, Some(Arc::from("UTC")));
    let place = [
        Field::new(PLACE[0], DataType::Int32, false),
        Field::new(PLACE[1], DataType::Int64, false),
        Field::new(PLACE[2], time, true),
        Field::new(PLACE[3], DataType::Utf8, true),
    ];
    let fields = columns.iter().map(|path| Field::new(path, DataType::Utf8, true));
    Schema::new(place.into_iter().chain(fields).collect::<Vec<_>>())
}

fn start_arrow(columns: &[String]) -> io::Result<Box<StreamWriter<io::Stdout>>> {
    StreamWriter::try_new(io::stdout(), &arrow_schema(columns))
        .map(Box::new)
        .map_err(of_arrow)
}

fn arrow_batch(columns: &[String], rows: &[Row<'_>]) -> std::result::Result<RecordBatch, arrow::error::ArrowError> {
    let position = |row: &Row<'_>| (row.record.position.partition, row.record.position.offset);
    let times = rows.iter().map(|row| match row.record.timestamp {
        Timestamp::None => None,
        Timestamp::Created(millis) | Timestamp::Appended(millis) => Some(millis),
    });
    let mut arrays: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| position(row).0))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| position(row).1))),
        Arc::new(times.collect::<TimestampMillisecondArray>().with_timezone("UTC")),
        Arc::new(rows.iter().map(|row| key(row.record)).collect::<StringArray>()),
    ];
    for n in 0..columns.len() {
        arrays.push(Arc::new(
            rows.iter().map(|row| row.cells[n].as_deref()).collect::<StringArray>(),
        ));
    }
    RecordBatch::try_new(Arc::new(arrow_schema(columns)), arrays)
}

fn of_csv(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        _ => io::Error::other("a row has another number of fields"),
    }
}

fn of_arrow(error: arrow::error::ArrowError) -> io::Error {
    match error {
        arrow::error::ArrowError::IoError(_, error) => error,
        error => io::Error::other(error),
    }
}
