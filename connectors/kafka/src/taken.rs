//! The memory of values that count once, in a topic of one partition: a claim is written there before its record is sealed, and
//! who was first is decided by the order of the topic. Every process reads all of it, so all decide alike.
//!
//! A claim counts before the transaction that it is for, and stays when that is aborted: it names a place in the source, so
//! whoever reads that place again finds it taken by itself.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::util::Timeout;
use schemars::JsonSchema;
use sealflow::clock::{Clock, UnixMillis};
use sealflow::flow::hybrid::taken::{
    Claim, Hash, MAX_OF_RECORD, MAX_TAKEN, Taken, TakenError, TakenMemory, TakenValues,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::{KafkaConfig, check_topic_name};
use crate::error::{ConfigError, RunError, is_denial, unreachable_or_denied};
use crate::properties;
use crate::topics::{ObserverClient, client_not_made, observer};

/// `replay_memory` in a pipeline's file.
const PATH: &str = "replay_memory.topic";
const PARTITION: i32 = 0;
/// First byte of a message: how the rest is to be read.
const VERSION: u8 = 1;
/// Name, place, and when it is forgotten (milliseconds since the epoch, big endian).
const CLAIM_LEN: usize = 16 + 16 + 8;
/// Claims in one message, well below what any broker takes; one record has fewer.
const CLAIMS_A_MESSAGE: usize = 10_000;
/// How long a claim waits for the brokers, and for being read back.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one poll waits: the reader ends that soon.
const POLL: Duration = Duration::from_millis(100);
/// How long brokers may take to hear of a topic that another instance has just created.
const PROPAGATION: Duration = Duration::from_secs(10);
/// A topic's configuration: whether what is old is deleted or compacted.
const CLEANUP: &str = "cleanup.policy";
/// What a topic that is made here keeps: more than any policy remembers.
const RETENTION: Duration = Duration::from_secs(62 * 86_400);
/// How much longer a topic must keep claims than policies remember: clocks of clients and hosts differ.
const RETENTION_MARGIN: Duration = Duration::from_secs(3_600);

/// Where a pipeline remembers which values were taken, for columns with `client_sealed: once`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayMemory {
    /// A topic of one partition on the source's brokers. Pipelines that read the same values into the same dataset share it.
    pub topic: String,
    /// Creates it if it is not there, with one partition and 62 days of retention.
    #[serde(default)]
    pub create: bool,
    /// The most names of values that are held at once, about 100 bytes each, in every process. While there are more the pipeline
    /// waits.
    #[serde(default = "most_names")]
    #[schemars(range(min = 1_024, max = 67_108_864))]
    pub names: usize,
}

fn most_names() -> usize {
    MAX_TAKEN
}

/// The memory in its topic.
pub struct TakenTopic {
    shared: Arc<Shared>,
    producer: FutureProducer,
    topic: String,
    names: usize,
    clock: Arc<dyn Clock>,
    reader: Option<JoinHandle<()>>,
}

struct Shared {
    values: Mutex<TakenValues>,
    progress: watch::Sender<Progress>,
    is_over: AtomicBool,
}

/// How far the topic was read.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// Whether the end was reached once: all that was taken before is known.
    is_loaded: bool,
    /// The next offset.
    next: i64,
    /// Why it is not read any more.
    failure: Option<TakenError>,
}

impl TakenTopic {
    /// Opens the memory of a pipeline, and begins to read it. `remember` is for how long values must be remembered.
    ///
    /// Blocks, so call it off the runtime's threads.
    ///
    /// # Errors
    /// [`RunError`], also if the topic would forget too early or in another order than it was written.
    pub fn open(
        memory: &ReplayMemory,
        kafka: &KafkaConfig,
        remember: Duration,
        clock: Arc<dyn Clock>,
        timeout: Duration,
        runtime: &tokio::runtime::Handle,
    ) -> Result<Self, RunError> {
        check_name(memory, kafka)?;
        let admin = Admin::connect(kafka, timeout, runtime)?;
        if memory.create {
            admin.create(&memory.topic)?;
        }
        // Another instance may have created it a moment ago.
        let patience = if memory.create { PROPAGATION } else { Duration::ZERO };
        admin.check(&memory.topic, remember, patience)?;
        admin.warn_of_producers_times(&kafka.source.topics);
        let mut client = properties::source_observer(kafka);
        // Only named, never joined: librdkafka asks for it before partitions can be assigned by hand.
        client
            .set("group.id", "sealflow-replay-memory")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest");
        let consumer = observer(&client, "source.kafka.properties")?;
        check_partitions(&consumer, &memory.topic, patience, timeout)?;
        let mut assignment = TopicPartitionList::new();
        let added = assignment.add_partition_offset(&memory.topic, PARTITION, Offset::Beginning);
        let assigned = added.and_then(|()| consumer.assign(&assignment));
        assigned.map_err(|error| unreachable_or_denied(&error, None))?;
        let mut producer = properties::target_observer(kafka);
        producer
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("message.timeout.ms", PATIENCE.as_millis().to_string());
        let producer: FutureProducer = producer
            .create()
            .map_err(|error| client_not_made("target.kafka.properties", &error))?;
        let shared = Arc::new(Shared {
            values: Mutex::default(),
            progress: watch::Sender::new(Progress::default()),
            is_over: AtomicBool::new(false),
        });
        let reader = {
            let (shared, clock) = (Arc::clone(&shared), Arc::clone(&clock));
            let topic = memory.topic.clone();
            std::thread::Builder::new()
                .name("replay-memory".to_owned())
                .spawn(move || shared.read(&consumer, &topic, &*clock))
        };
        let reader = reader.map_err(|error| RunError::Unavailable {
            reason: format!("no thread to read the replay memory: {error}"),
        })?;
        Ok(Self {
            shared,
            producer,
            topic: memory.topic.clone(),
            names: memory.names,
            clock,
            reader: Some(reader),
        })
    }

    /// Waits until the topic was read as far as `is_enough` wants.
    async fn wait(&self, is_enough: impl Fn(&Progress) -> bool) -> Result<(), TakenError> {
        let mut progress = self.shared.progress.subscribe();
        let reached = progress.wait_for(|progress| progress.failure.is_some() || is_enough(progress));
        let Ok(reached) = tokio::time::timeout(PATIENCE, reached).await else {
            return Err(self.away("it is not read to its end yet"));
        };
        match reached {
            Ok(progress) => progress.failure.clone().map_or(Ok(()), Err),
            Err(_) => Err(self.away("its reader has ended")),
        }
    }

    fn away(&self, why: impl fmt::Display) -> TakenError {
        TakenError::Away {
            reason: format!("topic {}: {why}", self.topic),
        }
    }

    /// Writes the claims of records; the offset of the last message.
    async fn write(&self, records: &[&[Claim]]) -> Result<i64, TakenError> {
        let mut last = -1;
        for message in messages(records) {
            let record = FutureRecord::<(), [u8]>::to(&self.topic)
                .partition(PARTITION)
                .payload(&message);
            let sent = self.producer.send(record, Timeout::After(PATIENCE)).await;
            let delivery = sent.map_err(|(error, _)| match error.rdkafka_error_code() {
                Some(code) if is_denial(code) => unusable(&self.topic, code),
                _ => self.away(error),
            })?;
            last = delivery.offset;
        }
        Ok(last)
    }
}

#[async_trait]
impl TakenMemory for TakenTopic {
    async fn claim(&self, records: &[Vec<Claim>]) -> Result<Vec<Taken>, TakenError> {
        self.wait(|progress| progress.is_loaded).await?;
        let new: Vec<&[Claim]> = {
            let mut values = self.shared.values();
            values.forget(self.clock.now());
            let undecided = records.iter().filter(|claims| values.decide(claims).is_none());
            let new: Vec<&[Claim]> = undecided.map(Vec::as_slice).collect();
            let names: usize = new.iter().map(|claims| claims.len()).sum();
            if names > 0 && values.len().saturating_add(names) > self.names {
                return Err(self.away("it is full: raise `replay_memory.names`, or lower `remember` in the policy"));
            }
            new
        };
        if !new.is_empty() {
            let last = self.write(&new).await?;
            self.wait(|progress| progress.next > last).await?;
        }
        let values = self.shared.values();
        // What was forgotten meanwhile came at its very end.
        let decided = records
            .iter()
            .map(|claims| values.decide(claims).unwrap_or(Taken::Late(0)));
        Ok(decided.collect())
    }
}

impl Drop for TakenTopic {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            // It ends within one poll, and whether it panicked makes no difference any more.
            let _ = reader.join();
        }
    }
}

impl fmt::Debug for TakenTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TakenTopic")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn values(&self) -> MutexGuard<'_, TakenValues> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the topic until it is over, or cannot go on.
    fn read(&self, consumer: &ObserverClient, topic: &str, clock: &dyn Clock) {
        while !self.is_over.load(Ordering::Relaxed) {
            match consumer.poll(POLL) {
                None => {}
                Some(Ok(message)) => {
                    let now = clock.now();
                    let Some(records) = message.payload().and_then(decode) else {
                        let reason = format!("topic {topic}, offset {}: not a message of ours", message.offset());
                        let help = "nobody else may write to this topic: make another, and name it in replay_memory"
                            .to_owned();
                        return self.fail(TakenError::Unusable { reason, help });
                    };
                    let mut values = self.values();
                    values.forget(now);
                    for claims in records {
                        if claims.iter().any(|(.., until)| *until >= now) {
                            values.take(&claims);
                        }
                    }
                    drop(values);
                    let next = message.offset() + 1;
                    self.progress.send_modify(|progress| progress.next = next);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    self.progress.send_modify(|progress| progress.is_loaded = true);
                }
                Some(Err(error)) => match error.rdkafka_error_code() {
                    Some(code) if is_denial(code) => return self.fail(unusable(topic, code)),
                    Some(
                        code @ (RDKafkaErrorCode::UnknownTopic
                        | RDKafkaErrorCode::UnknownTopicOrPartition
                        | RDKafkaErrorCode::UnknownPartition),
                    ) => return self.fail(unusable(topic, code)),
                    _ => tracing::debug!(%error, topic, "the replay memory waits for its brokers"),
                },
            }
        }
    }

    fn fail(&self, error: TakenError) {
        self.progress.send_modify(|progress| progress.failure = Some(error));
    }
}

/// Asks until there is an answer, or `patience` is over.
fn until<T>(patience: Duration, mut ask: impl FnMut() -> Result<Option<T>, RunError>) -> Result<Option<T>, RunError> {
    let until = Instant::now() + patience;
    loop {
        let answer = ask()?;
        if answer.is_some() || Instant::now() >= until {
            return Ok(answer);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Of one partition, in which who was first can be said.
fn check_partitions(
    consumer: &ObserverClient,
    topic: &str,
    patience: Duration,
    timeout: Duration,
) -> Result<(), RunError> {
    let count = until(patience, || {
        let metadata = consumer.fetch_metadata(Some(topic), timeout);
        let metadata = metadata.map_err(|error| unreachable_or_denied(&error, None))?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        Ok(found.map(|topic| topic.partitions().len()).filter(|count| *count > 0))
    })?;
    match count {
        Some(1) => Ok(()),
        None => Err(absent(topic)),
        Some(count) => {
            let message = format!("topic {topic} has {count} partitions: who was first could not be said");
            Err(ConfigError::new(PATH, message, "make another topic, with one partition").into())
        }
    }
}

fn absent(topic: &str) -> RunError {
    let message = format!("topic {topic} does not exist, or may not be seen");
    let help = "create it with one partition and cleanup.policy=delete, or set replay_memory.create: true; and allow this \
                identity Describe and DescribeConfigs on it";
    ConfigError::new(PATH, message, help).into()
}

/// A topic of its own: what a pipeline reads or writes for others is no memory.
fn check_name(memory: &ReplayMemory, kafka: &KafkaConfig) -> Result<(), ConfigError> {
    let topic = &memory.topic;
    check_topic_name(PATH, topic)?;
    let matches = kafka.pattern()?.is_some_and(|pattern| pattern.is_match(topic));
    let is_dead = kafka.dead_letters.as_ref().is_some_and(|dead| dead.topic == *topic);
    let is_target = kafka
        .source
        .topics
        .iter()
        .any(|source| kafka.target_of(source) == *topic);
    if matches || is_dead || is_target || kafka.source.topics.contains(topic) {
        let message = format!("topic {topic} is read or written by the pipeline itself");
        return Err(ConfigError::new(PATH, message, "name a topic that is for nothing else"));
    }
    Ok(())
}

fn unusable(topic: &str, code: RDKafkaErrorCode) -> TakenError {
    TakenError::Unusable {
        reason: format!("topic {topic}: {code}"),
        help: "check that the topic of replay_memory is there, and that this identity may read and write it".to_owned(),
    }
}

/// The messages that hold the claims of these records.
fn messages(records: &[&[Claim]]) -> Vec<Vec<u8>> {
    let mut messages: Vec<(usize, Vec<u8>)> = Vec::new();
    for claims in records {
        let has_room = messages
            .last()
            .is_some_and(|(count, _)| count + claims.len() <= CLAIMS_A_MESSAGE);
        if !has_room {
            messages.push((0, vec![VERSION]));
        }
        let Some((count, message)) = messages.last_mut() else {
            continue;
        };
        *count += claims.len();
        // A record has no more than MAX_OF_RECORD.
        message.extend_from_slice(&u16::try_from(claims.len()).unwrap_or(u16::MAX).to_be_bytes());
        for claim in *claims {
            message.extend_from_slice(&claim.name);
            message.extend_from_slice(&claim.place);
            message.extend_from_slice(&claim.until.0.to_be_bytes());
        }
    }
    messages.into_iter().map(|(_, message)| message).collect()
}

/// The claims of a message, record by record: name, place, and when it can be forgotten.
fn decode(message: &[u8]) -> Option<Vec<Vec<(Hash, Hash, UnixMillis)>>> {
    let (version, mut rest) = message.split_first()?;
    if *version != VERSION || rest.is_empty() {
        return None;
    }
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (count, more) = rest.split_first_chunk::<2>()?;
        let count = usize::from(u16::from_be_bytes(*count));
        let (claims, more) = more.split_at_checked(count * CLAIM_LEN)?;
        if !(1..=MAX_OF_RECORD).contains(&count) {
            return None;
        }
        let (claims, _) = claims.as_chunks::<CLAIM_LEN>();
        records.push(claims.iter().map(claim).collect());
        rest = more;
    }
    Some(records)
}

fn claim(bytes: &[u8; CLAIM_LEN]) -> (Hash, Hash, UnixMillis) {
    let (mut name, mut place, mut until) = (Hash::default(), Hash::default(), [0; 8]);
    name.copy_from_slice(&bytes[..16]);
    place.copy_from_slice(&bytes[16..32]);
    until.copy_from_slice(&bytes[32..]);
    (name, place, UnixMillis(u64::from_be_bytes(until)))
}

/// What brokers say about the topic, and do to it.
struct Admin<'a> {
    client: AdminClient<DefaultClientContext>,
    options: AdminOptions,
    runtime: &'a tokio::runtime::Handle,
}

impl<'a> Admin<'a> {
    fn connect(kafka: &KafkaConfig, timeout: Duration, runtime: &'a tokio::runtime::Handle) -> Result<Self, RunError> {
        let client = properties::target_observer(kafka)
            .create()
            .map_err(|error| client_not_made("target.kafka.properties", &error))?;
        let options = AdminOptions::new()
            .operation_timeout(Some(timeout))
            .request_timeout(Some(timeout));
        Ok(Self {
            client,
            options,
            runtime,
        })
    }

    fn create(&self, topic: &str) -> Result<(), RunError> {
        let retention = RETENTION.as_millis().to_string();
        let wanted = NewTopic::new(topic, 1, TopicReplication::Fixed(-1))
            .set(CLEANUP, "delete")
            .set("retention.ms", &retention)
            .set("retention.bytes", "-1");
        let results = self
            .runtime
            .block_on(self.client.create_topics([&wanted], &self.options));
        let results = results.map_err(|error| unreachable_or_denied(&error, None))?;
        match results.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
                let message = format!("topic {topic} could not be created: {code}");
                let help = "create it by hand with one partition, or allow this identity to";
                Err(ConfigError::new("replay_memory.create", message, help).into())
            }
            _ => Ok(()),
        }
    }

    /// Where topics keep the times that producers set, a value is late that waited in them for as long as no pipeline ran.
    fn warn_of_producers_times(&self, topics: &[String]) {
        let wanted: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let described = self
            .runtime
            .block_on(self.client.describe_configs(&wanted, &self.options));
        // Who may not ask is not kept from running.
        for (topic, resource) in topics.iter().zip(described.into_iter().flatten()) {
            let mut entries = resource.into_iter().flat_map(|resource| resource.entries);
            let kind = entries.find(|entry| entry.name == "message.timestamp.type");
            if kind.is_some_and(|kind| kind.value.as_deref() != Some("LogAppendTime")) {
                tracing::warn!(
                    topic,
                    "it keeps the times that producers set: while no pipeline reads it, values of clients become late; set \
                     message.timestamp.type=LogAppendTime"
                );
            }
        }
    }

    /// The configuration of a topic, if the broker that answers knows it already and tells it to this identity. rdkafka
    /// drops the code that says which: what is left then is a resource without entries.
    fn describe(&self, topic: &str) -> Result<Option<ConfigResource>, RunError> {
        let topics = [ResourceSpecifier::Topic(topic)];
        let described = self
            .runtime
            .block_on(self.client.describe_configs(&topics, &self.options));
        let mut described = described.map_err(|error| unreachable_or_denied(&error, None))?;
        let resource = described.pop().and_then(Result::ok);
        Ok(resource.filter(|resource| resource.entries.iter().any(|entry| entry.name == CLEANUP)))
    }

    /// Compaction keeps the last claim of a name, and it is the first that counts; and a topic that forgets early lets
    /// replays through.
    fn check(&self, topic: &str, remember: Duration, patience: Duration) -> Result<(), RunError> {
        let resource = until(patience, || self.describe(topic))?.ok_or_else(|| absent(topic))?;
        let value = |name: &str| {
            let mut entries = resource.entries.iter();
            entries
                .find(|entry| entry.name == name)
                .and_then(|entry| entry.value.as_deref())
        };
        let cleanup = value(CLEANUP).unwrap_or_default();
        if cleanup != "delete" {
            let message = format!(
                "topic {topic} is compacted ({CLEANUP}={cleanup}): of two claims it would forget the one that counts"
            );
            return Err(ConfigError::new(PATH, message, "set its cleanup.policy to delete").into());
        }
        // A claim is kept for twice the time within which its value must be read.
        let kept = remember * 2 + RETENTION_MARGIN;
        let retention = value("retention.ms")
            .and_then(|text| text.parse::<i64>().ok())
            .unwrap_or(0);
        let remembers = u64::try_from(retention).map_or(true, |millis| Duration::from_millis(millis) >= kept);
        if !remembers || value("retention.bytes").is_some_and(|text| text != "-1") {
            let message = format!("topic {topic} forgets before the policy does");
            let help =
                "set its retention.ms to an hour more than twice `client.mac.remember`, and retention.bytes to -1";
            return Err(ConfigError::new(PATH, message, help).into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use super::*;

    #[test]
    fn claims_are_read_as_they_were_written_and_nothing_else_is() {
        let claim = |n: u8| Claim {
            name: [n; 16],
            place: [n + 7; 16],
            until: UnixMillis(u64::from(n) << 40),
            is_in_time: true,
        };
        let records = [vec![claim(1), claim(2)], vec![claim(3)]];
        let wanted: Vec<&[Claim]> = records.iter().map(Vec::as_slice).collect();
        let message = messages(&wanted).pop().unwrap();
        let expected: Vec<Vec<_>> = records
            .iter()
            .map(|claims| {
                claims
                    .iter()
                    .map(|claim| (claim.name, claim.place, claim.until))
                    .collect()
            })
            .collect();
        assert_eq!(decode(&message).unwrap(), expected);
        for end in 0..message.len() {
            // Ends between two records are whole messages, too.
            assert_eq!(decode(&message[..end]).is_some(), end == 1 + 2 + 2 * CLAIM_LEN, "{end}");
        }
        assert!(decode(&[&[2], &message[1..]].concat()).is_none() && decode(&[1, 0, 0]).is_none());
        // A record is never split over messages.
        let large = vec![claim(1); MAX_OF_RECORD];
        let many = vec![large.as_slice(); 25];
        let split = messages(&many);
        assert!(split.len() > 1 && split.iter().all(|message| message.len() < 900_000));
        assert_eq!(
            split
                .iter()
                .map(|message| decode(message).unwrap().len())
                .sum::<usize>(),
            25
        );
    }
}
