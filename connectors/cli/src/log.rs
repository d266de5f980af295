//! Log lines on standard error, and a panic hook that shows no payload.

use std::io::IsTerminal as _;

use tracing::Level;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::telemetry::Telemetry;
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

/// Beginnings of the targets whose `trace` is never shown: what carries requests and answers.
const TALKATIVE: [&str; 5] = ["aws_", "h2", "hyper", "reqwest", "rustls"];

/// Starts logging. `SEALFLOW_LOG` filters (`warn`, `sealflow_kafka=debug,info`), default `info`.
///
/// At `trace` the AWS client writes down whole answers, and hides in them only what AWS calls sensitive, which an answer to
/// `GenerateMac`, the key of a client, is not. So no filter lets through what programs below ours say at that level.
///
/// Spans go to `telemetry` if there is one, whatever the filter says of log lines; log lines never do.
pub(crate) fn start(format: LogFormat, telemetry: Option<&Telemetry>) {
    let filter =
        EnvFilter::try_from_env("SEALFLOW_LOG").unwrap_or_else(|_| EnvFilter::new("info,librdkafka=warn,aws=error"));
    let ansi = term::Style::of_stderr().is_coloured();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| redact::StandardError)
        // By `eprintln!`, which panics where standard error is gone.
        .log_internal_errors(false)
        .with_ansi(ansi);
    let lines = match format {
        LogFormat::Text => lines.with_target(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let shown = filter.and(filter_fn(|about| {
        *about.level() != Level::TRACE || !TALKATIVE.iter().any(|name| about.target().starts_with(name))
    }));
    let registry = tracing_subscriber::registry().with(lines.with_filter(shown));
    // A second start (tests) keeps the first subscriber.
    let _ = match telemetry {
        None => registry.try_init(),
        Some(telemetry) => registry.with(telemetry.layer()).try_init(),
    };
}

/// A panic's payload may hold what was being formatted, plaintext included: only its place is shown. One that becomes an
/// error of a table's is no bug of ours.
pub(crate) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(
            || "an unknown place".to_owned(),
            |at| format!("{}:{}", at.file(), at.line()),
        );
        if sealflow::table::panic_is_contained() {
            tracing::debug!(place, "the library of a table's format gave up");
            return;
        }
        term::note(format_args!("error: internal error at {place}"));
        term::note("help: this is a bug of sealflow; please report this line, its version and what it was doing");
    }));
}
