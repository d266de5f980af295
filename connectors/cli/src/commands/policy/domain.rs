//! `sealflow policy domain`: secrets that several datasets share, so that equal values look equal in all of them.

use std::path::PathBuf;
use std::process::ExitCode;

use sealflow::keys::create_domain_secret;
use sealflow::policy::publish::{newest_domain, publish_domain};
use sealflow::policy::signed::sign_domain;
use sealflow::policy::{DomainDocument, VerifiedDomain};
use sealflow_kms::KmsConfig;
use serde::Serialize;

use super::Trusting;
use crate::failure::{Exit, Failure, Result};
use crate::services::open_kms;
use crate::term::{OutputFormat, say, say_json};
use crate::trust::read_owner_key;

/// Domains: deterministic columns that can be joined
///
/// In a domain equal values are equal bytes, in every dataset that names it: joins work, and so does counting which
/// values are equal. Use it for identifiers only.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a domain, or a new version of it: secret, signed document, both in the catalogue
    Create(CreateArgs),
    /// Show the newest document of a domain
    Show(ShowArgs),
}

/// Make a domain, or a new version of it: secret, signed document, both in the catalogue
///
/// Values of two versions do not join.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// Name of the domain
    #[arg(value_name = "NAME")]
    name: String,
    /// ARN of the KMS key that wraps the secret
    #[arg(long, value_name = "ARN")]
    key_arn: String,
    /// Type of the values: utf8, integer, bool, float64, bytes, date
    #[arg(long = "type", value_name = "TYPE", default_value = "utf8")]
    kind: String,
    /// Pad values to a multiple of that many bytes
    #[arg(long, value_name = "BYTES")]
    pad_to: Option<u32>,
    /// Principal that may open values of the domain; may be repeated
    #[arg(long, value_name = "PRINCIPAL")]
    allow: Vec<String>,
    /// Principal that may not, whatever --allow says; may be repeated
    #[arg(long, value_name = "PRINCIPAL")]
    deny: Vec<String>,
    /// Make the next version of a domain that is there: its values do not join with those of the versions before
    #[arg(long)]
    new_version: bool,
    /// The owner's private key
    #[arg(
        long,
        value_name = "FILE",
        default_value = "owner.key",
        env = "SEALFLOW_OWNER_KEY",
        hide_env_values = true
    )]
    key: PathBuf,
    /// Another KMS endpoint than AWS's, for example a local KMS
    #[arg(long, value_name = "URL", env = "SEALFLOW_KMS_ENDPOINT", hide_env_values = true)]
    kms_endpoint: Option<String>,
    #[command(flatten)]
    trusting: Trusting,
}

/// Show the newest document of a domain
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Name of the domain
    #[arg(value_name = "NAME")]
    name: String,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    #[command(flatten)]
    trusting: Trusting,
}

pub(super) async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Create(args) => create(&args).await,
        Command::Show(args) => show(&args).await,
    }
}

async fn create(args: &CreateArgs) -> Result<ExitCode> {
    let owner = read_owner_key(&args.key)?;
    let trusted = args.trusting.open(Some(owner.thumbprint())).await?;
    let newest = newest_domain(trusted.catalogue.as_ref(), &args.name, &trusted.owners).await?;
    let version = match newest.map(|domain| domain.document().version) {
        None => 1,
        Some(version) if args.new_version => version + 1,
        Some(version) => {
            return Err(Failure::usage(
                format_args!("domain {} is there already, in version {version}", args.name),
                "datasets just name it in their policies; values of a new version would not join with those of the \
                 old one: if that is what you want, say --new-version",
            ));
        }
    };
    // Everything but the key id is known: a bad name or type must not leave a secret behind.
    check(&document(args, version, "00000000000000000000000000000000"))?;
    let kms = open_kms(&KmsConfig {
        endpoint: args.kms_endpoint.clone(),
        ..KmsConfig::default()
    })
    .await?;
    let secret = create_domain_secret(
        kms.as_ref(),
        trusted.catalogue.as_ref(),
        &args.name,
        version,
        &args.key_arn,
    )
    .await;
    let key_id = secret.map_err(|error| {
        Failure::new(
            Exit::Unavailable,
            &error,
            "check the KMS key and the catalogue, then run this again",
        )
    })?;
    let yaml = document(args, version, &key_id.to_string());
    check(&yaml)?;
    let jws = sign_domain(yaml.as_bytes(), &owner)?;
    publish_domain(trusted.catalogue.as_ref(), &jws, &trusted.owners).await?;
    say(format_args!(
        "domain {}, version {version}, secret {key_id}: published",
        args.name
    ));
    Ok(ExitCode::SUCCESS)
}

fn check(yaml: &str) -> Result<()> {
    DomainDocument::parse(yaml.as_bytes())
        .map(|_| ())
        .map_err(|error| Failure::usage(format_args!("the domain's document: {error}"), error.help()))
}

fn document(args: &CreateArgs, version: u64, key_id: &str) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let list = |texts: &[String]| texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(", ");
    let padding = args.pad_to.map_or_else(String::new, |pad| format!("pad_to: {pad}\n"));
    format!(
        "domain: {}\nversion: {version}\nkey: {{ arn: {} }}\nkey_id: {}\ntype: {}\n{padding}acl: {{ allow: [{}], deny: [{}] }}\n",
        quoted(&args.name),
        quoted(&args.key_arn),
        quoted(key_id),
        quoted(&args.kind),
        list(&args.allow),
        list(&args.deny),
    )
}

#[derive(Serialize)]
struct Shown {
    domain: String,
    version: u64,
    arn: String,
    key_id: String,
    #[serde(rename = "type")]
    kind: String,
    pad_to: Option<u32>,
    allow: Vec<String>,
    deny: Vec<String>,
    owner: Option<String>,
}

async fn show(args: &ShowArgs) -> Result<ExitCode> {
    let trusted = args.trusting.open(None).await?;
    let found = newest_domain(trusted.catalogue.as_ref(), &args.name, &trusted.owners).await?;
    let domain = found.ok_or_else(|| {
        Failure::config(
            format_args!("no document of domain {}", args.name),
            "make it: `sealflow policy domain create`",
        )
    })?;
    let shown = Shown::new(&domain);
    match args.output {
        OutputFormat::Json => say_json(&shown),
        OutputFormat::Text => {
            say(format_args!("domain {}, version {}", shown.domain, shown.version));
            say(format_args!(
                "signed by  {}",
                shown.owner.as_deref().unwrap_or("nobody")
            ));
            say(format_args!("key        {}", shown.arn));
            say(format_args!("secret     {}", shown.key_id));
            say(format_args!("type       {}", shown.kind));
            say(format_args!("allow      {}", shown.allow.join(", ")));
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Shown {
    fn new(domain: &VerifiedDomain) -> Self {
        let owner = domain.owner().map(|owner| owner.to_string());
        let document = domain.document();
        Self {
            domain: document.domain.clone(),
            version: document.version,
            arn: document.arn.clone(),
            key_id: document.key_id.to_string(),
            kind: format!("{:?}", document.kind).to_lowercase(),
            pad_to: document.pad_to,
            allow: document.acl.allow.iter().map(ToString::to_string).collect(),
            deny: document.acl.deny.iter().map(ToString::to_string).collect(),
            owner,
        }
    }
}
