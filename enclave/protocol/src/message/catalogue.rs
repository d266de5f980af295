//! The catalogue, which the host reads and writes for the worker. The worker believes nothing of it that is not signed, or proves
//! itself when it opens.

use zeroize::Zeroizing;

use crate::wire::{Malformed, Reader, Writer};

/// The longest path, in bytes.
pub const MAX_PATH: usize = 1_024;
/// The largest object, in bytes.
pub const MAX_OBJECT: usize = 4 << 20;
const MAX_NAMES: usize = 65_536;
const MAX_REASON: usize = 1_024;

/// What the worker asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogueQuestion {
    /// Which paths begin with that one.
    List(String),
    /// What is at that path.
    Get(String),
    /// Put these bytes there, if nothing is.
    PutIfAbsent(String, Vec<u8>),
}

/// What the host answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogueAnswer {
    /// The paths.
    Names(Vec<String>),
    /// The bytes, if there are any.
    Object(Option<Vec<u8>>),
    /// Whether they were put, or something was there.
    Put {
        /// They were put.
        is_new: bool,
    },
    /// It did not work.
    Failed {
        /// Whether to ask again.
        is_retryable: bool,
        /// Whether this process may not.
        is_not_permitted: bool,
        /// Why.
        reason: String,
    },
}

impl CatalogueQuestion {
    /// The body.
    #[must_use]
    pub fn to_body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Writer::default();
        match self {
            Self::List(path) => {
                body.u8(1);
                body.text(path);
            }
            Self::Get(path) => {
                body.u8(2);
                body.text(path);
            }
            Self::PutIfAbsent(path, bytes) => {
                body.u8(3);
                body.text(path);
                body.bytes(bytes);
            }
        }
        body.finish()
    }

    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let kind = from.u8()?;
        let path = from.text(MAX_PATH)?.to_owned();
        let question = match kind {
            1 => Self::List(path),
            2 => Self::Get(path),
            3 => Self::PutIfAbsent(path, from.bytes(MAX_OBJECT)?.to_vec()),
            _ => return Err(Malformed),
        };
        from.end()?;
        Ok(question)
    }
}

impl CatalogueAnswer {
    /// The body.
    #[must_use]
    pub fn to_body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Writer::default();
        match self {
            Self::Names(names) => {
                body.u8(1);
                body.count(names.len());
                for name in names {
                    body.text(name);
                }
            }
            Self::Object(object) => {
                body.u8(2);
                body.option(object.as_deref(), Writer::bytes);
            }
            Self::Put { is_new } => {
                body.u8(3);
                body.u8(u8::from(*is_new));
            }
            Self::Failed {
                is_retryable,
                is_not_permitted,
                reason,
            } => {
                body.u8(4);
                body.u8(u8::from(*is_retryable));
                body.u8(u8::from(*is_not_permitted));
                let mut end = reason.len().min(MAX_REASON);
                while !reason.is_char_boundary(end) {
                    end -= 1;
                }
                body.text(&reason[..end]);
            }
        }
        body.finish()
    }

    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let answer = match from.u8()? {
            1 => {
                let count = from.count(MAX_NAMES, 4)?;
                let names = (0..count).map(|_| from.text(MAX_PATH).map(str::to_owned));
                Self::Names(names.collect::<Result<_, _>>()?)
            }
            2 => Self::Object(from.option(|from| Ok(from.bytes(MAX_OBJECT)?.to_vec()))?),
            3 => Self::Put { is_new: from.flag()? },
            4 => Self::Failed {
                is_retryable: from.flag()?,
                is_not_permitted: from.flag()?,
                reason: from.text(MAX_REASON)?.to_owned(),
            },
            _ => return Err(Malformed),
        };
        from.end()?;
        Ok(answer)
    }
}
