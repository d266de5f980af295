//! Encrypted Parquet of others: files that PyArrow, Spark and their like wrote with column keys and a KMS client of
//! their own. They carry no policy, so the key service alone decides who sees what.
//!
//! A file that carries a policy is never read past it here, whatever became of it on the way. And the keys of such
//! files are bound to their dataset, key and ACL by the key service, which is asked here without any such binding.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::Mutex;

use super::error::TableError;
use super::footer::{LeafKey, ModuleKeys, Tail, leaf_key};
use super::leaves::{FileLeaf, file_leaves};
use super::material::{Material, Wrapped, reference};
use super::read::{LeafState, OpenLeaf, OpenTable, Texts, arrow_schema, reader_metadata};
use super::source::FileSource;
use crate::keys::{EncryptionContext, KeyService, OpenKeyError};
use crate::pipeline::KEY_REFUSED;
use crate::seal::unwrap_foreign;
use crate::secret::SecretBytes;

/// Why a column under its own key is shown: what audit lines say.
const BY_THE_KEY: &str = "the file carries no policy, and KMS gave the key";
/// How our own envelopes begin as text.
const OUR_ENVELOPE: &str = "sfk1.";
/// Key-encryption keys that are kept, so that a table is not one call for each file.
const MAX_KEPT: usize = 1_000;
/// The largest file of key material, in bytes.
const MAX_MATERIALS: usize = 16 << 20;
/// Its name is this, the name of the file that it is of, and `.json`.
const MATERIALS: &str = "_KEY_MATERIAL_FOR_";
const MATERIALS_SHOWN: &str = "_KEY_MATERIAL_FOR_….json";

/// Key-encryption keys by the KMS key and the wrapped key that they were asked for with.
type Kept = HashMap<(String, String), Arc<SecretBytes>>;

/// Opens files of others. It keeps keys, so it is for one caller's key service.
#[derive(Clone)]
pub struct ForeignReader {
    kms: Arc<dyn KeyService>,
    kept: Arc<Mutex<Kept>>,
}

/// What a file of others says of itself to somebody without keys.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ForeignLabel {
    /// Id of the KMS key behind its footer's, as its writer named it; `None` if the key material is elsewhere.
    pub master_key: Option<String>,
    /// Whether its schema, row counts and metadata can be read without keys.
    pub has_plaintext_footer: bool,
    /// Size in bytes.
    pub size: u64,
}

/// Key material that lies in a file of its own beside a table's file.
#[derive(Clone, Debug)]
pub struct KeyMaterials(BTreeMap<String, String>);

impl KeyMaterials {
    /// What the file of the key material of `file` is called.
    #[must_use]
    pub fn name_for(file: &str) -> String {
        format!("{MATERIALS}{file}.json")
    }

    /// Reads such a file: a JSON object of texts.
    ///
    /// # Errors
    /// [`TableError::OtherKeyMaterial`]
    pub async fn read(source: &dyn FileSource) -> Result<Self, TableError> {
        if source.size() > MAX_MATERIALS as u64 {
            return Err(TableError::OtherKeyMaterial);
        }
        let bytes = super::source::exact(source, 0..source.size()).await?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|_| TableError::OtherKeyMaterial)
    }
}

impl ForeignLabel {
    /// Reads the end of a file.
    ///
    /// # Errors
    /// [`TableError::NotForeign`] for files with a policy, [`TableError::NotEncrypted`], [`TableError::Damaged`].
    pub async fn read(source: &dyn FileSource) -> Result<Self, TableError> {
        let tail = Tail::fetch(source).await?;
        let material = match foreign(&tail.material().await?, None) {
            Ok(material) => Some(material),
            Err(TableError::KeyMaterialElsewhere { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            master_key: material.map(|material| material.master_key),
            has_plaintext_footer: tail.is_plaintext,
            size: source.size(),
        })
    }
}

impl ForeignReader {
    /// A reader with the keys that `kms` gives its caller.
    #[must_use]
    pub fn new(kms: Arc<dyn KeyService>) -> Self {
        Self {
            kms,
            kept: Arc::default(),
        }
    }

    /// Opens the footer of a file, and the keys of its columns as far as the key service gives them. `materials`: what
    /// lies beside it, if anything does.
    ///
    /// # Errors
    /// [`TableError::NotForeign`] for files with a policy; [`TableError::KeyMaterialElsewhere`] if `materials` are needed;
    /// [`TableError`] if nothing of the file can be shown.
    pub async fn open(
        &self,
        source: Arc<dyn FileSource>,
        materials: Option<&KeyMaterials>,
    ) -> Result<OpenTable, TableError> {
        let tail = Tail::fetch(source.as_ref()).await?;
        let bytes = tail.material().await?;
        let footer = foreign(&bytes, materials)?;
        let key = self.module_key(&footer).await;
        let key = key.map_err(|error| match error {
            OpenKeyError::NotOurs => TableError::OtherKeyMaterial,
            error => TableError::Footer(Box::new(error)),
        })?;
        if let Some(bits) = unusual(&key) {
            return Err(TableError::KeyLength { bits });
        }
        let mut keys = ModuleKeys::from([(bytes, Arc::new(key))]);
        let metadata = tail.metadata(Arc::new(keys.clone()), None).await?;
        // Not by the label alone, which everybody can cut off: the footer is what was written.
        if Texts::of(&metadata).are_ours() {
            return Err(TableError::NotForeign);
        }
        let schema = arrow_schema(&metadata).await?;
        let mut leaves = Vec::new();
        for (n, mut leaf) in file_leaves(&schema)?.into_iter().enumerate() {
            // Its values may be sealed, and there is no policy by which to open them.
            leaf.sealed = None;
            let mut open = OpenLeaf::under_footer(leaf);
            match leaf_key(&metadata, n).map_err(|()| TableError::Damaged)? {
                LeafKey::Clear => open.is_encrypted = false,
                LeafKey::Footer => {}
                LeafKey::Own(bytes) => {
                    let (opened, key) = self.open_leaf(open.leaf, foreign(&bytes, materials)?).await?;
                    open = opened;
                    if let Some(key) = key {
                        keys.insert(bytes, Arc::new(key));
                    }
                }
            }
            leaves.push(open);
        }
        let metadata = tail.metadata(Arc::new(keys), None).await?;
        let metadata = reader_metadata(metadata)?;
        Ok(OpenTable {
            source,
            tail,
            metadata,
            leaves,
            own: None,
        })
    }

    /// A leaf under its own key, and that key if it was had.
    async fn open_leaf(
        &self,
        leaf: FileLeaf,
        material: Material,
    ) -> Result<(OpenLeaf, Option<SecretBytes>), TableError> {
        let mut open = OpenLeaf {
            label: Some(leaf.column.to_string()),
            master_key: Some(material.master_key.clone()),
            state: LeafState::Shown {
                because: Some(BY_THE_KEY.to_owned()),
            },
            ..OpenLeaf::under_footer(leaf)
        };
        match self.module_key(&material).await {
            Ok(key) => match unusual(&key) {
                None => return Ok((open, Some(key))),
                Some(bits) => open.state = LeafState::failed(&TableError::KeyLength { bits }.to_string()),
            },
            Err(error) if error.is_retryable() => return Err(TableError::Footer(Box::new(error))),
            Err(OpenKeyError::Service(error)) => {
                open.state = LeafState::Failed {
                    code: KEY_REFUSED,
                    because: error.to_string(),
                };
            }
            Err(_) => open.state = LeafState::failed("the column's key does not open here"),
        }
        Ok((open, None))
    }

    async fn module_key(&self, material: &Material) -> Result<SecretBytes, OpenKeyError> {
        match &material.wrapped {
            Wrapped::Single { key } => self.unwrap(&material.master_key, key).await,
            Wrapped::Double { key, kek } => {
                let kek = self.kek(&material.master_key, kek).await?;
                unwrap_foreign(&kek, key).map_err(|_| OpenKeyError::NotOurs)
            }
        }
    }

    /// A key-encryption key, asked for once. Whoever wants the same one meanwhile waits for it.
    async fn kek(&self, master_key: &str, wrapped: &str) -> Result<Arc<SecretBytes>, OpenKeyError> {
        let id = (master_key.to_owned(), wrapped.to_owned());
        let mut kept = self.kept.lock().await;
        if let Some(known) = kept.get(&id) {
            return Ok(Arc::clone(known));
        }
        let kek = Arc::new(self.unwrap(master_key, wrapped).await?);
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(id, Arc::clone(&kek));
        Ok(kek)
    }

    /// What the key service says to a wrapped key of a client that wraps as most do: base64 of what the service gave, and
    /// no encryption context.
    async fn unwrap(&self, master_key: &str, wrapped: &str) -> Result<SecretBytes, OpenKeyError> {
        let bytes = STANDARD.decode(wrapped).map_err(|_| OpenKeyError::NotOurs)?;
        Ok(self
            .kms
            .unwrap(master_key, &bytes, &EncryptionContext::default())
            .await?)
    }
}

impl fmt::Debug for ForeignReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignReader").finish_non_exhaustive()
    }
}

/// The key material of a module of others.
fn foreign(bytes: &[u8], materials: Option<&KeyMaterials>) -> Result<Material, TableError> {
    let material = match reference(bytes) {
        None => Material::from_bytes(bytes),
        Some(name) => {
            let text = materials.and_then(|materials| materials.0.get(&name));
            let text = text.ok_or(TableError::KeyMaterialElsewhere { name: MATERIALS_SHOWN })?;
            Material::from_elsewhere(text)
        }
    };
    let material = material.map_err(|_| TableError::OtherKeyMaterial)?;
    let is_envelope = matches!(&material.wrapped, Wrapped::Double { kek, .. } if kek.starts_with(OUR_ENVELOPE));
    if material.is_ours() || is_envelope {
        return Err(TableError::NotForeign);
    }
    Ok(material)
}

/// The bits of a key that the crate has no cipher for.
fn unusual(key: &SecretBytes) -> Option<usize> {
    (!matches!(key.len(), 16 | 32)).then(|| key.len() * 8)
}
