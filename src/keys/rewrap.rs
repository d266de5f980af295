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
    /// Number and envelope; never empty as [`inventory`] makes it.
    pub envelopes: Vec<(u32, Envelope)>,
    /// The highest number that is taken, also where [`openable`] left out its envelope.
    pub highest: u32,
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
                let known = keys.entry(key.to_string()).or_insert(Wrapped {
                    key,
                    envelopes,
                    highest: 0,
                });
                known.highest = known.highest.max(n);
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

/// The data key without the envelopes that the newest policy of their dataset does not open, which readers pass over as
/// well: whoever can write to the catalogue could hide a genuine envelope behind one of those.
///
/// # Errors
/// If a policy cannot be fetched or believed. A dataset without any opens nothing.
pub async fn openable(policies: &dyn PolicySource, wrapped: &Wrapped) -> Result<Wrapped, PolicySourceError> {
    let mut envelopes = Vec::new();
    for (n, envelope) in &wrapped.envelopes {
        match policies.policy(governing(&envelope.dataset)).await {
            Ok(policy) if check_against(envelope, policy.policy()).is_ok() => envelopes.push((*n, envelope.clone())),
            Ok(_) | Err(PolicySourceError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Wrapped { envelopes, ..*wrapped })
}

/// What becomes of one data key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Its newest envelope says that it is under the KMS key that the policy names now. Whether it holds the data key
    /// says [`verify_current`] only.
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

/// What the newest policy says about a data key, by the newest envelope of those that are [`openable`].
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
    /// There was nothing to do: the newest envelope was unwrapped, and holds the data key.
    Verified,
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
    /// There is no verified policy that says where to.
    #[error(transparent)]
    Policy(#[from] PolicySourceError),
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

/// Wraps the data key anew under the KMS key that the policy names now, and puts the envelope into the catalogue. With `verify` the new envelope is
/// unwrapped once before it is written, which needs the right to decrypt and brings the data key into this process for
/// that moment; a newest envelope that was forged is passed over then, and the one before it taken.
///
/// # Errors
/// [`RewrapError`]; nothing is written then.
pub async fn rewrap(
    service: &dyn KeyAdmin,
    catalogue: &dyn Catalogue,
    policies: &dyn PolicySource,
    wrapped: &Wrapped,
    verify: bool,
) -> Result<Moved, RewrapError> {
    let mut refused = RewrapError::WrongKey { key: wrapped.key };
    // Forgeries that are more than readers try hide a genuine one from them. Who verifies finds it all the same.
    let tried = if verify { usize::MAX } else { MAX_CANDIDATES };
    for (_, envelope) in wrapped.envelopes.iter().take(tried) {
        // By its own names: those of a forged envelope may be another key's.
        let Some(to) = destination(policies, envelope).await? else {
            continue;
        };
        match rewrapped(service, envelope, &to, verify).await {
            Ok(envelope) => return put(service, catalogue, wrapped, &envelope, verify).await,
            Err(error) if speaks_against_the_bytes(&error) => refused = error,
            Err(error) => return Err(error),
        }
    }
    Err(refused)
}

/// Unwraps the newest envelope of a data key that is [`Step::Current`]. If it does not hold the data key (forged, damaged,
/// or moved from such a one), the next envelope that does is wrapped anew under the same KMS key and put on top. Needs
/// what [`rewrap`] with `verify` needs.
///
/// # Errors
/// [`RewrapError`]; nothing is written then.
pub async fn verify_current(
    service: &dyn KeyAdmin,
    catalogue: &dyn Catalogue,
    policies: &dyn PolicySource,
    wrapped: &Wrapped,
) -> Result<Moved, RewrapError> {
    let wrong = RewrapError::WrongKey { key: wrapped.key };
    let Some(newest) = wrapped.newest() else {
        return Err(wrong);
    };
    match verify_envelope(service, newest).await {
        Ok(()) => Ok(Moved::Verified),
        Err(error) if speaks_against_the_bytes(&error) => {
            let older = Wrapped {
                envelopes: wrapped.envelopes[1..].to_vec(),
                ..*wrapped
            };
            match rewrap(service, catalogue, policies, &older, true).await {
                // There is none behind it, so what KMS said of the newest says more.
                Err(RewrapError::WrongKey { .. }) => Err(error),
                moved => moved,
            }
        }
        Err(error) => Err(error),
    }
}

/// Where the newest policy wants this envelope's data key; `None` if it does not open it, or under `previous:` only.
async fn destination(policies: &dyn PolicySource, envelope: &Envelope) -> Result<Option<String>, PolicySourceError> {
    match policies.policy(governing(&envelope.dataset)).await {
        Ok(policy) if check_against(envelope, policy.policy()).is_ok() => {
            let key = policy.policy().key_by_name(&envelope.key_name);
            Ok(key.map(|key| key.arn.clone()))
        }
        Ok(_) | Err(PolicySourceError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Only then are older envelopes worth a look.
fn speaks_against_the_bytes(error: &RewrapError) -> bool {
    matches!(
        error,
        RewrapError::WrongKey { .. } | RewrapError::Service(KeyServiceError::Refused { .. })
    )
}

/// Whether the envelope holds the data key that it names.
async fn verify_envelope(service: &dyn KeyAdmin, envelope: &Envelope) -> Result<(), RewrapError> {
    let context = EncryptionContext::for_data_key(&envelope.dataset, &envelope.key_name, &envelope.acl);
    let secret = service.unwrap(&envelope.arn, &envelope.wrapped, &context).await?;
    let key = envelope.key_id();
    if secret.len() == DATA_KEY_LEN && OpeningKey::from_unwrapped(&secret, key).is_ok() {
        Ok(())
    } else {
        Err(RewrapError::WrongKey { key })
    }
}

async fn rewrapped(service: &dyn KeyAdmin, old: &Envelope, to: &str, verify: bool) -> Result<Envelope, RewrapError> {
    let context = EncryptionContext::for_data_key(&old.dataset, &old.key_name, &old.acl);
    let mut envelope = old.clone();
    to.clone_into(&mut envelope.arn);
    envelope.wrapped = service.rewrap(&old.arn, &old.wrapped, to, &context).await?;
    if verify {
        verify_envelope(service, &envelope).await?;
    }
    Ok(envelope)
}

async fn put(
    service: &dyn KeyAdmin,
    catalogue: &dyn Catalogue,
    wrapped: &Wrapped,
    envelope: &Envelope,
    verify: bool,
) -> Result<Moved, RewrapError> {
    let bytes = envelope.to_bytes()?;
    for ahead in 1..=MAX_RACES {
        let n = wrapped.highest.saturating_add(ahead);
        let path = envelope_path(wrapped.key, n);
        if catalogue.put_if_absent(&path, &bytes).await? == Put::Created {
            return Ok(Moved::Written(n));
        }
        let theirs = catalogue
            .get(&path)
            .await?
            .and_then(|bytes| Envelope::from_bytes(&bytes).ok());
        let Some(theirs) = theirs.filter(|theirs| theirs.arn == envelope.arn && theirs.key_id() == wrapped.key) else {
            continue;
        };
        if !verify {
            return Ok(Moved::Already);
        }
        match verify_envelope(service, &theirs).await {
            Ok(()) => return Ok(Moved::Already),
            Err(error) if speaks_against_the_bytes(&error) => {}
            Err(error) => return Err(error),
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
        assert!(move_it(&bench, wrapped, true).await.is_err());
        bench.kms.set_unusable(OLD, false);
        let moved = move_it(&bench, wrapped, true).await;
        assert_eq!(moved, Ok(Moved::Written(1)));
        bench.kms.set_unusable(OLD, true);
        assert!(open(&bench, &[]).await && open(&bench, &[&bench.travelling]).await);
        // Again: nothing left to do, and a run that has not seen it yet writes nothing.
        let again = inventory(bench.catalogue.as_ref()).await.unwrap();
        assert_eq!(again.keys[0].envelopes.len(), 2);
        assert_eq!(plan(moved_policies().as_ref(), &again.keys[0]).await, Ok(Step::Current));
        bench.kms.set_unusable(OLD, false);
        let late = move_it(&bench, wrapped, false).await;
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
        let moved = move_it(&bench, &found.keys[0], true).await;
        assert_eq!(moved, Ok(Moved::Written(2)));
        bench.kms.set_unusable(OLD, true);
        assert!(open(&bench, &[]).await);
    }

    async fn move_it(bench: &Bench, wrapped: &Wrapped, verify: bool) -> Result<Moved, RewrapError> {
        let (kms, catalogue) = (bench.kms.as_ref(), bench.catalogue.as_ref());
        rewrap(kms, catalogue, moved_policies().as_ref(), wrapped, verify).await
    }

    /// What `keys rewrap --verify` does with one data key.
    async fn verified(bench: &Bench) -> Result<Moved, RewrapError> {
        let found = inventory(bench.catalogue.as_ref()).await.unwrap();
        let policies = moved_policies();
        let (kms, catalogue) = (bench.kms.as_ref(), bench.catalogue.as_ref());
        let wrapped = openable(policies.as_ref(), &found.keys[0]).await.unwrap();
        match plan(policies.as_ref(), &wrapped).await.unwrap() {
            Step::Current => verify_current(kms, catalogue, policies.as_ref(), &wrapped).await,
            Step::Move { .. } => rewrap(kms, catalogue, policies.as_ref(), &wrapped, true).await,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_was_moved_unverified_or_forged_under_the_new_kms_key_is_found_by_verifying_and_mended() {
        let context = EncryptionContext::for_data_key("payments", "default", "pii");
        // A forged newest envelope that was moved without a look, and garbage that says it is under the new key.
        for is_moved in [true, false] {
            let bench = bench().await;
            let mut forged = Envelope::from_bytes(&bench.travelling).unwrap();
            if is_moved {
                forged.wrapped = bench.kms.generate(OLD, 32, &context).await.unwrap().wrapped;
            } else {
                forged.arn = NEW.into();
                forged.wrapped = vec![7; 60];
            }
            let place = envelope_path(bench.key, 1);
            bench.catalogue.overwrite(&place, &forged.to_bytes().unwrap());
            if is_moved {
                let found = inventory(bench.catalogue.as_ref()).await.unwrap();
                let moved = move_it(&bench, &found.keys[0], false).await;
                assert_eq!(moved, Ok(Moved::Written(2)));
            }
            let found = inventory(bench.catalogue.as_ref()).await.unwrap();
            assert_eq!(plan(moved_policies().as_ref(), &found.keys[0]).await, Ok(Step::Current));
            // With the old KMS key off it cannot be mended, which is said, and nothing is written.
            bench.kms.set_unusable(OLD, true);
            assert!(verified(&bench).await.is_err() && !open(&bench, &[]).await);
            bench.kms.set_unusable(OLD, false);
            let mended = verified(&bench).await;
            assert_eq!(mended, Ok(Moved::Written(2 + u32::from(is_moved))));
            let asked = bench.kms.unwrap_calls();
            assert_eq!(verified(&bench).await, Ok(Moved::Verified));
            assert_eq!(bench.kms.unwrap_calls(), asked + 1);
            bench.kms.set_unusable(OLD, true);
            assert!(open(&bench, &[]).await, "moved: {is_moved}");
        }
    }

    #[tokio::test]
    async fn a_genuine_envelope_is_found_behind_many_forged_ones_and_those_that_no_policy_opens() {
        let bench = bench().await;
        let mut forged = Envelope::from_bytes(&bench.travelling).unwrap();
        forged.arn = NEW.into();
        let many = u32::try_from(MAX_CANDIDATES).unwrap() + 2;
        for n in 1..=many {
            forged.wrapped = vec![u8::try_from(n).unwrap(); 60];
            bench
                .catalogue
                .overwrite(&envelope_path(bench.key, n), &forged.to_bytes().unwrap());
        }
        // The newest are under a KMS key that the policy does not name, and of a dataset without a policy.
        forged.arn = NEW.replace("0002", "0003");
        bench
            .catalogue
            .overwrite(&envelope_path(bench.key, many + 1), &forged.to_bytes().unwrap());
        forged.dataset = "nobodys".into();
        bench
            .catalogue
            .overwrite(&envelope_path(bench.key, many + 2), &forged.to_bytes().unwrap());
        assert!(!open(&bench, &[]).await);
        assert_eq!(verified(&bench).await, Ok(Moved::Written(many + 3)));
        bench.kms.set_unusable(OLD, true);
        assert!(open(&bench, &[]).await);
    }

    #[tokio::test]
    async fn what_is_mended_goes_to_the_kms_key_of_its_own_name_whatever_the_forged_one_was_called() {
        let bench = bench().await;
        let other = NEW.replace("0002", "0003");
        let yaml = format!(
            "dataset: payments\nversion: 2\nkeys: {{ default: {{ arn: \"{NEW}\" }}, other: {{ arn: \"{other}\" }} }}\n\
             acls: {{ pii: {{}} }}\n\
             columns: [{{ path: a, key: default, acl: pii }}, {{ path: b, key: other, acl: pii }}]\n\
             previous: {{ keys: [{{ name: default, arn: \"{OLD}\" }}] }}\n"
        );
        let policy = VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap();
        let policies = FixedPolicies::new(vec![Arc::new(policy)]);
        let mut forged = Envelope::from_bytes(&bench.travelling).unwrap();
        (forged.arn, forged.key_name) = (other, "other".into());
        bench
            .catalogue
            .overwrite(&envelope_path(bench.key, 1), &forged.to_bytes().unwrap());
        let found = inventory(bench.catalogue.as_ref()).await.unwrap();
        assert_eq!(plan(&policies, &found.keys[0]).await, Ok(Step::Current));
        let (kms, catalogue) = (bench.kms.as_ref(), bench.catalogue.as_ref());
        let mended = verify_current(kms, catalogue, &policies, &found.keys[0]).await;
        assert_eq!(mended, Ok(Moved::Written(2)));
        let found = inventory(bench.catalogue.as_ref()).await.unwrap();
        let newest = found.keys[0].newest().unwrap();
        assert_eq!((newest.arn.as_str(), newest.key_name.as_str()), (NEW, "default"));
    }

    #[tokio::test]
    async fn who_verifies_does_not_take_somebody_elses_forged_envelope_for_the_work_done() {
        let bench = bench().await;
        let found = inventory(bench.catalogue.as_ref()).await.unwrap();
        let mut forged = Envelope::from_bytes(&bench.travelling).unwrap();
        forged.arn = NEW.into();
        forged.wrapped = vec![7; 60];
        // It comes after the catalogue was read.
        bench
            .catalogue
            .overwrite(&envelope_path(bench.key, 1), &forged.to_bytes().unwrap());
        let moved = move_it(&bench, &found.keys[0], true).await;
        assert_eq!(moved, Ok(Moved::Written(2)));
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
