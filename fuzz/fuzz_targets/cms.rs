//! Released keys: no input panics or opens to more than it holds, and what opens has a shape in which nothing but the key
//! identifier, the wrapped key, the IV and the content can vary.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow_enclave_protocol::cms::{MAX_MESSAGE_BYTES, open};
use zeroize::Zeroizing;

fuzz_target!(|bytes: &[u8]| {
    let mut wrapped_bytes = None;
    let opened = open(bytes, |wrapped| {
        wrapped_bytes = Some(wrapped.len());
        Some(Zeroizing::new(vec![7; 32]))
    });
    if let Ok(text) = opened {
        let wrapped = wrapped_bytes.expect("nothing opens without its key");
        assert!(bytes.len() <= MAX_MESSAGE_BYTES);
        // At least one byte of padding, and the frame around it.
        assert!(text.len() + wrapped + 32 + 16 < bytes.len());
    }
    // The key is asked for once the shape is right; what has none never uses it.
    if bytes.first() != Some(&0x30) {
        assert_eq!(wrapped_bytes, None);
    }
});
