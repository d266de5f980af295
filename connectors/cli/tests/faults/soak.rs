//! The long pass: every fault of the bench over one run of many records, drawn from one seed. `make soak` runs it.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{BufReader, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use sealflow_testbed::{BROKERS, Cluster, Draw, Mode, SmallDisk, or_skip};
use serde_json::json;

use crate::bench::{Bench, RECOVERY, Setup, cluster_to_break, seed, setting};
use crate::supervisor::Supervisor;

const INSTANCES: usize = 3;
/// See "Memory" in docs/operations.md.
const BOUND_MIB: u64 = 320;
/// How long nothing may have passed before the next kill comes anyway: instances that wait are killed too.
const IMPATIENCE: Duration = Duration::from_secs(10);
/// Longer than the `transaction.timeout.ms` of the setup: the coordinator aborts what a frozen instance left open.
const FREEZE: Duration = Duration::from_secs(16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Kill,
    RestartBroker(usize),
    MoveLeader,
    Freeze,
    Leave,
    Join,
    KmsOutage,
    FullDisk,
}

/// What is broken right now, and until when.
#[derive(Default)]
struct Broken {
    broker: Option<(usize, Instant)>,
    frozen: Option<(usize, Instant)>,
    kms: Option<(Instant, Instant)>,
    disk: Option<(Instant, Instant)>,
}

#[derive(Default)]
struct Counted {
    restarts: BTreeMap<usize, u64>,
    leaders_moved: u64,
    frozen: u64,
    joined: u64,
    left: u64,
    kms_outage: Duration,
    disk_full: Duration,
}

#[test]
#[ignore = "make soak runs it"]
fn every_record_passes_once_through_every_fault_of_the_bench() {
    let Some(mut cluster) = cluster_to_break("the soak on three brokers") else {
        return;
    };
    let (records, kills) = (
        setting("SEALFLOW_FAULT_RECORDS", 100_000),
        setting("SEALFLOW_FAULT_KILLS", 20),
    );
    let mut draw = Draw::new(seed());
    let setup = Setup {
        // Keys that end soon, so that an outage is felt.
        max_age: Some("20s"),
        more: "batch: { rows: 2000 }".into(),
        target_properties: "transaction.timeout.ms: \"10000\"".into(),
        aborts: true,
        ..Setup::default()
    };
    let mut bench = Bench::new(&cluster, "soak", records, setup);
    let disk = or_skip(
        "full disk in the catalogue",
        SmallDisk::mount(&bench.site.catalogue(), 4096),
    );
    bench.publish();
    let started = Instant::now();
    let mut events = schedule(records, kills, &mut draw);
    // Records are written a little ahead of the next event, so that there is work in hand when it comes.
    let ahead = (records / (events.len() as u64)).max(1);
    let (mut broken, mut counted) = (Broken::default(), Counted::default());
    let mut instances = Supervisor::new(INSTANCES, 2);
    let (mut last, mut moved) = (0, Instant::now());
    let patience = Duration::from_secs(300 + setting("SEALFLOW_FAULT_OUTAGE_SECS", 120));
    loop {
        instances.tend(&bench);
        mend(
            &mut cluster,
            &bench,
            disk.as_ref(),
            &mut instances,
            &mut broken,
            &mut counted,
        );
        let committed = bench.committed();
        if committed > last {
            (last, moved) = (committed, Instant::now());
        }
        let is_whole =
            broken.broker.is_none() && broken.frozen.is_none() && broken.kms.is_none() && broken.disk.is_none();
        if committed >= records && events.is_empty() && is_whole {
            break;
        }
        let wanted = events.first().map_or(records, |(at, _)| (at + ahead).min(records));
        if bench.written() < wanted {
            bench.produce(wanted - bench.written());
        }
        assert!(moved.elapsed() < patience, "nothing passes:\n{}", bench.logs());
        // Due by progress; the next kill also when nothing passes: instances that wait are killed too.
        let idle = moved.elapsed() > IMPATIENCE;
        let next = events.iter().position(|(at, event)| {
            (*at <= committed || (idle && *event == Event::Kill)) && is_possible(*event, &broken)
        });
        if let Some(next) = next {
            let (_, event) = events.remove(next);
            eprintln!(
                "soak: {event:?} at {committed} records, {} s",
                started.elapsed().as_secs()
            );
            let made = make(
                event,
                &mut cluster,
                &bench,
                disk.as_ref(),
                &mut instances,
                &mut draw,
                &mut broken,
                &mut counted,
            );
            if !made {
                events.insert(next, (committed, event));
            } else if event == Event::Kill && idle {
                moved = moved.max(Instant::now() - IMPATIENCE / 2);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    instances.stop(RECOVERY);

    let tally = bench.tally();
    let dead: i64 = bench.topics.high_watermarks("soak.dead").iter().sum();
    let leaks = Leaks::search(&cluster, &bench);
    let injected = count_in_logs(&bench, "by a failpoint");
    let mut ended: BTreeMap<String, u64> = BTreeMap::new();
    for code in &instances.ended {
        *ended
            .entry(code.map_or("signal".into(), |code| code.to_string()))
            .or_default() += 1;
    }
    sealflow_testbed::report(&json!({
        "name": "every fault of the bench, Kafka to Kafka, three brokers",
        "seed": seed(),
        "records": records,
        "target": tally.to_json(),
        "dead_letters": dead,
        "kills": instances.kills,
        "ended_by_themselves_and_restarted": ended,
        "aborts_injected": injected,
        "aborts_logged": count_in_logs(&bench, "transaction aborted"),
        "broker_restarts": counted.restarts.values().collect::<Vec<_>>(),
        "leaders_moved": counted.leaders_moved,
        "frozen_beyond_their_transaction": counted.frozen,
        "joined": counted.joined,
        "left": counted.left,
        "kms_outage_seconds": counted.kms_outage.as_secs(),
        "catalogue_full_seconds": counted.disk_full.as_secs(),
        "peak_memory_mib": instances.peak_kib / 1024,
        "bound_mib": BOUND_MIB,
        "plaintexts_found": leaks.found,
        "bytes_searched": leaks.bytes,
        "seconds": started.elapsed().as_secs(),
    }));
    assert!(tally.is_exact(records), "{tally:?}");
    assert_eq!((dead, leaks.found), (0, 0), "dead letters, plaintexts");
    assert_eq!(instances.kills, kills);
    assert!(injected > 0, "no transaction was aborted by a failpoint");
    // Whatever made an instance end, starting it again as a unit does was all that it took.
    assert!(
        instances.ended.iter().all(|code| *code == Some(69)),
        "ended otherwise than for a service that is away: {:?}",
        instances.ended
    );
    assert_eq!((counted.leaders_moved, counted.frozen), (2, 3), "leaders moved, frozen");
    assert!(counted.joined >= 1 && counted.left >= 1, "joined, left");
    assert!(counted.kms_outage >= Duration::from_secs(setting("SEALFLOW_FAULT_OUTAGE_SECS", 120)));
    assert!(disk.is_none() || counted.disk_full >= Duration::from_secs(setting("SEALFLOW_FAULT_DISK_SECS", 40)));
    assert_eq!(counted.restarts.values().collect::<Vec<_>>(), [&2; BROKERS]);
    assert!(
        instances.peak_kib / 1024 <= BOUND_MIB,
        "{} MiB",
        instances.peak_kib / 1024
    );
}

/// When each event comes, by records done.
fn schedule(records: u64, kills: u64, draw: &mut Draw) -> Vec<(u64, Event)> {
    // Nothing in the first or the last twentieth: there everything must be at work.
    let span = records * 9 / 10;
    let mut events = Vec::new();
    for kill in 0..kills {
        let share = span / kills;
        events.push((records / 20 + share * kill + draw.below(share), Event::Kill));
    }
    let mut others = vec![Event::KmsOutage, Event::FullDisk, Event::MoveLeader, Event::MoveLeader];
    others.extend((0..BROKERS * 2).map(|n| Event::RestartBroker(n % BROKERS)));
    others.extend([Event::Freeze; 3]);
    others.extend([
        Event::Join,
        Event::Leave,
        Event::Join,
        Event::Leave,
        Event::Leave,
        Event::Join,
    ]);
    // Fisher and Yates.
    for at in (1..others.len()).rev() {
        let with = usize::try_from(draw.below(at as u64 + 1)).unwrap();
        others.swap(at, with);
    }
    let share = span / others.len() as u64;
    for (n, event) in (0_u64..).zip(others) {
        events.push((records / 20 + share * n + draw.below(share), event));
    }
    events.sort_by_key(|(at, _)| *at);
    events
}

/// Two faults of one kind wait for one another; a second broker away would only stop everything.
fn is_possible(event: Event, broken: &Broken) -> bool {
    match event {
        Event::RestartBroker(_) | Event::MoveLeader => broken.broker.is_none(),
        Event::Freeze => broken.frozen.is_none(),
        Event::KmsOutage | Event::FullDisk => broken.kms.is_none() && broken.disk.is_none(),
        Event::Kill | Event::Leave | Event::Join => true,
    }
}

/// Makes a fault. False if it cannot be made now.
#[expect(clippy::too_many_arguments, reason = "the whole bench is at hand")]
fn make(
    event: Event,
    cluster: &mut Cluster,
    bench: &Bench,
    disk: Option<&SmallDisk>,
    instances: &mut Supervisor,
    draw: &mut Draw,
    broken: &mut Broken,
    counted: &mut Counted,
) -> bool {
    let now = Instant::now();
    match event {
        Event::Kill => return instances.kill(draw.next()),
        Event::RestartBroker(node) => {
            let times = counted.restarts.entry(node).or_default();
            *times += 1;
            // Once as a crash, once as an operator does it.
            if *times == 1 {
                cluster.crash(node);
            } else {
                cluster.stop(node);
            }
            broken.broker = Some((node, now + Duration::from_millis(2_000 + draw.below(6_000))));
        }
        Event::MoveLeader => {
            let partition = i32::try_from(draw.below(6)).unwrap();
            let (before, after) = cluster.move_leader("soak.sealed", partition);
            counted.leaders_moved += u64::from(before != after);
        }
        Event::Freeze => {
            let Some(chosen) = instances.freeze(draw.next()) else {
                return false;
            };
            counted.frozen += 1;
            broken.frozen = Some((chosen, now + FREEZE));
        }
        Event::Leave => {
            if instances.leave(draw.next()) {
                counted.left += 1;
            }
        }
        Event::Join => {
            if instances.wanted() < INSTANCES && instances.join() {
                counted.joined += 1;
            }
        }
        Event::KmsOutage => {
            bench.site.kms_proxy().set(Mode::Cut);
            broken.kms = Some((
                now,
                now + Duration::from_secs(setting("SEALFLOW_FAULT_OUTAGE_SECS", 120)),
            ));
        }
        Event::FullDisk => {
            if let Some(disk) = disk {
                disk.fill();
                broken.disk = Some((now, now + Duration::from_secs(setting("SEALFLOW_FAULT_DISK_SECS", 40))));
            }
        }
    }
    true
}

/// Ends the faults whose time is over.
fn mend(
    cluster: &mut Cluster,
    bench: &Bench,
    disk: Option<&SmallDisk>,
    instances: &mut Supervisor,
    broken: &mut Broken,
    counted: &mut Counted,
) {
    let now = Instant::now();
    if let Some((node, at)) = broken.broker
        && at <= now
    {
        cluster.resume(node).unwrap();
        broken.broker = None;
    }
    if let Some((chosen, at)) = broken.frozen
        && at <= now
    {
        instances.thaw(chosen);
        broken.frozen = None;
    }
    if let Some((since, at)) = broken.kms
        && at <= now
    {
        bench.site.kms_proxy().set(Mode::Pass);
        counted.kms_outage += since.elapsed();
        broken.kms = None;
    }
    if let (Some((since, at)), Some(disk)) = (broken.disk, disk)
        && at <= now
    {
        assert!(disk.is_full(), "the disk was full to the end");
        disk.free();
        counted.disk_full += since.elapsed();
        broken.disk = None;
    }
}

fn count_in_logs(bench: &Bench, word: &str) -> usize {
    let count = |file: &Path| {
        let log = std::fs::read(file).unwrap_or_default();
        String::from_utf8_lossy(&log)
            .lines()
            .filter(|line| line.contains(word))
            .count()
    };
    bench.log_files().iter().map(|file| count(file)).sum()
}

/// G1: how many plaintexts of the sealed columns stand in what was written.
struct Leaks {
    secrets: HashSet<u64>,
    found: u64,
    bytes: u64,
}

impl Leaks {
    /// Searches every log of ours, the catalogue, and on one broker's disk the target (uncompressed, aborted batches
    /// included), the dead letters and the broker's own topics. Secrets without a blank are found where they stand
    /// between other characters than letters, digits and `.:@-_`; names are left to the check of every record.
    fn search(cluster: &Cluster, bench: &Bench) -> Self {
        let secrets = (0..bench.expected.count())
            .flat_map(|n| sealflow_samples::record(seed(), n).secrets)
            .filter(|secret| !secret.contains(' '))
            .map(|secret| hash(secret.as_bytes()));
        let mut leaks = Self {
            secrets: secrets.collect(),
            found: 0,
            bytes: 0,
        };
        let control = sealflow_samples::record(seed(), 0);
        leaks.text(&control.value[..]);
        assert!(leaks.found >= 1, "the search finds what is there");
        (leaks.found, leaks.bytes) = (0, 0);
        for log in bench.log_files() {
            leaks.below(&log);
        }
        leaks.below(&bench.site.catalogue());
        for entry in std::fs::read_dir(&cluster.data_dirs()[0]).unwrap() {
            let entry = entry.unwrap();
            // All but other tests' topics and the source itself.
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with("soak.") || name.starts_with("__") {
                leaks.below(&entry.path());
            }
        }
        leaks
    }

    fn below(&mut self, path: &Path) {
        if path.is_dir() {
            for entry in std::fs::read_dir(path).unwrap() {
                self.below(&entry.unwrap().path());
            }
        } else if !path.extension().is_some_and(|e| e == "index" || e == "timeindex") {
            let file = std::fs::File::open(path).unwrap();
            self.text(BufReader::with_capacity(1 << 20, file));
        }
    }

    fn text(&mut self, mut from: impl Read) {
        let mut word = Vec::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = from.read(&mut buffer).unwrap();
            self.bytes += read as u64;
            for byte in &buffer[..read] {
                if byte.is_ascii_alphanumeric() || b".:@-_".contains(byte) {
                    word.push(*byte);
                } else if !word.is_empty() {
                    self.word(&word);
                    word.clear();
                }
            }
            if read == 0 {
                return self.word(&word);
            }
        }
    }

    fn word(&mut self, word: &[u8]) {
        // The shortest secret is an address; sealed values are longer than any.
        if (7..=80).contains(&word.len()) && self.secrets.contains(&hash(word)) {
            self.found += 1;
        }
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
