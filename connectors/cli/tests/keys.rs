//! `keys usage`, `rotate` and `rewrap` on files, with a local KMS whose keys the test switches off.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Output;

use sealflow::keys::Envelope;
use sealflow_testbed::{KEY_ARN, Pipeline, Site};
use serde_json::Value;

const NEW_ID: &str = "00000000-0000-4000-8000-000000000002";
const RECORDS: u64 = 200;

struct Bench {
    site: Site,
    pipeline: PathBuf,
    new_arn: String,
    clear: String,
}

impl Bench {
    /// Records sealed under the first KMS key, and then a policy that names the second.
    fn new() -> Self {
        let site = Site::new("127.0.0.1:1");
        let pipeline = site.pipeline(&Pipeline {
            name: "keys",
            mode: "seal",
            dataset: "payments",
            from: "a",
            to: "b",
            dead: "c",
            keys: "header",
            codec: "none",
            more: "",
        });
        site.publish("payments", 1, sealflow_samples::POLICY_YAML);
        let records = sealflow_samples::generate(11, RECORDS);
        let clear: String = records
            .map(|record| String::from_utf8(record.value).unwrap() + "\n")
            .collect();
        std::fs::write(site.path().join("clear"), &clear).unwrap();
        let new_arn = site.kms().create_key(Some(NEW_ID), "", None).unwrap();
        let bench = Self {
            site,
            pipeline,
            new_arn,
            clear,
        };
        bench.ok(&["seal", "clear", "-o", "sealed"]);
        bench.move_policy();
        bench
    }

    fn move_policy(&self) {
        let yaml = sealflow_samples::POLICY_YAML
            .replace("version: 1", "version: 2")
            .replace(KEY_ARN, &self.new_arn);
        let previous = format!("previous: {{ keys: [{{ name: default, arn: \"{KEY_ARN}\" }}] }}\n");
        self.site.publish("payments", 2, &(yaml + &previous));
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = self
            .site
            .command(Path::new(env!("CARGO_BIN_EXE_sealflow")), "pipeline", args);
        command.env("SEALFLOW_PIPELINE", &self.pipeline).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{args:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--output", "json"]].concat())).unwrap()
    }

    fn opens(&self) -> bool {
        let opened = self.site.path().join("opened");
        let _ = std::fs::remove_file(&opened);
        let output = self.run(&["open", "sealed", "-o", "opened"]);
        output.status.success() && std::fs::read_to_string(&opened).unwrap() == self.clear
    }

    fn state(&self, arn: &str, more: &[&str]) -> String {
        let report = self.json(&[&["keys", "usage"], more].concat());
        let keys = report["kms_keys"].as_array().unwrap();
        let key = keys.iter().find(|key| key["arn"] == arn);
        key.map_or_else(|| "absent".to_owned(), |key| key["state"].as_str().unwrap().to_owned())
    }
}

#[test]
fn rewrapped_data_keys_open_although_the_old_kms_key_is_disabled() {
    let bench = Bench::new();
    let old = |enabled| bench.site.kms().set_enabled(KEY_ARN, enabled).unwrap();
    assert_eq!(bench.state(KEY_ARN, &[]), "opens");
    assert_eq!(bench.state(&bench.new_arn, &[]), "seals");
    old(false);
    assert!(!bench.opens(), "the old KMS key is not needed, so this proves nothing");
    // A dry run asks no KMS and writes nothing.
    let before = bench.json(&["keys", "list"]);
    let planned = bench.json(&["keys", "rewrap", "--dry-run"]);
    let keys = planned["moves"][0]["data_keys"].as_u64().unwrap();
    let under_old = before.as_array().unwrap().iter().filter(|key| key["arn"] == KEY_ARN);
    assert_eq!(
        (planned["moves"][0]["from"].as_str(), keys),
        (Some(KEY_ARN), under_old.count() as u64)
    );
    assert!(keys >= 2, "{keys}");
    assert_eq!(bench.json(&["keys", "list"]), before);
    assert_eq!(bench.site.kms().requests("ReEncrypt"), 0);
    // With the old KMS key off nothing can be moved; that is said, with the exit code of a wrong configuration.
    let failed = bench.run(&["keys", "rewrap"]);
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(78), "{text}");
    assert!(text.contains("DisabledException") && text.contains("help:"), "{text}");
    old(true);
    let decrypts = bench.site.kms().requests("Decrypt");
    let moved = bench.json(&["keys", "rewrap"]);
    assert_eq!(moved["moves"], planned["moves"]);
    assert_eq!(
        bench.site.kms().requests("Decrypt"),
        decrypts,
        "a plaintext key left KMS"
    );
    // Again: nothing to do.
    let requests = bench.site.kms().requests("ReEncrypt");
    let again = bench.json(&["keys", "rewrap"]);
    assert_eq!(again["moves"].as_array().unwrap().len(), 0);
    assert_eq!(again["current"], before.as_array().unwrap().len());
    assert_eq!(bench.site.kms().requests("ReEncrypt"), requests);
    old(false);
    // With the copies that travel in the .sfkeys file, and from the catalogue alone.
    assert!(bench.opens(), "with travelling envelopes");
    let sidecar = bench.site.path().join("sealed.sfkeys");
    assert_eq!(bench.state(KEY_ARN, &["--file", sidecar.to_str().unwrap()]), "listed");
    std::fs::remove_file(&sidecar).unwrap();
    assert!(bench.opens(), "from the catalogue");
    // Named under `previous:` until a policy without it; then nothing of the catalogue needs it.
    assert_eq!(bench.state(KEY_ARN, &[]), "listed");
    let yaml = sealflow_samples::POLICY_YAML
        .replace("version: 1", "version: 3")
        .replace(KEY_ARN, &bench.new_arn);
    bench.site.publish("payments", 3, &yaml);
    assert_eq!(bench.state(KEY_ARN, &[]), "superseded");
    assert!(bench.opens(), "without previous");
}

#[test]
fn a_rewrapping_that_was_cut_off_goes_on_where_it_stopped_and_verifies() {
    let bench = Bench::new();
    let keys = bench.json(&["keys", "list"]).as_array().unwrap().len();
    assert!(keys >= 2, "{keys}");
    // The KMS goes away after the first.
    bench.site.kms().set_fault(Some(sealflow_local_kms::Fault {
        operation: Some("ReEncrypt".to_owned()),
        failure: Some(sealflow_local_kms::Failure::Error {
            status: 400,
            code: "AccessDeniedException",
        }),
        times: Some(keys as u64 - 1),
        ..Default::default()
    }));
    let failed = bench.run(&["keys", "rewrap", "--verify", "--parallel", "1"]);
    assert_eq!(failed.status.code(), Some(77));
    let rest = bench.json(&["keys", "rewrap", "--verify"]);
    assert_eq!(
        (&rest["moves"][0]["data_keys"], &rest["current"]),
        (&Value::from(keys - 1), &Value::from(1))
    );
    assert_eq!(
        bench.site.kms().requests("Decrypt"),
        keys as u64 + 1,
        "each is verified when it is moved, and the first once more"
    );
    bench.site.kms().set_enabled(KEY_ARN, false).unwrap();
    assert!(bench.opens());
}

#[test]
fn verifying_finds_and_mends_envelopes_that_only_say_they_are_under_the_new_kms_key() {
    let bench = Bench::new();
    // Whoever can create objects in the catalogue puts garbage in front of one data key.
    let folder = bench.site.catalogue().join("keys");
    let mut folders: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    let mut forged = Envelope::from_bytes(&std::fs::read(folders[0].join("0")).unwrap()).unwrap();
    forged.arn.clone_from(&bench.new_arn);
    forged.wrapped.reverse();
    std::fs::write(folders[0].join("1"), forged.to_bytes().unwrap()).unwrap();
    let unverified = bench.json(&["keys", "rewrap"]);
    assert_eq!(
        (&unverified["current"], &unverified["verified"]),
        (&Value::from(1), &Value::from(0))
    );
    assert_eq!(bench.site.kms().requests("Decrypt"), 0);
    // So it looks as if nothing needed the old key, and that is all that is said of it.
    let usage = bench.json(&["keys", "usage"]);
    assert_eq!(bench.state(KEY_ARN, &[]), "listed");
    assert_eq!(
        (&usage["superseded_is_verified"], &usage["verify_with"]),
        (&Value::from(false), &Value::from("sealflow keys rewrap --verify"))
    );
    let text = bench.run(&["keys", "usage"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned() + &String::from_utf8_lossy(&text.stderr);
    assert!(
        text.contains("was not verified: `sealflow keys rewrap --verify` must end well"),
        "{text}"
    );
    bench.site.kms().set_enabled(KEY_ARN, false).unwrap();
    assert!(
        !bench.opens(),
        "the forged envelope is in nobody's way, so this proves nothing"
    );
    let failed = bench.run(&["keys", "rewrap", "--verify"]);
    assert_eq!(
        failed.status.code(),
        Some(78),
        "{}",
        String::from_utf8_lossy(&failed.stderr)
    );
    bench.site.kms().set_enabled(KEY_ARN, true).unwrap();
    let keys = bench.json(&["keys", "list"]).as_array().unwrap().len();
    let verified = bench.json(&["keys", "rewrap", "--verify"]);
    let counts = |report: &Value| (report["mended"].as_u64(), report["verified"].as_u64());
    assert_eq!(counts(&verified), (Some(1), Some(keys as u64 - 1)));
    assert_eq!(
        counts(&bench.json(&["keys", "rewrap", "--verify"])),
        (Some(0), Some(keys as u64))
    );
    bench.site.kms().set_enabled(KEY_ARN, false).unwrap();
    std::fs::remove_file(bench.site.path().join("sealed.sfkeys")).unwrap();
    assert!(bench.opens());
    // Where nothing genuine is left behind it, that is an error of the data.
    for n in ["0", "2"] {
        std::fs::remove_file(folders[0].join(n)).unwrap();
    }
    let lost = bench.run(&["keys", "rewrap", "--verify"]);
    assert_eq!(
        lost.status.code(),
        Some(65),
        "{}",
        String::from_utf8_lossy(&lost.stderr)
    );
}

#[test]
fn rotating_gives_new_material_and_what_was_sealed_opens() {
    let bench = Bench::new();
    let rotate = |more: &[&str]| bench.json(&[&["keys", "rotate"], more].concat());
    assert_eq!(rotate(&["--dry-run"])[0]["rotated"], false);
    assert_eq!(bench.site.kms().requests("RotateKeyOnDemand"), 0);
    let rotated = rotate(&[]);
    assert_eq!(
        (&rotated[0]["arn"], &rotated[0]["rotated"]),
        (&Value::from(bench.new_arn.clone()), &Value::from(true))
    );
    assert_eq!(bench.site.kms().requests("RotateKeyOnDemand"), 1);
    assert!(bench.opens());
    // An answer that is lost is told apart from a rotation that was not done, and nothing is asked twice.
    bench.site.kms().set_fault(Some(sealflow_local_kms::Fault {
        operation: Some("RotateKeyOnDemand".to_owned()),
        failure: Some(sealflow_local_kms::Failure::DisconnectAfter),
        ..Default::default()
    }));
    let lost = bench.run(&["keys", "rotate"]);
    bench.site.kms().set_fault(None);
    let text = String::from_utf8_lossy(&lost.stderr).into_owned();
    assert_eq!(lost.status.code(), Some(69), "{text}");
    assert!(
        text.contains("may have been rotated") && text.contains("list-key-rotations"),
        "{text}"
    );
    assert!(String::from_utf8_lossy(&lost.stdout).starts_with("perhaps rotated: "));
    assert_eq!(bench.site.kms().requests("RotateKeyOnDemand"), 2);
    let data_keys = rotate(&["--data-keys"]);
    assert_eq!(
        (&data_keys["rotated"], &data_keys["max_age_secs"]["default"]),
        (&Value::from(false), &Value::from(3600))
    );
    let unknown = bench.run(&["keys", "rotate", "--key", "nobody"]);
    assert_eq!(unknown.status.code(), Some(64));
}

#[test]
fn credentials_that_kms_no_longer_takes_are_looked_up_again_without_a_restart() {
    let bench = Bench::new();
    let path = bench.site.path();
    // A credential_process whose first answer is of a session that has ended.
    let script = path.join("credentials.sh");
    let text = r#"n=$(cat asked 2>/dev/null || echo 0)
echo $((n + 1)) > asked
if [ "$n" = 0 ]; then id=TESTGONE secret=gone; else id=TESTPIPELINE secret=tests-only-pipeline; fi
echo "{\"Version\": 1, \"AccessKeyId\": \"$id\", \"SecretAccessKey\": \"$secret\"}"
"#;
    std::fs::write(&script, text).unwrap();
    let config = path.join("aws-config");
    let process = format!(
        "[default]\nregion = eu-central-1\ncredential_process = /bin/sh {}\n",
        script.display()
    );
    std::fs::write(&config, process).unwrap();
    let args = [
        "seal",
        "clear",
        "-o",
        "again",
        "--pipeline",
        bench.pipeline.to_str().unwrap(),
    ];
    let mut command = bench
        .site
        .command(Path::new(env!("CARGO_BIN_EXE_sealflow")), "pipeline", &args);
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        command.env_remove(name);
    }
    let output = command
        .env("AWS_CONFIG_FILE", &config)
        .env("AWS_SHARED_CREDENTIALS_FILE", path.join("none"))
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_to_string(path.join("asked")).unwrap().trim(), "2");
    // When there are no others, that is said.
    std::fs::write(&script, text.replace("\"$n\" = 0", "1 = 1")).unwrap();
    let mut command = bench
        .site
        .command(Path::new(env!("CARGO_BIN_EXE_sealflow")), "pipeline", &args);
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        command.env_remove(name);
    }
    let output = command.arg("--force").env("AWS_CONFIG_FILE", &config).output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(77),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_policy_that_cannot_be_believed_makes_no_key_superseded() {
    let bench = Bench::new();
    bench.ok(&["keys", "rewrap"]);
    bench.site.publish(
        "payments",
        3,
        &sealflow_samples::POLICY_YAML
            .replace("version: 1", "version: 3")
            .replace(KEY_ARN, &bench.new_arn),
    );
    assert_eq!(bench.state(KEY_ARN, &[]), "superseded");
    let folder = bench.site.catalogue().join("policies/orders");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("0000000001.jws"), "not signed").unwrap();
    assert_eq!(bench.state(KEY_ARN, &[]), "unknown");
}
