//! Added latency at half load: records are produced at half the rate that one thread seals at full speed; two
//! readers see them at the source topic and at the target topic. How much later the second sees a record than the
//! first is what the pipeline adds to that record; median and 99th percentile are those of these differences.
//!
//! A record is known by its key, the time of sending, which no two share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use sealflow_benchmarks::Error;
use sealflow_benchmarks::report::figure;
use sealflow_benchmarks::size::{pairs, scaled};
use sealflow_benchmarks::stats::Estimate;
use sealflow_testbed::{Kafka, or_skip};

use crate::startup::{next_key, reader};
use crate::topic::{Bench, CODEC, PARTITIONS};

const ROUNDS: usize = 5;
/// Records of the two runs whose difference tells the full rate, start and end of the process left out.
const SHORT: u64 = 50_000;
const LONG: u64 = 250_000;
const RATE_ROUNDS: usize = 5;
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
    let bench = Bench::of_two_lengths(&kafka, scaled(SHORT), scaled(LONG))?;
    let rate = half_load(&bench)?;

    let mut added: [(Vec<f64>, Vec<f64>); SIDES.len()] = Default::default();
    for _ in 0..pairs(ROUNDS) {
        for ((name, between), (medians, tails)) in SIDES.iter().zip(&mut added) {
            let added = round(&kafka, &bench, *between, rate).map_err(|error| format!("{name}: {error}"))?;
            medians.push(quantile(&added, 0.5));
            tails.push(quantile(&added, 0.99));
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

/// Half the records per second that one thread seals at full speed, with nothing else running.
fn half_load(bench: &Bench<'_>) -> Result<f64, Error> {
    let records = bench.difference().records as f64;
    let mut rates = Vec::new();
    for _ in 0..pairs(RATE_ROUNDS) {
        let cost =
            bench.longer_run(|source| bench.sealflow("seal", source.topic, &bench.new_topic("warm"), 1, false))?;
        rates.push(records / cost.wall / 2.0);
    }
    let rate = Estimate::of(rates).ok_or("no samples")?;
    figure("latency", "rate", "half load", "records/s", rate)?;
    if rate.median.is_finite() && rate.median > 0.0 {
        return Ok(rate.median);
    }
    Err("the long run took no longer than the short one: take more records".into())
}

/// By how many milliseconds the target's reader saw each record later than the source's.
fn round(kafka: &Kafka, bench: &Bench<'_>, between: Between, rate: f64) -> Result<Vec<f64>, Error> {
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
                let seen = arrivals(&brokers, &topic, start, sent, stop).map_err(|error| error.to_string());
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
        let end = |watcher: std::thread::ScopedJoinHandle<'_, Result<Arrivals, String>>| {
            watcher.join().map_err(|_| "a reader panicked".to_owned())?
        };
        added(&end(source)?, &end(target)?)
    })
}

fn added(source: &Arrivals, target: &Arrivals) -> Result<Vec<f64>, Error> {
    let pairs = source.iter().map(|(sent_at, first)| {
        let second = target
            .get(sent_at)
            .ok_or_else(|| format!("the record of {sent_at:?} did not come through"))?;
        // Negative where the source's reader was held up longer than the pipeline.
        Ok((second.as_secs_f64() - first.as_secs_f64()) * 1e3)
    });
    pairs.collect()
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
    let (mut sent, mut partition, mut last) = (0_u64, 0, 0_u64);
    while start.elapsed() < length && !stop.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() * rate) as u64;
        while sent < due {
            // No two are the same, even if the clock stands.
            let now = u64::try_from(start.elapsed().as_nanos())?.max(last + 1);
            let key = now.to_be_bytes();
            let value = &values[sent as usize % values.len()];
            partition = (partition + 1) % PARTITIONS;
            let record = BaseRecord::to(to).partition(partition).key(&key).payload(value);
            if producer.send(record).is_err() {
                // The queue is full: the broker is behind, and so is the clock of what comes next.
                producer.poll(Duration::from_millis(1));
                continue;
            }
            (sent, last) = (sent + 1, now);
        }
        producer.poll(Duration::ZERO);
        std::thread::sleep(Duration::from_millis(1));
    }
    producer.flush(PATIENCE)?;
    Ok(sent)
}

/// When each record was seen, by when it was sent.
type Arrivals = HashMap<Duration, Duration>;

/// Of every record that was sent after things had settled.
fn arrivals(
    brokers: &str,
    topic: &str,
    start: Instant,
    sent: &AtomicU64,
    stop: &AtomicBool,
) -> Result<Arrivals, Error> {
    let reader = reader(brokers, topic)?;
    let (mut seen, mut counted, mut last) = (0, Arrivals::new(), Instant::now());
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
        if sent_at > SETTLE && counted.insert(sent_at, start.elapsed()).is_some() {
            return Err(format!("{topic}: the record of {sent_at:?} came twice").into());
        }
    }
}

fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}
