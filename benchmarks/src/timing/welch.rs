//! Welch's t-test of two classes of times, cropped at percentiles.

use super::cases::Class;

/// Ways of cropping, dudect's number.
const CROPS: i32 = 100;
/// A test of fewer times says nothing.
const FEWEST: f64 = 10_000.0;

/// Mean and variance by one pass (Welford).
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn push(&mut self, x: f64) {
        self.count += 1.0;
        let delta = x - self.mean;
        self.mean += delta / self.count;
        self.squares += delta * (x - self.mean);
    }

    fn variance_of_mean(&self) -> f64 {
        self.squares / (self.count - 1.0) / self.count
    }
}

/// |t| of all times, and of those below each of 100 percentiles, which lie the closer the higher they are: the long tail is
/// the machine's and not the code's. The largest.
pub(super) fn largest(times: &[(Class, f64)]) -> f64 {
    let mut sorted: Vec<f64> = times.iter().map(|(_, time)| *time).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let mut largest = t(times, f64::INFINITY).unwrap_or(0.0);
    for crop in 1..=CROPS {
        let share = 1.0 - 0.5_f64.powf(10.0 * f64::from(crop) / f64::from(CROPS));
        let Some(limit) = sorted.get((share * sorted.len() as f64) as usize) else {
            continue;
        };
        largest = largest.max(t(times, *limit).unwrap_or(0.0));
    }
    largest
}

/// |t| of the times below the limit, if there are enough.
fn t(times: &[(Class, f64)], limit: f64) -> Option<f64> {
    let (mut fixed, mut other) = (Moments::default(), Moments::default());
    for (class, time) in times.iter().filter(|(_, time)| *time < limit) {
        match class {
            Class::Fixed => fixed.push(*time),
            Class::Other => other.push(*time),
        }
    }
    if fixed.count + other.count < FEWEST || fixed.count.min(other.count) < FEWEST / 10.0 {
        return None;
    }
    let error = (fixed.variance_of_mean() + other.variance_of_mean()).sqrt();
    (error > 0.0).then(|| (fixed.mean - other.mean).abs() / error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times around 100 with a long tail; those of one class are `more` longer.
    fn times(more: f64) -> Vec<(Class, f64)> {
        let mut state = 7_u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f64 / f64::from(1 << 24)
        };
        (0..100_000)
            .map(|_| {
                let class = if next() < 0.5 { Class::Fixed } else { Class::Other };
                let tail = if next() < 0.01 { 10_000.0 * next() } else { 0.0 };
                let more = if class == Class::Fixed { more } else { 0.0 };
                (class, 100.0 + 20.0 * next() + tail + more)
            })
            .collect()
    }

    #[test]
    fn a_difference_of_a_hundredth_is_found_and_none_is_not() {
        assert!(largest(&times(1.0)) > 10.0);
        assert!(largest(&times(0.0)) < 4.5);
    }
}
