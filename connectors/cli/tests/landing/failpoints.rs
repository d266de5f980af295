//! A landing dies at every step between its intent and its commit: every record is in a file once.

use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use sealflow_kafka::failpoints::LANDING_STEPS;

use crate::bench::Bench;

const RECORDS: u64 = 6_000;

#[test]
fn at_every_step_from_intent_to_commit_a_landing_may_die_and_every_record_is_in_a_file_once() {
    let Some(bench) = Bench::new("land-steps", None) else {
        return;
    };
    bench.produce(37, RECORDS, 60);
    let file = bench.pipeline("a", "roll: { after: 1h, rows: 150 }", "batch: { rows: 100 }");
    for step in LANDING_STEPS {
        // The second time: some partitions are further than others. What follows an unfinished intent may come once only.
        let follows = ["land-look", "land-probe", "land-rebuild"].contains(&step);
        let before = if follows { "" } else { "1*off->" };
        let running = bench.start_failing(&file, &format!("{step}={before}1*return(abort)"));
        let (status, log) = running.wait(Duration::from_secs(60));
        assert_eq!(status.signal(), Some(6), "{step}: {status}:\n{log}");
    }
    let mut group = bench.group();
    assert!(group.committed() < RECORDS, "some records are left for what follows");
    bench.run_to_end(&file, Duration::from_secs(90));
    bench.expect_exact(RECORDS);
    bench.expect_no_plaintext(37);
}

#[test]
fn a_source_that_no_longer_holds_what_an_intent_promises_stops_the_landing() {
    let name = "land-gone";
    let Some(bench) = Bench::new(name, None) else { return };
    bench.produce(41, 600, 1);
    let file = bench.pipeline("a", "roll: { after: 1h }", "");
    let running = bench.start_failing(&file, "land-before-finish=1*return(abort)");
    let (status, log) = running.wait(Duration::from_secs(60));
    assert_eq!(status.signal(), Some(6), "{status}:\n{log}");
    assert!(bench.files().is_empty(), "none is finished");
    for partition in 0..crate::bench::PARTITIONS {
        bench.topics.delete_before(name, partition, 5);
    }
    let (status, log) = bench.start(&file, &["--until-end"]).wait(Duration::from_secs(60));
    assert_eq!(status.code(), Some(65), "{log}");
    assert!(log.contains("the source no longer holds"), "{log}");
    assert!(bench.files().is_empty(), "nothing was made of what is left");
    bench.expect_no_plaintext(41);
}

#[test]
fn what_a_killed_landing_was_about_to_give_up_is_landed_by_somebody_although_it_comes_back_as_the_same_member() {
    let Some(bench) = Bench::new("land-unread", None) else {
        return;
    };
    // Its session outlives everything that is waited for: no member is dropped, and so none is looked for.
    let file = |instance: &str| {
        let file = bench.pipeline(instance, "roll: { after: 1s }", "");
        let yaml = std::fs::read_to_string(&file).unwrap();
        let long = yaml.replace(r#"session.timeout.ms: "6000""#, r#"session.timeout.ms: "300000""#);
        assert_ne!(long, yaml);
        std::fs::write(&file, long.replace("threads: 2", "threads: 1")).unwrap();
        file
    };
    let (first, second) = (file("a"), file("b"));
    let mut dying = bench.start_dying(&first, "revoked=1*return(abort)");
    let patience = Duration::from_secs(60);
    let until = Instant::now() + patience;
    while !dying.read_log().contains("partitions assigned") {
        assert!(Instant::now() < until, "{}", dying.last_lines());
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut joining = bench.start(&second, &[]);
    while dying.ended().is_none() {
        assert!(Instant::now() < until, "{}", joining.last_lines());
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut back = bench.start(&first, &[]);
    bench.produce(43, RECORDS, 60);
    let mut group = bench.group();
    bench.wait_until(patience, &mut [&mut back, &mut joining], || {
        group.committed() >= RECORDS
    });
    let logs = back.read_log() + &joining.read_log();
    assert!(
        logs.contains("that the group gave to nobody"),
        "or nothing was tested:\n{logs}"
    );
    for instance in [back, joining] {
        instance.kill();
    }
    bench.expect_exact(RECORDS);
}
