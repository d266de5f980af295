//! Buckets: the day that a record is filed under, a function of the record alone.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::calendar::{parse_date, parse_timestamp, write_date};
use crate::columns::{Found, Locator, LocatorError, json};
use crate::pipeline::{Format, Record, Timestamp};
use crate::policy::{ColumnPath, Root};
use crate::seal::plaintext::TimeUnit;
use crate::units::Span;

const MILLIS_PER_DAY: i64 = 86_400_000;
/// The days of the years 0000 to 9999, which have names of four digits. Others are filed at 1970-01-01.
const DAYS: std::ops::Range<i32> = -719_528..2_932_897;
/// A schema registry's prefix: a zero byte, and a schema id of four bytes.
const REGISTRY_PREFIX_LEN: usize = 5;
/// Further than this, days would be more than a stretch has files for.
const MAX_SKEW: Duration = Duration::from_secs(100 * 86_400);

/// Days since 1970-01-01, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(i32);

impl Bucket {
    fn of_millis(millis: i64) -> Self {
        let days = i32::try_from(millis.div_euclid(MILLIS_PER_DAY)).ok();
        Self(days.filter(|days| DAYS.contains(days)).unwrap_or(0))
    }

    /// The folder below the dataset's: `topic=TOPIC/date=YYYY-MM-DD`.
    #[must_use]
    pub fn folder(self, topic: &str) -> String {
        format!("topic={topic}/date={self}")
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        write_date(self.0.into(), &mut text);
        f.write_str(&text)
    }
}

/// What a number is that an event's time is written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EventTimeUnit {
    /// Seconds since 1970.
    #[serde(rename = "s")]
    Seconds,
    /// Milliseconds.
    #[default]
    #[serde(rename = "ms")]
    Milliseconds,
    /// Microseconds.
    #[serde(rename = "us")]
    Microseconds,
    /// Nanoseconds.
    #[serde(rename = "ns")]
    Nanoseconds,
}

/// How records are given their days.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PartitionBy {
    /// Path of the field that says when the event was: an RFC 3339 text, a date, or a number of `unit`s since 1970. It must not
    /// be sealed, as its day is the name of a folder. Without it, and in records without it, the record's time stamp counts.
    pub event_time: Option<String>,
    /// What numbers count.
    pub unit: EventTimeUnit,
    /// How far the event may be from the record's time stamp. Beyond, it is filed that far from it: nobody's wrong clock makes a
    /// folder for every day of a century. At most 100 days.
    pub max_skew: Span,
}

impl Default for PartitionBy {
    fn default() -> Self {
        Self {
            event_time: None,
            unit: EventTimeUnit::default(),
            max_skew: Span(Duration::from_secs(7 * 86_400)),
        }
    }
}

/// Why records cannot be filed so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionByError {
    /// No path into the record's value, or one through lists.
    #[error("event_time is not the path of one field of the record's value")]
    Path,
    /// Paths that cannot be found in records.
    #[error(transparent)]
    Locator(#[from] LocatorError),
    /// Too far.
    #[error("max_skew is more than 100 days")]
    Skew,
}

/// Gives records their buckets.
pub struct BucketRule {
    by: PartitionBy,
    event_time: Option<Locator>,
    found: Found,
    format: Format,
}

impl BucketRule {
    /// Compiles a rule for records whose values are of `format`.
    ///
    /// # Errors
    /// [`PartitionByError`]
    pub fn new(by: &PartitionBy, format: Format) -> Result<Self, PartitionByError> {
        if by.max_skew.0 > MAX_SKEW {
            return Err(PartitionByError::Skew);
        }
        let event_time = by.event_time.as_deref().map(|text| {
            let path: ColumnPath = text.parse().map_err(|_| PartitionByError::Path)?;
            if *path.root() != Root::Value || path.depth_of_lists() > 0 {
                return Err(PartitionByError::Path);
            }
            Ok(Locator::new(&[], &[path])?)
        });
        Ok(Self {
            by: by.clone(),
            event_time: event_time.transpose()?,
            found: Found::default(),
            format,
        })
    }

    /// The rule as it is written down.
    #[must_use]
    pub fn by(&self) -> &PartitionBy {
        &self.by
    }

    /// The record's bucket. What has no event time that can be read is filed by its time stamp, and without that at
    /// 1970-01-01.
    pub fn bucket(&mut self, record: &Record) -> Bucket {
        let stamp = match record.timestamp {
            Timestamp::None => None,
            Timestamp::Created(millis) | Timestamp::Appended(millis) => Some(millis),
        };
        let skew = i64::try_from(self.by.max_skew.0.as_millis()).unwrap_or(i64::MAX);
        let millis = match (self.event_time(record), stamp) {
            (Some(event), Some(stamp)) => event.clamp(stamp.saturating_sub(skew), stamp.saturating_add(skew)),
            (event, stamp) => event.or(stamp).unwrap_or(0),
        };
        Bucket::of_millis(millis)
    }

    /// When the event was, in milliseconds since 1970.
    fn event_time(&mut self, record: &Record) -> Option<i64> {
        let locator = self.event_time.as_ref()?;
        let value = record.value.as_deref()?;
        let document = match self.format {
            Format::Json => value,
            Format::JsonSr => value.get(REGISTRY_PREFIX_LEN..)?,
            Format::Ndjson => {
                let lines = crate::columns::lines::lines(value);
                let mut lines = lines.filter(|line| !line.content.is_empty());
                &value[lines.next()?.content]
            }
        };
        locator.locate(document, &mut self.found).ok()?;
        let token = &document[self.found.fields.first()?.range()];
        match token.first()? {
            b'"' => {
                let text = json::string_value(token)?;
                let date = || Some(i64::from(parse_date(&text)?) * MILLIS_PER_DAY);
                parse_timestamp(&text, TimeUnit::Nanosecond, true)
                    .map(|nanos| nanos.div_euclid(1_000_000))
                    .or_else(|| parse_timestamp(&text, TimeUnit::Millisecond, true))
                    .or_else(date)
            }
            _ => {
                let count: i64 = std::str::from_utf8(token).ok()?.parse().ok()?;
                Some(match self.by.unit {
                    EventTimeUnit::Seconds => count.saturating_mul(1_000),
                    EventTimeUnit::Milliseconds => count,
                    EventTimeUnit::Microseconds => count.div_euclid(1_000),
                    EventTimeUnit::Nanoseconds => count.div_euclid(1_000_000),
                })
            }
        }
    }
}

impl fmt::Debug for BucketRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BucketRule")
            .field("by", &self.by)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::pipeline::{Headers, Position};

    const NOON: i64 = 1_795_867_200_000; // 2026-11-28T12:00:00Z

    fn record(value: &str, timestamp: Timestamp) -> Record {
        Record {
            position: Position {
                topic: "t".into(),
                partition: 0,
                offset: 0,
            },
            timestamp,
            key: None,
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
            headers: Headers::new(),
        }
    }

    fn day(value: &str, stamp: i64, unit: EventTimeUnit) -> String {
        let by = PartitionBy {
            event_time: Some("event.at".into()),
            unit,
            ..PartitionBy::default()
        };
        let mut rule = BucketRule::new(&by, Format::Json).unwrap();
        rule.bucket(&record(value, Timestamp::Created(stamp))).to_string()
    }

    #[test]
    fn a_record_is_filed_under_the_day_of_its_event() {
        let of = |text: &str| {
            day(
                &format!(r#"{{"event":{{"at":{text}}}}}"#),
                NOON,
                EventTimeUnit::Milliseconds,
            )
        };
        assert_eq!(of(r#""2026-11-25T23:59:59Z""#), "2026-11-25");
        assert_eq!(of(r#""2026-11-26T00:30:00.123456789+01:00""#), "2026-11-25");
        assert_eq!(of(r#""2026-11-24""#), "2026-11-24");
        assert_eq!(of("1795780800000"), "2026-11-27");
        let seconds = r#"{"event":{"at":1795780800}}"#;
        assert_eq!(day(seconds, NOON, EventTimeUnit::Seconds), "2026-11-27");
        assert_eq!(Bucket::of_millis(NOON).folder("orders"), "topic=orders/date=2026-11-28");
    }

    #[test]
    fn a_wrong_clock_or_no_time_at_all_is_filed_near_the_time_stamp() {
        let of = |text: &str| day(text, NOON, EventTimeUnit::Milliseconds);
        assert_eq!(of(r#"{"event":{"at":"1970-01-01T00:00:00Z"}}"#), "2026-11-21");
        assert_eq!(of(r#"{"event":{"at":"2999-01-01T00:00:00Z"}}"#), "2026-12-05");
        assert_eq!(of(r#"{"event":{"at":99999999999999999}}"#), "2026-12-05");
        for nothing in [
            "{}",
            r#"{"event":{"at":"soon"}}"#,
            r#"{"event":{"at":[1]}}"#,
            "no JSON",
            "",
        ] {
            assert_eq!(of(nothing), "2026-11-28", "{nothing}");
        }
        let mut rule = BucketRule::new(&PartitionBy::default(), Format::Json).unwrap();
        assert_eq!(rule.bucket(&record("{}", Timestamp::None)).to_string(), "1970-01-01");
        assert_eq!(
            rule.bucket(&record("{}", Timestamp::Appended(NOON))).to_string(),
            "2026-11-28"
        );
        for beyond in [i64::MIN, i64::MAX, 253_402_300_800_000] {
            assert_eq!(
                rule.bucket(&record("{}", Timestamp::Created(beyond))).to_string(),
                "1970-01-01"
            );
        }
        let last = Timestamp::Created(253_402_300_799_999);
        assert_eq!(rule.bucket(&record("{}", last)).to_string(), "9999-12-31");
    }

    #[test]
    fn rules_that_cannot_be_meant_are_refused() {
        let rule = |path: &str, days: u64| {
            let by = PartitionBy {
                event_time: Some(path.into()),
                max_skew: Span(Duration::from_secs(days * 86_400)),
                ..PartitionBy::default()
            };
            BucketRule::new(&by, Format::Json).map(drop)
        };
        assert!(rule("at", 100).is_ok());
        assert!(rule("at", 101).is_err());
        for path in ["", "$key", "events[*].at", "$header.at"] {
            assert!(rule(path, 1).is_err(), "{path}");
        }
    }
}
