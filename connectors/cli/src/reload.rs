//! Takes newer policies in while a pipeline runs: looks for them, and puts the transform that they make in the
//! place of the old one, between two batches.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use sealflow::pipeline::{Outcome, Record, StopKind, Transform, TransformError};
use sealflow::policy::{PolicySource, PolicySourceError, VerifiedPolicy};

use crate::explain::READABLE;
use crate::failure::{Failure, Result};
use crate::metrics::Metrics;

/// Makes the transform of a policy, or says why it cannot be carried out.
type Make = Box<dyn Fn(Arc<VerifiedPolicy>) -> Result<Arc<dyn Transform>> + Send + Sync>;

/// The transform of the newest policy.
pub(crate) struct Reloading {
    current: RwLock<Arc<dyn Transform>>,
    version: Mutex<u64>,
    /// Once a newest policy cannot be used, nothing goes on under an older one.
    failed: Mutex<Option<Failure>>,
    make: Make,
    metrics: Arc<Metrics>,
}

impl Reloading {
    /// Starts with the transform of `policy`.
    pub(crate) fn new(policy: Arc<VerifiedPolicy>, metrics: Arc<Metrics>, make: Make) -> Result<Self> {
        let version = policy.policy().version;
        metrics.policy_version(version);
        Ok(Self {
            current: RwLock::new(make(policy)?),
            version: Mutex::new(version),
            failed: Mutex::default(),
            make,
            metrics,
        })
    }

    /// Looks for a newer policy every `interval`, for ever. Returns when the newest one cannot be used: whatever
    /// the reason, no batch is transformed any more. A catalogue that is away, or does not let this process read the
    /// newest policy, leaves the one in use.
    pub(crate) async fn follow(&self, policies: &dyn PolicySource, dataset: &str, interval: Duration) -> Failure {
        let mut overdue = None;
        loop {
            tokio::time::sleep(interval).await;
            let failure = match policies.policy(dataset).await {
                Ok(policy) => {
                    note_overdue(&mut overdue, policies.overdue(dataset));
                    match self.take(policy) {
                        Ok(()) => continue,
                        Err(failure) => failure,
                    }
                }
                // Whoever can take the catalogue away cannot change the policy by it.
                Err(error) if error.leaves_the_policy_in_use() => {
                    note_overdue(&mut overdue, Some(error));
                    continue;
                }
                Err(error) => Failure::from(error),
            };
            tracing::error!(error = failure.message, "the newest policy cannot be used");
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.clone());
            return failure;
        }
    }

    fn take(&self, policy: Arc<VerifiedPolicy>) -> Result<()> {
        let mut version = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        let new = policy.policy().version;
        if new == *version {
            return Ok(());
        }
        let columns = policy.policy().columns.len();
        let transform = (self.make)(policy)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = transform;
        tracing::info!(from = *version, to = new, columns, "policy in use");
        *version = new;
        self.metrics.policy_version(new);
        Ok(())
    }

    fn transform(&self) -> Result<Arc<dyn Transform>, TransformError> {
        if let Some(failure) = &*self.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(TransformError::Stop {
                kind: StopKind::Config,
                reason: failure.message.clone(),
                help: failure.help.clone(),
            });
        }
        Ok(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// Says once for each reason why the newest policy is not known, and when it is again.
fn note_overdue(known: &mut Option<PolicySourceError>, now: Option<PolicySourceError>) {
    if *known == now {
        return;
    }
    match &now {
        Some(error @ PolicySourceError::NotPermitted { .. }) => {
            tracing::warn!(error = %error, help = READABLE, "the newest policy may not be read: the policy in use stays");
        }
        Some(error) => tracing::warn!(error = %error, "the catalogue is away: the policy in use stays"),
        None => tracing::info!("the newest policy is known again"),
    }
    *known = now;
}

#[async_trait]
impl Transform for Reloading {
    async fn apply(&self, records: Vec<Record>) -> Result<Vec<Outcome>, TransformError> {
        self.transform()?.apply(records).await
    }

    async fn refuse(&self, records: Vec<Record>, code: &'static str) -> Result<Vec<Outcome>, TransformError> {
        self.transform()?.refuse(records, code).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{self, Write};

    use sealflow::jose::PrivateJwk;
    use sealflow::keys::CatalogueError;
    use sealflow::keys::testing::MemoryCatalogue;
    use sealflow::policy::{CataloguePolicies, TrustedOwners, signed};

    use super::*;
    use crate::failure::Exit;
    use crate::services::clock;

    struct Same;

    #[async_trait]
    impl Transform for Same {
        async fn apply(&self, _: Vec<Record>) -> Result<Vec<Outcome>, TransformError> {
            Ok(Vec::new())
        }

        async fn refuse(&self, _: Vec<Record>, _: &'static str) -> Result<Vec<Outcome>, TransformError> {
            Ok(Vec::new())
        }
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn put(catalogue: &MemoryCatalogue, owner: &PrivateJwk, version: u64) {
        let yaml = format!("dataset: d\nversion: {version}\ncolumns: [{{ path: a, domain: x }}]\n");
        let jws = signed::sign(yaml.as_bytes(), owner).unwrap();
        catalogue.overwrite(&format!("policies/d/{version:010}.jws"), jws.as_bytes());
    }

    #[tokio::test]
    async fn a_newest_policy_that_this_user_may_not_read_leaves_the_one_in_use_and_says_who_must_be_let() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let owner = PrivateJwk::generate().unwrap();
        let catalogue = Arc::new(MemoryCatalogue::new());
        put(&catalogue, &owner, 1);
        let trusted = TrustedOwners::everywhere(vec![owner.thumbprint()]).unwrap();
        let policies = CataloguePolicies::new(catalogue.clone(), trusted, clock())
            .with_ages(Duration::ZERO, Duration::from_secs(3600));
        let first = policies.policy("d").await.unwrap();
        let make = Box::new(|_| Ok(Arc::new(Same) as Arc<dyn Transform>));
        let reloading = Reloading::new(first, Arc::new(Metrics::new("test")), make).unwrap();
        put(&catalogue, &owner, 2);
        let path = "policies/d/0000000002.jws".to_owned();
        catalogue.fail_with(Some(CatalogueError::NotPermitted { path }));
        let look = async |patience| {
            let followed = reloading.follow(&policies, "d", Duration::from_millis(5));
            tokio::time::timeout(Duration::from_millis(patience), followed).await
        };
        assert!(look(100).await.is_err(), "it has stopped");
        assert!(reloading.apply(Vec::new()).await.is_ok());
        let said = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(said().matches("the policy in use stays").count(), 1, "{}", said());
        assert!(
            said().contains("0000000002.jws") && said().contains("owner, group"),
            "{}",
            said()
        );
        // Readable again: taken in, without a restart. One that nobody signed still ends it.
        catalogue.fail_with(None);
        assert!(look(100).await.is_err());
        assert_eq!(*reloading.version.lock().unwrap(), 2);
        catalogue.overwrite("policies/d/0000000003.jws", b"not signed");
        assert_eq!(look(10_000).await.unwrap().exit, Exit::Config);
    }

    #[test]
    fn a_policy_that_this_user_may_not_read_at_the_start_is_a_matter_of_rights_and_not_of_owner_keys() {
        let failure = Failure::from(PolicySourceError::NotPermitted {
            what: "policy of dataset d".to_owned(),
            path: "policies/d/0000000002.jws".to_owned(),
        });
        assert_eq!(failure.exit, Exit::NotPermitted);
        assert!(failure.help.contains("owner, group") && !failure.help.contains("thumbprint"));
    }
}
