//! The machine's clock, for the core.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use sealflow::clock::{Clock, Steady, UnixMillis};

/// When this process first asked for the time.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The clocks of this machine: the wall clock, and the one that nobody sets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MachineClock;

impl Clock for MachineClock {
    fn now(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn steady(&self) -> Steady {
        Steady(u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX))
    }
}
