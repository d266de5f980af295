//! Connections to one host: a few at the same time, one request at a time on each, used again while they are young.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::HttpsError;
use super::io::HyperIo;

/// A connection that was unused for longer is not used again: servers close them after a while.
const MAX_IDLE: Duration = Duration::from_secs(20);

/// A connection that is older is not used again, so that certificates and addresses are looked at anew.
const MAX_AGE: Duration = Duration::from_secs(5 * 60);

/// Bytes of the head of an answer.
const MAX_HEAD: usize = 64 * 1024;

pub(super) struct Pool {
    permits: Semaphore,
    idle: Mutex<Vec<Connection>>,
}

/// A connection and the task that drives it, which ends with it.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
    made: Instant,
    used: Instant,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    /// Over a stream on which TLS has begun.
    pub(super) async fn begin<T>(stream: T) -> Result<Self, hyper::Error>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(HyperIo::new(stream))
            .await?;
        // How it ends shows in the request that is on it.
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        let now = Instant::now();
        Ok(Self {
            sender,
            driver,
            made: now,
            used: now,
        })
    }

    fn is_young(&self) -> bool {
        self.made.elapsed() < MAX_AGE && self.used.elapsed() < MAX_IDLE && !self.sender.is_closed()
    }
}

impl Pool {
    pub(super) fn new(connections: usize) -> Self {
        Self {
            permits: Semaphore::new(connections.min(Semaphore::MAX_PERMITS)),
            idle: Mutex::default(),
        }
    }

    /// Sends `request` on an idle connection, or on a new one of `connect`. `host` is for errors.
    pub(super) async fn send<F, C>(
        &self,
        host: &str,
        mut request: Request<Full<Bytes>>,
        cap: usize,
        patience: Duration,
        connect: C,
    ) -> Result<Response<Bytes>, HttpsError>
    where
        F: Future<Output = Result<Connection, HttpsError>>,
        C: Fn() -> F,
    {
        let failed = || HttpsError::Connection { host: host.to_owned() };
        let _permit = self.permits.acquire().await.map_err(|_| failed())?;
        loop {
            let idle = self.take_idle();
            let is_new = idle.is_none();
            let mut connection = match idle {
                Some(connection) => connection,
                None => connect().await?,
            };
            let ready = tokio::time::timeout(patience, connection.sender.ready()).await;
            if !matches!(ready, Ok(Ok(()))) {
                if is_new {
                    return Err(failed());
                }
                continue;
            }
            match connection.sender.try_send_request(request).await {
                Ok(answer) => {
                    let answer = collect(answer, host, cap).await?;
                    self.put_back(connection);
                    return Ok(answer);
                }
                // Closed by the server while it was idle: not one byte of the request was sent.
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !is_new => request = unsent,
                    _ => return Err(failed()),
                },
            }
        }
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(Connection::is_young);
        idle.pop()
    }

    fn put_back(&self, mut connection: Connection) {
        connection.used = Instant::now();
        if connection.is_young() {
            self.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(connection);
        }
    }
}

/// The whole answer, if it is not too long.
async fn collect(answer: Response<Incoming>, host: &str, cap: usize) -> Result<Response<Bytes>, HttpsError> {
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, cap).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            HttpsError::TooLong {
                host: host.to_owned(),
                cap,
            }
        } else {
            HttpsError::Connection { host: host.to_owned() }
        }
    })?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}
