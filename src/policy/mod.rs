//! Policies: which columns of a dataset are sealed, by which flow, under which key, for whom.
//!
//! People write them as YAML ([`model`]), their owner signs the YAML bytes as a JWS ([`signed`]), and
//! everybody else verifies that signature against the owner keys that they pin ([`trust`]). Signed policies
//! lie in the catalogue ([`publish`]). This module parses, checks, signs and verifies; it seals nothing, and
//! reads nothing but the catalogue that it is given.

pub mod access;
pub mod arn;
mod asked;
pub mod catalogue_source;
pub mod client;
pub mod domain;
pub mod domain_type;
pub mod enclave;
#[cfg(feature = "jwe")]
pub mod enclave_keys;
pub mod highest;
mod hints;
pub mod key_path;
pub mod lease;
pub mod model;
pub mod parse;
pub mod path;
pub mod problem;
pub mod publish;
mod raw;
pub mod recipient;
pub mod rsa_key;
pub mod signed;
pub mod source;
pub mod template;
pub mod trust;
pub mod yaml;

pub use access::{Access, Because};
pub use catalogue_source::CataloguePolicies;
pub use client::{ClientKey, ClientRule, MacRule, SESSION_HEADER};
pub use domain::DomainDocument;
pub use domain_type::DomainType;
pub use enclave::{EnclaveRule, Measurements};
#[cfg(feature = "jwe")]
pub use enclave_keys::{EnclaveKeys, EnclaveKeysError, Evidence, VerifiedEnclaveKeys};
pub use highest::{Highest, Seen};
pub use key_path::KeyPath;
pub use model::{
    Cipher, ClientSealed, ColumnRule, DEAD_LETTER_LABEL, DEAD_LETTERS_SUFFIX, DeadLetterRule, Derivation, EXTRA_LABEL,
    FOOTER_LABEL, Flow, Footer, GroupLabel, Hint, KeyGroup, Lease, OnMissing, Placement, Policy, PolicyKey, Previous,
    PreviousKey, Profile, TableRule, Unsupported,
};
pub use path::{ColumnPath, PathError, Root, Segment};
pub use problem::{PolicyError, Problem};
pub use publish::{HistoryEntry, PublishError, Published};
pub use recipient::Recipient;
pub use rsa_key::{KeyPair, RsaKey};
pub use signed::{OwnerKey, TrustError, VerifiedDomain, VerifiedPolicy};
pub use source::{FixedPolicies, PolicySource, PolicySourceError};
pub use template::KeyTemplate;
pub use trust::{Pin, TrustRule, TrustRuleError, TrustedOwners};
