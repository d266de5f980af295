//! Hints of columns (`card.number#last4`): what a policy says about them, checked and made into rules of their own.

use super::key_path::KeyPath;
use super::model::{Cipher, ClientSealed, ColumnRule, Derivation, Flow, Hint, OnMissing, Placement};
use super::parse::{MAX_COLUMNS, MAX_DATASET_BYTES, Names, check_name};
use super::path::{ColumnPath, MAX_PATH_BYTES, PathError, Root, Segment};
use super::problem::{Found, Problem};
use super::raw::{RawColumn, RawDerivation, RawHint};

/// Every `last4` hint is padded to this: four characters, of 1 to 4 bytes each, and the header of padding fit into one
/// block, so that the length tells nothing.
const LAST4_PAD_TO: u32 = 32;
const SUFFIXES: [&str; 2] = ["#last4", "#hmac"];

/// Appends the hints of the written `columns` to them, each as a rule of its own.
pub(super) fn expand(raw: &[RawColumn], names: &Names<'_>, columns: &mut Vec<ColumnRule>) -> Result<(), Found> {
    for (column, raw) in raw.iter().enumerate() {
        if raw.hints.is_empty() {
            continue;
        }
        let at = KeyPath::root().key("columns").index(column).key("hints");
        check_column(&columns[column]).map_err(|problem| problem.at(&at))?;
        for (n, raw_hint) in raw.hints.iter().enumerate() {
            let at = at.index(n);
            let rule = hint(column, raw_hint, &columns[column], names, &at)?;
            check_against_others(&rule, columns, &raw.hints[..n], &at)?;
            columns.push(rule);
            if columns.len() > MAX_COLUMNS {
                return Err(Problem::TooManyColumns { max: MAX_COLUMNS }.at(&at));
            }
        }
    }
    Ok(())
}

/// Where the policy says rule `n`: `columns[2]`, or `columns[2].hints[0]` for a hint.
pub(super) fn key_path(columns: &[ColumnRule], n: usize) -> KeyPath {
    let columns_path = KeyPath::root().key("columns");
    let Some(Hint { column, .. }) = columns[n].hint else {
        return columns_path.index(n);
    };
    let is_sibling = |rule: &&ColumnRule| rule.hint.as_ref().is_some_and(|hint| hint.column == column);
    let earlier = columns[..n].iter().filter(is_sibling).count();
    columns_path.index(column).key("hints").index(earlier)
}

/// The label of the column whose hint `label` is; `label` itself if it is that of no hint.
pub(super) fn stem(label: &str) -> &str {
    let stem = |suffix| label.strip_suffix(suffix);
    SUFFIXES.into_iter().find_map(stem).unwrap_or(label)
}

/// Whether a column can have hints at all.
fn check_column(rule: &ColumnRule) -> Result<(), Problem> {
    let flow = match rule.flow {
        Flow::Direct => None,
        Flow::Hybrid if rule.client_sealed.is_authenticated() => None,
        Flow::Hybrid => Some("hybrid"),
        Flow::Enclave => Some("enclave"),
    };
    if let Some(flow) = flow {
        return Err(Problem::HintsInFlow { flow });
    }
    if rule.domain().is_some() {
        return Err(Problem::HintsInDomain);
    }
    if rule.at == Placement::Column {
        return Err(Problem::HintsOfColumn);
    }
    if rule.seal_nulls {
        return Err(Problem::HintsOfNulls);
    }
    let is_member = *rule.path.root() == Root::Value && matches!(rule.path.segments().last(), Some(Segment::Name(_)));
    if is_member {
        Ok(())
    } else {
        Err(Problem::HintsNowhere {
            path: rule.path.to_string(),
        })
    }
}

fn hint(column: usize, raw: &RawHint, of: &ColumnRule, names: &Names<'_>, at: &KeyPath) -> Result<ColumnRule, Found> {
    let derivation = derivation(raw, at)?;
    let key = raw.key.as_ref().unwrap_or(&of.key);
    if names.key(key, &at.key("key"))?.name.is_template() && *key != of.key {
        return Err(Problem::TemplateOfHint { name: key.clone() }.at(&at.key("key")));
    }
    names.acl(&raw.acl, &at.key("acl"))?;
    let path = beside(&of.path, derivation.suffix());
    if path.to_string().len() > MAX_PATH_BYTES {
        return Err(Problem::BadPath(PathError::TooLong).at(at));
    }
    Ok(ColumnRule {
        label: format!("{}{}", of.label, derivation.suffix()),
        path,
        flow: Flow::Direct,
        client_sealed: ClientSealed::default(),
        key: key.clone(),
        acl: raw.acl.clone(),
        cipher: Cipher::Randomised,
        pad_to: match derivation {
            Derivation::Last4 => Some(LAST4_PAD_TO),
            // All of one length.
            Derivation::Hmac { .. } => None,
        },
        seal_nulls: false,
        bind_row: of.bind_row.clone(),
        on_missing: OnMissing::Pass,
        at: Placement::Value,
        hint: Some(Hint { column, derivation }),
    })
}

fn derivation(raw: &RawHint, at: &KeyPath) -> Result<Derivation, Found> {
    match (raw.derive, &raw.domain) {
        (RawDerivation::Last4, None) => Ok(Derivation::Last4),
        (RawDerivation::Last4, Some(_)) => Err(Problem::Last4WithDomain.at(&at.key("domain"))),
        (RawDerivation::Hmac, None) => Err(Problem::HmacWithoutDomain.at(at)),
        (RawDerivation::Hmac, Some(domain)) => {
            check_name(domain, "domain", MAX_DATASET_BYTES).map_err(|problem| problem.at(&at.key("domain")))?;
            Ok(Derivation::Hmac { domain: domain.clone() })
        }
    }
}

/// The path of the member `NAME#suffix` beside the member `NAME` at `path`.
fn beside(path: &ColumnPath, suffix: &str) -> ColumnPath {
    let mut segments = path.segments().to_vec();
    if let Some(Segment::Name(name)) = segments.last_mut() {
        name.push_str(suffix);
    }
    ColumnPath::into_value(segments)
}

fn check_against_others(
    rule: &ColumnRule,
    others: &[ColumnRule],
    siblings: &[RawHint],
    at: &KeyPath,
) -> Result<(), Found> {
    let Some(hint) = &rule.hint else { return Ok(()) };
    let is_same = |raw: &RawHint| {
        matches!(
            (raw.derive, &hint.derivation),
            (RawDerivation::Last4, Derivation::Last4) | (RawDerivation::Hmac, Derivation::Hmac { .. })
        )
    };
    if let Some(first) = siblings.iter().position(is_same) {
        let derive = hint.derivation.suffix().trim_start_matches('#');
        return Err(Problem::DuplicateHint { derive, first }.at(at));
    }
    // Hints of different columns differ as their columns do.
    for (other, written) in others.iter().enumerate().filter(|(_, other)| other.hint.is_none()) {
        if rule.path.covers(&written.path) || written.path.covers(&rule.path) {
            let path = rule.path.to_string();
            return Err(Problem::HintPathTaken { path, other }.at(at));
        }
        if rule.label == written.label {
            let label = rule.label.clone();
            return Err(Problem::HintLabelTaken { label, other }.at(at));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "hints_tests.rs"]
mod tests;
