//! What goes wrong with tables. No error holds a value.

use crate::flow::enclave::EnclaveError;
use crate::keys::{KeyError, OpenKeyError};
use crate::pipeline::ReadError;
use crate::policy::{PolicySourceError, TrustError};
use crate::seal::SealError;

/// Why a table cannot be written or read.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The policy has no `table:` section.
    #[error(
        "the policy of dataset {dataset} has no section `table`: it does not say under which key files are written"
    )]
    NoTableRule {
        /// The dataset.
        dataset: String,
    },
    /// There is no key to write with.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A key cannot wrap.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The operating system gives no random numbers.
    #[error("the operating system gives no random numbers")]
    NoRandomness,
    /// Rows that are not of the table's schema, or more than the format carries.
    #[error("rows cannot be written: {what}")]
    Rows {
        /// What does not fit.
        what: &'static str,
    },
    /// What the file is written to refuses.
    #[error("the file cannot be written: {kind}")]
    Output {
        /// The operating system's word for it.
        kind: std::io::ErrorKind,
    },
    /// No Parquet file, or one that was cut or changed, or whose keys do not open it.
    #[error("no Parquet file, or it was changed or cut")]
    Damaged,
    /// A Parquet file that nothing protects.
    #[error("the file is not encrypted")]
    NotEncrypted,
    /// Encrypted by others: it carries no policy.
    #[error("the file is encrypted, but not by Sealflow: it carries no policy")]
    Foreign,
    /// It carries a policy, or what only files with one have, and is not read past it.
    #[error("the file carries a policy, which decides who may read it")]
    NotForeign,
    /// Its keys are in a file of their own, which was not found beside it.
    #[error("the file's keys are in a file of their own ({name}), and it is not there or does not have them")]
    KeyMaterialElsewhere {
        /// What that file is called.
        name: &'static str,
    },
    /// Its keys are managed in a way that is not known here, or their material was changed.
    #[error("the file's key material cannot be used: it is not PKMT1, is wrapped in another way, or was changed")]
    OtherKeyMaterial,
    /// Its footer has a key of a length that this reader has no cipher for.
    #[error("the file is encrypted under a key of {bits} bits; 128 and 256 are read")]
    KeyLength {
        /// How many.
        bits: usize,
    },
    /// Its pages are encrypted without being authenticated.
    #[error(
        "the file is encrypted with AES_GCM_CTR_V1, which does not protect its pages against changes, and is not read"
    )]
    Cipher,
    /// It has columns of a kind that is not read.
    #[error("the file has columns that are not read: maps, or lists of a fixed length")]
    Columns,
    /// Written by a newer Sealflow.
    #[error("the file is of a newer version: upgrade to read it")]
    NewerVersion,
    /// The policy that the file carries is nobody's whom the reader pins, or it was changed.
    #[error("the policy in the file: {0}")]
    EmbeddedPolicy(TrustError),
    /// The file carries a policy that nobody signed.
    #[error("the policy in the file is not signed")]
    Unsigned,
    /// The file carries a signed policy, and whose is not known to development.
    #[error("the policy in the file is signed, and no owner is pinned")]
    SignedInDevelopment,
    /// The file carries the policy of another dataset than the one it claims to be of.
    #[error("the file is of dataset {dataset}, and carries the policy of {policy}")]
    OtherPolicy {
        /// What it claims.
        dataset: String,
        /// Whose policy it carries.
        policy: String,
    },
    /// The file was written for another place.
    #[error("the file was written for {place}, and was found elsewhere")]
    Moved {
        /// Where it belongs: dataset and folder.
        place: String,
    },
    /// There is no policy that counts.
    #[error(transparent)]
    Policy(#[from] PolicySourceError),
    /// There is no key for the footer, so nothing of the file can be read.
    #[error("keys of the file: {0}")]
    Footer(Box<OpenKeyError>),
    /// The footer is not for this reader.
    #[error("footer: {because}")]
    Refused {
        /// The rule that decided.
        because: String,
    },
    /// A column that the file does not have.
    #[error("the file has no column {name}")]
    NoColumn {
        /// As it was asked for.
        name: String,
    },
    /// A sealed column cannot be read now.
    #[error(transparent)]
    Values(Box<ReadError>),
    /// The enclave worker opens nothing of a column, now or at all.
    #[error(transparent)]
    Worker(#[from] EnclaveError),
    /// A filter by a column that only the enclave opens.
    #[error(
        "filter: {name} is opened by the enclave alone, and to the reader's key: nothing here can compare its values"
    )]
    FilterInEnclave {
        /// The column.
        name: String,
    },
    /// A filter that says nothing, or not what its column is.
    #[error("filter: {what}")]
    Filter {
        /// What is wrong with it.
        what: String,
    },
    /// What the file is read from failed.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Why bytes of a file cannot be had.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceError {
    /// It is not there.
    #[error("there is no such file")]
    NotFound,
    /// It may not be read.
    #[error("the file may not be read")]
    NotPermitted,
    /// The store does not answer, now.
    #[error("the file cannot be read: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// The store does not take what it is asked: another region, a clock that is wrong.
    #[error("the file cannot be read: {reason}")]
    Invalid {
        /// Why.
        reason: String,
    },
}

impl TableError {
    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Key(error) => error.is_retryable(),
            Self::Footer(error) => error.is_retryable(),
            Self::Policy(error) => error.is_retryable(),
            Self::Values(error) => error.is_retryable(),
            Self::Worker(error) => error.is_retryable(),
            Self::Source(SourceError::Unavailable { .. }) => true,
            _ => false,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::NoTableRule { .. } => "its owner adds `table: { key: …, acl: … }`, and signs it again",
            Self::Key(_) | Self::Seal(_) | Self::Footer(_) => {
                "check the key service, and the rights at the policy's key"
            }
            Self::NoRandomness => "check the machine",
            Self::Rows { .. } => "check the schema",
            Self::Output { .. } => "check the disk, and the rights at the folder",
            Self::Damaged => "fetch the file again; if it stays so, somebody changed it",
            Self::NotEncrypted => {
                "whoever wrote it left everything readable; read it with another tool, and find out who put it there"
            }
            Self::Foreign => "read it with --foreign: the key service alone then decides",
            Self::NotForeign => "read it without --foreign",
            Self::KeyMaterialElsewhere { .. } => "put that file back beside it, as it was written",
            Self::OtherKeyMaterial | Self::KeyLength { .. } | Self::Cipher | Self::Columns => {
                "read it with the tool that wrote it"
            }
            Self::NewerVersion => "upgrade",
            Self::SignedInDevelopment => "give dataset, catalogue and --owner instead of --dev",
            Self::Unsigned => "read it with --dev if you wrote it yourself, for development",
            Self::EmbeddedPolicy(_) | Self::OtherPolicy { .. } => {
                "the file was not written by a pipeline of this dataset: find out who put it there"
            }
            Self::Moved { .. } => "put it back, or read it with --moved if it was moved on purpose",
            Self::Policy(_) => "check the catalogue",
            Self::Refused { .. } => "ask the owner of the policy",
            Self::NoColumn { .. } => "see its columns with `sealflow inspect`",
            Self::Values(_) => "check the key service, the catalogue and the policy",
            Self::Worker(EnclaveError::Refused { .. }) => "`sealflow acl why` says what somebody may open",
            Self::Worker(EnclaveError::Unrecorded { .. }) => {
                "make room on the disk of `enclave.audit`, or name another file"
            }
            Self::Worker(_) => "try again; the log says what the worker waits for",
            Self::FilterInEnclave { .. } => "filter by other columns, or filter what comes out once it is opened",
            Self::Filter { .. } => "write for example --where 'amount >= 100 and country = \"DE\"'",
            Self::Source(_) => "check the path and the rights at it",
        }
        .to_owned()
    }
}
