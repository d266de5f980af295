//! ARNs of KMS keys: the region that one names, and patterns of those that may be asked for.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// Patterns that one configuration may have.
const MAX_PATTERNS: usize = 64;

/// Whether `text` can be the region of an endpoint's name.
#[must_use]
pub fn is_region(text: &str) -> bool {
    let plain = text
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    plain && !text.is_empty() && text.len() <= 32 && !text.starts_with('-') && !text.ends_with('-')
}

/// The parts of `arn:PARTITION:kms:REGION:ACCOUNT:key/ID`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KeyArn<'a> {
    partition: &'a str,
    region: &'a str,
    account: &'a str,
    id: &'a str,
}

impl<'a> KeyArn<'a> {
    /// `None` for anything else, aliases too. `is_id` says which bytes an id may have.
    fn parse(arn: &'a str, is_id: impl Fn(u8) -> bool) -> Option<Self> {
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let ["arn", partition, "kms", region, account, resource] = parts[..] else {
            return None;
        };
        let id = resource.strip_prefix("key/")?;
        let fits = !id.is_empty() && id.len() <= 128 && id.bytes().all(is_id);
        let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        (partition.starts_with("aws") && is_region(region) && is_account && fits).then_some(Self {
            partition,
            region,
            account,
            id,
        })
    }
}

fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}

/// The region of `arn:PARTITION:kms:REGION:ACCOUNT:key/ID`; `None` for anything else, aliases too.
pub(crate) fn region_of_key(arn: &str) -> Option<&str> {
    KeyArn::parse(arn, is_id_byte).map(|key| key.region)
}

/// Which KMS keys may be asked for: full key ARNs, of which the key id alone may hold one `*`. Nothing is allowed that no
/// pattern allows, and there is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArnPatterns(Vec<ArnPattern>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct ArnPattern {
    partition: String,
    region: String,
    account: String,
    /// Before and after the `*`; `None` behind: there is none, and the id is what stands before.
    id: (String, Option<String>),
}

/// Not a pattern of key ARNs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArnPatternError {
    /// Not one that can be matched.
    #[error(
        "{pattern:?} is no pattern of KMS keys: expected arn:PARTITION:kms:REGION:ACCOUNT:key/ID with partition aws, aws-cn or \
         aws-us-gov, and at most one * in ID"
    )]
    Pattern {
        /// What was written.
        pattern: String,
    },
    /// None, or more than can be meant.
    #[error("expected 1 to {MAX_PATTERNS} patterns of KMS keys, there are {count}")]
    Count {
        /// How many.
        count: usize,
    },
}

impl FromStr for ArnPattern {
    type Err = ArnPatternError;

    fn from_str(text: &str) -> Result<Self, ArnPatternError> {
        let refused = || ArnPatternError::Pattern {
            pattern: text.chars().take(160).collect(),
        };
        let key = KeyArn::parse(text, |b| is_id_byte(b) || b == b'*').ok_or_else(refused)?;
        let is_known = matches!(key.partition, "aws" | "aws-cn" | "aws-us-gov");
        let id = match key.id.split_once('*') {
            Some((_, behind)) if behind.contains('*') => return Err(refused()),
            Some((before, behind)) => (before.to_owned(), Some(behind.to_owned())),
            None => (key.id.to_owned(), None),
        };
        if !is_known {
            return Err(refused());
        }
        Ok(Self {
            partition: key.partition.to_owned(),
            region: key.region.to_owned(),
            account: key.account.to_owned(),
            id,
        })
    }
}

impl ArnPattern {
    fn allows(&self, key: KeyArn<'_>) -> bool {
        let is_place = (self.partition.as_str(), self.region.as_str(), self.account.as_str())
            == (key.partition, key.region, key.account);
        let (before, behind) = &self.id;
        let is_id = match behind {
            None => key.id == before,
            Some(behind) => key
                .id
                .strip_prefix(before.as_str())
                .is_some_and(|rest| rest.ends_with(behind)),
        };
        is_place && is_id
    }
}

impl ArnPatterns {
    /// Of their text forms.
    ///
    /// # Errors
    /// [`ArnPatternError`]
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, ArnPatternError> {
        if texts.is_empty() || texts.len() > MAX_PATTERNS {
            return Err(ArnPatternError::Count { count: texts.len() });
        }
        let patterns: Result<_, _> = texts.iter().map(|text| text.as_ref().parse()).collect();
        Ok(Self(patterns?))
    }

    /// Whether the key of this full ARN may be asked for. Aliases never are.
    #[must_use]
    pub fn allows(&self, arn: &str) -> bool {
        KeyArn::parse(arn, is_id_byte).is_some_and(|key| self.0.iter().any(|pattern| pattern.allows(key)))
    }

    /// The regions whose KMS may be asked, each with the partition that it is in.
    #[must_use]
    pub fn regions(&self) -> BTreeSet<(&str, &str)> {
        self.0
            .iter()
            .map(|p| (p.region.as_str(), p.partition.as_str()))
            .collect()
    }
}

/// As it is written: `arn:aws:kms:eu-central-1:111122223333:key/mrk-*`.
impl fmt::Display for ArnPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, behind) = &self.id;
        let (star, behind) = behind.as_ref().map_or(("", ""), |behind| ("*", behind.as_str()));
        let place = format_args!("arn:{}:kms:{}:{}:key/", self.partition, self.region, self.account).to_string();
        write!(f, "{place}{before}{star}{behind}")
    }
}

impl fmt::Display for ArnPatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(", "))
    }
}

impl<'de> Deserialize<'de> for ArnPatterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        Self::parse(&texts).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_key_arns_have_a_region() {
        let good = "arn:aws-cn:kms:cn-north-1:111122223333:key/mrk-1234abcd";
        assert_eq!(region_of_key(good), Some("cn-north-1"));
        for bad in [
            "1234abcd",
            "alias/a",
            "arn:aws:kms:eu-central-1:111122223333:alias/a",
            "arn:aws:s3:eu-central-1:111122223333:key/a",
            "arn:aws:kms:evil.example/:111122223333:key/a",
            "arn:aws:kms::111122223333:key/a",
            "arn:aws:kms:eu-central-1:1:key/a",
            "arn:aws:kms:eu-central-1:111122223333:key/",
            "arn:aws:kms:eu-central-1:111122223333:key/a/b",
        ] {
            assert_eq!(region_of_key(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_pattern_allows_keys_of_its_account_and_region_only() {
        let texts = [
            "arn:aws:kms:eu-central-1:111122223333:key/mrk-*",
            "arn:aws:kms:eu-west-1:111122223333:key/exact",
            "arn:aws:kms:eu-west-1:111122223333:key/a*z",
        ];
        let patterns = ArnPatterns::parse(&texts).unwrap();
        assert_eq!(patterns.to_string(), texts.join(", "));
        let regions: Vec<_> = patterns.regions().into_iter().collect();
        assert_eq!(regions, [("eu-central-1", "aws"), ("eu-west-1", "aws")]);
        for allowed in [
            "arn:aws:kms:eu-central-1:111122223333:key/mrk-1",
            "arn:aws:kms:eu-west-1:111122223333:key/exact",
            "arn:aws:kms:eu-west-1:111122223333:key/az",
            "arn:aws:kms:eu-west-1:111122223333:key/a-z",
        ] {
            assert!(patterns.allows(allowed), "{allowed}");
        }
        for other in [
            "arn:aws:kms:eu-central-1:111122223333:key/1",
            "arn:aws:kms:eu-central-1:111122223334:key/mrk-1",
            "arn:aws:kms:eu-north-1:111122223333:key/mrk-1",
            "arn:aws-cn:kms:eu-central-1:111122223333:key/mrk-1",
            "arn:aws:kms:eu-central-1:111122223333:alias/mrk-1",
            "arn:aws:kms:eu-central-1:111122223333:key/mrk-*",
            "arn:aws:kms:eu-west-1:111122223333:key/exactly",
            "arn:aws:kms:eu-west-1:111122223333:key/a",
            "mrk-1",
            "",
        ] {
            assert!(!patterns.allows(other), "{other}");
        }
        // Prefix and suffix do not overlap.
        let patterns = ArnPatterns::parse(&["arn:aws:kms:eu-west-1:111122223333:key/aba*ba"]).unwrap();
        assert!(!patterns.allows("arn:aws:kms:eu-west-1:111122223333:key/aba"));
    }

    #[test]
    fn what_would_allow_more_than_keys_of_one_place_is_no_pattern() {
        for bad in [
            "*",
            "arn:aws:kms:*:111122223333:key/a",
            "arn:aws:kms:eu-central-1:*:key/a",
            "arn:*:kms:eu-central-1:111122223333:key/a",
            "arn:aws-iso:kms:us-iso-east-1:111122223333:key/a",
            "arn:aws:kms:eu-central-1:111122223333:*",
            "arn:aws:kms:eu-central-1:111122223333:alias/*",
            "arn:aws:kms:eu-central-1:111122223333:key/*a*",
            "arn:aws:kms:eu-central-1:111122223333:key/a?",
        ] {
            assert!(ArnPatterns::parse(&[bad]).is_err(), "{bad}");
        }
        assert_eq!(
            ArnPatterns::parse::<&str>(&[]),
            Err(ArnPatternError::Count { count: 0 })
        );
        assert!(serde_json::from_str::<ArnPatterns>("[]").is_err());
        assert!(serde_json::from_str::<ArnPatterns>(r#"["arn:aws:kms:eu-central-1:111122223333:key/*"]"#).is_ok());
    }
}
