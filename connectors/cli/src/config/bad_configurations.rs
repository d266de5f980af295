//! Pipeline files as they go wrong: each message names file, key path and line, and what to do.

use std::path::Path;

use super::{Environment, load};
use crate::failure::Exit;

const GOOD: &str = r#"name: payments-seal
dataset: payments
source: { kafka: { brokers: "localhost:9092", topics: [payments] } }
target: { kafka: { topic: "{topic}.sealed" } }
catalogue: { folder: catalogue }
trust: { owners: ["NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"] }
kms: { region: eu-central-1 }
dead_letters: { topic: payments.dead }
"#;

/// The two lines for `yaml`, with the folder cut off.
fn message_for(yaml: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.yaml");
    std::fs::write(&path, yaml).unwrap();
    let environment = Environment::of(&[("PORT", "not-a-port")]);
    match load(&path, &environment) {
        Ok(_) => "no error".to_owned(),
        Err(failure) => {
            assert_eq!(failure.exit, Exit::Config, "{failure}");
            failure
                .to_string()
                .replace(&format!("{}/", folder.path().display()), "")
        }
    }
}

fn changed(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

#[test]
fn the_good_one_is_good() {
    assert_eq!(message_for(GOOD), "no error");
}

#[test]
fn every_bad_configuration_says_where_and_what_to_do() {
    let cases = [
        ("unknown_key_at_the_top", changed("dataset:", "datset:")),
        ("unknown_key_inside", changed("brokers:", "broker:")),
        ("missing_key", changed("dataset: payments\n", "")),
        ("key_twice", format!("{GOOD}name: other\n")),
        ("not_yaml", changed("topics: [payments]", "topics: [payments")),
        ("empty_file", String::new()),
        ("wrong_type", changed("topics: [payments]", "topics: payments")),
        ("number_for_text", format!("{GOOD}threads: many\n")),
        ("threads_out_of_range", format!("{GOOD}threads: 1000\n")),
        ("size_without_unit", format!("{GOOD}batch: {{ bytes: 4096 }}\n")),
        ("span_with_unknown_unit", format!("{GOOD}batch: {{ time: 5min }}\n")),
        (
            "batch_beyond_the_channel_to_the_enclave",
            format!(
                "{GOOD}batch: {{ bytes: 64MiB }}\nenclave: {{ image: worker.img, relay: [\"kms.example.com:443\"] }}\n"
            ),
        ),
        ("rows_of_zero", format!("{GOOD}batch: {{ rows: 0 }}\n")),
        ("unknown_word", format!("{GOOD}mode: encrypt\n")),
        ("format_not_built", format!("{GOOD}format: avro\n")),
        ("bad_name", changed("payments-seal", "\"payments seal\"")),
        (
            "bad_thumbprint",
            changed("NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", "alice"),
        ),
        (
            "bad_endpoint",
            changed("region: eu-central-1", "endpoint: localhost:4599"),
        ),
        (
            "topics_and_pattern",
            changed("topics: [payments]", "topics: [payments], pattern: \"p.*\""),
        ),
        ("no_topics", changed(", topics: [payments]", "")),
        ("bad_pattern", changed("topics: [payments]", "pattern: \"pay(\"")),
        ("target_is_source", changed("\"{topic}.sealed\"", "\"{topic}\"")),
        (
            "unknown_placeholder_in_topic",
            changed("{topic}.sealed", "{tpoic}.sealed"),
        ),
        ("dead_letters_are_target", changed("payments.dead", "payments.sealed")),
        (
            "owned_property",
            changed(
                "topics: [payments]",
                "topics: [payments], properties: { isolation.level: read_uncommitted }",
            ),
        ),
        (
            "unknown_property",
            changed(
                "topics: [payments]",
                "topics: [payments], properties: { fetch.min.byte: 1 }",
            ),
        ),
        ("variable_not_set", changed("localhost:9092", "${BROKERS}")),
        (
            "secret_not_there",
            changed(
                "topics: [payments]",
                "topics: [payments], properties: { sasl.password: \"SECRET[env.KAFKA_PASSWORD]\" }",
            ),
        ),
        (
            "unknown_secret_backend",
            changed("localhost:9092", "SECRET[vault.brokers]"),
        ),
        (
            "telemetry_by_grpc",
            format!("{GOOD}telemetry: {{ otlp: {{ endpoint: \"grpc://localhost:4317\" }} }}\n"),
        ),
        (
            "telemetry_of_more_than_all",
            format!("{GOOD}telemetry: {{ otlp: {{ endpoint: \"http://localhost:4318\", sample_ratio: 2 }} }}\n"),
        ),
        (
            "exec_without_the_name",
            format!(
                "{}secrets: {{ exec: {{ vault: {{ command: [pass, show] }} }} }}\n",
                changed("localhost:9092", "SECRET[vault.brokers]")
            ),
        ),
        (
            "exec_that_fails",
            format!(
                "{}secrets: {{ exec: {{ vault: {{ command: [\"false\", \"{{name}}\"] }} }} }}\n",
                changed("localhost:9092", "SECRET[vault.brokers]")
            ),
        ),
        (
            "placeholder_in_secrets",
            format!(
                "{}secrets: {{ folder: \"${{HOME}}/secrets\" }}\n",
                changed("localhost", "${HOST:-localhost}")
            ),
        ),
        (
            "variable_not_allowed",
            format!("{}secrets: {{ env_prefixes: [KAFKA_] }}\n", changed("9092", "${PORT}")),
        ),
        (
            "bad_value_from_environment",
            format!("{GOOD}admin: {{ listen: \"127.0.0.1:${{PORT}}\" }}\n"),
        ),
        (
            "later_error_beside_a_variable",
            format!("{}thread: 2\n", changed("localhost", "${HOST:-localhost}")),
        ),
    ];
    for (name, yaml) in cases {
        let message = message_for(&yaml);
        assert!(message.starts_with("error: pipeline.yaml: "), "{name}: {message}");
        assert!(message.lines().count() == 2, "{name}: {message}");
        insta::assert_snapshot!(name, message);
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let failure = load(Path::new("/nowhere/pipeline.yaml"), &Environment::default())
        .err()
        .unwrap();
    insta::assert_snapshot!("no_such_file", failure.to_string());
}

#[test]
fn secrets_are_filled_in_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.yaml");
    let yaml = changed(
        "topics: [payments]",
        "topics: [payments], properties: { sasl.password: \"SECRET[file.kafka]\" }",
    );
    std::fs::write(&path, format!("{yaml}secrets: {{ folder: . }}\n")).unwrap();
    std::fs::write(folder.path().join("kafka"), "hunter2: \"}\n").unwrap();
    let config = load(&path, &Environment::default())
        .map_err(|failure| failure.to_string())
        .unwrap();
    assert_eq!(
        config.source.kafka.properties.get("sasl.password"),
        Some("hunter2: \"}")
    );
    assert!(!format!("{config:?}").contains("hunter2"));
    let catalogue = folder.path().join("catalogue");
    assert_eq!(config.catalogue.location.folder(), Some(catalogue.as_path()));
}

/// Paths of all texts in a document.
fn texts(node: &serde_json::Value, here: &str, found: &mut Vec<String>) {
    match node {
        serde_json::Value::String(_) => found.push(here.to_owned()),
        serde_json::Value::Array(list) => {
            for (n, child) in list.iter().enumerate() {
                texts(child, &format!("{here}/{n}"), found);
            }
        }
        serde_json::Value::Object(map) => {
            for (name, child) in map {
                texts(child, &format!("{here}/{name}"), found);
            }
        }
        _ => (),
    }
}

#[test]
fn a_secret_in_the_wrong_place_is_in_no_message() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipeline.yaml");
    let tree: serde_json::Value = sealflow::policy::yaml::from_yaml(&format!(
        "{GOOD}mode: seal\nformat: json\nkeys: header\nbatch: {{ bytes: 4MiB, time: 100ms }}\ninstance: a\nadmin: {{ listen: \"127.0.0.1:1\" }}\n"
    ))
    .unwrap();
    let mut places = Vec::new();
    texts(&tree, "", &mut places);
    assert!(places.len() >= 14, "{places:?}");
    let mut refused = 0;
    for (n, place) in places.iter().enumerate() {
        let canary = format!("Canary-{n}/{{[\"of the wrong place");
        std::fs::write(folder.path().join("canary"), &canary).unwrap();
        let mut tree = tree.clone();
        *tree.pointer_mut(place).unwrap() = "SECRET[file.canary]".into();
        tree["secrets"] = serde_json::json!({ "folder": "." });
        std::fs::write(&path, tree.to_string()).unwrap();
        if let Err(failure) = load(&path, &Environment::default()) {
            refused += 1;
            let text = format!("{failure:?} {failure}");
            assert!(!text.contains(&format!("Canary-{n}")), "{place}: {failure}");
        }
    }
    assert!(refused >= 10, "{refused}");
}
