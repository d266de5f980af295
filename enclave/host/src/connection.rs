//! One connection to a worker, from the first question to the last: who it is, what it is asked, what it asks.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use sealflow::audit::AuditError;
use sealflow::flow::enclave::{ClientBatch, ClientColumn, EnclaveError, ResealedColumn, ValueKey, ValueRefusal};
use sealflow::keys::Catalogue;
use sealflow::seal::{ByteColumn, KeyId, PlainColumn, SealedColumn};
use sealflow_enclave_protocol::column::WireColumn;
use sealflow_enclave_protocol::frame::{Frame, Kind, MAX_BODY};
use sealflow_enclave_protocol::joints::{Believed, NotBelieved, Verifier};
use sealflow_enclave_protocol::link::{Asker, Gone, Outgoing, read_frame, write_frames};
use sealflow_enclave_protocol::message::{
    CatalogueQuestion, ClientKeysAnswer, ClientKeysJob, Credentials, Failure, FailureKind, Hello, HelloAnswer,
    JobWriter, KEY_CLEAR, KEY_FIRST_SESSION, KEY_OWN, PairAnswer, PairJob, ReadJob, ResealAnswer, SealedPart, Status,
    signer_user_data,
};
use sealflow_enclave_protocol::wire::Malformed;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::catalogue::answer;

/// Questions of a worker about the catalogue that are under way at a time.
const MAX_QUESTIONS: usize = 64;

/// Lines of its audit log that a worker may say before it is believed: its chain's first ones.
const MAX_EARLY_LINES: usize = 16;
/// The longest of these, in bytes: they are held in memory.
const MAX_EARLY_LINE: usize = 64 << 10;

/// Takes what a worker says unasked.
#[async_trait]
pub trait Side: Send + Sync {
    /// A message of a relayed connection.
    ///
    /// # Errors
    /// [`Malformed`]: the worker breaks the protocol, and is ended.
    async fn relay(&self, body: &[u8]) -> Result<(), Malformed>;

    /// A line of the worker's audit log. What the worker says after it is heard only when this returns.
    ///
    /// # Errors
    /// [`AuditError`]: it is not written down, and the connection ends.
    async fn audit(&self, line: &[u8]) -> Result<(), AuditError>;
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The channel broke.
    #[error("the channel to the enclave worker broke: {0}")]
    Channel(#[from] io::Error),
    /// It went before it said who it is.
    #[error("the enclave worker is gone before it said what it is")]
    Gone,
    /// It does not prove what it is. Not retryable.
    #[error(transparent)]
    NotBelieved(#[from] NotBelieved),
    /// Its answer is none.
    #[error("the enclave worker breaks the protocol")]
    Malformed,
    /// What it decides cannot be written down.
    #[error(transparent)]
    Unrecorded(#[from] AuditError),
    /// It cannot say who it is.
    #[error("the enclave worker cannot say what it is: {0}")]
    Failed(String),
}

/// A worker that has proved what it is.
pub struct Connection {
    asker: Asker,
    out: Outgoing,
    believed: Believed,
    signer: String,
    version: String,
    /// Ends the connection when it is dropped.
    _tasks: JoinSet<()>,
    gone: tokio::sync::watch::Receiver<bool>,
    unrecorded: Unrecorded,
}

/// Why a line of the worker's audit log was not written, once there is one: that ended the connection.
type Unrecorded = Arc<OnceLock<AuditError>>;

impl Connection {
    /// Asks who is at the other end, and believes only what `verifier` does. Nothing else is sent before.
    ///
    /// # Errors
    /// [`ConnectError`]
    pub async fn open<C>(
        channel: C,
        verifier: &dyn Verifier,
        catalogue: Arc<dyn Catalogue>,
        side: impl FnOnce(Outgoing) -> Arc<dyn Side>,
    ) -> Result<Self, ConnectError>
    where
        C: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (from, to) = tokio::io::split(channel);
        let (out, queue) = Outgoing::new();
        let asker = Asker::new(out.clone());
        let (ended, gone) = tokio::sync::watch::channel(false);
        let mut tasks = JoinSet::new();
        let unrecorded = Unrecorded::default();
        let reading = Reading {
            asker: asker.clone(),
            out: out.clone(),
            catalogue,
            side: side(out.clone()),
            unrecorded: Arc::clone(&unrecorded),
            standing: Arc::default(),
        };
        let (side, standing) = (Arc::clone(&reading.side), Arc::clone(&reading.standing));
        tasks.spawn(async move {
            // Whichever ends first ends both.
            tokio::select! {
                read = reading.read(from) => log_end(read),
                written = write_frames(queue, to) => log_end(written),
            }
            reading.asker.close();
            let _ = ended.send(true);
        });
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|error| ConnectError::Failed(error.to_string()))?;
        let answered = asker
            .ask(Kind::Hello, Hello { nonce }.to_body())
            .await
            .map_err(|Gone| match unrecorded.get() {
                Some(error) => ConnectError::Unrecorded(error.clone()),
                None => ConnectError::Gone,
            })?;
        if answered.kind == Kind::Failure {
            let failure = Failure::read(&answered.body).map_err(|Malformed| ConnectError::Malformed)?;
            return Err(ConnectError::Failed(failure.reason));
        }
        let hello = HelloAnswer::read(&answered.body).map_err(|Malformed| ConnectError::Malformed)?;
        let believed = verifier.verify(&hello.evidence, &nonce, &signer_user_data(&hello.signer))?;
        // From here on it is served. What it has said of its decisions is written down first.
        let mut standing = standing.lock().await;
        for line in std::mem::take(&mut standing.early) {
            side.audit(&line.body).await.map_err(ConnectError::Unrecorded)?;
        }
        standing.is_believed = true;
        drop(standing);
        Ok(Self {
            asker,
            out,
            believed,
            signer: hello.signer,
            version: hello.version,
            _tasks: tasks,
            gone,
            unrecorded,
        })
    }

    /// What its evidence proved.
    #[must_use]
    pub fn believed(&self) -> &Believed {
        &self.believed
    }

    /// The thumbprint of the key by which it signs.
    #[must_use]
    pub fn signer(&self) -> &str {
        &self.signer
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether it has hung up.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Why a line of its audit log was not written, if that is what ended the connection.
    #[must_use]
    pub fn unrecorded(&self) -> Option<&AuditError> {
        self.unrecorded.get()
    }

    /// Waits until it has hung up.
    pub async fn ended(&self) {
        let mut gone = self.gone.clone();
        // An error: whoever would say so is gone too.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Hands credentials over.
    ///
    /// # Errors
    /// [`Gone`]
    pub async fn credentials(&self, credentials: &Credentials) -> Result<(), Gone> {
        self.out
            .send(Frame::new(Kind::Credentials, 0, credentials.to_body()))
            .await
    }

    /// How it is.
    ///
    /// # Errors
    /// [`EnclaveError`]
    pub async fn status(&self) -> Result<Status, EnclaveError> {
        let answer = self.ask(Kind::Status, Vec::new()).await?;
        Status::read(&answer.body).map_err(malformed)
    }

    /// Has columns sealed again.
    ///
    /// # Errors
    /// [`EnclaveError`]
    pub async fn reseal(&self, batch: &ClientBatch) -> Result<Vec<ResealedColumn>, EnclaveError> {
        let answer = self.ask(Kind::Reseal, job(batch)).await?;
        let parsed = ResealAnswer::read(&answer.body).map_err(malformed)?;
        let lengths = batch.columns.iter().map(|column| column.keys.len());
        if parsed.columns.len() != batch.columns.len()
            || !parsed.columns.iter().map(|part| part.values.len()).eq(lengths)
        {
            return Err(malformed(Malformed));
        }
        parsed.columns.iter().map(resealed).collect()
    }

    /// Evidence with a nonce of somebody else's, which binds the key by which the worker signs: they verify it.
    ///
    /// # Errors
    /// [`EnclaveError`]
    pub async fn evidence(&self, nonce: [u8; 32]) -> Result<Vec<u8>, EnclaveError> {
        let answer = self.ask(Kind::Hello, Hello { nonce }.to_body()).await?;
        let hello = HelloAnswer::read(&answer.body).map_err(malformed)?;
        match hello.signer == self.signer {
            true => Ok(hello.evidence),
            false => Err(malformed(Malformed)),
        }
    }

    /// Has values opened for a reader: the body of the answer.
    ///
    /// # Errors
    /// [`EnclaveError`]
    pub async fn read(&self, job: &ReadJob<'_>) -> Result<Frame, EnclaveError> {
        self.ask(Kind::Read, job.to_body()).await
    }

    /// Has the worker vouch for what clients of a dataset seal to: the document. Whether it is believed, who publishes it looks.
    ///
    /// # Errors
    /// [`EnclaveError`]
    pub async fn client_keys(&self, dataset: &str) -> Result<String, EnclaveError> {
        let answer = self.ask(Kind::ClientKeys, ClientKeysJob { dataset }.to_body()).await?;
        let answer = ClientKeysAnswer::read(&answer.body).map_err(malformed)?;
        Ok(answer.document.to_owned())
    }

    /// Has the worker make a pair that clients seal to: a [`PairAnswer`].
    ///
    /// # Errors
    /// [`EnclaveError`]
    pub async fn make_pair(&self, job: &PairJob<'_>) -> Result<Frame, EnclaveError> {
        let answer = self.ask(Kind::MakePair, job.to_body()).await?;
        PairAnswer::read(&answer.body).map_err(malformed)?;
        Ok(answer)
    }

    async fn ask(&self, kind: Kind, body: impl Into<Zeroizing<Vec<u8>>>) -> Result<Frame, EnclaveError> {
        let body = body.into();
        // No frame takes it, however often it is tried.
        if body.len() > MAX_BODY {
            let reason = format!(
                "{} bytes are more than its channel takes at once: make batches smaller",
                body.len()
            );
            return Err(EnclaveError::Refused { reason });
        }
        let answer = self
            .asker
            .ask(kind, body)
            .await
            .map_err(|Gone| match self.unrecorded() {
                Some(error) => EnclaveError::Unrecorded {
                    reason: error.to_string(),
                },
                None => EnclaveError::Unavailable {
                    reason: "it is gone".to_owned(),
                },
            })?;
        if answer.kind != Kind::Failure {
            return Ok(answer);
        }
        let failure = Failure::read(&answer.body).map_err(malformed)?;
        let reason = failure.reason;
        Err(match failure.kind {
            FailureKind::Unavailable => EnclaveError::Unavailable { reason },
            FailureKind::Refused => EnclaveError::Refused { reason },
            FailureKind::BadRequest => EnclaveError::BadAnswer { reason },
        })
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("believed", &self.believed)
            .finish_non_exhaustive()
    }
}

fn log_end(ended: io::Result<()>) {
    if let Err(error) = ended {
        tracing::warn!(%error, "the channel to the enclave worker broke");
    }
}

fn malformed(_: Malformed) -> EnclaveError {
    EnclaveError::BadAnswer {
        reason: "not an answer of this protocol".to_owned(),
    }
}

/// What a peer is at the moment: until it is believed nothing is done for it.
#[derive(Default)]
struct Standing {
    is_believed: bool,
    /// Lines of its audit log until then.
    early: Vec<Frame>,
}

/// The reading end of a connection.
struct Reading {
    asker: Asker,
    out: Outgoing,
    catalogue: Arc<dyn Catalogue>,
    side: Arc<dyn Side>,
    unrecorded: Unrecorded,
    standing: Arc<tokio::sync::Mutex<Standing>>,
}

impl Reading {
    async fn read(&self, mut from: impl AsyncRead + Unpin) -> io::Result<()> {
        let broken = || io::Error::new(io::ErrorKind::InvalidData, Malformed);
        let questions = Arc::new(Semaphore::new(MAX_QUESTIONS));
        let mut answering = JoinSet::new();
        while let Some(frame) = read_frame(&mut from).await? {
            // Those that are done.
            while answering.try_join_next().is_some() {}
            let mut standing = self.standing.lock().await;
            if !standing.is_believed {
                match frame.kind {
                    Kind::Answer | Kind::Failure => {}
                    Kind::Audit if standing.early.len() < MAX_EARLY_LINES && frame.body.len() <= MAX_EARLY_LINE => {
                        standing.early.push(frame);
                        continue;
                    }
                    _ => return Err(broken()),
                }
            }
            drop(standing);
            match frame.kind {
                Kind::Answer | Kind::Failure => {
                    let sequence = frame.sequence;
                    if !self.asker.answered(frame) && !self.asker.was_asked(sequence) {
                        return Err(broken());
                    }
                }
                Kind::Catalogue => {
                    let question = CatalogueQuestion::read(&frame.body).map_err(|Malformed| broken())?;
                    let Ok(permit) = Arc::clone(&questions).try_acquire_owned() else {
                        return Err(broken());
                    };
                    let (catalogue, out, sequence) = (Arc::clone(&self.catalogue), self.out.clone(), frame.sequence);
                    answering.spawn(async move {
                        let said = answer(&*catalogue, question).await;
                        let _ = out
                            .send(Frame::new(Kind::CatalogueAnswer, sequence, said.to_body()))
                            .await;
                        drop(permit);
                    });
                }
                Kind::Relay => self.side.relay(&frame.body).await.map_err(|Malformed| broken())?,
                // Frames come in order: what is decided is written down before its answer is taken.
                Kind::Audit => {
                    if let Err(error) = self.side.audit(&frame.body).await {
                        let said = io::Error::other(error.to_string());
                        // Before anybody hears that the worker is gone. There is one such error: it ends this.
                        let _ = self.unrecorded.set(error);
                        return Err(said);
                    }
                }
                _ => return Err(broken()),
            }
        }
        Ok(())
    }
}

fn job(batch: &ClientBatch) -> Zeroizing<Vec<u8>> {
    let policy = batch.policy.policy();
    let sessions: usize = batch.sessions.iter().map(|session| session.len() + 4).sum();
    let columns: usize = batch.columns.iter().map(room).sum();
    let mut job = JobWriter::new(
        &policy.dataset,
        &policy.sha256,
        &batch.sessions,
        batch.columns.len(),
        sessions + columns,
    );
    for column in &batch.columns {
        write(column.values.view(), job.column(&column.label, column.is_json));
        let keys = column.keys.iter().map(|key| match key {
            ValueKey::Clear => KEY_CLEAR,
            ValueKey::Own => KEY_OWN,
            ValueKey::Session(number) => KEY_FIRST_SESSION.saturating_add(*number),
        });
        let body = job.keys(keys);
        body.option(column.rows.as_ref().map(PlainColumn::view), |body, rows| {
            write(rows, body);
        });
    }
    job.finish()
}

fn room(column: &ClientColumn) -> usize {
    let rows = column
        .rows
        .as_ref()
        .map_or(0, |rows| rows.byte_len() + column.keys.len() * 5);
    column.values.byte_len() + column.keys.len() * 9 + rows + column.label.len() + 64
}

fn write(column: ByteColumn<'_>, to: &mut sealflow_enclave_protocol::wire::Writer) {
    let (validity, offsets, bytes) = column.parts();
    WireColumn::write(validity, offsets, bytes, to);
}

fn resealed(part: &SealedPart<'_>) -> Result<ResealedColumn, EnclaveError> {
    let view = ByteColumn::new(part.values.validity, &part.values.offsets, part.values.bytes);
    let view = view.map_err(|_| malformed(Malformed))?;
    let refused: Option<Vec<(u32, ValueRefusal)>> = part
        .refused
        .iter()
        .map(|(number, why)| {
            let why = match why {
                1 => ValueRefusal::CannotOpen,
                2 => ValueRefusal::NotJson,
                _ => return None,
            };
            Some((*number, why))
        })
        .collect();
    let refused = refused.ok_or_else(|| malformed(Malformed))?;
    let mut values = SealedColumn::with_capacity(view.len(), view.value_bytes());
    let mut nulls = refused.iter().map(|(number, _)| *number as usize).peekable();
    for (n, value) in view.iter().enumerate() {
        // Null exactly where a value was refused: else one would be lost.
        let is_refused = nulls.next_if_eq(&n).is_some();
        let pushed = match value {
            Some(value) if !is_refused => values.push(value),
            None if is_refused => values.push_null(),
            _ => return Err(malformed(Malformed)),
        };
        pushed.map_err(|_| malformed(Malformed))?;
    }
    Ok(ResealedColumn {
        values,
        refused,
        key: KeyId::from_bytes(part.key),
        envelope: part.envelope.to_vec(),
    })
}
