//! Key material of Parquet modules: PKMT1, JSON in `key_metadata`, as parquet-mr, Arrow C++ and PyArrow write and read
//! it (Parquet "Key management tools"). Ours is always double wrapped and kept in the file.

use serde::{Deserialize, Serialize};

use super::place::Claims;
use crate::seal::WrappedKey;

/// The largest key material that is read, in bytes: it may carry a policy.
pub(super) const MAX_MATERIAL: usize = 3 << 20;

const TYPE: &str = "PKMT1";
/// What parquet-mr writes where no instance is configured.
const DEFAULT: &str = "DEFAULT";

/// The key material of one module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Material {
    pub(super) is_footer: bool,
    /// Full ARN of the KMS key.
    pub(super) master_key: String,
    pub(super) wrapped: Wrapped,
    /// Of ours: the label of a column key.
    pub(super) label: Option<String>,
    /// Of ours, with the footer's: what the file claims to be. Readable without keys, and worth nothing before the footer
    /// opens under them.
    pub(super) claims: Option<Claims>,
}

/// How a module's key is wrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wrapped {
    /// By a key-encryption key, which the KMS wrapped: `kek` is the text of that.
    Double { key: WrappedKey, kek: String },
    /// By the KMS itself. Only in files of others.
    Single { key: String },
}

/// What is no key material that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotMaterial;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    key_material_type: String,
    /// Not written where it would be `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    internal_storage: Option<bool>,
    is_footer_key: bool,
    #[serde(rename = "kmsInstanceID", default, skip_serializing_if = "Option::is_none")]
    kms_instance_id: Option<String>,
    #[serde(rename = "kmsInstanceURL", default, skip_serializing_if = "Option::is_none")]
    kms_instance_url: Option<String>,
    #[serde(rename = "masterKeyID")]
    master_key_id: String,
    #[serde(rename = "wrappedDEK")]
    wrapped_dek: String,
    double_wrapping: bool,
    #[serde(rename = "keyEncryptionKeyID", default, skip_serializing_if = "Option::is_none")]
    key_encryption_key_id: Option<String>,
    #[serde(rename = "wrappedKEK", default, skip_serializing_if = "Option::is_none")]
    wrapped_kek: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealflow: Option<Own>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<Claims>,
}

/// What stands in a file instead of key material that is elsewhere.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawReference {
    key_material_type: String,
    internal_storage: bool,
    key_reference: String,
}

/// Under which name key material is elsewhere, if these bytes say that it is.
pub(super) fn reference(bytes: &[u8]) -> Option<String> {
    let raw: RawReference = serde_json::from_slice(bytes.get(..MAX_MATERIAL).unwrap_or(bytes)).ok()?;
    (raw.key_material_type == TYPE && !raw.internal_storage).then_some(raw.key_reference)
}

impl Raw {
    fn parse(bytes: &[u8]) -> Result<Self, NotMaterial> {
        if bytes.len() > MAX_MATERIAL {
            return Err(NotMaterial);
        }
        let raw: Self = serde_json::from_slice(bytes).map_err(|_| NotMaterial)?;
        match raw.key_material_type.as_str() {
            TYPE => Ok(raw),
            _ => Err(NotMaterial),
        }
    }
}

impl Material {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let (key, id, kek) = match &self.wrapped {
            Wrapped::Double { key, kek } => (&key.wrapped, Some(key.kek_id.clone()), Some(kek.clone())),
            Wrapped::Single { key } => (key, None, None),
        };
        let instance = self.is_footer.then(|| DEFAULT.to_owned());
        let own = (self.label.is_some() || self.claims.is_some()).then(|| Own {
            label: self.label.clone(),
            file: self.claims.clone(),
        });
        let raw = Raw {
            key_material_type: TYPE.to_owned(),
            internal_storage: Some(true),
            is_footer_key: self.is_footer,
            kms_instance_id: instance.clone(),
            kms_instance_url: instance,
            master_key_id: self.master_key.clone(),
            wrapped_dek: key.clone(),
            double_wrapping: id.is_some(),
            key_encryption_key_id: id,
            wrapped_kek: kek,
            sealflow: own,
        };
        // Maps of strings always have a JSON text.
        serde_json::to_vec(&raw).unwrap_or_default()
    }

    /// Whether it is there for everybody to see that a file is one of ours.
    pub(super) fn is_ours(&self) -> bool {
        self.label.is_some() || self.claims.is_some()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, NotMaterial> {
        let raw = Raw::parse(bytes)?;
        match raw.internal_storage {
            Some(true) => Self::of(raw),
            _ => Err(NotMaterial),
        }
    }

    /// What stands in a file of key material beside a table's file (parquet-mr, PyArrow with `internal_key_material=False`).
    pub(super) fn from_elsewhere(text: &str) -> Result<Self, NotMaterial> {
        Self::of(Raw::parse(text.as_bytes())?)
    }

    fn of(raw: Raw) -> Result<Self, NotMaterial> {
        let wrapped = match (raw.double_wrapping, raw.key_encryption_key_id, raw.wrapped_kek) {
            (true, Some(kek_id), Some(kek)) => Wrapped::Double {
                key: WrappedKey {
                    kek_id,
                    wrapped: raw.wrapped_dek,
                },
                kek,
            },
            (false, None, None) => Wrapped::Single { key: raw.wrapped_dek },
            _ => return Err(NotMaterial),
        };
        let (label, claims) = raw.sealflow.map_or((None, None), |own| (own.label, own.file));
        Ok(Self {
            is_footer: raw.is_footer_key,
            master_key: raw.master_key_id,
            wrapped,
            label,
            claims,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn double(is_footer: bool) -> Material {
        Material {
            is_footer,
            master_key: "arn:aws:kms:eu-central-1:111122223333:key/1".into(),
            wrapped: Wrapped::Double {
                key: WrappedKey {
                    kek_id: "S2ghAAAAAAAAAAAAAAAAAA==".into(),
                    wrapped: "AAAA".into(),
                },
                kek: "sfk1.AAAA".into(),
            },
            label: None,
            claims: None,
        }
    }

    #[test]
    fn it_is_spelled_as_other_tools_spell_it_and_comes_back() {
        let text = String::from_utf8(double(true).to_bytes()).unwrap();
        assert_eq!(
            text,
            r#"{"keyMaterialType":"PKMT1","internalStorage":true,"isFooterKey":true,"kmsInstanceID":"DEFAULT","kmsInstanceURL":"DEFAULT","masterKeyID":"arn:aws:kms:eu-central-1:111122223333:key/1","wrappedDEK":"AAAA","doubleWrapping":true,"keyEncryptionKeyID":"S2ghAAAAAAAAAAAAAAAAAA==","wrappedKEK":"sfk1.AAAA"}"#
        );
        let column = Material {
            label: Some("card".into()),
            ..double(false)
        };
        for material in [double(true), column] {
            assert_eq!(Material::from_bytes(&material.to_bytes()), Ok(material));
        }
    }

    #[test]
    fn what_other_tools_add_is_no_matter_and_halves_are_refused() {
        let single = br#"{"keyMaterialType":"PKMT1","internalStorage":true,"isFooterKey":false,"masterKeyID":"k","wrappedDEK":"w","doubleWrapping":false,"other":[1]}"#;
        assert_eq!(
            Material::from_bytes(single).unwrap().wrapped,
            Wrapped::Single { key: "w".into() }
        );
        for (from, to) in [
            ("PKMT1", "PKMT2"),
            ("true", "false"),
            ("\"doubleWrapping\":false", "\"doubleWrapping\":true"),
            ("\"other\":[1]", "\"sealflow\":{\"odd\":1}"),
        ] {
            let text = std::str::from_utf8(single).unwrap().replacen(from, to, 1);
            assert_eq!(Material::from_bytes(text.as_bytes()), Err(NotMaterial), "{text}");
        }
    }

    #[test]
    fn a_reference_to_key_material_elsewhere_is_no_key_material_and_what_it_leads_to_is() {
        let here = br#"{"keyMaterialType":"PKMT1","internalStorage":false,"keyReference":"footerKey"}"#;
        assert_eq!(reference(here).as_deref(), Some("footerKey"));
        assert_eq!(Material::from_bytes(here), Err(NotMaterial));
        let there = r#"{"keyMaterialType":"PKMT1","isFooterKey":true,"masterKeyID":"k","wrappedDEK":"w","doubleWrapping":false}"#;
        assert_eq!(Material::from_elsewhere(there).unwrap().master_key, "k");
        assert_eq!(Material::from_bytes(there.as_bytes()), Err(NotMaterial));
        assert_eq!(reference(&double(true).to_bytes()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read_without_panic(bytes: Vec<u8>) {
            let _ = Material::from_bytes(&bytes);
        }
    }
}
