//! `sealflow run` of a pipeline whose target is a table.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sealflow::clock::{Clock as _, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::CatalogueError;
use sealflow::pipeline::{Counters, Format, KeysPlacement, TransformCounters};
use sealflow::policy::VerifiedPolicy;
use sealflow::seal::UsageLimits;
use sealflow::table::landing::{FileStore, TableEdition, TableParts};
use sealflow::table::schemas::{self, RegisterError};
use sealflow::table::{TableKeys, TableSchema, WriteOptions};
use sealflow_kafka::{LandingOptions, LandingRunner, Shutdown};
use sealflow_storage::Place;
use tokio::sync::watch;

use super::run::{RunSummary, keep_house, say_start};
use crate::admin::AdminServer;
use crate::clock::MachineClock;
use crate::config::{PipelineConfig, TableTarget, yaml_failure};
use crate::failure::{Exit, Failure, Result};
use crate::files;
use crate::landing::{Lander, PlaceFiles};
use crate::metrics::Metrics;
use crate::reload::Reloading;
use crate::services::{Services, check_supported};
use crate::status::Status;

/// A thread's open files share its memory: none holds more rows than this before it writes them out.
const SMALLEST_ROW_GROUP: u64 = 1 << 20;

/// How long a catalogue may be away when a run begins.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long after a writer's death what it left is removed.
const LEFT_FOR: Duration = Duration::from_secs(86_400);
const CLEAN_EVERY: Duration = Duration::from_secs(3_600);

/// Runs until the end of the topics, or until told to stop.
pub(super) async fn run(
    config: &PipelineConfig,
    table: &TableTarget,
    services: &Services,
    metrics: Arc<Metrics>,
    until_end: bool,
    shutdown: watch::Receiver<Shutdown>,
) -> Result<RunSummary> {
    let format = format(config)?;
    let schema = read_schema(table)?;
    register(services, &schema)
        .await
        .map_err(|error| not_followed(table, &error))?;
    let place = Place::open(&table.location, &table.bucket).await?;
    let store: Arc<dyn FileStore> = Arc::new(PlaceFiles(place.clone()));
    let (sealer, keys) = (services.sealer(), table_keys(services));
    let parts = TableParts {
        format,
        keys: keys.clone(),
        sealer: sealer.clone(),
        options: write_options(table),
        store: Arc::clone(&store),
    };
    let counted = Arc::new(TransformCounters::default());
    let make = {
        let (config, table, services) = (config.clone(), table.clone(), services.clone());
        let counted = Arc::clone(&counted);
        move |policy: Arc<VerifiedPolicy>| {
            check_supported(&policy)?;
            edition(
                &config,
                &table,
                &services.with_policy(policy),
                &schema,
                parts.clone(),
                &counted,
            )
            .map(Arc::new)
        }
    };
    let (policy, policies) = (Arc::clone(&services.policy), Arc::clone(&services.policies));
    let editions = Arc::new(Reloading::new(policy, policies, Arc::clone(&metrics), Box::new(make))?);
    let lander = Lander {
        editions: Arc::clone(&editions),
        store,
    };
    let status = Status::new(Arc::new(Counters::default()), counted, sealer.keys, None, metrics);
    let status = status.with_clients(services.clients.clone());
    let status = Arc::new(status.with_enclave(services.enclave.clone()));
    let options = LandingOptions {
        pipeline: config.name.clone(),
        instance: config.instance.clone(),
        dataset: config.dataset.clone(),
        format,
        partition_by: table.partition_by.clone(),
        roll: table.roll.limits(),
        open_files: table.open_files as usize,
        memory: table.memory.0,
        threads: config.threads,
        batch: config.batch,
        until_end,
    };
    let runner = LandingRunner::new(
        (config.source.kafka.clone(), config.dead_letters.clone()),
        options,
        Arc::new(lander),
        Arc::clone(&services.catalogue),
        (Arc::clone(&status.counters), Arc::clone(&status.landed)),
    )?;
    let admin = match config.admin.listen {
        Some(address) => Some(AdminServer::start(address, status.clone()).await?),
        None => None,
    };
    say_start(config, services, admin.as_ref());
    let housekeeping = tokio::spawn(keep_house(Arc::clone(&status), until_end));
    let letting_go = tokio::spawn(let_keys_go(keys));
    let cleaning = tokio::spawn(clean_leftovers(place, folders(config), table.roll.after.0));
    let newest = editions.follow(config.policy_refresh.0);
    let ended = tokio::select! {
        ended = runner.run(shutdown) => ended.map_err(Failure::from),
        // What is not committed is dropped: it may have been sealed under a policy that counts no more.
        failure = newest => Err(failure),
    };
    housekeeping.abort();
    letting_go.abort();
    cleaning.abort();
    // The admin port answers until everything is committed.
    drop(admin);
    let (summary, landed) = (ended?, &status.landed);
    tracing::info!(
        files = Counters::get(&landed.files),
        rows = Counters::get(&landed.rows),
        bytes = Counters::get(&landed.bytes),
        "landed"
    );
    Ok(RunSummary::new(config, &summary, &status))
}

/// Old keys of files, once a second, as those of values.
async fn let_keys_go(keys: TableKeys) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        keys.tick().await;
    }
}

/// Removes what writers that died left behind, once an hour. A file that is being written for longer than a day, because a
/// service is away, may go with it: it is made again then.
async fn clean_leftovers(place: Place, folders: Vec<String>, roll_after: Duration) {
    let age = (LEFT_FOR + roll_after).as_millis().try_into().unwrap_or(u64::MAX);
    loop {
        let before = UnixMillis(MachineClock.now().0.saturating_sub(age));
        for folder in &folders {
            match place.clean_leftovers(folder, before).await {
                Ok(0) => {}
                Ok(leftovers) => tracing::info!(folder, leftovers, "removed what writers that died had left"),
                Err(error) => tracing::warn!(folder, error = %error, "leftovers are not removed"),
            }
        }
        tokio::time::sleep(CLEAN_EVERY).await;
    }
}

/// Where this pipeline writes: others of the dataset may keep their files open for longer. Which topics a pattern matches is not
/// known here.
fn folders(config: &PipelineConfig) -> Vec<String> {
    let topics = config.source.kafka.topics.iter();
    topics
        .map(|topic| format!("{}/topic={topic}", config.dataset))
        .collect()
}

fn format(config: &PipelineConfig) -> Result<Format> {
    let format = config.format.core();
    format.ok_or_else(|| Failure::config("format: not taken by this version", "use json or json-sr"))
}

/// Keys of files.
fn table_keys(services: &Services) -> TableKeys {
    TableKeys::of(
        services.kms.clone(),
        Arc::clone(&services.catalogue),
        Arc::clone(&services.clock),
        UsageLimits::STANDARD,
    )
}

fn write_options(table: &TableTarget) -> WriteOptions {
    let share = table.memory.0 / u64::from(table.open_files.max(1)) * 4;
    WriteOptions {
        compression: table.compression,
        row_group_bytes: usize::try_from(share.clamp(SMALLEST_ROW_GROUP, 64 << 20)).unwrap_or(64 << 20),
        threads: 1,
        ..WriteOptions::default()
    }
}

/// The schema of the table.
fn read_schema(table: &TableTarget) -> Result<TableSchema> {
    let text = files::read_text(&table.schema)?;
    TableSchema::parse(text.as_bytes()).map_err(|error| yaml_failure(&table.schema, &error))
}

/// Puts the schema into the catalogue. One that is away for a moment does not end the run before it has begun.
async fn register(services: &Services, schema: &TableSchema) -> std::result::Result<(), RegisterError> {
    let since = Instant::now();
    loop {
        match schemas::register(services.catalogue.as_ref(), schema).await {
            Err(RegisterError::Catalogue(error)) if error.is_retryable() && since.elapsed() < START_PATIENCE => {
                tracing::warn!(error = %error, "the schema cannot be put into the catalogue yet");
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            answer => return answer,
        }
    }
}

fn not_followed(table: &TableTarget, error: &RegisterError) -> Failure {
    let exit = match error {
        RegisterError::Catalogue(error) if error.is_retryable() => Exit::Unavailable,
        RegisterError::Catalogue(CatalogueError::NotPermitted { .. }) => Exit::NotPermitted,
        _ => Exit::Config,
    };
    Failure::new(exit, format_args!("{}: {error}", table.schema.display()), error.help())
}

fn edition(
    config: &PipelineConfig,
    table: &TableTarget,
    services: &Services,
    schema: &TableSchema,
    parts: TableParts,
    counted: &Arc<TransformCounters>,
) -> Result<TableEdition> {
    let sealer: DirectSealer = parts.sealer.clone();
    // The envelopes of a batch come with its records, and go into the file.
    let transform = services.sealing(parts.format, KeysPlacement::Header, sealer)?;
    let transform = transform
        .for_table()
        .with_limits(config.output)
        .with_counters(Arc::clone(counted));
    let policy = Arc::clone(&services.policy);
    TableEdition::new(policy, schema, &table.partition_by, Arc::new(transform), parts).map_err(|error| {
        let version = services.policy.policy().version;
        Failure::config(
            format_args!(
                "policy of {}, version {version}, and {}: {error}",
                config.dataset,
                table.schema.display()
            ),
            error.help(),
        )
    })
}

/// Whether policy, schema and location make a table, as far as can be told without writing.
pub(super) async fn check(config: &PipelineConfig, table: &TableTarget, services: &Services) -> Result<()> {
    let schema = read_schema(table)?;
    schemas::check_follows(services.catalogue.as_ref(), &schema)
        .await
        .map_err(|error| not_followed(table, &error))?;
    let place = Place::open(&table.location, &table.bucket).await?;
    place.list(&config.dataset, None, 1).await?;
    let parts = TableParts {
        format: format(config)?,
        keys: table_keys(services),
        sealer: services.sealer(),
        options: write_options(table),
        store: Arc::new(PlaceFiles(place)),
    };
    edition(config, table, services, &schema, parts, &Arc::default()).map(drop)
}
