//! What a running pipeline counts: plain atomics, which an admin port reads and exports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Counters and gauges of one pipeline, shared by its threads.
///
/// Records and bytes are counted when they are *committed*, so that work that is repeated after an abort is
/// not counted twice; the exception is `records_read`.
#[derive(Debug, Default)]
pub struct Counters {
    /// Records read from the source, repeats after an abort included.
    pub records_read: AtomicU64,
    /// Source records whose outcome was committed.
    pub records_committed: AtomicU64,
    /// Bytes of keys, values and headers of committed source records.
    pub bytes_received: AtomicU64,
    /// Bytes of keys, values and headers written, committed.
    pub bytes_sent: AtomicU64,
    /// Records committed to the dead letters.
    pub dead_letters: AtomicU64,
    /// Batches transformed.
    pub batches: AtomicU64,
    /// Transactions (or writes) committed.
    pub commits: AtomicU64,
    /// Transactions aborted.
    pub aborts: AtomicU64,
    /// Rebalances of the consumer group seen by this pipeline.
    pub rebalances: AtomicU64,
    /// Times a batch was handed in again, because a service was away.
    pub retries: AtomicU64,
    /// Gauge: batches that wait for a service right now.
    pub waiting: AtomicU64,
    started: AtomicBool,
    draining: AtomicBool,
    target_failing: AtomicBool,
    source_away: AtomicBool,
    lag: Mutex<BTreeMap<(Arc<str>, i32), i64>>,
    position: Mutex<BTreeMap<(Arc<str>, i32), i64>>,
}

impl Counters {
    /// Adds to one of the counters.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Reads one of the counters.
    #[must_use]
    pub fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// Whether records flow: started, not draining, no batch waiting for a service, last write went well,
    /// a broker of the source connected.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.started.load(Ordering::Relaxed)
            && !self.draining.load(Ordering::Relaxed)
            && !self.target_failing.load(Ordering::Relaxed)
            && !self.source_away.load(Ordering::Relaxed)
            && Self::get(&self.waiting) == 0
    }

    /// Whether every thread is connected and reading, or was.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    /// Whether the pipeline finishes what it holds and leaves.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Every thread is connected and reading.
    pub fn set_started(&self) {
        self.started.store(true, Ordering::Relaxed);
    }

    /// The pipeline finishes what it holds and leaves.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether the last write to the target failed.
    pub fn set_target_failing(&self, failing: bool) {
        self.target_failing.store(failing, Ordering::Relaxed);
    }

    /// Whether no broker of the source is connected.
    pub fn set_source_away(&self, away: bool) {
        self.source_away.store(away, Ordering::Relaxed);
    }

    /// Records of a partition that are not committed yet; `None` once another instance reads it.
    pub fn set_lag(&self, topic: &Arc<str>, partition: i32, records: Option<i64>) {
        let mut lag = self.lag.lock().unwrap_or_else(PoisonError::into_inner);
        match records {
            Some(records) => lag.insert((Arc::clone(topic), partition), records),
            None => lag.remove(&(Arc::clone(topic), partition)),
        };
        if records.is_none() {
            let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
            position.remove(&(Arc::clone(topic), partition));
        }
    }

    /// The next offset of a partition that is not committed; forgotten together with its lag.
    pub fn set_position(&self, topic: &Arc<str>, partition: i32, offset: i64) {
        let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        position.insert((Arc::clone(topic), partition), offset);
    }

    /// Next offset per topic and partition, as last measured.
    #[must_use]
    pub fn positions(&self) -> BTreeMap<(Arc<str>, i32), i64> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lag per topic and partition, as last measured.
    #[must_use]
    pub fn lag(&self) -> BTreeMap<(Arc<str>, i32), i64> {
        self.lag.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_is_ready_only_while_records_flow() {
        let counters = Counters::default();
        assert!(!counters.is_ready());
        counters.set_started();
        assert!(counters.is_ready());
        Counters::add(&counters.waiting, 1);
        assert!(!counters.is_ready());
        counters.waiting.fetch_sub(1, Ordering::Relaxed);
        counters.set_target_failing(true);
        assert!(!counters.is_ready());
        counters.set_target_failing(false);
        counters.set_source_away(true);
        assert!(!counters.is_ready());
        counters.set_source_away(false);
        assert!(counters.is_ready());
        counters.set_draining();
        assert!(!counters.is_ready());
    }

    #[test]
    fn lag_of_a_partition_that_was_given_away_is_forgotten() {
        let counters = Counters::default();
        let topic: Arc<str> = "t".into();
        counters.set_lag(&topic, 0, Some(7));
        counters.set_lag(&topic, 1, Some(8));
        counters.set_position(&topic, 0, 40);
        counters.set_position(&topic, 1, 41);
        counters.set_lag(&topic, 0, None);
        assert_eq!(
            counters.positions().into_iter().collect::<Vec<_>>(),
            [((Arc::clone(&topic), 1), 41)]
        );
        assert_eq!(counters.lag().into_iter().collect::<Vec<_>>(), [((topic, 1), 8)]);
    }
}
