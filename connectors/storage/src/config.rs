//! The `catalogue:` section of a configuration.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use sealflow::keys::{Catalogue, CatalogueError};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Error as _, IntoDeserializer as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::catalogue::ObjectCatalogue;
use crate::error::StorageError;
use crate::location::{BucketLocation, Location};
use crate::options::{BucketConfig, BucketConfigError};
use crate::place::Place;
use crate::timeout::WithTimeout;

/// Where policies, key envelopes and domains are kept: `{ folder: PATH }`, or `{ bucket: s3://BUCKET/PREFIX }` with the keys of
/// [`BucketConfig`] beside it.
#[derive(Clone, Debug)]
pub struct CatalogueConfig {
    /// The place.
    pub location: Location,
    /// How the bucket is reached, if it is one.
    pub options: BucketConfig,
}

/// How long a call may take. Beyond it the catalogue is away, and what waits for it tries again.
const TIMEOUT: Duration = Duration::from_secs(10);

impl CatalogueConfig {
    /// Checks everything that can be checked without asking anybody.
    ///
    /// # Errors
    /// The first option that is wrong.
    pub fn check(&self) -> Result<(), BucketConfigError> {
        self.options.check()
    }

    /// Takes a relative folder as below `base`.
    pub fn resolve(&mut self, base: &Path) {
        self.location = self.location.clone().resolved(base);
    }

    /// Opens the catalogue: makes a folder that is not there; reads the AWS configuration and asks no server yet. A call that
    /// takes longer than ten seconds fails as if the catalogue were away.
    ///
    /// # Errors
    /// [`StorageError`]
    pub async fn open(&self) -> Result<Arc<dyn Catalogue>, StorageError> {
        let place = Place::open(&self.location, &self.options).await?;
        let catalogue = ObjectCatalogue::new(place.store());
        Ok(Arc::new(WithTimeout::new(Arc::new(catalogue), TIMEOUT)))
    }

    /// Asks for the list of policies, which needs the right to read and nothing to be there.
    ///
    /// # Errors
    /// [`StorageError`] as [`Self::open`], [`CatalogueError`] within it if the place cannot be read.
    pub async fn probe(&self) -> Result<(), StorageError> {
        let catalogue = self.open().await?;
        match catalogue.list("policies").await {
            Ok(_) => Ok(()),
            Err(CatalogueError::NotPermitted { path }) => Err(StorageError::NotPermitted {
                path: format!("{}/{path}", self.location),
                code: "AccessDenied".to_owned(),
            }),
            Err(error) => Err(StorageError::Unavailable {
                path: self.location.to_string(),
                reason: error.to_string(),
            }),
        }
    }
}

impl From<Location> for CatalogueConfig {
    fn from(location: Location) -> Self {
        Self {
            location,
            options: BucketConfig::default(),
        }
    }
}

impl fmt::Display for CatalogueConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.location)
    }
}

impl<'de> Deserialize<'de> for CatalogueConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Section)
    }
}

struct Section;

impl<'de> Visitor<'de> for Section {
    type Value = CatalogueConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{ folder: PATH } or { bucket: s3://BUCKET/PREFIX }")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let (mut folder, mut bucket, mut others) = (None, None, 0);
        let rest = Rest {
            map,
            folder: &mut folder,
            bucket: &mut bucket,
            others: &mut others,
        };
        let options = BucketConfig::deserialize(MapAccessDeserializer::new(rest))?;
        let location = match (folder, bucket) {
            (Some(folder), None) if others == 0 => Location::Folder(folder),
            (None, Some(bucket)) => Location::Bucket(bucket),
            (Some(_), None) => {
                return Err(A::Error::custom(
                    "`folder` stands alone: the other keys are those of a bucket",
                ));
            }
            (Some(_), Some(_)) => return Err(A::Error::custom("`folder` and `bucket`: choose one of them")),
            (None, None) => return Err(A::Error::custom("missing field `folder` or `bucket`")),
        };
        Ok(CatalogueConfig { location, options })
    }
}

/// The map without `folder` and `bucket`, which are taken out on the way: so that an error about any key still says which.
struct Rest<'a, A> {
    map: A,
    folder: &'a mut Option<PathBuf>,
    bucket: &'a mut Option<BucketLocation>,
    others: &'a mut usize,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Rest<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        while let Some(key) = self.map.next_key::<String>()? {
            match key.as_str() {
                "folder" => *self.folder = Some(self.map.next_value()?),
                "bucket" => *self.bucket = Some(self.map.next_value()?),
                _ => {
                    *self.others += 1;
                    return seed.deserialize(key.into_deserializer()).map(Some);
                }
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        self.map.next_value_seed(seed)
    }
}

impl JsonSchema for CatalogueConfig {
    fn schema_name() -> Cow<'static, str> {
        "CatalogueConfig".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let bucket = BucketLocation::json_schema(generator);
        let mut options = BucketConfig::json_schema(generator);
        if let Some(properties) = options
            .ensure_object()
            .get_mut("properties")
            .and_then(|p| p.as_object_mut())
        {
            let mut bucket = bucket;
            bucket.insert(
                "description".to_owned(),
                "A prefix in a bucket with conditional puts.".into(),
            );
            properties.insert("bucket".to_owned(), bucket.into());
        }
        options.insert("required".to_owned(), vec!["bucket"].into());
        json_schema!({
            "description": "Where policies, key envelopes and domains are kept.",
            "anyOf": [
                {
                    "type": "object",
                    "properties": {
                        "folder": {
                            "description": "A folder on a local or shared file system with hard links; it is made if it is not there.",
                            "type": "string"
                        }
                    },
                    "additionalProperties": false,
                    "required": ["folder"]
                },
                options
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_is_a_folder_or_a_bucket_and_unknown_keys_are_refused() {
        let good: CatalogueConfig = serde_json::from_str(r#"{"folder":"./catalogue"}"#).unwrap();
        assert_eq!(good.location.folder(), Some(Path::new("./catalogue")));
        let good: CatalogueConfig =
            serde_json::from_str(r#"{"region":"eu-central-1","bucket":"s3://bucket/a","timeout":"2s"}"#).unwrap();
        assert_eq!(good.to_string(), "s3://bucket/a");
        assert_eq!(good.options.region.as_deref(), Some("eu-central-1"));
        for (bad, what) in [
            (r"{}", "missing field `folder` or `bucket`"),
            (r#"{"folder":"a","bucket":"s3://bucket"}"#, "choose one"),
            (r#"{"folder":"a","region":"eu-central-1"}"#, "stands alone"),
            (r#"{"fodler":"a"}"#, "unknown field `fodler`"),
            (r#"{"bucket":"s3://bucket","regoin":"a"}"#, "unknown field `regoin`"),
            (r#"{"bucket":"./bucket"}"#, "expected s3://BUCKET/PREFIX"),
            (r#"{"bucket":"s3://a:b@bucket"}"#, "no user"),
            (r#""./catalogue""#, "expected { folder: PATH }"),
        ] {
            let error = serde_json::from_str::<CatalogueConfig>(bad).unwrap_err().to_string();
            assert!(error.contains(what), "{bad}: {error}");
        }
    }

    #[test]
    fn the_schema_knows_every_key() {
        let schema = serde_json::to_string(&schemars::schema_for!(CatalogueConfig)).unwrap();
        for key in ["folder", "bucket", "region", "server_side_encryption", "allow_http"] {
            assert!(schema.contains(&format!("\"{key}\":")), "{key} is missing: {schema}");
        }
    }
}
