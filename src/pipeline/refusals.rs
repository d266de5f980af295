//! What an audit log says of values of clients that were refused.

use std::collections::BTreeMap;

use super::client_values::Refusal;
use super::plan::Plan;
use super::record::Position;
use super::transform::TransformError;
use crate::audit::{AuditLog, Event, Place, Proof, Verdict};
use crate::clock::UnixMillis;

/// Label, code, client, topic and partition.
type Kind = (String, &'static str, Option<String>, String, i32);

/// Writes refused values down: one event for each label, code and client of a partition.
pub(super) struct Refusals<'a> {
    pub(super) plan: &'a Plan,
    pub(super) log: &'a dyn AuditLog,
    pub(super) now: UnixMillis,
}

impl Refusals<'_> {
    /// Writes them down. Nothing leaves before it is.
    ///
    /// # Errors
    /// [`TransformError::Retry`] if the log does not take them.
    pub(super) async fn record(&self, refused: &[(Position, Refusal)]) -> Result<(), TransformError> {
        let mut events: BTreeMap<Kind, Event> = BTreeMap::new();
        let policy = self.plan.policy.policy();
        for (position, refusal) in refused {
            let label = refusal.rule.map_or("?", |rule| &self.plan.rules()[rule].label);
            let kind = (
                label.to_owned(),
                refusal.rejection.code,
                refusal.client.clone(),
                position.topic.to_string(),
                position.partition,
            );
            let event = events.entry(kind).or_insert_with(|| {
                let mut event = Event::new(self.now, Verdict::Refused, format!("client.{}", refusal.rejection.code));
                event.principal = refusal.client.as_ref().map(|client| format!("client:{client}"));
                event.proof = event.principal.as_ref().map(|_| Proof::ClientMac);
                event.dataset = Some(policy.dataset.clone());
                event.label = Some(label.to_owned());
                event.policy_version = Some(policy.version);
                event
            });
            event.count += 1;
            let offset = position.offset;
            let (first, last) = match &event.place {
                Some(place) => (
                    place.first.unwrap_or(offset).min(offset),
                    place.last.unwrap_or(offset).max(offset),
                ),
                None => (offset, offset),
            };
            event.place = Some(Place {
                source: position.topic.to_string(),
                partition: Some(position.partition),
                first: Some(first),
                last: Some(last),
            });
        }
        if events.is_empty() {
            return Ok(());
        }
        self.log
            .record(events.into_values().collect())
            .await
            .map_err(|error| TransformError::Retry {
                reason: error.to_string(),
            })
    }
}
