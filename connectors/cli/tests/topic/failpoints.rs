//! Every step between reading and committing dies once and fails once, on a real broker: every record once, in order.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use sealflow_kafka::failpoints::STEPS;
use sealflow_testbed::{Kafka, Message, Site};

use crate::support::{binary, create_topics, pipeline, progress, run_to_end, sample_messages};

const RECORDS: u64 = 6_000;

/// Dies at the second pass of a batch, or at the thirtieth of a record.
fn dies_at(step: &str) -> String {
    match step {
        "after-read" | "send" => format!("{step}=30*off->1*return(abort)"),
        "abort" => "flush=1*off->1*return;abort=1*return(abort)".to_owned(),
        step => format!("{step}=1*off->1*return(abort)"),
    }
}

#[test]
fn at_every_step_from_read_to_commit_a_process_may_die_or_fail_and_every_record_passes_once_in_order() {
    let Some(kafka) = Kafka::shared("failpoints") else {
        return;
    };
    let topics = kafka.topics();
    create_topics(&topics, "steps");
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    let messages = sample_messages(3, RECORDS);
    topics.produce(
        "steps",
        &messages.iter().map(|(_, message)| message.clone()).collect::<Vec<_>>(),
    );
    let file = pipeline(&site, "steps", "seal", "batch: { rows: 50 }");
    for step in STEPS {
        let mut command = site.command(binary(), "pipeline", &["run", file.to_str().unwrap()]);
        command.env("FAILPOINTS", dies_at(step)).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(40);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > until {
                child.kill().unwrap();
                panic!("{step}: it lives on");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(status.signal(), Some(6), "{step}: {status}");
    }
    let died_before = progress(&topics, "steps.sealed");
    assert!(
        died_before < RECORDS,
        "some records are left for what follows: {died_before}"
    );

    // Every step that can fail does so, twice, within one run, which goes on by itself.
    let fails: Vec<String> = STEPS
        .iter()
        .map(|step| format!("{step}=2*off->2*return->off"))
        .collect();
    let output = site
        .command(binary(), "pipeline", &["run", "--until-end", file.to_str().unwrap()])
        .env("FAILPOINTS", fails.join(";"))
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    assert!(log.contains("by a failpoint"), "{log}");
    run_to_end(&site, &file, Duration::from_secs(60));

    let sealed = topics.read_all("steps.sealed");
    assert_eq!(sealed.len(), messages.len());
    let of = |partition: i32, message: &Message| {
        (message.partition == partition).then(|| (message.key.clone(), message.timestamp))
    };
    for partition in 0..crate::support::PARTITIONS {
        let before = messages.iter().filter_map(|(_, message)| of(partition, message));
        let after = sealed.iter().filter_map(|message| of(partition, message));
        assert!(before.eq(after), "partition {partition}: each once, in order");
    }
}
