//! KeyService on aws-sdk-kms.
