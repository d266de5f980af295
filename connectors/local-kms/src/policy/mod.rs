//! Key policies of the local KMS: parsing, and the decision whether a call is allowed.
//!
//! The part of AWS's policy language that key policies use. There are no IAM policies here, so a statement for the
//! account's root principal speaks for every principal of the account (in AWS it would hand the question to IAM).
//! What the evaluator does not know never helps the caller: an Allow with it does not match, a Deny with it does.

mod condition;
mod evidence;
mod pattern;
mod principal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use sealflow::clock::UnixMillis;
use serde::Deserialize;

use self::condition::condition_holds;
pub use self::evidence::Evidence;
use self::pattern::like;
use self::principal::{Principal, is_aws_principal};
use crate::blob::Context;

/// The largest policy document, as in AWS KMS.
const MAX_POLICY: usize = 32 * 1024;

/// A key policy that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPolicy {
    document: Document,
    text: String,
}

/// Why a policy document was refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{reason}")]
pub struct PolicyError {
    reason: String,
}

/// What is asked for: who does what, with which key and encryption context.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The caller's ARN.
    pub principal: &'a str,
    /// For example `kms:Decrypt`.
    pub action: &'a str,
    /// The ARN of the key.
    pub key_arn: &'a str,
    /// The encryption context of the request; empty for operations without one.
    pub context: &'a Context,
    /// The encryption algorithm of the request, for example `RSAES_OAEP_SHA_256`; `None` for operations without one.
    pub algorithm: Option<&'a str>,
    /// What the attestation document of the request says, which was verified; `None` without one.
    pub evidence: Option<&'a Evidence>,
    /// When it is asked.
    pub now: UnixMillis,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "Version")]
    version: Option<String>,
    #[serde(rename = "Id")]
    #[allow(dead_code, reason = "valid, and without meaning for a decision")]
    id: Option<String>,
    #[serde(rename = "Statement")]
    statements: OneOrMany<Statement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    #[serde(rename = "Sid")]
    #[allow(dead_code, reason = "valid, and without meaning for a decision")]
    sid: Option<String>,
    #[serde(rename = "Effect")]
    effect: Effect,
    #[serde(rename = "Principal")]
    principal: Principal,
    #[serde(rename = "Action")]
    action: OneOrMany<String>,
    #[serde(rename = "Resource")]
    resource: OneOrMany<String>,
    #[serde(rename = "Condition", default)]
    condition: BTreeMap<String, BTreeMap<String, OneOrMany<String>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl KeyPolicy {
    /// Reads and checks a policy document. Elements that this server does not know are refused.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let refuse = |reason: String| PolicyError { reason };
        if text.len() > MAX_POLICY {
            return Err(refuse("the policy is larger than 32 KiB".to_owned()));
        }
        let document: Document = serde_json::from_str(text).map_err(|e| refuse(format!("not a key policy: {e}")))?;
        if document
            .version
            .as_deref()
            .is_some_and(|v| v != "2012-10-17" && v != "2008-10-17")
        {
            return Err(refuse("the policy's Version must be 2012-10-17".to_owned()));
        }
        if document.statements.as_slice().is_empty() {
            return Err(refuse("the policy has no Statement".to_owned()));
        }
        for statement in document.statements.as_slice() {
            statement.check().map_err(|reason| refuse(reason.to_owned()))?;
        }
        Ok(Self {
            document,
            text: text.to_owned(),
        })
    }

    /// AWS's default: everything to the account.
    #[must_use]
    pub fn default_for(account: &str) -> Self {
        let text = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Sid":"Enable IAM User Permissions","Effect":"Allow","Principal":{{"AWS":"arn:aws:iam::{account}:root"}},"Action":"kms:*","Resource":"*"}}]}}"#
        );
        let statement = Statement {
            sid: None,
            effect: Effect::Allow,
            principal: Principal::Kinds(BTreeMap::from([(
                "AWS".to_owned(),
                OneOrMany::One(format!("arn:aws:iam::{account}:root")),
            )])),
            action: OneOrMany::One("kms:*".to_owned()),
            resource: OneOrMany::One("*".to_owned()),
            condition: BTreeMap::new(),
        };
        let document = Document {
            version: None,
            id: None,
            statements: OneOrMany::One(statement),
        };
        Self { document, text }
    }

    /// The document as it was given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the policy allows `call`: no Deny matches, and an Allow does.
    #[must_use]
    pub fn allows(&self, call: &Call<'_>) -> bool {
        let statements = self.document.statements.as_slice();
        let matches = |effect| statements.iter().any(|s| s.effect == effect && s.matches(call));
        !matches(Effect::Deny) && matches(Effect::Allow)
    }
}

impl Statement {
    fn check(&self) -> Result<(), &'static str> {
        match &self.principal {
            Principal::Everybody(star) if star == "*" => {}
            Principal::Everybody(_) => return Err("a Principal is \"*\" or an object such as {\"AWS\": ARN}"),
            Principal::Kinds(kinds) => {
                for (kind, names) in kinds {
                    if !matches!(kind.as_str(), "AWS" | "Service" | "Federated" | "CanonicalUser") {
                        return Err("a Principal has an unknown kind");
                    }
                    if kind == "AWS" && !names.as_slice().iter().all(|name| is_aws_principal(name)) {
                        return Err("an AWS principal is an IAM or STS ARN without wildcards, an account, or \"*\"");
                    }
                }
            }
        }
        if self.action.as_slice().is_empty() || self.resource.as_slice().is_empty() {
            return Err("a statement needs an Action and a Resource");
        }
        if !self
            .action
            .as_slice()
            .iter()
            .all(|a| a == "*" || a.to_ascii_lowercase().starts_with("kms:"))
        {
            return Err("an Action of a key policy is \"*\" or starts with kms:");
        }
        Ok(())
    }

    fn matches(&self, call: &Call<'_>) -> bool {
        let when_unknown = self.effect == Effect::Deny;
        let action = call.action.to_ascii_lowercase();
        self.principal.matches(call.principal)
            && self
                .action
                .as_slice()
                .iter()
                .any(|pattern| like(&pattern.to_ascii_lowercase(), &action))
            && self
                .resource
                .as_slice()
                .iter()
                .any(|pattern| like(pattern, call.key_arn))
            && self.condition.iter().all(|(operator, keys)| {
                keys.iter().all(|(key, wanted)| {
                    condition_holds(operator, key, wanted.as_slice(), call).unwrap_or(when_unknown)
                })
            })
    }
}
