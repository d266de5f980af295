//! How much one data key may seal, and the count of what it has (NIST SP 800-38D section 8.3).

use std::sync::{Mutex, PoisonError};

/// Limits of one data key; whichever is reached first ends its sealing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageLimits {
    /// Seal calls, each of which draws one random nonce start.
    pub batches: u64,
    /// Values.
    pub values: u64,
    /// Plaintext bytes.
    pub bytes: u64,
}

impl UsageLimits {
    /// 2^20 batches, 2^32 values, 64 GiB.
    pub const STANDARD: Self = Self {
        batches: 1 << 20,
        values: 1 << 32,
        bytes: 64 << 30,
    };
}

/// What a data key has sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Seal calls.
    pub batches: u64,
    /// Values.
    pub values: u64,
    /// Plaintext bytes.
    pub bytes: u64,
}

/// The key has no room left for the batch: take the next one.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the data key has reached its usage limit")]
pub struct LimitReached;

/// Counts under a lock, so that concurrent batches cannot pass a limit together.
#[derive(Debug)]
pub(crate) struct Usage {
    limits: UsageLimits,
    state: Mutex<(Used, bool)>,
}

impl Usage {
    pub(crate) fn new(limits: UsageLimits) -> Self {
        Self {
            limits,
            state: Mutex::new((Used::default(), false)),
        }
    }

    /// Takes one batch's share *before* anything is sealed. A refused batch closes the key for good.
    pub(crate) fn reserve(&self, values: u64, bytes: u64) -> Result<(), LimitReached> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (used, closed) = &mut *state;
        let next = Used {
            batches: used.batches.saturating_add(1),
            values: used.values.saturating_add(values),
            bytes: used.bytes.saturating_add(bytes),
        };
        let limits = &self.limits;
        if *closed || next.batches > limits.batches || next.values > limits.values || next.bytes > limits.bytes {
            *closed = true;
            return Err(LimitReached);
        }
        *used = next;
        Ok(())
    }

    pub(crate) fn used(&self) -> Used {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether a batch was refused, so that nothing more will be sealed.
    pub(crate) fn closed(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// The largest share of any limit that is used, in percent.
    pub(crate) fn percent(&self) -> u64 {
        let used = self.used();
        let share =
            |used: u64, limit: u64| u64::try_from(u128::from(used) * 100 / u128::from(limit.max(1))).unwrap_or(100);
        share(used.batches, self.limits.batches)
            .max(share(used.values, self.limits.values))
            .max(share(used.bytes, self.limits.bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn concurrent_batches_never_pass_a_limit_together() {
        let usage = Usage::new(UsageLimits {
            batches: 1_000_000,
            values: 10_000,
            bytes: u64::MAX,
        });
        let granted = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    // More than there is to grant, and an end: without the limit this fails instead of hanging.
                    for _ in 0..1_000 {
                        if usage.reserve(7, 1).is_ok() {
                            granted.fetch_add(7, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(granted.load(Ordering::Relaxed), 10_000 / 7 * 7);
        assert_eq!(usage.used().values, 10_000 / 7 * 7);
    }

    #[test]
    fn each_limit_closes_the_key_for_good() {
        let limits = UsageLimits {
            batches: 2,
            values: 10,
            bytes: 100,
        };
        for (values, bytes) in [(11, 0), (0, 101)] {
            let usage = Usage::new(limits);
            assert_eq!(usage.reserve(values, bytes), Err(LimitReached));
            assert_eq!(usage.reserve(1, 1), Err(LimitReached));
        }
        let usage = Usage::new(limits);
        assert_eq!(
            (usage.reserve(1, 1), usage.reserve(1, 1), usage.reserve(0, 0)),
            (Ok(()), Ok(()), Err(LimitReached))
        );
    }
}
