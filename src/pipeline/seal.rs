//! The sealing transform: records in, the same records with a policy's columns sealed out, every other byte
//! as it was; what cannot be sealed becomes a dead letter, never a pass.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinSet;
use tracing::Instrument as _;
use zeroize::Zeroizing;

use super::hints::{self, Domains};
use super::output::{OutputLimits, too_large, too_large_unread};
use super::plan::{Document, Format, Place, Plan, Rejection, is_domain};
use super::record::{Header, Record};
use super::set_aside::{SetAside, from_direct, from_domain, joined};
use super::transform::{Outcome, Route, SPANS, Transform, TransformError};
use crate::columns::{Found, LocatorError, MAX_HITS, coerce, json};
use crate::flow::direct::DirectSealer;
use crate::keys::envelope::{KEYS_HEADER, MAX_ENVELOPES, write_header};
use crate::keys::{ActiveKey, KeyError};
use crate::policy::{DomainDocument, DomainType, Placement, Root, VerifiedPolicy};
use crate::seal::{PlainColumn, Plaintext, SealedColumn, value};

/// Keys that are fetched side by side for one batch.
pub(super) const FETCHES: usize = 16;

/// The most bytes that padding may add to one record.
const MAX_PADDING: usize = 16 << 20;

/// Whether envelopes travel with the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KeysPlacement {
    /// In the record header `sealflow-keys`, and in the catalogue.
    #[default]
    Header,
    /// Only in the catalogue, which saves bytes.
    Catalogue,
}

/// What a transform did so far.
#[derive(Debug, Default)]
pub struct TransformCounters {
    /// Values sealed (or opened, by an opening transform).
    pub values: AtomicU64,
    /// Records that became dead letters.
    pub dead_letters: AtomicU64,
}

/// Seals the columns of one policy.
pub struct SealTransform {
    plan: Plan,
    sealer: DirectSealer,
    placement: KeysPlacement,
    limits: OutputLimits,
    counters: Arc<TransformCounters>,
    for_table: bool,
}

/// Values of one rule under one key, on their way to one seal call.
struct Job {
    rule: usize,
    /// Resolved key name; `None` for plain keys and domains.
    key_name: Option<String>,
    plain: PlainColumn,
    rows: Option<PlainColumn>,
    len: usize,
}

/// One value of a record: where its sealed form goes, and where it comes from.
#[derive(Clone, Copy)]
struct Item {
    place: Place,
    job: usize,
    index: usize,
}

/// The jobs of one batch.
#[derive(Default)]
struct Jobs {
    list: Vec<Job>,
    plain_keys: HashMap<usize, usize>,
    template_keys: HashMap<(usize, String), usize>,
    /// Bytes that the records so far become: sealed values in their text form, row ids, dead letters.
    bytes: u64,
}

impl Jobs {
    /// The job of `rule` under `key_name`, made when it is new.
    fn of(&mut self, rule: usize, key_name: Option<String>, bound: bool) -> usize {
        let next = self.list.len();
        let job = match &key_name {
            None => *self.plain_keys.entry(rule).or_insert(next),
            Some(name) => *self.template_keys.entry((rule, name.clone())).or_insert(next),
        };
        if job == next {
            let rows = bound.then(|| PlainColumn::with_capacity(0, 0));
            self.list.push(Job {
                rule,
                key_name,
                plain: PlainColumn::with_capacity(0, 0),
                rows,
                len: 0,
            });
        }
        job
    }
}

/// A sealed job: its rule, the column, and the data key unless it is a domain's.
struct Sealed {
    rule: usize,
    column: SealedColumn,
    key: Option<Arc<ActiveKey>>,
}

impl SealTransform {
    /// A transform for `policy`. The policy must have nothing [unsupported](crate::policy::Policy::unsupported).
    pub fn new(
        policy: Arc<VerifiedPolicy>,
        format: Format,
        placement: KeysPlacement,
        sealer: DirectSealer,
    ) -> Result<Self, LocatorError> {
        Ok(Self {
            plan: Plan::new(policy, format)?,
            sealer,
            placement,
            limits: OutputLimits::default(),
            counters: Arc::default(),
            for_table: false,
        })
    }

    /// The same transform for records that become rows of an encrypted table: columns `at: column` are found and checked
    /// as all others, hints of them are sealed, but their values stay in place, **in clear**, for the table to encrypt.
    /// Without this every column is sealed value by value.
    #[must_use]
    pub fn for_table(mut self) -> Self {
        self.for_table = true;
        self
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

    /// Whether values of `rule` stay in place, because their column is encrypted as a whole.
    fn stays_in_place(&self, rule: usize) -> bool {
        self.for_table && self.plan.rules()[rule].at == Placement::Column
    }

    /// Finds the record's values and adds them to the jobs.
    fn extract(
        &self,
        record: &Record,
        domains: &Domains,
        found: &mut Found,
        jobs: &mut Jobs,
    ) -> Result<Vec<Item>, Rejection> {
        if record.payload_bytes() as u64 > self.limits.record.0 {
            return Err(too_large_unread());
        }
        let before = jobs.bytes;
        let mut items = Vec::new();
        let outer = self.plan.outer_rules();
        match &record.value {
            None if outer.is_empty() => {}
            None => self.extract_outer(record, None, domains, jobs, &mut items)?,
            Some(bytes) => {
                let mut documents = 0;
                let mut padding = 0;
                self.plan.documents(bytes, found, |document| {
                    documents += 1;
                    self.plan.check_missing(&document)?;
                    padding += self
                        .plan
                        .hits(&document)
                        .map(|(rule, ..)| self.padding(rule, domains))
                        .sum::<usize>();
                    check_padding(padding)?;
                    // Readers find values and hints alike.
                    let mut room = MAX_HITS.saturating_sub(document.found.hits.len());
                    for (rule, place, indexes) in self.plan.hits(&document) {
                        let Place::Value { start, end } = place else { continue };
                        let text = &bytes[start..end];
                        if self.plan.rules()[rule].hint.is_some() {
                            return Err(hints::taken(&self.plan.rules()[rule]));
                        }
                        if text == b"null" && !self.plan.rules()[rule].seal_nulls {
                            continue;
                        }
                        if !self.stays_in_place(rule) {
                            let item = self.add(rule, place, text, indexes, Some(&document), domains, jobs)?;
                            items.push(item);
                            self.check_room(record, before, jobs)?;
                        }
                        for hint in self.plan.hints(rule) {
                            let Some(derived) = hints::derive(&self.plan.rules()[*hint], text, domains)? else {
                                continue;
                            };
                            room = room.checked_sub(1).ok_or_else(too_many_values)?;
                            let behind = Place::Value { start: end, end };
                            items.push(self.add(*hint, behind, &derived, indexes, Some(&document), domains, jobs)?);
                            self.check_room(record, before, jobs)?;
                        }
                    }
                    if documents == 1 && !outer.is_empty() {
                        self.extract_outer(record, Some(&document), domains, jobs, &mut items)?;
                    }
                    Ok(())
                })?;
                if documents == 0 && !outer.is_empty() {
                    self.extract_outer(record, None, domains, jobs, &mut items)?;
                }
            }
        }
        self.check_room(record, before, jobs)?;
        Ok(items)
    }

    /// Whether the record, sealed as far as it has been read, is still within the limit.
    fn check_room(&self, record: &Record, before: u64, jobs: &Jobs) -> Result<(), Rejection> {
        if record.payload_bytes() as u64 + (jobs.bytes - before) <= self.limits.record.0 {
            return Ok(());
        }
        Err(too_large())
    }

    /// Finds the values of the first records that fit the limit of a batch's output, at least of one.
    fn extract_prefix(
        &self,
        records: &[Record],
        domains: &Domains,
        jobs: &mut Jobs,
    ) -> Vec<Result<Vec<Item>, Rejection>> {
        let mut found = Found::default();
        let mut all = Vec::with_capacity(records.len());
        for record in records {
            let extracted = self.extract(record, domains, &mut found, jobs);
            // What a rejected record has put into the columns stays there, and is counted too.
            jobs.bytes += match &extracted {
                Ok(_) => record.payload_bytes() as u64,
                Err(_) => SetAside::letter_bytes(record),
            };
            all.push(extracted);
            if jobs.bytes >= self.limits.batch.0 {
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
            stage: "seal",
        }
    }

    /// `$key` and `$header` columns. Their fields are those of the record's first document.
    fn extract_outer(
        &self,
        record: &Record,
        document: Option<&Document<'_>>,
        domains: &Domains,
        jobs: &mut Jobs,
        items: &mut Vec<Item>,
    ) -> Result<(), Rejection> {
        for rule in self.plan.outer_rules() {
            let root = self.plan.rules()[*rule].path.root();
            let mut places = Vec::new();
            match root {
                Root::Key => places.extend(record.key.as_ref().map(|key| (Place::Key, key))),
                Root::Header(name) => {
                    let named = record
                        .headers
                        .iter()
                        .enumerate()
                        .filter(|(_, header)| header.name == *name);
                    places.extend(
                        named.filter_map(|(n, header)| header.value.as_ref().map(|value| (Place::Header(n), value))),
                    );
                }
                Root::Value => {}
            }
            if places.is_empty() && self.plan.rules()[*rule].on_missing == crate::policy::OnMissing::Reject {
                return Err(Rejection::new(
                    "missing-column",
                    format!("column {} is missing", self.plan.rules()[*rule].path),
                ));
            }
            if self.stays_in_place(*rule) {
                continue;
            }
            check_padding(places.len() * self.padding(*rule, domains))?;
            for (place, bytes) in places {
                items.push(self.add(*rule, place, bytes, &[], document, domains, jobs)?);
            }
        }
        Ok(())
    }

    /// The most bytes that padding adds to a value of `rule` and its hints.
    fn padding(&self, rule: usize, domains: &Domains) -> usize {
        let model = &self.plan.rules()[rule];
        let pad_to = match model.domain() {
            _ if self.stays_in_place(rule) => None,
            Some(name) => domains.get(name).and_then(|domain| domain.document.document().pad_to),
            None => model.pad_to,
        };
        let hints = self.plan.hints(rule).iter().map(|hint| self.padding(*hint, domains));
        pad_to.unwrap_or(0) as usize + hints.sum::<usize>()
    }

    #[allow(clippy::too_many_arguments)] // one value with all that it is sealed under
    fn add(
        &self,
        rule: usize,
        place: Place,
        text: &[u8],
        indexes: &[u32],
        document: Option<&Document<'_>>,
        domains: &Domains,
        jobs: &mut Jobs,
    ) -> Result<Item, Rejection> {
        let model = &self.plan.rules()[rule];
        let row_field = self.plan.row_field(rule);
        let key_name = match self.plan.columns[rule] {
            Some((group, _)) => self.plan.key_name(group, document)?,
            None => None,
        };
        let mut row = Vec::new();
        if let Some(field) = row_field {
            let Some(document) = document else {
                return Err(Rejection::new(
                    "missing-field",
                    "a row-bound column needs a record with a value",
                ));
            };
            let scalar = self.plan.field(document, field)?;
            json::encode_row_id(scalar, indexes, &mut row)
                .map_err(|error| Rejection::new("bad-row-id", error.to_string()))?;
        }
        let job = jobs.of(rule, key_name, row_field.is_some());
        let target = &mut jobs.list[job];
        let before = target.plain.byte_len();
        let column_full = |_| Rejection::new("batch-too-large", "more than 2 GiB of one column in a batch");
        if is_domain(model) {
            let name = model.domain().unwrap_or_default();
            let domain = domains
                .get(name)
                .ok_or_else(|| Rejection::new("no-domain", format!("domain {name} is not loaded")))?;
            let document = domain.document.document();
            let mut plaintext = Zeroizing::new(Vec::with_capacity(
                text.len() * 2 + 64 + document.pad_to.unwrap_or(0) as usize,
            ));
            coerce_into(place, text, document, &mut plaintext)?;
            target.plain.push(&plaintext).map_err(column_full)?;
        } else {
            let room = json::encode_len_bound(text.len(), model.pad_to);
            let written = match place {
                Place::Value { .. } => target
                    .plain
                    .push_with(room, |out| json::encode_json(text, model.pad_to, out)),
                _ => target
                    .plain
                    .push_with(room, |out| Plaintext::Bytes(text).encode(model.pad_to, out)),
            };
            written.map_err(column_full)?;
        }
        if let Some(rows) = &mut target.rows {
            rows.push(&row).map_err(column_full)?;
        }
        target.len += 1;
        let overhead = if is_domain(model) {
            value::SIV_OVERHEAD
        } else {
            value::GCM_OVERHEAD
        };
        let sealed = value::text_len(target.plain.byte_len() - before + overhead) + self.plan.opening(rule).len() + 1;
        jobs.bytes += (sealed + row.len()) as u64;
        Ok(Item {
            place,
            job,
            index: jobs.list[job].len - 1,
        })
    }

    /// Fetches the keys of a batch side by side, so that many tenants on a cold cache do not wait in a row.
    async fn fetch_keys(&self, jobs: &Jobs) -> Result<(), TransformError> {
        let mut wanted = HashSet::new();
        let mut fetches = JoinSet::<Result<(), KeyError>>::new();
        for job in &jobs.list {
            let Some((group, _)) = self.plan.columns[job.rule] else {
                continue;
            };
            if !wanted.insert((group, job.key_name.as_deref())) {
                continue;
            }
            if fetches.len() >= FETCHES
                && let Some(fetched) = fetches.join_next().await
            {
                joined(fetched)?.map_err(|error| from_direct(error.into()))?;
            }
            let (keys, spec) = (
                self.sealer.keys.clone(),
                self.plan.groups[group].spec(job.key_name.as_deref()),
            );
            fetches.spawn(async move { keys.get(&spec).await.map(drop) });
        }
        while let Some(fetched) = fetches.join_next().await {
            joined(fetched)?.map_err(|error| from_direct(error.into()))?;
        }
        Ok(())
    }

    /// Seals all jobs of the batch.
    async fn seal_jobs(&self, jobs: &Jobs, domains: &Domains) -> Result<Vec<Sealed>, TransformError> {
        let fetching = tracing::debug_span!(target: SPANS, "fetch_keys");
        self.fetch_keys(jobs).instrument(fetching).await?;
        let mut sealed = Vec::with_capacity(jobs.list.len());
        for job in &jobs.list {
            let model = &self.plan.rules()[job.rule];
            sealed.push(match self.plan.columns[job.rule] {
                Some((group, column)) => {
                    let spec = self.plan.groups[group].spec(job.key_name.as_deref());
                    let path = model.bind_row.as_ref().map(ToString::to_string);
                    let rows = path.as_deref().zip(job.rows.as_ref().map(PlainColumn::view));
                    let (key, column) = self
                        .sealer
                        .seal(&spec, column, rows, job.plain.view())
                        .await
                        .map_err(from_direct)?;
                    Sealed {
                        rule: job.rule,
                        column,
                        key: Some(key),
                    }
                }
                None => {
                    let name = model.domain().unwrap_or_default();
                    let domain = domains
                        .get(name)
                        .ok_or_else(|| TransformError::bug("a domain is not loaded"))?;
                    let column = domain
                        .key
                        .seal(job.plain.view())
                        .map_err(|error| from_direct(error.into()))?;
                    Sealed {
                        rule: job.rule,
                        column,
                        key: None,
                    }
                }
            });
            self.counters.values.fetch_add(job.len as u64, Ordering::Relaxed);
        }
        Ok(sealed)
    }

    /// The record with sealed values in place of plaintexts.
    fn assemble(
        &self,
        mut record: Record,
        items: &[Item],
        sealed: &[Sealed],
        headers: &mut HashMap<Vec<usize>, Bytes>,
    ) -> Result<Record, TransformError> {
        let mut used: Vec<usize> = Vec::new();
        let mut replacements: Vec<(std::ops::Range<usize>, Vec<u8>)> = Vec::new();
        for item in items {
            let job = &sealed[item.job];
            let Some(bytes) = job.column.view().get(item.index) else {
                return Err(TransformError::bug("a sealed column lacks a value"));
            };
            if job.key.is_some() {
                used.push(item.job);
            }
            let opening = self.plan.opening(job.rule);
            let mut text = Vec::with_capacity(value::text_len(bytes.len()) + opening.len() + 1);
            match item.place {
                Place::Value { start, end } => {
                    text.extend_from_slice(opening);
                    value::write_text(bytes, &mut text);
                    text.push(b'"');
                    replacements.push((start..end, text));
                }
                Place::Key => {
                    value::write_text(bytes, &mut text);
                    record.key = Some(text.into());
                }
                Place::Header(n) => {
                    value::write_text(bytes, &mut text);
                    record.headers[n].value = Some(text.into());
                }
            }
        }
        if let Some(original) = &record.value
            && !replacements.is_empty()
        {
            let added: usize = replacements.iter().map(|(_, text)| text.len()).sum();
            let mut out = Vec::with_capacity(original.len() + added);
            crate::columns::splice(
                original,
                replacements
                    .iter()
                    .map(|(range, text)| (range.clone(), text.as_slice())),
                &mut out,
            );
            record.value = Some(out.into());
        }
        if self.for_table {
            // A file carries what it finds there: nothing of a producer's.
            record.headers.retain(|header| header.name != KEYS_HEADER);
        }
        if self.placement == KeysPlacement::Header && !used.is_empty() {
            used.sort_unstable();
            used.dedup();
            let header = headers
                .entry(used)
                .or_insert_with_key(|jobs| keys_header(jobs, sealed))
                .clone();
            record.headers.push(Header {
                name: KEYS_HEADER.to_owned(),
                value: Some(header),
            });
        }
        Ok(record)
    }
}

/// Without this, a few hundred kilobytes of one-byte values could grow to gigabytes.
fn check_padding(bytes: usize) -> Result<(), Rejection> {
    if bytes <= MAX_PADDING {
        return Ok(());
    }
    Err(Rejection::new(
        "too-many-values",
        "padding adds more than 16 MiB to one record",
    ))
}

/// More values and hints than a reader would find.
fn too_many_values() -> Rejection {
    Rejection::new(
        "too-many-values",
        "the record holds more values with their hints than can be located",
    )
}

/// The header with the envelopes of `jobs`, each key once; no more than readers take. The catalogue has them all.
fn keys_header(jobs: &[usize], sealed: &[Sealed]) -> Bytes {
    let mut keys: Vec<&Arc<ActiveKey>> = jobs.iter().filter_map(|job| sealed[*job].key.as_ref()).collect();
    keys.sort_unstable_by_key(|key| key.key.id());
    keys.dedup_by_key(|key| key.key.id());
    keys.truncate(MAX_ENVELOPES);
    write_header(keys.iter().map(|key| key.envelope_bytes.as_slice())).into()
}

fn coerce_into(place: Place, text: &[u8], domain: &DomainDocument, out: &mut Vec<u8>) -> Result<(), Rejection> {
    let coerced = match place {
        Place::Value { .. } => coerce(text, &domain.kind, domain.pad_to, out),
        // Keys and headers are bytes: a text domain takes them as a string, every other one as JSON text.
        _ if domain.kind == DomainType::Bytes => {
            Plaintext::Bytes(text).encode(domain.pad_to, out);
            Ok(())
        }
        _ if domain.kind == DomainType::Utf8 => {
            let Ok(text) = std::str::from_utf8(text) else {
                return Err(Rejection::new("cannot-coerce", "not UTF-8"));
            };
            Plaintext::Utf8(text).encode(domain.pad_to, out);
            Ok(())
        }
        _ => coerce(text, &domain.kind, domain.pad_to, out),
    };
    coerced.map_err(|error| Rejection::new(error.code(), error.to_string()))
}

#[async_trait]
impl Transform for SealTransform {
    async fn apply(&self, mut records: Vec<Record>) -> Result<Vec<Outcome>, TransformError> {
        let mut domains = Domains::new();
        for name in self.plan.sealing_domains() {
            let domain = self.sealer.domains.get(name, None).await.map_err(from_domain)?;
            domains.insert(name.to_owned(), domain);
        }
        let mut jobs = Jobs::default();
        let extracted = {
            let _span = tracing::debug_span!(target: SPANS, "locate", records = records.len()).entered();
            self.extract_prefix(&records, &domains, &mut jobs)
        };
        records.truncate(extracted.len());
        let values: usize = jobs.list.iter().map(|job| job.len).sum();
        let sealing = tracing::debug_span!(target: SPANS, "seal", values, columns = jobs.list.len());
        let sealed = self.seal_jobs(&jobs, &domains).instrument(sealing).await?;
        drop(jobs);
        let mut headers = HashMap::new();
        let mut outcomes = Vec::with_capacity(records.len());
        let mut rejected = Vec::new();
        for (record, extracted) in records.into_iter().zip(extracted) {
            match extracted {
                Ok(items) => {
                    let record = self.assemble(record, &items, &sealed, &mut headers)?;
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
        drop(sealed);
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
