//! Follows a run that ends: it is done when every partition is committed up to the end seen at start.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::Statistics;

type Partition = (Arc<str>, i32);

/// Progress of all partitions, shared by the thread groups of one process.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    open: Mutex<BTreeMap<Partition, Progress>>,
}

#[derive(Debug, Default)]
struct Progress {
    /// First offset that is not part of this run.
    end: i64,
    /// One more than the highest offset that was handed to a transform, by any thread group.
    read: i64,
    /// One more than the highest committed offset.
    committed: i64,
}

impl Ends {
    /// Adds a partition whose offsets in `[start, end)` may hold records.
    pub(crate) fn expect(&self, topic: &Arc<str>, partition: i32, end: i64) {
        self.lock().insert(
            (Arc::clone(topic), partition),
            Progress {
                end,
                ..Progress::default()
            },
        );
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

    /// Looks for partitions whose last offsets hold no record (transaction markers, compaction): librdkafka
    /// has fetched beyond the end, its queues are empty, and all that was read is committed.
    pub(crate) fn observe(&self, statistics: &Statistics) {
        self.lock().retain(|(topic, number), progress| {
            let partition = statistics
                .topics
                .get(topic.as_ref())
                .and_then(|topic| topic.partitions.get(number));
            let passed = partition.is_some_and(|partition| {
                partition.fetch_state == "active"
                    && partition.fetchq_cnt == 0
                    && partition.next_offset >= progress.end
                    && progress.committed >= progress.read
            });
            !passed
        });
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

    fn statistics(next_offset: i64, queued: i64) -> Statistics {
        let partition = rdkafka::statistics::Partition {
            fetch_state: "active".into(),
            fetchq_cnt: queued,
            next_offset,
            ..Default::default()
        };
        let mut topic = rdkafka::statistics::Topic::default();
        topic.partitions.insert(0, partition);
        let mut statistics = Statistics::default();
        statistics.topics.insert("t".into(), topic);
        statistics
    }

    #[test]
    fn an_end_is_reached_by_committing_up_to_it() {
        let (ends, topic) = (Ends::default(), Arc::from("t"));
        ends.expect(&topic, 0, 10);
        ends.read(&topic, 0, 9);
        ends.committed(&topic, 0, 9);
        assert!(!ends.are_reached());
        ends.committed(&topic, 0, 10);
        assert!(ends.are_reached());
    }

    #[test]
    fn an_end_behind_transaction_markers_is_reached_once_all_that_was_read_is_committed() {
        let (ends, topic) = (Ends::default(), Arc::from("t"));
        ends.expect(&topic, 0, 10);
        ends.read(&topic, 0, 7);
        ends.observe(&statistics(10, 0));
        assert!(!ends.are_reached(), "a record is not committed");
        ends.committed(&topic, 0, 8);
        ends.observe(&statistics(9, 0));
        assert!(!ends.are_reached(), "offset 9 was not fetched");
        ends.observe(&statistics(10, 1));
        assert!(!ends.are_reached(), "something waits in the queue");
        ends.observe(&statistics(10, 0));
        assert!(ends.are_reached());
    }
}
