//! What clients seal enclave columns to, for everybody: `GET /.well-known/enclave-keys`.
//!
//! Clients verify these documents themselves, so the service is not trusted with them. It still serves none that does not verify
//! under the owners that it pins: what somebody else put into the catalogue goes no further.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sealflow::clock::{Clock, Steady, UnixMillis};
use sealflow::keys::Catalogue;
use sealflow::policy::enclave_keys::attested::{DEFAULT_MAX_AGE, Pinned, Trust, of_policy};
use sealflow::policy::enclave_keys::{
    Document, EnclaveKeysError, Evidence, VerifiedEnclaveKeys, attested, document, published, signed,
};
use sealflow::policy::{PolicySource, TrustedOwners};
use tokio::sync::Mutex;

use crate::problem::{Code, Problem};

/// How long an answer is given from memory. The catalogue is asked no more often, however many ask.
const REFRESH: Duration = Duration::from_secs(60);
/// How soon after a failure is tried again.
const BETWEEN_TRIES: Duration = Duration::from_secs(5);
/// The most documents of one dataset and kind that are served: those that overlap while keys change.
const MAX_SERVED: usize = 4;

/// The documents of some datasets, as they lie in the catalogue.
pub struct PublishedEnclaveKeys {
    catalogue: Arc<dyn Catalogue>,
    owners: TrustedOwners,
    /// Say which images attest.
    policies: Arc<dyn PolicySource>,
    trust: Trust,
    datasets: Vec<String>,
    clock: Arc<dyn Clock>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    answer: Option<Bytes>,
    /// When it was made, or could not be.
    tried: Option<(Steady, bool)>,
}

impl PublishedEnclaveKeys {
    /// Of these datasets, as far as these owners vouch for them, or enclaves under these roots that the newest policies name.
    #[must_use]
    pub fn new(
        catalogue: Arc<dyn Catalogue>,
        owners: TrustedOwners,
        policies: Arc<dyn PolicySource>,
        trust: Trust,
        datasets: Vec<String>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            catalogue,
            owners,
            policies,
            trust,
            datasets,
            clock,
            known: Mutex::default(),
        }
    }

    /// `{"documents": […]}`: those of each dataset, the last that was published first, each as it was published. While the catalogue
    /// is away the answer is as it was: documents say themselves when they end.
    pub(crate) async fn document(&self) -> Result<Bytes, Problem> {
        // Held while the catalogue is asked: it is asked once.
        let mut known = self.known.lock().await;
        let now = self.clock.steady();
        let is_recent = known
            .tried
            .is_some_and(|(since, is_made)| now.since(since) < if is_made { REFRESH } else { BETWEEN_TRIES });
        if !is_recent {
            let made = self.make().await;
            known.tried = Some((now, made.is_ok()));
            match made {
                Ok(answer) => known.answer = Some(answer),
                Err(error) => tracing::warn!(%error, "the enclave keys of clients cannot be had"),
            }
        }
        known.answer.clone().ok_or_else(|| {
            let detail = "the enclave keys that clients seal to cannot be had at the moment";
            Problem::new(Code::ServiceUnavailable, detail, "try again").retry_after(BETWEEN_TRIES.as_secs())
        })
    }

    async fn make(&self) -> Result<Bytes, EnclaveKeysError> {
        let now = self.clock.now();
        let mut documents: Vec<String> = Vec::new();
        for dataset in &self.datasets {
            let signed = published::last(self.catalogue.as_ref(), dataset).await?;
            let attested = published::last_attested(self.catalogue.as_ref(), dataset, now).await?;
            // Of each kind so many: none displaces the other, since clients pin one of them.
            let (mut of_owners, mut of_enclaves) = (0, 0);
            for text in signed.into_iter().chain(attested) {
                match self.verify(&text, dataset, now).await {
                    Ok(keys) => {
                        let of_kind = match keys.evidence() {
                            Evidence::Owner(_) => &mut of_owners,
                            _ => &mut of_enclaves,
                        };
                        if *of_kind == MAX_SERVED {
                            continue;
                        }
                        *of_kind += 1;
                        documents.push(spelled(&keys));
                    }
                    // Documents end, and are kept.
                    Err(EnclaveKeysError::Expired { .. }) => {}
                    Err(error) => {
                        tracing::warn!(%dataset, %error, "enclave keys in the catalogue are not served");
                    }
                }
            }
            if of_owners + of_enclaves == 0 {
                tracing::warn!(%dataset, "there are no enclave keys to serve");
            }
        }
        Ok(Bytes::from(format!("{{\"documents\":[{}]}}", documents.join(","))))
    }

    async fn verify(
        &self,
        text: &str,
        dataset: &str,
        now: UnixMillis,
    ) -> Result<VerifiedEnclaveKeys, EnclaveKeysError> {
        let verified = match document(text)? {
            Document::Signed(jws) => signed::verify(jws, &self.owners, now)?,
            Document::Attested(json) => attested::verify(json, &self.pinned(dataset).await, now)?,
            _ => return Err(EnclaveKeysError::OtherKind),
        };
        verified.check(dataset, None)
    }

    /// The images that the newest policy of a dataset names: none, if there is no such policy.
    async fn pinned(&self, dataset: &str) -> Pinned {
        let measurements = match self.policies.policy(dataset).await {
            Ok(policy) => policy.policy().enclave.as_ref().map(of_policy).unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%dataset, %error, "no policy says which enclaves attest");
                Vec::new()
            }
        };
        Pinned {
            trust: self.trust.clone(),
            measurements,
            nonce: None,
            max_age: DEFAULT_MAX_AGE,
        }
    }
}

/// As a JSON value: a JWS, which has nothing that JSON escapes, as a string.
fn spelled(keys: &VerifiedEnclaveKeys) -> String {
    match keys.text() {
        object if object.starts_with('{') => object.to_owned(),
        jws => format!("\"{jws}\""),
    }
}

impl std::fmt::Debug for PublishedEnclaveKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublishedEnclaveKeys")
            .field("datasets", &self.datasets)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use sealflow::clock::ManualClock;
    use sealflow::jose::PrivateJwk;
    use sealflow::jose::rsa::RsaPublicJwk;
    use sealflow::keys::CatalogueError;
    use sealflow::keys::testing::MemoryCatalogue;
    use sealflow::policy::signed as policy_signed;
    use sealflow::policy::{EnclaveKeys, FixedPolicies, VerifiedPolicy};
    use sealflow_client::{EnclaveKey, EnclavePins, PrivateKey, RsaBits};
    use sealflow_enclave_protocol::attestation;
    use sealflow_enclave_protocol::attestation::build::DevRoot;
    use serde_json::{Value, json};

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_767_225_600_000);
    const HOUR: Duration = Duration::from_secs(3_600);

    /// A policy whose one image measures `a1…`.
    fn policy(owner: &PrivateJwk, owners: &TrustedOwners) -> VerifiedPolicy {
        let arn = |id: char| {
            format!(
                "arn:aws:kms:eu-central-1:111122223333:key/{}-1111-4111-8111-111111111111",
                id.to_string().repeat(8)
            )
        };
        let yaml = format!(
            "dataset: payments\nversion: 1\nlease: required\nkeys: {{ k: {{ arn: \"{}\" }} }}\nacls: {{ a: {{}} }}\n\
             enclave: {{ keys: {{ web: {{ arn: \"{}\" }} }}, measurements: {{ v1: {{ image: \"{}\" }} }} }}\n\
             columns: [{{ path: card, key: k, acl: a, flow: enclave }}]\n",
            arn('1'),
            arn('2'),
            "a1".repeat(48)
        );
        policy_signed::verify(&policy_signed::sign(yaml.as_bytes(), owner).unwrap(), owners).unwrap()
    }

    struct Bench {
        root: DevRoot,
        owner: PrivateJwk,
        key: RsaPublicJwk,
        catalogue: Arc<MemoryCatalogue>,
        clock: Arc<ManualClock>,
        published: PublishedEnclaveKeys,
    }

    impl Bench {
        fn new() -> Self {
            let owner = PrivateJwk::generate().unwrap();
            let owners = TrustedOwners::of(owner.thumbprint());
            let (catalogue, clock) = (Arc::new(MemoryCatalogue::new()), Arc::new(ManualClock::at(NOW)));
            let datasets = ["payments", "refunds"].map(str::to_owned).to_vec();
            let root = DevRoot::generate(NOW.0).unwrap();
            let trust = Trust::with_dev_root(root.certificate()).unwrap();
            let policies = Arc::new(FixedPolicies::new(vec![Arc::new(policy(&owner, &owners))]));
            let published =
                PublishedEnclaveKeys::new(catalogue.clone(), owners, policies, trust, datasets, clock.clone());
            Self {
                published,
                root,
                key: PrivateKey::generate(RsaBits::Rsa2048).unwrap().public().unwrap(),
                owner,
                catalogue,
                clock,
            }
        }

        fn signed(&self, dataset: &str, span: Duration, by: &PrivateJwk) -> String {
            let keys = EnclaveKeys::new(dataset, vec!["card".to_owned()], vec![self.key.clone()]).unwrap();
            signed::sign(&keys, self.clock.now(), span, by).unwrap()
        }

        fn put(&self, dataset: &str, n: u64, text: &str) {
            self.catalogue
                .overwrite(&format!("enclave-keys/{dataset}/{n:010}"), text.as_bytes());
        }

        async fn answer(&self) -> Value {
            serde_json::from_slice(&self.published.document().await.unwrap()).unwrap()
        }
    }

    #[tokio::test]
    async fn documents_are_served_as_they_were_published_and_clients_believe_them_by_their_own_pins() {
        let bench = Bench::new();
        assert_eq!(bench.answer().await, json!({ "documents": [] }));
        let first = bench.signed("payments", 2 * HOUR, &bench.owner);
        bench.clock.advance(Duration::from_secs(1));
        let second = bench.signed("payments", HOUR, &bench.owner);
        let other = bench.signed("refunds", HOUR, &bench.owner);
        (0..)
            .zip([&first, &second])
            .for_each(|(n, text)| bench.put("payments", n, text));
        bench.put("refunds", 0, &other);
        assert_eq!(
            bench.answer().await,
            json!({ "documents": [] }),
            "asked for once a minute"
        );
        bench.clock.advance(REFRESH);
        assert_eq!(bench.answer().await, json!({ "documents": [second, first, other] }));
        let text = String::from_utf8(bench.published.document().await.unwrap().to_vec()).unwrap();
        let believe = |owner: &PrivateJwk, dataset: &str| {
            let pins = EnclavePins::owner(owner.thumbprint());
            EnclaveKey::believe_at(&text, &pins, dataset, None, bench.clock.now())
        };
        let key = believe(&bench.owner, "payments").unwrap();
        assert_eq!((key.thumbprint(), key.document()), (bench.key.thumbprint(), &*second));
        assert!(believe(&PrivateJwk::generate().unwrap(), "payments").is_err());
        assert!(matches!(
            believe(&bench.owner, "orders").err(),
            Some(EnclaveKeysError::OtherDataset { .. })
        ));
        bench.clock.advance(HOUR);
        assert_eq!(
            bench.answer().await,
            json!({ "documents": [first] }),
            "what has ended is left out"
        );
    }

    #[tokio::test]
    async fn what_the_pinned_owners_do_not_vouch_for_is_not_served() {
        let bench = Bench::new();
        let stranger = PrivateJwk::generate().unwrap();
        let good = bench.signed("payments", HOUR, &bench.owner);
        let bare = bench.key.to_published_json();
        let others = [
            bench.signed("payments", HOUR, &stranger),
            bench.signed("refunds", HOUR, &bench.owner),
            bare.clone(),
            format!("{{\"keys\":[{bare}]}}"),
            "garbage\",\"x".to_owned(),
            format!("{good}A"),
        ];
        bench.put("payments", 0, &good);
        (1..).zip(&others).for_each(|(n, text)| bench.put("payments", n, text));
        assert_eq!(bench.answer().await, json!({ "documents": [good] }));
        // However many there are: four of a dataset, the last ones.
        (10..16).for_each(|n| {
            bench.clock.advance(Duration::from_secs(1));
            bench.put("payments", n, &bench.signed("payments", HOUR, &bench.owner));
        });
        bench.clock.advance(REFRESH);
        assert_eq!(bench.answer().await["documents"].as_array().unwrap().len(), MAX_SERVED);
    }

    #[tokio::test]
    async fn what_an_image_of_the_policy_attests_is_served_as_an_object_and_what_another_does_is_not() {
        let bench = Bench::new();
        let issuer = bench.root.issuer(NOW.0).unwrap();
        let keys = |dataset: &str| EnclaveKeys::new(dataset, vec!["card".to_owned()], vec![bench.key.clone()]).unwrap();
        let attested = |image: u8, keys: &EnclaveKeys| {
            let evidence = attestation::Document {
                module_id: "i-test-enc".to_owned(),
                timestamp_ms: NOW.0,
                pcrs: [(0, vec![image; 48])].into_iter().collect(),
                public_key: None,
                user_data: Some(attested::user_data(keys).unwrap()),
                nonce: None,
                tier: attested::Tier::DevSoftwareNsm,
            };
            attested::write(keys, &issuer.document(&evidence).unwrap()).unwrap()
        };
        let good = attested(0xA1, &keys("payments"));
        bench.put("payments", 0, &good);
        bench.put("payments", 1, &attested(0xA2, &keys("payments")));
        bench.put("payments", 2, &attested(0xA1, &keys("refunds")));
        // No policy names an image for this one.
        bench.put("refunds", 0, &attested(0xA1, &keys("refunds")));
        let good: Value = serde_json::from_str(&good).unwrap();
        assert_eq!(bench.answer().await, json!({ "documents": [good] }));
    }

    #[tokio::test]
    async fn while_the_catalogue_is_away_the_answer_is_as_it_was() {
        let bench = Bench::new();
        bench.catalogue.fail_with(Some(CatalogueError::Unavailable {
            reason: "test".to_owned(),
        }));
        assert_eq!(
            bench.published.document().await.unwrap_err().code,
            Code::ServiceUnavailable
        );
        bench.catalogue.fail_with(None);
        let good = bench.signed("payments", HOUR, &bench.owner);
        bench.put("payments", 0, &good);
        bench.clock.advance(BETWEEN_TRIES);
        let answer = json!({ "documents": [good] });
        assert_eq!(bench.answer().await, answer);
        bench.catalogue.fail_with(Some(CatalogueError::Unavailable {
            reason: "test".to_owned(),
        }));
        bench.clock.advance(REFRESH);
        assert_eq!(bench.answer().await, answer);
    }
}
