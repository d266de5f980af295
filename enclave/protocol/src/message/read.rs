//! Sealed values, to be opened for a reader whom the worker has proved, and sealed to the reader's key.

use zeroize::Zeroizing;

use crate::wire::{Malformed, Reader, Writer};

/// The most records or values of a job.
pub const MAX_RECORDS: usize = 65_536;
const MAX_NAME: usize = 1_024;
const MAX_TOKEN: usize = 16 << 10;
const MAX_JWK: usize = 4_096;
const MAX_NONCE: usize = 64;
const MAX_ENVELOPES: usize = 16 << 10;
const MAX_JWS: usize = 8_192;

/// How a reader proves who they are.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof<'a> {
    /// An OIDC token.
    Oidc(&'a str),
    /// A request to STS that the reader has presigned.
    Sts(&'a str),
}

/// What is to be opened. `Debug` shows how much: records hold fields in clear too.
#[derive(PartialEq, Eq)]
pub enum What<'a> {
    /// Values in their text form, each with the label of its place if that is known.
    Values(Vec<(Option<&'a str>, &'a str)>),
    /// JSON records that hold sealed values.
    Records(Vec<&'a [u8]>),
}

/// The body of [`Kind::Read`](crate::frame::Kind::Read).
#[derive(Debug, PartialEq, Eq)]
pub struct ReadJob<'a> {
    /// The dataset.
    pub dataset: &'a str,
    /// What the data is read for.
    pub purpose: Option<&'a str>,
    /// Who reads.
    pub proof: Proof<'a>,
    /// The reader's RSA key, a JWK: the proof commits to it.
    pub seal_to: &'a [u8],
    /// What the signed answer repeats.
    pub nonce: &'a [u8],
    /// Headers `sealflow-keys` that came with the data.
    pub envelopes: Vec<&'a [u8]>,
    /// What is to be opened.
    pub what: What<'a>,
}

impl std::fmt::Debug for What<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Values(values) => write!(f, "Values({})", values.len()),
            Self::Records(records) => write!(f, "Records({})", records.len()),
        }
    }
}

impl std::fmt::Debug for Proof<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Oidc(_) => "Oidc([redacted])",
            Self::Sts(_) => "Sts([redacted])",
        })
    }
}

impl<'a> ReadJob<'a> {
    /// The body.
    #[must_use]
    pub fn to_body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Writer::default();
        body.text(self.dataset);
        body.option(self.purpose, Writer::text);
        let (kind, proof) = match &self.proof {
            Proof::Oidc(token) => (1, token),
            Proof::Sts(request) => (2, request),
        };
        body.u8(kind);
        body.text(proof);
        body.bytes(self.seal_to);
        body.bytes(self.nonce);
        body.count(self.envelopes.len());
        for envelope in &self.envelopes {
            body.bytes(envelope);
        }
        match &self.what {
            What::Values(values) => {
                body.u8(1);
                body.count(values.len());
                for (label, text) in values {
                    body.option(*label, Writer::text);
                    body.text(text);
                }
            }
            What::Records(records) => {
                body.u8(2);
                body.count(records.len());
                for record in records {
                    body.bytes(record);
                }
            }
        }
        body.finish()
    }

    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let dataset = from.text(MAX_NAME)?;
        let purpose = from.option(|from| from.text(MAX_NAME))?;
        let proof = match from.u8()? {
            1 => Proof::Oidc(from.text(MAX_TOKEN)?),
            2 => Proof::Sts(from.text(MAX_TOKEN)?),
            _ => return Err(Malformed),
        };
        let (seal_to, nonce) = (from.bytes(MAX_JWK)?, from.bytes(MAX_NONCE)?);
        let count = from.count(MAX_RECORDS, 4)?;
        let envelopes = (0..count)
            .map(|_| from.bytes(MAX_ENVELOPES))
            .collect::<Result<_, _>>()?;
        let kind = from.u8()?;
        let count = from.count(MAX_RECORDS, 4)?;
        let what = match kind {
            1 => {
                let value = |_| Ok((from.option(|from| from.text(MAX_NAME))?, from.text(usize::MAX)?));
                What::Values((0..count).map(value).collect::<Result<_, Malformed>>()?)
            }
            2 => What::Records((0..count).map(|_| from.bytes(usize::MAX)).collect::<Result<_, _>>()?),
            _ => return Err(Malformed),
        };
        from.end()?;
        Ok(Self {
            dataset,
            purpose,
            proof,
            seal_to,
            nonce,
            envelopes,
            what,
        })
    }
}

/// What became of values of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// They are in the answer, sealed to the reader.
    Opened = 1,
    /// The ACL does not let the reader.
    Refused = 2,
    /// They do not open.
    Failed = 3,
}

/// A decision of the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The label.
    pub label: String,
    /// What became of the values.
    pub outcome: Outcome,
    /// By which rule.
    pub because: String,
    /// How many.
    pub count: u64,
}

/// The worker's answer.
#[derive(Debug, PartialEq, Eq)]
pub struct ReadAnswer<'a> {
    /// Version of the policy that decided.
    pub policy_version: u64,
    /// What was given, in order, with JWEs in the place of what was opened, and what the ACL says in the place of what was not;
    /// `None` for records of which nothing can be shown.
    pub shown: Vec<Option<&'a [u8]>>,
    /// What was decided.
    pub decisions: Vec<Decision>,
    /// A JWS by the worker's key over nonce, dataset, reader's key and all that is shown.
    pub proof: &'a str,
}

impl<'a> ReadAnswer<'a> {
    /// The body.
    #[must_use]
    pub fn to_body(&self) -> Zeroizing<Vec<u8>> {
        let mut body = Writer::default();
        body.u64(self.policy_version);
        body.count(self.shown.len());
        for shown in &self.shown {
            body.option(*shown, Writer::bytes);
        }
        body.count(self.decisions.len());
        for decision in &self.decisions {
            body.text(&decision.label);
            body.u8(decision.outcome as u8);
            body.text(&decision.because);
            body.u64(decision.count);
        }
        body.text(self.proof);
        body.finish()
    }

    /// Of a body.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(body);
        let policy_version = from.u64()?;
        let count = from.count(MAX_RECORDS, 1)?;
        let shown = (0..count)
            .map(|_| from.option(|from| from.bytes(usize::MAX)))
            .collect::<Result<_, _>>()?;
        let count = from.count(MAX_RECORDS, 17)?;
        let decision = |_| {
            Ok(Decision {
                label: from.text(MAX_NAME)?.to_owned(),
                outcome: match from.u8()? {
                    1 => Outcome::Opened,
                    2 => Outcome::Refused,
                    3 => Outcome::Failed,
                    _ => return Err(Malformed),
                },
                because: from.text(MAX_JWS)?.to_owned(),
                count: from.u64()?,
            })
        };
        let decisions = (0..count).map(decision).collect::<Result<_, _>>()?;
        let proof = from.text(MAX_JWS)?;
        from.end()?;
        Ok(Self {
            policy_version,
            shown,
            decisions,
            proof,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use proptest::prelude::*;

    use super::*;

    fn job(what: What<'_>) -> ReadJob<'_> {
        ReadJob {
            dataset: "payments",
            purpose: Some("billing"),
            proof: Proof::Oidc("a.b.c"),
            seal_to: b"{}",
            nonce: b"n",
            envelopes: vec![b"e"],
            what,
        }
    }

    #[test]
    fn nothing_shows_what_records_tokens_and_bodies_hold() {
        let shown = format!("{:?}", job(What::Records(vec![b"{\"a\":\"canary\"}"])));
        assert!(
            shown.contains("Records(1)") && !shown.contains("canary") && !shown.contains("a.b.c"),
            "{shown}"
        );
        // Bytes would be shown as numbers.
        assert!(!shown.contains("99, 97, 110"), "{shown}");
        let mut body = Writer::default();
        body.text("canary");
        let shown = format!("{body:?} {:?}", Reader::new(b"canary"));
        assert_eq!(shown, format!("Writer({} bytes) Reader(6 bytes)", body.finish().len()));
    }

    #[test]
    fn jobs_and_answers_come_back() {
        for what in [
            What::Values(vec![(Some("card"), "sf1.x"), (None, "sf1.y")]),
            What::Records(vec![b"{}", b"{\"a\":1}"]),
        ] {
            let job = job(what);
            let body = job.to_body();
            assert_eq!(ReadJob::read(&body), Ok(job));
            for cut in 0..body.len() {
                assert!(ReadJob::read(&body[..cut]).is_err(), "{cut}");
            }
        }
        let answer = ReadAnswer {
            policy_version: 3,
            shown: vec![Some(b"x"), None],
            decisions: vec![Decision {
                label: "card".to_owned(),
                outcome: Outcome::Refused,
                because: "no entry names it".to_owned(),
                count: 2,
            }],
            proof: "a.b.c",
        };
        assert_eq!(ReadAnswer::read(&answer.to_body()), Ok(answer));
        assert!(!format!("{:?}", Proof::Oidc("secret")).contains("secret"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = ReadJob::read(&bytes);
            let _ = ReadAnswer::read(&bytes);
        }
    }
}
