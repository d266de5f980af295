//! `audit query`: the decisions of a log that somebody asks for. It works on a log that is broken, and says so.

use std::process::ExitCode;

use sealflow::audit::{Body, Event, Line, Verdict, Verifier};
use sealflow::clock::UnixMillis;
use serde::Serialize;

use super::lines::LogArgs;
use crate::failure::Result;
use crate::term::{OutputFormat, harmless, note, say_json, table};

/// Show decisions: who read what, and who was refused
///
/// Texts are compared as a whole; one that ends in `*` is a beginning. All that is given must hold. The log itself is looked at too,
/// without checkpoints: if it is broken, standard error says so.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    log: LogArgs,
    /// Who asked, as ARN or `oidc:ISSUER#sub=…`
    #[arg(long, value_name = "PRINCIPAL")]
    principal: Option<String>,
    /// Of which dataset
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Of which label
    #[arg(long, value_name = "LABEL")]
    label: Option<String>,
    /// For which purpose
    #[arg(long, value_name = "PURPOSE")]
    purpose: Option<String>,
    /// With which outcome
    #[arg(long, value_enum)]
    decision: Option<Outcome>,
    /// From this moment on: `2027-01-01T00:00:00Z`
    #[arg(long, value_name = "TIME")]
    since: Option<UnixMillis>,
    /// Before this moment
    #[arg(long, value_name = "TIME")]
    until: Option<UnixMillis>,
    /// The last so many at most
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    last: u32,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Outcome {
    /// It was opened
    Allowed,
    /// An ACL, a policy or an identity said no
    Refused,
    /// Keys or cryptography failed
    Failed,
}

/// A decision, as it is printed.
#[derive(Serialize)]
struct Shown {
    line: u64,
    at: String,
    principal: Option<String>,
    proof: Option<&'static str>,
    purpose: Option<String>,
    dataset: Option<String>,
    label: Option<String>,
    policy_version: Option<u64>,
    decision: &'static str,
    rule: String,
    count: u64,
    place: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let mut verifier = Verifier::new([], true);
    let mut found = std::collections::VecDeque::new();
    let (mut number, mut left_out) = (0_u64, 0_u64);
    let torn = args.log.each(|text| {
        number += 1;
        verifier.line(text);
        let Ok(Line {
            body: Body::Decision(event),
            ..
        }) = Line::parse(text)
        else {
            return;
        };
        if args.asks_for(&event) {
            if found.len() == args.last as usize {
                found.pop_front();
                left_out += 1;
            }
            found.push_back(Shown::of(number, *event));
        }
    })?;
    verifier.torn(torn);
    let report = verifier.finish();
    let found = Vec::from(found);
    match args.output {
        OutputFormat::Json => say_json(&found),
        OutputFormat::Text => print(&found),
    }
    if left_out > 0 {
        note(format_args!("{left_out} older ones are left out; see --last"));
    }
    if let Some(first) = report.breaks.first() {
        note(format_args!(
            "the log is broken, so this may not be all, nor all of it true: {}",
            harmless(&first.to_string())
        ));
        note("`sealflow audit verify` says more");
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn asks_for(&self, event: &Event) -> bool {
        let outcome = match event.decision {
            Verdict::Allowed => Outcome::Allowed,
            Verdict::Refused => Outcome::Refused,
            Verdict::Failed => Outcome::Failed,
        };
        is(self.principal.as_deref(), event.principal.as_deref())
            && is(self.dataset.as_deref(), event.dataset.as_deref())
            && is(self.label.as_deref(), event.label.as_deref())
            && is(self.purpose.as_deref(), event.purpose.as_deref())
            && self.decision.is_none_or(|wanted| wanted as u8 == outcome as u8)
            && self.since.is_none_or(|since| event.at >= since)
            && self.until.is_none_or(|until| event.at < until)
    }
}

fn is(wanted: Option<&str>, found: Option<&str>) -> bool {
    let Some(wanted) = wanted else { return true };
    let Some(found) = found else { return false };
    match wanted.strip_suffix('*') {
        Some(start) => found.starts_with(start),
        None => found == wanted,
    }
}

impl Shown {
    fn of(line: u64, event: Event) -> Self {
        let place = event.place.map(|place| {
            let mut text = place.source;
            if let Some(partition) = place.partition {
                text.push_str(&format!("/{partition}"));
            }
            if let Some(first) = place.first {
                text.push_str(&format!("@{first}"));
            }
            match place.last {
                Some(last) if place.last != place.first => format!("{text}-{last}"),
                _ => text,
            }
        });
        Self {
            line,
            at: event.at.to_string(),
            principal: event.principal,
            proof: event.proof.map(sealflow::audit::Proof::as_str),
            purpose: event.purpose,
            dataset: event.dataset,
            label: event.label,
            policy_version: event.policy_version,
            decision: event.decision.as_str(),
            rule: event.rule,
            count: event.count,
            place,
        }
    }
}

fn print(found: &[Shown]) {
    let head = [
        "TIME",
        "PRINCIPAL",
        "PURPOSE",
        "DATASET",
        "LABEL",
        "DECISION",
        "COUNT",
        "RULE",
        "PLACE",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    let text = |text: &Option<String>| text.as_deref().map_or("-".to_owned(), harmless);
    rows.extend(found.iter().map(|shown| {
        [
            shown.at.clone(),
            text(&shown.principal),
            text(&shown.purpose),
            text(&shown.dataset),
            text(&shown.label),
            shown.decision.to_owned(),
            shown.count.to_string(),
            harmless(&shown.rule),
            text(&shown.place),
        ]
    }));
    table(&rows);
}
