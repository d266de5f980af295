//! `GenerateRandom`: random bytes, in clear or sealed to an attested key. It uses no KMS key, so no key policy speaks of it.

use serde::Deserialize;
use zeroize::Zeroizing;

use super::Service;
use super::crypto::plaintext_or_sealed;
use super::recipient::RecipientInfo;
use super::wire::{Answer, concat, parse};
use crate::error::ApiError;

/// The most bytes that are made at a time, as in AWS KMS.
const MAX_RANDOM: usize = 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct GenerateRandom {
    number_of_bytes: Option<usize>,
    custom_key_store_id: Option<String>,
    recipient: Option<RecipientInfo>,
}

impl Service {
    pub(super) fn generate_random(&self, body: &[u8]) -> Result<Answer, ApiError> {
        let request: GenerateRandom = parse(body)?;
        if request.custom_key_store_id.is_some() {
            return Err(ApiError::unsupported("the local KMS has no custom key stores"));
        }
        let length = match request.number_of_bytes {
            Some(length) if (1..=MAX_RANDOM).contains(&length) => length,
            _ => return Err(ApiError::validation("NumberOfBytes must be from 1 to 1024")),
        };
        let recipient = self.recipient(request.recipient.as_ref())?;
        let mut bytes = Zeroizing::new(vec![0; length]);
        getrandom::fill(&mut bytes).map_err(|_| ApiError::internal())?;
        let (member, value) = plaintext_or_sealed(recipient.as_ref(), "Plaintext", &bytes)?;
        Ok(concat(&[r#"{""#, member, r#"":""#, &value, r#""}"#]))
    }
}
