//! Plaintext encodings: whatever decodes is canonical, so it encodes to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow::seal::Plaintext;

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = Plaintext::decode(bytes) else { return };
    let mut encoded = Vec::new();
    // The type byte's high bit means padding, which may have been to any multiple: compare values then.
    if bytes[0] & 0x80 == 0 {
        value.encode(None, &mut encoded);
        assert_eq!(encoded, bytes);
    } else {
        value.encode(Some(16), &mut encoded);
        assert!(Plaintext::decode(&encoded) == Ok(value));
    }
});
