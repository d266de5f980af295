//! Whose signatures count: owner keys pinned by thumbprint, per pattern of dataset names.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use crate::jose::Thumbprint;

/// Owner keys for the datasets that a pattern matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustRule {
    /// Names of datasets: `payments`, `payments*`, `*`. `*` stands for any characters. Domains
    /// match as `domain:NAME`.
    pub dataset: String,
    /// Thumbprints of the keys whose signatures count there.
    pub owners: Vec<Thumbprint>,
}

fn everything() -> String {
    "*".to_owned()
}

/// One owner key for the datasets that a pattern matches, as people write it: `THUMBPRINT` (every dataset), or
/// `PATTERN=THUMBPRINT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// As in [`TrustRule`].
    pub dataset: String,
    /// Whose signatures count there.
    pub owner: Thumbprint,
}

impl From<Thumbprint> for Pin {
    fn from(owner: Thumbprint) -> Self {
        Self {
            dataset: everything(),
            owner,
        }
    }
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (dataset, owner) = text.split_once('=').unwrap_or(("*", text));
        if !is_pattern(dataset) {
            return Err(
                "not a pattern of dataset names: write payments=THUMBPRINT, payments*=…, domain:customers=…".to_owned(),
            );
        }
        let owner = owner
            .parse()
            .map_err(|error: crate::jose::ThumbprintError| error.to_string())?;
        Ok(Self {
            dataset: dataset.to_owned(),
            owner,
        })
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.dataset == "*" {
            return write!(f, "{}", self.owner);
        }
        write!(f, "{}={}", self.dataset, self.owner)
    }
}

impl<'de> Deserialize<'de> for Pin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Pin {
    fn schema_name() -> Cow<'static, str> {
        "Pin".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "RFC 7638 thumbprint of an owner's Ed25519 key, in base64url; alone it counts for every dataset and domain, behind `PATTERN=` for those whose names match: payments, payments*, domain:customers",
            "pattern": "^([A-Za-z0-9._:*-]{1,256}=)?[A-Za-z0-9_-]{43}$",
            "examples": ["kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k", "payments*=kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"]
        })
    }
}

fn is_pattern(dataset: &str) -> bool {
    let is_name_byte = |b: u8| b.is_ascii_alphanumeric() || b"._-:*".contains(&b);
    !dataset.is_empty() && dataset.len() <= 256 && dataset.bytes().all(is_name_byte)
}

/// Why rules of trust are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustRuleError {
    /// No rule at all, or one without a key.
    #[error("no owner key is pinned{}", .dataset.as_ref().map_or(String::new(), |dataset| format!(" for {dataset}")))]
    NoOwner {
        /// The pattern without a key; `None` if there is no rule.
        dataset: Option<String>,
    },
    /// A pattern that could match no name.
    #[error("not a pattern of dataset names: {dataset}")]
    BadPattern {
        /// The pattern.
        dataset: String,
    },
}

impl TrustRuleError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::NoOwner { .. } => "pin the thumbprint that `sealflow init` or the policy's owner gave you",
            Self::BadPattern { .. } => "write a name, or one with `*`: payments, payments*, domain:customers",
        }
    }
}

/// Owner keys per pattern of dataset names. Where several patterns match, the keys of all of them count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedOwners(Vec<TrustRule>);

impl TrustedOwners {
    /// Checks and takes the rules.
    ///
    /// # Errors
    /// [`TrustRuleError`]
    pub fn new(rules: Vec<TrustRule>) -> Result<Self, TrustRuleError> {
        if rules.is_empty() {
            return Err(TrustRuleError::NoOwner { dataset: None });
        }
        for rule in &rules {
            if !is_pattern(&rule.dataset) {
                return Err(TrustRuleError::BadPattern {
                    dataset: rule.dataset.chars().take(256).collect(),
                });
            }
            if rule.owners.is_empty() {
                return Err(TrustRuleError::NoOwner {
                    dataset: Some(rule.dataset.clone()),
                });
            }
        }
        Ok(Self(rules))
    }

    /// Exactly these pins.
    ///
    /// # Errors
    /// [`TrustRuleError`]
    pub fn pinned(pins: &[Pin]) -> Result<Self, TrustRuleError> {
        let rule = |pin: &Pin| TrustRule {
            dataset: pin.dataset.clone(),
            owners: vec![pin.owner],
        };
        Self::new(pins.iter().map(rule).collect())
    }

    /// This key for every dataset and domain.
    #[must_use]
    pub fn of(owner: Thumbprint) -> Self {
        Self(vec![TrustRule {
            dataset: everything(),
            owners: vec![owner],
        }])
    }

    /// These keys for every dataset and domain.
    ///
    /// # Errors
    /// [`TrustRuleError::NoOwner`]
    pub fn everywhere(owners: Vec<Thumbprint>) -> Result<Self, TrustRuleError> {
        Self::new(vec![TrustRule {
            dataset: everything(),
            owners,
        }])
    }

    /// Whether signatures of `owner` count for `dataset`.
    #[must_use]
    pub fn is_owner(&self, dataset: &str, owner: &Thumbprint) -> bool {
        self.0
            .iter()
            .any(|rule| matches(&rule.dataset, dataset) && rule.owners.contains(owner))
    }

    /// Whether signatures of `owner` count for the domain `name`.
    #[must_use]
    pub fn is_domain_owner(&self, name: &str, owner: &Thumbprint) -> bool {
        self.is_owner(&format!("domain:{name}"), owner)
    }

    /// Whether signatures of `owner` count for anything.
    #[must_use]
    pub(super) fn knows(&self, owner: &Thumbprint) -> bool {
        self.0.iter().any(|rule| rule.owners.contains(owner))
    }
}

/// Whether `name` fits `pattern`, in which `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(start) else {
        return false;
    };
    // Each literal at its first place, the last one at the end.
    let mut literals: Vec<&str> = rest.split('*').collect();
    let end = literals.pop().unwrap_or_default();
    for literal in literals {
        let Some(at) = name.find(literal) else {
            return false;
        };
        name = &name[at + literal.len()..];
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::PrivateJwk;

    fn thumbprint() -> Thumbprint {
        PrivateJwk::generate().unwrap().thumbprint()
    }

    #[test]
    fn a_star_stands_for_any_characters_and_nothing_else_does() {
        for (pattern, name, expected) in [
            ("payments", "payments", true),
            ("payments", "payments2", false),
            ("payments*", "payments", true),
            ("payments*", "payments.eu", true),
            ("payments*", "my-payments", false),
            ("*", "anything", true),
            ("*", "", true),
            ("*.eu", "payments.eu", true),
            ("*.eu", "payments.eu.x", false),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "ac", false),
            ("a*a", "a", false),
            ("a*bc*c", "abc", false),
            ("p.yments", "payments", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn an_owner_counts_only_where_it_is_pinned() {
        let (payments, all) = (thumbprint(), thumbprint());
        let rules = vec![
            TrustRule {
                dataset: "payments*".to_owned(),
                owners: vec![payments],
            },
            TrustRule {
                dataset: "domain:customers".to_owned(),
                owners: vec![all],
            },
        ];
        let trusted = TrustedOwners::new(rules).unwrap();
        assert!(trusted.is_owner("payments", &payments));
        assert!(!trusted.is_owner("payments", &all));
        assert!(!trusted.is_owner("web", &payments));
        assert!(trusted.is_domain_owner("customers", &all));
        assert!(
            !trusted.is_domain_owner("payments", &payments),
            "a domain is no dataset"
        );
    }

    #[test]
    fn a_pin_is_a_thumbprint_alone_or_behind_a_pattern() {
        let owner = thumbprint();
        for (text, dataset) in [
            (owner.to_string(), "*"),
            (format!("payments*={owner}"), "payments*"),
            (format!("domain:customers={owner}"), "domain:customers"),
        ] {
            let pin: Pin = text.parse().unwrap();
            assert_eq!(
                (pin.dataset.as_str(), pin.owner, pin.to_string()),
                (dataset, owner, text)
            );
        }
        for bad in [
            "".to_owned(),
            "payments".to_owned(),
            format!("={owner}"),
            format!("a b={owner}"),
            format!("{owner}="),
        ] {
            assert!(bad.parse::<Pin>().is_err(), "{bad}");
        }
        let trusted = TrustedOwners::pinned(&[format!("payments*={owner}").parse().unwrap()]).unwrap();
        assert!(trusted.is_owner("payments.eu", &owner) && !trusted.is_owner("web", &owner));
        assert_eq!(
            TrustedOwners::pinned(&[]),
            Err(TrustRuleError::NoOwner { dataset: None })
        );
    }

    #[test]
    fn rules_without_keys_are_refused() {
        assert_eq!(
            TrustedOwners::new(vec![]),
            Err(TrustRuleError::NoOwner { dataset: None })
        );
        let no_owner = TrustRuleError::NoOwner {
            dataset: Some("*".to_owned()),
        };
        assert_eq!(TrustedOwners::everywhere(vec![]), Err(no_owner));
        let rule = TrustRule {
            dataset: "a/b".to_owned(),
            owners: vec![thumbprint()],
        };
        let bad = TrustRuleError::BadPattern {
            dataset: "a/b".to_owned(),
        };
        assert_eq!(TrustedOwners::new(vec![rule]), Err(bad));
    }

    #[test]
    fn pins_read_from_yaml() {
        #[derive(Debug, Deserialize)]
        struct Owners {
            owners: Vec<Pin>,
        }
        let yaml = format!("owners: [\"payments*={}\"]", thumbprint());
        let read: Owners = crate::policy::yaml::from_yaml(&yaml).unwrap();
        assert_eq!(read.owners[0].dataset, "payments*");
        let error = crate::policy::yaml::from_yaml::<Owners>("owners: [abc]").unwrap_err();
        assert_eq!(error.path, "owners[0]");
        assert!(error.message.contains("43 characters"), "{error}");
    }
}
