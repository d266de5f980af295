//! Apache Kafka, one broker in KRaft mode.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::broker::Broker;
use crate::topics::Topics;
use crate::{StartError, free_port, or_skip};

const HEAP_MIB: u32 = 384;

/// A broker of its own for a test, killed when dropped.
pub struct Kafka {
    port: u16,
    broker: Broker,
}

impl Kafka {
    /// Starts a broker on free ports with an empty data folder, and waits until it answers.
    ///
    /// # Errors
    /// [`StartError::Missing`] without Java or the jars (`SEALFLOW_KAFKA_LIBS`, by default `.deps/kafka/libs`).
    pub fn start() -> Result<Self, StartError> {
        let (port, controller) = (free_port(), free_port());
        let broker = Broker::prepare(HEAP_MIB, |data| properties(data, port, controller))?;
        broker.format()?;
        let mut kafka = Self { port, broker };
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
            Ok(kafka) => {
                kafka.topics().wait_for_transactions();
                Ok(kafka)
            }
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
        self.broker.data_dir()
    }

    /// Kills the broker as a crash would, and keeps its data.
    pub fn crash(&mut self) {
        self.broker.crash();
    }

    /// Starts a crashed broker again, on the same port and data.
    ///
    /// # Errors
    /// [`StartError::Broken`] if it does not answer within a minute.
    pub fn resume(&mut self) -> Result<(), StartError> {
        self.broker.start()?;
        self.broker.wait_for(&self.brokers())
    }
}

fn properties(data: &Path, port: u16, controller: u16) -> String {
    format!(
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
    )
}
