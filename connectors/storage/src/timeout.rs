//! A time-out on every call of a catalogue: a file system that hangs counts as an outage, as one that says so does.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sealflow::keys::{Catalogue, CatalogueError, Put};

/// A catalogue that answers within a given time, or is away.
///
/// A call that was given up may still be carried out: an object may appear later. That does no harm, as objects
/// never change and nothing was sealed that would need it.
#[derive(Debug)]
pub struct WithTimeout {
    inner: Arc<dyn Catalogue>,
    timeout: Duration,
}

impl WithTimeout {
    /// Gives every call of `inner` this long.
    #[must_use]
    pub fn new(inner: Arc<dyn Catalogue>, timeout: Duration) -> Self {
        Self { inner, timeout }
    }

    async fn within<T>(&self, call: impl Future<Output = Result<T, CatalogueError>>) -> Result<T, CatalogueError> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(answer) => answer,
            Err(_) => Err(CatalogueError::Unavailable {
                reason: format!("no answer within {} ms", self.timeout.as_millis()),
            }),
        }
    }
}

#[async_trait]
impl Catalogue for WithTimeout {
    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>, CatalogueError> {
        self.within(self.inner.get(path)).await
    }

    async fn put_if_absent(&self, path: &str, bytes: &[u8]) -> Result<Put, CatalogueError> {
        self.within(self.inner.put_if_absent(path, bytes)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, CatalogueError> {
        self.within(self.inner.list(prefix)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Never answers.
    #[derive(Debug)]
    struct Hanging;

    #[async_trait]
    impl Catalogue for Hanging {
        async fn get(&self, _: &str) -> Result<Option<Vec<u8>>, CatalogueError> {
            std::future::pending().await
        }

        async fn put_if_absent(&self, _: &str, _: &[u8]) -> Result<Put, CatalogueError> {
            std::future::pending().await
        }

        async fn list(&self, _: &str) -> Result<Vec<String>, CatalogueError> {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_catalogue_that_hangs_is_away() {
        let catalogue = WithTimeout::new(Arc::new(Hanging), Duration::from_millis(20));
        let errors = [
            catalogue.get("a").await.unwrap_err(),
            catalogue.put_if_absent("a", b"").await.unwrap_err(),
            catalogue.list("a").await.unwrap_err(),
        ];
        for error in errors {
            assert!(error.is_retryable() && error.to_string().contains("20 ms"), "{error}");
        }
    }

    #[tokio::test]
    async fn within_the_time_a_catalogue_answers_as_without_it() {
        let inner = Arc::new(sealflow::keys::testing::MemoryCatalogue::new());
        let catalogue = WithTimeout::new(inner, Duration::from_secs(5));
        assert_eq!(sealflow::keys::conformance::catalogue(&catalogue).await, Ok(()));
    }
}
