//! Private halves of pairs in memory: asked of the key service once, held for a while, used on threads that nobody waits for.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;
use tokio::sync::{Mutex, Semaphore};

use super::client_keys::{ClientKeyError, HOLD_REFUSED};
use crate::clock::{Clock, Steady};
use crate::jose::rsa::RsaPublicJwk;
use crate::keys::{ClientKeyService, EncryptionContext, KeyServiceError, PrivateHalf};
use crate::policy::KeyPair;
use crate::secret::SecretBytes;

/// The most private halves that are held: those of many datasets, under several identities.
const MAX_HELD: u64 = 256;

/// The private halves that are held.
pub(super) struct HeldPairs {
    service: Arc<dyn ClientKeyService>,
    clock: Arc<dyn Clock>,
    max_age: Duration,
    held: Cache<Whose, Arc<Slot>>,
    /// As many private operations as there are cores.
    cores: Arc<Semaphore>,
}

/// The credential identity, and the digest of the pair.
type Whose = (String, [u8; 32]);

#[derive(Default)]
struct Slot {
    /// Locked while the key service is asked: others that want the same pair wait for the same answer.
    state: Mutex<State>,
    /// How often it was asked.
    asked: AtomicU64,
}

#[derive(Clone, Default)]
enum State {
    #[default]
    Unknown,
    /// Since when it is held.
    Held { since: Steady, half: Arc<dyn PrivateHalf> },
    /// It cannot be had, and nobody is asked for a while.
    Failed { since: Steady, error: KeyServiceError },
    /// For a passing reason: an answer to those who waited for it, and to nobody else.
    Away { error: KeyServiceError },
}

impl HeldPairs {
    /// Each is asked for again after `max_age`.
    pub(super) fn new(service: Arc<dyn ClientKeyService>, clock: Arc<dyn Clock>, max_age: Duration) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let held = Cache::builder()
            .max_capacity(MAX_HELD)
            .eviction_policy(EvictionPolicy::lru());
        Self {
            service,
            clock,
            max_age,
            held: held.build(),
            cores: Arc::new(Semaphore::new(cores)),
        }
    }

    /// Decrypts what was sealed to the public half of `pair`, and says since when its private half is held: what comes of it is
    /// to be forgotten with it, so that a KMS key that is disabled stops everything after `max_age`.
    pub(super) async fn decrypt(
        &self,
        identity: &str,
        pair: &KeyPair,
        ciphertext: Vec<u8>,
    ) -> Result<(Steady, SecretBytes), ClientKeyError> {
        let (since, half) = self.private_half(identity, pair).await?;
        let busy = Arc::clone(&self.cores).acquire_owned().await;
        let decrypting = tokio::task::spawn_blocking(move || {
            let _busy = busy;
            half.decrypt(&ciphertext)
        });
        // It neither panics nor is it cancelled, unless the process ends.
        let decrypted = decrypting.await.map_err(|_| KeyServiceError::Unavailable {
            reason: "a private-key operation did not end".to_owned(),
        })?;
        Ok((since, decrypted.ok_or(ClientKeyError::Refused)?))
    }

    async fn private_half(
        &self,
        identity: &str,
        pair: &KeyPair,
    ) -> Result<(Steady, Arc<dyn PrivateHalf>), KeyServiceError> {
        let whose = (identity.to_owned(), *pair.digest());
        let slot = self.held.get_with_by_ref(&whose, async { Arc::default() }).await;
        let before = slot.asked.load(Ordering::SeqCst);
        let mut state = slot.state.lock().await;
        let now = self.clock.steady();
        match &*state {
            State::Held { since, half } if now.since(*since) < self.max_age => return Ok((*since, Arc::clone(half))),
            State::Failed { since, error } if now.since(*since) < HOLD_REFUSED => return Err(error.clone()),
            State::Away { error } if slot.asked.load(Ordering::SeqCst) != before => return Err(error.clone()),
            _ => *state = State::Unknown,
        }
        let answer = self.ask(pair).await;
        slot.asked.fetch_add(1, Ordering::SeqCst);
        match &answer {
            Ok(half) => {
                *state = State::Held {
                    since: now,
                    half: Arc::clone(half),
                };
            }
            Err(error) if error.is_retryable() => *state = State::Away { error: error.clone() },
            Err(error) => {
                *state = State::Failed {
                    since: now,
                    error: error.clone(),
                };
            }
        }
        Ok((now, answer?))
    }

    async fn ask(&self, pair: &KeyPair) -> Result<Arc<dyn PrivateHalf>, KeyServiceError> {
        let context = EncryptionContext::for_client_pair(&pair.dataset);
        let half = self.service.private_half(&pair.arn, &pair.wrapped, &context).await?;
        let is_its = match (RsaPublicJwk::from_spki_der(half.public()), public_half(pair)) {
            (Ok(held), Ok(named)) => held.thumbprint() == named.thumbprint(),
            _ => false,
        };
        if !is_its {
            return Err(KeyServiceError::BadAnswer {
                reason: format!(
                    "the private half that {} unwraps is not that of the pair's public half",
                    pair.arn
                ),
            });
        }
        tracing::debug!(
            key = pair.arn,
            dataset = pair.dataset,
            "holding the private half of a pair"
        );
        Ok(half)
    }

    /// Wipes those that are past their age.
    pub(super) async fn tick(&self) {
        let now = self.clock.steady();
        for (whose, slot) in &self.held {
            // One that is locked is being asked for.
            let is_over = slot.state.try_lock().is_ok_and(|state| match *state {
                State::Held { since, .. } => now.since(since) >= self.max_age,
                _ => false,
            });
            if is_over {
                self.held.invalidate(&*whose).await;
            }
        }
        self.held.run_pending_tasks().await;
    }
}

/// The public half of a pair.
pub(super) fn public_half(pair: &KeyPair) -> Result<RsaPublicJwk, KeyServiceError> {
    RsaPublicJwk::from_spki_der(&pair.public).map_err(|error| KeyServiceError::BadAnswer {
        reason: format!("the public half of a pair under {}: {error}", pair.arn),
    })
}
