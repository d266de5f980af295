//! A message as large as the source takes, from somebody who means harm: memory stays in its bound, everything else
//! passes.

use std::path::{Path, PathBuf};

use sealflow_testbed::{Instance, Message};

use crate::bench::{Bench, PARTITIONS, RECOVERY, Setup, cluster, expect_memory, setting};

/// What a process may have resident with small records, and how many times the largest message it may take beyond.
const BASE_MIB: u64 = 192;
const PER_LARGEST: u64 = 10;

/// Brokers that have just taken messages of such a size may not answer for a while: whoever supervises a process that ends with 69
/// starts it again. Nothing else may end it.
fn start_again_if_brokers_were_away(bench: &Bench, instance: &mut Instance) {
    if let Some(status) = instance.ended() {
        assert_eq!(status.code(), Some(69), "{status}:\n{}", instance.last_lines());
        *instance = bench.start("a");
    }
}

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
    bench.wait_for(goal, RECOVERY * 2, |bench| {
        peak = peak.max(instance.peak_memory_kib().unwrap_or(0));
        start_again_if_brokers_were_away(bench, &mut instance);
    });
    let is_hostile = |message: &Message| message.key.as_deref() == Some(b"hostile");
    let tally = bench.tally_without(is_hostile);
    assert!(tally.is_exact(records), "{tally:?}");
    let mut passed = Vec::new();
    bench.topics.read_each("hostile.sealed", |message| {
        if is_hostile(&message) {
            let value = String::from_utf8(message.value.unwrap()).unwrap();
            passed.push((value[..25].to_owned(), value.len() > size));
        }
    });
    passed.sort();
    assert_eq!(
        passed,
        [
            (r#"{"id":"h-1","filler":"xxx"#.to_owned(), true),
            (r#"{"id":"h-2","client_ip":"#.to_owned() + r#"""#, true)
        ],
        "each once"
    );
    let dead = bench.topics.read_all("hostile.dead");
    assert_eq!(dead.len(), 1, "what is no JSON is a dead letter");
    sealflow_testbed::report(&serde_json::json!({
        "name": "hostile messages",
        "mib_each": mib,
        "messages": count,
        "peak_memory_mib": peak / 1024,
        "bound_mib": BASE_MIB + PER_LARGEST * mib,
    }));
    expect_memory("hostile messages", peak, BASE_MIB + PER_LARGEST * mib);
}

#[test]
fn at_default_limits_a_large_message_is_set_aside_in_the_folder_and_memory_stays_in_its_bound() {
    let Some(cluster) = cluster("a large message at default limits") else {
        return;
    };
    let mib = setting("SEALFLOW_FAULT_MESSAGE_MIB", 12);
    let records = 3_000;
    let setup = Setup {
        source_topic: vec![("max.message.bytes", "400000000")],
        oversize: Some("set-aside"),
        ..Setup::default()
    };
    let mut bench = Bench::new(&cluster, "large", records, setup);
    bench.publish();
    bench.produce(records / 2);
    let size = usize::try_from(mib << 20).unwrap();
    let settings = [
        ("message.max.bytes", "500000000"),
        ("queue.buffering.max.kbytes", "1000000"),
        ("compression.codec", "none"),
    ];
    let hostile = hostile(size);
    let goal = records + hostile.len() as u64;
    bench.topics.produce_with("large", hostile.into_iter(), &settings);
    bench.produce(records / 2);
    let mut instance = bench.start("a");
    let mut peak = 0;
    bench.wait_for(goal, RECOVERY * 2, |bench| {
        peak = peak.max(instance.peak_memory_kib().unwrap_or(0));
        start_again_if_brokers_were_away(bench, &mut instance);
    });
    let tally = bench.tally();
    assert!(tally.is_exact(records), "{tally:?}\n{}", bench.logs());
    assert_eq!(bench.topics.high_watermarks("large.dead").iter().sum::<i64>(), 0);
    let letters = files_below(&bench.site.path().join("set-aside"));
    assert_eq!(letters.len(), 3, "{letters:?}");
    for letter in letters {
        let text = std::fs::read_to_string(&letter).unwrap();
        assert!(text.len() > size && !text.contains("xxxxxxxxxxxxxxxx"), "sealed whole");
    }
    sealflow_testbed::report(&serde_json::json!({
        "name": "large messages at default limits",
        "mib_each": mib,
        "peak_memory_mib": peak / 1024,
        "bound_mib": BASE_MIB + PER_LARGEST * mib,
    }));
    expect_memory("large messages at default limits", peak, BASE_MIB + PER_LARGEST * mib);
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
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
