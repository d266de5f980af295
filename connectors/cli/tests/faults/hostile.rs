//! A message as large as the source takes, from somebody who means harm: memory stays in its bound, everything else
//! passes.

use sealflow_testbed::Message;

use crate::bench::{Bench, PARTITIONS, RECOVERY, Setup, cluster, expect_memory, report, setting};

/// What a process may have resident with small records, and how many times the largest message it may take beyond.
const BASE_MIB: u64 = 192;
const PER_LARGEST: u64 = 10;

#[test]
fn a_hostile_large_message_stays_in_the_memory_bound_and_holds_nothing_else_up() {
    let Some(cluster) = cluster("a hostile large message") else {
        return;
    };
    let mib = setting("SEALFLOW_FAULT_MESSAGE_MIB", 12);
    let records = 3_000;
    let setup = Setup {
        source_properties: "receive.message.max.bytes: 600000000".into(),
        target_properties: "message.max.bytes: 500000000, queue.buffering.max.kbytes: 1000000".into(),
        topics: vec![("max.message.bytes", "400000000")],
        // Large records are to be sealed here, not set aside.
        more: "output: { record: 600MiB }".into(),
        ..Setup::default()
    };
    let mut bench = Bench::new(&cluster, "hostile", records, setup);
    bench.publish();
    bench.produce(records / 2);
    let size = usize::try_from(mib << 20).unwrap();
    let mut instance = bench.start("a");
    bench.wait_for(records / 2, RECOVERY, |_| {});
    let hostile = hostile(size);
    let count = hostile.len() as u64;
    let settings = [
        ("message.max.bytes", "500000000"),
        ("queue.buffering.max.kbytes", "1000000"),
        ("compression.codec", "none"),
    ];
    bench.topics.produce_with("hostile", hostile.into_iter(), &settings);
    bench.produce(records / 2);
    let mut peak = 0;
    let goal = records + count;
    bench.wait_for(goal, RECOVERY * 2, |_| {
        peak = peak.max(instance.peak_memory_kib().unwrap_or(0));
        if let Some(status) = instance.ended() {
            panic!("{status}:\n{}", instance.last_lines());
        }
    });
    let is_hostile = |message: &Message| message.key.as_deref() == Some(b"hostile");
    let tally = bench.tally_without(is_hostile);
    assert!(tally.is_exact(records), "{tally:?}");
    let dead = bench.topics.read_all("hostile.dead");
    assert_eq!(dead.len(), 1, "what is no JSON is a dead letter");
    report(&serde_json::json!({
        "name": "hostile messages",
        "mib_each": mib,
        "messages": count,
        "peak_memory_mib": peak / 1024,
        "bound_mib": BASE_MIB + PER_LARGEST * mib,
    }));
    expect_memory("hostile messages", peak, BASE_MIB + PER_LARGEST * mib);
}

/// Three messages of about `size` bytes: a clear field, a sealed field, and what is no JSON.
fn hostile(size: usize) -> Vec<Message> {
    let filler = "x".repeat(size);
    let values = [
        format!(r#"{{"id":"h-1","filler":"{filler}"}}"#),
        format!(r#"{{"id":"h-2","client_ip":"{filler}"}}"#),
        format!("[{filler}"),
    ];
    let messages = values.into_iter().enumerate().map(|(n, value)| Message {
        key: Some(b"hostile".to_vec()),
        ..Message::new(i32::try_from(n).unwrap() % PARTITIONS, value)
    });
    messages.collect()
}
