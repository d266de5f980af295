//! `sealflow read`: records of a sealed topic, as somebody may see them.

mod by_enclave;
mod fields;
pub(in crate::commands) mod source;
pub(in crate::commands) mod told;
mod who;
mod write;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::TypedValueParser;
use sealflow::audit::{Event, Verdict};
use sealflow::clock::UnixMillis;
use sealflow::flow::hybrid::AnswerKey;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::pipeline::{EnclaveColumns, Format, ReadError, Reader, Reading, Record};
use sealflow::table::{Filter, Query};
use sealflow_kafka::{StartAt, TopicReading};
use sealflow_storage::Location;

pub(in crate::commands) use self::by_enclave::ByEnclave;
use self::source::Start;
pub(crate) use self::source::TopicUrl;
use self::who::Asking;
pub(in crate::commands) use self::who::{Asking as Who, AssumedIdentity};
use self::write::{Output, Writer};
use super::access::Access;
use super::client::read_public_key;
use super::tables;
use crate::audit::{AuditArgs, Log};
use crate::config::PipelineConfig;
use crate::failure::{Exit, Failure, Result};
use crate::place_arg::PlaceParser;
use crate::redact;
use crate::services::{Services, clock};
use crate::term::{harmless, note};

/// How often and how long a service that is away is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const BETWEEN_TRIES: Duration = Duration::from_secs(1);
/// A table is for looking at.
const TABLE_ROWS: u64 = 100;

/// Read a sealed topic, or a table of encrypted Parquet, as far as you may
///
/// Columns that the policy's ACLs refuse you are masked, as are those whose key KMS refuses you, and nothing else is:
/// one refused column never fails the rest. Who you are is what AWS STS says of your credentials. KMS enforces: with the
/// rights on a key, its values can be opened by other means than this command, whatever the ACL says.
///
/// Exits with 0 if every value was opened or masked by an ACL, with 77 if a value did not open at its place or KMS
/// refused its key, and with 65 if there was something else than a sealed value, or a record that cannot be taken apart.
/// Everything is written before, nulls in the place of what did not open.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `kafka://HOST:PORT[,HOST:PORT…]/TOPIC`, with --pipeline `kafka:///TOPIC` on the pipeline's brokers; or a Parquet
    /// file, or the folder of a table; either may be in a bucket: s3://BUCKET/PATH
    #[arg(value_name = "SOURCE", value_parser = SourceParser)]
    source: Source,
    /// Only these partitions; may be repeated
    #[arg(long = "partition", value_name = "N", value_delimiter = ',')]
    partitions: Vec<i32>,
    /// Start with this offset of each partition, or with the first record of this time (2026-01-01T00:00:00Z)
    #[arg(long, value_name = "OFFSET|TIME", conflicts_with = "last")]
    from: Option<Start>,
    /// Only the newest N offsets of each partition
    #[arg(long, value_name = "N")]
    last: Option<NonZeroU64>,
    /// End after N records; a table ends after 100
    #[arg(long, value_name = "N")]
    limit: Option<NonZeroU64>,
    /// Show these fields, by their paths; may be repeated or separated by commas. Without: all of JSON, and in the other
    /// outputs those that the first records have
    #[arg(long = "columns", value_name = "PATH", value_delimiter = ',')]
    columns: Vec<String>,
    /// Of a table only rows of which this is true: `amount >= 100 and country = "DE"`
    #[arg(long = "where", value_name = "FILTER")]
    filter: Option<String>,
    /// Read a file by the policy that it carries, without the catalogue's newest
    #[arg(long)]
    offline: bool,
    /// Read encrypted Parquet of other tools, which carries no policy: no ACL counts then, KMS alone decides
    #[arg(long, conflicts_with = "purpose")]
    foreign: bool,
    /// Seal what is opened to this RSA public key (JWK): only its private half opens it. Needs --output json
    #[arg(long, value_name = "FILE", conflicts_with = "foreign")]
    seal_to: Option<PathBuf>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    /// What a record's value is; default: what the pipeline says, or json
    #[arg(long, value_name = "FORMAT")]
    format: Option<FormatArg>,
    /// What you read for, where the policy asks
    #[arg(long, value_name = "PURPOSE")]
    purpose: Option<String>,
    /// Open values at other places than their own too, of columns that were renamed; the ACL of their own label counts
    #[arg(long)]
    moved: bool,
    #[command(flatten)]
    assumed: AssumedIdentity,
    /// librdkafka property, such as security.protocol=SSL; may be repeated. Those of --pipeline count too
    #[arg(long = "property", value_name = "KEY=VALUE")]
    properties: Vec<String>,
    #[command(flatten)]
    audit: AuditArgs,
    #[command(flatten)]
    access: Access,
}

/// A topic, or files.
#[derive(Clone, Debug)]
enum Source {
    Topic(TopicUrl),
    Files(Location),
}

/// Parses a topic, a folder, a file or `s3://BUCKET/PREFIX`.
#[derive(Clone, Copy, Debug)]
struct SourceParser;

impl TypedValueParser for SourceParser {
    type Value = Source;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> std::result::Result<Source, clap::Error> {
        if value.to_str().is_some_and(|text| text.starts_with("kafka:")) {
            let topic: fn(&str) -> std::result::Result<TopicUrl, String> = str::parse;
            return topic.parse_ref(command, argument, value).map(Source::Topic);
        }
        PlaceParser.parse_ref(command, argument, value).map(Source::Files)
    }
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum FormatArg {
    /// One JSON document
    Json,
    /// One JSON document a line
    Ndjson,
    /// JSON behind a schema registry's five bytes
    JsonSr,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Json => Self::Json,
            FormatArg::Ndjson => Self::Ndjson,
            FormatArg::JsonSr => Self::JsonSr,
        }
    }
}

/// Runs the subcommand.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let config = args.access.loaded()?;
    let audit = args.audit.open(config.as_ref()).await?;
    let mut about = Event::new(UnixMillis(0), Verdict::Refused, "");
    let read = match &args.source {
        Source::Topic(url) => {
            let story = read(&args, url, config.as_ref(), &audit, &mut about).await;
            story.and_then(|story| story.tell())
        }
        Source::Files(place) => read_files(&args, place, config.as_ref(), &audit, &mut about).await,
    };
    let read = match read {
        Ok(code) => Ok(code),
        Err(failure) => {
            // A refusal that stands before all values, or ends them, is part of the story too.
            let event = Event {
                at: clock().now(),
                dataset: args.access.dataset(config.as_ref()),
                // Redacted once more, like everything that is written.
                rule: redact::redacted(&failure.message).into_owned(),
                ..about
            };
            let is_refusal = matches!(failure.exit, Exit::NotPermitted | Exit::Config);
            let events = if is_refusal { vec![event] } else { Vec::new() };
            audit.record(events).await.and(Err(failure))
        }
    };
    audit.close().await?;
    read
}

/// `about` says who asked, as soon as it is known.
async fn read(
    args: &Args,
    url: &TopicUrl,
    config: Option<&PipelineConfig>,
    audit: &Log,
    about: &mut Event,
) -> Result<Story> {
    args.refuse_options_of_files()?;
    let seal_to = args.seal_to()?;
    args.assumed.check(&args.access)?;
    // First who asks: a policy that is refused is refused to somebody.
    let kms = args.access.kms(config).await?;
    let asking = args.assumed.asking(&*kms).await?;
    args.tell(&asking, about);
    let services = args.access.open_on(kms, config, None).await?;
    let policy = services.policy.policy();
    note(format_args!(
        "reading {} as {}, by version {} of its policy",
        policy.dataset,
        harmless(&asking.who.to_string()),
        policy.version
    ));
    let format = match (args.format, config.and_then(|config| config.format.core())) {
        (Some(format), _) => format.into(),
        (None, format) => format.unwrap_or_default(),
    };
    let reader = Reader::new(
        &policy.dataset,
        format,
        services.policies.clone(),
        services.opening_keys(),
        services.sealer().domains,
    )
    .with_moved(args.moved);
    let kms = args.access.kms_config(config);
    let enclave = ByEnclave::start(config, &kms, &services, seal_to.as_ref()).await?;
    let reader = match &enclave {
        Some(_) => reader.with_enclave_columns(EnclaveColumns::Left),
        None => reader,
    };
    let read = TopicRead {
        enclave,
        reading: args.reading(url, config)?,
        args,
        services: &services,
        asking: &asking,
        reader,
        audit,
        seal_to,
    };
    read.all(Writer::new(args.output, args.columns.clone(), format)?, about)
        .await
}

/// Reads the files of a table.
async fn read_files(
    args: &Args,
    place: &Location,
    config: Option<&PipelineConfig>,
    audit: &Log,
    about: &mut Event,
) -> Result<ExitCode> {
    args.refuse_options_of_topics()?;
    let seal_to = args.seal_to()?;
    let by = tables::By {
        offline: args.offline,
        moved: args.moved,
        foreign: args.foreign,
    };
    let files = tables::Files::at(place, config).await?;
    let opener = tables::Opener::new(&args.access, &args.assumed, config, by).await?;
    let opener = opener.sealing_to(seal_to.as_ref());
    args.tell(&opener.who, about);
    note(format_args!(
        "reading {} as {}",
        harmless(&place.to_string()),
        harmless(&opener.who.who.to_string())
    ));
    let filter = match &args.filter {
        Some(text) => Filter::parse(text).map_err(|error| Failure::usage(&error, error.help()))?,
        None => Filter::default(),
    };
    let limit = match (args.limit, args.output) {
        (Some(limit), _) => Some(limit.get()),
        (None, Output::Table) => Some(TABLE_ROWS),
        (None, _) => None,
    };
    let to = match args.output {
        Output::Table => tables::read::To::Table,
        Output::Json => tables::read::To::Json,
        Output::Csv => tables::read::To::Csv,
        Output::Arrow => tables::read::To::Arrow,
        Output::Parquet => tables::read::To::Parquet,
    };
    let read = tables::read::TableRead {
        opener,
        purpose: args.purpose.clone(),
        query: Query {
            columns: (!args.columns.is_empty()).then(|| args.columns.clone()),
            filter,
            limit,
            ..Query::default()
        },
        clock: clock(),
        to,
        seal_to,
    };
    read.all(files, audit, about).await
}

impl Args {
    /// Lets audit lines say who asks, and for what.
    fn tell(&self, asking: &Asking, about: &mut Event) {
        about.principal = Some(asking.who.to_string());
        about.caller.clone_from(&asking.caller);
        about.proof = Some(asking.proof);
        about.purpose.clone_from(&self.purpose);
    }

    /// The key that answers are sealed to.
    fn seal_to(&self) -> Result<Option<RsaPublicJwk>> {
        let Some(path) = &self.seal_to else { return Ok(None) };
        if self.output != Output::Json {
            return Err(Failure::usage(
                "--seal-to writes JWEs in the places of values, and needs --output json",
                "add --output json; `sealflow client open` opens what comes out",
            ));
        }
        read_public_key(path).map(Some)
    }

    fn refuse_options_of_files(&self) -> Result<()> {
        let is_of_files = self.filter.is_some() || self.offline || self.foreign || self.output == Output::Parquet;
        match is_of_files {
            false => Ok(()),
            true => Err(Failure::usage(
                "--where, --offline, --foreign and --output parquet are for tables",
                "read the topic without them",
            )),
        }
    }

    fn refuse_options_of_topics(&self) -> Result<()> {
        let is_of_topics = !self.partitions.is_empty()
            || self.from.is_some()
            || self.last.is_some()
            || self.format.is_some()
            || !self.properties.is_empty();
        match is_of_topics {
            false => Ok(()),
            true => Err(Failure::usage(
                "--partition, --from, --last, --format and --property are for topics",
                "say which rows with --where, for example --where '_partition = 3 and _offset >= 1000'",
            )),
        }
    }

    fn reading(&self, url: &TopicUrl, config: Option<&PipelineConfig>) -> Result<TopicReading> {
        let mut reading = url.reading(config, &self.properties)?;
        reading.partitions.clone_from(&self.partitions);
        reading.from = match (self.from, self.last) {
            (Some(Start::Offset(offset)), _) => StartAt::Offset(offset),
            (Some(Start::Time(time)), _) => StartAt::Time(i64::try_from(time.0).unwrap_or(i64::MAX)),
            (None, Some(count)) => StartAt::Last(count.get()),
            (None, None) => StartAt::Oldest,
        };
        Ok(reading)
    }
}

/// One run over a topic.
struct TopicRead<'a> {
    reading: TopicReading,
    args: &'a Args,
    services: &'a Services,
    asking: &'a Asking,
    reader: Reader,
    audit: &'a Log,
    seal_to: Option<RsaPublicJwk>,
    enclave: Option<ByEnclave>,
}

impl TopicRead<'_> {
    async fn all(&self, mut writer: Writer, about: &mut Event) -> Result<Story> {
        let limit = match (self.args.limit, self.args.output) {
            (Some(limit), _) => limit.get(),
            (None, Output::Table) => TABLE_ROWS,
            (None, _) => u64::MAX,
        };
        let (mut batches, task) = source::batches(self.reading.clone(), limit);
        let mut story = Story::default();
        while let Some(batch) = batches.recv().await {
            let read = self.batch(batch).await?;
            about.at = self.services.clock.now();
            // What cannot be written down is not shown.
            self.audit.record(read.events(about)).await?;
            story.add(&read);
            if writer.write(&read)? == ControlFlow::Break(()) {
                break;
            }
        }
        drop(batches);
        let end = source::joined(task.await)?;
        writer.finish()?;
        if end.is_cut && self.args.limit.is_none() {
            note(format_args!(
                "there are more records: a table ends after {TABLE_ROWS}, unless --limit says another number"
            ));
        }
        if end.left_out > 0 {
            note(format_args!(
                "{} records were left out: the names of their headers are not UTF-8",
                end.left_out
            ));
        }
        Ok(story)
    }

    /// A batch, as soon as every service answers.
    async fn batch(&self, records: Vec<Record>) -> Result<Reading> {
        let started = tokio::time::Instant::now();
        // One for each batch: it seals so many values and no more.
        let seal_to = match &self.seal_to {
            Some(key) => Some(
                AnswerKey::new(key, &self.services.policy.policy().dataset)
                    .map_err(|error| Failure::new(Exit::Internal, error, "try again"))?,
            ),
            None => None,
        };
        let purpose = self.args.purpose.as_deref();
        let (records, mut decided) = match &self.enclave {
            Some(enclave) => enclave.open(records, purpose).await?,
            None => (records, Vec::new()),
        };
        loop {
            let now = self.services.clock.now();
            let who = &self.asking.who;
            let records = records.clone();
            let read = self.reader.read_to(records, who, purpose, now, seal_to.as_ref()).await;
            match read {
                Ok(mut reading) => {
                    reading.decisions.append(&mut decided);
                    return Ok(reading);
                }
                Err(error) if error.is_retryable() && started.elapsed() < PATIENCE => {
                    tracing::warn!(error = %error, "waiting for a service");
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
                Err(ReadError::Policy(error)) => return Err(error.into()),
                Err(ReadError::Service(error)) => return Err(error.into()),
                Err(error) => return Err(Failure::new(Exit::Unavailable, error, "try again later")),
            }
        }
    }
}

/// What became of everything, for the last lines and the exit code.
#[derive(Default)]
struct Story {
    columns: told::Columns,
    withheld: BTreeMap<&'static str, u64>,
}

impl Story {
    fn add(&mut self, reading: &Reading) {
        self.columns.add(&reading.decisions);
        for withheld in reading.records.iter().filter_map(|record| record.as_ref().err()) {
            *self.withheld.entry(withheld.code).or_default() += 1;
        }
    }

    fn tell(&self) -> Result<ExitCode> {
        self.columns.tell();
        for (code, count) in &self.withheld {
            note(format_args!("withheld: {count} records, {code}"));
        }
        self.columns.check_opened(
            "the lines above say which: values moved to another column, changed or of another dataset, or keys that KMS refuses you",
        )?;
        let all = self.columns.not_masked();
        let withheld: u64 = self.withheld.values().sum();
        if all + withheld > 0 {
            return Err(Failure::new(
                Exit::Data,
                format_args!(
                    "{all} values at sealed columns are not sealed, and {withheld} records cannot be taken apart; they were not shown"
                ),
                "was this topic written by a pipeline of this dataset? --format says what records are",
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}
