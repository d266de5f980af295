//! Every record once, in order, at its partition, byte for byte outside the sealed fields: under `SIGKILL`.

use std::time::{Duration, Instant};

use sealflow_testbed::{Expected, KEY_ARN, Kafka, Site, Tally, Topics, check_opened, check_sealed};
use serde_json::json;

use crate::support::{self, PARTITIONS, Running, pipeline, progress, run_to_end, setting};

const NAME: &str = "once";

#[test]
fn every_record_passes_once_in_order_and_comes_back_byte_for_byte_under_kills() {
    let Some(kafka) = Kafka::shared("exactly once on a real broker") else {
        return;
    };
    let records = setting("SEALFLOW_E2E_RECORDS", 100_000);
    let kills = setting("SEALFLOW_E2E_KILLS", 3);
    let seed = setting("SEALFLOW_E2E_SEED", 11);
    let started = Instant::now();
    let topics = kafka.topics();
    support::create_topics(&topics, NAME);
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, sealflow_samples::POLICY_YAML);
    assert!(sealflow_samples::POLICY_YAML.contains(KEY_ARN));
    let expected = Expected::new(seed, records, PARTITIONS);
    let settings = [("batch.num.messages", "100"), ("compression.codec", "zstd")];
    topics.produce_with(NAME, expected.messages(), &settings);

    let patience = Duration::from_secs(120 + records / 1_000);
    let seal = pipeline(&site, NAME, "seal", "");
    kill_on_the_way(&site, &topics, &seal, "sealed", records, kills, patience);
    run_to_end(&site, &seal, patience);
    let sealed_after = started.elapsed();
    let sealed = expected.tally(|each| topics.read_each(&format!("{NAME}.sealed"), each), check_sealed);
    assert!(sealed.is_exact(records), "{sealed:?}");

    let open = pipeline(&site, NAME, "open", "");
    kill_on_the_way(&site, &topics, &open, "opened", records, kills.min(2), patience);
    run_to_end(&site, &open, patience);
    let opened = expected.tally(|each| topics.read_each(&format!("{NAME}.opened"), each), check_opened);
    assert!(opened.is_exact(records), "{opened:?}");
    assert_eq!(progress(&topics, &format!("{NAME}.dead")), 0);
    report(records, kills, [&sealed, &opened], sealed_after, started.elapsed());
}

/// Kills the pipeline `kills` times, each after it has moved on by another share of the records.
fn kill_on_the_way(
    site: &Site,
    topics: &Topics,
    file: &std::path::Path,
    suffix: &str,
    records: u64,
    kills: u64,
    patience: Duration,
) {
    let target = format!("{NAME}.{suffix}");
    for kill in 1..=kills {
        let mut running = Running::start(site, "pipeline", file, &[]);
        let (goal, until) = (records * kill / (kills + 1), Instant::now() + patience);
        while progress(topics, &target) < goal {
            assert!(running.ended().is_none(), "ended by itself:\n{}", running.read_log());
            assert!(Instant::now() < until, "no progress:\n{}", running.read_log());
            std::thread::sleep(Duration::from_millis(20));
        }
        running.kill();
    }
}

fn report(records: u64, kills: u64, [sealed, opened]: [&Tally; 2], sealed_after: Duration, all: Duration) {
    sealflow_testbed::report(&json!({
        "name": "exactly once, Kafka to Kafka and back",
        "records": records,
        "kills_sealing": kills,
        "kills_opening": kills.min(2),
        "sealed": sealed.to_json(),
        "opened": opened.to_json(),
        "seconds_sealing": sealed_after.as_secs(),
        "seconds": all.as_secs(),
    }));
}
