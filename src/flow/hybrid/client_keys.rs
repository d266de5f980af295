//! The keys that clients seal under: unwrapped by the key service once, remembered for a while.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::held_pairs::{HeldPairs, public_half};
use crate::clock::{Clock, Steady};
use crate::jose::jwe::{ContentKey, Jwe, JweError, KeyManagement};
use crate::jose::rsa::RsaPublicJwk;
use crate::jose::{Thumbprint, base64url, from_base64url_32};
use crate::keys::{ClientKeyService, Doubt, KeyServiceError};
use crate::policy::{ClientRule, KeyPair, RsaKey};

/// The longest session, in bytes: RSA-4096 and a generous header.
pub const MAX_SESSION_BYTES: usize = 4_096;
/// The most keys of single values that are remembered: those of sixteen batches, so that batches of several pipelines that are
/// tried again go on.
const MAX_VALUE_KEYS: u64 = 16_384;
/// The most keys that are asked for or were refused, and are remembered.
const MAX_STRANGERS: u64 = 4_096;
/// The most that are asked for at a time, whatever asks; others wait. Fewer than may be refused in a row.
const MAX_ASKED: usize = 64;
/// Values with a key of their own that are unwrapped in a row, before the rate counts.
const VALUE_BURST: u32 = 2_048;
/// One more each, so 200 a second: a fraction of what KMS does for one account.
const VALUE_REFILL: Duration = Duration::from_millis(5);
/// As above under a pair, which costs no request but a core for a millisecond or a few: 1,000 a second.
const PAIR_VALUE_REFILL: Duration = Duration::from_millis(1);
/// Refusals under pairs in a row, before the rate counts.
const PAIR_BURST: u32 = 2_048;
/// One more each, so 250 a second: a fifth of a core for RSA-2048.
const PAIR_REFILL: Duration = Duration::from_millis(4);
/// How long a refusal is answered from memory.
pub(super) const HOLD_REFUSED: Duration = Duration::from_secs(10);

/// Why there is no key to open what a client sealed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientKeyError {
    /// It is not sealed to a key of this policy, or was changed. It does not say what is wrong.
    #[error("what the client sealed does not open")]
    Refused,
    /// Too many values with a key of their own.
    #[error("clients seal more values to the RSA key itself than are unwrapped in a second")]
    RateLimited,
    /// The key service did not deliver.
    #[error(transparent)]
    Service(#[from] KeyServiceError),
}

impl ClientKeyError {
    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused => false,
            Self::RateLimited => true,
            Self::Service(error) => error.is_retryable(),
        }
    }
}

impl From<JweError> for ClientKeyError {
    fn from(_: JweError) -> Self {
        Self::Refused
    }
}

/// The keys of clients. Cheap to clone; clones share what they remember.
#[derive(Clone)]
pub struct ClientKeys(Arc<Inner>);

struct Inner {
    service: Arc<dyn ClientKeyService>,
    clock: Arc<dyn Clock>,
    max_age: Duration,
    sessions: Cache<Asked, Known>,
    /// Keys of single values: apart, so that they displace no session.
    values: Cache<Asked, Known>,
    /// What is being asked for, and what was refused: apart, so that no flood of forgeries displaces what opens.
    strangers: Cache<Asked, Arc<Slot>>,
    /// The names of RSA keys by their ARN, or by the digest of their pair.
    names: RwLock<HashMap<String, Name>>,
    /// Held while the key service is asked for a name, so that others wait for the same answer; with what it failed on last, for
    /// a passing reason.
    naming: tokio::sync::Mutex<Option<(String, KeyServiceError)>>,
    /// How often it was asked for a name.
    asked_for_names: AtomicU64,
    /// What is asked of the key service.
    of_kms: Bounds,
    /// What is opened with pairs.
    of_pairs: Bounds,
    held: HeldPairs,
}

/// What may be asked: apart for the key service and for pairs, so that neither's forgeries use up the other's chances.
struct Bounds {
    /// How much at a time.
    asked: Semaphore,
    /// How much more of what does not open.
    doubt: Doubt,
    /// How many more values may have a key of their own.
    rate: Doubt,
}

impl Bounds {
    fn new(doubt: Doubt, value_refill: Duration) -> Self {
        Self {
            asked: Semaphore::new(MAX_ASKED),
            doubt,
            rate: Doubt::new(VALUE_BURST, value_refill),
        }
    }
}

/// The credential identity, and SHA-256 of the KMS key and of what it is to unwrap.
type Asked = (String, [u8; 32]);

/// A key, and since when it is known.
#[derive(Clone)]
struct Known {
    since: Steady,
    key: Arc<ContentKey>,
}

/// When a key was refused; locked while the key service is asked.
#[derive(Default)]
struct Slot(tokio::sync::Mutex<Option<Steady>>);

/// What is known of the name of an RSA key.
#[derive(Clone)]
enum Name {
    /// For ever: neither a KMS key nor a pair ever gets another public half.
    Known(Thumbprint),
    /// The key service does not say.
    None { since: Steady, error: KeyServiceError },
}

/// What a session holds: RFC 7518, section 6.4. Other members make no difference.
#[derive(Deserialize)]
struct SessionJwk<'a> {
    kty: &'a str,
    k: &'a str,
}

impl ClientKeys {
    /// A cache of at most `capacity` sessions, each asked of the key service again after `max_age`, so that a key disabled
    /// or destroyed there stops opening here.
    #[must_use]
    pub fn new(service: Arc<dyn ClientKeyService>, clock: Arc<dyn Clock>, max_age: Duration, capacity: u64) -> Self {
        let lru = EvictionPolicy::lru;
        let cache = |capacity| Cache::builder().max_capacity(capacity).eviction_policy(lru()).build();
        let held = HeldPairs::new(Arc::clone(&service), Arc::clone(&clock), max_age);
        Self(Arc::new(Inner {
            service,
            clock,
            max_age,
            sessions: cache(capacity),
            values: cache(MAX_VALUE_KEYS),
            strangers: Cache::builder()
                .max_capacity(MAX_STRANGERS)
                .eviction_policy(lru())
                .build(),
            names: RwLock::default(),
            naming: tokio::sync::Mutex::default(),
            asked_for_names: AtomicU64::new(0),
            of_kms: Bounds::new(Doubt::default(), VALUE_REFILL),
            of_pairs: Bounds::new(Doubt::new(PAIR_BURST, PAIR_REFILL), PAIR_VALUE_REFILL),
            held,
        }))
    }

    /// The key that a session holds.
    ///
    /// # Errors
    /// [`ClientKeyError`]
    pub async fn session(&self, rule: &ClientRule, session: &str) -> Result<Arc<ContentKey>, ClientKeyError> {
        if session.len() > MAX_SESSION_BYTES {
            return Err(ClientKeyError::Refused);
        }
        let jwe = Jwe::parse(session)?;
        let open = |wrapping: ContentKey| {
            let mut json = Zeroizing::new(Vec::with_capacity(jwe.plaintext_len() + 3));
            wrapping.open(&jwe, &mut json)?;
            let jwk: SessionJwk<'_> = serde_json::from_slice(&json).map_err(|_| JweError)?;
            let key = Zeroizing::new(from_base64url_32(jwk.k).filter(|_| jwk.kty == "oct").ok_or(JweError)?);
            Ok(ContentKey::new(&key))
        };
        self.0.unwrapped(rule, &jwe, session, &self.0.sessions, open).await
    }

    /// The key of a value that was wrapped for itself. `text` is the whole value.
    ///
    /// # Errors
    /// [`ClientKeyError`]
    pub async fn of_value(&self, rule: &ClientRule, text: &str) -> Result<Arc<ContentKey>, ClientKeyError> {
        let jwe = Jwe::parse(text)?;
        self.0.unwrapped(rule, &jwe, text, &self.0.values, Ok).await
    }

    /// Forgets keys that are past their age: call it about once a second.
    pub async fn tick(&self) {
        let now = self.0.clock.steady();
        for cache in [&self.0.sessions, &self.0.values] {
            for (asked, known) in cache {
                if now.since(known.since) >= self.0.max_age {
                    cache.invalidate(&*asked).await;
                }
            }
            cache.run_pending_tasks().await;
        }
        self.0.strangers.run_pending_tasks().await;
        self.0.held.tick().await;
    }
}

impl Inner {
    /// The content key of `jwe`, made by `open` from the key that was wrapped to one of the policy's RSA keys.
    async fn unwrapped(
        &self,
        rule: &ClientRule,
        jwe: &Jwe<'_>,
        text: &str,
        cache: &Cache<Asked, Known>,
        open: impl FnOnce(ContentKey) -> Result<ContentKey, JweError>,
    ) -> Result<Arc<ContentKey>, ClientKeyError> {
        let header = jwe.header()?;
        if header.key_management != KeyManagement::RsaOaep256 {
            return Err(ClientKeyError::Refused);
        }
        let (rsa_key, is_current) = self.key_of(rule, &header.kid).await?;
        let identity = self.service.identity().await?;
        let mut hash = Sha256::new();
        let of_key: &[u8] = match rsa_key {
            RsaKey::InKms { arn } => arn.as_bytes(),
            RsaKey::Pair(pair) => pair.digest(),
        };
        for part in [of_key, text.as_bytes()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let asked: Asked = (identity, hash.finalize().into());
        let is_fresh = |known: &Known| self.clock.steady().since(known.since) < self.max_age;
        if let Some(known) = cache.get(&asked).await.filter(is_fresh) {
            return Ok(known.key);
        }
        let slot = self.strangers.get_with_by_ref(&asked, async { Arc::default() }).await;
        // Held while the key service is asked: others that want the same key wait for the same answer.
        let mut refused = slot.0.lock().await;
        if let Some(known) = cache.get(&asked).await.filter(is_fresh) {
            return Ok(known.key);
        }
        if refused.is_some_and(|since| self.clock.steady().since(since) < HOLD_REFUSED) {
            return Err(ClientKeyError::Refused);
        }
        let bounds = match rsa_key {
            RsaKey::InKms { .. } => &self.of_kms,
            RsaKey::Pair(_) => &self.of_pairs,
        };
        if std::ptr::eq(cache, &self.values) && bounds.rate.take(self.clock.steady()).is_none() {
            return Err(ClientKeyError::RateLimited);
        }
        // Never closed, so that there always is one to wait for.
        let _asking = bounds.asked.acquire().await;
        let now = self.clock.steady();
        let chance = bounds.doubt.take_when_settled(now).await;
        let chance = chance.ok_or(ClientKeyError::Refused)?;
        let answer = match self.decrypt(rsa_key, &asked.0, jwe, open).await {
            // What was sealed to a previous key that is gone is refused, and stops nothing.
            Err(ClientKeyError::Service(error)) if !is_current && !error.is_retryable() => {
                tracing::debug!(key = rsa_key.arn(), %error, "a previous key of clients cannot be used");
                Err(ClientKeyError::Refused)
            }
            answer => answer,
        };
        if !matches!(answer, Err(ClientKeyError::Refused)) {
            chance.give_back();
        }
        match answer {
            Ok((since, key)) => {
                let key = Arc::new(key);
                let known = Known {
                    since: since.unwrap_or(now),
                    key: Arc::clone(&key),
                };
                cache.insert(asked, known).await;
                Ok(key)
            }
            Err(error) => {
                *refused = (error == ClientKeyError::Refused).then_some(now);
                Err(error)
            }
        }
    }

    /// The content key, and of pairs since when the private half is held.
    async fn decrypt(
        &self,
        rsa_key: &RsaKey,
        identity: &str,
        jwe: &Jwe<'_>,
        open: impl FnOnce(ContentKey) -> Result<ContentKey, JweError>,
    ) -> Result<(Option<Steady>, ContentKey), ClientKeyError> {
        let wrapped = jwe.encrypted_key()?;
        let (since, secret) = match rsa_key {
            RsaKey::InKms { arn } => match self.service.decrypt_rsa(arn, &wrapped).await {
                Ok(secret) => (None, secret),
                Err(KeyServiceError::Refused { .. }) => return Err(ClientKeyError::Refused),
                Err(error) => return Err(error.into()),
            },
            RsaKey::Pair(pair) => {
                let (since, secret) = self.held.decrypt(identity, pair, wrapped).await?;
                (Some(since), secret)
            }
        };
        let key: &[u8; 32] = secret.expose().try_into().map_err(|_| ClientKeyError::Refused)?;
        Ok((since, open(ContentKey::new(key))?))
    }

    /// The RSA key that has this name, and whether it is a current one. One that the policy lists as previous and that cannot be asked any more has none: what was
    /// sealed to it is refused, and nothing stops.
    async fn key_of<'r>(&self, rule: &'r ClientRule, kid: &str) -> Result<(&'r RsaKey, bool), ClientKeyError> {
        let kid: Thumbprint = kid.parse().map_err(|_| ClientKeyError::Refused)?;
        let current = rule.keys.len();
        for (n, key) in rule.rsa_keys().enumerate() {
            let name = match key {
                RsaKey::InKms { arn } => self.name_of(arn).await,
                RsaKey::Pair(pair) => self.name_of_pair(pair),
            };
            match name {
                Ok(name) if name == kid => return Ok((key, n < current)),
                Ok(_) => {}
                Err(error) if n < current || error.is_retryable() => return Err(error.into()),
                Err(error) => tracing::debug!(key = key.arn(), %error, "a previous key of clients cannot be asked"),
            }
        }
        Err(ClientKeyError::Refused)
    }

    fn known_name(&self, of: &str) -> Option<Name> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.get(of).cloned()
    }

    fn remember_name(&self, of: &str, name: Name) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        names.insert(of.to_owned(), name);
    }

    /// Its public half is in the policy: nobody is asked.
    fn name_of_pair(&self, pair: &KeyPair) -> Result<Thumbprint, KeyServiceError> {
        let of = base64url(pair.digest());
        if let Some(Name::Known(name)) = self.known_name(&of) {
            return Ok(name);
        }
        let name = public_half(pair)?.thumbprint();
        self.remember_name(&of, Name::Known(name));
        Ok(name)
    }

    /// What the key service said of the name, unless it is to be asked again.
    fn name_said(&self, arn: &str) -> Option<Result<Thumbprint, KeyServiceError>> {
        match self.known_name(arn)? {
            Name::Known(name) => Some(Ok(name)),
            Name::None { since, error } => {
                let is_recent = self.clock.steady().since(since) < HOLD_REFUSED;
                is_recent.then_some(Err(error))
            }
        }
    }

    async fn name_of(&self, arn: &str) -> Result<Thumbprint, KeyServiceError> {
        if let Some(known) = self.name_said(arn) {
            return known;
        }
        let before = self.asked_for_names.load(Ordering::SeqCst);
        let mut failed = self.naming.lock().await;
        if let Some(known) = self.name_said(arn) {
            return known;
        }
        // In an outage those who waited would else ask one after the other.
        if let Some((_, error)) = failed.as_ref().filter(|(of, _)| of == arn)
            && self.asked_for_names.load(Ordering::SeqCst) != before
        {
            return Err(error.clone());
        }
        let now = self.clock.steady();
        let asked = self.service.public_key(arn).await;
        let name = asked.and_then(|der| {
            let key = RsaPublicJwk::from_spki_der(&der).map_err(|error| KeyServiceError::BadAnswer {
                reason: format!("the public half of {arn}: {error}"),
            })?;
            Ok(key.thumbprint())
        });
        self.asked_for_names.fetch_add(1, Ordering::SeqCst);
        *failed = None;
        let known = match &name {
            Ok(name) => Name::Known(*name),
            Err(error) if error.is_retryable() => {
                *failed = Some((arn.to_owned(), error.clone()));
                return name;
            }
            Err(error) => Name::None {
                since: now,
                error: error.clone(),
            },
        };
        self.remember_name(arn, known);
        name
    }
}

impl fmt::Debug for ClientKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientKeys")
            .field("service", &self.0.service)
            .finish_non_exhaustive()
    }
}
