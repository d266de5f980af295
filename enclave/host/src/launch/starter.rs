//! The starter: a process between host and worker, in one thread, that isolates the worker, starts it, and says how it ended.
//!
//! It exists since a process of many threads can neither change its own namespaces nor start programs in other ones without
//! `unsafe`. It sees neither plaintext nor evidence.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, Stdio};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit};

use super::{namespaces, rights};

/// `EX_UNAVAILABLE` and `EX_USAGE` of sysexits.h.
const UNAVAILABLE: u8 = 69;
const USAGE: u8 = 64;

/// `sealflow enclave start`, which only a launcher calls. It must run before anything else opens a descriptor or starts a thread.
#[must_use]
pub fn main() -> ExitCode {
    close_inherited();
    let Ok(control) = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from) else {
        return ExitCode::from(USAGE);
    };
    // A starter without a launcher gets an error here: standard input is no socket, or carries no descriptors.
    let Ok((order, descriptors)) = rights::receive(&control) else {
        return ExitCode::from(USAGE);
    };
    let ended = start(order, descriptors).and_then(|worker| keep_watch(worker, &control));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => {
            // If the host is gone, nobody is left to be told.
            let _ = (&control).write_all(format!("{report}\n").as_bytes());
            ExitCode::from(UNAVAILABLE)
        }
    }
}

/// Descriptors that some library of the host's forgot to mark: the worker must not have them.
fn close_inherited() {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    let mut open = Vec::new();
    for entry in entries.flatten() {
        if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) {
            open.push(number);
        }
    }
    for number in open {
        if number > 2 {
            // The one of the listing itself is closed already.
            let _ = nix::unistd::close(number);
        }
    }
}

fn start(order: u8, descriptors: [OwnedFd; rights::COUNT]) -> Result<Child, String> {
    let [channel, nsm, image] = descriptors;
    // Only root may raise its limit; the worker's own sandbox says if what there is does not suffice.
    let everything = Rlimit {
        current: None,
        maximum: None,
    };
    if rustix::process::setrlimit(Resource::Memlock, everything).is_err() {
        let most = rustix::process::getrlimit(Resource::Memlock).maximum;
        let _ = rustix::process::setrlimit(
            Resource::Memlock,
            Rlimit {
                current: most,
                maximum: most,
            },
        );
    }
    if order == rights::ISOLATED {
        namespaces::enter().map_err(|reason| format!("isolation {reason}"))?;
    }
    let image = File::from(image);
    Command::new(format!("/proc/self/fd/{}", image.as_raw_fd()))
        .arg0("sealflow-enclave-worker")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(channel))
        .stdout(Stdio::from(nsm))
        .spawn()
        .map_err(|error| format!("execute {error}"))
}

/// Until the worker ends, or the host says or shows that it should.
fn keep_watch(mut worker: Child, mut control: &UnixStream) -> Result<(), String> {
    let failed = |error: io::Error| format!("execute the worker cannot be watched ({error})");
    let mut watch = || -> Result<(), io::Error> {
        let pid = i32::try_from(worker.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::InvalidData)?;
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        control.write_all(format!("started {}\n", worker.id()).as_bytes())?;
        loop {
            let mut ready = [
                PollFd::new(&control, PollFlags::IN),
                PollFd::new(&process, PollFlags::IN),
            ];
            match rustix::event::poll(&mut ready, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if !ready[1].revents().is_empty() {
                return Ok(());
            }
            if !ready[0].revents().is_empty() {
                // Any byte means an end, and so does the end of the host.
                let _ = (&*control).read(&mut [0; 16]);
                return Ok(());
            }
        }
    };
    let watched = watch();
    // Nothing of the worker outlives the starter: for one that has ended this does nothing.
    let _ = worker.kill();
    let status = worker.wait().map_err(failed)?;
    watched.map_err(failed)?;
    let report = match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended code {code}\n"),
        (None, signal) => format!("ended signal {}\n", signal.unwrap_or_default()),
    };
    // If the host is gone, nobody is left to be told.
    let _ = control.write_all(report.as_bytes());
    Ok(())
}
