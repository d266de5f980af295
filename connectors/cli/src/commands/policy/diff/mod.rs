//! `sealflow policy diff`: what changes between two policies, and who gains or loses what by it.

mod changes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use sealflow::acl::{Acl, Grant};
use sealflow::clock::UnixMillis;
use sealflow::jose::{JwsType, SelfSigned};
use sealflow::keys::Catalogue;
use sealflow::policy::publish::{history, newest_domain};
use sealflow::policy::signed::{TrustError, verify};
use sealflow::policy::{DEAD_LETTERS_SUFFIX, Policy, TrustedOwners, VerifiedDomain, VerifiedPolicy};
use serde::Serialize;

use self::changes::{Change, How, changes};
use super::Trusting;
use crate::failure::{Failure, Result};
use crate::files;
use crate::services::clock;
use crate::term::{OutputFormat, Style, harmless, say, say_json};

/// The exit code of policies that differ, as of diff(1).
const DIFFERENT: u8 = 1;

/// Show what changes between two policies, and who gains or loses which column
///
/// Without files: the newest version in the catalogue against the one before, or the versions of --from and --to. With one
/// file: what publishing it would change. With two: the first against the second. A file is a policy (YAML) or a signed
/// policy (JWS), which is checked against the owners if any are given.
///
/// Exits with 0 if they say the same, whatever their versions, and with 1 if not; any other exit code says that they were not
/// compared. What opens something already written to more people is marked with `!`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A policy, signed or not
    #[arg(value_name = "FILE", num_args = 0..=2)]
    files: Vec<PathBuf>,
    /// The dataset, where no file names it
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Start from this version in the catalogue
    #[arg(long, value_name = "VERSION")]
    from: Option<u64>,
    /// Compare with this version in the catalogue
    #[arg(long, value_name = "VERSION")]
    to: Option<u64>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    #[command(flatten)]
    trusting: Trusting,
}

/// One of the two policies.
struct Side {
    policy: Policy,
    /// Where it is from.
    source: String,
    signer: String,
}

#[derive(Serialize)]
struct Named {
    source: String,
    dataset: String,
    version: u64,
    sha256: String,
    signed_by: String,
}

/// Who may open a label by one policy and not by the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Move {
    principal: String,
    label: String,
    /// The grant: whom it names, until when, for what.
    grant: String,
    /// Whether there may be values of that label already.
    written: bool,
}

#[derive(Serialize)]
struct Diff {
    from: Named,
    to: Named,
    same: bool,
    /// Whether something that is already written opens to more people.
    opens_written: bool,
    changes: Vec<Change>,
    gains: Vec<Move>,
    losses: Vec<Move>,
    /// What the older policy refused to open, and the newer one opens, whoever may open its label.
    reopened: BTreeSet<String>,
    notes: BTreeSet<String>,
}

/// Documents of domains by name.
type Domains = BTreeMap<String, VerifiedDomain>;

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    let (old, new, domains) = args.load().await?;
    let diff = Diff::new(&old, &new, &domains, clock().now());
    match args.output {
        OutputFormat::Json => say_json(&diff),
        OutputFormat::Text => diff.print(),
    }
    Ok(if diff.same {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DIFFERENT)
    })
}

impl Args {
    async fn load(&self) -> Result<(Side, Side, Domains)> {
        let fits = match self.files.len() {
            0 => true,
            1 => self.to.is_none(),
            _ => self.from.is_none() && self.to.is_none(),
        };
        if !fits {
            return Err(Failure::usage(
                "more policies than two",
                "give two files, or a file and --from, or --from and --to",
            ));
        }
        let mut sides = Vec::new();
        for path in &self.files {
            sides.push(self.read(path)?);
        }
        if sides.len() == 2 && !self.trusting.has_catalogue() {
            return two(sides, Domains::new());
        }
        let trusted = self.trusting.open(None).await?;
        let catalogue = &trusted.catalogue;
        if sides.len() < 2 {
            let of_file = sides.first().map(|side| side.policy.dataset.clone());
            let dataset = match (&self.dataset, of_file) {
                (Some(asked), Some(named)) if *asked != named => {
                    return Err(Failure::usage(
                        format_args!("the file is the policy of {named}, not of {asked}"),
                        "leave --dataset out",
                    ));
                }
                (_, Some(named)) => named,
                (asked, None) => trusted.dataset(asked.as_ref())?,
            };
            let published = self
                .published(catalogue.as_ref(), &trusted.owners, &dataset, sides.is_empty())
                .await?;
            sides.splice(0..0, published);
        }
        let domains = documents(catalogue, &trusted.owners, &sides).await?;
        two(sides, domains)
    }

    /// One or two versions of the catalogue, in their order.
    async fn published(
        &self,
        catalogue: &dyn Catalogue,
        owners: &TrustedOwners,
        dataset: &str,
        both: bool,
    ) -> Result<Vec<Side>> {
        let mut versions = BTreeMap::new();
        for entry in history(catalogue, dataset, owners).await? {
            versions.insert(entry.version, entry.policy);
        }
        let newest = versions.keys().next_back().copied();
        let to = if both { self.to.or(newest) } else { newest };
        let before = |version: u64| versions.range(..version).next_back().map(|(version, _)| *version);
        let from = match (self.from, both) {
            (Some(version), _) => Some(version),
            (None, true) => to.and_then(before),
            (None, false) => newest,
        };
        let mut sides = Vec::new();
        for wanted in std::iter::once(from).chain(both.then_some(to)) {
            let version = wanted.ok_or_else(|| none_before(dataset, to))?;
            let policy = versions.remove(&version);
            let policy = policy.ok_or_else(|| {
                Failure::usage(
                    format_args!("no version {version} of {dataset} in the catalogue, or both are the same"),
                    "`sealflow policy history` lists them",
                )
            })?;
            sides.push(Side::of(
                &policy?,
                format!("{dataset} version {version} of the catalogue"),
            ));
        }
        Ok(sides)
    }

    fn read(&self, path: &Path) -> Result<Side> {
        let text = files::read_text(path)?;
        let failed = |failure: Failure| Failure {
            message: format!("{}: {}", path.display(), failure.message),
            ..failure
        };
        let source = path.display().to_string();
        let jws = text.trim();
        // A policy has lines; a JWS has none, and two dots.
        if jws.contains(char::is_whitespace) || jws.matches('.').count() != 2 {
            let policy = VerifiedPolicy::unsigned_for_development(text.as_bytes());
            let policy = policy.map_err(|error| failed(Failure::config(&error, error.help())))?;
            return Ok(Side::of(&policy, source));
        }
        if !self.trusting.owners.is_empty() || self.trusting.pipeline.is_some() {
            let policy = verify(jws, &self.trusting.pinned()?).map_err(|error| failed(error.into()))?;
            return Ok(Side::of(&policy, source));
        }
        let signed =
            SelfSigned::verify(jws, JwsType::Policy).map_err(|error| failed(TrustError::from(error).into()))?;
        let signer = format!("{}, compared with no pinned owner", signed.signer());
        let policy = VerifiedPolicy::unsigned_for_development(&signed.into_payload());
        let policy = policy.map_err(|error| failed(Failure::config(&error, error.help())))?;
        Ok(Side {
            signer,
            ..Side::of(&policy, source)
        })
    }
}

fn none_before(dataset: &str, to: Option<u64>) -> Failure {
    match to {
        None => Failure::config(
            format_args!("no policy of {dataset} in the catalogue"),
            "publish one: `sealflow policy publish`; or give two files",
        ),
        Some(version) => Failure::config(
            format_args!("version {version} of {dataset} is the first: there is none before it"),
            "give a file to compare it with",
        ),
    }
}

fn two(sides: Vec<Side>, domains: Domains) -> Result<(Side, Side, Domains)> {
    let mut sides = sides.into_iter();
    match (sides.next(), sides.next()) {
        (Some(old), Some(new)) => Ok((old, new, domains)),
        _ => Err(Failure::usage(
            "less than two policies",
            "give two files, or a catalogue",
        )),
    }
}

/// The newest documents of the domains that either names.
async fn documents(catalogue: &Arc<dyn Catalogue>, owners: &TrustedOwners, sides: &[Side]) -> Result<Domains> {
    let columns = sides.iter().flat_map(|side| &side.policy.columns);
    let names: BTreeSet<&str> = columns.filter_map(|rule| rule.domain()).collect();
    let mut domains = Domains::new();
    for name in names {
        if let Some(document) = newest_domain(catalogue.as_ref(), name, owners).await? {
            domains.insert(name.to_owned(), document);
        }
    }
    Ok(domains)
}

impl Side {
    fn of(policy: &VerifiedPolicy, source: String) -> Self {
        Self {
            policy: policy.policy().clone(),
            source,
            signer: policy
                .owner()
                .map_or_else(|| "nobody".to_owned(), |owner| owner.to_string()),
        }
    }

    fn named(&self) -> Named {
        Named {
            source: self.source.clone(),
            dataset: self.policy.dataset.clone(),
            version: self.policy.version,
            sha256: self.policy.sha256.iter().map(|byte| format!("{byte:02x}")).collect(),
            signed_by: self.signer.clone(),
        }
    }
}

impl Diff {
    fn new(old: &Side, new: &Side, domains: &Domains, now: UnixMillis) -> Self {
        let (from, to) = (&old.policy, &new.policy);
        let changes = changes(from, to);
        let (mut gains, mut losses) = (BTreeSet::new(), BTreeSet::new());
        let nobody = Acl::default();
        let (known, reopened) = (labels(from), reopened(from, to));
        for label in known.union(&labels(to)) {
            let (before, after) = (list(from, label, domains), list(to, label, domains));
            // A label that the older policy does not know, and that is no former one, has no values yet.
            let written = known.contains(label) || to.previous.labels.contains_key(label);
            let (before, after) = (before.unwrap_or(&nobody), after.unwrap_or(&nobody));
            let moves = |one: &Acl, other: &Acl| -> Vec<Move> {
                let entry = |(who, grant): (String, &Grant)| Move {
                    principal: who,
                    label: label.clone(),
                    grant: grant.to_string(),
                    written,
                };
                one.beyond(other, now)
                    .into_iter()
                    .map(|beyond| entry((beyond.who.to_string(), beyond.grant)))
                    .collect()
            };
            gains.extend(moves(after, before));
            losses.extend(moves(before, after));
        }
        Self {
            from: old.named(),
            to: new.named(),
            same: changes.is_empty(),
            opens_written: gains.iter().any(|gain| gain.written) || !reopened.is_empty(),
            gains: gains.into_iter().collect(),
            losses: losses.into_iter().collect(),
            notes: notes(from, to, domains),
            reopened,
            changes,
        }
    }

    fn print(&self) {
        let style = Style::of_stdout();
        for (word, named) in [("from", &self.from), ("to", &self.to)] {
            let line = format!(
                "{} version {}, signed by {}",
                named.dataset, named.version, named.signed_by
            );
            say(format_args!(
                "{word:5} {} ({})",
                style.bold(&harmless(&line)),
                harmless(&named.source)
            ));
        }
        if self.same {
            say("\nthey say the same");
        }
        if !self.changes.is_empty() {
            say("\nchanges");
        }
        for change in &self.changes {
            let mark = match change.how {
                How::Added => style.green("+"),
                How::Removed => style.red("-"),
                How::Changed => style.yellow("~"),
            };
            if change.what == "rest" {
                change
                    .details
                    .iter()
                    .for_each(|detail| say(format_args!("  {mark} {}", harmless(detail))));
                continue;
            }
            say(format_args!("  {mark} {} {}", change.what, harmless(&change.name)));
            for detail in &change.details {
                say(format_args!("      {}", harmless(detail)));
            }
        }
        if !self.gains.is_empty() {
            say("\nwho gains");
        }
        for gain in &self.gains {
            let (mark, what) = if gain.written {
                (style.yellow("!"), ", also what is already written")
            } else {
                (style.green("+"), "")
            };
            say(format_args!("  {mark} {}{what}", harmless(&gain.line())));
        }
        if !self.losses.is_empty() {
            say("\nwho loses");
        }
        for loss in &self.losses {
            say(format_args!("  {} {}", style.red("-"), harmless(&loss.line())));
        }
        if !self.notes.is_empty() || !self.reopened.is_empty() {
            say("\nmind");
        }
        for what in &self.reopened {
            say(format_args!("  {} {}", style.yellow("!"), harmless(what)));
        }
        for note in &self.notes {
            say(format_args!("  {}", harmless(note)));
        }
    }
}

impl Move {
    fn line(&self) -> String {
        let terms = self.grant.strip_prefix(self.principal.as_str());
        match terms {
            Some("") => format!("{}: {}", self.principal, self.label),
            Some(terms) => format!("{}: {}{terms}", self.principal, self.label),
            None => format!("{}: {} (by {})", self.principal, self.label, self.grant),
        }
    }
}

/// All labels that a policy knows, current and former, domains' and the dead letters'.
fn labels(policy: &Policy) -> BTreeSet<String> {
    let mut labels: BTreeSet<String> = policy.columns.iter().map(|rule| rule.label.clone()).collect();
    labels.extend(policy.previous.labels.keys().cloned());
    labels.extend(policy.table_labels().into_iter().map(|(label, _)| label.to_owned()));
    if policy.dead_letters.is_some() {
        labels.insert(DEAD_LETTERS_SUFFIX.to_owned());
    }
    labels
}

/// The list that counts for a label; `None` if the policy does not know it, or a domain's document is not at hand.
fn list<'a>(policy: &'a Policy, label: &str, domains: &'a Domains) -> Option<&'a Acl> {
    if label == DEAD_LETTERS_SUFFIX {
        let group = policy.dead_letter_group();
        return group.and_then(|group| policy.acls.get(&group.acl));
    }
    if let Some(rule) = policy
        .columns
        .iter()
        .find(|rule| rule.domain().is_some() && rule.label == label)
    {
        let document = rule.domain().and_then(|name| domains.get(name));
        return document.map(|document| &document.document().acl);
    }
    policy.acl_for_label(label).and_then(|name| policy.acls.get(name))
}

/// Former keys and ACL names that the older policy did not know: what they sealed was shut, and opens.
fn reopened(old: &Policy, new: &Policy) -> BTreeSet<String> {
    let mut reopened = BTreeSet::new();
    let an_acl = old.acls.keys().next().map_or("", String::as_str);
    for key in &new.previous.keys {
        if !old.opens(&key.name.with_each_field_as("x"), &key.arn, an_acl) {
            reopened.insert(format!(
                "what was sealed under key {} ({}) opens, which it did not: it is new under previous.keys",
                key.name, key.arn
            ));
        }
    }
    for (name, current) in &new.previous.acls {
        if old.current_acl(name).is_none() {
            reopened.insert(format!(
                "what was sealed under ACL {name} opens, which it did not: it is new under previous.acls, as {current}"
            ));
        }
    }
    reopened
}

/// What the lists do not show: what stops opening, and what KMS still goes by.
fn notes(old: &Policy, new: &Policy, domains: &Domains) -> BTreeSet<String> {
    let mut notes = BTreeSet::new();
    let former = old.previous.keys.iter().map(|key| (&key.name, &key.arn));
    for (name, arn) in old.keys.values().map(|key| (&key.name, &key.arn)).chain(former) {
        let an_acl = new.acls.keys().next().map_or("", String::as_str);
        if !new.opens(&name.with_each_field_as("x"), arn, an_acl) {
            notes.insert(format!(
                "what was sealed under key {name} ({arn}) opens for nobody any more: it is neither under keys nor under previous.keys"
            ));
        }
    }
    for name in old
        .acls
        .keys()
        .chain(old.previous.acls.keys())
        .filter(|name| new.current_acl(name).is_none())
    {
        notes.insert(format!(
            "what was sealed under ACL {name} opens for nobody any more: it is neither under acls nor under previous.acls"
        ));
    }
    for rule in old.columns.iter().filter(|rule| rule.domain().is_none()) {
        if let (Some(sealed), Some(counts)) = (new.current_acl(&rule.acl), new.acl_for_label(&rule.label))
            && sealed != counts
        {
            notes.insert(format!(
                "KMS does not see labels: values of {} that are already written stay under ACL {} there, whoever {counts} names",
                rule.label, rule.acl
            ));
        }
    }
    let recipient = |policy: &Policy| policy.dead_letters.as_ref().and_then(|rule| rule.recipient()).cloned();
    if let (true, Some(to)) = (recipient(old) != recipient(new), recipient(new)) {
        notes.insert(format!(
            "dead letters from now on open for whoever has the private half of {}, and for nobody else; those before stay as they are",
            to.thumbprint()
        ));
    }
    for name in old.columns.iter().chain(&new.columns).filter_map(|rule| rule.domain()) {
        if !domains.contains_key(name) {
            notes.insert(format!(
                "the document of domain {name} is not at hand: nobody is said to gain or lose its values"
            ));
        }
    }
    notes
}
