//! Finds the sealed values of records, fetches the keys that they name, and opens them one by one: what the opening
//! transform and the reader share.
//!
//! What a value opens as is checked against the place where it was found (place = label).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::{JoinError, JoinSet};

use super::dead_letter::CANNOT_OPEN;
use super::few::Few;
use super::open_columns::{At, ToOpen};
use super::output::too_large_unread;
use super::plan::{Place, Plan, Rejection};
use super::record::Record;
use super::seal::FETCHES;
use super::set_aside::joined;
use super::transform::TransformError;
use super::travelling::Travelling;
use crate::columns::{Found, Locator, json};
use crate::keys::{DomainError, DomainKeys, Envelope, LabelEntry, OpenKeyError, OpenedKey, OpeningKeys};
use crate::policy::{ColumnPath, Flow, Root};
use crate::seal::{DeterministicOpener, KeyId, RowId, SealedValue, value};

/// Opens values by one policy.
pub(super) struct Opener {
    pub(super) plan: Plan,
    pub(super) keys: OpeningKeys,
    pub(super) domains: DomainKeys,
    pub(super) failures: Failures,
}

/// What a key that cannot be had means: a rejection of the values that name it, or the end of the batch.
#[derive(Clone, Copy)]
pub(super) struct Failures {
    pub(super) key: fn(OpenKeyError) -> Result<Rejection, TransformError>,
    pub(super) domain: fn(DomainError) -> Result<Rejection, TransformError>,
}

/// What a sealed value says that it opens with.
#[derive(Clone, Copy)]
pub(super) enum Names {
    /// A data key, as the label of that index.
    Key(KeyId, u16),
    /// The secret of a domain.
    Domain(KeyId),
    /// It is no sealed value.
    Nothing,
}

impl Names {
    pub(super) fn of(sealed: &[u8]) -> Self {
        match SealedValue::parse(sealed) {
            Ok(SealedValue::Randomised { key, column, .. }) => Self::Key(key, column),
            Ok(SealedValue::Deterministic { key, .. }) => Self::Domain(key),
            Err(_) => Self::Nothing,
        }
    }

    /// The data key; `None` for a domain.
    pub(super) fn key(self) -> Result<Option<KeyId>, Rejection> {
        match self {
            Self::Key(key, _) => Ok(Some(key)),
            Self::Domain(_) => Ok(None),
            Self::Nothing => Err(not_sealed()),
        }
    }
}

/// One sealed value.
#[derive(Clone, Copy)]
pub(super) struct Value<'b> {
    pub(super) rule: usize,
    pub(super) names: Names,
    pub(super) sealed: &'b [u8],
    indexes: &'b [u32],
    /// The document that it lies in.
    document: (usize, usize),
    /// The row along the policy's own path, where the rule is bound and the record has one.
    row: Option<Row<'b>>,
}

/// The row of a value.
#[derive(Clone, Copy)]
enum Row<'b> {
    /// Its id.
    Id(&'b [u8]),
    /// Where in the record's value its field is.
    Field(u32, u32),
}

impl<'b> Value<'b> {
    /// As [`Value::alone`], of a row with that id.
    pub(super) fn in_row(rule: usize, sealed: &'b [u8], row: Option<&'b [u8]>) -> Self {
        Self {
            row: row.map(Row::Id),
            ..Self::alone(rule, sealed)
        }
    }

    /// Without a record.
    pub(super) fn alone(rule: usize, sealed: &'b [u8]) -> Self {
        Self {
            rule,
            names: Names::of(sealed),
            sealed,
            indexes: &[],
            document: (0, 0),
            row: None,
        }
    }
}

/// What the sealed values of a batch are made of, one behind the other: none asks for memory of its own.
#[derive(Default)]
pub(super) struct Values {
    /// Sealed bytes.
    bytes: Vec<u8>,
    /// List indexes.
    indexes: Vec<u32>,
    /// The documents that they lie in, begin and end.
    documents: Vec<(usize, usize)>,
    /// Bytes of the row ids of values: each has its own, so that together they may be longer than the record. They are written when
    /// the values are opened.
    row_bytes: u64,
    /// One of them.
    row: Vec<u8>,
}

/// How much of [`Values`] there was.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    bytes: usize,
    indexes: usize,
    documents: usize,
    row_bytes: u64,
}

/// Where one of [`Values`] is.
pub(super) struct Item {
    pub(super) rule: u32,
    pub(super) place: Place,
    pub(super) names: Names,
    from: usize,
    len: u32,
    /// Where in the record's value the field of its row is.
    row: Option<(u32, u32)>,
    indexes: usize,
    depth: u32,
    /// None for those of a record without documents.
    document: Option<u32>,
}

impl Values {
    pub(super) fn get(&self, item: &Item) -> Value<'_> {
        Value {
            rule: item.rule as usize,
            names: item.names,
            sealed: &self.bytes[item.from..][..item.len as usize],
            indexes: &self.indexes[item.indexes..][..item.depth as usize],
            document: item.document.map_or((0, 0), |n| self.documents[n as usize]),
            row: item.row.map(|(start, end)| Row::Field(start, end)),
        }
    }

    pub(super) fn row_bytes(&self) -> u64 {
        self.row_bytes
    }

    pub(super) fn mark(&self) -> Mark {
        Mark {
            bytes: self.bytes.len(),
            indexes: self.indexes.len(),
            documents: self.documents.len(),
            row_bytes: self.row_bytes,
        }
    }

    pub(super) fn truncate(&mut self, to: Mark) {
        self.bytes.truncate(to.bytes);
        self.indexes.truncate(to.indexes);
        self.documents.truncate(to.documents);
        self.row_bytes = to.row_bytes;
    }

    /// A value of `rule` at `place` in `document`: the sealed bytes behind `text`.
    fn add_text(
        &mut self,
        rule: usize,
        place: Place,
        document: Option<(usize, usize)>,
        text: &[u8],
    ) -> Result<Item, Rejection> {
        let from = self.bytes.len();
        value::read_text(text, &mut self.bytes).map_err(|_| not_sealed())?;
        Ok(Item {
            rule: small(rule)?,
            place,
            names: Names::of(&self.bytes[from..]),
            from,
            len: small(self.bytes.len() - from)?,
            row: None,
            indexes: self.indexes.len(),
            depth: 0,
            document: document.map(|document| self.number_of(document)).transpose()?,
        })
    }

    /// Documents without values are not held: a record may have millions.
    fn number_of(&mut self, document: (usize, usize)) -> Result<u32, Rejection> {
        if self.documents.last() != Some(&document) {
            self.documents.push(document);
        }
        small(self.documents.len() - 1)
    }
}

/// What no batch has four thousand million of.
fn small(n: usize) -> Result<u32, Rejection> {
    u32::try_from(n).map_err(|_| too_large_unread())
}

/// A place of a column, and the sealed value that is there, or why what is there is none; `None` for a null.
pub(super) type AtPlace = (usize, Place, Option<Result<Item, Rejection>>);

/// The entry of a value's label, and the id of its row, if it is bound to one.
type Claim<'k, 's> = (&'k LabelEntry, Option<&'s [u8]>);

/// A data key as a record asks for it: the key, and the fingerprint of the envelopes that travel with the record.
type AskedFor = (KeyId, u64);

/// Data keys and domains of a batch: found, or refused.
#[derive(Default)]
pub(super) struct Keyring {
    keys: Few<AskedFor, Result<Arc<OpenedKey>, Rejection>>,
    /// By name and key.
    domains: HashMap<String, HashMap<KeyId, Result<DeterministicOpener, Rejection>>>,
}

/// A fetched key, with what it was wanted for.
type Fetched = (AskedFor, Result<Arc<OpenedKey>, OpenKeyError>);

impl Keyring {
    fn key(&self, id: AskedFor) -> Result<&Arc<OpenedKey>, Rejection> {
        let key = self.keys.get(&id).ok_or_else(cannot_open)?;
        key.as_ref().map_err(Clone::clone)
    }

    fn take(&mut self, fetched: Option<Result<Fetched, JoinError>>, failures: Failures) -> Result<(), TransformError> {
        if let Some(fetched) = fetched {
            let (id, key) = joined(fetched)?;
            let key = match key {
                Ok(key) => Ok(key),
                Err(error) => Err((failures.key)(error)?),
            };
            self.keys.insert(id, key);
        }
        Ok(())
    }
}

impl Opener {
    /// Whether the label is that of a column of the enclave.
    pub(super) fn is_enclave(&self, label: &str) -> bool {
        let mut rules = self.plan.rules().iter();
        rules.any(|rule| rule.flow == Flow::Enclave && rule.label == label)
    }

    /// Gives `take` every place of a column, in order, with what is there; `take` says whether it keeps that. Sealed values that are
    /// kept stay in `values`. Of a record that cannot be taken apart as a whole `take` may have been given some, and none stays.
    pub(super) fn extract(
        &self,
        record: &Record,
        most_bytes: u64,
        (found, values): (&mut Found, &mut Values),
        take: impl FnMut(AtPlace) -> Result<bool, Rejection>,
    ) -> Result<(), Rejection> {
        if record.payload_bytes() as u64 > most_bytes {
            return Err(too_large_unread());
        }
        let before = values.mark();
        let extracted = self.extract_into(record, most_bytes, (found, values), take);
        if extracted.is_err() {
            values.truncate(before);
        }
        extracted
    }

    fn extract_into(
        &self,
        record: &Record,
        most_bytes: u64,
        (found, values): (&mut Found, &mut Values),
        mut take: impl FnMut(AtPlace) -> Result<bool, Rejection>,
    ) -> Result<(), Rejection> {
        // A row id is held for each value: without a bound a small record with a long one would fill the memory.
        let mut room = most_bytes - record.payload_bytes() as u64;
        let mut first = None;
        if let Some(bytes) = &record.value {
            self.plan.documents(bytes, found, |document| {
                let range = (document.offset, document.offset + document.text.len());
                first.get_or_insert(range);
                for (rule, place, indexes) in self.plan.hits(&document) {
                    let Place::Value { start, end } = place else { continue };
                    let before = values.mark();
                    let item = match sealed_text(&bytes[start..end]) {
                        Ok(Some(text)) => values.add_text(rule, place, Some(range), text),
                        Ok(None) => {
                            take((rule, place, None))?;
                            continue;
                        }
                        Err(rejection) => Err(rejection),
                    };
                    let item = match item {
                        Ok(mut item) => {
                            if let Some(field) = self.plan.row_field(rule)
                                && let Ok(scalar) = self.plan.field_range(&document, field)
                                && let Some(scalar) = scalar
                            {
                                values.row.clear();
                                let id = json::encode_row_id(&bytes[scalar.clone()], indexes, &mut values.row);
                                if id.is_ok() {
                                    item.row = Some((small(scalar.start)?, small(scalar.end)?));
                                    // Whoever sealed it had to keep the same bound.
                                    let held = values.row.len() as u64;
                                    room = room.checked_sub(held).ok_or_else(too_large_unread)?;
                                    values.row_bytes += held;
                                }
                            }
                            item.depth = small(indexes.len())?;
                            values.indexes.extend_from_slice(indexes);
                            Ok(item)
                        }
                        Err(rejection) => Err(rejection),
                    };
                    if !take((rule, place, Some(item)))? {
                        values.truncate(before);
                    }
                }
                Ok(())
            })?;
        }
        for rule in self.plan.outer_rules() {
            for (place, bytes) in outer_places(self.plan.rules()[*rule].path.root(), record) {
                let before = values.mark();
                // Their rows are those of the first document, if there is one.
                let item = values.add_text(*rule, place, first, bytes);
                if !take((*rule, place, Some(item)))? {
                    values.truncate(before);
                }
            }
        }
        Ok(())
    }

    /// Fetches every key that values name, each once per set of travelling envelopes, side by side. Of a value come its rule and
    /// what it names.
    pub(super) async fn keyring<'t, I>(
        &self,
        records: impl Iterator<Item = (I, &'t Travelling)>,
    ) -> Result<Keyring, TransformError>
    where
        I: Iterator<Item = (usize, Names)>,
    {
        let mut ring = Keyring::default();
        let mut wanted = Few::default();
        let mut fetches = JoinSet::new();
        for (values, travelling) in records {
            let fingerprint = travelling.fingerprint();
            for (rule, names) in values {
                let key = match names {
                    Names::Key(key, _) => key,
                    Names::Domain(key) => {
                        self.fetch_domain(rule, key, &mut ring).await?;
                        continue;
                    }
                    Names::Nothing => continue,
                };
                let id = (key, fingerprint);
                if wanted.get(&id).is_some() {
                    continue;
                }
                wanted.insert(id, ());
                if fetches.len() >= FETCHES {
                    ring.take(fetches.join_next().await, self.failures)?;
                }
                let (keys, envelopes) = (self.keys.clone(), travelling.envelopes());
                fetches.spawn(async move {
                    let travelling: Vec<&[u8]> = envelopes.iter().map(Bytes::as_ref).collect();
                    (id, keys.get(key, &travelling).await)
                });
            }
        }
        while !fetches.is_empty() {
            ring.take(fetches.join_next().await, self.failures)?;
        }
        Ok(ring)
    }

    /// The secret of the domain that the place's policy declares.
    async fn fetch_domain(&self, rule: usize, key: KeyId, ring: &mut Keyring) -> Result<(), TransformError> {
        let Some(domain) = self.plan.rules()[rule].domain() else {
            return Ok(());
        };
        if ring.domains.get(domain).is_some_and(|known| known.contains_key(&key)) {
            return Ok(());
        }
        let opener = match self.domains.get(domain, Some(key)).await {
            Ok(domain) => domain.key.opener().map_err(|_| cannot_open()),
            Err(error) => Err((self.failures.domain)(error)?),
        };
        ring.domains.entry(domain.to_owned()).or_default().insert(key, opener);
        Ok(())
    }

    /// The label that a value claims, as the policy calls it now: opening proves it. The domain's of a domain.
    pub(super) fn claimed(&self, value: Value<'_>, fingerprint: u64, ring: &mut Keyring) -> Result<String, Rejection> {
        match value.names {
            Names::Key(key, column) => {
                let envelope = &ring.key((key, fingerprint))?.envelope;
                let entry = envelope.labels.get(usize::from(column)).ok_or_else(cannot_open)?;
                Ok(self.current(&entry.label).to_owned())
            }
            Names::Domain(_) => Ok(self.plan.rules()[value.rule].label.clone()),
            Names::Nothing => Err(not_sealed()),
        }
    }

    /// A value that claims another label than that of its place. Only labels of the policy are repeated: the others
    /// are what somebody wrote into an envelope.
    fn elsewhere(&self, claimed: &str, place: &str) -> Rejection {
        let claimed = self.current(claimed);
        if !self.plan.rules().iter().any(|rule| rule.label == claimed) {
            return cannot_open();
        }
        Rejection::new(CANNOT_OPEN, format!("a value of {claimed} was found at {place}"))
    }

    /// A label that may be repeated: one of the policy, or what stands for all others.
    pub(super) fn named<'a>(&self, label: &'a str) -> &'a str {
        if self.plan.rules().iter().any(|rule| rule.label == label) {
            label
        } else {
            UNKNOWN
        }
    }

    /// What the policy calls that label now.
    pub(super) fn current<'a>(&'a self, label: &'a str) -> &'a str {
        let renamed = self.plan.policy.policy().previous.labels.get(label);
        renamed.map_or(label, String::as_str)
    }

    /// What a value of an envelope's key says that it is, if it says that it is one of `label`, a label of the policy. Its row's id
    /// comes into `id`.
    fn claim<'k, 's>(
        &self,
        record: &Record,
        value: Value<'_>,
        label: &str,
        (envelope, column): (&'k Envelope, u16),
        id: &'s mut Vec<u8>,
    ) -> Result<Claim<'k, 's>, Rejection> {
        let entry = envelope.labels.get(usize::from(column)).ok_or_else(cannot_open)?;
        if envelope.dataset != self.plan.policy.policy().dataset {
            return Err(cannot_open());
        }
        if self.current(&entry.label) != label {
            return Err(self.elsewhere(&entry.label, label));
        }
        let Some(path) = &entry.bind_row else {
            return Ok((entry, None));
        };
        id.clear();
        match value.row.filter(|_| self.plan.bound_path(value.rule) == Some(path)) {
            Some(Row::Id(row)) => id.extend_from_slice(row),
            Some(Row::Field(start, end)) => {
                let bytes = record.value.as_deref().unwrap_or_default();
                let scalar = bytes.get(start as usize..end as usize).ok_or_else(cannot_open)?;
                json::encode_row_id(scalar, value.indexes, id).map_err(|_| cannot_open())?;
            }
            None => row_id(record, path, value, id)?,
        }
        Ok((entry, Some(id)))
    }

    /// Adds a value to those that are opened together, if it says that it is one of `label`, a label of the policy. `None`: it is
    /// one of a domain, or beyond what is opened together, and opens by itself.
    pub(super) fn add(
        &self,
        record: &Record,
        value: Value<'_>,
        (label, fingerprint): (&str, u64),
        ring: &mut Keyring,
        to_open: &mut ToOpen,
    ) -> Result<Option<At>, Rejection> {
        let (key, column) = match value.names {
            Names::Key(key, column) => (key, column),
            Names::Domain(_) => return Ok(None),
            Names::Nothing => return Err(not_sealed()),
        };
        let key = ring.key((key, fingerprint))?;
        let mut id = std::mem::take(&mut to_open.row);
        let (_, row) = self.claim(record, value, label, (&key.envelope, column), &mut id)?;
        let added = to_open.push(key, column, value.sealed, row);
        to_open.row = id;
        added
    }

    /// Appends the plaintext encoding of a value that opens as one of `label`, a label of the policy.
    pub(super) fn open(
        &self,
        record: &Record,
        value: Value<'_>,
        (label, fingerprint): (&str, u64),
        ring: &mut Keyring,
        out: &mut Vec<u8>,
    ) -> Result<(), Rejection> {
        let rule = &self.plan.rules()[value.rule];
        match SealedValue::parse(value.sealed).map_err(|_| not_sealed())? {
            SealedValue::Randomised {
                key,
                column,
                nonce,
                ciphertext,
                tag,
            } => {
                let key = ring.key((key, fingerprint))?;
                let mut id = Vec::new();
                let (entry, id) = self.claim(record, value, label, (&key.envelope, column), &mut id)?;
                let row = entry.bind_row.as_deref().zip(id);
                key.key
                    .opener(&key.envelope.dataset, &entry.label)
                    .open(nonce, ciphertext, tag, row.map(|(path, id)| RowId { path, id }), out)
                    .map_err(|_| cannot_open())
            }
            SealedValue::Deterministic { key, iv, ciphertext } => {
                let domain = rule.domain().filter(|_| rule.label == label).ok_or_else(cannot_open)?;
                let opener = ring
                    .domains
                    .get_mut(domain)
                    .and_then(|known| known.get_mut(&key))
                    .ok_or_else(cannot_open)?;
                opener
                    .as_mut()
                    .map_err(|rejection| rejection.clone())?
                    .open(iv, ciphertext, out)
                    .map_err(|_| cannot_open())
            }
        }
    }
}

pub(super) fn cannot_open() -> Rejection {
    Rejection::new(CANNOT_OPEN, "a sealed value does not open here")
}

pub(super) fn not_sealed() -> Rejection {
    Rejection::new(
        NOT_SEALED,
        "a column of the policy holds something that is no sealed value",
    )
}

/// In the place of a label that no policy knows, or that no value proved.
pub(super) const UNKNOWN: &str = "?";

/// Code of a place of a column that holds something else than a sealed value.
pub(super) const NOT_SEALED: &str = "not-sealed";

/// The text form in a JSON value; `None` for null, which stays null.
fn sealed_text(json: &[u8]) -> Result<Option<&[u8]>, Rejection> {
    if json == b"null" {
        return Ok(None);
    }
    let inner = json.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\""));
    inner.map(Some).ok_or_else(not_sealed)
}

/// Where a `$key` or `$header` column is in a record, and what stands there.
pub(super) fn outer_places<'r>(root: &Root, record: &'r Record) -> impl Iterator<Item = (Place, &'r Bytes)> {
    let key = record.key.as_ref().filter(|_| *root == Root::Key);
    let headers = match root {
        Root::Header(name) => Some((name, record.headers.iter().enumerate())),
        Root::Key | Root::Value => None,
    };
    let named = headers.into_iter().flat_map(|(name, headers)| {
        headers.filter_map(move |(n, header)| {
            let value = header.value.as_ref().filter(|_| header.name == *name)?;
            Some((Place::Header(n), value))
        })
    });
    key.map(|key| (Place::Key, key)).into_iter().chain(named)
}

/// Appends the row id of `of`, read along the path that its envelope names. The policy may have moved on to
/// another path since, so this looks the field up by itself.
fn row_id(record: &Record, path: &str, of: Value<'_>, out: &mut Vec<u8>) -> Result<(), Rejection> {
    let path: ColumnPath = path.parse().map_err(|_| cannot_open())?;
    let locator = Locator::new(&[], &[path]).map_err(|_| cannot_open())?;
    let document = record
        .value
        .as_ref()
        .and_then(|value| value.get(of.document.0..of.document.1))
        .ok_or_else(cannot_open)?;
    let mut found = Found::default();
    locator
        .locate(document, &mut found)
        .map_err(|error| Rejection::new(error.code(), error.to_string()))?;
    let [field] = found.fields.as_slice() else {
        return Err(cannot_open());
    };
    json::encode_row_id(&document[field.range()], of.indexes, out).map_err(|_| cannot_open())
}
