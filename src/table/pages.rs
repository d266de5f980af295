//! Page indexes: which rows are in which page of a column, and the smallest and largest value of each page. With them,
//! pages that a filter rules out are not fetched.
//!
//! The crate parses the indexes of all columns or of none, and gives up at the first that it has no key for. Here those
//! are fetched that a query needs and whose keys were had; all others are shown to the crate as empty, and it is never
//! asked for such a column.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData,
};

use super::contained::contained;
use super::error::TableError;
use super::read::OpenTable;
use super::source::pieces;

/// The most bytes of indexes that are fetched for a query. Beyond, whole column chunks are read.
const MAX_INDEXES: u64 = 64 << 20;
/// An offset index without pages, in Thrift's compact protocol: field 1, an empty list of structures, the end.
const NO_PAGES: &[u8] = &[0x19, 0x0c, 0x00];

/// Which indexes a query needs.
pub(super) struct Wanted<'a> {
    /// Row groups that it reads.
    pub(super) groups: &'a [usize],
    /// Leaves that it reads: of each it must be known where its pages are.
    pub(super) read: &'a [usize],
    /// Those of them that are compared with constants.
    pub(super) compared: &'a [usize],
}

/// Where an index is in the file, and where its bytes will be for the crate.
struct Placed {
    group: usize,
    leaf: usize,
    is_offsets: bool,
    range: Range<u64>,
    at: usize,
}

/// The file's metadata with the page indexes of `wanted`; `None` if a leaf that is read has no index of its pages.
///
/// # Errors
/// [`TableError::Damaged`] for an index that was changed, [`TableError::Source`].
pub(super) async fn with_page_indexes(
    table: &OpenTable,
    wanted: &Wanted<'_>,
) -> Result<Option<ParquetMetaData>, TableError> {
    let metadata = table.metadata.metadata();
    let Some(mut placed) = place(metadata, wanted)? else {
        return Ok(None);
    };
    let size = table.source.size();
    let mut total = 0;
    for index in &placed {
        if index.range.end > size {
            return Err(TableError::Damaged);
        }
        total += index.range.end - index.range.start;
    }
    if placed.is_empty() || total > MAX_INDEXES {
        return Ok(None);
    }
    let ranges: Vec<Range<u64>> = placed.iter().map(|index| index.range.clone()).collect();
    let found = match table.tail.cut(&ranges) {
        Some(found) => found,
        None => pieces(table.source.as_ref(), &ranges).await?,
    };
    let mut bytes = NO_PAGES.to_vec();
    for (index, own) in placed.iter_mut().zip(found) {
        index.at = bytes.len();
        bytes.extend_from_slice(&own);
    }
    // The crate wants the footer behind the indexes.
    bytes.push(0);
    let (metadata, bytes) = (Arc::clone(metadata), Bytes::from(bytes));
    let parsing = tokio::task::spawn_blocking(move || contained(|| parse(&metadata, &placed, &bytes)));
    let parsed = parsing.await.map_err(|_| TableError::Damaged)??;
    let parsed = parsed.map_err(|_: ParquetError| TableError::Damaged)?;
    if !contained(|| is_sound(&parsed, wanted))? {
        return Err(TableError::Damaged);
    }
    Ok(Some(parsed))
}

/// The indexes that are wanted, where the file says they are.
fn place(metadata: &ParquetMetaData, wanted: &Wanted<'_>) -> Result<Option<Vec<Placed>>, TableError> {
    let mut placed = Vec::new();
    for &group in wanted.groups {
        for &leaf in wanted.read {
            let column = metadata
                .row_groups()
                .get(group)
                .and_then(|group| group.columns().get(leaf));
            let column = column.ok_or(TableError::Damaged)?;
            let Some(range) = range_of(column.offset_index_offset(), column.offset_index_length())? else {
                return Ok(None);
            };
            let of = |is_offsets, range| Placed {
                group,
                leaf,
                is_offsets,
                range,
                at: 0,
            };
            placed.push(of(true, range));
            let values = range_of(column.column_index_offset(), column.column_index_length())?;
            if let Some(range) = values.filter(|_| wanted.compared.contains(&leaf)) {
                placed.push(of(false, range));
            }
        }
    }
    Ok(Some(placed))
}

fn range_of(offset: Option<i64>, length: Option<i32>) -> Result<Option<Range<u64>>, TableError> {
    let (Some(offset), Some(length)) = (offset, length) else {
        return Ok(None);
    };
    let (Ok(offset), Ok(length)) = (u64::try_from(offset), u64::try_from(length)) else {
        return Err(TableError::Damaged);
    };
    Ok((length > 0).then(|| offset..offset.saturating_add(length)))
}

/// Lets the crate decrypt and parse them: for it the file is `bytes`, with no indexes but these.
fn parse(metadata: &ParquetMetaData, placed: &[Placed], bytes: &Bytes) -> Result<ParquetMetaData, ParquetError> {
    let mut by_leaf: HashMap<(usize, usize), Vec<&Placed>> = HashMap::new();
    for index in placed {
        by_leaf.entry((index.group, index.leaf)).or_default().push(index);
    }
    let mut groups: Vec<RowGroupMetaData> = Vec::with_capacity(metadata.num_row_groups());
    for (n, group) in metadata.row_groups().iter().enumerate() {
        let mut columns = Vec::with_capacity(group.num_columns());
        for (leaf, column) in group.columns().iter().enumerate() {
            columns.push(moved(column, by_leaf.get(&(n, leaf)))?);
        }
        groups.push(group.clone().into_builder().set_column_metadata(columns).build()?);
    }
    let moved = metadata.clone().into_builder().set_row_groups(groups).build();
    let mut reader = ParquetMetaDataReader::new_with_metadata(moved).with_page_index_policy(PageIndexPolicy::Required);
    reader.read_page_indexes_sized(bytes, bytes.len() as u64)?;
    let mut parsed = reader.finish()?.into_builder();
    let (values, offsets) = (parsed.take_column_index(), parsed.take_offset_index());
    let whole = metadata.clone().into_builder();
    Ok(whole.set_column_index(values).set_offset_index(offsets).build())
}

/// The column with its indexes at their new places, or one with no pages, which nothing encrypts.
fn moved(column: &ColumnChunkMetaData, placed: Option<&Vec<&Placed>>) -> Result<ColumnChunkMetaData, ParquetError> {
    let Some(placed) = placed else {
        let empty = ColumnChunkMetaData::builder(column.column_descr_ptr())
            .set_offset_index_offset(Some(0))
            .set_offset_index_length(i32::try_from(NO_PAGES.len()).ok());
        return empty.build();
    };
    let own = column.clone().into_builder();
    let mut builder = own.set_column_index_offset(None).set_column_index_length(None);
    for index in placed {
        // Bounded by the most bytes that are fetched.
        let offset = i64::try_from(index.at).ok();
        let length = i32::try_from(index.range.end - index.range.start).ok();
        builder = if index.is_offsets {
            builder.set_offset_index_offset(offset).set_offset_index_length(length)
        } else {
            builder.set_column_index_offset(offset).set_column_index_length(length)
        };
    }
    builder.build()
}

/// Whether the pages of every leaf that is read follow each other within its chunk, and hold all rows of the group.
fn is_sound(metadata: &ParquetMetaData, wanted: &Wanted<'_>) -> bool {
    let Some(offsets) = metadata.offset_index() else {
        return false;
    };
    wanted.groups.iter().all(|&group| {
        let rows = metadata.row_group(group).num_rows();
        wanted.read.iter().all(|&leaf| {
            let pages = offsets[group][leaf].page_locations();
            let (start, length) = metadata.row_group(group).column(leaf).byte_range();
            let mut end = i64::try_from(start).unwrap_or(i64::MAX);
            let last = end.saturating_add(i64::try_from(length).unwrap_or(i64::MAX));
            let mut row = -1;
            for page in pages {
                let is_next = page.first_row_index > row && (row >= 0 || page.first_row_index == 0);
                if !is_next || page.first_row_index >= rows || page.offset < end || page.compressed_page_size <= 0 {
                    return false;
                }
                row = page.first_row_index;
                end = page.offset.saturating_add(i64::from(page.compressed_page_size));
            }
            end <= last && (row >= 0 || rows == 0)
        })
    })
}
