//! Attestation documents: no input panics, and whatever verifies is the document that was built, field for field.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sealflow_enclave_protocol::attestation::{Document, Expected, Measurement, Measurements, Trust, verify};

/// The root, and a document under it, as the ignored test `seeds_of_the_fuzz_target_are_written` wrote them.
const ROOT: &[u8] = include_bytes!("../corpus/attestation/root");
const BUILT: &[u8] = include_bytes!("../corpus/attestation/document");
/// When that was: 2026-11-29 00:00:00.
const NOW_MS: u64 = 1_795_910_400_000;

static TRUST: LazyLock<Trust> = LazyLock::new(|| Trust::with_dev_root(ROOT).expect("the root is one"));
static DOCUMENT: LazyLock<Document> = LazyLock::new(|| verify(BUILT, &TRUST, NOW_MS).expect("the seed verifies"));

fuzz_target!(|bytes: &[u8]| {
    // As a whole.
    believed(bytes);
    // As an edit of the document: where, how much is taken out, what is put in.
    if let [high, low, out, put @ ..] = bytes {
        let at = usize::from(u16::from_be_bytes([*high, *low])) % (BUILT.len() + 1);
        let after = (at + usize::from(*out)).min(BUILT.len());
        believed(&[&BUILT[..at], put, &BUILT[after..]].concat());
    }
    // As a root.
    let _ = Trust::with_dev_root(bytes);
});

fn believed(bytes: &[u8]) {
    // Nothing that is fed here was signed by AWS.
    assert!(verify(bytes, &Trust::nitro(), NOW_MS).is_err());
    let Ok(document) = verify(bytes, &TRUST, NOW_MS) else {
        return;
    };
    assert_eq!(document, *DOCUMENT);
    let allowed = [Measurements::of_image(
        Measurement::new(&[1; 48]).expect("it is not zero"),
    )];
    let expected = Expected {
        nonce: Some(&[6; 32]),
        measurements: &allowed,
        now_ms: NOW_MS,
        max_age_ms: 0,
    };
    assert!(document.check(&expected).is_ok());
}
