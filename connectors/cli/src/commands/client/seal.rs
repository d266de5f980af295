//! `client seal`: fields of JSON records, sealed as a client does before they leave.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use sealflow::columns::{Found, Hit, Locator, splice};
use sealflow::pipeline::{Outcome, Record, Route, StopKind, Transform, TransformError};
use sealflow::policy::ColumnPath;
use sealflow_client::{ClientMac, EnclaveKey, EnclaveLabels, RowId, RsaPublicJwk, SealError, Session};

use zeroize::Zeroizing;

use super::enclave::EnclaveArgs;
use super::read_public_key;
use super::recipient::{Carrier, Recipient, To, written};
use crate::commands::stream::{Input, Outputs, Passed, StreamArgs, pass_if};
use crate::failure::{Exit, Failure, Result};
use crate::files;
use crate::signals;
use crate::term::note;

/// Values with a key of their own in one record: pipelines open no more.
const MAX_OF_THEIR_OWN: usize = 1_024;
pub(super) const MEND: &str = "mend the record; nothing of it was written";

/// Seal fields of JSON records to the backend's RSA key, or to an enclave's
///
/// Each value becomes a JWE under the key of a session, and each record carries its session in a field. The policy that opens
/// them has `flow: hybrid` for the columns, and names that field as `client: { session: … }`; or `flow: enclave`, and
/// `enclave: { session: … }`. Every other byte stays. A record without one of the columns is refused, and null stays null.
/// Enclave columns are sealed to a key that the policy's owner vouches for, and never to a bare one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    stream: StreamArgs,
    /// The backend's public key, for --column: a JWK, or a JWK set whose first key is taken
    #[arg(long, value_name = "FILE", required_unless_present = "enclave_keys")]
    key: Option<PathBuf>,
    /// The dataset that the values belong to
    #[arg(long, value_name = "NAME")]
    dataset: String,
    /// A field to seal, as the policy names it: `user.email`, `cards[*].number`; may be repeated. Every record has it
    #[arg(long = "column", value_name = "PATH", required_unless_present_any = ["optional_columns", "enclave_columns", "optional_enclave_columns"])]
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
    #[command(flatten)]
    enclave: EnclaveArgs,
    /// A field to seal for the enclave, as the policy names it; may be repeated. Every record has it
    #[arg(long = "enclave-column", value_name = "PATH", help_heading = "Enclave columns")]
    enclave_columns: Vec<ColumnPath>,
    /// A field to seal for the enclave that not every record has; may be repeated
    #[arg(
        long = "optional-enclave-column",
        value_name = "PATH",
        help_heading = "Enclave columns"
    )]
    optional_enclave_columns: Vec<ColumnPath>,
    /// Where the session for the enclave goes, as the policy names it
    #[arg(
        long,
        value_name = "PATH",
        default_value = "enclave_session",
        conflicts_with = "per_value",
        help_heading = "Enclave columns"
    )]
    enclave_session: ColumnPath,
}

impl Args {
    fn has_enclave_columns(&self) -> bool {
        !self.enclave_columns.is_empty() || !self.optional_enclave_columns.is_empty()
    }

    /// Which key is for which columns, said before any file is read.
    fn check(&self) -> Result<()> {
        let has_others = !self.columns.is_empty() || !self.optional_columns.is_empty();
        match (&self.enclave.enclave_keys, &self.key) {
            (None, _) if self.has_enclave_columns() => Err(Failure::usage(
                "--enclave-column without --enclave-keys: a bare key is not enough for an enclave's column",
                "whoever serves a bare key could serve their own; give the document that the policy's owner signed, and \
                 --owner THUMBPRINT",
            )),
            (Some(_), _) if !self.has_enclave_columns() => Err(Failure::usage(
                "--enclave-keys, and no column that is sealed to them",
                "name the fields by --enclave-column",
            )),
            (_, None) if has_others => Err(Failure::usage(
                "--column without --key",
                "give the key that `sealflow keys public` prints; what is the enclave's is named by --enclave-column",
            )),
            (_, Some(_)) if !has_others => Err(Failure::usage(
                "--key, and no column that is sealed to it",
                "leave it out: the enclave's columns have their own keys",
            )),
            _ => Ok(()),
        }
    }
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    args.check()?;
    args.stream.check_outputs(&[])?;
    signals::remove_half_written_files()?;
    let enclave = match &args.enclave.enclave_keys {
        Some(path) => Some(args.enclave.read(path, &args.dataset)?),
        None => None,
    };
    let key = args.key.as_deref().map(read_public_key).transpose()?;
    let mac = args.mac_key.as_deref().map(read_mac_key).transpose()?;
    let sealing = Sealing::new(args, key, enclave, mac)?;
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

/// A field to seal.
struct Column {
    label: String,
    /// Whether every record has to have it.
    is_needed: bool,
    /// Index of whom it is sealed to.
    recipient: usize,
}

/// What is sealed, and how.
struct Sealing {
    locator: Locator,
    columns: Vec<Column>,
    is_bound: bool,
    recipients: Vec<Recipient>,
    /// Proves who sealed.
    mac: Option<Arc<ClientMac>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of each recipient.
    sessions: Vec<Option<Session>>,
    values: u64,
    /// Places of columns, nulls too.
    found: u64,
}

/// Why a record is not sealed, and what to do.
pub(super) struct Refusal {
    reason: String,
    help: String,
}

impl Refusal {
    pub(super) fn new(reason: impl Into<String>, help: impl Into<String>) -> Self {
        let (reason, help) = (reason.into(), help.into());
        Self { reason, help }
    }
}

impl From<SealError> for Refusal {
    fn from(error: SealError) -> Self {
        let help = match error {
            SealError::KeyEnded => "fetch the newest enclave keys from the service; nothing of the record was written",
            SealError::NoRandom => "try again",
            _ => MEND,
        };
        Self::new(error.to_string(), help)
    }
}

impl Sealing {
    fn new(
        args: &Args,
        key: Option<RsaPublicJwk>,
        enclave: Option<EnclaveKey>,
        mac: Option<ClientMac>,
    ) -> Result<Self> {
        let mut paths: Vec<ColumnPath> = Vec::new();
        let mut columns: Vec<Column> = Vec::new();
        let mut recipients: Vec<Recipient> = Vec::new();
        let mut add = |to: To, option: &str, session: &ColumnPath, needed: &[ColumnPath], others: &[ColumnPath]| {
            for path in needed.iter().chain(others) {
                paths.push(path.clone());
                columns.push(Column {
                    label: path.to_string(),
                    is_needed: needed.contains(path),
                    recipient: recipients.len(),
                });
            }
            let carrier = match args.per_value {
                true => None,
                false => Some(Carrier::new(option, session)?),
            };
            recipients.push(Recipient { to, carrier });
            Ok::<_, Failure>(())
        };
        let of_enclave: EnclaveLabels = enclave.iter().flat_map(|key| key.labels().iter().cloned()).collect();
        if let Some(key) = key {
            for path in args.columns.iter().chain(&args.optional_columns) {
                check_bare(path, enclave.as_ref())?;
            }
            let to = To::Bare {
                key,
                dataset: args.dataset.clone(),
                enclave: of_enclave,
            };
            add(to, "--session", &args.session, &args.columns, &args.optional_columns)?;
        }
        if let Some(key) = enclave {
            for path in args.enclave_columns.iter().chain(&args.optional_enclave_columns) {
                check_enclave(path, &key)?;
            }
            let (needed, others) = (&args.enclave_columns, &args.optional_enclave_columns);
            add(
                To::Enclave(key),
                "--enclave-session",
                &args.enclave_session,
                needed,
                others,
            )?;
        }
        // The sessions' members are looked for, so that none is there twice.
        let mut fields: Vec<ColumnPath> = Vec::new();
        for recipient in &recipients {
            match (&recipient.carrier, &recipient.to) {
                (Some(_), To::Bare { .. }) => fields.push(args.session.clone()),
                (Some(_), To::Enclave(_)) => fields.push(args.enclave_session.clone()),
                (None, _) => {}
            }
        }
        if let [one, other] = &fields[..]
            && one == other
        {
            return Err(Failure::usage(
                format_args!("{one} for both sessions"),
                "one field holds one session: choose another --enclave-session, and name it in the policy",
            ));
        }
        fields.extend(args.bind_row.clone());
        let locator = Locator::new(&paths, &fields)
            .map_err(|error| Failure::usage(format_args!("--column: {error}"), "name fields that do not overlap"))?;
        let state = State {
            sessions: recipients.iter().map(|_| None).collect(),
            ..State::default()
        };
        Ok(Self {
            locator,
            columns,
            is_bound: args.bind_row.is_some(),
            recipients,
            mac: mac.map(Arc::new),
            state: Mutex::new(state),
        })
    }

    fn column(&self, hit: &Hit) -> &Column {
        // The locator was made of these columns.
        &self.columns[usize::from(hit.column)]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, mut record: Record, found: &mut Found, state: &mut State) -> std::result::Result<Record, Refusal> {
        let text = record.value.clone().unwrap_or_default();
        let located = self.locator.locate(&text, found);
        located.map_err(|error| Refusal::new(error.to_string(), MEND))?;
        self.check_columns(found)?;
        let carriers = self.recipients.iter().filter(|recipient| recipient.carrier.is_some());
        // There are two at most.
        let row_field = u16::try_from(carriers.count()).unwrap_or(u16::MAX);
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
        let is_null = |hit: &Hit| &text[hit.range()] == b"null";
        let hits: Vec<&Hit> = found.hits.iter().filter(|hit| !is_null(hit)).collect();
        let mut members = Vec::new();
        let mut of_their_own = 0;
        for (n, recipient) in self.recipients.iter().enumerate() {
            let values = hits.iter().filter(|hit| self.column(hit).recipient == n).count();
            match &recipient.carrier {
                // One session for the whole record: near its limits the next one begins before.
                Some(carrier) if values > 0 => {
                    let session = session(&mut state.sessions[n], values, recipient, self.mac.as_ref())?;
                    members.push(carrier.place(&text, session.token())?);
                }
                Some(_) => {}
                None => of_their_own += values,
            }
        }
        if of_their_own > MAX_OF_THEIR_OWN {
            return Err(Refusal::new(
                format!("more than {MAX_OF_THEIR_OWN} values with a key of their own in one record: nobody opens them"),
                "seal them in a session: leave --per-value out",
            ));
        }
        let mut replaced = written(members);
        for hit in &hits {
            let row = row.map(|row| RowId::new(row, found.indexes(hit))).transpose()?;
            let column = self.column(hit);
            let (label, value) = (&column.label, &text[hit.range()]);
            let sealed = match (&mut state.sessions[column.recipient], &row) {
                (Some(session), Some(row)) => session.seal_in_row(label, value, row),
                (Some(session), None) => session.seal(label, value),
                (None, row) => {
                    self.recipients[column.recipient].seal_value(label, value, row.as_ref(), self.mac.as_deref())
                }
            };
            replaced.push((hit.range(), format!("\"{}\"", sealed?)));
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
        for (n, column) in self.columns.iter().enumerate().filter(|(_, column)| column.is_needed) {
            if !found.hits.iter().any(|hit| usize::from(hit.column) == n) {
                return Err(Refusal::new(
                    format!("there is no {} in it", column.label),
                    "correct --column, or name a field that not every record has by --optional-column; nothing of the record \
                     was written",
                ));
            }
        }
        Ok(())
    }
}

/// The session for a record of so many values: the one that is used, or the next.
fn session<'s>(
    used: &'s mut Option<Session>,
    values: usize,
    recipient: &Recipient,
    mac: Option<&Arc<ClientMac>>,
) -> std::result::Result<&'s Session, Refusal> {
    let usable = used.take().filter(|session| session.has_room(values as u64));
    let session = match usable {
        Some(session) => session,
        None => recipient.begin(mac)?,
    };
    Ok(used.insert(session))
}

/// A column that the enclave's document names is the enclave's.
fn check_bare(path: &ColumnPath, enclave: Option<&EnclaveKey>) -> Result<()> {
    if enclave.is_some_and(|key| key.is_for(&path.to_string())) {
        return Err(Failure::usage(
            format_args!("--column {path}: it is one of the enclave's, as the policy's owner says"),
            format_args!("name it by --enclave-column {path}"),
        ));
    }
    Ok(())
}

fn check_enclave(path: &ColumnPath, key: &EnclaveKey) -> Result<()> {
    if key.is_for(&path.to_string()) {
        return Ok(());
    }
    Err(Failure::config(
        format_args!("--enclave-column {path}: the enclave keys are not for it"),
        format_args!(
            "they are for {}; correct the path, or ask the policy's owner",
            key.labels().join(", ")
        ),
    ))
}

#[async_trait]
impl Transform for Sealing {
    async fn apply(&self, records: &[Record]) -> std::result::Result<Vec<Outcome>, TransformError> {
        // RSA is work if each value has its own: other tasks go on meanwhile.
        tokio::task::block_in_place(|| {
            let mut state = self.state();
            let mut found = Found::default();
            let mut outcomes = Vec::with_capacity(records.len());
            for record in records {
                // People count from 1.
                let place = format!("{}: record {}", record.position.topic, record.position.offset + 1);
                let record = self.record(record.clone(), &mut found, &mut state);
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
