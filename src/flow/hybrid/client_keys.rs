//! The keys that clients seal under: unwrapped by the key service once, remembered for a while.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use moka::future::Cache;
use moka::policy::EvictionPolicy;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::clock::{Clock, Steady};
use crate::jose::jwe::{ContentKey, Jwe, JweError, KeyManagement};
use crate::jose::rsa::RsaPublicJwk;
use crate::jose::{Thumbprint, from_base64url_32};
use crate::keys::{ClientKeyService, Doubt, KeyServiceError};
use crate::policy::ClientRule;

/// The longest session, in bytes: RSA-4096 and a generous header.
pub const MAX_SESSION_BYTES: usize = 4_096;
/// The most keys of single values that are remembered: more than a batch holds, so that a batch that is tried again goes on.
const MAX_VALUE_KEYS: u64 = 4_096;
/// The most keys that are asked for or were refused, and are remembered.
const MAX_STRANGERS: u64 = 4_096;
/// Values with a key of their own that are unwrapped in a row, before the rate counts.
const VALUE_BURST: u32 = 2_048;
/// One more each, so 200 a second: a fraction of what KMS does for one account.
const VALUE_REFILL: Duration = Duration::from_millis(5);
/// How long a refusal is answered from memory.
const HOLD_REFUSED: Duration = Duration::from_secs(10);

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
    /// The names of RSA keys by their ARN.
    names: RwLock<HashMap<String, Name>>,
    /// How much more of what does not open may be shown to the key service.
    doubt: Doubt,
    /// How many more values may have a key of their own.
    rate: Doubt,
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
    /// For ever: a KMS key never gets another public half.
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
            doubt: Doubt::default(),
            rate: Doubt::new(VALUE_BURST, VALUE_REFILL),
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
        let (arn, is_current) = self.arn_of(rule, &header.kid).await?;
        let identity = self.service.identity().await?;
        let mut hash = Sha256::new();
        for part in [arn, text] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let asked = (identity, hash.finalize().into());
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
        let now = self.clock.steady();
        if refused.is_some_and(|since| now.since(since) < HOLD_REFUSED) {
            return Err(ClientKeyError::Refused);
        }
        if std::ptr::eq(cache, &self.values) && self.rate.take(now).is_none() {
            return Err(ClientKeyError::RateLimited);
        }
        let chance = self.doubt.take(now).ok_or(ClientKeyError::Refused)?;
        let answer = match self.decrypt(arn, jwe, open).await {
            // What was sealed to a previous key that is gone is refused, and stops nothing.
            Err(ClientKeyError::Service(error)) if !is_current && !error.is_retryable() => {
                tracing::debug!(key = arn, %error, "a previous key of clients cannot be used");
                Err(ClientKeyError::Refused)
            }
            answer => answer,
        };
        if !matches!(answer, Err(ClientKeyError::Refused)) {
            chance.give_back();
        }
        match answer {
            Ok(key) => {
                let key = Arc::new(key);
                let known = Known {
                    since: now,
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

    async fn decrypt(
        &self,
        arn: &str,
        jwe: &Jwe<'_>,
        open: impl FnOnce(ContentKey) -> Result<ContentKey, JweError>,
    ) -> Result<ContentKey, ClientKeyError> {
        let wrapped = jwe.encrypted_key()?;
        let secret = match self.service.decrypt_rsa(arn, &wrapped).await {
            Ok(secret) => secret,
            Err(KeyServiceError::Refused { .. }) => return Err(ClientKeyError::Refused),
            Err(error) => return Err(error.into()),
        };
        let key: &[u8; 32] = secret.expose().try_into().map_err(|_| ClientKeyError::Refused)?;
        Ok(open(ContentKey::new(key))?)
    }

    /// The KMS key that has this name, and whether it is a current one. One that the policy lists as previous and that cannot be asked any more has none: what was
    /// sealed to it is refused, and nothing stops.
    async fn arn_of<'r>(&self, rule: &'r ClientRule, kid: &str) -> Result<(&'r str, bool), ClientKeyError> {
        let kid: Thumbprint = kid.parse().map_err(|_| ClientKeyError::Refused)?;
        let current = rule.keys.len();
        for (n, arn) in rule.arns().enumerate() {
            match self.name_of(arn).await {
                Ok(name) if name == kid => return Ok((arn, n < current)),
                Ok(_) => {}
                Err(error) if n < current || error.is_retryable() => return Err(error.into()),
                Err(error) => tracing::debug!(key = arn, %error, "a previous key of clients cannot be asked"),
            }
        }
        Err(ClientKeyError::Refused)
    }

    async fn name_of(&self, arn: &str) -> Result<Thumbprint, KeyServiceError> {
        let now = self.clock.steady();
        let known = self
            .names
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(arn)
            .cloned();
        match known {
            Some(Name::Known(name)) => return Ok(name),
            Some(Name::None { since, error }) if now.since(since) < HOLD_REFUSED => return Err(error),
            _ => {}
        }
        let asked = self.service.public_key(arn).await;
        let name = asked.and_then(|der| {
            let key = RsaPublicJwk::from_spki_der(&der).map_err(|error| KeyServiceError::BadAnswer {
                reason: format!("the public half of {arn}: {error}"),
            })?;
            Ok(key.thumbprint())
        });
        let known = match &name {
            Ok(name) => Name::Known(*name),
            Err(error) if error.is_retryable() => return name,
            Err(error) => Name::None {
                since: now,
                error: error.clone(),
            },
        };
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        names.insert(arn.to_owned(), known);
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
