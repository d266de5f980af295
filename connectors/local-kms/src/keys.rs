//! The keys of the local KMS: material, state, policy and aliases, in memory and (if there is a folder) on disk.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::clock::UnixMillis;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::policy::KeyPolicy;
use crate::vault::{Vault, VaultError};

const ALIASES: &str = "aliases";

/// The most keys that one server holds: a bound on its memory.
pub(crate) const MAX_KEYS: usize = 10_000;

/// The most aliases that one server holds.
pub(crate) const MAX_ALIASES: usize = 10_000;

/// The state of a key, in AWS's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyState {
    /// Can be used.
    Enabled,
    /// Cannot be used until it is enabled.
    Disabled,
    /// Cannot be used and will be gone at its deletion date.
    PendingDeletion,
}

impl KeyState {
    /// The state as AWS spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "Enabled",
            Self::Disabled => "Disabled",
            Self::PendingDeletion => "PendingDeletion",
        }
    }
}

/// One KMS key.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) material: Zeroizing<[u8; 32]>,
    pub(crate) description: String,
    pub(crate) policy: KeyPolicy,
    pub(crate) state: KeyState,
    pub(crate) created: UnixMillis,
    pub(crate) deletion: Option<UnixMillis>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// A key as its file holds it, sealed by the vault.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyRecord {
    material: String,
    description: String,
    policy: String,
    state: KeyState,
    created: u64,
    deletion: Option<u64>,
}

impl Drop for KeyRecord {
    fn drop(&mut self) {
        self.material.zeroize();
    }
}

/// All keys and aliases. Changes reach the disk before they are seen in memory.
#[derive(Debug)]
pub(crate) struct KeyStore {
    keys: BTreeMap<String, Key>,
    aliases: BTreeMap<String, String>,
    vault: Option<Vault>,
}

impl KeyStore {
    /// An empty store in memory, or what `vault` holds.
    pub(crate) fn load(vault: Option<Vault>) -> Result<Self, VaultError> {
        let mut store = Self {
            keys: BTreeMap::new(),
            aliases: BTreeMap::new(),
            vault: None,
        };
        if let Some(vault) = &vault {
            for name in vault.key_names()? {
                let id = name.trim_end_matches(".key").to_owned();
                let key = read_key(vault, &name, id)?;
                store.keys.insert(key.id.clone(), key);
            }
            if vault.has(ALIASES) {
                let damaged = |_| VaultError::Damaged { path: ALIASES.into() };
                store.aliases = serde_json::from_slice(&vault.read(ALIASES)?).map_err(damaged)?;
            }
        }
        store.vault = vault;
        Ok(store)
    }

    /// The key `id`, unless its deletion date is past `now`.
    pub(crate) fn get(&self, id: &str, now: UnixMillis) -> Option<&Key> {
        self.keys.get(id).filter(|key| !key.is_gone(now))
    }

    /// The key id behind the alias `name` (`alias/…`).
    pub(crate) fn alias(&self, name: &str) -> Option<&str> {
        self.aliases.get(name).map(String::as_str)
    }

    pub(crate) fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.aliases.iter().map(|(name, id)| (name.as_str(), id.as_str()))
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.keys.len() >= MAX_KEYS
    }

    pub(crate) fn aliases_are_full(&self) -> bool {
        self.aliases.len() >= MAX_ALIASES
    }

    /// Adds or replaces a key.
    pub(crate) fn put(&mut self, key: Key) -> Result<(), VaultError> {
        if let Some(vault) = &self.vault {
            write_key(vault, &key)?;
        }
        self.keys.insert(key.id.clone(), key);
        Ok(())
    }

    pub(crate) fn put_alias(&mut self, name: &str, id: &str) -> Result<(), VaultError> {
        let mut aliases = self.aliases.clone();
        aliases.insert(name.to_owned(), id.to_owned());
        self.replace_aliases(aliases)
    }

    /// Destroys the keys whose deletion date is past `now`, material and aliases included.
    pub(crate) fn destroy_due(&mut self, now: UnixMillis) -> Result<(), VaultError> {
        let due: Vec<String> = self
            .keys
            .values()
            .filter(|k| k.is_gone(now))
            .map(|k| k.id.clone())
            .collect();
        for id in due {
            if let Some(vault) = &self.vault {
                vault.remove(&file_name(&id))?;
            }
            self.keys.remove(&id);
            let mut aliases = self.aliases.clone();
            aliases.retain(|_, target| *target != id);
            if aliases != self.aliases {
                self.replace_aliases(aliases)?;
            }
            tracing::warn!(key_id = id, "destroyed a key whose waiting period ended");
        }
        Ok(())
    }

    fn replace_aliases(&mut self, aliases: BTreeMap<String, String>) -> Result<(), VaultError> {
        if let Some(vault) = &self.vault {
            let text = serde_json::to_vec(&aliases).map_err(|_| VaultError::Damaged { path: ALIASES.into() })?;
            vault.write(ALIASES, &text)?;
        }
        self.aliases = aliases;
        Ok(())
    }
}

impl Key {
    pub(crate) fn is_gone(&self, now: UnixMillis) -> bool {
        self.deletion.is_some_and(|deletion| deletion <= now)
    }

    /// This key with its deletion `days` from `now`.
    pub(crate) fn scheduled(&self, now: UnixMillis, days: u64) -> Self {
        let deletion = now.plus(Duration::from_secs(days * 86_400));
        Self {
            state: KeyState::PendingDeletion,
            deletion: Some(deletion),
            ..self.clone()
        }
    }

    /// This key in another state, and not waiting for its deletion.
    pub(crate) fn in_state(&self, state: KeyState) -> Self {
        Self {
            state,
            deletion: None,
            ..self.clone()
        }
    }
}

fn file_name(id: &str) -> String {
    format!("{id}.key")
}

fn read_key(vault: &Vault, name: &str, id: String) -> Result<Key, VaultError> {
    let damaged = || VaultError::Damaged { path: name.into() };
    let record: KeyRecord = serde_json::from_slice(&vault.read(name)?).map_err(|_| damaged())?;
    let bytes = Zeroizing::new(STANDARD.decode(&record.material).map_err(|_| damaged())?);
    let material = Zeroizing::new(bytes.as_slice().try_into().map_err(|_| damaged())?);
    let policy = KeyPolicy::parse(&record.policy).map_err(|_| damaged())?;
    Ok(Key {
        id,
        material,
        description: record.description.clone(),
        policy,
        state: record.state,
        created: UnixMillis(record.created),
        deletion: record.deletion.map(UnixMillis),
    })
}

fn write_key(vault: &Vault, key: &Key) -> Result<(), VaultError> {
    let name = file_name(&key.id);
    let record = KeyRecord {
        material: STANDARD.encode(key.material.as_slice()),
        description: key.description.clone(),
        policy: key.policy.text().to_owned(),
        state: key.state,
        created: key.created.0,
        deletion: key.deletion.map(|d| d.0),
    };
    let text = serde_json::to_vec(&record).map_err(|_| VaultError::Damaged {
        path: name.clone().into(),
    })?;
    vault.write(&name, &Zeroizing::new(text))
}
