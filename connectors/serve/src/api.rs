//! What callers send: the types of requests, of which the OpenAPI document is made, and their parser. No I/O, and nothing of
//! the server: what only reads requests links neither HTTP nor TLS.

use std::borrow::Cow;
use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use schemars::{JsonSchema, Schema, json_schema};
use sealflow::acl::MAX_PURPOSE_BYTES;
use sealflow::jose::rsa::RsaPublicJwk;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::problem::{Code, Problem};

/// All of `keys` together, in base64.
const MAX_ALL_KEYS: usize = 256 * 1024;
/// The longest header value of `keys`, in base64. A header of 64 envelopes of 450 bytes has 40 KiB of it.
const MAX_KEYS_BYTES: usize = 1 << 20;
/// The most of them.
const MAX_KEYS: usize = 64;
/// The longest name of a dataset, as policies have it.
const MAX_DATASET_BYTES: usize = 128;
/// The longest label, in characters.
const MAX_LABEL_CHARS: usize = 256;
/// The most different labels of one request: each may become a line of the audit log.
const MAX_LABELS: usize = 256;

/// Sealed values, or whole JSON records with sealed values in them, of one dataset: either `values` or `records`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "OpenRequest", transform = either)]
pub(crate) struct RawRequest<'a> {
    /// The dataset, whose newest policy counts.
    #[schemars(schema_with = "dataset_schema")]
    dataset: String,
    /// What the data is read for, where the policy asks.
    #[serde(default, deserialize_with = "present")]
    #[schemars(schema_with = "purpose_schema")]
    purpose: Option<String>,
    /// Single sealed values.
    #[serde(default, deserialize_with = "present")]
    #[schemars(with = "Vec<RawSealed>", length(min = 1))]
    values: Option<Vec<RawSealed<'a>>>,
    /// JSON objects as they were read. What is not sealed comes back byte for byte.
    #[serde(borrow, default, deserialize_with = "present")]
    #[schemars(with = "Vec<serde_json::Map<String, serde_json::Value>>", length(min = 1))]
    records: Option<Vec<&'a RawValue>>,
    /// Values of the records' `sealflow-keys` headers in base64, each once: all count for all records. Needed only where
    /// envelopes are not in the catalogue.
    #[serde(default, deserialize_with = "present")]
    #[schemars(schema_with = "keys_schema")]
    keys: Option<Vec<String>>,
    /// An RSA public key (JWK) of the caller. Each value that is opened is answered as a JWE that only its private half opens; the proof
    /// of who asks has to commit to its thumbprint.
    #[serde(borrow, default, deserialize_with = "present")]
    #[schemars(schema_with = "jwk_schema")]
    seal_to: Option<&'a RawValue>,
    /// 32 random bytes of the caller, in base64url, with `seal_to`: values of enclave columns are then opened by the enclave, whose
    /// signature and evidence repeat them.
    #[serde(default, deserialize_with = "present")]
    #[schemars(schema_with = "nonce_schema")]
    nonce: Option<String>,
}

/// What a caller sends along to know the answer by.
pub type Nonce = [u8; 32];

/// One sealed value.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "SealedValue")]
pub(crate) struct RawSealed<'a> {
    /// The column's label. The value then has to prove it; values of a domain need it.
    #[serde(default, deserialize_with = "present")]
    #[schemars(schema_with = "label_schema")]
    label: Option<String>,
    /// `sf1.…`
    #[serde(borrow)]
    #[schemars(with = "String")]
    value: Cow<'a, str>,
}

/// A member that is there is not null: what is left out is left out.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn either(schema: &mut Schema) {
    let one_of = serde_json::json!([
        { "required": ["values"], "properties": { "records": false, "keys": false } },
        { "required": ["records"], "properties": { "values": false } },
    ]);
    schema.insert("oneOf".to_owned(), one_of);
    schema.insert(
        "dependentRequired".to_owned(),
        serde_json::json!({ "nonce": ["seal_to"] }),
    );
}

fn nonce_schema(_: &mut schemars::SchemaGenerator) -> Schema {
    // Canonical: the bits that the last character has too many are zero.
    json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$" })
}

fn dataset_schema(_: &mut schemars::SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": MAX_DATASET_BYTES, "pattern": "^[A-Za-z0-9._-]+$" })
}

fn purpose_schema(_: &mut schemars::SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": MAX_PURPOSE_BYTES, "pattern": "^[A-Za-z0-9._-]+$" })
}

fn label_schema(_: &mut schemars::SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "minLength": 1, "maxLength": MAX_LABEL_CHARS })
}

/// The members that a key may have: those that WebCrypto and JOSE libraries write.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)] // read for their names and types only
struct RawJwk<'a> {
    kty: &'a str,
    n: &'a str,
    e: &'a str,
    alg: Option<&'a str>,
    kid: Option<Cow<'a, str>>,
    #[serde(rename = "use")]
    usage: Option<&'a str>,
    ext: Option<bool>,
    key_ops: Option<Vec<&'a str>>,
}

fn jwk_schema(_: &mut schemars::SchemaGenerator) -> Schema {
    // Of 2048, 3072 and 4096 bits: the first bit is one, and so is the last; bits that the last character has too many are zero.
    let n = "^[g-z0-9_-]([A-Za-z0-9_-]{340}[Qw]|[A-Za-z0-9_-]{510}[BDFHJLNPRTVXZbdfhjlnprtvxz13579_]|[A-Za-z0-9_-]{681}[EMUcks08])$";
    json_schema!({
        "type": "object",
        "required": ["kty", "n", "e"],
        "additionalProperties": false,
        "properties": {
            "kty": { "type": "string", "const": "RSA" },
            "n": { "type": "string", "pattern": n },
            "e": { "type": "string", "const": "AQAB" },
            "alg": { "type": "string", "const": "RSA-OAEP-256" },
            "kid": { "type": "string", "maxLength": 256 },
            "use": { "type": "string", "const": "enc" },
            "ext": { "type": "boolean" },
            "key_ops": { "type": "array", "minItems": 1, "maxItems": 2, "items": { "type": "string", "enum": ["encrypt", "wrapKey"] } },
        },
    })
}

fn keys_schema(_: &mut schemars::SchemaGenerator) -> Schema {
    // Canonical: the bits that the last characters have too many are zero.
    let base64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{4}|[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)$";
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_KEYS,
        "items": { "type": "string", "contentEncoding": "base64", "pattern": base64 },
    })
}

/// How much one request may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// Records.
    pub records: usize,
    /// Single values.
    pub values: usize,
}

/// A request that was read.
#[derive(Debug)]
#[non_exhaustive]
pub struct OpenRequest<'a> {
    /// The dataset.
    pub dataset: String,
    /// What it is read for.
    pub purpose: Option<String>,
    /// The key to which the answer is sealed.
    pub seal_to: Option<RsaPublicJwk>,
    /// What the enclave's answer repeats.
    pub nonce: Option<Nonce>,
    /// What is to be opened.
    pub what: What<'a>,
}

/// What is to be opened.
#[derive(Debug)]
pub enum What<'a> {
    /// Single values.
    Values(Vec<Sealed<'a>>),
    /// Records.
    Records {
        /// JSON objects, as they are spelled in the request.
        json: Vec<&'a str>,
        /// Values of `sealflow-keys` headers.
        keys: Vec<Vec<u8>>,
    },
}

/// One sealed value.
#[derive(Debug)]
#[non_exhaustive]
pub struct Sealed<'a> {
    /// The label that it must prove.
    pub label: Option<String>,
    /// Its text.
    pub value: Cow<'a, str>,
}

impl OpenRequest<'_> {
    /// How many values are asked for, as far as that can be said before records are taken apart.
    #[must_use]
    pub fn least_values(&self) -> usize {
        match &self.what {
            What::Values(values) => values.len(),
            What::Records { json, .. } => json.len(),
        }
    }
}

/// Reads the body of `POST /v1/open`.
///
/// Members that stand twice are refused, those inside of records excepted: there the columns' locator finds every
/// occurrence. Nesting is not followed here, so its depth costs nothing; a record that is nested beyond what the locator
/// takes (128) is withheld.
///
/// # Errors
/// [`Problem`], which holds no part of the body.
pub fn parse(body: &[u8], most: Most) -> Result<OpenRequest<'_>, Problem> {
    let text = std::str::from_utf8(body)
        .map_err(|error| bad_json(format!("the body is not UTF-8 from byte {} on", error.valid_up_to())))?;
    let raw: RawRequest<'_> = serde_json::from_str(text).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        // Messages of the parser repeat what they found, so only their place is shown.
        if error.is_data() {
            bad_request(format!(
                "the body is not a request: a member is missing, unknown, repeated or of another type, at {place}"
            ))
        } else {
            bad_json(format!("the body is not JSON, at {place}"))
        }
    })?;
    is_word(&raw.dataset, MAX_DATASET_BYTES, "dataset")?;
    if let Some(purpose) = &raw.purpose {
        is_word(purpose, MAX_PURPOSE_BYTES, "purpose")?;
    }
    let what = match (raw.values, raw.records) {
        (Some(values), None) => {
            if raw.keys.is_some() {
                return Err(bad_request(
                    "keys go with records; envelopes of single values come from the catalogue",
                ));
            }
            What::Values(labelled(values, most.values)?)
        }
        (None, Some(records)) => What::Records {
            json: objects(records, most.records)?,
            keys: headers(raw.keys.as_deref())?,
        },
        _ => return Err(bad_request("either values or records")),
    };
    let seal_to = match raw.seal_to {
        Some(jwk) => {
            let is_plain = serde_json::from_str::<RawJwk<'_>>(jwk.get()).is_ok();
            let key = RsaPublicJwk::from_json(jwk.get().as_bytes());
            let key = key.map_err(|error| bad_request(format!("seal_to: {error}")))?;
            if !is_plain {
                return Err(bad_request("seal_to: unknown members, or members of another type"));
            }
            Some(key)
        }
        None => None,
    };
    let nonce = raw.nonce.as_deref().map(nonce).transpose()?;
    if nonce.is_some() && seal_to.is_none() {
        return Err(bad_request("a nonce goes with seal_to"));
    }
    Ok(OpenRequest {
        seal_to,
        nonce,
        dataset: raw.dataset,
        purpose: raw.purpose,
        what,
    })
}

fn nonce(text: &str) -> Result<Nonce, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok();
    let nonce = bytes.and_then(|bytes| Nonce::try_from(bytes).ok());
    nonce.ok_or_else(|| bad_request("nonce is not 32 bytes in base64url"))
}

fn labelled(values: Vec<RawSealed<'_>>, most: usize) -> Result<Vec<Sealed<'_>>, Problem> {
    check_count(values.len(), most, "values")?;
    let labels: HashSet<&str> = values.iter().filter_map(|value| value.label.as_deref()).collect();
    check_count(labels.len().max(1), MAX_LABELS, "labels")?;
    let mut labelled = Vec::with_capacity(values.len());
    for (n, RawSealed { label, value }) in values.into_iter().enumerate() {
        let is_label = |label: &str| (1..=MAX_LABEL_CHARS).contains(&label.chars().count());
        if label.as_deref().is_some_and(|label| !is_label(label)) {
            return Err(bad_request(format!("values[{n}].label is not a label")));
        }
        labelled.push(Sealed { label, value });
    }
    Ok(labelled)
}

fn objects(records: Vec<&RawValue>, most: usize) -> Result<Vec<&str>, Problem> {
    check_count(records.len(), most, "records")?;
    let json: Vec<&str> = records.into_iter().map(RawValue::get).collect();
    match json.iter().position(|record| !record.starts_with('{')) {
        None => Ok(json),
        Some(n) => Err(bad_request(format!("records[{n}] is not an object"))),
    }
}

fn headers(keys: Option<&[String]>) -> Result<Vec<Vec<u8>>, Problem> {
    let Some(keys) = keys else { return Ok(Vec::new()) };
    check_count(keys.len(), MAX_KEYS, "keys")?;
    // Each of them is looked at for each record.
    if keys.iter().map(String::len).sum::<usize>() > MAX_ALL_KEYS {
        let detail = format!("all keys together are longer than {MAX_ALL_KEYS} bytes");
        return Err(Problem::new(
            Code::TooMany,
            detail,
            "send the records in several requests",
        ));
    }
    let mut headers = Vec::with_capacity(keys.len());
    for (n, text) in keys.iter().enumerate() {
        let is_short = (1..=MAX_KEYS_BYTES).contains(&text.len());
        match STANDARD.decode(text) {
            Ok(header) if is_short => headers.push(header),
            _ => return Err(bad_request(format!("keys[{n}] is not base64 of a header"))),
        }
    }
    Ok(headers)
}

fn check_count(count: usize, most: usize, what: &str) -> Result<(), Problem> {
    if count == 0 {
        return Err(bad_request(format!("{what} is empty")));
    }
    if count > most {
        let detail = format!("{count} {what}, and one request may have {most}");
        return Err(Problem::new(Code::TooMany, detail, "send them in several requests"));
    }
    Ok(())
}

/// As policies spell names and purposes.
fn is_word(text: &str, most: usize, what: &str) -> Result<(), Problem> {
    let is_plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if is_plain && (1..=most).contains(&text.len()) {
        return Ok(());
    }
    Err(bad_request(format!(
        "{what} is not 1 to {most} of A-Z, a-z, 0-9, dot, dash and underscore"
    )))
}

fn bad_json(detail: impl Into<String>) -> Problem {
    Problem::new(Code::MalformedJson, detail, "send one JSON document in UTF-8")
}

fn bad_request(detail: impl Into<String>) -> Problem {
    Problem::new(
        Code::MalformedRequest,
        detail,
        "GET /v1/openapi.json says what a request looks like",
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: Most = Most { records: 3, values: 3 };

    fn code(body: &str) -> Code {
        match parse(body.as_bytes(), MOST) {
            Ok(request) => panic!("{body}: {request:?}"),
            Err(problem) => problem.code,
        }
    }

    #[test]
    fn values_and_records_are_taken_as_they_are_spelled() {
        let body = r#"{"dataset":"d","purpose":"fraud","values":[{"value":"sf1.\u0061","label":"a b"},{"value":""}]}"#;
        let request = parse(body.as_bytes(), MOST).unwrap();
        let What::Values(values) = request.what else { panic!() };
        assert_eq!((values[0].label.as_deref(), &*values[0].value), (Some("a b"), "sf1.a"));
        assert_eq!((values[1].label.as_deref(), &*values[1].value), (None, ""));
        let record = r#"{ "a" : 1.50, "a":"\u0063", "b":[{}] }"#;
        let body = format!(r#"{{"records":[ {record} ,{{}}],"dataset":"d","keys":["AAEC","AA=="]}}"#);
        let request = parse(body.as_bytes(), MOST).unwrap();
        let What::Records { json, keys } = request.what else {
            panic!()
        };
        assert_eq!(json, [record, "{}"]);
        assert_eq!(keys, [vec![0, 1, 2], vec![0]]);
    }

    #[test]
    fn what_is_no_request_is_refused_without_repeating_any_of_it() {
        for body in [
            r#"{"dataset":"d","values":[{"value":"x"}],"dataset":"e"}"#,
            r#"{"dataset":"d","values":[{"value":"x"}],"\u0064ataset":"e"}"#,
            r#"{"dataset":"d","values":[{"value":"x","value":"y"}]}"#,
            r#"{"dataset":"d","values":[{"value":"x"}],"records":[{}]}"#,
            r#"{"dataset":"d"}"#,
            r#"{"dataset":"d","values":[]}"#,
            r#"{"dataset":"d","values":null,"records":[{}]}"#,
            r#"{"dataset":"d","values":[{"value":"x"}],"purpose":null}"#,
            r#"{"dataset":"d","values":[{"value":1}]}"#,
            r#"{"dataset":"d","values":[{"value":"x","label":""}]}"#,
            r#"{"dataset":"d","values":[{"value":"x"}],"more":1}"#,
            r#"{"dataset":"d","values":[{"value":"x"}],"keys":["AAEC"]}"#,
            r#"{"dataset":"../d","values":[{"value":"x"}]}"#,
            r#"{"dataset":"d","records":[1]}"#,
            r#"{"dataset":"d","records":[[]]}"#,
            r#"{"dataset":"d","records":[{},{}],"keys":[]}"#,
            r#"{"dataset":"d","records":[{},{},{}],"keys":["AAEC",null]}"#,
            r#"{"dataset":"d","records":[{}],"keys":["AB=="]}"#,
            r#"{"dataset":"d","records":[{}],"keys":["AAE"]}"#,
            r#"{"dataset":"d","records":[{}],"nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#,
            "[]",
            "1",
        ] {
            assert_eq!(code(body), Code::MalformedRequest, "{body}");
        }
        for body in [
            "",
            "{",
            r#"{"dataset":"d","records":[{}]}x"#,
            r#"{"dataset":"d","records":[{"a":01}]}"#,
        ] {
            assert_eq!(code(body), Code::MalformedJson, "{body}");
        }
        assert_eq!(
            parse(b"{\"dataset\":\"\xff\"}", MOST).unwrap_err().code,
            Code::MalformedJson
        );
        assert_eq!(code(r#"{"dataset":"d","records":[{},{},{},{}]}"#), Code::TooMany);
        let problem = parse(
            br#"{"dataset":"d","values":[{"value":"x"}],"canary-member":"canary-value"}"#,
            MOST,
        );
        assert!(!format!("{:?}", problem.unwrap_err()).contains("canary"));
    }

    #[test]
    fn all_keys_together_have_a_cap_below_what_each_may_have() {
        let body = |keys: usize| {
            let key = format!("\"{}\"", "A".repeat(8 * 1024));
            format!(
                r#"{{"dataset":"d","records":[{{}}],"keys":[{}]}}"#,
                vec![key; keys].join(",")
            )
        };
        let most = body(MAX_ALL_KEYS / (8 * 1024));
        let What::Records { keys, .. } = parse(most.as_bytes(), MOST).unwrap().what else {
            panic!()
        };
        assert_eq!((keys.len(), keys[0].len()), (32, 6 * 1024));
        assert_eq!(code(&body(33)), Code::TooMany);
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
        let body = format!(r#"{{"dataset":"d","records":[{deep}]}}"#);
        assert!(parse(body.as_bytes(), MOST).is_ok());
        let _ = parse("[".repeat(100_000).as_bytes(), MOST);
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_is_taken_is_within_its_limits(body in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(body.as_bytes(), MOST);
            let _ = parse(&bytes, MOST);
        }

        #[test]
        fn records_come_through_byte_for_byte(json in r#"\{("[a-z]{0,3}": ?("[ -!#-\[\]-~]{0,8}"|[0-9]\.50|null))?\}"#) {
            let body = format!(r#"{{"dataset":"d","records":[{json}]}}"#);
            let request = parse(body.as_bytes(), MOST).unwrap();
            let What::Records { json: records, .. } = request.what else {
                panic!()
            };
            prop_assert_eq!(records, [json.as_str()]);
        }
    }
}
