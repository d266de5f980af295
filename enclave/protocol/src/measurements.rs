//! Named measurements: what somebody who trusts an enclave pins. Names, not register numbers, so that a policy outlives one kind
//! of TEE.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of a measurement: SHA-384.
pub const MEASUREMENT_BYTES: usize = 48;

/// One measurement: a SHA-384 value that is not all zero, 96 hex digits as text.
///
/// All zero is what an enclave in debug mode shows, so it cannot be allowed even by mistake.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Measurement([u8; MEASUREMENT_BYTES]);

/// What is measured, by name. On Nitro each is a platform configuration register (PCR).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Register {
    /// The whole image: PCR0.
    Image,
    /// Kernel and boot ramdisk: PCR1.
    Kernel,
    /// The application: PCR2.
    Application,
    /// The IAM role of the parent instance: PCR3.
    ParentRole,
    /// The id of the parent instance: PCR4.
    ParentInstance,
    /// The certificate that signed the image: PCR8.
    SigningCertificate,
}

/// A set of measurements that belong together: one build of an enclave. It always has an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Spelled", into = "Spelled")]
pub struct Measurements {
    image: Measurement,
    others: BTreeMap<Register, Measurement>,
}

/// How a set is spelled in YAML and JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Spelled {
    image: Measurement,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kernel: Option<Measurement>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    application: Option<Measurement>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent_role: Option<Measurement>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent_instance: Option<Measurement>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signing_certificate: Option<Measurement>,
}

/// Why something is no measurement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MeasurementError {
    /// Not 96 hex digits.
    #[error("a measurement is 96 hex digits (SHA-384)")]
    NotSha384,
    /// All zero.
    #[error(
        "a measurement of all zeros is that of an enclave in debug mode, whose memory the host can read: it cannot be allowed"
    )]
    Zero,
    /// No such name.
    #[error(
        "there is no measurement of this name; there are: image, kernel, application, parent-role, parent-instance, signing-certificate"
    )]
    UnknownName,
    /// A set without an image.
    #[error("a set of measurements needs `image`: without it any program may run under the others")]
    NoImage,
    /// A name twice.
    #[error("the measurement `{0}` is given twice")]
    Twice(Register),
}

impl Measurement {
    /// A measurement of these bytes.
    ///
    /// # Errors
    /// [`MeasurementError::NotSha384`], [`MeasurementError::Zero`]
    pub fn new(bytes: &[u8]) -> Result<Self, MeasurementError> {
        let bytes: [u8; MEASUREMENT_BYTES] = bytes.try_into().map_err(|_| MeasurementError::NotSha384)?;
        if bytes == [0; MEASUREMENT_BYTES] {
            return Err(MeasurementError::Zero);
        }
        Ok(Self(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; MEASUREMENT_BYTES] {
        &self.0
    }
}

impl FromStr for Measurement {
    type Err = MeasurementError;

    fn from_str(text: &str) -> Result<Self, MeasurementError> {
        let digits = text.as_bytes();
        if digits.len() != 2 * MEASUREMENT_BYTES {
            return Err(MeasurementError::NotSha384);
        }
        let mut bytes = [0; MEASUREMENT_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            for digit in pair {
                let value = char::from(*digit).to_digit(16).ok_or(MeasurementError::NotSha384)?;
                // A hex digit is below 16.
                *byte = (*byte << 4) | value as u8;
            }
        }
        Self::new(&bytes)
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Measurement({self})")
    }
}

impl TryFrom<String> for Measurement {
    type Error = MeasurementError;

    fn try_from(text: String) -> Result<Self, MeasurementError> {
        text.parse()
    }
}

impl From<Measurement> for String {
    fn from(measurement: Measurement) -> Self {
        measurement.to_string()
    }
}

impl Register {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Image,
        Self::Kernel,
        Self::Application,
        Self::ParentRole,
        Self::ParentInstance,
        Self::SigningCertificate,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Kernel => "kernel",
            Self::Application => "application",
            Self::ParentRole => "parent-role",
            Self::ParentInstance => "parent-instance",
            Self::SigningCertificate => "signing-certificate",
        }
    }

    /// The index of its PCR on Nitro.
    #[must_use]
    pub fn pcr(self) -> u8 {
        match self {
            Self::Image => 0,
            Self::Kernel => 1,
            Self::Application => 2,
            Self::ParentRole => 3,
            Self::ParentInstance => 4,
            Self::SigningCertificate => 8,
        }
    }
}

impl FromStr for Register {
    type Err = MeasurementError;

    fn from_str(name: &str) -> Result<Self, MeasurementError> {
        Self::ALL
            .into_iter()
            .find(|register| register.name() == name)
            .ok_or(MeasurementError::UnknownName)
    }
}

impl fmt::Display for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Measurements {
    /// A set that pins the image alone.
    #[must_use]
    pub fn of_image(image: Measurement) -> Self {
        Self {
            image,
            others: BTreeMap::new(),
        }
    }

    /// A set of these.
    ///
    /// # Errors
    /// [`MeasurementError::NoImage`], [`MeasurementError::Twice`]
    pub fn new(pairs: impl IntoIterator<Item = (Register, Measurement)>) -> Result<Self, MeasurementError> {
        let mut all = BTreeMap::new();
        for (register, measurement) in pairs {
            if all.insert(register, measurement).is_some() {
                return Err(MeasurementError::Twice(register));
            }
        }
        let image = all.remove(&Register::Image).ok_or(MeasurementError::NoImage)?;
        Ok(Self { image, others: all })
    }

    /// What the image must measure.
    #[must_use]
    pub fn image(&self) -> &Measurement {
        &self.image
    }

    /// What a register must hold, if the set says so.
    #[must_use]
    pub fn get(&self, register: Register) -> Option<&Measurement> {
        match register {
            Register::Image => Some(&self.image),
            other => self.others.get(&other),
        }
    }

    /// What the set pins, in the order of [`Register::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Register, &Measurement)> {
        let others = self
            .others
            .iter()
            .map(|(register, measurement)| (*register, measurement));
        std::iter::once((Register::Image, &self.image)).chain(others)
    }
}

impl TryFrom<Spelled> for Measurements {
    type Error = MeasurementError;

    fn try_from(spelled: Spelled) -> Result<Self, MeasurementError> {
        let pairs = [
            (Register::Image, Some(spelled.image)),
            (Register::Kernel, spelled.kernel),
            (Register::Application, spelled.application),
            (Register::ParentRole, spelled.parent_role),
            (Register::ParentInstance, spelled.parent_instance),
            (Register::SigningCertificate, spelled.signing_certificate),
        ];
        Self::new(
            pairs
                .into_iter()
                .filter_map(|(register, measurement)| Some((register, measurement?))),
        )
    }
}

impl From<Measurements> for Spelled {
    fn from(set: Measurements) -> Self {
        let get = |register| set.get(register).copied();
        Self {
            image: set.image,
            kernel: get(Register::Kernel),
            application: get(Register::Application),
            parent_role: get(Register::ParentRole),
            parent_instance: get(Register::ParentInstance),
            signing_certificate: get(Register::SigningCertificate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &str =
        "19d44c076cdbc0d6a0a7d0d6c661e7888a710fb324c56b54d678a0ae0fc9bf41be4b45c07f4010a21f34f518bd1407d1";

    #[test]
    fn a_set_is_spelled_by_names_and_comes_back() {
        let image: Measurement = IMAGE.parse().unwrap();
        let role: Measurement = IMAGE.replace("19", "20").parse().unwrap();
        let set = Measurements::new([(Register::ParentRole, role), (Register::Image, image)]).unwrap();
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(text, format!(r#"{{"image":"{image}","parent-role":"{role}"}}"#));
        assert_eq!(serde_json::from_str::<Measurements>(&text).unwrap(), set);
        let registers: Vec<Register> = set.iter().map(|(register, _)| register).collect();
        assert_eq!(registers, [Register::Image, Register::ParentRole]);
    }

    #[test]
    fn a_set_without_an_image_is_refused() {
        let application: Measurement = IMAGE.parse().unwrap();
        assert_eq!(
            Measurements::new([(Register::Application, application)]),
            Err(MeasurementError::NoImage)
        );
        assert!(serde_json::from_str::<Measurements>(&format!(r#"{{"application":"{IMAGE}"}}"#)).is_err());
        assert!(serde_json::from_str::<Measurements>("{}").is_err());
    }

    #[test]
    fn unknown_and_repeated_names_are_refused() {
        let image: Measurement = IMAGE.parse().unwrap();
        assert_eq!(
            Measurements::new([(Register::Image, image), (Register::Image, image)]),
            Err(MeasurementError::Twice(Register::Image))
        );
        assert!(serde_json::from_str::<Measurements>(&format!(r#"{{"image":"{IMAGE}","pcr1":"{IMAGE}"}}"#)).is_err());
        assert!(serde_json::from_str::<Measurements>(&format!(r#"{{"image":"{IMAGE}","image":"{IMAGE}"}}"#)).is_err());
        assert_eq!("pcr0".parse::<Register>(), Err(MeasurementError::UnknownName));
    }

    #[test]
    fn a_measurement_of_zeros_cannot_be_allowed() {
        assert_eq!("0".repeat(96).parse::<Measurement>(), Err(MeasurementError::Zero));
        assert_eq!(Measurement::new(&[0; 48]), Err(MeasurementError::Zero));
    }

    #[test]
    fn a_measurement_is_sha_384_in_hex_of_either_case() {
        let measurement: Measurement = IMAGE.to_uppercase().parse().unwrap();
        assert_eq!(measurement.to_string(), IMAGE);
        for wrong in [
            &IMAGE[1..],
            &IMAGE[..64],
            &format!("{IMAGE}00"),
            &IMAGE.replace('d', "g"),
            &format!("+{}", &IMAGE[1..]),
        ] {
            assert_eq!(
                wrong.parse::<Measurement>(),
                Err(MeasurementError::NotSha384),
                "{wrong}"
            );
        }
    }

    #[test]
    fn every_register_has_a_name_that_finds_it() {
        for register in Register::ALL {
            assert_eq!(register.name().parse(), Ok(register));
        }
    }
}
