//! The checked model of a policy: what the rest of Sealflow works with.

use std::collections::BTreeMap;
use std::time::Duration;

use super::client::ClientRule;
use super::enclave::EnclaveRule;
use super::path::ColumnPath;
use super::recipient::Recipient;
use super::template::KeyTemplate;
use crate::jose::Thumbprint;

/// One version of one dataset's policy, parsed and checked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Policy {
    /// The dataset it governs: `[A-Za-z0-9._-]{1,128}`.
    pub dataset: String,
    /// Version, from 1; only grows.
    pub version: u64,
    /// SHA-256 of the YAML bytes: "the policy hash".
    pub sha256: [u8; 32],
    /// Policy keys by name or template (`tenant-{tenant_id}`).
    pub keys: BTreeMap<String, PolicyKey>,
    /// ACLs by name; [`Policy::access`] decides by them.
    pub acls: BTreeMap<String, crate::acl::Acl>,
    /// The columns to seal, in the order written; behind them the hints, in the order of their columns.
    pub columns: Vec<ColumnRule>,
    /// How clients seal; without it none do.
    pub client: Option<ClientRule>,
    /// What the enclave worker opens, and which images of it may; without it no column is an enclave's.
    pub enclave: Option<EnclaveRule>,
    /// Where records go that cannot be sealed; without it they stop the pipeline.
    pub dead_letters: Option<DeadLetterRule>,
    /// How tables of it are written; without it none are.
    pub table: Option<TableRule>,
    /// What opens but never seals.
    pub previous: Previous,
    /// Whether readers and pipelines need a lease.
    pub lease: Lease,
    /// Keys that may sign leases, beside the owner's, and nothing else.
    pub lease_keys: Vec<Thumbprint>,
}

/// A policy key: the KMS key under which the data keys of that name are wrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolicyKey {
    /// Its name, with fields to fill in if it is a template.
    pub name: KeyTemplate,
    /// Full ARN of the KMS key.
    pub arn: String,
    /// How long a data key seals at most.
    pub max_age: Duration,
    /// For templates: how many data keys may be alive at once. 1 for plain names.
    pub max_live: u64,
}

/// One column of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ColumnRule {
    /// Where it is.
    pub path: ColumnPath,
    /// What it is sealed under (default: the canonical path; for domain columns `domain:NAME`).
    pub label: String,
    /// By which flow.
    pub flow: Flow,
    /// Of hybrid and enclave columns: whether values in clear are refused.
    pub client_sealed: ClientSealed,
    /// Name or template of its policy key. Empty for domain columns: the domain's document names the key.
    pub key: String,
    /// Name of its ACL. Empty for domain columns: the domain's document carries the ACL.
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
    /// Where in a table it is sealed.
    pub at: Placement,
    /// What it is derived from, if clear records do not have it: a hint. Its path is that of its column, with
    /// [`Derivation::suffix`] behind the last name; its label is that of its column with the same suffix.
    pub hint: Option<Hint>,
}

/// What a hint is derived from when a value is sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hint {
    /// Index in [`Policy::columns`] of the column that it tells something of.
    pub column: usize,
    /// What it tells.
    pub derivation: Derivation,
}

/// What a hint tells of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Derivation {
    /// Its last four characters or digits.
    Last4,
    /// Whether it equals another one: HMAC-SHA-256 under a key of that domain's secret.
    Hmac {
        /// The domain.
        domain: String,
    },
}

impl Derivation {
    /// What stands behind the column's name and label: `#last4`, `#hmac`.
    #[must_use]
    pub fn suffix(&self) -> &'static str {
        match self {
            Self::Last4 => "#last4",
            Self::Hmac { .. } => "#hmac",
        }
    }
}

impl ColumnRule {
    /// The domain whose secret is needed to seal it: its own, or that of a hint's HMAC.
    #[must_use]
    pub fn sealing_domain(&self) -> Option<&str> {
        match &self.hint {
            Some(Hint {
                derivation: Derivation::Hmac { domain },
                ..
            }) => Some(domain),
            _ => self.domain(),
        }
    }

    /// The domain of a deterministic column.
    #[must_use]
    pub fn domain(&self) -> Option<&str> {
        match &self.cipher {
            Cipher::Randomised => None,
            Cipher::Domain(name) => Some(name),
        }
    }
}

/// Whether each value is sealed, or the whole column by the table format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// Each value.
    #[default]
    Value,
    /// In tables the column of an encrypted Parquet file; everywhere else each value.
    Column,
}

/// Who sees the plaintext of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Flow {
    /// The backend: AES under a data key from KMS.
    Direct,
    /// Client and backend: the client seals, the backend opens and seals again.
    Hybrid,
    /// Client and enclave only: the backend carries ciphertext.
    Enclave,
}

/// Whether the values of a hybrid or enclave column must come sealed by the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientSealed {
    /// A value in clear makes its record a dead letter.
    #[default]
    Required,
    /// A value in clear is sealed as it is.
    Optional,
    /// As `Required`, in a JWS by the key of a client that the policy knows.
    Authenticated,
    /// As `Authenticated`, and no value is taken twice.
    Once,
}

impl ClientSealed {
    /// Whether a value must say which client sealed it.
    #[must_use]
    pub fn is_authenticated(self) -> bool {
        matches!(self, Self::Authenticated | Self::Once)
    }
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

/// Who can open the dead letters, a dataset whose name is the dataset's plus [`DEAD_LETTERS_SUFFIX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadLetterRule {
    /// Whoever may use a KMS key: they are sealed under a data key of it.
    Key {
        /// Name of a policy key (no template).
        key: String,
        /// Name of an ACL.
        acl: String,
    },
    /// Whoever has the private half of this key, which no service holds. No KMS key and no ACL count.
    Recipient(Recipient),
}

impl DeadLetterRule {
    /// Names of the policy key and of the ACL, if they are sealed under one.
    #[must_use]
    pub fn key_and_acl(&self) -> Option<(&str, &str)> {
        match self {
            Self::Key { key, acl } => Some((key, acl)),
            Self::Recipient(_) => None,
        }
    }

    /// The key that they are sealed to, if no service can open them.
    #[must_use]
    pub fn recipient(&self) -> Option<&Recipient> {
        match self {
            Self::Key { .. } => None,
            Self::Recipient(recipient) => Some(recipient),
        }
    }
}

/// How tables are written: encrypted Parquet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TableRule {
    /// Name of the policy key (no template) of footers and clear columns.
    pub key: String,
    /// Name of their ACL.
    pub acl: String,
    /// Name of the policy key (no template) and of the ACL of what the schema does not have.
    pub extra: Option<(String, String)>,
    /// How files end.
    pub footer: Footer,
    /// Whom they are for.
    pub profile: Profile,
}

/// How a table file ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Footer {
    /// With an encrypted footer.
    #[default]
    Encrypted,
    /// With a footer that anybody reads, signed with its key.
    SignedPlaintext,
}

/// Whom a table file is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// For readers of Parquet's column keys: each column under its own key, the place in the additional data.
    #[default]
    Standard,
    /// For DuckDB too: one key, no proof of place.
    DuckDb,
}

/// The label of a table's footer and of its clear columns.
pub const FOOTER_LABEL: &str = "$footer";
/// The label of what a table's schema does not have.
pub const EXTRA_LABEL: &str = "$extra";

/// Appended to a dataset's name for its dead letters; `#` cannot occur in a dataset's own name.
pub const DEAD_LETTERS_SUFFIX: &str = "#dead-letters";
/// The one label of a dead-letter dataset: the record sealed whole.
pub const DEAD_LETTER_LABEL: &str = "$record";

/// Keys and ACL names of earlier versions: they open, they never seal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// Former policy keys with their former KMS keys.
    pub keys: Vec<PreviousKey>,
    /// Former ACL names, each with the current ACL that counts in its place.
    pub acls: BTreeMap<String, String>,
    /// Former labels, each with the current label whose ACL counts in its place.
    pub labels: BTreeMap<String, String>,
}

/// A policy key of an earlier version.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PreviousKey {
    /// Its name, with fields if it was a template.
    pub name: KeyTemplate,
    /// Full ARN of the KMS key.
    pub arn: String,
}

/// Whether access needs a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lease {
    /// No.
    #[default]
    None,
    /// Yes: the policy counts only while a [lease](super::lease) of its version holds.
    Required,
}

/// Labels that are sealed under one data key at a time: one per (dataset, policy key, ACL).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyGroup {
    /// The dataset: the policy's own, or that of its dead letters.
    pub dataset: String,
    /// Name or template of the policy key.
    pub key: String,
    /// Name of the ACL.
    pub acl: String,
    /// The labels, each at the position that sealed values and envelopes call `column`.
    pub labels: Vec<GroupLabel>,
}

/// One label of a [`KeyGroup`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupLabel {
    /// The label.
    pub label: String,
    /// Index in [`Policy::columns`]; `None` for the dead letters' label.
    pub column: Option<usize>,
    /// The clear scalar that its values are bound to.
    pub bind_row: Option<ColumnPath>,
}

/// Something that a policy says and this version cannot do yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
#[non_exhaustive]
pub struct Unsupported {
    /// Key path in the policy: `columns[2].flow`.
    pub path: String,
    /// What is not there yet.
    pub message: String,
    /// What to do instead.
    pub help: String,
}

impl Policy {
    /// The groups that share a data key, in the order in which their first columns stand in the policy, and
    /// their labels in the order of the columns. Domain columns are in none: they are sealed under their
    /// domain's secret. For the dead letters see [`dead_letter_group`](Self::dead_letter_group).
    #[must_use]
    pub fn groups(&self) -> Vec<KeyGroup> {
        let mut groups: Vec<KeyGroup> = Vec::new();
        for (n, rule) in self.columns.iter().enumerate() {
            if rule.domain().is_some() {
                continue;
            }
            let label = GroupLabel {
                label: rule.label.clone(),
                column: Some(n),
                bind_row: rule.bind_row.clone(),
            };
            let same = groups
                .iter_mut()
                .find(|group| group.key == rule.key && group.acl == rule.acl);
            match same {
                Some(group) => group.labels.push(label),
                None => groups.push(KeyGroup {
                    dataset: self.dataset.clone(),
                    key: rule.key.clone(),
                    acl: rule.acl.clone(),
                    labels: vec![label],
                }),
            }
        }
        groups
    }

    /// The group of the dead letters, a dataset of their own with the one label [`DEAD_LETTER_LABEL`]. None if they are
    /// sealed to a recipient: no data key is theirs.
    #[must_use]
    pub fn dead_letter_group(&self) -> Option<KeyGroup> {
        let (key, acl) = self.dead_letters.as_ref()?.key_and_acl()?;
        let label = GroupLabel {
            label: DEAD_LETTER_LABEL.to_owned(),
            column: None,
            bind_row: None,
        };
        Some(KeyGroup {
            dataset: self.dead_letters_dataset(),
            key: key.to_owned(),
            acl: acl.to_owned(),
            labels: vec![label],
        })
    }

    /// The groups whose key-encryption keys the columns of a table take: one per (policy key, ACL), that of the footer
    /// first. Their labels are those of the `at: column` columns and [`FOOTER_LABEL`]. None if no tables are written.
    #[must_use]
    pub fn table_groups(&self) -> Vec<KeyGroup> {
        let Some(table) = &self.table else {
            return Vec::new();
        };
        let mut groups = vec![self.group_of(&table.key, &table.acl, FOOTER_LABEL, None)];
        for (n, rule) in self.columns.iter().enumerate() {
            if rule.at != Placement::Column {
                continue;
            }
            let same = groups
                .iter_mut()
                .find(|group| group.key == rule.key && group.acl == rule.acl);
            match same {
                Some(group) => group.labels.push(GroupLabel {
                    label: rule.label.clone(),
                    column: Some(n),
                    bind_row: None,
                }),
                None => groups.push(self.group_of(&rule.key, &rule.acl, &rule.label, Some(n))),
            }
        }
        groups
    }

    /// The labels of tables that no column of the policy has, with the names of their ACLs.
    #[must_use]
    pub fn table_labels(&self) -> Vec<(&'static str, &str)> {
        let Some(table) = &self.table else {
            return Vec::new();
        };
        let extra = table.extra.as_ref().map(|(_, acl)| (EXTRA_LABEL, acl.as_str()));
        std::iter::once((FOOTER_LABEL, table.acl.as_str()))
            .chain(extra)
            .collect()
    }

    /// The group of what a table's schema does not have.
    #[must_use]
    pub fn extra_group(&self) -> Option<KeyGroup> {
        let (key, acl) = self.table.as_ref()?.extra.as_ref()?;
        Some(self.group_of(key, acl, EXTRA_LABEL, None))
    }

    fn group_of(&self, key: &str, acl: &str, label: &str, column: Option<usize>) -> KeyGroup {
        KeyGroup {
            dataset: self.dataset.clone(),
            key: key.to_owned(),
            acl: acl.to_owned(),
            labels: vec![GroupLabel {
                label: label.to_owned(),
                column,
                bind_row: None,
            }],
        }
    }

    /// Name of the dead letters' dataset.
    #[must_use]
    pub fn dead_letters_dataset(&self) -> String {
        format!("{}{DEAD_LETTERS_SUFFIX}", self.dataset)
    }

    /// The current policy key that has this name, or whose template gives it. At most one does: policies in
    /// which two could are refused.
    #[must_use]
    pub fn key_by_name(&self, resolved_name: &str) -> Option<&PolicyKey> {
        self.keys.values().find(|key| key.name.matches(resolved_name))
    }

    /// Whether envelopes that say (key name, KMS key, ACL) may be unwrapped under this policy: each of the
    /// three is current, or listed under `previous`.
    #[must_use]
    pub fn opens(&self, key_name: &str, arn: &str, acl: &str) -> bool {
        let is_current = self.key_by_name(key_name).is_some_and(|key| key.arn == arn);
        let is_previous = || {
            self.previous
                .keys
                .iter()
                .any(|key| key.arn == arn && key.name.matches(key_name))
        };
        (is_current || is_previous()) && self.current_acl(acl).is_some()
    }

    /// The current name of an ACL that an envelope names: itself, or what `previous` says counts in its place.
    #[must_use]
    pub fn current_acl(&self, name: &str) -> Option<&str> {
        if let Some((current, _)) = self.acls.get_key_value(name) {
            return Some(current);
        }
        self.previous.acls.get(name).map(String::as_str)
    }

    /// The name of the ACL that counts for a label of this dataset, current or under `previous`. `None` for
    /// labels that the policy does not know, and for domain labels, whose ACL is in the domain's document.
    #[must_use]
    pub fn acl_for_label(&self, label: &str) -> Option<&str> {
        match (label, &self.table) {
            (FOOTER_LABEL, Some(table)) => return Some(&table.acl),
            (EXTRA_LABEL, Some(table)) => return table.extra.as_ref().map(|(_, acl)| acl.as_str()),
            _ => {}
        }
        let label = self.previous.labels.get(label).map_or(label, String::as_str);
        let rule = self
            .columns
            .iter()
            .find(|rule| rule.domain().is_none() && rule.label == label)?;
        Some(&rule.acl)
    }

    /// What this policy says and this version cannot do yet. A pipeline refuses to start unless it is empty.
    #[must_use]
    pub fn unsupported(&self) -> Vec<Unsupported> {
        Vec::new()
    }
}
