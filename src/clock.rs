//! Time as the core sees it: handed in, never read.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::calendar::{parse_timestamp, write_timestamp};
use crate::seal::plaintext::TimeUnit;

/// Milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The time from `earlier` to `self`; zero if the clock went backwards.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// `self` plus `span`, saturating.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(span))
    }
}

impl UnixMillis {
    /// RFC 3339 in UTC, to the millisecond: `2026-01-31T12:00:00.000Z`.
    #[must_use]
    pub fn to_rfc3339_millis(self) -> String {
        let millis = i64::try_from(self.0).unwrap_or(i64::MAX);
        let mut text = String::with_capacity(24);
        write_timestamp(TimeUnit::Millisecond, millis, Some("UTC"), &mut text);
        text
    }
}

/// RFC 3339 in UTC, to the second: `2026-01-31T12:00:00Z`.
impl fmt::Display for UnixMillis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0 / 1_000).unwrap_or(i64::MAX);
        let mut text = String::with_capacity(20);
        write_timestamp(TimeUnit::Second, seconds, Some("UTC"), &mut text);
        f.write_str(&text)
    }
}

/// Not a moment: date, time and zone, as `2027-01-01T00:00:00Z` (RFC 3339), from 1970 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a moment: expected date, time and zone, as in 2027-01-01T00:00:00Z")]
pub struct NotAMoment;

impl FromStr for UnixMillis {
    type Err = NotAMoment;

    fn from_str(text: &str) -> Result<Self, NotAMoment> {
        let millis = parse_timestamp(text, TimeUnit::Millisecond, true).ok_or(NotAMoment)?;
        u64::try_from(millis).map(Self).map_err(|_| NotAMoment)
    }
}

/// A moment on a clock that is never set back, in milliseconds since some start of its own: for ages and waits,
/// which must neither stretch nor shrink when somebody sets the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Steady(pub u64);

impl Steady {
    /// The time from `earlier` to `self`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// Where the core gets its time from. Implementations never block.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The current time.
    fn now(&self) -> UnixMillis;

    /// The current moment of a clock that nobody sets. Only a clock that itself is never set back may leave this
    /// to the default.
    fn steady(&self) -> Steady {
        Steady(self.now().0)
    }
}

/// The wall clock, never behind what it showed before plus what has passed since: for ends that nobody may put off by
/// setting a clock back while this process runs. Set forward, it stays there until the wall clock has caught up.
#[derive(Debug, Default)]
pub struct NeverBack(Mutex<Option<(UnixMillis, Steady)>>);

impl NeverBack {
    /// The time by `clock`, which must be the same at every call.
    pub fn now(&self, clock: &dyn Clock) -> UnixMillis {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (wall, steady) = (clock.now(), clock.steady());
        let now = last.map_or(wall, |(then, since)| wall.max(then.plus(steady.since(since))));
        *last = Some((now, steady));
        now
    }
}

/// A clock that stands still until it is moved: for tests.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall: AtomicU64,
    steady: AtomicU64,
}

impl ManualClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn at(now: UnixMillis) -> Self {
        Self {
            wall: AtomicU64::new(now.0),
            steady: AtomicU64::new(0),
        }
    }

    /// Moves the clock forward by `span`.
    pub fn advance(&self, span: Duration) {
        self.set(self.now().plus(span));
        let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.steady.fetch_add(span, Ordering::SeqCst);
    }

    /// Sets the wall clock to `now`, forwards or backwards, as an administrator or NTP does. No time passes.
    pub fn set(&self, now: UnixMillis) {
        self.wall.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.wall.load(Ordering::SeqCst))
    }

    fn steady(&self) -> Steady {
        Steady(self.steady.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_is_set_back_holds_no_end_up() {
        let (clock, time) = (ManualClock::at(UnixMillis(10_000)), NeverBack::default());
        assert_eq!(time.now(&clock), UnixMillis(10_000));
        clock.set(UnixMillis(0));
        clock.advance(Duration::from_secs(5));
        assert_eq!(time.now(&clock), UnixMillis(15_000));
        // Set right, or suspended for a while: the wall clock knows better.
        clock.set(UnixMillis(20_000));
        assert_eq!(time.now(&clock), UnixMillis(20_000));
    }

    #[test]
    fn known_moments_read_as_they_should() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_767_225_599_999, "2025-12-31T23:59:59Z"),
            (4_102_444_800_000, "2100-01-01T00:00:00Z"),
        ] {
            assert_eq!(UnixMillis(millis).to_string(), text);
            assert_eq!(text.parse(), Ok(UnixMillis(millis / 1_000 * 1_000)));
        }
        assert_eq!(
            "2026-01-01T01:30:00.250+01:30".parse(),
            Ok(UnixMillis(1_767_225_600_250))
        );
        for text in [
            "2026-01-01",
            "2026-01-01T00:00:00",
            "1969-12-31T23:59:59Z",
            "tomorrow",
            "",
        ] {
            assert_eq!(text.parse::<UnixMillis>(), Err(NotAMoment), "{text}");
        }
    }
}
