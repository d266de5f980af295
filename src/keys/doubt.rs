//! A bound on what strangers can make us ask a key service: envelopes that travel with data can be forged, and every
//! forgery costs one `Decrypt`. Refusals are paid from a bucket of chances that fills slowly; what opens costs nothing.

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

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
    /// Told whenever a chance that was taken is spent or given back.
    settled: Notify,
}

#[derive(Debug)]
struct State {
    chances: u32,
    /// Taken, and neither spent nor given back yet.
    out: u32,
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
                out: 0,
                filled: Steady(0),
            }),
            burst,
            refill,
            settled: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A chance, taken before the key service is asked so that concurrent callers cannot overdraw; `None` if there is
    /// none left.
    pub(crate) fn take(&self, now: Steady) -> Option<Chance<'_>> {
        self.take_or_out(now).ok()
    }

    /// A chance, or how many are out where there is none left.
    fn take_or_out(&self, now: Steady) -> Result<Chance<'_>, u32> {
        let mut state = self.state();
        let refill = self.refill.as_millis().max(1);
        let earned = now.since(state.filled).as_millis() / refill;
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            state.chances = state.chances.saturating_add(earned).min(self.burst);
            state.filled = now;
        }
        state.chances = state.chances.checked_sub(1).ok_or(state.out)?;
        state.out += 1;
        Ok(Chance(self))
    }

    /// A chance that was spent comes back: what was doubted has proved itself since.
    pub(crate) fn restore(&self) {
        let mut state = self.state();
        state.chances = state.chances.saturating_add(1).min(self.burst);
    }

    /// As [`take`](Self::take), but while others have taken chances that may come back, it waits for them: only chances that
    /// are spent refuse anybody.
    pub(crate) async fn take_when_settled(&self, now: Steady) -> Option<Chance<'_>> {
        loop {
            // Enlisted before it looks, so that nothing settles unseen between the two.
            let mut settled = pin!(self.settled.notified());
            settled.as_mut().enable();
            // Both under one lock: a chance that comes back in between is not missed.
            match self.take_or_out(now) {
                Ok(chance) => return Some(chance),
                Err(0) => return None,
                Err(_) => settled.await,
            }
        }
    }
}

impl Chance<'_> {
    /// The envelope opened, or the key service did not say: nothing speaks against it.
    pub(crate) fn give_back(self) {
        // Unlocked again before this chance is dropped, which locks too.
        self.0.restore();
    }
}

impl Drop for Chance<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.out = state.out.saturating_sub(1);
        drop(state);
        self.0.settled.notify_waiters();
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

    #[tokio::test]
    async fn who_finds_no_chance_waits_for_those_that_may_come_back_and_only_for_them() {
        let doubt = Doubt::new(2, Duration::from_secs(1));
        let (first, second) = (doubt.take(Steady(0)).unwrap(), doubt.take(Steady(0)).unwrap());
        assert!(doubt.take(Steady(0)).is_none());
        let mut waiting = pin!(doubt.take_when_settled(Steady(0)));
        let poll = tokio::time::timeout(Duration::from_millis(20), waiting.as_mut()).await;
        assert!(poll.is_err(), "it waits");
        // Spent: the other one may still come back.
        drop(first);
        let poll = tokio::time::timeout(Duration::from_millis(20), waiting.as_mut()).await;
        assert!(poll.is_err(), "it waits on");
        second.give_back();
        let chance = waiting.await.unwrap();
        drop(chance);
        assert!(
            doubt.take_when_settled(Steady(0)).await.is_none(),
            "nobody can give any back"
        );
    }
}
