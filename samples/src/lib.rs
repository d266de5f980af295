//! Sample log records of about 1 KB, web and payment, the same for the same seed for ever; invented people,
//! documentation addresses, test card numbers.
//!
//! Record `n` of a seed can be made alone ([`record`]), so that a test that finds an id in a topic can rebuild
//! the original and compare every byte.

mod number;
mod words;

use std::fmt::Write as _;

use number::SplitMix64;
use words::{
    AGENTS, BRANDS, CITIES, COUNTRIES, CURRENCIES, DOMAINS, FIRST_NAMES, LAST_NAMES, NOTES, PATHS, SKUS, TENANTS,
};

/// The policy that fits these records, as it stands in `samples/policy.yaml`.
pub const POLICY_YAML: &str = include_str!("../policy.yaml");
/// The columns of [`POLICY_YAML`]: one at the top, one nested, one with letters of many scripts, one in an array.
pub const SEALED_PATHS: [&str; 4] = ["client_ip", "user.email", "user.name", "payment.cards[*].number"];

/// 2026-01-01T00:00:00Z, the time of record 0.
const START_SECS: u64 = 1_767_225_600;

/// One sample record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleRecord {
    /// Its number, from 0.
    pub n: u64,
    /// Its mark, `r-` and the number in ten digits: the member `id` of the value. Clear in every output.
    pub id: String,
    /// The Kafka key: the customer, who keeps to one partition. Clear.
    pub key: Vec<u8>,
    /// The JSON value.
    pub value: Vec<u8>,
    /// What the sealed columns hold in this record, decoded: none of these strings may occur in an output.
    pub secrets: Vec<String>,
}

/// The first `n` records of `seed`.
pub fn generate(seed: u64, n: u64) -> impl Iterator<Item = SampleRecord> {
    (0..n).map(move |n| record(seed, n))
}

/// Record `n` of `seed`.
#[must_use]
pub fn record(seed: u64, n: u64) -> SampleRecord {
    let mut rng = SplitMix64::for_record(seed, n);
    let customer = rng.below(20_000);
    let person = Person::new(customer, n, &mut rng);
    let ip = address(&mut rng);
    let id = format!("r-{n:010}");
    let mut secrets = vec![ip.clone(), person.name.clone()];
    secrets.extend(person.email.clone());

    let mut json = String::with_capacity(1280);
    let tenant = rng.pick(&TENANTS);
    put(
        &mut json,
        format_args!(
            r#"{{"id":"{id}","tenant_id":"{tenant}","time":"{}","#,
            time(n, &mut rng)
        ),
    );
    put(
        &mut json,
        format_args!(
            r#""kind":"{}","client_ip":"{ip}","#,
            if is_payment(n) { "payment" } else { "web" }
        ),
    );
    person.write(&mut json);
    http(&mut json, &mut rng);
    if is_payment(n) {
        payment(&mut json, n, &mut rng, &mut secrets);
    } else {
        web(&mut json, &mut rng);
    }
    trailer(&mut json, n, &mut rng);
    json.push('}');
    SampleRecord {
        n,
        id,
        key: format!("c-{customer:06}").into_bytes(),
        value: json.into_bytes(),
        secrets,
    }
}

/// Three of five records are payments.
fn is_payment(n: u64) -> bool {
    n % 5 < 3
}

/// Appends text; writing into a `String` cannot fail.
fn put(json: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = json.write_fmt(text);
}

/// Who did it: the customer's account, some of it absent or null as in real logs.
struct Person {
    /// Account number, beyond 2^53 so that a float64 would not hold it.
    account: u64,
    name: String,
    email: Option<String>,
    locale: &'static str,
    country: &'static str,
}

impl Person {
    fn new(customer: u64, n: u64, rng: &mut SplitMix64) -> Self {
        let first = FIRST_NAMES[rng.index(FIRST_NAMES.len())];
        let last = LAST_NAMES[rng.index(LAST_NAMES.len())];
        let (country, locale) = COUNTRIES[rng.index(COUNTRIES.len())];
        let mailbox = format!("{}.{}{customer}", first.1, last.1);
        // Guests have no address: null stays null.
        let email = (n % 17 != 16).then(|| format!("{mailbox}@{}", rng.pick(&DOMAINS)));
        Self {
            account: 9_007_199_254_740_993 + customer * 2,
            name: format!("{} {}", first.0, last.0),
            email,
            locale,
            country,
        }
    }

    fn write(&self, json: &mut String) {
        let email = self
            .email
            .as_ref()
            .map_or_else(|| "null".to_owned(), |email| format!(r#""{email}""#));
        put(
            json,
            format_args!(
                r#""user":{{"account":{},"email":{email},"name":"{}","#,
                self.account, self.name
            ),
        );
        put(
            json,
            format_args!(
                r#""locale":"{}","country":"{}","consents":["terms","mail"]}},"#,
                self.locale, self.country
            ),
        );
    }
}

/// An address of the blocks that are kept for documentation (RFC 5737, RFC 3849).
fn address(rng: &mut SplitMix64) -> String {
    let last = rng.between(1, 254);
    match rng.below(4) {
        0 => format!("192.0.2.{last}"),
        1 => format!("198.51.100.{last}"),
        2 => format!("203.0.113.{last}"),
        _ => format!(
            "2001:db8:{:x}:{:x}::{last:x}",
            rng.between(0x100, 0xffff),
            rng.between(0x100, 0xffff)
        ),
    }
}

/// RFC 3339 with milliseconds; a record each 7 ms or so, wrapping after a year.
fn time(n: u64, rng: &mut SplitMix64) -> String {
    let millis = n * 7 + rng.below(5);
    let secs = START_SECS + millis / 1000 % (365 * 86_400);
    let day = (secs - START_SECS) / 86_400;
    let (month, day) = month_and_day(day);
    let of_day = secs % 86_400;
    format!(
        "2026-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:03}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        millis % 1000
    )
}

/// Month and day (from 1) of a day (from 0) of 2026.
fn month_and_day(mut day: u64) -> (usize, u64) {
    const LENGTHS: [u64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    for (month, length) in LENGTHS.iter().enumerate() {
        if day < *length {
            return (month + 1, day + 1);
        }
        day -= length;
    }
    (12, 31)
}

fn http(json: &mut String, rng: &mut SplitMix64) {
    let method = rng.pick(&["GET", "GET", "GET", "POST", "PUT"]);
    let path = rng.pick(&PATHS);
    let status = rng.pick(&["200", "200", "200", "201", "302", "404", "503"]);
    put(
        json,
        format_args!(r#""http":{{"method":"{method}","path":"{path}","status":{status},"#),
    );
    put(
        json,
        format_args!(
            r#""bytes":{},"took_ms":{}.{:02},"#,
            rng.below(90_000),
            rng.below(900),
            rng.below(100)
        ),
    );
    put(
        json,
        format_args!(r#""user_agent":"{}","referer":null,"tls":true}},"#, rng.pick(&AGENTS)),
    );
}

fn payment(json: &mut String, n: u64, rng: &mut SplitMix64, secrets: &mut Vec<String>) {
    let (cents, currency) = (rng.between(99, 250_000), rng.pick(&CURRENCIES));
    put(
        json,
        format_args!(
            r#""payment":{{"order_id":"o-{:08}","amount":{}.{:02},"#,
            n * 3 + 11,
            cents / 100,
            cents % 100
        ),
    );
    put(
        json,
        format_args!(r#""currency":"{currency}","captured":{},"cards":["#, rng.below(9) != 0),
    );
    for card in 0..rng.between(1, 2) {
        let (brand, prefix, digits) = BRANDS[rng.index(BRANDS.len())];
        let number = number::card(prefix, digits, rng);
        let comma = if card == 0 { "" } else { "," };
        put(
            json,
            format_args!(
                r#"{comma}{{"number":"{number}","brand":"{brand}","expires":"{:02}/29"}}"#,
                rng.between(1, 12)
            ),
        );
        secrets.push(number);
    }
    put(
        json,
        format_args!(
            r#"],"risk":{{"score":{}e-3,"rules":["velocity","geo"]}},"items":["#,
            rng.below(1000)
        ),
    );
    for item in 0..rng.between(1, 3) {
        let comma = if item == 0 { "" } else { "," };
        let sku = rng.pick(&SKUS);
        put(
            json,
            format_args!(
                r#"{comma}{{"sku":"{sku}","count":{},"price":{}.{:02}}}"#,
                rng.between(1, 4),
                rng.below(300),
                rng.below(100)
            ),
        );
    }
    json.push_str("]},");
}

fn web(json: &mut String, rng: &mut SplitMix64) {
    put(
        json,
        format_args!(
            r#""payment":null,"session":{{"id":"{:016x}{:016x}","#,
            rng.next(),
            rng.next()
        ),
    );
    put(
        json,
        format_args!(
            r#""page_views":{},"scroll":0.{:03},"ab":{{"checkout":"{}","hero":"b"}},"#,
            rng.below(60),
            rng.below(1000),
            rng.pick(&["a", "b", "c"])
        ),
    );
    put(
        json,
        format_args!(
            r#""events":["load","scroll","{}"]}},"#,
            rng.pick(&["click", "submit", "leave"])
        ),
    );
}

/// What every service of the platform adds; its length varies so that records do.
fn trailer(json: &mut String, n: u64, rng: &mut SplitMix64) {
    let (city, lat, lon) = CITIES[rng.index(CITIES.len())];
    put(
        json,
        format_args!(
            r#""geo":{{"city":"{city}","lat":{lat},"lon":{lon},"accuracy_m":{}}},"#,
            rng.between(10, 5000)
        ),
    );
    put(
        json,
        format_args!(
            r#""trace":{{"trace_id":"{:016x}{:016x}","span_id":"{:016x}","sampled":{}}},"#,
            rng.next(),
            rng.next(),
            rng.next(),
            n.is_multiple_of(8)
        ),
    );
    put(
        json,
        format_args!(
            r#""host":{{"name":"edge-{:02}","zone":"eu-central-1{}","release":"2026.1.{}"}},"#,
            rng.below(40),
            rng.pick(&["a", "b", "c"]),
            rng.below(30)
        ),
    );
    put(json, format_args!(r#""note":"{}","#, rng.pick(&NOTES)));
    put(
        json,
        format_args!(
            r#""tags":["shop","{}"],"sequence":{},"parent":null"#,
            rng.pick(&["blue", "green"]),
            u64::MAX / 2 - n
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(record: &SampleRecord) -> serde_json::Value {
        serde_json::from_slice(&record.value).unwrap()
    }

    #[test]
    fn a_seed_gives_the_same_records_for_ever() {
        let stored = include_str!("../records.ndjson");
        let made: String = generate(7, 20)
            .map(|r| String::from_utf8(r.value).unwrap() + "\n")
            .collect();
        assert!(
            stored == made,
            "samples/records.ndjson is not generate(7, 20); the generator must not change"
        );
    }

    #[test]
    fn record_n_is_the_same_made_alone() {
        let all: Vec<_> = generate(3, 50).collect();
        assert_eq!(all[41], record(3, 41));
        assert_ne!(all[41].value, record(4, 41).value);
    }

    #[test]
    fn records_are_json_of_about_one_kilobyte() {
        let sizes: Vec<usize> = generate(1, 1000)
            .map(|r| {
                parsed(&r);
                r.value.len()
            })
            .collect();
        let mean = sizes.iter().sum::<usize>() / sizes.len();
        assert!((900..=1150).contains(&mean), "mean {mean}");
        assert!(sizes.iter().all(|size| (600..2000).contains(size)));
    }

    #[test]
    fn every_secret_occurs_exactly_in_the_sealed_columns() {
        for sample in generate(5, 500) {
            let mut value = parsed(&sample);
            value["client_ip"] = serde_json::Value::Null;
            value["user"]["email"] = serde_json::Value::Null;
            value["user"]["name"] = serde_json::Value::Null;
            for card in value["payment"]["cards"].as_array_mut().into_iter().flatten() {
                card["number"] = serde_json::Value::Null;
            }
            let rest = value.to_string() + &String::from_utf8(sample.key).unwrap();
            for secret in &sample.secrets {
                assert!(std::str::from_utf8(&sample.value).unwrap().contains(secret.as_str()));
                assert!(!rest.contains(secret.as_str()), "{secret} in {rest}");
            }
        }
    }

    #[test]
    fn card_numbers_pass_luhn() {
        for sample in generate(6, 300) {
            for card in parsed(&sample)["payment"]["cards"].as_array().into_iter().flatten() {
                assert!(number::luhn(card["number"].as_str().unwrap()));
            }
        }
    }

    #[test]
    fn records_hold_what_makes_json_hard() {
        let all: Vec<_> = generate(2, 200).map(|r| parsed(&r)).collect();
        assert!(all.iter().any(|r| r["user"]["email"].is_null()));
        assert!(all.iter().all(|r| r["user"]["account"].as_u64().unwrap() > 1 << 53));
        assert!(
            all.iter()
                .any(|r| r["payment"]["cards"].as_array().is_some_and(|c| c.len() > 1))
        );
        assert!(all.iter().any(|r| !r["user"]["name"].as_str().unwrap().is_ascii()));
        assert!(all.iter().any(|r| r["payment"].is_null()));
    }
}
