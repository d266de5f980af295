//! Where objects are, as people write it: a folder, or `s3://BUCKET/PREFIX`. It opens nothing.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// The longest prefix, so that keys below it keep within S3's 1,024 bytes.
const MAX_PREFIX: usize = 512;

/// A folder or a part of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Location {
    /// A folder on a local or shared file system with hard links.
    Folder(PathBuf),
    /// What is below a prefix in an S3 bucket.
    Bucket(BucketLocation),
}

/// `s3://BUCKET/PREFIX`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BucketLocation {
    bucket: String,
    prefix: String,
}

/// Why a text is no location. Never repeats it, as it might hold credentials.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocationError {
    /// Nothing was given.
    #[error("the location is empty")]
    Empty,
    /// A URL of another scheme, or one with an authority that a folder has not.
    #[error("not a location: expected a folder, file:///FOLDER or s3://BUCKET/PREFIX")]
    Scheme,
    /// Not the name of a bucket.
    #[error(
        "not the name of a bucket: 3 to 63 of a-z, 0-9, dot and hyphen, beginning and ending with a letter or digit"
    )]
    BucketName,
    /// Part of a URL that has no meaning here.
    #[error("an s3:// location has a bucket and a prefix, no user, port, query or fragment")]
    MoreThanAPath,
    /// Not a prefix.
    #[error("not a prefix: segments of A-Z a-z 0-9 . _ = - between single slashes, none . or .., 512 bytes at most")]
    Prefix,
}

impl LocationError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::MoreThanAPath => {
                "credentials come from the AWS chain, endpoint and region from keys of the configuration"
            }
            _ => "write a folder such as ./catalogue, or s3://my-bucket/some/prefix",
        }
    }
}

impl BucketLocation {
    /// The bucket.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The prefix without slashes around it; empty for the whole bucket.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl Location {
    /// The folder, if it is one.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::Bucket(_) => None,
        }
    }

    /// The same; a relative folder is taken as below `base`.
    #[must_use]
    pub fn resolved(self, base: &Path) -> Self {
        match self {
            Self::Folder(folder) => Self::Folder(base.join(folder)),
            bucket @ Self::Bucket(_) => bucket,
        }
    }
}

impl FromStr for Location {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(LocationError::Empty);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            // `s3:bucket` and `S3:/bucket` are slips, not folders.
            let looks_like_s3 = text.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("s3:"));
            return if looks_like_s3 {
                Err(LocationError::Scheme)
            } else {
                Ok(Self::Folder(PathBuf::from(text)))
            };
        };
        match scheme {
            // RFC 8089 without host; nothing is decoded, so nothing that would need it is taken.
            "file" if rest.starts_with('/') && !rest.contains(['%', '?', '#']) => Ok(Self::Folder(PathBuf::from(rest))),
            "s3" => rest.parse().map(Self::Bucket),
            _ => Err(LocationError::Scheme),
        }
    }
}

impl FromStr for BucketLocation {
    type Err = LocationError;

    /// Takes what stands behind `s3://`, and `s3://` itself too.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("s3://").unwrap_or(text);
        if rest.contains(['@', ':', '?', '%']) || rest.contains('#') {
            return Err(LocationError::MoreThanAPath);
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if !is_bucket_name(bucket) {
            return Err(LocationError::BucketName);
        }
        let is_root = prefix.is_empty();
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_good = is_root || prefix.split('/').all(is_segment);
        if !is_good || prefix.len() > MAX_PREFIX {
            return Err(LocationError::Prefix);
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        })
    }
}

/// S3 User Guide, "General purpose bucket naming rules", as far as a name can be told by itself.
fn is_bucket_name(name: &str) -> bool {
    let is_end = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
        && is_end(bytes.first())
        && is_end(bytes.last())
        && !name.contains("..")
}

fn is_segment(segment: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'=' | b'-');
    !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(is_plain)
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "{}", folder.display()),
            Self::Bucket(bucket) => write!(f, "{bucket}"),
        }
    }
}

impl fmt::Display for BucketLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.prefix)
        }
    }
}

impl<'de> Deserialize<'de> for Location {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for BucketLocation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Location::deserialize(deserializer)? {
            Location::Bucket(bucket) => Ok(bucket),
            Location::Folder(_) => Err(D::Error::custom("expected s3://BUCKET/PREFIX")),
        }
    }
}

impl JsonSchema for Location {
    fn schema_name() -> Cow<'static, str> {
        "Location".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "A folder, file:///FOLDER or s3://BUCKET/PREFIX." })
    }
}

impl JsonSchema for BucketLocation {
    fn schema_name() -> Cow<'static, str> {
        "BucketLocation".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._=/-]*)?$" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        text.parse::<Location>().unwrap().to_string()
    }

    #[test]
    fn folders_and_buckets_are_told_apart_and_come_back_as_they_were_written() {
        assert_eq!(shown("./catalogue"), "./catalogue");
        assert_eq!(shown("/srv/a:b"), "/srv/a:b");
        assert_eq!(shown("file:///srv/catalogue"), "/srv/catalogue");
        assert_eq!(shown("s3://bucket"), "s3://bucket");
        assert_eq!(shown("s3://bucket/"), "s3://bucket");
        assert_eq!(shown("s3://my.bucket-1/a/dt=1/b_c/"), "s3://my.bucket-1/a/dt=1/b_c");
        let Location::Bucket(bucket) = "s3://bucket/a/b".parse().unwrap() else {
            panic!("a folder")
        };
        assert_eq!((bucket.bucket(), bucket.prefix()), ("bucket", "a/b"));
    }

    #[test]
    fn what_is_no_location_is_refused_and_not_repeated() {
        for (text, error) in [
            ("", LocationError::Empty),
            ("s3:bucket", LocationError::Scheme),
            ("S3:/bucket", LocationError::Scheme),
            ("S3://bucket", LocationError::Scheme),
            ("gs://bucket", LocationError::Scheme),
            ("https://bucket.s3.amazonaws.com", LocationError::Scheme),
            ("file://host/a", LocationError::Scheme),
            ("file:///a%2f", LocationError::Scheme),
            ("s3://", LocationError::BucketName),
            ("s3://ab", LocationError::BucketName),
            ("s3://Bucket", LocationError::BucketName),
            ("s3://a..b", LocationError::BucketName),
            ("s3://-ab", LocationError::BucketName),
            ("s3:///a", LocationError::BucketName),
            ("s3://AKIA:hunter2@bucket/a", LocationError::MoreThanAPath),
            ("s3://bucket/a?region=x", LocationError::MoreThanAPath),
            ("s3://bucket/a#b", LocationError::MoreThanAPath),
            ("s3://bucket/a//b", LocationError::Prefix),
            ("s3://bucket//", LocationError::Prefix),
            ("s3://bucket/a/../b", LocationError::Prefix),
            ("s3://bucket/ä", LocationError::Prefix),
        ] {
            let refused = text.parse::<Location>().unwrap_err();
            assert_eq!(refused, error, "{text}");
            assert!(!format!("{refused} {}", refused.help()).contains("hunter2"));
        }
    }

    #[test]
    fn only_relative_folders_are_moved() {
        let resolved = |text: &str| {
            text.parse::<Location>()
                .unwrap()
                .resolved(Path::new("/etc"))
                .to_string()
        };
        assert_eq!(resolved("a"), "/etc/a");
        assert_eq!(resolved("/a"), "/a");
        assert_eq!(resolved("s3://bucket/a"), "s3://bucket/a");
    }
}
