//! The hybrid flow on a real broker: clients seal, the pipeline opens and seals again under `SIGKILL`, into a topic and into a
//! table; a reader gets answers that only their own key opens. Nothing in clear on the way.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use sealflow_client::{RsaPublicJwk, Session};
use sealflow_local_kms::KeySpec;
use sealflow_testbed::{KEY_ARN, Kafka, Message, Pipeline, Site, Topics};
use serde_json::{Value, json};

use crate::clean::assert_clean;
use crate::support::{PARTITIONS, Running, binary, create_topics, pipeline, progress, run_to_end, setting};

const NAME: &str = "hybrid";
const CANARY: &str = "canary-hybrid-77c1";
const SESSIONS: u64 = 50;
const RSA_ID: &str = "00000000-0000-4000-8000-0000000000a1";
const SCHEMA: &str = "
dataset: payments
version: 1
fields:
  - { name: id, type: int64 }
  - { name: card, type: string }
  - { name: amount, type: float64 }
";

fn policy() -> String {
    let rsa = KEY_ARN.replace("00000000-0000-4000-8000-000000000001", RSA_ID);
    format!(
        r#"
dataset: payments
version: 1
keys: {{ default: {{ arn: "{KEY_ARN}" }} }}
client: {{ keys: {{ web: {{ arn: "{rsa}" }} }} }}
acls:
  pii: {{ allow: ["arn:aws:iam::111122223333:role/support"] }}
  ops: {{ allow: ["arn:aws:iam::111122223333:role/analyst", "arn:aws:iam::111122223333:role/support"] }}
columns:
  - {{ path: card, key: default, acl: pii, flow: hybrid }}
  - {{ path: amount, key: default, acl: ops, flow: hybrid, at: column }}
dead_letters: {{ key: default, acl: ops }}
table: {{ key: default, acl: ops }}
"#
    )
}

fn card(n: u64) -> String {
    format!("{CANARY}-{n}")
}

fn message(n: u64, card: &str, amount: &str, session: Option<&str>) -> Message {
    let header = session.map(|session| ("sealflow-session".to_owned(), Some(session.as_bytes().to_vec())));
    Message {
        headers: header.into_iter().collect(),
        timestamp: Some(1_767_225_600_000 + i64::try_from(n).unwrap()),
        ..Message::new(
            i32::try_from(n % u64::from(PARTITIONS.unsigned_abs())).unwrap(),
            format!(r#"{{"id":{n}, "card":"{card}","amount":"{amount}"}}"#),
        )
    }
}

struct Bench {
    kafka: &'static Kafka,
    topics: Topics,
    site: Site,
    seal: PathBuf,
}

impl Bench {
    fn new() -> Option<Self> {
        let kafka = Kafka::shared("the hybrid flow on a real broker")?;
        let topics = kafka.topics();
        create_topics(&topics, NAME);
        let site = Site::new(&kafka.brokers());
        let trusted = ["pipeline", "support"].map(|role| format!("\"arn:aws:iam::111122223333:role/{role}\""));
        let key_policy = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"AWS":[{}]}},"Action":"kms:*","Resource":"*"}}]}}"#,
            trusted.join(",")
        );
        let spec = KeySpec::Rsa(sealflow_client::RsaBits::Rsa2048);
        site.block_on(
            site.kms()
                .create_key_of(spec, Some(RSA_ID), "clients", Some(&key_policy)),
        )
        .unwrap();
        site.publish("payments", 1, &policy());
        let seal = pipeline(&site, NAME, "seal", "");
        Some(Self {
            kafka,
            topics,
            site,
            seal,
        })
    }

    fn run(&self, role: &str, args: &[&str]) -> Output {
        self.site.command(binary(), role, args).output().unwrap()
    }

    /// What the command prints, which must succeed.
    fn say(&self, role: &str, args: &[&str]) -> String {
        let output = self.run(role, args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        assert!(!stderr.contains(CANARY), "{stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A pipeline of the same topic into a table.
    fn landing(&self) -> PathBuf {
        let file = self.site.pipeline(&Pipeline {
            name: "hybrid-lake",
            mode: "seal",
            dataset: "payments",
            from: NAME,
            to: "none",
            dead: &format!("{NAME}.dead"),
            keys: "header",
            codec: "none",
            more: "",
        });
        std::fs::write(self.site.path().join("schema.yaml"), SCHEMA).unwrap();
        let yaml = std::fs::read_to_string(&file).unwrap();
        let (start, end) = (yaml.find("target:\n").unwrap(), yaml.find("catalogue:").unwrap());
        let lake = self.site.path().join("lake");
        let target = format!(
            "target:\n  table: {{ location: \"{}\", schema: schema.yaml }}\n",
            lake.display()
        );
        std::fs::write(&file, format!("{}{target}{}", &yaml[..start], &yaml[end..])).unwrap();
        file
    }

    /// Pipes `input` through `sealflow client open`.
    fn open(&self, input: &str) -> Vec<Value> {
        let mut command = self.site.command(
            binary(),
            "support",
            &["client", "open", "--key", "reader.key", "--dataset", "payments"],
        );
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        let writing = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output().unwrap();
        writing.join().unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[test]
fn what_clients_seal_passes_once_under_kills_and_is_read_by_nobody_but_the_readers_key() {
    let Some(bench) = Bench::new() else { return };
    let records = setting("SEALFLOW_E2E_RECORDS", 100_000).min(20_000);
    let file = bench.seal.to_str().unwrap();
    let jwk = bench.say("pipeline", &["keys", "public", "payments", "--jwk", "--pipeline", file]);
    let to = RsaPublicJwk::from_json(jwk.trim().as_bytes()).unwrap();
    let mut sessions: Vec<Session> = (0..SESSIONS)
        .map(|_| Session::begin(&to, "payments").unwrap())
        .collect();
    let mut elsewhere = Session::begin(&to, "refunds").unwrap();
    let mut messages = Vec::new();
    for n in 0..records {
        let session = &mut sessions[usize::try_from(n % SESSIONS).unwrap()];
        let sealed = session.seal("card", format!("\"{}\"", card(n)).as_bytes()).unwrap();
        let amount = session.seal("amount", format!("{n}.25").as_bytes()).unwrap();
        messages.push(message(n, &sealed, &amount, Some(session.token())));
    }
    // What is not as it should be: of another dataset, of another column, in clear, without its session.
    let moved = elsewhere.seal("card", format!("\"{}\"", card(0)).as_bytes()).unwrap();
    let amount = sessions[0].seal("amount", b"1").unwrap();
    let good = sessions[0].seal("card", format!("\"{}\"", card(0)).as_bytes()).unwrap();
    let token = sessions[0].token().to_owned();
    let bad = [
        message(records, &moved, &amount, Some(elsewhere.token())),
        message(records + 1, &amount, &amount, Some(&token)),
        message(records + 2, &good, &amount, None),
    ];
    messages.extend(bad);
    bench
        .topics
        .produce_with(NAME, messages.into_iter(), &[("compression.codec", "none")]);

    // Into a topic, killed three times on the way.
    let (sealed_topic, dead_topic) = (format!("{NAME}.sealed"), format!("{NAME}.dead"));
    for kill in 1..=3 {
        let mut running = Running::start(&bench.site, "pipeline", &bench.seal, &[]);
        let (goal, until) = (records * kill / 4, Instant::now() + Duration::from_secs(120));
        while progress(&bench.topics, &sealed_topic) < goal {
            assert!(running.ended().is_none(), "{}", running.read_log());
            assert!(Instant::now() < until, "{}", running.read_log());
            std::thread::sleep(Duration::from_millis(20));
        }
        running.kill();
    }
    run_to_end(&bench.site, &bench.seal, Duration::from_secs(120));
    let mut seen: BTreeMap<u64, u64> = BTreeMap::new();
    bench.topics.read_each(&sealed_topic, |message| {
        let text = String::from_utf8(message.value.unwrap()).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        *seen.entry(value["id"].as_u64().unwrap()).or_default() += 1;
        assert!(value["card"].as_str().unwrap().starts_with("sf1."), "{text}");
        assert!(value["amount"].as_str().unwrap().starts_with("sf1."), "{text}");
        assert!(
            message.headers.iter().all(|(name, _)| name == "sealflow-keys"),
            "{:?}",
            message.headers
        );
    });
    assert_eq!(seen.len() as u64, records);
    assert!(seen.values().all(|times| *times == 1));
    let codes: Vec<String> = bench.topics.read_all(&dead_topic).into_iter().map(code).collect();
    assert_eq!(codes, vec!["cannot-open"; 3]);
    // Each process asks once for each session, and for no value.
    let decrypts = bench.site.kms().requests("Decrypt");
    assert!((SESSIONS..=5 * (SESSIONS + 1) + 5).contains(&decrypts), "{decrypts}");

    // Read for somebody whose answers only their own key opens.
    let public = bench.say(
        "support",
        &["client", "keygen", "--output", "reader.key", "--bits", "2048"],
    );
    std::fs::write(bench.site.path().join("reader.jwk"), &public).unwrap();
    let source = format!("kafka:///{sealed_topic}");
    let read = [
        "read",
        &source,
        "--pipeline",
        file,
        "--output",
        "json",
        "--last",
        "100",
        "--seal-to",
        "reader.jwk",
    ];
    let answer = bench.say("support", &read);
    assert!(!answer.contains(CANARY) && answer.contains("eyJ"));
    let opened = bench.open(&answer);
    assert!(opened.len() >= 500, "{}", opened.len());
    for record in &opened {
        let value = &record["value"];
        let n = value["id"].as_u64().unwrap();
        assert_eq!(
            (&value["card"], &value["amount"]),
            (&json!(card(n)), &json!(n as f64 + 0.25))
        );
    }
    // To whom the ACL refuses a column, it is masked and not sealed.
    let refused = bench.say("analyst", &read);
    let first: Value = serde_json::from_str(refused.lines().next().unwrap()).unwrap();
    assert!(first["value"]["card"].is_null() && first["value"]["amount"].as_str().unwrap().starts_with("eyJ"));

    // Into a table, and read from there in the same way.
    let landing = bench.landing();
    run_to_end(&bench.site, &landing, Duration::from_secs(120));
    let lake = bench.site.path().join("lake");
    let lake = lake.to_str().unwrap();
    let by = ["--pipeline", landing.to_str().unwrap()];
    let all = bench.say(
        "support",
        &[
            &["read", lake, "--output", "json", "--columns", "id,card,amount"],
            &by[..],
        ]
        .concat(),
    );
    let rows: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len() as u64, records);
    for row in &rows {
        let n = row["id"].as_u64().unwrap();
        assert_eq!(
            (&row["card"], &row["amount"]),
            (&json!(card(n)), &json!(n as f64 + 0.25))
        );
    }
    let limited = [
        "read",
        lake,
        "--output",
        "json",
        "--limit",
        "50",
        "--seal-to",
        "reader.jwk",
    ];
    let answer = bench.say("support", &[&limited[..], &by[..]].concat());
    assert!(!answer.contains(CANARY));
    let opened = bench.open(&answer);
    assert_eq!(opened.len(), 50);
    for row in &opened {
        let n = row["id"].as_u64().unwrap();
        assert_eq!(
            (&row["card"], &row["amount"]),
            (&json!(card(n)), &json!(n as f64 + 0.25))
        );
    }
    let table = bench.run(
        "support",
        &[&["read", lake, "--seal-to", "reader.jwk"], &by[..]].concat(),
    );
    assert_eq!(
        table.status.code(),
        Some(64),
        "{}",
        String::from_utf8_lossy(&table.stderr)
    );

    // Nobody ever had it in clear: not the broker, no log, no file.
    let holds = |bytes: &[u8]| bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
    assert_clean(bench.site.path(), &holds);
    assert_clean(&bench.kafka.data_dir(), &holds);
}

fn code(letter: Message) -> String {
    let json: Value = serde_json::from_slice(&letter.value.unwrap()).unwrap();
    json["code"].as_str().unwrap().to_owned()
}
