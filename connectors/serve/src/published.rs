//! The public keys that clients seal to, for everybody: `GET /.well-known/jwks.json`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealflow::clock::{Clock, Steady};
use sealflow::jose::rsa::{RsaPublicJwk, to_jwks};
use sealflow::keys::ClientKeyService;
use sealflow::policy::{PolicySource, RsaKey};
use tokio::sync::Mutex;

use crate::problem::{Code, Problem};

/// How long a document is answered from memory. Nobody is asked more often, however many ask.
const REFRESH: Duration = Duration::from_secs(60);
/// How soon after a failure is tried again.
const BETWEEN_TRIES: Duration = Duration::from_secs(5);

/// The keys of some datasets' policies, asked of the key service where the policy has not their public halves itself.
pub struct PublishedKeys {
    kms: Arc<dyn ClientKeyService>,
    policies: Arc<dyn PolicySource>,
    datasets: Vec<String>,
    clock: Arc<dyn Clock>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    document: Option<Bytes>,
    /// When it was made, or could not be.
    tried: Option<(Steady, bool)>,
}

impl PublishedKeys {
    /// Of these datasets.
    #[must_use]
    pub fn new(
        kms: Arc<dyn ClientKeyService>,
        policies: Arc<dyn PolicySource>,
        datasets: Vec<String>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            kms,
            policies,
            datasets,
            clock,
            known: Mutex::default(),
        }
    }

    /// A JWK set: of each dataset the current keys, then those before them. One that cannot be made anew is answered as it
    /// was: a public key never becomes another.
    pub(crate) async fn document(&self) -> Result<Bytes, Problem> {
        // Held while others are asked: they are asked once.
        let mut known = self.known.lock().await;
        let now = self.clock.steady();
        let is_recent = known
            .tried
            .is_some_and(|(since, is_made)| now.since(since) < if is_made { REFRESH } else { BETWEEN_TRIES });
        if !is_recent {
            let made = self.make().await;
            known.tried = Some((now, made.is_ok()));
            match made {
                Ok(document) => known.document = Some(document),
                Err(reason) => tracing::warn!(reason, "the keys that clients seal to cannot be had"),
            }
        }
        known.document.clone().ok_or_else(|| {
            let detail = "the keys that clients seal to cannot be had at the moment";
            Problem::new(Code::ServiceUnavailable, detail, "try again").retry_after(BETWEEN_TRIES.as_secs())
        })
    }

    async fn make(&self) -> Result<Bytes, String> {
        let mut keys: Vec<RsaPublicJwk> = Vec::new();
        for dataset in &self.datasets {
            let policy = self.policies.policy(dataset).await.map_err(|error| error.to_string())?;
            let Some(rule) = &policy.policy().client else {
                return Err(format!("the policy of {dataset} has no keys that clients seal to"));
            };
            let current = rule.keys.len();
            for (n, key) in rule.rsa_keys().enumerate() {
                let arn = key.arn();
                let der = match key {
                    RsaKey::Pair(pair) => Ok(pair.public.clone()),
                    _ => self.kms.public_key(arn).await,
                };
                let key = match der {
                    Ok(der) => RsaPublicJwk::from_spki_der(&der).map_err(|error| format!("{arn}: {error}"))?,
                    // One that is gone is missed by nobody.
                    Err(error) if n >= current && !error.is_retryable() => continue,
                    Err(error) => return Err(error.to_string()),
                };
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
        Ok(Bytes::from(to_jwks(&keys)))
    }
}

impl std::fmt::Debug for PublishedKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublishedKeys")
            .field("datasets", &self.datasets)
            .finish_non_exhaustive()
    }
}
