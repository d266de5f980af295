//! Reads topics without joining a group, from where one says up to the end that they have now. Commits nothing.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sealflow::pipeline::Record;

use crate::config::{KafkaConfig, KafkaSource, KafkaTarget};
use crate::error::{ConfigError, RunError, unreachable_or_denied};
use crate::properties::{Properties, source_observer};
use crate::record;
use crate::topics::{self, ObserverClient, Watermarks};

/// What librdkafka fetches ahead of what is read, in KiB.
const FETCHED_AHEAD_KIB: &str = "32768";

/// A topic, how to reach it, and which of its records are wanted.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TopicReading {
    /// `host:port` of one or more brokers, separated by commas.
    pub brokers: String,
    /// librdkafka properties: how to connect.
    pub properties: Properties,
    /// Its name.
    pub topic: String,
    /// Only these partitions; empty for all.
    pub partitions: Vec<i32>,
    /// Where to start in each of them.
    pub from: StartAt,
}

/// Where reading starts in each partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartAt {
    /// With the oldest record that the topic still holds.
    #[default]
    Oldest,
    /// With that offset.
    Offset(i64),
    /// With the first record of that time stamp or a later one, milliseconds since the epoch.
    Time(i64),
    /// With the newest that many offsets. Aborted records and the marks of transactions count too.
    Last(u64),
}

impl TopicReading {
    /// All of a topic.
    #[must_use]
    pub fn new(brokers: &str, topic: &str) -> Self {
        Self {
            brokers: brokers.to_owned(),
            properties: Properties::default(),
            topic: topic.to_owned(),
            partitions: Vec::new(),
            from: StartAt::Oldest,
        }
    }

    fn config(&self) -> KafkaConfig {
        KafkaConfig {
            source: KafkaSource {
                brokers: self.brokers.clone(),
                topics: vec![self.topic.clone()],
                pattern: None,
                group: None,
                properties: self.properties.clone(),
            },
            target: KafkaTarget {
                brokers: None,
                topic: "{topic}.sealed".to_owned(),
                create: false,
                properties: Properties::default(),
            },
            dead_letters: None,
        }
    }
}

/// Hands the records to `each` as they come, those of a partition in order, until it breaks or every partition is read
/// to the end that it has now. Returns how many had headers that cannot be represented, and were left out.
///
/// Blocks, so call it off the runtime's threads.
///
/// # Errors
/// If the topic is not there, or the brokers do not answer within `timeout`.
pub fn read_topic(
    reading: &TopicReading,
    timeout: Duration,
    each: impl FnMut(Record) -> ControlFlow<()>,
) -> Result<u64, RunError> {
    let config = reading.config();
    config.check()?;
    let routes = topics::survey_sources(&config, timeout)?;
    let mut held = topics::ends(&config, &routes, timeout)?;
    check_partitions(reading, &held)?;
    held.retain(|held| reading.partitions.is_empty() || reading.partitions.contains(&held.partition));
    let mut client = source_observer(&config);
    // Only named, never joined: librdkafka asks for it before partitions can be assigned by hand.
    client
        .set("group.id", "sealflow-read")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .set("queued.max.messages.kbytes", FETCHED_AHEAD_KIB);
    let consumer = topics::observer(&client, "source.kafka.properties")?;
    let (starts, ends) = starts(reading, &held, &consumer, timeout)?;
    drain(&consumer, &reading.topic, &starts, ends, timeout, each)
}

/// Refuses a topic or partition that is not there: reading nothing of it would look like an empty one.
fn check_partitions(reading: &TopicReading, held: &[Watermarks]) -> Result<(), ConfigError> {
    let topic = &reading.topic;
    if held.is_empty() {
        let message = format!("topic {topic} does not exist, or may not be seen");
        return Err(ConfigError::new(
            "topic",
            message,
            "check its name, and the ACLs of the brokers",
        ));
    }
    let is_there = |partition: &&i32| held.iter().any(|held| held.partition == **partition);
    match reading.partitions.iter().find(|partition| !is_there(partition)) {
        None => Ok(()),
        Some(partition) => Err(ConfigError::new(
            "partition",
            format!("topic {topic} has no partition {partition}"),
            format!("it has {}, counted from 0", held.len()),
        )),
    }
}

/// The partitions that hold something to read: where each starts, and where it ends.
fn starts(
    reading: &TopicReading,
    held: &[Watermarks],
    consumer: &ObserverClient,
    timeout: Duration,
) -> Result<(TopicPartitionList, BTreeMap<i32, i64>), RunError> {
    let failed = |error: &KafkaError| unreachable_or_denied(error, consumer.context().last_log());
    let mut by_time = TopicPartitionList::new();
    if let StartAt::Time(millis) = reading.from {
        for held in held {
            by_time
                .add_partition_offset(&reading.topic, held.partition, Offset::Offset(millis.max(0)))
                .map_err(|error| failed(&error))?;
        }
        by_time = consumer
            .offsets_for_times(by_time, timeout)
            .map_err(|error| failed(&error))?;
    }
    let mut starts = TopicPartitionList::new();
    let mut ends = BTreeMap::new();
    for held in held {
        let from = match reading.from {
            StartAt::Oldest => held.start,
            StartAt::Offset(offset) => offset,
            StartAt::Last(count) => held.end.saturating_sub(i64::try_from(count).unwrap_or(i64::MAX)),
            StartAt::Time(_) => match by_time
                .find_partition(&reading.topic, held.partition)
                .map(|found| found.offset())
            {
                Some(Offset::Offset(offset)) => offset,
                // Nothing is as new as that.
                _ => held.end,
            },
        };
        let from = from.max(held.start);
        if from < held.end {
            starts
                .add_partition_offset(&reading.topic, held.partition, Offset::Offset(from))
                .map_err(|error| failed(&error))?;
            ends.insert(held.partition, held.end);
        }
    }
    Ok((starts, ends))
}

/// Hands the records of `starts` to `each`, every partition up to its end in `ends` or, before that, to where the
/// consumer finds its end. What was written later is left out, as are records whose headers cannot be represented;
/// those are counted and returned.
///
/// # Errors
/// If the brokers are silent for `timeout`.
pub(crate) fn drain(
    consumer: &ObserverClient,
    topic: &str,
    starts: &TopicPartitionList,
    mut ends: BTreeMap<i32, i64>,
    timeout: Duration,
    mut each: impl FnMut(Record) -> ControlFlow<()>,
) -> Result<u64, RunError> {
    let failed = |error: &KafkaError| unreachable_or_denied(error, consumer.context().last_log());
    consumer.assign(starts).map_err(|error| failed(&error))?;
    let name: Arc<str> = topic.into();
    let mut copies = record::Copies::default();
    let mut left_out = 0;
    let mut last = Instant::now();
    while !ends.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            None if last.elapsed() > timeout => {
                return Err(RunError::Unavailable {
                    reason: format!("topic {topic} is not answered to its end"),
                });
            }
            None => continue,
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ends.remove(&partition);
            }
            Some(Err(error)) => return Err(failed(&error)),
            Some(Ok(message)) => {
                let (partition, next) = (message.partition(), message.offset().saturating_add(1));
                // Without an end: written after it was reached.
                if let Some(end) = ends.get(&partition).copied() {
                    if next <= end {
                        match record::from_message(&name, &message, &mut copies) {
                            Ok(record) => {
                                if each(record).is_break() {
                                    return Ok(left_out);
                                }
                            }
                            Err(_) => left_out += 1,
                        }
                    }
                    if next >= end {
                        ends.remove(&partition);
                    }
                }
            }
        }
        last = Instant::now();
    }
    Ok(left_out)
}
