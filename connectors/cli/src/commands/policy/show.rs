//! Show and history: what the catalogue holds, believed or not.

use std::path::PathBuf;
use std::process::ExitCode;

use sealflow::policy::publish;
use sealflow::policy::{
    Cipher, ClientSealed, ColumnRule, DeadLetterRule, Derivation, Flow, Lease, OnMissing, Policy, RsaKey,
    VerifiedPolicy,
};
use serde::Serialize;

use super::Trusting;
use crate::failure::{Exit, Result};
use crate::services::read_unsigned;
use crate::term::{OutputFormat, Style, say, say_json, table};

/// Show the newest policy of a dataset
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// The dataset
    #[arg(value_name = "DATASET")]
    dataset: Option<String>,
    /// Show this policy file, which nobody signed, instead of the catalogue's newest
    #[arg(long, value_name = "POLICY")]
    dev: Option<PathBuf>,
    /// Print the YAML as its owner wrote it
    #[arg(long, conflicts_with = "output")]
    yaml: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    #[command(flatten)]
    trusting: Trusting,
}

pub(super) async fn show(args: &ShowArgs) -> Result<ExitCode> {
    let policy = match &args.dev {
        Some(path) => read_unsigned(path)?,
        None => {
            let trusted = args.trusting.open(None).await?;
            let dataset = trusted.dataset(args.dataset.as_ref())?;
            let policies = trusted.policies_to_look_at()?;
            policies.policy(&dataset).await?.as_ref().clone()
        }
    };
    if args.yaml {
        say(String::from_utf8_lossy(policy.yaml()).trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    let shown = Shown::new(&policy);
    match args.output {
        OutputFormat::Json => say_json(&shown),
        OutputFormat::Text => shown.print(),
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Shown {
    dataset: String,
    version: u64,
    sha256: String,
    owner: Option<String>,
    keys: Vec<ShownKey>,
    columns: Vec<ShownColumn>,
    /// What clients seal to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    client_keys: Vec<ShownClientKey>,
    dead_letters: Option<ShownLetters>,
    /// Of footers and clear columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<ShownKeyAndAcl>,
    lease_required: bool,
    not_supported: Vec<String>,
}

#[derive(Serialize)]
struct ShownKey {
    name: String,
    arn: String,
    max_age_secs: u64,
}

#[derive(Serialize)]
struct ShownClientKey {
    name: String,
    /// `kms`: the private half stays in KMS. `pair`: it is wrapped by KMS, and held in memory by who opens.
    kind: &'static str,
    /// Of the RSA key, or of the key that wrapped the pair.
    arn: String,
    /// Those before it, by the same.
    previous: Vec<String>,
}

#[derive(Serialize)]
struct ShownColumn {
    path: String,
    label: String,
    flow: &'static str,
    key: Option<String>,
    acl: Option<String>,
    domain: Option<String>,
    pad_to: Option<u32>,
    bind_row: Option<String>,
    seal_nulls: bool,
    on_missing: &'static str,
    /// Of hybrid columns: `required` or `optional`.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_sealed: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<ShownHint>,
}

/// What a hint is derived from.
#[derive(Serialize)]
struct ShownHint {
    /// Path of its column.
    of: String,
    derive: &'static str,
    domain: Option<String>,
}

#[derive(Serialize)]
struct ShownKeyAndAcl {
    key: String,
    acl: String,
}

/// Who can open dead letters.
#[derive(Serialize)]
#[serde(untagged)]
enum ShownLetters {
    Key(ShownKeyAndAcl),
    Recipient { recipient: String, bits: usize },
}

impl ShownLetters {
    fn new(rule: &DeadLetterRule) -> Self {
        match rule {
            DeadLetterRule::Key { key, acl } => Self::Key(ShownKeyAndAcl {
                key: key.clone(),
                acl: acl.clone(),
            }),
            DeadLetterRule::Recipient(recipient) => Self::Recipient {
                recipient: recipient.thumbprint().to_string(),
                bits: recipient.bits(),
            },
        }
    }
}

impl Shown {
    fn new(policy: &VerifiedPolicy) -> Self {
        let owner = policy.owner().map(|owner| owner.to_string());
        let policy: &Policy = policy.policy();
        let key = |(name, key): (&String, &sealflow::policy::PolicyKey)| ShownKey {
            name: name.clone(),
            arn: key.arn.clone(),
            max_age_secs: key.max_age.as_secs(),
        };
        Self {
            dataset: policy.dataset.clone(),
            version: policy.version,
            sha256: policy.sha256.iter().map(|b| format!("{b:02x}")).collect(),
            owner,
            keys: policy.keys.iter().map(key).collect(),
            columns: policy
                .columns
                .iter()
                .map(|rule| ShownColumn::new(rule, policy))
                .collect(),
            client_keys: policy
                .client
                .iter()
                .flat_map(|rule| &rule.keys)
                .map(|(name, key)| ShownClientKey {
                    name: name.clone(),
                    kind: match key.key {
                        RsaKey::Pair(_) => "pair",
                        _ => "kms",
                    },
                    arn: key.key.arn().to_owned(),
                    previous: key.previous.iter().map(|key| key.arn().to_owned()).collect(),
                })
                .collect(),
            dead_letters: policy.dead_letters.as_ref().map(ShownLetters::new),
            table: policy.table.as_ref().map(|rule| ShownKeyAndAcl {
                key: rule.key.clone(),
                acl: rule.acl.clone(),
            }),
            lease_required: policy.lease == Lease::Required,
            not_supported: policy.unsupported().iter().map(ToString::to_string).collect(),
        }
    }

    fn print(&self) {
        let style = Style::of_stdout();
        let owner = self.owner.as_deref().unwrap_or("nobody: unsigned");
        say(format_args!("{} version {}", style.bold(&self.dataset), self.version));
        say(format_args!("signed by  {owner}"));
        say(format_args!("hash       {}", self.sha256));
        for key in &self.keys {
            say(format_args!("key        {}: {}", key.name, key.arn));
        }
        for key in &self.client_keys {
            let how = if key.kind == "pair" { "a pair under " } else { "" };
            say(format_args!("clients    seal to {}: {how}{}", key.name, key.arn));
            for arn in &key.previous {
                say(format_args!("           and before to {arn}"));
            }
        }
        if let Some(rule) = &self.dead_letters {
            match rule {
                ShownLetters::Key(rule) => say(format_args!("dead ones  key {}, ACL {}", rule.key, rule.acl)),
                ShownLetters::Recipient { recipient, bits } => say(format_args!(
                    "dead ones  for whoever has the private half of {recipient} (RSA-{bits}); no service opens them"
                )),
            }
        }
        if let Some(rule) = &self.table {
            say(format_args!("tables     key {}, ACL {}", rule.key, rule.acl));
        }
        if self.lease_required {
            say("lease      required: it counts only while one holds (`sealflow policy lease`)");
        }
        say("");
        let mut rows = vec![["COLUMN", "FLOW", "KEY", "ACL", "OPTIONS"].map(str::to_owned)];
        rows.extend(self.columns.iter().map(ShownColumn::row));
        table(&rows);
        for reason in &self.not_supported {
            say(format_args!("{} {reason}", style.bang()));
        }
    }
}

impl ShownColumn {
    fn new(rule: &ColumnRule, policy: &Policy) -> Self {
        let domain = match &rule.cipher {
            Cipher::Domain(name) => Some(name.clone()),
            Cipher::Randomised => None,
        };
        let hint = rule.hint.as_ref().map(|hint| {
            let (derive, domain) = match &hint.derivation {
                Derivation::Last4 => ("last4", None),
                Derivation::Hmac { domain } => ("hmac", Some(domain.clone())),
            };
            let of = policy.columns[hint.column].path.to_string();
            ShownHint { of, derive, domain }
        });
        let own = |name: &String| domain.is_none().then(|| name.clone());
        Self {
            path: rule.path.to_string(),
            label: rule.label.clone(),
            flow: match rule.flow {
                Flow::Direct => "direct",
                Flow::Hybrid => "hybrid",
                Flow::Enclave => "enclave",
                _ => "unknown",
            },
            key: own(&rule.key),
            acl: own(&rule.acl),
            pad_to: rule.pad_to,
            bind_row: rule.bind_row.as_ref().map(ToString::to_string),
            seal_nulls: rule.seal_nulls,
            on_missing: if rule.on_missing == OnMissing::Reject {
                "reject"
            } else {
                "pass"
            },
            client_sealed: (rule.flow == Flow::Hybrid).then_some(match rule.client_sealed {
                ClientSealed::Required => "required",
                ClientSealed::Optional => "optional",
                ClientSealed::Authenticated => "authenticated",
                ClientSealed::Once => "once",
            }),
            domain,
            hint,
        }
    }

    fn row(&self) -> [String; 5] {
        let mut options = Vec::new();
        if let Some(domain) = &self.domain {
            options.push(format!("domain {domain}"));
        }
        if let Some(hint) = &self.hint {
            options.push(format!("{} of {}", hint.derive, hint.of));
            options.extend(hint.domain.as_ref().map(|name| format!("keyed by domain {name}")));
        }
        if self.label != self.path {
            options.push(format!("label {}", self.label));
        }
        options.extend(self.pad_to.map(|pad| format!("padded to {pad}")));
        options.extend(self.bind_row.as_ref().map(|path| format!("bound to {path}")));
        if self.seal_nulls {
            options.push("nulls too".to_owned());
        }
        match self.client_sealed {
            Some("optional") => options.push("may come in clear".to_owned()),
            Some("authenticated") => options.push("of known clients".to_owned()),
            Some("once") => options.push("of known clients, once".to_owned()),
            _ => {}
        }
        if self.on_missing == "reject" {
            options.push("required".to_owned());
        }
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        [
            self.path.clone(),
            self.flow.to_owned(),
            or_dash(&self.key),
            or_dash(&self.acl),
            options.join(", "),
        ]
    }
}

/// Show all versions of a dataset's policy
#[derive(Debug, clap::Args)]
pub(crate) struct HistoryArgs {
    /// The dataset
    #[arg(value_name = "DATASET")]
    dataset: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    #[command(flatten)]
    trusting: Trusting,
}

#[derive(Serialize)]
struct ShownVersion {
    version: u64,
    believed: bool,
    columns: Option<usize>,
    owner: Option<String>,
    reason: Option<String>,
}

/// Versions that are not believed are shown with the reason, and end in exit code 78.
pub(super) async fn history(args: &HistoryArgs) -> Result<ExitCode> {
    let trusted = args.trusting.open(None).await?;
    let dataset = trusted.dataset(args.dataset.as_ref())?;
    let entries = publish::history(trusted.catalogue.as_ref(), &dataset, &trusted.owners).await?;
    let versions: Vec<_> = entries
        .iter()
        .map(|entry| ShownVersion {
            version: entry.version,
            believed: entry.policy.is_ok(),
            columns: entry.policy.as_ref().ok().map(|policy| policy.policy().columns.len()),
            owner: entry
                .policy
                .as_ref()
                .ok()
                .and_then(VerifiedPolicy::owner)
                .map(|owner| owner.to_string()),
            reason: entry.policy.as_ref().err().map(ToString::to_string),
        })
        .collect();
    match args.output {
        OutputFormat::Json => say_json(&versions),
        OutputFormat::Text => {
            let mut rows = vec![["VERSION", "COLUMNS", "SIGNED BY"].map(str::to_owned)];
            rows.extend(versions.iter().map(|version| {
                let columns = version
                    .columns
                    .map_or_else(|| "-".to_owned(), |count| count.to_string());
                let who = version
                    .owner
                    .clone()
                    .or_else(|| version.reason.as_ref().map(|reason| format!("NOT BELIEVED: {reason}")));
                [version.version.to_string(), columns, who.unwrap_or_default()]
            }));
            table(&rows);
        }
    }
    let all = versions.iter().all(|version| version.believed);
    Ok(if all {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Exit::Config as u8)
    })
}
