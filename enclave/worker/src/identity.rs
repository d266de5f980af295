//! Who reads: proved inside the worker, by tokens of measured issuers and by requests to measured hosts of STS, over TLS that ends here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sealflow::acl::Identity;
use sealflow::acl::oidc::{Token, TrustedIssuer};
use sealflow::acl::sts::{CheckedRequest, SEAL_TO_HEADER, SERVER_ID_HEADER, StsError, StsTrust, caller};
use sealflow::audit;
use sealflow::clock::{Clock, Steady, UnixMillis};
use sealflow::jose::jwks::MAX_JWKS_BYTES;
use sealflow::jose::{JwkSet, Thumbprint};
use sealflow_enclave_protocol::message::{Failure, FailureKind, Proof};
use tokio::sync::Mutex;

/// How long an issuer's keys count before they are fetched again.
const REFRESH: Duration = Duration::from_secs(600);
/// How long after a fetch the next one may be, whatever a token names.
const BETWEEN: Duration = Duration::from_secs(10);
/// The longest answer of STS.
const MAX_STS_ANSWER: usize = 64 << 10;

/// Fetches from outside: one GET over TLS, redirects never followed.
#[async_trait]
pub trait Fetch: Send + Sync + fmt::Debug {
    /// Status and body, which has at most `most` bytes; `None` if there is no answer.
    async fn get(&self, url: &str, headers: &[(&'static str, &str)], most: usize) -> Option<(u16, Vec<u8>)>;
}

/// An issuer of tokens that the worker trusts.
#[derive(Debug)]
pub struct Issuer {
    trusted: TrustedIssuer,
    jwks_uri: String,
    fetch: Arc<dyn Fetch>,
    keys: Mutex<Option<(Arc<JwkSet>, Steady)>>,
}

impl Issuer {
    /// That issuer, whose keys are fetched from there.
    #[must_use]
    pub fn new(trusted: TrustedIssuer, jwks_uri: String, fetch: Arc<dyn Fetch>) -> Self {
        Self {
            trusted,
            jwks_uri,
            fetch,
            keys: Mutex::default(),
        }
    }

    /// Its keys, not older than `most`.
    async fn keys(&self, most: Duration, clock: &dyn Clock) -> Option<Arc<JwkSet>> {
        // Held while they are fetched: others wait for the same answer.
        let mut known = self.keys.lock().await;
        let now = clock.steady();
        if let Some((keys, since)) = known.as_ref().filter(|(_, since)| now.since(*since) < most) {
            let _ = since;
            return Some(Arc::clone(keys));
        }
        let (status, body) = self.fetch.get(&self.jwks_uri, &[], MAX_JWKS_BYTES + 1).await?;
        let keys = Arc::new(JwkSet::parse(&body).ok().filter(|_| status == 200)?);
        *known = Some((Arc::clone(&keys), now));
        Some(keys)
    }
}

/// Proofs by STS that the worker takes.
pub struct Sts {
    trust: StsTrust,
    fetch: Arc<dyn Fetch>,
}

impl Sts {
    /// By these hosts, for this server.
    #[must_use]
    pub fn new(trust: StsTrust, fetch: Arc<dyn Fetch>) -> Self {
        Self { trust, fetch }
    }
}

/// Proves who reads.
pub struct Prover {
    /// Who vouches by tokens.
    pub issuers: Vec<Issuer>,
    /// Who vouches by answering presigned requests.
    pub sts: Option<Sts>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// Somebody, proved.
#[derive(Clone, Debug)]
pub struct Proven {
    /// Who.
    pub identity: Identity,
    /// How.
    pub proof: audit::Proof,
    /// Until when.
    pub expires: UnixMillis,
    /// The key that the proof commits to. Without one nothing is answered: the host could put its own into the request.
    pub commits_to: Option<Thumbprint>,
}

impl Prover {
    /// Who that is.
    ///
    /// # Errors
    /// [`Failure`]
    pub async fn prove(&self, proof: &Proof<'_>) -> Result<Proven, Failure> {
        match proof {
            Proof::Oidc(token) => self.by_token(token).await,
            Proof::Sts(request) => self.by_sts(request).await,
        }
    }

    async fn by_token(&self, text: &str) -> Result<Proven, Failure> {
        let token = Token::parse(text).map_err(refused)?;
        let issuer = self
            .issuers
            .iter()
            .find(|issuer| token.claimed_issuer() == Some(&issuer.trusted.issuer));
        let issuer = issuer.ok_or_else(|| refused("the token is of an issuer that the enclave does not trust"))?;
        let away = || Failure {
            kind: FailureKind::Unavailable,
            reason: "the keys of the token's issuer cannot be fetched".to_owned(),
        };
        let keys = issuer.keys(REFRESH, &*self.clock).await.ok_or_else(away)?;
        let now = self.clock.now();
        let verified = match token.verify(&issuer.trusted, &keys, now) {
            Err(error) if error.may_be_a_newer_key() => {
                let keys = issuer.keys(BETWEEN, &*self.clock).await.ok_or_else(away)?;
                token.verify(&issuer.trusted, &keys, now)
            }
            verified => verified,
        };
        let proven = verified.map_err(refused)?;
        Ok(Proven {
            identity: proven.identity,
            proof: audit::Proof::Oidc,
            expires: proven.expires,
            commits_to: proven.bound_to.or(proven.nonce),
        })
    }

    async fn by_sts(&self, text: &str) -> Result<Proven, Failure> {
        let sts = self
            .sts
            .as_ref()
            .ok_or_else(|| refused("the enclave takes no requests to STS"))?;
        let request = CheckedRequest::parse(text, &sts.trust, self.clock.now()).map_err(of_sts)?;
        let seal_to = request.seal_to().map(|key| key.to_string());
        let mut headers = vec![(SERVER_ID_HEADER, request.server_id())];
        headers.extend(seal_to.as_deref().map(|key| (SEAL_TO_HEADER, key)));
        let answer = sts.fetch.get(request.url(), &headers, MAX_STS_ANSWER).await;
        let (status, body) = answer.ok_or_else(|| of_sts(StsError::Unavailable))?;
        Ok(Proven {
            identity: caller(status, &body).map_err(of_sts)?,
            proof: audit::Proof::StsPresigned,
            expires: request.counts_until(),
            commits_to: request.seal_to(),
        })
    }
}

impl fmt::Debug for Prover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prover")
            .field("issuers", &self.issuers)
            .finish_non_exhaustive()
    }
}

fn of_sts(error: StsError) -> Failure {
    match error.is_retryable() {
        true => Failure {
            kind: FailureKind::Unavailable,
            reason: error.to_string(),
        },
        false => refused(error),
    }
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
pub(crate) fn refused(reason: impl ToString) -> Failure {
    Failure {
        kind: FailureKind::Refused,
        reason: reason.to_string(),
    }
}
