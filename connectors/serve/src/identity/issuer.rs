//! The keys of one issuer: fetched, kept, and fetched again when a token names one that is newer.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sealflow::acl::oidc::{OidcError, ProvenToken, Token, TrustedIssuer};
use sealflow::clock::{Clock, Steady, UnixMillis};
use sealflow::jose::JwkSet;
use sealflow::jose::jwks::MAX_JWKS_BYTES;
use tokio::sync::Mutex;

use super::web::Web;

/// How long a key set counts before it is fetched again.
pub const REFRESH: Duration = Duration::from_secs(600);
/// How much longer the last one counts while the issuer does not answer.
pub const MAX_STALE: Duration = Duration::from_secs(3_600);
/// How long after a fetch the next one may be, whoever asks for a newer key.
pub const BETWEEN: Duration = Duration::from_secs(10);

/// An issuer and its keys.
pub(super) struct Issuer {
    pub(super) trusted: TrustedIssuer,
    jwks_uri: String,
    known: RwLock<Option<Known>>,
    /// When the last fetch began. Held during one, so that there is one at a time.
    fetching: Mutex<Option<Steady>>,
}

#[derive(Clone)]
struct Known {
    keys: Arc<JwkSet>,
    since: Steady,
}

/// What can be said of a token without asking anybody.
pub(super) enum AtOnce {
    /// It proves somebody.
    Proven(ProvenToken),
    /// It proves nobody, whatever the issuer's keys are now.
    Refused(OidcError),
    /// The keys are not there, too old, or older than the token's. With those that were tried.
    Ask(Option<Arc<JwkSet>>),
}

/// Why a token proves nobody, after its issuer was asked.
pub(super) enum Refused {
    /// The token's fault.
    Token(OidcError),
    /// There are no keys of the issuer.
    NoKeys,
}

impl Issuer {
    pub(super) fn new(trusted: TrustedIssuer, jwks_uri: String) -> Self {
        Self {
            trusted,
            jwks_uri,
            known: RwLock::default(),
            fetching: Mutex::default(),
        }
    }

    /// Checks a token by the keys that are there.
    pub(super) fn at_once(&self, token: &Token<'_>, now: UnixMillis, clock: &dyn Clock) -> AtOnce {
        let Some(keys) = self.kept(clock, REFRESH) else {
            return AtOnce::Ask(None);
        };
        match token.verify(&self.trusted, &keys, now) {
            Ok(proven) => AtOnce::Proven(proven),
            Err(error) if error.may_be_a_newer_key() => AtOnce::Ask(Some(keys)),
            Err(error) => AtOnce::Refused(error),
        }
    }

    /// Checks a token by newer keys than `tried`, if there are any.
    pub(super) async fn ask(
        &self,
        token: &Token<'_>,
        tried: Option<&Arc<JwkSet>>,
        now: UnixMillis,
        (web, clock): (&dyn Web, &dyn Clock),
    ) -> Result<ProvenToken, Refused> {
        let keys = self.newer(tried, web, clock).await;
        // What is there may be older than the token's key, but better than nothing while the issuer is away.
        let keys = keys
            .or_else(|| self.kept(clock, REFRESH + MAX_STALE))
            .ok_or(Refused::NoKeys)?;
        token.verify(&self.trusted, &keys, now).map_err(Refused::Token)
    }

    /// Fetches the keys now, if that was not done just before.
    pub(super) async fn newer(
        &self,
        tried: Option<&Arc<JwkSet>>,
        web: &dyn Web,
        clock: &dyn Clock,
    ) -> Option<Arc<JwkSet>> {
        let mut last = match self.fetching.try_lock() {
            Ok(last) => last,
            // Somebody fetches: whoever has keys that still count does not wait for it.
            Err(_) if tried.is_none() && self.kept(clock, REFRESH + MAX_STALE).is_some() => return None,
            Err(_) => self.fetching.lock().await,
        };
        let is_newer = |keys: &Arc<JwkSet>| tried.is_none_or(|tried| !Arc::ptr_eq(keys, tried));
        if let Some(keys) = self.kept(clock, REFRESH).filter(is_newer) {
            return Some(keys);
        }
        let now = clock.steady();
        if last.is_some_and(|last| now.since(last) < BETWEEN) {
            return None;
        }
        *last = Some(now);
        let keys = match self.fetch(web).await {
            Ok(keys) => Arc::new(keys),
            Err(reason) => {
                tracing::warn!(
                    issuer = self.trusted.issuer,
                    reason,
                    "the issuer's keys cannot be fetched"
                );
                return None;
            }
        };
        tracing::info!(
            issuer = self.trusted.issuer,
            keys = keys.len(),
            skipped = keys.skipped(),
            "took the issuer's keys"
        );
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(Known {
            keys: Arc::clone(&keys),
            since: clock.steady(),
        });
        Some(keys)
    }

    async fn fetch(&self, web: &dyn Web) -> Result<JwkSet, String> {
        let answer = web.get(&self.jwks_uri, &[], MAX_JWKS_BYTES + 1).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.status != 200 {
            return Err(format!("its status is {}", answer.status));
        }
        JwkSet::parse(&answer.body).map_err(|error| error.to_string())
    }

    /// The keys, if they are not older than that.
    fn kept(&self, clock: &dyn Clock, most: Duration) -> Option<Arc<JwkSet>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        (clock.steady().since(known.since) < most).then_some(known.keys)
    }
}
