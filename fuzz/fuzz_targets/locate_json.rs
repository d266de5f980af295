//! The locator: accepts only what `serde_json` accepts, and finds every value that it reads at the paths; both of its
//! walkers, on every kernel of the index, find the same, or refuse for the same reason.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|record: &[u8]| sealflow::columns::testing::check_locate(record));
