//! Runs one hot path twice, the second time where callgrind counts: `hot NAME`. Started by the section
//! `instructions` under valgrind; small, so that valgrind has little to load.

use std::process::ExitCode;

use sealflow_benchmarks::hot;

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let Some((_, prepare)) = hot::PATHS.iter().find(|(path, _)| *path == name) else {
        return ExitCode::from(64);
    };
    let Ok(mut path) = prepare() else {
        return ExitCode::FAILURE;
    };
    // Caches and lazily made tables are not the path's.
    path();
    hot::measured_region(&mut path);
    ExitCode::SUCCESS
}
