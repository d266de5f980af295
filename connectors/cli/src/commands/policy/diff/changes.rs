//! What two policies say differently, rule by rule.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};

use sealflow::acl::{Acl, Grant};
use sealflow::policy::{ColumnRule, DeadLetterRule, Footer, Lease, Policy, PolicyKey, Profile, TableRule};
use serde::Serialize;

/// Something that was added, taken away, or is different.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Change {
    /// `column`, `key`, `acl`, …
    pub(super) what: &'static str,
    /// Its name, if there are several.
    pub(super) name: String,
    pub(super) how: How,
    /// What it says now, or what is different.
    pub(super) details: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum How {
    Added,
    Removed,
    Changed,
}

/// All changes from `old` to `new` but that of the version.
pub(super) fn changes(old: &Policy, new: &Policy) -> Vec<Change> {
    let mut found = Vec::new();
    if old.dataset != new.dataset {
        found.push(changed("dataset", "", vec![arrow("name", &old.dataset, &new.dataset)]));
    }
    let columns = |policy: &Policy| -> BTreeMap<String, Vec<(&'static str, String)>> {
        policy
            .columns
            .iter()
            .map(|rule| (rule.path.to_string(), column(rule)))
            .collect()
    };
    compare("column", &columns(old), &columns(new), &mut found);
    let keys = |policy: &Policy| {
        policy
            .keys
            .iter()
            .map(|(name, rule)| (name.clone(), key(rule)))
            .collect()
    };
    compare("key", &keys(old), &keys(new), &mut found);
    let acls = |policy: &Policy| policy.acls.keys().cloned().collect::<BTreeSet<_>>();
    for name in acls(old).union(&acls(new)) {
        found.extend(acl(name, old.acls.get(name), new.acls.get(name)));
    }
    compare(
        "rest",
        &BTreeMap::from([(String::new(), rest(old))]),
        &BTreeMap::from([(String::new(), rest(new))]),
        &mut found,
    );
    found
}

type Properties = Vec<(&'static str, String)>;

fn compare(
    what: &'static str,
    old: &BTreeMap<String, Properties>,
    new: &BTreeMap<String, Properties>,
    found: &mut Vec<Change>,
) {
    for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let spelled = |properties: &Properties| {
            let said = properties.iter().filter(|(_, value)| !value.is_empty());
            said.map(|(property, value)| format!("{property} {value}"))
                .collect::<Vec<_>>()
        };
        let change = match (old.get(name), new.get(name)) {
            (None, Some(new)) => (How::Added, spelled(new)),
            (Some(old), None) => (How::Removed, spelled(old)),
            (Some(old), Some(new)) => {
                let pairs = old.iter().zip(new).filter(|(old, new)| old != new);
                (
                    How::Changed,
                    pairs.map(|(old, new)| arrow(old.0, &old.1, &new.1)).collect(),
                )
            }
            (None, None) => continue,
        };
        let (how, details) = change;
        if how != How::Changed || !details.is_empty() {
            found.push(Change {
                what,
                name: name.clone(),
                how,
                details,
            });
        }
    }
}

fn arrow(what: &str, old: &impl Display, new: &impl Display) -> String {
    let said = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    format!("{what}: {} -> {}", said(old.to_string()), said(new.to_string()))
}

fn changed(what: &'static str, name: &str, details: Vec<String>) -> Change {
    Change {
        what,
        name: name.to_owned(),
        how: How::Changed,
        details,
    }
}

fn word(value: &impl Debug) -> String {
    format!("{value:?}").to_lowercase()
}

fn if_set<T: Display>(value: Option<&T>) -> String {
    value.map_or_else(String::new, ToString::to_string)
}

/// Nothing for what goes without saying.
fn other_than(value: String, default: &str) -> String {
    if value == default { String::new() } else { value }
}

fn yes(value: bool) -> String {
    if value { "yes".to_owned() } else { String::new() }
}

fn column(rule: &ColumnRule) -> Properties {
    vec![
        ("flow", word(&rule.flow)),
        ("key", rule.key.clone()),
        ("acl", rule.acl.clone()),
        ("domain", rule.sealing_domain().unwrap_or_default().to_owned()),
        ("label", other_than(rule.label.clone(), &rule.path.to_string())),
        ("pad_to", if_set(rule.pad_to.as_ref())),
        ("bind_row", if_set(rule.bind_row.as_ref())),
        ("seal_nulls", yes(rule.seal_nulls)),
        ("on_missing", other_than(word(&rule.on_missing), "pass")),
        ("at", other_than(word(&rule.at), "value")),
    ]
}

fn key(rule: &PolicyKey) -> Properties {
    vec![
        ("arn", rule.arn.clone()),
        ("max_age", format!("{}s", rule.max_age.as_secs())),
        ("max_live", rule.max_live.to_string()),
    ]
}

/// Entries that come and go. Their order decides nothing.
fn acl(name: &str, old: Option<&Acl>, new: Option<&Acl>) -> Option<Change> {
    let entries = |acl: Option<&Acl>| -> BTreeSet<String> {
        let Some(acl) = acl else { return BTreeSet::new() };
        let allow = acl.allow.iter().map(|grant: &Grant| format!("allow {grant}"));
        allow
            .chain(acl.deny.iter().map(|principal| format!("deny {principal}")))
            .collect()
    };
    let (before, after) = (entries(old), entries(new));
    let mut details: Vec<String> = before
        .difference(&after)
        .map(|entry| format!("no more: {entry}"))
        .collect();
    details.extend(after.difference(&before).map(|entry| format!("now: {entry}")));
    let refused = |acl: Option<&Acl>| acl.map(|acl| word(&acl.refused)).unwrap_or_default();
    let how = match (old, new) {
        (None, _) => How::Added,
        (_, None) => How::Removed,
        _ => How::Changed,
    };
    if how == How::Changed && refused(old) != refused(new) {
        details.push(arrow("refused", &refused(old), &refused(new)));
    }
    (how != How::Changed || !details.is_empty()).then(|| Change {
        what: "acl",
        name: name.to_owned(),
        how,
        details,
    })
}

fn table(rule: &TableRule) -> String {
    let extra = rule.extra.as_ref();
    format!(
        "key {}, acl {}{}{}{}",
        rule.key,
        rule.acl,
        extra.map_or_else(String::new, |(key, acl)| format!(", extra key {key}, extra acl {acl}")),
        if rule.footer == Footer::SignedPlaintext {
            ", footer signed-plaintext"
        } else {
            ""
        },
        if rule.profile == Profile::DuckDb {
            ", profile duckdb"
        } else {
            ""
        },
    )
}

fn rest(policy: &Policy) -> Properties {
    let pairs = |map: &BTreeMap<String, String>| {
        map.iter()
            .map(|(old, new)| format!("{old} is {new}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let letters = policy.dead_letters.as_ref();
    let keys: BTreeSet<String> = policy
        .previous
        .keys
        .iter()
        .map(|key| format!("{} {}", key.name, key.arn))
        .collect();
    let lease_keys: BTreeSet<String> = policy.lease_keys.iter().map(ToString::to_string).collect();
    let list = |texts: BTreeSet<String>| texts.into_iter().collect::<Vec<_>>().join(", ");
    vec![
        (
            "dead_letters",
            match letters {
                Some(DeadLetterRule::Key { key, acl }) => format!("key {key}, acl {acl}"),
                Some(DeadLetterRule::Recipient(recipient)) => format!("recipient {}", recipient.thumbprint()),
                None => String::new(),
            },
        ),
        ("table", policy.table.as_ref().map_or_else(String::new, table)),
        ("previous.keys", list(keys)),
        ("previous.acls", pairs(&policy.previous.acls)),
        ("previous.labels", pairs(&policy.previous.labels)),
        (
            "lease",
            if policy.lease == Lease::Required {
                "required".to_owned()
            } else {
                String::new()
            },
        ),
        ("lease_keys", list(lease_keys)),
    ]
}
