//! Keys as the folder holds them: one JSON record for each, sealed by the vault.
//!
//! What a key is for stands in its file's name too (`ID.key` symmetric, `ID.rsa`, `ID.hmac`), which the vault
//! authenticates: whoever may list the folder but not open it can tell them apart.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::clock::UnixMillis;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::material::{Material, RotatedBy, Rotation, Schedule, Symmetric};
use super::rsa_key::RsaKey;
use super::{Key, KeySpec, KeyState, Secret};
use crate::policy::KeyPolicy;
use crate::vault::{Vault, VaultError};

/// How the names of key files end.
pub(super) const ENDINGS: [&str; 3] = [".key", ".rsa", ".hmac"];

/// A key as its file holds it, sealed by the vault.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyRecord {
    // Symmetric keys have none: before there were others, no file had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spec: Option<String>,
    /// Base64: 32 bytes, or a private key in PKCS #8.
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

/// What the file of `key` is called.
pub(super) fn file_name(key: &Key) -> String {
    format!("{}{}", key.id, ending(key.secret.spec()))
}

fn ending(spec: KeySpec) -> &'static str {
    let [symmetric, rsa, hmac] = ENDINGS;
    match spec {
        KeySpec::Symmetric => symmetric,
        KeySpec::Rsa(_) => rsa,
        KeySpec::Hmac256 => hmac,
    }
}

/// Reads the key in the file `name`.
pub(super) fn read_key(vault: &Vault, name: &str) -> Result<Key, VaultError> {
    let damaged = || VaultError::Damaged { path: name.into() };
    let record: KeyRecord = serde_json::from_slice(&vault.read(name)?).map_err(|_| damaged())?;
    let secret = secret_of(&record).ok_or_else(damaged)?;
    let id = name.strip_suffix(ending(secret.spec())).ok_or_else(damaged)?;
    Ok(Key {
        id: id.to_owned(),
        secret,
        description: record.description.clone(),
        policy: KeyPolicy::parse(&record.policy).map_err(|_| damaged())?,
        state: record.state,
        created: UnixMillis(record.created),
        deletion: record.deletion.map(UnixMillis),
    })
}

fn secret_of(record: &KeyRecord) -> Option<Secret> {
    let spec = match &record.spec {
        None => KeySpec::Symmetric,
        Some(text) => text.parse().ok().filter(|spec| *spec != KeySpec::Symmetric)?,
    };
    let never_rotates = record.rotations.is_empty() && record.schedule.is_none();
    match spec {
        KeySpec::Symmetric => {
            let rotations: Option<Vec<_>> = record.rotations.iter().map(rotation_of).collect();
            Some(Secret::Symmetric(Symmetric {
                first: Material::read(&record.material)?,
                rotations: rotations?,
                schedule: record.schedule,
            }))
        }
        KeySpec::Rsa(bits) if never_rotates => {
            let pkcs8 = Zeroizing::new(STANDARD.decode(&record.material).ok()?);
            let key = RsaKey::from_pkcs8(&pkcs8)?;
            (key.bits() == bits).then_some(Secret::Rsa(key))
        }
        KeySpec::Hmac256 if never_rotates => Some(Secret::Hmac(Material::read(&record.material)?)),
        KeySpec::Rsa(_) | KeySpec::Hmac256 => None,
    }
}

fn rotation_of(record: &RotationRecord) -> Option<Rotation> {
    Some(Rotation {
        material: Material::read(&record.material)?,
        at: UnixMillis(record.at),
        by: record.by,
    })
}

/// Writes `key` into its file.
pub(super) fn write_key(vault: &Vault, key: &Key) -> Result<(), VaultError> {
    let name = file_name(key);
    let spec = key.secret.spec();
    let mut record = KeyRecord {
        spec: (spec != KeySpec::Symmetric).then(|| spec.as_str().to_owned()),
        material: String::new(),
        rotations: Vec::new(),
        schedule: None,
        description: key.description.clone(),
        policy: key.policy.text().to_owned(),
        state: key.state,
        created: key.created.0,
        deletion: key.deletion.map(|d| d.0),
    };
    match &key.secret {
        Secret::Symmetric(symmetric) => {
            record.material = symmetric.first.written();
            record.rotations = symmetric.rotations.iter().map(record_of).collect();
            record.schedule = symmetric.schedule;
        }
        Secret::Rsa(rsa) => record.material = STANDARD.encode(rsa.pkcs8().map_err(|_| VaultError::NoRandomness)?),
        Secret::Hmac(material) => record.material = material.written(),
    }
    let text = serde_json::to_vec(&record).map_err(|_| VaultError::Damaged {
        path: name.clone().into(),
    })?;
    vault.write(&name, &Zeroizing::new(text))
}

fn record_of(rotation: &Rotation) -> RotationRecord {
    RotationRecord {
        material: rotation.material.written(),
        at: rotation.at.0,
        by: rotation.by,
    }
}
