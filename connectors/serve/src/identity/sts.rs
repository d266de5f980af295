//! Presigned requests: sent on once, and whom they proved remembered until they are too old.

use sealflow::acl::Identity;
use sealflow::acl::sts::{
    CheckedRequest, MAX_ANSWER_BYTES, SEAL_TO_HEADER, SERVER_ID_HEADER, StsError, StsTrust, caller, caller_arn,
};
use sealflow::clock::UnixMillis;
use sealflow::jose::Thumbprint;
use sha2::{Digest as _, Sha256};

use super::web::Web;

/// The most requests that are remembered; they count for five minutes at most.
const MOST_REMEMBERED: u64 = 16_384;

/// Asks STS whose signature a request has.
pub(super) struct Sts {
    trust: StsTrust,
    /// Empty: all.
    accounts: Vec<String>,
    /// By the SHA-256 of the request's text. Whoever has that cannot send the request again.
    proven: moka::future::Cache<[u8; 32], Proven>,
}

#[derive(Clone)]
pub(super) struct Proven {
    pub(super) identity: Identity,
    /// The ARN as STS told it, where it says more.
    pub(super) caller: Option<String>,
    pub(super) counts_until: UnixMillis,
    /// The key that the caller commits to.
    pub(super) seal_to: Option<Thumbprint>,
}

/// A presigned request that may be sent.
pub(super) struct Request {
    hash: [u8; 32],
    checked: CheckedRequest,
}

impl Sts {
    pub(super) fn new(trust: StsTrust, accounts: Vec<String>) -> Self {
        Self {
            trust,
            accounts,
            proven: moka::future::Cache::new(MOST_REMEMBERED),
        }
    }

    /// Whether callers of that account are taken.
    pub(super) fn serves(&self, who: &Identity) -> bool {
        let account = match who {
            Identity::Role { account, .. } | Identity::User { account, .. } => account,
            _ => return false,
        };
        self.accounts.is_empty() || self.accounts.contains(account)
    }

    /// Checks a request; sends nothing.
    pub(super) fn check(&self, text: &str, now: UnixMillis) -> Result<Request, StsError> {
        let checked = CheckedRequest::parse(text, &self.trust, now)?;
        Ok(Request {
            hash: Sha256::digest(text).into(),
            checked,
        })
    }

    /// Whom it proved before.
    pub(super) async fn remembered(&self, request: &Request) -> Option<Proven> {
        self.proven.get(&request.hash).await
    }

    /// Asks; equal requests at once ask once. What is refused is not remembered.
    pub(super) async fn ask(&self, request: &Request, web: &dyn Web) -> Result<Proven, StsError> {
        let checked = &request.checked;
        let asked = self.proven.try_get_with(request.hash, async {
            let seal_to = checked.seal_to().map(|key| key.to_string());
            let mut headers = vec![(SERVER_ID_HEADER, checked.server_id())];
            headers.extend(seal_to.as_deref().map(|key| (SEAL_TO_HEADER, key)));
            let answer = web.get(checked.url(), &headers, MAX_ANSWER_BYTES + 1).await;
            let answer = answer.map_err(|error| {
                tracing::warn!(%error, "STS does not answer");
                StsError::Unavailable
            })?;
            let identity = caller(answer.status, &answer.body)?;
            let arn = caller_arn(&answer.body).filter(|arn| *arn != identity.to_string());
            Ok(Proven {
                identity,
                caller: arn,
                counts_until: checked.counts_until(),
                seal_to: checked.seal_to(),
            })
        });
        asked.await.map_err(|error: std::sync::Arc<StsError>| *error)
    }

    /// Forgets requests that are too old.
    pub(super) async fn tick(&self, now: UnixMillis) {
        for (hash, proven) in &self.proven {
            if now >= proven.counts_until {
                self.proven.invalidate(hash.as_ref()).await;
            }
        }
        self.proven.run_pending_tasks().await;
    }

    #[cfg(test)]
    pub(super) fn proven_count(&self) -> u64 {
        self.proven.entry_count()
    }
}
