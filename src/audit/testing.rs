//! An audit log in memory, and events, for tests.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::{AuditError, AuditLog, Event, Place, Proof, Verdict};
use crate::clock::UnixMillis;

/// Keeps events in memory, and fails when it is told to.
#[derive(Debug, Default)]
pub struct MemoryAudit {
    events: Mutex<Vec<Event>>,
    fails: AtomicBool,
}

impl MemoryAudit {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From here on recording fails, or does not.
    pub fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }

    /// What was recorded.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[async_trait]
impl AuditLog for MemoryAudit {
    async fn record(&self, events: Vec<Event>) -> Result<(), AuditError> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(AuditError::Write {
                to: "memory".to_owned(),
                reason: "it was told to fail".to_owned(),
            });
        }
        self.lock().extend(events);
        Ok(())
    }
}

/// An event with every member set.
#[must_use]
pub fn sample_event() -> Event {
    Event {
        at: UnixMillis(1_767_225_600_250),
        principal: Some("arn:aws:iam::111122223333:role/analyst".to_owned()),
        caller: Some("arn:aws:sts::111122223333:assumed-role/analyst/ann".to_owned()),
        proof: Some(Proof::StsCredentials),
        purpose: Some("fraud".to_owned()),
        dataset: Some("payments".to_owned()),
        label: Some("card.number".to_owned()),
        policy_version: Some(3),
        decision: Verdict::Allowed,
        rule: "acls.pii.allow[0]".to_owned(),
        count: 12,
        place: Some(Place {
            source: "payments.sealed".to_owned(),
            partition: Some(0),
            first: Some(100),
            last: Some(111),
        }),
    }
}

/// Any event, with texts short enough not to be cut.
#[cfg(test)]
pub(super) fn arbitrary_event() -> impl proptest::strategy::Strategy<Value = Event> {
    use proptest::prelude::*;

    let text = || proptest::option::of("\\PC{0,8}|[\u{0}-\u{20}\"\\\\]{1,4}");
    let proof = proptest::option::of(prop_oneof![
        Just(Proof::StsCredentials),
        Just(Proof::StsPresigned),
        Just(Proof::Oidc),
        Just(Proof::Assumed)
    ]);
    let decision = prop_oneof![Just(Verdict::Allowed), Just(Verdict::Refused), Just(Verdict::Failed)];
    let place = proptest::option::of((any::<String>(), any::<Option<i32>>(), any::<Option<i64>>()));
    let who = (text(), text(), proof, text());
    let what = (text(), text(), any::<Option<u64>>());
    (
        0_u64..=u64::from(u32::MAX),
        who,
        what,
        decision,
        any::<String>(),
        any::<u64>(),
        place,
    )
        .prop_map(
            |(
                at,
                (principal, caller, proof, purpose),
                (dataset, label, policy_version),
                decision,
                rule,
                count,
                place,
            )| Event {
                at: UnixMillis(at),
                principal,
                caller,
                proof,
                purpose,
                dataset,
                label,
                policy_version,
                decision,
                rule,
                count,
                place: place.map(|(source, partition, first)| Place {
                    source,
                    partition,
                    first,
                    last: first,
                }),
            },
        )
}
