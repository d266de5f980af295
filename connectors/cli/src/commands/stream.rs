//! Records of files and pipes through a transform: batch by batch, outputs that appear complete or not at all.

use std::fs::File;
use std::io::{self, BufRead, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sealflow::keys::KEYS_HEADER;
use sealflow::pipeline::{DeadLetter, Headers, Outcome, Position, Record, Route, Timestamp, Transform, check_prefix};

use super::sidecar::Sidecar;
use crate::failure::{Exit, Failure, Result};
use crate::files::{Access, AtomicFile};
use crate::term::Progress;

/// A line or document beyond this is not a log record.
const MAX_RECORD_BYTES: u64 = 64 << 20;
const BATCH_RECORDS: usize = 8192;
const BATCH_BYTES: usize = 4 << 20;

/// How records stand in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FileFormat {
    /// One JSON document a line
    #[default]
    Ndjson,
    /// The whole input is one JSON document
    Json,
}

/// Input, output and format
#[derive(Debug, clap::Args)]
pub(crate) struct StreamArgs {
    /// The input file; `-` or nothing for standard input
    #[arg(value_name = "INPUT")]
    pub(crate) input: Option<PathBuf>,
    /// Write here instead of standard output; the file appears when it is complete
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// How records stand in the input
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: FileFormat,
    /// Replace output files that are there
    #[arg(long)]
    pub(crate) force: bool,
}

impl StreamArgs {
    /// The input file, unless it is standard input.
    pub(crate) fn input_file(&self) -> Option<&Path> {
        self.input.as_deref().filter(|path| *path != Path::new("-"))
    }

    /// Refuses outputs that are there, before anything is read.
    pub(crate) fn check_outputs(&self, others: &[Option<&Path>]) -> Result<()> {
        let all = others.iter().copied().chain([self.output.as_deref()]).flatten();
        match all.filter(|path| path.exists() && !self.force).collect::<Vec<_>>()[..] {
            [] => Ok(()),
            [first, ..] => Err(Failure::new(
                Exit::Io,
                format_args!("{} is there already", first.display()),
                "choose another name, or replace it with --force",
            )),
        }
    }
}

/// Records as they come out of a file: the value, and the bytes behind it that belong to no value.
pub(crate) struct Input {
    name: Arc<str>,
    reader: Box<dyn BufRead + Send>,
    length: Option<u64>,
    format: FileFormat,
    read: u64,
    next: i64,
}

/// One line or document.
struct Piece {
    /// The document; `None` for blank lines.
    value: Option<Bytes>,
    /// What follows it in the input, passed through: line ends, blank lines.
    rest: Vec<u8>,
}

impl Input {
    /// Opens the file, or standard input.
    pub(crate) fn open(args: &StreamArgs) -> Result<Self> {
        let (name, reader, length): (_, Box<dyn BufRead + Send>, _) = match args.input_file() {
            None => ("stdin".to_owned(), Box::new(io::BufReader::new(io::stdin())), None),
            Some(path) => {
                let file = File::open(path).map_err(|error| Failure::io("read", path, &error))?;
                let length = file
                    .metadata()
                    .ok()
                    .filter(std::fs::Metadata::is_file)
                    .map(|data| data.len());
                (
                    path.display().to_string(),
                    Box::new(io::BufReader::with_capacity(1 << 20, file)),
                    length,
                )
            }
        };
        Ok(Self {
            name: name.into(),
            reader,
            length,
            format: args.format,
            read: 0,
            next: 0,
        })
    }

    fn batch(&mut self) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut bytes = 0;
        while pieces.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
            let Some(piece) = self.piece()? else { break };
            bytes += piece.value.as_ref().map_or(0, Bytes::len) + piece.rest.len();
            pieces.push(piece);
        }
        Ok(pieces)
    }

    fn piece(&mut self) -> Result<Option<Piece>> {
        let mut bytes = Vec::new();
        let mut limited = self.reader.by_ref().take(MAX_RECORD_BYTES + 1);
        let read = match self.format {
            FileFormat::Ndjson => limited.read_until(b'\n', &mut bytes),
            FileFormat::Json => limited.read_to_end(&mut bytes),
        };
        read.map_err(|error| Failure::io("read", Path::new(&*self.name), &error))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.read += bytes.len() as u64;
        if bytes.len() as u64 > MAX_RECORD_BYTES {
            let message = format!("{}: record {} is longer than 64 MiB", self.name, self.next + 1);
            return Err(Failure::new(
                Exit::Data,
                message,
                "split the input: one record a line (--format ndjson)",
            ));
        }
        let blank = |b: &u8| matches!(b, b' ' | b'\t' | b'\r' | b'\n');
        if bytes.iter().all(blank) {
            return Ok(Some(Piece {
                value: None,
                rest: bytes,
            }));
        }
        let end = if self.format == FileFormat::Ndjson && bytes.ends_with(b"\n") {
            bytes.len() - 1
        } else {
            bytes.len()
        };
        let rest = bytes.split_off(end);
        Ok(Some(Piece {
            value: Some(bytes.into()),
            rest,
        }))
    }

    fn record(&mut self, value: Bytes) -> Record {
        let position = Position {
            topic: Arc::clone(&self.name),
            partition: 0,
            offset: self.next,
        };
        self.next += 1;
        Record {
            position,
            timestamp: Timestamp::None,
            key: None,
            value: Some(value),
            headers: Headers::new(),
        }
    }
}

/// Where outcomes go.
pub(crate) struct Outputs {
    records: Output,
    dead_letters: Option<AtomicFile>,
    /// The key envelopes of what is sealed; `None` where nothing is sealed.
    sidecar: Option<Sidecar>,
    dead: u64,
}

enum Output {
    File(AtomicFile),
    Pipe(io::Stdout),
}

impl Outputs {
    /// Starts the outputs. `access` is for the records' file.
    pub(crate) fn create(
        args: &StreamArgs,
        access: Access,
        dead_letters: Option<&Path>,
        sidecar: Option<Sidecar>,
    ) -> Result<Self> {
        let records = match &args.output {
            Some(path) => Output::File(AtomicFile::create(path, access)?),
            None => Output::Pipe(io::stdout()),
        };
        let dead_letters = dead_letters
            .map(|path| AtomicFile::create(path, Access::Shared))
            .transpose()?;
        Ok(Self {
            records,
            dead_letters,
            sidecar,
            dead: 0,
        })
    }

    /// Writes the pieces that `outcomes` are of, and returns how many these are.
    fn write(&mut self, pieces: &[Piece], outcomes: Vec<Outcome>) -> Result<usize> {
        if let Some(sidecar) = &mut self.sidecar {
            sidecar.add(&outcomes)?;
            // What goes down a pipe cannot be taken back, so its keys are written down before.
            if matches!(self.records, Output::Pipe(_)) {
                sidecar.save()?;
            }
        }
        let mut outcomes = outcomes.into_iter();
        let mut written = 0;
        for piece in pieces {
            if piece.value.is_some() {
                // One outcome per record, in order: the transform's contract.
                let Some(outcome) = outcomes.next() else { break };
                written += 1;
                if outcome.route == Route::DeadLetter {
                    self.dead_letter(&outcome.record)?;
                    continue;
                }
                self.put(outcome.record.value.as_deref().unwrap_or_default())?;
            } else {
                written += 1;
            }
            self.put(&piece.rest)?;
        }
        if let Output::Pipe(pipe) = &mut self.records {
            pipe.flush().map_err(|error| pipe_failure(&error))?;
        }
        Ok(written)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.records {
            Output::File(file) => file
                .write_all(bytes)
                .map_err(|error| Failure::io("write", file.target(), &error)),
            Output::Pipe(pipe) => pipe.write_all(bytes).map_err(|error| pipe_failure(&error)),
        }
    }

    fn dead_letter(&mut self, record: &Record) -> Result<()> {
        let json = record.value.as_deref().unwrap_or_default();
        let code = DeadLetter::from_json(json).map_or_else(|_| "unknown".to_owned(), |letter| letter.code);
        let Some(file) = &mut self.dead_letters else {
            let place = &record.position;
            // People count from 1.
            let message = format!(
                "{}: record {} cannot be processed: {code}",
                place.topic,
                place.offset + 1
            );
            return Err(Failure::new(
                Exit::Data,
                message,
                "mend the record, or set such records aside with --dead-letters FILE",
            ));
        };
        self.dead += 1;
        file.write_all(json)
            .and_then(|()| file.write_all(b"\n"))
            .map_err(|error| Failure::io("write", file.target(), &error))
    }

    /// Keys first: there is never a sealed file without them.
    fn commit(self) -> Result<()> {
        if let Some(mut sidecar) = self.sidecar {
            sidecar.save()?;
        }
        if let Some(file) = self.dead_letters {
            file.commit()?;
        }
        match self.records {
            Output::File(file) => file.commit(),
            Output::Pipe(_) => Ok(()),
        }
    }
}

fn pipe_failure(error: &io::Error) -> Failure {
    Failure::io("write", Path::new("standard output"), error)
}

/// What went through.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passed {
    pub(crate) records: u64,
    pub(crate) dead_letters: u64,
}

/// Everything of `input` through `transform` into `outputs`, which are complete afterwards or not there.
pub(crate) async fn pass(input: Input, transform: &dyn Transform, outputs: Outputs) -> Result<Passed> {
    pass_if(input, transform, outputs, |_| Ok(())).await
}

/// As [`pass`], but outputs are there only if the whole passes `check`.
pub(crate) async fn pass_if(
    mut input: Input,
    transform: &dyn Transform,
    mut outputs: Outputs,
    check: impl FnOnce(&Passed) -> Result<()>,
) -> Result<Passed> {
    let progress = Progress::bytes(input.length);
    loop {
        // Standard input may stay silent for ever; signals and timers go on meanwhile.
        let pieces = tokio::task::block_in_place(|| input.batch())?;
        if pieces.is_empty() {
            break;
        }
        let records: Vec<Record> = pieces
            .iter()
            .filter_map(|piece| piece.value.clone())
            .map(|value| input.record(value))
            .collect();
        let (mut records, mut rest) = (records.as_slice(), pieces.as_slice());
        while !records.is_empty() {
            let outcomes = transform.apply(records).await?;
            check_prefix(outcomes.len(), records.len())?;
            records = &records[outcomes.len()..];
            let written = outputs.write(rest, outcomes)?;
            rest = &rest[written..];
        }
        // Blank lines, if a batch holds nothing else.
        outputs.write(rest, Vec::new())?;
        progress.set(input.read);
    }
    let passed = Passed {
        records: u64::try_from(input.next).unwrap_or(0),
        dead_letters: outputs.dead,
    };
    check(&passed)?;
    outputs.commit()?;
    Ok(passed)
}

/// The envelopes that travel with an outcome.
pub(super) fn envelopes(record: &Record) -> impl Iterator<Item = &Bytes> {
    record
        .headers
        .iter()
        .filter(|header| header.name == KEYS_HEADER)
        .filter_map(|header| header.value.as_ref())
}
