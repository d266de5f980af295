//! What the columns of a table are: a versioned document, parsed from YAML or JSON, written as canonical JSON, and
//! extended, never changed (`docs/format.md`, "Schema document"). It knows no policy: see [`TableLayout`](super::TableLayout).

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::extra::DUPLICATES;
use crate::policy::yaml::{MAX_YAML_BYTES, YamlError, from_yaml_bytes};
use crate::policy::{ColumnPath, KeyPath, Segment};
use crate::seal::plaintext::TimeUnit;

/// The most leaves of a schema: scalars, at any depth.
pub const MAX_LEAVES: usize = 4_096;
/// Structs and lists may nest this deep.
pub const MAX_NESTING: usize = 12;
/// The longest name of a field, in bytes.
pub const MAX_NAME_BYTES: usize = 128;
/// The most digits of a decimal.
pub const MAX_PRECISION: u8 = 38;
/// What a path goes through between a list and its elements: as the Parquet specification names them.
pub(super) const ELEMENT: &str = "element";
/// Names of columns that are not the record's own, and what may become one.
const RESERVED: [&str; 6] = ["_partition", "_offset", "_timestamp", "_key", "_headers", "_extra"];
const RESERVED_PREFIX: &str = "_sealflow";

const MAX_DATASET_BYTES: usize = 128;
const MAX_VERSION: u64 = crate::policy::parse::MAX_VERSION;

/// One version of the columns of one dataset's table. Every field may be null.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSchema {
    dataset: String,
    version: u64,
    fields: Vec<SchemaField>,
}

/// One field: a member of the record's JSON object, or of an object in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaField {
    /// The member's name, decoded.
    pub name: String,
    /// What it holds.
    pub field_type: FieldType,
}

/// What a field holds, as JSON has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// `true` or `false`.
    Bool,
    /// A number spelled as an integer, of 64 bits.
    Int64,
    /// A number; see `docs/format.md` for those that a float64 does not hold.
    Float64,
    /// A string of Unicode text.
    String,
    /// A string of base64 (RFC 4648 section 4, padded).
    Binary,
    /// A string, RFC 3339 with an offset, no finer than the unit: millisecond, microsecond or nanosecond. Kept in UTC.
    Timestamp(TimeUnit),
    /// A string, `YYYY-MM-DD`.
    Date,
    /// A number that has at most so many digits, and behind the point no more than its scale.
    Decimal {
        /// Digits, 1 to [`MAX_PRECISION`].
        precision: u8,
        /// Digits behind the point, at most the precision.
        scale: u8,
    },
    /// Any value, kept as its JSON text.
    Json,
    /// An array of elements of one type.
    List(Box<FieldType>),
    /// An object.
    Struct(Vec<SchemaField>),
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timestamp(unit) => write!(f, "timestamp of unit {}", unit_name(*unit)),
            Self::Decimal { precision, scale } => write!(f, "decimal of precision {precision} and scale {scale}"),
            other => f.write_str(other.word()),
        }
    }
}

impl FieldType {
    fn word(&self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int64 => "int64",
            Self::Float64 => "float64",
            Self::String => "string",
            Self::Binary => "binary",
            Self::Timestamp(_) => "timestamp",
            Self::Date => "date",
            Self::Decimal { .. } => "decimal",
            Self::Json => "json",
            Self::List(_) => "list",
            Self::Struct(_) => "struct",
        }
    }
}

fn unit_name(unit: TimeUnit) -> &'static str {
    match unit {
        TimeUnit::Second => "second",
        TimeUnit::Millisecond => "millisecond",
        TimeUnit::Microsecond => "microsecond",
        TimeUnit::Nanosecond => "nanosecond",
    }
}

/// Why a schema cannot follow another, or be made of samples.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// Schemas of two datasets.
    #[error("the schema of dataset {newer} cannot follow one of {older}")]
    OtherDataset {
        /// Dataset of the older one.
        older: String,
        /// Dataset of the newer one.
        newer: String,
    },
    /// A version that does not grow.
    #[error("version {newer} of the schema does not follow version {older}")]
    VersionNotGrown {
        /// Version of the older one.
        older: u64,
        /// Version of the newer one.
        newer: u64,
    },
    /// A field that the newer schema lacks.
    #[error("{path} is in version {version} of the schema and not in the newer one")]
    Removed {
        /// Path of the field.
        path: String,
        /// Version of the older schema.
        version: u64,
    },
    /// A field whose type differs.
    #[error("{path} is a {older} in version {version} of the schema and a {newer} in the newer one")]
    Changed {
        /// Path of the field.
        path: String,
        /// Version of the older schema.
        version: u64,
        /// Its type there.
        older: Box<FieldType>,
        /// Its type in the newer one.
        newer: Box<FieldType>,
    },
    /// Not the name of a dataset.
    #[error(
        "dataset names are 1 to {MAX_DATASET_BYTES} characters of A-Z, a-z, 0-9, `.`, `_`, `-`, other than `.` and `..`"
    )]
    BadDataset,
    /// No sample has a member that can be a column.
    #[error("no field can be told: none of the samples is a JSON object with a member that can be a column")]
    NothingToInfer,
}

impl SchemaError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::OtherDataset { .. } => "give each dataset a schema of its own",
            Self::VersionNotGrown { .. } => "raise `version` with every change",
            Self::Removed { .. } => "leave the field in the schema: it is null where records lack it",
            Self::Changed { .. } => "leave its type as it was, and add a field of another name",
            Self::BadDataset => "choose a name of these characters",
            Self::NothingToInfer => "give samples of the records, one JSON object each, or declare the schema",
        }
    }
}

impl TableSchema {
    /// Parses and checks a schema document, YAML or JSON.
    ///
    /// # Errors
    /// The first problem, with its key path and what to do.
    pub fn parse(document: &[u8]) -> Result<Self, YamlError> {
        // JSON is YAML, but YAML readers do not know all escapes of JSON strings. What is not our JSON gets YAML's errors.
        let is_json = document.trim_ascii_start().starts_with(b"{") && document.len() <= MAX_YAML_BYTES;
        let raw = match is_json.then(|| serde_json::from_slice::<RawSchema>(document)) {
            Some(Ok(raw)) => raw,
            _ => from_yaml_bytes(document)?,
        };
        checked(raw).map_err(|Fault { path, message, help }| {
            let text = String::from_utf8_lossy(document);
            YamlError::at(&text, &path, message, help)
        })
    }

    /// The schema of these fields, checked as [`parse`](Self::parse) does.
    ///
    /// # Errors
    /// The first problem; it has a key path and no line.
    pub fn new(dataset: &str, version: u64, fields: &[SchemaField]) -> Result<Self, YamlError> {
        let raw = RawSchema {
            dataset: dataset.to_owned(),
            version,
            fields: fields.iter().map(RawField::named).collect(),
        };
        checked(raw).map_err(|Fault { path, message, help }| YamlError {
            path: path.to_string(),
            line: None,
            column: None,
            message,
            help,
        })
    }

    /// The dataset whose table it describes.
    #[must_use]
    pub fn dataset(&self) -> &str {
        &self.dataset
    }

    /// Version, from 1; only grows.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The fields in order.
    #[must_use]
    pub fn fields(&self) -> &[SchemaField] {
        &self.fields
    }

    /// Whether `path` is that of one field, through structs only.
    #[must_use]
    pub fn declares(&self, path: &ColumnPath) -> bool {
        let mut fields = self.fields.as_slice();
        let mut declared = false;
        for segment in path.segments() {
            let Segment::Name(name) = segment else { return false };
            let Some(field) = fields.iter().find(|field| field.name == *name) else {
                return false;
            };
            fields = match &field.field_type {
                FieldType::Struct(fields) => fields,
                _ => &[],
            };
            declared = !matches!(field.field_type, FieldType::Struct(_));
        }
        declared
    }

    /// The document as the catalogue keeps it: JSON without white space, members in the order of `docs/format.md`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let raw = RawSchema {
            dataset: self.dataset.clone(),
            version: self.version,
            fields: self.fields.iter().map(RawField::named).collect(),
        };
        // Maps with text keys always serialise.
        serde_json::to_string(&raw).unwrap_or_default()
    }

    /// Whether `newer` may follow this schema: its version is higher, and it has every field with the type that it
    /// has here. It may have more, in structs too.
    ///
    /// # Errors
    /// The first field that is missing or different.
    pub fn evolve(&self, newer: &Self) -> Result<(), SchemaError> {
        if self.dataset != newer.dataset {
            return Err(SchemaError::OtherDataset {
                older: self.dataset.clone(),
                newer: newer.dataset.clone(),
            });
        }
        if newer.version <= self.version {
            return Err(SchemaError::VersionNotGrown {
                older: self.version,
                newer: newer.version,
            });
        }
        self.check_fields(&self.fields, &newer.fields, &mut Vec::new())
    }

    fn check_fields(
        &self,
        older: &[SchemaField],
        newer: &[SchemaField],
        path: &mut Vec<Segment>,
    ) -> Result<(), SchemaError> {
        for field in older {
            path.push(Segment::Name(field.name.clone()));
            let Some(now) = newer.iter().find(|now| now.name == field.name) else {
                return Err(SchemaError::Removed {
                    path: spelled(path),
                    version: self.version,
                });
            };
            self.check_type(&field.field_type, &now.field_type, path)?;
            path.pop();
        }
        Ok(())
    }

    fn check_type(&self, older: &FieldType, newer: &FieldType, path: &mut Vec<Segment>) -> Result<(), SchemaError> {
        match (older, newer) {
            (FieldType::Struct(older), FieldType::Struct(newer)) => self.check_fields(older, newer, path),
            (FieldType::List(older), FieldType::List(newer)) => {
                path.push(Segment::Each);
                self.check_type(older, newer, path)?;
                path.pop();
                Ok(())
            }
            (older, newer) if older == newer => Ok(()),
            (older, newer) => Err(SchemaError::Changed {
                path: spelled(path),
                version: self.version,
                older: Box::new(older.clone()),
                newer: Box::new(newer.clone()),
            }),
        }
    }
}

fn spelled(path: &[Segment]) -> String {
    ColumnPath::into_value(path.to_vec()).to_string()
}

/// Whether a column of that name is, or may become, one of our own. Many readers do not tell cases apart.
pub(super) fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    RESERVED.contains(&name.as_str()) || name.starts_with(RESERVED_PREFIX)
}

/// Whether a member of that name can be a field at all.
pub(super) fn is_field_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control) && name != DUPLICATES
}

pub(super) fn is_dataset_name(name: &str) -> bool {
    let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    is_plain && (1..=MAX_DATASET_BYTES).contains(&name.len()) && name != "." && name != ".."
}

/// The document's shape, and the order of its members.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawSchema {
    dataset: String,
    version: u64,
    fields: Vec<RawField>,
}

/// A field, or without `name` the elements of a list.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawField {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    r#type: RawType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<TimeUnit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    precision: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scale: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    items: Option<Box<RawField>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fields: Option<Vec<RawField>>,
}

#[derive(Clone, Copy, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum RawType {
    Bool,
    Int64,
    Float64,
    String,
    Binary,
    Timestamp,
    Date,
    Decimal,
    Json,
    List,
    Struct,
}

impl RawField {
    fn named(field: &SchemaField) -> Self {
        Self {
            name: Some(field.name.clone()),
            ..Self::of(&field.field_type)
        }
    }

    fn of(field_type: &FieldType) -> Self {
        let mut raw = Self {
            name: None,
            r#type: match field_type {
                FieldType::Bool => RawType::Bool,
                FieldType::Int64 => RawType::Int64,
                FieldType::Float64 => RawType::Float64,
                FieldType::String => RawType::String,
                FieldType::Binary => RawType::Binary,
                FieldType::Timestamp(_) => RawType::Timestamp,
                FieldType::Date => RawType::Date,
                FieldType::Decimal { .. } => RawType::Decimal,
                FieldType::Json => RawType::Json,
                FieldType::List(_) => RawType::List,
                FieldType::Struct(_) => RawType::Struct,
            },
            unit: None,
            precision: None,
            scale: None,
            items: None,
            fields: None,
        };
        match field_type {
            FieldType::Timestamp(unit) => raw.unit = Some(*unit),
            FieldType::Decimal { precision, scale } => {
                (raw.precision, raw.scale) = (Some(*precision), Some(*scale));
            }
            FieldType::List(items) => raw.items = Some(Box::new(Self::of(items))),
            FieldType::Struct(fields) => raw.fields = Some(fields.iter().map(Self::named).collect()),
            _ => {}
        }
        raw
    }
}

/// What is wrong with a document that has the right shape.
struct Fault {
    path: KeyPath,
    message: String,
    help: String,
}

fn fault<T>(path: &KeyPath, message: impl Into<String>, help: impl Into<String>) -> Result<T, Fault> {
    Err(Fault {
        path: path.clone(),
        message: message.into(),
        help: help.into(),
    })
}

fn checked(raw: RawSchema) -> Result<TableSchema, Fault> {
    let root = KeyPath::root();
    if !is_dataset_name(&raw.dataset) {
        let error = SchemaError::BadDataset;
        return fault(&root.key("dataset"), error.to_string(), error.help());
    }
    if !(1..=MAX_VERSION).contains(&raw.version) {
        return fault(
            &root.key("version"),
            format!("versions are whole numbers from 1 to {MAX_VERSION}"),
            "write version: 1 for the first, and raise it with every change",
        );
    }
    let mut check = Check::default();
    let schema = TableSchema {
        dataset: raw.dataset,
        version: raw.version,
        fields: check.fields(raw.fields, &root.key("fields"), 0)?,
    };
    if schema.to_json().len() > MAX_YAML_BYTES {
        return fault(
            &root,
            format!("the schema takes more than {MAX_YAML_BYTES} bytes as JSON"),
            "give it fewer fields, or shorter names",
        );
    }
    Ok(schema)
}

/// What has been checked so far.
#[derive(Default)]
struct Check {
    /// Dotted paths of the leaves, by which Parquet's encryption names them.
    leaves: BTreeSet<String>,
    /// Names on the way to the current field.
    dotted: Vec<String>,
}

impl Check {
    fn fields(&mut self, raw: Vec<RawField>, at: &KeyPath, depth: usize) -> Result<Vec<SchemaField>, Fault> {
        if raw.is_empty() {
            return fault(
                at,
                "at least one field is needed",
                "add a field, or use type: json for any object",
            );
        }
        if raw.len() > MAX_LEAVES {
            return self.too_many(at);
        }
        let mut names = BTreeSet::new();
        let mut fields = Vec::with_capacity(raw.len());
        for (n, mut raw) in raw.into_iter().enumerate() {
            let at = at.index(n);
            let Some(name) = raw.name.take() else {
                return fault(&at, "missing key `name`", "add `name:` here");
            };
            check_name(&name, &at.key("name"), depth == 0)?;
            if !names.insert(name.clone()) {
                return fault(
                    &at.key("name"),
                    "an earlier field has this name",
                    "remove one of the two",
                );
            }
            self.dotted.push(name.clone());
            let field_type = self.field_type(raw, &at, depth)?;
            self.dotted.pop();
            fields.push(SchemaField { name, field_type });
        }
        Ok(fields)
    }

    fn field_type(&mut self, raw: RawField, at: &KeyPath, depth: usize) -> Result<FieldType, Fault> {
        check_keys(&raw, at)?;
        if matches!(raw.r#type, RawType::List | RawType::Struct) && depth >= MAX_NESTING {
            return fault(
                at,
                format!("structs and lists nest at most {MAX_NESTING} deep"),
                "use type: json for what lies deeper",
            );
        }
        let scalar = match raw.r#type {
            RawType::Bool => FieldType::Bool,
            RawType::Int64 => FieldType::Int64,
            RawType::Float64 => FieldType::Float64,
            RawType::String => FieldType::String,
            RawType::Binary => FieldType::Binary,
            RawType::Date => FieldType::Date,
            RawType::Json => FieldType::Json,
            RawType::Timestamp => timestamp(raw.unit, at)?,
            RawType::Decimal => decimal(raw.precision, raw.scale, at)?,
            RawType::List => {
                let Some(items) = raw.items else {
                    return fault(at, "a list needs `items`", "add for example `items: { type: string }`");
                };
                if items.name.is_some() {
                    return fault(&at.key("items").key("name"), "elements have no name", "remove `name`");
                }
                self.dotted.extend(["list".to_owned(), ELEMENT.to_owned()]);
                let items = self.field_type(*items, &at.key("items"), depth + 1)?;
                self.dotted.truncate(self.dotted.len() - 2);
                return Ok(FieldType::List(Box::new(items)));
            }
            RawType::Struct => {
                let Some(fields) = raw.fields else {
                    return fault(
                        at,
                        "a struct needs `fields`",
                        "add its members under `fields:`, or use type: json",
                    );
                };
                return Ok(FieldType::Struct(self.fields(fields, &at.key("fields"), depth + 1)?));
            }
        };
        if !self.leaves.insert(self.dotted.join(".")) {
            return fault(
                at,
                "another field has the same dotted path in Parquet, so that the two could not have keys of their own",
                "remove one of the two: its values then go to the column _extra",
            );
        }
        if self.leaves.len() > MAX_LEAVES {
            return self.too_many(at);
        }
        Ok(scalar)
    }

    fn too_many<T>(&self, at: &KeyPath) -> Result<T, Fault> {
        fault(
            at,
            format!("more than {MAX_LEAVES} scalars"),
            "use type: json for objects with many members",
        )
    }
}

fn check_name(name: &str, at: &KeyPath, is_top: bool) -> Result<(), Fault> {
    if !is_field_name(name) {
        return fault(
            at,
            format!("field names are 1 to {MAX_NAME_BYTES} bytes without control characters, other than {DUPLICATES}"),
            "leave the field out: its values then go to the column _extra",
        );
    }
    if is_top && is_reserved(name) {
        return fault(
            at,
            format!("the name {name} is reserved for a column that Sealflow adds"),
            "leave the field out: its values then go to the column _extra",
        );
    }
    Ok(())
}

/// That a field has no keys of other types.
fn check_keys(raw: &RawField, at: &KeyPath) -> Result<(), Fault> {
    let keys = [
        ("unit", raw.unit.is_some(), RawType::Timestamp),
        ("precision", raw.precision.is_some(), RawType::Decimal),
        ("scale", raw.scale.is_some(), RawType::Decimal),
        ("items", raw.items.is_some(), RawType::List),
        ("fields", raw.fields.is_some(), RawType::Struct),
    ];
    match keys
        .into_iter()
        .find(|(_, is_there, of)| *is_there && *of != raw.r#type)
    {
        Some((key, ..)) => fault(
            &at.key(key),
            format!("this type has no `{key}`"),
            "remove it, or correct `type`",
        ),
        None => Ok(()),
    }
}

fn timestamp(unit: Option<TimeUnit>, at: &KeyPath) -> Result<FieldType, Fault> {
    match unit.unwrap_or(TimeUnit::Microsecond) {
        TimeUnit::Second => fault(
            &at.key("unit"),
            "Parquet has no timestamps in seconds",
            "write unit: millisecond, microsecond or nanosecond",
        ),
        unit => Ok(FieldType::Timestamp(unit)),
    }
}

fn decimal(precision: Option<u8>, scale: Option<u8>, at: &KeyPath) -> Result<FieldType, Fault> {
    let (Some(precision), Some(scale)) = (precision, scale) else {
        return fault(
            at,
            "a decimal needs `precision` and `scale`",
            "add for example `precision: 18, scale: 2`",
        );
    };
    if !(1..=MAX_PRECISION).contains(&precision) || scale > precision {
        return fault(
            at,
            format!("precision is 1 to {MAX_PRECISION} digits, and scale at most precision"),
            "write for example `precision: 18, scale: 2`",
        );
    }
    Ok(FieldType::Decimal { precision, scale })
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
