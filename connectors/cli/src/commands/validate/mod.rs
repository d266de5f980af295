//! `sealflow validate`: everything that can be checked before a record is written, as a list.

mod broker;
mod checklist;
mod keys;
mod sample;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

pub(super) use broker::ask;
use checklist::{Checklist, Verdict};
use sealflow::keys::Catalogue;
use sealflow::policy::{ClientSealed, VerifiedPolicy};

use crate::config::{self, Environment, PipelineConfig};
use crate::failure::{Failure, Result};
use crate::services::{PolicyOrigin, Services, open_catalogue, open_kms, open_policy};
use crate::term::{OutputFormat, Style, say};

/// Check a pipeline before it runs: configuration, policy, keys, broker, topics
///
/// Writes no record. Makes one data key per key of the policy, which is thrown away.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pipeline file
    #[arg(value_name = "PIPELINE", env = "SEALFLOW_PIPELINE", hide_env_values = true)]
    pipeline: PathBuf,
    /// Look at that many of the newest records; 0 for none
    #[arg(long, value_name = "N", default_value_t = 100)]
    sample: usize,
    /// Use this policy file although nobody signed it: for development only
    #[arg(long, value_name = "POLICY")]
    dev: Option<PathBuf>,
    /// How to print the list
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Runs the subcommand. The exit code is that of the first check that failed.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let mut list = match args.output {
        OutputFormat::Text => Checklist::printing(Style::of_stdout()),
        OutputFormat::Json => Checklist::default(),
    };
    check_all(&args, &mut list).await;
    match args.output {
        OutputFormat::Json => list.say_json(),
        OutputFormat::Text => say(summary(&list)),
    }
    Ok(ExitCode::from(list.exit_code()))
}

fn summary(list: &Checklist) -> String {
    let (failed, warnings) = (list.count(Verdict::Failed), list.count(Verdict::Warning));
    match (failed, warnings) {
        (0, 0) => "ready to run".to_owned(),
        (0, _) => format!("ready to run, with {warnings} to look at"),
        _ => format!("{failed} failed, {warnings} to look at"),
    }
}

async fn check_all(args: &Args, list: &mut Checklist) {
    let config = match config::load(&args.pipeline, &Environment::of_process()) {
        Ok(config) => config,
        Err(failure) => return list.failed("configuration", &failure),
    };
    list.ok(
        "configuration",
        format_args!("{}: syntax, keys and values", args.pipeline.display()),
    );
    let services = services(&config, args.dev.clone(), list).await;
    if let Some(services) = &services {
        keys::check(&config, services, list).await;
        if let Some(table) = &config.target.table {
            match super::land::check(&config, table, services).await {
                Ok(()) => list.ok(
                    "target.table",
                    format_args!("{}: schema, policy and location", table.location),
                ),
                Err(failure) => list.failed("target.table", &failure),
            }
        }
    }
    let reachable = broker::check(&config, list).await;
    match (&services, reachable, args.sample) {
        (_, _, 0) => list.skipped("sample", "not asked for"),
        (Some(services), true, wanted) => sample::check(&config, &services.policy, wanted, list).await,
        _ => list.skipped("sample", "needs policy and broker"),
    }
}

/// Catalogue, policy and KMS client, each a line of the list; `None` if one is missing.
async fn services(config: &PipelineConfig, dev: Option<PathBuf>, list: &mut Checklist) -> Option<Services> {
    let catalogue = match readable_catalogue(config).await {
        Ok(catalogue) => catalogue,
        Err(failure) => {
            list.failed("catalogue", &failure);
            return None;
        }
    };
    list.ok("catalogue", &config.catalogue);
    let origin = match PolicyOrigin::of(config, dev) {
        Ok(origin) => origin,
        Err(failure) => {
            list.failed("policy", &failure);
            return None;
        }
    };
    let (policies, policy) = match open_policy(&origin, &config.dataset, &catalogue).await {
        Ok(found) => found,
        Err(failure) => {
            list.failed("policy", &failure);
            return None;
        }
    };
    say_policy(&policy, list);
    dead_letters(config, &policy, list);
    replay_memory(config, &policy, list);
    let kms = match open_kms(&config.kms).await {
        Ok(kms) => kms,
        Err(failure) => {
            list.failed("kms", &failure);
            return None;
        }
    };
    let services = Services::new(catalogue, kms, policies, policy);
    match supported(config, &services) {
        Ok(columns) => list.ok(
            "policy supported",
            format_args!("all {columns} columns can be handled by this version"),
        ),
        Err(failure) => {
            list.failed("policy supported", &failure);
            return None;
        }
    }
    Some(services)
}

/// Opened, and asked for what it holds: a bucket says only then whether it is there and lets us.
async fn readable_catalogue(config: &PipelineConfig) -> Result<Arc<dyn Catalogue>> {
    let catalogue = open_catalogue(&config.catalogue).await?;
    catalogue.list(&format!("policies/{}", config.dataset)).await?;
    Ok(catalogue)
}

fn say_policy(policy: &Arc<VerifiedPolicy>, list: &mut Checklist) {
    let model = policy.policy();
    match policy.owner() {
        Some(owner) => list.ok(
            "policy",
            format_args!(
                "{} version {}, signed by pinned owner {owner}",
                model.dataset, model.version
            ),
        ),
        None => list.warn(
            "policy",
            format_args!("{} version {} is not signed", model.dataset, model.version),
            "sign and publish it before real data flows: `sealflow policy publish --key owner.key`",
        ),
    }
}

fn dead_letters(config: &PipelineConfig, policy: &VerifiedPolicy, list: &mut Checklist) {
    let check = "dead letters";
    match (config.dead_letters.is_some(), policy.policy().dead_letters.is_some()) {
        (true, true) => match policy.policy().dead_letters.as_ref().and_then(|rule| rule.recipient()) {
            None => list.ok(check, "sealed whole, under the policy's key and ACL for them"),
            Some(recipient) => list.ok(
                check,
                format_args!(
                    "sealed whole, for whoever has the private half of {} (RSA-{})",
                    recipient.thumbprint(),
                    recipient.bits()
                ),
            ),
        },
        (true, false) => list.warn(
            check,
            "the policy has no `dead_letters`, so a bad record stops the pipeline",
            "add `dead_letters: {key, acl}` or `{recipient}` to the policy",
        ),
        (false, true) => list.warn(
            check,
            "the pipeline has no `dead_letters`, so a bad record stops it",
            "add `dead_letters: { topic: NAME }` to the pipeline file",
        ),
        (false, false) => list.warn(
            check,
            "none: a bad record stops the pipeline",
            "add `dead_letters` to the policy and to the pipeline file",
        ),
    }
}

/// Whether columns whose values count once have something that remembers them.
fn replay_memory(config: &PipelineConfig, policy: &VerifiedPolicy, list: &mut Checklist) {
    let columns = &policy.policy().columns;
    let needs_one = columns.iter().any(|rule| rule.client_sealed == ClientSealed::Once);
    match &config.replay_memory {
        Some(memory) if needs_one => list.ok("replay memory", format_args!("topic {}", memory.topic)),
        None if needs_one => list.failed(
            "replay memory",
            &Failure::config(
                "the policy has columns with client_sealed: once, and nothing remembers which values were taken",
                "add `replay_memory: { topic: NAME, create: true }` to the pipeline file",
            ),
        ),
        Some(_) => list.warn(
            "replay memory",
            "no column of the policy has client_sealed: once",
            "take `replay_memory` out, or let the policy ask for it",
        ),
        None => {}
    }
}

/// Compiles the transform, as a run would.
fn supported(config: &PipelineConfig, services: &Services) -> Result<usize> {
    services.check_supported()?;
    let format = config
        .format
        .core()
        .ok_or_else(|| Failure::config("format: not taken by this version", "use json, ndjson or json-sr"))?;
    services.sealing(format, config.keys, services.sealer())?;
    Ok(services.policy.policy().columns.len())
}
