//! Sealed values, binary and text: whatever is read is canonical, so it is written as the same bytes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow::seal::SealedValue;
use sealflow::seal::value::{read_text, write_text};

fuzz_target!(|bytes: &[u8]| {
    let mut sealed = Vec::new();
    if read_text(bytes, &mut sealed).is_ok() {
        let mut text = Vec::new();
        write_text(&sealed, &mut text);
        assert_eq!(text, bytes);
    }
    for bytes in [bytes, &sealed] {
        match SealedValue::parse(bytes) {
            Ok(SealedValue::Randomised { ciphertext, .. }) => assert_eq!(ciphertext.len() + 47, bytes.len()),
            Ok(SealedValue::Deterministic { ciphertext, .. }) => assert_eq!(ciphertext.len() + 33, bytes.len()),
            Err(_) => {}
        }
    }
});
