//! `kafka://BROKERS/TOPIC`: what it names, and its records in batches.

use std::ops::ControlFlow;
use std::str::FromStr;
use std::time::Duration;

use sealflow::clock::UnixMillis;
use sealflow::pipeline::Record;
use sealflow_kafka::{Properties, RunError, TopicReading, read_topic};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};

use crate::config::PipelineConfig;
use crate::failure::{Exit, Failure, Result};
use crate::redact;

const PATIENCE: Duration = Duration::from_secs(30);
const BATCH_RECORDS: usize = 1_000;
const BATCH_BYTES: usize = 4 << 20;
/// Batches that wait for the reader.
const AHEAD: usize = 1;

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TopicUrl {
    /// Empty: those of the pipeline file.
    pub(crate) brokers: String,
    /// The topic.
    pub(crate) topic: String,
}

impl FromStr for TopicUrl {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let expected = || "expected kafka://HOST:PORT[,HOST:PORT…]/TOPIC".to_owned();
        let (brokers, topic) = text
            .strip_prefix("kafka://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or_else(expected)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if !(1..=249).contains(&topic.len()) || !topic.bytes().all(plain) {
            return Err(format!(
                "{}; a topic has 1 to 249 of A-Z, a-z, 0-9, dot, dash and underscore",
                expected()
            ));
        }
        if brokers.contains(['@', '?', '#']) {
            return Err("no user or options here: credentials stand in the pipeline file (--pipeline)".to_owned());
        }
        Ok(Self {
            brokers: brokers.to_owned(),
            topic: topic.to_owned(),
        })
    }
}

/// Where to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Offset(i64),
    Time(UnixMillis),
}

impl FromStr for Start {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Ok(offset @ 0..) = text.parse() {
            return Ok(Self::Offset(offset));
        }
        let time = text.parse().map(Self::Time);
        time.map_err(|_| "expected an offset, or a time such as 2026-01-01T00:00:00Z".to_owned())
    }
}

impl TopicUrl {
    /// All of it. The pipeline's properties, which may hold credentials, go to its own brokers only; `properties` are further
    /// ones as `KEY=VALUE`.
    pub(crate) fn reading(&self, config: Option<&PipelineConfig>, properties: &[String]) -> Result<TopicReading> {
        let ours = config.map(|config| &config.source.kafka);
        let brokers = match (&*self.brokers, ours) {
            ("", Some(ours)) => &ours.brokers,
            ("", None) => {
                return Err(Failure::usage(
                    "no brokers: kafka:///TOPIC is on the brokers of a pipeline file",
                    "give --pipeline FILE, or kafka://HOST:PORT/TOPIC",
                ));
            }
            (brokers, _) => brokers,
        };
        let mut reading = TopicReading::new(brokers, &self.topic);
        if let Some(ours) = ours.filter(|ours| ours.brokers == brokers) {
            reading.properties = ours.properties.clone();
        }
        for property in properties {
            let Some((name, value)) = property.split_once('=') else {
                return Err(Failure::usage(
                    "--property: expected KEY=VALUE",
                    "for example --property security.protocol=SSL",
                ));
            };
            if Properties::is_secret(name) {
                redact::hide(value);
            }
            reading.properties.set(name, value);
        }
        Ok(reading)
    }
}

/// How reading ended.
pub(in crate::commands) struct End {
    /// Records whose headers cannot be represented.
    pub(in crate::commands) left_out: u64,
    /// Whether there are records beyond the limit.
    pub(in crate::commands) is_cut: bool,
}

/// At most `limit` records, batch by batch, read in a thread of its own.
pub(in crate::commands) fn batches(
    reading: TopicReading,
    limit: u64,
) -> (
    mpsc::Receiver<Vec<Record>>,
    JoinHandle<std::result::Result<End, RunError>>,
) {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let task = tokio::task::spawn_blocking(move || {
        let (mut batch, mut bytes, mut count) = (Vec::new(), 0, 0);
        let mut is_cut = false;
        let left_out = read_topic(&reading, PATIENCE, |record| {
            if count == limit {
                is_cut = true;
                return ControlFlow::Break(());
            }
            count += 1;
            bytes += record.payload_bytes();
            batch.push(record);
            if batch.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
                return ControlFlow::Continue(());
            }
            bytes = 0;
            match sender.blocking_send(std::mem::take(&mut batch)) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        })?;
        if !batch.is_empty() {
            // Nobody is left to take it if the output is gone.
            let _ = sender.blocking_send(batch);
        }
        Ok(End { left_out, is_cut })
    });
    (receiver, task)
}

/// The end of the thread.
pub(in crate::commands) fn joined(
    ended: std::result::Result<std::result::Result<End, RunError>, JoinError>,
) -> Result<End> {
    let ended =
        ended.map_err(|_| Failure::new(Exit::Internal, "reading the topic panicked", "please report this bug"))?;
    Ok(ended?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_names_brokers_and_topic_and_nothing_else() {
        let source = |brokers: &str, topic: &str| {
            Ok(TopicUrl {
                brokers: brokers.to_owned(),
                topic: topic.to_owned(),
            })
        };
        assert_eq!("kafka://a:9092,b:9092/x.y".parse(), source("a:9092,b:9092", "x.y"));
        assert_eq!("kafka:///x".parse(), source("", "x"));
        for bad in [
            "x",
            "kafka://a",
            "kafka://a/",
            "kafka://a/b/c",
            "kafka://u:p@a/b",
            "kafka://a/b?c",
            "http://a/b",
        ] {
            assert!(bad.parse::<TopicUrl>().is_err(), "{bad}");
        }
        assert_eq!("17".parse(), Ok(Start::Offset(17)));
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(Start::Time(UnixMillis(1_000))));
        assert!("-1".parse::<Start>().is_err() && "yesterday".parse::<Start>().is_err());
    }
}
