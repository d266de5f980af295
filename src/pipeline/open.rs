//! The opening transform: sealed records in, the original records out. It recreates plaintext: whoever runs it
//! decides where that goes.
//!
//! Each value says its key and column; what it opens as is checked against the place where it was found
//! (place = label). A value that does not open as that, or a place that holds no sealed value, makes the
//! record a dead letter. Hints were derived from values and are taken out with their members, unopened.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use tracing::Instrument as _;

use super::dead_letter::CANNOT_OPEN;
use super::edits::Edits;
use super::open_columns::{At, OpenedValues, ToOpen};
use super::opener::{Failures, Item, Keyring, Names, Opener, Values, not_sealed};
use super::output::OutputLimits;
use super::plan::{Format, Place, Plan, Rejection};
use super::record::{Record, ahead};
use super::seal::{KeysPlacement, TransformCounters};
use super::set_aside::{SetAside, from_domain, service_stop};
use super::transform::{Outcome, Route, SPANS, StopKind, Transform, TransformError};
use super::travelling::{Travelling, TravellingReader};
use crate::columns::{Found, LocatorError};
use crate::flow::direct::DirectSealer;
use crate::keys::{CatalogueError, DomainError, KeyServiceError, OpenKeyError, OpeningKeys};
use crate::policy::{PolicySourceError, VerifiedPolicy};
use crate::seal::KeyId;

/// Opens the columns of one policy.
pub struct OpenTransform {
    opener: Opener,
    /// Seals dead letters.
    sealer: DirectSealer,
    placement: KeysPlacement,
    limits: OutputLimits,
    counters: Arc<TransformCounters>,
}

/// What becomes of a place.
enum Change {
    Open(Item, Option<At>),
    /// The member of a hint goes. With the data key that its value names.
    Remove(Place, Option<KeyId>),
}

/// What was found in one record, and the envelopes that travel with it.
struct Extracted {
    /// Of [`Batch::changes`].
    changes: Range<usize>,
    travelling: Travelling,
}

/// What was found in the records of a batch.
#[derive(Default)]
struct Batch {
    records: Vec<Result<Extracted, Rejection>>,
    /// Record after record, in order.
    changes: Vec<Change>,
    values: Values,
}

impl Batch {
    /// Rules of a record's values that are opened, and what they name.
    fn to_open(&self, of: &Extracted) -> impl Iterator<Item = (usize, Names)> {
        self.changes[of.changes.clone()]
            .iter()
            .filter_map(|change| match change {
                Change::Open(item, _) => Some((item.rule as usize, item.names)),
                Change::Remove(..) => None,
            })
    }

    /// The data keys that the values of a record name, in `keys`.
    fn keys(&self, of: &Extracted, keys: &mut Vec<KeyId>) {
        let key = |change: &Change| match change {
            Change::Open(item, _) => item.names.key().ok().flatten(),
            Change::Remove(_, key) => *key,
        };
        keys.clear();
        keys.extend(self.changes[of.changes.clone()].iter().filter_map(key));
        keys.dedup();
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
            opener: Opener {
                plan: Plan::new(policy, format)?,
                keys,
                domains: sealer.domains.clone(),
                failures: Failures {
                    key: key_failure,
                    domain: domain_failure,
                },
            },
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
    fn extract_prefix(&self, records: &[Record]) -> Batch {
        let mut found = Found::default();
        let mut travelling = TravellingReader::new(&self.opener.plan.policy.policy().dataset);
        let mut bytes = 0;
        let mut batch = Batch::default();
        let Batch {
            records: all,
            changes,
            values,
        } = &mut batch;
        all.reserve(records.len());
        for record in ahead(records) {
            let (first, before) = (changes.len(), values.mark());
            let mut is_sealed = true;
            let to = (&mut found, &mut *values);
            let extracted = self
                .opener
                .extract(record, self.limits.record.0, to, |(rule, place, item)| {
                    let item = item.transpose()?;
                    let is_hint = self.opener.plan.rules()[rule].hint.is_some();
                    if is_hint {
                        let key = item.map(|item| item.names.key()).transpose()?;
                        changes.push(Change::Remove(place, key.flatten()));
                    } else if let Some(item) = item {
                        // The record is none that opens, and the rest of it is only looked through: the shortest texts are a few
                        // bytes, what is kept of a value is a hundred.
                        is_sealed &= !matches!(item.names, Names::Nothing);
                        if is_sealed {
                            changes.push(Change::Open(item, None));
                        }
                    }
                    Ok(!is_hint && is_sealed)
                });
            let extracted = extracted.and_then(|()| is_sealed.then_some(()).ok_or_else(not_sealed));
            if extracted.is_err() {
                changes.truncate(first);
                values.truncate(before);
            }
            all.push(extracted.map(|()| Extracted {
                changes: first..changes.len(),
                travelling: travelling.of(record),
            }));
            // Opening makes records smaller, letters make them larger.
            bytes += self.set_aside().letter_bytes(record);
            if bytes + values.row_bytes() >= self.limits.batch.0 {
                break;
            }
        }
        batch
    }

    fn set_aside(&self) -> SetAside<'_> {
        SetAside {
            plan: &self.opener.plan,
            sealer: &self.sealer,
            placement: self.placement,
            stage: "open",
        }
    }

    /// Opens the values of all records together, but for those of domains. A record of which a value says that it is something else
    /// is rejected.
    fn open_columns(&self, records: &[Record], batch: &mut Batch, ring: &mut Keyring) -> OpenedValues {
        let mut to_open = ToOpen::default();
        for (record, one) in records.iter().zip(&mut batch.records) {
            let Ok(found) = one else { continue };
            let fingerprint = found.travelling.fingerprint();
            let added = batch.changes[found.changes.clone()].iter_mut().try_for_each(|change| {
                if let Change::Open(item, at) = change {
                    let of = (self.opener.plan.rules()[item.rule as usize].label.as_str(), fingerprint);
                    *at = self
                        .opener
                        .add(record, batch.values.get(item), of, ring, &mut to_open)?;
                }
                Ok(())
            });
            if let Err(rejection) = added {
                *one = Err(rejection);
            }
        }
        to_open.open()
    }

    /// Puts what was opened of a record at its places, or says why not all of its values open. How many were.
    fn put<'r>(
        &self,
        record: &'r Record,
        (batch, found): (&Batch, &Extracted),
        opened: &OpenedValues,
        ring: &mut Keyring,
        edits: &mut Edits<'r>,
    ) -> Result<u64, Rejection> {
        let fingerprint = found.travelling.fingerprint();
        edits.start(record);
        let mut count = 0;
        for change in &batch.changes[found.changes.clone()] {
            match change {
                Change::Remove(place, _) => edits.put_removed(*place)?,
                Change::Open(item, at) => {
                    count += 1;
                    if let Some(at) = at {
                        edits.put(item.place, opened.get(*at)?)?;
                        continue;
                    }
                    let value = batch.values.get(item);
                    let of = (self.opener.plan.rules()[item.rule as usize].label.as_str(), fingerprint);
                    let encoding = edits.encoding(value.sealed.len());
                    self.opener.open(record, value, of, ring, encoding)?;
                    edits.put_opened(item.place)?;
                }
            }
        }
        Ok(count)
    }
}

/// A key that is not there: wait for it, stop for want of rights, or set the record aside.
pub(super) fn key_failure(error: OpenKeyError) -> Result<Rejection, TransformError> {
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
        OpenKeyError::Policy(PolicySourceError::Untrusted { what, reason, help }) => Err(TransformError::Stop {
            kind: StopKind::Config,
            reason: format!("{what} cannot be used: {reason}"),
            help,
        }),
        error => Ok(Rejection::new(CANNOT_OPEN, error.to_string())),
    }
}

pub(super) fn domain_failure(error: DomainError) -> Result<Rejection, TransformError> {
    match error {
        DomainError::Policy(PolicySourceError::Missing { what }) => {
            Ok(Rejection::new(CANNOT_OPEN, format!("no {what}")))
        }
        error => Err(from_domain(error)),
    }
}

#[async_trait]
impl Transform for OpenTransform {
    async fn apply(&self, records: &[Record]) -> Result<Vec<Outcome>, TransformError> {
        let mut batch = {
            let _span = tracing::debug_span!(target: SPANS, "locate", records = records.len()).entered();
            self.extract_prefix(records)
        };
        let records = &records[..batch.records.len()];
        let found = batch.records.iter().flatten();
        let mut ring = self
            .opener
            .keyring(found.map(|found| (batch.to_open(found), &found.travelling)))
            .instrument(tracing::debug_span!(target: SPANS, "fetch_keys"))
            .await?;
        let mut outcomes = Vec::with_capacity(records.len());
        let mut rejected = Vec::new();
        let mut values = 0;
        tracing::debug_span!(target: SPANS, "open").in_scope(|| {
            let opened = self.open_columns(records, &mut batch, &mut ring);
            let mut edits = Edits::for_records(records);
            let mut keys = Vec::new();
            for (record, found) in records.iter().zip(&batch.records) {
                let put = found.as_ref().map_err(Clone::clone).and_then(|found| {
                    let count = self.put(record, (&batch, found), &opened, &mut ring, &mut edits)?;
                    Ok((found, count))
                });
                let outcome = match put {
                    Ok((found, count)) => {
                        values += count;
                        let mut record = edits.apply(outcomes.len(), record);
                        batch.keys(found, &mut keys);
                        if let Some(added) = found.travelling.added(&keys) {
                            record.headers.remove(added);
                        }
                        Outcome {
                            route: Route::Target,
                            record,
                        }
                    }
                    Err(rejection) => {
                        rejected.push((outcomes.len(), rejection));
                        Outcome {
                            route: Route::DeadLetter,
                            record: record.clone(),
                        }
                    }
                };
                outcomes.push(outcome);
            }
            edits.finish(|n, value| outcomes[n].record.value = Some(value));
        });
        drop((batch, ring));
        self.set_aside().seal(&rejected, &mut outcomes).await?;
        self.counters.values.fetch_add(values, Ordering::Relaxed);
        self.counters
            .dead_letters
            .fetch_add(rejected.len() as u64, Ordering::Relaxed);
        Ok(outcomes)
    }
    async fn refuse(&self, records: &[Record], code: &'static str) -> Result<Vec<Outcome>, TransformError> {
        let outcomes = self.set_aside().refuse(records, code, self.limits.batch.0).await?;
        self.counters
            .dead_letters
            .fetch_add(outcomes.len() as u64, Ordering::Relaxed);
        Ok(outcomes)
    }
}
