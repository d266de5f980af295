//! The writer: one thread that makes lines of what all callers record, and writes them in groups, one sync per group.

use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use sealflow::audit::{AuditError, AuditLog, Event, InstanceId, Journal, Lines, Sealing};
use sealflow::clock::Clock;
use sealflow::jose::JwsError;
use tokio::sync::{mpsc, oneshot};

use crate::file::{Appended, Checkpoints, LogFile};

/// Calls that wait at most; more wait before they are taken.
const MAX_WAITING: usize = 1_024;
/// Events of one group at most, so that its lines stay in memory.
const MAX_GROUP: usize = 8_192;
/// How often it is looked whether a checkpoint is due by time.
const TICK: Duration = Duration::from_millis(250);

/// A place for lines that this crate does not know itself: a topic.
pub trait LineSink: Send {
    /// What it is called in messages.
    fn name(&self) -> String;

    /// Writes the lines, in order, and returns when they are durable. Blocks.
    ///
    /// # Errors
    /// [`AuditError`]. Nobody knows then how much of it arrived, so nothing more is written after it.
    fn append(&mut self, lines: &[String]) -> Result<(), AuditError>;
}

/// Where lines go.
pub(crate) enum Output {
    File(LogFile),
    Stdout,
    Elsewhere(Box<dyn LineSink>),
}

enum Request {
    Record(Vec<Event>, oneshot::Sender<Result<(), AuditError>>),
    Close(oneshot::Sender<Result<(), AuditError>>),
}

/// An open audit log.
pub(crate) struct Writer {
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    to: String,
}

impl Writer {
    /// Writes the first lines, and starts the thread.
    pub(crate) fn start(
        output: Output,
        checkpoints: Checkpoints,
        name: Option<String>,
        sealing: Sealing,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuditError> {
        let now = clock.now();
        let (sink, begun) = match output {
            Output::File(log) => {
                checkpoints.check(&log)?;
                let begun = match &log.last {
                    Some((line, text)) => Journal::resume(line, text, name, log.dropped, sealing, now),
                    None => Journal::start(InstanceId::random()?, name, sealing, now),
                };
                (Sink::File(log.file), begun)
            }
            Output::Stdout => (Sink::Stdout, Journal::start(InstanceId::random()?, name, sealing, now)),
            Output::Elsewhere(sink) => (
                Sink::Elsewhere(sink),
                Journal::start(InstanceId::random()?, name, sealing, now),
            ),
        };
        let to = sink.to();
        let (journal, first) = begun.map_err(|error| unsigned(&to, &error))?;
        let mut chain = Chain {
            journal,
            sink,
            checkpoints: checkpoints.file,
            clock,
            to: to.clone(),
            dead: None,
        };
        chain.write(&first)?;
        let (sender, requests) = mpsc::channel(MAX_WAITING);
        let failed = |error: io::Error| AuditError::Closed {
            to: to.clone(),
            reason: error.to_string(),
        };
        // A runtime of its own: syncing a disk blocks, and callers' runtimes come and go.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(failed)?;
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || runtime.block_on(chain.serve(requests)))
            .map_err(failed)?;
        Ok(Self {
            requests: Mutex::new(Some(sender)),
            thread: Mutex::new(Some(thread)),
            to,
        })
    }

    fn sender(&self) -> Option<mpsc::Sender<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn ask(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<(), AuditError>>) -> Request,
    ) -> Result<(), AuditError> {
        let closed = || AuditError::Closed {
            to: self.to.clone(),
            reason: "it was closed".to_owned(),
        };
        let sender = self.sender().ok_or_else(closed)?;
        let (answer, answered) = oneshot::channel();
        sender.send(request(answer)).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }
}

#[async_trait]
impl AuditLog for Writer {
    async fn record(&self, events: Vec<Event>) -> Result<(), AuditError> {
        if events.is_empty() {
            return Ok(());
        }
        self.ask(|answer| Request::Record(events, answer)).await
    }

    async fn close(&self) -> Result<(), AuditError> {
        let ended = self.ask(Request::Close).await;
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).take();
        ended
    }
}

impl Drop for Writer {
    /// Ends the log with a checkpoint, as `close` does, but nobody hears whether that worked.
    fn drop(&mut self) {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

enum Sink {
    File(Appended),
    Stdout,
    Elsewhere(Box<dyn LineSink>),
}

impl Sink {
    fn to(&self) -> String {
        match self {
            Self::File(file) => file.name(),
            Self::Stdout => "standard output".to_owned(),
            Self::Elsewhere(sink) => sink.name(),
        }
    }

    /// Whether it is known after a failure that nothing of it stayed.
    fn is_all_or_nothing(&self) -> bool {
        matches!(self, Self::File(_))
    }

    fn append(&mut self, lines: &[String]) -> Result<(), AuditError> {
        match self {
            Self::File(file) => file.append(&text(lines)),
            Self::Elsewhere(sink) => sink.append(lines),
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                let written = stdout.write_all(text(lines).as_bytes()).and_then(|()| stdout.flush());
                written.map_err(|error| AuditError::Write {
                    to: self.to(),
                    reason: error.to_string(),
                })
            }
        }
    }
}

/// What the thread works on.
struct Chain {
    journal: Journal,
    sink: Sink,
    checkpoints: Appended,
    clock: Arc<dyn Clock>,
    to: String,
    dead: Option<String>,
}

impl Chain {
    async fn serve(mut self, mut requests: mpsc::Receiver<Request>) {
        loop {
            let Ok(request) = tokio::time::timeout(TICK, requests.recv()).await else {
                // A checkpoint that cannot be written is tried again, and the next call of `record` says why.
                let _ = self.step(Journal::tick);
                continue;
            };
            let Some(request) = request else { break };
            let (mut events, mut waiting, mut closing) = (Vec::new(), Vec::new(), None);
            let mut next = Some(request);
            while let Some(request) = next.take() {
                match request {
                    Request::Record(more, answer) => {
                        events.extend(more);
                        waiting.push(answer);
                    }
                    Request::Close(answer) => closing = Some(answer),
                }
                if closing.is_none() && events.len() < MAX_GROUP {
                    next = requests.try_recv().ok();
                }
            }
            if !waiting.is_empty() {
                let done = self.step(|journal, now| journal.append(events, now));
                for answer in waiting {
                    // Whoever does not wait any more has answered nothing.
                    let _ = answer.send(done.clone());
                }
            }
            if let Some(answer) = closing {
                let _ = answer.send(self.step(Journal::end));
                return;
            }
        }
        let _ = self.step(Journal::end);
    }

    /// Makes lines and writes them; if that fails, the chain stands where it stood.
    fn step(
        &mut self,
        make: impl FnOnce(&mut Journal, sealflow::clock::UnixMillis) -> Result<Lines, JwsError>,
    ) -> Result<(), AuditError> {
        let before = self.journal.clone();
        let lines = make(&mut self.journal, self.clock.now()).map_err(|error| unsigned(&self.to, &error))?;
        let written = self.write(&lines);
        if written.is_err() {
            self.journal = before;
        }
        written
    }

    fn write(&mut self, lines: &Lines) -> Result<(), AuditError> {
        if let Some(reason) = &self.dead {
            return Err(AuditError::Closed {
                to: self.to.clone(),
                reason: reason.clone(),
            });
        }
        if lines.is_empty() {
            return Ok(());
        }
        let appended = self.sink.append(&lines.lines);
        if !self.sink.is_all_or_nothing() && appended.is_err() {
            // How much of it arrived nobody knows, so that the chain cannot go on.
            self.dead = Some("an earlier line may have been written in part".to_owned());
        }
        appended?;
        if !lines.checkpoints.is_empty()
            && let Err(error) = self.checkpoints.append(&text(&lines.checkpoints))
        {
            // The lines are durable, so the chain must not go back to before them.
            self.dead = Some(format!("a checkpoint could not be put in its second place: {error}"));
            return Err(error);
        }
        Ok(())
    }
}

fn text(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
}

fn unsigned(to: &str, error: &JwsError) -> AuditError {
    AuditError::Closed {
        to: to.to_owned(),
        reason: error.to_string(),
    }
}
