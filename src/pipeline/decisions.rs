//! What was decided about columns that somebody reads, and how it is told.

use super::record::Position;
use crate::audit::{Event, Place, Verdict};

/// Reasons of failure that are told apart, per column, partition and batch.
const MAX_REASONS: usize = 8;

/// A record of which nothing is shown: where the columns are in it cannot be said.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Withheld {
    /// Where it was read.
    pub position: Position,
    /// Why, as dead letters say it: `malformed-json`, …
    pub code: &'static str,
}

/// What was decided about values of one column, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ColumnDecision {
    /// The column's label.
    pub label: String,
    /// What became of them.
    pub outcome: ColumnOutcome,
    /// The rule that decided, or why a value did not open.
    pub because: String,
    /// How many values.
    pub count: u64,
    /// The first record.
    pub first: Position,
    /// The last one, of the same topic and partition.
    pub last: Position,
}

/// What became of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnOutcome {
    /// They are shown.
    Opened,
    /// The ACL does not let the reader open them; what it says is shown in their place.
    Refused,
    /// The ACL lets the reader open them, and they do not open: a null is shown. With the code.
    Failed(&'static str),
}

impl ColumnDecision {
    /// About `count` values between two records of one partition.
    #[must_use]
    pub fn new(
        label: &str,
        outcome: ColumnOutcome,
        because: String,
        count: u64,
        (first, last): (&Position, &Position),
    ) -> Self {
        Self {
            label: label.to_owned(),
            outcome,
            because,
            count,
            first: first.clone(),
            last: last.clone(),
        }
    }

    /// As a line of an audit log. `about` says who asked, and of what.
    #[must_use]
    pub fn event(&self, about: &Event) -> Event {
        Event {
            label: Some(self.label.clone()),
            decision: match self.outcome {
                ColumnOutcome::Opened => Verdict::Allowed,
                ColumnOutcome::Refused => Verdict::Refused,
                ColumnOutcome::Failed(_) => Verdict::Failed,
            },
            rule: self.because.clone(),
            count: self.count,
            place: Some(Place {
                source: self.first.topic.to_string(),
                partition: Some(self.first.partition),
                first: Some(self.first.offset),
                last: Some(self.last.offset),
            }),
            ..about.clone()
        }
    }
}

impl Withheld {
    /// A record of which nothing is shown, and why.
    #[must_use]
    pub fn new(position: Position, code: &'static str) -> Self {
        Self { position, code }
    }

    /// As a line of an audit log. `about` says who asked, and of what.
    #[must_use]
    pub fn event(&self, about: &Event) -> Event {
        Event {
            decision: Verdict::Failed,
            rule: self.code.to_owned(),
            count: 1,
            place: Some(Place {
                source: self.position.topic.to_string(),
                partition: Some(self.position.partition),
                first: Some(self.position.offset),
                last: Some(self.position.offset),
            }),
            ..about.clone()
        }
    }
}

/// What was decided, columns and reasons each once per partition.
#[derive(Default)]
pub(super) struct Decisions(pub(super) Vec<ColumnDecision>);

impl Decisions {
    /// What is opened or refused has one reason per label and batch, so that it is made only once. Failures have one each,
    /// up to a number of them: what comes after that is counted with the last.
    pub(super) fn add(&mut self, label: &str, outcome: ColumnOutcome, because: impl FnOnce() -> String, at: &Position) {
        let is_alike = |known: &ColumnDecision| {
            known.outcome == outcome
                && known.last.partition == at.partition
                && known.last.topic == at.topic
                && known.label == label
        };
        let mut because = Some(because);
        let mut reason = None;
        if matches!(outcome, ColumnOutcome::Failed(_)) {
            reason = because.take().map(|because| because());
        }
        let is_full = reason.is_some() && self.0.iter().filter(|known| is_alike(known)).count() >= MAX_REASONS;
        let is_same = |known: &&mut ColumnDecision| {
            is_alike(known) && (is_full || reason.as_ref().is_none_or(|reason| *reason == known.because))
        };
        if let Some(known) = self.0.iter_mut().rev().find(is_same) {
            known.count += 1;
            known.last.clone_from(at);
            return;
        }
        self.0.push(ColumnDecision {
            label: label.to_owned(),
            outcome,
            because: reason.or_else(|| because.map(|because| because())).unwrap_or_default(),
            count: 1,
            first: at.clone(),
            last: at.clone(),
        });
    }
}
