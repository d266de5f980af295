//! Encrypted Parquet, end to end: written under keys of a local KMS, read by this command and by PyArrow, Spark and
//! DuckDB, each with a small KMS client of its own over the same KMS.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod in_buckets;
mod others;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use common::{LocalKms, Place};
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::envelope::read_header;
use sealflow::keys::testing::MemoryCatalogue;
use sealflow::keys::{DomainKeys, KeyService, SealingKeys};
use sealflow::pipeline::{Format, Headers, KeysPlacement, Position, Record, SealTransform, Timestamp, apply_all};
use sealflow::policy::{FixedPolicies, VerifiedPolicy};
use sealflow::seal::UsageLimits;
use sealflow::secret::SecretString;
use sealflow::table::{
    Compression, FileId, Origin, RowEncoder, TableKeys, TableLayout, TableSchema, TableWriter, WriteOptions,
};
use sealflow_kms::{AwsKms, KmsConfig, StaticCredentials};

pub(crate) const ROWS: i64 = 1_000;
const FOLDER: &str = "topic=orders/date=2026-01-01";
const FILE: &str = "lake/payments/topic=orders/date=2026-01-01/a.parquet";
const SCHEMA: &str = r#"
dataset: payments
version: 1
fields:
  - { name: id, type: int64 }
  - { name: email, type: string }
  - { name: card, type: string }
  - { name: salary, type: int64 }
"#;

/// A place with a KMS, keys and policy.
pub(crate) struct Lake {
    pub(crate) place: Place,
    pub(crate) kms: LocalKms,
    policy: String,
    keys: [String; 3],
}

impl Lake {
    /// `table`: the rest of the policy's section.
    pub(crate) fn new(table: &str) -> Self {
        let place = Place::new();
        let key = |policy: Option<&str>| {
            let mut args = vec!["kms", "create-key"];
            args.extend(policy.map(|path| ["--policy", path]).into_iter().flatten());
            place.ok(&args).trim().to_owned()
        };
        let (ops, pii) = (key(None), key(None));
        // Whoever writes gets data keys of it; nobody opens them again.
        place.write(
            "closed.json",
            r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":["kms:GenerateDataKey","kms:Encrypt","kms:DescribeKey"],"Resource":"*"}]}"#,
        );
        let closed = key(Some("closed.json"));
        let policy = format!(
            r#"
dataset: payments
version: 1
keys: {{ ops: {{ arn: "{ops}" }}, pii: {{ arn: "{pii}" }}, closed: {{ arn: "{closed}" }} }}
acls:
  ops: {{ allow: ["arn:aws:iam::111122223333:role/analyst", "arn:aws:iam::111122223333:role/support"] }}
  pii: {{ allow: ["arn:aws:iam::111122223333:role/analyst"], refused: redact }}
columns:
  - {{ path: email, key: pii, acl: pii }}
  - {{ path: card, key: pii, acl: pii, at: column }}
  - {{ path: salary, key: closed, acl: pii, at: column }}
table: {{ key: ops, acl: ops{table} }}
"#
        );
        place.write("policy.yaml", &policy);
        let kms = LocalKms::serve(&place);
        Self {
            place,
            kms,
            policy,
            keys: [ops, pii, closed],
        }
    }

    /// Two keys that open for everybody, and one that opens for nobody: of a footer by its ARN, of columns by their ids, as
    /// other tools cannot have an ARN there.
    pub(crate) fn keys_of_others(&self) -> [String; 3] {
        let id = |arn: &str| arn.rsplit_once('/').unwrap().1.to_owned();
        let [footer, column, closed] = &self.keys;
        [footer.clone(), id(column), id(closed)]
    }

    /// The policy with other text in it.
    pub(crate) fn with_policy(mut self, from: &str, to: &str) -> Self {
        assert!(self.policy.contains(from));
        self.policy = self.policy.replace(from, to);
        self.place.write("policy.yaml", &self.policy);
        self
    }

    pub(crate) fn credentials(&self) -> (String, String) {
        let text = self.place.read("local-kms/credentials");
        let value = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_once('=').unwrap().1.trim().to_owned()
        };
        (value("aws_access_key_id"), value("aws_secret_access_key"))
    }

    /// Writes the records as one file of the table.
    pub(crate) async fn write(&self, compression: Compression) -> PathBuf {
        let (id, secret) = self.credentials();
        let config = KmsConfig {
            endpoint: Some(self.kms.endpoint.clone()),
            credentials: Some(StaticCredentials {
                access_key_id: id,
                secret_access_key: SecretString::new(secret),
                session_token: None,
            }),
            ..KmsConfig::default()
        };
        let kms: Arc<dyn KeyService> = Arc::new(AwsKms::new(&config).await.unwrap());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let clock = Arc::new(ManualClock::at(UnixMillis(now.as_millis() as u64)));
        let catalogue = Arc::new(MemoryCatalogue::new());
        let policy = Arc::new(VerifiedPolicy::unsigned_for_development(self.policy.as_bytes()).unwrap());
        let policies = Arc::new(FixedPolicies::new(vec![policy.clone()]));
        let age = std::time::Duration::from_secs(300);
        let sealer = DirectSealer {
            keys: SealingKeys::new(kms.clone(), catalogue.clone(), clock.clone(), UsageLimits::STANDARD),
            domains: DomainKeys::new(kms.clone(), catalogue.clone(), policies, clock.clone(), age),
        };
        let seal = SealTransform::new(policy.clone(), Format::Json, KeysPlacement::Header, sealer).unwrap();
        let records: Vec<Record> = (0..ROWS).map(record).collect();
        let outcomes = apply_all(&seal.for_table(), &records).await.unwrap();
        let schema = TableSchema::parse(SCHEMA.as_bytes()).unwrap();
        let layout = Arc::new(TableLayout::new(&schema, policy.policy()).unwrap());
        let keys = TableKeys::of(kms, catalogue, clock, UsageLimits::STANDARD);
        let options = WriteOptions {
            compression,
            row_group_rows: 400,
            threads: 2,
            ..WriteOptions::default()
        };
        let place = (FOLDER, FileId::random().unwrap());
        let mut writer = TableWriter::begin(&policy, &layout, place, &keys, options, Vec::new())
            .await
            .unwrap();
        let mut encoder = RowEncoder::new(layout, Format::Json);
        for outcome in &outcomes {
            for header in &outcome.record.headers {
                let value = header.value.clone().unwrap();
                for envelope in read_header(&value).unwrap() {
                    writer.add_envelope(envelope).unwrap();
                }
            }
            encoder.append(&outcome.record).unwrap();
        }
        writer
            .write(&encoder.finish().unwrap().with_extra(None).unwrap())
            .unwrap();
        let origin = Origin {
            schema: 1,
            topic: "orders".to_owned(),
            partition: 3,
            first: 0,
            last: ROWS - 1,
            rows: ROWS as u64,
        };
        let (_, bytes) = writer.finish(&origin).unwrap();
        self.place.write(FILE, bytes)
    }

    /// This command as a principal.
    pub(crate) fn sealflow(&self, role: &str, args: &[&str]) -> common::Ran {
        let role = format!("arn:aws:iam::111122223333:role/{role}");
        let access = [
            "--dev",
            "policy.yaml",
            "--as",
            &role,
            "--kms-endpoint",
            &self.kms.endpoint,
        ];
        self.place.run(&[args, &access[..]].concat())
    }

    /// A program of `testbed/lake` in its own Python; `None` if that could not be had.
    pub(crate) fn other(&self, program: &str, args: &[&str]) -> Option<std::process::Output> {
        let python = sealflow_testbed::deps().join("lake/bin/python");
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../testbed/lake");
        if !python.exists() {
            sealflow_testbed::skip(&format!(
                "{program}: PyArrow, Spark and DuckDB are not there (.deps/lake)"
            ));
            return None;
        }
        let has_compiler = || Command::new("javac").arg("-version").output().is_ok();
        if program.contains("spark") && !has_compiler() {
            sealflow_testbed::skip(&format!("{program}: there is no javac for Spark's KMS client"));
            return None;
        }
        let (id, secret) = self.credentials();
        let output = Command::new(python)
            .arg(folder.join(program))
            .args(args)
            .current_dir(self.place.path(""))
            .env("SEALFLOW_KMS_ENDPOINT", &self.kms.endpoint)
            .env("SEALFLOW_KMS_KEYS", &self.keys[0][..=self.keys[0].rfind('/').unwrap()])
            .env("AWS_ACCESS_KEY_ID", id)
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env_remove("AWS_SESSION_TOKEN")
            .output()
            .unwrap();
        Some(output)
    }
}

pub(crate) fn email(n: i64) -> String {
    format!("person-{n}@example.com")
}

pub(crate) fn card(n: i64) -> String {
    format!("4111-0000-{n:04}")
}

fn record(n: i64) -> Record {
    let value = format!(
        r#"{{"id":{n},"email":"{}","card":"{}","salary":{}}}"#,
        email(n),
        card(n),
        123_450_000 + n
    );
    Record {
        position: Position {
            topic: Arc::from("orders"),
            partition: 3,
            offset: n,
        },
        timestamp: Timestamp::Appended(1_767_225_600_000 + n),
        key: None,
        value: Some(value.into()),
        headers: Headers::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reader_sees_their_columns_and_a_column_without_a_key_takes_no_other() {
    let lake = Lake::new("");
    lake.write(Compression::Zstd).await;
    let ran = lake.sealflow("analyst", &["read", "lake", "--output", "json"]);
    // The key of `salary` opens for nobody; everything else is shown.
    assert_eq!(ran.code, 77, "{}", ran.err);
    let lines: Vec<serde_json::Value> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 1_000);
    for (n, line) in (0..).zip(&lines) {
        assert_eq!(line["email"], email(n));
        assert_eq!(line["card"], card(n));
        assert_eq!(line["id"], n);
        assert!(line["salary"].is_null());
    }
    assert!(ran.err.contains("1000 values of salary"), "{}", ran.err);

    let columns = [
        "read",
        "lake",
        "--columns",
        "id,card,email",
        "--where",
        "id >= 990",
        "--output",
        "csv",
    ];
    let ran = lake.sealflow("support", &columns);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(ran.out.lines().next(), Some("id,email,card"));
    assert_eq!(ran.out.lines().nth(1), Some("990,[redacted],[redacted]"));
    assert_eq!(ran.out.lines().count(), 11);

    let ran = lake.sealflow("nobody", &["read", "lake"]);
    assert_eq!((ran.code, ran.out.as_str()), (77, ""), "{}", ran.err);
    assert!(ran.err.contains("nothing in acls.ops.allow names it"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_file_is_can_be_seen_and_no_value_of_it() {
    let lake = Lake::new("");
    lake.write(Compression::Snappy).await;
    let ran = lake.sealflow("analyst", &["inspect", FILE, "--with-keys", "--output", "json"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let shown: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(shown["dataset"], "payments");
    assert_eq!(shown["is_at_its_place"], true);
    assert_eq!(shown["content"]["rows"], 1_000);
    assert_eq!(shown["content"]["origin"]["last"], 999);
    let column = |path: &str| {
        let columns = shown["content"]["columns"].as_array().unwrap();
        columns.iter().find(|column| column["path"] == path).unwrap().clone()
    };
    assert_eq!(column("card")["protection"], "column key");
    assert_eq!(column("email")["protection"], "each value sealed");
    assert_eq!(column("id")["protection"], "footer key");
    assert!(
        column("salary")["you"].as_str().unwrap().starts_with("not opened"),
        "{shown}"
    );
    let ran = lake.sealflow("analyst", &["inspect", FILE]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    for n in 0..1_000 {
        for value in [email(n), card(n)] {
            assert!(
                !ran.out.contains(&value) && !shown.to_string().contains(&value),
                "{value}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_what_they_should_be_are_found() {
    let lake = Lake::new("");
    let file = lake.write(Compression::Zstd).await;
    let ran = lake.sealflow("support", &["verify", "lake", "--no-gaps"]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("partition 3: 1000 rows, offsets 0–999"), "{}", ran.out);

    // A copy: every offset is there twice.
    let copy = file.with_file_name("b.parquet");
    std::fs::copy(&file, &copy).unwrap();
    let ran = lake.sealflow("support", &["verify", "lake"]);
    assert_eq!(ran.code, 65, "{}", ran.out);
    assert!(ran.out.contains("there twice: 0–999"), "{}", ran.out);
    std::fs::remove_file(&copy).unwrap();

    // Elsewhere.
    let elsewhere = lake.place.path("lake/payments/topic=orders/date=2026-01-02/a.parquet");
    std::fs::create_dir_all(elsewhere.parent().unwrap()).unwrap();
    std::fs::rename(&file, &elsewhere).unwrap();
    let ran = lake.sealflow("support", &["verify", "lake"]);
    assert_eq!(ran.code, 65, "{}", ran.out);
    assert!(ran.out.contains("was found elsewhere"), "{}", ran.out);
    let ran = lake.sealflow("support", &["read", "lake"]);
    assert_eq!((ran.code, ran.out.as_str()), (77, ""), "{}", ran.err);
    std::fs::rename(&elsewhere, &file).unwrap();

    // Changed: in a page, in the footer, in the policy that everybody reads.
    let whole = std::fs::read(&file).unwrap();
    let policy = whole
        .windows(15)
        .rposition(|window| window == b"unsigned_policy")
        .unwrap()
        + 30;
    for at in [100, whole.len() - 20, policy] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&file, &changed).unwrap();
        let ran = lake.sealflow("analyst", &["verify", "lake", "--pages"]);
        assert_ne!(ran.code, 0, "{at}: {}", ran.out);
        let ran = lake.sealflow("analyst", &["read", "lake", "--output", "csv"]);
        assert!([65, 77, 78].contains(&ran.code), "{at}: {} {}", ran.code, ran.err);
    }
    // So that the format's library panics: the first page's header says that it has one byte. It is the file's damage.
    let mut changed = whole.clone();
    changed[4..8].copy_from_slice(&1_u32.to_le_bytes());
    std::fs::write(&file, &changed).unwrap();
    let ran = lake.sealflow("analyst", &["read", "lake"]);
    assert_eq!((ran.code, ran.out.as_str()), (65, ""), "{}", ran.err);
    assert!(!ran.err.contains("bug"), "{}", ran.err);

    std::fs::write(&file, &whole[..whole.len() - 100]).unwrap();
    let ran = lake.sealflow("analyst", &["read", "lake"]);
    assert_eq!((ran.code, ran.out.as_str()), (65, ""), "{}", ran.err);
    std::fs::write(&file, b"id,card\n1,4111\n").unwrap();
    let ran = lake.sealflow("analyst", &["read", "lake"]);
    assert_eq!((ran.code, ran.out.as_str()), (65, ""), "{}", ran.err);
}
