//! Names of Arrow types as format strings of the Arrow C data interface
//! (<https://arrow.apache.org/docs/format/CDataInterface.html>), which every Arrow library reads.
//!
//! Only types that have a plaintext encoding.

use arrow::datatypes::{DataType, TimeUnit};

const PLAIN: [(&str, DataType); 22] = [
    ("n", DataType::Null),
    ("b", DataType::Boolean),
    ("c", DataType::Int8),
    ("C", DataType::UInt8),
    ("s", DataType::Int16),
    ("S", DataType::UInt16),
    ("i", DataType::Int32),
    ("I", DataType::UInt32),
    ("l", DataType::Int64),
    ("L", DataType::UInt64),
    ("e", DataType::Float16),
    ("f", DataType::Float32),
    ("g", DataType::Float64),
    ("z", DataType::Binary),
    ("Z", DataType::LargeBinary),
    ("vz", DataType::BinaryView),
    ("u", DataType::Utf8),
    ("U", DataType::LargeUtf8),
    ("vu", DataType::Utf8View),
    ("tdD", DataType::Date32),
    ("tdm", DataType::Date64),
    ("tts", DataType::Time32(TimeUnit::Second)),
];

const UNITS: [(char, TimeUnit); 4] = [
    ('s', TimeUnit::Second),
    ('m', TimeUnit::Millisecond),
    ('u', TimeUnit::Microsecond),
    ('n', TimeUnit::Nanosecond),
];

/// The format string of a type; `None` for types that cannot be sealed.
pub(super) fn format_of(data_type: &DataType) -> Option<String> {
    if let Some((name, _)) = PLAIN.iter().find(|(_, known)| known == data_type) {
        return Some((*name).to_owned());
    }
    Some(match data_type {
        DataType::Dictionary(_, values) => format_of(values)?,
        DataType::FixedSizeBinary(width) => format!("w:{width}"),
        DataType::Decimal32(precision, scale) => format!("d:{precision},{scale},32"),
        DataType::Decimal64(precision, scale) => format!("d:{precision},{scale},64"),
        DataType::Decimal128(precision, scale) => format!("d:{precision},{scale}"),
        DataType::Decimal256(precision, scale) => format!("d:{precision},{scale},256"),
        DataType::Time32(unit) | DataType::Time64(unit) => format!("tt{}", unit_letter(*unit)?),
        DataType::Duration(unit) => format!("tD{}", unit_letter(*unit)?),
        DataType::Timestamp(unit, zone) => format!("ts{}:{}", unit_letter(*unit)?, zone.as_deref().unwrap_or("")),
        _ => return None,
    })
}

/// The type of a format string.
pub(super) fn parse_format(text: &str) -> Option<DataType> {
    if let Some((_, known)) = PLAIN.iter().find(|(name, _)| *name == text) {
        return Some(known.clone());
    }
    if let Some(width) = text.strip_prefix("w:") {
        return width
            .parse()
            .ok()
            .filter(|width| *width >= 0)
            .map(DataType::FixedSizeBinary);
    }
    if let Some(decimal) = text.strip_prefix("d:") {
        return parse_decimal(decimal);
    }
    if let Some(rest) = text.strip_prefix("ts") {
        let (unit, zone) = rest.split_once(':')?;
        return Some(DataType::Timestamp(
            parse_unit(unit)?,
            (!zone.is_empty()).then(|| zone.into()),
        ));
    }
    if let Some(unit) = text.strip_prefix("tD") {
        return parse_unit(unit).map(DataType::Duration);
    }
    match parse_unit(text.strip_prefix("tt")?)? {
        unit @ (TimeUnit::Second | TimeUnit::Millisecond) => Some(DataType::Time32(unit)),
        unit => Some(DataType::Time64(unit)),
    }
}

fn parse_decimal(text: &str) -> Option<DataType> {
    let mut parts = text.split(',');
    let precision = parts.next()?.parse().ok()?;
    let scale = parts.next()?.parse().ok()?;
    let bits = parts.next().unwrap_or("128");
    if parts.next().is_some() {
        return None;
    }
    match bits {
        "32" => Some(DataType::Decimal32(precision, scale)),
        "64" => Some(DataType::Decimal64(precision, scale)),
        "128" => Some(DataType::Decimal128(precision, scale)),
        "256" => Some(DataType::Decimal256(precision, scale)),
        _ => None,
    }
}

fn unit_letter(unit: TimeUnit) -> Option<char> {
    UNITS
        .iter()
        .find(|(_, known)| *known == unit)
        .map(|(letter, _)| *letter)
}

fn parse_unit(letter: &str) -> Option<TimeUnit> {
    UNITS
        .iter()
        .find(|(known, _)| letter.chars().eq([*known]))
        .map(|(_, unit)| *unit)
}
