//! The YAML shape of a policy, as people write it. Its doc comments are the descriptions of the JSON Schema
//! that `sealflow schema policy` prints; [`parse`](super::parse) checks what a shape cannot say.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::units::Span;

/// A Sealflow policy: which columns of a dataset are sealed, under which key, for whom.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Policy")]
pub(super) struct RawPolicy {
    /// Name of the dataset that this policy governs: 1 to 128 characters of A-Z, a-z, 0-9, `.`, `_`, `-`.
    #[schemars(regex(pattern = r"^[A-Za-z0-9._-]{1,128}$"))]
    pub(super) dataset: String,
    /// Version, from 1. Raise it with every change: versions only grow.
    #[schemars(range(min = 1))]
    pub(super) version: u64,
    /// Policy keys: a name, or a template like `tenant-{tenant_id}`, and the KMS key behind it.
    #[serde(default)]
    pub(super) keys: BTreeMap<String, RawKey>,
    /// Access-control lists by name.
    #[serde(default)]
    pub(super) acls: BTreeMap<String, RawAcl>,
    /// The columns to seal.
    #[schemars(length(min = 1))]
    pub(super) columns: Vec<RawColumn>,
    /// Keys that clients seal to, and where their sessions ride. `flow: hybrid` needs it.
    pub(super) client: Option<RawClient>,
    /// Keys that clients seal to, and the images of the worker that may have them. `flow: enclave` needs it.
    pub(super) enclave: Option<RawEnclave>,
    /// Key and ACL, or the recipient, of records that cannot be sealed. Without it such a record stops the pipeline.
    pub(super) dead_letters: Option<RawDeadLetters>,
    /// Key and ACL of tables. Without it no table of this dataset is written.
    pub(super) table: Option<RawTable>,
    /// Keys, ACL names and labels of earlier versions: they open, they never seal.
    #[serde(default)]
    pub(super) previous: RawPrevious,
    /// Whether readers and pipelines need a lease signed by the owner.
    #[serde(default)]
    pub(super) lease: RawLease,
    /// Thumbprints of keys that may sign leases, beside the owner's, and nothing else.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub(super) lease_keys: Vec<String>,
}

/// The KMS key of a policy key.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PolicyKey")]
pub(super) struct RawKey {
    /// Full ARN of the KMS key (no alias).
    pub(super) arn: String,
    /// How long one data key seals at most: 1s to 24h, 1h by default.
    pub(super) max_age: Option<Span>,
    /// For templates: how many data keys may be alive at once, 1 to 10000, 1000 by default.
    #[schemars(range(min = 1, max = 10_000))]
    pub(super) max_live: Option<u64>,
}

/// Who may open, and who may not.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Acl")]
pub(super) struct RawAcl {
    /// Principals that may open: IAM role or user ARNs, `oidc:ISSUER#sub=…`, `oidc:ISSUER#group=…`; alone, or with an end
    /// and purposes.
    #[serde(default)]
    pub(super) allow: Vec<RawGrant>,
    /// Principals that may not, whatever `allow` says.
    #[serde(default)]
    pub(super) deny: Vec<String>,
    /// What a refused reader sees in the place of a value.
    #[serde(default)]
    pub(super) refused: RawRefused,
}

/// A principal, or one with terms.
#[derive(Debug, JsonSchema)]
#[schemars(untagged, rename = "Grant")]
pub(super) enum RawGrant {
    /// For ever, for anything.
    Plain(String),
    /// With an end, or for some purposes.
    Terms(RawTerms),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "GrantTerms")]
pub(super) struct RawTerms {
    /// Whom it names.
    pub(super) principal: String,
    /// From this moment on it does not hold any more: `2027-01-01T00:00:00Z` (RFC 3339).
    #[serde(default, deserialize_with = "there")]
    #[schemars(with = "String")]
    pub(super) until: Option<String>,
    /// What the data may be opened for; the caller gives one of these. Left out: anything.
    #[serde(default, deserialize_with = "there")]
    #[schemars(with = "Vec<String>", length(min = 1, max = 64))]
    pub(super) purposes: Option<Vec<String>>,
}

/// A value for a key that is written: `until:` with nothing behind it must not mean "for ever".
fn there<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

// By hand, because an untagged enum would not say what is wrong within a grant.
impl<'de> Deserialize<'de> for RawGrant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct GrantVisitor;
        impl<'de> Visitor<'de> for GrantVisitor {
            type Value = RawGrant;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a principal, or {principal: …, until: …, purposes: […]}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawGrant, E> {
                Ok(RawGrant::Plain(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawGrant, A::Error> {
                RawTerms::deserialize(MapAccessDeserializer::new(map)).map(RawGrant::Terms)
            }
        }
        deserializer.deserialize_any(GrantVisitor)
    }
}

/// What stands in the place of a value that may not be opened.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "Refused")]
pub(super) enum RawRefused {
    /// Nothing.
    #[default]
    Null,
    /// The text `[redacted]`.
    Redact,
}

/// One column to seal.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Column")]
pub(super) struct RawColumn {
    /// Where it is: `user.email`, `cards[*].number`, `"odd name".x`, `$key`, `$header.NAME`.
    pub(super) path: String,
    /// Name or template of its policy key.
    pub(super) key: Option<String>,
    /// Name of its ACL.
    pub(super) acl: Option<String>,
    /// Who sees the plaintext: `direct` (default), `hybrid`, `enclave`.
    #[serde(default)]
    pub(super) flow: RawFlow,
    /// For `flow: hybrid` and `enclave`: whether values must come sealed by the client (`required`, the default), or may come in
    /// clear too (`optional`). For `hybrid` also: sealed with a proof of which client did (`authenticated`), and each but once
    /// (`once`).
    pub(super) client_sealed: Option<RawClientSealed>,
    /// Seal deterministically in this domain, so that equal values can be joined. The domain's document then
    /// names key, ACL, type and padding.
    pub(super) domain: Option<String>,
    /// Name that it is sealed under, by default the path. Keep it when the path changes.
    pub(super) label: Option<String>,
    /// Pad plaintexts to a multiple of that many bytes, so that lengths tell less: 2 to 65536.
    #[schemars(range(min = 2, max = 65_536))]
    pub(super) pad_to: Option<u32>,
    /// Path of a clear scalar of the same record that sealed values are bound to.
    pub(super) bind_row: Option<String>,
    /// Seal JSON nulls too, so that they look like values.
    #[serde(default)]
    pub(super) seal_nulls: bool,
    /// What to do with records that lack the column: `pass` (default) or `reject` (dead letter).
    #[serde(default)]
    pub(super) on_missing: RawOnMissing,
    /// In tables: seal each `value` (default) or the whole `column`.
    #[serde(default)]
    pub(super) at: RawPlacement,
    /// What to seal beside each value under ACLs of their own, as members `NAME#last4` and `NAME#hmac`.
    #[serde(default)]
    pub(super) hints: Vec<RawHint>,
}

/// Something derived from a value when it is sealed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Hint")]
pub(super) struct RawHint {
    /// `last4` or `hmac`.
    pub(super) derive: RawDerivation,
    /// Name of its ACL.
    pub(super) acl: String,
    /// Name of its policy key, by default the column's.
    pub(super) key: Option<String>,
    /// For `hmac`: the domain whose secret keys it and to whose type values are coerced. Hints of one domain match
    /// across datasets.
    pub(super) domain: Option<String>,
}

/// What a hint tells.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Derivation")]
pub(super) enum RawDerivation {
    /// The last four characters of strings, or digits of integers, that have eight or more.
    Last4,
    /// Whether two values are equal: HMAC-SHA-256 under a domain's secret.
    Hmac,
}

/// Clients that seal.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Client")]
pub(super) struct RawClient {
    /// RSA keys that clients seal to, by name.
    #[schemars(length(min = 1))]
    pub(super) keys: BTreeMap<String, RawClientKey>,
    /// Path of the string that holds a record's session; left out: the header `sealflow-session`.
    pub(super) session: Option<String>,
    /// The HMAC keys of clients. Columns with `client_sealed: authenticated` or `once` need it.
    pub(super) mac: Option<RawClientMac>,
    /// Keep the session with the stored record. It is removed by default: nobody needs it once values are sealed again.
    #[serde(default)]
    pub(super) keep_session: bool,
}

/// Clients that seal to the enclave.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Enclave")]
pub(super) struct RawEnclave {
    /// RSA keys that clients seal to, by name: none of `client`. Only the worker gets their private halves.
    #[schemars(length(min = 1))]
    pub(super) keys: BTreeMap<String, RawClientKey>,
    /// The images of the worker that may have keys, by name: what `sealflow enclave build` printed.
    #[schemars(length(min = 1))]
    pub(super) measurements: BTreeMap<String, RawMeasurements>,
    /// Path of the string that holds a record's session; left out: the header `sealflow-session`.
    pub(super) session: Option<String>,
    /// Keep the session with the stored record. It is removed by default: nobody needs it once values are sealed again.
    #[serde(default)]
    pub(super) keep_session: bool,
}

/// What was measured of an image of the worker: SHA-384, 96 hexadecimal digits each.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Measurements")]
pub(super) struct RawMeasurements {
    /// The image (PCR0 on Nitro).
    pub(super) image: String,
    /// Kernel and boot ramdisk (PCR1).
    pub(super) kernel: Option<String>,
    /// The application (PCR2).
    pub(super) application: Option<String>,
    /// The IAM role of the parent instance (PCR3).
    pub(super) parent_role: Option<String>,
    /// The parent instance (PCR4).
    pub(super) parent_instance: Option<String>,
    /// The certificate that signed the image (PCR8).
    pub(super) signing_certificate: Option<String>,
}

/// The KMS key that clients seal to.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ClientKey")]
pub(super) struct RawClientKey {
    /// Full ARN of an RSA key in KMS (`ENCRYPT_DECRYPT`).
    pub(super) arn: Option<String>,
    /// Or a key pair that `sealflow keys pair` printed: its private half is wrapped by KMS, and held in the host's memory.
    pub(super) pair: Option<RawKeyPair>,
    /// The keys before it, by ARN or as pairs: what clients still seal to them is opened.
    #[serde(default)]
    pub(super) previous: Vec<RawPreviousClientKey>,
}

/// A key pair whose private half is wrapped by KMS.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "KeyPair")]
pub(super) struct RawKeyPair {
    /// Full ARN of the symmetric KMS key that wrapped the private half; it wraps no data keys.
    pub(super) arn: String,
    /// The public half: `SubjectPublicKeyInfo`, DER in base64.
    pub(super) public: String,
    /// The private half as KMS wrapped it, in base64.
    pub(super) wrapped: String,
}

/// A key that clients sealed to before.
#[derive(Debug, JsonSchema)]
#[schemars(untagged, rename = "PreviousClientKey")]
pub(super) enum RawPreviousClientKey {
    /// Full ARN of an RSA key in KMS.
    Arn(String),
    /// A pair.
    Pair(RawKeyPair),
}

// By hand, because an untagged enum would not say what is wrong within a pair.
impl<'de> Deserialize<'de> for RawPreviousClientKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = RawPreviousClientKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an ARN, or a pair {arn: …, public: …, wrapped: …}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawPreviousClientKey, E> {
                Ok(RawPreviousClientKey::Arn(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawPreviousClientKey, A::Error> {
                RawKeyPair::deserialize(MapAccessDeserializer::new(map)).map(RawPreviousClientKey::Pair)
            }
        }
        deserializer.deserialize_any(KeyVisitor)
    }
}

/// By which key a client proves that it sealed a value, and for how long a value can come.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ClientMac")]
pub(super) struct RawClientMac {
    /// Full ARN of an HMAC key in KMS (`HMAC_256`, `GENERATE_VERIFY_MAC`): the key of each client is derived from it.
    pub(super) arn: String,
    /// Full ARNs of the keys before it: clients whose keys come from them are still known.
    #[serde(default)]
    pub(super) previous: Vec<String>,
    /// Names of clients that are not believed any more.
    #[serde(default)]
    pub(super) revoked: Vec<String>,
    /// For `once`: how long after it was sealed a value must be in its topic. At most 7d.
    #[serde(default = "max_age")]
    pub(super) max_age: Span,
    /// For `once`: how long after it was sealed a value must have been read; for so long its name is remembered. At least
    /// `max_age`, at most 30d.
    #[serde(default = "remember")]
    pub(super) remember: Span,
}

fn max_age() -> Span {
    Span(Duration::from_secs(600))
}

fn remember() -> Span {
    Span(Duration::from_secs(86_400))
}

/// Under which key and ACL dead letters are sealed, or to whom.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "DeadLetters", extend("oneOf" = [{ "required": ["key", "acl"] }, { "required": ["recipient"] }]))]
pub(super) struct RawDeadLetters {
    /// Name of a policy key (no template).
    pub(super) key: Option<String>,
    /// Name of an ACL.
    pub(super) acl: Option<String>,
    /// Instead of both: an RSA key whose private half no service holds. Datasets with enclave columns need it.
    pub(super) recipient: Option<RawRecipient>,
}

/// The public half of an RSA key, as a JWK: what `sealflow client keygen` prints.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Recipient")]
pub(super) struct RawRecipient {
    /// `RSA`.
    pub(super) kty: String,
    /// The modulus of 2048 to 4096 bits, in base64url.
    pub(super) n: String,
    /// `AQAB`: the exponent 65537.
    pub(super) e: String,
    /// `RSA-OAEP-256`.
    pub(super) alg: Option<String>,
    /// `enc`.
    #[serde(rename = "use")]
    pub(super) usage: Option<String>,
    /// Its RFC 7638 thumbprint.
    pub(super) kid: Option<String>,
    // Members of private keys (RFC 7518, section 6.3.2), known in order to be refused by what they are.
    #[schemars(skip)]
    pub(super) d: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(super) p: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(super) q: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(super) dp: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(super) dq: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(super) qi: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(super) oth: Option<IgnoredAny>,
}

impl RawRecipient {
    /// Whether it has a member of a private key.
    pub(super) fn is_private(&self) -> bool {
        let members = [&self.d, &self.p, &self.q, &self.dp, &self.dq, &self.qi, &self.oth];
        members.into_iter().any(Option::is_some)
    }
}

/// Tables: encrypted Parquet files.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Table")]
pub(super) struct RawTable {
    /// Name of the policy key (no template) of footers and of the columns that this policy does not name.
    pub(super) key: String,
    /// Name of the ACL of those: who may read the files at all.
    pub(super) acl: String,
    /// Key and ACL of fields that the table's schema does not have or that are of another type: they are sealed together
    /// in the column `_extra`. Without it such a record is a dead letter.
    pub(super) extra: Option<RawExtra>,
    /// `encrypted` (default), or `signed-plaintext`: whoever has the file sees its schema, row counts and offsets.
    #[serde(default)]
    pub(super) footer: RawFooter,
    /// `standard` (default), or `duckdb`: files that DuckDB opens, of one key, which do not prove where they belong.
    #[serde(default)]
    pub(super) profile: RawProfile,
}

/// Key and ACL of `_extra`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Extra")]
pub(super) struct RawExtra {
    /// Name of a policy key (no template).
    pub(super) key: String,
    /// Name of an ACL.
    pub(super) acl: String,
}

/// How a table file ends.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "Footer")]
pub(super) enum RawFooter {
    /// With an encrypted footer.
    #[default]
    Encrypted,
    /// With a footer that anybody reads and that is signed with its key.
    SignedPlaintext,
}

/// Whom a table file is for.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "Profile")]
pub(super) enum RawProfile {
    /// For Sealflow, PyArrow and Spark.
    #[default]
    Standard,
    /// For DuckDB too.
    Duckdb,
}

/// What earlier versions used: it opens, it never seals.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Previous")]
pub(super) struct RawPrevious {
    /// Former policy keys.
    #[serde(default)]
    pub(super) keys: Vec<RawPreviousKey>,
    /// Former ACL names, each with the current ACL that counts in its place.
    #[serde(default)]
    pub(super) acls: BTreeMap<String, String>,
    /// Former labels, each with the current label whose ACL counts in its place.
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
}

/// A former policy key.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PreviousKey")]
pub(super) struct RawPreviousKey {
    /// Its name or template.
    pub(super) name: String,
    /// Full ARN of the KMS key that it had.
    pub(super) arn: String,
}

/// Who sees the plaintext of a column.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Flow")]
pub(super) enum RawFlow {
    /// The backend.
    #[default]
    Direct,
    /// Client and backend: the client seals, the backend opens and seals again.
    Hybrid,
    /// Client and enclave only: the backend carries ciphertext.
    Enclave,
}

/// Whether values must come sealed by the client.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "ClientSealed")]
pub(super) enum RawClientSealed {
    /// Yes: a value in clear makes its record a dead letter.
    Required,
    /// No: a value in clear is sealed as it is.
    Optional,
    /// Yes, and in a JWS by the key of a client that the policy knows.
    Authenticated,
    /// As `authenticated`, and no value is taken twice.
    Once,
}

/// What to do with a record that lacks a column.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "OnMissing")]
pub(super) enum RawOnMissing {
    /// Let it pass.
    #[default]
    Pass,
    /// Make it a dead letter.
    Reject,
}

/// What is sealed in a table.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Placement")]
pub(super) enum RawPlacement {
    /// Each value.
    #[default]
    Value,
    /// In tables the whole column, by the table format; everywhere else each value.
    Column,
}

/// Whether access needs a lease.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Lease")]
pub(super) enum RawLease {
    /// No.
    #[default]
    None,
    /// Yes: without one the policy does not count.
    Required,
}
