//! Values that clients sealed: found with the others, opened before the batch is sealed, and then like all others.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use super::dead_letter::CANNOT_OPEN;
use super::hints::{self, Domains};
use super::jobs::{Bound, Item, Jobs, Spelling};
use super::plan::{Place, Plan, Rejection};
use super::record::Record;
use super::seal::FETCHES;
use super::set_aside::{joined, service_stop};
use super::transform::TransformError;
use crate::columns::json;
use crate::flow::enclave::ValueKey;
use crate::flow::hybrid::values::{Found, NotOpened, check_place, open};
use crate::flow::hybrid::{ClientKeyError, ClientKeys, MAX_SESSION_BYTES};
use crate::jose::jwe::{ContentKey, Jwe, JweHeader, KeyManagement, session_id};
use crate::jose::mac::MacJws;
use crate::policy::{ClientRule, ClientSealed, ColumnRule, Flow, SESSION_HEADER};

/// The most values with a key of their own in one record, and in one batch, which closes behind it.
pub(super) const MAX_WRAPPED: usize = 1_024;
/// The most sessions that one record may carry in headers.
const MAX_SESSIONS: usize = 8;
/// Code of values that come in clear where the policy wants them sealed by the client.
pub(super) const NOT_CLIENT_SEALED: &str = "not-client-sealed";
/// How every JWE begins: base64url of `{"`.
const BEGINNING: &[u8] = b"eyJ";

/// A value that a client sealed, not opened yet.
pub(super) struct Pending {
    pub(super) rule: usize,
    pub(super) place: Place,
    /// What it says of who sealed it, if its column wants that and it is of that shape.
    pub(super) proof: Option<MacJws>,
    bound: Bound,
    /// Where in the record's value its session is, if the policy names a field and it is there.
    session: Option<Range<usize>>,
    /// Whether its plaintext stays in place, because its column is encrypted as a whole.
    stays: bool,
}

/// What became of a pending value.
pub(super) enum Opened {
    /// It is sealed with the batch.
    Sealed(Item),
    /// Its plaintext goes to its place.
    Clear(Place, Zeroizing<Vec<u8>>),
}

/// Whether `text`, a JSON value or the bytes of a key or header, was sealed by a client; an error if it had to be.
pub(super) fn is_sealed(rule: &ColumnRule, place: Place, text: &[u8]) -> Result<bool, Rejection> {
    if rule.flow == Flow::Direct {
        return Ok(false);
    }
    let text = match place {
        Place::Value { .. } => text.strip_prefix(b"\"").unwrap_or_default(),
        _ => text,
    };
    if text.starts_with(BEGINNING) {
        return Ok(true);
    }
    match rule.client_sealed {
        ClientSealed::Optional => Ok(false),
        ClientSealed::Required | ClientSealed::Authenticated | ClientSealed::Once => Err(Rejection::new(
            NOT_CLIENT_SEALED,
            format!(
                "a value of column {} comes in clear, the policy wants it sealed by the client",
                rule.path
            ),
        )),
    }
}

impl Pending {
    /// Notes a value, and counts it if it has a key of its own.
    pub(super) fn note(
        plan: &Plan,
        (rule, place): (usize, Place),
        text: &[u8],
        bound: Bound,
        session: Option<Range<usize>>,
        stays: bool,
        jobs: &mut Jobs,
    ) -> Self {
        let proof = match plan.rules()[rule].client_sealed.is_authenticated() {
            true => proof_of(place, text),
            false => None,
        };
        // `HEADER..`: a session's value has no key between its first dots.
        let jwe = proof.as_ref().map_or(text, |jws| jws.jwe().as_bytes());
        let key = jwe.split(|byte| *byte == b'.').nth(1);
        let is_wrapped = key.is_none_or(|key| !key.is_empty());
        jobs.wrapped += usize::from(is_wrapped);
        Self {
            rule,
            place,
            proof,
            bound,
            session,
            stays,
        }
    }

    /// Who it says that sealed it.
    pub(super) fn client(&self) -> Option<String> {
        self.proof.as_ref().map(|jws| jws.header.client.clone())
    }

    /// The row that it is bound to; empty if to none.
    pub(super) fn row(&self) -> &[u8] {
        &self.bound.row
    }

    /// A refusal of this value, of which it is known who sealed it if it says so at all.
    fn refused(&self, rejection: Rejection) -> Refusal {
        Refusal::new(self.rule, self.client(), rejection)
    }

    /// The text of its JWE.
    fn jwe<'r>(&'r self, record: &'r Record) -> Result<Cow<'r, str>, Rejection> {
        match &self.proof {
            Some(jws) => Ok(Cow::Borrowed(jws.jwe())),
            None => text_of(record, self.place),
        }
    }
}

/// What a value says of who sealed it. `text` is JSON in a record's value, bytes elsewhere.
fn proof_of(place: Place, text: &[u8]) -> Option<MacJws> {
    let text = match place {
        Place::Value { .. } => json::string_value(text)?,
        _ => Cow::Borrowed(std::str::from_utf8(text).ok()?),
    };
    MacJws::parse(&text).ok()
}

/// A value of a client that was refused, and its record with it.
pub(super) struct Refusal {
    /// The rule of its column, if it is told.
    pub(super) rule: Option<usize>,
    /// The client that sealed it, if that was proved.
    pub(super) client: Option<String>,
    pub(super) rejection: Rejection,
}

impl Refusal {
    pub(super) fn new(rule: usize, client: Option<String>, rejection: Rejection) -> Self {
        Self {
            rule: Some(rule),
            client,
            rejection,
        }
    }

    /// Of a value whose column is not told.
    pub(super) fn of_no_column(rejection: Rejection) -> Self {
        Self {
            rule: None,
            client: None,
            rejection,
        }
    }
}

/// Opens the pending values of a batch.
pub(super) struct ClientValues<'a> {
    plan: &'a Plan,
    rule: &'a ClientRule,
    /// What is to be unwrapped, and whether it is a session.
    wanted: Vec<(String, bool)>,
    /// Sessions among them by their name.
    sessions: HashMap<String, (Bytes, usize)>,
    /// Headers of values by their text: those of one session and column are equal.
    headers: HashMap<String, Arc<JweHeader>>,
}

/// What could be unwrapped, in the order in which it was wanted.
pub(super) struct Unwrapped(Vec<Option<Arc<ContentKey>>>);

impl<'a> ClientValues<'a> {
    /// Of the hybrid or of the enclave columns of a policy, as the rule is that of the one or the other.
    pub(super) fn new(plan: &'a Plan, rule: &'a ClientRule) -> Self {
        Self {
            plan,
            rule,
            wanted: Vec::new(),
            sessions: HashMap::new(),
            headers: HashMap::new(),
        }
    }

    /// Looks at the pending values of a record without a key: whether each says that it belongs where it is, and what is
    /// to be unwrapped for it.
    pub(super) fn look(&mut self, record: &Record, pending: &[Pending]) -> Result<Vec<usize>, Refusal> {
        let mut carried = Carried::default();
        let look = |value: &Pending| {
            let looked = self.look_at(record, value, &mut carried);
            looked.map_err(|rejection| value.refused(rejection))
        };
        pending.iter().map(look).collect()
    }

    fn look_at(&mut self, record: &Record, value: &Pending, carried: &mut Carried) -> Result<usize, Rejection> {
        let text = value.jwe(record)?;
        let jwe = Jwe::parse(&text).map_err(|_| cannot_open())?;
        let header = match self.headers.get(jwe.protected()) {
            Some(header) => Arc::clone(header),
            None => {
                let header = Arc::new(jwe.header().map_err(|_| cannot_open())?);
                self.headers.insert(jwe.protected().to_owned(), Arc::clone(&header));
                header
            }
        };
        // Two values with one header may differ in what comes behind it.
        if jwe.has_encrypted_key() != (header.key_management == KeyManagement::RsaOaep256) {
            return Err(cannot_open());
        }
        let rule = &self.plan.rules()[value.rule];
        let found = Found {
            policy: self.plan.policy.policy(),
            label: &rule.label,
            row: rule.bind_row.as_ref().map(|_| value.bound.row.as_slice()),
            client: value.proof.as_ref().map(|jws| jws.header.client.as_str()),
        };
        check_place(&header, found).map_err(|_| cannot_open())?;
        match header.key_management {
            KeyManagement::Direct => {
                carried.read(record, self.rule, value.session.as_ref());
                self.session(carried, &header.kid)
            }
            KeyManagement::RsaOaep256 => {
                self.wanted.push((text.into_owned(), false));
                Ok(self.wanted.len() - 1)
            }
        }
    }

    /// The session of that name, if the record carries it.
    fn session(&mut self, carried: &mut Carried, kid: &str) -> Result<usize, Rejection> {
        if let Some((session, wanted)) = self.sessions.get(kid) {
            return if carried.sessions.contains(session) {
                Ok(*wanted)
            } else {
                Err(cannot_open())
            };
        }
        let found = carried.names().iter().position(|name| name.as_deref() == Some(kid));
        let session = found.and_then(|n| carried.sessions.get(n)).ok_or_else(cannot_open)?;
        let text = std::str::from_utf8(session).map_err(|_| cannot_open())?;
        let wanted = self.wanted.len();
        self.wanted.push((text.to_owned(), true));
        self.sessions.insert(kid.to_owned(), (session.clone(), wanted));
        Ok(wanted)
    }

    /// The sessions that are wanted, and for each that is wanted where the key is: what the enclave worker is asked with.
    pub(super) fn into_sessions(self) -> (Vec<String>, Vec<ValueKey>) {
        let (mut sessions, mut keys) = (Vec::new(), Vec::with_capacity(self.wanted.len()));
        for (text, is_session) in self.wanted {
            keys.push(match (is_session, u32::try_from(sessions.len())) {
                (true, Ok(number)) => {
                    sessions.push(text);
                    ValueKey::Session(number)
                }
                _ => ValueKey::Own,
            });
        }
        (sessions, keys)
    }

    /// Has all that is wanted unwrapped, side by side.
    pub(super) async fn unwrap(&mut self, keys: &ClientKeys) -> Result<Unwrapped, TransformError> {
        let wanted = std::mem::take(&mut self.wanted);
        let mut unwrapped = vec![None; wanted.len()];
        let mut fetches = JoinSet::new();
        // What is under way ends before a failure is told: its answers are remembered, and count when the batch is tried again.
        let mut failure: Option<TransformError> = None;
        let mut fetched = |answer: (usize, Result<Arc<ContentKey>, ClientKeyError>)| {
            let failed = match answer.1 {
                Ok(key) => {
                    unwrapped[answer.0] = Some(key);
                    return failure.is_some();
                }
                Err(ClientKeyError::Refused) => return failure.is_some(),
                Err(ClientKeyError::Service(error)) if !error.is_retryable() => service_stop(&error),
                Err(error) => TransformError::Retry {
                    reason: error.to_string(),
                },
            };
            failure.get_or_insert(failed);
            true
        };
        for (n, (text, is_session)) in wanted.into_iter().enumerate() {
            if fetches.len() >= FETCHES
                && let Some(done) = fetches.join_next().await
                && fetched(joined(done)?)
            {
                break;
            }
            let (keys, rule) = (keys.clone(), self.rule.clone());
            fetches.spawn(async move {
                let key = match is_session {
                    true => keys.session(&rule, &text).await,
                    false => keys.of_value(&rule, &text).await,
                };
                (n, key)
            });
        }
        while let Some(done) = fetches.join_next().await {
            fetched(joined(done)?);
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(Unwrapped(unwrapped)),
        }
    }

    /// Opens the pending values of a record, and adds them to the jobs.
    pub(super) fn open(
        &self,
        record: &Record,
        pending: Vec<(Pending, usize)>,
        unwrapped: &Unwrapped,
        domains: &Domains,
        jobs: &mut Jobs,
    ) -> Result<Vec<Opened>, Refusal> {
        let mut all = Vec::with_capacity(pending.len());
        for (value, wanted) in pending {
            let (rule, client) = (value.rule, value.client());
            let key = unwrapped.0.get(wanted).and_then(Option::as_ref);
            let opened = self.open_one(record, &value, key.map(AsRef::as_ref), domains, jobs, &mut all);
            opened.map_err(|rejection| Refusal::new(rule, client, rejection))?;
        }
        Ok(all)
    }

    /// Opens one, and adds it and its hints to the jobs.
    fn open_one(
        &self,
        record: &Record,
        value: &Pending,
        key: Option<&ContentKey>,
        domains: &Domains,
        jobs: &mut Jobs,
        all: &mut Vec<Opened>,
    ) -> Result<(), Rejection> {
        let key = key.ok_or_else(cannot_open)?;
        let text = value.jwe(record)?;
        let jwe = Jwe::parse(&text).map_err(|_| cannot_open())?;
        let is_json = matches!(value.place, Place::Value { .. });
        let plain = open(key, &jwe, is_json).map_err(|error| match error {
            NotOpened::CannotOpen => cannot_open(),
            NotOpened::NotJson => not_json(),
        })?;
        if value.stays {
            all.push(Opened::Clear(value.place, plain));
            return Ok(());
        }
        if let Place::Value { end, .. } = value.place {
            for hint in self.plan.hints(value.rule) {
                let Some(derived) = hints::derive(&self.plan.rules()[*hint], &plain, domains)? else {
                    continue;
                };
                let behind = Place::Value { start: end, end };
                let bound = value.bound.of_hint(self.plan, *hint);
                let slot = jobs.push(self.plan, domains, (*hint, Spelling::Json), &derived, &bound)?;
                all.push(Opened::Sealed(slot.at(behind)));
            }
        }
        let of = (value.rule, Spelling::of(value.place));
        let slot = jobs.push(self.plan, domains, of, &plain, &value.bound)?;
        all.push(Opened::Sealed(slot.at(value.place)));
        Ok(())
    }
}

/// The text of a JWE as it stands in a record.
pub(super) fn text_of(record: &Record, place: Place) -> Result<Cow<'_, str>, Rejection> {
    let bytes = match place {
        Place::Value { start, end } => {
            let value = record.value.as_deref().unwrap_or_default();
            let text = value.get(start..end).unwrap_or_default();
            return json::string_value(text).ok_or_else(cannot_open);
        }
        Place::Key => record.key.as_deref(),
        Place::Header(n) => record.headers.get(n).and_then(|header| header.value.as_deref()),
    };
    let text = std::str::from_utf8(bytes.unwrap_or_default()).map_err(|_| cannot_open())?;
    Ok(Cow::Borrowed(text))
}

/// The sessions that a record carries, for one value after the other: they are read, and named, once.
#[derive(Default)]
struct Carried {
    /// Where they were read: for records whose documents have a session each.
    field: Option<Range<usize>>,
    is_read: bool,
    sessions: Vec<Bytes>,
    /// Their names, once one was asked for; `None` for what is no text.
    names: Option<Vec<Option<String>>>,
}

impl Carried {
    /// In the field that the policy names, or in headers. What is longer than any session is none, so that it costs nothing.
    fn read(&mut self, record: &Record, rule: &ClientRule, field: Option<&Range<usize>>) {
        if self.is_read && self.field.as_ref() == field {
            return;
        }
        self.sessions = match &rule.session {
            Some(_) => in_field(record, field).into_iter().collect(),
            None => {
                let named = record.headers.iter().filter(|header| header.name == SESSION_HEADER);
                named
                    .filter_map(|header| header.value.clone())
                    .take(MAX_SESSIONS)
                    .collect()
            }
        };
        self.sessions.retain(|session| session.len() <= MAX_SESSION_BYTES);
        (self.field, self.is_read, self.names) = (field.cloned(), true, None);
    }

    fn names(&mut self) -> &[Option<String>] {
        let sessions = &self.sessions;
        self.names.get_or_insert_with(|| {
            let name = |session: &Bytes| std::str::from_utf8(session).ok().map(session_id);
            sessions.iter().map(name).collect()
        })
    }
}

fn in_field(record: &Record, field: Option<&Range<usize>>) -> Option<Bytes> {
    let (value, range) = (record.value.as_ref()?, field?);
    // No session is longer, also with every character spelled as an escape.
    if range.len() > 6 * MAX_SESSION_BYTES + 2 {
        return None;
    }
    Some(match json::string_value(value.get(range.clone())?)? {
        // As it stands between its quotes.
        Cow::Borrowed(_) => value.slice(range.start + 1..range.end - 1),
        Cow::Owned(text) => text.into_bytes().into(),
    })
}

/// What opens, and is not one JSON value.
pub(super) fn not_json() -> Rejection {
    Rejection::new(
        "not-json",
        "what the client sealed is not one JSON value without white space around it",
    )
}

/// Whatever is wrong with what a client sealed.
pub(super) fn cannot_open() -> Rejection {
    Rejection::new(CANNOT_OPEN, "what the client sealed does not open here")
}
