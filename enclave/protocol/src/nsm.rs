//! What the software NSM is asked, and what it answers: CBOR behind a length. Nitro's own device has its own messages.
//!
//! Two sides talk to it, each over a socket of its own. The launcher says once what it measured ([`Registration`]). The worker
//! asks for documents, random numbers and the time ([`Request`]); **no message of the worker's says what the worker is**.

use minicbor::{Decode, Encode};

use crate::joints::Claims;

/// The longest message, in bytes. A document with all claims has less than half of it.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// Length of the prefix of each message: a little-endian u32.
pub const PREFIX: usize = 4;

/// Most random bytes at once: as many as Nitro's device gives.
pub const MAX_RANDOM: u16 = 256;

/// Most bytes of a public key in a document (Nitro's bound).
pub const MAX_PUBLIC_KEY: usize = 1024;

/// Most bytes of user data, and of a nonce, in a document (Nitro's bound).
pub const MAX_USER_DATA: usize = 512;

/// SHA-384 of 48 zero bytes and the SHA-384 of an image: PCR0 of whoever runs it.
pub type Measurement = [u8; 48];

/// What the launcher says once, before the worker runs.
#[derive(Clone, Debug, PartialEq, Eq, Decode, Encode)]
pub enum Registration {
    /// The worker at the other socket runs this image. The index is none that a worker's request has.
    #[n(100)]
    Image(#[cbor(n(0), with = "minicbor::bytes")] Measurement),
}

/// What is answered to the launcher.
#[derive(Clone, Debug, PartialEq, Eq, Decode, Encode)]
pub enum Registered {
    /// Documents for the worker say so from now on.
    #[n(0)]
    Done,
    /// Nothing changed. The text says why.
    #[n(1)]
    Refused(#[n(0)] String),
}

/// What a worker asks.
#[derive(Clone, Debug, PartialEq, Eq, Decode, Encode)]
pub enum Request {
    /// A document with these claims.
    #[n(0)]
    Attest {
        /// At most [`MAX_PUBLIC_KEY`] bytes.
        #[cbor(n(0), with = "minicbor::bytes")]
        public_key: Option<Vec<u8>>,
        /// At most [`MAX_USER_DATA`] bytes.
        #[cbor(n(1), with = "minicbor::bytes")]
        user_data: Option<Vec<u8>>,
        /// At most [`MAX_USER_DATA`] bytes.
        #[cbor(n(2), with = "minicbor::bytes")]
        nonce: Option<Vec<u8>>,
    },
    /// So many random bytes, at most [`MAX_RANDOM`].
    #[n(1)]
    GetRandom(#[n(0)] u16),
    /// The time, which is the NSM's own and not the host's to say.
    #[n(2)]
    GetTime,
}

/// What a worker is answered. `Debug` shows no random numbers.
#[derive(Clone, PartialEq, Eq, Decode, Encode)]
pub enum Answer {
    /// An attestation document (COSE_Sign1).
    #[n(0)]
    Document(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// Random bytes.
    #[n(1)]
    Random(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// Milliseconds since 1970, UTC.
    #[n(2)]
    Time(#[n(0)] u64),
    /// There is no answer. The text says why.
    #[n(3)]
    Refused(#[n(0)] String),
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Document(document) => write!(f, "Document({} bytes)", document.len()),
            Self::Random(bytes) => write!(f, "Random({} bytes)", bytes.len()),
            Self::Time(time) => write!(f, "Time({time})"),
            Self::Refused(reason) => write!(f, "Refused({reason:?})"),
        }
    }
}

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Longer than any message.
    #[error("a message of the NSM has {length} bytes, and {MAX_MESSAGE} are the most")]
    TooLong {
        /// What its prefix says.
        length: usize,
    },
    /// Not CBOR of this message, or with something behind it.
    #[error("a message of the NSM is malformed")]
    Malformed,
}

/// A message and how it looks on the wire.
pub trait Message: Sized {
    /// Its bytes, with the length before them.
    ///
    /// # Errors
    /// [`MessageError::TooLong`]
    fn to_wire(&self) -> Result<Vec<u8>, MessageError>;

    /// The message in these bytes, which are what follows the prefix.
    ///
    /// # Errors
    /// [`MessageError::Malformed`]
    fn from_wire(bytes: &[u8]) -> Result<Self, MessageError>;
}

impl<T: Encode<()> + for<'b> Decode<'b, ()>> Message for T {
    fn to_wire(&self) -> Result<Vec<u8>, MessageError> {
        let mut wire = vec![0; PREFIX];
        minicbor::encode(self, &mut wire).map_err(|_| MessageError::Malformed)?;
        let length = wire.len() - PREFIX;
        let prefix = u32::try_from(length).map_err(|_| MessageError::TooLong { length })?;
        if length > MAX_MESSAGE {
            return Err(MessageError::TooLong { length });
        }
        wire[..PREFIX].copy_from_slice(&prefix.to_le_bytes());
        Ok(wire)
    }

    fn from_wire(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut decoder = minicbor::Decoder::new(bytes);
        let message = decoder.decode().map_err(|_| MessageError::Malformed)?;
        if decoder.position() != bytes.len() {
            return Err(MessageError::Malformed);
        }
        Ok(message)
    }
}

/// How many bytes follow this prefix, checked before anything is allocated for them.
///
/// # Errors
/// [`MessageError::TooLong`]
pub fn length(prefix: [u8; PREFIX]) -> Result<usize, MessageError> {
    let length = usize::try_from(u32::from_le_bytes(prefix)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        Err(MessageError::TooLong { length })
    } else {
        Ok(length)
    }
}

impl Request {
    /// A document with these claims.
    #[must_use]
    pub fn attest(claims: &Claims<'_>) -> Self {
        Self::Attest {
            public_key: claims.public_key.map(<[u8]>::to_vec),
            user_data: claims.user_data.map(<[u8]>::to_vec),
            nonce: claims.nonce.map(<[u8]>::to_vec),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn payload(wire: &[u8]) -> &[u8] {
        let (prefix, rest) = wire.split_first_chunk().unwrap();
        assert_eq!(length(*prefix).unwrap(), rest.len());
        rest
    }

    #[test]
    fn random_numbers_are_not_shown() {
        assert_eq!(format!("{:?}", Answer::Random(vec![7; 32])), "Random(32 bytes)");
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let claims = Claims {
            public_key: Some(b"key"),
            user_data: None,
            nonce: Some(b""),
        };
        for request in [Request::attest(&claims), Request::GetRandom(32), Request::GetTime] {
            assert_eq!(Request::from_wire(payload(&request.to_wire().unwrap())), Ok(request));
        }
        let answers = [
            Answer::Document(vec![1; 4096]),
            Answer::Random(vec![2; 32]),
            Answer::Time(u64::MAX),
            Answer::Refused("no".to_owned()),
        ];
        for answer in answers {
            assert_eq!(Answer::from_wire(payload(&answer.to_wire().unwrap())), Ok(answer));
        }
        let registration = Registration::Image([7; 48]);
        assert_eq!(
            Registration::from_wire(payload(&registration.to_wire().unwrap())),
            Ok(registration)
        );
    }

    #[test]
    fn no_request_of_a_worker_is_a_registration() {
        let registration = Registration::Image([7; 48]).to_wire().unwrap();
        assert_eq!(Request::from_wire(payload(&registration)), Err(MessageError::Malformed));
        for request in [
            Request::attest(&Claims::default()),
            Request::GetRandom(1),
            Request::GetTime,
        ] {
            let wire = request.to_wire().unwrap();
            assert_eq!(Registration::from_wire(payload(&wire)), Err(MessageError::Malformed));
        }
    }

    #[test]
    fn a_length_is_refused_before_anything_is_allocated() {
        assert_eq!(length([0x00, 0x40, 0, 0]), Ok(MAX_MESSAGE));
        assert_eq!(
            length([0x01, 0x40, 0, 0]),
            Err(MessageError::TooLong {
                length: MAX_MESSAGE + 1
            })
        );
        assert_eq!(length([0xff; 4]), Err(MessageError::TooLong { length: 0xffff_ffff }));
        let long = Answer::Document(vec![0; MAX_MESSAGE]);
        assert!(matches!(long.to_wire(), Err(MessageError::TooLong { .. })));
    }

    #[test]
    fn bytes_behind_a_message_are_refused() {
        let mut wire = Request::GetTime.to_wire().unwrap();
        wire.push(0);
        assert_eq!(Request::from_wire(&wire[PREFIX..]), Err(MessageError::Malformed));
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_to_something_that_reads_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            if let Ok(request) = Request::from_wire(&bytes) {
                let wire = request.to_wire().unwrap();
                prop_assert_eq!(Request::from_wire(payload(&wire)), Ok(request));
            }
            if let Ok(answer) = Answer::from_wire(&bytes) {
                let wire = answer.to_wire().unwrap();
                prop_assert_eq!(Answer::from_wire(payload(&wire)), Ok(answer));
            }
        }
    }
}
