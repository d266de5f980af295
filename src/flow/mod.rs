//! The three flows, one column sealer each. All end in the same sealed values.
//!
//! [`direct`] seals what comes in clear; [`hybrid`] opens what clients sealed, and hands it on to the direct flow. Enclave
//! columns come with a module of their own here.

pub mod direct;
pub mod hybrid;
