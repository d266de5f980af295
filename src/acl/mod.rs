//! Who may open what.
//!
//! In this version ACLs are carried, named and bound into keys, contexts and envelopes, so that data sealed
//! today obeys them later; deciding on them comes with the reading service. Until then KMS enforces.

pub mod principal;

pub use principal::{IamKind, OidcClaim, Principal, PrincipalError};

/// One access-control list of a policy: principals as they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acl {
    /// Principals that may open: IAM ARNs, `oidc:` subjects and groups.
    pub allow: Vec<String>,
    /// Principals that may not, whatever `allow` says.
    pub deny: Vec<String>,
}
