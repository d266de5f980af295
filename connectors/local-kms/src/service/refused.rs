//! `DeriveSharedSecret` and `CreateGrant`: asked of the key policy as in AWS, so that a policy that denies them is seen to, and then
//! refused, since the local KMS has no keys for key agreement and no grants.

use serde::Deserialize;
use serde_json::Value;

use super::algorithm::wrong_usage;
use super::recipient::RecipientInfo;
use super::wire::{Answer, Base64, parse, refuse_dry_run, refuse_grants};
use super::{Ask, Service};
use crate::blob::Context;
use crate::error::ApiError;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct DeriveSharedSecret {
    key_id: String,
    key_agreement_algorithm: String,
    #[allow(dead_code, reason = "there is no key that it could be agreed with")]
    public_key: Base64,
    #[serde(default)]
    grant_tokens: Vec<String>,
    #[serde(default)]
    dry_run: bool,
    recipient: Option<RecipientInfo>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
#[allow(dead_code, reason = "a request is read as a whole, and no grant is made of it")]
struct CreateGrant {
    key_id: String,
    grantee_principal: String,
    operations: Vec<String>,
    retiring_principal: Option<String>,
    constraints: Option<Value>,
    #[serde(default)]
    grant_tokens: Vec<String>,
    name: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

impl Service {
    pub(super) fn derive_shared_secret(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: DeriveSharedSecret = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        if request.key_agreement_algorithm != "ECDH" {
            return Err(ApiError::validation("KeyAgreementAlgorithm must be ECDH"));
        }
        let recipient = self.recipient(request.recipient.as_ref())?;
        let key = self.usable(&Ask {
            key_id: &request.key_id,
            caller,
            action: "kms:DeriveSharedSecret",
            context: &Context::new(),
            algorithm: None,
            evidence: recipient.as_ref().map(|recipient| &recipient.evidence),
        })?;
        refuse_dry_run(request.dry_run)?;
        // Of every spec that there is here.
        Err(wrong_usage(&key, &self.arn(&key.id), "DeriveSharedSecret"))
    }

    pub(super) fn create_grant(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: CreateGrant = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        self.usable_key(&request.key_id, caller, "kms:CreateGrant", &Context::new())?;
        refuse_dry_run(request.dry_run)?;
        Err(ApiError::unsupported("the local KMS has no grants"))
    }
}
