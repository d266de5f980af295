//! What every fault test stands on: the cluster, a site with a proxy before its KMS, records that are counted.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use sealflow_testbed::{
    BROKERS, Cluster, Draw, Expected, Group, Instance, Message, Mode, Pipeline, Site, StartError, Tally, Topics,
    check_sealed, free_port, or_skip,
};

pub(crate) const PARTITIONS: i32 = 6;

/// How long a pipeline may take to go on after a fault has ended.
pub(crate) const RECOVERY: Duration = Duration::from_secs(90);

/// A number from the environment, or the default.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The seed of everything that a fault test draws.
pub(crate) fn seed() -> u64 {
    setting("SEALFLOW_FAULT_SEED", 3)
}

/// The cluster of this process, for a test that breaks no broker: others may use it at the same time. Started by the
/// first test that asks, gone with the process.
pub(crate) fn cluster(test: &str) -> Option<RwLockReadGuard<'static, Cluster>> {
    let cluster = started(test)?;
    Some(cluster.read().unwrap_or_else(PoisonError::into_inner))
}

/// The same cluster for one test alone: a broken broker is broken for everybody.
pub(crate) fn cluster_to_break(test: &str) -> Option<Mended> {
    let cluster = started(test)?;
    Some(Mended(cluster.write().unwrap_or_else(PoisonError::into_inner)))
}

fn started(test: &str) -> Option<&'static RwLock<Cluster>> {
    static CLUSTER: OnceLock<Result<RwLock<Cluster>, String>> = OnceLock::new();
    let started = CLUSTER.get_or_init(|| {
        let heap_mib = u32::try_from(setting("SEALFLOW_FAULT_HEAP_MIB", 320)).unwrap();
        match Cluster::start(heap_mib, seed()) {
            Ok(cluster) => Ok(RwLock::new(cluster)),
            Err(StartError::Missing(reason)) => Err(reason),
            Err(error) => panic!("{error}"),
        }
    });
    or_skip(
        test,
        started.as_ref().map_err(|reason| StartError::Missing(reason.clone())),
    )
}

/// A cluster that is whole again when it is dropped, also by a test that failed in the middle of a fault.
pub(crate) struct Mended(RwLockWriteGuard<'static, Cluster>);

impl Deref for Mended {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl DerefMut for Mended {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.0
    }
}

impl Drop for Mended {
    fn drop(&mut self) {
        self.0.set_all(Mode::Pass);
        for node in 0..BROKERS {
            self.0.thaw(node);
            if !self.0.is_running(node)
                && let Err(error) = self.0.resume(node)
            {
                eprintln!("broker {node} stays away: {error}");
            }
        }
    }
}

/// What a test changes of the usual.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    /// `max_age` of the data key; the default is the policy's hour.
    pub(crate) max_age: Option<&'static str>,
    /// Lines at the top level of the pipeline file.
    pub(crate) more: String,
    /// Further properties of source and target, as members of a YAML flow map.
    pub(crate) source_properties: String,
    pub(crate) target_properties: String,
    /// Members of the `kms:` section.
    pub(crate) kms: String,
    /// Configuration of the topics.
    pub(crate) topics: Vec<(&'static str, &'static str)>,
    /// Configuration of the source topic alone.
    pub(crate) source_topic: Vec<(&'static str, &'static str)>,
    /// Dead letters that are too large go to this folder of the site.
    pub(crate) oversize: Option<&'static str>,
    /// Every instance aborts one of its first transactions, at a step and a pass that are drawn.
    pub(crate) aborts: bool,
    /// Brokers of the source and of the target, their leader first.
    pub(crate) placed: Option<([i32; 3], [i32; 3])>,
}

/// Topics, a site and a pipeline of one test.
pub(crate) struct Bench {
    pub(crate) name: String,
    pub(crate) site: Site,
    pub(crate) topics: Topics,
    pub(crate) expected: Expected,
    setup: Setup,
    written: u64,
    group: Group,
    /// Which transaction of the next instance is aborted.
    aborts: RefCell<Draw>,
}

impl Bench {
    /// Makes NAME, NAME.sealed and NAME.dead, and a site of which nothing runs yet. `count` sample records are
    /// expected in the end; [`Bench::produce`] writes them.
    pub(crate) fn new(cluster: &Cluster, name: &str, count: u64, setup: Setup) -> Self {
        let topics = cluster.topics();
        for suffix in ["", ".sealed", ".dead"] {
            let topic = format!("{name}{suffix}");
            let mut config = setup.topics.clone();
            if suffix.is_empty() {
                config.extend(&setup.source_topic);
            }
            match setup.placed {
                None => topics.create(&topic, PARTITIONS, &config),
                Some((source, target)) => {
                    let brokers = if suffix.is_empty() { source } else { target };
                    topics.create_on(&topic, PARTITIONS, &brokers, &config);
                }
            }
        }
        let group = topics.group(name, name);
        Self {
            name: name.to_owned(),
            site: Site::new(&cluster.brokers()).with_kms_proxy(seed()),
            topics,
            expected: Expected::new(seed(), count, PARTITIONS),
            setup,
            written: 0,
            group,
            aborts: RefCell::new(Draw::new(seed() ^ 0xab)),
        }
    }

    /// Signs the sample policy, with the key age of the setup.
    pub(crate) fn publish(&self) {
        let mut policy = sealflow_samples::POLICY_YAML.to_owned();
        if let Some(max_age) = self.setup.max_age {
            assert!(policy.contains("max_age: 1h"));
            policy = policy.replace("max_age: 1h", &format!("max_age: {max_age}"));
        }
        self.site.publish("payments", 1, &policy);
    }

    /// Writes the next `count` of the expected records to the source.
    pub(crate) fn produce(&mut self, count: u64) {
        let next = self
            .expected
            .messages_from(self.written)
            .take(usize::try_from(count).unwrap());
        let settings = [("compression.codec", "zstd"), ("batch.num.messages", "200")];
        self.topics.produce_with(&self.name, next, &settings);
        self.written += count;
    }

    /// How many sample records were written so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The pipeline file of an instance.
    pub(crate) fn file(&self, instance: &str) -> PathBuf {
        let more = format!("instance: {instance}\n{}", self.setup.more);
        let file = self.site.pipeline(&Pipeline {
            name: &self.name,
            mode: "seal",
            dataset: "payments",
            from: &self.name,
            to: &format!("{}.sealed", self.name),
            dead: &format!("{}.dead", self.name),
            keys: "header",
            codec: "none",
            more: &more,
        });
        let mut yaml = std::fs::read_to_string(&file).unwrap();
        for (mark, more) in [
            ("heartbeat.interval.ms: \"500\"", &self.setup.source_properties),
            ("compression.codec: none", &self.setup.target_properties),
            ("region: eu-central-1", &self.setup.kms),
        ] {
            assert!(yaml.contains(mark));
            if !more.is_empty() {
                yaml = yaml.replace(mark, &format!("{mark}, {more}"));
            }
        }
        if let Some(folder) = self.setup.oversize {
            let folder = self.site.path().join(folder);
            yaml = yaml.replace(
                "max_ratio: 1.0",
                &format!("max_ratio: 1.0, oversize: \"{}\"", folder.display()),
            );
        }
        let own = self.site.path().join(format!("{}-{instance}.yaml", self.name));
        std::fs::write(&own, yaml).unwrap();
        own
    }

    /// Starts an instance.
    pub(crate) fn start(&self, instance: &str) -> Instance {
        let file = self.file(instance);
        let args = ["run", file.to_str().unwrap()];
        let mut command = self
            .site
            .command(Path::new(env!("CARGO_BIN_EXE_sealflow")), "pipeline", &args);
        command.env("SEALFLOW_LOG", "info,sealflow=debug,sealflow_kafka=debug");
        if self.setup.aborts {
            command.env("FAILPOINTS", abort(&mut self.aborts.borrow_mut()));
        }
        Instance::start(command, &file.with_extension("log"))
    }

    /// How many source records are done: their outcomes and their offsets are committed.
    pub(crate) fn committed(&mut self) -> u64 {
        self.group.committed()
    }

    /// Waits until `goal` source records are done, and calls `tend` meanwhile.
    pub(crate) fn wait_for(&mut self, goal: u64, patience: Duration, mut tend: impl FnMut(&Self)) {
        let until = Instant::now() + patience;
        loop {
            tend(self);
            let committed = self.committed();
            if committed >= goal {
                return;
            }
            assert!(
                Instant::now() < until,
                "{committed} of {goal} records after {patience:?}:\n{}",
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asserts that nothing more than `at_most` is done for a while.
    pub(crate) fn expect_rest(&mut self, at_most: u64, instance: &mut Instance, rest: Duration) {
        let until = Instant::now() + rest;
        while Instant::now() < until {
            assert!(instance.ended().is_none(), "it ended:\n{}", instance.last_lines());
            assert!(self.committed() <= at_most, "records passed although they must wait");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Counts the target topic.
    pub(crate) fn tally(&self) -> Tally {
        self.tally_without(|_| false)
    }

    /// As [`Bench::tally`], leaving out messages that are no samples.
    pub(crate) fn tally_without(&self, leave_out: impl Fn(&Message) -> bool) -> Tally {
        let sealed = format!("{}.sealed", self.name);
        let read = |each: &mut dyn FnMut(Message)| {
            self.topics.read_each(&sealed, |message| {
                if !leave_out(&message) {
                    each(message);
                }
            });
        };
        self.expected.tally(read, check_sealed)
    }

    /// Asserts that every expected record is in the target once, in order, sealed, and none is a dead letter.
    pub(crate) fn expect_exact(&self) {
        let tally = self.tally();
        assert!(tally.is_exact(self.expected.count()), "{tally:?}");
        assert_eq!(
            self.topics.high_watermarks(&format!("{}.dead", self.name)),
            [0; PARTITIONS as usize]
        );
    }

    /// The end of every instance's log.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for log in self.log_files() {
            let bytes = std::fs::read(&log).unwrap_or_default();
            let from = bytes.len().saturating_sub(4_000);
            text += &format!("== {}\n{}\n", log.display(), String::from_utf8_lossy(&bytes[from..]));
        }
        text
    }

    /// All logs of instances.
    pub(crate) fn log_files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.site.path()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.extension().is_some_and(|e| e == "log"))
            .collect()
    }
}

/// A free port for an admin listener, and the line that says so.
pub(crate) fn admin() -> (u16, String) {
    let port = free_port();
    (port, format!("admin: {{ listen: \"127.0.0.1:{port}\" }}"))
}

/// The status code of an admin path.
pub(crate) fn status(port: u16, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

/// Asserts that a process stayed below a bound, and says how far.
pub(crate) fn expect_memory(what: &str, peak_kib: u64, bound_mib: u64) {
    eprintln!("{what}: peak memory {} MiB, bound {bound_mib} MiB", peak_kib / 1024);
    assert!(
        peak_kib / 1024 <= bound_mib,
        "{what}: {} MiB, bound {bound_mib} MiB",
        peak_kib / 1024
    );
}

/// A failpoint that aborts one transaction.
fn abort(draw: &mut Draw) -> String {
    const STEPS: [&str; 5] = ["begin", "send", "flush", "send-offsets", "before-commit"];
    let step = STEPS[usize::try_from(draw.below(STEPS.len() as u64)).unwrap()];
    // One pass of `send` is a record, of the others a transaction.
    let passed = draw.below(if step == "send" { 4_000 } else { 5 });
    format!("{step}={passed}*off->1*return->off")
}
