//! Records that are larger than their topics take, on Apache Kafka: they are set aside, and the others go on.

#![allow(clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Running, Sorter, config, dead_letters, options, run_to_end, until};
use sealflow::pipeline::Counters;
use sealflow_kafka::{KafkaConfig, RunError, Shutdown};
use sealflow_testbed::{Kafka, Message, Topics};

/// Source, target and dead letters, the latter two with a limit.
fn topics(kafka: &Kafka, name: &str, limit: &str) -> Topics {
    let topics = kafka.topics();
    topics.create(name, 2, &[("max.message.bytes", "8000000")]);
    for suffix in ["sealed", "dead"] {
        topics.create(&format!("{name}.{suffix}"), 2, &[("max.message.bytes", limit)]);
    }
    topics
}

fn small(n: i32) -> Message {
    Message::new(n % 2, format!("small {n} {}", "x".repeat(300)))
}

fn large(start: &str, bytes: usize) -> Message {
    Message::new(0, format!("{start} {}", "y".repeat(bytes)))
}

fn with_letters(kafka: &Kafka, name: &str, oversize: Option<&Path>) -> KafkaConfig {
    let mut config = config(&kafka.brokers(), &[name]);
    config.source.properties = [("fetch.message.max.bytes".to_owned(), "1000000".to_owned())]
        .into_iter()
        .collect();
    // Topics measure what is compressed, and one letter over and over becomes nothing.
    config.target.properties = [("compression.codec".to_owned(), "none".to_owned())]
        .into_iter()
        .collect();
    config.dead_letters = dead_letters(&format!("{name}.dead"), 1.0);
    if let Some(letters) = &mut config.dead_letters {
        letters.oversize = oversize.map(Into::into);
    }
    config
}

/// How the values in `topic` start, of partition 0, in order.
fn first_words(topics: &Topics, topic: &str) -> Vec<String> {
    let word = |message: Message| {
        let value = String::from_utf8(message.value.expect("a value")).expect("text");
        value
            .split(' ')
            .take(2)
            .map(|word| word.get(..8).unwrap_or(word))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let all = topics.read_all(topic).into_iter();
    all.filter(|message| message.partition == 0).map(word).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_too_large_for_the_target_becomes_a_dead_letter_and_one_too_large_for_those_a_file() {
    let Some(kafka) = Kafka::shared("oversize records") else {
        return;
    };
    let topics = topics(kafka, "big", "100000");
    let records = [
        small(0),
        large("shrinks", 200_000),
        small(2),
        large("stays", 200_000),
        large("bad", 300_000),
        small(4),
        // Larger than the producer itself sends.
        large("stays", 6_000_000),
        small(6),
    ];
    topics.produce("big", &records);
    let folder = std::env::temp_dir().join(format!("sealflow-oversize-{}", std::process::id()));
    let mut config = with_letters(kafka, "big", Some(&folder));
    let limits = [("message.max.bytes", "4000000"), ("compression.codec", "none")];
    config.target.properties = limits
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into_iter()
        .collect();
    let summary = run_to_end(config, options("big", "a", true)).await.expect("it goes on");
    assert_eq!((summary.records, summary.dead_letters), (8, 4));
    assert_eq!(
        first_words(&topics, "big.sealed"),
        ["small 0", "small 2", "small 4", "small 6"]
    );
    assert_eq!(first_words(&topics, "big.dead"), ["shrinks yyyyyyyy"]);
    let mut files: Vec<_> = std::fs::read_dir(folder.join("big/0"))
        .expect("the folder of the partition")
        .map(|entry| entry.expect("readable").path())
        .collect();
    files.sort();
    let sizes: Vec<_> = files.iter().map(|path| path.metadata().expect("there").len()).collect();
    assert_eq!(sizes, [200_007, 300_005, 6_000_007], "{files:?}");
    let _ = std::fs::remove_dir_all(&folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_folder_a_dead_letter_that_is_too_large_stops_the_pipeline_and_says_what_helps() {
    let Some(kafka) = Kafka::shared("oversize dead letters without a folder") else {
        return;
    };
    let topics = topics(kafka, "bigger", "100000");
    topics.produce("bigger", &[small(0), large("stays", 200_000)]);
    let stopped = run_to_end(with_letters(kafka, "bigger", None), options("bigger", "a", true)).await;
    let Err(error @ RunError::Stopped { .. }) = stopped else {
        panic!("{stopped:?}");
    };
    assert!(
        error
            .to_string()
            .contains("the dead letter of bigger/0/1 has 200006 bytes"),
        "{error}"
    );
    assert!(error.help().contains("dead_letters.oversize"), "{}", error.help());
    assert_eq!(topics.read_all("bigger.dead").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn small_records_whose_batch_is_too_large_for_the_target_are_sent_in_smaller_ones() {
    let Some(kafka) = Kafka::shared("batches larger than the target takes") else {
        return;
    };
    let topics = topics(kafka, "many", "3000");
    topics.produce("many", &(0..400).map(small).collect::<Vec<_>>());
    let mut config = with_letters(kafka, "many", None);
    config.target.properties = [("compression.codec".to_owned(), "none".to_owned())]
        .into_iter()
        .collect();
    let summary = run_to_end(config, options("many", "a", true))
        .await
        .expect("it goes on");
    assert_eq!((summary.records, summary.dead_letters), (400, 0));
    assert_eq!(first_words(&topics, "many.sealed"), first_words(&topics, "many"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_larger_than_the_producers_queue_is_set_aside_instead_of_tried_for_ever() {
    let Some(kafka) = Kafka::shared("records larger than the producer's queue") else {
        return;
    };
    let topics = topics(kafka, "queue", "8000000");
    topics.produce("queue", &[small(0), large("shrinks", 3_000_000), small(2)]);
    let mut config = with_letters(kafka, "queue", None);
    let limits = [("queue.buffering.max.kbytes", "1000"), ("compression.codec", "none")];
    config.target.properties = limits
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into_iter()
        .collect();
    let summary = run_to_end(config, options("queue", "a", true))
        .await
        .expect("it goes on");
    assert_eq!((summary.records, summary.dead_letters), (3, 1));
    assert_eq!(first_words(&topics, "queue.sealed"), ["small 0", "small 2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_fetched_ahead_of_a_refusal_come_once_and_in_order() {
    let Some(kafka) = Kafka::shared("records fetched ahead of a refusal") else {
        return;
    };
    let topics = topics(kafka, "ahead", "100000");
    let records: Vec<_> = (0..600)
        .map(|n| match n % 200 {
            50 => large("shrinks", 200_000),
            _ => small(n),
        })
        .collect();
    topics.produce("ahead", &records);
    let mut options = options("ahead", "a", true);
    // Small batches: at every refusal there is much that librdkafka has fetched and that no batch holds yet.
    options.batch.rows = 10;
    let summary = run_to_end(with_letters(kafka, "ahead", None), options)
        .await
        .expect("it goes on");
    assert_eq!((summary.records, summary.dead_letters), (600, 3));
    let mut expected = first_words(&topics, "ahead");
    expected.retain(|words| words.starts_with("small"));
    assert_eq!(first_words(&topics, "ahead.sealed"), expected);
    assert_eq!(topics.read_all("ahead.sealed").len(), 597);
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_over_an_aborted_transaction_says_that_records_were_given_up() {
    let Some(kafka) = Kafka::shared("draining over an aborted transaction") else {
        return;
    };
    let topics = topics(kafka, "drained", "100000");
    topics.produce("drained", &[large("bad", 200_000)]);
    // The partition's folder is a link to nowhere: it can be looked at and not written, so the letter's transaction is
    // aborted every time.
    let folder = std::env::temp_dir().join(format!("sealflow-nowhere-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("drained")).expect("a folder can be made");
    std::os::unix::fs::symlink(folder.join("gone"), folder.join("drained/0")).expect("a link can be made");
    let transform = Sorter::slow(800);
    let run = Running::start(
        with_letters(kafka, "drained", Some(&folder)),
        options("drained", "a", false),
        Arc::<Sorter>::clone(&transform),
    );
    // Refused once, the letter is on its way to the folder; the signal comes before it is there.
    until(
        || transform.calls.load(Ordering::Relaxed) >= 2 && Counters::get(&run.counters.aborts) == 1,
        || {
            format!(
                "{:?} calls, {} aborts",
                transform.calls,
                Counters::get(&run.counters.aborts)
            )
        },
    )
    .await;
    run.signal(Shutdown::Drain);
    let Err(error) = run.result().await else {
        panic!("it says that all is done");
    };
    assert!(error.to_string().contains("given up, not lost"), "{error}");
    assert_eq!(topics.read_all("drained.sealed").len(), 0);
    let _ = std::fs::remove_dir_all(&folder);
}
