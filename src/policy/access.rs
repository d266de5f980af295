//! Which ACL counts for a label, and what it says of somebody.

use std::fmt;

use super::domain::DomainDocument;
use super::model::{DEAD_LETTER_LABEL, Policy};
use crate::acl::{Acl, Decision, Identity, Refusal, Refused};
use crate::clock::UnixMillis;
use crate::jose::Thumbprint;

/// A decision about one label, with what is needed to explain it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Access {
    /// Why, with the entry that decided as a path in the policy: `acls.pii.allow[0]`.
    pub because: Because,
    /// What a refused reader sees in the place of the value.
    pub refused: Refused,
}

/// What decided.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Because {
    /// This entry allows it.
    Allowed {
        /// Where it stands.
        rule: String,
        /// What it says.
        grant: String,
    },
    /// This entry of `deny` names the reader.
    Denied {
        /// Where it stands.
        rule: String,
        /// Whom it names.
        principal: String,
    },
    /// This entry of `deny` is for a group, and the reader's token says nothing of groups.
    MayBeDenied {
        /// Where it stands.
        rule: String,
        /// Whom it names.
        principal: String,
    },
    /// The entry that names the reader is over.
    Expired {
        /// Where it stands.
        rule: String,
        /// Since when.
        until: UnixMillis,
    },
    /// The entry that names the reader is for other purposes.
    Purpose {
        /// Where it stands.
        rule: String,
        /// For which.
        purposes: Vec<String>,
    },
    /// No entry of this list names the reader.
    NotNamed {
        /// Where the list stands.
        list: String,
    },
    /// The policy knows no such label, neither now nor under `previous`.
    UnknownLabel,
    /// Dead letters that no ACL is about: whoever has the private half of this key opens them.
    SealedTo {
        /// The key's name.
        recipient: Thumbprint,
    },
    /// The ACL of a domain counts, and its document is not at hand.
    UnknownDomain {
        /// Its name.
        domain: String,
    },
}

impl Access {
    /// Whether it may be opened.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self.because, Because::Allowed { .. })
    }

    /// By a list that stands at `list` in its document.
    fn by(acl: &Acl, list: &str, who: &Identity, purpose: Option<&str>, now: UnixMillis) -> Self {
        let because = match acl.decide(who, purpose, now) {
            Decision::Allowed { grant } => Because::Allowed {
                rule: format!("{list}.allow[{grant}]"),
                grant: acl.allow[grant].to_string(),
            },
            Decision::Refused(Refusal::Denied { rule }) => {
                let (denied, rule) = (&acl.deny[rule], format!("{list}.deny[{rule}]"));
                let principal = denied.to_string();
                if denied.names(who) {
                    Because::Denied { rule, principal }
                } else {
                    Because::MayBeDenied { rule, principal }
                }
            }
            Decision::Refused(Refusal::Expired { grant }) => Because::Expired {
                rule: format!("{list}.allow[{grant}]"),
                until: acl.allow[grant].until.unwrap_or_default(),
            },
            Decision::Refused(Refusal::Purpose { grant }) => Because::Purpose {
                rule: format!("{list}.allow[{grant}]"),
                purposes: acl.allow[grant].purposes.clone(),
            },
            Decision::Refused(Refusal::NotNamed) => Because::NotNamed { list: list.to_owned() },
        };
        Self {
            because,
            refused: acl.refused,
        }
    }

    fn refused(because: Because) -> Self {
        Self {
            because,
            refused: Refused::Null,
        }
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed { rule, grant } => write!(f, "{rule} allows {grant}"),
            Self::Denied { rule, principal } => write!(f, "{rule} denies {principal}, whatever is allowed"),
            Self::MayBeDenied { rule, principal } => {
                write!(f, "the token lists no groups, and {rule} denies {principal}")
            }
            Self::Expired { rule, until } => write!(f, "{rule} names it, and ended at {until}"),
            Self::Purpose { rule, purposes } => write!(f, "{rule} names it, but only for {}", purposes.join(", ")),
            Self::NotNamed { list } => write!(f, "nothing in {list}.allow names it"),
            Self::UnknownLabel => f.write_str("the policy has no such label, neither now nor under `previous`"),
            Self::SealedTo { recipient } => write!(
                f,
                "no list says who opens them: whoever has the private half of dead_letters.recipient ({recipient}) does"
            ),
            Self::UnknownDomain { domain } => write!(f, "the document of domain {domain} is not at hand"),
        }
    }
}

impl Policy {
    /// Whether `who` may open values of `label` at `now`, in the dataset itself. `label` is the one that a value
    /// proved, never the place where it was found. `domains` gives the documents of domains, whose own ACLs count.
    ///
    /// Of the dead letters' dataset see [`Policy::dead_letter_access`].
    #[must_use]
    pub fn access<'d>(
        &self,
        label: &str,
        who: &Identity,
        purpose: Option<&str>,
        now: UnixMillis,
        domains: impl Fn(&str) -> Option<&'d DomainDocument>,
    ) -> Access {
        if let Some(domain) = label.strip_prefix("domain:") {
            let is_ours = self.columns.iter().any(|rule| rule.domain() == Some(domain));
            return match domains(domain).filter(|_| is_ours) {
                Some(document) => document.access(who, purpose, now),
                None if is_ours => Access::refused(Because::UnknownDomain {
                    domain: domain.to_owned(),
                }),
                None => Access::refused(Because::UnknownLabel),
            };
        }
        self.by_name(self.acl_for_label(label), who, purpose, now)
    }

    /// As [`Policy::access`], of the records that were set aside whole.
    #[must_use]
    pub fn dead_letter_access(&self, who: &Identity, purpose: Option<&str>, now: UnixMillis) -> Access {
        if let Some(recipient) = self.dead_letters.as_ref().and_then(|rule| rule.recipient()) {
            let recipient = recipient.thumbprint();
            return Access::refused(Because::SealedTo { recipient });
        }
        let group = self.dead_letter_group();
        let has_label = |group: &super::model::KeyGroup| group.labels.iter().any(|l| l.label == DEAD_LETTER_LABEL);
        let name = group.filter(has_label).map(|group| group.acl);
        self.by_name(name.as_deref(), who, purpose, now)
    }

    fn by_name(&self, name: Option<&str>, who: &Identity, purpose: Option<&str>, now: UnixMillis) -> Access {
        match name.and_then(|name| self.acls.get_key_value(name)) {
            Some((name, acl)) => Access::by(acl, &format!("acls.{name}"), who, purpose, now),
            None => Access::refused(Because::UnknownLabel),
        }
    }
}

impl DomainDocument {
    /// Whether `who` may open values of this domain at `now`, wherever they are.
    #[must_use]
    pub fn access(&self, who: &Identity, purpose: Option<&str>, now: UnixMillis) -> Access {
        let list = format!("domain {}: acl", self.domain);
        Access::by(&self.acl, &list, who, purpose, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
dataset: payments
version: 1
keys: { k: { arn: "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab" } }
acls:
  pii:
    allow:
      - arn:aws:iam::111122223333:role/support
      - { principal: "arn:aws:iam::111122223333:role/temp", until: "2026-01-01T00:00:00Z" }
      - { principal: "oidc:https://login.example.com#group=fraud", purposes: [fraud, audit] }
    deny: ["arn:aws:iam::111122223333:role/support"]
    refused: redact
  ops: { allow: ["arn:aws:iam::111122223333:role/support"] }
columns:
  - { path: email, key: k, acl: pii }
  - { path: card.number, key: k, acl: ops, label: card }
  - { path: customer, domain: customers }
dead_letters: { key: k, acl: ops }
previous: { labels: { mail: email } }
"#;
    const NOW: UnixMillis = UnixMillis(1_767_225_600_000); // 2026-01-01T00:00:00Z

    fn why(label: &str, who: &str, purpose: Option<&str>, now: UnixMillis) -> (bool, String, Refused) {
        let policy = Policy::parse(POLICY.as_bytes()).unwrap();
        let who = match who.strip_prefix("group ") {
            Some(group) => Identity::Oidc {
                issuer: "https://login.example.com".into(),
                subject: "alice".into(),
                groups: [group.to_owned()].into(),
                lists_groups: true,
            },
            None => Identity::from_arn(&format!("arn:aws:iam::111122223333:role/{who}")).unwrap(),
        };
        let access = match label {
            "dead letters" => policy.dead_letter_access(&who, purpose, now),
            label => policy.access(label, &who, purpose, now, |_| None),
        };
        (access.is_allowed(), access.because.to_string(), access.refused)
    }

    #[test]
    fn the_acl_that_counts_is_that_of_the_proven_label_and_says_which_rule_decided() {
        let redacted = |why: &str| (false, why.to_owned(), Refused::Redact);
        assert_eq!(
            why("email", "support", None, NOW),
            redacted("acls.pii.deny[0] denies arn:aws:iam::111122223333:role/support, whatever is allowed")
        );
        assert_eq!(
            why("card", "support", None, NOW),
            (
                true,
                "acls.ops.allow[0] allows arn:aws:iam::111122223333:role/support".to_owned(),
                Refused::Null
            )
        );
        assert_eq!(
            why("email", "temp", None, NOW),
            redacted("acls.pii.allow[1] names it, and ended at 2026-01-01T00:00:00Z")
        );
        assert!(why("email", "temp", None, UnixMillis(NOW.0 - 1)).0);
        assert_eq!(
            why("email", "group fraud", Some("sales"), NOW),
            redacted("acls.pii.allow[2] names it, but only for fraud, audit")
        );
        assert!(why("email", "group fraud", Some("audit"), NOW).0);
        assert_eq!(
            why("email", "nobody", None, NOW),
            redacted("nothing in acls.pii.allow names it")
        );
        assert!(
            why("mail", "group fraud", Some("audit"), NOW).0,
            "a former label has the ACL of its successor"
        );
        assert!(why("dead letters", "support", None, NOW).0);
    }

    #[test]
    fn what_the_policy_does_not_know_is_open_to_nobody() {
        for label in ["card.number", "", "acls.pii", "domain:other"] {
            let (allowed, why, _) = why(label, "support", None, NOW);
            assert!(
                !allowed && why.starts_with("the policy has no such label"),
                "{label}: {why}"
            );
        }
        let (allowed, why, _) = why("domain:customers", "support", None, NOW);
        assert!(
            !allowed && why == "the document of domain customers is not at hand",
            "{why}"
        );
    }

    #[test]
    fn terms_that_say_nothing_or_not_what_they_mean_are_refused() {
        let refused = |from: &str, to: &str| {
            let error = Policy::parse(POLICY.replacen(from, to, 1).as_bytes()).unwrap_err();
            (error.path.clone(), error.to_string())
        };
        for until in ["2026-01-01", "2026-01-01T00:00:00", "tomorrow", "1969-12-31T23:59:59Z"] {
            let (path, text) = refused("2026-01-01T00:00:00Z", until);
            assert!(
                path == "acls.pii.allow[1].until" && text.contains("not a moment"),
                "{path}: {text}"
            );
        }
        // A key without a value is no key left out.
        for nothing in ["", "~", "null"] {
            let (path, text) = refused("\"2026-01-01T00:00:00Z\"", nothing);
            assert_eq!(path, "acls.pii.allow[1].until", "{nothing}: {text}");
            assert_eq!(
                refused("[fraud, audit]", nothing).0,
                "acls.pii.allow[2].purposes",
                "{nothing}"
            );
        }
        let many = vec!["p"; 65].join(", ");
        assert_eq!(
            refused("[fraud, audit]", &format!("[{many}]")).0,
            "acls.pii.allow[2].purposes"
        );
        let many = vec!["\"arn:aws:iam::111122223333:role/a\""; 1_001].join(", ");
        assert_eq!(refused("deny: [", &format!("deny: [{many}, ")).0, "acls.pii.deny");
        assert_eq!(refused("[fraud, audit]", "[]").0, "acls.pii.allow[2].purposes");
        assert_eq!(
            refused("[fraud, audit]", "[fraud, \"a b\"]").0,
            "acls.pii.allow[2].purposes[1]"
        );
        let (_, text) = refused("purposes:", "purpose:");
        assert!(text.contains("did you mean `purposes`?"), "{text}");
        let (path, _) = refused("role/temp\"", "role/a/*\"");
        assert_eq!(path, "acls.pii.allow[1].principal");
        let (_, text) = refused("- arn:aws:iam::111122223333:role/support", "- 17");
        assert!(text.contains("a principal, or {principal: "), "{text}");
    }
}
