//! The operations of the local KMS: a caller and a JSON request in, a JSON answer or an AWS error out. No I/O but
//! that of the key store.

mod algorithm;
mod asymmetric;
mod crypto;
mod mac;
mod manage;
mod random;
mod recipient;
mod refused;
mod rotation;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sealflow::clock::Clock;
use sealflow_enclave_protocol::attestation::Trust;
use serde::Deserialize;

use self::algorithm::Algorithm;
use self::recipient::{Recipient, RecipientInfo};
use crate::blob::Context;
use crate::error::ApiError;
use crate::keys::{Key, KeyState, KeyStore};
use crate::policy::{Call, Evidence};
use crate::vault::VaultError;

pub(crate) use wire::Answer;

/// The key service behind the HTTP endpoint.
#[derive(Debug)]
pub(crate) struct Service {
    region: String,
    account: String,
    clock: Arc<dyn Clock>,
    store: Mutex<KeyStore>,
    /// Whose attestation documents are believed.
    trust: Trust,
}

/// Who asks for what with which key.
struct Ask<'a> {
    key_id: &'a str,
    caller: &'a str,
    action: &'a str,
    context: &'a Context,
    algorithm: Option<Algorithm>,
    /// What the caller's attestation document says, which was verified.
    evidence: Option<&'a Evidence>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct OneKey {
    key_id: String,
    #[serde(default)]
    grant_tokens: Vec<String>,
}

impl Service {
    pub(crate) fn new(region: String, account: String, clock: Arc<dyn Clock>, store: KeyStore, trust: Trust) -> Self {
        Self {
            region,
            account,
            clock,
            store: Mutex::new(store),
            trust,
        }
    }

    /// Does `operation` (`Decrypt`, …) for `caller`, an authenticated principal's ARN.
    pub(crate) fn handle(&self, operation: &str, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let now = self.clock.now();
        self.store().destroy_due(now).map_err(internal)?;
        self.store().rotate_due(now).map_err(internal)?;
        match operation {
            "CreateKey" => self.create_key(body),
            "CreateAlias" => self.create_alias(caller, body),
            "DescribeKey" => self.describe_key(caller, body),
            "ListKeys" => self.list_keys(body),
            "ListAliases" => self.list_aliases(body),
            "GetKeyPolicy" => self.get_key_policy(caller, body),
            "PutKeyPolicy" => self.put_key_policy(caller, body),
            "GenerateDataKey" => self.generate_data_key(caller, body, true),
            "GenerateDataKeyWithoutPlaintext" => self.generate_data_key(caller, body, false),
            "GenerateDataKeyPair" => self.generate_data_key_pair(caller, body, true),
            "GenerateDataKeyPairWithoutPlaintext" => self.generate_data_key_pair(caller, body, false),
            "GetPublicKey" => self.get_public_key(caller, body),
            "GenerateMac" => self.generate_mac(caller, body),
            "VerifyMac" => self.verify_mac(caller, body),
            "GenerateRandom" => self.generate_random(body),
            "DeriveSharedSecret" => self.derive_shared_secret(caller, body),
            "CreateGrant" => self.create_grant(caller, body),
            "Encrypt" => self.encrypt(caller, body),
            "Decrypt" => self.decrypt(caller, body),
            "EnableKey" => self.set_enabled(caller, body, true),
            "DisableKey" => self.set_enabled(caller, body, false),
            "ScheduleKeyDeletion" => self.schedule_key_deletion(caller, body),
            "ReEncrypt" => self.re_encrypt(caller, body),
            "EnableKeyRotation" => self.enable_key_rotation(caller, body),
            "DisableKeyRotation" => self.disable_key_rotation(caller, body),
            "GetKeyRotationStatus" => self.get_key_rotation_status(caller, body),
            "RotateKeyOnDemand" => self.rotate_key_on_demand(caller, body),
            "ListKeyRotations" => self.list_key_rotations(caller, body),
            "CancelKeyDeletion" => self.cancel_key_deletion(caller, body),
            other if other.len() <= 64 && other.bytes().all(|b| b.is_ascii_alphanumeric()) => Err(ApiError::caller(
                "UnknownOperationException",
                format!("the local KMS does not do {other}"),
            )),
            _ => Err(ApiError::caller("UnknownOperationException", "")),
        }
    }

    /// Who is proven by `info`, if it is there.
    fn recipient(&self, info: Option<&RecipientInfo>) -> Result<Option<Recipient>, ApiError> {
        Recipient::believe(info, &self.trust, self.clock.now())
    }

    /// The key named by `key_id`, if its policy lets `caller` do `action` and its state allows cryptography.
    fn usable_key(&self, key_id: &str, caller: &str, action: &str, context: &Context) -> Result<Key, ApiError> {
        self.usable(&Ask {
            key_id,
            caller,
            action,
            context,
            algorithm: None,
            evidence: None,
        })
    }

    /// As [`usable_key`](Self::usable_key), for requests that say more.
    fn usable(&self, ask: &Ask<'_>) -> Result<Key, ApiError> {
        let key = self.authorized(ask)?;
        self.refuse_unusable(&key)?;
        Ok(key)
    }

    fn refuse_unusable(&self, key: &Key) -> Result<(), ApiError> {
        let arn = self.arn(&key.id);
        match key.state {
            KeyState::Enabled => Ok(()),
            KeyState::Disabled => Err(ApiError::caller("DisabledException", format!("{arn} is disabled."))),
            KeyState::PendingDeletion => Err(invalid_state(&arn, "is pending deletion.")),
        }
    }

    fn authorized_key(&self, key_id: &str, caller: &str, action: &str, context: &Context) -> Result<Key, ApiError> {
        self.authorized(&Ask {
            key_id,
            caller,
            action,
            context,
            algorithm: None,
            evidence: None,
        })
    }

    fn authorized(&self, ask: &Ask<'_>) -> Result<Key, ApiError> {
        let key = self.find_key(ask.key_id)?;
        let arn = self.arn(&key.id);
        let call = Call {
            principal: ask.caller,
            action: ask.action,
            key_arn: &arn,
            context: ask.context,
            algorithm: ask.algorithm.map(Algorithm::as_str),
            evidence: ask.evidence,
            now: self.clock.now(),
        };
        if !key.policy.allows(&call) {
            let (caller, action) = (ask.caller, ask.action);
            let message = format!(
                "User: {caller} is not authorized to perform: {action} on resource: {arn} because the key policy does \
                 not allow it"
            );
            return Err(ApiError::caller("AccessDeniedException", message));
        }
        Ok(key)
    }

    /// By key id, key ARN, alias name or alias ARN.
    fn find_key(&self, key_id: &str) -> Result<Key, ApiError> {
        if key_id.is_empty() || key_id.len() > 2048 || !key_id.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ApiError::validation("KeyId must be a key id, an alias or an ARN"));
        }
        let not_found = || ApiError::not_found(key_id);
        let local = if key_id.starts_with("arn:") {
            let own = format!("arn:aws:kms:{}:{}:", self.region, self.account);
            let local = key_id.strip_prefix(&own).ok_or_else(not_found)?;
            local.strip_prefix("key/").unwrap_or(local)
        } else {
            key_id
        };
        let store = self.store();
        let id = if local.starts_with("alias/") {
            store.alias(local).ok_or_else(not_found)?
        } else {
            local
        };
        store.get(id, self.clock.now()).cloned().ok_or_else(not_found)
    }

    /// For the library's callers, who are not subject to key policies.
    pub(crate) fn change(&self, key_id: &str, change: impl FnOnce(&Key) -> Key) -> Result<(), ApiError> {
        let key = self.find_key(key_id)?;
        self.store().put(change(&key)).map_err(internal)
    }

    pub(crate) fn arn(&self, id: &str) -> String {
        format!("arn:aws:kms:{}:{}:key/{id}", self.region, self.account)
    }

    fn store(&self) -> MutexGuard<'_, KeyStore> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse_pending(key: &Key, arn: &str) -> Result<(), ApiError> {
    if key.state == KeyState::PendingDeletion {
        Err(invalid_state(arn, "is pending deletion."))
    } else {
        Ok(())
    }
}

fn invalid_state(arn: &str, what: &str) -> ApiError {
    ApiError::caller("KMSInvalidStateException", format!("{arn} {what}"))
}

#[allow(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
fn internal(error: VaultError) -> ApiError {
    tracing::error!(%error, "the local KMS cannot use its folder");
    ApiError::internal()
}
