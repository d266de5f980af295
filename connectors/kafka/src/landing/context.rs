//! Rebalances of a landing: where a partition begins when it comes. What is held of one that goes is dropped: its offsets were
//! not committed, and the next owner follows what was put.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::Statistics;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use sealflow::pipeline::Counters;
use sealflow::table::landing::{LandingError, Stretch, Whose};

use super::part::Part;
use super::runner::LandingPlan;
use crate::config::OffsetReset;
use crate::context::log_line;
use crate::error::{RunError, unreachable_or_denied};
use crate::flow::Partition;

/// How long committed offsets are asked for when partitions are assigned.
const ASSIGN_PATIENCE: Duration = Duration::from_secs(60);
const CALL: Duration = Duration::from_secs(5);
/// Stands in the metadata of offsets that a landing has committed at the end of a stretch.
pub(super) const LANDED: &str = "landed";

/// A thread group's state: its own thread and the callbacks on that same thread use it in turn.
pub(super) struct LandingContext {
    plan: Arc<LandingPlan>,
    held: Mutex<Held>,
    last_log: Mutex<Option<String>>,
}

/// What changes while a thread group runs.
#[derive(Default)]
pub(super) struct Held {
    pub(super) parts: BTreeMap<Partition, Part>,
    /// Partitions that went since this was last looked at: what was read of them is to be forgotten, before anything that is
    /// read after they have come again.
    pub(super) gone: Vec<Partition>,
    /// What a callback found that must end the group.
    pub(super) failure: Option<RunError>,
    epochs: u64,
}

impl LandingContext {
    pub(super) fn new(plan: Arc<LandingPlan>) -> Self {
        Self {
            plan,
            held: Mutex::default(),
            last_log: Mutex::new(None),
        }
    }

    /// Must not be held over a call that can poll the consumer, whose callbacks take it too.
    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: &KafkaError) -> RunError {
        let log = self.last_log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        unreachable_or_denied(error, log)
    }

    fn assigned(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> Result<(), RunError> {
        let starts = self.starts(consumer, partitions)?;
        let mut list = TopicPartitionList::with_capacity(starts.len());
        let mut held = self.held();
        for ((topic, partition), (start, is_trusted)) in &starts {
            let whose = Whose {
                pipeline: self.plan.options.pipeline.clone(),
                dataset: self.plan.options.dataset.clone(),
                topic: topic.to_string(),
                partition: *partition,
            };
            let by = self.plan.options.partition_by.clone();
            let stretch = Stretch::new(Arc::new(whose), by, *start, *is_trusted).map_err(|error| stopped(&error))?;
            held.epochs += 1;
            let part = Part::new(held.epochs, stretch, self.plan.options.format)?;
            held.parts.insert((Arc::clone(topic), *partition), part);
            if let Some(ends) = &self.plan.ends {
                ends.committed(topic, *partition, *start);
            }
            let added = list.add_partition_offset(topic, *partition, Offset::Offset(*start));
            added.map_err(|error| self.failed(&error))?;
        }
        let total = held.parts.len();
        drop(held);
        let result = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(&list),
            _ => consumer.assign(&list),
        };
        // Nothing is read before it is known whether there is an intent.
        let result = result.and_then(|()| {
            if list.count() > 0 {
                consumer.pause(&list)
            } else {
                Ok(())
            }
        });
        result.map_err(|error| self.failed(&error))?;
        tracing::info!(partitions = list.count(), total, "partitions assigned");
        Ok(())
    }

    /// Where each partition begins, and whether a landing has committed it so.
    fn starts(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Result<BTreeMap<Partition, (i64, bool)>, RunError> {
        if partitions.count() == 0 {
            return Ok(BTreeMap::new());
        }
        let until = Instant::now() + ASSIGN_PATIENCE;
        loop {
            match self.try_starts(consumer, partitions) {
                Ok(starts) => return Ok(starts),
                Err(error) if Instant::now() >= until || self.plan.is_stopping() => return Err(self.failed(&error)),
                Err(error) => {
                    tracing::warn!(error = %error, "committed offsets cannot be read yet");
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
    }

    fn try_starts(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Result<BTreeMap<Partition, (i64, bool)>, KafkaError> {
        let committed = consumer.committed_offsets(partitions.clone(), CALL)?;
        let mut starts = BTreeMap::new();
        let mut pinned = TopicPartitionList::new();
        for element in committed.elements() {
            element.error()?;
            let (topic, partition) = (element.topic(), element.partition());
            let start = match element.offset() {
                Offset::Offset(offset) => {
                    // rdkafka panics on metadata that is not UTF-8, which another program may have committed.
                    let note = catch_unwind(AssertUnwindSafe(|| element.metadata().to_owned())).unwrap_or_default();
                    self.plan.remember(&note);
                    (offset, note.split_whitespace().any(|word| word == LANDED))
                }
                _ => {
                    // The first start is the group's, whoever dies before its first commit.
                    let (low, high) = consumer.fetch_watermarks(topic, partition, CALL)?;
                    let start = match self.plan.config.offset_reset() {
                        OffsetReset::Earliest => low,
                        OffsetReset::Latest => high,
                    };
                    pinned.add_partition_offset(topic, partition, Offset::Offset(start))?;
                    (start, false)
                }
            };
            starts.insert((self.plan.topic(topic), partition), start);
        }
        if pinned.count() > 0 {
            consumer.commit(&pinned, CommitMode::Sync)?;
        }
        Ok(starts)
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        failpoint!("revoked");
        let lost = consumer.assignment_lost();
        let mut held = self.held();
        for element in partitions.elements() {
            let partition = (self.plan.topic(element.topic()), element.partition());
            held.parts.remove(&partition);
            self.plan.counters.set_lag(&partition.0, partition.1, None);
            held.gone.push(partition);
        }
        let total = held.parts.len();
        drop(held);
        // librdkafka would remember the pause, and a partition that comes back would stand still.
        if partitions.count() > 0
            && let Err(error) = consumer.resume(partitions)
        {
            tracing::warn!(error = %error, "partitions could not be resumed");
        }
        let result = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
            _ => consumer.unassign(),
        };
        if let Err(error) = result {
            tracing::warn!(error = %error, "partitions could not be given back");
        }
        tracing::info!(partitions = partitions.count(), total, lost, "partitions revoked");
    }
}

/// A landing that cannot go on.
pub(super) fn stopped(error: &LandingError) -> RunError {
    RunError::stopped(error.kind(), error.to_string(), error.help())
}

impl ConsumerContext for LandingContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        Counters::add(&self.plan.counters.rebalances, 1);
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            if let Err(error) = self.assigned(consumer, partitions) {
                self.held().failure = Some(error);
            }
        } else {
            self.revoked(consumer, partitions);
        }
    }
}

impl ClientContext for LandingContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line, &self.last_log);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(error = %error, reason, "librdkafka consumer error");
    }

    fn stats(&self, statistics: Statistics) {
        let held = self.held();
        if let Some(ends) = &self.plan.ends {
            let fetching = held.parts.iter().filter(|(_, part)| part.is_fetching);
            ends.observe(&statistics, fetching.map(|(partition, _)| partition), Instant::now());
        }
        let is_up = |broker: &rdkafka::statistics::Broker| broker.state == "UP";
        let counters = &self.plan.counters;
        counters.set_source_away(!statistics.brokers.values().any(is_up));
        for ((topic, number), part) in &held.parts {
            let topics = statistics.topics.get(topic.as_ref());
            let Some(found) = topics.and_then(|topic| topic.partitions.get(number)) else {
                continue;
            };
            let end = if found.ls_offset >= 0 {
                found.ls_offset
            } else {
                found.hi_offset
            };
            let position = part.stretch.start();
            counters.set_position(topic, *number, position);
            // Beyond the last record there may be transaction markers, which are never committed.
            let all_done = part.stretch.is_idle() && found.app_offset >= end;
            let lag = if all_done { 0 } else { end - position };
            counters.set_lag(topic, *number, Some(lag.max(0)));
        }
    }
}
