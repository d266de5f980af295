//! One decision: who, how that was proved, at what, with what outcome. Never a value.

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;

/// A decision about the values of one label, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it was made.
    pub at: UnixMillis,
    /// Who asked, as it was proved: an ARN, `oidc:ISSUER#sub=…`, or `client:NAME` of who sealed. `None`: nothing was proved.
    pub principal: Option<String>,
    /// The caller's ARN as STS told it, where it says more than the principal: the session, which may name a person.
    pub caller: Option<String>,
    /// How it was proved.
    pub proof: Option<Proof>,
    /// What the caller says it reads for.
    pub purpose: Option<String>,
    /// The proven dataset.
    pub dataset: Option<String>,
    /// A label of the policy: the proven one of what was opened, else that of the place; `?` where there is none.
    pub label: Option<String>,
    /// Version of the policy that decided.
    pub policy_version: Option<u64>,
    /// What was decided.
    pub decision: Verdict,
    /// What decided it: an entry of the policy (`acls.pii.allow[0]`), or the reason of a refusal.
    pub rule: String,
    /// How many values it is about.
    pub count: u64,
    /// Where they were found.
    pub place: Option<Place>,
}

impl Event {
    /// An event of which nothing is known but when it was, what was decided and why.
    #[must_use]
    pub fn new(at: UnixMillis, decision: Verdict, rule: impl Into<String>) -> Self {
        Self {
            at,
            principal: None,
            caller: None,
            proof: None,
            purpose: None,
            dataset: None,
            label: None,
            policy_version: None,
            decision,
            rule: rule.into(),
            count: 0,
            place: None,
        }
    }
}

/// How an identity was proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Proof {
    /// The command line's own credentials, told by STS: `sts-credentials`.
    StsCredentials,
    /// A request for STS that the caller signed: `sts-presigned`.
    StsPresigned,
    /// A token of an OIDC issuer: `oidc`.
    Oidc,
    /// Not at all: `--dev --as`. Written `assumed`.
    Assumed,
    /// A MAC by the key of a client, over a value that it sealed: `client-mac`.
    ClientMac,
}

impl Proof {
    /// As it stands in a line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StsCredentials => "sts-credentials",
            Self::StsPresigned => "sts-presigned",
            Self::Oidc => "oidc",
            Self::Assumed => "assumed",
            Self::ClientMac => "client-mac",
        }
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was opened.
    Allowed,
    /// It was not: an ACL, a policy or an identity said no.
    Refused,
    /// It was not: keys or cryptography failed.
    Failed,
}

impl Verdict {
    /// As it stands in a line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// Where values were found: a file, or a stretch of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Topic, file, or `request`.
    pub source: String,
    /// Partition of a topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<i32>,
    /// First offset, or line from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<i64>,
    /// Last offset, or line, inclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<i64>,
}
