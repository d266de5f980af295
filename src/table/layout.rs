//! Where in a table each field of a record goes, by a schema and a policy: the Arrow schema, and for each leaf who may
//! see it (`docs/format.md`, "Columns of a table").

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

use super::guard::{Guard, Place};
use super::schema::{ELEMENT, FieldType, SchemaField, TableSchema};
use crate::columns::LocatorError;
use crate::columns::arrow::{ArrowColumnError, SealedMetadata, SealedType, sealed_field};
use crate::policy::{ColumnRule, Placement, Policy, Root, Segment};
use crate::seal::plaintext;

/// Column with the Kafka partition, or 0: int32.
pub const PARTITION_COLUMN: &str = "_partition";
/// Column with the offset: int64.
pub const OFFSET_COLUMN: &str = "_offset";
/// Column with the record's time stamp: milliseconds, UTC.
pub const TIMESTAMP_COLUMN: &str = "_timestamp";
/// Column with the record's key, if the policy names `$key`.
pub const KEY_COLUMN: &str = "_key";
/// Column with what has no column of its own, sealed.
pub const EXTRA_COLUMN: &str = "_extra";
/// The label of [`EXTRA_COLUMN`].
pub const EXTRA_LABEL: &str = "$extra";
/// Zone of all timestamps.
pub(super) const UTC: &str = "UTC";

/// The columns of a table.
pub struct TableLayout {
    schema: SchemaRef,
    leaves: Vec<Leaf>,
    pub(super) root: StructNode,
    pub(super) key: Option<KeyPlace>,
}

/// A leaf column of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its dotted path in Parquet (`cards.list.element.number`), which no other leaf has.
    pub path: String,
    /// What it holds.
    pub place: LeafPlace,
}

/// What a leaf holds, and so who may see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafPlace {
    /// A field that no rule names.
    Clear,
    /// Values sealed one by one under the rule of that index in [`Policy::columns`].
    Value {
        /// Index in [`Policy::columns`].
        rule: usize,
    },
    /// A field that stands as it is, in a column under the key of that rule.
    Column {
        /// Index in [`Policy::columns`].
        rule: usize,
    },
    /// Where the record was read: partition, offset, time stamp.
    Record,
    /// What has no column of its own, sealed under the label [`EXTRA_LABEL`].
    Extra,
}

/// Why a schema and a policy do not make a table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// Schema and policy of two datasets.
    #[error("the schema is of dataset {schema}, the policy of {policy}")]
    OtherDataset {
        /// The schema's.
        schema: String,
        /// The policy's.
        policy: String,
    },
    /// A column `at: column` that the schema does not have.
    #[error("{path} is at: column, and the schema of the table has no such field")]
    NotDeclared {
        /// Path of the column.
        path: String,
    },
    /// A column `at: column` that is an object or an array.
    #[error("{path} is at: column, and a {found} in the schema of the table: only scalars have a column")]
    NotScalar {
        /// Path of the column.
        path: String,
        /// What the schema says.
        found: &'static str,
    },
    /// A deterministic column `at: column`.
    #[error("{path} is at: column and of a domain: in a column of its own equal values would not be equal bytes")]
    InDomain {
        /// Path of the column.
        path: String,
    },
    /// A key template `at: column`.
    #[error("{path} is at: column under the template {key}: a column of a file has one key, whatever its rows are")]
    UnderTemplate {
        /// Path of the column.
        path: String,
        /// The template.
        key: String,
    },
    /// A header `at: column`.
    #[error("{path} is at: column: headers are not in tables")]
    Header {
        /// Path of the column.
        path: String,
    },
    /// Two leaves that could not have keys of their own.
    #[error("two columns have the path {path} in Parquet, so that they could not have keys of their own")]
    SamePath {
        /// Dotted path.
        path: String,
    },
    /// A sealed column without Arrow type.
    #[error(transparent)]
    Column(#[from] ArrowColumnError),
    /// Paths that cannot be located.
    #[error(transparent)]
    Paths(#[from] LocatorError),
}

impl LayoutError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::OtherDataset { .. } => "take the schema of the policy's dataset",
            Self::NotDeclared { .. } => "add the field to the schema, or remove `at` from the column",
            Self::NotScalar { .. } => {
                "name a scalar in it (a list's elements are tags[*]), declare it as type: json, or remove `at`"
            }
            Self::InDomain { .. } => "remove `at`, or seal the column under a key and an ACL instead of a domain",
            Self::UnderTemplate { .. } => "give the column a plain key, or remove `at`",
            Self::Header { .. } => "remove `at` from the column",
            Self::SamePath { .. } => "remove one of the two from the schema, or the hint from the policy",
            Self::Column(_) | Self::Paths(_) => "correct the columns of the policy",
        }
    }
}

/// Where a record's key goes.
pub(super) enum KeyPlace {
    /// Sealed by value.
    Sealed,
    /// As it is, in a column under a key.
    Plain,
}

/// One place of the record's JSON.
pub(super) struct Node {
    pub(super) kind: NodeKind,
    /// Checks texts of this place that do not go into columns of their own.
    pub(super) guard: Option<Guard>,
    /// A column `at: column` here or below: nothing of this place may go to `_extra`.
    pub(super) column: Option<Arc<str>>,
}

pub(super) enum NodeKind {
    Scalar(FieldType),
    Sealed(Place),
    List(Box<Node>),
    Struct(StructNode),
}

/// Members of an object.
#[derive(Default)]
pub(super) struct StructNode {
    pub(super) children: Vec<Node>,
    names: Vec<Box<[u8]>>,
    positions: HashMap<Box<[u8]>, usize>,
    /// Members that are not in the schema, and hold something sealed.
    pub(super) undeclared: HashMap<Box<[u8]>, Guard>,
}

impl StructNode {
    /// The position of the member of that decoded name. `next` is where it is looked for first, and set behind it:
    /// most records have their members in the order of the schema.
    #[inline]
    pub(super) fn position(&self, name: &[u8], next: &mut usize) -> Option<usize> {
        let position = match self.names.get(*next) {
            Some(expected) if **expected == *name => *next,
            _ => *self.positions.get(name)?,
        };
        *next = position + 1;
        Some(position)
    }

    fn add(&mut self, name: &str, node: Node) {
        let name: Box<[u8]> = name.as_bytes().into();
        self.names.push(name.clone());
        self.positions.insert(name, self.children.len());
        self.children.push(node);
    }
}

impl TableLayout {
    /// The table of `schema`, with the columns of `policy` sealed.
    ///
    /// Columns whose values are sealed one by one need not be in the schema: they go to `_extra` then, sealed as they are.
    /// Hints stand behind their column. Headers are not in tables.
    ///
    /// # Errors
    /// [`LayoutError`], the first problem found.
    pub fn new(schema: &TableSchema, policy: &Policy) -> Result<Self, LayoutError> {
        if schema.dataset() != policy.dataset {
            return Err(LayoutError::OtherDataset {
                schema: schema.dataset().to_owned(),
                policy: policy.dataset.clone(),
            });
        }
        let mut build = Build {
            policy,
            leaves: Vec::new(),
            dotted: Vec::new(),
        };
        let mut fields = build.record_fields();
        let key = build.key()?;
        if let Some((_, field)) = &key {
            fields.push(field.clone());
        }
        let mut rules = Vec::new();
        for (rule, model) in policy.columns.iter().enumerate() {
            check_rule(policy, model)?;
            if *model.path.root() == Root::Value {
                let rest = model.path.segments();
                rules.push(Below { rule, rest });
            }
        }
        let (root, members) = build.members(schema.fields(), &rules)?;
        fields.extend(members);
        fields.push(build.extra()?);
        check_paths(&build.leaves)?;
        Ok(Self {
            schema: Arc::new(Schema::new(fields)),
            leaves: build.leaves,
            root,
            key: key.map(|(place, _)| place),
        })
    }

    /// A layout of columns that no schema has made, for tests of files.
    #[cfg(test)]
    pub(super) fn of(schema: Schema, leaves: Vec<Leaf>) -> Self {
        Self {
            schema: Arc::new(schema),
            leaves,
            root: StructNode::default(),
            key: None,
        }
    }

    /// The Arrow schema: partition, offset, time stamp, the key if the policy names it, the fields of the schema with
    /// their hints, and last `_extra`.
    #[must_use]
    pub fn arrow_schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// All leaves, in the order of a file's columns.
    #[must_use]
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }
}

/// What a column `at: column` cannot be, wherever it is.
fn check_rule(policy: &Policy, rule: &ColumnRule) -> Result<(), LayoutError> {
    if rule.at != Placement::Column {
        return Ok(());
    }
    let path = rule.path.to_string();
    if rule.domain().is_some() {
        return Err(LayoutError::InDomain { path });
    }
    if matches!(rule.path.root(), Root::Header(_)) {
        return Err(LayoutError::Header { path });
    }
    if policy.keys.get(&rule.key).is_some_and(|key| key.name.is_template()) {
        let key = rule.key.clone();
        return Err(LayoutError::UnderTemplate { path, key });
    }
    Ok(())
}

fn check_paths(leaves: &[Leaf]) -> Result<(), LayoutError> {
    let mut paths = BTreeSet::new();
    match leaves.iter().find(|leaf| !paths.insert(leaf.path.as_str())) {
        Some(leaf) => Err(LayoutError::SamePath {
            path: leaf.path.clone(),
        }),
        None => Ok(()),
    }
}

/// A rule at or below a place, with the rest of its path from there.
#[derive(Clone, Copy)]
struct Below<'p> {
    rule: usize,
    rest: &'p [Segment],
}

struct Build<'p> {
    policy: &'p Policy,
    leaves: Vec<Leaf>,
    /// Names on the way to the current place, as Parquet has them.
    dotted: Vec<String>,
}

impl<'p> Build<'p> {
    fn leaf(&mut self, place: LeafPlace) {
        let path = self.dotted.join(".");
        self.leaves.push(Leaf { path, place });
    }

    fn own_leaf(&mut self, name: &str, place: LeafPlace) {
        self.leaves.push(Leaf {
            path: name.to_owned(),
            place,
        });
    }

    fn record_fields(&mut self) -> Vec<Field> {
        let stamp = DataType::Timestamp(TimeUnit::Millisecond, Some(UTC.into()));
        for name in [PARTITION_COLUMN, OFFSET_COLUMN, TIMESTAMP_COLUMN] {
            self.own_leaf(name, LeafPlace::Record);
        }
        vec![
            Field::new(PARTITION_COLUMN, DataType::Int32, false),
            Field::new(OFFSET_COLUMN, DataType::Int64, false),
            Field::new(TIMESTAMP_COLUMN, stamp, true),
        ]
    }

    fn key(&mut self) -> Result<Option<(KeyPlace, Field)>, LayoutError> {
        let mut rules = self.policy.columns.iter().enumerate();
        let Some((rule, model)) = rules.find(|(_, rule)| *rule.path.root() == Root::Key) else {
            return Ok(None);
        };
        if model.at == Placement::Column {
            self.own_leaf(KEY_COLUMN, LeafPlace::Column { rule });
            let field = Field::new(KEY_COLUMN, DataType::Binary, true);
            return Ok(Some((KeyPlace::Plain, field)));
        }
        self.own_leaf(KEY_COLUMN, LeafPlace::Value { rule });
        let field = sealed(KEY_COLUMN, &model.label, SealedType::Arrow(DataType::Binary))?;
        Ok(Some((KeyPlace::Sealed, field)))
    }

    fn extra(&mut self) -> Result<Field, LayoutError> {
        self.own_leaf(EXTRA_COLUMN, LeafPlace::Extra);
        sealed(EXTRA_COLUMN, EXTRA_LABEL, SealedType::Json)
    }

    /// The members of an object: those of the schema, and behind each the hints of it that the schema does not list.
    fn members(
        &mut self,
        fields: &[SchemaField],
        rules: &[Below<'p>],
    ) -> Result<(StructNode, Vec<Field>), LayoutError> {
        let mut by_name: HashMap<&str, Vec<Below<'p>>> = HashMap::new();
        for Below { rule, rest } in rules {
            match rest.split_first() {
                Some((Segment::Name(name), rest)) => by_name.entry(name).or_default().push(Below { rule: *rule, rest }),
                // Records that have an array here do not fit, and are checked by the guard of this object.
                _ => self.refuse_column(*rule)?,
            }
        }
        let listed: BTreeSet<&str> = fields.iter().map(|field| field.name.as_str()).collect();
        let (mut node, mut arrow) = (StructNode::default(), Vec::with_capacity(fields.len()));
        for field in fields {
            let rules = by_name.remove(field.name.as_str()).unwrap_or_default();
            let (child, child_field) = self.node(&field.name, &field.field_type, &rules)?;
            node.add(&field.name, child);
            arrow.push(child_field);
            let [Below { rule, rest: [] }] = rules[..] else {
                continue;
            };
            for (name, hint) in self.hints(rule) {
                if listed.contains(name) {
                    continue;
                }
                by_name.remove(name);
                let (child, child_field) = self.hint(name, hint)?;
                node.add(name, child);
                arrow.push(child_field);
            }
        }
        for (name, rules) in by_name {
            for below in &rules {
                self.refuse_column(below.rule)?;
            }
            if let Some(guard) = self.guard(&rules)? {
                node.undeclared.insert(name.as_bytes().into(), guard);
            }
        }
        Ok((node, arrow))
    }

    /// The rules of a rule's hints, each with the name of its member.
    fn hints(&self, column: usize) -> impl Iterator<Item = (&'p str, usize)> + use<'p> {
        let rules = self.policy.columns.iter().enumerate();
        rules.filter_map(move |(n, rule)| match rule.path.segments().last() {
            Some(Segment::Name(name)) if rule.hint.as_ref().is_some_and(|hint| hint.column == column) => {
                Some((name.as_str(), n))
            }
            _ => None,
        })
    }

    /// Hints are strings.
    fn hint(&mut self, name: &str, rule: usize) -> Result<(Node, Field), LayoutError> {
        self.node(name, &FieldType::String, &[Below { rule, rest: &[] }])
    }

    /// The place of that name, whose rules are `rules`.
    fn node(&mut self, name: &str, field_type: &FieldType, rules: &[Below<'p>]) -> Result<(Node, Field), LayoutError> {
        self.dotted.push(name.to_owned());
        let made = self.node_here(name, field_type, rules);
        self.dotted.pop();
        made
    }

    fn node_here(
        &mut self,
        name: &str,
        field_type: &FieldType,
        rules: &[Below<'p>],
    ) -> Result<(Node, Field), LayoutError> {
        let policy = self.policy;
        let guard = self.guard(rules)?;
        if let Some(Below { rule, .. }) = rules.iter().find(|below| below.rest.is_empty()) {
            let model = &policy.columns[*rule];
            if model.at == Placement::Value {
                self.leaf(LeafPlace::Value { rule: *rule });
                let sealed_type = scalar_type(field_type).map_or(SealedType::Json, SealedType::Arrow);
                let node = Node {
                    kind: NodeKind::Sealed(Place::of(model)),
                    guard,
                    column: None,
                };
                return Ok((node, sealed(name, &model.label, sealed_type)?));
            }
            self.leaf(LeafPlace::Column { rule: *rule });
            let path = model.path.to_string();
            let field = scalar_field(name, field_type).ok_or_else(|| LayoutError::NotScalar {
                path: path.clone(),
                found: match field_type {
                    FieldType::List(_) => "list",
                    _ => "struct",
                },
            })?;
            let node = Node {
                kind: NodeKind::Scalar(field_type.clone()),
                guard,
                column: Some(path.into()),
            };
            return Ok((node, field));
        }
        match field_type {
            FieldType::List(items) => self.list(name, items, rules, guard),
            FieldType::Struct(fields) => {
                let (members, arrow) = self.members(fields, rules)?;
                let column = members.children.iter().find_map(|child| child.column.clone());
                let node = Node {
                    kind: NodeKind::Struct(members),
                    guard,
                    column,
                };
                Ok((node, Field::new(name, DataType::Struct(Fields::from(arrow)), true)))
            }
            scalar => {
                for below in rules {
                    self.refuse_column(below.rule)?;
                }
                self.leaf(LeafPlace::Clear);
                let node = Node {
                    kind: NodeKind::Scalar(scalar.clone()),
                    guard,
                    column: None,
                };
                // `list` and `struct` are taken above.
                let field = scalar_field(name, scalar).unwrap_or_else(|| Field::new(name, DataType::Utf8, true));
                Ok((node, field))
            }
        }
    }

    fn list(
        &mut self,
        name: &str,
        items: &FieldType,
        rules: &[Below<'p>],
        guard: Option<Guard>,
    ) -> Result<(Node, Field), LayoutError> {
        let mut below = Vec::new();
        for Below { rule, rest } in rules {
            match rest.split_first() {
                Some((Segment::Each, rest)) => below.push(Below { rule: *rule, rest }),
                _ => self.refuse_column(*rule)?,
            }
        }
        self.dotted.push("list".to_owned());
        let made = self.node(ELEMENT, items, &below);
        self.dotted.pop();
        let (element, field) = made?;
        let node = Node {
            column: element.column.clone(),
            kind: NodeKind::List(Box::new(element)),
            guard,
        };
        Ok((node, Field::new(name, DataType::List(Arc::new(field)), true)))
    }

    /// Refuses a rule that the schema has no field for, if it is `at: column`.
    fn refuse_column(&self, rule: usize) -> Result<(), LayoutError> {
        let model = &self.policy.columns[rule];
        match model.at {
            Placement::Value => Ok(()),
            Placement::Column => Err(LayoutError::NotDeclared {
                path: model.path.to_string(),
            }),
        }
    }

    fn guard(&self, rules: &[Below<'p>]) -> Result<Option<Guard>, LayoutError> {
        let policy = self.policy;
        let by_value = rules
            .iter()
            .map(|below| (&policy.columns[below.rule], below.rest))
            .filter(|(rule, _)| rule.at == Placement::Value);
        Ok(Guard::new(by_value)?)
    }
}

fn sealed(name: &str, label: &str, sealed_type: SealedType) -> Result<Field, LayoutError> {
    let metadata = SealedMetadata {
        label: label.to_owned(),
        sealed_type,
    };
    Ok(sealed_field(name, metadata)?)
}

/// The Arrow type of a scalar.
fn scalar_type(field_type: &FieldType) -> Option<DataType> {
    Some(match field_type {
        FieldType::Bool => DataType::Boolean,
        FieldType::Int64 => DataType::Int64,
        FieldType::Float64 => DataType::Float64,
        FieldType::String => DataType::Utf8,
        FieldType::Binary => DataType::Binary,
        FieldType::Date => DataType::Date32,
        FieldType::Timestamp(unit) => DataType::Timestamp(arrow_unit(*unit), Some(UTC.into())),
        // A schema's scale is at most 38.
        FieldType::Decimal { precision, scale } => DataType::Decimal128(*precision, i8::try_from(*scale).ok()?),
        FieldType::Json | FieldType::List(_) | FieldType::Struct(_) => return None,
    })
}

/// The Arrow field of a scalar. JSON text says so by the canonical extension type `arrow.json`.
fn scalar_field(name: &str, field_type: &FieldType) -> Option<Field> {
    if *field_type == FieldType::Json {
        let extension = [("ARROW:extension:name", "arrow.json"), ("ARROW:extension:metadata", "")];
        let metadata = extension.map(|(key, value)| (key.to_owned(), value.to_owned()));
        return Some(Field::new(name, DataType::Utf8, true).with_metadata(metadata.into()));
    }
    Some(Field::new(name, scalar_type(field_type)?, true))
}

pub(super) fn arrow_unit(unit: plaintext::TimeUnit) -> TimeUnit {
    match unit {
        plaintext::TimeUnit::Second => TimeUnit::Second,
        plaintext::TimeUnit::Millisecond => TimeUnit::Millisecond,
        plaintext::TimeUnit::Microsecond => TimeUnit::Microsecond,
        plaintext::TimeUnit::Nanosecond => TimeUnit::Nanosecond,
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
