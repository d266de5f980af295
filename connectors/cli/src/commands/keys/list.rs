//! `keys list` and `keys show`: the data keys of a catalogue by their envelopes. They hold wrapped keys, and even those
//! are not shown.

use std::path::PathBuf;
use std::process::ExitCode;

use sealflow::keys::Envelope;
use sealflow::keys::rewrap::{Wrapped, inventory};
use sealflow_storage::{CatalogueConfig, Location};
use serde::Serialize;

use crate::config::{self, Environment};
use crate::failure::{Exit, Failure, Result};
use crate::place_arg::PlaceParser;
use crate::services::open_catalogue;
use crate::term::{OutputFormat, say, say_json, table};

/// List all data keys, newest first
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Only those of this dataset
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    #[command(flatten)]
    place: Place,
}

/// Show one data key
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Its id, or the start of it
    #[arg(value_name = "KEY")]
    key: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
struct Place {
    /// Take the catalogue from this pipeline file
    #[arg(long, value_name = "FILE", env = "SEALFLOW_PIPELINE", hide_env_values = true)]
    pipeline: Option<PathBuf>,
    /// The catalogue: a folder, or s3://BUCKET/PREFIX
    #[arg(long, value_name = "PLACE", value_parser = PlaceParser, env = "SEALFLOW_CATALOGUE", hide_env_values = true)]
    catalogue: Option<Location>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// What is shown of a data key.
#[derive(Clone, Debug, Serialize)]
struct Shown {
    key: String,
    dataset: String,
    policy_key: String,
    acl: String,
    arn: String,
    policy_version: u64,
    created: String,
    not_after: String,
    labels: Vec<ShownLabel>,
    /// How often it was wrapped.
    envelopes: usize,
}

#[derive(Clone, Debug, Serialize)]
struct ShownLabel {
    label: String,
    bind_row: Option<String>,
}

pub(super) async fn list(args: &ListArgs) -> Result<ExitCode> {
    let mut keys = args.place.keys().await?;
    keys.retain(|key| args.dataset.as_ref().is_none_or(|dataset| *dataset == key.dataset));
    if args.place.output == OutputFormat::Json {
        say_json(&keys);
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["KEY", "DATASET", "POLICY KEY", "ACL", "LABELS", "CREATED"].map(str::to_owned)];
    rows.extend(keys.iter().map(|key| {
        let labels = key.labels.len().to_string();
        [
            key.key.clone(),
            key.dataset.clone(),
            key.policy_key.clone(),
            key.acl.clone(),
            labels,
            key.created.clone(),
        ]
    }));
    table(&rows);
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn show(args: &ShowArgs) -> Result<ExitCode> {
    let mut keys = args.place.keys().await?;
    keys.retain(|key| key.key.starts_with(&args.key));
    let [key] = &keys[..] else {
        let message = format!("{} data keys start with {}", keys.len(), args.key);
        return Err(Failure::new(Exit::Data, message, "`sealflow keys list` shows all ids"));
    };
    if args.place.output == OutputFormat::Json {
        say_json(key);
        return Ok(ExitCode::SUCCESS);
    }
    say(format_args!("key         {}", key.key));
    say(format_args!("dataset     {}", key.dataset));
    say(format_args!(
        "policy key  {} (policy version {})",
        key.policy_key, key.policy_version
    ));
    say(format_args!("ACL         {}", key.acl));
    say(format_args!("KMS key     {}", key.arn));
    say(format_args!("created     {}", key.created));
    say(format_args!("seals until {}", key.not_after));
    say(format_args!("envelopes   {}", key.envelopes));
    for label in &key.labels {
        let bound = label
            .bind_row
            .as_ref()
            .map_or_else(String::new, |path| format!(" (bound to {path})"));
        say(format_args!("label       {}{bound}", label.label));
    }
    Ok(ExitCode::SUCCESS)
}

impl Place {
    async fn keys(&self) -> Result<Vec<Shown>> {
        let config = match (&self.catalogue, &self.pipeline) {
            (Some(location), _) => CatalogueConfig::from(location.clone()),
            (None, Some(path)) => config::load(path, &Environment::of_process())?.catalogue,
            (None, None) => {
                return Err(Failure::usage(
                    "no catalogue",
                    "give --catalogue PLACE or --pipeline FILE",
                ));
            }
        };
        // To look is not to make one.
        if let Some(folder) = config.location.folder().filter(|folder| !folder.is_dir()) {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Failure::io("read", folder, &missing));
        }
        let catalogue = open_catalogue(&config).await?;
        let found = inventory(catalogue.as_ref()).await?;
        for path in found.unreadable {
            tracing::warn!(path, "not a key envelope of a version known here");
        }
        let shown = |key: &Wrapped| Some(Shown::new(key.newest()?, key.envelopes.len()));
        let mut keys: Vec<_> = found.keys.iter().filter_map(shown).collect();
        keys.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.key.cmp(&b.key)));
        Ok(keys)
    }
}

impl Shown {
    /// `envelope` is the newest: the one that counts.
    fn new(envelope: &Envelope, envelopes: usize) -> Self {
        let label = |entry: &sealflow::keys::LabelEntry| ShownLabel {
            label: entry.label.clone(),
            bind_row: entry.bind_row.clone(),
        };
        Self {
            key: envelope.key_id().to_string(),
            dataset: envelope.dataset.clone(),
            policy_key: envelope.key_name.clone(),
            acl: envelope.acl.clone(),
            arn: envelope.arn.clone(),
            policy_version: envelope.policy_version,
            created: envelope.created().to_string(),
            not_after: envelope.not_after().to_string(),
            labels: envelope.labels.iter().map(label).collect(),
            envelopes,
        }
    }
}
