//! Apache Kafka, one broker in KRaft mode, from jars.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::process::Guarded;
use crate::topics::Topics;
use crate::{StartError, deps, free_port, or_skip};

/// A broker of its own for a test, killed when dropped.
pub struct Kafka {
    dir: PathBuf,
    libs: PathBuf,
    port: u16,
    process: Option<Guarded>,
}

impl Kafka {
    /// Starts a broker on free ports with an empty data folder, and waits until it answers.
    ///
    /// # Errors
    /// [`StartError::Missing`] without Java or the jars (`SEALFLOW_KAFKA_LIBS`, by default `.deps/kafka/libs`).
    pub fn start() -> Result<Self, StartError> {
        let libs = std::env::var_os("SEALFLOW_KAFKA_LIBS").map_or_else(|| deps().join("kafka/libs"), PathBuf::from);
        if !libs.is_dir() {
            return Err(StartError::Missing(format!("no Kafka jars in {}", libs.display())));
        }
        if Command::new("java").arg("-version").output().is_err() {
            return Err(StartError::Missing("no java".into()));
        }
        let broken = |error: std::io::Error| StartError::Broken(error.to_string());
        let dir = tempfile::Builder::new()
            .prefix("sealflow-kafka-")
            .tempdir()
            .map_err(broken)?
            .keep();
        let port = free_port();
        write_config(&dir, port).map_err(broken)?;
        format_storage(&dir, &libs)?;
        let mut kafka = Self {
            dir,
            libs,
            port,
            process: None,
        };
        kafka.resume()?;
        Ok(kafka)
    }

    /// One broker for all tests of a process, or `None` after the ledger has the reason. Ends with the process.
    ///
    /// # Panics
    /// If Kafka is installed and does not start.
    pub fn shared(test: &str) -> Option<&'static Self> {
        static SHARED: OnceLock<Result<Kafka, String>> = OnceLock::new();
        let started = SHARED.get_or_init(|| match Self::start() {
            Ok(kafka) => Ok(kafka),
            Err(StartError::Missing(reason)) => Err(reason),
            Err(error) => panic!("{error}"),
        });
        or_skip(
            test,
            started.as_ref().map_err(|reason| StartError::Missing(reason.clone())),
        )
    }

    /// `host:port` for clients.
    #[must_use]
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Creates, writes and reads topics.
    #[must_use]
    pub fn topics(&self) -> Topics {
        Topics::at(&self.brokers())
    }

    /// Where the broker keeps its data: everything that was ever written to it is below.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Kills the broker as a crash would, and keeps its data.
    pub fn crash(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill_and_keep();
        }
    }

    /// Starts a crashed broker again, on the same port and data.
    ///
    /// # Errors
    /// [`StartError::Broken`] if it does not answer within a minute.
    pub fn resume(&mut self) -> Result<(), StartError> {
        let mut java = java(&self.dir, &self.libs);
        java.arg("kafka.Kafka").arg(self.dir.join("server.properties"));
        let process = Guarded::start(&self.dir, &java).map_err(|error| StartError::Broken(error.to_string()))?;
        let process = self.process.insert(process);
        let (topics, until) = (
            Topics::at(&format!("127.0.0.1:{}", self.port)),
            Instant::now() + Duration::from_secs(60),
        );
        while !topics.answers() {
            if Instant::now() > until {
                return Err(StartError::Broken(process.last_output()));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

fn java(dir: &Path, libs: &Path) -> Command {
    let mut java = Command::new("java");
    java.args([
        "-Xms64m",
        "-Xmx384m",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:-UsePerfData",
    ])
    .arg(format!(
        "-Dlog4j2.configurationFile={}",
        dir.join("log4j2.properties").display()
    ))
    .arg("-cp")
    .arg(libs.join("*"));
    java
}

fn format_storage(dir: &Path, libs: &Path) -> Result<(), StartError> {
    let mut tool = java(dir, libs);
    tool.args([
        "kafka.tools.StorageTool",
        "format",
        "--cluster-id",
        "c2VhbGZsb3ctdGVzdGJlZA",
        "--config",
    ]);
    let output = tool
        .arg(dir.join("server.properties"))
        .output()
        .map_err(|error| StartError::Broken(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(StartError::Broken(String::from_utf8_lossy(&text).into_owned()))
}

fn write_config(dir: &Path, port: u16) -> std::io::Result<()> {
    let controller = free_port();
    let data = dir.join("data");
    let server = format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.min.isr=1
min.insync.replicas=1
group.initial.rebalance.delay.ms=0
log.retention.ms=-1
group.min.session.timeout.ms=1000
",
        data = data.display(),
    );
    let log = format!(
        "status=error
appender.file.type=File
appender.file.name=file
appender.file.fileName={}
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d %p %c %m%n
rootLogger.level=warn
rootLogger.appenderRef.file.ref=file
",
        dir.join("broker.log").display(),
    );
    std::fs::write(dir.join("server.properties"), server)?;
    std::fs::write(dir.join("log4j2.properties"), log)
}
