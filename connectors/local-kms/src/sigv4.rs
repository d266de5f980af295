//! Signature Version 4, the server's half: reads an Authorization header and checks a signature.
//!
//! Pure functions over one request; they know no keys but the one they are given, and no clock. Source: AWS General
//! Reference, "Create a signed AWS API request". Authentication by header is taken over the path `/` without a query, since
//! KMS and STS clients send nothing else; what carries it in its query is read by [`crate::presigned`].

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// The longest Authorization header that is read, in bytes.
const MAX_AUTHORIZATION: usize = 4096;

/// The most headers that may be signed.
const MAX_SIGNED_HEADERS: usize = 64;

/// How far the request's time may be from the server's, in milliseconds.
const MAX_SKEW_MILLIS: u64 = 5 * 60 * 1000;

/// Headers that only one value makes sense of: a second one would be read by one side and not by the other.
const SINGLE_HEADERS: [&str; 6] = [
    "authorization",
    "host",
    "x-amz-date",
    "x-amz-target",
    "x-amz-security-token",
    "x-amz-content-sha256",
];

/// A request as it came: header names in lower case, in the order of arrival.
#[derive(Clone, Copy, Debug)]
pub struct SignedRequest<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// Names (lower case) and values of all headers.
    pub headers: &'a [(&'a str, &'a str)],
    /// The whole body.
    pub body: &'a [u8],
}

impl<'a> SignedRequest<'a> {
    /// The first header called `name`.
    pub(crate) fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
    }
}

/// A parsed Authorization header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization<'a> {
    /// The access key that claims to have signed.
    pub access_key_id: &'a str,
    /// The day of the scope, `YYYYMMDD`.
    pub date: &'a str,
    /// The region of the scope.
    pub region: &'a str,
    /// The service of the scope.
    pub service: &'a str,
    /// Names of the signed headers: lower case, sorted, each once.
    pub signed_headers: Vec<&'a str>,
    /// The signature.
    pub signature: [u8; 32],
}

/// Why a signature was not taken.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SignatureError {
    /// The request is not signed at all.
    #[error("Request is missing Authentication Token")]
    Missing,
    /// The Authorization header or the headers that belong to it cannot be read.
    #[error("{0}")]
    Incomplete(&'static str),
    /// The request's time is too far from ours.
    #[error("Signature expired or not yet valid: the request's time is more than 5 minutes from the server's")]
    Skewed,
    /// The scope names another region, service or day.
    #[error("Credential should be scoped to a valid {0}")]
    WrongScope(&'static str),
    /// The signature is not that of this request.
    #[error("The request signature we calculated does not match the signature you provided")]
    Mismatch,
}

/// Reads the value of an Authorization header.
pub fn parse_authorization(text: &str) -> Result<Authorization<'_>, SignatureError> {
    use SignatureError::Incomplete;
    if text.len() > MAX_AUTHORIZATION {
        return Err(Incomplete("Authorization header is too long"));
    }
    let fields = text.strip_prefix("AWS4-HMAC-SHA256 ").ok_or(Incomplete(
        "Authorization header requires the algorithm AWS4-HMAC-SHA256",
    ))?;
    let (mut credential, mut signed_headers, mut signature) = (None, None, None);
    for field in fields.split(',') {
        let (name, value) = field
            .trim_matches(' ')
            .split_once('=')
            .ok_or(Incomplete("Authorization header has a field without ="))?;
        let slot = match name {
            "Credential" => &mut credential,
            "SignedHeaders" => &mut signed_headers,
            "Signature" => &mut signature,
            _ => return Err(Incomplete("Authorization header has an unknown field")),
        };
        if slot.replace(value).is_some() {
            return Err(Incomplete("Authorization header has a field twice"));
        }
    }
    let credential = credential.ok_or(Incomplete("Authorization header requires 'Credential' parameter"))?;
    let signed_headers = signed_headers.ok_or(Incomplete("Authorization header requires 'SignedHeaders' parameter"))?;
    let signature = signature.ok_or(Incomplete("Authorization header requires 'Signature' parameter"))?;

    let [access_key_id, date, region, service] = parse_credential(credential)?;
    let signed_headers = parse_signed_headers(signed_headers)?;
    let signature = parse_hex_32(signature).ok_or(Incomplete("Signature must be 64 lower-case hexadecimal digits"))?;
    Ok(Authorization {
        access_key_id,
        date,
        region,
        service,
        signed_headers,
        signature,
    })
}

/// `KEY/DATE/REGION/SERVICE/aws4_request`, without the end.
pub(crate) fn parse_credential(credential: &str) -> Result<[&str; 4], SignatureError> {
    use SignatureError::Incomplete;
    let scope: Vec<&str> = credential.split('/').collect();
    let [access_key_id, date, region, service, "aws4_request"] = scope[..] else {
        return Err(Incomplete(
            "Credential must have the form KEY/DATE/REGION/SERVICE/aws4_request",
        ));
    };
    let word = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let is_date = date.len() == 8 && date.bytes().all(|b| b.is_ascii_digit());
    if !(word(access_key_id) && is_date && word(region) && word(service)) {
        return Err(Incomplete("Credential has a part that cannot be one"));
    }
    Ok([access_key_id, date, region, service])
}

pub(crate) fn parse_signed_headers(text: &str) -> Result<Vec<&str>, SignatureError> {
    let names: Vec<&str> = text.split(';').take(MAX_SIGNED_HEADERS + 1).collect();
    if names.len() > MAX_SIGNED_HEADERS {
        return Err(SignatureError::Incomplete("SignedHeaders names too many headers"));
    }
    let is_name = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
    };
    if !names.iter().all(|name| is_name(name)) || !names.is_sorted_by(|a, b| a < b) {
        return Err(SignatureError::Incomplete(
            "SignedHeaders must be lower-case names, sorted, each once",
        ));
    }
    Ok(names)
}

pub(crate) fn parse_hex_32(text: &str) -> Option<[u8; 32]> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    if pairs.len() != 32 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// Checks everything about `authorization` that needs no secret: which headers must be signed, the time
/// (`now_millis`, the server's), and the scope (`region`, one of `services`).
pub fn check_scope(
    request: &SignedRequest<'_>,
    authorization: &Authorization<'_>,
    now_millis: u64,
    regions: &[&str],
    service: &str,
) -> Result<(), SignatureError> {
    for name in SINGLE_HEADERS {
        if request.headers.iter().filter(|(n, _)| *n == name).count() > 1 {
            return Err(SignatureError::Incomplete(
                "a header that must be there once is there twice",
            ));
        }
    }
    let signed = |name: &str| authorization.signed_headers.contains(&name);
    let must_be_signed = |name: &str| name == "host" || name == "content-type" || name.starts_with("x-amz-");
    if !signed("host")
        || request
            .headers
            .iter()
            .any(|(name, _)| must_be_signed(name) && !signed(name))
    {
        return Err(SignatureError::Incomplete(
            "host, content-type and every x-amz- header must be signed",
        ));
    }
    if authorization
        .signed_headers
        .iter()
        .any(|name| request.header(name).is_none())
    {
        return Err(SignatureError::Incomplete("a signed header is missing"));
    }
    let time = request.header("x-amz-date").ok_or(SignatureError::Incomplete(
        "Authorization header requires the X-Amz-Date header",
    ))?;
    let millis = parse_amz_date(time).ok_or(SignatureError::Incomplete(
        "X-Amz-Date must have the form YYYYMMDDTHHMMSSZ",
    ))?;
    if millis.abs_diff(now_millis) > MAX_SKEW_MILLIS {
        return Err(SignatureError::Skewed);
    }
    if !time.starts_with(authorization.date) {
        return Err(SignatureError::WrongScope("date"));
    }
    if !regions.contains(&authorization.region) {
        return Err(SignatureError::WrongScope("region"));
    }
    if authorization.service != service {
        return Err(SignatureError::WrongScope("service"));
    }
    Ok(())
}

/// Checks the signature itself, in constant time, with the secret of `authorization.access_key_id`.
pub fn check_signature(
    request: &SignedRequest<'_>,
    authorization: &Authorization<'_>,
    secret_access_key: &str,
) -> Result<(), SignatureError> {
    let payload_hash = hex(&Sha256::digest(request.body));
    if request
        .header("x-amz-content-sha256")
        .is_some_and(|claimed| claimed != payload_hash)
    {
        return Err(SignatureError::Mismatch);
    }
    let time = request.header("x-amz-date").unwrap_or_default();
    let canonical = canonical_request(request, "", &authorization.signed_headers, &payload_hash);
    check_canonical(&canonical, time, authorization, secret_access_key)
}

/// Whether the signature is that of this canonical request, in constant time.
pub(crate) fn check_canonical(
    canonical: &str,
    time: &str,
    authorization: &Authorization<'_>,
    secret_access_key: &str,
) -> Result<(), SignatureError> {
    let Authorization {
        date, region, service, ..
    } = authorization;
    let scope = format!("{date}/{region}/{service}/aws4_request");
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical)));

    let first = Zeroizing::new(format!("AWS4{secret_access_key}"));
    let mut key = hmac(first.as_bytes(), date.as_bytes());
    for part in [*region, *service, "aws4_request"] {
        key = hmac(key.as_slice(), part.as_bytes());
    }
    let expected = hmac(key.as_slice(), to_sign.as_bytes());
    if bool::from(expected.as_slice().ct_eq(&authorization.signature)) {
        Ok(())
    } else {
        Err(SignatureError::Mismatch)
    }
}

/// The canonical request over the path `/`, with a query in its canonical form.
pub(crate) fn canonical_request(
    request: &SignedRequest<'_>,
    query: &str,
    signed_headers: &[&str],
    payload_hash: &str,
) -> String {
    let mut text = format!("{}\n/\n{query}\n", request.method);
    for name in signed_headers {
        let values: Vec<String> = request
            .headers
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, value)| trimmed(value))
            .collect();
        text.push_str(name);
        text.push(':');
        text.push_str(&values.join(","));
        text.push('\n');
    }
    text.push('\n');
    text.push_str(&signed_headers.join(";"));
    text.push('\n');
    text.push_str(payload_hash);
    text
}

/// Without spaces at the ends, and with runs of spaces made one.
fn trimmed(value: &str) -> String {
    value
        .split(' ')
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

fn hmac(key: &[u8], message: &[u8]) -> Zeroizing<[u8; 32]> {
    // Invariant: HMAC takes keys of every length, so that the error arm is never used; it would fail every check.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return Zeroizing::new([0; 32]);
    };
    mac.update(message);
    Zeroizing::new(mac.finalize().into_bytes().into())
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `YYYYMMDDTHHMMSSZ` as milliseconds since 1970.
pub(crate) fn parse_amz_date(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    if bytes.len() != 16 || bytes[8] != b'T' || bytes[15] != b'Z' {
        return None;
    }
    let number = |range: std::ops::Range<usize>| {
        let digits = text.get(range)?;
        if digits.bytes().all(|b| b.is_ascii_digit()) {
            digits.parse::<u64>().ok()
        } else {
            None
        }
    };
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (hour, minute, second) = (number(9..11)?, number(11..13)?, number(13..15)?);
    let sane = year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !(sane && hour < 24 && minute < 60 && second <= 60) {
        return None;
    }
    Some((days_since_1970(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second) * 1_000)
}

/// Days from 1970-01-01, by Howard Hinnant's "days from civil"; for years from 1970.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year / 400;
    let year_of_era = year % 400;
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    const HEADERS: [(&str, &str); 2] = [("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")];
    const VANILLA: &str = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
        SignedHeaders=host;x-amz-date, Signature=";
    const NOW: u64 = 1_440_938_160_000;

    fn request<'a>(method: &'a str, headers: &'a [(&'a str, &'a str)]) -> SignedRequest<'a> {
        SignedRequest {
            method,
            headers,
            body: b"",
        }
    }

    #[test]
    fn the_published_test_suite_verifies() {
        // aws-sig-v4-test-suite: get-vanilla and post-vanilla.
        for (method, signature) in [
            (
                "GET",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "POST",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
        ] {
            let text = format!("{VANILLA}{signature}");
            let authorization = parse_authorization(&text).unwrap();
            let request = request(method, &HEADERS);
            assert_eq!(
                check_scope(&request, &authorization, NOW, &["us-east-1"], "service"),
                Ok(())
            );
            assert_eq!(check_signature(&request, &authorization, SECRET), Ok(()), "{method}");
            let other = check_signature(&request, &authorization, "another secret");
            assert_eq!(other, Err(SignatureError::Mismatch), "{method}");
        }
    }

    #[test]
    fn a_request_that_is_late_early_or_of_another_scope_is_refused() {
        let text = format!("{VANILLA}{}", "0".repeat(64));
        let authorization = parse_authorization(&text).unwrap();
        let request = request("GET", &HEADERS);
        let check = |now, region: &str, service| check_scope(&request, &authorization, now, &[region], service);
        assert_eq!(check(NOW + 300_000, "us-east-1", "service"), Ok(()));
        assert_eq!(
            check(NOW + 300_001, "us-east-1", "service"),
            Err(SignatureError::Skewed)
        );
        assert_eq!(
            check(NOW - 300_001, "us-east-1", "service"),
            Err(SignatureError::Skewed)
        );
        assert_eq!(
            check(NOW, "eu-central-1", "service"),
            Err(SignatureError::WrongScope("region"))
        );
        assert_eq!(
            check(NOW, "us-east-1", "kms"),
            Err(SignatureError::WrongScope("service"))
        );
    }

    #[test]
    fn headers_that_matter_must_be_signed_and_there_once() {
        let text = format!("{VANILLA}{}", "0".repeat(64));
        let authorization = parse_authorization(&text).unwrap();
        for extra in [
            ("x-amz-target", "T"),
            ("content-type", "x"),
            ("host", "other"),
            ("x-amz-date", "x"),
        ] {
            let headers = [HEADERS[0], HEADERS[1], extra];
            let answer = check_scope(
                &request("GET", &headers),
                &authorization,
                NOW,
                &["us-east-1"],
                "service",
            );
            assert!(
                matches!(answer, Err(SignatureError::Incomplete(_))),
                "{extra:?}: {answer:?}"
            );
        }
        let missing = check_scope(
            &request("GET", &HEADERS[..1]),
            &authorization,
            NOW,
            &["us-east-1"],
            "service",
        );
        assert!(matches!(missing, Err(SignatureError::Incomplete(_))));
    }

    #[test]
    fn authorization_headers_that_are_not_exact_are_refused() {
        let good = format!("{VANILLA}{}", "a".repeat(64));
        assert!(parse_authorization(&good).is_ok());
        for (from, to) in [
            ("AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA512 "),
            ("host;x-amz-date", "x-amz-date;host"),
            ("host;x-amz-date", "host;host"),
            ("host;x-amz-date", "Host;x-amz-date"),
            ("host;x-amz-date", ""),
            ("/aws4_request", ""),
            ("/aws4_request", "/aws5_request"),
            ("20150830", "2015083"),
            ("Credential=", "Credential"),
            ("Credential=", "Token="),
            ("SignedHeaders=host", "Signature=host"),
            ("aaaa", "AAAA"),
            ("aaaa", "aaa"),
        ] {
            let edited = good.replacen(from, to, 1);
            assert!(
                matches!(parse_authorization(&edited), Err(SignatureError::Incomplete(_))),
                "{edited}"
            );
        }
        let long = format!("{good},{}", " ".repeat(MAX_AUTHORIZATION));
        assert!(parse_authorization(&long).is_err());
    }

    #[test]
    fn dates_count_as_the_calendar_does() {
        assert_eq!(parse_amz_date("19700101T000000Z"), Some(0));
        assert_eq!(parse_amz_date("20150830T123600Z"), Some(NOW));
        assert_eq!(parse_amz_date("20240229T235959Z"), Some(1_709_251_199_000));
        for bad in [
            "",
            "20150830T123600",
            "20151330T123600Z",
            "20150832T123600Z",
            "2015083OT123600Z",
            "+2015830T123600Z",
        ] {
            assert_eq!(parse_amz_date(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_prints_back(text in ".{0,200}") {
            let _ = parse_authorization(&text);
            let _ = parse_amz_date(&text);
        }
    }
}
