//! Rebalances of a thread group: where a partition starts when it comes, what is finished before it goes.
//!
//! librdkafka calls back from within `poll`, on the thread group's own thread, where no transaction is ever
//! open. So what is held can be finished and committed right there.

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
use sealflow::pipeline::{Counters, Route, StopKind};

use crate::config::OffsetReset;
use crate::error::{RunError, unreachable_or_denied};
use crate::flow::{Flow, Partition, Transformed};
use crate::oversize;
use crate::reasons::Reasons;
use crate::runner::Plan;
use crate::transaction::{Failure, Refused, Transactions};

/// How long a revoked partition waits for what is held of it. Beyond that, the next owner reads it again.
const REVOKE_PATIENCE: Duration = Duration::from_secs(20);
/// How long committed offsets are asked for when partitions are assigned.
const ASSIGN_PATIENCE: Duration = Duration::from_secs(60);
/// Outcomes that one transaction gathers before it is committed, beside those of the last batch.
const GATHER_BYTES: usize = 16 << 20;
/// First and longest pause after an aborted transaction.
const ABORT_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A thread group's state: its own thread and the callbacks on that same thread use it in turn.
pub(crate) struct GroupContext {
    plan: Arc<Plan>,
    transactions: Transactions,
    held: Mutex<Held>,
    last_log: Mutex<Option<String>>,
}

/// What changes while a thread group runs.
pub(crate) struct Held {
    pub flow: Flow,
    /// Partitions assigned, each with the next offset to commit, as far as known.
    pub assigned: BTreeMap<Partition, Option<i64>>,
    /// Reading is paused at librdkafka.
    pub paused: bool,
    /// The group ends: nothing more is committed.
    pub abandoned: bool,
    /// What a callback found that must end the group.
    pub failure: Option<RunError>,
    /// No transaction before this instant.
    pub retry_at: Option<Instant>,
    aborts_in_a_row: u32,
}

impl GroupContext {
    pub(crate) fn new(plan: Arc<Plan>, transactions: Transactions) -> Self {
        let flow = Flow::new(
            plan.options.batch,
            Arc::clone(&plan.transform),
            Arc::clone(&plan.counters),
            plan.runtime.clone(),
        );
        let held = Held {
            flow,
            assigned: BTreeMap::new(),
            paused: false,
            abandoned: false,
            failure: None,
            retry_at: None,
            aborts_in_a_row: 0,
        };
        Self {
            plan,
            transactions,
            held: Mutex::new(held),
            last_log: Mutex::new(None),
        }
    }

    /// Must not be held over a call that can poll the consumer, whose callbacks take it too.
    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn last_log(&self) -> Option<String> {
        self.last_log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Commits the batches whose transforms have answered, the first within `wait`. After an abort nothing is
    /// held any more and everything dropped is to be read again. Whether anything was done.
    pub(crate) fn commit_ready(
        &self,
        consumer: &BaseConsumer<Self>,
        held: &mut Held,
        wait: Duration,
    ) -> Result<bool, RunError> {
        let mut ready = Vec::new();
        let mut wait = wait;
        let mut bytes = 0;
        while bytes < GATHER_BYTES
            && let Some(batch) = held.flow.next_transformed(wait)?
        {
            let outcomes = batch.outcomes.iter();
            bytes += outcomes.map(|outcome| outcome.record.payload_bytes()).sum::<usize>();
            ready.push(batch);
            wait = Duration::ZERO;
        }
        if ready.is_empty() {
            return Ok(false);
        }
        check_order(&held.assigned, &ready)?;
        let note = self.check_ratio(&ready)?;
        match self
            .transactions
            .commit(&ready, &self.plan.routes(), &note, || consumer.group_metadata())
        {
            Ok(committed) => {
                held.aborts_in_a_row = 0;
                for (partition, next) in crate::transaction::next_offsets(&committed.ranges) {
                    if let Some(ends) = &self.plan.ends {
                        ends.committed(&partition.0, partition.1, next);
                    }
                    held.flow.committed(&partition, next);
                    if let Some(at) = held.assigned.get_mut(&partition) {
                        *at = Some(next);
                    }
                }
                self.plan.count(&committed);
            }
            Err(Failure::Aborted(reason)) => {
                tracing::warn!(
                    reason,
                    batches = ready.len(),
                    "transaction aborted, its records are read again"
                );
                Counters::add(&self.plan.counters.aborts, 1);
                self.plan.counters.set_target_failing(true);
                for batch in &ready {
                    held.flow.rewind(&batch.ranges);
                }
                held.flow.drop_all();
                let pause = ABORT_BACKOFF
                    .0
                    .saturating_mul(1 << held.aborts_in_a_row.min(10))
                    .min(ABORT_BACKOFF.1);
                held.aborts_in_a_row += 1;
                held.retry_at = Some(Instant::now() + pause);
            }
            Err(Failure::TooLarge(refused)) => {
                self.check_refused(&refused)?;
                let read_at: Vec<_> = ready.iter().flat_map(|batch| &batch.read_at).collect();
                for refused in &refused {
                    let (position, bytes) = (&refused.position, refused.bytes);
                    tracing::warn!(%position, bytes, "larger than its topic takes: the record is set aside");
                    if let Some(read_at) = read_at.get(refused.index) {
                        held.flow.refused(read_at, refused.route);
                    }
                }
                Counters::add(&self.plan.counters.aborts, 1);
                for batch in &ready {
                    held.flow.rewind(&batch.ranges);
                }
                held.flow.drop_all();
            }
            Err(Failure::Ended(error)) => return Err(error),
        }
        Ok(true)
    }

    /// Whether every refused outcome has somewhere else to go: sealed forms to the dead letters, dead letters
    /// to the folder.
    fn check_refused(&self, refused: &[Refused]) -> Result<(), RunError> {
        let dead_letters = self.plan.config.dead_letters.as_ref();
        let folder = dead_letters.and_then(|dead| dead.oversize.as_ref());
        let lost = refused.iter().find(|refused| match refused.route {
            Route::Target => dead_letters.is_none(),
            _ => folder.is_none(),
        });
        lost.map_or(Ok(()), |refused| Err(refused.stop()))
    }

    /// The note that is committed with the offsets: how many of the last records went to the dead letters.
    fn check_ratio(&self, batches: &[Transformed]) -> Result<String, RunError> {
        let outcomes = || batches.iter().flat_map(|batch| &batch.outcomes);
        let dead = outcomes().filter(|outcome| outcome.route != Route::Target).count() as u64;
        let records = outcomes().count() as u64;
        let Some(ratio) = &self.plan.ratio else {
            return Ok(String::new());
        };
        let ratio = ratio.lock().unwrap_or_else(PoisonError::into_inner);
        if !ratio.would_pass(records, dead) {
            return Ok(ratio.note_after(records, dead));
        }
        Err(RunError::stopped(
            StopKind::Data,
            format!(
                "more records went to the dead letters than dead_letters.max_ratio allows; the batch that passed it was \
                 not written: {}",
                Reasons::of(outcomes())
            ),
            "docs/format.md says what the codes mean: correct policy or source, or raise max_ratio, and start again",
        ))
    }

    /// Finishes and commits everything held, or drops it when `patience` is over.
    fn finish(&self, consumer: &BaseConsumer<Self>, held: &mut Held, patience: Duration) -> Result<(), RunError> {
        let until = Instant::now() + patience;
        loop {
            held.flow.dispatch(true);
            if held.flow.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until || self.plan.is_stopping() {
                tracing::warn!("partitions go before their records are done, which are left to the next owner");
                held.flow.drop_all();
                return Ok(());
            }
            self.commit_ready(consumer, held, Duration::from_millis(50))?;
        }
    }

    fn assigned(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) -> Result<(), RunError> {
        let starts = self.start_offsets(consumer, partitions)?;
        self.settle_folder(&starts)?;
        let mut held = self.held();
        for element in starts.elements() {
            let topic: Arc<str> = self.plan.topic(element.topic());
            let next = element.offset().to_raw().filter(|offset| *offset >= 0);
            if let (Some(ends), Some(next)) = (&self.plan.ends, next) {
                ends.committed(&topic, element.partition(), next);
            }
            held.assigned.insert((topic, element.partition()), next);
        }
        let result = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(&starts),
            _ => consumer.assign(&starts),
        };
        result.map_err(|error| unreachable_or_denied(&error, self.last_log()))?;
        if held.paused {
            consumer
                .pause(&starts)
                .map_err(|error| unreachable_or_denied(&error, self.last_log()))?;
        }
        tracing::info!(
            partitions = starts.count(),
            total = held.assigned.len(),
            "partitions assigned"
        );
        Ok(())
    }

    /// Finishes or removes what earlier owners of these partitions left in the folder, before anything is read.
    fn settle_folder(&self, starts: &TopicPartitionList) -> Result<(), RunError> {
        let dead_letters = self.plan.config.dead_letters.as_ref();
        let Some(folder) = dead_letters.and_then(|dead| dead.oversize.as_deref()) else {
            return Ok(());
        };
        let (pipeline, is_replay) = (&self.plan.options.pipeline, self.plan.is_replay());
        for element in starts.elements() {
            let (topic, partition) = (element.topic(), element.partition());
            let committed = element.offset().to_raw().filter(|offset| *offset >= 0);
            oversize::settle(folder, pipeline, is_replay, topic, partition, committed).map_err(|error| {
                RunError::stopped(
                    StopKind::Unavailable,
                    format!(
                        "what was left unfinished in {} cannot be seen to: {error}",
                        folder.display()
                    ),
                    "allow this process to list, rename and remove files there, and start again",
                )
            })?;
        }
        Ok(())
    }

    /// The committed offset of each partition, or where a group without one starts. Asked for here and not
    /// left to `auto.offset.reset`, which could not tell a new group from records lost at the source.
    fn start_offsets(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Result<TopicPartitionList, RunError> {
        if partitions.count() == 0 {
            return Ok(TopicPartitionList::new());
        }
        let first = match self.plan.config.offset_reset() {
            OffsetReset::Earliest => Offset::Beginning,
            OffsetReset::Latest => Offset::End,
        };
        let until = Instant::now() + ASSIGN_PATIENCE;
        loop {
            let starts = committed_or(first, consumer, partitions, |note| self.remember(note))
                .and_then(|starts| pin_ends(consumer, &starts));
            match starts {
                Ok(starts) => return Ok(starts),
                Err(error) if Instant::now() >= until || self.plan.is_stopping() => {
                    return Err(unreachable_or_denied(&error, self.last_log()));
                }
                Err(error) => {
                    tracing::warn!(error = %error, "committed offsets cannot be read yet");
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
    }

    fn remember(&self, note: &str) {
        if let Some(ratio) = &self.plan.ratio {
            ratio.lock().unwrap_or_else(PoisonError::into_inner).remember(note);
        }
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        failpoint!("revoked");
        let mut held = self.held();
        let lost = consumer.assignment_lost();
        if lost || held.abandoned || held.failure.is_some() {
            held.flow.drop_all();
        } else if let Err(error) = self.finish(consumer, &mut held, REVOKE_PATIENCE) {
            held.flow.drop_all();
            held.failure = Some(error);
        }
        // librdkafka would remember the pause, and a partition that comes back would stand still.
        if held.paused
            && let Err(error) = consumer.resume(partitions)
        {
            tracing::warn!(error = %error, "partitions could not be resumed");
        }
        for element in partitions.elements() {
            let partition = (self.plan.topic(element.topic()), element.partition());
            held.flow.forget(&partition);
            held.assigned.remove(&partition);
            self.plan.counters.set_lag(&partition.0, partition.1, None);
        }
        let result = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
            _ => consumer.unassign(),
        };
        if let Err(error) = result {
            tracing::warn!(error = %error, "partitions could not be given back");
        }
        tracing::info!(
            partitions = partitions.count(),
            total = held.assigned.len(),
            lost,
            "partitions revoked"
        );
    }
}

/// The last line of defence of "once": no transaction holds a record that an earlier one has committed.
fn check_order(assigned: &BTreeMap<Partition, Option<i64>>, batches: &[Transformed]) -> Result<(), RunError> {
    let mut next = BTreeMap::new();
    for (partition, offsets) in batches.iter().flat_map(|batch| &batch.ranges) {
        let after = assigned.get(partition).copied().flatten();
        let after = next.insert(partition, offsets.next).or(after);
        let again = after.filter(|after| offsets.first < *after);
        if again.is_some() || !offsets.in_order {
            let ((topic, number), first) = (partition, offsets.first);
            let what = match again {
                Some(after) => {
                    format!("{topic}/{number}/{first} was to be written again, although all before {after} is done")
                }
                None => format!("records of {topic}/{number} after {first} were to be written out of order"),
            };
            return Err(RunError::stopped(
                StopKind::Internal,
                what,
                "nothing of it was written; this is a bug in sealflow: please report it with the log",
            ));
        }
    }
    Ok(())
}

fn committed_or(
    first: Offset,
    consumer: &BaseConsumer<GroupContext>,
    partitions: &TopicPartitionList,
    remember: impl Fn(&str),
) -> Result<TopicPartitionList, KafkaError> {
    let committed = consumer.committed_offsets(partitions.clone(), Duration::from_secs(5))?;
    let mut starts = TopicPartitionList::with_capacity(committed.count());
    for element in committed.elements() {
        element.error()?;
        let offset = match element.offset() {
            offset @ Offset::Offset(_) => {
                // rdkafka panics on metadata that is not UTF-8, which another program may have committed.
                if let Ok(note) = catch_unwind(AssertUnwindSafe(|| element.metadata().to_owned())) {
                    remember(&note);
                }
                offset
            }
            _ => first,
        };
        starts.add_partition_offset(element.topic(), element.partition(), offset)?;
    }
    Ok(starts)
}

/// Where a group starts at the end of a partition, that end becomes its committed offset before anything is read:
/// whoever takes over before the first commit must not take a later end for it.
fn pin_ends(
    consumer: &BaseConsumer<GroupContext>,
    starts: &TopicPartitionList,
) -> Result<TopicPartitionList, KafkaError> {
    let mut pinned = TopicPartitionList::with_capacity(starts.count());
    let mut ends = TopicPartitionList::new();
    for element in starts.elements() {
        let (topic, partition, mut offset) = (element.topic(), element.partition(), element.offset());
        if offset == Offset::End {
            let (_, end) = consumer.fetch_watermarks(topic, partition, Duration::from_secs(5))?;
            offset = Offset::Offset(end);
            ends.add_partition_offset(topic, partition, offset)?;
        }
        pinned.add_partition_offset(topic, partition, offset)?;
    }
    if ends.count() > 0 {
        consumer.commit(&ends, CommitMode::Sync)?;
    }
    Ok(pinned)
}

impl ConsumerContext for GroupContext {
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

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line, &self.last_log);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(error = %error, reason, "librdkafka consumer error");
    }

    fn stats(&self, statistics: Statistics) {
        let held = self.held();
        if let Some(ends) = &self.plan.ends
            && !held.paused
        {
            ends.observe(&statistics, held.assigned.keys(), Instant::now());
        }
        let is_up = |broker: &rdkafka::statistics::Broker| broker.state == "UP";
        self.plan
            .counters
            .set_source_away(!statistics.brokers.values().any(is_up));
        let idle = held.flow.is_empty();
        for ((topic, number), next) in &held.assigned {
            let found = statistics
                .topics
                .get(topic.as_ref())
                .and_then(|topic| topic.partitions.get(number));
            let Some(partition) = found else { continue };
            let end = if partition.ls_offset >= 0 {
                partition.ls_offset
            } else {
                partition.hi_offset
            };
            let position = next.unwrap_or(partition.lo_offset.max(0));
            self.plan.counters.set_position(topic, *number, position);
            // Beyond the last record there may be transaction markers, which are never committed.
            let all_done = idle && partition.app_offset >= end;
            let lag = if all_done { 0 } else { end - position };
            self.plan.counters.set_lag(topic, *number, Some(lag.max(0)));
        }
    }
}

/// librdkafka's log in ours. It holds no payload: names, addresses, states, error codes.
pub(crate) fn log_line(level: RDKafkaLogLevel, facility: &str, line: &str, last: &Mutex<Option<String>>) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::warn!(facility, line, "librdkafka");
            let text = line.rsplit_once("]: ").map_or(line, |(_, text)| text);
            *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.to_owned());
        }
        RDKafkaLogLevel::Warning => tracing::info!(facility, line, "librdkafka"),
        _ => tracing::debug!(facility, line, "librdkafka"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::Offsets;

    #[test]
    fn a_transaction_that_repeats_what_is_committed_is_refused() {
        let partition: Partition = ("t".into(), 0);
        let batch = |first, next| Transformed {
            ranges: [(
                partition.clone(),
                Offsets {
                    first,
                    next,
                    in_order: true,
                },
            )]
            .into(),
            ..Transformed::new(&[], Vec::new(), tracing::Span::none())
        };
        let check = |committed: Option<i64>, batches: &[Transformed]| {
            check_order(&[(partition.clone(), committed)].into(), batches).map_err(|error| error.to_string())
        };
        assert_eq!(check(Some(5), &[batch(5, 8), batch(9, 12)]), Ok(()));
        assert_eq!(check(None, &[batch(0, 8)]), Ok(()));
        let again = check(Some(5), &[batch(4, 8)]).unwrap_err();
        assert!(
            again.contains("t/0/4 was to be written again, although all before 5"),
            "{again}"
        );
        assert!(
            check(Some(5), &[batch(5, 8), batch(7, 9)]).is_err(),
            "within one transaction too"
        );
        let mut mixed = batch(5, 8);
        mixed.ranges.values_mut().for_each(|offsets| offsets.in_order = false);
        assert!(check(None, &[mixed]).unwrap_err().contains("out of order"));
    }
}
