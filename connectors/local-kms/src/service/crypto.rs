//! Keys at work: data keys, `Encrypt`, `Decrypt` and `ReEncrypt`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::algorithm::{Algorithm, Cipher, OAEP, symmetric};
use super::recipient::{Recipient, RecipientInfo, refuse_recipient};
use super::wire::{Answer, Base64, answer, check_context, concat, parse, refuse_dry_run, refuse_grants};
use super::{Ask, Service};
use crate::blob::{self, Context, MAX_BLOB};
use crate::error::ApiError;
use crate::keys::{Key, KeySpec, Symmetric};
use crate::policy::Evidence;

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
    recipient: Option<RecipientInfo>,
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
    recipient: Option<RecipientInfo>,
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
        let operation = if with_plaintext {
            "GenerateDataKey"
        } else {
            "GenerateDataKeyWithoutPlaintext"
        };
        if !with_plaintext {
            refuse_recipient(request.recipient.as_ref(), operation)?;
        }
        let recipient = self.recipient(request.recipient.as_ref())?;
        let key = self.usable(&Ask {
            key_id: &request.key_id,
            caller,
            action: &format!("kms:{operation}"),
            context: &request.encryption_context,
            algorithm: None,
            evidence: recipient.as_ref().map(|recipient| &recipient.evidence),
        })?;
        let arn = self.arn(&key.id);
        let symmetric = symmetric(&key, &arn, operation)?;
        refuse_dry_run(request.dry_run)?;
        let mut plaintext = Zeroizing::new(vec![0; length]);
        getrandom::fill(&mut plaintext).map_err(|_| ApiError::internal())?;
        let blob = STANDARD.encode(wrap(symmetric, &arn, &plaintext, &request.encryption_context)?);
        let material = symmetric.current().id();
        if !with_plaintext {
            return answer(&json!({ "KeyId": arn, "CiphertextBlob": blob, "KeyMaterialId": material }));
        }
        // By hand, because a JSON tree would leave a copy of the plaintext behind. Base64 and ARNs need no escapes.
        let (member, value) = plaintext_or_sealed(recipient.as_ref(), "Plaintext", &plaintext)?;
        let parts = [
            r#"{"CiphertextBlob":""#,
            &blob,
            r#"",""#,
            member,
            r#"":""#,
            &value,
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
        let algorithm = Algorithm::parse(request.encryption_algorithm.as_deref())?;
        check_context(&request.encryption_context)?;
        if request.plaintext.0.is_empty() || request.plaintext.0.len() > MAX_ENCRYPT {
            return Err(ApiError::validation("Plaintext must have 1 to 4096 bytes"));
        }
        let key = self.usable(&Ask {
            key_id: &request.key_id,
            caller,
            action: "kms:Encrypt",
            context: &request.encryption_context,
            algorithm: Some(algorithm),
            evidence: None,
        })?;
        let arn = self.arn(&key.id);
        let cipher = Cipher::sealing(&key, &arn, algorithm, "Encrypt")?;
        refuse_dry_run(request.dry_run)?;
        let blob = seal(&cipher, &arn, &request.plaintext.0, &request.encryption_context)?;
        answer(&json!({
            "KeyId": arn,
            "CiphertextBlob": STANDARD.encode(blob),
            "EncryptionAlgorithm": algorithm.as_str(),
        }))
    }

    pub(super) fn decrypt(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: Decrypt = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        let algorithm = Algorithm::parse(request.encryption_algorithm.as_deref())?;
        check_context(&request.encryption_context)?;
        let source = Source {
            blob: &request.ciphertext_blob.0,
            key_id: request.key_id.as_deref(),
            context: &request.encryption_context,
        };
        let recipient = self.recipient(request.recipient.as_ref())?;
        let evidence = recipient.as_ref().map(|recipient| &recipient.evidence);
        let key = self.source_key(&source, (caller, "kms:Decrypt"), algorithm, evidence)?;
        let arn = self.arn(&key.id);
        let cipher = Cipher::opening(&key, &arn, algorithm, "Decrypt")?;
        refuse_dry_run(request.dry_run)?;
        let opened = open(&cipher, &arn, &source)?;
        let (member, value) = plaintext_or_sealed(recipient.as_ref(), "Plaintext", &opened.plaintext)?;
        let material = opened
            .material
            .map(|id| format!(r#""KeyMaterialId":"{id}","#))
            .unwrap_or_default();
        Ok(concat(&[
            r#"{"KeyId":""#,
            &arn,
            r#"","#,
            &material,
            r#"""#,
            member,
            r#"":""#,
            &value,
            r#"","EncryptionAlgorithm":""#,
            algorithm.as_str(),
            r#""}"#,
        ]))
    }

    /// Asked twice, as in AWS: `kms:ReEncryptFrom` of the source key and `kms:ReEncryptTo` of the destination, each with
    /// the encryption context of its side. The plaintext does not leave.
    pub(super) fn re_encrypt(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: ReEncrypt = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        let from_algorithm = Algorithm::parse(request.source_encryption_algorithm.as_deref())?;
        let to_algorithm = Algorithm::parse(request.destination_encryption_algorithm.as_deref())?;
        check_context(&request.source_encryption_context)?;
        check_context(&request.destination_encryption_context)?;
        let source = Source {
            blob: &request.ciphertext_blob.0,
            key_id: request.source_key_id.as_deref(),
            context: &request.source_encryption_context,
        };
        let from = self.source_key(&source, (caller, "kms:ReEncryptFrom"), from_algorithm, None)?;
        let context = &request.destination_encryption_context;
        let to = self.usable(&Ask {
            key_id: &request.destination_key_id,
            caller,
            action: "kms:ReEncryptTo",
            context,
            algorithm: Some(to_algorithm),
            evidence: None,
        })?;
        let (from_arn, to_arn) = (self.arn(&from.id), self.arn(&to.id));
        let opening = Cipher::opening(&from, &from_arn, from_algorithm, "ReEncrypt")?;
        let sealing = Cipher::sealing(&to, &to_arn, to_algorithm, "ReEncrypt")?;
        refuse_dry_run(request.dry_run)?;
        let opened = open(&opening, &from_arn, &source)?;
        let mut done = json!({
            "CiphertextBlob": STANDARD.encode(seal(&sealing, &to_arn, &opened.plaintext, context)?),
            "SourceKeyId": from_arn,
            "KeyId": to_arn,
            "SourceEncryptionAlgorithm": from_algorithm.as_str(),
            "DestinationEncryptionAlgorithm": to_algorithm.as_str(),
        });
        if let (Some(id), Some(fields)) = (opened.material, done.as_object_mut()) {
            fields.insert("SourceKeyMaterialId".to_owned(), json!(id));
        }
        if let (Cipher::Symmetric(symmetric), Some(fields)) = (sealing, done.as_object_mut()) {
            fields.insert("DestinationKeyMaterialId".to_owned(), json!(symmetric.current().id()));
        }
        answer(&done)
    }

    /// The key that opens the blob, if the caller may do the action with it and its state allows that.
    fn source_key(
        &self,
        source: &Source<'_>,
        (caller, action): (&str, &str),
        algorithm: Algorithm,
        evidence: Option<&Evidence>,
    ) -> Result<Key, ApiError> {
        if source.blob.is_empty() || source.blob.len() > MAX_BLOB {
            return Err(ApiError::validation("CiphertextBlob must have 1 to 6144 bytes"));
        }
        let named = match (source.key_id, blob::parse(source.blob)) {
            (Some(named), _) => named,
            (None, Ok(blob)) => blob.key_arn,
            (None, Err(_)) => return Err(ApiError::invalid_ciphertext()),
        };
        self.usable(&Ask {
            key_id: named,
            caller,
            action,
            context: source.context,
            algorithm: Some(algorithm),
            evidence,
        })
    }
}

/// A member of an answer and its value: the plaintext, in base64, or `CiphertextForRecipient` in its place. Never both.
pub(super) fn plaintext_or_sealed(
    recipient: Option<&Recipient>,
    in_clear: &'static str,
    plaintext: &[u8],
) -> Result<(&'static str, Zeroizing<String>), ApiError> {
    match recipient {
        Some(recipient) => Ok(("CiphertextForRecipient", Zeroizing::new(recipient.seal(plaintext)?))),
        None => Ok((in_clear, Zeroizing::new(STANDARD.encode(plaintext)))),
    }
}

/// Wrapped bytes, the key that is said to be theirs, and their context.
struct Source<'a> {
    blob: &'a [u8],
    key_id: Option<&'a str>,
    context: &'a Context,
}

/// The plaintext of a blob, and the id of the key material that it was under if there is more than one.
struct Opened {
    plaintext: Zeroizing<Vec<u8>>,
    material: Option<String>,
}

/// Whatever is wrong with what an RSA key is asked to open, the answer is one and the same.
fn open(cipher: &Cipher<'_>, arn: &str, source: &Source<'_>) -> Result<Opened, ApiError> {
    match cipher {
        Cipher::Symmetric(symmetric) => unwrap(symmetric, arn, source),
        Cipher::Rsa(rsa) => {
            refuse_context(source.context)?;
            let plaintext = rsa.open(source.blob).map_err(|_| ApiError::invalid_ciphertext())?;
            Ok(Opened {
                plaintext,
                material: None,
            })
        }
    }
}

fn seal(cipher: &Cipher<'_>, arn: &str, plaintext: &[u8], context: &Context) -> Result<Vec<u8>, ApiError> {
    match cipher {
        Cipher::Symmetric(symmetric) => wrap(symmetric, arn, plaintext, context),
        Cipher::Rsa(rsa) => {
            refuse_context(context)?;
            let (most, spec) = (rsa.most(), KeySpec::Rsa(rsa.bits()).as_str());
            if plaintext.len() > most {
                let message =
                    format!("Algorithm {OAEP} and key spec {spec} cannot encrypt data larger than {most} bytes.");
                return Err(ApiError::validation(message));
            }
            rsa.seal(plaintext).map_err(|_| ApiError::internal())
        }
    }
}

fn refuse_context(context: &Context) -> Result<(), ApiError> {
    if context.is_empty() {
        return Ok(());
    }
    let message = "EncryptionContext is for symmetric keys only: RSA does not bind to it";
    Err(ApiError::unsupported(message))
}

fn unwrap(symmetric: &Symmetric, arn: &str, source: &Source<'_>) -> Result<Opened, ApiError> {
    let blob = blob::parse(source.blob).map_err(|_| ApiError::invalid_ciphertext())?;
    if blob.key_arn != arn {
        let message = "The key ID in the request does not identify a CMK that can perform this operation.";
        return Err(ApiError::caller("IncorrectKeyException", message));
    }
    let material = symmetric
        .numbered(blob.material)
        .ok_or_else(ApiError::invalid_ciphertext)?;
    let opened = blob::open(material.bytes(), &blob, source.context);
    Ok(Opened {
        plaintext: opened.map_err(|_| ApiError::invalid_ciphertext())?,
        material: Some(material.id()),
    })
}

/// Wraps under the key's current material.
pub(super) fn wrap(symmetric: &Symmetric, arn: &str, plaintext: &[u8], context: &Context) -> Result<Vec<u8>, ApiError> {
    let material = (symmetric.current_number(), symmetric.current().bytes());
    blob::seal(material, arn, plaintext, context).map_err(|_| ApiError::internal())
}
