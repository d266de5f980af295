//! Domain documents: what a domain is (its secret by key id, type, padding, ACL), written as YAML and signed
//! like policies.

use schemars::JsonSchema;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::domain_type::DomainType;
use super::key_path::KeyPath;
use super::parse::{acl, check_arn, check_name, check_padding, check_version};
use super::problem::{Found, PolicyError, Problem};
use super::raw::RawAcl;
use super::yaml::{from_yaml, utf8};
use crate::acl::Acl;
use crate::seal::KeyId;

/// The longest name of a domain, in bytes.
pub const MAX_DOMAIN_BYTES: usize = 128;

/// One version of a domain, parsed and checked. Not yet trusted: only [`VerifiedDomain`](super::VerifiedDomain) is.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct DomainDocument {
    /// Name.
    pub domain: String,
    /// Version, from 1: each has a secret of its own.
    pub version: u64,
    /// SHA-256 of the YAML bytes.
    pub sha256: [u8; 32],
    /// Full ARN of the KMS key that wraps the secret.
    pub arn: String,
    /// Id of the secret: another secret in its place is refused.
    pub key_id: KeyId,
    /// Type that values are coerced to.
    pub kind: DomainType,
    /// Plaintexts are padded to a multiple of that many bytes.
    pub pad_to: Option<u32>,
    /// Who may open values of the domain, wherever they are.
    pub acl: Acl,
}

/// A Sealflow domain: values sealed deterministically, so that datasets can be joined on them.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Domain")]
struct RawDomain {
    /// Name of the domain: 1 to 128 characters of A-Z, a-z, 0-9, `.`, `_`, `-`.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{1,128}$"))]
    domain: String,
    /// Version, from 1. A new version is a new secret: values of two versions do not join.
    #[schemars(range(min = 1))]
    version: u64,
    /// The KMS key that wraps the secret.
    key: RawDomainKey,
    /// Id of the secret: 32 hexadecimal digits.
    #[schemars(regex(pattern = "^[0-9a-f]{32}$"))]
    key_id: String,
    /// Type of the values: `utf8`, `integer`, `bool`, `float64`, `bytes`, `date`, `{decimal: {scale: 2}}`,
    /// `{timestamp: {unit: millisecond, zone: UTC}}`.
    #[serde(rename = "type")]
    kind: DomainType,
    /// Pad plaintexts to a multiple of that many bytes, so that lengths tell less: 2 to 65536.
    #[schemars(range(min = 2, max = 65_536))]
    pad_to: Option<u32>,
    /// Who may open values of the domain.
    acl: RawAcl,
}

/// The KMS key of a domain.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DomainKey")]
struct RawDomainKey {
    /// Full ARN of the KMS key (no alias).
    arn: String,
}

impl DomainDocument {
    /// Parses and checks a domain document.
    ///
    /// # Errors
    /// [`PolicyError`], the first problem found, with its place and what to do.
    pub fn parse(yaml: &[u8]) -> Result<Self, PolicyError> {
        let text = utf8(yaml)?;
        let raw: RawDomain = from_yaml(text)?;
        let sha256 = Sha256::digest(yaml).into();
        check(raw, sha256).map_err(|found| PolicyError::locate(text, found))
    }
}

/// The JSON Schema of domain documents.
#[must_use]
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(RawDomain)
}

fn check(raw: RawDomain, sha256: [u8; 32]) -> Result<DomainDocument, Found> {
    let root = KeyPath::root();
    check_name(&raw.domain, "domain", MAX_DOMAIN_BYTES).map_err(|problem| problem.at(&root.key("domain")))?;
    check_version(raw.version)?;
    check_arn(&raw.key.arn, &root.key("key").key("arn"))?;
    let key_id = raw
        .key_id
        .parse()
        .map_err(|_| Problem::BadKeyId.at(&root.key("key_id")))?;
    check_padding(raw.pad_to, &root.key("pad_to"))?;
    let acl = acl(&raw.acl, &root.key("acl"))?;
    Ok(DomainDocument {
        domain: raw.domain,
        version: raw.version,
        sha256,
        arn: raw.key.arn,
        key_id,
        kind: raw.kind,
        pad_to: raw.pad_to,
        acl,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seal::plaintext::TimeUnit;

    const FULL: &str = r#"
domain: customers
version: 2
key: { arn: "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab" }
key_id: 00112233445566778899aabbccddeeff
type: utf8
pad_to: 32
acl: { allow: ["arn:aws:iam::111122223333:role/analyst"], deny: [] }
"#;

    fn refused(from: &str, to: &str) -> (String, Problem) {
        let yaml = FULL.replace(from, to);
        assert_ne!(yaml, FULL);
        let error = DomainDocument::parse(yaml.as_bytes()).unwrap_err();
        assert!(!error.help().is_empty(), "{error}");
        (error.path, *error.problem)
    }

    fn kind(text: &str) -> DomainType {
        DomainDocument::parse(FULL.replace("type: utf8", &format!("type: {text}")).as_bytes())
            .unwrap()
            .kind
    }

    #[test]
    fn a_whole_document_parses_as_written() {
        let document = DomainDocument::parse(FULL.as_bytes()).unwrap();
        assert_eq!(
            (document.domain.as_str(), document.version, document.pad_to),
            ("customers", 2, Some(32))
        );
        assert_eq!(document.key_id.to_string(), "00112233445566778899aabbccddeeff");
        assert_eq!(document.kind, DomainType::Utf8);
        assert_eq!(document.acl.allow.len(), 1);
    }

    #[test]
    fn every_type_can_be_written() {
        assert_eq!(kind("integer"), DomainType::Integer);
        assert_eq!(kind("bool"), DomainType::Bool);
        assert_eq!(kind("float64"), DomainType::Float64);
        assert_eq!(kind("bytes"), DomainType::Bytes);
        assert_eq!(kind("date"), DomainType::Date);
        assert_eq!(kind("{ decimal: { scale: 2 } }"), DomainType::Decimal { scale: 2 });
        let zone = Some("UTC".to_owned());
        let timestamp = DomainType::Timestamp {
            unit: TimeUnit::Millisecond,
            zone,
        };
        assert_eq!(kind("{ timestamp: { unit: millisecond, zone: UTC } }"), timestamp);
    }

    #[test]
    fn each_rule_is_checked() {
        let found = |path: &str, problem: Problem| (path.to_owned(), problem);
        let bad_name = Problem::BadName {
            what: "domain",
            max: MAX_DOMAIN_BYTES,
        };
        assert_eq!(refused("domain: customers", "domain: a/b"), found("domain", bad_name));
        assert_eq!(refused("version: 2", "version: 0").0, "version");
        assert_eq!(refused(":key/1234", ":alias/1234").0, "key.arn");
        assert_eq!(refused("eeff", "EEFF"), found("key_id", Problem::BadKeyId));
        assert_eq!(refused("pad_to: 32", "pad_to: 1"), found("pad_to", Problem::BadPadding));
        assert_eq!(refused("::111122223333:", "::*:").0, "acl.allow[0]");
        let (path, problem) = refused("type: utf8", "type: text");
        assert_eq!(path, "type");
        assert!(matches!(problem, Problem::Yaml { .. }), "{problem}");
        assert!(matches!(refused("pad_to", "padding").1, Problem::Yaml { .. }));
    }

    proptest! {
        #[test]
        fn no_damage_makes_the_parser_panic(at in 0usize..400, with in "[ -~\n]{0,6}", cut in 0usize..8) {
            let mut yaml = FULL.to_owned();
            let at = at.min(yaml.len());
            let end = (at + cut).min(yaml.len());
            yaml.replace_range(at..end, &with);
            let _ = DomainDocument::parse(yaml.as_bytes());
        }
    }
}
