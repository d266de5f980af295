//! Every step between reading and committing dies once and fails once, on a real broker: every record once, in order.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use sealflow_kafka::failpoints::STEPS;
use sealflow_testbed::{Kafka, Message, Site};

use crate::support::{Running, binary, create_topics, pipeline, progress, run_to_end, sample_messages};

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

#[test]
fn what_a_killed_instance_was_about_to_give_up_is_read_by_somebody_although_it_comes_back_as_the_same_member() {
    let Some(kafka) = Kafka::shared("partitions that the group gave to nobody") else {
        return;
    };
    let topics = kafka.topics();
    create_topics(&topics, "unread");
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    // Its session outlives everything that is waited for: no member is dropped, and so none is looked for.
    let file = |instance: &str| {
        let file = pipeline(&site, "unread", "seal", &format!("instance: {instance}"));
        let yaml = std::fs::read_to_string(&file).unwrap();
        let own = site.path().join(format!("unread-{instance}.yaml"));
        let long = yaml.replace(r#"session.timeout.ms: "6000""#, r#"session.timeout.ms: "300000""#);
        assert_ne!(long, yaml);
        std::fs::write(&own, long).unwrap();
        own
    };
    let (first, second) = (file("a"), file("b"));
    let start = |file: &Path, failpoints: &str| {
        let mut command = site.command(binary(), "pipeline", &["run", file.to_str().unwrap()]);
        command.env("FAILPOINTS", failpoints);
        Running::of(command, file)
    };
    // The first has all partitions, and dies when it is to give some to the second.
    let mut dying = start(&first, "revoked=1*return(abort)");
    wait_for("the first reads", &mut [&mut dying], |running| {
        running[0].read_log().contains("partitions assigned")
    });
    let mut joining = start(&second, "");
    wait_for("the first dies", &mut [&mut dying, &mut joining], |running| {
        running[0].ended().is_some()
    });
    let mut back = start(&first, "");
    let messages: Vec<Message> = sample_messages(3, 600)
        .into_iter()
        .map(|(_, message)| message)
        .collect();
    topics.produce("unread", &messages);
    wait_for("every record is there", &mut [&mut back, &mut joining], |_| {
        topics.read_all("unread.sealed").len() == messages.len()
    });
    let logs = back.read_log() + &joining.read_log();
    assert!(
        logs.contains("that the group gave to nobody"),
        "or nothing was tested:\n{logs}"
    );
    for instance in [back, joining] {
        instance.kill();
    }
}

/// Waits until it is so; the instances' logs say why it is not.
fn wait_for(what: &str, running: &mut [&mut Running], mut is_so: impl FnMut(&mut [&mut Running]) -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !is_so(running) {
        let logs = || {
            running
                .iter()
                .map(|running| running.read_log())
                .collect::<Vec<_>>()
                .join("\n---\n")
        };
        assert!(Instant::now() < until, "{what}: not within a minute\n{}", logs());
        std::thread::sleep(Duration::from_millis(50));
    }
}
