//! The cache of data keys that open: found by key id, checked against the newest policy, unwrapped once per
//! credential identity, believed only when the key recomputes its id.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;
use sha2::{Digest as _, Sha256};

use super::catalogue::{Catalogue, CatalogueError};
use super::doubt::Doubt;
use super::envelope::Envelope;
use super::sealing::CacheCounters;
use super::service::{EncryptionContext, KeyService, KeyServiceError};
use crate::clock::{Clock, Steady};
use crate::policy::{Policy, PolicySource, PolicySourceError};
use crate::seal::{DATA_KEY_LEN, KeyId, OpenError, OpeningKey, UnwrappingKey};
use crate::secret::SecretBytes;

/// The most envelopes that are tried for one key id.
pub(super) const MAX_CANDIDATES: usize = 8;
/// How long a failure that may pass is answered from memory.
const HOLD_RETRYABLE: Duration = Duration::from_secs(1);
/// How long a refusal is answered from memory.
const HOLD_REFUSED: Duration = Duration::from_secs(10);

/// The most envelopes of strangers that are remembered before one of them opens.
const MAX_STRANGERS: u64 = 1_024;

/// What an unwrapped key opens: values, the keys of a table.
pub trait UnwrappedMaterial: Send + Sync + Sized + fmt::Debug + 'static {
    /// From unwrapped key material, which must be the key `id`.
    fn unwrapped(secret: &SecretBytes, id: KeyId) -> Result<Self, OpenError>;
}

impl UnwrappedMaterial for OpeningKey {
    fn unwrapped(secret: &SecretBytes, id: KeyId) -> Result<Self, OpenError> {
        Self::from_unwrapped(secret, id)
    }
}

impl UnwrappedMaterial for UnwrappingKey {
    fn unwrapped(secret: &SecretBytes, id: KeyId) -> Result<Self, OpenError> {
        Self::from_unwrapped(secret, id)
    }
}

/// An unwrapped data key with the envelope that it proved.
#[derive(Debug)]
pub struct OpenedKey<K = OpeningKey> {
    /// The key.
    pub key: Arc<K>,
    /// Its envelope. Dataset, labels and row binding are proven only by the values that open under them.
    pub envelope: Envelope,
}

/// Why there is no data key to open with.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenKeyError {
    /// Neither the catalogue nor the record has an envelope of this key.
    #[error("no key envelope for data key {key} in the catalogue or with the data")]
    NoEnvelope {
        /// The key.
        key: KeyId,
    },
    /// The newest policy does not name the envelope's key, ARN and ACL, now or under `previous:`.
    #[error("the policy of dataset {dataset} does not open key {key_name} under ACL {acl} and {arn}")]
    NotInPolicy {
        /// The envelope's dataset.
        dataset: String,
        /// The envelope's policy key name.
        key_name: String,
        /// The envelope's ACL name.
        acl: String,
        /// The envelope's ARN.
        arn: String,
    },
    /// The unwrapped key is not the one that the value names.
    #[error("an envelope of data key {key} holds another key")]
    WrongKey {
        /// The key that was asked for.
        key: KeyId,
    },
    /// What came with the data is no envelope of ours, or one of another dataset.
    #[error("the key that came with the data is none of this dataset's")]
    NotOurs,
    /// Too many envelopes that came with data, and that the catalogue does not hold, were refused of late: the next
    /// one is not shown to the key service. Not retryable, or a flood of forgeries would stop a pipeline for good; what
    /// the catalogue holds opens as ever.
    #[error("data key {key} is not in the catalogue, and too many envelopes that came with data were refused of late")]
    TooManyRefused {
        /// The key.
        key: KeyId,
    },
    /// The key service did not deliver.
    #[error(transparent)]
    Service(#[from] KeyServiceError),
    /// The catalogue did not answer.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// There is no verified policy to check the envelope against.
    #[error(transparent)]
    Policy(#[from] PolicySourceError),
}

impl OpenKeyError {
    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Service(error) => error.is_retryable(),
            Self::Catalogue(error) => error.is_retryable(),
            Self::Policy(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// Data keys for opening. Cheap to clone; clones share the cache.
pub struct OpeningKeys<K = OpeningKey>(Arc<Inner<K>>);

impl<K> Clone for OpeningKeys<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<K> {
    service: Arc<dyn KeyService>,
    catalogue: Arc<dyn Catalogue>,
    policies: Arc<dyn PolicySource>,
    clock: Arc<dyn Clock>,
    max_age: Duration,
    /// Unwrapped keys, and what the catalogue holds of others.
    keys: Cache<Asked, Arc<Slot<K>>>,
    /// Envelopes that travelled with data and have not opened: apart, so that no flood of forgeries displaces keys that open.
    strangers: Cache<Asked, Arc<Slot<K>>>,
    /// What the catalogue holds of a key, newest first.
    listings: Cache<KeyId, Arc<Listing>>,
    counters: CacheCounters,
    /// How much more of what strangers sent may be shown to the key service.
    doubt: Doubt,
}

/// A question to the key service: the credential identity, and SHA-256 of all that it is asked by and that its answer is held
/// against. What else an envelope says anybody can change, and makes no other question of it.
type Asked = (String, [u8; 32]);

fn asked(identity: &str, envelope: &Envelope) -> Asked {
    let mut hash = Sha256::new();
    hash.update(envelope.key_id().as_bytes());
    let parts = [&envelope.arn, &envelope.dataset, &envelope.key_name, &envelope.acl].map(String::as_bytes);
    for part in parts.into_iter().chain([envelope.wrapped.as_slice()]) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    (identity.to_owned(), hash.finalize().into())
}

/// The envelopes of one key in the catalogue, newest first, and when they were read.
#[derive(Default)]
struct Listing {
    read: Steady,
    envelopes: Vec<Vec<u8>>,
}

struct Slot<K> {
    current: RwLock<Option<(Steady, Arc<OpenedKey<K>>)>>,
    fetch: tokio::sync::Mutex<Option<(Steady, OpenKeyError)>>,
}

impl<K> Default for Slot<K> {
    fn default() -> Self {
        Self {
            current: RwLock::default(),
            fetch: tokio::sync::Mutex::default(),
        }
    }
}

impl<K> Slot<K> {
    fn current(&self, now: Steady, max_age: Duration) -> Option<Arc<OpenedKey<K>>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current
            .as_ref()
            .filter(|(since, _)| now.since(*since) < max_age)
            .map(|(_, key)| Arc::clone(key))
    }

    fn set(&self, key: Option<(Steady, Arc<OpenedKey<K>>)>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = key;
    }
}

impl OpeningKeys {
    /// A cache of at most `capacity` data keys, each asked of the key service again after `max_age`, so that a key
    /// disabled or destroyed there stops opening here.
    #[must_use]
    pub fn new(
        service: Arc<dyn KeyService>,
        catalogue: Arc<dyn Catalogue>,
        policies: Arc<dyn PolicySource>,
        clock: Arc<dyn Clock>,
        max_age: Duration,
        capacity: u64,
    ) -> Self {
        Self::of(service, catalogue, policies, clock, max_age, capacity)
    }
}

impl<K: UnwrappedMaterial> OpeningKeys<K> {
    /// As [`OpeningKeys::new`], for keys of any use.
    #[must_use]
    pub fn of(
        service: Arc<dyn KeyService>,
        catalogue: Arc<dyn Catalogue>,
        policies: Arc<dyn PolicySource>,
        clock: Arc<dyn Clock>,
        max_age: Duration,
        capacity: u64,
    ) -> Self {
        let keys = Cache::builder()
            .max_capacity(capacity)
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(|_, slot: Arc<Slot<K>>, _| slot.set(None))
            .build();
        // It holds no keys: who opens has moved to the others by then.
        let strangers = Cache::builder()
            .max_capacity(MAX_STRANGERS)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        let listings = Cache::builder().max_capacity(capacity).build();
        Self(Arc::new(Inner {
            service,
            catalogue,
            policies,
            clock,
            max_age,
            keys,
            strangers,
            listings,
            counters: CacheCounters::default(),
            doubt: Doubt::default(),
        }))
    }

    /// The key `id`, from the catalogue's envelopes (newest first), then from those that `travelling` beside
    /// the data; at most eight are tried, the first that recomputes the key id wins.
    pub async fn get(&self, id: KeyId, travelling: &[&[u8]]) -> Result<Arc<OpenedKey<K>>, OpenKeyError> {
        let identity = self.0.service.identity().await?;
        let (stored, catalogue_error) = match self.0.stored(id).await {
            Ok(stored) => (stored, None),
            Err(error) => (Arc::default(), Some(OpenKeyError::from(error))),
        };
        let mut failure = catalogue_error.unwrap_or(OpenKeyError::NoEnvelope { key: id });
        let candidates = stored
            .envelopes
            .iter()
            .map(|bytes| (bytes.as_slice(), true))
            .chain(travelling.iter().map(|bytes| (*bytes, false)));
        for (bytes, is_ours) in candidates.filter(|(bytes, _)| names(bytes, id)).take(MAX_CANDIDATES) {
            match self.0.try_envelope(id, bytes, is_ours, &identity).await {
                Ok(key) => return Ok(key),
                // A failure that may pass outweighs a refusal, as does a catalogue that could not be read: with
                // it, nothing is proven yet.
                Err(error)
                    if !error.is_retryable()
                        && (failure.is_retryable() || matches!(failure, OpenKeyError::Catalogue(_))) => {}
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// What the cache did so far.
    #[must_use]
    pub fn counters(&self) -> &CacheCounters {
        &self.0.counters
    }

    /// Forgets keys that are past their age: call it about once a second.
    pub async fn tick(&self) {
        let now = self.0.clock.steady();
        for (_, slot) in &self.0.keys {
            if slot.current(now, self.0.max_age).is_none() {
                slot.set(None);
            }
        }
        self.0.keys.run_pending_tasks().await;
        self.0.strangers.run_pending_tasks().await;
        self.0.listings.run_pending_tasks().await;
    }
}

/// Whether `bytes` are an envelope that claims to be of key `id`.
fn names(bytes: &[u8], id: KeyId) -> bool {
    Envelope::from_bytes(bytes).is_ok_and(|envelope| envelope.key_id() == id)
}

/// The dataset whose policy governs `dataset`: dead letters are governed by their dataset's policy.
#[must_use]
pub fn governing(dataset: &str) -> &str {
    dataset
        .strip_suffix(crate::policy::DEAD_LETTERS_SUFFIX)
        .unwrap_or(dataset)
}

impl<K: UnwrappedMaterial> Inner<K> {
    /// The catalogue's envelopes of `id`, newest first, remembered for `max_age`; that there are none, briefly.
    async fn stored(&self, id: KeyId) -> Result<Arc<Listing>, CatalogueError> {
        let now = self.clock.steady();
        if let Some(listing) = self.listings.get(&id).await {
            let hold = if listing.envelopes.is_empty() {
                HOLD_RETRYABLE
            } else {
                self.max_age
            };
            if now.since(listing.read) < hold {
                return Ok(listing);
            }
        }
        let paths = self.catalogue.list(&format!("keys/{id}")).await?;
        let number = |path: &String| path.rsplit('/').next().and_then(|n| n.parse::<u32>().ok());
        let mut numbered: Vec<_> = paths
            .iter()
            .filter_map(|path| number(path).map(|n| (n, path)))
            .collect();
        numbered.sort_unstable_by(|a, b| b.cmp(a));
        let mut envelopes = Vec::new();
        for (_, path) in numbered.into_iter().take(MAX_CANDIDATES) {
            envelopes.extend(self.catalogue.get(path).await?);
        }
        let listing = Arc::new(Listing { read: now, envelopes });
        self.listings.insert(id, Arc::clone(&listing)).await;
        Ok(listing)
    }

    /// `is_ours`: it comes from the catalogue, which strangers cannot write to.
    async fn try_envelope(
        &self,
        id: KeyId,
        bytes: &[u8],
        is_ours: bool,
        identity: &str,
    ) -> Result<Arc<OpenedKey<K>>, OpenKeyError> {
        let envelope = Envelope::from_bytes(bytes).map_err(|_| OpenKeyError::NoEnvelope { key: id })?;
        let policy = self.policies.policy(governing(&envelope.dataset)).await?;
        // On every use, cached or not: what the newest policy dropped stops opening at once.
        check_against(&envelope, policy.policy())?;
        let asked = asked(identity, &envelope);
        let slot = self.slot(&asked, is_ours).await;
        if let Some(key) = slot.current(self.clock.steady(), self.max_age) {
            self.counters.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(proved(key, envelope));
        }
        let mut failure = slot.fetch.lock().await;
        if let Some(key) = slot.current(self.clock.steady(), self.max_age) {
            self.counters.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(proved(key, envelope));
        }
        if let Some((at, error)) = &*failure {
            let hold = if error.is_retryable() {
                HOLD_RETRYABLE
            } else {
                HOLD_REFUSED
            };
            if self.clock.steady().since(*at) < hold {
                return Err(error.clone());
            }
        }
        let chance = match is_ours {
            true => None,
            false => Some(
                self.doubt
                    .take(self.clock.steady())
                    .ok_or(OpenKeyError::TooManyRefused { key: id })?,
            ),
        };
        self.counters.misses.fetch_add(1, Ordering::Relaxed);
        let answer = self.unwrap(id, envelope).await;
        if let Some(chance) = chance.filter(|_| !answer.as_ref().is_err_and(|error| !error.is_retryable())) {
            chance.give_back();
        }
        match answer {
            Ok(key) => {
                let key = Arc::new(key);
                *failure = None;
                slot.set(Some((self.clock.steady(), Arc::clone(&key))));
                if !is_ours {
                    // Not a plain insert: replacing a slot by itself would empty it.
                    let kept = Arc::clone(&slot);
                    self.keys.get_with(asked.clone(), async { kept }).await;
                    self.strangers.invalidate(&asked).await;
                }
                Ok(key)
            }
            Err(error) => {
                *failure = Some((self.clock.steady(), error.clone()));
                slot.set(None);
                Err(error)
            }
        }
    }

    /// Where the answer to that question is kept.
    async fn slot(&self, asked: &Asked, is_ours: bool) -> Arc<Slot<K>> {
        if is_ours {
            return self.keys.get_with_by_ref(asked, async { Arc::default() }).await;
        }
        match self.keys.get(asked).await {
            Some(slot) => slot,
            None => self.strangers.get_with_by_ref(asked, async { Arc::default() }).await,
        }
    }

    async fn unwrap(&self, id: KeyId, envelope: Envelope) -> Result<OpenedKey<K>, OpenKeyError> {
        let context = EncryptionContext::for_data_key(&envelope.dataset, &envelope.key_name, &envelope.acl);
        let secret = self.service.unwrap(&envelope.arn, &envelope.wrapped, &context).await?;
        if secret.len() != DATA_KEY_LEN {
            return Err(OpenKeyError::WrongKey { key: id });
        }
        let key = K::unwrapped(&secret, id).map_err(|_| OpenKeyError::WrongKey { key: id })?;
        let key = Arc::new(key);
        Ok(OpenedKey { key, envelope })
    }
}

/// The key with this envelope, which may say other things about it than the one that it was unwrapped by.
fn proved<K>(opened: Arc<OpenedKey<K>>, envelope: Envelope) -> Arc<OpenedKey<K>> {
    if opened.envelope == envelope {
        return opened;
    }
    let key = Arc::clone(&opened.key);
    Arc::new(OpenedKey { key, envelope })
}

/// Key name, ARN and ACL must be in the newest policy, as current or previous; dead letters also need a policy
/// that still has them.
pub(super) fn check_against(envelope: &Envelope, policy: &Policy) -> Result<(), OpenKeyError> {
    let known = envelope.dataset == policy.dataset
        || (envelope.dataset == policy.dead_letters_dataset() && policy.dead_letters.is_some());
    if known && policy.opens(&envelope.key_name, &envelope.arn, &envelope.acl) {
        return Ok(());
    }
    Err(OpenKeyError::NotInPolicy {
        dataset: envelope.dataset.clone(),
        key_name: envelope.key_name.clone(),
        acl: envelope.acl.clone(),
        arn: envelope.arn.clone(),
    })
}

impl<K> fmt::Debug for OpeningKeys<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpeningKeys")
            .field("service", &self.0.service)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "opening_tests.rs"]
mod tests;
