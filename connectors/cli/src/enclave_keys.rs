//! Publishes what the worker of a pipeline vouches for: the keys that clients seal to, attested anew each hour.

use std::sync::Arc;
use std::time::Duration;

use sealflow::clock::UnixMillis;
use sealflow::flow::enclave::EnclaveError;
use sealflow::policy::enclave_keys::attested::{self, Pinned, Trust, of_policy};
use sealflow::policy::enclave_keys::published;
use sealflow::policy::{EnclaveKeysError, PolicySourceError, VerifiedEnclaveKeys};
use sealflow_enclave_host::Supervisor;

use crate::services::Services;

/// How often the worker is asked. Keys and labels that a new policy names are published so soon.
const EVERY: Duration = Duration::from_secs(60);
/// After a failure.
const BETWEEN_TRIES: Duration = Duration::from_secs(10);
/// How old evidence may be that was asked for just now.
const MAX_AGE: Duration = Duration::from_secs(300);
/// Documents are published for each hour: clients on Nitro believe one for three.
const HOUR_MS: u64 = 3_600_000;

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
enum NotPublished {
    #[error(transparent)]
    Policy(#[from] PolicySourceError),
    #[error(transparent)]
    Worker(#[from] EnclaveError),
    #[error("what the enclave worker vouches for is not believed here: {0}")]
    Keys(#[from] EnclaveKeysError),
}

/// What was published last.
struct Last {
    hour: u64,
    keys: VerifiedEnclaveKeys,
}

/// Publishes as long as it is polled.
pub(crate) async fn publish(worker: &Supervisor, trust: &Trust, services: &Services) {
    let mut last = None;
    let mut told = None;
    loop {
        let pause = match publish_once(worker, trust, services, last.as_ref()).await {
            Ok(published) => {
                last = published.or(last);
                told = None;
                EVERY
            }
            Err(error) => {
                let reason = error.to_string();
                if told.as_ref() != Some(&reason) {
                    tracing::warn!(%error, "the keys that clients seal to are not published");
                    told = Some(reason);
                }
                BETWEEN_TRIES
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Publishes what the worker vouches for now, unless that was done in this hour.
async fn publish_once(
    worker: &Supervisor,
    trust: &Trust,
    services: &Services,
    last: Option<&Last>,
) -> Result<Option<Last>, NotPublished> {
    let dataset = &services.policy.policy().dataset;
    let text = worker.client_keys(dataset).await?;
    let policy = services.policies.policy(dataset).await?;
    let pinned = Pinned {
        trust: trust.clone(),
        measurements: policy.policy().enclave.as_ref().map(of_policy).unwrap_or_default(),
        nonce: None,
        max_age: MAX_AGE,
    };
    let now = services.clock.now();
    // As clients do: what is not believed here goes nowhere.
    let keys = attested::verify(&text, &pinned, now)?.check(dataset, None)?;
    let hour = keys.issued().0 / HOUR_MS;
    if last.is_some_and(|last| last.hour == hour && last.keys.keys() == keys.keys()) {
        return Ok(None);
    }
    let pinned = Pinned {
        max_age: attested::DEFAULT_MAX_AGE,
        ..pinned
    };
    let is_new = published::publish_attested(services.catalogue.as_ref(), &keys, |text| {
        attested::verify(text, &pinned, now).ok()
    });
    if is_new.await? {
        tracing::info!(
            dataset = %dataset,
            until = %until(&keys),
            "published the keys that clients seal to, as the enclave worker vouches for them"
        );
    }
    Ok(Some(Last { hour, keys }))
}

/// The end of what a client believes that takes evidence for as long as it may.
fn until(keys: &VerifiedEnclaveKeys) -> UnixMillis {
    keys.issued().plus(attested::DEFAULT_MAX_AGE)
}

/// Publishes in a task, if there is a worker and the configuration wants it. It ends with what comes back.
pub(crate) fn start(
    config: Option<&crate::enclave::EnclaveConfig>,
    services: &Services,
) -> crate::failure::Result<Option<Publishing>> {
    let (Some(config), Some(worker)) = (config, &services.enclave) else {
        return Ok(None);
    };
    if !config.publish_keys {
        return Ok(None);
    }
    let (worker, trust, services) = (worker.clone(), config.trust()?, Arc::new(services.clone()));
    let task = tokio::spawn(async move { publish(&worker, &trust, &services).await });
    Ok(Some(Publishing(task)))
}

/// A task that publishes, until this is dropped.
#[derive(Debug)]
pub(crate) struct Publishing(tokio::task::JoinHandle<()>);

impl Drop for Publishing {
    fn drop(&mut self) {
        self.0.abort();
    }
}
