//! Schemas in the catalogue: what a table's columns were, version by version, so that each one only adds to the last.
//!
//! They are not signed, so nobody takes a schema from there: a pipeline has its own, and this says whether it follows.

use super::schema::{SchemaError, TableSchema};
use crate::keys::{Catalogue, CatalogueError, Put};

/// Why a schema cannot be used with those of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The catalogue did not answer.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// It does not follow the newest one.
    #[error(transparent)]
    Follows(#[from] SchemaError),
    /// What lies there is no schema of this dataset and version.
    #[error("{path} is not the schema that belongs there")]
    Misplaced {
        /// Where it is.
        path: String,
    },
    /// The version is there with other fields.
    #[error("{path} has other fields than version {version} that is to be used")]
    Conflict {
        /// Where it is.
        path: String,
        /// The version.
        version: u64,
    },
    /// A newer one is there: rows of both would make a table whose columns come and go.
    #[error("version {newest} of the schema is in use, and version {version} is older")]
    Older {
        /// The version that was to be used.
        version: u64,
        /// The highest that is there.
        newest: u64,
    },
}

impl RegisterError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Catalogue(_) => {
                "check the catalogue, and that this process may read and create below schemas/".to_owned()
            }
            Self::Follows(error) => error.help().to_owned(),
            Self::Misplaced { .. } => "find out who put it there, and take it away".to_owned(),
            Self::Conflict { .. } => "raise `version` with every change of the schema".to_owned(),
            Self::Older { newest, .. } => format!("use version {newest}, or write one that follows it"),
        }
    }
}

fn folder(dataset: &str) -> String {
    format!("schemas/{dataset}")
}

fn path(dataset: &str, version: u64) -> String {
    format!("{}/{version:010}", folder(dataset))
}

/// The newest schema of `dataset` in the catalogue, and where it is.
///
/// # Errors
/// [`RegisterError::Catalogue`], [`RegisterError::Misplaced`]
async fn newest(catalogue: &dyn Catalogue, dataset: &str) -> Result<Option<(String, TableSchema)>, RegisterError> {
    let Some(newest) = catalogue.list(&folder(dataset)).await?.into_iter().max() else {
        return Ok(None);
    };
    let schema = load(catalogue, dataset, &newest).await?;
    Ok(Some((newest, schema)))
}

/// The schema at `place`, which must be one of `dataset` and of the version that its name says.
async fn load(catalogue: &dyn Catalogue, dataset: &str, place: &str) -> Result<TableSchema, RegisterError> {
    let misplaced = || RegisterError::Misplaced { path: place.to_owned() };
    let bytes = catalogue.get(place).await?.ok_or_else(misplaced)?;
    let schema = TableSchema::parse(&bytes).map_err(|_| misplaced())?;
    if path(schema.dataset(), schema.version()) != place || schema.dataset() != dataset {
        return Err(misplaced());
    }
    Ok(schema)
}

/// Whether `schema` is the newest of its dataset, or follows it.
///
/// # Errors
/// [`RegisterError`]
pub async fn check_follows(catalogue: &dyn Catalogue, schema: &TableSchema) -> Result<(), RegisterError> {
    let Some((path, newest)) = newest(catalogue, schema.dataset()).await? else {
        return Ok(());
    };
    let version = schema.version();
    if newest == *schema {
        return Ok(());
    }
    if newest.version() > version {
        let newest = newest.version();
        return Err(RegisterError::Older { version, newest });
    }
    if newest.version() == version {
        return Err(RegisterError::Conflict { path, version });
    }
    Ok(newest.evolve(schema)?)
}

/// Puts `schema` into the catalogue, where it is the newest of its dataset from now on.
///
/// # Errors
/// [`RegisterError`] if it does not follow the newest one; nothing is put then.
pub async fn register(catalogue: &dyn Catalogue, schema: &TableSchema) -> Result<(), RegisterError> {
    check_follows(catalogue, schema).await?;
    let path = path(schema.dataset(), schema.version());
    let put = catalogue.put_if_absent(&path, schema.to_json().as_bytes()).await?;
    // Another instance may have been faster: with the same one, or another version.
    check_follows(catalogue, schema).await?;
    if put == Put::Created {
        let mut older = catalogue.list(&folder(schema.dataset())).await?;
        older.retain(|other| *other < path);
        if let Some(before) = older.into_iter().max() {
            load(catalogue, schema.dataset(), &before).await?.evolve(schema)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::testing::MemoryCatalogue;

    fn schema(version: u64, fields: &str) -> TableSchema {
        let text = format!("{{ dataset: d, version: {version}, fields: [ {fields} ] }}");
        TableSchema::parse(text.as_bytes()).unwrap()
    }

    #[tokio::test]
    async fn a_schema_follows_the_newest_one_or_is_refused_and_nothing_is_put() {
        let catalogue = MemoryCatalogue::new();
        let id = "{ name: id, type: string }";
        let first = schema(1, id);
        register(&catalogue, &first).await.unwrap();
        register(&catalogue, &first).await.unwrap();
        assert_eq!(
            catalogue.get("schemas/d/0000000001").await.unwrap().unwrap(),
            first.to_json().as_bytes()
        );
        let other = schema(1, "{ name: id, type: int64 }");
        assert!(matches!(
            register(&catalogue, &other).await,
            Err(RegisterError::Conflict { version: 1, .. })
        ));
        let removed = schema(2, "{ name: other, type: string }");
        assert!(matches!(
            register(&catalogue, &removed).await,
            Err(RegisterError::Follows(SchemaError::Removed { .. }))
        ));
        let more = schema(3, &format!("{id}, {{ name: at, type: timestamp }}"));
        register(&catalogue, &more).await.unwrap();
        assert_eq!(
            register(&catalogue, &first).await,
            Err(RegisterError::Older { version: 1, newest: 3 })
        );
        assert_eq!(catalogue.list("schemas/d").await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn of_two_that_are_put_at_once_the_one_that_does_not_follow_is_refused() {
        let catalogue = MemoryCatalogue::new();
        let id = "{ name: id, type: string }";
        register(&catalogue, &schema(1, id)).await.unwrap();
        // Put by somebody who looked before the other was there.
        let other = schema(2, &format!("{id}, {{ name: at, type: int64 }}"));
        let later = schema(3, &format!("{id}, {{ name: at, type: string }}"));
        catalogue
            .put_if_absent(&path("d", 3), later.to_json().as_bytes())
            .await
            .unwrap();
        assert!(matches!(
            register(&catalogue, &other).await,
            Err(RegisterError::Older { newest: 3, .. })
        ));
    }

    #[tokio::test]
    async fn what_lies_in_the_place_of_a_schema_is_not_followed() {
        let catalogue = MemoryCatalogue::new();
        let elsewhere = schema(2, "{ name: id, type: string }").to_json();
        catalogue
            .put_if_absent("schemas/d/0000000001", elsewhere.as_bytes())
            .await
            .unwrap();
        let answer = register(&catalogue, &schema(3, "{ name: id, type: string }")).await;
        assert!(matches!(answer, Err(RegisterError::Misplaced { .. })), "{answer:?}");
    }
}
