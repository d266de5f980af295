//! What clients seal enclave columns to: keys that the policy's owner vouches for, however hostile who serves them is. `sealflow client`,
//! and the samples on their own libraries.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealflow::clock::UnixMillis;
use sealflow::jose::jwe::{ContentKey, Jwe};
use sealflow::jose::rsa::to_jwks;
use sealflow::jose::{JwsType, PrivateJwk, jws};
use sealflow::policy::EnclaveKeys;
use sealflow::policy::enclave_keys::signed;
use sealflow_client::{PrivateKey, RsaBits};
use serde_json::{Value, json};

use crate::bench::{CANARY, another_key};
use crate::clients::{Browser, Sample};
use crate::commands::expect;
use crate::common::{LocalKms, Place};

const HOUR: Duration = Duration::from_secs(3_600);

fn ago(span: Duration) -> UnixMillis {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    UnixMillis(u64::try_from((now - span).as_millis()).unwrap())
}

/// The owner of a policy, and the enclave whose keys they sign.
pub(crate) struct Owner {
    pub(crate) key: PrivateJwk,
    pub(crate) enclave: PrivateKey,
}

impl Owner {
    pub(crate) fn new() -> Self {
        Self {
            key: PrivateJwk::generate().unwrap(),
            enclave: PrivateKey::generate(RsaBits::Rsa2048).unwrap(),
        }
    }

    pub(crate) fn thumbprint(&self) -> String {
        self.key.thumbprint().to_string()
    }

    /// What they sign, so long ago, for an hour more than that.
    pub(crate) fn signed_ago(&self, dataset: &str, labels: &[&str], since: Duration) -> String {
        self.signed_for(dataset, labels, since, since + HOUR)
    }

    fn signed_for(&self, dataset: &str, labels: &[&str], since: Duration, span: Duration) -> String {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let keys = EnclaveKeys::new(dataset, labels, vec![self.enclave.public().unwrap()]).unwrap();
        signed::sign(&keys, ago(since), span, &self.key).unwrap()
    }

    /// What a host could serve in the place of the owner's word about `label` of `dataset`, so that somebody seals to the host's key or to
    /// one that the owner has taken back: each has to be refused.
    pub(crate) fn hostile(&self, dataset: &str, label: &str) -> Vec<(&'static str, String)> {
        let host = Self::new();
        let (bare, own) = (
            host.enclave.public().unwrap(),
            host.signed_ago(dataset, &[label], Duration::ZERO),
        );
        let good = self.signed_ago(dataset, &[label], Duration::ZERO);
        let parts = |jws: &str| -> Vec<String> { jws.split('.').map(str::to_owned).collect() };
        let (theirs, ours) = (parts(&own), parts(&good));
        let payload = URL_SAFE_NO_PAD.decode(&ours[1]).unwrap();
        let as_policy = jws::sign(JwsType::Policy, &payload, &self.key).unwrap();
        // The owner's header, so that its key is the pinned one, over what the host says.
        let signed = format!("{}.{}", ours[0], theirs[1]);
        let by_host = URL_SAFE_NO_PAD.encode(sign(&host.key, signed.as_bytes()));
        let documents = |inner: &str| format!("{{\"documents\":[{inner}]}}");
        vec![
            ("a bare key", bare.to_published_json()),
            ("a set of them", to_jwks(std::slice::from_ref(&bare))),
            ("a bare key as a document", documents(&bare.to_published_json())),
            ("signed by the host", own.clone()),
            ("signed by the host, in an answer", documents(&format!("\"{own}\""))),
            ("ended", self.signed_for(dataset, &[label], 2 * HOUR, HOUR)),
            (
                "of another dataset",
                self.signed_ago("refunds", &[label], Duration::ZERO),
            ),
            (
                "without the label",
                self.signed_ago(dataset, &["other"], Duration::ZERO),
            ),
            ("another payload", [&*ours[0], &*theirs[1], &*ours[2]].join(".")),
            ("another payload, signed by the host", format!("{signed}.{by_host}")),
            ("another header", [&*theirs[0], &*ours[1], &*ours[2]].join(".")),
            ("of another type", as_policy),
            ("without a signature", format!("{}.{}.", ours[0], ours[1])),
            ("nothing", documents("")),
            ("no document", "{}".to_owned()),
        ]
    }

    /// What was sealed for the enclave.
    pub(crate) fn open(&self, session: &str, value: &str) -> String {
        let jwk: Value = serde_json::from_slice(self.enclave.open(session).unwrap().expose()).unwrap();
        let k = URL_SAFE_NO_PAD.decode(jwk["k"].as_str().unwrap()).unwrap();
        let mut plain = Vec::new();
        let key = ContentKey::new(&k.try_into().unwrap());
        key.open(&Jwe::parse(value).unwrap(), &mut plain).unwrap();
        String::from_utf8(plain).unwrap()
    }
}

/// An Ed25519 signature by other means than ours.
fn sign(key: &PrivateJwk, message: &[u8]) -> Vec<u8> {
    let jwk: Value = serde_json::from_slice(key.to_private_json().expose()).unwrap();
    let seed = URL_SAFE_NO_PAD.decode(jwk["d"].as_str().unwrap()).unwrap();
    let pair = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
    pair.sign(message).as_ref().to_vec()
}

const RECORD: &str = "{\"card\":\"canary-4111\",\"note\":\"canary-4111\"}\n";

#[test]
fn the_command_seals_enclave_columns_to_keys_that_the_owner_vouches_for_and_to_no_others() {
    let (place, owner) = (Place::new(), Owner::new());
    let thumbprint = owner.thumbprint();
    let seal = |keys: &str, more: &[&str]| -> Vec<String> {
        let base = ["client", "seal", "--dataset", "payments", "--enclave-keys", keys];
        [&base[..], more]
            .concat()
            .iter()
            .map(|text| (*text).to_owned())
            .collect()
    };
    let run = |args: &[String], input: &str| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        place.run_with_input(&args, input.as_bytes())
    };
    let pinned = ["--owner", &thumbprint, "--enclave-column", "card"];
    place.write(
        "good.json",
        format!(
            "{{\"documents\":[\"{}\"]}}",
            owner.signed_ago("payments", &["card"], HOUR)
        ),
    );
    let ran = run(&seal("good.json", &pinned), RECORD);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let sealed: Value = serde_json::from_str(&ran.out).unwrap();
    let text = |value: &Value, name: &str| value[name].as_str().unwrap().to_owned();
    let opened = owner.open(&text(&sealed, "enclave_session"), &text(&sealed, "card"));
    assert_eq!((opened.as_str(), &sealed["note"]), ("\"canary-4111\"", &json!(CANARY)));

    // Beside it, fields for the backend have a session of their own, also in one object with nothing else in it.
    let (backend, jwk) = another_key();
    place.write("backend.jwk", &jwk);
    let both = [
        "--key",
        "backend.jwk",
        "--column",
        "note",
        "--session",
        "meta.s",
        "--enclave-session",
        "meta.e",
    ];
    let record = "{\"card\":\"canary-4111\",\"note\":\"canary-4111\",\"meta\":{ }}\n";
    let ran = run(&seal("good.json", &[&pinned[..], &both[..]].concat()), record);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(!ran.out.contains(CANARY), "{}", ran.out);
    let sealed: Value = serde_json::from_str(&ran.out).unwrap();
    assert!(backend.open(sealed["meta"]["s"].as_str().unwrap()).is_ok());
    assert_eq!(
        owner.open(sealed["meta"]["e"].as_str().unwrap(), &text(&sealed, "card")),
        "\"canary-4111\""
    );
    let own = run(&seal("good.json", &[&pinned[..], &["--per-value"]].concat()), RECORD);
    let sealed: Value = serde_json::from_str(&own.out).unwrap();
    assert_eq!(
        owner.enclave.open(&text(&sealed, "card")).unwrap().expose(),
        b"\"canary-4111\""
    );

    let refused = |args: &[String], code: i32, said: &str| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        expect(&place, &args, RECORD, code, said);
    };
    // Whatever is served in its place.
    for (what, document) in owner.hostile("payments", "card") {
        place.write("served.json", document);
        let args = seal("served.json", &pinned);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let before = place.files();
        let ran = place.run_with_input(&args, RECORD.as_bytes());
        assert_eq!((ran.code, ran.out.as_str()), (78, ""), "{what}: {}", ran.err);
        assert!(
            ran.err.contains("help: ") && !ran.err.contains(CANARY),
            "{what}: {}",
            ran.err
        );
        assert_eq!(place.files(), before, "{what}");
    }
    // An older document, once a newer one has been seen here; also where the host holds the newer back.
    place.write("newer.jws", owner.signed_ago("payments", &["card"], Duration::ZERO));
    assert_eq!(run(&seal("newer.jws", &pinned), RECORD).code, 0);
    refused(&seal("good.json", &pinned), 78, "newer ones");
    // A bare key is not enough, whichever way it is given, and an enclave's column gets no other.
    let bare = [
        "client",
        "seal",
        "--dataset",
        "payments",
        "--key",
        "backend.jwk",
        "--enclave-column",
        "card",
    ];
    refused(&bare.map(str::to_owned), 64, "a bare key is not enough");
    refused(&seal("backend.jwk", &pinned), 78, "nobody vouches for");
    let card = ["--key", "backend.jwk", "--column", "card"];
    refused(
        &seal(
            "newer.jws",
            &[&["--owner", &thumbprint, "--enclave-column", "note"], &card[..]].concat(),
        ),
        64,
        "one of the enclave's",
    );
    refused(
        &seal("newer.jws", &["--owner", &thumbprint, "--enclave-column", "note"]),
        78,
        "not for it",
    );
    refused(
        &seal("newer.jws", &["--enclave-column", "card"]),
        64,
        "nobody whose word",
    );
    refused(&seal("newer.jws", &["--owner", &thumbprint]), 64, "--column");
    refused(
        &seal("newer.jws", &[&pinned[..], &["--column", "note"]].concat()),
        64,
        "--column without --key",
    );
    refused(
        &seal("newer.jws", &[&pinned[..], &["--key", "backend.jwk"]].concat()),
        64,
        "no column",
    );
    let shared = [
        "--key",
        "backend.jwk",
        "--column",
        "note",
        "--session",
        "s",
        "--enclave-session",
        "s",
    ];
    refused(
        &seal("newer.jws", &[&pinned[..], &shared[..]].concat()),
        64,
        "both sessions",
    );
    let elsewhere = format!("refunds={thumbprint}");
    refused(
        &seal("newer.jws", &["--owner", &elsewhere, "--enclave-column", "card"]),
        78,
        "no pinned owner",
    );
}

#[cfg(feature = "dev-software-nsm")]
#[test]
fn the_command_believes_an_image_that_is_pinned_and_attests_and_says_what_vouches_for_it() {
    use sealflow::policy::enclave_keys::attested::{Tier, user_data, write};
    use sealflow_enclave_protocol::attestation::Document;
    use sealflow_enclave_protocol::attestation::build::DevRoot;

    let (place, enclave) = (Place::new(), Owner::new());
    let now = ago(Duration::ZERO).0;
    let root = DevRoot::generate(now).unwrap();
    let issuer = root.issuer(now).unwrap();
    let key = enclave.enclave.public().unwrap();
    let keys = EnclaveKeys::new("payments", vec!["card".to_owned()], vec![key]).unwrap();
    let attested = |since: Duration, committed: &EnclaveKeys| {
        let evidence = Document {
            module_id: "i-test-enc".to_owned(),
            timestamp_ms: ago(since).0,
            pcrs: [(0, vec![0xA1; 48]), (1, vec![0xB2; 48])].into_iter().collect(),
            public_key: None,
            user_data: Some(user_data(committed).unwrap()),
            nonce: None,
            tier: Tier::DevSoftwareNsm,
        };
        write(&keys, &issuer.document(&evidence).unwrap()).unwrap()
    };
    place.write("root.der", root.certificate());
    place.write(
        "good.json",
        format!("{{\"documents\":[{}]}}", attested(Duration::ZERO, &keys)),
    );
    let (image, kernel, other) = ("a1".repeat(48), "b2".repeat(48), "c3".repeat(48));
    let base = [
        "client",
        "seal",
        "--dataset",
        "payments",
        "--enclave-column",
        "card",
        "--enclave-keys",
    ];
    let dev = ["--dev-root", "root.der"];
    let seal = |file: &'static str, more: &[&str]| -> Vec<String> {
        [&base[..], &[file], more]
            .concat()
            .iter()
            .map(|text| (*text).to_owned())
            .collect()
    };
    let pin = |set: &str| format!("--measurement={set}");
    let both = pin(&format!("image={image},kernel={kernel}"));
    for pins in [
        vec![pin(&format!("image={image}"))],
        vec![both.clone()],
        vec![pin(&format!("image={other}")), both],
    ] {
        let pins: Vec<&str> = pins.iter().map(String::as_str).collect();
        let args = seal("good.json", &[&pins[..], &dev].concat());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let ran = place.run_with_input(&args, RECORD.as_bytes());
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert!(ran.err.contains(&format!("{image} (dev-software-nsm)")), "{}", ran.err);
        let sealed: Value = serde_json::from_str(&ran.out).unwrap();
        let session = sealed["enclave_session"].as_str().unwrap();
        assert_eq!(
            enclave.open(session, sealed["card"].as_str().unwrap()),
            "\"canary-4111\""
        );
    }
    let refused = |args: &[String], code: i32, said: &str| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        expect(&place, &args, RECORD, code, said);
    };
    let with = |file, set: &str| seal(file, &[&[&*pin(set)][..], &dev].concat());
    refused(&with("good.json", &format!("image={other}")), 78, "is not allowed");
    refused(
        &with("good.json", &format!("image={image},kernel={other}")),
        78,
        "is not allowed",
    );
    // A root for development is believed only by who names it.
    refused(
        &seal("good.json", &[&pin(&format!("image={image}"))]),
        78,
        "root certificate that is not trusted",
    );
    let elsewhere = EnclaveKeys::new("refunds", vec!["card".to_owned()], keys.keys().to_vec()).unwrap();
    place.write("moved.json", attested(Duration::ZERO, &elsewhere));
    refused(
        &with("moved.json", &format!("image={image}")),
        78,
        "commits to other keys",
    );
    place.write("signed.jws", enclave.signed_ago("payments", &["card"], Duration::ZERO));
    refused(&with("signed.jws", &format!("image={image}")), 78, "another kind");
    for bad in [
        "image=00".to_owned(),
        format!("image={}", "0".repeat(96)),
        format!("kernel={kernel}"),
        format!("pcr0={image}"),
    ] {
        refused(&with("good.json", &bad), 64, "--measurement");
    }
    let owner = format!("--owner={}", enclave.thumbprint());
    refused(
        &seal("good.json", &[&owner, &pin(&format!("image={image}"))]),
        64,
        "cannot be used with",
    );
}

#[test]
fn a_sample_believes_the_owner_and_nobody_who_serves_what_they_like() {
    for (test, sample) in [
        ("enclave keys in Python", Sample::python as fn(&str) -> Option<Sample>),
        ("enclave keys in Node", Sample::node),
    ] {
        let Some(sample) = sample(test) else { continue };
        let owner = Owner::new();
        // A thumbprint may begin with a hyphen.
        let pin = format!("--owner={}", owner.thumbprint());
        let args = [
            "--enclave-keys",
            "served.json",
            &pin,
            "--dataset",
            "payments",
            "--field",
            "card",
        ];
        let good = owner.signed_ago("payments", &["card"], Duration::ZERO);
        let older = owner.signed_ago("payments", &["card"], HOUR);
        for document in [good.clone(), format!("{{\"documents\":[\"{older}\",\"{good}\"]}}")] {
            sample.write("served.json", &document);
            let out = sample.seal_with(&args, RECORD).unwrap();
            let sealed: Value = serde_json::from_str(&out).unwrap();
            let opened = owner.open(sealed["session"].as_str().unwrap(), sealed["card"].as_str().unwrap());
            assert_eq!(opened, "\"canary-4111\"");
        }
        for (what, document) in owner.hostile("payments", "card") {
            sample.write("served.json", &document);
            let said = sample.seal_with(&args, RECORD).expect_err(what);
            assert!(!said.contains(CANARY), "{what}: {said}");
        }
    }
}

#[test]
fn a_browser_believes_the_owner_and_nobody_who_serves_what_they_like() {
    let Some(mut browser) = Browser::new("enclave keys in a browser") else {
        return;
    };
    let owner = Owner::new();
    let mut seal = |documents: &str, seen: u64| {
        let argument = json!({
            "documents": documents, "owners": [owner.thumbprint()], "dataset": "payments", "label": "card", "value": CANARY,
            "seen": seen,
        });
        browser.call("sealForEnclave", &argument)
    };
    let (good, older) = (
        owner.signed_ago("payments", &["card"], Duration::ZERO),
        owner.signed_ago("payments", &["card"], HOUR),
    );
    for document in [good.clone(), format!("{{\"documents\":[\"{older}\",\"{good}\"]}}")] {
        let sealed = seal(&document, 0).unwrap();
        let sealed: Value = serde_json::from_str(sealed.as_str().unwrap()).unwrap();
        let opened = owner.open(sealed["session"].as_str().unwrap(), sealed["value"].as_str().unwrap());
        assert_eq!(opened, "\"canary-4111\"");
    }
    for (what, document) in owner.hostile("payments", "card") {
        seal(&document, 0).expect_err(what);
    }
    let seen = ago(HOUR / 2).0 / 1_000;
    assert!(seal(&good, seen).is_ok());
    assert!(seal(&older, seen).unwrap_err().contains("newer keys"));
    let trick = json!({
        "key": another_key().1, "documents": good, "owners": [owner.thumbprint()], "dataset": "payments", "label": "card",
    });
    assert_eq!(browser.call("trickSession", &trick).unwrap(), json!(false));
}

#[test]
fn the_owner_signs_the_keys_of_the_policys_enclave_and_publishes_them_for_whoever_serves() {
    let place = Place::new();
    let key = |spec: &str| place.ok(&["kms", "create-key", "--key-spec", spec]).trim().to_owned();
    let (data, web) = (key("SYMMETRIC_DEFAULT"), key("RSA_2048"));
    let kms = LocalKms::serve(&place);
    let thumbprint = place.ok(&["policy", "keygen"]).trim().to_owned();
    place.ok(&["policy", "keygen", "-o", "other.key"]);
    let policy = |enclave: &str, columns: &str| {
        format!(
            "dataset: payments\nversion: 1\nlease: required\nkeys: {{ default: {{ arn: \"{data}\" }} }}\nacls: {{ all: {{}} }}\n{enclave}columns:\n{columns}"
        )
    };
    let image = "a1".repeat(48);
    let enclave = format!(
        "enclave: {{ keys: {{ web: {{ arn: \"{web}\" }} }}, measurements: {{ v1: {{ image: \"{image}\" }} }} }}\n"
    );
    let columns = "  - { path: card, key: default, acl: all, flow: enclave }\n  - { path: \"items[*].pan\", key: default, acl: all, flow: enclave }\n";
    place.write("policy.yaml", policy(&enclave, columns));
    let publish = [
        "policy",
        "publish",
        "policy.yaml",
        "--key",
        "owner.key",
        "--lease",
        "1h",
        "--catalogue",
        "catalogue",
    ];
    place.ok(&publish);

    let with = [
        "--catalogue",
        "catalogue",
        "--owner",
        &thumbprint,
        "--kms-endpoint",
        &kms.endpoint,
    ];
    let sign = |more: &[&'static str]| [&["keys", "enclave", "payments"], more, &with[..]].concat();
    let signed = place.ok(&sign(&["--key", "owner.key"]));
    let ran = place.run(&sign(&["--key", "owner.key", "--out", "keys.jws", "--publish"]));
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{}", ran.err);
    assert!(
        ran.err.contains("as number 0") && ran.err.contains("for card, items[*].pan, until"),
        "{}",
        ran.err
    );
    let stored = place.read("catalogue/enclave-keys/payments/0000000000");
    assert_eq!(stored, place.read("keys.jws").trim_end());
    place.write("printed.jws", &signed);
    for document in ["catalogue/enclave-keys/payments/0000000000", "printed.jws"] {
        let seal = [
            "client",
            "seal",
            "--dataset",
            "payments",
            "--enclave-keys",
            document,
            "--owner",
            &thumbprint,
            "--enclave-column",
            "card",
            "--optional-enclave-column",
            "items[*].pan",
        ];
        let mut command = place.command(&seal);
        // What one of them was seen does not count for the other.
        command
            .env("SEALFLOW_STATE", "none")
            .stdin(std::process::Stdio::piped());
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), RECORD.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && out.contains("\"card\":\"eyJ"),
            "{document}: {out}"
        );
    }

    let refused = |more: &[&'static str], code: i32, said: &str| {
        let ran = place.run(&sign(more));
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{more:?}: {}", ran.err);
        assert!(
            ran.err.contains(said) && ran.err.contains("help: "),
            "{more:?}: {}",
            ran.err
        );
    };
    refused(&["--key", "other.key", "--publish"], 78, "no client would believe it");
    refused(&["--key", "owner.key", "--for", "401d"], 64, "400 days");
    refused(&["--key", "owner.key", "--out", "keys.jws"], 74, "keys.jws");
    assert!(!place.path("catalogue/enclave-keys/payments/0000000001").exists());
    let direct = policy("", "  - { path: card, key: default, acl: all }\n").replace("version: 1", "version: 2");
    place.write("policy.yaml", direct);
    place.ok(&publish);
    refused(&["--key", "owner.key"], 78, "no keys of an enclave");
}
