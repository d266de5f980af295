//! Landing: reads topics, and has their records written to files, each exactly once.
//!
//! One thread group is one consumer, without transactions: what makes it exact is that offsets are committed after the files
//! they stand for, and that files are decided once, by an intent ([`sealflow::table::landing`]). A thread group does one thing
//! after another, and stays in the consumer group meanwhile.

mod context;
mod group;
mod letters;
mod part;
mod runner;
mod steps;
mod write;

pub use runner::{LandingCounters, LandingOptions, LandingRunner};
