//! What AWS is told of the KMS keys of clients: RSA keys that they seal to, keys that wrapped the private halves of pairs, and HMAC
//! keys that theirs are derived from.
//!
//! A kind of key that joins them gets a variant of [`Kind`], and an arm in each function here.

use std::collections::{BTreeMap, BTreeSet};

use sealflow::keys::CLIENT_PAIR_PURPOSE;
use sealflow::policy::{ClientRule, MacRule, Policy, RsaKey, VerifiedPolicy};

use super::aws::{CONTEXT_KEYS, DATASET, Rule, sid};
use super::statement::Statement;

const PURPOSE: &str = "kms:EncryptionContext:sealflow:purpose";
const ALGORITHM: &str = "kms:EncryptionAlgorithm";
/// RSAES-OAEP with SHA-256: what sessions are sealed by, and nothing else.
const OAEP: &str = "RSAES_OAEP_SHA_256";
/// What this program never asks for of an RSA key. Who seals to it needs its public half alone.
const NEVER_OF_RSA: &[&str] = &["kms:CreateGrant", "kms:Encrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo"];
/// What it never asks for of a key that wraps pairs. `Encrypt` would take a private key that somebody knows, and
/// `GenerateDataKeyPair` shows the one that it makes.
const NEVER_OF_PAIRS: &[&str] = &[
    "kms:CreateGrant",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyPair",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
];

/// The same of a key whose pairs are made by a worker, which alone sees the half that `GenerateDataKeyPair` makes.
const NEVER_OF_WORKERS_PAIRS: &[&str] = &[
    "kms:CreateGrant",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyPairWithoutPlaintext",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
];

/// What this program never asks for of an HMAC key: it compares for itself.
const NEVER_OF_HMAC: &[&str] = &["kms:CreateGrant", "kms:VerifyMac"];

/// Who makes pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Maker {
    /// `keys pair`, which sees no private half.
    Maintainer,
    /// An enclave's worker, to whom KMS seals the private half: one that nobody saw could be of a caller who knows another.
    Worker,
}

impl Maker {
    fn action(self) -> &'static str {
        match self {
            Self::Maintainer => "kms:GenerateDataKeyPairWithoutPlaintext",
            Self::Worker => "kms:GenerateDataKeyPair",
        }
    }
}

/// What a KMS key is for.
pub(super) enum Kind {
    /// It is an RSA key that clients seal to.
    Rsa,
    /// It wrapped the private halves of pairs, for clients of these datasets.
    Pairs {
        datasets: BTreeSet<String>,
        /// Who makes them.
        made_by: Maker,
    },
    /// Clients' HMAC keys are derived from it.
    Hmac,
}

impl Kind {
    /// KMS's `KeyUsage`, where it is not that of keys that wrap.
    pub(super) fn usage(&self) -> Option<&'static str> {
        match self {
            Self::Rsa => Some("ENCRYPT_DECRYPT"),
            Self::Pairs { .. } => None,
            Self::Hmac => Some("GENERATE_VERIFY_MAC"),
        }
    }
}

/// The KMS keys behind clients' keys, current and previous, by ARN.
pub(super) fn keys<'a>(policies: impl IntoIterator<Item = &'a VerifiedPolicy>) -> BTreeMap<String, Kind> {
    let mut keys = BTreeMap::new();
    for policy in policies {
        for (key, made_by) in rsa_keys(policy.policy()) {
            let pairs = || Kind::Pairs {
                datasets: BTreeSet::new(),
                made_by,
            };
            match key {
                RsaKey::Pair(pair) => {
                    if let Kind::Pairs { datasets, .. } = keys.entry(pair.arn.clone()).or_insert_with(pairs) {
                        datasets.insert(pair.dataset.clone());
                    }
                }
                key => {
                    keys.insert(key.arn().to_owned(), Kind::Rsa);
                }
            }
        }
        for arn in hmac_keys(policy.policy()) {
            keys.insert(arn.to_owned(), Kind::Hmac);
        }
    }
    keys
}

/// What a pipeline asks for to open what clients sealed.
pub(super) fn opening(policy: &Policy) -> Vec<Rule> {
    let base = Statement::allow(&sid("OpenSessions", &[&policy.dataset]), &["kms:Decrypt"]);
    rules(policy, |key, _| match key {
        RsaKey::Pair(pair) => Some(in_context(base.clone(), [pair.dataset.clone()])),
        _ => Some(base.clone().when("StringEquals", ALGORITHM, [OAEP])),
    })
}

/// What is asked for to know who sealed, and to hand a client its key: that of `keys client` and of the pipeline is the same.
pub(super) fn proving(policy: &Policy) -> Vec<Rule> {
    let statement = Statement::allow(&sid("ClientMacs", &[&policy.dataset]), &["kms:GenerateMac"]);
    let rule = |arn: &str| Rule {
        key: arn.to_owned(),
        statement: statement.clone(),
    };
    hmac_keys(policy).map(rule).collect()
}

/// What is asked for to publish public halves: those of pairs are in the policy.
pub(super) fn publishing(policy: &Policy) -> Vec<Rule> {
    let base = Statement::allow("PublicKey", &["kms:GetPublicKey"]);
    rules(policy, |key, _| match key {
        RsaKey::Pair(_) => None,
        _ => Some(base.clone()),
    })
}

/// What is asked for to make pairs: by `keys pair`, or by a worker in the name of whoever maintains the keys. Neither of them
/// shows a private half to anybody outside.
pub(super) fn making(policy: &Policy) -> Vec<Rule> {
    rules(policy, |key, made_by| match key {
        RsaKey::Pair(pair) => {
            let base = Statement::allow(&sid("MakePairs", &[&policy.dataset]), &[made_by.action()]);
            Some(in_context(base, [pair.dataset.clone()]))
        }
        _ => None,
    })
}

/// Refuses on such a key what this program never asks for, whatever allows it.
pub(super) fn deny_others(kind: &Kind) -> Vec<Statement> {
    match kind {
        Kind::Rsa => vec![
            Statement::deny("DenyWhatIsNeverNeeded", NEVER_OF_RSA),
            Statement::deny("DenyOtherAlgorithms", &["kms:Decrypt"]).when("StringNotEquals", ALGORITHM, [OAEP]),
        ],
        Kind::Hmac => vec![Statement::deny("DenyWhatIsNeverNeeded", NEVER_OF_HMAC)],
        Kind::Pairs { datasets, made_by } => {
            let contextual = ["kms:Decrypt", made_by.action()];
            let never = match made_by {
                Maker::Maintainer => NEVER_OF_PAIRS,
                Maker::Worker => NEVER_OF_WORKERS_PAIRS,
            };
            let deny = || Statement::deny("DenyOtherContexts", &contextual);
            vec![
                Statement::deny("DenyWhatIsNeverNeeded", never),
                deny().when("StringNotEquals", DATASET, datasets.iter().cloned()),
                deny().when("StringNotEquals", PURPOSE, [CLIENT_PAIR_PURPOSE]),
            ]
        }
    }
}

/// The RSA keys that clients seal to, for the host and for a worker, and who makes pairs among them.
fn rsa_keys(policy: &Policy) -> impl Iterator<Item = (&RsaKey, Maker)> {
    let of_host = policy.client.iter().flat_map(ClientRule::rsa_keys);
    let of_worker = policy.enclave.iter().flat_map(|rule| rule.client.rsa_keys());
    let of_host = of_host.map(|key| (key, Maker::Maintainer));
    of_host.chain(of_worker.map(|key| (key, Maker::Worker)))
}

fn hmac_keys(policy: &Policy) -> impl Iterator<Item = &str> {
    let macs = policy.client.iter().filter_map(|rule| rule.mac.as_ref());
    macs.flat_map(MacRule::arns)
}

/// One rule for each KMS key; pairs may share one.
fn rules(policy: &Policy, statement: impl Fn(&RsaKey, Maker) -> Option<Statement>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for (key, made_by) in rsa_keys(policy) {
        if let Some(statement) = statement(key, made_by).filter(|_| rules.iter().all(|rule| rule.key != key.arn())) {
            let key = key.arn().to_owned();
            rules.push(Rule { key, statement });
        }
    }
    rules
}

/// With exactly the context of a pair's private half.
fn in_context(statement: Statement, datasets: impl IntoIterator<Item = String>) -> Statement {
    statement
        .when("StringEquals", DATASET, datasets)
        .when("StringEquals", PURPOSE, [CLIENT_PAIR_PURPOSE])
        .when(
            "ForAllValues:StringEquals",
            CONTEXT_KEYS,
            ["sealflow:dataset", "sealflow:purpose"],
        )
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sealflow_client::{PrivateKey, RsaBits};
    use sealflow_local_kms::policy::{Call, KeyPolicy};

    use super::super::Readers;
    use super::super::aws::{self, Parties, Rendered, Subject};
    use super::super::{gcp, terraform};
    use super::*;
    use sealflow::clock::UnixMillis;

    const SEALER: &str = "arn:aws:iam::111111111111:role/pipeline";
    const SERVICE: &str = "arn:aws:iam::111111111111:role/reading-service";
    const READER: &str = "arn:aws:iam::111111111111:role/support";
    const MAINTAINER: &str = "arn:aws:iam::111111111111:role/maintainer";
    const ADMIN: &str = "arn:aws:iam::111111111111:role/admin";

    fn arn(key: &str) -> String {
        format!("arn:aws:kms:eu-central-1:111111111111:key/{key}")
    }

    fn pair(key: &str) -> String {
        let public = PrivateKey::generate(RsaBits::Rsa2048)
            .unwrap()
            .public()
            .unwrap()
            .to_pem()
            .unwrap();
        let body: String = public.lines().filter(|line| !line.starts_with('-')).collect();
        format!(
            "{{ arn: \"{}\", public: \"{body}\", wrapped: \"{}\" }}",
            arn(key),
            STANDARD.encode([7; 40])
        )
    }

    /// Two RSA keys, two pairs under one key, and two HMAC keys.
    fn policy() -> VerifiedPolicy {
        let yaml = format!(
            "dataset: payments\nversion: 1\nkeys: {{ k: {{ arn: \"{}\" }} }}\n\
             acls: {{ a: {{ allow: [\"{READER}\"] }} }}\nclient:\n  keys:\n\
             \x20   web: {{ arn: \"{}\", previous: [\"{}\"] }}\n    app: {{ pair: {}, previous: [{}] }}\n\
             \x20 mac: {{ arn: \"{}\", previous: [\"{}\"] }}\n\
             columns: [{{ path: card, key: k, acl: a, flow: hybrid, client_sealed: authenticated }}]\n",
            arn("data"),
            arn("rsa"),
            arn("old"),
            pair("pairs"),
            pair("pairs"),
            arn("hmac"),
            arn("oldhmac")
        );
        VerifiedPolicy::unsigned_for_development(yaml.as_bytes()).unwrap()
    }

    fn rendered(deny_others: bool) -> Rendered {
        let one = |arn: &str| BTreeSet::from([arn.to_owned()]);
        let parties = Parties {
            sealers: one(SEALER),
            services: one(SERVICE),
            admins: one(ADMIN),
            maintainers: one(MAINTAINER),
            readers: Readers::Kms,
            deny_others,
        };
        let policies = [policy()];
        let subject = Subject {
            policies: &policies,
            domains: BTreeMap::new(),
            now: UnixMillis(1_767_225_600_000),
        };
        aws::render(&subject, &parties)
    }

    fn allows(
        rendered: &Rendered,
        key: &str,
        (who, action): (&str, &str),
        context: &[(&str, &str)],
        algorithm: Option<&str>,
    ) -> bool {
        let key_arn = arn(key);
        let document = rendered.keys[&key_arn].to_json().to_string();
        let context = context
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        KeyPolicy::parse(&document).unwrap().allows(&Call {
            principal: who,
            action: &format!("kms:{action}"),
            key_arn: &key_arn,
            context: &context,
            algorithm,
            evidence: None,
            now: UnixMillis(1_767_225_600_000),
        })
    }

    const ALL: [&str; 5] = [SEALER, SERVICE, READER, MAINTAINER, ADMIN];
    const CRYPTOGRAPHY: [&str; 9] = [
        "Decrypt",
        "Encrypt",
        "GenerateDataKey",
        "GenerateDataKeyPair",
        "GenerateDataKeyPairWithoutPlaintext",
        "GenerateDataKeyWithoutPlaintext",
        "GetPublicKey",
        "ReEncryptFrom",
        "ReEncryptTo",
    ];

    #[test]
    fn of_an_rsa_key_the_pipeline_decrypts_by_its_one_algorithm_and_publishers_have_the_public_half() {
        for (deny_others, key) in [(false, "rsa"), (false, "old"), (true, "rsa"), (true, "old")] {
            let rendered = rendered(deny_others);
            for who in ALL {
                for action in CRYPTOGRAPHY {
                    for algorithm in [Some(OAEP), Some("RSAES_OAEP_SHA_1"), Some("SYMMETRIC_DEFAULT"), None] {
                        let expected = match action {
                            "Decrypt" => who == SEALER && algorithm == Some(OAEP),
                            "GetPublicKey" => [SEALER, SERVICE, MAINTAINER].contains(&who),
                            _ => false,
                        };
                        let allowed = allows(&rendered, key, (who, action), &[], algorithm);
                        assert_eq!(allowed, expected, "{key} {who} {action} {algorithm:?}");
                    }
                }
                assert!(!allows(&rendered, key, (who, "CreateGrant"), &[], None), "{who}");
            }
        }
    }

    #[test]
    fn of_an_hmac_key_pipelines_and_maintainers_make_macs_and_nobody_does_more() {
        for (deny_others, key) in [(false, "hmac"), (false, "oldhmac"), (true, "hmac"), (true, "oldhmac")] {
            let rendered = rendered(deny_others);
            for who in ALL {
                let may_make = [SEALER, MAINTAINER].contains(&who);
                assert_eq!(
                    allows(&rendered, key, (who, "GenerateMac"), &[], None),
                    may_make,
                    "{key} {who}"
                );
                for action in CRYPTOGRAPHY.into_iter().chain(["VerifyMac", "CreateGrant"]) {
                    assert!(
                        !allows(&rendered, key, (who, action), &[], None),
                        "{key} {who} {action}"
                    );
                }
            }
            assert!(!allows(&rendered, "data", (SEALER, "GenerateMac"), &[], None));
        }
    }

    #[test]
    fn of_a_key_of_pairs_the_pipeline_unwraps_private_halves_and_maintainers_make_pairs_unseen() {
        let good = [
            ("sealflow:dataset", "payments"),
            ("sealflow:purpose", CLIENT_PAIR_PURPOSE),
        ];
        let contexts: [&[(&str, &str)]; 7] = [
            &good,
            &[("sealflow:dataset", "refunds"), good[1]],
            &[good[0], ("sealflow:purpose", "other")],
            &[good[0]],
            &[good[1]],
            &[good[0], good[1], ("more", "x")],
            &[],
        ];
        for deny_others in [false, true] {
            let rendered = rendered(deny_others);
            for who in ALL {
                for action in CRYPTOGRAPHY {
                    for context in contexts {
                        let is_good = context == good;
                        let expected = match action {
                            "Decrypt" => who == SEALER && is_good,
                            "GenerateDataKeyPairWithoutPlaintext" => who == MAINTAINER && is_good,
                            _ => false,
                        };
                        let allowed = allows(&rendered, "pairs", (who, action), context, Some("SYMMETRIC_DEFAULT"));
                        assert_eq!(allowed, expected, "{who} {action} {context:?}");
                    }
                }
            }
            // The data key is nobody's to open a pair with, and the other way round.
            assert!(!allows(&rendered, "data", (SEALER, "Decrypt"), &good, None));
        }
    }

    #[test]
    fn what_nobody_allowed_is_denied_to_an_account_that_has_it_all() {
        let rendered = rendered(true);
        let everything = r#"{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"kms:*","Resource":"*"}"#;
        let ask = |key: &str, action: &str, context: &[(&str, &str)], algorithm: &str| {
            let mut document = rendered.keys[&arn(key)].to_json();
            let all: serde_json::Value = serde_json::from_str(everything).unwrap();
            document["Statement"].as_array_mut().unwrap().push(all);
            let context = context
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            KeyPolicy::parse(&document.to_string()).unwrap().allows(&Call {
                principal: "arn:aws:iam::111111111111:role/anybody",
                action,
                key_arn: &arn(key),
                context: &context,
                algorithm: Some(algorithm),
                evidence: None,
                now: UnixMillis(1_767_225_600_000),
            })
        };
        let good = [
            ("sealflow:dataset", "payments"),
            ("sealflow:purpose", CLIENT_PAIR_PURPOSE),
        ];
        assert!(ask("rsa", "kms:Decrypt", &[], OAEP) && ask("pairs", "kms:Decrypt", &good, "SYMMETRIC_DEFAULT"));
        assert!(!ask("rsa", "kms:Decrypt", &[], "RSAES_OAEP_SHA_1"));
        assert!(!ask("pairs", "kms:Decrypt", &good[..1], "SYMMETRIC_DEFAULT"));
        for action in NEVER_OF_RSA {
            assert!(!ask("rsa", action, &[], OAEP), "{action}");
        }
        for action in NEVER_OF_PAIRS {
            assert!(!ask("pairs", action, &good, "SYMMETRIC_DEFAULT"), "{action}");
        }
    }

    #[test]
    fn imported_rsa_keys_keep_their_spec_and_google_is_told_nothing_of_them() {
        let blocks = super::super::hcl::file(&[], &terraform::blocks(&rendered(false), true));
        let of_rsa = blocks.split("resource \"aws_kms_key\" \"key_rsa\"").nth(1).unwrap();
        let (of_rsa, _) = of_rsa.split_once("\n}\n").unwrap();
        assert!(
            of_rsa.contains("key_usage") && of_rsa.contains("customer_master_key_spec"),
            "{of_rsa}"
        );
        let of_pairs = blocks.split("resource \"aws_kms_key\" \"key_pairs\"").nth(1).unwrap();
        let (of_pairs, _) = of_pairs.split_once("\n}\n").unwrap();
        assert!(!of_pairs.contains("customer_master_key_spec"), "{of_pairs}");

        let policies = [policy()];
        let subject = Subject {
            policies: &policies,
            domains: BTreeMap::new(),
            now: UnixMillis(1_767_225_600_000),
        };
        let members = gcp::Members {
            key_ring: "projects/p/locations/l/keyRings/r".to_owned(),
            ..gcp::Members::default()
        };
        let unsaid = gcp::render(&subject, &members).unsaid;
        let said: Vec<&String> = unsaid
            .iter()
            .filter(|what| what.contains("clients of payments seal to"))
            .collect();
        assert_eq!(said.len(), 1, "{unsaid:?}");
    }
}
