//! Whom a statement of a key policy names.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;

use super::OneOrMany;

/// Whom a statement names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Principal {
    /// `"*"`
    Everybody(String),
    /// `{"AWS": …}`, or kinds of principal that never call a local KMS.
    Kinds(BTreeMap<String, OneOrMany<String>>),
}

pub(super) fn is_aws_principal(name: &str) -> bool {
    if name == "*" || is_account(name) {
        return true;
    }
    let parts: Vec<&str> = name.splitn(6, ':').collect();
    let ["arn", partition, service @ ("iam" | "sts"), "", account, resource] = parts[..] else {
        return false;
    };
    let plain = !name.contains(['*', '?']) && partition.starts_with("aws") && is_account(account);
    let known = match service {
        "iam" => resource == "root" || resource.starts_with("user/") || resource.starts_with("role/"),
        _ => resource.starts_with("assumed-role/") || resource.starts_with("federated-user/"),
    };
    plain && known
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

impl Principal {
    pub(super) fn matches(&self, caller: &str) -> bool {
        match self {
            Self::Everybody(_) => true,
            Self::Kinds(kinds) => kinds
                .get("AWS")
                .is_some_and(|names| names.as_slice().iter().any(|name| names_caller(name, caller))),
        }
    }
}

/// Whether the principal `name` of a policy means `caller`: itself, its account, or the role of its session.
fn names_caller(name: &str, caller: &str) -> bool {
    if name == "*" || name == caller {
        return true;
    }
    let caller_account = account_of(caller);
    if is_account(name) {
        return caller_account == Some(name);
    }
    let parts: Vec<&str> = name.splitn(6, ':').collect();
    let ["arn", _, "iam", "", account, resource] = parts[..] else {
        return false;
    };
    if caller_account != Some(account) {
        return false;
    }
    if resource == "root" {
        return true;
    }
    let Some(role) = resource.strip_prefix("role/") else {
        return false;
    };
    // A session's ARN has the role's name without its path.
    let role_name = role.rsplit('/').next();
    session_role(caller).is_some_and(|session| role_name == Some(session))
}

pub(super) fn account_of(arn: &str) -> Option<&str> {
    arn.split(':').nth(4)
}

/// The role of `arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION`.
fn session_role(arn: &str) -> Option<&str> {
    let resource = arn.splitn(6, ':').nth(5)?;
    resource.strip_prefix("assumed-role/")?.split('/').next()
}

/// Of a session the ARN of its role, without a path: this server knows of none.
pub(super) fn principal_arn(caller: &str) -> Cow<'_, str> {
    let parts: Vec<&str> = caller.splitn(6, ':').collect();
    match (&parts[..], session_role(caller)) {
        (["arn", partition, "sts", "", account, _], Some(role)) => {
            Cow::from(format!("arn:{partition}:iam::{account}:role/{role}"))
        }
        _ => Cow::from(caller),
    }
}
