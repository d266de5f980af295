//! Reads the dead-letter topic without joining a group, for `dlq list` and `dlq show`. Commits nothing.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sealflow::pipeline::Record;

use crate::config::KafkaConfig;
use crate::error::{ConfigError, RunError, unreachable_or_denied};
use crate::properties::source_observer;
use crate::reading::drain;
use crate::topics;

/// Which letters of the topic are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Letters {
    /// Those that no replay has taken yet.
    Open,
    /// All that the topic still holds.
    All,
}

/// Hands every dead letter to `each`, partition by partition as they come, up to the end that the topic has now.
/// `group` is the pipeline's consumer group. Blocks, so call it off the runtime's threads.
///
/// # Errors
/// If the pipeline has no dead letters, or the brokers do not answer within `timeout`.
pub fn read_letters(
    config: &KafkaConfig,
    group: &str,
    which: Letters,
    timeout: Duration,
    mut each: impl FnMut(&Record),
) -> Result<(), RunError> {
    config.check()?;
    let topic = dead_letter_topic(config)?;
    let mut client = source_observer(config);
    client
        .set("group.id", replay_group(group))
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest");
    let consumer = topics::observer(&client, "source.kafka.properties")?;
    let failed = |error: &KafkaError| unreachable_or_denied(error, consumer.context().last_log());
    let partitions = topics::partitions_of(config, topic, timeout)?;
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions - 1);
    let committed = match which {
        Letters::Open => consumer
            .committed_offsets(list, timeout)
            .map_err(|error| failed(&error))?,
        Letters::All => list,
    };
    let mut starts = TopicPartitionList::new();
    for element in committed.elements() {
        let start = match element.offset() {
            offset @ Offset::Offset(_) => offset,
            _ => Offset::Beginning,
        };
        starts
            .add_partition_offset(topic, element.partition(), start)
            .map_err(|error| failed(&error))?;
    }
    // To where the consumer finds the end.
    let ends = (0..partitions).map(|partition| (partition, i64::MAX)).collect();
    drain(&consumer, topic, &starts, ends, timeout, |record| {
        each(&record);
        ControlFlow::Continue(())
    })?;
    Ok(())
}

/// The source topics of a pipeline, each with its number of partitions.
///
/// # Errors
/// If the brokers do not answer within `timeout`.
pub fn source_topics(config: &KafkaConfig, timeout: Duration) -> Result<Vec<(Arc<str>, i32)>, RunError> {
    config.check()?;
    let routes = topics::survey_sources(config, timeout)?;
    Ok(routes
        .partitions()
        .map(|(topic, count)| (topic.into(), count))
        .collect())
}

/// The consumer group under which a pipeline's dead letters are replayed.
pub(crate) fn replay_group(group: &str) -> String {
    format!("{group}.replay")
}

pub(crate) fn dead_letter_topic(config: &KafkaConfig) -> Result<&str, ConfigError> {
    let dead_letters = config.dead_letters.as_ref().map(|dead| dead.topic.as_str());
    dead_letters.ok_or_else(|| {
        ConfigError::new(
            "dead_letters",
            "this pipeline has none",
            "add `dead_letters: { topic: NAME }` to the pipeline file",
        )
    })
}
