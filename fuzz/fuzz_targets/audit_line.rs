//! Audit lines, checkpoints and whole logs: no panic, a line that parses is written again byte for byte, and a log that is
//! none of ours is never whole in the eyes of somebody who trusts our key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow::audit::line::MAX_LINE_BYTES;
use sealflow::audit::{Checkpoint, Line, Verifier};
use sealflow::jose::Thumbprint;

/// Of no key that anybody has: no checkpoint is trusted.
const NOBODY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fuzz_target!(|bytes: &[u8]| {
    if let Ok(line) = Line::parse(bytes) {
        assert_eq!(line.to_text().as_bytes(), bytes);
        assert!(bytes.len() <= MAX_LINE_BYTES && !bytes.contains(&b'\n'));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Checkpoint::verify(text);
    }
    // As a log, and as its own checkpoints.
    for trusted in [None, NOBODY.parse::<Thumbprint>().ok()] {
        let proves = trusted.is_some();
        let mut verifier = Verifier::new(trusted, false);
        bytes
            .split(|byte| *byte == b'\n')
            .for_each(|line| verifier.checkpoint(line));
        bytes.split(|byte| *byte == b'\n').for_each(|line| verifier.line(line));
        let report = verifier.finish();
        assert!(!(proves && report.is_whole()));
        assert_eq!(report.is_whole(), report.breaks.is_empty());
    }
});
