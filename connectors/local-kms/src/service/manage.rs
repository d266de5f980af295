//! Keys as things: made, described, listed, named, given policies, enabled, disabled and scheduled for deletion.

use sealflow::clock::UnixMillis;
use serde::Deserialize;
use serde_json::{Value, json};

use super::algorithm::{HMAC, OAEP, SYMMETRIC, spec_of};
use super::wire::{Answer, answer, parse, refuse_grants, seconds};
use super::{OneKey, Service, internal, invalid_state, refuse_pending};
use crate::blob::Context;
use crate::error::ApiError;
use crate::keys::{Key, KeySpec, KeyState, KeyStore, Secret};
use crate::policy::KeyPolicy;

const MAX_DESCRIPTION: usize = 8192;
const MAX_ALIAS: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct CreateKey {
    #[serde(default)]
    description: String,
    policy: Option<String>,
    key_spec: Option<String>,
    customer_master_key_spec: Option<String>,
    key_usage: Option<String>,
    origin: Option<String>,
    #[serde(default)]
    multi_region: bool,
    #[allow(dead_code, reason = "there is no lockout check that could be bypassed")]
    bypass_policy_lockout_safety_check: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct CreateAlias {
    alias_name: String,
    target_key_id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct KeyPolicyRequest {
    key_id: String,
    policy_name: Option<String>,
    policy: Option<String>,
    #[allow(dead_code, reason = "there is no lockout check that could be bypassed")]
    bypass_policy_lockout_safety_check: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct ScheduleKeyDeletion {
    key_id: String,
    pending_window_in_days: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Page {
    limit: Option<u64>,
    marker: Option<String>,
    key_id: Option<String>,
}

impl Service {
    pub(super) fn create_key(&self, body: &[u8]) -> Result<Answer, ApiError> {
        let request: CreateKey = parse(body)?;
        let spec = request.key_spec.or(request.customer_master_key_spec);
        let spec = spec_of(spec.as_deref(), request.key_usage.as_deref())?;
        if request.origin.as_deref().is_some_and(|o| o != "AWS_KMS") || request.multi_region {
            return Err(ApiError::unsupported(
                "the local KMS makes single-region keys of origin AWS_KMS only",
            ));
        }
        let policy = request.policy.as_deref().map(parse_policy).transpose()?;
        let key = self.new_key(spec, None, &request.description, policy)?;
        answer(&json!({ "KeyMetadata": self.metadata(&key) }))
    }

    /// Makes a key; with an `id` that is there already, gives that one back unchanged if it is of this spec.
    pub(crate) fn new_key(
        &self,
        spec: KeySpec,
        id: Option<&str>,
        description: &str,
        policy: Option<KeyPolicy>,
    ) -> Result<Key, ApiError> {
        if description.len() > MAX_DESCRIPTION {
            return Err(ApiError::validation("Description is longer than 8,192 bytes"));
        }
        let now = self.clock.now();
        if let Some(key) = found(&self.store(), id, spec, now)? {
            return Ok(key);
        }
        let id = match id {
            Some(id) => id.to_owned(),
            None => random_uuid()?,
        };
        let key = Key {
            // Before the store is locked: an RSA key takes its time.
            secret: Secret::fresh(spec).map_err(|_| ApiError::internal())?,
            id,
            description: description.to_owned(),
            policy: policy.unwrap_or_else(|| KeyPolicy::default_for(&self.account)),
            state: KeyState::Enabled,
            created: now,
            deletion: None,
        };
        let mut store = self.store();
        // Somebody may have been faster.
        if let Some(key) = found(&store, Some(&key.id), spec, now)? {
            return Ok(key);
        }
        if store.is_full() {
            return Err(ApiError::caller(
                "LimitExceededException",
                "the local KMS holds no more keys",
            ));
        }
        store.put(key.clone()).map_err(internal)?;
        Ok(key)
    }

    pub(super) fn create_alias(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: CreateAlias = parse(body)?;
        let name = request.alias_name.strip_prefix("alias/").unwrap_or_default();
        let is_name_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-');
        if name.is_empty() || name.len() > MAX_ALIAS || !name.bytes().all(is_name_byte) || name.starts_with("aws/") {
            return Err(ApiError::caller(
                "InvalidAliasNameException",
                "an alias is alias/ and letters, digits, / _ -",
            ));
        }
        if request.target_key_id.starts_with("alias/") {
            return Err(ApiError::validation("Aliases must refer to keys, not aliases"));
        }
        let key = self.authorized_key(&request.target_key_id, caller, "kms:CreateAlias", &Context::new())?;
        let mut store = self.store();
        if store.alias(&request.alias_name).is_some() {
            return Err(ApiError::caller(
                "AlreadyExistsException",
                "an alias with this name already exists",
            ));
        }
        if store.aliases_are_full() {
            return Err(ApiError::caller(
                "LimitExceededException",
                "the local KMS holds no more aliases",
            ));
        }
        store.put_alias(&request.alias_name, &key.id).map_err(internal)?;
        Ok(Answer::default())
    }

    pub(super) fn describe_key(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: OneKey = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        let key = self.authorized_key(&request.key_id, caller, "kms:DescribeKey", &Context::new())?;
        answer(&json!({ "KeyMetadata": self.metadata(&key) }))
    }

    pub(super) fn list_keys(&self, body: &[u8]) -> Result<Answer, ApiError> {
        let request: Page = parse(body)?;
        let store = self.store();
        let (ids, next) = page(store.ids(), &request)?;
        let keys: Vec<Value> = ids
            .iter()
            .map(|id| json!({ "KeyId": id, "KeyArn": self.arn(id) }))
            .collect();
        answer(&with_next(json!({ "Keys": keys }), next))
    }

    pub(super) fn list_aliases(&self, body: &[u8]) -> Result<Answer, ApiError> {
        let request: Page = parse(body)?;
        let store = self.store();
        let wanted = request.key_id.as_deref().map(|id| id.rsplit('/').next().unwrap_or(id));
        let names = store
            .aliases()
            .filter(|(_, id)| wanted.is_none_or(|w| w == *id))
            .map(|(name, _)| name);
        let (names, next) = page(names, &request)?;
        let aliases: Vec<Value> = names
            .iter()
            .map(|name| {
                let arn = format!("arn:aws:kms:{}:{}:{name}", self.region, self.account);
                json!({ "AliasName": name, "AliasArn": arn, "TargetKeyId": store.alias(name) })
            })
            .collect();
        answer(&with_next(json!({ "Aliases": aliases }), next))
    }

    pub(super) fn get_key_policy(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: KeyPolicyRequest = parse(body)?;
        check_policy_name(&request)?;
        let key = self.authorized_key(&request.key_id, caller, "kms:GetKeyPolicy", &Context::new())?;
        answer(&json!({ "Policy": key.policy.text(), "PolicyName": "default" }))
    }

    pub(super) fn put_key_policy(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: KeyPolicyRequest = parse(body)?;
        check_policy_name(&request)?;
        let policy = parse_policy(request.policy.as_deref().unwrap_or_default())?;
        let key = self.authorized_key(&request.key_id, caller, "kms:PutKeyPolicy", &Context::new())?;
        self.store().put(Key { policy, ..key }).map_err(internal)?;
        Ok(Answer::default())
    }

    pub(super) fn set_enabled(&self, caller: &str, body: &[u8], enabled: bool) -> Result<Answer, ApiError> {
        let request: OneKey = parse(body)?;
        let (action, state) = if enabled {
            ("kms:EnableKey", KeyState::Enabled)
        } else {
            ("kms:DisableKey", KeyState::Disabled)
        };
        let key = self.authorized_key(&request.key_id, caller, action, &Context::new())?;
        refuse_pending(&key, &self.arn(&key.id))?;
        self.store().put(key.in_state(state)).map_err(internal)?;
        Ok(Answer::default())
    }

    pub(super) fn schedule_key_deletion(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: ScheduleKeyDeletion = parse(body)?;
        let days = request.pending_window_in_days.unwrap_or(30);
        if !(7..=30).contains(&days) {
            return Err(ApiError::validation("PendingWindowInDays must be from 7 to 30"));
        }
        let key = self.authorized_key(&request.key_id, caller, "kms:ScheduleKeyDeletion", &Context::new())?;
        let arn = self.arn(&key.id);
        refuse_pending(&key, &arn)?;
        let key = key.scheduled(self.clock.now(), days);
        self.store().put(key.clone()).map_err(internal)?;
        answer(&json!({
            "KeyId": arn,
            "KeyState": key.state.as_str(),
            "DeletionDate": key.deletion.map(seconds),
            "PendingWindowInDays": days,
        }))
    }

    pub(super) fn cancel_key_deletion(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: OneKey = parse(body)?;
        let key = self.authorized_key(&request.key_id, caller, "kms:CancelKeyDeletion", &Context::new())?;
        let arn = self.arn(&key.id);
        if key.state != KeyState::PendingDeletion {
            return Err(invalid_state(&arn, "is not pending deletion"));
        }
        // As in AWS: a key that was saved has to be enabled again.
        self.store().put(key.in_state(KeyState::Disabled)).map_err(internal)?;
        answer(&json!({ "KeyId": arn }))
    }

    fn metadata(&self, key: &Key) -> Value {
        let spec = key.secret.spec();
        let mut metadata = json!({
            "AWSAccountId": self.account,
            "Arn": self.arn(&key.id),
            "CreationDate": seconds(key.created),
            "CustomerMasterKeySpec": spec.as_str(),
            "Description": key.description,
            "Enabled": key.state == KeyState::Enabled,
            "KeyId": key.id,
            "KeyManager": "CUSTOMER",
            "KeySpec": spec.as_str(),
            "KeyState": key.state.as_str(),
            "KeyUsage": spec.usage(),
            "MultiRegion": false,
            "Origin": "AWS_KMS",
        });
        let mut add = |name: &str, value: Value| {
            if let Some(fields) = metadata.as_object_mut() {
                fields.insert(name.to_owned(), value);
            }
        };
        match &key.secret {
            Secret::Symmetric(symmetric) => {
                add("CurrentKeyMaterialId", json!(symmetric.current().id()));
                add("EncryptionAlgorithms", json!([SYMMETRIC]));
            }
            Secret::Rsa(_) => add("EncryptionAlgorithms", json!([OAEP])),
            Secret::Hmac(_) => add("MacAlgorithms", json!([HMAC])),
        }
        if let Some(deletion) = key.deletion {
            add("DeletionDate", json!(seconds(deletion)));
        }
        metadata
    }
}

/// The key that is called `id` already, if it is of this spec.
fn found(store: &KeyStore, id: Option<&str>, spec: KeySpec, now: UnixMillis) -> Result<Option<Key>, ApiError> {
    match id.and_then(|id| store.get(id, now)) {
        Some(key) if key.secret.spec() != spec => Err(ApiError::caller(
            "AlreadyExistsException",
            "there is a key of another spec with this id",
        )),
        found => Ok(found.cloned()),
    }
}

fn parse_policy(text: &str) -> Result<KeyPolicy, ApiError> {
    KeyPolicy::parse(text).map_err(|e| ApiError::caller("MalformedPolicyDocumentException", e.to_string()))
}

fn check_policy_name(request: &KeyPolicyRequest) -> Result<(), ApiError> {
    match request.policy_name.as_deref() {
        None | Some("default") => Ok(()),
        Some(_) => Err(ApiError::validation("PolicyName must be default")),
    }
}

/// Up to `Limit` names after `Marker`, and whether there are more.
fn page<'a>(names: impl Iterator<Item = &'a str>, request: &Page) -> Result<(Vec<&'a str>, bool), ApiError> {
    let limit = request.limit.unwrap_or(100);
    if !(1..=1000).contains(&limit) {
        return Err(ApiError::validation("Limit must be from 1 to 1000"));
    }
    let limit = usize::try_from(limit).unwrap_or(1000);
    let after = |name: &&str| request.marker.as_deref().is_none_or(|marker| *name > marker);
    let mut page: Vec<&str> = names.filter(after).take(limit + 1).collect();
    let more = page.len() > limit;
    page.truncate(limit);
    Ok((page, more))
}

fn with_next(mut value: Value, more: bool) -> Value {
    let last = value
        .as_object()
        .and_then(|fields| fields.values().next())
        .and_then(Value::as_array)
        .and_then(|list| {
            let last = list.last()?;
            last.get("KeyId").or_else(|| last.get("AliasName")).cloned()
        });
    if let Some(fields) = value.as_object_mut() {
        fields.insert("Truncated".to_owned(), json!(more));
        if let (true, Some(last)) = (more, last) {
            fields.insert("NextMarker".to_owned(), last);
        }
    }
    value
}

fn random_uuid() -> Result<String, ApiError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|_| ApiError::internal())?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    ))
}
