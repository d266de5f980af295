//! `sealflow schema`: JSON Schemas for editors and CI.

use std::process::ExitCode;

use sealflow_local_kms::ServerConfig;

use crate::config::{PipelineConfig, ServiceConfig};
use crate::failure::Result;
use crate::term::say_json;

/// Print the JSON Schema of a configuration file, for editors
///
/// For example: `sealflow schema policy > policy.schema.json`, then in the first line of a policy:
/// `# yaml-language-server: $schema=policy.schema.json`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which file
    #[arg(value_enum, default_value_t)]
    document: Document,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Document {
    /// The pipeline of `sealflow run`
    #[default]
    Pipeline,
    /// The policy of a dataset
    Policy,
    /// The document of a domain (deterministic columns)
    Domain,
    /// The configuration of the local KMS (kms.yaml)
    Kms,
    /// The reading service of `sealflow serve`
    Service,
    /// The OpenAPI document of the reading service
    Openapi,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let schema = match args.document {
        Document::Pipeline => schemars::schema_for!(PipelineConfig),
        Document::Kms => schemars::schema_for!(ServerConfig),
        Document::Service => schemars::schema_for!(ServiceConfig),
        Document::Openapi => {
            say_json(&sealflow_serve::openapi::document());
            return Ok(ExitCode::SUCCESS);
        }
        Document::Domain => sealflow::policy::domain::schema(),
        Document::Policy => sealflow::policy::parse::schema(),
    };
    say_json(&schema);
    Ok(ExitCode::SUCCESS)
}
