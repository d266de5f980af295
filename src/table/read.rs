//! Opening encrypted Parquet for somebody: what the file is, which of its columns the policy and the key service let
//! the reader see. One column that is refused takes nothing from the others.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use moka::future::Cache;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::parquet_to_arrow_schema;
use parquet::file::metadata::ParquetMetaData;
use sha2::{Digest as _, Sha256};

use super::by_worker::AsksWorker;
use super::contained::contained;
use super::error::TableError;
use super::footer::{ModuleKeys, Tail, column_material, is_all_encrypted};
use super::leaves::{FileLeaf, file_leaves};
use super::material::{Material, Wrapped};
use super::place::Claims;
use super::source::FileSource;
use super::write::{FILE_KEY, KEYS_KEY, Origin, POLICY_KEY, UNSIGNED_POLICY_KEY};
use crate::acl::{Identity, Refused};
use crate::clock::UnixMillis;
use crate::keys::{DomainKeys, Envelope, KeyServiceError, OpenKeyError, OpenedKey, OpeningKeys};
use crate::pipeline::dead_letter::CANNOT_OPEN;
use crate::pipeline::{Format, KEY_REFUSED, Reader};
use crate::policy::signed::verify;
use crate::policy::{
    FOOTER_LABEL, FixedPolicies, Lease, Placement, Policy, PolicySource, Profile, TrustError, TrustedOwners,
    VerifiedPolicy,
};
use crate::seal::UnwrappingKey;
use crate::secret::SecretBytes;

/// Key-encryption keys to read tables with.
pub type OpeningTableKeys = OpeningKeys<UnwrappingKey>;

/// So many embedded policies are remembered: versions of those of a few datasets.
const EMBEDDED_POLICIES: u64 = 64;

/// Whose policies files may carry.
#[derive(Clone, Debug)]
pub enum EmbeddedPolicies {
    /// Those that these owners signed.
    OwnedBy(TrustedOwners),
    /// Those that nobody signed: for development only.
    Development,
}

impl EmbeddedPolicies {
    /// The policy that a file claims to carry, if it may be believed.
    ///
    /// # Errors
    /// [`TableError::EmbeddedPolicy`], [`TableError::OtherPolicy`] for that of another dataset than the file claims.
    pub fn of(&self, claims: &Claims) -> Result<VerifiedPolicy, TableError> {
        let policy = match (self, &claims.policy, &claims.unsigned_policy) {
            (Self::OwnedBy(owners), Some(jws), _) => verify(jws, owners).map_err(TableError::EmbeddedPolicy)?,
            (Self::Development, Some(_), _) => return Err(TableError::SignedInDevelopment),
            (Self::Development, None, Some(yaml)) => {
                let yaml = STANDARD.decode(yaml).map_err(|_| TableError::Damaged)?;
                VerifiedPolicy::unsigned_for_development(&yaml)
                    .map_err(|error| TableError::EmbeddedPolicy(TrustError::Document(error)))?
            }
            (Self::OwnedBy(_), None, Some(_)) => return Err(TableError::Unsigned),
            (_, None, None) => return Err(TableError::Foreign),
        };
        if policy.policy().dataset == claims.dataset {
            Ok(policy)
        } else {
            Err(TableError::OtherPolicy {
                dataset: claims.dataset.clone(),
                policy: policy.policy().dataset.clone(),
            })
        }
    }
}

/// Who reads, for what, when.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// Who.
    pub who: &'a Identity,
    /// For what.
    pub purpose: Option<&'a str>,
    /// When.
    pub now: UnixMillis,
}

/// Opens files of tables.
#[derive(Clone, Debug)]
pub struct TableReader {
    policies: Arc<dyn PolicySource>,
    embedded: EmbeddedPolicies,
    /// Policies that were verified, by what they were verified from.
    embedded_seen: Cache<[u8; 32], Arc<VerifiedPolicy>>,
    keys: OpeningTableKeys,
    value_keys: OpeningKeys,
    domains: DomainKeys,
    moved: bool,
}

/// What a file says of itself to somebody without keys.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FileLabel {
    /// What it claims.
    pub claims: Claims,
    /// Full ARN of the KMS key behind its footer's.
    pub master_key: String,
    /// Whether its schema, row counts and metadata can be read without keys.
    pub has_plaintext_footer: bool,
    /// Size in bytes.
    pub size: u64,
    /// What was read to know it.
    tail: Tail,
    material: (Vec<u8>, Material),
}

/// A file whose footer was opened, with the columns that its reader may see.
pub struct OpenTable {
    pub(super) source: Arc<dyn FileSource>,
    /// Its last bytes, which were read to open it.
    pub(super) tail: Tail,
    pub(super) metadata: ArrowReaderMetadata,
    pub(super) leaves: Vec<OpenLeaf>,
    /// `None` for files of others.
    pub(super) own: Option<Own>,
}

/// What only files with a policy have.
pub(super) struct Own {
    pub(super) envelopes: Vec<Bytes>,
    pub(super) values: Arc<Reader>,
    pub(super) policy: Arc<VerifiedPolicy>,
    pub(super) worker: Option<Arc<dyn AsksWorker>>,
    claims: Claims,
    origin: Option<Origin>,
    embedded: Arc<VerifiedPolicy>,
}

/// One leaf of an open file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenLeaf {
    /// Where it is.
    pub leaf: FileLeaf,
    /// The label that its key proves; `None` for columns under the footer's key.
    pub label: Option<String>,
    /// Full ARN of the KMS key behind its key.
    pub master_key: Option<String>,
    /// Whether it is encrypted at all: in files of others columns may be in clear.
    pub is_encrypted: bool,
    /// Whether it is shown.
    pub state: LeafState,
    /// Whether the enclave worker answers for its values: JWEs are shown then, as texts.
    pub is_by_worker: bool,
}

/// Whether a leaf is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeafState {
    /// It is. Of sealed values each is decided on for itself.
    Shown {
        /// The rule that decided, of a column under its own key.
        because: Option<String>,
    },
    /// The ACL does not let the reader see it.
    Refused {
        /// The rule that decided.
        because: String,
        /// What is shown instead.
        refused: Refused,
    },
    /// The ACL lets the reader see it, but there is no key, or it is not what it should be.
    Failed {
        /// The code.
        code: &'static str,
        /// Why.
        because: String,
    },
}

impl FileLabel {
    /// Reads the end of a file.
    ///
    /// # Errors
    /// [`TableError::Foreign`] for files of others, [`TableError::NotEncrypted`], [`TableError::Damaged`].
    pub async fn read(source: &dyn FileSource) -> Result<Self, TableError> {
        let tail = Tail::fetch(source).await?;
        let bytes = tail.material().await?;
        let material = Material::from_bytes(&bytes).map_err(|_| TableError::Foreign)?;
        let claims = material.claims.clone().ok_or(TableError::Foreign)?;
        claims.check()?;
        Ok(Self {
            claims,
            master_key: material.master_key.clone(),
            has_plaintext_footer: tail.is_plaintext,
            size: source.size(),
            tail,
            material: (bytes, material),
        })
    }
}

impl TableReader {
    /// A reader that asks `policies` for the newest policy of each file's dataset.
    #[must_use]
    pub fn new(
        policies: Arc<dyn PolicySource>,
        embedded: EmbeddedPolicies,
        keys: OpeningTableKeys,
        value_keys: OpeningKeys,
        domains: DomainKeys,
    ) -> Self {
        Self {
            policies,
            embedded,
            embedded_seen: Cache::new(EMBEDDED_POLICIES),
            keys,
            value_keys,
            domains,
            moved: false,
        }
    }

    /// The same reader, which opens files and values at other places than their own too. The ACL that counts stays that
    /// of the dataset and label that are proven.
    #[must_use]
    pub fn with_moved(mut self, moved: bool) -> Self {
        self.moved = moved;
        self
    }

    /// Opens the footer of a file that was found at `path`, and decides about its columns.
    ///
    /// # Errors
    /// [`TableError`] if nothing of the file can be shown.
    pub async fn open(
        &self,
        source: Arc<dyn FileSource>,
        path: &str,
        asking: Asking<'_>,
    ) -> Result<OpenTable, TableError> {
        let label = FileLabel::read(source.as_ref()).await?;
        self.open_labelled(source, label, path, asking).await
    }

    /// As [`TableReader::open`], of a file whose end was read before.
    ///
    /// # Errors
    /// [`TableError`] if nothing of the file can be shown.
    pub async fn open_labelled(
        &self,
        source: Arc<dyn FileSource>,
        label: FileLabel,
        path: &str,
        asking: Asking<'_>,
    ) -> Result<OpenTable, TableError> {
        let FileLabel {
            claims,
            tail,
            material: (footer_bytes, footer),
            ..
        } = label;
        if !self.moved && !claims.is_at(path) {
            return Err(TableError::Moved {
                place: format!("{}/{}", claims.dataset, claims.partition),
            });
        }
        let embedded = self.embedded(&claims).await?;
        let policy = self.policies.policy(&claims.dataset).await?;
        let access = access(policy.policy(), FOOTER_LABEL, asking);
        if !access.is_allowed() {
            return Err(TableError::Refused {
                because: access.because.to_string(),
            });
        }
        // A file of ours carries a policy that has tables.
        let rule = embedded.policy().table.as_ref().ok_or(TableError::Damaged)?;
        let pair = (rule.key.as_str(), rule.acl.as_str());
        let mut unwrapping = Unwrapping::new(&self.keys, &claims.dataset);
        let key = unwrapping.module_key(FOOTER_LABEL, pair, &footer).await;
        let key = key.map_err(|error| TableError::Footer(Box::new(error)))?;
        let mut keys = ModuleKeys::from([(footer_bytes, Arc::new(key))]);

        let is_uniform = rule.profile == Profile::DuckDb;
        let id = claims.check()?;
        let prefix = (!is_uniform).then(|| claims.aad_prefix(id, &embedded.policy().sha256));
        let metadata = tail.metadata(Arc::new(keys.clone()), prefix.clone()).await?;
        let texts = Texts::of(&metadata);
        if !is_all_encrypted(&metadata) || !texts.carries(&claims) {
            return Err(TableError::Damaged);
        }
        let schema = arrow_schema(&metadata).await?;
        let found = file_leaves(&schema)?;
        // Each is looked up by its number in Parquet.
        if found.len() != metadata.file_metadata().schema_descr().num_columns() {
            return Err(TableError::Damaged);
        }
        let mut leaves = Vec::new();
        for (n, leaf) in found.into_iter().enumerate() {
            let material = column_material(&metadata, n).map_err(|()| TableError::Damaged)?;
            let leaf = match material {
                None if is_uniform || metadata.num_row_groups() == 0 => {
                    let is_open = is_value_in_the_open(embedded.policy(), &leaf);
                    let mut open = OpenLeaf::under_footer(leaf);
                    if is_open {
                        open.state = LeafState::failed(NOT_SEALED);
                    }
                    open
                }
                None => return Err(TableError::Damaged),
                Some((bytes, material)) => {
                    let (leaf, key) = self
                        .open_leaf(
                            leaf,
                            &material,
                            (embedded.policy(), policy.policy()),
                            asking,
                            &mut unwrapping,
                        )
                        .await?;
                    if let Some(key) = key {
                        keys.insert(bytes, Arc::new(key));
                    }
                    leaf
                }
            };
            leaves.push(leaf);
        }
        let metadata = tail.metadata(Arc::new(keys), prefix).await?;
        let metadata = reader_metadata(metadata)?;
        let reader = Reader::new(
            &claims.dataset,
            Format::Json,
            Arc::clone(&self.policies),
            self.value_keys.clone(),
            self.domains.clone(),
        );
        Ok(OpenTable {
            source,
            tail,
            metadata,
            leaves,
            own: Some(Own {
                envelopes: texts.envelopes(),
                values: Arc::new(reader.with_moved(self.moved)),
                worker: None,
                claims,
                origin: texts.origin(),
                policy,
                embedded,
            }),
        })
    }

    /// Decides about a leaf under its own key, and unwraps that key.
    async fn open_leaf(
        &self,
        leaf: FileLeaf,
        material: &Material,
        (then, now): (&Policy, &Policy),
        asking: Asking<'_>,
        unwrapping: &mut Unwrapping<'_>,
    ) -> Result<(OpenLeaf, Option<SecretBytes>), TableError> {
        // What it claims to be, until its key proves it.
        let claimed = material.label.as_deref().unwrap_or(FOOTER_LABEL);
        // As it had to be written, by the policy that the file carries.
        let rule = then.columns.iter().find(|rule| rule.path == leaf.column);
        let is_column = rule.is_some_and(|rule| rule.at == Placement::Column);
        let mut open = OpenLeaf {
            label: (claimed != FOOTER_LABEL).then(|| claimed.to_owned()),
            master_key: Some(material.master_key.clone()),
            ..OpenLeaf::under_footer(leaf.clone())
        };
        // Whoever has the footer's key could have written it: it is not shown as what it is not.
        if claimed == FOOTER_LABEL && is_column {
            open.state = LeafState::failed("the column is not under its own key");
            return Ok((open, None));
        }
        if is_value_in_the_open(then, &leaf) {
            open.state = LeafState::failed(NOT_SEALED);
            return Ok((open, None));
        }
        let label = current(now, claimed);
        if claimed != FOOTER_LABEL {
            let access = access(now, label, asking);
            if !access.is_allowed() {
                open.state = LeafState::Refused {
                    because: access.because.to_string(),
                    refused: access.refused,
                };
                return Ok((open, None));
            }
            let rule = now.columns.iter().find(|rule| rule.label == label);
            if !self.moved && rule.is_none_or(|rule| rule.path != leaf.column) {
                open.state = LeafState::failed("the column was written for another place");
                return Ok((open, None));
            }
            open.state = LeafState::Shown {
                because: Some(access.because.to_string()),
            };
        }
        // The id of a key-encryption key proves a label to whoever has that key, and says nothing of whose key it is: without
        // this, readers of the footer could wrap a column of their making as any label.
        let Some(pair) = pair_of(then, claimed) else {
            open.state = LeafState::failed("the policy in the file has no such column");
            return Ok((open, None));
        };
        match unwrapping.module_key(claimed, pair, material).await {
            Ok(key) => Ok((open, Some(key))),
            Err(error) if error.is_retryable() => Err(TableError::Footer(Box::new(error))),
            Err(OpenKeyError::Service(error @ KeyServiceError::NotPermitted { .. })) => {
                open.state = LeafState::Failed {
                    code: KEY_REFUSED,
                    because: error.to_string(),
                };
                Ok((open, None))
            }
            Err(_) => {
                open.state = LeafState::failed("the column's key does not open here");
                Ok((open, None))
            }
        }
    }

    /// The policy that a file carries. Files of one table carry the same one: it is verified once.
    async fn embedded(&self, claims: &Claims) -> Result<Arc<VerifiedPolicy>, TableError> {
        let mut text = Sha256::new();
        for part in [
            &Some(&claims.dataset),
            &claims.policy.as_ref(),
            &claims.unsigned_policy.as_ref(),
        ] {
            let part = part.map_or("", String::as_str);
            text.update((part.len() as u64).to_le_bytes());
            text.update(part);
        }
        let known = &self.embedded_seen;
        let text: [u8; 32] = text.finalize().into();
        if let Some(policy) = known.get(&text).await {
            return Ok(policy);
        }
        let policy = Arc::new(self.embedded.of(claims)?);
        known.insert(text, Arc::clone(&policy)).await;
        Ok(policy)
    }
}

/// The keys of one file. Most of its modules are under few key-encryption keys, which are looked up once.
struct Unwrapping<'a> {
    keys: &'a OpeningTableKeys,
    dataset: &'a str,
    /// Key-encryption keys by the text of their envelopes.
    opened: HashMap<String, Arc<OpenedKey<UnwrappingKey>>>,
}

impl<'a> Unwrapping<'a> {
    fn new(keys: &'a OpeningTableKeys, dataset: &'a str) -> Self {
        Self {
            keys,
            dataset,
            opened: HashMap::new(),
        }
    }

    /// Unwraps the key of a module, if it is one of `label` under the key-encryption key of that policy key and ACL: both are in
    /// the context that the key service opens under.
    async fn module_key(
        &mut self,
        label: &str,
        (key_name, acl): (&str, &str),
        material: &Material,
    ) -> Result<SecretBytes, OpenKeyError> {
        let Wrapped::Double { key, kek } = &material.wrapped else {
            return Err(OpenKeyError::NotOurs);
        };
        let opened = match self.opened.get(kek) {
            Some(opened) => Arc::clone(opened),
            None => {
                let envelope = Envelope::from_text(kek).map_err(|_| OpenKeyError::NotOurs)?;
                let bytes = envelope.to_bytes().map_err(|_| OpenKeyError::NotOurs)?;
                let opened = self.keys.get(envelope.key_id(), &[&bytes]).await?;
                self.opened.insert(kek.clone(), Arc::clone(&opened));
                opened
            }
        };
        let proven = &opened.envelope;
        if proven.dataset != self.dataset || proven.key_name != key_name || proven.acl != acl {
            return Err(OpenKeyError::NotOurs);
        }
        opened
            .key
            .unwrap(self.dataset, label, key)
            .map_err(|_| OpenKeyError::WrongKey { key: proven.key_id() })
    }
}

impl OpenLeaf {
    pub(super) fn under_footer(leaf: FileLeaf) -> Self {
        Self {
            leaf,
            label: None,
            master_key: None,
            is_encrypted: true,
            state: LeafState::Shown { because: None },
            is_by_worker: false,
        }
    }

    /// Whether its pages are decrypted.
    pub(super) fn is_shown(&self) -> bool {
        matches!(self.state, LeafState::Shown { .. })
    }
}

impl LeafState {
    pub(super) fn failed(because: &str) -> Self {
        Self::Failed {
            code: CANNOT_OPEN,
            because: because.to_owned(),
        }
    }
}

impl OpenTable {
    /// Whether it is a file of others, which carries no policy.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        self.own.is_none()
    }

    /// What the file claimed, now proven; `None` for files of others, as for all that comes with a policy.
    #[must_use]
    pub fn claims(&self) -> Option<&Claims> {
        self.own.as_ref().map(|own| &own.claims)
    }

    /// Where its rows come from; `None` if the file does not say.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        self.own.as_ref()?.origin.as_ref()
    }

    /// The policy by which was decided: the newest.
    #[must_use]
    pub fn policy(&self) -> Option<&Arc<VerifiedPolicy>> {
        self.own.as_ref().map(|own| &own.policy)
    }

    /// The policy that it carries.
    #[must_use]
    pub fn embedded_policy(&self) -> Option<&Arc<VerifiedPolicy>> {
        self.own.as_ref().map(|own| &own.embedded)
    }

    /// Its leaves, in the order of the file.
    #[must_use]
    pub fn leaves(&self) -> &[OpenLeaf] {
        &self.leaves
    }

    /// Its schema as it is stored: sealed values are binary, with the extension `sealflow.sealed`.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// How many envelopes of its sealed values' keys it carries.
    #[must_use]
    pub fn envelopes(&self) -> usize {
        self.own.as_ref().map_or(0, |own| own.envelopes.len())
    }

    /// Rows, row groups, and the compressed bytes of each leaf whose metadata can be read.
    #[must_use]
    pub fn sizes(&self) -> (u64, usize, Vec<u64>) {
        let metadata = self.metadata.metadata();
        let rows = u64::try_from(metadata.file_metadata().num_rows()).unwrap_or(0);
        let mut bytes = vec![0; self.leaves.len()];
        for group in metadata.row_groups() {
            for (sum, column) in bytes.iter_mut().zip(group.columns()) {
                *sum += u64::try_from(column.compressed_size()).unwrap_or(0);
            }
        }
        (rows, metadata.num_row_groups(), bytes)
    }
}

impl fmt::Debug for OpenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the metadata: its decryptor holds keys, its statistics values.
        f.debug_struct("OpenTable")
            .field("claims", &self.claims().map(|claims| (&claims.dataset, &claims.file)))
            .field("leaves", &self.leaves)
            .finish_non_exhaustive()
    }
}

/// Texts in the footer.
pub(super) struct Texts(HashMap<String, String>);

impl Texts {
    pub(super) fn of(metadata: &ParquetMetaData) -> Self {
        let pairs = metadata.file_metadata().key_value_metadata().into_iter().flatten();
        Self(
            pairs
                .filter_map(|pair| Some((pair.key.clone(), pair.value.clone()?)))
                .collect(),
        )
    }

    /// Whether the policy that everybody reads is the one that the footer authenticates.
    fn carries(&self, claims: &Claims) -> bool {
        match (&claims.policy, &claims.unsigned_policy) {
            (Some(jws), _) => self.0.get(POLICY_KEY) == Some(jws),
            (None, yaml) => self.0.get(UNSIGNED_POLICY_KEY) == yaml.as_ref(),
        }
    }

    /// Whether a text is there that only our writer writes.
    pub(super) fn are_ours(&self) -> bool {
        let own = [POLICY_KEY, UNSIGNED_POLICY_KEY, KEYS_KEY, FILE_KEY];
        own.iter().any(|key| self.0.contains_key(*key))
    }

    fn envelopes(&self) -> Vec<Bytes> {
        let lines = self.0.get(KEYS_KEY).map(String::as_str).unwrap_or_default().lines();
        let bytes = lines.filter_map(|line| Envelope::from_text(line).ok()?.to_bytes().ok());
        bytes.map(Bytes::from).collect()
    }

    fn origin(&self) -> Option<Origin> {
        serde_json::from_str(self.0.get(FILE_KEY)?).ok()
    }
}

pub(super) async fn arrow_schema(metadata: &ParquetMetaData) -> Result<SchemaRef, TableError> {
    let file = metadata.file_metadata();
    let (columns, texts) = (file.schema_descr_ptr(), file.key_value_metadata().cloned());
    let read = tokio::task::spawn_blocking(move || contained(|| parquet_to_arrow_schema(&columns, texts.as_ref())));
    let schema = read.await.map_err(|_| TableError::Damaged)??;
    schema.map(Arc::new).map_err(|_| TableError::Damaged)
}

/// What a decoder begins with.
pub(super) fn reader_metadata(metadata: ParquetMetaData) -> Result<ArrowReaderMetadata, TableError> {
    contained(|| ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new()))?
        .map_err(|_| TableError::Damaged)
}

fn access(policy: &Policy, label: &str, asking: Asking<'_>) -> crate::policy::Access {
    policy.access(label, asking.who, asking.purpose, asking.now, |_| None)
}

const NOT_SEALED: &str = "the values of the column are not sealed";

/// Whether a leaf should hold sealed values by the policy that its file carries, and does not.
fn is_value_in_the_open(then: &Policy, leaf: &FileLeaf) -> bool {
    let rule = then.columns.iter().find(|rule| rule.path == leaf.column);
    rule.is_some_and(|rule| rule.at == Placement::Value) && leaf.sealed.is_none()
}

/// Policy key and ACL that a column of that label, or the footer, was written under.
fn pair_of<'a>(then: &'a Policy, label: &str) -> Option<(&'a str, &'a str)> {
    if label == FOOTER_LABEL {
        let table = then.table.as_ref()?;
        return Some((&table.key, &table.acl));
    }
    let rule = then.columns.iter().find(|rule| rule.label == label)?;
    Some((&rule.key, &rule.acl))
}

/// What the policy calls that label now.
fn current<'a>(policy: &'a Policy, label: &'a str) -> &'a str {
    policy.previous.labels.get(label).map_or(label, String::as_str)
}

/// A source that knows the one policy that a file carries: for reading without a catalogue.
///
/// # Errors
/// [`TableError::Refused`] if the policy counts only while a lease holds: nobody says so without a catalogue.
pub fn offline(policy: VerifiedPolicy) -> Result<Arc<dyn PolicySource>, TableError> {
    if policy.policy().lease == Lease::Required {
        return Err(TableError::Refused {
            because: "the policy counts only while a lease holds, and leases are in the catalogue".to_owned(),
        });
    }
    Ok(Arc::new(FixedPolicies::new(vec![Arc::new(policy)])))
}
