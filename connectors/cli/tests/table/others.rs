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

/// Columns that both programs write.
const COLUMNS: [&str; 3] = ["id", "card", "salary"];

/// This command on files of others, as whoever the credentials belong to.
fn foreign(lake: &Lake, args: &[&str]) -> crate::common::Ran {
    let kms = &lake.kms.endpoint;
    let access = ["--foreign", "--kms-endpoint", kms, "--kms-region", "eu-central-1"];
    lake.place.run(&[args, &access[..]].concat())
}

/// Rows as `--output json` wrote them: the columns that open are whole, and the one whose key is refused is null.
fn check_foreign(ran: &crate::common::Ran, what: &str) {
    // As with tables of ours: somebody was let see a column, and KMS refused its key.
    assert_eq!(ran.code, 77, "{what}: {}", ran.err);
    assert!(ran.err.contains("KMS alone decides"), "{what}: {}", ran.err);
    assert!(ran.err.contains("1000 values of salary"), "{what}: {}", ran.err);
    let rows: Vec<Value> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len() as i64, ROWS, "{what}");
    for (n, row) in (0..).zip(&rows) {
        assert_eq!(row["id"], n, "{what}");
        assert_eq!(row["card"], card(n), "{what}");
        assert!(row["salary"].is_null(), "{what}: {row}");
    }
}

/// Reads and inspects what a program wrote, whose `salary` is under a key that opens for nobody.
fn reads_what_others_wrote(lake: &Lake, path: &str, what: &str) {
    let columns = COLUMNS.join(",");
    let ran = foreign(lake, &["read", path, "--columns", &columns, "--output", "json"]);
    check_foreign(&ran, what);
    let filter = ["read", path, "--columns", "id,card", "--output", "csv", "--where"];
    let ran = foreign(lake, &[&filter[..], &["card > '4111-0000-0994'"]].concat());
    assert_eq!(
        (ran.code, ran.out.lines().nth(1)),
        (0, Some("995,4111-0000-0995")),
        "{what}: {}",
        ran.err
    );
    assert_eq!(ran.out.lines().count(), 6, "{what}");
    let ran = foreign(lake, &[&filter[..], &["salary = 123450001"]].concat());
    assert_eq!((ran.code, ran.out.as_str()), (77, ""), "{what}: {}", ran.err);

    // Without the option it is refused, and the option is named.
    let ran = lake.sealflow("analyst", &["read", path]);
    assert_eq!((ran.code, ran.out.as_str()), (65, ""), "{what}: {}", ran.err);
    assert!(ran.err.contains("help: read it with --foreign"), "{what}: {}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_pyarrow_wrote_are_read_as_far_as_kms_gives_keys() {
    let lake = Lake::new("");
    let [footer, column, closed] = lake.keys_of_others();
    for (n, options) in [
        &[][..],
        &["single"],
        &["plaintext-footer", "128"],
        &["single", "plaintext-footer"],
        &["elsewhere"],
    ]
    .iter()
    .enumerate()
    {
        let what = format!("{options:?}");
        let file = lake.place.path(&format!("others-{n}.parquet")).display().to_string();
        let write = [&["write", &file, &footer, &column, &closed][..], options].concat();
        let Some(output) = lake.other("with_pyarrow.py", &write) else {
            return;
        };
        assert!(
            output.status.success(),
            "{what}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        reads_what_others_wrote(&lake, &file, &what);
        // NaN is more than every number here, and is not lost to bounds that leave it out.
        let ran = foreign(
            &lake,
            &[
                "read",
                &file,
                "--columns",
                "id",
                "--where",
                "ratio > 1000",
                "--output",
                "csv",
            ],
        );
        assert_eq!((ran.code, ran.out.lines().count()), (0, 144), "{what}: {}", ran.err);

        let ran = foreign(&lake, &["inspect", &file, "--with-keys", "--output", "json"]);
        assert_eq!(ran.code, 0, "{what}: {}", ran.err);
        let shown: Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(shown["policy"]["signature"], "none", "{shown}");
        let column = |path: &str| {
            let columns = shown["content"]["columns"].as_array().unwrap();
            columns.iter().find(|column| column["path"] == path).unwrap().clone()
        };
        assert_eq!(column("id")["protection"], "none", "{shown}");
        assert_eq!(column("card")["protection"], "column key", "{shown}");
        assert!(
            column("salary")["you"].as_str().unwrap().starts_with("not opened"),
            "{shown}"
        );
        for n in 0..ROWS {
            assert!(!ran.out.contains(&card(n)), "{n}");
        }
    }
    // What cannot be read is refused by its name.
    for (options, says) in [(&["192"][..], "192 bits"), (&["ctr"], "AES_GCM_CTR_V1")] {
        let file = lake
            .place
            .path(&format!("{}.parquet", options[0]))
            .display()
            .to_string();
        let write = [&["write", &file, &footer, &column, &closed][..], options].concat();
        assert!(lake.other("with_pyarrow.py", &write).unwrap().status.success());
        let ran = foreign(&lake, &["read", &file]);
        assert_eq!((ran.code, ran.out.as_str()), (65, ""), "{}", ran.err);
        assert!(ran.err.contains(says), "{}", ran.err);
    }
    std::fs::remove_file(lake.place.path("_KEY_MATERIAL_FOR_others-4.parquet.json")).unwrap();
    let ran = foreign(
        &lake,
        &["read", &lake.place.path("others-4.parquet").display().to_string()],
    );
    assert_eq!(ran.code, 65, "{}", ran.err);
    assert!(ran.err.contains("_KEY_MATERIAL_FOR_"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_spark_wrote_are_read_as_far_as_kms_gives_keys() {
    let lake = Lake::new("");
    let [footer, column, closed] = lake.keys_of_others();
    for (n, options) in [&[][..], &["single", "plaintext-footer", "128"]].iter().enumerate() {
        let folder = lake.place.path(&format!("spark-{n}")).display().to_string();
        let write = [&["write", &folder, &footer, &column, &closed][..], options].concat();
        let Some(output) = lake.other("with_spark.py", &write) else {
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        reads_what_others_wrote(&lake, &folder, &format!("spark {options:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_a_policy_is_not_read_past_it_and_what_was_read_of_others_is_written_down() {
    let lake = Lake::new("");
    lake.write(Compression::Zstd).await;
    // KMS gives the credentials of this test every key of the file: only its policy refuses them.
    for args in [&["read", "lake"][..], &["inspect", crate::FILE, "--with-keys"]] {
        let ran = foreign(&lake, args);
        assert_eq!((ran.code, ran.out.as_str()), (77, ""), "{}", ran.err);
        assert!(
            ran.err.contains("carries a policy") && ran.err.contains("without --foreign"),
            "{}",
            ran.err
        );
    }
    for option in [
        &["--dev", "policy.yaml"][..],
        &["--offline"],
        &["--moved"],
        &["--purpose", "x"],
    ] {
        let ran = foreign(&lake, &[&["read", "lake"][..], option].concat());
        assert_eq!(ran.code, 64, "{option:?}: {}", ran.err);
    }

    let [footer, column, closed] = lake.keys_of_others();
    let file = lake.place.path("others.parquet").display().to_string();
    let Some(output) = lake.other("with_pyarrow.py", &["write", &file, &footer, &column, &closed]) else {
        return;
    };
    assert!(output.status.success());
    lake.place.ok(&["policy", "keygen"]);
    let audit = ["--audit", "audit.log", "--audit-key", "owner.key", "--output", "json"];
    let ran = foreign(&lake, &[&["read", &file][..], &audit].concat());
    assert_eq!(ran.code, 77, "{}", ran.err);
    let log = lake.place.read("audit.log");
    let of = |label: &str| {
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["label"] == label).collect::<Vec<_>>()
    };
    assert_eq!(
        of("card")
            .iter()
            .map(|line| line["count"].as_i64().unwrap())
            .sum::<i64>(),
        ROWS,
        "{log}"
    );
    assert_eq!(of("card")[0]["decision"], "allowed", "{log}");
    assert!(of("card")[0]["rule"].as_str().unwrap().contains("no policy"), "{log}");
    assert_eq!(of("salary")[0]["decision"], "failed", "{log}");
}
