//! Leases: short-lived signed statements that a version of a policy still counts.
//!
//! Where a policy says `lease: required`, it counts only while its owner, or one of its `lease_keys`, goes on saying so.
//! Whoever brings an old version back, or holds the newest one away from a reader, has a day at most: no lease is longer
//! than [`MAX_LEASE`]. A lease names the version and its hash, so one of an old version says nothing about another.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::model::Policy;
use super::publish::newest_version;
use super::signed::VerifiedPolicy;
use super::trust::TrustedOwners;
use crate::clock::UnixMillis;
use crate::jose::{JwsError, JwsType, PrivateJwk, SelfSigned, Thumbprint, jws};
use crate::keys::{Catalogue, CatalogueError, Put};

/// The longest lease: from `iat` to `exp`.
pub const MAX_LEASE: Duration = Duration::from_secs(24 * 3_600);
/// How far in the future a lease may begin: the clocks of its signer and its reader differ.
pub const MAX_SKEW: Duration = Duration::from_secs(300);
/// How many leases of one version are looked at, the longest first. Whoever can write to the catalogue can put what does
/// not verify before those that do, and so end access, but not make a reader work for it without end.
const MAX_LOOKED_AT: usize = 8;

/// What is signed, as JSON. Times are seconds since 1970-01-01T00:00:00Z (RFC 7519, `NumericDate`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    dataset: String,
    version: u64,
    sha256: String,
    iat: u64,
    exp: u64,
}

/// A lease that was verified: for one version of one policy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// The first moment at which it does not hold any more.
    pub expires: UnixMillis,
    /// Who signed it.
    pub signer: Thumbprint,
}

/// Why a lease does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// No JWS of ours, or one that was changed.
    #[error(transparent)]
    Jws(#[from] JwsError),
    /// Signed, but by somebody who may not.
    #[error("signed by key {signer}, which is neither a pinned owner of {dataset} nor one of the policy's lease_keys")]
    NotALeaseKey {
        /// The dataset.
        dataset: String,
        /// Thumbprint of the key.
        signer: Thumbprint,
    },
    /// Not the claims of a lease.
    #[error("the claims of the lease are malformed")]
    Malformed,
    /// A lease of another dataset or version.
    #[error("a lease of another policy: version {version} of {dataset}")]
    OtherPolicy {
        /// What it names.
        dataset: String,
        /// What it names.
        version: u64,
    },
    /// A lease of this version with another hash.
    #[error("a lease of another document of version {version}")]
    OtherContent {
        /// The version.
        version: u64,
    },
    /// A lease for a version that a newer one has taken the place of.
    #[error("no lease for version {version} of {dataset}: version {newest} is there")]
    NotNewest {
        /// The dataset.
        dataset: String,
        /// The version of the lease.
        version: u64,
        /// The highest that is there.
        newest: u64,
    },
    /// Longer than [`MAX_LEASE`], or over before it begins.
    #[error("a lease of {seconds} seconds, which is not between 1 second and 24 hours")]
    BadSpan {
        /// From `iat` to `exp`.
        seconds: i128,
    },
    /// Over.
    #[error("the lease ended at {at}")]
    Expired {
        /// When.
        at: UnixMillis,
    },
    /// Not begun: a clock is wrong.
    #[error("the lease begins at {at}, in the future")]
    NotYet {
        /// When.
        at: UnixMillis,
    },
    /// The catalogue has none of this version.
    #[error("the policy needs a lease, and the catalogue has none of version {version} of {dataset}")]
    None {
        /// The dataset.
        dataset: String,
        /// The newest version.
        version: u64,
    },
    /// The catalogue did not answer.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

impl LeaseError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Jws(_) | Self::Malformed => {
                "find out who put it there; `sealflow policy lease` signs leases".to_owned()
            }
            Self::NotALeaseKey { .. } => {
                "sign with the owner's key, or list the key's thumbprint under lease_keys in the policy".to_owned()
            }
            Self::NotNewest { .. } => "sign one for the newest version: an older one must not count again".to_owned(),
            Self::BadSpan { .. } => "sign for 24 hours or less".to_owned(),
            Self::NotYet { .. } => "set the clocks of this machine and of the signer".to_owned(),
            Self::OtherPolicy { .. } | Self::OtherContent { .. } | Self::Expired { .. } | Self::None { .. } => {
                "the owner signs a new one: `sealflow policy lease DATASET --key owner.key`, more often than it ends"
                    .to_owned()
            }
            Self::Catalogue(_) => "check that the catalogue exists and can be read and written".to_owned(),
        }
    }
}

/// Signs a lease for a policy, from `now` for `span`.
///
/// # Errors
/// [`LeaseError::BadSpan`] beyond [`MAX_LEASE`] or below a second.
pub fn sign(policy: &VerifiedPolicy, now: UnixMillis, span: Duration, key: &PrivateJwk) -> Result<String, LeaseError> {
    let policy = policy.policy();
    let iat = now.0 / 1_000;
    let claims = Claims {
        dataset: policy.dataset.clone(),
        version: policy.version,
        sha256: hex(&policy.sha256),
        iat,
        exp: iat.saturating_add(span.as_secs()),
    };
    check_span(&claims)?;
    let payload = serde_json::to_vec(&claims).map_err(|_| LeaseError::Malformed)?;
    Ok(jws::sign(JwsType::Lease, &payload, key)?)
}

/// Believes a lease for this policy at `now`.
///
/// # Errors
/// [`LeaseError`]
pub fn verify(
    jws: &str,
    policy: &VerifiedPolicy,
    trusted: &TrustedOwners,
    now: UnixMillis,
) -> Result<Lease, LeaseError> {
    let signed = SelfSigned::verify(jws, JwsType::Lease)?;
    let signer = signed.signer();
    let policy = policy.policy();
    if !trusted.is_owner(&policy.dataset, &signer) && !policy.lease_keys.contains(&signer) {
        return Err(LeaseError::NotALeaseKey {
            dataset: policy.dataset.clone(),
            signer,
        });
    }
    let claims: Claims = serde_json::from_slice(&signed.into_payload()).map_err(|_| LeaseError::Malformed)?;
    if claims.dataset != policy.dataset || claims.version != policy.version {
        return Err(LeaseError::OtherPolicy {
            dataset: claims.dataset,
            version: claims.version,
        });
    }
    if claims.sha256 != hex(&policy.sha256) {
        return Err(LeaseError::OtherContent {
            version: claims.version,
        });
    }
    check_span(&claims)?;
    let moment = |seconds: u64| UnixMillis(seconds.saturating_mul(1_000));
    let (begins, expires) = (moment(claims.iat), moment(claims.exp));
    if now >= expires {
        return Err(LeaseError::Expired { at: expires });
    }
    if begins > now.plus(MAX_SKEW) {
        return Err(LeaseError::NotYet { at: begins });
    }
    Ok(Lease { expires, signer })
}

fn check_span(claims: &Claims) -> Result<(), LeaseError> {
    let seconds = i128::from(claims.exp) - i128::from(claims.iat);
    if (1..=i128::from(MAX_LEASE.as_secs())).contains(&seconds) {
        return Ok(());
    }
    Err(LeaseError::BadSpan { seconds })
}

/// Puts a signed lease into the catalogue, after verifying it. Its policy may follow, but no newer version may be there:
/// whoever hid that one later could show the old one under this lease.
///
/// # Errors
/// [`LeaseError`]; nothing is written then.
pub async fn publish(
    catalogue: &dyn Catalogue,
    jws: &str,
    policy: &VerifiedPolicy,
    trusted: &TrustedOwners,
    now: UnixMillis,
) -> Result<Lease, LeaseError> {
    let lease = verify(jws, policy, trusted, now)?;
    let Policy { dataset, version, .. } = policy.policy();
    if let Some(newest) = newest_version(catalogue, dataset)
        .await?
        .filter(|newest| newest > version)
    {
        return Err(LeaseError::NotNewest {
            dataset: dataset.clone(),
            version: *version,
            newest,
        });
    }
    let folder = folder(policy);
    // Two leases that end in the same second say the same.
    let path = format!("{folder}/{:012}.jws", lease.expires.0 / 1_000);
    match catalogue.put_if_absent(&path, jws.as_bytes()).await? {
        Put::Created => Ok(lease),
        Put::Exists => {
            // Somebody may have put what does not verify at the very place.
            let there = catalogue.get(&path).await?.unwrap_or_default();
            verify(&String::from_utf8_lossy(&there), policy, trusted, now)
        }
    }
}

/// The lease of this policy that holds longest from `now`.
///
/// # Errors
/// [`LeaseError`] of the one that should hold longest, if none does.
pub async fn newest(
    catalogue: &dyn Catalogue,
    policy: &VerifiedPolicy,
    trusted: &TrustedOwners,
    now: UnixMillis,
) -> Result<Lease, LeaseError> {
    let folder = folder(policy);
    let mut paths = catalogue.list(&folder).await?;
    paths.retain(|path| is_lease(path, &folder));
    // Names have one length, so their order is that of the seconds at which the leases end.
    paths.sort_unstable();
    let mut refused = None;
    for path in paths.iter().rev().take(MAX_LOOKED_AT) {
        let Some(bytes) = catalogue.get(path).await? else {
            continue;
        };
        match verify(&String::from_utf8_lossy(&bytes), policy, trusted, now) {
            Ok(lease) => return Ok(lease),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| LeaseError::None {
        dataset: policy.policy().dataset.clone(),
        version: policy.policy().version,
    }))
}

/// `leases/<dataset>/<version, 10 digits>`; in it `<exp, 12 digits>.jws`.
fn folder(policy: &VerifiedPolicy) -> String {
    let policy = policy.policy();
    format!("leases/{}/{:010}", policy.dataset, policy.version)
}

fn is_lease(path: &str, folder: &str) -> bool {
    let name = path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
    let digits = name.and_then(|name| name.strip_suffix(".jws"));
    digits.is_some_and(|digits| digits.len() == 12 && digits.bytes().all(|b| b.is_ascii_digit()))
}

fn hex(hash: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in hash {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::signed;
    use super::*;
    use crate::keys::testing::MemoryCatalogue;

    const HOUR: Duration = Duration::from_secs(3_600);
    const NOW: UnixMillis = UnixMillis(1_767_225_600_000);

    struct Bench {
        owner: PrivateJwk,
        lease_key: PrivateJwk,
        trusted: TrustedOwners,
        policy: VerifiedPolicy,
    }

    impl Bench {
        fn new() -> Self {
            let (owner, lease_key) = (PrivateJwk::generate().unwrap(), PrivateJwk::generate().unwrap());
            let trusted = TrustedOwners::everywhere(vec![owner.thumbprint()]).unwrap();
            let policy = policy(&owner, &lease_key, 1, &trusted);
            Self {
                owner,
                lease_key,
                trusted,
                policy,
            }
        }

        fn verify(&self, jws: &str, now: UnixMillis) -> Result<Lease, LeaseError> {
            verify(jws, &self.policy, &self.trusted, now)
        }
    }

    fn policy(owner: &PrivateJwk, lease_key: &PrivateJwk, version: u64, trusted: &TrustedOwners) -> VerifiedPolicy {
        let yaml = format!(
            "dataset: d\nversion: {version}\nlease: required\nlease_keys: [\"{}\"]\ncolumns: [{{ path: a, domain: x }}]\n",
            lease_key.thumbprint()
        );
        signed::verify(&signed::sign(yaml.as_bytes(), owner).unwrap(), trusted).unwrap()
    }

    #[test]
    fn a_lease_of_owner_or_lease_key_holds_to_its_end_and_not_a_moment_longer() {
        let bench = Bench::new();
        for key in [&bench.owner, &bench.lease_key] {
            let jws = sign(&bench.policy, NOW, HOUR, key).unwrap();
            let expires = NOW.plus(HOUR);
            let lease = Lease {
                expires,
                signer: key.thumbprint(),
            };
            assert_eq!(bench.verify(&jws, NOW), Ok(lease.clone()));
            assert_eq!(bench.verify(&jws, UnixMillis(expires.0 - 1)), Ok(lease));
            assert_eq!(bench.verify(&jws, expires), Err(LeaseError::Expired { at: expires }));
            let early = UnixMillis(NOW.0 - 300_000);
            assert!(bench.verify(&jws, early).is_ok());
            assert_eq!(
                bench.verify(&jws, UnixMillis(early.0 - 1)),
                Err(LeaseError::NotYet { at: NOW })
            );
        }
    }

    #[test]
    fn nobody_else_leases_nothing_else_is_leased_and_none_is_longer_than_a_day() {
        let bench = Bench::new();
        let stranger = PrivateJwk::generate().unwrap();
        let jws = sign(&bench.policy, NOW, HOUR, &stranger).unwrap();
        assert!(matches!(bench.verify(&jws, NOW), Err(LeaseError::NotALeaseKey { .. })));
        let next = policy(&bench.owner, &bench.lease_key, 2, &bench.trusted);
        let jws = sign(&next, NOW, HOUR, &bench.owner).unwrap();
        assert!(matches!(
            bench.verify(&jws, NOW),
            Err(LeaseError::OtherPolicy { version: 2, .. })
        ));
        // The same version with other content: signed twice by its owner.
        let other = policy(&bench.owner, &stranger, 1, &bench.trusted);
        let jws = sign(&other, NOW, HOUR, &bench.owner).unwrap();
        assert!(matches!(
            bench.verify(&jws, NOW),
            Err(LeaseError::OtherContent { version: 1 })
        ));
        for span in [MAX_LEASE + Duration::from_secs(1), Duration::ZERO] {
            assert!(matches!(
                sign(&bench.policy, NOW, span, &bench.owner),
                Err(LeaseError::BadSpan { .. })
            ));
        }
        // A policy is no lease, and a lease no policy.
        let jws = sign(&bench.policy, NOW, HOUR, &bench.owner).unwrap();
        assert!(matches!(
            bench.verify(bench.policy.jws().unwrap(), NOW),
            Err(LeaseError::Jws(_))
        ));
        assert!(signed::verify(&jws, &bench.trusted).is_err());
    }

    #[test]
    fn claims_that_a_lease_key_signed_by_other_means_are_checked_too() {
        let bench = Bench::new();
        let hash = hex(&bench.policy.policy().sha256);
        let of = |claims: String| {
            let jws = jws::sign(JwsType::Lease, claims.as_bytes(), &bench.lease_key).unwrap();
            bench.verify(&jws, NOW)
        };
        let claims =
            |more: &str| format!("{{\"dataset\":\"d\",\"version\":1,\"sha256\":\"{hash}\",\"iat\":1767225600{more}}}");
        assert!(of(claims(",\"exp\":1767229200")).is_ok());
        assert_eq!(
            of(claims(",\"exp\":1767312001")),
            Err(LeaseError::BadSpan { seconds: 86_401 })
        );
        assert_eq!(
            of(claims(",\"exp\":1")),
            Err(LeaseError::BadSpan {
                seconds: -1_767_225_599
            })
        );
        assert!(matches!(
            of(claims(",\"exp\":18446744073709551615")),
            Err(LeaseError::BadSpan { .. })
        ));
        for bad in [
            "",
            ",\"exp\":-1",
            ",\"exp\":1.5",
            ",\"exp\":1,\"aud\":\"x\"",
            ",\"exp\":1,\"exp\":2",
        ] {
            assert_eq!(of(claims(bad)), Err(LeaseError::Malformed), "{bad}");
        }
    }

    #[tokio::test]
    async fn the_lease_that_holds_longest_counts_and_what_does_not_verify_holds_it_up_no_further() {
        let bench = Bench::new();
        let catalogue = MemoryCatalogue::new();
        let newest = async |now| newest(&catalogue, &bench.policy, &bench.trusted, now).await;
        assert!(matches!(newest(NOW).await, Err(LeaseError::None { version: 1, .. })));
        for hours in [1, 3, 2] {
            let jws = sign(&bench.policy, NOW, HOUR * hours, &bench.lease_key).unwrap();
            publish(&catalogue, &jws, &bench.policy, &bench.trusted, NOW)
                .await
                .unwrap();
            publish(&catalogue, &jws, &bench.policy, &bench.trusted, NOW)
                .await
                .unwrap();
        }
        assert_eq!(newest(NOW).await.unwrap().expires, NOW.plus(HOUR * 3));
        for n in 0..7 {
            let path = format!("leases/d/0000000001/99999999999{n}.jws");
            catalogue.put_if_absent(&path, b"garbage").await.unwrap();
        }
        assert_eq!(newest(NOW).await.unwrap().expires, NOW.plus(HOUR * 3));
        // Of a version that is not the newest, believed or not, no more are put there.
        let path = "policies/d/0000000002.jws";
        catalogue.put_if_absent(path, b"garbage").await.unwrap();
        let jws = sign(&bench.policy, NOW, HOUR * 4, &bench.lease_key).unwrap();
        let late = publish(&catalogue, &jws, &bench.policy, &bench.trusted, NOW).await;
        assert!(
            matches!(
                late,
                Err(LeaseError::NotNewest {
                    version: 1,
                    newest: 2,
                    ..
                })
            ),
            "{late:?}"
        );
        assert_eq!(newest(NOW).await.unwrap().expires, NOW.plus(HOUR * 3));
        assert!(newest(NOW.plus(HOUR * 3)).await.is_err());
    }
}
