//! Processes of the binary under test, and the records that pass through it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sealflow_samples::{SampleRecord, generate};
use sealflow_testbed::{Message, Pipeline, Site, Topics};

/// The binary that Cargo built for these tests.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sealflow"))
}

/// Partitions of the tests' topics.
pub(crate) const PARTITIONS: i32 = 6;

/// A running pipeline with its log in a file; killed when dropped.
pub(crate) struct Running {
    child: Child,
    pub(crate) log: PathBuf,
}

impl Running {
    /// Starts `sealflow run FILE` as `role`.
    pub(crate) fn start(site: &Site, role: &str, file: &Path, more: &[&str]) -> Self {
        let log = file.with_extension("log");
        let out = File::options().create(true).append(true).open(&log).unwrap();
        let mut args = vec!["run", file.to_str().unwrap()];
        args.extend(more);
        let mut command = site.command(binary(), role, &args);
        command.env("SEALFLOW_LOG", "debug").stdin(Stdio::null());
        command.stdout(out.try_clone().unwrap()).stderr(out);
        Self {
            child: command.spawn().unwrap(),
            log,
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self, patience: Duration) -> (ExitStatus, String) {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return (status, self.read_log());
            }
            assert!(
                Instant::now() < until,
                "still running after {patience:?}:\n{}",
                self.read_log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Everything that it has written so far.
    pub(crate) fn read_log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already gone if it ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a pipeline to the end of its topics, and expects success.
pub(crate) fn run_to_end(site: &Site, file: &Path, patience: Duration) -> String {
    let (status, log) = Running::start(site, "pipeline", file, &["--until-end"]).wait(patience);
    assert!(status.success(), "{status}:\n{log}");
    log
}

/// Creates NAME, NAME.sealed, NAME.opened and NAME.dead.
pub(crate) fn create_topics(topics: &Topics, name: &str) {
    for suffix in ["", ".sealed", ".opened", ".dead"] {
        topics.create(&format!("{name}{suffix}"), PARTITIONS, &[]);
    }
}

/// A pipeline of `name`'s topics in direction `mode`.
pub(crate) fn pipeline(site: &Site, name: &str, mode: &str, more: &str) -> PathBuf {
    let (sealed, opened, dead) = (
        format!("{name}.sealed"),
        format!("{name}.opened"),
        format!("{name}.dead"),
    );
    let (from, to) = if mode == "seal" {
        (name, sealed.as_str())
    } else {
        (sealed.as_str(), opened.as_str())
    };
    let file = format!("{name}-{mode}");
    site.pipeline(&Pipeline {
        name: &file,
        mode,
        dataset: "payments",
        from,
        to,
        dead: &dead,
        keys: "header",
        codec: "none",
        more,
    })
}

/// The first `count` sample records as messages: spread over partitions by key, with a header and a time stamp.
pub(crate) fn sample_messages(seed: u64, count: u64) -> Vec<(SampleRecord, Message)> {
    generate(seed, count)
        .map(|sample| {
            let hash = sample.key.iter().fold(17_u32, |hash, byte| {
                hash.wrapping_mul(31).wrapping_add(u32::from(*byte))
            });
            let message = Message {
                partition: i32::try_from(hash % PARTITIONS.unsigned_abs()).unwrap(),
                offset: 0,
                key: Some(sample.key.clone()),
                value: Some(sample.value.clone()),
                headers: vec![("source".into(), Some(b"test".to_vec())), ("empty".into(), None)],
                timestamp: Some(1_767_225_600_000 + i64::try_from(sample.n).unwrap()),
            };
            (sample, message)
        })
        .collect()
}

/// The messages of one partition, in order.
pub(crate) fn of_partition<T>(messages: &[(T, Message)], partition: i32) -> impl Iterator<Item = &(T, Message)> {
    messages
        .iter()
        .filter(move |(_, message)| message.partition == partition)
}

/// How many records the topic's partitions hold, transaction markers included.
pub(crate) fn progress(topics: &Topics, topic: &str) -> u64 {
    topics
        .high_watermarks(topic)
        .iter()
        .map(|mark| u64::try_from(*mark).unwrap())
        .sum()
}

/// A number from the environment, or the default.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}
