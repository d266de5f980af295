//! Which topics are read, where each is written, and whether their partitions fit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use sealflow::pipeline::{Position, StopKind};
use tokio::runtime::Handle;

use crate::config::KafkaConfig;
use crate::context::log_line;
use crate::error::{ConfigError, RunError, is_denial, unreachable_or_denied};
use crate::properties::{source_observer, target_observer};

/// For how long a client's queue is served before it is looked whether the answer is there.
const SERVED: Duration = Duration::from_millis(20);

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it must be.
    Pass,
    /// Runs, but is worth a look.
    Warning,
    /// Does not run.
    Failure,
}

/// One line of a checklist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How good it is.
    pub level: Level,
    /// Key path in the pipeline's file that it is about.
    pub path: String,
    /// What was found.
    pub message: String,
    /// What to do about it; empty if nothing.
    pub help: String,
}

impl Finding {
    fn new(level: Level, path: &str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            level,
            path: path.to_owned(),
            message: message.into(),
            help: help.into(),
        }
    }

    fn pass(path: &str, message: impl Into<String>) -> Self {
        Self::new(Level::Pass, path, message, "")
    }
}

/// Asks the brokers whether the topics exist and fit. Blocks for up to `timeout` per cluster, so call it off
/// the runtime's threads. Changes nothing.
///
/// # Errors
/// If the configuration cannot be run whatever the brokers say, or they do not answer.
pub fn check_topics(config: &KafkaConfig, timeout: Duration) -> Result<Vec<Finding>, RunError> {
    config.check()?;
    let survey = Survey::make(config, timeout)?;
    Ok(survey.findings)
}

/// Where a replay writes the records of dead letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplayTo {
    /// To the pipeline's targets, through its transform.
    #[default]
    Target,
    /// Back to the source topics, as they were.
    Source,
}

/// Where each source topic goes.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    targets: BTreeMap<String, String>,
    dead_letters: Option<(String, i32)>,
    /// Topics that are read, with their partitions: the source topics, or in a replay the dead letters.
    read: BTreeMap<Arc<str>, i32>,
}

impl Routes {
    pub(crate) fn sources(&self) -> impl Iterator<Item = &str> {
        self.read.keys().map(|topic| &**topic)
    }

    pub(crate) fn partitions(&self) -> impl Iterator<Item = (&str, i32)> {
        self.read.iter().map(|(topic, count)| (&**topic, *count))
    }

    /// Every partition that is read.
    pub(crate) fn each_partition(&self) -> BTreeSet<(String, i32)> {
        self.partitions()
            .flat_map(|(topic, count)| (0..count).map(move |partition| (topic.to_owned(), partition)))
            .collect()
    }

    /// The shared name of a source topic.
    pub(crate) fn source(&self, topic: &str) -> Option<&Arc<str>> {
        self.read.get_key_value(topic).map(|(name, _)| name)
    }

    /// These routes, and where records go that are still held of topics that are gone.
    pub(crate) fn with_targets_of(mut self, earlier: &Self) -> Self {
        for (source, target) in &earlier.targets {
            self.targets.entry(source.clone()).or_insert_with(|| target.clone());
        }
        self
    }

    /// Routes of a replay: the dead letters are read, and records go where those of their topic go, or back to it.
    pub(crate) fn into_replay(mut self, to: ReplayTo) -> Result<Self, ConfigError> {
        let Some((topic, partitions)) = &self.dead_letters else {
            return Err(ConfigError::new(
                "dead_letters",
                "this pipeline has none",
                "there is nothing to replay",
            ));
        };
        self.read = BTreeMap::from([(topic.as_str().into(), *partitions)]);
        if to == ReplayTo::Source {
            self.targets = self.targets.into_keys().map(|topic| (topic.clone(), topic)).collect();
        }
        Ok(self)
    }

    pub(crate) fn target(&self, source: &str) -> Result<&str, RunError> {
        match self.targets.get(source) {
            Some(target) => Ok(target),
            None => Err(RunError::stopped(
                StopKind::Internal,
                format!("topic {source} is not a source of this pipeline"),
                "start again",
            )),
        }
    }

    /// Topic and partition for the dead letter of a record.
    pub(crate) fn dead_letter(&self, position: &Position) -> Result<(&str, i32), RunError> {
        match &self.dead_letters {
            Some((topic, partitions)) => Ok((topic, position.partition % (*partitions).max(1))),
            None => Err(RunError::stopped(
                StopKind::Data,
                format!("{position} cannot be transformed, and the pipeline has no dead letters"),
                "add `dead_letters: { topic: NAME }` to the pipeline, or correct the record's source",
            )),
        }
    }
}

/// Finds the topics, creates missing targets if the configuration says so, and refuses what does not fit.
pub(crate) fn prepare(config: &KafkaConfig, timeout: Duration, runtime: &Handle) -> Result<Routes, RunError> {
    let mut survey = Survey::make(config, timeout)?;
    if !survey.missing.is_empty() && config.target.create {
        create(config, &survey.missing, timeout, runtime)?;
        survey = Survey::make(config, timeout)?;
    }
    if let Some(bad) = survey.findings.iter().find(|finding| finding.level == Level::Failure) {
        return Err(ConfigError::new(&bad.path, &bad.message, &bad.help).into());
    }
    if let Some(Missing { topic, .. }) = survey.missing.first() {
        let help = "it was created a moment ago and is not visible yet: start again";
        return Err(ConfigError::new("target.kafka.create", format!("topic {topic} is not there"), help).into());
    }
    Ok(survey.routes)
}

/// What the brokers say about the topics of a configuration.
#[derive(Default)]
struct Survey {
    findings: Vec<Finding>,
    routes: Routes,
    missing: Vec<Missing>,
}

/// A topic to create.
struct Missing {
    topic: String,
    partitions: i32,
    /// The source topic whose retention it takes; dead letters have the broker's defaults.
    like: Option<String>,
}

impl Survey {
    fn make(config: &KafkaConfig, timeout: Duration) -> Result<Self, RunError> {
        let sources = list(&source_observer(config), "source.kafka.properties", timeout)?;
        let targets = list(&target_observer(config), "target.kafka.properties", timeout)?;
        let mut survey = Self::default();
        let mut widest = 1;
        for topic in survey.select(config, &sources)? {
            let count = sources.get(&topic).copied().unwrap_or(0);
            widest = widest.max(count);
            survey.add_route(config, topic, count, &targets);
        }
        if let Some(dead) = &config.dead_letters {
            survey.add_dead_letters(config, &dead.topic, widest, &targets);
        }
        Ok(survey)
    }

    fn select(&mut self, config: &KafkaConfig, sources: &HashMap<String, i32>) -> Result<Vec<String>, RunError> {
        let Some(pattern) = config.pattern()? else {
            for (index, topic) in config.source.topics.iter().enumerate() {
                let path = format!("source.kafka.topics[{index}]");
                self.findings.push(match sources.get(topic) {
                    Some(count) => Finding::pass(&path, format!("topic {topic} has {count} partitions")),
                    None => Finding::new(
                        Level::Failure,
                        &path,
                        format!("topic {topic} does not exist, or may not be seen"),
                        "create it, correct the name, or allow this identity to describe it",
                    ),
                });
            }
            return Ok(config
                .source
                .topics
                .iter()
                .filter(|topic| sources.contains_key(*topic))
                .cloned()
                .collect());
        };
        let mut topics: Vec<String> = sources
            .keys()
            .filter(|topic| pattern.is_match(topic) && !topic.starts_with("__") && !config.writes(topic))
            .cloned()
            .collect();
        topics.sort_unstable();
        let path = "source.kafka.pattern";
        self.findings.push(if topics.is_empty() {
            Finding::new(
                Level::Warning,
                path,
                "no topic matches yet",
                "the pipeline waits for one",
            )
        } else {
            Finding::pass(path, format!("matches {}: {}", topics.len(), topics.join(", ")))
        });
        Ok(topics)
    }

    fn add_route(&mut self, config: &KafkaConfig, source: String, count: i32, targets: &HashMap<String, i32>) {
        if config.is_landing() {
            self.routes.read.insert(source.as_str().into(), count);
            // For replays of dead letters, which go back there.
            self.routes.targets.insert(source.clone(), source);
            return;
        }
        let target = config.target_of(&source);
        let path = "target.kafka.topic";
        match targets.get(&target) {
            Some(have) if *have == count => {
                self.findings.push(Finding::pass(
                    path,
                    format!("topic {target} has {count} partitions, as {source}"),
                ));
            }
            Some(have) => self.findings.push(Finding::new(
                Level::Failure,
                path,
                format!("topic {target} has {have} partitions, but {source} has {count}"),
                "records keep their partition number: make both counts equal",
            )),
            None => self.add_missing(config, path, &target, count, Some(&source)),
        }
        self.routes.read.insert(source.as_str().into(), count);
        self.routes.targets.insert(source, target);
    }

    fn add_dead_letters(&mut self, config: &KafkaConfig, topic: &str, widest: i32, targets: &HashMap<String, i32>) {
        match targets.get(topic) {
            Some(count) => {
                self.findings.push(Finding::pass(
                    "dead_letters.topic",
                    format!("topic {topic} has {count} partitions"),
                ));
                self.routes.dead_letters = Some((topic.to_owned(), *count));
            }
            None => self.add_missing(config, "dead_letters.topic", topic, widest, None),
        }
    }

    fn add_missing(&mut self, config: &KafkaConfig, path: &str, topic: &str, count: i32, like: Option<&str>) {
        if self.missing.iter().all(|missing| missing.topic != topic) {
            self.missing.push(Missing {
                topic: topic.to_owned(),
                partitions: count,
                like: like.map(str::to_owned),
            });
        }
        self.findings.push(if config.target.create {
            Finding::pass(path, format!("topic {topic} will be created with {count} partitions"))
        } else {
            Finding::new(
                Level::Failure,
                path,
                format!("topic {topic} does not exist, or may not be seen"),
                format!("create it with {count} partitions, or set target.kafka.create: true"),
            )
        });
    }
}

/// Topics and their partition counts. Names are not asked for, as that could create them.
fn list(client: &ClientConfig, path: &str, timeout: Duration) -> Result<HashMap<String, i32>, RunError> {
    let observer = observer(client, path)?;
    let metadata = ask(&observer, || observer.fetch_metadata(None, timeout))?;
    let count = |topic: &rdkafka::metadata::MetadataTopic| i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX);
    Ok(metadata
        .topics()
        .iter()
        .filter(|topic| topic.error().is_none())
        .map(|topic| (topic.name().to_owned(), count(topic)))
        .collect())
}

/// How many partitions a topic has.
pub(crate) fn partitions_of(config: &KafkaConfig, topic: &str, timeout: Duration) -> Result<i32, RunError> {
    let targets = list(&target_observer(config), "target.kafka.properties", timeout)?;
    targets.get(topic).copied().ok_or_else(|| {
        let message = format!("topic {topic} does not exist, or may not be seen");
        ConfigError::new(
            "dead_letters.topic",
            message,
            "nothing was written to it yet, or the name is wrong",
        )
        .into()
    })
}

/// The source topics, whatever is wrong with their targets.
pub(crate) fn survey_sources(config: &KafkaConfig, timeout: Duration) -> Result<Routes, RunError> {
    Ok(Survey::make(config, timeout)?.routes)
}

/// The offsets that a partition holds now, `[start, end)`.
///
/// The end is that of the log, which is beyond what a read_committed consumer sees: a transaction's markers are
/// written after its commit was answered, and what was committed a moment ago belongs to this run.
pub(crate) struct Watermarks {
    pub topic: Arc<str>,
    pub partition: i32,
    pub start: i64,
    pub end: i64,
}

/// What every partition of the routes holds.
pub(crate) fn ends(config: &KafkaConfig, routes: &Routes, timeout: Duration) -> Result<Vec<Watermarks>, RunError> {
    let mut client = source_observer(config);
    client.set("isolation.level", "read_uncommitted");
    let observer = observer(&client, "source.kafka.properties")?;
    ask(&observer, || {
        let mut ends = Vec::new();
        for (topic, count) in routes.partitions() {
            for partition in 0..count {
                let (start, end) = observer.fetch_watermarks(topic, partition, timeout)?;
                ends.push(Watermarks {
                    topic: topic.into(),
                    partition,
                    start,
                    end,
                });
            }
        }
        Ok(ends)
    })
}

fn create(config: &KafkaConfig, missing: &[Missing], timeout: Duration, runtime: &Handle) -> Result<(), RunError> {
    let admin: AdminClient<DefaultClientContext> = target_observer(config)
        .create()
        .map_err(|error| client_not_made("target.kafka.properties", &error))?;
    let options = AdminOptions::new()
        .operation_timeout(Some(timeout))
        .request_timeout(Some(timeout));
    let retentions: Vec<_> = missing
        .iter()
        .map(|missing| match &missing.like {
            Some(like) => retention(config, like, &options, runtime),
            None => Vec::new(),
        })
        .collect();
    let topics: Vec<NewTopic<'_>> = missing
        .iter()
        .zip(&retentions)
        .map(|(missing, retention)| {
            let topic = NewTopic::new(&missing.topic, missing.partitions, TopicReplication::Fixed(-1));
            retention
                .iter()
                .fold(topic, |topic, (name, value)| topic.set(name, value))
        })
        .collect();
    let results = runtime
        .block_on(admin.create_topics(&topics, &options))
        .map_err(|error| unreachable_or_denied(&error, None))?;
    for result in results {
        match result {
            // Another instance of the pipeline was quicker.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                let message = format!("topic {topic} could not be created: {code}");
                let help = "create it by hand, or allow this identity to";
                return Err(ConfigError::new("target.kafka.create", message, help).into());
            }
        }
    }
    Ok(())
}

/// How long a source topic keeps its records. Its target must not keep them for a shorter time: records keep their
/// time stamps, so a broker's default would delete old ones as soon as they are written.
fn retention(config: &KafkaConfig, topic: &str, options: &AdminOptions, runtime: &Handle) -> Vec<(String, String)> {
    const KEPT: [&str; 3] = ["cleanup.policy", "retention.bytes", "retention.ms"];
    let described = source_observer(config)
        .create::<AdminClient<DefaultClientContext>>()
        .and_then(|admin| runtime.block_on(admin.describe_configs([&ResourceSpecifier::Topic(topic)], options)));
    let resource = described.and_then(|mut all| match all.pop() {
        // rdkafka drops the code of a refusal: what is left is a resource without entries.
        Some(Ok(resource)) if resource.entries.is_empty() => {
            Err(KafkaError::AdminOp(RDKafkaErrorCode::TopicAuthorizationFailed))
        }
        Some(resource) => resource.map_err(KafkaError::AdminOp),
        None => Err(KafkaError::AdminOp(RDKafkaErrorCode::NoEnt)),
    });
    match resource {
        Ok(resource) => resource
            .entries
            .into_iter()
            .filter(|entry| KEPT.contains(&entry.name.as_str()))
            .filter_map(|entry| entry.value.map(|value| (entry.name, value)))
            .collect(),
        Err(error) => {
            tracing::warn!(
                topic,
                error = %error,
                "its retention cannot be read: the target is created with the broker's own, which may delete old records"
            );
            Vec::new()
        }
    }
}

/// A client could not be made: which property librdkafka objects to.
pub(crate) fn client_not_made(path: &str, error: &KafkaError) -> RunError {
    let help = "librdkafka's CONFIGURATION.md lists what every property takes";
    match error {
        // The error's own text repeats the value, which may be a secret.
        KafkaError::ClientConfig(_, _, name, _) => {
            ConfigError::new(format!("{path}.{name}"), "librdkafka does not take it", help).into()
        }
        error => ConfigError::new(path, error.to_string(), help).into(),
    }
}

/// A client that only asks.
pub(crate) type ObserverClient = BaseConsumer<Observer>;

pub(crate) fn observer(client: &ClientConfig, path: &str) -> Result<ObserverClient, RunError> {
    client
        .create_with_context(Observer::default())
        .map_err(|error| client_not_made(path, &error))
}

/// Makes a call that waits for brokers. Meanwhile the client's queue is served, so that librdkafka's log says at once
/// why there is no answer, and an error comes with its cause.
pub(crate) fn ask<T: Send>(
    observer: &ObserverClient,
    call: impl FnOnce() -> Result<T, KafkaError> + Send,
) -> Result<T, RunError> {
    let (answer, denial) = std::thread::scope(|scope| {
        let waiting = scope.spawn(call);
        let mut denial = None;
        loop {
            // Looked at first: what was logged before the end is served after it.
            let is_over = waiting.is_finished();
            while let Some(event) = observer.poll(SERVED) {
                let denied = event
                    .err()
                    .filter(|cause| cause.rdkafka_error_code().is_some_and(is_denial));
                denial = denied.or(denial);
            }
            if is_over {
                break (waiting.join(), denial);
            }
        }
    });
    let answer = answer.map_err(|_| RunError::stopped(StopKind::Internal, "a request panicked", "report this bug"))?;
    answer.map_err(|error| unreachable_or_denied(&denial.unwrap_or(error), observer.context().last_log()))
}

/// Keeps the last log line, which says more than an error code.
#[derive(Default)]
pub(crate) struct Observer {
    last_log: Mutex<Option<String>>,
}

impl Observer {
    pub(crate) fn last_log(&self) -> Option<String> {
        self.last_log
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}

impl ClientContext for Observer {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line, &self.last_log);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(error = %error, reason, "librdkafka error");
    }
}

impl ConsumerContext for Observer {}
