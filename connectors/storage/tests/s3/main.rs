//! Buckets on moto's S3, an independent implementation, directly and through an HTTP proxy that makes faults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod bench;
mod catalogue;
mod faults;
mod place;
