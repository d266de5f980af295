//! `acl who`: principals by columns.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::ValueEnum;
use sealflow::acl::{Acl, Grant, Principal};
use sealflow::policy::{DEAD_LETTERS_SUFFIX, Policy};
use serde::Serialize;

use super::{Asked, Source};
use crate::failure::Result;
use crate::term::{Style, say, say_json};

/// Show for every principal of the policy which columns it may open
///
/// Principals are those that the policy names, patterns as they are written. Nobody else may open anything.
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

/// What a principal may do with a column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "access", content = "terms")]
enum Cell {
    /// Open it.
    Yes,
    /// Open it under these terms, which hold now or for the purpose given.
    Terms(Vec<String>),
    /// A pattern: some of those that it names may not, by these entries of `deny`.
    Except(Vec<String>),
    /// Not, and why.
    No(String),
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
        say(format_args!("as of      {}", self.at));
        if self.rows.is_empty() {
            say("\nno principal is named: nobody may open anything");
        }
        // A block per principal: tables with a column per field get wider than any screen.
        for row in &self.rows {
            say(format_args!("\n{}", style.bold(&row.principal)));
            for (label, cell) in self.columns.iter().zip(&row.cells) {
                let mark = if cell.opens() { style.tick() } else { style.cross() };
                say(format_args!("  {mark:4} {label}{}", cell.remark()));
            }
        }
    }

    fn html(&self) -> String {
        let head: String = self
            .columns
            .iter()
            .map(|label| format!("<th>{}</th>", escaped(label)))
            .collect();
        let row = |row: &Row| {
            let cell = |cell: &Cell| {
                let (class, text) = if cell.opens() { ("yes", "yes") } else { ("no", "no") };
                format!("<td class={class}>{text}{}</td>", escaped(&cell.remark()))
            };
            let cells: String = row.cells.iter().map(cell).collect();
            format!("<tr><th>{}</th>{cells}</tr>\n", escaped(&row.principal))
        };
        let rows: String = self.rows.iter().map(row).collect();
        let owner = self.owner.as_deref().unwrap_or("nobody");
        format!(
            "<!doctype html>\n<html lang=en><meta charset=utf-8><title>Who may open {dataset}</title>\n<style>body{{font:14px \
             sans-serif;margin:2em}}table{{border-collapse:collapse}}th,td{{border:1px solid #ccc;padding:.3em \
             .6em;text-align:left}}.yes{{background:#e3f5e3}}.no{{background:#f7e6e6}}</style>\n<h1>Who may open {dataset}</h1>\n<p>\
             Policy version {version}, signed by {owner}, as of {at}.</p>\n<table><tr><th>principal</th>{head}</tr>\n{rows}</table>",
            dataset = escaped(&self.dataset),
            version = self.version,
            owner = escaped(owner),
            at = self.at,
        )
    }
}

impl Cell {
    fn opens(&self) -> bool {
        !matches!(self, Self::No(_))
    }

    fn remark(&self) -> String {
        match self {
            Self::Yes => String::new(),
            Self::Terms(terms) => format!(" ({})", terms.join("; or ")),
            Self::Except(denied) => format!(" (except {})", denied.join(", ")),
            Self::No(why) if why.is_empty() => String::new(),
            Self::No(why) => format!(" ({why})"),
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

/// For a principal that names one identity, the decision about it. For a pattern, what holds for those that it names,
/// as far as entries that cover the whole of it say so.
fn cell(acl: Option<&Acl>, principal: &Principal, asked: &Asked) -> Cell {
    let Some(acl) = acl else {
        return Cell::No("the document of its domain is not at hand".to_owned());
    };
    if acl.deny.iter().any(|denied| denied.covers(principal)) {
        return Cell::No("denied".to_owned());
    }
    let of_it: Vec<&Grant> = acl
        .allow
        .iter()
        .filter(|grant| grant.principal.covers(principal))
        .collect();
    let holds = |grant: &&&Grant| grant.holds(asked.purpose.as_deref(), asked.now);
    let holding: Vec<&&Grant> = of_it.iter().filter(holds).collect();
    if holding.is_empty() {
        return Cell::No(
            of_it
                .first()
                .map_or_else(String::new, |grant| format!("only {}", terms(grant))),
        );
    }
    let overlapping = acl.deny.iter().filter(|denied| denied.overlaps(principal));
    let except: Vec<String> = overlapping.map(ToString::to_string).collect();
    if !except.is_empty() {
        return Cell::Except(except);
    }
    if holding
        .iter()
        .any(|grant| grant.until.is_none() && grant.purposes.is_empty())
    {
        return Cell::Yes;
    }
    Cell::Terms(holding.iter().map(|grant| terms(grant)).collect())
}

/// End and purposes of a grant.
fn terms(grant: &Grant) -> String {
    let until = grant.until.map(|until| format!("until {until}"));
    let purposes = (!grant.purposes.is_empty()).then(|| format!("for {}", grant.purposes.join(", ")));
    until.into_iter().chain(purposes).collect::<Vec<_>>().join(" ")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
