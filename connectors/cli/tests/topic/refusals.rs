//! G2: no key, no policy, no owner: nothing leaves, and the exit code says whose turn it is.

use std::process::Command;
use std::time::{Duration, Instant};

use sealflow_local_kms::{Failure, Fault};
use sealflow_testbed::{KEY_ARN, Kafka, Message, Site, Topics};

use crate::support::{Running, create_topics, pipeline, progress, run_to_end, sample_messages};

fn prepared(kafka: &Kafka, name: &str) -> (Site, Topics) {
    let topics = kafka.topics();
    create_topics(&topics, name);
    let messages: Vec<Message> = sample_messages(5, 500)
        .into_iter()
        .map(|(_, message)| message)
        .collect();
    topics.produce(name, &messages);
    (Site::new(&kafka.brokers()), topics)
}

fn refused(site: &Site, name: &str, role: &str, mode: &str) -> (Option<i32>, String) {
    let file = pipeline(site, name, mode, "");
    let (status, log) = Running::start(site, role, &file, &["--until-end"]).wait(Duration::from_secs(60));
    (status.code(), log)
}

#[test]
fn without_rights_at_the_key_nothing_leaves_and_the_exit_code_is_77() {
    let Some(kafka) = Kafka::shared("refusal without rights") else {
        return;
    };
    let (site, topics) = prepared(kafka, "norights");
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    let (code, log) = refused(&site, "norights", "intern", "seal");
    assert_eq!(code, Some(77), "{log}");
    assert!(
        log.contains("error:") && log.contains("help:") && log.contains(KEY_ARN),
        "{log}"
    );
    assert_eq!(
        progress(&topics, "norights.sealed") + progress(&topics, "norights.dead"),
        0
    );

    // What role/pipeline sealed, role/intern cannot open; a disabled key opens for nobody.
    run_to_end(&site, &pipeline(&site, "norights", "seal", ""), Duration::from_secs(60));
    let (code, log) = refused(&site, "norights", "intern", "open");
    assert_eq!(code, Some(77), "{log}");
    assert_eq!(progress(&topics, "norights.opened"), 0);
}

#[test]
fn without_a_signed_policy_nothing_leaves_and_the_exit_code_is_78() {
    let Some(kafka) = Kafka::shared("refusal without policy") else {
        return;
    };
    let (site, topics) = prepared(kafka, "nopolicy");
    let (code, log) = refused(&site, "nopolicy", "pipeline", "seal");
    assert_eq!(code, Some(78), "{log}");
    // A policy signed by somebody who is not pinned is no policy.
    let stranger = Site::new(&kafka.brokers());
    stranger.publish("payments", 1, sealflow_samples::POLICY_YAML);
    let copied = site.catalogue().join("policies/payments");
    std::fs::create_dir_all(&copied).unwrap();
    std::fs::copy(
        stranger.catalogue().join("policies/payments/0000000001.jws"),
        copied.join("0000000001.jws"),
    )
    .unwrap();
    let (code, log) = refused(&site, "nopolicy", "pipeline", "seal");
    assert_eq!(code, Some(78), "{log}");
    assert_eq!(
        progress(&topics, "nopolicy.sealed") + progress(&topics, "nopolicy.dead"),
        0
    );
}

#[test]
fn while_kms_is_away_nothing_leaves_and_all_of_it_leaves_afterwards() {
    let Some(kafka) = Kafka::shared("KMS outage") else {
        return;
    };
    let (site, topics) = prepared(kafka, "outage");
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    site.kms().set_fault(Some(Fault {
        operation: None,
        delay: Duration::ZERO,
        failure: Some(Failure::Error {
            status: 500,
            code: "KMSInternalException",
        }),
        times: None,
    }));
    let file = pipeline(&site, "outage", "seal", "");
    let mut running = Running::start(&site, "pipeline", &file, &[]);
    std::thread::sleep(Duration::from_secs(8));
    assert!(running.ended().is_none(), "it waits:\n{}", running.read_log());
    assert_eq!(progress(&topics, "outage.sealed") + progress(&topics, "outage.dead"), 0);
    site.kms().set_fault(None);
    let until = Instant::now() + Duration::from_secs(60);
    while progress(&topics, "outage.sealed") < 500 {
        assert!(
            running.ended().is_none() && Instant::now() < until,
            "{}",
            running.read_log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    running.kill();
    run_to_end(&site, &file, Duration::from_secs(60));
    assert_eq!(topics.read_all("outage.sealed").len(), 500);
}

#[test]
fn kcat_reads_the_sealed_topic_as_any_consumer_would() {
    let Some(kafka) = Kafka::shared("kcat as an independent consumer") else {
        return;
    };
    if Command::new("kcat").arg("-V").output().is_err() {
        sealflow_testbed::skip("kcat as an independent consumer: no kcat");
        return;
    }
    let (site, _) = prepared(kafka, "kcat");
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    run_to_end(&site, &pipeline(&site, "kcat", "seal", ""), Duration::from_secs(60));
    let output = Command::new("kcat")
        .args([
            "-C",
            "-q",
            "-e",
            "-b",
            &kafka.brokers(),
            "-t",
            "kcat.sealed",
            "-X",
            "isolation.level=read_committed",
        ])
        .args(["-o", "beginning", "-f", "%p\t%k\t%h\t%s\n"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("\"sf1.")).collect();
    assert_eq!(lines.len(), 500);
    for (sample, _) in sample_messages(5, 500) {
        assert!(sample.secrets.iter().all(|secret| !text.contains(secret.as_str())));
        assert!(text.contains(&sample.id));
    }
}
