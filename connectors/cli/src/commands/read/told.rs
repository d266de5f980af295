//! What reading topics and reading tables tell in the same way: a table for people, and what became of the columns.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write as _};

use sealflow::pipeline::dead_letter::CANNOT_OPEN;
use sealflow::pipeline::{ColumnDecision, ColumnOutcome, ENCLAVE_ONLY, KEY_REFUSED};

use crate::failure::{Exit, Failure, Result};
use crate::term::{harmless, note};

/// How much of a cell a table shows.
const MAX_CELL: usize = 48;
const MASKED: &str = "masked";

/// Rows below their head, in aligned columns, on standard output.
pub(in crate::commands) fn print_table<'h>(
    head: impl Iterator<Item = &'h str>,
    rows: &[Vec<String>],
) -> io::Result<()> {
    let head: Vec<String> = head.map(shortened).collect();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| shortened(cell)).collect())
        .collect();
    let all = || std::iter::once(&head).chain(&rows);
    let width = |n: usize| all().map(|row| row[n].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = BufWriter::new(io::stdout().lock());
    for row in all() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    out.flush()
}

fn shortened(text: &str) -> String {
    let text = harmless(text);
    if text.chars().count() <= MAX_CELL {
        return text;
    }
    text.chars().take(MAX_CELL - 1).chain(['…']).collect()
}

/// Values that were not shown, by label, what became of them, and why.
#[derive(Default)]
pub(in crate::commands) struct Columns(BTreeMap<(String, &'static str, String), u64>);

impl Columns {
    /// Counts decisions.
    pub(in crate::commands) fn add(&mut self, decisions: &[ColumnDecision]) {
        for decision in decisions {
            let what = match decision.outcome {
                ColumnOutcome::Opened => continue,
                ColumnOutcome::Refused => MASKED,
                ColumnOutcome::Failed(code) => code,
            };
            let key = (decision.label.clone(), what, decision.because.clone());
            *self.0.entry(key).or_default() += decision.count;
        }
    }

    /// One line for each on standard error.
    pub(in crate::commands) fn tell(&self) {
        for ((label, what, because), count) in &self.0 {
            let (label, because) = (harmless(label), harmless(because));
            note(format_args!("{what}: {count} values of {label}: {because}"));
        }
    }

    /// Fails if values did not open that should have. `help` says which those can be.
    pub(in crate::commands) fn check_opened(&self, help: &str) -> Result<()> {
        match self.count(|what| what == CANNOT_OPEN || what == KEY_REFUSED) {
            0 => Ok(()),
            refused => Err(Failure::new(
                Exit::NotPermitted,
                format_args!("{refused} values that the policy lets you open did not open, and were shown as null"),
                help,
            )),
        }
    }

    /// Values that were not shown for another reason than an ACL, or that this process is not to open.
    pub(in crate::commands) fn not_masked(&self) -> u64 {
        self.count(|what| what != MASKED && what != ENCLAVE_ONLY)
    }

    fn count(&self, is_wanted: fn(&str) -> bool) -> u64 {
        let wanted = self.0.iter().filter(|((_, what, _), _)| is_wanted(what));
        wanted.map(|(_, count)| count).sum()
    }
}
