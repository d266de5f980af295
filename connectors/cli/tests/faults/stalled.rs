//! A sink that takes nothing while the source goes on: reading stops at the bound, and goes on afterwards.

use std::time::Duration;

use sealflow_testbed::Mode;

use crate::bench::{Bench, RECOVERY, Setup, admin, cluster_to_break, expect_memory, setting, status};

/// See "Memory" in docs/operations.md; small queues, so that a queue without bound would be seen with few records.
const BOUND_MIB: u64 = 128;

#[test]
fn a_stalled_sink_stops_reading_at_the_bound_and_loses_nothing() {
    let Some(cluster) = cluster_to_break("a stalled sink") else {
        return;
    };
    let records = setting("SEALFLOW_FAULT_SHORT_RECORDS", 20_000) * 3;
    let (port, line) = admin();
    let setup = Setup {
        more: format!("batch: {{ rows: 500, bytes: 512KiB }}\n{line}"),
        source_properties: "queued.max.messages.kbytes: 1024, fetch.max.bytes: 1048576".into(),
        target_properties: "queue.buffering.max.kbytes: 2048".into(),
        // The source is led by the first broker, the sink by the third.
        placed: Some(([1, 2, 3], [3, 2, 1])),
        ..Setup::default()
    };
    let mut bench = Bench::new(&cluster, "stalled", records, setup);
    bench.publish();
    let mut instance = bench.start("a");
    bench.produce(records / 10);
    bench.wait_for(records / 10, RECOVERY, |_| {});
    cluster.proxy(2).set(Mode::Stall);
    let before = bench.committed();
    bench.produce(records - records / 10);
    // What was on its way may still come through.
    std::thread::sleep(Duration::from_secs(1));
    let settled = bench.committed();
    bench.expect_rest(settled, &mut instance, Duration::from_secs(4));
    assert!(settled - before < records / 2, "the sink was not stalled");
    assert_eq!(status(port, "/livez"), Some(200));
    let stalled_kib = instance.peak_memory_kib().unwrap();
    cluster.proxy(2).set(Mode::Pass);
    bench.wait_for(records, RECOVERY, |_| {});
    expect_memory("stalled sink", stalled_kib, BOUND_MIB);
    expect_memory("after a stalled sink", instance.peak_memory_kib().unwrap(), BOUND_MIB);
    bench.expect_exact();
}
