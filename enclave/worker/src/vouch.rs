//! What clients seal to: the keys that the signed policy names, for which the worker's evidence vouches, and pairs that it has made.
//!
//! Which keys and labels those are comes from the policy alone, and what belongs to a key from KMS over TLS that ends here: the host
//! chooses the dataset, and nothing else of what is vouched for.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::keys::{ClientKeyService, EncryptionContext, KeyServiceError, RsaBits};
use sealflow::policy::enclave_keys::{commitment, labels};
use sealflow::policy::{EnclaveKeys, EnclaveRule, KeyPair, PolicySource, RsaKey, VerifiedPolicy};
use sealflow_enclave_protocol::joints::{Attester, Claims};
use sealflow_enclave_protocol::message::{ClientKeysAnswer, ClientKeysJob, Failure, FailureKind, PairAnswer, PairJob};
use zeroize::Zeroizing;

use crate::identity::refused;

/// Public halves that are remembered: a key never becomes another.
const MOST_KNOWN: usize = 256;

/// Vouches for the keys of policies.
pub struct Vouching {
    policies: Arc<dyn PolicySource>,
    service: Arc<dyn ClientKeyService>,
    attester: Arc<dyn Attester>,
    /// By ARN, or by the digest of a pair.
    known: Mutex<HashMap<String, RsaPublicJwk>>,
}

impl Vouching {
    /// For keys of these policies in this service, by this evidence.
    #[must_use]
    pub fn new(
        policies: Arc<dyn PolicySource>,
        service: Arc<dyn ClientKeyService>,
        attester: Arc<dyn Attester>,
    ) -> Self {
        Self {
            policies,
            service,
            attester,
            known: Mutex::default(),
        }
    }

    /// The body of the answer: the document of a dataset's keys, with evidence that commits to them.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn client_keys(&self, job: &ClientKeysJob<'_>) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let policy = self.policy(job.dataset).await?;
        let mut keys = Vec::new();
        for key in enclave(&policy)?.client.keys.values() {
            keys.push(self.public(&key.key).await?);
        }
        let keys = EnclaveKeys::new(&policy.policy().dataset, labels(policy.policy()), keys).map_err(refused)?;
        let user_data = commitment::user_data(&keys).map_err(refused)?;
        // While keys were asked for the policy, or its lease, may have ended.
        if !self.policies.holds(&policy) {
            return Err(unavailable("the lease of the policy ended meanwhile"));
        }
        let evidence = self.evidence(&user_data, None)?;
        let document = commitment::write(&keys, &evidence).map_err(refused)?;
        let answer = ClientKeysAnswer {
            policy_version: policy.policy().version,
            document: &document,
        };
        Ok(answer.to_body())
    }

    /// The body of the answer: a new pair for clients of a dataset, with evidence that this worker had it made. Its private half came here
    /// sealed to the attested key, was compared with the public one, and is gone.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn make_pair(&self, job: &PairJob<'_>) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let policy = self.policy(job.dataset).await?;
        enclave(&policy)?;
        let bits = RsaBits::ALL
            .into_iter()
            .find(|bits| u32::try_from(bits.bits()) == Ok(job.bits));
        let bits = bits.ok_or_else(|| refused("a key pair has 2048, 3072 or 4096 bits"))?;
        // Of the signed policy, as whoever takes the pair rebuilds it.
        let dataset = &policy.policy().dataset;
        let context = EncryptionContext::for_client_pair(dataset);
        let made = self
            .service
            .generate_pair(job.arn, bits, &context)
            .await
            .map_err(of_service)?;
        let pair = KeyPair::made(&made.arn, dataset, made.public, made.wrapped_private);
        let pair = pair.ok_or_else(|| refused("KMS made no pair that a policy takes"))?;
        self.check(&pair).await?;
        let evidence = self.evidence(&pair.user_data(), Some(&job.nonce))?;
        let answer = PairAnswer {
            public: &pair.public,
            wrapped: &pair.wrapped,
            evidence: &evidence,
        };
        Ok(answer.to_body())
    }

    async fn policy(&self, dataset: &str) -> Result<Arc<VerifiedPolicy>, Failure> {
        self.policies
            .policy(dataset)
            .await
            .map_err(|error| match error.is_retryable() {
                true => unavailable(error),
                false => refused(error),
            })
    }

    /// The public half of a key, asked for once.
    async fn public(&self, key: &RsaKey) -> Result<RsaPublicJwk, Failure> {
        let (name, arn): (String, &String) = match key {
            RsaKey::Pair(pair) => (
                pair.digest().iter().map(|byte| format!("{byte:02x}")).collect(),
                &pair.arn,
            ),
            RsaKey::InKms { arn } => (arn.clone(), arn),
            _ => return Err(refused("a key of a kind that this worker does not know")),
        };
        if let Some(known) = self.known().get(&name) {
            return Ok(known.clone());
        }
        let der = match key {
            // A pair that it could not open would be somebody else's.
            RsaKey::Pair(pair) => {
                self.check(pair).await?;
                pair.public.clone()
            }
            _ => self.service.public_key(arn).await.map_err(of_service)?,
        };
        let public = RsaPublicJwk::from_spki_der(&der).map_err(|error| refused(format!("{arn}: {error}")))?;
        let mut known = self.known();
        if known.len() < MOST_KNOWN {
            known.insert(name, public.clone());
        }
        Ok(public)
    }

    /// Whether the wrapped half opens here, in the context of its dataset, and is that of the public half.
    async fn check(&self, pair: &KeyPair) -> Result<(), Failure> {
        let context = EncryptionContext::for_client_pair(&pair.dataset);
        let half = self
            .service
            .private_half(&pair.arn, &pair.wrapped, &context)
            .await
            .map_err(of_service)?;
        match half.public() == pair.public {
            true => Ok(()),
            false => Err(refused(format!(
                "the private half that {} unwraps is not that of the pair's public half",
                pair.arn
            ))),
        }
    }

    fn evidence(&self, user_data: &[u8], nonce: Option<&[u8]>) -> Result<Vec<u8>, Failure> {
        let claims = Claims {
            public_key: None,
            user_data: Some(user_data),
            nonce,
        };
        self.attester.attest(&claims).map_err(unavailable)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, RsaPublicJwk>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Vouching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vouching").finish_non_exhaustive()
    }
}

fn enclave(policy: &VerifiedPolicy) -> Result<&EnclaveRule, Failure> {
    let rule = policy.policy().enclave.as_ref();
    rule.ok_or_else(|| refused("the policy has no enclave"))
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn of_service(error: KeyServiceError) -> Failure {
    match error.is_retryable() {
        true => unavailable(error),
        false => refused(error),
    }
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn unavailable(reason: impl ToString) -> Failure {
    Failure {
        kind: FailureKind::Unavailable,
        reason: reason.to_string(),
    }
}
