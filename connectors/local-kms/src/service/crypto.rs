//! Keys at work: data keys, `Encrypt`, `Decrypt` and `ReEncrypt`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::wire::{
    Answer, Base64, answer, check_algorithm, check_context, concat, parse, refuse_dry_run, refuse_grants,
};
use super::{SYMMETRIC, Service};
use crate::blob::{self, Context, MAX_BLOB};
use crate::error::ApiError;
use crate::keys::Key;

const MAX_ENCRYPT: usize = 4096;
const MAX_DATA_KEY: usize = 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct GenerateDataKey {
    key_id: String,
    #[serde(default)]
    encryption_context: Context,
    key_spec: Option<String>,
    number_of_bytes: Option<usize>,
    #[serde(default)]
    grant_tokens: Vec<String>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Encrypt {
    key_id: String,
    plaintext: Base64,
    #[serde(default)]
    encryption_context: Context,
    encryption_algorithm: Option<String>,
    #[serde(default)]
    grant_tokens: Vec<String>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Decrypt {
    ciphertext_blob: Base64,
    #[serde(default)]
    encryption_context: Context,
    key_id: Option<String>,
    encryption_algorithm: Option<String>,
    #[serde(default)]
    grant_tokens: Vec<String>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct ReEncrypt {
    ciphertext_blob: Base64,
    #[serde(default)]
    source_encryption_context: Context,
    source_key_id: Option<String>,
    destination_key_id: String,
    #[serde(default)]
    destination_encryption_context: Context,
    source_encryption_algorithm: Option<String>,
    destination_encryption_algorithm: Option<String>,
    #[serde(default)]
    grant_tokens: Vec<String>,
    #[serde(default)]
    dry_run: bool,
}

impl Service {
    pub(super) fn generate_data_key(
        &self,
        caller: &str,
        body: &[u8],
        with_plaintext: bool,
    ) -> Result<Answer, ApiError> {
        let request: GenerateDataKey = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        check_context(&request.encryption_context)?;
        let length = match (request.key_spec.as_deref(), request.number_of_bytes) {
            (Some("AES_256"), None) => 32,
            (Some("AES_128"), None) => 16,
            (None, Some(length)) if (1..=MAX_DATA_KEY).contains(&length) => length,
            (None, Some(_)) => return Err(ApiError::validation("NumberOfBytes must be from 1 to 1024")),
            (Some(_), None) => return Err(ApiError::validation("KeySpec must be AES_256 or AES_128")),
            _ => {
                return Err(ApiError::validation(
                    "Please specify either number of bytes or key spec.",
                ));
            }
        };
        let action = if with_plaintext {
            "kms:GenerateDataKey"
        } else {
            "kms:GenerateDataKeyWithoutPlaintext"
        };
        let key = self.usable_key(&request.key_id, caller, action, &request.encryption_context)?;
        refuse_dry_run(request.dry_run)?;
        let mut plaintext = Zeroizing::new(vec![0; length]);
        getrandom::fill(&mut plaintext).map_err(|_| ApiError::internal())?;
        let arn = self.arn(&key.id);
        let blob = STANDARD.encode(seal(&key, &arn, &plaintext, &request.encryption_context)?);
        let material = key.current_material().id();
        if !with_plaintext {
            return answer(&json!({ "KeyId": arn, "CiphertextBlob": blob, "KeyMaterialId": material }));
        }
        // By hand, because a JSON tree would leave a copy of the plaintext behind. Base64 and ARNs need no escapes.
        let plaintext = Zeroizing::new(STANDARD.encode(&plaintext));
        let parts = [
            r#"{"CiphertextBlob":""#,
            &blob,
            r#"","Plaintext":""#,
            &plaintext,
            r#"","KeyMaterialId":""#,
            &material,
            r#"","KeyId":""#,
            &arn,
            r#""}"#,
        ];
        Ok(concat(&parts))
    }

    pub(super) fn encrypt(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: Encrypt = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        check_algorithm(request.encryption_algorithm.as_deref())?;
        check_context(&request.encryption_context)?;
        if request.plaintext.0.is_empty() || request.plaintext.0.len() > MAX_ENCRYPT {
            return Err(ApiError::validation("Plaintext must have 1 to 4096 bytes"));
        }
        let key = self.usable_key(&request.key_id, caller, "kms:Encrypt", &request.encryption_context)?;
        refuse_dry_run(request.dry_run)?;
        let arn = self.arn(&key.id);
        let blob = STANDARD.encode(seal(&key, &arn, &request.plaintext.0, &request.encryption_context)?);
        answer(&json!({ "KeyId": arn, "CiphertextBlob": blob, "EncryptionAlgorithm": SYMMETRIC }))
    }

    pub(super) fn decrypt(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: Decrypt = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        check_algorithm(request.encryption_algorithm.as_deref())?;
        check_context(&request.encryption_context)?;
        let source = Source {
            blob: &request.ciphertext_blob.0,
            key_id: request.key_id.as_deref(),
            context: &request.encryption_context,
        };
        let key = self.source_key(&source, caller, "kms:Decrypt")?;
        refuse_dry_run(request.dry_run)?;
        let (plaintext, material) = self.open(&key, &source)?;
        let plaintext = Zeroizing::new(STANDARD.encode(&plaintext));
        let end = r#"","EncryptionAlgorithm":"SYMMETRIC_DEFAULT"}"#;
        let arn = self.arn(&key.id);
        let parts = [
            r#"{"KeyId":""#,
            &arn,
            r#"","KeyMaterialId":""#,
            &material,
            r#"","Plaintext":""#,
            &plaintext,
            end,
        ];
        Ok(concat(&parts))
    }

    /// Asked twice, as in AWS: `kms:ReEncryptFrom` of the source key and `kms:ReEncryptTo` of the destination, each with
    /// the encryption context of its side. The plaintext does not leave.
    pub(super) fn re_encrypt(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: ReEncrypt = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        check_algorithm(request.source_encryption_algorithm.as_deref())?;
        check_algorithm(request.destination_encryption_algorithm.as_deref())?;
        check_context(&request.source_encryption_context)?;
        check_context(&request.destination_encryption_context)?;
        let source = Source {
            blob: &request.ciphertext_blob.0,
            key_id: request.source_key_id.as_deref(),
            context: &request.source_encryption_context,
        };
        let from = self.source_key(&source, caller, "kms:ReEncryptFrom")?;
        let context = &request.destination_encryption_context;
        let to = self.usable_key(&request.destination_key_id, caller, "kms:ReEncryptTo", context)?;
        refuse_dry_run(request.dry_run)?;
        let (plaintext, material) = self.open(&from, &source)?;
        let arn = self.arn(&to.id);
        answer(&json!({
            "CiphertextBlob": STANDARD.encode(seal(&to, &arn, &plaintext, context)?),
            "SourceKeyId": self.arn(&from.id),
            "KeyId": arn,
            "SourceEncryptionAlgorithm": SYMMETRIC,
            "DestinationEncryptionAlgorithm": SYMMETRIC,
            "SourceKeyMaterialId": material,
            "DestinationKeyMaterialId": to.current_material().id(),
        }))
    }

    /// The key that opens the blob, if `caller` may do `action` with it and its state allows that.
    fn source_key(&self, source: &Source<'_>, caller: &str, action: &str) -> Result<Key, ApiError> {
        if source.blob.is_empty() || source.blob.len() > MAX_BLOB {
            return Err(ApiError::validation("CiphertextBlob must have 1 to 6144 bytes"));
        }
        let named = match (source.key_id, blob::parse(source.blob)) {
            (Some(named), _) => named,
            (None, Ok(blob)) => blob.key_arn,
            (None, Err(_)) => return Err(ApiError::invalid_ciphertext()),
        };
        self.usable_key(named, caller, action, source.context)
    }

    /// The plaintext of the blob and the id of the key material that it was under.
    fn open(&self, key: &Key, source: &Source<'_>) -> Result<(Zeroizing<Vec<u8>>, String), ApiError> {
        let blob = blob::parse(source.blob).map_err(|_| ApiError::invalid_ciphertext())?;
        if blob.key_arn != self.arn(&key.id) {
            let message = "The key ID in the request does not identify a CMK that can perform this operation.";
            return Err(ApiError::caller("IncorrectKeyException", message));
        }
        let material = key
            .material_of(blob.material)
            .ok_or_else(ApiError::invalid_ciphertext)?;
        let opened = blob::open(material.bytes(), &blob, source.context);
        let plaintext = opened.map_err(|_| ApiError::invalid_ciphertext())?;
        Ok((plaintext, material.id()))
    }
}

/// Wrapped bytes, the key that is said to be theirs, and their context.
struct Source<'a> {
    blob: &'a [u8],
    key_id: Option<&'a str>,
    context: &'a Context,
}

/// Seals under the key's current material.
fn seal(key: &Key, arn: &str, plaintext: &[u8], context: &Context) -> Result<Vec<u8>, ApiError> {
    let material = (key.current_number(), key.current_material().bytes());
    blob::seal(material, arn, plaintext, context).map_err(|_| ApiError::internal())
}
