//! What AWS is told of the KMS keys behind enclave columns, beside what it is told of every key: what nobody may ask for, and what
//! only a worker of the right measurement may.
//!
//! Any Allow without a condition would defeat a condition on another one, so these are Denies, which outweigh whatever allows.

use std::collections::{BTreeMap, BTreeSet};

use sealflow::policy::{Flow, MacRule, Policy, VerifiedPolicy};

use super::statement::{PRINCIPAL_ARN, Statement};
use crate::failure::{Failure, Result};

/// What would bring a secret to somebody without a worker, or make one that somebody knows: a blob of the caller's own
/// (`Encrypt`), the same under another key, a grant, a data key or pair that nobody in a worker made, material that was imported,
/// and a replica, which has a key policy of its own.
pub(super) const DENIED: &[&str] = &[
    "kms:CreateGrant",
    "kms:Encrypt",
    "kms:GenerateDataKeyPairWithoutPlaintext",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ImportKeyMaterial",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
    "kms:ReplicateKey",
];
/// What gives plaintext, and takes an attestation document.
pub(super) const MEASURED: &[&str] = &[
    "kms:Decrypt",
    "kms:DeriveSharedSecret",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyPair",
];

const IMAGE: &str = "kms:RecipientAttestation:ImageSha384";
/// Most statements that the measurements of one key may need.
const MOST_STATEMENTS: usize = 48;

/// Registers that must all be as they are here, in lower-case hex digits, by number. Register 0 is the image.
pub(super) type Measured = BTreeMap<u8, String>;

/// KMS keys behind the enclave columns of these policies, current and previous, with the measurements of each dataset.
pub(super) fn keys(policies: &[VerifiedPolicy]) -> BTreeMap<String, Vec<BTreeSet<Measured>>> {
    let mut keys: BTreeMap<String, Vec<BTreeSet<Measured>>> = BTreeMap::new();
    for policy in policies {
        let policy = policy.policy();
        let images = policy.enclave.iter().flat_map(|rule| rule.measurements.values());
        let registers = |(number, digits): (u8, &str)| (number, digits.to_owned());
        let measurements: BTreeSet<Measured> = images.map(|image| image.pcrs().map(registers).collect()).collect();
        for arn in of_policy(policy) {
            keys.entry(arn.to_owned()).or_default().push(measurements.clone());
        }
    }
    keys
}

/// KMS keys behind the enclave columns of a policy: those that wrap their data keys, and those behind what clients seal to.
pub(super) fn of_policy(policy: &Policy) -> BTreeSet<&str> {
    let names = policy.columns.iter().filter(|rule| rule.flow == Flow::Enclave);
    let wrapping = wrapping(policy, names.map(|rule| rule.key.as_str()));
    let clients = policy.enclave.iter().flat_map(|rule| rule.client.arns());
    wrapping.into_iter().chain(clients).collect()
}

/// KMS keys of everything else in the policy, for which the backend has rights without a worker.
pub(super) fn of_backend(policy: &Policy) -> BTreeSet<&str> {
    let groups = policy.dead_letter_group().into_iter().chain(policy.table_groups());
    let others: Vec<String> = groups.chain(policy.extra_group()).map(|group| group.key).collect();
    let columns = policy
        .columns
        .iter()
        .filter(|rule| rule.flow != Flow::Enclave && rule.domain().is_none());
    let names = columns
        .map(|rule| rule.key.as_str())
        .chain(others.iter().map(String::as_str));
    let mut keys = wrapping(policy, names);
    if let Some(client) = &policy.client {
        keys.extend(client.arns());
        keys.extend(client.mac.iter().flat_map(MacRule::arns));
    }
    keys
}

/// KMS keys, current and previous, of these policy keys.
fn wrapping<'a, 'b>(policy: &'a Policy, names: impl Iterator<Item = &'b str>) -> BTreeSet<&'a str> {
    let mut keys = BTreeSet::new();
    for current in names.filter_map(|name| policy.keys.get(name)) {
        keys.insert(current.arn.as_str());
        let previous = policy
            .previous
            .keys
            .iter()
            .filter(|old| old.name.overlaps(&current.name));
        keys.extend(previous.map(|old| old.arn.as_str()));
    }
    keys
}

/// Refuses what [`statements`] could not say. `keys` are those behind enclave columns, with the measurements of each dataset.
pub(super) fn check(keys: &BTreeMap<String, Vec<BTreeSet<Measured>>>, admins: &BTreeSet<String>) -> Result<()> {
    for (arn, of_datasets) in keys {
        if admins.is_empty() || admins.iter().any(|admin| admin.ends_with(":root")) {
            return Err(Failure::usage(
                format_args!(
                    "{arn} is behind enclave columns: whoever may change its key policy can take the measurement out of it"
                ),
                "name the role that administers it, and no account: --admin ARN",
            ));
        }
        let Some(measurements) = of_datasets.first() else {
            continue;
        };
        if of_datasets.iter().any(|others| others != measurements) {
            return Err(Failure::config(
                format_args!("{arn} is behind enclave columns of datasets that name different measurements"),
                "give each dataset a KMS key of its own, or the same measurements",
            ));
        }
        if without(measurements).is_none() {
            return Err(Failure::config(
                format_args!(
                    "the measurements for {arn} need more than {MOST_STATEMENTS} statements in its key policy"
                ),
                "name fewer measurements, or of those with one image none but the image",
            ));
        }
    }
    Ok(())
}

/// The statements of a key of enclave columns. Where [`check`] would have refused, they deny more than they should.
pub(super) fn statements(measurements: &BTreeSet<Measured>, admins: &BTreeSet<String>) -> Vec<Statement> {
    let outside = Statement::deny("DenyOutsideTheEnclave", DENIED);
    let mut others = Statement::deny("DenyOtherAdministrators", &["kms:PutKeyPolicy"]);
    if !admins.is_empty() {
        others = others.when("ArnNotLike", PRINCIPAL_ARN, admins.iter().cloned());
    }
    let mut statements = vec![outside, others];
    let nobody = || vec![Statement::deny("DenyOtherMeasurements", MEASURED)];
    statements.extend(without(measurements).unwrap_or_else(nobody));
    statements
}

/// Denies to whoever is of none of the measurements; `None` if that is too much to say.
///
/// By image: one that is none of these is denied; with one of them, what else each of its measurements asks for is. A statement
/// denies where all of its conditions hold, so with several measurements of one image there is a statement for each way to
/// be none of them.
fn without(measurements: &BTreeSet<Measured>) -> Option<Vec<Statement>> {
    let mut by_image: BTreeMap<&String, Vec<Vec<(u8, &String)>>> = BTreeMap::new();
    for measured in measurements {
        // The policy has none without an image; here it would be nobody's.
        let Some(image) = measured.get(&0) else { continue };
        let others = measured.iter().filter(|(register, _)| **register != 0);
        by_image
            .entry(image)
            .or_default()
            .push(others.map(|(register, value)| (*register, value)).collect());
    }
    let deny = || Statement::deny("DenyOtherMeasurements", MEASURED);
    let images = by_image.keys().map(|image| (*image).clone());
    // A negated operator holds where there is no document at all. Without a value it would hold for nobody.
    let mut statements = vec![if by_image.is_empty() {
        deny()
    } else {
        deny().when("StringNotEqualsIgnoreCase", IMAGE, images)
    }];
    for (image, alternatives) in by_image {
        let mut ways: BTreeSet<BTreeSet<(u8, &String)>> = BTreeSet::from([BTreeSet::new()]);
        for alternative in &alternatives {
            let mut longer = BTreeSet::new();
            for way in &ways {
                for other in alternative {
                    let mut way = way.clone();
                    way.insert(*other);
                    longer.insert(way);
                }
            }
            ways = longer;
            if ways.len() > MOST_STATEMENTS {
                return None;
            }
        }
        for way in ways {
            let mut statement = deny().when("StringEqualsIgnoreCase", IMAGE, [image.clone()]);
            for (register, value) in way {
                let key = format!("kms:RecipientAttestation:PCR{register}");
                statement = statement.when("StringNotEqualsIgnoreCase", &key, [value.clone()]);
            }
            statements.push(statement);
        }
    }
    (statements.len() <= MOST_STATEMENTS).then_some(statements)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sealflow::clock::UnixMillis;
    use sealflow_local_kms::policy::{Call, Evidence, KeyPolicy};
    use serde_json::json;

    use super::super::statement::Document;
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-central-1:111111111111:key/enclave";
    const ADMIN: &str = "arn:aws:iam::111111111111:role/admin";
    const ANYBODY: &str = "arn:aws:sts::111111111111:assumed-role/anybody/s";

    fn hex(value: u8) -> String {
        format!("{value:02x}").repeat(48)
    }

    fn evidence(registers: &BTreeMap<u8, u8>) -> Evidence {
        let bytes: BTreeMap<u8, [u8; 48]> = registers
            .iter()
            .map(|(number, value)| (*number, [*value; 48]))
            .collect();
        Evidence::of_registers(bytes.iter().map(|(number, bytes)| (*number, bytes.as_slice())))
    }

    /// The statements beside one that allows everything to everybody.
    fn policy(measurements: &BTreeSet<Measured>) -> KeyPolicy {
        let denies = statements(measurements, &BTreeSet::from([ADMIN.to_owned()]));
        let mut document = Document::default();
        document.extend(denies);
        let mut document = document.to_json();
        let everything = json!({ "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*" });
        document["Statement"].as_array_mut().unwrap().push(everything);
        KeyPolicy::parse(&document.to_string()).unwrap()
    }

    fn allows(policy: &KeyPolicy, principal: &str, action: &str, evidence: Option<&Evidence>) -> bool {
        policy.allows(&Call {
            principal,
            action,
            key_arn: ARN,
            context: &BTreeMap::new(),
            algorithm: None,
            evidence,
            now: UnixMillis(1_767_225_600_000),
        })
    }

    fn measured(registers: &BTreeMap<u8, u8>) -> Measured {
        registers.iter().map(|(number, value)| (*number, hex(*value))).collect()
    }

    /// Image 1 to 3, and registers 3, 4 and 8 where there are any.
    fn registers() -> impl Strategy<Value = BTreeMap<u8, u8>> {
        let others = prop::collection::btree_map(prop::sample::select(vec![3_u8, 4, 8]), 1_u8..3, 0..3);
        (1_u8..4, others).prop_map(|(image, mut registers)| {
            registers.insert(0, image);
            registers
        })
    }

    proptest! {
        #[test]
        fn plaintext_is_for_whoever_is_of_one_of_the_measurements_in_full_though_everything_is_allowed(
            sets in prop::collection::vec(registers(), 0..4), asked in prop::collection::vec(registers(), 1..12), upper in any::<bool>(),
        ) {
            let mut measurements: BTreeSet<Measured> = sets.iter().map(measured).collect();
            if upper {
                let loud = |set: &Measured| set.iter().map(|(n, hex)| (*n, hex.to_ascii_uppercase())).collect();
                measurements = measurements.iter().map(loud).collect();
            }
            let policy = policy(&measurements);
            for has in asked.iter().chain(&sets) {
                let fits = sets.iter().any(|set| set.iter().all(|(number, value)| has.get(number) == Some(value)));
                let evidence = evidence(has);
                for action in MEASURED {
                    prop_assert_eq!(allows(&policy, ANYBODY, action, Some(&evidence)), fits, "{} {:?} {:?}", action, has, sets);
                    prop_assert!(!allows(&policy, ANYBODY, action, None), "{}", action);
                }
                for action in DENIED {
                    for who in [ANYBODY, ADMIN] {
                        prop_assert!(!allows(&policy, who, action, Some(&evidence)), "{}", action);
                        prop_assert!(!allows(&policy, who, action, None), "{}", action);
                    }
                }
            }
            prop_assert!(allows(&policy, ANYBODY, "kms:DescribeKey", None));
        }
    }

    #[test]
    fn the_key_policy_is_changed_by_its_administrator_alone_who_must_be_named() {
        let measurements = BTreeSet::from([Measured::from([(0, hex(1))])]);
        let policy = policy(&measurements);
        let session = "arn:aws:sts::111111111111:assumed-role/admin/s";
        for (who, expected) in [
            (ADMIN, true),
            (session, true),
            (ANYBODY, false),
            ("arn:aws:iam::111111111111:root", false),
            ("arn:aws:iam::222222222222:role/admin", false),
        ] {
            assert_eq!(allows(&policy, who, "kms:PutKeyPolicy", None), expected, "{who}");
        }
        let keys = BTreeMap::from([(ARN.to_owned(), vec![measurements.clone()])]);
        let root = "arn:aws:iam::111111111111:root".to_owned();
        for admins in [
            BTreeSet::new(),
            BTreeSet::from([root.clone()]),
            BTreeSet::from([ADMIN.to_owned(), root]),
        ] {
            assert!(check(&keys, &admins).is_err(), "{admins:?}");
        }
        assert!(check(&keys, &BTreeSet::from([ADMIN.to_owned()])).is_ok());
    }

    #[test]
    fn a_register_of_zeros_is_no_measurement_even_if_a_policy_names_it() {
        let policy = policy(&BTreeSet::from([Measured::from([(0, "00".repeat(48))])]));
        assert!(!allows(
            &policy,
            ANYBODY,
            "kms:Decrypt",
            Some(&evidence(&BTreeMap::from([(0, 0)])))
        ));
    }

    #[test]
    fn what_no_key_policy_could_say_is_an_error() {
        // Four measurements of one image, three registers each: 3^4 ways to be none of them.
        let set = |n: u8| Measured::from([(0, hex(9)), (3, hex(n)), (4, hex(n)), (8, hex(n))]);
        let admins = BTreeSet::from([ADMIN.to_owned()]);
        let of = |datasets: Vec<BTreeSet<Measured>>| check(&BTreeMap::from([(ARN.to_owned(), datasets)]), &admins);
        let (four, two): (BTreeSet<Measured>, BTreeSet<Measured>) =
            ((1..5).map(set).collect(), (1..3).map(set).collect());
        assert!(of(vec![two.clone()]).is_ok() && of(vec![two.clone(), two.clone()]).is_ok());
        assert!(of(vec![four.clone()]).is_err() && of(vec![two, BTreeSet::from([set(1)])]).is_err());
        // If it came to that, nobody would get plaintext.
        let policy = policy(&four);
        let fits = evidence(&BTreeMap::from([(0, 9), (3, 1), (4, 1), (8, 1)]));
        assert!(!allows(&policy, ANYBODY, "kms:Decrypt", Some(&fits)));
    }
}
