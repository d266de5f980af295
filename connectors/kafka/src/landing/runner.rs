//! Runs a landing: prepares topics, starts the thread groups, passes signals on, gathers the summary.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sealflow::keys::Catalogue;
use sealflow::pipeline::{BatchLimits, Counters, Format};
use sealflow::table::landing::{Landing, PartitionBy, RollLimits};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

use super::group;
use crate::config::{DeadLetters, KafkaConfig, KafkaSource, KafkaTarget};
use crate::error::{ConfigError, RunError};
use crate::ratio::DeadLetterRatio;
use crate::runner::{Shutdown, Summary, check_name, panicked, start_thread};
use crate::topics::{self, Routes};
use crate::unread;
use crate::until_end::Ends;
use crate::watch::{STUCK_AFTER, Watch};

const START_PATIENCE: Duration = Duration::from_secs(30);
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// The offsets of a batch's dead letters must fit an intent.
pub(super) const MAX_BATCH: u32 = 16_384;

/// How a landing is run, beside its Kafka sections.
#[derive(Clone, Debug)]
pub struct LandingOptions {
    /// The pipeline's name: `[A-Za-z0-9_-]{1,100}`.
    pub pipeline: String,
    /// Stable name of this process among those of the pipeline: same rule.
    pub instance: String,
    /// The dataset, which is the folder of its files below the table's location.
    pub dataset: String,
    /// What a record's value is.
    pub format: Format,
    /// How records are given their folders.
    pub partition_by: PartitionBy,
    /// When files are finished.
    pub roll: RollLimits,
    /// Open files of a thread group, beyond which the partition that was written to longest ago is rolled.
    pub open_files: usize,
    /// Bytes of rows that a thread group holds before the largest files write theirs out.
    pub memory: u64,
    /// Thread groups.
    pub threads: u16,
    /// When a batch closes.
    pub batch: BatchLimits,
    /// Ends when every partition is committed up to the end seen at start. For one process per group.
    pub until_end: bool,
}

/// What a landing counts beside [`Counters`]: of what is committed.
#[derive(Debug, Default)]
pub struct LandingCounters {
    /// Files.
    pub files: AtomicU64,
    /// Rows in them.
    pub rows: AtomicU64,
    /// Bytes of them.
    pub bytes: AtomicU64,
    /// Gauge: files that are open.
    pub open: AtomicU64,
}

/// A pipeline from topics to files, ready to run.
pub struct LandingRunner(LandingPlan);

impl LandingRunner {
    /// Checks what can be checked without a broker. To be called on a runtime, which the landing is polled on.
    ///
    /// # Errors
    /// [`RunError::Config`] with the key path of the first thing that cannot be run.
    pub fn new(
        (source, dead_letters): (KafkaSource, Option<DeadLetters>),
        mut options: LandingOptions,
        landing: Arc<dyn Landing>,
        catalogue: Arc<dyn Catalogue>,
        (counters, landed): (Arc<Counters>, Arc<LandingCounters>),
    ) -> Result<Self, RunError> {
        let config = KafkaConfig::of_landing(source, dead_letters);
        config.check()?;
        check_name("name", &options.pipeline)?;
        check_name("instance", &options.instance)?;
        if !(1..=64).contains(&options.threads) {
            return Err(ConfigError::new("threads", "is not between 1 and 64", "1 to 4 is usual").into());
        }
        options.batch.rows = options.batch.rows.clamp(1, MAX_BATCH);
        let ratio = config
            .dead_letters
            .as_ref()
            .map(|dead| Mutex::new(DeadLetterRatio::new(dead.max_ratio)));
        Ok(Self(LandingPlan {
            ratio,
            config,
            options,
            landing,
            catalogue,
            counters,
            landed,
            runtime: Handle::current(),
            routes: Arc::default(),
            ends: None,
            watch: Watch::default(),
            shutdown: AtomicU8::new(Shutdown::Run as u8),
            all_done: AtomicBool::new(false),
            rejoin: AtomicBool::new(false),
        }))
    }

    /// Runs until the end (with `until_end`), until told to stop, or until it cannot go on. Draining rolls and commits what was
    /// gathered.
    ///
    /// # Errors
    /// See [`RunError`]; what was committed stays.
    pub async fn run(self, mut shutdown: watch::Receiver<Shutdown>) -> Result<Summary, RunError> {
        let started = Instant::now();
        let mut plan = self.0;
        let (config, until_end) = (plan.config.clone(), plan.options.until_end);
        let prepared = tokio::task::spawn_blocking(move || prepare(&config, until_end)).await;
        let (routes, ends) = prepared.map_err(|error| panicked(&error.to_string()))??;
        (plan.routes, plan.ends) = (Arc::new(routes), ends);
        let plan = Arc::new(plan);
        let _stop = StopOnDrop(Arc::clone(&plan));
        plan.raise(*shutdown.borrow_and_update());
        let mut results = start_groups(&plan)?;
        plan.counters.set_started();
        let mut failure = None;
        let mut signals = true;
        let mut watching = tokio::time::interval(WATCH_INTERVAL);
        loop {
            tokio::select! {
                changed = shutdown.changed(), if signals => match changed {
                    Ok(()) => plan.raise(*shutdown.borrow_and_update()),
                    Err(_) => signals = false,
                },
                result = results.recv() => match result {
                    Some(Ok(())) => {}
                    Some(Err(error)) => {
                        failure.get_or_insert(error);
                        plan.raise(Shutdown::Stop);
                    }
                    None => break,
                },
                _ = watching.tick() => if let Some(what) = plan.watch.stuck(STUCK_AFTER) {
                    return Err(RunError::Unavailable { reason: format!("{what} does not come back from librdkafka") });
                },
            }
        }
        failure.map_or_else(|| Ok(plan.summary(started.elapsed())), Err)
    }
}

/// The topics that are read, and where they end if the run does.
fn prepare(config: &KafkaConfig, until_end: bool) -> Result<(Routes, Option<Ends>), RunError> {
    let routes = topics::survey_sources(config, START_PATIENCE)?;
    for (index, topic) in config.source.topics.iter().enumerate() {
        if routes.source(topic).is_none() {
            return Err(ConfigError::new(
                format!("source.kafka.topics[{index}]"),
                format!("topic {topic} does not exist, or may not be seen"),
                "create it, correct the name, or allow this identity to describe it",
            )
            .into());
        }
    }
    if let Some(dead) = &config.dead_letters {
        topics::partitions_of(config, &dead.topic, START_PATIENCE)?;
    }
    if !until_end {
        return Ok((routes, None));
    }
    let ends = Ends::default();
    for held in topics::ends(config, &routes, START_PATIENCE)? {
        if held.end > held.start {
            ends.expect(&held.topic, held.partition, held.end);
        }
    }
    Ok((routes, Some(ends)))
}

fn start_groups(plan: &Arc<LandingPlan>) -> Result<mpsc::UnboundedReceiver<Result<(), RunError>>, RunError> {
    let (sender, results) = mpsc::unbounded_channel();
    for index in 0..plan.options.threads {
        let (plan, sender) = (Arc::clone(plan), sender.clone());
        let body = move || {
            let result = catch_unwind(AssertUnwindSafe(|| group::run(&plan, index)));
            // The receiver is gone if the run was dropped.
            let _ = sender.send(result.unwrap_or_else(|_| Err(panicked("a thread group"))));
        };
        start_thread(format!("sealflow-landing-{index}"), body)?;
    }
    let plan = Arc::clone(plan);
    start_thread("sealflow-landing-unread".to_owned(), move || {
        let partitions = || plan.routes.each_partition();
        let is_over = || plan.shutdown() != Shutdown::Run;
        let rejoin = || plan.rejoin.store(true, Ordering::Relaxed);
        unread::look(&plan.config, plan.group(), partitions, is_over, rejoin);
    })?;
    Ok(results)
}

/// What the thread groups of a run share.
pub(super) struct LandingPlan {
    pub(super) config: KafkaConfig,
    pub(super) options: LandingOptions,
    pub(super) landing: Arc<dyn Landing>,
    pub(super) catalogue: Arc<dyn Catalogue>,
    pub(super) counters: Arc<Counters>,
    pub(super) landed: Arc<LandingCounters>,
    pub(super) runtime: Handle,
    pub(super) routes: Arc<Routes>,
    pub(super) ends: Option<Ends>,
    pub(super) watch: Watch,
    pub(super) ratio: Option<Mutex<DeadLetterRatio>>,
    shutdown: AtomicU8,
    all_done: AtomicBool,
    /// A thread group is to leave the consumer group and come back.
    rejoin: AtomicBool,
}

impl LandingPlan {
    pub(super) fn group(&self) -> &str {
        self.config.source.group.as_deref().unwrap_or(&self.options.pipeline)
    }

    /// `group.instance.id` of a thread group. Names hold no dots.
    pub(super) fn member(&self, index: u16) -> String {
        format!(
            "sealflow-landing.{}.{}.{index}",
            self.options.pipeline, self.options.instance
        )
    }

    /// The shared name of a topic.
    pub(super) fn topic(&self, name: &str) -> Arc<str> {
        self.routes.source(name).map_or_else(|| name.into(), Arc::clone)
    }

    pub(super) fn shutdown(&self) -> Shutdown {
        match self.shutdown.load(Ordering::Relaxed) {
            0 => Shutdown::Run,
            1 => Shutdown::Drain,
            _ => Shutdown::Stop,
        }
    }

    fn raise(&self, to: Shutdown) {
        if to >= Shutdown::Drain {
            self.counters.set_draining();
        }
        self.shutdown.fetch_max(to as u8, Ordering::Relaxed);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.shutdown() == Shutdown::Stop
    }

    /// Whether the caller is the one to leave the consumer group and come back.
    pub(super) fn take_rejoin(&self) -> bool {
        self.rejoin.swap(false, Ordering::Relaxed)
    }

    /// Whether the run drains because it has done what it was asked for.
    pub(super) fn is_all_done(&self) -> bool {
        self.all_done.load(Ordering::Relaxed)
    }

    pub(super) fn drain_if_ends_are_reached(&self) {
        if self.shutdown() == Shutdown::Run && self.ends.as_ref().is_some_and(Ends::are_reached) {
            self.all_done.store(true, Ordering::Relaxed);
            self.raise(Shutdown::Drain);
        }
    }

    pub(super) fn statistics_ms(&self) -> u32 {
        if self.ends.is_some() { 250 } else { 2_000 }
    }

    pub(super) fn remember(&self, note: &str) {
        if let Some(ratio) = &self.ratio {
            ratio.lock().unwrap_or_else(PoisonError::into_inner).remember(note);
        }
    }

    fn summary(&self, elapsed: Duration) -> Summary {
        let counters = &self.counters;
        Summary {
            records: Counters::get(&counters.records_committed),
            dead_letters: Counters::get(&counters.dead_letters),
            bytes_received: Counters::get(&counters.bytes_received),
            bytes_sent: Counters::get(&counters.bytes_sent),
            commits: Counters::get(&counters.commits),
            aborts: Counters::get(&counters.aborts),
            elapsed,
        }
    }
}

/// Ends the threads when the run's future is dropped.
struct StopOnDrop(Arc<LandingPlan>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.raise(Shutdown::Stop);
    }
}

/// A name that no topic has, so that none is taken for written by this pipeline.
const NOT_WRITTEN: &str = "{topic}.written-to-files";

impl KafkaConfig {
    /// Whether no topic but the dead letters' is written.
    pub(crate) fn is_landing(&self) -> bool {
        self.target.topic == NOT_WRITTEN
    }

    /// The Kafka sections of a pipeline that writes no topic but dead letters.
    #[must_use]
    pub fn of_landing(source: KafkaSource, dead_letters: Option<DeadLetters>) -> Self {
        Self {
            source,
            target: KafkaTarget {
                brokers: None,
                topic: NOT_WRITTEN.to_owned(),
                create: false,
                properties: crate::Properties::default(),
            },
            dead_letters,
        }
    }
}
