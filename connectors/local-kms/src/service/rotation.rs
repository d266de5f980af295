//! Rotation of key material: by schedule and on demand. ARN and policy stay; old material goes on to decrypt. Only
//! symmetric keys rotate.

use serde::Deserialize;
use serde_json::{Value, json};

use super::wire::{Answer, answer, parse, seconds};
use super::{OneKey, Service, internal, refuse_pending};
use crate::blob::Context;
use crate::error::ApiError;
use crate::keys::{Key, KeyState, Material, RotatedBy, Schedule, Secret, Symmetric};

/// Days between automatic rotations: the default and the bounds of `EnableKeyRotation`.
const DEFAULT_PERIOD: u64 = 365;
const PERIODS: std::ops::RangeInclusive<u64> = 90..=2560;

/// How often one key can be rotated on demand, as in AWS KMS.
const MAX_ON_DEMAND: usize = 25;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct EnableKeyRotation {
    key_id: String,
    rotation_period_in_days: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct ListKeyRotations {
    key_id: String,
    include_key_material: Option<String>,
    limit: Option<usize>,
    marker: Option<String>,
}

impl Service {
    pub(super) fn enable_key_rotation(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: EnableKeyRotation = parse(body)?;
        let days = request.rotation_period_in_days.unwrap_or(DEFAULT_PERIOD);
        if !PERIODS.contains(&days) {
            return Err(ApiError::validation("RotationPeriodInDays must be from 90 to 2560"));
        }
        let key = self.usable_key(&request.key_id, caller, "kms:EnableKeyRotation", &Context::new())?;
        let schedule = Some(Schedule::starting(self.clock.now(), days));
        self.reschedule(&key, schedule)
    }

    pub(super) fn disable_key_rotation(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: OneKey = parse(body)?;
        let key = self.usable_key(&request.key_id, caller, "kms:DisableKeyRotation", &Context::new())?;
        self.reschedule(&key, None)
    }

    fn reschedule(&self, key: &Key, schedule: Option<Schedule>) -> Result<Answer, ApiError> {
        let scheduled = self.rotating(key)?.scheduled(schedule);
        self.store()
            .put(key.with(Secret::Symmetric(scheduled)))
            .map_err(internal)?;
        Ok(Answer::default())
    }

    fn rotating<'a>(&self, key: &'a Key) -> Result<&'a Symmetric, ApiError> {
        match &key.secret {
            Secret::Symmetric(symmetric) => Ok(symmetric),
            Secret::Rsa(_) | Secret::Hmac(_) => {
                let (arn, spec) = (self.arn(&key.id), key.secret.spec().as_str());
                let message = format!("{arn} is of the key spec {spec}, and only symmetric keys rotate.");
                Err(ApiError::unsupported(message))
            }
        }
    }

    /// A disabled key keeps its schedule; one that is pending deletion shows none until that is cancelled. Of keys that
    /// cannot rotate the status is false, as in AWS.
    pub(super) fn get_key_rotation_status(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: OneKey = parse(body)?;
        let key = self.authorized_key(&request.key_id, caller, "kms:GetKeyRotationStatus", &Context::new())?;
        let schedule = match &key.secret {
            Secret::Symmetric(symmetric) if key.state != KeyState::PendingDeletion => symmetric.schedule,
            _ => None,
        };
        let mut status = json!({ "KeyId": self.arn(&key.id), "KeyRotationEnabled": schedule.is_some() });
        if let (Some(schedule), Some(fields)) = (schedule, status.as_object_mut()) {
            fields.insert("RotationPeriodInDays".to_owned(), json!(schedule.days));
            fields.insert("NextRotationDate".to_owned(), json!(seconds(schedule.next)));
        }
        answer(&status)
    }

    /// Done at once; the automatic schedule stays as it is.
    pub(super) fn rotate_key_on_demand(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: OneKey = parse(body)?;
        let key = self.usable_key(&request.key_id, caller, "kms:RotateKeyOnDemand", &Context::new())?;
        let arn = self.arn(&key.id);
        let symmetric = self.rotating(&key)?;
        let done = symmetric
            .rotations
            .iter()
            .filter(|rotation| rotation.by == RotatedBy::OnDemand);
        if done.count() >= MAX_ON_DEMAND {
            let message = format!("{arn} was rotated on demand {MAX_ON_DEMAND} times, which is the most");
            return Err(ApiError::caller("LimitExceededException", message));
        }
        let material = Material::fresh().map_err(|_| ApiError::internal())?;
        let rotated = symmetric.rotated(material, self.clock.now(), RotatedBy::OnDemand);
        self.store()
            .put(key.with(Secret::Symmetric(rotated)))
            .map_err(internal)?;
        answer(&json!({ "KeyId": arn }))
    }

    /// Completed rotations, oldest first; with `ALL_KEY_MATERIAL` the first material too, which no rotation made.
    pub(super) fn list_key_rotations(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: ListKeyRotations = parse(body)?;
        let all = match request.include_key_material.as_deref() {
            None | Some("ROTATIONS_ONLY") => false,
            Some("ALL_KEY_MATERIAL") => true,
            Some(_) => {
                return Err(ApiError::validation(
                    "IncludeKeyMaterial is ROTATIONS_ONLY or ALL_KEY_MATERIAL",
                ));
            }
        };
        let limit = request.limit.unwrap_or(100);
        if !(1..=1000).contains(&limit) {
            return Err(ApiError::validation("Limit must be from 1 to 1000"));
        }
        let start = match request.marker.as_deref().map(str::parse::<usize>) {
            None => 0,
            Some(Ok(start)) => start,
            Some(Err(_)) => return Err(ApiError::caller("InvalidMarkerException", "not a marker of this list")),
        };
        let key = self.authorized_key(&request.key_id, caller, "kms:ListKeyRotations", &Context::new())?;
        refuse_pending(&key, &self.arn(&key.id))?;
        let rows = rotation_rows(self.rotating(&key)?, &self.arn(&key.id), all);
        let page: Vec<Value> = rows.iter().skip(start).take(limit).cloned().collect();
        let next = start.saturating_add(limit);
        let mut list = json!({ "Rotations": page, "Truncated": next < rows.len() });
        if let (true, Some(fields)) = (next < rows.len(), list.as_object_mut()) {
            fields.insert("NextMarker".to_owned(), json!(next.to_string()));
        }
        answer(&list)
    }
}

fn rotation_rows(symmetric: &Symmetric, arn: &str, all: bool) -> Vec<Value> {
    let current = symmetric.current_number();
    let state = |number: usize| {
        if number == current as usize {
            "CURRENT"
        } else {
            "NON_CURRENT"
        }
    };
    let mut rows = Vec::new();
    if all {
        rows.push(json!({ "KeyId": arn, "KeyMaterialId": symmetric.first.id(), "KeyMaterialState": state(0) }));
    }
    rows.extend(symmetric.rotations.iter().enumerate().map(|(n, rotation)| {
        json!({
            "KeyId": arn,
            "KeyMaterialId": rotation.material.id(),
            "KeyMaterialState": state(n + 1),
            "RotationDate": seconds(rotation.at),
            "RotationType": rotation.by.as_str(),
        })
    }));
    rows
}
