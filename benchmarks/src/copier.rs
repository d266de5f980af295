//! The peer of the topic benchmark: a plain rdkafka program that copies a topic with the same guarantees and
//! settings (one consumer, one transactional producer, batches of the same size), and does nothing else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use sealflow_benchmarks::Error;

const ROWS: u64 = 8_192;
const TIME: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(30);

/// `copier BROKERS-TO-READ BROKERS-TO-WRITE FROM TO COUNT CODEC THREADS`
pub(crate) fn run(args: &[String]) -> Result<(), Error> {
    let [source, target, from, to, count, codec, threads] = args else {
        return Err("usage: copier SOURCE-BROKERS TARGET-BROKERS FROM TO COUNT CODEC THREADS".into());
    };
    let (count, threads): (u64, i32) = (count.parse()?, threads.parse()?);
    let copied = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                let copied = &copied;
                scope.spawn(move || {
                    let (consumer, producer) = clients(source, target, to, codec, thread)?;
                    consumer
                        .assign(&partitions(&consumer, from, thread, threads)?)
                        .map_err(text)?;
                    while copied.load(Ordering::Relaxed) < count {
                        let batch = copy_batch(&consumer, &producer, to)?;
                        copied.fetch_add(batch, Ordering::Relaxed);
                    }
                    Ok::<(), String>(())
                })
            })
            .collect();
        for worker in workers {
            worker.join().map_err(|_| "a thread panicked")??;
        }
        Ok(())
    })
}

fn clients(
    source: &str,
    target: &str,
    to: &str,
    codec: &str,
    thread: i32,
) -> Result<(BaseConsumer, BaseProducer), String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", source)
        .set("group.id", format!("copier-{to}"))
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        .create()
        .map_err(text)?;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", target)
        .set("transactional.id", format!("copier-{to}-{thread}"))
        .set("compression.codec", codec)
        .set("queue.buffering.max.messages", "1000000")
        .create()
        .map_err(text)?;
    producer.init_transactions(PATIENCE).map_err(text)?;
    Ok((consumer, producer))
}

/// Every `threads`-th partition of the topic, from its beginning.
fn partitions(consumer: &BaseConsumer, topic: &str, thread: i32, threads: i32) -> Result<TopicPartitionList, String> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).map_err(text)?;
    let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let mut mine = TopicPartitionList::new();
    for partition in (0..i32::try_from(count).map_err(text)?).filter(|partition| partition % threads == thread) {
        mine.add_partition_offset(topic, partition, Offset::Beginning)
            .map_err(text)?;
    }
    Ok(mine)
}

#[allow(clippy::needless_pass_by_value)] // the shape that `map_err` takes
fn text(error: impl ToString) -> String {
    error.to_string()
}

fn copy_batch(consumer: &BaseConsumer, producer: &BaseProducer, to: &str) -> Result<u64, String> {
    try_batch(consumer, producer, to).map_err(text)
}

fn try_batch(consumer: &BaseConsumer, producer: &BaseProducer, to: &str) -> Result<u64, Error> {
    let Some(first) = consumer.poll(TIME) else { return Ok(0) };
    let until = Instant::now() + TIME;
    producer.begin_transaction()?;
    let mut offsets = TopicPartitionList::new();
    let mut copied = 0;
    let mut next = Some(first?);
    while let Some(message) = next {
        send(producer, to, &message)?;
        let (topic, partition, offset) = (
            message.topic(),
            message.partition(),
            Offset::Offset(message.offset() + 1),
        );
        match offsets.find_partition(topic, partition) {
            Some(mut known) => known.set_offset(offset)?,
            None => offsets.add_partition_offset(topic, partition, offset)?,
        }
        copied += 1;
        if copied >= ROWS {
            break;
        }
        next = consumer
            .poll(until.saturating_duration_since(Instant::now()))
            .transpose()?;
    }
    let metadata = consumer.group_metadata().ok_or("no group metadata")?;
    producer.send_offsets_to_transaction(&offsets, &metadata, PATIENCE)?;
    producer.commit_transaction(PATIENCE)?;
    Ok(copied)
}

fn send(producer: &BaseProducer, to: &str, message: &BorrowedMessage<'_>) -> Result<(), Error> {
    let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(to).partition(message.partition());
    record.key = message.key();
    record.payload = message.payload();
    record.timestamp = message.timestamp().to_millis();
    record.headers = message.headers().map(rdkafka::message::BorrowedHeaders::detach);
    while let Err((error, back)) = producer.send(record) {
        if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
            return Err(error.into());
        }
        producer.poll(Duration::from_millis(10));
        record = back;
    }
    Ok(())
}
