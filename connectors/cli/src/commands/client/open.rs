//! `client open`: answers, opened with a client's private key.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use sealflow::pipeline::{Outcome, Record, Route, StopKind, Transform, TransformError};
use sealflow_client::{Answers, DocumentError, PrivateKey};
use zeroize::Zeroizing;

use crate::commands::stream::{Input, Outputs, Passed, StreamArgs, pass_if};
use crate::failure::{Exit, Failure, Result};
use crate::files;
use crate::signals;
use crate::term::note;

/// Open what was sealed to a key made with `keygen`
///
/// The input is JSON records, or JWEs as JSON strings, one a line. Each JWE that is sealed to the key is replaced by what it
/// holds; every other byte stays. It has to be of the dataset, and to stand where its label says: else somebody exchanged
/// answers, and nothing is opened. An output file is readable for you alone (0600).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    stream: StreamArgs,
    /// The private key (PKCS #8, PEM)
    #[arg(long, value_name = "FILE", default_value = "client.key")]
    key: PathBuf,
    /// The dataset that was asked
    #[arg(long, value_name = "NAME")]
    dataset: String,
    /// Take values of this label wherever they stand: of columns whose label is not their path, that were renamed, or JWEs
    /// alone; may be repeated
    #[arg(long = "label", value_name = "LABEL")]
    labels: Vec<String>,
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    args.stream.check_outputs(&[])?;
    signals::remove_half_written_files()?;
    let pem = Zeroizing::new(files::read_text(&args.key)?);
    let key = PrivateKey::from_pem(&pem).map_err(|error| {
        Failure::config(
            format_args!("{}: {error}", args.key.display()),
            "give the file that `sealflow client keygen` wrote",
        )
    })?;
    let opening = Opening {
        key,
        dataset: args.dataset.clone(),
        labels: args.labels.clone(),
        opened: AtomicU64::new(0),
    };
    let input = Input::open(&args.stream)?;
    let outputs = Outputs::create(&args.stream, files::Access::Private, None, None)?;
    let opens_something = |passed: &Passed| {
        if opening.opened.load(Ordering::Relaxed) > 0 || passed.records == 0 {
            return Ok(());
        }
        Err(Failure::new(
            Exit::Data,
            format_args!("nothing in {} records opens with this key", passed.records),
            "take the key whose public half the answers were sealed to",
        ))
    };
    let passed = pass_if(input, &opening, outputs, opens_something).await?;
    let opened = opening.opened.load(Ordering::Relaxed);
    let output = args.stream.output.as_deref().unwrap_or(Path::new("standard output"));
    note(format_args!(
        "opened {opened} values of {} records into {}",
        passed.records,
        output.display()
    ));
    Ok(ExitCode::SUCCESS)
}

struct Opening {
    key: PrivateKey,
    dataset: String,
    labels: Vec<String>,
    opened: AtomicU64,
}

#[async_trait]
impl Transform for Opening {
    async fn apply(&self, records: &[Record]) -> std::result::Result<Vec<Outcome>, TransformError> {
        let answers = Answers::new(&self.key, &self.dataset);
        // RSA is work: other tasks go on meanwhile.
        tokio::task::block_in_place(|| {
            let mut outcomes = Vec::with_capacity(records.len());
            for mut record in records.iter().cloned() {
                let text = record.value.take().unwrap_or_default();
                let opened = answers.document(&text, &self.labels);
                let (document, opened) = opened.map_err(|error| {
                    let place = format!("{}: record {}", record.position.topic, record.position.offset + 1);
                    let (what, help) = match error {
                        DocumentError::OtherPlace { .. } => (
                            format!("{place}: {error}"),
                            "name the dataset that was asked with --dataset; --label LABEL takes values of that label wherever they stand",
                        ),
                        _ => (
                            format!("{place} is not JSON"),
                            "give one JSON document a line; a JWE alone goes between quotes",
                        ),
                    };
                    TransformError::Stop {
                        kind: StopKind::Data,
                        reason: what,
                        help: help.to_owned(),
                    }
                })?;
                self.opened.fetch_add(opened as u64, Ordering::Relaxed);
                record.value = Some(match opened {
                    0 => text,
                    _ => Bytes::copy_from_slice(document.expose()),
                });
                outcomes.push(Outcome {
                    route: Route::Target,
                    record,
                });
            }
            Ok(outcomes)
        })
    }
}
