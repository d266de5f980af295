//! Log lines on standard error, and a panic hook that shows no payload.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::{redact, term};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// One readable line per event
    #[default]
    Text,
    /// One JSON object per event
    Json,
}

/// Starts logging. `SEALFLOW_LOG` filters (`warn`, `sealflow_kafka=debug,info`), default `info`.
pub(crate) fn start(format: LogFormat) {
    let filter =
        EnvFilter::try_from_env("SEALFLOW_LOG").unwrap_or_else(|_| EnvFilter::new("info,librdkafka=warn,aws=error"));
    let ansi = term::Style::of_stderr().is_coloured();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| redact::StandardError)
        .with_ansi(ansi);
    // A second start (tests) keeps the first subscriber.
    let _ = match format {
        LogFormat::Text => builder.with_target(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// A panic's payload may hold what was being formatted, plaintext included: only its place is shown.
pub(crate) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(
            || "an unknown place".to_owned(),
            |at| format!("{}:{}", at.file(), at.line()),
        );
        term::note(format_args!("error: internal error at {place}"));
        term::note("help: this is a bug of sealflow; please report this line, its version and what it was doing");
    }));
}
