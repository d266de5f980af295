//! The sealing transform: records in, the same records with a policy's columns sealed out, every other byte
//! as it was; what cannot be sealed becomes a dead letter, never a pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::assemble::Assembly;
use super::client_proofs::{Claims, Clients, OfRecord, Proofs};
use super::client_values::{ClientValues, NOT_CLIENT_SEALED, Opened, Refusal};
use super::dead_letter::CANNOT_OPEN;
use super::extract::Extracted;
use super::for_enclave::{Resealing, refuse_by_worker};
use super::hints::Domains;
use super::jobs::{Job, Jobs};
use super::output::{OutputLimits, too_large};
use super::plan::{Format, Group, Plan, Rejection};
use super::record::{Position, Record, ahead};
use super::refusals::Refusals;
use super::set_aside::{SetAside, from_direct, from_domain, joined};
use super::transform::{Outcome, Route, SPANS, Transform, TransformError};
use crate::columns::LocatorError;
use crate::flow::direct::DirectSealer;
use crate::flow::enclave::{EnclaveWorker, ValueRefusal};
use crate::keys::{ActiveKey, KeyError};
use crate::policy::{Flow, VerifiedPolicy};
use crate::seal::{KeyId, PlainColumn, SealedColumn};

/// Keys that are fetched side by side for one batch.
pub(super) const FETCHES: usize = 16;
/// Bytes of output that a part of a batch comes to: what is read twice, to find the values and to copy what is between
/// them, is still in the core's second cache then.
const PART: u64 = 1_536 << 10;
/// Most columns of a policy whose batches are sealed in parts: each costs something in each part.
const MOST_COLUMNS: usize = 64;

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
    /// Those among them that came sealed by clients.
    pub client_values: AtomicU64,
    /// Records that became dead letters.
    pub dead_letters: AtomicU64,
}

/// Seals the columns of one policy.
pub struct SealTransform {
    pub(super) plan: Plan,
    sealer: DirectSealer,
    clients: Option<Clients>,
    pub(super) enclave: Option<Arc<dyn EnclaveWorker>>,
    placement: KeysPlacement,
    pub(super) limits: OutputLimits,
    counters: Arc<TransformCounters>,
    pub(super) for_table: bool,
    /// Batches are sealed part by part. Not where a part asks for more than it saves: clients' values are opened together,
    /// and of many columns, or of such whose keys have names by the record, a part has as many as the batch.
    in_parts: bool,
}

/// What came of opening what clients sealed.
#[derive(Default)]
struct OfClients {
    /// How many values were.
    opened: u64,
    /// What is to be claimed for which record.
    to_take: Vec<(usize, Claims)>,
}

/// A sealed job: its rule, the column, the data key unless it is a domain's, and what the enclave worker refused.
pub(super) struct Sealed {
    pub(super) rule: usize,
    pub(super) column: SealedColumn,
    pub(super) key: Option<TravellingKey>,
    pub(super) refused: Vec<(u32, ValueRefusal)>,
}

/// A data key that sealed values, as it travels with them.
pub(super) struct TravellingKey {
    pub(super) id: KeyId,
    pub(super) envelope: EnvelopeBytes,
}

/// Of a key that this process sealed with, or the enclave worker.
pub(super) enum EnvelopeBytes {
    Ours(Arc<ActiveKey>),
    Workers(Vec<u8>),
}

impl Sealed {
    fn nothing(rule: usize) -> Self {
        Self {
            rule,
            column: SealedColumn::with_capacity(0, 0),
            key: None,
            refused: Vec::new(),
        }
    }
}

impl TravellingKey {
    fn ours(key: Arc<ActiveKey>) -> Self {
        Self {
            id: key.key.id(),
            envelope: EnvelopeBytes::Ours(key),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.envelope {
            EnvelopeBytes::Ours(key) => &key.envelope_bytes,
            EnvelopeBytes::Workers(bytes) => bytes,
        }
    }
}

impl SealTransform {
    /// A transform for `policy`. The policy must have nothing [unsupported](crate::policy::Policy::unsupported).
    pub fn new(
        policy: Arc<VerifiedPolicy>,
        format: Format,
        placement: KeysPlacement,
        sealer: DirectSealer,
    ) -> Result<Self, LocatorError> {
        let model = policy.policy();
        let of_clients = model.client.is_some() || model.enclave.is_some();
        let plan = Plan::new(policy, format)?;
        Ok(Self {
            in_parts: !of_clients && plan.rules().len() <= MOST_COLUMNS && !plan.groups.iter().any(Group::is_template),
            plan,
            sealer,
            clients: None,
            enclave: None,
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

    /// The same transform for a policy with hybrid columns: what clients seal is opened with these. Without them such values
    /// do not open, and their records become dead letters.
    #[must_use]
    pub fn with_clients(mut self, clients: Clients) -> Self {
        self.clients = Some(clients);
        self
    }

    /// The same transform for a policy with enclave columns: their values are carried to this worker. Without it they do not open,
    /// and their records become dead letters.
    #[must_use]
    pub fn with_enclave(mut self, worker: Arc<dyn EnclaveWorker>) -> Self {
        self.enclave = Some(worker);
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

    /// Whether the record, sealed as far as it has been read, is still within the limit.
    pub(super) fn check_room(&self, record: &Record, before: u64, jobs: &Jobs) -> Result<(), Rejection> {
        if record.payload_bytes() as u64 + (jobs.bytes - before) <= self.limits.record.0 {
            return Ok(());
        }
        Err(too_large())
    }

    pub(super) fn set_aside(&self) -> SetAside<'_> {
        SetAside {
            plan: &self.plan,
            sealer: &self.sealer,
            placement: self.placement,
            stage: "seal",
        }
    }

    /// Opens what clients sealed, and adds it to the jobs; what that came to, and what was refused. A record of which something does
    /// not open is rejected.
    async fn open_pending(
        &self,
        records: &[Record],
        extracted: &mut [Result<Extracted, Rejection>],
        domains: &Domains,
        jobs: &mut Jobs,
    ) -> Result<(OfClients, Vec<(Position, Refusal)>), TransformError> {
        let rule = self.plan.policy.policy().client.as_ref();
        let Some((clients, rule)) = self.clients.as_ref().zip(rule) else {
            for one in extracted.iter_mut().filter(|one| has_pending(one)) {
                *one = Err(Rejection::new(CANNOT_OPEN, "nothing here opens what clients seal"));
            }
            return Ok((OfClients::default(), Vec::new()));
        };
        let mut refusals = Vec::new();
        let mut refuse = |n: usize, one: &mut Result<Extracted, Rejection>, refusal: Refusal| {
            if one.is_ok() {
                *one = Err(refusal.rejection.clone());
                refusals.push((records[n].position.clone(), refusal));
            }
        };
        let proofs = self.proofs();
        if let Some(proofs) = &proofs {
            for (n, refusal) in proofs.verify(&pending_of(records, extracted)).await? {
                refuse(n, &mut extracted[n], refusal);
            }
        }
        let mut values = ClientValues::new(&self.plan, rule);
        let mut wanted = Vec::new();
        for (n, (record, one)) in records.iter().zip(extracted.iter_mut()).enumerate() {
            let looked = match one {
                Ok(found) => values.look(record, &found.of_client().pending),
                Err(_) => Ok(Vec::new()),
            };
            wanted.push(looked.unwrap_or_else(|refusal| {
                refuse(n, one, refusal);
                Vec::new()
            }));
        }
        let mut claims = Vec::new();
        for (n, record, pending) in pending_of(records, extracted) {
            let found = proofs.as_ref().map(|proofs| proofs.claims(record, pending));
            claims.extend(found.map(|found| (n, found)));
        }
        let mut to_take = Vec::new();
        for (n, found) in claims {
            match found {
                Ok(found) => to_take.extend(found.map(|found| (n, found))),
                Err(refusal) => refuse(n, &mut extracted[n], refusal),
            }
        }
        let unwrapped = values.unwrap(&clients.keys).await?;
        let mut sealed = 0;
        for (n, ((record, one), wanted)) in records.iter().zip(extracted.iter_mut()).zip(wanted).enumerate() {
            let Ok(found) = one else { continue };
            let before = jobs.bytes;
            let pending = std::mem::take(&mut found.of_client_mut().pending)
                .into_iter()
                .zip(wanted)
                .collect();
            let opened = values.open(record, pending, &unwrapped, domains, jobs);
            match opened {
                Ok(opened) => {
                    if let Err(rejection) = self.check_room(record, before, jobs) {
                        *one = Err(rejection);
                        continue;
                    }
                    for value in opened {
                        match value {
                            Opened::Sealed(item) => {
                                sealed += 1;
                                found.of_client_mut().more.push(item);
                            }
                            Opened::Clear(place, plain) => found.of_client_mut().clear.push((place, plain)),
                        }
                    }
                }
                Err(refusal) => refuse(n, one, refusal),
            }
        }
        let opened = OfClients {
            opened: sealed,
            to_take,
        };
        Ok((opened, refusals))
    }

    /// Takes the values that count once: last of all, so that no record takes values and is set aside then.
    async fn take(
        &self,
        records: &[Record],
        extracted: &mut [Result<Extracted, Rejection>],
        mut to_take: Vec<(usize, Claims)>,
    ) -> Result<Vec<(Position, Refusal)>, TransformError> {
        let mut refusals = Vec::new();
        let Some(proofs) = self.proofs() else {
            return Ok(refusals);
        };
        to_take.retain(|(n, _)| extracted[*n].is_ok());
        for (n, refusal) in proofs.take(to_take).await? {
            if extracted[n].is_ok() {
                extracted[n] = Err(refusal.rejection.clone());
                refusals.push((records[n].position.clone(), refusal));
            }
        }
        Ok(refusals)
    }

    /// What verifies and claims, if clients prove who they are.
    fn proofs(&self) -> Option<Proofs<'_>> {
        let rule = self.plan.policy.policy().client.as_ref()?.mac.as_ref()?;
        let clients = self.clients.as_ref()?;
        Some(Proofs {
            plan: &self.plan,
            rule,
            keys: &clients.macs,
            taken: clients.taken.as_deref(),
            clock: &*clients.clock,
        })
    }

    /// Values that came in clear where the policy wants them sealed by the client.
    fn refused_in_clear(
        &self,
        records: &[Record],
        extracted: &[Result<Extracted, Rejection>],
    ) -> Vec<(Position, Refusal)> {
        let rejected = records
            .iter()
            .zip(extracted)
            .filter_map(|(record, one)| Some((record, one.as_ref().err()?)));
        let in_clear = rejected.filter(|(_, rejection)| rejection.code == NOT_CLIENT_SEALED);
        in_clear
            .map(|(record, rejection)| (record.position.clone(), Refusal::of_no_column(rejection.clone())))
            .collect()
    }

    /// Fetches the keys of a part side by side, so that many tenants on a cold cache do not wait in a row.
    async fn fetch_keys(&self, jobs: &Jobs) -> Result<(), TransformError> {
        let ours = jobs.list.iter().filter(|job| !self.is_workers(job));
        let mut wanted: Vec<(usize, Option<&str>)> = ours
            .filter_map(|job| Some((self.plan.columns[job.rule]?.0, job.key_name.as_deref())))
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        if let [(group, name)] = wanted[..] {
            let key = self.sealer.keys.get(&self.plan.groups[group].spec(name)).await;
            return key.map(drop).map_err(|error| from_direct(error.into()));
        }
        let mut fetches = JoinSet::<Result<(), KeyError>>::new();
        for (group, name) in wanted {
            if fetches.len() >= FETCHES
                && let Some(fetched) = fetches.join_next().await
            {
                joined(fetched)?.map_err(|error| from_direct(error.into()))?;
            }
            let (keys, spec) = (
                self.sealer.keys.clone(),
                self.plan.groups[group].spec(name).into_owned(),
            );
            fetches.spawn(async move { keys.get(&spec).await.map(drop) });
        }
        while let Some(fetched) = fetches.join_next().await {
            joined(fetched)?.map_err(|error| from_direct(error.into()))?;
        }
        Ok(())
    }

    /// Seals the first of `records`, at least one, until what they become passes `limit` bytes; how many bytes that is.
    async fn seal_part(
        &self,
        records: &[Record],
        limit: u64,
        domains: &Domains,
        done: &mut Done,
    ) -> Result<u64, TransformError> {
        let mut jobs = Jobs::for_records(expected(records, limit));
        let mut extracted = {
            let _span = tracing::debug_span!(target: SPANS, "locate", records = records.len()).entered();
            self.extract_prefix(records, limit, domains, &mut jobs)
        };
        let records = &records[..extracted.len()];
        let mut of_clients = OfClients::default();
        let mut refused = self.refused_in_clear(records, &extracted);
        // Under way while the backend opens and seals what is its own.
        let resealing = self.pass_on(records, &mut extracted, &mut jobs, &mut refused)?;
        if extracted.iter().any(has_pending) {
            let opening = tracing::debug_span!(target: SPANS, "open_client_values");
            let opened = self.open_pending(records, &mut extracted, domains, &mut jobs);
            let (count, more) = opened.instrument(opening).await?;
            of_clients = count;
            refused.extend(more);
        }
        let values: usize = jobs.list.iter().map(|job| job.len).sum();
        let sealing = tracing::debug_span!(target: SPANS, "seal", values, columns = jobs.list.len());
        let sealed = self.seal_jobs(&jobs, resealing, domains).instrument(sealing).await?;
        refuse_by_worker(records, &mut extracted, &jobs.items, &sealed, &mut refused);
        refused.extend(self.take(records, &mut extracted, of_clients.to_take).await?);
        done.values += values as u64;
        done.client_values += of_clients.opened;
        done.refused.extend(refused);
        let (items, bytes) = (std::mem::take(&mut jobs.items), jobs.bytes);
        drop(jobs);
        let mode = (self.placement, self.for_table);
        let mut assembly = Assembly::new(&self.plan, mode, &items, &sealed, (records.len(), bytes));
        for (record, extracted) in ahead(records).zip(&extracted) {
            match extracted {
                Ok(found) => assembly.add(record, found, &mut done.outcomes)?,
                Err(rejection) => {
                    done.rejected.push((done.outcomes.len(), rejection.clone()));
                    done.outcomes.push(Outcome {
                        route: Route::DeadLetter,
                        record: record.clone(),
                    });
                }
            }
        }
        assembly.finish(&mut done.outcomes);
        Ok(bytes)
    }

    /// Whether only the enclave worker seals a job.
    pub(super) fn is_workers(&self, job: &Job) -> bool {
        self.plan.rules()[job.rule].flow == Flow::Enclave
    }

    /// Seals all jobs of the batch. Those of the enclave are `resealing` while the others are sealed here.
    async fn seal_jobs(
        &self,
        jobs: &Jobs,
        mut resealing: Resealing,
        domains: &Domains,
    ) -> Result<Vec<Sealed>, TransformError> {
        let fetching = tracing::debug_span!(target: SPANS, "fetch_keys");
        self.fetch_keys(jobs).instrument(fetching).await?;
        let (mut sealed, mut workers) = (Vec::with_capacity(jobs.list.len()), Vec::new());
        for (n, job) in jobs.list.iter().enumerate() {
            let model = &self.plan.rules()[job.rule];
            sealed.push(match self.plan.columns[job.rule] {
                // In its place comes what the worker seals.
                Some(_) if self.is_workers(job) => {
                    workers.push(n);
                    Sealed::nothing(job.rule)
                }
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
                        key: Some(TravellingKey::ours(key)),
                        refused: Vec::new(),
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
                        refused: Vec::new(),
                    }
                }
            });
        }
        for (n, column) in workers.into_iter().zip(resealing.finish().await?) {
            sealed[n] = column;
        }
        Ok(sealed)
    }
}

/// How many of the records a part takes, as far as the first of them says.
fn expected(records: &[Record], limit: u64) -> usize {
    let first = records.first().map_or(1, |record| record.payload_bytes().max(1));
    let fitting = usize::try_from(limit).unwrap_or(usize::MAX) / first;
    records.len().min(fitting.saturating_add(1))
}

fn has_pending(one: &Result<Extracted, Rejection>) -> bool {
    one.as_ref().is_ok_and(|one| !one.of_client().pending.is_empty())
}

/// The records that clients sealed values of, as far as they are not rejected.
fn pending_of<'a>(records: &'a [Record], extracted: &'a [Result<Extracted, Rejection>]) -> Vec<OfRecord<'a>> {
    let all = records.iter().zip(extracted).enumerate();
    all.filter_map(|(n, (record, one))| {
        let found = one
            .as_ref()
            .ok()
            .filter(|found| !found.of_client().pending.is_empty())?;
        Some((n, record, found.of_client().pending.as_slice()))
    })
    .collect()
}

/// What became of the records of a batch so far.
struct Done {
    /// Rejected records stand there as they came, until they become dead letters.
    outcomes: Vec<Outcome>,
    rejected: Vec<(usize, Rejection)>,
    /// Of clients' values, to be written down.
    refused: Vec<(Position, Refusal)>,
    /// Values that were sealed, and those of them that clients had sealed.
    values: u64,
    client_values: u64,
}

#[async_trait]
impl Transform for SealTransform {
    async fn apply(&self, records: &[Record]) -> Result<Vec<Outcome>, TransformError> {
        let mut domains = Domains::new();
        for name in self.plan.sealing_domains() {
            let domain = self.sealer.domains.get(name, None).await.map_err(from_domain)?;
            domains.insert(name.to_owned(), domain);
        }
        let mut done = Done {
            outcomes: Vec::with_capacity(expected(records, self.limits.batch.0)),
            rejected: Vec::new(),
            refused: Vec::new(),
            values: 0,
            client_values: 0,
        };
        let limit = self.limits.batch.0;
        let part = if self.in_parts { PART.min(limit) } else { limit };
        let mut bytes = 0;
        loop {
            let rest = &records[done.outcomes.len()..];
            bytes += self
                .seal_part(rest, part.min(limit - bytes), &domains, &mut done)
                .await?;
            if !self.in_parts || done.outcomes.len() == records.len() || bytes >= limit {
                break;
            }
        }
        // Nothing can fail any more but the dead letters, so that few refusals are written down twice.
        if let Some((log, clock)) = self.clients.as_ref().and_then(Clients::log) {
            let (plan, now) = (&self.plan, clock.now());
            Refusals { plan, log, now }.record(&done.refused).await?;
        }
        self.set_aside().seal(&done.rejected, &mut done.outcomes).await?;
        // Now that nothing of the batch is tried again.
        for (counter, more) in [
            (&self.counters.values, done.values),
            (&self.counters.client_values, done.client_values),
            (&self.counters.dead_letters, done.rejected.len() as u64),
        ] {
            counter.fetch_add(more, Ordering::Relaxed);
        }
        Ok(done.outcomes)
    }

    async fn refuse(&self, records: &[Record], code: &'static str) -> Result<Vec<Outcome>, TransformError> {
        let outcomes = self.set_aside().refuse(records, code, self.limits.batch.0).await?;
        self.counters
            .dead_letters
            .fetch_add(outcomes.len() as u64, Ordering::Relaxed);
        Ok(outcomes)
    }
}
