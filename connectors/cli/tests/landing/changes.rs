//! What changes while a table is written: policies, records that are no rows, a source that forgets.

use std::time::Duration;

use sealflow_testbed::Message;

use crate::bench::{Bench, PARTITIONS};

const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn what_cannot_be_a_row_is_a_dead_letter_and_a_run_to_the_end_ends() {
    let name = "land-dead";
    let Some(bench) = Bench::new(name, None) else { return };
    let message = |n: i32| {
        let value = match n % 3 {
            0 => format!(r#"{{"id":"x-{n}","client_ip":"203.0.113.{n}"}}"#),
            1 => format!(r#"["x-{n}"]"#),
            _ => "no JSON".to_owned(),
        };
        Message::new(n % PARTITIONS, value)
    };
    bench.topics.produce(name, &(0..90).map(message).collect::<Vec<_>>());
    let file = bench.pipeline("a", "roll: { after: 1h }", "");
    let log = bench.run_to_end(&file, PATIENCE);
    let landed = bench.landed();
    assert_eq!((landed.positions.len(), landed.ids.len()), (30, 30), "{log}");
    assert_eq!(bench.topics.read_all(&format!("{name}.dead")).len(), 60);
    // Again: nothing is left to do, and nothing is done twice.
    bench.run_to_end(&file, PATIENCE);
    assert_eq!(bench.landed(), landed);
    assert_eq!(bench.topics.read_all(&format!("{name}.dead")).len(), 60);
}

#[test]
fn no_file_has_rows_of_two_policies_when_one_is_published_on_the_way() {
    let Some(bench) = Bench::new("land-policy", None) else {
        return;
    };
    let records = 6_000;
    bench.produce(31, records / 2, 1);
    let file = bench.pipeline("a", "roll: { after: 2s }", "policy_refresh: 1s");
    let mut running = bench.start(&file, &[]);
    let mut group = bench.group();
    bench.wait_until(PATIENCE, &mut [&mut running], || group.committed() > 0);
    // It seals one more column: a row of the one in a file of the other would show.
    bench.publish_with(2, "  - { path: kind, key: default, acl: support }\n");
    std::thread::sleep(Duration::from_secs(2));
    // The other half: the same records again, at other offsets.
    bench.produce(31, records / 2, 1);
    bench.wait_until(PATIENCE, &mut [&mut running], || group.committed() >= records);
    running.terminate();
    let (status, log) = running.wait(PATIENCE);
    assert!(status.success(), "{status}:\n{log}");
    let landed = bench.landed();
    assert_eq!(landed.positions.len() as u64, records);
    assert!(landed.positions.values().all(|times| *times == 1));
    assert_eq!(landed.policies.into_iter().collect::<Vec<_>>(), [1, 2]);
    let dead = bench.topics.high_watermarks("land-policy.dead");
    assert_eq!(dead.iter().sum::<i64>(), 0);
    bench.expect_no_plaintext(31);
}
