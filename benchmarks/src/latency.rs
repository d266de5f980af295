//! Added latency at half load: records are produced at half the rate that one thread seals at full speed; two
//! readers see them at the source topic and at the target topic. What the second sees later than the first is what
//! the pipeline adds.
//!
//! Keys carry the time of sending, so the clock is one and the same. Percentiles are subtracted, not paired.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use sealflow_benchmarks::Error;
use sealflow_benchmarks::report::{exactly, figure};
use sealflow_benchmarks::size::{pairs, scaled};
use sealflow_benchmarks::stats::Estimate;
use sealflow_testbed::{Kafka, or_skip};

use crate::startup::{next_key, reader};
use crate::topic::{Bench, CODEC, PARTITIONS};

const ROUNDS: usize = 5;
/// Records of the run that finds the full rate.
const FULL_SPEED_RECORDS: u64 = 200_000;
const SECONDS: u64 = 8;
/// Start-up and first keys are not counted.
const SETTLE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(20);

/// What stands between the topics.
#[derive(Clone, Copy)]
enum Between {
    Copier,
    Sealflow { more: &'static str },
}

const SIDES: [(&str, Between); 3] = [
    ("rdkafka copier", Between::Copier),
    ("sealflow seal", Between::Sealflow { more: "" }),
    (
        "sealflow seal, batch time 10 ms",
        Between::Sealflow {
            more: "batch: { time: 10ms }",
        },
    ),
];

pub(crate) fn run() -> Result<(), Error> {
    let Some(kafka) = or_skip("latency benchmark", Kafka::start()) else {
        return Ok(());
    };
    let bench = Bench::new(&kafka, scaled(FULL_SPEED_RECORDS))?;
    let full = bench.sealflow("seal", "bench", &bench.new_topic("warm"), 1, false)?;
    let rate = bench.records as f64 / full.wall / 2.0;
    figure("latency", "rate", "half load", "records/s", exactly(rate))?;

    let mut added: [(Vec<f64>, Vec<f64>); SIDES.len()] = Default::default();
    for _ in 0..pairs(ROUNDS) {
        for ((name, between), (medians, tails)) in SIDES.iter().zip(&mut added) {
            let (source, target) = round(&kafka, &bench, *between, rate).map_err(|error| format!("{name}: {error}"))?;
            medians.push(quantile(&target, 0.5) - quantile(&source, 0.5));
            tails.push(quantile(&target, 0.99) - quantile(&source, 0.99));
        }
    }
    for ((name, _), (medians, tails)) in SIDES.iter().zip(added) {
        figure(
            "latency",
            "added at half load, median",
            name,
            "ms",
            Estimate::of(medians).ok_or("no samples")?,
        )?;
        figure(
            "latency",
            "added at half load, 99th percentile",
            name,
            "ms",
            Estimate::of(tails).ok_or("no samples")?,
        )?;
    }
    Ok(())
}

/// Latencies in milliseconds at the source and at the target.
fn round(kafka: &Kafka, bench: &Bench<'_>, between: Between, rate: f64) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let (from, to) = (bench.new_topic("live"), bench.new_topic("after"));
    let brokers = kafka.brokers();
    let command = match between {
        Between::Copier => bench.endless_copier(&from, &to)?,
        Between::Sealflow { more } => bench.pipeline("seal", &from, &to, 1, more)?,
    };
    let _running = bench.start(command, "latency")?;
    let (start, sent, stop) = (Instant::now(), AtomicU64::new(0), AtomicBool::new(false));
    let values: Vec<Vec<u8>> = sealflow_samples::generate(5, 1_000)
        .map(|sample| sample.value)
        .collect();
    std::thread::scope(|scope| {
        let watch = |topic: &str| {
            let (topic, brokers, sent, stop) = (topic.to_owned(), brokers.clone(), &sent, &stop);
            scope.spawn(move || {
                let seen = latencies(&brokers, &topic, start, sent, stop).map_err(|error| error.to_string());
                if seen.is_err() {
                    stop.store(true, Ordering::Relaxed);
                }
                seen
            })
        };
        let (source, target) = (watch(&from), watch(&to));
        produce(&brokers, &from, &values, rate, start, &stop)
            .map(|count| sent.store(count, Ordering::Release))
            .inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
        let end = |watcher: std::thread::ScopedJoinHandle<'_, Result<Vec<f64>, String>>| {
            watcher.join().map_err(|_| "a reader panicked".to_owned())?
        };
        Ok((end(source)?, end(target)?))
    })
}

/// Sends at `rate` for a while; returns how many were sent.
fn produce(
    brokers: &str,
    to: &str,
    values: &[Vec<u8>],
    rate: f64,
    start: Instant,
    stop: &AtomicBool,
) -> Result<u64, Error> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("compression.codec", CODEC)
        .set("linger.ms", "5")
        .create()?;
    let length = SETTLE + Duration::from_secs(SECONDS);
    let (mut sent, mut partition) = (0_u64, 0);
    while start.elapsed() < length && !stop.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() * rate) as u64;
        while sent < due {
            let key = u64::try_from(start.elapsed().as_nanos())?.to_be_bytes();
            let value = &values[sent as usize % values.len()];
            partition = (partition + 1) % PARTITIONS;
            let record = BaseRecord::to(to).partition(partition).key(&key).payload(value);
            if producer.send(record).is_err() {
                // The queue is full: the broker is behind, and so is the clock of what comes next.
                producer.poll(Duration::from_millis(1));
                continue;
            }
            sent += 1;
        }
        producer.poll(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(1));
    }
    producer.flush(PATIENCE)?;
    Ok(sent)
}

/// Milliseconds from sending to seeing, of every record that was sent after things had settled.
fn latencies(
    brokers: &str,
    topic: &str,
    start: Instant,
    sent: &AtomicU64,
    stop: &AtomicBool,
) -> Result<Vec<f64>, Error> {
    let reader = reader(brokers, topic)?;
    let (mut seen, mut counted, mut last) = (0, Vec::new(), Instant::now());
    loop {
        let Some(key) = next_key(&reader, Duration::from_millis(50))? else {
            let all = sent.load(Ordering::Acquire);
            if all > 0 && seen >= all {
                return Ok(counted);
            }
            if stop.load(Ordering::Relaxed) || last.elapsed() > PATIENCE {
                return Err(format!("{topic}: {seen} of {all} records came through").into());
            }
            continue;
        };
        seen += 1;
        last = Instant::now();
        let sent_at = Duration::from_nanos(u64::from_be_bytes(
            key.try_into().map_err(|_| "a key of another length")?,
        ));
        if sent_at > SETTLE {
            counted.push(start.elapsed().saturating_sub(sent_at).as_secs_f64() * 1e3);
        }
    }
}

fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}
