//! What a policy says about clients that seal: the RSA keys that they seal to, and where their sessions ride.

use std::collections::BTreeMap;

use super::key_path::KeyPath;
use super::model::{ColumnRule, Flow};
use super::parse::{check_arn, check_clear_scalar, check_name, path};
use super::path::{ColumnPath, Root, Segment};
use super::problem::{Found, Problem};
use super::raw::RawClient;

/// The header in which a session rides, unless the policy names a field.
pub const SESSION_HEADER: &str = "sealflow-session";

const MAX_KEY_NAME_BYTES: usize = 64;
/// Most KMS keys of clients, current and previous: each is asked for its public half.
const MAX_CLIENT_KEYS: usize = 16;

/// How clients seal. Columns with `flow: hybrid` need it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientRule {
    /// The RSA keys that clients seal to, by name.
    pub keys: BTreeMap<String, ClientKey>,
    /// The field that holds the session of a record; `None` for the header [`SESSION_HEADER`].
    pub session: Option<ColumnPath>,
    /// Whether the session stays with the stored record.
    pub keep_session: bool,
}

/// An RSA key that clients seal to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientKey {
    /// Full ARN of the KMS key: an RSA key for encryption.
    pub arn: String,
    /// Full ARNs of those before it: they open what clients still seal to them.
    pub previous: Vec<String>,
}

impl ClientRule {
    /// All KMS keys, the current ones first.
    pub fn arns(&self) -> impl Iterator<Item = &str> {
        let current = self.keys.values().map(|key| key.arn.as_str());
        current.chain(
            self.keys
                .values()
                .flat_map(|key| key.previous.iter().map(String::as_str)),
        )
    }
}

/// Checks the block `client`, and that columns that need it have it.
pub(super) fn client(
    raw: Option<&RawClient>,
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
    if raw.keys.is_empty() {
        return Err(Problem::NoClientKeys.at(&at.key("keys")));
    }
    let mut seen: Vec<&str> = data_keys.to_vec();
    let mut keys = BTreeMap::new();
    for (name, raw) in &raw.keys {
        let at = at.key("keys").key(name);
        check_name(name, "client key", MAX_KEY_NAME_BYTES).map_err(|problem| problem.at(&at))?;
        let previous = raw.previous.iter().enumerate();
        let previous = previous.map(|(n, arn)| (arn, at.key("previous").index(n)));
        for (arn, at) in std::iter::once((&raw.arn, at.key("arn"))).chain(previous) {
            check_arn(arn, &at)?;
            if seen.contains(&arn.as_str()) {
                return Err(Problem::SharedClientKey.at(&at));
            }
            seen.push(arn);
        }
        let key = ClientKey {
            arn: raw.arn.clone(),
            previous: raw.previous.clone(),
        };
        keys.insert(name.clone(), key);
    }
    if seen.len() - data_keys.len() > MAX_CLIENT_KEYS {
        return Err(Problem::TooManyEntries { max: MAX_CLIENT_KEYS }.at(&at.key("keys")));
    }
    let session = match &raw.session {
        Some(text) => Some(session(text, columns, &at.key("session"))?),
        None => None,
    };
    Ok(Some(ClientRule {
        keys,
        session,
        keep_session: raw.keep_session,
    }))
}

/// One clear string per record.
fn session(text: &str, columns: &[ColumnRule], at: &KeyPath) -> Result<ColumnPath, Found> {
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
