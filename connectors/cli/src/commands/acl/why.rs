//! `acl why`: the rule that decided.

use std::process::ExitCode;

use sealflow::acl::{Identity, OidcClaim, Principal, Refused};
use sealflow::policy::DEAD_LETTERS_SUFFIX;
use serde::Serialize;

use super::Source;
use crate::failure::{Exit, Failure, Result};
use crate::term::{OutputFormat, Style, harmless, say, say_json};

/// Show which rule lets somebody open a column, or does not
///
/// Exits with 0 if the principal may open it, with 77 if not.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The ARN of a caller, role or user, or `oidc:ISSUER#sub=SUBJECT`
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
    principal: String,
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
        let by_path = policy.columns.iter().find(|rule| rule.path.to_string() == args.column);
        let label = by_path.map_or_else(|| args.column.clone(), |rule| rule.label.clone());
        let access = asked.access(&label, &who);
        (label, access)
    };
    let answer = Answer {
        dataset: policy.dataset.clone(),
        version: policy.version,
        principal: who.to_string(),
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
        ExitCode::from(Exit::NotPermitted as u8)
    })
}

impl Answer {
    fn print(&self) {
        let style = Style::of_stdout();
        let (mark, may) = if self.allowed {
            (style.tick(), "may open")
        } else {
            (style.cross(), "may not open")
        };
        let (principal, label) = (harmless(&self.principal), harmless(&self.label));
        say(format_args!("{mark} {principal} {may} {label} of {}", self.dataset));
        say(format_args!("because  {}", harmless(&self.because)));
        say(format_args!("sees     {}", self.sees));
        say(format_args!(
            "policy   version {}, asked as of {}",
            self.version, self.at
        ));
    }
}

/// Who somebody is who calls with this ARN, or with a token of this subject and these groups.
fn identity(text: &str, groups: &[String]) -> Result<Identity> {
    let Some(Principal::Oidc { issuer, claim, value }) = text.strip_prefix("oidc:").and_then(|_| text.parse().ok())
    else {
        if text.starts_with("oidc:") {
            return Err(Failure::usage(
                format_args!("{}: no OIDC identity", harmless(text)),
                "write oidc:ISSUER#sub=SUBJECT, with --group for its groups, or oidc:ISSUER#group=GROUP",
            ));
        }
        let identity = Identity::from_arn(text);
        return identity.map_err(|error| Failure::usage(format_args!("{}: {error}", harmless(text)), error.help()));
    };
    let mut groups: std::collections::BTreeSet<String> = groups.iter().cloned().collect();
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
    })
}
