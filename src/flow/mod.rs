//! The three flows, one column sealer each. All end in the same sealed values.
//!
//! [`direct`] seals what comes in clear; [`hybrid`] opens what clients sealed, and hands it on to the direct flow; [`enclave`]
//! has both done by a worker that the backend cannot look into.

pub mod direct;
pub mod enclave;
pub mod hybrid;
