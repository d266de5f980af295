//! The keys of one file: a fresh one for each of its columns and the footer, wrapped under the key-encryption keys of
//! the policy.

use std::sync::Arc;

use super::TableError;
use super::layout::{Leaf, LeafPlace};
use super::material::{Material, Wrapped};
use super::place::Claims;
use crate::keys::{ActiveKey, KeySpec, LabelEntry, SealingKeys};
use crate::policy::{FOOTER_LABEL, KeyGroup, Policy, Profile};
use crate::seal::{DATA_KEY_LEN, WrappingKey};
use crate::secret::SecretBytes;

/// Key-encryption keys to write tables with. What seals values never wraps, nor the other way.
pub type TableKeys = SealingKeys<WrappingKey>;

/// Most key-encryption keys of one policy key at once: ACLs and policy versions multiply it.
const MAX_LIVE: u64 = 64;
/// What is tried if a key's limits are reached just now.
const MAX_TRIES: usize = 4;

/// A key of a file's module, with the key material that stands beside it.
pub(super) struct ModuleKey {
    pub(super) key: SecretBytes,
    pub(super) material: Vec<u8>,
}

/// The keys of one file.
pub(super) struct FileKeys {
    pub(super) footer: ModuleKey,
    /// By leaf path; empty if all are under the footer's.
    pub(super) columns: Vec<(String, ModuleKey)>,
}

impl FileKeys {
    /// Fresh keys for a file of these leaves, which claims `claims`.
    pub(super) async fn fresh(
        policy: &Policy,
        leaves: &[Leaf],
        claims: &Claims,
        keys: &TableKeys,
    ) -> Result<Self, TableError> {
        let no_rule = || TableError::NoTableRule {
            dataset: policy.dataset.clone(),
        };
        let rule = policy.table.as_ref().ok_or_else(no_rule)?;
        let specs: Vec<KeySpec> = policy
            .table_groups()
            .iter()
            .filter_map(|group| spec(policy, group))
            .collect();
        let of = |key: &str, acl: &str| {
            let found = specs.iter().find(|spec| spec.key_name == key && spec.acl == acl);
            found.ok_or_else(no_rule)
        };
        let footer = of(&rule.key, &rule.acl)?;
        let module = Module {
            policy,
            keys,
            spec: footer,
            label: FOOTER_LABEL,
        };
        let footer = module.fresh(true, Some(claims.clone())).await?;
        let mut columns = Vec::new();
        if rule.profile == Profile::Standard {
            for leaf in leaves {
                let module = match leaf.place {
                    LeafPlace::Column { rule } => {
                        let rule = policy.columns.get(rule).ok_or_else(no_rule)?;
                        Module {
                            spec: of(&rule.key, &rule.acl)?,
                            label: &rule.label,
                            ..module
                        }
                    }
                    _ => module,
                };
                columns.push((leaf.path.clone(), module.fresh(false, None).await?));
            }
        }
        Ok(Self { footer, columns })
    }
}

#[derive(Clone, Copy)]
struct Module<'a> {
    policy: &'a Policy,
    keys: &'a TableKeys,
    spec: &'a KeySpec,
    label: &'a str,
}

impl Module<'_> {
    async fn fresh(&self, is_footer: bool, claims: Option<Claims>) -> Result<ModuleKey, TableError> {
        let mut bytes = zeroize::Zeroizing::new(vec![0; DATA_KEY_LEN]);
        getrandom::fill(&mut bytes).map_err(|_| TableError::NoRandomness)?;
        let key = SecretBytes::new(std::mem::take(&mut *bytes));
        let mut last = None;
        for _ in 0..MAX_TRIES {
            let kek: Arc<ActiveKey<WrappingKey>> = self.keys.get(self.spec).await?;
            match kek.key.wrap(&self.policy.dataset, self.label, &key) {
                Ok(wrapped) => {
                    let material = Material {
                        is_footer,
                        master_key: self.spec.arn.clone(),
                        wrapped: Wrapped::Double {
                            key: wrapped,
                            kek: kek.envelope.to_text().map_err(crate::keys::KeyError::from)?,
                        },
                        label: Some(self.label.to_owned()),
                        claims,
                    };
                    let material = material.to_bytes();
                    return Ok(ModuleKey { key, material });
                }
                // The next one is fetched when this one is asked for again.
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or(TableError::NoRandomness, TableError::from))
    }
}

/// `None` cannot happen for a checked policy: every rule's key exists.
pub(super) fn spec(policy: &Policy, group: &KeyGroup) -> Option<KeySpec> {
    let key = policy.keys.get(&group.key)?;
    let label = |label: &crate::policy::GroupLabel| LabelEntry {
        label: label.label.clone(),
        bind_row: None,
    };
    Some(KeySpec {
        dataset: group.dataset.clone(),
        key_name: group.key.clone(),
        template: group.key.clone(),
        arn: key.arn.clone(),
        acl: group.acl.clone(),
        labels: group.labels.iter().map(label).collect(),
        policy: (policy.version, policy.sha256),
        max_age: key.max_age,
        max_live: MAX_LIVE,
    })
}
