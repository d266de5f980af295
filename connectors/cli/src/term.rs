//! What is written for people: colours where a terminal shows them, plain ASCII elsewhere.

use std::io::{self, IsTerminal as _, Write as _};

use crate::failure::Failure;
use crate::redact::redacted;

/// Whether and how a stream is decorated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Style {
    colour: bool,
}

impl Style {
    /// Nothing but text.
    #[cfg(test)]
    pub(crate) const PLAIN: Self = Self { colour: false };

    /// The style of standard output.
    pub(crate) fn of_stdout() -> Self {
        Self {
            colour: io::stdout().is_terminal() && colour_is_welcome(),
        }
    }

    /// The style of standard error.
    pub(crate) fn of_stderr() -> Self {
        Self {
            colour: io::stderr().is_terminal() && colour_is_welcome(),
        }
    }

    /// Whether escape sequences are used.
    pub(crate) fn is_coloured(self) -> bool {
        self.colour
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Important.
    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// Beside the point.
    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// As it should be.
    pub(crate) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Look at this.
    pub(crate) fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Wrong.
    pub(crate) fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// The mark of a check that passed.
    pub(crate) fn tick(self) -> String {
        if self.colour {
            self.green("✓")
        } else {
            "ok".to_owned()
        }
    }

    /// The mark of a check that failed.
    pub(crate) fn cross(self) -> String {
        if self.colour {
            self.red("✗")
        } else {
            "FAIL".to_owned()
        }
    }

    /// The mark of something to look at.
    pub(crate) fn bang(self) -> String {
        if self.colour {
            self.yellow("!")
        } else {
            "warn".to_owned()
        }
    }
}

/// <https://no-color.org>: any value but the empty one switches colour off; so does a dumb terminal.
fn colour_is_welcome() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Writes one line to standard output; a reader that has gone away ends the program quietly, as `head` expects.
pub(crate) fn say(line: impl std::fmt::Display) {
    let line = line.to_string();
    let mut out = io::stdout().lock();
    if writeln!(out, "{}", redacted(&line)).is_err() {
        std::process::exit(crate::failure::Exit::Io as i32);
    }
}

/// Text of strangers, so that it does not steer the terminal: control characters and those that turn the direction of
/// writing as escapes.
pub(crate) fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Writes `value` as one indented JSON document to standard output.
pub(crate) fn say_json(value: &impl serde::Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => say(text),
        Err(error) => note(format_args!("error: cannot write JSON: {error}")),
    }
}

/// Writes one line to standard error.
pub(crate) fn note(line: impl std::fmt::Display) {
    // Nobody is left to tell if standard error is gone.
    let line = line.to_string();
    let _ = writeln!(io::stderr().lock(), "{}", redacted(&line));
}

/// Writes the two lines of a failure to standard error.
pub(crate) fn report(failure: &Failure) {
    let style = Style::of_stderr();
    note(format_args!("{} {}", style.red("error:"), failure.message));
    note(format_args!("{} {}", style.green("help:"), failure.help));
}

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people
    #[default]
    Text,
    /// For programs: one JSON document
    Json,
}

/// Progress on standard error while a terminal shows it; nothing elsewhere.
pub(crate) struct Progress(indicatif::ProgressBar);

impl Progress {
    /// Counts records without knowing how many there will be.
    pub(crate) fn records(wanted: bool) -> Self {
        let bar = indicatif::ProgressBar::no_length();
        Self(Self::drawn(bar, wanted, "{spinner} {pos} records, {per_sec}"))
    }

    /// Counts `total` things.
    pub(crate) fn counted(total: u64, what: &str) -> Self {
        let template = format!("{{bar:30}} {{pos}} of {{len}} {what}, {{eta}} left");
        Self(Self::drawn(indicatif::ProgressBar::new(total), true, &template))
    }

    /// Counts bytes of `total`.
    pub(crate) fn bytes(total: Option<u64>) -> Self {
        let template = "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
        match total {
            Some(total) => Self(Self::drawn(indicatif::ProgressBar::new(total), true, template)),
            None => Self(indicatif::ProgressBar::hidden()),
        }
    }

    fn drawn(bar: indicatif::ProgressBar, wanted: bool, template: &str) -> indicatif::ProgressBar {
        if !wanted || !io::stderr().is_terminal() {
            return indicatif::ProgressBar::hidden();
        }
        if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar
    }

    /// Where it stands.
    pub(crate) fn set(&self, position: u64) {
        self.0.set_position(position);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Prints rows as aligned columns.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) {
    columns(rows).iter().for_each(say);
}

/// Rows as lines of aligned columns, two spaces between.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |n: usize| rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}
