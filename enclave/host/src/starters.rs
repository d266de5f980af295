//! How a worker comes to be: launched in the software tier, or reached where somebody else has started it.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use sealflow::audit::AuditError;
use sealflow::keys::Catalogue;
use sealflow_enclave_protocol::frame::{Frame, Kind};
use sealflow_enclave_protocol::joints::Verifier;
use sealflow_enclave_protocol::link::Outgoing;
use sealflow_enclave_protocol::message::Credentials;
use sealflow_enclave_protocol::wire::Malformed;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::channel::{Channel, Endpoint};
use crate::connection::{Connection, Side};
use crate::launch::Launcher;
use crate::relay::{Relay, RelayTarget};
use crate::supervisor::{StartError, Started, Starter};

/// Relayed messages that wait for the worker.
const RELAYED: usize = 16;

/// Where the host's credentials come from.
#[async_trait]
pub trait CredentialSource: Send + Sync {
    /// Those to use now; `None` while there are none.
    async fn credentials(&self) -> Option<Credentials>;
}

/// Where the lines of a worker's audit log go.
pub trait AuditSink: Send + Sync {
    /// Keeps a line, which is durable when this returns `Ok`. The worker has signed it. Blocks.
    ///
    /// # Errors
    /// [`AuditError`]: then the worker that said it is ended, and nothing that it says after it is heard.
    fn keep(&self, line: &[u8]) -> Result<(), AuditError>;
}

/// What a host gives a worker, and what it believes.
#[derive(Clone)]
pub struct Terms {
    /// Says whether a worker is believed.
    pub verifier: Arc<dyn Verifier>,
    /// What it may read of the catalogue, and write to it.
    pub catalogue: Arc<dyn Catalogue>,
    /// What it may have dialled.
    pub allowed: Vec<RelayTarget>,
    /// For its requests to KMS.
    pub credentials: Arc<dyn CredentialSource>,
    /// Its audit log.
    pub audit: Arc<dyn AuditSink>,
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terms")
            .field("allowed", &self.allowed)
            .finish_non_exhaustive()
    }
}

impl Terms {
    async fn connect<C>(&self, channel: C) -> Result<Connection, StartError>
    where
        C: AsyncRead + AsyncWrite + Send + 'static,
    {
        let catalogue = Arc::clone(&self.catalogue);
        let side = |out: Outgoing| -> Arc<dyn Side> {
            let (sender, receiver) = mpsc::channel(RELAYED);
            tokio::spawn(carry(receiver, out));
            Arc::new(Carrying {
                relay: Relay::new(self.allowed.iter().cloned(), sender),
                audit: Arc::clone(&self.audit),
            })
        };
        Ok(Connection::open(channel, &*self.verifier, catalogue, side).await?)
    }
}

/// Takes relayed messages to the worker.
async fn carry(mut messages: mpsc::Receiver<Vec<u8>>, out: Outgoing) {
    while let Some(message) = messages.recv().await {
        if out.send(Frame::new(Kind::Relay, 0, message)).await.is_err() {
            return;
        }
    }
}

struct Carrying {
    relay: Relay,
    audit: Arc<dyn AuditSink>,
}

#[async_trait]
impl Side for Carrying {
    async fn relay(&self, body: &[u8]) -> Result<(), Malformed> {
        self.relay.deliver(body).map_err(|error| {
            tracing::error!(%error, "the enclave worker breaks the relay's protocol");
            Malformed
        })
    }

    async fn audit(&self, line: &[u8]) -> Result<(), AuditError> {
        let (audit, line) = (Arc::clone(&self.audit), line.to_vec());
        let kept = tokio::task::spawn_blocking(move || audit.keep(&line)).await;
        // It panicked, or the runtime ends: nobody knows whether it was written.
        kept.unwrap_or_else(|error| {
            Err(AuditError::Closed {
                to: "of the enclave worker".to_owned(),
                reason: error.to_string(),
            })
        })
    }
}

/// Launches workers in the software tier.
#[derive(Debug)]
pub struct SoftwareStarter {
    launcher: Arc<Launcher>,
    terms: Terms,
}

impl SoftwareStarter {
    /// By this launcher.
    #[must_use]
    pub fn new(launcher: impl Into<Arc<Launcher>>, terms: Terms) -> Self {
        Self {
            launcher: launcher.into(),
            terms,
        }
    }
}

#[async_trait]
impl Starter for SoftwareStarter {
    async fn start(&self) -> Result<Started, StartError> {
        let launcher = Arc::clone(&self.launcher);
        let launched = tokio::task::spawn_blocking(move || launcher.launch()).await;
        let launched = launched.map_err(|_| StartError::Launch("launching it panicked".to_owned()))?;
        let mut worker = launched.map_err(|error| StartError::Launch(error.to_string()))?;
        let channel = worker
            .take_channel()
            .ok_or_else(|| StartError::Launch("it has no channel".to_owned()))?;
        let system = |error: std::io::Error| StartError::Launch(error.to_string());
        channel.set_nonblocking(true).map_err(system)?;
        let channel = UnixStream::from_std(channel).map_err(system)?;
        tracing::info!(pid = worker.pid(), image = %worker.measurement(), "launched the enclave worker");
        Ok(Started {
            connection: self.terms.connect(channel).await?,
            process: Box::new(worker),
        })
    }

    async fn credentials(&self) -> Option<Credentials> {
        self.terms.credentials.credentials().await
    }
}

/// Reaches workers where somebody else has started them: in an enclave, or behind the socket of `sealflow enclave run`.
#[derive(Debug)]
pub struct EndpointStarter {
    endpoint: Endpoint,
    terms: Terms,
}

impl EndpointStarter {
    /// There.
    #[must_use]
    pub fn new(endpoint: Endpoint, terms: Terms) -> Self {
        Self { endpoint, terms }
    }
}

#[async_trait]
impl Starter for EndpointStarter {
    async fn start(&self) -> Result<Started, StartError> {
        let channel = Channel::connect(&self.endpoint).await;
        let channel = channel.map_err(|error| StartError::Launch(error.to_string()))?;
        tracing::info!(endpoint = %self.endpoint, "reached the enclave worker");
        Ok(Started {
            connection: self.terms.connect(channel).await?,
            process: Box::new(()),
        })
    }

    async fn credentials(&self) -> Option<Credentials> {
        self.terms.credentials.credentials().await
    }
}
