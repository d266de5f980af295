//! What went wrong, for callers, with codes that stay. Never a value, a key or a token.

use http::StatusCode;
use schemars::JsonSchema;
use sealflow::acl::oidc::OidcError;
use sealflow::acl::sts::StsError;
use serde::Serialize;

macro_rules! codes {
    ($( $(#[doc = $doc:literal])+ $name:ident = $text:literal, $status:literal; )+) => {
        /// Why a request was not answered with what it asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
        #[serde(rename_all = "kebab-case")]
        pub enum Code {
            $( $(#[doc = $doc])+ $name, )+
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$( Self::$name, )+];

            /// As documents and audit lines spell it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$name => $text, )+ }
            }

            /// The HTTP status.
            #[must_use]
            pub fn status(self) -> StatusCode {
                let status: u16 = match self { $( Self::$name => $status, )+ };
                StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    };
}

codes! {
    /// The body is not JSON in UTF-8.
    MalformedJson = "malformed-json", 400;
    /// The body is JSON, and not a request: members missing, unknown, repeated or of another type.
    MalformedRequest = "malformed-request", 400;
    /// More records or values than one request may have.
    TooMany = "too-many", 400;
    /// The HTTP request itself is malformed.
    MalformedHttp = "malformed-http", 400;

    /// There is no `Authorization`.
    NoProof = "no-proof", 401;
    /// `Authorization` is there twice, or neither `Bearer` nor `Sealflow-STS` as this service takes it.
    OtherProof = "other-proof", 401;
    /// The token is too long, or no compact JWT with header and claims.
    TokenMalformed = "token-malformed", 401;
    /// The token is signed by an algorithm, or is of a type, that is not taken.
    TokenOtherAlgorithm = "token-other-algorithm", 401;
    /// The token is of an issuer that is not trusted.
    TokenOtherIssuer = "token-other-issuer", 401;
    /// The token is for another audience.
    TokenOtherAudience = "token-other-audience", 401;
    /// The token's key is not among the issuer's.
    TokenUnknownKey = "token-unknown-key", 401;
    /// The signature is not that of the issuer's key.
    TokenBadSignature = "token-bad-signature", 401;
    /// The token has ended.
    TokenExpired = "token-expired", 401;
    /// The token begins in the future.
    TokenNotYet = "token-not-yet", 401;
    /// A claim that is needed is missing or malformed.
    TokenBadClaim = "token-bad-claim", 401;
    /// The token lists too many groups, or leaves them out.
    TokenGroups = "token-groups", 401;
    /// The token is bound to a key, of which nothing is proved here.
    TokenBound = "token-bound", 401;
    /// The token reports an event, and is nobody's identity.
    TokenEvent = "token-event", 401;
    /// Not a presigned `GetCallerIdentity` as it must be.
    RequestMalformed = "request-malformed", 401;
    /// The presigned request is for another server.
    RequestOtherServer = "request-other-server", 401;
    /// The presigned request is for an STS endpoint that is not listed, or its scope is of another.
    RequestOtherHost = "request-other-host", 401;
    /// The presigned request is for another action.
    RequestOtherAction = "request-other-action", 401;
    /// The presigned request is too old.
    RequestTooOld = "request-too-old", 401;
    /// The presigned request was signed in the future.
    RequestNotYet = "request-not-yet", 401;
    /// STS does not accept the presigned request.
    RequestRefused = "request-refused", 401;
    /// STS named somebody of an account that this service does not serve.
    RequestOtherAccount = "request-other-account", 401;
    /// The proof counted when the request came, and not any more when its answer was ready.
    ProofEnded = "proof-ended", 401;
    /// STS named somebody whom no policy can name.
    RequestNotAnIdentity = "request-not-an-identity", 401;

    /// What proves who asks does not commit to the key to which the answer is to be sealed.
    SealToNotCommitted = "seal-to-not-committed", 403;

    /// The enclave does not take the proof of who asks, or refuses what is asked.
    EnclaveRefused = "enclave-refused", 403;

    /// There is no policy of that dataset.
    PolicyMissing = "policy-missing", 404;
    /// There is nothing of that path.
    NotFound = "not-found", 404;
    /// The path is there, the method is not.
    OtherMethod = "other-method", 405;
    /// The body did not arrive in time.
    TooSlow = "too-slow", 408;
    /// The body is too long.
    TooLarge = "too-large", 413;
    /// The body is not `application/json`.
    OtherMediaType = "other-media-type", 415;
    /// The principal asks too often.
    TooManyRequests = "too-many-requests", 429;
    /// The principal asks for too many values.
    TooManyValues = "too-many-values", 429;
    /// The principal has too many requests under way.
    TooManyAtOnce = "too-many-at-once", 429;
    /// Too many requests of this address could not prove who sent them.
    TooManyUnproven = "too-many-unproven", 429;

    /// A bug of this service.
    Internal = "internal", 500;
    /// Too many requests are under way.
    Busy = "busy", 503;
    /// The request took too long.
    TookTooLong = "took-too-long", 503;
    /// The issuer's keys cannot be fetched.
    KeysUnavailable = "keys-unavailable", 503;
    /// STS does not answer, or not as it should.
    StsUnavailable = "sts-unavailable", 503;
    /// The policy cannot be fetched.
    PolicyUnavailable = "policy-unavailable", 503;
    /// There is a policy that does not count: signed by somebody else, without a lease, older than one that was seen.
    PolicyUnusable = "policy-unusable", 503;
    /// A key service or the catalogue is away.
    ServiceUnavailable = "service-unavailable", 503;
    /// A key service or the catalogue cannot be used as this service is configured.
    ServiceUnusable = "service-unusable", 503;
    /// The enclave worker does not run, or waits for a service.
    EnclaveUnavailable = "enclave-unavailable", 503;
    /// The enclave worker gave an answer that is not one to this question.
    EnclaveUnusable = "enclave-unusable", 503;
    /// The decisions cannot be written down, so that nothing is shown.
    AuditUnavailable = "audit-unavailable", 503;
}

/// Why a request is not answered with what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// In a word.
    pub code: Code,
    /// In a sentence, without a value, key or token.
    pub detail: String,
    /// What to do about it.
    pub help: String,
    /// After how many seconds another try makes sense.
    pub retry_after: Option<u64>,
}

impl Problem {
    /// A problem.
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            help: help.into(),
            retry_after: None,
        }
    }

    /// The same, with `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Whether nobody was proved: 401.
    #[must_use]
    pub fn is_unproven(&self) -> bool {
        self.code.status() == StatusCode::UNAUTHORIZED
    }
}

impl From<OidcError> for Problem {
    fn from(error: OidcError) -> Self {
        let code = match error {
            OidcError::OtherAlgorithm | OidcError::OtherType | OidcError::OtherKeyType => Code::TokenOtherAlgorithm,
            OidcError::OtherIssuer => Code::TokenOtherIssuer,
            OidcError::OtherAudience => Code::TokenOtherAudience,
            OidcError::UnknownKey | OidcError::AmbiguousKey => Code::TokenUnknownKey,
            OidcError::BadSignature => Code::TokenBadSignature,
            OidcError::Expired { .. } => Code::TokenExpired,
            OidcError::NotYet { .. } => Code::TokenNotYet,
            OidcError::BadClaim { .. } => Code::TokenBadClaim,
            OidcError::TooManyGroups | OidcError::GroupsElsewhere => Code::TokenGroups,
            OidcError::EventToken => Code::TokenEvent,
            _ => Code::TokenMalformed,
        };
        Self::new(code, error.to_string(), error.help())
    }
}

impl From<StsError> for Problem {
    fn from(error: StsError) -> Self {
        let code = match error {
            StsError::OtherServer => Code::RequestOtherServer,
            StsError::OtherHost | StsError::OtherScope => Code::RequestOtherHost,
            StsError::OtherAction => Code::RequestOtherAction,
            StsError::TooOld { .. } => Code::RequestTooOld,
            StsError::NotYet { .. } => Code::RequestNotYet,
            StsError::Refused => Code::RequestRefused,
            StsError::NotAnIdentity(_) => Code::RequestNotAnIdentity,
            StsError::Unavailable | StsError::BadAnswer => Code::StsUnavailable,
            _ => Code::RequestMalformed,
        };
        let problem = Self::new(code, error.to_string(), error.help());
        if error.is_retryable() {
            problem.retry_after(1)
        } else {
            problem
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_spelled_one_way_and_each_has_one_status() {
        for code in Code::ALL {
            assert_eq!(serde_json::to_value(code).ok(), Some(code.as_str().into()));
            assert!(
                code.status().is_client_error() || code.status().is_server_error(),
                "{code:?}"
            );
        }
        let internal: Vec<_> = Code::ALL.iter().filter(|code| code.status().as_u16() == 500).collect();
        assert_eq!(internal, [&Code::Internal]);
    }
}
