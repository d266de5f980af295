//! Errors of the core and the connectors as the command tells them: exit code, what, help.

use sealflow::columns::LocatorError;
use sealflow::keys::{CatalogueError, KeyServiceError};
use sealflow::pipeline::{StopKind, TransformError};
use sealflow::policy::PolicySourceError;
use sealflow_kafka::RunError;
use sealflow_storage::StorageError;

use crate::failure::{Exit, Failure};

/// A catalogue that says no. Files of a catalogue's folder have mode 0640 less the umask: a publisher of another group locks the
/// pipelines out.
pub(crate) const READABLE: &str = "let the user of this process read that file of the catalogue: check its owner, group \
    and mode (publish as a member of the folder's group, with the setgid bit on its folders and umask 027); for a bucket: allow \
    s3:ListBucket, s3:GetObject and, to write, s3:PutObject below its prefix";

impl From<KeyServiceError> for Failure {
    fn from(error: KeyServiceError) -> Self {
        let (exit, help) = match &error {
            KeyServiceError::NotPermitted { .. } => (
                Exit::NotPermitted,
                "allow this identity in the key's policy: kms:GenerateDataKey to seal, kms:Decrypt to open",
            ),
            KeyServiceError::Refused { .. } => (
                Exit::NotPermitted,
                "the key envelope was not made under this key and context: check where it comes from",
            ),
            KeyServiceError::KeyUnusable { .. } => {
                (Exit::Config, "check the ARN in the policy, and that the key is enabled")
            }
            KeyServiceError::NoCredentials { .. } => (
                Exit::NotPermitted,
                "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a local KMS: AWS_SHARED_CREDENTIALS_FILE",
            ),
            KeyServiceError::Throttled { .. } => (Exit::Unavailable, "try again later, or ask for a higher KMS quota"),
            KeyServiceError::Unavailable { .. } => (
                Exit::Unavailable,
                "check `kms` in the pipeline file, the AWS credentials and the network; is the local KMS running?",
            ),
            KeyServiceError::Unclear { .. } => (
                Exit::Unavailable,
                "see `aws kms list-key-rotations --key-id ARN`, and run this again only if the rotation is not there",
            ),
            _ => (Exit::Unavailable, "check that the endpoint is a KMS"),
        };
        Self::new(exit, &error, help)
    }
}

impl From<CatalogueError> for Failure {
    fn from(error: CatalogueError) -> Self {
        let (exit, help) = match &error {
            CatalogueError::Unavailable { .. } => (
                Exit::Unavailable,
                "check that the catalogue's folder is there and has room; for a bucket: endpoint, network and credentials",
            ),
            CatalogueError::NotPermitted { .. } => (Exit::NotPermitted, READABLE),
            _ => (
                Exit::Config,
                "check where the catalogue is, and its region; if it holds an object that is not ours, move it away",
            ),
        };
        Self::new(exit, &error, help)
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        let exit = match &error {
            StorageError::Unavailable { .. } => Exit::Unavailable,
            StorageError::NotPermitted { .. } => Exit::NotPermitted,
            _ => Exit::Config,
        };
        let help = error.help();
        Self::new(exit, &error, help)
    }
}

impl From<PolicySourceError> for Failure {
    fn from(error: PolicySourceError) -> Self {
        if let PolicySourceError::Untrusted { help, .. } = &error {
            return Self::config(&error, help);
        }
        let (exit, help) = match &error {
            PolicySourceError::Missing { .. } => (
                Exit::Config,
                "publish one: `sealflow policy publish`, or name another catalogue or dataset",
            ),
            PolicySourceError::NotPermitted { .. } => (Exit::NotPermitted, READABLE),
            _ => (
                Exit::Unavailable,
                "check that the catalogue's folder is there; for a bucket: endpoint, network and credentials",
            ),
        };
        Self::new(exit, &error, help)
    }
}

impl From<TransformError> for Failure {
    fn from(error: TransformError) -> Self {
        match error {
            TransformError::Stop { kind, reason, help } => Self::new(exit_of(kind), reason, help),
            error => Self::new(
                Exit::Unavailable,
                error,
                "check KMS and catalogue with `sealflow validate`, then try again",
            ),
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let exit = match &error {
            RunError::Config(_) => Exit::Config,
            RunError::Denied { .. } => Exit::NotPermitted,
            RunError::Stopped { kind, .. } => exit_of(*kind),
            _ => Exit::Unavailable,
        };
        Self::new(exit, &error, error.help())
    }
}

impl From<LocatorError> for Failure {
    fn from(error: LocatorError) -> Self {
        Self::config(error, "change the columns of the policy")
    }
}

fn exit_of(kind: StopKind) -> Exit {
    match kind {
        StopKind::Data => Exit::Data,
        StopKind::Config => Exit::Config,
        StopKind::NotPermitted => Exit::NotPermitted,
        StopKind::Unavailable => Exit::Unavailable,
        StopKind::Io => Exit::Io,
        _ => Exit::Internal,
    }
}
