//! Verifies an audit log as it streams by: chains of any number of instances, interleaved, against checkpoints.
//!
//! It goes on after a break, from the line where it was noticed, so that one break does not hide another.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::checkpoint::Checkpoint;
use super::fault::{Break, Fault};
use super::line::{Body, InstanceId, Line, LineHash};
use crate::jose::Thumbprint;

/// How many breaks are kept; more are counted.
pub const MAX_BREAKS: usize = 100;
/// How many chains a log may have: each start of a process that cannot continue an old one makes one.
const MAX_CHAINS: usize = 100_000;
/// How many checkpoints of the second place are held: one takes about 100 bytes.
const MAX_CHECKPOINTS: usize = 4_000_000;

/// Verifies a log. First all checkpoints of the second place, then all lines, then [`finish`](Self::finish).
#[derive(Debug)]
pub struct Verifier {
    trusted: BTreeSet<Thumbprint>,
    tail_only: bool,
    chains: BTreeMap<InstanceId, Chain>,
    expected: HashMap<(InstanceId, u64), Expected>,
    report: Report,
}

/// What a checkpoint of the second place says, and which one.
#[derive(Clone, Copy, Debug)]
struct Expected {
    hash: LineHash,
    at: u64,
}

#[derive(Debug)]
struct Chain {
    report: ChainReport,
    /// Number of its latest line in the log.
    line: u64,
    hash: LineHash,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Lines that were looked at.
    pub lines: u64,
    /// Decisions among them.
    pub decisions: u64,
    /// Checkpoints of the second place.
    pub checkpoints: u64,
    /// The chains.
    pub chains: Vec<ChainReport>,
    /// The first [`MAX_BREAKS`] breaks, in the order in which they were noticed.
    pub breaks: Vec<Break>,
    /// All breaks.
    pub broken: u64,
    /// Bytes of an unfinished last line: being written, or left by a crash. Nobody was told that it is durable.
    pub torn: u64,
    /// Who signed the checkpoints, where no key was named as trusted: nobody's word but the log's own.
    pub unproven: BTreeSet<Thumbprint>,
}

impl Report {
    /// Whether nothing is wrong, as far as the checkpoints reach.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.broken == 0
    }
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChainReport {
    /// Its name.
    pub instance: InstanceId,
    /// What its operator calls the process that began it, if that line is here.
    pub name: Option<String>,
    /// Number of its first line here.
    pub first: u64,
    /// Number of its last line here.
    pub last: u64,
    /// Number of the last line that a checkpoint vouches for. What comes after could be cut off without a trace.
    pub sealed: Option<u64>,
}

impl ChainReport {
    /// How many lines at its end no checkpoint vouches for, the last checkpoint itself left out.
    #[must_use]
    pub fn unsealed(&self) -> u64 {
        match self.sealed {
            // The line after a sealed one is the checkpoint itself.
            Some(sealed) => self.last.saturating_sub(sealed.saturating_add(1)),
            None => self.last - self.first + 1,
        }
    }
}

impl Verifier {
    /// A verifier that trusts these audit keys. With none, checkpoints are only compared with the log, and
    /// [`Report::unproven`] says who signed them.
    ///
    /// `tail_only`: the beginning of the log is elsewhere (archived, or past a topic's retention). Then a chain may
    /// begin in the middle, and checkpoints of what came before, or of chains that are not here at all, say nothing.
    #[must_use]
    pub fn new(trusted: impl IntoIterator<Item = Thumbprint>, tail_only: bool) -> Self {
        Self {
            trusted: trusted.into_iter().collect(),
            tail_only,
            chains: BTreeMap::new(),
            expected: HashMap::new(),
            report: Report::default(),
        }
    }

    /// The next checkpoint of the second place, without its end.
    pub fn checkpoint(&mut self, text: &[u8]) {
        self.report.checkpoints += 1;
        let at = self.report.checkpoints;
        let Some((checkpoint, _)) = self.believe(&String::from_utf8_lossy(text), Some(at), None, None) else {
            return;
        };
        let key = (checkpoint.instance, checkpoint.seq);
        let full = self.expected.len() >= MAX_CHECKPOINTS;
        match self.expected.get(&key) {
            // The same again is no harm.
            Some(known) if known.hash == checkpoint.hash => {}
            Some(_) => self.found(None, Some(key.0), Some(key.1), Fault::Contradiction { at }),
            None if full => self.found(None, None, None, Fault::TooMany),
            None => {
                let hash = checkpoint.hash;
                self.expected.insert(key, Expected { hash, at });
            }
        }
    }

    /// The next line of the log, without its end.
    pub fn line(&mut self, text: &[u8]) {
        self.report.lines += 1;
        let number = self.report.lines;
        let line = match Line::parse(text) {
            Ok(line) => line,
            Err(error) => return self.found(Some(number), None, None, Fault::NotALine(error)),
        };
        let hash = LineHash::of(text);
        let (instance, seq) = (line.instance, line.seq);
        let found = |fault| (Some(number), Some(instance), Some(seq), fault);
        let mut breaks = Vec::new();
        match self.chains.get(&instance) {
            None if self.chains.len() >= MAX_CHAINS => {
                return self.found(Some(number), Some(instance), Some(seq), Fault::TooMany);
            }
            None if (seq > 0 || line.prev.is_some()) && !self.tail_only => breaks.push(found(Fault::NoBeginning)),
            None => {}
            Some(chain) => breaks.extend(chain.fault(&line).map(found)),
        }
        if matches!(line.body, Body::Start { .. }) != (seq == 0) || line.prev.is_none() != (seq == 0) {
            breaks.push(found(Fault::Misplaced));
        }
        let is_first = !self.chains.contains_key(&instance);
        let chain = self.chains.entry(instance).or_insert_with(|| Chain {
            report: ChainReport {
                instance,
                name: None,
                first: seq,
                last: seq,
                sealed: None,
            },
            line: number,
            hash,
        });
        // A line that stands here a second time must not take the chain back: what follows would look broken too.
        if is_first || seq > chain.report.last {
            chain.report.last = seq;
            (chain.line, chain.hash) = (number, hash);
        }
        if let Some(expected) = self.expected.get(&(instance, seq)) {
            if expected.hash == hash {
                chain.report.sealed = chain.report.sealed.max(Some(seq));
            } else {
                breaks.push(found(Fault::Replaced { at: expected.at }));
            }
        }
        if let Body::Start { name } = &line.body {
            chain.report.name.clone_from(name);
        }
        for (line, instance, seq, fault) in breaks {
            self.found(line, instance, seq, fault);
        }
        match &line.body {
            Body::Checkpoint { jws } => self.sealed(number, &line, jws),
            Body::Decision(_) => self.report.decisions += 1,
            _ => {}
        }
    }

    /// The log ends with so many bytes without an end of line.
    pub fn torn(&mut self, bytes: u64) {
        self.report.torn = bytes;
    }

    /// What was found.
    #[must_use]
    pub fn finish(mut self) -> Report {
        // Of each chain the checkpoint that lies furthest beyond its end.
        let mut beyond: BTreeMap<InstanceId, (u64, u64)> = BTreeMap::new();
        for ((instance, seq), expected) in &self.expected {
            let last = self.chains.get(instance).map(|chain| chain.report.last);
            let is_beyond = last.map_or(!self.tail_only, |last| *seq > last);
            let furthest = beyond.get(instance).is_none_or(|(furthest, _)| seq > furthest);
            if is_beyond && furthest {
                beyond.insert(*instance, (*seq, expected.at));
            }
        }
        for (instance, (seq, at)) in beyond {
            let last = self.chains.get(&instance).map(|chain| chain.report.last);
            self.found(None, Some(instance), Some(seq), Fault::Truncated { last, at });
        }
        let chains: Vec<ChainReport> = std::mem::take(&mut self.chains)
            .into_values()
            .map(|c| c.report)
            .collect();
        if !self.trusted.is_empty() {
            for chain in chains.iter().filter(|chain| chain.sealed.is_none()) {
                self.found(None, Some(chain.instance), None, Fault::Unvouched);
            }
        }
        self.report.chains = chains;
        self.report
    }

    /// A checkpoint in the log: it must vouch for the very line before it.
    fn sealed(&mut self, number: u64, line: &Line, jws: &str) {
        let (instance, seq) = (Some(line.instance), Some(line.seq));
        let Some((checkpoint, _)) = self.believe(jws, None, Some(number), Some(line)) else {
            return;
        };
        let vouches = Checkpoint {
            instance: line.instance,
            seq: line.seq.wrapping_sub(1),
            hash: line.prev.unwrap_or(checkpoint.hash),
            at: line.at,
        };
        if line.prev.is_none() || checkpoint != vouches {
            return self.found(Some(number), instance, seq, Fault::OtherCheckpoint);
        }
        if let Some(chain) = self.chains.get_mut(&line.instance) {
            chain.report.sealed = chain.report.sealed.max(Some(checkpoint.seq));
        }
    }

    fn believe(
        &mut self,
        jws: &str,
        at: Option<u64>,
        number: Option<u64>,
        line: Option<&Line>,
    ) -> Option<(Checkpoint, Thumbprint)> {
        let (instance, seq) = (line.map(|line| line.instance), line.map(|line| line.seq));
        match Checkpoint::verify(jws) {
            Err(error) => self.found(number, instance, seq, Fault::BadCheckpoint { at, error }),
            Ok((_, signer)) if !self.trusted.is_empty() && !self.trusted.contains(&signer) => {
                self.found(number, instance, seq, Fault::UntrustedCheckpoint { at, signer });
            }
            Ok((checkpoint, signer)) => {
                // Bounded: who can fill it can fill the log too.
                if self.trusted.is_empty() && self.report.unproven.len() < MAX_BREAKS {
                    self.report.unproven.insert(signer);
                }
                return Some((checkpoint, signer));
            }
        }
        None
    }

    fn found(&mut self, line: Option<u64>, instance: Option<InstanceId>, seq: Option<u64>, fault: Fault) {
        self.report.broken += 1;
        if self.report.breaks.len() < MAX_BREAKS {
            self.report.breaks.push(Break {
                line,
                instance,
                seq,
                fault,
            });
        }
    }
}

impl Chain {
    /// Whether `line` goes on from here.
    fn fault(&self, line: &Line) -> Option<Fault> {
        let expected = self.report.last.saturating_add(1);
        if line.seq < expected {
            return Some(Fault::OutOfOrder { expected });
        }
        if line.seq > expected {
            return Some(Fault::Missing { expected });
        }
        let previous = self.line;
        (line.prev != Some(self.hash)).then_some(Fault::OtherPrevious { previous })
    }
}
