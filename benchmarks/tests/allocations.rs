//! The bounds of `benchmarks/allocations.json` hold, and would be missed.
#![allow(clippy::unwrap_used)]

use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sealflow-bench-allocations");

#[test]
fn no_hot_path_allocates_more_than_its_bound() {
    let output = Command::new(PROGRAM).env_remove("SEALFLOW_REPORT").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("seal a batch"), "{text}");
}

#[test]
fn a_path_beyond_its_bound_fails_the_count() {
    let bounds = std::env::temp_dir().join(format!("sealflow-bounds-{}.json", std::process::id()));
    let tight = r#"{"seal a column": {"allocations": 0, "peak_bytes": 0}}"#;
    std::fs::write(&bounds, tight).unwrap();
    let output = Command::new(PROGRAM)
        .arg(&bounds)
        .env_remove("SEALFLOW_REPORT")
        .output()
        .unwrap();
    std::fs::remove_file(&bounds).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("error: seal a column: "), "{text}");
    assert!(text.contains("error: open a batch has no bound"), "{text}");
}
