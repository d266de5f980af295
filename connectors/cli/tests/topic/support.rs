//! Processes of the binary under test, and the records that pass through it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use sealflow_samples::{SampleRecord, generate};
use sealflow_testbed::{Expected, Instance, Message, Pipeline, Site, Topics};

/// The binary that Cargo built for these tests.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sealflow"))
}

/// Partitions of the tests' topics.
pub(crate) const PARTITIONS: i32 = 6;

/// A running pipeline with its log in a file; killed when dropped.
pub(crate) struct Running(Instance);

impl Running {
    /// Starts `sealflow run FILE` as `role`.
    pub(crate) fn start(site: &Site, role: &str, file: &Path, more: &[&str]) -> Self {
        let mut args = vec!["run", file.to_str().unwrap()];
        args.extend(more);
        let mut command = site.command(binary(), role, &args);
        command.env("SEALFLOW_LOG", "debug");
        Self::of(command, file)
    }

    /// Starts this command, with its log beside `file`.
    pub(crate) fn of(command: Command, file: &Path) -> Self {
        Self(Instance::start(command, &file.with_extension("log")))
    }

    /// SIGKILL.
    pub(crate) fn kill(self) {
        self.0.kill();
    }

    /// Whether it has ended, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.0.ended()
    }

    /// Waits for the end.
    pub(crate) fn wait(self, patience: Duration) -> (ExitStatus, String) {
        self.0.wait(patience)
    }

    /// Everything that it has written so far.
    pub(crate) fn read_log(&self) -> String {
        self.0.read_log()
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
    let expected = Expected::new(seed, count, PARTITIONS);
    generate(seed, count)
        .map(|sample| {
            let message = expected.message(&sample);
            (sample, message)
        })
        .collect()
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
