//! Whom values are sealed to, a bare key or an enclave, and where the sessions to them go.

use std::ops::Range;
use std::sync::Arc;

use sealflow::columns::{Found, Locator, json};
use sealflow::policy::{ColumnPath, Root, Segment};
use sealflow_client::{
    ClientMac, EnclaveKey, EnclaveLabels, RowId, RsaPublicJwk, SealError, Session, seal_value_beside,
    seal_value_for_enclave,
};

use super::seal::{MEND, Refusal};
use crate::failure::{Failure, Result};

/// A key, and what may be sealed to it.
pub(super) enum To {
    /// One that nobody vouches for: no value of these labels.
    Bare {
        key: RsaPublicJwk,
        dataset: String,
        enclave: EnclaveLabels,
    },
    /// One of a verified document: the values of its dataset and labels alone.
    Enclave(EnclaveKey),
}

/// A key, and where the sessions to it go; without a place each value has a key of its own.
pub(super) struct Recipient {
    pub(super) to: To,
    pub(super) carrier: Option<Carrier>,
}

impl Recipient {
    pub(super) fn begin(&self, mac: Option<&Arc<ClientMac>>) -> std::result::Result<Session, SealError> {
        let session = match &self.to {
            To::Bare { key, dataset, enclave } => Session::begin(key, dataset)?.never_for(enclave.clone()),
            To::Enclave(key) => Session::begin_for_enclave(key)?,
        };
        Ok(match mac {
            Some(mac) => session.with_mac(Arc::clone(mac)),
            None => session,
        })
    }

    /// A value with a key of its own.
    pub(super) fn seal_value(
        &self,
        label: &str,
        json: &[u8],
        row: Option<&RowId>,
        mac: Option<&ClientMac>,
    ) -> std::result::Result<String, SealError> {
        match &self.to {
            To::Bare { key, dataset, enclave } => seal_value_beside(enclave, key, dataset, label, json, row, mac),
            To::Enclave(key) => seal_value_for_enclave(key, label, json, row, mac),
        }
    }
}

/// Where sessions go: a member of the record, or of an object in it.
pub(super) struct Carrier {
    /// The member's name as JSON.
    name: String,
    /// The object that gets it; `None` for the record itself.
    within: Option<(String, Locator)>,
}

/// A member that goes right behind an object's brace.
pub(super) struct Member {
    at: usize,
    is_alone: bool,
    text: String,
}

impl Carrier {
    pub(super) fn new(option: &str, path: &ColumnPath) -> Result<Self> {
        let wrong = |error: &dyn std::fmt::Display| {
            let help = "name a field without [*], as `session` in the policy does; or seal --per-value";
            Failure::usage(format_args!("{option}: {error}"), help)
        };
        let is_clear = *path.root() == Root::Value && !path.segments().contains(&Segment::Each);
        let Some((Segment::Name(last), within)) = path.segments().split_last().filter(|_| is_clear) else {
            return Err(wrong(&"a session is one string in the value of a record"));
        };
        let mut name = Vec::new();
        json::write_string(last, &mut name);
        let within = match within {
            [] => None,
            within => {
                let within = ColumnPath::into_value(within.to_vec());
                let locator = Locator::new(std::slice::from_ref(&within), &[]).map_err(|error| wrong(&error))?;
                Some((within.to_string(), locator))
            }
        };
        Ok(Self {
            name: String::from_utf8_lossy(&name).into_owned(),
            within,
        })
    }

    /// What is written where, so that `text` has the session.
    pub(super) fn place(&self, text: &[u8], token: &str) -> std::result::Result<Member, Refusal> {
        let is_space = |byte: &u8| b" \t\r\n".contains(byte);
        let after_space = |from: usize| from + text[from..].iter().take_while(|byte| is_space(byte)).count();
        let (what, start) = match &self.within {
            None => ("the record".to_owned(), after_space(0)),
            Some((path, locator)) => {
                let mut found = Found::default();
                let located = locator.locate(text, &mut found);
                located.map_err(|error| Refusal::new(error.to_string(), MEND))?;
                let [hit] = found.hits[..] else {
                    let reason = format!("there is not one {path} in it, into which the session goes");
                    return Err(Refusal::new(reason, MEND));
                };
                (path.clone(), hit.range().start)
            }
        };
        if text.get(start) != Some(&b'{') {
            return Err(Refusal::new(
                format!("{what} is not an object, so that it has no member for the session"),
                "give one object a record, or seal each value by itself (--per-value)",
            ));
        }
        let at = start + 1;
        Ok(Member {
            at,
            is_alone: text.get(after_space(at)) == Some(&b'}'),
            text: format!("{}:\"{token}\"", self.name),
        })
    }
}

/// What is written for these members, of which two may go into one object.
pub(super) fn written(members: Vec<Member>) -> Vec<(Range<usize>, String)> {
    let places: Vec<usize> = members.iter().map(|member| member.at).collect();
    let mut written = Vec::with_capacity(members.len());
    for (n, Member { at, is_alone, mut text }) in members.into_iter().enumerate() {
        if !is_alone || places[n + 1..].contains(&at) {
            text.push(',');
        }
        written.push((at..at, text));
    }
    written
}
