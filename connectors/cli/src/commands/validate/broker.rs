//! Whether the brokers answer, and the topics are there and fit.

use std::time::Duration;

use sealflow_kafka::{Level, RunError, check_topics};

use super::checklist::Checklist;
use crate::config::PipelineConfig;
use crate::failure::{Exit, Failure};

/// How long brokers may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// One line for the brokers and one per topic. Whether the brokers answered.
pub(super) async fn check(config: &PipelineConfig, list: &mut Checklist) -> bool {
    let kafka = config.kafka();
    // librdkafka's questions block.
    let asked = tokio::task::spawn_blocking(move || check_topics(&kafka, PATIENCE)).await;
    let findings = match asked {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => {
            list.failed("broker", &Failure::from(error));
            list.skipped("topics", "needs the broker");
            return false;
        }
        Err(_) => {
            list.failed(
                "broker",
                &Failure::new(Exit::Internal, "the check broke off", "please report this"),
            );
            return false;
        }
    };
    list.ok("broker", format_args!("{} answers", config.source.kafka.brokers));
    for finding in findings {
        match finding.level {
            Level::Pass => list.ok(&finding.path, &finding.message),
            Level::Warning => list.warn(&finding.path, &finding.message, &finding.help),
            Level::Failure => list.failed(&finding.path, &Failure::config(&finding.message, &finding.help)),
        }
    }
    true
}

/// A blocking question to the brokers, off the runtime's threads.
pub(crate) async fn ask<T: Send + 'static>(
    question: impl FnOnce() -> Result<T, RunError> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(question).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::new(
            Exit::Internal,
            "a question to the broker broke off",
            "please report this",
        )),
    }
}
