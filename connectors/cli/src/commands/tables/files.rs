//! Which files a command looks at: one, or all of a folder or of a part of a bucket, found as they are needed.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use sealflow::table::{SourceError, TableError};
use sealflow_storage::{BucketConfig, BucketLocation, Listed, Location, ObjectFile, Place, StorageError};

use super::of_table;
use crate::config::PipelineConfig;
use crate::failure::{Exit, Failure, Result};

/// The most files of a folder.
const MAX_FILES: usize = 100_000;
/// Objects that one page of a listing has: one less than S3 gives, whose last says that there are more.
const PAGE: usize = 999;
const EXTENSION: &str = "parquet";

/// A file of a table, and what it is called.
#[derive(Clone, Debug)]
pub(in crate::commands) struct TableFile {
    /// As it was found, for messages and for its place.
    pub(in crate::commands) path: String,
    pub(in crate::commands) source: Arc<ObjectFile>,
    found: Found,
}

/// Where a file's neighbours are.
#[derive(Clone, Debug)]
enum Found {
    OnDisk(PathBuf),
    InBucket(Place, String),
}

/// Files on their way, in the order of their paths: all `*.parquet` in and below a place, but none whose name, or whose
/// folder's, begins with `_` or `.`, as those that tools have not finished do.
pub(in crate::commands) struct Files {
    /// As it was given.
    shown: String,
    listing: Listing,
    is_any: bool,
}

enum Listing {
    Disk(std::vec::IntoIter<PathBuf>),
    Bucket(Box<Pages>),
}

/// The listing of a part of a bucket, page by page.
struct Pages {
    place: Place,
    page: VecDeque<Listed>,
    /// The last object that was listed; `None` at the beginning.
    after: Option<String>,
    has_more: bool,
}

impl Files {
    /// The files at a place. `loaded`: the pipeline file, whose options for its catalogue's bucket count for tables in the
    /// same bucket.
    pub(in crate::commands) async fn at(location: &Location, loaded: Option<&PipelineConfig>) -> Result<Self> {
        let listing = match location {
            Location::Folder(path) => Listing::Disk(on_disk(path)?.into_iter()),
            Location::Bucket(bucket) => Listing::Bucket(Box::new(Pages::at(bucket, &options(bucket, loaded)).await?)),
        };
        Ok(Self {
            shown: location.to_string(),
            listing,
            is_any: false,
        })
    }

    /// The next file; `None` behind the last. A place without any is a failure.
    pub(in crate::commands) async fn next(&mut self) -> Result<Option<TableFile>> {
        let next = match &mut self.listing {
            Listing::Disk(paths) => match paths.next() {
                Some(path) => Some(TableFile::on_disk(path).await?),
                None => None,
            },
            Listing::Bucket(pages) => pages.next().await?,
        };
        if next.is_none() && !self.is_any {
            return Err(Failure::new(
                Exit::NoInput,
                format_args!("{}: no file *.{EXTENSION} is in it or below it", self.shown),
                "name a file, or the folder of a table",
            ));
        }
        self.is_any = true;
        Ok(next)
    }
}

impl TableFile {
    async fn on_disk(path: PathBuf) -> Result<Self> {
        let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new());
        let location = ObjectPath::from_absolute_path(&path).map_err(|_| {
            let message = format!("{}: the path cannot be read", path.display());
            Failure::usage(message, "name a file whose path is UTF-8")
        })?;
        let shown = path.display().to_string();
        let source = ObjectFile::open(store, location).await;
        Ok(Self {
            source: Arc::new(source.map_err(|error| of_table(&shown, &TableError::Source(error)))?),
            path: shown,
            found: Found::OnDisk(path),
        })
    }

    fn in_bucket(place: &Place, listed: &Listed) -> Result<Self> {
        let path = format!("{}/{}", place.location(), listed.path);
        let source = ObjectFile::in_place(place, listed);
        Ok(Self {
            source: Arc::new(source.map_err(|error| of_table(&path, &TableError::Source(error)))?),
            path,
            found: Found::InBucket(place.clone(), listed.path.clone()),
        })
    }

    /// Its name without folders.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// The file `name` in the same folder, if there is one.
    pub(super) async fn beside(&self, name: &str) -> std::result::Result<Option<ObjectFile>, SourceError> {
        let opened = match &self.found {
            Found::OnDisk(path) => {
                let path = ObjectPath::from_absolute_path(path.with_file_name(name));
                let path = path.map_err(|_| SourceError::NotFound)?;
                ObjectFile::open(Arc::new(LocalFileSystem::new()), path).await
            }
            Found::InBucket(place, path) => {
                let path = match path.rsplit_once('/') {
                    Some((folder, _)) => format!("{folder}/{name}"),
                    None => name.to_owned(),
                };
                let path = ObjectPath::parse(path).map_err(|_| SourceError::NotFound)?;
                ObjectFile::open(place.store(), path).await
            }
        };
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(SourceError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Pages {
    async fn at(bucket: &BucketLocation, options: &BucketConfig) -> Result<Self> {
        // A file is an object of the folder that it is in; but tools call folders so too.
        if let Some((folder, name)) = file_of(bucket) {
            let place = open(folder, options).await?;
            let size = place.size(&name).await.map_err(of_storage)?;
            if let Some(size) = size {
                return Ok(Self {
                    page: VecDeque::from([Listed { path: name, size }]),
                    place,
                    after: None,
                    has_more: false,
                });
            }
        }
        Ok(Self {
            place: open(Location::Bucket(bucket.clone()), options).await?,
            page: VecDeque::new(),
            after: None,
            has_more: true,
        })
    }

    async fn next(&mut self) -> Result<Option<TableFile>> {
        loop {
            while let Some(listed) = self.page.pop_front() {
                // What was named is wanted whatever it is called.
                let is_named = !self.has_more && self.after.is_none();
                if is_named || is_wanted(&listed.path) {
                    return TableFile::in_bucket(&self.place, &listed).map(Some);
                }
            }
            if !self.has_more {
                return Ok(None);
            }
            let page = self
                .place
                .list("", self.after.as_deref(), PAGE)
                .await
                .map_err(|error| {
                    // A listing names no path: it is the place that cannot be listed.
                    of_storage(named(error, &self.place.location().to_string()))
                })?;
            self.has_more = page.has_more && !page.objects.is_empty();
            self.after = page
                .objects
                .last()
                .map(|listed| listed.path.clone())
                .or(self.after.take());
            self.page = page.objects.into();
        }
    }
}

async fn open(location: Location, options: &BucketConfig) -> Result<Place> {
    Place::open(&location, options).await.map_err(of_storage)
}

/// The folder and the name, of what is called like a file.
fn file_of(bucket: &BucketLocation) -> Option<(Location, String)> {
    let (folder, name) = match bucket.prefix().rsplit_once('/') {
        Some((folder, name)) => (format!("{}/{folder}", bucket.bucket()), name),
        None => (bucket.bucket().to_owned(), bucket.prefix()),
    };
    let is_file = Path::new(name)
        .extension()
        .is_some_and(|extension| extension == EXTENSION);
    let folder = folder.parse().ok().map(Location::Bucket);
    folder.filter(|_| is_file).map(|folder| (folder, name.to_owned()))
}

/// The options of the catalogue's bucket, if the table is in the same; else those of the environment.
fn options(bucket: &BucketLocation, loaded: Option<&PipelineConfig>) -> BucketConfig {
    let catalogue = loaded.map(|config| &config.catalogue);
    let same = catalogue.filter(
        |catalogue| matches!(&catalogue.location, Location::Bucket(known) if known.bucket() == bucket.bucket()),
    );
    same.map(|catalogue| catalogue.options.clone()).unwrap_or_default()
}

/// All files in and below a folder, or the one that is named.
fn on_disk(place: &Path) -> Result<Vec<PathBuf>> {
    let absolute = std::fs::canonicalize(place).map_err(|error| unread(place, &error))?;
    if !absolute.is_dir() {
        return Ok(vec![absolute]);
    }
    let mut found = Vec::new();
    collect(&absolute, &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|error| unread(folder, &error))?;
    for entry in entries {
        let path = entry.map_err(|error| unread(folder, &error))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        if path.is_dir() {
            if !is_hidden(&name) {
                collect(&path, found)?;
            }
        } else if is_wanted(&name) {
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

/// Whether a file below a place is one of a table.
fn is_wanted(path: &str) -> bool {
    let is_parquet = path
        .rsplit_once('.')
        .is_some_and(|(_, extension)| extension == EXTENSION);
    is_parquet && !path.split('/').any(is_hidden)
}

/// As Hive, Spark and PyArrow have it: what they have not finished, and what is beside the data. A folder of a partition
/// (`_day=1`) is none of that.
fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || (name.starts_with('_') && !name.contains('='))
}

fn unread(path: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::io("read", path, error);
    match error.kind() {
        std::io::ErrorKind::NotFound => Failure {
            exit: Exit::NoInput,
            ..failure
        },
        _ => failure,
    }
}

fn named(error: StorageError, place: &str) -> StorageError {
    let path = place.to_owned();
    match error {
        StorageError::Unavailable { reason, .. } => StorageError::Unavailable { path, reason },
        StorageError::NotPermitted { code, .. } => StorageError::NotPermitted { path, code },
        StorageError::NoBucket { .. } => StorageError::NoBucket { path },
        StorageError::Invalid { reason, .. } => StorageError::Invalid { path, reason },
        other => other,
    }
}

/// What is not there is no configuration that is wrong, as it is with a catalogue.
fn of_storage(error: StorageError) -> Failure {
    let is_absent = matches!(error, StorageError::NotFound { .. } | StorageError::NoBucket { .. });
    let failure = Failure::from(error);
    Failure {
        exit: if is_absent { Exit::NoInput } else { failure.exit },
        ..failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unfinished_or_beside_the_data_is_no_file_of_a_table() {
        for there in ["a.parquet", "topic=a/date=2026-01-01/b.parquet", "_day=1/a.parquet"] {
            assert!(is_wanted(there), "{there}");
        }
        for hidden in [
            "a.parquet#7",
            "a.parquet.crc",
            "a.json",
            "parquet",
            ".a.parquet",
            "_a.parquet",
            "_temporary/0/a.parquet",
            "t/.staging/a.parquet",
            "_KEY_MATERIAL_FOR_a.parquet.json",
        ] {
            assert!(!is_wanted(hidden), "{hidden}");
        }
    }

    #[test]
    fn a_file_of_a_bucket_is_told_from_a_folder_by_its_name() {
        let of = |text: &str| {
            let Location::Bucket(bucket) = text.parse().unwrap() else {
                panic!("{text}")
            };
            file_of(&bucket).map(|(folder, name)| (folder.to_string(), name))
        };
        let file = |folder: &str, name: &str| Some((folder.to_owned(), name.to_owned()));
        assert_eq!(of("s3://lake/a/b.parquet"), file("s3://lake/a", "b.parquet"));
        assert_eq!(of("s3://lake/b.parquet"), file("s3://lake", "b.parquet"));
        assert_eq!(of("s3://lake/a"), None);
        assert_eq!(of("s3://lake"), None);
    }
}
