//! Bytes that sealing adds to a record, on the broker's disk, by codec, with envelopes in the header or only in
//! the catalogue.

use std::path::Path;
use std::process::Command;

use sealflow_benchmarks::Error;
use sealflow_benchmarks::report::{exactly, figure};
use sealflow_testbed::{Kafka, Pipeline, Site, or_skip};

use crate::process::{run as run_to_end, sealflow};
use crate::topic::{PARTITIONS, sample_messages};

const RECORDS: u64 = 20_000;
const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

pub(crate) fn run() -> Result<(), Error> {
    let Some(kafka) = or_skip("bytes benchmark", Kafka::start()) else {
        return Ok(());
    };
    let program = sealflow()?;
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    let topics = kafka.topics();
    topics.create("size", PARTITIONS, &[]);
    topics.create("size.dead", PARTITIONS, &[]);
    topics.produce("size", &sample_messages(RECORDS));
    for codec in CODECS {
        let plain = format!("size.plain.{codec}");
        topics.create(&plain, PARTITIONS, &[]);
        let mut copier = Command::new(std::env::current_exe()?);
        copier.args(["copier", &kafka.brokers(), &kafka.brokers(), "size", &plain]);
        copier.args([&RECORDS.to_string(), codec, "1"]);
        run_to_end(copier, &site.path().join("copier.log"))?;
        let before = per_record(&kafka.data_dir(), &plain)?;
        let show = |contender: &str, bytes| {
            let what = format!("bytes per record on disk, {codec}");
            figure("bytes", &what, contender, "bytes", exactly(bytes))
        };
        show("plain", before)?;
        for keys in ["header", "catalogue"] {
            let to = format!("size.{keys}.{codec}");
            topics.create(&to, PARTITIONS, &[]);
            let pipeline = Pipeline {
                name: &to.replace('.', "-"),
                mode: "seal",
                dataset: "payments",
                from: "size",
                to: &to,
                dead: "size.dead",
                keys,
                codec,
                more: "",
            };
            let file = site.pipeline(&pipeline);
            let command = site.command(
                &program,
                "pipeline",
                &["run", file.to_str().ok_or("a path")?, "--until-end"],
            );
            run_to_end(command, &site.path().join("bytes.log"))?;
            let added = per_record(&kafka.data_dir(), &to)? - before;
            show(&format!("added with keys: {keys}"), added)?;
        }
    }
    Ok(())
}

/// Size of a topic's segments on disk, by its number of records.
fn per_record(data: &Path, topic: &str) -> Result<f64, Error> {
    let mut bytes = 0;
    for partition in 0..PARTITIONS {
        for entry in std::fs::read_dir(data.join(format!("{topic}-{partition}")))? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                bytes += entry.metadata()?.len();
            }
        }
    }
    Ok(bytes as f64 / RECORDS as f64)
}
