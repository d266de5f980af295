//! JSON values: whatever is encoded comes back byte for byte, and coerced values have one encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| sealflow::columns::testing::check_json_value(text));
