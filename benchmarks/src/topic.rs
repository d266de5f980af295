//! Topic to topic on a real broker: client CPU time, records per second on one and two cores, peak memory.
//! `sealflow run` against a plain rdkafka copier that moves the *sealed* topic (more bytes than Sealflow reads)
//! exactly once and with the same client properties ([`crate::copier`]).
//!
//! A round runs a short and a long topic, and its cost is the difference: what start and end of a process cost is in
//! both, and so in neither result. `startup` measures that by itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
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
/// Records of the two runs of a round.
const SHORT: u64 = 30_000;
const LONG: u64 = 180_000;
const CPU_PAIRS: usize = 11;
/// Six sides, so fewer rounds.
const SPEED_PAIRS: usize = 5;

pub(crate) fn run() -> Result<(), Error> {
    let Some(kafka) = or_skip("topic benchmark", Kafka::start()) else {
        return Ok(());
    };
    cpu(&Bench::of_two_lengths(&kafka, scaled(SHORT), scaled(LONG))?)?;
    drop(kafka);
    // A fresh broker: the first one's disk is full of what was copied.
    let Some(kafka) = or_skip("topic benchmark", Kafka::start()) else {
        return Ok(());
    };
    speed(&Bench::of_two_lengths(&kafka, scaled(SHORT), scaled(LONG))?)
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
        factor: 1e6 / bench.difference().records as f64,
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
    let difference = bench.difference();
    for (what, unit, amount) in [
        ("records per second", "records/s", difference.records as f64),
        ("megabytes per second", "MB/s", difference.bytes as f64 / 1e6),
    ] {
        rates(what, unit, amount, &samples)?;
    }
    Ok(())
}

/// `amount` by wall time. A ratio above 1 is faster than the copier.
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

/// A topic of the samples, from their first on.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) topic: &'static str,
    pub(crate) records: u64,
    /// Keys and values together.
    bytes: u64,
}

/// What one run moves more than another.
pub(crate) struct Difference {
    pub(crate) records: u64,
    /// Keys and values of the clear records together.
    bytes: u64,
}

/// Filled source topics, and everything that runs from them.
pub(crate) struct Bench<'a> {
    kafka: &'a Kafka,
    site: Site,
    program: std::path::PathBuf,
    /// The whole of it.
    pub(crate) long: Source,
    /// Its first records.
    short: Option<Source>,
    /// By source, the sealed topic that was written last: what is opened and copied.
    sealed: RefCell<BTreeMap<&'static str, String>>,
    /// Every run writes to topics of its own.
    topics: RefCell<u64>,
}

impl<'a> Bench<'a> {
    /// `records` sample records in the topic `bench`.
    pub(crate) fn new(kafka: &'a Kafka, records: u64) -> Result<Self, Error> {
        let site = Site::new(&kafka.brokers());
        site.publish("payments", 1, sealflow_samples::POLICY_YAML);
        kafka.topics().create("bench.dead", PARTITIONS, &[]);
        Ok(Self {
            kafka,
            site,
            program: sealflow()?,
            long: Source::fill(kafka, "bench", records),
            short: None,
            sealed: RefCell::default(),
            topics: RefCell::default(),
        })
    }

    /// The same, and the first `short` of them in a topic of their own, for [`Bench::longer_run`].
    pub(crate) fn of_two_lengths(kafka: &'a Kafka, short: u64, long: u64) -> Result<Self, Error> {
        Ok(Self {
            short: Some(Source::fill(kafka, "bench.short", short)),
            ..Self::new(kafka, long)?
        })
    }

    /// What the long run costs more than the short one; the peak of memory is the long one's.
    pub(crate) fn longer_run(&self, run: impl Fn(&Source) -> Result<Cost, Error>) -> Result<Cost, Error> {
        let short = run(self.short.as_ref().ok_or("a benchmark of one length")?)?;
        let long = run(&self.long)?;
        Ok(Cost {
            cpu: long.cpu - short.cpu,
            wall: long.wall - short.wall,
            peak_memory: long.peak_memory,
        })
    }

    /// What the long run moves more than the short one.
    pub(crate) fn difference(&self) -> Difference {
        let (records, bytes) = self.short.as_ref().map_or((0, 0), |short| (short.records, short.bytes));
        Difference {
            records: self.long.records - records,
            bytes: self.long.bytes - bytes,
        }
    }

    fn seal(&self, threads: u16, pinned: bool) -> Result<Cost, Error> {
        self.longer_run(|source| {
            let to = self.new_topic("sealed");
            let cost = self.sealflow("seal", source.topic, &to, threads, pinned)?;
            self.sealed.borrow_mut().insert(source.topic, to);
            Ok(cost)
        })
    }

    fn open(&self, threads: u16, pinned: bool) -> Result<Cost, Error> {
        self.longer_run(|source| {
            let to = self.new_topic("opened");
            self.sealflow("open", &self.sealed_from(source)?, &to, threads, pinned)
        })
    }

    fn copy(&self, threads: u16, pinned: bool) -> Result<Cost, Error> {
        self.longer_run(|source| {
            let to = self.new_topic("copied");
            let from = self.sealed_from(source)?;
            let command = self.copier(&self.kafka.brokers(), &from, &to, source.records, threads)?;
            self.end(command, "copier", pinned)
        })
    }

    fn sealed_from(&self, source: &Source) -> Result<String, Error> {
        let sealed = self.sealed.borrow();
        Ok(sealed.get(source.topic).ok_or("nothing is sealed yet")?.clone())
    }

    /// A copier of `records` records that writes to the broker at `target`, which may be a proxy's.
    pub(crate) fn copier(
        &self,
        target: &str,
        from: &str,
        to: &str,
        records: u64,
        threads: u16,
    ) -> Result<Command, Error> {
        let mut copier = Command::new(std::env::current_exe()?);
        copier.args(["copier", &self.kafka.brokers(), target, from, to]);
        copier.args([&records.to_string(), CODEC, &threads.to_string()]);
        Ok(copier)
    }

    /// A copier that goes on until it is killed.
    pub(crate) fn endless_copier(&self, from: &str, to: &str) -> Result<Command, Error> {
        self.copier(&self.kafka.brokers(), from, to, u64::MAX, 1)
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

impl Source {
    fn fill(kafka: &Kafka, topic: &'static str, records: u64) -> Self {
        kafka.topics().create(topic, PARTITIONS, &[]);
        let messages = sample_messages(records);
        kafka.topics().produce(topic, &messages);
        let size = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len) as u64;
        Self {
            topic,
            records,
            bytes: messages.iter().map(|m| size(&m.key) + size(&m.value)).sum(),
        }
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
