//! What the path check of `rustls-webpki` leaves out of X.509 certificates (RFC 5280): key usage, and a root's own validity and
//! basic constraints. It only reads certificates; whether they are signed is the path check's.

use crate::asn1::{OCTET_STRING, Reader, SEQUENCE};

/// Tags that only certificates use here.
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// `id-ce-keyUsage`, 2.5.29.15.
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
/// `id-ce-basicConstraints`, 2.5.29.19.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// What is read out of a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Profile {
    /// Seconds since the epoch, both ends included.
    pub(super) validity: (i64, i64),
    /// Whether it says that it is an authority.
    pub(super) is_ca: bool,
    /// How many authorities may follow it, if it says so.
    pub(super) path_length: Option<u8>,
    /// The first byte of key usage, if there is one: bits 0 to 7 from the left.
    pub(super) key_usage: Option<u8>,
}

impl Profile {
    /// Reads a certificate. `None`: it is none, or not of version 3.
    pub(super) fn of(certificate: &[u8]) -> Option<Self> {
        let mut reader = Reader::der(certificate);
        let profile = reader.constructed(SEQUENCE, |certificate| {
            let profile = certificate.constructed(SEQUENCE, to_be_signed)?;
            certificate.element(SEQUENCE)?;
            certificate.element(BIT_STRING)?;
            Some(profile)
        })?;
        reader.is_empty().then_some(profile)
    }

    /// Whether its key may sign what is no certificate: `digitalSignature`, bit 0.
    pub(super) fn may_sign(&self) -> bool {
        self.key_usage.is_some_and(|bits| bits & 0x80 != 0)
    }

    /// Whether its key may sign certificates: `keyCertSign`, bit 5.
    pub(super) fn may_certify(&self) -> bool {
        self.key_usage.is_some_and(|bits| bits & 0x04 != 0)
    }
}

/// `TBSCertificate`, RFC 5280 section 4.1.
fn to_be_signed(reader: &mut Reader<'_>) -> Option<Profile> {
    let version = reader.constructed(VERSION, |version| version.element(INTEGER))?;
    if version != [2] {
        return None;
    }
    let _serial_number = reader.element(INTEGER)?;
    let _signature_algorithm = reader.element(SEQUENCE)?;
    let _issuer = reader.element(SEQUENCE)?;
    let validity = reader.constructed(SEQUENCE, |validity| Some((time(validity)?, time(validity)?)))?;
    let _subject = reader.element(SEQUENCE)?;
    let _public_key = reader.element(SEQUENCE)?;
    let mut profile = Profile {
        validity,
        ..Profile::default()
    };
    // Without unique identifiers, which nobody writes.
    if !reader.is_empty() {
        reader.constructed(EXTENSIONS, |outer| {
            outer.constructed(SEQUENCE, |list| {
                while !list.is_empty() {
                    list.constructed(SEQUENCE, |extension| read_extension(extension, &mut profile))?;
                }
                Some(())
            })
        })?;
    }
    Some(profile)
}

fn read_extension(reader: &mut Reader<'_>, profile: &mut Profile) -> Option<()> {
    let id = reader.element(OBJECT_IDENTIFIER)?;
    if reader.peek() == Some(BOOLEAN) {
        let _critical = reader.element(BOOLEAN)?;
    }
    let value = reader.element(OCTET_STRING)?;
    if id == KEY_USAGE {
        let mut value = Reader::der(value);
        // The first byte counts unused bits at the end.
        let (_unused, bits) = value.element(BIT_STRING)?.split_first()?;
        profile.key_usage = Some(*bits.first()?);
        return value.is_empty().then_some(());
    }
    if id == BASIC_CONSTRAINTS {
        let mut value = Reader::der(value);
        (profile.is_ca, profile.path_length) = value.constructed(SEQUENCE, basic_constraints)?;
        return value.is_empty().then_some(());
    }
    Some(())
}

fn basic_constraints(reader: &mut Reader<'_>) -> Option<(bool, Option<u8>)> {
    let is_ca = match reader.peek() {
        Some(BOOLEAN) => reader.element(BOOLEAN)? == [0xff],
        _ => false,
    };
    let path_length = match reader.peek() {
        // Longer ones would be over 127, and are no use.
        Some(INTEGER) => match reader.element(INTEGER)? {
            [length @ 0..=0x7f] => Some(*length),
            _ => return None,
        },
        _ => None,
    };
    Some((is_ca, path_length))
}

/// `Time`, RFC 5280 section 4.1.2.5, in seconds since the epoch.
fn time(reader: &mut Reader<'_>) -> Option<i64> {
    let (year, rest) = match reader.peek()? {
        UTC_TIME => {
            let (year, rest) = number(reader.element(UTC_TIME)?, 2)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => number(reader.element(GENERALIZED_TIME)?, 4)?,
        _ => return None,
    };
    let (month, rest) = number(rest, 2)?;
    let (day, rest) = number(rest, 2)?;
    let (hour, rest) = number(rest, 2)?;
    let (minute, rest) = number(rest, 2)?;
    let (second, rest) = number(rest, 2)?;
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 60;
    if rest != b"Z" || !in_range {
        return None;
    }
    Some(((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

/// So many decimal digits, and what follows them.
fn number(text: &[u8], digits: usize) -> Option<(i64, &[u8])> {
    let (number, rest) = text.split_at_checked(digits)?;
    let mut value = 0;
    for digit in number {
        value = value * 10 + i64::from(char::from(*digit).to_digit(10)?);
    }
    Some((value, rest))
}

/// Days from 1970-01-01 to a day of the Gregorian calendar. The year starts in March here, so that the leap day is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    365 * year + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_of_nitro_says_what_it_is() {
        let profile = Profile::of(super::super::NITRO_ROOT).unwrap();
        // 2019-10-28 13:28:05 to 2049-10-28 14:28:05.
        assert_eq!(profile.validity, (1_572_269_285, 2_519_044_085));
        assert!(profile.is_ca && profile.may_certify() && profile.may_sign());
        assert_eq!(profile.path_length, None);
    }

    #[test]
    fn days_are_counted_over_leap_years_and_centuries() {
        for (date, expected) in [
            ((1970, 1, 1), 0),
            ((1999, 12, 31), 10_956),
            ((2000, 2, 29), 11_016),
            ((2000, 3, 1), 11_017),
            ((2026, 11, 29), 20_786),
            ((2100, 3, 1), 47_541),
        ] {
            assert_eq!(days(date.0, date.1, date.2), expected, "{date:?}");
        }
    }

    #[test]
    fn times_that_are_none_are_refused() {
        let read = |tag: u8, text: &[u8]| {
            let mut element = vec![tag, u8::try_from(text.len()).unwrap()];
            element.extend(text);
            time(&mut Reader::der(&element))
        };
        assert_eq!(read(UTC_TIME, b"700101000000Z"), Some(0));
        assert_eq!(
            read(UTC_TIME, b"491231235959Z"),
            read(GENERALIZED_TIME, b"20491231235959Z")
        );
        assert_eq!(
            read(UTC_TIME, b"500101000000Z"),
            read(GENERALIZED_TIME, b"19500101000000Z")
        );
        for wrong in [
            &b"700101000000"[..],
            b"7001010000Z",
            b"701301000000Z",
            b"700132000000Z",
            b"7001010000000Z",
            b"70010100000+Z",
        ] {
            assert_eq!(read(UTC_TIME, wrong), None, "{wrong:?}");
        }
    }
}
