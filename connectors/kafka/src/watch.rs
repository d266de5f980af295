//! Notices a call into librdkafka that does not come back, so that the run can end and be started again.
//!
//! Each call has a time limit of its own, and librdkafka does not always keep it: when the group's coordinator crashes,
//! `send_offsets_to_transaction` may wait for as long as no broker's connection changes its state (its issues 5456 and
//! 5511). A thread cannot be taken out of such a call; the process can be left, which is as safe as `kill -9`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a call may take that was asked to take a few seconds at most.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(30);

/// The calls that are under way, by number.
#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<Mutex<Calls>>);

#[derive(Default)]
struct Calls {
    next: u64,
    since: BTreeMap<u64, (String, Instant)>,
}

impl Watch {
    /// Runs a call that must come back soon.
    pub(crate) fn call<T>(&self, what: &str, call: impl FnOnce() -> T) -> T {
        let number = {
            let mut calls = self.calls();
            calls.next += 1;
            let number = calls.next;
            calls.since.insert(number, (what.to_owned(), Instant::now()));
            number
        };
        let result = call();
        self.calls().since.remove(&number);
        result
    }

    /// A call that has been under way for longer than `limit`, if there is one.
    pub(crate) fn stuck(&self, limit: Duration) -> Option<String> {
        let calls = self.calls();
        let stuck = calls.since.values().find(|(_, since)| since.elapsed() > limit);
        stuck.map(|(what, _)| what.clone())
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_does_not_come_back_is_noticed_and_one_that_did_is_not() {
        let watch = Watch::default();
        let seen = watch.call("commit", || {
            std::thread::sleep(Duration::from_millis(20));
            (
                watch.stuck(Duration::from_millis(5)),
                watch.stuck(Duration::from_secs(60)),
            )
        });
        assert_eq!(seen, (Some("commit".to_owned()), None));
        assert_eq!(watch.stuck(Duration::ZERO), None);
    }
}
