//! Topics of any broker, real or mock: create, fill, read back whole.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
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
}

impl Topics {
    /// Those at `brokers`.
    #[must_use]
    pub fn at(brokers: &str) -> Self {
        Self {
            brokers: brokers.to_owned(),
        }
    }

    /// Whether the broker answers within a second.
    #[must_use]
    pub fn answers(&self) -> bool {
        let metadata = self.consumer(&[]).fetch_metadata(None, Duration::from_secs(1));
        metadata.is_ok_and(|metadata| !metadata.brokers().is_empty())
    }

    /// Creates a topic with one replica.
    ///
    /// # Panics
    /// If the broker does not.
    pub fn create(&self, topic: &str, partitions: i32, config: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client can be made");
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
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
        let mut config = self.client();
        config
            .set("enable.idempotence", "true")
            // Small batches, so that a consumer that fetches little gets partitions in turns.
            .set("batch.num.messages", "100")
            .set("message.max.bytes", "16777216")
            .set("compression.codec", "zstd");
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
        self.wait_for_markers(topic);
        let partitions = self.partitions(topic);
        let settings = [
            ("group.id", "testbed"),
            ("enable.auto.commit", "false"),
            ("enable.partition.eof", "true"),
            ("isolation.level", "read_committed"),
            ("auto.offset.reset", "error"),
            ("check.crcs", "true"),
        ];
        let consumer = self.consumer(&settings);
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::Beginning)
                .expect("a valid offset");
        }
        consumer.assign(&list).expect("partitions can be assigned");
        let mut open: BTreeSet<i32> = (0..partitions).collect();
        let mut messages = Vec::new();
        let until = Instant::now() + PATIENCE;
        while !open.is_empty() {
            assert!(
                Instant::now() < until,
                "{topic} was not read to its end: {open:?} are open"
            );
            match consumer.poll(Duration::from_millis(100)) {
                None => {}
                Some(Ok(message)) => messages.push(copy(&message)),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Err(KafkaError::MessageConsumption(code))) if code != RDKafkaErrorCode::AutoOffsetReset => {}
                Some(Err(error)) => panic!("{topic} cannot be read: {error}"),
            }
        }
        messages.sort_by_key(|message| (message.partition, message.offset));
        messages
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
