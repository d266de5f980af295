//! What can go wrong, by meaning: whose fault it is and whether a restart helps.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use sealflow::pipeline::StopKind;

/// A configuration that cannot be run: where, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct ConfigError {
    /// Key path in the pipeline's file, such as `source.kafka.properties.isolation.level`.
    pub path: String,
    /// What is wrong, never a value of a secret.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

impl ConfigError {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
            help: help.into(),
        }
    }
}

/// Why a run ended without having done its work. Nothing that was committed is undone by any of them, and
/// nothing that was not committed has left: a restart goes on where the last commit was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The configuration, or the topics that it names, cannot be run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Brokers do not answer.
    #[error("kafka is unavailable: {reason}")]
    Unavailable {
        /// What did not answer, in librdkafka's words.
        reason: String,
    },
    /// The brokers refuse this identity.
    #[error("kafka refuses access: {reason}")]
    Denied {
        /// What is refused.
        reason: String,
    },
    /// Another process runs under the same pipeline and instance: it goes on, this one has left.
    #[error("fenced: another process runs as instance {instance:?} of this pipeline")]
    Fenced {
        /// The stable instance id that both use.
        instance: String,
    },
    /// Going on would break a guarantee.
    #[error("stopped: {reason}")]
    Stopped {
        /// Who can mend it.
        kind: StopKind,
        /// What happened and where (topic/partition/offset), never a value.
        reason: String,
        /// What to do about it.
        help: String,
    },
}

impl RunError {
    /// The same run, started again unchanged, may succeed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// What to do about it, for the line under the message.
    #[must_use]
    pub fn help(&self) -> &str {
        match self {
            Self::Config(error) => &error.help,
            Self::Unavailable { .. } => "check `brokers`, the network and the security properties, then start again",
            Self::Denied { .. } => {
                "check the credentials in `properties` and the ACLs of topics, group and transactional id"
            }
            Self::Fenced { .. } => "give every process of a pipeline its own `instance`",
            Self::Stopped { help, .. } => help,
        }
    }

    pub(crate) fn stopped(kind: StopKind, reason: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Stopped {
            kind,
            reason: reason.into(),
            help: help.into(),
        }
    }
}

/// What a failed call to librdkafka means for the transaction it was part of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The same call may be made again.
    Again,
    /// The transaction must be aborted; its records are read again.
    Abort,
    /// Another producer or consumer has this identity.
    Fenced,
    /// The client cannot be used any more.
    Fatal,
}

pub(crate) fn verdict(error: &KafkaError) -> Verdict {
    if error.rdkafka_error_code().is_some_and(is_fencing) {
        return Verdict::Fenced;
    }
    match error {
        KafkaError::Transaction(error) if error.is_fatal() => Verdict::Fatal,
        KafkaError::Transaction(error) if error.txn_requires_abort() => Verdict::Abort,
        KafkaError::Transaction(error) if error.is_retriable() => Verdict::Again,
        KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut) => Verdict::Again,
        KafkaError::Transaction(_) => Verdict::Fatal,
        _ => Verdict::Abort,
    }
}

/// Whether a code says that another client took over this identity.
pub(crate) fn is_fencing(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::FencedInstanceId
    )
}

/// Whether a code says that the brokers refuse us.
pub(crate) fn is_denial(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::TransactionalIdAuthorizationFailed
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::Authentication
    )
}

/// An error while connecting or asking: denied if the brokers say so, else unavailable.
pub(crate) fn unreachable_or_denied(error: &KafkaError, last_log: Option<String>) -> RunError {
    let mut reason = error.to_string();
    if let Some(log) = last_log {
        reason = format!("{reason} ({log})");
    }
    match error.rdkafka_error_code() {
        Some(code) if is_denial(code) => RunError::Denied { reason },
        _ => RunError::Unavailable { reason },
    }
}
