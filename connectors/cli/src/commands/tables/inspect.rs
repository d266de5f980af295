//! `sealflow inspect`: what a file of a table is, never what is in it.

use std::process::ExitCode;

use sealflow::policy::{Because, Policy, VerifiedPolicy};
use sealflow::table::{Asking, FileLabel, ForeignLabel, LeafState, OpenTable, TableError};
use sealflow_storage::Location;
use serde::Serialize;
use serde_json::json;

use super::opener::embedded;
use super::{By, Files, Opener, TableFile, of_table};
use crate::commands::access::Access;
use crate::commands::read::AssumedIdentity;
use crate::config::PipelineConfig;
use crate::failure::Result;
use crate::place_arg::PlaceParser;
use crate::services::clock;
use crate::term::{OutputFormat, columns, harmless, say, say_json};

/// Show what an encrypted Parquet file is: policy, ACL, keys, columns, sizes, offsets; never a value
///
/// Without --with-keys it shows what anybody can see who has the file: where it was written for, by which policy, under
/// which KMS key. With them also its schema, who of you may see which column, and where its rows come from.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file, also in a bucket: s3://BUCKET/PATH
    #[arg(value_name = "FILE", value_parser = PlaceParser)]
    file: Location,
    /// Open the footer too, with the keys that KMS gives you
    #[arg(long)]
    with_keys: bool,
    /// By the policy that the file carries, without the catalogue's newest
    #[arg(long, requires = "with_keys")]
    offline: bool,
    /// Of a file that lies elsewhere than it was written for
    #[arg(long)]
    moved: bool,
    /// Of encrypted Parquet of other tools, which carries no policy: no ACL counts then, KMS alone decides
    #[arg(long)]
    foreign: bool,
    /// `text` or `json`
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    #[command(flatten)]
    assumed: AssumedIdentity,
    #[command(flatten)]
    access: Access,
}

/// What is shown of a file.
#[derive(Serialize)]
struct Shown {
    file: String,
    bytes: u64,
    #[serde(flatten)]
    claimed: Option<Claimed>,
    footer: &'static str,
    /// `None` where key material is in a file of its own.
    footer_key: Option<String>,
    policy: ShownPolicy,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Content>,
}

/// What only files with a policy say of themselves.
#[derive(Serialize)]
struct Claimed {
    dataset: String,
    partition: String,
    id: String,
    is_at_its_place: bool,
}

#[derive(Serialize)]
struct ShownPolicy {
    /// `pinned`: signed by an owner who is pinned here. `unsigned`, `unknown`: nothing was pinned, or somebody else. `none`:
    /// a file of another tool.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    newest_policy: Option<u64>,
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
    let loaded = args.access.loaded()?;
    let mut files = Files::at(&args.file, loaded.as_ref()).await?;
    let Some(file) = files.next().await? else {
        return Ok(ExitCode::SUCCESS);
    };
    let failed = |error: TableError| of_table(&file.path, &error);
    let mut shown = if args.foreign {
        Shown::foreign(&file, ForeignLabel::read(file.source.as_ref()).await.map_err(failed)?)
    } else {
        let label = FileLabel::read(file.source.as_ref()).await.map_err(failed)?;
        let policy = policy(&args.access, loaded.as_ref(), &label)?;
        Shown::own(&file, label, policy)
    };
    if args.with_keys {
        shown.content = Some(content(&args, &file, loaded.as_ref()).await?);
    }
    match args.output {
        OutputFormat::Json => say_json(&shown),
        OutputFormat::Text => print(&shown),
    }
    Ok(ExitCode::SUCCESS)
}

impl Shown {
    fn own(file: &TableFile, label: FileLabel, policy: ShownPolicy) -> Self {
        Self {
            file: file.path.clone(),
            bytes: label.size,
            claimed: Some(Claimed {
                is_at_its_place: label.claims.is_at(&file.path),
                dataset: label.claims.dataset,
                partition: label.claims.partition,
                id: label.claims.file,
            }),
            footer: footer(label.has_plaintext_footer),
            footer_key: Some(label.master_key),
            policy,
            content: None,
        }
    }

    fn foreign(file: &TableFile, label: ForeignLabel) -> Self {
        Self {
            file: file.path.clone(),
            bytes: label.size,
            claimed: None,
            footer: footer(label.has_plaintext_footer),
            footer_key: label.master_key,
            policy: ShownPolicy::without("none", "of another tool: KMS alone decides who sees what".to_owned()),
            content: None,
        }
    }
}

fn footer(is_plaintext: bool) -> &'static str {
    if is_plaintext { "signed-plaintext" } else { "encrypted" }
}

impl ShownPolicy {
    fn without(signature: &'static str, reason: String) -> Self {
        Self {
            signature,
            reason: Some(reason),
            version: None,
            owner: None,
            acls: None,
        }
    }
}

/// What can be said of the policy in the file: everybody reads it, only its owner's signature makes it count.
fn policy(access: &Access, loaded: Option<&PipelineConfig>, label: &FileLabel) -> Result<ShownPolicy> {
    if !access.is_unsigned() && access.owners(loaded).is_empty() {
        let signature = if label.claims.policy.is_some() {
            "unknown"
        } else {
            "unsigned"
        };
        let reason = "give --owner THUMBPRINT to have its signature checked".to_owned();
        return Ok(ShownPolicy::without(signature, reason));
    }
    Ok(match embedded(access, loaded)?.of(&label.claims) {
        Ok(policy) => ShownPolicy {
            signature: if policy.owner().is_some() { "pinned" } else { "unsigned" },
            reason: None,
            version: Some(policy.policy().version),
            owner: policy.owner().map(|owner| owner.to_string()),
            acls: Some(acls(&policy)),
        },
        Err(error) => ShownPolicy::without("unknown", error.to_string()),
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

async fn content(args: &Args, file: &TableFile, loaded: Option<&PipelineConfig>) -> Result<Content> {
    let by = By {
        offline: args.offline,
        moved: args.moved,
        foreign: args.foreign,
    };
    let opener = Opener::new(&args.access, &args.assumed, loaded, by).await?;
    let asking = Asking {
        who: &opener.who.who,
        purpose: None,
        now: clock().now(),
    };
    let table = opener.open(file, asking).await.map_err(|error| error.of(file))?;
    Ok(of(&table, asking))
}

fn of(table: &OpenTable, asking: Asking<'_>) -> Content {
    let (rows, row_groups, bytes) = table.sizes();
    let policy = table.policy().map(|policy| policy.policy());
    let column = |(leaf, bytes): (&sealflow::table::OpenLeaf, u64)| {
        let (protection, label, you) = match (policy, &leaf.leaf.sealed, &leaf.label) {
            (Some(policy), Some(sealed), _) => {
                let rule = policy.columns.iter().find(|rule| rule.path == leaf.leaf.column);
                let label = rule.map_or_else(|| sealed.label.clone(), |rule| rule.label.clone());
                let access = policy.access(&label, asking.who, asking.purpose, asking.now, |_| None);
                let you = match &access.because {
                    Because::UnknownDomain { .. } => "decided by its domain".to_owned(),
                    because if access.is_allowed() => format!("shown: {because}"),
                    because => format!("masked: {because}"),
                };
                ("each value sealed", Some(label), you)
            }
            (_, _, Some(label)) => ("column key", Some(label.clone()), you(&leaf.state)),
            (_, _, None) if !leaf.is_encrypted => ("none", None, "shown to everybody who has the file".to_owned()),
            (_, _, None) => ("footer key", None, you(&leaf.state)),
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
        newest_policy: policy.map(|policy| policy.version),
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
    let place = match shown.claimed.as_ref().map(|claimed| claimed.is_at_its_place) {
        Some(true) => ", where it was written for",
        Some(false) => ", NOT where it was written for",
        None => "",
    };
    say(format_args!("{}: {} bytes{place}", harmless(&shown.file), shown.bytes));
    if let Some(claimed) = &shown.claimed {
        say(format_args!("dataset     {}", harmless(&claimed.dataset)));
        say(format_args!("partition   {}", harmless(&claimed.partition)));
        say(format_args!("id          {}", harmless(&claimed.id)));
    }
    let key = shown.footer_key.as_deref().unwrap_or("keys in a file of their own");
    say(format_args!("footer      {}, under {}", shown.footer, harmless(key)));
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
    match content.newest_policy {
        Some(version) => say(format_args!(
            "decided by  version {version} of the policy; {} key envelopes travel in the file",
            content.envelopes
        )),
        None => say("decided by  KMS alone"),
    }
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
