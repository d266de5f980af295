//! The bytes in `docs/format.md` are what this code seals and opens: an example that is wrong is worse than none.

#![allow(clippy::unwrap_used, clippy::panic)] // a broken example is a failed test

use sealflow::seal::value::read_text;
use sealflow::seal::{DomainKey, KeyId, OpenError, OpeningKey, PlainColumn, RowId, SealedValue};
use sealflow::secret::SecretBytes;

const DOCUMENT: &str = include_str!("../docs/format.md");

/// The hexadecimal bytes or text behind `name` in the example, below the line that starts with `section`.
fn example(section: &str, name: &str) -> String {
    let example = DOCUMENT.split("<!-- begin:example -->").nth(1).unwrap();
    let mut lines = example.lines().skip_while(|line| !line.starts_with(section));
    let line = lines.find(|line| line.trim_start().starts_with(name)).unwrap();
    line.trim_start()[name.len()..].trim().to_owned()
}

fn bytes(section: &str, name: &str) -> Vec<u8> {
    hex::decode(example(section, name)).unwrap()
}

fn secret(name: &str) -> SecretBytes {
    SecretBytes::new(bytes(name, name))
}

fn sealed(section: &str) -> Vec<u8> {
    let mut sealed = Vec::new();
    read_text(example(section, "text").as_bytes(), &mut sealed).unwrap();
    assert_eq!(sealed, bytes(section, "sealed"), "{section}: text form");
    sealed
}

fn open_randomised(section: &str, label: &str, row: Option<RowId<'_>>) -> Result<Vec<u8>, OpenError> {
    let sealed = sealed(section);
    let SealedValue::Randomised {
        key,
        nonce,
        ciphertext,
        tag,
        ..
    } = SealedValue::parse(&sealed).unwrap()
    else {
        panic!("{section}: another suite");
    };
    let key = OpeningKey::from_unwrapped(&secret("data key"), key)?;
    let mut opened = Vec::new();
    key.opener("payments", label)
        .open(nonce, ciphertext, tag, row, &mut opened)?;
    Ok(opened)
}

#[test]
fn the_documented_key_ids_are_those_of_the_documented_keys() {
    for name in ["data key", "domain secret"] {
        assert_eq!(KeyId::of(&secret(name)).as_bytes().to_vec(), bytes(name, "key id"));
    }
}

#[test]
fn the_documented_value_opens_to_the_documented_plaintext() {
    assert_eq!(
        open_randomised("plain:", "user.email", None).unwrap(),
        bytes("plain:", "plaintext")
    );
}

#[test]
fn the_documented_bound_value_opens_in_its_row_alone() {
    let id = bytes("bound:", "row id");
    let row = RowId {
        path: "order_id",
        id: &id,
    };
    let opened = open_randomised("bound:", "cards[*].number", Some(row)).unwrap();
    assert_eq!(opened, bytes("bound:", "plaintext"));

    let moved = RowId {
        path: "order_id",
        id: &id[..id.len() - 1],
    };
    assert!(open_randomised("bound:", "cards[*].number", Some(moved)).is_err());
    assert!(open_randomised("bound:", "cards[*].number", None).is_err());
}

#[test]
fn the_documented_domain_value_is_what_the_domain_seals() {
    let secret = secret("domain secret");
    let key = DomainKey::new(&secret, "customers", KeyId::of(&secret)).unwrap();
    let mut plain = PlainColumn::with_capacity(1, 16);
    plain.push(&bytes("domain:", "plaintext")).unwrap();
    let column = key.seal(plain.view()).unwrap();
    assert_eq!(column.view().get(0).unwrap(), sealed("domain:"));
}
