//! Reads a few of the newest records without joining a group: for `init` and `validate`. Commits nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sealflow::pipeline::Record;

use crate::config::KafkaConfig;
use crate::error::{RunError, unreachable_or_denied};
use crate::properties::source_observer;
use crate::record;
use crate::topics;

/// After records have come, this long without another one is the end.
const SILENCE: Duration = Duration::from_secs(2);

/// Up to `wanted` records of the source's topics, the newest of each partition, in no order across partitions.
/// Blocks for up to `timeout` per request and in all, so call it off the runtime's threads. Fewer records, or
/// none, come back where there are no more.
///
/// # Errors
/// If the configuration cannot be run, or the brokers do not answer.
pub fn sample(config: &KafkaConfig, wanted: usize, timeout: Duration) -> Result<Vec<Record>, RunError> {
    config.check()?;
    let mut client = source_observer(config);
    // Only named, never joined: librdkafka asks for it before partitions can be assigned by hand.
    client
        .set("group.id", "sealflow-sample")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "false");
    let consumer = topics::observer(&client, "source.kafka.properties")?;
    let failed = |error: &KafkaError| unreachable_or_denied(error, consumer.context().last_log());
    let mut rest = assign(config, wanted, timeout, &consumer)?;
    let deadline = Instant::now() + timeout;
    let mut copies = record::Copies::default();
    let mut records = Vec::new();
    let mut last = Instant::now();
    while records.len() < wanted && !rest.is_empty() && Instant::now() < deadline {
        let message = match consumer.poll(Duration::from_millis(100)) {
            // The end of a topic that is written in transactions is a mark that no consumer ever sees.
            None if !records.is_empty() && last.elapsed() > SILENCE => break,
            None => continue,
            Some(message) => message.map_err(|error| failed(&error))?,
        };
        last = Instant::now();
        let topic: Arc<str> = message.topic().into();
        let at = (Arc::clone(&topic), message.partition());
        if rest.get(&at).is_some_and(|end| message.offset() + 1 >= *end) {
            rest.remove(&at);
        }
        // A header that is not text is the pipeline's to judge; the sample goes on without the record.
        records.extend(record::from_message(&topic, &message, &mut copies).ok());
    }
    Ok(records)
}

type Ends = HashMap<(Arc<str>, i32), i64>;

/// Assigns the last records of every partition; returns where each partition that holds any ends.
fn assign(
    config: &KafkaConfig,
    wanted: usize,
    timeout: Duration,
    consumer: &topics::ObserverClient,
) -> Result<Ends, RunError> {
    let routes = topics::survey_sources(config, timeout)?;
    let ends: Vec<_> = topics::ends(config, &routes, timeout)?
        .into_iter()
        .filter(|held| held.end > held.start)
        .collect();
    let each = i64::try_from(wanted.div_ceil(ends.len().max(1))).unwrap_or(i64::MAX);
    let mut list = TopicPartitionList::new();
    for held in &ends {
        let from = held.end.saturating_sub(each).max(held.start);
        list.add_partition_offset(&held.topic, held.partition, Offset::Offset(from))
            .map_err(|error| unreachable_or_denied(&error, None))?;
    }
    consumer
        .assign(&list)
        .map_err(|error| unreachable_or_denied(&error, None))?;
    Ok(ends
        .into_iter()
        .map(|held| ((held.topic, held.partition), held.end))
        .collect())
}
