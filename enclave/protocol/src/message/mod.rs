//! Bodies of frames. Each is written by one side and read by the other; what is read is checked against caps before anything is
//! allocated for it.

mod catalogue;
mod client_keys;
mod hello;
mod read;
mod reseal;

pub use catalogue::{CatalogueAnswer, CatalogueQuestion, MAX_OBJECT, MAX_PATH};
pub use client_keys::{ClientKeysAnswer, ClientKeysJob, MAX_VOUCHED, PairAnswer, PairJob};
pub use hello::{Credentials, Hello, HelloAnswer, NONCE, Status, signer_user_data};
pub use read::{Decision, MAX_RECORDS, Outcome, Proof, ReadAnswer, ReadJob, What};
pub use reseal::{
    JobColumn, JobWriter, KEY_CLEAR, KEY_FIRST_SESSION, KEY_OWN, MAX_COLUMNS, MAX_SESSIONS, ResealAnswer, ResealJob,
    SealedPart,
};

use zeroize::Zeroizing;

use crate::wire::{Malformed, Reader, Writer};

/// The longest reason of a failure, in bytes.
const MAX_REASON: usize = 1_024;

/// Why the worker did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FailureKind {
    /// A service is away: ask again.
    Unavailable = 1,
    /// Its key service, the policy or the lease does not let it.
    Refused = 2,
    /// What was asked is no message of this protocol, or asks for what is not there. It does not say what.
    BadRequest = 3,
}

/// The body of [`Kind::Failure`](crate::frame::Kind::Failure).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What can be done about it.
    pub kind: FailureKind,
    /// What a service or policy said. Nothing of a value.
    pub reason: String,
}

impl Failure {
    /// The body.
    #[must_use]
    pub fn to_body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Writer::default();
        body.u8(self.kind as u8);
        let mut end = self.reason.len().min(MAX_REASON);
        while !self.reason.is_char_boundary(end) {
            end -= 1;
        }
        body.text(&self.reason[..end]);
        body.finish()
    }

    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let kind = match from.u8()? {
            1 => FailureKind::Unavailable,
            2 => FailureKind::Refused,
            3 => FailureKind::BadRequest,
            _ => return Err(Malformed),
        };
        let reason = from.text(MAX_REASON)?.to_owned();
        from.end()?;
        Ok(Self { kind, reason })
    }
}
