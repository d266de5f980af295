//! The keys of the local KMS: their secrets, states, policies and aliases, in memory and (if there is a folder) on disk.

mod material;
mod record;
mod rsa_key;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sealflow::clock::UnixMillis;
use sealflow::keys::RsaBits;
use serde::{Deserialize, Serialize};

use crate::policy::KeyPolicy;
use crate::vault::{Vault, VaultError};

pub(crate) use material::{Material, NoRandomness, RotatedBy, Schedule, Symmetric};
pub(crate) use rsa_key::RsaKey;

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

/// What a key is: the specs of AWS KMS that the local KMS makes. Each has one usage here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySpec {
    /// `SYMMETRIC_DEFAULT`, `ENCRYPT_DECRYPT`: wraps data keys.
    Symmetric,
    /// `RSA_2048`, `RSA_3072`, `RSA_4096`, `ENCRYPT_DECRYPT`: what clients seal to.
    Rsa(RsaBits),
    /// `HMAC_256`, `GENERATE_VERIFY_MAC`.
    Hmac256,
}

/// A name that is none of [`KeySpec::ALL`].
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a key spec of the local KMS")]
pub struct UnknownKeySpec;

impl KeySpec {
    /// All that there are.
    pub const ALL: [Self; 5] = [
        Self::Symmetric,
        Self::Rsa(RsaBits::Rsa2048),
        Self::Rsa(RsaBits::Rsa3072),
        Self::Rsa(RsaBits::Rsa4096),
        Self::Hmac256,
    ];

    /// The spec as AWS spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Symmetric => "SYMMETRIC_DEFAULT",
            Self::Rsa(RsaBits::Rsa2048) => "RSA_2048",
            Self::Rsa(RsaBits::Rsa3072) => "RSA_3072",
            Self::Rsa(RsaBits::Rsa4096) => "RSA_4096",
            Self::Hmac256 => "HMAC_256",
        }
    }

    /// What keys of this spec are for, as AWS spells it.
    #[must_use]
    pub fn usage(self) -> &'static str {
        match self {
            Self::Symmetric | Self::Rsa(_) => "ENCRYPT_DECRYPT",
            Self::Hmac256 => "GENERATE_VERIFY_MAC",
        }
    }
}

impl FromStr for KeySpec {
    type Err = UnknownKeySpec;

    fn from_str(text: &str) -> Result<Self, UnknownKeySpec> {
        Self::ALL
            .into_iter()
            .find(|spec| spec.as_str() == text)
            .ok_or(UnknownKeySpec)
    }
}

/// What a key computes with.
#[derive(Clone)]
pub(crate) enum Secret {
    Symmetric(Symmetric),
    Rsa(RsaKey),
    Hmac(Material),
}

impl Secret {
    /// A new one. RSA takes up to seconds: the store must not be locked meanwhile.
    pub(crate) fn fresh(spec: KeySpec) -> Result<Self, NoRandomness> {
        Ok(match spec {
            KeySpec::Symmetric => Self::Symmetric(Symmetric::fresh()?),
            KeySpec::Rsa(bits) => Self::Rsa(RsaKey::generate(bits).map_err(|_| NoRandomness)?),
            KeySpec::Hmac256 => Self::Hmac(Material::fresh()?),
        })
    }

    pub(crate) fn spec(&self) -> KeySpec {
        match self {
            Self::Symmetric(_) => KeySpec::Symmetric,
            Self::Rsa(key) => KeySpec::Rsa(key.bits()),
            Self::Hmac(_) => KeySpec::Hmac256,
        }
    }
}

/// One KMS key.
#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) secret: Secret,
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
            .field("spec", &self.secret.spec())
            .field("state", &self.state)
            .finish_non_exhaustive()
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
            for name in vault.names_ending(&record::ENDINGS)? {
                let key = record::read_key(vault, &name)?;
                if store.keys.insert(key.id.clone(), key).is_some() {
                    return Err(VaultError::Damaged { path: name.into() });
                }
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
            record::write_key(vault, &key)?;
        }
        self.keys.insert(key.id.clone(), key);
        Ok(())
    }

    pub(crate) fn put_alias(&mut self, name: &str, id: &str) -> Result<(), VaultError> {
        let mut aliases = self.aliases.clone();
        aliases.insert(name.to_owned(), id.to_owned());
        self.replace_aliases(aliases)
    }

    /// Destroys the keys whose deletion date is past `now`, secrets and aliases included.
    pub(crate) fn destroy_due(&mut self, now: UnixMillis) -> Result<(), VaultError> {
        let due: Vec<Key> = self.keys.values().filter(|k| k.is_gone(now)).cloned().collect();
        for key in due {
            if let Some(vault) = &self.vault {
                vault.remove(&record::file_name(&key))?;
            }
            self.keys.remove(&key.id);
            let mut aliases = self.aliases.clone();
            aliases.retain(|_, target| *target != key.id);
            if aliases != self.aliases {
                self.replace_aliases(aliases)?;
            }
            tracing::warn!(key_id = key.id, "destroyed a key whose waiting period ended");
        }
        Ok(())
    }

    /// Rotates the enabled keys whose date has come: once, however many dates went by, since nobody used the material
    /// of those between.
    pub(crate) fn rotate_due(&mut self, now: UnixMillis) -> Result<(), VaultError> {
        let due: Vec<Key> = self.keys.values().filter(|key| key.is_due(now)).cloned().collect();
        for key in due {
            let Secret::Symmetric(symmetric) = &key.secret else {
                continue;
            };
            let material = Material::fresh().map_err(|NoRandomness| VaultError::NoRandomness)?;
            let schedule = symmetric.schedule.map(|schedule| schedule.after(now));
            let rotated = symmetric
                .rotated(material, now, RotatedBy::Schedule)
                .scheduled(schedule);
            self.put(key.with(Secret::Symmetric(rotated)))?;
            tracing::info!(key_id = key.id, "rotated a key on schedule");
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
    /// This key with another secret.
    pub(crate) fn with(&self, secret: Secret) -> Self {
        Self { secret, ..self.clone() }
    }

    /// Whether its schedule asks for a rotation. Disabled keys wait until they are enabled.
    fn is_due(&self, now: UnixMillis) -> bool {
        let schedule = match &self.secret {
            Secret::Symmetric(symmetric) => symmetric.schedule,
            Secret::Rsa(_) | Secret::Hmac(_) => None,
        };
        self.state == KeyState::Enabled && schedule.is_some_and(|schedule| schedule.next <= now)
    }

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
