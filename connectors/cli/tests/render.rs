//! `policy render`: what is rendered for AWS is put into the development KMS, which then says who may do what.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use common::{Place, Ran, policy};
use sealflow::keys::RsaBits;
use sealflow::secret::SecretString;
use sealflow_local_kms::{KeySpec, Principal, RunningServer, Server, ServerConfig};
use sealflow_testbed::{Enclave, OTHER_IMAGE};

const KEY: &str = "00000000-0000-4000-8000-000000000001";
const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001";
const ROLE: &str = "arn:aws:iam::111122223333:role/";
const ROLE_PIPELINE: &str = "arn:aws:iam::111122223333:role/pipeline";

const POLICY: &str = r#"
dataset: payments
version: 1
keys: { default: { arn: "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001" } }
acls:
  personal:
    allow:
      - "arn:aws:iam::111122223333:role/support-*"
      - { principal: "arn:aws:iam::111122223333:role/temp", until: "2999-01-01T00:00:00Z" }
      - { principal: "arn:aws:iam::111122223333:role/left", until: "2020-01-01T00:00:00Z" }
    deny: ["arn:aws:iam::111122223333:role/support-trainee"]
  cards: { allow: ["arn:aws:iam::111122223333:role/cards"] }
columns:
  - { path: email, key: default, acl: personal }
  - { path: card, key: default, acl: cards }
dead_letters: { key: default, acl: cards }
"#;

/// A KMS with sessions of roles, each with its name for access key and secret.
struct Kms {
    runtime: tokio::runtime::Runtime,
    server: RunningServer,
}

impl Kms {
    fn start() -> Self {
        Self::believing(None)
    }

    /// A KMS that believes attestation documents under that root.
    fn believing(attestation_root: Option<PathBuf>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let session = |account: &str, role: &str| Principal {
            access_key_id: format!("{}{account}", role.replace('-', "").to_uppercase()),
            secret_access_key: SecretString::new("tests-only".to_owned()),
            session_token: None,
            arn: format!("arn:aws:sts::{account}:assumed-role/{role}/session"),
        };
        let roles = [
            "pipeline",
            "service",
            "support-1",
            "support-trainee",
            "temp",
            "left",
            "cards",
            "admin",
            "maintainer",
        ];
        let ours = roles.iter().map(|role| session("111122223333", role));
        let principals = ours.chain([session("999999999999", "support-1")]).collect();
        let config = ServerConfig {
            attestation_root,
            ..ServerConfig::in_memory(principals)
        };
        let server = runtime.block_on(Server::start(config)).unwrap();
        Self { runtime, server }
    }

    /// AWS's client, as that role.
    fn client(&self, role: &str) -> aws_sdk_kms::Client {
        use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
        let id = format!("{}111122223333", role.replace('-', "").to_uppercase());
        let http = aws_smithy_http_client::Builder::new();
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(aws_sdk_kms::config::BehaviorVersion::latest())
            .region(aws_sdk_kms::config::Region::new("eu-central-1"))
            .credentials_provider(aws_sdk_kms::config::Credentials::new(
                id,
                "tests-only",
                None,
                None,
                "test",
            ))
            .endpoint_url(self.server.endpoint())
            .http_client(http.tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build_https());
        aws_sdk_kms::Client::from_conf(config.build())
    }

    /// A command of that role.
    fn run(&self, place: &Place, role: &str, args: &[&str]) -> Ran {
        let (role, account) = role.split_once('@').unwrap_or((role, "111122223333"));
        let mut command = place.command(args);
        command
            .env(
                "AWS_ACCESS_KEY_ID",
                format!("{}{account}", role.replace('-', "").to_uppercase()),
            )
            .env("AWS_SECRET_ACCESS_KEY", "tests-only")
            .env("AWS_REGION", "eu-central-1");
        let endpoint = self.server.endpoint();
        let output = command.args(["--kms-endpoint", &endpoint]).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

/// Key policies by ARN, as they were rendered.
fn key_policies(place: &Place, more: &[&str]) -> BTreeMap<String, String> {
    let args = [
        "policy",
        "render",
        "--terraform",
        "aws",
        "--documents",
        "--dev",
        "policy.yaml",
    ];
    let json: serde_json::Value = serde_json::from_str(&place.ok(&[&args[..], more].concat())).unwrap();
    let policies = json["key_policies"].as_object().unwrap();
    policies
        .iter()
        .map(|(arn, document)| (arn.clone(), document.to_string()))
        .collect()
}

#[test]
fn the_rendered_key_policy_lets_each_role_do_its_part_and_nothing_else() {
    let place = Place::new();
    place.write("policy.yaml", POLICY);
    let (pipeline, admin) = (format!("{ROLE}pipeline"), format!("{ROLE}admin"));
    let policies = key_policies(&place, &["--sealer", &pipeline, "--admin", &admin]);
    let kms = Kms::start();
    assert_eq!(
        kms.server
            .create_key(Some(KEY), "rendered", Some(&policies[ARN]))
            .unwrap(),
        ARN
    );
    place.write("clear.ndjson", "{\"email\":\"ann@example.com\",\"card\":\"4111\"}\n");
    let dev = ["--dev", "policy.yaml"];
    let seal =
        |role: &str, out: &str| kms.run(&place, role, &[&["seal", "clear.ndjson", "-o", out], &dev[..]].concat());
    let sealed = seal("pipeline", "sealed.ndjson");
    assert_eq!(sealed.code, 0, "{}", sealed.err);
    // Nobody else seals, and the pipeline does not open what it has sealed.
    for role in ["cards", "support-1", "admin", "maintainer"] {
        let ran = seal(role, &format!("by-{role}.ndjson"));
        assert_eq!(ran.code, 77, "{role}: {}", ran.err);
    }
    // Each reader its own ACL's columns: the other column of the same record and KMS key stays shut.
    let open = |role: &str, only: &str| {
        place.write("one.yaml", only_column(only));
        let line = place.read("sealed.ndjson");
        let mut record: serde_json::Value = serde_json::from_str(&line).unwrap();
        record.as_object_mut().unwrap().retain(|name, _| name == only);
        place.write("one.ndjson", format!("{record}\n"));
        let args = [
            "open",
            "one.ndjson",
            "--keys",
            "sealed.ndjson.sfkeys",
            "--dev",
            "one.yaml",
        ];
        let ran = kms.run(&place, role, &args);
        assert!(
            ran.code == 0 || (ran.code == 77 && ran.out.is_empty()),
            "{role}: {}{}",
            ran.code,
            ran.err
        );
        ran.code == 0 && (ran.out.contains("ann@example.com") || ran.out.contains("4111"))
    };
    let table = [
        ("support-1", true, false),
        ("temp", true, false),
        ("cards", false, true),
        ("support-trainee", false, false),
        ("left", false, false),
        ("pipeline", false, false),
        ("admin", false, false),
        ("service", false, false),
        ("support-1@999999999999", false, false),
    ];
    for (role, email, card) in table {
        assert_eq!((open(role, "email"), open(role, "card")), (email, card), "{role}");
    }
    // Another dataset under the same key is another context, for whoever seals and whoever reads.
    place.write("policy.yaml", POLICY.replace("dataset: payments", "dataset: orders"));
    assert_eq!(seal("pipeline", "orders.ndjson").code, 77);
    place.write(
        "policy.yaml",
        POLICY
            .replace("cards:", "card-numbers:")
            .replace("acl: cards", "acl: card-numbers"),
    );
    assert_eq!(
        seal("pipeline", "renamed.ndjson").code,
        77,
        "an ACL that was not rendered"
    );
}

/// The policy with that column alone, so that `open` asks for no other key.
fn only_column(path: &str) -> String {
    let others = POLICY
        .lines()
        .filter(|line| !line.contains("- { path:") || line.contains(&format!("path: {path},")));
    others.map(|line| format!("{line}\n")).collect()
}

#[test]
fn with_a_service_readers_have_no_rights_at_kms_and_the_service_has() {
    let place = Place::new();
    place.write("policy.yaml", POLICY);
    let (pipeline, service) = (format!("{ROLE}pipeline"), format!("{ROLE}service"));
    let policies = key_policies(&place, &["--sealer", &pipeline, "--service", &service, "--deny-others"]);
    let kms = Kms::start();
    kms.server
        .create_key(Some(KEY), "rendered", Some(&policies[ARN]))
        .unwrap();
    place.write("clear.ndjson", "{\"email\":\"ann@example.com\",\"card\":\"4111\"}\n");
    let dev = ["--dev", "policy.yaml"];
    let sealed = kms.run(
        &place,
        "pipeline",
        &[&["seal", "clear.ndjson", "-o", "sealed.ndjson"], &dev[..]].concat(),
    );
    assert_eq!(sealed.code, 0, "{}", sealed.err);
    let open = |role: &str| kms.run(&place, role, &[&["open", "sealed.ndjson"], &dev[..]].concat());
    let opened = open("service");
    assert!(opened.code == 0 && opened.out.contains("4111"), "{}", opened.err);
    for role in ["support-1", "cards", "pipeline"] {
        assert_eq!(open(role).code, 77, "{role}");
    }
    drop(kms.runtime);
}

#[test]
fn a_maintainer_moves_keys_to_the_new_one_and_opens_nothing() {
    let place = Place::new();
    let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
    let other = "00000000-0000-4000-8000-000000000002";
    let first = POLICY.to_owned();
    let moved = POLICY.replace("version: 1", "version: 2").replacen(KEY, other, 1)
        + &format!("previous: {{ keys: [{{ name: default, arn: \"{ARN}\" }}] }}\n");
    let trust = ["--catalogue", "catalogue", "--owner", &owner];
    let publish = |text: &str| {
        place.write("policy.yaml", text);
        place.ok(&["policy", "publish", "--key", "owner.key", "--catalogue", "catalogue"]);
    };
    let (pipeline, maintainer) = (format!("{ROLE}pipeline"), format!("{ROLE}maintainer"));
    let parties = ["--sealer", &pipeline, "--maintainer", &maintainer];
    publish(&first);
    let kms = Kms::start();
    kms.server
        .create_key(Some(KEY), "old", Some(&key_policies(&place, &parties)[ARN]))
        .unwrap();
    place.write("clear.ndjson", "{\"email\":\"ann@example.com\"}\n");
    let with = ["--catalogue", "catalogue", "--owner", &owner, "--dataset", "payments"];
    let sealed = kms.run(
        &place,
        "pipeline",
        &[&["seal", "clear.ndjson", "-o", "sealed.ndjson"], &with[..]].concat(),
    );
    assert_eq!(sealed.code, 0, "{}", sealed.err);
    publish(&moved);
    let policies = key_policies(&place, &parties);
    let new = kms
        .server
        .create_key(Some(other), "new", Some(&policies[&ARN.replace(KEY, other)]))
        .unwrap();
    kms.server.set_key_policy(ARN, &policies[ARN]).unwrap();
    let rewrap = [&["keys", "rewrap"], &trust[..]].concat();
    assert_ne!(
        kms.run(&place, "pipeline", &rewrap).code,
        0,
        "who seals rewraps nothing"
    );
    let ran = kms.run(&place, "maintainer", &rewrap);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    let open = |role: &str| {
        kms.run(&place, role, &[&["open", "sealed.ndjson"], &with[..]].concat())
            .code
    };
    assert_eq!(open("maintainer"), 77);
    // The moved envelope opens where the old key is gone.
    kms.server.set_enabled(ARN, false).unwrap();
    assert_eq!((open("support-1"), open("cards")), (0, 77));
    assert!(new.ends_with(other));
}

#[test]
fn the_sample_policy_is_rendered_for_both_clouds() {
    let place = Place::new();
    place.write("policy.yaml", policy(ARN));
    let aws = place.ok(&[
        "policy",
        "render",
        "--terraform",
        "aws",
        "--dev",
        "policy.yaml",
        "--sealer",
        "arn:aws:iam::111122223333:role/pipeline",
        "--import-keys",
    ]);
    insta::assert_snapshot!("render_aws", aws);
    let google = policy(ARN)
        .replace("arn:aws:iam::111122223333:role/support", "oidc:https://accounts.google.com#sub=104857600000000000001")
        .replace("role/operators\"", "role/operators\", {principal: \"oidc:https://accounts.google.com#sub=104857600000000000002\", until: \"2999-01-01T00:00:00Z\"}");
    place.write("google.yaml", google);
    let ran = place.run(&[
        "policy",
        "render",
        "--terraform",
        "gcp",
        "--dev",
        "google.yaml",
        "--key-ring",
        "projects/p/locations/europe-west3/keyRings/r",
        "--sealer",
        "serviceAccount:pipeline@p.iam.gserviceaccount.com",
        "-o",
        "out/gcp.tf",
    ]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "wrote out/gcp.tf\n"), "{}", ran.err);
    assert!(
        ran.err.lines().count() == 2 && ran.err.contains("acls.payments of payments: allow[0]"),
        "{}",
        ran.err
    );
    insta::assert_snapshot!("render_gcp", place.read("out/gcp.tf"));
}

#[test]
fn what_would_lock_others_out_or_let_everybody_in_is_refused() {
    let place = Place::new();
    let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
    for dataset in ["payments", "orders"] {
        place.write(
            "policy.yaml",
            POLICY.replace("dataset: payments", &format!("dataset: {dataset}")),
        );
        place.ok(&["policy", "publish", "--key", "owner.key", "--catalogue", "catalogue"]);
    }
    let trust = ["--catalogue", "catalogue", "--owner", &owner];
    let render = |more: &[&str]| place.run(&[&["policy", "render", "--terraform", "aws"], more, &trust[..]].concat());
    // One KMS key, two datasets, one key policy.
    let ran = render(&["payments"]);
    assert!(
        ran.code == 78 && ran.err.contains("also the key of dataset orders"),
        "{}",
        ran.err
    );
    let both = render(&["payments", "orders"]);
    assert!(
        both.code == 0 && both.out.matches("resource \"aws_kms_key_policy\"").count() == 1,
        "{}",
        both.err
    );
    assert!(
        both.out.contains("\"orders#dead-letters\"") && both.out.contains("\"payments#dead-letters\""),
        "{}",
        both.out
    );
    // Nor is a file that nobody signed rendered beside them; without a catalogue it is said that nobody looked.
    let dev = ["policy", "render", "--terraform", "aws", "--dev", "policy.yaml"];
    let beside = place.run(&[&dev[..], &trust[..]].concat());
    assert!(
        beside.code == 78 && beside.err.contains("also the key of dataset payments"),
        "{}",
        beside.err
    );
    let alone = place.run(&dev);
    assert!(
        alone.code == 0 && alone.err.contains("were not looked at"),
        "{}",
        alone.err
    );
    // Whether a dataset whose owner is not pinned has the same key is not known.
    place.ok(&["policy", "keygen", "-o", "other.key"]);
    place.write("policy.yaml", POLICY.replace("dataset: payments", "dataset: invoices"));
    place.ok(&["policy", "publish", "--key", "other.key", "--catalogue", "catalogue"]);
    let unknown = render(&["payments", "orders"]);
    assert!(
        unknown.code == 78 && unknown.err.contains("dataset invoices") && unknown.err.contains("pin its owner"),
        "{}",
        unknown.err
    );
    std::fs::remove_dir_all(place.path("catalogue/policies/invoices")).unwrap();
    for wrong in [
        &["payments", "orders", "--sealer", "*"][..],
        &["payments", "orders", "--sealer", "arn:aws:iam::111122223333:root"],
        &["payments", "orders", "--service", "oidc:https://a.example.com#sub=x"],
        &["payments", "orders", "--readers", "service"],
        &["payments", "orders", "--admin", "arn:aws:iam::*:root"],
        &["payments", "orders", "--key-ring", "projects/p/locations/l/keyRings/r"],
    ] {
        let ran = render(wrong);
        assert_eq!((ran.code, ran.out.as_str()), (64, ""), "{wrong:?}: {}", ran.err);
    }
    for wrong in [
        &["--sealer", "allUsers"][..],
        &["--key-ring", "r"],
        &[],
        &["--maintainer", "x"],
    ] {
        let ring = ["--key-ring", "projects/p/locations/l/keyRings/r"];
        let ring = if wrong.contains(&"--key-ring") || wrong.is_empty() {
            &[][..]
        } else {
            &ring[..]
        };
        let args = ["policy", "render", "--terraform", "gcp", "--dev", "policy.yaml"];
        assert_eq!(place.run(&[&args[..], wrong, ring].concat()).code, 64, "{wrong:?}");
    }
}

#[test]
fn values_whose_acl_has_changed_are_named_since_kms_goes_by_the_old_name() {
    let place = Place::new();
    let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
    for text in [
        POLICY.to_owned(),
        POLICY.replace("version: 1", "version: 2").replace(
            "path: email, key: default, acl: personal",
            "path: email, key: default, acl: cards",
        ),
    ] {
        place.write("policy.yaml", text);
        place.ok(&["policy", "publish", "--key", "owner.key", "--catalogue", "catalogue"]);
    }
    let ran = place.run(&[
        "policy",
        "render",
        "payments",
        "--terraform",
        "aws",
        "--catalogue",
        "catalogue",
        "--owner",
        &owner,
    ]);
    assert!(
        ran.code == 0
            && ran.err.contains(
                "values of email from version 1 and before were sealed under ACL personal, and ACL cards counts"
            ),
        "{}",
        ran.err
    );
}

#[test]
fn the_rendered_policies_let_the_pipeline_open_for_clients_and_others_publish_or_make_pairs() {
    let place = Place::new();
    let ids = ["1", "2", "3"].map(|n| KEY.replace("000000000001", &format!("00000000000{n}")));
    let [data, rsa, pairs] = ids.each_ref().map(|id| ARN.replace(KEY, id));
    let kms = Kms::start();
    let spec = |id: &String, spec| {
        let made = kms.server.create_key_of(spec, Some(id), "", None);
        kms.runtime.block_on(made).unwrap();
    };
    spec(&ids[0], KeySpec::Symmetric);
    spec(&ids[1], KeySpec::Rsa(RsaBits::Rsa2048));
    spec(&ids[2], KeySpec::Symmetric);
    let pair = |role: &str| {
        let args = [
            "keys",
            "pair",
            "--key",
            &pairs,
            "--dataset",
            "payments",
            "--bits",
            "2048",
        ];
        kms.run(&place, role, &args)
    };
    let made = pair("maintainer");
    assert_eq!(made.code, 0, "{}", made.err);
    let indented: String = made
        .out
        .replacen("\"web\"", "app", 1)
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect();
    let client = format!("client:\n  session: session\n  keys:\n    web: {{ arn: \"{rsa}\" }}\n{indented}");
    let policy = POLICY.replace(
        "path: card, key: default, acl: cards",
        "path: card, key: default, acl: cards, flow: hybrid",
    );
    place.write("policy.yaml", format!("{policy}{client}"));
    let role = |name: &str| format!("{ROLE}{name}");
    let (pipeline, service, maintainer) = (role("pipeline"), role("service"), role("maintainer"));
    let parties = [
        "--sealer",
        &pipeline,
        "--service",
        &service,
        "--maintainer",
        &maintainer,
        "--deny-others",
    ];
    let rendered = key_policies(&place, &parties);
    assert_eq!(rendered.len(), 3);
    for arn in [&data, &rsa, &pairs] {
        kms.server.set_key_policy(arn, &rendered[arn]).unwrap();
    }

    let published = place.ok(&["policy", "keygen"]);
    let owner = published.trim();
    place.ok(&[
        "policy",
        "publish",
        "policy.yaml",
        "--key",
        "owner.key",
        "--catalogue",
        "catalogue",
    ]);
    let public = |role: &str| {
        kms.run(
            &place,
            role,
            &[
                "keys",
                "public",
                "payments",
                "--catalogue",
                "catalogue",
                "--owner",
                owner,
            ],
        )
    };
    let jwks = public("service");
    assert_eq!(
        (jwks.code, public("maintainer").code, public("pipeline").code),
        (0, 0, 0),
        "{}",
        jwks.err
    );
    for role in ["cards", "admin", "support-1"] {
        assert_eq!(public(role).code, 77, "{role}");
    }
    let set: serde_json::Value = serde_json::from_str(&jwks.out).unwrap();
    let mut records = String::new();
    for key in set["keys"].as_array().unwrap() {
        place.write("backend.jwk", key.to_string());
        let args = [
            "client",
            "seal",
            "--key",
            "backend.jwk",
            "--dataset",
            "payments",
            "--column",
            "card",
        ];
        let ran = place.run_with_input(&args, b"{\"card\":\"4111\",\"email\":\"ann@example.com\"}\n");
        records += &ran.out;
    }
    assert_eq!(records.lines().count(), 2);
    place.write("from-client.ndjson", &records);
    let seal = |role: &str| {
        let out = format!("by-{role}.ndjson");
        kms.run(
            &place,
            role,
            &["seal", "from-client.ndjson", "-o", &out, "--dev", "policy.yaml"],
        )
    };
    let sealed = seal("pipeline");
    assert_eq!(sealed.code, 0, "{}", sealed.err);
    for role in ["service", "cards", "maintainer", "admin"] {
        assert_eq!(seal(role).code, 77, "{role}");
    }
    // Pairs are made by maintainers, for this dataset, and by nobody else.
    assert_eq!(
        (pair("maintainer").code, pair("pipeline").code, pair("service").code),
        (0, 77, 77)
    );
    let elsewhere = ["keys", "pair", "--key", &pairs, "--dataset", "orders", "--bits", "2048"];
    assert_eq!(kms.run(&place, "maintainer", &elsewhere).code, 77);
    drop(kms.runtime);
}

#[test]
fn the_rendered_policies_of_enclave_columns_give_keys_to_the_attested_worker_alone() {
    use aws_sdk_kms::error::ProvideErrorMetadata as _;
    use aws_sdk_kms::primitives::Blob;
    use aws_sdk_kms::types::{DataKeyPairSpec, DataKeySpec, KeyEncryptionMechanism, RecipientInfo};

    let place = Place::new();
    let enclave = Enclave::new();
    let ids = ["1", "2", "3"].map(|n| KEY.replace("000000000001", &format!("00000000000{n}")));
    let [data, sealed, pairs] = ids.each_ref().map(|id| ARN.replace(KEY, id));
    let kms = Kms::believing(Some(enclave.root_file()));
    for id in &ids {
        kms.server.create_key(Some(id), "", None).unwrap();
    }
    let pair = || {
        let args = [
            "keys",
            "pair",
            "--key",
            &pairs,
            "--dataset",
            "payments",
            "--bits",
            "2048",
        ];
        kms.run(&place, "maintainer", &args)
    };
    // Before there is a key policy; only its form is needed here.
    let made = pair();
    assert_eq!(made.code, 0, "{}", made.err);
    let indented: String = made.out.lines().map(|line| format!("    {line}\n")).collect();
    let image = "1a".repeat(48);
    let (policy, _) = POLICY.split_once("dead_letters:").unwrap();
    let policy = policy
        .replace("key: default, acl: cards", "key: sealed, acl: cards, flow: enclave")
        .replace(
            "keys: { default:",
            &format!("keys: {{ sealed: {{ arn: \"{sealed}\" }}, default:"),
        );
    place.write(
        "policy.yaml",
        format!(
            "{policy}lease: required\nenclave:\n  measurements: {{ v1: {{ image: \"{image}\" }} }}\n  keys:\n{indented}"
        ),
    );
    let role = |name: &str| format!("{ROLE}{name}");
    let (pipeline, maintainer, admin) = (role("pipeline"), role("maintainer"), role("admin"));
    let parties = ["--sealer", &pipeline, "--maintainer", &maintainer];
    // Somebody must be named who alone may change such a key policy.
    let render = ["policy", "render", "--terraform", "aws", "--dev", "policy.yaml"];
    for more in [&[][..], &["--admin", "arn:aws:iam::111122223333:root"]] {
        let ran = place.run(&[&render[..], &parties[..], more].concat());
        assert!(
            ran.code == 64 && ran.err.contains("enclave columns"),
            "{}{}",
            ran.code,
            ran.err
        );
    }
    let ring = [
        "policy",
        "render",
        "--terraform",
        "gcp",
        "--dev",
        "policy.yaml",
        "--key-ring",
    ];
    let google = place.run(&[&ring[..], &["projects/p/locations/l/keyRings/r"]].concat());
    assert!(
        google.code == 78 && google.err.contains("attestation"),
        "{}",
        google.err
    );
    let rendered = key_policies(&place, &[&parties[..], &["--admin", &admin, "--deny-others"]].concat());
    assert_eq!(rendered.len(), 3);
    for arn in [&data, &sealed, &pairs] {
        kms.server.set_key_policy(arn, &rendered[arn]).unwrap();
    }

    let recipient = |document: Vec<u8>| {
        let info = RecipientInfo::builder().key_encryption_algorithm(KeyEncryptionMechanism::RsaesOaepSha256);
        Some(info.attestation_document(Blob::new(document)).build())
    };
    let good = || recipient(enclave.document_of(|_| {}));
    let other = || {
        recipient(enclave.document_of(|document| {
            document.pcrs.insert(0, OTHER_IMAGE.to_vec());
        }))
    };
    let context = |pairs: &[(&str, &str)]| -> Option<HashMap<String, String>> {
        Some(
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        )
    };
    let of_cards = [
        ("sealflow:dataset", "payments"),
        ("sealflow:key", "sealed"),
        ("sealflow:acl", "cards"),
    ];
    let of_pairs = [
        ("sealflow:dataset", "payments"),
        ("sealflow:purpose", "client-key-pair"),
    ];
    let generate = |role: &str, pairs: &[(&str, &str)], info: Option<RecipientInfo>| {
        let request = kms
            .client(role)
            .generate_data_key()
            .key_id(&sealed)
            .key_spec(DataKeySpec::Aes256);
        let answer = request
            .set_encryption_context(context(pairs))
            .set_recipient(info)
            .send();
        kms.runtime
            .block_on(answer)
            .map_err(|error| error.code().unwrap_or_default().to_owned())
    };
    let key = generate("pipeline", &of_cards, good()).unwrap();
    assert!(key.plaintext.is_none() && key.ciphertext_for_recipient.is_some());
    let wrapped = key.ciphertext_blob.unwrap();
    let denied = || Some("AccessDeniedException".to_owned());
    for (role, pairs, info) in [
        ("pipeline", &of_cards[..], None),
        ("pipeline", &of_cards[..], other()),
        ("pipeline", &of_pairs[..], good()),
        ("pipeline", &of_cards[..2], good()),
        ("cards", &of_cards[..], good()),
        ("admin", &of_cards[..], good()),
    ] {
        assert_eq!(generate(role, pairs, info).err(), denied(), "{role} {pairs:?}");
    }
    let decrypt = |role: &str, info: Option<RecipientInfo>| {
        let request = kms
            .client(role)
            .decrypt()
            .key_id(&sealed)
            .ciphertext_blob(wrapped.clone());
        let answer = request
            .set_encryption_context(context(&of_cards))
            .set_recipient(info)
            .send();
        kms.runtime
            .block_on(answer)
            .map_err(|error| error.code().unwrap_or_default().to_owned())
    };
    assert!(decrypt("cards", good()).unwrap().plaintext.is_none());
    for (role, info) in [
        ("cards", None),
        ("cards", other()),
        ("support-1", good()),
        ("pipeline", good()),
    ] {
        assert!(decrypt(role, info).is_err(), "{role}");
    }
    // Pairs are made by the worker: what `keys pair` asks for is denied to everybody.
    let by_hand = pair();
    assert!(by_hand.code == 77, "{}{}", by_hand.code, by_hand.err);
    let make = |role: &str, info: Option<RecipientInfo>| {
        let request = kms.client(role).generate_data_key_pair().key_id(&pairs);
        let request = request
            .key_pair_spec(DataKeyPairSpec::Rsa2048)
            .set_encryption_context(context(&of_pairs));
        let answer = request.set_recipient(info).send();
        kms.runtime
            .block_on(answer)
            .map_err(|error| error.code().unwrap_or_default().to_owned())
    };
    assert!(make("maintainer", good()).unwrap().private_key_plaintext.is_none());
    for (role, info) in [("maintainer", None), ("maintainer", other()), ("pipeline", good())] {
        assert_eq!(make(role, info).err(), denied(), "{role}");
    }
    let put = |role: &str| {
        let request = kms
            .client(role)
            .put_key_policy()
            .key_id(&sealed)
            .policy(&rendered[&sealed]);
        kms.runtime
            .block_on(request.send())
            .map_err(|error| error.code().unwrap_or_default().to_owned())
    };
    assert!(put("admin").is_ok());
    for role in ["maintainer", "pipeline", "cards"] {
        assert_eq!(put(role).err(), denied(), "{role}");
    }
}

#[test]
fn a_key_behind_clients_keys_that_wraps_data_keys_elsewhere_is_not_rendered() {
    let place = Place::new();
    let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
    let publish = |name: &str, text: String| {
        place.write(name, text);
        place.ok(&[
            "policy",
            "publish",
            name,
            "--key",
            "owner.key",
            "--catalogue",
            "catalogue",
        ]);
    };
    let other = ARN.replace("000000000001", "000000000002");
    publish("payments.yaml", POLICY.to_owned());
    publish(
        "orders.yaml",
        POLICY
            .replace("dataset: payments", "dataset: orders")
            .replacen(ARN, &other, 1)
            + &format!("client: {{ keys: {{ web: {{ arn: \"{ARN}\" }} }} }}\n"),
    );
    let render = |datasets: &[&str]| {
        let more = [
            "--terraform",
            "aws",
            "--sealer",
            ROLE_PIPELINE,
            "--catalogue",
            "catalogue",
            "--owner",
            &owner,
        ];
        place.run(&[&["policy", "render"], datasets, &more[..]].concat())
    };
    let alone = render(&["payments"]);
    assert!(
        alone.code == 78 && alone.err.contains("dataset orders"),
        "{}",
        alone.err
    );
    let both = render(&["payments", "orders"]);
    assert!(
        both.code == 78 && both.err.contains("is behind a key that clients seal to"),
        "{}",
        both.err
    );
}
