//! Topic to topic on a real broker: client CPU time, records per second on one and two cores, peak memory.
//! `sealflow run` against a plain rdkafka copier that moves the *sealed* topic (more bytes than Sealflow reads)
//! with the same settings.

use std::cell::RefCell;
use std::process::Command;

use sealflow_benchmarks::Error;
use sealflow_benchmarks::measure::{Contender, Cost, Samples, interleaved};
use sealflow_benchmarks::report::{Comparison, Row, figure, write};
use sealflow_benchmarks::size::{pairs, scaled};
use sealflow_benchmarks::stats::Estimate;
use sealflow_testbed::{Kafka, Message, Pipeline, Site, or_skip};

use crate::process::{Running, on_one_core, run as run_to_end, sealflow};

pub(crate) const PARTITIONS: i32 = 6;
pub(crate) const CODEC: &str = "zstd";
const CPU_PAIRS: usize = 11;
const CPU_RECORDS: u64 = 100_000;
/// Throughput runs are longer, so that their start-up weighs less, and therefore fewer.
const SPEED_PAIRS: usize = 5;
const SPEED_RECORDS: u64 = 250_000;

pub(crate) fn run() -> Result<(), Error> {
    let Some(kafka) = or_skip("topic benchmark", Kafka::start()) else {
        return Ok(());
    };
    cpu(&Bench::new(&kafka, scaled(CPU_RECORDS))?)?;
    drop(kafka);
    // A fresh broker: the first one's disk is full of what was copied.
    let Some(kafka) = or_skip("topic benchmark", Kafka::start()) else {
        return Ok(());
    };
    speed(&Bench::new(&kafka, scaled(SPEED_RECORDS))?)
}

/// CPU time on one thread, the copier's being 1.
fn cpu(bench: &Bench<'_>) -> Result<(), Error> {
    let sides = vec![
        Contender::elsewhere("sealflow seal", || bench.seal(1, false)),
        Contender::elsewhere("rdkafka copier", || bench.copy(1, false)),
        Contender::elsewhere("sealflow open", || bench.open(1, false)),
    ];
    let samples = interleaved(pairs(CPU_PAIRS), 1, sides)?;
    Comparison {
        section: "topic",
        what: "client CPU, records of about 1 KB with 4 sealed fields",
        unit: "CPU s per million records",
        factor: 1e6 / bench.records as f64,
        baseline: "rdkafka copier",
    }
    .write(&samples)?;
    for side in &samples {
        let peaks = side.costs.iter().filter_map(|cost| cost.peak_memory);
        let peaks = Estimate::of(peaks.map(|bytes| bytes / f64::from(1 << 20)).collect()).ok_or("no samples")?;
        figure("topic", "peak resident memory", &side.name, "MiB", peaks)?;
    }
    Ok(())
}

/// Records per second: one thread on one core, and two threads on two.
fn speed(bench: &Bench<'_>) -> Result<(), Error> {
    let mut sides = Vec::new();
    for (cores, threads, pinned) in [(1.0, 1, true), (2.0, 2, false)] {
        if pinned && Command::new("taskset").arg("--version").output().is_err() {
            sealflow_testbed::skip("topic benchmark on one core: no taskset on this machine");
            continue;
        }
        sides.push(Contender::elsewhere("sealflow seal", move || bench.seal(threads, pinned)).at("cores", cores));
        sides.push(Contender::elsewhere("rdkafka copier", move || bench.copy(threads, pinned)).at("cores", cores));
        sides.push(Contender::elsewhere("sealflow open", move || bench.open(threads, pinned)).at("cores", cores));
    }
    let samples = interleaved(pairs(SPEED_PAIRS), 1, sides)?;
    for (what, unit, amount) in [
        ("records per second", "records/s", bench.records as f64),
        ("megabytes per second", "MB/s", bench.source_bytes as f64 / 1e6),
    ] {
        rates(what, unit, amount, &samples)?;
    }
    Ok(())
}

/// `amount` by wall time, start and end of the process included. A ratio above 1 is faster than the copier.
fn rates(what: &str, unit: &str, amount: f64, samples: &[Samples]) -> Result<(), Error> {
    for side in samples {
        let base = samples
            .iter()
            .find(|other| other.name == "rdkafka copier" && other.at == side.at && other.name != side.name);
        let ratio = base.and_then(|base| {
            let pairs = side.costs.iter().zip(&base.costs);
            Estimate::of(pairs.map(|(ours, base)| base.wall / ours.wall).collect())
        });
        write(&Row {
            section: "topic".to_owned(),
            what: what.to_owned(),
            contender: side.name.clone(),
            parameter: side.at.map(|(parameter, _)| parameter.to_owned()),
            at: side.at.map(|(_, cores)| cores),
            unit: unit.to_owned(),
            value: Estimate::of(side.costs.iter().map(|cost| amount / cost.wall).collect()).ok_or("no samples")?,
            wall: None,
            baseline: base.map(|base| base.name.clone()),
            ratio,
            wall_ratio: None,
        })?;
    }
    Ok(())
}

/// A filled source topic, and everything that runs from it.
pub(crate) struct Bench<'a> {
    kafka: &'a Kafka,
    site: Site,
    program: std::path::PathBuf,
    pub(crate) records: u64,
    /// Keys and values of the source topic together.
    pub(crate) source_bytes: u64,
    /// The sealed topic that was written last: what is opened and copied.
    sealed: RefCell<String>,
    /// Every run writes to topics of its own.
    topics: RefCell<u64>,
}

impl<'a> Bench<'a> {
    /// `records` sample records in the topic `bench`.
    pub(crate) fn new(kafka: &'a Kafka, records: u64) -> Result<Self, Error> {
        let site = Site::new(&kafka.brokers());
        site.publish("payments", 1, sealflow_samples::POLICY_YAML);
        let topics = kafka.topics();
        for topic in ["bench", "bench.dead"] {
            topics.create(topic, PARTITIONS, &[]);
        }
        let messages = sample_messages(records);
        topics.produce("bench", &messages);
        let size = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len) as u64;
        Ok(Self {
            kafka,
            site,
            program: sealflow()?,
            records,
            source_bytes: messages.iter().map(|m| size(&m.key) + size(&m.value)).sum(),
            sealed: RefCell::default(),
            topics: RefCell::default(),
        })
    }

    fn seal(&self, threads: u16, pinned: bool) -> Result<Cost, Error> {
        let to = self.new_topic("sealed");
        let cost = self.sealflow("seal", "bench", &to, threads, pinned)?;
        self.sealed.replace(to);
        Ok(cost)
    }

    fn open(&self, threads: u16, pinned: bool) -> Result<Cost, Error> {
        let to = self.new_topic("opened");
        self.sealflow("open", &self.sealed.borrow(), &to, threads, pinned)
    }

    fn copy(&self, threads: u16, pinned: bool) -> Result<Cost, Error> {
        let to = self.new_topic("copied");
        let command = self.copier(&self.kafka.brokers(), &self.sealed.borrow(), &to, threads)?;
        self.end(command, "copier", pinned)
    }

    /// A copier that writes to the broker at `target`, which may be a proxy's.
    pub(crate) fn copier(&self, target: &str, from: &str, to: &str, threads: u16) -> Result<Command, Error> {
        let mut copier = Command::new(std::env::current_exe()?);
        copier.args(["copier", &self.kafka.brokers(), target, from, to]);
        copier.args([&self.records.to_string(), CODEC, &threads.to_string()]);
        Ok(copier)
    }

    /// A copier that goes on until it is killed.
    pub(crate) fn endless_copier(&self, from: &str, to: &str) -> Result<Command, Error> {
        let mut copier = Command::new(std::env::current_exe()?);
        copier.args(["copier", &self.kafka.brokers(), &self.kafka.brokers(), from, to]);
        copier.args([&u64::MAX.to_string(), CODEC, "1"]);
        Ok(copier)
    }

    /// `sealflow run --until-end`, to its end.
    pub(crate) fn sealflow(&self, mode: &str, from: &str, to: &str, threads: u16, pinned: bool) -> Result<Cost, Error> {
        let mut command = self.pipeline(mode, from, to, threads, "")?;
        command.arg("--until-end");
        self.end(command, &to.replace('.', "-"), pinned)
    }

    /// `sealflow run` from one topic to another; `more` are further lines of the pipeline file.
    pub(crate) fn pipeline(
        &self,
        mode: &str,
        from: &str,
        to: &str,
        threads: u16,
        more: &str,
    ) -> Result<Command, Error> {
        let name = to.replace('.', "-");
        let pipeline = Pipeline {
            name: &name,
            mode,
            dataset: "payments",
            from,
            to,
            dead: "bench.dead",
            keys: "header",
            codec: CODEC,
            more,
        };
        let file = self.site.pipeline(&pipeline);
        // The testbed's pipelines have one thread.
        let yaml = std::fs::read_to_string(&file)?.replace("threads: 1\n", &format!("threads: {threads}\n"));
        std::fs::write(&file, yaml)?;
        let args = ["run", file.to_str().ok_or("a path")?];
        let mut command = self.site.command(&self.program, "pipeline", &args);
        command.env("SEALFLOW_LOG", "warn");
        Ok(command)
    }

    /// Starts a program that ends when the handle is dropped.
    pub(crate) fn start(&self, command: Command, log: &str) -> Result<Running, Error> {
        Running::start(command, &self.log(log))
    }

    fn log(&self, name: &str) -> std::path::PathBuf {
        self.site.path().join(format!("{name}.log"))
    }

    /// An empty topic with a name of its own.
    pub(crate) fn new_topic(&self, what: &str) -> String {
        let n = self.topics.replace_with(|n| *n + 1);
        let topic = format!("bench.{what}.{n}");
        self.kafka.topics().create(&topic, PARTITIONS, &[]);
        topic
    }

    pub(crate) fn end(&self, command: Command, log: &str, pinned: bool) -> Result<Cost, Error> {
        let command = if pinned { on_one_core(&command) } else { command };
        run_to_end(command, &self.log(log))
    }
}

/// Sample records over [`PARTITIONS`] partitions.
pub(crate) fn sample_messages(records: u64) -> Vec<Message> {
    let message = |sample: sealflow_samples::SampleRecord| Message {
        partition: i32::try_from(sample.n % u64::from(PARTITIONS.unsigned_abs())).unwrap_or_default(),
        key: Some(sample.key),
        value: Some(sample.value),
        timestamp: Some(1_767_225_600_000),
        ..Message::default()
    };
    sealflow_samples::generate(3, records).map(message).collect()
}
