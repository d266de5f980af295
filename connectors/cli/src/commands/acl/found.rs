//! `acl who` of a topic or file: what is really there, and who may open that.
//!
//! Nothing in an envelope is trusted. It says which dataset and label to look up; who may open those is what the newest
//! signed policy of that dataset says, and of values in a domain what the signed documents of domains say.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use sealflow::keys::envelope::read_header;
use sealflow::keys::{Catalogue, Envelope, KEYS_HEADER, governing};
use sealflow::pipeline::{DeadLetter, Record, sealed_to};
use sealflow::policy::publish::{domain_history, newest_domain};
use sealflow::policy::{DEAD_LETTER_LABEL, DEAD_LETTERS_SUFFIX, VerifiedDomain, VerifiedPolicy};
use sealflow::seal::value::{TEXT_PREFIX, read_text};
use sealflow::seal::{KeyId, SealedValue};
use sealflow_kafka::StartAt;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::who::{Column, NO_DOCUMENT, Table, escaped};
use super::{Domains, Source};
use crate::commands::policy::Trusted;
use crate::commands::read::TopicUrl;
use crate::commands::read::source::{batches, joined};
use crate::commands::sidecar;
use crate::config::{self, Environment};
use crate::failure::{Exit, Failure, Result};
use crate::files;
use crate::term::{Style, harmless, say};

/// The largest file that is looked at.
const MAX_FILE: u64 = 256 << 20;
/// Whoever can write to a topic can name any number of datasets.
const MAX_DATASETS: usize = 100;
/// And any number of keys, each of which is looked up in the catalogue,
const MAX_KEYS: usize = 1_000;
/// and any number of envelopes of one key. Those of the catalogue are counted apart from those that travel, so that these
/// do not keep those out.
const MAX_ENVELOPES_OF_KEY: usize = 64;
/// And any number of recipients.
const MAX_RECIPIENTS: usize = 100;
/// How a dead letter to a recipient begins.
const LETTER_TO_RECIPIENT: &[u8] = br#"{"sealflow":"dead-letter/2","#;

/// Where to look.
pub(super) enum Place {
    /// The newest records of a topic.
    Topic {
        source: TopicUrl,
        name: String,
        last: NonZeroU64,
        properties: Vec<String>,
    },
    /// A sealed text file and its `.sfkeys`.
    File { path: PathBuf, keys: PathBuf },
}

/// What is there, and who may open it.
#[derive(Serialize)]
pub(super) struct Found {
    place: String,
    /// Of a topic.
    records: Option<u64>,
    values: u64,
    /// Dead letters to RSA keys, by the thumbprint that each names: whoever has its private half opens them, no list counts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    to_recipients: BTreeMap<String, u64>,
    /// Values whose key has no envelope here or in the catalogue: nobody opens them.
    without_envelope: u64,
    /// Envelopes that are damaged or of a newer version.
    damaged_envelopes: u64,
    datasets: Vec<OfDataset>,
    /// Datasets beyond the first hundred.
    left_out: usize,
    /// Of `values`, those under keys beyond the first thousand.
    values_left_out: u64,
    /// Envelopes beyond the first thousand keys, or beyond the first 64 of a key.
    envelopes_left_out: u64,
}

/// One dataset, or one domain, that values name.
#[derive(Serialize)]
struct OfDataset {
    dataset: String,
    labels: Vec<Label>,
    /// Who may open them.
    table: Option<Table>,
    /// Why there is no table: nobody may open anything.
    problem: Option<String>,
}

#[derive(Serialize)]
struct Label {
    label: String,
    values: u64,
    /// Why nobody may open them.
    closed: Option<&'static str>,
}

/// What was read, before anything is looked up.
#[derive(Default)]
struct Seen {
    records: Option<u64>,
    /// By data key and index of the label.
    randomised: BTreeMap<(KeyId, u16), u64>,
    /// By domain secret.
    deterministic: BTreeMap<KeyId, u64>,
    /// Keys and secrets of the values that are counted.
    keys: BTreeSet<KeyId>,
    envelopes: BTreeMap<KeyId, Vec<Envelope>>,
    /// Dead letters by recipient.
    letters: BTreeMap<String, u64>,
    /// SHA-256 of those that were read.
    headers: BTreeSet<[u8; 32]>,
    damaged: u64,
    values_left_out: u64,
    envelopes_left_out: u64,
}

/// What a value's envelope claims.
#[derive(Default)]
struct Claim {
    values: u64,
    /// The envelopes behind it: key name, KMS key, ACL.
    envelopes: BTreeSet<(String, String, String)>,
}

/// Claims by dataset, then label.
type Claims = BTreeMap<String, BTreeMap<String, Claim>>;

/// Looks at the place, and asks the policies of what is found there.
pub(super) async fn look(place: &Place, source: &Source) -> Result<Found> {
    let of_file = source.of_file()?;
    let trusted = match (&of_file, source.trusting.has_catalogue()) {
        (Some(_), false) => None,
        _ => Some(source.trusting.open(None).await?),
    };
    let (mut seen, name) = match place {
        Place::Topic {
            source: topic,
            name,
            last,
            properties,
        } => (of_topic(topic, *last, properties, source).await?, name.clone()),
        Place::File { path, keys } => (of_file_at(path, keys)?, path.display().to_string()),
    };
    if let Some(trusted) = &trusted {
        seen.fetch(trusted.catalogue.as_ref()).await?;
    }
    let (claims, without_envelope) = seen.claims();
    let mut found = Found {
        place: name,
        records: seen.records,
        values: seen.randomised.values().chain(seen.deterministic.values()).sum::<u64>() + seen.values_left_out,
        to_recipients: std::mem::take(&mut seen.letters),
        without_envelope,
        damaged_envelopes: seen.damaged,
        left_out: claims.len().saturating_sub(MAX_DATASETS),
        values_left_out: seen.values_left_out,
        envelopes_left_out: seen.envelopes_left_out,
        datasets: Vec::new(),
    };
    let secrets = match &trusted {
        Some(trusted) => domains_of(&seen, trusted).await?,
        None => BTreeMap::new(),
    };
    for (dataset, labels) in claims.into_iter().take(MAX_DATASETS) {
        let policy = match (&of_file, &trusted) {
            (Some(policy), _) if policy.policy().dataset == dataset => Ok(policy.clone()),
            (Some(_), _) | (None, None) => Err("no policy of it was given".to_owned()),
            (None, Some(trusted)) => newest(trusted, &dataset).await?,
        };
        found.datasets.push(OfDataset::new(dataset, labels, policy, source));
    }
    found
        .add_domains(&seen, &secrets, of_file.as_ref(), trusted.as_ref(), source)
        .await?;
    Ok(found)
}

/// The newest policy, or why nobody may open anything of that dataset.
async fn newest(trusted: &Trusted, dataset: &str) -> Result<std::result::Result<VerifiedPolicy, String>> {
    // A name out of an envelope becomes part of a path: only what a policy could be called.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if !(1..=128).contains(&dataset.len()) || !dataset.bytes().all(plain) || dataset == "." || dataset == ".." {
        return Ok(Err("no policy can have that name".to_owned()));
    }
    let policies = trusted.policies_to_look_at()?;
    match policies.policy(dataset).await {
        Ok(policy) => Ok(Ok(policy.as_ref().clone())),
        Err(error) if error.is_retryable() => Err(error.into()),
        Err(error) => Ok(Err(error.to_string())),
    }
}

/// Which domain and document each secret belongs to, by the documents that owners signed.
async fn domains_of(seen: &Seen, trusted: &Trusted) -> Result<BTreeMap<KeyId, Arc<VerifiedDomain>>> {
    let mut secrets = BTreeMap::new();
    if seen.deterministic.is_empty() {
        return Ok(secrets);
    }
    let catalogue = trusted.catalogue.as_ref();
    let paths = catalogue.list("domains").await?;
    let names: BTreeSet<&str> = paths.iter().filter_map(|path| path.split('/').nth(1)).collect();
    for name in names {
        let ids: Vec<KeyId> = domain_history(catalogue, name, &trusted.owners)
            .await?
            .into_iter()
            .filter_map(|document| Some(document.ok()?.document().key_id))
            .collect();
        // Whichever version sealed them, the newest document says who may open them.
        if let Some(newest) = newest_domain(catalogue, name, &trusted.owners).await? {
            let newest = Arc::new(newest);
            secrets.extend(ids.into_iter().map(|id| (id, Arc::clone(&newest))));
        }
    }
    Ok(secrets)
}

async fn of_topic(topic: &TopicUrl, last: NonZeroU64, properties: &[String], source: &Source) -> Result<Seen> {
    let config = match &source.trusting.pipeline {
        Some(path) => Some(config::load(path, &Environment::of_process())?),
        None => None,
    };
    let mut reading = topic.reading(config.as_ref(), properties)?;
    reading.from = StartAt::Last(last.get());
    let (mut records, task) = batches(reading, u64::MAX);
    let mut seen = Seen::default();
    let mut count = 0;
    while let Some(batch) = records.recv().await {
        count += batch.len() as u64;
        batch.iter().for_each(|record| seen.record(record));
    }
    joined(task.await)?;
    seen.records = Some(count);
    Ok(seen)
}

fn of_file_at(path: &std::path::Path, keys: &std::path::Path) -> Result<Seen> {
    let mut seen = Seen::default();
    let text = files::read_capped(path, MAX_FILE)?;
    seen.text(&text);
    text.split(|byte| *byte == b'\n').for_each(|line| seen.letter(line));
    if keys.exists() {
        for line in sidecar::read(keys)?.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match Envelope::from_text(line) {
                Ok(envelope) => seen.envelope(envelope),
                Err(_) => seen.damaged += 1,
            }
        }
    }
    if seen.randomised.is_empty() && seen.deterministic.is_empty() && seen.letters.is_empty() {
        let message = format!("{}: no sealed value in it", path.display());
        return Err(Failure::new(
            Exit::Data,
            message,
            "give a dataset, kafka://HOST:PORT/TOPIC, or a sealed text file",
        ));
    }
    Ok(seen)
}

impl Seen {
    fn record(&mut self, record: &Record) {
        for bytes in record.key.iter().chain(&record.value) {
            self.text(bytes);
        }
        self.letter(record.value.as_deref().unwrap_or_default());
        for header in &record.headers {
            let Some(value) = header.value.as_deref() else { continue };
            if header.name != KEYS_HEADER {
                self.text(value);
            } else if self.headers.insert(Sha256::digest(value).into()) {
                self.header(value);
            }
        }
    }

    fn header(&mut self, value: &[u8]) {
        let Ok(found) = read_header(value) else {
            self.damaged += 1;
            return;
        };
        for bytes in found {
            match Envelope::from_bytes(bytes) {
                Ok(envelope) => self.envelope(envelope),
                Err(_) => self.damaged += 1,
            }
        }
    }

    /// Counts a dead letter that names a recipient.
    fn letter(&mut self, json: &[u8]) {
        if !json.starts_with(LETTER_TO_RECIPIENT) {
            return;
        }
        let letter = DeadLetter::from_json(json).ok();
        let Some((recipient, _)) = letter.as_ref().and_then(sealed_to) else {
            return;
        };
        let name = recipient.to_string();
        if self.letters.contains_key(&name) || self.letters.len() < MAX_RECIPIENTS {
            *self.letters.entry(name).or_default() += 1;
        }
    }

    /// One that travels.
    fn envelope(&mut self, envelope: Envelope) {
        let id = envelope.key_id();
        if self.envelopes.len() >= MAX_KEYS && !self.envelopes.contains_key(&id) {
            self.envelopes_left_out += 1;
            return;
        }
        let of_key = self.envelopes.entry(id).or_default();
        if of_key.contains(&envelope) {
            return;
        }
        if of_key.len() < MAX_ENVELOPES_OF_KEY {
            of_key.push(envelope);
        } else {
            self.envelopes_left_out += 1;
        }
    }

    /// Whether values under that key are counted: it is known, or becomes it.
    fn takes(&mut self, key: KeyId) -> bool {
        self.keys.contains(&key) || (self.keys.len() < MAX_KEYS && self.keys.insert(key))
    }

    /// Counts the sealed values in a text, wherever they stand. The values themselves are not kept.
    fn text(&mut self, text: &[u8]) {
        let prefix = TEXT_PREFIX.as_bytes();
        let mut rest = text;
        while let Some(at) = rest.windows(prefix.len()).position(|window| window == prefix) {
            rest = &rest[at..];
            let is_letter = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_';
            let letters = rest[prefix.len()..].iter().take_while(|b| is_letter(b)).count();
            let (value, behind) = rest.split_at(prefix.len() + letters);
            rest = behind;
            let mut bytes = Vec::new();
            if read_text(value, &mut bytes).is_err() {
                continue;
            }
            match SealedValue::parse(&bytes) {
                Ok(SealedValue::Randomised { key, .. } | SealedValue::Deterministic { key, .. })
                    if !self.takes(key) =>
                {
                    self.values_left_out += 1;
                }
                Ok(SealedValue::Randomised { key, column, .. }) => {
                    *self.randomised.entry((key, column)).or_default() += 1;
                }
                Ok(SealedValue::Deterministic { key, .. }) => *self.deterministic.entry(key).or_default() += 1,
                Err(_) => {}
            }
        }
    }

    /// Adds the catalogue's envelopes of the keys that were seen.
    async fn fetch(&mut self, catalogue: &dyn Catalogue) -> Result<()> {
        let keys: BTreeSet<KeyId> = self.randomised.keys().map(|(key, _)| *key).collect();
        for key in keys {
            let paths = catalogue.list(&format!("keys/{key}")).await?;
            self.envelopes_left_out += paths.len().saturating_sub(MAX_ENVELOPES_OF_KEY) as u64;
            for path in paths.into_iter().take(MAX_ENVELOPES_OF_KEY) {
                match catalogue.get(&path).await?.map(|bytes| Envelope::from_bytes(&bytes)) {
                    // One at another key's place says nothing about this one.
                    Some(Ok(envelope)) if envelope.key_id() == key => {
                        let of_key = self.envelopes.entry(key).or_default();
                        if !of_key.contains(&envelope) {
                            of_key.push(envelope);
                        }
                    }
                    Some(_) => self.damaged += 1,
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// What envelopes claim of the values, and how many have none. Envelopes that do not agree are all shown.
    fn claims(&self) -> (Claims, u64) {
        let mut claims = Claims::new();
        let mut without = 0;
        for ((key, column), values) in &self.randomised {
            let envelopes = self.envelopes.get(key).map(Vec::as_slice).unwrap_or_default();
            let mut claimed = BTreeSet::new();
            for envelope in envelopes {
                let Some(entry) = envelope.labels.get(usize::from(*column)) else {
                    continue;
                };
                let label = if envelope.dataset.ends_with(DEAD_LETTERS_SUFFIX) && entry.label == DEAD_LETTER_LABEL {
                    DEAD_LETTERS_SUFFIX.to_owned()
                } else {
                    entry.label.clone()
                };
                let claim = claims
                    .entry(governing(&envelope.dataset).to_owned())
                    .or_default()
                    .entry(label.clone())
                    .or_default();
                claim
                    .envelopes
                    .insert((envelope.key_name.clone(), envelope.arn.clone(), envelope.acl.clone()));
                if claimed.insert((envelope.dataset.clone(), label)) {
                    claim.values += values;
                }
            }
            if claimed.is_empty() {
                without += values;
            }
        }
        (claims, without)
    }
}

impl OfDataset {
    fn new(
        dataset: String,
        claims: BTreeMap<String, Claim>,
        policy: std::result::Result<VerifiedPolicy, String>,
        source: &Source,
    ) -> Self {
        let mut labels = Vec::new();
        let policy = match policy {
            Ok(policy) => policy,
            Err(problem) => {
                labels.extend(claims.into_iter().map(|(label, claim)| Label {
                    label,
                    values: claim.values,
                    closed: Some("no policy is believed"),
                }));
                return Self {
                    dataset,
                    labels,
                    table: None,
                    problem: Some(problem),
                };
            }
        };
        let asked = source.asked(policy, Domains::new());
        let model = asked.policy();
        let mut columns = Vec::new();
        for (label, claim) in claims {
            let name = if label == DEAD_LETTERS_SUFFIX {
                let rule = model.dead_letters.as_ref();
                rule.and_then(|rule| rule.key_and_acl()).map(|(_, acl)| acl)
            } else {
                model.acl_for_label(&label)
            };
            let goes_to_recipient = label == DEAD_LETTERS_SUFFIX && model.dead_letters.is_some();
            let opens = claim.envelopes.iter().any(|(key, arn, acl)| model.opens(key, arn, acl));
            let acl = match name.and_then(|name| model.acls.get(name)) {
                None if goes_to_recipient => Err("dead letters go to a recipient now"),
                None => Err("the policy has no such label"),
                Some(_) if !opens => Err("the policy no longer knows its key or ACL"),
                Some(acl) => Ok(acl),
            };
            labels.push(Label {
                label: label.clone(),
                values: claim.values,
                closed: acl.err(),
            });
            columns.push(Column { label, acl });
        }
        let table = Table::new(&asked, columns);
        Self {
            dataset,
            labels,
            table: Some(table),
            problem: None,
        }
    }
}

impl Found {
    /// Values in domains prove their domain and nothing else.
    async fn add_domains(
        &mut self,
        seen: &Seen,
        secrets: &BTreeMap<KeyId, Arc<VerifiedDomain>>,
        of_file: Option<&VerifiedPolicy>,
        trusted: Option<&Trusted>,
        source: &Source,
    ) -> Result<()> {
        let mut values: BTreeMap<Option<String>, u64> = BTreeMap::new();
        for (key, count) in &seen.deterministic {
            let name = secrets.get(key).map(|domain| domain.document().domain.clone());
            *values.entry(name).or_default() += count;
        }
        for (name, values) in values {
            let label = |closed| Label {
                label: name
                    .as_ref()
                    .map_or_else(|| "domain: unknown".to_owned(), |name| format!("domain:{name}")),
                values,
                closed,
            };
            let document = name
                .as_ref()
                .and_then(|name| secrets.values().find(|domain| domain.document().domain == *name));
            // Tables are of a policy: any that declares the domain. The document alone says who.
            let policy = match (document, of_file, trusted) {
                (Some(domain), None, Some(trusted)) => declaring(trusted, &domain.document().domain).await?,
                (Some(domain), Some(policy), _) => {
                    let named = |rule: &sealflow::policy::ColumnRule| rule.domain() == Some(&domain.document().domain);
                    policy.policy().columns.iter().any(named).then(|| policy.clone())
                }
                _ => None,
            };
            let of = name
                .as_ref()
                .map_or_else(|| "?".to_owned(), |name| format!("domain:{name}"));
            self.datasets.push(match (document, policy) {
                (Some(domain), Some(policy)) => {
                    let acl = domain.document().acl.clone();
                    let asked = source.asked(policy, Domains::new());
                    let column = Column {
                        label: of.clone(),
                        acl: Ok(&acl),
                    };
                    OfDataset {
                        dataset: of,
                        labels: vec![label(None)],
                        table: Some(Table::new(&asked, vec![column])),
                        problem: None,
                    }
                }
                (document, _) => OfDataset {
                    dataset: of,
                    labels: vec![label(Some(NO_DOCUMENT))],
                    table: None,
                    problem: Some(match document {
                        Some(_) => "no policy declares this domain".to_owned(),
                        None => "no document that is believed names its secret".to_owned(),
                    }),
                },
            });
        }
        Ok(())
    }

    /// The place, for a page's title.
    pub(super) fn title(&self) -> String {
        self.place.clone()
    }

    fn summary(&self) -> String {
        let records = self
            .records
            .map_or_else(String::new, |count| format!("{count} of the newest records, "));
        let mut text = format!("{records}{} sealed values", self.values);
        if self.without_envelope > 0 {
            text.push_str(&format!(
                ", {} of them without an envelope: nobody opens those",
                self.without_envelope
            ));
        }
        if self.damaged_envelopes > 0 {
            text.push_str(&format!(", {} envelopes that cannot be read", self.damaged_envelopes));
        }
        if self.left_out > 0 {
            text.push_str(&format!(", {} more datasets are named and left out", self.left_out));
        }
        if self.values_left_out > 0 {
            text.push_str(&format!(
                ", {} of them left out: they are under more than {MAX_KEYS} keys",
                self.values_left_out
            ));
        }
        if self.envelopes_left_out > 0 {
            text.push_str(&format!(
                ", {} envelopes left out: of more than {MAX_KEYS} keys, or more than {MAX_ENVELOPES_OF_KEY} of one",
                self.envelopes_left_out
            ));
        }
        text
    }

    fn recipients(&self) -> impl Iterator<Item = String> {
        self.to_recipients
            .iter()
            .map(|(name, count)| format!("{count} dead letters: open to whoever has the private half of {name}"))
    }

    pub(super) fn print(&self) {
        let style = Style::of_stdout();
        say(format_args!(
            "{}: {}",
            style.bold(&harmless(&self.place)),
            self.summary()
        ));
        for line in self.recipients() {
            say(line);
        }
        for dataset in &self.datasets {
            say("");
            for label in &dataset.labels {
                let closed = label
                    .closed
                    .map_or_else(String::new, |why| format!(": open to nobody: {why}"));
                let line = format!("{} {}: {} values{closed}", dataset.dataset, label.label, label.values);
                say(harmless(&line));
            }
            match (&dataset.table, &dataset.problem) {
                (Some(table), _) => table.print(),
                (None, Some(problem)) => say(format_args!(
                    "{} nobody may open these: {}",
                    style.bang(),
                    harmless(problem)
                )),
                (None, None) => {}
            }
        }
    }

    pub(super) fn html(&self) -> String {
        let mut out = format!(
            "<h1>Who may open {}</h1>\n<p>{}.</p>\n",
            escaped(&self.place),
            escaped(&self.summary())
        );
        for line in self.recipients() {
            out.push_str(&format!("<p>{}</p>\n", escaped(&line)));
        }
        for dataset in &self.datasets {
            for label in &dataset.labels {
                let closed = label
                    .closed
                    .map_or_else(String::new, |why| format!(": open to nobody: {why}"));
                let line = format!("{} {}: {} values{closed}", dataset.dataset, label.label, label.values);
                out.push_str(&format!("<p>{}</p>\n", escaped(&line)));
            }
            match (&dataset.table, &dataset.problem) {
                (Some(table), _) => out.push_str(&table.html("h2")),
                (None, Some(problem)) => {
                    out.push_str(&format!("<p class=no>Nobody may open these: {}</p>", escaped(problem)));
                }
                (None, None) => {}
            }
            out.push('\n');
        }
        out
    }
}

/// A believed policy that declares that domain.
async fn declaring(trusted: &Trusted, domain: &str) -> Result<Option<VerifiedPolicy>> {
    let paths = trusted.catalogue.list("policies").await?;
    let datasets: BTreeSet<&str> = paths.iter().filter_map(|path| path.split('/').nth(1)).collect();
    for dataset in datasets {
        if let Ok(policy) = newest(trusted, dataset).await?
            && policy.policy().columns.iter().any(|rule| rule.domain() == Some(domain))
        {
            return Ok(Some(policy));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use sealflow::clock::UnixMillis;
    use sealflow::keys::envelope::EnvelopeParts;

    use super::*;

    fn key(n: usize) -> KeyId {
        KeyId::from_bytes((n as u128).to_be_bytes())
    }

    fn envelope(n: usize, dataset: String) -> Envelope {
        Envelope::new(EnvelopeParts {
            key_id: key(n),
            arn: String::new(),
            wrapped: Vec::new(),
            dataset,
            key_name: String::new(),
            acl: String::new(),
            policy: (String::new(), 1, [0; 32]),
            labels: Vec::new(),
            created: UnixMillis(0),
            not_after: UnixMillis(0),
        })
    }

    #[test]
    fn keys_and_envelopes_beyond_the_most_are_counted_as_left_out() {
        let mut seen = Seen::default();
        for n in 0..=MAX_KEYS {
            assert_eq!(seen.takes(key(n)), n < MAX_KEYS);
            seen.envelope(envelope(n, String::new()));
        }
        assert!(seen.takes(key(0)));
        assert_eq!((seen.envelopes.len(), seen.envelopes_left_out), (MAX_KEYS, 1));
        for n in 0..MAX_ENVELOPES_OF_KEY {
            seen.envelope(envelope(0, format!("forged-{n}")));
        }
        assert_eq!(
            (seen.envelopes[&key(0)].len(), seen.envelopes_left_out),
            (MAX_ENVELOPES_OF_KEY, 2)
        );
        // What is there already is no further one.
        seen.envelope(envelope(0, String::new()));
        assert_eq!(seen.envelopes_left_out, 2);
    }
}
