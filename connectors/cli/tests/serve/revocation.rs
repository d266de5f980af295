//! How long a running service goes on opening what was revoked.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::bench::{Bench, NOTE, ops, policy};

/// Beyond the promise: requests that were on their way, on a machine that does other things too.
const SLACK: Duration = Duration::from_millis(750);

/// Asks until `ended` says so; when the last answer that showed a note was there.
fn last_shown(mut ask: impl FnMut() -> (bool, bool), patience: Duration) -> SystemTime {
    let until = Instant::now() + patience;
    let mut last = UNIX_EPOCH;
    loop {
        let (shown, ended) = ask();
        if shown {
            last = SystemTime::now();
        }
        if ended {
            return last;
        }
        assert!(Instant::now() < until, "still shown after {patience:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Appends what was measured to the report of a soak.
fn report(what: &str, took: Duration, promised: Duration) {
    sealflow_testbed::report(
        &json!({ "test": what, "shown_for_ms": took.as_millis(), "promised_ms": promised.as_millis() }),
    );
}

#[test]
fn a_grant_that_is_taken_back_is_refused_after_policy_refresh_in_a_running_service() {
    const REFRESH: Duration = Duration::from_secs(1);
    let bench = Bench::new();
    let serving = bench.start("policy_refresh: 1s\nlimits: { requests_per_second: 1000, requests_burst: 1000 }");
    let alice = bench.issuer.token("alice");
    let note = json!({ "dataset": "payments", "values": [{ "value": bench.sealed_note() }] });
    let ask = || serving.client.open(&alice, &note);
    assert_eq!(ask().json()["values"], json!([NOTE]));
    bench.site.publish("payments", 2, &policy(2, "", ""));
    let published = SystemTime::now();
    let shown = last_shown(
        || {
            let answer = ask().json();
            (answer["values"] == json!([NOTE]), answer["policy_version"] == 2)
        },
        Duration::from_secs(10),
    );
    let took = shown.duration_since(published).unwrap_or_default();
    assert!(took <= REFRESH + SLACK, "{took:?}");
    assert_eq!(ask().json()["values"], json!([null]), "written before, refused now");
    report("revocation_by_policy", took, REFRESH);
    serving.stop();
}

#[test]
fn nothing_is_opened_after_the_end_of_a_lease() {
    let bench = Bench::with_policy(&policy(1, &ops(), "lease: required"));
    // Nobody looks for a newer policy meanwhile.
    let serving = bench.start("policy_refresh: 10m\nlimits: { requests_per_second: 1000, requests_burst: 1000 }");
    let alice = bench.issuer.token("alice");
    let note = json!({ "dataset": "payments", "values": [{ "value": bench.sealed_note() }] });
    let leases = bench.site.catalogue().join("leases/payments/0000000001");
    bench
        .site
        .lease(&policy(1, &ops(), "lease: required"), Duration::from_secs(6));
    let newest = std::fs::read_dir(&leases)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .max();
    let ends = UNIX_EPOCH + Duration::from_secs(newest.unwrap().trim_end_matches(".jws").parse().unwrap());
    let shown = last_shown(
        || {
            let answer = serving.client.open(&alice, &note);
            if answer.status == 503 {
                assert_eq!(answer.code(), "policy-unusable");
                assert!(
                    answer.body.contains("the lease ended at") && !answer.body.contains(NOTE),
                    "{answer:?}"
                );
            }
            (answer.body.contains(NOTE), answer.status == 503)
        },
        Duration::from_secs(20),
    );
    assert!(
        shown > UNIX_EPOCH && shown <= ends + SLACK,
        "{:?}",
        shown.duration_since(ends)
    );
    report(
        "lease_end",
        shown.duration_since(ends).unwrap_or_default(),
        Duration::ZERO,
    );
    // The owner goes on saying so.
    bench
        .site
        .lease(&policy(1, &ops(), "lease: required"), Duration::from_secs(600));
    // That there was none is remembered for a second.
    std::thread::sleep(Duration::from_millis(1_200));
    assert_eq!(serving.client.open(&alice, &note).json()["values"], json!([NOTE]));
    serving.stop();
}

#[test]
fn a_key_that_the_issuer_rotates_in_is_taken_and_one_rotated_out_proves_nobody() {
    let bench = Bench::new();
    let serving = bench.start("");
    let old = bench.issuer.token("alice");
    assert_eq!(serving.client.whoami(&old).status, 200);
    let asked = bench.issuer.asked();
    bench.issuer.rotate("second");
    let new = bench.issuer.token("alice");
    let until = Instant::now() + Duration::from_secs(30);
    // At most one fetch in ten seconds, whoever asks.
    while serving.client.whoami(&new).status != 200 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(
        bench.issuer.asked() <= asked + 3,
        "{} fetches",
        bench.issuer.asked() - asked
    );
    assert_eq!(serving.client.whoami(&old).code(), "token-unknown-key");
    serving.stop();
}
