//! Interleaved measurements: A, B, C, A, B, C, …, CPU time and wall time of each round.
//!
//! Neighbours in time form a pair, so that what slows the machine for a while slows both sides of a ratio.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::Error;

/// What one round took, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// CPU time, user and system, of all threads of whoever did the work.
    pub cpu: f64,
    /// Wall time.
    pub wall: f64,
    /// Peak resident memory in bytes, where a process of its own did the work.
    pub peak_memory: Option<f64>,
}

/// One side of a comparison.
pub struct Contender<'a> {
    /// Who.
    pub name: String,
    /// The varied parameter and its value, in benchmarks that vary one.
    pub at: Option<(&'static str, f64)>,
    run: Box<dyn FnMut() -> Result<Cost, Error> + 'a>,
}

/// The rounds of one contender, the warm-up left out.
pub struct Samples {
    /// Who.
    pub name: String,
    /// The varied parameter and its value.
    pub at: Option<(&'static str, f64)>,
    /// One cost per round.
    pub costs: Vec<Cost>,
}

impl<'a> Contender<'a> {
    /// Work that is done, and measured, elsewhere: a child process, a peer in another language.
    pub fn elsewhere(name: &str, run: impl FnMut() -> Result<Cost, Error> + 'a) -> Self {
        Self {
            name: name.to_owned(),
            at: None,
            run: Box::new(run),
        }
    }

    /// Work that is done in this process.
    pub fn here(name: &str, mut run: impl FnMut() + 'a) -> Self {
        Self::elsewhere(name, move || {
            let (cpu, wall) = (cpu_time(), Instant::now());
            run();
            Ok(Cost {
                cpu: cpu_time().saturating_sub(cpu).as_secs_f64(),
                wall: wall.elapsed().as_secs_f64(),
                peak_memory: None,
            })
        })
    }

    /// The same with a value of the parameter that is varied.
    #[must_use]
    pub fn at(mut self, parameter: &'static str, value: f64) -> Self {
        self.at = Some((parameter, value));
        self
    }
}

/// Runs every contender `pairs` times, in turns, after `warm_up` rounds that are not counted.
pub fn interleaved(pairs: usize, warm_up: usize, mut contenders: Vec<Contender<'_>>) -> Result<Vec<Samples>, Error> {
    let mut costs: Vec<Vec<Cost>> = contenders.iter().map(|_| Vec::with_capacity(pairs)).collect();
    for round in 0..warm_up + pairs {
        for (contender, costs) in contenders.iter_mut().zip(&mut costs) {
            let cost = (contender.run)().map_err(|error| format!("{}: {error}", contender.name))?;
            if round >= warm_up {
                costs.push(cost);
            }
        }
    }
    let samples = contenders.into_iter().zip(costs);
    Ok(samples
        .map(|(Contender { name, at, .. }, costs)| Samples { name, at, costs })
        .collect())
}

/// CPU time of this process so far, user and system, all threads.
#[must_use]
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}
