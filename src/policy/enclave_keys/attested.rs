//! Enclave keys that an enclave vouches for itself: an attestation document whose `user_data` commits to them.
//!
//! The client pins measurements instead of an owner: it believes a program, whose image says whose policies it follows.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
pub use sealflow_enclave_protocol::attestation::{
    AttestationError, Expected, Measurement, MeasurementError, Measurements, Register, Tier, Trust,
};
use sealflow_enclave_protocol::attestation::{
    MAX_DOCUMENT_BYTES as MAX_ATTESTATION_BYTES, verify as verify_attestation,
};
use sealflow_enclave_protocol::message::signer_user_data;

use super::commitment::Attested;
pub use super::commitment::{user_data, write};
use super::{EnclaveKeys, EnclaveKeysError, Evidence, MAX_DOCUMENT_BYTES, VerifiedEnclaveKeys, check_now};
use crate::clock::UnixMillis;
use crate::jose::Thumbprint;
use crate::policy::EnclaveRule;

/// How old evidence may be, unless the client says otherwise. On Nitro the certificate that signs it ends after three hours, and
/// the evidence with it.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(86_400);

/// What a client pins.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// The roots that are believed.
    pub trust: Trust,
    /// The images that are believed: one of these sets has to match.
    pub measurements: Vec<Measurements>,
    /// What the client asked with, if it asked.
    pub nonce: Option<Vec<u8>>,
    /// How old evidence may be.
    pub max_age: Duration,
}

/// The images that a policy lets have keys, as a client of it may pin them.
#[must_use]
pub fn of_policy(rule: &EnclaveRule) -> Vec<Measurements> {
    let mut sets = Vec::new();
    for measured in rule.measurements.values() {
        let pair = |(pcr, digits): (u8, &str)| {
            let register = Register::ALL.into_iter().find(|register| register.pcr() == pcr)?;
            Some((register, digits.parse().ok()?))
        };
        // All of a set or nothing of it: with one less it would be another. Policies have no others.
        let pairs: Option<Vec<(Register, Measurement)>> = measured.pcrs().map(pair).collect();
        sets.extend(pairs.and_then(|pairs| Measurements::new(pairs).ok()));
    }
    sets
}

/// Believes enclave keys to which a pinned enclave committed, at `now`. Which dataset that is the caller
/// [checks](VerifiedEnclaveKeys::check).
///
/// # Errors
/// [`EnclaveKeysError`]
pub fn verify(text: &str, pinned: &Pinned, now: UnixMillis) -> Result<VerifiedEnclaveKeys, EnclaveKeysError> {
    if text.len() > MAX_DOCUMENT_BYTES {
        return Err(EnclaveKeysError::TooLarge);
    }
    let document: Attested = serde_json::from_str(text).map_err(|_| EnclaveKeysError::Malformed)?;
    if document.attestation.len() > MAX_ATTESTATION_BYTES.div_ceil(3) * 4 {
        return Err(EnclaveKeysError::TooLarge);
    }
    let evidence = STANDARD
        .decode(&document.attestation)
        .map_err(|_| EnclaveKeysError::Malformed)?;
    let evidence = verify_attestation(&evidence, &pinned.trust, now.0)?;
    let max_age_ms = u64::try_from(pinned.max_age.as_millis()).unwrap_or(u64::MAX);
    let expected = Expected {
        nonce: pinned.nonce.as_deref(),
        measurements: &pinned.measurements,
        now_ms: now.0,
        max_age_ms,
    };
    let image = *evidence.check(&expected)?.image();
    let keys = EnclaveKeys::of_raw(&document.dataset, document.labels, document.keys)?;
    if evidence.user_data != Some(user_data(&keys)?) {
        return Err(EnclaveKeysError::OtherContent);
    }
    let issued = UnixMillis(evidence.timestamp_ms);
    let expires = issued.plus(pinned.max_age);
    check_now(issued, expires, now)?;
    Ok(VerifiedEnclaveKeys {
        keys,
        evidence: Evidence::Measured {
            image: image.to_string(),
            tier: evidence.tier.as_str(),
        },
        issued,
        expires,
        text: text.to_owned(),
    })
}

/// Believes that the key with this thumbprint is one by which a pinned enclave signs its answers: evidence of a worker, at `now`.
///
/// # Errors
/// [`EnclaveKeysError::Attestation`], [`EnclaveKeysError::OtherContent`] for evidence that binds another key, or is for another purpose.
pub fn verify_signer(
    evidence: &[u8],
    signer: Thumbprint,
    pinned: &Pinned,
    now: UnixMillis,
) -> Result<Evidence, EnclaveKeysError> {
    let evidence = verify_attestation(evidence, &pinned.trust, now.0)?;
    let expected = Expected {
        nonce: pinned.nonce.as_deref(),
        measurements: &pinned.measurements,
        now_ms: now.0,
        max_age_ms: u64::try_from(pinned.max_age.as_millis()).unwrap_or(u64::MAX),
    };
    let image = evidence.check(&expected)?.image().to_string();
    if evidence.user_data != Some(signer_user_data(&signer.to_string())) {
        return Err(EnclaveKeysError::OtherContent);
    }
    Ok(Evidence::Measured {
        image,
        tier: evidence.tier.as_str(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sealflow_enclave_protocol::attestation::Document as Evidence_;
    use sealflow_enclave_protocol::attestation::build::{DevRoot, Issuer};

    use sha2::{Digest as _, Sha256};

    use super::super::commitment::PURPOSE;
    use super::super::testing::{NOW, key, keys};
    use super::super::{Document, document, documents};
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    struct Bench {
        issuer: Issuer,
        pinned: Pinned,
    }

    fn measurement(byte: u8) -> Measurement {
        Measurement::new(&[byte; 48]).unwrap()
    }

    impl Bench {
        fn new() -> Self {
            let root = DevRoot::generate(NOW.0).unwrap();
            Self {
                issuer: root.issuer(NOW.0).unwrap(),
                pinned: Pinned {
                    trust: Trust::with_dev_root(root.certificate()).unwrap(),
                    measurements: vec![Measurements::of_image(measurement(0xA1))],
                    nonce: None,
                    max_age: DEFAULT_MAX_AGE,
                },
            }
        }

        /// What an enclave whose image measures `image` says of itself.
        fn evidence(&self, image: u8, user_data: Option<Vec<u8>>, nonce: Option<&[u8]>) -> Vec<u8> {
            let document = Evidence_ {
                module_id: "i-test-enc".to_owned(),
                timestamp_ms: NOW.0,
                pcrs: BTreeMap::from([(0, vec![image; 48])]),
                public_key: None,
                user_data,
                nonce: nonce.map(<[u8]>::to_vec),
                tier: Tier::DevSoftwareNsm,
            };
            self.issuer.document(&document).unwrap()
        }

        fn attested(&self, keys: &EnclaveKeys, image: u8) -> String {
            write(keys, &self.evidence(image, Some(user_data(keys).unwrap()), None)).unwrap()
        }

        fn verify(&self, text: &str) -> Result<VerifiedEnclaveKeys, EnclaveKeysError> {
            verify(text, &self.pinned, NOW)
        }
    }

    #[test]
    fn keys_that_a_pinned_enclave_commits_to_are_believed_with_its_tier() {
        let bench = Bench::new();
        let text = bench.attested(&keys("payments"), 0xA1);
        assert_eq!(document(&text), Ok(Document::Attested(&text)));
        assert_eq!(
            documents(&format!("{{\"documents\":[{text}]}}")),
            Ok(vec![Document::Attested(&text)])
        );
        let verified = bench.verify(&text).unwrap();
        assert_eq!(verified.keys(), &keys("payments"));
        let (image, tier) = ("a1".repeat(48), "dev-software-nsm");
        assert_eq!(verified.evidence(), &Evidence::Measured { image, tier });
        assert_eq!(
            (verified.issued(), verified.expires()),
            (NOW, NOW.plus(DEFAULT_MAX_AGE))
        );
    }

    #[test]
    fn what_the_enclave_did_not_commit_to_and_enclaves_that_nobody_pinned_are_refused() {
        let bench = Bench::new();
        let other_image = bench.attested(&keys("payments"), 0xA2);
        assert!(matches!(
            bench.verify(&other_image),
            Err(EnclaveKeysError::Attestation(AttestationError::Measurements { .. }))
        ));
        let debug = bench.attested(&keys("payments"), 0);
        assert_eq!(
            bench.verify(&debug),
            Err(EnclaveKeysError::Attestation(AttestationError::DebugMode))
        );
        let other_root = Bench::new().attested(&keys("payments"), 0xA1);
        assert_eq!(
            bench.verify(&other_root),
            Err(EnclaveKeysError::Attestation(AttestationError::UnknownRoot))
        );
        // Genuine evidence of the pinned enclave, beside keys, labels or a dataset that it did not commit to.
        let genuine = bench.evidence(0xA1, Some(user_data(&keys("payments")).unwrap()), None);
        let labels = |more: &str| [keys("d").labels(), &[more.to_owned()]].concat();
        for other in [
            keys("refunds"),
            EnclaveKeys::new("payments", labels("more"), vec![key()]).unwrap(),
            EnclaveKeys::new("payments", vec!["card".to_owned()], vec![key()]).unwrap(),
        ] {
            let moved = write(&other, &genuine).unwrap();
            assert_eq!(bench.verify(&moved), Err(EnclaveKeysError::OtherContent));
        }
        for user_data in [None, Some(vec![0; 55]), Some(PURPOSE.to_vec())] {
            let text = write(&keys("payments"), &bench.evidence(0xA1, user_data, None)).unwrap();
            assert_eq!(bench.verify(&text), Err(EnclaveKeysError::OtherContent));
        }
        let text = bench.attested(&keys("payments"), 0xA1);
        for (from, to) in [
            ("{", "{\"x\":1,"),
            ("\"use\"", "\"d\":\"x\",\"use\""),
            ("{\"dataset\"", "{\"dataset\":\"a\",\"dataset\""),
        ] {
            assert_eq!(
                bench.verify(&text.replacen(from, to, 1)),
                Err(EnclaveKeysError::Malformed),
                "{to}"
            );
        }
    }

    #[test]
    fn evidence_is_as_fresh_as_the_client_says_or_answers_its_nonce() {
        let mut bench = Bench::new();
        let text = bench.attested(&keys("payments"), 0xA1);
        bench.pinned.max_age = HOUR;
        assert!(verify(&text, &bench.pinned, UnixMillis(NOW.plus(HOUR).0 - 1)).is_ok());
        assert!(verify(&text, &bench.pinned, NOW.plus(HOUR)).is_err());
        bench.pinned.max_age = DEFAULT_MAX_AGE;
        // The certificate that signed it ends before that.
        assert_eq!(
            verify(&text, &bench.pinned, NOW.plus(4 * HOUR)),
            Err(EnclaveKeysError::Attestation(AttestationError::Validity))
        );
        bench.pinned.nonce = Some(b"asked".to_vec());
        assert_eq!(
            bench.verify(&text),
            Err(EnclaveKeysError::Attestation(AttestationError::Nonce))
        );
        let answered = bench.evidence(0xA1, Some(user_data(&keys("payments")).unwrap()), Some(b"asked"));
        assert!(bench.verify(&write(&keys("payments"), &answered).unwrap()).is_ok());
    }

    #[test]
    fn a_signer_is_believed_as_the_pinned_enclave_binds_it() {
        let mut bench = Bench::new();
        let (signer, other) = (key().thumbprint(), Thumbprint::from_digest([7; 32]));
        let bound = signer_user_data(&signer.to_string());
        let believe = |bench: &Bench, evidence: &[u8], signer| verify_signer(evidence, signer, &bench.pinned, NOW);
        let evidence = bench.evidence(0xA1, Some(bound.clone()), Some(b"asked"));
        let (image, tier) = ("a1".repeat(48), "dev-software-nsm");
        assert_eq!(
            believe(&bench, &evidence, signer),
            Ok(Evidence::Measured { image, tier })
        );
        assert_eq!(believe(&bench, &evidence, other), Err(EnclaveKeysError::OtherContent));
        // Evidence of keys that clients seal to is none of what signs.
        let of_keys = bench.evidence(0xA1, Some(user_data(&keys("payments")).unwrap()), None);
        assert_eq!(believe(&bench, &of_keys, signer), Err(EnclaveKeysError::OtherContent));
        let other_image = bench.evidence(0xA2, Some(bound), None);
        assert!(matches!(
            believe(&bench, &other_image, signer),
            Err(EnclaveKeysError::Attestation(AttestationError::Measurements { .. }))
        ));
        bench.pinned.nonce = Some(b"another".to_vec());
        assert_eq!(
            believe(&bench, &evidence, signer),
            Err(EnclaveKeysError::Attestation(AttestationError::Nonce))
        );
    }

    #[test]
    fn what_is_committed_to_is_spelled_in_one_way() {
        let labels = ["z", "\"a b\".c", "é"].map(str::to_owned).to_vec();
        let keys = EnclaveKeys::new("payments", labels, vec![key()]).unwrap();
        let json = "{\"dataset\":\"payments\",\"keys\":[\"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs\"],\
                    \"labels\":[\"\\\"a b\\\".c\",\"z\",\"é\"]}";
        let expected = [PURPOSE, &Sha256::digest(json)].concat();
        assert_eq!(user_data(&keys).unwrap(), expected);
        assert_eq!(expected.len(), 55);
    }
}
