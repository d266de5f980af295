//! Where a pipeline starts, and what changes under it: `latest`, created targets, topics of a pattern that go.

use std::time::{Duration, Instant};

use sealflow_testbed::{Kafka, Message, Site};

use crate::support::{PARTITIONS, Running, create_topics, pipeline, progress, run_to_end};

const PATIENCE: Duration = Duration::from_secs(60);

fn message(n: i32) -> Message {
    Message::new(n % PARTITIONS, format!(r#"{{"id":"{n}"}}"#))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_comes_after_a_start_at_the_latest_offset_passes_also_when_the_process_dies_before_its_first_commit() {
    let Some(kafka) = Kafka::shared("start at the latest offset") else {
        return;
    };
    let topics = kafka.topics();
    create_topics(&topics, "latest");
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    topics.produce("latest", &(0..60).map(message).collect::<Vec<_>>());
    let file = pipeline(&site, "latest", "seal", "");
    let yaml = std::fs::read_to_string(&file).unwrap();
    let session = "session.timeout.ms";
    std::fs::write(
        &file,
        yaml.replace(session, &format!("auto.offset.reset: latest, {session}")),
    )
    .unwrap();
    let first = Running::start(&site, "pipeline", &file, &[]);
    wait_until("it is assigned its partitions", || {
        first.read_log().contains("partitions assigned")
    });
    // Dead before anything came that could be committed.
    first.kill();
    topics.produce("latest", &(60..160).map(message).collect::<Vec<_>>());
    run_to_end(&site, &file, PATIENCE);
    let passed = topics.read_all("latest.sealed");
    assert_eq!(passed.len(), 100);
    assert!(
        passed
            .iter()
            .all(|message| message.value.as_deref() != Some(br#"{"id":"59"}"#))
    );
}

#[test]
fn a_target_that_is_created_keeps_records_as_long_as_its_source_and_dead_letters_of_old_records_are_new() {
    let Some(kafka) = Kafka::shared("retention of created targets") else {
        return;
    };
    let topics = kafka.topics();
    topics.create(
        "kept",
        PARTITIONS,
        &[("retention.ms", "123456789"), ("cleanup.policy", "compact")],
    );
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    let old = |value: &str| Message {
        key: Some(b"k".to_vec()),
        timestamp: Some(1_000),
        ..Message::new(0, value)
    };
    topics.produce("kept", &[old(r#"{"id":"1"}"#), old("no JSON")]);
    let file = pipeline(&site, "kept", "seal", "");
    let yaml = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        yaml.replace("topic: \"kept.sealed\"", "topic: \"kept.sealed\"\n    create: true"),
    )
    .unwrap();
    run_to_end(&site, &file, PATIENCE);
    let config = topics.config("kept.sealed");
    assert_eq!(config["retention.ms"], "123456789");
    assert_eq!(config["cleanup.policy"], "compact");
    assert_eq!(topics.config("kept.dead")["cleanup.policy"], "delete");
    assert_eq!(topics.read_all("kept.sealed")[0].timestamp, Some(1_000));
    let letters = topics.read_all("kept.dead");
    assert_eq!(letters.len(), 1);
    assert!(
        letters[0].timestamp > Some(1_700_000_000_000),
        "{:?}",
        letters[0].timestamp
    );
}

#[test]
fn a_topic_of_a_pattern_may_be_deleted_while_the_pipeline_runs() {
    let Some(kafka) = Kafka::shared("deleted topic of a pattern") else {
        return;
    };
    let topics = kafka.topics();
    for topic in ["going-a", "going-b", "going-a.sealed", "going-b.sealed", "went.dead"] {
        topics.create(topic, PARTITIONS, &[]);
    }
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    topics.produce("going-a", &[message(1)]);
    topics.produce("going-b", &[message(2)]);
    let file = pipeline(&site, "went", "seal", "");
    let yaml = std::fs::read_to_string(&file).unwrap();
    let yaml = yaml
        .replace("topics: [went]", "pattern: \"going-[ab]\"")
        .replace("went.sealed", "{topic}.sealed");
    std::fs::write(&file, &yaml).unwrap();
    let mut running = Running::start(&site, "pipeline", &file, &[]);
    wait_until("both pass", || {
        progress(&topics, "going-a.sealed") > 0 && progress(&topics, "going-b.sealed") > 0
    });
    topics.delete("going-b");
    let before = progress(&topics, "going-a.sealed");
    let until = Instant::now() + Duration::from_secs(15);
    while Instant::now() < until {
        assert!(running.ended().is_none(), "it ended:\n{}", running.read_log());
        std::thread::sleep(Duration::from_millis(100));
    }
    topics.produce("going-a", &[message(3)]);
    wait_until("what is left goes on", || progress(&topics, "going-a.sealed") > before);
}

#[test]
fn a_record_that_the_target_refuses_while_thousands_are_still_being_sent_is_set_aside_and_the_rest_passes() {
    let Some(kafka) = Kafka::shared("refusal while sending") else {
        return;
    };
    let topics = kafka.topics();
    create_topics(&topics, "midway");
    topics.create("midway.source", 1, &[("max.message.bytes", "4000000")]);
    topics.create("midway.target", 1, &[]);
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    let large = Message::new(0, format!(r#"{{"id":"0","filler":"{}"}}"#, "x".repeat(1_500_000)));
    let small = |n: i32| Message::new(0, format!(r#"{{"id":"{n}","filler":"{}"}}"#, "y".repeat(400)));
    let messages = std::iter::once(large).chain((1..8_000).map(small));
    topics.produce_with("midway.source", messages, &[("message.max.bytes", "4000000")]);
    let file = pipeline(&site, "midway", "seal", "batch: { rows: 8192, bytes: 16MiB }");
    let yaml = std::fs::read_to_string(&file).unwrap();
    let yaml = yaml
        .replace("topics: [midway]", "topics: [midway.source]")
        .replace("midway.sealed", "midway.target");
    let yaml = yaml.replace(
        "max_ratio: 1.0",
        &format!("max_ratio: 1.0, oversize: {}", site.path().join("aside").display()),
    );
    std::fs::write(&file, yaml).unwrap();
    let log = run_to_end(&site, &file, PATIENCE);
    assert_eq!(topics.read_all("midway.target").len(), 7_999);
    assert!(site.path().join("aside/midway.source/0").is_dir());
    let aborts = log.matches("transaction aborted").count();
    assert!(aborts <= 2, "{aborts} transactions were aborted:\n{log}");
}
