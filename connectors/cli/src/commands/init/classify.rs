//! Which fields look like something to seal: by their names, and by what their values look like.
//!
//! Only verdicts leave this file, never a value.

use std::net::IpAddr;

/// What a field seems to hold. The order is that of certainty when values and names disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Card,
    Iban,
    Email,
    Secret,
    IpAddress,
    Phone,
    BirthDate,
    NationalId,
    Address,
    PersonName,
}

impl Kind {
    /// As the proposal names it.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Card => "card number",
            Self::Iban => "IBAN",
            Self::Email => "e-mail address",
            Self::Secret => "secret or token",
            Self::IpAddress => "IP address",
            Self::Phone => "phone number",
            Self::BirthDate => "date of birth",
            Self::NationalId => "national identifier",
            Self::Address => "postal address",
            Self::PersonName => "name of a person",
        }
    }

    /// The ACL that such fields are proposed under.
    pub(crate) fn acl(self) -> &'static str {
        match self {
            Self::Card | Self::Iban => "payment",
            Self::Secret => "secrets",
            _ => "personal",
        }
    }

    /// Whether lengths give the value away, so that padding is worth its bytes.
    pub(crate) fn pad_to(self) -> Option<u32> {
        matches!(self, Self::Card | Self::Iban | Self::PersonName).then_some(32)
    }
}

/// A question to a value, and what a yes means.
type Test = (fn(&str) -> bool, Kind);

/// What the text of a value looks like.
pub(super) fn kind_of_value(text: &str) -> Option<Kind> {
    if text.len() > 8192 {
        return None;
    }
    let tests: [Test; 6] = [
        (is_card, Kind::Card),
        (is_iban, Kind::Iban),
        (is_email, Kind::Email),
        (is_secret, Kind::Secret),
        (|text| text.parse::<IpAddr>().is_ok(), Kind::IpAddress),
        (is_phone, Kind::Phone),
    ];
    tests.into_iter().find(|(test, _)| test(text)).map(|(_, kind)| kind)
}

fn is_card(text: &str) -> bool {
    let digits: Vec<u8> = text.bytes().filter(|b| !matches!(b, b' ' | b'-')).collect();
    let shaped = (13..=19).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    // Major industry identifiers of banks, travel and merchandise: others are rarely cards.
    shaped && (b'2'..=b'6').contains(&digits[0]) && luhn(&digits)
}

fn luhn(digits: &[u8]) -> bool {
    let value = |(n, digit): (usize, &u8)| {
        let digit = u32::from(digit - b'0') * if n % 2 == 1 { 2 } else { 1 };
        digit / 10 + digit % 10
    };
    digits
        .iter()
        .rev()
        .enumerate()
        .map(value)
        .sum::<u32>()
        .is_multiple_of(10)
}

/// ISO 13616: country, check digits, and the remainder of 97.
fn is_iban(text: &str) -> bool {
    let compact: Vec<u8> = text.bytes().filter(|b| *b != b' ').collect();
    let shaped = (15..=34).contains(&compact.len())
        && compact[..2].iter().all(u8::is_ascii_uppercase)
        && compact[2..4].iter().all(u8::is_ascii_digit)
        && compact.iter().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    let digits = |b: &u8| {
        if b.is_ascii_digit() {
            u32::from(b - b'0')
        } else {
            u32::from(b - b'A') + 10
        }
    };
    shaped
        && compact[4..]
            .iter()
            .chain(&compact[..4])
            .map(digits)
            .fold(0, |rest, d| (rest * if d > 9 { 100 } else { 10 } + d) % 97)
            == 1
}

fn is_email(text: &str) -> bool {
    let Some((mailbox, domain)) = text.rsplit_once('@') else {
        return false;
    };
    let labels = domain.split('.').count();
    let plain = |part: &str| {
        !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || matches!(c, '/' | ':' | '"' | ','))
    };
    plain(mailbox) && labels >= 2 && domain.split('.').all(plain)
}

/// International form, or clearly grouped.
fn is_phone(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    text.starts_with('+')
        && (8..=15).contains(&digits)
        && text
            .bytes()
            .skip(1)
            .all(|b| b.is_ascii_digit() || b" -()./".contains(&b))
}

fn is_secret(text: &str) -> bool {
    let prefixes = [
        "eyJ",
        "sk_live_",
        "rk_live_",
        "ghp_",
        "gho_",
        "github_pat_",
        "glpat-",
        "xoxb-",
        "xoxp-",
        "AKIA",
        "ASIA",
        "Bearer ",
        "Basic ",
    ];
    let private = text.contains("-----BEGIN ") && text.contains("PRIVATE KEY");
    private || (text.len() >= 16 && prefixes.iter().any(|prefix| text.starts_with(prefix)))
}

/// What a member of that name, inside a member named `parent`, usually holds.
pub(super) fn kind_of_name(name: &str, parent: Option<&str>) -> Option<Kind> {
    let words = words(name);
    let has = |word: &str| words.iter().any(|w| w == word);
    let ends = |tail: &[&str]| words.ends_with(&tail.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
    let whole = words.join("");
    let is = |names: &[&str]| names.contains(&whole.as_str());
    if is(&["cardnumber", "creditcard", "ccnumber", "pan", "cvv", "cvc"]) {
        return Some(Kind::Card);
    }
    if has("iban") || is(&["accountnumber", "bankaccount"]) {
        return Some(Kind::Iban);
    }
    if has("email") || has("mail") && !has("sent") || is(&["emailaddress"]) {
        return Some(Kind::Email);
    }
    if [
        "password",
        "passwd",
        "secret",
        "authorization",
        "cookie",
        "apikey",
        "passphrase",
    ]
    .iter()
    .any(|w| has(w))
        || ends(&["api", "key"])
        || ends(&["token"])
        || ends(&["private", "key"])
    {
        return Some(Kind::Secret);
    }
    if has("ip") || ends(&["ip", "address"]) || is(&["remoteaddr", "clientaddr", "xforwardedfor", "ipaddress"]) {
        return Some(Kind::IpAddress);
    }
    if has("phone")
        || has("mobile") && words.len() == 1
        || has("telephone")
        || is(&["tel", "fax", "msisdn", "mobilenumber"])
    {
        return Some(Kind::Phone);
    }
    if has("birthday") || has("birthdate") || has("dob") || has("birth") {
        return Some(Kind::BirthDate);
    }
    if is(&[
        "ssn",
        "nationalid",
        "taxid",
        "passport",
        "passportnumber",
        "socialsecuritynumber",
        "nino",
        "pesel",
        "dni",
    ]) {
        return Some(Kind::NationalId);
    }
    if has("street")
        || is(&[
            "address",
            "addressline",
            "addressline1",
            "addressline2",
            "postaladdress",
            "homeaddress",
        ])
    {
        return Some(Kind::Address);
    }
    let of_person = parent.is_some_and(is_person) || words.first().is_some_and(|first| is_person(first));
    let named = is(&[
        "firstname",
        "lastname",
        "fullname",
        "surname",
        "givenname",
        "familyname",
        "cardholder",
        "cardholdername",
    ]);
    (named || of_person && (has("name") || has("username"))).then_some(Kind::PersonName)
}

fn is_person(word: &str) -> bool {
    let people = [
        "user",
        "customer",
        "person",
        "client",
        "patient",
        "employee",
        "contact",
        "holder",
        "payer",
        "recipient",
        "buyer",
        "subscriber",
        "member",
    ];
    let word = word.to_ascii_lowercase();
    people.contains(&word.as_str()) || people.contains(&word.trim_end_matches('s'))
}

/// `clientIP`, `client_ip`, `client-ip` are all `client`, `ip`.
fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut last_was_lower = false;
    let mut open = false;
    for c in name.chars().take(128) {
        if !c.is_alphanumeric() {
            open = false;
            last_was_lower = false;
            continue;
        }
        if c.is_uppercase() && last_was_lower {
            open = false;
        }
        last_was_lower = c.is_lowercase() || c.is_numeric();
        match words.last_mut() {
            Some(word) if open => word.extend(c.to_lowercase()),
            _ => words.push(c.to_lowercase().collect()),
        }
        open = true;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_tell_what_they_are() {
        for (text, kind) in [
            ("4111 1111 1111 1111", Some(Kind::Card)),
            ("4111111111111112", None),
            ("DE89370400440532013000", Some(Kind::Iban)),
            ("GB82 WEST 1234 5698 7654 32", Some(Kind::Iban)),
            ("zoë@example.org", Some(Kind::Email)),
            ("see @home", None),
            ("https://x@example.org/", None),
            ("2001:db8::1", Some(Kind::IpAddress)),
            ("1.2.3", None),
            ("+49 30 901820", Some(Kind::Phone)),
            ("eyJhbGciOiJFZERTQSJ9.e30.c2ln", Some(Kind::Secret)),
            ("2026-01-01T00:00:00Z", None),
        ] {
            assert_eq!(kind_of_value(text), kind, "{text}");
        }
    }

    #[test]
    fn names_tell_what_they_hold() {
        for (parent, name, kind) in [
            (None, "clientIP", Some(Kind::IpAddress)),
            (None, "e-mail", Some(Kind::Email)),
            (None, "zip", None),
            (None, "shipped", None),
            (Some("user"), "name", Some(Kind::PersonName)),
            (Some("host"), "name", None),
            (None, "lastName", Some(Kind::PersonName)),
            (None, "x-api-key", Some(Kind::Secret)),
            (None, "access_token", Some(Kind::Secret)),
            (None, "tokens_used", None),
            (None, "dateOfBirth", Some(Kind::BirthDate)),
            (Some("customers"), "username", Some(Kind::PersonName)),
        ] {
            assert_eq!(kind_of_name(name, parent), kind, "{name}");
        }
    }
}
