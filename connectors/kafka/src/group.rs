//! One thread group: reads, has batches transformed, commits. One operating system thread.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sealflow::pipeline::{Counters, StopKind};

use crate::context::GroupContext;
use crate::error::{RunError, is_denial, is_fencing, unreachable_or_denied};
use crate::flow::Partition;
use crate::properties::{Identity, consumer as consumer_properties};
use crate::record::{Copies, from_message};
use crate::runner::{Plan, Shutdown};
use crate::topics::Routes;
use crate::transaction::Transactions;

/// Longest wait in one poll: signals are seen that soon.
const IDLE: Duration = Duration::from_millis(100);
/// Longest wait in one poll while a transform may answer.
const BUSY: Duration = Duration::from_millis(2);
/// How long reading may wait for the transform before partitions are paused and polling goes on. Pausing
/// throws away what librdkafka has fetched ahead, so it is not done for a short wait.
const PAUSE_AFTER: Duration = Duration::from_millis(500);
/// How long draining waits for a key service or catalogue that does not answer.
pub(crate) const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to go back after an abort.
const SEEK_PATIENCE: Duration = Duration::from_secs(60);

/// Runs a thread group until it is told to stop or cannot go on.
pub(crate) fn run(plan: &Arc<Plan>, index: u16) -> Result<(), RunError> {
    let identity = Identity {
        group: plan.group(),
        member: plan.member(index),
    };
    // First the producer: it ends what an earlier run left open, before offsets are read.
    let transactions = Transactions::start(plan, &identity)?;
    let context = GroupContext::new(Arc::clone(plan), transactions);
    let consumer: BaseConsumer<GroupContext> = consumer_properties(&plan.config, &identity, plan.statistics_ms())
        .create_with_context(context)
        .map_err(|error| plan.client_not_made("source.kafka.properties", &error))?;
    let mut group = Group {
        plan,
        consumer,
        routes: None,
        copies: RefCell::default(),
        last_poll: Instant::now(),
        held_up: None,
    };
    let result = group.run();
    let mut held = group.consumer.context().held();
    held.abandoned = true;
    held.flow.drop_all();
    drop(held);
    result
}

struct Group<'a> {
    plan: &'a Arc<Plan>,
    consumer: BaseConsumer<GroupContext>,
    /// The routes that are subscribed to.
    routes: Option<Arc<Routes>>,
    copies: RefCell<Copies>,
    last_poll: Instant,
    /// Since when draining waits for a service that is away.
    held_up: Option<Instant>,
}

impl Group<'_> {
    fn run(&mut self) -> Result<(), RunError> {
        loop {
            let shutdown = self.plan.shutdown();
            if shutdown == Shutdown::Stop {
                return Ok(());
            }
            let draining = shutdown == Shutdown::Drain;
            if let Some(why) = self.gives_up(draining) {
                // Beyond the ends of a run there may be records that it was not asked for.
                return if self.plan.is_all_done() {
                    Ok(())
                } else {
                    Err(given_up(why))
                };
            }
            if !draining && self.plan.take_rejoin() {
                self.consumer.unsubscribe();
                self.routes = None;
            }
            self.follow_routes()?;
            self.go_back()?;
            let wait = {
                let mut held = self.consumer.context().held();
                if let Some(error) = held.failure.take() {
                    return Err(error);
                }
                held.flow.dispatch(draining);
                self.consumer
                    .context()
                    .commit_ready(&self.consumer, &mut held, Duration::ZERO)?;
                held.flow.dispatch(draining);
                if held.flow.has_rewinds() {
                    continue;
                }
                if draining && held.flow.is_empty() {
                    return Ok(());
                }
                held.retry_at = held.retry_at.filter(|at| *at > Instant::now());
                draining || held.flow.is_full() || held.retry_at.is_some()
            };
            if wait {
                self.wait()?;
            } else {
                self.read()?;
            }
            self.plan.drain_if_ends_are_reached();
        }
    }

    /// Why draining ends without having committed all that is held. It reads nothing again, and does not wait for a service
    /// that is away: what is not committed is read by the next run, so nothing is lost.
    fn gives_up(&mut self, draining: bool) -> Option<&'static str> {
        if draining && self.consumer.context().held().flow.has_rewinds() {
            return Some("told to stop while records have to be read again, after an abort or a refusal");
        }
        if !draining || Counters::get(&self.plan.counters.waiting) == 0 {
            self.held_up = None;
            return None;
        }
        let since = self.held_up.get_or_insert_with(Instant::now);
        (since.elapsed() >= DRAIN_PATIENCE).then_some("told to stop while a service is away")
    }

    /// Subscribes to what the plan says; patterns find new topics while running.
    fn follow_routes(&mut self) -> Result<(), RunError> {
        let routes = self.plan.routes();
        if self.routes.as_ref().is_some_and(|mine| Arc::ptr_eq(mine, &routes)) {
            return Ok(());
        }
        let topics: Vec<&str> = routes.sources().collect();
        if !topics.is_empty() {
            self.consumer
                .subscribe(&topics)
                .map_err(|error| unreachable_or_denied(&error, None))?;
        }
        self.routes = Some(routes);
        Ok(())
    }

    /// Waits for the transform, or for the end of a pause after an abort, and stays in the consumer group.
    fn wait(&mut self) -> Result<(), RunError> {
        let transforming = self.consumer.context().held().flow.is_transforming();
        if transforming {
            let mut held = self.consumer.context().held();
            if self
                .consumer
                .context()
                .commit_ready(&self.consumer, &mut held, IDLE / 5)?
            {
                return Ok(());
            }
        } else {
            std::thread::sleep(IDLE / 5);
        }
        if self.last_poll.elapsed() >= PAUSE_AFTER || self.consumer.context().held().paused {
            self.set_paused(true)?;
            self.poll(Duration::ZERO)?;
        }
        Ok(())
    }

    /// Reads until the batch is full or nothing is there.
    fn read(&mut self) -> Result<(), RunError> {
        self.set_paused(false)?;
        let mut wait = {
            let held = self.consumer.context().held();
            match (held.flow.is_transforming(), held.flow.deadline()) {
                (true, _) => BUSY,
                (false, Some(deadline)) => deadline.saturating_duration_since(Instant::now()).min(IDLE),
                (false, None) => IDLE,
            }
        };
        while self.poll(wait)? && self.wants_more() {
            wait = Duration::ZERO;
        }
        Ok(())
    }

    /// Whether the batch has room, and no callback has just dropped what is to be read first.
    fn wants_more(&self) -> bool {
        let held = self.consumer.context().held();
        !held.flow.is_batch_full() && !held.flow.has_rewinds()
    }

    /// Takes one message in, if there is one.
    fn poll(&mut self, wait: Duration) -> Result<bool, RunError> {
        self.last_poll = Instant::now();
        match self.consumer.poll(wait) {
            None => Ok(false),
            Some(Ok(message)) => {
                self.take(&message)?;
                Ok(true)
            }
            Some(Err(error)) => {
                self.consumer_error(&error)?;
                Ok(false)
            }
        }
    }

    fn take(&self, message: &BorrowedMessage<'_>) -> Result<(), RunError> {
        let name = message.topic();
        let known = self.routes.as_ref().and_then(|routes| routes.source(name));
        let topic = known.map_or_else(|| Arc::from(name), Arc::clone);
        let (partition, offset) = (message.partition(), message.offset());
        let record = from_message(&topic, message, &mut self.copies.borrow_mut()).map_err(|_| {
            RunError::stopped(
                StopKind::Data,
                format!("{topic}/{partition}/{offset} has a header whose name is not UTF-8"),
                "such a record cannot be copied as it is; move the group's offset past it, or delete it at the source",
            )
        })?;
        failpoint!("after-read");
        // A replay writes to the topic that it reads: what it has written itself belongs to the next one.
        if let Some(ends) = self.plan.ends.as_ref().filter(|_| self.plan.is_replay())
            && ends.is_beyond(&topic, partition, offset)
        {
            return Ok(());
        }
        if let Some(ends) = &self.plan.ends {
            ends.read(&topic, partition, offset);
        }
        Counters::add(&self.plan.counters.records_read, 1);
        self.consumer.context().held().flow.push(record)
    }

    /// Sorts an error of the consumer into those that pass and those that end the group.
    fn consumer_error(&self, error: &KafkaError) -> Result<(), RunError> {
        let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        match error.rdkafka_error_code() {
            Some(code) if is_fencing(code) => Err(RunError::Fenced {
                instance: self.plan.options.instance.clone(),
            }),
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => Err(RunError::stopped(
                StopKind::Data,
                "the source no longer holds the records at the committed offsets: some were deleted before they were read",
                "set the group's offsets to where to go on (kafka-consumer-groups --reset-offsets), then start again",
            )),
            Some(code) if is_denial(code) => Err(RunError::Denied {
                reason: format!("reading: {code}"),
            }),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition) if self.plan.config.source.pattern.is_some() => {
                tracing::warn!("a topic that matched the pattern does not exist any more");
                Ok(())
            }
            Some(RDKafkaErrorCode::UnknownTopicOrPartition) => Err(RunError::stopped(
                StopKind::Config,
                "a source topic does not exist any more",
                "take it out of source.kafka.topics, or create it again",
            )),
            _ if fatal => Err(RunError::stopped(
                StopKind::Unavailable,
                format!("the consumer cannot go on: {error}"),
                "start again: the work goes on where the last commit was",
            )),
            _ => {
                tracing::warn!(error = %error, "consumer error, which librdkafka retries");
                Ok(())
            }
        }
    }

    fn set_paused(&self, paused: bool) -> Result<(), RunError> {
        if self.consumer.context().held().paused == paused {
            return Ok(());
        }
        let failed = |error: KafkaError| unreachable_or_denied(&error, None);
        let assignment = self.consumer.assignment().map_err(failed)?;
        if assignment.count() > 0 {
            if paused {
                self.consumer.pause(&assignment)
            } else {
                self.consumer.resume(&assignment)
            }
            .map_err(failed)?;
        }
        self.consumer.context().held().paused = paused;
        self.unsettle_ends();
        tracing::debug!(paused, partitions = assignment.count(), "reading");
        Ok(())
    }

    /// After an abort: back to the first record that was dropped, which is the first not committed. There is
    /// no polling in between, as a later record would be taken for the next one.
    fn go_back(&self) -> Result<(), RunError> {
        let mut rewinds = self.consumer.context().held().flow.take_rewinds();
        if rewinds.is_empty() {
            return Ok(());
        }
        self.unsettle_ends();
        let until = Instant::now() + SEEK_PATIENCE;
        loop {
            self.keep_assigned(&mut rewinds);
            let error = match self.seek(&mut rewinds) {
                Ok(()) if rewinds.is_empty() => return Ok(()),
                Ok(()) => "some partitions are not ready".to_owned(),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= until || self.plan.is_stopping() {
                return Err(RunError::Unavailable {
                    reason: format!("going back after an abort: {error}"),
                });
            }
            std::thread::sleep(IDLE);
        }
    }

    fn unsettle_ends(&self) {
        if let Some(ends) = &self.plan.ends {
            ends.unsettle();
        }
    }

    fn keep_assigned(&self, rewinds: &mut BTreeMap<Partition, i64>) {
        let held = self.consumer.context().held();
        rewinds.retain(|partition, _| held.assigned.contains_key(partition));
    }

    /// Seeks, and leaves in `rewinds` what could not be.
    fn seek(&self, rewinds: &mut BTreeMap<Partition, i64>) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::with_capacity(rewinds.len());
        for ((topic, partition), offset) in rewinds.iter() {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
        }
        if list.count() == 0 {
            return Ok(());
        }
        let sought = self.consumer.seek_partitions(list, Duration::from_secs(10))?;
        for element in sought.elements() {
            if element.error().is_ok() {
                rewinds.remove(&(self.plan.topic(element.topic()), element.partition()));
            }
        }
        Ok(())
    }
}

/// Draining ends without having committed all that was held, which is read again by the next run.
fn given_up(why: &str) -> RunError {
    RunError::stopped(
        StopKind::Unavailable,
        format!("{why}: the records that are held were given up, not lost"),
        "start again: they are read again",
    )
}
