//! Kafka: reads topics, hands their records to a transform, writes the outcomes, exactly once.
//!
//! One thread group is one consumer and one transactional producer (KIP-447). A batch is transformed
//! *before* its transaction begins, so that none is open while a key service is away; the transaction then
//! writes the outcomes and the source's offsets together. This crate knows nothing of keys or policies: it
//! calls [`sealflow::pipeline::Transform`].

mod config;
mod context;
mod error;
mod flow;
mod group;
mod properties;
mod ratio;
mod record;
mod runner;
mod sample;
mod topics;
mod transaction;
mod until_end;
mod watch;

pub use config::{DeadLetters, KafkaConfig, KafkaSource, KafkaTarget};
pub use error::{ConfigError, RunError};
pub use properties::Properties;
pub use runner::{Runner, RunnerOptions, Shutdown, Summary};
pub use sample::sample;
pub use topics::{Finding, Level, check_topics};
