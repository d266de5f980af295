//! Lines into one partition of a topic: in order, without gaps, and with an answer only when every in-sync replica has them.
//! It knows nothing of what the lines say; audit logs go through it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::check_topic_name;
use crate::context::log_line;
use crate::error::{ConfigError, RunError, unreachable_or_denied};
use crate::properties::{self, Properties};

/// How long a line may be on its way before it is given up, unless `message.timeout.ms` says otherwise.
const PATIENCE_MS: &str = "60000";
/// How long one call into librdkafka waits.
const CALL: Duration = Duration::from_secs(5);

/// A topic that takes lines, and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LineTopic {
    /// `host:port` of one or more brokers, separated by commas.
    pub brokers: String,
    /// The topic; it has to be there.
    pub topic: String,
    /// librdkafka properties: how to connect.
    #[serde(default)]
    pub properties: Properties,
}

/// A producer of lines. All of its lines go to one partition, which its name decides, so that their order is theirs.
pub struct LineProducer {
    producer: ThreadedProducer<Lines>,
    topic: String,
    partition: i32,
    key: String,
    dead: Option<String>,
}

/// What became of the lines that were sent.
#[derive(Default)]
struct Lines {
    failed: Arc<Mutex<Option<KafkaError>>>,
    last_log: Mutex<Option<String>>,
}

impl ClientContext for Lines {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line, &self.last_log);
    }
}

impl ProducerContext for Lines {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert_with(|| error.clone());
        }
    }
}

impl LineProducer {
    /// Connects. `name` is the key of every line, and decides the partition among those that the topic has now.
    ///
    /// Blocks, so call it off the runtime's threads.
    ///
    /// # Errors
    /// [`RunError::Config`] for properties that the order of lines rests on, and for a topic that is not there;
    /// [`RunError::Unavailable`], [`RunError::Denied`].
    pub fn connect(target: &LineTopic, name: &str, timeout: Duration) -> Result<Self, RunError> {
        if target.brokers.trim().is_empty() {
            return Err(ConfigError::new("brokers", "names no broker", "write host:port, several with commas").into());
        }
        check_topic_name("topic", &target.topic)?;
        target.properties.check("properties")?;
        let client = properties::line_producer(&target.brokers, &target.properties, PATIENCE_MS);
        let producer: ThreadedProducer<Lines> = client.create_with_context(Lines::default()).map_err(|error| {
            ConfigError::new(
                "properties",
                format!("librdkafka makes no producer of them: {error}"),
                "correct the librdkafka properties",
            )
        })?;
        let unreachable = |error: &KafkaError| unreachable_or_denied(error, producer.context().last_log());
        let metadata = producer.client().fetch_metadata(Some(&target.topic), timeout);
        let metadata = metadata.map_err(|error| unreachable(&error))?;
        let partitions = metadata.topics().iter().find(|topic| topic.name() == target.topic);
        let partitions = partitions.map_or(0, |topic| topic.partitions().len());
        let Some(partition) = partition_of(name, partitions) else {
            return Err(ConfigError::new(
                "topic",
                format!("topic {} does not exist, or may not be seen", target.topic),
                "create it, with cleanup.policy=delete and a retention of your own; check the ACLs of the brokers",
            )
            .into());
        };
        Ok(Self {
            producer,
            topic: target.topic.clone(),
            partition,
            key: name.to_owned(),
            dead: None,
        })
    }

    /// Where the lines go: `kafka://topic/partition`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("kafka:{}/{}", self.topic, self.partition)
    }

    /// Sends the lines and waits until every in-sync replica has all of them.
    ///
    /// Blocks, so call it off the runtime's threads.
    ///
    /// # Errors
    /// [`RunError`]. Which of the lines arrived is not known then, so this takes no more of them: later lines would come
    /// behind a gap.
    pub fn send(&mut self, lines: &[String]) -> Result<(), RunError> {
        if let Some(reason) = &self.dead {
            return Err(RunError::Unavailable { reason: reason.clone() });
        }
        let sent = self.try_send(lines);
        if let Err(error) = &sent {
            self.dead = Some(format!("an earlier line may not have arrived: {error}"));
        }
        sent
    }

    fn try_send(&self, lines: &[String]) -> Result<(), RunError> {
        for line in lines {
            let record = || {
                BaseRecord::to(&self.topic)
                    .partition(self.partition)
                    .key(&self.key)
                    .payload(line.as_bytes())
            };
            while let Err((error, _)) = self.producer.send(record()) {
                if error.rdkafka_error_code() != Some(rdkafka::types::RDKafkaErrorCode::QueueFull) {
                    return Err(self.failed(&error));
                }
                // What waits is delivered or given up within the patience of each line.
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        while self.producer.in_flight_count() > 0 {
            // Its end is that of the lines' own patience.
            let _ = self.producer.flush(CALL);
        }
        let context = self.producer.context();
        let failed = context.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        match failed {
            Some(error) => Err(self.failed(&error)),
            None => Ok(()),
        }
    }

    fn failed(&self, error: &KafkaError) -> RunError {
        unreachable_or_denied(error, self.producer.context().last_log())
    }
}

impl Lines {
    fn last_log(&self) -> Option<String> {
        self.last_log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// FNV-1a of the name: the same name the same partition, as long as their number stays.
fn partition_of(name: &str, partitions: usize) -> Option<i32> {
    let fnv = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
    let hash = name.bytes().fold(2_166_136_261, fnv);
    i32::try_from((hash as usize).checked_rem(partitions)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spread_over_partitions_and_each_stays_on_its_own() {
        let partitions: Vec<_> = (0..64).map(|n| partition_of(&format!("instance {n}"), 4)).collect();
        for partition in 0..4 {
            assert!(partitions.contains(&Some(partition)));
        }
        assert_eq!(partition_of("a", 7), partition_of("a", 7));
        assert_eq!(partition_of("a", 0), None);
    }
}
