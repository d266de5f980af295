//! Records on their way: what a source hands over, what a transform makes of it, where it goes.
//!
//! This module knows no broker: connectors implement the reading and writing around [`Transform`].

pub mod batch;
pub mod counters;
pub mod record;
pub mod transform;

pub use batch::{BatchLimits, Collector};
pub use counters::Counters;
pub use record::{Header, Position, Record, Timestamp};
pub use transform::{Outcome, Route, Transform, TransformError};
