//! `client seal`: fields of JSON records, sealed as a client does before they leave.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use sealflow::columns::{Found, Hit, Locator, json, splice};
use sealflow::pipeline::{Outcome, Record, Route, StopKind, Transform, TransformError};
use sealflow::policy::{ColumnPath, Root, Segment};
use sealflow_client::{ClientMac, RowId, RsaPublicJwk, SealError, Session, seal_value};

use zeroize::Zeroizing;

use super::read_public_key;
use crate::commands::stream::{Input, Outputs, Passed, StreamArgs, pass_if};
use crate::failure::{Exit, Failure, Result};
use crate::files;
use crate::signals;
use crate::term::note;

/// Values with a key of their own in one record: pipelines open no more.
const MAX_OF_THEIR_OWN: usize = 1_024;
const MEND: &str = "mend the record; nothing of it was written";

/// Seal fields of JSON records to the backend's RSA key
///
/// Each value becomes a JWE under the key of a session, and each record carries its session in a field. The policy that opens
/// them has `flow: hybrid` for the columns, and names that field as `client: { session: … }`. Every other byte stays. A record
/// without one of the columns is refused, and null stays null.
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
    /// A field to seal, as the policy names it: `user.email`, `cards[*].number`; may be repeated. Every record has it
    #[arg(long = "column", value_name = "PATH", required_unless_present = "optional_columns")]
    columns: Vec<ColumnPath>,
    /// A field to seal that not every record has; may be repeated
    #[arg(long = "optional-column", value_name = "PATH")]
    optional_columns: Vec<ColumnPath>,
    /// Where the session goes, as the policy names it: `session`, `meta.session`
    #[arg(long, value_name = "PATH", default_value = "session")]
    session: ColumnPath,
    /// Seal each value with a key of its own, and no session; it costs the backend an RSA operation each
    #[arg(long, conflicts_with = "session")]
    per_value: bool,
    /// The field that names a record's row, if the policy binds these columns (`bind_row`)
    #[arg(long, value_name = "PATH")]
    bind_row: Option<ColumnPath>,
    /// This client's own HMAC key, as `sealflow keys client` wrote it: proves who sealed, for columns with `client_sealed:
    /// authenticated` or `once`
    #[arg(long, value_name = "FILE")]
    mac_key: Option<PathBuf>,
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    args.stream.check_outputs(&[])?;
    signals::remove_half_written_files()?;
    let key = read_public_key(&args.key)?;
    let mac = args.mac_key.as_deref().map(read_mac_key).transpose()?;
    let sealing = Sealing::new(args, key, mac)?;
    let input = Input::open(&args.stream)?;
    let outputs = Outputs::create(&args.stream, files::Access::Shared, None, None)?;
    let found_something = |passed: &Passed| {
        if passed.records == 0 || sealing.state().found > 0 {
            return Ok(());
        }
        Err(Failure::new(
            Exit::Data,
            format_args!(
                "none of {} records has any of the columns, and nothing was sealed",
                passed.records
            ),
            "correct --optional-column: a path is spelled as the policy has it",
        ))
    };
    let passed = pass_if(input, &sealing, outputs, found_something).await?;
    let output = args.stream.output.as_deref().unwrap_or(Path::new("standard output"));
    note(format_args!(
        "sealed {} values of {} records into {}",
        sealing.state().values,
        passed.records,
        output.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn read_mac_key(path: &Path) -> Result<ClientMac> {
    let json = Zeroizing::new(files::read_small(path)?);
    ClientMac::from_jwk(&json).map_err(|error| {
        Failure::config(
            format_args!("{}: {error}", path.display()),
            "give the file that `sealflow keys client` wrote for this client",
        )
    })
}

/// What is sealed, and how.
struct Sealing {
    locator: Locator,
    labels: Vec<String>,
    /// How many of the labels every record has to have: the first ones.
    needed: usize,
    is_bound: bool,
    /// `None` if each value has a key of its own.
    carrier: Option<Carrier>,
    key: RsaPublicJwk,
    /// Proves who sealed.
    mac: Option<Arc<ClientMac>>,
    dataset: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<Session>,
    values: u64,
    /// Places of columns, nulls too.
    found: u64,
}

/// Where sessions go: a member of the record, or of an object in it.
struct Carrier {
    /// The member's name as JSON.
    name: String,
    /// The object that gets it; `None` for the record itself.
    within: Option<(String, Locator)>,
}

/// Why a record is not sealed, and what to do.
struct Refusal {
    reason: String,
    help: String,
}

impl Refusal {
    fn new(reason: impl Into<String>, help: impl Into<String>) -> Self {
        let (reason, help) = (reason.into(), help.into());
        Self { reason, help }
    }
}

impl Sealing {
    fn new(args: &Args, key: RsaPublicJwk, mac: Option<ClientMac>) -> Result<Self> {
        let columns: Vec<ColumnPath> = args.columns.iter().chain(&args.optional_columns).cloned().collect();
        let carrier = match args.per_value {
            true => None,
            false => Some(Carrier::new(&args.session)?),
        };
        // The session's member is looked for, so that none is there twice.
        let session = carrier.is_some().then(|| args.session.clone());
        let fields: Vec<ColumnPath> = session.into_iter().chain(args.bind_row.clone()).collect();
        let locator = Locator::new(&columns, &fields)
            .map_err(|error| Failure::usage(format_args!("--column: {error}"), "name fields that do not overlap"))?;
        Ok(Self {
            locator,
            labels: columns.iter().map(ToString::to_string).collect(),
            needed: args.columns.len(),
            is_bound: args.bind_row.is_some(),
            carrier,
            key,
            mac: mac.map(Arc::new),
            dataset: args.dataset.clone(),
            state: Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, mut record: Record, found: &mut Found, state: &mut State) -> std::result::Result<Record, Refusal> {
        let text = record.value.clone().unwrap_or_default();
        let located = self.locator.locate(&text, found);
        located.map_err(|error| Refusal::new(error.to_string(), MEND))?;
        self.check_columns(found)?;
        let row_field = u16::from(self.carrier.is_some());
        if found.fields.iter().any(|field| field.field < row_field) {
            return Err(Refusal::new("the record has a member for the session already", MEND));
        }
        let mut rows = found.fields.iter().filter(|field| field.field == row_field);
        let row = match (self.is_bound, rows.next(), rows.next()) {
            (false, ..) => None,
            (true, Some(field), None) => {
                let row = std::str::from_utf8(&text[field.range()]);
                Some(row.map_err(|error| Refusal::new(error.to_string(), MEND))?)
            }
            (true, ..) => return Err(Refusal::new("the field of --bind-row is not there once", MEND)),
        };
        let mut replaced = Vec::new();
        let is_null = |hit: &Hit| &text[hit.range()] == b"null";
        let hits: Vec<&Hit> = found.hits.iter().filter(|hit| !is_null(hit)).collect();
        let mut session = None;
        if let Some(carrier) = self.carrier.as_ref().filter(|_| !hits.is_empty()) {
            // One session for the whole record: near its limits the next one begins before.
            let begun = self.session(state, hits.len())?;
            replaced.push(carrier.place(&text, begun.token())?);
            session = Some(begun);
        } else if hits.len() > MAX_OF_THEIR_OWN {
            return Err(Refusal::new(
                format!("more than {MAX_OF_THEIR_OWN} values with a key of their own in one record: nobody opens them"),
                "seal them in a session: leave --per-value out",
            ));
        }
        for hit in &hits {
            let row = row.map(|row| RowId::new(row, found.indexes(hit))).transpose();
            let sealed = row.and_then(|row| {
                let (label, value) = (&self.labels[usize::from(hit.column)], &text[hit.range()]);
                match (&mut session, &row) {
                    (Some(session), Some(row)) => session.seal_in_row(label, value, row),
                    (Some(session), None) => session.seal(label, value),
                    (None, row) => seal_value(
                        &self.key,
                        &self.dataset,
                        label,
                        value,
                        row.as_ref(),
                        self.mac.as_deref(),
                    ),
                }
            });
            let text = sealed.map_err(|error| Refusal::new(error.to_string(), MEND))?;
            replaced.push((hit.range(), format!("\"{text}\"")));
        }
        state.found += found.hits.len() as u64;
        state.values += hits.len() as u64;
        if replaced.is_empty() {
            return Ok(record);
        }
        replaced.sort_by_key(|(range, _)| range.start);
        let mut out = Vec::with_capacity(text.len() + replaced.iter().map(|(_, text)| text.len()).sum::<usize>());
        let all = replaced.iter().map(|(range, text)| (range.clone(), text.as_bytes()));
        splice(&text, all, &mut out);
        record.value = Some(out.into());
        Ok(record)
    }

    /// A column that is not there may be one that is spelled in another way, and would leave in clear.
    fn check_columns(&self, found: &Found) -> std::result::Result<(), Refusal> {
        for (n, label) in self.labels.iter().enumerate().take(self.needed) {
            if !found.hits.iter().any(|hit| usize::from(hit.column) == n) {
                return Err(Refusal::new(
                    format!("there is no {label} in it"),
                    "correct --column, or name a field that not every record has by --optional-column; nothing of the record \
                     was written",
                ));
            }
        }
        Ok(())
    }

    fn session<'s>(&self, state: &'s mut State, values: usize) -> std::result::Result<&'s mut Session, Refusal> {
        let is_usable = |session: &Session| session.has_room(values as u64);
        let usable = state.session.take().filter(is_usable);
        let session = match usable {
            Some(session) => session,
            None => {
                let begun = Session::begin(&self.key, &self.dataset);
                let begun = begun.map_err(|error: SealError| Refusal::new(error.to_string(), "try again"))?;
                match &self.mac {
                    Some(mac) => begun.with_mac(Arc::clone(mac)),
                    None => begun,
                }
            }
        };
        Ok(state.session.insert(session))
    }
}

impl Carrier {
    fn new(path: &ColumnPath) -> Result<Self> {
        let wrong = |error: &dyn std::fmt::Display| {
            let help = "name a field without [*], as `client: { session: … }` of the policy does; or seal --per-value";
            Failure::usage(format_args!("--session: {error}"), help)
        };
        let is_clear = *path.root() == Root::Value && !path.segments().contains(&Segment::Each);
        let Some((Segment::Name(last), within)) = path.segments().split_last().filter(|_| is_clear) else {
            return Err(wrong(&"a session is one string in the value of a record"));
        };
        let mut name = Vec::new();
        json::write_string(last, &mut name);
        let within = match within {
            [] => None,
            within => {
                let within = ColumnPath::into_value(within.to_vec());
                let locator = Locator::new(std::slice::from_ref(&within), &[]).map_err(|error| wrong(&error))?;
                Some((within.to_string(), locator))
            }
        };
        Ok(Self {
            name: String::from_utf8_lossy(&name).into_owned(),
            within,
        })
    }

    /// What is written where, so that `text` has the session.
    fn place(&self, text: &[u8], token: &str) -> std::result::Result<(Range<usize>, String), Refusal> {
        let is_space = |byte: &u8| b" \t\r\n".contains(byte);
        let after_space = |from: usize| from + text[from..].iter().take_while(|byte| is_space(byte)).count();
        let (what, start) = match &self.within {
            None => ("the record".to_owned(), after_space(0)),
            Some((path, locator)) => {
                let mut found = Found::default();
                let located = locator.locate(text, &mut found);
                located.map_err(|error| Refusal::new(error.to_string(), MEND))?;
                let [hit] = found.hits[..] else {
                    let reason = format!("there is not one {path} in it, into which the session goes");
                    return Err(Refusal::new(reason, MEND));
                };
                (path.clone(), hit.range().start)
            }
        };
        if text.get(start) != Some(&b'{') {
            return Err(Refusal::new(
                format!("{what} is not an object, so that it has no member for the session"),
                "give one object a record, or seal each value by itself (--per-value)",
            ));
        }
        let at = start + 1;
        let is_empty = text.get(after_space(at)) == Some(&b'}');
        let comma = if is_empty { "" } else { "," };
        Ok((at..at, format!("{}:\"{token}\"{comma}", self.name)))
    }
}

#[async_trait]
impl Transform for Sealing {
    async fn apply(&self, records: Vec<Record>) -> std::result::Result<Vec<Outcome>, TransformError> {
        // RSA is work if each value has its own: other tasks go on meanwhile.
        tokio::task::block_in_place(|| {
            let mut state = self.state();
            let mut found = Found::default();
            let mut outcomes = Vec::with_capacity(records.len());
            for record in records {
                // People count from 1.
                let place = format!("{}: record {}", record.position.topic, record.position.offset + 1);
                let record = self.record(record, &mut found, &mut state);
                let record = record.map_err(|refusal| TransformError::Stop {
                    kind: StopKind::Data,
                    reason: format!("{place} cannot be sealed: {}", refusal.reason),
                    help: refusal.help,
                })?;
                outcomes.push(Outcome {
                    route: Route::Target,
                    record,
                });
            }
            Ok(outcomes)
        })
    }
}
