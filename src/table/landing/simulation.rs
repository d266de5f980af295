//! The protocol against a world in which everything fails, repeats, loses its answer or dies: after it, every record is a row
//! once, or a dead letter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::keys::Put;
use crate::pipeline::{Format, Headers, Position, Record, Timestamp};
use crate::table::{Claims, FileId};

const TOPIC: &str = "orders";
const DAY: i64 = 86_400_000;

/// Chance, from a seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A record of the source.
#[derive(Clone, Copy)]
struct Source {
    offset: i64,
    day: i64,
    /// Whether it is a dead letter under a policy of this parity; 2: always, 3: never.
    rejected: u64,
}

impl Source {
    fn is_rejected(self, policy: u64) -> bool {
        self.rejected == 2 || self.rejected == policy % 2
    }

    fn record(self) -> Record {
        Record {
            position: Position {
                topic: TOPIC.into(),
                partition: 0,
                offset: self.offset,
            },
            timestamp: Timestamp::Created(self.day * DAY),
            key: None,
            value: None,
            headers: Headers::new(),
        }
    }
}

struct File {
    claims: Claims,
    rows: Vec<i64>,
}

/// Everything that outlives a process.
struct World {
    source: Vec<Source>,
    catalogue: BTreeMap<String, Vec<u8>>,
    files: BTreeMap<String, File>,
    letters: BTreeSet<i64>,
    /// Committed offset, and whether it came with our word.
    committed: Option<(i64, bool)>,
    /// The member that the group takes commits of.
    owner: u64,
    policy: u64,
    /// Faults happen.
    is_rough: bool,
    draw: Draw,
    /// How often each happened, so that a test that tries nothing fails.
    seen: BTreeMap<&'static str, u64>,
}

impl World {
    fn new(seed: u64, records: u64) -> Self {
        let mut draw = Draw(seed | 1);
        let mut offset = 0;
        let source = (0..records)
            .map(|_| {
                offset += 1 + i64::from(draw.one_in(5)) * 3;
                let rejected = if draw.one_in(6) { draw.below(4) } else { 3 };
                Source {
                    offset,
                    day: 20_000 + draw.below(3) as i64,
                    rejected,
                }
            })
            .collect();
        Self {
            source,
            catalogue: BTreeMap::new(),
            files: BTreeMap::new(),
            letters: BTreeSet::new(),
            committed: None,
            owner: 0,
            policy: 0,
            is_rough: true,
            draw,
            seen: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    /// 0: it works; 1: it fails and does nothing; 2: it works and its answer is lost.
    fn fate(&mut self) -> u64 {
        if !self.is_rough {
            return 0;
        }
        match self.draw.below(10) {
            fate @ 1..=2 => {
                self.count("fault");
                fate
            }
            _ => 0,
        }
    }

    /// Whether every record before `offset` is durable.
    fn is_durable(&self, offset: i64) -> bool {
        let rows: BTreeSet<i64> = self.files.values().flat_map(|file| file.rows.iter().copied()).collect();
        let mut before = self.source.iter().filter(|record| record.offset < offset);
        before.all(|record| rows.contains(&record.offset) || self.letters.contains(&record.offset))
    }
}

/// A process: what is lost when it dies.
struct Member {
    number: u64,
    stretch: Stretch,
    rule: BucketRule,
    files: BTreeMap<FileId, Vec<i64>>,
    closed: BTreeSet<FileId>,
    letters: Vec<i64>,
    at: i64,
    policy: u64,
}

impl Member {
    fn start(world: &World, number: u64) -> Self {
        let whose = Whose {
            pipeline: "p".into(),
            dataset: "d".into(),
            topic: TOPIC.into(),
            partition: 0,
        };
        // As a group does without an offset: from the oldest record, which is pinned.
        let (start, is_trusted) = world.committed.unwrap_or((0, false));
        let by = PartitionBy::default();
        Self {
            number,
            stretch: Stretch::new(Arc::new(whose), by.clone(), start, is_trusted).unwrap(),
            rule: BucketRule::new(&by, Format::Json).unwrap(),
            files: BTreeMap::new(),
            closed: BTreeSet::new(),
            letters: Vec::new(),
            at: start,
            policy: world.policy,
        }
    }

    fn path(&self, file: &PlannedFile) -> String {
        file.path(self.stretch.whose())
    }

    fn lose(&mut self) {
        self.stretch.lost();
        self.forget();
    }

    fn forget(&mut self) {
        self.files.clear();
        self.closed.clear();
        self.letters.clear();
        if let Step::Gather { from } | Step::Rebuild { from } = self.stretch.step() {
            self.at = from;
        }
    }

    /// One step, or a part of one.
    fn work(&mut self, world: &mut World) -> Result<(), LandingError> {
        let fate = world.fate();
        match self.stretch.step() {
            Step::List { folder } => {
                if fate == 0 {
                    let prefix = format!("{folder}/");
                    let paths = world
                        .catalogue
                        .keys()
                        .filter(|path| path.starts_with(&prefix))
                        .cloned()
                        .collect();
                    self.stretch.listed(&paths);
                }
            }
            Step::Look { path } => {
                if fate == 0 {
                    let found = world.catalogue.get(&path).cloned();
                    self.stretch.looked(found.as_deref())?;
                }
            }
            Step::Gather { .. } | Step::Rebuild { .. } => self.read(world)?,
            Step::Close { files } => {
                if fate == 1 {
                    self.lose();
                } else {
                    world.letters.extend(self.letters.drain(..));
                    self.files.retain(|id, _| files.iter().any(|file| file.id == *id));
                    for file in &files {
                        self.files.entry(file.id).or_default();
                        self.closed.insert(file.id);
                    }
                    self.stretch.closed();
                }
            }
            Step::Put { path, bytes } => {
                if fate != 1 {
                    let put = match world.catalogue.contains_key(&path) {
                        true => Put::Exists,
                        false => Put::Created,
                    };
                    world.catalogue.entry(path).or_insert(bytes);
                    if put == Put::Exists {
                        world.count("put found an intent");
                    }
                    // A lost answer: the same put is made again.
                    if fate == 0 {
                        self.stretch.put(put);
                    }
                }
            }
            Step::Probe { files } => {
                for file in files {
                    if fate == 0 {
                        let claims = world.files.get(&self.path(&file)).map(|file| file.claims.clone());
                        world.count(if claims.is_some() { "kept" } else { "missing" });
                        self.stretch.probed(file.id, claims.as_ref())?;
                    }
                }
            }
            Step::Finish { files } => self.finish(world, files, fate),
            Step::Commit { offset, is_trusted } => {
                assert!(world.is_durable(offset), "{offset} is committed, and not durable");
                if world.owner != self.number {
                    // Fenced: this member is told that its partitions are lost.
                    return Ok(());
                }
                if fate != 1 {
                    world.committed = Some((offset, is_trusted));
                }
                if fate == 0 {
                    self.stretch.committed();
                }
            }
        }
        if !self.stretch.has_files() {
            self.forget();
        }
        if let Step::Gather { from } | Step::Rebuild { from } = self.stretch.step()
            && (self.at < from || self.files.is_empty() && self.letters.is_empty())
        {
            self.at = from;
        }
        Ok(())
    }

    fn finish(&mut self, world: &mut World, files: Vec<PlannedFile>, fate: u64) {
        for (n, file) in files.into_iter().enumerate() {
            let Some(rows) = self.files.remove(&file.id).filter(|_| self.closed.contains(&file.id)) else {
                panic!("a file is finished that was not closed");
            };
            // It dies, or fails, between two files too.
            if fate == 1 && n > 0 {
                return self.lose();
            }
            let path = self.path(&file);
            let put = match world.files.contains_key(&path) {
                true => Put::Exists,
                false => Put::Created,
            };
            if put == Put::Exists {
                world.count("file was there");
            }
            let mut claims = Claims::new("d", &file.folder, file.id);
            claims.policy = Some(world.policy.to_string());
            world.files.entry(path).or_insert(File { claims, rows });
            if fate == 2 {
                return self.lose();
            }
            self.stretch.finished(file.id, put);
        }
    }

    fn read(&mut self, world: &mut World) -> Result<(), LandingError> {
        if self.policy != world.policy && !self.files.is_empty() {
            // Rows of two policies are never in one file.
            if self.stretch.is_rebuilding() {
                world.count("policy changed while rebuilding");
                self.lose();
            } else {
                self.stretch.roll(&[0; 32], 1);
            }
            return Ok(());
        }
        self.policy = world.policy;
        let count = usize::try_from(1 + world.draw.below(6)).unwrap();
        let at = self.at;
        let batch: Vec<Source> = world
            .source
            .iter()
            .filter(|record| record.offset >= at)
            .take(count)
            .copied()
            .collect();
        let now = Instant::now();
        for record in batch {
            let bucket = self.rule.bucket(&record.record());
            match self.stretch.wants(record.offset, bucket)? {
                Wants::Nothing => {}
                Wants::Later => {
                    self.stretch.reached(record.offset)?;
                    self.stretch.skip_to_known(record.offset);
                    self.stretch.roll(&[0; 32], 1);
                    return Ok(());
                }
                Wants::Record if record.is_rejected(self.policy) => {
                    self.stretch.set_aside(record.offset, bucket, now)?;
                    self.letters.push(record.offset);
                }
                Wants::Record => {
                    let file = self.stretch.file(bucket)?;
                    self.files.entry(file.id).or_default().push(record.offset);
                    self.stretch.row(record.offset, bucket, now)?;
                }
            }
            self.at = record.offset + 1;
        }
        self.stretch.reached(self.at)?;
        let is_end = world.source.last().is_none_or(|last| last.offset < self.at);
        if is_end || world.draw.one_in(4) {
            self.stretch.roll(&[0; 32], 1);
        }
        Ok(())
    }
}

/// Members come, go, die and are fenced at any moment; somebody may set the group's offset. Then all is well for a while.
fn live(seed: u64, resets: bool) -> World {
    let mut world = World::new(seed, 120);
    let mut members = vec![Member::start(&world, 0)];
    let mut next = 1;
    for _ in 0..400 {
        match world.draw.below(40) {
            0 => {
                // Another one takes over; who had it goes on for a while, as it does not know yet.
                world.owner = next;
                members.push(Member::start(&world, next));
                next += 1;
                if members.len() > 3 {
                    members.remove(0);
                }
                world.count("takeover");
            }
            1 => {
                // kill -9, and a start.
                members.retain(|member| member.number != world.owner);
                world.owner = next;
                members.push(Member::start(&world, next));
                next += 1;
                world.count("kill");
            }
            2 => world.policy += u64::from(world.draw.one_in(2)),
            3 if resets => {
                // Back to where something was committed once, or the group's offsets expire.
                let starts: Vec<i64> = world.catalogue.values().map(|bytes| parsed(bytes).start).collect();
                if let Some(start) = starts.get(usize::try_from(world.draw.below(8)).unwrap()) {
                    world.committed = Some((*start, false));
                    if world.draw.one_in(3) {
                        world.committed = None;
                    }
                    members.clear();
                    world.owner = next;
                    members.push(Member::start(&world, next));
                    next += 1;
                    world.count("reset");
                }
            }
            _ => {
                let n = usize::try_from(world.draw.below(members.len() as u64)).unwrap();
                members[n].work(&mut world).unwrap();
            }
        }
    }
    world.is_rough = false;
    world.owner = next;
    let mut last = Member::start(&world, next);
    let end = world.source.last().map_or(0, |record| record.offset + 1);
    for _ in 0..10_000 {
        if world.committed.is_some_and(|(committed, _)| committed >= end) {
            return world;
        }
        last.work(&mut world).unwrap();
    }
    panic!(
        "seed {seed}: it comes to no end: {:?} {:?}",
        world.committed, last.stretch
    );
}

fn parsed(bytes: &[u8]) -> Intent {
    serde_json::from_slice(bytes).unwrap()
}

/// Every record is a row once, or a dead letter; and both only if a policy has changed its mind.
fn check(world: &World) {
    let mut rows: BTreeMap<i64, u64> = BTreeMap::new();
    for offset in world.files.values().flat_map(|file| &file.rows) {
        *rows.entry(*offset).or_insert(0) += 1;
    }
    for record in &world.source {
        let (count, is_letter) = (
            rows.remove(&record.offset).unwrap_or(0),
            world.letters.contains(&record.offset),
        );
        assert!(count <= 1, "{} is there {count} times", record.offset);
        assert!(count == 1 || is_letter, "{} is lost", record.offset);
        assert!(
            !(count == 1 && is_letter) || record.rejected < 2,
            "{} is both",
            record.offset
        );
    }
    assert!(rows.is_empty());
    // The intents tell exactly which files there are.
    let mut named = BTreeSet::new();
    let mut ends = 0;
    for bytes in world.catalogue.values() {
        let intent = parsed(bytes);
        assert!(intent.start >= ends, "intents overlap");
        ends = intent.end;
        for file in intent.files {
            let path = format!("d/{}/{}", file.folder, file.name);
            let there = world.files.get(&path).unwrap_or_else(|| panic!("{path} is missing"));
            assert!(there.rows.len() as u64 <= file.rows);
            assert!(
                there
                    .rows
                    .iter()
                    .all(|offset| (file.first..=file.last).contains(offset))
            );
            named.insert(path);
        }
    }
    assert_eq!(named.len(), world.files.len());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_record_lands_once_whatever_fails_repeats_or_dies(seed in 1u64..u64::MAX) {
        check(&live(seed, false));
    }

    #[test]
    fn offsets_that_somebody_sets_back_land_nothing_twice(seed in 1u64..u64::MAX) {
        check(&live(seed, true));
    }
}

#[test]
fn the_simulation_meets_everything_that_it_is_about() {
    let mut seen: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in 1..200 {
        for (what, count) in live(seed * 7_919, true).seen {
            *seen.entry(what).or_insert(0) += count;
        }
    }
    for what in [
        "fault",
        "takeover",
        "kill",
        "reset",
        "put found an intent",
        "file was there",
        "kept",
        "missing",
        "policy changed while rebuilding",
    ] {
        assert!(seen.get(what).copied().unwrap_or(0) > 20, "{what}: {seen:?}");
    }
}

/// A member that has put its intent and finished one of its files, and died.
fn half_done() -> World {
    let mut world = World::new(5, 60);
    world.is_rough = false;
    let mut member = Member::start(&world, 0);
    while !matches!(member.stretch.step(), Step::Finish { .. }) {
        member.work(&mut world).unwrap();
    }
    let Step::Finish { files } = member.stretch.step() else {
        return world;
    };
    assert!(files.len() > 1, "one file is not half of anything");
    member.finish(&mut world, files[..1].to_vec(), 0);
    world
}

fn until_it_ends(world: &mut World) -> Result<(), LandingError> {
    world.owner = 1;
    let mut member = Member::start(world, 1);
    for _ in 0..10_000 {
        member.work(world)?;
    }
    Ok(())
}

#[test]
fn what_was_begun_and_not_finished_is_finished_by_the_next_and_nothing_is_overwritten() {
    let mut world = half_done();
    let (path, rows) = world
        .files
        .iter()
        .map(|(path, file)| (path.clone(), file.rows.clone()))
        .next()
        .unwrap();
    until_it_ends(&mut world).unwrap();
    assert_eq!(world.files[&path].rows, rows);
    check(&world);
}

#[test]
fn a_source_that_lost_what_a_missing_file_is_of_stops_the_partition_and_commits_nothing() {
    let mut world = half_done();
    let intent = parsed(world.catalogue.values().next().unwrap());
    let missing = intent
        .files
        .iter()
        .find(|file| !world.files.contains_key(&format!("d/{}/{}", file.folder, file.name)));
    let gone = missing.unwrap().first;
    world.source.retain(|record| record.offset != gone);
    let error = until_it_ends(&mut world).unwrap_err();
    assert!(matches!(error, LandingError::SourceChanged { .. }), "{error}");
    assert!(error.to_string().contains("is missing"), "{error}");
    assert_eq!(world.committed, None);
    // What is there already needs no source.
    let mut world = half_done();
    let there = world.files.values().next().unwrap().rows.clone();
    world.source.retain(|record| !there.contains(&record.offset));
    until_it_ends(&mut world).unwrap();
    assert!(world.committed.is_some());
}

#[test]
fn a_file_of_another_pipeline_at_the_same_place_stops_the_partition() {
    let mut world = half_done();
    for file in world.files.values_mut() {
        file.claims = Claims::new("d", "elsewhere", FileId::random().unwrap());
    }
    let error = until_it_ends(&mut world).unwrap_err();
    assert!(matches!(error, LandingError::OtherFile { .. }), "{error}");
}

#[test]
fn an_offset_within_a_stretch_is_refused() {
    let mut world = half_done();
    let intent = parsed(world.catalogue.values().next().unwrap());
    world.committed = Some((intent.end - 1, false));
    let error = until_it_ends(&mut world).unwrap_err();
    assert!(matches!(error, LandingError::Inside { .. }), "{error}");
}

#[test]
fn a_stretch_is_due_by_rows_by_bytes_and_by_time_and_never_empty() {
    let limits = RollLimits {
        bytes: 100,
        rows: 2,
        after: Duration::from_secs(60),
    };
    let mut world = World::new(9, 10);
    world.is_rough = false;
    let mut member = Member::start(&world, 0);
    let now = Instant::now();
    while !member.stretch.is_reading() {
        assert!(!member.stretch.is_due(&limits, 1_000, now));
        member.work(&mut world).unwrap();
    }
    assert!(!member.stretch.is_due(&limits, 1_000, now) && member.stretch.is_idle());
    let bucket = member.rule.bucket(&world.source[0].record());
    member.stretch.file(bucket).unwrap();
    member.stretch.row(1, bucket, now).unwrap();
    assert!(!member.stretch.is_due(&limits, 99, now) && member.stretch.is_due(&limits, 100, now));
    assert!(member.stretch.is_due(&limits, 0, now + Duration::from_secs(60)));
    assert_eq!(member.stretch.due_at(&limits), Some(now + Duration::from_secs(60)));
    member.stretch.row(2, bucket, now).unwrap();
    assert!(member.stretch.is_due(&limits, 0, now));
    assert!(matches!(
        member.stretch.wants(2, bucket),
        Err(LandingError::Order { .. })
    ));
}
