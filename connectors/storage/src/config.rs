//! The `catalogue:` section of a configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use sealflow::keys::{Catalogue, CatalogueError};
use serde::Deserialize;

use crate::catalogue::ObjectCatalogue;
use crate::folder::DurableFolder;
use crate::timeout::WithTimeout;

/// Where policies, key envelopes and domains are kept. `{ folder: PATH }`; buckets will be a key of their own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CatalogueConfig {
    /// A folder on a local or shared file system with hard links; it is made if it is not there.
    pub folder: PathBuf,
}

/// How long a call may take. Beyond it the catalogue is away, and what waits for it tries again.
const TIMEOUT: Duration = Duration::from_secs(10);

impl CatalogueConfig {
    /// Opens the catalogue. A call that takes longer than ten seconds fails as if the folder were away.
    pub fn open(&self) -> Result<Arc<dyn Catalogue>, CatalogueError> {
        let folder = DurableFolder::open(&self.folder)?;
        let catalogue = ObjectCatalogue::new(Arc::new(folder));
        Ok(Arc::new(WithTimeout::new(Arc::new(catalogue), TIMEOUT)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_refused() {
        let good: CatalogueConfig = serde_json::from_str(r#"{"folder":"./catalogue"}"#).unwrap();
        assert_eq!(good.folder, PathBuf::from("./catalogue"));
        for bad in [r"{}", r#"{"folder":"a","bucket":"b"}"#, r#"{"fodler":"a"}"#] {
            assert!(serde_json::from_str::<CatalogueConfig>(bad).is_err(), "{bad}");
        }
    }
}
