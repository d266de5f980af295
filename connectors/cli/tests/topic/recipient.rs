//! Dead letters to a recipient on a real broker: the host opens none of them with all its rights, the recipient's key replays
//! each once, and what was swapped, edited or moved stays where it is.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use sealflow_testbed::{KEY_ARN, Kafka, Message, Site};
use serde_json::{Value, json};

use crate::dlq::{CANARY, dlq, listed, record, sealed_once, text};
use crate::support::{binary, create_topics, pipeline, progress, run_to_end};

const RECORDS: u32 = 300;
/// Of them, those that are read under the policy whose dead letters the host opens.
const BEFORE: u32 = 60;

fn policy(version: u64, column: &str, dead_letters: &str) -> String {
    format!(
        "dataset: payments\nversion: {version}\nkeys: {{ default: {{ arn: \"{KEY_ARN}\" }} }}\nacls: {{ pii: {{}} }}\n\
         dead_letters: {{ {dead_letters} }}\ncolumns: [ {{ path: {column}, key: default, acl: pii }} ]\n"
    )
}

/// Makes a key as people do; the JWK that is printed goes into the policy as it is.
fn keygen(site: &Site, file: &str) -> String {
    let args = ["client", "keygen", "-o", file, "--bits", "2048"];
    let output = site.command(binary(), "intern", &args).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn letters(kafka: &Kafka, topic: &str) -> Vec<(Message, Value)> {
    let messages = kafka.topics().read_all(topic).into_iter();
    messages
        .map(|message| {
            let json = serde_json::from_slice(message.value.as_deref().unwrap()).unwrap();
            (message, json)
        })
        .collect()
}

/// Whether a text stands in a file below the folder, or in the name of one.
fn mentions(folder: &Path, needle: &str) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return mentions(&path, needle);
        }
        let bytes = std::fs::read(&path).unwrap();
        path.to_str().unwrap().contains(needle) || bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
    })
}

#[test]
fn letters_to_a_recipient_open_with_its_key_alone_and_are_replayed_each_once() {
    let Some(kafka) = Kafka::shared("dead letters to a recipient") else {
        return;
    };
    let topics = kafka.topics();
    create_topics(&topics, "officer");
    let site = Site::new(&kafka.brokers());
    let recipient = keygen(&site, "officer.key");
    keygen(&site, "stranger.key");
    let name = serde_json::from_str::<Value>(&recipient).unwrap()["kid"]
        .as_str()
        .unwrap()
        .to_owned();
    let to_recipient = format!("recipient: {recipient}");
    let path = pipeline(&site, "officer", "seal", "batch: { rows: 40 }");
    let file = path.to_str().unwrap();
    let run = || run_to_end(&site, &path, Duration::from_secs(60));

    // Some letters are from before the policy named a recipient.
    site.publish("payments", 1, &policy(1, "user.name", "key: default, acl: pii"));
    topics.produce("officer", &(0..BEFORE).map(record).collect::<Vec<_>>());
    run();
    site.publish("payments", 2, &policy(2, "user.name", &to_recipient));
    let envelopes = |needle: &str| mentions(&site.catalogue().join("keys"), needle);
    assert!(
        envelopes("payments#dead-letters"),
        "else the next assertion shows nothing"
    );
    std::fs::remove_dir_all(site.catalogue().join("keys")).unwrap();
    topics.produce("officer", &(BEFORE..RECORDS).map(record).collect::<Vec<_>>());
    run();
    assert!(
        !envelopes("payments#dead-letters"),
        "no data key was made for the new ones"
    );

    let all = letters(kafka, "officer.dead");
    let (old, new): (Vec<_>, Vec<_>) = all.iter().partition(|(_, json)| json["sealflow"] == "dead-letter/1");
    assert!(!old.is_empty() && new.iter().all(|(_, json)| json["sealflow"] == "dead-letter/2"));
    for (message, json) in &new {
        let bytes = message.value.as_deref().unwrap();
        assert!(!bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()));
        assert_eq!((&message.key, message.headers.len()), (&None, 0), "{json}");
        assert_eq!(json["record"].as_str().unwrap().split('.').count(), 5);
    }
    is_told_everywhere(&site, file, &name, new.len());
    shows_one(&site, file, &name, &new[0].1);

    // The policy is mended. The host, with every right at KMS and in the catalogue, replays nothing and moves nothing.
    site.publish("payments", 3, &policy(3, "user", &to_recipient));
    let written = progress(&topics, "officer.dead");
    let refused = dlq(&site, "pipeline", &["replay", file], "");
    assert_eq!(refused.status.code(), Some(77), "{}", text(&refused));
    assert!(
        text(&refused).contains(&name) && text(&refused).contains("--dead-letter-key"),
        "{}",
        text(&refused)
    );
    assert_eq!(progress(&topics, "officer.dead"), written);

    // Whoever can write to the topic swaps, edits and moves letters: the recipient's key opens none of those.
    let with = |of: &Value, change: Value| {
        let mut letter = of.clone();
        letter
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        Message::new(0, letter.to_string())
    };
    let (one, other) = (&new[0].1, &new[1].1);
    let forged = [
        with(one, json!({ "record": other["record"], "code": "swapped" })),
        with(one, json!({ "record": other["record"] })),
        with(one, json!({ "code": "edited" })),
        with(one, json!({ "offset": 1 })),
        with(one, json!({ "partition": 5 })),
        with(one, json!({ "sealflow": "dead-letter/1" })),
    ];
    topics.produce("officer.dead", &forged);

    // Another key opens none of the new ones, and says so; the old ones are for the host's rights still.
    let replay = |key: &str, more: &[&str], failpoints: &str| {
        let args = [&["replay", file, "--dead-letter-key", key], more].concat();
        let output = dlq(&site, "pipeline", &args, failpoints);
        assert!(!text(&output).contains(CANARY));
        output
    };
    let output = replay("stranger.key", &["--code", "wrong-type"], "");
    assert!(
        output.status.success() && text(&output).contains("warning"),
        "{}",
        text(&output)
    );
    let flat = (BEFORE..RECORDS).filter(|n| n % 3 == 0 && n % 100 != 1).count();
    assert_eq!(listed(&site, file, &[])["codes"]["wrong-type"], flat + 4);

    for failpoint in ["before-commit=1*return(abort)", "after-commit=1*return(abort)"] {
        let output = replay("officer.key", &["--code", "wrong-type"], failpoint);
        assert_eq!(output.status.signal(), Some(6), "{failpoint}: {}", text(&output));
    }
    let output = replay("officer.key", &["--code", "wrong-type"], "");
    assert!(output.status.success(), "{}", text(&output));
    let seen = sealed_once(&topics, "officer.sealed");
    let expected: BTreeSet<u32> = (0..RECORDS).filter(|n| n % 100 != 1).collect();
    let sealed: BTreeSet<u32> = seen.keys().copied().collect();
    // Old letters whose envelopes are gone from the catalogue open by those that travel with them.
    assert_eq!(sealed, expected);
    assert!(
        seen.values().all(|times| *times == 1),
        "each once, and nothing of the forged ones"
    );
    let codes = listed(&site, file, &[])["codes"].clone();
    assert_eq!(
        (&codes["edited"], &codes["swapped"], &codes["wrong-type"]),
        (&json!(1), &json!(1), &json!(4)),
        "the forged ones stay: {codes}"
    );

    // Back to the source, as they were.
    let output = replay("officer.key", &["--code", "trailing-bytes", "--to", "source"], "");
    assert!(output.status.success(), "{}", text(&output));
    let back: Vec<Message> = topics
        .read_all("officer")
        .into_iter()
        .filter(|m| m.offset >= 50)
        .collect();
    assert_eq!(back.len(), (0..RECORDS).filter(|n| n % 100 == 1).count());
    for message in back {
        let original = (0..RECORDS)
            .map(record)
            .find(|original| original.value == message.value)
            .unwrap();
        assert_eq!(Message { offset: 0, ..message }, original);
    }
    let output = replay("officer.key", &[], "");
    assert!(
        text(&output).contains("6 letters, 0 replayed, 6 kept"),
        "{}",
        text(&output)
    );
}

/// What tells of policies and letters names the recipient, neither key nor ACL, and nobody who could open with rights at KMS.
fn is_told_everywhere(site: &Site, file: &str, name: &str, count: usize) {
    let say = |args: &[&str]| text(&site.command(binary(), "pipeline", args).output().unwrap());
    let checked = say(&["validate", file]);
    assert!(
        checked.contains(&format!("private half of {name} (RSA-2048)")),
        "{checked}"
    );
    assert!(
        !checked.contains("#dead-letters"),
        "no key of theirs is tried: {checked}"
    );
    let who = say(&["acl", "who", "kafka:///officer.dead", "--pipeline", file]);
    let line = format!("{count} dead letters: open to whoever has the private half of {name}");
    assert!(
        who.contains(&line) && who.contains("dead letters go to a recipient now"),
        "{who}"
    );
}

fn shows_one(site: &Site, file: &str, name: &str, letter: &Value) {
    let position = format!(
        "{}/{}/{}",
        letter["topic"].as_str().unwrap(),
        letter["partition"],
        letter["offset"]
    );
    let shown = dlq(site, "intern", &["show", file, &position], "");
    assert!(
        shown.status.success() && text(&shown).contains(&format!("recipient       {name}")),
        "{}",
        text(&shown)
    );
    let out = site.path().join("opened-letter");
    let open = |role: &str, key: &[&str]| {
        let args = [&["show", file, &position, "--open", "--to", out.to_str().unwrap()], key].concat();
        let output = dlq(site, role, &args, "");
        assert!(!text(&output).contains(CANARY), "{}", text(&output));
        output
    };
    let refused = open("pipeline", &[]);
    assert_eq!(refused.status.code(), Some(77), "{}", text(&refused));
    assert!(text(&refused).contains("--dead-letter-key"), "{}", text(&refused));
    let refused = open("pipeline", &["--dead-letter-key", "stranger.key"]);
    assert_eq!(refused.status.code(), Some(65), "{}", text(&refused));
    assert!(!out.exists());
    // The key is enough: this role has no right at KMS.
    let opened = open("intern", &["--dead-letter-key", "officer.key"]);
    assert!(opened.status.success(), "{}", text(&opened));
    let value = std::fs::read(&out).unwrap();
    assert!((0..RECORDS).any(|n| record(n).value.as_deref() == Some(&value)));
}
