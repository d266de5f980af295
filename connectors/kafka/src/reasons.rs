//! Why records became dead letters: counts by code with the first position of each, for log lines and errors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sealflow::pipeline::{DeadLetter, Outcome, Route};

/// How often a log line tells of dead letters.
const EVERY: Duration = Duration::from_secs(10);
/// Codes come from our own transforms; a foreign dead letter that passes through a replay may say anything.
const MOST_CODES: usize = 16;

/// Counts by code, and where each was seen first. Never a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reasons(BTreeMap<String, (u64, String)>);

impl Reasons {
    /// Those of the outcomes that are dead letters.
    pub(crate) fn of<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Self {
        let mut reasons = Self::default();
        for outcome in outcomes.filter(|outcome| outcome.route != Route::Target) {
            let letter = outcome.record.value.as_deref().unwrap_or_default();
            let code = DeadLetter::code_of(letter).map_or_else(|_| "unknown".to_owned(), Cow::into_owned);
            reasons.add(code, 1, || outcome.record.position.to_string());
        }
        reasons
    }

    fn add(&mut self, code: String, count: u64, first: impl FnOnce() -> String) {
        if self.0.len() >= MOST_CODES && !self.0.contains_key(&code) {
            return;
        }
        self.0.entry(code).or_insert_with(|| (0, first())).0 += count;
    }

    fn merge(&mut self, other: Self) {
        for (code, (count, first)) in other.0 {
            self.add(code, count, || first);
        }
    }
}

impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (code, (count, first))) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{code}: {count} (first {first})")?;
        }
        Ok(())
    }
}

/// Tells of dead letters as they are committed, no more than once in a while.
#[derive(Debug, Default)]
pub(crate) struct Teller(Mutex<(Option<Instant>, Reasons)>);

impl Teller {
    /// Takes up what was committed, and logs what has gathered when it is time.
    pub(crate) fn tell(&self, reasons: Reasons) {
        if let Some(line) = self.line(reasons, Instant::now()) {
            tracing::warn!(reasons = line, "records became dead letters");
        }
    }

    fn line(&self, reasons: Reasons, now: Instant) -> Option<String> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, gathered) = &mut *state;
        gathered.merge(reasons);
        let is_time = last.is_none_or(|last| now.duration_since(last) >= EVERY);
        if gathered.0.is_empty() || !is_time {
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(gathered).to_string())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sealflow::pipeline::{Headers, Position, Record, Timestamp};

    use super::*;

    fn outcome(route: Route, code: &str, offset: i64) -> Outcome {
        let position = Position {
            topic: "t".into(),
            partition: 0,
            offset,
        };
        let letter = DeadLetter::new(code, "seal", &position, b"sealed");
        let record = Record {
            position,
            timestamp: Timestamp::None,
            key: None,
            value: Some(Bytes::from(letter.to_json())),
            headers: Headers::new(),
        };
        Outcome { route, record }
    }

    #[test]
    fn reasons_are_counted_by_code_with_the_first_place_of_each() {
        let outcomes = [
            outcome(Route::Target, "unseen", 1),
            outcome(Route::DeadLetter, "wrong-type", 2),
            outcome(Route::DeadLetter, "invalid-json", 3),
            outcome(Route::Oversize, "wrong-type", 4),
        ];
        let reasons = Reasons::of(outcomes.iter());
        assert_eq!(
            reasons.to_string(),
            "invalid-json: 1 (first t/0/3), wrong-type: 2 (first t/0/2)"
        );
    }

    #[test]
    fn dead_letters_are_told_at_once_and_then_once_in_a_while_without_losing_count() {
        let (teller, start) = (Teller::default(), Instant::now());
        let one = |offset| Reasons::of([outcome(Route::DeadLetter, "wrong-type", offset)].iter());
        assert_eq!(teller.line(Reasons::default(), start), None);
        assert_eq!(
            teller.line(one(1), start).as_deref(),
            Some("wrong-type: 1 (first t/0/1)")
        );
        assert_eq!(teller.line(one(2), start + EVERY / 2), None);
        assert_eq!(
            teller.line(one(3), start + EVERY).as_deref(),
            Some("wrong-type: 2 (first t/0/2)")
        );
    }
}
