//! The rows of an open file, batch by batch: columns under keys that were had are decrypted as they are read, sealed
//! values are opened or masked each for itself, what is refused is null or redacted.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{
    Array as _, ArrayRef, AsArray as _, BinaryArray, Int64Array, RecordBatch, RecordBatchOptions, UInt32Array,
    new_null_array,
};
use arrow::compute::{filter_record_batch, take};
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use parquet::DecodeResult;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::RowFilter;
use parquet::arrow::push_decoder::{ParquetPushDecoder, ParquetPushDecoderBuilder};

use super::contained::contained;
use super::decoder::Decoder;
use super::elements::{Elements, find};
use super::error::TableError;
use super::filter::Filter;
use super::layout::OFFSET_COLUMN;
use super::pages::{Wanted, with_page_indexes};
use super::read::{Asking, LeafState, OpenLeaf, OpenTable, reader_metadata};
use super::shown::Showing;
use super::source::pieces;
use super::values::{array_of, redacted};
use crate::pipeline::{ColumnDecision, ColumnOutcome, Position, SealedCells};
use crate::policy::Root;

/// What is wanted of a file.
#[derive(Clone, Debug)]
pub struct Query {
    /// Paths of columns; `None` for all. A path gives everything below it.
    pub columns: Option<Vec<String>>,
    /// Which rows.
    pub filter: Filter,
    /// At most that many of them.
    pub limit: Option<u64>,
    /// Most rows of a batch.
    pub batch_rows: usize,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            columns: None,
            filter: Filter::default(),
            limit: None,
            batch_rows: 8_192,
        }
    }
}

/// Rows on their way. From the first batch to the last a stream has a thread of its own, which decodes.
pub struct RowStream<'a> {
    pub(super) table: &'a OpenTable,
    pub(super) asking: Asking<'a>,
    decoding: Decoding,
    filter: Filter,
    pub(super) left: u64,
    /// Leaves that are shown, by their number in the file.
    pub(super) wanted: Vec<bool>,
    schema: SchemaRef,
    name: Arc<str>,
    /// Rows that were read, where the file has no offsets.
    row: i64,
    pub(super) decisions: Vec<ColumnDecision>,
}

/// How far the file is decoded.
enum Decoding {
    Planned(Plan),
    Running(Decoder),
    /// At the end, or after an error.
    Over,
}

/// What is decoded of the file.
struct Plan {
    /// Leaves.
    read: Vec<usize>,
    /// Row groups.
    groups: Vec<usize>,
    /// Rows that pass, if all comparisons are made while pages are decoded.
    limit: Option<u64>,
    batch_rows: usize,
}

impl Plan {
    /// Begins: with page indexes, if they can spare something.
    async fn begin(self, table: &OpenTable, filter: &Filter) -> Result<ParquetPushDecoder, TableError> {
        let pushed = filter.pushed(table);
        let indexed = if pushed.is_empty() && self.limit.is_none() {
            None
        } else {
            let compared = filter.compared(table);
            let wanted = Wanted {
                groups: &self.groups,
                read: &self.read,
                compared: &compared,
            };
            with_page_indexes(table, &wanted).await?
        };
        let selection = match &indexed {
            Some(metadata) => filter.pages(table, metadata, &self.groups)?,
            None => None,
        };
        let metadata = match indexed {
            Some(metadata) => reader_metadata(metadata)?,
            None => table.metadata.clone(),
        };
        let mask = ProjectionMask::leaves(metadata.parquet_schema(), self.read);
        let mut builder = ParquetPushDecoderBuilder::new_with_metadata(metadata)
            .with_batch_size(self.batch_rows)
            .with_projection(mask)
            .with_row_groups(self.groups);
        if let Some(selection) = selection {
            builder = builder.with_row_selection(selection);
        }
        if !pushed.is_empty() {
            builder = builder.with_row_filter(RowFilter::new(pushed));
        }
        if let Some(limit) = self.limit {
            builder = builder.with_limit(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        contained(|| builder.build())?.map_err(|_| TableError::Damaged)
    }
}

impl OpenTable {
    /// Begins to read. `name` is what audit lines call the file.
    ///
    /// # Errors
    /// [`TableError::NoColumn`], [`TableError::Refused`] for a filter by a column that the reader may not see.
    pub fn rows<'a>(&'a self, query: &Query, asking: Asking<'a>, name: &str) -> Result<RowStream<'a>, TableError> {
        let wanted = self.wanted(query.columns.as_deref())?;
        let filter = query.filter.bind(self)?;
        let mut read: Vec<usize> = Vec::new();
        for (n, leaf) in self.leaves.iter().enumerate() {
            let is_asked = wanted[n] || filter.reads(n) || self.is_needed(n, &wanted);
            if leaf.is_shown() && is_asked {
                read.push(n);
            }
        }
        let plan = Plan {
            groups: filter.row_groups(self)?,
            limit: query.limit.filter(|_| filter.is_all_pushed(self)),
            batch_rows: query.batch_rows.clamp(1, 1 << 20),
            read,
        };
        let decisions = self.looked_at(&filter, name);
        Ok(RowStream {
            table: self,
            asking,
            decoding: Decoding::Planned(plan),
            filter,
            left: query.limit.unwrap_or(u64::MAX),
            schema: self.shown_schema(&wanted),
            wanted,
            name: Arc::from(name),
            row: 0,
            decisions,
        })
    }

    /// Who filters by a column under its own key learns something of all of its rows, also if none is kept.
    fn looked_at(&self, filter: &Filter, name: &str) -> Vec<ColumnDecision> {
        let (rows, ..) = self.sizes();
        let position = |offset| Position {
            topic: Arc::from(name),
            partition: self.origin().map_or(0, |origin| origin.partition),
            offset,
        };
        let last = i64::try_from(rows).unwrap_or(i64::MAX).saturating_sub(1).max(0);
        let (first, last) = self.origin().map_or((0, last), |origin| (origin.first, origin.last));
        let looked = self.leaves.iter().enumerate().filter(|(n, _)| filter.reads(*n));
        let decision = |(_, leaf): (usize, &OpenLeaf)| match (&leaf.state, &leaf.label) {
            (LeafState::Shown { because: Some(because) }, Some(label)) => Some(ColumnDecision::new(
                label,
                ColumnOutcome::Opened,
                because.clone(),
                rows,
                (&position(first), &position(last)),
            )),
            _ => None,
        };
        looked.filter_map(decision).collect()
    }

    fn wanted(&self, columns: Option<&[String]>) -> Result<Vec<bool>, TableError> {
        let Some(columns) = columns else {
            return Ok(vec![true; self.leaves.len()]);
        };
        let mut wanted = vec![false; self.leaves.len()];
        for name in columns {
            let mut is_there = false;
            for (n, leaf) in self.leaves.iter().enumerate() {
                if is_at_or_below(&leaf.leaf.column.to_string(), name) {
                    (wanted[n], is_there) = (true, true);
                }
            }
            if !is_there {
                return Err(TableError::NoColumn { name: name.clone() });
            }
        }
        Ok(wanted)
    }

    /// Whether a leaf is read to open or place the others: row ids, offsets.
    fn is_needed(&self, n: usize, wanted: &[bool]) -> bool {
        let column = &self.leaves[n].leaf.column;
        if column.to_string() == OFFSET_COLUMN {
            return true;
        }
        let Some(own) = &self.own else { return false };
        let bound = own.policy.policy().columns.iter();
        let mut bound = bound.filter(|rule| rule.bind_row.as_ref() == Some(column));
        bound.any(|rule| {
            let leaves = self.leaves.iter().zip(wanted);
            leaves
                .into_iter()
                .any(|(leaf, wanted)| *wanted && leaf.leaf.column == rule.path)
        })
    }
}

/// `path` itself, or a path below it: `user` of `user.email`, `cards` of `cards[*].number`.
fn is_at_or_below(path: &str, name: &str) -> bool {
    path.strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest.starts_with('['))
}

/// The values in the places where `like` has some, and nulls in the others.
fn spread(values: &ArrayRef, like: &BinaryArray) -> Result<ArrayRef, TableError> {
    if values.len() == like.len() {
        return Ok(Arc::clone(values));
    }
    let mut next = 0..;
    let places: UInt32Array = (0..like.len())
        .map(|n| like.is_valid(n).then(|| next.next()).flatten())
        .collect();
    take(values, &places, None).map_err(|_| TableError::Damaged)
}

/// Where the rows of a batch come from: told of those that somebody asks for.
pub(super) struct Places {
    name: Arc<str>,
    partition: i32,
    offsets: Option<Int64Array>,
    /// The first row's number in the file, where there are no offsets.
    first: i64,
    rows: usize,
}

impl Places {
    pub(super) fn of(&self, row: usize) -> Position {
        Position {
            topic: Arc::clone(&self.name),
            partition: self.partition,
            offset: match &self.offsets {
                Some(offsets) if offsets.is_valid(row) => offsets.value(row),
                _ => self.first + i64::try_from(row).unwrap_or(0),
            },
        }
    }
}

impl RowStream<'_> {
    /// The schema of the batches.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What was decided about the columns since this was asked last.
    pub fn take_decisions(&mut self) -> Vec<ColumnDecision> {
        std::mem::take(&mut self.decisions)
    }

    /// The next rows; `None` at the end.
    ///
    /// # Errors
    /// [`TableError::Damaged`] for pages that were changed, [`TableError::Source`], a service that is away.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, TableError> {
        while self.left > 0 {
            let Some(stored) = self.decode().await? else {
                return Ok(None);
            };
            let shown = self.show(&stored).await?;
            let Some(batch) = shown else { continue };
            self.left = self.left.saturating_sub(batch.num_rows() as u64);
            if self.left == 0 {
                self.decoding = Decoding::Over;
            }
            return Ok(Some(batch));
        }
        Ok(None)
    }

    async fn decode(&mut self) -> Result<Option<RecordBatch>, TableError> {
        // Over, if this fails or is given up.
        let decoder = match std::mem::replace(&mut self.decoding, Decoding::Over) {
            Decoding::Planned(plan) => Decoder::start(plan.begin(self.table, &self.filter).await?)?,
            Decoding::Running(decoder) => decoder,
            Decoding::Over => return Ok(None),
        };
        let (mut ranges, mut data) = (Vec::new(), Vec::new());
        loop {
            match decoder.step(ranges, data).await? {
                DecodeResult::Data(batch) => {
                    self.decoding = Decoding::Running(decoder);
                    return Ok(Some(batch));
                }
                DecodeResult::Finished => return Ok(None),
                DecodeResult::NeedsData(needed) => {
                    let size = self.table.source.size();
                    if needed.iter().any(|range| range.start > range.end || range.end > size) {
                        return Err(TableError::Damaged);
                    }
                    data = pieces(self.table.source.as_ref(), &needed).await?;
                    ranges = needed;
                }
            }
        }
    }

    /// Opens what is sealed, masks what is refused, drops the rows that the filter does not want.
    async fn show(&mut self, stored: &RecordBatch) -> Result<Option<RecordBatch>, TableError> {
        let rows = stored.num_rows();
        let at = self.places(stored);
        self.row += i64::try_from(rows).unwrap_or(0);
        let mut opened: HashMap<usize, ArrayRef> = HashMap::new();
        for (n, leaf) in self.table.leaves.iter().enumerate() {
            let is_asked = self.wanted[n] || self.filter.reads(n);
            if is_asked
                && leaf.is_shown()
                && leaf.leaf.sealed.is_some()
                && !leaf.is_by_worker
                && let Some(found) = find(stored, &leaf.leaf.segments)
            {
                opened.insert(n, self.open(n, &found, stored, &at).await?);
            }
        }
        let keep = self.filter.keep(stored, &opened, self.table)?;
        let kept = match &keep {
            Some(keep) => keep.true_count(),
            None => rows,
        };
        self.decide(&at, keep.as_ref());
        if kept == 0 {
            return Ok(None);
        }
        // The worker is asked for rows that are shown, and for no others.
        let asked = self.of_worker(stored, &at, keep.as_ref()).await?;
        opened.extend(asked);
        let showing = Showing {
            leaves: &self.table.leaves,
            wanted: &self.wanted,
            opened: &opened,
        };
        let mut leaf = 0;
        let mut columns = Vec::new();
        for field in self.table.schema().fields() {
            let array = stored.column_by_name(field.name()).cloned();
            if let Some(array) = showing.field(field, array.as_ref(), rows, &mut leaf) {
                columns.push(array);
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|_| TableError::Damaged)?;
        let batch = match keep {
            Some(keep) => filter_record_batch(&batch, &keep).map_err(|_| TableError::Damaged)?,
            None => batch,
        };
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(batch.num_rows());
        Ok(Some(batch.slice(0, room)))
    }

    fn places(&self, stored: &RecordBatch) -> Places {
        let offsets = stored.column_by_name(OFFSET_COLUMN);
        Places {
            name: Arc::clone(&self.name),
            partition: self.table.origin().map_or(0, |origin| origin.partition),
            offsets: offsets.and_then(|column| column.as_primitive_opt::<Int64Type>().cloned()),
            first: self.row,
            rows: stored.num_rows(),
        }
    }

    /// Opens the sealed values of a leaf. Only those that are there cost anything: most of `_extra` is null.
    async fn open(
        &mut self,
        n: usize,
        found: &Elements,
        stored: &RecordBatch,
        at: &Places,
    ) -> Result<ArrayRef, TableError> {
        let table = self.table;
        let leaf = &table.leaves[n];
        let Some(values) = found.array.as_binary_opt::<i32>() else {
            return Err(TableError::Damaged);
        };
        let to = leaf.shown_type().unwrap_or(DataType::Utf8);
        let present: Vec<usize> = match values.nulls() {
            Some(nulls) => nulls.valid_indices().collect(),
            None => (0..values.len()).collect(),
        };
        if present.is_empty() {
            return Ok(new_null_array(&to, values.len()));
        }
        // Sealed values are those of files with a policy.
        let own = table.own.as_ref().ok_or(TableError::Damaged)?;
        let policy = own.policy.policy();
        let rule = policy.columns.iter().find(|rule| rule.path == leaf.leaf.column);
        let label = leaf.label_now(policy);
        let rows = match rule.and_then(|rule| rule.bind_row.as_ref()) {
            Some(path) if *path.root() == Root::Value => found.row_ids(stored, path.segments(), &present),
            _ => Vec::new(),
        };
        let cells = SealedCells {
            label: &label,
            values: present.iter().map(|n| values.value(*n)).collect(),
            rows,
            at: present.iter().map(|n| at.of(found.rows[*n] as usize)).collect(),
            envelopes: &own.envelopes,
        };
        let opened = own
            .values
            .open_cells(&cells, self.asking.who, self.asking.purpose, self.asking.now)
            .await
            .map_err(|error| TableError::Values(Box::new(error)))?;
        let (array, wrong) = array_of(&opened, &to, leaf.is_json())?;
        self.decisions.extend(opened.decisions.iter().cloned());
        if wrong > 0 {
            self.decisions.push(ColumnDecision::new(
                &label,
                ColumnOutcome::Failed(NOT_OF_TYPE),
                "values are not of the type that the table declares; they can be read as records".to_owned(),
                wrong,
                (&at.of(0), &at.of(at.rows - 1)),
            ));
        }
        let array = match opened.refused {
            Some(refused) => redacted(&array, &opened.is_refused, refused, leaf.is_json()),
            None => array,
        };
        spread(&array, values)
    }

    /// Decisions about whole columns.
    fn decide(&mut self, at: &Places, keep: Option<&arrow::array::BooleanArray>) {
        let count = keep.map_or(at.rows, arrow::array::BooleanArray::true_count) as u64;
        if count == 0 {
            return;
        }
        let (first, last) = (at.of(0), at.of(at.rows - 1));
        for (n, leaf) in self.table.leaves.iter().enumerate() {
            // What is filtered by was decided on for all rows at the start.
            if !self.wanted[n] || self.filter.reads(n) {
                continue;
            }
            let Some(label) = leaf.label.as_deref().or_else(|| leaf.failed_label()) else {
                continue;
            };
            let (outcome, because) = match &leaf.state {
                LeafState::Shown { because: Some(because) } => (ColumnOutcome::Opened, because),
                LeafState::Shown { because: None } => continue,
                LeafState::Refused { because, .. } => (ColumnOutcome::Refused, because),
                LeafState::Failed { code, because } => (ColumnOutcome::Failed(code), because),
            };
            let decision = ColumnDecision::new(label, outcome, because.clone(), count, (&first, &last));
            self.decisions.push(decision);
        }
    }
}

impl OpenLeaf {
    /// A column under the footer's key that should have its own.
    fn failed_label(&self) -> Option<&str> {
        matches!(self.state, LeafState::Failed { .. }).then_some("$footer")
    }
}

impl fmt::Debug for RowStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowStream")
            .field("row", &self.row)
            .finish_non_exhaustive()
    }
}

/// Code of an opened value that the table's type does not hold.
pub const NOT_OF_TYPE: &str = "not-of-type";
