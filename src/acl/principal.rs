//! Principals as policies name them: IAM roles and users, OIDC subjects and groups; and whom they name.

use std::fmt;
use std::str::FromStr;

use super::identity::Identity;

/// The longest principal that is taken, in bytes.
pub const MAX_PRINCIPAL_BYTES: usize = 1024;

/// One principal of an ACL, checked for form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Principal {
    /// `arn:PARTITION:iam::ACCOUNT:role/NAME` or `…:user/NAME`.
    Iam {
        /// `aws`, `aws-cn`, …; never a wildcard.
        partition: String,
        /// 12 digits; never a wildcard.
        account: String,
        /// Role or user; never a wildcard.
        kind: IamKind,
        /// Path and name. A `*` stands for any characters but `/`; none in a role that has a path.
        name: String,
    },
    /// `oidc:ISSUER#sub=SUBJECT` or `oidc:ISSUER#group=GROUP`, compared exactly.
    Oidc {
        /// The issuer's URL, `https://…`.
        issuer: String,
        /// Which claim.
        claim: OidcClaim,
        /// Its value.
        value: String,
    },
}

/// The kinds of IAM principal that a policy can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IamKind {
    /// A role; its sessions (STS) match too.
    Role,
    /// A user.
    User,
}

/// The claims of an OIDC token that a policy can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OidcClaim {
    /// `sub`.
    Subject,
    /// One entry of the token's groups.
    Group,
}

/// Why a text is no principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrincipalError {
    /// Neither an ARN nor `oidc:`.
    #[error("not a principal, expected an IAM ARN or oidc:ISSUER#sub=SUBJECT or oidc:ISSUER#group=GROUP")]
    UnknownForm,
    /// `*` alone, or in a part of an ARN that must be exact.
    #[error("a wildcard in the {part} of a principal")]
    Wildcard {
        /// Which part.
        part: &'static str,
    },
    /// An STS session instead of the role behind it.
    #[error("the ARN of a session, but a policy names roles")]
    Session,
    /// `arn:aws:iam::ACCOUNT:root`, groups, and whatever else IAM has.
    #[error("not a role or user: IAM ARNs of principals end in role/NAME or user/NAME")]
    NotRoleOrUser,
    /// A `*` and a path in one role.
    #[error("a wildcard in a role with a path, but sessions do not say the path of their role")]
    WildcardBelowPath,
    /// A part that is empty or has characters that it cannot have.
    #[error("the {part} of the principal is malformed")]
    Malformed {
        /// Which part.
        part: &'static str,
    },
    /// Over [`MAX_PRINCIPAL_BYTES`].
    #[error("a principal of more than {MAX_PRINCIPAL_BYTES} bytes")]
    TooLong,
}

impl PrincipalError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::Wildcard { .. } => {
                "write partition, account and type out; only the name of a role or user may hold `*`, which stops at `/`"
            }
            Self::WildcardBelowPath => {
                "write role/NAME* without the path; it then names such roles in every path of that account, so deny what it must not"
            }
            Self::Session => "write arn:aws:iam::ACCOUNT:role/NAME: sessions of that role then match",
            Self::NotRoleOrUser => {
                "name the roles and users themselves; an account's root does not stand for everybody in it"
            }
            _ => "for example arn:aws:iam::111122223333:role/analyst or oidc:https://login.example.com#group=fraud",
        }
    }
}

impl FromStr for Principal {
    type Err = PrincipalError;

    fn from_str(text: &str) -> Result<Self, PrincipalError> {
        if text.len() > MAX_PRINCIPAL_BYTES {
            return Err(PrincipalError::TooLong);
        }
        if text == "*" {
            return Err(PrincipalError::Wildcard { part: "whole" });
        }
        if let Some(rest) = text.strip_prefix("oidc:") {
            return oidc(rest);
        }
        if text.starts_with("arn:") {
            return iam(text);
        }
        Err(PrincipalError::UnknownForm)
    }
}

impl Principal {
    /// Whether it names this identity. A role names its sessions whatever its path; a user by path and name; an OIDC
    /// principal by issuer and subject, or issuer and group.
    #[must_use]
    pub fn names(&self, who: &Identity) -> bool {
        match (self, who) {
            (
                Self::Iam {
                    partition,
                    account,
                    kind: IamKind::Role,
                    name: pattern,
                },
                Identity::Role {
                    partition: of_partition,
                    account: of_account,
                    name,
                },
            ) => {
                let pattern = pattern.rsplit_once('/').map_or(pattern.as_str(), |(_, name)| name);
                (partition, account) == (of_partition, of_account) && matches(pattern, name)
            }
            (
                Self::Iam {
                    partition,
                    account,
                    kind: IamKind::User,
                    name: pattern,
                },
                Identity::User {
                    partition: of_partition,
                    account: of_account,
                    name,
                },
            ) => (partition, account) == (of_partition, of_account) && matches(pattern, name),
            (
                Self::Oidc { issuer, claim, value },
                Identity::Oidc {
                    issuer: of_issuer,
                    subject,
                    groups,
                    ..
                },
            ) => {
                issuer == of_issuer
                    && match claim {
                        OidcClaim::Subject => value == subject,
                        OidcClaim::Group => groups.contains(value),
                    }
            }
            _ => false,
        }
    }

    /// Whether it names `who`, or may: a group of an issuer whose token does not list groups. For what takes away.
    #[must_use]
    pub fn may_name(&self, who: &Identity) -> bool {
        let is_unknown_group = match (self, who) {
            (
                Self::Oidc {
                    issuer,
                    claim: OidcClaim::Group,
                    ..
                },
                Identity::Oidc {
                    issuer: of_issuer,
                    lists_groups,
                    ..
                },
            ) => issuer == of_issuer && !lists_groups,
            _ => false,
        };
        is_unknown_group || self.names(who)
    }

    /// Whether it is a group of the issuer whose subject `other` is: a token of that subject may list no groups.
    pub(super) fn is_group_beside(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Oidc {
                    issuer,
                    claim: OidcClaim::Group,
                    ..
                },
                Self::Oidc {
                    issuer: of_issuer,
                    claim: OidcClaim::Subject,
                    ..
                },
            ) => issuer == of_issuer,
            _ => false,
        }
    }

    /// Whether it names everybody whom `other` names, as far as can be seen from the two: `true` is certain, and where
    /// neither is a pattern so is `false`.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        // A `*` of the other is a byte of its name here, which only a `*` of ours takes in.
        self.relates(other, matches)
    }

    /// Whether there may be somebody whom both name; `false` is certain.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            // One token has a subject and any number of groups.
            (
                Self::Oidc { issuer, claim, value },
                Self::Oidc {
                    issuer: of_issuer,
                    claim: OidcClaim::Subject,
                    value: of_value,
                },
            ) if *claim == OidcClaim::Subject => (issuer, value) == (of_issuer, of_value),
            (Self::Oidc { issuer, .. }, Self::Oidc { issuer: of_issuer, .. }) => issuer == of_issuer,
            _ => self.relates(other, intersect),
        }
    }

    fn relates(&self, other: &Self, names: impl Fn(&str, &str) -> bool) -> bool {
        let (
            Self::Iam {
                partition,
                account,
                kind,
                name,
            },
            Self::Iam {
                partition: of_partition,
                account: of_account,
                kind: of_kind,
                name: of_name,
            },
        ) = (self, other)
        else {
            return self == other;
        };
        let of_role = |name: &'_ str| {
            name.rsplit_once('/')
                .map_or(name.to_owned(), |(_, name)| name.to_owned())
        };
        (partition, account, kind) == (of_partition, of_account, of_kind)
            && match kind {
                IamKind::Role => names(&of_role(name), &of_role(of_name)),
                IamKind::User => names(name, of_name),
            }
    }
}

/// Whether there is a name that both patterns stand for.
fn intersect(one: &str, other: &str) -> bool {
    let (mut ones, mut others) = (one.split('/'), other.split('/'));
    loop {
        match (ones.next(), others.next()) {
            (None, None) => return true,
            (Some(one), Some(other)) if segments_intersect(one.as_bytes(), other.as_bytes()) => {}
            _ => return false,
        }
    }
}

/// Which positions in both can be reached with the same text; lengths are bounded by [`MAX_PRINCIPAL_BYTES`].
fn segments_intersect(one: &[u8], other: &[u8]) -> bool {
    let mut reached = vec![vec![false; other.len() + 1]; one.len() + 1];
    reached[0][0] = true;
    for i in 0..=one.len() {
        for j in 0..=other.len() {
            if !reached[i][j] {
                continue;
            }
            let (a, b) = (one.get(i).copied(), other.get(j).copied());
            if a == Some(b'*') {
                reached[i + 1][j] = true;
            }
            if b == Some(b'*') {
                reached[i][j + 1] = true;
            }
            match (a, b) {
                (Some(b'*'), Some(_)) => reached[i][j + 1] = true,
                (Some(_), Some(b'*')) => reached[i + 1][j] = true,
                (Some(a), Some(b)) if a == b => reached[i + 1][j + 1] = true,
                _ => {}
            }
        }
    }
    reached[one.len()][other.len()]
}

/// Whether a name is one that the pattern stands for: `*` is any number of any characters but `/`. Takes
/// pattern times name steps at most.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let (mut patterns, mut names) = (pattern.split('/'), name.split('/'));
    loop {
        match (patterns.next(), names.next()) {
            (None, None) => return true,
            (Some(pattern), Some(name)) if segment_matches(pattern.as_bytes(), name.as_bytes()) => {}
            _ => return false,
        }
    }
}

/// Greedy, with one step back: to the last `*`, which then takes one more byte.
fn segment_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            back = Some((p, n));
        } else if pattern.get(p) == name.get(n) {
            p += 1;
            n += 1;
        } else if let Some((after, taken)) = back {
            back = Some((after, taken + 1));
            (p, n) = (after, taken + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

fn iam(text: &str) -> Result<Principal, PrincipalError> {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let [_, partition, service, region, account, resource] = parts[..] else {
        return Err(PrincipalError::UnknownForm);
    };
    if partition.contains(['*', '?']) {
        return Err(PrincipalError::Wildcard { part: "partition" });
    }
    if !is_word(partition) {
        return Err(PrincipalError::Malformed { part: "partition" });
    }
    if service == "sts" {
        return Err(PrincipalError::Session);
    }
    if service != "iam" {
        return Err(PrincipalError::NotRoleOrUser);
    }
    if !region.is_empty() {
        return Err(PrincipalError::Malformed {
            part: "region (IAM has none)",
        });
    }
    if account.contains(['*', '?']) {
        return Err(PrincipalError::Wildcard { part: "account" });
    }
    if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
        return Err(PrincipalError::Malformed {
            part: "account (12 digits)",
        });
    }
    let (kind, name) = resource.split_once('/').unwrap_or((resource, ""));
    let kind = match kind {
        "role" => IamKind::Role,
        "user" => IamKind::User,
        kind if kind.contains(['*', '?']) => return Err(PrincipalError::Wildcard { part: "type" }),
        _ => return Err(PrincipalError::NotRoleOrUser),
    };
    let is_name = name
        .split('/')
        .all(|part| !part.is_empty() && part.bytes().all(is_name_byte));
    if !is_name {
        return Err(PrincipalError::Malformed { part: "name" });
    }
    // As the path is not compared, team/fraud-* would name the fraud-* of every team.
    if kind == IamKind::Role && name.contains('/') && name.contains('*') {
        return Err(PrincipalError::WildcardBelowPath);
    }
    Ok(Principal::Iam {
        partition: partition.to_owned(),
        account: account.to_owned(),
        kind,
        name: name.to_owned(),
    })
}

fn oidc(rest: &str) -> Result<Principal, PrincipalError> {
    let (issuer, claim) = rest.split_once('#').ok_or(PrincipalError::UnknownForm)?;
    if issuer.contains('*') {
        return Err(PrincipalError::Wildcard { part: "issuer" });
    }
    let host = issuer.strip_prefix("https://").ok_or(PrincipalError::Malformed {
        part: "issuer (https://…)",
    })?;
    let is_issuer =
        !host.is_empty() && !host.starts_with('/') && host.bytes().all(|b| b.is_ascii_graphic() && b != b'?');
    if !is_issuer {
        return Err(PrincipalError::Malformed {
            part: "issuer (https://…)",
        });
    }
    let (claim, value) = claim.split_once('=').ok_or(PrincipalError::UnknownForm)?;
    let claim = match claim {
        "sub" => OidcClaim::Subject,
        "group" => OidcClaim::Group,
        _ => return Err(PrincipalError::UnknownForm),
    };
    if value.contains('*') {
        return Err(PrincipalError::Wildcard {
            part: "subject or group",
        });
    }
    if value.is_empty() || value.chars().any(is_deceptive) {
        return Err(PrincipalError::Malformed {
            part: "subject or group",
        });
    }
    Ok(Principal::Oidc {
        issuer: issuer.to_owned(),
        claim,
        value: value.to_owned(),
    })
}

/// Control characters, and those that turn the direction of writing: a text with them does not read as what it is.
pub(super) fn is_deceptive(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// What IAM allows in names, and our `*`.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+=,.@_-*".contains(&byte)
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iam {
                partition,
                account,
                kind,
                name,
            } => {
                let kind = match kind {
                    IamKind::Role => "role",
                    IamKind::User => "user",
                };
                write!(f, "arn:{partition}:iam::{account}:{kind}/{name}")
            }
            Self::Oidc { issuer, claim, value } => {
                let claim = match claim {
                    OidcClaim::Subject => "sub",
                    OidcClaim::Group => "group",
                };
                write!(f, "oidc:{issuer}#{claim}={value}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<String, PrincipalError> {
        text.parse::<Principal>().map(|principal| principal.to_string())
    }

    #[test]
    fn principals_print_as_they_parse() {
        for text in [
            "arn:aws:iam::111122223333:role/analyst",
            "arn:aws-cn:iam::111122223333:user/team/fraud-*",
            "arn:aws:iam::111122223333:role/team/fraud",
            "arn:aws:iam::111122223333:role/fraud-*",
            "arn:aws:iam::111122223333:user/alice@example.com",
            "oidc:https://login.example.com/realms/a#group=fraud",
            "oidc:https://token.actions.example.com#sub=repo:org/app:ref:refs/heads/main",
        ] {
            assert_eq!(parse(text).as_deref(), Ok(text));
        }
    }

    #[test]
    fn partition_account_and_type_take_no_wildcard() {
        let wildcard = |part| Err(PrincipalError::Wildcard { part });
        assert_eq!(parse("*"), wildcard("whole"));
        assert_eq!(parse("arn:*:iam::111122223333:role/a"), wildcard("partition"));
        assert_eq!(parse("arn:aws:iam::*:role/a"), wildcard("account"));
        assert_eq!(parse("arn:aws:iam::111122223333:*"), wildcard("type"));
        assert_eq!(parse("arn:aws:iam::111122223333:*/a"), wildcard("type"));
        assert_eq!(parse("oidc:https://*.example.com#sub=a"), wildcard("issuer"));
        assert_eq!(parse("oidc:https://a.example.com#sub=*"), wildcard("subject or group"));
    }

    #[test]
    fn what_is_no_role_user_or_oidc_claim_is_refused() {
        let malformed = |part| Err(PrincipalError::Malformed { part });
        assert_eq!(parse("alice"), Err(PrincipalError::UnknownForm));
        assert_eq!(
            parse("arn:aws:sts::111122223333:assumed-role/a/session"),
            Err(PrincipalError::Session)
        );
        assert_eq!(
            parse("arn:aws:iam::111122223333:root"),
            Err(PrincipalError::NotRoleOrUser)
        );
        assert_eq!(
            parse("arn:aws:iam::111122223333:group/a"),
            Err(PrincipalError::NotRoleOrUser)
        );
        assert_eq!(parse("arn:aws:iam::1111:role/a"), malformed("account (12 digits)"));
        assert_eq!(parse("arn:aws:iam::111122223333:role/"), malformed("name"));
        assert_eq!(parse("arn:aws:iam::111122223333:role/a//b"), malformed("name"));
        for name in ["team/fraud-*", "*/fraud", "*/*"] {
            let role = parse(&format!("arn:aws:iam::111122223333:role/{name}"));
            assert_eq!(role, Err(PrincipalError::WildcardBelowPath), "{name}");
        }
        assert_eq!(
            parse("oidc:http://login.example.com#sub=a"),
            malformed("issuer (https://…)")
        );
        assert_eq!(
            parse("oidc:https://login.example.com#email=a"),
            Err(PrincipalError::UnknownForm)
        );
        assert_eq!(
            parse("oidc:https://login.example.com#sub="),
            malformed("subject or group")
        );
        assert_eq!(
            parse("oidc:https://login.example.com#sub=a\u{202e}b"),
            malformed("subject or group")
        );
        assert_eq!(parse(&"a".repeat(2_000)), Err(PrincipalError::TooLong));
    }

    fn role(name: &str) -> Principal {
        format!("arn:aws:iam::111122223333:role/{name}").parse().unwrap()
    }

    #[test]
    fn an_oidc_token_has_one_subject_and_any_groups() {
        let of = |claim: &str| -> Principal { format!("oidc:https://a.example.com#{claim}").parse().unwrap() };
        assert!(of("sub=a").overlaps(&of("group=g")) && of("group=g").overlaps(&of("group=h")));
        assert!(of("sub=a").overlaps(&of("sub=a")) && !of("sub=a").overlaps(&of("sub=b")));
        assert!(!of("sub=a").covers(&of("group=a")) && of("group=g").covers(&of("group=g")));
        assert!(!of("sub=a").overlaps(&role("a")));
    }

    #[test]
    fn a_pattern_covers_and_overlaps_what_it_does() {
        assert!(role("a*").covers(&role("ab*")) && !role("ab*").covers(&role("a*")));
        assert!(role("team/a").covers(&role("a")), "the path of a role does not count");
        assert!(role("a*").overlaps(&role("*b")) && !role("a*").overlaps(&role("b*")));
    }

    proptest! {
        #[test]
        fn covers_and_overlaps_agree_with_every_short_name(one in "[ab*]{1,4}", other in "[ab*]{1,4}") {
            let (one, other) = (role(&one), role(&other));
            let letters = ["", "a", "b"];
            let mut both = false;
            // All names of up to six letters: a common name of two patterns of four needs no more.
            for n in 0..3_usize.pow(6) {
                let name: String = (0..6).map(|place| letters[n / 3_usize.pow(place) % 3]).collect();
                if name.is_empty() {
                    continue;
                }
                let who = Identity::from_arn(&format!("arn:aws:iam::111122223333:role/{name}")).unwrap();
                let (by_one, by_other) = (one.names(&who), other.names(&who));
                prop_assert!(!one.covers(&other) || by_one || !by_other, "{} covers {}, but {}", one, other, name);
                both |= by_one && by_other;
            }
            prop_assert_eq!(one.overlaps(&other), both, "{} and {}", one, other);
        }

        #[test]
        fn any_text_is_a_principal_that_prints_as_it_was_or_an_error(text in "(arn:|oidc:https://)?[ -~é]{0,60}") {
            if let Ok(principal) = text.parse::<Principal>() {
                prop_assert_eq!(principal.to_string(), text);
            }
        }
    }
}
