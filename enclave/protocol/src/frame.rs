//! Frames: `u32 length ‖ version(1) ‖ kind(1) ‖ u64 sequence ‖ body`, integers little-endian, the length that of what follows.
//!
//! Whoever asks numbers its questions, each side for itself, upwards from 1; an answer has the number of its question. The length is
//! held against its cap before anything is allocated for it.

use std::fmt;

use zeroize::{Zeroize as _, Zeroizing};

use crate::wire::Malformed;

/// The one version.
pub const VERSION: u8 = 1;
/// The longest frame, behind its length.
pub const MAX_FRAME: usize = 64 << 20;
/// Version, kind and sequence.
const HEAD: usize = 10;
/// The longest body.
pub const MAX_BODY: usize = MAX_FRAME - HEAD;
/// What comes before the body.
pub const HEADER_LEN: usize = 4 + HEAD;
/// The most that is written at a time: longer writes stall for ever on some emulated vsocks.
pub const MAX_WRITE: usize = 32 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Host to worker: who are you?
    Hello = 1,
    /// Host to worker: seal these columns again.
    Reseal = 2,
    /// Host to worker: open these for a reader.
    Read = 3,
    /// Host to worker: the credentials to sign requests to KMS with. No answer.
    Credentials = 4,
    /// Host to worker: how are you?
    Status = 5,
    /// Host to worker: make a key pair that clients seal to.
    MakePair = 6,
    /// Host to worker: vouch for the keys that clients of a dataset seal to.
    ClientKeys = 7,
    /// Worker to host: what was asked for.
    Answer = 32,
    /// Worker to host: why not.
    Failure = 33,
    /// Worker to host: read or write the catalogue.
    Catalogue = 64,
    /// Host to worker: what the catalogue said.
    CatalogueAnswer = 65,
    /// Worker to host: a line of the worker's audit log. No answer.
    Audit = 66,
    /// Both ways: bytes of relayed connections. No answer.
    Relay = 96,
}

impl Kind {
    /// Of its number.
    fn of(number: u8) -> Option<Self> {
        const ALL: [Kind; 13] = [
            Kind::Hello,
            Kind::Reseal,
            Kind::Read,
            Kind::Credentials,
            Kind::Status,
            Kind::MakePair,
            Kind::ClientKeys,
            Kind::Answer,
            Kind::Failure,
            Kind::Catalogue,
            Kind::CatalogueAnswer,
            Kind::Audit,
            Kind::Relay,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// One frame. Its body is wiped when it is dropped; `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Its number.
    pub sequence: u64,
    /// The rest.
    pub body: Zeroizing<Vec<u8>>,
}

impl Frame {
    /// A frame.
    #[must_use]
    pub fn new(kind: Kind, sequence: u64, body: impl Into<Zeroizing<Vec<u8>>>) -> Self {
        Self {
            kind,
            sequence,
            body: body.into(),
        }
    }

    /// What is written before the body.
    ///
    /// # Errors
    /// [`Malformed`] for a body that is too long for any frame.
    pub fn header(&self) -> Result<[u8; HEADER_LEN], Malformed> {
        let len = HEAD + self.body.len();
        if len > MAX_FRAME {
            return Err(Malformed);
        }
        let mut header = [0; HEADER_LEN];
        header[..4].copy_from_slice(&u32::try_from(len).map_err(|_| Malformed)?.to_le_bytes());
        header[4] = VERSION;
        header[5] = self.kind as u8;
        header[6..].copy_from_slice(&self.sequence.to_le_bytes());
        Ok(header)
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("kind", &self.kind)
            .field("sequence", &self.sequence)
            .field("bytes", &self.body.len())
            .finish()
    }
}

/// What a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// What it is.
    pub kind: Kind,
    /// Its number.
    pub sequence: u64,
    /// How many bytes its body has, at most [`MAX_FRAME`].
    pub body: usize,
}

impl Announced {
    /// Reads a header.
    ///
    /// # Errors
    /// [`Malformed`]: another version or kind, or a length beyond the cap. The connection is of no use any more.
    pub fn parse(header: &[u8; HEADER_LEN]) -> Result<Self, Malformed> {
        let [a, b, c, d, version, kind, sequence @ ..] = *header;
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).map_err(|_| Malformed)?;
        if version != VERSION || len > MAX_FRAME {
            return Err(Malformed);
        }
        Ok(Self {
            kind: Kind::of(kind).ok_or(Malformed)?,
            sequence: u64::from_le_bytes(sequence),
            body: len.checked_sub(HEAD).ok_or(Malformed)?,
        })
    }
}

/// Takes frames out of bytes that come in pieces.
#[derive(Default)]
pub struct FrameReader {
    header: [u8; HEADER_LEN],
    /// How much of the header is there.
    have: usize,
    /// The frame whose body is being read, and how long that is.
    body: Option<(Frame, usize)>,
}

impl FrameReader {
    /// Takes some of `bytes`; a frame, once one is whole. Call it again with the rest until it is empty.
    ///
    /// # Errors
    /// [`Malformed`]; then the connection is of no use any more.
    pub fn push(&mut self, bytes: &mut &[u8]) -> Result<Option<Frame>, Malformed> {
        if self.body.is_none() {
            let take = bytes.len().min(HEADER_LEN - self.have);
            let (head, rest) = bytes.split_at(take);
            self.header[self.have..self.have + take].copy_from_slice(head);
            self.have += take;
            *bytes = rest;
            if self.have < HEADER_LEN {
                return Ok(None);
            }
            let announced = Announced::parse(&self.header)?;
            // Whole, so that no copy is left behind by growing.
            let frame = Frame::new(announced.kind, announced.sequence, Vec::with_capacity(announced.body));
            (self.have, self.body) = (0, Some((frame, announced.body)));
        }
        if let Some((frame, len)) = &mut self.body {
            let take = bytes.len().min(*len - frame.body.len());
            let (head, rest) = bytes.split_at(take);
            frame.body.extend_from_slice(head);
            *bytes = rest;
            if frame.body.len() == *len {
                return Ok(self.body.take().map(|(frame, _)| frame));
            }
        }
        Ok(None)
    }
}

impl Drop for FrameReader {
    fn drop(&mut self) {
        self.header.zeroize();
    }
}

impl fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameReader").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use proptest::prelude::*;

    use super::*;

    fn bytes_of(frames: &[Frame]) -> Vec<u8> {
        let mut all = Vec::new();
        for frame in frames {
            all.extend_from_slice(&frame.header().unwrap());
            all.extend_from_slice(&frame.body);
        }
        all
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop::sample::select(vec![
            Kind::Hello,
            Kind::Reseal,
            Kind::Answer,
            Kind::Failure,
            Kind::Catalogue,
            Kind::Relay,
        ])
    }

    proptest! {
        #[test]
        fn frames_come_back_however_they_are_cut(
            frames in prop::collection::vec((kinds(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..200)), 0..6),
            cuts in prop::collection::vec(1_usize..64, 1..40),
        ) {
            let frames: Vec<Frame> = frames.into_iter().map(|(kind, n, body)| Frame::new(kind, n, body)).collect();
            let all = bytes_of(&frames);
            let (mut reader, mut back, mut at) = (FrameReader::default(), Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                if at == all.len() {
                    break;
                }
                let end = (at + cut).min(all.len());
                let mut piece = &all[at..end];
                while !piece.is_empty() {
                    back.extend(reader.push(&mut piece).unwrap());
                }
                at = end;
            }
            // Frames without a body are whole with their header.
            prop_assert_eq!(back, frames);
        }

        #[test]
        fn no_bytes_panic_and_none_allocate_beyond_the_cap(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = FrameReader::default();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                match reader.push(&mut rest) {
                    Ok(Some(frame)) => prop_assert!(frame.body.len() <= bytes.len()),
                    Ok(None) => {}
                    Err(Malformed) => break,
                }
            }
        }
    }

    #[test]
    fn other_versions_kinds_and_lengths_are_refused() {
        let header = Frame::new(Kind::Hello, 7, vec![1, 2]).header().unwrap();
        let parsed = Announced::parse(&header).unwrap();
        assert_eq!((parsed.kind, parsed.sequence, parsed.body), (Kind::Hello, 7, 2));
        let with = |at: usize, byte: u8| {
            let mut header = header;
            header[at] = byte;
            Announced::parse(&header)
        };
        assert_eq!(with(4, 2), Err(Malformed), "version");
        assert_eq!(with(5, 0), Err(Malformed), "kind");
        assert_eq!(with(0, 9), Err(Malformed), "shorter than its own head");
        assert_eq!(with(3, 0x80), Err(Malformed), "2 GiB");
        let longest = u32::try_from(MAX_FRAME).unwrap();
        let mut most = header;
        most[..4].copy_from_slice(&longest.to_le_bytes());
        assert_eq!(Announced::parse(&most).unwrap().body, MAX_FRAME - HEAD);
        most[..4].copy_from_slice(&(longest + 1).to_le_bytes());
        assert_eq!(Announced::parse(&most), Err(Malformed));
        assert!(Frame::new(Kind::Hello, 1, vec![0; MAX_FRAME]).header().is_err());
    }

    #[test]
    fn debug_shows_no_body() {
        let frame = Frame::new(Kind::Reseal, 1, b"4111111111111111".to_vec());
        assert!(!format!("{frame:?}").contains("4111") && !format!("{frame:?}").contains("52, 49"));
    }
}
