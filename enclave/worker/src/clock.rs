//! The worker's time: that of the attested source, carried on by a clock that nobody sets.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use sealflow::clock::{Clock, Steady, UnixMillis};

/// A clock that starts at an attested moment, and is set right by later ones.
#[derive(Debug)]
pub struct AttestedClock {
    start: Instant,
    /// An attested moment, and when it was told.
    anchor: Mutex<(UnixMillis, Instant)>,
}

impl AttestedClock {
    /// It is `now_ms`, as the attested source says.
    #[must_use]
    pub fn at(now_ms: u64) -> Self {
        let start = Instant::now();
        Self {
            start,
            anchor: Mutex::new((UnixMillis(now_ms), start)),
        }
    }

    /// The attested source says so now. A time that would go back is not taken: leases that ended have ended.
    pub fn correct(&self, now_ms: u64) {
        let mut anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Instant::now();
        if now_ms > moment(*anchor, at).0 {
            *anchor = (UnixMillis(now_ms), at);
        }
    }
}

fn moment((since, told): (UnixMillis, Instant), at: Instant) -> UnixMillis {
    since.plus(at.saturating_duration_since(told))
}

impl Clock for AttestedClock {
    fn now(&self) -> UnixMillis {
        let anchor = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        moment(anchor, Instant::now())
    }

    fn steady(&self) -> Steady {
        let passed: Duration = self.start.elapsed();
        Steady(u64::try_from(passed.as_millis()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_by_itself_and_never_back() {
        let clock = AttestedClock::at(1_700_000_000_000);
        assert!((0..60_000).contains(&clock.now().since(UnixMillis(1_700_000_000_000)).as_millis()));
        clock.correct(1_600_000_000_000);
        assert!(clock.now() >= UnixMillis(1_700_000_000_000));
        clock.correct(1_800_000_000_000);
        assert!(clock.now() >= UnixMillis(1_800_000_000_000));
    }
}
