//! The sealing and opening transforms with their keys in memory: the whole of Sealflow except Kafka and KMS.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealflow::clock::{Clock, ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::flow::enclave::EnclaveWorker;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{ClientKeyService, DomainKeys, OpeningKeys, SealingKeys};
use sealflow::pipeline::{
    Clients, Format, Headers, KeysPlacement, OpenTransform, Outcome, Position, Record, Route, SealTransform, Timestamp,
    Transform as _, apply_all,
};
use sealflow::policy::{FixedPolicies, VerifiedPolicy};
use sealflow::seal::UsageLimits;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::Error;

/// Far beyond what a benchmark seals: no key is replaced while it runs.
const NO_LIMIT: UsageLimits = UsageLimits {
    batches: u64::MAX,
    values: u64::MAX,
    bytes: u64::MAX,
};

/// Both transforms of one policy, on a runtime of one thread.
pub struct Engine {
    runtime: Runtime,
    seal: Arc<SealTransform>,
    open: OpenTransform,
}

impl Engine {
    /// Of a policy, which counts as verified.
    pub fn new(policy: &str) -> Result<Self, Error> {
        let policy =
            VerifiedPolicy::unsigned_for_development(policy.as_bytes()).map_err(|error| format!("{error:?}"))?;
        let policy = Arc::new(policy);
        Self::on(Arc::new(MemoryKms::new()), policy)
    }

    /// As [`Engine::new`], on a key service of the caller's.
    pub fn on(kms: Arc<dyn ClientKeyService>, policy: Arc<VerifiedPolicy>) -> Result<Self, Error> {
        Self::made(kms, policy, |seal| seal)
    }

    /// As [`Engine::on`], with columns that this worker seals.
    pub fn with_enclave(
        kms: Arc<dyn ClientKeyService>,
        policy: Arc<VerifiedPolicy>,
        worker: Arc<dyn EnclaveWorker>,
    ) -> Result<Self, Error> {
        Self::made(kms, policy, |seal| seal.with_enclave(worker))
    }

    fn made(
        kms: Arc<dyn ClientKeyService>,
        policy: Arc<VerifiedPolicy>,
        change: impl FnOnce(SealTransform) -> SealTransform,
    ) -> Result<Self, Error> {
        let catalogue = Arc::new(MemoryCatalogue::new());
        let policies = Arc::new(FixedPolicies::new(vec![Arc::clone(&policy)]));
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(UnixMillis(1_767_225_600_000)));
        let age = Duration::from_secs(300);
        let sealer = DirectSealer {
            keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), NO_LIMIT),
            domains: DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), age),
        };
        let keys = OpeningKeys::new(kms.clone(), catalogue, policies, clock.clone(), age, 1_000);
        let clients = Clients::new(kms, clock, age, 100_000);
        let (format, placement) = (Format::Json, KeysPlacement::Header);
        Ok(Self {
            runtime: tokio::runtime::Builder::new_current_thread().enable_time().build()?,
            seal: Arc::new(change(
                SealTransform::new(Arc::clone(&policy), format, placement, sealer.clone())?.with_clients(clients),
            )),
            open: OpenTransform::new(policy, format, placement, keys, sealer)?,
        })
    }

    /// Seals a batch that fits the limits of output. An error if a record is refused or left for another piece: then a
    /// benchmark would measure something else.
    pub fn seal(&self, records: &[Record]) -> Result<Vec<Record>, Error> {
        let outcomes = self.runtime.block_on(self.seal.apply(records))?;
        passed(outcomes, records.len()).map(to_records)
    }

    /// Opens a batch, with the same care.
    pub fn open(&self, records: &[Record]) -> Result<Vec<Record>, Error> {
        let outcomes = self.runtime.block_on(self.open.apply(records))?;
        passed(outcomes, records.len()).map(to_records)
    }

    /// Seals a batch of any size, in as many pieces as the limits of output ask for.
    pub fn seal_all(&self, records: &[Record]) -> Result<Vec<Outcome>, Error> {
        let outcomes = self.runtime.block_on(apply_all(&*self.seal, records))?;
        passed(outcomes, records.len())
    }

    /// Seals batches, so many at a time, and says how many records passed: all of them, or it is an error.
    pub fn seal_at_once(&self, batches: Vec<Vec<Record>>, depth: usize) -> Result<usize, Error> {
        self.runtime.block_on(async {
            let (mut under_way, mut sealed) = (JoinSet::new(), 0);
            for batch in batches {
                while under_way.len() >= depth
                    && let Some(done) = under_way.join_next().await
                {
                    sealed += done??;
                }
                let seal = Arc::clone(&self.seal);
                under_way.spawn(async move {
                    let count = batch.len();
                    let outcomes = apply_all(&*seal, &batch).await.map_err(|error| error.to_string())?;
                    passed(outcomes, count)
                        .map(|sealed| sealed.len())
                        .map_err(|error| error.to_string())
                });
            }
            while let Some(done) = under_way.join_next().await {
                sealed += done??;
            }
            Ok(sealed)
        })
    }

    /// Seals a batch of which every record is to be refused. An error if one is not.
    pub fn refuse_all(&self, records: &[Record]) -> Result<(), Error> {
        let outcomes = self.runtime.block_on(apply_all(&*self.seal, records))?;
        match outcomes.iter().all(|outcome| outcome.route == Route::DeadLetter) {
            true => Ok(()),
            false => Err("a record passed".into()),
        }
    }

    /// Opens a batch of any size, in the same way.
    pub fn open_all(&self, records: &[Record]) -> Result<Vec<Outcome>, Error> {
        let outcomes = self.runtime.block_on(apply_all(&self.open, records))?;
        passed(outcomes, records.len())
    }
}

/// The outcomes, if all `count` passed.
fn passed(outcomes: Vec<Outcome>, count: usize) -> Result<Vec<Outcome>, Error> {
    if outcomes.len() != count {
        return Err("the batch was answered in pieces".into());
    }
    if outcomes.iter().any(|outcome| outcome.route != Route::Target) {
        return Err("a record was set aside".into());
    }
    Ok(outcomes)
}

/// What is written of outcomes.
#[must_use]
pub fn to_records(outcomes: Vec<Outcome>) -> Vec<Record> {
    outcomes.into_iter().map(|outcome| outcome.record).collect()
}

/// A record without key or headers.
#[must_use]
pub fn record(offset: i64, value: impl Into<Bytes>) -> Record {
    Record {
        position: Position {
            topic: "benchmark".into(),
            partition: 0,
            offset,
        },
        timestamp: Timestamp::Created(1_767_225_600_000),
        key: None,
        value: Some(value.into()),
        headers: Headers::new(),
    }
}

/// The first `n` sample records.
#[must_use]
pub fn samples(n: u64) -> Vec<Record> {
    sealflow_samples::generate(3, n)
        .zip(0..)
        .map(|(sample, offset)| record(offset, sample.value))
        .collect()
}
