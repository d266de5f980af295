//! Every record once, in order, at its partition, byte for byte outside the sealed fields: under `SIGKILL`.

use std::time::{Duration, Instant};

use sealflow_samples::SampleRecord;
use sealflow_testbed::{KEY_ARN, Kafka, Message, Site, Topics};

use crate::support::{
    self, PARTITIONS, Running, of_partition, pipeline, progress, run_to_end, sample_messages, setting,
};

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
    let messages = sample_messages(seed, records);
    let plain: Vec<Message> = messages.iter().map(|(_, message)| message.clone()).collect();
    topics.produce(NAME, &plain);
    drop(plain);

    let patience = Duration::from_secs(120 + records / 1_000);
    let seal = pipeline(&site, NAME, "seal", "");
    kill_on_the_way(&site, &topics, &seal, "sealed", records, kills, patience);
    run_to_end(&site, &seal, patience);
    let sealed_after = started.elapsed();
    check_sealed(&topics.read_all(&format!("{NAME}.sealed")), &messages);

    let open = pipeline(&site, NAME, "open", "");
    kill_on_the_way(&site, &topics, &open, "opened", records, kills.min(2), patience);
    run_to_end(&site, &open, patience);
    check_opened(&topics.read_all(&format!("{NAME}.opened")), &messages);
    assert_eq!(progress(&topics, &format!("{NAME}.dead")), 0);
    report(records, kills, sealed_after, started.elapsed());
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

fn check_sealed(sealed: &[Message], messages: &[(SampleRecord, Message)]) {
    assert_eq!(sealed.len(), messages.len());
    for partition in 0..PARTITIONS {
        let mut found = sealed.iter().filter(|message| message.partition == partition);
        for (sample, original) in of_partition(messages, partition) {
            let sealed = found.next().expect("as many records as before");
            assert_eq!(
                (&sealed.key, sealed.timestamp),
                (&original.key, original.timestamp),
                "record {}",
                sample.id
            );
            let (keys, rest) = sealed.headers.split_last().expect("the envelopes travel last");
            assert_eq!(
                (keys.0.as_str(), rest),
                ("sealflow-keys", &original.headers[..]),
                "record {}",
                sample.id
            );
            let (text, before) = (utf8(&sealed.value), utf8(&original.value));
            let fields = same_outside_sealed_values(text, before);
            assert_eq!(fields, sample.secrets.len(), "record {}", sample.id);
            for secret in &sample.secrets {
                assert!(!text.contains(secret.as_str()), "a plaintext of record {}", sample.id);
            }
        }
        assert!(found.next().is_none(), "no record twice");
    }
}

/// Walks both texts: what stands between sealed values must be the same bytes. Returns how many there are.
/// Knows nothing of Sealflow but how the text form starts and ends.
fn same_outside_sealed_values(sealed: &str, original: &str) -> usize {
    let mut pieces = sealed.split("\"sf1.");
    let first = pieces.next().unwrap();
    let mut rest = original
        .strip_prefix(first)
        .expect("the same bytes before the first sealed value");
    let mut fields = 0;
    for piece in pieces {
        let (value, clear) = piece.split_once('"').unwrap();
        assert!(
            value
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        );
        // The value in clear ends where the clear text goes on.
        let at = rest.find(clear).expect("the same bytes after a sealed value");
        assert!(at >= 1, "something was there before");
        rest = &rest[at + clear.len()..];
        fields += 1;
    }
    assert_eq!(rest, "", "the same bytes after the last sealed value");
    fields
}

fn check_opened(opened: &[Message], messages: &[(SampleRecord, Message)]) {
    assert_eq!(opened.len(), messages.len());
    for partition in 0..PARTITIONS {
        let mut found = opened.iter().filter(|message| message.partition == partition);
        for (sample, original) in of_partition(messages, partition) {
            let mut opened = found.next().expect("as many records as before").clone();
            opened.offset = 0;
            assert_eq!(&opened, original, "record {}", sample.id);
        }
        assert!(found.next().is_none(), "no record twice");
    }
}

fn utf8(value: &Option<Vec<u8>>) -> &str {
    std::str::from_utf8(value.as_deref().unwrap()).unwrap()
}

fn report(records: u64, kills: u64, sealed_after: Duration, all: Duration) {
    use std::io::Write as _;
    let line = format!(
        r#"{{"name":"exactly once, Kafka to Kafka and back","records":{records},"kills_sealing":{kills},"kills_opening":{},"lost":0,"twice":0,"seconds_sealing":{:.1},"seconds":{:.1}}}"#,
        kills.min(2),
        sealed_after.as_secs_f64(),
        all.as_secs_f64()
    );
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("SEALFLOW_REPORT") {
        let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
        writeln!(file, "{line}").unwrap();
    }
}
