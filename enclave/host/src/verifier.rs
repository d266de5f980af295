//! What the host believes of a worker: evidence by a trusted root, fresh, of an image that the policy allows.

use std::fmt;
use std::sync::Arc;

use sealflow::clock::Clock;
use sealflow::policy;
use sealflow_enclave_protocol::attestation::{Expected, Trust, verify};
use sealflow_enclave_protocol::joints::{Believed, NotBelieved, Verifier};
use sealflow_enclave_protocol::measurements::{Measurements, Register};

/// How old evidence may be that was asked for just now, in milliseconds: the clocks of host and TEE differ.
const MAX_AGE_MS: u64 = 300_000;

/// Verifies attestation documents.
pub struct AttestationVerifier {
    trust: Trust,
    measurements: Vec<Measurements>,
    clock: Arc<dyn Clock>,
}

impl AttestationVerifier {
    /// By these roots, for these images.
    #[must_use]
    pub fn new(trust: Trust, measurements: Vec<Measurements>, clock: Arc<dyn Clock>) -> Self {
        Self {
            trust,
            measurements,
            clock,
        }
    }
}

/// The measurements of a policy, as evidence is compared with them. What the policy's own checks let pass always is one.
#[must_use]
pub fn of_policy(measurements: &policy::Measurements) -> Option<Measurements> {
    let pairs = measurements.pcrs().map(|(pcr, digits)| {
        let register = Register::ALL.into_iter().find(|register| register.pcr() == pcr)?;
        Some((register, digits.parse().ok()?))
    });
    Measurements::new(pairs.collect::<Option<Vec<_>>>()?).ok()
}

impl Verifier for AttestationVerifier {
    fn verify(&self, evidence: &[u8], nonce: &[u8], user_data: &[u8]) -> Result<Believed, NotBelieved> {
        let not = |reason: String| NotBelieved { reason };
        let now_ms = self.clock.now().0;
        let document = verify(evidence, &self.trust, now_ms).map_err(|error| not(error.to_string()))?;
        let expected = Expected {
            nonce: Some(nonce),
            measurements: &self.measurements,
            now_ms,
            max_age_ms: MAX_AGE_MS,
        };
        let measured = document.check(&expected).map_err(|error| not(error.to_string()))?;
        if document.user_data.as_deref() != Some(user_data) {
            return Err(not("it does not bind the key by which the worker signs".to_owned()));
        }
        Ok(Believed {
            tier: document.tier.to_string(),
            image: measured.image().to_string(),
        })
    }
}

impl fmt::Debug for AttestationVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttestationVerifier")
            .field("measurements", &self.measurements)
            .finish_non_exhaustive()
    }
}
