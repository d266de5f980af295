//! `acl why`: the rule that decided.

use std::collections::BTreeSet;
use std::process::ExitCode;

use sealflow::acl::{Identity, OidcClaim, Principal, Refused};
use sealflow::policy::{Because, DEAD_LETTERS_SUFFIX, Policy};
use serde::Serialize;

use super::Source;
use crate::failure::{Failure, Result};
use crate::term::{OutputFormat, Style, harmless, say, say_json};

/// The exit code of an answer that is no: none of those that say that there is no answer.
const NO: u8 = 1;

/// Show which rule lets somebody open a column, or does not
///
/// Exits with 0 if the principal may open it and with 1 if not; any other exit code says that there is no answer.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The ARN of a caller, role or user; `oidc:ISSUER#sub=SUBJECT`; or `oidc:ISSUER#group=GROUP`
    #[arg(value_name = "PRINCIPAL")]
    principal: String,
    /// The column's path or label; `#dead-letters` for records that were set aside
    #[arg(value_name = "COLUMN")]
    column: String,
    /// The dataset
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// A group of the OIDC token; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    #[command(flatten)]
    source: Source,
}

#[derive(Serialize)]
struct Answer {
    dataset: String,
    version: u64,
    owner: Option<String>,
    principal: String,
    groups: BTreeSet<String>,
    purpose: Option<String>,
    label: String,
    allowed: bool,
    because: String,
    sees: &'static str,
    at: String,
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    let who = identity(&args.principal, &args.groups)?;
    let asked = args.source.open(args.dataset.as_ref()).await?;
    let policy = asked.policy();
    let (label, access) = if args.column == DEAD_LETTERS_SUFFIX {
        let access = policy.dead_letter_access(&who, asked.purpose.as_deref(), asked.now);
        (args.column.clone(), access)
    } else {
        let label = label(policy, &args.column)?;
        let access = asked.access(&label, &who);
        (label, access)
    };
    match &access.because {
        Because::UnknownLabel => return Err(unknown(policy, &args.column)),
        Because::UnknownDomain { domain } => {
            return Err(Failure::config(
                format_args!("the ACL of {label} is in the document of domain {domain}, which is not at hand"),
                "ask the catalogue (--catalogue, --owner) instead of a policy file",
            ));
        }
        _ => {}
    }
    let answer = Answer {
        dataset: policy.dataset.clone(),
        version: policy.version,
        owner: asked.policy.owner().map(|owner| owner.to_string()),
        principal: match &who {
            Identity::Oidc { issuer, subject, .. } if subject.is_empty() => format!("oidc:{issuer}, no subject"),
            who => who.to_string(),
        },
        groups: match &who {
            Identity::Oidc { groups, .. } => groups.clone(),
            _ => BTreeSet::new(),
        },
        purpose: asked.purpose.clone(),
        label,
        allowed: access.is_allowed(),
        because: access.because.to_string(),
        sees: match (access.is_allowed(), access.refused) {
            (true, _) => "the value",
            (false, Refused::Null) => "null",
            (false, Refused::Redact) => "[redacted]",
        },
        at: asked.now.to_string(),
    };
    match args.output {
        OutputFormat::Json => say_json(&answer),
        OutputFormat::Text => answer.print(),
    }
    Ok(if answer.allowed {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NO)
    })
}

impl Answer {
    fn print(&self) {
        let style = Style::of_stdout();
        let (mark, may) = if self.allowed {
            (style.green("yes"), "may open")
        } else {
            (style.red("no"), "may not open")
        };
        let (principal, label) = (harmless(&self.principal), harmless(&self.label));
        say(format_args!("{mark}: {principal} {may} {label} of {}", self.dataset));
        say(format_args!("because  {}", harmless(&self.because)));
        say(format_args!("sees     {}", self.sees));
        if !self.groups.is_empty() {
            let groups: Vec<String> = self.groups.iter().map(|group| harmless(group)).collect();
            say(format_args!("groups   {}, and no others", groups.join(", ")));
        }
        if let Some(purpose) = &self.purpose {
            say(format_args!("purpose  {}", harmless(purpose)));
        }
        let owner = self.owner.as_deref().unwrap_or("nobody");
        say(format_args!(
            "policy   version {}, signed by {owner}, asked as of {}",
            self.version, self.at
        ));
    }
}

/// The label that a path or label means. The path of one column may be the label of another.
fn label(policy: &Policy, text: &str) -> Result<String> {
    let by_path = policy.columns.iter().find(|rule| rule.path.to_string() == text);
    let is_label = policy.columns.iter().any(|rule| rule.label == text)
        || policy.previous.labels.contains_key(text)
        || policy.table_labels().iter().any(|(label, _)| *label == text);
    match by_path {
        Some(rule) if is_label && rule.label != text => Err(Failure::usage(
            format_args!("{text} is the path of one column and the label of another"),
            format_args!(
                "give the path of the column whose label it is, or the label {} of that path",
                rule.label
            ),
        )),
        Some(rule) => Ok(rule.label.clone()),
        None if is_label => Ok(text.to_owned()),
        None => Err(unknown(policy, text)),
    }
}

fn unknown(policy: &Policy, text: &str) -> Failure {
    let labels: Vec<&str> = policy.columns.iter().map(|rule| rule.label.as_str()).collect();
    Failure::usage(
        format_args!(
            "{} has no column {}, so nobody may open it",
            policy.dataset,
            harmless(text)
        ),
        format_args!("its columns are {}", harmless(&labels.join(", "))),
    )
}

/// Who somebody is who calls with this ARN, or with a token of this subject and these groups.
pub(crate) fn identity(text: &str, groups: &[String]) -> Result<Identity> {
    if !text.starts_with("oidc:") {
        if !groups.is_empty() {
            return Err(Failure::usage(
                "--group goes with an OIDC principal only",
                "leave it out",
            ));
        }
        let identity = Identity::from_arn(text);
        return identity.map_err(|error| Failure::usage(format_args!("{}: {error}", harmless(text)), error.help()));
    }
    let Ok(Principal::Oidc { issuer, claim, value }) = text.parse() else {
        return Err(Failure::usage(
            format_args!("{}: no OIDC identity", harmless(text)),
            "write oidc:ISSUER#sub=SUBJECT, with --group for its groups, or oidc:ISSUER#group=GROUP",
        ));
    };
    let mut groups: BTreeSet<String> = groups.iter().cloned().collect();
    let mut subject = String::new();
    match claim {
        OidcClaim::Subject => subject = value,
        OidcClaim::Group => {
            groups.insert(value);
        }
    }
    Ok(Identity::Oidc {
        issuer,
        subject,
        groups,
        lists_groups: true,
    })
}
