//! What one list gives beyond another: who would gain or lose if it took the other's place.

use super::{Acl, Grant, Principal};
use crate::clock::UnixMillis;

/// Somebody may open by one list what the other does not let them open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Beyond<'a> {
    /// Who, as one of the two lists names them.
    pub who: &'a Principal,
    /// By this grant.
    pub grant: &'a Grant,
}

impl Acl {
    /// What this list gives, at `now` or later, beyond what `other` gives.
    ///
    /// Nobody is left out: whoever may open by this list at such a moment for some purpose, and not by `other`, is named by
    /// an entry. Where patterns overlap, an entry may name some who gain nothing.
    #[must_use]
    pub fn beyond<'a>(&'a self, other: &'a Self, now: UnixMillis) -> Vec<Beyond<'a>> {
        let mut beyond = Vec::new();
        for grant in self.allow.iter().filter(|grant| !grant.is_over(now)) {
            if self.deny.iter().any(|denied| denied.covers(&grant.principal)) {
                continue;
            }
            if !other.allow.iter().any(|given| given.gives_all_of(grant)) {
                beyond.push(Beyond {
                    who: &grant.principal,
                    grant,
                });
                continue;
            }
            // Given by both, and taken away again by the other alone.
            for denied in other.deny.iter().filter(|denied| denied.overlaps(&grant.principal)) {
                let who = if denied.covers(&grant.principal) {
                    &grant.principal
                } else {
                    denied
                };
                let entry = Beyond { who, grant };
                if !self.deny.iter().any(|ours| ours.covers(who)) && !beyond.contains(&entry) {
                    beyond.push(entry);
                }
                // A token that lists no groups is refused by the deny of any: it gains when the last of them goes.
                let of_tokens = Beyond {
                    who: &grant.principal,
                    grant,
                };
                let is_lifted = denied.is_group_beside(&grant.principal)
                    && !self.deny.iter().any(|ours| ours.is_group_beside(&grant.principal));
                if is_lifted && !beyond.contains(&of_tokens) {
                    beyond.push(of_tokens);
                }
            }
        }
        beyond
    }
}

impl Grant {
    /// Whether it names everybody whom `other` names, for as long and for all of its purposes.
    fn gives_all_of(&self, other: &Self) -> bool {
        let as_long = match (self.until, other.until) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(ours), Some(theirs)) => ours >= theirs,
        };
        let for_all = self.purposes.is_empty()
            || (!other.purposes.is_empty() && other.purposes.iter().all(|purpose| self.purposes.contains(purpose)));
        as_long && for_all && self.principal.covers(&other.principal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000);
    const ROLE: &str = "arn:aws:iam::111122223333:role/";

    fn acl(allow: &[(&str, Option<u64>, &[&str])], deny: &[&str]) -> Acl {
        let principal = |name: &str| format!("{ROLE}{name}").parse::<Principal>().unwrap();
        Acl {
            allow: allow
                .iter()
                .map(|(name, until, purposes)| Grant {
                    principal: principal(name),
                    until: until.map(UnixMillis),
                    purposes: purposes.iter().map(|purpose| (*purpose).to_owned()).collect(),
                })
                .collect(),
            deny: deny.iter().map(|name| principal(name)).collect(),
            ..Acl::default()
        }
    }

    fn names(one: &Acl, other: &Acl) -> Vec<String> {
        let beyond = one.beyond(other, NOW);
        beyond
            .iter()
            .map(|entry| entry.who.to_string().replace(ROLE, ""))
            .collect()
    }

    #[test]
    fn a_longer_end_another_purpose_a_wider_name_and_a_lifted_deny_give_more() {
        let none: &[&str] = &[];
        let plain = acl(&[("a", None, none)], &[]);
        assert_eq!(names(&plain, &plain), [""; 0]);
        assert_eq!(names(&plain, &Acl::default()), ["a"]);
        assert_eq!(names(&Acl::default(), &plain), [""; 0]);
        let ending = |until| acl(&[("a", Some(until), none)], &[]);
        assert_eq!(
            (
                names(&ending(3_000), &ending(2_000)),
                names(&ending(2_000), &ending(3_000))
            ),
            (vec!["a".into()], vec![])
        );
        assert_eq!(names(&ending(500), &Acl::default()), [""; 0], "it is over");
        let for_some = |purposes| acl(&[("a", None, purposes)], &[]);
        assert_eq!(names(&for_some(&["x", "y"]), &for_some(&["x"])), ["a"]);
        assert_eq!(names(&for_some(&["x"]), &for_some(&["x", "y"])), [""; 0]);
        assert_eq!(names(&plain, &for_some(&["x"])), ["a"]);
        let wide = acl(&[("*", None, none)], &[]);
        assert_eq!((names(&wide, &plain), names(&plain, &wide)), (vec!["*".into()], vec![]));
        let without_a = acl(&[("*", None, none)], &["a"]);
        assert_eq!(
            (names(&wide, &without_a), names(&without_a, &wide)),
            (vec!["a".into()], vec![])
        );
        let without_b = acl(&[("*", None, none)], &["b"]);
        assert_eq!(names(&without_b, &without_a), ["a"]);
    }

    #[test]
    fn a_token_that_lists_no_groups_gains_when_the_last_deny_of_a_group_is_lifted() {
        let of = |claim: &str| {
            format!("oidc:https://login.example.com#{claim}")
                .parse::<Principal>()
                .unwrap()
        };
        let acl = |deny: &[&str]| Acl {
            allow: vec![Grant::to(of("sub=bob"))],
            deny: deny.iter().map(|claim| of(claim)).collect(),
            ..Acl::default()
        };
        let who = |one: &Acl, other: &Acl| -> Vec<String> {
            one.beyond(other, NOW)
                .iter()
                .map(|entry| entry.who.to_string())
                .collect()
        };
        let denied = acl(&["group=contractors"]);
        assert!(who(&acl(&[]), &denied).contains(&of("sub=bob").to_string()));
        let still = acl(&["group=interns"]);
        assert!(!who(&still, &denied).contains(&of("sub=bob").to_string()));
    }
}
