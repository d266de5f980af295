//! What opens the files of tables for whoever asks: by the policies that decide, or by the key service alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::keys::{ClientKeyService, DomainKeys, KeyService, OpeningKeys};
use sealflow::policy::PolicySource;
use sealflow::table::{
    Asking, AsksWorker, EmbeddedPolicies, FileLabel, ForeignReader, KeyMaterials, OpenTable, OpeningTableKeys,
    TableError, TableReader, offline,
};
use tokio::sync::Mutex;

use super::files::TableFile;
use super::key_names::NamedKeys;
use super::of_table;
use crate::by_worker;
use crate::commands::access::Access;
use crate::commands::read::{AssumedIdentity, ByEnclave, Who};
use crate::config::PipelineConfig;
use crate::failure::{Exit, Failure, Result};
use crate::services::{OPENED_KEY_AGE, OPENED_KEYS, Services};
use crate::term::note;
use crate::trust;

/// By what files are opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::commands) struct By {
    /// By the policy that each file carries, without the catalogue's newest.
    pub(in crate::commands) offline: bool,
    /// At other places than their own too.
    pub(in crate::commands) moved: bool,
    /// By the key service alone: files of others, which carry no policy.
    pub(in crate::commands) foreign: bool,
}

/// Opens files for one caller.
pub(in crate::commands) struct Opener {
    pub(in crate::commands) who: Who,
    kms: Arc<dyn ClientKeyService>,
    decides: Decides,
}

enum Decides {
    /// A policy.
    Policy(Box<ByPolicy>),
    /// Nobody but the key service.
    Kms(ForeignReader),
}

/// By dataset, and offline by the policy that the file carries.
type Readers = BTreeMap<(String, Option<[u8; 32]>), DatasetReader>;

/// What opens files of one dataset, and the worker that opens columns of the enclave, if there is one.
#[derive(Clone)]
struct DatasetReader {
    reader: Arc<TableReader>,
    worker: Option<Arc<dyn AsksWorker>>,
}

struct ByPolicy {
    access: Access,
    loaded: Option<PipelineConfig>,
    embedded: EmbeddedPolicies,
    by: By,
    /// The key that answers are sealed to.
    seal_to: Option<RsaPublicJwk>,
    readers: Mutex<Readers>,
}

/// Why a file was not opened.
pub(in crate::commands) enum Unopened {
    /// It is the file.
    File(TableError),
    /// It is what would open it.
    Services(Failure),
}

impl Unopened {
    /// As a command's failure.
    pub(in crate::commands) fn of(self, file: &TableFile) -> Failure {
        match self {
            Self::File(error) => of_table(&file.path, &error),
            Self::Services(failure) => failure,
        }
    }
}

impl From<TableError> for Unopened {
    fn from(error: TableError) -> Self {
        Self::File(error)
    }
}

impl Opener {
    /// Asks who the caller is. Services of a dataset are opened with its first file.
    pub(in crate::commands) async fn new(
        access: &Access,
        assumed: &AssumedIdentity,
        loaded: Option<&PipelineConfig>,
        by: By,
    ) -> Result<Self> {
        if by.foreign && (by.offline || by.moved || assumed.is_some() || access.is_unsigned()) {
            return Err(Failure::usage(
                "--foreign is for files without a policy: --dev, --as, --offline and --moved have no meaning there",
                "leave them out; KMS decides by your own credentials",
            ));
        }
        assumed.check(access)?;
        let kms = access.kms(loaded).await?;
        let who = assumed.asking(&*kms).await?;
        let decides = if by.foreign {
            note("files of others carry no policy: no ACL is looked at, KMS alone decides which columns open");
            let region = access.kms_region(loaded);
            let named = region.and_then(|region| NamedKeys::of_caller(kms.clone(), &who.who.to_string(), &region));
            let named = named.map(|named| Arc::new(named) as Arc<dyn KeyService>);
            Decides::Kms(ForeignReader::new(named.unwrap_or(kms.clone())))
        } else {
            Decides::Policy(Box::new(ByPolicy {
                access: access.clone(),
                loaded: loaded.cloned(),
                embedded: embedded(access, loaded)?,
                by,
                seal_to: None,
                readers: Mutex::default(),
            }))
        };
        Ok(Self { who, kms, decides })
    }

    /// The same for answers that are sealed to that key: columns of the enclave are shown then too, if the pipeline file has a worker.
    pub(in crate::commands) fn sealing_to(mut self, key: Option<&RsaPublicJwk>) -> Self {
        if let Decides::Policy(by) = &mut self.decides {
            by.seal_to = key.cloned();
        }
        self
    }

    /// Opens the footer of a file, and decides about its columns.
    pub(in crate::commands) async fn open(
        &self,
        file: &TableFile,
        asking: Asking<'_>,
    ) -> std::result::Result<OpenTable, Unopened> {
        let source = Arc::clone(&file.source);
        let by = match &self.decides {
            Decides::Kms(reader) => return open_foreign(reader, file).await,
            Decides::Policy(by) => by,
        };
        let label = FileLabel::read(source.as_ref()).await?;
        let DatasetReader { reader, worker } = by.reader(&label, &self.kms).await?;
        let table = reader.open_labelled(source, label, &file.path, asking).await?;
        Ok(match worker {
            Some(worker) => table.with_worker(worker),
            None => table,
        })
    }
}

impl ByPolicy {
    async fn reader(
        &self,
        label: &FileLabel,
        kms: &Arc<dyn ClientKeyService>,
    ) -> std::result::Result<DatasetReader, Unopened> {
        let dataset = label.claims.dataset.clone();
        let carried = if self.by.offline {
            Some(self.embedded.of(&label.claims)?)
        } else {
            None
        };
        let id = (dataset, carried.as_ref().map(|policy| policy.policy().sha256));
        // Held while services are opened: the others wait for the same ones.
        let mut readers = self.readers.lock().await;
        if let Some(known) = readers.get(&id) {
            return Ok(known.clone());
        }
        let access = self.access.of_dataset(&id.0);
        let services = access.open_on(kms.clone(), self.loaded.as_ref(), None).await;
        let services = services.map_err(Unopened::Services)?;
        let policies = match carried {
            Some(policy) => offline(policy)?,
            None => Arc::clone(&services.policies),
        };
        let reader = Arc::new(reader(&services, policies, self.embedded.clone(), self.by.moved));
        let kms = access.kms_config(self.loaded.as_ref());
        let worker = ByEnclave::start(self.loaded.as_ref(), &kms, &services, self.seal_to.as_ref()).await;
        let worker = worker.map_err(Unopened::Services)?;
        let reader = DatasetReader {
            reader,
            worker: worker.map(|worker| Arc::new(worker) as Arc<dyn AsksWorker>),
        };
        readers.insert(id, reader.clone());
        Ok(reader)
    }
}

/// Its keys may be in a file beside it.
async fn open_foreign(reader: &ForeignReader, file: &TableFile) -> std::result::Result<OpenTable, Unopened> {
    let source = || Arc::clone(&file.source);
    match reader.open(source(), None).await {
        Err(error @ TableError::KeyMaterialElsewhere { .. }) => {
            let beside = file.beside(&KeyMaterials::name_for(file.name())).await;
            let Some(beside) = beside.map_err(TableError::from)? else {
                return Err(error.into());
            };
            let materials = KeyMaterials::read(&beside).await?;
            Ok(reader.open(source(), Some(&materials)).await?)
        }
        opened => Ok(opened?),
    }
}

fn reader(
    services: &Services,
    policies: Arc<dyn PolicySource>,
    embedded: EmbeddedPolicies,
    moved: bool,
) -> TableReader {
    let (kms, catalogue, clock) = (&services.kms, &services.catalogue, &services.clock);
    let keys = OpeningTableKeys::of(
        kms.clone(),
        Arc::clone(catalogue),
        Arc::clone(&policies),
        Arc::clone(clock),
        OPENED_KEY_AGE,
        OPENED_KEYS,
    );
    let value_keys = OpeningKeys::new(
        kms.clone(),
        Arc::clone(catalogue),
        Arc::clone(&policies),
        Arc::clone(clock),
        OPENED_KEY_AGE,
        OPENED_KEYS,
    );
    let domains = DomainKeys::new(
        kms.clone(),
        Arc::clone(catalogue),
        Arc::clone(&policies),
        Arc::clone(clock),
        OPENED_KEY_AGE,
    );
    TableReader::new(policies, embedded, keys, value_keys, domains).with_moved(moved)
}

/// Whose policies files may carry, by what the command was told.
pub(super) fn embedded(access: &Access, loaded: Option<&PipelineConfig>) -> Result<EmbeddedPolicies> {
    if access.is_unsigned() {
        return Ok(EmbeddedPolicies::Development);
    }
    trust::owners(&access.owners(loaded)).map(EmbeddedPolicies::OwnedBy)
}

/// The exit code of a file's error.
pub(super) fn exit_of(error: &TableError) -> Exit {
    use sealflow::pipeline::ReadError;
    use sealflow::table::SourceError;

    match error {
        TableError::Refused { .. }
        | TableError::Moved { .. }
        | TableError::NotForeign
        | TableError::EmbeddedPolicy(_)
        | TableError::OtherPolicy { .. }
        | TableError::Unsigned
        | TableError::SignedInDevelopment
        | TableError::Source(SourceError::NotPermitted) => Exit::NotPermitted,
        TableError::Worker(error) => by_worker::exit_of(error),
        TableError::Footer(error) if !error.is_retryable() => Exit::NotPermitted,
        TableError::NoTableRule { .. } | TableError::Source(SourceError::Invalid { .. }) => Exit::Config,
        TableError::NoColumn { .. } | TableError::Filter { .. } | TableError::FilterInEnclave { .. } => Exit::Usage,
        TableError::Source(SourceError::NotFound) => Exit::NoInput,
        TableError::Policy(error) if !error.is_retryable() => Exit::Config,
        TableError::Values(error) => match error.as_ref() {
            ReadError::Policy(error) if !error.is_retryable() => Exit::Config,
            _ => Exit::Unavailable,
        },
        error if error.is_retryable() => Exit::Unavailable,
        _ => Exit::Data,
    }
}
