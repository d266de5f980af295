//! What a worker may see of the catalogue, and write to it.

use sealflow::keys::{Catalogue, CatalogueError, Put};
use sealflow_enclave_protocol::message::{CatalogueAnswer, CatalogueQuestion};

/// What lies there is public, or proves itself.
const READABLE: [&str; 4] = ["policies/", "leases/", "keys/", "domains/"];
/// Envelopes of data keys are all that a worker writes.
const WRITABLE: &str = "keys/";

/// The answer to a worker's question.
pub(crate) async fn answer(catalogue: &dyn Catalogue, question: CatalogueQuestion) -> CatalogueAnswer {
    let answered = match &question {
        CatalogueQuestion::List(path) if is_readable(&format!("{path}/")) => {
            catalogue.list(path).await.map(CatalogueAnswer::Names)
        }
        CatalogueQuestion::Get(path) if is_readable(path) => catalogue.get(path).await.map(CatalogueAnswer::Object),
        CatalogueQuestion::PutIfAbsent(path, bytes) if path.starts_with(WRITABLE) => {
            let put = catalogue.put_if_absent(path, bytes).await;
            put.map(|put| CatalogueAnswer::Put {
                is_new: put == Put::Created,
            })
        }
        CatalogueQuestion::List(path) | CatalogueQuestion::Get(path) | CatalogueQuestion::PutIfAbsent(path, _) => {
            Err(CatalogueError::NotPermitted { path: path.clone() })
        }
    };
    answered.unwrap_or_else(|error| CatalogueAnswer::Failed {
        is_retryable: error.is_retryable(),
        is_not_permitted: matches!(error, CatalogueError::NotPermitted { .. }),
        reason: error.to_string(),
    })
}

fn is_readable(path: &str) -> bool {
    READABLE.iter().any(|prefix| path.starts_with(prefix))
}
