//! `acl who` and `acl why`: who may open what, by the newest signed policy.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{LocalKms, Place};
use sealflow::keys::Envelope;

const POLICY: &str = r#"
dataset: payments
version: 1
keys: { k: { arn: "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001" } }
acls:
  pii:
    allow:
      - "arn:aws:iam::111122223333:role/support-*"
      - { principal: "arn:aws:iam::111122223333:role/temp", until: "2026-01-01T00:00:00Z" }
      - { principal: "oidc:https://login.example.com#group=fraud", purposes: [fraud, audit] }
    deny: ["arn:aws:iam::111122223333:role/support-trainee"]
    refused: redact
  ops: { allow: ["arn:aws:iam::111122223333:role/ops"], deny: ["oidc:https://login.example.com#sub=bob"] }
columns:
  - { path: user.email, key: k, acl: pii }
  - { path: card.number, key: k, acl: ops, label: card }
dead_letters: { key: k, acl: ops }
"#;

fn published() -> (Place, String) {
    let place = Place::new();
    let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
    place.write("policy.yaml", POLICY);
    place.ok(&["policy", "publish", "--key", "owner.key", "--catalogue", "catalogue"]);
    (place, owner)
}

#[test]
fn who_shows_each_principal_of_the_newest_signed_policy_by_column() {
    let (place, owner) = published();
    let trust = ["--catalogue", "catalogue", "--owner", &owner];
    let at = ["--at", "2025-12-31T23:59:59Z"];
    let text = place.ok(&[&["acl", "who", "payments"], &trust[..], &at].concat());
    assert_eq!(
        text.replace(&owner, "OWNER"),
        "payments version 1\nsigned by  OWNER\nas of      2025-12-31T23:59:59Z\n\
         \narn:aws:iam::111122223333:role/ops\n  no       user.email\n  yes      card\n  yes      #dead-letters\n\
         \narn:aws:iam::111122223333:role/support-*\n  \
         yes      user.email (except arn:aws:iam::111122223333:role/support-trainee)\n  no       card\n  no       #dead-letters\n\
         \narn:aws:iam::111122223333:role/support-trainee\n  \
         no       user.email (denied by arn:aws:iam::111122223333:role/support-trainee)\n  no       card\n  no       #dead-letters\n\
         \narn:aws:iam::111122223333:role/temp\n  \
         yes      user.email (until 2026-01-01T00:00:00Z)\n  no       card\n  no       #dead-letters\n\
         \noidc:https://login.example.com#group=fraud\n  \
         purpose  user.email (for fraud or audit)\n  no       card\n  no       #dead-letters\n\
         \noidc:https://login.example.com#sub=bob\n  \
         some     user.email (oidc:https://login.example.com#group=fraud for fraud, audit)\n  \
         no       card (denied by oidc:https://login.example.com#sub=bob)\n  \
         no       #dead-letters (denied by oidc:https://login.example.com#sub=bob)\n"
    );
    // A moment and a purpose later.
    let later = ["--at", "2026-01-01T00:00:00Z", "--purpose", "audit"];
    let json = place.ok(&[&["acl", "who", "payments", "--output", "json"], &trust[..], &later].concat());
    let table: serde_json::Value = serde_json::from_str(&json).unwrap();
    let cell = |row: usize| table["rows"][row]["cells"][0].clone();
    let ended = "ended: arn:aws:iam::111122223333:role/temp until 2026-01-01T00:00:00Z";
    assert_eq!(cell(3), serde_json::json!({"access": "no", "terms": [ended]}));
    assert_eq!(
        cell(4),
        serde_json::json!({"access": "yes", "terms": ["for fraud or audit"]})
    );
    let html = place.ok(&[&["acl", "who", "payments", "--output", "html"], &trust[..], &later].concat());
    assert!(
        html.starts_with("<!doctype html>") && html.matches("<tr>").count() == 7,
        "{html}"
    );
    assert!(html.contains("for purpose audit"), "{html}");
}

/// RFC 7638, section 3.1, and its name.
const RECIPIENT: &str = "{ kty: RSA, e: AQAB, n: 0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw }";
const RECIPIENT_NAME: &str = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs";

#[test]
fn letters_to_a_recipient_are_open_to_its_private_half_and_to_no_principal_and_show_and_diff_say_so() {
    let (place, owner) = published();
    let to_recipient = POLICY.replace("version: 1", "version: 2").replace(
        "dead_letters: { key: k, acl: ops }",
        &format!("dead_letters: {{ recipient: {RECIPIENT} }}"),
    );
    place.write("policy.yaml", to_recipient);
    place.ok(&["policy", "publish", "--key", "owner.key", "--catalogue", "catalogue"]);
    let trust = ["--catalogue", "catalogue", "--owner", &owner];
    let who = place.ok(&[&["acl", "who", "payments"], &trust[..]].concat());
    let open_to = "#dead-letters (open to whoever has the private half of dead_letters.recipient)";
    assert_eq!(
        who.matches("#dead-letters").count(),
        who.matches(&format!("no       {open_to}")).count(),
        "{who}"
    );
    assert!(who.contains(open_to), "{who}");
    let why = [
        "acl",
        "why",
        "arn:aws:sts::111122223333:assumed-role/ops/alice",
        "#dead-letters",
        "--dataset",
        "payments",
    ];
    let why = place.run(&[&why[..], &trust[..]].concat());
    assert_eq!(why.code, 1, "{}", why.err);
    assert!(
        why.out.contains(&format!("dead_letters.recipient ({RECIPIENT_NAME})")),
        "{}",
        why.out
    );
    let show = place.ok(&[&["policy", "show", "payments"], &trust[..]].concat());
    assert!(
        show.contains(&format!("private half of {RECIPIENT_NAME} (RSA-2048)")),
        "{show}"
    );
    let json = place.ok(&[&["policy", "show", "payments", "--output", "json"], &trust[..]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        json["dead_letters"],
        serde_json::json!({ "recipient": RECIPIENT_NAME, "bits": 2048 })
    );
    let diff = place.run(&[&["policy", "diff", "--dataset", "payments"], &trust[..]].concat());
    assert!(
        diff.out.contains(&format!("recipient {RECIPIENT_NAME}")),
        "{}{}",
        diff.out,
        diff.err
    );
    assert!(
        diff.out.contains(&format!(
            "open for whoever has the private half of {RECIPIENT_NAME}, and for nobody else"
        )),
        "{}",
        diff.out
    );
    assert!(
        diff.out.contains("- arn:aws:iam::111122223333:role/ops: #dead-letters"),
        "{}",
        diff.out
    );
}

#[test]
fn why_names_the_rule_and_its_exit_code_is_the_answer() {
    let (place, owner) = published();
    let ask = |principal: &str, column: &str, more: &[&str]| {
        let args = [
            "acl",
            "why",
            principal,
            column,
            "--dataset",
            "payments",
            "--catalogue",
            "catalogue",
            "--owner",
            &owner,
        ];
        let ran = place.run(&[&args[..], more].concat());
        let because = ran
            .out
            .lines()
            .find_map(|line| line.strip_prefix("because  "))
            .unwrap_or_default();
        (ran.code, because.to_owned(), ran.out.contains("sees     [redacted]"))
    };
    let session = "arn:aws:sts::111122223333:assumed-role/support-1/alice";
    let rule = "acls.pii.allow[0] allows arn:aws:iam::111122223333:role/support-*";
    assert_eq!(ask(session, "user.email", &[]), (0, rule.to_owned(), false));
    assert_eq!(
        ask(
            "arn:aws:sts::111122223333:assumed-role/support-trainee/bob",
            "user.email",
            &[]
        ),
        (
            1,
            "acls.pii.deny[0] denies arn:aws:iam::111122223333:role/support-trainee, whatever is allowed".to_owned(),
            true
        )
    );
    let carol = "oidc:https://login.example.com#sub=carol";
    let group = ["--group", "fraud", "--purpose", "audit"];
    assert_eq!(ask(carol, "user.email", &group).0, 0);
    assert_eq!(ask(carol, "user.email", &group[..2]).0, 1);
    let args = [
        "acl",
        "why",
        carol,
        "user.email",
        "--dev",
        "policy.yaml",
        "--output",
        "json",
    ];
    let answer: serde_json::Value = serde_json::from_str(&place.ok(&[&args[..], &group].concat())).unwrap();
    assert_eq!(
        (&answer["groups"], &answer["purpose"], &answer["owner"]),
        (
            &serde_json::json!(["fraud"]),
            &serde_json::json!("audit"),
            &serde_json::Value::Null
        )
    );
    // By path as well as by label; another account's role of the same name is somebody else.
    let ops = "arn:aws:iam::111122223333:role/ops";
    for column in ["card.number", "card", "#dead-letters"] {
        assert_eq!(ask(ops, column, &[]).0, 0, "{column}");
    }
    assert_eq!(
        ask("arn:aws:iam::999999999999:role/ops", "card", &[]),
        (1, "nothing in acls.ops.allow names it".to_owned(), false)
    );
    // Questions without an answer.
    assert_eq!(ask(ops, "card.nubmer", &[]).0, 64);
    assert_eq!(ask(ops, "card", &group).0, 64);
    assert_eq!(ask("arn:aws:iam::111122223333:role/*", "card", &[]).0, 64);
    assert_eq!(ask("arn:aws:iam::111122223333:root", "card", &[]).0, 64);
}

#[test]
fn what_is_path_here_and_label_there_is_asked_for_and_strangers_texts_do_not_steer_the_terminal() {
    let place = Place::new();
    place.write(
        "policy.yaml",
        POLICY.replace("label: card", "label: user.email").replace(
            "- { path: user.email, key: k",
            "- { path: user.email, label: mail, key: k",
        ),
    );
    let ops = "arn:aws:iam::111122223333:role/ops";
    let ran = place.run(&["acl", "why", ops, "user.email", "--dev", "policy.yaml"]);
    assert!(
        ran.code == 64 && ran.err.contains("path of one column and the label of another"),
        "{}",
        ran.err
    );
    assert_eq!(
        place
            .run(&["acl", "why", ops, "card.number", "--dev", "policy.yaml"])
            .code,
        0
    );
    // A control sequence (CSI) and a turn of direction in a path.
    place.write(
        "policy.yaml",
        POLICY.replace("path: user.email", "path: \"\\\"\\u009b31m\\u202ex\\\"\""),
    );
    for output in ["text", "html"] {
        let shown = place.ok(&["acl", "who", "--dev", "policy.yaml", "--output", output]);
        assert!(
            !shown.contains(['\u{9b}', '\u{202e}']) && shown.contains("31m"),
            "{shown}"
        );
    }
}

#[test]
fn nobody_answers_from_a_policy_that_is_not_believed() {
    let (place, owner) = published();
    let other = place.ok(&["policy", "keygen", "-o", "other.key"]).trim().to_owned();
    let ask = |trust: &[&str]| place.run(&[&["acl", "who", "payments"], trust].concat());
    let ran = ask(&["--catalogue", "catalogue", "--owner", &other]);
    assert_eq!((ran.code, ran.out.as_str()), (78, ""), "{}", ran.err);
    assert_eq!(ask(&["--catalogue", "catalogue", "--owner", &owner]).code, 0);
    assert_eq!(ask(&[]).code, 64);
    // A file that nobody signed says so.
    let unsigned = ask(&["--dev", "policy.yaml"]);
    assert!(
        unsigned.code == 0 && unsigned.out.contains("signed by  nobody: unsigned"),
        "{}",
        unsigned.err
    );
    let ran = place.run(&["acl", "who", "orders", "--dev", "policy.yaml"]);
    assert_eq!(ran.code, 64, "{}", ran.err);
}

/// The policy under a KMS key that is there, with records sealed by it.
fn sealed() -> (Place, LocalKms, String) {
    let place = Place::new();
    let kms = LocalKms::start(&place);
    let start = POLICY.find("arn:aws:kms:").unwrap();
    let end = start + POLICY[start..].find('"').unwrap();
    let text = POLICY.replace(&POLICY[start..end], &kms.arn);
    place.write("policy.yaml", &text);
    place.write("clear.ndjson", "{\"user\":{\"email\":\"ann@example.com\"}}\n{\"user\":{\"email\":\"bob@example.com\"},\"card\":{\"number\":\"4111\"}}\n");
    let with = ["--dev", "policy.yaml", "--kms-endpoint", &kms.endpoint];
    place.ok(&[&["seal", "clear.ndjson", "-o", "sealed.ndjson"], &with[..]].concat());
    (place, kms, text)
}

#[test]
fn who_of_a_file_shows_the_labels_that_are_there_by_the_policy_that_is_given() {
    let (place, _kms, text) = sealed();
    let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
    place.ok(&["policy", "sign"]);
    let who = |more: &[&str]| place.run(&[&["acl", "who", "sealed.ndjson"], more].concat());
    let signed = ["--signed", "policy.jws", "--owner", &owner];
    let ran = who(&signed);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.out
            .starts_with("sealed.ndjson: 3 sealed values\n\npayments card: 1 values\npayments user.email: 2 values\n"),
        "{}",
        ran.out
    );
    assert!(
        ran.out.contains("role/ops\n  yes      card\n  no       user.email\n"),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains("#dead-letters"), "it is not there: {}", ran.out);
    let json: serde_json::Value =
        serde_json::from_str(&who(&[&signed[..], &["--output", "json"]].concat()).out).unwrap();
    assert_eq!(
        (&json["values"], &json["datasets"][0]["table"]["columns"][0]),
        (&3.into(), &"card".into())
    );
    assert!(
        who(&[&signed[..], &["--output", "html"]].concat())
            .out
            .starts_with("<!doctype html>")
    );
    // Nobody pinned signed it; a policy of another dataset; one that knows neither label nor key.
    let other = place.ok(&["policy", "keygen", "-o", "other.key"]).trim().to_owned();
    assert_eq!(who(&["--signed", "policy.jws", "--owner", &other]).code, 78);
    place.write("orders.yaml", text.replace("dataset: payments", "dataset: orders"));
    let ran = who(&["--dev", "orders.yaml"]);
    assert!(
        ran.code == 0
            && ran.out.contains("nobody may open these: no policy of it was given")
            && !ran.out.contains("yes"),
        "{}{}",
        ran.out,
        ran.err
    );
    place.write("less.yaml", text.replace("label: card", "label: number"));
    let ran = who(&["--dev", "less.yaml"]);
    assert!(
        ran.out
            .contains("payments card: 1 values: open to nobody: the policy has no such label"),
        "{}",
        ran.out
    );
    assert!(
        ran.out.contains("role/ops") || !ran.out.contains("yes      card"),
        "{}",
        ran.out
    );
    place.write("moved.yaml", text.replace("key/", "key/0"));
    let ran = who(&["--dev", "moved.yaml"]);
    assert!(
        ran.out
            .contains("user.email: 2 values: open to nobody: the policy no longer knows its key or ACL")
            && !ran.out.contains("yes"),
        "{}",
        ran.out
    );
    // No envelope, no label; no sealed value, no answer.
    let ran = who(&["--dev", "policy.yaml", "--keys", "nothing.sfkeys"]);
    assert!(
        ran.out.contains("3 of them without an envelope: nobody opens those") && !ran.out.contains("yes"),
        "{}",
        ran.out
    );
    assert_eq!(
        place.run(&["acl", "who", "clear.ndjson", "--dev", "policy.yaml"]).code,
        65
    );
}

#[test]
fn an_envelope_says_where_to_look_and_is_believed_in_nothing_else() {
    let (place, _kms, text) = sealed();
    // The forger's envelopes of the same keys name another dataset and a label that is open to more.
    let sidecar = place.read("sealed.ndjson.sfkeys");
    let mut forged = sidecar.clone();
    for line in sidecar.lines() {
        let mut envelope = Envelope::from_text(line).unwrap();
        envelope.dataset = "../../open".to_owned();
        envelope.acl = "everybody".to_owned();
        forged.push_str(&format!("{}\nsfk1.AAAA\n", envelope.to_text().unwrap()));
    }
    place.write("forged.sfkeys", forged);
    let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
    place.write("policy.yaml", &text);
    place.ok(&["policy", "publish", "--key", "owner.key", "--catalogue", "catalogue"]);
    let trust = ["--catalogue", "catalogue", "--owner", &owner, "--keys", "forged.sfkeys"];
    let ran = place.run(&[&["acl", "who", "./sealed.ndjson"], &trust[..]].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    let (stranger, ours) = ran.out.split_once("\npayments card").unwrap();
    assert!(
        stranger.contains("no policy can have that name") && !stranger.contains("yes"),
        "{}",
        ran.out
    );
    assert!(
        stranger.contains("2 envelopes that cannot be read") && ours.contains("yes      user.email"),
        "{}",
        ran.out
    );
}
