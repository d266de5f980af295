//! A worker that runs, and how it is noticed that it does not any more.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use sealflow_enclave_protocol::measurements::Measurement;

use super::{LaunchError, Processes};

/// Longest report of a starter.
const MOST_REPORT: u64 = 4096;

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal. 31 (SIGSYS): it tried to leave its sandbox. 9 (SIGKILL): [`Worker::kill`], or the machine ran out of memory.
    Signal(i32),
    /// Its starter ended first, and took it along.
    Lost,
}

/// A worker that was started. It ends when this is dropped, and when the host does.
#[derive(Debug)]
pub struct Worker {
    channel: Option<UnixStream>,
    pid: u32,
    measurement: Measurement,
    isolation: Result<(), String>,
    control: UnixStream,
    end: Arc<End>,
}

#[derive(Debug, Default)]
struct End {
    exit: Mutex<Option<Exit>>,
    happened: Condvar,
}

impl Worker {
    /// The channel to the worker, once. It is in blocking mode; `None` if it was taken before.
    pub fn take_channel(&mut self) -> Option<UnixStream> {
        self.channel.take()
    }

    /// Its process, as the host sees it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What the launcher measured: PCR0 of its evidence.
    #[must_use]
    pub fn measurement(&self) -> &Measurement {
        &self.measurement
    }

    /// Whether the launcher put it into namespaces of its own.
    ///
    /// # Errors
    /// Why not.
    pub fn isolation(&self) -> Result<(), &str> {
        self.isolation.as_ref().copied().map_err(String::as_str)
    }

    /// Ends it at once. [`Worker::wait`] says when it has.
    pub fn kill(&self) {
        // A starter that is gone has taken the worker along.
        let _ = (&self.control).write_all(b"k");
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        *self.end.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it has ended, at most so long.
    #[must_use]
    pub fn wait(&self, most: Duration) -> Option<Exit> {
        let exit = self.end.exit.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.end.happened.wait_timeout_while(exit, most, |exit| exit.is_none());
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a starter reports, line by line.
pub(super) struct Reports {
    control: UnixStream,
    lines: BufReader<io::Take<UnixStream>>,
}

impl Reports {
    pub(super) fn new(control: UnixStream, patience: Duration) -> Result<Self, io::Error> {
        control.set_read_timeout(Some(patience))?;
        let lines = BufReader::new(control.try_clone()?.take(MOST_REPORT));
        Ok(Self { control, lines })
    }

    /// The next one; `None` when the starter is gone, or silent for too long.
    pub(super) fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        read.ok()
            .filter(|_| line.ends_with('\n'))
            .map(|_| line.trim_end().to_owned())
    }
}

/// Watches over a worker that was started, until it ends.
pub(super) fn over(
    mut reports: Reports,
    pid: u32,
    processes: Processes,
    channel: UnixStream,
    measurement: Measurement,
    isolation: Result<(), String>,
) -> Result<Worker, LaunchError> {
    let failed = super::system("watching the worker");
    let control = reports.control.try_clone().map_err(&failed)?;
    control.set_read_timeout(None).map_err(&failed)?;
    let end = Arc::new(End::default());
    let told = Arc::clone(&end);
    let watch = move || {
        let exit = reports.next().map_or(Exit::Lost, |report| parsed(&report));
        // Both are reaped before anybody is told: what was started is gone then.
        drop(processes);
        *told.exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit);
        told.happened.notify_all();
    };
    std::thread::Builder::new()
        .name("enclave-watch".to_owned())
        .spawn(watch)
        .map_err(failed)?;
    Ok(Worker {
        channel: Some(channel),
        pid,
        measurement,
        isolation,
        control,
        end,
    })
}

fn parsed(report: &str) -> Exit {
    let number = |text: &str| text.parse().ok();
    match report.split(' ').collect::<Vec<_>>().as_slice() {
        ["ended", "code", code] => number(code).map_or(Exit::Lost, Exit::Code),
        ["ended", "signal", signal] => number(signal).map_or(Exit::Lost, Exit::Signal),
        _ => Exit::Lost,
    }
}
