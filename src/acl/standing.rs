//! What a list says of a principal as a policy names it: for tables of who may open what.

use super::{Acl, Grant, Principal};
use crate::clock::UnixMillis;

/// What holds for those whom a principal names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing<'a> {
    /// In one word.
    pub may: May,
    /// The grants behind it.
    pub grants: Vec<&'a Grant>,
    /// Entries of `deny` that name some of them, or may; of [`May::Nobody`] those that name all of them.
    pub except: Vec<&'a Principal>,
}

/// How many of those whom a principal names may open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum May {
    /// All, but those whom `except` names.
    All,
    /// All, but those whom `except` names, and only if they give another purpose.
    ForAPurpose,
    /// Perhaps some: the grants name others, or fewer, and there may be somebody whom both name.
    Some,
    /// Nobody: the grants, if any, are over.
    Nobody,
}

impl Acl {
    /// What this list says of those whom `principal` names, for `purpose` at `now`.
    ///
    /// [`May::All`] without exceptions, and [`May::Nobody`], are certain.
    #[must_use]
    pub fn standing(&self, principal: &Principal, purpose: Option<&str>, now: UnixMillis) -> Standing<'_> {
        let of = |wanted: &dyn Fn(&Grant) -> bool| self.allow.iter().filter(|grant| wanted(grant)).collect::<Vec<_>>();
        let covers = |grant: &Grant| grant.principal.covers(principal);
        let denying: Vec<&Principal> = self.deny.iter().filter(|denied| denied.covers(principal)).collect();
        if !denying.is_empty() {
            return Standing {
                may: May::Nobody,
                grants: Vec::new(),
                except: denying,
            };
        }
        let standing = |may, grants| Standing {
            may,
            grants,
            except: self.deny.iter().filter(|denied| denied.overlaps(principal)).collect(),
        };
        let holding = of(&|grant| covers(grant) && grant.holds(purpose, now));
        if !holding.is_empty() {
            return standing(May::All, holding);
        }
        let for_others = of(&|grant| covers(grant) && !grant.is_over(now));
        if !for_others.is_empty() {
            return standing(May::ForAPurpose, for_others);
        }
        let partly = of(&|grant| grant.principal.overlaps(principal) && !grant.is_over(now));
        if !partly.is_empty() {
            return standing(May::Some, partly);
        }
        Standing {
            may: May::Nobody,
            grants: of(&|grant| grant.principal.overlaps(principal)),
            except: Vec::new(),
        }
    }
}
