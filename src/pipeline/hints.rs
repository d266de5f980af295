//! What a hint says of a value that is being sealed (`card.number#last4`), as JSON text to be sealed beside it.

use std::collections::HashMap;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::plan::Rejection;
use crate::columns::{coerce, json, last4};
use crate::keys::Domain;
use crate::policy::{ColumnRule, Derivation};

/// The domains of a batch, each in one version: a value gets the type of the document whose secret seals it.
pub(super) type Domains = HashMap<String, Arc<Domain>>;

/// What the hint `rule` says of the JSON value `text`, as a JSON string. `None`: it says nothing of such a value.
///
/// # Errors
/// A value that is not exactly of the type of the hint's domain: equal values could have different hashes.
pub(super) fn derive(
    rule: &ColumnRule,
    text: &[u8],
    domains: &Domains,
) -> Result<Option<Zeroizing<Vec<u8>>>, Rejection> {
    match rule.hint.as_ref().map(|hint| &hint.derivation) {
        // It stays in clear: columns that seal nulls have no hints, which would tell nulls from values.
        Some(_) if text == b"null" => Ok(None),
        None => Ok(None),
        Some(Derivation::Last4) => Ok(last4(text)),
        Some(Derivation::Hmac { domain }) => {
            let domain = domains
                .get(domain)
                .ok_or_else(|| Rejection::new("no-domain", format!("domain {domain} is not loaded")))?;
            let mut encoding = Zeroizing::new(Vec::with_capacity(text.len() * 2 + 64));
            // Without the domain's padding: a new one would change every hash.
            coerce(text, &domain.document.document().kind, None, &mut encoding)
                .map_err(|error| Rejection::new(error.code(), error.to_string()))?;
            let hash = domain.key.hints().hash(&encoding);
            let mut hint = Zeroizing::new(Vec::with_capacity(hash.len() + 2));
            json::write_string(&hash, &mut hint);
            Ok(Some(hint))
        }
    }
}

/// A clear record that has a hint already: whoever wrote it could say anything, and readers would believe it.
pub(super) fn taken(rule: &ColumnRule) -> Rejection {
    Rejection::new(
        "hint-taken",
        format!("a member stands where the hint {} goes", rule.label),
    )
}
