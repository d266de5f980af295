//! Whether KMS gives and unwraps a data key for every key of the policy, under the context that a run would use.

use sealflow::keys::{ClientKeyService, EncryptionContext, KeyService, KeyServiceError};
use sealflow::policy::{KeyGroup, KeyPair, Policy, PolicyKey, RsaKey};

use super::checklist::Checklist;
use crate::config::{Mode, PipelineConfig};
use crate::failure::{Exit, Failure};
use crate::services::Services;

const DATA_KEY_LEN: usize = 32;

/// One line per (policy key, ACL), and one per domain.
pub(super) async fn check(config: &PipelineConfig, services: &Services, list: &mut Checklist) {
    let policy = services.policy.policy();
    match services.kms.identity().await {
        Ok(identity) => list.ok("kms credentials", identity),
        // STS may be out of reach where KMS is not.
        Err(error) if error.is_retryable() => list.warn(
            "kms credentials",
            error,
            "check access to STS; opening needs to know who opens",
        ),
        Err(error) => list.failed("kms credentials", &error.into()),
    }
    for group in policy.groups().into_iter().chain(policy.dead_letter_group()) {
        let Some(key) = policy.keys.get(&group.key) else {
            continue;
        };
        let name = format!("key {} for ACL {} of {}", group.key, group.acl, group.dataset);
        match round_trip(config.mode, services.kms.as_ref(), key, &group).await {
            Ok(found) => list.ok(&name, found),
            Err(failure) => list.failed(&name, &failure),
        }
    }
    let client = policy.client.iter().flat_map(|rule| &rule.keys);
    for (key, rule) in client {
        let name = format!("client key {key}");
        let arn = rule.key.arn();
        match &rule.key {
            RsaKey::Pair(pair) => match pair_fits(services.kms.as_ref(), pair).await {
                Ok(true) => list.ok(&name, format_args!("{arn} unwraps the private half of its pair")),
                Ok(false) => list.failed(
                    &name,
                    &Failure::config(
                        format_args!("what {arn} unwraps is not the private half of the pair"),
                        "take `public` and `wrapped` from the same `sealflow keys pair`",
                    ),
                ),
                Err(error) => list.failed(&name, &error.into()),
            },
            _ => match services.kms.public_key(arn).await {
                Ok(_) => list.ok(&name, format_args!("{arn} has a public half for clients")),
                Err(error) => list.failed(&name, &error.into()),
            },
        }
    }
    if let Some(mac) = policy.client.as_ref().and_then(|rule| rule.mac.as_ref()) {
        let name = "HMAC key of clients";
        match services.kms.mac(&mac.arn, b"sealflow validate").await {
            Ok(_) => list.ok(name, format_args!("{} makes MACs", mac.arn)),
            Err(error) => list.failed(name, &error.into()),
        }
    }
    for domain in domains(policy) {
        let name = format!("domain {domain}");
        match services.sealer().domains.get(&domain, None).await {
            Ok(found) => list.ok(
                &name,
                format_args!("version {}, its secret unwraps", found.document.document().version),
            ),
            Err(error) => {
                let exit = if error.is_retryable() {
                    Exit::Unavailable
                } else {
                    Exit::Config
                };
                list.failed(
                    &name,
                    &Failure::new(
                        exit,
                        error,
                        "make it with `sealflow policy domain create`, or check KMS and catalogue",
                    ),
                );
            }
        }
    }
}

/// Whether KMS gives the private half that belongs to the public one, as a run would ask for it.
async fn pair_fits(kms: &dyn ClientKeyService, pair: &KeyPair) -> Result<bool, KeyServiceError> {
    let context = EncryptionContext::for_client_pair(&pair.dataset);
    let half = kms.private_half(&pair.arn, &pair.wrapped, &context).await?;
    Ok(half.public() == pair.public)
}

fn domains(policy: &Policy) -> Vec<String> {
    let mut names: Vec<String> = policy
        .columns
        .iter()
        .filter_map(|rule| rule.sealing_domain().map(str::to_owned))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// What the pipeline would ask for. One that seals need not be allowed to unwrap, and the other way round.
async fn round_trip(mode: Mode, kms: &dyn KeyService, key: &PolicyKey, group: &KeyGroup) -> Result<String, Failure> {
    let name = key_name(key)?;
    let context = EncryptionContext::for_data_key(&group.dataset, &name, &group.acl);
    let generated = match kms.generate(&key.arn, DATA_KEY_LEN, &context).await {
        Ok(generated) => generated,
        Err(KeyServiceError::NotPermitted { .. }) if mode == Mode::Open => return describe(kms, key).await,
        Err(error) => return Err(error.into()),
    };
    match kms.unwrap(&key.arn, &generated.wrapped, &context).await {
        Ok(unwrapped) if unwrapped == generated.plaintext => Ok(format!("{} wraps and unwraps", key.arn)),
        Ok(_) => Err(Failure::new(
            Exit::Unavailable,
            "KMS unwrapped another key than it made",
            "check that the endpoint is a KMS",
        )),
        Err(KeyServiceError::NotPermitted { .. }) if mode == Mode::Seal => Ok(format!(
            "{} wraps; this identity may not unwrap, and sealing does not need it",
            key.arn
        )),
        Err(error) => Err(error.into()),
    }
}

async fn describe(kms: &dyn KeyService, key: &PolicyKey) -> Result<String, Failure> {
    let found = kms.describe(&key.arn).await?;
    if found.enabled {
        return Ok(format!(
            "{} is there; unwrapping cannot be tried without a key of it",
            found.arn
        ));
    }
    Err(Failure::config(
        format_args!("{} is {}", found.arn, found.state),
        "enable the key, or name another in the policy",
    ))
}

/// A template's fields stand in for those of a record.
fn key_name(key: &PolicyKey) -> Result<String, Failure> {
    let values = vec!["validate"; key.name.fields().len()];
    key.name
        .resolve(&values)
        .map_err(|error| Failure::config(error, "correct the key's name in the policy"))
}
