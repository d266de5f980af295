//! From the start of the process to its first record in the target topic, committed: what a restart costs.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientConfig, Message as _};
use sealflow_benchmarks::Error;
use sealflow_benchmarks::measure::{Contender, Cost, interleaved};
use sealflow_benchmarks::report::{Comparison, figure};
use sealflow_benchmarks::size::pairs;
use sealflow_benchmarks::stats::Estimate;
use sealflow_testbed::{Kafka, or_skip};

use crate::topic::{Bench, PARTITIONS};

const PAIRS: usize = 11;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() -> Result<(), Error> {
    let Some(kafka) = or_skip("start-up benchmark", Kafka::start()) else {
        return Ok(());
    };
    let brokers = kafka.brokers();
    let bench = Bench::new(&kafka, 1)?;
    let sides = vec![
        Contender::elsewhere("sealflow seal", || {
            let to = bench.new_topic("started");
            let command = bench.pipeline("seal", bench.long.topic, &to, 1, "")?;
            first_record(&bench, command, &brokers, &to)
        }),
        Contender::elsewhere("rdkafka copier", || {
            let to = bench.new_topic("copied");
            let command = bench.copier(&brokers, bench.long.topic, &to, 1, 1)?;
            first_record(&bench, command, &brokers, &to)
        }),
    ];
    let samples = interleaved(pairs(PAIRS), 1, sides)?;
    for side in &samples {
        let wall = side.costs.iter().map(|cost| cost.wall * 1e3).collect();
        let wall = Estimate::of(wall).ok_or("no samples")?;
        figure(
            "startup",
            "process start to first committed record",
            &side.name,
            "ms",
            wall,
        )?;
    }
    Comparison {
        section: "startup",
        what: "CPU until the first record",
        unit: "CPU ms",
        factor: 1e3,
        baseline: "rdkafka copier",
    }
    .write(&samples)
}

fn first_record(bench: &Bench<'_>, command: std::process::Command, brokers: &str, to: &str) -> Result<Cost, Error> {
    let reader = reader(brokers, to)?;
    // The reader's own connection is not part of what is measured.
    let _ = reader.poll(Duration::from_millis(200)).transpose()?;
    let started = Instant::now();
    let running = bench.start(command, "startup")?;
    while reader.poll(Duration::from_millis(10)).transpose()?.is_none() {
        if started.elapsed() > PATIENCE {
            return Err("no record within a minute".into());
        }
    }
    let wall = started.elapsed().as_secs_f64();
    Ok(Cost {
        cpu: running.end()?,
        wall,
        peak_memory: None,
    })
}

/// A consumer of all partitions from their beginning, committed records only, that asks often.
pub(crate) fn reader(brokers: &str, topic: &str) -> Result<BaseConsumer, Error> {
    let reader: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "benchmark-reader")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", "20")
        .create()?;
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    reader.assign(&all)?;
    Ok(reader)
}

/// The key of the next record, if one comes within `wait`.
pub(crate) fn next_key(reader: &BaseConsumer, wait: Duration) -> Result<Option<Vec<u8>>, Error> {
    let message = reader.poll(wait).transpose()?;
    Ok(message.and_then(|message| message.key().map(<[u8]>::to_vec)))
}
