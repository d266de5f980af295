//! Schemas of tables: no input panics, every refusal says what to do, what is read is written in one way, a newer version of
//! a schema only adds, and records that one is inferred from are taken for samples.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow::table::TableSchema;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(schema) = TableSchema::infer("t", bytes.split(|byte| *byte == b'\n')) {
        let text = schema.to_json();
        assert_eq!(TableSchema::parse(text.as_bytes()).as_ref(), Ok(&schema));
    }
    match TableSchema::parse(bytes) {
        Ok(schema) => {
            let text = schema.to_json();
            let again = TableSchema::parse(text.as_bytes()).unwrap();
            assert_eq!(again, schema);
            assert_eq!(again.to_json(), text);
        }
        Err(error) => assert!(!error.help.is_empty() && !error.to_string().is_empty()),
    }
});
