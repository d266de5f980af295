//! The one message from launcher to starter: what to do, and the descriptors for it (`SCM_RIGHTS`, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// Start the image in new namespaces.
pub(super) const ISOLATED: u8 = b'n';
/// Start the image as it is.
pub(super) const PLAIN: u8 = b'p';

/// The worker's channel, its socket to the NSM, and the image.
pub(super) const COUNT: usize = 3;

pub(super) fn send(control: &UnixStream, order: u8, descriptors: [BorrowedFd<'_>; COUNT]) -> Result<(), io::Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(COUNT))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !rights.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    rustix::net::sendmsg(control, &[IoSlice::new(&[order])], &mut rights, SendFlags::NOSIGNAL)?;
    Ok(())
}

pub(super) fn receive(control: &UnixStream) -> Result<(u8, [OwnedFd; COUNT]), io::Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(COUNT))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut order = [0];
    rustix::net::recvmsg(
        control,
        &mut [IoSliceMut::new(&mut order)],
        &mut rights,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::with_capacity(COUNT);
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    let descriptors = <[OwnedFd; COUNT]>::try_from(descriptors).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((order[0], descriptors))
}
