//! The decision: may this identity open what this list governs, now, for this purpose?

use super::{Acl, Identity};
use crate::clock::UnixMillis;

/// What a list says, with the entry that said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// By `allow[grant]`.
    Allowed {
        /// Index in [`Acl::allow`]: the first that holds.
        grant: usize,
    },
    /// Not.
    Refused(Refusal),
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// `deny[rule]` names it, whatever `allow` says.
    Denied {
        /// Index in [`Acl::deny`]: the first that names it, or may: a group, where the token lists none.
        rule: usize,
    },
    /// `allow[grant]` names it, and is over; no other grant holds.
    Expired {
        /// Index in [`Acl::allow`].
        grant: usize,
    },
    /// `allow[grant]` names it, for other purposes; no other grant holds.
    Purpose {
        /// Index in [`Acl::allow`].
        grant: usize,
    },
    /// No entry names it.
    NotNamed,
}

impl Decision {
    /// Whether it may be opened.
    #[must_use]
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::Allowed { .. })
    }
}

impl Acl {
    /// Decides about `who` at `now`. `purpose` is what the caller says it reads for.
    ///
    /// Deny wins, then the first grant that holds; else the first grant that names it says why it does not.
    #[must_use]
    pub fn decide(&self, who: &Identity, purpose: Option<&str>, now: UnixMillis) -> Decision {
        if let Some(rule) = self.deny.iter().position(|principal| principal.may_name(who)) {
            return Decision::Refused(Refusal::Denied { rule });
        }
        let mut why = Refusal::NotNamed;
        for (grant, entry) in self.allow.iter().enumerate() {
            if !entry.principal.names(who) {
                continue;
            }
            let refusal = if entry.holds(purpose, now) {
                return Decision::Allowed { grant };
            } else if entry.is_over(now) {
                Refusal::Expired { grant }
            } else {
                Refusal::Purpose { grant }
            };
            if why == Refusal::NotNamed {
                why = refusal;
            }
        }
        Decision::Refused(why)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::acl::{Grant, IamKind, May, OidcClaim, Principal, Refused};

    const NOW: UnixMillis = UnixMillis(1_000);

    fn acl(allow: &[&str], deny: &[&str]) -> Acl {
        let parse = |text: &&str| text.parse::<Principal>().unwrap();
        Acl {
            allow: allow.iter().map(|text| Grant::to(parse(text))).collect(),
            deny: deny.iter().map(parse).collect(),
            refused: Refused::Null,
        }
    }

    fn arn(text: &str) -> Identity {
        Identity::from_arn(text).unwrap()
    }

    #[test]
    fn nobody_is_allowed_who_is_not_named_and_a_deny_wins() {
        let analyst = arn("arn:aws:sts::111122223333:assumed-role/analyst/monday");
        let decide = |allow: &[&str], deny: &[&str]| acl(allow, deny).decide(&analyst, None, NOW);
        assert_eq!(decide(&[], &[]), Decision::Refused(Refusal::NotNamed));
        let role = "arn:aws:iam::111122223333:role/analyst";
        let other = "arn:aws:iam::999999999999:role/analyst";
        assert_eq!(decide(&[other, role], &[]), Decision::Allowed { grant: 1 });
        assert_eq!(decide(&[other], &[]), Decision::Refused(Refusal::NotNamed));
        let glob = "arn:aws:iam::111122223333:role/ana*";
        assert_eq!(
            decide(&[role], &[other, glob]),
            Decision::Refused(Refusal::Denied { rule: 1 })
        );
        assert_eq!(
            decide(&[&role.replace("role/", "user/")], &[]),
            Decision::Refused(Refusal::NotNamed)
        );
    }

    #[test]
    fn a_grant_ends_at_its_moment_and_holds_for_its_purposes_only() {
        let alice = arn("arn:aws:iam::111122223333:user/alice");
        let mut acl = acl(&["arn:aws:iam::111122223333:user/alice"; 2], &[]);
        acl.allow[0].until = Some(NOW);
        acl.allow[1].purposes = vec!["audit".into(), "fraud".into()];
        let decide = |acl: &Acl, purpose, now| acl.decide(&alice, purpose, UnixMillis(now));
        assert_eq!(decide(&acl, None, 999), Decision::Allowed { grant: 0 });
        assert_eq!(
            decide(&acl, None, 1_000),
            Decision::Refused(Refusal::Expired { grant: 0 })
        );
        assert_eq!(decide(&acl, Some("fraud"), 1_000), Decision::Allowed { grant: 1 });
        acl.allow.remove(0);
        for purpose in [None, Some("frau"), Some("")] {
            assert_eq!(
                decide(&acl, purpose, 0),
                Decision::Refused(Refusal::Purpose { grant: 0 })
            );
        }
    }

    #[test]
    fn leaving_the_groups_out_of_a_token_evades_no_deny_and_gains_no_grant() {
        let alice = |groups: Option<&[&str]>| Identity::Oidc {
            issuer: "https://login.example.com".into(),
            subject: "alice".into(),
            lists_groups: groups.is_some(),
            groups: groups
                .unwrap_or_default()
                .iter()
                .map(|group| (*group).to_owned())
                .collect(),
        };
        let (by_name, by_group) = (
            "oidc:https://login.example.com#sub=alice",
            "oidc:https://login.example.com#group=fraud",
        );
        let suspended = "oidc:https://login.example.com#group=suspended";
        let elsewhere = "oidc:https://other.example.com#group=suspended";
        let allowed =
            |allow: &str, deny: &str, groups| acl(&[allow], &[deny]).decide(&alice(groups), None, NOW).is_allowed();
        assert!(allowed(by_name, suspended, Some(&[])));
        assert!(!allowed(by_name, suspended, Some(&["suspended"])));
        assert!(!allowed(by_name, suspended, None), "it may be one of them");
        assert!(allowed(by_name, elsewhere, None), "of an issuer that is another");
        assert!(allowed(by_group, suspended, Some(&["fraud"])) && !allowed(by_group, elsewhere, None));
    }

    // The slow, obvious evaluator: principals and identities as texts, globs by trying every split.

    fn glob_matches(pattern: &str, text: &str) -> bool {
        match pattern.split_once('*') {
            None => pattern == text,
            Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
                let ends = (0..=rest.len()).filter(|end| rest.is_char_boundary(*end));
                ends.take_while(|end| !rest[..*end].contains('/'))
                    .any(|end| glob_matches(after, &rest[end..]))
            }),
        }
    }

    fn obviously_names(principal: &str, who: &Identity) -> bool {
        match who {
            Identity::Oidc { issuer, groups, .. } => {
                principal == who.to_string()
                    || groups
                        .iter()
                        .any(|group| principal == format!("oidc:{issuer}#group={group}"))
            }
            Identity::User { .. } => glob_matches(principal, &who.to_string()),
            Identity::Role { .. } => principal.split_once(":role/").is_some_and(|(start, name)| {
                let last = name.rsplit('/').next().unwrap();
                glob_matches(&format!("{start}:role/{last}"), &who.to_string())
            }),
        }
    }

    fn obviously_denies(principal: &str, who: &Identity) -> bool {
        let unlisted = match who {
            Identity::Oidc {
                issuer, lists_groups, ..
            } => !lists_groups && principal.starts_with(&format!("oidc:{issuer}#group=")),
            _ => false,
        };
        unlisted || obviously_names(principal, who)
    }

    fn obviously(acl: &Acl, who: &Identity, purpose: Option<&str>, now: UnixMillis) -> bool {
        let denied = acl
            .deny
            .iter()
            .any(|principal| obviously_denies(&principal.to_string(), who));
        let granted = acl.allow.iter().any(|grant| {
            obviously_names(&grant.principal.to_string(), who)
                && grant.until.is_none_or(|until| now.0 < until.0)
                && (grant.purposes.is_empty() || purpose.is_some_and(|p| grant.purposes.contains(&p.to_owned())))
        });
        granted && !denied
    }

    fn principals() -> impl Strategy<Value = Principal> {
        let iam =
            ("[12]", any::<bool>(), "([ab]/)?[ab]{1,2}|[ab]?[*][ab]?[*]?|a/[*]b?").prop_map(|(account, role, name)| {
                Principal::Iam {
                    partition: "aws".into(),
                    account: account.repeat(12),
                    kind: if role { IamKind::Role } else { IamKind::User },
                    name: if role { name.replace("a/*", "*") } else { name },
                }
            });
        let oidc = ("[ab]", any::<bool>(), "[abc]").prop_map(|(host, group, value)| Principal::Oidc {
            issuer: format!("https://{host}"),
            claim: if group { OidcClaim::Group } else { OidcClaim::Subject },
            value,
        });
        prop_oneof![3 => iam, 1 => oidc]
    }

    fn identities() -> impl Strategy<Value = Identity> {
        let iam = ("[12]", any::<bool>(), "([ab]/)?[ab]{1,2}").prop_map(|(account, role, name)| {
            let kind = if role { "role" } else { "user" };
            arn(&format!("arn:aws:iam::{}:{kind}/{name}", account.repeat(12)))
        });
        let groups = proptest::option::of(proptest::collection::btree_set("[abc]", 0..3));
        let oidc = ("[ab]", "[abc]", groups).prop_map(
            |(host, subject, groups): (String, String, Option<BTreeSet<String>>)| Identity::Oidc {
                issuer: format!("https://{host}"),
                subject,
                lists_groups: groups.is_some(),
                groups: groups.unwrap_or_default(),
            },
        );
        prop_oneof![3 => iam, 1 => oidc]
    }

    fn acls() -> impl Strategy<Value = Acl> {
        let purposes = proptest::collection::vec("[pq]", 0..2);
        let grant =
            (principals(), proptest::option::of(0_u64..4), purposes).prop_map(|(principal, until, purposes)| Grant {
                principal,
                until: until.map(UnixMillis),
                purposes,
            });
        let (allow, deny) = (
            proptest::collection::vec(grant, 0..6),
            proptest::collection::vec(principals(), 0..3),
        );
        (allow, deny).prop_map(|(allow, deny)| Acl {
            allow,
            deny,
            refused: Refused::Null,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_096))]

        #[test]
        fn the_decision_is_that_of_the_obvious_evaluator_and_names_a_rule_that_holds(
            acl in acls(), who in identities(), purpose in proptest::option::of("[pq]"), now in 0_u64..5,
        ) {
            let (purpose, now) = (purpose.as_deref(), UnixMillis(now));
            let decision = acl.decide(&who, purpose, now);
            prop_assert_eq!(decision.is_allowed(), obviously(&acl, &who, purpose, now));
            // The rule alone explains it: with nothing but that entry the decision is the same.
            match decision {
                Decision::Allowed { grant } => {
                    let alone = Acl { allow: vec![acl.allow[grant].clone()], ..acl.clone() };
                    prop_assert_eq!(alone.decide(&who, purpose, now), Decision::Allowed { grant: 0 });
                }
                Decision::Refused(Refusal::Denied { rule }) => {
                    prop_assert!(obviously_denies(&acl.deny[rule].to_string(), &who));
                }
                Decision::Refused(Refusal::Expired { grant }) => {
                    prop_assert!(obviously_names(&acl.allow[grant].principal.to_string(), &who));
                    prop_assert!(acl.allow[grant].until.is_some_and(|until| until <= now));
                }
                Decision::Refused(Refusal::Purpose { grant }) => {
                    prop_assert!(obviously_names(&acl.allow[grant].principal.to_string(), &who));
                    prop_assert!(!acl.allow[grant].purposes.is_empty());
                }
                Decision::Refused(Refusal::NotNamed) => {
                    let named = |principal: &Principal| obviously_names(&principal.to_string(), &who);
                    prop_assert!(!acl.allow.iter().any(|grant| named(&grant.principal)));
                }
            }
        }

        #[test]
        fn taking_a_grant_away_adding_a_deny_or_letting_time_pass_never_opens_more(
            acl in acls(), who in identities(), purpose in proptest::option::of("[pq]"), now in 0_u64..5,
            take in any::<prop::sample::Index>(), deny in principals(), later in 0_u64..5,
        ) {
            let purpose = purpose.as_deref();
            let before = acl.decide(&who, purpose, UnixMillis(now)).is_allowed();
            prop_assert!(before || !acl.decide(&who, None, UnixMillis(now)).is_allowed(), "a purpose takes nothing away");
            prop_assert!(before || !acl.decide(&who, purpose, UnixMillis(now + later)).is_allowed());
            let mut fewer = acl.clone();
            fewer.deny.push(deny);
            prop_assert!(before || !fewer.decide(&who, purpose, UnixMillis(now)).is_allowed());
            if !acl.allow.is_empty() {
                fewer = acl.clone();
                fewer.allow.remove(take.index(acl.allow.len()));
                prop_assert!(before || !fewer.decide(&who, purpose, UnixMillis(now)).is_allowed());
            }
        }

        #[test]
        fn what_stands_in_a_table_is_so_for_everybody_whom_its_row_names(
            acl in acls(), others in proptest::collection::vec(principals(), 8), who in identities(),
            purpose in proptest::option::of("[pq]"), now in 0_u64..5,
        ) {
            let (purpose, now) = (purpose.as_deref(), UnixMillis(now));
            let allowed = acl.decide(&who, purpose, now).is_allowed();
            let listed = acl.allow.iter().map(|grant| &grant.principal).chain(&acl.deny);
            for principal in listed.chain(&others).filter(|principal| principal.names(&who)) {
                let standing = acl.standing(principal, purpose, now);
                let excepted = standing.except.iter().any(|denied| denied.may_name(&who));
                match standing.may {
                    May::All => prop_assert_eq!(allowed, !excepted),
                    May::ForAPurpose => {
                        let given = |purpose: &String| acl.decide(&who, Some(purpose), now).is_allowed();
                        let mut purposes = standing.grants.iter().flat_map(|grant| &grant.purposes);
                        prop_assert!(excepted || purposes.all(given));
                    }
                    May::Some => prop_assert!(!standing.grants.is_empty()),
                    May::Nobody => prop_assert!(!allowed),
                }
            }
        }

        #[test]
        fn nobody_gains_by_a_list_without_being_named_as_one_who_gains(
            before in acls(), after in acls(), who in identities(), purpose in proptest::option::of("[pq]"), now in 0_u64..4,
            later in 0_u64..4,
        ) {
            let at = UnixMillis(now + later);
            let gained = after.decide(&who, purpose.as_deref(), at).is_allowed()
                && !before.decide(&who, purpose.as_deref(), at).is_allowed();
            let beyond = after.beyond(&before, UnixMillis(now));
            prop_assert!(!gained || beyond.iter().any(|entry| entry.who.names(&who) && entry.grant.principal.names(&who)));
            prop_assert!(after.beyond(&after, UnixMillis(now)).is_empty());
        }

        #[test]
        fn a_star_stops_at_a_slash_however_many_there_are(pattern in "[ab*/]{1,8}", name in "[ab/]{1,8}") {
            prop_assert_eq!(crate::acl::principal::matches(&pattern, &name), glob_matches(&pattern, &name));
        }
    }
}
