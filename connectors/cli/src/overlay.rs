//! A catalogue in memory over another one, or over none: key envelopes of a `.sfkeys` file, and what `--dev` writes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use sealflow::keys::{Catalogue, CatalogueError, Envelope, Put, envelope_path};

use crate::failure::{Exit, Failure, Result};

/// Reads fall through to `base` first: what is in the real catalogue counts. Writes go to `base` where there is one.
pub(crate) struct Overlay {
    base: Option<Arc<dyn Catalogue>>,
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Overlay {
    /// Over `base`, or over nothing.
    pub(crate) fn over(base: Option<Arc<dyn Catalogue>>) -> Self {
        Self {
            base,
            objects: Mutex::default(),
        }
    }

    /// Adds the envelopes of a `.sfkeys` text: one per line, blank lines and `#` comments aside.
    pub(crate) fn add_sidecar(&self, text: &str, name: &str) -> Result<usize> {
        let mut count = 0;
        for (n, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
        {
            let wrong = |error: &dyn fmt::Display| {
                let message = format!("{name}, line {}: {error}", n + 1);
                Failure::new(
                    Exit::Data,
                    message,
                    "give the .sfkeys file that was written beside the sealed file",
                )
            };
            let envelope = Envelope::from_text(line.trim()).map_err(|error| wrong(&error))?;
            let bytes = envelope.to_bytes().map_err(|error| wrong(&error))?;
            self.add(&envelope, bytes);
            count += 1;
        }
        Ok(count)
    }

    fn add(&self, envelope: &Envelope, bytes: Vec<u8>) {
        let mut objects = self.objects();
        let mut n = 0;
        loop {
            let path = envelope_path(envelope.key_id(), n);
            match objects.get(&path) {
                Some(have) if *have == bytes => return,
                Some(_) => n += 1,
                None => {
                    objects.insert(path, bytes);
                    return;
                }
            }
        }
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("base", &self.base)
            .field("objects", &self.objects().len())
            .finish()
    }
}

#[async_trait]
impl Catalogue for Overlay {
    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>, CatalogueError> {
        if let Some(base) = &self.base
            && let Some(bytes) = base.get(path).await?
        {
            return Ok(Some(bytes));
        }
        Ok(self.objects().get(path).cloned())
    }

    async fn put_if_absent(&self, path: &str, bytes: &[u8]) -> Result<Put, CatalogueError> {
        if let Some(base) = &self.base {
            return base.put_if_absent(path, bytes).await;
        }
        let mut objects = self.objects();
        if objects.contains_key(path) {
            return Ok(Put::Exists);
        }
        objects.insert(path.to_owned(), bytes.to_vec());
        Ok(Put::Created)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, CatalogueError> {
        let mut paths = BTreeSet::new();
        if let Some(base) = &self.base {
            paths.extend(base.list(prefix).await?);
        }
        let below = format!("{prefix}/");
        paths.extend(self.objects().keys().filter(|path| path.starts_with(&below)).cloned());
        Ok(paths.into_iter().collect())
    }
}
