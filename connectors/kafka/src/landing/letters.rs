//! Dead letters of a landing: written before the intent that names them. After a crash some may be there twice.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use sealflow::pipeline::{Outcome, StopKind};

use crate::config::KafkaConfig;
use crate::context::log_line;
use crate::error::{RunError, is_denial};
use crate::properties::letter_producer;
use crate::record::to_message;
use crate::topics::{self, Routes};

/// One call's share of a wait.
const FLUSH: Duration = Duration::from_millis(500);
/// How long brokers may be away: as long as librdkafka keeps a record.
const PATIENCE: Duration = Duration::from_secs(120);

/// A producer of dead letters.
pub(super) struct LetterProducer {
    producer: ThreadedProducer<Deliveries>,
}

impl LetterProducer {
    pub(super) fn new(config: &KafkaConfig) -> Result<Self, RunError> {
        let producer = letter_producer(config)
            .create_with_context(Deliveries::default())
            .map_err(|error| topics::client_not_made("source.kafka.properties", &error))?;
        Ok(Self { producer })
    }

    /// Sends a letter, which is durable after the next [flush](Self::flush).
    pub(super) fn send(&self, letter: &Outcome, routes: &Routes) -> Result<(), RunError> {
        let position = &letter.record.position;
        let (topic, partition) = routes.dead_letter(position)?;
        let mut message = to_message(topic, partition, &letter.record, 0);
        message.key = None;
        // As for topics: with the record's own time a letter might be gone before anybody has seen it.
        message.timestamp = None;
        let started = Instant::now();
        loop {
            match self.producer.send(message) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if started.elapsed() < PATIENCE =>
                {
                    message = back;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => {
                    let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                    return Err(not_delivered(code, &position.to_string()));
                }
            }
        }
    }

    /// Everything that was sent is durable.
    pub(super) fn flush(&self) -> Result<(), RunError> {
        let started = Instant::now();
        while self.producer.in_flight_count() > 0 {
            if self.producer.flush(FLUSH).is_err() && started.elapsed() >= PATIENCE {
                return Err(RunError::Unavailable {
                    reason: "dead letters are not delivered".to_owned(),
                });
            }
        }
        match self.producer.context().failure() {
            None => Ok(()),
            Some(code) => Err(not_delivered(code, "a record")),
        }
    }
}

/// The run ends: its records are read again by the next one.
fn not_delivered(code: RDKafkaErrorCode, position: &str) -> RunError {
    let reason = format!("the dead letter of {position} was not delivered: {code}");
    match code {
        RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize => RunError::stopped(
            StopKind::Config,
            reason,
            "raise max.message.bytes of the dead letters' topic, or lower output.record so that larger records are refused at the source",
        ),
        RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition => {
            RunError::stopped(StopKind::Config, reason, "create the dead letters' topic")
        }
        code if is_denial(code) => RunError::Denied { reason },
        _ => RunError::Unavailable { reason },
    }
}

/// Remembers the first failed delivery.
#[derive(Default)]
struct Deliveries {
    failure: Mutex<Option<RDKafkaErrorCode>>,
    last_log: Mutex<Option<String>>,
}

impl Deliveries {
    fn failure(&self) -> Option<RDKafkaErrorCode> {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line, &self.last_log);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(error = %error, reason, "librdkafka producer error");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, _: usize) {
        if let Err((error, _)) = result {
            let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert(code);
        }
    }
}
