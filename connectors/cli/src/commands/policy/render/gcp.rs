//! What Google Cloud is told: crypto keys, and who may encrypt and decrypt under them.
//!
//! Cloud KMS authenticates additional data and cannot condition on it. So what AWS tells apart by encryption context is
//! told apart by keys here: one for each (policy key, ACL), and one for each domain. This version of Sealflow calls AWS
//! KMS only.

use std::collections::{BTreeMap, BTreeSet};

use sealflow::acl::{Acl, OidcClaim, Principal};
use sealflow::clock::UnixMillis;
use sealflow::policy::Policy;

use super::Readers;
use super::aws::Subject;
use super::hcl::{Block, Item, Value};
use super::terraform::{identifier, shortened};

/// The issuer of Google's own identity tokens.
const GOOGLE: &str = "https://accounts.google.com";
const ENCRYPTER: &str = "roles/cloudkms.cryptoKeyEncrypter";
const DECRYPTER: &str = "roles/cloudkms.cryptoKeyDecrypter";
/// Administration without cryptography.
const ADMIN: &str = "roles/cloudkms.admin";
/// 90 days.
const ROTATION: &str = "7776000s";
/// The longest name of a crypto key.
const MAX_KEY_NAME: usize = 63;

/// Who does what, as IAM members (`serviceAccount:EMAIL`, `group:EMAIL`, …).
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    /// `projects/P/locations/L/keyRings/R`
    pub(super) key_ring: String,
    pub(super) sealers: BTreeSet<String>,
    pub(super) services: BTreeSet<String>,
    pub(super) admins: BTreeSet<String>,
    pub(super) readers: Readers,
}

/// The blocks, and what they cannot say.
#[derive(Default)]
pub(super) struct Rendered {
    pub(super) blocks: Vec<Block>,
    pub(super) unsaid: BTreeSet<String>,
    /// Unique ids of service accounts that are looked up already.
    known: BTreeSet<String>,
}

/// One crypto key.
struct CryptoKey<'a> {
    name: String,
    comment: String,
    acl: &'a Acl,
    /// How the ACL is called in messages.
    place: String,
    /// Whether sealing unwraps it, as it does for domains.
    sealers_open: bool,
    /// Whether a service may stand before it.
    served: bool,
    /// Whether the ACL's principals have rights of their own.
    direct: bool,
}

/// Renders the keys of all policies and domains.
pub(super) fn render(subject: &Subject<'_>, members: &Members) -> Rendered {
    let mut out = Rendered::default();
    for policy in subject.policies {
        if policy.policy().client.is_some() {
            let dataset = &policy.policy().dataset;
            out.unsaid.insert(format!(
                "the keys that clients of {dataset} seal to: this version asks AWS KMS alone to open for clients, and renders no \
                 asymmetric keys of Cloud KMS"
            ));
        }
        for key in of_policy(policy.policy(), members) {
            out.key(&key, members, subject.now);
        }
    }
    for (name, domain) in &subject.domains {
        let opens = subject.opens_values_of(name);
        let key = CryptoKey {
            name: key_name(&["domain", name]),
            comment: format!("Secrets of domain {name}."),
            acl: &domain.acl,
            place: format!("the ACL of domain {name}"),
            sealers_open: true,
            served: opens,
            direct: opens && members.readers == Readers::Kms,
        };
        out.key(&key, members, subject.now);
    }
    out
}

fn of_policy<'a>(policy: &'a Policy, members: &Members) -> Vec<CryptoKey<'a>> {
    // Columns and dead letters of one (key, ACL) share a key: the same people open both.
    let mut uses: BTreeMap<(String, String), (bool, bool)> = BTreeMap::new();
    for group in policy
        .groups()
        .into_iter()
        .chain(policy.table_groups())
        .chain(policy.extra_group())
    {
        uses.entry((group.key, group.acl)).or_default().0 = true;
    }
    if let Some(group) = policy.dead_letter_group() {
        uses.entry((group.key, group.acl)).or_default().1 = true;
    }
    let mut keys = Vec::new();
    for ((key, acl), (columns, letters)) in uses {
        let Some(list) = policy.acls.get(&acl) else { continue };
        let dataset = &policy.dataset;
        let what = match (columns, letters) {
            (true, false) => "columns",
            (false, _) => "dead letters",
            (true, true) => "columns and dead letters",
        };
        keys.push(CryptoKey {
            name: key_name(&[dataset, &key, &acl]),
            comment: format!("Key {key}, ACL {acl} of {dataset}: {what}."),
            acl: list,
            place: format!("acls.{acl} of {dataset}"),
            sealers_open: false,
            served: columns,
            direct: letters || members.readers == Readers::Kms,
        });
    }
    keys
}

/// The name of a crypto key. Those that differ only in characters that Google does not take are told apart by a hash.
fn key_name(parts: &[&str]) -> String {
    let spelled = format!("sealflow-{}", parts.join("-"));
    let plain = spelled.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_', "_");
    if plain == spelled {
        shortened(&plain, MAX_KEY_NAME)
    } else {
        shortened(&format!("{plain}-{}", hashed(&parts.join("\n"))), MAX_KEY_NAME)
    }
}

fn hashed(text: &str) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(text.as_bytes())
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl Rendered {
    fn key(&mut self, key: &CryptoKey<'_>, members: &Members, now: UnixMillis) {
        let resource = identifier(&key.name);
        let body = vec![
            Item::Attribute("name", Value::Text(key.name.clone())),
            Item::Attribute("key_ring", Value::Text(members.key_ring.clone())),
            Item::Attribute("purpose", Value::Text("ENCRYPT_DECRYPT".to_owned())),
            Item::Attribute("rotation_period", Value::Text(ROTATION.to_owned())),
            Item::Block(Block::new(
                "lifecycle",
                vec![Item::Attribute("prevent_destroy", Value::Bool(true))],
            )),
        ];
        let block = Block::resource("google_kms_crypto_key", &resource, body);
        self.blocks.push(block.commented(&[&key.comment]));
        let text = |member: &String| Value::Text(member.clone());
        // By a hash of the member, so that an address stays when others come and go.
        for member in &members.sealers {
            let n = hashed(member);
            self.member(&resource, &format!("sealer_{n}"), ENCRYPTER, text(member), None);
            if key.sealers_open {
                self.member(&resource, &format!("sealer_{n}_opens"), DECRYPTER, text(member), None);
            }
        }
        for member in members.services.iter().filter(|_| key.served) {
            let n = hashed(member);
            self.member(&resource, &format!("service_{n}"), DECRYPTER, text(member), None);
        }
        for member in &members.admins {
            let n = hashed(member);
            self.member(&resource, &format!("admin_{n}"), ADMIN, text(member), None);
        }
        if key.direct {
            self.readers(&resource, key, now);
        }
    }

    fn readers(&mut self, resource: &str, key: &CryptoKey<'_>, now: UnixMillis) {
        // A list may name somebody twice.
        let mut named = BTreeSet::new();
        for (n, grant) in key.acl.allow.iter().enumerate() {
            let place = format!("{}: allow[{n}] ({grant})", key.place);
            let Principal::Oidc {
                issuer,
                claim: OidcClaim::Subject,
                value,
            } = &grant.principal
            else {
                let why = "no member of Google's IAM; only a service that opens for others can let it in";
                self.unsaid.insert(format!("{place}: {why}"));
                continue;
            };
            // Unique ids are digits; nothing else of a policy gets into an address of Google's.
            if issuer != GOOGLE || value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
                let why = format!("only subjects of {GOOGLE} that are unique ids of service accounts become members");
                self.unsaid.insert(format!("{place}: {why}"));
                continue;
            }
            if !grant.purposes.is_empty() {
                let why = "IAM knows no purposes; only a service that opens for others asks for one";
                self.unsaid.insert(format!("{place}: {why}"));
                continue;
            }
            if key.acl.deny.contains(&grant.principal) || grant.until.is_some_and(|until| until <= now) {
                continue;
            }
            if let Some(denied) = key.acl.deny.iter().find(|denied| denied.overlaps(&grant.principal)) {
                let why = format!("deny has {denied}, which may name it too");
                self.unsaid.insert(format!("{place}: {why}"));
                continue;
            }
            if !named.insert((value.clone(), grant.until)) {
                continue;
            }
            let member = self.service_account(value);
            let end = grant
                .until
                .map_or_else(String::new, |end| format!("_until_{}", end.0 / 1_000));
            self.member(
                resource,
                &format!("reader_{value}{end}"),
                DECRYPTER,
                member,
                grant.until,
            );
        }
        for (n, denied) in key.acl.deny.iter().enumerate() {
            if matches!(
                denied,
                Principal::Oidc {
                    claim: OidcClaim::Group,
                    ..
                }
            ) {
                let why =
                    "Google's IAM does not see groups of tokens; only a service that opens for others refuses them";
                self.unsaid
                    .insert(format!("{}: deny[{n}] ({denied}): {why}", key.place));
            }
        }
    }

    /// Looks the account up by its unique id, once: members are named by e-mail address.
    fn service_account(&mut self, unique_id: &str) -> Value {
        let name = format!("reader_{unique_id}");
        if self.known.insert(unique_id.to_owned()) {
            let id = Value::Text(format!("projects/-/serviceAccounts/{unique_id}"));
            self.blocks.push(Block {
                kind: "data",
                labels: vec!["google_service_account".to_owned(), name.clone()],
                body: vec![Item::Attribute("account_id", id)],
                comment: Vec::new(),
            });
        }
        Value::Reference(format!("data.google_service_account.{name}.member"))
    }

    fn member(&mut self, key: &str, who: &str, role: &str, member: Value, until: Option<UnixMillis>) {
        let mut body = vec![
            Item::Attribute(
                "crypto_key_id",
                Value::Reference(format!("google_kms_crypto_key.{key}.id")),
            ),
            Item::Attribute("role", Value::Text(role.to_owned())),
            Item::Attribute("member", member),
        ];
        if let Some(end) = until {
            // A moment prints as whole seconds: never later than the policy says.
            let condition = vec![
                Item::Attribute("title", Value::Text("until".to_owned())),
                Item::Attribute("description", Value::Text(format!("The policy's grant ends at {end}."))),
                Item::Attribute(
                    "expression",
                    Value::Text(format!("request.time < timestamp(\"{end}\")")),
                ),
            ];
            body.push(Item::Block(Block::new("condition", condition)));
        }
        self.blocks.push(Block::resource(
            "google_kms_crypto_key_iam_member",
            &format!("{key}_{who}"),
            body,
        ));
    }
}
