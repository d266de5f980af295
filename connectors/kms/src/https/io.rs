//! A Tokio stream as hyper takes it. (`hyper-util` does the same, and links Tokio's sockets, which a worker must not have.)

use std::io::Result;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are read at once.
const PORTION: usize = 16 * 1024;

pub(super) struct HyperIo<T> {
    inner: T,
    portion: Box<[u8]>,
}

impl<T> HyperIo<T> {
    pub(super) fn new(inner: T) -> Self {
        Self {
            inner,
            portion: vec![0; PORTION].into_boxed_slice(),
        }
    }
}

impl<T: AsyncRead + Unpin> Read for HyperIo<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut out: ReadBufCursor<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        let most = out.remaining().min(PORTION);
        let mut read = ReadBuf::new(this.portion.get_mut(..most).unwrap_or_default());
        ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
        // No more than fits was read.
        out.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> Write for HyperIo<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
