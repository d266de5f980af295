//! One line of the log: a JSON object with its members in one order, and the hash of the line before it.
//!
//! There is one spelling of a line: what is parsed is written again and compared, so that every byte of it counts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::AuditError;
use super::event::{Event, Place, Proof, Verdict};
use crate::calendar::write_timestamp;
use crate::clock::UnixMillis;
use crate::jose::{base64url, from_base64url_32};
use crate::seal::plaintext::TimeUnit;

/// The version of the format.
const VERSION: u8 = 1;
/// The longest text of an event, in bytes. Longer ones are cut, and say so.
pub const MAX_TEXT_BYTES: usize = 2_048;
/// The longest line, in bytes without its end. An event has six texts, and JSON makes six bytes of one at most.
pub const MAX_LINE_BYTES: usize = 128 * 1024;
/// 9999-12-31T23:59:59.999Z: later moments cannot be written as RFC 3339.
const LAST_MOMENT: u64 = 253_402_300_799_999;

/// The name of a chain: 16 random bytes, in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId([u8; 16]);

impl InstanceId {
    /// A new one, from the operating system's random numbers.
    ///
    /// # Errors
    /// [`AuditError::NoRandom`]
    pub fn random() -> Result<Self, AuditError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|_| AuditError::NoRandom)?;
        Ok(Self(bytes))
    }

    /// With these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for InstanceId {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() != 32 || !text.bytes().all(is_hex) {
            return Err(LineError::BadMember { member: "instance" });
        }
        // 32 digits: they fit.
        u128::from_str_radix(text, 16)
            .map(|number| Self(number.to_be_bytes()))
            .map_err(|_| LineError::BadMember { member: "instance" })
    }
}

/// SHA-256 of the bytes of a line, without its end.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LineHash([u8; 32]);

impl LineHash {
    /// Of this line.
    #[must_use]
    pub fn of(line: &[u8]) -> Self {
        Self(Sha256::digest(line).into())
    }
}

impl fmt::Display for LineHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64url(&self.0))
    }
}

impl fmt::Debug for LineHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LineHash {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        from_base64url_32(text)
            .map(Self)
            .ok_or(LineError::BadMember { member: "prev" })
    }
}

/// Why a text is no line of an audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// Over [`MAX_LINE_BYTES`].
    #[error("longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// No JSON object with the members of a line.
    #[error("not a JSON object with the members of an audit line")]
    NotALine,
    /// A line of another version of the format.
    #[error("a line of another version of the format")]
    OtherVersion,
    /// A member that is not what it should be.
    #[error("{member} is malformed")]
    BadMember {
        /// Which.
        member: &'static str,
    },
    /// The same content in another spelling: spaces, another order, other escapes.
    #[error("not spelled as an audit log spells its lines")]
    NotCanonical,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its chain.
    pub instance: InstanceId,
    /// Its number in the chain, from 0.
    pub seq: u64,
    /// The hash of the line before it in the chain; `None` for the first.
    pub prev: Option<LineHash>,
    /// When: of an event, when it was decided; else when the line was made.
    pub at: UnixMillis,
    /// What it says.
    pub body: Body,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Body {
    /// The first line of a chain.
    Start {
        /// What its operator calls the process: a host, a pod.
        name: Option<String>,
    },
    /// A process goes on with the chain of an earlier one.
    Resume {
        /// What its operator calls the process.
        name: Option<String>,
        /// Bytes of an unfinished line that it found at the end and took away. Nobody was told that it is durable.
        dropped: u64,
    },
    /// A decision. Its `at` is that of the line.
    Decision(Box<Event>),
    /// What the line before this one vouches for, signed.
    Checkpoint {
        /// A [`Checkpoint`](super::Checkpoint) as JWS.
        jws: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Start,
    Resume,
    Decision,
    Checkpoint,
}

/// The members in their order. `Option`s are left out where they are not set, but for `prev`.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    v: u8,
    instance: String,
    seq: u64,
    prev: Option<String>,
    at: String,
    kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dropped: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    principal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    caller: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proof: Option<Proof>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    purpose: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dataset: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    policy_version: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    decision: Option<Verdict>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jws: Option<String>,
}

impl Line {
    /// The line as it is written, without its end.
    #[must_use]
    pub fn to_text(&self) -> String {
        // Members are strings and numbers, so that writing them to memory cannot fail.
        serde_json::to_string(&self.members()).unwrap_or_default()
    }

    /// Reads a line, without its end.
    ///
    /// # Errors
    /// [`LineError`]
    pub fn parse(line: &[u8]) -> Result<Self, LineError> {
        if line.len() > MAX_LINE_BYTES {
            return Err(LineError::TooLong);
        }
        let members: Members = serde_json::from_slice(line).map_err(|_| LineError::NotALine)?;
        let parsed = Self::from_members(members)?;
        if parsed.to_text().as_bytes() != line {
            return Err(LineError::NotCanonical);
        }
        Ok(parsed)
    }

    fn members(&self) -> Members {
        let mut members = Members {
            v: VERSION,
            instance: self.instance.to_string(),
            seq: self.seq,
            prev: self.prev.map(|hash| hash.to_string()),
            at: moment(self.at),
            kind: Kind::Start,
            name: None,
            dropped: None,
            principal: None,
            caller: None,
            proof: None,
            purpose: None,
            dataset: None,
            label: None,
            policy_version: None,
            decision: None,
            rule: None,
            count: None,
            place: None,
            jws: None,
        };
        match &self.body {
            Body::Start { name } => members.name = cut_all(name),
            Body::Resume { name, dropped } => {
                members.kind = Kind::Resume;
                members.name = cut_all(name);
                members.dropped = Some(*dropped);
            }
            Body::Decision(event) => {
                members.kind = Kind::Decision;
                members.principal = cut_all(&event.principal);
                members.caller = cut_all(&event.caller);
                members.proof = event.proof;
                members.purpose = cut_all(&event.purpose);
                members.dataset = cut_all(&event.dataset);
                members.label = cut_all(&event.label);
                members.policy_version = event.policy_version;
                members.decision = Some(event.decision);
                members.rule = Some(cut(&event.rule));
                members.count = Some(event.count);
                members.place = event.place.as_ref().map(|place| Place {
                    source: cut(&place.source),
                    ..place.clone()
                });
            }
            Body::Checkpoint { jws } => {
                members.kind = Kind::Checkpoint;
                members.jws = Some(jws.clone());
            }
        }
        members
    }

    /// Members that do not belong to the kind are dropped here, and noticed when the line is written again.
    fn from_members(members: Members) -> Result<Self, LineError> {
        if members.v != VERSION {
            return Err(LineError::OtherVersion);
        }
        let missing = |member| LineError::BadMember { member };
        let at: UnixMillis = members.at.parse().map_err(|_| missing("at"))?;
        let body = match members.kind {
            Kind::Start => Body::Start { name: members.name },
            Kind::Resume => Body::Resume {
                name: members.name,
                dropped: members.dropped.ok_or(missing("dropped"))?,
            },
            Kind::Decision => Body::Decision(Box::new(Event {
                at,
                principal: members.principal,
                caller: members.caller,
                proof: members.proof,
                purpose: members.purpose,
                dataset: members.dataset,
                label: members.label,
                policy_version: members.policy_version,
                decision: members.decision.ok_or(missing("decision"))?,
                rule: members.rule.ok_or(missing("rule"))?,
                count: members.count.ok_or(missing("count"))?,
                place: members.place,
            })),
            Kind::Checkpoint => Body::Checkpoint {
                jws: members.jws.ok_or(missing("jws"))?,
            },
        };
        Ok(Self {
            instance: members.instance.parse()?,
            seq: members.seq,
            prev: members.prev.map(|hash| hash.parse()).transpose()?,
            at,
            body,
        })
    }
}

/// RFC 3339 in UTC, to the millisecond.
pub(super) fn moment(at: UnixMillis) -> String {
    let millis = i64::try_from(at.0.min(LAST_MOMENT)).unwrap_or_default();
    let mut text = String::with_capacity(24);
    write_timestamp(TimeUnit::Millisecond, millis, Some("UTC"), &mut text);
    text
}

fn cut_all(text: &Option<String>) -> Option<String> {
    text.as_deref().map(cut)
}

/// What somebody else wrote, at most [`MAX_TEXT_BYTES`] of it.
fn cut(text: &str) -> String {
    if text.len() <= MAX_TEXT_BYTES {
        return text.to_owned();
    }
    let mark = format!("… ({} bytes)", text.len());
    let end = text.floor_char_boundary(MAX_TEXT_BYTES - mark.len());
    format!("{}{mark}", &text[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::audit::testing::{arbitrary_event, sample_event};

    fn sample(body: Body) -> Line {
        Line {
            instance: InstanceId::from_bytes([0xab; 16]),
            seq: 7,
            prev: Some(LineHash::of(b"the line before")),
            at: UnixMillis(1_767_225_600_250),
            body,
        }
    }

    #[test]
    fn a_line_has_the_members_of_the_format_in_their_order() {
        let line = sample(Body::Decision(Box::new(sample_event())));
        assert_eq!(
            line.to_text(),
            concat!(
                r#"{"v":1,"instance":"abababababababababababababababab","seq":7,"#,
                r#""prev":"OQRfOdO3Ue1BKgge-rlVHiMpgx3d8rdETOVYbeE9WIY","at":"2026-01-01T00:00:00.250Z","kind":"decision","#,
                r#""principal":"arn:aws:iam::111122223333:role/analyst","#,
                r#""caller":"arn:aws:sts::111122223333:assumed-role/analyst/ann","proof":"sts-credentials","purpose":"fraud","#,
                r#""dataset":"payments","label":"card.number","policy_version":3,"decision":"allowed","#,
                r#""rule":"acls.pii.allow[0]","count":12,"#,
                r#""place":{"source":"payments.sealed","partition":0,"first":100,"last":111}}"#,
            )
        );
        assert_eq!(Line::parse(line.to_text().as_bytes()), Ok(line));
        let first = Line {
            prev: None,
            ..sample(Body::Start { name: None })
        };
        assert!(
            first
                .to_text()
                .ends_with(r#""prev":null,"at":"2026-01-01T00:00:00.250Z","kind":"start"}"#)
        );
    }

    #[test]
    fn what_is_no_line_or_another_spelling_of_one_is_refused() {
        let text = sample(Body::Decision(Box::new(sample_event()))).to_text();
        for (from, to, error) in [
            ("\"v\":1", "\"v\":2", LineError::OtherVersion),
            ("\"v\":1", "\"v\": 1", LineError::NotCanonical),
            ("\"count\":12,", "", LineError::BadMember { member: "count" }),
            ("\"count\":12", "\"count\":12,\"count\":12", LineError::NotALine),
            ("\"count\":12", "\"count\":12,\"value\":\"4111\"", LineError::NotALine),
            ("\"count\":12", "\"count\":12,\"dropped\":1", LineError::NotCanonical),
            ("fraud", "fr\\u0061ud", LineError::NotCanonical),
            (".250Z", ".250+00:00", LineError::NotCanonical),
            (".250Z", "", LineError::BadMember { member: "at" }),
            ("abab", "ABab", LineError::BadMember { member: "instance" }),
            ("OQRf", "OQR", LineError::BadMember { member: "prev" }),
            ("allowed", "perhaps", LineError::NotALine),
        ] {
            assert_eq!(Line::parse(text.replacen(from, to, 1).as_bytes()), Err(error), "{to}");
        }
        assert_eq!(Line::parse(b""), Err(LineError::NotALine));
        assert_eq!(Line::parse(&vec![b' '; MAX_LINE_BYTES + 1]), Err(LineError::TooLong));
    }

    #[test]
    fn texts_of_callers_are_cut_and_cannot_begin_a_line_of_their_own() {
        let mut event = sample_event();
        event.purpose = Some("\"}\n{\"v\":1".to_owned());
        event.rule = "\u{1}é".repeat(5_000);
        event.principal = event.purpose.clone();
        event.dataset = Some("\0".repeat(5_000));
        event.label = event.dataset.clone();
        event.place = Some(Place {
            source: "\0".repeat(5_000),
            partition: None,
            first: None,
            last: None,
        });
        let text = sample(Body::Decision(Box::new(event))).to_text();
        assert!(!text.contains('\n') && text.len() <= MAX_LINE_BYTES, "{}", text.len());
        assert!(text.contains("… (15000 bytes)\""));
        let parsed = Line::parse(text.as_bytes()).unwrap();
        assert_eq!(parsed.to_text(), text);
    }

    proptest! {
        #[test]
        fn a_line_reads_as_it_was_written_and_no_byte_of_it_can_be_left_out(
            event in arbitrary_event(), seq: u64, at in 0..=LAST_MOMENT, gap in any::<prop::sample::Index>(),
        ) {
            let mut line = sample(Body::Decision(Box::new(Event { at: UnixMillis(at), ..event })));
            line.seq = seq;
            line.at = UnixMillis(at);
            let mut text = line.to_text().into_bytes();
            let read = Line::parse(&text);
            prop_assert_eq!(read.as_ref(), Ok(&line));
            text.remove(gap.index(text.len()));
            prop_assert_ne!(Line::parse(&text), read);
        }
    }
}
