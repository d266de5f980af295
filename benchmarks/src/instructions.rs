//! Instructions of the hot paths, counted by callgrind, against the counts that are checked in.
//!
//! A count does not depend on the load of the machine, so it shows a regression of two percent where a clock
//! shows none. It does depend on the compiler and on the processor features that valgrind knows (AES-NI, no wider
//! vectors): counts of another compiler or architecture are shown and not compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use sealflow_benchmarks::hot::{ITEMS, PATHS};
use sealflow_benchmarks::{Error, report};
use serde::{Deserialize, Serialize};

const SECTION: &str = "instructions";

/// `benchmarks/instructions.json`.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Checked {
    /// A path may take so much more than its count before the benchmark fails.
    tolerance_percent: f64,
    /// Where the counts were made.
    architecture: String,
    /// By which compiler.
    rust: String,
    /// Instructions of each path by the number of its items.
    instructions_per_item: BTreeMap<String, u64>,
}

pub(crate) fn run() -> Result<(), Error> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        sealflow_testbed::skip("instructions: no valgrind on this machine: install the package valgrind");
        return Ok(());
    }
    let mut counts = BTreeMap::new();
    for (name, _) in PATHS.iter().copied() {
        let count = count(name)? / ITEMS as u64;
        report::figure(SECTION, "instructions", name, "per item", report::exactly(count as f64))?;
        counts.insert(name.to_owned(), count);
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json");
    let here = Checked {
        tolerance_percent: 3.0,
        architecture: std::env::consts::ARCH.to_owned(),
        rust: compiler(),
        instructions_per_item: counts,
    };
    if std::env::var_os("SEALFLOW_BENCH_UPDATE").is_some() || !file.exists() {
        std::fs::write(&file, serde_json::to_string_pretty(&here)? + "\n")?;
        println!("wrote {}", file.display());
        return Ok(());
    }
    if let Some(why) = compare(&serde_json::from_str(&std::fs::read_to_string(file)?)?, &here)? {
        sealflow_testbed::skip(&why);
    }
    Ok(())
}

/// Why they cannot be compared, if they cannot.
fn compare(checked: &Checked, here: &Checked) -> Result<Option<String>, Error> {
    let mut slower = Vec::new();
    for (name, count) in &here.instructions_per_item {
        let Some(before) = checked.instructions_per_item.get(name) else {
            slower.push(format!("{name} has no count that is checked in"));
            continue;
        };
        let change = (*count as f64 / *before as f64 - 1.0) * 100.0;
        println!("  {name}: {change:+.1} % against the checked-in {before}");
        // Multiplied, not divided: exactly the tolerance is within it.
        if *count as f64 * 100.0 > *before as f64 * (100.0 + checked.tolerance_percent) {
            slower.push(format!("{name} takes {change:.1} % more instructions"));
        }
    }
    if checked.architecture != here.architecture || checked.rust != here.rust {
        return Ok(Some(format!(
            "instructions: the checked-in counts are those of {} on {}, these of {} on {}: shown, not compared",
            checked.rust, checked.architecture, here.rust, here.architecture
        )));
    }
    if slower.is_empty() {
        return Ok(None);
    }
    Err(format!(
        "{} (tolerance {} %; if it is meant, `make bench ONLY=instructions UPDATE=1` and check in the file)",
        slower.join("; "),
        checked.tolerance_percent
    )
    .into())
}

/// Instructions of one run of a path.
fn count(path: &str) -> Result<u64, Error> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--collect-atstart=no", "--toggle-collect=*measured_region*"])
        .arg(sibling("sealflow-bench-hot")?)
        .arg(path)
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{path} fails under valgrind: {text}").into());
    }
    let collected = text.lines().find_map(|line| line.split_once("Collected : "));
    match collected.and_then(|(_, number)| number.trim().parse().ok()) {
        Some(0) | None => Err(format!("callgrind counted nothing for {path}: {text}").into()),
        Some(count) => Ok(count),
    }
}

/// A program that was built beside this one.
pub(crate) fn sibling(name: &str) -> Result<PathBuf, Error> {
    let path = std::env::current_exe()?.with_file_name(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is not built: run `make bench`", path.display()).into())
    }
}

fn compiler() -> String {
    let version = Command::new("rustc").arg("--version").output();
    version.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(rust: &str, count: u64) -> Checked {
        Checked {
            tolerance_percent: 3.0,
            architecture: "x86_64".to_owned(),
            rust: rust.to_owned(),
            instructions_per_item: BTreeMap::from([("locate".to_owned(), count)]),
        }
    }

    #[test]
    fn more_instructions_than_the_tolerance_are_an_error_and_fewer_are_not() {
        let before = checked("rustc 1", 1_000);
        assert!(compare(&before, &checked("rustc 1", 1_030)).unwrap().is_none());
        assert!(compare(&before, &checked("rustc 1", 1_031)).is_err());
        assert!(compare(&before, &checked("rustc 1", 500)).unwrap().is_none());
    }

    #[test]
    fn counts_of_another_compiler_are_not_compared() {
        let why = compare(&checked("rustc 1", 1_000), &checked("rustc 2", 2_000)).unwrap();
        assert!(why.unwrap().contains("rustc 2"));
    }
}
