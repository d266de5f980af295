//! `keys rotate`: new key material for the KMS keys of a policy. ARNs, envelopes and data stay as they are.

use std::collections::BTreeMap;
use std::process::ExitCode;

use sealflow::keys::{KeyAdmin as _, KeyServiceError};
use serde::Serialize;

use super::Kms;
use crate::commands::policy::Trusting;
use crate::failure::{Failure, Result};
use crate::term::{OutputFormat, note, say, say_json};

/// Give the KMS keys of a policy new key material, now
///
/// KMS keeps the old material for what it wrapped before, so nothing has to be written anew, the ARN stays, and no
/// pipeline is restarted. AWS allows 25 such rotations of one key, beside the automatic ones. To move to another KMS
/// key, change the policy and use `sealflow keys rewrap`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Dataset whose newest policy names the keys
    #[arg(value_name = "DATASET")]
    dataset: Option<String>,
    /// Only the policy key of this name; may be repeated
    #[arg(long = "key", value_name = "NAME")]
    keys: Vec<String>,
    /// Say how data keys rotate instead: that is up to the pipelines
    #[arg(long, conflicts_with_all = ["keys", "dry_run"])]
    data_keys: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    #[command(flatten)]
    trusting: Trusting,
    #[command(flatten)]
    kms: Kms,
}

/// What became of one KMS key.
#[derive(Debug, Serialize)]
struct Rotated {
    arn: String,
    policy_keys: Vec<String>,
    rotated: bool,
    /// The answer was lost: it may have been rotated.
    unclear: bool,
    error: Option<String>,
}

/// Data keys live in the memory of the pipelines that made them.
#[derive(Debug, Serialize)]
struct DataKeys {
    dataset: String,
    policy_version: u64,
    /// Seconds after which a data key of that policy key is replaced, at the latest.
    max_age_secs: BTreeMap<String, u64>,
    rotated: bool,
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    let trusted = args.trusting.open(None).await?;
    let dataset = trusted.dataset(args.dataset.as_ref())?;
    let policies = trusted.policies_to_look_at()?;
    let policy = policies.policy(&dataset).await?;
    let policy = policy.policy();
    if args.data_keys {
        let ages = policy
            .keys
            .iter()
            .map(|(name, key)| (name.clone(), key.max_age.as_secs()));
        let shown = DataKeys {
            dataset,
            policy_version: policy.version,
            max_age_secs: ages.collect(),
            rotated: false,
        };
        tell_data_keys(&shown, args.output);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = args.keys.iter().find(|name| !policy.keys.contains_key(*name)) {
        let known: Vec<_> = policy.keys.keys().map(String::as_str).collect();
        let message = format!("the policy of {dataset} has no key {unknown}");
        return Err(Failure::usage(message, format_args!("it has {}", known.join(", "))));
    }
    // Policy keys may share a KMS key: it is rotated once.
    let mut by_arn: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, key) in &policy.keys {
        if args.keys.is_empty() || args.keys.contains(name) {
            by_arn.entry(&key.arn).or_default().push(name.clone());
        }
    }
    let kms = args.kms.open(trusted.kms).await?;
    let mut failure: Option<KeyServiceError> = None;
    let mut all = Vec::new();
    for (arn, policy_keys) in by_arn {
        let answer = match args.dry_run {
            true => Ok(false),
            false => kms.rotate(arn).await.map(|()| true),
        };
        let error = answer.as_ref().err().map(ToString::to_string);
        let unclear = matches!(answer, Err(KeyServiceError::Unclear { .. }));
        let rotated = answer.unwrap_or_else(|error| {
            failure.get_or_insert(error);
            false
        });
        all.push(Rotated {
            arn: arn.to_owned(),
            policy_keys,
            rotated,
            unclear,
            error,
        });
    }
    tell(&all, args);
    match failure {
        None => Ok(ExitCode::SUCCESS),
        Some(error @ KeyServiceError::NotPermitted { .. }) => Err(Failure {
            help: "allow this identity kms:RotateKeyOnDemand in the key's policy".to_owned(),
            ..Failure::from(error)
        }),
        Some(error) => Err(error.into()),
    }
}

fn tell(all: &[Rotated], args: &Args) {
    if args.output == OutputFormat::Json {
        say_json(&all);
        return;
    }
    for key in all {
        let what = match (&key.error, args.dry_run) {
            (Some(_), _) if key.unclear => "perhaps rotated",
            (Some(_), _) => "not rotated",
            (None, true) => "would be rotated",
            (None, false) => "rotated",
        };
        say(format_args!(
            "{what}: {} (policy keys {})",
            key.arn,
            key.policy_keys.join(", ")
        ));
    }
    if all.iter().any(|key| key.rotated) {
        note("data keys made from now on are wrapped by the new material; those made before open as ever");
    }
}

fn tell_data_keys(keys: &DataKeys, output: OutputFormat) {
    if output == OutputFormat::Json {
        say_json(keys);
        return;
    }
    for (name, age) in &keys.max_age_secs {
        say(format_args!("{name}: replaced after at most {age} s (max_age)"));
    }
    note("nothing was done: data keys live in the pipelines' memory, which replace them at 80 % of any limit");
    note("to replace them now, publish the policy under the next version and let the pipelines take it in");
}
