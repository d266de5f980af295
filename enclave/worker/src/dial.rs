//! The worker's way out: streams that the host dials and carries, for TLS that ends here. It believes the host nothing but that
//! it may answer.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use sealflow_enclave_protocol::relay::{OpenError, Read, Received, Refusal, Streams, Violation};
use sealflow_kms::https::{Dial, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};

/// A [`Dial`] over the channel to the host.
///
/// Messages for the host leave through the sender that it is made with, in order and as slowly as they are taken; those of the
/// host are handed to [`deliver`](Self::deliver). When it is dropped, its streams break.
pub struct RelayDialer(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// There may be messages to send.
    ready: Notify,
}

struct State {
    streams: Streams,
    waiting: BTreeMap<u32, Waiting>,
    /// Nothing is carried any more.
    is_broken: bool,
}

/// Who waits for a stream.
#[derive(Default)]
struct Waiting {
    read: Option<Waker>,
    write: Option<Waker>,
}

impl fmt::Debug for RelayDialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayDialer").finish_non_exhaustive()
    }
}

impl RelayDialer {
    /// Over this sender. Needs a Tokio runtime, on which one task takes the messages to it.
    #[must_use]
    pub fn new(outgoing: mpsc::Sender<Vec<u8>>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                streams: Streams::opener(),
                waiting: BTreeMap::new(),
                is_broken: false,
            }),
            ready: Notify::new(),
        });
        tokio::spawn(pump(Arc::clone(&shared), outgoing));
        Self(shared)
    }

    /// Takes a message of the host.
    ///
    /// # Errors
    /// [`Violation`]: the host does not keep to the protocol. All streams are broken then, and the channel is of no use.
    pub fn deliver(&self, message: &[u8]) -> Result<(), Violation> {
        let mut state = self.0.lock();
        if state.is_broken {
            return Err(Violation::OutOfTurn);
        }
        let violation = match state.streams.receive(message) {
            Ok(Received::Changed { stream }) => {
                let waiting = state.waiting.get_mut(&stream).map(std::mem::take);
                drop(state);
                wake(waiting);
                return Ok(());
            }
            Ok(Received::Nothing) => return Ok(()),
            // The end that opens is never asked to.
            Ok(Received::Open { .. }) => Violation::OutOfTurn,
            Err(violation) => violation,
        };
        drop(state);
        self.0.break_off();
        Err(violation)
    }
}

impl Drop for RelayDialer {
    fn drop(&mut self) {
        self.0.break_off();
    }
}

#[async_trait]
impl Dial for RelayDialer {
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn Stream>> {
        let stream = {
            let mut state = self.0.lock();
            if state.is_broken {
                return Err(broken());
            }
            let number = state.streams.open(host, port).map_err(cannot_open)?;
            state.waiting.insert(number, Waiting::default());
            // Dropped before it is open, it is closed.
            RelayStream {
                shared: Arc::clone(&self.0),
                number,
            }
        };
        self.0.ready.notify_one();
        std::future::poll_fn(|cx| stream.poll_open(cx)).await?;
        Ok(Box::new(stream))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn break_off(&self) {
        let mut state = self.lock();
        state.is_broken = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        wake(waiting.into_values());
        self.ready.notify_one();
    }

    /// The next message, and whether nothing is carried any more.
    fn next_message(&self) -> (Option<Vec<u8>>, bool) {
        let mut state = self.lock();
        let was_full = state.streams.is_full();
        let message = state.streams.next_message();
        let mut writers = Vec::new();
        if was_full && !state.streams.is_full() {
            writers.extend(state.waiting.values_mut().filter_map(|waiting| waiting.write.take()));
        }
        let is_broken = state.is_broken;
        drop(state);
        writers.into_iter().for_each(Waker::wake);
        (message, is_broken)
    }
}

fn wake(waiting: impl IntoIterator<Item = Waiting>) {
    for waiting in waiting {
        waiting.read.into_iter().chain(waiting.write).for_each(Waker::wake);
    }
}

/// Takes messages to the sender until nobody dials any more, or nobody takes them.
async fn pump(shared: Arc<Shared>, outgoing: mpsc::Sender<Vec<u8>>) {
    loop {
        match shared.next_message() {
            (_, true) => return,
            (Some(message), false) => {
                if outgoing.send(message).await.is_err() {
                    shared.break_off();
                    return;
                }
            }
            (None, false) => shared.ready.notified().await,
        }
    }
}

/// One stream. Dropped, it is closed; what was written before still goes out.
struct RelayStream {
    shared: Arc<Shared>,
    number: u32,
}

impl RelayStream {
    fn poll_open(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if state.is_broken {
            return Poll::Ready(Err(broken()));
        }
        match state.streams.is_open(self.number) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => {
                state.waiting.entry(self.number).or_default().read = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(refusal) => Poll::Ready(Err(refused(refusal))),
        }
    }
}

impl AsyncRead for RelayStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut state = self.shared.lock();
        if state.is_broken {
            return Poll::Ready(Err(broken()));
        }
        match state.streams.read(self.number, out.initialize_unfilled()) {
            Read::Bytes(read) => {
                out.advance(read);
                drop(state);
                // Credit may have been given back.
                self.shared.ready.notify_one();
                Poll::Ready(Ok(()))
            }
            Read::Later => {
                state.waiting.entry(self.number).or_default().read = Some(cx.waker().clone());
                Poll::Pending
            }
            Read::End => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for RelayStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut state = self.shared.lock();
        if state.is_broken {
            return Poll::Ready(Err(broken()));
        }
        match state.streams.write(self.number, bytes) {
            Ok(0) => {
                state.waiting.entry(self.number).or_default().write = Some(cx.waker().clone());
                Poll::Pending
            }
            Ok(written) => {
                drop(state);
                self.shared.ready.notify_one();
                Poll::Ready(Ok(written))
            }
            Err(_) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// What is written is on its way.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Nothing: a stream is closed both ways at once, when it is dropped; TLS says itself where its bytes end.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for RelayStream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.streams.close(self.number);
        state.waiting.remove(&self.number);
        drop(state);
        self.shared.ready.notify_one();
    }
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the channel to the host is broken")
}

fn cannot_open(error: OpenError) -> io::Error {
    let kind = match error {
        OpenError::Busy => io::ErrorKind::ResourceBusy,
        _ => io::ErrorKind::InvalidInput,
    };
    io::Error::new(kind, error)
}

fn refused(refusal: Refusal) -> io::Error {
    let (kind, reason) = match refusal {
        Refusal::NotAllowed => (io::ErrorKind::PermissionDenied, "the host does not dial this name"),
        Refusal::Unreachable => (io::ErrorKind::HostUnreachable, "the host has no connection to it"),
        Refusal::Busy => (io::ErrorKind::ResourceBusy, "the host carries enough streams"),
    };
    io::Error::new(kind, reason)
}
