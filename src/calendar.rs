//! Days, times and RFC 3339 texts. No time-zone database: an instant with a named zone is written in UTC.

// Writing to a `String` cannot fail, so those results are dropped.
use std::fmt::Write as _;

use crate::seal::plaintext::TimeUnit;

const SECONDS_PER_DAY: i64 = 86_400;

/// Units per second, and digits of a fraction in that unit.
pub(crate) fn resolution(unit: TimeUnit) -> (i64, usize) {
    match unit {
        TimeUnit::Second => (1, 0),
        TimeUnit::Millisecond => (1_000, 3),
        TimeUnit::Microsecond => (1_000_000, 6),
        TimeUnit::Nanosecond => (1_000_000_000, 9),
    }
}

/// `2024-02-29`; years outside 0000 to 9999 get a sign and at least six digits (ISO 8601, expanded).
pub(crate) fn write_date(days: i64, out: &mut String) {
    let (year, month, day) = civil_from_days(days);
    if (0..=9999).contains(&year) {
        let _ = write!(out, "{year:04}-{month:02}-{day:02}");
    } else {
        let _ = write!(out, "{year:+07}-{month:02}-{day:02}");
    }
}

/// An RFC 3339 text: local without a zone; with its own offset if the zone is one; else in UTC, ending in `Z`.
pub(crate) fn write_timestamp(unit: TimeUnit, count: i64, zone: Option<&str>, out: &mut String) {
    let (per_second, _) = resolution(unit);
    let offset = zone.and_then(offset_minutes).unwrap_or(0);
    // Within i64: count / 1 second is the widest, and its days fit after any offset only if this does.
    let seconds = i128::from(count.div_euclid(per_second)) + i128::from(offset) * 60;
    let days = seconds.div_euclid(SECONDS_PER_DAY.into());
    let second_of_day = seconds.rem_euclid(SECONDS_PER_DAY.into());
    write_date(i64::try_from(days).unwrap_or_default(), out);
    out.push('T');
    write_clock(
        i64::try_from(second_of_day).unwrap_or_default(),
        unit,
        count.rem_euclid(per_second),
        out,
    );
    match zone {
        None => {}
        Some(_) if offset == 0 => out.push('Z'),
        Some(_) => {
            let _ = write!(
                out,
                "{}{:02}:{:02}",
                if offset < 0 { '-' } else { '+' },
                offset.abs() / 60,
                offset.abs() % 60
            );
        }
    }
}

/// `12:34:56.789`: a time of day, or `None` if the count is not within one day.
pub(crate) fn write_time(unit: TimeUnit, count: i64, out: &mut String) -> Option<()> {
    let (per_second, _) = resolution(unit);
    let seconds = count.div_euclid(per_second);
    if !(0..SECONDS_PER_DAY).contains(&seconds) {
        return None;
    }
    write_clock(seconds, unit, count.rem_euclid(per_second), out);
    Some(())
}

/// `PT1.500S`: an ISO 8601 duration in seconds, with the digits of its unit.
pub(crate) fn write_duration(unit: TimeUnit, count: i64, out: &mut String) {
    let (per_second, digits) = resolution(unit);
    if count < 0 {
        out.push('-');
    }
    let (count, per_second) = (count.unsigned_abs(), per_second.unsigned_abs());
    let _ = write!(out, "PT{}", count / per_second);
    if digits > 0 {
        let _ = write!(out, ".{:0digits$}", count % per_second);
    }
    out.push('S');
}

fn write_clock(seconds: i64, unit: TimeUnit, fraction: i64, out: &mut String) {
    let (_, digits) = resolution(unit);
    let _ = write!(
        out,
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    );
    if digits > 0 {
        let _ = write!(out, ".{fraction:0digits$}");
    }
}

/// Days since 1970-01-01 of `YYYY-MM-DD`.
pub(crate) fn parse_date(text: &str) -> Option<i32> {
    let (days, rest) = date(text.as_bytes())?;
    if rest.is_empty() {
        i32::try_from(days).ok()
    } else {
        None
    }
}

/// The count of `unit`s since the epoch that an RFC 3339 text names exactly. With `zoned` the text must end
/// in an offset, without it must not.
pub(crate) fn parse_timestamp(text: &str, unit: TimeUnit, zoned: bool) -> Option<i64> {
    let (days, rest) = date(text.as_bytes())?;
    let rest = rest
        .strip_prefix(b"T")
        .or_else(|| rest.strip_prefix(b"t"))
        .or_else(|| rest.strip_prefix(b" "))?;
    let (hour, rest) = two_digits(rest, 23)?;
    let (minute, rest) = two_digits(rest.strip_prefix(b":")?, 59)?;
    // No leap seconds: a count since the epoch has no place for them.
    let (second, rest) = two_digits(rest.strip_prefix(b":")?, 59)?;
    let (fraction, rest) = fraction(rest, unit)?;
    let offset = match (zoned, rest) {
        (false, b"") => 0,
        (true, b"Z" | b"z") => 0,
        (true, [b'+' | b'-', ..]) if rest.len() == 6 => offset_minutes(std::str::from_utf8(rest).ok()?)?,
        _ => return None,
    };
    let seconds = days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second - offset * 60;
    let count = i128::from(seconds) * i128::from(resolution(unit).0) + i128::from(fraction);
    i64::try_from(count).ok()
}

fn date(text: &[u8]) -> Option<(i64, &[u8])> {
    let (century, rest) = two_digits(text, 99)?;
    let (year, rest) = two_digits(rest, 99)?;
    let (month, rest) = two_digits(rest.strip_prefix(b"-")?, 12)?;
    let (day, rest) = two_digits(rest.strip_prefix(b"-")?, 31)?;
    let year = century * 100 + year;
    let days = days_from_civil(year, month, day);
    // Days that a month does not have come back as another date.
    (civil_from_days(days) == (year, month, day)).then_some((days, rest))
}

fn two_digits(text: &[u8], max: i64) -> Option<(i64, &[u8])> {
    match text {
        [a @ b'0'..=b'9', b @ b'0'..=b'9', rest @ ..] => {
            let value = i64::from(a - b'0') * 10 + i64::from(b - b'0');
            (value <= max).then_some((value, rest))
        }
        _ => None,
    }
}

/// A fraction of a second in `unit`s; digits beyond the unit must be zeros.
fn fraction(text: &[u8], unit: TimeUnit) -> Option<(i64, &[u8])> {
    let Some(rest) = text.strip_prefix(b".") else {
        return Some((0, text));
    };
    let len = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = rest.split_at(len);
    let (_, places) = resolution(unit);
    let (kept, beyond) = digits.split_at(len.min(places));
    if digits.is_empty() || beyond.iter().any(|digit| *digit != b'0') {
        return None;
    }
    let padded = kept.iter().copied().chain(std::iter::repeat(b'0')).take(places);
    Some((
        padded.fold(0, |value, digit| value * 10 + i64::from(digit - b'0')),
        rest,
    ))
}

/// Minutes east of UTC of `+02:00`, `+0200` or `+02`.
fn offset_minutes(zone: &str) -> Option<i64> {
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, rest) = two_digits(&zone.as_bytes()[1..], 23)?;
    let minutes = match rest {
        b"" => 0,
        _ => {
            let (minutes, rest) = two_digits(rest.strip_prefix(b":").unwrap_or(rest), 59)?;
            if !rest.is_empty() {
                return None;
            }
            minutes
        }
    };
    Some(sign * (hours * 60 + minutes))
}

/// (year, month, day) of the proleptic Gregorian calendar (H. Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms").
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    use proptest::prelude::*;

    use super::*;

    fn stamp(unit: TimeUnit, count: i64, zone: Option<&str>) -> String {
        let mut out = String::new();
        write_timestamp(unit, count, zone, &mut out);
        out
    }

    #[test]
    fn timestamps_are_written_as_rfc_3339_has_them() {
        assert_eq!(stamp(Second, 0, Some("Z")), "1970-01-01T00:00:00Z");
        assert_eq!(stamp(Millisecond, -1, None), "1969-12-31T23:59:59.999");
        assert_eq!(
            stamp(Microsecond, 1_709_164_800_000_001, Some("+05:30")),
            "2024-02-29T05:30:00.000001+05:30"
        );
        assert_eq!(stamp(Second, 0, Some("-0330")), "1969-12-31T20:30:00-03:30");
        assert_eq!(
            stamp(Nanosecond, 1, Some("Europe/Berlin")),
            "1970-01-01T00:00:00.000000001Z"
        );
        assert_eq!(stamp(Second, 253_402_300_800, Some("UTC")), "+010000-01-01T00:00:00Z");
        for count in [i64::MIN, i64::MAX] {
            for unit in [Second, Nanosecond] {
                stamp(unit, count, Some("+23:59"));
            }
        }
    }

    #[test]
    fn timestamps_are_read_exactly_or_not_at_all() {
        let read = |text| parse_timestamp(text, Millisecond, true);
        assert_eq!(read("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(read("1970-01-01t01:00:00.1200+01:00"), Some(120));
        assert_eq!(read("1969-12-31 23:59:59.999z"), Some(-1));
        for text in [
            "1970-01-01T00:00:00",
            "1970-01-01",
            "1970-01-01T00:00:00.0001Z",
            "1970-01-01T00:00:60Z",
            "1970-01-01T24:00:00Z",
            "1970-02-30T00:00:00Z",
            "1970-13-01T00:00:00Z",
            "1970-00-01T00:00:00Z",
            "1970-01-00T00:00:00Z",
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00:00:00+0100",
            "1970-01-01T00:00:00Z ",
            "",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(parse_timestamp("1970-01-01T00:00:01", Second, false), Some(1));
        assert_eq!(parse_timestamp("1970-01-01T00:00:01Z", Second, false), None);
        assert_eq!(parse_timestamp("2262-04-12T00:00:00Z", Nanosecond, true), None);
    }

    #[test]
    fn times_and_durations_keep_the_digits_of_their_unit() {
        let mut out = String::new();
        assert_eq!(write_time(Millisecond, 45_296_789, &mut out), Some(()));
        assert_eq!(write_time(Second, 86_400, &mut out), None);
        write_duration(Millisecond, -1500, &mut out);
        write_duration(Nanosecond, i64::MIN, &mut out);
        assert_eq!(out, "12:34:56.789-PT1.500S-PT9223372036.854775808S");
    }

    proptest! {
        #[test]
        fn every_day_and_instant_comes_back(days in -719_528i32..2_932_896, millis in -62_167_219_200_000i64..253_402_300_800_000) {
            let mut text = String::new();
            write_date(days.into(), &mut text);
            prop_assert_eq!(parse_date(&text), Some(days));
            prop_assert_eq!(parse_timestamp(&stamp(Millisecond, millis, Some("Z")), Millisecond, true), Some(millis));
            prop_assert_eq!(parse_timestamp(&stamp(Millisecond, millis, None), Millisecond, false), Some(millis));
        }

        #[test]
        fn no_text_breaks_the_readers(text in "\\PC{0,40}", near in "[0-9TtZz:+. -]{0,40}") {
            for text in [text, near] {
                parse_date(&text);
                parse_timestamp(&text, Nanosecond, true);
                offset_minutes(&text);
            }
        }
    }
}
