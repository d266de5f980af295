//! What is rendered, asked by the development KMS's evaluator of key policies, by the providers' schemas and by Terraform.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use proptest::prelude::*;
use sealflow::acl::Identity;
use sealflow::clock::UnixMillis;
use sealflow::policy::{DomainDocument, Policy, VerifiedPolicy};
use sealflow_local_kms::policy::{Call, Evidence, KeyPolicy};

use super::aws::{self, Domain, Parties, Rendered, Subject};
use super::gcp::{self, Members};
use super::hcl::{self, Block, Item, Value};
use super::statement::Effect;
use super::{Readers, terraform};

pub(super) const NOW: UnixMillis = UnixMillis(1_767_225_600_000); // 2026-01-01T00:00:00Z
const DAY: u64 = 86_400_000;
const KEYS: [&str; 3] = ["a", "b", "c"];
const SEALER: &str = "arn:aws:iam::111111111111:role/pipeline";
const SERVICE: &str = "arn:aws:iam::111111111111:role/reading-service";

pub(super) fn arn(key: &str) -> String {
    format!("arn:aws:kms:eu-central-1:111111111111:key/{key}")
}

pub(super) fn unsigned(yaml: &str) -> VerifiedPolicy {
    VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap()
}

pub(super) fn parties(readers: Readers, deny_others: bool) -> Parties {
    let one = |arn: &str| BTreeSet::from([arn.to_owned()]);
    Parties {
        sealers: one(SEALER),
        services: if readers == Readers::Service {
            one(SERVICE)
        } else {
            BTreeSet::new()
        },
        readers,
        deny_others,
        ..Parties::default()
    }
}

pub(super) fn domain(keys: &[&str], acl: &str) -> Domain {
    let yaml = format!(
        "domain: customers\nversion: 1\nkey: {{ arn: \"{}\" }}\nkey_id: \"{}\"\ntype: utf8\nacl: {acl}\n",
        arn(keys[0]),
        "0".repeat(32)
    );
    Domain {
        newest: arn(keys[0]),
        keys: keys.iter().map(|key| arn(key)).collect(),
        acl: DomainDocument::parse(yaml.as_bytes()).unwrap().acl,
    }
}

pub(super) fn rendered(policy: &VerifiedPolicy, domains: BTreeMap<String, Domain>, parties: &Parties) -> Rendered {
    let subject = Subject {
        policies: std::slice::from_ref(policy),
        domains,
        now: NOW,
    };
    aws::render(&subject, parties)
}

/// Key policies as KMS reads them.
pub(super) fn key_policies(rendered: &Rendered) -> BTreeMap<String, KeyPolicy> {
    let parse = |(arn, document): (&String, &super::statement::Document)| {
        (arn.clone(), KeyPolicy::parse(&document.to_json().to_string()).unwrap())
    };
    rendered.keys.iter().map(parse).collect()
}

pub(super) type Context<'a> = Vec<(&'a str, &'a str)>;

fn allows(
    policies: &BTreeMap<String, KeyPolicy>,
    key: &str,
    who: &str,
    action: &str,
    context: &Context<'_>,
    at: u64,
) -> bool {
    allows_attested(policies, key, (who, action), context, at, None)
}

pub(super) fn allows_attested(
    policies: &BTreeMap<String, KeyPolicy>,
    key: &str,
    (who, action): (&str, &str),
    context: &Context<'_>,
    at: u64,
    evidence: Option<&Evidence>,
) -> bool {
    let key_arn = arn(key);
    let context = context
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let Some(policy) = policies.get(&key_arn) else {
        return false;
    };
    policy.allows(&Call {
        principal: who,
        action,
        key_arn: &key_arn,
        context: &context,
        algorithm: Some("SYMMETRIC_DEFAULT"),
        evidence,
        now: UnixMillis(at),
    })
}

pub(super) fn data_key<'a>(dataset: &'a str, key: &'a str, acl: &'a str) -> Context<'a> {
    vec![
        ("sealflow:dataset", dataset),
        ("sealflow:key", key),
        ("sealflow:acl", acl),
    ]
}

/// Callers as KMS sees them.
pub(super) const CALLERS: [&str; 12] = [
    "arn:aws:sts::111111111111:assumed-role/x/s",
    "arn:aws:sts::111111111111:assumed-role/xy/s",
    "arn:aws:sts::111111111111:assumed-role/y/x",
    "arn:aws:iam::111111111111:role/yx",
    "arn:aws:sts::222222222222:assumed-role/x/s",
    "arn:aws:sts::222222222222:assumed-role/xy/s",
    "arn:aws:iam::111111111111:user/x",
    "arn:aws:iam::111111111111:user/xy",
    "arn:aws:iam::111111111111:user/x/y",
    "arn:aws:iam::111111111111:user/x/x/y",
    "arn:aws:sts::111111111111:assumed-role/pipeline/s",
    "arn:aws:iam::111111111111:user/admin",
];

fn principals() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "arn:aws:iam::111111111111:role/x",
        "arn:aws:iam::111111111111:role/team/x",
        "arn:aws:iam::111111111111:role/x*",
        "arn:aws:iam::111111111111:role/*",
        "arn:aws:iam::111111111111:role/*y",
        "arn:aws:iam::222222222222:role/x*",
        "arn:aws:iam::222222222222:role/x",
        "arn:aws:iam::111111111111:user/x",
        "arn:aws:iam::111111111111:user/x*",
        "arn:aws:iam::111111111111:user/x/*",
        "arn:aws:iam::111111111111:user/*/*",
        "oidc:https://login.example.com#sub=x",
    ])
}

fn acls() -> impl Strategy<Value = String> {
    let grant = (
        principals(),
        prop::option::weighted(0.3, 0_u64..3),
        prop::bool::weighted(0.15),
    )
        .prop_map(|(principal, until, purpose)| {
            let until = until.map_or_else(String::new, |days| {
                format!(", until: \"{}\"", UnixMillis(NOW.0 - DAY + days * DAY))
            });
            let purposes = if purpose { ", purposes: [audit]" } else { "" };
            format!("{{ principal: \"{principal}\"{until}{purposes} }}")
        });
    let denied = principals().prop_map(|principal| format!("\"{principal}\""));
    let lists = (prop::collection::vec(grant, 0..4), prop::collection::vec(denied, 0..2));
    lists.prop_map(|(allow, deny)| format!("{{ allow: [{}], deny: [{}] }}", allow.join(", "), deny.join(", ")))
}

/// RFC 7638, section 3.1.
const RECIPIENT: &str = "{ kty: RSA, e: AQAB, n: 0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw }";

/// Policies of two keys and two ACLs, with former keys and ACL names.
pub(super) fn policies() -> impl Strategy<Value = String> {
    let key = || prop::sample::select(KEYS.to_vec());
    let acl = || prop::sample::select(vec!["p", "q"]);
    let name = || prop::sample::select(vec!["one", "tenant-{t}"]);
    let hint = prop::option::of((any::<bool>(), acl()));
    let columns = prop::collection::vec((name(), acl(), hint), 1..4);
    let parts = (
        (key(), key(), prop::option::of(key()), prop::option::of(key())),
        (acls(), acls()),
        columns,
        (prop::option::of(acl()), prop::option::of(acl()), any::<bool>()),
    );
    parts.prop_map(|((one, many, former, was), (p, q), columns, (letters, old_acl, domain))| {
        let mut yaml = format!(
            "dataset: payments\nversion: 1\nkeys:\n  one: {{ arn: \"{}\" }}\n  \"tenant-{{t}}\": {{ arn: \"{}\" }}\nacls:\n  p: \
             {p}\n  q: {q}\ncolumns:\n",
            arn(one),
            arn(many)
        );
        for (n, (name, acl, hint)) in columns.iter().enumerate() {
            let hint = hint.map_or_else(String::new, |(hmac, acl)| {
                let derive = if hmac { "hmac, domain: customers" } else { "last4" };
                format!(", hints: [{{ derive: {derive}, acl: {acl} }}]")
            });
            yaml.push_str(&format!("  - {{ path: c{n}, key: \"{name}\", acl: {acl}{hint} }}\n"));
        }
        if domain {
            yaml.push_str("  - { path: customer, domain: customers }\n");
        }
        match letters {
            Some(acl) => yaml.push_str(&format!("dead_letters: {{ key: one, acl: {acl} }}\n")),
            // Nobody's at KMS.
            None if domain => yaml.push_str(&format!("dead_letters: {{ recipient: {RECIPIENT} }}\n")),
            None => {}
        }
        yaml.push_str("previous:\n  labels: { was: c0 }\n");
        if let Some(old) = old_acl {
            yaml.push_str(&format!("  acls: {{ old: {old} }}\n"));
        }
        let mut previous = Vec::new();
        previous.extend(former.map(|key| format!("{{ name: former, arn: \"{}\" }}", arn(key))));
        previous.extend(was.filter(|key| *key != one).map(|key| format!("{{ name: one, arn: \"{}\" }}", arn(key))));
        yaml.push_str(&format!("  keys: [{}]\n", previous.join(", ")));
        yaml
    })
}

/// What the policy says: there is something that this data key may have sealed, and the reader may open that.
pub(super) fn may_open(policy: &Policy, who: &Identity, key: &str, context: (&str, &str, &str), at: u64) -> bool {
    let (dataset, name, acl) = context;
    if !policy.opens(name, &arn(key), acl) {
        return false;
    }
    let current = policy.current_acl(acl);
    let now = UnixMillis(at);
    match dataset {
        "payments" => policy.columns.iter().any(|rule| {
            policy.acl_for_label(&rule.label) == current
                && current.is_some()
                && policy.access(&rule.label, who, None, now, |_| None).is_allowed()
        }),
        "payments#dead-letters" => {
            policy
                .dead_letter_group()
                .is_some_and(|group| Some(group.acl.as_str()) == current)
                && policy.dead_letter_access(who, None, now).is_allowed()
        }
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn kms_opens_for_whom_the_policy_says_and_for_nobody_else(
        yaml in policies(), of_domain in acls(), two_versions in any::<bool>(), deny_others in any::<bool>(), later in 0_u64..3,
    ) {
        let policy = unsigned(&yaml);
        let domains = BTreeMap::from([(
            "customers".to_owned(),
            domain(if two_versions { &["b", "c"] } else { &["b"] }, &of_domain),
        )]);
        let acl = domains["customers"].acl.clone();
        let policies = key_policies(&rendered(&policy, domains, &parties(Readers::Kms, deny_others)));
        let model = policy.policy();
        let at = NOW.0 + later * DAY;
        let groups: Vec<_> = model.groups().into_iter().chain(model.dead_letter_group()).collect();
        for caller in CALLERS {
            let who = Identity::from_arn(caller).unwrap();
            let seals = caller.contains("/pipeline/");
            for key in KEYS {
                for dataset in ["payments", "payments#dead-letters", "orders"] {
                    for name in ["one", "tenant-1", "tenant-", "former", "other"] {
                        for acl in ["p", "q", "old", "other"] {
                            let context = data_key(dataset, name, acl);
                            let opens = may_open(model, &who, key, (dataset, name, acl), at);
                            let asked = (caller, key, dataset, name, acl);
                            prop_assert_eq!(allows(&policies, key, caller, "kms:Decrypt", &context, at), opens, "{:?}", asked);
                            let ours = groups.iter().any(|group| {
                                group.dataset == dataset
                                    && group.acl == acl
                                    && model.keys[&group.key].arn == arn(key)
                                    && model.keys[&group.key].name.matches(name)
                            });
                            let given = allows(&policies, key, caller, "kms:GenerateDataKey", &context, at);
                            prop_assert_eq!(given, seals && ours, "{:?}", asked);
                            // One name more, one less, another spelling.
                            let mut more = context.clone();
                            more.push(("purpose", "any"));
                            let spelled = vec![("Sealflow:dataset", dataset), context[1], context[2]];
                            for wrong in [more, context[1..].to_vec(), context[..2].to_vec(), spelled, Vec::new()] {
                                for action in ["kms:Decrypt", "kms:GenerateDataKey"] {
                                    prop_assert!(!allows(&policies, key, caller, action, &wrong, at), "{:?} {:?}", asked, wrong);
                                }
                            }
                        }
                    }
                }
                let secret = vec![("sealflow:domain", "customers")];
                let is_its = key == "b" || (two_versions && key == "c");
                // A domain that only hashes opens nothing.
                let named = model.columns.iter().any(|rule| rule.domain().is_some())
                    && acl.decide(&who, None, UnixMillis(at)).is_allowed();
                // Sealing needs the secret that opens, which KMS refuses whom the ACL denies.
                let denied = acl.deny.iter().any(|principal| principal.names(&who));
                let sealed_with = model.columns.iter().any(|rule| rule.sealing_domain().is_some()) && key == "b" && !denied;
                prop_assert_eq!(
                    allows(&policies, key, caller, "kms:Decrypt", &secret, at),
                    is_its && named || seals && sealed_with,
                    "{} {}", caller, key
                );
                for action in ["kms:Encrypt", "kms:CreateGrant", "kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:GenerateDataKeyPair"] {
                    prop_assert!(!allows(&policies, key, caller, action, &secret, at));
                    prop_assert!(!allows(&policies, key, caller, action, &data_key("payments", "one", "p"), at));
                }
            }
        }
    }

    #[test]
    fn with_a_service_nobody_else_opens_columns_and_no_cryptography_is_allowed_without_its_context(
        yaml in policies(), of_domain in acls(), deny_others in any::<bool>(),
    ) {
        let policy = unsigned(&yaml);
        let domains = BTreeMap::from([("customers".to_owned(), domain(&["b"], &of_domain))]);
        let out = rendered(&policy, domains, &parties(Readers::Service, deny_others));
        for document in out.keys.values().chain(out.identities.values()) {
            for statement in document.0.iter().filter(|statement| statement.effect == Effect::Allow) {
                let cryptography = ["kms:Decrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo"];
                if statement.actions.iter().any(|action| cryptography.contains(action)) {
                    let keys: BTreeSet<&str> = statement.conditions.values().flat_map(|of| of.keys().map(String::as_str)).collect();
                    let exact = keys.contains("kms:EncryptionContextKeys");
                    let dataset = keys.contains("kms:EncryptionContext:sealflow:dataset")
                        && keys.contains("kms:EncryptionContext:sealflow:key")
                        && keys.contains("kms:EncryptionContext:sealflow:acl");
                    prop_assert!(exact && (dataset || keys.contains("kms:EncryptionContext:sealflow:domain")), "{:?}", statement);
                }
                prop_assert!(statement.actions.iter().all(|action| !action.contains('*')));
            }
        }
        let policies = key_policies(&out);
        let model = policy.policy();
        let service = SERVICE.replace(":iam:", ":sts:").replace("role/", "assumed-role/") + "/s";
        for key in KEYS {
            for name in ["one", "tenant-1", "former"] {
                for acl in ["p", "q", "old"] {
                    let context = data_key("payments", name, acl);
                    for caller in CALLERS {
                        prop_assert!(!allows(&policies, key, caller, "kms:Decrypt", &context, NOW.0), "{}", caller);
                    }
                    let guards = model.current_acl(acl).is_some_and(|acl| model.columns.iter().any(|rule| rule.acl == acl));
                    let opens = guards && model.opens(name, &arn(key), acl);
                    prop_assert_eq!(allows(&policies, key, &service, "kms:Decrypt", &context, NOW.0), opens, "{} {} {}", key, name, acl);
                }
            }
        }
    }
}

#[test]
fn a_domain_that_only_hashes_is_unwrapped_by_who_seals_and_by_nobody_else() {
    let reader = "arn:aws:sts::111111111111:assumed-role/x/s";
    let secret = vec![("sealflow:domain", "customers")];
    let asked = |column: &str, readers| {
        let policy = unsigned(&format!(
            "dataset: payments\nversion: 1\nkeys: {{ one: {{ arn: \"{}\" }} }}\nacls: {{ p: {{}} }}\ncolumns:\n  - {{ path: c, key: one, \
             acl: p, hints: [{{ derive: hmac, domain: customers, acl: p }}] }}\n{column}",
            arn("a")
        ));
        let domains = BTreeMap::from([(
            "customers".to_owned(),
            domain(&["b"], "{ allow: [\"arn:aws:iam::111111111111:role/x\"] }"),
        )]);
        let policies = key_policies(&rendered(&policy, domains, &parties(readers, false)));
        let sealer = SEALER.replace(":iam:", ":sts:").replace("role/", "assumed-role/") + "/s";
        let service = SERVICE.replace(":iam:", ":sts:").replace("role/", "assumed-role/") + "/s";
        [sealer.as_str(), reader, service.as_str()]
            .map(|who| allows(&policies, "b", who, "kms:Decrypt", &secret, NOW.0))
    };
    assert_eq!(asked("", Readers::Kms), [true, false, false]);
    assert_eq!(asked("", Readers::Service), [true, false, false]);
    let column = "  - { path: customer, domain: customers }\n";
    assert_eq!(asked(column, Readers::Kms), [true, true, false]);
    assert_eq!(asked(column, Readers::Service), [true, false, true]);
}

#[test]
fn google_gives_nothing_to_whom_a_deny_may_name_and_tells_names_with_dots_apart() {
    let policy = unsigned(&FULL.replace(
        "\"oidc:https://login.example.com#sub=bob\"",
        "\"oidc:https://accounts.google.com#group=g\"",
    ));
    let members = Members {
        key_ring: "projects/p/locations/europe-west3/keyRings/r".to_owned(),
        ..Members::default()
    };
    let domains = ["a.b", "a_b"].map(|name| (name.to_owned(), domain(&["b"], "{}")));
    let out = gcp::render(
        &Subject {
            policies: std::slice::from_ref(&policy),
            domains: domains.into(),
            now: NOW,
        },
        &members,
    );
    let text = hcl::file(&[], &out.blocks);
    // The other reader is that of an ACL without a deny.
    assert!(
        !text.contains("104857600000000000001") && text.contains("104857600000000000002"),
        "{text}"
    );
    assert!(
        out.unsaid.iter().any(|line| line.contains("which may name it too")),
        "{:?}",
        out.unsaid
    );
    let names: BTreeSet<&String> = out
        .blocks
        .iter()
        .filter(|block| block.labels[0] == "google_kms_crypto_key")
        .map(|block| &block.labels[1])
        .filter(|name| name.starts_with("sealflow-domain-a_b"))
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

const FULL: &str = r#"
dataset: payments
version: 3
keys:
  one: { arn: "arn:aws:kms:eu-central-1:111111111111:key/a" }
  "tenant-{t}": { arn: "arn:aws:kms:eu-west-1:111111111111:key/mrk-b" }
acls:
  pii:
    allow:
      - "arn:aws:iam::111111111111:role/support-*"
      - { principal: "arn:aws:iam::111111111111:user/temp", until: "2027-01-01T00:00:00Z" }
      - { principal: "arn:aws:iam::111111111111:user/left", until: "2025-01-01T00:00:00Z" }
      - { principal: "arn:aws:iam::111111111111:role/auditor", purposes: [audit] }
      - { principal: "oidc:https://accounts.google.com#sub=104857600000000000001", until: "2027-01-01T00:00:00Z" }
      - "oidc:https://login.example.com#group=${x} %{ if true }"
    deny: ["arn:aws:iam::111111111111:role/support-trainee", "oidc:https://login.example.com#sub=bob"]
  ops:
    allow:
      - "oidc:https://accounts.google.com#sub=104857600000000000002"
      - "oidc:https://accounts.google.com#sub=104857600000000000002"
columns:
  - { path: email, key: one, acl: pii }
  - { path: name, key: "tenant-{t}", acl: pii }
dead_letters: { key: one, acl: ops }
previous:
  acls: { personal: pii }
  keys: [{ name: one, arn: "arn:aws:kms:eu-central-1:222222222222:key/old" }]
"#;

fn full_aws() -> (Rendered, Vec<Block>) {
    let all = |arn: &str| BTreeSet::from([arn.to_owned()]);
    let parties = Parties {
        admins: all("arn:aws:iam::111111111111:role/keys"),
        maintainers: all("arn:aws:iam::111111111111:role/maintainer"),
        ..parties(Readers::Kms, true)
    };
    let out = rendered(&unsigned(FULL), BTreeMap::new(), &parties);
    let blocks = terraform::blocks(&out, true);
    (out, blocks)
}

fn full_gcp() -> gcp::Rendered {
    let one = |member: &str| BTreeSet::from([member.to_owned()]);
    let members = Members {
        key_ring: "projects/p/locations/europe-west3/keyRings/r".to_owned(),
        sealers: one("serviceAccount:pipeline@p.iam.gserviceaccount.com"),
        services: one("serviceAccount:reader@p.iam.gserviceaccount.com"),
        admins: one("group:keys@example.com"),
        readers: Readers::Kms,
    };
    let policy = unsigned(FULL);
    let subject = Subject {
        policies: std::slice::from_ref(&policy),
        domains: BTreeMap::from([("customers".to_owned(), domain(&["b"], "{}"))]),
        now: NOW,
    };
    gcp::render(&subject, &members)
}

#[test]
fn what_iam_cannot_say_is_said_and_not_given_instead() {
    let (aws, gcp) = (full_aws().0.unsaid, full_gcp().unsaid);
    let count = |unsaid: &BTreeSet<String>, word: &str| unsaid.iter().filter(|line| line.contains(word)).count();
    assert_eq!(
        (
            count(&aws, "no purposes"),
            count(&aws, "no principal of IAM"),
            count(&aws, "deny[1]")
        ),
        (1, 4, 1),
        "{aws:?}"
    );
    assert_eq!((count(&gcp, "role/auditor"), count(&gcp, "group=")), (1, 1), "{gcp:?}");
    let text = format!("{:?}", full_aws().0.keys);
    assert!(!text.contains("auditor") && !text.contains("user/left") && text.contains("user/temp"));
}

#[test]
fn a_key_policy_that_kms_would_not_take_is_refused() {
    let many: Vec<String> = (0..600)
        .map(|n| format!("\"arn:aws:iam::111111111111:role/a-role-with-a-name-{n}\""))
        .collect();
    let yaml = FULL.replace("allow:\n", &format!("allow:\n      - {}\n", many.join("\n      - ")));
    let out = rendered(&unsigned(&yaml), BTreeMap::new(), &parties(Readers::Kms, false));
    let failure = terraform::check_sizes(&out).unwrap_err();
    assert!(failure.message.contains("AWS takes 32768"), "{failure}");
    terraform::check_sizes(&full_aws().0).unwrap();
}

/// One resource's schema.
type Schema = serde_json::Map<String, serde_json::Value>;

/// Attributes and blocks that the provider does not know, those that it needs, and values of another type.
fn problems(body: &[Item], schema: &Schema, place: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut there = BTreeSet::new();
    for item in body {
        match item {
            Item::Attribute("provider", _) => {}
            Item::Attribute(name, value) => {
                there.insert((*name).to_owned());
                let of = |value: &Value| match value {
                    Value::Text(_) | Value::Json(_) => "string",
                    Value::Bool(_) => "bool",
                    Value::Number(_) => "number",
                    _ => "any",
                };
                match schema.get(*name).and_then(|attribute| attribute["type"].as_str()) {
                    None => problems.push(format!("{place} has no {name}")),
                    Some(wanted) if of(value) != "any" && of(value) != wanted => {
                        problems.push(format!("{place}.{name} is a {wanted}"));
                    }
                    Some(_) => {}
                }
            }
            Item::Block(block) if block.kind == "lifecycle" => {}
            Item::Block(block) => {
                there.insert(block.kind.to_owned());
                match schema
                    .get(block.kind)
                    .and_then(|attribute| attribute["block"].as_object())
                {
                    None => problems.push(format!("{place} has no block {}", block.kind)),
                    Some(inner) => {
                        problems.extend(self::problems(&block.body, inner, &format!("{place}.{}", block.kind)));
                    }
                }
            }
        }
    }
    let needed = schema.iter().filter(|(_, attribute)| attribute["required"] == true);
    problems.extend(
        needed
            .filter(|(name, _)| !there.contains(*name))
            .map(|(name, _)| format!("{place} needs {name}")),
    );
    problems
}

fn against_schema(blocks: &[Block], provider: &str) -> Vec<String> {
    let schemas: serde_json::Value =
        serde_json::from_str(include_str!("../../../../tests/data/terraform-schemas.json")).unwrap();
    let resources = schemas[provider]["resources"].as_object().unwrap();
    let mut found = Vec::new();
    for block in blocks.iter().filter(|block| block.kind != "import") {
        let prefix = if block.kind == "data" { "data." } else { "" };
        let place = format!("{prefix}{}", block.labels[0]);
        match resources.get(&place).and_then(serde_json::Value::as_object) {
            None => found.push(format!("no resource {place}")),
            Some(schema) => found.extend(problems(&block.body, schema, &place)),
        }
    }
    found
}

#[test]
fn resources_and_attributes_are_those_of_the_providers_schemas() {
    let blocks = full_aws().1;
    assert_eq!(against_schema(&blocks, "aws"), [""; 0]);
    assert_eq!(against_schema(&full_gcp().blocks, "google"), [""; 0]);
    // The check itself sees what is wrong.
    let mut wrong = blocks;
    for block in wrong.iter_mut().filter(|block| block.kind == "resource") {
        block.body.retain(|item| !matches!(item, Item::Attribute("policy", _)));
        block.body.push(Item::Attribute("rotate", Value::Bool(true)));
        block.body.push(Item::Attribute("description", Value::Bool(true)));
    }
    let found = against_schema(&wrong, "aws").join("\n");
    for problem in [
        "aws_kms_key_policy needs policy",
        "aws_kms_key has no rotate",
        "aws_iam_policy.description is a string",
    ] {
        assert!(found.contains(problem), "{problem}: {found}");
    }
}

#[test]
fn addresses_in_a_file_are_unique() {
    for blocks in [full_aws().1, full_gcp().blocks] {
        let addresses: Vec<_> = blocks
            .iter()
            .filter(|block| block.kind != "import")
            .map(|block| (block.kind, &block.labels))
            .collect();
        let unique: BTreeSet<_> = addresses.iter().collect();
        assert_eq!(unique.len(), addresses.len(), "{addresses:?}");
    }
}

/// Terraform, or a line in the ledger.
fn terraform_or_skip(test: &str) -> Option<&'static str> {
    let found = ["terraform", "tofu"]
        .into_iter()
        .find(|name| Command::new(name).arg("version").output().is_ok());
    if found.is_none() {
        sealflow_testbed::skip(&format!("{test}: neither terraform nor tofu is on the path"));
    }
    found
}

#[test]
fn terraform_fmt_finds_nothing_to_change() {
    let Some(terraform) = terraform_or_skip("the layout of rendered Terraform") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let head = ["a".to_owned(), String::new(), "b".to_owned()];
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    write("aws.tf", hcl::file(&head, &full_aws().1));
    write("gcp.tf", hcl::file(&head, &full_gcp().blocks));
    let check = || {
        let ran = Command::new(terraform)
            .args(["fmt", "-check", "-diff"])
            .arg(folder.path())
            .output()
            .unwrap();
        (ran.status.code(), String::from_utf8(ran.stdout).unwrap())
    };
    let (code, diff) = check();
    assert_eq!((code, diff.as_str()), (Some(0), ""));
    write("wrong.tf", "locals {\n a = 1\n}\n".to_owned());
    assert_eq!(check().0, Some(3));
}

#[test]
fn terraform_reads_the_documents_as_they_were_meant() {
    let Some(terraform) = terraform_or_skip("rendered documents as Terraform reads them") else {
        return;
    };
    let (rendered, mut blocks) = full_aws();
    blocks.retain(|block| block.labels.first().is_some_and(|of| of == "aws_kms_key_policy"));
    // Terraform alone, without the provider: the expressions as outputs.
    let outputs = blocks.iter().map(|block| {
        let policy = block
            .body
            .iter()
            .find(|item| matches!(item, Item::Attribute("policy", _)))
            .unwrap();
        let Item::Attribute(_, value) = policy else {
            unreachable!()
        };
        let mut output = Block::new("output", vec![Item::Attribute("value", value.clone())]);
        output.labels = vec![block.labels[1].clone()];
        output
    });
    let mut outputs: Vec<Block> = outputs.collect();
    let escapes = "${x} $${y} %{ if true } \" \\ \n $$${z}";
    let mut odd = Block::new(
        "output",
        vec![Item::Attribute("value", Value::Text(escapes.to_owned()))],
    );
    odd.labels = vec!["odd".to_owned()];
    outputs.push(odd);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("main.tf"), hcl::file(&[], &outputs)).unwrap();
    let run = |args: &[&str]| {
        let ran = Command::new(terraform)
            .args(args)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(
            ran.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&ran.stderr)
        );
        ran.stdout
    };
    run(&["init", "-input=false"]);
    run(&["apply", "-auto-approve", "-input=false"]);
    let read: serde_json::Value = serde_json::from_slice(&run(&["output", "-json"])).unwrap();
    assert_eq!(read["odd"]["value"], escapes);
    let documents: Vec<serde_json::Value> = rendered
        .keys
        .values()
        .map(super::statement::Document::to_json)
        .collect();
    assert_eq!((blocks.len(), documents.len()), (3, 3));
    for (block, document) in blocks.iter().zip(documents) {
        let text = read[&block.labels[1]]["value"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(text).unwrap(), document);
        assert!(
            text.len() <= document.to_string().len() + 512,
            "jsonencode is as short as what was measured"
        );
    }
}
