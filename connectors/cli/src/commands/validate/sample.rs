//! Whether the policy hits what is in the topic, and whether what it seals also stands in clear somewhere else.
//!
//! Values are looked at and counted; none is kept or shown.

use std::collections::BTreeMap;
use std::ops::Range;

use sealflow::columns::{Found, Locator, LocatorError, lines};
use sealflow::pipeline::{Format, Record};
use sealflow::policy::{ColumnPath, ColumnRule, Policy, Root, VerifiedPolicy};
use sealflow_kafka::sample;
use zeroize::Zeroizing;

use super::broker::{PATIENCE, ask};
use super::checklist::Checklist;
use crate::config::{Mode, PipelineConfig};
use crate::failure::{Exit, Failure};

/// Fewer bad records in a sample say nothing about the topic.
const ENOUGH_TO_TELL: u64 = 10;
/// Shorter values occur everywhere by chance.
const SHORTEST_VALUE: usize = 6;

/// Reads a sample and adds its lines.
pub(super) async fn check(config: &PipelineConfig, policy: &VerifiedPolicy, wanted: usize, list: &mut Checklist) {
    let kafka = config.kafka();
    let records = match ask(move || sample(&kafka, wanted, PATIENCE)).await {
        Ok(records) => records,
        Err(failure) => return list.failed("sample", &failure),
    };
    if records.is_empty() {
        return list.warn(
            "sample",
            "the topics hold no records yet",
            "run this again when there are some",
        );
    }
    let format = config.format.core().unwrap_or_default();
    let mut survey = match Survey::new(policy.policy(), format, config.mode) {
        Ok(survey) => survey,
        // The policy did not compile, which is a line of its own.
        Err(_) => return list.skipped("sample", "needs a policy that compiles"),
    };
    for record in &records {
        survey.add(record);
    }
    survey.report(list, config.dead_letters.as_ref().map(|dead| dead.max_ratio));
}

/// Counts over a sample.
struct Survey<'a> {
    policy: &'a Policy,
    format: Format,
    mode: Mode,
    locator: Locator,
    /// Index into the policy's columns of each path in the locator.
    value_columns: Vec<usize>,
    found: Found,
    records: u64,
    tombstones: u64,
    /// Records with a value, per column of the policy.
    hits: Vec<u64>,
    /// Why records cannot be located, by code.
    unlocatable: BTreeMap<String, u64>,
    /// Records in which a value of the column also stands in clear, by (column, place).
    elsewhere: BTreeMap<(usize, &'static str), u64>,
    /// Values that are sealed already, or, opening, are not.
    wrong_side: u64,
}

impl<'a> Survey<'a> {
    fn new(policy: &'a Policy, format: Format, mode: Mode) -> Result<Self, LocatorError> {
        let value_columns: Vec<usize> = (0..policy.columns.len())
            .filter(|n| *policy.columns[*n].path.root() == Root::Value)
            .collect();
        let paths: Vec<ColumnPath> = value_columns.iter().map(|n| policy.columns[*n].path.clone()).collect();
        Ok(Self {
            policy,
            format,
            mode,
            locator: Locator::new(&paths, &[])?,
            value_columns,
            found: Found::default(),
            records: 0,
            tombstones: 0,
            hits: vec![0; policy.columns.len()],
            unlocatable: BTreeMap::new(),
            elsewhere: BTreeMap::new(),
            wrong_side: 0,
        })
    }

    fn add(&mut self, record: &Record) {
        self.records += 1;
        self.add_outer(record);
        let Some(value) = &record.value else {
            self.tombstones += 1;
            return;
        };
        let mut places: Vec<(usize, Range<usize>)> = Vec::new();
        for document in documents(self.format, value) {
            if let Err(error) = self.locator.locate(&value[document.clone()], &mut self.found) {
                *self.unlocatable.entry(error.code().to_owned()).or_default() += 1;
                return;
            }
            places.extend(self.found.hits.iter().map(|hit| {
                let range = hit.range();
                (
                    self.value_columns[usize::from(hit.column)],
                    document.start + range.start..document.start + range.end,
                )
            }));
        }
        let mut columns: Vec<usize> = places.iter().map(|(column, _)| *column).collect();
        columns.sort_unstable();
        columns.dedup();
        for column in columns {
            self.hits[column] += 1;
        }
        self.look_elsewhere(record, value, &places);
    }

    /// `$key` and `$header` columns.
    fn add_outer(&mut self, record: &Record) {
        for (n, rule) in self.policy.columns.iter().enumerate() {
            let hit = match rule.path.root() {
                Root::Value => false,
                Root::Key => record.key.is_some(),
                Root::Header(name) => record.headers.iter().any(|header| header.name == *name),
            };
            self.hits[n] += u64::from(hit);
        }
    }

    fn look_elsewhere(&mut self, record: &Record, value: &[u8], places: &[(usize, Range<usize>)]) {
        let rest = without(value, places);
        let sealed_root = |root: &Root| self.policy.columns.iter().any(|rule| rule.path.root() == root);
        for (column, range) in places {
            let Some(text) = scalar(&value[range.clone()]) else {
                continue;
            };
            let is_sealed = text.starts_with("sf1.");
            let is_hint = self.policy.columns[*column].hint.is_some();
            // That a clear record has a hint at all is told by itself.
            if !(is_hint && self.mode == Mode::Seal) {
                self.wrong_side += u64::from(is_sealed == (self.mode == Mode::Seal));
            }
            if is_sealed || is_hint || text.len() < SHORTEST_VALUE {
                continue;
            }
            let within = |bytes: &[u8]| contains(bytes, text.as_bytes());
            let mut note = |place| *self.elsewhere.entry((*column, place)).or_default() += 1;
            if record.key.as_ref().is_some_and(|key| within(key)) && !sealed_root(&Root::Key) {
                note("the message key");
            }
            let in_clear_header = record.headers.iter().any(|header| {
                !sealed_root(&Root::Header(header.name.to_string()))
                    && header.value.as_ref().is_some_and(|value| within(value))
            });
            if in_clear_header {
                note("a header");
            }
            if within(&rest) {
                note("another field");
            }
        }
    }

    fn report(&self, list: &mut Checklist, max_ratio: Option<f64>) {
        let read = self.records - self.tombstones;
        list.ok(
            "sample",
            format_args!(
                "{} of the newest records read, {} of them tombstones",
                self.records, self.tombstones
            ),
        );
        for (rule, hits) in self.policy.columns.iter().zip(&self.hits) {
            if rule.hint.is_some() {
                self.report_hint(rule, *hits, read, list);
                continue;
            }
            let name = format!("column {}", rule.path);
            match hits {
                0 => list.warn(
                    &name,
                    "in none of the records",
                    "check the path: is it spelled as in the records?",
                ),
                hits => list.ok(&name, format_args!("in {hits} of {read} records")),
            }
        }
        for (code, count) in &self.unlocatable {
            let help = "they become dead letters, or stop the pipeline; docs/format.md lists the codes";
            list.warn(
                "records",
                format_args!("{count} of {read} cannot be read: {code}"),
                help,
            );
        }
        self.report_ratio(read, max_ratio, list);
        for ((column, place), count) in &self.elsewhere {
            let path = &self.policy.columns[*column].path;
            let help = "that copy stays in clear: make it a column of the policy, or drop it at its source";
            list.warn(
                &format!("column {path}"),
                format_args!("in {count} records the same value also stands in {place}"),
                help,
            );
        }
        match (self.wrong_side, self.mode) {
            (0, _) => {}
            (count, Mode::Seal) => list.warn(
                "values",
                format_args!("{count} are sealed already"),
                "is the source the clear topic? sealing again works, opening once does not",
            ),
            (count, Mode::Open) => list.warn(
                "values",
                format_args!("{count} are not sealed"),
                "is the source the sealed topic? such records become dead letters",
            ),
        }
    }
}

impl Survey<'_> {
    /// Records to be sealed do not have the hints that sealing adds; sealed ones have those that could be derived.
    fn report_hint(&self, rule: &ColumnRule, hits: u64, read: u64, list: &mut Checklist) {
        let name = format!("hint {}", rule.label);
        match (self.mode, hits) {
            (Mode::Seal, 0) => list.ok(&name, "its place is free in all records"),
            (Mode::Seal, hits) => list.warn(
                &name,
                format_args!("{hits} of {read} records have a member there already"),
                "they become dead letters, or stop the pipeline: rename that field at its source, or remove the hint",
            ),
            (Mode::Open, hits) => list.ok(&name, format_args!("in {hits} of {read} records")),
        }
    }

    /// A share of bad records that would stop the pipeline is a failure, unless there are too few to tell.
    fn report_ratio(&self, read: u64, max_ratio: Option<f64>, list: &mut Checklist) {
        let bad: u64 = self.unlocatable.values().sum();
        let max_ratio = max_ratio.unwrap_or(0.0);
        // A sample is far below 2^52 records, so the conversion is exact.
        #[allow(clippy::cast_precision_loss)]
        let passed = bad as f64 > max_ratio * read as f64;
        if passed && bad >= ENOUGH_TO_TELL {
            let message = format!("{bad} of {read} would become dead letters, more than dead_letters.max_ratio takes");
            let help = "is `format` right, and is this the topic that was meant? else raise max_ratio";
            list.failed("records", &Failure::new(Exit::Data, message, help));
        }
    }
}

/// The documents of a record's value.
fn documents(format: Format, value: &[u8]) -> Vec<Range<usize>> {
    match format {
        Format::Json => std::iter::once(0..value.len()).collect(),
        Format::JsonSr => std::iter::once(value.len().min(5)..value.len()).collect(),
        Format::Ndjson => {
            let blank = |range: &Range<usize>| value[range.clone()].iter().all(u8::is_ascii_whitespace);
            lines::lines(value)
                .map(|line| line.content)
                .filter(|range| !blank(range))
                .collect()
        }
    }
}

/// The value without its sealed fields.
fn without(value: &[u8], places: &[(usize, Range<usize>)]) -> Zeroizing<Vec<u8>> {
    let mut rest = Zeroizing::new(value.to_vec());
    for (_, range) in places {
        rest[range.clone()].fill(0);
    }
    rest
}

/// A string decoded, a number as it is spelled; nothing else.
fn scalar(json: &[u8]) -> Option<Zeroizing<String>> {
    match serde_json::from_slice(json).ok()? {
        serde_json::Value::String(text) => Some(Zeroizing::new(text)),
        serde_json::Value::Number(_) => String::from_utf8(json.to_vec()).ok().map(Zeroizing::new),
        _ => None,
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sealflow::pipeline::{Header, Position, Timestamp};

    use super::*;
    use crate::term::Style;

    const POLICY: &str = r#"
dataset: payments
version: 1
keys: { default: { arn: "arn:aws:kms:eu-central-1:111122223333:key/11111111-1111-1111-1111-111111111111" } }
acls: { pii: {} }
columns:
  - { path: user.email, key: default, acl: pii }
  - { path: user.phone, key: default, acl: pii }
"#;

    fn record(key: &str, value: &str, header: &str) -> Record {
        let headers = vec![Header {
            name: "trace".into(),
            value: Some(Bytes::copy_from_slice(header.as_bytes())),
        }];
        let position = Position {
            topic: "t".into(),
            partition: 0,
            offset: 0,
        };
        let (key, value) = (
            Some(Bytes::copy_from_slice(key.as_bytes())),
            Some(Bytes::copy_from_slice(value.as_bytes())),
        );
        Record {
            position,
            timestamp: Timestamp::None,
            key,
            value,
            headers: headers.into(),
        }
    }

    #[test]
    fn a_hint_is_expected_in_sealed_records_and_is_in_the_way_in_clear_ones() {
        let yaml = POLICY.replace(
            "path: user.email, key: default, acl: pii",
            "path: user.email, key: default, acl: pii, hints: [{ derive: last4, acl: pii }]",
        );
        let policy = Policy::parse(yaml.as_bytes()).unwrap();
        let sealed = r#"{"user":{"email":"sf1.AAAA","email#last4":"sf1.AAAA"}}"#;
        let clear = r#"{"user":{"email":"ann@example.com"}}"#;
        for (mode, value, expected) in [
            (Mode::Seal, clear, "its place is free in all records"),
            (Mode::Seal, sealed, "1 of 1 records have a member there already"),
            (Mode::Open, sealed, "in 1 of 1 records"),
            (Mode::Open, clear, "in 0 of 1 records"),
        ] {
            let mut survey = Survey::new(&policy, Format::Json, mode).unwrap();
            survey.add(&record("k", value, "x"));
            let mut list = Checklist::printing(Style::PLAIN);
            survey.report(&mut list, Some(1.0));
            let text = format!("{list:?}");
            assert!(
                text.contains("hint user.email#last4") && text.contains(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn copies_of_sealed_values_are_found_wherever_they_stand_and_never_shown() {
        let policy = Policy::parse(POLICY.as_bytes()).unwrap();
        let mut survey = Survey::new(&policy, Format::Json, Mode::Seal).unwrap();
        survey.add(&record(
            "ann@example.com",
            r#"{"user":{"email":"ann@example.com"},"login":"ann@example.com"}"#,
            "x",
        ));
        survey.add(&record(
            "k",
            r#"{"user":{"email":"bob@example.com"},"login":"b"}"#,
            "for bob@example.com",
        ));
        survey.add(&record("k", r#"{"user":{"email":"sf1.AAAA"}}"#, "x"));
        survey.add(&record("k", r#"{"user":"eve@example.com"}"#, "x"));
        assert_eq!(survey.hits, [3, 0]);
        assert_eq!((survey.elsewhere.len(), survey.wrong_side), (3, 1));
        assert!(
            survey.elsewhere.values().all(|records| *records == 1),
            "a sealed field is its own copy"
        );
        let mut list = Checklist::printing(Style::PLAIN);
        survey.report(&mut list, Some(1.0));
        let text = format!("{list:?}");
        assert!(
            text.contains("the message key") && text.contains("a header") && text.contains("another field"),
            "{text}"
        );
        assert!(
            text.contains("wrong-type") && text.contains("in none of the records"),
            "{text}"
        );
        assert!(!text.contains("example.com"), "{text}");
    }
}
