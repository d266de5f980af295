//! Sealflow's core: seals and opens columns of streaming records, and decides who may.
//!
//! It knows no network, no files and no clock that it was not given: Kafka, KMS endpoints, folders and
//! buckets live in `connectors/` and are handed in through [`keys::KeyService`], [`keys::Catalogue`],
//! [`clock::Clock`] and the traits of `pipeline`.
//!
//! Rooms, from the bottom up (arrows point one way):
//! [`seal`] and [`jose`] ← [`acl`], [`audit`] and [`policy`] ← [`keys`] ← `columns` ← `flow` ← `pipeline` ← `table`.

pub mod acl;
pub mod audit;
// The columns need all of it, the rest of the core little.
#[cfg_attr(not(feature = "columns"), allow(dead_code))]
mod calendar;
pub mod clock;
pub mod jose;
pub mod keys;
pub mod policy;
pub mod seal;
pub mod secret;
pub mod units;

#[cfg(feature = "columns")]
pub mod columns;
#[cfg(feature = "flow")]
pub mod flow;
#[cfg(feature = "pipeline")]
pub mod pipeline;
#[cfg(feature = "table")]
pub mod table;
