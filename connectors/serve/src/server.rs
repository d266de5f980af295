//! Connections: TLS, HTTP/1.1 with caps on heads and waits, draining.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use sealflow_tls::{Certificate, TlsError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::limits::{Places, of_peer};
use crate::service::{LAST_LINE, Service};
use crate::timed::{Patience, Timed};

const MAX_HEADERS: usize = 64;
/// The request line and all headers together: a presigned request has 16 KiB at most.
const MAX_HEAD: usize = 32 * 1024;
/// How often files of the certificate are looked at, in seconds.
const CERTIFICATE_EVERY: u64 = 10;
/// How often old proofs are forgotten, in seconds.
const PROOFS_EVERY: u64 = 30;

/// Why the service does not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        reason: String,
    },
    /// Without TLS only this machine may reach it.
    #[error("{address} is not on loopback, and there is no certificate")]
    NeedsTls {
        /// The address.
        address: SocketAddr,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A service that listens.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    service: Arc<Service>,
    tls: Option<(Arc<Certificate>, TlsAcceptor)>,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// [`ServeError`]
    pub async fn bind(
        address: SocketAddr,
        certificate: Option<Arc<Certificate>>,
        service: Arc<Service>,
    ) -> Result<Self, ServeError> {
        if certificate.is_none() && !address.ip().is_loopback() {
            return Err(ServeError::NeedsTls { address });
        }
        let tls = match certificate {
            Some(certificate) => {
                let config = certificate.server_config()?;
                Some((certificate, TlsAcceptor::from(config)))
            }
            None => None,
        };
        let failed = |error: std::io::Error| ServeError::Listen {
            address,
            reason: error.to_string(),
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self {
            listener,
            address,
            service,
            tls,
        })
    }

    /// Where it listens; another port than asked for if that was 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stopped`, then ends what is under way: new requests are not taken, those that were get their answers.
    pub async fn serve(self, mut stopped: watch::Receiver<bool>) {
        let Self {
            listener, service, tls, ..
        } = self;
        let housekeeping = tokio::spawn(keep_house(
            Arc::clone(&service),
            tls.as_ref().map(|(files, _)| Arc::clone(files)),
        ));
        let places = Arc::new(Semaphore::new(
            usize::try_from(service.limits.connections).unwrap_or(usize::MAX),
        ));
        let addresses = Places::new(service.limits.connections_per_address);
        let mut connections = JoinSet::new();
        loop {
            let place = tokio::select! {
                // The semaphore is never closed.
                place = Arc::clone(&places).acquire_owned() => place.ok(),
                _ = stopped.wait_for(|stop| *stop) => break,
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopped.wait_for(|stop| *stop) => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // One address does not take the places of all others.
                    let Some(of_address) = addresses.take(&of_peer(peer.ip())) else {
                        continue;
                    };
                    let acceptor = tls.as_ref().map(|(_, acceptor)| acceptor.clone());
                    let connection = connection(stream, peer, acceptor, Arc::clone(&service), stopped.clone());
                    connections.spawn(async move {
                        connection.await;
                        drop((place, of_address));
                    });
                }
                // Out of file descriptors, most likely: wait, do not spin.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
            while connections.try_join_next().is_some() {}
        }
        drop(listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        let patience = service.limits.request_timeout.0 + LAST_LINE + service.limits.whole_answer_timeout.0;
        // Whoever is still not done then is cut off.
        let _ = tokio::time::timeout(patience, drained).await;
        connections.shutdown().await;
        housekeeping.abort();
        if let Err(error) = service.tick().await {
            tracing::error!(%error, "refused proofs that were counted are not in the audit log");
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    service: Arc<Service>,
    stopped: watch::Receiver<bool>,
) {
    let _counted = service.metrics.connection();
    let _ = stream.set_nodelay(true);
    let patience = Patience {
        step: service.limits.answer_timeout.0,
        whole: service.limits.whole_answer_timeout.0,
    };
    let stream = Timed::new(stream, patience);
    match tls {
        None => http(stream, peer, service, stopped).await,
        Some(acceptor) => {
            let handshake = acceptor.accept(stream);
            // Whoever speaks no TLS, or too slowly, is no event.
            if let Ok(Ok(stream)) = tokio::time::timeout(service.limits.head_timeout.0, handshake).await {
                http(stream, peer, service, stopped).await;
            }
        }
    }
}

async fn http<S>(stream: S, peer: SocketAddr, service: Arc<Service>, mut stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .timer(TokioTimer::new())
        .header_read_timeout(service.limits.head_timeout.0);
    let answer = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, std::convert::Infallible>(service.answer(request, peer.ip()).await) }
    });
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), answer));
    tokio::select! {
        // A client that broke off or was cut off is no event.
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// What is due every second, and now and then.
async fn keep_house(service: Arc<Service>, certificate: Option<Arc<Certificate>>) {
    for second in 1_u64.. {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Err(error) = service.tick().await {
            tracing::error!(%error, help = error.help(), "refused proofs cannot be written to the audit log");
        }
        if second.is_multiple_of(PROOFS_EVERY) {
            service.prover().tick().await;
        }
        if let Some(certificate) = certificate
            .as_ref()
            .filter(|_| second.is_multiple_of(CERTIFICATE_EVERY))
        {
            let certificate = Arc::clone(certificate);
            let refreshed = tokio::task::spawn_blocking(move || certificate.refresh()).await;
            match refreshed {
                Ok(Ok(true)) => tracing::info!("took the new certificate"),
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the certificate cannot be read again; the one before goes on to count");
                }
                _ => {}
            }
        }
    }
}
