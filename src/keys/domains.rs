//! Domain secrets: created once by put-if-absent, named by a signed document, unwrapped to seal and to open.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::catalogue::{Catalogue, CatalogueError, Put};
use super::service::{EncryptionContext, KeyService, KeyServiceError};
use crate::clock::{Clock, Steady};
use crate::policy::{PolicySource, PolicySourceError, VerifiedDomain};
use crate::seal::{DOMAIN_SECRET_LEN, DomainKey, KeyId};

/// Why there is no domain secret.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DomainError {
    /// The catalogue holds a document but no secret for that version.
    #[error("the catalogue has no secret for version {version} of domain {domain}")]
    NoSecret {
        /// The domain.
        domain: String,
        /// Its version.
        version: u64,
    },
    /// The secret is not the one that the signed document names: it was substituted.
    #[error("the secret of version {version} of domain {domain} is not the one its signed document names")]
    WrongSecret {
        /// The domain.
        domain: String,
        /// Its version.
        version: u64,
    },
    /// The key service did not deliver.
    #[error(transparent)]
    Service(#[from] KeyServiceError),
    /// The catalogue did not answer.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// There is no verified document.
    #[error(transparent)]
    Policy(#[from] PolicySourceError),
}

impl DomainError {
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

/// A domain's secret and the document that vouches for it.
#[derive(Debug)]
pub struct Domain {
    /// The secret.
    pub key: DomainKey,
    /// Its signed document: type, padding, ACL.
    pub document: Arc<VerifiedDomain>,
}

/// The secrets of domains, by (credential identity, domain, key id). Cheap to clone; clones share the cache.
#[derive(Clone)]
pub struct DomainKeys(Arc<Inner>);

struct Inner {
    service: Arc<dyn KeyService>,
    catalogue: Arc<dyn Catalogue>,
    policies: Arc<dyn PolicySource>,
    clock: Arc<dyn Clock>,
    max_age: Duration,
    slots: Mutex<HashMap<(String, String, KeyId), Arc<Slot>>>,
}

/// Domains are few and named by signed policies, so this map needs no bound of its own.
type Slot = tokio::sync::Mutex<Known>;

/// What is known of one secret: itself and since when, and the last failure to unwrap it.
#[derive(Default)]
struct Known {
    current: Option<(Steady, Arc<Domain>)>,
    failure: Option<(Steady, DomainError)>,
}

impl Known {
    /// What a failure means: one that may pass does not take away a secret that is there.
    fn or_error(&self, error: DomainError) -> Result<Arc<Domain>, DomainError> {
        match &self.current {
            Some((_, domain)) if error.is_retryable() => Ok(Arc::clone(domain)),
            _ => Err(error),
        }
    }

    /// The last failure, while it is too fresh to try again.
    fn held_failure(&self, now: Steady) -> Option<DomainError> {
        let (at, error) = self.failure.as_ref()?;
        let hold = match (error.is_retryable(), &self.current) {
            (true, Some(_)) => HOLD_WITH_SECRET,
            (true, None) => HOLD_RETRYABLE,
            (false, _) => HOLD_PERMANENT,
        };
        (now.since(*at) < hold).then(|| error.clone())
    }
}

/// How long a failure that may pass is answered from memory.
const HOLD_RETRYABLE: Duration = Duration::from_secs(1);
/// The same while the secret is there: nobody waits for the key service.
const HOLD_WITH_SECRET: Duration = Duration::from_secs(30);
/// How long a failure that needs somebody's hand is answered from memory.
const HOLD_PERMANENT: Duration = Duration::from_secs(5);

impl DomainKeys {
    /// Secrets are unwrapped again after `max_age`, so that a key disabled in KMS stops working here. While the
    /// key service or the catalogue is away they go on to count: a domain's secret has no age of its own.
    #[must_use]
    pub fn new(
        service: Arc<dyn KeyService>,
        catalogue: Arc<dyn Catalogue>,
        policies: Arc<dyn PolicySource>,
        clock: Arc<dyn Clock>,
        max_age: Duration,
    ) -> Self {
        Self(Arc::new(Inner {
            service,
            catalogue,
            policies,
            clock,
            max_age,
            slots: Mutex::default(),
        }))
    }

    /// The newest secret of `domain`, or with `key` the one of that id.
    pub async fn get(&self, domain: &str, key: Option<KeyId>) -> Result<Arc<Domain>, DomainError> {
        let document = self.0.policies.domain(domain, key).await?;
        let identity = self.0.service.identity().await?;
        let id = (identity, domain.to_owned(), document.document().key_id);
        let slot = {
            let mut slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(id).or_default())
        };
        let mut known = slot.lock().await;
        let now = self.0.clock.steady();
        if let Some((since, domain)) = &known.current
            && now.since(*since) < self.0.max_age
        {
            return Ok(Arc::clone(domain));
        }
        if let Some(error) = known.held_failure(now) {
            return known.or_error(error);
        }
        match self.0.unwrap(document).await {
            Ok(domain) => {
                let domain = Arc::new(domain);
                known.current = Some((now, Arc::clone(&domain)));
                known.failure = None;
                Ok(domain)
            }
            Err(error) => {
                if !error.is_retryable() {
                    known.current = None;
                }
                known.failure = Some((self.0.clock.steady(), error.clone()));
                known.or_error(error)
            }
        }
    }
}

impl Inner {
    async fn unwrap(&self, verified: Arc<VerifiedDomain>) -> Result<Domain, DomainError> {
        let document = verified.document();
        let (name, version) = (&document.domain, document.version);
        let wrapped = self.catalogue.get(&secret_path(name, version)).await?;
        let wrapped = wrapped.ok_or_else(|| DomainError::NoSecret {
            domain: name.clone(),
            version,
        })?;
        let secret = self
            .service
            .unwrap(&document.arn, &wrapped, &EncryptionContext::for_domain(name))
            .await?;
        let key = DomainKey::new(&secret, name, document.key_id).map_err(|_| DomainError::WrongSecret {
            domain: name.clone(),
            version,
        })?;
        Ok(Domain {
            key,
            document: verified,
        })
    }
}

/// Creates the secret of a new version of `domain` under the KMS key `arn`, unless there is one, and returns
/// its key id for the domain document. Of concurrent callers all get the same id.
pub async fn create_domain_secret(
    service: &dyn KeyService,
    catalogue: &dyn Catalogue,
    domain: &str,
    version: u64,
    arn: &str,
) -> Result<KeyId, DomainError> {
    let context = EncryptionContext::for_domain(domain);
    let path = secret_path(domain, version);
    let generated = service.generate(arn, DOMAIN_SECRET_LEN, &context).await?;
    if catalogue.put_if_absent(&path, &generated.wrapped).await? == Put::Created {
        return Ok(KeyId::of(&generated.plaintext));
    }
    let no_secret = || DomainError::NoSecret {
        domain: domain.to_owned(),
        version,
    };
    let wrapped = catalogue.get(&path).await?.ok_or_else(no_secret)?;
    let secret = service.unwrap(arn, &wrapped, &context).await?;
    Ok(KeyId::of(&secret))
}

fn secret_path(domain: &str, version: u64) -> String {
    format!("domains/{domain}/{version}/secret")
}

impl fmt::Debug for DomainKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DomainKeys")
            .field("service", &self.0.service)
            .finish_non_exhaustive()
    }
}
