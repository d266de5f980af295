//! Dead letters: the clear JSON and the record sealed in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow::pipeline::dead_letter::decode_record;
use sealflow::pipeline::{DeadLetter, Position};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(letter) = DeadLetter::from_json(bytes) {
        assert_eq!(DeadLetter::from_json(&letter.to_json()), Ok(letter));
    }
    let position = Position {
        topic: "t".into(),
        partition: 0,
        offset: 0,
    };
    let _ = decode_record(bytes, position);
});
