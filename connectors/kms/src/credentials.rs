//! One credential cache for all clients, so that the name of an identity and the requests made as it never disagree.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, Result as ProviderResult, SharedCredentialsProvider, future};
use sealflow::keys::KeyServiceError;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Credentials without an expiry are looked up again after this long: files change.
const REFRESH: Duration = Duration::from_secs(15 * 60);

/// Credentials are renewed when less than this is left of them.
const MARGIN: Duration = Duration::from_secs(5 * 60);

/// After a failed renewal the old ones, while they last, are used this long before the next try.
const RETRY: Duration = Duration::from_secs(10);

/// A provider that asks another one, once for all callers, and remembers the answer.
#[derive(Clone, Debug)]
pub(crate) struct CachedCredentials {
    inner: SharedCredentialsProvider,
    cached: Arc<Mutex<Option<Cached>>>,
}

#[derive(Debug)]
struct Cached {
    credentials: Credentials,
    until: Instant,
}

impl CachedCredentials {
    pub(crate) fn new(inner: SharedCredentialsProvider) -> Self {
        Self {
            inner,
            cached: Arc::default(),
        }
    }

    /// The credentials to use now.
    pub(crate) async fn get(&self) -> ProviderResult {
        // Held while the provider is asked: the others wait for the same answer.
        let mut cached = self.cached.lock().await;
        if let Some(known) = cached.as_ref().filter(|c| Instant::now() < c.until) {
            return Ok(known.credentials.clone());
        }
        match self.inner.provide_credentials().await {
            Ok(credentials) => {
                let until = Instant::now() + lifetime(&credentials);
                *cached = Some(Cached {
                    credentials: credentials.clone(),
                    until,
                });
                Ok(credentials)
            }
            Err(error) => {
                let left = cached
                    .as_mut()
                    .filter(|c| remaining(&c.credentials).is_none_or(|left| !left.is_zero()));
                let Some(old) = left else {
                    *cached = None;
                    return Err(error);
                };
                tracing::warn!("credentials could not be renewed; using the old ones while they last");
                old.until = Instant::now() + RETRY;
                Ok(old.credentials.clone())
            }
        }
    }

    /// Forgets `refused`, because the service no longer takes them. What others have renewed meanwhile stays.
    pub(crate) async fn forget(&self, refused: &Credentials) {
        let mut cached = self.cached.lock().await;
        if cached
            .as_ref()
            .is_some_and(|known| are_same(&known.credentials, refused))
        {
            *cached = None;
        }
    }

    /// As [`Self::forget`], for who knows no more of the refused ones than their access key id.
    pub(crate) async fn forget_key(&self, access_key_id: &str) {
        let mut cached = self.cached.lock().await;
        if cached
            .as_ref()
            .is_some_and(|known| known.credentials.access_key_id() == access_key_id)
        {
            *cached = None;
        }
    }
}

/// Whether a service would tell them apart.
pub(crate) fn are_same(a: &Credentials, b: &Credentials) -> bool {
    a.access_key_id() == b.access_key_id() && a.session_token() == b.session_token()
}

fn remaining(credentials: &Credentials) -> Option<Duration> {
    let expiry = credentials.expiry()?;
    Some(expiry.duration_since(SystemTime::now()).unwrap_or_default())
}

fn lifetime(credentials: &Credentials) -> Duration {
    match remaining(credentials) {
        None => REFRESH,
        Some(left) if left > 2 * MARGIN => left - MARGIN,
        // Short-lived ones: half of what is left, so that they are renewed in time and not at every call.
        Some(left) => left / 2,
    }
}

impl ProvideCredentials for CachedCredentials {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.get())
    }
}

/// What a failed credential chain means. No detail of the provider's is shown: it may quote what it read.
pub(crate) fn chain_error(error: &CredentialsError) -> KeyServiceError {
    let reason = |text: &str| text.to_owned();
    match error {
        CredentialsError::ProviderTimedOut(_) => KeyServiceError::Unavailable {
            reason: reason("a credential provider did not answer in time"),
        },
        CredentialsError::ProviderError(_) => KeyServiceError::Unavailable {
            reason: reason("no provider of the AWS chain gave credentials; SEALFLOW_LOG=aws_config=debug says more"),
        },
        CredentialsError::InvalidConfiguration(_) => KeyServiceError::NoCredentials {
            reason: reason("the AWS configuration or profile is not valid; SEALFLOW_LOG=aws_config=debug says more"),
        },
        _ => KeyServiceError::NoCredentials {
            reason: reason(
                "nothing in the chain of environment, profile, web identity, container and instance has any",
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Gives key `AKIA<n>` at its n-th call, and fails from call `fails_from`.
    #[derive(Debug)]
    struct Counting {
        calls: Arc<AtomicU32>,
        fails_from: u32,
        expiry: Option<SystemTime>,
    }

    impl ProvideCredentials for Counting {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
            future::ProvideCredentials::ready(if call >= self.fails_from {
                Err(CredentialsError::provider_error("down"))
            } else {
                Ok(Credentials::new(
                    format!("AKIA{call}"),
                    "secret",
                    None,
                    self.expiry,
                    "test",
                ))
            })
        }
    }

    fn cache(fails_from: u32, expiry: Option<SystemTime>) -> (CachedCredentials, Arc<AtomicU32>) {
        let calls = Arc::new(AtomicU32::new(0));
        let provider = Counting {
            calls: Arc::clone(&calls),
            fails_from,
            expiry,
        };
        (CachedCredentials::new(SharedCredentialsProvider::new(provider)), calls)
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_are_asked_for_once_until_they_age_or_are_forgotten() {
        let (cache, calls) = cache(u32::MAX, None);
        for _ in 0..3 {
            assert_eq!(cache.get().await.unwrap().access_key_id(), "AKIA1");
        }
        tokio::time::advance(REFRESH).await;
        assert_eq!(cache.get().await.unwrap().access_key_id(), "AKIA2");
        let refused = cache.get().await.unwrap();
        cache.forget(&refused).await;
        assert_eq!(cache.get().await.unwrap().access_key_id(), "AKIA3");
        // Somebody who was refused with the old ones does not throw away the new.
        cache.forget(&refused).await;
        cache.forget_key("AKIA2").await;
        assert_eq!(cache.get().await.unwrap().access_key_id(), "AKIA3");
        assert_eq!(calls.load(Ordering::SeqCst), 3);
        cache.forget_key("AKIA3").await;
        assert_eq!(cache.get().await.unwrap().access_key_id(), "AKIA4");
    }

    #[tokio::test(start_paused = true)]
    async fn old_credentials_serve_until_they_expire_when_renewal_fails() {
        let (cache, calls) = cache(2, Some(SystemTime::now() + Duration::from_secs(3600)));
        assert!(cache.get().await.is_ok());
        tokio::time::advance(Duration::from_secs(3600) - MARGIN).await;
        assert_eq!(cache.get().await.unwrap().access_key_id(), "AKIA1");
        assert_eq!(cache.get().await.unwrap().access_key_id(), "AKIA1");
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn expired_credentials_are_not_used() {
        let (cache, _) = cache(2, Some(SystemTime::now()));
        assert!(cache.get().await.is_ok());
        assert!(cache.get().await.is_err());
    }
}
