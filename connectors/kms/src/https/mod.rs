//! HTTPS over streams that somebody else dials: TLS that ends here, checked against roots and a clock that are given, to a
//! fixed list of hosts. It opens no sockets, resolves no names and reads neither the system's roots nor its time.
//!
//! For programs that have no network of their own: whoever carries the bytes can read, change or answer none of them.

mod connector;
mod io;
mod pool;
mod roots;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::Full;
use hyper::body::Bytes;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use sealflow::clock::Clock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use self::pool::Pool;
pub use self::roots::{RootError, amazon_roots, only_root, web_roots};

/// A stream to a server, as it was dialled.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Who dials. Not trusted with anything but bytes.
#[async_trait]
pub trait Dial: Send + Sync + fmt::Debug {
    /// A stream to this host and port.
    ///
    /// # Errors
    /// Of whoever dials.
    async fn dial(&self, host: &str, port: u16) -> std::io::Result<Box<dyn Stream>>;
}

/// What may be asked, and how patiently.
#[derive(Clone, Debug)]
pub struct HttpsConfig {
    /// The only hosts and ports that are dialled.
    pub hosts: BTreeSet<(String, u16)>,
    /// How long dialling and the TLS handshake may take together.
    pub connect_timeout: Duration,
    /// Connections to one host at the same time, 1 or more; further requests wait.
    pub connections: usize,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HttpsError {
    /// Not `https://`, or a host that is not on the list.
    #[error("{host} is not among the hosts that may be asked")]
    NotAllowed {
        /// The host.
        host: String,
    },
    /// No stream.
    #[error("{host} cannot be dialled")]
    Dial {
        /// The host.
        host: String,
    },
    /// What answered has not proved to be the host, or speaks no TLS.
    #[error("what answers has not proved to be {host}")]
    Tls {
        /// The host.
        host: String,
    },
    /// Too late.
    #[error("no connection to {host} or no answer from it in time")]
    Timeout {
        /// The host.
        host: String,
    },
    /// It broke, or does not speak HTTP.
    #[error("the connection to {host} failed")]
    Connection {
        /// The host.
        host: String,
    },
    /// More than is taken.
    #[error("the answer of {host} is longer than {cap} bytes")]
    TooLong {
        /// The host.
        host: String,
        /// The bytes that are taken.
        cap: usize,
    },
    /// Not what a document comes with.
    #[error("{host} answers with status {status}")]
    Status {
        /// The host.
        host: String,
        /// The status.
        status: u16,
    },
    /// It cannot be sent.
    #[error("not a request that can be sent")]
    Request,
}

impl HttpsError {
    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Dial { .. } | Self::Tls { .. } | Self::Timeout { .. } | Self::Connection { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            Self::NotAllowed { .. } | Self::TooLong { .. } | Self::Request => false,
        }
    }
}

/// The client. Cloning shares its connections, which belong to the Tokio runtime that first uses them.
#[derive(Clone)]
pub struct HttpsClient(Arc<Inner>);

struct Inner {
    dial: Arc<dyn Dial>,
    tls: TlsConnector,
    connect_timeout: Duration,
    hosts: BTreeMap<(String, u16), Pool>,
}

impl fmt::Debug for HttpsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<&str> = self.0.hosts.keys().map(|(host, _)| host.as_str()).collect();
        f.debug_struct("HttpsClient")
            .field("hosts", &hosts)
            .finish_non_exhaustive()
    }
}

/// Certificates are checked against the clock that everything else follows.
#[derive(Debug)]
struct GivenTime(Arc<dyn Clock>);

impl TimeProvider for GivenTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.now().0)))
    }
}

impl HttpsClient {
    /// A client of `config.hosts`, whose certificates lead to `roots` at the time of `clock`.
    ///
    /// # Errors
    /// [`HttpsError::Request`] if this build has no TLS.
    pub fn new(
        config: HttpsConfig,
        dial: Arc<dyn Dial>,
        roots: RootCertStore,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, HttpsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_details(provider, Arc::new(GivenTime(clock)))
            .with_safe_default_protocol_versions()
            .map_err(|_| HttpsError::Request)?;
        let mut tls = tls.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A resumed session would not look at the certificate again.
        tls.resumption = rustls::client::Resumption::disabled();
        let connections = config.connections.max(1);
        let hosts = config.hosts.into_iter().map(|host| (host, Pool::new(connections)));
        Ok(Self(Arc::new(Inner {
            dial,
            tls: TlsConnector::from(Arc::new(tls)),
            connect_timeout: config.connect_timeout,
            hosts: hosts.collect(),
        })))
    }

    /// The document at `url`: the body of an answer with status 200, at most `cap` bytes of it, within `timeout`.
    ///
    /// # Errors
    /// [`HttpsError`]; redirections are not followed and have a status like any other.
    pub async fn get(&self, url: &str, cap: usize, timeout: Duration) -> Result<Bytes, HttpsError> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(url)
            .header(header::ACCEPT, "application/json")
            .body(Bytes::new())
            .map_err(|_| HttpsError::Request)?;
        let host = request.uri().host().unwrap_or_default().to_owned();
        let answer = tokio::time::timeout(timeout, self.send(request, cap)).await;
        let answer = answer.map_err(|_| HttpsError::Timeout { host: host.clone() })??;
        match answer.status().as_u16() {
            200 => Ok(answer.into_body()),
            status => Err(HttpsError::Status { host, status }),
        }
    }

    /// Sends a request and takes at most `cap` bytes of its answer, whatever its status. It may take as long as it takes:
    /// dropping it closes the connection.
    ///
    /// # Errors
    /// [`HttpsError`]. Only a request that has certainly not been sent is sent again.
    pub async fn send(&self, request: Request<Bytes>, cap: usize) -> Result<Response<Bytes>, HttpsError> {
        let (target, request) = outgoing(request)?;
        let (host, port) = (&target.0, target.1);
        let Some(pool) = self.0.hosts.get(&target) else {
            return Err(HttpsError::NotAllowed { host: target.0 });
        };
        let connect = move || async move {
            let dialled = tokio::time::timeout(self.0.connect_timeout, self.connect(host, port)).await;
            dialled.unwrap_or_else(|_| Err(HttpsError::Timeout { host: host.clone() }))
        };
        pool.send(host, request, cap, self.0.connect_timeout, connect).await
    }

    async fn connect(&self, host: &str, port: u16) -> Result<pool::Connection, HttpsError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| HttpsError::Request)?;
        let stream = self
            .0
            .dial
            .dial(host, port)
            .await
            .map_err(|_| HttpsError::Dial { host: host.to_owned() })?;
        let stream = self.0.tls.connect(name, stream).await.map_err(|error| {
            tracing::warn!(host, reason = tls_reason(&error), "no TLS with what answers for a host");
            HttpsError::Tls { host: host.to_owned() }
        })?;
        pool::Connection::begin(stream)
            .await
            .map_err(|_| HttpsError::Connection { host: host.to_owned() })
    }
}

/// Why there is no TLS, in words of ours: what the other end sent does not reach a log.
fn tls_reason(error: &std::io::Error) -> &'static str {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_)) => {
            "its certificate is not valid for the host, the time or our roots"
        }
        Some(rustls::Error::AlertReceived(_)) => "it refuses",
        Some(_) => "it does not keep to the protocol",
        None => "the connection ended",
    }
}

/// Host and port.
type Peer = (String, u16);

/// Whom the request goes to, and the request as HTTP/1.1 has it (RFC 9112, section 3.2.1): its path, and a `Host`.
fn outgoing(request: Request<Bytes>) -> Result<(Peer, Request<Full<Bytes>>), HttpsError> {
    let (mut parts, body) = request.into_parts();
    let host = parts.uri.host().unwrap_or_default().to_ascii_lowercase();
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let bare = bare.unwrap_or(&host).to_owned();
    let authority = parts
        .uri
        .authority()
        .map(http::uri::Authority::as_str)
        .unwrap_or_default();
    if parts.uri.scheme_str() != Some("https") || authority.contains('@') {
        return Err(HttpsError::NotAllowed { host: bare });
    }
    let port = parts.uri.port_u16().unwrap_or(443);
    let named = if port == 443 { host } else { format!("{host}:{port}") };
    let named = HeaderValue::from_str(&named).map_err(|_| HttpsError::Request)?;
    parts.headers.insert(header::HOST, named);
    let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    parts.uri = path.parse::<Uri>().map_err(|_| HttpsError::Request)?;
    Ok(((bare, port), Request::from_parts(parts, Full::new(body))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use super::*;

    fn request(url: &str) -> Request<Bytes> {
        Request::get(url).body(Bytes::new()).unwrap()
    }

    #[test]
    fn requests_name_their_host_and_only_https_is_sent() {
        let (target, sent) = outgoing(request("https://KMS.example:8443/a?b=c")).unwrap();
        assert_eq!(target, ("kms.example".to_owned(), 8443));
        assert_eq!(sent.uri(), "/a?b=c");
        assert_eq!(sent.headers()[header::HOST], "kms.example:8443");
        let (target, sent) = outgoing(request("https://kms.example")).unwrap();
        assert_eq!(target, ("kms.example".to_owned(), 443));
        assert_eq!(
            (sent.uri().path(), &sent.headers()[header::HOST]),
            ("/", &HeaderValue::from_static("kms.example"))
        );
        let (target, _) = outgoing(request("https://[::1]:1/")).unwrap();
        assert_eq!(target, ("::1".to_owned(), 1));
        for url in ["http://kms.example/", "/", "https://user@kms.example/"] {
            assert!(
                matches!(outgoing(request(url)), Err(HttpsError::NotAllowed { .. })),
                "{url}"
            );
        }
    }
}
