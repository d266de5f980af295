//! What clients seal to: the keys of a policy, for which the worker vouches, and new pairs.

use zeroize::Zeroizing;

use super::hello::NONCE;
use crate::wire::{Malformed, Reader, Writer};

/// The longest document of keys, in bytes.
pub const MAX_VOUCHED: usize = 128 << 10;
const MAX_NAME: usize = 1_024;
const MAX_PUBLIC: usize = 1_024;
const MAX_WRAPPED: usize = 6_144;
const MAX_EVIDENCE: usize = 16 << 10;

/// The body of [`Kind::ClientKeys`](crate::frame::Kind::ClientKeys).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientKeysJob<'a> {
    /// The dataset. Which keys and labels those are, the worker takes from the policy that its owner signed.
    pub dataset: &'a str,
}

impl<'a> ClientKeysJob<'a> {
    /// The body.
    #[must_use]
    pub fn to_body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Writer::default();
        body.text(self.dataset);
        body.finish()
    }

    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let dataset = from.text(MAX_NAME)?;
        from.end()?;
        Ok(Self { dataset })
    }
}

/// The worker's answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientKeysAnswer<'a> {
    /// Version of the policy that names the keys.
    pub policy_version: u64,
    /// The document: keys and labels, and evidence that commits to them.
    pub document: &'a str,
}

impl<'a> ClientKeysAnswer<'a> {
    /// The body.
    #[must_use]
    pub fn to_body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Writer::with_room(self.document.len() + 16);
        body.u64(self.policy_version);
        body.text(self.document);
        body.finish()
    }

    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let answer = Self {
            policy_version: from.u64()?,
            document: from.text(MAX_VOUCHED)?,
        };
        from.end()?;
        Ok(answer)
    }
}

/// The body of [`Kind::MakePair`](crate::frame::Kind::MakePair).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairJob<'a> {
    /// The dataset that it is for. It has a policy with an enclave.
    pub dataset: &'a str,
    /// Full ARN of the symmetric KMS key that is to wrap the private half.
    pub arn: &'a str,
    /// Bits of the modulus.
    pub bits: u32,
    /// What the evidence must repeat.
    pub nonce: [u8; NONCE],
}

impl<'a> PairJob<'a> {
    /// The body.
    #[must_use]
    pub fn to_body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Writer::default();
        body.text(self.dataset);
        body.text(self.arn);
        body.u32(self.bits);
        body.raw(&self.nonce);
        body.finish()
    }

    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let job = Self {
            dataset: from.text(MAX_NAME)?,
            arn: from.text(MAX_NAME)?,
            bits: from.u32()?,
            nonce: from.raw(NONCE)?.try_into().map_err(|_| Malformed)?,
        };
        from.end()?;
        Ok(job)
    }
}

/// The worker's answer to it. The private half is in it as KMS wrapped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairAnswer<'a> {
    /// The public half: `SubjectPublicKeyInfo`, DER.
    pub public: &'a [u8],
    /// The private half, wrapped.
    pub wrapped: &'a [u8],
    /// Evidence with the nonce that commits to the pair.
    pub evidence: &'a [u8],
}

impl<'a> PairAnswer<'a> {
    /// The body.
    #[must_use]
    pub fn to_body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Writer::default();
        body.bytes(self.public);
        body.bytes(self.wrapped);
        body.bytes(self.evidence);
        body.finish()
    }

    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let answer = Self {
            public: from.bytes(MAX_PUBLIC)?,
            wrapped: from.bytes(MAX_WRAPPED)?,
            evidence: from.bytes(MAX_EVIDENCE)?,
        };
        from.end()?;
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn questions_and_answers_come_back_and_no_part_of_one_is_one() {
        let keys = ClientKeysJob { dataset: "payments" };
        let vouched = ClientKeysAnswer {
            policy_version: 3,
            document: "{}",
        };
        let pair = PairJob {
            dataset: "payments",
            arn: "arn:aws:kms:x",
            bits: 3_072,
            nonce: [7; NONCE],
        };
        let made = PairAnswer {
            public: b"public",
            wrapped: b"wrapped",
            evidence: b"evidence",
        };
        let (a, b, c, d) = (keys.to_body(), vouched.to_body(), pair.to_body(), made.to_body());
        assert_eq!(ClientKeysJob::read(&a), Ok(keys));
        assert_eq!(ClientKeysAnswer::read(&b), Ok(vouched));
        assert_eq!(PairJob::read(&c), Ok(pair));
        assert_eq!(PairAnswer::read(&d), Ok(made));
        assert!((0..a.len()).all(|cut| ClientKeysJob::read(&a[..cut]).is_err()));
        assert!((0..b.len()).all(|cut| ClientKeysAnswer::read(&b[..cut]).is_err()));
        assert!((0..c.len()).all(|cut| PairJob::read(&c[..cut]).is_err()));
        assert!((0..d.len()).all(|cut| PairAnswer::read(&d[..cut]).is_err()));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = ClientKeysJob::read(&bytes);
            let _ = ClientKeysAnswer::read(&bytes);
            let _ = PairJob::read(&bytes);
            let _ = PairAnswer::read(&bytes);
        }
    }
}
