//! Placeholder until the layout is merged.
use arrow::datatypes::SchemaRef;

/// The columns of a table.
#[derive(Clone, Debug)]
pub struct TableLayout {
    pub(super) arrow: SchemaRef,
    pub(super) leaves: Vec<Leaf>,
}

impl TableLayout {
    /// The Arrow schema.
    #[must_use]
    pub fn arrow(&self) -> &SchemaRef {
        &self.arrow
    }

    /// Its leaves in order.
    #[must_use]
    pub fn leaves(&self) -> &[Leaf] {
        &self.leaves
    }
}

/// A leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Dotted path of the Parquet leaf.
    pub path: String,
    /// What is there.
    pub place: LeafPlace,
}

/// What is at a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafPlace {
    /// Clear in the record.
    Clear,
    /// Sealed values of a rule.
    Value {
        /// Index of the rule.
        rule: usize,
    },
    /// The column of a rule.
    Column {
        /// Index of the rule.
        rule: usize,
    },
    /// Ours.
    Record,
    /// Sealed: what the schema does not have.
    Extra,
}
