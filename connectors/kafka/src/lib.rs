//! Kafka: reads topics, hands their records to a transform, writes the outcomes, exactly once.
//!
//! One thread group is one consumer and one transactional producer (KIP-447). A batch is transformed
//! *before* its transaction begins, so that none is open while a key service is away; the transaction then
//! writes the outcomes and the source's offsets together. This crate knows nothing of keys or policies: it
//! calls [`sealflow::pipeline::Transform`].

/// A place where tests make a run die, wait or fail: nothing at all without the feature `failpoints`, which no
/// release has. `FAILPOINTS=NAME=5*off->1*return(abort)` ends the process at the sixth pass as `kill -9` would,
/// `return` makes the step fail where it can.
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        let _ = $crate::failpoints::fails($name);
    };
    ($name:literal, $error:expr) => {
        #[cfg(feature = "failpoints")]
        if $crate::failpoints::fails($name) {
            return Err($error);
        }
    };
}

mod config;
mod context;
mod error;
#[cfg(feature = "failpoints")]
pub mod failpoints;
mod flow;
mod folder;
mod group;
mod landing;
mod letters;
mod lines;
mod oversize;
mod properties;
mod ratio;
mod reading;
mod reasons;
mod record;
mod runner;
mod sample;
mod taken;
mod topics;
mod transaction;
mod unread;
mod until_end;
mod watch;

pub use config::{DeadLetters, KafkaConfig, KafkaSource, KafkaTarget};
pub use error::{ConfigError, RunError};
pub use folder::{FolderLetter, FolderSummary};
pub use landing::{LandingCounters, LandingOptions, LandingRunner};
pub use letters::{Letters, read_letters, source_topics};
pub use lines::{LineProducer, LineTopic};
pub use properties::Properties;
pub use reading::{StartAt, TopicReading, read_topic};
pub use runner::{Runner, RunnerOptions, Shutdown, Summary};
pub use sample::sample;
pub use taken::{ReplayMemory, TakenTopic};
pub use topics::{Finding, Level, ReplayTo, check_topics};
