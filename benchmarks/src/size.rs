//! How much work a run does: full sizes by default, a share of them to try the harness out.

/// `full`, or the share of it that `SEALFLOW_BENCH_PERCENT` asks for.
#[must_use]
pub fn scaled(full: u64) -> u64 {
    (full * number("SEALFLOW_BENCH_PERCENT").unwrap_or(100) / 100).max(1)
}

/// `full` pairs, or as many as `SEALFLOW_BENCH_PAIRS` says where that is fewer.
#[must_use]
pub fn pairs(full: usize) -> usize {
    let wanted = number("SEALFLOW_BENCH_PAIRS").and_then(|pairs| usize::try_from(pairs).ok());
    wanted.map_or(full, |pairs| pairs.clamp(1, full))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
