//! A TCP proxy that makes faults: delays, throttles, cuts, stalls, corrupts. It knows no protocol, so it stands in
//! front of brokers, KMS and object stores alike.
//!
//! It can also [record](Proxy::record) every byte that passes.
//!
//! Modes change while connections live. What a mode does is decided by the seed, the number of the connection and
//! the bytes alone, never by chance.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::draw::Draw;

/// Bytes read at once: what one direction of one connection holds at most.
const CHUNK: usize = 64 * 1024;
/// A throttled direction passes its share this often.
const THROTTLE_TICK: Duration = Duration::from_millis(50);

/// What happens to bytes, in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Everything passes.
    #[default]
    Pass,
    /// Each read waits this long before it passes on, so a request and its answer take at least twice that.
    Latency(Duration),
    /// Each direction of each connection passes this many bytes per second.
    Throttle {
        /// Bytes per second, at least 20.
        bytes_per_second: u32,
    },
    /// Connections are reset, new ones as soon as they are accepted.
    Cut,
    /// Connections are accepted and stay, and nothing passes, not even their end. Nothing is lost: it passes later.
    Stall,
    /// One byte in this many becomes another one; 1 leaves nothing as it was. Note that Kafka's requests have no
    /// checksum outside of record batches, so that a rare flipped byte may change an offset unseen: TLS is what
    /// protects from that, and tests of exactly-once use 1.
    Garbage {
        /// 1 or more.
        one_in: u32,
    },
}

/// A listening proxy; its connections are reset when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: String,
    seed: u64,
    mode: watch::Sender<Mode>,
    connections: AtomicU64,
    passed: AtomicU64,
    tape: Mutex<Option<Tape>>,
}

/// What passed, by direction of a connection: bytes of two directions would hide what one of them says.
type Tape = BTreeMap<u64, Vec<u8>>;

impl Shared {
    fn tape(&self) -> MutexGuard<'_, Option<Tape>> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// Listens on a free port of the loopback address and passes on to `target` (`host:port`).
    ///
    /// # Errors
    /// If no port can be had.
    pub fn start(target: &str, seed: u64) -> io::Result<Self> {
        let listener = StdListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            seed,
            mode: watch::Sender::new(Mode::Pass),
            connections: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            tape: Mutex::new(None),
        });
        let runtime = runtime();
        let _inside = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        let accepting = runtime.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self {
            port,
            shared,
            accepting,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port` for clients.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Changes what happens to bytes, at once and on every connection.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// Runs something in a mode, and lets everything pass afterwards, even if it panics.
    pub fn during<T>(&self, mode: Mode, run: impl FnOnce() -> T) -> T {
        struct Restore<'a>(&'a Proxy);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.set(Mode::Pass);
            }
        }
        let _restore = Restore(self);
        self.set(mode);
        run()
    }

    /// Connections accepted so far, those that were cut at once included.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Bytes passed on so far, both directions together.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
    }

    /// From now on keeps every byte that passes, as it passes, in memory.
    pub fn record(&self) {
        self.shared.tape().get_or_insert_default();
    }

    /// What was recorded so far: each direction of each connection as one piece.
    #[must_use]
    pub fn recorded(&self) -> Vec<Vec<u8>> {
        self.shared.tape().iter().flat_map(BTreeMap::values).cloned().collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::Cut);
        self.accepting.abort();
    }
}

/// One runtime for all proxies of the process: they must go on while a test's own threads block.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let built = builder
            .worker_threads(2)
            .thread_name("fault-proxy")
            .enable_all()
            .build();
        built.expect("a runtime can be made")
    })
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // A connection that is gone before it was accepted, or no more files: the next one may do.
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let number = shared.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(serve(client, Arc::clone(&shared), number));
    }
}

async fn serve(mut client: TcpStream, shared: Arc<Shared>, number: u64) {
    let mut mode = shared.mode.subscribe();
    let connected = tokio::select! {
        biased;
        _ = mode.wait_for(|mode| *mode == Mode::Cut) => None,
        connected = TcpStream::connect(&shared.target) => connected.ok(),
    };
    let Some(mut server) = connected else {
        return reset(&client);
    };
    // Small requests must not wait for one another: that would be a fault that nobody asked for.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let cut = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = Direction::new(&shared, number * 2);
        let down = Direction::new(&shared, number * 2 + 1);
        tokio::select! {
            _ = mode.wait_for(|mode| *mode == Mode::Cut) => true,
            ended = async { tokio::try_join!(up.pump(from_client, to_server), down.pump(from_server, to_client)) } => ended.is_err(),
        }
    };
    if cut {
        reset(&client);
        reset(&server);
    }
}

/// Closes so that the other side sees a reset, not an orderly end.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// One direction of one connection.
struct Direction {
    shared: Arc<Shared>,
    number: u64,
    mode: watch::Receiver<Mode>,
    draw: Draw,
}

impl Direction {
    fn new(shared: &Arc<Shared>, number: u64) -> Self {
        Self {
            shared: Arc::clone(shared),
            number,
            mode: shared.mode.subscribe(),
            draw: Draw::new(shared.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        }
    }

    async fn pump(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                self.hold().await;
                return to.shutdown().await;
            }
            // The mode may change while a read waits, so it counts when there is something to pass.
            let mut passed = 0;
            while passed < read {
                self.hold().await;
                let share = match *self.mode.borrow() {
                    Mode::Throttle { bytes_per_second } => share(bytes_per_second),
                    _ => CHUNK,
                };
                let piece = &mut buffer[passed..read.min(passed + share)];
                if let Mode::Garbage { one_in } = *self.mode.borrow() {
                    corrupt(&mut self.draw, piece, one_in);
                }
                if let Some(tape) = self.shared.tape().as_mut() {
                    tape.entry(self.number).or_default().extend_from_slice(piece);
                }
                to.write_all(piece).await?;
                passed += piece.len();
                self.shared.passed.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
        }
    }

    /// Waits for as long as the mode asks for; a new mode counts at once.
    async fn hold(&mut self) {
        loop {
            let wait = match *self.mode.borrow_and_update() {
                Mode::Pass | Mode::Garbage { .. } | Mode::Cut => return,
                Mode::Latency(wait) => wait,
                Mode::Throttle { .. } => THROTTLE_TICK,
                Mode::Stall => Duration::MAX,
            };
            tokio::select! {
                () = tokio::time::sleep(wait.min(Duration::from_secs(86_400))) => return,
                changed = self.mode.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// What a throttled direction may pass in one tick.
fn share(bytes_per_second: u32) -> usize {
    let ticks_per_second = 20;
    usize::try_from(bytes_per_second / ticks_per_second).map_or(CHUNK, |share| share.clamp(1, CHUNK))
}

/// Changes one byte in `one_in`.
fn corrupt(draw: &mut Draw, bytes: &mut [u8], one_in: u32) {
    for byte in bytes {
        let drawn = draw.next();
        if (drawn >> 32).is_multiple_of(u64::from(one_in.max(1))) {
            // Never 0: a corrupted byte is another one.
            *byte ^= (drawn % 255) as u8 + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;
    use std::time::Instant;

    use super::*;

    /// A server that sends back what it gets, for as long as the test runs.
    fn echo() -> String {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut back = stream.try_clone().unwrap();
                    io::copy(&mut stream, &mut back)
                });
            }
        });
        address
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(bytes)?;
        let mut back = vec![0; bytes.len()];
        stream.read_exact(&mut back)?;
        Ok(back)
    }

    #[test]
    fn everything_passes_unchanged_and_ends_where_it_ended() {
        let proxy = Proxy::start(&echo(), 1).unwrap();
        let mut stream = connect(&proxy);
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut writer, bytes) = (stream.try_clone().unwrap(), sent.clone());
        let writing = std::thread::spawn(move || {
            writer.write_all(&bytes).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        writing.join().unwrap();
        assert!(back == sent);
        assert_eq!((proxy.connections(), proxy.passed()), (1, 2_000_000));
    }

    #[test]
    fn what_passes_is_recorded_whole_by_direction_from_when_it_is_asked_for() {
        let proxy = Proxy::start(&echo(), 1).unwrap();
        let (mut one, mut other) = (connect(&proxy), connect(&proxy));
        exchange(&mut one, b"before").unwrap();
        assert!(proxy.recorded().is_empty());
        proxy.record();
        for piece in ["se", "cret"] {
            exchange(&mut one, piece.as_bytes()).unwrap();
            exchange(&mut other, b"noise").unwrap();
        }
        let mut recorded = proxy.recorded();
        recorded.sort();
        let (noise, secret) = (b"noisenoise".to_vec(), b"secret".to_vec());
        assert_eq!(recorded, [noise.clone(), noise, secret.clone(), secret]);
    }

    #[test]
    fn latency_delays_both_ways_and_ends_at_once_when_it_is_taken_away() {
        let proxy = Proxy::start(&echo(), 1).unwrap();
        let mut stream = connect(&proxy);
        let started = Instant::now();
        proxy.during(Mode::Latency(Duration::from_millis(150)), || {
            exchange(&mut stream, b"slow").unwrap()
        });
        assert!(started.elapsed() >= Duration::from_millis(300));
        proxy.set(Mode::Latency(Duration::from_secs(3_600)));
        stream.write_all(b"late").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        proxy.set(Mode::Pass);
        let mut back = [0; 4];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"late");
    }

    #[test]
    fn a_throttled_connection_passes_its_share_and_loses_nothing() {
        let proxy = Proxy::start(&echo(), 1).unwrap();
        let mut stream = connect(&proxy);
        let sent = [7; 20_000];
        let started = Instant::now();
        let mode = Mode::Throttle {
            bytes_per_second: 40_000,
        };
        let back = proxy.during(mode, || exchange(&mut stream, &sent).unwrap());
        assert!(back == sent);
        assert!(
            started.elapsed() >= Duration::from_millis(400),
            "{:?}",
            started.elapsed()
        );
    }

    #[test]
    fn a_cut_resets_what_is_there_and_what_comes_until_it_is_mended() {
        let proxy = Proxy::start(&echo(), 1).unwrap();
        let mut stream = connect(&proxy);
        exchange(&mut stream, b"before").unwrap();
        proxy.set(Mode::Cut);
        let error = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let refused = TcpStream::connect(proxy.address()).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            exchange(&mut stream, b"during")
        });
        assert!(refused.is_err());
        proxy.set(Mode::Pass);
        assert_eq!(exchange(&mut connect(&proxy), b"after").unwrap(), b"after");
    }

    #[test]
    fn a_stall_keeps_connections_and_passes_nothing_until_it_ends() {
        let proxy = Proxy::start(&echo(), 1).unwrap();
        let mut old = connect(&proxy);
        exchange(&mut old, b"before").unwrap();
        proxy.set(Mode::Stall);
        let mut new = connect(&proxy);
        for stream in [&mut old, &mut new] {
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            stream.write_all(b"held").unwrap();
            let kind = stream.read(&mut [0; 1]).unwrap_err().kind();
            assert!(matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut));
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        proxy.set(Mode::Pass);
        for stream in [&mut old, &mut new] {
            let mut back = [0; 4];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"held");
        }
    }

    #[test]
    fn garbage_is_the_same_for_the_same_seed_and_another_for_another() {
        let sent = [0; 5_000];
        let echo = echo();
        let garbled = |seed, one_in| {
            let proxy = Proxy::start(&echo, seed).unwrap();
            proxy.set(Mode::Garbage { one_in });
            exchange(&mut connect(&proxy), &sent).unwrap()
        };
        let first = garbled(1, 100);
        assert_eq!(first, garbled(1, 100));
        assert_ne!(first, garbled(2, 100));
        let changed = first.iter().filter(|byte| **byte != 0).count();
        assert!((50..200).contains(&changed), "{changed} of 5,000, both ways");
        assert!(garbled(1, 1).iter().filter(|byte| **byte != 0).count() > 4_500);
    }
}
