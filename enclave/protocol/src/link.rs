//! One connection between host and worker: frames over any byte stream, questions and their answers. It opens nothing, and knows no
//! message.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use crate::frame::{Announced, Frame, HEADER_LEN, Kind, MAX_WRITE};
use crate::wire::Malformed;

/// Frames that wait to be written, at most; whoever has another one waits.
const QUEUE: usize = 64;

/// The other side is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side of the channel is gone")]
pub struct Gone;

/// Where frames go that are to be written. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outgoing(mpsc::Sender<Frame>);

impl Outgoing {
    /// An empty queue, and its end for [`write_frames`].
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Frame>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Queues a frame.
    ///
    /// # Errors
    /// [`Gone`]
    pub async fn send(&self, frame: Frame) -> Result<(), Gone> {
        self.0.send(frame).await.map_err(|_| Gone)
    }
}

/// Writes queued frames until there are no senders any more, at most [`MAX_WRITE`] bytes at a time.
///
/// # Errors
/// Those of the stream; a frame that is too long is [`io::ErrorKind::InvalidData`].
pub async fn write_frames(mut queue: mpsc::Receiver<Frame>, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    while let Some(frame) = queue.recv().await {
        let header = frame.header().map_err(invalid)?;
        to.write_all(&header).await?;
        for piece in frame.body.chunks(MAX_WRITE) {
            to.write_all(piece).await?;
        }
        to.flush().await?;
    }
    Ok(())
}

/// The next frame; `None` where the stream ends between two.
///
/// # Errors
/// Those of the stream; a frame that is none is [`io::ErrorKind::InvalidData`].
pub async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut header = [0; HEADER_LEN];
    // The end of the stream is one only before the first byte.
    if from.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[1..]).await?;
    let announced = Announced::parse(&header).map_err(invalid)?;
    // Grows with what comes, so that a length alone costs nothing; what it outgrows is wiped.
    let mut body = Zeroizing::new(Vec::with_capacity(announced.body.min(MAX_WRITE)));
    let mut piece = Zeroizing::new(vec![0; announced.body.min(MAX_WRITE)]);
    while body.len() < announced.body {
        let want = (announced.body - body.len()).min(MAX_WRITE);
        let got = from.read(&mut piece[..want]).await?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if body.capacity() - body.len() < got {
            let room = (body.capacity() * 2).clamp(body.len() + got, announced.body);
            let mut larger = Zeroizing::new(Vec::with_capacity(room));
            larger.extend_from_slice(&body);
            body = larger;
        }
        body.extend_from_slice(&piece[..got]);
    }
    Ok(Some(Frame {
        kind: announced.kind,
        sequence: announced.sequence,
        body,
    }))
}

fn invalid(error: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Questions that are under way. Cheap to clone.
#[derive(Clone)]
pub struct Asker(Arc<Inner>);

struct Inner {
    out: Outgoing,
    next: AtomicU64,
    /// Who waits for which answer; `None` once the other side is gone.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Frame>>>>,
}

/// Takes a question back that nobody waits for any more.
struct Waiting<'a> {
    inner: &'a Inner,
    sequence: u64,
}

impl Asker {
    /// Questions go out here.
    #[must_use]
    pub fn new(out: Outgoing) -> Self {
        Self(Arc::new(Inner {
            out,
            next: AtomicU64::new(1),
            waiting: Mutex::new(Some(HashMap::new())),
        }))
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`Gone`]
    pub async fn ask(&self, kind: Kind, body: impl Into<Zeroizing<Vec<u8>>>) -> Result<Frame, Gone> {
        let body = body.into();
        let sequence = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.0.waiting().as_mut().ok_or(Gone)?.insert(sequence, sender);
        let _waiting = Waiting {
            inner: &self.0,
            sequence,
        };
        self.0.out.send(Frame::new(kind, sequence, body)).await?;
        receiver.await.map_err(|_| Gone)
    }

    /// Hands an answer to whoever waits for it; `false` if nobody asked: each question has one answer.
    #[must_use]
    pub fn answered(&self, frame: Frame) -> bool {
        let waiting = self
            .0
            .waiting()
            .as_mut()
            .and_then(|waiting| waiting.remove(&frame.sequence));
        match waiting {
            // Whoever gave up meanwhile asked nevertheless.
            Some(sender) => {
                let _ = sender.send(frame);
                true
            }
            None => false,
        }
    }

    /// Ends all questions, and those to come.
    pub fn close(&self) {
        *self.0.waiting() = None;
    }

    /// Whether the number is one that was asked with, and nobody waits any more: its asker gave up, and the answer comes late.
    #[must_use]
    pub fn was_asked(&self, sequence: u64) -> bool {
        sequence > 0 && sequence < self.0.next.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Frame>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.inner.waiting().as_mut() {
            waiting.remove(&self.sequence);
        }
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use super::*;

    #[tokio::test]
    async fn frames_of_any_length_come_over_in_small_writes() {
        let (ours, mut theirs) = tokio::io::duplex(1_000);
        let (out, queue) = Outgoing::new();
        let writing = tokio::spawn(write_frames(queue, ours));
        let frames: Vec<Frame> = [0, 1, MAX_WRITE, 3 * MAX_WRITE + 7]
            .iter()
            .map(|len| Frame::new(Kind::Reseal, *len as u64, vec![7; *len]))
            .collect();
        for frame in frames.clone() {
            let out = out.clone();
            tokio::spawn(async move { out.send(frame).await });
            tokio::task::yield_now().await;
        }
        drop(out);
        for frame in &frames {
            assert_eq!(read_frame(&mut theirs).await.unwrap().as_ref(), Some(frame));
        }
        assert!(read_frame(&mut theirs).await.unwrap().is_none());
        writing.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_ends_early_or_is_no_frame_is_an_error() {
        let header = Frame::new(Kind::Reseal, 1, vec![1, 2, 3]).header().unwrap();
        for len in 1..HEADER_LEN + 3 {
            let all = [&header[..], &[1, 2, 3]].concat();
            let mut bytes = &all[..len];
            let error = read_frame(&mut bytes).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{len}");
        }
        let mut other = header;
        other[4] = 9;
        let error = read_frame(&mut &other[..]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        // 60 MiB are announced and do not come.
        let mut long = header;
        long[..4].copy_from_slice(&(60_u32 << 20).to_le_bytes());
        assert!(read_frame(&mut &long[..]).await.is_err());
    }

    #[tokio::test]
    async fn each_question_has_its_answer_and_none_another() {
        let (out, mut queue) = Outgoing::new();
        let asker = Asker::new(out);
        let asking = |asker: &Asker| {
            let asker = asker.clone();
            tokio::spawn(async move { asker.ask(Kind::Status, vec![]).await })
        };
        let (first, second) = (asking(&asker), asking(&asker));
        let numbers = [
            queue.recv().await.unwrap().sequence,
            queue.recv().await.unwrap().sequence,
        ];
        assert_ne!(numbers[0], numbers[1]);
        for number in [numbers[1], numbers[0]] {
            let body = number.to_le_bytes().to_vec();
            assert!(asker.answered(Frame::new(Kind::Answer, number, body)));
        }
        let mut answers = vec![
            first.await.unwrap().unwrap().sequence,
            second.await.unwrap().unwrap().sequence,
        ];
        answers.sort_unstable();
        assert_eq!(answers, [1, 2]);
        // An answer that is played again, or that nobody asked for.
        for number in [1, 2, 7] {
            assert!(!asker.answered(Frame::new(Kind::Answer, number, vec![])));
        }
        assert!(asker.was_asked(2) && !asker.was_asked(7) && !asker.was_asked(0));
        let last = asking(&asker);
        queue.recv().await.unwrap();
        asker.close();
        assert_eq!(last.await.unwrap(), Err(Gone));
        assert_eq!(asker.ask(Kind::Status, vec![]).await, Err(Gone));
    }
}
