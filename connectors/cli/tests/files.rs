//! `seal` and `open` on files and pipes, with a local KMS.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{LocalKms, Place, policy};

fn samples(n: u64) -> (String, Vec<String>) {
    let mut secrets = Vec::new();
    let lines = sealflow_samples::generate(11, n).map(|record| {
        secrets.extend(record.secrets);
        String::from_utf8(record.value).unwrap() + "\n"
    });
    (lines.collect(), secrets)
}

#[test]
fn a_file_comes_back_byte_for_byte_and_nothing_of_it_is_readable_between() {
    let place = Place::new();
    let kms = LocalKms::start(&place);
    place.write("policy.yaml", policy(&kms.arn));
    let (lines, secrets) = samples(500);
    let clear = format!("{lines}\n  \n{}", r#"{"id":"last","client_ip":"192.0.2.200"}"#);
    place.write("clear.ndjson", &clear);
    let with = ["--dev", "policy.yaml", "--kms-endpoint", &kms.endpoint];
    place.ok(&[&["seal", "clear.ndjson", "--output", "sealed.ndjson"], &with[..]].concat());
    let (sealed, keys) = (place.read("sealed.ndjson"), place.read("sealed.ndjson.sfkeys"));
    for secret in &secrets {
        assert!(
            !sealed.contains(secret.as_str()) && !keys.contains(secret.as_str()),
            "{secret}"
        );
    }
    assert_eq!(sealed.lines().count(), clear.lines().count());
    assert!(keys.lines().all(|line| line.starts_with("sfk1.")) && keys.lines().count() == 2);
    place.ok(&[&["open", "sealed.ndjson", "--output", "opened.ndjson"], &with[..]].concat());
    assert!(place.read("opened.ndjson") == clear);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(place.path("opened.ndjson")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn pipes_need_a_place_for_keys_and_then_work_too() {
    let place = Place::new();
    let kms = LocalKms::start(&place);
    place.write("policy.yaml", policy(&kms.arn));
    let with = ["--dev", "policy.yaml", "--kms-endpoint", &kms.endpoint];
    let (clear, _) = samples(20);
    let refused = place.run_with_input(&[&["seal"], &with[..]].concat(), clear.as_bytes());
    assert_eq!((refused.code, refused.out.as_str()), (64, ""));
    insta::assert_snapshot!(refused.err, @r"
    error: standard output has no name for its .sfkeys file
    help: say where the key envelopes go: --keys FILE; or write to a file: --output FILE
    ");
    let sealed = place.run_with_input(&[&["seal", "--keys", "k"], &with[..]].concat(), clear.as_bytes());
    assert_eq!(sealed.code, 0, "{}", sealed.err);
    let opened = place.run_with_input(&[&["open", "--keys", "k"], &with[..]].concat(), sealed.out.as_bytes());
    assert!(opened.code == 0 && opened.out == clear, "{}", opened.err);
    let document = r#" { "id" : "x", "user": {"email": "a@example.com"} } "#;
    let sealed = place.run_with_input(
        &[&["seal", "--format", "json", "--keys", "k2"], &with[..]].concat(),
        document.as_bytes(),
    );
    let opened = place.run_with_input(
        &[&["open", "--format", "json", "--keys", "k2"], &with[..]].concat(),
        sealed.out.as_bytes(),
    );
    assert!(sealed.out.contains("sf1.") && opened.out == document, "{}", opened.err);
}

#[test]
fn a_bad_record_leaves_no_file_behind_or_is_set_aside_sealed() {
    let place = Place::new();
    let kms = LocalKms::start(&place);
    place.write("policy.yaml", policy(&kms.arn));
    let (clear, _) = samples(3);
    place.write(
        "in.ndjson",
        format!("{clear}{{\"id\":\"bad\",\"user\":\"canary@example.com\"}}\n{clear}"),
    );
    let before = place.files();
    let with = ["--dev", "policy.yaml", "--kms-endpoint", &kms.endpoint];
    let ran = place.run(&[&["seal", "in.ndjson", "-o", "out.ndjson"], &with[..]].concat());
    assert_eq!(ran.code, 65, "{}", ran.err);
    insta::assert_snapshot!(
        ran.err
            .lines()
            .filter(|line| !line.contains("WARN"))
            .collect::<Vec<_>>()
            .join("\n")
    );
    assert_eq!(place.files(), before);
    place.ok(&[
        &["seal", "in.ndjson", "-o", "out.ndjson", "--dead-letters", "dead.ndjson"],
        &with[..],
    ]
    .concat());
    let dead = place.read("dead.ndjson");
    assert!(
        dead.contains(r#""code":""#) && dead.lines().count() == 1 && !dead.contains("canary"),
        "{dead}"
    );
    assert_eq!(place.read("out.ndjson").lines().count(), 6);
}

#[test]
fn outputs_that_are_there_are_not_replaced_unless_forced() {
    let place = Place::new();
    let kms = LocalKms::start(&place);
    place.write("policy.yaml", policy(&kms.arn));
    place.write("in.ndjson", samples(3).0);
    place.write("out.ndjson", "mine");
    let args = [
        "seal",
        "in.ndjson",
        "-o",
        "out.ndjson",
        "--dev",
        "policy.yaml",
        "--kms-endpoint",
        &kms.endpoint,
    ];
    assert_eq!(place.run(&args).code, 74);
    assert_eq!(place.read("out.ndjson"), "mine");
    place.ok(&[&args[..], &["--force"]].concat());
    assert!(place.read("out.ndjson").contains("sf1."));
}

#[test]
fn without_kms_nothing_is_sealed_or_opened() {
    let place = Place::new();
    let kms = LocalKms::start(&place);
    place.write("policy.yaml", policy(&kms.arn));
    place.write("in.ndjson", samples(3).0);
    let endpoint = kms.endpoint.clone();
    let seal = [
        "seal",
        "in.ndjson",
        "-o",
        "sealed.ndjson",
        "--dev",
        "policy.yaml",
        "--kms-endpoint",
        &endpoint,
    ];
    place.ok(&seal);
    drop(kms);
    let again = place.run(&[
        "seal",
        "in.ndjson",
        "-o",
        "other.ndjson",
        "--dev",
        "policy.yaml",
        "--kms-endpoint",
        &endpoint,
    ]);
    assert_eq!(again.code, 69, "{}", again.err);
    let open = place.run(&[
        "open",
        "sealed.ndjson",
        "-o",
        "opened.ndjson",
        "--dev",
        "policy.yaml",
        "--kms-endpoint",
        &endpoint,
    ]);
    assert_eq!(open.code, 69, "{}", open.err);
    assert!(
        !place
            .files()
            .iter()
            .any(|name| name.contains("other") || name.contains("opened")),
        "{:?}",
        place.files()
    );
}

#[test]
fn two_commands_of_two_datasets_seal_equal_values_of_one_domain_to_equal_bytes() {
    let place = Place::new();
    let kms = LocalKms::start(&place);
    let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
    let at = ["--catalogue", "catalogue", "--kms-endpoint", &kms.endpoint];
    place.ok(&[
        &["policy", "domain", "create", "customers", "--key-arn", &kms.arn],
        &at[..],
    ]
    .concat());
    // The same names at different places of different records, in two processes side by side.
    let inputs = [
        ("orders", "customer", "{\"customer\":\"ann\"}\n{\"customer\":\"bob\"}\n"),
        (
            "visits",
            "who.id",
            "{\"who\":{\"id\":\"bob\"}}\n{\"who\":{\"id\":\"ann\"}}\n",
        ),
    ];
    let running = inputs.map(|(dataset, path, records)| {
        let (file, policy) = (format!("{dataset}.ndjson"), format!("{dataset}.yaml"));
        place.write(&file, records);
        place.write(&policy, domain_policy(dataset, path, &kms.arn));
        place.ok(&[
            "policy",
            "publish",
            &policy,
            "--key",
            "owner.key",
            "--catalogue",
            "catalogue",
        ]);
        let out = format!("{dataset}.sealed");
        let with = ["--dataset", dataset, "--owner", &owner, "-o", &out];
        place
            .command(&[&["seal", &file], &with[..], &at[..]].concat())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    });
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    let sealed = |dataset: &str| -> Vec<String> {
        let text = place.read(&format!("{dataset}.sealed"));
        text.lines()
            .map(|line| {
                line.split('"')
                    .find(|part| part.starts_with("sf1."))
                    .unwrap()
                    .to_owned()
            })
            .collect()
    };
    let (orders, visits) = (sealed("orders"), sealed("visits"));
    assert_eq!((&orders[0], &orders[1]), (&visits[1], &visits[0]));
    assert_ne!(orders[0], orders[1]);
}

#[test]
fn a_file_with_hints_comes_back_byte_for_byte_and_each_hint_has_its_own_readers() {
    let place = Place::new();
    let kms = LocalKms::start(&place);
    let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
    let trust = ["--catalogue", "catalogue", "--owner", &owner];
    let at = ["--catalogue", "catalogue", "--kms-endpoint", &kms.endpoint];
    place.ok(&[
        &["policy", "domain", "create", "people", "--key-arn", &kms.arn],
        &at[..],
    ]
    .concat());
    let hints = |column: &str, hints: &str| (format!("{column} }}"), format!("{column}, hints: [{{ {hints} }}] }}"));
    let with_hints = [
        hints(
            "path: client_ip, key: default, acl: support",
            "derive: last4, acl: payments",
        ),
        hints(
            "path: user.email, key: default, acl: support",
            "derive: hmac, domain: people, acl: operators",
        ),
        hints("bind_row: id", "derive: last4, acl: support"),
    ];
    let yaml = with_hints
        .iter()
        .fold(policy(&kms.arn), |yaml, (from, to)| yaml.replace(from, to));
    place.write("policy.yaml", yaml);
    assert!(place.ok(&["policy", "check"]).contains("7 columns: ok"));
    place.ok(&["policy", "publish", "--key", "owner.key", "--catalogue", "catalogue"]);
    let (lines, secrets) = samples(300);
    let clear = format!("{lines}\n  \n{}", r#"{"id":"last","client_ip":"192.0.2.200"}"#);
    place.write("clear.ndjson", &clear);
    let with = [&["--dataset", "payments"], &trust[..], &at[2..]].concat();
    place.ok(&[&["seal", "clear.ndjson", "-o", "sealed.ndjson"], &with[..]].concat());
    let (sealed, keys) = (place.read("sealed.ndjson"), place.read("sealed.ndjson.sfkeys"));
    for secret in &secrets {
        let is_there = sealed.contains(secret.as_str()) || keys.contains(secret.as_str());
        assert!(!is_there, "{secret}");
    }
    for hint in ["client_ip#last4", "email#hmac", "number#last4"] {
        assert!(sealed.contains(&format!("\"{hint}\":\"sf1.")), "{hint}");
    }
    place.ok(&[&["open", "sealed.ndjson", "-o", "opened.ndjson"], &with[..]].concat());
    assert!(place.read("opened.ndjson") == clear);
    // What another program spelled anew is the same JSON when it is opened.
    let anew = |text: &str| -> Vec<serde_json::Value> {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let spelled: String = anew(&sealed).iter().map(|value| format!("{value}\n")).collect();
    place.write("spelled.ndjson", spelled);
    let keys_of = ["--keys", "sealed.ndjson.sfkeys"];
    place.ok(&[
        &["open", "spelled.ndjson", "-o", "again.ndjson"],
        &keys_of[..],
        &with[..],
    ]
    .concat());
    assert_eq!(anew(&place.read("again.ndjson")), anew(&clear));
    // A hint of the producer's own is refused; so is sealing twice.
    let forged = r#"{"id":"x","client_ip":"192.0.2.200","client_ip#last4":"0000"}"#;
    let refused = place.run_with_input(&[&["seal", "--keys", "k"], &with[..]].concat(), forged.as_bytes());
    assert_eq!((refused.code, refused.out.as_str()), (65, ""));
    assert!(refused.err.contains("hint-taken"), "{}", refused.err);
    // Who may what, by label and by path.
    let who = place.ok(&[&["acl", "who", "payments"], &trust[..]].concat());
    for label in ["user.email#hmac", "payment.cards[*].number#last4", "client_ip#last4"] {
        assert!(who.contains(label), "{who}");
    }
    let why = |role: &str, column: &str| {
        let principal = format!("arn:aws:iam::111122223333:role/{role}");
        let ask = ["acl", "why", &principal, column, "--dataset", "payments"];
        place.run(&[&ask[..], &trust[..]].concat()).code
    };
    let number = "payment.cards[*].number";
    assert_eq!(
        (why("support", number), why("support", &format!("{number}#last4"))),
        (1, 0)
    );
    assert_eq!(
        (why("support", "user.email"), why("support", r#"user."email#hmac""#)),
        (0, 1)
    );
    assert_eq!(
        (why("operators", "user.email"), why("operators", "user.email#hmac")),
        (1, 0)
    );
    insta::assert_snapshot!(
        "shown_hints",
        place
            .ok(&[&["policy", "show", "payments"], &trust[..]].concat())
            .lines()
            .skip_while(|line| !line.starts_with("COLUMN"))
            .collect::<Vec<_>>()
            .join("\n")
    );
    let json = place.ok(&[&["policy", "show", "payments", "--output", "json"], &trust[..]].concat());
    let shown: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        shown["columns"][5]["hint"],
        serde_json::json!({"of": "user.email", "derive": "hmac", "domain": "people"})
    );
}

fn domain_policy(dataset: &str, path: &str, arn: &str) -> String {
    format!(
        "dataset: {dataset}\nversion: 1\nkeys: {{ default: {{ arn: \"{arn}\" }} }}\nacls: {{ pii: {{}} }}\n\
         columns:\n  - {{ path: {path}, domain: customers }}\n"
    )
}

#[test]
fn an_interrupted_open_leaves_no_plaintext_behind() {
    use std::io::Write as _;
    let place = Place::new();
    let kms = LocalKms::start(&place);
    place.write("policy.yaml", policy(&kms.arn));
    let with = ["--dev", "policy.yaml", "--kms-endpoint", &kms.endpoint];
    place.write("clear.ndjson", samples(20).0);
    place.ok(&[&["seal", "clear.ndjson", "-o", "sealed.ndjson"], &with[..]].concat());
    let before = place.files();
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        // Standard input stays open, so the command waits for more with its output half written.
        let args = [
            &["open", "-o", "opened.ndjson", "--keys", "sealed.ndjson.sfkeys"],
            &with[..],
        ];
        let mut child = place
            .command(&args.concat())
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(place.read("sealed.ndjson").as_bytes()).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while place.files() == before {
            assert!(std::time::Instant::now() < until, "the output is never started");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let pid = child.id().to_string();
        assert!(
            std::process::Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert_eq!(place.files(), before);
        drop(input);
    }
}
