//! A folder as an object store whose puts are durable. object_store's own writes a file, links it and forgets it: after
//! a power cut a name may stand for nothing, or not stand at all although the put was acknowledged.
//!
//! A put here writes a [`Draft`], which appears under its name whole or not at all. Reading and listing are object_store's.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path as FilePath, PathBuf};

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use sealflow::clock::UnixMillis;
use sealflow::keys::Put;

use crate::draft::{self, Draft};
use crate::error::{StorageError, io_meaning};

const STORE: &str = "DurableFolder";

/// A folder whose `PutMode::Create` is atomic and durable. Other ways of writing are refused.
#[derive(Debug)]
pub struct DurableFolder {
    root: PathBuf,
    inner: LocalFileSystem,
}

impl DurableFolder {
    /// Opens the folder `root`, or makes it.
    ///
    /// # Errors
    /// [`StorageError::NotPermitted`], or [`StorageError::Unavailable`] if it is none or cannot be made.
    pub fn open(root: &FilePath) -> std::result::Result<Self, StorageError> {
        let shown = root.display().to_string();
        let failed = |error: &io::Error| match error.kind() {
            ErrorKind::PermissionDenied => io_meaning(ErrorKind::PermissionDenied, shown.clone()),
            kind => StorageError::Unavailable {
                path: shown.clone(),
                reason: kind.to_string(),
            },
        };
        draft::make_folders(root).map_err(|e| failed(&e))?;
        let root = fs::canonicalize(root).map_err(|e| failed(&e))?;
        let inner = LocalFileSystem::new_with_prefix(&root).map_err(|_| failed(&ErrorKind::NotADirectory.into()))?;
        Ok(Self { root, inner })
    }

    /// Begins a file that will be the object at `location`.
    pub(crate) async fn begin(&self, location: &Path) -> Result<Draft> {
        let path = self.inner.path_to_filesystem(location)?;
        let root = self.root.clone();
        let begun = tokio::task::spawn_blocking(move || Draft::begin(&root, &path)).await?;
        begun.map_err(generic)
    }

    /// Removes what crashes left below the folder `prefix` (empty for all) and nobody has written to since `before`. Returns how
    /// many files that were.
    pub(crate) async fn clean_leftovers(&self, prefix: &str, before: UnixMillis) -> Result<u64> {
        let folder = self.root.join(prefix);
        let cleaned = tokio::task::spawn_blocking(move || draft::clean_leftovers(&folder, before)).await?;
        cleaned.map_err(generic)
    }
}

impl fmt::Display for DurableFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE}({})", self.root.display())
    }
}

#[async_trait]
impl ObjectStore for DurableFolder {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if opts.mode != PutMode::Create || !opts.attributes.is_empty() {
            return Err(refused("put with another mode than Create"));
        }
        let path = self.inner.path_to_filesystem(location)?;
        let root = self.root.clone();
        let name = location.to_string();
        let written = tokio::task::spawn_blocking(move || create(&root, &path, &payload)).await?;
        match written.map_err(generic)? {
            Put::Created => Ok(PutResult {
                e_tag: None,
                version: None,
            }),
            Put::Exists => Err(Error::AlreadyExists {
                path: name,
                source: "an object is there".into(),
            }),
        }
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(refused("multipart upload"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(refused("copy"))
    }
}

fn create(root: &FilePath, path: &FilePath, payload: &PutPayload) -> io::Result<Put> {
    let mut draft = Draft::begin(root, path)?;
    for part in payload {
        draft.write(part)?;
    }
    draft.publish()
}

pub(crate) fn generic(source: io::Error) -> Error {
    Error::Generic {
        store: STORE,
        source: source.into(),
    }
}

fn refused(operation: &str) -> Error {
    Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: STORE.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use object_store::ObjectStoreExt as _;

    use super::*;

    fn create_mode() -> PutOptions {
        PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        }
    }

    #[tokio::test]
    async fn objects_appear_whole_and_leave_no_temporary_file() {
        let root = tempfile::tempdir().unwrap();
        let folder = DurableFolder::open(&root.path().join("new/catalogue")).unwrap();
        let path = Path::parse("keys/00ff/0").unwrap();
        folder
            .put_opts(&path, PutPayload::from_static(b"one"), create_mode())
            .await
            .unwrap();
        let again = folder
            .put_opts(&path, PutPayload::from_static(b"two"), create_mode())
            .await;
        assert!(matches!(again, Err(Error::AlreadyExists { .. })));
        assert_eq!(folder.get(&path).await.unwrap().bytes().await.unwrap().as_ref(), b"one");
        let inside = root.path().join("new/catalogue/keys/00ff");
        let names: Vec<_> = fs::read_dir(&inside).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["0"]);
        let metadata = fs::metadata(inside.join("0")).unwrap();
        assert_eq!(
            (metadata.mode() & 0o027, metadata.nlink()),
            (0, 1),
            "others may touch it"
        );
        assert_eq!(
            fs::metadata(&inside).unwrap().mode() & 0o027,
            0,
            "others may touch the folder"
        );
    }

    #[tokio::test]
    async fn a_half_written_file_of_a_crash_is_neither_seen_nor_in_the_way() {
        let root = tempfile::tempdir().unwrap();
        let folder = DurableFolder::open(root.path()).unwrap();
        fs::write(root.path().join("a#1"), b"torn").unwrap();
        let path = Path::parse("a").unwrap();
        assert!(matches!(folder.get(&path).await, Err(Error::NotFound { .. })));
        folder
            .put_opts(&path, PutPayload::from_static(b"whole"), create_mode())
            .await
            .unwrap();
        assert_eq!(
            folder.get(&path).await.unwrap().bytes().await.unwrap().as_ref(),
            b"whole"
        );
    }

    #[tokio::test]
    async fn objects_cannot_be_replaced() {
        let root = tempfile::tempdir().unwrap();
        let folder = DurableFolder::open(root.path()).unwrap();
        let (path, other) = (Path::parse("a").unwrap(), Path::parse("b").unwrap());
        folder
            .put_opts(&path, PutPayload::from_static(b"one"), create_mode())
            .await
            .unwrap();
        assert!(folder.put(&path, PutPayload::from_static(b"two")).await.is_err());
        assert!(folder.copy(&path, &other).await.is_err());
        assert!(folder.put_multipart(&path).await.is_err());
        assert_eq!(folder.get(&path).await.unwrap().bytes().await.unwrap().as_ref(), b"one");
    }
}
