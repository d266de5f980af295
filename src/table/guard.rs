//! That what a policy seals by value is sealed, wherever in a row it ends up.

use super::rejection::RowRejection;
use crate::columns::{Found, Locator, LocatorError};
use crate::policy::{ColumnPath, ColumnRule, Segment};
use crate::seal::{SealedValue, value};

/// The sealed places at or below one place of a record.
pub(super) enum Guard {
    /// The place itself.
    Whole(Place),
    /// Places below it.
    Below { locator: Locator, places: Vec<Place> },
}

/// One place whose values are sealed.
pub(super) struct Place {
    path: String,
    seal_nulls: bool,
}

impl Place {
    pub(super) fn of(rule: &ColumnRule) -> Self {
        Self {
            path: rule.path.to_string(),
            seal_nulls: rule.seal_nulls,
        }
    }

    /// Appends the sealed value that the JSON value `text` holds to `out`; `false` for a null.
    pub(super) fn read(&self, text: &[u8], out: &mut Vec<u8>) -> Result<bool, RowRejection> {
        if text == b"null" && !self.seal_nulls {
            return Ok(false);
        }
        let inner = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\""));
        let start = out.len();
        let is_sealed =
            inner.is_some_and(|text| value::read_text(text, out).is_ok()) && SealedValue::parse(&out[start..]).is_ok();
        if is_sealed {
            return Ok(true);
        }
        Err(RowRejection::NotSealed {
            column: self.path.clone(),
        })
    }
}

impl Guard {
    /// The guard of a place, of the rules at or below it, each with the rest of its path; `None` without rules.
    pub(super) fn new<'p>(
        rules: impl Iterator<Item = (&'p ColumnRule, &'p [Segment])>,
    ) -> Result<Option<Self>, LocatorError> {
        let (mut paths, mut places) = (Vec::new(), Vec::new());
        for (rule, rest) in rules {
            if rest.is_empty() {
                // Paths of a policy do not cover one another, so there is no other rule.
                return Ok(Some(Self::Whole(Place::of(rule))));
            }
            paths.push(ColumnPath::into_value(rest.to_vec()));
            places.push(Place::of(rule));
        }
        if places.is_empty() {
            return Ok(None);
        }
        let locator = Locator::new(&paths, &[])?;
        Ok(Some(Self::Below { locator, places }))
    }

    /// Refuses the JSON value `text` if a place of this guard holds anything but a sealed value or a null.
    pub(super) fn check(&self, text: &[u8], scratch: &mut Scratch) -> Result<(), RowRejection> {
        scratch.sealed.clear();
        match self {
            Self::Whole(place) => place.read(text, &mut scratch.sealed).map(drop),
            Self::Below { locator, places } => {
                if !matches!(text.first(), Some(b'{' | b'[')) {
                    return Ok(());
                }
                locator.locate(text, &mut scratch.found)?;
                for hit in &scratch.found.hits {
                    scratch.sealed.clear();
                    places[usize::from(hit.column)].read(&text[hit.range()], &mut scratch.sealed)?;
                }
                Ok(())
            }
        }
    }
}

/// Working memory for checks, used from record to record.
#[derive(Default)]
pub(super) struct Scratch {
    found: Found,
    /// Never plaintext, unless a record is refused for it: then a prefix of something that looks like base64.
    sealed: Vec<u8>,
}
