//! `client seal`: fields of JSON records, sealed as a client does before they leave.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use sealflow::columns::{Found, Locator, json, splice};
use sealflow::pipeline::{Outcome, Record, Route, StopKind, Transform, TransformError};
use sealflow::policy::ColumnPath;
use sealflow_client::{RowId, RsaPublicJwk, SealError, Session};

use super::read_public_key;
use crate::commands::stream::{Input, Outputs, StreamArgs, pass};
use crate::failure::{Failure, Result};
use crate::files;
use crate::signals;
use crate::term::note;

/// Seal fields of JSON records to the backend's RSA key
///
/// Each value becomes a JWE under the key of a session, and each record carries its session in a field. The policy that opens
/// them has `flow: hybrid` for the columns, and names that field as `client: { session: … }`. Every other byte stays.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    stream: StreamArgs,
    /// The backend's public key: a JWK, or a JWK set whose first key is taken
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The dataset that the values belong to
    #[arg(long, value_name = "NAME")]
    dataset: String,
    /// A field to seal, as the policy names it: `user.email`, `cards[*].number`; may be repeated
    #[arg(long = "column", value_name = "PATH", required = true)]
    columns: Vec<ColumnPath>,
    /// The name of the record's member for its session
    #[arg(long, value_name = "NAME", default_value = "session")]
    session: String,
    /// The field that names a record's row, if the policy binds these columns (`bind_row`)
    #[arg(long, value_name = "PATH")]
    bind_row: Option<ColumnPath>,
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    args.stream.check_outputs(&[])?;
    signals::remove_half_written_files()?;
    let key = read_public_key(&args.key)?;
    let sealing = Sealing::new(args, key)?;
    let input = Input::open(&args.stream)?;
    let outputs = Outputs::create(&args.stream, files::Access::Shared, None, None)?;
    let passed = pass(input, &sealing, outputs).await?;
    let output = args.stream.output.as_deref().unwrap_or(Path::new("standard output"));
    note(format_args!(
        "sealed {} values of {} records into {}",
        sealing.values(),
        passed.records,
        output.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// The sessions of one run.
struct Sealing {
    locator: Locator,
    labels: Vec<String>,
    is_bound: bool,
    session_name: Vec<u8>,
    key: RsaPublicJwk,
    dataset: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<Session>,
    values: u64,
}

impl Sealing {
    fn new(args: &Args, key: RsaPublicJwk) -> Result<Self> {
        // The session's member is looked for, so that none is there twice.
        let session: ColumnPath = serde_json::to_string(&args.session)
            .unwrap_or_default()
            .parse()
            .map_err(|error| Failure::usage(format_args!("--session: {error}"), "give the name of a member"))?;
        let mut fields = vec![session];
        fields.extend(args.bind_row.clone());
        let locator = Locator::new(&args.columns, &fields)
            .map_err(|error| Failure::usage(format_args!("--column: {error}"), "name fields that do not overlap"))?;
        let mut session_name = Vec::new();
        json::write_string(&args.session, &mut session_name);
        Ok(Self {
            locator,
            labels: args.columns.iter().map(ToString::to_string).collect(),
            is_bound: args.bind_row.is_some(),
            session_name,
            key,
            dataset: args.dataset.clone(),
            state: Mutex::default(),
        })
    }

    fn values(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).values
    }

    fn record(&self, mut record: Record, found: &mut Found, state: &mut State) -> std::result::Result<Record, String> {
        let text = record.value.clone().unwrap_or_default();
        self.locator.locate(&text, found).map_err(|error| error.to_string())?;
        if found.fields.iter().any(|field| field.field == 0) {
            return Err("the record has a member for the session already".to_owned());
        }
        let mut rows = found.fields.iter().filter(|field| field.field == 1);
        let row = match (self.is_bound, rows.next(), rows.next()) {
            (false, ..) => None,
            (true, Some(field), None) => Some(std::str::from_utf8(&text[field.range()]).map_err(|e| e.to_string())?),
            (true, ..) => return Err("the field of --bind-row is not there once".to_owned()),
        };
        // One session for the whole record: near its limits the next one begins before.
        let session = self.session(state, found.hits.len())?;
        let mut sealed = Vec::new();
        for hit in &found.hits {
            let value = &text[hit.range()];
            if value == b"null" {
                continue;
            }
            let label = &self.labels[usize::from(hit.column)];
            let jwe = match row {
                Some(row) => {
                    RowId::new(row, found.indexes(hit)).and_then(|row| session.seal_in_row(label, value, &row))
                }
                None => session.seal(label, value),
            };
            sealed.push((hit.range(), format!("\"{}\"", jwe.map_err(|error| error.to_string())?)));
        }
        if sealed.is_empty() {
            return Ok(record);
        }
        let values = sealed.len() as u64;
        let token = session.token().to_owned();
        state.values += values;
        let brace = text.iter().position(|byte| *byte == b'{').unwrap_or(0);
        if sealed[0].0.start <= brace {
            return Err("the record is not an object".to_owned());
        }
        let name = String::from_utf8_lossy(&self.session_name);
        let member = format!("{name}:\"{token}\",");
        let all = std::iter::once((brace + 1..brace + 1, member)).chain(sealed);
        let all: Vec<_> = all.collect();
        let mut out = Vec::with_capacity(text.len() + all.iter().map(|(_, text)| text.len()).sum::<usize>());
        splice(
            &text,
            all.iter().map(|(range, text)| (range.clone(), text.as_bytes())),
            &mut out,
        );
        record.value = Some(out.into());
        Ok(record)
    }

    fn session<'s>(&self, state: &'s mut State, values: usize) -> std::result::Result<&'s mut Session, String> {
        let is_usable = state
            .session
            .as_ref()
            .is_some_and(|session| session.has_room(values as u64));
        if !is_usable {
            let next = Session::begin(&self.key, &self.dataset).map_err(|error: SealError| error.to_string())?;
            state.session = Some(next);
        }
        state.session.as_mut().ok_or_else(|| "no session".to_owned())
    }
}

#[async_trait]
impl Transform for Sealing {
    async fn apply(&self, records: Vec<Record>) -> std::result::Result<Vec<Outcome>, TransformError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = Found::default();
        let mut outcomes = Vec::with_capacity(records.len());
        for record in records {
            // People count from 1.
            let place = format!("{}: record {}", record.position.topic, record.position.offset + 1);
            let record = self.record(record, &mut found, &mut state);
            let record = record.map_err(|reason| TransformError::Stop {
                kind: StopKind::Data,
                reason: format!("{place} cannot be sealed: {reason}"),
                help: "mend the record; nothing was written".to_owned(),
            })?;
            outcomes.push(Outcome {
                route: Route::Target,
                record,
            });
        }
        Ok(outcomes)
    }
}
