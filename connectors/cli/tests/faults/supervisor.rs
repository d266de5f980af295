//! Instances that are started again when they end, as systemd or Kubernetes would; and those that are killed.

use std::time::{Duration, Instant};

use sealflow_testbed::Instance;

use crate::bench::Bench;

/// systemd's `RestartSec=`: how long an instance that ended stays down.
const RESTART_AFTER: Duration = Duration::from_millis(500);

/// sysexits' EX_UNAVAILABLE, and what an instance says that gave up what it held.
const UNAVAILABLE: i32 = 69;
const GIVEN_UP: &str =
    "records have to be read again, after an abort or a refusal: the records that are held were given up";
/// What one says that waited for librdkafka for as long as it waits (its issues 5456 and 5511).
const HUNG: &str = "does not come back from librdkafka";

/// A place for an instance of a stable name.
struct Slot {
    name: String,
    running: Option<Instance>,
    /// When to start it (again); `None` while it should not run.
    start_at: Option<Instant>,
    frozen: bool,
}

/// Keeps instances running.
#[derive(Default)]
pub(crate) struct Supervisor {
    slots: Vec<Slot>,
    /// SIGKILLs that met a running process.
    pub(crate) kills: u64,
    /// Ends that nobody asked for: exit codes in their order.
    pub(crate) ended: Vec<Option<i32>>,
    /// The most memory that any process had.
    pub(crate) peak_kib: u64,
}

impl Supervisor {
    /// `count` instances, of which the first `running` should run.
    pub(crate) fn new(count: usize, running: usize) -> Self {
        let slot = |n: usize| Slot {
            name: format!("i{n}"),
            running: None,
            start_at: (n < running).then(Instant::now),
            frozen: false,
        };
        Self {
            slots: (0..count).map(slot).collect(),
            ..Self::default()
        }
    }

    /// Starts what should run and measures what does. To be called often.
    pub(crate) fn tend(&mut self, bench: &Bench) {
        for slot in &mut self.slots {
            if let Some(instance) = &mut slot.running {
                self.peak_kib = self.peak_kib.max(instance.peak_memory_kib().unwrap_or(0));
                if let Some(status) = instance.ended() {
                    if slot.start_at.is_some() {
                        self.ended.push(status.code());
                        slot.start_at = Some(Instant::now() + RESTART_AFTER);
                    }
                    slot.running = None;
                }
            }
            if slot.running.is_none() && slot.start_at.is_some_and(|at| at <= Instant::now()) {
                slot.running = Some(bench.start(&slot.name));
            }
        }
    }

    /// SIGKILL to one of those that run, by a number that was drawn; it is started again by [`Supervisor::tend`].
    /// Whether there was one.
    pub(crate) fn kill(&mut self, drawn: u64) -> bool {
        let mut running: Vec<&mut Slot> = self
            .slots
            .iter_mut()
            .filter(|slot| slot.running.is_some() && slot.start_at.is_some() && !slot.frozen)
            .collect();
        let count = running.len() as u64;
        if count == 0 {
            return false;
        }
        let slot = &mut running[usize::try_from(drawn % count).unwrap()];
        let Some(mut instance) = slot.running.take() else {
            return false;
        };
        self.peak_kib = self.peak_kib.max(instance.peak_memory_kib().unwrap_or(0));
        slot.start_at = Some(Instant::now() + RESTART_AFTER);
        if let Some(status) = instance.ended() {
            self.ended.push(status.code());
            return false;
        }
        instance.kill();
        self.kills += 1;
        true
    }

    /// How many should run.
    pub(crate) fn wanted(&self) -> usize {
        self.slots.iter().filter(|slot| slot.start_at.is_some()).count()
    }

    /// One more should run, if there is a place. Whether there was.
    pub(crate) fn join(&mut self) -> bool {
        let free = self.slots.iter_mut().find(|slot| slot.start_at.is_none());
        free.map(|slot| slot.start_at = Some(Instant::now())).is_some()
    }

    /// One that runs drains and leaves (SIGTERM), but never the last one. Whether one did.
    pub(crate) fn leave(&mut self, drawn: u64) -> bool {
        let mut wanted: Vec<&mut Slot> = self
            .slots
            .iter_mut()
            .filter(|slot| slot.start_at.is_some() && !slot.frozen)
            .collect();
        let count = wanted.len() as u64;
        if count < 2 {
            return false;
        }
        let slot = &mut wanted[usize::try_from(drawn % count).unwrap()];
        slot.start_at = None;
        if let Some(instance) = &slot.running {
            instance.terminate();
        }
        true
    }

    /// SIGSTOP to one that runs; which one.
    pub(crate) fn freeze(&mut self, drawn: u64) -> Option<usize> {
        let running: Vec<usize> = (0..self.slots.len())
            .filter(|n| self.slots[*n].running.is_some() && self.slots[*n].start_at.is_some())
            .collect();
        let count = running.len() as u64;
        let chosen = *running.get(usize::try_from(drawn.checked_rem(count)?).unwrap())?;
        let slot = &mut self.slots[chosen];
        slot.frozen = true;
        slot.running.as_ref()?.freeze();
        Some(chosen)
    }

    /// SIGCONT to one that was frozen.
    pub(crate) fn thaw(&mut self, chosen: usize) {
        let slot = &mut self.slots[chosen];
        slot.frozen = false;
        if let Some(instance) = &slot.running {
            instance.thaw();
        }
    }

    /// All drain and end: with status 0, or with 69 because a transaction that was under way when its brokers failed was
    /// aborted, and a process that is told to stop reads nothing again; or because librdkafka lost a request when a broker went
    /// away (an instance that is not draining is started again then). What that left behind, the next run reads; callers count
    /// that nothing is missing, and nothing twice.
    pub(crate) fn stop(&mut self, patience: Duration) {
        for slot in &mut self.slots {
            slot.start_at = None;
            if let Some(instance) = &slot.running {
                instance.terminate();
            }
        }
        for slot in &mut self.slots {
            if let Some(instance) = slot.running.take() {
                self.peak_kib = self.peak_kib.max(instance.peak_memory_kib().unwrap_or(0));
                let (status, log) = instance.wait(patience);
                let end = log.len().saturating_sub(3_000);
                let gave_up =
                    status.code() == Some(UNAVAILABLE) && [GIVEN_UP, HUNG].iter().any(|said| log.contains(said));
                assert!(
                    status.success() || gave_up,
                    "{} drained with {status}:\n{}",
                    slot.name,
                    log.get(end..).unwrap_or("")
                );
            }
        }
    }
}
