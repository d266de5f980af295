//! Commands on a catalogue in a bucket: moto's S3, found by AWS's own variables and by a pipeline file.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::process::Stdio;

use common::{LocalKms, Place, Ran, policy};
use sealflow_testbed::{make_bucket, moto_endpoint, or_skip};

struct Bench {
    place: Place,
    kms: LocalKms,
    endpoint: String,
    bucket: String,
    owner: String,
}

impl Bench {
    fn new(test: &str) -> Option<Self> {
        let endpoint = or_skip(test, moto_endpoint())?;
        let place = Place::new();
        let kms = LocalKms::start(&place);
        let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
        place.write("policy.yaml", policy(&kms.arn));
        Some(Self {
            bucket: make_bucket(&endpoint, test),
            place,
            kms,
            endpoint,
            owner,
        })
    }

    fn catalogue(&self) -> String {
        format!("s3://{}/team/catalogue", self.bucket)
    }

    fn run_at(&self, endpoint: &str, args: &[&str]) -> Ran {
        let mut command = self.place.command(args);
        command.env("AWS_ENDPOINT_URL_S3", endpoint).stdin(Stdio::null());
        let output = command.output().unwrap();
        Ran {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn ok(&self, args: &[&str]) -> String {
        let ran = self.run_at(&self.endpoint, args);
        assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
        ran.out
    }
}

#[test]
fn policies_and_keys_live_in_a_bucket_as_they_do_in_a_folder() {
    let Some(bench) = Bench::new("cli-bucket") else { return };
    let catalogue = bench.catalogue();
    let place = ["--catalogue", &catalogue];
    let trusting = [&place[..], &["--owner", &bench.owner]].concat();
    bench.ok(&[&["policy", "publish", "policy.yaml", "--key", "owner.key"], &place[..]].concat());
    assert!(
        bench
            .ok(&[&["policy", "show", "payments"], &trusting[..]].concat())
            .contains("payments")
    );
    let clear: String = sealflow_samples::generate(11, 50)
        .map(|record| String::from_utf8(record.value).unwrap() + "\n")
        .collect();
    bench.place.write("clear", &clear);
    let access = [
        &trusting[..],
        &["--dataset", "payments", "--kms-endpoint", &bench.kms.endpoint],
    ]
    .concat();
    bench.ok(&[&["seal", "clear", "--output", "sealed"], &access[..]].concat());
    // Its keys come from the bucket alone.
    std::fs::remove_file(bench.place.path("sealed.sfkeys")).unwrap();
    bench.ok(&[&["open", "sealed", "--output", "opened"], &access[..]].concat());
    assert!(bench.place.read("opened") == clear && bench.place.read("sealed") != clear);
    let listed = bench.ok(&[&["keys", "list"], &place[..]].concat());
    assert!(listed.matches("payments").count() >= 2, "{listed}");

    // The same by a file that says where the bucket is; nothing of the environment is needed then.
    let pipeline = format!(
        "name: a\ndataset: payments\nsource: {{ kafka: {{ brokers: \"127.0.0.1:1\", topics: [a], group: a }} }}\n\
         target: {{ kafka: {{ topic: b }} }}\ntrust: {{ owners: [\"{}\"] }}\n\
         kms: {{ endpoint: \"{}\", region: eu-central-1 }}\n\
         catalogue: {{ bucket: \"{catalogue}\", endpoint: \"{}\", attempts: 2 }}\n",
        bench.owner, bench.kms.endpoint, bench.endpoint
    );
    bench.place.write("pipeline.yaml", &pipeline);
    assert_eq!(bench.place.ok(&["keys", "list", "--pipeline", "pipeline.yaml"]), listed);
    let checked = bench.place.run(&["validate", "pipeline.yaml", "--sample", "0"]);
    assert!(
        checked.out.contains(&catalogue) && checked.out.contains("signed by pinned owner"),
        "{}",
        checked.out
    );
}

#[test]
fn a_bucket_that_cannot_be_used_says_why_and_what_to_do() {
    let Some(bench) = Bench::new("cli-bad-bucket") else {
        return;
    };
    let missing = format!("s3://{}-not/a", bench.bucket);
    let list = |catalogue: &str, endpoint: &str| bench.run_at(endpoint, &["keys", "list", "--catalogue", catalogue]);
    let ran = list(&missing, &bench.endpoint);
    assert_eq!(ran.code, 78, "{}", ran.err);
    assert!(
        ran.err.contains("there is no such bucket") && ran.err.contains("help: "),
        "{}",
        ran.err
    );
    let ran = list(&bench.catalogue(), "http://minio.example:9000");
    assert_eq!(ran.code, 78, "{}", ran.err);
    assert!(
        ran.err.contains("http:// to another machine") && ran.err.contains("allow_http"),
        "{}",
        ran.err
    );
    for bad in ["s3://AKIA:hunter2@bucket/a", "gs://bucket", "s3://b"] {
        let ran = list(bad, &bench.endpoint);
        assert_eq!(ran.code, 64, "{bad}: {}", ran.err);
        assert!(
            !ran.err.contains("hunter2") || bad != "s3://AKIA:hunter2@bucket/a",
            "{}",
            ran.err
        );
    }
}
