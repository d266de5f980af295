//! What callers get: types of answers, of which the OpenAPI document is made, and RFC 9457 documents of problems.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::problem::{Code, Problem};

/// What the caller sees. `values` or `records`, as was asked, in the same order.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Opened")]
pub(crate) struct Opened<'a> {
    /// The dataset.
    pub(crate) dataset: &'a str,
    /// Version of the policy that decided.
    pub(crate) policy_version: u64,
    /// The values as JSON. What was refused is null, or what the policy shows instead; what does not open is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<serde_json::Value>>")]
    pub(crate) values: Option<Vec<&'a RawValue>>,
    /// The records, every byte but the sealed values as it was. A record that cannot be taken apart is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Option<serde_json::Map<String, serde_json::Value>>>>")]
    pub(crate) records: Option<Vec<Option<&'a RawValue>>>,
    /// Why records are null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) withheld: Option<Vec<Withheld>>,
    /// What was decided, columns and outcomes each once.
    pub(crate) decisions: Vec<Decision<'a>>,
    /// What the enclave vouches for, if it was asked: its signature is over these values or records as they are spelled here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) enclave: Option<Enclave<'a>>,
}

/// What the enclave vouches for. The caller verifies it: this service could write anything here.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Enclave<'a> {
    /// Numbers of its values or records in the request, from 0, ascending.
    pub(crate) indexes: &'a [usize],
    /// A JWS of type `sealflow-enclave-answer`: dataset, key of `seal_to`, nonce, version of the policy, hash of what is shown.
    pub(crate) proof: &'a str,
    /// An attestation document in base64, with the nonce, that binds the key which signed `proof`.
    pub(crate) evidence: String,
}

/// A record of which nothing is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Withheld {
    /// Its number in the request, from 0.
    pub(crate) index: u64,
    /// Why: malformed-json, …
    pub(crate) code: &'static str,
}

/// What was decided about values of one label.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Decision<'a> {
    /// The proven label; of what proved none, the one that was named, or `?`.
    pub(crate) label: &'a str,
    /// What became of the values.
    pub(crate) outcome: Outcome,
    /// Of `failed`: why, in a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<&'static str>,
    /// The rule of the policy that decided, or why the values did not open.
    pub(crate) because: &'a str,
    /// How many values.
    pub(crate) count: u64,
}

/// What became of values.
#[derive(Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// They are shown.
    Opened,
    /// The ACL says no.
    Refused,
    /// The ACL says yes, and they do not open.
    Failed,
}

/// Who the service takes the caller to be.
#[derive(Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Whoami<'a> {
    /// As policies name it: an ARN, or `oidc:ISSUER#sub=SUBJECT`.
    pub(crate) principal: &'a str,
    /// Groups that the token lists.
    pub(crate) groups: Vec<&'a str>,
    /// How it was proved: `sts-presigned` or `oidc`.
    pub(crate) proof: &'static str,
    /// Until when the proof counts.
    pub(crate) expires: String,
}

/// A problem document (RFC 9457).
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Problem")]
pub(crate) struct Document<'a> {
    /// `about:blank`: the title is that of the status.
    r#type: &'static str,
    /// What the status says.
    title: &'a str,
    /// The HTTP status.
    status: u16,
    /// Why, in a word that stays.
    code: Code,
    /// Why, in a sentence; never with a value, key or token.
    detail: &'a str,
    /// What to do about it.
    help: &'a str,
}

impl Problem {
    /// Whether the connection ends with the answer: nobody keeps one by asking for nothing.
    #[must_use]
    pub(crate) fn closes(&self) -> bool {
        self.is_unproven() || matches!(self.code, Code::NotFound | Code::OtherMethod | Code::TooManyUnproven)
    }

    /// The document.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let status = self.code.status();
        let document = Document {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            code: self.code,
            detail: &self.detail,
            help: &self.help,
        };
        // Texts and numbers: nothing that could fail.
        serde_json::to_vec(&document).unwrap_or_default()
    }
}
