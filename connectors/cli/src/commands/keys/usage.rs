//! `keys usage`: which KMS keys are used by which datasets, policies and domains, and what a deletion would cost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use sealflow::keys::envelope::{KEYS_HEADER, read_header};
use sealflow::keys::rewrap::{Inventory, inventory, openable};
use sealflow::keys::{Catalogue, Envelope, governing};
use sealflow::pipeline::Record;
use sealflow::policy::publish::domain_history;
use sealflow::policy::{MacRule, PolicySource, TrustedOwners};
use serde::Serialize;

use crate::commands::policy::Trusting;
use crate::commands::sidecar;
use crate::config::{self, Environment};
use crate::failure::{Exit, Failure, Result};
use crate::term::{OutputFormat, note, say, say_json, table};

/// How long the brokers may take.
const SCAN_TIMEOUT: Duration = Duration::from_secs(60);

/// Show which KMS keys are used by what, and which could be deleted
///
/// Reads policies, domains and key envelopes of the catalogue, asks no KMS. `superseded` means that nothing in this
/// catalogue says that it needs the key any more: no policy or domain names it, and every data key that was wrapped by it
/// has a newer envelope under another key. That is not verified, since whoever can write to the catalogue can write such
/// envelopes: only `sealflow keys rewrap --verify` unwraps them; let it end well before you disable a key. The catalogue
/// cannot know of sealed data whose readers do not have it, of other catalogues, nor of backups: disable a key and wait
/// before it is deleted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also count the envelopes of this .sfkeys file; may be repeated
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Also count envelopes that travel with the newest records of this topic (needs --pipeline); may be repeated
    #[arg(long = "topic", value_name = "TOPIC")]
    topics: Vec<String>,
    /// How many records of each topic are read, spread over its partitions
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    records: u32,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    #[command(flatten)]
    trusting: Trusting,
}

/// What depends on a KMS key, the strongest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// A policy or domain seals under it.
    Seals,
    /// Data keys or domain secrets open only with it.
    Opens,
    /// A policy names it under `previous:`, but no data key needs it.
    Listed,
    /// Nothing of this catalogue says that it needs it; not verified.
    Superseded,
    /// Something could not be read, so nobody can say.
    #[default]
    Unknown,
}

/// One KMS key.
#[derive(Debug, Default, Serialize)]
struct Usage {
    arn: String,
    state: State,
    /// Datasets whose newest policy seals under it, and domains (`domain:NAME`) whose newest version does.
    seals: BTreeSet<String>,
    /// Datasets whose newest policy lists it under `previous:`.
    previous: BTreeSet<String>,
    /// Data keys whose newest envelope is under it, by dataset.
    opens: BTreeMap<String, usize>,
    /// Data keys that it wrapped once and that have a newer envelope under another key.
    superseded: usize,
    /// Domain secrets of any version, which cannot be moved.
    domain_secrets: BTreeSet<String>,
    /// Datasets whose newest policy opens with it what clients seal, or derives the keys of clients from it.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    clients: BTreeSet<String>,
    /// Travelling envelopes under it, in the files and topics that were read, whose data key the catalogue does not
    /// have under another KMS key.
    travelling: BTreeMap<String, usize>,
}

/// Everything found.
#[derive(Debug, Serialize)]
struct Report {
    kms_keys: Vec<Usage>,
    /// Whether the newest envelopes behind `superseded` were unwrapped: never, here.
    superseded_is_verified: bool,
    /// What unwraps them, and mends those that do not hold their data key.
    verify_with: &'static str,
    /// What could not be read or believed: while there is any, no key is called superseded.
    unreadable: Vec<String>,
    /// Files and topics that were read for travelling envelopes.
    scanned: Vec<String>,
    /// What the catalogue cannot know.
    caveat: &'static str,
}

const CAVEAT: &str = "this says what the catalogue knows: envelopes in topics, files and backups that were not scanned, \
    readers without this catalogue, other catalogues and other users of a KMS key are not in it";

const VERIFY: &str = "sealflow keys rewrap --verify";

type Found = BTreeMap<String, Usage>;

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    let trusted = args.trusting.open(None).await?;
    let policies = trusted.policies_to_look_at()?;
    let catalogue = trusted.catalogue.as_ref();
    let mut inventory = inventory(catalogue).await?;
    for wrapped in &mut inventory.keys {
        // An envelope that no policy opens supersedes nothing. A policy that is not believed is told of below.
        let openable = openable(&*policies, wrapped).await.ok();
        if let Some((first, _)) = openable.and_then(|openable| openable.envelopes.into_iter().next())
            && let Some(place) = wrapped.envelopes.iter().position(|(n, _)| *n == first)
        {
            wrapped.envelopes[..=place].rotate_right(1);
        }
    }
    let mut found = Found::new();
    let mut unreadable = inventory.unreadable.clone();
    for wrapped in &inventory.keys {
        for (place, (_, envelope)) in wrapped.envelopes.iter().enumerate() {
            let is_newest_under_it = !wrapped.envelopes[..place].iter().any(|(_, e)| e.arn == envelope.arn);
            let usage = entry(&mut found, &envelope.arn);
            if place == 0 {
                *usage.opens.entry(envelope.dataset.clone()).or_default() += 1;
            } else if is_newest_under_it {
                usage.superseded += 1;
            }
        }
    }
    of_policies(catalogue, &*policies, &inventory, &mut found, &mut unreadable).await?;
    of_domains(catalogue, &trusted.owners, &mut found, &mut unreadable).await?;
    let scanned = travelling(args, &inventory, &mut found, &mut unreadable).await?;
    let mut kms_keys: Vec<_> = found.into_values().collect();
    for usage in &mut kms_keys {
        usage.state = usage.judge(unreadable.is_empty());
    }
    kms_keys.sort_by(|a, b| (a.state, &a.arn).cmp(&(b.state, &b.arn)));
    tell(
        &Report {
            kms_keys,
            superseded_is_verified: false,
            verify_with: VERIFY,
            unreadable,
            scanned,
            caveat: CAVEAT,
        },
        args.output,
    );
    Ok(ExitCode::SUCCESS)
}

impl Usage {
    fn judge(&self, all_was_read: bool) -> State {
        if !self.seals.is_empty() {
            State::Seals
        } else if !self.clients.is_empty()
            || !self.opens.is_empty()
            || !self.domain_secrets.is_empty()
            || !self.travelling.is_empty()
        {
            State::Opens
        } else if !all_was_read {
            State::Unknown
        } else if !self.previous.is_empty() {
            State::Listed
        } else {
            State::Superseded
        }
    }
}

fn entry<'a>(found: &'a mut Found, arn: &str) -> &'a mut Usage {
    found.entry(arn.to_owned()).or_insert_with(|| Usage {
        arn: arn.to_owned(),
        ..Usage::default()
    })
}

/// The newest policy of every dataset that the catalogue knows, by policy or by envelope.
async fn of_policies(
    catalogue: &dyn Catalogue,
    policies: &dyn PolicySource,
    inventory: &Inventory,
    found: &mut Found,
    unreadable: &mut Vec<String>,
) -> Result<()> {
    let mut datasets = names(catalogue, "policies").await?;
    let envelopes = inventory.keys.iter().filter_map(|key| key.newest());
    datasets.extend(envelopes.map(|envelope| governing(&envelope.dataset).to_owned()));
    for dataset in datasets {
        match policies.policy(&dataset).await {
            Ok(policy) => {
                for key in policy.policy().keys.values() {
                    entry(found, &key.arn).seals.insert(dataset.clone());
                }
                if let Some(rule) = &policy.policy().client {
                    let macs = rule.mac.iter().flat_map(MacRule::arns);
                    for arn in rule.arns().chain(macs) {
                        entry(found, arn).clients.insert(dataset.clone());
                    }
                }
                for key in &policy.policy().previous.keys {
                    entry(found, &key.arn).previous.insert(dataset.clone());
                }
            }
            Err(error) if error.is_retryable() => return Err(error.into()),
            Err(error) => unreadable.push(format!("policy of {dataset}: {error}")),
        }
    }
    Ok(())
}

async fn of_domains(
    catalogue: &dyn Catalogue,
    owners: &TrustedOwners,
    found: &mut Found,
    unreadable: &mut Vec<String>,
) -> Result<()> {
    for name in names(catalogue, "domains").await? {
        let history = domain_history(catalogue, &name, owners).await?;
        let newest = history.len();
        for (n, document) in history.into_iter().enumerate() {
            match document {
                Ok(document) => {
                    let document = document.document();
                    let usage = entry(found, &document.arn);
                    usage
                        .domain_secrets
                        .insert(format!("{name} version {}", document.version));
                    if n + 1 == newest {
                        usage.seals.insert(format!("domain:{name}"));
                    }
                }
                Err(error) => unreadable.push(format!("domain {name}: {error}")),
            }
        }
    }
    Ok(())
}

/// Names of the folders below `prefix`.
async fn names(catalogue: &dyn Catalogue, prefix: &str) -> Result<BTreeSet<String>> {
    let paths = catalogue.list(prefix).await?;
    let name = |path: &String| path.split('/').nth(1).map(str::to_owned);
    Ok(paths.iter().filter_map(name).collect())
}

/// Counts envelopes of files and topics, and returns what was read.
async fn travelling(
    args: &Args,
    inventory: &Inventory,
    found: &mut Found,
    unreadable: &mut Vec<String>,
) -> Result<Vec<String>> {
    let newest: BTreeMap<_, _> = inventory
        .keys
        .iter()
        .filter_map(|key| Some((key.key.to_string(), key.newest()?.arn.clone())))
        .collect();
    let mut count = |envelope: &Envelope, place: &str| {
        let elsewhere = newest.get(&envelope.key_id().to_string());
        if elsewhere.is_none_or(|arn| *arn == envelope.arn) {
            let places = &mut entry(found, &envelope.arn).travelling;
            *places.entry(place.to_owned()).or_default() += 1;
        }
    };
    let mut scanned = Vec::new();
    for path in &args.files {
        let place = path.display().to_string();
        let lines = sidecar::read(path)?;
        let lines = lines
            .lines()
            .filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        for line in lines {
            let envelope = Envelope::from_text(line.trim())
                .map_err(|error| Failure::new(Exit::Data, format_args!("{place}: {error}"), "give a .sfkeys file"))?;
            count(&envelope, &place);
        }
        scanned.push(place);
    }
    for topic in &args.topics {
        let sifted = sift(&scan(args, topic).await?);
        for envelope in &sifted.envelopes {
            count(envelope, topic);
        }
        unreadable.extend(sifted.unreadable(topic));
        scanned.push(format!(
            "{topic}: the newest {} records, {} different envelopes",
            sifted.records,
            sifted.envelopes.len()
        ));
    }
    Ok(scanned)
}

/// What travels with some records.
#[derive(Debug, Default)]
struct Sifted {
    records: usize,
    /// Different ones.
    envelopes: Vec<Envelope>,
    /// Records with a keys header that is damaged.
    bad_headers: usize,
    /// Different envelopes that are damaged, or of a version that is not known here.
    bad_envelopes: usize,
}

fn sift(records: &[Record]) -> Sifted {
    let mut sifted = Sifted {
        records: records.len(),
        ..Sifted::default()
    };
    let mut seen = BTreeSet::new();
    for header in records.iter().flat_map(|record| &record.headers) {
        if header.name != KEYS_HEADER {
            continue;
        }
        match header.value.as_deref().map(read_header) {
            Some(Ok(found)) => seen.extend(found),
            Some(Err(_)) | None => sifted.bad_headers += 1,
        }
    }
    for bytes in seen {
        match Envelope::from_bytes(bytes) {
            Ok(envelope) => sifted.envelopes.push(envelope),
            Err(_) => sifted.bad_envelopes += 1,
        }
    }
    sifted
}

impl Sifted {
    /// They may be under any KMS key.
    fn unreadable(&self, topic: &str) -> Option<String> {
        (self.bad_headers + self.bad_envelopes > 0).then(|| {
            format!(
                "{topic}: {} key headers and {} envelopes that travel with records are damaged or of a newer version",
                self.bad_headers, self.bad_envelopes
            )
        })
    }
}

/// The newest records of `topic`.
async fn scan(args: &Args, topic: &str) -> Result<Vec<Record>> {
    let Some(path) = &args.trusting.pipeline else {
        return Err(Failure::usage(
            "no brokers",
            "give --pipeline FILE together with --topic",
        ));
    };
    let mut kafka = config::load(path, &Environment::of_process())?.kafka();
    kafka.source.topics = vec![topic.to_owned()];
    kafka.source.pattern = None;
    // Only read from: a name that is not the source's passes the check that a pipeline does not read what it writes.
    kafka.target.topic = "{topic}.not-written".to_owned();
    let wanted = args.records as usize;
    let read = tokio::task::spawn_blocking(move || sealflow_kafka::sample(&kafka, wanted, SCAN_TIMEOUT)).await;
    Ok(read.map_err(|error| Failure::new(Exit::Internal, error, "report this"))??)
}

fn tell(report: &Report, output: OutputFormat) {
    if output == OutputFormat::Json {
        say_json(report);
        return;
    }
    let mut rows = vec![
        [
            "KMS KEY",
            "STATE",
            "DATA KEYS",
            "SUPERSEDED",
            "SEALS",
            "PREVIOUS",
            "OPENS",
        ]
        .map(str::to_owned),
    ];
    rows.extend(report.kms_keys.iter().map(|usage| {
        let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(",");
        let travelling = usage.travelling.keys().map(|place| format!("in {place}"));
        let opens = usage
            .opens
            .keys()
            .cloned()
            .chain(usage.domain_secrets.iter().map(|d| format!("domain {d}")))
            .chain(usage.clients.iter().map(|dataset| format!("clients of {dataset}")));
        [
            usage.arn.clone(),
            format!("{:?}", usage.state).to_lowercase(),
            usage.opens.values().sum::<usize>().to_string(),
            usage.superseded.to_string(),
            list(&usage.seals),
            list(&usage.previous),
            opens.chain(travelling).collect::<Vec<_>>().join(","),
        ]
    }));
    table(&rows);
    for what in &report.unreadable {
        say(format_args!("cannot be read, so no key is called superseded: {what}"));
    }
    for place in &report.scanned {
        say(format_args!("also read: {place}"));
    }
    let rests_on_envelopes = |usage: &Usage| usage.superseded > 0 || usage.state == State::Superseded;
    if report.kms_keys.iter().any(rests_on_envelopes) {
        note(format_args!(
            "superseded is what newer envelopes say, and was not verified: `{VERIFY}` must end well before a KMS key is disabled"
        ));
    }
    note(CAVEAT);
}

#[cfg(test)]
mod tests {
    use sealflow::keys::envelope::write_header;
    use sealflow::pipeline::{Header, Position, Timestamp};

    use super::*;

    fn record(value: Option<Vec<u8>>) -> Record {
        Record {
            position: Position {
                topic: "t".into(),
                partition: 0,
                offset: 0,
            },
            timestamp: Timestamp::None,
            key: None,
            value: None,
            headers: [Header {
                name: KEYS_HEADER.into(),
                value: value.map(Into::into),
            }]
            .into(),
        }
    }

    #[test]
    fn what_cannot_be_read_of_a_topic_is_counted_and_makes_no_key_superseded() {
        let newer = write_header([b"newer".as_slice()].into_iter());
        let records = [
            record(Some(newer.clone())),
            record(Some(newer)),
            record(Some(b"damaged".to_vec())),
            record(None),
        ];
        let sifted = sift(&records);
        let counted = (
            sifted.records,
            sifted.bad_headers,
            sifted.bad_envelopes,
            sifted.envelopes.len(),
        );
        assert_eq!(counted, (4, 2, 1, 0));
        let told = sifted.unreadable("payments.sealed");
        assert!(told.is_some_and(|told| told.starts_with("payments.sealed: 2 key headers and 1 envelopes")));
        assert_eq!(sift(&[]).unreadable("payments.sealed"), None);
        assert_eq!(Usage::default().judge(false), State::Unknown);
    }
}
