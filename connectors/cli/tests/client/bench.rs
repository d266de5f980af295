//! A dataset with columns that clients seal: signed, published, its keys in a local KMS.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealflow::flow::hybrid::AnswerKey;
use sealflow_client::{PrivateKey, RsaBits, RsaPublicJwk};
use serde_json::Value;

use crate::common::{LocalKms, Place, Ran};

/// What must be seen nowhere but where it went in and came out.
pub(crate) const CANARY: &str = "canary-4111";
const DIGITS: &str = "12345678901234567890123.10";

/// Records of every kind of JSON value.
pub(crate) const CLEAR: &str = concat!(
    r#"{"order":"o-1","card":"canary-4111 \"\\\/\b\n\u0001\u00e9 💳 \ud83d\ude00","amount":12345678901234567890123.10,"note":{"a":[1,{"b":"canary-4111"}],"":-0.0},"clear":1}"#,
    "\n",
    r#"{"order":7,"card":["canary-4111",false,1.50],"amount":true,"note":null,"clear":"x"}"#,
    "\n",
    r#"{"order":true,"card":"","amount":9007199254740993,"note":"canary-4111"}"#,
    "\n",
);
/// The columns of those that clients seal.
pub(crate) const COLUMNS: [&str; 3] = ["card", "amount", "note"];

/// Records with lists whose items belong to their rows.
pub(crate) const ROWS: &str = concat!(
    r#"{"order":"o-1 é\"","items":[{"secret":"canary-4111"},{"secret":null},{"secret":9007199254740993}]}"#,
    "\n",
    r#"{"order":7,"items":[{"secret":{"n":"canary-4111"}},{"x":1}]}"#,
    "\n",
    r#"{"order":true,"items":[{"secret":[]}]}"#,
    "\n",
);
/// Their column, and the field that names the row.
pub(crate) const BOUND: &str = "items[*].secret";
pub(crate) const ROW: &str = "order";

/// A column whose values say which client sealed them, and count once.
pub(crate) const PROVED: &str = "vote";

pub(crate) struct Bench {
    pub(crate) place: Place,
    pub(crate) kms: LocalKms,
    pub(crate) owner: String,
    /// What `sealflow keys public` prints: the current key, and the one before it.
    pub(crate) jwks: String,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let place = Place::new();
        let key = |spec: &str| {
            let arn = place.ok(&["kms", "create-key", "--key-spec", spec]);
            arn.trim().to_owned()
        };
        let (data, web, before) = (key("SYMMETRIC_DEFAULT"), key("RSA_3072"), key("RSA_2048"));
        let hmac = key("HMAC_256");
        let kms = LocalKms::serve(&place);
        let owner = place.ok(&["policy", "keygen"]).trim().to_owned();
        let mut bench = Self {
            place,
            kms,
            owner,
            jwks: String::new(),
        };
        let columns = COLUMNS.map(|path| format!("  - {{ path: {path}, key: default, acl: all, flow: hybrid }}\n"));
        bench.publish(&format!(
            "dataset: payments\nversion: 1\nkeys: {{ default: {{ arn: \"{data}\" }} }}\n\
             client:\n  keys: {{ web: {{ arn: \"{web}\", previous: [\"{before}\"] }} }}\n  session: session\n\
             \x20 mac: {{ arn: \"{hmac}\", revoked: [gone] }}\n\
             acls: {{ all: {{}} }}\ncolumns:\n{}\
             \x20 - {{ path: \"{BOUND}\", key: default, acl: all, flow: hybrid, bind_row: {ROW} }}\n\
             \x20 - {{ path: {PROVED}, key: default, acl: all, flow: hybrid, client_sealed: once }}\n\
             dead_letters: {{ key: default, acl: all }}\n",
            columns.concat()
        ));
        bench.jwks = bench.ok(&["keys", "public", "payments"]);
        bench
    }

    /// Signs a policy and puts it into the catalogue.
    pub(crate) fn publish(&self, yaml: &str) {
        self.place.write("policy.yaml", yaml);
        let args = [
            "policy",
            "publish",
            "policy.yaml",
            "--key",
            "owner.key",
            "--catalogue",
            "catalogue",
        ];
        self.place.ok(&args);
    }

    /// Runs a command that needs the policy or KMS.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
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

    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    /// The HMAC key of a client, as an operator gets it.
    pub(crate) fn mac(&self, client: &str) -> String {
        let file = format!("{client}.jwk");
        self.ok(&["keys", "client", client, "--dataset", "payments", "--out", &file]);
        self.place.read(&file)
    }

    /// What clients sealed, sealed again by the backend and opened by a reader.
    pub(crate) fn through(&self, from_client: &str) -> String {
        self.place.write("from-client.ndjson", from_client);
        let with = ["--dataset", "payments", "--force"];
        self.ok(&[&["seal", "from-client.ndjson", "-o", "sealed.ndjson"], &with[..]].concat());
        let sealed = self.place.read("sealed.ndjson");
        assert!(sealed.contains("sf1.") && !sealed.contains("\"eyJ"), "{sealed}");
        self.ok(&[&["open", "sealed.ndjson", "-o", "opened.ndjson"], &with[..]].concat());
        self.place.read("opened.ndjson")
    }

    /// The codes of the dead letters that records become, and how many records do not become one.
    pub(crate) fn refused(&self, from_client: &str) -> (Vec<String>, usize) {
        self.place.write("from-client.ndjson", from_client);
        let args = [
            "seal",
            "from-client.ndjson",
            "-o",
            "sealed.ndjson",
            "--force",
            "--dead-letters",
            "dead.ndjson",
            "--dataset",
            "payments",
        ];
        let ran = self.run(&args);
        assert!(ran.code == 0 && !ran.err.contains(CANARY), "{}", ran.err);
        let code = |line: &str| {
            let letter: Value = serde_json::from_str(line).unwrap();
            letter["code"].as_str().unwrap().to_owned()
        };
        let dead = self.place.read("dead.ndjson");
        (
            dead.lines().map(code).collect(),
            self.place.read("sealed.ndjson").lines().count(),
        )
    }

    /// Nothing that the folder holds shows the canary, but the files of these names.
    pub(crate) fn expect_no_canary(&self, except: &[&str]) {
        let mut looked_at = 0;
        let mut folders = vec![self.place.path("")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                // The library's own files are links.
                if path.is_symlink() || except.contains(&name) {
                    continue;
                } else if path.is_dir() {
                    folders.push(path);
                } else {
                    looked_at += 1;
                    assert!(!holds_canary(&path), "{}", path.display());
                }
            }
        }
        assert!(looked_at > 5, "{looked_at}");
    }
}

fn holds_canary(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap();
    bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes())
}

/// The records are those of `clear`: each value, and the digits of numbers that float64 does not hold.
pub(crate) fn expect_same(opened: &str, clear: &str) {
    assert_eq!(opened.lines().count(), clear.lines().count());
    for (opened, clear) in opened.lines().zip(clear.lines()) {
        let parsed = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
        assert_eq!(parsed(opened), parsed(clear));
        for digits in [DIGITS, "9007199254740993", "-0.0", "1.50"] {
            assert_eq!(opened.contains(digits), clear.contains(digits), "{opened}");
        }
    }
}

/// An RSA key that no policy names.
pub(crate) fn another_key() -> (PrivateKey, String) {
    let key = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    let jwk = key.public().unwrap().to_published_json();
    (key, jwk)
}

/// The JWK of a private key, whole.
pub(crate) fn private_key() -> String {
    let key = openssl::rsa::Rsa::generate(2_048).unwrap();
    let parts = [
        ("n", key.n()),
        ("e", key.e()),
        ("d", key.d()),
        ("p", key.p().unwrap()),
        ("q", key.q().unwrap()),
        ("dp", key.dmp1().unwrap()),
        ("dq", key.dmq1().unwrap()),
        ("qi", key.iqmp().unwrap()),
    ];
    let mut jwk = serde_json::json!({ "kty": "RSA" });
    for (name, part) in parts {
        jwk[name] = URL_SAFE_NO_PAD.encode(part.to_vec()).into();
    }
    jwk.to_string()
}

/// A JWK of 1024 bits.
pub(crate) fn small_key() -> String {
    let mut modulus = [0xAB; 128];
    modulus[127] = 0xAD;
    format!(
        r#"{{"kty":"RSA","e":"AQAB","n":"{}"}}"#,
        URL_SAFE_NO_PAD.encode(modulus)
    )
}

/// An answer, as the backend seals it to a client's key.
pub(crate) fn answer(to: &str, json: &str) -> String {
    answer_of(to, "card", json)
}

/// An answer of another column.
pub(crate) fn answer_of(to: &str, label: &str, json: &str) -> String {
    let key = RsaPublicJwk::from_json(to.as_bytes()).unwrap();
    AnswerKey::new(&key, "payments")
        .unwrap()
        .seal(label, json.as_bytes())
        .unwrap()
}
