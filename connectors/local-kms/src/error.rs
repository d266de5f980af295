//! The errors of the AWS KMS and STS APIs, as the clients know them.

/// An error answer: AWS's own code, and a sentence without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl ApiError {
    /// A fault of the caller: HTTP 400, which is what KMS answers to all of them.
    pub(crate) fn caller(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: 400,
            code,
            message: message.into(),
        }
    }

    pub(crate) fn validation(message: impl Into<String>) -> Self {
        Self::caller("ValidationException", message)
    }

    pub(crate) fn unsupported(message: impl Into<String>) -> Self {
        Self::caller("UnsupportedOperationException", message)
    }

    pub(crate) fn not_found(key: &str) -> Self {
        Self::caller("NotFoundException", format!("Key '{key}' does not exist"))
    }

    /// Says nothing about the ciphertext, as KMS does.
    pub(crate) fn invalid_ciphertext() -> Self {
        Self::caller("InvalidCiphertextException", "")
    }

    /// A fault of this server: HTTP 500, which clients retry.
    pub(crate) fn internal() -> Self {
        Self {
            status: 500,
            code: "KMSInternalException",
            message: "internal error of the local KMS".to_owned(),
        }
    }
}
