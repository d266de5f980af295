//! Which policy counts for a reader that has just started: none that is older than one seen, that is gone, whose lease is over,
//! or whose owner is not pinned any more.

use std::fs;
use std::time::Duration;

use sealflow::jose::PrivateJwk;
use sealflow_testbed::Kafka;
use serde_json::{Value, json};

use crate::reading::{EMAIL, NOTE, OPS, RECORDS, Sealed, policy, stderr};

/// Reads as the analyst, who is refused with exit code 78 and these words.
fn refused(sealed: &Sealed, because: &str) {
    let output = sealed.read("analyst", &["--output", "json"]);
    assert_eq!(output.status.code(), Some(78), "{because}: {}", stderr(&output));
    assert!(
        output.stdout.is_empty() && stderr(&output).contains(because),
        "{because}: {}",
        stderr(&output)
    );
}

#[test]
fn an_old_policy_put_back_a_removed_one_an_ended_lease_and_a_glob_over_accounts_are_refused_with_an_audit_line_each() {
    let Some(kafka) = Kafka::shared("policies that do not count any more") else {
        return;
    };
    let (sealed, _) = Sealed::new(kafka, "versions");
    let place = |version: u32| {
        sealed
            .site
            .catalogue()
            .join(format!("policies/payments/{version:010}.jws"))
    };
    let analyst = "\"arn:aws:iam::111122223333:role/analyst\"";
    sealed.site.publish("payments", 2, &policy(2, analyst, ""));
    assert_eq!(sealed.records("support", &[])[0]["value"]["note"], Value::Null);

    // The version under which support could read the notes: put back, by taking the newer one away.
    let second = fs::read(place(2)).unwrap();
    fs::remove_file(place(2)).unwrap();
    refused(
        &sealed,
        "version 1 of payments is older than version 2, which was seen before",
    );
    let first = fs::read(place(1)).unwrap();
    fs::remove_file(place(1)).unwrap();
    refused(&sealed, "version 2 was there before, and now there is none");
    fs::write(place(1), first).unwrap();
    fs::write(place(2), second).unwrap();
    assert_eq!(sealed.records("analyst", &[])[0]["value"]["note"], json!(NOTE));

    // A lease that is over.
    let third = policy(3, analyst, "lease: required");
    sealed.site.publish("payments", 3, &third);
    sealed.site.lease(&third, Duration::from_secs(30));
    assert_eq!(sealed.records("analyst", &[]).len(), RECORDS as usize);
    let fourth = policy(4, analyst, "lease: required");
    sealed.site.publish("payments", 4, &fourth);
    sealed.site.lease(&fourth, Duration::from_secs(1));
    std::thread::sleep(Duration::from_millis(2_100));
    refused(&sealed, "the lease ended at");

    // A role of that name in every account. Nobody can sign it with our commands; somebody did with others.
    let reckless = policy(5, "\"arn:aws:iam::*:role/analyst\"", "");
    let jws = sealed.site.sign_unchecked(&reckless);
    fs::write(place(5), jws).unwrap();
    refused(&sealed, "acls.ops.allow[0]");

    let events = sealed.audited(&["--decision", "refused"]);
    for rule in [
        "is older than version 2, which was seen before",
        "version 2 was there before, and now there is none",
        "the lease ended at",
        "acls.ops.allow[0]",
    ] {
        let told = events.iter().any(|event| {
            event["rule"].as_str().unwrap().contains(rule)
                && event["principal"] == "arn:aws:iam::111122223333:role/analyst"
        });
        assert!(told, "{rule}: {events:#?}");
    }
}

#[test]
fn an_owner_key_is_rotated_by_pinning_both_for_a_while() {
    let Some(kafka) = Kafka::shared("the rotation of an owner key") else {
        return;
    };
    let (sealed, _) = Sealed::new(kafka, "owners");
    let heir = PrivateJwk::generate().unwrap();
    let yaml = fs::read_to_string(&sealed.file).unwrap();
    let ours = format!("owners: [\"{}\"]", sealed.site.owner());
    assert!(yaml.contains(&ours));
    let pin = |owners: &[&dyn std::fmt::Display]| {
        let owners: Vec<String> = owners.iter().map(|owner| format!("\"{owner}\"")).collect();
        fs::write(
            &sealed.file,
            yaml.replace(&ours, &format!("owners: [{}]", owners.join(","))),
        )
        .unwrap();
    };
    let publish = |version: u32, key: &PrivateJwk| {
        let jws = sealflow::policy::signed::sign(policy(version, OPS, "").as_bytes(), key).unwrap();
        fs::write(
            sealed
                .site
                .catalogue()
                .join(format!("policies/payments/{version:010}.jws")),
            jws,
        )
        .unwrap();
    };
    let reads = || {
        let records = sealed.records("analyst", &[]);
        assert_eq!(
            (records.len(), &records[0]["value"]["user"]["email"]),
            (RECORDS as usize, &json!(EMAIL))
        );
    };
    reads();
    publish(2, &heir);
    refused(&sealed, "which is no pinned owner");
    pin(&[&sealed.site.owner(), &heir.thumbprint()]);
    reads();
    // The old key is gone: what it signs counts no more, and what it once signed is not gone back to.
    pin(&[&heir.thumbprint()]);
    reads();
    sealed.site.publish("payments", 3, &policy(3, OPS, ""));
    refused(&sealed, "which is no pinned owner");
    fs::remove_file(sealed.site.catalogue().join("policies/payments/0000000003.jws")).unwrap();
    fs::remove_file(sealed.site.catalogue().join("policies/payments/0000000002.jws")).unwrap();
    refused(&sealed, "which is no pinned owner");
}
