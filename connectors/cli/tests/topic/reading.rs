//! What each reader sees of the same topic: real broker, real KMS protocol, identities told by STS.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;
use std::time::Duration;

use sealflow::jose::PrivateJwk;
use sealflow_testbed::{KEY_ARN, Kafka, Message, Moto, Site, Topics, or_skip};
use serde_json::{Value, json};

use crate::support::{PARTITIONS, binary, create_topics, pipeline, run_to_end};

pub(crate) const RECORDS: u32 = 60;
pub(crate) const EMAIL: &str = "ann@example.com";
pub(crate) const NOTE: &str = "call at nine";

pub(crate) fn policy(version: u32, ops: &str, more: &str) -> String {
    format!(
        r#"
dataset: payments
version: {version}
{more}
keys: {{ default: {{ arn: "{KEY_ARN}" }} }}
acls:
  pii:
    allow:
      - arn:aws:iam::111122223333:role/analyst
      - arn:aws:iam::111122223333:role/intern
      - {{ principal: "arn:aws:iam::111122223333:role/temp", until: "2026-01-01T00:00:00Z" }}
      - {{ principal: "arn:aws:iam::111122223333:role/fraud", purposes: [fraud] }}
    refused: redact
  ops: {{ allow: [{ops}] }}
dead_letters: {{ key: default, acl: ops }}
columns:
  - {{ path: user.email, key: default, acl: pii }}
  - {{ path: note, key: default, acl: ops }}
  - {{ path: $key, key: default, acl: ops }}
"#
    )
}

pub(crate) const OPS: &str = "\"arn:aws:iam::111122223333:role/analyst\", \"arn:aws:iam::111122223333:role/support\"";

fn record(n: u32) -> Message {
    Message {
        partition: i32::try_from(n).unwrap() % PARTITIONS,
        key: Some(format!("customer {n}").into_bytes()),
        headers: vec![("trace".into(), Some(b"t".to_vec()))],
        timestamp: Some(1_767_225_600_000 + i64::from(n)),
        ..Message::new(
            0,
            format!(r#"{{"n":{n}, "user":{{"email":"{EMAIL}","age":30.50}},"note":"{NOTE}"}}"#),
        )
    }
}

/// A site with a sealed topic `NAME.sealed`.
pub(crate) struct Sealed {
    pub(crate) site: Site,
    /// Thumbprint of the audit key.
    pub(crate) auditor: String,
    pub(crate) name: &'static str,
    pub(crate) file: String,
    pub(crate) brokers: String,
}

impl Sealed {
    pub(crate) fn new(kafka: &Kafka, name: &'static str) -> (Self, Topics) {
        Self::on(Site::new(&kafka.brokers()), kafka, name)
    }

    fn on(site: Site, kafka: &Kafka, name: &'static str) -> (Self, Topics) {
        let topics = kafka.topics();
        create_topics(&topics, name);
        site.publish("payments", 1, &policy(1, OPS, ""));
        topics.produce(name, &(0..RECORDS).map(record).collect::<Vec<_>>());
        let path = pipeline(&site, name, "seal", "");
        run_to_end(&site, &path, Duration::from_secs(60));
        let auditor = PrivateJwk::generate().unwrap();
        let key = site.path().join("audit.key");
        std::fs::write(&key, auditor.to_private_json().expose()).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let sealed = Self {
            auditor: auditor.thumbprint().to_string(),
            file: path.to_str().unwrap().to_owned(),
            brokers: kafka.brokers(),
            site,
            name,
        };
        (sealed, topics)
    }

    pub(crate) fn read(&self, role: &str, more: &[&str]) -> Output {
        let source = format!("kafka:///{}.sealed", self.name);
        self.read_from(&source, role, more)
    }

    /// As `role`, with every decision in `audit.log`.
    pub(crate) fn read_from(&self, source: &str, role: &str, more: &[&str]) -> Output {
        let mut args = vec!["read", source, "--pipeline", &self.file];
        args.extend(["--audit", "audit.log", "--audit-key", "audit.key"]);
        args.extend(more);
        self.site.command(binary(), role, &args).output().unwrap()
    }

    /// What the audit log says, which must be whole.
    pub(crate) fn audited(&self, more: &[&str]) -> Vec<Value> {
        let run = |args: &[&str]| self.site.command(binary(), "intern", args).output().unwrap();
        let verified = run(&[
            "audit",
            "verify",
            "audit.log",
            "--checkpoints",
            "audit.log.checkpoints",
            "--key",
            &self.auditor,
        ]);
        assert!(verified.status.success(), "{}", stderr(&verified));
        let found = run(&[
            &[
                "audit",
                "query",
                "audit.log",
                "--output",
                "json",
                "--key",
                &self.auditor,
            ],
            more,
        ]
        .concat());
        assert!(found.status.success() && found.stderr.is_empty(), "{}", stderr(&found));
        let text = String::from_utf8(found.stdout).unwrap();
        for value in [EMAIL, NOTE, "customer 1"] {
            assert!(!text.contains(value), "{value} is in the audit log");
        }
        serde_json::from_str(&text).unwrap()
    }

    /// The records of `--output json`, by their numbers.
    pub(crate) fn records(&self, role: &str, more: &[&str]) -> Vec<Value> {
        let output = self.read(role, &[&["--output", "json"], more].concat());
        assert_eq!(output.status.code(), Some(0), "{role}: {}", stderr(&output));
        of(&output)
    }
}

pub(crate) fn of(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let mut records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    records.sort_by_key(|record| record["value"]["n"].as_u64());
    records
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn everybody_sees_exactly_their_columns_of_one_topic_and_a_refused_column_fails_nothing() {
    let Some(kafka) = Kafka::shared("reading a topic as several principals") else {
        return;
    };
    let (sealed, _) = Sealed::new(kafka, "reading");
    let redacted = json!("[redacted]");
    for (role, more, email, note, key) in [
        ("analyst", &[][..], json!(EMAIL), json!(NOTE), true),
        ("support", &[], redacted.clone(), json!(NOTE), true),
        // Ended on the first of January.
        ("temp", &[], redacted.clone(), Value::Null, false),
        ("guest", &[], redacted.clone(), Value::Null, false),
        ("fraud", &["--purpose", "fraud"], json!(EMAIL), Value::Null, false),
        ("fraud", &[], redacted.clone(), Value::Null, false),
    ] {
        let records = sealed.records(role, more);
        assert_eq!(records.len(), RECORDS as usize, "{role}");
        for (n, seen) in records.iter().enumerate() {
            let value = json!({"n": n, "user": {"email": email, "age": 30.5}, "note": note});
            assert_eq!(seen["value"], value, "{role} {more:?}");
            let key = if key {
                json!(format!("customer {n}"))
            } else {
                Value::Null
            };
            assert_eq!(seen["key"], key, "{role}");
            assert_eq!(seen["headers"], json!([{"name": "trace", "value": "t"}]));
        }
    }
    // The audit log tells the same story.
    for (role, labels) in [
        ("analyst", ["allowed", "allowed", "allowed"]),
        ("support", ["allowed", "allowed", "refused"]),
        ("temp", ["refused", "refused", "refused"]),
    ] {
        let principal = format!("arn:aws:iam::111122223333:role/{role}");
        let events = sealed.audited(&["--principal", &principal]);
        for (label, decision) in ["$key", "note", "user.email"].into_iter().zip(labels) {
            let of_label = events.iter().filter(|event| event["label"] == label);
            let counts = of_label.map(|event| {
                assert_eq!(
                    (&event["decision"], &event["proof"]),
                    (&json!(decision), &json!("sts-credentials"))
                );
                assert_eq!(
                    (&event["dataset"], &event["policy_version"]),
                    (&json!("payments"), &json!(1))
                );
                event["count"].as_u64().unwrap()
            });
            assert_eq!(counts.sum::<u64>(), u64::from(RECORDS), "{role} {label}");
        }
    }
    let ended = sealed.audited(&["--principal", "*/temp", "--label", "user.email"]);
    assert!(ended.is_empty(), "a star is for the end only");
    let output = sealed.read("temp", &["--output", "json"]);
    let said = stderr(&output);
    assert!(
        said.contains("masked: 60 values of user.email: acls.pii.allow[2] names it, and ended at 2026-01-01T00:00:00Z"),
        "{said}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\"age\":30.50"), "numbers keep their spelling: {text}");

    // Revoked: the newest policy counts for what was written long before it.
    assert_eq!(sealed.records("support", &[])[0]["value"]["note"], json!(NOTE));
    sealed.site.publish(
        "payments",
        2,
        &policy(2, "\"arn:aws:iam::111122223333:role/analyst\"", ""),
    );
    assert_eq!(sealed.records("support", &[])[0]["value"]["note"], Value::Null);
    assert_eq!(sealed.records("analyst", &[])[0]["value"]["note"], json!(NOTE));

    // The ACL lets the intern open it, KMS does not: masked, said, and the exit code of a refusal.
    let output = sealed.read("intern", &["--output", "json"]);
    assert_eq!(output.status.code(), Some(77), "{}", stderr(&output));
    let records = of(&output);
    assert_eq!(records.len(), RECORDS as usize);
    assert!(
        records
            .iter()
            .all(|record| record["value"]["user"] == json!({"email": null, "age": 30.5}))
    );
    assert!(
        stderr(&output).contains("key-refused: 60 values of user.email"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn sessions_that_moto_gave_read_as_their_roles() {
    let Some(kafka) = Kafka::shared("reading as sessions of moto's STS") else {
        return;
    };
    let Some(moto) = or_skip("reading as sessions of moto's STS", Moto::start()) else {
        return;
    };
    let role = |name: &str| format!("arn:aws:iam::111122223333:role/{name}");
    let sessions = ["analyst", "support", "guest"].map(|name| moto.assume(&role(name)));
    let site = Site::with_principals(&kafka.brokers(), sessions.to_vec());
    let (sealed, _) = Sealed::on(site, kafka, "sessions");
    // The KMS is ours, who asks is for moto to say.
    let ours = format!("sts_endpoint: \"{}\"", sealed.site.kms().endpoint());
    let yaml = std::fs::read_to_string(&sealed.file).unwrap();
    assert!(yaml.contains(&ours));
    let moto_says = yaml.replace(&ours, &format!("sts_endpoint: \"{}\"", moto.endpoint()));
    std::fs::write(&sealed.file, moto_says).unwrap();
    let redacted = json!("[redacted]");
    for ((name, session), (email, note)) in ["analyst", "support", "guest"].iter().zip(&sessions).zip([
        (json!(EMAIL), json!(NOTE)),
        (redacted.clone(), json!(NOTE)),
        (redacted, Value::Null),
    ]) {
        assert!(
            session.arn.contains(&format!(":assumed-role/{name}/")),
            "{}",
            session.arn
        );
        let token = session.session_token.as_ref().unwrap();
        let args = [
            "read",
            "kafka:///sessions.sealed",
            "--pipeline",
            &sealed.file,
            "--output",
            "json",
        ];
        let mut command = sealed.site.command(binary(), name, &args);
        command
            .env("AWS_ACCESS_KEY_ID", &session.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", session.secret_access_key.expose())
            .env("AWS_SESSION_TOKEN", token.expose());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {}", stderr(&output));
        assert!(
            stderr(&output).contains(&format!("as {}", role(name))),
            "{}",
            stderr(&output)
        );
        let records = of(&output);
        assert_eq!(records.len(), RECORDS as usize);
        assert_eq!(
            (&records[7]["value"]["user"]["email"], &records[7]["value"]["note"]),
            (&email, &note),
            "{name}"
        );
    }
}

#[test]
fn a_topic_is_read_from_where_one_says_in_every_form() {
    let Some(kafka) = Kafka::shared("reading a topic in every form") else {
        return;
    };
    let (sealed, _) = Sealed::new(kafka, "forms");
    let numbers = |more: &[&str]| -> Vec<u64> {
        let records = sealed.records("analyst", more);
        records
            .iter()
            .map(|record| record["value"]["n"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(
        numbers(&["--from", "2026-01-01T00:00:00.050Z"]),
        (50..60).collect::<Vec<_>>()
    );
    assert_eq!(numbers(&["--partition", "1", "--from", "8"]), [49, 55]);
    assert_eq!(numbers(&["--limit", "7"]).len(), 7);
    assert_eq!(numbers(&["--partition", "2,3"]).len(), 20);
    let last = numbers(&["--last", "3"]);
    assert!(last.len() >= 6 && last.contains(&59), "{last:?}");

    let csv = sealed.read("support", &["--output", "csv", "--columns", "user.email,n,user"]);
    let csv = String::from_utf8(csv.stdout).unwrap();
    let mut lines = csv.lines();
    assert_eq!(
        lines.next(),
        Some("$partition,$offset,$timestamp,$key,user.email,n,user")
    );
    let first = lines.find(|line| line.starts_with("1,0,")).unwrap();
    assert_eq!(
        first,
        r#"1,0,2026-01-01T00:00:00.001Z,customer 1,[redacted],1,"{""email"":""[redacted]"",""age"":30.50}""#
    );

    let table = sealed.read("analyst", &["--limit", "2", "--partition", "0"]);
    let table = String::from_utf8(table.stdout).unwrap();
    insta::assert_snapshot!("read_table", table);

    let arrow = sealed.read("support", &["--output", "arrow"]);
    let batches: Vec<_> = arrow::ipc::reader::StreamReader::try_new(&arrow.stdout[..], None)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(
        batches.iter().map(arrow::array::RecordBatch::num_rows).sum::<usize>(),
        RECORDS as usize
    );
    let names: Vec<_> = batches[0]
        .schema()
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect();
    assert_eq!(
        names,
        [
            "$partition",
            "$offset",
            "$timestamp",
            "$key",
            "n",
            "user.email",
            "user.age",
            "note"
        ]
    );

    // Without the pipeline file, and of a topic that is not there.
    let (catalogue, endpoint) = (sealed.site.catalogue(), sealed.site.kms().endpoint());
    let alone = |topic: &str| {
        let source = format!("kafka://{}/{topic}", sealed.brokers);
        let owner = sealed.site.owner().to_string();
        let args = [
            "read",
            &source,
            "--dataset",
            "payments",
            "--catalogue",
            catalogue.to_str().unwrap(),
            "--owner",
            &owner,
            "--kms-endpoint",
            &endpoint,
            "--kms-region",
            "eu-central-1",
            "--output",
            "json",
        ];
        sealed.site.command(binary(), "analyst", &args).output().unwrap()
    };
    let output = alone("forms.sealed");
    assert_eq!(of(&output).len(), RECORDS as usize, "{}", stderr(&output));
    let output = alone("nowhere");
    assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
    assert!(
        output.stdout.is_empty() && stderr(&output).contains("nowhere does not exist"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn what_is_not_what_it_seems_is_refused_with_its_own_message() {
    let Some(kafka) = Kafka::shared("refusals of a reader") else {
        return;
    };
    let (sealed, topics) = Sealed::new(kafka, "refusals");

    // A sealed e-mail address in the place of a note, which support may open.
    let mut moved = topics.read_all("refusals.sealed").remove(0);
    let mut value: Value = serde_json::from_slice(moved.value.as_ref().unwrap()).unwrap();
    value["note"] = value["user"]["email"].clone();
    value["n"] = json!(1_000);
    moved.value = Some(value.to_string().into_bytes());
    topics.create("moved", 1, &[]);
    topics.produce("moved", &[Message { partition: 0, ..moved }]);
    let read =
        |role: &str, more: &[&str]| sealed.read_from("kafka:///moved", role, &[&["--output", "json"], more].concat());
    let output = read("support", &[]);
    assert_eq!(output.status.code(), Some(77), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("a value of user.email was found at note"),
        "{}",
        stderr(&output)
    );
    assert_eq!(of(&output)[0]["value"]["note"], Value::Null);
    let output = read("support", &["--moved"]);
    assert_eq!(
        (output.status.code(), &of(&output)[0]["value"]["note"]),
        (Some(0), &json!("[redacted]"))
    );
    let output = read("analyst", &["--moved"]);
    assert_eq!(
        (output.status.code(), &of(&output)[0]["value"]["note"]),
        (Some(0), &json!(EMAIL))
    );

    // Somebody else without proof.
    let output = sealed.read("intern", &["--as", "arn:aws:iam::111122223333:role/analyst"]);
    assert_eq!(output.status.code(), Some(77));
    assert!(
        output.stdout.is_empty() && stderr(&output).contains("--as proves nothing"),
        "{}",
        stderr(&output)
    );

    // A topic that was never sealed.
    let output = sealed.read_from("kafka:///refusals", "analyst", &["--output", "json"]);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(
        !text.contains(EMAIL) && !text.contains(NOTE) && !text.contains("customer"),
        "{text}"
    );

    // Policies: edited, of somebody else, of another dataset.
    let place = sealed.site.catalogue().join("policies/payments/0000000002.jws");
    let refused = |jws: &str, because: &str| {
        std::fs::write(&place, jws).unwrap();
        let output = sealed.read("analyst", &["--output", "json"]);
        assert_eq!(output.status.code(), Some(78), "{because}: {}", stderr(&output));
        assert!(
            output.stdout.is_empty() && stderr(&output).contains(because),
            "{because}: {}",
            stderr(&output)
        );
    };
    let second = policy(2, OPS, "");
    let jws = sealed.site.sign(&second);
    let (head, signature) = jws.rsplit_once('.').unwrap();
    let edited = sealed.site.sign(&policy(2, &OPS.replace("support", "guest"), ""));
    let (edited, _) = edited.rsplit_once('.').unwrap();
    assert_ne!(head, edited);
    refused(&format!("{edited}.{signature}"), "the signature does not verify");
    let stranger = Site::new(&sealed.brokers);
    refused(&stranger.sign(&second), "is no pinned owner");
    refused(
        &sealed.site.sign(&second.replace("payments", "invoices")),
        "does not belong there",
    );
    refused(&sealed.site.sign(&policy(2, OPS, "lease: required")), "needs a lease");

    // Each has its line, and who was there already.
    let events = sealed.audited(&[]);
    for (decision, principal, rule) in [
        ("failed", "support", "a value of user.email was found at note"),
        ("refused", "", "--as proves nothing"),
        ("failed", "analyst", "holds something that is no sealed value"),
        ("refused", "role/analyst", "the signature does not verify"),
        ("refused", "role/analyst", "is no pinned owner"),
        ("refused", "role/analyst", "does not belong there"),
        ("refused", "role/analyst", "needs a lease"),
    ] {
        let told = events.iter().any(|event| {
            let text = |name: &str| event[name].as_str().unwrap_or_default();
            text("decision") == decision && text("principal").ends_with(principal) && text("rule").contains(rule)
        });
        assert!(told, "{rule}: {events:#?}");
    }
}

#[test]
fn what_cannot_be_written_down_is_not_shown() {
    let Some(kafka) = Kafka::shared("an audit log that cannot be written") else {
        return;
    };
    let (sealed, _) = Sealed::new(kafka, "unwritten");
    // Nothing can be written there, as on a full disk.
    let args = ["--output", "json", "--audit-checkpoints", "/dev/full"];
    let output = sealed.read("analyst", &args);
    assert_eq!(output.status.code(), Some(77), "{}", stderr(&output));
    assert!(
        output.stdout.is_empty() && stderr(&output).contains("/dev/full"),
        "{}",
        stderr(&output)
    );

    // Nobody goes on with a log whose tail was taken away.
    let records = sealed.records("analyst", &[]);
    assert_eq!(records.len(), RECORDS as usize);
    let path = sealed.site.path().join("audit.log");
    let log = std::fs::read_to_string(&path).unwrap();
    let cut: String = log.lines().take(2).flat_map(|line| [line, "\n"]).collect();
    assert!(cut.len() < log.len());
    std::fs::write(&path, cut).unwrap();
    let output = sealed.read("analyst", &["--output", "json"]);
    assert_eq!(output.status.code(), Some(65), "{}", stderr(&output));
    assert!(
        output.stdout.is_empty() && stderr(&output).contains("its tail was cut off"),
        "{}",
        stderr(&output)
    );
}
