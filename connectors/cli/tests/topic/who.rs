//! `acl who` of a topic: what is really there, and who may open that.

use std::time::Duration;

use sealflow_testbed::{Kafka, Site};

use crate::support::{binary, create_topics, pipeline, run_to_end, sample_messages};

const RECORDS: u64 = 40;

#[test]
fn who_of_a_topic_shows_what_is_there_by_the_newest_signed_policy() {
    let Some(kafka) = Kafka::shared("acl who of a topic") else {
        return;
    };
    let (site, topics) = (Site::new(&kafka.brokers()), kafka.topics());
    create_topics(&topics, "who");
    let policy = sealflow_samples::POLICY_YAML;
    site.publish("payments", 1, policy);
    let (samples, messages): (Vec<_>, Vec<_>) = sample_messages(5, RECORDS).into_iter().unzip();
    topics.produce("who", &messages);
    let path = pipeline(&site, "who", "seal", "");
    run_to_end(&site, &path, Duration::from_secs(60));
    // Since then support has lost its columns, and the cards' label is no longer known.
    let newer = policy
        .replace("version: 1", "version: 2")
        .replace("role/support\"", "role/nobody\"")
        .replace(
            "  - { path: \"payment.cards[*].number\", key: default, acl: payments, pad_to: 32, bind_row: id }\n",
            "",
        );
    site.publish("payments", 2, &newer);
    let who = |source: &str, more: &[&str]| {
        let args = [&["acl", "who", source, "--pipeline", path.to_str().unwrap()], more].concat();
        let output = site.command(binary(), "intern", &args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, err) = who("kafka:///who.sealed", &[]);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.contains(&format!("{RECORDS} of the newest records")) && out.contains("payments version 2"),
        "{out}"
    );
    assert!(
        out.contains(&format!("payments client_ip: {RECORDS} values\n")),
        "{out}"
    );
    assert!(out.contains("role/nobody") && !out.contains("role/support"), "{out}");
    assert!(
        out.contains("payment.cards[*].number") && out.contains("open to nobody: the policy has no such label"),
        "{out}"
    );
    for secret in samples.iter().flat_map(|sample| &sample.secrets) {
        assert!(!out.contains(secret.as_str()), "{out}");
    }
    let (code, out, err) = who(&format!("kafka://{}/who", kafka.brokers()), &["--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &json["values"], &json["datasets"]),
        (Some(0), &0.into(), &serde_json::json!([])),
        "{err}"
    );
    assert_eq!(who("kafka:///no.such.topic", &[]).0.map(|code| code > 63), Some(true));
}
