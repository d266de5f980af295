//! Keys of clients in the in-memory KMS: real RSA and HMAC.
//!
//! Its private-key operations are those of the `rsa` crate, whose timing tells something about the key (RUSTSEC-2023-0071).
//! That is for tests and benchmarks alone: nobody can measure a key that lives for one test, and the core does not link
//! aws-lc-rs, which all real private-key operations go through.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use async_trait::async_trait;
use hmac::{Hmac, KeyInit as _, Mac as _};
use rsa::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _};
use sha2::Sha256;

use super::{MemoryKms, bad_answer};
use crate::keys::{
    ClientKeyService, EncryptionContext, GeneratedPair, KeyService as _, KeyServiceError, PrivateHalf, RsaBits,
};
use crate::secret::SecretBytes;

/// The longest message of a MAC.
const MAX_MESSAGE: usize = 4096;

/// A key that is not symmetric.
#[derive(Clone)]
pub(super) enum ClientKey {
    Rsa(Arc<rsa::PrivateKey>),
    Hmac(Arc<SecretBytes>),
}

/// How often each call came, failed ones included.
#[derive(Debug, Default)]
pub(super) struct ClientCalls {
    public_key: AtomicU64,
    decrypt_rsa: AtomicU64,
    generate_pair: AtomicU64,
    mac: AtomicU64,
    verify_mac: AtomicU64,
}

impl MemoryKms {
    /// Makes `arn` an RSA key, a new one each time. It takes up to seconds.
    pub fn create_rsa_key(&self, arn: &str, bits: RsaBits) -> Result<(), KeyServiceError> {
        let key = ClientKey::Rsa(Arc::new(new_pair(bits)?));
        self.client_keys().insert(arn.to_owned(), key);
        Ok(())
    }

    /// Makes `arn` an HMAC key, a new one each time.
    pub fn create_hmac_key(&self, arn: &str) -> Result<(), KeyServiceError> {
        let mut key = zeroize::Zeroizing::new(vec![0; 32]);
        getrandom::fill(&mut key).map_err(|_| bad_answer("no random numbers"))?;
        let key = ClientKey::Hmac(Arc::new(SecretBytes::new(std::mem::take(&mut *key))));
        self.client_keys().insert(arn.to_owned(), key);
        Ok(())
    }

    /// How many times `public_key` was called, failed calls included.
    #[must_use]
    pub fn public_key_calls(&self) -> u64 {
        self.client_calls.public_key.load(Ordering::SeqCst)
    }

    /// How many times `decrypt_rsa` was called, failed calls included.
    #[must_use]
    pub fn decrypt_rsa_calls(&self) -> u64 {
        self.client_calls.decrypt_rsa.load(Ordering::SeqCst)
    }

    /// How many times `generate_pair` was called, failed calls included.
    #[must_use]
    pub fn generate_pair_calls(&self) -> u64 {
        self.client_calls.generate_pair.load(Ordering::SeqCst)
    }

    /// How many times `mac` was called, failed calls included.
    #[must_use]
    pub fn mac_calls(&self) -> u64 {
        self.client_calls.mac.load(Ordering::SeqCst)
    }

    /// How many times `verify_mac` was called, failed calls included.
    #[must_use]
    pub fn verify_mac_calls(&self) -> u64 {
        self.client_calls.verify_mac.load(Ordering::SeqCst)
    }

    pub(super) fn client_key(&self, arn: &str) -> Option<ClientKey> {
        self.client_keys().get(arn).cloned()
    }

    fn client_keys(&self) -> MutexGuard<'_, std::collections::BTreeMap<String, ClientKey>> {
        self.client_keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a call that needs the RSA key `arn`.
    async fn rsa_key(&self, arn: &str, calls: &AtomicU64) -> Result<Arc<rsa::PrivateKey>, KeyServiceError> {
        calls.fetch_add(1, Ordering::SeqCst);
        self.answer().await?;
        self.check_usable(arn)?;
        match self.client_key(arn) {
            Some(ClientKey::Rsa(key)) => Ok(key),
            _ => Err(wrong_kind(arn)),
        }
    }

    /// Answers a call that needs the HMAC key `arn`.
    async fn hmac_of(&self, arn: &str, message: &[u8], calls: &AtomicU64) -> Result<Hmac<Sha256>, KeyServiceError> {
        calls.fetch_add(1, Ordering::SeqCst);
        self.answer().await?;
        self.check_usable(arn)?;
        let Some(ClientKey::Hmac(key)) = self.client_key(arn) else {
            return Err(wrong_kind(arn));
        };
        if message.is_empty() || message.len() > MAX_MESSAGE {
            return Err(bad_answer("a message has 1 to 4,096 bytes"));
        }
        let hmac = Hmac::<Sha256>::new_from_slice(key.expose()).map_err(|_| bad_answer("no HMAC key"))?;
        Ok(hmac.chain_update(message))
    }
}

#[async_trait]
impl ClientKeyService for MemoryKms {
    async fn public_key(&self, arn: &str) -> Result<Vec<u8>, KeyServiceError> {
        let key = self.rsa_key(arn, &self.client_calls.public_key).await?;
        public_half(&key)
    }

    async fn decrypt_rsa(&self, arn: &str, ciphertext: &[u8]) -> Result<SecretBytes, KeyServiceError> {
        let key = self.rsa_key(arn, &self.client_calls.decrypt_rsa).await?;
        match key.oaep_decrypt::<Sha256>(ciphertext) {
            Ok(plaintext) if !plaintext.is_empty() => Ok(SecretBytes::new(plaintext)),
            _ => Err(KeyServiceError::Refused {
                arn: arn.to_owned(),
                code: "InvalidCiphertextException".to_owned(),
            }),
        }
    }

    async fn generate_pair(
        &self,
        arn: &str,
        bits: RsaBits,
        context: &EncryptionContext,
    ) -> Result<GeneratedPair, KeyServiceError> {
        self.client_calls.generate_pair.fetch_add(1, Ordering::SeqCst);
        self.answer().await?;
        self.check_symmetric(arn)?;
        let pair = new_pair(bits)?;
        let private = pair.to_pkcs8_der().map_err(|_| bad_answer("no PKCS #8"))?;
        Ok(GeneratedPair {
            public: public_half(&pair)?,
            wrapped_private: self.wrap(arn, private.as_bytes(), context)?,
            arn: arn.to_owned(),
        })
    }

    async fn private_half(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<Arc<dyn PrivateHalf>, KeyServiceError> {
        let secret = self.unwrap(arn, wrapped, context).await?;
        let key = rsa::PrivateKey::from_pkcs8_der(secret.expose());
        let key = key.map_err(|_| bad_answer("no RSA private key"))?;
        let public = public_half(&key)?;
        Ok(Arc::new(Held { key, public }))
    }

    async fn mac(&self, arn: &str, message: &[u8]) -> Result<[u8; 32], KeyServiceError> {
        let hmac = self.hmac_of(arn, message, &self.client_calls.mac).await?;
        Ok(hmac.finalize().into_bytes().into())
    }

    async fn verify_mac(&self, arn: &str, message: &[u8], mac: &[u8; 32]) -> Result<bool, KeyServiceError> {
        let hmac = self.hmac_of(arn, message, &self.client_calls.verify_mac).await?;
        Ok(hmac.verify_slice(mac).is_ok())
    }
}

/// A private half in memory.
struct Held {
    key: rsa::PrivateKey,
    public: Vec<u8>,
}

impl PrivateHalf for Held {
    fn public(&self) -> &[u8] {
        &self.public
    }

    fn decrypt(&self, ciphertext: &[u8]) -> Option<SecretBytes> {
        let plaintext = self.key.oaep_decrypt::<Sha256>(ciphertext).ok();
        plaintext
            .filter(|plaintext| !plaintext.is_empty())
            .map(SecretBytes::new)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Held([redacted])")
    }
}

fn new_pair(bits: RsaBits) -> Result<rsa::PrivateKey, KeyServiceError> {
    rsa::PrivateKey::new(&mut getrandom::SysRng, bits.bits()).map_err(|_| bad_answer("no RSA key"))
}

fn public_half(key: &rsa::PrivateKey) -> Result<Vec<u8>, KeyServiceError> {
    let der = key.to_public_key().to_public_key_der();
    Ok(der.map_err(|_| bad_answer("no public key"))?.into_vec())
}

pub(super) fn wrong_kind(arn: &str) -> KeyServiceError {
    KeyServiceError::KeyUnusable {
        arn: arn.to_owned(),
        code: "InvalidKeyUsageException".to_owned(),
    }
}
