//! The documents for AWS as Terraform: `aws_kms_key_policy` for each key, `aws_iam_policy` for each role, and if asked for
//! the keys themselves.

use std::collections::BTreeSet;

use super::aws::Rendered;
use super::hcl::{Block, Item, Value, of_json};
use super::statement::{Document, MAX_KEY_POLICY, MAX_MANAGED_POLICY};
use crate::failure::{Failure, Result};

/// The longest name that IAM takes.
const MAX_POLICY_NAME: usize = 128;

/// Parts of a key's ARN.
struct Key<'a> {
    region: &'a str,
    account: &'a str,
    id: &'a str,
}

/// Refuses documents that AWS would refuse for their length.
pub(super) fn check_sizes(rendered: &Rendered) -> Result<()> {
    let too_large = |what: &str, document: &Document, most: usize| {
        let bytes = document.bytes();
        (bytes > most).then(|| {
            Failure::config(
                format_args!("{what} has {bytes} bytes, and AWS takes {most}"),
                "use another KMS key for some of the policy's keys, let a service open for others (--readers service), or name \
                 groups of roles by a pattern",
            )
        })
    };
    for (arn, document) in &rendered.keys {
        if let Some(failure) = too_large(&format!("the key policy of {arn}"), document, MAX_KEY_POLICY) {
            return Err(failure);
        }
    }
    for (name, document) in &rendered.identities {
        if let Some(failure) = too_large(&format!("the IAM policy {name}"), document, MAX_MANAGED_POLICY) {
            return Err(failure);
        }
    }
    Ok(())
}

/// The blocks, in the order of ARNs and names. `import` adds the keys themselves.
pub(super) fn blocks(rendered: &Rendered, import: bool) -> Vec<Block> {
    let accounts: BTreeSet<&str> = rendered.keys.keys().map(|arn| parts(arn).account).collect();
    let provider = |account: &str| -> Option<Item> {
        let alias = Value::Reference(format!("aws.account_{account}"));
        (accounts.len() > 1).then_some(Item::Attribute("provider", alias))
    };
    let mut blocks = Vec::new();
    for (arn, document) in &rendered.keys {
        let key = parts(arn);
        let name = resource_name(&key);
        let region = || Item::Attribute("region", Value::Text(key.region.to_owned()));
        let keep = || {
            Item::Block(Block::new(
                "lifecycle",
                vec![Item::Attribute("prevent_destroy", Value::Bool(true))],
            ))
        };
        let mut key_id = Value::Text(key.id.to_owned());
        if import {
            let to = format!("aws_kms_key.{name}");
            blocks.push(Block::new(
                "import",
                vec![
                    Item::Attribute("to", Value::Reference(to.clone())),
                    Item::Attribute("id", Value::Text(format!("{}@{}", key.id, key.region))),
                ],
            ));
            let mut body: Vec<Item> = provider(key.account).into_iter().collect();
            body.push(region());
            let usage = rendered.usages.get(arn);
            if let Some(usage) = usage {
                body.push(Item::Attribute("key_usage", Value::Text((*usage).to_owned())));
            }
            body.extend([
                Item::Attribute("deletion_window_in_days", Value::Number(30)),
                Item::Block(Block::new("lifecycle", as_it_is(usage.is_some()))),
            ]);
            let mut lines = vec![
                arn.as_str(),
                "Deleting it makes everything under it unreadable for ever.",
                "Its tags, description and rotation, and whether it is enabled, stay as they are.",
            ];
            if key.id.starts_with("mrk-") {
                lines.push("It must be the primary key: replicas of multi-Region keys cannot be imported like this.");
            }
            blocks.push(Block::resource("aws_kms_key", &name, body).commented(&lines));
            key_id = Value::Reference(format!("{to}.key_id"));
        }
        let mut body: Vec<Item> = provider(key.account).into_iter().collect();
        body.extend([
            region(),
            Item::Attribute("key_id", key_id),
            Item::Attribute("policy", json(document)),
            keep(),
        ]);
        let lines = [
            arn.as_str(),
            "Destroying this gives the key AWS's default policy: everything to its account.",
        ];
        blocks.push(Block::resource("aws_kms_key_policy", &name, body).commented(&lines));
    }
    for (name, document) in &rendered.identities {
        let body = vec![
            Item::Attribute("name", Value::Text(name.clone())),
            Item::Attribute("policy", json(document)),
        ];
        blocks.push(Block::resource("aws_iam_policy", &identifier(name), body));
    }
    blocks
}

/// The lifecycle of an imported key: it is neither destroyed nor changed in what it had before. Which spec a key has that
/// does not wrap keys (`RSA_2048` to `RSA_4096`, `HMAC_256`), KMS knows and the policy does not.
fn as_it_is(has_spec: bool) -> Vec<Item> {
    let mut ignored = vec!["tags", "tags_all", "is_enabled", "enable_key_rotation", "description"];
    if has_spec {
        ignored.push("customer_master_key_spec");
    }
    let names = ignored.iter().map(|name| Value::Reference((*name).to_owned()));
    vec![
        Item::Attribute("prevent_destroy", Value::Bool(true)),
        Item::Attribute("ignore_changes", Value::List(names.collect())),
    ]
}

fn json(document: &Document) -> Value {
    Value::Json(Box::new(of_json(&document.to_json())))
}

/// What says nothing about the rest of the file, so that an address stays when keys come and go. Keys of several regions
/// share their ids.
fn resource_name(key: &Key<'_>) -> String {
    if key.id.starts_with("mrk-") {
        identifier(&format!("key_{}_{}", key.region, key.id))
    } else {
        identifier(&format!("key_{}", key.id))
    }
}

/// A name as Terraform takes it. `-` and `_` are told apart, so that two names never become one.
pub(super) fn identifier(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '.' => out.push_str("_dot_"),
            c if c.is_ascii_alphanumeric() || c == '-' || c == '_' => out.push(c),
            _ => out.push_str("__"),
        }
    }
    out
}

/// Shortens what is too long for IAM, by a hash of the whole at its end.
pub(super) fn policy_name(name: &str) -> String {
    shortened(name, MAX_POLICY_NAME)
}

/// `name`, or its beginning and a hash of it.
pub(super) fn shortened(name: &str, most: usize) -> String {
    use sha2::{Digest as _, Sha256};
    if name.len() <= most {
        return name.to_owned();
    }
    let digest = Sha256::digest(name.as_bytes());
    let hash: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    // Names are ASCII: every policy checks them.
    let start: String = name.chars().take(most - hash.len() - 1).collect();
    format!("{start}-{hash}")
}

fn parts(arn: &str) -> Key<'_> {
    let mut parts = arn.splitn(6, ':').skip(3);
    let (region, account) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let resource = parts.next().unwrap_or_default();
    Key {
        region,
        account,
        id: resource.strip_prefix("key/").unwrap_or(resource),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_are_cut_and_still_differ() {
        let (one, other) = ("a".repeat(130), format!("{}b", "a".repeat(129)));
        assert_eq!(
            (policy_name("short"), policy_name(&one).len()),
            ("short".to_owned(), 128)
        );
        assert_ne!(policy_name(&one), policy_name(&other));
    }

    #[test]
    fn names_that_differ_stay_different() {
        assert_ne!(identifier("a.b"), identifier("a_b"));
        assert_ne!(identifier("a-b"), identifier("a_b"));
    }
}
