//! The catalogue through the host's eyes. Nothing of it is believed that is not signed or does not prove itself; the one thing that the
//! worker writes are the envelopes of its data keys.

use async_trait::async_trait;
use sealflow::keys::{Catalogue, CatalogueError, Put};
use sealflow_enclave_protocol::frame::Kind;
use sealflow_enclave_protocol::link::{Asker, Gone};
use sealflow_enclave_protocol::message::{CatalogueAnswer, CatalogueQuestion};
use sealflow_enclave_protocol::wire::Malformed;

/// A catalogue that the host reads and writes.
#[derive(Clone, Debug)]
pub struct HostCatalogue(Asker);

impl HostCatalogue {
    /// Asked through this link.
    #[must_use]
    pub fn new(asker: Asker) -> Self {
        Self(asker)
    }

    async fn ask(&self, question: &CatalogueQuestion, path: &str) -> Result<CatalogueAnswer, CatalogueError> {
        let unavailable = |reason: String| CatalogueError::Unavailable { reason };
        let answer = self.0.ask(Kind::Catalogue, question.to_body()).await;
        let answer = answer.map_err(|Gone| unavailable("the host is gone".to_owned()))?;
        match CatalogueAnswer::read(&answer.body) {
            Ok(CatalogueAnswer::Failed {
                is_not_permitted: true, ..
            }) => Err(CatalogueError::NotPermitted { path: path.to_owned() }),
            Ok(CatalogueAnswer::Failed { reason, .. }) => Err(unavailable(reason)),
            Ok(answer) => Ok(answer),
            Err(Malformed) => Err(unavailable("the host's answer is none".to_owned())),
        }
    }
}

fn other_answer() -> CatalogueError {
    CatalogueError::Unavailable {
        reason: "the host answered something that was not asked".to_owned(),
    }
}

#[async_trait]
impl Catalogue for HostCatalogue {
    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>, CatalogueError> {
        match self.ask(&CatalogueQuestion::Get(path.to_owned()), path).await? {
            CatalogueAnswer::Object(object) => Ok(object),
            _ => Err(other_answer()),
        }
    }

    async fn put_if_absent(&self, path: &str, bytes: &[u8]) -> Result<Put, CatalogueError> {
        let question = CatalogueQuestion::PutIfAbsent(path.to_owned(), bytes.to_vec());
        match self.ask(&question, path).await? {
            CatalogueAnswer::Put { is_new: true } => Ok(Put::Created),
            CatalogueAnswer::Put { is_new: false } => Ok(Put::Exists),
            _ => Err(other_answer()),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>, CatalogueError> {
        match self.ask(&CatalogueQuestion::List(prefix.to_owned()), prefix).await? {
            CatalogueAnswer::Names(names) => Ok(names),
            _ => Err(other_answer()),
        }
    }
}
