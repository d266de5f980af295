//! Key envelopes, their text form and the header that carries them: no panic, bounded, and what is read comes
//! back the same after writing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow::keys::Envelope;
use sealflow::keys::envelope::{MAX_ENVELOPE_BYTES, MAX_ENVELOPES, read_header, write_header};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(envelope) = Envelope::from_bytes(bytes) {
        // Unknown entries of a later version are not written again, so this can only have become smaller.
        let again = envelope.to_bytes();
        if let Ok(again) = again {
            assert_eq!(Envelope::from_bytes(&again), Ok(envelope));
        }
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Envelope::from_text(text);
    }
    if let Ok(envelopes) = read_header(bytes) {
        assert!(
            envelopes.len() <= MAX_ENVELOPES && envelopes.iter().all(|envelope| envelope.len() <= MAX_ENVELOPE_BYTES)
        );
        let again = write_header(envelopes.iter().copied());
        assert_eq!(read_header(&again), Ok(envelopes));
    }
});
