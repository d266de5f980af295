//! Answers of an enclave, through a reading service that could make up any: asked with a nonce, and believed as the pinned enclave has
//! signed them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sealflow::clock::UnixMillis;
use sealflow::flow::enclave::answer::AnswerClaims;
use sealflow::jose::{JwsType, SelfSigned, Thumbprint};
use sealflow::policy::enclave_keys::attested;
use sealflow::policy::{EnclaveKeysError, Evidence};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::key::{KeyError, PrivateKey};

/// What is asked of an enclave: for whose key, with which nonce. It takes one answer.
pub struct EnclaveQuestion {
    dataset: String,
    seal_to: Thumbprint,
    nonce: [u8; 32],
}

/// What the enclave vouches for in an answer. `Debug` shows none of it.
pub struct EnclaveAnswer {
    evidence: Evidence,
    policy_version: u64,
    shown: BTreeMap<usize, String>,
}

/// Why an answer is not believed to be the enclave's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnclaveAnswerError {
    /// Not the answer of a reading service.
    #[error("not an answer of a reading service")]
    Malformed,
    /// The service did not ask the enclave.
    #[error("the enclave was not asked: nothing in the answer is vouched for")]
    NotVouched,
    /// Signed for another question, or something else than is shown was signed.
    #[error("what is shown is not the enclave's answer to this question")]
    NotItsAnswer,
    /// Nothing proves that the key which signed is the pinned enclave's.
    #[error("the key that signed the answer is not the pinned enclave's: {0}")]
    Evidence(EnclaveKeysError),
}

/// The body of an answer of `POST /v1/open`. What the service says beside it is the service's word.
#[derive(Deserialize)]
struct Body<'a> {
    dataset: String,
    policy_version: u64,
    #[serde(borrow)]
    values: Option<Vec<&'a RawValue>>,
    #[serde(borrow)]
    records: Option<Vec<&'a RawValue>>,
    enclave: Option<Voucher>,
}

#[derive(Deserialize)]
struct Voucher {
    indexes: Vec<usize>,
    proof: String,
    evidence: String,
}

impl EnclaveQuestion {
    /// About values of this dataset, whose answer is sealed to that key. Its public half goes into the request as `seal_to`,
    /// [`nonce`](Self::nonce) beside it.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn new(key: &PrivateKey, dataset: &str) -> Result<Self, KeyError> {
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|_| KeyError::NoRandom)?;
        Ok(Self {
            dataset: dataset.to_owned(),
            seal_to: key.public()?.thumbprint(),
            nonce,
        })
    }

    /// The nonce as the request spells it.
    #[must_use]
    pub fn nonce(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.nonce)
    }

    /// Believes the body of an answer, by the time of this machine.
    ///
    /// # Errors
    /// [`EnclaveAnswerError`]
    pub fn answer(self, body: &[u8], pinned: &attested::Pinned) -> Result<EnclaveAnswer, EnclaveAnswerError> {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        self.answer_at(
            body,
            pinned,
            UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// The same at another time.
    ///
    /// # Errors
    /// [`EnclaveAnswerError`]
    pub fn answer_at(
        self,
        body: &[u8],
        pinned: &attested::Pinned,
        now: UnixMillis,
    ) -> Result<EnclaveAnswer, EnclaveAnswerError> {
        let body: Body<'_> = serde_json::from_slice(body).map_err(|_| EnclaveAnswerError::Malformed)?;
        let voucher = body.enclave.ok_or(EnclaveAnswerError::NotVouched)?;
        let (all, are_records) = match (body.values, body.records) {
            (Some(values), None) => (values, false),
            (None, Some(records)) => (records, true),
            _ => return Err(EnclaveAnswerError::Malformed),
        };
        let mut shown = BTreeMap::new();
        for index in &voucher.indexes {
            let text = all.get(*index).ok_or(EnclaveAnswerError::Malformed)?.get();
            // Ascending: what is signed has an order.
            let is_later = shown.last_key_value().is_none_or(|(last, _)| last < index);
            if !is_later {
                return Err(EnclaveAnswerError::Malformed);
            }
            shown.insert(*index, text.to_owned());
        }
        // A record that is null is one of which nothing is shown.
        let of = |text: &String| !(are_records && text == "null");
        let signed: Vec<Option<&[u8]>> = shown
            .values()
            .map(|text| Some(text.as_bytes()).filter(|_| of(text)))
            .collect();
        let not_its = |_| EnclaveAnswerError::NotItsAnswer;
        let signer = SelfSigned::verify(&voucher.proof, JwsType::EnclaveAnswer).map_err(|_| not_its(()))?;
        let signer = signer.signer();
        let question = (self.dataset.as_str(), self.seal_to, &self.nonce[..]);
        let claims = AnswerClaims::verify(&voucher.proof, signer, question, &signed).map_err(|_| not_its(()))?;
        if claims.policy_version != body.policy_version || body.dataset != self.dataset {
            return Err(EnclaveAnswerError::NotItsAnswer);
        }
        let evidence = STANDARD
            .decode(&voucher.evidence)
            .map_err(|_| EnclaveAnswerError::Malformed)?;
        // Asked for with this very nonce, so that it is no older than the question.
        let pinned = attested::Pinned {
            nonce: Some(self.nonce.to_vec()),
            ..pinned.clone()
        };
        let evidence =
            attested::verify_signer(&evidence, signer, &pinned, now).map_err(EnclaveAnswerError::Evidence)?;
        Ok(EnclaveAnswer {
            evidence,
            policy_version: claims.policy_version,
            shown,
        })
    }
}

impl EnclaveAnswer {
    /// The JSON text of a value or record of the request, as the enclave shows it: a JWE in quotes, to be opened with
    /// [`Answers`](crate::Answers), or what the policy shows instead. `None` for what the enclave was not asked about: that is the
    /// service's word alone.
    ///
    /// In a record the enclave vouches for its own columns; all others it has passed on as the service gave them.
    #[must_use]
    pub fn shown(&self, index: usize) -> Option<&str> {
        self.shown.get(&index).map(String::as_str)
    }

    /// Which enclave it was, and of which kind.
    #[must_use]
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Version of the policy that decided.
    #[must_use]
    pub fn policy_version(&self) -> u64 {
        self.policy_version
    }
}

impl fmt::Debug for EnclaveQuestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnclaveQuestion")
            .field("dataset", &self.dataset)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for EnclaveAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnclaveAnswer")
            .field("evidence", &self.evidence)
            .field("shown", &self.shown.len())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "dev-software-nsm"))]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use sealflow::jose::{PrivateJwk, jws};
    use sealflow_enclave_protocol::attestation::Document;
    use sealflow_enclave_protocol::attestation::build::{DevRoot, Issuer};
    use sealflow_enclave_protocol::message::signer_user_data;
    use serde_json::{Value, json};

    use super::*;
    use crate::RsaBits;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const IMAGE: u8 = 0xA1;

    struct Bench {
        key: PrivateKey,
        worker: PrivateJwk,
        issuer: Issuer,
        pinned: attested::Pinned,
    }

    impl Bench {
        fn new() -> Self {
            let root = DevRoot::generate(NOW.0).unwrap();
            let measurement = attested::Measurement::new(&[IMAGE; 48]).unwrap();
            Self {
                key: PrivateKey::generate(RsaBits::Rsa2048).unwrap(),
                worker: PrivateJwk::generate().unwrap(),
                issuer: root.issuer(NOW.0).unwrap(),
                pinned: attested::Pinned {
                    trust: attested::Trust::with_dev_root(root.certificate()).unwrap(),
                    measurements: vec![attested::Measurements::of_image(measurement)],
                    nonce: None,
                    max_age: attested::DEFAULT_MAX_AGE,
                },
            }
        }

        fn question(&self) -> EnclaveQuestion {
            EnclaveQuestion::new(&self.key, "payments").unwrap()
        }

        fn evidence(&self, image: u8, signer: &PrivateJwk, nonce: &[u8]) -> String {
            let document = Document {
                module_id: "i-test-enc".to_owned(),
                timestamp_ms: NOW.0,
                pcrs: [(0, vec![image; 48])].into_iter().collect(),
                public_key: None,
                user_data: Some(signer_user_data(&signer.thumbprint().to_string())),
                nonce: Some(nonce.to_vec()),
                tier: attested::Tier::DevSoftwareNsm,
            };
            STANDARD.encode(self.issuer.document(&document).unwrap())
        }

        /// The honest answer to a question about four values, of which the enclave was asked for the second and the last.
        fn body(&self, question: &EnclaveQuestion) -> Value {
            let shown: &[Option<&[u8]>] = &[Some(b"\"eyJ.card\""), Some(b"null")];
            json!({
                "dataset": "payments",
                "policy_version": 3,
                "values": ["eyJ.of.the.service", "eyJ.card", 1.5, null],
                "decisions": [],
                "enclave": {
                    "indexes": [1, 3],
                    "proof": self.proof(question, shown, &self.worker),
                    "evidence": self.evidence(IMAGE, &self.worker, &question.nonce),
                },
            })
        }

        fn proof(&self, question: &EnclaveQuestion, shown: &[Option<&[u8]>], signer: &PrivateJwk) -> String {
            let claims = AnswerClaims::of("payments", question.seal_to, &question.nonce, 3, NOW, shown);
            jws::sign(JwsType::EnclaveAnswer, &claims.to_json(), signer).unwrap()
        }

        fn believe(&self, question: EnclaveQuestion, body: &Value) -> Result<EnclaveAnswer, EnclaveAnswerError> {
            question.answer_at(body.to_string().as_bytes(), &self.pinned, NOW)
        }
    }

    #[test]
    fn what_the_pinned_enclave_signed_for_this_question_is_believed_and_nothing_beside_it() {
        let bench = Bench::new();
        let question = bench.question();
        let body = bench.body(&question);
        let answer = bench.believe(question, &body).unwrap();
        assert_eq!(answer.shown(1), Some("\"eyJ.card\""));
        assert_eq!((answer.shown(3), answer.policy_version()), (Some("null"), 3));
        assert_eq!((answer.shown(0), answer.shown(2)), (None, None));
        let (image, tier) = ("a1".repeat(48), "dev-software-nsm");
        assert_eq!(answer.evidence(), &Evidence::Measured { image, tier });
        assert!(!format!("{answer:?}").contains("eyJ"));
    }

    #[test]
    fn records_are_believed_as_they_are_spelled() {
        let bench = Bench::new();
        let question = bench.question();
        let record = r#"{ "card":"eyJ.x", "n":1.50}"#;
        let proof = bench.proof(&question, &[Some(record.as_bytes()), None], &bench.worker);
        let evidence = bench.evidence(IMAGE, &bench.worker, &question.nonce);
        let body = |record: &str| {
            format!(
                r#"{{"dataset":"payments","policy_version":3,"records":[{record},null],"enclave":{{"indexes":[0,1],"proof":"{proof}","evidence":"{evidence}"}}}}"#
            )
        };
        let nonce = question.nonce;
        let again = || EnclaveQuestion {
            dataset: "payments".to_owned(),
            seal_to: bench.key.public().unwrap().thumbprint(),
            nonce,
        };
        let answer = question.answer_at(body(record).as_bytes(), &bench.pinned, NOW).unwrap();
        assert_eq!((answer.shown(0), answer.shown(1)), (Some(record), Some("null")));
        let other = record.replace("1.50", "1.5");
        let refused = again().answer_at(body(&other).as_bytes(), &bench.pinned, NOW);
        assert_eq!(refused.err(), Some(EnclaveAnswerError::NotItsAnswer));
    }

    #[test]
    fn a_service_that_makes_answers_up_is_not_believed() {
        let bench = Bench::new();
        let host = PrivateJwk::generate().unwrap();
        type Change<'a> = &'a dyn Fn(&mut Value, &EnclaveQuestion);
        let cases: &[(&str, Change<'_>, EnclaveAnswerError)] = &[
            (
                "a value of its own",
                &|body, _| body["values"][1] = "eyJ.host".into(),
                EnclaveAnswerError::NotItsAnswer,
            ),
            (
                "less than was signed",
                &|body, _| body["enclave"]["indexes"] = json!([1]),
                EnclaveAnswerError::NotItsAnswer,
            ),
            (
                "the same values in other places",
                &|body, _| body["enclave"]["indexes"] = json!([3, 1]),
                EnclaveAnswerError::Malformed,
            ),
            (
                "a place that is not there",
                &|body, _| body["enclave"]["indexes"] = json!([1, 4]),
                EnclaveAnswerError::Malformed,
            ),
            (
                "another version",
                &|body, _| body["policy_version"] = 4.into(),
                EnclaveAnswerError::NotItsAnswer,
            ),
            (
                "no word of the enclave",
                &|body, _| drop(body.as_object_mut().unwrap().remove("enclave")),
                EnclaveAnswerError::NotVouched,
            ),
            (
                "a signature of its own beside genuine evidence",
                &|body, question| {
                    let shown: &[Option<&[u8]>] = &[Some(b"\"eyJ.host\""), Some(b"null")];
                    body["values"][1] = "eyJ.host".into();
                    body["enclave"]["proof"] = bench.proof(question, shown, &host).into();
                },
                EnclaveAnswerError::Evidence(EnclaveKeysError::OtherContent),
            ),
            (
                "evidence that was given to another question",
                &|body, _| body["enclave"]["evidence"] = bench.evidence(IMAGE, &bench.worker, &[7; 32]).into(),
                EnclaveAnswerError::Evidence(EnclaveKeysError::Attestation(attested::AttestationError::Nonce)),
            ),
        ];
        for (what, change, error) in cases {
            let question = bench.question();
            let mut body = bench.body(&question);
            change(&mut body, &question);
            assert_eq!(bench.believe(question, &body).err().as_ref(), Some(error), "{what}");
        }
        // An answer that was given before, to the same reader.
        let earlier = bench.body(&bench.question());
        assert_eq!(
            bench.believe(bench.question(), &earlier).err(),
            Some(EnclaveAnswerError::NotItsAnswer)
        );
        // Another enclave than the pinned one.
        let question = bench.question();
        let mut body = bench.body(&question);
        body["enclave"]["evidence"] = bench.evidence(0xA2, &bench.worker, &question.nonce).into();
        assert!(matches!(
            bench.believe(question, &body).err(),
            Some(EnclaveAnswerError::Evidence(EnclaveKeysError::Attestation(
                attested::AttestationError::Measurements { .. }
            )))
        ));
    }
}
