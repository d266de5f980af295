//! `sealflow run`: a pipeline from topic to topic, with its admin port, until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use sealflow::flow::direct::DirectSealer;
use sealflow::keys::OpeningKeys;
use sealflow::pipeline::{Clients, Counters, Transform, TransformCounters};
use sealflow::policy::VerifiedPolicy;
use sealflow_kafka::{Runner, RunnerOptions, Summary, TakenTopic};
use serde::Serialize;

use super::land;
use crate::admin::AdminServer;
use crate::audit;
use crate::config::{self, Environment, Mode, PipelineConfig};
use crate::enclave;
use crate::enclave_keys;
use crate::failure::{Exit, Failure, Result};
use crate::log::{self, LogFormat};
use crate::metered::Metered;
use crate::metrics::Metrics;
use crate::reload::Reloading;
use crate::services::{PolicyOrigin, Services, check_supported, open_catalogue, open_kms, open_policy_asked_every};
use crate::signals;
use crate::status::Status;
use crate::telemetry::Telemetry;
use crate::term::{OutputFormat, Progress, say, say_json};
use crate::while_it_counts::WhileItCounts;

/// How long the brokers may take to show the replay memory.
const MEMORY_PATIENCE: Duration = Duration::from_secs(30);

/// Run a pipeline: topic in, sealed (or opened) topic out, exactly once
///
/// Runs until SIGTERM or Ctrl-C, which drain: what was read is finished and committed. A second signal stops at
/// once; nothing is lost, what was not committed is read again by the next run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pipeline file
    #[arg(value_name = "PIPELINE", env = "SEALFLOW_PIPELINE", hide_env_values = true)]
    pipeline: PathBuf,
    /// Stop at the end that the topics have now
    #[arg(long)]
    until_end: bool,
    /// Use this policy file although nobody signed it: for development only
    #[arg(long, value_name = "POLICY")]
    dev: Option<PathBuf>,
    /// How to print the summary
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    /// The global option, handed on.
    #[arg(skip)]
    pub(crate) log: LogFormat,
}

/// Runs the subcommand.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let config = config::load(&args.pipeline, &Environment::of_process())?;
    let telemetry = Telemetry::start(&config.telemetry, &config.name, &config.instance)?;
    log::start(args.log, telemetry.as_ref());
    let ended = run_pipeline(args, &config).await;
    if let Some(telemetry) = telemetry {
        telemetry.flush().await;
    }
    ended
}

async fn run_pipeline(args: Args, config: &PipelineConfig) -> Result<ExitCode> {
    let shutdown = signals::listen()?;
    let metrics = Arc::new(Metrics::new(&config.name));
    let mut services = services(config, args.dev, &metrics).await?;
    services.clients = clients(config, &services, "").await?;
    let _publishing = enclave_keys::start(config.enclave.as_ref(), &services)?;
    if let Some(table) = &config.target.table {
        let ended = land::run(config, table, &services, metrics, args.until_end, shutdown).await;
        close(&services).await;
        return Ok(said(args.output, &ended?));
    }
    let assembled = Assembled::new(config, &services, metrics)?;
    let options = RunnerOptions {
        pipeline: config.name.clone(),
        instance: config.instance.clone(),
        threads: config.threads,
        batch: config.batch,
        until_end: args.until_end,
    };
    let runner = Runner::new(
        config.kafka(),
        options,
        Arc::clone(&assembled.transform),
        Arc::clone(&assembled.status.counters),
    )?;
    let admin = match config.admin.listen {
        Some(address) => Some(AdminServer::start(address, assembled.status.clone()).await?),
        None => None,
    };
    say_start(config, &services, admin.as_ref());
    let housekeeping = tokio::spawn(keep_house(Arc::clone(&assembled.status), args.until_end));
    let newest = assembled.reloading.follow(config.policy_refresh.0);
    let ended = tokio::select! {
        ended = runner.run(shutdown) => ended.map_err(Failure::from),
        // What is not committed is dropped: it may have been sealed under a policy that counts no more.
        failure = newest => Err(failure),
    };
    housekeeping.abort();
    close(&services).await;
    // The admin port answers until everything is committed.
    drop(admin);
    let summary = RunSummary::new(config, &ended?, &assembled.status);
    Ok(said(args.output, &summary))
}

/// Ends the audit log of refused values with a checkpoint. What it has is durable without it.
pub(super) async fn close(services: &Services) {
    if let Err(error) = services.clients.close().await {
        tracing::warn!(%error, "the audit log was not ended with a checkpoint");
    }
}

fn said(output: OutputFormat, summary: &RunSummary) -> ExitCode {
    match output {
        OutputFormat::Json => say_json(summary),
        OutputFormat::Text => say(summary.line()),
    }
    ExitCode::SUCCESS
}

/// Catalogue, KMS and policy of a pipeline file.
pub(crate) async fn services(
    config: &PipelineConfig,
    dev: Option<PathBuf>,
    metrics: &Arc<Metrics>,
) -> Result<Services> {
    let origin = PolicyOrigin::of(config, dev)?;
    let catalogue = open_catalogue(&config.catalogue).await?;
    // Half the interval, so that every look reaches the catalogue.
    let refresh = config.policy_refresh.0 / 2;
    let (policies, policy) = open_policy_asked_every(refresh, &origin, &config.dataset, &catalogue).await?;
    let kms = Arc::new(Metered::new(open_kms(&config.kms).await?, Arc::clone(&metrics.kms)));
    let mut services = Services::new(catalogue, kms, policies, policy);
    services.check_supported()?;
    if config.mode == Mode::Seal {
        services.enclave = enclave::start(config.enclave.as_ref(), &config.kms, &services).await?;
    }
    Ok(services)
}

/// What judges the values of clients: with the pipeline's memory of those that count once, and its audit log. `beside` is what a
/// process puts behind the names of the log's files that runs while the pipeline does.
pub(super) async fn clients(config: &PipelineConfig, services: &Services, beside: &str) -> Result<Clients> {
    let mut clients = services.clients.clone();
    if config.mode == Mode::Open {
        return Ok(clients);
    }
    if let Some(audit) = &config.audit {
        let mut audit = audit.clone();
        for path in std::iter::once(&mut audit.checkpoints).chain(&mut audit.path) {
            path.as_mut_os_string().push(beside);
        }
        clients = clients.with_audit(audit::open_configured(audit).await?);
    }
    let mac = services
        .policy
        .policy()
        .client
        .as_ref()
        .and_then(|client| client.mac.as_ref());
    match &config.replay_memory {
        // Also where no policy needs it yet: a newer one may.
        Some(memory) => {
            let (memory, kafka) = (memory.clone(), config.kafka());
            let remember = mac.map(|mac| mac.remember).unwrap_or_default();
            let (clock, runtime) = (Arc::clone(&services.clock), tokio::runtime::Handle::current());
            let opened = tokio::task::spawn_blocking(move || {
                TakenTopic::open(&memory, &kafka, remember, clock, MEMORY_PATIENCE, &runtime)
            });
            let panicked = |_| {
                Failure::new(
                    Exit::Internal,
                    "opening the replay memory panicked",
                    "please report this bug",
                )
            };
            Ok(clients.with_taken(Arc::new(opened.await.map_err(panicked)??)))
        }
        None if services.remembers_values() => Err(Failure::config(
            "replay_memory: the policy has columns with client_sealed: once, and nothing remembers which values were taken",
            "add `replay_memory: { topic: NAME, create: true }` to the pipeline file",
        )),
        None => Ok(clients),
    }
}

/// The transform of a pipeline, and what it counts.
struct Assembled {
    transform: Arc<dyn Transform>,
    reloading: Arc<Reloading>,
    status: Arc<Status>,
}

impl Assembled {
    fn new(config: &PipelineConfig, services: &Services, metrics: Arc<Metrics>) -> Result<Self> {
        let keys = Keys::new(config, services);
        let counted = Arc::new(TransformCounters::default());
        let make = {
            let (config, services, keys, counted) =
                (config.clone(), services.clone(), keys.clone(), Arc::clone(&counted));
            move |policy: Arc<VerifiedPolicy>| {
                check_supported(&policy)?;
                make(&config, &services.with_policy(policy), &keys, &counted)
            }
        };
        let policy = Arc::clone(&services.policy);
        let policies = Arc::clone(&services.policies);
        let reloading = Arc::new(Reloading::new(policy, policies, Arc::clone(&metrics), Box::new(make))?);
        let status = Status::new(
            Arc::new(Counters::default()),
            counted,
            keys.sealer.keys,
            keys.opening,
            metrics,
        );
        let status = status.with_clients(services.clients.clone());
        let status = Arc::new(status.with_enclave(services.enclave.clone()));
        Ok(Self {
            transform: Arc::clone(&reloading) as Arc<dyn Transform>,
            reloading,
            status,
        })
    }
}

/// Caches of keys, which outlive a version of the policy.
#[derive(Clone)]
struct Keys {
    sealer: DirectSealer,
    opening: Option<OpeningKeys>,
}

impl Keys {
    fn new(config: &PipelineConfig, services: &Services) -> Self {
        Self {
            sealer: services.sealer(),
            opening: (config.mode == Mode::Open).then(|| services.opening_keys()),
        }
    }
}

/// The transform of a pipeline under the policy that there is now.
pub(crate) fn transform(config: &PipelineConfig, services: &Services) -> Result<Arc<dyn Transform>> {
    let made = make(config, services, &Keys::new(config, services), &Arc::default())?;
    Ok(Arc::new(WhileItCounts::new(made, services)))
}

fn make(
    config: &PipelineConfig,
    services: &Services,
    keys: &Keys,
    counted: &Arc<TransformCounters>,
) -> Result<Arc<dyn Transform>> {
    let format = config
        .format
        .core()
        .ok_or_else(|| Failure::config("format: not taken by this version", "use json, ndjson or json-sr"))?;
    let (sealer, counted) = (keys.sealer.clone(), Arc::clone(counted));
    Ok(match &keys.opening {
        None => {
            let transform = services.sealing(format, config.keys, sealer)?;
            Arc::new(transform.with_limits(config.output).with_counters(counted))
        }
        Some(keys) => {
            let transform = services.opening(format, config.keys, keys.clone(), sealer)?;
            Arc::new(transform.with_limits(config.output).with_counters(counted))
        }
    })
}

pub(super) fn say_start(config: &PipelineConfig, services: &Services, admin: Option<&AdminServer>) {
    let policy = services.policy.policy();
    let admin = admin.map_or_else(|| "none".to_owned(), |admin| admin.address.to_string());
    let columns = policy.columns.len();
    tracing::info!(pipeline = config.name, dataset = policy.dataset, policy = policy.version, columns, %admin, "starting");
    if config.mode == Mode::Open {
        tracing::warn!("this pipeline opens: it recreates plaintext at its target");
    }
    if policy.dead_letters.is_none() || config.dead_letters.is_none() {
        tracing::warn!(
            "no dead letters: a record that cannot be processed stops the pipeline (needs dead_letters in policy and pipeline)"
        );
    }
}

/// Lets old keys go, once a second, and shows progress where somebody watches a run that ends.
pub(super) async fn keep_house(status: Arc<Status>, until_end: bool) {
    let progress = Progress::records(until_end);
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        progress.set(Counters::get(&status.counters.records_committed));
        status.sealing.tick().await;
        if let Some(opening) = &status.opening {
            opening.tick().await;
        }
        if let Some(clients) = &status.clients {
            clients.tick().await;
        }
    }
}

/// What a run did, in one line or one document.
#[derive(Serialize)]
pub(super) struct RunSummary {
    pipeline: String,
    mode: &'static str,
    records: u64,
    dead_letters: u64,
    values: u64,
    bytes_received: u64,
    bytes_sent: u64,
    seconds: f64,
    records_per_second: f64,
    commits: u64,
    aborts: u64,
}

impl RunSummary {
    pub(super) fn new(config: &PipelineConfig, summary: &Summary, status: &Status) -> Self {
        let seconds = summary.elapsed.as_secs_f64();
        // Precision is lost beyond 2^53 records, where nobody counts them one by one.
        #[allow(clippy::cast_precision_loss)]
        let records = summary.records as f64;
        Self {
            pipeline: config.name.clone(),
            mode: if status.opens { "open" } else { "seal" },
            records: summary.records,
            dead_letters: summary.dead_letters,
            values: Counters::get(&status.transform.values),
            bytes_received: summary.bytes_received,
            bytes_sent: summary.bytes_sent,
            seconds: (seconds * 1000.0).round() / 1000.0,
            records_per_second: (records / seconds.max(0.001)).round(),
            commits: summary.commits,
            aborts: summary.aborts,
        }
    }

    fn line(&self) -> String {
        let verb = if self.mode == "open" { "opened" } else { "sealed" };
        format!(
            "{}: {} records, {} to dead letters, {} values {verb}, {} bytes in, {} bytes out, {:.1} s, {} records/s",
            self.pipeline,
            self.records,
            self.dead_letters,
            self.values,
            self.bytes_received,
            self.bytes_sent,
            self.seconds,
            self.records_per_second
        )
    }
}
