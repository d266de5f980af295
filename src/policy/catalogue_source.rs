//! The newest verified policies of a catalogue, read again now and then, and never an older one than was seen.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::asked::{Asked, Failures, Kept};
use super::highest::Highest;
use super::lease::{self, Lease, LeaseError};
use super::model::Lease::Required;
use super::parse::check_name;
use super::publish::{PublishError, domain_with_key, newest, newest_domain};
use super::signed::{TrustError, VerifiedDomain, VerifiedPolicy};
use super::source::{PolicySource, PolicySourceError};
use super::trust::TrustedOwners;
use crate::clock::{Clock, NeverBack};
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
/// [`max_stale`](DEFAULT_MAX_STALE) more. What the catalogue does answer always counts: a newest version that is not believed,
/// is older than one seen, or is gone, is an error.
///
/// One caller asks for a dataset or domain while the others wait for what comes of it, and what failed is not asked for again
/// for a second. Nobody waits for another dataset.
pub struct CataloguePolicies {
    catalogue: Arc<dyn Catalogue>,
    trusted: TrustedOwners,
    clock: Arc<dyn Clock>,
    /// For the ends of leases.
    time: NeverBack,
    refresh: Duration,
    max_stale: Duration,
    highest: Highest,
    // Many waiting batches ask once, and one dataset that takes long holds up no other.
    policies: Asked<String, VerifiedPolicy>,
    domains: Asked<(String, Option<KeyId>), VerifiedDomain>,
    /// The last lease of each dataset; `None`: leases are not asked for.
    leases: Option<std::sync::Mutex<HashMap<String, Held>>>,
    /// Why the policy that is kept of a dataset could not be compared with the catalogue's at the last look.
    overdue: std::sync::Mutex<HashMap<String, PolicySourceError>>,
}

/// A lease, and the hash of the policy that it is for.
type Held = ([u8; 32], Lease);

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
            policies: Asked::default(),
            domains: Asked::default(),
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

    /// What was read so shortly ago that the catalogue is not asked.
    fn fresh<T>(&self, kept: Option<Kept<T>>) -> Option<Arc<T>> {
        let kept = kept.filter(|kept| self.clock.steady().since(kept.read) < self.refresh);
        kept.map(|kept| kept.document)
    }

    /// The document to answer with: a new one, or after a failure the one that is kept, while it counts.
    fn settle<K: Eq + Hash, T>(
        &self,
        answer: Result<Arc<T>, PolicySourceError>,
        name: K,
        asked: &Asked<K, T>,
    ) -> Result<Arc<T>, PolicySourceError> {
        let now = self.clock.steady();
        match answer {
            Ok(document) => {
                asked.keep(name, now, &document);
                Ok(document)
            }
            Err(error) => {
                let still_counts = |kept: &Kept<T>| now.since(kept.read) < self.refresh + self.max_stale;
                match asked.kept(&name).filter(still_counts) {
                    Some(kept) if error.leaves_the_policy_in_use() => Ok(kept.document),
                    _ => Err(error),
                }
            }
        }
    }

    /// The newest policy, and whether the catalogue was asked for it just now.
    async fn newest_policy(
        &self,
        dataset: &str,
        failures: &mut Failures,
    ) -> Result<(Arc<VerifiedPolicy>, bool), PolicySourceError> {
        if let Some(policy) = self.fresh(self.policies.kept(dataset)) {
            return Ok((policy, false));
        }
        let remembered = failures.document.recent(self.clock.steady());
        let is_asked = remembered.is_none();
        let answer = match remembered {
            Some(error) => Err(error),
            None => {
                let answer = self.ask_for_policy(dataset).await;
                failures.document.note(&answer, self.clock.steady());
                answer
            }
        };
        let failed = answer.as_ref().err().cloned();
        let settled = self.settle(answer, dataset.to_owned(), &self.policies);
        {
            let mut overdue = self.overdue.lock().unwrap_or_else(PoisonError::into_inner);
            match (failed, settled.is_ok()) {
                (Some(error), true) => overdue.insert(dataset.to_owned(), error),
                _ => overdue.remove(dataset),
            };
        }
        settled.map(|policy| (policy, is_asked))
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
    async fn check_lease(
        &self,
        policy: &VerifiedPolicy,
        look: bool,
        failures: &mut Failures,
    ) -> Result<(), PolicySourceError> {
        if !look {
            if self.holds(policy) {
                return Ok(());
            }
            if let Some(error) = failures.lease.recent(self.clock.steady()) {
                return Err(error);
            }
        }
        let checked = self.look_for_lease(policy).await;
        failures.lease.note(&checked, self.clock.steady());
        checked
    }

    async fn look_for_lease(&self, policy: &VerifiedPolicy) -> Result<(), PolicySourceError> {
        let document = policy.policy();
        let Some(leases) = self.leases.as_ref().filter(|_| document.lease == Required) else {
            return Ok(());
        };
        let held = self.held(leases, policy);
        let holds = |held: &Option<Lease>| {
            held.as_ref()
                .is_some_and(|lease| self.time.now(&*self.clock) < lease.expires)
        };
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
        if let Some(policy) = self
            .fresh(self.policies.kept(dataset))
            .filter(|policy| self.holds(policy))
        {
            return Ok(policy);
        }
        let question = self.policies.question(dataset.to_owned(), self.clock.steady());
        let mut failures = question.lock().await;
        let (policy, is_asked) = self.newest_policy(dataset, &mut failures).await?;
        self.check_lease(&policy, is_asked, &mut failures).await?;
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
        if let Some(domain) = self.fresh(self.domains.kept(&id)) {
            return Ok(domain);
        }
        let question = self.domains.question(id.clone(), self.clock.steady());
        let mut failures = question.lock().await;
        if let Some(domain) = self.fresh(self.domains.kept(&id)) {
            return Ok(domain);
        }
        let answer = match failures.document.recent(self.clock.steady()) {
            Some(error) => Err(error),
            None => {
                let answer = self.ask_for_domain(name, key).await;
                failures.document.note(&answer, self.clock.steady());
                answer
            }
        };
        self.settle(answer, id, &self.domains)
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
#[path = "catalogue_source_tests.rs"]
mod tests;
