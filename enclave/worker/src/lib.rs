//! The program inside the TEE: opens what clients sealed, and seals it for storage and for readers.

pub mod assemble;
pub mod catalogue;
pub mod clock;
pub mod config;
pub mod configuration;
mod counted;
pub mod descriptors;
pub mod dial;
pub mod hosts;
pub mod identity;
pub mod nsm;
pub mod panics;
pub mod read;
pub mod sandbox;
pub mod serve;
pub mod vouch;
