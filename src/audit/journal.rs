//! The journal: makes the lines of one chain, one after the other, with a checkpoint now and then.
//!
//! It does not write them. Whoever does keeps the journal from before until the lines are durable, because a chain whose
//! lines got lost cannot be continued from after them.

use std::sync::Arc;
use std::time::Duration;

use super::checkpoint::Checkpoint;
use super::event::Event;
use super::line::{Body, InstanceId, Line, LineHash};
use crate::clock::UnixMillis;
use crate::jose::{JwsError, PrivateJwk};

/// How a chain is sealed.
#[derive(Clone, Debug)]
pub struct Sealing {
    /// The audit key.
    pub key: Arc<PrivateJwk>,
    /// A checkpoint after so many lines at the latest; 0 counts as 1.
    pub every: u64,
    /// A checkpoint so long after the last at the latest, if there are new lines.
    pub span: Duration,
}

/// Lines to be written, all of them or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Lines {
    /// Without their ends, in order.
    pub lines: Vec<String>,
    /// The checkpoints among them, for the second place. They are written there *after* the lines are durable: one
    /// that lies beyond the end of the log says that its tail was cut off.
    pub checkpoints: Vec<String>,
}

impl Lines {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn and(mut self, more: Self) -> Self {
        self.lines.extend(more.lines);
        self.checkpoints.extend(more.checkpoints);
        self
    }
}

/// Where a chain stands.
#[derive(Clone, Debug)]
pub struct Journal {
    sealing: Sealing,
    instance: InstanceId,
    next: u64,
    prev: Option<LineHash>,
    since: u64,
    sealed_at: UnixMillis,
}

impl Journal {
    /// A new chain. Its first line is sealed at once, so that even a log that vanishes as a whole is missed.
    ///
    /// # Errors
    /// [`JwsError`]
    pub fn start(
        instance: InstanceId,
        name: Option<String>,
        sealing: Sealing,
        now: UnixMillis,
    ) -> Result<(Self, Lines), JwsError> {
        let mut journal = Self {
            sealing,
            instance,
            next: 0,
            prev: None,
            since: 0,
            sealed_at: now,
        };
        let mut lines = Lines::default();
        journal.push(now, Body::Start { name }, &mut lines);
        let sealed = journal.seal(now)?;
        Ok((journal, lines.and(sealed)))
    }

    /// Goes on with the chain whose last whole line is `last`, spelled `text`. `dropped` is how many bytes of an
    /// unfinished line were found after it, and taken away.
    ///
    /// # Errors
    /// [`JwsError`]
    pub fn resume(
        last: &Line,
        text: &str,
        name: Option<String>,
        dropped: u64,
        sealing: Sealing,
        now: UnixMillis,
    ) -> Result<(Self, Lines), JwsError> {
        let mut journal = Self {
            sealing,
            instance: last.instance,
            next: last.seq.saturating_add(1),
            prev: Some(LineHash::of(text.as_bytes())),
            since: 0,
            sealed_at: now,
        };
        let mut lines = Lines::default();
        journal.push(now, Body::Resume { name, dropped }, &mut lines);
        let sealed = journal.seal(now)?;
        Ok((journal, lines.and(sealed)))
    }

    /// The lines of these events, with what checkpoints are due.
    ///
    /// # Errors
    /// [`JwsError`]
    pub fn append(&mut self, events: Vec<Event>, now: UnixMillis) -> Result<Lines, JwsError> {
        let mut lines = Lines::default();
        for event in events {
            self.push(event.at, Body::Decision(Box::new(event)), &mut lines);
            if self.is_due(now) {
                lines = lines.and(self.seal(now)?);
            }
        }
        Ok(lines)
    }

    /// The checkpoint that is due by time, if one is.
    ///
    /// # Errors
    /// [`JwsError`]
    pub fn tick(&mut self, now: UnixMillis) -> Result<Lines, JwsError> {
        if self.is_due(now) {
            self.seal(now)
        } else {
            Ok(Lines::default())
        }
    }

    /// The last checkpoint, unless the last line is one.
    ///
    /// # Errors
    /// [`JwsError`]
    pub fn end(&mut self, now: UnixMillis) -> Result<Lines, JwsError> {
        if self.since > 0 {
            self.seal(now)
        } else {
            Ok(Lines::default())
        }
    }

    /// The chain.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    fn is_due(&self, now: UnixMillis) -> bool {
        // A clock that was set back would put the next checkpoint off: then it is due at once.
        let is_old = now < self.sealed_at || now.since(self.sealed_at) >= self.sealing.span;
        self.since > 0 && (self.since >= self.sealing.every || is_old)
    }

    fn push(&mut self, at: UnixMillis, body: Body, lines: &mut Lines) {
        let line = Line {
            instance: self.instance,
            seq: self.next,
            prev: self.prev,
            at,
            body,
        };
        let text = line.to_text();
        self.prev = Some(LineHash::of(text.as_bytes()));
        self.next = self.next.saturating_add(1);
        self.since += 1;
        lines.lines.push(text);
    }

    /// A checkpoint of the line before it.
    fn seal(&mut self, now: UnixMillis) -> Result<Lines, JwsError> {
        let mut lines = Lines::default();
        // Every chain begins with a line of another kind.
        let (Some(seq), Some(hash)) = (self.next.checked_sub(1), self.prev) else {
            return Ok(lines);
        };
        let checkpoint = Checkpoint {
            instance: self.instance,
            seq,
            hash,
            at: now,
        };
        let jws = checkpoint.sign(&self.sealing.key)?;
        self.push(now, Body::Checkpoint { jws: jws.clone() }, &mut lines);
        lines.checkpoints.push(jws);
        self.since = 0;
        self.sealed_at = now;
        Ok(lines)
    }
}
