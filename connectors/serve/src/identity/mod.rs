//! Who asks: an `Authorization` header, and what proves it. Nobody is asked for what is refused without asking, and what
//! has to be asked for is paid from a bucket of the peer's address until it proves somebody.

mod issuer;
mod sts;
#[cfg(test)]
pub(crate) mod tests;
pub mod web;

use std::net::IpAddr;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use sealflow::acl::Identity;
use sealflow::acl::oidc::{OidcError, ProvenToken, Token};
use sealflow::acl::sts::StsError;
use sealflow::audit::Proof;
use sealflow::clock::{Clock, UnixMillis};
use sealflow::jose::Thumbprint;

use self::issuer::{AtOnce, Issuer, Refused};
pub use self::issuer::{BETWEEN, MAX_STALE, REFRESH};
use self::sts::Sts;
use self::web::Web;
use crate::config::{ConfigError, IdentityConfig, LimitsConfig};
use crate::limits::{Buckets, of_peer};
use crate::problem::{Code, Problem};

/// The scheme of presigned requests.
pub const STS_SCHEME: &str = "Sealflow-STS";
const BEARER: &str = "Bearer";

/// Somebody, proved.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Proven {
    /// Who.
    pub identity: Identity,
    /// The caller's ARN as STS told it, where it says more: for the log.
    pub caller: Option<String>,
    /// How.
    pub proof: Proof,
    /// Until when.
    pub expires: UnixMillis,
    /// The key that the proof commits to: answers may be sealed to it.
    pub commits_to: Option<Thumbprint>,
    /// Whether the proof counts only where answers are sealed to that key.
    pub is_bound: bool,
}

/// Proves who asks.
pub struct Prover {
    server_id: String,
    sts: Option<Sts>,
    issuers: Vec<Issuer>,
    web: Arc<dyn Web>,
    clock: Arc<dyn Clock>,
    unproven: Buckets,
}

impl Prover {
    /// By the configuration, which is checked.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn new(
        config: &IdentityConfig,
        limits: &LimitsConfig,
        web: Arc<dyn Web>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let issuers = config.oidc.iter();
        Ok(Self {
            server_id: config.server_id.clone(),
            sts: config.sts_trust()?.map(|trust| Sts::new(trust, config.sts_accounts())),
            issuers: issuers
                .map(|oidc| Issuer::new(oidc.trusted(), oidc.jwks_uri.clone()))
                .collect(),
            web,
            unproven: Buckets::new(limits.unproven_per_second, limits.unproven_burst, Arc::clone(&clock)),
            clock,
        })
    }

    /// Fetches every issuer's keys.
    ///
    /// # Errors
    /// The issuers whose keys are not there.
    pub async fn warm_up(&self) -> Result<(), Vec<String>> {
        let mut missing = Vec::new();
        for issuer in &self.issuers {
            if issuer.newer(None, &*self.web, &*self.clock).await.is_none() {
                missing.push(issuer.trusted.issuer.clone());
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    }

    /// Forgets what does not count any more: about every minute.
    pub async fn tick(&self) {
        if let Some(sts) = &self.sts {
            sts.tick(self.clock.now()).await;
        }
    }

    /// Who sent these headers from this address at `now`.
    ///
    /// # Errors
    /// [`Problem`]: 401, or 429 for an address that proved nobody too often, or 503 where who could say it is away.
    pub async fn prove(&self, headers: &HeaderMap, peer: IpAddr, now: UnixMillis) -> Result<Proven, Problem> {
        let peer = of_peer(peer);
        let proved = match credential(headers) {
            Ok(Presented::Token(text)) => self.prove_token(text, &peer, now).await,
            Ok(Presented::Request(text)) => self.prove_request(text, &peer, now).await,
            Err(problem) => Err(problem),
        };
        match proved {
            // Paid already, before somebody else was asked.
            Err((problem, true)) => Err(problem),
            Err((problem, false)) => Err(self.pay(&peer).err().unwrap_or(problem)),
            Ok(proven) => Ok(proven),
        }
    }

    async fn prove_token(&self, text: &str, peer: &str, now: UnixMillis) -> Result<Proven, Unproven> {
        if self.issuers.is_empty() {
            return Err(other_proof(
                "this service takes no tokens",
                "presign a request: `sealflow token`",
            ));
        }
        let token = Token::parse(text).map_err(unpaid)?;
        let claimed = token.claimed_issuer();
        let issuer = self
            .issuers
            .iter()
            .find(|issuer| claimed == Some(issuer.trusted.issuer.as_str()));
        let issuer = issuer.ok_or_else(|| unpaid(OidcError::OtherIssuer))?;
        let proven = match issuer.at_once(&token, now, &*self.clock) {
            AtOnce::Proven(proven) => proven,
            AtOnce::Refused(error) => return Err(unpaid(error)),
            AtOnce::Ask(tried) => {
                self.pay(peer).map_err(|problem| (problem, true))?;
                let asking = issuer.ask(&token, tried.as_ref(), now, (&*self.web, &*self.clock));
                match asking.await {
                    Ok(proven) => {
                        self.unproven.give_back(peer);
                        proven
                    }
                    Err(Refused::Token(error)) => return Err((error.into(), true)),
                    Err(Refused::NoKeys) => {
                        let detail = "the keys of the token's issuer cannot be fetched";
                        let problem =
                            Problem::new(Code::KeysUnavailable, detail, "try again").retry_after(BETWEEN.as_secs());
                        return Err((problem, true));
                    }
                }
            }
        };
        Ok(of_token(proven))
    }

    async fn prove_request(&self, text: &str, peer: &str, now: UnixMillis) -> Result<Proven, Unproven> {
        let Some(sts) = &self.sts else {
            let help = "send a token of an issuer that it trusts";
            return Err(other_proof("this service takes no presigned requests", help));
        };
        let request = sts.check(text, now).map_err(unpaid)?;
        let proven = match sts.remembered(&request).await {
            Some(proven) => proven,
            None => {
                self.pay(peer).map_err(|problem| (problem, true))?;
                let proven = sts.ask(&request, &*self.web).await;
                if proven.is_ok() {
                    self.unproven.give_back(peer);
                }
                proven.map_err(|error: StsError| (error.into(), true))?
            }
        };
        if !sts.serves(&proven.identity) {
            let help = "the service's operator lists accounts under `identity.sts.accounts`";
            let detail = "this service does not serve the caller's account";
            return Err((Problem::new(Code::RequestOtherAccount, detail, help), false));
        }
        Ok(Proven {
            identity: proven.identity,
            caller: proven.caller,
            proof: Proof::StsPresigned,
            expires: proven.counts_until,
            commits_to: proven.seal_to,
            // Whoever signed that wants no other answer: with it taken out of the body, there is none.
            is_bound: proven.seal_to.is_some(),
        })
    }

    fn pay(&self, peer: &str) -> Result<(), Problem> {
        self.unproven.take(peer, 1).map_err(|wait| {
            let detail = "too many requests of this address did not prove who sent them";
            Problem::new(Code::TooManyUnproven, detail, "mend what sends them, then try again")
                .retry_after(whole_seconds(wait))
        })
    }

    /// What `WWW-Authenticate` says to whom is not proved for that reason.
    pub(crate) fn challenges(&self, problem: &Problem) -> Vec<String> {
        let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let mut challenges = Vec::new();
        if !self.issuers.is_empty() {
            let mut bearer = format!("{BEARER} realm={}", quoted(&self.server_id));
            if problem.code.as_str().starts_with("token-") {
                bearer.push_str(&format!(
                    ", error=\"invalid_token\", error_description={}",
                    quoted(&ascii(&problem.detail))
                ));
            }
            challenges.push(bearer);
        }
        if self.sts.is_some() {
            challenges.push(format!("{STS_SCHEME} realm={}", quoted(&self.server_id)));
        }
        challenges
    }
}

impl std::fmt::Debug for Prover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prover")
            .field("server_id", &self.server_id)
            .finish_non_exhaustive()
    }
}

/// A reason, and whether the peer's bucket has paid for it.
type Unproven = (Problem, bool);

fn unpaid(error: impl Into<Problem>) -> Unproven {
    (error.into(), false)
}

fn other_proof(detail: &str, help: &str) -> Unproven {
    (Problem::new(Code::OtherProof, detail, help), false)
}

/// Seconds to wait, at least one.
pub(crate) fn whole_seconds(wait: std::time::Duration) -> u64 {
    wait.as_secs() + 1
}

/// Header values are visible ASCII.
fn ascii(text: &str) -> String {
    text.chars()
        .map(|c| if matches!(c, ' '..='~') { c } else { '?' })
        .collect()
}

/// What somebody proves themselves with, as it came. `Debug` shows none of it.
#[derive(Clone, Copy)]
pub enum Presented<'a> {
    /// A token of an issuer.
    Token(&'a str),
    /// A presigned request to STS.
    Request(&'a str),
}

impl std::fmt::Debug for Presented<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Token(_) => "Token([redacted])",
            Self::Request(_) => "Request([redacted])",
        })
    }
}

/// The proof in these headers, if they have one and no other.
pub(crate) fn presented(headers: &HeaderMap) -> Option<Presented<'_>> {
    credential(headers).ok()
}

/// The one `Authorization`: a scheme, one space, and characters of base64url with dots.
fn credential(headers: &HeaderMap) -> Result<Presented<'_>, Unproven> {
    let help = "send `Authorization: Bearer TOKEN`, or `Authorization: Sealflow-STS REQUEST` of `sealflow token`";
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let (first, second) = (given.next(), given.next());
    let Some(value) = first else {
        return Err(unpaid(Problem::new(
            Code::NoProof,
            "nothing says who asks: there is no Authorization",
            help,
        )));
    };
    if second.is_some() {
        return Err(other_proof("Authorization is there more than once", help));
    }
    let malformed = || other_proof("Authorization is not one of those that are taken", help);
    let (scheme, text) = value
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .ok_or_else(malformed)?;
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if text.is_empty() || !text.bytes().all(is_plain) {
        return Err(malformed());
    }
    // Schemes know no case (RFC 9110, section 11.1).
    if scheme.eq_ignore_ascii_case(BEARER) {
        Ok(Presented::Token(text))
    } else if scheme.eq_ignore_ascii_case(STS_SCHEME) {
        Ok(Presented::Request(text))
    } else {
        Err(malformed())
    }
}

/// A token that is bound to a key counts where answers are sealed to that key, and nowhere else: whoever stole it can read nothing.
fn of_token(proven: ProvenToken) -> Proven {
    Proven {
        identity: proven.identity,
        caller: None,
        proof: Proof::Oidc,
        expires: proven.expires,
        commits_to: proven.bound_to.or(proven.nonce),
        is_bound: proven.bound_to.is_some(),
    }
}

impl Proven {
    /// Whether it counts for an answer that is sealed to the key of that name, or to none.
    ///
    /// # Errors
    /// [`Code::TokenBound`] if it counts for sealed answers only, [`Code::SealToNotCommitted`] if it does not commit to that key.
    pub fn check_seal_to(&self, key: Option<Thumbprint>) -> Result<(), Problem> {
        match key {
            None if self.is_bound => Err(Problem::new(
                Code::TokenBound,
                "what proves who asks is bound to a key, to which no answer is sealed",
                "send that key as `seal_to`, or a proof that is not bound",
            )),
            Some(key) if self.commits_to != Some(key) => Err(Problem::new(
                Code::SealToNotCommitted,
                "what proves who asks does not commit to the key of `seal_to`",
                "have the key's RFC 7638 thumbprint in the token's `cnf.jkt` or `nonce`, or presign with `sealflow token --seal-to`",
            )),
            _ => Ok(()),
        }
    }
}
