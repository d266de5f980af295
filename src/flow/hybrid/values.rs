//! What a client's value must say of itself before it is sealed again.

use serde_json::Value;
use zeroize::Zeroizing;

use crate::columns::{grammar, json};
use crate::jose::jwe::{ContentKey, Jwe, JweError, JweHeader};
use crate::policy::Policy;

/// Where a value was found.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The policy of its dataset.
    pub policy: &'a Policy,
    /// The label of its column.
    pub label: &'a str,
    /// The canonical id of its row, if the policy binds the column.
    pub row: Option<&'a [u8]>,
    /// The client that sealed it, where the policy wants to know and it was proved.
    pub client: Option<&'a str>,
}

/// Whether a value belongs where it was found: its dataset, its label (or one that the policy has renamed to it), its row, and the
/// client that was proved: else one client could put its proof around what another has sealed.
///
/// # Errors
/// [`JweError`]: it was sealed for another place, or does not say for which.
pub fn check_place(header: &JweHeader, found: Found<'_>) -> Result<(), JweError> {
    if header.dataset.as_deref() != Some(&found.policy.dataset) {
        return Err(JweError);
    }
    let claimed = header.label.as_deref().ok_or(JweError)?;
    let current = found
        .policy
        .previous
        .labels
        .get(claimed)
        .map_or(claimed, String::as_str);
    if current != found.label {
        return Err(JweError);
    }
    if found.client.is_some() && header.client.as_deref() != found.client {
        return Err(JweError);
    }
    match found.row {
        None => Ok(()),
        Some(row) if row_id(header.row.as_deref().ok_or(JweError)?)? == row => Ok(()),
        Some(_) => Err(JweError),
    }
}

/// Why there is no plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// It does not open under that key.
    CannotOpen,
    /// It opens, and is not one JSON value without white space around it.
    NotJson,
}

/// The plaintext of a value. Where it becomes part of a JSON document it is one JSON value of one line, and nothing else.
///
/// # Errors
/// [`NotOpened`]
pub fn open(key: &ContentKey, jwe: &Jwe<'_>, is_json: bool) -> Result<Zeroizing<Vec<u8>>, NotOpened> {
    let mut plain = Zeroizing::new(Vec::with_capacity(jwe.plaintext_len() + 3));
    key.open(jwe, &mut plain).map_err(|_| NotOpened::CannotOpen)?;
    if is_json {
        let is_value = grammar::value(&plain, 0, 0).is_ok_and(|end| end == plain.len());
        if !is_value || std::str::from_utf8(&plain).is_err() {
            return Err(NotOpened::NotJson);
        }
        // They stand between tokens only, and a line of a record stays one.
        for byte in plain.iter_mut().filter(|byte| matches!(**byte, b'\n' | b'\r')) {
            *byte = b' ';
        }
    }
    Ok(plain)
}

/// The canonical row id of `sf_row`: `["order-7"]`, `[7, 0, 2]`, the id of the row and then the list indexes.
fn row_id(text: &str) -> Result<Vec<u8>, JweError> {
    let parts: Vec<Value> = serde_json::from_str(text).map_err(|_| JweError)?;
    let (id, indexes) = parts.split_first().ok_or(JweError)?;
    let index = |value: &Value| {
        value
            .as_u64()
            .and_then(|index| u32::try_from(index).ok())
            .ok_or(JweError)
    };
    let indexes = indexes.iter().map(index).collect::<Result<Vec<u32>, _>>()?;
    let mut row = Vec::new();
    json::encode_row_id(id.to_string().as_bytes(), &indexes, &mut row).map_err(|_| JweError)?;
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::jwe::KeyManagement;

    fn policy() -> Policy {
        let yaml = br#"
dataset: payments
version: 1
keys: { k: { arn: "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab" } }
client: { keys: { web: { arn: "arn:aws:kms:eu-central-1:111122223333:key/ffffffff-12ab-34cd-56ef-1234567890ab" } } }
acls: { a: {} }
columns: [{ path: card, key: k, acl: a, flow: hybrid }]
previous: { labels: { pan: card } }
"#;
        Policy::parse(yaml).unwrap()
    }

    fn header(dataset: &str, label: &str, row: Option<&str>) -> JweHeader {
        JweHeader {
            key_management: KeyManagement::Direct,
            kid: "k".into(),
            client: None,
            dataset: Some(dataset.into()),
            label: Some(label.into()),
            row: row.map(str::to_owned),
        }
    }

    fn row(text: &str, indexes: &[u32]) -> Vec<u8> {
        let mut row = Vec::new();
        json::encode_row_id(text.as_bytes(), indexes, &mut row).unwrap();
        row
    }

    #[test]
    fn a_value_belongs_to_its_dataset_and_label() {
        let policy = policy();
        let found = Found {
            policy: &policy,
            label: "card",
            row: None,
            client: None,
        };
        for good in [header("payments", "card", None), header("payments", "pan", Some("[1]"))] {
            assert_eq!(check_place(&good, found), Ok(()));
        }
        for bad in [
            header("refunds", "card", None),
            header("payments", "cards", None),
            JweHeader {
                dataset: None,
                ..header("payments", "card", None)
            },
            JweHeader {
                label: None,
                ..header("payments", "card", None)
            },
        ] {
            assert_eq!(check_place(&bad, found), Err(JweError), "{bad:?}");
        }
    }

    #[test]
    fn a_value_of_a_bound_column_belongs_to_its_row() {
        let policy = policy();
        let check = |row: &[u8], text: Option<&str>| {
            let found = Found {
                policy: &policy,
                label: "card",
                row: Some(row),
                client: None,
            };
            check_place(&header("payments", "card", text), found)
        };
        for (id, indexes, text) in [
            (r#""o-7""#, &[][..], r#"["o-7"]"#),
            (r#""o-7""#, &[], r#" [ "o\u002d7" ] "#),
            ("7", &[0, 2], "[7,0,2]"),
            ("true", &[], "[true]"),
        ] {
            assert_eq!(check(&row(id, indexes), Some(text)), Ok(()), "{text}");
        }
        for text in [
            None,
            Some(""),
            Some("[]"),
            Some("7"),
            Some(r#"["7"]"#),
            Some("[7,0]"),
            Some("[7.0]"),
            Some("[8]"),
            Some("[7,-1]"),
            Some("[null]"),
            Some("[[7]]"),
        ] {
            assert_eq!(check(&row("7", &[]), text), Err(JweError), "{text:?}");
        }
    }
}
