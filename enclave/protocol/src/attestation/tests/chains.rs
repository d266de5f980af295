//! Certificates that must not lead from the root to the signer. Each document is signed by the key of its leaf.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
};

use super::forge::{Forge, HOUR_MS, Made, NOW_MS};
use crate::attestation::build::{self, BuildError, DevRoot};
use crate::attestation::{AttestationError, Trust, verify};

/// What comes of a chain that was forged.
fn outcome(change: impl FnOnce(&mut Forge)) -> Result<(), AttestationError> {
    let mut forge = Forge::new();
    change(&mut forge);
    let made = forge.make();
    verify(&made.signed(), &made.blind_trust(), NOW_MS).map(|_| ())
}

fn is_chain(outcome: &Result<(), AttestationError>) -> bool {
    matches!(outcome, Err(AttestationError::Chain(_)))
}

/// Valid in another hour.
fn at(params: &mut CertificateParams, from_ms: u64, until_ms: u64) {
    let other = build::certificate("times", from_ms, until_ms).unwrap();
    (params.not_before, params.not_after) = (other.not_before, other.not_after);
}

#[test]
fn a_chain_as_it_should_be_is_taken() {
    assert_eq!(outcome(|_| ()), Ok(()));
}

#[test]
fn a_root_that_only_looks_like_the_trusted_one_is_refused() {
    let [made, other] = [Made::new(), Made::new()];
    // Same names everywhere, another key.
    assert_eq!(
        verify(&other.signed(), &made.trust(), NOW_MS),
        Err(AttestationError::UnknownRoot)
    );
    // The trusted root, above a chain of the other.
    let under = other.signed_under(&other.leaf, &[&made.root, &other.upper, &other.lower]);
    assert!(is_chain(&verify(&under, &made.trust(), NOW_MS).map(|_| ())));
    // The same key and names in another certificate: byte for byte or not at all.
    let forge = Forge::new();
    let [first, second] = [forge.make(), forge.make()];
    assert_ne!(first.root, second.root);
    assert_eq!(
        verify(&second.signed(), &first.trust(), NOW_MS),
        Err(AttestationError::UnknownRoot)
    );
}

#[test]
fn the_root_stands_at_the_beginning_and_nowhere_else() {
    let made = Made::new();
    let (root, upper, lower): (&[u8], &[u8], &[u8]) = (&made.root, &made.upper, &made.lower);
    let outcome = |bundle: &[&[u8]]| verify(&made.signed_under(&made.leaf, bundle), &made.trust(), NOW_MS).map(|_| ());
    assert_eq!(outcome(&[root, upper, lower]), Ok(()));
    assert_eq!(outcome(&[lower, upper, root]), Err(AttestationError::UnknownRoot));
    assert_eq!(outcome(&[upper, lower, root]), Err(AttestationError::UnknownRoot));
    assert_eq!(outcome(&[upper, lower]), Err(AttestationError::UnknownRoot));
    assert!(is_chain(&outcome(&[root, lower, upper])));
    assert!(is_chain(&outcome(&[root, root, upper, lower])));
}

#[test]
fn a_certificate_that_is_missing_or_no_part_of_the_chain_is_refused() {
    let [made, other] = [Made::new(), Made::new()];
    let (root, upper, lower): (&[u8], &[u8], &[u8]) = (&made.root, &made.upper, &made.lower);
    let outcome = |bundle: &[&[u8]]| verify(&made.signed_under(&made.leaf, bundle), &made.trust(), NOW_MS).map(|_| ());
    assert!(is_chain(&outcome(&[root])));
    assert!(is_chain(&outcome(&[root, upper])));
    assert!(is_chain(&outcome(&[root, lower])));
    assert!(is_chain(&outcome(&[root, upper, lower, lower])));
    assert!(is_chain(&outcome(&[root, upper, lower, &other.lower])));
    assert!(is_chain(&outcome(&[root, &other.upper, upper, lower])));
    assert!(is_chain(&outcome(&[root, upper, &other.lower])));
    assert!(is_chain(&outcome(&[root, upper, lower, &[0x30, 0x00]])));
}

#[test]
fn a_leaf_of_another_chain_or_of_another_key_is_refused() {
    let forge = Forge::new();
    let [made, same_authority] = [forge.make(), forge.make()];
    let stranger = Made::new();
    let bundle: [&[u8]; 3] = [&made.root, &made.upper, &made.lower];
    let outcome = |leaf: &[u8]| verify(&made.signed_under(leaf, &bundle), &made.trust(), NOW_MS).map(|_| ());
    assert!(is_chain(&outcome(&stranger.leaf)));
    assert!(is_chain(&outcome(&[0x30, 0x00])));
    assert_eq!(outcome(&same_authority.leaf), Err(AttestationError::Signature));
}

#[test]
fn an_authority_signs_no_documents() {
    // With the key of the lowest authority itself.
    let made = Made::new();
    let bundle: [&[u8]; 2] = [&made.root, &made.upper];
    let outcome = verify(&made.signed_under(&made.lower, &bundle), &made.trust(), NOW_MS).map(|_| ());
    assert!(is_chain(&outcome));
    assert!(is_chain(&self::outcome(
        |forge| forge.leaf.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))
    )));
}

#[test]
fn a_signer_with_a_path_length_is_refused() {
    // BasicConstraints { pathLenConstraint 0 }, and no authority.
    let constraints = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 0x03, 0x02, 0x01, 0x00]);
    let refused = outcome(|forge| {
        forge.leaf.is_ca = IsCa::NoCa;
        forge.leaf.custom_extensions = vec![constraints];
    });
    assert!(is_chain(&refused), "{refused:?}");
}

#[test]
fn what_is_no_authority_signs_no_certificates() {
    assert!(is_chain(&outcome(|forge| forge.lower.is_ca = IsCa::ExplicitNoCa)));
    assert!(is_chain(&outcome(|forge| forge.upper.is_ca = IsCa::NoCa)));
    assert_eq!(
        outcome(|forge| forge.root.is_ca = IsCa::ExplicitNoCa),
        Err(AttestationError::Root("it is no authority"))
    );
}

#[test]
fn key_usage_says_who_may_sign_what() {
    let others = || {
        vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::KeyAgreement,
        ]
    };
    for usages in [others(), Vec::new()] {
        let refused = outcome(|forge| forge.upper.key_usages = usages.clone());
        assert_eq!(
            refused,
            Err(AttestationError::Chain("an authority may not sign certificates"))
        );
        let refused = outcome(|forge| forge.lower.key_usages = usages.clone());
        assert_eq!(
            refused,
            Err(AttestationError::Chain("an authority may not sign certificates"))
        );
        let refused = outcome(|forge| forge.root.key_usages = usages);
        assert_eq!(refused, Err(AttestationError::Root("it may not sign certificates")));
    }
    for usages in [
        vec![KeyUsagePurpose::ContentCommitment, KeyUsagePurpose::KeyCertSign],
        Vec::new(),
    ] {
        let refused = outcome(|forge| forge.leaf.key_usages = usages);
        assert_eq!(
            refused,
            Err(AttestationError::Chain(
                "the certificate that signed may not sign documents"
            ))
        );
    }
    // AWS's leaves say both.
    let both = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::ContentCommitment];
    assert_eq!(outcome(|forge| forge.leaf.key_usages = both), Ok(()));
}

#[test]
fn a_chain_is_not_longer_than_its_authorities_allow() {
    let ca = |length| IsCa::Ca(BasicConstraints::Constrained(length));
    assert!(is_chain(&outcome(|forge| forge.upper.is_ca = ca(0))));
    assert_eq!(outcome(|forge| forge.lower.is_ca = ca(5)), Ok(()));
    assert_eq!(outcome(|forge| forge.root.is_ca = ca(2)), Ok(()));
    let refused = outcome(|forge| forge.root.is_ca = ca(1));
    assert_eq!(
        refused,
        Err(AttestationError::Chain("it is longer than its root allows"))
    );
}

#[test]
fn every_certificate_has_to_be_valid_now() {
    let pick: [fn(&mut Forge) -> &mut CertificateParams; 4] = [
        |forge| &mut forge.root,
        |forge| &mut forge.upper,
        |forge| &mut forge.lower,
        |forge| &mut forge.leaf,
    ];
    for (place, certificate) in pick.into_iter().enumerate() {
        let over = outcome(|forge| at(certificate(forge), NOW_MS - 2 * HOUR_MS, NOW_MS - 1000));
        assert_eq!(over, Err(AttestationError::Validity), "over: {place}");
        let early = outcome(|forge| at(certificate(forge), NOW_MS + HOUR_MS, NOW_MS + 2 * HOUR_MS));
        assert_eq!(early, Err(AttestationError::Validity), "not yet: {place}");
        let last_second = outcome(|forge| at(certificate(forge), NOW_MS - HOUR_MS, NOW_MS));
        assert_eq!(last_second, Ok(()), "{place}");
    }
}

#[test]
fn keys_are_on_p_384() {
    let p256 = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    assert!(is_chain(&outcome(|forge| forge.upper_key = p256())));
    assert!(is_chain(&outcome(|forge| forge.lower_key = p256())));
    assert_eq!(
        outcome(|forge| forge.root_key = p256()),
        Err(AttestationError::Root("its key is not on P-384"))
    );
    // A leaf on P-256 in a chain that is right otherwise.
    let forge = Forge::new();
    let made = forge.make();
    let issuer = rcgen::Issuer::from_params(&forge.lower, &forge.lower_key);
    let leaf = forge.leaf.signed_by(&p256(), &issuer).unwrap();
    let document = made.signed_under(leaf.der(), &[&made.root, &made.upper, &made.lower]);
    let refused = verify(&document, &made.trust(), NOW_MS);
    assert_eq!(
        refused,
        Err(AttestationError::Chain("the key that signed is not on P-384"))
    );
}

#[test]
fn a_certificate_for_another_purpose_or_with_unknown_critical_extensions_is_refused() {
    for purpose in [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth] {
        assert!(is_chain(&outcome(
            |forge| forge.leaf.extended_key_usages = vec![purpose]
        )));
    }
    let unknown = |critical| {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![0x05, 0x00]);
        extension.set_criticality(critical);
        vec![extension]
    };
    assert!(is_chain(&outcome(|forge| forge.leaf.custom_extensions = unknown(true))));
    assert!(is_chain(
        &outcome(|forge| forge.lower.custom_extensions = unknown(true))
    ));
    assert_eq!(outcome(|forge| forge.leaf.custom_extensions = unknown(false)), Ok(()));
}

#[test]
fn a_flipped_signature_of_any_certificate_is_refused() {
    let made = Made::new();
    let flipped = |certificate: &[u8]| {
        let mut certificate = certificate.to_vec();
        *certificate.last_mut().unwrap() ^= 1;
        certificate
    };
    let (root, upper, lower): (&[u8], &[u8], &[u8]) = (&made.root, &made.upper, &made.lower);
    let outcome =
        |leaf: &[u8], bundle: &[&[u8]]| verify(&made.signed_under(leaf, bundle), &made.trust(), NOW_MS).map(|_| ());
    assert!(is_chain(&outcome(&flipped(&made.leaf), &[root, upper, lower])));
    assert!(is_chain(&outcome(&made.leaf, &[root, upper, &flipped(lower)])));
    assert!(is_chain(&outcome(&made.leaf, &[root, &flipped(upper), lower])));
    assert_eq!(
        outcome(&made.leaf, &[&flipped(root), upper, lower]),
        Err(AttestationError::UnknownRoot)
    );
}

#[test]
fn what_cannot_be_a_root_is_not_trusted() {
    let made = Made::new();
    assert!(Trust::with_dev_root(&made.root).is_ok());
    let longer = [&made.root[..], &[0]].concat();
    for wrong in [&made.leaf[..], &[], &[0x30, 0x00], &longer, &made.root[..200]] {
        assert!(matches!(Trust::with_dev_root(wrong), Err(AttestationError::Root(_))));
    }
}

#[test]
fn a_root_that_was_kept_signs_on_until_it_is_over() {
    let root = DevRoot::generate(NOW_MS).unwrap();
    let kept = DevRoot::load(root.certificate(), &root.private_key()).unwrap();
    let trust = Trust::with_dev_root(root.certificate()).unwrap();
    let later = NOW_MS + 1000 * HOUR_MS;
    let issuer = kept.issuer(later).unwrap();
    let document = issuer.document(&super::document()).unwrap();
    assert!(verify(&document, &trust, later).is_ok());
    assert!(verify(&document, &trust, issuer.valid_until_ms()).is_ok());
    assert_eq!(
        verify(&document, &trust, issuer.valid_until_ms() + 1000),
        Err(AttestationError::Validity)
    );
    let ten_years = 3650 * 24 * HOUR_MS;
    assert!(kept.issuer(NOW_MS + ten_years).is_ok());
    assert_eq!(
        kept.issuer(NOW_MS + ten_years + 1000).err(),
        Some(BuildError::Certificate)
    );
    assert_eq!(kept.issuer(u64::MAX).err(), Some(BuildError::Certificate));
}

#[test]
fn a_root_with_the_key_of_another_signs_nothing() {
    let [root, other] = [DevRoot::generate(NOW_MS).unwrap(), DevRoot::generate(NOW_MS).unwrap()];
    let mixed = DevRoot::load(root.certificate(), &other.private_key()).unwrap();
    assert_eq!(mixed.issuer(NOW_MS).err(), Some(BuildError::Certificate));
    assert_eq!(
        DevRoot::load(root.certificate(), b"no key").err(),
        Some(BuildError::Key)
    );
    let p256 = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap().serialize_der();
    assert_eq!(DevRoot::load(root.certificate(), &p256).err(), Some(BuildError::Key));
    assert!(
        KeyPair::from_pkcs8_der_and_sign_algo(&root.private_key().to_vec().into(), &PKCS_ECDSA_P384_SHA384).is_ok()
    );
}

#[test]
fn a_root_and_an_issuer_print_nothing_of_their_keys() {
    let root = DevRoot::generate(NOW_MS).unwrap();
    assert_eq!(format!("{root:?}"), "DevRoot([redacted])");
    let issuer = root.issuer(NOW_MS).unwrap();
    assert_eq!(
        format!("{issuer:?}"),
        format!("Issuer {{ valid_until_ms: {}, .. }}", NOW_MS + 3 * HOUR_MS)
    );
}
