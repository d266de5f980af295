//! RSA: public keys handed out, and data key pairs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::keys::RsaBits;
use serde::Deserialize;
use serde_json::json;

use super::algorithm::{OAEP, symmetric, wrong_usage};
use super::crypto::{plaintext_or_sealed, wrap};
use super::recipient::{RecipientInfo, refuse_recipient};
use super::wire::{Answer, answer, check_context, concat, parse, refuse_dry_run, refuse_grants};
use super::{Ask, OneKey, Service};
use crate::blob::Context;
use crate::error::ApiError;
use crate::keys::{KeySpec, RsaKey, Secret};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct GenerateDataKeyPair {
    key_id: String,
    key_pair_spec: String,
    #[serde(default)]
    encryption_context: Context,
    #[serde(default)]
    grant_tokens: Vec<String>,
    #[serde(default)]
    dry_run: bool,
    recipient: Option<RecipientInfo>,
}

impl Service {
    pub(super) fn get_public_key(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: OneKey = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        let key = self.usable_key(&request.key_id, caller, "kms:GetPublicKey", &Context::new())?;
        let arn = self.arn(&key.id);
        let rsa = match &key.secret {
            Secret::Rsa(rsa) => rsa,
            Secret::Symmetric(_) => return Err(ApiError::unsupported(format!("{arn} is not an asymmetric key."))),
            Secret::Hmac(_) => return Err(wrong_usage(&key, &arn, "GetPublicKey")),
        };
        let spec = key.secret.spec();
        answer(&json!({
            "KeyId": arn,
            "PublicKey": STANDARD.encode(rsa.public()),
            "CustomerMasterKeySpec": spec.as_str(),
            "KeySpec": spec.as_str(),
            "KeyUsage": spec.usage(),
            "EncryptionAlgorithms": [OAEP],
        }))
    }

    /// The public half of the RSA key `arn`, for whoever runs the server.
    pub(crate) fn public_half(&self, arn: &str) -> Result<Vec<u8>, ApiError> {
        let root = format!("arn:aws:iam::{}:root", self.account);
        let key = self.usable_key(arn, &root, "kms:GetPublicKey", &Context::new())?;
        match &key.secret {
            Secret::Rsa(rsa) => Ok(rsa.public().to_vec()),
            _ => Err(wrong_usage(&key, arn, "GetPublicKey")),
        }
    }

    /// The private half (PKCS #8, DER) is wrapped as a data key is: `Decrypt` opens it.
    pub(super) fn generate_data_key_pair(
        &self,
        caller: &str,
        body: &[u8],
        with_plaintext: bool,
    ) -> Result<Answer, ApiError> {
        let request: GenerateDataKeyPair = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        check_context(&request.encryption_context)?;
        let (spec, bits) = pair_spec(&request.key_pair_spec)?;
        let operation = if with_plaintext {
            "GenerateDataKeyPair"
        } else {
            "GenerateDataKeyPairWithoutPlaintext"
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
        let pair = RsaKey::generate(bits).map_err(|_| ApiError::internal())?;
        let private = pair.pkcs8().map_err(|_| ApiError::internal())?;
        let blob = STANDARD.encode(wrap(symmetric, &arn, &private, &request.encryption_context)?);
        let public = STANDARD.encode(pair.public());
        let material = symmetric.current().id();
        if !with_plaintext {
            return answer(&json!({
                "PrivateKeyCiphertextBlob": blob,
                "PublicKey": public,
                "KeyId": arn,
                "KeyPairSpec": spec.as_str(),
                "KeyMaterialId": material,
            }));
        }
        // By hand, because a JSON tree would leave a copy of the private key behind. Base64 and ARNs need no escapes.
        let (member, value) = plaintext_or_sealed(recipient.as_ref(), "PrivateKeyPlaintext", &private)?;
        Ok(concat(&[
            r#"{"PrivateKeyCiphertextBlob":""#,
            &blob,
            r#"",""#,
            member,
            r#"":""#,
            &value,
            r#"","PublicKey":""#,
            &public,
            r#"","KeyId":""#,
            &arn,
            r#"","KeyPairSpec":""#,
            spec.as_str(),
            r#"","KeyMaterialId":""#,
            &material,
            r#""}"#,
        ]))
    }
}

fn pair_spec(name: &str) -> Result<(KeySpec, RsaBits), ApiError> {
    match name.parse() {
        Ok(spec @ KeySpec::Rsa(bits)) => Ok((spec, bits)),
        Ok(KeySpec::Symmetric | KeySpec::Hmac256) => Err(ApiError::validation("KeyPairSpec is not one of KMS")),
        Err(_) => Err(ApiError::unsupported(
            "the local KMS makes data key pairs of RSA_2048, RSA_3072 and RSA_4096 only",
        )),
    }
}
