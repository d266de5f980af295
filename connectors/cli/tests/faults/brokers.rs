//! Brokers crash, come back, freeze and hand leaderships over, while instances are killed.

use std::time::Duration;

use sealflow_testbed::Mode;

use crate::bench::{Bench, RECOVERY, Setup, cluster_to_break, setting};
use crate::supervisor::Supervisor;

const STEPS: u64 = 5;

#[test]
fn kills_a_broker_crash_and_a_moved_leader_cost_no_record_and_repeat_none() {
    let Some(mut cluster) = cluster_to_break("kills, a broker crash and a moved leader") else {
        return;
    };
    let records = setting("SEALFLOW_FAULT_SHORT_RECORDS", 20_000);
    let setup = Setup {
        more: "batch: { rows: 500 }".into(),
        ..Setup::default()
    };
    let mut bench = Bench::new(&cluster, "brokers", records, setup);
    bench.publish();
    let mut instances = Supervisor::new(2, 2);
    // Each step's records are written and pass while its fault is there.
    for step in 0..STEPS {
        bench.produce(records / STEPS);
        bench.wait_for(records / STEPS * step + 1, RECOVERY, |bench| instances.tend(bench));
        match step {
            0 | 3 => assert!(instances.kill(step), "there was one to kill"),
            1 => cluster.crash(0),
            2 => {
                cluster.resume(0).unwrap();
                let (before, after) = cluster.move_leader("brokers.sealed", 0);
                assert_ne!(before, after);
            }
            _ => cluster.proxy(1).set(Mode::Garbage { one_in: 1 }),
        }
        let goal = bench.written();
        if step + 1 == STEPS {
            // Noise instead of answers, then connections that work: nobody must have believed the noise. (Cut in
            // between, as a broker waits long for the end of what it takes for a large request.)
            std::thread::sleep(Duration::from_millis(500));
            cluster.proxy(1).set(Mode::Cut);
            std::thread::sleep(Duration::from_millis(100));
            cluster.proxy(1).set(Mode::Pass);
        }
        bench.wait_for(goal, RECOVERY, |bench| instances.tend(bench));
    }
    instances.stop(RECOVERY);
    assert_eq!(instances.kills, 2);
    bench.expect_exact();
}
