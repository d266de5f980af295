//! Runs a pipeline: prepares topics, starts the thread groups, passes signals on, gathers the summary.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rdkafka::error::KafkaError;
use sealflow::pipeline::{BatchLimits, Counters, StopKind, Transform};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::KafkaConfig;
use crate::error::{ConfigError, RunError};
use crate::folder::{self, FolderLetter, FolderSummary};
use crate::group;
use crate::letters;
use crate::ratio::DeadLetterRatio;
use crate::reasons::Teller;
use crate::topics::{self, ReplayTo, Routes};
use crate::transaction::Committed;
use crate::unread;
use crate::until_end::Ends;
use crate::watch::{STUCK_AFTER, Watch};

/// How long brokers may take to answer at start.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How often a pattern is looked up again.
const PATTERN_INTERVAL: Duration = Duration::from_secs(30);

/// How often calls are looked for that do not come back.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// What a running pipeline is told to do. Levels only go up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shutdown {
    /// Go on.
    #[default]
    Run,
    /// Read no more, finish and commit what is held, leave.
    Drain,
    /// Leave at once; what is not committed is read again by the next run.
    Stop,
}

/// How a pipeline is run, beside its Kafka sections.
#[derive(Clone, Debug)]
pub struct RunnerOptions {
    /// The pipeline's name: `[A-Za-z0-9_-]{1,100}`.
    pub pipeline: String,
    /// Stable name of this process among those of the pipeline: same rule. Two live processes with one name
    /// fence each other.
    pub instance: String,
    /// Thread groups, each a consumer and a producer of its own.
    pub threads: u16,
    /// When a batch closes.
    pub batch: BatchLimits,
    /// Ends when every partition is committed up to the end seen at start. For one process per group.
    pub until_end: bool,
}

/// What a run has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Source records committed.
    pub records: u64,
    /// Of these, to the dead letters.
    pub dead_letters: u64,
    /// Bytes of keys, values and headers read and committed.
    pub bytes_received: u64,
    /// Bytes of keys, values and headers written and committed.
    pub bytes_sent: u64,
    /// Transactions committed.
    pub commits: u64,
    /// Transactions aborted and done again.
    pub aborts: u64,
    /// From start to end.
    pub elapsed: Duration,
}

/// A pipeline from topics to topics, ready to run.
pub struct Runner {
    config: KafkaConfig,
    options: RunnerOptions,
    transform: Arc<dyn Transform>,
    counters: Arc<Counters>,
    replay: Option<ReplayTo>,
}

impl Runner {
    /// Checks what can be checked without a broker.
    ///
    /// # Errors
    /// [`RunError::Config`] with the key path of the first thing that cannot be run.
    pub fn new(
        config: KafkaConfig,
        options: RunnerOptions,
        transform: Arc<dyn Transform>,
        counters: Arc<Counters>,
    ) -> Result<Self, RunError> {
        config.check()?;
        check_name("name", &options.pipeline)?;
        check_name("instance", &options.instance)?;
        if !(1..=64).contains(&options.threads) {
            return Err(ConfigError::new("threads", "is not between 1 and 64", "1 to 4 is usual").into());
        }
        if options.batch.rows == 0 || options.batch.bytes.0 == 0 {
            return Err(
                ConfigError::new("batch", "rows and bytes must not be 0", "leave it out for the defaults").into(),
            );
        }
        Ok(Self {
            config,
            options,
            transform,
            counters,
            replay: None,
        })
    }

    /// The same run over the pipeline's dead letters instead of its source topics, once to the end that they have
    /// at the start. The group and the transactional id are of its own. Outcomes whose position is one of the
    /// source topics go to `to`; letters that the transform hands back, and new ones, to the dead letters again.
    ///
    /// # Errors
    /// [`RunError::Config`] if the pipeline has none.
    pub fn replaying(mut self, to: ReplayTo) -> Result<Self, RunError> {
        letters::dead_letter_topic(&self.config)?;
        let group = self.config.source.group.as_deref().unwrap_or(&self.options.pipeline);
        self.config.source.group = Some(letters::replay_group(group));
        // A replay starts with the oldest letter, wherever the pipeline itself would start.
        self.config.source.properties.remove("auto.offset.reset");
        self.options.threads = 1;
        self.options.until_end = true;
        self.replay = Some(to);
        Ok(self)
    }

    /// Runs until the end (with `until_end`), until told to stop, or until it cannot go on. On the runtime it
    /// is called on, the transform is polled. Dropping the future stops the threads as [`Shutdown::Stop`]
    /// does, without waiting for them.
    ///
    /// # Errors
    /// See [`RunError`]; what was committed stays.
    pub async fn run(self, mut shutdown: watch::Receiver<Shutdown>) -> Result<Summary, RunError> {
        let started = Instant::now();
        let (config, options, replay) = (self.config.clone(), self.options.clone(), self.replay);
        let runtime = Handle::current();
        let prepared = tokio::task::spawn_blocking(move || prepare(&config, &options, replay, &runtime)).await;
        let (routes, ends) = prepared.map_err(|error| panicked(&error.to_string()))??;
        let plan = Arc::new(Plan::new(self, routes, ends));
        let _stop = StopOnDrop(Arc::clone(&plan));
        plan.raise(*shutdown.borrow_and_update());
        let mut results = start_groups(&plan)?;
        plan.counters.set_started();
        let mut failure = None;
        let mut signals = true;
        // Intervals, not sleeps: another branch would begin those anew each time.
        let mut watching = tokio::time::interval(WATCH_INTERVAL);
        let mut patterns = tokio::time::interval_at((Instant::now() + PATTERN_INTERVAL).into(), PATTERN_INTERVAL);
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
                _ = watching.tick() => plan.check_calls()?,
                _ = patterns.tick(), if plan.config.source.pattern.is_some() && plan.replay.is_none() => {
                    plan.look_for_topics().await;
                }
            }
        }
        failure.map_or_else(|| Ok(plan.summary(started.elapsed())), Err)
    }
}

impl Runner {
    /// Replays the letters of the folder, of a runner that is [replaying](Self::replaying). Each letter is read when
    /// its turn comes, its file removed when its record is committed.
    ///
    /// # Errors
    /// See [`RunError`]; what was committed stays, and is not replayed by the next run.
    pub async fn run_folder(
        self,
        mut shutdown: watch::Receiver<Shutdown>,
        mut letters: impl Iterator<Item = Result<FolderLetter, RunError>> + Send + 'static,
    ) -> Result<FolderSummary, RunError> {
        let (config, options, replay) = (self.config.clone(), self.options.clone(), self.replay);
        let runtime = Handle::current();
        let prepared = tokio::task::spawn_blocking(move || prepare(&config, &options, replay, &runtime)).await;
        let (routes, _) = prepared.map_err(|error| panicked(&error.to_string()))??;
        let plan = Arc::new(Plan::new(self, routes, None));
        let _stop = StopOnDrop(Arc::clone(&plan));
        plan.raise(*shutdown.borrow_and_update());
        let inside = Arc::clone(&plan);
        let (sender, mut replayed) = oneshot::channel();
        // A thread of its own: the runtime would wait for one of its own at its end, which may never come.
        start_thread("sealflow-kafka-folder".to_owned(), move || {
            let result = catch_unwind(AssertUnwindSafe(|| folder::replay(&inside, &mut letters)));
            let _ = sender.send(result.unwrap_or_else(|_| Err(panicked("the replay of the folder"))));
        })?;
        let mut signals = true;
        let mut watching = tokio::time::interval(WATCH_INTERVAL);
        loop {
            tokio::select! {
                changed = shutdown.changed(), if signals => match changed {
                    Ok(()) => plan.raise(*shutdown.borrow_and_update()),
                    Err(_) => signals = false,
                },
                replayed = &mut replayed => return replayed.map_err(|error| panicked(&error.to_string()))?,
                _ = watching.tick() => plan.check_calls()?,
            }
        }
    }
}

fn prepare(
    config: &KafkaConfig,
    options: &RunnerOptions,
    replay: Option<ReplayTo>,
    runtime: &Handle,
) -> Result<(Routes, Option<Ends>), RunError> {
    let mut routes = topics::prepare(config, START_PATIENCE, runtime)?;
    if let Some(to) = replay {
        routes = routes.into_replay(to)?;
    }
    if !options.until_end {
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

fn start_groups(plan: &Arc<Plan>) -> Result<mpsc::UnboundedReceiver<Result<(), RunError>>, RunError> {
    let (sender, results) = mpsc::unbounded_channel();
    for index in 0..plan.options.threads {
        let (plan, sender) = (Arc::clone(plan), sender.clone());
        let body = move || {
            let result = catch_unwind(AssertUnwindSafe(|| group::run(&plan, index)));
            // The receiver is gone if the run was dropped.
            let _ = sender.send(result.unwrap_or_else(|_| Err(panicked("a thread group"))));
        };
        start_thread(format!("sealflow-kafka-{index}"), body)?;
    }
    let plan = Arc::clone(plan);
    start_thread("sealflow-kafka-unread".to_owned(), move || {
        let partitions = || plan.routes().each_partition();
        let is_over = || plan.shutdown() != Shutdown::Run;
        let rejoin = || plan.rejoin.store(true, Ordering::Relaxed);
        unread::look(&plan.config, plan.group(), partitions, is_over, rejoin);
    })?;
    Ok(results)
}

pub(crate) fn start_thread(name: String, body: impl FnOnce() + Send + 'static) -> Result<(), RunError> {
    let thread = std::thread::Builder::new().name(name).spawn(body);
    thread.map(drop).map_err(|error| {
        let reason = format!("no thread could be started: {error}");
        RunError::stopped(StopKind::Unavailable, reason, "lower `threads`")
    })
}

pub(crate) fn panicked(what: &str) -> RunError {
    RunError::stopped(
        StopKind::Internal,
        format!("{what} panicked"),
        "this is a bug in sealflow: please report it with the log",
    )
}

/// Names become part of `transactional.id` and `group.instance.id`, joined by dots.
pub(crate) fn check_name(path: &str, name: &str) -> Result<(), ConfigError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if (1..=100).contains(&name.len()) && name.chars().all(legal) {
        return Ok(());
    }
    Err(ConfigError::new(
        path,
        format!("{name:?} cannot be used as a name"),
        "1 to 100 letters, digits, '_' and '-'",
    ))
}

/// What the thread groups of a run share.
pub(crate) struct Plan {
    pub config: KafkaConfig,
    pub options: RunnerOptions,
    pub transform: Arc<dyn Transform>,
    pub counters: Arc<Counters>,
    pub runtime: Handle,
    pub ends: Option<Ends>,
    pub ratio: Option<Mutex<DeadLetterRatio>>,
    pub watch: Watch,
    teller: Teller,
    replay: Option<ReplayTo>,
    routes: RwLock<Arc<Routes>>,
    shutdown: AtomicU8,
    /// Every end that the run was asked for is reached.
    all_done: AtomicBool,
    /// A thread group is to leave the consumer group and come back.
    rejoin: AtomicBool,
}

impl Plan {
    fn new(runner: Runner, routes: Routes, ends: Option<Ends>) -> Self {
        let ratio = runner
            .config
            .dead_letters
            .as_ref()
            // Of dead letters, many may become dead letters again.
            .filter(|_| runner.replay.is_none())
            .map(|dead| Mutex::new(DeadLetterRatio::new(dead.max_ratio)));
        Self {
            ratio,
            watch: Watch::default(),
            teller: Teller::default(),
            replay: runner.replay,
            config: runner.config,
            options: runner.options,
            transform: runner.transform,
            counters: runner.counters,
            runtime: Handle::current(),
            ends,
            routes: RwLock::new(Arc::new(routes)),
            shutdown: AtomicU8::new(Shutdown::Run as u8),
            all_done: AtomicBool::new(false),
            rejoin: AtomicBool::new(false),
        }
    }

    pub(crate) fn group(&self) -> &str {
        self.config.source.group.as_deref().unwrap_or(&self.options.pipeline)
    }

    /// Whether the dead letters are read instead of the source.
    pub(crate) fn is_replay(&self) -> bool {
        self.replay.is_some()
    }

    /// `transactional.id` and `group.instance.id` of a thread group. Names hold no dots, so that no pipeline's is
    /// that of another's replay.
    pub(crate) fn member(&self, index: u16) -> String {
        let kind = if self.replay.is_some() {
            "sealflow-replay"
        } else {
            "sealflow"
        };
        format!("{kind}.{}.{}.{index}", self.options.pipeline, self.options.instance)
    }

    pub(crate) fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The shared name of a topic.
    pub(crate) fn topic(&self, name: &str) -> Arc<str> {
        self.routes().source(name).map_or_else(|| name.into(), Arc::clone)
    }

    pub(crate) fn shutdown(&self) -> Shutdown {
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

    /// A call that does not come back ends the run. Its thread is left behind: it cannot be reached, and the caller
    /// is about to end.
    fn check_calls(&self) -> Result<(), RunError> {
        let stuck = self.watch.stuck(STUCK_AFTER);
        stuck.map_or(Ok(()), |what| {
            Err(RunError::Unavailable {
                reason: format!("{what} does not come back from librdkafka"),
            })
        })
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.shutdown() == Shutdown::Stop
    }

    pub(crate) fn patience(&self) -> Duration {
        START_PATIENCE
    }

    pub(crate) fn drain_if_ends_are_reached(&self) {
        if self.shutdown() == Shutdown::Run && self.ends.as_ref().is_some_and(Ends::are_reached) {
            self.all_done.store(true, Ordering::Relaxed);
            self.raise(Shutdown::Drain);
        }
    }

    /// Whether the caller is the one to leave the consumer group and come back.
    pub(crate) fn take_rejoin(&self) -> bool {
        self.rejoin.swap(false, Ordering::Relaxed)
    }

    /// Whether the run drains because it has done what it was asked for.
    pub(crate) fn is_all_done(&self) -> bool {
        self.all_done.load(Ordering::Relaxed)
    }

    /// How often librdkafka reports where partitions stand: a run that ends waits for it.
    pub(crate) fn statistics_ms(&self) -> u32 {
        if self.ends.is_some() { 250 } else { 2_000 }
    }

    pub(crate) fn client_not_made(&self, path: &str, error: &KafkaError) -> RunError {
        topics::client_not_made(path, error)
    }

    pub(crate) fn count(&self, committed: &Committed) {
        let counters = &self.counters;
        Counters::add(&counters.records_committed, committed.records);
        Counters::add(&counters.dead_letters, committed.dead_letters);
        Counters::add(&counters.bytes_received, committed.bytes_received);
        Counters::add(&counters.bytes_sent, committed.bytes_sent);
        Counters::add(&counters.commits, 1);
        counters.set_target_failing(false);
        self.teller.tell(committed.reasons.clone());
        if let Some(ratio) = &self.ratio {
            let mut ratio = ratio.lock().unwrap_or_else(PoisonError::into_inner);
            ratio.committed(committed.records, committed.dead_letters);
        }
    }

    /// Looks a pattern up again. What does not fit is not read, and said again each time.
    async fn look_for_topics(&self) {
        let (config, runtime) = (self.config.clone(), self.runtime.clone());
        let found = tokio::task::spawn_blocking(move || topics::prepare(&config, START_PATIENCE, &runtime)).await;
        match found {
            Ok(Ok(routes)) => {
                let mut current = self.routes.write().unwrap_or_else(PoisonError::into_inner);
                if !routes.sources().eq(current.sources()) {
                    tracing::info!(
                        topics = routes.sources().count(),
                        "the pattern matches other topics now"
                    );
                    *current = Arc::new(routes.with_targets_of(&current));
                }
            }
            Ok(Err(error)) => tracing::warn!(error = %error, help = error.help(), "topics cannot be looked up"),
            Err(error) => tracing::warn!(error = %error, "topics cannot be looked up"),
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
struct StopOnDrop(Arc<Plan>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.raise(Shutdown::Stop);
    }
}
