//! Interleaved measurements: A, B, C, A, B, C, …, CPU time of this process, medians and ratios pair by pair.

use std::io::Write as _;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Rounds per contender, after one that is not counted.
pub(crate) const ROUNDS: usize = 15;

/// CPU time of this process so far, user and system, all threads.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// Minimum, median and maximum.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_unstable_by(f64::total_cmp);
        let at = |n: usize| numbers.get(n).copied().unwrap_or(f64::NAN);
        Self {
            min: at(0),
            median: at(numbers.len() / 2),
            max: at(numbers.len().saturating_sub(1)),
        }
    }
}

/// A name and the work of one round.
pub(crate) type Contender<'a> = (&'static str, Box<dyn FnMut() + 'a>);

/// CPU nanoseconds per item of each contender, round by round.
pub(crate) fn interleaved(items: usize, contenders: &mut [Contender<'_>]) -> Vec<(&'static str, Vec<f64>)> {
    let mut times: Vec<(&'static str, Vec<f64>)> = contenders.iter().map(|(name, _)| (*name, Vec::new())).collect();
    for round in 0..=ROUNDS {
        for ((_, run), (_, times)) in contenders.iter_mut().zip(&mut times) {
            let start = cpu_time();
            run();
            let spent = cpu_time().saturating_sub(start).as_secs_f64() * 1e9;
            if round > 0 {
                times.push(spent / items as f64);
            }
        }
    }
    times
}

/// Ratios of `times` to `base`, pair by pair.
pub(crate) fn ratios(times: &[f64], base: &[f64]) -> Spread {
    Spread::of(times.iter().zip(base).map(|(a, b)| a / b).collect())
}

/// Appends one JSON line to the report.
pub(crate) fn report(line: &serde_json::Value) -> std::io::Result<()> {
    let Some(path) = std::env::var_os("SEALFLOW_REPORT") else {
        return Ok(());
    };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "{line}")
}
