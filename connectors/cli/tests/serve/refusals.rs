//! Refused, each with its own code and its line of the audit log; and limits that hit nobody else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sealflow_testbed::{SmallDisk, or_skip};
use serde_json::{Value, json};

use crate::bench::{Bench, EMAIL, NOTE, ops, policy};
use crate::issuer::{ISSUER, Issuer};

#[test]
fn whoever_is_not_proved_hears_why_sees_nothing_and_is_written_down() {
    let bench = Bench::new();
    let serving = bench.start("limits: { unproven_burst: 100 }");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let issuer = &bench.issuer;
    let with = |more: Value| issuer.token_with("alice", &more);
    let other_key = Issuer::start().token("alice");
    let cases = [
        ("Basic YWxpY2U6YQ".to_owned(), "other-proof"),
        ("Bearer nonsense".to_owned(), "token-malformed"),
        (with(json!({ "aud": "other.example.com" })), "token-other-audience"),
        (with(json!({ "iss": "https://evil.example.com" })), "token-other-issuer"),
        (with(json!({ "exp": now - 1 })), "token-expired"),
        (with(json!({ "nbf": now + 600 })), "token-not-yet"),
        (with(json!({ "cnf": { "jkt": "A".repeat(43) } })), "token-bound"),
        (other_key, "token-bad-signature"),
        (
            bench.presigned_for("analyst", "other.example.com"),
            "request-other-server",
        ),
        ("Sealflow-STS AAAA".to_owned(), "request-malformed"),
        (
            edited(&bench.presigned("analyst"), "X-Amz-Date=2", "X-Amz-Date=1"),
            "request-malformed",
        ),
        (
            edited(&bench.presigned("analyst"), "http://127.0.0.1:", "http://127.0.0.2:"),
            "request-other-host",
        ),
        (
            edited(&bench.presigned("analyst"), "GetCallerIdentity", "GetSessionToken"),
            "request-other-action",
        ),
        (
            edited(&bench.presigned("analyst"), "X-Amz-Signature=", "X-Amz-Signature=0"),
            "request-malformed",
        ),
        (resigned(&bench.presigned("analyst")), "request-refused"),
        (aged(&bench.presigned("analyst"), now), "request-too-old"),
    ];
    for (authorization, code) in &cases {
        let answer = serving.client.open_text(authorization, &bench.records(""));
        assert_eq!((answer.status, answer.code().as_str()), (401, *code), "{authorization}");
        assert!(answer.head.matches("www-authenticate").count() == 2, "{answer:?}");
        let text = format!("{answer:?}");
        let credential = authorization.split(' ').nth(1).unwrap();
        assert!(
            !text.contains(EMAIL) && !text.contains(NOTE) && !text.contains(credential),
            "{text}"
        );
    }
    let none = serving
        .client
        .ask("POST /v1/open", None, "Content-Type: application/json\r\n", b"{}");
    assert_eq!(none.code(), "no-proof");
    serving.stop();
    let lines = bench.audited(&["--decision", "refused"]);
    for code in cases.iter().map(|(_, code)| *code).chain(["no-proof"]) {
        let is_it = |line: &&Value| line["rule"].as_str().unwrap().starts_with(&format!("{code}: "));
        let line = lines.iter().find(is_it).unwrap_or_else(|| panic!("{code}: {lines:?}"));
        // Whoever has a bound token is known, and asked for three records.
        let expected = match code {
            "token-bound" => (json!(format!("oidc:{ISSUER}#sub=alice")), json!(3)),
            _ => (Value::Null, json!(1)),
        };
        assert_eq!((line["principal"].clone(), line["count"].clone()), expected, "{line}");
    }
    assert_eq!(lines.len(), cases.len() + 1);
}

/// A presigned request whose URL was changed so.
fn edited(authorization: &str, from: &str, to: &str) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let (scheme, text) = authorization.split_once(' ').unwrap();
    let json = String::from_utf8(URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap();
    assert!(json.contains(from), "{json}");
    format!("{scheme} {}", URL_SAFE_NO_PAD.encode(json.replacen(from, to, 1)))
}

/// With another signature of the same length.
fn resigned(authorization: &str) -> String {
    let first = edited(authorization, "X-Amz-Signature=", "X-Amz-Signature=f");
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let json = String::from_utf8(URL_SAFE_NO_PAD.decode(first.split(' ').nth(1).unwrap()).unwrap()).unwrap();
    let at = json.find("X-Amz-Signature=").unwrap() + "X-Amz-Signature=".len();
    let json = format!("{}{}", &json[..at + 64], &json[at + 65..]);
    format!("Sealflow-STS {}", URL_SAFE_NO_PAD.encode(json))
}

/// As if it had been signed six minutes ago.
fn aged(authorization: &str, now: u64) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let json = String::from_utf8(
        URL_SAFE_NO_PAD
            .decode(authorization.split(' ').nth(1).unwrap())
            .unwrap(),
    )
    .unwrap();
    let then = sealflow::clock::UnixMillis((now - 360) * 1_000)
        .to_string()
        .replace(['-', ':'], "");
    let at = json.find("X-Amz-Date=").unwrap() + "X-Amz-Date=".len();
    let day = json[at..at + 8].to_owned();
    // The day of the scope goes with it.
    let json = json
        .replacen(&json[at..at + 16].to_owned(), &then, 1)
        .replace(&format!("%2F{day}%2F"), &format!("%2F{}%2F", &then[..8]));
    format!("Sealflow-STS {}", URL_SAFE_NO_PAD.encode(json))
}

#[test]
fn a_policy_that_does_not_count_opens_nothing_and_says_so() {
    let bench = Bench::new();
    let stranger = Bench::with_policy(&policy(1, &ops(), ""));
    let serving = bench.start("policy_refresh: 100ms");
    let alice = bench.issuer.token("alice");
    let ask = |dataset: &str| {
        let body = bench.records("").replace("\"payments\"", &format!("\"{dataset}\""));
        serving.client.open_text(&alice, &body)
    };
    assert_eq!(ask("payments").status, 200);
    let missing = ask("nowhere");
    assert_eq!((missing.status, missing.code().as_str()), (404, "policy-missing"));
    // Signed by somebody else.
    stranger.site.publish(
        "foreign",
        1,
        &policy(1, &ops(), "").replace("dataset: payments", "dataset: foreign"),
    );
    let (from, to) = (
        stranger.site.catalogue().join("policies/foreign"),
        bench.site.catalogue().join("policies/foreign"),
    );
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(from.join("0000000001.jws"), to.join("0000000001.jws")).unwrap();
    // Without the lease that it needs.
    let leased = policy(1, &ops(), "lease: required").replace("dataset: payments", "dataset: leased");
    bench.site.publish("leased", 1, &leased);
    for (dataset, why) in [("foreign", "sign"), ("leased", "lease")] {
        let answer = ask(dataset);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (503, "policy-unusable"),
            "{dataset}"
        );
        assert!(answer.json()["detail"].as_str().unwrap().contains(why), "{answer:?}");
    }
    // Taken back, and taken away.
    bench.site.publish("payments", 2, &policy(2, &ops(), ""));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(ask("payments").json()["policy_version"], 2);
    let policies = bench.site.catalogue().join("policies/payments");
    std::fs::remove_file(policies.join("0000000002.jws")).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let older = ask("payments");
    assert_eq!((older.status, older.code().as_str()), (503, "policy-unusable"));
    std::fs::remove_file(policies.join("0000000001.jws")).unwrap();
    // What failed is remembered for a second.
    std::thread::sleep(Duration::from_millis(1_200));
    let gone = ask("payments");
    assert_eq!((gone.status, gone.code().as_str()), (503, "policy-unusable"));
    serving.stop();
    let lines = bench.audited(&["--decision", "refused"]);
    let rules: Vec<_> = lines
        .iter()
        .map(|line| (line["dataset"].as_str().unwrap(), line["rule"].as_str().unwrap()))
        .collect();
    for (dataset, code) in [
        ("nowhere", "policy-missing: "),
        ("foreign", "policy-unusable: "),
        ("leased", "policy-unusable: "),
    ] {
        assert!(
            rules.iter().any(|(of, rule)| *of == dataset && rule.starts_with(code)),
            "{dataset}: {rules:?}"
        );
    }
    let taken = rules
        .iter()
        .filter(|(of, rule)| *of == "payments" && rule.starts_with("policy-unusable: "));
    assert_eq!(taken.count(), 2, "{rules:?}");
}

#[test]
fn what_is_no_request_has_its_own_code_and_limits_hit_nobody_else() {
    let bench = Bench::new();
    let limits = "limits: { body: 64KiB, records: 2, values: 3, requests_per_second: 1, requests_burst: 12, unproven_burst: 4, unproven_per_second: 1 }";
    let serving = bench.start(limits);
    let (alice, bob) = (bench.issuer.token("alice"), bench.issuer.token("bob"));
    let json = "Content-Type: application/json\r\n";
    let ask = |line: &str, headers: &str, body: &str| serving.client.ask(line, Some(&alice), headers, body.as_bytes());
    for (line, headers, body, status, code) in [
        ("POST /v1/open", json, "{", 400, "malformed-json"),
        ("POST /v1/open", json, "{}", 400, "malformed-request"),
        ("POST /v1/open", json, &bench.records(""), 400, "too-many"),
        ("POST /v1/open", "", "{}", 415, "other-media-type"),
        (
            "POST /v1/open",
            "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
            "{}",
            415,
            "other-media-type",
        ),
        ("POST /v1/open", json, &" ".repeat(70_000), 413, "too-large"),
        ("GET /v1/open", "", "", 405, "other-method"),
        ("GET /v1/shut", "", "", 404, "not-found"),
    ] {
        let answer = ask(line, headers, body);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{line}");
    }
    assert_eq!(ask("DELETE /v1/whoami", "", "").header("allow"), Some("GET"));
    let mut codes = Vec::new();
    for _ in 0..20 {
        let answer = serving.client.whoami(&alice);
        if answer.status == 429 {
            assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
            codes.push(answer.code());
        }
    }
    assert!(
        codes.len() >= 8 && codes.iter().all(|code| code == "too-many-requests"),
        "{codes:?}"
    );
    assert_eq!(serving.client.whoami(&bob).status, 200, "another principal");
    let mut unproven: Vec<String> = (0..12).map(|_| serving.client.whoami("Bearer x").code()).collect();
    unproven.dedup();
    assert_eq!(unproven[..2], ["token-malformed", "too-many-unproven"]);
    assert_eq!(
        serving.client.whoami(&bob).status,
        200,
        "who is proved at once does not pay for it"
    );
    let metrics = serving.admin("/metrics");
    assert!(
        metrics.contains("sealflow_serve_problems_total{code=\"too-many-unproven\"}"),
        "{metrics}"
    );
    serving.stop();
    let lines = bench.audited(&["--decision", "refused"]);
    let counted = lines
        .iter()
        .filter(|line| line["rule"].as_str().unwrap().starts_with("too-many-unproven: "));
    assert!(
        counted.map(|line| line["count"].as_u64().unwrap()).sum::<u64>() >= 6,
        "{lines:?}"
    );
}

#[test]
fn a_service_whose_log_is_full_shows_nothing() {
    let bench = Bench::new();
    let log = bench.site.path().join("log");
    let Some(disk) = or_skip(
        "a full disk under the audit log of the reading service",
        SmallDisk::mount(&log, 64),
    ) else {
        return;
    };
    let serving = bench.start("");
    let alice = bench.issuer.token("alice");
    assert_eq!(serving.client.open_text(&alice, &bench.records("")).status, 200);
    disk.fill();
    for n in 0..30 {
        let answer = serving.client.open_text(&alice, &bench.records(""));
        if answer.status == 503 {
            assert_eq!(answer.code(), "audit-unavailable");
            assert!(!answer.body.contains(EMAIL) && !answer.body.contains(NOTE));
            return;
        }
        assert!(n < 29, "the disk is full, and it goes on");
    }
}
