//! Streams that the host dials for the worker, many of them over one channel: what the two ends say to each other. No I/O.
//!
//! The worker has no network. It asks the host to dial names, and the host carries bytes, which are TLS that ends in the
//! worker. [`Streams`] is the state of one end: it eats messages of the other one and gives messages for it. Each message is
//! the body of one frame: `kind (u8) ‖ stream (u32, little endian) ‖ rest`.
//!
//! | kind | message | rest | from |
//! |---|---|---|---|
//! | 1 | [`Open`](Message::Open) | port (u16, little endian) ‖ host name | worker |
//! | 2 | [`Opened`](Message::Opened) | nothing | host |
//! | 3 | [`Refused`](Message::Refused) | code (u8) | host |
//! | 4 | [`Data`](Message::Data) | 1 to 32,768 bytes | both |
//! | 5 | [`Credit`](Message::Credit) | bytes (u32, little endian) | both |
//! | 6 | [`Close`](Message::Close) | nothing | both |
//!
//! Each direction of a stream begins with a credit of [`WINDOW`] bytes; who reads gives it back. Numbers of streams grow and
//! are never used again, so that a message for a stream which this end has closed is known to be late.

mod streams;

pub use streams::{Gone, OpenError, Read, Received, Streams};

/// Streams that are open at the same time.
pub const MAX_STREAMS: usize = 64;

/// Bytes that one direction of a stream carries before the other end gives credit.
pub const WINDOW: u32 = 256 * 1024;

/// Bytes of one [`Message::Data`].
pub const MAX_DATA: usize = 32 * 1024;

/// Bytes of a host name (RFC 1035, section 2.3.4, as text).
pub const MAX_HOST: usize = 253;

const HEAD: usize = 5;

/// The longest message.
pub const MAX_MESSAGE: usize = HEAD + MAX_DATA;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Dial this.
    Open {
        /// Its number: larger than any before.
        stream: u32,
        /// TCP port.
        port: u16,
        /// Name or address in lower case: letters, digits, `.`, `-`, `:`.
        host: &'a str,
    },
    /// It is dialled.
    Opened {
        /// The stream.
        stream: u32,
    },
    /// It is not.
    Refused {
        /// The stream.
        stream: u32,
        /// Why.
        refusal: Refusal,
    },
    /// Bytes of the stream, in order.
    Data {
        /// The stream.
        stream: u32,
        /// 1 to [`MAX_DATA`] bytes.
        bytes: &'a [u8],
    },
    /// So many bytes more may be sent.
    Credit {
        /// The stream.
        stream: u32,
        /// At least one; never more in sum than [`WINDOW`] ahead of what was read.
        bytes: u32,
    },
    /// The sender sends no more, and takes no more.
    Close {
        /// The stream.
        stream: u32,
    },
}

/// Why the host does not dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Not on the host's list.
    NotAllowed,
    /// No connection.
    Unreachable,
    /// Too many streams.
    Busy,
}

impl Refusal {
    fn code(self) -> u8 {
        match self {
            Self::NotAllowed => 1,
            Self::Unreachable => 2,
            Self::Busy => 3,
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::NotAllowed),
            2 => Some(Self::Unreachable),
            3 => Some(Self::Busy),
            _ => None,
        }
    }
}

/// A message that the other end must not send. The channel is not to be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// Shorter than its kind is, or longer than any.
    #[error("a relayed message of a length that its kind does not have")]
    Length,
    /// No such kind of message.
    #[error("a relayed message of no known kind")]
    Kind,
    /// A host name, port, code or credit that does not exist.
    #[error("a relayed message that says what none can say")]
    Content,
    /// The other end has no right to say this, or not now.
    #[error("a relayed message out of turn")]
    OutOfTurn,
    /// More bytes than there was credit for, or more credit than was used.
    #[error("relayed bytes beyond their credit")]
    Credit,
    /// So many requests that their answers pile up.
    #[error("more relayed messages than can be answered")]
    Flood,
}

impl<'a> Message<'a> {
    /// As bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, stream) = match self {
            Self::Open { stream, .. } => (1, stream),
            Self::Opened { stream } => (2, stream),
            Self::Refused { stream, .. } => (3, stream),
            Self::Data { stream, .. } => (4, stream),
            Self::Credit { stream, .. } => (5, stream),
            Self::Close { stream } => (6, stream),
        };
        let rest = match self {
            Self::Open { host, .. } => 2 + host.len(),
            Self::Data { bytes, .. } => bytes.len(),
            _ => 4,
        };
        let mut out = Vec::with_capacity(HEAD + rest);
        out.push(kind);
        out.extend_from_slice(&stream.to_le_bytes());
        match self {
            Self::Open { port, host, .. } => {
                out.extend_from_slice(&port.to_le_bytes());
                out.extend_from_slice(host.as_bytes());
            }
            Self::Refused { refusal, .. } => out.push(refusal.code()),
            Self::Data { bytes, .. } => out.extend_from_slice(bytes),
            Self::Credit { bytes, .. } => out.extend_from_slice(&bytes.to_le_bytes()),
            Self::Opened { .. } | Self::Close { .. } => {}
        }
        out
    }

    /// Of bytes, all of them.
    ///
    /// # Errors
    /// [`Violation::Length`], [`Violation::Kind`] or [`Violation::Content`].
    pub fn decode(message: &'a [u8]) -> Result<Self, Violation> {
        if message.len() > MAX_MESSAGE {
            return Err(Violation::Length);
        }
        let ([kind, number @ ..], rest) = message.split_first_chunk::<HEAD>().ok_or(Violation::Length)?;
        let stream = u32::from_le_bytes(*number);
        match kind {
            1 => {
                let (port, host) = rest.split_first_chunk::<2>().ok_or(Violation::Length)?;
                let host = std::str::from_utf8(host).map_err(|_| Violation::Content)?;
                let port = u16::from_le_bytes(*port);
                if port == 0 || !is_host(host) {
                    return Err(Violation::Content);
                }
                Ok(Self::Open { stream, port, host })
            }
            2 => ended(rest).map(|()| Self::Opened { stream }),
            3 => {
                let [code] = rest else { return Err(Violation::Length) };
                let refusal = Refusal::of_code(*code).ok_or(Violation::Content)?;
                Ok(Self::Refused { stream, refusal })
            }
            4 if rest.is_empty() => Err(Violation::Length),
            4 => Ok(Self::Data { stream, bytes: rest }),
            5 => {
                let bytes: [u8; 4] = rest.try_into().map_err(|_| Violation::Length)?;
                match u32::from_le_bytes(bytes) {
                    0 => Err(Violation::Content),
                    bytes => Ok(Self::Credit { stream, bytes }),
                }
            }
            6 => ended(rest).map(|()| Self::Close { stream }),
            _ => Err(Violation::Kind),
        }
    }
}

fn ended(rest: &[u8]) -> Result<(), Violation> {
    if rest.is_empty() {
        Ok(())
    } else {
        Err(Violation::Length)
    }
}

/// Whether `text` can stand for a host here: 1 to [`MAX_HOST`] of `a-z`, `0-9`, `.`, `-` and, for IPv6, `:`.
#[must_use]
pub fn is_host(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b':');
    !text.is_empty() && text.len() <= MAX_HOST && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_these_bytes() {
        let host = "kms.eu-central-1.amazonaws.com";
        for (message, bytes) in [
            (
                Message::Open {
                    stream: 0x0102_0304,
                    port: 443,
                    host,
                },
                [b"\x01\x04\x03\x02\x01\xbb\x01".as_slice(), host.as_bytes()].concat(),
            ),
            (Message::Opened { stream: 1 }, b"\x02\x01\0\0\0".to_vec()),
            (
                Message::Refused {
                    stream: 1,
                    refusal: Refusal::Unreachable,
                },
                b"\x03\x01\0\0\0\x02".to_vec(),
            ),
            (
                Message::Data {
                    stream: 1,
                    bytes: b"abc",
                },
                b"\x04\x01\0\0\0abc".to_vec(),
            ),
            (
                Message::Credit {
                    stream: 1,
                    bytes: 0x0001_0000,
                },
                b"\x05\x01\0\0\0\0\0\x01\0".to_vec(),
            ),
            (Message::Close { stream: 1 }, b"\x06\x01\0\0\0".to_vec()),
        ] {
            assert_eq!(message.encode(), bytes);
            assert_eq!(Message::decode(&bytes), Ok(message));
        }
    }

    #[test]
    fn what_no_end_sends_is_refused() {
        let long = [b"\x04\x01\0\0\0".as_slice(), &[7; MAX_DATA + 1]].concat();
        let name = [b"\x01\x01\0\0\0\xbb\x01".as_slice(), &[b'a'; MAX_HOST + 1]].concat();
        for (bytes, violation) in [
            (b"".as_slice(), Violation::Length),
            (b"\x02\x01\0\0", Violation::Length),
            (b"\x02\x01\0\0\0\0", Violation::Length),
            (b"\x01\x01\0\0\0\xbb", Violation::Length),
            (b"\x03\x01\0\0\0", Violation::Length),
            (b"\x03\x01\0\0\0\x01\x01", Violation::Length),
            (b"\x04\x01\0\0\0", Violation::Length),
            (b"\x05\x01\0\0\0\x01\0\0", Violation::Length),
            (b"\x06\x01\0\0\0\0", Violation::Length),
            (&long, Violation::Length),
            (b"\0\x01\0\0\0", Violation::Kind),
            (b"\x07\x01\0\0\0", Violation::Kind),
            (b"\x03\x01\0\0\0\x09", Violation::Content),
            (b"\x05\x01\0\0\0\0\0\0\0", Violation::Content),
            (b"\x01\x01\0\0\0\0\0a", Violation::Content),
            (b"\x01\x01\0\0\0\xbb\x01", Violation::Content),
            (b"\x01\x01\0\0\0\xbb\x01a/b", Violation::Content),
            (b"\x01\x01\0\0\0\xbb\x01A", Violation::Content),
            (b"\x01\x01\0\0\0\xbb\x01\xff", Violation::Content),
            (&name, Violation::Content),
        ] {
            assert_eq!(Message::decode(bytes), Err(violation), "{bytes:?}");
        }
    }
}
