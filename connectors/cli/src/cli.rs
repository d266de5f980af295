//! The command line as a whole: global options and the list of subcommands. Each lives in its own file.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::{
    acl, audit, client, completion, demo, dlq, enclave, init, keys, kms, open, policy, read, run, schema, seal, serve,
    tables, token, top, validate, version,
};
use crate::failure::{Exit, Failure, Result};
use crate::log::{self, LogFormat};
use crate::term;

/// Seal fields of streaming logs, and open them again
///
/// Values are encrypted one field at a time under data keys from KMS; policies signed by their owner say which
/// fields, under which key, for whom.
#[derive(Debug, Parser)]
#[command(
    name = "sealflow",
    version,
    propagate_version = true,
    subcommand_required = true,
    max_term_width = 100
)]
#[command(
    after_help = "First steps: `sealflow demo` shows everything in a minute without any server; `sealflow init` \
    makes policy, keys and pipeline for a topic of yours."
)]
struct Cli {
    /// Log lines on standard error as `text` or `json`; SEALFLOW_LOG filters them (warn, debug, …)
    #[arg(long, global = true, value_enum, default_value_t, hide_possible_values = true)]
    #[arg(env = "SEALFLOW_LOG_FORMAT", hide_env_values = true, value_name = "FORMAT")]
    log: LogFormat,

    #[command(subcommand)]
    command: Command,
}

/// Each says of itself what it does.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one in a process
enum Command {
    Demo(demo::Args),
    Init(init::Args),
    Validate(validate::Args),
    Run(run::Args),
    Seal(seal::Args),
    Open(open::Args),
    Read(read::Args),
    Inspect(tables::inspect::Args),
    Verify(tables::verify::Args),
    Serve(serve::Args),
    Token(token::Args),
    #[command(subcommand)]
    Client(client::Command),
    #[command(subcommand)]
    Policy(policy::Command),
    #[command(subcommand)]
    Acl(acl::Command),
    #[command(subcommand)]
    Audit(audit::Command),
    #[command(subcommand)]
    Keys(keys::Command),
    #[command(subcommand)]
    Dlq(dlq::Command),
    #[command(subcommand)]
    Enclave(enclave::Command),
    #[command(subcommand)]
    Kms(kms::Command),
    Top(top::Args),
    Schema(schema::Args),
    Completion(completion::Args),
    Version(version::Args),
}

/// Parses the arguments, runs the command, reports its failure.
pub(crate) fn main() -> ExitCode {
    let mut cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_a_command(error),
    };
    // A pipeline starts its log itself, when it knows where its traces go.
    if let Command::Run(args) = &mut cli.command {
        args.log = cli.log;
    } else {
        log::start(cli.log, None);
    }
    match in_runtime(cli.command) {
        Ok(code) => code,
        Err(failure) => {
            term::report(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// The command line's own definition, for completion scripts.
pub(crate) fn definition() -> clap::Command {
    use clap::CommandFactory as _;
    Cli::command()
}

fn not_a_command(error: clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody is left to tell if standard output is gone.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(Exit::Usage as u8)
        }
        _ => {
            let failure = Failure::from(error);
            term::report(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn in_runtime(command: Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::new(
                Exit::Internal,
                format_args!("cannot start threads: {error}"),
                "check the limits of this process (ulimit -u)",
            )
        })?;
    // A future of its own task: the big ones would not fit every main thread's stack.
    let task = runtime.spawn(execute(command));
    let ended = runtime.block_on(task);
    ended.unwrap_or_else(|_| {
        // The panic hook has said where.
        Ok(ExitCode::from(Exit::Internal as u8))
    })
}

async fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(args) => demo::run(args).await,
        Command::Init(args) => init::run(args).await,
        Command::Validate(args) => validate::run(args).await,
        Command::Run(args) => run::run(args).await,
        Command::Seal(args) => Box::pin(seal::run(args)).await,
        Command::Open(args) => Box::pin(open::run(args)).await,
        Command::Read(args) => Box::pin(read::run(args)).await,
        Command::Inspect(args) => Box::pin(tables::inspect::run(args)).await,
        Command::Verify(args) => tables::verify::run(args).await,
        Command::Serve(args) => serve::run(args).await,
        Command::Token(args) => token::run(args).await,
        Command::Client(command) => client::run(command).await,
        Command::Policy(command) => policy::run(command).await,
        Command::Acl(command) => acl::run(command).await,
        Command::Audit(command) => audit::run(command).await,
        Command::Keys(command) => keys::run(command).await,
        Command::Dlq(command) => dlq::run(command).await,
        Command::Enclave(command) => Box::pin(enclave::run(command)).await,
        Command::Kms(command) => kms::run(command).await,
        Command::Top(args) => top::run(args).await,
        Command::Schema(args) => schema::run(&args),
        Command::Completion(args) => completion::run(&args),
        Command::Version(args) => version::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_defined() {
        definition().debug_assert();
    }
}
