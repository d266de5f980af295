//! One transaction: outcomes and source offsets become visible together, or not at all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sealflow::pipeline::{Outcome, Position, Route, SPANS, StopKind};

use crate::context::log_line;
use crate::error::{RunError, Verdict, unreachable_or_denied, verdict};
use crate::flow::{Ranges, Transformed};
use crate::oversize::OversizeFolder;
use crate::properties::{Identity, producer as producer_properties};
use crate::reasons::Reasons;
use crate::record::to_message;
use crate::runner::Plan;
use crate::topics::Routes;
use crate::watch::Watch;

/// One call's share of a wait: short, so that a call can be made again and progress be logged.
const CALL: Duration = Duration::from_secs(5);
/// The same of a flush, after which it is looked whether anything was refused.
const FLUSH: Duration = Duration::from_millis(500);
/// How long brokers may be away while a transaction ends. Longer than `transaction.timeout.ms`, after which
/// the coordinator has decided by itself, and well below `max.poll.interval.ms`, during which we do not poll.
const PATIENCE: Duration = Duration::from_secs(90);

/// How a transaction ended, if it did not commit.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing of it is visible; its records must be read again.
    Aborted(String),
    /// As aborted, and these outcomes are larger than their topic takes.
    TooLarge(Vec<Refused>),
    /// The thread group must end.
    Ended(RunError),
}

/// An outcome that is larger than its topic takes.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    /// Its number in the transaction.
    pub index: usize,
    pub position: Position,
    pub route: Route,
    pub bytes: usize,
}

impl Refused {
    fn new(outcomes: &[&Outcome], index: usize) -> Self {
        let outcome = outcomes[index];
        Self {
            index,
            position: outcome.record.position.clone(),
            route: outcome.route,
            bytes: outcome.record.payload_bytes(),
        }
    }

    /// The end of a pipeline in which it has nowhere else to go.
    pub(crate) fn stop(&self) -> RunError {
        let (what, target, missing) = match self.route {
            Route::Target => ("outcome", "target", "dead_letters"),
            _ => ("dead letter", "dead-letter topic", "dead_letters.oversize: FOLDER"),
        };
        let (position, bytes) = (&self.position, self.bytes);
        RunError::stopped(
            StopKind::Config,
            format!("the {what} of {position} has {bytes} bytes, more than the {target} takes"),
            format!(
                "add `{missing}` to the pipeline, or raise max.message.bytes of the {target} (and message.max.bytes in target.kafka.properties)"
            ),
        )
    }
}

/// A transactional producer and what its deliveries said.
pub(crate) struct Transactions {
    producer: ThreadedProducer<Deliveries>,
    instance: String,
    watch: Watch,
    oversize: Option<OversizeFolder>,
    /// Bytes sent before the producer is emptied; lowered when a topic refuses a batch of records whose sum is
    /// too large for it, and not the single record.
    chunk: AtomicUsize,
}

/// What was committed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Committed {
    pub records: u64,
    pub dead_letters: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Why records became dead letters.
    pub reasons: Reasons,
    /// Next offset per partition.
    pub ranges: Ranges,
}

impl Transactions {
    /// Connects, fences older producers of the same identity and ends their open transaction.
    pub(crate) fn start(plan: &Plan, identity: &Identity<'_>) -> Result<Self, RunError> {
        let producer: ThreadedProducer<Deliveries> = producer_properties(&plan.config, identity)
            .create_with_context(Deliveries::default())
            .map_err(|error| plan.client_not_made("target.kafka.properties", &error))?;
        let oversize = plan
            .config
            .dead_letters
            .as_ref()
            .and_then(|dead| dead.oversize.as_ref());
        let oversize = oversize
            .map(|folder| OversizeFolder::new(folder, &plan.options.pipeline, plan.is_replay()))
            .transpose()
            .map_err(|error| {
                let reason = format!("the system has no random numbers: {error}");
                RunError::stopped(StopKind::Unavailable, reason, "start again")
            })?;
        let transactions = Self {
            producer,
            instance: plan.options.instance.clone(),
            watch: plan.watch.clone(),
            oversize,
            chunk: AtomicUsize::new(usize::MAX),
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

    /// Writes batches and the offsets they came from, with `note` as their metadata. On [`Failure::Aborted`] nothing of it is visible.
    pub(crate) fn commit(
        &self,
        batches: &[Transformed],
        routes: &Routes,
        note: &str,
        metadata: impl FnOnce() -> Option<ConsumerGroupMetadata>,
    ) -> Result<Committed, Failure> {
        failpoint!("begin", injected("begin"));
        let parent = batches.first().and_then(|batch| batch.span.id());
        let (count, unknown) = (batches.len(), tracing::field::Empty);
        let span =
            tracing::debug_span!(target: SPANS, parent: parent, "transaction", batches = count, outcome = unknown);
        let _in_span = span.enter();
        self.producer.context().clear();
        match self.producer.begin_transaction() {
            Ok(()) => {}
            Err(error) => return Err(self.ended(&error, "begin")),
        }
        match self.fill(batches, routes, note, metadata) {
            Ok(committed) => {
                self.of_folder(OversizeFolder::committed);
                span.record("outcome", "committed");
                Ok(committed)
            }
            Err(Failure::Aborted(reason)) => {
                span.record("outcome", "aborted");
                self.abort_all()?;
                // A refusal that came while records were still being sent shows as a bad state first, and is reported
                // by the end of the abort.
                let outcomes: Vec<&Outcome> = batches.iter().flat_map(|batch| &batch.outcomes).collect();
                Err(self.explain(Failure::Aborted(reason), &outcomes, routes))
            }
            Err(Failure::TooLarge(refused)) => {
                self.abort_all()?;
                Err(Failure::TooLarge(refused))
            }
            Err(Failure::Ended(error)) => {
                // Best effort: what is not aborted here, the next start or the coordinator's timeout aborts.
                let _ = self.abort();
                // It may even have committed: the next start knows.
                self.of_folder(OversizeFolder::left_open);
                Err(Failure::Ended(error))
            }
        }
    }

    fn fill(
        &self,
        batches: &[Transformed],
        routes: &Routes,
        note: &str,
        metadata: impl FnOnce() -> Option<ConsumerGroupMetadata>,
    ) -> Result<Committed, Failure> {
        let mut committed = Committed::default();
        let outcomes: Vec<&Outcome> = batches.iter().flat_map(|batch| &batch.outcomes).collect();
        let mut read_at = batches.iter().flat_map(|batch| &batch.read_at);
        committed.reasons = Reasons::of(outcomes.iter().copied());
        let chunk = self.chunk.load(Ordering::Relaxed);
        let mut unflushed = 0;
        let producing = tracing::debug_span!(target: SPANS, "produce", records = outcomes.len()).entered();
        for (index, outcome) in outcomes.iter().enumerate() {
            let bytes = outcome.record.payload_bytes();
            if unflushed > 0 && unflushed + bytes > chunk {
                self.flush(&outcomes, routes)?;
                unflushed = 0;
            }
            failpoint!("send", injected("send"));
            match (outcome.route, read_at.next()) {
                (Route::Oversize, Some(read_at)) => self.set_aside(&outcomes, index, read_at)?,
                _ => self.send(&outcomes, index, routes)?,
            }
            unflushed += bytes;
            committed.records += 1;
            committed.dead_letters += u64::from(outcome.route != Route::Target);
            committed.bytes_sent += bytes as u64;
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
        failpoint!("flush", injected("flush"));
        self.flush(&outcomes, routes)?;
        drop(producing);
        let _committing = tracing::debug_span!(target: SPANS, "commit", partitions = committed.ranges.len()).entered();
        failpoint!("send-offsets", injected("send offsets"));
        let offsets = offset_list(&committed.ranges, note).map_err(|error| self.ended(&error, "list offsets"))?;
        // Read afresh, so that a member of an older generation is refused.
        let Some(metadata) = metadata() else {
            return Err(Failure::Aborted("the consumer has no group metadata".into()));
        };
        self.patiently("send offsets", || {
            self.producer.send_offsets_to_transaction(&offsets, &metadata, CALL)
        })?;
        failpoint!("before-commit", injected("commit"));
        self.patiently("commit", || self.producer.commit_transaction(CALL))
            .map_err(|failure| self.explain(failure, &outcomes, routes))?;
        // No error here: what is committed cannot be aborted.
        failpoint!("after-commit");
        Ok(committed)
    }

    /// Everything sent so far is delivered.
    fn flush(&self, outcomes: &[&Outcome], routes: &Routes) -> Result<(), Failure> {
        let flush = || self.producer.flush(FLUSH);
        // After a refusal librdkafka keeps what is still queued until the abort, so a flush would never end.
        self.patiently_while("flush", flush, || self.check_deliveries(outcomes, routes))
            .map_err(|failure| self.explain(failure, outcomes, routes))?;
        self.check_deliveries(outcomes, routes)
    }

    /// Writes a dead letter to the folder, where it counts once the transaction has committed.
    fn set_aside(&self, outcomes: &[&Outcome], index: usize, read_at: &Position) -> Result<(), Failure> {
        let Some(folder) = &self.oversize else {
            return Err(Failure::Ended(Refused::new(outcomes, index).stop()));
        };
        // A full disk may have room again: nothing is committed until then.
        folder.write(&outcomes[index].record, read_at).map_err(|error| {
            let folder = folder.path().display();
            Failure::Aborted(format!("dead letters cannot be written to {folder}: {error}"))
        })
    }

    fn of_folder(&self, what: impl FnOnce(&OversizeFolder)) {
        if let Some(folder) = &self.oversize {
            what(folder);
        }
    }

    fn send(&self, outcomes: &[&Outcome], index: usize, routes: &Routes) -> Result<(), Failure> {
        let outcome = outcomes[index];
        let record = &outcome.record;
        let (topic, partition) = destination(outcome, routes)?;
        let mut message = to_message(topic, partition, record, index);
        if outcome.route == Route::DeadLetter {
            message.key = None;
            // The record's own time is sealed inside. With it a letter of an old record would be older than the topic
            // keeps records, and gone before anybody has seen it.
            message.timestamp = None;
        }
        let started = Instant::now();
        let mut was_empty = false;
        loop {
            match self.producer.send(message) {
                Ok(()) => return Ok(()),
                // An empty queue that is too full: the record is larger than the whole of it.
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) if was_empty => {
                    return Err(as_large_as(outcomes, index));
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    if started.elapsed() > PATIENCE {
                        return Err(Failure::Aborted("the producer's queue stays full".into()));
                    }
                    message = back;
                    // The producer's own thread empties the queue.
                    std::thread::sleep(Duration::from_millis(1));
                    was_empty = self.producer.in_flight_count() == 0;
                }
                Err((KafkaError::MessageProduction(code), _)) if is_size(code) => {
                    return Err(as_large_as(outcomes, index));
                }
                Err((KafkaError::MessageProduction(code), _)) => return Err(not_delivered(outcome, code)),
                Err((error, _)) => return Err(self.ended(&error, "produce")),
            }
        }
    }

    /// Aborts the open transaction, and what it wrote to the folder.
    fn abort_all(&self) -> Result<(), Failure> {
        self.abort()?;
        self.of_folder(OversizeFolder::aborted);
        Ok(())
    }

    /// Aborts the open transaction.
    fn abort(&self) -> Result<(), Failure> {
        failpoint!("abort");
        // Right after a commit the coordinator does not take the next transaction's partitions in yet, and librdkafka
        // asks again. An abort in between would be of a transaction that the coordinator does not know, which is
        // fatal to the producer: what was sent is delivered first, if nothing of it is refused already.
        if self.producer.in_flight_count() > 0 && self.producer.context().failures().is_empty() {
            let _ = self.producer.flush(FLUSH * 4);
        }
        self.patiently("abort", || self.producer.abort_transaction(CALL))
            .map_err(|failure| match failure {
                Failure::Aborted(reason) => Failure::Ended(RunError::Unavailable { reason }),
                other => other,
            })
    }

    /// Makes a call again for as long as that may help.
    fn patiently(&self, what: &str, call: impl Fn() -> Result<(), KafkaError>) -> Result<(), Failure> {
        self.patiently_while(what, call, || Ok(()))
    }

    /// As [`patiently`](Self::patiently), for as long as `check` has nothing to say.
    fn patiently_while(
        &self,
        what: &str,
        call: impl Fn() -> Result<(), KafkaError>,
        check: impl Fn() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            let Err(error) = self.watch.call(what, &call) else {
                return Ok(());
            };
            match verdict(&error) {
                Verdict::Again if started.elapsed() < PATIENCE => {
                    check()?;
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

    fn check_deliveries(&self, outcomes: &[&Outcome], routes: &Routes) -> Result<(), Failure> {
        let failures = self.producer.context().failures();
        let Some((index, code)) = failures.first().copied() else {
            return Ok(());
        };
        if is_size(code) {
            return Err(self.too_large(&failures, outcomes, routes));
        }
        match outcomes.get(index) {
            Some(outcome) => Err(not_delivered(outcome, code)),
            None => Err(Failure::Aborted(format!("a record was not delivered: {code}"))),
        }
    }

    /// Which outcomes are too large. A broker measures the producer's batches, which hold several records of a
    /// partition: one that was refused with others may be small, so next time less is sent at once.
    fn too_large(&self, failures: &[(usize, RDKafkaErrorCode)], outcomes: &[&Outcome], routes: &Routes) -> Failure {
        let mut by_partition: BTreeMap<(&str, i32), Vec<usize>> = BTreeMap::new();
        let sizes = failures
            .iter()
            .filter(|(_, code)| is_size(*code))
            .map(|(index, _)| *index);
        for index in sizes.filter(|index| *index < outcomes.len()) {
            if let Ok(to) = destination(outcomes[index], routes) {
                by_partition.entry(to).or_default().push(index);
            }
        }
        let alone = by_partition.values().filter(|refused| refused.len() == 1).flatten();
        let refused: Vec<_> = alone.map(|index| Refused::new(outcomes, *index)).collect();
        let together = by_partition.values().filter(|refused| refused.len() > 1);
        let bytes = |index: &usize| outcomes[*index].record.payload_bytes();
        let sums = together.map(|refused| refused.iter().map(bytes).sum());
        if let Some(smallest) = sums.min() {
            let chunk = (self.chunk.load(Ordering::Relaxed).min(smallest) / 2).max(1);
            self.chunk.store(chunk, Ordering::Relaxed);
            tracing::info!(
                chunk,
                "a topic takes less at once than the producer sends: less is sent at once"
            );
        }
        if refused.is_empty() {
            return Failure::Aborted("a topic takes less at once than was sent".into());
        }
        Failure::TooLarge(refused)
    }

    /// A failed delivery says more than the abort it leads to.
    fn explain(&self, failure: Failure, outcomes: &[&Outcome], routes: &Routes) -> Failure {
        match (&failure, self.check_deliveries(outcomes, routes)) {
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

/// The error that a failpoint stands for: whatever it is, the transaction is aborted and its records read again.
#[cfg(feature = "failpoints")]
fn injected(what: &str) -> Failure {
    Failure::Aborted(format!("{what}: failed by a failpoint"))
}

/// Topic and partition that an outcome is written to.
fn destination<'r>(outcome: &Outcome, routes: &'r Routes) -> Result<(&'r str, i32), Failure> {
    let position = &outcome.record.position;
    let to = match outcome.route {
        Route::Target => routes.target(&position.topic).map(|topic| (topic, position.partition)),
        _ => routes.dead_letter(position),
    };
    to.map_err(Failure::Ended)
}

/// The producer has limits for all topics: what is as large as the outcome that it refused will be refused too.
fn as_large_as(outcomes: &[&Outcome], index: usize) -> Failure {
    let bytes = outcomes[index].record.payload_bytes();
    let is_as_large = |other: &usize| {
        let other = outcomes[*other];
        other.route != Route::Oversize && other.record.payload_bytes() >= bytes
    };
    let as_large = (index..outcomes.len()).filter(is_as_large);
    Failure::TooLarge(as_large.map(|index| Refused::new(outcomes, index)).collect())
}

fn is_size(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize
    )
}

/// What a refused record means: some refusals cannot get better by trying again.
fn not_delivered(outcome: &Outcome, code: RDKafkaErrorCode) -> Failure {
    let position = &outcome.record.position;
    let stopped = |reason: String, help: &str| Failure::Ended(RunError::stopped(StopKind::Config, reason, help));
    match code {
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

fn offset_list(ranges: &Ranges, note: &str) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(ranges.len());
    for ((topic, partition), offsets) in ranges {
        list.add_partition_offset(topic, *partition, Offset::Offset(offsets.next))?;
        if let Some(mut element) = list.find_partition(topic, *partition)
            && !note.is_empty()
        {
            element.set_metadata(note);
        }
    }
    Ok(list)
}

/// Remembers the failed deliveries of a transaction, which are no more than its records.
#[derive(Default)]
struct Deliveries {
    failures: Mutex<Vec<(usize, RDKafkaErrorCode)>>,
    last_log: Mutex<Option<String>>,
}

impl Deliveries {
    fn clear(&self) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn failures(&self) -> Vec<(usize, RDKafkaErrorCode)> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
                let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                failures.push((index, code));
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
