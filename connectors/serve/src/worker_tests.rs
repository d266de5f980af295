//! What goes to the worker of a request, and where its answers stand.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sealflow::acl::Identity;
use sealflow::audit::{Event, Verdict};
use sealflow::clock::{ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::jose::PrivateJwk;
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{DomainKeys, OpeningKeys, SealingKeys};
use sealflow::pipeline::{
    ColumnOutcome, Format, Headers, KeysPlacement, Position, ReadError, Record, SealTransform, Timestamp,
    Transform as _, WorkerDecision,
};
use sealflow::policy::{FixedPolicies, VerifiedPolicy};
use sealflow::seal::UsageLimits;
use sealflow_client::{Answers, PrivateKey, RsaBits};
use serde_json::{Value, json};

use super::*;
use crate::api::{Most, parse};
use crate::open::{Opening, Seen, Who};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const AGE: Duration = Duration::from_secs(300);
const NOTE: &str = "canary-note-1c";
const CARD: &str = "sf1.AAAA";
const NONCE: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
const MOST: Most = Most {
    records: 10,
    values: 10,
};
/// RFC 7638, section 3.1.
const MODULUS: &str = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";

fn policy() -> String {
    let arn = |n: u32| {
        format!("arn:aws:kms:eu-central-1:111122223333:key/{n}{n}{n}{n}{n}{n}{n}{n}-1111-1111-1111-111111111111")
    };
    format!(
        "dataset: payments\nversion: 3\nlease: required\nkeys:\n  own: {{ arn: \"{}\" }}\n  regulated: {{ arn: \"{}\" }}\nenclave:\n  keys: {{ web: {{ arn: \"{}\" }} }}\n  measurements: {{ v1: {{ image: \"{}\" }} }}\nacls: {{ a: {{ allow: [\"arn:aws:iam::111122223333:role/support\"] }} }}\ncolumns:\n  - {{ path: card, key: regulated, acl: a, flow: enclave }}\n  - {{ path: note, key: own, acl: a }}\nprevious: {{ labels: {{ pan: card }} }}\ndead_letters: {{ recipient: {{ kty: RSA, n: {MODULUS}, e: AQAB }} }}\n",
        arn(1),
        arn(2),
        arn(3),
        "ab".repeat(48)
    )
}

/// A worker that keeps what it is asked, and answers what it is told to.
#[derive(Debug)]
struct Canned {
    signer: PrivateJwk,
    version: u64,
    shown: Vec<Option<&'static str>>,
    asked: Mutex<Vec<String>>,
}

#[async_trait]
impl AsksForCallers for Canned {
    async fn ask(&self, question: &WorkerQuestion<'_>, caller: ForCaller<'_>) -> Result<Vouched, EnclaveError> {
        assert!(matches!(caller.proof, Presented::Token("a.b.c")), "{caller:?}");
        let mut asked = self.asked.lock().unwrap();
        match &question.what {
            ForWorker::Values(values) => asked.extend(
                values
                    .iter()
                    .map(|value| format!("{}={}", value.label.unwrap_or_default(), value.text)),
            ),
            ForWorker::Records(records) => {
                asked.extend(records.iter().map(|json| String::from_utf8(json.to_vec()).unwrap()));
            }
        }
        let decision = WorkerDecision {
            label: "card".to_owned(),
            outcome: ColumnOutcome::Opened,
            because: "a".to_owned(),
            count: 1,
        };
        let answer = WorkerAnswer {
            policy_version: self.version,
            shown: self
                .shown
                .iter()
                .map(|text| text.map(|text| Bytes::from_static(text.as_bytes())))
                .collect(),
            decisions: vec![decision],
            proof: "p.r.f".to_owned(),
            signer: self.signer.thumbprint(),
        };
        Ok(Vouched {
            answer,
            evidence: b"evidence".to_vec(),
        })
    }

    fn is_ready(&self) -> bool {
        true
    }
}

struct Bench {
    opening: Opening,
    worker: Arc<Canned>,
    reader: PrivateKey,
    /// A sealed note.
    note: String,
}

impl Bench {
    async fn new(version: u64, shown: &[Option<&'static str>]) -> Self {
        let kms = Arc::new(MemoryKms::new());
        let catalogue = Arc::new(MemoryCatalogue::new());
        let clock = Arc::new(ManualClock::at(NOW));
        let policy = Arc::new(VerifiedPolicy::unsigned_for_development(policy().as_bytes()).unwrap());
        let policies = Arc::new(FixedPolicies::new(vec![policy.clone()]));
        let domains = DomainKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), AGE);
        let keys = OpeningKeys::new(kms.clone(), catalogue.clone(), policies.clone(), clock.clone(), AGE, 10);
        let sealer = DirectSealer {
            keys: SealingKeys::new(kms, catalogue, clock, UsageLimits::STANDARD),
            domains: domains.clone(),
        };
        let seal = SealTransform::new(policy, Format::Json, KeysPlacement::Catalogue, sealer).unwrap();
        let record = Record {
            position: Position {
                topic: "payments".into(),
                partition: 0,
                offset: 0,
            },
            timestamp: Timestamp::None,
            key: None,
            value: Some(Bytes::from(json!({ "note": NOTE }).to_string())),
            headers: Headers::new(),
        };
        let sealed = seal.apply(&[record]).await.unwrap().remove(0).record.value.unwrap();
        let sealed: Value = serde_json::from_slice(&sealed).unwrap();
        let worker = Arc::new(Canned {
            signer: PrivateJwk::generate().unwrap(),
            version,
            shown: shown.to_vec(),
            asked: Mutex::default(),
        });
        Self {
            opening: Opening::new(policies, keys, domains).with_worker(Some(worker.clone())),
            worker,
            reader: PrivateKey::generate(RsaBits::Rsa2048).unwrap(),
            note: sealed["note"].as_str().unwrap().to_owned(),
        }
    }

    /// What support sees of a request of these members, beside the key.
    async fn read(&self, members: &str) -> Result<Seen, NotRead> {
        self.read_with(members, Some(Presented::Token("a.b.c"))).await
    }

    async fn read_with(&self, members: &str, proof: Option<Presented<'_>>) -> Result<Seen, NotRead> {
        let jwk = self.reader.public().unwrap().to_json();
        let body = format!(r#"{{"dataset":"payments","seal_to":{jwk},{members}}}"#);
        let request = parse(body.as_bytes(), MOST).unwrap();
        let identity = Identity::Role {
            partition: "aws".to_owned(),
            account: "111122223333".to_owned(),
            name: "support".to_owned(),
        };
        let who = Who {
            identity: &identity,
            proof,
        };
        let about = Event::new(NOW, Verdict::Refused, "");
        self.opening.read(&request, who, NOW, &about).await
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.worker.asked.lock().unwrap())
    }

    fn opened(&self, jwe: &Value, label: &str) -> Vec<u8> {
        let answers = Answers::new(&self.reader, "payments");
        answers.text(jwe.as_str().unwrap(), label).unwrap().expose().to_vec()
    }
}

fn body(seen: Seen) -> Value {
    serde_json::from_slice(&seen.into_json().unwrap()).unwrap()
}

#[tokio::test]
async fn values_that_name_a_label_of_the_enclave_go_to_the_worker_and_no_others() {
    let bench = Bench::new(3, &[Some("\"eyJ.one\""), Some("null")]).await;
    let note = &bench.note;
    let members = format!(
        r#""nonce":"{NONCE}","values":[{{"label":"note","value":"{note}"}},{{"label":"card","value":"{CARD}"}},{{"value":"{note}"}},{{"label":"pan","value":"sf1.BBBB"}}]"#
    );
    let seen = bench.read(&members).await.unwrap();
    assert_eq!(bench.asked(), [format!("card={CARD}"), "pan=sf1.BBBB".to_owned()]);
    let places: Vec<_> = seen
        .events
        .iter()
        .map(|event| {
            let place = event.place.clone().unwrap();
            (event.label.clone().unwrap(), place.first, place.last)
        })
        .collect();
    assert_eq!(
        places,
        [
            ("note".to_owned(), Some(0), Some(2)),
            ("card".to_owned(), Some(1), Some(3))
        ]
    );
    let body = body(seen);
    assert_eq!(
        (&body["values"][1], &body["values"][3]),
        (&"eyJ.one".into(), &Value::Null)
    );
    for n in [0, 2] {
        assert_eq!(
            bench.opened(&body["values"][n], "note"),
            format!("\"{NOTE}\"").as_bytes()
        );
    }
    assert_eq!(
        body["enclave"],
        json!({ "indexes": [1, 3], "proof": "p.r.f", "evidence": "ZXZpZGVuY2U=" })
    );
}

#[tokio::test]
async fn of_records_the_worker_signs_what_is_shown_with_the_services_own_columns_in_them() {
    let shown = r#"{"card":"eyJ.of.the.worker","note":"as the worker spells it"}"#;
    let bench = Bench::new(3, &[Some(shown), None]).await;
    let note = &bench.note;
    let deep = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
    let members =
        format!(r#""nonce":"{NONCE}","records":[{{"note":"{note}", "card":"{CARD}"}},{deep},{{"card":"{CARD}"}}]"#);
    let body = body(bench.read(&members).await.unwrap());
    let asked = bench.asked();
    assert_eq!(asked.len(), 2, "what the service withholds nobody is asked about");
    let first: Value = serde_json::from_str(&asked[0]).unwrap();
    assert_eq!(first["card"], CARD);
    assert_eq!(bench.opened(&first["note"], "note"), format!("\"{NOTE}\"").as_bytes());
    assert_eq!(asked[1], format!(r#"{{"card":"{CARD}"}}"#));
    let expected: Value = serde_json::from_str(shown).unwrap();
    assert_eq!(body["records"], json!([expected, null, null]));
    assert_eq!(body["enclave"]["indexes"], json!([0, 2]));
    let withheld = &body["withheld"];
    assert_eq!((&withheld[0]["index"], &withheld[1]["index"]), (&1.into(), &2.into()));
    assert_eq!(withheld[1]["code"], NOT_BY_WORKER);
}

#[tokio::test]
async fn an_answer_of_another_policy_or_to_another_question_is_not_shown() {
    let members = format!(r#""nonce":"{NONCE}","values":[{{"label":"card","value":"{CARD}"}}]"#);
    let other = Bench::new(4, &[Some("\"eyJ.one\"")]).await;
    let error = other.read(&members).await.err().unwrap();
    assert!(
        error.is_retryable() && matches!(error, NotRead::Read(ReadError::Policy(_))),
        "{error:?}"
    );
    for shown in [&[][..], &[Some("\"a\""), Some("\"b\"")]] {
        let more = Bench::new(3, shown).await;
        let error = more.read(&members).await.err().unwrap();
        assert!(
            matches!(error, NotRead::Worker(EnclaveError::BadAnswer { .. })),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn nothing_goes_to_the_worker_without_a_nonce_or_of_a_caller_whose_proof_is_not_at_hand() {
    let bench = Bench::new(3, &[]).await;
    let note = &bench.note;
    let values = format!(r#""values":[{{"label":"card","value":"{CARD}"}},{{"label":"note","value":"{note}"}}]"#);
    let with_nonce = format!(r#""nonce":"{NONCE}",{values}"#);
    let proof = Some(Presented::Token("a.b.c"));
    for (members, proof) in [(&values, proof), (&with_nonce, None)] {
        let body = body(bench.read_with(members, proof).await.unwrap());
        assert!(bench.asked().is_empty());
        assert_eq!((&body["values"][0], body.get("enclave")), (&Value::Null, None));
        assert_eq!(
            bench.opened(&body["values"][1], "note"),
            format!("\"{NOTE}\"").as_bytes()
        );
        let decisions = body["decisions"].as_array().unwrap();
        assert!(
            decisions.iter().any(|decision| decision["code"] == "enclave-only"),
            "{body}"
        );
    }
}
