//! In-memory stand-ins for a KMS and a catalogue, with counters, delays and failures: for tests only.

mod client_keys;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
use async_trait::async_trait;
use hkdf::Hkdf;
use sha2::Sha256;

use self::client_keys::{ClientCalls, ClientKey, wrong_kind};
use super::catalogue::{Catalogue, CatalogueError, MAX_OBJECT, Put, check_path};
use super::service::{EncryptionContext, GeneratedKey, KeyAdmin, KeyDescription, KeyService, KeyServiceError};
use crate::secret::SecretBytes;

const NONCE_LEN: usize = 12;

/// A KMS in memory: every ARN is a symmetric key of its own, unless it was made [unusable](Self::set_unusable) or
/// [an RSA](Self::create_rsa_key) or [an HMAC key](Self::create_hmac_key). Two instances cannot open what the other wrapped.
pub struct MemoryKms {
    master: SecretBytes,
    generate_calls: AtomicU64,
    unwrap_calls: AtomicU64,
    describe_calls: AtomicU64,
    client_calls: ClientCalls,
    client_keys: Mutex<BTreeMap<String, ClientKey>>,
    in_flight: AtomicU64,
    peak_in_flight: AtomicU64,
    behaviour: Mutex<Behaviour>,
}

#[derive(Clone, Default)]
struct Behaviour {
    failure: Option<KeyServiceError>,
    delay: Duration,
    unusable: Vec<String>,
    identity: Option<String>,
}

impl MemoryKms {
    /// A KMS with fresh keys that answers at once and never fails.
    #[must_use]
    pub fn new() -> Self {
        let mut master = vec![0; 32];
        if getrandom::fill(&mut master).is_err() {
            // Only a machine without random numbers comes here; wrapping then fails below as well.
            master.clear();
        }
        Self {
            master: SecretBytes::new(master),
            generate_calls: AtomicU64::new(0),
            unwrap_calls: AtomicU64::new(0),
            describe_calls: AtomicU64::new(0),
            client_calls: ClientCalls::default(),
            client_keys: Mutex::default(),
            in_flight: AtomicU64::new(0),
            peak_in_flight: AtomicU64::new(0),
            behaviour: Mutex::default(),
        }
    }

    /// How many times `generate` was called, failed calls included.
    #[must_use]
    pub fn generate_calls(&self) -> u64 {
        self.generate_calls.load(Ordering::SeqCst)
    }

    /// How many times `unwrap` was called, failed calls included.
    #[must_use]
    pub fn unwrap_calls(&self) -> u64 {
        self.unwrap_calls.load(Ordering::SeqCst)
    }

    /// How many times `describe` was called, failed calls included.
    #[must_use]
    pub fn describe_calls(&self) -> u64 {
        self.describe_calls.load(Ordering::SeqCst)
    }

    /// The largest number of calls that were ever waiting for their answer together.
    #[must_use]
    pub fn peak_in_flight(&self) -> u64 {
        self.peak_in_flight.load(Ordering::SeqCst)
    }

    /// From now on every call fails with `failure`; `None` ends it. Calls that are waiting out their delay
    /// see the change.
    pub fn fail_with(&self, failure: Option<KeyServiceError>) {
        self.behaviour().failure = failure;
    }

    /// From now on every call waits this long (tokio time) before it does anything.
    pub fn set_delay(&self, delay: Duration) {
        self.behaviour().delay = delay;
    }

    /// Makes the key `arn` disabled, or usable again.
    pub fn set_unusable(&self, arn: &str, unusable: bool) {
        let mut behaviour = self.behaviour();
        behaviour.unusable.retain(|a| a != arn);
        if unusable {
            behaviour.unusable.push(arn.to_owned());
        }
    }

    /// From now on `identity` answers with this name.
    pub fn set_identity(&self, identity: &str) {
        self.behaviour().identity = Some(identity.to_owned());
    }

    fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits out the delay, then fails if it was told to.
    async fn answer(&self) -> Result<(), KeyServiceError> {
        let waiting = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak_in_flight.fetch_max(waiting, Ordering::SeqCst);
        // Dropped with the future when the caller gives up, so that the count stays true.
        let _done = Decrement(&self.in_flight);
        let delay = self.behaviour().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match self.behaviour().failure.clone() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    fn check_usable(&self, arn: &str) -> Result<(), KeyServiceError> {
        if self.behaviour().unusable.iter().any(|a| a == arn) {
            return Err(KeyServiceError::KeyUnusable {
                arn: arn.to_owned(),
                code: "DisabledException".to_owned(),
            });
        }
        Ok(())
    }

    /// What wraps: not for keys of clients.
    fn check_symmetric(&self, arn: &str) -> Result<(), KeyServiceError> {
        self.check_usable(arn)?;
        match self.client_key(arn) {
            None => Ok(()),
            Some(_) => Err(wrong_kind(arn)),
        }
    }

    fn wrap(&self, arn: &str, plaintext: &[u8], context: &EncryptionContext) -> Result<Vec<u8>, KeyServiceError> {
        let mut nonce = [0_u8; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| bad_answer("no random numbers"))?;
        let payload = Payload {
            msg: plaintext,
            aad: &aad(context),
        };
        let ciphertext = self
            .cipher(arn)?
            .encrypt(&Nonce::from(nonce), payload)
            .map_err(|_| bad_answer("wrapping failed"))?;
        Ok([nonce.as_slice(), &ciphertext].concat())
    }

    fn cipher(&self, arn: &str) -> Result<Aes256Gcm, KeyServiceError> {
        let mut key = zeroize::Zeroizing::new([0_u8; 32]);
        Hkdf::<Sha256>::new(None, self.master.expose())
            .expand(arn.as_bytes(), key.as_mut_slice())
            .map_err(|_| bad_answer("key derivation failed"))?;
        Aes256Gcm::new_from_slice(key.as_slice()).map_err(|_| bad_answer("key derivation failed"))
    }
}

impl Default for MemoryKms {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryKms").finish_non_exhaustive()
    }
}

struct Decrement<'a>(&'a AtomicU64);

impl Drop for Decrement<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn bad_answer(reason: &str) -> KeyServiceError {
    KeyServiceError::BadAnswer {
        reason: reason.to_owned(),
    }
}

fn aad(context: &EncryptionContext) -> Vec<u8> {
    let mut aad = Vec::new();
    for (name, value) in context.iter() {
        for part in [name, value] {
            aad.extend_from_slice(&(part.len() as u64).to_be_bytes());
            aad.extend_from_slice(part.as_bytes());
        }
    }
    aad
}

#[async_trait]
impl KeyService for MemoryKms {
    async fn generate(
        &self,
        arn: &str,
        len: usize,
        context: &EncryptionContext,
    ) -> Result<GeneratedKey, KeyServiceError> {
        self.generate_calls.fetch_add(1, Ordering::SeqCst);
        self.answer().await?;
        self.check_symmetric(arn)?;
        let mut plaintext = zeroize::Zeroizing::new(vec![0; len]);
        getrandom::fill(&mut plaintext).map_err(|_| bad_answer("no random numbers"))?;
        let wrapped = self.wrap(arn, &plaintext, context)?;
        Ok(GeneratedKey {
            plaintext: SecretBytes::new(std::mem::take(&mut *plaintext)),
            wrapped,
            arn: arn.to_owned(),
        })
    }

    async fn unwrap(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretBytes, KeyServiceError> {
        self.unwrap_calls.fetch_add(1, Ordering::SeqCst);
        self.answer().await?;
        self.check_symmetric(arn)?;
        let refused = || KeyServiceError::Refused {
            arn: arn.to_owned(),
            code: "InvalidCiphertextException".to_owned(),
        };
        let (nonce, ciphertext) = wrapped.split_first_chunk::<NONCE_LEN>().ok_or_else(refused)?;
        let payload = Payload {
            msg: ciphertext,
            aad: &aad(context),
        };
        let plaintext = self
            .cipher(arn)?
            .decrypt(&Nonce::from(*nonce), payload)
            .map_err(|_| refused())?;
        Ok(SecretBytes::new(plaintext))
    }

    async fn describe(&self, arn: &str) -> Result<KeyDescription, KeyServiceError> {
        self.describe_calls.fetch_add(1, Ordering::SeqCst);
        self.answer().await?;
        let enabled = self.check_usable(arn).is_ok();
        let state = if enabled { "Enabled" } else { "Disabled" };
        Ok(KeyDescription {
            arn: arn.to_owned(),
            enabled,
            state: state.to_owned(),
        })
    }

    async fn identity(&self) -> Result<String, KeyServiceError> {
        Ok(self.behaviour().identity.clone().unwrap_or_else(|| "memory".to_owned()))
    }
}

#[async_trait]
impl KeyAdmin for MemoryKms {
    async fn rewrap(
        &self,
        from: &str,
        wrapped: &[u8],
        to: &str,
        context: &EncryptionContext,
    ) -> Result<Vec<u8>, KeyServiceError> {
        let plaintext = self.unwrap(from, wrapped, context).await?;
        self.check_symmetric(to)?;
        self.wrap(to, plaintext.expose(), context)
    }

    async fn rotate(&self, arn: &str) -> Result<(), KeyServiceError> {
        self.answer().await?;
        self.check_symmetric(arn)
    }
}

/// A catalogue in memory.
#[derive(Debug, Default)]
pub struct MemoryCatalogue {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    failure: Mutex<Option<CatalogueError>>,
    delay: Mutex<Duration>,
    hanging: Mutex<Vec<String>>,
    get_calls: AtomicU64,
    put_calls: AtomicU64,
    list_calls: AtomicU64,
}

impl MemoryCatalogue {
    /// An empty catalogue that answers at once and never fails.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on every call fails with `failure`; `None` ends it.
    pub fn fail_with(&self, failure: Option<CatalogueError>) {
        *lock(&self.failure) = failure;
    }

    /// From now on every call waits this long (tokio time) before it does anything.
    pub fn set_delay(&self, delay: Duration) {
        *lock(&self.delay) = delay;
    }

    /// From now on calls for what is at or below `prefix` never answer.
    pub fn hang_below(&self, prefix: &str) {
        lock(&self.hanging).push(prefix.to_owned());
    }

    /// How many times `get` was called, failed calls included.
    #[must_use]
    pub fn get_calls(&self) -> u64 {
        self.get_calls.load(Ordering::SeqCst)
    }

    /// How many times `put_if_absent` was called, failed calls included.
    #[must_use]
    pub fn put_calls(&self) -> u64 {
        self.put_calls.load(Ordering::SeqCst)
    }

    /// How many times `list` was called, failed calls included.
    #[must_use]
    pub fn list_calls(&self) -> u64 {
        self.list_calls.load(Ordering::SeqCst)
    }

    /// Puts or replaces an object, as somebody who tampers with the store would.
    pub fn overwrite(&self, path: &str, bytes: &[u8]) {
        lock(&self.objects).insert(path.to_owned(), bytes.to_vec());
    }

    /// Removes an object.
    pub fn remove(&self, path: &str) {
        lock(&self.objects).remove(path);
    }

    async fn answer(&self, path: &str) -> Result<(), CatalogueError> {
        let hangs = lock(&self.hanging).iter().any(|prefix| path.starts_with(prefix));
        if hangs {
            std::future::pending::<()>().await;
        }
        let delay = *lock(&self.delay);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if let Some(failure) = lock(&self.failure).clone() {
            return Err(failure);
        }
        check_path(path)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Catalogue for MemoryCatalogue {
    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>, CatalogueError> {
        self.get_calls.fetch_add(1, Ordering::SeqCst);
        self.answer(path).await?;
        Ok(lock(&self.objects).get(path).cloned())
    }

    async fn put_if_absent(&self, path: &str, bytes: &[u8]) -> Result<Put, CatalogueError> {
        self.put_calls.fetch_add(1, Ordering::SeqCst);
        self.answer(path).await?;
        if bytes.len() > MAX_OBJECT {
            let reason = "the object is larger than 1 MiB".to_owned();
            return Err(CatalogueError::Invalid {
                path: path.to_owned(),
                reason,
            });
        }
        let mut objects = lock(&self.objects);
        if objects.contains_key(path) {
            return Ok(Put::Exists);
        }
        objects.insert(path.to_owned(), bytes.to_vec());
        Ok(Put::Created)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, CatalogueError> {
        self.list_calls.fetch_add(1, Ordering::SeqCst);
        self.answer(prefix).await?;
        let below = format!("{prefix}/");
        Ok(lock(&self.objects)
            .keys()
            .filter(|path| path.starts_with(&below))
            .cloned()
            .collect())
    }
}
