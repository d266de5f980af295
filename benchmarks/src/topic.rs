//! Client CPU seconds per million records, topic to topic on a real broker: `sealflow run` against a plain
//! rdkafka copier that moves the *sealed* topic (more bytes than Sealflow reads) with the same settings.

use std::process::Command;

use sealflow_testbed::{Kafka, Message, Pipeline, Site};
use serde_json::json;

use crate::Error;
use crate::measure::{Spread, ratios, report};
use crate::process::{cpu_seconds, sealflow};

const PARTITIONS: i32 = 6;
const CODEC: &str = "zstd";
const ROUNDS: usize = 11;

pub(crate) fn run() -> Result<(), Error> {
    let Some(kafka) = Kafka::shared("topic benchmark") else {
        return Ok(());
    };
    let records: u64 = std::env::var("SEALFLOW_BENCH_RECORDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(100_000);
    let program = sealflow()?;
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    let topics = kafka.topics();
    for topic in ["bench", "bench.dead"] {
        topics.create(topic, PARTITIONS, &[]);
    }
    topics.produce("bench", &sample_messages(records));
    let (mut sealing, mut copying, mut opening) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let names = ["sealed", "opened", "copied"].map(|what| format!("bench.{what}.{round}"));
        for topic in &names {
            topics.create(topic, PARTITIONS, &[]);
        }
        let [sealed, opened, copied] = &names;
        let run = |mode: &str, from: &str, to: &str| -> Result<f64, Error> {
            let name = format!("{mode}-{round}");
            let pipeline = Pipeline {
                name: &name,
                mode,
                dataset: "payments",
                from,
                to,
                dead: "bench.dead",
                keys: "header",
                codec: CODEC,
                more: "",
            };
            let file = site.pipeline(&pipeline);
            let args = ["run", file.to_str().ok_or("a path")?, "--until-end"];
            let mut command = site.command(&program, "pipeline", &args);
            command.env("SEALFLOW_LOG", "warn");
            Ok(cpu_seconds(command, &site.path().join(format!("{name}.log")))?.0)
        };
        let seal = run("seal", "bench", sealed)?;
        let mut copier = Command::new(std::env::current_exe()?);
        copier.args(["copier", &kafka.brokers(), sealed, copied, &records.to_string(), CODEC]);
        let copy = cpu_seconds(copier, &site.path().join("copier.log"))?.0;
        let open = run("open", sealed, opened)?;
        if round > 0 {
            sealing.push(seal);
            copying.push(copy);
            opening.push(open);
        }
    }
    let million = 1e6 / records as f64;
    for (what, seconds) in [
        ("sealflow seal", &sealing),
        ("sealflow open", &opening),
        ("rdkafka copier of the sealed topic", &copying),
    ] {
        let spread = Spread::of(seconds.iter().map(|seconds| seconds * million).collect());
        let ratio = ratios(seconds, &copying);
        println!(
            "{what}: {:.2} CPU s per million records ({:.2} to {:.2}); {:.2}x the copier ({:.2} to {:.2})",
            spread.median, spread.min, spread.max, ratio.median, ratio.min, ratio.max
        );
        report(&json!({
            "name": "topic to topic, client CPU", "what": what, "records": records, "codec": CODEC, "rounds": ROUNDS,
            "cpu_seconds_per_million": [spread.min, spread.median, spread.max], "ratio_to_copier": [ratio.min, ratio.median, ratio.max],
        }))?;
    }
    Ok(())
}

/// Sample records over [`PARTITIONS`] partitions.
pub(crate) fn sample_messages(records: u64) -> Vec<Message> {
    let message = |sample: sealflow_samples::SampleRecord| Message {
        partition: i32::try_from(sample.n % PARTITIONS.unsigned_abs() as u64).unwrap_or_default(),
        key: Some(sample.key),
        value: Some(sample.value),
        timestamp: Some(1_767_225_600_000),
        ..Message::default()
    };
    sealflow_samples::generate(3, records).map(message).collect()
}
