//! What is rendered for enclave columns, asked by the development KMS's evaluator of key policies.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use sealflow::acl::Identity;
use sealflow_client::{PrivateKey, RsaBits};
use sealflow_local_kms::policy::Evidence;

use super::aws::{Parties, Subject};
use super::tests::{
    CALLERS, Context, NOW, allows_attested, arn, data_key, domain, key_policies, may_open, parties, policies, rendered,
    unsigned,
};
use super::{Readers, enclave};

/// A policy with an enclave column under a key of its own (`e`, formerly `f`), an RSA key (`r`) and a pair (`w`) that clients seal to.
fn with_enclave(yaml: &str, acl: &str, former: bool, second: bool) -> String {
    let column = format!("columns:\n  - {{ path: secret, key: sealed, acl: {acl}, flow: enclave }}\n");
    let key = format!("keys:\n  sealed: {{ arn: \"{}\" }}\n", arn("e"));
    // Dead letters of enclave datasets are of another form, without a KMS key.
    let yaml: String = yaml
        .lines()
        .filter(|line| !line.starts_with("dead_letters:"))
        .map(|line| format!("{line}\n"))
        .collect();
    let mut yaml = yaml.replacen("keys:\n", &key, 1).replacen("columns:\n", &column, 1);
    if former {
        let old = format!("keys: [{{ name: sealed, arn: \"{}\" }}, ", arn("f"));
        yaml = yaml.replacen("keys: [", &old, 1).replace(", ]", "]");
    }
    let image = |byte: &str| format!("image: \"{}\"", byte.repeat(48));
    let more = if second {
        format!(", next: {{ {}, parent_role: \"{}\" }}", image("b2"), "c3".repeat(48))
    } else {
        String::new()
    };
    let client = format!("app: {{ arn: \"{}\" }}, web: {{ pair: {} }}", arn("r"), pair_of("w"));
    format!(
        "{yaml}lease: required\nenclave: {{ keys: {{ {client} }}, measurements: {{ now: {{ {} }}{more} }} }}\n",
        image("a1")
    )
}

/// A pair under that key. Its public half is made once: that takes a while.
fn pair_of(key: &str) -> String {
    static PUBLIC: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let public = PUBLIC.get_or_init(|| {
        let private = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
        let pem = private.public().unwrap().to_pem().unwrap();
        pem.lines().filter(|line| !line.starts_with('-')).collect()
    });
    format!(
        "{{ arn: \"{}\", public: \"{public}\", wrapped: \"{}\" }}",
        arn(key),
        "BwcH".repeat(14)
    )
}

/// Documents of workers: registers 0 and 3, and whether one of the measurements fits (if there is a second one).
fn workers() -> [(Option<Evidence>, bool, bool); 6] {
    let document = |registers: &[(u8, u8)]| {
        let bytes: Vec<(u8, [u8; 48])> = registers
            .iter()
            .map(|(number, value)| (*number, [*value; 48]))
            .collect();
        Evidence::of_registers(bytes.iter().map(|(number, bytes)| (*number, bytes.as_slice())))
    };
    [
        (None, false, false),
        (Some(document(&[(0, 0xa1)])), true, true),
        (Some(document(&[(0, 0xb2), (3, 0xc3)])), false, true),
        (Some(document(&[(0, 0xb2), (3, 0xd4)])), false, false),
        (Some(document(&[(0, 0), (3, 0xc3)])), false, false),
        (Some(document(&[(0, 0xd4), (1, 0xa1)])), false, false),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn keys_of_enclave_columns_give_plaintext_to_a_worker_of_the_policy_alone_and_otherwise_as_others(
        yaml in policies(), acl in prop::sample::select(vec!["p", "q"]), former in any::<bool>(), second in any::<bool>(),
        deny_others in any::<bool>(),
    ) {
        let policy = unsigned(&with_enclave(&yaml, acl, former, second));
        let domains = BTreeMap::from([("customers".to_owned(), domain(&["b"], "{}"))]);
        let one = |arn: &str| BTreeSet::from([arn.to_owned()]);
        let parties = Parties {
            admins: one("arn:aws:iam::111111111111:user/admin"),
            maintainers: one("arn:aws:iam::111111111111:user/xy"),
            ..parties(Readers::Kms, deny_others)
        };
        let subject = Subject { policies: std::slice::from_ref(&policy), domains: domains.clone(), now: NOW };
        enclave::check(&subject.enclave_keys(), &parties.admins).unwrap();
        let policies = key_policies(&rendered(&policy, domains, &parties));
        let model = policy.policy();
        let pairs = vec![("sealflow:dataset", "payments"), ("sealflow:purpose", "client-key-pair")];
        for caller in CALLERS {
            let who = Identity::from_arn(caller).unwrap();
            let (seals, maintains) = (caller.contains("/pipeline/"), caller.ends_with("user/xy"));
            for (evidence, by_one, by_two) in workers() {
                let fits = if second { by_two } else { by_one };
                let ask = |key: &str, action: &str, context: &Context<'_>| {
                    allows_attested(&policies, key, (caller, action), context, NOW.0, evidence.as_ref())
                };
                for (key, name) in [("e", "sealed"), ("f", "sealed"), ("e", "one"), ("a", "one"), ("b", "tenant-1")] {
                    for acl in ["p", "q", "old"] {
                        let context = data_key("payments", name, acl);
                        let is_enclaves = ["e", "f"].contains(&key);
                        let opens = may_open(model, &who, key, ("payments", name, acl), NOW.0);
                        let expected = opens && (fits || !is_enclaves);
                        prop_assert_eq!(ask(key, "kms:Decrypt", &context), expected, "{} {} {} {}", caller, key, name, acl);
                        if is_enclaves {
                            let ours = key == "e" && name == "sealed" && model.columns[0].acl == acl;
                            prop_assert_eq!(ask(key, "kms:GenerateDataKey", &context), seals && ours && fits, "{} {} {}", caller, key, acl);
                            for action in enclave::DENIED.iter().chain(&["kms:GenerateDataKeyPair", "kms:DeriveSharedSecret"]) {
                                prop_assert!(!ask(key, action, &context), "{} {} {}", caller, key, action);
                            }
                        }
                    }
                }
                prop_assert_eq!(ask("w", "kms:Decrypt", &pairs), seals && fits, "{}", caller);
                prop_assert_eq!(ask("w", "kms:GenerateDataKeyPair", &pairs), maintains && fits, "{}", caller);
                for action in enclave::DENIED.iter().chain(&["kms:GenerateDataKey", "kms:DeriveSharedSecret"]) {
                    prop_assert!(!ask("w", action, &pairs), "{} {}", caller, action);
                }
                let elsewhere = vec![("sealflow:dataset", "orders"), pairs[1]];
                prop_assert!(!ask("w", "kms:Decrypt", &elsewhere) && !ask("w", "kms:GenerateDataKeyPair", &elsewhere));
                for key in ["e", "w", "r"] {
                    let administers = caller.ends_with("user/admin");
                    prop_assert_eq!(ask(key, "kms:PutKeyPolicy", &Vec::new()), administers, "{} {}", caller, key);
                }
            }
        }
    }
}
