//! Pipelines on librdkafka's mock cluster: what a record keeps on its way. Transactions are not proved here,
//! as the mock does not store their offsets.

#![allow(clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Running, Sorter, config, options, run_to_end, until};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use sealflow::pipeline::Counters;
use sealflow_kafka::{Level, RunError, Shutdown, check_topics};
use sealflow_testbed::{Message, Topics};

struct Mock {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl Mock {
    fn with(topics: &[(&str, i32)]) -> Self {
        let cluster = MockCluster::new(1).expect("a mock cluster starts");
        for (topic, partitions) in topics {
            cluster
                .create_topic(topic, *partitions, 1)
                .expect("a mock topic is created");
        }
        Self { cluster }
    }

    fn brokers(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    fn topics(&self) -> Topics {
        Topics::at(&self.brokers())
    }
}

fn numbered(partitions: i32, count: u32) -> Vec<Message> {
    let partition = |n: u32| i32::try_from(n).expect("small") % partitions;
    (0..count)
        .map(|n| Message::new(partition(n), format!("value {n}")))
        .collect()
}

/// Offsets differ at the target, as transaction markers take some.
fn without_offsets(mut messages: Vec<Message>) -> Vec<Message> {
    for message in &mut messages {
        message.offset = 0;
    }
    messages
}

#[tokio::test(flavor = "multi_thread")]
async fn records_keep_order_partition_key_headers_timestamp_and_tombstones() {
    let mock = Mock::with(&[("in", 3), ("in.sealed", 3)]);
    let mut messages = numbered(3, 2_000);
    for (n, message) in messages.iter_mut().enumerate() {
        message.timestamp = Some(1_700_000_000_000 + n as i64 * 7);
        message.key = [None, Some(Vec::new()), Some(b"\0key\xff".to_vec())][n % 3].clone();
        if n % 5 == 0 {
            message.headers = vec![
                ("h".into(), Some(b"1".to_vec())),
                ("null".into(), None),
                ("h".into(), Some(Vec::new())),
                ("\u{e9}".into(), Some(b"\0\xff".to_vec())),
            ];
        }
        match n % 11 {
            0 => message.value = None,
            1 => message.value = Some(Vec::new()),
            _ => {}
        }
    }
    mock.topics().produce("in", &messages);
    let summary = run_to_end(config(&mock.brokers(), &["in"]), options("keeps", "a", true))
        .await
        .expect("it runs");
    assert_eq!((summary.records, summary.dead_letters), (2_000, 0));
    let (source, target) = (mock.topics().read_all("in"), mock.topics().read_all("in.sealed"));
    assert_eq!(source.len(), 2_000);
    assert_eq!(without_offsets(target), without_offsets(source));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_thread_groups_share_the_partitions() {
    let mock = Mock::with(&[("in", 4), ("in.sealed", 4)]);
    mock.topics().produce("in", &numbered(4, 4_000));
    let mut options = options("shares", "a", true);
    options.threads = 2;
    let summary = run_to_end(config(&mock.brokers(), &["in"]), options)
        .await
        .expect("it runs");
    let target = mock.topics().read_all("in.sealed");
    // Without stored offsets a rebalance of the mock may repeat records; none may be missing.
    assert!(summary.records >= 4_000);
    let mut values: Vec<_> = target
        .into_iter()
        .map(|message| (message.partition, message.value))
        .collect();
    values.sort();
    values.dedup();
    assert_eq!(values.len(), 4_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_service_is_away_nothing_is_written_and_nothing_is_lost() {
    let mock = Mock::with(&[("in", 1), ("in.sealed", 1)]);
    mock.topics().produce("in", &numbered(1, 5_000));
    let sorter = Arc::new(Sorter::default());
    sorter.away.store(true, Ordering::Relaxed);
    let running = Running::start(
        config(&mock.brokers(), &["in"]),
        options("waits", "a", true),
        sorter.clone(),
    );
    let waiting = || Counters::get(&running.counters.waiting);
    until(|| waiting() == 3, || format!("{} batches wait", waiting())).await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert!(!running.counters.is_ready());
    assert_eq!(running.committed(), 0);
    let read = Counters::get(&running.counters.records_read);
    assert!(
        read <= 2_500,
        "{read} records are held: reading must stop after a few batches of 500"
    );
    sorter.away.store(false, Ordering::Relaxed);
    let summary = running.result().await.expect("it runs");
    assert_eq!(summary.records, 5_000);
    assert_eq!(mock.topics().read_all("in.sealed").len(), 5_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_does_not_wait_for_ever_for_a_service_that_is_away() {
    let mock = Mock::with(&[("in", 1), ("in.sealed", 1)]);
    mock.topics().produce("in", &numbered(1, 100));
    let sorter = Arc::new(Sorter::default());
    sorter.away.store(true, Ordering::Relaxed);
    let running = Running::start(
        config(&mock.brokers(), &["in"]),
        options("gives-up", "a", false),
        sorter.clone(),
    );
    let waiting = || Counters::get(&running.counters.waiting);
    until(|| waiting() > 0, || "nothing waits".into()).await;
    running.signal(Shutdown::Drain);
    let ended = tokio::time::timeout(Duration::from_secs(30), running.result()).await;
    let error = ended.expect("it ends by itself").expect_err("its work is not done");
    assert!(error.to_string().contains("while a service is away"), "{error}");
    assert!(mock.topics().read_all("in.sealed").is_empty());

    sorter.away.store(false, Ordering::Relaxed);
    let summary = run_to_end(config(&mock.brokers(), &["in"]), options("gives-up", "a", true)).await;
    assert_eq!(summary.expect("it runs").records, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_abort_everything_dropped_is_read_again() {
    let mock = Mock::with(&[("in", 2), ("in.sealed", 2)]);
    mock.topics().produce("in", &numbered(2, 6_000));
    // The group's coordinator refuses the first offsets: such a transaction must be aborted.
    let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION; 2];
    mock.cluster.request_errors(RDKafkaApiKey::TxnOffsetCommit, &refusals);
    let summary = run_to_end(config(&mock.brokers(), &["in"]), options("aborts", "a", true))
        .await
        .expect("it runs");
    assert_eq!((summary.records, summary.aborts), (6_000, 2));
    // The mock shows aborted records too, so some values are there twice; all must be there, last in order.
    let of = |messages: Vec<Message>, partition| -> Vec<_> {
        messages
            .into_iter()
            .filter(|m| m.partition == partition)
            .map(|m| m.value)
            .collect()
    };
    for partition in 0..2 {
        let expected = of(numbered(2, 6_000), partition);
        let found = of(mock.topics().read_all("in.sealed"), partition);
        assert!(found.len() > expected.len(), "aborted records are visible on the mock");
        assert_eq!(found[found.len() - expected.len()..], expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_commits_what_is_held_and_a_stop_does_not() {
    let mock = Mock::with(&[("in", 1), ("in.sealed", 1)]);
    mock.topics().produce("in", &numbered(1, 100));
    let slow = Sorter::slow(700);
    let running = Running::start(
        config(&mock.brokers(), &["in"]),
        options("drains", "a", false),
        slow.clone(),
    );
    until(|| slow.calls.load(Ordering::Relaxed) > 0, || "no batch".into()).await;
    assert_eq!(running.drained().await.records, 100);

    slow.calls.store(0, Ordering::Relaxed);
    let running = Running::start(
        config(&mock.brokers(), &["in"]),
        options("stops", "a", false),
        slow.clone(),
    );
    until(|| slow.calls.load(Ordering::Relaxed) > 0, || "no batch".into()).await;
    running.signal(Shutdown::Stop);
    assert_eq!(running.result().await.expect("a stop is no error").records, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_topic_and_another_partition_count_are_refused_with_their_key_path() {
    let mock = Mock::with(&[("in", 3), ("in.sealed", 2)]);
    let refused = |topic: &str| {
        let config = config(&mock.brokers(), &[topic]);
        tokio::task::spawn_blocking(move || check_topics(&config, Duration::from_secs(10)))
    };
    let findings = refused("in").await.expect("no panic").expect("the broker answers");
    let bad: Vec<_> = findings
        .iter()
        .filter(|finding| finding.level == Level::Failure)
        .collect();
    assert_eq!(bad.len(), 1);
    assert_eq!(bad[0].path, "target.kafka.topic");
    assert_eq!(bad[0].message, "topic in.sealed has 2 partitions, but in has 3");

    let findings = refused("absent").await.expect("no panic").expect("the broker answers");
    assert!(
        findings
            .iter()
            .any(|f| f.level == Level::Failure && f.path == "source.kafka.topics[0]")
    );

    let run = run_to_end(config(&mock.brokers(), &["in"]), options("refused", "a", true)).await;
    assert!(matches!(run, Err(RunError::Config(error)) if error.path == "target.kafka.topic"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_does_not_answer_is_unavailable() {
    let address = format!("127.0.0.1:{}", sealflow_testbed::free_port());
    let config = config(&address, &["in"]);
    let checked = tokio::task::spawn_blocking(move || check_topics(&config, Duration::from_secs(2))).await;
    let error = checked.expect("no panic").expect_err("nobody answers");
    assert!(matches!(error, RunError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}
