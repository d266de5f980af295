//! The machine's clock, for the core.

use std::time::{SystemTime, UNIX_EPOCH};

use sealflow::clock::{Clock, UnixMillis};

/// The wall clock of this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MachineClock;

impl Clock for MachineClock {
    fn now(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}
