//! Topics of any broker, real or mock: create, fill, read back whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

const PATIENCE: Duration = Duration::from_secs(60);
/// How long a committed transaction's markers may take.
const MARKERS: Duration = Duration::from_secs(10);

/// A message as written or read. `offset` is ignored when writing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Partition.
    pub partition: i32,
    /// Offset within it.
    pub offset: i64,
    /// Key or null.
    pub key: Option<Vec<u8>>,
    /// Value or null.
    pub value: Option<Vec<u8>>,
    /// Headers in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds; `None` lets the producer choose.
    pub timestamp: Option<i64>,
}

impl Message {
    /// A message with a value and nothing else.
    #[must_use]
    pub fn new(partition: i32, value: impl Into<Vec<u8>>) -> Self {
        Self {
            partition,
            value: Some(value.into()),
            ..Self::default()
        }
    }
}

/// The topics of a broker.
#[derive(Clone, Debug)]
pub struct Topics {
    brokers: String,
    replicas: i32,
}

impl Topics {
    /// Those at `brokers`.
    #[must_use]
    pub fn at(brokers: &str) -> Self {
        Self {
            brokers: brokers.to_owned(),
            replicas: 1,
        }
    }

    /// New topics get this many replicas instead of one.
    #[must_use]
    pub fn with_replicas(mut self, replicas: i32) -> Self {
        self.replicas = replicas;
        self
    }

    /// Whether the broker answers within a second.
    #[must_use]
    pub fn answers(&self) -> bool {
        let metadata = self.consumer(&[]).fetch_metadata(None, Duration::from_secs(1));
        metadata.is_ok_and(|metadata| !metadata.brokers().is_empty())
    }

    /// Creates a topic.
    ///
    /// # Panics
    /// If the broker does not.
    pub fn create(&self, topic: &str, partitions: i32, config: &[(&str, &str)]) {
        self.create_as(topic, partitions, TopicReplication::Fixed(self.replicas), config);
    }

    /// As [`Topics::create`], each partition on these brokers, the first of which leads.
    ///
    /// # Panics
    /// If the broker does not.
    pub fn create_on(&self, topic: &str, partitions: i32, brokers: &[i32], config: &[(&str, &str)]) {
        let each = vec![brokers; usize::try_from(partitions).expect("a partition count")];
        self.create_as(topic, partitions, TopicReplication::Variable(&each), config);
    }

    fn create_as(&self, topic: &str, partitions: i32, replicas: TopicReplication<'_>, config: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client can be made");
        let mut new = NewTopic::new(topic, partitions, replicas);
        for (name, value) in config {
            new = new.set(name, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        let results = wait_for(|| async move { admin.create_topics(&[new], &options).await });
        for result in results.expect("the broker answers") {
            result.expect("the topic can be created");
        }
        // The controller knows it; the broker may take a moment to.
        let until = Instant::now() + PATIENCE;
        while self.partitions(topic) != partitions {
            assert!(Instant::now() < until, "{topic} does not appear");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Deletes a topic.
    ///
    /// # Panics
    /// If the broker does not.
    pub fn delete(&self, topic: &str) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client can be made");
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        let results = wait_for(|| async move { admin.delete_topics(&[topic], &options).await });
        for result in results.expect("the broker answers") {
            result.expect("the topic can be deleted");
        }
    }

    /// The configuration of a topic, defaults included.
    ///
    /// # Panics
    /// If the broker does not answer, or there is no such topic.
    #[must_use]
    pub fn config(&self, topic: &str) -> BTreeMap<String, String> {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client can be made");
        let options = AdminOptions::new().request_timeout(Some(PATIENCE));
        let topic = ResourceSpecifier::Topic(topic);
        let described = wait_for(|| async move { admin.describe_configs([&topic], &options).await });
        let mut resources = described.expect("the broker answers");
        let resource = resources.pop().expect("one answer").expect("the topic is there");
        let entries = resource.entries.into_iter();
        entries.filter_map(|entry| Some((entry.name, entry.value?))).collect()
    }

    /// Deletes a partition's records below an offset, as retention would.
    ///
    /// # Panics
    /// If the broker does not.
    pub fn delete_before(&self, topic: &str, partition: i32, offset: i64) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client can be made");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))
            .expect("a valid offset");
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
        let result = wait_for(|| async move { admin.delete_records(&list, &options).await });
        for element in result.expect("the broker answers").elements() {
            element.error().expect("the records can be deleted");
        }
    }

    /// Writes messages in order, each to its partition, and waits until all are acknowledged.
    ///
    /// # Panics
    /// If one is not.
    pub fn produce(&self, topic: &str, messages: &[Message]) {
        let settings = [
            // Small batches, so that a consumer that fetches little gets partitions in turns.
            ("batch.num.messages", "100"),
            ("message.max.bytes", "16777216"),
            ("compression.codec", "zstd"),
        ];
        self.produce_with(topic, messages.iter().cloned(), &settings);
    }

    /// As [`Topics::produce`], of messages that need not be in memory together, with further librdkafka settings.
    ///
    /// # Panics
    /// If one is not acknowledged.
    pub fn produce_with(&self, topic: &str, messages: impl Iterator<Item = Message>, settings: &[(&str, &str)]) {
        let mut config = self.client();
        config.set("enable.idempotence", "true");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        let producer: BaseProducer = config.create().expect("a producer can be made");
        for message in messages {
            let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(message.partition);
            record.key = message.key.as_deref();
            record.payload = message.value.as_deref();
            record.timestamp = message.timestamp;
            if !message.headers.is_empty() {
                record.headers = Some(
                    message
                        .headers
                        .iter()
                        .fold(OwnedHeaders::new(), |headers, (name, value)| {
                            headers.insert(Header {
                                key: name,
                                value: value.as_deref(),
                            })
                        }),
                );
            }
            while let Err((error, back)) = producer.send(record) {
                assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
                producer.poll(Duration::from_millis(10));
                record = back;
            }
        }
        producer.flush(PATIENCE).expect("all messages are acknowledged");
    }

    /// Writes messages in a transaction and aborts it: they are in the log, for read_uncommitted consumers only.
    ///
    /// # Panics
    /// If the broker does not take part.
    pub fn produce_aborted(&self, topic: &str, messages: &[Message]) {
        let mut config = self.client();
        config.set("transactional.id", format!("testbed-{topic}"));
        let producer: BaseProducer = config.create().expect("a producer can be made");
        producer.init_transactions(PATIENCE).expect("transactions can be used");
        producer.begin_transaction().expect("a transaction begins");
        for message in messages {
            let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(message.partition);
            record.payload = message.value.as_deref();
            producer
                .send(record)
                .map_err(|(error, _)| error)
                .expect("the message is taken");
        }
        producer.flush(PATIENCE).expect("all messages are acknowledged");
        producer
            .abort_transaction(PATIENCE)
            .expect("the transaction is aborted");
    }

    /// Everything committed in a topic, partition by partition, in order.
    ///
    /// # Panics
    /// If the end is not reached within a minute.
    #[must_use]
    pub fn read_all(&self, topic: &str) -> Vec<Message> {
        let mut messages = Vec::new();
        self.read_each(topic, |message| messages.push(message));
        messages.sort_by_key(|message| (message.partition, message.offset));
        messages
    }

    /// Everything committed in a topic, one after the other; each partition in order, partitions mixed.
    ///
    /// # Panics
    /// If no record comes for a minute and the end is not reached.
    pub fn read_each(&self, topic: &str, mut each: impl FnMut(Message)) {
        self.wait_for_markers(topic);
        let partitions = self.partitions(topic);
        let settings = [
            ("group.id", "testbed"),
            ("enable.auto.commit", "false"),
            ("enable.partition.eof", "true"),
            ("isolation.level", "read_committed"),
            ("auto.offset.reset", "error"),
            ("check.crcs", "true"),
            ("receive.message.max.bytes", "300000000"),
        ];
        let consumer = self.consumer(&settings);
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::Beginning)
                .expect("a valid offset");
        }
        consumer.assign(&list).expect("partitions can be assigned");
        let mut open: BTreeSet<i32> = (0..partitions).collect();
        let mut until = Instant::now() + PATIENCE;
        while !open.is_empty() {
            assert!(
                Instant::now() < until,
                "{topic} was not read to its end: {open:?} are open"
            );
            match consumer.poll(Duration::from_millis(100)) {
                None => {}
                Some(Ok(message)) => {
                    until = Instant::now() + PATIENCE;
                    each(copy(&message));
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Err(KafkaError::MessageConsumption(code))) if code != RDKafkaErrorCode::AutoOffsetReset => {}
                Some(Err(error)) => panic!("{topic} cannot be read: {error}"),
            }
        }
    }

    /// Follows what a consumer group has committed of a topic.
    ///
    /// # Panics
    /// If no client can be made.
    #[must_use]
    pub fn group(&self, group: &str, topic: &str) -> Group {
        Group {
            consumer: self.consumer(&[("group.id", group), ("enable.auto.commit", "false")]),
            topic: topic.to_owned(),
            partitions: self.partitions(topic),
            last: 0,
        }
    }

    /// How many brokers the cluster has.
    #[must_use]
    pub fn brokers_known(&self) -> usize {
        let metadata = self.consumer(&[]).fetch_metadata(None, PATIENCE);
        metadata.map_or(0, |metadata| metadata.brokers().len())
    }

    /// The leader of a partition (-1: none) and its replicas.
    ///
    /// # Panics
    /// If the broker does not answer, or there is no such partition.
    #[must_use]
    pub fn leader(&self, topic: &str, partition: i32) -> (i32, Vec<i32>) {
        let metadata = self
            .consumer(&[])
            .fetch_metadata(Some(topic), PATIENCE)
            .expect("the broker answers");
        let partitions = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
        let found = partitions.iter().find(|known| known.id() == partition);
        let found = found.expect("there is such a partition");
        (found.leader(), found.replicas().to_vec())
    }

    /// A commit returns before its markers are in every partition, and until then readers of committed records
    /// end early. Waits for them, but not for a transaction that nobody will end.
    fn wait_for_markers(&self, topic: &str) {
        let until = Instant::now() + MARKERS;
        while self.watermarks(topic, "read_committed") != self.watermarks(topic, "read_uncommitted")
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The next offset of each partition, transaction markers included.
    ///
    /// # Panics
    /// If the broker does not answer.
    #[must_use]
    pub fn high_watermarks(&self, topic: &str) -> Vec<i64> {
        self.watermarks(topic, "read_uncommitted")
    }

    /// Waits until the broker coordinates transactions: one that has just been started on a busy machine may need longer for that
    /// than a pipeline has patience.
    pub(crate) fn wait_for_transactions(&self) {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.brokers)
            .set("transactional.id", "testbed-is-ready");
        let until = Instant::now() + Duration::from_secs(180);
        while Instant::now() < until {
            let producer: BaseProducer = client.create().expect("a producer can be made");
            if producer.init_transactions(Duration::from_secs(30)).is_ok() {
                return;
            }
        }
    }

    fn watermarks(&self, topic: &str, isolation: &str) -> Vec<i64> {
        let consumer = self.consumer(&[("isolation.level", isolation)]);
        let end = |partition| {
            consumer
                .fetch_watermarks(topic, partition, PATIENCE)
                .expect("the broker answers")
                .1
        };
        (0..self.partitions(topic)).map(end).collect()
    }

    /// How many partitions a topic has; 0 if there is none of this name.
    ///
    /// # Panics
    /// If the broker does not answer.
    #[must_use]
    pub fn partitions(&self, topic: &str) -> i32 {
        let metadata = self
            .consumer(&[])
            .fetch_metadata(None, PATIENCE)
            .expect("the broker answers");
        let found = metadata.topics().iter().find(|known| known.name() == topic);
        found.map_or(0, |topic| {
            i32::try_from(topic.partitions().len()).expect("a partition count")
        })
    }

    fn consumer(&self, settings: &[(&str, &str)]) -> BaseConsumer {
        let mut config = self.client();
        for (name, value) in settings {
            config.set(*name, *value);
        }
        config.create().expect("a consumer can be made")
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("log_level", "0");
        config
    }
}

/// How far a consumer group is in one topic.
pub struct Group {
    consumer: BaseConsumer,
    topic: String,
    partitions: i32,
    last: u64,
}

impl Group {
    /// The sum of the committed offsets: of a topic that was written without transactions, and from which nothing was
    /// deleted, the number of records that are done. While no broker answers, what it was last.
    pub fn committed(&mut self) -> u64 {
        let mut list = TopicPartitionList::new();
        for partition in 0..self.partitions {
            list.add_partition(&self.topic, partition);
        }
        if let Ok(offsets) = self.consumer.committed_offsets(list, Duration::from_secs(2)) {
            let of = |offset| match offset {
                Offset::Offset(offset) => u64::try_from(offset).unwrap_or(0),
                _ => 0,
            };
            let sum = offsets.elements().iter().map(|element| of(element.offset())).sum();
            // A partition whose offset could not be had counts 0: never go back for that.
            self.last = self.last.max(sum);
        }
        self.last
    }
}

/// Waits for a future on a thread of its own, so that it works inside and outside of a runtime.
fn wait_for<T: Send, F: Future<Output = T>>(future: impl FnOnce() -> F + Send) -> T {
    let wait = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime can be made").block_on(future())
    };
    std::thread::scope(|scope| scope.spawn(wait).join().expect("the wait does not panic"))
}

fn copy(message: &BorrowedMessage<'_>) -> Message {
    let headers = message.headers().map(|headers| {
        headers
            .iter()
            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
            .collect()
    });
    Message {
        partition: message.partition(),
        offset: message.offset(),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
        timestamp: message.timestamp().to_millis(),
    }
}
