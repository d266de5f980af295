//! Keeps a worker running: starts it, believes it only when it is attested, starts it again when it ends, and is not ready without it.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use sealflow::audit::AuditError;
use sealflow::flow::enclave::{ClientBatch, EnclaveError, EnclaveWorker, ResealedColumn};
use sealflow_enclave_protocol::frame::Frame;
use sealflow_enclave_protocol::message::{Credentials, PairJob, ReadJob, Status};
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;

use crate::connection::{ConnectError, Connection};

/// Batches that are under way at a time, unless the configuration says otherwise.
pub const DEFAULT_DEPTH: usize = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A worker that ran for so long is started again at once.
const LONG_RUN: Duration = Duration::from_secs(60);
/// How often the worker gets fresh credentials.
const CREDENTIALS_EVERY: Duration = Duration::from_secs(60);
/// How long a worker may take from its start until it is believed, and to say how it is.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a batch waits for a worker that is being started.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts workers, one after the other.
#[async_trait]
pub trait Starter: Send + Sync + fmt::Debug {
    /// A worker that was started and attested, and what ends it when it is dropped.
    ///
    /// # Errors
    /// [`StartError`]
    async fn start(&self) -> Result<Started, StartError>;

    /// The host's credentials for the worker's requests to KMS; `None` while there are none.
    async fn credentials(&self) -> Option<Credentials>;
}

/// A worker that runs.
pub struct Started {
    /// The connection to it.
    pub connection: Connection,
    /// Ends the worker when it is dropped.
    pub process: Box<dyn Send + Sync>,
}

/// Why a worker was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// It could not be launched.
    #[error("{0}")]
    Launch(String),
    /// It was, and there is no connection to it.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It says nothing.
    #[error("the enclave worker does not say what it is within {} seconds", SILENCE.as_secs())]
    Silent,
}

/// The worker of a host, whichever process it is at the moment. Cheap to clone.
#[derive(Clone)]
pub struct Supervisor(Arc<Inner>);

struct Inner {
    state: RwLock<State>,
    changed: Notify,
    depth: Semaphore,
    /// Of the task that starts workers.
    task: RwLock<Option<AbortHandle>>,
}

#[derive(Default)]
struct State {
    worker: Option<Arc<Connection>>,
    /// Why there is none.
    why_not: Option<WhyNot>,
    /// Workers that were started so far.
    starts: u64,
}

/// Why no worker runs.
#[derive(Clone, Debug)]
struct WhyNot {
    reason: String,
    cause: Cause,
}

/// What keeps a worker from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// It cannot be reached, does not start, or ended: the next one may do better.
    Away,
    /// It does not prove what it has to.
    NotBelieved,
    /// What workers decide cannot be written down: no batch waits for the next one.
    Unrecorded,
}

impl WhyNot {
    fn of(reason: String) -> Self {
        Self {
            reason,
            cause: Cause::Away,
        }
    }

    fn unrecorded(error: &AuditError) -> Self {
        Self {
            reason: error.to_string(),
            cause: Cause::Unrecorded,
        }
    }
}

/// What is known of the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Kind of TEE, by its evidence.
    pub tier: String,
    /// Measurement of its image.
    pub image: String,
    /// Its version.
    pub version: String,
    /// Workers that were started so far.
    pub starts: u64,
}

impl Supervisor {
    /// Begins to start workers, in a task on this runtime.
    #[must_use]
    pub fn start(starter: Arc<dyn Starter>, depth: usize) -> Self {
        let supervisor = Self(Arc::new(Inner {
            state: RwLock::default(),
            changed: Notify::new(),
            depth: Semaphore::new(depth.max(1)),
            task: RwLock::default(),
        }));
        let weak = Arc::downgrade(&supervisor.0);
        let task = tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                let began = tokio::time::Instant::now();
                let started = tokio::time::timeout(SILENCE, starter.start()).await;
                match started.unwrap_or(Err(StartError::Silent)) {
                    Ok(started) => {
                        let connection = Arc::new(started.connection);
                        if let Some(credentials) = starter.credentials().await {
                            let _ = connection.credentials(&credentials).await;
                        }
                        let Some(inner) = weak.upgrade() else { return };
                        inner.set(Some(Arc::clone(&connection)), None);
                        drop(inner);
                        refresh(&*starter, &connection).await;
                        drop(started.process);
                        let Some(inner) = weak.upgrade() else { return };
                        match connection.unrecorded() {
                            Some(error) => {
                                tracing::error!(%error, "the enclave worker was ended: what it decides is not written down");
                                inner.set(None, Some(WhyNot::unrecorded(error)));
                            }
                            None => {
                                tracing::warn!("the enclave worker ended; it is started again");
                                inner.set(None, Some(WhyNot::of("it ended, and is started again".to_owned())));
                            }
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "the enclave worker does not run");
                        let Some(inner) = weak.upgrade() else { return };
                        inner.set(
                            None,
                            Some(match error {
                                StartError::Connect(ConnectError::Unrecorded(error)) => WhyNot::unrecorded(&error),
                                error @ StartError::Connect(ConnectError::NotBelieved(_)) => WhyNot {
                                    reason: error.to_string(),
                                    cause: Cause::NotBelieved,
                                },
                                error => WhyNot::of(error.to_string()),
                            }),
                        );
                    }
                }
                if began.elapsed() >= LONG_RUN {
                    pause = FIRST_PAUSE;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
        *supervisor.0.task.write().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        supervisor
    }

    /// What is known of the worker that runs.
    ///
    /// # Errors
    /// Why none does.
    pub fn known(&self) -> Result<Known, String> {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        match &state.worker {
            Some(worker) => Ok(Known {
                tier: worker.believed().tier.clone(),
                image: worker.believed().image.clone(),
                version: worker.version().to_owned(),
                starts: state.starts,
            }),
            None => Err(state
                .why_not
                .as_ref()
                .map_or_else(|| "it is being started".to_owned(), |why_not| why_not.reason.clone())),
        }
    }

    /// Why the last start of a worker failed, as long as none runs.
    #[must_use]
    pub fn why_not(&self) -> Option<String> {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        let why_not = state.why_not.as_ref().filter(|_| state.worker.is_none());
        why_not.map(|why_not| why_not.reason.clone())
    }

    /// What kind of thing keeps a worker from running, as long as none does.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        let why_not = state.why_not.as_ref().filter(|_| state.worker.is_none());
        why_not.map(|why_not| why_not.cause)
    }

    /// Waits until a worker runs.
    pub async fn ready(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.is_ready() {
                return;
            }
            changed.await;
        }
    }

    /// How the worker is.
    ///
    /// # Errors
    /// [`EnclaveError`]
    pub async fn status(&self) -> Result<Status, EnclaveError> {
        self.worker().await?.status().await
    }

    /// Has values opened for a reader: the body of the worker's answer, and the connection that it came by.
    ///
    /// # Errors
    /// [`EnclaveError`]
    pub async fn read(&self, job: &ReadJob<'_>) -> Result<(Frame, Arc<Connection>), EnclaveError> {
        let _turn = self.0.depth.acquire().await;
        let worker = self.worker().await?;
        Ok((worker.read(job).await?, worker))
    }

    /// Waits until what workers decide cannot be written down.
    async fn unrecorded(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.unrecorded_now().is_some() {
                return;
            }
            changed.await;
        }
    }

    fn unrecorded_now(&self) -> Option<String> {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        let why_not = state.why_not.as_ref().filter(|_| state.worker.is_none());
        let why_not = why_not.filter(|why_not| why_not.cause == Cause::Unrecorded);
        why_not.map(|why_not| why_not.reason.clone())
    }

    /// Has the worker vouch for what clients of a dataset seal to: the document.
    ///
    /// # Errors
    /// [`EnclaveError`]
    pub async fn client_keys(&self, dataset: &str) -> Result<String, EnclaveError> {
        self.worker().await?.client_keys(dataset).await
    }

    /// Has the worker make a pair that clients seal to.
    ///
    /// # Errors
    /// [`EnclaveError`]
    pub async fn make_pair(&self, job: &PairJob<'_>) -> Result<Frame, EnclaveError> {
        self.worker().await?.make_pair(job).await
    }

    /// The worker that runs, or the next one if it comes soon.
    async fn worker(&self) -> Result<Arc<Connection>, EnclaveError> {
        let current = || {
            let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
            state.worker.as_ref().filter(|worker| !worker.is_gone()).map(Arc::clone)
        };
        let settled = async {
            tokio::select! {
                () = self.ready() => {}
                () = self.unrecorded() => {}
            }
        };
        let _ = tokio::time::timeout(PATIENCE, settled).await;
        if let Some(reason) = self.unrecorded_now() {
            return Err(EnclaveError::Unrecorded { reason });
        }
        current().ok_or_else(|| EnclaveError::Unavailable {
            reason: self.known().err().unwrap_or_else(|| "it is gone".to_owned()),
        })
    }
}

/// Hands credentials over until the worker ends, or answers no more.
async fn refresh(starter: &dyn Starter, connection: &Connection) {
    loop {
        tokio::select! {
            () = connection.ended() => return,
            () = tokio::time::sleep(CREDENTIALS_EVERY) => {}
        }
        if let Some(credentials) = starter.credentials().await
            && connection.credentials(&credentials).await.is_err()
        {
            return;
        }
        // Whatever it says: it lives.
        if tokio::time::timeout(SILENCE, connection.status()).await.is_err() {
            tracing::error!("the enclave worker does not answer any more");
            return;
        }
    }
}

impl Inner {
    fn set(&self, worker: Option<Arc<Connection>>, why_not: Option<WhyNot>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.starts += u64::from(worker.is_some());
        (state.worker, state.why_not) = (worker, why_not);
        drop(state);
        self.changed.notify_waiters();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("known", &self.known()).finish()
    }
}

#[async_trait]
impl EnclaveWorker for Supervisor {
    async fn reseal(&self, batch: ClientBatch) -> Result<Vec<ResealedColumn>, EnclaveError> {
        // Never closed.
        let _turn = self.0.depth.acquire().await;
        self.worker().await?.reseal(&batch).await
    }

    fn is_ready(&self) -> bool {
        let state = self.0.state.read().unwrap_or_else(PoisonError::into_inner);
        state.worker.as_ref().is_some_and(|worker| !worker.is_gone())
    }
}
