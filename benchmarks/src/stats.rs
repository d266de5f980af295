//! Medians with intervals that assume nothing about the distribution of the samples.

use serde::Serialize;

/// A median and an interval that holds the true median with the stated confidence.
///
/// The interval is a pair of order statistics: of n samples, the k-th smallest and the k-th largest enclose the
/// median with probability 1 - 2 P(B < k), where B is binomial(n, 1/2). k is the largest for which that is at
/// least 95 %. Below six samples no pair reaches it; then minimum and maximum stand here with what they reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The median of the samples.
    pub median: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Probability that the interval holds the true median.
    pub confidence: f64,
    /// Number of samples.
    pub samples: usize,
}

impl Estimate {
    /// Of `samples`, in any order; `None` without samples.
    #[must_use]
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_unstable_by(f64::total_cmp);
        let n = samples.len();
        let (first, last) = (*samples.first()?, *samples.last()?);
        let median = f64::midpoint(samples[(n - 1) / 2], samples[n / 2]);
        let mut estimate = Self {
            median,
            low: first,
            high: last,
            confidence: confidence(n, 1),
            samples: n,
        };
        for k in 2..=n / 2 {
            if confidence(n, k) < 0.95 {
                break;
            }
            (estimate.low, estimate.high) = (samples[k - 1], samples[n - k]);
            estimate.confidence = confidence(n, k);
        }
        Some(estimate)
    }

    /// The same in another unit.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            median: self.median * factor,
            low: self.low * factor,
            high: self.high * factor,
            ..self
        }
    }
}

/// 1 - 2 P(B < k) for B binomial(n, 1/2).
fn confidence(n: usize, k: usize) -> f64 {
    let mut term = 0.5_f64.powi(i32::try_from(n).unwrap_or(i32::MAX));
    let mut below = 0.0;
    for i in 0..k {
        below += term;
        term *= (n - i) as f64 / (i + 1) as f64;
    }
    (1.0 - 2.0 * below).max(0.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_interval_of_eleven_samples_is_the_second_from_either_end() {
        // Conover, Practical Nonparametric Statistics, table A3: n = 11, k = 2, 1 - 2 * 0.0059.
        let estimate = Estimate::of((1..=11).rev().map(f64::from).collect()).unwrap();
        assert_eq!((estimate.low, estimate.median, estimate.high), (2.0, 6.0, 10.0));
        assert!((estimate.confidence - 0.9883).abs() < 1e-3, "{}", estimate.confidence);
    }

    #[test]
    fn few_samples_say_how_little_they_prove() {
        let estimate = Estimate::of(vec![3.0, 1.0, 2.0, 4.0]).unwrap();
        assert_eq!((estimate.low, estimate.median, estimate.high), (1.0, 2.5, 4.0));
        assert_eq!(estimate.confidence, 0.875);
        assert!(Estimate::of(Vec::new()).is_none());
    }
}
