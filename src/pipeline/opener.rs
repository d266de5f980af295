//! Finds the sealed values of records, fetches the keys that they name, and opens them one by one: what the opening
//! transform and the reader share.
//!
//! What a value opens as is checked against the place where it was found (place = label).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::task::{JoinError, JoinSet};

use super::dead_letter::CANNOT_OPEN;
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

/// One sealed value of a record.
pub(super) struct Item {
    pub(super) rule: usize,
    pub(super) place: Place,
    pub(super) sealed: Vec<u8>,
    indexes: Vec<u32>,
    /// The document that it lies in.
    document: Range<usize>,
    /// Row id along the policy's own path, where the rule is bound and the record has one.
    row: Option<Vec<u8>>,
}

impl Item {
    /// As [`Item::alone`], of a row with that id.
    pub(super) fn in_row(rule: usize, sealed: Vec<u8>, row: Option<Vec<u8>>) -> Self {
        Self {
            row,
            ..Self::alone(rule, sealed)
        }
    }

    /// Without a record.
    pub(super) fn alone(rule: usize, sealed: Vec<u8>) -> Self {
        Self {
            rule,
            place: Place::Key,
            sealed,
            indexes: Vec::new(),
            document: 0..0,
            row: None,
        }
    }
}

/// A place of a column, and the sealed value that is there, or why what is there is none; `None` for a null.
pub(super) type AtPlace = (usize, Place, Option<Result<Item, Rejection>>);

/// The entry of a value's label, and the id of its row, if it is bound to one.
type Claim<'k, 'i> = (&'k LabelEntry, Option<Cow<'i, [u8]>>);

/// A data key as a record asks for it: the key, and the fingerprint of the envelopes that travel with the record.
type AskedFor = (KeyId, u64);

/// Data keys and domains of a batch: found, or refused.
#[derive(Default)]
pub(super) struct Keyring {
    keys: HashMap<AskedFor, Result<Arc<OpenedKey>, Rejection>>,
    /// The one of them that was asked for last, as most values of a batch name the same.
    last: Option<(AskedFor, Result<Arc<OpenedKey>, Rejection>)>,
    domains: HashMap<(String, KeyId), Result<DeterministicOpener, Rejection>>,
}

/// A fetched key, with what it was wanted for.
type Fetched = (AskedFor, Result<Arc<OpenedKey>, OpenKeyError>);

impl Keyring {
    fn key(&mut self, id: AskedFor) -> Result<&Arc<OpenedKey>, Rejection> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != id) {
            let key = self.keys.get(&id).ok_or_else(cannot_open)?;
            self.last = Some((id, key.clone()));
        }
        let (_, key) = self.last.as_ref().ok_or_else(cannot_open)?;
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

    /// Gives `take` every place of a column, in order, with what is there. Of a record that cannot be taken apart as a whole it may have given some.
    pub(super) fn extract(
        &self,
        record: &Record,
        most_bytes: u64,
        found: &mut Found,
        mut take: impl FnMut(AtPlace) -> Result<(), Rejection>,
    ) -> Result<(), Rejection> {
        if record.payload_bytes() as u64 > most_bytes {
            return Err(too_large_unread());
        }
        let mut first = 0..0;
        // A row id is held for each value: without a bound a small record with a long one would fill the memory.
        let mut room = most_bytes - record.payload_bytes() as u64;
        if let Some(bytes) = &record.value {
            let mut documents = 0;
            self.plan.documents(bytes, found, |document| {
                let range = document.offset..document.offset + document.text.len();
                if documents == 0 {
                    first = range.clone();
                }
                documents += 1;
                for (rule, place, indexes) in self.plan.hits(&document) {
                    let Place::Value { start, end } = place else { continue };
                    let sealed = match sealed_json(&bytes[start..end]) {
                        Ok(Some(sealed)) => sealed,
                        Ok(None) => {
                            take((rule, place, None))?;
                            continue;
                        }
                        Err(rejection) => {
                            take((rule, place, Some(Err(rejection))))?;
                            continue;
                        }
                    };
                    let row = self.plan.row_field(rule).and_then(|field| {
                        let mut row = Vec::new();
                        let scalar = self.plan.field(&document, field).ok()?;
                        json::encode_row_id(scalar, indexes, &mut row).ok().map(|()| row)
                    });
                    // Whoever sealed it had to keep the same bound.
                    let held = row.as_ref().map_or(0, Vec::len) as u64;
                    room = room.checked_sub(held).ok_or_else(too_large_unread)?;
                    let item = Item {
                        rule,
                        place,
                        sealed,
                        indexes: indexes.to_vec(),
                        document: range.clone(),
                        row,
                    };
                    take((rule, place, Some(Ok(item))))?;
                }
                Ok(())
            })?;
        }
        for rule in self.plan.outer_rules() {
            for (place, bytes) in outer_places(self.plan.rules()[*rule].path.root(), record) {
                let mut sealed = Vec::new();
                let item = value::read_text(bytes, &mut sealed).map_err(|_| not_sealed());
                let item = item.map(|()| Item {
                    rule: *rule,
                    place,
                    sealed,
                    indexes: Vec::new(),
                    document: first.clone(),
                    row: None,
                });
                take((*rule, place, Some(item)))?;
            }
        }
        Ok(())
    }

    /// Fetches every key that the values name, each once per set of travelling envelopes, side by side.
    pub(super) async fn keyring<'i, I>(
        &self,
        records: impl Iterator<Item = (I, &'i Travelling)>,
    ) -> Result<Keyring, TransformError>
    where
        I: Iterator<Item = &'i Item>,
    {
        let mut ring = Keyring::default();
        let (mut wanted, mut last) = (HashSet::new(), None);
        let mut fetches = JoinSet::new();
        for (items, travelling) in records {
            let fingerprint = travelling.fingerprint();
            for item in items {
                match SealedValue::parse(&item.sealed) {
                    Ok(SealedValue::Randomised { key, .. }) if last == Some((key, fingerprint)) => {}
                    Ok(SealedValue::Randomised { key, .. }) if wanted.insert((key, fingerprint)) => {
                        last = Some((key, fingerprint));
                        if fetches.len() >= FETCHES {
                            ring.take(fetches.join_next().await, self.failures)?;
                        }
                        let (keys, envelopes) = (self.keys.clone(), travelling.envelopes());
                        fetches.spawn(async move {
                            let travelling: Vec<&[u8]> = envelopes.iter().map(Bytes::as_ref).collect();
                            ((key, fingerprint), keys.get(key, &travelling).await)
                        });
                    }
                    Ok(SealedValue::Deterministic { key, .. }) => self.fetch_domain(item.rule, key, &mut ring).await?,
                    _ => {}
                }
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
        let id = (domain.to_owned(), key);
        if ring.domains.contains_key(&id) {
            return Ok(());
        }
        let opener = match self.domains.get(domain, Some(key)).await {
            Ok(domain) => domain.key.opener().map_err(|_| cannot_open()),
            Err(error) => Err((self.failures.domain)(error)?),
        };
        ring.domains.insert(id, opener);
        Ok(())
    }

    /// The label that a value claims, as the policy calls it now: opening proves it. The domain's of a domain.
    pub(super) fn claimed(&self, item: &Item, fingerprint: u64, ring: &mut Keyring) -> Result<String, Rejection> {
        match SealedValue::parse(&item.sealed).map_err(|_| not_sealed())? {
            SealedValue::Randomised { key, column, .. } => {
                let envelope = &ring.key((key, fingerprint))?.envelope;
                let entry = envelope.labels.get(usize::from(column)).ok_or_else(cannot_open)?;
                Ok(self.current(&entry.label).to_owned())
            }
            SealedValue::Deterministic { .. } => Ok(self.plan.rules()[item.rule].label.clone()),
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

    /// What a value of an envelope's key says that it is, if it says that it is one of `label`, a label of the policy.
    fn claim<'k, 'i>(
        &self,
        record: &Record,
        item: &'i Item,
        label: &str,
        envelope: &'k Envelope,
        column: u16,
    ) -> Result<Claim<'k, 'i>, Rejection> {
        let entry = envelope.labels.get(usize::from(column)).ok_or_else(cannot_open)?;
        if envelope.dataset != self.plan.policy.policy().dataset {
            return Err(cannot_open());
        }
        if self.current(&entry.label) != label {
            return Err(self.elsewhere(&entry.label, label));
        }
        let row = match (&entry.bind_row, &item.row) {
            (None, _) => None,
            (Some(path), Some(id)) if self.plan.bound_path(item.rule) == Some(path) => {
                Some(Cow::Borrowed(id.as_slice()))
            }
            (Some(path), _) => {
                let mut other = Vec::new();
                row_id(record, path, item, &mut other)?;
                Some(Cow::Owned(other))
            }
        };
        Ok((entry, row))
    }

    /// Adds a value to those that are opened together, if it says that it is one of `label`, a label of the policy. `None`: it is
    /// one of a domain, or beyond what is opened together, and opens by itself.
    pub(super) fn add(
        &self,
        record: &Record,
        item: &Item,
        (label, fingerprint): (&str, u64),
        ring: &mut Keyring,
        to_open: &mut ToOpen,
    ) -> Result<Option<At>, Rejection> {
        let SealedValue::Randomised { key, column, .. } = SealedValue::parse(&item.sealed).map_err(|_| not_sealed())?
        else {
            return Ok(None);
        };
        let key = ring.key((key, fingerprint))?;
        let (_, row) = self.claim(record, item, label, &key.envelope, column)?;
        to_open.push(key, column, &item.sealed, row.as_deref())
    }

    /// Appends the plaintext encoding of a value that opens as one of `label`, a label of the policy.
    pub(super) fn open(
        &self,
        record: &Record,
        item: &Item,
        (label, fingerprint): (&str, u64),
        ring: &mut Keyring,
        out: &mut Vec<u8>,
    ) -> Result<(), Rejection> {
        let rule = &self.plan.rules()[item.rule];
        match SealedValue::parse(&item.sealed).map_err(|_| not_sealed())? {
            SealedValue::Randomised {
                key,
                column,
                nonce,
                ciphertext,
                tag,
            } => {
                let key = ring.key((key, fingerprint))?;
                let (entry, id) = self.claim(record, item, label, &key.envelope, column)?;
                let row = entry.bind_row.as_deref().zip(id.as_deref());
                key.key
                    .opener(&key.envelope.dataset, &entry.label)
                    .open(nonce, ciphertext, tag, row.map(|(path, id)| RowId { path, id }), out)
                    .map_err(|_| cannot_open())
            }
            SealedValue::Deterministic { key, iv, ciphertext } => {
                let domain = rule.domain().filter(|_| rule.label == label).ok_or_else(cannot_open)?;
                let opener = ring
                    .domains
                    .get_mut(&(domain.to_owned(), key))
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

/// The sealed bytes of a JSON value; `None` for null, which stays null.
fn sealed_json(text: &[u8]) -> Result<Option<Vec<u8>>, Rejection> {
    if text == b"null" {
        return Ok(None);
    }
    let inner = text
        .strip_prefix(b"\"")
        .and_then(|text| text.strip_suffix(b"\""))
        .ok_or_else(not_sealed)?;
    let mut sealed = Vec::new();
    value::read_text(inner, &mut sealed).map_err(|_| not_sealed())?;
    Ok(Some(sealed))
}

/// Where a `$key` or `$header` column is in a record, and what stands there.
pub(super) fn outer_places<'r>(root: &Root, record: &'r Record) -> Vec<(Place, &'r Bytes)> {
    match root {
        Root::Key => record.key.iter().map(|key| (Place::Key, key)).collect(),
        Root::Header(name) => {
            let named = record
                .headers
                .iter()
                .enumerate()
                .filter(|(_, header)| header.name == *name);
            named
                .filter_map(|(n, header)| header.value.as_ref().map(|value| (Place::Header(n), value)))
                .collect()
        }
        Root::Value => Vec::new(),
    }
}

/// Appends the row id of `item`, read along the path that its envelope names. The policy may have moved on to
/// another path since, so this looks the field up by itself.
fn row_id(record: &Record, path: &str, item: &Item, out: &mut Vec<u8>) -> Result<(), Rejection> {
    let path: ColumnPath = path.parse().map_err(|_| cannot_open())?;
    let locator = Locator::new(&[], &[path]).map_err(|_| cannot_open())?;
    let document = record
        .value
        .as_ref()
        .and_then(|value| value.get(item.document.clone()))
        .ok_or_else(cannot_open)?;
    let mut found = Found::default();
    locator
        .locate(document, &mut found)
        .map_err(|error| Rejection::new(error.code(), error.to_string()))?;
    let [field] = found.fields.as_slice() else {
        return Err(cannot_open());
    };
    json::encode_row_id(&document[field.range()], &item.indexes, out).map_err(|_| cannot_open())
}
