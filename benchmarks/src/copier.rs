//! The peer of the topic benchmarks: a plain rdkafka program that copies a topic exactly once, and does nothing else.
//!
//! It has Sealflow's guarantees: records and source offsets in one transaction, with the metadata of the consumer
//! group, so that a member of an older generation is refused; what is held of a partition is committed before the
//! partition goes; what an aborted transaction held is read again; any other error ends it. It has the librdkafka properties
//! of Sealflow's clients ([`consumer`], [`producer`]), without the statistics that Sealflow measures lag with.
//!
//! A transaction closes at [`BYTES`], or when [`TIME`] is over and nothing more is at hand. Sealflow's batches close by
//! the same time, at 4 MiB or 8,192 records, and one transaction takes as many finished batches as come to the same bytes: so
//! the copier's transactions are as large as Sealflow's or larger, never smaller.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use sealflow_benchmarks::Error;

/// Keys and values that close a transaction, as `GATHER_BYTES` of the Kafka connector does.
const BYTES: usize = 16 << 20;
/// Since the first record of a transaction: `batch.time` of a pipeline that does not say another.
const TIME: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(30);

/// `copier BROKERS-TO-READ BROKERS-TO-WRITE FROM TO COUNT CODEC THREADS`: until COUNT records are committed by all
/// threads together.
pub(crate) fn run(args: &[String]) -> Result<(), Error> {
    let [source, target, from, to, count, codec, threads] = args else {
        return Err("usage: copier SOURCE-BROKERS TARGET-BROKERS FROM TO COUNT CODEC THREADS".into());
    };
    let (count, threads): (u64, u16) = (count.parse()?, threads.parse()?);
    let committed = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let committed = Arc::clone(&committed);
                scope.spawn(move || {
                    let member = format!("copier-{to}-{thread}");
                    // Errors as text, since they cross the end of a thread.
                    let copier = Copier::new(&producer(target, &member, codec), from, to, committed)
                        .map_err(|error| error.to_string())?;
                    copy(&consumer(source, &format!("copier-{to}"), &member), copier, count)
                        .map_err(|error| error.to_string())
                })
            })
            .collect();
        for worker in workers {
            worker.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })
}

/// As in `connectors/kafka/src/properties.rs`, with the session of the testbed's pipelines.
fn consumer(brokers: &str, group: &str, member: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", brokers)
        .set("queued.max.messages.kbytes", "16384")
        .set("fetch.max.bytes", "16777216")
        .set("receive.message.max.bytes", "134217728")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "500")
        .set("group.id", group)
        .set("group.instance.id", member)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("allow.auto.create.topics", "false")
        .set("auto.offset.reset", "earliest");
    client
}

/// As in `connectors/kafka/src/properties.rs`.
fn producer(brokers: &str, member: &str, codec: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", brokers)
        .set("compression.codec", codec)
        .set("queue.buffering.max.kbytes", "65536")
        .set("message.max.bytes", "16777216")
        .set("transaction.timeout.ms", "60000")
        .set("transactional.id", member)
        .set("delivery.report.only.error", "true");
    client
}

fn copy(properties: &ClientConfig, copier: Copier, count: u64) -> Result<(), Error> {
    let from = copier.from.clone();
    let consumer: BaseConsumer<Copier> = properties.create_with_context(copier)?;
    consumer.subscribe(&[&from])?;
    let copier = consumer.context();
    while copier.committed.load(Ordering::Relaxed) < count {
        let wait = copier.time_left()?;
        let message = consumer.poll(wait).transpose()?;
        let full = match message {
            message if copier.is_behind() => copier.go_back(&consumer, message.as_ref())?,
            Some(message) => copier.take(&message)?,
            None => copier.time_left()?.is_zero(),
        };
        if full {
            copier.commit(&consumer)?;
        }
    }
    Ok(())
}

/// One thread's producer and its open transaction. The consumer calls back from within `poll`, on the same thread.
struct Copier {
    producer: BaseProducer,
    from: String,
    to: String,
    open: Mutex<Transaction>,
    /// Records, by all threads.
    committed: Arc<AtomicU64>,
}

#[derive(Default)]
struct Transaction {
    /// When its first record was read; `None` while none is open.
    since: Option<Instant>,
    records: u64,
    bytes: usize,
    /// Offsets by partition: the first one, and the next one after the last.
    offsets: BTreeMap<i32, (i64, i64)>,
    /// Where aborted transactions began, by partition.
    aborted: BTreeMap<i32, i64>,
    /// What went wrong in a callback.
    failure: Option<String>,
}

impl Copier {
    fn new(properties: &ClientConfig, from: &str, to: &str, committed: Arc<AtomicU64>) -> Result<Self, Error> {
        let producer: BaseProducer = properties.create()?;
        producer.init_transactions(PATIENCE)?;
        Ok(Self {
            producer,
            from: from.to_owned(),
            to: to.to_owned(),
            open: Mutex::default(),
            committed,
        })
    }

    /// Never held over `poll`.
    fn open(&self) -> MutexGuard<'_, Transaction> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the open transaction waits for more.
    fn time_left(&self) -> Result<Duration, Error> {
        let open = self.open();
        match &open.failure {
            Some(failure) => Err(failure.clone().into()),
            None => Ok(open.since.map_or(TIME, |since| TIME.saturating_sub(since.elapsed()))),
        }
    }

    /// Sends a message on. Whether the transaction is full.
    fn take(&self, message: &BorrowedMessage<'_>) -> Result<bool, Error> {
        let mut open = self.open();
        if open.since.is_none() {
            self.producer.begin_transaction()?;
            open.since = Some(Instant::now());
        }
        self.send(message)?;
        let offset = message.offset();
        open.offsets.entry(message.partition()).or_insert((offset, offset)).1 = offset + 1;
        open.records += 1;
        open.bytes += message.key_len() + message.payload_len();
        Ok(open.bytes >= BYTES)
    }

    fn send(&self, message: &BorrowedMessage<'_>) -> Result<(), Error> {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.to).partition(message.partition());
        record.key = message.key();
        record.payload = message.payload();
        record.timestamp = message.timestamp().to_millis();
        record.headers = message.headers().map(rdkafka::message::BorrowedHeaders::detach);
        while let Err((error, back)) = self.producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            self.producer.poll(Duration::from_millis(10));
            record = back;
        }
        Ok(())
    }

    /// Commits what is open, if anything is, or aborts it where the brokers say so: a rebalance came between.
    fn commit(&self, consumer: &BaseConsumer<Self>) -> Result<(), Error> {
        let mut open = self.open();
        if open.since.take().is_none() {
            return Ok(());
        }
        open.bytes = 0;
        let (offsets, records) = (std::mem::take(&mut open.offsets), std::mem::take(&mut open.records));
        match self.try_commit(consumer, &offsets) {
            Ok(()) => {
                self.committed.fetch_add(records, Ordering::Relaxed);
                Ok(())
            }
            Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                self.producer.abort_transaction(PATIENCE)?;
                open.aborted
                    .extend(offsets.iter().map(|(partition, (first, _))| (*partition, *first)));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn try_commit(&self, consumer: &BaseConsumer<Self>, read: &BTreeMap<i32, (i64, i64)>) -> Result<(), KafkaError> {
        let mut offsets = TopicPartitionList::with_capacity(read.len());
        for (partition, (_, next)) in read {
            offsets.add_partition_offset(&self.from, *partition, Offset::Offset(*next))?;
        }
        // Read afresh, so that a member of an older generation is refused.
        let metadata = consumer.group_metadata().ok_or(KafkaError::Canceled)?;
        self.producer
            .send_offsets_to_transaction(&offsets, &metadata, PATIENCE)?;
        self.producer.commit_transaction(PATIENCE)
    }

    fn is_behind(&self) -> bool {
        !self.open().aborted.is_empty()
    }

    /// Reads again what was aborted, and the message that came after it. No transaction is full then.
    fn go_back(&self, consumer: &BaseConsumer<Self>, message: Option<&BorrowedMessage<'_>>) -> Result<bool, Error> {
        let mut aborted = std::mem::take(&mut self.open().aborted);
        if let Some(message) = message {
            aborted.entry(message.partition()).or_insert(message.offset());
        }
        let mine = consumer.assignment()?;
        let mut list = TopicPartitionList::new();
        for (partition, first) in aborted {
            // The others' new owners start at what is committed.
            if mine.find_partition(&self.from, partition).is_some() {
                list.add_partition_offset(&self.from, partition, Offset::Offset(first))?;
            }
        }
        if list.count() > 0 {
            for element in consumer.seek_partitions(list, PATIENCE)?.elements() {
                element.error()?;
            }
        }
        Ok(false)
    }
}

impl ClientContext for Copier {}

impl ConsumerContext for Copier {
    /// Else the next owner of the partition would copy once more what is open here.
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if !matches!(rebalance, Rebalance::Revoke(_)) {
            return;
        }
        if consumer.assignment_lost() {
            self.open().failure = Some("the partitions are somebody else's already".to_owned());
        } else if let Err(error) = self.commit(consumer) {
            self.open().failure = Some(error.to_string());
        }
    }
}
