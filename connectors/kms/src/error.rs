//! What the errors of the AWS client mean to us.

use std::time::Duration;

use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use sealflow::keys::KeyServiceError;

/// What was asked for: some codes mean something else for wrapped bytes than for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "chain"), allow(dead_code, reason = "some only `AwsKms` asks for"))]
pub(crate) enum Request {
    Generate,
    Unwrap,
    Describe,
    Rewrap,
    Rotate,
    PublicKey,
    Mac,
}

/// Longer codes than AWS has are not passed on.
const MAX_CODE: usize = 64;

/// Maps an error of the AWS client for a request about the key `arn`.
pub(crate) fn classify<E: ProvideErrorMetadata>(
    error: &SdkError<E, HttpResponse>,
    request: Request,
    arn: &str,
) -> KeyServiceError {
    match meaning(error, request, arn) {
        // No answer, or none that says whether it was done.
        KeyServiceError::Unavailable { reason } if request == Request::Rotate => KeyServiceError::Unclear {
            arn: arn.to_owned(),
            reason,
        },
        KeyServiceError::BadAnswer { reason }
            if request == Request::Rotate && matches!(error, SdkError::ResponseError(_)) =>
        {
            KeyServiceError::Unclear {
                arn: arn.to_owned(),
                reason,
            }
        }
        known => known,
    }
}

fn meaning<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>, request: Request, arn: &str) -> KeyServiceError {
    let unavailable = |reason: &str| KeyServiceError::Unavailable {
        reason: reason.to_owned(),
    };
    match error {
        SdkError::TimeoutError(_) => unavailable("no answer in time"),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => unavailable("no connection or answer in time"),
        SdkError::DispatchFailure(failure) if failure.is_io() => unavailable("the connection failed"),
        SdkError::DispatchFailure(_) => unavailable("the request could not be sent"),
        SdkError::ResponseError(response) => by_status(response.raw().status().as_u16())
            .unwrap_or_else(|| bad_answer("the answer does not follow the protocol")),
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            let retry_after = retry_after(service.raw());
            by_code(service.err().code(), status, retry_after, request, arn)
        }
        SdkError::ConstructionFailure(_) => bad_answer("the request could not be built (region, endpoint?)"),
        _ => unavailable("the request failed"),
    }
}

/// Whether `code` says that the credentials themselves are no longer taken.
pub(crate) fn is_stale_credentials(error: &KeyServiceError) -> bool {
    let KeyServiceError::NotPermitted { code, .. } = error else {
        return false;
    };
    matches!(
        code.as_str(),
        "UnrecognizedClientException" | "ExpiredTokenException" | "ExpiredToken" | "InvalidClientTokenId"
    )
}

fn by_code(
    code: Option<&str>,
    status: u16,
    retry_after: Option<Duration>,
    request: Request,
    arn: &str,
) -> KeyServiceError {
    let Some(code) = code.map(plain_code) else {
        return by_status(status).unwrap_or_else(|| bad_answer("an error without a code"));
    };
    let arn = arn.to_owned();
    match code.as_str() {
        // Here it is no quota of requests but the end of what one key can be rotated.
        "LimitExceededException" | "ConflictException" if request == Request::Rotate => {
            KeyServiceError::KeyUnusable { arn, code }
        }
        "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "RequestLimitExceeded"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "LimitExceededException"
        | "SlowDown" => KeyServiceError::Throttled { retry_after },
        "AccessDeniedException"
        | "AccessDenied"
        | "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "ExpiredTokenException"
        | "ExpiredToken"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignatureException"
        | "IncompleteSignature"
        | "MissingAuthenticationTokenException"
        | "MissingAuthenticationToken"
        | "NotAuthorized"
        | "OptInRequired"
        | "RequestExpired"
        | "InvalidGrantTokenException" => KeyServiceError::NotPermitted { arn, code },
        "InvalidCiphertextException" | "IncorrectKeyException" | "KMSInvalidMacException" => {
            KeyServiceError::Refused { arn, code }
        }
        // Wrapped bytes of a length that no KMS gives out fail validation before they are looked at.
        "ValidationException" if matches!(request, Request::Unwrap | Request::Rewrap) => {
            KeyServiceError::Refused { arn, code }
        }
        "DisabledException"
        | "NotFoundException"
        | "KMSInvalidStateException"
        | "InvalidKeyUsageException"
        | "InvalidArnException"
        | "UnsupportedOperationException" => KeyServiceError::KeyUnusable { arn, code },
        // KMS says of it: "You can retry the request".
        "KeyUnavailableException"
        | "DependencyTimeoutException"
        | "KMSInternalException"
        | "InternalFailure"
        | "InternalError"
        | "ServiceUnavailable"
        | "ServiceUnavailableException" => KeyServiceError::Unavailable {
            reason: format!("the service is in trouble ({code})"),
        },
        _ => {
            by_status(status).unwrap_or_else(|| bad_answer(&format!("the service does not take the request ({code})")))
        }
    }
}

fn by_status(status: u16) -> Option<KeyServiceError> {
    match status {
        429 => Some(KeyServiceError::Throttled { retry_after: None }),
        408 | 500.. => Some(KeyServiceError::Unavailable {
            reason: format!("the service answers with status {status}"),
        }),
        _ => None,
    }
}

fn bad_answer(reason: &str) -> KeyServiceError {
    KeyServiceError::BadAnswer {
        reason: reason.to_owned(),
    }
}

/// A code is a word; what a strange endpoint sends instead does not reach messages.
fn plain_code(code: &str) -> String {
    let is_word = code.len() <= MAX_CODE && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    if is_word {
        code.to_owned()
    } else {
        "not a code".to_owned()
    }
}

fn retry_after(response: &HttpResponse) -> Option<Duration> {
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .and_then(|v| v.trim().parse::<u32>().ok())
            .map(u64::from)
    };
    let millis = header("x-amz-retry-after").map(Duration::from_millis);
    millis.or_else(|| header("retry-after").map(Duration::from_secs))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(code: &str, status: u16, request: Request) -> KeyServiceError {
        by_code(Some(code), status, None, request, "arn")
    }

    #[test]
    fn codes_are_mapped_by_meaning() {
        let arn = || "arn".to_owned();
        let throttled = KeyServiceError::Throttled { retry_after: None };
        for code in ["ThrottlingException", "LimitExceededException", "RequestLimitExceeded"] {
            assert_eq!(map(code, 400, Request::Generate), throttled, "{code}");
        }
        for code in [
            "AccessDeniedException",
            "ExpiredTokenException",
            "UnrecognizedClientException",
            "InvalidSignatureException",
        ] {
            let expected = KeyServiceError::NotPermitted {
                arn: arn(),
                code: code.to_owned(),
            };
            assert_eq!(map(code, 400, Request::Unwrap), expected);
        }
        for code in [
            "InvalidCiphertextException",
            "IncorrectKeyException",
            "ValidationException",
        ] {
            let expected = KeyServiceError::Refused {
                arn: arn(),
                code: code.to_owned(),
            };
            assert_eq!(map(code, 400, Request::Unwrap), expected);
        }
        for code in ["DisabledException", "NotFoundException", "KMSInvalidStateException"] {
            let expected = KeyServiceError::KeyUnusable {
                arn: arn(),
                code: code.to_owned(),
            };
            assert_eq!(map(code, 400, Request::Generate), expected);
        }
        for (code, status) in [
            ("KMSInternalException", 500),
            ("DependencyTimeoutException", 503),
            ("KeyUnavailableException", 500),
            ("Strange", 502),
        ] {
            assert!(map(code, status, Request::Generate).is_retryable(), "{code}");
        }
        for request in [Request::Generate, Request::PublicKey, Request::Mac] {
            let validation = map("ValidationException", 400, request);
            assert!(matches!(validation, KeyServiceError::BadAnswer { .. }), "{request:?}");
        }
        assert!(matches!(
            map("Strange", 400, Request::Unwrap),
            KeyServiceError::BadAnswer { .. }
        ));
    }

    #[test]
    fn a_code_that_is_no_word_does_not_reach_messages() {
        let shown = map("hunter2 <secret>", 400, Request::Unwrap).to_string();
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
