//! The peer of the topic benchmark: a plain rdkafka program that copies a topic with the same guarantees and
//! settings (one consumer, one transactional producer, batches of the same size), and does nothing else.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::Error;

const ROWS: usize = 8_192;
const TIME: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(30);

/// `copier BROKERS FROM TO COUNT CODEC`
pub(crate) fn run(args: &[String]) -> Result<(), Error> {
    let [brokers, from, to, count, codec] = args else {
        return Err("usage: copier BROKERS FROM TO COUNT CODEC".into());
    };
    let count: u64 = count.parse()?;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", format!("copier-{to}"))
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        .create()?;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("transactional.id", format!("copier-{to}"))
        .set("compression.codec", codec)
        .set("queue.buffering.max.messages", "1000000")
        .create()?;
    producer.init_transactions(PATIENCE)?;
    consumer.subscribe(&[from])?;
    let mut copied = 0;
    while copied < count {
        copied += copy_batch(&consumer, &producer, to, count - copied)?;
    }
    Ok(())
}

fn copy_batch(consumer: &BaseConsumer, producer: &BaseProducer, to: &str, most: u64) -> Result<u64, Error> {
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
        if copied as usize >= ROWS || copied >= most {
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
