//! The highest version seen of each policy and domain, so that an old one cannot be replayed.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::signed::{TrustError, VerifiedDomain, VerifiedPolicy};
use crate::jose::Thumbprint;

/// Remembers the highest version of each dataset and domain that was accepted. Lives as long as its process;
/// [`snapshot`](Self::snapshot) and [`restore`](Self::restore) carry it over to the next.
#[derive(Debug, Default)]
pub struct Highest(Mutex<BTreeMap<String, Seen>>);

/// What was seen of one dataset (by its name) or domain (as `domain:NAME`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its version.
    pub version: u64,
    /// SHA-256 of its YAML.
    pub sha256: [u8; 32],
    /// Whose signature it bore; `None` if nobody's.
    pub owner: Option<Thumbprint>,
}

impl Highest {
    /// Accepts `policy` if it is as new as the newest seen of its dataset.
    ///
    /// # Errors
    /// [`TrustError::OlderThanSeen`], or [`TrustError::TwoOfOneVersion`] if another policy of that version
    /// was seen before.
    pub fn accept(&self, policy: &VerifiedPolicy) -> Result<(), TrustError> {
        let (owner, policy) = (policy.owner(), policy.policy());
        self.see(
            &policy.dataset,
            Seen {
                version: policy.version,
                sha256: policy.sha256,
                owner,
            },
        )
    }

    /// Accepts `domain` if it is as new as the newest seen of its name.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn accept_domain(&self, domain: &VerifiedDomain) -> Result<(), TrustError> {
        let (owner, document) = (domain.owner(), domain.document());
        let name = format!("domain:{}", document.domain);
        self.see(
            &name,
            Seen {
                version: document.version,
                sha256: document.sha256,
                owner,
            },
        )
    }

    /// Everything seen, by name, to be kept until the next start.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<String, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The memory of an earlier process.
    #[must_use]
    pub fn restore(seen: BTreeMap<String, Seen>) -> Self {
        Self(Mutex::new(seen))
    }

    fn see(&self, name: &str, new: Seen) -> Result<(), TrustError> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(highest) = seen.get(name) {
            if new.version < highest.version {
                let (version, highest) = (new.version, highest.version);
                return Err(TrustError::OlderThanSeen {
                    name: name.to_owned(),
                    version,
                    highest,
                });
            }
            if new.version == highest.version && new.sha256 != highest.sha256 {
                return Err(TrustError::TwoOfOneVersion {
                    name: name.to_owned(),
                    version: new.version,
                });
            }
        }
        seen.insert(name.to_owned(), new);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(version: u64, more: &str) -> VerifiedPolicy {
        let yaml = format!("dataset: d\nversion: {version}\ncolumns: [{{ path: a, domain: x }}]\n{more}");
        VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap()
    }

    #[test]
    fn a_version_below_the_highest_seen_is_refused() {
        let highest = Highest::default();
        assert_eq!(highest.accept(&policy(2, "")), Ok(()));
        assert_eq!(highest.accept(&policy(5, "")), Ok(()));
        assert_eq!(highest.accept(&policy(5, "")), Ok(()));
        let older = TrustError::OlderThanSeen {
            name: "d".to_owned(),
            version: 4,
            highest: 5,
        };
        assert_eq!(highest.accept(&policy(4, "")), Err(older.clone()));
        let next_start = Highest::restore(highest.snapshot());
        assert_eq!(next_start.accept(&policy(4, "")), Err(older));
    }

    #[test]
    fn two_policies_of_one_version_are_refused() {
        let highest = Highest::default();
        assert_eq!(highest.accept(&policy(2, "")), Ok(()));
        let two = TrustError::TwoOfOneVersion {
            name: "d".to_owned(),
            version: 2,
        };
        assert_eq!(highest.accept(&policy(2, "# edited")), Err(two));
    }
}
