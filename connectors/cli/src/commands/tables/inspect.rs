//! `sealflow inspect`: what a file of a table is, never what is in it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use sealflow::keys::KeyService;
use sealflow::policy::{Because, Policy, VerifiedPolicy};
use sealflow::table::{Asking, EmbeddedPolicies, FileLabel, LeafState, OpenTable};
use serde::Serialize;
use serde_json::json;

use super::{TableFile, embedded, files_at, of_table, offline_reader, reader};
use crate::commands::access::Access;
use crate::commands::read::{AssumedIdentity, Who};
use crate::failure::Result;
use crate::services::clock;
use crate::term::{columns, harmless, say, say_json};

/// Show what an encrypted Parquet file is: policy, ACL, keys, columns, sizes, offsets; never a value
///
/// Without --with-keys it shows what anybody can see who has the file: where it was written for, by which policy, under
/// which KMS key. With them also its schema, who of you may see which column, and where its rows come from.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Open the footer too, with the keys that KMS gives you
    #[arg(long)]
    with_keys: bool,
    /// By the policy that the file carries, without the catalogue's newest
    #[arg(long, requires = "with_keys")]
    offline: bool,
    /// Of a file that lies elsewhere than it was written for
    #[arg(long)]
    moved: bool,
    /// `text` or `json`
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    assumed: AssumedIdentity,
    #[command(flatten)]
    access: Access,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// What is shown of a file.
#[derive(Serialize)]
struct Shown {
    file: String,
    bytes: u64,
    dataset: String,
    partition: String,
    id: String,
    is_at_its_place: bool,
    footer: &'static str,
    footer_key: String,
    policy: ShownPolicy,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Content>,
}

#[derive(Serialize)]
struct ShownPolicy {
    /// `pinned`: signed by an owner who is pinned here. `unsigned`, `unknown`: nothing was pinned, or somebody else.
    signature: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acls: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct Content {
    rows: u64,
    row_groups: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<serde_json::Value>,
    newest_policy: u64,
    envelopes: usize,
    columns: Vec<Column>,
}

#[derive(Serialize)]
struct Column {
    path: String,
    r#type: String,
    protection: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    bytes: u64,
    you: String,
}

/// Runs the subcommand.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let files = files_at(&args.file).await?;
    let Some(file) = files.into_iter().next() else {
        return Ok(ExitCode::SUCCESS);
    };
    let label = FileLabel::read(file.source.as_ref()).await;
    let label = label.map_err(|error| of_table(&file.path, &error))?;
    let mut shown = Shown {
        file: file.path.clone(),
        bytes: label.size,
        dataset: label.claims.dataset.clone(),
        partition: label.claims.partition.clone(),
        id: label.claims.file.clone(),
        is_at_its_place: label.claims.is_at(&file.path),
        footer: if label.has_plaintext_footer {
            "signed-plaintext"
        } else {
            "encrypted"
        },
        footer_key: label.master_key.clone(),
        policy: policy(&args.access, &label)?,
        content: None,
    };
    if args.with_keys {
        shown.content = Some(content(&args, &file, &label).await?);
    }
    match args.output {
        Output::Json => say_json(&shown),
        Output::Text => print(&shown),
    }
    Ok(ExitCode::SUCCESS)
}

/// What can be said of the policy in the file: everybody reads it, only its owner's signature makes it count.
fn policy(access: &Access, label: &FileLabel) -> Result<ShownPolicy> {
    let loaded = access.loaded()?;
    let embedded = match (access.is_unsigned(), access.owners(loaded.as_ref()).is_empty()) {
        (false, true) => None,
        _ => Some(embedded(access, loaded.as_ref())?),
    };
    let none = |signature, reason| ShownPolicy {
        signature,
        reason,
        version: None,
        owner: None,
        acls: None,
    };
    let Some(embedded) = embedded else {
        let reason = "give --owner THUMBPRINT to have its signature checked".to_owned();
        let signature = if label.claims.policy.is_some() {
            "unknown"
        } else {
            "unsigned"
        };
        return Ok(none(signature, Some(reason)));
    };
    Ok(match embedded.of(&label.claims) {
        Ok(policy) => ShownPolicy {
            signature: if policy.owner().is_some() { "pinned" } else { "unsigned" },
            reason: None,
            version: Some(policy.policy().version),
            owner: policy.owner().map(|owner| owner.to_string()),
            acls: Some(acls(&policy)),
        },
        Err(error) => none("unknown", Some(error.to_string())),
    })
}

fn acls(policy: &VerifiedPolicy) -> serde_json::Value {
    let policy: &Policy = policy.policy();
    let acls = policy.acls.iter().map(|(name, acl)| {
        let allow: Vec<String> = acl.allow.iter().map(ToString::to_string).collect();
        let deny: Vec<String> = acl.deny.iter().map(ToString::to_string).collect();
        (name.clone(), json!({"allow": allow, "deny": deny}))
    });
    serde_json::Value::Object(acls.collect())
}

async fn content(args: &Args, file: &TableFile, label: &FileLabel) -> Result<Content> {
    args.assumed.check(&args.access)?;
    let loaded = args.access.loaded()?;
    let kms: Arc<dyn KeyService> = args.access.kms(loaded.as_ref()).await?;
    let who: Who = args.assumed.asking(&*kms).await?;
    let embedded: EmbeddedPolicies = embedded(&args.access, loaded.as_ref())?;
    let access = args.access.of_dataset(&label.claims.dataset);
    let services = access.open_on(kms, loaded.as_ref(), None).await?;
    let reader = if args.offline {
        offline_reader(&services, label, embedded, args.moved).map_err(|error| of_table(&file.path, &error))?
    } else {
        reader(&services, embedded, args.moved)
    };
    let asking = Asking {
        who: &who.who,
        purpose: None,
        now: clock().now(),
    };
    let table = reader.open(file.source.clone(), &file.path, asking).await;
    Ok(of(&table.map_err(|error| of_table(&file.path, &error))?, asking))
}

fn of(table: &OpenTable, asking: Asking<'_>) -> Content {
    let (rows, row_groups, bytes) = table.sizes();
    let policy = table.policy().policy();
    let column = |(leaf, bytes): (&sealflow::table::OpenLeaf, u64)| {
        let rule = policy.columns.iter().find(|rule| rule.path == leaf.leaf.column);
        let (protection, label, you) = match (&leaf.leaf.sealed, &leaf.label) {
            (Some(sealed), _) => {
                let label = rule.map_or_else(|| sealed.label.clone(), |rule| rule.label.clone());
                let access = policy.access(&label, asking.who, asking.purpose, asking.now, |_| None);
                let you = match &access.because {
                    Because::UnknownDomain { .. } => "decided by its domain".to_owned(),
                    because if access.is_allowed() => format!("shown: {because}"),
                    because => format!("masked: {because}"),
                };
                ("each value sealed", Some(label), you)
            }
            (None, Some(label)) => ("column key", Some(label.clone()), you(&leaf.state)),
            (None, None) => ("footer key", None, you(&leaf.state)),
        };
        Column {
            path: leaf.leaf.column.to_string(),
            r#type: leaf.leaf.data_type.to_string(),
            protection,
            label,
            key: leaf.master_key.clone(),
            bytes,
            you,
        }
    };
    Content {
        rows,
        row_groups,
        origin: table.origin().and_then(|origin| serde_json::to_value(origin).ok()),
        newest_policy: policy.version,
        envelopes: table.envelopes(),
        columns: table.leaves().iter().zip(bytes).map(column).collect(),
    }
}

fn you(state: &LeafState) -> String {
    match state {
        LeafState::Shown { because: Some(because) } => format!("shown: {because}"),
        LeafState::Shown { because: None } => "shown with the footer".to_owned(),
        LeafState::Refused { because, .. } => format!("masked: {because}"),
        LeafState::Failed { because, .. } => format!("not opened: {because}"),
    }
}

fn print(shown: &Shown) {
    let place = if shown.is_at_its_place {
        "where it was written for"
    } else {
        "NOT where it was written for"
    };
    say(format_args!(
        "{}: {} bytes, {place}",
        harmless(&shown.file),
        shown.bytes
    ));
    say(format_args!("dataset     {}", harmless(&shown.dataset)));
    say(format_args!("partition   {}", harmless(&shown.partition)));
    say(format_args!("id          {}", harmless(&shown.id)));
    say(format_args!(
        "footer      {}, under {}",
        shown.footer,
        harmless(&shown.footer_key)
    ));
    let policy = &shown.policy;
    let version = policy
        .version
        .map_or(String::new(), |version| format!(", version {version}"));
    let owner = policy
        .owner
        .as_ref()
        .map_or(String::new(), |owner| format!(", of owner {owner}"));
    let reason = policy
        .reason
        .as_ref()
        .map_or(String::new(), |reason| format!(": {reason}"));
    say(format_args!(
        "policy      {}{version}{owner}{}",
        policy.signature,
        harmless(&reason)
    ));
    if let Some(serde_json::Value::Object(acls)) = &policy.acls {
        for (name, acl) in acls {
            say(format_args!(
                "acl         {}: {}",
                harmless(name),
                harmless(&acl.to_string())
            ));
        }
    }
    let Some(content) = &shown.content else { return };
    say(format_args!(
        "rows        {} in {} row groups",
        content.rows, content.row_groups
    ));
    if let Some(origin) = &content.origin {
        say(format_args!("origin      {}", harmless(&origin.to_string())));
    }
    say(format_args!(
        "decided by  version {} of the policy; {} key envelopes travel in the file",
        content.newest_policy, content.envelopes
    ));
    let head = ["column", "type", "protection", "label", "bytes", "you"].map(str::to_owned);
    let rows = content.columns.iter().map(|column| {
        [
            harmless(&column.path),
            harmless(&column.r#type),
            column.protection.to_owned(),
            column.label.as_deref().map(harmless).unwrap_or_default(),
            column.bytes.to_string(),
            harmless(&column.you),
        ]
    });
    let all: Vec<[String; 6]> = std::iter::once(head).chain(rows).collect();
    for line in columns(&all) {
        say(line);
    }
}
