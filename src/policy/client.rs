//! What a policy says about clients that seal: the RSA keys that they seal to, and where their sessions ride.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::key_path::KeyPath;
use super::model::{ColumnRule, Flow};
use super::parse::{check_arn, check_clear_scalar, check_name, path};
use super::path::{ColumnPath, Root, Segment};
use super::problem::{Found, Problem};
use super::raw::{RawClient, RawClientKey, RawClientMac, RawPreviousClientKey};
use super::rsa_key::{KeyPair, RsaKey};
use crate::jose::is_client_name;

/// The header in which a session rides, unless the policy names a field.
pub const SESSION_HEADER: &str = "sealflow-session";

const MAX_KEY_NAME_BYTES: usize = 64;
/// Most KMS keys of clients, current and previous: each is asked for its public half.
const MAX_CLIENT_KEYS: usize = 16;

/// Most clients that are not believed any more: beyond that, a new HMAC key is due.
const MAX_REVOKED: usize = 1_024;
const LONGEST_AGE: Duration = Duration::from_secs(7 * 86_400);
const LONGEST_MEMORY: Duration = Duration::from_secs(30 * 86_400);

/// How clients seal. Columns with `flow: hybrid` need it, and those with `flow: enclave` one of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientRule {
    /// The RSA keys that clients seal to, by name.
    pub keys: BTreeMap<String, ClientKey>,
    /// How clients prove that they sealed a value.
    pub mac: Option<MacRule>,
    /// The field that holds the session of a record; `None` for the header [`SESSION_HEADER`].
    pub session: Option<ColumnPath>,
    /// Whether the session stays with the stored record.
    pub keep_session: bool,
}

/// How clients prove that they sealed a value: each has an HMAC key of its own, which KMS derives from the client's name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MacRule {
    /// Full ARN of the HMAC key in KMS.
    pub arn: String,
    /// Full ARNs of those before it.
    pub previous: Vec<String>,
    /// Names of clients that are not believed any more.
    pub revoked: BTreeSet<String>,
    /// How long after it was sealed a value of a column `once` must be in its topic.
    pub max_age: Duration,
    /// How long after it was sealed such a value must have been read; its name is remembered for so long.
    pub remember: Duration,
}

impl MacRule {
    /// All KMS keys, the current one first.
    pub fn arns(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.arn.as_str()).chain(self.previous.iter().map(String::as_str))
    }
}

/// An RSA key that clients seal to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientKey {
    /// The key.
    pub key: RsaKey,
    /// Those before it: they open what clients still seal to them.
    pub previous: Vec<RsaKey>,
}

impl ClientRule {
    /// All RSA keys, the current ones first.
    pub fn rsa_keys(&self) -> impl Iterator<Item = &RsaKey> {
        let current = self.keys.values().map(|key| &key.key);
        current.chain(self.keys.values().flat_map(|key| &key.previous))
    }

    /// The KMS keys that they need, in the same order.
    pub fn arns(&self) -> impl Iterator<Item = &str> {
        self.rsa_keys().map(RsaKey::arn)
    }
}

/// Checks the block `client`, and that columns that need it have it.
pub(super) fn client(
    raw: Option<&RawClient>,
    dataset: &str,
    columns: &[ColumnRule],
    data_keys: &[&str],
) -> Result<Option<ClientRule>, Found> {
    let at = KeyPath::root().key("client");
    let Some(raw) = raw else {
        return match columns.iter().position(|rule| rule.flow == Flow::Hybrid) {
            Some(n) => Err(Problem::NoClientKeys.at(&KeyPath::root().key("columns").index(n).key("flow"))),
            None => Ok(None),
        };
    };
    let mut seen = Vec::new();
    let keys = keys(&raw.keys, dataset, data_keys, &mut seen, &at.key("keys"))?;
    let mac = match &raw.mac {
        Some(raw) => {
            let others = data_keys.iter().copied().chain(seen.iter().map(RsaKey::arn));
            Some(mac(raw, others.collect(), &at.key("mac"))?)
        }
        None => None,
    };
    if mac.is_none()
        && let Some(n) = columns.iter().position(|rule| rule.client_sealed.is_authenticated())
    {
        let at = KeyPath::root().key("columns").index(n).key("client_sealed");
        return Err(Problem::NoClientMac.at(&at));
    }
    let session = match &raw.session {
        Some(text) => Some(session(text, columns, &at.key("session"))?),
        None => None,
    };
    Ok(Some(ClientRule {
        keys,
        mac,
        session,
        keep_session: raw.keep_session,
    }))
}

/// Checks the RSA keys of `client` or `enclave`, and adds them to those that were `seen`.
pub(super) fn keys(
    raw: &BTreeMap<String, RawClientKey>,
    dataset: &str,
    data_keys: &[&str],
    seen: &mut Vec<RsaKey>,
    at: &KeyPath,
) -> Result<BTreeMap<String, ClientKey>, Found> {
    if raw.is_empty() {
        return Err(Problem::NoClientKeys.at(at));
    }
    let before = seen.len();
    let mut keys = BTreeMap::new();
    for (name, raw) in raw {
        let at = at.key(name);
        check_name(name, "client key", MAX_KEY_NAME_BYTES).map_err(|problem| problem.at(&at))?;
        let mut add = |key: Result<RsaKey, Found>, at: &KeyPath| {
            let key = key?;
            check_own(&key, seen, data_keys).map_err(|problem| problem.at(at))?;
            seen.push(key.clone());
            Ok(key)
        };
        let key = match (&raw.arn, &raw.pair) {
            (Some(arn), None) => add(in_kms(arn, &at.key("arn")), &at.key("arn"))?,
            (None, Some(pair)) => add(
                KeyPair::new(pair, dataset, &at.key("pair")).map(RsaKey::Pair),
                &at.key("pair"),
            )?,
            _ => return Err(Problem::ArnOrPair.at(&at)),
        };
        let mut previous = Vec::with_capacity(raw.previous.len());
        for (n, raw) in raw.previous.iter().enumerate() {
            let at = at.key("previous").index(n);
            previous.push(match raw {
                RawPreviousClientKey::Arn(arn) => add(in_kms(arn, &at), &at)?,
                RawPreviousClientKey::Pair(pair) => add(KeyPair::new(pair, dataset, &at).map(RsaKey::Pair), &at)?,
            });
        }
        keys.insert(name.clone(), ClientKey { key, previous });
    }
    if seen.len() - before > MAX_CLIENT_KEYS {
        return Err(Problem::TooManyEntries { max: MAX_CLIENT_KEYS }.at(at));
    }
    Ok(keys)
}

fn mac<'a>(raw: &'a RawClientMac, mut seen: Vec<&'a str>, at: &KeyPath) -> Result<MacRule, Found> {
    if raw.previous.len() >= MAX_CLIENT_KEYS {
        return Err(Problem::TooManyEntries { max: MAX_CLIENT_KEYS }.at(&at.key("previous")));
    }
    let previous = raw.previous.iter().enumerate();
    let previous = previous.map(|(n, arn)| (arn.as_str(), at.key("previous").index(n)));
    for (arn, at) in std::iter::once((raw.arn.as_str(), at.key("arn"))).chain(previous) {
        check_arn(arn, &at)?;
        if seen.contains(&arn) {
            return Err(Problem::SharedClientKey.at(&at));
        }
        seen.push(arn);
    }
    if raw.revoked.len() > MAX_REVOKED {
        return Err(Problem::TooManyEntries { max: MAX_REVOKED }.at(&at.key("revoked")));
    }
    for (n, name) in raw.revoked.iter().enumerate() {
        if !is_client_name(name) {
            return Err(Problem::BadClientName.at(&at.key("revoked").index(n)));
        }
    }
    let (max_age, remember) = (raw.max_age.0, raw.remember.0);
    if max_age.is_zero() || max_age > LONGEST_AGE {
        return Err(Problem::BadValueAge.at(&at.key("max_age")));
    }
    if remember < max_age || remember > LONGEST_MEMORY {
        return Err(Problem::BadRemember.at(&at.key("remember")));
    }
    Ok(MacRule {
        arn: raw.arn.clone(),
        previous: raw.previous.clone(),
        revoked: raw.revoked.iter().cloned().collect(),
        max_age,
        remember,
    })
}

fn in_kms(arn: &str, at: &KeyPath) -> Result<RsaKey, Found> {
    check_arn(arn, at)?;
    Ok(RsaKey::InKms { arn: arn.to_owned() })
}

/// That `key` serves nothing else: neither what is sealed for storage, nor another key of clients. Who may unwrap data keys
/// under the KMS key of a pair could unwrap its private half. Pairs may share the KMS key that wrapped them.
fn check_own(key: &RsaKey, others: &[RsaKey], data_keys: &[&str]) -> Result<(), Problem> {
    if data_keys.contains(&key.arn()) {
        return Err(Problem::SharedClientKey);
    }
    for other in others {
        let is_shared = match (key, other) {
            (RsaKey::Pair(key), RsaKey::Pair(other)) => key.public == other.public,
            _ => key.arn() == other.arn(),
        };
        if is_shared {
            return Err(Problem::SharedClientKey);
        }
    }
    Ok(())
}

/// One clear string per record.
pub(super) fn session(text: &str, columns: &[ColumnRule], at: &KeyPath) -> Result<ColumnPath, Found> {
    let path = path(text, at)?;
    if *path.root() != Root::Value || path.segments().contains(&Segment::Each) {
        return Err(Problem::BadSession.at(at));
    }
    check_clear_scalar(&path, columns).map_err(|problem| problem.at(at))?;
    let is_row = |rule: &ColumnRule| {
        let row = rule.bind_row.as_ref();
        row.is_some_and(|row| row.covers(&path) || path.covers(row))
    };
    match columns.iter().position(is_row) {
        Some(column) => Err(Problem::SessionIsRow { column }.at(at)),
        None => Ok(path),
    }
}
