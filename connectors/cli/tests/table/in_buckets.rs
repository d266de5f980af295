//! Tables in a bucket: moto's S3, in fair weather and behind a proxy that breaks what it passes on.

use std::process::Stdio;
use std::time::Duration;

use sealflow::secret::SecretString;
use sealflow::table::Compression;
use sealflow_kms::StaticCredentials;
use sealflow_storage::{BucketConfig, Location, Place};
use sealflow_testbed::{HttpFault, HttpProxy, HttpRule, When, make_bucket, moto_endpoint, or_skip};

use crate::common::Ran;
use crate::{FOLDER, Lake, ROWS};

/// Files of the table in the bucket: the same one under other names, so that each row is there that often.
const FILES: i64 = 5;

/// A table in a bucket.
struct Bucket {
    lake: Lake,
    endpoint: String,
    bucket: String,
}

impl Bucket {
    /// `None` on a machine without moto, and the ledger says so.
    async fn new(test: &str) -> Option<Self> {
        let endpoint = or_skip(test, moto_endpoint())?;
        let lake = Lake::new("");
        let file = std::fs::read(lake.write(Compression::Zstd).await).unwrap();
        let bucket = Self {
            bucket: make_bucket(&endpoint, test),
            lake,
            endpoint,
        };
        let place = bucket.place().await;
        let folder = format!("lake/payments/{FOLDER}");
        for n in 0..FILES {
            place
                .put_if_absent(&format!("{folder}/{n}.parquet"), file.clone().into())
                .await
                .unwrap();
        }
        // What is no file of the table, or not yet: it would not open.
        for name in [
            "_temporary/0/part.parquet",
            ".staging.parquet",
            "_SUCCESS",
            "notes.txt",
            "0.parquet.json",
        ] {
            let put = place.put_if_absent(&format!("{folder}/{name}"), "half".into()).await;
            put.unwrap();
        }
        let mut unfinished = place.writer(&format!("{folder}/9.parquet"), None).await.unwrap();
        unfinished.write(vec![0; 11 << 20].into()).await.unwrap();
        std::mem::forget(unfinished);
        Some(bucket)
    }

    async fn place(&self) -> Place {
        let config = BucketConfig {
            endpoint: Some(self.endpoint.clone()),
            credentials: Some(StaticCredentials {
                access_key_id: "AKIAMOTO".to_owned(),
                secret_access_key: SecretString::new("anything".to_owned()),
                session_token: None,
            }),
            ..BucketConfig::default()
        };
        let location: Location = format!("s3://{}", self.bucket).parse().unwrap();
        Place::open(&location, &config).await.unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("s3://{}/{path}", self.bucket)
    }

    /// This command as the analyst; S3 is found as by the catalogue's commands.
    fn run_at(&self, endpoint: &str, args: &[&str]) -> Ran {
        let role = "arn:aws:iam::111122223333:role/analyst";
        let kms = &self.lake.kms.endpoint;
        let access = ["--dev", "policy.yaml", "--as", role, "--kms-endpoint", kms];
        let mut command = self.lake.place.command(&[args, &access[..]].concat());
        command.env("AWS_ENDPOINT_URL_S3", endpoint).stdin(Stdio::null());
        let output = command.output().unwrap();
        Ran {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.run_at(&self.endpoint, args)
    }
}

/// The ids that were printed, in order.
fn ids(ran: &Ran) -> Vec<i64> {
    ran.out.lines().skip(1).map(|line| line.parse().unwrap()).collect()
}

/// Those of so many files.
fn all(files: i64) -> Vec<i64> {
    (0..files).flat_map(|_| 0..ROWS).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_in_a_bucket_is_read_inspected_and_verified_as_one_in_a_folder() {
    let Some(bucket) = Bucket::new("table-bucket").await else {
        return;
    };
    let read = ["--columns", "id", "--output", "csv"];
    for place in ["lake", "lake/payments", &format!("lake/payments/{FOLDER}/"), ""] {
        let ran = bucket.run(&[&["read", &bucket.url(place)][..], &read].concat());
        assert_eq!(ran.code, 0, "{place}: {}", ran.err);
        assert_eq!(ids(&ran), all(FILES), "{place}");
    }
    let file = bucket.url(&format!("lake/payments/{FOLDER}/3.parquet"));
    let ran = bucket.run(&[&["read", &file][..], &read].concat());
    assert_eq!((ran.code, ids(&ran)), (0, all(1)), "{}", ran.err);

    let ran = bucket.run(&["inspect", &file, "--with-keys", "--output", "json"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let shown: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(shown["file"], file.as_str());
    assert_eq!(
        (&shown["is_at_its_place"], &shown["content"]["rows"]),
        (&true.into(), &ROWS.into())
    );

    // Copies: every offset is there five times, and all is said before the command fails.
    let ran = bucket.run(&["verify", &bucket.url("lake")]);
    assert_eq!(ran.code, 65, "{}", ran.err);
    assert!(ran.out.contains("there twice: 0–999"), "{}", ran.out);
    assert!(ran.out.contains("5 files, 5000 rows, 0 faults"), "{}", ran.out);
    let ran = bucket.run(&["verify", &file, "--pages"]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);

    // In a bucket too a file elsewhere is refused.
    let place = bucket.place().await;
    let bytes = place
        .read(&format!("lake/payments/{FOLDER}/3.parquet"), 1 << 24)
        .await
        .unwrap();
    place.put_if_absent("moved/payments/a.parquet", bytes).await.unwrap();
    let ran = bucket.run(&["read", &bucket.url("moved")]);
    assert_eq!((ran.code, ran.out.as_str()), (77, ""), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_of_many_pages_is_read_as_it_comes_and_files_by_few_requests() {
    let Some(bucket) = Bucket::new("table-pages").await else {
        return;
    };
    let place = bucket.place().await;
    // Before the files in the order of a listing.
    for start in (0..1_020).step_by(30) {
        let puts = (start..start + 30).map(|n| {
            let place = place.clone();
            async move { place.put_if_absent(&format!("lake/a/{n:04}.txt"), "x".into()).await }
        });
        for put in futures::future::join_all(puts).await {
            put.unwrap();
        }
    }
    let proxy = HttpProxy::start(&bucket.endpoint).unwrap();
    let read = ["read", &bucket.url("lake"), "--columns", "id", "--output", "csv"];
    let ran = bucket.run_at(&proxy.endpoint(), &read);
    assert_eq!((ran.code, ids(&ran)), (0, all(FILES)), "{}", ran.err);
    let requests = proxy.requests();
    let listings = requests
        .iter()
        .filter(|request| request.contains("list-type=2"))
        .count();
    assert!((2..=4).contains(&listings), "{requests:#?}");
    // Of each file its end, with the footer, and one range of each of its three row groups; nobody asks for its size first.
    let reads = requests.iter().filter(|request| request.contains(".parquet")).count();
    assert!(reads as i64 <= 4 * FILES, "{requests:#?}");
    assert_eq!(proxy.count("HEAD"), 0, "{requests:#?}");
    assert!(proxy.peak() <= 16, "{}", proxy.peak());

    // With a limit, later pages and files are not asked for.
    proxy.set(Vec::new());
    let first = bucket.url(&format!("lake/payments/{FOLDER}"));
    let ran = bucket.run_at(
        &proxy.endpoint(),
        &["read", &first, "--columns", "id", "--output", "csv", "--limit", "3"],
    );
    assert_eq!((ran.code, ids(&ran)), (0, vec![0, 1, 2]), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_in_trouble_gives_all_rows_or_an_error_and_never_fewer_rows() {
    let Some(bucket) = Bucket::new("table-faults").await else {
        return;
    };
    let proxy = HttpProxy::start(&bucket.endpoint).unwrap();
    let read = ["read", &bucket.url("lake"), "--columns", "id", "--output", "csv"];
    let rule = |path, when, fault| HttpRule {
        method: "GET",
        path,
        when,
        fault,
    };
    let answer = |status, code| HttpFault::Answer { status, code };
    // Trouble that passes: nobody notices. A request is tried four times, and any of them may meet all of it.
    let slow_down = answer(503, "SlowDown");
    let internal = answer(500, "InternalError");
    let delay = HttpFault::Delay(Duration::from_millis(300));
    for (n, rules) in [
        vec![rule("", When::First(3), slow_down.clone())],
        vec![rule(".parquet", When::First(3), internal.clone())],
        vec![rule("list-type=2", When::First(2), internal.clone())],
        vec![rule(".parquet", When::First(2), HttpFault::LoseAnswer)],
        vec![rule("", When::Always, delay)],
        vec![
            rule("", When::First(2), slow_down.clone()),
            rule(".parquet", When::First(1), HttpFault::LoseAnswer),
        ],
    ]
    .into_iter()
    .enumerate()
    {
        proxy.set(rules);
        let ran = bucket.run_at(&proxy.endpoint(), &read);
        assert!(proxy.felt() > 0, "{n}");
        assert_eq!((ran.code, ids(&ran)), (0, all(FILES)), "{n}: {}", ran.err);
    }
    // Answers that break off: taken up again, or an error.
    for when in [When::First(1), When::First(3), When::Always] {
        for path in [".parquet", "list-type=2"] {
            proxy.set(vec![rule(path, when, HttpFault::CutAnswer)]);
            let ran = bucket.run_at(&proxy.endpoint(), &read);
            assert!(proxy.felt() > 0, "{path} {when:?}");
            match ran.code {
                0 => assert_eq!(ids(&ran), all(FILES), "{path} {when:?}"),
                code => {
                    assert_eq!(code, 69, "{path} {when:?}: {}", ran.err);
                    assert!(ran.err.contains("error: ") && ran.err.contains("help: "), "{}", ran.err);
                }
            }
        }
    }
    // Trouble that stays is told, by what it means.
    for (path, fault, code, says) in [
        (".parquet", slow_down, 69, "503 (SlowDown)"),
        ("list-type=2", internal, 69, "500 (InternalError)"),
        (
            "3.parquet",
            answer(403, "AccessDenied"),
            77,
            "3.parquet: the file may not be read",
        ),
        (
            "list-type=2",
            answer(403, "AccessDenied"),
            77,
            "refuses access (AccessDenied)",
        ),
        (
            "3.parquet",
            answer(404, "NoSuchKey"),
            66,
            "3.parquet: there is no such file",
        ),
    ] {
        proxy.set(vec![rule(path, When::Always, fault)]);
        let ran = bucket.run_at(&proxy.endpoint(), &read);
        assert_eq!(ran.code, code, "{path} {says}: {}", ran.err);
        assert!(
            ran.err.contains(says) && ran.err.contains("help: "),
            "{says}: {}",
            ran.err
        );
        proxy.set(vec![rule(path, When::Always, answer(403, "AccessDenied"))]);
        let ran = bucket.run_at(&proxy.endpoint(), &["verify", &bucket.url("lake")]);
        assert_ne!(ran.code, 0, "{path}: {}", ran.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_in_a_bucket_is_said_to_be_not_there() {
    let Some(bucket) = Bucket::new("table-absent").await else {
        return;
    };
    let missing = format!("s3://{}-not/lake", bucket.bucket);
    for (place, says) in [
        (bucket.url("nothing"), "no file *.parquet is in it or below it"),
        (
            bucket.url(&format!("lake/payments/{FOLDER}/7.parquet")),
            "no file *.parquet",
        ),
        (missing.clone(), "no such bucket"),
    ] {
        for command in ["read", "inspect", "verify"] {
            let ran = bucket.run(&[command, &place]);
            assert_eq!((ran.code, ran.out.as_str()), (66, ""), "{command} {place}: {}", ran.err);
            assert!(ran.err.contains(says) && ran.err.contains("help: "), "{}", ran.err);
        }
    }
    let ran = bucket.run_at("http://127.0.0.1:1", &["read", &bucket.url("lake")]);
    assert_eq!(ran.code, 69, "{}", ran.err);
    for bad in ["s3://AKIA:hunter2@bucket/a", "gs://bucket/hunter2", "s3://b"] {
        let ran = bucket.run(&["read", bad]);
        assert_eq!(ran.code, 64, "{bad}: {}", ran.err);
        assert!(!ran.err.contains("hunter2"), "{}", ran.err);
    }
    let ran = bucket.run(&["read", "not-there"]);
    assert_eq!(ran.code, 66, "{}", ran.err);
}
