//! An audit log in a topic: in it before anything is shown, verified and asked there.

use std::process::Output;

use sealflow_testbed::{Kafka, Message};
use serde_json::Value;

use crate::reading::{EMAIL, NOTE, RECORDS, Sealed, of, stderr};
use crate::support::binary;

/// Reads as `role`, with every decision in that topic.
fn read(sealed: &Sealed, role: &str, topic: &str) -> Output {
    let source = format!("kafka:///{}.sealed", sealed.name);
    let log = format!("kafka:///{topic}");
    let args = [
        "read",
        &source,
        "--pipeline",
        &sealed.file,
        "--output",
        "json",
        "--audit",
        &log,
        "--audit-key",
        "audit.key",
        "--audit-checkpoints",
        "topic.checkpoints",
    ];
    sealed.site.command(binary(), role, &args).output().unwrap()
}

fn audit(sealed: &Sealed, what: &str, topic: &str, more: &[&str]) -> Output {
    let log = format!("kafka://{}/{topic}", sealed.brokers);
    let args = [&["audit", what, &log, "--output", "json"], more].concat();
    sealed.site.command(binary(), "intern", &args).output().unwrap()
}

#[test]
fn decisions_are_in_the_topic_before_anything_is_shown_and_what_is_done_to_them_is_found() {
    let Some(kafka) = Kafka::shared("an audit log in a topic") else {
        return;
    };
    let (sealed, topics) = Sealed::new(kafka, "audited");
    topics.create("audited.log", 3, &[]);
    for role in ["analyst", "support", "guest"] {
        let output = read(&sealed, role, "audited.log");
        assert_eq!(output.status.code(), Some(0), "{role}: {}", stderr(&output));
        assert_eq!(of(&output).len(), RECORDS as usize);
    }
    let proofs = ["--checkpoints", "topic.checkpoints", "--key", &sealed.auditor];
    let verified = audit(&sealed, "verify", "audited.log", &proofs);
    assert!(verified.status.success(), "{}", stderr(&verified));
    let report: Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(
        report["chains"].as_array().unwrap().len(),
        3,
        "one per process: {report}"
    );
    let found = audit(&sealed, "query", "audited.log", &["--label", "user.email"]);
    let events: Vec<Value> = serde_json::from_slice(&found.stdout).unwrap();
    for (role, decision) in [("analyst", "allowed"), ("support", "refused"), ("guest", "refused")] {
        let principal = format!("arn:aws:iam::111122223333:role/{role}");
        let of_role = events.iter().filter(|event| event["principal"] == principal.as_str());
        let count: u64 = of_role
            .inspect(|event| assert_eq!(event["decision"], decision))
            .map(|event| event["count"].as_u64().unwrap())
            .sum();
        assert_eq!(count, u64::from(RECORDS), "{role}");
    }

    // The same lines in another topic, one taken out; and one cut off at the end.
    let lines = topics.read_all("audited.log");
    let text = |line: &Message| String::from_utf8(line.value.clone().unwrap()).unwrap();
    for value in [EMAIL, NOTE, "customer 1"] {
        assert!(
            !lines.iter().any(|line| text(line).contains(value)),
            "{value} is in the audit log"
        );
    }
    let decision = lines
        .iter()
        .position(|line| text(line).contains("\"decision\""))
        .unwrap();
    // The last line is the checkpoint of the one before it.
    let end = lines.len() - 2..lines.len();
    for (topic, gone) in [("audited.removed", decision..decision + 1), ("audited.cut", end)] {
        topics.create(topic, 1, &[]);
        let mut rest = lines.clone();
        rest.drain(gone);
        rest.iter_mut().for_each(|line| line.partition = 0);
        topics.produce(topic, &rest);
        let verified = audit(&sealed, "verify", topic, &proofs);
        assert_eq!(verified.status.code(), Some(65), "{topic}: {}", stderr(&verified));
    }

    // Without a place for the lines nothing is shown.
    let output = read(&sealed, "analyst", "audited.nowhere");
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(
        output.stdout.is_empty() && stderr(&output).contains("audited.nowhere does not exist"),
        "{}",
        stderr(&output)
    );
    // Nor where the topic takes lines only of a size that none has.
    topics.create("audited.tiny", 1, &[("max.message.bytes", "100")]);
    let output = read(&sealed, "analyst", "audited.tiny");
    assert_eq!(output.status.code(), Some(74), "{}", stderr(&output));
    assert!(output.stdout.is_empty(), "{}", stderr(&output));
}
