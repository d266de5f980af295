//! Policies: which columns of a dataset are sealed, by which flow, under which key, for whom.
//!
//! People write them as YAML ([`model`]), their owner signs the YAML bytes as a JWS ([`signed`]), and
//! everybody else verifies that signature against the owner keys that they pin. This module parses,
//! checks, signs and verifies; it seals nothing and fetches nothing.

pub mod domain_type;
pub mod model;
pub mod path;

pub use domain_type::DomainType;
pub use model::{
    Cipher, ColumnRule, DEAD_LETTER_LABEL, DEAD_LETTERS_SUFFIX, DeadLetterRule, Flow, Lease, OnMissing, Policy,
    PolicyKey, Previous,
};
pub use path::{ColumnPath, PathError, Root, Segment};
