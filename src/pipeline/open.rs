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
use crate::columns::{Found, Locator, LocatorError, json, splice};
use crate::flow::direct::DirectSealer;
use crate::keys::envelope::{KEYS_HEADER, read_header};
use crate::keys::{CatalogueError, DomainError, Envelope, KeyServiceError, OpenKeyError, OpenedKey, OpeningKeys};
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
    envelopes: Vec<Bytes>,
}

/// Data keys and domains of a batch: found, or refused for a reason that makes a dead letter.
#[derive(Default)]
struct Keyring {
    keys: HashMap<(KeyId, u64), Result<Arc<OpenedKey>, Rejection>>,
    domains: HashMap<(String, KeyId), Result<DeterministicOpener, Rejection>>,
}

/// A fetched key, with what it was wanted for.
type Fetched = ((KeyId, u64), Result<Arc<OpenedKey>, OpenKeyError>);

impl Keyring {
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
        let mut bytes = 0;
        let mut all = Vec::with_capacity(records.len());
        for record in records {
            let extracted = self.extract(record, &mut found);
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

    fn extract(&self, record: &Record, found: &mut Found) -> Result<Extracted, Rejection> {
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
        Ok(Extracted {
            items,
            envelopes: travelling(record, &self.plan.policy.policy().dataset),
        })
    }

    /// Fetches every key that the batch's values name, each once per set of travelling envelopes, side by side.
    async fn keyring(&self, extracted: &[Result<Extracted, Rejection>]) -> Result<Keyring, TransformError> {
        let mut ring = Keyring::default();
        let mut wanted = HashSet::new();
        let mut fetches = JoinSet::new();
        for extracted in extracted.iter().flatten() {
            let fingerprint = fingerprint(&extracted.envelopes);
            for item in &extracted.items {
                match SealedValue::parse(&item.sealed) {
                    Ok(SealedValue::Randomised { key, .. }) if wanted.insert((key, fingerprint)) => {
                        if fetches.len() >= FETCHES {
                            ring.take(fetches.join_next().await)?;
                        }
                        let (keys, envelopes) = (self.keys.clone(), extracted.envelopes.clone());
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
    fn open(&self, record: &Record, extracted: &Extracted, ring: &mut Keyring) -> Result<Record, Rejection> {
        let fingerprint = fingerprint(&extracted.envelopes);
        let mut opened = record.clone();
        let mut replacements: Vec<(Range<usize>, Zeroizing<Vec<u8>>)> = Vec::with_capacity(extracted.items.len());
        for item in &extracted.items {
            let mut encoding = Zeroizing::new(Vec::with_capacity(item.sealed.len()));
            self.open_value(record, item, fingerprint, ring, &mut encoding)?;
            match item.place {
                Place::Value { start, end } => {
                    let mut text = Zeroizing::new(Vec::with_capacity(encoding.len() * 6 + 64));
                    json::decode_json(&encoding, &mut text).map_err(|_| cannot_open())?;
                    replacements.push((start..end, text));
                }
                Place::Key => opened.key = Some(outer_bytes(&encoding)?),
                Place::Header(n) => opened.headers[n].value = Some(outer_bytes(&encoding)?),
            }
        }
        if let Some(original) = &record.value
            && !replacements.is_empty()
        {
            let added: usize = replacements.iter().map(|(_, text)| text.len()).sum();
            let mut out = Vec::with_capacity(original.len() + added);
            splice(
                original,
                replacements
                    .iter()
                    .map(|(range, text)| (range.clone(), text.as_slice())),
                &mut out,
            );
            opened.value = Some(out.into());
        }
        if let Some(added) = keys_header(record, &extracted.items) {
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
                let key = ring
                    .keys
                    .get(&(key, fingerprint))
                    .ok_or_else(cannot_open)?
                    .as_ref()
                    .map_err(Clone::clone)?;
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

/// The envelopes of `dataset` in the record's `sealflow-keys` headers. Whatever else is there helps nobody, and
/// does no harm: anybody can send a header of that name, and keys come from the catalogue too.
pub(super) fn travelling(record: &Record, dataset: &str) -> Vec<Bytes> {
    let is_ours = |bytes: &[u8]| Envelope::from_bytes(bytes).is_ok_and(|envelope| envelope.dataset == dataset);
    let headers = record.headers.iter().filter(|header| header.name == KEYS_HEADER);
    let mut envelopes = Vec::new();
    for bytes in headers.filter_map(|header| header.value.as_ref()) {
        let read = read_header(bytes).unwrap_or_default();
        envelopes.extend(
            read.into_iter()
                .filter(|envelope| is_ours(envelope))
                .map(|envelope| bytes.slice_ref(envelope)),
        );
    }
    envelopes
}

/// The header that sealing added: the last one whose envelopes are all of keys that the record's values name.
/// Others were there before (a record that is sealed twice, a producer's own) and stay.
fn keys_header(record: &Record, items: &[Item]) -> Option<usize> {
    let keys: Vec<KeyId> = items
        .iter()
        .filter_map(|item| match SealedValue::parse(&item.sealed) {
            Ok(SealedValue::Randomised { key, .. }) => Some(key),
            _ => None,
        })
        .collect();
    let is_used = |bytes: &[u8]| Envelope::from_bytes(bytes).is_ok_and(|envelope| keys.contains(&envelope.key_id()));
    let is_added = |bytes: &[u8]| {
        let envelopes = read_header(bytes).unwrap_or_default();
        !envelopes.is_empty() && envelopes.into_iter().all(is_used)
    };
    record
        .headers
        .iter()
        .rposition(|header| header.name == KEYS_HEADER && header.value.as_deref().is_some_and(is_added))
}

/// Tells sets of travelling envelopes apart, so that one record's forged ones do not decide for another's.
fn fingerprint(envelopes: &[Bytes]) -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    use std::sync::LazyLock;
    static STATE: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    STATE.hash_one(envelopes)
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
        for (record, extracted) in records.into_iter().zip(extracted) {
            let values = extracted.as_ref().map_or(0, |extracted| extracted.items.len());
            match extracted.and_then(|extracted| opening.in_scope(|| self.open(&record, &extracted, &mut ring))) {
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
