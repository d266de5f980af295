//! What the commands share that look at files of tables: which files, and what opens them.

pub(crate) mod inspect;
pub(in crate::commands) mod read;
pub(crate) mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use sealflow::keys::DomainKeys;
use sealflow::pipeline::ReadError;
use sealflow::policy::PolicySource;
use sealflow::table::{EmbeddedPolicies, FileLabel, OpeningTableKeys, SourceError, TableError, TableReader, offline};
use sealflow_storage::ObjectFile;

use super::access::Access;
use crate::config::PipelineConfig;
use crate::failure::{Exit, Failure, Result};
use crate::services::{OPENED_KEY_AGE, OPENED_KEYS, Services};
use crate::trust;

/// The most files that one command looks at.
const MAX_FILES: usize = 100_000;
const EXTENSION: &str = "parquet";

/// A file of a table, and what it is called.
#[derive(Clone, Debug)]
pub(in crate::commands) struct TableFile {
    /// As it was found, for messages and for its place.
    pub(in crate::commands) path: String,
    pub(in crate::commands) source: Arc<ObjectFile>,
}

/// The files at a place: a file itself, or all files `*.parquet` in and below a folder, by their paths.
pub(in crate::commands) async fn files_at(place: &Path) -> Result<Vec<TableFile>> {
    let absolute = std::fs::canonicalize(place).map_err(|error| Failure::io("read", place, &error))?;
    let mut found = Vec::new();
    if absolute.is_dir() {
        collect(&absolute, &mut found)?;
        found.sort();
        if found.is_empty() {
            return Err(Failure::new(
                Exit::Data,
                format_args!("{}: no file *.{EXTENSION} is in it or below it", place.display()),
                "name a file, or the folder of a table",
            ));
        }
    } else {
        found.push(absolute);
    }
    let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new());
    let mut files = Vec::with_capacity(found.len());
    for path in found {
        let location = ObjectPath::from_absolute_path(&path).map_err(|_| {
            let message = format!("{}: the path cannot be read", path.display());
            Failure::usage(message, "name a file whose path is UTF-8")
        })?;
        let source = ObjectFile::open(Arc::clone(&store), location).await;
        let path = path.display().to_string();
        let source = source.map_err(|error| of_table(&path, &TableError::Source(error)))?;
        files.push(TableFile {
            path,
            source: Arc::new(source),
        });
    }
    Ok(files)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|error| Failure::io("read", folder, &error))?;
    for entry in entries {
        let path = entry.map_err(|error| Failure::io("read", folder, &error))?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == EXTENSION) {
            found.push(path);
        }
        if found.len() > MAX_FILES {
            return Err(Failure::new(
                Exit::Data,
                format_args!("{}: more than {MAX_FILES} files", folder.display()),
                "name a folder further down",
            ));
        }
    }
    Ok(())
}

/// What opens files by these services.
pub(in crate::commands) fn reader(services: &Services, embedded: EmbeddedPolicies, moved: bool) -> TableReader {
    reader_by(services, Arc::clone(&services.policies), embedded, moved)
}

/// As [`reader`], by the policy that a file carries, which was verified before.
pub(in crate::commands) fn offline_reader(
    services: &Services,
    label: &FileLabel,
    embedded: EmbeddedPolicies,
    moved: bool,
) -> std::result::Result<TableReader, TableError> {
    let policies = offline(embedded.of(&label.claims)?)?;
    Ok(reader_by(services, policies, embedded, moved))
}

fn reader_by(
    services: &Services,
    policies: Arc<dyn PolicySource>,
    embedded: EmbeddedPolicies,
    moved: bool,
) -> TableReader {
    let (kms, catalogue, clock) = (&services.kms, &services.catalogue, &services.clock);
    let keys = OpeningTableKeys::of(
        Arc::clone(kms),
        Arc::clone(catalogue),
        Arc::clone(&policies),
        Arc::clone(clock),
        OPENED_KEY_AGE,
        OPENED_KEYS,
    );
    let value_keys = sealflow::keys::OpeningKeys::new(
        Arc::clone(kms),
        Arc::clone(catalogue),
        Arc::clone(&policies),
        Arc::clone(clock),
        OPENED_KEY_AGE,
        OPENED_KEYS,
    );
    let domains = DomainKeys::new(
        Arc::clone(kms),
        Arc::clone(catalogue),
        Arc::clone(&policies),
        Arc::clone(clock),
        OPENED_KEY_AGE,
    );
    TableReader::new(policies, embedded, keys, value_keys, domains).with_moved(moved)
}

/// Whose policies files may carry, by what the command was told.
pub(in crate::commands) fn embedded(access: &Access, loaded: Option<&PipelineConfig>) -> Result<EmbeddedPolicies> {
    if access.is_unsigned() {
        return Ok(EmbeddedPolicies::Development);
    }
    trust::owners(&access.owners(loaded)).map(EmbeddedPolicies::OwnedBy)
}

/// A failure of a file, by what it means.
pub(in crate::commands) fn of_table(path: &str, error: &TableError) -> Failure {
    let help = error.help();
    let exit = match error {
        TableError::Refused { .. } | TableError::Moved { .. } | TableError::Source(SourceError::NotPermitted) => {
            Exit::NotPermitted
        }
        TableError::EmbeddedPolicy(_)
        | TableError::OtherPolicy { .. }
        | TableError::Unsigned
        | TableError::SignedInDevelopment => Exit::NotPermitted,
        TableError::Footer(error) if !error.is_retryable() => Exit::NotPermitted,
        TableError::NoTableRule { .. } => Exit::Config,
        TableError::NoColumn { .. } | TableError::Filter { .. } => Exit::Usage,
        TableError::Source(SourceError::NotFound) => Exit::Data,
        TableError::Policy(error) => match error.is_retryable() {
            true => Exit::Unavailable,
            false => Exit::Config,
        },
        TableError::Values(error) => match error.as_ref() {
            ReadError::Policy(error) if !error.is_retryable() => Exit::Config,
            _ => Exit::Unavailable,
        },
        error if error.is_retryable() => Exit::Unavailable,
        _ => Exit::Data,
    };
    Failure::new(exit, format_args!("{path}: {error}"), help)
}
