//! `sealflow dlq list`: codes, stages and positions; nothing of it is opened.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use sealflow_kafka::Letters;
use serde::Serialize;

use super::read::{self, Found};
use super::{Place, Select};
use crate::config::{self, Environment};
use crate::failure::Result;
use crate::term::{OutputFormat, harmless, note, say_json, table};

/// List dead letters, and count them by code
///
/// Without --all those that no replay has taken yet. No rights on a key are needed, and nothing is opened.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    select: Select,
    /// Also letters that were replayed, as far as the topic still holds them
    #[arg(long)]
    all: bool,
    /// List this many; all are counted
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: usize,
}

#[derive(Clone, Serialize)]
struct Line {
    code: String,
    stage: String,
    /// Where its record was read.
    record: String,
    /// Where the letter lies.
    letter: String,
}

/// Codes that are told apart: pipelines know some twenty, and whoever writes to the topic any number.
const MAX_CODES: usize = 100;
/// The code of all others.
const OTHER: &str = "other";

/// What is printed.
#[derive(Default, Serialize)]
struct Listing {
    codes: BTreeMap<String, u64>,
    letters: Vec<Line>,
    /// Records of the topic that are no dead letters.
    foreign: u64,
}

impl Listing {
    fn add(&mut self, found: &Found, limit: usize) {
        let letter = &found.letter;
        let is_told_apart = self.codes.contains_key(&letter.code) || self.codes.len() < MAX_CODES;
        let code = if is_told_apart { &letter.code } else { OTHER };
        *self.codes.entry(code.to_owned()).or_default() += 1;
        if self.letters.len() < limit {
            self.letters.push(Line {
                code: letter.code.clone(),
                stage: letter.stage.clone(),
                record: format!("{}/{}/{}", letter.topic, letter.partition, letter.offset),
                letter: found.at.clone(),
            });
        }
    }
}

pub(super) async fn run(args: Args) -> Result<ExitCode> {
    let config = config::load(&args.place.pipeline, &Environment::of_process())?;
    let (filter, limit) = (args.select.filter(), args.limit);
    let which = if args.all { Letters::All } else { Letters::Open };
    let listing = Arc::new(Mutex::new(Listing::default()));
    let (inside, matches) = (Arc::clone(&listing), filter.clone());
    let foreign = read::of_topic(&config, which, move |found| {
        if matches.matches(&found.letter) {
            inside.lock().unwrap_or_else(PoisonError::into_inner).add(&found, limit);
        }
    })
    .await?;
    let mut listing = std::mem::take(&mut *listing.lock().unwrap_or_else(PoisonError::into_inner));
    listing.foreign = foreign;
    for path in read::files(&config)? {
        let found = read::of_file(&path)?;
        if filter.matches(&found.letter) {
            listing.add(&found, limit);
        }
    }
    match args.place.output {
        OutputFormat::Json => say_json(&listing),
        OutputFormat::Text => print(&listing),
    }
    Ok(ExitCode::SUCCESS)
}

fn print(listing: &Listing) {
    let mut rows = vec![["CODE", "STAGE", "RECORD", "LETTER"].map(str::to_owned)];
    rows.extend(
        listing
            .letters
            .iter()
            .cloned()
            .map(|line| [line.code, line.stage, line.record, line.letter].map(|text| harmless(&text))),
    );
    table(&rows);
    let all: u64 = listing.codes.values().sum();
    let codes: Vec<_> = listing
        .codes
        .iter()
        .map(|(code, count)| format!("{}: {count}", harmless(code)))
        .collect();
    note(format_args!("{all} dead letters; {}", codes.join(", ")));
    if listing.foreign > 0 {
        note(format_args!(
            "{} records of the topic are no dead letters",
            listing.foreign
        ));
    }
}

#[cfg(test)]
mod tests {
    use sealflow::pipeline::{DeadLetter, Headers, Position, Record, Timestamp};

    use super::*;

    fn found(code: &str) -> Found {
        let position = Position {
            topic: "dead".into(),
            partition: 0,
            offset: 0,
        };
        Found {
            letter: DeadLetter::new(code, "seal", &position, b""),
            at: position.to_string(),
            message: Record {
                position,
                timestamp: Timestamp::None,
                key: None,
                value: None,
                headers: Headers::new(),
            },
        }
    }

    #[test]
    fn however_many_codes_a_topic_holds_a_hundred_are_told_apart_and_all_are_counted() {
        let mut listing = Listing::default();
        for n in 0..1_000 {
            listing.add(&found(&format!("code-{n}")), 10);
        }
        listing.add(&found("code-7"), 10);
        assert_eq!(listing.codes.len(), MAX_CODES + 1);
        assert_eq!(listing.codes[OTHER], 900);
        assert_eq!(listing.codes["code-7"], 2);
        assert_eq!(listing.letters.len(), 10);
    }
}
