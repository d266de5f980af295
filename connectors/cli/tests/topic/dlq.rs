//! Dead letters: listed without a look inside, shown to whoever has rights, replayed each once under kills.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use sealflow_testbed::{KEY_ARN, Kafka, Message, Site, Topics};

use crate::support::{PARTITIONS, Running, binary, create_topics, pipeline, progress, run_to_end};

const RECORDS: u32 = 1_500;
pub(crate) const CANARY: &str = "canary-7f3a";

fn policy(version: u64, column: &str) -> String {
    format!(
        r#"
dataset: payments
version: {version}
keys: {{ default: {{ arn: "{KEY_ARN}" }} }}
acls: {{ pii: {{}} }}
dead_letters: {{ key: default, acl: pii }}
columns: [ {{ path: {column}, key: default, acl: pii }} ]
"#
    )
}

/// One of three has a name where the policy expects an object; one of a hundred is no JSON at all.
pub(crate) fn record(n: u32) -> Message {
    let value = match n {
        n if n % 100 == 1 => format!(r#"{{"n":{n},"user":{{"name":"{CANARY}"}}}} trailing"#),
        n if n % 3 == 0 => format!(r#"{{"n":{n},"user":"{CANARY}"}}"#),
        n => format!(r#"{{"n":{n},"user":{{"name":"{CANARY}"}}}}"#),
    };
    Message {
        partition: i32::try_from(n).unwrap() % PARTITIONS,
        key: Some(format!("key {n}").into_bytes()),
        headers: vec![("trace".into(), Some(n.to_be_bytes().to_vec())), ("empty".into(), None)],
        timestamp: Some(1_767_225_600_000 + i64::from(n)),
        ..Message::new(0, value)
    }
}

pub(crate) fn dlq(site: &Site, role: &str, args: &[&str], failpoints: &str) -> Output {
    let args: Vec<&str> = std::iter::once("dlq").chain(args.iter().copied()).collect();
    let mut command = site.command(binary(), role, &args);
    command.env("FAILPOINTS", failpoints).output().unwrap()
}

pub(crate) fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(both).unwrap()
}

pub(crate) fn listed(site: &Site, file: &str, more: &[&str]) -> serde_json::Value {
    let args: Vec<&str> = ["list", file, "--output", "json"].iter().chain(more).copied().collect();
    let output = dlq(site, "intern", &args, "");
    assert!(output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains(CANARY));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// By record number: how often it is in the target, sealed, and as it was otherwise.
pub(crate) fn sealed_once(topics: &Topics, target: &str) -> BTreeMap<u32, u32> {
    let mut seen = BTreeMap::new();
    for message in topics.read_all(target) {
        let value = String::from_utf8(message.value.unwrap()).unwrap();
        let n: u32 = value
            .strip_prefix(r#"{"n":"#)
            .unwrap()
            .split(',')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let original = record(n);
        assert!(value.contains("sf1.") && !value.contains(CANARY), "{n} is sealed");
        let (keys, headers) = message.headers.split_last().unwrap();
        assert_eq!(keys.0, "sealflow-keys");
        assert_eq!(
            (message.partition, message.key, headers, message.timestamp),
            (
                original.partition,
                original.key,
                &original.headers[..],
                original.timestamp
            ),
            "record {n}"
        );
        *seen.entry(n).or_default() += 1;
    }
    seen
}

#[test]
fn dead_letters_are_listed_unopened_and_replayed_each_once_although_replays_are_killed() {
    let Some(kafka) = Kafka::shared("replay of dead letters") else {
        return;
    };
    let topics = kafka.topics();
    create_topics(&topics, "letters");
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, &policy(1, "user.name"));
    topics.produce("letters", &(0..RECORDS).map(record).collect::<Vec<_>>());
    let path = pipeline(&site, "letters", "seal", "batch: { rows: 40 }");
    let file = path.to_str().unwrap();
    run_to_end(&site, &path, Duration::from_secs(60));
    let broken = (0..RECORDS).filter(|n| n % 100 == 1).count();
    let flat = (0..RECORDS).filter(|n| n % 3 == 0 && n % 100 != 1).count();

    let before = listed(&site, file, &[]);
    assert_eq!(before["codes"]["wrong-type"], flat);
    assert_eq!(before["codes"]["trailing-bytes"], broken);
    assert_eq!(
        listed(&site, file, &["--code", "trailing-bytes", "--partition", "1"])["codes"]
            .as_object()
            .unwrap()
            .len(),
        1
    );
    shows_one(&site, file);

    // The policy is mended: what was flat can be sealed now, what is broken stays broken.
    site.publish("payments", 2, &policy(2, "user"));
    for failpoint in [
        "before-commit=1*off->1*return(abort)",
        "after-commit=1*off->1*return(abort)",
        "send=20*off->1*return(abort)",
        "flush=1*return;abort=1*return(abort)",
    ] {
        let output = dlq(&site, "pipeline", &["replay", file, "--code", "wrong-type"], failpoint);
        assert_eq!(output.status.signal(), Some(6), "{failpoint}: {}", text(&output));
    }
    let output = dlq(&site, "pipeline", &["replay", file, "--code", "wrong-type"], "");
    assert!(output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains(CANARY));
    let seen = sealed_once(&topics, "letters.sealed");
    let expected: Vec<u32> = (0..RECORDS).filter(|n| n % 100 != 1).collect();
    assert_eq!(
        seen.keys().copied().collect::<Vec<_>>(),
        expected,
        "every record that can be sealed"
    );
    assert!(seen.values().all(|times| *times == 1), "and each of them once");

    // What was not meant, and what fails again, is still there, once each.
    for args in [&["replay", file, "--code", "no-such-code"][..], &["replay", file]] {
        let output = dlq(&site, "pipeline", args, "");
        assert!(output.status.success(), "{}", text(&output));
        assert!(
            text(&output).contains(&format!("{broken} letters, 0 replayed, {broken} kept")),
            "one pass: {}",
            text(&output)
        );
        let after = listed(&site, file, &[]);
        assert_eq!(
            after["codes"],
            serde_json::json!({ "trailing-bytes": broken }),
            "{args:?}"
        );
    }
    let sealed = progress(&topics, "letters.sealed");

    // Whoever has no rights replays nothing.
    let refused = dlq(&site, "intern", &["replay", file], "");
    assert_eq!(refused.status.code(), Some(77), "{}", text(&refused));

    // Back to the source: the pipeline reads them once more, and sets them aside once more.
    let output = dlq(&site, "pipeline", &["replay", file, "--to", "source"], "");
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(listed(&site, file, &[])["codes"], serde_json::json!({}));
    let back: Vec<Message> = topics
        .read_all("letters")
        .into_iter()
        .filter(|m| m.offset >= 250)
        .collect();
    assert_eq!(back.len(), broken);
    for message in back {
        let original = (0..RECORDS)
            .map(record)
            .find(|original| original.value == message.value)
            .unwrap();
        assert_eq!(Message { offset: 0, ..message }, original);
    }
    run_to_end(&site, &path, Duration::from_secs(60));
    assert_eq!(
        listed(&site, file, &[])["codes"],
        serde_json::json!({ "trailing-bytes": broken })
    );
    assert_eq!(sealed, progress(&topics, "letters.sealed"), "nothing else was sealed");
}

fn shows_one(site: &Site, file: &str) {
    let shown = dlq(site, "intern", &["show", file, "letters/0/0"], "");
    let printed = text(&shown);
    assert!(
        shown.status.success() && printed.contains("wrong-type") && printed.contains(KEY_ARN),
        "{printed}"
    );
    assert!(!printed.contains(CANARY));
    let to_a_pipe = dlq(site, "pipeline", &["show", file, "letters/0/0", "--open"], "");
    assert_eq!(to_a_pipe.status.code(), Some(64), "{}", text(&to_a_pipe));
    let out = site.path().join("opened");
    let args = ["show", file, "letters/0/0", "--open", "--to", out.to_str().unwrap()];
    let refused = dlq(site, "intern", &args, "");
    assert_eq!(refused.status.code(), Some(77), "{}", text(&refused));
    assert!(!out.exists());
    let opened = dlq(site, "pipeline", &args, "");
    assert!(opened.status.success(), "{}", text(&opened));
    assert!(!text(&opened).contains(CANARY));
    assert_eq!(std::fs::read(&out).unwrap(), record(0).value.unwrap());
    assert_eq!(mode(&out) & 0o077, 0, "readable for its owner alone");
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().unwrap().permissions().mode()
}

/// Six records that are larger than their topics take, a pipeline that knows no larger ones, and that file's text
/// without the limit. Where the letters go is a folder of the site's.
fn too_large(kafka: &Kafka, site: &Site, name: &str) -> (PathBuf, String) {
    let topics = kafka.topics();
    create_topics(&topics, name);
    site.publish("payments", 1, &policy(1, "name"));
    let large = |n: i32| {
        Message::new(
            n % 2,
            format!(r#"{{"n":{n},"name":"{CANARY} {}"}}"#, "x".repeat(200_000)),
        )
    };
    topics.produce(name, &(0..6).map(large).collect::<Vec<_>>());
    let narrow = pipeline(site, name, "seal", "");
    let yaml = std::fs::read_to_string(&narrow).unwrap();
    let folder = set_aside(site);
    let wide = yaml.replace(
        "max_ratio: 1.0",
        &format!("max_ratio: 1.0, oversize: {}", folder.display()),
    );
    let limit = "codec: none, message.max.bytes: \"100000\"";
    std::fs::write(&narrow, wide.replace("codec: none", limit)).unwrap();
    (narrow, wide)
}

fn set_aside(site: &Site) -> PathBuf {
    site.path().join("set-aside")
}

/// How many files the folder holds, none of which has plaintext.
fn files_at(path: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(path) else {
        return 0;
    };
    let count = |path: PathBuf| {
        if path.is_dir() {
            return files_at(&path);
        }
        let bytes = std::fs::read(&path).unwrap();
        let canary = CANARY.as_bytes();
        let has_plaintext = bytes.windows(canary.len()).any(|window| window == canary);
        assert!(!has_plaintext, "{}", path.display());
        1
    };
    entries.map(|entry| count(entry.unwrap().path())).sum()
}

/// The six records, each once, sealed.
fn assert_each_of_six_is_sealed_once(topics: &Topics, target: &str) {
    let mut numbers: Vec<String> = Vec::new();
    for message in topics.read_all(target) {
        let value = String::from_utf8(message.value.unwrap()).unwrap();
        assert!(value.contains("sf1.") && !value.contains(CANARY));
        numbers.push(value.split(',').next().unwrap().to_owned());
    }
    numbers.sort();
    assert_eq!(numbers, (0..6).map(|n| format!(r#"{{"n":{n}"#)).collect::<Vec<_>>());
}

#[test]
fn oversize_letters_of_the_folder_are_replayed_each_once_when_their_topic_takes_them() {
    let Some(kafka) = Kafka::shared("replay of oversize letters") else {
        return;
    };
    let topics = kafka.topics();
    let site = Site::new(&kafka.brokers());
    let (narrow, wide) = too_large(kafka, &site, "oversize");
    run_to_end(&site, &narrow, Duration::from_secs(60));
    assert_eq!(
        topics.read_all("oversize.sealed").len() + topics.read_all("oversize.dead").len(),
        0
    );
    let file = narrow.to_str().unwrap().to_owned();
    assert_eq!(
        listed(&site, &file, &[])["codes"],
        serde_json::json!({ "too-large": 6 })
    );
    assert_eq!(files_at(&set_aside(&site)), 6, "and nothing else");
    let replayed = dlq(&site, "pipeline", &["replay", &file], "");
    assert!(
        text(&replayed).contains("6 letters, 0 replayed, 6 kept"),
        "{}",
        text(&replayed)
    );

    // The limit is raised. Replays die with a record committed and its file still there, and before the commit.
    std::fs::write(&narrow, wide).unwrap();
    for failpoint in [
        "before-remove=1*off->1*return(abort)",
        "before-commit=1*off->1*return(abort)",
    ] {
        let output = dlq(&site, "pipeline", &["replay", &file], failpoint);
        assert_eq!(output.status.signal(), Some(6), "{failpoint}: {}", text(&output));
    }
    let replayed = dlq(&site, "pipeline", &["replay", &file], "");
    assert!(replayed.status.success(), "{}", text(&replayed));
    assert_eq!(listed(&site, &file, &[])["codes"], serde_json::json!({}));
    assert_each_of_six_is_sealed_once(&topics, "oversize.sealed");
}

#[test]
fn a_letter_of_the_folder_counts_only_once_its_transaction_has_committed_whatever_dies_or_is_aborted() {
    let Some(kafka) = Kafka::shared("oversize letters before their commit") else {
        return;
    };
    let topics = kafka.topics();
    let site = Site::new(&kafka.brokers());
    let (narrow, wide) = too_large(kafka, &site, "uncommitted");
    let file = narrow.to_str().unwrap().to_owned();
    let run = |failpoint: &str| {
        let mut command = site.command(binary(), "pipeline", &["run", "--until-end", &file]);
        command.env("FAILPOINTS", failpoint).output().unwrap()
    };
    let none_counts = || {
        assert_eq!(listed(&site, &file, &[])["codes"], serde_json::json!({}));
        let replayed = dlq(&site, "pipeline", &["replay", &file], "");
        assert!(text(&replayed).contains(": 0 letters"), "{}", text(&replayed));
    };

    // Killed between file and commit.
    let output = run("before-commit=1*return(abort)");
    assert_eq!(output.status.signal(), Some(6), "{}", text(&output));
    assert!(files_at(&set_aside(&site)) > 0, "files are written before the commit");
    none_counts();

    // Aborted again and again: what each attempt wrote is gone before the next.
    let mut command = site.command(binary(), "pipeline", &["run", &file]);
    command
        .env("FAILPOINTS", "before-commit=return")
        .env("SEALFLOW_LOG", "debug");
    let aborting = Running::of(command, &narrow);
    let until = Instant::now() + Duration::from_secs(30);
    while aborting.read_log().matches("transaction aborted").count() < 4 {
        assert!(Instant::now() < until, "{}", aborting.read_log());
        std::thread::sleep(Duration::from_millis(20));
    }
    none_counts();
    aborting.kill();

    // One letter is committed, and its process dies before it could say so in the folder.
    let output = run("after-commit=1*return(abort)");
    assert_eq!(output.status.signal(), Some(6), "{}", text(&output));

    // The limit is raised: the others pass as they are, and that one is found and replayed.
    std::fs::write(&narrow, wide).unwrap();
    run_to_end(&site, &narrow, Duration::from_secs(60));
    let letters = listed(&site, &file, &[])["codes"]["too-large"].as_u64().unwrap();
    assert!((1..6).contains(&letters), "{letters}");
    assert_eq!(files_at(&set_aside(&site)), usize::try_from(letters).unwrap());
    let replayed = dlq(&site, "pipeline", &["replay", &file], "");
    assert!(replayed.status.success(), "{}", text(&replayed));
    assert_eq!(files_at(&set_aside(&site)), 0);
    assert_each_of_six_is_sealed_once(&topics, "uncommitted.sealed");
}

#[test]
fn what_letters_of_strangers_say_does_not_steer_the_terminal() {
    let Some(kafka) = Kafka::shared("letters of strangers") else {
        return;
    };
    let topics = kafka.topics();
    create_topics(&topics, "strangers");
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, &policy(1, "name"));
    let evil = "\u{1b}]0;owned\u{7}\u{9b}2J\r\u{202e}";
    let letter = serde_json::json!({
        "sealflow": "dead-letter/1", "code": format!("code{evil}"), "stage": format!("stage{evil}"),
        "topic": format!("topic{evil}"), "partition": 0, "offset": 7, "record": "sf1.",
    });
    topics.produce("strangers.dead", &[Message::new(0, letter.to_string())]);
    let path = pipeline(&site, "strangers", "seal", "");
    let file = path.to_str().unwrap();
    let position = format!("topic{evil}/0/7");
    for args in [&["list", file][..], &["show", file, &position]] {
        let printed = text(&dlq(&site, "intern", args, ""));
        assert!(printed.contains(r"code\u{1b}]0;owned"), "{printed:?}");
        let steers = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!printed.contains(steers), "{args:?}: {printed:?}");
    }
}
