//! A newer policy is taken in by a running pipeline; one that cannot be used stops it.

use std::time::{Duration, Instant};

use sealflow_testbed::{KEY_ARN, Kafka, Message, Site, Topics};

use crate::support::{PARTITIONS, Running, create_topics, pipeline, progress};

fn policy(version: u64, columns: &str) -> String {
    let keys = format!(r#"{{ default: {{ arn: "{KEY_ARN}" }} }}"#);
    format!("dataset: payments\nversion: {version}\nkeys: {keys}\nacls: {{ pii: {{}} }}\ncolumns: [ {columns} ]\n")
}

fn produce(topics: &Topics, numbers: std::ops::Range<i32>) {
    let record = |n: i32| Message::new(n % PARTITIONS, format!(r#"{{"n":{n},"mail":"m{n}","phone":"p{n}"}}"#));
    topics.produce("reload", &numbers.map(record).collect::<Vec<_>>());
}

fn wait(running: &mut Running, what: &str, done: impl Fn(&Running) -> bool) {
    let until = Instant::now() + Duration::from_secs(40);
    while !done(running) {
        assert!(
            running.ended().is_none(),
            "{what}: it has ended\n{}",
            running.read_log()
        );
        assert!(
            Instant::now() < until,
            "{what}: waited too long\n{}",
            running.read_log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_column_that_a_newer_policy_names_is_sealed_without_a_restart_and_a_policy_of_nobody_stops_the_pipeline() {
    let Some(kafka) = Kafka::shared("a newer policy while running") else {
        return;
    };
    let topics = kafka.topics();
    create_topics(&topics, "reload");
    let site = Site::new(&kafka.brokers());
    let mail = "{ path: mail, key: default, acl: pii }";
    site.publish("payments", 1, &policy(1, mail));
    let file = pipeline(&site, "reload", "seal", "policy_refresh: 200ms");
    let mut running = Running::start(&site, "pipeline", &file, &[]);
    produce(&topics, 0..300);
    wait(&mut running, "the first records", |_| {
        progress(&topics, "reload.sealed") >= 300
    });

    site.publish(
        "payments",
        2,
        &policy(2, &format!("{mail}, {{ path: phone, key: default, acl: pii }}")),
    );
    // Records go on meanwhile: none may be lost, whichever version it meets.
    produce(&topics, 300..600);
    wait(&mut running, "the newer policy", |running| {
        running.read_log().contains("policy in use")
    });
    produce(&topics, 600..900);
    let read = |topics: &Topics| {
        let mut values: Vec<(i32, String)> = Vec::new();
        for message in topics.read_all("reload.sealed") {
            let value = String::from_utf8(message.value.unwrap()).unwrap();
            let n = value.strip_prefix(r#"{"n":"#).unwrap().split(',').next().unwrap();
            values.push((n.parse().unwrap(), value));
        }
        values.sort();
        values
    };
    // Transaction markers count as progress too, so this may be early; the topic itself decides.
    let until = Instant::now() + Duration::from_secs(40);
    while read(&topics).len() < 900 {
        assert!(
            running.ended().is_none() && Instant::now() < until,
            "{}",
            running.read_log()
        );
    }
    let values = read(&topics);
    assert_eq!(
        values.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
        (0..900).collect::<Vec<_>>()
    );
    assert!(values.iter().all(|(n, value)| !value.contains(&format!("\"m{n}\""))));
    let clear = |(n, value): &(i32, String)| value.contains(&format!("\"p{n}\""));
    assert!(values[..300].iter().all(clear), "the first version did not name it");
    assert!(!values[600..].iter().any(clear), "the second does");

    // A newest version that nobody signed: not the old one, nothing at all.
    std::fs::write(site.catalogue().join("policies/payments/0000000003.jws"), "not signed").unwrap();
    let (status, log) = running.wait(Duration::from_secs(40));
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(
        log.contains("error: policy of dataset payments cannot be used"),
        "{log}"
    );
    produce(&topics, 900..910);
    let (status, log) = Running::start(&site, "pipeline", &file, &["--until-end"]).wait(Duration::from_secs(40));
    assert_eq!(status.code(), Some(78), "{log}");
    assert_eq!(read(&topics).len(), 900);
}
