//! The way of a key from a key service to the program that proved itself: evidence, verified, sealed to, opened.
#![cfg(all(feature = "build", feature = "cms", feature = "dev-software-nsm"))]
#![allow(clippy::unwrap_used)] // tests

use std::collections::BTreeMap;
use std::sync::Arc;

use sealflow_enclave_protocol::attestation::build::{DevRoot, Issuer};
use sealflow_enclave_protocol::attestation::{Document, Expected, Measurement, Measurements, Tier, Trust, verify};
use sealflow_enclave_protocol::cms;
use sealflow_enclave_protocol::joints::{AttestError, Attester, Claims, KeyReleaser as _, ReleaseError};
use sealflow_enclave_protocol::recipient::Recipient;

const NOW_MS: u64 = 1_795_910_400_000;

/// A software NSM that measured `image`.
#[derive(Debug)]
struct Nsm {
    issuer: Issuer,
    image: u8,
}

impl Attester for Nsm {
    fn attest(&self, claims: &Claims<'_>) -> Result<Vec<u8>, AttestError> {
        let document = Document {
            module_id: "dev-software-nsm-1".to_owned(),
            timestamp_ms: NOW_MS,
            pcrs: BTreeMap::from([(0, vec![self.image; 48])]),
            public_key: claims.public_key.map(<[u8]>::to_vec),
            user_data: claims.user_data.map(<[u8]>::to_vec),
            nonce: claims.nonce.map(<[u8]>::to_vec),
            tier: Tier::DevSoftwareNsm,
        };
        self.issuer.document(&document).map_err(|error| AttestError {
            reason: error.to_string(),
        })
    }
}

/// What a key service does: believes the evidence, or releases nothing.
fn release(evidence: &[u8], trust: &Trust, secret: &[u8]) -> Option<Vec<u8>> {
    let document = verify(evidence, trust, NOW_MS + 1000).ok()?;
    let allowed = [Measurements::of_image(Measurement::new(&[7; 48]).unwrap())];
    let expected = Expected {
        nonce: None,
        measurements: &allowed,
        now_ms: NOW_MS + 1000,
        max_age_ms: 300_000,
    };
    document.check(&expected).ok()?;
    Some(cms::seal(&document.public_key?, secret).unwrap())
}

#[test]
fn a_key_is_released_to_the_program_that_was_measured_and_to_no_other() {
    let root = DevRoot::generate(NOW_MS).unwrap();
    let trust = Trust::with_dev_root(root.certificate()).unwrap();
    let recipient = |image| {
        let issuer = root.issuer(NOW_MS).unwrap();
        Recipient::generate(Arc::new(Nsm { issuer, image })).unwrap()
    };
    let worker = recipient(7);
    let evidence = worker.evidence().unwrap();
    let released = release(&evidence, &trust, b"a data key of thirty-two bytes..").unwrap();
    assert_eq!(
        worker.open(&released).unwrap().as_slice(),
        b"a data key of thirty-two bytes.."
    );

    // The same image on another machine has another key.
    assert_eq!(recipient(7).open(&released), Err(ReleaseError));
    // Another image, and one in debug mode, get nothing.
    assert_eq!(release(&recipient(8).evidence().unwrap(), &trust, b"x"), None);
    assert_eq!(release(&recipient(0).evidence().unwrap(), &trust, b"x"), None);
    // Who trusts Nitro alone releases nothing to a software NSM.
    assert_eq!(release(&evidence, &Trust::nitro(), b"x"), None);
}

#[test]
fn who_carries_evidence_cannot_put_in_a_key_of_its_own() {
    let root = DevRoot::generate(NOW_MS).unwrap();
    let trust = Trust::with_dev_root(root.certificate()).unwrap();
    let [worker, host] = [(), ()].map(|()| {
        Recipient::generate(Arc::new(Nsm {
            issuer: root.issuer(NOW_MS).unwrap(),
            image: 7,
        }))
        .unwrap()
    });
    let evidence = worker.evidence().unwrap();
    let (theirs, ours) = (worker.public_key(), host.public_key());
    assert_eq!(theirs.len(), ours.len());
    let at = evidence
        .windows(theirs.len())
        .position(|window| window == theirs)
        .unwrap();
    let swapped = [&evidence[..at], ours, &evidence[at + ours.len()..]].concat();
    assert!(release(&evidence, &trust, b"x").is_some());
    assert_eq!(release(&swapped, &trust, b"x"), None);
}
