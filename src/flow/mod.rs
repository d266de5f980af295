//! The three flows, one column sealer each.
//!
//! This version has [`direct`]; hybrid and enclave columns come with their own modules here, and end in the
//! same sealed values.

pub mod direct;
