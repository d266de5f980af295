//! Watches the share of dead letters: a wrong policy must stop a pipeline, not empty a topic into them.

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
}

impl DeadLetterRatio {
    pub(crate) fn new(max: f64) -> Self {
        Self {
            max,
            batches: VecDeque::new(),
            records: 0,
            dead: 0,
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
    fn a_limit_of_one_never_stops() {
        assert!(!DeadLetterRatio::new(1.0).would_pass(5_000, 5_000));
        assert!(DeadLetterRatio::new(0.0).would_pass(5_000, 1));
    }
}
