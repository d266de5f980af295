//! Opened values as an array: texts and JSON, numbers, what the table declares.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, Float64Builder, StringArray, StringBuilder};
use arrow::datatypes::DataType;

use super::error::TableError;
use crate::acl::Refused;
use crate::columns::arrow::{ArrowColumnError, decode_array};
use crate::columns::json;
use crate::pipeline::OpenedCells;
use crate::seal::PlainColumn;

/// Opened values as an array of type `to`, and how many of them that type does not hold; these are null. `is_json`: texts
/// are the JSON of the values, and not what strings say.
pub(super) fn array_of(opened: &OpenedCells, to: &DataType, is_json: bool) -> Result<(ArrayRef, u64), TableError> {
    let array = match to {
        DataType::Utf8 => texts(opened, is_json),
        DataType::Float64 => floats(opened),
        to => typed(opened, to)?,
    };
    let wrong = array.null_count().saturating_sub(nulls_of(opened));
    Ok((array, wrong as u64))
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
pub(super) fn redacted(array: &ArrayRef, is_refused: &[bool], refused: Refused, is_json: bool) -> ArrayRef {
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
