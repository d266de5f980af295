//! What goes wrong with stored objects, by meaning; and what errors of object_store mean. Never a value, and never the sentence
//! of a server, which may repeat what it was sent.

use std::error::Error as StdError;
use std::io::ErrorKind;

use object_store::Error;
use sealflow::keys::CatalogueError;

use crate::location::LocationError;
use crate::options::BucketConfigError;

/// Why a place, or an object in it, could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The store cannot be reached, is in trouble, or is full. Whether what was asked is done may be unknown.
    #[error("{path}: the store cannot be reached: {reason}")]
    Unavailable {
        /// The object or place.
        path: String,
        /// What happened.
        reason: String,
    },
    /// The store refuses us.
    #[error("{path}: the store refuses access ({code})")]
    NotPermitted {
        /// The object or place.
        path: String,
        /// The store's code.
        code: String,
    },
    /// There is no such object.
    #[error("{path}: there is no such object")]
    NotFound {
        /// The object.
        path: String,
    },
    /// There is no such bucket.
    #[error("{path}: there is no such bucket")]
    NoBucket {
        /// The object or place.
        path: String,
    },
    /// A path, place or request that the store does not take.
    #[error("{path}: {reason}")]
    Invalid {
        /// The object or place.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The text of a location.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// The options of a bucket.
    #[error(transparent)]
    Options(#[from] BucketConfigError),
}

impl StorageError {
    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => {
                "check endpoint, network and disk; nothing was lost, and it is safe to try again"
            }
            Self::NotPermitted { .. } => {
                "check the credentials, and that folder or bucket policy allow reading, writing and listing below this place"
            }
            Self::NotFound { .. } => "check the path",
            Self::NoBucket { .. } => "check the bucket's name, location, region and endpoint",
            Self::Invalid { .. } => "check location, region and endpoint",
            Self::Location(error) => error.help(),
            Self::Options(error) => error.help(),
        }
    }
}

/// What an object store answered, if it was neither yes, nor absent, nor there already.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("status {status} ({code})")]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    /// A word: `SlowDown`.
    pub(crate) code: String,
}

/// Why there was no answer, in fixed words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NoAnswer(pub(crate) &'static str);

/// Why a request could not be signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct NoCredentials {
    pub(crate) reason: String,
    pub(crate) is_retryable: bool,
}

/// Whether there is no object: nothing, a folder, or something below a file.
pub(crate) fn is_absent(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. })
        || matches!(
            find::<std::io::Error>(error).map(std::io::Error::kind),
            Some(ErrorKind::NotFound | ErrorKind::IsADirectory | ErrorKind::NotADirectory)
        )
}

/// The code where there is none.
pub(crate) const NO_CODE: &str = "no code";

/// Whether the credentials themselves are no longer taken. Answers to `HEAD` have no code: with 400 it is mostly that.
pub(crate) fn is_stale(refusal: &Refusal) -> bool {
    let code = refusal.code.as_str();
    let is_expired = matches!(
        code,
        "ExpiredToken" | "ExpiredTokenException" | "InvalidAccessKeyId" | "InvalidToken" | "TokenRefreshRequired"
    );
    is_expired || (refusal.status == 400 && code == NO_CODE)
}

/// What an error about `path` means.
pub(crate) fn meaning(error: &Error, path: &str) -> StorageError {
    let path = path.to_owned();
    let invalid = |path, reason: &str| StorageError::Invalid {
        path,
        reason: reason.to_owned(),
    };
    if let Some(refusal) = find::<Refusal>(error) {
        return refused(refusal, path);
    }
    if let Some(NoAnswer(reason)) = find(error) {
        let reason = (*reason).to_owned();
        return StorageError::Unavailable { path, reason };
    }
    if let Some(NoCredentials { reason, is_retryable }) = find(error) {
        return if *is_retryable {
            let reason = reason.clone();
            StorageError::Unavailable { path, reason }
        } else {
            let code = "no credentials".to_owned();
            StorageError::NotPermitted { path, code }
        };
    }
    match error {
        Error::NotFound { .. } => return StorageError::NotFound { path },
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            let code = "AccessDenied".to_owned();
            return StorageError::NotPermitted { path, code };
        }
        Error::InvalidPath { .. } => return invalid(path, "the store does not take such a path"),
        Error::AlreadyExists { .. } => return invalid(path, "it is there already"),
        _ => (),
    }
    match find::<std::io::Error>(error).map(std::io::Error::kind) {
        Some(kind) => io_meaning(kind, path),
        None => {
            let reason = "the object store failed".to_owned();
            StorageError::Unavailable { path, reason }
        }
    }
}

/// What an error of the file system about `path` means.
pub(crate) fn io_meaning(kind: ErrorKind, path: String) -> StorageError {
    let invalid = |path, reason: &str| StorageError::Invalid {
        path,
        reason: reason.to_owned(),
    };
    match kind {
        ErrorKind::NotFound => StorageError::NotFound { path },
        ErrorKind::PermissionDenied => StorageError::NotPermitted {
            path,
            code: "permission denied".to_owned(),
        },
        ErrorKind::NotADirectory => invalid(path, "a part of the path is an object itself"),
        ErrorKind::IsADirectory => invalid(path, "it is a folder"),
        kind => StorageError::Unavailable {
            path,
            reason: kind.to_string(),
        },
    }
}

/// Amazon S3 API Reference, "Error responses".
fn refused(refusal: &Refusal, path: String) -> StorageError {
    let code = refusal.code.clone();
    let invalid = |path, reason: String| StorageError::Invalid { path, reason };
    match (refusal.status, code.as_str()) {
        (_, "NoSuchBucket") => StorageError::NoBucket { path },
        (301 | 307 | 308, _)
        | (_, "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException") => {
            invalid(path, format!("the bucket is in another region ({code})"))
        }
        (_, "RequestTimeTooSkewed") => invalid(
            path,
            "the clock of this machine is off by more than the store takes".to_owned(),
        ),
        (_, "NotImplemented") | (501, _) => invalid(
            path,
            "the store cannot do what is needed, such as conditional puts".to_owned(),
        ),
        (401 | 403, _) => StorageError::NotPermitted { path, code },
        (400, _) if is_stale(refusal) => StorageError::NotPermitted { path, code },
        (408 | 409 | 429 | 500.., _) | (_, "RequestTimeout" | "SlowDown") => StorageError::Unavailable {
            path,
            reason: format!("it answers with status {} ({code})", refusal.status),
        },
        (status, _) => invalid(
            path,
            format!("the store does not take the request: status {status} ({code})"),
        ),
    }
}

/// The first error of this type below `error`.
pub(crate) fn find<T: StdError + 'static>(error: &Error) -> Option<&T> {
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

/// As the catalogue's contract has it.
pub(crate) fn catalogue_error(error: StorageError, path: &str) -> CatalogueError {
    let path = path.to_owned();
    match error {
        StorageError::Unavailable { reason, .. } => CatalogueError::Unavailable {
            reason: format!("{path}: {reason}"),
        },
        StorageError::NotPermitted { .. } => CatalogueError::NotPermitted { path },
        StorageError::Invalid { reason, .. } => CatalogueError::Invalid { path, reason },
        StorageError::NoBucket { .. } => CatalogueError::Invalid {
            path,
            reason: "there is no such bucket".to_owned(),
        },
        StorageError::NotFound { .. } => CatalogueError::Unavailable {
            reason: format!("{path}: it went away"),
        },
        StorageError::Location(_) | StorageError::Options(_) => CatalogueError::Unavailable {
            reason: format!("{path}: {error}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(status: u16, code: &str) -> StorageError {
        let refusal = Refusal {
            status,
            code: code.to_owned(),
        };
        let error = Error::Generic {
            store: "S3",
            source: Box::new(refusal),
        };
        meaning(&error, "a/b")
    }

    #[test]
    fn answers_are_mapped_by_meaning() {
        for (status, code) in [
            (503, "SlowDown"),
            (500, "InternalError"),
            (429, ""),
            (409, "OperationAborted"),
            (400, "RequestTimeout"),
        ] {
            assert!(by(status, code).is_retryable(), "{status} {code}");
        }
        for (status, code) in [
            (403, "AccessDenied"),
            (403, "SignatureDoesNotMatch"),
            (400, "ExpiredToken"),
            (401, ""),
        ] {
            assert!(
                matches!(by(status, code), StorageError::NotPermitted { .. }),
                "{status} {code}"
            );
        }
        assert!(matches!(by(404, "NoSuchBucket"), StorageError::NoBucket { .. }));
        for (status, code, says) in [
            (301, "PermanentRedirect", "another region"),
            (400, "AuthorizationHeaderMalformed", "another region"),
            (403, "RequestTimeTooSkewed", "clock"),
            (501, "NotImplemented", "conditional puts"),
            (400, "EntityTooSmall", "EntityTooSmall"),
        ] {
            let error = by(status, code);
            assert!(matches!(error, StorageError::Invalid { .. }), "{status} {code}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
