//! Who may open what: access-control lists, who somebody is, and the decision with the rule that made it.
//!
//! Pure: identities come in proved, or are proved here from what others fetched (`oidc`, `sts`); the time comes in as a
//! number. The list that counts is that of the *proven*
//! dataset and label ([`Policy::access`](crate::policy::Policy::access)). Deny by default; an explicit deny wins.
//! What is refused by KMS stays refused: an ACL takes away, it never gives more than the keys' own policies.

mod compare;
mod decide;
pub mod identity;
#[cfg(feature = "identity")]
pub mod oidc;
#[cfg(all(test, feature = "identity"))]
mod oidc_tests;
pub mod principal;
mod standing;
#[cfg(feature = "identity")]
pub mod sts;
#[cfg(all(test, feature = "identity"))]
mod sts_tests;

use std::fmt;

pub use compare::Beyond;
pub use decide::{Decision, Refusal};
pub use identity::{Identity, IdentityError};
pub use principal::{IamKind, OidcClaim, Principal, PrincipalError};
pub use standing::{May, Standing};

use crate::clock::UnixMillis;

/// The longest purpose, in bytes.
pub const MAX_PURPOSE_BYTES: usize = 64;

/// One access-control list of a policy or domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acl {
    /// Who may open.
    pub allow: Vec<Grant>,
    /// Who may not, whatever `allow` says.
    pub deny: Vec<Principal>,
    /// What a refused reader sees.
    pub refused: Refused,
}

/// One entry of `allow`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Grant {
    /// Whom it names.
    pub principal: Principal,
    /// The first moment at which it does not hold any more.
    pub until: Option<UnixMillis>,
    /// What the data may be opened for: one of these must be given. Empty: anything.
    pub purposes: Vec<String>,
}

impl Grant {
    /// A grant without an end or a purpose.
    #[must_use]
    pub fn to(principal: Principal) -> Self {
        Self {
            principal,
            until: None,
            purposes: Vec::new(),
        }
    }

    /// Whether it holds at `now` for this purpose, whoever asks.
    #[must_use]
    pub fn holds(&self, purpose: Option<&str>, now: UnixMillis) -> bool {
        !self.is_over(now) && self.is_for(purpose)
    }

    fn is_over(&self, now: UnixMillis) -> bool {
        self.until.is_some_and(|until| now >= until)
    }

    fn is_for(&self, purpose: Option<&str>) -> bool {
        self.purposes.is_empty() || purpose.is_some_and(|given| self.purposes.iter().any(|purpose| purpose == given))
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.principal)?;
        if let Some(until) = self.until {
            write!(f, " until {until}")?;
        }
        if !self.purposes.is_empty() {
            write!(f, " for {}", self.purposes.join(", "))?;
        }
        Ok(())
    }
}

/// What stands in the place of a value that a reader may not open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Refused {
    /// Nothing: a null.
    #[default]
    Null,
    /// The text `[redacted]`.
    Redact,
}

impl Refused {
    /// As JSON.
    #[must_use]
    pub fn json(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Redact => "\"[redacted]\"",
        }
    }

    /// As the bytes of a key or header.
    #[must_use]
    pub fn text(self) -> Option<&'static str> {
        match self {
            Self::Null => None,
            Self::Redact => Some("[redacted]"),
        }
    }
}
