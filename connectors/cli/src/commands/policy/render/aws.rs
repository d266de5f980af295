//! What AWS is told: for every KMS key a key policy, and for every role a policy of its own that matches it.
//!
//! Every Allow of cryptography has the encryption contexts that this program builds as its condition
//! ([`EncryptionContext`](sealflow::keys::EncryptionContext)), and no other.

use std::collections::{BTreeMap, BTreeSet};

use sealflow::acl::{Acl, Grant, Principal};
use sealflow::clock::UnixMillis;
use sealflow::policy::{Policy, VerifiedPolicy};

use super::Readers;
use super::client;
use super::enclave::{self, Measured};
use super::statement::{Document, Statement, Whom, against, for_principals, root_of};

/// What administrators of a key may do: everything but cryptography, and no grants, with which they could give it to
/// themselves.
const ADMINISTRATION: &[&str] = &[
    "kms:CancelKeyDeletion",
    "kms:DescribeKey",
    "kms:DisableKey",
    "kms:DisableKeyRotation",
    "kms:EnableKey",
    "kms:EnableKeyRotation",
    "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus",
    "kms:ListGrants",
    "kms:ListKeyPolicies",
    "kms:ListKeyRotations",
    "kms:ListResourceTags",
    "kms:PutKeyPolicy",
    "kms:RevokeGrant",
    "kms:ScheduleKeyDeletion",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:UpdateKeyDescription",
];
/// Whoever may wrap a key anew under a key of their own can open it there.
const OPENING: &[&str] = &["kms:Decrypt", "kms:ReEncryptFrom"];
/// What this program never asks a KMS for.
const NEVER: &[&str] = &[
    "kms:CreateGrant",
    "kms:Encrypt",
    "kms:GenerateDataKeyPair",
    "kms:GenerateDataKeyPairWithoutPlaintext",
    "kms:GenerateDataKeyWithoutPlaintext",
];

pub(super) const DATASET: &str = "kms:EncryptionContext:sealflow:dataset";
const KEY: &str = "kms:EncryptionContext:sealflow:key";
const ACL: &str = "kms:EncryptionContext:sealflow:acl";
const DOMAIN: &str = "kms:EncryptionContext:sealflow:domain";
pub(super) const CONTEXT_KEYS: &str = "kms:EncryptionContextKeys";
const NAMES: [&str; 3] = ["sealflow:acl", "sealflow:dataset", "sealflow:key"];

/// Who does what, by ARN; a name may hold `*`.
#[derive(Clone, Debug, Default)]
pub(super) struct Parties {
    /// Roles of pipelines that seal.
    pub(super) sealers: BTreeSet<String>,
    /// Roles that open for others, and enforce the ACLs themselves.
    pub(super) services: BTreeSet<String>,
    /// Administrators of the keys; empty: the account of each key.
    pub(super) admins: BTreeSet<String>,
    /// Who rotates and rewraps.
    pub(super) maintainers: BTreeSet<String>,
    /// Where readers are told apart.
    pub(super) readers: Readers,
    /// Whether to deny other encryption contexts, and new grants.
    pub(super) deny_others: bool,
}

/// A domain, as far as KMS is concerned.
#[derive(Clone, Debug)]
pub(super) struct Domain {
    /// KMS key of the secret that seals.
    pub(super) newest: String,
    /// KMS keys of all its secrets.
    pub(super) keys: BTreeSet<String>,
    /// Who may open its values.
    pub(super) acl: Acl,
}

/// What is rendered.
pub(super) struct Subject<'a> {
    pub(super) policies: &'a [VerifiedPolicy],
    /// By name: those whose documents are at hand.
    pub(super) domains: BTreeMap<String, Domain>,
    /// Grants that are over by then are left out.
    pub(super) now: UnixMillis,
}

impl Subject<'_> {
    /// Whether a column is sealed in that domain. Of one that only hashes for hints nobody unwraps the secret but who seals.
    pub(super) fn opens_values_of(&self, domain: &str) -> bool {
        let mut columns = self.policies.iter().flat_map(|policy| &policy.policy().columns);
        columns.any(|rule| rule.domain() == Some(domain))
    }

    /// The keys behind enclave columns, with the measurements of each dataset that has such columns.
    pub(super) fn enclave_keys(&self) -> BTreeMap<String, Vec<BTreeSet<Measured>>> {
        enclave::keys(self.policies)
    }
}

/// The documents.
#[derive(Debug, Default)]
pub(super) struct Rendered {
    /// Key policies by key ARN.
    pub(super) keys: BTreeMap<String, Document>,
    /// Policies of identities by name.
    pub(super) identities: BTreeMap<String, Document>,
    /// What those among them are used for that do not wrap keys, in KMS's words.
    pub(super) usages: BTreeMap<String, &'static str>,
    /// What these documents cannot say.
    pub(super) unsaid: BTreeSet<String>,
}

/// One thing that somebody may do with one KMS key.
pub(super) struct Rule {
    pub(super) key: String,
    pub(super) statement: Statement,
}

/// Renders the documents of all keys that the subject names.
pub(super) fn render(subject: &Subject<'_>, parties: &Parties) -> Rendered {
    let mut rendering = Rendering {
        parties,
        out: Rendered::default(),
        describing: BTreeMap::new(),
    };
    for key in all_keys(subject) {
        let admins = match &parties.admins {
            none if none.is_empty() => BTreeSet::from([root_of(&key)]),
            admins => admins.clone(),
        };
        rendering.key_statements(&key, &admins, &Statement::allow("Administer", ADMINISTRATION));
    }
    for policy in subject.policies {
        rendering.of_policy(policy.policy(), subject);
    }
    for (name, domain) in &subject.domains {
        rendering.of_domain(name, domain, subject);
    }
    rendering.describe();
    for (key, of_datasets) in subject.enclave_keys() {
        let measurements: BTreeSet<Measured> = of_datasets.into_iter().flatten().collect();
        let statements = enclave::statements(&measurements, &parties.admins);
        rendering.document(&key).extend(statements);
    }
    let client_keys = client::keys(subject.policies);
    let usages = client_keys
        .iter()
        .filter_map(|(key, kind)| Some((key.clone(), kind.usage()?)));
    rendering.out.usages = usages.collect();
    if parties.deny_others {
        rendering.deny_others(subject);
    }
    rendering.out
}

/// Current, previous, clients' and domains' keys.
fn all_keys(subject: &Subject<'_>) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for policy in subject.policies {
        let policy = policy.policy();
        keys.extend(policy.keys.values().map(|key| key.arn.clone()));
        keys.extend(policy.previous.keys.iter().map(|key| key.arn.clone()));
    }
    keys.extend(client::keys(subject.policies).into_keys());
    keys.extend(subject.domains.values().flat_map(|domain| domain.keys.iter().cloned()));
    keys
}

struct Rendering<'a> {
    parties: &'a Parties,
    out: Rendered,
    /// Who uses a key, by its ARN.
    describing: BTreeMap<String, BTreeSet<String>>,
}

impl Rendering<'_> {
    fn of_policy(&mut self, policy: &Policy, subject: &Subject<'_>) {
        let dataset = &policy.dataset;
        let mut seal = sealing(policy, subject);
        seal.extend(client::opening(policy));
        seal.extend(client::publishing(policy));
        seal.extend(client::proving(policy));
        self.give(&self.parties.sealers.clone(), &seal);
        self.identity(&format!("sealflow-{dataset}-seal"), &seal);
        for (name, acl) in &policy.acls {
            let mut datasets = BTreeSet::new();
            let guards = policy
                .columns
                .iter()
                .any(|rule| rule.domain().is_none() && rule.acl == *name)
                || policy.table_labels().iter().any(|(_, acl)| acl == name);
            if guards && self.parties.readers == Readers::Kms {
                datasets.insert(dataset.clone());
            }
            // No service opens these: `dlq` does, with its caller's own rights.
            if policy.dead_letter_group().is_some_and(|group| group.acl == *name) {
                datasets.insert(policy.dead_letters_dataset());
            }
            if datasets.is_empty() {
                continue;
            }
            let sid = sid("Read", &[dataset, name]);
            let contexts = Contexts {
                datasets,
                acls: names_of(policy, name),
            };
            let rules = opening(policy, &contexts, &sid);
            self.readers(&rules, acl, &format!("acls.{name} of {dataset}"), subject.now, || {
                format!("sealflow-{dataset}-read-{name}")
            });
            self.against(policy, &contexts, acl, &self::sid("Deny", &[dataset, name]));
        }
        let contexts = Contexts {
            datasets: BTreeSet::from([dataset.clone()]),
            acls: guarding(policy),
        };
        let mut serve = opening(policy, &contexts, &sid("Serve", &[dataset]));
        serve.extend(client::publishing(policy));
        self.give(&self.parties.services.clone(), &serve);
        let mut maintain = maintaining(policy);
        maintain.extend(client::publishing(policy));
        maintain.extend(client::making(policy));
        maintain.extend(client::proving(policy));
        self.give(&self.parties.maintainers.clone(), &maintain);
        if !self.parties.services.is_empty() {
            self.identity(&format!("sealflow-{dataset}-serve"), &serve);
        }
        if !self.parties.maintainers.is_empty() {
            self.identity(&format!("sealflow-{dataset}-maintain"), &maintain);
        }
    }

    fn of_domain(&mut self, name: &str, domain: &Domain, subject: &Subject<'_>) {
        let opens = subject.opens_values_of(name);
        let rules = |verb: &str| -> Vec<Rule> {
            let statement = in_domain(Statement::allow(&sid(verb, &["domain", name]), &["kms:Decrypt"]), name);
            let rule = |key: &String| Rule {
                key: key.clone(),
                statement: statement.clone(),
            };
            domain.keys.iter().map(rule).collect()
        };
        if opens && !self.parties.services.is_empty() {
            let serve = rules("Serve");
            self.give(&self.parties.services.clone(), &serve);
            self.identity(&format!("sealflow-domain-{name}-serve"), &serve);
        }
        if self.parties.readers == Readers::Kms {
            let place = format!("the ACL of domain {name}");
            if opens {
                self.readers(&rules("Read"), &domain.acl, &place, subject.now, || {
                    format!("sealflow-domain-{name}-read")
                });
            }
            let denied: Vec<&Principal> = domain.acl.deny.iter().collect();
            let base = Statement::deny(&sid("Deny", &["domain", name]), OPENING).when("StringEquals", DOMAIN, [name]);
            for key in &domain.keys {
                self.document(key).extend(against(&denied, &base));
            }
            // Whoever seals in a domain holds the secret that opens it, so KMS cannot give the one without the other.
            self.denied_parties(&self.parties.sealers.clone(), &denied, &place, "seal");
            if opens {
                self.denied_parties(&self.parties.services.clone(), &denied, &place, "open");
            }
        }
    }

    /// Says which of those whom the caller names an ACL denies: KMS refuses them.
    fn denied_parties(&mut self, parties: &BTreeSet<String>, denied: &[&Principal], place: &str, what: &str) {
        for party in parties {
            let Ok(principal) = party.parse::<Principal>() else {
                continue;
            };
            if denied.iter().any(|denied| denied.overlaps(&principal)) {
                self.unsaid(format!(
                    "{place} denies {party}: KMS refuses it, so it cannot {what} there"
                ));
            }
        }
    }

    /// Lets these principals do that, in the policies of the keys.
    fn give(&mut self, principals: &BTreeSet<String>, rules: &[Rule]) {
        for rule in rules {
            self.key_statements(&rule.key, principals, &rule.statement);
        }
    }

    fn key_statements(&mut self, key: &str, principals: &BTreeSet<String>, base: &Statement) {
        let mut of_partition = BTreeSet::new();
        for principal in principals {
            if partition(principal) == partition(key) {
                of_partition.insert(principal.clone());
            } else {
                self.unsaid(format!(
                    "{key} cannot name {principal}: it is of another partition of AWS"
                ));
            }
        }
        if base.actions != ADMINISTRATION {
            self.describing
                .entry(key.to_owned())
                .or_default()
                .extend(of_partition.iter().cloned());
        }
        let document = self.document(key);
        for statement in for_principals(&of_partition, base) {
            // Several datasets may share a domain.
            if !document.0.contains(&statement) {
                document.extend([statement]);
            }
        }
    }

    /// Lets those open whom an ACL allows, as far as IAM can say whom and when.
    fn readers(&mut self, rules: &[Rule], acl: &Acl, place: &str, now: UnixMillis, name: impl Fn() -> String) {
        let mut by_end: BTreeMap<Option<UnixMillis>, BTreeSet<String>> = BTreeMap::new();
        for (n, grant) in acl.allow.iter().enumerate() {
            if let Some(reason) = unsayable(grant) {
                self.unsaid(format!("{place}: allow[{n}] ({grant}): {reason}"));
            } else if grant.until.is_none_or(|until| now < until) {
                by_end
                    .entry(grant.until)
                    .or_default()
                    .insert(grant.principal.to_string());
            }
        }
        for (n, denied) in acl.deny.iter().enumerate() {
            if matches!(denied, Principal::Oidc { .. }) {
                self.unsaid(format!("{place}: deny[{n}] ({denied}): KMS does not see OIDC identities; only a service that opens for others refuses them"));
            }
        }
        for (end, principals) in by_end {
            let rules: Vec<Rule> = rules
                .iter()
                .map(|rule| Rule {
                    key: rule.key.clone(),
                    statement: rule.statement.clone().until(end),
                })
                .collect();
            self.give(&principals, &rules);
            let until = end.map_or_else(String::new, |end| {
                format!(
                    "-until-{}",
                    end.to_string().replace(|c: char| !c.is_ascii_alphanumeric(), "")
                )
            });
            self.identity(&format!("{}{until}", name()), &rules);
        }
    }

    /// Refuses those whom an ACL denies, whatever allows them.
    fn against(&mut self, policy: &Policy, contexts: &Contexts, acl: &Acl, sid: &str) {
        let denied: Vec<&Principal> = acl.deny.iter().collect();
        let base = Statement::deny(sid, OPENING)
            .when("StringEquals", DATASET, contexts.datasets.iter().cloned())
            .when("StringEquals", ACL, contexts.acls.iter().cloned());
        for key in keys_of(policy) {
            self.document(&key).extend(against(&denied, &base));
        }
        let place = format!("an ACL of {}", policy.dataset);
        self.denied_parties(&self.parties.services.clone(), &denied, &place, "open");
    }

    /// `DescribeKey` has no encryption context, so it stands alone.
    fn describe(&mut self) {
        for (key, principals) in std::mem::take(&mut self.describing) {
            let base = Statement::allow("Describe", &["kms:DescribeKey"]);
            self.document(&key).extend(for_principals(&principals, &base));
        }
    }

    fn deny_others(&mut self, subject: &Subject<'_>) {
        let client_keys = client::keys(subject.policies);
        for (key, kind) in &client_keys {
            self.document(key).extend(client::deny_others(kind));
        }
        for key in all_keys(subject)
            .into_iter()
            .filter(|key| !client_keys.contains_key(key))
        {
            let of = |policy: &&VerifiedPolicy| keys_of(policy.policy()).contains(&key);
            let policies: Vec<&Policy> = subject.policies.iter().filter(of).map(VerifiedPolicy::policy).collect();
            let datasets = policies
                .iter()
                .flat_map(|policy| [policy.dataset.clone(), policy.dead_letters_dataset()]);
            let acls = policies
                .iter()
                .flat_map(|policy| policy.acls.keys().chain(policy.previous.acls.keys()).cloned());
            let names = policies.iter().flat_map(|policy| names_under(policy, &key));
            let known: [(&'static str, &str, BTreeSet<String>); 3] = [
                ("StringNotEquals", DATASET, datasets.collect()),
                ("StringNotLike", KEY, names.collect()),
                ("StringNotEquals", ACL, acls.collect()),
            ];
            let domains: BTreeSet<String> = subject
                .domains
                .iter()
                .filter(|(_, domain)| domain.keys.contains(&key))
                .map(|(name, _)| name.clone())
                .collect();
            let document = self.document(&key);
            document.extend([Statement::deny("DenyWhatIsNeverNeeded", NEVER)]);
            let contextual = [
                "kms:Decrypt",
                "kms:GenerateDataKey",
                "kms:ReEncryptFrom",
                "kms:ReEncryptTo",
            ];
            // A negated operator holds where the context has no such name, so one of a domain is excepted by its own.
            for (operator, name, values) in known {
                let mut deny = Statement::deny("DenyOtherContexts", &contextual);
                if !values.is_empty() {
                    deny = deny.when(operator, name, values);
                }
                if !domains.is_empty() {
                    deny = deny.when("StringNotEquals", DOMAIN, domains.iter().cloned());
                }
                if !document
                    .0
                    .iter()
                    .any(|other| other.conditions == deny.conditions && other.actions == contextual)
                {
                    document.extend([deny]);
                }
            }
        }
    }

    fn document(&mut self, key: &str) -> &mut Document {
        self.out.keys.entry(key.to_owned()).or_default()
    }

    fn identity(&mut self, name: &str, rules: &[Rule]) {
        if rules.is_empty() {
            return;
        }
        let document = self.out.identities.entry(name.to_owned()).or_default();
        for rule in rules {
            let statement = rule.statement.clone().on([rule.key.clone()]);
            document.extend([Statement {
                whom: Whom::Unsaid,
                ..statement
            }]);
        }
        // As in the key policies: it has no encryption context, so it stands alone.
        let keys = rules.iter().map(|rule| rule.key.clone());
        document.extend([Statement::allow("Describe", &["kms:DescribeKey"]).on(keys)]);
    }

    fn unsaid(&mut self, what: String) {
        self.out.unsaid.insert(what);
    }
}

/// Why a grant is left out of IAM; `None` if it is not.
fn unsayable(grant: &Grant) -> Option<&'static str> {
    if matches!(grant.principal, Principal::Oidc { .. }) {
        return Some("no principal of IAM; only a service that opens for others can let it in");
    }
    if !grant.purposes.is_empty() {
        // To let it in for any purpose would give more than the policy does.
        return Some("IAM knows no purposes; only a service that opens for others asks for one");
    }
    None
}

/// Datasets and ACL names of encryption contexts.
struct Contexts {
    datasets: BTreeSet<String>,
    acls: BTreeSet<String>,
}

/// What a pipeline that seals asks for: data keys in the contexts of the columns and of the dead letters, and the secrets
/// of domains.
fn sealing(policy: &Policy, subject: &Subject<'_>) -> Vec<Rule> {
    let mut acls: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    let groups = policy.groups().into_iter().chain(policy.dead_letter_group());
    for group in groups.chain(policy.table_groups()).chain(policy.extra_group()) {
        acls.entry((group.dataset, group.key)).or_default().insert(group.acl);
    }
    let mut rules = Vec::new();
    for ((dataset, name), acls) in acls {
        let Some(key) = policy.keys.get(&name) else { continue };
        let statement = Statement::allow(&sid("Seal", &[&dataset, &name]), &["kms:GenerateDataKey"]);
        let contexts = Contexts {
            datasets: BTreeSet::from([dataset]),
            acls,
        };
        let names = BTreeSet::from([pattern(&key.name)]);
        rules.push(Rule {
            key: key.arn.clone(),
            statement: in_context(statement, &contexts, names),
        });
    }
    let columns = policy.columns.iter();
    let domains: BTreeSet<&str> = columns.filter_map(|rule| rule.sealing_domain()).collect();
    for name in domains {
        let Some(domain) = subject.domains.get(name) else {
            continue;
        };
        let statement = Statement::allow(&sid("Seal", &["domain", name]), &["kms:Decrypt"]);
        rules.push(Rule {
            key: domain.newest.clone(),
            statement: in_domain(statement, name),
        });
    }
    rules
}

/// `Decrypt` in these contexts, on each key of the policy.
fn opening(policy: &Policy, contexts: &Contexts, sid: &str) -> Vec<Rule> {
    if contexts.acls.is_empty() {
        return Vec::new();
    }
    let rule = |key: String| {
        let names = names_under(policy, &key);
        let statement = in_context(Statement::allow(sid, &["kms:Decrypt"]), contexts, names);
        Rule { key, statement }
    };
    keys_of(policy).into_iter().map(rule).collect()
}

/// `keys rotate` on current keys, and `keys rewrap` from previous ones.
fn maintaining(policy: &Policy) -> Vec<Rule> {
    let dataset = policy.dataset.as_str();
    let mut rules = Vec::new();
    let current: BTreeSet<&String> = policy.keys.values().map(|key| &key.arn).collect();
    for key in current {
        rules.push(Rule {
            key: key.clone(),
            statement: Statement::allow("Rotate", &["kms:ListKeyRotations", "kms:RotateKeyOnDemand"]),
        });
    }
    let contexts = Contexts {
        datasets: BTreeSet::from([dataset.to_owned(), policy.dead_letters_dataset()]),
        acls: policy.acls.keys().chain(policy.previous.acls.keys()).cloned().collect(),
    };
    // Nothing is moved from or to a key of enclave columns: whoever could, could move it to a key of their own.
    let enclave = enclave::of_policy(policy);
    for old in policy
        .previous
        .keys
        .iter()
        .filter(|old| !enclave.contains(old.arn.as_str()))
    {
        let names = BTreeSet::from([pattern(&old.name)]);
        let moved = |verb: &str, key: &str, action| Rule {
            key: key.to_owned(),
            statement: in_context(
                Statement::allow(&sid(verb, &[dataset]), &[action]),
                &contexts,
                names.clone(),
            ),
        };
        let targets = policy
            .keys
            .values()
            .filter(|key| key.arn != old.arn && key.name.overlaps(&old.name) && !enclave.contains(key.arn.as_str()));
        let targets: BTreeSet<&String> = targets.map(|key| &key.arn).collect();
        if !targets.is_empty() {
            rules.push(moved("RewrapFrom", &old.arn, "kms:ReEncryptFrom"));
        }
        rules.extend(targets.into_iter().map(|key| moved("RewrapTo", key, "kms:ReEncryptTo")));
    }
    rules
}

/// With exactly the context of a data key: each of the three names is there with one of these values, and no other is.
fn in_context(statement: Statement, contexts: &Contexts, names: BTreeSet<String>) -> Statement {
    let like = names.iter().any(|name| name.contains('*'));
    statement
        .when("StringEquals", DATASET, contexts.datasets.iter().cloned())
        .when(if like { "StringLike" } else { "StringEquals" }, KEY, names)
        .when("StringEquals", ACL, contexts.acls.iter().cloned())
        .when("ForAllValues:StringEquals", CONTEXT_KEYS, NAMES)
}

/// With exactly the context of a domain's secret.
fn in_domain(statement: Statement, name: &str) -> Statement {
    statement
        .when("StringEquals", DOMAIN, [name])
        .when("ForAllValues:StringEquals", CONTEXT_KEYS, ["sealflow:domain"])
}

/// KMS keys of a policy, current and previous.
fn keys_of(policy: &Policy) -> BTreeSet<String> {
    let previous = policy.previous.keys.iter().map(|key| &key.arn);
    policy
        .keys
        .values()
        .map(|key| &key.arn)
        .chain(previous)
        .cloned()
        .collect()
}

/// Names of the policy keys, current and previous, whose KMS key is that one.
fn names_under(policy: &Policy, arn: &str) -> BTreeSet<String> {
    let current = policy
        .keys
        .values()
        .filter(|key| key.arn == arn)
        .map(|key| pattern(&key.name));
    let previous = policy.previous.keys.iter().filter(|key| key.arn == arn);
    current.chain(previous.map(|key| pattern(&key.name))).collect()
}

/// A template's fields have a character at least.
fn pattern(name: &sealflow::policy::KeyTemplate) -> String {
    name.with_each_field_as("?*")
}

/// An ACL's name, and the former names in whose place it counts.
fn names_of(policy: &Policy, acl: &str) -> BTreeSet<String> {
    let former = policy.previous.acls.iter().filter(|(_, current)| *current == acl);
    former.map(|(old, _)| old.clone()).chain([acl.to_owned()]).collect()
}

/// The names, current and former, of all ACLs of columns.
fn guarding(policy: &Policy) -> BTreeSet<String> {
    let columns = policy.columns.iter().filter(|rule| rule.domain().is_none());
    columns.flat_map(|rule| names_of(policy, &rule.acl)).collect()
}

fn partition(arn: &str) -> &str {
    arn.split(':').nth(1).unwrap_or_default()
}

/// Letters and digits only, as IAM wants them.
pub(super) fn sid(verb: &str, names: &[&str]) -> String {
    let mut sid = verb.to_owned();
    for word in names
        .iter()
        .flat_map(|name| name.split(|c: char| !c.is_ascii_alphanumeric()))
    {
        let mut letters = word.chars();
        sid.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        sid.push_str(letters.as_str());
    }
    sid
}
