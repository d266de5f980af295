//! One transaction: outcomes and source offsets become visible together, or not at all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sealflow::pipeline::{Outcome, Route, StopKind};

use crate::context::log_line;
use crate::error::{RunError, Verdict, unreachable_or_denied, verdict};
use crate::flow::{Ranges, Transformed};
use crate::properties::{Identity, producer as producer_properties};
use crate::record::to_message;
use crate::runner::Plan;
use crate::topics::Routes;
use crate::watch::Watch;

/// One call's share of a wait: short, so that a call can be made again and progress be logged.
const CALL: Duration = Duration::from_secs(5);
/// How long brokers may be away while a transaction ends. Longer than `transaction.timeout.ms`, after which
/// the coordinator has decided by itself, and well below `max.poll.interval.ms`, during which we do not poll.
const PATIENCE: Duration = Duration::from_secs(90);

/// How a transaction ended, if it did not commit.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing of it is visible; its records must be read again.
    Aborted(String),
    /// The thread group must end.
    Ended(RunError),
}

/// A transactional producer and what its deliveries said.
pub(crate) struct Transactions {
    producer: ThreadedProducer<Deliveries>,
    instance: String,
    watch: Watch,
}

/// What was committed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Committed {
    pub records: u64,
    pub dead_letters: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Next offset per partition.
    pub ranges: Ranges,
}

impl Transactions {
    /// Connects, fences older producers of the same identity and ends their open transaction.
    pub(crate) fn start(plan: &Plan, identity: &Identity<'_>) -> Result<Self, RunError> {
        let producer: ThreadedProducer<Deliveries> = producer_properties(&plan.config, identity)
            .create_with_context(Deliveries::default())
            .map_err(|error| plan.client_not_made("target.kafka.properties", &error))?;
        let transactions = Self {
            producer,
            instance: plan.options.instance.clone(),
            watch: plan.watch.clone(),
        };
        let started = Instant::now();
        loop {
            match transactions.producer.init_transactions(CALL) {
                Ok(()) => return Ok(transactions),
                Err(error) => match verdict(&error) {
                    Verdict::Again | Verdict::Abort if started.elapsed() < plan.patience() && !plan.is_stopping() => {}
                    Verdict::Fenced => return Err(transactions.fenced()),
                    _ => {
                        return Err(unreachable_or_denied(
                            &error,
                            transactions.producer.context().last_log(),
                        ));
                    }
                },
            }
        }
    }

    /// Writes batches and the offsets they came from. On [`Failure::Aborted`] nothing of it is visible.
    pub(crate) fn commit(
        &self,
        batches: &[Transformed],
        routes: &Routes,
        metadata: impl FnOnce() -> Option<ConsumerGroupMetadata>,
    ) -> Result<Committed, Failure> {
        self.producer.context().clear();
        match self.producer.begin_transaction() {
            Ok(()) => {}
            Err(error) => return Err(self.ended(&error, "begin")),
        }
        match self.fill(batches, routes, metadata) {
            Ok(committed) => Ok(committed),
            Err(Failure::Aborted(reason)) => {
                self.abort()?;
                Err(Failure::Aborted(reason))
            }
            Err(Failure::Ended(error)) => {
                // Best effort: what is not aborted here, the next start or the coordinator's timeout aborts.
                let _ = self.abort();
                Err(Failure::Ended(error))
            }
        }
    }

    fn fill(
        &self,
        batches: &[Transformed],
        routes: &Routes,
        metadata: impl FnOnce() -> Option<ConsumerGroupMetadata>,
    ) -> Result<Committed, Failure> {
        let mut committed = Committed::default();
        let outcomes: Vec<&Outcome> = batches.iter().flat_map(|batch| &batch.outcomes).collect();
        for (index, outcome) in outcomes.iter().enumerate() {
            self.send(outcome, index, routes)?;
            committed.records += 1;
            committed.dead_letters += u64::from(outcome.route == Route::DeadLetter);
            committed.bytes_sent += outcome.record.payload_bytes() as u64;
        }
        for batch in batches {
            committed.bytes_received += batch.source_bytes;
            for (partition, offsets) in &batch.ranges {
                committed
                    .ranges
                    .entry(partition.clone())
                    .and_modify(|o| o.next = offsets.next)
                    .or_insert(*offsets);
            }
        }
        self.patiently("flush", || self.producer.flush(CALL))
            .map_err(|failure| self.explain(failure, &outcomes))?;
        self.check_deliveries(&outcomes)?;
        let offsets = offset_list(&committed.ranges).map_err(|error| self.ended(&error, "list offsets"))?;
        // Read afresh, so that a member of an older generation is refused.
        let Some(metadata) = metadata() else {
            return Err(Failure::Aborted("the consumer has no group metadata".into()));
        };
        self.patiently("send offsets", || {
            self.producer.send_offsets_to_transaction(&offsets, &metadata, CALL)
        })?;
        self.patiently("commit", || self.producer.commit_transaction(CALL))
            .map_err(|failure| self.explain(failure, &outcomes))?;
        Ok(committed)
    }

    fn send(&self, outcome: &Outcome, index: usize, routes: &Routes) -> Result<(), Failure> {
        let record = &outcome.record;
        let position = &record.position;
        let (topic, partition) = match outcome.route {
            Route::Target => (
                routes.target(&position.topic).map_err(Failure::Ended)?,
                position.partition,
            ),
            Route::DeadLetter => routes.dead_letter(position).map_err(Failure::Ended)?,
        };
        let mut message = to_message(topic, partition, record, index);
        if outcome.route == Route::DeadLetter {
            message.key = None;
        }
        let started = Instant::now();
        loop {
            match self.producer.send(message) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    if started.elapsed() > PATIENCE {
                        return Err(Failure::Aborted("the producer's queue stays full".into()));
                    }
                    message = back;
                    // The producer's own thread empties the queue.
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((KafkaError::MessageProduction(code), _)) => return Err(not_delivered(outcome, code)),
                Err((error, _)) => return Err(self.ended(&error, "produce")),
            }
        }
    }

    /// Aborts the open transaction.
    fn abort(&self) -> Result<(), Failure> {
        self.patiently("abort", || self.producer.abort_transaction(CALL))
            .map_err(|failure| match failure {
                Failure::Aborted(reason) => Failure::Ended(RunError::Unavailable { reason }),
                ended @ Failure::Ended(_) => ended,
            })
    }

    /// Makes a call again for as long as that may help.
    fn patiently(&self, what: &str, call: impl Fn() -> Result<(), KafkaError>) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            let Err(error) = self.watch.call(what, &call) else {
                return Ok(());
            };
            match verdict(&error) {
                Verdict::Again if started.elapsed() < PATIENCE => {
                    tracing::debug!(what, error = %error, "transaction call is made again");
                }
                // Whether a commit came through is decided by the next start: it fences this producer and
                // then reads the offsets.
                Verdict::Again => return Err(self.ended_unavailable(what, &error)),
                Verdict::Abort => return Err(Failure::Aborted(format!("{what}: {error}"))),
                Verdict::Fenced | Verdict::Fatal => return Err(self.ended(&error, what)),
            }
        }
    }

    fn check_deliveries(&self, outcomes: &[&Outcome]) -> Result<(), Failure> {
        match self.producer.context().first_failure() {
            Some((index, code)) => match outcomes.get(index) {
                Some(outcome) => Err(not_delivered(outcome, code)),
                None => Err(Failure::Aborted(format!("a record was not delivered: {code}"))),
            },
            None => Ok(()),
        }
    }

    /// A failed delivery says more than the abort it leads to.
    fn explain(&self, failure: Failure, outcomes: &[&Outcome]) -> Failure {
        match (&failure, self.check_deliveries(outcomes)) {
            (Failure::Aborted(_), Err(better)) => better,
            _ => failure,
        }
    }

    fn fenced(&self) -> RunError {
        RunError::Fenced {
            instance: self.instance.clone(),
        }
    }

    fn ended(&self, error: &KafkaError, what: &str) -> Failure {
        if verdict(error) == Verdict::Fenced {
            return Failure::Ended(self.fenced());
        }
        if let Some((code, _)) = self.producer.client().fatal_error()
            && crate::error::is_fencing(code)
        {
            return Failure::Ended(self.fenced());
        }
        Failure::Ended(RunError::stopped(
            StopKind::Unavailable,
            format!("{what}: {error}"),
            "start again: the work goes on where the last commit was",
        ))
    }

    fn ended_unavailable(&self, what: &str, error: &KafkaError) -> Failure {
        Failure::Ended(unreachable_or_denied(error, Some(format!("while trying to {what}"))))
    }
}

/// What a refused record means: some refusals cannot get better by trying again.
fn not_delivered(outcome: &Outcome, code: RDKafkaErrorCode) -> Failure {
    let position = &outcome.record.position;
    let size = outcome.record.payload_bytes();
    let stopped = |reason: String, help: &str| Failure::Ended(RunError::stopped(StopKind::Config, reason, help));
    match code {
        RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize => stopped(
            format!("the outcome of {position} has {size} bytes, more than the target takes"),
            "raise max.message.bytes of the target topic (and message.max.bytes in target.kafka.properties)",
        ),
        RDKafkaErrorCode::UnknownPartition => stopped(
            format!("the target of {position} has no partition {}", position.partition),
            "add partitions to the target topic until it has as many as the source",
        ),
        RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition => stopped(
            format!("the target topic of {position} does not exist"),
            "create it with the source's partition count, or set target.kafka.create: true",
        ),
        RDKafkaErrorCode::InvalidTimestamp => stopped(
            format!("the target refuses the timestamp of {position}"),
            "widen message.timestamp.before.max.ms and message.timestamp.after.max.ms of the target topic",
        ),
        RDKafkaErrorCode::InvalidRecord | RDKafkaErrorCode::PolicyViolation => stopped(
            format!("the target refuses the outcome of {position}: {code}"),
            "a compacted topic takes no record without a key: check cleanup.policy of target and dead letters",
        ),
        code if crate::error::is_denial(code) => Failure::Ended(RunError::Denied {
            reason: format!("writing the outcome of {position}: {code}"),
        }),
        code => Failure::Aborted(format!("the outcome of {position} was not delivered: {code}")),
    }
}

fn offset_list(ranges: &Ranges) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(ranges.len());
    for ((topic, partition), offsets) in ranges {
        list.add_partition_offset(topic, *partition, Offset::Offset(offsets.next))?;
    }
    Ok(list)
}

/// Remembers the first failed delivery of a transaction.
#[derive(Default)]
struct Deliveries {
    failure: Mutex<Option<(usize, RDKafkaErrorCode)>>,
    last_log: Mutex<Option<String>>,
}

impl Deliveries {
    fn clear(&self) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn first_failure(&self) -> Option<(usize, RDKafkaErrorCode)> {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_log(&self) -> Option<String> {
        self.last_log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line, &self.last_log);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(error = %error, reason, "librdkafka producer error");
    }

    fn stats(&self, _: rdkafka::Statistics) {}
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        if let Err((error, _)) = result {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            // Deliveries purged by an abort follow from an earlier failure and say nothing.
            if !matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) {
                self.failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert((index, code));
            }
        }
    }
}

/// Offsets by partition, for the rooms that follow progress.
pub(crate) fn next_offsets(ranges: &Ranges) -> BTreeMap<(Arc<str>, i32), i64> {
    ranges
        .iter()
        .map(|(partition, offsets)| (partition.clone(), offsets.next))
        .collect()
}
