//! The rows of an open file, batch by batch: columns under keys that were had are decrypted as they are read, sealed
//! values are opened or masked each for itself, what is refused is null or redacted.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray as _, Float64Builder, GenericListArray, Int64Array, OffsetSizeTrait, RecordBatch,
    RecordBatchOptions, StringArray, StringBuilder, StructArray, new_null_array,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Int64Type, Schema, SchemaRef};
use parquet::DecodeResult;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowFilter};
use parquet::arrow::push_decoder::{ParquetPushDecoder, ParquetPushDecoderBuilder};

use super::error::TableError;
use super::filter::Filter;
use super::layout::{EXTRA_COLUMN, OFFSET_COLUMN};
use super::pages::{Wanted, with_page_indexes};
use super::read::{Asking, LeafState, OpenLeaf, OpenTable};
use super::source::pieces;
use crate::acl::Refused;
use crate::columns::arrow::{ArrowColumnError, SealedType, decode_array};
use crate::columns::json;
use crate::pipeline::{ColumnDecision, ColumnOutcome, OpenedCells, Position, SealedCells};
use crate::policy::{EXTRA_LABEL, Root, Segment};
use crate::seal::PlainColumn;

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

/// Rows on their way.
pub struct RowStream<'a> {
    table: &'a OpenTable,
    asking: Asking<'a>,
    decoding: Decoding,
    filter: Filter,
    left: u64,
    /// Leaves that are shown, by their number in the file.
    wanted: Vec<bool>,
    schema: SchemaRef,
    name: Arc<str>,
    /// Rows that were read, where the file has no offsets.
    row: i64,
    decisions: Vec<ColumnDecision>,
}

/// How far the file is decoded.
enum Decoding {
    Planned(Plan),
    Running(Box<ParquetPushDecoder>),
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
        let selection = indexed
            .as_ref()
            .and_then(|metadata| filter.pages(table, metadata, &self.groups));
        let metadata = match indexed {
            Some(metadata) => ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new())
                .map_err(|_| TableError::Damaged)?,
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
        builder.build().map_err(|_| TableError::Damaged)
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
            groups: filter.row_groups(self),
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

    /// The schema of what is shown: sealed columns have the type of their values.
    fn shown_schema(&self, wanted: &[bool]) -> SchemaRef {
        let mut leaf = 0;
        let fields: Vec<FieldRef> = self
            .schema()
            .fields()
            .iter()
            .filter_map(|field| self.shown_field(field, wanted, &mut leaf))
            .collect();
        Arc::new(Schema::new(fields))
    }

    /// `None` if nothing of it is wanted.
    fn shown_field(&self, field: &Field, wanted: &[bool], leaf: &mut usize) -> Option<FieldRef> {
        let data_type = match field.data_type() {
            DataType::Struct(fields) => {
                let fields: Fields = fields
                    .iter()
                    .filter_map(|field| self.shown_field(field, wanted, leaf))
                    .collect();
                (!fields.is_empty()).then_some(DataType::Struct(fields))
            }
            DataType::List(item) => self.shown_field(item, wanted, leaf).map(DataType::List),
            DataType::LargeList(item) => self.shown_field(item, wanted, leaf).map(DataType::LargeList),
            other => {
                let n = *leaf;
                *leaf += 1;
                wanted[n].then(|| self.leaves[n].shown_type().unwrap_or_else(|| other.clone()))
            }
        }?;
        Some(Arc::new(Field::new(field.name(), data_type, true)))
    }
}

impl OpenTable {
    /// The type of a leaf as it is shown.
    pub(super) fn shown_type(&self, n: usize) -> DataType {
        let leaf = &self.leaves[n];
        leaf.shown_type().unwrap_or_else(|| leaf.leaf.data_type.clone())
    }
}

impl OpenLeaf {
    /// The type that opened values of a sealed column have. They were sealed as the JSON that they were: times, decimals and
    /// bytes stay the texts that they are there.
    fn shown_type(&self) -> Option<DataType> {
        use DataType::{Boolean, Float64, Int64, Utf8};
        Some(match &self.leaf.sealed.as_ref()?.sealed_type {
            SealedType::Arrow(data_type @ (Boolean | Int64 | Float64)) => data_type.clone(),
            SealedType::Arrow(_) | SealedType::Json => Utf8,
        })
    }

    /// Whether what is shown is JSON, and not the text of a string.
    fn is_json(&self) -> bool {
        let sealed = self.leaf.sealed.as_ref();
        sealed.is_some_and(|sealed| sealed.sealed_type == SealedType::Json)
    }
}

/// `path` itself, or a path below it: `user` of `user.email`, `cards` of `cards[*].number`.
fn is_at_or_below(path: &str, name: &str) -> bool {
    path.strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest.starts_with('['))
}

/// Where the rows of a batch come from: told of those that somebody asks for.
struct Places {
    name: Arc<str>,
    partition: i32,
    offsets: Option<Int64Array>,
    /// The first row's number in the file, where there are no offsets.
    first: i64,
    rows: usize,
}

impl Places {
    fn of(&self, row: usize) -> Position {
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
            return Ok(Some(batch));
        }
        Ok(None)
    }

    async fn decode(&mut self) -> Result<Option<RecordBatch>, TableError> {
        loop {
            let mut decoder = match std::mem::replace(&mut self.decoding, Decoding::Over) {
                Decoding::Planned(plan) => Box::new(plan.begin(self.table, &self.filter).await?),
                Decoding::Running(decoder) => decoder,
                Decoding::Over => return Ok(None),
            };
            // Decrypting and decoding is work; what somebody made up may make the crate panic.
            let decoded = tokio::task::spawn_blocking(move || (decoder.try_decode(), decoder)).await;
            let (decoded, mut decoder) = decoded.map_err(|_| TableError::Damaged)?;
            match decoded.map_err(|_| TableError::Damaged)? {
                DecodeResult::Data(batch) => {
                    self.decoding = Decoding::Running(decoder);
                    return Ok(Some(batch));
                }
                DecodeResult::Finished => return Ok(None),
                DecodeResult::NeedsData(ranges) => {
                    let size = self.table.source.size();
                    if ranges.iter().any(|range| range.start > range.end || range.end > size) {
                        return Err(TableError::Damaged);
                    }
                    let data = pieces(self.table.source.as_ref(), &ranges).await?;
                    decoder.push_ranges(ranges, data).map_err(|_| TableError::Damaged)?;
                    self.decoding = Decoding::Running(decoder);
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
        let mut elements = HashMap::new();
        for (n, leaf) in self.table.leaves.iter().enumerate() {
            let is_asked = self.wanted[n] || self.filter.reads(n);
            if !is_asked || !leaf.is_shown() || leaf.leaf.sealed.is_none() {
                continue;
            }
            let Some(found) = find(stored, &leaf.leaf.segments) else {
                continue;
            };
            elements.insert(n, found);
        }
        for (n, found) in elements {
            let array = self.open(n, &found, stored, &at).await?;
            opened.insert(n, array);
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
        let mut leaf = 0;
        let mut columns = Vec::new();
        for field in self.table.schema().fields() {
            let array = stored.column_by_name(field.name()).cloned();
            if let Some(array) = self.assemble(field, array.as_ref(), rows, &opened, &mut leaf) {
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

    /// Opens the sealed values of a leaf.
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
        // Sealed values are those of files with a policy.
        let own = table.own.as_ref().ok_or(TableError::Damaged)?;
        let policy = own.policy.policy();
        let rule = policy.columns.iter().find(|rule| rule.path == leaf.leaf.column);
        let label = match rule {
            Some(rule) => rule.label.clone(),
            None if leaf.leaf.column.to_string() == EXTRA_COLUMN => EXTRA_LABEL.to_owned(),
            // The policy has dropped or renamed the column: the label that it had, as it is called now.
            None => {
                let had = leaf
                    .leaf
                    .sealed
                    .as_ref()
                    .map(|sealed| sealed.label.clone())
                    .unwrap_or_default();
                policy.previous.labels.get(&had).cloned().unwrap_or(had)
            }
        };
        let rows = match rule.and_then(|rule| rule.bind_row.as_ref()) {
            Some(path) if *path.root() == Root::Value => row_ids(stored, path.segments(), found),
            _ => Vec::new(),
        };
        let cells = SealedCells {
            label: &label,
            values: values.iter().collect(),
            rows,
            at: found.rows.iter().map(|row| at.of(*row as usize)).collect(),
            envelopes: &own.envelopes,
        };
        let opened = own
            .values
            .open_cells(&cells, self.asking.who, self.asking.purpose, self.asking.now)
            .await
            .map_err(|error| TableError::Values(Box::new(error)))?;
        let to = leaf.shown_type().unwrap_or(DataType::Utf8);
        let is_json = leaf.is_json();
        let array = match to {
            DataType::Utf8 => texts(&opened, is_json),
            DataType::Float64 => floats(&opened),
            to => typed(&opened, &to)?,
        };
        let wrong = array.null_count().saturating_sub(nulls_of(&opened));
        self.decisions.extend(opened.decisions.iter().cloned());
        if wrong > 0 {
            self.decisions.push(ColumnDecision::new(
                &label,
                ColumnOutcome::Failed(NOT_OF_TYPE),
                "values are not of the type that the table declares; they can be read as records".to_owned(),
                wrong as u64,
                (&at.of(0), &at.of(at.rows - 1)),
            ));
        }
        Ok(match opened.refused {
            Some(refused) => redacted(&array, &opened.is_refused, refused, is_json),
            None => array,
        })
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

    /// A field as it is shown, from what was decoded of it.
    fn assemble(
        &self,
        field: &Field,
        stored: Option<&ArrayRef>,
        len: usize,
        opened: &HashMap<usize, ArrayRef>,
        leaf: &mut usize,
    ) -> Option<ArrayRef> {
        match field.data_type() {
            DataType::Struct(fields) => {
                let stored = stored.and_then(|array| array.as_struct_opt());
                let mut columns = Vec::new();
                let mut shown: Vec<FieldRef> = Vec::new();
                for field in fields {
                    let child = stored.and_then(|array| array.column_by_name(field.name()));
                    if let Some(array) = self.assemble(field, child, len, opened, leaf) {
                        shown.push(Arc::new(Field::new(field.name(), array.data_type().clone(), true)));
                        columns.push(array);
                    }
                }
                if shown.is_empty() {
                    return None;
                }
                let nulls = stored.and_then(|array| array.nulls().cloned());
                StructArray::try_new(shown.into(), columns, nulls)
                    .ok()
                    .map(|array| Arc::new(array) as ArrayRef)
            }
            DataType::List(item) => {
                let stored = stored.and_then(|array| array.as_list_opt::<i32>());
                self.assemble_list(item, stored, len, opened, leaf)
            }
            DataType::LargeList(item) => {
                let stored = stored.and_then(|array| array.as_list_opt::<i64>());
                self.assemble_list(item, stored, len, opened, leaf)
            }
            data_type => {
                let n = *leaf;
                *leaf += 1;
                if !self.wanted[n] {
                    return None;
                }
                let own = &self.table.leaves[n];
                let to = own.shown_type().unwrap_or_else(|| data_type.clone());
                let shown = match (opened.get(&n), stored, &own.state) {
                    (Some(opened), ..) => Arc::clone(opened),
                    (None, Some(stored), LeafState::Shown { .. }) if own.leaf.sealed.is_none() => Arc::clone(stored),
                    (.., LeafState::Refused { refused, .. }) => {
                        redacted(&new_null_array(&to, len), &vec![true; len], *refused, false)
                    }
                    _ => new_null_array(&to, len),
                };
                Some(shown)
            }
        }
    }

    fn assemble_list<O: OffsetSizeTrait>(
        &self,
        item: &FieldRef,
        stored: Option<&GenericListArray<O>>,
        len: usize,
        opened: &HashMap<usize, ArrayRef>,
        leaf: &mut usize,
    ) -> Option<ArrayRef> {
        let values = stored.map(|array| Arc::clone(array.values()));
        let inner = values.as_ref().map_or(0, Array::len);
        let shown = self.assemble(item, values.as_ref(), inner, opened, leaf)?;
        let field = Arc::new(Field::new(item.name(), shown.data_type().clone(), true));
        let list = match stored {
            Some(stored) => {
                GenericListArray::<O>::try_new(field, stored.offsets().clone(), shown, stored.nulls().cloned()).ok()?
            }
            None => {
                return Some(new_null_array(
                    &GenericListArray::<O>::DATA_TYPE_CONSTRUCTOR(field),
                    len,
                ));
            }
        };
        Some(Arc::new(list))
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

/// The values of a leaf in a batch, and the row and list indexes of each.
pub(super) struct Elements {
    pub(super) array: ArrayRef,
    pub(super) rows: Vec<u32>,
    /// Outermost first; empty without lists.
    indexes: Vec<Vec<u32>>,
}

/// Finds a leaf in a batch; `None` if it was not decoded.
pub(super) fn find(batch: &RecordBatch, segments: &[Segment]) -> Option<Elements> {
    let (Segment::Name(first), rest) = segments.split_first()? else {
        return None;
    };
    let mut found = Elements {
        array: Arc::clone(batch.column_by_name(first)?),
        rows: (0..u32::try_from(batch.num_rows()).ok()?).collect(),
        indexes: vec![Vec::new(); batch.num_rows()],
    };
    for segment in rest {
        found = match segment {
            Segment::Name(name) => Elements {
                array: Arc::clone(found.array.as_struct_opt()?.column_by_name(name)?),
                ..found
            },
            Segment::Each => match found.array.data_type() {
                DataType::List(_) => found.each::<i32>()?,
                DataType::LargeList(_) => found.each::<i64>()?,
                _ => return None,
            },
        };
    }
    Some(found)
}

impl Elements {
    fn each<O: OffsetSizeTrait>(self) -> Option<Self> {
        let list = self.array.as_list_opt::<O>()?;
        let values = Arc::clone(list.values());
        let mut rows = vec![0; values.len()];
        let mut indexes = vec![Vec::new(); values.len()];
        for (n, window) in list.offsets().windows(2).enumerate() {
            for (index, element) in (window[0].as_usize()..window[1].as_usize()).enumerate() {
                rows[element] = self.rows[n];
                let mut own = self.indexes[n].clone();
                own.push(u32::try_from(index).ok()?);
                indexes[element] = own;
            }
        }
        Some(Self {
            array: values,
            rows,
            indexes,
        })
    }
}

/// The canonical row ids of the values in `found`, from the column that the policy binds them to.
fn row_ids(batch: &RecordBatch, segments: &[Segment], found: &Elements) -> Vec<Option<Vec<u8>>> {
    let Some(ids) = find(batch, segments) else {
        return Vec::new();
    };
    let scalar = |row: u32| {
        let text = json_scalar(&ids.array, row as usize)?;
        Some(text.into_bytes())
    };
    let id = |(row, indexes): (&u32, &Vec<u32>)| {
        let mut out = Vec::new();
        json::encode_row_id(&scalar(*row)?, indexes, &mut out).ok()?;
        Some(out)
    };
    found.rows.iter().zip(&found.indexes).map(id).collect()
}

/// A value of a clear scalar column as JSON text.
fn json_scalar(array: &ArrayRef, row: usize) -> Option<String> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::Utf8 => {
            let mut out = Vec::new();
            json::write_string(array.as_string::<i32>().value(row), &mut out);
            String::from_utf8(out).ok()
        }
        DataType::Int64 => Some(array.as_primitive::<Int64Type>().value(row).to_string()),
        DataType::Boolean => Some(array.as_boolean().value(row).to_string()),
        _ => None,
    }
}

/// Calls `take` with the JSON text of each opened value; `None` for nulls.
fn each_json(opened: &OpenedCells, mut take: impl FnMut(Option<&str>)) {
    for value in opened.values.view().iter() {
        let Some(encoding) = value else {
            take(None);
            continue;
        };
        let mut text = zeroize::Zeroizing::new(Vec::with_capacity(encoding.len() * 6 + 64));
        let json = json::decode_json(encoding, &mut text).ok();
        take(
            json.and_then(|()| std::str::from_utf8(&text).ok())
                .filter(|text| *text != "null"),
        );
    }
}

/// Opened values as texts: as JSON, or strings as what they say.
fn texts(opened: &OpenedCells, is_json: bool) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(opened.is_refused.len(), opened.values.view().value_bytes());
    each_json(opened, |text| match text {
        Some(text) if !is_json && text.starts_with('"') => builder.append_option(json::string_value(text.as_bytes())),
        text => builder.append_option(text),
    });
    Arc::new(builder.finish())
}

/// Opened values as floats, numbers that are spelled as integers too; what is none is null.
fn floats(opened: &OpenedCells) -> ArrayRef {
    let mut builder = Float64Builder::with_capacity(opened.is_refused.len());
    each_json(opened, |text| {
        let number = text.and_then(|text| serde_json::from_str::<f64>(text).ok());
        builder.append_option(number.filter(|number| number.is_finite()));
    });
    Arc::new(builder.finish())
}

/// Opened values as an array of the declared type; those that it does not hold are null.
fn typed(opened: &OpenedCells, to: &DataType) -> Result<ArrayRef, TableError> {
    let view = opened.values.view();
    match decode_array(&view, to) {
        Ok(array) => return Ok(array),
        Err(ArrowColumnError::Mismatch { .. }) => {}
        Err(_) => return Err(TableError::Damaged),
    }
    let mut fitting = PlainColumn::with_capacity(view.len(), view.value_bytes());
    for value in view.iter() {
        let fits = value.filter(|value| {
            let mut one = PlainColumn::with_capacity(1, value.len());
            one.push(value).is_ok() && decode_array(&one.view(), to).is_ok()
        });
        let pushed = match fits {
            Some(value) => fitting.push(value),
            None => fitting.push_null(),
        };
        pushed.map_err(|_| TableError::Damaged)?;
    }
    decode_array(&fitting.view(), to).map_err(|_| TableError::Damaged)
}

/// How many of the opened values are null.
fn nulls_of(opened: &OpenedCells) -> usize {
    // The encoding of null is null too.
    opened
        .values
        .view()
        .iter()
        .filter(|value| value.is_none_or(|encoding| encoding == [0]))
        .count()
}

/// The array with what a refused reader sees in the places of refused values. Only texts can say `[redacted]`.
fn redacted(array: &ArrayRef, is_refused: &[bool], refused: Refused, is_json: bool) -> ArrayRef {
    let shown = if is_json { Some(refused.json()) } else { refused.text() };
    let (Some(shown), Refused::Redact, Some(texts)) = (shown, refused, array.as_string_opt::<i32>()) else {
        return Arc::clone(array);
    };
    let pairs = texts.iter().zip(is_refused);
    let masked: StringArray = pairs
        .map(|(text, refused)| if *refused { Some(shown) } else { text })
        .collect();
    Arc::new(masked)
}
