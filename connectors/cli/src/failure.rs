//! How the command fails: an exit code of sysexits and two lines, what went wrong and what to do.

use std::fmt;
use std::path::Path;

/// Exit codes of BSD's `sysexits.h`, so that scripts can tell whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command line is wrong.
    Usage = 64,
    /// The input is no such data.
    Data = 65,
    /// What was to be read is not there.
    NoInput = 66,
    /// A service does not answer.
    Unavailable = 69,
    /// A bug of ours.
    Internal = 70,
    /// A file or pipe cannot be read or written.
    Io = 74,
    /// A service or key says no.
    NotPermitted = 77,
    /// Pipeline, policy or domain document is wrong.
    Config = 78,
}

/// Why a command ended. Neither line ever holds a value, a key or a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Becomes the exit code.
    pub(crate) exit: Exit,
    /// What went wrong, and where.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) help: String,
}

/// What most commands return.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure of that exit code.
    pub(crate) fn new(exit: Exit, message: impl fmt::Display, help: impl fmt::Display) -> Self {
        Self {
            exit,
            message: one_line(&message),
            help: one_line(&help),
        }
    }

    /// The configuration is wrong: 78.
    pub(crate) fn config(message: impl fmt::Display, help: impl fmt::Display) -> Self {
        Self::new(Exit::Config, message, help)
    }

    /// The command line is wrong: 64.
    pub(crate) fn usage(message: impl fmt::Display, help: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message, help)
    }

    /// A file or pipe: 74.
    pub(crate) fn io(what: &str, path: &Path, error: &std::io::Error) -> Self {
        let help = match error.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "check the permissions of file and folder",
            std::io::ErrorKind::AlreadyExists => "choose another name, or move the file away",
            _ => "check disk and permissions",
        };
        Self::new(
            Exit::Io,
            format_args!("cannot {what} {}: {error}", path.display()),
            help,
        )
    }
}

/// Messages of other crates may hold line breaks; ours are single lines.
fn one_line(text: &impl fmt::Display) -> String {
    let text = text.to_string();
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\nhelp: {}", self.message, self.help)
    }
}

impl From<clap::Error> for Failure {
    /// The two lines out of clap's longer report.
    fn from(error: clap::Error) -> Self {
        let report = error.render().to_string();
        let mut parts = report.split("\n\n");
        let message = parts.next().unwrap_or_default();
        let message = message.strip_prefix("error: ").unwrap_or(message);
        let message = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        let tip = report.lines().find_map(|line| line.trim().strip_prefix("tip: "));
        let usage = report.lines().find_map(|line| line.strip_prefix("Usage: "));
        let help = match (tip, usage) {
            (Some(tip), _) => tip.to_owned(),
            (None, Some(usage)) => format!("usage is `{usage}`; more with --help"),
            (None, None) => "see `sealflow --help`".to_owned(),
        };
        Self::usage(message, help)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_two_lines_whatever_its_cause_says() {
        let failure = Failure::config("first\n\n  second\n", "do\nthis");
        assert_eq!(failure.to_string(), "error: first; second\nhelp: do; this");
    }
}
