//! OIDC tokens: from a compact JWT and its issuer's keys to who somebody is. Fetches nothing.
//!
//! Taken are ID tokens and JWT access tokens (RFC 9068) as issuers sign them: RS256, ES256 or EdDSA, whichever fits the key.
//! What a token says of itself (`jwk`, `jku`, `x5u`, `x5c` in its header) never chooses the key. `email` and other claims
//! that people can change say nothing here: who somebody is, are `iss`, `sub` and the groups.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Map, Value};

use super::Identity;
use super::principal::is_deceptive;
use crate::clock::UnixMillis;
use crate::jose::{JwkSet, NoKey, Thumbprint, TokenAlgorithm, from_base64url, from_strict_json};

/// The longest token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// The most groups of a token. One with more is refused, not cut: the group that a policy denies may be among the rest.
pub const MAX_GROUPS: usize = 256;
/// The longest subject (OIDC Core, section 2) and group, in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// How far in the future `iat` and `nbf` may be: the clocks of issuer and reader differ. `exp` gets no such grace.
pub const MAX_SKEW: Duration = Duration::from_secs(60);
/// The claim that lists groups, unless configuration names another.
pub const DEFAULT_GROUPS_CLAIM: &str = "groups";

/// An issuer whose tokens count, and what they must say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrustedIssuer {
    /// Exactly `iss`.
    pub issuer: String,
    /// `aud` must be, or hold, one of these.
    pub audiences: Vec<String>,
    /// The claim that lists the groups: a list of texts, or one text.
    pub groups_claim: String,
}

impl TrustedIssuer {
    /// With groups in [`DEFAULT_GROUPS_CLAIM`].
    #[must_use]
    pub fn new(issuer: impl Into<String>, audiences: Vec<String>) -> Self {
        Self {
            issuer: issuer.into(),
            audiences,
            groups_claim: DEFAULT_GROUPS_CLAIM.to_owned(),
        }
    }

    /// With groups in another claim.
    #[must_use]
    pub fn with_groups_claim(mut self, claim: impl Into<String>) -> Self {
        self.groups_claim = claim.into();
        self
    }
}

/// Why a token proves nothing. Never holds any part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OidcError {
    /// Over [`MAX_TOKEN_BYTES`].
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLarge,
    /// Not three parts with dots between, each canonical base64url.
    #[error("not a compact JWT (HEADER.CLAIMS.SIGNATURE)")]
    NotCompact,
    /// The header is no JSON object, repeats a member, or has one of the wrong type.
    #[error("the header of the token is malformed")]
    BadHeader,
    /// `crit`, `b64`, `zip`, `enc`, `cty`: they change what the rest means.
    #[error("the header of the token has {name}, which is not taken")]
    UnexpectedHeader {
        /// Which.
        name: &'static str,
    },
    /// `none`, `HS256`, `RS512`, …
    #[error("the token's alg is not RS256, ES256 or EdDSA")]
    OtherAlgorithm,
    /// Neither absent nor `JWT` nor `at+jwt`.
    #[error("the token's typ is not that of an identity or access token")]
    OtherType,
    /// The claims are no JSON object, or repeat a member.
    #[error("the claims of the token are malformed")]
    BadClaims,
    /// A claim that is needed is not there, or of the wrong form.
    #[error("the claim {name} is missing or malformed")]
    BadClaim {
        /// Which.
        name: &'static str,
    },
    /// `iss` is not the issuer.
    #[error("the token is of an issuer that is not trusted")]
    OtherIssuer,
    /// The issuer's key set has no such key. It may be newer than the set.
    #[error("the token's key is not in the issuer's key set")]
    UnknownKey,
    /// The key of that name is for another algorithm.
    #[error("the token's alg does not fit its key")]
    OtherKeyType,
    /// More than one key would do.
    #[error("the issuer's key set has more than one key that the token may mean")]
    AmbiguousKey,
    /// The signature is not that of the key.
    #[error("the signature of the token does not verify")]
    BadSignature,
    /// `aud` holds none of ours.
    #[error("the token is for another audience")]
    OtherAudience,
    /// `exp` has come.
    #[error("the token ended at {at}")]
    Expired {
        /// When.
        at: UnixMillis,
    },
    /// `nbf` or `iat` is in the future.
    #[error("the token begins at {at}, in the future")]
    NotYet {
        /// When.
        at: UnixMillis,
    },
    /// Over [`MAX_GROUPS`].
    #[error("the token lists more than {MAX_GROUPS} groups")]
    TooManyGroups,
    /// The issuer left the groups out and says where to ask for them: a denied group could be among them.
    #[error("the token does not list its groups but refers to them")]
    GroupsElsewhere,
    /// A security event or logout token, which says nothing about who asks.
    #[error("the token reports an event and is nobody's identity")]
    EventToken,
}

impl OidcError {
    /// What to do about it.
    #[must_use]
    pub fn help(self) -> &'static str {
        match self {
            Self::Expired { .. } => "get a new token from the issuer",
            Self::NotYet { .. } => "set the clocks of this machine and of the issuer",
            Self::OtherAudience => "ask the issuer for a token whose audience is this service",
            Self::OtherIssuer => "use a token of an issuer that the service trusts",
            Self::UnknownKey | Self::AmbiguousKey | Self::OtherKeyType => {
                "check that the configured key set is this issuer's"
            }
            Self::TooManyGroups | Self::GroupsElsewhere => {
                "have the issuer list only the groups that this service needs"
            }
            _ => "use a token as the issuer signed it",
        }
    }

    /// Whether a newer key set may hold the key.
    #[must_use]
    pub fn may_be_a_newer_key(self) -> bool {
        matches!(self, Self::UnknownKey)
    }
}

/// Who a token proved somebody to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProvenToken {
    /// Issuer, subject and groups.
    pub identity: Identity,
    /// The first moment at which it does not count any more.
    pub expires: UnixMillis,
    /// RFC 7638 thumbprint of the key that the token is bound to (`cnf.jkt`, RFC 9449): it counts only together with a
    /// proof that its bearer has that key.
    pub bound_to: Option<Thumbprint>,
    /// The key that its claim `nonce` names, if that is a thumbprint: whoever asked for the token chose it, so that it commits to
    /// that key. It binds nothing.
    pub nonce: Option<Thumbprint>,
}

/// A token that was read, of which nothing is believed yet.
pub struct Token<'a> {
    signed: &'a str,
    signature: Vec<u8>,
    algorithm: TokenAlgorithm,
    kid: Option<String>,
    claims: Map<String, Value>,
}

impl<'a> Token<'a> {
    /// Reads the three parts.
    ///
    /// # Errors
    /// [`OidcError`] for what no key could make good.
    pub fn parse(text: &'a str) -> Result<Self, OidcError> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(OidcError::TooLarge);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(OidcError::NotCompact)?;
        let (header, claims) = signed.split_once('.').ok_or(OidcError::NotCompact)?;
        let decode = |part: &str| from_base64url(part).ok_or(OidcError::NotCompact);
        let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
        let (algorithm, kid) = read_header(&header)?;
        let Some(Value::Object(claims)) = from_strict_json(&claims) else {
            return Err(OidcError::BadClaims);
        };
        Ok(Self {
            signed,
            signature,
            algorithm,
            kid,
            claims,
        })
    }

    /// Whose token it says it is: to choose the key set, and for nothing else.
    #[must_use]
    pub fn claimed_issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }

    /// Believes it, if a key of the issuer signed it and it says what it must at `now`.
    ///
    /// # Errors
    /// [`OidcError`]; the signature is looked at before all claims but `iss`.
    pub fn verify(&self, trusted: &TrustedIssuer, keys: &JwkSet, now: UnixMillis) -> Result<ProvenToken, OidcError> {
        let issuer = self.claimed_issuer().ok_or(OidcError::BadClaim { name: "iss" })?;
        if issuer != trusted.issuer {
            return Err(OidcError::OtherIssuer);
        }
        let key = keys.find(self.algorithm, self.kid.as_deref());
        let key = key.map_err(|why| match why {
            NoKey::Unknown => OidcError::UnknownKey,
            NoKey::OtherType => OidcError::OtherKeyType,
            NoKey::Ambiguous => OidcError::AmbiguousKey,
        })?;
        if !key.verifies(self.signed.as_bytes(), &self.signature) {
            return Err(OidcError::BadSignature);
        }
        let expires = self.check_times(now)?;
        self.check_audience(trusted)?;
        if self.claims.contains_key("events") {
            return Err(OidcError::EventToken);
        }
        let identity = Identity::Oidc {
            issuer: issuer.to_owned(),
            subject: self.subject()?,
            groups: self.groups(&trusted.groups_claim)?,
            lists_groups: self.claims.contains_key(&trusted.groups_claim),
        };
        Ok(ProvenToken {
            identity,
            expires,
            bound_to: self.bound_to()?,
            nonce: self
                .claims
                .get("nonce")
                .and_then(Value::as_str)
                .and_then(|text| text.parse().ok()),
        })
    }

    fn check_times(&self, now: UnixMillis) -> Result<UnixMillis, OidcError> {
        let moment = |name| match self.claims.get(name) {
            None => Ok(None),
            Some(value) => numeric_date(value).map(Some).ok_or(OidcError::BadClaim { name }),
        };
        let missing = |name| move || OidcError::BadClaim { name };
        let expires = moment("exp")?.ok_or_else(missing("exp"))?;
        let issued = moment("iat")?.ok_or_else(missing("iat"))?;
        if now >= expires {
            return Err(OidcError::Expired { at: expires });
        }
        let begins = moment("nbf")?.map_or(issued, |not_before| not_before.max(issued));
        if begins > now.plus(MAX_SKEW) {
            return Err(OidcError::NotYet { at: begins });
        }
        Ok(expires)
    }

    fn check_audience(&self, trusted: &TrustedIssuer) -> Result<(), OidcError> {
        let is_ours = |audience: &str| trusted.audiences.iter().any(|ours| ours == audience);
        let malformed = OidcError::BadClaim { name: "aud" };
        let found = match self.claims.get("aud") {
            Some(Value::String(audience)) => is_ours(audience),
            Some(Value::Array(audiences)) => {
                let texts: Option<Vec<&str>> = audiences.iter().map(Value::as_str).collect();
                texts.ok_or(malformed)?.into_iter().any(is_ours)
            }
            _ => return Err(malformed),
        };
        if found { Ok(()) } else { Err(OidcError::OtherAudience) }
    }

    fn subject(&self) -> Result<String, OidcError> {
        let subject = self
            .claims
            .get("sub")
            .and_then(Value::as_str)
            .filter(|text| is_name(text));
        subject.map(str::to_owned).ok_or(OidcError::BadClaim { name: "sub" })
    }

    fn groups(&self, claim: &str) -> Result<BTreeSet<String>, OidcError> {
        let malformed = OidcError::BadClaim { name: "of groups" };
        // OIDC Core, section 5.6.2, and what Microsoft Entra says instead of listing too many.
        let elsewhere = self
            .claims
            .get("_claim_names")
            .is_some_and(|names| names.get(claim).is_some())
            || self
                .claims
                .get("hasgroups")
                .is_some_and(|has| *has != Value::Bool(false));
        if elsewhere {
            return Err(OidcError::GroupsElsewhere);
        }
        let listed = match self.claims.get(claim) {
            None => &[],
            Some(one @ Value::String(_)) => std::slice::from_ref(one),
            Some(Value::Array(listed)) => listed.as_slice(),
            Some(_) => return Err(malformed),
        };
        if listed.len() > MAX_GROUPS {
            return Err(OidcError::TooManyGroups);
        }
        let name = |group: &Value| group.as_str().filter(|text| is_name(text)).map(str::to_owned);
        listed.iter().map(|group| name(group).ok_or(malformed)).collect()
    }

    /// A token that is bound in another way than to a key by its thumbprint cannot be checked at all.
    fn bound_to(&self) -> Result<Option<Thumbprint>, OidcError> {
        let malformed = OidcError::BadClaim { name: "cnf" };
        let Some(confirmation) = self.claims.get("cnf") else {
            return Ok(None);
        };
        let members = confirmation.as_object().filter(|members| members.len() == 1);
        let thumbprint = members.and_then(|members| members.get("jkt")).and_then(Value::as_str);
        let thumbprint = thumbprint.and_then(|text| text.parse().ok());
        thumbprint.map(Some).ok_or(malformed)
    }
}

/// Shows nothing of the token.
impl std::fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

/// What the header says that counts.
fn read_header(json: &[u8]) -> Result<(TokenAlgorithm, Option<String>), OidcError> {
    let Some(Value::Object(header)) = from_strict_json(json) else {
        return Err(OidcError::BadHeader);
    };
    if let Some(name) = ["crit", "b64", "zip", "enc", "cty"]
        .into_iter()
        .find(|name| header.contains_key(*name))
    {
        return Err(OidcError::UnexpectedHeader { name });
    }
    let algorithm = header.get("alg").and_then(Value::as_str).ok_or(OidcError::BadHeader)?;
    let algorithm = TokenAlgorithm::from_name(algorithm).ok_or(OidcError::OtherAlgorithm)?;
    match header.get("typ") {
        None => {}
        Some(Value::String(typ)) => {
            // Media types know no case (RFC 7515, section 4.1.9; RFC 9068, section 4).
            let is_known = ["jwt", "at+jwt", "application/at+jwt"]
                .iter()
                .any(|known| typ.eq_ignore_ascii_case(known));
            if !is_known {
                return Err(OidcError::OtherType);
            }
        }
        Some(_) => return Err(OidcError::BadHeader),
    }
    match header.get("kid") {
        None => Ok((algorithm, None)),
        Some(Value::String(kid)) => Ok((algorithm, Some(kid.clone()))),
        Some(_) => Err(OidcError::BadHeader),
    }
}

/// Seconds since 1970, perhaps with a fraction (RFC 7519, section 2).
fn numeric_date(value: &Value) -> Option<UnixMillis> {
    if let Some(seconds) = value.as_u64() {
        return Some(UnixMillis(seconds.saturating_mul(1_000)));
    }
    let seconds = value
        .as_f64()
        .filter(|seconds| seconds.is_finite() && *seconds >= 0.0)?;
    // Casts of floats saturate.
    Some(UnixMillis((seconds * 1_000.0) as u64))
}

/// A name that reads as what it is, in log lines too.
fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len()) && !text.chars().any(is_deceptive)
}
