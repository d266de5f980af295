//! The HMAC keys of clients: derived by the key service from a client's name, remembered for a while.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;
use tokio::sync::{Mutex, MutexGuard};
use zeroize::Zeroizing;

use super::ClientKeyError;
use crate::clock::{Clock, Steady};
use crate::jose::mac::MacKey;
use crate::keys::{ClientKeyService, Doubt, KeyServiceError};
use crate::policy::MacRule;

/// The most clients that are remembered to have proved themselves once.
const MAX_PROVED: u64 = 65_536;
/// The most clients that are remembered before one of their values has verified.
const MAX_STRANGERS: u64 = 4_096;

/// What the key service makes a MAC of, to derive the key of a client: `sealflow client mac v1`, a line break, the dataset, a
/// line break, the client's name. Neither of the names has line breaks.
#[must_use]
pub fn key_message(dataset: &str, client: &str) -> Vec<u8> {
    ["sealflow client mac v1", dataset, client].join("\n").into_bytes()
}

/// The HMAC keys of clients. Cheap to clone; clones share what they remember.
#[derive(Clone)]
pub struct MacKeys(Arc<Inner>);

struct Inner {
    service: Arc<dyn ClientKeyService>,
    clock: Arc<dyn Clock>,
    max_age: Duration,
    /// Of clients of whom a value has verified.
    known: Cache<Asked, Known>,
    /// Those clients, also when their key is past its age: it may be asked for again whatever else is asked for.
    proved: Cache<Asked, ()>,
    /// Of others: apart, so that no flood of invented names displaces those that are known.
    strangers: Cache<Asked, Known>,
    /// How many names more of which no value has verified may be shown to the key service.
    doubt: Doubt,
    turn: Mutex<()>,
}

/// The credential identity, the KMS key, and what it makes a MAC of.
type Asked = Arc<(String, String, Vec<u8>)>;

/// A key, and since when it is known.
#[derive(Clone)]
struct Known {
    since: Steady,
    key: Arc<MacKey>,
}

/// A key of a client that is not known yet. Its chance is spent unless it is [given back](Self::give_back).
pub struct Derived {
    keys: MacKeys,
    asked: Asked,
    known: Known,
    is_paid: bool,
}

impl MacKeys {
    /// A cache of at most `capacity` clients, each asked of the key service again after `max_age`.
    #[must_use]
    pub fn new(service: Arc<dyn ClientKeyService>, clock: Arc<dyn Clock>, max_age: Duration, capacity: u64) -> Self {
        let cache = |capacity| {
            Cache::builder()
                .max_capacity(capacity)
                .eviction_policy(EvictionPolicy::lru())
        };
        Self(Arc::new(Inner {
            service,
            clock,
            max_age,
            known: cache(capacity).build(),
            proved: Cache::builder()
                .max_capacity(MAX_PROVED)
                .eviction_policy(EvictionPolicy::lru())
                .build(),
            strangers: cache(MAX_STRANGERS).build(),
            doubt: Doubt::default(),
            turn: Mutex::default(),
        }))
    }

    /// The keys with which values of `client` have verified, each with the place of its KMS key in the rule: of the current one, and
    /// of those before it. None for a client that is revoked.
    ///
    /// # Errors
    /// [`ClientKeyError`] if the key service does not say who asks.
    pub async fn known(
        &self,
        rule: &MacRule,
        dataset: &str,
        client: &str,
    ) -> Result<Vec<(usize, Arc<MacKey>)>, ClientKeyError> {
        let mut keys = Vec::new();
        if rule.revoked.contains(client) {
            return Ok(keys);
        }
        for (n, arn) in rule.arns().enumerate() {
            let asked = self.asked(arn, dataset, client).await?;
            let known = self.0.known.get(&asked).await.filter(|known| self.is_fresh(known));
            keys.extend(known.map(|known| (n, known.key)));
        }
        Ok(keys)
    }

    /// The turn of those who [derive](Self::derive): one at a time, so that a few of them at once cannot use up the bucket before
    /// any of their keys has verified.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.0.turn.lock().await
    }

    /// The key that `client` may have under the KMS key `arn` for values of `dataset`.
    ///
    /// # Errors
    /// [`ClientKeyError`]; refused if too many names were asked for of which nothing has verified.
    pub async fn derive(&self, arn: &str, dataset: &str, client: &str) -> Result<Derived, ClientKeyError> {
        let inner = &*self.0;
        let asked = self.asked(arn, dataset, client).await?;
        let derived = |known: Known, is_paid: bool| Derived {
            keys: self.clone(),
            asked: Arc::clone(&asked),
            known,
            is_paid,
        };
        if let Some(known) = inner.strangers.get(&asked).await.filter(|known| self.is_fresh(known)) {
            return Ok(derived(known, false));
        }
        let is_paid = inner.proved.get(&asked).await.is_none();
        let chance = match is_paid {
            true => Some(inner.doubt.take(inner.clock.steady()).ok_or(ClientKeyError::Refused)?),
            false => None,
        };
        let (_, arn, message) = &*asked;
        let mac = match inner.service.mac(arn, message).await {
            Ok(mac) => Zeroizing::new(mac),
            Err(error) => {
                if let Some(chance) = chance {
                    chance.give_back();
                }
                return Err(error.into());
            }
        };
        drop(chance);
        let known = Known {
            since: inner.clock.steady(),
            key: Arc::new(MacKey::new(&mac)),
        };
        inner.strangers.insert(Arc::clone(&asked), known.clone()).await;
        Ok(derived(known, is_paid))
    }

    /// Forgets keys that are past their age: call it about once a second.
    pub async fn tick(&self) {
        let now = self.0.clock.steady();
        for (asked, known) in &self.0.known {
            if now.since(known.since) >= self.0.max_age {
                self.0.known.invalidate(&*asked).await;
            }
        }
        self.0.known.run_pending_tasks().await;
        self.0.proved.run_pending_tasks().await;
        self.0.strangers.run_pending_tasks().await;
    }

    async fn asked(&self, arn: &str, dataset: &str, client: &str) -> Result<Asked, ClientKeyError> {
        let identity = self.0.service.identity().await?;
        Ok(Arc::new((identity, arn.to_owned(), key_message(dataset, client))))
    }

    fn is_fresh(&self, known: &Known) -> bool {
        self.0.clock.steady().since(known.since) < self.0.max_age
    }
}

impl Derived {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &MacKey {
        &self.known.key
    }

    /// Something verified with it: the client is one that has the key, and is remembered with those.
    pub async fn verified(&self) {
        let inner = &*self.keys.0;
        let (asked, known) = (Arc::clone(&self.asked), self.known.clone());
        inner.proved.insert(Arc::clone(&asked), ()).await;
        inner.known.insert(asked, known).await;
        inner.strangers.invalidate(&self.asked).await;
    }

    /// The client has proved itself, by this key or by another: what its keys cost the bucket comes back.
    pub fn give_back(self) {
        if self.is_paid {
            self.keys.0.doubt.restore();
        }
    }
}

impl fmt::Debug for MacKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MacKeys")
            .field("service", &self.0.service)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Derived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Derived").finish_non_exhaustive()
    }
}

/// The key of a client, for whoever hands it to the client: asked of the current KMS key.
///
/// # Errors
/// [`KeyServiceError`]
pub async fn client_secret(
    service: &dyn ClientKeyService,
    rule: &MacRule,
    dataset: &str,
    client: &str,
) -> Result<Zeroizing<[u8; 32]>, KeyServiceError> {
    let mac = service.mac(&rule.arn, &key_message(dataset, client)).await;
    mac.map(Zeroizing::new)
}
