//! A bound on what strangers can make us ask a key service: envelopes that travel with data can be forged, and every
//! forgery costs one `Decrypt`. Refusals are paid from a bucket of chances that fills slowly; what opens costs nothing.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Steady;

/// Refusals in a row before the rate counts.
const BURST: u32 = 256;
/// One more chance each, so 32 a second: far below any quota of KMS.
const REFILL: Duration = Duration::from_millis(31);

/// The bucket.
#[derive(Debug)]
pub(crate) struct Doubt {
    state: Mutex<State>,
    /// The most chances that it holds.
    burst: u32,
    /// How long one more takes.
    refill: Duration,
}

#[derive(Debug)]
struct State {
    chances: u32,
    filled: Steady,
}

/// One chance, spent unless it is given back.
#[derive(Debug)]
pub(crate) struct Chance<'a>(&'a Doubt);

impl Default for Doubt {
    fn default() -> Self {
        Self::new(BURST, REFILL)
    }
}

impl Doubt {
    /// A full bucket.
    pub(crate) fn new(burst: u32, refill: Duration) -> Self {
        Self {
            state: Mutex::new(State {
                chances: burst,
                filled: Steady(0),
            }),
            burst,
            refill,
        }
    }

    /// A chance, taken before the key service is asked so that concurrent callers cannot overdraw; `None` if there is
    /// none left.
    pub(crate) fn take(&self, now: Steady) -> Option<Chance<'_>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let refill = self.refill.as_millis().max(1);
        let earned = now.since(state.filled).as_millis() / refill;
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            state.chances = state.chances.saturating_add(earned).min(self.burst);
            state.filled = now;
        }
        state.chances = state.chances.checked_sub(1)?;
        Some(Chance(self))
    }
}

impl Chance<'_> {
    /// The envelope opened, or the key service did not say: nothing speaks against it.
    pub(crate) fn give_back(self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.chances = state.chances.saturating_add(1).min(self.0.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chances_are_bounded_and_come_back_slowly() {
        let doubt = Doubt::default();
        let spend = |at| {
            std::iter::from_fn(|| doubt.take(Steady(at)).map(drop))
                .take(10_000)
                .count()
        };
        assert_eq!(spend(0), BURST as usize);
        assert_eq!(spend(30), 0);
        assert_eq!(spend(31), 1);
        assert_eq!(spend(1_031), 32);
        assert_eq!(spend(10_000_000), BURST as usize);
        let chance = {
            let fresh = Doubt::default();
            fresh.take(Steady(0)).unwrap().give_back();
            fresh.state.lock().unwrap().chances
        };
        assert_eq!(chance, BURST);
    }
}
