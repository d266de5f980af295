//! What the launcher hands to the worker: the channel to the host as descriptor 3, the channel to the software NSM as 4.
//!
//! They arrive as standard input and output, since a program can own those without `unsafe`, and are moved away at once, so that
//! a stray line of output goes to `/dev/null` and never into a protocol.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// The descriptor of the channel to the host, once [`take`] has run.
pub const CHANNEL: i32 = 3;

/// The descriptor of the channel to the software NSM, once [`take`] has run.
pub const NSM: i32 = 4;

/// The two sockets that a launcher passes to its worker.
#[derive(Debug)]
pub struct Descriptors {
    /// To the host: frames.
    pub channel: UnixStream,
    /// To the software NSM.
    pub nsm: UnixStream,
}

/// Why a program was not started by a launcher.
#[derive(Debug, thiserror::Error)]
#[error("the enclave worker was not started by its launcher ({what}): run it by `sealflow enclave run`")]
pub struct NotLaunched {
    /// What failed.
    what: &'static str,
    /// How.
    #[source]
    source: Option<io::Error>,
}

/// Takes the two sockets, and leaves `/dev/null` as standard input and output. The first thing that a worker does.
///
/// # Errors
/// [`NotLaunched`] if they are not sockets.
pub fn take() -> Result<Descriptors, NotLaunched> {
    let failed = |what| {
        move |error: io::Error| NotLaunched {
            what,
            source: Some(error),
        }
    };
    let channel = moved(io::stdin().as_fd(), CHANNEL).map_err(failed("standard input is not its channel"))?;
    let nsm = moved(io::stdout().as_fd(), NSM).map_err(failed("standard output is not the NSM's"))?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(failed("there is no /dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(|error| failed("standard input")(error.into()))?;
    rustix::stdio::dup2_stdout(&null).map_err(|error| failed("standard output")(error.into()))?;
    Ok(Descriptors { channel, nsm })
}

/// A socket at the lowest free descriptor from this one on.
fn moved(from: impl AsFd, to: i32) -> Result<UnixStream, io::Error> {
    let socket = rustix::io::fcntl_dupfd_cloexec(from, to)?;
    // Whatever is no socket is told apart here: a terminal, a file, a pipe.
    rustix::net::sockopt::socket_type(&socket)?;
    Ok(UnixStream::from(socket))
}
