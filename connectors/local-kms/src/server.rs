//! Starts and stops a local KMS, and gives tests and the demo a handle on it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use sealflow::clock::{Clock, UnixMillis};
use sealflow_enclave_protocol::attestation::Trust;
use sealflow_tls::{Certificate, TlsError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::config::{ConfigError, ServerConfig};
use crate::error::ApiError;
use crate::faults::{Fault, Hooks};
use crate::http::Endpoint;
use crate::keys::{KeySpec, KeyState, KeyStore};
use crate::policy::KeyPolicy;
use crate::service::Service;
use crate::vault::{Vault, VaultError};

const MAX_HEADERS: usize = 64;
/// The request line and all headers together.
const MAX_HEAD: usize = 32 * 1024;
/// A handshake has as long as a head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How often files of the certificate are looked at.
const CERTIFICATE_EVERY: Duration = Duration::from_secs(10);
/// How long requests that are under way may take after the stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a local KMS did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder of keys cannot be used.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The certificate cannot be used.
    #[error("tls: {0}")]
    Tls(#[source] TlsError),
    /// The root of attestation documents cannot be used.
    #[error("attestation_root: {reason}")]
    AttestationRoot {
        /// What is wrong, with the file's path.
        reason: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system says.
        source: std::io::Error,
    },
}

/// Why a key could not be changed through the [`RunningServer`].
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
pub struct KeyError {
    code: &'static str,
    message: String,
}

impl From<ApiError> for KeyError {
    fn from(error: ApiError) -> Self {
        Self {
            code: error.code,
            message: error.message,
        }
    }
}

/// The local KMS, to be started.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Starts a local KMS by the clock of the machine.
    pub async fn start(config: ServerConfig) -> Result<RunningServer, StartError> {
        Self::start_with_clock(config, Arc::new(MachineClock)).await
    }

    /// Starts a local KMS by `clock`, which decides about signatures and deletion dates.
    pub async fn start_with_clock(config: ServerConfig, clock: Arc<dyn Clock>) -> Result<RunningServer, StartError> {
        config.check()?;
        let vault = match config.unlock()? {
            // Argon2id takes its time.
            Some((folder, unlock)) => {
                let opened = tokio::task::spawn_blocking(move || Vault::open(&folder, &unlock)).await;
                Some(opened.map_err(|_| VaultError::NoRandomness)??)
            }
            None => None,
        };
        let store = KeyStore::load(vault)?;
        let trust = trust(&config)?;
        let tls = match &config.tls {
            Some(files) => {
                let certificate = Certificate::open(files).map_err(StartError::Tls)?;
                let acceptor = TlsAcceptor::from(certificate.server_config().map_err(StartError::Tls)?);
                Some(Tls { certificate, acceptor })
            }
            None => None,
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listen = |source| StartError::Listen {
            address: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let endpoint = Arc::new(Endpoint {
            service: Service::new(config.region.clone(), config.account, Arc::clone(&clock), store, trust),
            principals: config.principals,
            region: config.region,
            clock,
            hooks: Hooks::default(),
        });
        tracing::warn!(
            %addr,
            "the local KMS is FOR DEVELOPMENT ONLY: its keys are in the memory of this process and, if it has a folder, on \
             this machine's disk; it has no audit log and no hardware protection. Use AWS KMS for real data"
        );
        let (stop, stopped) = watch::channel(false);
        let accepting = accept(listener, Arc::clone(&endpoint), tls, config.max_connections, stopped);
        Ok(RunningServer {
            addr,
            scheme,
            endpoint,
            stop,
            accepting: Some(tokio::spawn(accepting)),
        })
    }
}

/// A local KMS that is running; dropping it stops it.
#[derive(Debug)]
pub struct RunningServer {
    addr: SocketAddr,
    scheme: &'static str,
    endpoint: Arc<Endpoint>,
    stop: watch::Sender<bool>,
    accepting: Option<JoinHandle<()>>,
}

impl RunningServer {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its endpoint, `http://ADDRESS:PORT` or `https://ADDRESS:PORT`, for the configuration of a KMS client.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    /// Stops listening, gives requests that are under way three seconds to end, and closes the folder.
    pub async fn shutdown(mut self) {
        let _ = self.stop.send(true);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.await;
        }
    }

    /// Makes a symmetric key and returns its ARN. With an `id` (a UUID, say) that is there already, that key is left as it
    /// is. Without a `policy` everybody in the account may use it. It may wait for the disk.
    pub fn create_key(&self, id: Option<&str>, description: &str, policy: Option<&str>) -> Result<String, KeyError> {
        create_key(&self.endpoint.service, KeySpec::Symmetric, id, description, policy)
    }

    /// The same for a key of any spec. RSA keys take up to seconds, on a thread that nobody waits for.
    pub async fn create_key_of(
        &self,
        spec: KeySpec,
        id: Option<&str>,
        description: &str,
        policy: Option<&str>,
    ) -> Result<String, KeyError> {
        let endpoint = Arc::clone(&self.endpoint);
        let (id, policy) = (id.map(ToOwned::to_owned), policy.map(ToOwned::to_owned));
        let description = description.to_owned();
        let made = tokio::task::spawn_blocking(move || {
            create_key(&endpoint.service, spec, id.as_deref(), &description, policy.as_deref())
        });
        made.await.unwrap_or_else(|_| Err(ApiError::internal().into()))
    }

    /// The public half of an RSA key (`SubjectPublicKeyInfo`, DER), as the account's root is told it by `GetPublicKey`.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn public_key(&self, arn: &str) -> Result<Vec<u8>, KeyError> {
        Ok(self.endpoint.service.public_half(arn)?)
    }

    /// Gives the key another policy.
    pub fn set_key_policy(&self, arn: &str, policy: &str) -> Result<(), KeyError> {
        let policy = KeyPolicy::parse(policy).map_err(|e| ApiError::validation(e.to_string()))?;
        Ok(self
            .endpoint
            .service
            .change(arn, |key| crate::keys::Key { policy, ..key.clone() })?)
    }

    /// Enables or disables the key.
    pub fn set_enabled(&self, arn: &str, enabled: bool) -> Result<(), KeyError> {
        let state = if enabled { KeyState::Enabled } else { KeyState::Disabled };
        Ok(self.endpoint.service.change(arn, |key| key.in_state(state))?)
    }

    /// How many requests for `operation` (`Decrypt`, `GetCallerIdentity`, …) came in, refused ones included.
    #[must_use]
    pub fn requests(&self, operation: &str) -> u64 {
        self.endpoint.hooks.requests(operation)
    }

    /// Makes requests slow or fail from now on; `None` ends it.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.endpoint.hooks.set_fault(fault);
    }
}

fn create_key(
    service: &Service,
    spec: KeySpec,
    id: Option<&str>,
    description: &str,
    policy: Option<&str>,
) -> Result<String, KeyError> {
    let is_id =
        |id: &str| !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !id.is_none_or(is_id) {
        return Err(ApiError::validation("a key id is of letters, digits and hyphens").into());
    }
    let policy = policy.map(KeyPolicy::parse).transpose();
    let policy = policy.map_err(|e| ApiError::validation(e.to_string()))?;
    let key = service.new_key(spec, id, description, policy)?;
    Ok(service.arn(&key.id))
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
    }
}

/// What a server that speaks TLS needs.
struct Tls {
    certificate: Arc<Certificate>,
    acceptor: TlsAcceptor,
}

/// AWS's root, and the development root if there is one.
fn trust(config: &ServerConfig) -> Result<Trust, StartError> {
    let Some(path) = &config.attestation_root else {
        return Ok(Trust::nitro());
    };
    let failed = |reason: String| StartError::AttestationRoot { reason };
    let roots = sealflow_tls::certificates(path).map_err(|error| failed(error.to_string()))?;
    match &roots[..] {
        [root] => with_development_root(root, path),
        _ => Err(failed(format!(
            "{}: there is more than one certificate in it",
            path.display()
        ))),
    }
}

#[cfg(feature = "dev-software-nsm")]
fn with_development_root(root: &[u8], path: &Path) -> Result<Trust, StartError> {
    let trust = Trust::with_dev_root(root).map_err(|error| StartError::AttestationRoot {
        reason: format!("{}: {error}", path.display()),
    })?;
    tracing::warn!(
        root = %path.display(),
        "attestation documents of a DEVELOPMENT ROOT are believed: whoever has its key is taken for any enclave"
    );
    Ok(trust)
}

/// The configuration was checked: it has none.
#[cfg(not(feature = "dev-software-nsm"))]
fn with_development_root(_: &[u8], _: &Path) -> Result<Trust, StartError> {
    Err(StartError::Config(ConfigError::DevelopmentRoot))
}

async fn accept(
    listener: TcpListener,
    endpoint: Arc<Endpoint>,
    tls: Option<Tls>,
    most: usize,
    mut stopped: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(most));
    let mut connections = tokio::task::JoinSet::new();
    let mut look = tokio::time::interval(CERTIFICATE_EVERY);
    loop {
        let place = tokio::select! {
            // The semaphore is never closed.
            place = Arc::clone(&places).acquire_owned() => place.ok(),
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => Some(accepted),
            _ = look.tick(), if tls.is_some() => None,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        let Some(accepted) = accepted else {
            if let Some(tls) = &tls {
                refresh(&tls.certificate).await;
            }
            continue;
        };
        match accepted {
            Ok((stream, _)) => {
                let acceptor = tls.as_ref().map(|tls| tls.acceptor.clone());
                let serving = serve(stream, acceptor, Arc::clone(&endpoint), stopped.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            // Out of file descriptors, most likely: wait, do not spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    // Whoever is still not done then (a client that sends half a request) is cut off.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
    connections.shutdown().await;
}

async fn refresh(certificate: &Arc<Certificate>) {
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

async fn serve(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
    endpoint: Arc<Endpoint>,
    stopped: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    match acceptor {
        None => http(stream, endpoint, stopped).await,
        Some(acceptor) => {
            // Whoever speaks no TLS, or too slowly, is no event.
            if let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await {
                http(stream, endpoint, stopped).await;
            }
        }
    }
}

async fn http<S>(stream: S, endpoint: Arc<Endpoint>, mut stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| Arc::clone(&endpoint).answer(request));
    let mut builder = http1::Builder::new();
    builder
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // A client that broke off or was cut off on purpose is no event.
        _ = connection.as_mut() => return,
        _ = stopped.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// The clock of the machine.
#[derive(Debug)]
struct MachineClock;

impl Clock for MachineClock {
    fn now(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}
