//! The end of a file: what it says without keys, and what it holds once keys are there.
//!
//! The crate asks a synchronous retriever for keys. Ours come from a key service, so the footer is parsed three times
//! from the same bytes: to see the footer's key material, to see the columns', and with every key that could be had.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::encryption::decrypt::{FileDecryptionProperties, KeyRetriever};
use parquet::errors::ParquetError;
use parquet::file::column_crypto_metadata::ColumnCryptoMetaData;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use super::contained::contained;
use super::error::TableError;
use super::material::Material;
use super::source::{FileSource, exact};
use crate::secret::SecretBytes;

/// What is read of a file at first: most footers are within it.
const TAIL: u64 = 64 << 10;
/// The largest footer that is read.
const MAX_FOOTER: u64 = 256 << 20;
/// Length and magic bytes at the end.
const END: u64 = 8;
const MAGIC: [&[u8; 4]; 2] = [b"PARE", b"PAR1"];

/// The last bytes of a file, with at least its footer.
#[derive(Clone)]
pub(super) struct Tail {
    bytes: Bytes,
    size: u64,
    /// Whether the footer can be read without keys.
    pub(super) is_plaintext: bool,
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail").field("size", &self.size).finish_non_exhaustive()
    }
}

/// The keys of a file's modules by their key material.
pub(super) type ModuleKeys = HashMap<Vec<u8>, Arc<SecretBytes>>;

impl Tail {
    pub(super) async fn fetch(source: &dyn FileSource) -> Result<Self, TableError> {
        let size = source.size();
        if size < END {
            return Err(TableError::Damaged);
        }
        let mut bytes = exact(source, size.saturating_sub(TAIL)..size).await?;
        let end = bytes.len() - END as usize;
        let magic: &[u8] = &bytes[end + 4..];
        if !MAGIC.iter().any(|known| *known == magic) {
            return Err(TableError::Damaged);
        }
        let is_plaintext = magic == b"PAR1";
        let mut length = [0; 4];
        length.copy_from_slice(&bytes[end..end + 4]);
        let needed = u64::from(u32::from_le_bytes(length)) + END;
        if needed > size || needed > MAX_FOOTER {
            return Err(TableError::Damaged);
        }
        if needed > bytes.len() as u64 {
            bytes = exact(source, size - needed..size).await?;
        }
        Ok(Self {
            bytes,
            size,
            is_plaintext,
        })
    }

    /// The bytes of these ranges, if all are in it.
    pub(super) fn cut(&self, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
        let start = self.size - self.bytes.len() as u64;
        let own = |range: &Range<u64>| {
            let from = usize::try_from(range.start.checked_sub(start)?).ok()?;
            let to = usize::try_from(range.end.checked_sub(start)?).ok()?;
            (from <= to && to <= self.bytes.len()).then(|| self.bytes.slice(from..to))
        };
        ranges.iter().map(own).collect()
    }

    /// The footer's key material, which anybody can read.
    pub(super) async fn material(&self) -> Result<Vec<u8>, TableError> {
        let seen = Arc::new(Seen::default());
        let parsed = self.parse(seen.clone(), None).await;
        match (seen.take(), parsed) {
            (Some(material), _) => Ok(material),
            (None, Ok(_)) => Err(TableError::NotEncrypted),
            (None, Err(error)) => Err(error),
        }
    }

    /// The file's metadata, as far as `keys` open it. `prefix`: what its modules' additional data must begin with.
    pub(super) async fn metadata(
        &self,
        keys: Arc<ModuleKeys>,
        prefix: Option<Vec<u8>>,
    ) -> Result<ParquetMetaData, TableError> {
        self.parse(Arc::new(Known(keys)), prefix).await
    }

    async fn parse(
        &self,
        retriever: Arc<dyn KeyRetriever>,
        prefix: Option<Vec<u8>>,
    ) -> Result<ParquetMetaData, TableError> {
        let tail = self.clone();
        let parse = move || {
            let mut properties = FileDecryptionProperties::with_key_retriever(retriever);
            if let Some(prefix) = prefix {
                properties = properties.with_aad_prefix(prefix);
            }
            let mut reader = ParquetMetaDataReader::new()
                .with_page_index_policy(PageIndexPolicy::Skip)
                .with_decryption_properties(Some(properties.build()?));
            reader.try_parse_sized(&tail.bytes, tail.size)?;
            reader.finish()
        };
        let parsed = tokio::task::spawn_blocking(move || contained(parse)).await;
        parsed
            .map_err(|_| TableError::Damaged)??
            .map_err(|error: ParquetError| match error {
                // Of all that it has not built, the one thing that a footer can ask for.
                ParquetError::NYI(_) => TableError::Cipher,
                _ => TableError::Damaged,
            })
    }
}

/// What a column is encrypted with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LeafKey {
    /// Nothing: anybody who has the file reads it.
    Clear,
    /// The key of the footer.
    Footer,
    /// A key of its own, with this key material.
    Own(Vec<u8>),
}

/// What a column is encrypted with, where all row groups agree on it; in files without row groups the footer's key.
pub(super) fn leaf_key(metadata: &ParquetMetaData, column: usize) -> Result<LeafKey, ()> {
    let mut found: Option<LeafKey> = None;
    for group in metadata.row_groups() {
        let column = group.columns().get(column).ok_or(())?;
        let key = match column.crypto_metadata() {
            None => LeafKey::Clear,
            Some(ColumnCryptoMetaData::ENCRYPTION_WITH_FOOTER_KEY) => LeafKey::Footer,
            Some(ColumnCryptoMetaData::ENCRYPTION_WITH_COLUMN_KEY(own)) => {
                LeafKey::Own(own.key_metadata.clone().ok_or(())?)
            }
        };
        if found.as_ref().is_some_and(|known| *known != key) {
            return Err(());
        }
        found = Some(key);
    }
    Ok(found.unwrap_or(LeafKey::Footer))
}

/// The key material of a column under its own key. A column in clear is none of ours.
pub(super) fn column_material(metadata: &ParquetMetaData, column: usize) -> Result<Option<(Vec<u8>, Material)>, ()> {
    match leaf_key(metadata, column)? {
        LeafKey::Clear => Err(()),
        LeafKey::Footer => Ok(None),
        LeafKey::Own(bytes) => {
            let material = Material::from_bytes(&bytes).map_err(|_| ())?;
            Ok(Some((bytes, material)))
        }
    }
}

/// Whether every column of every row group is encrypted.
pub(super) fn is_all_encrypted(metadata: &ParquetMetaData) -> bool {
    let columns = |group: &parquet::file::metadata::RowGroupMetaData| {
        group.columns().iter().all(|column| column.crypto_metadata().is_some())
    };
    metadata.row_groups().iter().all(columns)
}

/// Remembers the first key material that is asked for, and gives no key.
#[derive(Default)]
struct Seen(Mutex<Option<Vec<u8>>>);

impl Seen {
    fn take(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl KeyRetriever for Seen {
    fn retrieve_key(&self, material: &[u8]) -> Result<Vec<u8>, ParquetError> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get_or_insert_with(|| material.to_vec());
        Err(no_key())
    }
}

/// Gives the keys that were unwrapped.
struct Known(Arc<ModuleKeys>);

impl KeyRetriever for Known {
    fn retrieve_key(&self, material: &[u8]) -> Result<Vec<u8>, ParquetError> {
        let key = self.0.get(material).ok_or_else(no_key)?;
        Ok(key.expose().to_vec())
    }
}

fn no_key() -> ParquetError {
    ParquetError::General("no key".to_owned())
}
