//! The checked model of a policy: what the rest of Sealflow works with.

use std::collections::BTreeMap;
use std::time::Duration;

use super::path::ColumnPath;

/// One version of one dataset's policy, parsed and checked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Policy {
    /// The dataset it governs: `[A-Za-z0-9._-]{1,128}`.
    pub dataset: String,
    /// Version; only grows.
    pub version: u64,
    /// SHA-256 of the YAML bytes: "the policy hash".
    pub sha256: [u8; 32],
    /// Policy keys by name or template (`tenant-{tenant_id}`).
    pub keys: BTreeMap<String, PolicyKey>,
    /// ACLs by name. Carried and checked for form here; enforced by [`crate::acl`].
    pub acls: BTreeMap<String, crate::acl::Acl>,
    /// The columns to seal, in the order written.
    pub columns: Vec<ColumnRule>,
    /// Where records go that cannot be sealed; without it they stop the pipeline.
    pub dead_letters: Option<DeadLetterRule>,
    /// What opens but never seals.
    pub previous: Previous,
    /// Whether readers and pipelines need a lease.
    pub lease: Lease,
}

/// A policy key: the KMS key under which the data keys of that name are wrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolicyKey {
    /// Full ARN of the KMS key.
    pub arn: String,
    /// How long a data key seals at most.
    pub max_age: Duration,
    /// For templates: how many data keys may be alive at once.
    pub max_live: u64,
}

/// One column of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ColumnRule {
    /// Where it is.
    pub path: ColumnPath,
    /// What it is sealed under (default: the canonical path).
    pub label: String,
    /// By which flow.
    pub flow: Flow,
    /// Name or template of its policy key. For domain columns the domain's document names the key.
    pub key: String,
    /// Name of its ACL. For domain columns the domain's document carries the ACL.
    pub acl: String,
    /// Randomised or deterministic.
    pub cipher: Cipher,
    /// Plaintexts are padded to a multiple of that many bytes.
    pub pad_to: Option<u32>,
    /// Whether JSON nulls are sealed too.
    pub seal_nulls: bool,
    /// The clear scalar that a sealed value is bound to.
    pub bind_row: Option<ColumnPath>,
    /// What to do with a record that lacks the column.
    pub on_missing: OnMissing,
}

/// Who sees the plaintext of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Flow {
    /// The backend: AES under a data key from KMS.
    Direct,
    /// Client and backend. Not built yet: refused when a pipeline starts.
    Hybrid,
    /// Client and enclave only. Not built yet: refused when a pipeline starts.
    Enclave,
}

/// How a column is sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// Suite `0x11`, AES-256-GCM: equal values look different.
    Randomised,
    /// Suite `0x12`, AES-256-SIV in that domain: equal values are equal bytes in every dataset of the domain.
    Domain(String),
}

/// What to do with a record that lacks a column of the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnMissing {
    /// Let it pass: there is nothing to seal.
    #[default]
    Pass,
    /// Make it a dead letter.
    Reject,
}

/// Key and ACL of the dead-letter dataset, whose name is the dataset's plus [`DEAD_LETTERS_SUFFIX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterRule {
    /// Name of a policy key (no template).
    pub key: String,
    /// Name of an ACL.
    pub acl: String,
}

/// Appended to a dataset's name for its dead letters; `#` cannot occur in a dataset's own name.
pub const DEAD_LETTERS_SUFFIX: &str = "#dead-letters";
/// The one label of a dead-letter dataset: the record sealed whole.
pub const DEAD_LETTER_LABEL: &str = "$record";

/// Keys and ACL names of earlier versions: they open, they never seal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// (policy key name or template, full ARN) pairs.
    pub keys: Vec<(String, String)>,
    /// Former ACL names, each with the current ACL that counts in its place.
    pub acls: BTreeMap<String, String>,
    /// Former labels, each with the current label whose ACL counts in its place.
    pub labels: BTreeMap<String, String>,
}

/// Whether access needs a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lease {
    /// No.
    #[default]
    None,
    /// Yes. Leases come with "Who may read": a pipeline refuses such a policy until then.
    Required,
}
