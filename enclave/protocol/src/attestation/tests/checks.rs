//! What a verified document has to say besides, and what cannot be said in one.

use super::forge::{NOW_MS, document};
use crate::attestation::build::{BuildError, DevRoot};
use crate::attestation::{
    AttestationError, Document, Expected, MAX_SKEW_MS, Measurement, Measurements, Register, Tier,
};

const MINUTE_MS: u64 = 60_000;

fn measurement(byte: u8) -> Measurement {
    Measurement::new(&[byte; 48]).unwrap()
}

fn set(pairs: &[(Register, u8)]) -> Measurements {
    Measurements::new(pairs.iter().map(|(register, byte)| (*register, measurement(*byte)))).unwrap()
}

/// Checks with the image of [`document`] allowed.
fn check(document: &Document, nonce: Option<&[u8]>, now_ms: u64) -> Result<(), AttestationError> {
    let allowed = [Measurements::of_image(measurement(1))];
    document
        .check(&Expected {
            nonce,
            measurements: &allowed,
            now_ms,
            max_age_ms: MINUTE_MS,
        })
        .map(|_| ())
}

fn check_sets(document: &Document, measurements: &[Measurements]) -> Result<(), AttestationError> {
    document
        .check(&Expected {
            nonce: None,
            measurements,
            now_ms: NOW_MS,
            max_age_ms: 0,
        })
        .map(|_| ())
}

#[test]
fn a_document_is_taken_within_its_age_and_not_from_the_future() {
    let document = document();
    assert_eq!(check(&document, None, NOW_MS), Ok(()));
    assert_eq!(check(&document, None, NOW_MS + MINUTE_MS), Ok(()));
    let stale = AttestationError::Stale {
        age_ms: MINUTE_MS + 1,
        max_age_ms: MINUTE_MS,
    };
    assert_eq!(check(&document, None, NOW_MS + MINUTE_MS + 1), Err(stale));
    assert_eq!(check(&document, None, NOW_MS - MAX_SKEW_MS), Ok(()));
    assert_eq!(
        check(&document, None, NOW_MS - MAX_SKEW_MS - 1),
        Err(AttestationError::Future)
    );
    let late = Document {
        timestamp_ms: u64::MAX,
        ..document
    };
    assert_eq!(check(&late, None, NOW_MS), Err(AttestationError::Future));
}

#[test]
fn a_nonce_that_was_asked_with_has_to_come_back() {
    let answer = document();
    assert_eq!(check(&answer, Some(&[6; 32]), NOW_MS), Ok(()));
    for other in [&[7; 32][..], &[6; 31], &[6; 33], &[]] {
        assert_eq!(check(&answer, Some(other), NOW_MS), Err(AttestationError::Nonce));
    }
    let silent = Document {
        nonce: None,
        ..document()
    };
    assert_eq!(check(&silent, Some(&[6; 32]), NOW_MS), Err(AttestationError::Nonce));
    // An empty nonce was asked with, too.
    assert_eq!(check(&silent, Some(&[]), NOW_MS), Err(AttestationError::Nonce));
}

#[test]
fn an_image_of_zeros_is_debug_mode_and_one_that_is_missing_is_none() {
    let mut zero = document();
    zero.pcrs.insert(0, vec![0; 48]);
    assert_eq!(check(&zero, None, NOW_MS), Err(AttestationError::DebugMode));
    let mut missing = document();
    missing.pcrs.remove(&0);
    assert_eq!(check(&missing, None, NOW_MS), Err(AttestationError::NotMeasured));
}

#[test]
fn one_of_the_allowed_sets_has_to_match_in_full() {
    let document = document();
    let refused = || Err(AttestationError::Measurements { image: "01".repeat(48) });
    assert_eq!(check_sets(&document, &[]), refused());
    assert_eq!(check_sets(&document, &[set(&[(Register::Image, 2)])]), refused());
    // The newer build, then the older one that runs still.
    let sets = [
        set(&[(Register::Image, 9)]),
        set(&[(Register::Image, 1), (Register::Application, 3)]),
    ];
    let expected = Expected {
        nonce: None,
        measurements: &sets,
        now_ms: NOW_MS,
        max_age_ms: 0,
    };
    assert_eq!(document.check(&expected), Ok(&sets[1]));
    let all = [
        (Register::Image, 1),
        (Register::Kernel, 2),
        (Register::Application, 3),
        (Register::SigningCertificate, 4),
    ];
    assert_eq!(check_sets(&document, &[set(&all)]), Ok(()));
    for place in 0..all.len() {
        let mut one_differs = all;
        one_differs[place].1 = 9;
        assert_eq!(check_sets(&document, &[set(&one_differs)]), refused(), "{place}");
    }
    // Measurements of two sets do not add up to one.
    let halves = [
        set(&[(Register::Image, 1), (Register::Kernel, 9)]),
        set(&[(Register::Image, 9), (Register::Kernel, 2)]),
    ];
    assert_eq!(check_sets(&document, &halves), refused());
}

#[test]
fn a_measurement_that_is_missing_zero_or_of_another_length_matches_nothing() {
    let allowed = [set(&[(Register::Image, 1), (Register::ParentRole, 7)])];
    let mut document = document();
    // The forge writes zeros: an instance without a role.
    assert!(check_sets(&document, &allowed).is_err());
    document.pcrs.remove(&3);
    assert!(check_sets(&document, &allowed).is_err());
    for length in [32, 64] {
        document.pcrs.insert(3, vec![7; length]);
        assert!(check_sets(&document, &allowed).is_err(), "{length}");
    }
    document.pcrs.insert(3, vec![7; 48]);
    assert_eq!(check_sets(&document, &allowed), Ok(()));
}

#[test]
fn tiers_have_the_names_that_stand_in_logs() {
    assert_eq!(
        [Tier::Nitro, Tier::DevSoftwareNsm].map(|tier| tier.to_string()),
        ["nitro", "dev-software-nsm"]
    );
}

#[test]
fn a_document_out_of_bounds_is_not_built() {
    let issuer = DevRoot::generate(NOW_MS).unwrap().issuer(NOW_MS).unwrap();
    let changes: [fn(&mut Document); 11] = [
        |document| document.module_id.clear(),
        |document| document.module_id = "m".repeat(513),
        |document| document.timestamp_ms = 0,
        |document| document.pcrs.clear(),
        |document| drop(document.pcrs.insert(32, vec![1; 48])),
        |document| drop(document.pcrs.insert(0, vec![1; 47])),
        |document| document.public_key = Some(Vec::new()),
        |document| document.public_key = Some(vec![1; 1025]),
        |document| document.user_data = Some(vec![1; 513]),
        |document| document.nonce = Some(vec![1; 513]),
        |document| document.pcrs = [(0, Vec::new())].into(),
    ];
    for (place, change) in changes.into_iter().enumerate() {
        let mut document = document();
        change(&mut document);
        assert!(
            matches!(issuer.document(&document), Err(BuildError::Document(_))),
            "{place}"
        );
    }
    assert!(issuer.document(&document()).is_ok());
}
