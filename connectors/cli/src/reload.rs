//! Takes newer policies in while a pipeline runs: looks for them, and puts the transform that they make in the
//! place of the old one, between two batches.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use sealflow::pipeline::{Outcome, Record, Transform, TransformError};
use sealflow::policy::{PolicySource, PolicySourceError, VerifiedPolicy};

use crate::explain::READABLE;
use crate::failure::{Failure, Result};
use crate::metrics::Metrics;
use crate::while_it_counts::stop;

/// Makes of a policy what records are transformed with, or says why it cannot be carried out.
type Make<T> = Box<dyn Fn(Arc<VerifiedPolicy>) -> Result<Arc<T>> + Send + Sync>;

/// What the newest policy makes: a transform, or an edition of a table.
pub(crate) struct Reloading<T: ?Sized = dyn Transform> {
    current: RwLock<(Arc<VerifiedPolicy>, Arc<T>)>,
    /// Held while a newer policy is taken in.
    taking: Mutex<()>,
    /// Once a newest policy cannot be used, nothing goes on under an older one.
    failed: Mutex<Option<Failure>>,
    policies: Arc<dyn PolicySource>,
    make: Make<T>,
    metrics: Arc<Metrics>,
}

impl<T: ?Sized> Reloading<T> {
    /// Starts with the transform of `policy`, which `policies` gave.
    pub(crate) fn new(
        policy: Arc<VerifiedPolicy>,
        policies: Arc<dyn PolicySource>,
        metrics: Arc<Metrics>,
        make: Make<T>,
    ) -> Result<Self> {
        metrics.policy_version(policy.policy().version);
        let transform = make(Arc::clone(&policy))?;
        Ok(Self {
            current: RwLock::new((policy, transform)),
            taking: Mutex::default(),
            failed: Mutex::default(),
            policies,
            make,
            metrics,
        })
    }

    /// Looks for a newer policy every `interval`, for ever. Returns when the newest one cannot be used: whatever
    /// the reason, no batch is transformed any more. A catalogue that is away, or does not let this process read the
    /// newest policy, leaves the one in use, but for one whose lease has ended.
    pub(crate) async fn follow(&self, interval: Duration) -> Failure {
        let mut overdue = None;
        loop {
            tokio::time::sleep(interval).await;
            if let Some(failure) = self.failed() {
                return failure;
            }
            let (in_use, _) = self.current();
            let dataset = &in_use.policy().dataset;
            let failure = match self.policies.policy(dataset).await {
                Ok(policy) => {
                    note_overdue(&mut overdue, self.policies.overdue(dataset));
                    match self.take(policy) {
                        Ok(()) => continue,
                        Err(failure) => failure,
                    }
                }
                // Whoever can take the catalogue away cannot change the policy by it.
                Err(error) if error.leaves_the_policy_in_use() && self.policies.holds(&in_use) => {
                    note_overdue(&mut overdue, Some(error));
                    continue;
                }
                Err(error) => Failure::from(error),
            };
            return self.fail(failure);
        }
    }

    fn take(&self, policy: Arc<VerifiedPolicy>) -> Result<()> {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, to) = (self.current().0.policy().version, policy.policy().version);
        if from == to {
            return Ok(());
        }
        let columns = policy.policy().columns.len();
        let transform = (self.make)(Arc::clone(&policy))?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (policy, transform);
        tracing::info!(from, to, columns, "policy in use");
        self.metrics.policy_version(to);
        Ok(())
    }

    fn current(&self) -> (Arc<VerifiedPolicy>, Arc<T>) {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn failed(&self) -> Option<Failure> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, failure: Failure) -> Failure {
        tracing::error!(error = failure.message, "the newest policy cannot be used");
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.clone());
        failure
    }

    /// What the next batch is transformed with. A lease that has ended since the last look ends the policy at once, not at
    /// the next one: a longer lease, or a newer policy, is looked for right here.
    pub(crate) async fn newest(&self) -> Result<Arc<T>, TransformError> {
        if let Some(failure) = self.failed() {
            return Err(stop(failure));
        }
        let (policy, transform) = self.current();
        if self.policies.holds(&policy) {
            return Ok(transform);
        }
        let newest = self.policies.policy(&policy.policy().dataset).await;
        let taken = newest.map_err(Failure::from).and_then(|newest| self.take(newest));
        match taken {
            Ok(()) => Ok(self.current().1),
            Err(failure) => Err(stop(self.fail(failure))),
        }
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
    async fn apply(&self, records: &[Record]) -> Result<Vec<Outcome>, TransformError> {
        self.newest().await?.apply(records).await
    }

    async fn refuse(&self, records: &[Record], code: &'static str) -> Result<Vec<Outcome>, TransformError> {
        self.newest().await?.refuse(records, code).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::io::{self, Write};

    use sealflow::clock::{Clock, ManualClock, UnixMillis};
    use sealflow::jose::PrivateJwk;
    use sealflow::keys::testing::MemoryCatalogue;
    use sealflow::keys::{Catalogue, CatalogueError};
    use sealflow::pipeline::StopKind;
    use sealflow::policy::{CataloguePolicies, TrustedOwners, lease, signed};

    use super::*;
    use crate::failure::Exit;
    use crate::services::clock;

    struct Same;

    #[async_trait]
    impl Transform for Same {
        async fn apply(&self, _: &[Record]) -> Result<Vec<Outcome>, TransformError> {
            Ok(Vec::new())
        }

        async fn refuse(&self, _: &[Record], _: &'static str) -> Result<Vec<Outcome>, TransformError> {
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
        let reloading = reloading(&catalogue, trusted, clock()).await;
        put(&catalogue, &owner, 2);
        let path = "policies/d/0000000002.jws".to_owned();
        catalogue.fail_with(Some(CatalogueError::NotPermitted { path }));
        let look = async |patience| {
            let followed = reloading.follow(Duration::from_millis(5));
            tokio::time::timeout(Duration::from_millis(patience), followed).await
        };
        assert!(look(100).await.is_err(), "it has stopped");
        assert!(reloading.apply(&[]).await.is_ok());
        let said = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(said().matches("the policy in use stays").count(), 1, "{}", said());
        assert!(
            said().contains("0000000002.jws") && said().contains("owner, group"),
            "{}",
            said()
        );
        // Readable again: taken in, without a restart. One that nobody signed still ends it.
        catalogue.fail_with(None);
        // What failed is remembered for a second.
        assert!(look(1_500).await.is_err());
        assert_eq!(reloading.current().0.policy().version, 2);
        catalogue.overwrite("policies/d/0000000003.jws", b"not signed");
        assert_eq!(look(10_000).await.unwrap().exit, Exit::Config);
    }

    async fn reloading(catalogue: &Arc<MemoryCatalogue>, trusted: TrustedOwners, clock: Arc<dyn Clock>) -> Reloading {
        let policies = CataloguePolicies::new(Arc::clone(catalogue) as Arc<dyn Catalogue>, trusted, clock)
            .with_ages(Duration::ZERO, Duration::from_secs(3600));
        let first = policies.policy("d").await.unwrap();
        let make = Box::new(|_| Ok(Arc::new(Same) as Arc<dyn Transform>));
        Reloading::new(first, Arc::new(policies), Arc::new(Metrics::new("test")), make).unwrap()
    }

    #[tokio::test]
    async fn a_lease_that_ends_between_two_looks_or_while_the_catalogue_is_away_for_long_ends_the_very_next_batch() {
        const HOUR: Duration = Duration::from_secs(3600);
        let owner = PrivateJwk::generate().unwrap();
        let trusted = TrustedOwners::everywhere(vec![owner.thumbprint()]).unwrap();
        let catalogue = Arc::new(MemoryCatalogue::new());
        let clock = Arc::new(ManualClock::at(UnixMillis(0)));
        let put = async |version: u64, hours: u32| {
            let yaml =
                format!("dataset: d\nversion: {version}\nlease: required\ncolumns: [{{ path: a, domain: x }}]\n");
            let jws = signed::sign(yaml.as_bytes(), &owner).unwrap();
            let policy = signed::verify(&jws, &trusted).unwrap();
            let now = clock.now();
            let lease = lease::sign(&policy, now, HOUR * hours, &owner).unwrap();
            lease::publish(&*catalogue, &lease, &policy, &trusted, now)
                .await
                .unwrap();
            catalogue.overwrite(&format!("policies/d/{version:010}.jws"), jws.as_bytes());
        };
        put(1, 2).await;
        let of = async || reloading(&catalogue, trusted.clone(), clock.clone()).await;
        let ends = async |reloading: &Reloading, why: &str| match reloading.apply(&[]).await {
            Err(TransformError::Stop { kind, reason, .. }) => {
                assert!(kind == StopKind::Config && reason.contains(why), "{reason}");
            }
            other => panic!("{other:?}"),
        };
        // Nobody looks: no `follow` runs.
        let (idle, renewed, away, newer) = (of().await, of().await, of().await, of().await);
        clock.advance(HOUR);
        assert!(idle.apply(&[]).await.is_ok());
        clock.advance(HOUR);
        ends(&idle, "the lease ended").await;
        ends(&idle, "the lease ended").await;
        let followed = tokio::time::timeout(HOUR, idle.follow(Duration::from_millis(5)));
        assert!(followed.await.unwrap().message.contains("the lease ended"));
        put(1, 2).await;
        assert!(
            renewed.apply(&[]).await.is_ok(),
            "a new lease is found by the batch that needs it"
        );
        // Away for longer than a policy counts without its catalogue, and the clock is set back meanwhile.
        assert!(away.apply(&[]).await.is_ok());
        catalogue.fail_with(Some(CatalogueError::Unavailable {
            reason: "away".to_owned(),
        }));
        clock.advance(HOUR * 2);
        clock.set(UnixMillis(0));
        let look = tokio::time::timeout(Duration::from_secs(10), away.follow(Duration::from_millis(5)));
        assert_eq!(look.await.unwrap().exit, Exit::Unavailable);
        assert!(away.apply(&[]).await.is_err());
        catalogue.fail_with(None);
        clock.set(UnixMillis(4 * 3_600_000));
        put(2, 2).await;
        assert!(newer.apply(&[]).await.is_ok());
        assert_eq!(
            newer.current().0.policy().version,
            2,
            "a newer one that holds takes its place"
        );
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
