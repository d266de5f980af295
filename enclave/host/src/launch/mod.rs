//! Starts a worker in the software tier: measures its image, has the software NSM speak for it, and keeps watch until it ends.
//!
//! Four processes: the host; the *starter*, which goes into new namespaces and waits there for the worker; the *worker*; the
//! *software NSM*, which holds the key of the development root. The host measures what is in a sealed memory file and the starter
//! executes that very file, so that what runs is what was measured. The worker never says what it is itself.
//!
//! Decision 54 says what this proves, and what it does not: root on this machine can do whatever it likes.

mod image;
mod namespaces;
mod rights;
mod starter;
mod stderr;
mod watch;

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sealflow_enclave_protocol::image::ImageError;
use sealflow_enclave_protocol::measurements::Measurement;
use sealflow_enclave_protocol::nsm::{Registered, Registration};

use crate::exchange;

pub use image::measurement;
pub use starter::main as starter_main;
pub use stderr::{Lines, MOST_LINE, MOST_LINES, Source};
pub use watch::{Exit, Worker};

/// How long the NSM and the starter may take to be ready. Each needs milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a worker does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// Its image cannot be read.
    #[error("the enclave worker's image {path} cannot be read: {source}")]
    Unreadable {
        /// Where it should be.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
    /// It is no image.
    #[error("{path} is no image of an enclave worker: {source}")]
    Image {
        /// Which file.
        path: PathBuf,
        /// What it lacks.
        source: ImageError,
    },
    /// The system refuses what the launcher needs.
    #[error("the enclave worker cannot be started: {step} failed: {source}")]
    System {
        /// Which step.
        step: &'static str,
        /// How.
        source: io::Error,
    },
    /// A program of the launcher's is not there, or ends at once.
    #[error("the enclave worker cannot be started: {program} {what}")]
    Program {
        /// Which.
        program: PathBuf,
        /// What it did.
        what: String,
    },
    /// The software NSM does not speak for this image.
    #[error("the software NSM refuses to speak for the enclave worker: {reason}")]
    Nsm {
        /// Its words.
        reason: String,
    },
    /// The worker would run without namespaces of its own.
    #[error("the enclave worker cannot be isolated: {reason}")]
    Isolation {
        /// What is missing, and what would mend it.
        reason: String,
    },
    /// The image cannot be executed.
    #[error("the enclave worker's image cannot be executed: {reason}")]
    Execute {
        /// What happened.
        reason: String,
    },
}

/// A program and what it is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments. Everybody on the machine can read them.
    pub arguments: Vec<OsString>,
}

/// How the software NSM is started: `sealflow enclave nsm --root-dir DIR`.
pub type NsmCommand = ProgramCommand;

/// Whether a worker runs without namespaces that the launcher made for it. Its own sandbox makes some too, if the machine lets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// It does not run.
    #[default]
    Required,
    /// It runs, and [`Worker::isolation`] says why they are missing.
    IfAvailable,
    /// It runs without, on purpose: to look at a worker with tools of one's own.
    Off,
}

/// Starts workers of one image, which was measured once: what changes on the disk later changes none of them.
pub struct Launcher {
    image: image::Image,
    nsm: NsmCommand,
    starter: ProgramCommand,
    isolation: Isolation,
    lines: Lines,
}

impl std::fmt::Debug for Launcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launcher")
            .field("nsm", &self.nsm)
            .field("starter", &self.starter)
            .finish_non_exhaustive()
    }
}

impl Launcher {
    /// Reads and measures an image. The starter is this program's own `enclave start`, unless said otherwise.
    ///
    /// # Errors
    /// [`LaunchError`] for an image that cannot be read, or is none.
    pub fn new(image: &Path, nsm: NsmCommand) -> Result<Self, LaunchError> {
        let image = image::Image::read(image)?;
        let own = std::env::current_exe().map_err(system("finding this program"))?;
        let starter = ProgramCommand {
            program: own,
            arguments: vec!["enclave".into(), "start".into()],
        };
        Ok(Self {
            image,
            nsm,
            starter,
            isolation: Isolation::default(),
            lines: stderr::to_log(),
        })
    }

    /// With another starter: a program whose `main` is [`starter_main`].
    #[must_use]
    pub fn with_starter(mut self, starter: ProgramCommand) -> Self {
        self.starter = starter;
        self
    }

    /// With another answer to machines without namespaces.
    #[must_use]
    pub fn with_isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// With somebody else who reads what worker and NSM write to standard error. The default is the log.
    #[must_use]
    pub fn with_lines(mut self, lines: Lines) -> Self {
        self.lines = lines;
        self
    }

    /// PCR0 of every worker that is started.
    #[must_use]
    pub fn measurement(&self) -> &Measurement {
        &self.image.measurement
    }

    /// Starts a worker, with a software NSM of its own. Blocks until it runs: some ten milliseconds.
    ///
    /// # Errors
    /// [`LaunchError`]. Nothing of it is left running then.
    pub fn launch(&self) -> Result<Worker, LaunchError> {
        match self.isolation {
            Isolation::Off => self.start(rights::PLAIN, Err("it is switched off".to_owned())),
            Isolation::Required => self.start(rights::ISOLATED, Ok(())),
            Isolation::IfAvailable => match self.start(rights::ISOLATED, Ok(())) {
                Err(LaunchError::Isolation { reason }) => {
                    tracing::warn!(reason, "the enclave worker runs without namespaces of its launcher");
                    self.start(rights::PLAIN, Err(reason))
                }
                started => started,
            },
        }
    }

    fn start(&self, order: u8, isolation: Result<(), String>) -> Result<Worker, LaunchError> {
        let pair = || UnixStream::pair().map_err(system("making a channel"));
        let (channel, workers_channel) = pair()?;
        let (nsm_socket, workers_nsm) = pair()?;
        let nsm = self.start_nsm(nsm_socket)?;
        let (control, starters_control) = pair()?;
        let mut starter = Guard(spawn(&self.starter, starters_control, Stdio::null())?);
        self.forward(Source::Worker, &mut starter);

        let descriptors = [workers_channel.as_fd(), workers_nsm.as_fd(), self.image.file.as_fd()];
        rights::send(&control, order, descriptors).map_err(|error| LaunchError::Program {
            program: self.starter.program.clone(),
            what: format!("does not take its orders as the starter ({error}): its `main` has to be `starter_main`"),
        })?;
        // What the host keeps of the worker is one end of the channel.
        drop((workers_channel, workers_nsm));
        let mut reports = watch::Reports::new(control, PATIENCE).map_err(system("listening to the starter"))?;
        let pid = self.started(reports.next())?;
        let processes = Processes {
            _starter: starter,
            _nsm: nsm,
        };
        watch::over(reports, pid, processes, channel, self.image.measurement, isolation)
    }

    fn started(&self, report: Option<String>) -> Result<u32, LaunchError> {
        let report = report.unwrap_or_default();
        let wrong = || LaunchError::Program {
            program: self.starter.program.clone(),
            what: "does not answer as the starter: its `main` has to be `starter_main`".to_owned(),
        };
        match report.split_once(' ') {
            Some(("started", pid)) => pid.parse().map_err(|_| wrong()),
            Some(("isolation", reason)) => Err(LaunchError::Isolation {
                reason: reason.to_owned(),
            }),
            Some(("execute", reason)) => Err(LaunchError::Execute {
                reason: reason.to_owned(),
            }),
            _ => Err(wrong()),
        }
    }

    fn start_nsm(&self, socket: UnixStream) -> Result<Nsm, LaunchError> {
        let (control, theirs) = UnixStream::pair().map_err(system("making a channel"))?;
        let mut process = Guard(spawn(
            &self.nsm,
            theirs,
            Stdio::from(std::os::fd::OwnedFd::from(socket)),
        )?);
        self.forward(Source::Nsm, &mut process);
        control
            .set_read_timeout(Some(PATIENCE))
            .map_err(system("waiting for the NSM"))?;
        let registration = Registration::Image(*self.image.measurement.as_bytes());
        let answer = exchange::write(&control, &registration).and_then(|()| exchange::read(&control));
        match answer {
            Ok(Registered::Done) => Ok(Nsm {
                _process: process,
                _control: control,
            }),
            Ok(Registered::Refused(reason)) => Err(LaunchError::Nsm { reason }),
            Err(error) => Err(LaunchError::Program {
                program: self.nsm.program.clone(),
                what: format!("does not answer as the software NSM ({error}); its log says why"),
            }),
        }
    }

    fn forward(&self, source: Source, process: &mut Guard) {
        if let Some(stderr) = process.0.stderr.take() {
            stderr::forward(source, stderr, Arc::clone(&self.lines));
        }
    }
}

/// What runs besides a worker, and ends with it.
#[derive(Debug)]
struct Processes {
    _starter: Guard,
    _nsm: Nsm,
}

/// The software NSM of one worker. It ends with its control socket.
#[derive(Debug)]
struct Nsm {
    _process: Guard,
    _control: UnixStream,
}

/// A process that does not outlive who waits for it.
#[derive(Debug)]
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail only for a process that has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(command: &ProgramCommand, stdin: UnixStream, stdout: Stdio) -> Result<Child, LaunchError> {
    Command::new(&command.program)
        .args(&command.arguments)
        // Neither secrets nor LD_PRELOAD of the host's.
        .env_clear()
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(stdin)))
        .stdout(stdout)
        .stderr(Stdio::piped())
        // A terminal's Ctrl-C is for the host, which then ends the worker in order.
        .process_group(0)
        .spawn()
        .map_err(|error| LaunchError::Program {
            program: command.program.clone(),
            what: format!("cannot be started ({error})"),
        })
}

fn system(step: &'static str) -> impl Fn(io::Error) -> LaunchError {
    move |source| LaunchError::System { step, source }
}
