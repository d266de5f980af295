//! Key material of 32 bytes: that of symmetric keys with its rotations, and that of HMAC keys.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use sealflow::clock::UnixMillis;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

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

    /// The material as a record holds it.
    pub(super) fn read(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
        Some(Self(Zeroizing::new(bytes.as_slice().try_into().ok()?)))
    }

    pub(super) fn written(&self) -> String {
        STANDARD.encode(self.0.as_slice())
    }
}

/// What a symmetric key encrypts with: every material that it ever had.
#[derive(Clone)]
pub(crate) struct Symmetric {
    /// The first backing key, number 0.
    pub(crate) first: Material,
    /// Those that rotations added, numbers 1 and up; the last is the current one, all of them decrypt.
    pub(crate) rotations: Vec<Rotation>,
    /// When the next one is due, if rotation is enabled.
    pub(crate) schedule: Option<Schedule>,
}

impl Symmetric {
    pub(crate) fn fresh() -> Result<Self, NoRandomness> {
        Ok(Self {
            first: Material::fresh()?,
            rotations: Vec::new(),
            schedule: None,
        })
    }

    /// The material that seals now.
    pub(crate) fn current(&self) -> &Material {
        self.rotations.last().map_or(&self.first, |rotation| &rotation.material)
    }

    /// Its number: how often the key was rotated.
    pub(crate) fn current_number(&self) -> u32 {
        u32::try_from(self.rotations.len()).unwrap_or(u32::MAX)
    }

    /// The material with that number.
    pub(crate) fn numbered(&self, number: u32) -> Option<&Material> {
        match usize::try_from(number).ok()?.checked_sub(1) {
            None => Some(&self.first),
            Some(n) => self.rotations.get(n).map(|rotation| &rotation.material),
        }
    }

    /// The same with new material; what was there goes on to decrypt.
    pub(crate) fn rotated(&self, material: Material, at: UnixMillis, by: RotatedBy) -> Self {
        let mut rotated = self.clone();
        rotated.rotations.push(Rotation { material, at, by });
        rotated
    }

    /// The same with another schedule.
    pub(crate) fn scheduled(&self, schedule: Option<Schedule>) -> Self {
        Self {
            schedule,
            ..self.clone()
        }
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
    pub(super) fn after(self, now: UnixMillis) -> Self {
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
