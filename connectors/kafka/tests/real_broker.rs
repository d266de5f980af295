//! Pipelines on Apache Kafka: exactly once through stops, rebalances, fencing and a broker's crash.

#![allow(clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{Running, Sorter, config, dead_letters, options, run_to_end, until};
use sealflow::pipeline::Counters;
use sealflow_kafka::{KafkaConfig, RunError, Shutdown, check_topics};
use sealflow_testbed::{Kafka, Message, Topics, or_skip};

/// Numbered records over the partitions, in order within each.
fn numbered(partitions: u32, count: u32) -> Vec<Message> {
    let record = |n: u32| Message {
        partition: i32::try_from(n % partitions).expect("small"),
        key: Some(n.to_be_bytes().to_vec()),
        value: Some(format!("value {n} {}", "x".repeat(200)).into_bytes()),
        headers: vec![("n".into(), Some(n.to_le_bytes().to_vec()))],
        timestamp: Some(1_700_000_000_000 + i64::from(n)),
        ..Message::default()
    };
    (0..count).map(record).collect()
}

/// Source and target with the same partitions, the source filled.
fn filled(kafka: &Kafka, name: &str, partitions: u32, count: u32) -> Topics {
    let topics = kafka.topics();
    let sealed = format!("{name}.sealed");
    for topic in [name, &sealed] {
        topics.create(topic, i32::try_from(partitions).expect("small"), &[]);
    }
    topics.produce(name, &numbered(partitions, count));
    topics
}

/// Every record once, in order, in its partition, unchanged.
fn assert_same(topics: &Topics, source: &str, target: &str) {
    let without_offsets = |topic: &str| -> Vec<Message> {
        topics
            .read_all(topic)
            .into_iter()
            .map(|message| Message { offset: 0, ..message })
            .collect()
    };
    let (expected, found) = (without_offsets(source), without_offsets(target));
    assert_eq!(found.len(), expected.len(), "records in {target}");
    let first = expected.iter().zip(&found).position(|(a, b)| a != b);
    assert_eq!(first, None, "first difference");
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_records_pass_exactly_once_although_runs_are_cut_off() {
    let Some(kafka) = Kafka::shared("exactly once through stops") else {
        return;
    };
    let topics = filled(kafka, "cut", 3, 20_000);
    let config = config(&kafka.brokers(), &["cut"]);
    let slow = || Sorter::slow(15);
    let mut committed = 0;
    for cut in 1..=3 {
        let running = Running::start(config.clone(), options("cut", "a", false), slow());
        running.until_committed(2_000).await;
        running.signal(Shutdown::Stop);
        committed += running.result().await.expect("a stop is no error").records;
        assert!(committed < 20_000, "cut {cut} came too late");
    }
    let mut options = options("cut", "a", true);
    options.threads = 2;
    committed += run_to_end(config, options).await.expect("it runs").records;
    assert_eq!(committed, 20_000);
    assert_same(&topics, "cut", "cut.sealed");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_join_and_leave_and_every_record_passes_exactly_once() {
    let Some(kafka) = Kafka::shared("exactly once through rebalances") else {
        return;
    };
    let topics = filled(kafka, "shared", 3, 20_000);
    let config = config(&kafka.brokers(), &["shared"]);
    let member = |instance: &str, sorter: &Arc<Sorter>| {
        Running::start(config.clone(), options("shared", instance, false), sorter.clone())
    };
    let (slow, other) = (Sorter::slow(100), Sorter::slow(100));
    let first = member("a", &slow);
    first.until_committed(1_500).await;
    // From here on the first holds batches for long: it must finish them before it gives partitions away.
    slow.delay_ms.store(3_000, Ordering::Relaxed);
    let second = member("b", &other);
    second.until_committed(500).await;
    slow.delay_ms.store(100, Ordering::Relaxed);
    second.until_committed(1_500).await;
    assert!(
        Counters::get(&first.counters.rebalances) >= 2,
        "the first gave partitions away"
    );
    let left = second.drained().await.records;
    first.until_committed(20_000 - left).await;
    assert_eq!(first.drained().await.records + left, 20_000);
    assert_same(&topics, "shared", "shared.sealed");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_records_go_to_the_dead_letters_in_the_same_transaction_and_too_many_stop_the_pipeline() {
    let Some(kafka) = Kafka::shared("dead letters") else {
        return;
    };
    let topics = filled(kafka, "mixed", 3, 3_000);
    topics.create("mixed.dead", 2, &[]);
    let bad = |n: i32| Message {
        key: Some(b"clear".to_vec()),
        ..Message::new(n % 3, format!("bad {n}"))
    };
    topics.produce("mixed", &(0..30).map(bad).collect::<Vec<_>>());
    let mut config = config(&kafka.brokers(), &["mixed"]);

    let stopped = run_to_end(config.clone(), options("mixed-without", "a", true)).await;
    let reason = stopped.expect_err("there is no place for a dead letter").to_string();
    assert!(
        reason.contains("mixed/") && reason.contains("no dead letters"),
        "{reason}"
    );

    config.dead_letters = dead_letters("mixed.dead", 0.05);
    let summary = run_to_end(config.clone(), options("mixed", "a", true))
        .await
        .expect("1 % is below 5 %");
    assert_eq!((summary.records, summary.dead_letters), (3_030, 30));
    let dead = topics.read_all("mixed.dead");
    assert_eq!(dead.len(), 30);
    assert!(
        dead.iter().all(|message| message.key.is_none()),
        "dead letters have no key"
    );
    let of_partition_1 = dead.iter().filter(|message| message.partition == 1).count();
    assert_eq!(of_partition_1, 10, "source partition modulo the count");

    topics.produce("mixed", &(0..2_000).map(bad).collect::<Vec<_>>());
    let again = config.clone();
    let stopped = run_to_end(config, options("mixed", "a", true)).await;
    assert!(
        matches!(&stopped, Err(RunError::Stopped { reason, .. }) if reason.contains("max_ratio")),
        "{stopped:?}"
    );
    let after = topics.read_all("mixed.dead").len();
    assert!(after < 1_030, "the batch that passed the limit was written: {after}");

    // A restart does not forget: it stops before a single record more is set aside.
    let again = run_to_end(again, options("mixed", "a", true)).await;
    assert!(
        matches!(&again, Err(RunError::Stopped { reason, .. }) if reason.contains("max_ratio")),
        "{again:?}"
    );
    assert_eq!(topics.read_all("mixed.dead").len(), after);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_of_the_same_instance_fences_the_first() {
    let Some(kafka) = Kafka::shared("fencing") else { return };
    let topics = filled(kafka, "fenced", 3, 9_000);
    let config = config(&kafka.brokers(), &["fenced"]);
    let slow = || Sorter::slow(100);
    let zombie = Running::start(config.clone(), options("fenced", "a", false), slow());
    zombie.until_committed(1_000).await;
    let heir = Running::start(config, options("fenced", "a", true), slow());
    let error = zombie.result().await.expect_err("the first is fenced");
    assert!(
        matches!(&error, RunError::Fenced { instance } if instance == "a"),
        "{error}"
    );
    heir.result().await.expect("the second goes on");
    assert_same(&topics, "fenced", "fenced.sealed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_reads_what_matches_and_creates_targets_with_the_same_partition_counts() {
    let Some(kafka) = Kafka::shared("patterns") else { return };
    let topics = kafka.topics();
    for (topic, partitions) in [("pat-one", 2), ("pat-two", 3), ("xpat-three", 1)] {
        topics.create(topic, partitions, &[]);
        topics.produce(topic, &numbered(u32::try_from(partitions).expect("small"), 500));
    }
    let mut config = config(&kafka.brokers(), &[]);
    config.source.pattern = Some("pat-.*".into());
    let missing = config.clone();
    let checked = tokio::task::spawn_blocking(move || check_topics(&missing, Duration::from_secs(10))).await;
    let findings = checked.expect("no panic").expect("the broker answers");
    assert!(
        findings
            .iter()
            .any(|finding| finding.help.contains("create it with 3 partitions")),
        "{findings:?}"
    );

    config.target.create = true;
    // The second time, the targets exist and match the pattern too: they must not be read.
    for expected in [1_000, 0] {
        let summary = run_to_end(config.clone(), options("patterns", "a", true))
            .await
            .expect("it runs");
        assert_eq!(summary.records, expected);
    }
    assert_eq!(
        (topics.partitions("pat-one.sealed"), topics.partitions("pat-two.sealed")),
        (2, 3)
    );
    assert_eq!(
        topics.partitions("pat-one.sealed.sealed") + topics.partitions("xpat-three.sealed"),
        0
    );
    assert_same(&topics, "pat-one", "pat-one.sealed");
    assert_same(&topics, "pat-two", "pat-two.sealed");
}

#[tokio::test(flavor = "multi_thread")]
async fn aborted_records_and_gaps_in_offsets_are_passed_over() {
    let Some(kafka) = Kafka::shared("gaps") else { return };
    let topics = filled(kafka, "gaps", 2, 1_000);
    // A pipeline's target is a source full of transaction markers.
    run_to_end(config(&kafka.brokers(), &["gaps"]), options("gaps", "a", true))
        .await
        .expect("it runs");
    topics.create("gaps.sealed.sealed", 2, &[]);
    topics.produce_aborted("gaps.sealed", &numbered(2, 100));
    let again = config(&kafka.brokers(), &["gaps.sealed"]);
    let summary = run_to_end(again.clone(), options("gaps-again", "a", true))
        .await
        .expect("it ends");
    assert_eq!(summary.records, 1_000);
    assert_same(&topics, "gaps", "gaps.sealed.sealed");
    let summary = run_to_end(again, options("gaps-again", "a", true))
        .await
        .expect("it ends with nothing to do");
    assert_eq!(summary.records, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_larger_than_the_target_takes_stops_the_pipeline_with_its_position() {
    let Some(kafka) = Kafka::shared("large records") else {
        return;
    };
    let topics = kafka.topics();
    // Noise (xorshift), so that compression does not make it small.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    let noise: Vec<u8> = (0..2_000_000).map(|_| next()).collect();
    topics.create("larger", 1, &[("max.message.bytes", "4000000")]);
    topics.create("larger.sealed", 1, &[]);
    topics.produce("larger", &[Message::new(0, "small"), Message::new(0, noise)]);
    let stopped = run_to_end(config(&kafka.brokers(), &["larger"]), options("larger", "a", true)).await;
    let Err(RunError::Stopped { reason, help, .. }) = stopped else {
        panic!("{stopped:?}")
    };
    assert!(
        reason.contains("larger/0/1") && reason.contains("2000000 bytes"),
        "{reason}"
    );
    assert!(help.contains("max.message.bytes"), "{help}");
    assert_eq!(topics.read_all("larger.sealed").len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_deleted_before_they_were_read_stop_the_pipeline_instead_of_being_skipped() {
    let Some(kafka) = Kafka::shared("lost records") else {
        return;
    };
    let topics = filled(kafka, "lost", 1, 1_000);
    let config = config(&kafka.brokers(), &["lost"]);
    let running = Running::start(config.clone(), options("lost", "a", false), Arc::new(Sorter::default()));
    running.until_committed(1_000).await;
    running.drained().await;
    topics.produce("lost", &numbered(1, 10));
    topics.delete_before("lost", 0, 1_005);
    let stopped = run_to_end(config, options("lost", "a", true)).await;
    assert!(
        matches!(&stopped, Err(RunError::Stopped { reason, .. }) if reason.contains("deleted")),
        "{stopped:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_crashes_and_comes_back_costs_no_record_and_repeats_none() {
    let Some(mut kafka) = or_skip("broker crash", Kafka::start()) else {
        return;
    };
    let topics = filled(&kafka, "crash", 3, 12_000);
    let config: KafkaConfig = config(&kafka.brokers(), &["crash"]);
    let slow = Sorter::slow(50);
    let running = Running::start(config, options("crash", "a", true), slow);
    running.until_committed(2_000).await;
    kafka.crash();
    tokio::time::sleep(Duration::from_secs(1)).await;
    kafka.resume().expect("the broker comes back");
    let summary = running.result().await.expect("it goes on");
    assert_eq!(summary.records, 12_000);
    assert_same(&topics, "crash", "crash.sealed");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_service_is_away_partitions_stay_assigned_and_no_transaction_is_open() {
    let Some(kafka) = Kafka::shared("service away") else {
        return;
    };
    let topics = filled(kafka, "away", 2, 4_000);
    let sorter = Arc::new(Sorter::default());
    sorter.away.store(true, Ordering::Relaxed);
    let running = Running::start(
        config(&kafka.brokers(), &["away"]),
        options("away", "a", true),
        sorter.clone(),
    );
    let waiting = || Counters::get(&running.counters.waiting);
    until(|| waiting() > 0, || "no batch waits".into()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        topics.high_watermarks("away.sealed"),
        [0, 0],
        "nothing was written, not even uncommitted"
    );
    assert!(!running.counters.is_ready());
    let rebalances = Counters::get(&running.counters.rebalances);
    sorter.away.store(false, Ordering::Relaxed);
    assert_eq!(running.result().await.expect("it goes on").records, 4_000);
    assert_eq!(rebalances, 1, "the assignment at start and no other");
    let partitions: BTreeSet<i32> = topics
        .read_all("away.sealed")
        .iter()
        .map(|message| message.partition)
        .collect();
    assert_eq!(partitions, BTreeSet::from([0, 1]));
    assert_same(&topics, "away", "away.sealed");
}
