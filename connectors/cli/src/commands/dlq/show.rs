//! `sealflow dlq show`: one dead letter; what it seals only on demand, to a terminal or a private file.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use sealflow::keys::envelope::read_header;
use sealflow::keys::{Envelope, KEYS_HEADER};
use sealflow::pipeline::{LetterFilter, LetterOpener, sealed_to};
use sealflow::seal::{SealedValue, value};
use sealflow_kafka::Letters;
use serde::Serialize;
use zeroize::Zeroizing;

use super::Place;
use super::key::{self, LetterKey};
use super::read::{self, Found};
use crate::commands::run::services;
use crate::config::{self, Environment, PipelineConfig};
use crate::failure::{Exit, Failure, Result};
use crate::files::{self, Access};
use crate::metrics::Metrics;
use crate::term::{OutputFormat, harmless, note, say, say_json};

/// Show one dead letter; its record only with --open
///
/// --open needs rights on the KMS key of the dead letters, or the private key that they are sealed to, and shows plaintext: on a
/// terminal, or in the file that --to names, readable for you alone. It is never written anywhere else.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Where its record was read, as `dlq list` shows it: TOPIC/PARTITION/OFFSET
    #[arg(value_name = "RECORD")]
    record: String,
    /// Open it: prints plaintext
    #[arg(long)]
    open: bool,
    /// Write the opened record's value to this file instead
    #[arg(long, value_name = "FILE", requires = "open")]
    to: Option<PathBuf>,
    /// The private key (PKCS #8, PEM) of `dead_letters.recipient`, which no service holds
    #[arg(long, value_name = "FILE", requires = "open")]
    dead_letter_key: Option<PathBuf>,
}

#[derive(Serialize)]
struct Shown {
    code: String,
    stage: String,
    record: String,
    letter: String,
    sealed_bytes: usize,
    /// The RSA key that it says it is sealed to, if it is not under a data key.
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<String>,
    key: Option<String>,
    /// What the envelope that travels with it says, which proves nothing.
    arn: Option<String>,
    policy_version: Option<u64>,
}

pub(super) async fn run(args: Args) -> Result<ExitCode> {
    let config = config::load(&args.place.pipeline, &Environment::of_process())?;
    let found = find(&config, position(&args.record)?).await?;
    let shown = Shown::new(&found);
    match args.place.output {
        OutputFormat::Json => say_json(&shown),
        OutputFormat::Text => shown.print(),
    }
    if args.open {
        open(&config, &found, &args).await?;
    }
    Ok(ExitCode::SUCCESS)
}

fn position(text: &str) -> Result<LetterFilter> {
    let mut parts = text.rsplitn(3, '/');
    let (offset, partition, topic) = (parts.next(), parts.next(), parts.next());
    let parsed = offset
        .and_then(|offset| offset.parse().ok())
        .zip(partition.and_then(|partition| partition.parse().ok()))
        .zip(topic);
    let Some(((offset, partition), topic)) = parsed else {
        return Err(Failure::usage(
            format_args!("{text:?} is not the position of a record"),
            "write TOPIC/PARTITION/OFFSET, as `sealflow dlq list` shows it",
        ));
    };
    Ok(LetterFilter {
        topic: Some(topic.to_owned()),
        partition: Some(partition),
        offset: Some(offset),
        ..LetterFilter::default()
    })
}

/// The newest letter of the record.
async fn find(config: &PipelineConfig, filter: LetterFilter) -> Result<Found> {
    for path in read::files(config)? {
        let found = read::of_file(&path)?;
        if filter.matches(&found.letter) {
            return Ok(found);
        }
    }
    let newest = Arc::new(Mutex::new(None));
    let inside = Arc::clone(&newest);
    read::of_topic(config, Letters::All, move |found| {
        if filter.matches(&found.letter) {
            *inside.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        }
    })
    .await?;
    let found = newest.lock().unwrap_or_else(PoisonError::into_inner).take();
    found.ok_or_else(|| {
        Failure::new(
            Exit::Data,
            "no dead letter of that record",
            "`sealflow dlq list --all` shows what is there",
        )
    })
}

impl Shown {
    fn new(found: &Found) -> Self {
        let letter = &found.letter;
        let recipient = sealed_to(letter);
        let mut sealed = Vec::new();
        let key = value::read_text(letter.record.as_bytes(), &mut sealed)
            .ok()
            .and_then(|()| SealedValue::parse(&sealed).ok())
            .map(|value| value.key());
        let headers = found.message.headers.iter();
        let envelopes = headers
            .filter(|header| header.name == KEYS_HEADER)
            .filter_map(|header| read_header(header.value.as_deref()?).ok())
            .flatten();
        let envelope = envelopes
            .filter_map(|bytes| Envelope::from_bytes(bytes).ok())
            .find(|envelope| Some(envelope.key_id()) == key);
        Self {
            code: letter.code.clone(),
            stage: letter.stage.clone(),
            record: format!("{}/{}/{}", letter.topic, letter.partition, letter.offset),
            letter: found.at.clone(),
            sealed_bytes: recipient.as_ref().map_or(sealed.len(), |(_, bytes)| *bytes),
            recipient: recipient.map(|(name, _)| name.to_string()),
            key: key.map(|key| key.to_string()),
            arn: envelope.as_ref().map(|envelope| envelope.arn.clone()),
            policy_version: envelope.map(|envelope| envelope.policy_version),
        }
    }

    fn print(&self) {
        let none = "unknown".to_owned();
        say(format_args!("code            {}", harmless(&self.code)));
        say(format_args!("stage           {}", harmless(&self.stage)));
        say(format_args!("record          {}", harmless(&self.record)));
        say(format_args!("letter          {}", harmless(&self.letter)));
        say(format_args!("sealed bytes    {}", self.sealed_bytes));
        if let Some(recipient) = &self.recipient {
            return say(format_args!("recipient       {recipient}"));
        }
        say(format_args!("data key        {}", self.key.as_ref().unwrap_or(&none)));
        say(format_args!(
            "KMS key         {}",
            harmless(self.arn.as_ref().unwrap_or(&none))
        ));
        if let Some(version) = self.policy_version {
            say(format_args!("policy version  {version}"));
        }
    }
}

/// What opens the letter, and what to do if it does not. For one to a recipient neither KMS nor catalogue are asked.
async fn opener(config: &PipelineConfig, found: &Found, key: Option<&Path>) -> Result<(LetterOpener, &'static str)> {
    let Some((recipient, _)) = sealed_to(&found.letter) else {
        let services = services(config, None, &Arc::new(Metrics::new(&config.name))).await?;
        return Ok((
            LetterOpener::new(&config.dataset, services.opening_keys()),
            "it was sealed for another dataset, or its key is gone: `sealflow keys list`",
        ));
    };
    let key = LetterKey::read(key.ok_or_else(|| key::is_needed(&recipient))?)?;
    let opener = key.add_to(LetterOpener::without_keys(&config.dataset))?;
    Ok((
        opener,
        "it was sealed to another key or for another dataset, or edited: `sealflow dlq show` names its key",
    ))
}

async fn open(config: &PipelineConfig, found: &Found, args: &Args) -> Result<()> {
    let to = args.to.as_deref();
    if to.is_none() && !std::io::stdout().is_terminal() {
        return Err(Failure::usage(
            "an opened record goes to a terminal only",
            "write it to a file that only you can read: --to FILE",
        ));
    }
    let (opener, help) = opener(config, found, args.dead_letter_key.as_deref()).await?;
    let Some(record) = opener.open(&found.letter, &found.message).await? else {
        return Err(Failure::new(Exit::Data, "the dead letter does not open", help));
    };
    note("warning: what follows is plaintext");
    let value = Zeroizing::new(record.value.as_deref().unwrap_or_default().to_vec());
    if let Some(path) = to {
        return files::write_new(path, &value, Access::Private, false);
    }
    say(format_args!("timestamp       {:?}", record.timestamp));
    if let Some(key) = &record.key {
        say(format_args!("key             {}", key.escape_ascii()));
    }
    for header in &record.headers {
        let value = header.value.as_deref().unwrap_or_default();
        say(format_args!(
            "header          {}: {}",
            header.name.escape_debug(),
            value.escape_ascii()
        ));
    }
    // Whatever a record holds, it does not steer the terminal.
    match std::str::from_utf8(&value) {
        Ok(text) if !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) => say(text),
        _ => say(value.escape_ascii()),
    }
    Ok(())
}
