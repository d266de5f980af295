//! A list of checks as `validate` prints it: a mark, what was checked, what was found, and help where it failed.

use serde::Serialize;

use crate::failure::{Exit, Failure};
use crate::term::{Style, say};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but look at it.
    Warning,
    /// The pipeline would not start, or would do harm.
    Failed,
    /// Not tried, because something before it failed.
    Skipped,
}

/// One line of the list.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    /// What was checked.
    pub(crate) check: String,
    /// How it ended.
    pub(crate) verdict: Verdict,
    /// What was found. Never a value.
    pub(crate) found: String,
    /// What to do, where there is something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) help: Option<String>,
}

/// All lines so far, and the exit code that they add up to.
#[derive(Debug, Default)]
pub(crate) struct Checklist {
    checks: Vec<Check>,
    worst: Option<Exit>,
    /// Where lines are printed as they come.
    live: Option<Style>,
}

#[derive(Serialize)]
struct Document<'a> {
    ok: bool,
    checks: &'a [Check],
}

impl Checklist {
    /// An empty list that prints its lines as they come.
    pub(crate) fn printing(style: Style) -> Self {
        Self {
            live: Some(style),
            ..Self::default()
        }
    }

    /// A check passed.
    pub(crate) fn ok(&mut self, check: &str, found: impl std::fmt::Display) {
        self.add(check, Verdict::Ok, found.to_string(), None);
    }

    /// A check passed with something to look at.
    pub(crate) fn warn(&mut self, check: &str, found: impl std::fmt::Display, help: &str) {
        self.add(check, Verdict::Warning, found.to_string(), Some(help.to_owned()));
    }

    /// A check failed. The first failure's exit code becomes that of the command.
    pub(crate) fn failed(&mut self, check: &str, failure: &Failure) {
        self.worst.get_or_insert(failure.exit);
        self.add(
            check,
            Verdict::Failed,
            failure.message.clone(),
            Some(failure.help.clone()),
        );
    }

    /// A check was not tried.
    pub(crate) fn skipped(&mut self, check: &str, because: &str) {
        self.add(check, Verdict::Skipped, because.to_owned(), None);
    }

    fn add(&mut self, check: &str, verdict: Verdict, found: String, help: Option<String>) {
        let check = Check {
            check: check.to_owned(),
            verdict,
            found,
            help,
        };
        if let Some(style) = self.live {
            print(&check, style);
        }
        self.checks.push(check);
    }

    /// The exit code: 0, or that of the first failure.
    pub(crate) fn exit_code(&self) -> u8 {
        self.worst.map_or(0, |exit| exit as u8)
    }

    /// Failures and warnings.
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.verdict == verdict).count()
    }

    /// The whole list for programs.
    pub(crate) fn say_json(&self) {
        crate::term::say_json(&Document {
            ok: self.worst.is_none(),
            checks: &self.checks,
        });
    }
}

fn print(check: &Check, style: Style) {
    let mark = match check.verdict {
        Verdict::Ok => style.tick(),
        Verdict::Warning => style.bang(),
        Verdict::Failed => style.cross(),
        Verdict::Skipped => style.dim("-"),
    };
    // The mark is one column wide on terminals, a word elsewhere.
    let gap = if style.is_coloured() {
        String::new()
    } else {
        " ".repeat(4_usize.saturating_sub(mark.len()))
    };
    say(format_args!(
        "{mark}{gap} {}: {}",
        style.bold(&check.check),
        check.found
    ));
    if let Some(help) = &check.help {
        say(format_args!("     {} {help}", style.green("help:")));
    }
}
