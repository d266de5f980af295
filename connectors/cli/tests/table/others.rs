//! Other readers of the same files.

use std::process::Output;

use sealflow::table::Compression;
use serde_json::Value;

use crate::{Lake, ROWS, card};

/// What a program answered to each request, one line of JSON each; null for what it refused.
fn answers(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn check(read: &Value) {
    let ids: Vec<i64> = read["id"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_i64().unwrap())
        .collect();
    assert_eq!(ids, (0..ROWS).collect::<Vec<_>>());
    let cards: Vec<&str> = read["card"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| card.as_str().unwrap())
        .collect();
    assert_eq!(cards, (0..ROWS).map(card).collect::<Vec<_>>());
}

/// Reads the permitted columns, is refused the column whose key is refused, and refuses changed bytes.
async fn reads_and_refuses(program: &str) {
    for (table, compression) in [
        ("", Compression::Zstd),
        (", footer: signed-plaintext", Compression::Snappy),
    ] {
        let lake = Lake::new(table);
        let file = lake.write(compression).await;
        let whole = std::fs::read(&file).unwrap();
        let mut requests = vec![
            format!("{}:id,card", file.display()),
            format!("{}:salary", file.display()),
        ];
        // In a page of the first column, and in the footer.
        for at in [60, whole.len() - 40] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            requests.push(
                lake.place
                    .write(&format!("changed-{at}.parquet"), &changed)
                    .display()
                    .to_string(),
            );
        }
        let requests: Vec<&str> = std::iter::once("read")
            .chain(requests.iter().map(String::as_str))
            .collect();
        let Some(output) = lake.other(program, &requests) else {
            return;
        };
        let answers = answers(&output);
        assert_eq!(answers.len(), 4, "{answers:?}");
        check(&answers[0]);
        // The key of `salary` opens for nobody, and the changed files are refused.
        assert_eq!(answers[1..], [Value::Null, Value::Null, Value::Null], "{program}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pyarrow_reads_what_its_kms_gives_keys_for_and_refuses_changed_bytes() {
    reads_and_refuses("with_pyarrow.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spark_reads_what_its_kms_gives_keys_for_and_refuses_changed_bytes() {
    reads_and_refuses("with_spark.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duckdb_scans_the_values_of_a_file_of_its_profile() {
    let lake = Lake::new(", profile: duckdb")
        .with_policy("path: card, key: pii, acl: pii", "path: card, key: ops, acl: ops")
        .with_policy(
            "path: salary, key: closed, acl: pii",
            "path: salary, key: ops, acl: ops",
        );
    let file = lake.write(Compression::Zstd).await;
    let path = file.to_str().unwrap();
    let Some(output) = lake.other("with_duckdb.py", &[path, "id", "card"]) else {
        return;
    };
    check(&answers(&output)[0]);
    let ran = lake.sealflow("analyst", &["read", "lake", "--columns", "card", "--output", "csv"]);
    assert_eq!(
        (ran.code, ran.out.lines().nth(8)),
        (0, Some("4111-0000-0007")),
        "{}",
        ran.err
    );
}
