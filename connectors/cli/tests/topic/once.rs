//! Values that count once, on a real broker: whatever is sent again, on the same partition or on another, passes once, while two
//! instances are killed; nothing valid is refused, and everything that was is written down.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealflow::jose::mac::{MacHeader, MacJws, MacKey};
use sealflow::jose::{PrivateJwk, from_base64url_32};
use sealflow_client::{ClientMac, RsaPublicJwk, Session};
use sealflow_local_kms::KeySpec;
use sealflow_testbed::{KEY_ARN, Kafka, Message, Pipeline, Site, Topics};
use serde_json::Value;

use crate::support::{PARTITIONS, Running, binary, progress};

const VALUES: u64 = 6_000;
const COPIES: u64 = 1_200;
const RSA_ID: &str = "00000000-0000-4000-8000-0000000000b1";
const MAC_ID: &str = "00000000-0000-4000-8000-0000000000b2";

fn policy(rest: &str) -> String {
    let arn = |id: &str| KEY_ARN.replace("00000000-0000-4000-8000-000000000001", id);
    format!(
        r#"
dataset: payments
version: 1
keys: {{ default: {{ arn: "{KEY_ARN}" }} }}
client:
  keys: {{ web: {{ arn: "{}" }} }}
  mac: {{ arn: "{}", revoked: [gone] }}
acls: {{ pii: {{ allow: ["arn:aws:iam::111122223333:role/support"] }} }}
columns:
  - {{ path: card, key: default, acl: pii, flow: hybrid, client_sealed: once }}
dead_letters: {{ key: default, acl: pii }}
{rest}"#,
        arn(RSA_ID),
        arn(MAC_ID)
    )
}

struct Bench {
    name: &'static str,
    topics: Topics,
    site: Site,
    auditor: String,
}

impl Bench {
    fn new(kafka: &Kafka, name: &'static str) -> Self {
        let topics = kafka.topics();
        for suffix in ["", ".sealed", ".dead"] {
            topics.create(&format!("{name}{suffix}"), PARTITIONS, &[]);
        }
        let site = Site::new(&kafka.brokers());
        let key_policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/pipeline"},"Action":"kms:*","Resource":"*"}]}"#;
        let rsa = KeySpec::Rsa(sealflow_client::RsaBits::Rsa2048);
        for (spec, id) in [(rsa, RSA_ID), (KeySpec::Hmac256, MAC_ID)] {
            let created = site.kms().create_key_of(spec, Some(id), "clients", Some(key_policy));
            site.block_on(created).unwrap();
        }
        site.publish("payments", 1, &policy(""));
        let auditor = PrivateJwk::generate().unwrap();
        let key = site.path().join("audit.key");
        std::fs::write(&key, auditor.to_private_json().expose()).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        Self {
            name,
            topics,
            site,
            auditor: auditor.thumbprint().to_string(),
        }
    }

    /// A pipeline file of one instance; all have the same name, and so the same group and memory.
    fn instance(&self, instance: &str, memory: &str) -> PathBuf {
        let name = self.name;
        let more = format!(
            "instance: {instance}\nbatch: {{ rows: 100 }}\nreplay_memory: {memory}\n\
             audit: {{ to: file, path: {instance}.audit, key: audit.key, checkpoints: {instance}.checkpoints, every: 10 }}"
        );
        let file = self.site.pipeline(&Pipeline {
            name,
            mode: "seal",
            dataset: "payments",
            from: name,
            to: &format!("{name}.sealed"),
            dead: &format!("{name}.dead"),
            keys: "header",
            codec: "none",
            more: &more,
        });
        let own = self.site.path().join(format!("{name}-{instance}.yaml"));
        std::fs::rename(file, &own).unwrap();
        own
    }

    /// The key of a client, as the operator hands it out.
    fn mac(&self, client: &str, file: &str) -> (ClientMac, MacKey) {
        let out = format!("{client}.jwk");
        let args = [
            "keys",
            "client",
            client,
            "--dataset",
            "payments",
            "--out",
            &out,
            "--pipeline",
            file,
        ];
        let output = self.site.command(binary(), "pipeline", &args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let path = self.site.path().join(out);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let json = std::fs::read(path).unwrap();
        let jwk: Value = serde_json::from_slice(&json).unwrap();
        let k = jwk["k"].as_str().unwrap();
        assert!(!stderr.contains(k) && output.stdout.is_empty());
        (
            ClientMac::from_jwk(&json).unwrap(),
            MacKey::new(&from_base64url_32(k).unwrap()),
        )
    }

    fn public_key(&self, file: &str) -> RsaPublicJwk {
        let args = ["keys", "public", "payments", "--jwk", "--pipeline", file];
        let output = self.site.command(binary(), "pipeline", &args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        RsaPublicJwk::from_json(output.stdout.trim_ascii()).unwrap()
    }

    /// The decisions in an instance's audit log, which must be whole: rule, principal, count.
    fn audited(&self, instance: &str) -> Vec<(String, Option<String>, u64)> {
        let log = format!("{instance}.audit");
        let checkpoints = format!("{instance}.checkpoints");
        let run = |args: &[&str]| self.site.command(binary(), "pipeline", args).output().unwrap();
        let verified = run(&[
            "audit",
            "verify",
            &log,
            "--checkpoints",
            &checkpoints,
            "--key",
            &self.auditor,
        ]);
        assert!(
            verified.status.success(),
            "{}",
            String::from_utf8_lossy(&verified.stderr)
        );
        let found = run(&["audit", "query", &log, "--output", "json", "--key", &self.auditor]);
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        let events: Vec<Value> = serde_json::from_slice(&found.stdout).unwrap();
        let text = |event: &Value, name: &str| event[name].as_str().map(str::to_owned);
        events
            .iter()
            .map(|event| {
                (
                    text(event, "rule").unwrap(),
                    text(event, "principal"),
                    event["count"].as_u64().unwrap(),
                )
            })
            .collect()
    }

    fn topic(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }

    fn codes(&self) -> BTreeMap<String, u64> {
        let mut codes = BTreeMap::new();
        self.topics.read_each(&self.topic("dead"), |message| {
            let letter: Value = serde_json::from_slice(&message.value.unwrap()).unwrap();
            *codes.entry(letter["code"].as_str().unwrap().to_owned()).or_default() += 1;
        });
        codes
    }
}

fn message(n: u64, card: &str, session: &Session, partition: u64) -> Message {
    let header = ("sealflow-session".to_owned(), Some(session.token().as_bytes().to_vec()));
    Message {
        headers: vec![header],
        ..Message::new(
            i32::try_from(partition % u64::from(PARTITIONS.unsigned_abs())).unwrap(),
            format!(r#"{{"id":{n},"card":"{card}"}}"#),
        )
    }
}

#[test]
fn what_is_sent_again_passes_once_while_two_instances_are_killed_and_nothing_valid_is_refused() {
    let Some(kafka) = Kafka::shared("values that count once, on a real broker") else {
        return;
    };
    let bench = Bench::new(kafka, "votes");
    let memory = "{ topic: votes.memory, create: true }";
    let files = [bench.instance("a", memory), bench.instance("b", memory)];
    let file = files[0].to_str().unwrap();
    let (web, web_key) = bench.mac("web-7", file);
    let (_, other_key) = bench.mac("web-8", file);
    let session = Session::begin(&bench.public_key(file), "payments").unwrap();
    let mut session = session.with_mac(Arc::new(web));
    let mut messages = Vec::new();
    for n in 0..VALUES {
        let sealed = session.seal("card", n.to_string().as_bytes()).unwrap();
        let first = message(n, &sealed, &session, n);
        messages.push(first.clone());
        // Some are sent again at once: on the same partition, or on another one, which another instance may read.
        if n % (VALUES / COPIES) == 0 {
            let partition = if n % 2 == 0 {
                first.partition
            } else {
                (first.partition + 1) % PARTITIONS
            };
            messages.push(Message { partition, ..first });
        }
    }
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let jwe_of = |text: &str| MacJws::parse(text).unwrap().jwe().to_owned();
    let jwe = jwe_of(&session.seal("card", b"1").unwrap());
    let of_iban = jwe_of(&session.seal("iban", b"1").unwrap());
    let once = |client: &str, name: &str| MacHeader::once(client, now, name);
    let bad = [
        web_key.sign(&MacHeader::once("web-7", now - 700, "stale"), &jwe),
        web_key.sign(&MacHeader::once("web-7", now + 700, "ahead"), &jwe),
        MacKey::new(&[1; 32]).sign(&once("web-7", "forged"), &jwe),
        web_key.sign(&once("web-8", "in the name of another client"), &jwe),
        other_key.sign(&once("web-8", "what another client sealed"), &jwe),
        web_key.sign(&once("web-7", "of another column"), &of_iban),
        jwe.clone(),
    ];
    for (n, text) in bad.iter().enumerate() {
        messages.push(message(VALUES + n as u64, text, &session, n as u64));
    }
    bench
        .topics
        .produce_with(bench.name, messages.into_iter(), &[("compression.codec", "none")]);

    let mut running: Vec<Option<Running>> = vec![None, None];
    let until = Instant::now() + Duration::from_secs(180);
    let total = VALUES + COPIES + bad.len() as u64;
    let mut kills = 0;
    let passed = || {
        let sealed = bench.topics.read_all(&bench.topic("sealed")).len() as u64;
        sealed + bench.topics.read_all(&bench.topic("dead")).len() as u64
    };
    loop {
        for (n, slot) in running.iter_mut().enumerate() {
            if let Some(ended) = slot.as_mut().and_then(Running::ended) {
                panic!("{ended}: {}", slot.as_ref().unwrap().read_log());
            }
            if slot.is_none() {
                *slot = Some(Running::start(&bench.site, "pipeline", &files[n], &[]));
            }
        }
        let logs = || {
            running
                .iter()
                .flatten()
                .map(Running::read_log)
                .collect::<Vec<_>>()
                .join("\n---\n")
        };
        assert!(
            Instant::now() < until,
            "{} of {total} after {kills} kills\n{}",
            passed(),
            logs()
        );
        std::thread::sleep(Duration::from_millis(10));
        if kills < 4 {
            let seen = progress(&bench.topics, &bench.topic("sealed"));
            if seen > VALUES * (kills + 1) / 6 {
                running[usize::try_from(kills % 2).unwrap()].take().unwrap().kill();
                kills += 1;
            }
        } else if passed() >= total {
            break;
        }
    }
    for slot in running.into_iter().flatten() {
        slot.kill();
    }

    let mut seen = BTreeSet::new();
    bench.topics.read_each(&bench.topic("sealed"), |message| {
        let value: Value = serde_json::from_slice(&message.value.unwrap()).unwrap();
        assert!(value["card"].as_str().unwrap().starts_with("sf1."));
        assert!(
            seen.insert(value["id"].as_u64().unwrap()),
            "{} passed twice",
            value["id"]
        );
    });
    assert!(seen.iter().copied().eq(0..VALUES));
    let codes = bench.codes();
    let expected = [("cannot-open", 5), ("late", 2), ("replayed", COPIES)];
    assert_eq!(
        codes,
        expected
            .map(|(code, count)| (code.to_owned(), count))
            .into_iter()
            .collect()
    );

    // What was written down; a batch that was read again after a kill may be there twice.
    let mut audited: BTreeMap<(String, bool), u64> = BTreeMap::new();
    for instance in ["a", "b"] {
        for (rule, principal, count) in bench.audited(instance) {
            assert!(
                principal
                    .as_deref()
                    .is_none_or(|name| ["client:web-7", "client:web-8"].contains(&name))
            );
            *audited.entry((rule, principal.is_some())).or_default() += count;
        }
    }
    let count = |rule: &str, is_proved: bool| audited.get(&(rule.to_owned(), is_proved)).copied().unwrap_or(0);
    assert!(count("client.replayed", true) >= COPIES, "{audited:?}");
    assert!(count("client.late", true) >= 2, "{audited:?}");
    // Forged, in another's name, without a MAC: nobody is named. What another sealed, of another column: the client is.
    assert!(
        count("client.cannot-open", false) >= 3 && count("client.cannot-open", true) >= 2,
        "{audited:?}"
    );

    // The dead letters, replayed, are dead letters again.
    let args = ["dlq", "replay", file, "--code", "replayed", "--output", "json"];
    let output = bench.site.command(binary(), "pipeline", &args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (said["replayed"].as_u64(), said["kept"].as_u64()),
        (Some(0), Some(COPIES + 7)),
        "{said}"
    );
}

#[test]
fn a_memory_that_would_forget_or_reorder_is_refused_before_anything_is_read() {
    let Some(kafka) = Kafka::shared("a replay memory that would forget") else {
        return;
    };
    let bench = Bench::new(kafka, "forgetful");
    for (topic, partitions, settings) in [
        ("forgetful.compacted", 1, &[("cleanup.policy", "compact")][..]),
        ("forgetful.short", 1, &[("retention.ms", "3600000")]),
        ("forgetful.small", 1, &[("retention.bytes", "1000000")]),
        ("forgetful.wide", 3, &[("retention.ms", "-1")]),
    ] {
        bench.topics.create(topic, partitions, settings);
    }
    for (memory, says) in [
        ("{ topic: forgetful.compacted }", "is compacted"),
        ("{ topic: forgetful.short }", "forgets before"),
        ("{ topic: forgetful.small }", "forgets before"),
        ("{ topic: forgetful.wide }", "3 partitions"),
        ("{ topic: forgetful.nowhere }", "forgetful.nowhere"),
        ("{ topic: forgetful }", "is read or written by the pipeline"),
        ("null", "replay_memory"),
    ] {
        let file = bench.instance("c", memory);
        let args = ["run", file.to_str().unwrap(), "--until-end"];
        let output = bench.site.command(binary(), "pipeline", &args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{memory}: {stderr}");
        assert!(stderr.contains(says) && stderr.contains("help: "), "{memory}: {stderr}");
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn what_was_taken_before_a_process_died_or_a_transaction_was_aborted_is_read_again_and_passes() {
    let Some(kafka) = Kafka::shared("values that were taken and not committed") else {
        return;
    };
    let bench = Bench::new(kafka, "again");
    let path = bench.instance("d", "{ topic: again.memory, create: true }");
    let file = path.to_str().unwrap();
    let (web, _) = bench.mac("web-7", file);
    let session = Session::begin(&bench.public_key(file), "payments").unwrap();
    let mut session = session.with_mac(Arc::new(web));
    let values = 900;
    let messages: Vec<Message> = (0..values)
        .map(|n| message(n, &session.seal("card", b"1").unwrap(), &session, n))
        .collect();
    bench.topics.produce(bench.name, &messages);
    // Dead after the claims of its first batch, and before anything of it is written; then aborted twice.
    let run = |failpoints: &str| {
        let mut command = bench.site.command(binary(), "pipeline", &["run", file, "--until-end"]);
        command.env("FAILPOINTS", failpoints).output().unwrap()
    };
    for step in ["begin=1*return(abort)", "before-commit=1*return(abort)"] {
        let died = run(step);
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&died.status),
            Some(6),
            "{step}"
        );
        assert_eq!(bench.topics.read_all(&bench.topic("sealed")).len(), 0);
    }
    assert!(progress(&bench.topics, "again.memory") > 0, "it had taken values");
    let ended = run("before-commit=2*return->off");
    let log = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && log.contains("by a failpoint"), "{log}");
    assert_eq!(bench.topics.read_all(&bench.topic("sealed")).len() as u64, values);
    assert_eq!(bench.codes(), BTreeMap::new());
}
