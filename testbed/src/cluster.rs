//! Three Apache Kafka brokers, each of them a controller too, with a [`Proxy`] of ours in front of each.
//!
//! Clients reach a broker only through its proxy: that is the address it advertises. Brokers among each other, and
//! the tests' own [`Topics`], take a second listener that no fault of a proxy touches.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::broker::Broker;
use crate::elect;
use crate::proxy::{Mode, Proxy};
use crate::topics::Topics;
use crate::{StartError, free_port};

/// How many brokers there are, and how many replicas a topic has.
pub const BROKERS: usize = 3;

/// How long a partition may take to get the leader that was asked for.
const MOVE_PATIENCE: Duration = Duration::from_secs(60);

/// A cluster of its own for a test, killed when dropped. Topics, offsets and transactions have three replicas, two of
/// which must be in sync: any one broker may be away.
pub struct Cluster {
    members: Vec<Member>,
}

struct Member {
    broker: Broker,
    direct: u16,
    proxy: Proxy,
}

#[derive(Clone, Copy)]
struct Ports {
    client: u16,
    direct: u16,
    controller: u16,
}

impl Cluster {
    /// Starts the brokers on free ports with empty data folders, and waits until all of them answer. `heap_mib`
    /// is each Java process's heap; 256 do for small messages. `seed` is that of the proxies' garbage.
    ///
    /// # Errors
    /// As [`crate::Kafka::start`].
    pub fn start(heap_mib: u32, seed: u64) -> Result<Self, StartError> {
        let ports: Vec<Ports> = (0..BROKERS)
            .map(|_| Ports {
                client: free_port(),
                direct: free_port(),
                controller: free_port(),
            })
            .collect();
        let mut members: Vec<Member> = Vec::new();
        for node in 0..BROKERS {
            let proxy = Proxy::start(&format!("127.0.0.1:{}", ports[node].client), seed + node as u64)
                .map_err(|error| StartError::Broken(error.to_string()))?;
            let broker = Broker::prepare(heap_mib, |data| properties(data, node, &ports, proxy.port()))?;
            match members.first() {
                None => broker.format()?,
                Some(first) => broker.format_like(&first.broker, id(node))?,
            }
            members.push(Member {
                broker,
                direct: ports[node].direct,
                proxy,
            });
        }
        // All at once: one alone is no quorum.
        for member in &mut members {
            member.broker.start()?;
        }
        let cluster = Self { members };
        for node in 0..BROKERS {
            cluster.wait_for(node)?;
        }
        cluster.wait_until_all_are_known()?;
        Ok(cluster)
    }

    /// `host:port` of every broker for clients under test, through the proxies.
    #[must_use]
    pub fn brokers(&self) -> String {
        let addresses: Vec<String> = self.members.iter().map(|member| member.proxy.address()).collect();
        addresses.join(",")
    }

    /// Creates, writes and reads topics, past the proxies.
    #[must_use]
    pub fn topics(&self) -> Topics {
        let addresses: Vec<String> = (0..BROKERS).map(|node| self.direct(node)).collect();
        Topics::at(&addresses.join(",")).with_replicas(i32::try_from(BROKERS).unwrap_or(i32::MAX))
    }

    /// The proxy in front of a broker.
    #[must_use]
    pub fn proxy(&self, node: usize) -> &Proxy {
        &self.members[node].proxy
    }

    /// Puts all proxies into a mode.
    pub fn set_all(&self, mode: Mode) {
        for member in &self.members {
            member.proxy.set(mode);
        }
    }

    /// Where the brokers keep their data.
    #[must_use]
    pub fn data_dirs(&self) -> Vec<PathBuf> {
        self.members.iter().map(|member| member.broker.data_dir()).collect()
    }

    /// Kills a broker as a crash would, and keeps its data.
    pub fn crash(&mut self, node: usize) {
        self.members[node].broker.crash();
    }

    /// Stops a broker as its operator would: it hands its leaderships over first.
    pub fn stop(&mut self, node: usize) {
        self.members[node].broker.stop();
    }

    /// Starts a broker again, on the same ports and data, and waits until it answers.
    ///
    /// # Errors
    /// [`StartError::Broken`] if it does not within a minute.
    pub fn resume(&mut self, node: usize) -> Result<(), StartError> {
        self.members[node].broker.start()?;
        self.wait_for(node)
    }

    /// Whether a broker was started and neither killed nor stopped since.
    #[must_use]
    pub fn is_running(&self, node: usize) -> bool {
        self.members[node].broker.is_started()
    }

    /// Stops a broker in its tracks (SIGSTOP): its connections stay, and nobody answers.
    pub fn freeze(&mut self, node: usize) {
        self.members[node].broker.set_frozen(true);
    }

    /// Lets a frozen broker go on.
    pub fn thaw(&mut self, node: usize) {
        self.members[node].broker.set_frozen(false);
    }

    /// Moves the leadership of a partition to another of its replicas, and waits until it is there. Returns the
    /// brokers before and after.
    ///
    /// # Panics
    /// If it does not move within a minute.
    #[must_use]
    pub fn move_leader(&self, topic: &str, partition: i32) -> (i32, i32) {
        let topics = self.topics();
        let until = Instant::now() + MOVE_PATIENCE;
        let (before, mut replicas) = topics.leader(topic, partition);
        // The next one becomes the preferred leader.
        replicas.sort_unstable();
        let at = replicas.iter().position(|replica| *replica == before).unwrap_or(0);
        replicas.rotate_left(at + 1);
        let wanted = replicas[0];
        let mut last = String::new();
        while topics.leader(topic, partition).0 != wanted {
            assert!(Instant::now() < until, "{topic}/{partition} keeps its leader: {last}");
            let asked = (0..BROKERS)
                .map(|node| elect::prefer(&self.direct(node), topic, partition, &replicas))
                .find_map(Result::ok);
            last = format!("{asked:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        (before, wanted)
    }

    fn direct(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.members[node].direct)
    }

    fn wait_for(&self, node: usize) -> Result<(), StartError> {
        self.members[node].broker.wait_for(&self.direct(node))
    }

    /// A topic of three replicas can only be made once all are registered.
    fn wait_until_all_are_known(&self) -> Result<(), StartError> {
        let until = Instant::now() + MOVE_PATIENCE;
        while self.topics().brokers_known() < BROKERS {
            if Instant::now() > until {
                return Err(StartError::Broken("not all brokers joined the cluster".into()));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

fn id(node: usize) -> i32 {
    i32::try_from(node + 1).unwrap_or(i32::MAX)
}

fn properties(data: &Path, node: usize, ports: &[Ports], advertised: u16) -> String {
    let voters: Vec<String> = ports
        .iter()
        .enumerate()
        .map(|(node, ports)| format!("{}@127.0.0.1:{}", id(node), ports.controller))
        .collect();
    let Ports {
        client,
        direct,
        controller,
    } = ports[node];
    format!(
        "process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
controller.listener.names=CONTROLLER
listeners=CLIENT://127.0.0.1:{client},DIRECT://127.0.0.1:{direct},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=CLIENT://127.0.0.1:{advertised},DIRECT://127.0.0.1:{direct}
listener.security.protocol.map=CLIENT:PLAINTEXT,DIRECT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=DIRECT
log.dirs={data}
auto.create.topics.enable=false
auto.leader.rebalance.enable=false
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=3
transaction.state.log.num.partitions=4
transaction.state.log.min.isr=2
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.retention.ms=-1
socket.request.max.bytes=268435456
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
controlled.shutdown.enable=true
num.io.threads=4
num.network.threads=2
log.cleaner.dedupe.buffer.size=4194304
",
        node = id(node),
        voters = voters.join(","),
        data = data.display(),
    )
}
