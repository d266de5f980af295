//! What a pipeline file may not say although its form is right.

use std::time::Duration;

use sealflow::policy::KeyPath;
use sealflow_kms::KmsConfig;
use sealflow_storage::CatalogueConfig;

use super::pipeline::{Format, PipelineConfig};

/// A value that cannot be meant.
pub(super) struct Wrong {
    /// As messages write it: `trust.owners[0]`.
    pub(super) path: String,
    pub(super) message: String,
    pub(super) help: String,
}

/// What a batch may hold that goes through the enclave worker: a frame of its channel takes 64 MiB, lengths and row ids among them.
const MOST_FOR_WORKER: u64 = 48 << 20;

/// Checks what needs no file, network or policy. The first thing wrong is reported.
pub(super) fn check(config: &PipelineConfig) -> Result<(), Wrong> {
    let root = KeyPath::root();
    name(&root.key("name"), &config.name)?;
    name(&root.key("instance"), &config.instance)?;
    dataset(&root.key("dataset"), &config.dataset)?;
    format(&root.key("format"), config.format)?;
    count(&root.key("threads"), u64::from(config.threads), 64)?;
    let batch = root.key("batch");
    count(&batch.key("rows"), u64::from(config.batch.rows), 1_000_000)?;
    count(&batch.key("bytes"), config.batch.bytes.0, 1 << 30)?;
    count(&root.key("output").key("batch"), config.output.batch.0, 1 << 30)?;
    count(&root.key("output").key("record"), config.output.record.0, 1 << 30)?;
    if config.enclave.is_some() {
        let (batch, output) = (root.key("batch"), root.key("output"));
        for (at, size) in [
            (batch.key("bytes"), config.batch.bytes),
            (output.key("batch"), config.output.batch),
            (output.key("record"), config.output.record),
        ] {
            if size.0 > MOST_FOR_WORKER {
                let message = "more than the channel to the enclave worker takes at once";
                return wrong(&at, message, "48MiB at most; leave it out for the default");
            }
        }
    }
    if let Some(memory) = &config.replay_memory {
        let (at, names) = (root.key("replay_memory").key("names"), memory.names);
        count(&at, u64::try_from(names).unwrap_or(u64::MAX), 1 << 26)?;
        if names < 1_024 {
            return wrong(&at, "less than 1,024", "leave it out for 1,048,576");
        }
    }
    if config.policy_refresh.0 < Duration::from_millis(100) {
        return wrong(&root.key("policy_refresh"), "less than 100ms", "30s is usual");
    }
    catalogue(&config.catalogue)?;
    kms(&config.kms)?;
    if let Err((key, message, help)) = config.telemetry.check() {
        return wrong(&root.key("telemetry").key("otlp").key(key), message, help);
    }
    super::table::check(config)?;
    config.kafka().check().map_err(|error| Wrong {
        path: error.path,
        message: error.message,
        help: error.help,
    })
}

pub(super) fn wrong<T>(place: &KeyPath, message: impl Into<String>, help: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong {
        path: place.to_string(),
        message: message.into(),
        help: help.into(),
    })
}

/// Names become parts of transactional ids, joined by dots.
pub(super) fn name(place: &KeyPath, name: &str) -> Result<(), Wrong> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if (1..=100).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    wrong(
        place,
        "not a name",
        "use 1 to 100 of A-Z, a-z, 0-9, dash and underscore",
    )
}

/// As policies spell it.
fn dataset(place: &KeyPath, name: &str) -> Result<(), Wrong> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=128).contains(&name.len()) && name.bytes().all(plain) {
        return Ok(());
    }
    wrong(
        place,
        "not the name of a dataset",
        "use 1 to 128 of A-Z, a-z, 0-9, dot, dash and underscore, as the policy does",
    )
}

fn format(place: &KeyPath, format: Format) -> Result<(), Wrong> {
    match format {
        Format::Json | Format::Ndjson | Format::JsonSr => Ok(()),
        Format::Avro | Format::Protobuf => wrong(
            place,
            "Avro and Protobuf records cannot be sealed by this version",
            "use json, ndjson or json-sr; convert the topic to JSON first",
        ),
    }
}

fn count(place: &KeyPath, value: u64, most: u64) -> Result<(), Wrong> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    wrong(
        place,
        format!("must be between 1 and {most}"),
        "choose a value in that range, or remove the key for the default",
    )
}

/// The section's own check; its messages start with the key.
pub(super) fn kms(config: &KmsConfig) -> Result<(), Wrong> {
    config.check().map_err(|error| {
        let text = error.to_string();
        let (key, message) = text.split_once(": ").unwrap_or(("", &text));
        let path = format!("kms.{}", key.split(',').next().unwrap_or_default());
        Wrong {
            path,
            message: message.to_owned(),
            help: "`sealflow schema pipeline` says what this key takes".to_owned(),
        }
    })
}

/// The section's own check; its messages start with the key.
pub(super) fn catalogue(config: &CatalogueConfig) -> Result<(), Wrong> {
    config.check().map_err(|error| {
        let text = error.to_string();
        let (key, message) = text.split_once(": ").unwrap_or(("", &text));
        Wrong {
            path: format!("catalogue.{}", key.split(',').next().unwrap_or_default()),
            message: message.to_owned(),
            help: error.help().to_owned(),
        }
    })
}
