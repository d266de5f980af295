//! `sealflow dlq replay`: the records of dead letters through the pipeline again, each once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use sealflow::pipeline::{Counters, LetterOpener, ReplayTransform, StopKind, Transform};
use sealflow::policy::Recipient;
use sealflow_kafka::{FolderLetter, FolderSummary, ReplayTo, RunError, Runner, RunnerOptions, source_topics};
use serde::Serialize;

use super::key::{self, LetterKey};
use super::{Place, Select, read};
use crate::commands::run::{clients, close, services, transform};
use crate::config::{self, Environment, PipelineConfig};
use crate::failure::{Exit, Failure, Result};
use crate::metrics::Metrics;
use crate::services::Services;
use crate::signals;
use crate::term::{OutputFormat, note, say, say_json};
use crate::while_it_counts::WhileItCounts;

const PATIENCE: Duration = Duration::from_secs(30);

/// Send the records of dead letters through the pipeline again, each once
///
/// One pass over the letters that are there at the start. Records and the replay's own offsets are committed
/// together, so a replay that is killed goes on where it stopped. Records go through the pipeline's transform to
/// its target, at their partition, with key, headers and time stamp. Letters that are not selected, do not open or
/// fail again go to the end of the dead-letter topic, files of the oversize folder stay. Needs rights on the KMS key of the dead
/// letters, or the private key that they are sealed to.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    select: Select,
    /// Where records go: `target`, or `source` for the pipeline to read them again, in clear
    #[arg(long, value_enum, default_value_t)]
    to: To,
    /// The private key (PKCS #8, PEM) of `dead_letters.recipient`, which no service holds
    #[arg(long, value_name = "FILE")]
    dead_letter_key: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum To {
    /// The pipeline's target, through its transform
    #[default]
    Target,
    /// The source topic, in clear as it was: the running pipeline takes it from there
    Source,
}

#[derive(Serialize)]
struct Replayed {
    letters: u64,
    replayed: u64,
    kept: u64,
    aborts: u64,
}

pub(super) async fn run(args: Args) -> Result<ExitCode> {
    let config = config::load(&args.place.pipeline, &Environment::of_process())?;
    let shutdown = signals::listen()?;
    if config.target.table.is_some() && args.to == To::Target {
        return Err(Failure::config(
            "target.table: dead letters are not replayed into a table",
            "use --to source: the records come back to their topic, and are landed as all others",
        ));
    }
    let metrics = Arc::new(Metrics::new(&config.name));
    let mut services = services(&config, None, &metrics).await?;
    if args.to == To::Target {
        // The pipeline itself may run, and has its log open.
        services.clients = clients(&config, &services, ".replay").await?;
    }
    let opener = opener(&config, &services, args.dead_letter_key.as_deref())?;
    let kafka = config.kafka();
    let known = {
        let kafka = kafka.clone();
        let asked = tokio::task::spawn_blocking(move || source_topics(&kafka, PATIENCE)).await;
        asked.map_err(|_| Failure::new(Exit::Internal, "asking for topics panicked", "please report this bug"))??
    };
    let then: Option<Arc<dyn Transform>> = match args.to {
        To::Target => Some(transform(&config, &services)?),
        To::Source => {
            note("warning: records go back to the source topic in clear, as they were read there");
            None
        }
    };
    let replay = ReplayTransform::new(opener, args.select.filter(), known, then);
    let options = RunnerOptions {
        pipeline: config.name.clone(),
        instance: "replay".to_owned(),
        threads: 1,
        batch: config.batch,
        until_end: true,
    };
    let to = match args.to {
        To::Target => ReplayTo::Target,
        To::Source => ReplayTo::Source,
    };
    let replay: Arc<dyn Transform> = Arc::new(WhileItCounts::new(replay, &services));
    let runner = || {
        let counters = Arc::new(Counters::default());
        Runner::new(kafka.clone(), options.clone(), Arc::clone(&replay), counters)?.replaying(to)
    };
    let summary = runner()?.run(shutdown.clone()).await?;
    let files = read::files(&config)?;
    let folder = if files.is_empty() {
        FolderSummary::default()
    } else {
        let letters = files.into_iter().map(|path| folder_letter(&path));
        runner()?.run_folder(shutdown, letters).await?
    };
    close(&services).await;
    let replayed = Replayed {
        letters: summary.records + folder.replayed + folder.kept,
        replayed: summary.records - summary.dead_letters + folder.replayed,
        kept: summary.dead_letters + folder.kept,
        aborts: summary.aborts,
    };
    match args.place.output {
        OutputFormat::Json => say_json(&replayed),
        OutputFormat::Text => say(format_args!(
            "{}: {} letters, {} replayed, {} kept",
            config.name, replayed.letters, replayed.replayed, replayed.kept
        )),
    }
    Ok(ExitCode::SUCCESS)
}

/// What opens the letters: rights at KMS, and the key that was given. Where the policy names a recipient nothing is touched
/// without a key.
fn opener(config: &PipelineConfig, services: &Services, key: Option<&Path>) -> Result<LetterOpener> {
    let opener = LetterOpener::new(&config.dataset, services.opening_keys());
    let policy = services.policy.policy();
    let recipient = policy.dead_letters.as_ref().and_then(|rule| rule.recipient());
    let recipient = recipient.map(Recipient::thumbprint);
    let Some(path) = key else {
        return match recipient {
            Some(recipient) => Err(key::is_needed(&recipient)),
            None => Ok(opener),
        };
    };
    let key = LetterKey::read(path)?;
    if recipient != Some(key.name) {
        note(format_args!(
            "warning: version {} of the policy does not name the key {}: only letters that were sealed to it before open with it",
            policy.version, key.name
        ));
    }
    key.add_to(opener)
}

fn folder_letter(path: &Path) -> Result<FolderLetter, RunError> {
    let found = read::of_file(path).map_err(|failure| RunError::Stopped {
        kind: StopKind::Data,
        reason: failure.message,
        help: failure.help,
    })?;
    let json = found.message.value.as_deref().unwrap_or_default();
    Ok(FolderLetter {
        path: path.to_owned(),
        digest: sealflow::pipeline::dead_letter::digest(json),
        message: found.message,
    })
}
