//! A pipeline whose policy needs a lease seals while one holds, and goes on with the next.

use std::time::{Duration, Instant, SystemTime};

use sealflow_testbed::{KEY_ARN, Kafka, Message, Site, Topics};

use crate::support::{PARTITIONS, Running, create_topics, pipeline, progress, run_to_end};

fn produce(topics: &Topics, numbers: std::ops::Range<i32>) {
    let record = |n: i32| Message::new(n % PARTITIONS, format!(r#"{{"n":{n},"mail":"m{n}"}}"#));
    topics.produce("lease", &numbers.map(record).collect::<Vec<_>>());
}

/// The numbers of the sealed records, in order.
fn sealed(topics: &Topics) -> Vec<i32> {
    let mut numbers: Vec<i32> = Vec::new();
    for message in topics.read_all("lease.sealed") {
        let value = String::from_utf8(message.value.unwrap()).unwrap();
        assert!(value.contains("sf1."), "{value}");
        let n = value.strip_prefix(r#"{"n":"#).unwrap().split(',').next().unwrap();
        numbers.push(n.parse().unwrap());
    }
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_pipeline_seals_nothing_after_its_lease_loses_nothing_and_goes_on_under_the_next() {
    const LEASE: Duration = Duration::from_secs(5);
    let Some(kafka) = Kafka::shared("a lease that ends") else {
        return;
    };
    let topics = kafka.topics();
    create_topics(&topics, "lease");
    let site = Site::new(&kafka.brokers());
    let policy = format!(
        "dataset: payments\nversion: 1\nlease: required\nkeys: {{ k: {{ arn: \"{KEY_ARN}\" }} }}\nacls: {{ pii: {{}} }}\n\
         columns: [{{ path: mail, key: k, acl: pii }}]\n"
    );
    site.publish("payments", 1, &policy);
    // Nobody looks for a newer policy meanwhile: the end is noticed by the batch that comes after it.
    let file = pipeline(&site, "lease", "seal", "policy_refresh: 10m");
    produce(&topics, 0..100);
    let (status, log) = Running::start(&site, "pipeline", &file, &["--until-end"]).wait(Duration::from_secs(40));
    assert!(
        status.code() == Some(78) && log.contains("the catalogue has none of version 1"),
        "{log}"
    );
    assert_eq!(progress(&topics, "lease.sealed"), 0);

    site.lease(&policy, LEASE);
    let ends = SystemTime::now() + LEASE;
    let mut running = Running::start(&site, "pipeline", &file, &[]);
    let until = Instant::now() + Duration::from_secs(40);
    while progress(&topics, "lease.sealed") < 100 {
        assert!(
            running.ended().is_none() && Instant::now() < until,
            "{}",
            running.read_log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    // Leases end on a whole second, so it has ended by then.
    std::thread::sleep(ends.duration_since(SystemTime::now()).unwrap_or_default());
    assert!(running.ended().is_none(), "{}", running.read_log());
    produce(&topics, 100..200);
    let (status, log) = running.wait(Duration::from_secs(40));
    assert!(
        status.code() == Some(78)
            && log.contains("the lease ended at")
            && log.contains("help: the owner signs a new one"),
        "{status}: {log}"
    );
    assert_eq!(sealed(&topics), (0..100).collect::<Vec<_>>());

    site.lease(&policy, Duration::from_secs(3_600));
    run_to_end(&site, &file, Duration::from_secs(40));
    assert_eq!(sealed(&topics), (0..200).collect::<Vec<_>>());
}
