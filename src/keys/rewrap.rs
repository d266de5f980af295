//! Moves data keys to another KMS key: each newest envelope is wrapped anew inside the KMS and put beside the old ones.
//! Nothing is changed or removed, so that a run can stop anywhere and be repeated, and two runs do not disturb each other.

use std::collections::BTreeMap;

use super::catalogue::{Catalogue, CatalogueError, Put};
use super::envelope::Envelope;
use super::opening::{MAX_CANDIDATES, check_against, governing};
use super::service::{EncryptionContext, KeyAdmin, KeyServiceError};
use super::{EnvelopeError, envelope_path};
use crate::policy::{PolicySource, PolicySourceError};
use crate::seal::{DATA_KEY_LEN, KeyId, OpeningKey};

/// How often a place that somebody else has just taken is tried one further.
const MAX_RACES: u32 = 16;

/// The envelopes of one data key in the catalogue, newest first, with their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The data key.
    pub key: KeyId,
    /// Number and envelope; never empty.
    pub envelopes: Vec<(u32, Envelope)>,
}

impl Wrapped {
    /// The one that readers try first.
    #[must_use]
    pub fn newest(&self) -> Option<&Envelope> {
        self.envelopes.first().map(|(_, envelope)| envelope)
    }
}

/// Everything in a catalogue's `keys/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The data keys, by id.
    pub keys: Vec<Wrapped>,
    /// Paths of objects that are no envelope of a version known here, or lie at another key's place.
    pub unreadable: Vec<String>,
}

/// Reads all envelopes of the catalogue.
///
/// # Errors
/// If the catalogue does not answer; envelopes that cannot be read are listed, not errors.
pub async fn inventory(catalogue: &dyn Catalogue) -> Result<Inventory, CatalogueError> {
    let mut keys: BTreeMap<String, Wrapped> = BTreeMap::new();
    let mut unreadable = Vec::new();
    for path in catalogue.list("keys").await? {
        let Some(bytes) = catalogue.get(&path).await? else {
            continue;
        };
        let number = path.rsplit('/').next().and_then(|n| n.parse::<u32>().ok());
        match (number, Envelope::from_bytes(&bytes)) {
            (Some(n), Ok(envelope)) if envelope_path(envelope.key_id(), n) == path => {
                let key = envelope.key_id();
                let envelopes = Vec::new();
                let known = keys.entry(key.to_string()).or_insert(Wrapped { key, envelopes });
                known.envelopes.push((n, envelope));
            }
            _ => unreadable.push(path),
        }
    }
    let mut keys: Vec<_> = keys.into_values().collect();
    for key in &mut keys {
        key.envelopes.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
    }
    Ok(Inventory { keys, unreadable })
}

/// What becomes of one data key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Its newest envelope is under the KMS key that the policy names now.
    Current,
    /// It is to be wrapped anew.
    Move {
        /// The ARN that its newest envelope names.
        from: String,
        /// The ARN that the policy names now.
        to: String,
    },
    /// The newest policy does not open it any more, so it is left alone.
    NotInPolicy,
    /// The policy opens it under `previous:` only, and names no KMS key that it could be moved to.
    Retired,
}

/// What the newest policy says about a data key.
///
/// # Errors
/// If the policy cannot be fetched or believed.
pub async fn plan(policies: &dyn PolicySource, wrapped: &Wrapped) -> Result<Step, PolicySourceError> {
    let Some(envelope) = wrapped.newest() else {
        return Ok(Step::NotInPolicy);
    };
    let policy = policies.policy(governing(&envelope.dataset)).await?;
    if check_against(envelope, policy.policy()).is_err() {
        return Ok(Step::NotInPolicy);
    }
    let Some(current) = policy.policy().key_by_name(&envelope.key_name) else {
        return Ok(Step::Retired);
    };
    if current.arn == envelope.arn {
        return Ok(Step::Current);
    }
    Ok(Step::Move {
        from: envelope.arn.clone(),
        to: current.arn.clone(),
    })
}

/// How a data key was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// A new envelope of that number is in the catalogue.
    Written(u32),
    /// Somebody else had done it meanwhile.
    Already,
}

/// Why a data key was not moved.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RewrapError {
    /// The key service did not do it.
    #[error(transparent)]
    Service(#[from] KeyServiceError),
    /// The catalogue did not take it.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The envelope would break its format.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// No envelope of the catalogue holds the data key that it names.
    #[error("no envelope of data key {key} holds that key")]
    WrongKey {
        /// The data key.
        key: KeyId,
    },
    /// Others go on to write envelopes of this data key.
    #[error("others are writing envelopes of data key {key}")]
    Contended {
        /// The data key.
        key: KeyId,
    },
}

/// Wraps the data key anew under `to` and puts the envelope into the catalogue. With `verify` the new envelope is
/// unwrapped once before it is written, which needs the right to decrypt and brings the data key into this process for
/// that moment; a newest envelope that was forged is passed over then, and the one before it taken.
///
/// # Errors
/// [`RewrapError`]; nothing is written then.
pub async fn rewrap(
    service: &dyn KeyAdmin,
    catalogue: &dyn Catalogue,
    wrapped: &Wrapped,
    to: &str,
    verify: bool,
) -> Result<Moved, RewrapError> {
    let mut refused = RewrapError::WrongKey { key: wrapped.key };
    for (_, envelope) in wrapped.envelopes.iter().take(MAX_CANDIDATES) {
        match rewrapped(service, envelope, to, verify).await {
            Ok(envelope) => return put(catalogue, wrapped, &envelope).await,
            // Only what speaks against these bytes makes the older ones worth a look.
            Err(error @ (RewrapError::WrongKey { .. } | RewrapError::Service(KeyServiceError::Refused { .. }))) => {
                refused = error;
            }
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

async fn rewrapped(service: &dyn KeyAdmin, old: &Envelope, to: &str, verify: bool) -> Result<Envelope, RewrapError> {
    let context = EncryptionContext::for_data_key(&old.dataset, &old.key_name, &old.acl);
    let mut envelope = old.clone();
    to.clone_into(&mut envelope.arn);
    envelope.wrapped = service.rewrap(&old.arn, &old.wrapped, to, &context).await?;
    if verify {
        let key = old.key_id();
        let secret = service.unwrap(to, &envelope.wrapped, &context).await?;
        let is_it = secret.len() == DATA_KEY_LEN && OpeningKey::from_unwrapped(&secret, key).is_ok();
        if !is_it {
            return Err(RewrapError::WrongKey { key });
        }
    }
    Ok(envelope)
}

async fn put(catalogue: &dyn Catalogue, wrapped: &Wrapped, envelope: &Envelope) -> Result<Moved, RewrapError> {
    let bytes = envelope.to_bytes()?;
    let newest = wrapped.envelopes.first().map_or(0, |(n, _)| *n);
    for ahead in 1..=MAX_RACES {
        let n = newest.saturating_add(ahead);
        let path = envelope_path(wrapped.key, n);
        if catalogue.put_if_absent(&path, &bytes).await? == Put::Created {
            return Ok(Moved::Written(n));
        }
        let theirs = catalogue
            .get(&path)
            .await?
            .and_then(|bytes| Envelope::from_bytes(&bytes).ok());
        if theirs.is_some_and(|theirs| theirs.arn == envelope.arn) {
            return Ok(Moved::Already);
        }
    }
    Err(RewrapError::Contended { key: wrapped.key })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{ManualClock, UnixMillis};
    use crate::keys::testing::{MemoryCatalogue, MemoryKms};
    use crate::keys::{KeyService as _, KeySpec, LabelEntry, OpeningKeys, SealingKeys};
    use crate::policy::{FixedPolicies, VerifiedPolicy};
    use crate::seal::UsageLimits;

    const OLD: &str = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001";
    const NEW: &str = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000002";

    struct Bench {
        kms: Arc<MemoryKms>,
        catalogue: Arc<MemoryCatalogue>,
        key: KeyId,
        travelling: Vec<u8>,
    }

    async fn bench() -> Bench {
        let (kms, catalogue) = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
        let clock = Arc::new(ManualClock::at(UnixMillis(1_000_000)));
        let keys = SealingKeys::new(kms.clone(), catalogue.clone(), clock, UsageLimits::STANDARD);
        let labels = Arc::from([LabelEntry {
            label: "email".into(),
            bind_row: None,
        }]);
        let spec = KeySpec {
            dataset: "payments".into(),
            key_name: "default".into(),
            template: "default".into(),
            arn: OLD.into(),
            acl: "pii".into(),
            labels,
            policy: (1, [1; 32]),
            max_age: std::time::Duration::from_secs(60),
            max_live: 1,
        };
        let active = keys.get(&spec).await.unwrap();
        Bench {
            kms,
            catalogue,
            key: active.key.id(),
            travelling: active.envelope_bytes.clone(),
        }
    }

    fn policies(current: &str, previous: &str) -> Arc<FixedPolicies> {
        let yaml = format!(
            "dataset: payments\nversion: 2\nkeys: {{ default: {{ arn: \"{current}\" }} }}\nacls: {{ pii: {{}} }}\n\
             columns: [{{ path: email, key: default, acl: pii }}]\nprevious: {{ keys: [{previous}] }}\n"
        );
        let policy = VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap();
        Arc::new(FixedPolicies::new(vec![Arc::new(policy)]))
    }

    fn moved_policies() -> Arc<FixedPolicies> {
        policies(NEW, &format!("{{ name: default, arn: \"{OLD}\" }}"))
    }

    async fn open(bench: &Bench, travelling: &[&[u8]]) -> bool {
        let clock = Arc::new(ManualClock::at(UnixMillis(2_000_000)));
        let age = std::time::Duration::from_secs(60);
        let keys = OpeningKeys::new(
            bench.kms.clone(),
            bench.catalogue.clone(),
            moved_policies(),
            clock,
            age,
            10,
        );
        keys.get(bench.key, travelling).await.is_ok()
    }

    #[tokio::test]
    async fn a_rewrapped_key_opens_although_the_old_kms_key_is_off() {
        let bench = bench().await;
        let found = inventory(bench.catalogue.as_ref()).await.unwrap();
        let wrapped = &found.keys[0];
        let expected = Step::Move {
            from: OLD.into(),
            to: NEW.into(),
        };
        assert_eq!(plan(moved_policies().as_ref(), wrapped).await, Ok(expected));
        bench.kms.set_unusable(OLD, true);
        assert!(!open(&bench, &[&bench.travelling]).await);
        assert!(
            rewrap(bench.kms.as_ref(), bench.catalogue.as_ref(), wrapped, NEW, true)
                .await
                .is_err()
        );
        bench.kms.set_unusable(OLD, false);
        let moved = rewrap(bench.kms.as_ref(), bench.catalogue.as_ref(), wrapped, NEW, true).await;
        assert_eq!(moved, Ok(Moved::Written(1)));
        bench.kms.set_unusable(OLD, true);
        assert!(open(&bench, &[]).await && open(&bench, &[&bench.travelling]).await);
        // Again: nothing left to do, and a run that has not seen it yet writes nothing.
        let again = inventory(bench.catalogue.as_ref()).await.unwrap();
        assert_eq!(again.keys[0].envelopes.len(), 2);
        assert_eq!(plan(moved_policies().as_ref(), &again.keys[0]).await, Ok(Step::Current));
        bench.kms.set_unusable(OLD, false);
        let late = rewrap(bench.kms.as_ref(), bench.catalogue.as_ref(), wrapped, NEW, false).await;
        assert_eq!(late, Ok(Moved::Already));
    }

    #[tokio::test]
    async fn a_forged_newest_envelope_is_passed_over_when_verifying() {
        let bench = bench().await;
        let mut forged = Envelope::from_bytes(&bench.travelling).unwrap();
        let context = EncryptionContext::for_data_key("payments", "default", "pii");
        forged.wrapped = bench.kms.generate(OLD, 32, &context).await.unwrap().wrapped;
        bench
            .catalogue
            .overwrite(&envelope_path(bench.key, 1), &forged.to_bytes().unwrap());
        let found = inventory(bench.catalogue.as_ref()).await.unwrap();
        let moved = rewrap(bench.kms.as_ref(), bench.catalogue.as_ref(), &found.keys[0], NEW, true).await;
        assert_eq!(moved, Ok(Moved::Written(2)));
        bench.kms.set_unusable(OLD, true);
        assert!(open(&bench, &[]).await);
    }

    #[tokio::test]
    async fn what_the_policy_dropped_or_keeps_under_previous_only_is_left_alone() {
        let bench = bench().await;
        let found = inventory(bench.catalogue.as_ref()).await.unwrap();
        let dropped = policies(NEW, "");
        assert_eq!(plan(dropped.as_ref(), &found.keys[0]).await, Ok(Step::NotInPolicy));
        bench.catalogue.overwrite("keys/strange", b"x");
        let found = inventory(bench.catalogue.as_ref()).await.unwrap();
        assert_eq!(
            (found.keys.len(), found.unreadable),
            (1, vec!["keys/strange".to_owned()])
        );
    }
}
