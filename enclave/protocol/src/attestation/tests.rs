//! Documents as they are built, and changed in every way that has to be noticed. [`chains`] does the same to certificates.

mod chains;
mod checks;
mod forge;

use std::sync::LazyLock;

use forge::{Made, NOW_MS, document};
use proptest::prelude::*;

use super::build::DevRoot;
use super::*;

/// A document of AWS Nitro, published by its owner, and when it was made.
const REAL: &[u8] = include_bytes!("../../tests/data/nitro-2025-07-18.cose");
const REAL_MS: u64 = 1_752_827_858_990;
const REAL_IMAGE: &str =
    "19d44c076cdbc0d6a0a7d0d6c661e7888a710fb324c56b54d678a0ae0fc9bf41be4b45c07f4010a21f34f518bd1407d1";
/// How long its certificate was valid: 2025-07-18 08:23:24 to 11:23:27.
const REAL_VALIDITY_MS: (u64, u64) = (1_752_827_004_000, 1_752_837_807_999);

#[test]
fn the_root_of_nitro_has_the_fingerprint_that_aws_publishes_and_signed_itself() {
    let fingerprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, NITRO_ROOT);
    assert_eq!(
        hex::encode_upper(fingerprint),
        "641A0321A3E244EFE456463195D606317ED7CDCC3C1756E09893F3C68F79BB5B"
    );
    // SEQUENCE { tbsCertificate, signatureAlgorithm, BIT STRING }, lengths as they stand in these bytes.
    let (signed, rest) = NITRO_ROOT[4..].split_at(4 + 0x196);
    let signature = &rest[12 + 3..];
    let point = &signed[signed
        .windows(3)
        .position(|window| window == [0x62, 0x00, 0x04])
        .unwrap()
        + 2..][..97];
    UnparsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P384_SHA384_ASN1, point)
        .verify(signed, signature)
        .unwrap();
}

#[test]
fn a_document_of_nitro_verifies_at_its_own_time() {
    let document = verify(REAL, &Trust::nitro(), REAL_MS).unwrap();
    assert_eq!(document.tier, Tier::Nitro);
    assert_eq!(document.module_id, "i-0a9f2a8b8dd31c7c8-enc019802a541b75725");
    assert_eq!(document.timestamp_ms, REAL_MS);
    assert_eq!(document.pcrs.len(), 16);
    assert_eq!(document.public_key.as_ref().map(Vec::len), Some(32));
    assert_eq!((document.user_data.as_ref(), document.nonce.as_ref()), (None, None));
    let allowed = [Measurements::of_image(REAL_IMAGE.parse().unwrap())];
    let expected = Expected {
        nonce: None,
        measurements: &allowed,
        now_ms: REAL_MS + 1000,
        max_age_ms: 60_000,
    };
    assert_eq!(document.check(&expected), Ok(&allowed[0]));
}

#[test]
fn a_document_of_nitro_is_refused_outside_the_three_hours_of_its_certificate() {
    let at = |now_ms| verify(REAL, &Trust::nitro(), now_ms).map(|_| ());
    let (from, until) = REAL_VALIDITY_MS;
    assert_eq!((at(from), at(until)), (Ok(()), Ok(())));
    for now_ms in [0, from - 1, until + 1, NOW_MS, u64::MAX] {
        assert_eq!(at(now_ms), Err(AttestationError::Validity), "{now_ms}");
    }
}

#[test]
fn a_document_of_nitro_with_any_byte_changed_is_refused() {
    for place in 0..REAL.len() {
        let mut changed = REAL.to_vec();
        changed[place] ^= 1;
        assert!(verify(&changed, &Trust::nitro(), REAL_MS).is_err(), "at {place}");
    }
}

#[test]
fn what_is_built_verifies_and_comes_back() {
    let root = DevRoot::generate(NOW_MS).unwrap();
    let issuer = root.issuer(NOW_MS).unwrap();
    let trust = Trust::with_dev_root(root.certificate()).unwrap();
    let full = document();
    let bare = Document {
        public_key: None,
        user_data: None,
        nonce: None,
        ..document()
    };
    let largest = Document {
        module_id: "m".repeat(512),
        pcrs: (0..32).map(|index| (index, vec![index; 64])).collect(),
        public_key: Some(vec![1; 1024]),
        user_data: Some(vec![2; 512]),
        nonce: Some(vec![3; 512]),
        ..document()
    };
    for document in [full, bare, largest] {
        let signed = issuer.document(&document).unwrap();
        assert_eq!(verify(&signed, &trust, NOW_MS).as_ref(), Ok(&document));
    }
}

#[test]
fn a_document_under_a_root_for_development_is_nothing_to_who_trusts_nitro_alone() {
    let root = DevRoot::generate(NOW_MS).unwrap();
    let signed = root.issuer(NOW_MS).unwrap().document(&document()).unwrap();
    assert_eq!(
        verify(&signed, &Trust::nitro(), NOW_MS),
        Err(AttestationError::UnknownRoot)
    );
    // And who trusts a root for development trusts Nitro's still, each with its tier.
    let trust = Trust::with_dev_root(root.certificate()).unwrap();
    assert_eq!(verify(&signed, &trust, NOW_MS).unwrap().tier, Tier::DevSoftwareNsm);
    assert_eq!(verify(REAL, &trust, REAL_MS).unwrap().tier, Tier::Nitro);
}

#[test]
fn what_is_cut_off_or_goes_on_is_refused() {
    let made = Made::new();
    let signed = made.signed();
    for length in 0..signed.len() {
        assert!(verify(&signed[..length], &made.trust(), NOW_MS).is_err(), "{length}");
    }
    let longer = [&signed[..], &[0]].concat();
    assert_eq!(
        verify(&longer, &made.trust(), NOW_MS),
        Err(AttestationError::Syntax("something follows it"))
    );
    assert_eq!(
        verify(&vec![0x84; MAX_DOCUMENT_BYTES + 1], &made.trust(), NOW_MS),
        Err(AttestationError::TooLong)
    );
}

#[test]
fn what_an_emulator_makes_is_refused() {
    // QEMU: algorithm -1, a signature of zeros.
    let made = Made::new();
    let unsigned = build::sign1(&[0xa1, 0x01, 0x20], &made.payload(), &[0; 96]);
    assert_eq!(
        verify(&unsigned, &made.trust(), NOW_MS),
        Err(AttestationError::Algorithm)
    );
    // The same under the right name.
    let unsigned = build::sign1(&syntax::PROTECTED, &made.payload(), &[0; 96]);
    assert_eq!(
        verify(&unsigned, &made.trust(), NOW_MS),
        Err(AttestationError::Signature)
    );
}

#[test]
fn another_algorithm_or_header_is_refused_though_the_signature_is_right() {
    let made = Made::new();
    let headers: [(&str, &[u8]); 6] = [
        ("none", &[]),
        ("an empty map", &[0xa0]),
        ("ES256", &[0xa1, 0x01, 0x26]),
        ("ES512", &[0xa1, 0x01, 0x38, 0x23]),
        ("something critical", &[0xa2, 0x01, 0x38, 0x22, 0x02, 0x81, 0x04]),
        ("a key id", &[0xa2, 0x01, 0x38, 0x22, 0x04, 0x41, 0x00]),
    ];
    for (what, protected) in headers {
        assert_eq!(
            verify(&made.signed_with_header(protected), &made.trust(), NOW_MS),
            Err(AttestationError::Algorithm),
            "{what}"
        );
    }
    assert!(verify(&made.signed_with_header(&syntax::PROTECTED), &made.trust(), NOW_MS).is_ok());
}

#[test]
fn a_cose_sign1_of_another_shape_is_refused() {
    let made = Made::new();
    let signed = made.signed();
    let tagged = [&[0xd2][..], &signed].concat();
    // The header is `84 44 a1013822 a0`.
    let unprotected = [&signed[..6], &[0xa1, 0x04, 0x40], &signed[7..]].concat();
    let three = [&[0x83][..], &signed[1..]].concat();
    let five = [&[0x85][..], &signed[1..], &[0x40]].concat();
    let payload = made.payload();
    let mut in_pieces = signed[..7].to_vec();
    in_pieces.push(0x5f);
    syntax::bytes(&mut in_pieces, &payload);
    in_pieces.push(0xff);
    in_pieces.extend(&signed[signed.len() - 98..]);
    for (what, document) in [
        ("tagged", tagged),
        ("unprotected", unprotected),
        ("three", three),
        ("five", five),
        ("in pieces", in_pieces),
    ] {
        let refused = verify(&document, &made.trust(), NOW_MS);
        assert!(
            matches!(refused, Err(AttestationError::Syntax(_))),
            "{what}: {refused:?}"
        );
    }
    for length in [0, 64, 95, 97] {
        let short = build::sign1(&syntax::PROTECTED, &payload, &vec![1; length]);
        assert_eq!(
            verify(&short, &made.trust(), NOW_MS),
            Err(AttestationError::Syntax("its signature has not 96 bytes"))
        );
    }
}

#[test]
fn a_document_with_any_byte_changed_is_refused() {
    let made = Made::new();
    let signed = made.signed();
    for place in 0..signed.len() {
        for bit in [0, 7] {
            let mut changed = signed.clone();
            changed[place] ^= 1 << bit;
            assert!(verify(&changed, &made.trust(), NOW_MS).is_err(), "bit {bit} at {place}");
        }
    }
}

#[test]
fn a_signature_of_somebody_else_is_refused() {
    let [made, other] = [Made::new(), Made::new()];
    let payload = made.payload();
    let forged = build::sign(&payload, &other.signer).unwrap();
    assert_eq!(verify(&forged, &made.trust(), NOW_MS), Err(AttestationError::Signature));
    // The signature of another document of the same signer.
    let mut another = made.signed();
    let signature = another.split_off(another.len() - 96);
    let mut later = Made {
        document: Document {
            timestamp_ms: NOW_MS + 1,
            ..document()
        },
        ..made
    };
    let mut swapped = later.signed();
    swapped.truncate(swapped.len() - 96);
    swapped.extend(signature);
    assert_eq!(
        verify(&swapped, &later.trust(), NOW_MS),
        Err(AttestationError::Signature)
    );
    later.document.timestamp_ms = NOW_MS;
    assert!(verify(&later.signed(), &later.trust(), NOW_MS).is_ok());
}

/// Every rule of the payload's syntax, each broken alone, and signed by who may sign.
#[test]
fn a_payload_of_another_syntax_is_refused_though_the_signature_is_right() {
    let made = Made::new();
    let good = forge::fields(&made);
    assert!(verify(&made.signed_fields(&good), &made.trust(), NOW_MS).is_ok());

    let certificate = &good.iter().find(|(name, _)| name == "certificate").unwrap().1;
    let bundle = |entries: &[&[u8]]| forge::array(entries);
    let pcr = |index: u8, length: usize| [&[index][..], &forge::bytes(&vec![1; length])].concat();
    let broken: Vec<(&str, Vec<u8>)> = vec![
        ("module_id", forge::text("")),
        ("module_id", forge::bytes(b"dev")),
        ("module_id", vec![0xf6]),
        ("module_id", vec![0x62, 0xff, 0xff]),
        ("digest", forge::text("SHA256")),
        ("digest", forge::text("SHA512")),
        ("digest", forge::bytes(b"SHA384")),
        ("timestamp", vec![0x00]),
        ("timestamp", vec![0x20]),
        ("timestamp", forge::text("1")),
        ("timestamp", vec![0xf6]),
        ("pcrs", vec![0xa0]),
        ("pcrs", vec![0x80]),
        ("pcrs", vec![0xf6]),
        ("pcrs", [&[0xa1][..], &pcr(0, 47)].concat()),
        ("pcrs", [&[0xa1][..], &pcr(0, 0)].concat()),
        ("pcrs", [&[0xa2][..], &pcr(0, 48), &pcr(0, 48)].concat()),
        (
            "pcrs",
            [&[0xa2][..], &pcr(0, 48), &[0x18, 32], &forge::bytes(&[1; 48])].concat(),
        ),
        ("pcrs", [&[0xa1, 0x20][..], &forge::bytes(&[1; 48])].concat()),
        ("pcrs", [&[0xa1, 0x61, b'0'][..], &forge::bytes(&[1; 48])].concat()),
        ("certificate", vec![0x40]),
        ("certificate", vec![0xf6]),
        ("certificate", forge::bytes(&[0x30; 1025])),
        ("certificate", forge::text("certificate")),
        ("cabundle", vec![0x80]),
        ("cabundle", vec![0xf6]),
        ("cabundle", vec![0xa0]),
        ("cabundle", bundle(&[&forge::bytes(&made.root), &[0x40]])),
        (
            "cabundle",
            bundle(&[&forge::bytes(&made.root), &forge::bytes(&[0x30; 1025])]),
        ),
        (
            "cabundle",
            bundle(&[&forge::bytes(&made.root)[..], &[certificate.as_slice(); 7].concat()]),
        ),
        ("cabundle", bundle(&[certificate.as_slice(); 8])),
        ("public_key", vec![0x40]),
        ("public_key", forge::bytes(&[1; 1025])),
        ("public_key", forge::text("key")),
        ("public_key", vec![0xf7]),
        ("user_data", forge::bytes(&[1; 513])),
        ("user_data", vec![0x5f, 0x41, 0x00, 0xff]),
        ("nonce", forge::bytes(&[1; 513])),
        ("nonce", vec![0x01]),
    ];
    for (name, value) in broken {
        let mut fields = good.clone();
        fields.iter_mut().find(|(field, _)| field == name).unwrap().1 = value.clone();
        let refused = verify(&made.signed_fields(&fields), &made.trust(), NOW_MS);
        assert!(
            matches!(refused, Err(AttestationError::Syntax(_))),
            "{name} = {value:02x?}: {refused:?}"
        );
    }
}

#[test]
fn fields_that_are_missing_unknown_or_twice_are_refused_though_the_signature_is_right() {
    let made = Made::new();
    let good = forge::fields(&made);
    for (place, (name, value)) in good.iter().enumerate() {
        let optional = ["public_key", "user_data", "nonce"].contains(&name.as_str());
        let mut without = good.clone();
        without.remove(place);
        let result = verify(&made.signed_fields(&without), &made.trust(), NOW_MS);
        match result {
            Ok(_) => assert!(optional, "{name} is missing"),
            Err(error) => assert!(
                !optional && matches!(error, AttestationError::Syntax(_)),
                "{name}: {error:?}"
            ),
        }
        let mut twice = good.clone();
        twice.push((name.clone(), value.clone()));
        assert_eq!(
            verify(&made.signed_fields(&twice), &made.trust(), NOW_MS),
            Err(AttestationError::Syntax("a field is there twice")),
            "{name}"
        );
        // `null` is how AWS writes a claim that is not there.
        let mut null = good.clone();
        null[place].1 = vec![0xf6];
        assert_eq!(
            verify(&made.signed_fields(&null), &made.trust(), NOW_MS).is_ok(),
            optional,
            "{name} is null"
        );
    }
    let mut unknown = good.clone();
    unknown.push(("pcr".to_owned(), vec![0x00]));
    assert_eq!(
        verify(&made.signed_fields(&unknown), &made.trust(), NOW_MS),
        Err(AttestationError::Syntax("it has a field that is not known"))
    );
    let mut reversed = good;
    reversed.reverse();
    assert!(verify(&made.signed_fields(&reversed), &made.trust(), NOW_MS).is_ok());
}

#[test]
fn maps_of_indefinite_length_are_taken_and_have_to_end() {
    let made = Made::new();
    let entries: Vec<u8> = forge::fields(&made)
        .into_iter()
        .flat_map(|(name, value)| [forge::text(&name), value].concat())
        .collect();
    let count = 0xa9;
    let take = |payload: &[u8]| verify(&build::sign(payload, &made.signer).unwrap(), &made.trust(), NOW_MS);
    assert!(take(&[&[0xbf][..], &entries, &[0xff]].concat()).is_ok());
    for (what, payload) in [
        ("no end", [&[0xbf][..], &entries].concat()),
        ("an end in a map of nine", [&[count][..], &entries, &[0xff]].concat()),
        (
            "an end in place of an entry",
            [&[count + 1][..], &entries, &[0xff]].concat(),
        ),
        (
            "more than are there",
            [&[0xbb][..], &u64::MAX.to_be_bytes(), &entries].concat(),
        ),
        ("fewer than are there", [&[count - 1][..], &entries].concat()),
        ("something behind it", [&[count][..], &entries, &[0x00]].concat()),
        ("a tag", [&[0xc1, count][..], &entries].concat()),
        ("nothing", Vec::new()),
    ] {
        let refused = take(&payload);
        assert!(
            matches!(refused, Err(AttestationError::Syntax(_))),
            "{what}: {refused:?}"
        );
    }
}

/// Documents within the bounds.
fn documents() -> impl Strategy<Value = Document> {
    let bytes = |least: usize, most: usize| proptest::collection::vec(any::<u8>(), least..=most);
    let pcr = prop_oneof![Just(32_usize), Just(48), Just(64)].prop_flat_map(move |length| bytes(length, length));
    let pcrs = proptest::collection::btree_map(0..32_u8, pcr, 1..=32);
    let claims = (
        proptest::option::of(bytes(1, 1024)),
        proptest::option::of(bytes(0, 512)),
        proptest::option::of(bytes(0, 512)),
    );
    ("[a-z0-9é-]{1,64}", 1..=u64::MAX, pcrs, claims).prop_map(
        |(module_id, timestamp_ms, pcrs, (public_key, user_data, nonce))| Document {
            module_id,
            timestamp_ms,
            pcrs,
            public_key,
            user_data,
            nonce,
            tier: Tier::DevSoftwareNsm,
        },
    )
}

proptest! {
    #[test]
    fn any_document_within_the_bounds_comes_back(document in documents()) {
        static MADE: LazyLock<(build::Issuer, Trust)> = LazyLock::new(|| {
            let root = DevRoot::generate(NOW_MS).unwrap();
            (root.issuer(NOW_MS).unwrap(), Trust::with_dev_root(root.certificate()).unwrap())
        });
        let signed = MADE.0.document(&document).unwrap();
        prop_assert!(signed.len() <= MAX_DOCUMENT_BYTES);
        prop_assert_eq!(verify(&signed, &MADE.1, NOW_MS), Ok(document));
    }

    #[test]
    fn bytes_that_are_made_up_never_panic_and_are_never_believed(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        at in 0..REAL.len(),
    ) {
        prop_assert!(verify(&bytes, &Trust::nitro(), REAL_MS).is_err());
        let mut overwritten = REAL.to_vec();
        let end = (at + bytes.len()).min(REAL.len());
        overwritten[at..end].copy_from_slice(&bytes[..end - at]);
        let changed = overwritten != REAL;
        prop_assert_eq!(verify(&overwritten, &Trust::nitro(), REAL_MS).is_err(), changed);
        let _ = Trust::with_dev_root(&bytes);
    }
}

/// Writes the seeds of the fuzz target `attestation`, whose root nobody has the key of. Run it when documents change.
#[test]
#[ignore = "writes files"]
fn seeds_of_the_fuzz_target_are_written() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/attestation");
    std::fs::create_dir_all(&folder).unwrap();
    let root = DevRoot::generate(NOW_MS).unwrap();
    let signed = root.issuer(NOW_MS).unwrap().document(&document()).unwrap();
    std::fs::write(folder.join("root"), root.certificate()).unwrap();
    std::fs::write(folder.join("document"), signed).unwrap();
    std::fs::write(folder.join("nitro"), REAL).unwrap();
}
