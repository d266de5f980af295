//! The keys of the local KMS: material, state, policy and aliases, in memory and (if there is a folder) on disk.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use sealflow::clock::UnixMillis;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
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
    /// The first backing key, number 0.
    pub(crate) material: Material,
    /// Those that rotations added, numbers 1 and up; the last is the current one, all of them decrypt.
    pub(crate) rotations: Vec<Rotation>,
    /// When the next one is due, if rotation is enabled.
    pub(crate) schedule: Option<Schedule>,
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

/// One backing key.
#[derive(Clone)]
pub(crate) struct Material(Zeroizing<[u8; 32]>);

/// The operating system gives no random numbers.
pub(crate) struct NoRandomness;

impl Material {
    pub(crate) fn fresh() -> Result<Self, NoRandomness> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(bytes.as_mut_slice()).map_err(|_| NoRandomness)?;
        Ok(Self(bytes))
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A public name of 64 hexadecimal digits, as AWS gives one.
    pub(crate) fn id(&self) -> String {
        let mut id = [0; 32];
        // Invariant: 32 bytes are within what HKDF can give.
        let _ = Hkdf::<Sha256>::new(None, self.0.as_slice()).expand(b"sealflow local-kms material id v1", &mut id);
        id.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn read(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
        Some(Self(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
    }
}

/// A change of the backing key.
#[derive(Clone)]
pub(crate) struct Rotation {
    pub(crate) material: Material,
    pub(crate) at: UnixMillis,
    pub(crate) by: RotatedBy,
}

/// Who asked for a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RotatedBy {
    Schedule,
    OnDemand,
}

impl RotatedBy {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "AUTOMATIC",
            Self::OnDemand => "ON_DEMAND",
        }
    }
}

/// Automatic rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Schedule {
    pub(crate) days: u64,
    #[serde(with = "millis")]
    pub(crate) next: UnixMillis,
}

impl Schedule {
    pub(crate) fn starting(now: UnixMillis, days: u64) -> Self {
        let next = now.plus(Duration::from_secs(days * 86_400));
        Self { days, next }
    }

    /// The first date of this schedule that is after `now`.
    fn after(self, now: UnixMillis) -> Self {
        let period = Duration::from_secs(self.days.max(1) * 86_400);
        let missed = now.since(self.next).as_millis() / period.as_millis() + 1;
        let missed = u32::try_from(missed).unwrap_or(u32::MAX);
        Self {
            next: self.next.plus(period.saturating_mul(missed)),
            ..self
        }
    }
}

mod millis {
    use sealflow::clock::UnixMillis;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &UnixMillis, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(time.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<UnixMillis, D::Error> {
        u64::deserialize(deserializer).map(UnixMillis)
    }
}

/// A key as its file holds it, sealed by the vault.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyRecord {
    material: String,
    // Files from before rotations have neither.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rotations: Vec<RotationRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schedule: Option<Schedule>,
    description: String,
    policy: String,
    state: KeyState,
    created: u64,
    deletion: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RotationRecord {
    material: String,
    at: u64,
    by: RotatedBy,
}

impl Drop for RotationRecord {
    fn drop(&mut self) {
        self.material.zeroize();
    }
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

    /// Rotates the enabled keys whose date has come: once, however many dates went by, since nobody used the material
    /// of those between.
    pub(crate) fn rotate_due(&mut self, now: UnixMillis) -> Result<(), VaultError> {
        let due: Vec<Key> = self.keys.values().filter(|key| key.is_due(now)).cloned().collect();
        for key in due {
            let material = Material::fresh().map_err(|NoRandomness| VaultError::NoRandomness)?;
            let schedule = key.schedule.map(|schedule| schedule.after(now));
            let rotated = key.rotated(material, now, RotatedBy::Schedule);
            self.put(Key { schedule, ..rotated })?;
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
    /// The material that seals now.
    pub(crate) fn current_material(&self) -> &Material {
        self.rotations
            .last()
            .map_or(&self.material, |rotation| &rotation.material)
    }

    /// Its number: how often the key was rotated.
    pub(crate) fn current_number(&self) -> u32 {
        u32::try_from(self.rotations.len()).unwrap_or(u32::MAX)
    }

    /// The material with that number.
    pub(crate) fn material_of(&self, number: u32) -> Option<&Material> {
        match usize::try_from(number).ok()?.checked_sub(1) {
            None => Some(&self.material),
            Some(n) => self.rotations.get(n).map(|rotation| &rotation.material),
        }
    }

    /// This key with new material; what it has goes on to decrypt.
    pub(crate) fn rotated(&self, material: Material, at: UnixMillis, by: RotatedBy) -> Self {
        let mut key = self.clone();
        key.rotations.push(Rotation { material, at, by });
        key
    }

    /// Whether its schedule asks for a rotation. Disabled keys wait until they are enabled.
    fn is_due(&self, now: UnixMillis) -> bool {
        self.state == KeyState::Enabled && self.schedule.is_some_and(|schedule| schedule.next <= now)
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

fn file_name(id: &str) -> String {
    format!("{id}.key")
}

fn read_key(vault: &Vault, name: &str, id: String) -> Result<Key, VaultError> {
    let damaged = || VaultError::Damaged { path: name.into() };
    let record: KeyRecord = serde_json::from_slice(&vault.read(name)?).map_err(|_| damaged())?;
    let material = Material::read(&record.material).ok_or_else(damaged)?;
    let rotation = |record: &RotationRecord| {
        Some(Rotation {
            material: Material::read(&record.material)?,
            at: UnixMillis(record.at),
            by: record.by,
        })
    };
    let rotations: Option<Vec<_>> = record.rotations.iter().map(rotation).collect();
    let policy = KeyPolicy::parse(&record.policy).map_err(|_| damaged())?;
    Ok(Key {
        id,
        material,
        rotations: rotations.ok_or_else(damaged)?,
        schedule: record.schedule,
        description: record.description.clone(),
        policy,
        state: record.state,
        created: UnixMillis(record.created),
        deletion: record.deletion.map(UnixMillis),
    })
}

fn record_of(rotation: &Rotation) -> RotationRecord {
    RotationRecord {
        material: STANDARD.encode(rotation.material.bytes()),
        at: rotation.at.0,
        by: rotation.by,
    }
}

fn write_key(vault: &Vault, key: &Key) -> Result<(), VaultError> {
    let name = file_name(&key.id);
    let record = KeyRecord {
        material: STANDARD.encode(key.material.bytes()),
        rotations: key.rotations.iter().map(record_of).collect(),
        schedule: key.schedule,
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
