//! A stream that ends when its peer takes nothing for too long, or too long for all that is to be sent. How long a peer may
//! send nothing the HTTP server decides.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a peer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For any of the bytes that wait for it.
    pub(crate) step: Duration,
    /// For all of them: from the first write to the flush that leaves none, which a server does at the end of an answer.
    pub(crate) whole: Duration,
}

/// The stream. A write that does not advance in time, or that is part of an answer that is not taken in time, fails.
#[derive(Debug)]
pub(crate) struct Timed<S> {
    stream: S,
    patience: Patience,
    /// Set while a write waits.
    step: Option<Pin<Box<Sleep>>>,
    /// Set while something was written and not flushed.
    whole: Option<Pin<Box<Sleep>>>,
}

impl<S> Timed<S> {
    pub(crate) fn new(stream: S, patience: Patience) -> Self {
        Self {
            stream,
            patience,
            step: None,
            whole: None,
        }
    }

    /// What a write comes to: done, waiting, or waiting for too long.
    fn settle<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        let patience = self.patience;
        let is_late = |deadline: &mut Option<Pin<Box<Sleep>>>, patience, context: &mut Context<'_>| {
            let from_now = || Box::pin(sleep_until(Instant::now() + patience));
            deadline.get_or_insert_with(from_now).as_mut().poll(context).is_ready()
        };
        // Before anything else: a peer that takes a byte now and then is never waited for.
        if is_late(&mut self.whole, patience.whole, context) {
            return Poll::Ready(Err(late()));
        }
        if written.is_ready() {
            self.step = None;
            return written;
        }
        match is_late(&mut self.step, patience.step, context) {
            true => Poll::Ready(Err(late())),
            false => Poll::Pending,
        }
    }
}

fn late() -> io::Error {
    io::Error::from(io::ErrorKind::TimedOut)
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.settle(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if flushed.is_ready() {
            (self.step, self.whole) = (None, None);
            return flushed;
        }
        self.settle(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.stream).poll_shutdown(context);
        self.settle(ended, context)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http_body_util::Full;
    use hyper::Response;
    use hyper::body::Bytes;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    const PATIENCE: Patience = Patience {
        step: Duration::from_secs(10),
        whole: Duration::from_secs(60),
    };

    fn pair(size: usize) -> (Timed<DuplexStream>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(size);
        (Timed::new(ours, PATIENCE), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_nothing_is_left_and_whoever_takes_slowly_is_served() {
        let (mut timed, mut theirs) = pair(16);
        let writing = tokio::spawn(async move { timed.write_all(&[7; 64]).await });
        let mut taken = [0; 16];
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            theirs.read_exact(&mut taken).await.unwrap();
        }
        writing.await.unwrap().unwrap();

        let (mut timed, _theirs) = pair(16);
        let started = Instant::now();
        let error = timed.write_all(&[7; 64]).await.unwrap_err();
        assert_eq!(
            (error.kind(), started.elapsed().as_secs()),
            (io::ErrorKind::TimedOut, 10)
        );
    }

    /// Takes a byte a second until there are no more.
    async fn take_slowly(mut theirs: impl AsyncRead + Unpin) -> usize {
        let mut taken = 0;
        while theirs.read(&mut [0]).await.unwrap_or_default() == 1 {
            taken += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_a_byte_now_and_then_is_left_after_a_while_and_an_answer_that_was_taken_starts_anew() {
        let (mut timed, theirs) = pair(16);
        let started = Instant::now();
        let taking = tokio::spawn(take_slowly(theirs));
        let error = timed.write_all(&[7; 1_000]).await.unwrap_err();
        assert_eq!(
            (error.kind(), started.elapsed().as_secs()),
            (io::ErrorKind::TimedOut, 60)
        );
        drop(timed);
        assert!(taking.await.unwrap() < 100);

        // Thirty seconds for each of five answers, on one connection.
        let (mut timed, theirs) = pair(16);
        let taking = tokio::spawn(take_slowly(theirs));
        for _ in 0..5 {
            timed.write_all(&[7; 30]).await.unwrap();
            timed.flush().await.unwrap();
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        drop(timed);
        assert_eq!(taking.await.unwrap(), 150);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_flushes_at_the_end_of_an_answer_and_not_before() {
        let (timed, mut theirs) = pair(4_096);
        let answer = service_fn(async |_| Ok::<_, io::Error>(Response::new(Full::new(Bytes::from(vec![7; 1 << 20])))));
        let serving = tokio::spawn(async move {
            http1::Builder::new()
                .serve_connection(TokioIo::new(timed), answer)
                .await
                .is_err()
        });
        let ask = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        // Read at once, twice, with a long rest between: the time of one does not count for the other.
        let mut head = vec![0; 1 << 16];
        for _ in 0..2 {
            theirs.write_all(ask).await.unwrap();
            let mut taken = 0;
            while taken < 1 << 20 {
                let more = theirs.read(&mut head).await.unwrap();
                assert!(more > 0, "the server was cut off");
                taken += more;
            }
            while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_secs(1), theirs.read(&mut head)).await {}
            tokio::time::sleep(Duration::from_secs(90)).await;
        }
        theirs.write_all(ask).await.unwrap();
        let taken = take_slowly(&mut theirs).await;
        assert!(serving.await.unwrap(), "the server went on");
        // What was in the pipe is read after the end.
        assert!(taken < 1 << 14, "{taken}");
    }
}
