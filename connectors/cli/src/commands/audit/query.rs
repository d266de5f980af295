//! `audit query`: the decisions of a log that somebody asks for. It works on a log that is broken, and says so.

use std::process::ExitCode;

use sealflow::audit::{Body, Event, InstanceId, Line, Verdict, Verifier};
use sealflow::clock::UnixMillis;
use sealflow::jose::Thumbprint;
use serde::Serialize;

use super::lines::LogArgs;
use crate::failure::Result;
use crate::term::{OutputFormat, harmless, note, say_json, table};

/// Show decisions: who read what, and who was refused
///
/// Texts are compared as a whole; one that ends in `*` is a beginning. All that is given must hold. The log itself is looked at too:
/// if it is broken, standard error says so. With --key, each decision says whether a checkpoint of that key vouches for it: whoever
/// may write to a log can add a chain of their own, signed by nobody whom you trust.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    log: LogArgs,
    /// Thumbprint of an audit key that is trusted; may be repeated. Lines for which no checkpoint of it vouches are marked
    #[arg(
        long = "key",
        value_name = "THUMBPRINT",
        allow_hyphen_values = true,
        value_delimiter = ','
    )]
    keys: Vec<Thumbprint>,
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
    caller: Option<String>,
    proof: Option<&'static str>,
    purpose: Option<String>,
    dataset: Option<String>,
    label: Option<String>,
    policy_version: Option<u64>,
    decision: &'static str,
    rule: String,
    count: u64,
    place: Option<String>,
    /// Whether a checkpoint of a trusted key vouches for the line; left out where no key was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    vouched: Option<bool>,
    #[serde(skip)]
    chain: (InstanceId, u64),
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let mut verifier = Verifier::new(args.keys.iter().copied(), true);
    let mut found = std::collections::VecDeque::new();
    let (mut number, mut left_out) = (0_u64, 0_u64);
    let torn = args.log.each(|text| {
        number += 1;
        verifier.line(text);
        let Ok(Line {
            body: Body::Decision(event),
            instance,
            seq,
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
            found.push_back(Shown::of(number, *event, (instance, seq)));
        }
    })?;
    verifier.torn(torn);
    let report = verifier.finish();
    let mut found = Vec::from(found);
    if !args.keys.is_empty() {
        for shown in &mut found {
            let (instance, seq) = shown.chain;
            let chain = report.chains.iter().find(|chain| chain.instance == instance);
            shown.vouched = Some(chain.and_then(|chain| chain.sealed).is_some_and(|sealed| seq <= sealed));
        }
    }
    match args.output {
        OutputFormat::Json => say_json(&found),
        OutputFormat::Text => print(&found),
    }
    if left_out > 0 {
        note(format_args!("{left_out} older ones are left out; see --last"));
    }
    let unvouched = found.iter().filter(|shown| shown.vouched == Some(false)).count();
    if unvouched > 0 {
        note(format_args!(
            "no checkpoint of a key that you named vouches for {unvouched} of these: whoever may write to the log could have made them"
        ));
    }
    if args.keys.is_empty() && !found.is_empty() {
        note("without --key, whoever may write to the log could have made these lines");
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
    fn of(line: u64, event: Event, chain: (InstanceId, u64)) -> Self {
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
            caller: event.caller,
            proof: event.proof.map(sealflow::audit::Proof::as_str),
            purpose: event.purpose,
            dataset: event.dataset,
            label: event.label,
            policy_version: event.policy_version,
            decision: event.decision.as_str(),
            rule: event.rule,
            count: event.count,
            place,
            vouched: None,
            chain,
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
        let mark = if shown.vouched == Some(false) { "? " } else { "" };
        [
            format!("{mark}{}", shown.at),
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
