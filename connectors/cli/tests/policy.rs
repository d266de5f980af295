//! `policy` and `keys`: from a key to a published policy, and what is refused on the way.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::Write as _;
use std::process::Stdio;

use common::{LocalKms, Place, policy};

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001";

/// Thumbprints differ in every run.
fn shown(text: &str, owner: &str) -> String {
    text.replace(owner, "OWNER")
}

#[test]
fn a_policy_is_written_checked_signed_verified_published_and_shown() {
    let place = Place::new();
    let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(place.path("owner.key")).unwrap().permissions());
    assert_eq!((mode & 0o777, owner.len()), (0o600, 43));
    place.write("policy.yaml", policy(ARN));
    assert_eq!(
        place.ok(&["policy", "check"]),
        "policy.yaml: policy of payments, version 1, 4 columns: ok\n"
    );
    place.ok(&["policy", "sign"]);
    assert_eq!(place.read("policy.jws").split('.').count(), 3);
    insta::assert_snapshot!(
        "verified",
        shown(&place.ok(&["policy", "verify", "--owner", &owner]), &owner)
    );
    let trust = ["--catalogue", "catalogue", "--owner", &owner];
    assert_eq!(
        place.ok(&[&["policy", "publish"], &trust[..]].concat()),
        "policy of payments, version 1: published\n"
    );
    assert!(place.path("catalogue/policies/payments/0000000001.jws").exists());
    assert_eq!(
        place.ok(&[&["policy", "publish"], &trust[..]].concat()),
        "policy of payments, version 1: was there already\n"
    );
    insta::assert_snapshot!(
        "shown",
        shown(
            &place.ok(&[&["policy", "show", "payments"], &trust[..]].concat()),
            &owner
        )
    );
    let json = place.ok(&[&["policy", "show", "payments", "--output", "json"], &trust[..]].concat());
    insta::assert_snapshot!("shown_json", shown(&json, &owner));
    let yaml = place.ok(&[&["policy", "show", "payments", "--yaml"], &trust[..]].concat());
    assert_eq!(yaml.trim_end(), place.read("policy.yaml").trim_end());
    // The next version, signed on the way.
    place.write("policy.yaml", policy(ARN).replace("version: 1", "version: 2"));
    place.ok(&["policy", "publish", "--key", "owner.key", "--catalogue", "catalogue"]);
    insta::assert_snapshot!(
        "history",
        shown(
            &place.ok(&[&["policy", "history", "payments"], &trust[..]].concat()),
            &owner
        )
    );
}

#[test]
fn what_must_not_be_believed_or_published_is_refused_with_two_lines() {
    let place = Place::new();
    let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
    let other = place.ok(&["policy", "keygen", "-o", "other.key"]).trim().to_owned();
    place.write("policy.yaml", policy(ARN));
    place.ok(&["policy", "sign"]);
    place.ok(&["policy", "publish", "--catalogue", "catalogue", "--owner", &owner]);
    place.write("bad.yaml", policy(ARN).replace("acl: support", "acl: suport"));
    place.write(
        "enclave.yaml",
        format!(
            "dataset: d\nversion: 1\nkeys: {{ k: {{ arn: \"{ARN}\" }} }}\nacls: {{ a: {{}} }}\ncolumns: [{{ path: a, key: k, acl: a, flow: enclave }}]\n"
        ),
    );
    place.write("changed.yaml", policy(ARN).replace("client_ip", "address"));
    let (header, rest) = place
        .read("policy.jws")
        .split_once('.')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    place.write("edited.jws", format!("{header}.A{}", &rest[1..]));
    place.write("shared.key", place.read("owner.key"));
    let cases: [(&str, &[&str], i32); 9] = [
        ("check_unknown_acl", &["policy", "check", "bad.yaml"], 78),
        ("check_no_enclave", &["policy", "check", "enclave.yaml"], 78),
        ("sign_unknown_acl", &["policy", "sign", "bad.yaml"], 78),
        ("keygen_would_replace", &["policy", "keygen"], 74),
        ("verify_other_owner", &["policy", "verify", "--owner", &other], 78),
        (
            "verify_edited",
            &["policy", "verify", "edited.jws", "--owner", &owner],
            78,
        ),
        (
            "publish_other_content",
            &[
                "policy",
                "publish",
                "changed.yaml",
                "--key",
                "owner.key",
                "--catalogue",
                "catalogue",
            ],
            78,
        ),
        ("sign_with_a_shared_key", &["policy", "sign", "--key", "shared.key"], 77),
        (
            "show_no_such_dataset",
            &[
                "policy",
                "show",
                "orders",
                "--catalogue",
                "catalogue",
                "--owner",
                &owner,
            ],
            78,
        ),
    ];
    for (name, args, code) in cases {
        let ran = place.run(args);
        assert_eq!(
            (ran.code, ran.out.as_str(), ran.err.lines().count()),
            (code, "", 2),
            "{name}: {}",
            ran.err
        );
        insta::assert_snapshot!(name, shown(&ran.err, &owner).replace(&other, "OTHER"));
    }
}

#[test]
fn domains_are_made_once_and_signed() {
    let place = Place::new();
    let kms = LocalKms::start(&place);
    place.ok(&["policy", "keygen"]);
    let create = [
        "policy",
        "domain",
        "create",
        "customers",
        "--key-arn",
        &kms.arn,
        "--catalogue",
        "catalogue",
        "--kms-endpoint",
        &kms.endpoint,
    ];
    assert!(
        place
            .ok(&[&create[..], &["--allow", "arn:aws:iam::111122223333:role/analyst"]].concat())
            .contains("version 1")
    );
    let again = place.run(&create);
    assert_eq!(again.code, 64, "{}", again.err);
    assert!(again.err.contains("--new-version"), "{}", again.err);
    assert!(
        place
            .ok(&[&create[..], &["--new-version"]].concat())
            .contains("version 2")
    );
    let before = place.path("catalogue/domains/customers/2/secret");
    assert!(before.exists());
    let bad = place.run(&[&create[..], &["--new-version", "--type", "colour"]].concat());
    assert_eq!(bad.code, 64, "{}", bad.err);
    assert!(
        !place.path("catalogue/domains/customers/3").exists(),
        "a refused domain left a secret behind"
    );
}

#[test]
fn keys_shows_envelopes_and_no_key() {
    let place = Place::new();
    let kms = LocalKms::start(&place);
    place.write("policy.yaml", policy(&kms.arn));
    place.write("in.ndjson", sealflow_samples::record(1, 0).value);
    place.ok(&[
        "seal",
        "in.ndjson",
        "-o",
        "out.ndjson",
        "--dev",
        "policy.yaml",
        "--catalogue",
        "catalogue",
        "--kms-endpoint",
        &kms.endpoint,
    ]);
    let list = place.ok(&["keys", "list", "--catalogue", "catalogue", "--output", "json"]);
    let keys: serde_json::Value = serde_json::from_str(&list).unwrap();
    let keys = keys.as_array().unwrap();
    assert_eq!(keys.len(), 2);
    for key in keys {
        assert_eq!(
            (&key["dataset"], &key["arn"]),
            (&"payments".into(), &kms.arn.as_str().into())
        );
        assert!(key.get("wrapped").is_none());
    }
    let id = keys[0]["key"].as_str().unwrap();
    assert!(
        place
            .ok(&["keys", "show", &id[..8], "--catalogue", "catalogue"])
            .contains(id)
    );
    assert_eq!(
        place.ok(&["keys", "list", "--catalogue", "catalogue"]).lines().count(),
        3
    );
    assert_eq!(place.run(&["keys", "show", "zz", "--catalogue", "catalogue"]).code, 65);
    assert_eq!(place.run(&["keys", "list", "--catalogue", "nowhere"]).code, 74);
}

#[test]
fn a_policy_that_requires_a_lease_counts_only_while_one_holds() {
    let place = Place::new();
    let kms = LocalKms::start(&place);
    let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
    let lease_key = place.ok(&["policy", "keygen", "-o", "lease.key"]).trim().to_owned();
    place.ok(&["policy", "keygen", "-o", "other.key"]);
    let required = format!(
        "dataset: payments\nversion: 1\nkeys: {{ k: {{ arn: \"{}\" }} }}\nacls: {{ a: {{}} }}\ncolumns: [{{ path: email, key: k, acl: a \
         }}]\nlease: required\nlease_keys: [{lease_key:?}]\n",
        kms.arn
    );
    place.write("policy.yaml", required);
    place.ok(&["policy", "publish", "--key", "owner.key", "--catalogue", "catalogue"]);
    place.write("in.json", "{\"customer_id\":\"c\",\"email\":\"a@example.com\"}\n");
    let trust = ["--catalogue", "catalogue", "--owner", &owner];
    let seal = || {
        let _ = std::fs::remove_file(place.path("out.json"));
        let _ = std::fs::remove_file(place.path("out.json.sfkeys"));
        let more = [
            "--dataset",
            "payments",
            "--kms-endpoint",
            &kms.endpoint,
            "in.json",
            "--output",
            "out.json",
        ];
        place.run(&[&["seal"], &trust[..], &more].concat())
    };
    let lease = |key: &str, more: &[&str]| {
        place.run(&[&["policy", "lease", "payments", "--key", key], &trust[..], more].concat())
    };
    let without = seal();
    assert_eq!(without.code, 78, "{}", without.err);
    assert!(
        without.err.contains("the catalogue has none of version 1"),
        "{}",
        without.err
    );
    // Looking needs none.
    let shown = place.ok(&[&["policy", "show", "payments"], &trust[..]].concat());
    assert!(shown.contains("lease      required"), "{shown}");
    assert_eq!(lease("other.key", &[]).code, 78);
    assert_eq!(lease("lease.key", &["--for", "25h"]).code, 64);
    let started = std::time::Instant::now();
    let given = lease("lease.key", &["--for", "8s"]);
    assert!(
        given.code == 0 && given.out.starts_with("lease of payments, version 1: until 20"),
        "{}{}",
        given.out,
        given.err
    );
    let with = seal();
    assert_eq!(with.code, 0, "{}", with.err);
    assert!(place.read("out.json").contains("sf1."));
    // A pipe that is open while the lease ends: what comes before is sealed, what comes after is not.
    let args = [
        "seal",
        "--dataset",
        "payments",
        "--keys",
        "piped.sfkeys",
        "--kms-endpoint",
        &kms.endpoint,
    ];
    let mut command = place.command(&[&args[..], &trust[..]].concat());
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut piped = piped.spawn().unwrap();
    let mut input = piped.stdin.take().unwrap();
    let many = "{\"email\":\"a@example.com\"}\n".repeat(8_192);
    input.write_all(many.as_bytes()).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(9).saturating_sub(started.elapsed()));
    input.write_all(b"{\"email\":\"b@example.com\"}\n").unwrap();
    drop(input);
    let ended = piped.wait_with_output().unwrap();
    let err = String::from_utf8(ended.stderr).unwrap();
    assert!(
        ended.status.code() == Some(78) && err.contains("the lease ended at"),
        "{err}"
    );
    assert_eq!(String::from_utf8(ended.stdout).unwrap().lines().count(), 8_192);
    let after = seal();
    assert!(
        after.code == 78 && after.err.contains("the lease ended at"),
        "{}",
        after.err
    );
    // A version that comes with its lease never stands there without.
    place.write(
        "policy.yaml",
        place.read("policy.yaml").replace("version: 1", "version: 2"),
    );
    let publish = ["policy", "publish", "--key", "owner.key", "--catalogue", "catalogue"];
    assert_eq!(place.run(&[&publish[..], &["--lease", "2d"]].concat()).code, 64);
    let published = place.ok(&[&publish[..], &["--lease", "1h"]].concat());
    assert!(
        published.contains("version 2: published\nlease until 20"),
        "{published}"
    );
    assert_eq!(seal().code, 0);
    place.write(
        "policy.yaml",
        place.read("policy.yaml").replace("version: 2", "version: 3"),
    );
    let without = place.run(&publish);
    assert!(
        without.code == 0 && without.err.contains("pipelines and readers stop"),
        "{}",
        without.err
    );
    assert_eq!(seal().code, 78);
    // Nor does publishing an old version once more give it a lease, for whoever would hide the newer ones.
    let newest = place.read("policy.yaml");
    place.write("policy.yaml", newest.replace("version: 3", "version: 2"));
    let leases = || {
        std::fs::read_dir(place.path("catalogue/leases/payments/0000000002"))
            .unwrap()
            .count()
    };
    let before = leases();
    let again = place.run(&[&publish[..], &["--lease", "2h"]].concat());
    assert!(
        again.code == 78 && again.err.contains("version 3 is there"),
        "{}",
        again.err
    );
    assert_eq!(leases(), before);
    place.write("policy.yaml", newest);
    // The key of leases signs nothing else.
    let ran = place.run(&[
        "policy",
        "publish",
        "--key",
        "lease.key",
        "--catalogue",
        "catalogue",
        "--owner",
        &owner,
    ]);
    let show = [&["policy", "show", "payments"], &trust[..]].concat();
    assert_eq!(place.run(&show).code, 0, "{}", ran.err);
    place.write(
        "policy.yaml",
        place.read("policy.yaml").replace("version: 3", "version: 4"),
    );
    place.run(&["policy", "publish", "--key", "lease.key", "--catalogue", "catalogue"]);
    assert_eq!(place.run(&show).code, 78, "{}", ran.err);
}

const SUPPORT: &str = "arn:aws:iam::111122223333:role/support";

/// Publishes the sample policy as it is changed, version by version.
fn versions(changes: &[&dyn Fn(String) -> String]) -> (Place, String) {
    let place = Place::new();
    let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
    for (n, change) in changes.iter().enumerate() {
        let text = policy(ARN).replace("version: 1", &format!("version: {}", n + 1));
        place.write("policy.yaml", change(text));
        place.ok(&["policy", "publish", "--key", "owner.key", "--catalogue", "catalogue"]);
    }
    (place, owner)
}

#[test]
fn a_diff_says_what_changes_and_who_gains_and_loses_what() {
    let (place, owner) = versions(&[&|text| text, &|text| text, &|text| {
        // An ACL is widened, a column dropped, another one sealed anew, and one moved to another ACL.
        text.replace(
            &format!("support: {{ allow: [\"{SUPPORT}\"] }}"),
            &format!("support: {{ allow: [\"{SUPPORT}\", \"{SUPPORT}-2\"] }}"),
        )
        .replace(
            "  - { path: client_ip, key: default, acl: support }\n",
            "  - { path: phone, key: default, acl: support }\n",
        )
        .replace(
            "path: user.name, key: default, acl: support",
            "path: user.name, key: default, acl: payments",
        )
    }]);
    let trust = ["--catalogue", "catalogue", "--owner", &owner];
    let diff = |more: &[&str]| place.run(&[&["policy", "diff", "--dataset", "payments"], more, &trust[..]].concat());
    let same = diff(&["--from", "1", "--to", "2"]);
    assert!(
        same.code == 0 && same.out.ends_with("they say the same\n"),
        "{}{}",
        same.out,
        same.err
    );
    // The newest against the one before is the default.
    let ran = diff(&[]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    insta::assert_snapshot!("diff", shown(&ran.out, &owner));
    let json: serde_json::Value = serde_json::from_str(&diff(&["--output", "json"]).out).unwrap();
    assert_eq!((&json["same"], &json["opens_written"]), (&false.into(), &true.into()));
    let gains: Vec<_> = json["gains"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gain| {
            let text = |name: &str| {
                gain[name]
                    .as_str()
                    .unwrap()
                    .replace("arn:aws:iam::111122223333:role/", "")
            };
            format!("{} {} {}", text("principal"), text("label"), gain["written"])
        })
        .collect();
    assert_eq!(
        gains,
        [
            "payments user.name true",
            "support phone false",
            "support-2 phone false",
            "support-2 user.email true"
        ]
    );
    let losses: Vec<_> = json["losses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|loss| loss["label"].as_str().unwrap())
        .collect();
    assert_eq!(losses, ["client_ip", "user.name"]);
    // Backwards, who gained loses.
    let back: serde_json::Value =
        serde_json::from_str(&diff(&["--from", "3", "--to", "2", "--output", "json"]).out).unwrap();
    assert_eq!(
        (
            back["losses"].as_array().unwrap().len(),
            back["gains"].as_array().unwrap().len()
        ),
        (4, 2)
    );
}

#[test]
fn a_file_is_compared_with_what_is_published_and_signed_files_are_verified() {
    let (place, owner) = versions(&[&|text| text]);
    let other = place.ok(&["policy", "keygen", "-o", "other.key"]).trim().to_owned();
    let trust = ["--catalogue", "catalogue", "--owner", &owner];
    let diff = |more: &[&str]| place.run(&[&["policy", "diff"], more].concat());
    assert_eq!(diff(&[&["policy.yaml"], &trust[..]].concat()).code, 0);
    place.write(
        "next.yaml",
        policy(ARN)
            .replace("version: 1", "version: 2")
            .replace("default, acl: operators", "default, acl: support"),
    );
    let ran = diff(&[&["next.yaml"], &trust[..]].concat());
    assert!(
        ran.code == 1
            && ran
                .out
                .contains(&format!("! {SUPPORT}: #dead-letters, also what is already written")),
        "{}{}",
        ran.out,
        ran.err
    );
    // Two files need no catalogue; a signed one tells its signer, and is refused if pinned owners did not sign it.
    place.ok(&["policy", "sign", "next.yaml"]);
    let ran = diff(&["policy.yaml", "next.jws"]);
    assert!(
        ran.code == 1
            && ran
                .out
                .contains(&format!("signed by {owner}, compared with no pinned owner")),
        "{}{}",
        ran.out,
        ran.err
    );
    assert_eq!(diff(&["policy.yaml", "next.jws", "--owner", &owner]).code, 1);
    assert_eq!(diff(&["policy.yaml", "next.jws", "--owner", &other]).code, 78);
    let (header, rest) = place
        .read("next.jws")
        .split_once('.')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    place.write("edited.jws", format!("{header}.A{}", &rest[1..]));
    assert_eq!(diff(&["policy.yaml", "edited.jws"]).code, 78);
    // What was not compared is neither the same nor different.
    assert_eq!(diff(&["policy.yaml"]).code, 64);
    assert_eq!(diff(&["policy.yaml", "next.yaml", "--from", "1"]).code, 64);
    assert_eq!(
        diff(&[&["--dataset", "payments"], &trust[..]].concat()).code,
        78,
        "there is none before the first"
    );
    assert_eq!(
        diff(&[&["--dataset", "payments", "--from", "7"], &trust[..]].concat()).code,
        64
    );
}

#[test]
fn what_was_shut_and_opens_is_marked_and_another_domain_of_a_hint_is_a_change() {
    let place = Place::new();
    place.write("old.yaml", policy(ARN));
    let json = |new: String| -> serde_json::Value {
        place.write("new.yaml", new);
        let ran = place.run(&["policy", "diff", "old.yaml", "new.yaml", "--output", "json"]);
        assert_eq!(ran.code, 1, "{}", ran.err);
        serde_json::from_str(&ran.out).unwrap()
    };
    // A label that the older policy does not know and the newer one calls a former one has values.
    let former = json(policy(ARN) + "previous: { labels: { phone: user.name } }\n");
    let gain = &former["gains"][0];
    assert_eq!((&gain["label"], &gain["written"]), (&"phone".into(), &true.into()));
    assert_eq!(former["opens_written"], true);
    // Former keys and ACLs that the older policy refused.
    let other = ARN.replace("000000000001", "000000000002");
    let reopened = json(
        policy(ARN)
            + &format!("previous: {{ keys: [{{ name: default, arn: \"{other}\" }}], acls: {{ helpers: support }} }}\n"),
    );
    assert_eq!(
        (
            reopened["reopened"].as_array().unwrap().len(),
            &reopened["opens_written"]
        ),
        (2, &true.into())
    );
    let text = place.run(&["policy", "diff", "old.yaml", "new.yaml"]).out;
    for line in [
        format!("! what was sealed under key default ({other}) opens, which it did not"),
        "! what was sealed under ACL helpers opens, which it did not".to_owned(),
    ] {
        assert!(text.contains(&line), "{text}");
    }
    // Equality under another secret is another hint.
    let hashed = |domain: &str| {
        let column = "path: user.name, key: default, acl: support";
        policy(ARN).replace(
            column,
            &format!("{column}, hints: [{{ derive: hmac, domain: {domain}, acl: support }}]"),
        )
    };
    place.write("old.yaml", hashed("customers"));
    let changes = json(hashed("people"))["changes"].clone();
    assert_eq!(
        changes[0]["details"],
        serde_json::json!(["domain: customers -> people"]),
        "{changes}"
    );
}

#[test]
fn what_stops_opening_is_said_whatever_the_lists_say() {
    let place = Place::new();
    place.write("old.yaml", policy(ARN));
    let other = ARN.replace("000000000001", "000000000002");
    place.write(
        "new.yaml",
        policy(&other)
            .replace("support: {", "helpers: {")
            .replace("acl: support", "acl: helpers"),
    );
    let ran = place.run(&["policy", "diff", "old.yaml", "new.yaml"]);
    assert_eq!(ran.code, 1);
    for line in [
        format!("what was sealed under key default ({ARN}) opens for nobody"),
        "what was sealed under ACL support opens for nobody".to_owned(),
    ] {
        assert!(ran.out.contains(&line), "{}", ran.out);
    }
    let previous =
        format!("previous: {{ keys: [{{ name: default, arn: \"{ARN}\" }}], acls: {{ support: helpers }} }}\n");
    place.write("new.yaml", place.read("new.yaml") + &previous);
    assert!(
        !place
            .run(&["policy", "diff", "old.yaml", "new.yaml"])
            .out
            .contains("opens for nobody")
    );
}
