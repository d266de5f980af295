//! Follows a run that ends: it is done when every partition is committed up to the end seen at start.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::Statistics;

use crate::flow::Partition;

/// How long librdkafka must have had nothing to hand over before an end without a record counts as reached.
const QUIET: Duration = Duration::from_secs(5);

/// Progress of all partitions, shared by the thread groups of one process.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    open: Mutex<BTreeMap<Partition, Progress>>,
    /// Where the partitions ended at the start, for as long as the run lasts.
    limits: Mutex<BTreeMap<Partition, i64>>,
}

#[derive(Debug, Default)]
struct Progress {
    /// First offset that is not part of this run.
    end: i64,
    /// One more than the highest offset that was handed to a transform, by any thread group.
    read: i64,
    /// One more than the highest committed offset.
    committed: i64,
    /// Since when everything up to the end is fetched and nothing waits.
    quiet_since: Option<Instant>,
}

impl Ends {
    /// Adds a partition whose offsets in `[start, end)` may hold records.
    pub(crate) fn expect(&self, topic: &Arc<str>, partition: i32, end: i64) {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.insert((Arc::clone(topic), partition), end);
        drop(limits);
        self.lock().insert(
            (Arc::clone(topic), partition),
            Progress {
                end,
                ..Progress::default()
            },
        );
    }

    /// Whether a record was written after the start.
    pub(crate) fn is_beyond(&self, topic: &Arc<str>, partition: i32, offset: i64) -> bool {
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = limits.get(&(Arc::clone(topic), partition));
        limit.is_none_or(|end| offset >= *end)
    }

    /// A record was taken in.
    pub(crate) fn read(&self, topic: &Arc<str>, partition: i32, offset: i64) {
        if let Some(progress) = self.lock().get_mut(&(Arc::clone(topic), partition)) {
            progress.read = progress.read.max(offset + 1);
        }
    }

    /// Everything below `next` is committed.
    pub(crate) fn committed(&self, topic: &Arc<str>, partition: i32, next: i64) {
        let mut open = self.lock();
        let key = (Arc::clone(topic), partition);
        if let Some(progress) = open.get_mut(&key) {
            progress.committed = progress.committed.max(next);
            if progress.committed >= progress.end {
                open.remove(&key);
            }
        }
    }

    /// Looks for assigned partitions whose last offsets hold no record (transaction markers, compaction).
    ///
    /// All that was read must be committed. Then either librdkafka's position is at the end, which moves over
    /// markers; or it has fetched beyond the end and has been quiet for a while.
    pub(crate) fn observe<'a>(
        &self,
        statistics: &Statistics,
        assigned: impl Iterator<Item = &'a Partition>,
        now: Instant,
    ) {
        let mut open = self.lock();
        for key in assigned {
            let Some(progress) = open.get_mut(key) else { continue };
            let topic = statistics.topics.get(key.0.as_ref());
            let Some(partition) = topic.and_then(|topic| topic.partitions.get(&key.1)) else {
                continue;
            };
            let all_committed = progress.committed >= progress.read;
            let quiet = all_committed
                && partition.fetch_state == "active"
                && partition.fetchq_cnt == 0
                && partition.next_offset >= progress.end;
            progress.quiet_since = quiet.then(|| progress.quiet_since.unwrap_or(now));
            let long_quiet = progress
                .quiet_since
                .is_some_and(|since| now.duration_since(since) >= QUIET);
            if all_committed && partition.app_offset >= progress.end || long_quiet {
                open.remove(key);
            }
        }
    }

    /// librdkafka's queues were emptied by a pause or a seek: being empty says nothing any more.
    pub(crate) fn unsettle(&self) {
        self.lock()
            .values_mut()
            .for_each(|progress| progress.quiet_since = None);
    }

    /// Whether every partition is done.
    pub(crate) fn are_reached(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Partition, Progress>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(position: i64, next_offset: i64, queued: i64) -> Statistics {
        let partition = rdkafka::statistics::Partition {
            fetch_state: "active".into(),
            fetchq_cnt: queued,
            app_offset: position,
            next_offset,
            ..Default::default()
        };
        let mut topic = rdkafka::statistics::Topic::default();
        topic.partitions.insert(0, partition);
        let mut statistics = Statistics::default();
        statistics.topics.insert("t".into(), topic);
        statistics
    }

    fn expecting(end: i64) -> (Ends, Partition) {
        let (ends, topic) = (Ends::default(), Arc::from("t"));
        ends.expect(&topic, 0, end);
        (ends, (topic, 0))
    }

    #[test]
    fn an_end_is_reached_by_committing_up_to_it() {
        let (ends, (topic, _)) = expecting(10);
        ends.read(&topic, 0, 9);
        ends.committed(&topic, 0, 9);
        assert!(!ends.are_reached());
        ends.committed(&topic, 0, 10);
        assert!(ends.are_reached());
    }

    #[test]
    fn what_was_written_after_the_start_is_told_apart_even_when_the_end_is_reached() {
        let (ends, (topic, _)) = expecting(10);
        ends.committed(&topic, 0, 10);
        assert!(!ends.is_beyond(&topic, 0, 9));
        assert!(ends.is_beyond(&topic, 0, 10));
        assert!(ends.is_beyond(&topic, 1, 0), "a partition that was empty");
    }

    #[test]
    fn an_end_behind_transaction_markers_is_reached_once_all_that_was_read_is_committed() {
        let (ends, key) = expecting(10);
        let observe = |statistics: &Statistics| ends.observe(statistics, [&key].into_iter(), Instant::now());
        ends.read(&key.0, 0, 7);
        observe(&statistics(10, 10, 0));
        assert!(!ends.are_reached(), "a record is not committed");
        ends.committed(&key.0, 0, 8);
        observe(&statistics(8, 10, 0));
        assert!(!ends.are_reached(), "records may be on their way");
        observe(&statistics(10, 10, 0));
        assert!(ends.are_reached());
    }

    #[test]
    fn an_end_behind_a_compacted_tail_is_reached_after_a_quiet_while() {
        let (ends, key) = expecting(10);
        let start = Instant::now();
        let observe = |at| ends.observe(&statistics(8, 10, 0), [&key].into_iter(), start + at);
        observe(Duration::ZERO);
        observe(QUIET - Duration::from_millis(1));
        ends.unsettle();
        observe(QUIET);
        assert!(!ends.are_reached(), "a pause empties the queue too");
        observe(QUIET * 2);
        assert!(ends.are_reached());
    }
}
