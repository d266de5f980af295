//! `acl who`: principals by columns.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use sealflow::acl::{Acl, Grant, May, Principal};
use sealflow::policy::{DEAD_LETTERS_SUFFIX, Policy};
use serde::Serialize;

use super::found::{self, Place};
use super::{Asked, Source};
use crate::commands::sidecar::Sidecar;
use crate::failure::{Failure, Result};
use crate::term::{Style, harmless, say, say_json};

/// Show for every principal of the policy which columns it may open
///
/// Principals are those that the policy names, patterns as they are written. Nobody else may open anything. `yes` is for all whom
/// the principal names, `purpose` for all if they give one of those, `some` perhaps for some (`sealflow acl why` knows), `no`
/// for nobody.
///
/// Of a topic or a sealed file: which datasets and labels are really there, and who may open those. Its envelopes say what to
/// look for and are believed in nothing else; the newest signed policies of those datasets answer.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The dataset; or `kafka://HOST:PORT[,HOST:PORT…]/TOPIC`; or a sealed file
    #[arg(value_name = "DATASET|TOPIC|FILE")]
    dataset: Option<String>,
    /// Of a topic, look at the newest N offsets of each partition
    #[arg(long, value_name = "N", default_value = "1000")]
    last: NonZeroU64,
    /// The `.sfkeys` file of a sealed file; default: its name and `.sfkeys`
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// librdkafka property, such as security.protocol=SSL; may be repeated. Those of --pipeline count too
    #[arg(long = "property", value_name = "KEY=VALUE")]
    properties: Vec<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    source: Source,
}

/// How the table is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Text,
    /// For programs: one JSON document
    Json,
    /// A page that needs nothing else
    Html,
}

/// One column of the table.
pub(super) struct Column<'a> {
    pub(super) label: String,
    /// Who may open it, or why nobody may.
    pub(super) acl: Result<&'a Acl, &'static str>,
}

/// Why no list says who opens dead letters.
const TO_RECIPIENT: &str = "open to whoever has the private half of dead_letters.recipient";
/// Why nobody may open a column of a domain.
pub(super) const NO_DOCUMENT: &str = "unknown: the document of its domain is not at hand";

/// What those whom a principal names may do with a column.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Cell {
    access: Word,
    /// Ends and purposes of the grants behind it; of `some` also whom they name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    terms: Vec<String>,
    /// Entries of `deny` that name some of them, or may; of `no`, all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    except: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    /// Open it.
    Yes,
    /// Open it if they give another purpose.
    Purpose,
    /// Some of them may, perhaps.
    Some,
    /// Not.
    #[default]
    No,
}

#[derive(Serialize)]
pub(super) struct Table {
    dataset: String,
    version: u64,
    owner: Option<String>,
    at: String,
    purpose: Option<String>,
    columns: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    principal: String,
    cells: Vec<Cell>,
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    if let Some(place) = args.place()? {
        let found = found::look(&place, &args.source).await?;
        match args.output {
            Format::Json => say_json(&found),
            Format::Text => found.print(),
            Format::Html => say(page(&found.title(), &found.html())),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let asked = args.source.open(args.dataset.as_ref()).await?;
    let table = Table::new(&asked, columns(&asked));
    match args.output {
        Format::Json => say_json(&table),
        Format::Text => table.print(),
        Format::Html => say(page(&table.dataset, &table.html("h1"))),
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// The topic or file, if the name is one of either.
    fn place(&self) -> Result<Option<Place>> {
        let Some(name) = &self.dataset else { return Ok(None) };
        if name.starts_with("kafka://") {
            let source = name
                .parse()
                .map_err(|error| Failure::usage(error, "for example kafka://localhost:9092/payments.sealed"))?;
            return Ok(Some(Place::Topic {
                source,
                name: name.clone(),
                last: self.last,
                properties: self.properties.clone(),
            }));
        }
        // No dataset has a slash in its name.
        let path = PathBuf::from(name);
        if !name.contains('/') && !path.is_file() {
            return Ok(None);
        }
        let keys = self.keys.clone().unwrap_or_else(|| Sidecar::beside(&path));
        Ok(Some(Place::File { path, keys }))
    }
}

impl Table {
    /// Of these columns.
    pub(super) fn new(asked: &Asked, columns: Vec<Column<'_>>) -> Self {
        let lists = || columns.iter().filter_map(|column| column.acl.ok());
        let named = lists().flat_map(|acl| acl.allow.iter().map(|grant| &grant.principal).chain(&acl.deny));
        // By text, so that each stands once and the order is that of names.
        let principals: BTreeSet<String> = named.map(ToString::to_string).collect();
        let policy = asked.policy();
        let rows = principals.into_iter().filter_map(|text| {
            let principal: Principal = text.parse().ok()?;
            let cells = columns
                .iter()
                .map(|column| cell(column.acl, &principal, asked))
                .collect();
            Some(Row { principal: text, cells })
        });
        Self {
            dataset: policy.dataset.clone(),
            version: policy.version,
            owner: asked.policy.owner().map(|owner| owner.to_string()),
            at: asked.now.to_string(),
            purpose: asked.purpose.clone(),
            rows: rows.collect(),
            columns: columns.into_iter().map(|column| column.label).collect(),
        }
    }

    pub(super) fn print(&self) {
        let style = Style::of_stdout();
        say(format_args!("{} version {}", style.bold(&self.dataset), self.version));
        say(format_args!(
            "signed by  {}",
            self.owner.as_deref().unwrap_or("nobody: unsigned")
        ));
        say(format_args!("as of      {}{}", self.at, self.asked_purpose()));
        if self.rows.is_empty() {
            say("\nno principal is named: nobody may open anything");
        }
        // A block per principal: tables with a column per field get wider than any screen.
        for row in &self.rows {
            say(format_args!("\n{}", style.bold(&harmless(&row.principal))));
            for (label, cell) in self.columns.iter().zip(&row.cells) {
                let word = format!("{:7}", cell.access.as_str());
                let word = match cell.access {
                    Word::Yes => style.green(&word),
                    Word::Purpose | Word::Some => style.yellow(&word),
                    Word::No => style.red(&word),
                };
                say(format_args!(
                    "  {word}  {}",
                    harmless(&format!("{label}{}", cell.remark()))
                ));
            }
        }
    }

    fn asked_purpose(&self) -> String {
        let purpose = self.purpose.as_ref();
        purpose.map_or_else(String::new, |purpose| format!(", for purpose {}", harmless(purpose)))
    }

    /// Heading and table; `h1` or `h2` is the heading's element.
    pub(super) fn html(&self, heading: &str) -> String {
        let head: String = self
            .columns
            .iter()
            .map(|label| format!("<th>{}</th>", escaped(label)))
            .collect();
        let row = |row: &Row| {
            let cell = |cell: &Cell| {
                let word = cell.access.as_str();
                format!("<td class={word}>{word}{}</td>", escaped(&cell.remark()))
            };
            let cells: String = row.cells.iter().map(cell).collect();
            format!("<tr><th>{}</th>{cells}</tr>\n", escaped(&row.principal))
        };
        let rows: String = self.rows.iter().map(row).collect();
        format!(
            "<{heading}>Who may open {dataset}</{heading}>\n<p>Policy version {version}, signed by {owner}, as of {at}{purpose}.</p>\n<table>\
             <tr><th>principal</th>{head}</tr>\n{rows}</table>",
            dataset = escaped(&self.dataset),
            version = self.version,
            owner = escaped(self.owner.as_deref().unwrap_or("nobody")),
            at = self.at,
            purpose = escaped(&self.asked_purpose()),
        )
    }
}

/// A page that needs nothing else.
fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><title>Who may open {title}</title>\n<style>body{{font:14px \
         sans-serif;margin:2em}}table{{border-collapse:collapse}}th,td{{border:1px solid #ccc;padding:.3em \
         .6em;text-align:left}}.yes{{background:#e3f5e3}}.purpose,.some{{background:#fbf3d5}}.no{{background:#f7e6e6}}</style>\n{body}",
        title = escaped(title),
    )
}

impl Word {
    fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::Purpose => "purpose",
            Self::Some => "some",
            Self::No => "no",
        }
    }
}

impl Cell {
    fn remark(&self) -> String {
        let mut parts = Vec::new();
        if !self.terms.is_empty() {
            parts.push(self.terms.join(", or "));
        }
        if !self.except.is_empty() {
            let how = if self.access == Word::No { "denied by" } else { "except" };
            parts.push(format!("{how} {}", self.except.join(", ")));
        }
        if parts.is_empty() {
            String::new()
        } else {
            format!(" ({})", parts.join("; "))
        }
    }
}

fn columns(asked: &Asked) -> Vec<Column<'_>> {
    let policy: &Policy = asked.policy();
    let mut columns: Vec<Column<'_>> = Vec::new();
    for rule in &policy.columns {
        if columns.iter().any(|column| column.label == rule.label) {
            continue;
        }
        let acl = match rule.domain() {
            Some(name) => asked.domains.get(name).map(|domain| &domain.document().acl),
            None => policy.acls.get(&rule.acl),
        };
        let acl = acl.ok_or(NO_DOCUMENT);
        columns.push(Column {
            label: rule.label.clone(),
            acl,
        });
    }
    for (label, acl) in policy.table_labels() {
        columns.push(Column {
            label: label.to_owned(),
            acl: policy.acls.get(acl).ok_or(NO_DOCUMENT),
        });
    }
    if let Some(rule) = &policy.dead_letters {
        columns.push(Column {
            label: DEAD_LETTERS_SUFFIX.to_owned(),
            acl: match rule.key_and_acl() {
                Some((_, acl)) => policy.acls.get(acl).ok_or(NO_DOCUMENT),
                None => Err(TO_RECIPIENT),
            },
        });
    }
    columns
}

fn cell(acl: Result<&Acl, &'static str>, principal: &Principal, asked: &Asked) -> Cell {
    let acl = match acl {
        Ok(acl) => acl,
        Err(why) => {
            return Cell {
                terms: vec![why.to_owned()],
                ..Cell::default()
            };
        }
    };
    let standing = acl.standing(principal, asked.purpose.as_deref(), asked.now);
    let of_each = |text: &dyn Fn(&Grant) -> String| standing.grants.iter().map(|grant| text(grant)).collect();
    let without_terms = |grant: &&Grant| grant.until.is_none() && grant.purposes.is_empty();
    let (access, terms) = match standing.may {
        May::All if standing.grants.iter().any(without_terms) => (Word::Yes, Vec::new()),
        May::All => (Word::Yes, of_each(&terms)),
        May::ForAPurpose => (Word::Purpose, of_each(&terms)),
        May::Some => (Word::Some, of_each(&Grant::to_string)),
        _ => (Word::No, of_each(&|grant| format!("ended: {grant}"))),
    };
    Cell {
        access,
        terms,
        except: standing.except.iter().map(ToString::to_string).collect(),
    }
}

/// End and purposes of a grant.
fn terms(grant: &Grant) -> String {
    let until = grant.until.map(|until| format!("until {until}"));
    let purposes = (!grant.purposes.is_empty()).then(|| format!("for {}", grant.purposes.join(" or ")));
    until.into_iter().chain(purposes).collect::<Vec<_>>().join(" ")
}

/// For HTML, and so that strangers' text does not turn the direction of writing.
pub(super) fn escaped(text: &str) -> String {
    harmless(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
