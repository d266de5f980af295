//! What each caller sees.

use std::path::Path;

use sealflow::secret::SecretString;
use sealflow_local_kms::Principal;
use sealflow_testbed::Site;
use serde_json::{Value, json};

use crate::bench::{Bench, EMAIL, NOTE, ops, policy, record};
use crate::issuer::{ISSUER, SERVER};

/// Outcomes by label.
fn decisions(answer: &Value) -> Vec<(String, String, u64)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let decided = answer["decisions"].as_array().unwrap().iter();
    decided
        .map(|d| (text(&d["label"]), text(&d["outcome"]), d["count"].as_u64().unwrap()))
        .collect()
}

fn decided(label: &str, outcome: &str, count: u64) -> (String, String, u64) {
    (label.to_owned(), outcome.to_owned(), count)
}

/// Whether a caller sees emails and notes.
fn sees(bench: &Bench, answer: &crate::client::Answer) -> (bool, bool) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let email = |n: usize| {
        if answer.body.contains(EMAIL) {
            record(n)
        } else {
            record(n).replace(EMAIL, "[redacted]")
        }
    };
    let expected = |n: usize| {
        if answer.body.contains(NOTE) {
            email(n)
        } else {
            email(n).replace(&format!("\"{NOTE}\""), "null")
        }
    };
    // Byte for byte, and in order.
    let records: Vec<String> = (0..bench.sealed.len()).map(expected).collect();
    assert!(
        answer
            .body
            .contains(&format!("\"records\":[{}],\"withheld\":[]", records.join(","))),
        "{answer:?}"
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    (answer.body.contains(EMAIL), answer.body.contains(NOTE))
}

#[test]
fn each_caller_sees_their_columns_and_every_other_byte_stays() {
    let bench = Bench::new();
    let serving = bench.start("");
    let client = &serving.client;
    let ask = |authorization: &str, more: &str| sees(&bench, &client.open_text(authorization, &bench.records(more)));
    let fraud = bench.issuer.token_with("carol", &json!({ "groups": ["fraud"] }));
    for (caller, more, expected) in [
        (bench.issuer.token("alice"), "", (true, true)),
        (bench.issuer.token("bob"), "", (true, false)),
        (bench.issuer.token("mallory"), "", (false, false)),
        (fraud.clone(), "\"purpose\":\"fraud\",", (true, false)),
        (fraud.clone(), "\"purpose\":\"marketing\",", (false, false)),
        (fraud, "", (false, false)),
        (bench.presigned("analyst"), "", (true, false)),
        (bench.presigned("temp"), "", (false, false)),
        (bench.presigned("intern"), "", (false, false)),
    ] {
        assert_eq!(ask(&caller, more), expected, "{caller} {more}");
    }
    let bob = client.open_text(&bench.issuer.token("bob"), &bench.records("")).json();
    assert_eq!(
        decisions(&bob),
        [decided("user.email", "opened", 3), decided("note", "refused", 3)]
    );
    assert_eq!(
        (&bob["dataset"], &bob["policy_version"]),
        (&json!("payments"), &json!(1))
    );
    let who = client.whoami(&bench.presigned("analyst")).json();
    assert_eq!(
        (&who["principal"], &who["proof"]),
        (
            &json!("arn:aws:iam::111122223333:role/analyst"),
            &json!("sts-presigned")
        )
    );
    let metrics = serving.admin("/metrics");
    for line in [
        "sealflow_values_opened_total{flow=\"direct\"} 18",
        "sealflow_serve_proofs_total{proof=\"sts-presigned\"} 4",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let manual =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md")).unwrap();
    let names = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next());
    for name in names {
        assert!(manual.contains(name), "docs/operations.md does not name {name}");
    }
    serving.stop();
    let audited = bench.audited(&[]);
    // Two labels a request.
    assert_eq!(audited.len(), 10 * 2);
    let line = |principal: &str, label: &str| {
        let found = audited
            .iter()
            .find(|line| line["principal"] == principal && line["label"] == label);
        found
            .unwrap_or_else(|| panic!("{principal} {label}: {audited:?}"))
            .clone()
    };
    let temp = line("arn:aws:iam::111122223333:role/temp", "user.email");
    assert_eq!(
        (&temp["decision"], &temp["proof"], &temp["count"]),
        (&json!("refused"), &json!("sts-presigned"), &json!(3))
    );
    assert!(temp["rule"].as_str().unwrap().contains("2026-01-01"), "{temp}");
    assert_eq!(temp["place"], json!("request@0-2"));
    let carol = line(&format!("oidc:{ISSUER}#sub=carol"), "user.email");
    assert_eq!(
        (&carol["decision"], &carol["purpose"]),
        (&json!("allowed"), &json!("fraud"))
    );
}

#[test]
fn single_values_open_by_the_label_that_they_prove_and_one_that_does_not_open_takes_nothing_from_others() {
    let bench = Bench::new();
    let serving = bench.start("");
    let note = bench.sealed_note();
    let email = serde_json::from_str::<Value>(&bench.sealed[1]).unwrap()["user"]["email"].clone();
    let mut broken = note.clone();
    broken.replace_range(60..62, if &note[60..62] == "AA" { "BB" } else { "AA" });
    let request = json!({ "dataset": "payments", "values": [
        { "value": email, "label": "user.email" },
        { "value": note },
        { "value": note, "label": "user.email" },
        { "value": broken },
        { "value": "sf1.x" },
        { "value": email },
    ]});
    let alice = serving.client.open(&bench.issuer.token("alice"), &request).json();
    assert_eq!(alice["values"], json!([EMAIL, NOTE, null, null, null, EMAIL]));
    let bob = serving.client.open(&bench.issuer.token("bob"), &request).json();
    assert_eq!(bob["values"], json!([EMAIL, null, null, null, null, EMAIL]));
    let failed = |answer: &Value| {
        decisions(answer)
            .iter()
            .filter(|(_, outcome, _)| outcome == "failed")
            .map(|(_, _, n)| n)
            .sum::<u64>()
    };
    // A note that does not open is refused to whoever may see no notes, before anybody tries.
    assert_eq!((failed(&alice), failed(&bob)), (3, 2));
    // A record that cannot be taken apart is withheld, and the others are not.
    let deep = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
    let body = format!(
        r#"{{"dataset":"payments","records":[{},{deep},{{"user":{{"email":"clear"}}}}]}}"#,
        bench.sealed[0]
    );
    let answer = serving.client.open_text(&bench.issuer.token("alice"), &body).json();
    assert_eq!(answer["records"][0]["note"], json!(NOTE));
    assert_eq!(
        (&answer["records"][1], &answer["records"][2]["user"]["email"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(answer["withheld"], json!([{ "index": 1, "code": "too-deep" }]));
    serving.stop();
}

#[test]
fn envelopes_that_travel_with_records_are_enough() {
    let bench = Bench::new();
    // The catalogue forgets the envelopes; the sidecar has them.
    std::fs::remove_dir_all(bench.site.catalogue().join("keys")).unwrap();
    let serving = bench.start("");
    let alice = bench.issuer.token("alice");
    let without = serving.client.open_text(&alice, &bench.records("")).json();
    assert_eq!(without["records"][0]["note"], Value::Null);
    let keys = header_of(&std::fs::read_to_string(bench.site.path().join("sealed.ndjson.sfkeys")).unwrap());
    for keys in [json!([keys]), json!(["AAEC", keys])] {
        let answer = serving
            .client
            .open_text(&alice, &bench.records(&format!("\"keys\":{keys},")));
        assert_eq!(sees(&bench, &answer), (true, true));
    }
    serving.stop();
}

/// The value of a `sealflow-keys` header with the envelopes of a sidecar, in base64.
fn header_of(sidecar: &str) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    let envelopes = sidecar.split(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c)));
    let envelopes: Vec<Vec<u8>> = envelopes
        .filter(|word| word.len() > 200)
        .map(|word| URL_SAFE_NO_PAD.decode(word).unwrap())
        .collect();
    assert!(!envelopes.is_empty(), "{sidecar}");
    STANDARD.encode(sealflow::keys::envelope::write_header(
        envelopes.iter().map(Vec::as_slice),
    ))
}

#[test]
fn a_session_with_its_token_is_its_role() {
    let session = Principal {
        access_key_id: "ASIATESTS".to_owned(),
        secret_access_key: SecretString::new("tests-only-session".to_owned()),
        // Characters that a query has to spell otherwise.
        session_token: Some(SecretString::new("abc+/==&x=%20".to_owned())),
        arn: "arn:aws:sts::111122223333:assumed-role/analyst/alice".to_owned(),
    };
    let site = Site::with_principals("127.0.0.1:1", vec![session.clone()]);
    let bench = Bench::on(site, &policy(1, &ops(), ""));
    let serving = bench.start("");
    let endpoint = bench.site.kms().endpoint();
    let endpoint = endpoint.trim_end_matches('/');
    let args = [
        "token",
        "--server-id",
        "read.example.com",
        "--region",
        "eu-central-1",
        "--sts-endpoint",
        endpoint,
    ];
    let present = |token: &str| {
        let mut command = bench.site.command(crate::bench::binary(), "guest", &args);
        command
            .env("AWS_ACCESS_KEY_ID", &session.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", session.secret_access_key.expose())
            .env("AWS_SESSION_TOKEN", token);
        let header = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let authorization = header.trim().strip_prefix("Authorization: ").unwrap();
        serving.client.open_text(authorization, &bench.records(""))
    };
    let answer = present(session.session_token.as_ref().unwrap().expose());
    assert_eq!(sees(&bench, &answer), (true, false));
    assert_eq!(present("another").code(), "request-refused");
    serving.stop();
}

#[test]
fn an_answer_is_sealed_to_the_key_that_a_presigned_request_commits_to() {
    let bench = Bench::new();
    let serving = bench.start("");
    let client = &serving.client;
    let mut keys = Vec::new();
    for name in ["mine", "other"] {
        let made = bench.run(
            "analyst",
            &["client", "keygen", "--output", &format!("{name}.key"), "--bits", "2048"],
        );
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::write(bench.site.path().join(format!("{name}.jwk")), &made.stdout).unwrap();
        keys.push(String::from_utf8(made.stdout).unwrap());
    }
    let request = |key: &str| bench.records(&format!("\"seal_to\":{},", key.trim()));
    let committed = bench.presigned_with("analyst", SERVER, &["--seal-to", "mine.jwk"]);
    let answer = client.open_text(&committed, &request(&keys[0]));
    assert!(answer.status == 200 && !answer.body.contains(EMAIL), "{answer:?}");
    let records = answer.json()["records"].clone();
    let lines: Vec<String> = records.as_array().unwrap().iter().map(ToString::to_string).collect();
    std::fs::write(bench.site.path().join("answer.ndjson"), lines.join("\n")).unwrap();
    let opened = bench.run(
        "analyst",
        &[
            "client",
            "open",
            "answer.ndjson",
            "--dataset",
            "payments",
            "--key",
            "mine.key",
        ],
    );
    let text = String::from_utf8(opened.stdout).unwrap();
    assert!(
        opened.status.success() && text.matches(EMAIL).count() == lines.len(),
        "{text}"
    );
    let other = bench.run(
        "analyst",
        &[
            "client",
            "open",
            "answer.ndjson",
            "--dataset",
            "payments",
            "--key",
            "other.key",
        ],
    );
    assert_eq!(
        other.status.code(),
        Some(65),
        "{}",
        String::from_utf8_lossy(&other.stderr)
    );
    // Taken out of the body, the key that was signed still counts.
    let answer = client.open_text(&committed, &bench.records(""));
    assert_eq!((answer.status, answer.code().as_str()), (401, "token-bound"));
    // Another key than the one that was signed, and a request that signs none.
    for (authorization, key) in [(&committed, &keys[1]), (&bench.presigned("analyst"), &keys[0])] {
        let answer = client.open_text(authorization, &request(key));
        assert_eq!((answer.status, answer.code().as_str()), (403, "seal-to-not-committed"));
    }
}
