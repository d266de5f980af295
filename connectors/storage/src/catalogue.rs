//! A [`Catalogue`] on any object store that has put-if-absent and makes it durable before it answers.

use std::sync::Arc;

use async_trait::async_trait;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectStore, PutMode, PutOptions, PutPayload};
use sealflow::keys::{Catalogue, CatalogueError, MAX_OBJECT, Put, check_path};

use crate::error::{catalogue_error, is_absent, meaning};

/// The most objects that one listing gives: a bound on its memory.
const MAX_LISTED: usize = 1_000_000;

/// A catalogue on `store`.
#[derive(Clone, Debug)]
pub struct ObjectCatalogue {
    store: Arc<dyn ObjectStore>,
}

impl ObjectCatalogue {
    /// A catalogue on `store`, whose `PutMode::Create` must be atomic and durable: [`DurableFolder`](crate::DurableFolder)
    /// for folders, a [`Place`](crate::Place)'s store for folders and buckets.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Catalogue for ObjectCatalogue {
    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>, CatalogueError> {
        let location = location(path)?;
        let found = match self.store.get_opts(&location, GetOptions::default()).await {
            Ok(found) => found,
            Err(error) => return absent_or(&error, path),
        };
        if found.meta.size > MAX_OBJECT as u64 {
            return Err(too_large(path));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(found.meta.size).unwrap_or(0));
        let mut chunks = found.into_stream();
        loop {
            match chunks.try_next().await {
                // The size that a store tells first is not trusted.
                Ok(Some(chunk)) if bytes.len() + chunk.len() > MAX_OBJECT => return Err(too_large(path)),
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => return Ok(Some(bytes)),
                Err(error) => return absent_or(&error, path),
            }
        }
    }

    async fn put_if_absent(&self, path: &str, bytes: &[u8]) -> Result<Put, CatalogueError> {
        let location = location(path)?;
        if bytes.len() > MAX_OBJECT {
            return Err(too_large(path));
        }
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        match self
            .store
            .put_opts(&location, PutPayload::from(bytes.to_vec()), options)
            .await
        {
            Ok(_) => Ok(Put::Created),
            Err(Error::AlreadyExists { .. }) => Ok(Put::Exists),
            Err(error) => Err(failed(&error, path)),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, CatalogueError> {
        let location = location(prefix)?;
        let mut paths = Vec::new();
        let mut found = self.store.list(Some(&location));
        loop {
            match found.try_next().await {
                // What somebody else put there is not in the catalogue: it could not be read by that path.
                Ok(Some(object)) if check_path(object.location.as_ref()).is_err() => {}
                Ok(Some(_)) if paths.len() == MAX_LISTED => {
                    return Err(invalid(prefix, "more than 1,000,000 objects are below it"));
                }
                Ok(Some(object)) => paths.push(object.location.as_ref().to_owned()),
                Ok(None) => return Ok(paths),
                Err(error) => {
                    return if is_absent(&error) {
                        Ok(paths)
                    } else {
                        Err(failed(&error, prefix))
                    };
                }
            }
        }
    }
}

/// `path` as object_store's, letter for letter; it would percent-encode `#` if it were left to.
fn location(path: &str) -> Result<Path, CatalogueError> {
    check_path(path)?;
    Path::parse(path).map_err(|_| invalid(path, "the store does not take such a path"))
}

fn absent_or<T>(error: &Error, path: &str) -> Result<Option<T>, CatalogueError> {
    if is_absent(error) {
        Ok(None)
    } else {
        Err(failed(error, path))
    }
}

fn failed(error: &Error, path: &str) -> CatalogueError {
    catalogue_error(meaning(error, path), path)
}

fn too_large(path: &str) -> CatalogueError {
    invalid(path, "the object is larger than 1 MiB")
}

fn invalid(path: &str, reason: &str) -> CatalogueError {
    CatalogueError::Invalid {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use object_store::memory::InMemory;
    use sealflow::keys::conformance;

    use super::*;
    use crate::folder::DurableFolder;

    fn folder(path: &std::path::Path) -> ObjectCatalogue {
        ObjectCatalogue::new(Arc::new(DurableFolder::open(path).unwrap()))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_folder_keeps_the_contract() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(conformance::catalogue(&folder(root.path())).await, Ok(()));
    }

    #[tokio::test]
    async fn a_store_in_memory_keeps_the_contract() {
        assert_eq!(
            conformance::catalogue(&ObjectCatalogue::new(Arc::new(InMemory::new()))).await,
            Ok(())
        );
    }

    #[tokio::test]
    async fn an_object_that_grew_over_the_cap_is_not_read() {
        let root = tempfile::tempdir().unwrap();
        let catalogue = folder(root.path());
        fs::write(root.path().join("large"), vec![0; MAX_OBJECT + 1]).unwrap();
        assert!(matches!(
            catalogue.get("large").await,
            Err(CatalogueError::Invalid { .. })
        ));
    }

    #[tokio::test]
    async fn folders_and_paths_below_objects_are_no_objects() {
        let root = tempfile::tempdir().unwrap();
        let catalogue = folder(root.path());
        catalogue.put_if_absent("a/b", b"x").await.unwrap();
        assert_eq!(catalogue.get("a").await, Ok(None));
        assert_eq!(catalogue.get("a/b/c").await, Ok(None));
        assert!(matches!(
            catalogue.put_if_absent("a", b"x").await,
            Err(CatalogueError::Invalid { .. })
        ));
        assert!(matches!(
            catalogue.put_if_absent("a/b/c", b"x").await,
            Err(CatalogueError::Invalid { .. })
        ));
    }

    #[tokio::test]
    async fn files_that_are_not_ours_are_not_listed() {
        let root = tempfile::tempdir().unwrap();
        let catalogue = folder(root.path());
        catalogue.put_if_absent("a/b", b"x").await.unwrap();
        for name in ["c#7", "d e", "f%41"] {
            fs::write(root.path().join("a").join(name), b"y").unwrap();
        }
        assert_eq!(catalogue.list("a").await, Ok(vec!["a/b".to_owned()]));
    }

    #[tokio::test]
    async fn a_folder_that_refuses_is_said_to_refuse() {
        let root = tempfile::tempdir().unwrap();
        let catalogue = folder(root.path());
        catalogue.put_if_absent("a/b", b"x").await.unwrap();
        fs::set_permissions(root.path().join("a"), fs::Permissions::from_mode(0o000)).unwrap();
        // Whoever may read everything cannot see this refusal.
        let is_root = fs::read_dir(root.path().join("a")).is_ok();
        let refused = catalogue.get("a/b").await;
        assert!(
            is_root || refused == Err(CatalogueError::NotPermitted { path: "a/b".to_owned() }),
            "{refused:?}"
        );
        fs::set_permissions(root.path().join("a"), fs::Permissions::from_mode(0o700)).unwrap();
    }
}
