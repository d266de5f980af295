//! Signed policies and domain documents in the catalogue: published once per version, the newest one found.
//!
//! The newest is the highest version that is there. If it does not verify, that is an error: falling back to
//! an older one would let whoever can write to the catalogue bring old access rights back.

use super::domain::DomainDocument;
use super::signed::{TrustError, VerifiedDomain, VerifiedPolicy, verify, verify_domain};
use super::trust::TrustedOwners;
use crate::keys::{Catalogue, CatalogueError, Put};
use crate::seal::KeyId;

/// How publishing ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// The document is there now.
    New,
    /// The same document was there before.
    Already,
}

/// Why a document is not published, or none is found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The catalogue did not answer.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// A document in the catalogue is not believed.
    #[error("{path}: {error}")]
    Untrusted {
        /// Where it is.
        path: String,
        /// Why not.
        error: TrustError,
    },
    /// The document to publish is not believed.
    #[error("not published: {0}")]
    NotBelieved(TrustError),
    /// A document that lies at the place of another.
    #[error("{path} holds version {version} of {name}, which does not belong there")]
    Misplaced {
        /// Where it is.
        path: String,
        /// Dataset or domain that it names.
        name: String,
        /// Version that it names.
        version: u64,
    },
    /// Versions only grow.
    #[error("not published: version {version} of {name} is below version {newest}, which is there already")]
    Backwards {
        /// Dataset or domain.
        name: String,
        /// Version of the document.
        version: u64,
        /// The highest version that is there.
        newest: u64,
    },
    /// The version exists with other bytes.
    #[error("not published: version {version} of {name} is there already, with other content")]
    Taken {
        /// Dataset or domain.
        name: String,
        /// Version of the document.
        version: u64,
    },
}

impl PublishError {
    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Catalogue(error) if error.is_retryable())
    }

    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Catalogue(_) => "check that the catalogue exists and can be read and written".to_owned(),
            Self::Untrusted { error, .. } | Self::NotBelieved(error) => error.help(),
            Self::Misplaced { .. } => "find out who put it there; it was not published by this command".to_owned(),
            Self::Backwards { newest, .. } => format!("raise the version above {newest}, and sign again"),
            Self::Taken { version, .. } => format!("raise the version above {version}, and sign again"),
        }
    }
}

/// Publishes a signed policy, after verifying it.
///
/// # Errors
/// [`PublishError`]; nothing is written then.
pub async fn publish(catalogue: &dyn Catalogue, jws: &str, trusted: &TrustedOwners) -> Result<Published, PublishError> {
    let policy = verify(jws, trusted).map_err(PublishError::NotBelieved)?;
    let policy = policy.policy();
    let folder = Folder::of_policies(&policy.dataset);
    put(catalogue, &folder, policy.version, jws).await
}

/// The policy of `dataset` with the highest version, verified. `None` if there is none at all.
///
/// # Errors
/// [`PublishError`], also if an older version would verify.
pub async fn newest(
    catalogue: &dyn Catalogue,
    dataset: &str,
    trusted: &TrustedOwners,
) -> Result<Option<VerifiedPolicy>, PublishError> {
    let folder = Folder::of_policies(dataset);
    match versions(catalogue, &folder).await?.last() {
        Some(version) => policy_at(catalogue, &folder, *version, trusted).await,
        None => Ok(None),
    }
}

/// The highest version of a policy of `dataset` that is there, believed or not.
///
/// # Errors
/// [`CatalogueError`]
pub async fn newest_version(catalogue: &dyn Catalogue, dataset: &str) -> Result<Option<u64>, CatalogueError> {
    let folder = Folder::of_policies(dataset);
    let paths = catalogue.list(&folder.prefix).await?;
    Ok(paths.iter().filter_map(|path| folder.version_of(path)).max())
}

/// One version of a dataset's policy, as it stands in the catalogue.
#[derive(Debug)]
pub struct HistoryEntry {
    /// The version of its place.
    pub version: u64,
    /// The policy, or why it is not believed.
    pub policy: Result<VerifiedPolicy, PublishError>,
}

/// All versions of a dataset's policy, oldest first, believed or not.
///
/// # Errors
/// [`PublishError::Catalogue`]
pub async fn history(
    catalogue: &dyn Catalogue,
    dataset: &str,
    trusted: &TrustedOwners,
) -> Result<Vec<HistoryEntry>, PublishError> {
    let folder = Folder::of_policies(dataset);
    let mut history = Vec::new();
    for version in versions(catalogue, &folder).await? {
        match policy_at(catalogue, &folder, version, trusted).await {
            Ok(Some(policy)) => history.push(HistoryEntry {
                version,
                policy: Ok(policy),
            }),
            Ok(None) => {}
            Err(PublishError::Catalogue(error)) => return Err(error.into()),
            Err(error) => history.push(HistoryEntry {
                version,
                policy: Err(error),
            }),
        }
    }
    Ok(history)
}

/// Publishes a signed domain document, after verifying it.
///
/// # Errors
/// [`PublishError`]; nothing is written then.
pub async fn publish_domain(
    catalogue: &dyn Catalogue,
    jws: &str,
    trusted: &TrustedOwners,
) -> Result<Published, PublishError> {
    let document = verify_domain(jws, trusted).map_err(PublishError::NotBelieved)?;
    let document = document.document();
    let folder = Folder::of_domain(&document.domain);
    put(catalogue, &folder, document.version, jws).await
}

/// The document of the domain `name` with the highest version, verified. `None` if there is none at all.
///
/// # Errors
/// [`PublishError`], also if an older version would verify.
pub async fn newest_domain(
    catalogue: &dyn Catalogue,
    name: &str,
    trusted: &TrustedOwners,
) -> Result<Option<VerifiedDomain>, PublishError> {
    let folder = Folder::of_domain(name);
    match versions(catalogue, &folder).await?.last() {
        Some(version) => domain_at(catalogue, &folder, *version, trusted).await,
        None => Ok(None),
    }
}

/// The document of the domain `name` whose secret has the id `key`, newest first. `None` if no version has it.
///
/// # Errors
/// [`PublishError`]; a version that is not believed is one only if no other version has the key.
pub async fn domain_with_key(
    catalogue: &dyn Catalogue,
    name: &str,
    key: KeyId,
    trusted: &TrustedOwners,
) -> Result<Option<VerifiedDomain>, PublishError> {
    let folder = Folder::of_domain(name);
    let mut refused = None;
    for version in versions(catalogue, &folder).await?.into_iter().rev() {
        match domain_at(catalogue, &folder, version, trusted).await {
            Ok(Some(domain)) if domain.document().key_id == key => return Ok(Some(domain)),
            Ok(_) => {}
            Err(PublishError::Catalogue(error)) => return Err(error.into()),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    refused.map_or(Ok(None), Err)
}

/// All versions of the domain `name`, oldest first: each document, or why it is not believed.
///
/// # Errors
/// [`PublishError::Catalogue`]
pub async fn domain_history(
    catalogue: &dyn Catalogue,
    name: &str,
    trusted: &TrustedOwners,
) -> Result<Vec<Result<VerifiedDomain, PublishError>>, PublishError> {
    let folder = Folder::of_domain(name);
    let mut history = Vec::new();
    for version in versions(catalogue, &folder).await? {
        match domain_at(catalogue, &folder, version, trusted).await {
            Ok(document) => history.extend(document.map(Ok)),
            Err(PublishError::Catalogue(error)) => return Err(error.into()),
            Err(error) => history.push(Err(error)),
        }
    }
    Ok(history)
}

async fn policy_at(
    catalogue: &dyn Catalogue,
    folder: &Folder,
    version: u64,
    trusted: &TrustedOwners,
) -> Result<Option<VerifiedPolicy>, PublishError> {
    let path = folder.path(version);
    let Some(jws) = get(catalogue, &path).await? else {
        return Ok(None);
    };
    let verified = verify(&jws, trusted).map_err(|error| PublishError::Untrusted {
        path: path.clone(),
        error,
    })?;
    let policy = verified.policy();
    folder.check_place(path, version, &policy.dataset, policy.version)?;
    Ok(Some(verified))
}

async fn domain_at(
    catalogue: &dyn Catalogue,
    folder: &Folder,
    version: u64,
    trusted: &TrustedOwners,
) -> Result<Option<VerifiedDomain>, PublishError> {
    let path = folder.path(version);
    let Some(jws) = get(catalogue, &path).await? else {
        return Ok(None);
    };
    let verified = verify_domain(&jws, trusted).map_err(|error| PublishError::Untrusted {
        path: path.clone(),
        error,
    })?;
    let DomainDocument {
        domain, version: named, ..
    } = verified.document();
    folder.check_place(path, version, domain, *named)?;
    Ok(Some(verified))
}

/// Where the versions of one dataset's policy, or of one domain's document, lie.
struct Folder {
    name: String,
    prefix: String,
    layout: Layout,
}

enum Layout {
    /// `policies/<dataset>/<version, 10 digits>.jws`
    Policies,
    /// `domains/<name>/<version>/document.jws`, beside the secret of that version.
    Domain,
}

impl Folder {
    fn of_policies(dataset: &str) -> Self {
        Self {
            name: dataset.to_owned(),
            prefix: format!("policies/{dataset}"),
            layout: Layout::Policies,
        }
    }

    fn of_domain(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            prefix: format!("domains/{name}"),
            layout: Layout::Domain,
        }
    }

    fn path(&self, version: u64) -> String {
        match self.layout {
            Layout::Policies => format!("{}/{version:010}.jws", self.prefix),
            Layout::Domain => format!("{}/{version}/document.jws", self.prefix),
        }
    }

    /// The version whose document lies at `path`; `None` for anything else in the folder.
    fn version_of(&self, path: &str) -> Option<u64> {
        let rest = path.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        let digits = match self.layout {
            Layout::Policies => rest.strip_suffix(".jws"),
            Layout::Domain => rest.strip_suffix("/document.jws"),
        };
        let version = digits?.parse().ok()?;
        (self.path(version) == path).then_some(version)
    }

    fn check_place(&self, path: String, version: u64, name: &str, named: u64) -> Result<(), PublishError> {
        if name == self.name && named == version {
            return Ok(());
        }
        Err(PublishError::Misplaced {
            path,
            name: name.to_owned(),
            version: named,
        })
    }
}

/// The versions in the folder, lowest first.
async fn versions(catalogue: &dyn Catalogue, folder: &Folder) -> Result<Vec<u64>, PublishError> {
    let paths = catalogue.list(&folder.prefix).await?;
    let mut versions: Vec<u64> = paths.iter().filter_map(|path| folder.version_of(path)).collect();
    versions.sort_unstable();
    Ok(versions)
}

/// The JWS at `path`. What is no text cannot verify, so it goes on as one that cannot.
async fn get(catalogue: &dyn Catalogue, path: &str) -> Result<Option<String>, PublishError> {
    let bytes = catalogue.get(path).await?;
    Ok(bytes.map(|bytes| String::from_utf8(bytes).unwrap_or_default()))
}

async fn put(catalogue: &dyn Catalogue, folder: &Folder, version: u64, jws: &str) -> Result<Published, PublishError> {
    let path = folder.path(version);
    let newest = versions(catalogue, folder).await?.last().copied();
    if let Some(newest) = newest.filter(|newest| *newest > version) {
        // An earlier publishing that is repeated is no step back.
        if catalogue.get(&path).await?.as_deref() == Some(jws.as_bytes()) {
            return Ok(Published::Already);
        }
        return Err(PublishError::Backwards {
            name: folder.name.clone(),
            version,
            newest,
        });
    }
    if catalogue.put_if_absent(&path, jws.as_bytes()).await? == Put::Created {
        return Ok(Published::New);
    }
    if catalogue.get(&path).await?.as_deref() == Some(jws.as_bytes()) {
        return Ok(Published::Already);
    }
    Err(PublishError::Taken {
        name: folder.name.clone(),
        version,
    })
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
