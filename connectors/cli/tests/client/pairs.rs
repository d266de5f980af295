//! Pairs that clients seal to: made by KMS, named in a policy, opened without a request for each session.

use sealflow_client::RsaPublicJwk;
use serde_json::Value;

use crate::bench::CANARY;
use crate::common::{LocalKms, Place};

struct Bench {
    place: Place,
    kms: LocalKms,
    data: String,
    wrapping: String,
    rsa: String,
    owner: String,
}

impl Bench {
    fn new() -> Self {
        let place = Place::new();
        let key = |spec: &str| place.ok(&["kms", "create-key", "--key-spec", spec]).trim().to_owned();
        let (data, wrapping, rsa) = (key("SYMMETRIC_DEFAULT"), key("SYMMETRIC_DEFAULT"), key("RSA_2048"));
        let kms = LocalKms::serve(&place);
        let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
        Self {
            place,
            kms,
            data,
            wrapping,
            rsa,
            owner,
        }
    }

    /// What `keys pair` prints.
    fn pair(&self, dataset: &str) -> String {
        let args = [
            "keys",
            "pair",
            "--key",
            &self.wrapping,
            "--dataset",
            dataset,
            "--bits",
            "2048",
            "--kms-endpoint",
        ];
        self.place.ok(&[&args[..], &[&self.kms.endpoint]].concat())
    }

    fn publish(&self, version: u32, keys: &str) -> (i32, String) {
        let yaml = format!(
            "dataset: payments\nversion: {version}\nkeys: {{ default: {{ arn: \"{}\" }} }}\nclient:\n  session: session\n  keys:\n{}\n\
             acls: {{ all: {{}} }}\ncolumns: [{{ path: card, key: default, acl: all, flow: hybrid }}]\n\
             dead_letters: {{ key: default, acl: all }}\n",
            self.data,
            keys.lines().map(|line| format!("    {line}\n")).collect::<String>()
        );
        self.place.write("policy.yaml", yaml);
        let ran = self.place.run(&[
            "policy",
            "publish",
            "policy.yaml",
            "--key",
            "owner.key",
            "--catalogue",
            "catalogue",
        ]);
        (ran.code, ran.err)
    }

    fn ran(&self, args: &[&str]) -> crate::common::Ran {
        let more = [
            "--catalogue",
            "catalogue",
            "--owner",
            &self.owner,
            "--kms-endpoint",
            &self.kms.endpoint,
        ];
        self.place.run(&[args, &more[..]].concat())
    }

    fn ok(&self, args: &[&str]) -> String {
        let ran = self.ran(args);
        assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    /// A record that a client seals to a key of the published set.
    fn sealed(&self, key: &Value) -> String {
        self.place.write("backend.jwk", key.to_string());
        let args = [
            "client",
            "seal",
            "--key",
            "backend.jwk",
            "--dataset",
            "payments",
            "--column",
            "card",
        ];
        let record = format!("{{\"card\":\"{CANARY}\"}}\n");
        let ran = self.place.run_with_input(&args, record.as_bytes());
        assert_eq!(ran.code, 0, "{}", ran.err);
        ran.out
    }

    fn published(&self) -> Vec<Value> {
        let set: Value = serde_json::from_str(&self.ok(&["keys", "public", "payments"])).unwrap();
        set["keys"].as_array().unwrap().clone()
    }
}

/// Its `pair:` alone, as it goes under `previous`.
fn as_previous(pair: &str) -> String {
    let member = |name: &str| {
        let line = pair
            .lines()
            .find(|line| line.trim().starts_with(&format!("{name}:")))
            .unwrap();
        line.trim().to_owned()
    };
    format!("{{ {}, {}, {} }}", member("arn"), member("public"), member("wrapped"))
}

#[test]
fn a_pair_that_kms_made_goes_into_a_policy_and_opens_what_clients_seal_to_it() {
    let bench = Bench::new();
    let (first, second) = (bench.pair("payments"), bench.pair("payments"));
    assert_ne!(first, second);
    assert_eq!(bench.publish(1, &first).0, 0);
    let keys = bench.published();
    assert_eq!(keys.len(), 1);
    let jwk = RsaPublicJwk::from_json(keys[0].to_string().as_bytes()).unwrap();
    assert_eq!(
        (jwk.bits(), keys[0]["kid"].as_str()),
        (2_048, Some(jwk.thumbprint().to_string().as_str()))
    );
    let old = bench.sealed(&keys[0]);

    // The next pair, with the one before and an RSA key in KMS as previous.
    let rotated = format!(
        "{}\n  previous: [\"{}\", {}]",
        second.trim_end(),
        bench.rsa,
        as_previous(&first)
    );
    let (code, said) = bench.publish(2, &rotated);
    assert_eq!(code, 0, "{said}");
    let keys = bench.published();
    assert_eq!(keys.len(), 3);
    assert_eq!(keys[2]["kid"], jwk.thumbprint().to_string());
    let from_clients: String = keys.iter().map(|key| bench.sealed(key)).chain([old]).collect();
    assert!(!from_clients.contains(CANARY));
    bench.place.write("from-client.ndjson", &from_clients);
    bench.ok(&[
        "seal",
        "from-client.ndjson",
        "-o",
        "sealed.ndjson",
        "--dataset",
        "payments",
    ]);
    let sealed = bench.place.read("sealed.ndjson");
    assert!(
        sealed.matches("sf1.").count() == 4 && !sealed.contains(CANARY),
        "{sealed}"
    );
    bench.ok(&["open", "sealed.ndjson", "-o", "opened.ndjson", "--dataset", "payments"]);
    assert_eq!(bench.place.read("opened.ndjson").matches(CANARY).count(), 4);
    let shown = bench.place.ok(&[
        "policy",
        "show",
        "payments",
        "--catalogue",
        "catalogue",
        "--owner",
        &bench.owner,
    ]);
    assert!(
        shown.contains(&format!("seal to web: a pair under {}", bench.wrapping)),
        "{shown}"
    );
}

#[test]
fn a_pair_of_another_dataset_opens_nothing_and_one_that_is_damaged_is_not_published() {
    let bench = Bench::new();
    let pair = bench.pair("refunds");
    assert_eq!(bench.publish(1, &pair).0, 0);
    let record = bench.sealed(&bench.published()[0]);
    bench.place.write("from-client.ndjson", &record);
    let ran = bench.ran(&[
        "seal",
        "from-client.ndjson",
        "-o",
        "sealed.ndjson",
        "--dataset",
        "payments",
    ]);
    assert_eq!(ran.code, 77, "{}", ran.err);
    assert!(
        ran.err.contains(&bench.wrapping) && !ran.err.contains(CANARY),
        "{}",
        ran.err
    );
    assert!(!bench.place.path("sealed.ndjson").exists());

    let (code, said) = bench.publish(2, &pair.replacen("MII", "MIJ", 1));
    assert!(
        code == 78 && said.contains("client.keys.web.pair.public") && said.contains("sealflow keys pair"),
        "{said}"
    );
    let (code, said) = bench.publish(2, &pair.replace(&bench.wrapping, &bench.data));
    assert!(code == 78 && said.contains("used for nothing else"), "{said}");
    for (args, said) in [
        (["--key", "alias/pairs", "--dataset", "payments"], "--key"),
        (["--key", bench.wrapping.as_str(), "--dataset", "pay ments"], "dataset"),
    ] {
        let ran = bench.place.run(&[&["keys", "pair"], &args[..]].concat());
        assert!(ran.code == 64 && ran.err.contains(said), "{}", ran.err);
    }
    let endpoint = bench.kms.endpoint.as_str();
    let of_rsa = [
        "keys",
        "pair",
        "--key",
        &bench.rsa,
        "--dataset",
        "payments",
        "--kms-endpoint",
        endpoint,
    ];
    let ran = bench.place.run(&of_rsa);
    assert!(
        ran.code != 0 && ran.out.is_empty() && ran.err.contains(&bench.rsa),
        "{}",
        ran.err
    );
}
