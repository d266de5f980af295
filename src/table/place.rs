//! Where a table file belongs: what it claims, and the additional data that proves it.

use serde::{Deserialize, Serialize};

use super::TableError;

const AAD_DOMAIN: &[u8] = b"sealflow/1";
/// The version of what files claim.
const VERSION: u8 = 1;

/// What a file says of itself, readable without keys. It is believed once the footer opens under its
/// additional data, and its policy once its owner's signature holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// Version of the format, 1.
    version: u8,
    /// Dataset.
    pub dataset: String,
    /// The folder below the dataset's root, as written: `topic=orders/date=2026-11-28`; empty for the root itself.
    pub partition: String,
    /// Id of the file: 32 lower-case hexadecimal digits.
    pub file: String,
    /// The policy that it was written under, as its owner signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The policy's YAML, if nobody signed it (`--dev`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsigned_policy: Option<String>,
}

impl Claims {
    /// Of the file `file` in the folder `partition` below the root of `dataset`.
    #[must_use]
    pub fn new(dataset: &str, partition: &str, file: FileId) -> Self {
        Self {
            version: VERSION,
            dataset: dataset.to_owned(),
            partition: partition.to_owned(),
            file: file.to_string(),
            policy: None,
            unsigned_policy: None,
        }
    }

    /// Refuses claims that this version does not write.
    pub(super) fn check(&self) -> Result<FileId, TableError> {
        if self.version != VERSION {
            return Err(TableError::NewerVersion);
        }
        self.file.parse().map_err(|()| TableError::Damaged)
    }

    /// The prefix of the additional data of every module: `"sealflow/1" ‖ lp(dataset) ‖ lp(partition) ‖ file id(16) ‖
    /// policy hash(32)`.
    pub(super) fn aad_prefix(&self, file: FileId, policy_sha256: &[u8; 32]) -> Vec<u8> {
        let mut prefix = AAD_DOMAIN.to_vec();
        for part in [&self.dataset, &self.partition] {
            // Both are far below 4 GiB: names of datasets and paths of files.
            prefix.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
            prefix.extend_from_slice(part.as_bytes());
        }
        prefix.extend_from_slice(&file.0);
        prefix.extend_from_slice(policy_sha256);
        prefix
    }

    /// Whether a file that was found at `path` (folders and name, `/` between) lies where it was written:
    /// `…/DATASET/PARTITION/NAME`.
    #[must_use]
    pub fn is_at(&self, path: &str) -> bool {
        let Some((folder, _)) = path.rsplit_once('/') else {
            return false;
        };
        let own = match self.partition.as_str() {
            "" => self.dataset.clone(),
            partition => format!("{}/{partition}", self.dataset),
        };
        folder == own || folder.ends_with(&format!("/{own}"))
    }
}

/// The id of a table file: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId([u8; 16]);

impl FileId {
    /// A fresh one.
    ///
    /// # Errors
    /// [`TableError::NoRandomness`]
    pub fn random() -> Result<Self, TableError> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|_| TableError::NoRandomness)?;
        Ok(Self(id))
    }
}

impl std::fmt::Display for FileId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for FileId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileId({self})")
    }
}

impl std::str::FromStr for FileId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(());
        }
        let mut id = [0; 16];
        for (n, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).map_err(|_| ())?;
        }
        Ok(Self(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_at_its_place_and_nowhere_else() {
        let claims = Claims::new("payments", "topic=orders/date=2026-11-28", FileId([1; 16]));
        for there in [
            "payments/topic=orders/date=2026-11-28/a.parquet",
            "/data/payments/topic=orders/date=2026-11-28/b.parquet",
        ] {
            assert!(claims.is_at(there), "{there}");
        }
        for elsewhere in [
            "a.parquet",
            "/payments/a.parquet",
            "/payments/topic=orders/a.parquet",
            "/payments/topic=orders/date=2026-11-27/a.parquet",
            "/other-payments/topic=orders/date=2026-11-28/a.parquet",
            "/orders/topic=orders/date=2026-11-28/a.parquet",
            "/payments/topic=orders/date=2026-11-28/more/a.parquet",
        ] {
            assert!(!claims.is_at(elsewhere), "{elsewhere}");
        }
        let root = Claims::new("payments", "", FileId([1; 16]));
        assert!(root.is_at("/data/payments/a.parquet") && !root.is_at("/data/a.parquet"));
    }

    #[test]
    fn the_additional_data_tells_every_part_apart() {
        let prefix = |dataset, partition, file: u8, hash: u8| {
            let id = FileId([file; 16]);
            Claims::new(dataset, partition, id).aad_prefix(id, &[hash; 32])
        };
        let one = prefix("ab", "c", 1, 2);
        assert_eq!(one.len(), 10 + 4 + 2 + 4 + 1 + 16 + 32);
        for other in [
            prefix("a", "bc", 1, 2),
            prefix("ab", "d", 1, 2),
            prefix("ab", "c", 2, 2),
            prefix("ab", "c", 1, 3),
        ] {
            assert_ne!(one, other);
        }
    }
}
