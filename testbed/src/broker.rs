//! One Apache Kafka process in KRaft mode, from jars: what a single broker and a cluster have in common.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::{Guarded, end_of};
use crate::topics::Topics;
use crate::{StartError, deps};

/// Where a broker's files are, and its process while it runs.
pub(crate) struct Broker {
    dir: PathBuf,
    libs: PathBuf,
    heap_mib: u32,
    process: Option<Guarded>,
}

impl Broker {
    /// A broker of its own folder, not started. `properties` gets the data folder.
    ///
    /// # Errors
    /// [`StartError::Missing`] without Java or the jars (`SEALFLOW_KAFKA_LIBS`, by default `.deps/kafka/libs`).
    pub(crate) fn prepare(heap_mib: u32, properties: impl FnOnce(&Path) -> String) -> Result<Self, StartError> {
        let libs = std::env::var_os("SEALFLOW_KAFKA_LIBS").map_or_else(|| deps().join("kafka/libs"), PathBuf::from);
        if !libs.is_dir() {
            return Err(StartError::Missing(format!("no Kafka jars in {}", libs.display())));
        }
        if Command::new("java").arg("-version").output().is_err() {
            return Err(StartError::Missing("no java".into()));
        }
        let dir = tempfile::Builder::new()
            .prefix("sealflow-kafka-")
            .tempdir()
            .map_err(broken)?
            .keep();
        let broker = Self {
            dir,
            libs,
            heap_mib,
            process: None,
        };
        let text = properties(&broker.data_dir());
        std::fs::write(broker.dir.join("server.properties"), text).map_err(broken)?;
        std::fs::write(broker.dir.join("log4j2.properties"), broker.logging()).map_err(broken)?;
        Ok(broker)
    }

    /// Where its data is.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Makes the data folder by Kafka's own tool.
    pub(crate) fn format(&self) -> Result<(), StartError> {
        let mut tool = self.java();
        tool.args([
            "kafka.tools.StorageTool",
            "format",
            "--cluster-id",
            "c2VhbGZsb3ctdGVzdGJlZA",
            "--config",
        ]);
        let output = tool.arg(self.dir.join("server.properties")).output().map_err(broken)?;
        if output.status.success() {
            return Ok(());
        }
        let text = [output.stdout, output.stderr].concat();
        Err(StartError::Broken(String::from_utf8_lossy(&text).into_owned()))
    }

    /// Makes the data folder as a copy of a formatted one, under another node id: the tool takes seconds each time.
    pub(crate) fn format_like(&self, other: &Self, node: i32) -> Result<(), StartError> {
        std::fs::create_dir_all(self.data_dir()).map_err(broken)?;
        for entry in std::fs::read_dir(other.data_dir()).map_err(broken)? {
            let entry = entry.map_err(broken)?;
            let to = self.data_dir().join(entry.file_name());
            if entry.file_name() != "meta.properties" {
                std::fs::copy(entry.path(), to).map_err(broken)?;
                continue;
            }
            let text = std::fs::read_to_string(entry.path()).map_err(broken)?;
            let lines = text.lines().filter(|line| !line.starts_with("directory.id="));
            let lines = lines.map(|line| match line.strip_prefix("node.id=") {
                Some(_) => format!("node.id={node}\n"),
                None => format!("{line}\n"),
            });
            // A broker gives its folder an id where it finds none.
            std::fs::write(to, lines.collect::<String>()).map_err(broken)?;
        }
        Ok(())
    }

    /// Starts the process on its folder; does not wait for it.
    pub(crate) fn start(&mut self) -> Result<(), StartError> {
        let mut java = self.java();
        java.arg("kafka.Kafka").arg(self.dir.join("server.properties"));
        self.process = Some(Guarded::start(&self.dir, &java).map_err(broken)?);
        Ok(())
    }

    /// Waits until the broker at `address` answers.
    pub(crate) fn wait_for(&self, address: &str) -> Result<(), StartError> {
        let (topics, until) = (Topics::at(address), Instant::now() + Duration::from_secs(60));
        while !topics.answers() {
            if Instant::now() > until {
                let said = match &self.process {
                    Some(process) => [process.last_output(), end_of(&self.dir.join("broker.log"))].join("\n"),
                    None => "it was not started".into(),
                };
                return Err(StartError::Broken(said));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Whether there is a process that was neither killed nor stopped.
    pub(crate) fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// SIGKILL; the data stays.
    pub(crate) fn crash(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill_and_keep();
        }
    }

    /// SIGTERM, and waits for the end; the data stays.
    pub(crate) fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.terminate_and_keep();
        }
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn set_frozen(&mut self, frozen: bool) {
        match (self.process.as_mut(), frozen) {
            (Some(process), true) => process.freeze(),
            (Some(process), false) => process.thaw(),
            (None, _) => {}
        }
    }

    fn java(&self) -> Command {
        let mut java = Command::new("java");
        java.args([
            "-Xms64m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:-UsePerfData",
        ])
        .arg(format!("-Xmx{}m", self.heap_mib))
        .arg(format!(
            "-Dlog4j2.configurationFile={}",
            self.dir.join("log4j2.properties").display()
        ))
        .arg("-cp")
        .arg(self.libs.join("*"));
        java
    }

    fn logging(&self) -> String {
        format!(
            "status=error
appender.file.type=File
appender.file.name=file
appender.file.fileName={}
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d %p %c %m%n
rootLogger.level=warn
rootLogger.appenderRef.file.ref=file
",
            self.dir.join("broker.log").display(),
        )
    }
}

#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
fn broken(error: std::io::Error) -> StartError {
    StartError::Broken(error.to_string())
}
