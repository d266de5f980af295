//! `keys public`: what clients are given.

use base64::Engine as _;
use sealflow_client::RsaPublicJwk;
use serde_json::Value;

use crate::bench::Bench;

#[test]
fn the_keys_of_the_policy_are_published_the_current_one_first() {
    let bench = Bench::new();
    let set: Value = serde_json::from_str(&bench.jwks).unwrap();
    let keys = set["keys"].as_array().unwrap();
    let parsed: Vec<RsaPublicJwk> = keys
        .iter()
        .map(|key| RsaPublicJwk::from_json(key.to_string().as_bytes()).unwrap())
        .collect();
    assert_eq!(
        parsed.iter().map(RsaPublicJwk::bits).collect::<Vec<_>>(),
        [3_072, 2_048]
    );
    for (key, parsed) in keys.iter().zip(&parsed) {
        assert_eq!(key["kid"], parsed.thumbprint().to_string());
        let members: Vec<&String> = key.as_object().unwrap().keys().collect();
        assert_eq!(members, ["alg", "e", "kid", "kty", "n", "use"]);
    }
    assert_eq!(bench.ok(&["keys", "public", "payments", "--jwks"]), bench.jwks);
    // The only dataset that the catalogue has a policy of needs no name elsewhere; here it does.
    let jwk = bench.ok(&["keys", "public", "payments", "--jwk"]);
    assert_eq!(RsaPublicJwk::from_json(jwk.as_bytes()).unwrap(), parsed[0]);
    assert_eq!(bench.ok(&["keys", "public", "payments", "--jwk", "--key", "web"]), jwk);
    let only = bench.ok(&["keys", "public", "payments", "--key", "web"]);
    assert_eq!(only.trim(), format!("{{\"keys\":[{}]}}", jwk.trim()));
    let pem = bench.ok(&["keys", "public", "payments", "--pem"]);
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
    assert_eq!(RsaPublicJwk::from_spki_der(&der).unwrap(), parsed[0]);
}

#[test]
fn the_hmac_key_of_a_client_is_in_its_file_and_in_no_log_whatever_is_logged() {
    let bench = Bench::new();
    let args = ["keys", "client", "web-7", "--dataset", "payments", "--out", "web-7.jwk"];
    let with = [
        "--catalogue",
        "catalogue",
        "--owner",
        &bench.owner,
        "--kms-endpoint",
        &bench.kms.endpoint,
    ];
    let filter = "trace,aws_smithy_runtime=trace,aws_smithy_runtime::client=trace";
    let mut command = bench.place.command(&[&args[..], &with[..]].concat());
    let output = command.env("SEALFLOW_LOG", filter).output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && log.contains("GenerateMac"), "{log}");
    let jwk: Value = serde_json::from_str(&bench.place.read("web-7.jwk")).unwrap();
    let k = jwk["k"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(k).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let standard = base64::engine::general_purpose::STANDARD_NO_PAD.encode(&bytes);
    for spelled in [k, &standard, &hex, &format!("{bytes:?}")] {
        assert!(!log.contains(spelled) && output.stdout.is_empty());
    }
}

#[test]
fn keys_of_clients_are_among_those_that_are_used() {
    let bench = Bench::new();
    let args = [
        "keys",
        "usage",
        "--catalogue",
        "catalogue",
        "--owner",
        &bench.owner,
        "--output",
        "json",
    ];
    let report: Value = serde_json::from_str(&bench.place.ok(&args)).unwrap();
    let keys = report["kms_keys"].as_array().unwrap();
    // Two RSA keys and an HMAC key.
    let of_clients = keys
        .iter()
        .filter(|key| key["clients"] == serde_json::json!(["payments"]));
    assert_eq!(of_clients.filter(|key| key["state"] == "opens").count(), 3, "{report}");
}

#[test]
fn what_cannot_be_published_is_said_with_what_to_do() {
    let bench = Bench::new();
    let expect = |args: &[&str], code: i32, said: &str| {
        let ran = bench.run(&[&["keys", "public"], args].concat());
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{args:?}: {}", ran.err);
        assert!(
            ran.err.contains(said) && ran.err.contains("help: "),
            "{args:?}: {}",
            ran.err
        );
    };
    expect(&["payments", "--key", "app"], 64, "there is no client key app");
    expect(&["payments", "--jwk", "--pem"], 64, "cannot be used with");
    expect(&["refunds"], 78, "refunds");
    let policy = bench.place.read("policy.yaml");
    let (first, previous) = policy.split_once(", previous: [\"").unwrap();
    let (arn, rest) = previous.split_once('"').unwrap();
    let two = format!("{first} }}, app: {{ arn: \"{arn}\"{}", rest.replacen(']', "", 1));
    bench.publish(&two.replace("version: 1", "version: 2"));
    expect(&["payments", "--jwk"], 64, "there are several client keys");
    expect(&["payments", "--pem"], 64, "choose one with --key: app, web");
    assert!(
        bench
            .ok(&["keys", "public", "payments", "--jwk", "--key", "app"])
            .contains("\"kty\":\"RSA\"")
    );
    // A key that is none for encryption is nobody's to seal to.
    let data = policy
        .split_once("default: { arn: \"")
        .unwrap()
        .1
        .split_once('"')
        .unwrap()
        .0;
    let direct = format!(
        "dataset: payments\nversion: 3\nkeys: {{ default: {{ arn: \"{data}\" }} }}\nacls: {{ all: {{}} }}\n\
         columns: [{{ path: card, key: default, acl: all }}]\ndead_letters: {{ key: default, acl: all }}\n"
    );
    bench.publish(&direct);
    expect(&["payments"], 78, "has no keys that clients seal to");
}
