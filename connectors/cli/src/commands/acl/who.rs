//! `acl who`: principals by columns.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::ValueEnum;
use sealflow::acl::{Acl, Grant, May, Principal};
use sealflow::policy::{DEAD_LETTERS_SUFFIX, Policy};
use serde::Serialize;

use super::{Asked, Source};
use crate::failure::Result;
use crate::term::{Style, harmless, say, say_json};

/// Show for every principal of the policy which columns it may open
///
/// Principals are those that the policy names, patterns as they are written. Nobody else may open anything. `yes` is for all whom
/// the principal names, `purpose` for all if they give one of those, `some` perhaps for some (`sealflow acl why` knows), `no`
/// for nobody.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The dataset
    #[arg(value_name = "DATASET")]
    dataset: Option<String>,
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
struct Column<'a> {
    label: String,
    acl: Option<&'a Acl>,
}

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
struct Table {
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
    let asked = args.source.open(args.dataset.as_ref()).await?;
    let table = Table::new(&asked);
    match args.output {
        Format::Json => say_json(&table),
        Format::Text => table.print(),
        Format::Html => say(table.html()),
    }
    Ok(ExitCode::SUCCESS)
}

impl Table {
    fn new(asked: &Asked) -> Self {
        let columns = columns(asked);
        let lists = || columns.iter().filter_map(|column| column.acl);
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

    fn print(&self) {
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

    fn html(&self) -> String {
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
            "<!doctype html>\n<html lang=en><meta charset=utf-8><title>Who may open {dataset}</title>\n<style>body{{font:14px \
             sans-serif;margin:2em}}table{{border-collapse:collapse}}th,td{{border:1px solid #ccc;padding:.3em \
             .6em;text-align:left}}.yes{{background:#e3f5e3}}.purpose,.some{{background:#fbf3d5}}.no{{background:#f7e6e6}}</style>\n\
             <h1>Who may open {dataset}</h1>\n<p>Policy version {version}, signed by {owner}, as of {at}{purpose}.</p>\n<table>\
             <tr><th>principal</th>{head}</tr>\n{rows}</table>",
            dataset = escaped(&self.dataset),
            version = self.version,
            owner = escaped(self.owner.as_deref().unwrap_or("nobody")),
            at = self.at,
            purpose = escaped(&self.asked_purpose()),
        )
    }
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
        columns.push(Column {
            label: rule.label.clone(),
            acl,
        });
    }
    if let Some(rule) = &policy.dead_letters {
        columns.push(Column {
            label: DEAD_LETTERS_SUFFIX.to_owned(),
            acl: policy.acls.get(&rule.acl),
        });
    }
    columns
}

fn cell(acl: Option<&Acl>, principal: &Principal, asked: &Asked) -> Cell {
    let Some(acl) = acl else {
        return Cell {
            terms: vec!["unknown: the document of its domain is not at hand".to_owned()],
            ..Cell::default()
        };
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
fn escaped(text: &str) -> String {
    harmless(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
