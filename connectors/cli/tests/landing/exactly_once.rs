//! Every record in files exactly once: under `SIGKILL`, rebalances, and a store that fails.

use std::time::{Duration, Instant};

use sealflow_testbed::{HttpFault, HttpRule, Instance, When};
use serde_json::json;

use crate::bench::{Bench, Bucket, setting};

/// What S3 does to its callers, and what lies between: one request in a few.
fn faults(seed: u64) -> Vec<HttpRule> {
    let rule = |method, path, one_in, n: u64, fault| HttpRule {
        method,
        path,
        when: When::OneIn(one_in, seed + n),
        fault,
    };
    let slow_down = HttpFault::Answer {
        status: 503,
        code: "SlowDown",
    };
    let broken = HttpFault::Answer {
        status: 500,
        code: "InternalError",
    };
    let conflict = HttpFault::Answer {
        status: 409,
        code: "ConditionalRequestConflict",
    };
    let too_late = HttpFault::AnswerInstead {
        status: 503,
        code: "SlowDown",
    };
    vec![
        rule("", "", 31, 1, slow_down),
        rule("", "", 41, 2, HttpFault::Delay(Duration::from_millis(700))),
        rule("GET", "", 23, 3, HttpFault::CutAnswer),
        rule("PUT", "", 19, 4, HttpFault::LoseAnswer),
        rule("PUT", "", 23, 5, HttpFault::LoseRequest),
        rule("PUT", "", 29, 6, conflict),
        rule("PUT", "", 29, 7, too_late.clone()),
        // Parts of large files, and what makes them whole.
        rule("PUT", "partNumber=", 9, 8, broken.clone()),
        rule("POST", "uploadId=", 3, 9, too_late),
        rule("POST", "uploads", 7, 10, broken),
    ]
}

#[test]
fn every_record_lands_once_in_a_bucket_that_fails_under_kills_and_a_rebalance() {
    let Some(bucket) = Bucket::new("landing-s3") else {
        return;
    };
    let Some(bench) = Bench::new("land-s3", Some(bucket)) else {
        return;
    };
    let records = setting("SEALFLOW_LANDING_RECORDS", 100_000);
    let kills = setting("SEALFLOW_LANDING_KILLS", 3);
    let seed = setting("SEALFLOW_LANDING_SEED", 23);
    let started = Instant::now();
    bench.produce(seed, records, 1);
    bench.bucket().proxy.set(faults(seed));
    let file = bench.pipeline("a", "roll: { after: 4s, rows: 10000 }, compression: none", "");
    let mut group = bench.group();
    let patience = Duration::from_secs(180 + records / 250);
    for kill in 1..=kills {
        let mut running = bench.start(&file, &[]);
        let goal = records * kill / (kills + 2);
        bench.wait_until(patience, &mut [&mut running], || group.committed() >= goal);
        running.kill();
    }
    // A second instance comes while the first one works, and the first one is told to go; then all of S3 is away for a while.
    let mut first = bench.start(&file, &[]);
    let mut second = bench.start(
        &bench.pipeline("b", "roll: { after: 5s, rows: 10000 }, compression: none", ""),
        &[],
    );
    let before_last = records * (2 * kills + 3) / (2 * kills + 4);
    bench.wait_until(patience, &mut [&mut first, &mut second], || {
        group.committed() >= before_last
    });
    first.terminate();
    let (status, log) = first.wait(Duration::from_secs(90));
    assert!(status.success(), "{status}:\n{log}");
    let mut felt = bench.bucket().proxy.felt();
    bench.bucket().proxy.set(vec![HttpRule {
        method: "",
        path: "",
        when: When::Always,
        fault: HttpFault::Answer {
            status: 503,
            code: "ServiceUnavailable",
        },
    }]);
    std::thread::sleep(Duration::from_secs(4));
    assert!(second.ended().is_none(), "it waits:\n{}", second.read_log());
    bench.bucket().proxy.set(faults(seed + 100));
    bench.wait_until(patience, &mut [&mut second], || group.committed() >= records);
    second.terminate();
    let (status, log) = second.wait(Duration::from_secs(90));
    assert!(status.success(), "{status}:\n{log}");

    let elapsed = started.elapsed();
    felt += bench.bucket().proxy.felt();
    assert!(felt > 20, "{felt} faults");
    bench.bucket().proxy.set(Vec::new());
    let landed = bench.expect_exact(records);
    assert!(
        landed.largest > 8 << 20,
        "some files take several parts: {}",
        landed.largest
    );
    assert!(landed.days.len() > 1, "{:?}", landed.days);
    bench.expect_no_plaintext(seed);
    let dead = bench.topics.high_watermarks("land-s3.dead");
    assert_eq!(dead.iter().sum::<i64>(), 0);
    sealflow_testbed::report(&json!({
        "name": "landing in a bucket", "records": records, "kills": kills, "files": landed.files, "bytes": landed.bytes,
        "faults_felt": felt, "seconds": elapsed.as_secs(),
    }));
}

#[test]
fn every_record_lands_once_in_a_folder_by_the_time_of_its_event_and_verify_finds_no_gap() {
    let Some(bench) = Bench::new("land", None) else { return };
    let (records, seed) = (20_000, 29);
    bench.produce(seed, records, 5);
    let table =
        "partition_by: { event_time: time, max_skew: 2h }, roll: { after: 500ms, rows: 500 }, compression: snappy";
    let batch = "batch: { rows: 250 }";
    let file = bench.pipeline("a", table, batch);
    let mut group = bench.group();
    let patience = Duration::from_secs(180);
    let mut running = bench.start(&file, &[]);
    bench.wait_until(patience, &mut [&mut running], || group.committed() >= records / 3);
    running.kill();
    let other = bench.pipeline("b", table, batch);
    let mut both: [Instance; 2] = [bench.start(&file, &[]), bench.start(&other, &[])];
    let [first, second] = &mut both;
    bench.wait_until(patience, &mut [first, second], || group.committed() >= records);
    for running in both {
        running.terminate();
        let (status, log) = running.wait(Duration::from_secs(60));
        assert!(status.success(), "{status}:\n{log}");
    }
    let landed = bench.expect_exact(records);
    assert!(landed.days.len() > 1, "{:?}", landed.days);
    bench.expect_no_plaintext(seed);
    // As an operator looks.
    let (ran, text) = bench.verify(&file);
    assert!(ran.success(), "{text}");
    // A file less, that is neither the first nor the last of its partition, is a gap.
    let files = bench.files();
    let of_first: Vec<_> = files.keys().filter(|path| path.contains("/00000-")).collect();
    assert!(of_first.len() >= 3, "{of_first:?}");
    std::fs::rename(of_first[1], format!("{}.away", of_first[1])).unwrap();
    let (ran, text) = bench.verify(&file);
    // Its name says where it begins: at 500, unless the first file was closed by time.
    let name = of_first[1].rsplit('/').next().unwrap();
    let start: i64 = name.split('-').nth(1).unwrap().parse().unwrap();
    assert!(
        start > 0 && text.contains(&format!("not there: {start}–")),
        "{ran}: {name}: {text}"
    );
}
