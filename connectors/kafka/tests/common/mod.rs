//! Pipelines for the tests: small transforms, and a runner with its signals at hand.

// Each test binary uses its own part of this.
#![allow(dead_code, unreachable_pub, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use sealflow::pipeline::{BatchLimits, Counters, Outcome, Record, Route, Transform, TransformError};
use sealflow::units::{ByteSize, Span};
use sealflow_kafka::{
    DeadLetters, KafkaConfig, KafkaSource, KafkaTarget, Properties, RunError, Runner, RunnerOptions, Shutdown, Summary,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Passes records on as they are; those whose value starts with `bad` become dead letters.
#[derive(Default)]
pub struct Sorter {
    /// While true, every batch has to wait.
    pub away: AtomicBool,
    /// How long each batch takes.
    pub delay_ms: AtomicU64,
    pub calls: AtomicU64,
}

impl Sorter {
    /// Each batch takes this long.
    pub fn slow(delay_ms: u64) -> Arc<Self> {
        Arc::new(Self {
            delay_ms: AtomicU64::new(delay_ms),
            ..Self::default()
        })
    }
}

#[async_trait]
impl Transform for Sorter {
    async fn apply(&self, records: &[Record]) -> Result<Vec<Outcome>, TransformError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(self.delay_ms.load(Ordering::Relaxed))).await;
        if self.away.load(Ordering::Relaxed) {
            return Err(TransformError::Retry {
                reason: "the key service is away".into(),
            });
        }
        let is_bad = |record: &Record| record.value.as_ref().is_some_and(|value| value.starts_with(b"bad"));
        Ok(records
            .iter()
            .cloned()
            .map(|record| Outcome {
                route: if is_bad(&record) {
                    Route::DeadLetter
                } else {
                    Route::Target
                },
                record,
            })
            .collect())
    }

    /// Dead letters of the same size, or of a tenth where a record's value starts with `shrinks`.
    async fn refuse(&self, records: &[Record], _: &'static str) -> Result<Vec<Outcome>, TransformError> {
        let letter = |mut record: Record| {
            if let Some(value) = record.value.as_mut().filter(|value| value.starts_with(b"shrinks")) {
                value.truncate(value.len() / 10);
            }
            Outcome {
                route: Route::DeadLetter,
                record,
            }
        };
        Ok(records.iter().cloned().map(letter).collect())
    }
}

pub fn config(brokers: &str, topics: &[&str]) -> KafkaConfig {
    let properties = |pairs: &[(&str, &str)]| -> Properties {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    KafkaConfig {
        source: KafkaSource {
            brokers: brokers.into(),
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            pattern: None,
            group: None,
            properties: properties(&[
                ("session.timeout.ms", "6000"),
                ("heartbeat.interval.ms", "500"),
                // Little at once, so that every batch holds records of all partitions.
                ("fetch.message.max.bytes", "2000"),
            ]),
        },
        target: KafkaTarget {
            brokers: None,
            topic: "{topic}.sealed".into(),
            create: false,
            properties: Properties::default(),
        },
        dead_letters: None,
    }
}

pub fn dead_letters(topic: &str, max_ratio: f64) -> Option<DeadLetters> {
    Some(DeadLetters {
        topic: topic.into(),
        max_ratio,
        oversize: None,
    })
}

pub fn options(pipeline: &str, instance: &str, until_end: bool) -> RunnerOptions {
    RunnerOptions {
        pipeline: pipeline.into(),
        instance: instance.into(),
        threads: 1,
        batch: BatchLimits {
            rows: 500,
            bytes: ByteSize(1 << 20),
            time: Span(Duration::from_millis(20)),
        },
        until_end,
    }
}

/// A pipeline that runs beside the test.
pub struct Running {
    pub counters: Arc<Counters>,
    signal: watch::Sender<Shutdown>,
    task: JoinHandle<Result<Summary, RunError>>,
}

impl Running {
    pub fn start(config: KafkaConfig, options: RunnerOptions, transform: Arc<dyn Transform>) -> Self {
        // A failed test shows the pipeline's log, as much of it as RUST_LOG asks for.
        let log = tracing_subscriber::fmt().with_test_writer();
        let _ = log
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .try_init();
        let counters = Arc::new(Counters::default());
        let (signal, signals) = watch::channel(Shutdown::Run);
        let runner = Runner::new(config, options, transform, Arc::clone(&counters)).expect("the configuration runs");
        Self {
            counters,
            signal,
            task: tokio::spawn(runner.run(signals)),
        }
    }

    pub fn signal(&self, shutdown: Shutdown) {
        self.signal.send_replace(shutdown);
    }

    pub async fn result(self) -> Result<Summary, RunError> {
        let ended = tokio::time::timeout(Duration::from_secs(60), self.task).await;
        ended
            .expect("the run ends within a minute")
            .expect("the run does not panic")
    }

    pub async fn drained(self) -> Summary {
        self.signal(Shutdown::Drain);
        self.result().await.expect("a drained run succeeds")
    }

    pub fn committed(&self) -> u64 {
        Counters::get(&self.counters.records_committed)
    }

    pub async fn until_committed(&self, records: u64) {
        until(
            || self.committed() >= records,
            || format!("{} of {records} are committed", self.committed()),
        )
        .await;
    }
}

/// Waits for a condition, up to 40 seconds.
pub async fn until(condition: impl Fn() -> bool, state: impl Fn() -> String) {
    let end = Instant::now() + Duration::from_secs(40);
    while !condition() {
        assert!(Instant::now() < end, "waited too long: {}", state());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A run to the end of its source topics.
pub async fn run_to_end(config: KafkaConfig, options: RunnerOptions) -> Result<Summary, RunError> {
    Running::start(config, options, Arc::new(Sorter::default()))
        .result()
        .await
}
