//! KMS and catalogue: slow, cut, answering noise, gone, full. Nothing leaves meanwhile, nothing is lost, and nobody
//! has to restart anything (G7).

use std::time::{Duration, Instant};

use sealflow_testbed::{Mode, SmallDisk, or_skip};

use crate::bench::{Bench, RECOVERY, Setup, admin, cluster, expect_memory, status};

/// Records per portion, and how long one is watched not to pass.
const PORTION: u64 = 300;
const REST: Duration = Duration::from_secs(2);
/// What a process with small records may have resident: see "Memory" in docs/operations.md.
const BOUND_MIB: u64 = 256;

/// A pipeline whose data key lives a second, so that every portion needs a new one.
fn impatient() -> Setup {
    Setup {
        max_age: Some("1s"),
        ..Setup::default()
    }
}

#[test]
fn a_kms_that_takes_five_seconds_slows_the_pipeline_and_stops_nothing_else() {
    let Some(cluster) = cluster("a slow KMS") else { return };
    let (port, line) = admin();
    let setup = Setup {
        more: line,
        // Longer than an answer takes; with less than that a slow KMS is one that is away.
        kms: "timeout: 15s".into(),
        ..Setup::default()
    };
    let mut bench = Bench::new(&cluster, "slow-kms", PORTION, setup);
    bench.publish();
    bench.produce(PORTION);
    // Each of request and answer waits for half of it.
    bench.site.kms_proxy().set(Mode::Latency(Duration::from_millis(2_500)));
    let started = Instant::now();
    let mut instance = bench.start("a");
    bench.expect_rest(0, &mut instance, REST);
    assert_eq!(status(port, "/livez"), Some(200), "{}", instance.last_lines());
    bench.wait_for(PORTION, RECOVERY, |_| {});
    assert!(started.elapsed() >= Duration::from_secs(5));
    assert_eq!(status(port, "/readyz"), Some(200));
    let calls = bench.site.kms().requests("GenerateDataKey");
    assert!(calls <= 3, "{calls} calls for one key: a stampede");
    expect_memory("slow KMS", instance.peak_memory_kib().unwrap(), BOUND_MIB);
    bench.expect_exact();
}

#[test]
fn a_kms_that_is_cut_off_or_talks_noise_lets_nothing_out_and_nothing_get_lost() {
    let Some(cluster) = cluster("a KMS cut off, or talking noise") else {
        return;
    };
    let mut bench = Bench::new(&cluster, "cut-kms", 3 * PORTION, impatient());
    bench.publish();
    let mut instance = bench.start("a");
    bench.produce(PORTION);
    bench.wait_for(PORTION, RECOVERY, |_| {});
    for mode in [Mode::Cut, Mode::Garbage { one_in: 3 }] {
        bench.site.kms_proxy().set(mode);
        // The key's age.
        std::thread::sleep(Duration::from_millis(1_200));
        let before = bench.written();
        bench.produce(PORTION);
        bench.expect_rest(before, &mut instance, REST);
        bench.site.kms_proxy().set(Mode::Pass);
        let goal = bench.written();
        bench.wait_for(goal, RECOVERY, |_| {});
    }
    expect_memory("KMS cut", instance.peak_memory_kib().unwrap(), BOUND_MIB);
    bench.expect_exact();
}

#[test]
fn a_catalogue_that_is_away_or_full_lets_nothing_out_and_nothing_get_lost() {
    let Some(cluster) = cluster("a catalogue away, or full") else {
        return;
    };
    let mut bench = Bench::new(&cluster, "catalogue", 3 * PORTION, impatient());
    let catalogue = bench.site.catalogue();
    let disk = or_skip("full disk in the catalogue", SmallDisk::mount(&catalogue, 256));
    bench.publish();
    let mut instance = bench.start("a");
    bench.produce(PORTION);
    bench.wait_for(PORTION, RECOVERY, |_| {});

    // A folder that leads nowhere, as one on a server that is gone: root cannot write there either. (A file in its
    // place is a mistake and no outage, and ends the pipeline.)
    let (keys, aside) = (catalogue.join("keys"), catalogue.join("aside"));
    std::fs::rename(&keys, &aside).unwrap();
    std::os::unix::fs::symlink("keys", &keys).unwrap();
    std::thread::sleep(Duration::from_millis(1_200));
    bench.produce(PORTION);
    bench.expect_rest(PORTION, &mut instance, REST);
    std::fs::remove_file(&keys).unwrap();
    std::fs::rename(&aside, &keys).unwrap();
    bench.wait_for(2 * PORTION, RECOVERY, |_| {});

    if let Some(disk) = &disk {
        disk.fill();
        assert!(disk.is_full());
        std::thread::sleep(Duration::from_millis(1_200));
    }
    bench.produce(PORTION);
    if let Some(disk) = &disk {
        bench.expect_rest(2 * PORTION, &mut instance, REST);
        disk.free();
    }
    bench.wait_for(3 * PORTION, RECOVERY, |_| {});
    expect_memory("catalogue away", instance.peak_memory_kib().unwrap(), BOUND_MIB);
    bench.expect_exact();
}
