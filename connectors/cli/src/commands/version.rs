//! `sealflow version`: what runs here.

use std::process::ExitCode;

use serde::Serialize;

use crate::failure::Result;
use crate::term::{OutputFormat, say, say_json};

/// Print version and build
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

#[derive(Serialize)]
struct Version {
    sealflow: &'static str,
    target: String,
    librdkafka: String,
    build: &'static str,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let version = Version {
        sealflow: env!("CARGO_PKG_VERSION"),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        librdkafka: rdkafka::util::get_rdkafka_version().1,
        build: if cfg!(debug_assertions) {
            "development"
        } else {
            "release"
        },
    };
    match args.output {
        OutputFormat::Json => say_json(&version),
        OutputFormat::Text => {
            say(format_args!("sealflow {}", version.sealflow));
            say(format_args!(
                "{} build for {}, librdkafka {}",
                version.build, version.target, version.librdkafka
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}
