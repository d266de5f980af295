//! The stream: records produced in waves, sealed by one runner, opened by another, both checked as they come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Message as _, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sealflow::keys::KEYS_HEADER;
use sealflow::pipeline::{BatchLimits, Counters, Transform};
use sealflow_kafka::{DeadLetters, KafkaConfig, KafkaSource, KafkaTarget, Runner, RunnerOptions, Shutdown};
use sealflow_samples::{SampleRecord, record};
use tokio::sync::watch;

use super::bench::{Bench, PARTITIONS, TOPICS, Who};
use crate::failure::{Exit, Failure, Result};

/// Records on their way at once: the mock cluster keeps 5 MiB per partition, these are about 1 MiB.
const IN_FLIGHT: u64 = 12_000;
/// How long nothing may arrive before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the stream showed.
pub(super) struct Streamed {
    /// One record in clear.
    pub(super) before: String,
    /// The same record sealed.
    pub(super) after: String,
    /// Two sealed messages, for the refusals to play with.
    pub(super) sealed: Vec<OwnedMessage>,
    pub(super) values: u64,
    /// How many plaintexts were looked for in the sealed topic.
    pub(super) secrets: u64,
    pub(super) seconds: f64,
}

/// Produces, seals, opens and compares `records` records.
pub(super) async fn run(bench: &Bench, seed: u64, records: u64) -> Result<Streamed> {
    let seal = Arc::new(bench.seal_transform(Who::Pipeline).await?);
    let values = seal.counters();
    let open = Arc::new(bench.open_transform(Who::Pipeline).await?);
    let (stop, signal) = watch::channel(Shutdown::Run);
    let started = Instant::now();
    let sealing = tokio::spawn(runner(bench, "demo-seal", TOPICS[0], TOPICS[1], seal)?.run(signal.clone()));
    let opening = tokio::spawn(runner(bench, "demo-open", TOPICS[1], TOPICS[2], open)?.run(signal));

    let brokers = bench.brokers();
    let arrived = Arc::new(AtomicU64::new(0));
    let producing = {
        let (brokers, arrived) = (brokers.clone(), Arc::clone(&arrived));
        tokio::task::spawn_blocking(move || produce(&brokers, TOPICS[0], seed, records, Some(&arrived)))
    };
    let checking_sealed = {
        let brokers = brokers.clone();
        tokio::task::spawn_blocking(move || check_sealed(&brokers, seed, records))
    };
    let checking_opened = tokio::task::spawn_blocking(move || check_opened(&brokers, seed, records, &arrived));
    joined(producing.await)?;
    joined(checking_opened.await)?;
    let seconds = started.elapsed().as_secs_f64();
    let sealed = joined(checking_sealed.await)?;
    // Both ends may be gone already if a runner failed; their results say so.
    let _ = stop.send(Shutdown::Drain);
    for runner in [sealing, opening] {
        let ended = runner.await.map_err(|_| wrong("a runner panicked"))?;
        let summary = ended.map_err(|error| wrong(&error.to_string()))?;
        if summary.records != records || summary.dead_letters != 0 {
            return Err(wrong(&format!(
                "{} of {records} records committed, {} dead letters",
                summary.records, summary.dead_letters
            )));
        }
    }
    Ok(Streamed {
        before: text(&record(seed, sealed.first).value),
        after: sealed
            .messages
            .first()
            .and_then(|message| message.payload())
            .map(text)
            .unwrap_or_default(),
        sealed: sealed.messages,
        values: values.values.load(Ordering::Relaxed),
        secrets: sealed.secrets,
        seconds,
    })
}

pub(super) fn wrong(what: &str) -> Failure {
    Failure::new(
        Exit::Internal,
        format_args!("the demo found a mistake: {what}"),
        "please report it: nothing that it shows may fail",
    )
}

pub(super) fn joined<T>(result: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    result.unwrap_or_else(|_| Err(wrong("a thread panicked")))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn runner(bench: &Bench, name: &str, from: &str, to: &str, transform: Arc<dyn Transform>) -> Result<Runner> {
    let config = KafkaConfig {
        source: KafkaSource {
            brokers: bench.brokers(),
            topics: vec![from.to_owned()],
            pattern: None,
            group: None,
            properties: Default::default(),
        },
        target: KafkaTarget {
            brokers: None,
            topic: to.to_owned(),
            create: false,
            properties: Default::default(),
        },
        dead_letters: Some(DeadLetters {
            topic: TOPICS[3].to_owned(),
            max_ratio: 0.01,
            oversize: None,
        }),
    };
    let options = RunnerOptions {
        pipeline: name.to_owned(),
        instance: "a".to_owned(),
        threads: 1,
        batch: BatchLimits::default(),
        until_end: false,
    };
    Runner::new(config, options, transform, Arc::new(Counters::default())).map_err(|error| wrong(&error.to_string()))
}

/// The partition that Kafka's own hash of the key would not change for us: records of one customer stay together.
fn partition_of(record: &SampleRecord) -> i32 {
    let hash = record
        .key
        .iter()
        .fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    i32::try_from(hash % PARTITIONS.unsigned_abs()).unwrap_or_default()
}

/// Writes the records to `topic`. With a count of those that have arrived, at most [`IN_FLIGHT`] are on their way.
pub(super) fn produce(brokers: &str, topic: &str, seed: u64, records: u64, arrived: Option<&AtomicU64>) -> Result<()> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("linger.ms", "20")
        .set("compression.codec", "lz4")
        .create()
        .map_err(|error| wrong(&error.to_string()))?;
    let mut last = (0, Instant::now());
    for n in 0..records {
        while let Some(arrived) = arrived
            && n.saturating_sub(arrived.load(Ordering::Relaxed)) >= IN_FLIGHT
        {
            producer.poll(Duration::from_millis(5));
            let now = arrived.load(Ordering::Relaxed);
            if now != last.0 {
                last = (now, Instant::now());
            } else if last.1.elapsed() > PATIENCE {
                return Err(wrong(&format!("nothing arrived any more after {now} records")));
            }
        }
        let sample = record(seed, n);
        let message = BaseRecord::to(topic)
            .partition(partition_of(&sample))
            .key(&sample.key)
            .payload(&sample.value);
        producer.send(message).map_err(|(error, _)| wrong(&error.to_string()))?;
        if n % 512 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer
        .flush(Duration::from_secs(30))
        .map_err(|error| wrong(&error.to_string()))
}

fn consumer(brokers: &str, topic: &str) -> Result<BaseConsumer> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "demo-check")
        .set("enable.auto.commit", "false")
        .create()
        .map_err(|error| wrong(&error.to_string()))?;
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        let added = partitions.add_partition_offset(topic, partition, Offset::Beginning);
        added.map_err(|error| wrong(&error.to_string()))?;
    }
    consumer
        .assign(&partitions)
        .map_err(|error| wrong(&error.to_string()))?;
    Ok(consumer)
}

/// Reads `records` messages; each must be the next of its partition, and its record must not have come before.
fn read(
    brokers: &str,
    topic: &str,
    seed: u64,
    records: u64,
    mut check: impl FnMut(&OwnedMessage, &SampleRecord) -> Result<()>,
) -> Result<()> {
    let consumer = consumer(brokers, topic)?;
    let mut last = vec![None; usize::try_from(PARTITIONS).unwrap_or_default()];
    let mut quiet = Instant::now();
    let mut count = 0;
    while count < records {
        let Some(message) = consumer.poll(Duration::from_millis(200)) else {
            if quiet.elapsed() > PATIENCE {
                return Err(wrong(&format!("only {count} of {records} records reached {topic}")));
            }
            continue;
        };
        quiet = Instant::now();
        let message = message.map_err(|error| wrong(&error.to_string()))?.detach();
        let n = number(message.payload().unwrap_or_default()).ok_or_else(|| wrong("a record lost its id"))?;
        let sample = record(seed, n);
        let slot = usize::try_from(message.partition())
            .ok()
            .and_then(|partition| last.get_mut(partition));
        let slot = slot.ok_or_else(|| wrong("a record came from an unknown partition"))?;
        if message.partition() != partition_of(&sample)
            || slot.is_some_and(|last| last >= n)
            || message.key() != Some(&sample.key)
        {
            return Err(wrong(&format!("record {n} is at another place in {topic}")));
        }
        *slot = Some(n);
        check(&message, &sample)?;
        count += 1;
    }
    Ok(())
}

/// The number in a sample's `"id":"r-0000000042"`.
fn number(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value.get(..64)?).ok()?;
    let digits = text.split_once("\"r-")?.1.get(..10)?;
    digits.parse().ok()
}

struct Sealed {
    first: u64,
    messages: Vec<OwnedMessage>,
    secrets: u64,
}

/// No plaintext of a sealed field may occur in a sealed record.
fn check_sealed(brokers: &str, seed: u64, records: u64) -> Result<Sealed> {
    let mut sealed = Sealed {
        first: 0,
        messages: Vec::new(),
        secrets: 0,
    };
    read(brokers, TOPICS[1], seed, records, |message, sample| {
        let payload = String::from_utf8_lossy(message.payload().unwrap_or_default());
        for secret in &sample.secrets {
            sealed.secrets += 1;
            if payload.contains(secret.as_str()) {
                return Err(wrong(&format!(
                    "a plaintext of record {} is in the sealed topic",
                    sample.n
                )));
            }
        }
        // Payments have a card; the refusals need two such records.
        let is_payment = payload.contains("\"cards\"") && payload.matches("sf1.").count() >= 4;
        if (is_payment || records < 100) && sealed.messages.len() < 2 {
            if sealed.messages.is_empty() {
                sealed.first = sample.n;
            }
            sealed.messages.push(message.clone());
        }
        Ok(())
    })?;
    let has_keys = |message: &OwnedMessage| {
        use rdkafka::message::Headers as _;
        message
            .headers()
            .is_some_and(|headers| headers.iter().any(|header| header.key == KEYS_HEADER))
    };
    if sealed.messages.iter().all(has_keys) {
        Ok(sealed)
    } else {
        Err(wrong("a sealed record has no key envelopes"))
    }
}

/// Every opened record must be the original, byte for byte.
fn check_opened(brokers: &str, seed: u64, records: u64, arrived: &AtomicU64) -> Result<()> {
    read(brokers, TOPICS[2], seed, records, |message, sample| {
        if message.payload() != Some(&sample.value) || message_has_headers(message) {
            return Err(wrong(&format!("record {} did not come back as it was", sample.n)));
        }
        arrived.fetch_add(1, Ordering::Relaxed);
        Ok(())
    })
}

fn message_has_headers(message: &OwnedMessage) -> bool {
    use rdkafka::message::Headers as _;
    message.headers().is_some_and(|headers| headers.count() > 0)
}
