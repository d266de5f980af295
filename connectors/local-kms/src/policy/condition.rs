//! Conditions of a statement: operators, and the values that condition keys have in a call.

use std::borrow::Cow;

use sealflow::clock::UnixMillis;

use super::Call;
use super::pattern::{arn_like, like};
use super::principal::{account_of, principal_arn};

/// The last of the registers of an attestation document.
const LAST_REGISTER: u8 = 31;

/// Whether a value of the policy and one of the request fit; `None`: they cannot be compared.
type Holds = fn(&str, &str) -> Option<bool>;

/// Whether one condition holds; `None` if this evaluator does not know its operator or key.
pub(super) fn condition_holds(operator: &str, key: &str, wanted: &[String], call: &Call<'_>) -> Option<bool> {
    let (set, operator) = match operator.split_once(':') {
        Some((set @ ("ForAnyValue" | "ForAllValues"), rest)) => (Some(set), rest),
        Some(_) => return None,
        None => (None, operator),
    };
    let present = values_of(key, call)?;
    if operator == "Null" {
        let [wanted] = wanted else { return None };
        return match (wanted.as_str(), set) {
            ("true", None) => Some(present.is_empty()),
            ("false", None) => Some(!present.is_empty()),
            _ => None,
        };
    }
    let (operator, if_exists) = match operator.strip_suffix("IfExists") {
        Some(operator) => (operator, true),
        None => (operator, false),
    };
    let (holds, negated): (Holds, bool) = match operator {
        "StringEquals" => (|wanted, value| Some(wanted == value), false),
        "StringNotEquals" => (|wanted, value| Some(wanted == value), true),
        "StringEqualsIgnoreCase" => (
            |wanted, value| Some(wanted.to_lowercase() == value.to_lowercase()),
            false,
        ),
        "StringNotEqualsIgnoreCase" => (
            |wanted, value| Some(wanted.to_lowercase() == value.to_lowercase()),
            true,
        ),
        "StringLike" => (|wanted, value| Some(like(wanted, value)), false),
        "StringNotLike" => (|wanted, value| Some(like(wanted, value)), true),
        "ArnLike" | "ArnEquals" => (|wanted, value| Some(arn_like(wanted, value)), false),
        "ArnNotLike" | "ArnNotEquals" => (|wanted, value| Some(arn_like(wanted, value)), true),
        "DateEquals" => (|wanted, value| Some(moment(wanted)? == moment(value)?), false),
        "DateNotEquals" => (|wanted, value| Some(moment(wanted)? == moment(value)?), true),
        "DateLessThan" => (|wanted, value| Some(moment(value)? < moment(wanted)?), false),
        "DateLessThanEquals" => (|wanted, value| Some(moment(value)? <= moment(wanted)?), false),
        "DateGreaterThan" => (|wanted, value| Some(moment(value)? > moment(wanted)?), false),
        "DateGreaterThanEquals" => (|wanted, value| Some(moment(value)? >= moment(wanted)?), false),
        _ => return None,
    };
    if if_exists && present.is_empty() {
        return Some(true);
    }
    let mut of_each = Vec::with_capacity(present.len());
    for value in &present {
        let each: Option<Vec<bool>> = wanted.iter().map(|wanted| holds(wanted, value)).collect();
        of_each.push(each?.contains(&true) != negated);
    }
    Some(match set {
        Some("ForAllValues") => !of_each.contains(&false),
        Some(_) => of_each.contains(&true),
        // A negated operator holds where the key is absent.
        None if present.is_empty() => negated,
        // A key with several values needs a set operator; without one AWS's answer is not defined.
        None if present.len() > 1 => return None,
        None => !of_each.contains(&false),
    })
}

/// The values that a condition key has in `call`; `None` for keys that are not known here.
fn values_of<'a>(key: &str, call: &Call<'a>) -> Option<Vec<Cow<'a, str>>> {
    let lower = key.to_ascii_lowercase();
    if let Some(name) = lower.strip_prefix("kms:encryptioncontext:") {
        // As in AWS, a condition key is matched without case, the name in the context that is part of it too: only
        // kms:EncryptionContextKeys tells `acl` from `ACL`.
        let same = call.context.iter().filter(|(key, _)| key.to_ascii_lowercase() == name);
        return Some(same.map(|(_, value)| Cow::from(value.as_str())).collect());
    }
    if let Some(name) = lower.strip_prefix("kms:recipientattestation:") {
        let register = register(name)?;
        let measured = call.evidence.and_then(|evidence| evidence.register(register));
        return Some(measured.map(Cow::from).into_iter().collect());
    }
    match lower.as_str() {
        "kms:encryptioncontextkeys" => Some(call.context.keys().map(|key| Cow::from(key.as_str())).collect()),
        "kms:encryptionalgorithm" => Some(call.algorithm.map(Cow::from).into_iter().collect()),
        "aws:principalarn" => Some(vec![principal_arn(call.principal)]),
        "aws:principalaccount" | "kms:calleraccount" => {
            Some(account_of(call.principal).map(Cow::from).into_iter().collect())
        }
        "aws:currenttime" => Some(vec![Cow::from(call.now.to_string())]),
        _ => None,
    }
}

/// The register of an attestation document that a condition key means; `None` for names that are not known here, those of
/// NitroTPM among them.
fn register(name: &str) -> Option<u8> {
    if name == "imagesha384" {
        return Some(0);
    }
    let digits = name.strip_prefix("pcr")?;
    let number: u8 = digits.parse().ok()?;
    // Spelled as AWS spells it: PCR1, and never PCR01 or PCR+1.
    (number <= LAST_REGISTER && number.to_string() == digits).then_some(number)
}

/// A date as policies write it: with time and zone. Fractions of seconds are of no account.
fn moment(text: &str) -> Option<u64> {
    let moment: UnixMillis = text.parse().ok()?;
    Some(moment.0 / 1_000)
}
