//! Messages of the enclave's relay, towards either end: no panic, bounds hold, and a message that is read is written again byte
//! for byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow_enclave_protocol::relay::{MAX_STREAMS, Message, Read, Received, Refusal, Streams};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(message) = Message::decode(bytes) {
        assert_eq!(message.encode(), bytes);
    }
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let mut end = if first & 1 == 0 {
        Streams::opener()
    } else {
        Streams::dialer()
    };
    for _ in 0..first >> 2 {
        let _ = end.open("a", 443);
    }
    let mut rest = rest;
    // Each a length and so many bytes.
    while let Some((length, behind)) = rest.split_first() {
        let length = usize::from(*length).min(behind.len());
        let (message, behind) = behind.split_at(length);
        rest = behind;
        match end.receive(message) {
            Ok(Received::Open { stream, .. }) if first & 2 == 0 => {
                let _ = end.opened(stream);
            }
            Ok(Received::Open { stream, .. }) => end.refuse(stream, Refusal::Unreachable),
            Ok(Received::Changed { stream }) => {
                let mut out = [0; 16];
                while let Read::Bytes(read) = end.read(stream, &mut out) {
                    assert!(read > 0);
                }
                let _ = end.write(stream, &out);
            }
            Ok(Received::Nothing) => {}
            Err(_) => return,
        }
        assert!(end.len() <= MAX_STREAMS);
    }
    while let Some(message) = end.next_message() {
        assert!(Message::decode(&message).is_ok());
    }
});
