//! The host's end of the relay: dials for the worker what the configuration lists, and carries bytes that it cannot read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::pin::pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sealflow_enclave_protocol::relay::{MAX_DATA, Read, Received, Refusal, Streams, Violation, is_host};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

/// How long resolving a name and connecting may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A host and port that may be dialled: `HOST:PORT`, an IPv6 address in brackets. It stands for itself alone: a name allows no
/// address, and an address no name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayTarget {
    host: String,
    port: u16,
}

/// Not a host and port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no HOST:PORT that can be dialled for the worker: expected lower-case letters, digits, dots and hyphens"
)]
pub struct NotATarget {
    /// What was written.
    pub text: String,
}

impl RelayTarget {
    /// Of its parts.
    ///
    /// # Errors
    /// [`NotATarget`]
    pub fn new(host: &str, port: u16) -> Result<Self, NotATarget> {
        if port == 0 || !is_host(host) {
            return Err(NotATarget {
                text: format!("{host}:{port}").chars().take(300).collect(),
            });
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl FromStr for RelayTarget {
    type Err = NotATarget;

    fn from_str(text: &str) -> Result<Self, NotATarget> {
        let refused = || NotATarget {
            text: text.chars().take(300).collect(),
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        // An address without brackets could be read in two ways.
        if bare.is_none() && host.contains(':') {
            return Err(refused());
        }
        let port = port.parse().map_err(|_| refused())?;
        Self::new(bare.unwrap_or(host), port).map_err(|_| refused())
    }
}

/// What was carried so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayCounters {
    /// Streams that were dialled.
    pub dialled: u64,
    /// Requests for what is not on the list.
    pub refused: u64,
    /// Requests that found no connection.
    pub unreachable: u64,
    /// Streams that are open now.
    pub open: u64,
    /// Bytes from servers to the worker.
    pub to_worker: u64,
    /// Bytes from the worker to servers.
    pub from_worker: u64,
}

#[derive(Debug, Default)]
struct Counters {
    dialled: AtomicU64,
    refused: AtomicU64,
    unreachable: AtomicU64,
    open: AtomicU64,
    to_worker: AtomicU64,
    from_worker: AtomicU64,
}

/// The relay of one worker. Dropped, it ends, with all its connections.
pub struct Relay {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

struct Shared {
    allowed: BTreeSet<RelayTarget>,
    counters: Counters,
    state: Mutex<State>,
    /// There may be messages to send.
    ready: Notify,
}

struct State {
    streams: Streams,
    /// Who is told when something about a stream has changed.
    changed: BTreeMap<u32, Arc<Notify>>,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("allowed", &self.shared.allowed)
            .finish_non_exhaustive()
    }
}

impl Relay {
    /// A relay that dials `allowed` and nothing else. Messages for the worker leave through `outgoing`, as slowly as they are
    /// taken. Needs a Tokio runtime.
    #[must_use]
    pub fn new(allowed: impl IntoIterator<Item = RelayTarget>, outgoing: mpsc::Sender<Vec<u8>>) -> Self {
        let shared = Arc::new(Shared {
            allowed: allowed.into_iter().collect(),
            counters: Counters::default(),
            state: Mutex::new(State {
                streams: Streams::dialer(),
                changed: BTreeMap::new(),
            }),
            ready: Notify::new(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(pump(Arc::clone(&shared), outgoing));
        Self {
            shared,
            tasks: Mutex::new(tasks),
        }
    }

    /// Takes a message of the worker.
    ///
    /// # Errors
    /// [`Violation`]: the worker does not keep to the protocol, and is to be ended.
    pub fn deliver(&self, message: &[u8]) -> Result<(), Violation> {
        let mut state = self.shared.lock();
        match state.streams.receive(message)? {
            Received::Open { stream, host, port } => self.dial(state, stream, host, port),
            Received::Changed { stream } => {
                let changed = state.changed.get(&stream).cloned();
                drop(state);
                if let Some(changed) = changed {
                    changed.notify_waiters();
                }
            }
            Received::Nothing => {}
        }
        // There may be an answer.
        self.shared.ready.notify_one();
        Ok(())
    }

    /// What was carried so far.
    #[must_use]
    pub fn counters(&self) -> RelayCounters {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RelayCounters {
            dialled: read(&counters.dialled),
            refused: read(&counters.refused),
            unreachable: read(&counters.unreachable),
            open: read(&counters.open),
            to_worker: read(&counters.to_worker),
            from_worker: read(&counters.from_worker),
        }
    }

    fn dial(&self, mut state: MutexGuard<'_, State>, stream: u32, host: String, port: u16) {
        let target = RelayTarget { host, port };
        if !self.shared.allowed.contains(&target) {
            state.streams.refuse(stream, Refusal::NotAllowed);
            drop(state);
            count(&self.shared.counters.refused, 1);
            tracing::warn!(
                host = target.host,
                port,
                "the worker asks for a host that is not on the list"
            );
            return;
        }
        let changed = Arc::new(Notify::new());
        state.changed.insert(stream, Arc::clone(&changed));
        drop(state);
        let carried = Carried {
            shared: Arc::clone(&self.shared),
            stream,
            changed,
        };
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(carried.run(target));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_message(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        let was_full = state.streams.is_full();
        let message = state.streams.next_message();
        if was_full && !state.streams.is_full() {
            state.changed.values().for_each(|changed| changed.notify_waiters());
        }
        message
    }
}

fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// Takes messages to the sender until nobody takes them.
async fn pump(shared: Arc<Shared>, outgoing: mpsc::Sender<Vec<u8>>) {
    loop {
        match shared.next_message() {
            Some(message) => {
                if outgoing.send(message).await.is_err() {
                    return;
                }
            }
            None => shared.ready.notified().await,
        }
    }
}

/// A stream while a task carries it; closed when that ends, however.
struct Carried {
    shared: Arc<Shared>,
    stream: u32,
    changed: Arc<Notify>,
}

/// Counts a stream as open while it lives.
struct Open<'a>(&'a Counters);

impl<'a> Open<'a> {
    fn new(counters: &'a Counters) -> Self {
        count(&counters.dialled, 1);
        count(&counters.open, 1);
        Self(counters)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.streams.close(self.stream);
        state.changed.remove(&self.stream);
        drop(state);
        self.shared.ready.notify_one();
    }
}

impl Carried {
    async fn run(self, target: RelayTarget) {
        let dialled = tokio::select! {
            dialled = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((target.host.as_str(), target.port))) => dialled,
            () = self.ended() => return,
        };
        let Ok(Ok(socket)) = dialled else {
            count(&self.shared.counters.unreachable, 1);
            tracing::warn!(host = target.host, port = target.port, "no connection for the worker");
            // Dropped before it was opened, it is refused as unreachable.
            return;
        };
        if self.shared.lock().streams.opened(self.stream).is_err() {
            return;
        }
        self.shared.ready.notify_one();
        let _open = Open::new(&self.shared.counters);
        tracing::debug!(host = target.host, port = target.port, "dialled for the worker");
        // Small requests and their answers: waiting for more helps nobody. Without it, it is only slower.
        let _ = socket.set_nodelay(true);
        let (from, to) = socket.into_split();
        tokio::select! {
            () = self.to_worker(from) => {}
            () = self.carry_out(to) => {}
        }
    }

    /// Returns when the worker has closed the stream.
    async fn ended(&self) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.shared.lock().streams.is_ended(self.stream) {
                return;
            }
            changed.await;
        }
    }

    /// Until the server ends.
    async fn to_worker(&self, mut from: OwnedReadHalf) {
        let mut portion = vec![0; MAX_DATA];
        loop {
            let read = match from.read(&mut portion).await {
                Ok(0) | Err(_) => return,
                Ok(read) => read,
            };
            let mut rest = portion.get(..read).unwrap_or_default();
            while !rest.is_empty() {
                let mut changed = pin!(self.changed.notified());
                changed.as_mut().enable();
                let written = self.shared.lock().streams.write(self.stream, rest);
                match written {
                    Ok(0) => changed.await,
                    Ok(written) => {
                        self.shared.ready.notify_one();
                        count(&self.shared.counters.to_worker, written as u64);
                        rest = rest.get(written..).unwrap_or_default();
                    }
                    Err(_) => return,
                }
            }
        }
    }

    /// Until the worker closes.
    async fn carry_out(&self, mut to: OwnedWriteHalf) {
        let mut portion = vec![0; MAX_DATA];
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let read = self.shared.lock().streams.read(self.stream, &mut portion);
            match read {
                Read::Bytes(read) => {
                    self.shared.ready.notify_one();
                    if to.write_all(portion.get(..read).unwrap_or_default()).await.is_err() {
                        return;
                    }
                    count(&self.shared.counters.from_worker, read as u64);
                }
                Read::Later => changed.await,
                Read::End => {
                    // A server that does not take it has ended itself.
                    let _ = to.shutdown().await;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use super::*;

    #[test]
    fn targets_are_names_or_addresses_with_a_port() {
        for (text, host, port) in [
            (
                "kms.eu-central-1.amazonaws.com:443",
                "kms.eu-central-1.amazonaws.com",
                443,
            ),
            ("127.0.0.1:4599", "127.0.0.1", 4599),
            ("[::1]:4599", "::1", 4599),
        ] {
            let target: RelayTarget = text.parse().unwrap();
            assert_eq!(target, RelayTarget::new(host, port).unwrap(), "{text}");
        }
        for text in [
            "",
            "kms.example",
            "kms.example:",
            "kms.example:0",
            "kms.example:65536",
            "KMS.example:443",
            "*.example:443",
            "https://kms.example:443",
            "::1:443",
            ":443",
        ] {
            assert!(text.parse::<RelayTarget>().is_err(), "{text}");
        }
    }
}
