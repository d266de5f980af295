//! Whether time tells of secrets, by the method of dudect (Reparaz, Balasch, Verbauwhede: "Dude, is my code constant time?",
//! DATE 2017): two classes of inputs in random order, and Welch's t-test of their times.
//!
//! A kernel passes where no evidence of a difference is found: that proves nothing about other machines and inputs. A leak
//! that is there, opening with a comparison that ends at the first wrong byte of a tag, must be found by the same means in
//! the same run; otherwise the section fails, since it would find nothing.

mod cases;
mod welch;

use std::time::Instant;

use sealflow_benchmarks::Error;
use sealflow_benchmarks::report::{exactly, figure};
use sealflow_benchmarks::size::scaled;
use sealflow_kernel::Kernel;

use cases::{Case, Random};

/// Of one case.
const MEASUREMENTS: u64 = 500_000;
const FEWEST: u64 = 200_000;
/// Measurements that only warm caches and predictors.
const WARM_UP: usize = 1_000;
/// From here on, authors of dudect say, a difference is likely; from the second on it is there.
const LIKELY: f64 = 4.5;
const THERE: f64 = 10.0;
/// A difference has to show as often as it was looked for: machines that do other work show some that are not there.
const TRIES: usize = 3;

pub(crate) fn run() -> Result<(), Error> {
    // Fewer would not find the leak on purpose.
    let measurements = usize::try_from(scaled(MEASUREMENTS).max(FEWEST))?;
    let mut errors = Vec::new();
    for kernel in Kernel::all() {
        let name = format!("{kernel:?}").to_lowercase();
        for mut case in cases::all(kernel)? {
            let mut found = f64::MAX;
            for _ in 0..TRIES {
                found = found.min(largest_t(&mut case, measurements)?);
                if found < THERE {
                    break;
                }
            }
            let who = format!("{name}, {}", case.name());
            figure("timing", "largest t", &who, "(a leak: 10 and more)", exactly(found))?;
            if !case.leaks() && (LIKELY..THERE).contains(&found) {
                println!("  {who}: no evidence enough, but worth another run");
            }
            match (found >= THERE, case.leaks()) {
                (true, false) => errors.push(format!("{name}: the time of {} depends on a secret", case.name())),
                (false, true) => errors.push(format!("{name}: {} was not found: nothing would be", case.name())),
                _ => {}
            }
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.join("; ").into())
    }
}

/// The largest |t| over all ways of cropping.
fn largest_t(case: &mut Case, measurements: usize) -> Result<f64, Error> {
    let mut random = Random::new();
    let mut times = Vec::with_capacity(measurements);
    for n in 0..measurements + WARM_UP {
        let class = random.class();
        case.prepare(class, &mut random)?;
        let start = Instant::now();
        case.run()?;
        let time = start.elapsed();
        if n >= WARM_UP {
            times.push((class, time.as_nanos() as f64));
        }
    }
    Ok(welch::largest(&times))
}
