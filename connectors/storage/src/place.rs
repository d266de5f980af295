//! A place: a folder or a part of a bucket, opened. Objects in it appear whole, once, and are never replaced.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{Error, GetOptions, GetRange, ObjectStore, PutMode, PutOptions, PutPayload};
use sealflow::clock::UnixMillis;
use sealflow::keys::Put;

use crate::bucket::Bucket;
use crate::draft::is_draft;
use crate::error::{StorageError, is_absent, meaning};
use crate::folder::DurableFolder;
use crate::location::Location;
use crate::options::BucketConfig;
use crate::writer::ObjectWriter;

/// The longest path below a place, in bytes: with the longest prefix it fits S3's 1,024.
const MAX_PATH: usize = 500;
/// The longest segment, in bytes: what file systems take, with room for a temporary suffix.
const MAX_SEGMENT: usize = 200;

/// A folder or a part of a bucket. Cheap to clone.
///
/// Paths are relative to it: `/`-separated segments of `[A-Za-z0-9._=#%+@,~-]+`, none `.` or `..`, the last not ending in `#` and
/// digits. The HTTP connections of a bucket belong to the Tokio runtime that first uses them.
#[derive(Clone, Debug)]
pub struct Place {
    location: Location,
    store: Arc<dyn ObjectStore>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Folder(Arc<DurableFolder>),
    Bucket { bucket: Arc<Bucket>, prefix: Path },
}

/// An object as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its path in the place.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// A part of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// In the order of their paths' bytes.
    pub objects: Vec<Listed>,
    /// Whether there are more behind the last.
    pub has_more: bool,
}

impl Place {
    /// Opens a place: makes a folder that is not there; reads the AWS configuration for a bucket, and asks no server yet.
    ///
    /// # Errors
    /// [`StorageError`]
    pub async fn open(location: &Location, config: &BucketConfig) -> Result<Self, StorageError> {
        let (store, kind): (Arc<dyn ObjectStore>, Kind) = match location {
            Location::Folder(path) => {
                let path = path.clone();
                let opened = tokio::task::spawn_blocking(move || DurableFolder::open(&path)).await;
                let folder = Arc::new(opened.map_err(|_| cancelled(&location.to_string()))??);
                (Arc::clone(&folder) as _, Kind::Folder(folder))
            }
            Location::Bucket(place) => {
                let bucket = Arc::new(Bucket::open(place, config).await?);
                let prefix =
                    Path::parse(place.prefix()).map_err(|_| invalid(place.prefix(), "the store does not take it"))?;
                let whole: Arc<dyn ObjectStore> = Arc::clone(&bucket) as _;
                let store = Arc::new(PrefixStore::new(whole, prefix.clone()));
                (store, Kind::Bucket { bucket, prefix })
            }
        };
        Ok(Self {
            location: location.clone(),
            store,
            kind,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The place as an object store, paths relative to it, for libraries that read from one. It takes no put but
    /// `PutMode::Create`.
    #[must_use]
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    /// Creates an object unless there is one, durably. Of concurrent calls exactly one returns [`Put::Created`], also when the
    /// answer of a bucket was lost on the way. After an error that [`is_retryable`](StorageError::is_retryable) it may be there or
    /// appear later.
    ///
    /// # Errors
    /// [`StorageError`]
    pub async fn put_if_absent(&self, path: &str, bytes: Bytes) -> Result<Put, StorageError> {
        let location = checked(path)?;
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        match self.store.put_opts(&location, PutPayload::from(bytes), options).await {
            Ok(_) => Ok(Put::Created),
            Err(Error::AlreadyExists { .. }) => Ok(Put::Exists),
            Err(error) => Err(meaning(&error, path)),
        }
    }

    /// Begins an object that is written piece by piece and appears, whole, when it is finished. `size_hint` in bytes lets the parts
    /// of a large one be of one size.
    ///
    /// # Errors
    /// [`StorageError`]
    pub async fn writer(&self, path: &str, size_hint: Option<u64>) -> Result<ObjectWriter, StorageError> {
        let location = checked(path)?;
        match &self.kind {
            Kind::Folder(folder) => {
                let draft = folder.begin(&location).await.map_err(|error| meaning(&error, path))?;
                Ok(ObjectWriter::in_folder(path, draft))
            }
            Kind::Bucket { bucket, prefix } => {
                let key = below(prefix, &location);
                Ok(ObjectWriter::in_bucket(path, Arc::clone(bucket), key, size_hint))
            }
        }
    }

    /// The bytes of an object.
    ///
    /// # Errors
    /// [`StorageError::NotFound`]; [`StorageError::Invalid`] if it has more than `most` bytes.
    pub async fn read(&self, path: &str, most: usize) -> Result<Bytes, StorageError> {
        let location = checked(path)?;
        let found = self.store.get_opts(&location, GetOptions::default()).await;
        let mut chunks = found.map_err(|error| absent_or(&error, path))?.into_stream();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.try_next().await.map_err(|error| absent_or(&error, path))? {
            if bytes.len() + chunk.len() > most {
                return Err(invalid(path, "the object is larger than expected"));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.into())
    }

    /// Bytes `range` of an object, cut at its end.
    ///
    /// # Errors
    /// [`StorageError::NotFound`]; [`StorageError::Invalid`] if it ends before the range begins, or the range is empty.
    pub async fn read_range(&self, path: &str, range: Range<u64>) -> Result<Bytes, StorageError> {
        let location = checked(path)?;
        if range.is_empty() {
            return Err(invalid(path, "the range is empty"));
        }
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            ..GetOptions::default()
        };
        let found = self.store.get_opts(&location, options).await;
        let found = found.map_err(|error| absent_or(&error, path))?;
        found.bytes().await.map_err(|error| absent_or(&error, path))
    }

    /// The size of an object in bytes, or `None` if there is none.
    ///
    /// # Errors
    /// [`StorageError`]
    pub async fn size(&self, path: &str) -> Result<Option<u64>, StorageError> {
        let location = checked(path)?;
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        match self.store.get_opts(&location, options).await {
            Ok(found) => Ok(Some(found.meta.size)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(meaning(&error, path)),
        }
    }

    /// At most `most` objects below the folder `prefix` (empty for all), in the order of their paths, those behind `after`.
    /// Memory is bounded by `most`; a folder is walked whole for every page.
    ///
    /// # Errors
    /// [`StorageError`]
    pub async fn list(&self, prefix: &str, after: Option<&str>, most: usize) -> Result<Page, StorageError> {
        let folder = if prefix.is_empty() {
            None
        } else {
            Some(checked(prefix)?)
        };
        // As it was listed: others may have put there what is no path of ours.
        let after = after.map(|path| Path::parse(path).map_err(|_| invalid(path, "not a path of an object")));
        let after = after.transpose()?;
        let mut found = match &after {
            Some(after) => self.store.list_with_offset(folder.as_ref(), after),
            None => self.store.list(folder.as_ref()),
        };
        // Buckets list in order; folders do not.
        let is_ordered = matches!(self.kind, Kind::Bucket { .. });
        let mut objects = BTreeMap::new();
        let mut has_more = false;
        loop {
            let object = match found.try_next().await {
                Ok(Some(object)) => object,
                Ok(None) => break,
                Err(error) if is_absent(&error) => break,
                Err(error) => return Err(meaning(&error, prefix)),
            };
            objects.insert(String::from(object.location), object.size);
            if objects.len() > most {
                has_more = true;
                objects.pop_last();
                if is_ordered {
                    break;
                }
            }
        }
        let objects = objects.into_iter().map(|(path, size)| Listed { path, size }).collect();
        Ok(Page { objects, has_more })
    }

    /// Deletes an object; one that is not there is deleted already.
    ///
    /// # Errors
    /// [`StorageError`]
    pub async fn delete(&self, path: &str) -> Result<(), StorageError> {
        let location = checked(path)?;
        let deleted = match &self.kind {
            Kind::Folder(folder) => object_store::ObjectStoreExt::delete(folder.as_ref(), &location).await,
            Kind::Bucket { bucket, prefix } => bucket.delete(&below(prefix, &location)).await,
        };
        match deleted {
            Err(error) if !is_absent(&error) => Err(meaning(&error, path)),
            _ => Ok(()),
        }
    }

    /// Removes what writers that died left below the folder `prefix` (empty for all) and that was begun before then: temporary
    /// files, unfinished uploads. Choose a moment that no living writer's object can be older than. Returns how many those were.
    ///
    /// # Errors
    /// [`StorageError`]
    pub async fn clean_leftovers(&self, prefix: &str, before: UnixMillis) -> Result<u64, StorageError> {
        let checked = if prefix.is_empty() {
            Path::default()
        } else {
            checked(prefix)?
        };
        let cleaned = match &self.kind {
            Kind::Folder(folder) => folder.clean_leftovers(checked.as_ref(), before).await,
            Kind::Bucket { bucket, prefix } => {
                let key = below(prefix, &checked);
                let folder = if key.as_ref().is_empty() {
                    String::new()
                } else {
                    format!("{key}/")
                };
                bucket.abort_unfinished(&folder, before).await
            }
        };
        cleaned.map_err(|error| meaning(&error, &format!("{}/{prefix}", self.location)))
    }
}

fn below(prefix: &Path, location: &Path) -> Path {
    prefix.parts().chain(location.parts()).collect()
}

/// `path` as object_store's, letter for letter.
fn checked(path: &str) -> Result<Path, StorageError> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._=#%+@,~-".contains(&b);
    let is_good = |segment: &str| {
        (1..=MAX_SEGMENT).contains(&segment.len()) && segment != "." && segment != ".." && segment.bytes().all(is_plain)
    };
    if path.len() > MAX_PATH || !path.split('/').all(is_good) || path.split('/').any(is_draft) {
        let shown: String = path.escape_debug().take(MAX_SEGMENT).collect();
        return Err(invalid(&shown, "not a path of an object"));
    }
    Path::parse(path).map_err(|_| invalid(path, "not a path of an object"))
}

fn absent_or(error: &Error, path: &str) -> StorageError {
    if is_absent(error) {
        StorageError::NotFound { path: path.to_owned() }
    } else {
        meaning(error, path)
    }
}

pub(crate) fn invalid(path: &str, reason: &str) -> StorageError {
    StorageError::Invalid {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

pub(crate) fn cancelled(path: &str) -> StorageError {
    StorageError::Unavailable {
        path: path.to_owned(),
        reason: "the process is ending".to_owned(),
    }
}
