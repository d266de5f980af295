//! Requests to the reading service: no input panics, what is taken is within its limits and stands in the body as it is
//! handed on, and what is refused is not repeated.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow_serve::api::{Most, What, parse};

const MOST: Most = Most { records: 8, values: 8 };

fuzz_target!(|bytes: &[u8]| {
    let request = match parse(bytes, MOST) {
        Ok(request) => request,
        Err(problem) => {
            assert!(problem.code.status().as_u16() == 400);
            assert!(problem.detail.len() + problem.help.len() < 400, "{problem:?}");
            return;
        }
    };
    let is_word = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    assert!(is_word(&request.dataset) && (1..=128).contains(&request.dataset.len()));
    assert!(
        request
            .purpose
            .as_deref()
            .is_none_or(|purpose| is_word(purpose) && (1..=64).contains(&purpose.len()))
    );
    assert!((1..=8).contains(&request.least_values()));
    let body = std::str::from_utf8(bytes).unwrap();
    match request.what {
        What::Values(values) => {
            for value in values {
                assert!(
                    value
                        .label
                        .is_none_or(|label| (1..=256).contains(&label.chars().count()))
                );
            }
        }
        What::Records { json, keys } => {
            assert!(keys.len() <= 64);
            for record in json {
                assert!(record.starts_with('{') && record.ends_with('}') && body.contains(record));
            }
        }
    }
});
