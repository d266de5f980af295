//! Column paths: whatever parses prints as a path that parses to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow::policy::ColumnPath;

fuzz_target!(|text: &str| {
    let Ok(path) = text.parse::<ColumnPath>() else { return };
    let canonical = path.to_string();
    // A canonical name can be longer than its spelling only by escapes, which may pass the cap.
    if let Ok(again) = canonical.parse::<ColumnPath>() {
        assert_eq!(again, path);
        assert_eq!(again.to_string(), canonical);
    } else {
        assert!(canonical.len() > sealflow::policy::path::MAX_PATH_BYTES);
    }
});
