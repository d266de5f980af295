//! The cache of data keys that seal: one key per (dataset, policy key, ACL, policy version), fetched once,
//! renewed in the background, gone when its limits are reached.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;

use super::catalogue::{Catalogue, Put};
use super::envelope::{Envelope, EnvelopeParts, LabelEntry};
use super::service::{EncryptionContext, KeyService};
use super::{KeyError, envelope_path};
use crate::clock::{Clock, Steady, UnixMillis};
use crate::policy::{GroupLabel, KeyGroup, Policy};
use crate::seal::{DATA_KEY_LEN, KeyId, SealError, SealingKey, UsageLimits, WrappingKey};
use crate::secret::SecretBytes;

/// Share of a limit, in percent, at which the next key is fetched in the background.
const RENEW_AT_PERCENT: u64 = 80;
/// Most data keys of one plain policy key at once: ACLs and policy versions multiply it.
const MAX_LIVE_PLAIN: u64 = 64;
/// How long a failure that may pass is answered from memory.
const HOLD_RETRYABLE: Duration = Duration::from_secs(1);
/// How long a failure that needs somebody's hand is answered from memory.
const HOLD_PERMANENT: Duration = Duration::from_secs(5);

/// What a data key is made for: everything that goes into its envelope and context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpec {
    /// Dataset.
    pub dataset: String,
    /// Policy key name, a template already filled in.
    pub key_name: String,
    /// The name or template as the policy has it: keys of one template share one bound.
    pub template: String,
    /// Full ARN of the wrapping key.
    pub arn: String,
    /// ACL name.
    pub acl: String,
    /// Labels in the order of the sealed values' `column`.
    pub labels: Arc<[LabelEntry]>,
    /// Policy version and SHA-256.
    pub policy: (u64, [u8; 32]),
    /// How long a key seals at most.
    pub max_age: Duration,
    /// How many keys of the template are alive at once; the least recently used goes first.
    pub max_live: u64,
}

impl KeySpec {
    /// That of a key group of this policy, for a template with no field filled in. `None` if the policy has no such key, which
    /// cannot be for a group of its own.
    #[must_use]
    pub fn of(policy: &Policy, group: &KeyGroup) -> Option<Self> {
        let key = policy.keys.get(&group.key)?;
        let label = |label: &GroupLabel| LabelEntry {
            label: label.label.clone(),
            bind_row: label.bind_row.as_ref().map(ToString::to_string),
        };
        Some(Self {
            dataset: group.dataset.clone(),
            key_name: group.key.clone(),
            template: group.key.clone(),
            arn: key.arn.clone(),
            acl: group.acl.clone(),
            labels: group.labels.iter().map(label).collect(),
            policy: (policy.version, policy.sha256),
            max_age: key.max_age,
            max_live: if key.name.is_template() {
                key.max_live
            } else {
                MAX_LIVE_PLAIN
            },
        })
    }
}

/// What a key service's 32 bytes are used as: a data key that seals values, the key-encryption key of a table.
pub trait KeyMaterial: Send + Sync + Sized + fmt::Debug + 'static {
    /// From key material that a key service has just generated for this process alone.
    fn generated(secret: &SecretBytes, limits: UsageLimits) -> Result<Self, SealError>;

    /// Its id, which commits to it.
    fn id(&self) -> KeyId;

    /// Whether its limits are reached, so that it must not be used any more.
    fn is_exhausted(&self) -> bool;

    /// Largest used share of its limits, in percent.
    fn used_percent(&self) -> u64;
}

impl KeyMaterial for SealingKey {
    fn generated(secret: &SecretBytes, limits: UsageLimits) -> Result<Self, SealError> {
        Self::from_generated(secret, limits)
    }

    fn id(&self) -> KeyId {
        self.id()
    }

    fn is_exhausted(&self) -> bool {
        self.is_exhausted()
    }

    fn used_percent(&self) -> u64 {
        self.used_percent()
    }
}

impl KeyMaterial for WrappingKey {
    fn generated(secret: &SecretBytes, limits: UsageLimits) -> Result<Self, SealError> {
        Self::from_generated(secret, limits)
    }

    fn id(&self) -> KeyId {
        self.id()
    }

    fn is_exhausted(&self) -> bool {
        self.is_exhausted()
    }

    fn used_percent(&self) -> u64 {
        self.used_percent()
    }
}

/// A data key in use, with the envelope that travels with what it seals.
#[derive(Debug)]
pub struct ActiveKey<K = SealingKey> {
    /// The key.
    pub key: K,
    /// Its envelope; in the catalogue before the key is handed out.
    pub envelope: Envelope,
    /// The envelope's bytes.
    pub envelope_bytes: Vec<u8>,
    /// When it was asked for, by the clock that nobody sets.
    born: Steady,
    max_age: Duration,
    /// Somebody sealed with it when it was due, so a successor is being fetched.
    successor_asked: AtomicBool,
}

/// The time by both clocks.
#[derive(Clone, Copy)]
struct Now {
    wall: UnixMillis,
    steady: Steady,
}

impl Now {
    fn of(clock: &dyn Clock) -> Self {
        Self {
            wall: clock.now(),
            steady: clock.steady(),
        }
    }
}

impl<K: KeyMaterial> ActiveKey<K> {
    fn is_usable(&self, now: Now) -> bool {
        now.wall < self.envelope.not_after() && self.age(now) < self.max_age && !self.key.is_exhausted()
    }

    fn is_due(&self, now: Now) -> bool {
        let aged = self.age(now).as_millis() * 100 >= self.max_age.as_millis() * u128::from(RENEW_AT_PERCENT);
        aged || self.key.used_percent() >= RENEW_AT_PERCENT
    }

    /// By whichever clock it is older: a wall clock that is set back makes no key younger, and a machine that slept
    /// (when the steady clock may stand still) makes it as old as the wall clock says.
    fn age(&self, now: Now) -> Duration {
        let by_wall = now.wall.since(self.envelope.created());
        by_wall.max(now.steady.since(self.born))
    }

    /// The share of its age that has passed; `None` when it is due and nobody has sealed with it since, so that it may
    /// simply run out.
    fn age_ratio(&self, now: Now) -> Option<f64> {
        let counts = !self.is_due(now) || self.successor_asked.load(Ordering::Relaxed);
        counts.then(|| self.age(now).div_duration_f64(self.max_age))
    }
}

/// What the cache did so far.
#[derive(Debug, Default)]
pub struct CacheCounters {
    /// Keys that were there.
    pub hits: AtomicU64,
    /// Keys that had to be fetched while somebody waited.
    pub misses: AtomicU64,
    /// Keys fetched in the background.
    pub renewals: AtomicU64,
}

/// Data keys for sealing. Cheap to clone; clones share the cache.
pub struct SealingKeys<K = SealingKey>(Arc<Inner<K>>);

impl<K> Clone for SealingKeys<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<K> {
    service: Arc<dyn KeyService>,
    catalogue: Arc<dyn Catalogue>,
    clock: Arc<dyn Clock>,
    limits: UsageLimits,
    caches: Mutex<HashMap<CacheId, Slots<K>>>,
    counters: CacheCounters,
}

/// Keys of one scope.
type Slots<K> = Cache<SlotId, Arc<Slot<K>>>;
/// (dataset, template): the scope of `max_live`.
type CacheId = (String, String);
/// (policy key name, ACL, policy hash).
type SlotId = (String, String, [u8; 32]);

struct Slot<K> {
    current: RwLock<Option<Arc<ActiveKey<K>>>>,
    /// Held by the one caller that fetches; remembers the last failure.
    fetch: tokio::sync::Mutex<Option<(Steady, KeyError)>>,
    renewing: AtomicBool,
}

impl<K> Default for Slot<K> {
    fn default() -> Self {
        Self {
            current: RwLock::default(),
            fetch: tokio::sync::Mutex::default(),
            renewing: AtomicBool::default(),
        }
    }
}

impl<K> Slot<K> {
    fn current(&self) -> Option<Arc<ActiveKey<K>>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, key: Option<Arc<ActiveKey<K>>>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = key;
    }
}

impl SealingKeys {
    /// A cache of data keys over `service`, which puts every envelope into `catalogue` before its key is used.
    #[must_use]
    pub fn new(
        service: Arc<dyn KeyService>,
        catalogue: Arc<dyn Catalogue>,
        clock: Arc<dyn Clock>,
        limits: UsageLimits,
    ) -> Self {
        Self::of(service, catalogue, clock, limits)
    }
}

impl<K: KeyMaterial> SealingKeys<K> {
    /// As [`SealingKeys::new`], for keys of any use. What one cache hands out no other one does.
    #[must_use]
    pub fn of(
        service: Arc<dyn KeyService>,
        catalogue: Arc<dyn Catalogue>,
        clock: Arc<dyn Clock>,
        limits: UsageLimits,
    ) -> Self {
        let (caches, counters) = (Mutex::default(), CacheCounters::default());
        Self(Arc::new(Inner {
            service,
            catalogue,
            clock,
            limits,
            caches,
            counters,
        }))
    }

    /// The key to seal with now. Concurrent callers of one spec share one fetch; a key that is close to a
    /// limit is still handed out while its successor is fetched in the background.
    pub async fn get(&self, spec: &KeySpec) -> Result<Arc<ActiveKey<K>>, KeyError> {
        let slot = self.slot(spec).await;
        let now = Now::of(self.0.clock.as_ref());
        if let Some(key) = slot.current().filter(|key| key.is_usable(now)) {
            self.0.counters.hits.fetch_add(1, Ordering::Relaxed);
            if key.is_due(now) {
                key.successor_asked.store(true, Ordering::Relaxed);
                self.renew_in_background(&slot, spec);
            }
            return Ok(key);
        }
        let mut failure = slot.fetch.lock().await;
        let now = Now::of(self.0.clock.as_ref());
        if let Some(key) = slot.current().filter(|key| key.is_usable(now)) {
            self.0.counters.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(key);
        }
        self.0.counters.misses.fetch_add(1, Ordering::Relaxed);
        self.0.fetch_into(&slot, &mut failure, spec).await
    }

    /// What the cache did so far.
    #[must_use]
    pub fn counters(&self) -> &CacheCounters {
        &self.0.counters
    }

    /// Forgets keys that are past their age and runs the cache's own house-keeping: call it about once a
    /// second. Correctness does not depend on it; how long unused keys stay in memory does.
    pub async fn tick(&self) {
        let now = Now::of(self.0.clock.as_ref());
        let caches: Vec<_> = self
            .0
            .caches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect();
        for cache in caches {
            for (_, slot) in &cache {
                if slot.current().is_some_and(|key| !key.is_usable(now)) {
                    slot.set(None);
                }
            }
            cache.run_pending_tasks().await;
        }
    }

    /// Age of the oldest key in use and number of keys in use, for metrics.
    #[must_use]
    pub fn ages(&self) -> (Duration, usize) {
        let now = Now::of(self.0.clock.as_ref());
        let keys = self.in_use();
        let oldest = keys.iter().map(|key| key.age(now)).max();
        (oldest.unwrap_or_default(), keys.len())
    }

    /// The largest share of its `max_age` that a key has passed, 0 without keys, for metrics. Keys are replaced at 0.8;
    /// more says that no successor comes, and at 1 sealing stops. A key that nobody seals with any more just runs out:
    /// it counts until it is due.
    #[must_use]
    pub fn age_ratio(&self) -> f64 {
        let now = Now::of(self.0.clock.as_ref());
        let keys = self.in_use();
        keys.iter().filter_map(|key| key.age_ratio(now)).fold(0.0, f64::max)
    }

    fn in_use(&self) -> Vec<Arc<ActiveKey<K>>> {
        let caches: Vec<_> = self
            .0
            .caches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect();
        let slots = caches.iter().flat_map(Cache::iter);
        slots.filter_map(|(_, slot)| slot.current()).collect()
    }

    async fn slot(&self, spec: &KeySpec) -> Arc<Slot<K>> {
        let cache = {
            let mut caches = self.0.caches.lock().unwrap_or_else(PoisonError::into_inner);
            let id = (spec.dataset.clone(), spec.template.clone());
            caches.entry(id).or_insert_with(|| new_cache(spec.max_live)).clone()
        };
        let id = (spec.key_name.clone(), spec.acl.clone(), spec.policy.1);
        cache.get_with(id, async { Arc::new(Slot::default()) }).await
    }

    fn renew_in_background(&self, slot: &Arc<Slot<K>>, spec: &KeySpec) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if slot.renewing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (inner, slot, spec) = (Arc::clone(&self.0), Arc::clone(slot), spec.clone());
        runtime.spawn(async move {
            let _done = ResetOnDrop(Arc::clone(&slot));
            let mut failure = slot.fetch.lock().await;
            let now = Now::of(inner.clock.as_ref());
            let fresh = slot.current().is_some_and(|key| key.is_usable(now) && !key.is_due(now));
            if !fresh && inner.fetch_into(&slot, &mut failure, &spec).await.is_ok() {
                inner.counters.renewals.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}

/// Ends a renewal even if its task panics or is dropped.
struct ResetOnDrop<K>(Arc<Slot<K>>);

impl<K> Drop for ResetOnDrop<K> {
    fn drop(&mut self) {
        self.0.renewing.store(false, Ordering::Release);
    }
}

impl<K: KeyMaterial> Inner<K> {
    /// Fetches under the slot's lock, or repeats a failure that is too fresh to try again.
    async fn fetch_into(
        &self,
        slot: &Slot<K>,
        failure: &mut Option<(Steady, KeyError)>,
        spec: &KeySpec,
    ) -> Result<Arc<ActiveKey<K>>, KeyError> {
        if let Some((at, error)) = failure {
            let hold = if error.is_retryable() {
                HOLD_RETRYABLE
            } else {
                HOLD_PERMANENT
            };
            if self.clock.steady().since(*at) < hold {
                return Err(error.clone());
            }
        }
        match self.fetch(spec).await {
            Ok(key) => {
                *failure = None;
                slot.set(Some(Arc::clone(&key)));
                Ok(key)
            }
            Err(error) => {
                *failure = Some((self.clock.steady(), error.clone()));
                Err(error)
            }
        }
    }

    /// Generates, checks, and writes the envelope down before anybody can seal with the key.
    async fn fetch(&self, spec: &KeySpec) -> Result<Arc<ActiveKey<K>>, KeyError> {
        let Now {
            wall: created,
            steady: born,
        } = Now::of(self.clock.as_ref());
        let context = EncryptionContext::for_data_key(&spec.dataset, &spec.key_name, &spec.acl);
        let generated = self.service.generate(&spec.arn, DATA_KEY_LEN, &context).await?;
        if generated.arn != spec.arn {
            return Err(KeyError::OtherKey {
                asked: spec.arn.clone(),
            });
        }
        let key = K::generated(&generated.plaintext, self.limits)?;
        let envelope = Envelope::new(EnvelopeParts {
            key_id: key.id(),
            arn: generated.arn,
            wrapped: generated.wrapped,
            dataset: spec.dataset.clone(),
            key_name: spec.key_name.clone(),
            acl: spec.acl.clone(),
            policy: (policy_id(&spec.dataset).to_owned(), spec.policy.0, spec.policy.1),
            labels: spec.labels.to_vec(),
            created,
            not_after: created.plus(spec.max_age),
        });
        let envelope_bytes = envelope.to_bytes()?;
        match self
            .catalogue
            .put_if_absent(&envelope_path(key.id(), 0), &envelope_bytes)
            .await?
        {
            Put::Created => Ok(Arc::new(ActiveKey {
                key,
                envelope,
                envelope_bytes,
                born,
                max_age: spec.max_age,
                successor_asked: AtomicBool::new(false),
            })),
            // 128 random bits do not repeat: something else wrote there, so this key is not ours alone.
            Put::Exists => Err(KeyError::NotExclusive { key: key.id() }),
        }
    }
}

/// A policy's id is the name of the dataset it governs.
fn policy_id(dataset: &str) -> &str {
    dataset
        .strip_suffix(crate::policy::DEAD_LETTERS_SUFFIX)
        .unwrap_or(dataset)
}

fn new_cache<K: KeyMaterial>(max_live: u64) -> Slots<K> {
    Cache::builder()
        .max_capacity(max_live.max(1))
        .eviction_policy(EvictionPolicy::lru())
        .eviction_listener(|_, slot: Arc<Slot<K>>, _| slot.set(None))
        .build()
}

impl<K> fmt::Debug for SealingKeys<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKeys")
            .field("service", &self.0.service)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::keys::KeyServiceError;
    use crate::keys::testing::{MemoryCatalogue, MemoryKms};
    use crate::seal::{ColumnContext, PlainColumn, SealError};

    const HOUR: Duration = Duration::from_secs(3600);

    struct Bench {
        kms: Arc<MemoryKms>,
        catalogue: Arc<MemoryCatalogue>,
        clock: Arc<ManualClock>,
        keys: SealingKeys,
    }

    fn bench(limits: UsageLimits) -> Bench {
        let kms = Arc::new(MemoryKms::new());
        let catalogue = Arc::new(MemoryCatalogue::new());
        let clock = Arc::new(ManualClock::at(UnixMillis(1_000_000)));
        let keys = SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), limits);
        Bench {
            kms,
            catalogue,
            clock,
            keys,
        }
    }

    fn spec(name: &str) -> KeySpec {
        KeySpec {
            dataset: "payments".into(),
            key_name: name.into(),
            template: "tenant-{t}".into(),
            arn: "arn:aws:kms:eu-central-1:111122223333:key/1".into(),
            acl: "pii".into(),
            labels: Arc::from([LabelEntry {
                label: "email".into(),
                bind_row: None,
            }]),
            policy: (1, [1; 32]),
            max_age: HOUR,
            max_live: 4,
        }
    }

    fn seal_one(key: &ActiveKey) -> Result<(), SealError> {
        let mut plain = PlainColumn::with_capacity(1, 8);
        plain.push(b"\x06x")?;
        let context = ColumnContext {
            dataset: "payments",
            label: "email",
            column: 0,
            rows: None,
        };
        key.key.seal(&context, plain.view()).map(drop)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn sixty_four_parallel_batches_on_a_cold_cache_make_one_call() {
        let bench = bench(UsageLimits::STANDARD);
        bench.kms.set_delay(Duration::from_millis(50));
        let spec = spec("a");
        let fetches = (0..64).map(|_| {
            let (keys, spec) = (bench.keys.clone(), spec.clone());
            tokio::spawn(async move { keys.get(&spec).await.map(|key| key.key.id()) })
        });
        let mut ids = Vec::new();
        for fetch in fetches.collect::<Vec<_>>() {
            ids.push(fetch.await.unwrap().unwrap());
        }
        ids.dedup();
        assert_eq!((ids.len(), bench.kms.generate_calls()), (1, 1));
    }

    #[tokio::test]
    async fn a_key_is_in_the_catalogue_before_it_is_handed_out() {
        let bench = bench(UsageLimits::STANDARD);
        let key = bench.keys.get(&spec("a")).await.unwrap();
        let stored = bench.catalogue.get(&envelope_path(key.key.id(), 0)).await.unwrap();
        assert_eq!(stored.as_deref(), Some(&key.envelope_bytes[..]));
    }

    #[tokio::test]
    async fn a_catalogue_that_is_away_yields_no_key() {
        let bench = bench(UsageLimits::STANDARD);
        bench
            .catalogue
            .fail_with(Some(crate::keys::CatalogueError::Unavailable { reason: "test".into() }));
        let error = bench.keys.get(&spec("a")).await.unwrap_err();
        assert!(error.is_retryable());
    }

    #[tokio::test]
    async fn a_key_at_eighty_percent_of_its_age_is_renewed_while_it_still_serves() {
        let bench = bench(UsageLimits::STANDARD);
        let first = bench.keys.get(&spec("a")).await.unwrap().key.id();
        bench.clock.advance(HOUR * 8 / 10);
        assert_eq!(bench.keys.get(&spec("a")).await.unwrap().key.id(), first);
        while bench.keys.counters().renewals.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_ne!(bench.keys.get(&spec("a")).await.unwrap().key.id(), first);
        assert_eq!(bench.kms.generate_calls(), 2);
    }

    #[tokio::test]
    async fn a_key_past_its_age_never_seals_again_even_if_kms_is_away() {
        let bench = bench(UsageLimits::STANDARD);
        bench.keys.get(&spec("a")).await.unwrap();
        bench
            .kms
            .fail_with(Some(KeyServiceError::Unavailable { reason: "test".into() }));
        bench.clock.advance(HOUR - Duration::from_millis(1));
        bench.keys.get(&spec("a")).await.unwrap();
        bench.clock.advance(Duration::from_millis(1));
        assert!(bench.keys.get(&spec("a")).await.unwrap_err().is_retryable());
    }

    #[tokio::test]
    async fn a_wall_clock_that_is_set_back_makes_no_key_younger() {
        let bench = bench(UsageLimits::STANDARD);
        let first = bench.keys.get(&spec("a")).await.unwrap().key.id();
        bench.clock.advance(HOUR / 2);
        bench.clock.set(UnixMillis(0));
        assert_eq!(bench.keys.get(&spec("a")).await.unwrap().key.id(), first);
        bench.clock.advance(HOUR / 2);
        assert_ne!(bench.keys.get(&spec("a")).await.unwrap().key.id(), first);
    }

    #[tokio::test]
    async fn a_wall_clock_that_is_set_forward_ends_a_key_and_one_set_back_does_not_hold_a_failure() {
        let bench = bench(UsageLimits::STANDARD);
        let first = bench.keys.get(&spec("a")).await.unwrap().key.id();
        bench.clock.set(UnixMillis(1_000_000).plus(24 * HOUR));
        assert_ne!(bench.keys.get(&spec("a")).await.unwrap().key.id(), first);
        bench
            .kms
            .fail_with(Some(KeyServiceError::Throttled { retry_after: None }));
        assert!(bench.keys.get(&spec("b")).await.is_err());
        bench.kms.fail_with(None);
        bench.clock.set(UnixMillis(0));
        bench.clock.advance(HOLD_RETRYABLE);
        assert!(bench.keys.get(&spec("b")).await.is_ok());
    }

    #[tokio::test]
    async fn an_exhausted_key_is_replaced() {
        let bench = bench(UsageLimits {
            batches: 2,
            ..UsageLimits::STANDARD
        });
        let mut ids = Vec::new();
        for _ in 0..6 {
            let mut key = bench.keys.get(&spec("a")).await.unwrap();
            while seal_one(&key) == Err(SealError::LimitReached) {
                key = bench.keys.get(&spec("a")).await.unwrap();
            }
            ids.push(key.key.id());
            assert!(key.key.used().batches <= 2);
        }
        ids.dedup();
        assert!(ids.len() >= 3);
    }

    #[tokio::test]
    async fn a_failure_is_remembered_briefly_and_then_tried_again() {
        let bench = bench(UsageLimits::STANDARD);
        bench
            .kms
            .fail_with(Some(KeyServiceError::Throttled { retry_after: None }));
        for _ in 0..10 {
            assert!(bench.keys.get(&spec("a")).await.is_err());
        }
        assert_eq!(bench.kms.generate_calls(), 1);
        bench.kms.fail_with(None);
        bench.clock.advance(HOLD_RETRYABLE);
        assert!(bench.keys.get(&spec("a")).await.is_ok());
    }

    #[tokio::test]
    async fn live_keys_are_bounded_and_evicted_ones_leave_memory() {
        let bench = bench(UsageLimits::STANDARD);
        let weak = Arc::downgrade(&bench.keys.get(&spec("first")).await.unwrap());
        for n in 0..50 {
            bench.keys.get(&spec(&format!("t{n}"))).await.unwrap();
            bench.keys.tick().await;
        }
        assert!(bench.keys.ages().1 <= 4);
        assert!(weak.upgrade().is_none(), "an evicted key is dropped, hence wiped");
    }

    #[tokio::test]
    async fn the_tick_drops_keys_past_their_age() {
        let bench = bench(UsageLimits::STANDARD);
        let weak = Arc::downgrade(&bench.keys.get(&spec("a")).await.unwrap());
        bench.clock.advance(HOUR);
        bench.keys.tick().await;
        assert!(weak.upgrade().is_none());
    }

    #[tokio::test]
    async fn the_age_ratio_tells_a_successor_that_does_not_come_from_a_key_that_nobody_uses() {
        let bench = bench(UsageLimits::STANDARD);
        assert!(bench.keys.age_ratio() < 0.01);
        bench.keys.get(&spec("used")).await.unwrap();
        bench.keys.get(&spec("idle")).await.unwrap();
        bench.clock.advance(HOUR * 79 / 100);
        let ratio = bench.keys.age_ratio();
        assert!((0.78..0.80).contains(&ratio), "{ratio}");
        bench.clock.advance(HOUR * 16 / 100);
        let ratio = bench.keys.age_ratio();
        assert!(ratio < 0.01, "nobody has asked for either since: {ratio}");

        bench
            .kms
            .fail_with(Some(KeyServiceError::Unavailable { reason: "test".into() }));
        bench.keys.get(&spec("used")).await.unwrap();
        while bench.kms.generate_calls() < 3 {
            tokio::task::yield_now().await;
        }
        let ratio = bench.keys.age_ratio();
        assert!((0.94..0.96).contains(&ratio), "{ratio}");

        bench.kms.fail_with(None);
        bench.clock.advance(HOLD_RETRYABLE);
        while bench.keys.counters().renewals.load(Ordering::Relaxed) == 0 {
            bench.keys.get(&spec("used")).await.unwrap();
            tokio::task::yield_now().await;
        }
        let ratio = bench.keys.age_ratio();
        assert!(ratio < 0.01, "{ratio}");
    }

    #[tokio::test]
    async fn another_policy_version_gets_another_key() {
        let bench = bench(UsageLimits::STANDARD);
        let first = bench.keys.get(&spec("a")).await.unwrap().key.id();
        let next = KeySpec {
            policy: (2, [2; 32]),
            ..spec("a")
        };
        assert_ne!(bench.keys.get(&next).await.unwrap().key.id(), first);
    }
}
