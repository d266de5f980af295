//! The opening transform: sealed records in, the original records out. It recreates plaintext: whoever runs it
//! decides where that goes.
//!
//! Each value says its key and column; what it opens as is checked against the place where it was found
//! (place = label). A value that does not open as that, or a place that holds no sealed value, makes the
//! record a dead letter.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::{JoinError, JoinSet};
use tracing::Instrument as _;
use zeroize::Zeroizing;

use super::dead_letter::CANNOT_OPEN;
use super::output::{OutputLimits, too_large_unread};
use super::plan::{Format, Place, Plan, Rejection};
use super::record::Record;
use super::seal::{FETCHES, KeysPlacement, TransformCounters};
use super::set_aside::{SetAside, from_domain, joined, service_stop};
use super::transform::{Outcome, Route, SPANS, StopKind, Transform, TransformError};
use super::travelling::{Travelling, TravellingReader};
use crate::columns::{Found, Locator, LocatorError, json, splice};
use crate::flow::direct::DirectSealer;
use crate::keys::{CatalogueError, DomainError, KeyServiceError, OpenKeyError, OpenedKey, OpeningKeys};
use crate::policy::{ColumnPath, PolicySourceError, Root, VerifiedPolicy};
use crate::seal::{DeterministicOpener, KeyId, Plaintext, RowId, SealedValue, value};

/// Opens the columns of one policy.
pub struct OpenTransform {
    plan: Plan,
    keys: OpeningKeys,
    /// Seals dead letters and knows the domains.
    sealer: DirectSealer,
    placement: KeysPlacement,
    limits: OutputLimits,
    counters: Arc<TransformCounters>,
}

/// One sealed value of a record.
struct Item {
    rule: usize,
    place: Place,
    sealed: Vec<u8>,
    indexes: Vec<u32>,
    /// The document that it lies in.
    document: Range<usize>,
    /// Row id along the policy's own path, where the rule is bound and the record has one.
    row: Option<Vec<u8>>,
}

/// What was found in one record, and the envelopes that travel with it.
struct Extracted {
    items: Vec<Item>,
    travelling: Travelling,
}

/// A data key as a record asks for it: the key, and the fingerprint of the envelopes that travel with the record.
type AskedFor = (KeyId, u64);

/// Data keys and domains of a batch: found, or refused for a reason that makes a dead letter.
#[derive(Default)]
struct Keyring {
    keys: HashMap<AskedFor, Result<Arc<OpenedKey>, Rejection>>,
    /// The one of them that was asked for last, as most values of a batch name the same.
    last: Option<(AskedFor, Result<Arc<OpenedKey>, Rejection>)>,
    domains: HashMap<(String, KeyId), Result<DeterministicOpener, Rejection>>,
}

/// A fetched key, with what it was wanted for.
type Fetched = (AskedFor, Result<Arc<OpenedKey>, OpenKeyError>);

impl Keyring {
    fn key(&mut self, id: AskedFor) -> Result<&OpenedKey, Rejection> {
        if self.last.as_ref().is_none_or(|(last, _)| *last != id) {
            let key = self.keys.get(&id).ok_or_else(cannot_open)?;
            self.last = Some((id, key.clone()));
        }
        let (_, key) = self.last.as_ref().ok_or_else(cannot_open)?;
        key.as_deref().map_err(Clone::clone)
    }

    fn take(&mut self, fetched: Option<Result<Fetched, JoinError>>) -> Result<(), TransformError> {
        if let Some(fetched) = fetched {
            let (id, key) = joined(fetched)?;
            self.keys.insert(id, key.map_or_else(key_failure, |key| Ok(Ok(key)))?);
        }
        Ok(())
    }
}

impl OpenTransform {
    /// A transform for `policy`; `sealer` seals its dead letters.
    pub fn new(
        policy: Arc<VerifiedPolicy>,
        format: Format,
        placement: KeysPlacement,
        keys: OpeningKeys,
        sealer: DirectSealer,
    ) -> Result<Self, LocatorError> {
        Ok(Self {
            plan: Plan::new(policy, format)?,
            keys,
            sealer,
            placement,
            limits: OutputLimits::default(),
            counters: Arc::default(),
        })
    }

    /// The same transform with other limits of what records and batches may become.
    #[must_use]
    pub fn with_limits(mut self, limits: OutputLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The same transform, counting where an earlier one did.
    #[must_use]
    pub fn with_counters(mut self, counters: Arc<TransformCounters>) -> Self {
        self.counters = counters;
        self
    }

    /// What it did so far.
    #[must_use]
    pub fn counters(&self) -> Arc<TransformCounters> {
        Arc::clone(&self.counters)
    }

    /// The first records whose outcomes fit the limit of a batch's output, at least one.
    fn extract_prefix(&self, records: &[Record]) -> Vec<Result<Extracted, Rejection>> {
        let mut found = Found::default();
        let mut travelling = TravellingReader::new(&self.plan.policy.policy().dataset);
        let mut bytes = 0;
        let mut all = Vec::with_capacity(records.len());
        for record in records {
            let extracted = self.extract(record, &mut found).map(|items| Extracted {
                items,
                travelling: travelling.of(record),
            });
            // Opening makes records smaller, letters make them larger.
            bytes += SetAside::letter_bytes(record);
            all.push(extracted);
            if bytes >= self.limits.batch.0 {
                break;
            }
        }
        all
    }

    fn set_aside(&self) -> SetAside<'_> {
        SetAside {
            plan: &self.plan,
            sealer: &self.sealer,
            placement: self.placement,
            stage: "open",
        }
    }

    fn extract(&self, record: &Record, found: &mut Found) -> Result<Vec<Item>, Rejection> {
        if record.payload_bytes() as u64 > self.limits.record.0 {
            return Err(too_large_unread());
        }
        let mut items = Vec::new();
        let mut first = 0..0;
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
                    let Some(sealed) = sealed_json(&bytes[start..end])? else {
                        continue;
                    };
                    let row = self.plan.row_field(rule).and_then(|field| {
                        let mut row = Vec::new();
                        let scalar = self.plan.field(&document, field).ok()?;
                        json::encode_row_id(scalar, indexes, &mut row).ok().map(|()| row)
                    });
                    items.push(Item {
                        rule,
                        place,
                        sealed,
                        indexes: indexes.to_vec(),
                        document: range.clone(),
                        row,
                    });
                }
                Ok(())
            })?;
        }
        for rule in self.plan.outer_rules() {
            for (place, bytes) in outer_places(self.plan.rules()[*rule].path.root(), record) {
                let mut sealed = Vec::new();
                value::read_text(bytes, &mut sealed).map_err(|_| not_sealed())?;
                items.push(Item {
                    rule: *rule,
                    place,
                    sealed,
                    indexes: Vec::new(),
                    document: first.clone(),
                    row: None,
                });
            }
        }
        Ok(items)
    }

    /// Fetches every key that the batch's values name, each once per set of travelling envelopes, side by side.
    async fn keyring(&self, extracted: &[Result<Extracted, Rejection>]) -> Result<Keyring, TransformError> {
        let mut ring = Keyring::default();
        let (mut wanted, mut last) = (HashSet::new(), None);
        let mut fetches = JoinSet::new();
        for extracted in extracted.iter().flatten() {
            let fingerprint = extracted.travelling.fingerprint();
            for item in &extracted.items {
                match SealedValue::parse(&item.sealed) {
                    Ok(SealedValue::Randomised { key, .. }) if last == Some((key, fingerprint)) => {}
                    Ok(SealedValue::Randomised { key, .. }) if wanted.insert((key, fingerprint)) => {
                        last = Some((key, fingerprint));
                        if fetches.len() >= FETCHES {
                            ring.take(fetches.join_next().await)?;
                        }
                        let (keys, envelopes) = (self.keys.clone(), extracted.travelling.envelopes());
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
            ring.take(fetches.join_next().await)?;
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
        let opener = match self.sealer.domains.get(domain, Some(key)).await {
            Ok(domain) => domain.key.opener().map_err(|_| cannot_open()),
            Err(error) => domain_failure(error)?,
        };
        ring.domains.insert(id, opener);
        Ok(())
    }

    /// The record with its values opened, or the reason why not all of them do.
    fn open(
        &self,
        record: &Record,
        extracted: &Extracted,
        ring: &mut Keyring,
        scratch: &mut Scratch,
    ) -> Result<Record, Rejection> {
        let fingerprint = extracted.travelling.fingerprint();
        let mut opened = record.clone();
        scratch.texts.clear();
        let mut replacements: Vec<(Range<usize>, Range<usize>)> = Vec::with_capacity(extracted.items.len());
        for item in &extracted.items {
            let encoding = &mut scratch.encoding;
            encoding.clear();
            reserve(encoding, item.sealed.len());
            self.open_value(record, item, fingerprint, ring, encoding)?;
            match item.place {
                Place::Value { start, end } => {
                    // No JSON text is longer than six bytes for each of its encoding's, and a number's 64.
                    reserve(&mut scratch.texts, encoding.len() * 6 + 64);
                    let at = scratch.texts.len();
                    json::decode_json(encoding, &mut scratch.texts).map_err(|_| cannot_open())?;
                    replacements.push((start..end, at..scratch.texts.len()));
                }
                Place::Key => opened.key = Some(outer_bytes(encoding)?),
                Place::Header(n) => opened.headers[n].value = Some(outer_bytes(encoding)?),
            }
        }
        if let Some(original) = &record.value
            && !replacements.is_empty()
        {
            let mut out = Vec::with_capacity(original.len() + scratch.texts.len());
            let replacements = replacements.into_iter();
            let texts = replacements.map(|(range, text)| (range, &scratch.texts[text]));
            splice(original, texts, &mut out);
            opened.value = Some(out.into());
        }
        if let Some(added) = extracted.travelling.added(&keys_of(&extracted.items)) {
            opened.headers.remove(added);
        }
        Ok(opened)
    }

    fn open_value(
        &self,
        record: &Record,
        item: &Item,
        fingerprint: u64,
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
                let envelope = &key.envelope;
                let entry = envelope.labels.get(usize::from(column)).ok_or_else(cannot_open)?;
                let policy = self.plan.policy.policy();
                let current = policy.previous.labels.get(&entry.label).unwrap_or(&entry.label);
                if envelope.dataset != policy.dataset || *current != rule.label {
                    return Err(cannot_open());
                }
                let mut other = Vec::new();
                let row = match (&entry.bind_row, &item.row) {
                    (None, _) => None,
                    (Some(path), Some(id)) if rule.bind_row.as_ref().is_some_and(|own| own.to_string() == *path) => {
                        Some(RowId { path, id })
                    }
                    (Some(path), _) => {
                        row_id(record, path, item, &mut other)?;
                        Some(RowId { path, id: &other })
                    }
                };
                key.key
                    .opener(&envelope.dataset, &entry.label)
                    .open(nonce, ciphertext, tag, row, out)
                    .map_err(|_| cannot_open())
            }
            SealedValue::Deterministic { key, iv, ciphertext } => {
                let domain = rule.domain().ok_or_else(cannot_open)?;
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

/// Where the values of one record after another are opened; wiped once, when the batch is done.
#[derive(Default)]
struct Scratch {
    /// Plaintext encoding of one value.
    encoding: Zeroizing<Vec<u8>>,
    /// JSON texts of one record.
    texts: Zeroizing<Vec<u8>>,
}

/// Room for `more` bytes. What is too small is wiped, as growing a `Vec` would leave a copy behind.
fn reserve(buffer: &mut Zeroizing<Vec<u8>>, more: usize) {
    let wanted = buffer.len() + more;
    if wanted > buffer.capacity() {
        let mut larger = Vec::with_capacity(wanted.next_power_of_two());
        larger.extend_from_slice(buffer);
        *buffer = Zeroizing::new(larger);
    }
}

fn cannot_open() -> Rejection {
    Rejection::new(CANNOT_OPEN, "a sealed value does not open here")
}

fn not_sealed() -> Rejection {
    Rejection::new(
        "not-sealed",
        "a column of the policy holds something that is no sealed value",
    )
}

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

fn outer_places<'r>(root: &Root, record: &'r Record) -> Vec<(Place, &'r Bytes)> {
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

/// The data keys that a record's values name.
fn keys_of(items: &[Item]) -> Vec<KeyId> {
    let key = |item: &Item| match SealedValue::parse(&item.sealed) {
        Ok(SealedValue::Randomised { key, .. }) => Some(key),
        _ => None,
    };
    let mut keys: Vec<KeyId> = items.iter().filter_map(key).collect();
    keys.dedup();
    keys
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

/// A key or header: bytes as they were.
fn outer_bytes(encoding: &[u8]) -> Result<Bytes, Rejection> {
    match Plaintext::decode(encoding).map_err(|_| cannot_open())? {
        Plaintext::Bytes(bytes) => Ok(Bytes::copy_from_slice(bytes)),
        Plaintext::Utf8(text) => Ok(Bytes::copy_from_slice(text.as_bytes())),
        _ => {
            let mut text = Vec::new();
            json::decode_json(encoding, &mut text).map_err(|_| cannot_open())?;
            Ok(text.into())
        }
    }
}

/// A key that is not there: wait for it, stop for want of rights, or set the record aside.
pub(super) fn key_failure(error: OpenKeyError) -> Result<Result<Arc<OpenedKey>, Rejection>, TransformError> {
    match error {
        error if error.is_retryable() => Err(TransformError::Retry {
            reason: error.to_string(),
        }),
        OpenKeyError::Service(
            error @ (KeyServiceError::NotPermitted { .. } | KeyServiceError::NoCredentials { .. }),
        ) => Err(service_stop(&error)),
        // Of one's own making and of all records alike: no reason to set the whole topic aside.
        OpenKeyError::Catalogue(error @ CatalogueError::NotPermitted { .. }) => Err(TransformError::Stop {
            kind: StopKind::NotPermitted,
            reason: error.to_string(),
            help: "let this process read the catalogue's keys/".to_owned(),
        }),
        OpenKeyError::Service(error @ KeyServiceError::BadAnswer { .. }) => Err(TransformError::Stop {
            kind: StopKind::Unavailable,
            reason: error.to_string(),
            help: "check the `kms` section with `sealflow validate`".to_owned(),
        }),
        OpenKeyError::Policy(error @ PolicySourceError::NotPermitted { .. }) => Err(TransformError::Stop {
            kind: StopKind::NotPermitted,
            reason: error.to_string(),
            help: "let this process read the catalogue's policies/".to_owned(),
        }),
        OpenKeyError::Policy(PolicySourceError::Untrusted { what, reason }) => Err(TransformError::Stop {
            kind: StopKind::Config,
            reason: format!("{what} cannot be used: {reason}"),
            help: "check the owner keys that are pinned under `trust:`".to_owned(),
        }),
        error => Ok(Err(Rejection::new(CANNOT_OPEN, error.to_string()))),
    }
}

fn domain_failure(error: DomainError) -> Result<Result<DeterministicOpener, Rejection>, TransformError> {
    match error {
        DomainError::Policy(PolicySourceError::Missing { what }) => {
            Ok(Err(Rejection::new(CANNOT_OPEN, format!("no {what}"))))
        }
        error => Err(from_domain(error)),
    }
}

#[async_trait]
impl Transform for OpenTransform {
    async fn apply(&self, mut records: Vec<Record>) -> Result<Vec<Outcome>, TransformError> {
        let extracted = {
            let _span = tracing::debug_span!(target: SPANS, "locate", records = records.len()).entered();
            self.extract_prefix(&records)
        };
        records.truncate(extracted.len());
        let mut ring = self
            .keyring(&extracted)
            .instrument(tracing::debug_span!(target: SPANS, "fetch_keys"))
            .await?;
        let opening = tracing::debug_span!(target: SPANS, "open");
        let mut outcomes = Vec::with_capacity(records.len());
        let mut rejected = Vec::new();
        let mut scratch = Scratch::default();
        for (record, extracted) in records.into_iter().zip(extracted) {
            let values = extracted.as_ref().map_or(0, |extracted| extracted.items.len());
            match extracted
                .and_then(|extracted| opening.in_scope(|| self.open(&record, &extracted, &mut ring, &mut scratch)))
            {
                Ok(record) => {
                    self.counters.values.fetch_add(values as u64, Ordering::Relaxed);
                    outcomes.push(Outcome {
                        route: Route::Target,
                        record,
                    });
                }
                Err(rejection) => {
                    rejected.push((outcomes.len(), rejection));
                    outcomes.push(Outcome {
                        route: Route::DeadLetter,
                        record,
                    });
                }
            }
        }
        self.set_aside().seal(&rejected, &mut outcomes).await?;
        self.counters
            .dead_letters
            .fetch_add(rejected.len() as u64, Ordering::Relaxed);
        Ok(outcomes)
    }
    async fn refuse(&self, records: Vec<Record>, code: &'static str) -> Result<Vec<Outcome>, TransformError> {
        let outcomes = self.set_aside().refuse(records, code, self.limits.batch.0).await?;
        self.counters
            .dead_letters
            .fetch_add(outcomes.len() as u64, Ordering::Relaxed);
        Ok(outcomes)
    }
}
