//! The operations of the local KMS: a caller and a JSON request in, a JSON answer or an AWS error out. No I/O but
//! that of the key store.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::clock::{Clock, UnixMillis};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::blob::{self, Context, MAX_BLOB};
use crate::error::ApiError;
use crate::keys::{Key, KeyState, KeyStore};
use crate::policy::{Call, KeyPolicy};
use crate::vault::VaultError;

const MAX_ENCRYPT: usize = 4096;
const MAX_DATA_KEY: usize = 1024;
const MAX_CONTEXT: usize = 8192;
const MAX_DESCRIPTION: usize = 8192;
const MAX_ALIAS: usize = 256;
const SYMMETRIC: &str = "SYMMETRIC_DEFAULT";

/// The key service behind the HTTP endpoint.
#[derive(Debug)]
pub(crate) struct Service {
    region: String,
    account: String,
    clock: Arc<dyn Clock>,
    store: Mutex<KeyStore>,
}

/// JSON in which base64 plaintext may stand, wiped on drop.
pub(crate) type Answer = Zeroizing<Vec<u8>>;

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
struct OneKey {
    key_id: String,
    #[serde(default)]
    grant_tokens: Vec<String>,
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

/// Base64 in a request; the bytes are wiped on drop.
struct Base64(Zeroizing<Vec<u8>>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = STANDARD
            .decode(text.as_bytes())
            .map_err(|_| serde::de::Error::custom("not base64"))?;
        Ok(Self(Zeroizing::new(bytes)))
    }
}

impl Service {
    pub(crate) fn new(region: String, account: String, clock: Arc<dyn Clock>, store: KeyStore) -> Self {
        Self {
            region,
            account,
            clock,
            store: Mutex::new(store),
        }
    }

    /// Does `operation` (`Decrypt`, …) for `caller`, an authenticated principal's ARN.
    pub(crate) fn handle(&self, operation: &str, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        self.store().destroy_due(self.clock.now()).map_err(internal)?;
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
            "Encrypt" => self.encrypt(caller, body),
            "Decrypt" => self.decrypt(caller, body),
            "EnableKey" => self.set_enabled(caller, body, true),
            "DisableKey" => self.set_enabled(caller, body, false),
            "ScheduleKeyDeletion" => self.schedule_key_deletion(caller, body),
            "CancelKeyDeletion" => self.cancel_key_deletion(caller, body),
            other if other.len() <= 64 && other.bytes().all(|b| b.is_ascii_alphanumeric()) => Err(ApiError::caller(
                "UnknownOperationException",
                format!("the local KMS does not do {other}"),
            )),
            _ => Err(ApiError::caller("UnknownOperationException", "")),
        }
    }

    fn create_key(&self, body: &[u8]) -> Result<Answer, ApiError> {
        let request: CreateKey = parse(body)?;
        let spec = request.key_spec.or(request.customer_master_key_spec);
        if spec.as_deref().is_some_and(|s| s != SYMMETRIC) {
            return Err(ApiError::unsupported("the local KMS makes SYMMETRIC_DEFAULT keys only"));
        }
        if request.key_usage.as_deref().is_some_and(|u| u != "ENCRYPT_DECRYPT") {
            return Err(ApiError::unsupported("the local KMS makes ENCRYPT_DECRYPT keys only"));
        }
        if request.origin.as_deref().is_some_and(|o| o != "AWS_KMS") || request.multi_region {
            return Err(ApiError::unsupported(
                "the local KMS makes single-region keys of origin AWS_KMS only",
            ));
        }
        let policy = request.policy.as_deref().map(parse_policy).transpose()?;
        let key = self.new_key(None, &request.description, policy)?;
        answer(&json!({ "KeyMetadata": self.metadata(&key) }))
    }

    /// Makes a key; with an `id` that is there already, gives that one back unchanged.
    pub(crate) fn new_key(
        &self,
        id: Option<&str>,
        description: &str,
        policy: Option<KeyPolicy>,
    ) -> Result<Key, ApiError> {
        if description.len() > MAX_DESCRIPTION {
            return Err(ApiError::validation("Description is longer than 8,192 bytes"));
        }
        let now = self.clock.now();
        let mut store = self.store();
        if let Some(key) = id.and_then(|id| store.get(id, now)) {
            return Ok(key.clone());
        }
        if store.is_full() {
            return Err(ApiError::caller(
                "LimitExceededException",
                "the local KMS holds no more keys",
            ));
        }
        let mut material = Zeroizing::new([0; 32]);
        getrandom::fill(material.as_mut_slice()).map_err(|_| ApiError::internal())?;
        let id = match id {
            Some(id) => id.to_owned(),
            None => random_uuid()?,
        };
        let key = Key {
            id,
            material,
            description: description.to_owned(),
            policy: policy.unwrap_or_else(|| KeyPolicy::default_for(&self.account)),
            state: KeyState::Enabled,
            created: now,
            deletion: None,
        };
        store.put(key.clone()).map_err(internal)?;
        Ok(key)
    }

    fn create_alias(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
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

    fn describe_key(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: OneKey = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        let key = self.authorized_key(&request.key_id, caller, "kms:DescribeKey", &Context::new())?;
        answer(&json!({ "KeyMetadata": self.metadata(&key) }))
    }

    fn list_keys(&self, body: &[u8]) -> Result<Answer, ApiError> {
        let request: Page = parse(body)?;
        let store = self.store();
        let (ids, next) = page(store.ids(), &request)?;
        let keys: Vec<Value> = ids
            .iter()
            .map(|id| json!({ "KeyId": id, "KeyArn": self.arn(id) }))
            .collect();
        answer(&with_next(json!({ "Keys": keys }), next))
    }

    fn list_aliases(&self, body: &[u8]) -> Result<Answer, ApiError> {
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

    fn get_key_policy(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: KeyPolicyRequest = parse(body)?;
        check_policy_name(&request)?;
        let key = self.authorized_key(&request.key_id, caller, "kms:GetKeyPolicy", &Context::new())?;
        answer(&json!({ "Policy": key.policy.text(), "PolicyName": "default" }))
    }

    fn put_key_policy(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: KeyPolicyRequest = parse(body)?;
        check_policy_name(&request)?;
        let policy = parse_policy(request.policy.as_deref().unwrap_or_default())?;
        let key = self.authorized_key(&request.key_id, caller, "kms:PutKeyPolicy", &Context::new())?;
        self.store().put(Key { policy, ..key }).map_err(internal)?;
        Ok(Answer::default())
    }

    fn generate_data_key(&self, caller: &str, body: &[u8], with_plaintext: bool) -> Result<Answer, ApiError> {
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
        let blob = blob::seal(&key.material, &arn, &plaintext, &request.encryption_context);
        let blob = STANDARD.encode(blob.map_err(|_| ApiError::internal())?);
        if !with_plaintext {
            return answer(&json!({ "KeyId": arn, "CiphertextBlob": blob }));
        }
        // By hand, because a JSON tree would leave a copy of the plaintext behind. Base64 and ARNs need no escapes.
        let plaintext = Zeroizing::new(STANDARD.encode(&plaintext));
        let parts = [
            r#"{"CiphertextBlob":""#,
            &blob,
            r#"","Plaintext":""#,
            &plaintext,
            r#"","KeyId":""#,
            &arn,
            r#""}"#,
        ];
        Ok(concat(&parts))
    }

    fn encrypt(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
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
        let blob = blob::seal(&key.material, &arn, &request.plaintext.0, &request.encryption_context);
        let blob = STANDARD.encode(blob.map_err(|_| ApiError::internal())?);
        answer(&json!({ "KeyId": arn, "CiphertextBlob": blob, "EncryptionAlgorithm": SYMMETRIC }))
    }

    fn decrypt(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: Decrypt = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        check_algorithm(request.encryption_algorithm.as_deref())?;
        check_context(&request.encryption_context)?;
        if request.ciphertext_blob.0.is_empty() || request.ciphertext_blob.0.len() > MAX_BLOB {
            return Err(ApiError::validation("CiphertextBlob must have 1 to 6144 bytes"));
        }
        let parsed = blob::parse(&request.ciphertext_blob.0);
        let named = match (&request.key_id, &parsed) {
            (Some(named), _) => named.as_str(),
            (None, Ok(blob)) => blob.key_arn,
            (None, Err(_)) => return Err(ApiError::invalid_ciphertext()),
        };
        let key = self.usable_key(named, caller, "kms:Decrypt", &request.encryption_context)?;
        refuse_dry_run(request.dry_run)?;
        let blob = parsed.map_err(|_| ApiError::invalid_ciphertext())?;
        let arn = self.arn(&key.id);
        if blob.key_arn != arn {
            let message = "The key ID in the request does not identify a CMK that can perform this operation.";
            return Err(ApiError::caller("IncorrectKeyException", message));
        }
        let opened = blob::open(&key.material, &blob, &request.encryption_context);
        let plaintext = opened.map_err(|_| ApiError::invalid_ciphertext())?;
        let plaintext = Zeroizing::new(STANDARD.encode(&plaintext));
        let end = r#"","EncryptionAlgorithm":"SYMMETRIC_DEFAULT"}"#;
        Ok(concat(&[r#"{"KeyId":""#, &arn, r#"","Plaintext":""#, &plaintext, end]))
    }

    fn set_enabled(&self, caller: &str, body: &[u8], enabled: bool) -> Result<Answer, ApiError> {
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

    fn schedule_key_deletion(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
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

    fn cancel_key_deletion(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
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

    /// The key named by `key_id`, if its policy lets `caller` do `action` and its state allows cryptography.
    fn usable_key(&self, key_id: &str, caller: &str, action: &str, context: &Context) -> Result<Key, ApiError> {
        let key = self.authorized_key(key_id, caller, action, context)?;
        let arn = self.arn(&key.id);
        match key.state {
            KeyState::Enabled => Ok(key),
            KeyState::Disabled => Err(ApiError::caller("DisabledException", format!("{arn} is disabled."))),
            KeyState::PendingDeletion => Err(invalid_state(&arn, "is pending deletion.")),
        }
    }

    fn authorized_key(&self, key_id: &str, caller: &str, action: &str, context: &Context) -> Result<Key, ApiError> {
        let key = self.find_key(key_id)?;
        let arn = self.arn(&key.id);
        let call = Call {
            principal: caller,
            action,
            key_arn: &arn,
            context,
        };
        if !key.policy.allows(&call) {
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

    fn metadata(&self, key: &Key) -> Value {
        let mut metadata = json!({
            "AWSAccountId": self.account,
            "Arn": self.arn(&key.id),
            "CreationDate": seconds(key.created),
            "CustomerMasterKeySpec": SYMMETRIC,
            "Description": key.description,
            "Enabled": key.state == KeyState::Enabled,
            "EncryptionAlgorithms": [SYMMETRIC],
            "KeyId": key.id,
            "KeyManager": "CUSTOMER",
            "KeySpec": SYMMETRIC,
            "KeyState": key.state.as_str(),
            "KeyUsage": "ENCRYPT_DECRYPT",
            "MultiRegion": false,
            "Origin": "AWS_KMS",
        });
        if let (Some(deletion), Some(fields)) = (key.deletion, metadata.as_object_mut()) {
            fields.insert("DeletionDate".to_owned(), json!(seconds(deletion)));
        }
        metadata
    }

    fn store(&self) -> MutexGuard<'_, KeyStore> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // The message of serde_json may quote the input where a string was not expected; positions say enough.
    serde_json::from_slice(body).map_err(|e| match e.classify() {
        serde_json::error::Category::Data => ApiError::validation(format!(
            "a member at line {} column {} is unknown to the local KMS, missing or of the wrong type",
            e.line(),
            e.column()
        )),
        _ => ApiError::caller("SerializationException", "the request is not JSON"),
    })
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

fn check_algorithm(algorithm: Option<&str>) -> Result<(), ApiError> {
    match algorithm {
        None | Some(SYMMETRIC) => Ok(()),
        Some(_) => Err(ApiError::caller(
            "InvalidKeyUsageException",
            "the algorithm does not fit the key",
        )),
    }
}

fn check_context(context: &Context) -> Result<(), ApiError> {
    let size: usize = context.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > MAX_CONTEXT {
        return Err(ApiError::validation("EncryptionContext is larger than 8,192 bytes"));
    }
    if context.keys().any(String::is_empty) {
        return Err(ApiError::validation("EncryptionContext has an empty name"));
    }
    Ok(())
}

fn refuse_grants(tokens: &[String]) -> Result<(), ApiError> {
    if tokens.is_empty() {
        Ok(())
    } else {
        Err(ApiError::unsupported("the local KMS has no grants"))
    }
}

fn refuse_dry_run(dry_run: bool) -> Result<(), ApiError> {
    if !dry_run {
        return Ok(());
    }
    let message = "The request would have succeeded, but the DryRun option is set.";
    Err(ApiError::caller("DryRunOperationException", message))
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

fn answer(value: &Value) -> Result<Answer, ApiError> {
    serde_json::to_vec(value)
        .map(Zeroizing::new)
        .map_err(|_| ApiError::internal())
}

/// Joins `parts` into one buffer that is allocated once, so that no half-grown copy stays behind.
fn concat(parts: &[&str]) -> Answer {
    let mut bytes = Zeroizing::new(Vec::with_capacity(parts.iter().map(|p| p.len()).sum()));
    for part in parts {
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

/// Seconds since 1970, as the JSON protocol writes timestamps.
#[allow(
    clippy::cast_precision_loss,
    reason = "milliseconds of any real date are far below 2^53"
)]
fn seconds(time: UnixMillis) -> f64 {
    time.0 as f64 / 1000.0
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

#[allow(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
fn internal(error: VaultError) -> ApiError {
    tracing::error!(%error, "the local KMS cannot use its folder");
    ApiError::internal()
}
