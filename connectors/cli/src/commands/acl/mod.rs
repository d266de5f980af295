//! `sealflow acl`: who may open what, by the newest signed policy, and why.

mod found;
mod who;
mod why;

pub(crate) use why::identity;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use sealflow::acl::Identity;
use sealflow::clock::UnixMillis;
use sealflow::policy::signed::verify;
use sealflow::policy::{Access, Policy, VerifiedDomain, VerifiedPolicy};

use super::policy::Trusting;
use crate::failure::{Failure, Result};
use crate::files;
use crate::services::{clock, read_unsigned};

/// Show who may open what, and why
///
/// Answers come from the newest signed policy and the documents of its domains. An ACL takes away and never gives: whoever
/// reads with credentials of their own also needs kms:Decrypt, and KMS enforces that.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Show for every principal of the policy which columns it may open
    Who(who::Args),
    /// Show which rule lets somebody open a column, or does not
    Why(why::Args),
}

/// Runs the subcommand.
pub(crate) async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Who(args) => who::run(&args).await,
        Command::Why(args) => why::run(&args).await,
    }
}

/// Policy
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Policy")]
struct Source {
    /// Ask this policy file, which nobody signed, instead of the catalogue's newest
    #[arg(long, value_name = "POLICY")]
    dev: Option<PathBuf>,
    /// Ask this signed policy file (JWS), which one of the owners signed, instead of the catalogue's newest
    #[arg(long, value_name = "POLICY", conflicts_with = "dev")]
    signed: Option<PathBuf>,
    /// What the reader says it reads for
    #[arg(long, value_name = "PURPOSE")]
    purpose: Option<String>,
    /// Answer as of this moment instead of now: `2027-01-01T00:00:00Z`
    #[arg(long, value_name = "TIME")]
    at: Option<UnixMillis>,
    #[command(flatten)]
    trusting: Trusting,
}

/// Documents by the name of their domain.
type Domains = BTreeMap<String, Arc<VerifiedDomain>>;

/// A policy with the documents of its domains.
struct Asked {
    policy: VerifiedPolicy,
    domains: Domains,
    purpose: Option<String>,
    now: UnixMillis,
}

impl Source {
    async fn open(&self, dataset: Option<&String>) -> Result<Asked> {
        let (policy, domains) = match self.of_file()? {
            Some(policy) => (of_dataset(policy, dataset)?, BTreeMap::new()),
            None => self.newest(dataset).await?,
        };
        Ok(self.asked(policy, domains))
    }

    fn asked(&self, policy: VerifiedPolicy, domains: Domains) -> Asked {
        Asked {
            policy,
            domains,
            purpose: self.purpose.clone(),
            now: self.at.unwrap_or_else(|| clock().now()),
        }
    }

    /// The policy of `--dev` or `--signed`.
    fn of_file(&self) -> Result<Option<VerifiedPolicy>> {
        if let Some(path) = &self.signed {
            let jws = files::read_text(path)?;
            let policy = verify(jws.trim(), &self.trusting.pinned()?).map_err(|error| {
                let failure = Failure::from(error);
                Failure {
                    message: format!("{}: {}", path.display(), failure.message),
                    ..failure
                }
            })?;
            return Ok(Some(policy));
        }
        self.dev.as_deref().map(read_unsigned).transpose()
    }

    async fn newest(&self, dataset: Option<&String>) -> Result<(VerifiedPolicy, Domains)> {
        let trusted = self.trusting.open(None).await?;
        let dataset = trusted.dataset(dataset)?;
        let source = trusted.policies_to_look_at()?;
        let policy = source.policy(&dataset).await?;
        let mut domains = Domains::new();
        for name in policy.policy().columns.iter().filter_map(|rule| rule.domain()) {
            if !domains.contains_key(name) {
                domains.insert(name.to_owned(), source.domain(name, None).await?);
            }
        }
        Ok((policy.as_ref().clone(), domains))
    }
}

fn of_dataset(policy: VerifiedPolicy, dataset: Option<&String>) -> Result<VerifiedPolicy> {
    let name = &policy.policy().dataset;
    match dataset.filter(|asked| *asked != name) {
        Some(asked) => Err(Failure::usage(
            format_args!("the file is the policy of {name}, not of {asked}"),
            "leave the dataset out, or give its own policy",
        )),
        None => Ok(policy),
    }
}

impl Asked {
    fn policy(&self) -> &Policy {
        self.policy.policy()
    }

    /// What the policy says about the label.
    fn access(&self, label: &str, who: &Identity) -> Access {
        let purpose = self.purpose.as_deref();
        let domain = |name: &str| self.domains.get(name).map(|domain| domain.document());
        self.policy().access(label, who, purpose, self.now, domain)
    }
}
