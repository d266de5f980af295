//! `sealflow init`: from a few records to policy, owner key and pipeline; what is left is `validate` and `run`.
//!
//! Nothing of the records' values is printed or written.

mod classify;
mod files;
mod propose;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use files::{PipelineParts, PolicyParts, pipeline_yaml, policy_yaml, schema_yaml};
use propose::{Proposal, Survey};
use sealflow::jose::PrivateJwk;
use sealflow::policy::Policy;
use sealflow::policy::arn::check_key_arn;
use sealflow::policy::publish::publish;
use sealflow::policy::signed::sign;
use sealflow::table::TableSchema;
use sealflow_kafka::{KafkaConfig, KafkaSource, KafkaTarget};

use sealflow_local_kms::KeySpec;
use sealflow_storage::Location;

use super::kms::KmsFolder;
use super::validate::ask;
use crate::failure::{Exit, Failure, Result};
use crate::files::{Access, read_capped, write_new};
use crate::services::{in_folder, open_catalogue};
use crate::term::{Style, say, table};
use crate::trust::{make_owner_key, owners, read_owner_key};

/// A schema registry's prefix: a zero byte, and a schema id of four bytes.
const REGISTRY_PREFIX_LEN: usize = 5;

/// Make policy, owner key and pipeline from sample records
///
/// Looks at some records, proposes what to seal by names and values, writes policy.yaml, pipeline.yaml and owner.key,
/// signs the policy and publishes it in the catalogue. Shows no value of any record.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Topic to seal
    #[arg(long, value_name = "NAME", default_value = "payments")]
    topic: String,
    /// Brokers of the topic, separated by commas
    #[arg(
        long,
        visible_alias = "broker",
        value_name = "HOST:PORT",
        default_value = "localhost:9092"
    )]
    brokers: String,
    /// Look at the records of this file (NDJSON; `-` for standard input) instead of asking the brokers
    #[arg(long, value_name = "FILE")]
    sample: Option<PathBuf>,
    /// How many records to look at
    #[arg(long, value_name = "N", default_value_t = 200)]
    records: usize,
    /// Name of the dataset; default: the topic
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// ARN of the KMS key; without it the key of a local KMS, made if there is none
    #[arg(long, value_name = "ARN")]
    key_arn: Option<String>,
    /// Folder of a local KMS, for development; default without --key-arn: local-kms
    #[arg(long, value_name = "DIR", env = "SEALFLOW_LOCAL_KMS", hide_env_values = true)]
    local_kms: Option<PathBuf>,
    /// Principal that the proposed ACLs allow to open
    #[arg(long, value_name = "PRINCIPAL")]
    allow: Option<String>,
    /// Write encrypted Parquet there, a folder or s3://BUCKET/PREFIX, instead of a sealed topic: makes schema.yaml too
    #[arg(long, value_name = "LOCATION")]
    table: Option<Location>,
    /// Where the files go
    #[arg(long, value_name = "DIR", default_value = ".")]
    folder: PathBuf,
}

/// Runs the subcommand.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let names = Names::new(&args.folder);
    names.refuse_existing()?;
    let dataset = args.dataset.clone().unwrap_or_else(|| args.topic.clone());
    names.refuse_published(&dataset).await?;
    let values = sample(&args).await?;
    let (survey, format) = survey(&values)?;
    let proposals = survey.proposals();
    if proposals.is_empty() {
        let message = format!(
            "none of {} records holds anything that looks like it should be sealed",
            survey.records()
        );
        return Err(Failure::new(
            Exit::Data,
            message,
            "write the policy yourself: `sealflow policy init`",
        ));
    }
    show(&proposals, survey.records());
    let schema = match &args.table {
        Some(_) => Some(infer(&dataset, &values, format)?),
        None => None,
    };
    let key = Key::new(&args).await?;
    let owner = if names.owner.exists() {
        read_owner_key(&names.owner)?
    } else {
        make_owner_key(&names.owner)?
    };
    write(
        &args,
        &names,
        &Findings {
            dataset,
            proposals,
            survey,
            format,
            schema,
        },
        &key,
        &owner,
    )
    .await?;
    next_steps(&names, &key);
    Ok(ExitCode::SUCCESS)
}

/// What was found in the records.
struct Findings {
    dataset: String,
    proposals: Vec<Proposal>,
    survey: Survey,
    format: &'static str,
    /// Of a table.
    schema: Option<TableSchema>,
}

/// The columns of a table that takes such records.
fn infer(dataset: &str, values: &[Vec<u8>], format: &str) -> Result<TableSchema> {
    let prefix = if format == "json-sr" { REGISTRY_PREFIX_LEN } else { 0 };
    let samples = values.iter().filter_map(|value| value.get(prefix..));
    TableSchema::infer(dataset, samples).map_err(|error| Failure::new(Exit::Data, error.to_string(), error.help()))
}

/// The files that are written.
struct Names {
    policy: PathBuf,
    schema: PathBuf,
    pipeline: PathBuf,
    owner: PathBuf,
    catalogue: PathBuf,
}

impl Names {
    fn new(folder: &Path) -> Self {
        // `./` in front of every name says nothing.
        let name = |name: &str| {
            if folder == Path::new(".") {
                PathBuf::from(name)
            } else {
                folder.join(name)
            }
        };
        Self {
            policy: name("policy.yaml"),
            schema: name("schema.yaml"),
            pipeline: name("pipeline.yaml"),
            owner: name("owner.key"),
            catalogue: name("catalogue"),
        }
    }

    /// An owner key that is there is used again; the rest somebody has edited.
    fn refuse_existing(&self) -> Result<()> {
        match [&self.policy, &self.schema, &self.pipeline]
            .into_iter()
            .find(|path| path.exists())
        {
            None => Ok(()),
            Some(path) => Err(Failure::new(
                Exit::Io,
                format_args!("{} is there already", path.display()),
                "move it away, or choose another --folder",
            )),
        }
    }

    /// A dataset that has a policy is changed by its next version, not by another first one.
    async fn refuse_published(&self, dataset: &str) -> Result<()> {
        if !self.catalogue.is_dir() {
            return Ok(());
        }
        let catalogue = open_catalogue(&in_folder(&self.catalogue)).await?;
        if catalogue.list(&format!("policies/{dataset}")).await?.is_empty() {
            return Ok(());
        }
        Err(Failure::config(
            format_args!("{} holds a policy of {dataset} already", self.catalogue.display()),
            "change that one: `sealflow policy show DATASET --yaml`, raise its version, `sealflow policy publish`; or \
             choose another --folder",
        ))
    }
}

/// The values of some records.
async fn sample(args: &Args) -> Result<Vec<Vec<u8>>> {
    if let Some(path) = &args.sample {
        let bytes = read_capped(path, 64 << 20)?;
        let lines = bytes
            .split(|b| *b == b'\n')
            .filter(|line| !line.iter().all(u8::is_ascii_whitespace));
        return Ok(lines.take(args.records).map(<[u8]>::to_vec).collect());
    }
    let source = KafkaSource {
        brokers: args.brokers.clone(),
        topics: vec![args.topic.clone()],
        pattern: None,
        group: None,
        properties: Default::default(),
    };
    let target = KafkaTarget {
        brokers: None,
        topic: "{topic}.sealed".to_owned(),
        create: true,
        properties: Default::default(),
    };
    let (config, wanted) = (
        KafkaConfig {
            source,
            target,
            dead_letters: None,
        },
        args.records,
    );
    let records = ask(move || sealflow_kafka::sample(&config, wanted, std::time::Duration::from_secs(10))).await?;
    if records.is_empty() {
        let message = format!("topic {} holds no records, or does not exist", args.topic);
        return Err(Failure::new(
            Exit::Data,
            message,
            "name a topic with records, or give some with --sample FILE",
        ));
    }
    Ok(records
        .into_iter()
        .filter_map(|record| record.value.map(|value| value.to_vec()))
        .collect())
}

/// Looks at the values, and tells which format they are in.
fn survey(values: &[Vec<u8>]) -> Result<(Survey, &'static str)> {
    let mut survey = Survey::default();
    let mut registry = 0;
    for value in values {
        if let Ok(record) = serde_json::from_slice(value) {
            survey.add(&record);
        } else if let Some(Ok(record)) = value
            .strip_prefix(&[0])
            .and_then(|rest| rest.get(4..))
            .map(serde_json::from_slice)
        {
            survey.add(&record);
            registry += 1;
        }
    }
    let unread = values.len() as u64 - survey.records();
    if survey.records() == 0 {
        let message = format!("none of {unread} records is JSON");
        return Err(Failure::new(
            Exit::Data,
            message,
            "this version seals JSON; Avro and Protobuf topics have to be converted first",
        ));
    }
    if unread > 0 {
        say(format_args!(
            "{unread} of {} records are no JSON: they would become dead letters",
            values.len()
        ));
    }
    Ok((survey, if registry * 2 > values.len() { "json-sr" } else { "json" }))
}

fn show(proposals: &[Proposal], records: u64) {
    say(format_args!("looked at {records} records; proposed to seal:"));
    let mut rows = vec![["COLUMN", "LOOKS LIKE", "BY", "RECORDS"].map(str::to_owned)];
    rows.extend(proposals.iter().map(|proposal| {
        let by = if proposal.by_name { "name" } else { "values" };
        [
            proposal.path.to_string(),
            proposal.kind.words().to_owned(),
            by.to_owned(),
            proposal.records.to_string(),
        ]
    }));
    table(&rows);
    say("");
}

/// The KMS key, and the local KMS that it is in.
struct Key {
    arn: String,
    local: Option<KmsFolder>,
    /// The `kms` section.
    section: String,
}

impl Key {
    async fn new(args: &Args) -> Result<Self> {
        let folder = match (&args.local_kms, &args.key_arn) {
            (Some(folder), _) => Some(folder.clone()),
            (None, None) => Some(PathBuf::from("local-kms")),
            (None, Some(_)) => None,
        };
        let local = folder.as_deref().map(KmsFolder::open_or_create).transpose()?;
        let arn = match (&args.key_arn, &local) {
            (Some(arn), _) => arn.clone(),
            (None, Some(folder)) => local_key(folder).await?,
            (None, None) => String::new(),
        };
        check_key_arn(&arn).map_err(|error| Failure::usage(format_args!("--key-arn: {error}"), error.help()))?;
        let region = arn.split(':').nth(3).unwrap_or_default();
        let section = match &local {
            Some(folder) => format!("{{ region: {region}, endpoint: \"{}\" }}", folder.endpoint()?),
            None => format!("{{ region: {region} }}"),
        };
        Ok(Self { arn, local, section })
    }

    /// Whoever is in the key's account under that name.
    fn principal(&self) -> String {
        let account = self.arn.split(':').nth(4).unwrap_or_default();
        let who = if self.local.is_some() {
            "user/developer"
        } else {
            "role/reader"
        };
        format!("arn:aws:iam::{account}:{who}")
    }
}

/// The one symmetric key that the folder holds, or a new one where there is none.
async fn local_key(folder: &KmsFolder) -> Result<String> {
    match &folder.keys()?[..] {
        [] => {
            folder
                .create_key(KeySpec::Symmetric, "made by sealflow init", None)
                .await
        }
        [arn] => Ok(arn.clone()),
        many => {
            let message = format!("{} holds {} symmetric keys", folder.path().display(), many.len());
            Err(Failure::usage(message, "choose one with --key-arn ARN"))
        }
    }
}

/// Everything is checked before the first file is written.
async fn write(args: &Args, names: &Names, findings: &Findings, key: &Key, owner: &PrivateJwk) -> Result<()> {
    let principal = args.allow.clone().unwrap_or_else(|| key.principal());
    let row_id = findings.survey.row_id();
    let policy = policy_yaml(&PolicyParts {
        dataset: &findings.dataset,
        key_arn: &key.arn,
        principal: &principal,
        proposals: &findings.proposals,
        row_id: row_id.as_ref(),
        records: findings.survey.records(),
        is_table: findings.schema.is_some(),
    });
    let wrong = |error: sealflow::policy::PolicyError| {
        Failure::usage(format_args!("the proposed policy: {error}"), error.help())
    };
    let version = Policy::parse(policy.as_bytes()).map_err(wrong)?.version;
    let jws = sign(policy.as_bytes(), owner)?;
    let pipeline = pipeline_yaml(&PipelineParts {
        dataset: &findings.dataset,
        brokers: &args.brokers,
        topic: &args.topic,
        owner: &owner.thumbprint().to_string(),
        kms: &key.section,
        format: findings.format,
        table: args.table.as_ref(),
    });
    let catalogue = open_catalogue(&in_folder(&names.catalogue)).await?;
    publish(catalogue.as_ref(), &jws, &owners(&[owner.thumbprint().into()])?).await?;
    write_new(&names.policy, policy.as_bytes(), Access::Shared, false)?;
    let mut wrote = vec![&names.policy];
    if let Some(schema) = &findings.schema {
        write_new(&names.schema, schema_yaml(schema).as_bytes(), Access::Shared, false)?;
        wrote.push(&names.schema);
    }
    write_new(&names.pipeline, pipeline.as_bytes(), Access::Shared, false)?;
    wrote.extend([&names.pipeline, &names.owner]);
    let wrote: Vec<_> = wrote.iter().map(|path| path.display().to_string()).collect();
    say(format_args!("wrote {}", wrote.join(", ")));
    say(format_args!(
        "signed policy version {version} by owner {} and published it in {}",
        owner.thumbprint(),
        names.catalogue.display()
    ));
    Ok(())
}

fn next_steps(names: &Names, key: &Key) {
    let style = Style::of_stdout();
    let pipeline = names.pipeline.display();
    say("");
    say(style.bold("next"));
    say(format_args!(
        "  look at {}; keep {} secret and keep a copy of it",
        names.policy.display(),
        names.owner.display()
    ));
    if let Some(local) = &key.local {
        say(format_args!(
            "  sealflow kms serve --folder {}      # in another terminal; for development only",
            local.path().display()
        ));
        say(format_args!(
            "  export AWS_SHARED_CREDENTIALS_FILE={}",
            local.credentials().display()
        ));
    }
    say(format_args!("  sealflow validate {pipeline}"));
    say(format_args!("  sealflow run {pipeline}"));
}
