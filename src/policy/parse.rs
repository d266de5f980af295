//! YAML bytes into a checked [`Policy`]: every rule that the YAML shape cannot say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::arn::check_key_arn;
use super::client::{SESSION_HEADER, client};
use super::enclave::enclave;
use super::hints::{self, key_path};
use super::key_path::KeyPath;
use super::model::{
    Cipher, ClientSealed, ColumnRule, DeadLetterRule, Flow, Footer, Lease, OnMissing, Placement, Policy, PolicyKey,
    Previous, PreviousKey, Profile, TableRule,
};
use super::path::{ColumnPath, Root, Segment};
use super::problem::{Found, PolicyError, Problem};
use super::raw::{
    RawAcl, RawClientSealed, RawColumn, RawDeadLetters, RawFlow, RawFooter, RawGrant, RawKey, RawLease, RawOnMissing,
    RawPlacement, RawPolicy, RawPrevious, RawProfile, RawRefused, RawTable,
};
use super::recipient::Recipient;
use super::template::KeyTemplate;
use super::yaml::{closest, from_yaml, utf8};
use crate::acl::{Acl, Grant, MAX_PURPOSE_BYTES, Principal, Refused};
use crate::jose::Thumbprint;
use crate::keys::KEYS_HEADER;
use crate::units::Span;

/// The most columns a policy may have.
pub const MAX_COLUMNS: usize = 1_000;
/// The highest version: what the 10 digits of a catalogue path hold.
pub const MAX_VERSION: u64 = 9_999_999_999;
/// The longest label that is no path, in bytes.
pub const MAX_LABEL_BYTES: usize = 256;
/// The most bytes that the labels and row paths of one data key may take, so that its envelope keeps below
/// its cap of 4 KiB.
pub const MAX_GROUP_LABEL_BYTES: usize = 2_560;
/// How long a data key seals unless the policy says otherwise.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(3_600);
/// How many data keys of a template may be alive unless the policy says otherwise.
pub const DEFAULT_MAX_LIVE: u64 = 1_000;

const MAX_LIVE: u64 = 10_000;
/// The longest name of a dataset, in bytes.
pub(super) const MAX_DATASET_BYTES: usize = 128;
const MAX_ACL_NAME_BYTES: usize = 64;
/// Most ACLs of a policy.
const MAX_ACLS: usize = 1_000;
/// Most entries of `allow`, and of `deny`: a decision looks at each.
const MAX_ACL_ENTRIES: usize = 1_000;
/// Most purposes of a grant.
const MAX_PURPOSES: usize = 64;
/// Most keys that sign leases.
const MAX_LEASE_KEYS: usize = 16;
const AGES: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);
const PADDING: std::ops::RangeInclusive<u32> = 2..=65_536;

impl Policy {
    /// Parses and checks a policy. It is not yet trusted: only [`VerifiedPolicy`](super::VerifiedPolicy) is.
    ///
    /// # Errors
    /// [`PolicyError`], the first problem found, with its place and what to do.
    pub fn parse(yaml: &[u8]) -> Result<Self, PolicyError> {
        let text = utf8(yaml)?;
        let raw: RawPolicy = from_yaml(text)?;
        let sha256 = Sha256::digest(yaml).into();
        check(raw, sha256).map_err(|found| PolicyError::locate(text, found))
    }
}

/// The JSON Schema of policies.
#[must_use]
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(RawPolicy)
}

fn check(raw: RawPolicy, sha256: [u8; 32]) -> Result<Policy, Found> {
    let root = KeyPath::root();
    check_name(&raw.dataset, "dataset", MAX_DATASET_BYTES).map_err(|problem| problem.at(&root.key("dataset")))?;
    check_version(raw.version)?;
    let keys = keys(&raw.keys)?;
    let acls = acls(&raw.acls)?;
    let names = Names {
        keys: &keys,
        acls: &acls,
    };
    let columns = columns(&raw.columns, &names)?;
    check_template_fields(&keys, &columns)?;
    check_enclave_keys(&columns, &raw, &keys)?;
    let current = keys.values().map(|key| key.arn.as_str());
    let data_keys: Vec<&str> = current
        .chain(raw.previous.keys.iter().map(|key| key.arn.as_str()))
        .collect();
    let client = client(raw.client.as_ref(), &raw.dataset, &columns, &data_keys)?;
    let enclave = enclave(
        raw.enclave.as_ref(),
        &raw.dataset,
        &columns,
        (&data_keys, client.as_ref()),
    )?;
    let dead_letters = raw
        .dead_letters
        .as_ref()
        .map(|rule| dead_letters(rule, &names, &columns))
        .transpose()?;
    let table = raw
        .table
        .as_ref()
        .map(|rule| table(rule, &names, &columns))
        .transpose()?;
    let previous = previous(&raw.previous, &names, &columns)?;
    let lease = match raw.lease {
        RawLease::None => Lease::None,
        RawLease::Required => Lease::Required,
    };
    if lease == Lease::None && columns.iter().any(|rule| rule.flow == Flow::Enclave) {
        return Err(Problem::EnclaveWithoutLease.at(&root.key("lease")));
    }
    let policy = Policy {
        dataset: raw.dataset,
        version: raw.version,
        sha256,
        keys,
        acls,
        columns,
        client,
        enclave,
        dead_letters,
        table,
        previous,
        lease,
        lease_keys: lease_keys(&raw.lease_keys)?,
    };
    check_label_sizes(&policy)?;
    Ok(policy)
}

/// `[A-Za-z0-9._-]{1,max}`, which is also one segment of a catalogue path.
fn lease_keys(raw: &[String]) -> Result<Vec<Thumbprint>, Found> {
    let at = KeyPath::root().key("lease_keys");
    if raw.len() > MAX_LEASE_KEYS {
        return Err(Problem::TooManyEntries { max: MAX_LEASE_KEYS }.at(&at));
    }
    let key = |(n, text): (usize, &String)| text.parse().map_err(|_| Problem::BadLeaseKey.at(&at.index(n)));
    raw.iter().enumerate().map(key).collect()
}

pub(super) fn check_name(name: &str, what: &'static str, max: usize) -> Result<(), Problem> {
    let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let is_name = is_plain && (1..=max).contains(&name.len()) && name != "." && name != "..";
    if is_name {
        Ok(())
    } else {
        Err(Problem::BadName { what, max })
    }
}

pub(super) fn check_version(version: u64) -> Result<(), Found> {
    if (1..=MAX_VERSION).contains(&version) {
        return Ok(());
    }
    Err(Problem::BadVersion { max: MAX_VERSION }.at(&KeyPath::root().key("version")))
}

pub(super) fn check_arn(arn: &str, at: &KeyPath) -> Result<(), Found> {
    check_key_arn(arn).map_err(|error| Problem::BadArn(error).at(at))
}

pub(super) fn check_padding(pad_to: Option<u32>, at: &KeyPath) -> Result<(), Found> {
    match pad_to {
        Some(multiple) if !PADDING.contains(&multiple) => Err(Problem::BadPadding.at(at)),
        _ => Ok(()),
    }
}

fn keys(raw: &BTreeMap<String, RawKey>) -> Result<BTreeMap<String, PolicyKey>, Found> {
    let mut keys = BTreeMap::<String, PolicyKey>::new();
    for (name, raw) in raw {
        let at = KeyPath::root().key("keys").key(name);
        let key = key(name, raw, &at)?;
        let overlapping = keys.values().find(|other| other.name.overlaps(&key.name));
        if let Some(other) = overlapping {
            return Err(Problem::OverlappingKeys {
                first: other.name.to_string(),
                second: name.clone(),
            }
            .at(&at));
        }
        keys.insert(name.clone(), key);
    }
    Ok(keys)
}

fn key(name: &str, raw: &RawKey, at: &KeyPath) -> Result<PolicyKey, Found> {
    let template = KeyTemplate::parse(name).map_err(|error| Problem::BadKeyName(error).at(at))?;
    check_arn(&raw.arn, &at.key("arn"))?;
    let max_age = raw.max_age.map_or(DEFAULT_MAX_AGE, |Span(age)| age);
    if !AGES.contains(&max_age) {
        return Err(Problem::BadMaxAge.at(&at.key("max_age")));
    }
    let max_live = match raw.max_live {
        Some(_) if !template.is_template() => {
            return Err(Problem::MaxLiveWithoutTemplate { name: name.to_owned() }.at(&at.key("max_live")));
        }
        Some(live) if !(1..=MAX_LIVE).contains(&live) => {
            return Err(Problem::BadMaxLive { max: MAX_LIVE }.at(&at.key("max_live")));
        }
        Some(live) => live,
        None if template.is_template() => DEFAULT_MAX_LIVE,
        None => 1,
    };
    Ok(PolicyKey {
        name: template,
        arn: raw.arn.clone(),
        max_age,
        max_live,
    })
}

fn acls(raw: &BTreeMap<String, RawAcl>) -> Result<BTreeMap<String, Acl>, Found> {
    let mut acls = BTreeMap::new();
    if raw.len() > MAX_ACLS {
        return Err(Problem::TooManyEntries { max: MAX_ACLS }.at(&KeyPath::root().key("acls")));
    }
    for (name, raw) in raw {
        let at = KeyPath::root().key("acls").key(name);
        check_name(name, "ACL", MAX_ACL_NAME_BYTES).map_err(|problem| problem.at(&at))?;
        acls.insert(name.clone(), acl(raw, &at)?);
    }
    Ok(acls)
}

pub(super) fn acl(raw: &RawAcl, at: &KeyPath) -> Result<Acl, Found> {
    for (list, entries) in [("allow", raw.allow.len()), ("deny", raw.deny.len())] {
        if entries > MAX_ACL_ENTRIES {
            return Err(Problem::TooManyEntries { max: MAX_ACL_ENTRIES }.at(&at.key(list)));
        }
    }
    let mut acl = Acl {
        refused: match raw.refused {
            RawRefused::Null => Refused::Null,
            RawRefused::Redact => Refused::Redact,
        },
        ..Acl::default()
    };
    for (n, raw) in raw.allow.iter().enumerate() {
        acl.allow.push(grant(raw, &at.key("allow").index(n))?);
    }
    for (n, raw) in raw.deny.iter().enumerate() {
        acl.deny.push(principal(raw, &at.key("deny").index(n))?);
    }
    Ok(acl)
}

fn principal(text: &str, at: &KeyPath) -> Result<Principal, Found> {
    text.parse().map_err(|error| Problem::BadPrincipal(error).at(at))
}

fn grant(raw: &RawGrant, at: &KeyPath) -> Result<Grant, Found> {
    let terms = match raw {
        RawGrant::Plain(text) => return principal(text, at).map(Grant::to),
        RawGrant::Terms(terms) => terms,
    };
    let mut grant = Grant::to(principal(&terms.principal, &at.key("principal"))?);
    if let Some(text) = &terms.until {
        let until = text
            .parse()
            .map_err(|error| Problem::BadUntil(error).at(&at.key("until")))?;
        grant.until = Some(until);
    }
    if let Some(purposes) = &terms.purposes {
        let at = at.key("purposes");
        // An empty list would mean "nothing" to some and "anything" to others.
        if purposes.is_empty() {
            return Err(Problem::NoPurpose.at(&at));
        }
        if purposes.len() > MAX_PURPOSES {
            return Err(Problem::TooManyEntries { max: MAX_PURPOSES }.at(&at));
        }
        for (n, purpose) in purposes.iter().enumerate() {
            check_name(purpose, "purpose", MAX_PURPOSE_BYTES).map_err(|problem| problem.at(&at.index(n)))?;
        }
        grant.purposes.clone_from(purposes);
    }
    Ok(grant)
}

/// The names that columns can refer to.
pub(super) struct Names<'a> {
    keys: &'a BTreeMap<String, PolicyKey>,
    acls: &'a BTreeMap<String, Acl>,
}

impl<'a> Names<'a> {
    pub(super) fn key(&self, name: &str, at: &KeyPath) -> Result<&'a PolicyKey, Found> {
        self.keys
            .get(name)
            .ok_or_else(|| unknown("key", name, self.keys.keys()).at(at))
    }

    pub(super) fn acl(&self, name: &str, at: &KeyPath) -> Result<(), Found> {
        if self.acls.contains_key(name) {
            Ok(())
        } else {
            Err(unknown("acl", name, self.acls.keys()).at(at))
        }
    }
}

fn unknown<'a>(what: &'static str, name: &str, known: impl Iterator<Item = &'a String>) -> Problem {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let meant = closest(name, &known).map(str::to_owned);
    Problem::Unknown {
        what,
        name: name.to_owned(),
        meant,
    }
}

fn columns(raw: &[RawColumn], names: &Names<'_>) -> Result<Vec<ColumnRule>, Found> {
    let at = KeyPath::root().key("columns");
    if raw.is_empty() {
        return Err(Problem::NoColumns.at(&at));
    }
    if raw.len() > MAX_COLUMNS {
        return Err(Problem::TooManyColumns { max: MAX_COLUMNS }.at(&at));
    }
    let mut columns = Vec::<ColumnRule>::new();
    for (n, raw) in raw.iter().enumerate() {
        let rule = column(raw, names, &at.index(n))?;
        check_against_others(&rule, &columns, &at.index(n))?;
        columns.push(rule);
    }
    hints::expand(raw, names, &mut columns)?;
    // Only now are all sealed paths known. A hint is bound as its column is.
    for (n, rule) in columns.iter().take(raw.len()).enumerate() {
        if let Some(row) = &rule.bind_row {
            check_clear_scalar(row, &columns).map_err(|problem| problem.at(&at.index(n).key("bind_row")))?;
        }
    }
    Ok(columns)
}

fn column(raw: &RawColumn, names: &Names<'_>, at: &KeyPath) -> Result<ColumnRule, Found> {
    let path = path(&raw.path, &at.key("path"))?;
    for name in [KEYS_HEADER, SESSION_HEADER] {
        if *path.root() == Root::Header(name.to_owned()) {
            return Err(Problem::ReservedHeader { name }.at(&at.key("path")));
        }
    }
    let flow = match raw.flow {
        RawFlow::Direct => Flow::Direct,
        RawFlow::Hybrid => Flow::Hybrid,
        RawFlow::Enclave => Flow::Enclave,
    };
    let placement = match raw.at {
        RawPlacement::Value => Placement::Value,
        RawPlacement::Column if flow == Flow::Enclave => return Err(Problem::ColumnInEnclave.at(&at.key("at"))),
        RawPlacement::Column => Placement::Column,
    };
    let client_sealed = match raw.client_sealed {
        Some(_) if flow == Flow::Direct => return Err(Problem::ClientSealedInFlow.at(&at.key("client_sealed"))),
        Some(RawClientSealed::Authenticated | RawClientSealed::Once) if flow == Flow::Enclave => {
            return Err(Problem::ProofInEnclave.at(&at.key("client_sealed")));
        }
        Some(RawClientSealed::Optional) => ClientSealed::Optional,
        Some(RawClientSealed::Authenticated) => ClientSealed::Authenticated,
        Some(RawClientSealed::Once) => ClientSealed::Once,
        Some(RawClientSealed::Required) | None => ClientSealed::Required,
    };
    let rule = ColumnRule {
        label: path.to_string(),
        path,
        flow,
        client_sealed,
        key: String::new(),
        acl: String::new(),
        cipher: Cipher::Randomised,
        pad_to: raw.pad_to,
        seal_nulls: raw.seal_nulls,
        bind_row: None,
        on_missing: match raw.on_missing {
            RawOnMissing::Pass => OnMissing::Pass,
            RawOnMissing::Reject => OnMissing::Reject,
        },
        at: placement,
        hint: None,
    };
    if placement == Placement::Column && matches!(rule.path.root(), Root::Header(_)) {
        return Err(Problem::ColumnOutsideValue.at(&at.key("at")));
    }
    match &raw.domain {
        Some(_) if placement == Placement::Column => Err(Problem::ColumnInDomain.at(&at.key("at"))),
        Some(domain) => deterministic(rule, domain, raw, at),
        None => randomised(rule, raw, names, at),
    }
}

fn randomised(mut rule: ColumnRule, raw: &RawColumn, names: &Names<'_>, at: &KeyPath) -> Result<ColumnRule, Found> {
    let missing = |what| Problem::Missing { what }.at(at);
    rule.key = raw.key.clone().ok_or_else(|| missing("key"))?;
    rule.acl = raw.acl.clone().ok_or_else(|| missing("acl"))?;
    let key = names.key(&rule.key, &at.key("key"))?;
    names.acl(&rule.acl, &at.key("acl"))?;
    if rule.flow == Flow::Enclave && key.name.is_template() {
        return Err(Problem::TemplateInEnclave.at(&at.key("key")));
    }
    if rule.at == Placement::Column && key.name.is_template() {
        return Err(Problem::TemplateInTable { name: rule.key.clone() }.at(&at.key("key")));
    }
    check_padding(raw.pad_to, &at.key("pad_to"))?;
    if let Some(label) = &raw.label {
        check_label(label, Some(&rule.path)).map_err(|problem| problem.at(&at.key("label")))?;
        rule.label.clone_from(label);
    }
    if let Some(row) = &raw.bind_row {
        rule.bind_row = Some(row_path(row, &at.key("bind_row"))?);
    }
    Ok(rule)
}

fn deterministic(mut rule: ColumnRule, domain: &str, raw: &RawColumn, at: &KeyPath) -> Result<ColumnRule, Found> {
    check_name(domain, "domain", MAX_DATASET_BYTES).map_err(|problem| problem.at(&at.key("domain")))?;
    let flow = match rule.flow {
        Flow::Direct => None,
        Flow::Hybrid if rule.client_sealed.is_authenticated() => None,
        Flow::Hybrid => Some("hybrid"),
        Flow::Enclave => Some("enclave"),
    };
    if let Some(flow) = flow {
        return Err(Problem::DeterministicFlow { flow }.at(&at.key("flow")));
    }
    if raw.bind_row.is_some() {
        return Err(Problem::RowInDomain.at(&at.key("bind_row")));
    }
    let from_domain = [
        ("key", raw.key.is_some()),
        ("acl", raw.acl.is_some()),
        ("pad_to", raw.pad_to.is_some()),
        ("label", raw.label.is_some()),
        // A null has not the domain's type.
        ("seal_nulls", raw.seal_nulls),
    ];
    if let Some((what, _)) = from_domain.into_iter().find(|(_, is_there)| *is_there) {
        return Err(Problem::FromDomain { what }.at(&at.key(what)));
    }
    rule.label = format!("domain:{domain}");
    rule.cipher = Cipher::Domain(domain.to_owned());
    Ok(rule)
}

pub(super) fn path(text: &str, at: &KeyPath) -> Result<ColumnPath, Found> {
    text.parse().map_err(|error| Problem::BadPath(error).at(at))
}

fn row_path(text: &str, at: &KeyPath) -> Result<ColumnPath, Found> {
    let path = path(text, at)?;
    let is_one_per_record = *path.root() == Root::Value && !path.segments().contains(&Segment::Each);
    if is_one_per_record {
        Ok(path)
    } else {
        Err(Problem::BadRow.at(at))
    }
}

/// An explicit label: plain words, or a canonical path, for example the one that the column had before.
/// `own` is the path that may be the label whatever it starts with (`$key`).
fn check_label(label: &str, own: Option<&ColumnPath>) -> Result<(), Problem> {
    if own.is_some_and(|path| path.to_string() == label) {
        return Ok(());
    }
    if label.starts_with('$') || label.starts_with("domain:") {
        return Err(Problem::ReservedLabel {
            label: label.chars().take(MAX_LABEL_BYTES).collect(),
        });
    }
    let is_plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let is_word = is_plain && (1..=MAX_LABEL_BYTES).contains(&label.len());
    let is_path = || label.parse::<ColumnPath>().is_ok_and(|path| path.to_string() == label);
    if is_word || is_path() {
        Ok(())
    } else {
        Err(Problem::BadLabel { max: MAX_LABEL_BYTES })
    }
}

fn check_against_others(rule: &ColumnRule, others: &[ColumnRule], at: &KeyPath) -> Result<(), Found> {
    for (first, other) in others.iter().enumerate() {
        let (path, other_path) = (rule.path.to_string(), other.path.to_string());
        if path == other_path {
            return Err(Problem::DuplicatePath { path, first }.at(&at.key("path")));
        }
        if other.path.covers(&rule.path) {
            return Err(Problem::CoveringPaths {
                outer: other_path,
                inner: path,
            }
            .at(&at.key("path")));
        }
        if rule.path.covers(&other.path) {
            return Err(Problem::CoveringPaths {
                outer: path,
                inner: other_path,
            }
            .at(&at.key("path")));
        }
        // Columns of one domain share its label: that is what joins them.
        if rule.label == other.label && rule.domain().is_none() {
            return Err(Problem::DuplicateLabel {
                label: rule.label.clone(),
                first,
            }
            .at(&at.key("label")));
        }
    }
    Ok(())
}

/// That no sealed column is `path`, holds it, or lies inside it.
pub(super) fn check_clear_scalar(path: &ColumnPath, columns: &[ColumnRule]) -> Result<(), Problem> {
    for column in columns {
        let problem = |path: &ColumnPath| (path.to_string(), column.path.to_string());
        if column.path.covers(path) {
            let (path, column) = problem(path);
            return Err(Problem::NotClear { path, column });
        }
        if path.covers(&column.path) {
            let (path, column) = problem(path);
            return Err(Problem::NotScalar { path, column });
        }
    }
    Ok(())
}

fn check_template_fields(keys: &BTreeMap<String, PolicyKey>, columns: &[ColumnRule]) -> Result<(), Found> {
    for (name, key) in keys {
        for field in key.name.fields() {
            check_clear_scalar(field, columns).map_err(|problem| problem.at(&KeyPath::root().key("keys").key(name)))?;
        }
    }
    Ok(())
}

/// KMS keys of enclave columns serve nothing else: whoever may use them elsewhere could open there.
fn check_enclave_keys(
    columns: &[ColumnRule],
    raw: &RawPolicy,
    keys: &BTreeMap<String, PolicyKey>,
) -> Result<(), Found> {
    let arn = |name: &str| keys.get(name).map(|key| key.arn.as_str());
    let enclave = |rule: &&ColumnRule| rule.flow == Flow::Enclave;
    let reserved: BTreeSet<&str> = columns
        .iter()
        .filter(enclave)
        .filter_map(|rule| arn(&rule.key))
        .collect();
    let is_reserved = |name: &str| arn(name).is_some_and(|arn| reserved.contains(arn));
    for (n, rule) in columns.iter().enumerate() {
        if rule.flow != Flow::Enclave && is_reserved(&rule.key) {
            let at = key_path(columns, n).key("key");
            return Err(Problem::SharedEnclaveKey { key: rule.key.clone() }.at(&at));
        }
    }
    let (root, table) = (KeyPath::root(), raw.table.as_ref());
    // Dead letters have no key here: those of enclave datasets go to a recipient.
    let others = [
        (table.map(|rule| &rule.key), root.key("table")),
        (
            table.and_then(|rule| rule.extra.as_ref()).map(|rule| &rule.key),
            root.key("table").key("extra"),
        ),
    ];
    for (key, at) in others {
        if let Some(key) = key.filter(|key| is_reserved(key)) {
            return Err(Problem::SharedEnclaveKey { key: key.clone() }.at(&at.key("key")));
        }
    }
    Ok(())
}

fn table(raw: &RawTable, names: &Names<'_>, columns: &[ColumnRule]) -> Result<TableRule, Found> {
    let at = KeyPath::root().key("table");
    let key_and_acl = |key: &String, acl: &String, at: &KeyPath| {
        if names.key(key, &at.key("key"))?.name.is_template() {
            return Err(Problem::TemplateInTable { name: key.clone() }.at(&at.key("key")));
        }
        names.acl(acl, &at.key("acl"))?;
        Ok((key.clone(), acl.clone()))
    };
    let (key, acl) = key_and_acl(&raw.key, &raw.acl, &at)?;
    let extra = match &raw.extra {
        Some(extra) => Some(key_and_acl(&extra.key, &extra.acl, &at.key("extra"))?),
        None => None,
    };
    let footer = match raw.footer {
        RawFooter::Encrypted => Footer::Encrypted,
        RawFooter::SignedPlaintext => Footer::SignedPlaintext,
    };
    let profile = match raw.profile {
        RawProfile::Standard => Profile::Standard,
        RawProfile::Duckdb => Profile::DuckDb,
    };
    if profile == Profile::DuckDb {
        if footer != Footer::Encrypted {
            return Err(Problem::DuckDbFooter.at(&at.key("footer")));
        }
        // Whoever has the one key of such a file has all of its columns.
        let other = |rule: &&ColumnRule| rule.at == Placement::Column && (rule.acl != acl || rule.key != key);
        if let Some(rule) = columns.iter().find(other) {
            return Err(Problem::DuckDbKeys {
                column: rule.path.to_string(),
            }
            .at(&at.key("profile")));
        }
    }
    Ok(TableRule {
        key,
        acl,
        extra,
        footer,
        profile,
    })
}

fn dead_letters(raw: &RawDeadLetters, names: &Names<'_>, columns: &[ColumnRule]) -> Result<DeadLetterRule, Found> {
    let at = KeyPath::root().key("dead_letters");
    let (name, acl) = match (&raw.key, &raw.acl, &raw.recipient) {
        (Some(key), Some(acl), None) => (key, acl),
        (None, None, Some(recipient)) => {
            return Recipient::new(recipient, &at.key("recipient")).map(DeadLetterRule::Recipient);
        }
        _ => return Err(Problem::DeadLettersForm.at(&at)),
    };
    // What came in clear by mistake is in the letter, and the host could open what it sealed.
    if columns.iter().any(|rule| rule.flow == Flow::Enclave) {
        return Err(Problem::DeadLettersInEnclave.at(&at.key("key")));
    }
    let key = names.key(name, &at.key("key"))?;
    names.acl(acl, &at.key("acl"))?;
    if key.name.is_template() {
        return Err(Problem::TemplateForDeadLetters { name: name.clone() }.at(&at.key("key")));
    }
    Ok(DeadLetterRule::Key {
        key: name.clone(),
        acl: acl.clone(),
    })
}

fn previous(raw: &RawPrevious, names: &Names<'_>, columns: &[ColumnRule]) -> Result<Previous, Found> {
    let at = KeyPath::root().key("previous");
    let mut keys = Vec::<PreviousKey>::new();
    for (n, raw) in raw.keys.iter().enumerate() {
        let at = at.key("keys").index(n);
        let name = KeyTemplate::parse(&raw.name).map_err(|error| Problem::BadKeyName(error).at(&at.key("name")))?;
        check_arn(&raw.arn, &at.key("arn"))?;
        if names.keys.get(&raw.name).is_some_and(|current| current.arn == raw.arn) {
            return Err(Problem::PreviousIsCurrent {
                what: "key",
                name: raw.name.clone(),
            }
            .at(&at));
        }
        let key = PreviousKey {
            name,
            arn: raw.arn.clone(),
        };
        if keys.contains(&key) {
            return Err(Problem::DuplicatePrevious.at(&at));
        }
        keys.push(key);
    }
    for (old, current) in &raw.acls {
        let at = at.key("acls").key(old);
        check_name(old, "ACL", MAX_ACL_NAME_BYTES).map_err(|problem| problem.at(&at))?;
        if names.acls.contains_key(old) {
            return Err(Problem::PreviousIsCurrent {
                what: "acl",
                name: old.clone(),
            }
            .at(&at));
        }
        names.acl(current, &at)?;
    }
    let labels: BTreeSet<&String> = columns
        .iter()
        .filter(|rule| rule.domain().is_none())
        .map(|rule| &rule.label)
        .collect();
    for (old, current) in &raw.labels {
        let at = at.key("labels").key(old);
        // Labels of hints that the former label had.
        let stem = hints::stem(old);
        check_label(stem, stem.parse().ok().as_ref()).map_err(|problem| problem.at(&at))?;
        if labels.contains(old) {
            return Err(Problem::PreviousIsCurrent {
                what: "label",
                name: old.clone(),
            }
            .at(&at));
        }
        if !labels.contains(current) {
            return Err(unknown("label", current, labels.iter().copied()).at(&at));
        }
    }
    Ok(Previous {
        keys,
        acls: raw.acls.clone(),
        labels: raw.labels.clone(),
    })
}

fn check_label_sizes(policy: &Policy) -> Result<(), Found> {
    for group in policy.groups().into_iter().chain(policy.table_groups()) {
        let row_bytes = |row: &ColumnPath| row.to_string().len();
        let label_bytes = |label: &super::model::GroupLabel| {
            // Each with the few bytes of its CBOR header.
            label.label.len() + 3 + label.bind_row.as_ref().map_or(0, row_bytes)
        };
        let bytes = group.labels.iter().map(label_bytes).sum();
        if bytes > MAX_GROUP_LABEL_BYTES {
            let problem = Problem::LabelsTooLong {
                key: group.key,
                acl: group.acl,
                bytes,
                max: MAX_GROUP_LABEL_BYTES,
            };
            return Err(problem.at(&KeyPath::root().key("columns")));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
