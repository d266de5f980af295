//! G7: data keys move to another KMS key, and what is sealed in topics opens although the old KMS key is off.

use std::path::Path;
use std::time::Duration;

use sealflow_testbed::{KEY_ARN, Kafka, Message, Pipeline, Site};

use crate::support::{binary, create_topics, run_to_end, sample_messages};

const NEW_ID: &str = "00000000-0000-4000-8000-000000000002";

fn file(site: &Site, name: &str, mode: &str, keys: &str) -> std::path::PathBuf {
    let (sealed, opened, dead) = (
        format!("{name}.sealed"),
        format!("{name}.opened"),
        format!("{name}.dead"),
    );
    let (from, to) = if mode == "seal" {
        (name, sealed.as_str())
    } else {
        (sealed.as_str(), opened.as_str())
    };
    site.pipeline(&Pipeline {
        name: &format!("{name}-{mode}"),
        mode,
        dataset: "payments",
        from,
        to,
        dead: &dead,
        keys,
        codec: "none",
        more: "",
    })
}

fn command(site: &Site, pipeline: &Path, args: &[&str]) -> String {
    let mut command = site.command(binary(), "pipeline", args);
    let output = command.env("SEALFLOW_PIPELINE", pipeline).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn a_topic_opens_after_rewrapping_although_the_old_kms_key_is_disabled() {
    let Some(kafka) = Kafka::shared("rewrapping") else {
        return;
    };
    let topics = kafka.topics();
    for keys in ["header", "catalogue"] {
        let name = format!("rewrap-{keys}");
        create_topics(&topics, &name);
        let messages: Vec<Message> = sample_messages(7, 300)
            .into_iter()
            .map(|(_, message)| message)
            .collect();
        topics.produce(&name, &messages);
        let site = Site::new(&kafka.brokers());
        site.publish("payments", 1, sealflow_samples::POLICY_YAML);
        let seal = file(&site, &name, "seal", keys);
        run_to_end(&site, &seal, Duration::from_secs(60));
        let sealed = format!("{name}.sealed");

        let new_arn = site.kms().create_key(Some(NEW_ID), "", None).unwrap();
        let moved = sealflow_samples::POLICY_YAML
            .replace("version: 1", "version: 2")
            .replace(KEY_ARN, &new_arn);
        site.publish(
            "payments",
            2,
            &format!("{moved}previous: {{ keys: [{{ name: default, arn: \"{KEY_ARN}\" }}] }}\n"),
        );
        let usage = || command(&site, &seal, &["keys", "usage", "--topic", &sealed, "--output", "json"]);
        let row = |report: &str| {
            let report: serde_json::Value = serde_json::from_str(report).unwrap();
            let keys = report["kms_keys"].as_array().unwrap();
            keys.iter().find(|key| key["arn"] == KEY_ARN).unwrap().clone()
        };
        let before = row(&usage());
        assert_eq!(before["state"], "opens");
        // Travelling copies are found where records carry them.
        assert_eq!(
            before["travelling"].get(&sealed).is_some(),
            keys == "header",
            "{before}"
        );
        command(&site, &seal, &["keys", "rewrap"]);
        site.kms().set_enabled(KEY_ARN, false).unwrap();
        let after = row(&usage());
        assert_eq!(
            (&after["state"], after["travelling"].as_object().unwrap().len()),
            (&"listed".into(), 0)
        );

        run_to_end(&site, &file(&site, &name, "open", keys), Duration::from_secs(60));
        // What travels and cannot be read may be under any KMS key.
        let mut newer = Message::new(0, "{}");
        let header = sealflow::keys::envelope::write_header([b"of a newer version".as_slice()].into_iter());
        newer.headers.push(("sealflow-keys".to_owned(), Some(header)));
        topics.produce(&sealed, &[newer]);
        let report = usage();
        assert_eq!(row(&report)["state"], "unknown", "{report}");
        assert!(report.contains("0 key headers and 1 envelopes"), "{report}");
        let mut opened: Vec<_> = topics
            .read_all(&format!("{name}.opened"))
            .into_iter()
            .map(|m| m.value)
            .collect();
        let mut clear: Vec<_> = messages.into_iter().map(|message| message.value).collect();
        opened.sort();
        clear.sort();
        assert!(opened == clear, "{keys}: {} of {} records", opened.len(), clear.len());
    }
}
