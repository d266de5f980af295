//! Refused proofs in the audit log: each as a line of its own while there are few, and counted when there are many, so that
//! nobody fills the log by sending bad tokens.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use sealflow::audit::{AuditError, AuditLog, Event, Place, Verdict};
use sealflow::clock::{Clock, UnixMillis};

use crate::limits::{Buckets, of_peer};
use crate::problem::{Code, Problem};

/// Lines of their own a second, all addresses together, in the long run, and at once after a rest.
const LINES_PER_SECOND: u32 = 10;
const LINES_AT_ONCE: u32 = 100;

/// Where refused proofs are written down.
pub(crate) struct Refusals {
    audit: Arc<dyn AuditLog>,
    clock: Arc<dyn Clock>,
    lines: Buckets,
    /// What was counted since it was written last.
    counted: Mutex<BTreeMap<Code, u64>>,
}

impl Refusals {
    pub(crate) fn new(audit: Arc<dyn AuditLog>, clock: Arc<dyn Clock>) -> Self {
        Self {
            audit,
            lines: Buckets::new(LINES_PER_SECOND, LINES_AT_ONCE, Arc::clone(&clock)),
            clock,
            counted: Mutex::default(),
        }
    }

    /// Writes down that a proof was refused, now or with the next [`flush`](Self::flush).
    pub(crate) async fn record(&self, problem: &Problem, peer: IpAddr, now: UnixMillis) -> Result<(), AuditError> {
        // Nothing was looked at for these: they are counted only.
        if problem.code == Code::TooManyUnproven || self.lines.take("lines", 1).is_err() {
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            *counted.entry(problem.code).or_default() += 1;
            return Ok(());
        }
        let rule = format!("{}: {}", problem.code.as_str(), problem.detail);
        let source = format!("request of {}", of_peer(peer));
        self.audit.record(vec![event(now, rule, 1, source)]).await
    }

    /// Writes down what was counted, one line for each code.
    pub(crate) async fn flush(&self) -> Result<(), AuditError> {
        let counted = std::mem::take(&mut *self.counted.lock().unwrap_or_else(PoisonError::into_inner));
        if counted.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        let events = counted.iter().map(|(code, count)| {
            let rule = format!("{}: refused, too many to be written one by one", code.as_str());
            event(now, rule, *count, "request".to_owned())
        });
        let written = self.audit.record(events.collect()).await;
        if written.is_err() {
            let mut kept = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            for (code, count) in counted {
                *kept.entry(code).or_default() += count;
            }
        }
        written
    }
}

fn event(now: UnixMillis, rule: String, count: u64, source: String) -> Event {
    let place = Place {
        source,
        partition: None,
        first: None,
        last: None,
    };
    Event {
        count,
        place: Some(place),
        ..Event::new(now, Verdict::Refused, rule)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;
    use sealflow::clock::ManualClock;

    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[derive(Default)]
    struct Kept {
        events: Mutex<Vec<Event>>,
        is_full: std::sync::atomic::AtomicBool,
    }

    #[async_trait]
    impl AuditLog for Kept {
        async fn record(&self, events: Vec<Event>) -> Result<(), AuditError> {
            if self.is_full.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(AuditError::Write {
                    to: "test".to_owned(),
                    reason: "full".to_owned(),
                });
            }
            self.events.lock().unwrap().extend(events);
            Ok(())
        }
    }

    #[tokio::test]
    async fn few_are_written_one_by_one_and_many_are_counted_and_none_is_lost() {
        let (kept, clock) = (Arc::new(Kept::default()), Arc::new(ManualClock::default()));
        let refusals = Refusals::new(kept.clone(), clock.clone());
        let problem = Problem::new(Code::TokenExpired, "the token ended", "");
        for _ in 0..1_000 {
            refusals.record(&problem, PEER, UnixMillis(1)).await.unwrap();
        }
        refusals
            .record(&Problem::new(Code::TooManyUnproven, "", ""), PEER, UnixMillis(1))
            .await
            .unwrap();
        assert_eq!(kept.events.lock().unwrap().len(), 100);
        assert_eq!(kept.events.lock().unwrap()[0].rule, "token-expired: the token ended");
        kept.is_full.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(refusals.flush().await.is_err());
        kept.is_full.store(false, std::sync::atomic::Ordering::SeqCst);
        refusals.flush().await.unwrap();
        refusals.flush().await.unwrap();
        let counts = |kept: &Kept| {
            kept.events.lock().unwrap()[100..]
                .iter()
                .map(|event| event.count)
                .collect::<Vec<_>>()
        };
        assert_eq!(counts(&kept), [900, 1]);
        clock.advance(Duration::from_secs(1));
        refusals.record(&problem, PEER, UnixMillis(1)).await.unwrap();
        assert_eq!(counts(&kept), [900, 1, 1]);
    }
}
