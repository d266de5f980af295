//! The hosts of a worker that boots an enclave: they come by its vsock, one after the other or side by side, and each has a connection
//! with keys, sessions and policies of its own. Nothing of one connection is another's.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::assemble::{self, RunError};
use crate::config::Config;
use crate::nsm::Nsm;
use crate::serve::Room;

/// The port of the enclave's vsock where hosts connect.
pub const PORT: u32 = 5_005;

/// Hosts at a time: several processes of one parent, and commands that look how it is. Whoever comes beyond that is hung up on.
pub const MOST_HOSTS: usize = 8;

/// Listens on the vsock of the enclave. Only before [`crate::sandbox::enter`].
///
/// # Errors
/// Those of the operating system.
#[cfg(feature = "nitro")]
pub fn bind() -> io::Result<OwnedFd> {
    use nix::sys::socket::{Backlog, VsockAddr, bind, listen};
    use std::os::fd::AsRawFd as _;

    let listener = vsock()?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, PORT))?;
    listen(&listener, Backlog::new(i32::try_from(MOST_HOSTS).unwrap_or(i32::MAX))?)?;
    Ok(listener)
}

/// Connects to a port outside. Only before [`crate::sandbox::enter`].
///
/// # Errors
/// Those of the operating system.
#[cfg(all(feature = "nitro", feature = "dev-software-nsm"))]
pub fn connect(address: crate::config::VsockAddress) -> io::Result<UnixStream> {
    use nix::sys::socket::VsockAddr;
    use std::os::fd::AsRawFd as _;

    let socket = vsock()?;
    nix::sys::socket::connect(socket.as_raw_fd(), &VsockAddr::new(address.cid, address.port))?;
    Ok(stream(socket))
}

#[cfg(feature = "nitro")]
fn vsock() -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    Ok(socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

/// To the standard library, what is connected is a stream whatever its family: it is read, written and shut, and no address is asked for.
fn stream(socket: OwnedFd) -> UnixStream {
    UnixStream::from(socket)
}

/// Serves the hosts that connect to this listener, on this runtime, as long as the process lives.
///
/// # Errors
/// [`RunError::Channel`] if it cannot be listened any more.
pub fn serve(listener: &impl AsFd, runtime: &Runtime, config: Config, nsm: Nsm) -> Result<Infallible, RunError> {
    let (config, nsm, room) = (Arc::new(config), Arc::new(nsm), Room::default());
    let places = Arc::new(Semaphore::new(MOST_HOSTS));
    loop {
        let host = match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(host) => host,
            // A host that is gone already, or a signal.
            Err(Errno::CONNABORTED | Errno::INTR | Errno::CONNRESET) => continue,
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            say(format_args!(
                "{MOST_HOSTS} hosts are connected: another one is hung up on"
            ));
            continue;
        };
        let (config, nsm, room) = (Arc::clone(&config), Arc::clone(&nsm), room.clone());
        runtime.spawn(async move {
            if let Err(error) = assemble::run(stream(host), &config, nsm, room).await {
                say(format_args!("the connection of a host ended: {error}"));
            }
            drop(place);
        });
    }
}

/// To the console, which only an enclave in debug mode has.
fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "enclave worker: {line}");
}
