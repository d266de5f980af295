//! The texts that `init` writes: a policy and a pipeline that a person goes on to edit.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use sealflow::policy::ColumnPath;
use sealflow::table::TableSchema;
use sealflow_storage::Location;

use super::propose::Proposal;

/// What goes into the policy.
pub(super) struct PolicyParts<'a> {
    pub(super) dataset: &'a str,
    pub(super) key_arn: &'a str,
    pub(super) principal: &'a str,
    pub(super) proposals: &'a [Proposal],
    pub(super) row_id: Option<&'a ColumnPath>,
    pub(super) records: u64,
    /// Whether it is for a table.
    pub(super) is_table: bool,
}

/// A double-quoted YAML scalar: JSON's spelling is one.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The policy as YAML.
pub(super) fn policy_yaml(parts: &PolicyParts<'_>) -> String {
    let mut yaml = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing into a `String` cannot fail.
        let _ = writeln!(yaml, "{text}");
    };
    line(format_args!(
        "# Which fields of this dataset are sealed, under which key, for whom."
    ));
    line(format_args!(
        "# Proposed by `sealflow init` from {} records: check it, then sign and publish your changes:",
        parts.records
    ));
    line(format_args!(
        "#   raise `version`, `sealflow policy check`, `policy sign`, `policy publish`"
    ));
    line(format_args!("dataset: {}", parts.dataset));
    line(format_args!("version: 1"));
    line(format_args!(""));
    line(format_args!("keys:"));
    line(format_args!(
        "  default: {{ arn: {}, max_age: 1h }}",
        quoted(parts.key_arn)
    ));
    line(format_args!(""));
    line(format_args!(
        "# Who may open. With the command line KMS decides; these lists bind services that open for others."
    ));
    line(format_args!("acls:"));
    let acls: BTreeSet<&str> = parts
        .proposals
        .iter()
        .map(|p| p.kind.acl())
        .chain(["operators"])
        .chain(parts.is_table.then_some("readers"))
        .collect();
    for acl in acls {
        line(format_args!("  {acl}: {{ allow: [{}] }}", quoted(parts.principal)));
    }
    line(format_args!(""));
    if let Some(path) = parts.row_id {
        line(format_args!(
            "# `bind_row: {path}` on a column ties its values to their record: moved to another, they do not open."
        ));
        line(format_args!("# Records without {path} are then dead letters."));
    }
    line(format_args!("columns:"));
    for proposal in parts.proposals {
        let why = if proposal.by_name {
            "by its name"
        } else {
            "by its values"
        };
        line(format_args!(
            "  # {} ({why}), in {} of {} records",
            proposal.kind.words(),
            proposal.records,
            parts.records
        ));
        let padding = proposal
            .kind
            .pad_to()
            .map_or_else(String::new, |pad| format!(", pad_to: {pad}"));
        let path = quoted(&proposal.path.to_string());
        line(format_args!(
            "  - {{ path: {path}, key: default, acl: {}{padding} }}",
            proposal.kind.acl()
        ));
    }
    line(format_args!(""));
    line(format_args!(
        "# Records that cannot be sealed go to the dead letters, sealed whole."
    ));
    line(format_args!("dead_letters: {{ key: default, acl: operators }}"));
    if parts.is_table {
        line(format_args!(""));
        line(format_args!(
            "# Who may see the columns of a table that are not named above; what has no column of its own is sealed into _extra."
        ));
        line(format_args!("table:"));
        line(format_args!("  key: default"));
        line(format_args!("  acl: readers"));
        line(format_args!("  extra: {{ key: default, acl: operators }}"));
    }
    yaml
}

/// The schema as YAML, a line for each field. JSON is YAML.
pub(super) fn schema_yaml(schema: &TableSchema) -> String {
    let document: serde_json::Value = serde_json::from_str(&schema.to_json()).unwrap_or_default();
    let mut yaml = format!(
        "# The columns of the table. Inferred by `sealflow init`: check the types. Versions only add fields.\n\
         dataset: {}\nversion: {}\nfields:\n",
        schema.dataset(),
        schema.version()
    );
    for field in document["fields"].as_array().into_iter().flatten() {
        // Writing into a `String` cannot fail.
        let _ = writeln!(yaml, "  - {field}");
    }
    yaml
}

/// What goes into the pipeline file.
pub(super) struct PipelineParts<'a> {
    pub(super) dataset: &'a str,
    pub(super) brokers: &'a str,
    pub(super) topic: &'a str,
    pub(super) owner: &'a str,
    pub(super) kms: &'a str,
    pub(super) format: &'a str,
    /// Where a table goes, instead of a topic.
    pub(super) table: Option<&'a Location>,
}

/// The pipeline as YAML.
pub(super) fn pipeline_yaml(parts: &PipelineParts<'_>) -> String {
    let PipelineParts {
        dataset,
        brokers,
        topic,
        owner,
        kms,
        format,
        table,
    } = parts;
    let (brokers, topic_name) = (quoted(brokers), quoted(topic));
    let (into, target) = match table {
        Some(location) => (
            format!("encrypted Parquet at {location}"),
            format!(
                "{{ table: {{ location: {}, schema: schema.yaml }} }}",
                quoted(&location.to_string())
            ),
        ),
        None => (
            format!("{topic}.sealed"),
            "{ kafka: { topic: \"{topic}.sealed\", create: true } }".to_owned(),
        ),
    };
    format!(
        "# Seals topic {topic} into {into}. `sealflow schema pipeline` knows every key.\n\
         name: {dataset}-seal\n\
         mode: seal\n\
         dataset: {dataset}\n\
         format: {format}\n\
         keys: header\n\
         \n\
         source: {{ kafka: {{ brokers: {brokers}, topics: [{topic_name}], group: {dataset}-seal }} }}\n\
         target: {target}\n\
         dead_letters: {{ topic: {dead}, max_ratio: 0.01 }}\n\
         \n\
         # Relative to this file.\n\
         catalogue: {{ folder: catalogue }}\n\
         trust: {{ owners: [{owner}] }}\n\
         kms: {kms}\n\
         \n\
         threads: 1\n\
         admin: {{ listen: 127.0.0.1:9464 }}\n",
        dead = quoted(&format!("{topic}.dead")),
        owner = quoted(owner),
    )
}
