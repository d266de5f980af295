//! `sealflow demo`: the three flows, with nothing to install; all but the enclave's worker in one process.
//!
//! An embedded Kafka (librdkafka's mock cluster), the development KMS and a catalogue in a temporary folder;
//! records go through the same runner and transforms as in `sealflow run`. Every claim it prints is checked,
//! and a check that fails ends it with an error. The mock cluster accepts transactions without proving them:
//! `make test` proves them on a real broker.

mod bench;
mod client;
#[cfg(feature = "dev-software-nsm")]
mod enclave;
mod refusals;
mod stream;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::failure::Result;
use crate::term::{self, Style};

/// Show everything in a minute: embedded broker, local KMS, 100,000 records
///
/// Needs no server, no account, no network.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many records to stream
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    records: u64,
    /// Seed of the generated records
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// The enclave's worker, a static program (`scripts/build_enclave_worker.sh`): shows the enclave flow in its software tier too
    #[arg(long, value_name = "FILE")]
    enclave_worker: Option<PathBuf>,
}

/// Runs the demo.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let style = Style::of_stdout();
    let say = |line: &str| term::say(line);
    say(&style.bold("Sealflow demo: seal four fields of a stream of web and payment logs"));
    say(&style.dim(
        "Everything runs in this process: an embedded Kafka, a development KMS, a catalogue in a temporary folder.",
    ));
    let bench = bench::Bench::start().await?;
    say(&format!(
        "{} KMS key {} on {} (development KMS)",
        style.tick(),
        bench.key_arn,
        bench.endpoint()
    ));
    say(&format!(
        "{} policy of dataset payments, version 1, signed by owner {}",
        style.tick(),
        bench.owner
    ));
    say("");

    let streamed = stream::run(&bench, args.seed, args.records).await?;
    say(&style.bold("A record before"));
    say(&streamed.before);
    say(&style.bold("and after: sealed fields replaced, every other byte as it was"));
    say(&paint_sealed(style, &streamed.after));
    say("");
    let records = args.records;
    say(&format!(
        "{} {records} records sealed, each once, in order, at the same partition",
        style.tick()
    ));
    say(&format!(
        "{} {} values sealed; none of {} plaintexts occurs in the sealed topic",
        style.tick(),
        streamed.values,
        streamed.secrets
    ));
    say(&format!(
        "{} an opening consumer got all {records} records back, byte for byte",
        style.tick()
    ));
    say(&format!(
        "{} {:.0} records/s through sealing and opening together ({:.1} s; {} data keys asked of KMS)",
        style.tick(),
        u32::try_from(records).map_or(f64::MAX, f64::from) / streamed.seconds,
        streamed.seconds,
        bench.data_keys_generated(),
    ));
    say(&style
        .dim("  The embedded Kafka accepts transactions but does not prove them: `make test` does, on a real broker."));
    say("");

    for refusal in refusals::run(&bench, &streamed).await? {
        say(&format!(
            "{} {}: {}",
            style.tick(),
            refusal.who,
            style.dim(&refusal.answer)
        ));
    }
    say("");
    show_table(style, &table::run(&bench, args.seed, args.records).await?);
    say("");
    show_client(style, &client::run(&bench).await?);
    say("");
    show_enclave(style, &bench, args.enclave_worker.as_deref()).await?;
    say("");
    say(&style.bold("Where to go next"));
    say("  sealflow init --help       policy, owner key and pipeline for a topic of your own");
    say("  sealflow validate FILE     check a pipeline before it runs");
    say("  README.md                  five minutes to a sealed topic on your own broker");
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "dev-software-nsm")]
async fn show_enclave(style: Style, bench: &bench::Bench, worker: Option<&Path>) -> Result<()> {
    let say = |line: &str| term::say(line);
    say(&style.bold("A field that the backend never sees: an attested worker opens it and seals it again"));
    let Some(worker) = worker else {
        say(&style.dim("  not shown: --enclave-worker names no worker; `make demo` builds one"));
        return Ok(());
    };
    let shown = Box::pin(enclave::run(bench, worker)).await?;
    say(&shown.sent);
    say(&format!(
        "{} {} values went through a worker of image {}… ({}); KMS gave it keys in {} requests, and gives nobody else any",
        style.tick(),
        shown.records,
        &shown.image[..16],
        shown.tier,
        shown.requests
    ));
    say(&paint_sealed(style, &shown.stored));
    say(&format!(
        "{} the backend, with all its rights, reads {}",
        style.tick(),
        style.dim(&shown.by_backend)
    ));
    say(&format!(
        "{} role/auditor reads by the worker, under a key of their own: {}",
        style.tick(),
        style.dim(&shown.opened)
    ));
    say(&format!(
        "{} the backend's key in that request: {}",
        style.tick(),
        style.dim(&shown.swapped)
    ));
    say(&format!(
        "{} a worker that trusts another owner: {}",
        style.tick(),
        style.dim(&shown.other)
    ));
    say(&style.dim("  Software tier: it proves protocol and policy, and protects nothing from root on this machine."));
    Ok(())
}

#[cfg(not(feature = "dev-software-nsm"))]
async fn show_enclave(style: Style, _: &bench::Bench, _: Option<&Path>) -> Result<()> {
    term::say(&style.dim("The enclave flow is not shown: this build believes no development root."));
    Ok(())
}

fn show_client(style: Style, shown: &client::Shown) {
    let say = |line: &str| term::say(line);
    say(&style.bold("A field that a client seals before it leaves (JOSE, to an RSA key in KMS)"));
    say(&shown.sent);
    say(&format!(
        "{} {} values of one session opened and sealed again, with {} to KMS",
        style.tick(),
        shown.records,
        if shown.decrypts == 1 {
            "one request".to_owned()
        } else {
            format!("{} requests", shown.decrypts)
        }
    ));
    say(&paint_sealed(style, &shown.stored));
    say(&format!(
        "{} the answer opens with the reader's own key alone: {}",
        style.tick(),
        style.dim(&shown.opened)
    ));
    say(&style.dim(&format!("  {}", shown.answer)));
    say(&format!(
        "{} a value sealed for another field: {}",
        style.tick(),
        style.dim(&shown.moved)
    ));
}

fn show_table(style: Style, shown: &table::Shown) {
    let say = |line: &str| term::say(line);
    say(&style.bold("The same records as a table: encrypted Parquet that carries its access list"));
    say(&format!(
        "{} {} records in {} files, {:.1} MB; none of {} plaintexts occurs in them",
        style.tick(),
        shown.records,
        shown.files,
        u32::try_from(shown.bytes).map_or(f64::MAX, f64::from) / 1e6,
        shown.secrets
    ));
    say(&style.dim(&format!("  {}", shown.first)));
    for column in &shown.columns {
        say(&style.dim(&format!("    {column}")));
    }
    for (role, row) in &shown.readers {
        say(&format!("{} role/{role} reads {row}", style.tick()));
    }
    for refusal in &shown.refusals {
        say(&format!(
            "{} {}: {}",
            style.tick(),
            refusal.who,
            style.dim(&refusal.answer)
        ));
    }
}

/// Sealed values in green where a terminal shows colours.
fn paint_sealed(style: Style, record: &str) -> String {
    let parts = record.split('"').map(|part| {
        if part.starts_with("sf1.") {
            style.green(part)
        } else {
            part.to_owned()
        }
    });
    parts.collect::<Vec<_>>().join("\"")
}
