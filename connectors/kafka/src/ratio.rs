//! Watches the share of dead letters: a wrong policy must stop a pipeline, not empty a topic into them. What was
//! counted is kept as the metadata of the committed offsets, so that a restart does not begin from nothing.

use std::collections::VecDeque;

/// Records that the share is taken over.
const WINDOW: u64 = 10_000;
/// Fewer records than this say nothing.
const MINIMUM: u64 = 1_000;

/// The last batches' records and dead letters, of all thread groups of a pipeline.
#[derive(Debug)]
pub(crate) struct DeadLetterRatio {
    max: f64,
    batches: VecDeque<(u64, u64)>,
    records: u64,
    dead: u64,
    /// Something of this run is counted: what an earlier one left says nothing new.
    is_own: bool,
}

/// How the metadata of committed offsets begins.
const NOTE: &str = "sealflow/1";

impl DeadLetterRatio {
    pub(crate) fn new(max: f64) -> Self {
        Self {
            max,
            batches: VecDeque::new(),
            records: 0,
            dead: 0,
            is_own: false,
        }
    }

    /// What is remembered once these are committed too.
    pub(crate) fn note_after(&self, records: u64, dead: u64) -> String {
        format!("{NOTE} records={} dead={}", self.records + records, self.dead + dead)
    }

    /// Takes up what an earlier run has noted with a partition. Of several notes the one over most records counts.
    pub(crate) fn remember(&mut self, note: &str) {
        let Some(rest) = note.strip_prefix(NOTE) else { return };
        let number = |name: &str| {
            let mut parts = rest.split_whitespace();
            parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
        };
        let (Some(records), Some(dead)) = (number("records"), number("dead")) else {
            return;
        };
        // A window and the batch that went beyond it: more is not ours.
        let is_possible = dead <= records && records < 1 << 40;
        if is_possible && !self.is_own && records > self.records {
            self.batches = VecDeque::from([(records, dead)]);
            (self.records, self.dead) = (records, dead);
        }
    }

    /// Whether committing these would pass the limit.
    pub(crate) fn would_pass(&self, records: u64, dead: u64) -> bool {
        let (records, dead) = (self.records + records, self.dead + dead);
        // Counts stay far below 2^52, so the conversion is exact.
        #[allow(clippy::cast_precision_loss)]
        let passed = dead as f64 > self.max * records as f64;
        records >= MINIMUM && passed
    }

    /// Counts what was committed, and forgets what is older than the window.
    pub(crate) fn committed(&mut self, records: u64, dead: u64) {
        self.is_own = true;
        self.batches.push_back((records, dead));
        self.records += records;
        self.dead += dead;
        while let Some(&(oldest, oldest_dead)) = self.batches.front() {
            if self.records - oldest < WINDOW {
                break;
            }
            self.records -= oldest;
            self.dead -= oldest_dead;
            self.batches.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_records_never_stop_a_pipeline() {
        let ratio = DeadLetterRatio::new(0.01);
        assert!(!ratio.would_pass(999, 999));
        assert!(ratio.would_pass(1_000, 11));
        assert!(!ratio.would_pass(1_000, 10));
    }

    #[test]
    fn a_good_past_does_not_hide_a_bad_present() {
        let mut ratio = DeadLetterRatio::new(0.1);
        for _ in 0..1_000 {
            ratio.committed(1_000, 0);
        }
        assert!(!ratio.would_pass(1_000, 1_000));
        for _ in 0..2 {
            ratio.committed(1_000, 500);
        }
        assert!(ratio.would_pass(1_000, 500));
    }

    #[test]
    fn what_an_earlier_run_counted_goes_on_to_count() {
        let mut before = DeadLetterRatio::new(0.01);
        before.committed(1_000, 10);
        let note = before.note_after(500, 5);
        let mut after = DeadLetterRatio::new(0.01);
        for foreign in [
            "",
            "other",
            "sealflow/1",
            "sealflow/1 records=9 dead=10",
            "sealflow/1 records=-1 dead=0",
        ] {
            after.remember(foreign);
            assert!(!after.would_pass(10, 10), "{foreign}");
        }
        after.remember(&note);
        after.remember("sealflow/1 records=20 dead=20");
        assert!(!after.would_pass(100, 1));
        assert!(after.would_pass(10, 10));
        after.committed(100, 0);
        after.remember("sealflow/1 records=9000 dead=9000");
        assert!(!after.would_pass(100, 0), "what this run has seen is newer");
    }

    #[test]
    fn a_limit_of_one_never_stops() {
        assert!(!DeadLetterRatio::new(1.0).would_pass(5_000, 5_000));
        assert!(DeadLetterRatio::new(0.0).would_pass(5_000, 1));
    }
}
