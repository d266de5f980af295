//! What host and enclave worker say to each other, and how a worker proves what it is. No I/O: bytes in, bytes out.
//!
//! The joints by which other TEEs than Nitro can be added are in [`joints`]: evidence is made by a [`joints::Attester`], and what
//! a key service releases to it goes through a [`joints::KeyReleaser`]. Nitro's evidence is believed by `attestation::verify`, and
//! `recipient::Recipient` takes what AWS KMS releases.

#[cfg(any(feature = "attestation", feature = "cms"))]
mod asn1;
#[cfg(feature = "attestation")]
pub mod attestation;
#[cfg(feature = "cms")]
pub mod cms;
pub mod column;
pub mod frame;
pub mod image;
pub mod joints;
#[cfg(feature = "link")]
pub mod link;
#[cfg(feature = "measurements")]
pub mod measurements;
pub mod message;
#[cfg(feature = "nsm")]
pub mod nsm;
#[cfg(feature = "cms")]
pub mod recipient;
pub mod relay;
pub mod wire;
