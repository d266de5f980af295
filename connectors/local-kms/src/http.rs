//! The HTTP face of the local KMS: reads one capped request, finds out who signed it, and answers in the protocol of
//! KMS (JSON 1.1) or STS (query, XML).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use sealflow::clock::Clock;
use subtle::ConstantTimeEq as _;

use crate::config::Principal;
use crate::error::ApiError;
use crate::faults::Hooks;
use crate::presigned::Presigned;
use crate::service::{Answer, Service};
use crate::sigv4::{self, SignatureError, SignedRequest};

/// The largest request body.
pub(crate) const MAX_BODY: usize = 64 * 1024;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

const TARGET_PREFIX: &str = "TrentService.";
const STS: &str = "GetCallerIdentity";

/// Everything that answers requests.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) service: Service,
    pub(crate) principals: Vec<Principal>,
    pub(crate) region: String,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) hooks: Hooks,
}

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("disconnected on purpose")]
pub(crate) struct Disconnect;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Json,
    Query,
    /// STS by GET, signed in its query.
    Presigned,
}

impl Endpoint {
    /// Answers one request.
    pub(crate) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Disconnect> {
        let (parts, body) = request.into_parts();
        let protocol = if parts.headers.contains_key("x-amz-target") {
            Protocol::Json
        } else if parts.method == Method::GET {
            Protocol::Presigned
        } else {
            Protocol::Query
        };
        let body = match read_body(body).await {
            Ok(body) => body,
            Err(error) => return Ok(respond(protocol, Err(error))),
        };
        let operation = match operation(&parts, protocol, &body) {
            Ok(operation) => operation,
            Err(error) => return Ok(respond(protocol, Err(error))),
        };
        let plan = self.hooks.plan(&operation);
        if !plan.delay.is_zero() {
            tokio::time::sleep(plan.delay).await;
        }
        if plan.disconnect {
            return Err(Disconnect);
        }
        if let Some(error) = plan.instead {
            return Ok(respond(protocol, Err(error)));
        }
        // Signatures and disk writes must not hold up the other connections.
        let endpoint = Arc::clone(&self);
        let done = tokio::task::spawn_blocking(move || endpoint.work(&parts, protocol, &operation, &body)).await;
        if plan.disconnect_after {
            return Err(Disconnect);
        }
        Ok(respond(protocol, done.unwrap_or_else(|_| Err(ApiError::internal()))))
    }

    fn work(
        &self,
        parts: &hyper::http::request::Parts,
        protocol: Protocol,
        operation: &str,
        body: &[u8],
    ) -> Result<Answer, ApiError> {
        let mut headers = Vec::with_capacity(parts.headers.len());
        for (name, value) in &parts.headers {
            let value = value.to_str().map_err(|_| incomplete("a header is not ASCII"))?;
            headers.push((name.as_str(), value));
        }
        let request = SignedRequest {
            method: parts.method.as_str(),
            headers: &headers,
            body,
        };
        let caller = match protocol {
            Protocol::Presigned => self.authenticate_presigned(&request, parts.uri.query().unwrap_or_default()),
            _ => self.authenticate(&request, protocol),
        };
        let result = caller.and_then(|caller| match protocol {
            Protocol::Json => self.service.handle(operation, &caller.arn, body),
            Protocol::Query | Protocol::Presigned => Ok(caller_identity(caller)),
        });
        match &result {
            Ok(_) => tracing::debug!(operation, "answered"),
            Err(error) => tracing::info!(operation, code = error.code, "refused"),
        }
        result
    }

    /// Who signed `request`.
    fn authenticate(&self, request: &SignedRequest<'_>, protocol: Protocol) -> Result<&Principal, ApiError> {
        let refused = |error| signature_error(error, protocol);
        let header = request
            .header("authorization")
            .ok_or_else(|| refused(SignatureError::Missing))?;
        let authorization = sigv4::parse_authorization(header).map_err(refused)?;
        let principal = self.principal(authorization.access_key_id, protocol)?;
        let (regions, service): (&[&str], _) = match protocol {
            Protocol::Json => (&[&self.region], "kms"),
            // The global STS endpoint signs for us-east-1.
            Protocol::Query | Protocol::Presigned => (&[&self.region, "us-east-1"], "sts"),
        };
        sigv4::check_scope(request, &authorization, self.clock.now().0, regions, service).map_err(refused)?;
        sigv4::check_signature(request, &authorization, principal.secret_access_key.expose()).map_err(refused)?;
        let given = request.header("x-amz-security-token").unwrap_or_default();
        check_session(principal, given, protocol)?;
        Ok(principal)
    }

    /// Who signed `request` in its query.
    fn authenticate_presigned(&self, request: &SignedRequest<'_>, query: &str) -> Result<&Principal, ApiError> {
        let protocol = Protocol::Presigned;
        let refused = |error| signature_error(error, protocol);
        let presigned = Presigned::parse(query).map_err(refused)?;
        let authorization = presigned.authorization().map_err(refused)?;
        let principal = self.principal(authorization.access_key_id, protocol)?;
        let scope: (&[&str], _) = (&[&self.region, "us-east-1"], "sts");
        let now = self.clock.now().0;
        presigned
            .check_scope(request, &authorization, now, scope)
            .map_err(refused)?;
        let secret = principal.secret_access_key.expose();
        presigned
            .check_signature(request, &authorization, secret)
            .map_err(refused)?;
        let given = presigned.get("X-Amz-Security-Token").unwrap_or_default();
        check_session(principal, given, protocol)?;
        Ok(principal)
    }

    fn principal(&self, access_key_id: &str, protocol: Protocol) -> Result<&Principal, ApiError> {
        let known = self.principals.iter().find(|p| p.access_key_id == access_key_id);
        known.ok_or_else(|| unknown_token(protocol))
    }
}

fn check_session(principal: &Principal, given: &str, protocol: Protocol) -> Result<(), ApiError> {
    let wanted = principal.session_token.as_ref().map_or("", |token| token.expose());
    if bool::from(given.as_bytes().ct_eq(wanted.as_bytes())) {
        Ok(())
    } else {
        Err(unknown_token(protocol))
    }
}

fn unknown_token(protocol: Protocol) -> ApiError {
    let message = "The security token included in the request is invalid.";
    match protocol {
        Protocol::Json => ApiError::caller("UnrecognizedClientException", message),
        Protocol::Query | Protocol::Presigned => ApiError {
            status: 403,
            code: "InvalidClientTokenId",
            message: message.to_owned(),
        },
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, ApiError> {
    let too_large = || ApiError {
        status: 413,
        ..ApiError::validation("the request is larger than 64 KiB")
    };
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => Err(too_large()),
        Err(_) => Err(ApiError {
            status: 408,
            ..ApiError::validation("the request did not arrive in time")
        }),
    }
}

fn operation(parts: &hyper::http::request::Parts, protocol: Protocol, body: &[u8]) -> Result<String, ApiError> {
    let unknown = |message: &str| ApiError::caller("UnknownOperationException", message);
    let is_taken = match protocol {
        Protocol::Presigned => parts.uri.query().is_some() && body.is_empty(),
        Protocol::Json | Protocol::Query => parts.method == Method::POST && parts.uri.query().is_none(),
    };
    if !is_taken || parts.uri.path() != "/" {
        return Err(unknown(
            "the local KMS takes POST / without a query, and a presigned GET /?Action=GetCallerIdentity",
        ));
    }
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    };
    match protocol {
        Protocol::Json => {
            if !header("content-type").eq_ignore_ascii_case("application/x-amz-json-1.1") {
                return Err(unknown("expected the content type application/x-amz-json-1.1"));
            }
            let name = header("x-amz-target").strip_prefix(TARGET_PREFIX).unwrap_or_default();
            let is_name = !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric());
            if is_name {
                Ok(name.to_owned())
            } else {
                Err(unknown("expected X-Amz-Target: TrentService.OPERATION"))
            }
        }
        Protocol::Query => {
            let body = std::str::from_utf8(body).unwrap_or_default();
            let mut fields: Vec<&str> = body.split('&').collect();
            fields.sort_unstable();
            let is_identity = fields == ["Action=GetCallerIdentity", "Version=2011-06-15"];
            if is_identity {
                Ok(STS.to_owned())
            } else {
                Err(unknown("of STS, only GetCallerIdentity is here"))
            }
        }
        Protocol::Presigned => {
            let fields: Vec<&str> = parts.uri.query().unwrap_or_default().split('&').collect();
            let is_identity = fields.contains(&"Action=GetCallerIdentity") && fields.contains(&"Version=2011-06-15");
            if is_identity {
                Ok(STS.to_owned())
            } else {
                Err(unknown("of STS, only GetCallerIdentity is here"))
            }
        }
    }
}

fn incomplete(message: &str) -> ApiError {
    ApiError::caller("IncompleteSignatureException", message)
}

fn signature_error(error: SignatureError, protocol: Protocol) -> ApiError {
    let (json, query) = match error {
        SignatureError::Missing => ("MissingAuthenticationTokenException", "MissingAuthenticationToken"),
        SignatureError::Incomplete(_) => ("IncompleteSignatureException", "IncompleteSignature"),
        SignatureError::Skewed | SignatureError::WrongScope(_) | SignatureError::Mismatch => {
            ("InvalidSignatureException", "SignatureDoesNotMatch")
        }
    };
    match protocol {
        Protocol::Json => ApiError::caller(json, error.to_string()),
        Protocol::Query | Protocol::Presigned => ApiError {
            status: 403,
            code: query,
            message: error.to_string(),
        },
    }
}

fn caller_identity(caller: &Principal) -> Answer {
    // ARNs were checked when the configuration was read: nothing in them needs escapes.
    let account = caller.arn.split(':').nth(4).unwrap_or_default();
    let xml = format!(
        "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
         <Arn>{}</Arn><UserId>{}</UserId><Account>{account}</Account></GetCallerIdentityResult>\
         <ResponseMetadata><RequestId>local</RequestId></ResponseMetadata></GetCallerIdentityResponse>",
        caller.arn, caller.access_key_id
    );
    Answer::new(xml.into_bytes())
}

fn respond(protocol: Protocol, result: Result<Answer, ApiError>) -> Response<Full<Bytes>> {
    let (status, body) = match (result, protocol) {
        // The copy in `Bytes` is not wiped; the key it may hold is on its way to the socket anyhow.
        (Ok(answer), _) => (200, Bytes::copy_from_slice(&answer)),
        (Err(error), Protocol::Json) => {
            let body = serde_json::json!({ "__type": error.code, "message": error.message });
            (error.status, Bytes::from(body.to_string()))
        }
        (Err(error), Protocol::Query | Protocol::Presigned) => (
            error.status,
            Bytes::from(format!(
                "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
                 <Code>{}</Code><Message>{}</Message></Error><RequestId>local</RequestId></ErrorResponse>",
                error.code,
                error.message.replace(['<', '>', '&'], " ")
            )),
        ),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = match protocol {
        Protocol::Json => "application/x-amz-json-1.1",
        Protocol::Query | Protocol::Presigned => "text/xml",
    };
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
        .headers_mut()
        .insert("x-amzn-requestid", HeaderValue::from_static("local"));
    response
}

impl From<Infallible> for Disconnect {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
