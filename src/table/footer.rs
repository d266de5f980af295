//! The end of a file: what it says without keys, and what it holds once keys are there.
//!
//! The crate asks a synchronous retriever for keys. Ours come from a key service, so the footer is parsed three times
//! from the same bytes: to see the footer's key material, to see the columns', and with every key that could be had.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::encryption::decrypt::{FileDecryptionProperties, KeyRetriever};
use parquet::errors::ParquetError;
use parquet::file::column_crypto_metadata::ColumnCryptoMetaData;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use super::error::{SourceError, TableError};
use super::material::Material;
use super::source::FileSource;
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

    /// The footer's key material, which anybody can read.
    pub(super) async fn material(&self) -> Result<Vec<u8>, TableError> {
        let seen = Arc::new(Seen::default());
        let parsed = self.parse(seen.clone(), None).await;
        match (seen.take(), parsed) {
            (Some(material), _) => Ok(material),
            (None, Ok(_)) => Err(TableError::NotEncrypted),
            (None, Err(_)) => Err(TableError::Damaged),
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
        // What somebody made up may make the crate panic; then the task ends, and nothing else.
        tokio::task::spawn_blocking(move || {
            let mut properties = FileDecryptionProperties::with_key_retriever(retriever);
            if let Some(prefix) = prefix {
                properties = properties.with_aad_prefix(prefix);
            }
            let mut reader = ParquetMetaDataReader::new()
                .with_page_index_policy(PageIndexPolicy::Skip)
                .with_decryption_properties(Some(properties.build()?));
            reader.try_parse_sized(&tail.bytes, tail.size)?;
            reader.finish()
        })
        .await
        .map_err(|_| TableError::Damaged)?
        .map_err(|_: ParquetError| TableError::Damaged)
    }
}

/// Exactly the bytes of `range`.
pub(super) async fn exact(source: &dyn FileSource, range: Range<u64>) -> Result<Bytes, SourceError> {
    let wanted = range.end - range.start;
    let bytes = source.range(range).await?;
    if bytes.len() as u64 == wanted {
        Ok(bytes)
    } else {
        Err(SourceError::Unavailable {
            reason: "it is shorter than it was".to_owned(),
        })
    }
}

/// The key material of a column under its own key, where all row groups agree on it.
pub(super) fn column_material(metadata: &ParquetMetaData, column: usize) -> Result<Option<(Vec<u8>, Material)>, ()> {
    let mut found: Option<&[u8]> = None;
    for (n, group) in metadata.row_groups().iter().enumerate() {
        let material = match group.columns().get(column).and_then(|column| column.crypto_metadata()) {
            Some(ColumnCryptoMetaData::ENCRYPTION_WITH_COLUMN_KEY(own)) => own.key_metadata.as_deref().ok_or(())?,
            Some(ColumnCryptoMetaData::ENCRYPTION_WITH_FOOTER_KEY) if found.is_none() => continue,
            // A column in clear, or one that is under its own key in some row groups only.
            _ => return Err(()),
        };
        if found.is_some_and(|known| known != material) || (found.is_none() && n > 0) {
            return Err(());
        }
        found = Some(material);
    }
    let Some(bytes) = found else { return Ok(None) };
    let material = Material::from_bytes(bytes).map_err(|_| ())?;
    Ok(Some((bytes.to_vec(), material)))
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
