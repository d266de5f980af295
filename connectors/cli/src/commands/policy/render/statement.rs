//! IAM policy documents as they are rendered: statements, and whom they name.

use std::collections::{BTreeMap, BTreeSet};

use sealflow::acl::{IamKind, Principal};
use sealflow::clock::UnixMillis;
use serde_json::{Map, Value, json};

/// The largest key policy that KMS takes, in bytes of JSON.
pub(super) const MAX_KEY_POLICY: usize = 32 * 1024;
/// The largest managed policy that IAM takes, in characters without white space.
pub(super) const MAX_MANAGED_POLICY: usize = 6_144;

/// The condition key of somebody's ARN; of a session that of its role.
pub(super) const PRINCIPAL_ARN: &str = "aws:PrincipalArn";

/// A policy document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Document(pub(super) Vec<Statement>);

/// Whether a statement gives or takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Gives.
    Allow,
    /// Takes away, whatever gives.
    Deny,
}

/// Whom a statement of a key policy names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    /// Nobody: a statement of an identity's own policy.
    Unsaid,
    /// Everybody whom the conditions leave.
    Everybody,
    /// These ARNs.
    Arns(BTreeSet<String>),
}

/// Operator, condition key, values.
pub(super) type Conditions = BTreeMap<&'static str, BTreeMap<String, BTreeSet<String>>>;

/// One statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    /// Letters and digits, once per document.
    pub(super) sid: String,
    pub(super) effect: Effect,
    pub(super) whom: Whom,
    pub(super) actions: Vec<&'static str>,
    /// Key ARNs; `*` in a key policy is the key that it belongs to.
    pub(super) resources: BTreeSet<String>,
    pub(super) conditions: Conditions,
}

impl Statement {
    /// An Allow of these actions on the key whose policy it stands in.
    pub(super) fn allow(sid: &str, actions: &[&'static str]) -> Self {
        Self {
            sid: sid.to_owned(),
            effect: Effect::Allow,
            whom: Whom::Unsaid,
            actions: actions.to_vec(),
            resources: BTreeSet::from(["*".to_owned()]),
            conditions: Conditions::new(),
        }
    }

    /// A Deny of these actions.
    pub(super) fn deny(sid: &str, actions: &[&'static str]) -> Self {
        Self {
            effect: Effect::Deny,
            whom: Whom::Everybody,
            ..Self::allow(sid, actions)
        }
    }

    /// With one more condition.
    pub(super) fn when<T: Into<String>>(
        mut self,
        operator: &'static str,
        key: &str,
        values: impl IntoIterator<Item = T>,
    ) -> Self {
        let of_operator = self.conditions.entry(operator).or_default();
        let entry = of_operator.entry(key.to_owned()).or_default();
        entry.extend(values.into_iter().map(Into::into));
        self
    }

    /// Before that moment. Fractions of a second are cut off: never later than the policy says.
    pub(super) fn until(self, end: Option<UnixMillis>) -> Self {
        match end {
            // A moment prints as whole seconds.
            Some(end) => self.when("DateLessThan", "aws:CurrentTime", [end.to_string()]),
            None => self,
        }
    }

    /// On these keys, in an identity's own policy.
    pub(super) fn on(mut self, keys: impl IntoIterator<Item = String>) -> Self {
        self.resources = keys.into_iter().collect();
        self
    }

    fn to_json(&self) -> Value {
        let mut members = Map::new();
        members.insert("Sid".to_owned(), json!(self.sid));
        let effect = match self.effect {
            Effect::Allow => "Allow",
            Effect::Deny => "Deny",
        };
        members.insert("Effect".to_owned(), json!(effect));
        match &self.whom {
            Whom::Unsaid => {}
            Whom::Everybody => {
                members.insert("Principal".to_owned(), json!({ "AWS": "*" }));
            }
            Whom::Arns(arns) => {
                members.insert("Principal".to_owned(), json!({ "AWS": arns }));
            }
        }
        members.insert("Action".to_owned(), json!(self.actions));
        members.insert("Resource".to_owned(), json!(self.resources));
        if !self.conditions.is_empty() {
            members.insert("Condition".to_owned(), json!(self.conditions));
        }
        Value::Object(members)
    }
}

impl Document {
    /// The document as AWS takes it. Every list is sorted, so the same input gives the same bytes.
    pub(super) fn to_json(&self) -> Value {
        let statements: Vec<Value> = self.0.iter().map(Statement::to_json).collect();
        json!({ "Version": "2012-10-17", "Statement": statements })
    }

    /// Its length as JSON without white space.
    pub(super) fn bytes(&self) -> usize {
        self.to_json().to_string().len()
    }

    /// Adds statements; one whose `sid` is there already gets a number behind it.
    pub(super) fn extend(&mut self, statements: impl IntoIterator<Item = Statement>) {
        for mut statement in statements {
            let taken = |sid: &str| self.0.iter().any(|other| other.sid == sid);
            let mut n = 2;
            let stem = statement.sid.clone();
            while taken(&statement.sid) {
                statement.sid = format!("{stem}{n}");
                n += 1;
            }
            self.0.push(statement);
        }
    }
}

/// `base` for these principals, in one statement for all whose ARN is known and one for each kind of pattern.
///
/// A `*` of ours stops at `/`, IAM's does not: what a pattern would match beyond is taken back by `ArnNotLike`. Patterns
/// cannot stand in a Principal, so their account does, which hands the question on to IAM in that account: a principal
/// that a pattern names needs a policy of its own too.
pub(super) fn for_principals(principals: &BTreeSet<String>, base: &Statement) -> Vec<Statement> {
    let mut exact = BTreeSet::new();
    let mut patterns: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for arn in principals {
        if !arn.contains('*') {
            exact.insert(arn.clone());
            continue;
        }
        patterns
            .entry((root_of(arn), deeper(arn)))
            .or_default()
            .insert(arn.clone());
    }
    let mut statements = Vec::new();
    if !exact.is_empty() {
        statements.push(Statement {
            whom: Whom::Arns(exact),
            ..base.clone()
        });
    }
    for ((root, beyond), arns) in patterns {
        let statement = Statement {
            whom: Whom::Arns(BTreeSet::from([root])),
            ..base.clone()
        };
        statements.push(
            statement
                .when("ArnLike", PRINCIPAL_ARN, arns)
                .when("ArnNotLike", PRINCIPAL_ARN, [beyond]),
        );
    }
    statements
}

/// `base`, a Deny, for all whom these principals of an ACL name: roles of that name in any path, as the ACL means it.
///
/// A pattern of roles may name more here than in the ACL (`role/a*` also `role/abc/other`), never less.
pub(super) fn against(principals: &[&Principal], base: &Statement) -> Vec<Statement> {
    let mut roles = BTreeSet::new();
    let mut users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for principal in principals {
        let Principal::Iam {
            partition,
            account,
            kind,
            name,
        } = principal
        else {
            continue;
        };
        match kind {
            IamKind::Role => {
                let name = name.rsplit_once('/').map_or(name.as_str(), |(_, name)| name);
                roles.insert(format!("arn:{partition}:iam::{account}:role/{name}"));
                roles.insert(format!("arn:{partition}:iam::{account}:role/*/{name}"));
            }
            IamKind::User => {
                let arn = principal.to_string();
                users.entry(deeper(&arn)).or_default().insert(arn);
            }
        }
    }
    let mut statements = Vec::new();
    if !roles.is_empty() {
        statements.push(base.clone().when("ArnLike", PRINCIPAL_ARN, roles));
    }
    for (beyond, arns) in users {
        let statement = base.clone().when("ArnLike", PRINCIPAL_ARN, arns);
        statements.push(statement.when("ArnNotLike", PRINCIPAL_ARN, [beyond]));
    }
    statements
}

/// `arn:…:root` of the account of an ARN.
pub(super) fn root_of(arn: &str) -> String {
    let mut parts = arn.splitn(6, ':');
    let partition = parts.nth(1).unwrap_or_default();
    let account = parts.nth(2).unwrap_or_default();
    format!("arn:{partition}:iam::{account}:root")
}

/// A pattern of all ARNs of that account and kind with more slashes than `arn`. What matches `arn` in IAM and not this has
/// as many slashes as it, so that none of its `*` stands for one.
fn deeper(arn: &str) -> String {
    let (start, name) = arn.split_once('/').unwrap_or((arn, ""));
    format!("{start}/{}*", "*/".repeat(name.matches('/').count() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_pinned_to_its_account_and_depth() {
        assert_eq!(
            root_of("arn:aws-cn:iam::111122223333:role/a*"),
            "arn:aws-cn:iam::111122223333:root"
        );
        assert_eq!(deeper("arn:aws:iam::1:role/a*"), "arn:aws:iam::1:role/*/*");
        assert_eq!(deeper("arn:aws:iam::1:user/*/a*"), "arn:aws:iam::1:user/*/*/*");
    }

    #[test]
    fn sids_are_made_unique() {
        let mut document = Document::default();
        document.extend([
            Statement::allow("A", &[]),
            Statement::allow("A", &[]),
            Statement::allow("A", &[]),
        ]);
        let sids: Vec<&str> = document.0.iter().map(|statement| statement.sid.as_str()).collect();
        assert_eq!(sids, ["A", "A2", "A3"]);
    }
}
