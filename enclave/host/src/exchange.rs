//! Messages of the software NSM over a socket, one after the other.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use sealflow_enclave_protocol::nsm::{Message, MessageError, PREFIX, length};

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The socket failed, or the other side ended.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// What arrived is none.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// Writes a message.
pub(crate) fn write(mut socket: &UnixStream, message: &impl Message) -> Result<(), ExchangeError> {
    Ok(socket.write_all(&message.to_wire()?)?)
}

/// Reads a message.
pub(crate) fn read<M: Message>(mut socket: &UnixStream) -> Result<M, ExchangeError> {
    let mut prefix = [0; PREFIX];
    socket.read_exact(&mut prefix)?;
    let mut bytes = vec![0; length(prefix)?];
    socket.read_exact(&mut bytes)?;
    Ok(M::from_wire(&bytes)?)
}
