//! One thread group of a landing: reads, has batches sealed and written, rolls, commits. One operating system thread.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sealflow::pipeline::{Collector, Counters, Outcome, StopKind};
use sealflow::table::landing::Step;

use super::context::{LANDED, LandingContext};
use super::letters::LetterProducer;
use super::part::{Counted, Part};
use super::runner::LandingPlan;
use super::steps::{Files, Services, answer, perform};
use crate::error::{RunError, is_denial, is_fencing, unreachable_or_denied};
use crate::flow::Partition;
use crate::group::DRAIN_PATIENCE;
use crate::properties::{Identity, consumer as consumer_properties};
use crate::record::{Copies, from_message};
use crate::runner::Shutdown;

/// Longest wait in one poll: signals are seen that soon.
const IDLE: Duration = Duration::from_millis(100);
/// How long work may take before partitions are paused and polling goes on.
const PAUSE_AFTER: Duration = Duration::from_millis(500);
/// Without a record for so long, a run that ends takes what it has for all.
const QUIET: Duration = Duration::from_secs(2);
/// Dead letters take no more than this part of the memory before their stretches end.
const LETTERS_SHARE: u64 = 4;
/// How long it may take to go back.
const SEEK_PATIENCE: Duration = Duration::from_secs(60);

/// Runs a thread group until it is told to stop or cannot go on.
pub(super) fn run(plan: &Arc<LandingPlan>, index: u16) -> Result<(), RunError> {
    let identity = Identity {
        group: plan.group(),
        member: plan.member(index),
    };
    let letters = plan
        .config
        .dead_letters
        .as_ref()
        .map(|_| LetterProducer::new(&plan.config));
    let consumer: BaseConsumer<LandingContext> = consumer_properties(&plan.config, &identity, plan.statistics_ms())
        .create_with_context(LandingContext::new(Arc::clone(plan)))
        .map_err(|error| crate::topics::client_not_made("source.kafka.properties", &error))?;
    let services = Services {
        catalogue: Arc::clone(&plan.catalogue),
        landing: Arc::clone(&plan.landing),
    };
    let mut group = LandingGroup {
        plan,
        letters: letters.transpose()?,
        services,
        collector: Collector::new(plan.options.batch),
        consumer,
        copies: Copies::default(),
        last_poll: Instant::now(),
        last_record: Instant::now(),
        waiting_since: None,
    };
    let ended = group.subscribe().and_then(|()| group.run());
    group.set_waiting(false);
    group.consumer.context().held().parts.clear();
    ended
}

/// A thread group.
pub(super) struct LandingGroup<'a> {
    pub(super) plan: &'a Arc<LandingPlan>,
    pub(super) letters: Option<LetterProducer>,
    pub(super) services: Services,
    pub(super) collector: Collector,
    pub(super) consumer: BaseConsumer<LandingContext>,
    copies: Copies,
    last_poll: Instant,
    last_record: Instant,
    /// Since when a service is away.
    waiting_since: Option<Instant>,
}

impl LandingGroup<'_> {
    fn subscribe(&self) -> Result<(), RunError> {
        let topics: Vec<&str> = self.plan.routes.sources().collect();
        if topics.is_empty() {
            return Ok(());
        }
        let subscribed = self.consumer.subscribe(&topics);
        subscribed.map_err(|error| unreachable_or_denied(&error, None))
    }

    fn run(&mut self) -> Result<(), RunError> {
        loop {
            match self.plan.shutdown() {
                Shutdown::Stop => return Ok(()),
                Shutdown::Drain => return self.drain(),
                Shutdown::Run => {}
            }
            if self.plan.take_rejoin() {
                self.consumer.unsubscribe();
                self.subscribe()?;
            }
            self.advance()?;
            self.steer()?;
            self.read()?;
            let now = Instant::now();
            if self.collector.is_due(now) {
                self.write()?;
            }
            self.roll_due()?;
            self.plan.drain_if_ends_are_reached();
        }
    }

    /// Writes and rolls what was read, and commits it. What cannot be done because a service is away is read again by the next
    /// run.
    fn drain(&mut self) -> Result<(), RunError> {
        let until = Instant::now() + DRAIN_PATIENCE;
        self.pause_all()?;
        let mut is_written = false;
        loop {
            if self.plan.is_stopping() {
                return Ok(());
            }
            if !is_written && self.all_settled() {
                self.write()?;
                is_written = self.collector.is_empty();
                if is_written {
                    self.roll_all();
                }
            }
            self.advance()?;
            let (done, rebuilding) = {
                let held = self.consumer.context().held();
                let is_left = |part: &&Part| part.stretch.is_reading() && part.stretch.is_idle();
                let rebuilding = held.parts.values().filter(|part| part.stretch.is_rebuilding()).count();
                let left = held.parts.values().filter(is_left).count();
                (is_written && left + rebuilding == held.parts.len(), rebuilding)
            };
            if self.plan.is_all_done() || done && rebuilding == 0 {
                return Ok(());
            }
            if done {
                // Whoever ends with 0 has left nothing half done.
                return Err(RunError::Unavailable {
                    reason: format!("told to stop while files of {rebuilding} partitions are made again"),
                });
            }
            let now = Instant::now();
            if self.waiting_since.is_some() && now >= until || now >= until + DRAIN_PATIENCE * 3 {
                return Err(given_up());
            }
            self.poll(IDLE / 5)?;
        }
    }

    fn all_settled(&self) -> bool {
        let held = self.consumer.context().held();
        held.parts.values().all(|part| part.stretch.is_reading())
    }

    /// Does the steps of all partitions that are not reading, until none is left that can be done now.
    pub(super) fn advance(&mut self) -> Result<(), RunError> {
        while !self.plan.is_stopping() {
            self.take_failure()?;
            let (steps, letters) = self.steps();
            if steps.is_empty() {
                return self.commit();
            }
            self.send(&letters)?;
            let tasks = steps.into_iter().map(|(partition, epoch, whose, step, files)| {
                let services = self.services.clone();
                async move { (partition, epoch, perform(services, whose, step, files).await) }
            });
            let tasks: Vec<_> = tasks.collect();
            let Some(answers) = self.wait(tasks)? else {
                return Ok(());
            };
            let mut waits = None;
            for (partition, epoch, came) in answers {
                let mut held = self.consumer.context().held();
                if let Some(part) = held.parts.get_mut(&partition).filter(|part| part.epoch == epoch)
                    && let Some(reason) = answer(part, came)?
                {
                    waits = Some(reason);
                }
            }
            let is_retrying = {
                let held = self.consumer.context().held();
                held.parts.values().any(|part| part.retry_at.is_some())
            };
            if waits.is_some() || !is_retrying {
                self.note_outage(waits);
            }
            self.commit()?;
        }
        Ok(())
    }

    /// Dead letters are durable before the intent that counts them.
    pub(super) fn send(&self, letters: &[Outcome]) -> Result<(), RunError> {
        let Some(producer) = self.letters.as_ref().filter(|_| !letters.is_empty()) else {
            return Ok(());
        };
        for letter in letters {
            producer.send(letter, &self.plan.routes)?;
        }
        producer.flush()
    }

    /// What is to be done, with the files that it is done to; and the dead letters of those that are closed.
    #[allow(clippy::type_complexity)] // it is taken apart at once
    fn steps(
        &self,
    ) -> (
        Vec<(Partition, u64, Arc<sealflow::table::landing::Whose>, Step, Files)>,
        Vec<Outcome>,
    ) {
        let now = Instant::now();
        let mut steps = Vec::new();
        let mut letters = Vec::new();
        let mut held = self.consumer.context().held();
        for (partition, part) in &mut held.parts {
            let step = part.stretch.step();
            if !part.has_step(now) || matches!(step, Step::Commit { .. }) {
                continue;
            }
            if matches!(step, Step::Close { .. }) {
                letters.append(&mut part.take_letters());
            }
            let files = match &step {
                Step::Close { .. } | Step::Finish { .. } => std::mem::take(&mut part.files),
                _ => Files::new(),
            };
            steps.push((
                partition.clone(),
                part.epoch,
                Arc::clone(part.stretch.whose()),
                step,
                files,
            ));
        }
        (steps, letters)
    }

    /// Says once that a service is away, and when it is back.
    pub(super) fn note_outage(&mut self, reason: Option<String>) {
        match reason {
            Some(reason) => {
                if self.waiting_since.is_none() {
                    tracing::warn!(reason, "landing waits for a service");
                }
                Counters::add(&self.plan.counters.retries, 1);
                self.set_waiting(true);
            }
            None => {
                if self.waiting_since.is_some() {
                    tracing::info!("landing goes on");
                }
                self.set_waiting(false);
            }
        }
    }

    fn set_waiting(&mut self, waiting: bool) {
        let counter = &self.plan.counters.waiting;
        match (waiting, self.waiting_since) {
            (true, None) => {
                counter.fetch_add(1, Ordering::Relaxed);
                self.waiting_since = Some(Instant::now());
            }
            (false, Some(_)) => {
                counter.fetch_sub(1, Ordering::Relaxed);
                self.waiting_since = None;
            }
            _ => {}
        }
    }

    /// Commits the ends of all stretches whose files are durable.
    fn commit(&mut self) -> Result<(), RunError> {
        let mut list = TopicPartitionList::new();
        let mut ends: BTreeMap<Partition, (u64, i64)> = BTreeMap::new();
        {
            let held = self.consumer.context().held();
            for (partition, part) in &held.parts {
                let Step::Commit { offset, is_trusted } = part.stretch.step() else {
                    continue;
                };
                if !part.has_step(Instant::now()) {
                    continue;
                }
                let failed = |error: KafkaError| unreachable_or_denied(&error, None);
                list.add_partition_offset(&partition.0, partition.1, Offset::Offset(offset))
                    .map_err(failed)?;
                if let Some(mut element) = list.find_partition(&partition.0, partition.1)
                    && is_trusted
                {
                    element.set_metadata(self.note(part.counted));
                }
                ends.insert(partition.clone(), (part.epoch, offset));
            }
        }
        if ends.is_empty() {
            return Ok(());
        }
        failpoint!("land-before-commit");
        let committed = self
            .plan
            .watch
            .call("commit", || self.consumer.commit(&list, CommitMode::Sync));
        failpoint!("land-after-commit");
        self.plan.counters.set_target_failing(committed.is_err());
        let mut held = self.consumer.context().held();
        for (partition, (epoch, offset)) in ends {
            let Some(part) = held.parts.get_mut(&partition).filter(|part| part.epoch == epoch) else {
                continue;
            };
            if let Err(error) = &committed {
                self.check_commit(error)?;
                part.later();
                continue;
            }
            part.went_well();
            part.stretch.committed();
            let counted = std::mem::take(&mut part.counted);
            self.count(counted);
            if let Some(ends) = &self.plan.ends {
                ends.committed(&partition.0, partition.1, offset);
            }
            tracing::debug!(topic = %partition.0, partition = partition.1, offset, "landed");
        }
        Ok(())
    }

    /// A commit may fail because the group is being rebalanced, or brokers are away: it is made again while the partition is ours.
    fn check_commit(&self, error: &KafkaError) -> Result<(), RunError> {
        match error.rdkafka_error_code() {
            Some(code) if is_fencing(code) => Err(self.fenced()),
            Some(code) if is_denial(code) => Err(RunError::Denied {
                reason: format!("committing: {code}"),
            }),
            _ => {
                tracing::warn!(error = %error, "offsets could not be committed yet");
                Ok(())
            }
        }
    }

    /// What stands with the committed offsets: that a landing has committed them, and its dead letters.
    fn note(&self, counted: Counted) -> String {
        let note = self.plan.ratio.as_ref().map(|ratio| {
            let ratio = ratio.lock().unwrap_or_else(PoisonError::into_inner);
            ratio.note_after(counted.records, counted.dead)
        });
        format!("{} {LANDED}", note.unwrap_or_else(|| "sealflow/1".to_owned()))
    }

    fn count(&self, counted: Counted) {
        let (counters, landed) = (&self.plan.counters, &self.plan.landed);
        Counters::add(&counters.records_committed, counted.records);
        Counters::add(&counters.dead_letters, counted.dead);
        Counters::add(&counters.bytes_received, counted.received);
        Counters::add(&counters.bytes_sent, counted.sent);
        Counters::add(&counters.commits, 1);
        Counters::add(&landed.files, counted.files);
        Counters::add(&landed.rows, counted.rows);
        Counters::add(&landed.bytes, counted.sent);
        if let Some(ratio) = &self.plan.ratio {
            let mut ratio = ratio.lock().unwrap_or_else(PoisonError::into_inner);
            ratio.committed(counted.records, counted.dead);
        }
    }

    /// Rolls what is due: by its own limits, because too many files are open, or because a run comes to its end.
    fn roll_due(&mut self) -> Result<(), RunError> {
        let (now, options) = (Instant::now(), &self.plan.options);
        let is_quiet = self.plan.ends.is_some() && self.last_record.elapsed() >= QUIET && self.collector.is_empty();
        let mut held = self.consumer.context().held();
        for part in held.parts.values_mut() {
            let bytes = part.sizes().0;
            let is_full = part.files.values().any(|file| file.is_full());
            if part.stretch.is_due(&options.roll, bytes, now) || is_full || is_quiet {
                roll(part);
            }
        }
        let letters: u64 = held.parts.values().map(Part::letter_bytes).sum();
        if letters > options.memory / LETTERS_SHARE {
            held.parts
                .values_mut()
                .filter(|part| part.letter_bytes() > 0)
                .for_each(roll);
        }
        let open: usize = held.parts.values().map(|part| part.files.len()).sum();
        self.plan.landed.open.store(open as u64, Ordering::Relaxed);
        if open > options.open_files {
            let is_open = |part: &&mut Part| part.stretch.is_reading() && !part.files.is_empty();
            let open = held.parts.values_mut().filter(is_open);
            let oldest = open.filter(|part| !part.stretch.is_rebuilding());
            oldest.min_by_key(|part| part.used).into_iter().for_each(roll);
        }
        Ok(())
    }

    fn roll_all(&mut self) {
        let mut held = self.consumer.context().held();
        held.parts.values_mut().for_each(roll);
    }

    /// Pauses and resumes partitions as their stretches want it, and goes to where they want to read.
    pub(super) fn steer(&mut self) -> Result<(), RunError> {
        let (mut pause, mut resume, mut seek) = (Vec::new(), Vec::new(), Vec::new());
        {
            let mut held = self.consumer.context().held();
            for (partition, part) in &mut held.parts {
                match part.position() {
                    None if part.is_fetching => pause.push(partition.clone()),
                    None => {}
                    Some(from) => {
                        if part.at != from {
                            seek.push((partition.clone(), from));
                        }
                        if !part.is_fetching {
                            resume.push(partition.clone());
                        }
                    }
                }
            }
        }
        if !seek.is_empty() {
            self.forget(&seek);
            self.seek(seek)?;
        }
        self.set_fetching(&pause, false)?;
        self.set_fetching(&resume, true)
    }

    /// What was read of these partitions, and not yet used, is read again.
    fn forget(&mut self, seek: &[(Partition, i64)]) {
        let now = Instant::now();
        for record in self.collector.take() {
            let position = &record.position;
            let is_kept = !seek
                .iter()
                .any(|((topic, partition), _)| *topic == position.topic && *partition == position.partition);
            if is_kept {
                self.collector.push(record, now);
            }
        }
    }

    /// There is no polling in between, as a later record would be taken for the next one.
    fn seek(&mut self, mut seek: Vec<(Partition, i64)>) -> Result<(), RunError> {
        let until = Instant::now() + SEEK_PATIENCE;
        loop {
            let mut list = TopicPartitionList::with_capacity(seek.len());
            let failed = |error: KafkaError| unreachable_or_denied(&error, None);
            for ((topic, partition), from) in &seek {
                list.add_partition_offset(topic, *partition, Offset::Offset(*from))
                    .map_err(failed)?;
            }
            let sought = self
                .plan
                .watch
                .call("seek", || self.consumer.seek_partitions(list, Duration::from_secs(10)));
            if let Ok(sought) = &sought {
                let mut held = self.consumer.context().held();
                for element in sought.elements().iter().filter(|element| element.error().is_ok()) {
                    let partition = (self.plan.topic(element.topic()), element.partition());
                    seek.retain(|(wanted, from)| {
                        if *wanted == partition
                            && let Some(part) = held.parts.get_mut(wanted)
                        {
                            part.went_to(*from);
                        }
                        *wanted != partition
                    });
                }
            }
            if seek.is_empty() {
                if let Some(ends) = &self.plan.ends {
                    ends.unsettle();
                }
                return Ok(());
            }
            if Instant::now() >= until || self.plan.is_stopping() {
                return Err(RunError::Unavailable {
                    reason: "going back to read again: some partitions are not ready".to_owned(),
                });
            }
            std::thread::sleep(IDLE);
        }
    }

    fn set_fetching(&mut self, partitions: &[Partition], fetching: bool) -> Result<(), RunError> {
        if partitions.is_empty() {
            return Ok(());
        }
        let failed = |error: KafkaError| unreachable_or_denied(&error, None);
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for (topic, partition) in partitions {
            list.add_partition(topic, *partition);
        }
        if fetching {
            self.consumer.resume(&list).map_err(failed)?;
        } else {
            self.consumer.pause(&list).map_err(failed)?;
        }
        let mut held = self.consumer.context().held();
        for partition in partitions {
            if let Some(part) = held.parts.get_mut(partition) {
                part.is_fetching = fetching;
            }
        }
        drop(held);
        if let Some(ends) = &self.plan.ends {
            ends.unsettle();
        }
        Ok(())
    }

    /// Reads until the batch is full or nothing is there.
    fn read(&mut self) -> Result<(), RunError> {
        let wait = match self.collector.deadline() {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()).min(IDLE),
            None => IDLE,
        };
        let mut wait = wait;
        while !self.collector.is_full() && self.poll(wait)? {
            wait = Duration::ZERO;
        }
        Ok(())
    }

    /// Takes one message in, if there is one.
    pub(super) fn poll(&mut self, wait: Duration) -> Result<bool, RunError> {
        self.last_poll = Instant::now();
        let polled = match self.consumer.poll(wait) {
            None => None,
            Some(Err(error)) => {
                self.consumer_error(&error)?;
                None
            }
            Some(Ok(message)) => {
                let topic = self.plan.topic(message.topic());
                let (partition, offset) = (message.partition(), message.offset());
                let record = from_message(&topic, &message, &mut self.copies).map_err(|_| {
                    RunError::stopped(
                        StopKind::Data,
                        format!("{topic}/{partition}/{offset} has a header whose name is not UTF-8"),
                        "move the group's offset past it, or delete it at the source",
                    )
                })?;
                Some(record)
            }
        };
        // What was read of a partition before it went is not what follows its start when it comes again.
        let gone = std::mem::take(&mut self.consumer.context().held().gone);
        if !gone.is_empty() {
            let gone: Vec<_> = gone.into_iter().map(|partition| (partition, 0)).collect();
            self.forget(&gone);
        }
        let Some(record) = polled else { return Ok(false) };
        let position = &record.position;
        if let Some(ends) = &self.plan.ends {
            ends.read(&position.topic, position.partition, position.offset);
        }
        self.last_record = Instant::now();
        Counters::add(&self.plan.counters.records_read, 1);
        self.collector.push(record, self.last_record);
        Ok(true)
    }

    fn consumer_error(&self, error: &KafkaError) -> Result<(), RunError> {
        let fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
        match error.rdkafka_error_code() {
            Some(code) if is_fencing(code) => Err(self.fenced()),
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => Err(RunError::stopped(
                StopKind::Data,
                "the source no longer holds records that are not landed, or that files of an intent must be made of again",
                "nothing was overwritten: docs/operations.md says how to go on without records that are lost",
            )),
            Some(code) if is_denial(code) => Err(RunError::Denied {
                reason: format!("reading: {code}"),
            }),
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

    fn fenced(&self) -> RunError {
        RunError::Fenced {
            instance: self.plan.options.instance.clone(),
        }
    }

    fn take_failure(&self) -> Result<(), RunError> {
        self.consumer.context().held().failure.take().map_or(Ok(()), Err)
    }

    /// Runs futures side by side on the runtime, and stays in the consumer group meanwhile. `None` when told to stop.
    pub(super) fn wait<T: Send + 'static>(
        &mut self,
        tasks: Vec<impl Future<Output = T> + Send + 'static>,
    ) -> Result<Option<Vec<T>>, RunError> {
        let count = tasks.len();
        let (sender, results) = channel();
        let mut running = tokio::task::JoinSet::new();
        for (n, task) in tasks.into_iter().enumerate() {
            let sender = sender.clone();
            let spawned = async move {
                // Nobody listens any more when the group stops.
                let _ = sender.send((n, task.await));
            };
            running.spawn_on(spawned, &self.plan.runtime);
        }
        drop(sender);
        let (started, mut done) = (Instant::now(), BTreeMap::new());
        let mut draining_since = None;
        while done.len() < count {
            match results.recv_timeout(IDLE / 5) {
                Ok((n, result)) => drop(done.insert(n, result)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(RunError::stopped(
                        StopKind::Internal,
                        "a step of a landing panicked",
                        "this is a bug in sealflow: please report it with the log",
                    ));
                }
            }
            if self.plan.is_stopping() {
                return Ok(None);
            }
            if self.plan.shutdown() == Shutdown::Drain && Counters::get(&self.plan.counters.waiting) > 0 {
                let since = *draining_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= DRAIN_PATIENCE {
                    return Err(given_up());
                }
            }
            if done.len() < count && started.elapsed().max(self.last_poll.elapsed()) >= PAUSE_AFTER {
                self.pause_all()?;
                self.poll(Duration::ZERO)?;
            }
        }
        running.detach_all();
        Ok(Some(done.into_values().collect()))
    }

    pub(super) fn pause_all(&mut self) -> Result<(), RunError> {
        let fetching: Vec<_> = {
            let held = self.consumer.context().held();
            let fetching = held.parts.iter().filter(|(_, part)| part.is_fetching);
            fetching.map(|(partition, _)| partition.clone()).collect()
        };
        self.set_fetching(&fetching, false)
    }
}

pub(super) fn given_up() -> RunError {
    RunError::stopped(
        StopKind::Unavailable,
        "told to stop while a service is away: what was gathered was given up, not lost",
        "start again: it is read again",
    )
}

/// Ends the stretch of a partition behind what it has. Files that are made again end by themselves.
pub(super) fn roll(part: &mut Part) {
    let (policy, schema) = part.version;
    part.stretch.roll(&policy, schema);
}
