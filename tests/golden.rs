//! Golden files: what an old version wrote, this version opens (G10).

#![allow(clippy::unwrap_used)] // a broken golden file is a failed test

use std::collections::HashMap;

use sealflow::keys::Envelope;
use sealflow::seal::value::{read_text, write_text};
use sealflow::seal::{DomainKey, KeyId, OpenError, OpeningKey, PlainColumn, Plaintext, RowId, SealedValue};
use sealflow::secret::SecretBytes;

type Stanza<'a> = HashMap<&'a str, &'a str>;

fn stanzas(file: &str) -> Vec<Stanza<'_>> {
    file.split("---\n")
        .skip(1)
        .map(|text| text.lines().filter_map(|line| line.split_once(": ")).collect())
        .collect()
}

fn secret(stanza: &Stanza<'_>) -> SecretBytes {
    SecretBytes::new(hex::decode(stanza["secret"]).unwrap())
}

fn open(stanza: &Stanza<'_>) -> Result<Vec<u8>, OpenError> {
    let (mut sealed, mut out) = (Vec::new(), Vec::new());
    read_text(stanza["sealed"].as_bytes(), &mut sealed).map_err(|_| OpenError)?;
    match SealedValue::parse(&sealed).map_err(|_| OpenError)? {
        SealedValue::Randomised {
            key,
            column,
            nonce,
            ciphertext,
            tag,
        } => {
            assert_eq!(column.to_string(), stanza["column"]);
            let id = hex::decode(stanza["row-id"]).unwrap_or_default();
            let row = (stanza["row-path"] != "-").then_some(RowId {
                path: stanza["row-path"],
                id: &id,
            });
            let key = OpeningKey::from_unwrapped(&secret(stanza), key)?;
            key.opener(stanza["dataset"], stanza["label"])
                .open(nonce, ciphertext, tag, row, &mut out)?;
        }
        SealedValue::Deterministic { key, iv, ciphertext } => {
            DomainKey::new(&secret(stanza), stanza["domain"], key)?
                .opener()?
                .open(iv, ciphertext, &mut out)?;
        }
    }
    Ok(out)
}

#[test]
fn every_golden_sealed_value_opens_or_is_refused_as_its_header_says() {
    let stanzas = stanzas(include_str!("golden/sealed-values.txt"));
    assert_eq!(stanzas.len(), 44);
    for stanza in &stanzas {
        let opened = open(stanza);
        match stanza["expect"] {
            "opens" => {
                let plaintext = opened.unwrap();
                assert_eq!(hex::encode(&plaintext), stanza["plaintext"], "{}", stanza["name"]);
                assert!(Plaintext::decode(&plaintext).is_ok(), "{}", stanza["name"]);
            }
            "refused" => assert_eq!(opened, Err(OpenError), "{}", stanza["name"]),
            other => panic!("expect: {other}"),
        }
    }
}

#[test]
fn deterministic_golden_values_are_sealed_to_the_same_bytes_again() {
    let stanzas = stanzas(include_str!("golden/sealed-values.txt"));
    let domains: Vec<_> = stanzas.iter().filter(|stanza| stanza.contains_key("domain")).collect();
    assert_eq!(domains.len(), 19);
    for stanza in domains {
        let secret = secret(stanza);
        let key = DomainKey::new(&secret, stanza["domain"], KeyId::of(&secret)).unwrap();
        let mut plain = PlainColumn::with_capacity(1, 64);
        plain.push(&hex::decode(stanza["plaintext"]).unwrap()).unwrap();
        let mut text = Vec::new();
        write_text(key.seal(plain.view()).unwrap().view().get(0).unwrap(), &mut text);
        assert_eq!(String::from_utf8(text).unwrap(), stanza["sealed"], "{}", stanza["name"]);
    }
}

#[test]
fn keyed_hashes_of_hints_are_those_of_the_golden_file() {
    let stanzas = stanzas(include_str!("golden/hints.txt"));
    assert_eq!(stanzas.len(), 12);
    for stanza in stanzas {
        let secret = secret(&stanza);
        let key = DomainKey::new(&secret, "any", KeyId::of(&secret)).unwrap();
        let plaintext = hex::decode(stanza["plaintext"]).unwrap();
        assert!(Plaintext::decode(&plaintext).is_ok(), "{}", stanza["name"]);
        assert_eq!(*key.hints().hash(&plaintext), stanza["hmac"], "{}", stanza["name"]);
    }
}

#[test]
fn the_golden_envelope_is_read_as_its_header_says() {
    let stanza = stanzas(include_str!("golden/envelope.txt")).remove(0);
    let envelope = Envelope::from_text(stanza["envelope"]).unwrap();
    assert_eq!(envelope.key_id().to_string(), stanza["key-id"]);
    assert_eq!(
        (envelope.arn.as_str(), envelope.dataset.as_str()),
        (stanza["arn"], stanza["dataset"])
    );
    assert_eq!(
        (envelope.key_name.as_str(), envelope.acl.as_str()),
        (stanza["key-name"], stanza["acl"])
    );
    assert_eq!(hex::encode(&envelope.wrapped), stanza["wrapped"]);
    assert_eq!(hex::encode(envelope.policy_sha256), stanza["policy-sha256"]);
    assert_eq!(envelope.policy_version.to_string(), stanza["policy-version"]);
    let labels: Vec<_> = envelope
        .labels
        .iter()
        .map(|entry| format!("{} {}", entry.label, entry.bind_row.as_deref().unwrap_or("-")))
        .collect();
    assert_eq!(labels.join(", "), stanza["labels"]);
    assert_eq!(
        (envelope.created().0.to_string(), envelope.not_after().0.to_string()),
        (stanza["created"].to_owned(), stanza["not-after"].to_owned())
    );
    assert_eq!(
        envelope.to_text().unwrap(),
        stanza["envelope"],
        "written again it is the same bytes"
    );
}
