//! A bound on what strangers can make us ask a key service: envelopes that travel with data can be forged, and every
//! forgery costs one `Decrypt`. Refusals are paid from a bucket of chances that fills slowly; what opens costs nothing.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Steady;

/// Refusals in a row before the rate counts.
pub(super) const BURST: u32 = 256;
/// One more chance each, so 32 a second: far below any quota of KMS.
pub(super) const REFILL: Duration = Duration::from_millis(31);

/// The bucket.
#[derive(Debug)]
pub(super) struct Doubt(Mutex<State>);

#[derive(Debug)]
struct State {
    chances: u32,
    filled: Steady,
}

/// One chance, spent unless it is given back.
#[derive(Debug)]
pub(super) struct Chance<'a>(&'a Doubt);

impl Default for Doubt {
    fn default() -> Self {
        Self(Mutex::new(State {
            chances: BURST,
            filled: Steady(0),
        }))
    }
}

impl Doubt {
    /// A chance, taken before the key service is asked so that concurrent callers cannot overdraw; `None` if there is
    /// none left.
    pub(super) fn take(&self, now: Steady) -> Option<Chance<'_>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refill = REFILL.as_millis();
        let earned = now.since(state.filled).as_millis() / refill;
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            state.chances = state.chances.saturating_add(earned).min(BURST);
            state.filled = now;
        }
        state.chances = state.chances.checked_sub(1)?;
        Some(Chance(self))
    }
}

impl Chance<'_> {
    /// The envelope opened, or the key service did not say: nothing speaks against it.
    pub(super) fn give_back(self) {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.chances = state.chances.saturating_add(1).min(BURST);
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
            fresh.0.lock().unwrap().chances
        };
        assert_eq!(chance, BURST);
    }
}
