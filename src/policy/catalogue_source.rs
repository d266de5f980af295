//! The newest verified policies of a catalogue, read again now and then, and never an older one than was seen.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::highest::Highest;
use super::lease::{self, Lease, LeaseError};
use super::model::Lease::Required;
use super::parse::check_name;
use super::publish::{PublishError, domain_with_key, newest, newest_domain};
use super::signed::{TrustError, VerifiedDomain, VerifiedPolicy};
use super::source::{PolicySource, PolicySourceError};
use super::trust::TrustedOwners;
use crate::clock::{Clock, NeverBack, Steady};
use crate::keys::{Catalogue, CatalogueError};
use crate::seal::KeyId;

/// How often the catalogue is asked for newer versions.
pub const DEFAULT_REFRESH: Duration = Duration::from_secs(60);
/// How long a policy goes on to count while the catalogue does not answer.
pub const DEFAULT_MAX_STALE: Duration = Duration::from_secs(3_600);

/// A [`PolicySource`] over a catalogue.
///
/// What was read counts for [`refresh`](DEFAULT_REFRESH); then the catalogue is asked again. While it does not
/// answer, or does not let this process read the newest, the last policy counts for
/// [`max_stale`](DEFAULT_MAX_STALE) more. What the catalogue does answer always counts: a newest version that is not believed, is older than one seen, or is gone, is an error.
pub struct CataloguePolicies {
    catalogue: Arc<dyn Catalogue>,
    trusted: TrustedOwners,
    clock: Arc<dyn Clock>,
    /// For the ends of leases.
    time: NeverBack,
    refresh: Duration,
    max_stale: Duration,
    highest: Highest,
    // Only what was believed is kept, so signers bound these maps. The locks are held while the catalogue is
    // asked, so that many waiting batches ask once.
    policies: Mutex<KeptBy<String, VerifiedPolicy>>,
    domains: Mutex<KeptBy<(String, Option<KeyId>), VerifiedDomain>>,
    /// The last lease of each dataset; `None`: leases are not asked for.
    leases: Option<std::sync::Mutex<HashMap<String, Held>>>,
    /// Why the policy that is kept of a dataset could not be compared with the catalogue's at the last look.
    overdue: std::sync::Mutex<HashMap<String, PolicySourceError>>,
}

/// A lease, and the hash of the policy that it is for.
type Held = ([u8; 32], Lease);
type KeptBy<K, T> = HashMap<K, Kept<T>>;

struct Kept<T> {
    read: Steady,
    document: Arc<T>,
}

impl CataloguePolicies {
    /// Policies and domains of `catalogue` that `trusted` owners signed.
    #[must_use]
    pub fn new(catalogue: Arc<dyn Catalogue>, trusted: TrustedOwners, clock: Arc<dyn Clock>) -> Self {
        Self {
            catalogue,
            trusted,
            clock,
            time: NeverBack::default(),
            refresh: DEFAULT_REFRESH,
            max_stale: DEFAULT_MAX_STALE,
            highest: Highest::default(),
            policies: Mutex::default(),
            domains: Mutex::default(),
            leases: Some(std::sync::Mutex::default()),
            overdue: std::sync::Mutex::default(),
        }
    }

    /// Asks the catalogue again after `refresh`, and does without its answer for `max_stale` more.
    #[must_use]
    pub fn with_ages(mut self, refresh: Duration, max_stale: Duration) -> Self {
        (self.refresh, self.max_stale) = (refresh, max_stale);
        self
    }

    /// Gives policies that need a lease also without one: to show what they say, not to seal or open by them.
    #[must_use]
    pub fn without_leases(mut self) -> Self {
        self.leases = None;
        self
    }

    /// Starts with the versions that an earlier process saw.
    #[must_use]
    pub fn with_highest(mut self, highest: Highest) -> Self {
        self.highest = highest;
        self
    }

    /// The highest versions seen.
    #[must_use]
    pub fn highest(&self) -> &Highest {
        &self.highest
    }

    fn is_fresh<T>(&self, kept: &Kept<T>) -> bool {
        self.clock.steady().since(kept.read) < self.refresh
    }

    /// The document to answer with, after the catalogue was asked.
    fn settle<K: Eq + Hash, T>(
        &self,
        answer: Result<Arc<T>, PolicySourceError>,
        key: K,
        kept: &mut KeptBy<K, T>,
    ) -> Result<Arc<T>, PolicySourceError> {
        let now = self.clock.steady();
        match answer {
            Ok(document) => {
                kept.insert(
                    key,
                    Kept {
                        read: now,
                        document: Arc::clone(&document),
                    },
                );
                Ok(document)
            }
            Err(error) => {
                let still_counts = |kept: &&Kept<T>| now.since(kept.read) < self.refresh + self.max_stale;
                match kept.get(&key).filter(still_counts) {
                    Some(kept) if error.leaves_the_policy_in_use() => Ok(Arc::clone(&kept.document)),
                    _ => Err(error),
                }
            }
        }
    }

    async fn ask_for_policy(&self, dataset: &str) -> Result<Arc<VerifiedPolicy>, PolicySourceError> {
        let what = || format!("policy of dataset {dataset}");
        let found = newest(self.catalogue.as_ref(), dataset, &self.trusted).await;
        let policy = self.believe(found, dataset, what)?;
        self.highest
            .accept(&policy)
            .map_err(|error| untrusted(what(), &error))?;
        Ok(Arc::new(policy))
    }

    /// Whether the policy may be worked by now. `look` for a longer lease than the one that is held, which counts until it
    /// ends, whatever the catalogue answers; then the policy does not count, even if the catalogue is away.
    async fn check_lease(&self, policy: &VerifiedPolicy, look: bool) -> Result<(), PolicySourceError> {
        let document = policy.policy();
        let Some(leases) = self.leases.as_ref().filter(|_| document.lease == Required) else {
            return Ok(());
        };
        let held = self.held(leases, policy);
        let holds = |held: &Option<Lease>| {
            held.as_ref()
                .is_some_and(|lease| self.time.now(&*self.clock) < lease.expires)
        };
        if holds(&held) && !look {
            return Ok(());
        }
        let now = self.time.now(&*self.clock);
        let error = match lease::newest(self.catalogue.as_ref(), policy, &self.trusted, now).await {
            Ok(lease) => {
                let mut leases = leases.lock().unwrap_or_else(PoisonError::into_inner);
                leases.insert(document.dataset.clone(), (document.sha256, lease));
                return Ok(());
            }
            // By the time now: the catalogue may have taken its own to answer.
            Err(_) if holds(&held) => return Ok(()),
            Err(error) => error,
        };
        let had_one = held.is_some();
        let what = format!("policy of dataset {}", document.dataset);
        Err(match error {
            LeaseError::Catalogue(error) if !had_one => from_publish(what, &PublishError::Catalogue(error)),
            LeaseError::Catalogue(error) => PolicySourceError::Untrusted {
                what,
                reason: format!("its lease ended, and another cannot be looked for: {error}"),
                help: LeaseError::from(error).help(),
            },
            error => PolicySourceError::Untrusted {
                what,
                reason: error.to_string(),
                help: error.help(),
            },
        })
    }

    /// The last lease of exactly this policy that was seen.
    fn held(&self, leases: &std::sync::Mutex<HashMap<String, Held>>, policy: &VerifiedPolicy) -> Option<Lease> {
        let document = policy.policy();
        let leases = leases.lock().unwrap_or_else(PoisonError::into_inner);
        let held = leases.get(&document.dataset)?;
        (held.0 == document.sha256).then(|| held.1.clone())
    }

    async fn ask_for_domain(&self, name: &str, key: Option<KeyId>) -> Result<Arc<VerifiedDomain>, PolicySourceError> {
        let what = || format!("document of domain {name}");
        let catalogue = self.catalogue.as_ref();
        let Some(key) = key else {
            let found = newest_domain(catalogue, name, &self.trusted).await;
            let domain = self.believe(found, &format!("domain:{name}"), what)?;
            self.highest
                .accept_domain(&domain)
                .map_err(|error| untrusted(what(), &error))?;
            return Ok(Arc::new(domain));
        };
        let found = domain_with_key(catalogue, name, key, &self.trusted).await;
        let domain = found.map_err(|error| from_publish(what(), &error))?;
        let missing = || PolicySourceError::Missing {
            what: format!("document of domain {name} with key {key}"),
        };
        domain.map(Arc::new).ok_or_else(missing)
    }

    /// The document that was found, if that is no step back behind what was seen.
    fn believe<T>(
        &self,
        found: Result<Option<T>, PublishError>,
        name: &str,
        what: impl Fn() -> String,
    ) -> Result<T, PolicySourceError> {
        if let Some(document) = found.map_err(|error| from_publish(what(), &error))? {
            return Ok(document);
        }
        match self.highest.snapshot().get(name) {
            None => Err(PolicySourceError::Missing { what: what() }),
            Some(seen) => Err(PolicySourceError::Untrusted {
                what: what(),
                reason: format!("version {} was there before, and now there is none", seen.version),
                help: "find out who removed it; its owner puts it back with `sealflow policy publish`".to_owned(),
            }),
        }
    }
}

fn untrusted(what: String, error: &TrustError) -> PolicySourceError {
    PolicySourceError::Untrusted {
        what,
        reason: error.to_string(),
        help: error.help(),
    }
}

fn from_publish(what: String, error: &PublishError) -> PolicySourceError {
    let reason = error.to_string();
    match error {
        PublishError::Catalogue(CatalogueError::NotPermitted { path }) => PolicySourceError::NotPermitted {
            what,
            path: path.clone(),
        },
        error if error.is_retryable() => PolicySourceError::Unavailable { what, reason },
        error => PolicySourceError::Untrusted {
            what,
            reason,
            help: error.help(),
        },
    }
}

#[async_trait]
impl PolicySource for CataloguePolicies {
    async fn policy(&self, dataset: &str) -> Result<Arc<VerifiedPolicy>, PolicySourceError> {
        // The name may come from an envelope: what no policy can have is not looked for.
        if check_name(dataset, "dataset", super::parse::MAX_DATASET_BYTES).is_err() {
            return Err(PolicySourceError::Missing {
                what: "policy of a dataset of that name".to_owned(),
            });
        }
        let mut kept = self.policies.lock().await;
        if let Some(kept) = kept.get(dataset).filter(|kept| self.is_fresh(kept)) {
            let policy = Arc::clone(&kept.document);
            self.check_lease(&policy, false).await?;
            return Ok(policy);
        }
        let answer = self.ask_for_policy(dataset).await;
        let asked = answer.as_ref().err().cloned();
        let settled = self.settle(answer, dataset.to_owned(), &mut kept);
        {
            let mut overdue = self.overdue.lock().unwrap_or_else(PoisonError::into_inner);
            match (asked, settled.is_ok()) {
                (Some(error), true) => overdue.insert(dataset.to_owned(), error),
                _ => overdue.remove(dataset),
            };
        }
        let policy = settled?;
        self.check_lease(&policy, true).await?;
        Ok(policy)
    }

    fn holds(&self, policy: &VerifiedPolicy) -> bool {
        let Some(leases) = self.leases.as_ref().filter(|_| policy.policy().lease == Required) else {
            return true;
        };
        let now = self.time.now(&*self.clock);
        self.held(leases, policy).is_some_and(|lease| now < lease.expires)
    }

    fn overdue(&self, dataset: &str) -> Option<PolicySourceError> {
        let overdue = self.overdue.lock().unwrap_or_else(PoisonError::into_inner);
        overdue.get(dataset).cloned()
    }

    async fn domain(&self, name: &str, key: Option<KeyId>) -> Result<Arc<VerifiedDomain>, PolicySourceError> {
        if check_name(name, "domain", super::domain::MAX_DOMAIN_BYTES).is_err() {
            return Err(PolicySourceError::Missing {
                what: "document of a domain of that name".to_owned(),
            });
        }
        let id = (name.to_owned(), key);
        let mut kept = self.domains.lock().await;
        if let Some(kept) = kept.get(&id).filter(|kept| self.is_fresh(kept)) {
            return Ok(Arc::clone(&kept.document));
        }
        let answer = self.ask_for_domain(name, key).await;
        self.settle(answer, id, &mut kept)
    }
}

impl fmt::Debug for CataloguePolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CataloguePolicies")
            .field("catalogue", &self.catalogue)
            .field("trusted", &self.trusted)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::publish::publish;
    use super::super::signed::{OwnerKey, sign};
    use super::*;
    use crate::clock::{ManualClock, UnixMillis};
    use crate::keys::CatalogueError;
    use crate::keys::testing::MemoryCatalogue;

    struct Bench {
        key: OwnerKey,
        trusted: TrustedOwners,
        catalogue: Arc<MemoryCatalogue>,
        clock: Arc<ManualClock>,
        source: CataloguePolicies,
    }

    impl Bench {
        fn new() -> Self {
            let key = OwnerKey::generate().unwrap();
            let trusted = TrustedOwners::everywhere(vec![key.thumbprint()]).unwrap();
            let catalogue = Arc::new(MemoryCatalogue::new());
            let clock = Arc::new(ManualClock::at(UnixMillis(0)));
            let source = CataloguePolicies::new(catalogue.clone(), trusted.clone(), clock.clone());
            Self {
                key,
                trusted,
                catalogue,
                clock,
                source,
            }
        }

        async fn publish(&self, version: u64) {
            let yaml = format!("dataset: d\nversion: {version}\ncolumns: [{{ path: a, domain: x }}]\n");
            let jws = sign(yaml.as_bytes(), &self.key).unwrap();
            publish(self.catalogue.as_ref(), &jws, &self.trusted).await.unwrap();
        }

        async fn version(&self) -> Result<u64, PolicySourceError> {
            self.source.policy("d").await.map(|policy| policy.policy().version)
        }
    }

    #[tokio::test]
    async fn a_policy_that_needs_a_lease_counts_while_one_holds_and_then_stops_even_in_an_outage() {
        let bench = Bench::new();
        let yaml = b"dataset: d\nversion: 1\nlease: required\ncolumns: [{ path: a, domain: x }]\n";
        let jws = sign(yaml, &bench.key).unwrap();
        publish(bench.catalogue.as_ref(), &jws, &bench.trusted).await.unwrap();
        let refused = async |what: &str| match bench.version().await {
            Err(error @ PolicySourceError::Untrusted { .. }) => assert!(error.to_string().contains(what), "{error}"),
            other => panic!("{other:?}"),
        };
        refused("the catalogue has none of version 1").await;
        let looking = CataloguePolicies::new(bench.catalogue.clone(), bench.trusted.clone(), bench.clock.clone());
        assert!(
            looking.without_leases().policy("d").await.is_ok(),
            "to look at it, none is needed"
        );

        let policy = super::super::signed::verify(&jws, &bench.trusted).unwrap();
        let hour = Duration::from_secs(3_600);
        let lease = async || {
            let jws = lease::sign(&policy, bench.clock.now(), hour, &bench.key).unwrap();
            let catalogue = bench.catalogue.as_ref();
            lease::publish(catalogue, &jws, &policy, &bench.trusted, bench.clock.now())
                .await
                .unwrap();
        };
        lease().await;
        assert_eq!(bench.version().await, Ok(1));
        // The next one is found before this one ends.
        bench.clock.advance(hour / 2);
        lease().await;
        assert_eq!(bench.version().await, Ok(1));
        bench.clock.advance(hour * 3 / 4);
        assert_eq!(bench.version().await, Ok(1));
        // An outage ends nothing before its time, and prolongs nothing.
        bench.catalogue.fail_with(Some(CatalogueError::Unavailable {
            reason: "away".to_owned(),
        }));
        assert_eq!(bench.version().await, Ok(1));
        bench.clock.advance(hour / 4);
        refused("its lease ended, and another cannot be looked for").await;
        bench.catalogue.fail_with(None);
        refused("the lease ended at 1970-01-01T01:30:00Z").await;
        lease().await;
        assert_eq!(bench.version().await, Ok(1));
    }

    #[tokio::test]
    async fn a_newer_version_counts_after_the_refresh_and_not_before() {
        let bench = Bench::new();
        assert!(matches!(bench.version().await, Err(PolicySourceError::Missing { .. })));
        bench.publish(1).await;
        assert_eq!(bench.version().await, Ok(1));
        bench.publish(2).await;
        assert_eq!(bench.version().await, Ok(1));
        bench.clock.advance(DEFAULT_REFRESH);
        assert_eq!(bench.version().await, Ok(2));
    }

    #[tokio::test]
    async fn removing_the_newest_version_brings_no_older_one_back() {
        let bench = Bench::new();
        bench.publish(1).await;
        bench.publish(2).await;
        assert_eq!(bench.version().await, Ok(2));
        bench.catalogue.remove("policies/d/0000000002.jws");
        bench.clock.advance(DEFAULT_REFRESH);
        assert!(matches!(
            bench.version().await,
            Err(PolicySourceError::Untrusted { .. })
        ));
        bench.catalogue.remove("policies/d/0000000001.jws");
        assert!(
            matches!(bench.version().await, Err(PolicySourceError::Untrusted { .. })),
            "nor none"
        );
    }

    #[tokio::test]
    async fn an_outage_of_the_catalogue_is_bridged_for_a_while() {
        let bench = Bench::new();
        bench.publish(1).await;
        assert_eq!(bench.version().await, Ok(1));
        bench.catalogue.fail_with(Some(CatalogueError::Unavailable {
            reason: "test".to_owned(),
        }));
        bench.clock.advance(DEFAULT_MAX_STALE);
        assert_eq!(bench.version().await, Ok(1));
        bench.clock.advance(DEFAULT_REFRESH);
        assert!(matches!(
            bench.version().await,
            Err(PolicySourceError::Unavailable { .. })
        ));
        bench.catalogue.fail_with(None);
        assert_eq!(bench.version().await, Ok(1));
    }

    #[tokio::test]
    async fn a_newest_policy_that_this_process_may_not_read_is_no_forgery_and_the_one_in_use_stays_for_a_while() {
        let bench = Bench::new();
        bench.publish(1).await;
        let refused = || CatalogueError::NotPermitted {
            path: "policies/d/0000000002.jws".to_owned(),
        };
        let error = PolicySourceError::NotPermitted {
            what: "policy of dataset d".to_owned(),
            path: "policies/d/0000000002.jws".to_owned(),
        };
        bench.catalogue.fail_with(Some(refused()));
        assert_eq!(bench.version().await, Err(error.clone()), "nothing is in use yet");
        assert_eq!(bench.source.overdue("d"), None);
        bench.catalogue.fail_with(None);
        assert_eq!(bench.version().await, Ok(1));
        bench.catalogue.fail_with(Some(refused()));
        bench.clock.advance(DEFAULT_MAX_STALE);
        assert_eq!(bench.version().await, Ok(1));
        assert_eq!(bench.source.overdue("d"), Some(error.clone()), "and why is known");
        bench.clock.advance(DEFAULT_REFRESH);
        assert_eq!(bench.version().await, Err(error));
        bench.catalogue.fail_with(None);
        assert_eq!(bench.version().await, Ok(1));
        assert_eq!(bench.source.overdue("d"), None);
    }

    #[tokio::test]
    async fn a_name_that_is_no_dataset_is_not_looked_for() {
        let bench = Bench::new();
        for name in ["../keys", "", "a/b", ".."] {
            assert!(
                matches!(bench.source.policy(name).await, Err(PolicySourceError::Missing { .. })),
                "{name}"
            );
        }
    }
}
