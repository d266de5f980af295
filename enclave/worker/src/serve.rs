//! The worker's side of the channel: takes frames, does what they ask, and says nothing of what it saw but what was asked for.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sealflow::clock::Clock;
use sealflow::flow::enclave::{ColumnIn, EnclaveError, ResealedColumn, Resealer, ValueKey, ValueRefusal};
use sealflow::jose::PrivateJwk;
use sealflow::seal::ByteColumn;
use sealflow_enclave_protocol::column::WireColumn;
use sealflow_enclave_protocol::frame::{Frame, Kind, MAX_BODY};
use sealflow_enclave_protocol::joints::{Attester, Claims};
use sealflow_enclave_protocol::link::{Asker, Gone, Outgoing, read_frame};
use sealflow_enclave_protocol::message::{
    ClientKeysJob, Credentials, Failure, FailureKind, Hello, HelloAnswer, JobColumn, KEY_CLEAR, KEY_FIRST_SESSION,
    KEY_OWN, PairJob, ReadJob, ResealJob, SealedPart, Status, signer_user_data,
};
use sealflow_enclave_protocol::wire::{Malformed, Writer};
use tokio::io::AsyncRead;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::read::{Audit, Reading};
use crate::vouch::Vouching;

/// Jobs that are worked on at a time; others are told to come again.
const MAX_JOBS: usize = 32;
/// Bytes of jobs that are worked on at a time, in KiB.
const MAX_JOB_KIB: usize = 256 << 10;

/// Hosts say something each minute. Whoever has said nothing for so long is gone, and its place is another's.
const SILENCE: Duration = Duration::from_secs(600);

/// Takes what the host says besides questions.
pub trait Side: Send + Sync {
    /// Credentials to sign requests to KMS with.
    fn credentials(&self, credentials: Credentials);

    /// A message of a relayed connection.
    ///
    /// # Errors
    /// [`Malformed`]: the channel is of no use any more.
    fn relay(&self, body: &[u8]) -> Result<(), Malformed>;

    /// Requests to KMS so far.
    fn kms_requests(&self) -> u64;
}

/// What a worker is made of.
pub struct Parts {
    /// Opens and seals again.
    pub resealer: Resealer,
    /// Opens for readers.
    pub reading: Reading,
    /// Vouches for what clients seal to.
    pub vouching: Vouching,
    /// What it decides is written down here.
    pub audit: Audit,
    /// Says what this program is.
    pub attester: Arc<dyn Attester>,
    /// Signs answers and audit lines.
    pub signer: Arc<PrivateJwk>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Credentials and relayed connections.
    pub side: Arc<dyn Side>,
    /// Questions to the host.
    pub asker: Asker,
    /// Frames to the host.
    pub out: Outgoing,
}

/// Room for jobs. Workers of one process share theirs: what they hold of memory is bounded together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Room {
    jobs: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            jobs: Arc::new(Semaphore::new(MAX_JOBS)),
            bytes: Arc::new(Semaphore::new(MAX_JOB_KIB)),
        }
    }
}

/// A worker that answers.
pub struct Worker {
    parts: Parts,
    room: Room,
    values: AtomicU64,
    refused: AtomicU64,
    /// Held while lines of the audit log go out: their order is that of the chain.
    recording: Mutex<()>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}

/// A question that is being worked on. If that panics it is answered all the same: its host waits.
struct Asked {
    worker: Arc<Worker>,
    sequence: u64,
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let (worker, sequence) = (Arc::clone(&self.worker), self.sequence);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let failure = Failure {
                    kind: FailureKind::Refused,
                    reason: "the worker panicked; its standard error says where".to_owned(),
                };
                worker.answer(sequence, Err(failure)).await;
            });
        }
    }
}

/// KiB that a job takes: it, and what is answered. A sealed value of some bytes is answered by a JWE of several hundred.
fn room(frame: &Frame) -> u32 {
    let times = match frame.kind {
        Kind::Read => 12,
        _ => 2,
    };
    let kib = (frame.body.len() / 1_024 + 1).saturating_mul(times).min(MAX_JOB_KIB);
    u32::try_from(kib).unwrap_or(u32::MAX)
}

/// The most memory that this process has held, in bytes; 0 where the system does not say.
fn most_memory() -> u64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    let kib = usage.map_or(0, |usage| usage.max_rss());
    u64::try_from(kib).unwrap_or(0) * 1_024
}

impl Worker {
    /// Of these parts.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        Self::in_room(parts, Room::default())
    }

    /// Of these parts, in a room that it may share.
    #[must_use]
    pub fn in_room(parts: Parts, room: Room) -> Arc<Self> {
        Arc::new(Self {
            parts,
            room,
            values: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            recording: Mutex::new(()),
        })
    }

    /// Answers until the host hangs up, or says nothing any more. What it was asked and has not answered ends then: nobody is left to tell.
    ///
    /// # Errors
    /// Those of the channel, and whatever is no frame: the worker ends then.
    pub async fn serve(self: Arc<Self>, mut from: impl AsyncRead + Unpin) -> io::Result<()> {
        // Numbers of the host's questions only grow: what is played again is refused.
        let mut last = 0;
        let mut running = JoinSet::new();
        let served = loop {
            // Those that are done.
            while running.try_join_next().is_some() {}
            let frame = match tokio::time::timeout(SILENCE, read_frame(&mut from)).await {
                Ok(Ok(Some(frame))) => frame,
                Ok(Ok(None)) => break Ok(()),
                Ok(Err(error)) => break Err(error),
                Err(_) => break Err(io::ErrorKind::TimedOut.into()),
            };
            if let Err(Malformed) = self.take(frame, &mut last, &mut running).await {
                break Err(io::Error::new(io::ErrorKind::InvalidData, Malformed));
            }
        };
        self.parts.asker.close();
        served
    }

    async fn take(self: &Arc<Self>, frame: Frame, last: &mut u64, running: &mut JoinSet<()>) -> Result<(), Malformed> {
        match frame.kind {
            Kind::Credentials => {
                self.parts.side.credentials(Credentials::read(&frame.body)?);
                Ok(())
            }
            Kind::Relay => self.parts.side.relay(&frame.body),
            Kind::CatalogueAnswer => {
                let sequence = frame.sequence;
                match self.parts.asker.answered(frame) || self.parts.asker.was_asked(sequence) {
                    true => Ok(()),
                    false => Err(Malformed),
                }
            }
            Kind::Hello | Kind::Reseal | Kind::Read | Kind::Status | Kind::ClientKeys | Kind::MakePair
                if frame.sequence > *last =>
            {
                *last = frame.sequence;
                self.start(frame, running).await;
                Ok(())
            }
            _ => Err(Malformed),
        }
    }

    /// Works on a question in a task of its own, if there is room.
    async fn start(self: &Arc<Self>, frame: Frame, running: &mut JoinSet<()>) {
        let kib = room(&frame);
        let job = Arc::clone(&self.room.jobs).try_acquire_owned();
        let bytes = Arc::clone(&self.room.bytes).try_acquire_many_owned(kib);
        let (Ok(job), Ok(bytes)) = (job, bytes) else {
            let busy = Failure {
                kind: FailureKind::Unavailable,
                reason: "the worker has enough to do".to_owned(),
            };
            self.answer(frame.sequence, Err(busy)).await;
            return;
        };
        let worker = Arc::clone(self);
        running.spawn(async move {
            let sequence = frame.sequence;
            let asked = Asked {
                worker: Arc::clone(&worker),
                sequence,
            };
            let answer = worker.work(&frame).await;
            drop(asked);
            // Wiped before it is answered.
            drop(frame);
            worker.answer(sequence, answer).await;
            drop((job, bytes));
        });
    }

    async fn answer(&self, sequence: u64, answer: Result<Zeroizing<Vec<u8>>, Failure>) {
        let frame = match answer {
            // No frame takes it: the host would ask for ever.
            Ok(body) if body.len() > MAX_BODY => {
                let failure = Failure {
                    kind: FailureKind::Refused,
                    reason: format!(
                        "the answer has {} bytes, more than the channel takes: ask for fewer values",
                        body.len()
                    ),
                };
                Frame::new(Kind::Failure, sequence, failure.to_body())
            }
            Ok(body) => Frame::new(Kind::Answer, sequence, body),
            Err(failure) => Frame::new(Kind::Failure, sequence, failure.to_body()),
        };
        // Nobody is left to tell if the host is gone.
        let _ = self.parts.out.send(frame).await;
    }

    async fn work(&self, frame: &Frame) -> Result<Zeroizing<Vec<u8>>, Failure> {
        match frame.kind {
            Kind::Hello => self.hello(&Hello::read(&frame.body).map_err(bad_request)?),
            Kind::Reseal => self.reseal(&frame.body).await,
            Kind::Read => self.read(&frame.body).await,
            Kind::ClientKeys => {
                let job = ClientKeysJob::read(&frame.body).map_err(bad_request)?;
                self.parts.vouching.client_keys(&job).await
            }
            Kind::MakePair => {
                let job = PairJob::read(&frame.body).map_err(bad_request)?;
                self.parts.vouching.make_pair(&job).await
            }
            _ => Ok(self.status().to_body()),
        }
    }

    fn hello(&self, hello: &Hello) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let signer = self.parts.signer.thumbprint().to_string();
        let user_data = signer_user_data(&signer);
        let claims = Claims {
            public_key: None,
            user_data: Some(&user_data),
            nonce: Some(&hello.nonce),
        };
        let evidence = self.parts.attester.attest(&claims).map_err(|error| Failure {
            kind: FailureKind::Unavailable,
            reason: error.to_string(),
        })?;
        let answer = HelloAnswer {
            evidence,
            signer,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok(answer.to_body())
    }

    fn status(&self) -> Status {
        Status {
            now_ms: self.parts.clock.now().0,
            kms_requests: self.parts.side.kms_requests(),
            values: self.values.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            memory: most_memory(),
        }
    }

    async fn reseal(&self, body: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let job = ResealJob::read(body).map_err(bad_request)?;
        let keys = job.columns.iter().map(|column| keys(column, job.sessions.len()));
        let keys: Vec<Vec<ValueKey>> = keys.collect::<Result<_, _>>().map_err(bad_request)?;
        let columns = job
            .columns
            .iter()
            .zip(&keys)
            .map(|(column, keys)| column_in(column, keys));
        let columns: Vec<ColumnIn<'_>> = columns.collect::<Result<_, _>>().map_err(bad_request)?;
        let sealed = self
            .parts
            .resealer
            .columns((job.dataset, &job.policy), &job.sessions, &columns)
            .await;
        let sealed = sealed.map_err(failure)?;
        let values: usize = sealed.iter().map(|column| column.values.view().len()).sum();
        let refused: usize = sealed.iter().map(|column| column.refused.len()).sum();
        self.values.fetch_add((values - refused) as u64, Ordering::Relaxed);
        self.refused.fetch_add(refused as u64, Ordering::Relaxed);
        let room = sealed
            .iter()
            .map(|column| column.values.view().value_bytes() + column.values.view().len() * 5 + 5_000);
        let mut answer = Writer::with_room(room.sum());
        answer.count(sealed.len());
        for column in &sealed {
            part(column).write(&mut answer);
        }
        Ok(answer.finish())
    }
}

impl Worker {
    /// Opens for a reader. Every decision goes to the host before the answer does.
    async fn read(&self, body: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let job = ReadJob::read(body).map_err(bad_request)?;
        let (answer, events) = match self.parts.reading.read(&job).await {
            Ok(read) => (Ok(read.body), read.events),
            Err((failure, events)) => (Err(failure), events),
        };
        let recording = self.recording.lock().await;
        for line in self.parts.audit.lines(events, &*self.parts.clock)? {
            let frame = Frame::new(Kind::Audit, 0, line.into_bytes());
            self.parts.out.send(frame).await.map_err(|Gone| Failure {
                kind: FailureKind::Unavailable,
                reason: "the host is gone".to_owned(),
            })?;
        }
        drop(recording);
        answer
    }
}

fn keys(column: &JobColumn<'_>, sessions: usize) -> Result<Vec<ValueKey>, Malformed> {
    let key = |key: &u32| match *key {
        KEY_CLEAR => Ok(ValueKey::Clear),
        KEY_OWN => Ok(ValueKey::Own),
        number => {
            let session = number - KEY_FIRST_SESSION;
            let is_there = usize::try_from(session).is_ok_and(|session| session < sessions);
            is_there.then_some(ValueKey::Session(session)).ok_or(Malformed)
        }
    };
    column.keys.iter().map(key).collect()
}

fn column_in<'a>(column: &'a JobColumn<'_>, keys: &'a [ValueKey]) -> Result<ColumnIn<'a>, Malformed> {
    Ok(ColumnIn {
        label: column.label,
        is_json: column.is_json,
        values: bytes_of(&column.values)?,
        keys,
        rows: column.rows.as_ref().map(bytes_of).transpose()?,
    })
}

fn bytes_of<'a>(column: &'a WireColumn<'_>) -> Result<ByteColumn<'a>, Malformed> {
    ByteColumn::new(column.validity, &column.offsets, column.bytes).map_err(|_| Malformed)
}

fn part(column: &ResealedColumn) -> SealedPart<'_> {
    let (validity, offsets, bytes) = column.values.view().parts();
    let why = |refusal: ValueRefusal| match refusal {
        ValueRefusal::CannotOpen => 1,
        ValueRefusal::NotJson => 2,
    };
    SealedPart {
        values: WireColumn {
            validity,
            offsets: offsets.to_vec(),
            bytes,
        },
        refused: column
            .refused
            .iter()
            .map(|(number, refusal)| (*number, why(*refusal)))
            .collect(),
        key: *column.key.as_bytes(),
        envelope: &column.envelope,
    }
}

fn bad_request(_: Malformed) -> Failure {
    Failure {
        kind: FailureKind::BadRequest,
        reason: Malformed.to_string(),
    }
}

fn failure(error: EnclaveError) -> Failure {
    match error {
        EnclaveError::Unavailable { reason } => Failure {
            kind: FailureKind::Unavailable,
            reason,
        },
        EnclaveError::Refused { reason } | EnclaveError::BadAnswer { reason } => Failure {
            kind: FailureKind::Refused,
            reason,
        },
        other => Failure {
            kind: FailureKind::Refused,
            reason: other.to_string(),
        },
    }
}
