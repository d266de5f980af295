//! Clients seal; rows land with values that the worker sealed; a reader's own key opens what the worker answers for a table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

use sealflow_client::{PrivateKey, RowId, RsaBits};
use sealflow_testbed::{Message, make_bucket, moto_endpoint, or_skip};
use serde_json::Value;

use crate::bench::{Bench, ENCLAVE_RSA, PARTITIONS};
use crate::clean::assert_clean;

const CANARY: &str = "canary-table-3c71";
const RECORDS: u64 = 2_000;
const PANS: &str = "  - { path: \"cards[*].pan\", key: regulated, acl: pii, flow: enclave, bind_row: id }\n";
const SCHEMA: &str = "
dataset: payments
version: 1
fields:
  - { name: id, type: int64 }
  - { name: card, type: string }
  - { name: amount, type: float64 }
  - { name: email, type: string }
  - { name: cards, type: list, items: { type: struct, fields: [ { name: pan, type: string }, { name: year, type: int64 } ] } }
";

/// Where a table is, and what a command needs to get there.
struct Lake {
    location: String,
    environment: Vec<(&'static str, String)>,
}

impl Lake {
    fn in_folder(bench: &Bench) -> Self {
        Self {
            location: bench.site.path().join("lake").display().to_string(),
            environment: Vec::new(),
        }
    }

    /// `None` on a machine without moto, and the ledger says so.
    fn in_bucket(test: &str) -> Option<Self> {
        let endpoint = or_skip(test, moto_endpoint())?;
        Some(Self {
            location: format!("s3://{}/lake", make_bucket(&endpoint, test)),
            environment: vec![
                ("AWS_ENDPOINT_URL_S3", endpoint),
                ("AWS_REGION", "eu-central-1".to_owned()),
            ],
        })
    }

    fn command(&self, bench: &Bench, role: &str, args: &[&str]) -> Output {
        let mut command = bench.site.command(crate::bench::binary(), role, args);
        // What is written for a moment is searched too.
        let temporary = bench.site.path().join("tmp");
        std::fs::create_dir_all(&temporary).unwrap();
        command.env("TMPDIR", temporary);
        command.envs(self.environment.iter().cloned()).output().unwrap()
    }

    /// `sealflow read` of the table, with these options.
    fn read(&self, bench: &Bench, (file, role): (&Path, &str), more: &[&str]) -> Output {
        let pipeline = [
            "read",
            &self.location,
            "--pipeline",
            file.to_str().unwrap(),
            "--output",
            "json",
        ];
        self.command(bench, role, &[&pipeline[..], more].concat())
    }
}

fn card(n: u64) -> String {
    format!("\"{CANARY}-card-{n}\"")
}

fn pan(n: u64, index: u32) -> String {
    format!("\"{CANARY}-pan-{n}-{index}\"")
}

/// Records whose `card` and `cards[*].pan` only the enclave opens, `amount` the backend, and `email` is in clear.
fn produce(bench: &Bench) {
    let (mut session, mut hybrid) = (bench.session(ENCLAVE_RSA), bench.backend_session());
    let mut messages = Vec::new();
    for n in 0..RECORDS {
        let sealed = session.seal("card", card(n).as_bytes()).unwrap();
        let amount = hybrid.seal("amount", format!("{n}.25").as_bytes()).unwrap();
        let mut pans = Vec::new();
        // From none to two, in a list whose second has none.
        for index in [0, 2].into_iter().take(usize::try_from(n % 3).unwrap()) {
            let row = RowId::new(&n.to_string(), &[index]).unwrap();
            pans.push(
                session
                    .seal_in_row("cards[*].pan", pan(n, index).as_bytes(), &row)
                    .unwrap(),
            );
        }
        let cards = match &pans[..] {
            [] => "[]".to_owned(),
            [one] => format!(r#"[{{"pan":"{one}","year":2030}}]"#),
            [one, two, ..] => format!(r#"[{{"pan":"{one}"}},{{"year":2031}},{{"pan":"{two}","year":2032}}]"#),
        };
        messages.push(message(
            n,
            &format!(
                r#"{{"id":{n},"card":"{sealed}","amount":"{amount}","email":"user-{n}@example.com","cards":{cards}}}"#
            ),
            &[session.token(), hybrid.token()],
        ));
    }
    // In clear: a dead letter.
    let amount = hybrid.seal("amount", b"1").unwrap();
    messages.push(message(
        RECORDS,
        &format!(r#"{{"id":{RECORDS},"card":"4111111111111111","amount":"{amount}","email":"e","cards":[]}}"#),
        &[hybrid.token()],
    ));
    bench.topics.produce(&bench.name, &messages);
}

fn message(n: u64, json: &str, sessions: &[&str]) -> Message {
    let header = |session: &&str| ("sealflow-session".to_owned(), Some(session.as_bytes().to_vec()));
    Message {
        headers: sessions.iter().map(header).collect(),
        timestamp: Some(1_767_225_600_000),
        ..Message::new(i32::try_from(n).unwrap() % PARTITIONS, json.to_owned())
    }
}

/// The rows that were printed, by their ids, each of which is there once; nothing of them is in clear.
fn rows(output: &Output) -> BTreeMap<u64, Value> {
    let (text, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{}: {stderr}", output.status);
    assert!(!text.contains(CANARY) && !stderr.contains(CANARY), "{stderr}");
    let mut rows = BTreeMap::new();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let earlier = rows.insert(row["id"].as_u64().unwrap(), row);
        assert!(earlier.is_none(), "{line}");
    }
    rows
}

/// Lands the records, and reads them.
fn lands_and_is_read(bench: &Bench, lake: &Lake) {
    let file = bench.table_file(&lake.location, SCHEMA, "");
    produce(bench);
    let run = ["run", file.to_str().unwrap(), "--until-end"];
    let landed = lake.command(bench, "pipeline", &run);
    let log = String::from_utf8_lossy(&landed.stderr).into_owned();
    assert!(
        landed.status.success() && log.contains("dev-software-nsm") && !log.contains(CANARY),
        "{log}"
    );
    let letters = bench.topics.read_all(&format!("{}.dead", bench.name));
    assert_eq!(letters.len(), 1);

    // With all its rights the host opens nothing of the enclave's columns, and everything else.
    let shown = rows(&lake.read(bench, (&file, "support"), &[]));
    assert_eq!(shown.len() as u64, RECORDS);
    for (n, row) in &shown {
        assert!(row["card"].is_null(), "{row}");
        assert_eq!(row["email"], format!("user-{n}@example.com"));
        assert_eq!(row["amount"].as_f64(), Some(*n as f64 + 0.25));
        let cards = row["cards"].as_array().unwrap();
        assert_eq!(cards.len(), [0, 1, 3][usize::try_from(n % 3).unwrap()], "{row}");
        assert!(cards.iter().all(|card| card["pan"].is_null()), "{row}");
    }
    read_through_the_worker(bench, lake, &file);
    filters(bench, lake, &file);
    let holds = |bytes: &[u8]| bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
    assert_clean(bench.site.path(), &holds);
    assert_clean(&bench.kafka.data_dir(), &holds);
}

/// A reader's answer goes through the worker, sealed to the reader's own key, which alone opens it.
fn read_through_the_worker(bench: &Bench, lake: &Lake, file: &Path) {
    let reader = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    std::fs::write(bench.site.path().join("reader.jwk"), reader.public().unwrap().to_json()).unwrap();
    let to_reader = ["--seal-to", "reader.jwk"];
    let shown = rows(&lake.read(bench, (file, "support"), &to_reader));
    assert_eq!(shown.len() as u64, RECORDS);
    for (n, row) in &shown {
        let open = |jwe: &Value| reader.open(jwe.as_str().unwrap()).unwrap().expose().to_vec();
        assert_eq!(open(&row["card"]), card(*n).as_bytes());
        assert_eq!(open(&row["amount"]), format!("{n}.25").as_bytes());
        for (index, one) in (0..).zip(row["cards"].as_array().unwrap()) {
            match index {
                1 => assert!(one["pan"].is_null() && one["year"] == 2031, "{row}"),
                _ => assert_eq!(open(&one["pan"]), pan(*n, index).as_bytes(), "{row}"),
            }
        }
    }
    // Whom its ACL does not name sees nothing of it, and the rest as before; the worker's own log tells of both.
    let refused = rows(&lake.read(bench, (file, "analyst"), &to_reader));
    assert_eq!(refused.len() as u64, RECORDS);
    for row in refused.values() {
        let cards = row["cards"].as_array().unwrap();
        assert!(
            row["card"].is_null() && cards.iter().all(|card| card["pan"].is_null()),
            "{row}"
        );
        assert!(row["amount"].as_str().unwrap().starts_with("eyJ"), "{row}");
    }
    let lines = std::fs::read_to_string(bench.site.path().join("enclave-audit.jsonl")).unwrap();
    for (role, decision) in [("support", "allowed"), ("analyst", "refused")] {
        let is_it = |line: &&str| line.contains(role) && line.contains(&format!("\"decision\":\"{decision}\""));
        assert!(lines.lines().any(|line| is_it(&line)), "{role}: {lines}");
    }
}

/// Rows that a filter drops are not asked for, and nobody filters by what only the enclave opens.
fn filters(bench: &Bench, lake: &Lake, file: &Path) {
    let audit = bench.site.path().join("enclave-audit.jsonl");
    let before = std::fs::read_to_string(&audit).unwrap().len();
    let some = [
        "--seal-to",
        "reader.jwk",
        "--where",
        "id >= 10 and amount < 30",
        "--columns",
        "id,card",
    ];
    let shown = rows(&lake.read(bench, (file, "support"), &some));
    assert_eq!(
        shown.keys().copied().collect::<Vec<u64>>(),
        (10..30).collect::<Vec<u64>>()
    );
    let lines = std::fs::read_to_string(&audit).unwrap();
    let counted: u64 = lines[before..]
        .lines()
        .filter(|line| line.contains("\"decision\":\"allowed\""))
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["count"].as_u64().unwrap()
        })
        .sum();
    assert_eq!(counted, 20, "{}", &lines[before..]);
    for filter in ["card = 'x'", "card is null", "id = 1 and card != 'x'"] {
        for more in [
            &["--where", filter][..],
            &["--where", filter, "--seal-to", "reader.jwk"],
        ] {
            let refused = lake.read(bench, (file, "support"), more);
            let stderr = String::from_utf8_lossy(&refused.stderr);
            assert_eq!(refused.status.code(), Some(64), "{stderr}");
            assert!(
                refused.stdout.is_empty() && stderr.contains("card is opened by the enclave alone"),
                "{stderr}"
            );
        }
    }
}

#[test]
fn enclave_columns_land_as_values_that_the_worker_sealed_and_are_read_through_it() {
    let Some(bench) = Bench::with_columns("landed", PANS) else {
        return;
    };
    let lake = Lake::in_folder(&bench);
    lands_and_is_read(&bench, &lake);
    let files = parquet_files(Path::new(&lake.location));
    assert!(!files.is_empty());
    for file in files {
        let shown = bench.run(
            "support",
            &[
                "inspect",
                file.to_str().unwrap(),
                "--pipeline",
                bench.site.path().join("landed-table.yaml").to_str().unwrap(),
                "--with-keys",
                "--output",
                "json",
            ],
        );
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        let columns = shown["content"]["columns"].as_array().unwrap();
        for path in ["card", "cards[*].pan"] {
            let column = columns.iter().find(|column| column["path"] == path).unwrap();
            assert_eq!(column["protection"], "each value sealed", "{shown}");
            assert_eq!(column["label"], path, "{shown}");
        }
    }
}

#[test]
fn a_table_in_a_bucket_is_read_through_the_worker_as_one_on_disk() {
    let test = "enclave-lake";
    let Some(bench) = Bench::with_columns("bucketed", PANS) else {
        return;
    };
    let Some(lake) = Lake::in_bucket(test) else { return };
    lands_and_is_read(&bench, &lake);
}

#[test]
fn an_enclave_column_that_would_be_at_column_stops_a_pipeline_before_it_begins() {
    let Some(bench) = Bench::new("placed") else { return };
    let lake = Lake::in_folder(&bench);
    let file = bench.table_file(&lake.location, SCHEMA, "");
    // Our own commands do not sign it, but whoever has the owner's key can.
    let yaml = bench
        .policy(2)
        .replace("flow: enclave }", "flow: enclave, at: column }");
    let folder = bench.site.catalogue().join("policies/payments");
    std::fs::write(folder.join("0000000002.jws"), bench.site.sign_unchecked(&yaml)).unwrap();
    for args in [
        &["validate", file.to_str().unwrap()][..],
        &["run", file.to_str().unwrap(), "--until-end"],
    ] {
        let refused = bench.run("pipeline", args);
        let text = [refused.stdout, refused.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert_eq!(refused.status.code(), Some(78), "{text}");
        assert!(
            text.contains("an enclave column cannot be at: column: the host writes the table"),
            "{text}"
        );
    }
    assert!(!Path::new(&lake.location).exists());
}

fn parquet_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(parquet_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            files.push(path);
        }
    }
    files
}
