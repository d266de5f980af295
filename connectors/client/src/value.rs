//! Single values, each under a key of its own: for who seals so few that a session is not worth its place.

use sealflow::jose::jwe::{ContentKey, JweHeader, MAX_HEADER_CHARS};
use sealflow::jose::rsa::RsaPublicJwk;

use crate::enclave::{EnclaveKey, EnclaveLabels};
use crate::mac::ClientMac;
use crate::session::{RowId, SealError, check_json, proved, random};

/// Seals a JSON value to `to` as one of the column `label` of `dataset`: a compact JWE (`RSA-OAEP-256`, `A256GCM`), which goes
/// in its place as a string and needs no session. It costs the backend an RSA operation for each value, of which it does a few
/// hundred a second, and at most 1,024 in a record. `row` is for columns that the policy binds (`bind_row`), `mac`
/// for those that want to know who sealed.
///
/// # Errors
/// [`SealError`]
pub fn seal_value(
    to: &RsaPublicJwk,
    dataset: &str,
    label: &str,
    json: &[u8],
    row: Option<&RowId>,
    mac: Option<&ClientMac>,
) -> Result<String, SealError> {
    check_json(json)?;
    let mut header = JweHeader::wrapped(&to.thumbprint());
    header.dataset = Some(dataset.to_owned());
    header.label = Some(label.to_owned());
    header.row = row.map(|row| row.0.clone());
    header.client = mac.map(|mac| mac.client().to_owned());
    let part = header.to_part();
    if part.len() > MAX_HEADER_CHARS {
        return Err(SealError::TooLong);
    }
    let key = random()?;
    let wrapped = to.wrap(&key).map_err(|_| SealError::NoRandom)?;
    let jwe = ContentKey::new(&key).seal(&part, &wrapped, json);
    proved(jwe.map_err(|_| SealError::NoRandom)?, mac)
}

/// As [`seal_value`], to an enclave's key: of the dataset and the labels of its document.
///
/// # Errors
/// [`SealError`]
pub fn seal_value_for_enclave(
    to: &EnclaveKey,
    label: &str,
    json: &[u8],
    row: Option<&RowId>,
    mac: Option<&ClientMac>,
) -> Result<String, SealError> {
    to.remaining()?;
    to.check(label)?;
    seal_value(to.jwk(), to.dataset(), label, json, row, mac)
}

/// As [`seal_value`], where the values of some labels go to an enclave: to a bare key none of them is sealed.
///
/// # Errors
/// [`SealError`]
pub fn seal_value_beside(
    enclave: &EnclaveLabels,
    to: &RsaPublicJwk,
    dataset: &str,
    label: &str,
    json: &[u8],
    row: Option<&RowId>,
    mac: Option<&ClientMac>,
) -> Result<String, SealError> {
    enclave.check(label)?;
    seal_value(to, dataset, label, json, row, mac)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use sealflow::jose::jwe::{Jwe, KeyManagement};

    use super::*;
    use crate::{PrivateKey, RsaBits};

    #[test]
    fn a_value_has_a_key_of_its_own_and_says_where_it_belongs() {
        let key = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
        let to = key.public().unwrap();
        let row = RowId::new("\"o-7\"", &[2]).unwrap();
        let seal = || seal_value(&to, "payments", "cards[*].number", b"\"4111\"", Some(&row), None).unwrap();
        let (one, two) = (seal(), seal());
        let (one, two) = (Jwe::parse(&one).unwrap(), Jwe::parse(&two).unwrap());
        assert_ne!(one.encrypted_key(), two.encrypted_key());
        let header = one.header().unwrap();
        assert_eq!(header.key_management, KeyManagement::RsaOaep256);
        assert_eq!(header.kid, to.thumbprint().to_string());
        assert_eq!(header.dataset.as_deref(), Some("payments"));
        assert_eq!(header.label.as_deref(), Some("cards[*].number"));
        assert_eq!(header.row.as_deref(), Some("[\"o-7\",2]"));
        let text = seal_value(&to, "payments", "card", b"12.50", None, None).unwrap();
        assert_eq!(key.open(&text).unwrap().expose(), b"12.50");
        for (bad, json, error) in [
            ("card", "4111-1111", SealError::NotJson),
            (&"x".repeat(2_000), "1", SealError::TooLong),
        ] {
            let refused = seal_value(&to, "payments", bad, json.as_bytes(), None, None);
            assert_eq!(refused, Err(error));
        }
    }
}
