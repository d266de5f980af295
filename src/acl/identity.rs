//! Who somebody is, once it is proved: what STS or a token's issuer says of a caller.

use std::collections::BTreeSet;
use std::fmt;

use super::principal::MAX_PRINCIPAL_BYTES;

/// A proved identity. How it was proved is not its business.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Identity {
    /// Sessions of an IAM role. STS does not say the path of the role, nor do we compare it: names of roles are unique
    /// in an account. The session's name is chosen by whoever assumes the role, so it is not part of this.
    Role {
        /// `aws`, `aws-cn`, …
        partition: String,
        /// 12 digits.
        account: String,
        /// Without its path.
        name: String,
    },
    /// An IAM user.
    User {
        /// `aws`, `aws-cn`, …
        partition: String,
        /// 12 digits.
        account: String,
        /// With its path.
        name: String,
    },
    /// The subject of an OIDC token.
    Oidc {
        /// `iss`.
        issuer: String,
        /// `sub`.
        subject: String,
        /// The groups that the token lists.
        groups: BTreeSet<String>,
        /// Whether it says anything of groups at all. If not, whoever a policy denies by a group may be meant, and
        /// whoever it allows by one is not.
        lists_groups: bool,
    },
}

/// Why an ARN is no identity that a policy could name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// No ARN of STS or IAM, or one with a part that is empty or has characters that it cannot have.
    #[error("not the ARN of a caller, as `aws sts get-caller-identity` prints it")]
    Malformed,
    /// An account's root, a federated user, a service.
    #[error("neither a role nor a user: policies name no other callers")]
    NotRoleOrUser,
    /// A `*` or `?`: that is a principal of a policy, and nobody's identity.
    #[error("a pattern, and nobody's identity")]
    Pattern,
}

impl IdentityError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::NotRoleOrUser => "assume a role, and read as that",
            _ => {
                "for example arn:aws:sts::111122223333:assumed-role/analyst/session, arn:aws:iam::111122223333:role/analyst \
                 or arn:aws:iam::111122223333:user/alice"
            }
        }
    }
}

impl Identity {
    /// From the ARN of a caller (STS `GetCallerIdentity`), or of the role or user itself.
    ///
    /// # Errors
    /// [`IdentityError`] for whatever no policy can name.
    pub fn from_arn(arn: &str) -> Result<Self, IdentityError> {
        if arn.len() > MAX_PRINCIPAL_BYTES {
            return Err(IdentityError::Malformed);
        }
        if arn.contains(['*', '?']) {
            return Err(IdentityError::Pattern);
        }
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let ["arn", partition, service @ ("sts" | "iam"), "", account, resource] = parts[..] else {
            return Err(IdentityError::Malformed);
        };
        let is_partition = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_lowercase() || b == b'-' || b.is_ascii_digit())
        };
        let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        if partition.is_empty() || !is_partition(partition) || !is_account {
            return Err(IdentityError::Malformed);
        }
        let (partition, account) = (partition.to_owned(), account.to_owned());
        let segments: Vec<&str> = resource.split('/').collect();
        if segments.iter().any(|segment| !is_name(segment)) {
            return Err(IdentityError::Malformed);
        }
        match (service, &segments[..]) {
            ("sts", ["assumed-role", name, _session]) => Ok(Self::Role {
                partition,
                account,
                name: (*name).to_owned(),
            }),
            ("iam", ["role", .., name]) => Ok(Self::Role {
                partition,
                account,
                name: (*name).to_owned(),
            }),
            ("iam", ["user", path @ ..]) if !path.is_empty() => Ok(Self::User {
                partition,
                account,
                name: path.join("/"),
            }),
            _ => Err(IdentityError::NotRoleOrUser),
        }
    }
}

/// What IAM allows in names, paths and session names.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b))
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Role {
                partition,
                account,
                name,
            } => write!(f, "arn:{partition}:iam::{account}:role/{name}"),
            Self::User {
                partition,
                account,
                name,
            } => write!(f, "arn:{partition}:iam::{account}:user/{name}"),
            Self::Oidc { issuer, subject, .. } => write!(f, "oidc:{issuer}#sub={subject}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(arn: &str) -> Result<String, IdentityError> {
        Identity::from_arn(arn).map(|identity| identity.to_string())
    }

    #[test]
    fn a_session_is_its_role_and_neither_path_nor_session_name_count() {
        let role = Ok("arn:aws:iam::111122223333:role/analyst".to_owned());
        assert_eq!(
            of("arn:aws:sts::111122223333:assumed-role/analyst/alice@example.com"),
            role
        );
        assert_eq!(of("arn:aws:iam::111122223333:role/analyst"), role);
        assert_eq!(of("arn:aws:iam::111122223333:role/team/fraud/analyst"), role);
        let user = "arn:aws-cn:iam::111122223333:user/team/alice";
        assert_eq!(of(user).as_deref(), Ok(user));
    }

    #[test]
    fn what_no_policy_can_name_is_no_identity() {
        for arn in [
            "arn:aws:iam::111122223333:root",
            "arn:aws:sts::111122223333:federated-user/alice",
            "arn:aws:sts::111122223333:assumed-role/analyst",
            "arn:aws:sts::111122223333:assumed-role/a/b/c",
            "arn:aws:sts::111122223333:role/analyst",
            "arn:aws:iam::111122223333:user",
        ] {
            assert_eq!(of(arn), Err(IdentityError::NotRoleOrUser), "{arn}");
        }
        for arn in [
            "",
            "alice",
            "arn:aws:s3::111122223333:role/a",
            "arn:aws:iam:eu-west-1:111122223333:role/a",
            "arn:aws:iam::1111:role/a",
            "arn:AWS:iam::111122223333:role/a",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role//a",
            "arn:aws:iam::111122223333:role/a b",
        ] {
            assert_eq!(of(arn), Err(IdentityError::Malformed), "{arn}");
        }
        assert_eq!(of("arn:aws:iam::111122223333:role/*"), Err(IdentityError::Pattern));
    }
}
