//! Key policies of the local KMS: parsing, and the decision whether a call is allowed.
//!
//! The part of AWS's policy language that key policies use. There are no IAM policies here, so a statement for the
//! account's root principal speaks for every principal of the account (in AWS it would hand the question to IAM).
//! What the evaluator does not know never helps the caller: an Allow with it does not match, a Deny with it does.

use std::borrow::Cow;
use std::collections::BTreeMap;

use sealflow::clock::UnixMillis;
use serde::{Deserialize, Serialize};

use crate::blob::Context;

/// The largest policy document, as in AWS KMS.
const MAX_POLICY: usize = 32 * 1024;

/// A key policy that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPolicy {
    document: Document,
    text: String,
}

/// Why a policy document was refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{reason}")]
pub struct PolicyError {
    reason: String,
}

/// What is asked for: who does what, with which key and encryption context.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The caller's ARN.
    pub principal: &'a str,
    /// For example `kms:Decrypt`.
    pub action: &'a str,
    /// The ARN of the key.
    pub key_arn: &'a str,
    /// The encryption context of the request; empty for operations without one.
    pub context: &'a Context,
    /// The encryption algorithm of the request, for example `RSAES_OAEP_SHA_256`; `None` for operations without one.
    pub algorithm: Option<&'a str>,
    /// When it is asked.
    pub now: UnixMillis,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "Version")]
    version: Option<String>,
    #[serde(rename = "Id")]
    #[allow(dead_code, reason = "valid, and without meaning for a decision")]
    id: Option<String>,
    #[serde(rename = "Statement")]
    statements: OneOrMany<Statement>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    #[serde(rename = "Sid")]
    #[allow(dead_code, reason = "valid, and without meaning for a decision")]
    sid: Option<String>,
    #[serde(rename = "Effect")]
    effect: Effect,
    #[serde(rename = "Principal")]
    principal: Principal,
    #[serde(rename = "Action")]
    action: OneOrMany<String>,
    #[serde(rename = "Resource")]
    resource: OneOrMany<String>,
    #[serde(rename = "Condition", default)]
    condition: BTreeMap<String, BTreeMap<String, OneOrMany<String>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Principal {
    /// `"*"`
    Everybody(String),
    /// `{"AWS": …}`, or kinds of principal that never call a local KMS.
    Kinds(BTreeMap<String, OneOrMany<String>>),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl KeyPolicy {
    /// Reads and checks a policy document. Elements that this server does not know are refused.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let refuse = |reason: String| PolicyError { reason };
        if text.len() > MAX_POLICY {
            return Err(refuse("the policy is larger than 32 KiB".to_owned()));
        }
        let document: Document = serde_json::from_str(text).map_err(|e| refuse(format!("not a key policy: {e}")))?;
        if document
            .version
            .as_deref()
            .is_some_and(|v| v != "2012-10-17" && v != "2008-10-17")
        {
            return Err(refuse("the policy's Version must be 2012-10-17".to_owned()));
        }
        if document.statements.as_slice().is_empty() {
            return Err(refuse("the policy has no Statement".to_owned()));
        }
        for statement in document.statements.as_slice() {
            statement.check().map_err(|reason| refuse(reason.to_owned()))?;
        }
        Ok(Self {
            document,
            text: text.to_owned(),
        })
    }

    /// AWS's default: everything to the account.
    #[must_use]
    pub fn default_for(account: &str) -> Self {
        let text = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Sid":"Enable IAM User Permissions","Effect":"Allow","Principal":{{"AWS":"arn:aws:iam::{account}:root"}},"Action":"kms:*","Resource":"*"}}]}}"#
        );
        let statement = Statement {
            sid: None,
            effect: Effect::Allow,
            principal: Principal::Kinds(BTreeMap::from([(
                "AWS".to_owned(),
                OneOrMany::One(format!("arn:aws:iam::{account}:root")),
            )])),
            action: OneOrMany::One("kms:*".to_owned()),
            resource: OneOrMany::One("*".to_owned()),
            condition: BTreeMap::new(),
        };
        let document = Document {
            version: None,
            id: None,
            statements: OneOrMany::One(statement),
        };
        Self { document, text }
    }

    /// The document as it was given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the policy allows `call`: no Deny matches, and an Allow does.
    #[must_use]
    pub fn allows(&self, call: &Call<'_>) -> bool {
        let statements = self.document.statements.as_slice();
        let matches = |effect| statements.iter().any(|s| s.effect == effect && s.matches(call));
        !matches(Effect::Deny) && matches(Effect::Allow)
    }
}

impl Statement {
    fn check(&self) -> Result<(), &'static str> {
        match &self.principal {
            Principal::Everybody(star) if star == "*" => {}
            Principal::Everybody(_) => return Err("a Principal is \"*\" or an object such as {\"AWS\": ARN}"),
            Principal::Kinds(kinds) => {
                for (kind, names) in kinds {
                    if !matches!(kind.as_str(), "AWS" | "Service" | "Federated" | "CanonicalUser") {
                        return Err("a Principal has an unknown kind");
                    }
                    if kind == "AWS" && !names.as_slice().iter().all(|name| is_aws_principal(name)) {
                        return Err("an AWS principal is an IAM or STS ARN without wildcards, an account, or \"*\"");
                    }
                }
            }
        }
        if self.action.as_slice().is_empty() || self.resource.as_slice().is_empty() {
            return Err("a statement needs an Action and a Resource");
        }
        if !self
            .action
            .as_slice()
            .iter()
            .all(|a| a == "*" || a.to_ascii_lowercase().starts_with("kms:"))
        {
            return Err("an Action of a key policy is \"*\" or starts with kms:");
        }
        Ok(())
    }

    fn matches(&self, call: &Call<'_>) -> bool {
        let when_unknown = self.effect == Effect::Deny;
        let action = call.action.to_ascii_lowercase();
        self.principal.matches(call.principal)
            && self
                .action
                .as_slice()
                .iter()
                .any(|pattern| like(&pattern.to_ascii_lowercase(), &action))
            && self
                .resource
                .as_slice()
                .iter()
                .any(|pattern| like(pattern, call.key_arn))
            && self.condition.iter().all(|(operator, keys)| {
                keys.iter().all(|(key, wanted)| {
                    condition_holds(operator, key, wanted.as_slice(), call).unwrap_or(when_unknown)
                })
            })
    }
}

fn is_aws_principal(name: &str) -> bool {
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
    fn matches(&self, caller: &str) -> bool {
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

fn account_of(arn: &str) -> Option<&str> {
    arn.split(':').nth(4)
}

/// The role of `arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION`.
fn session_role(arn: &str) -> Option<&str> {
    let resource = arn.splitn(6, ':').nth(5)?;
    resource.strip_prefix("assumed-role/")?.split('/').next()
}

/// Whether a value of the policy and one of the request fit; `None`: they cannot be compared.
type Holds = fn(&str, &str) -> Option<bool>;

/// Whether one condition holds; `None` if this evaluator does not know its operator or key.
fn condition_holds(operator: &str, key: &str, wanted: &[String], call: &Call<'_>) -> Option<bool> {
    let (set, operator) = match operator.split_once(':') {
        Some((set @ ("ForAnyValue" | "ForAllValues"), rest)) => (Some(set), rest),
        Some(_) => return None,
        None => (None, operator),
    };
    let present = values_of(key, call)?;
    if operator == "Null" {
        let [wanted] = wanted else { return None };
        return match (wanted.as_str(), set) {
            ("true", None) => Some(present.is_empty()),
            ("false", None) => Some(!present.is_empty()),
            _ => None,
        };
    }
    let (operator, if_exists) = match operator.strip_suffix("IfExists") {
        Some(operator) => (operator, true),
        None => (operator, false),
    };
    let (holds, negated): (Holds, bool) = match operator {
        "StringEquals" => (|wanted, value| Some(wanted == value), false),
        "StringNotEquals" => (|wanted, value| Some(wanted == value), true),
        "StringEqualsIgnoreCase" => (
            |wanted, value| Some(wanted.to_lowercase() == value.to_lowercase()),
            false,
        ),
        "StringNotEqualsIgnoreCase" => (
            |wanted, value| Some(wanted.to_lowercase() == value.to_lowercase()),
            true,
        ),
        "StringLike" => (|wanted, value| Some(like(wanted, value)), false),
        "StringNotLike" => (|wanted, value| Some(like(wanted, value)), true),
        "ArnLike" | "ArnEquals" => (|wanted, value| Some(arn_like(wanted, value)), false),
        "ArnNotLike" | "ArnNotEquals" => (|wanted, value| Some(arn_like(wanted, value)), true),
        "DateEquals" => (|wanted, value| Some(moment(wanted)? == moment(value)?), false),
        "DateNotEquals" => (|wanted, value| Some(moment(wanted)? == moment(value)?), true),
        "DateLessThan" => (|wanted, value| Some(moment(value)? < moment(wanted)?), false),
        "DateLessThanEquals" => (|wanted, value| Some(moment(value)? <= moment(wanted)?), false),
        "DateGreaterThan" => (|wanted, value| Some(moment(value)? > moment(wanted)?), false),
        "DateGreaterThanEquals" => (|wanted, value| Some(moment(value)? >= moment(wanted)?), false),
        _ => return None,
    };
    if if_exists && present.is_empty() {
        return Some(true);
    }
    let mut of_each = Vec::with_capacity(present.len());
    for value in &present {
        let each: Option<Vec<bool>> = wanted.iter().map(|wanted| holds(wanted, value)).collect();
        of_each.push(each?.contains(&true) != negated);
    }
    Some(match set {
        Some("ForAllValues") => !of_each.contains(&false),
        Some(_) => of_each.contains(&true),
        // A negated operator holds where the key is absent.
        None if present.is_empty() => negated,
        // A key with several values needs a set operator; without one AWS's answer is not defined.
        None if present.len() > 1 => return None,
        None => !of_each.contains(&false),
    })
}

/// The values that a condition key has in `call`; `None` for keys that are not known here.
fn values_of<'a>(key: &str, call: &Call<'a>) -> Option<Vec<Cow<'a, str>>> {
    let lower = key.to_ascii_lowercase();
    if let Some(name) = lower.strip_prefix("kms:encryptioncontext:") {
        // As in AWS, a condition key is matched without case, the name in the context that is part of it too: only
        // kms:EncryptionContextKeys tells `acl` from `ACL`.
        let same = call.context.iter().filter(|(key, _)| key.to_ascii_lowercase() == name);
        return Some(same.map(|(_, value)| Cow::from(value.as_str())).collect());
    }
    match lower.as_str() {
        "kms:encryptioncontextkeys" => Some(call.context.keys().map(|key| Cow::from(key.as_str())).collect()),
        "kms:encryptionalgorithm" => Some(call.algorithm.map(Cow::from).into_iter().collect()),
        "aws:principalarn" => Some(vec![principal_arn(call.principal)]),
        "aws:principalaccount" | "kms:calleraccount" => {
            Some(account_of(call.principal).map(Cow::from).into_iter().collect())
        }
        "aws:currenttime" => Some(vec![Cow::from(call.now.to_string())]),
        _ => None,
    }
}

/// Of a session the ARN of its role, without a path: this server knows of none.
fn principal_arn(caller: &str) -> Cow<'_, str> {
    let parts: Vec<&str> = caller.splitn(6, ':').collect();
    match (&parts[..], session_role(caller)) {
        (["arn", partition, "sts", "", account, _], Some(role)) => {
            Cow::from(format!("arn:{partition}:iam::{account}:role/{role}"))
        }
        _ => Cow::from(caller),
    }
}

/// A date as policies write it: with time and zone. Fractions of seconds are of no account.
fn moment(text: &str) -> Option<u64> {
    let moment: UnixMillis = text.parse().ok()?;
    Some(moment.0 / 1_000)
}

/// Each of the six parts of an ARN by itself: no wildcard stands for a colon, but one in the last part does for a slash.
fn arn_like(pattern: &str, arn: &str) -> bool {
    let (patterns, parts): (Vec<&str>, Vec<&str>) = (pattern.splitn(6, ':').collect(), arn.splitn(6, ':').collect());
    patterns.len() == 6 && parts.len() == 6 && patterns.iter().zip(&parts).all(|(pattern, part)| like(pattern, part))
}

/// Whether `text` matches `pattern`, where `*` is any run of characters and `?` any one.
fn like(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how much of the text it has taken: the only place to go back to.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-01-02T03:04:05Z.
    const NOW: UnixMillis = UnixMillis(1_767_323_045_000);
    const KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/a";
    const ANALYST: &str = "arn:aws:iam::111122223333:role/analyst";
    const SESSION: &str = "arn:aws:sts::111122223333:assumed-role/analyst/monday";
    const OTHER: &str = "arn:aws:iam::111122223333:user/other";
    const STRANGER: &str = "arn:aws:iam::999999999999:role/analyst";

    fn allows(statements: &str, principal: &str, action: &str, context: &[(&str, &str)]) -> bool {
        let policy = KeyPolicy::parse(&format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#)).unwrap();
        let context: Context = context
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        policy.allows(&Call {
            principal,
            action,
            key_arn: KEY,
            context: &context,
            algorithm: None,
            now: NOW,
        })
    }

    fn statement(effect: &str, principal: &str, action: &str, condition: &str) -> String {
        format!(
            r#"{{"Effect":"{effect}","Principal":{principal},"Action":{action},"Resource":"*","Condition":{condition}}}"#
        )
    }

    #[test]
    fn principals_match_as_in_aws() {
        let table = [
            (r#""*""#, STRANGER, true),
            (r#"{"AWS":"*"}"#, STRANGER, true),
            (r#"{"AWS":"arn:aws:iam::111122223333:root"}"#, ANALYST, true),
            (r#"{"AWS":"arn:aws:iam::111122223333:root"}"#, SESSION, true),
            (r#"{"AWS":"arn:aws:iam::111122223333:root"}"#, STRANGER, false),
            (r#"{"AWS":"111122223333"}"#, OTHER, true),
            (r#"{"AWS":"111122223333"}"#, STRANGER, false),
            (r#"{"AWS":["arn:aws:iam::111122223333:role/analyst"]}"#, ANALYST, true),
            (r#"{"AWS":["arn:aws:iam::111122223333:role/analyst"]}"#, SESSION, true),
            (
                r#"{"AWS":["arn:aws:iam::111122223333:role/path/analyst"]}"#,
                SESSION,
                true,
            ),
            (r#"{"AWS":"arn:aws:iam::111122223333:role/analyst"}"#, OTHER, false),
            (r#"{"AWS":"arn:aws:iam::111122223333:role/analyst"}"#, STRANGER, false),
            (r#"{"AWS":"arn:aws:iam::111122223333:role/analys"}"#, SESSION, false),
            (r#"{"AWS":"arn:aws:iam::111122223333:user/analyst"}"#, SESSION, false),
            (r#"{"Service":"s3.amazonaws.com"}"#, ANALYST, false),
        ];
        for (principal, caller, expected) in table {
            let policy = statement("Allow", principal, r#""kms:*""#, "{}");
            assert_eq!(
                allows(&policy, caller, "kms:Decrypt", &[]),
                expected,
                "{principal} {caller}"
            );
        }
    }

    #[test]
    fn actions_match_with_wildcards_and_without_case() {
        let table = [
            (r#""kms:*""#, "kms:Decrypt", true),
            (r#""*""#, "kms:Decrypt", true),
            (r#""kms:decrypt""#, "kms:Decrypt", true),
            (
                r#"["kms:Encrypt","kms:GenerateDataKey*"]"#,
                "kms:GenerateDataKeyWithoutPlaintext",
                true,
            ),
            (r#"["kms:Encrypt","kms:GenerateDataKey*"]"#, "kms:Decrypt", false),
            (r#""kms:De?rypt""#, "kms:Decrypt", true),
            (r#""kms:Decryp""#, "kms:Decrypt", false),
        ];
        for (action, called, expected) in table {
            let policy = statement("Allow", r#""*""#, action, "{}");
            assert_eq!(allows(&policy, ANALYST, called, &[]), expected, "{action} {called}");
        }
    }

    #[test]
    fn a_deny_outweighs_every_allow_and_nothing_is_allowed_by_default() {
        let allow = statement("Allow", r#""*""#, r#""kms:*""#, "{}");
        let deny = statement(
            "Deny",
            r#"{"AWS":"arn:aws:iam::111122223333:role/analyst"}"#,
            r#""kms:Decrypt""#,
            "{}",
        );
        for both in [format!("{allow},{deny}"), format!("{deny},{allow}")] {
            assert!(!allows(&both, ANALYST, "kms:Decrypt", &[]));
            assert!(!allows(&both, SESSION, "kms:Decrypt", &[]));
            assert!(allows(&both, ANALYST, "kms:Encrypt", &[]));
            assert!(allows(&both, OTHER, "kms:Decrypt", &[]));
        }
        assert!(!allows(&deny, OTHER, "kms:Encrypt", &[]));
    }

    #[test]
    fn conditions_on_the_encryption_context_hold_as_in_aws() {
        let pii = [("sealflow:acl", "pii"), ("sealflow:dataset", "payments")];
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], bool);
        let table: [Case<'_>; 20] = [
            (
                r#"{"StringEquals":{"kms:EncryptionContext:sealflow:acl":"pii"}}"#,
                &pii,
                true,
            ),
            (
                r#"{"StringEquals":{"KMS:encryptioncontext:sealflow:acl":"pii"}}"#,
                &pii,
                true,
            ),
            (
                r#"{"StringEquals":{"kms:EncryptionContext:sealflow:ACL":"pii"}}"#,
                &pii,
                true,
            ),
            (
                r#"{"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["sealflow:ACL","sealflow:dataset"]}}"#,
                &pii,
                false,
            ),
            (
                r#"{"StringEquals":{"kms:EncryptionContext:sealflow:acl":["ops","pii"]}}"#,
                &pii,
                true,
            ),
            (
                r#"{"StringEquals":{"kms:EncryptionContext:sealflow:acl":"PII"}}"#,
                &pii,
                false,
            ),
            (
                r#"{"StringEquals":{"kms:EncryptionContext:sealflow:acl":"pii"}}"#,
                &[],
                false,
            ),
            (
                r#"{"StringEqualsIfExists":{"kms:EncryptionContext:sealflow:acl":"pii"}}"#,
                &[],
                true,
            ),
            (
                r#"{"StringNotEquals":{"kms:EncryptionContext:sealflow:acl":"pii"}}"#,
                &pii,
                false,
            ),
            (
                r#"{"StringNotEquals":{"kms:EncryptionContext:sealflow:acl":"pii"}}"#,
                &[],
                true,
            ),
            (
                r#"{"StringLike":{"kms:EncryptionContext:sealflow:dataset":"pay*"}}"#,
                &pii,
                true,
            ),
            (
                r#"{"StringLike":{"kms:EncryptionContext:sealflow:dataset":"pay"}}"#,
                &pii,
                false,
            ),
            (
                r#"{"StringEquals":{"kms:EncryptionContext:sealflow:dataset":"pay*"}}"#,
                &pii,
                false,
            ),
            (r#"{"Null":{"kms:EncryptionContext:sealflow:acl":"false"}}"#, &pii, true),
            (r#"{"Null":{"kms:EncryptionContext:sealflow:acl":"false"}}"#, &[], false),
            (
                r#"{"ForAnyValue:StringEquals":{"kms:EncryptionContextKeys":"sealflow:acl"}}"#,
                &pii,
                true,
            ),
            (
                r#"{"ForAnyValue:StringEquals":{"kms:EncryptionContextKeys":"sealflow:key"}}"#,
                &pii,
                false,
            ),
            (
                r#"{"ForAllValues:StringLike":{"kms:EncryptionContextKeys":"sealflow:*"}}"#,
                &pii,
                true,
            ),
            (
                r#"{"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":"sealflow:acl"}}"#,
                &pii,
                false,
            ),
            (
                r#"{"StringEquals":{"kms:EncryptionContext:sealflow:acl":"pii","kms:EncryptionContext:sealflow:dataset":"x"}}"#,
                &pii,
                false,
            ),
        ];
        for (condition, context, expected) in table {
            let policy = statement("Allow", r#""*""#, r#""kms:*""#, condition);
            assert_eq!(
                allows(&policy, ANALYST, "kms:Decrypt", context),
                expected,
                "{condition} {context:?}"
            );
        }
    }

    #[test]
    fn two_names_in_a_context_that_differ_by_case_only_help_nobody() {
        let both = [("sealflow:acl", "pii"), ("sealflow:ACL", "ops")];
        for wanted in ["pii", "ops"] {
            let condition = format!(r#"{{"StringEquals":{{"kms:EncryptionContext:sealflow:acl":"{wanted}"}}}}"#);
            let allow = statement("Allow", r#""*""#, r#""kms:*""#, &condition);
            assert!(!allows(&allow, ANALYST, "kms:Decrypt", &both), "{wanted}");
        }
    }

    #[test]
    fn dates_hold_up_to_the_second_and_what_is_no_date_never_helps_the_caller() {
        let cases = [
            ("DateLessThan", "2026-01-02T03:04:06Z", true),
            ("DateLessThan", "2026-01-02T03:04:05Z", false),
            ("DateLessThanEquals", "2026-01-02T03:04:05Z", true),
            ("DateGreaterThan", "2026-01-02T03:04:05Z", false),
            ("DateGreaterThan", "2026-01-02T03:04:04Z", true),
            ("DateGreaterThanEquals", "2026-01-02T04:04:05+01:00", true),
            ("DateEquals", "2026-01-02T03:04:05Z", true),
            ("DateNotEquals", "2026-01-02T03:04:05Z", false),
        ];
        for (operator, date, expected) in cases {
            let condition = format!(r#"{{"{operator}":{{"aws:CurrentTime":"{date}"}}}}"#);
            let allow = statement("Allow", r#""*""#, r#""kms:*""#, &condition);
            assert_eq!(
                allows(&allow, ANALYST, "kms:Decrypt", &[]),
                expected,
                "{operator} {date}"
            );
        }
        let allow = statement("Allow", r#""*""#, r#""kms:*""#, "{}");
        let soon = r#"{"DateLessThan":{"aws:CurrentTime":"soon"}}"#;
        assert!(!allows(
            &statement("Allow", r#""*""#, r#""kms:*""#, soon),
            ANALYST,
            "kms:Decrypt",
            &[]
        ));
        let deny = statement("Deny", r#""*""#, r#""kms:*""#, soon);
        assert!(!allows(&format!("{allow},{deny}"), ANALYST, "kms:Decrypt", &[]));
    }

    #[test]
    fn the_principals_arn_of_a_session_is_its_roles_and_no_wildcard_crosses_a_colon() {
        let table = [
            ("ArnLike", "arn:aws:iam::111122223333:role/ana*", SESSION, true),
            ("ArnEquals", "arn:aws:iam::111122223333:role/ana*", SESSION, true),
            ("ArnLike", "arn:aws:sts::111122223333:assumed-role/*", SESSION, false),
            ("ArnNotLike", "arn:aws:iam::111122223333:role/*/*", SESSION, true),
            ("ArnLike", "arn:aws:iam::111122223333:role/ana*", STRANGER, false),
            ("ArnLike", "arn:aws:iam::*:role/analyst", STRANGER, true),
            ("ArnLike", "arn:aws:*:role/analyst", ANALYST, false),
            ("ArnLike", "arn:aws:iam::111122223333:user/*", OTHER, true),
            // It does cross a slash, which `ArnNotLike` can take back.
            (
                "ArnLike",
                "arn:aws:iam::111122223333:user/a*",
                "arn:aws:iam::111122223333:user/a/b",
                true,
            ),
            (
                "ArnNotLike",
                "arn:aws:iam::111122223333:user/*/*",
                "arn:aws:iam::111122223333:user/a/b",
                false,
            ),
        ];
        for (operator, pattern, caller, expected) in table {
            let condition = format!(r#"{{"{operator}":{{"aws:PrincipalArn":"{pattern}"}}}}"#);
            let allow = statement("Allow", r#""*""#, r#""kms:*""#, &condition);
            assert_eq!(
                allows(&allow, caller, "kms:Decrypt", &[]),
                expected,
                "{operator} {pattern} {caller}"
            );
        }
    }

    #[test]
    fn what_the_evaluator_does_not_know_never_helps_the_caller() {
        let allow = statement("Allow", r#""*""#, r#""kms:*""#, "{}");
        for unknown in [
            r#"{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}"#,
            r#"{"StringEquals":{"aws:SourceVpce":"vpce-1"}}"#,
            r#"{"Sometimes:StringEquals":{"kms:EncryptionContextKeys":"a"}}"#,
        ] {
            let conditioned_allow = statement("Allow", r#""*""#, r#""kms:*""#, unknown);
            assert!(!allows(&conditioned_allow, ANALYST, "kms:Decrypt", &[]), "{unknown}");
            let conditioned_deny = statement("Deny", r#""*""#, r#""kms:*""#, unknown);
            assert!(
                !allows(&format!("{allow},{conditioned_deny}"), ANALYST, "kms:Decrypt", &[]),
                "{unknown}"
            );
        }
    }

    #[test]
    fn documents_with_unknown_elements_are_refused() {
        for bad in [
            "",
            "[]",
            r#"{"Statement":[]}"#,
            r#"{"Version":"2025-01-01","Statement":[{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}]}"#,
            r#"{"Statement":[{"Effect":"Maybe","Principal":"*","Action":"kms:*","Resource":"*"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","NotPrincipal":"*","Action":"kms:*","Resource":"*"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":"*","NotAction":"kms:*","Resource":"*"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":"*"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"kms:*"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":[],"Resource":"*"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":"me","Action":"kms:*","Resource":"*"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":{"Me":"*"},"Action":"kms:*","Resource":"*"}]}"#,
            r#"{"Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:role/*"},"Action":"kms:*","Resource":"*"}]}"#,
        ] {
            assert!(KeyPolicy::parse(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn the_default_policy_is_the_document_that_it_shows() {
        let default = KeyPolicy::default_for("111122223333");
        let parsed = KeyPolicy::parse(default.text()).unwrap();
        for (caller, expected) in [(ANALYST, true), (SESSION, true), (STRANGER, false)] {
            let context = Context::new();
            let call = Call {
                principal: caller,
                action: "kms:Decrypt",
                key_arn: KEY,
                context: &context,
                algorithm: None,
                now: NOW,
            };
            assert_eq!((default.allows(&call), parsed.allows(&call)), (expected, expected));
        }
    }

    #[test]
    fn an_algorithm_is_that_of_the_request_and_none_where_there_is_none() {
        let document = |effect: &str, operator: &str| {
            let condition = format!(r#"{{"{operator}":{{"kms:EncryptionAlgorithm":"RSAES_OAEP_SHA_256"}}}}"#);
            let everything = statement("Allow", "\"*\"", "\"kms:*\"", "{}");
            let this = statement(effect, "\"*\"", "\"kms:Decrypt\"", &condition);
            let statements = if effect == "Deny" {
                format!("{everything},{this}")
            } else {
                this
            };
            KeyPolicy::parse(&format!(r#"{{"Statement":[{statements}]}}"#)).unwrap()
        };
        let (allow, deny) = (document("Allow", "StringEquals"), document("Deny", "StringNotEquals"));
        for (algorithm, expected) in [
            (Some("RSAES_OAEP_SHA_256"), true),
            (Some("RSAES_OAEP_SHA_1"), false),
            (Some("SYMMETRIC_DEFAULT"), false),
            (None, false),
        ] {
            let context = Context::new();
            let call = Call {
                principal: ANALYST,
                action: "kms:Decrypt",
                key_arn: KEY,
                context: &context,
                algorithm,
                now: NOW,
            };
            assert_eq!(
                (allow.allows(&call), deny.allows(&call)),
                (expected, expected),
                "{algorithm:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_pattern_without_wildcards_matches_only_itself(a in "[a-c]{0,6}", b in "[a-c]{0,6}") {
            prop_assert_eq!(like(&a, &b), a == b);
            let (both, start, end) = (format!("{a}{b}"), format!("{a}*"), format!("*{b}"));
            prop_assert!(like(&start, &both) && like(&end, &both));
        }

        #[test]
        fn parsing_any_text_never_panics(text in ".{0,200}") {
            let _ = KeyPolicy::parse(&text);
        }
    }
}
