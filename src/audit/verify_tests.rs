//! Nothing can be done to a log that is not found, as far as checkpoints reach.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;

use super::fault::Fault;
use super::testing::sample_event;
use super::verify::{Report, Verifier};
use super::*;
use crate::clock::UnixMillis;
use crate::jose::PrivateJwk;

const NOW: UnixMillis = UnixMillis(1_767_225_600_000);
/// RFC 8037, appendix A.1: a fixed key, so that failures repeat.
const KEY: &str = r#"{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

fn key() -> Arc<PrivateJwk> {
    Arc::new(PrivateJwk::from_json(KEY.as_bytes()).unwrap())
}

/// The lines of a chain, and the checkpoints of the second place.
#[derive(Clone, Debug, Default)]
struct Log {
    lines: Vec<String>,
    checkpoints: Vec<String>,
}

impl Log {
    fn add(&mut self, made: Lines) {
        self.lines.extend(made.lines);
        self.checkpoints.extend(made.checkpoints);
    }

    fn verify(&self, trusted: &PrivateJwk) -> Report {
        let mut verifier = Verifier::new([trusted.thumbprint()], false);
        self.checkpoints
            .iter()
            .for_each(|checkpoint| verifier.checkpoint(checkpoint.as_bytes()));
        self.lines.iter().for_each(|line| verifier.line(line.as_bytes()));
        verifier.finish()
    }

    /// The first fault, with its line.
    fn fault(&self) -> Option<(Option<u64>, Fault)> {
        let report = self.verify(&key());
        report.breaks.into_iter().next().map(|found| (found.line, found.fault))
    }
}

fn chain(instance: u8, key: Arc<PrivateJwk>, events: usize, every: u64, ended: bool) -> Log {
    let sealing = Sealing {
        key,
        every,
        span: Duration::from_secs(60),
    };
    let mut log = Log::default();
    let name = Some(format!("pod-{instance}"));
    let (mut journal, made) = Journal::start(InstanceId::from_bytes([instance; 16]), name, sealing, NOW).unwrap();
    log.add(made);
    for n in 0..events {
        let mut event = sample_event();
        event.count = n as u64;
        log.add(journal.append(vec![event], NOW).unwrap());
    }
    if ended {
        log.add(journal.end(NOW).unwrap());
    }
    log
}

#[test]
fn a_log_as_it_was_written_is_whole_and_says_how_far_it_is_sealed() {
    let log = chain(1, key(), 7, 3, false);
    let report = log.verify(&key());
    assert!(report.is_whole(), "{:?}", report.breaks);
    // 0 start, 1 checkpoint, 2-4, 5 checkpoint, 6-8, 9 checkpoint, 10.
    assert_eq!((report.lines, report.decisions, report.checkpoints), (11, 7, 3));
    let [chain] = &report.chains[..] else {
        panic!("one chain")
    };
    assert_eq!((chain.last, chain.sealed, chain.unsealed()), (10, Some(8), 1));
    assert_eq!(chain.name.as_deref(), Some("pod-1"));
    assert_eq!(log.fault(), None);
}

#[test]
fn each_thing_done_to_a_log_has_its_own_name_and_place() {
    let whole = chain(1, key(), 7, 3, true);
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut log = whole.clone();
        change(&mut log.lines);
        log.fault().unwrap()
    };
    assert_eq!(
        with(&|lines| drop(lines.remove(3))),
        (Some(4), Fault::Missing { expected: 3 })
    );
    assert_eq!(with(&|lines| drop(lines.remove(0))), (Some(1), Fault::NoBeginning));
    let edited = with(&|lines| lines[3] = lines[3].replace("analyst", "intern"));
    assert_eq!(edited, (Some(5), Fault::OtherPrevious { previous: 4 }));
    assert_eq!(
        with(&|lines| lines.swap(3, 4)),
        (Some(4), Fault::Missing { expected: 3 })
    );
    let twice = with(&|lines| lines.insert(5, lines[3].clone()));
    assert_eq!(twice, (Some(6), Fault::OutOfOrder { expected: 5 }));
    let (line, fault) = with(&|lines| lines[3] = lines[3].replace(":1", ": 1"));
    assert!(line == Some(4) && matches!(fault, Fault::NotALine(LineError::NotCanonical)));
    let cut = with(&|lines| lines.truncate(8));
    assert_eq!(cut, (None, Fault::Truncated { last: Some(7), at: 4 }));
    assert_eq!(with(&Vec::clear), (None, Fault::Truncated { last: None, at: 4 }));
}

#[test]
fn whoever_computes_every_hash_again_lacks_the_audit_key() {
    let stranger = Arc::new(PrivateJwk::generate().unwrap());
    let whole = chain(1, key(), 7, 3, true);
    // As good as it gets without the key: the same chain, made anew with one event left out, signed by another key.
    let mut forged = chain(1, Arc::clone(&stranger), 6, 3, true);
    assert!(forged.verify(&stranger).is_whole());
    assert!(matches!(
        forged.fault(),
        Some((None, Fault::UntrustedCheckpoint { at: Some(1), .. }))
    ));
    forged.checkpoints.clear();
    assert!(matches!(
        forged.fault(),
        Some((Some(2), Fault::UntrustedCheckpoint { at: None, .. }))
    ));
    // With the checkpoints of the second place, which the forger could not write, and without the log's own.
    forged.checkpoints = whole.checkpoints;
    let found = forged.verify(&key());
    assert!(
        found
            .breaks
            .iter()
            .any(|b| matches!(b.fault, Fault::Truncated { .. } | Fault::Replaced { .. }))
    );
    // A chain that nobody vouches for, beside one that is whole.
    let mut both = chain(1, key(), 7, 3, true);
    both.lines
        .push(forged.lines[0].replace(&"01".repeat(16), &"02".repeat(16)));
    assert_eq!(both.fault(), Some((None, Fault::Unvouched)));
}

#[test]
fn a_chain_that_was_cut_off_and_went_on_from_there_contradicts_its_checkpoints() {
    let mut log = chain(1, key(), 7, 3, true);
    log.lines.truncate(4);
    let last = log.lines.last().unwrap().clone();
    let sealing = Sealing {
        key: key(),
        every: 1,
        span: Duration::from_secs(60),
    };
    let line = Line::parse(last.as_bytes()).unwrap();
    let (mut journal, made) = Journal::resume(&line, &last, None, 0, sealing, NOW).unwrap();
    log.add(made);
    for _ in 0..3 {
        log.add(journal.append(vec![sample_event()], NOW).unwrap());
    }
    let report = log.verify(&key());
    // Number 4 is now `resume`, and a decision before: both were sealed, once by each process.
    let faults: Vec<&Fault> = report.breaks.iter().map(|found| &found.fault).collect();
    assert!(faults.contains(&&Fault::Contradiction { at: 5 }), "{faults:?}");
    assert!(faults.contains(&&Fault::Replaced { at: 2 }), "{faults:?}");
}

#[test]
fn a_chain_that_another_process_goes_on_with_is_whole() {
    let mut log = chain(1, key(), 2, 100, false);
    let last = log.lines.last().unwrap().clone();
    let sealing = Sealing {
        key: key(),
        every: 100,
        span: Duration::from_secs(60),
    };
    let line = Line::parse(last.as_bytes()).unwrap();
    let (mut journal, made) = Journal::resume(&line, &last, Some("b".into()), 17, sealing, NOW).unwrap();
    log.add(made);
    log.add(journal.append(vec![sample_event()], NOW).unwrap());
    log.add(journal.end(NOW).unwrap());
    assert_eq!(log.fault(), None);
    assert_eq!(log.verify(&key()).chains[0].unsealed(), 0);
}

#[test]
fn a_log_whose_beginning_was_archived_is_verified_from_where_it_begins_if_one_says_so() {
    let mut log = chain(1, key(), 7, 3, true);
    log.lines.drain(..4);
    assert_eq!(log.fault(), Some((Some(1), Fault::NoBeginning)));
    let verify = |log: &Log| {
        let mut verifier = Verifier::new([key().thumbprint()], true);
        log.checkpoints
            .iter()
            .for_each(|checkpoint| verifier.checkpoint(checkpoint.as_bytes()));
        log.lines.iter().for_each(|line| verifier.line(line.as_bytes()));
        verifier.finish()
    };
    assert!(verify(&log).is_whole());
    log.lines.truncate(2);
    assert!(!verify(&log).is_whole());
}

#[test]
fn checkpoints_come_by_number_by_time_and_when_the_clock_is_set_back() {
    let sealing = Sealing {
        key: key(),
        every: 1_000,
        span: Duration::from_secs(60),
    };
    let id = InstanceId::from_bytes([1; 16]);
    let (mut journal, made) = Journal::start(id, None, sealing, NOW).unwrap();
    assert_eq!(made.checkpoints.len(), 1);
    let at = |millis: u64| UnixMillis(NOW.0 + millis);
    assert!(journal.tick(at(120_000)).unwrap().is_empty(), "nothing new to seal");
    assert!(
        journal
            .append(vec![sample_event()], at(59_999))
            .unwrap()
            .checkpoints
            .is_empty()
    );
    assert!(journal.tick(at(59_999)).unwrap().is_empty());
    assert_eq!(journal.tick(at(60_000)).unwrap().checkpoints.len(), 1);
    assert!(journal.end(at(60_000)).unwrap().is_empty(), "the last line is one");
    let made = journal.append(vec![sample_event()], at(0)).unwrap();
    assert_eq!(made.checkpoints.len(), 1, "set back by a minute");
    let made = journal.append(vec![sample_event(); 2_500], at(0)).unwrap();
    assert_eq!((made.lines.len(), made.checkpoints.len()), (2_502, 2));
}

/// Something done to a log.
#[derive(Clone, Debug)]
enum Tampering {
    Remove(Index),
    Edit(Index),
    Flip(Index, Index, u8),
    Move(Index, Index),
    Duplicate(Index, Index),
    Truncate(Index),
    Nothing,
}

fn tamperings() -> impl Strategy<Value = Tampering> {
    let index = any::<Index>;
    prop_oneof![
        index().prop_map(Tampering::Remove),
        index().prop_map(Tampering::Edit),
        (index(), index(), 1_u8..).prop_map(|(line, byte, by)| Tampering::Flip(line, byte, by)),
        (index(), index()).prop_map(|(from, to)| Tampering::Move(from, to)),
        (index(), index()).prop_map(|(from, to)| Tampering::Duplicate(from, to)),
        index().prop_map(Tampering::Truncate),
        Just(Tampering::Nothing),
    ]
}

fn tamper(lines: &mut Vec<Vec<u8>>, what: &Tampering) {
    let len = lines.len();
    match what {
        Tampering::Remove(line) => drop(lines.remove(line.index(len))),
        Tampering::Edit(line) => {
            let line = &mut lines[line.index(len)];
            *line = String::from_utf8_lossy(line).replace("analyst", "intern").into_bytes();
        }
        Tampering::Flip(line, byte, by) => {
            let line = &mut lines[line.index(len)];
            let byte = byte.index(line.len());
            line[byte] ^= by;
        }
        Tampering::Move(from, to) => {
            let line = lines.remove(from.index(len));
            lines.insert(to.index(len), line);
        }
        Tampering::Duplicate(from, to) => lines.insert(to.index(len + 1), lines[from.index(len)].clone()),
        Tampering::Truncate(at) => lines.truncate(at.index(len)),
        Tampering::Nothing => {}
    }
}

type Chains = BTreeMap<InstanceId, Vec<Vec<u8>>>;

/// The lines of each chain; `None` if something is no line.
fn by_chain(lines: &[Vec<u8>]) -> Option<Chains> {
    let mut chains = Chains::new();
    for line in lines {
        chains
            .entry(Line::parse(line).ok()?.instance)
            .or_default()
            .push(line.clone());
    }
    Some(chains)
}

/// What must be found: every change but that of a tail that no checkpoint vouches for.
fn must_be_found(before: &Chains, after: &[Vec<u8>], checkpoints: &[String]) -> bool {
    let Some(after) = by_chain(after) else { return true };
    let sealed = |id: &InstanceId| {
        let of = checkpoints.iter().map(|jws| Checkpoint::verify(jws).unwrap().0);
        of.filter(|checkpoint| checkpoint.instance == *id)
            .map(|checkpoint| checkpoint.seq as usize)
            .max()
    };
    let ids = before.keys().chain(after.keys());
    ids.into_iter().any(|id| {
        // A line can be edited into one of another instance.
        let [was, is] = [before, &after].map(|chains| chains.get(id).map_or(&[][..], Vec::as_slice));
        let common = was.iter().zip(is).take_while(|(was, is)| was == is).count();
        let same_but_last = was.len() == is.len() && common + 1 == was.len();
        if was == is {
            false
        } else if common == is.len() || same_but_last {
            // Cut off, or the last line edited into another: only a checkpoint knows. A last line that is a checkpoint
            // cannot be edited into another.
            let is_checkpoint = was[common..].first().is_some_and(|line| {
                same_but_last && matches!(Line::parse(line).unwrap().body, Body::Checkpoint { .. })
            });
            is_checkpoint || sealed(id).is_some_and(|sealed| sealed >= common)
        } else {
            true
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_is_removed_edited_moved_or_cut_off_is_found_and_nothing_else_is(
        made in proptest::collection::vec((0_usize..9, 1_u64..5, any::<bool>()), 1..4),
        order in proptest::collection::vec(any::<Index>(), 60),
        what in tamperings(),
    ) {
        let mut logs: Vec<Log> = Vec::new();
        for (n, (events, every, ended)) in made.into_iter().enumerate() {
            logs.push(chain(n as u8, key(), events, every, ended));
        }
        let checkpoints: Vec<String> = logs.iter().flat_map(|log| log.checkpoints.clone()).collect();
        // Interleaved: each chain keeps its own order.
        let mut queues: Vec<_> = logs.into_iter().map(|log| log.lines.into_iter()).collect();
        let mut lines: Vec<Vec<u8>> = Vec::new();
        for index in order.iter().cycle() {
            let at = index.index(queues.len());
            match queues[at].next() {
                Some(line) => lines.push(line.into_bytes()),
                None => drop(queues.remove(at)),
            }
            if queues.is_empty() { break }
        }
        let before = by_chain(&lines).unwrap();
        tamper(&mut lines, &what);
        let mut verifier = Verifier::new([key().thumbprint()], false);
        checkpoints.iter().for_each(|checkpoint| verifier.checkpoint(checkpoint.as_bytes()));
        lines.iter().for_each(|line| verifier.line(line));
        let report = verifier.finish();
        prop_assert_eq!(!report.is_whole(), must_be_found(&before, &lines, &checkpoints), "{:?}", report.breaks);
        prop_assert!(report.breaks.iter().all(|found| found.line.is_none_or(|line| line <= lines.len() as u64)));
    }
}
