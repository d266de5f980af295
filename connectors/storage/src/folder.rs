//! A folder as an object store whose puts are durable. object_store's own writes a file, links it and forgets it: after
//! a power cut a name may stand for nothing, or not stand at all although the put was acknowledged.
//!
//! A put here writes a temporary file beside the object, syncs it, links it to its name (which fails if there is one),
//! removes the temporary name, and syncs every folder up to the root. Reading and listing are object_store's.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path as FilePath, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use sealflow::keys::CatalogueError;

const STORE: &str = "DurableFolder";

/// Objects hold names and wrapped keys, no secrets; the group may read them, so that readers need not be writers.
/// The process's umask takes away from both.
const FILE_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;

/// A folder whose `PutMode::Create` is atomic and durable. Other ways of writing are refused.
#[derive(Debug)]
pub struct DurableFolder {
    root: PathBuf,
    inner: LocalFileSystem,
}

impl DurableFolder {
    /// Opens the folder `root`, or makes it.
    pub fn open(root: &FilePath) -> std::result::Result<Self, CatalogueError> {
        let failed = |error: &io::Error| match error.kind() {
            ErrorKind::PermissionDenied => CatalogueError::NotPermitted {
                path: root.display().to_string(),
            },
            kind => CatalogueError::Unavailable {
                reason: format!("{}: {kind}", root.display()),
            },
        };
        make_folders(root).map_err(|e| failed(&e))?;
        let root = fs::canonicalize(root).map_err(|e| failed(&e))?;
        let inner = LocalFileSystem::new_with_prefix(&root).map_err(|_| CatalogueError::Unavailable {
            reason: format!("{}: is not a folder", root.display()),
        })?;
        Ok(Self { root, inner })
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
        match written {
            Ok(()) => Ok(PutResult {
                e_tag: None,
                version: None,
            }),
            Err(source) if source.kind() == ErrorKind::AlreadyExists => Err(Error::AlreadyExists {
                path: name,
                source: source.into(),
            }),
            Err(source) => Err(Error::Generic {
                store: STORE,
                source: source.into(),
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

fn refused(operation: &str) -> Error {
    Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: STORE.to_owned(),
    }
}

/// Creates the file `path`, durably and whole, or fails with `AlreadyExists`.
fn create(root: &FilePath, path: &FilePath, payload: &PutPayload) -> io::Result<()> {
    let folder = path.parent().unwrap_or(root);
    make_folders(folder).map_err(|e| match e.kind() {
        // A file stands where a folder should; `AlreadyExists` would say that our object is there.
        ErrorKind::AlreadyExists => io::Error::from(ErrorKind::NotADirectory),
        _ => e,
    })?;
    let temporary = write_temporary(path, payload)?;
    let linked = fs::hard_link(&temporary, path);
    let _ = fs::remove_file(&temporary);
    match &linked {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => {
            return Err(io::Error::from(ErrorKind::IsADirectory));
        }
        // The caller will go on with the other's object: it must be as durable as our own would be.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(_) => return linked,
    }
    let below_root = folder.ancestors().take_while(|ancestor| ancestor.starts_with(root));
    for ancestor in below_root {
        File::open(ancestor)?.sync_all()?;
    }
    linked
}

/// Writes and syncs `path#N`, a name that object_store's listings leave out.
fn write_temporary(path: &FilePath, payload: &PutPayload) -> io::Result<PathBuf> {
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("#{}", unique_number()));
        let temporary = PathBuf::from(name);
        let mut options = OpenOptions::new();
        let mut file = match options.create_new(true).write(true).mode(FILE_MODE).open(&temporary) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        };
        let written = payload
            .iter()
            .try_for_each(|part: &Bytes| file.write_all(part))
            .and_then(|()| file.sync_all());
        if let Err(e) = written {
            let _ = fs::remove_file(&temporary);
            return Err(e);
        }
        return Ok(temporary);
    }
}

/// Numbers that differ between the tasks, processes and machines that share a folder.
fn unique_number() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// Makes `folder` and what is missing above it; other processes may do the same at the same time.
fn make_folders(folder: &FilePath) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)
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
