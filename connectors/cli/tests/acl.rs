//! `acl who` and `acl why`: who may open what, by the newest signed policy.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::Place;

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
  ops: { allow: ["arn:aws:iam::111122223333:role/ops"] }
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
         \narn:aws:iam::111122223333:role/ops\n  FAIL user.email\n  ok   card\n  ok   #dead-letters\n\
         \narn:aws:iam::111122223333:role/support-*\n  \
         ok   user.email (except arn:aws:iam::111122223333:role/support-trainee)\n  FAIL card\n  FAIL #dead-letters\n\
         \narn:aws:iam::111122223333:role/support-trainee\n  FAIL user.email (denied)\n  FAIL card\n  FAIL #dead-letters\n\
         \narn:aws:iam::111122223333:role/temp\n  ok   user.email (until 2026-01-01T00:00:00Z)\n  FAIL card\n  FAIL #dead-letters\n\
         \noidc:https://login.example.com#group=fraud\n  FAIL user.email (only for fraud, audit)\n  FAIL card\n  FAIL #dead-letters\n"
    );
    // A moment and a purpose later.
    let later = ["--at", "2026-01-01T00:00:00Z", "--purpose", "audit", "--output", "json"];
    let json = place.ok(&[&["acl", "who", "payments"], &trust[..], &later].concat());
    let table: serde_json::Value = serde_json::from_str(&json).unwrap();
    let cell = |row: usize| table["rows"][row]["cells"][0].clone();
    assert_eq!(
        cell(3),
        serde_json::json!({"access": "no", "terms": "only until 2026-01-01T00:00:00Z"})
    );
    assert_eq!(
        cell(4),
        serde_json::json!({"access": "terms", "terms": ["for fraud, audit"]})
    );
    let html = place.ok(&[&["acl", "who", "payments", "--output", "html"], &trust[..]].concat());
    assert!(
        html.starts_with("<!doctype html>") && html.matches("<tr>").count() == 6,
        "{html}"
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
            77,
            "acls.pii.deny[0] denies arn:aws:iam::111122223333:role/support-trainee, whatever is allowed".to_owned(),
            true
        )
    );
    let group = ["--group", "fraud", "--purpose", "audit"];
    assert_eq!(
        ask("oidc:https://login.example.com#sub=carol", "user.email", &group).0,
        0
    );
    assert_eq!(
        ask("oidc:https://login.example.com#sub=carol", "user.email", &group[..2]).0,
        77
    );
    // By path as well as by label; another account's role of the same name is somebody else.
    assert_eq!(ask("arn:aws:iam::111122223333:role/ops", "card.number", &[]).0, 0);
    assert_eq!(ask("arn:aws:iam::111122223333:role/ops", "#dead-letters", &[]).0, 0);
    assert_eq!(
        ask("arn:aws:iam::999999999999:role/ops", "card", &[]),
        (77, "nothing in acls.ops.allow names it".to_owned(), false)
    );
    let unknown = ask("arn:aws:iam::111122223333:role/ops", "card.cvv", &[]);
    assert!(unknown.0 == 77 && unknown.1.contains("no such label"), "{unknown:?}");
    assert_eq!(ask("arn:aws:iam::111122223333:role/*", "card", &[]).0, 64);
    assert_eq!(ask("arn:aws:iam::111122223333:root", "card", &[]).0, 64);
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
