//! Filters of rows: `amount >= 100 and country = "DE"`. Comparisons with constants, joined by `and`; what is null is
//! not kept, except by `is null`.
//!
//! Row groups whose statistics rule them out are not read, nor pages that the page index rules out. Comparisons of columns that are stored in the open of the
//! reader are made while pages are decoded, those of sealed values after they are opened.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Datum, RecordBatch, Scalar, StringArray};
use arrow::compute::kernels::cmp;
use arrow::compute::{CastOptions, and, cast_with_options, is_not_null, is_null};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{ArrowPredicate, ArrowPredicateFn, RowSelection, RowSelector};
use parquet::basic::Type as PhysicalType;
use parquet::file::metadata::ParquetMetaData;

use super::contained::{called_back, contained};
use super::elements::find;
use super::error::TableError;
use super::read::{LeafState, OpenTable};
use crate::policy::{ColumnPath, Segment};

/// The most comparisons of one filter.
const MAX_TERMS: usize = 64;

/// Which rows are wanted. The default wants all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    terms: Vec<Term>,
}

#[derive(Clone)]
struct Term {
    column: ColumnPath,
    /// Where it is in the file; set by [`Filter::bind`].
    segments: Vec<Segment>,
    test: Test,
    /// Number of the leaf in the file; set by [`Filter::bind`].
    leaf: usize,
    /// The constant as the leaf's type.
    constant: Option<ArrayRef>,
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the constant: somebody looks for it, so it may be a value.
        f.debug_struct("Term")
            .field("column", &self.column)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Compare(Compare, String),
    IsNull,
    IsNotNull,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// The longest spellings first.
const COMPARISONS: [(&str, Compare); 7] = [
    ("!=", Compare::NotEqual),
    ("<>", Compare::NotEqual),
    ("<=", Compare::LessOrEqual),
    (">=", Compare::GreaterOrEqual),
    ("=", Compare::Equal),
    ("<", Compare::Less),
    (">", Compare::Greater),
];

impl Filter {
    /// Parses a filter: `PATH OP CONSTANT`, `PATH is null`, `PATH is not null`, joined by `and`. Constants are JSON
    /// strings, `'texts'`, numbers, `true`, `false`; times are texts.
    ///
    /// # Errors
    /// [`TableError::Filter`]
    pub fn parse(text: &str) -> Result<Self, TableError> {
        let wrong = |what: &str| TableError::Filter { what: what.to_owned() };
        let mut words = Words(text);
        let mut terms = Vec::new();
        loop {
            let path = words.next().ok_or_else(|| wrong("a column is missing"))?;
            let column = path
                .parse()
                .map_err(|_| wrong(&format!("`{path}` is no path of a column")))?;
            let operator = words.next().ok_or_else(|| wrong("a comparison is missing"))?;
            let test = if operator.eq_ignore_ascii_case("is") {
                let mut next = || words.next().map(str::to_ascii_lowercase).unwrap_or_default();
                match (next().as_str(), ()) {
                    ("null", ()) => Test::IsNull,
                    ("not", ()) if next() == "null" => Test::IsNotNull,
                    _ => return Err(wrong("after `is` comes `null` or `not null`")),
                }
            } else {
                let known = COMPARISONS.iter().find(|(spelling, _)| *spelling == operator);
                let (_, compare) = known.ok_or_else(|| wrong("a comparison is one of = != < <= > >= is"))?;
                let constant = words.next().ok_or_else(|| wrong("a constant is missing"))?;
                Test::Compare(
                    *compare,
                    constant_text(constant).ok_or_else(|| wrong("a constant is not closed"))?,
                )
            };
            terms.push(Term {
                column,
                segments: Vec::new(),
                test,
                leaf: 0,
                constant: None,
            });
            if terms.len() > MAX_TERMS {
                return Err(wrong("more than 64 comparisons"));
            }
            match words.next() {
                None => return Ok(Self { terms }),
                Some(word) if word.eq_ignore_ascii_case("and") => {}
                Some(_) => return Err(wrong("comparisons are joined by `and`")),
            }
        }
    }

    /// The same filter for the leaves of a file.
    pub(super) fn bind(&self, table: &OpenTable) -> Result<Self, TableError> {
        let mut terms = self.terms.clone();
        for term in &mut terms {
            let found = table.leaves().iter().position(|leaf| leaf.leaf.column == term.column);
            let name = term.column.to_string();
            term.leaf = found.ok_or_else(|| TableError::NoColumn { name: name.clone() })?;
            if term.column.segments().contains(&Segment::Each) {
                return Err(TableError::Filter {
                    what: format!("{name} is within a list"),
                });
            }
            let leaf = &table.leaves()[term.leaf];
            if table.is_of_enclave(leaf) {
                return Err(TableError::FilterInEnclave { name });
            }
            term.segments.clone_from(&leaf.leaf.segments);
            match &leaf.state {
                LeafState::Shown { .. } => {}
                LeafState::Refused { because, .. } | LeafState::Failed { because, .. } => {
                    return Err(TableError::Refused {
                        because: format!("the filter asks for {name}: {because}"),
                    });
                }
            }
            if let Test::Compare(_, text) = &term.test {
                let data_type = table.shown_type(term.leaf);
                let constant = constant_of(text, &data_type).ok_or_else(|| TableError::Filter {
                    what: format!("{name} is {data_type}, and is compared with something else"),
                })?;
                term.constant = Some(constant);
            }
        }
        Ok(Self { terms })
    }

    /// Whether it looks at that leaf.
    pub(super) fn reads(&self, leaf: usize) -> bool {
        self.terms.iter().any(|term| term.leaf == leaf)
    }

    /// The comparisons that can be made while pages are decoded.
    pub(super) fn pushed(&self, table: &OpenTable) -> Vec<Box<dyn ArrowPredicate>> {
        let schema = table.metadata.parquet_schema();
        let mut pushed: Vec<Box<dyn ArrowPredicate>> = Vec::new();
        for term in self.terms.iter().filter(|term| !term.is_sealed(table)) {
            let (own, mask) = (term.clone(), ProjectionMask::leaves(schema, [term.leaf]));
            pushed.push(Box::new(ArrowPredicateFn::new(mask, move |batch: RecordBatch| {
                called_back(|| {
                    let found = find(&batch, &own.segments);
                    let array = found.ok_or_else(|| ArrowError::ComputeError("no such column".to_owned()))?;
                    own.test(&array.array)
                })
            })));
        }
        pushed
    }

    /// Whether every comparison is made while pages are decoded.
    pub(super) fn is_all_pushed(&self, table: &OpenTable) -> bool {
        !self.terms.iter().any(|term| term.is_sealed(table))
    }

    /// The leaves whose bounds can rule something out.
    pub(super) fn compared(&self, table: &OpenTable) -> Vec<usize> {
        let terms = self.terms.iter().filter(|term| term.bounded(table).is_some());
        terms.map(|term| term.leaf).collect()
    }

    /// The row groups that the statistics do not rule out.
    pub(super) fn row_groups(&self, table: &OpenTable) -> Result<Vec<usize>, TableError> {
        let groups = table.metadata.metadata().row_groups();
        let mut keep = vec![true; groups.len()];
        for term in &self.terms {
            let Some(bounds) = term.bounded(table) else { continue };
            let (least, most) = contained(|| (bounds.row_group_mins(groups), bounds.row_group_maxes(groups)))?;
            let (Ok(least), Ok(most)) = (least, most) else { continue };
            term.rule_out(&least, &most, &mut keep);
        }
        let kept = keep.iter().enumerate().filter(|(_, keep)| **keep);
        Ok(kept.map(|(n, _)| n).collect())
    }

    /// The rows of these row groups that the page indexes in `metadata` do not rule out; `None` for all.
    pub(super) fn pages(
        &self,
        table: &OpenTable,
        metadata: &ParquetMetaData,
        groups: &[usize],
    ) -> Result<Option<RowSelection>, TableError> {
        let (Some(values), Some(offsets)) = (metadata.column_index(), metadata.offset_index()) else {
            return Ok(None);
        };
        let mut selection: Option<RowSelection> = None;
        for term in &self.terms {
            let Some(bounds) = term.bounded(table) else { continue };
            let mut selectors = Vec::new();
            for group in groups {
                let rows = usize::try_from(metadata.row_group(*group).num_rows()).unwrap_or(0);
                let starts = offsets[*group][term.leaf].page_locations().iter();
                let starts: Vec<usize> = starts
                    .map(|page| usize::try_from(page.first_row_index).unwrap_or(0))
                    .collect();
                let mut keep = vec![true; starts.len()];
                let (least, most) = contained(|| {
                    let least = bounds.data_page_mins(values, offsets, [group]);
                    (least, bounds.data_page_maxes(values, offsets, [group]))
                })?;
                if let (Ok(least), Ok(most)) = (least, most) {
                    term.rule_out(&least, &most, &mut keep);
                }
                let ends = starts.iter().skip(1).copied().chain([rows]);
                for ((start, end), keep) in starts.iter().zip(ends).zip(keep) {
                    let rows = end.saturating_sub(*start);
                    selectors.push(if keep {
                        RowSelector::select(rows)
                    } else {
                        RowSelector::skip(rows)
                    });
                }
            }
            if selectors.iter().any(|selector| selector.skip) {
                // It adds rows up, and a footer may say any number of them.
                selection = Some(contained(|| {
                    let own = RowSelection::from(selectors);
                    match &selection {
                        Some(other) => other.intersection(&own),
                        None => own,
                    }
                })?);
            }
        }
        Ok(selection)
    }

    /// Which rows of a batch are kept; `None` for all.
    pub(super) fn keep(
        &self,
        stored: &RecordBatch,
        opened: &HashMap<usize, ArrayRef>,
        table: &OpenTable,
    ) -> Result<Option<BooleanArray>, TableError> {
        let mut keep: Option<BooleanArray> = None;
        for term in self.terms.iter().filter(|term| term.is_sealed(table)) {
            let array = opened.get(&term.leaf).ok_or(TableError::Damaged)?;
            // A struct that is null makes its members null.
            let array = if array.len() == stored.num_rows() {
                array
            } else {
                return Err(TableError::Damaged);
            };
            let own = term.test(array).map_err(|_| TableError::Damaged)?;
            // What is null is not kept.
            let own = match own.null_count() {
                0 => own,
                _ => arrow::compute::prep_null_mask_filter(&own),
            };
            keep = Some(match keep {
                None => own,
                Some(other) => and(&other, &own).map_err(|_| TableError::Damaged)?,
            });
        }
        Ok(keep)
    }
}

impl Term {
    fn is_sealed(&self, table: &OpenTable) -> bool {
        table.leaves()[self.leaf].leaf.sealed.is_some()
    }

    fn test(&self, array: &ArrayRef) -> Result<BooleanArray, ArrowError> {
        let compare = match &self.test {
            Test::IsNull => return is_null(array),
            Test::IsNotNull => return is_not_null(array),
            Test::Compare(compare, _) => compare,
        };
        let constant = self
            .constant
            .clone()
            .ok_or_else(|| ArrowError::ComputeError("no constant".to_owned()))?;
        let constant = Scalar::new(constant);
        let constant: &dyn Datum = &constant;
        match compare {
            Compare::Equal => cmp::eq(array, constant),
            Compare::NotEqual => cmp::neq(array, constant),
            Compare::Less => cmp::lt(array, constant),
            Compare::LessOrEqual => cmp::lt_eq(array, constant),
            Compare::Greater => cmp::gt(array, constant),
            Compare::GreaterOrEqual => cmp::gt_eq(array, constant),
        }
    }

    /// What finds the bounds of the leaf, if they can rule anything out.
    fn bounded<'a>(&self, table: &'a OpenTable) -> Option<StatisticsConverter<'a>> {
        let (Test::Compare(compare, _), [Segment::Name(name)]) = (&self.test, self.segments.as_slice()) else {
            return None;
        };
        if *compare == Compare::NotEqual || self.is_sealed(table) {
            return None;
        }
        let schema = table.metadata.parquet_schema();
        // Bounds leave NaN out, which is more than all numbers here. In records, and so in our files, there is none.
        let is_float = matches!(
            table.shown_type(self.leaf),
            DataType::Float16 | DataType::Float32 | DataType::Float64
        );
        let has_no_order = schema.column(self.leaf).physical_type() == PhysicalType::INT96;
        if has_no_order || (is_float && table.is_foreign()) {
            return None;
        }
        StatisticsConverter::try_new(name, table.schema(), schema).ok()
    }

    /// Unmarks the pieces of a file whose smallest and largest value say that no row can pass. Bounds may be cut short,
    /// which makes them wider; missing ones say nothing.
    fn rule_out(&self, least: &ArrayRef, most: &ArrayRef, keep: &mut [bool]) {
        let (Test::Compare(compare, _), Some(constant)) = (&self.test, &self.constant) else {
            return;
        };
        let constant = Scalar::new(Arc::clone(constant));
        let possible = match compare {
            Compare::Equal => both(cmp::lt_eq(least, &constant), cmp::gt_eq(most, &constant)),
            Compare::Less => cmp::lt(least, &constant).ok(),
            Compare::LessOrEqual => cmp::lt_eq(least, &constant).ok(),
            Compare::Greater => cmp::gt(most, &constant).ok(),
            Compare::GreaterOrEqual => cmp::gt_eq(most, &constant).ok(),
            Compare::NotEqual => None,
        };
        let Some(possible) = possible.filter(|possible| possible.len() == keep.len()) else {
            return;
        };
        for (n, keep) in keep.iter_mut().enumerate() {
            if possible.is_valid(n) && !possible.value(n) {
                *keep = false;
            }
        }
    }
}

fn both(one: Result<BooleanArray, ArrowError>, other: Result<BooleanArray, ArrowError>) -> Option<BooleanArray> {
    and(&one.ok()?, &other.ok()?).ok()
}

/// The constant as one value of a type; `None` if it is none.
fn constant_of(text: &str, to: &DataType) -> Option<ArrayRef> {
    let one: ArrayRef = Arc::new(StringArray::from(vec![text]));
    let options = CastOptions {
        safe: true,
        ..CastOptions::default()
    };
    let constant = cast_with_options(&one, to, &options).ok()?;
    let is_exact = match to {
        DataType::Decimal128(_, scale) | DataType::Decimal256(_, scale) => {
            digits_after_point(text) <= usize::try_from(*scale).unwrap_or(0)
        }
        _ => true,
    };
    (is_exact && constant.is_valid(0)).then_some(constant)
}

/// How many digits a number has after its point, without zeros at its end: Arrow rounds those that a decimal has no place for.
fn digits_after_point(number: &str) -> usize {
    let digits = number.split_once('.').map_or("", |(_, digits)| digits);
    digits.trim_end_matches('0').len()
}

/// The text of a constant, without its quotes.
fn constant_text(word: &str) -> Option<String> {
    match word.as_bytes().first()? {
        b'\'' => {
            let inner = word.strip_prefix('\'')?.strip_suffix('\'')?;
            Some(inner.replace("''", "'"))
        }
        b'"' => serde_json::from_str(word).ok(),
        _ => Some(word.to_owned()),
    }
}

/// Words: quoted texts whole (a quoted segment belongs to its path), comparisons by themselves.
struct Words<'a>(&'a str);

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let is_sign = |c: char| "=!<>".contains(c);
        let first = text.chars().next()?;
        let end = if is_sign(first) {
            text.find(|c| !is_sign(c)).unwrap_or(text.len())
        } else {
            end_of_word(text)
        };
        let (word, rest) = text.split_at(end);
        self.0 = rest;
        Some(word)
    }
}

fn end_of_word(text: &str) -> usize {
    let mut quote = None;
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some(open) => {
                if is_escaped {
                    is_escaped = false;
                } else if c == '\\' && open == '"' {
                    is_escaped = true;
                } else if c == open {
                    quote = None;
                }
            }
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c.is_whitespace() || "=!<>".contains(c) => return at,
            None => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(String, Test)> {
        let filter = Filter::parse(text).unwrap();
        filter
            .terms
            .into_iter()
            .map(|term| (term.column.to_string(), term.test))
            .collect()
    }

    #[test]
    fn comparisons_are_read_as_they_are_written() {
        let equal = |text: &str| Test::Compare(Compare::Equal, text.to_owned());
        assert_eq!(parsed("a=1"), [("a".to_owned(), equal("1"))]);
        assert_eq!(
            parsed(r#"user.name = "a \"b\" and c" AND "odd name".x>='it''s' and z is NOT null and y is null"#),
            [
                ("user.name".to_owned(), equal("a \"b\" and c")),
                (
                    "\"odd name\".x".to_owned(),
                    Test::Compare(Compare::GreaterOrEqual, "it's".to_owned())
                ),
                ("z".to_owned(), Test::IsNotNull),
                ("y".to_owned(), Test::IsNull),
            ]
        );
    }

    #[test]
    fn a_constant_of_a_decimal_is_the_number_that_was_written() {
        let decimal = DataType::Decimal128(20, 2);
        for text in ["20", "20.5", "20.25", "20.2500", "-20.25"] {
            assert!(constant_of(text, &decimal).is_some(), "{text}");
        }
        for text in ["20.001", "20.255", "-0.009", "2.0255e1", "1e-3", "twenty"] {
            assert!(constant_of(text, &decimal).is_none(), "{text}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for text in [
            "",
            "a",
            "a =",
            "a == 1",
            "a = 1 or b = 2",
            "a = 1 and",
            "a is 1",
            "a.. = 1",
            "a = 'x",
            "a = \"x",
        ] {
            let error = Filter::parse(text).unwrap_err();
            assert!(matches!(error, TableError::Filter { .. }), "{text}: {error}");
        }
        let many = vec!["a = 1"; 65].join(" and ");
        assert!(Filter::parse(&many).is_err());
    }
}
