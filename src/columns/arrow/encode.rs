//! Arrow arrays to plaintext encodings.

use arrow::array::{Array, ArrayAccessor, ArrowPrimitiveType, AsArray, PrimitiveArray};
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type,
    DurationMicrosecondType, DurationMillisecondType, DurationNanosecondType, DurationSecondType, Float16Type,
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Time32MillisecondType, Time32SecondType,
    Time64MicrosecondType, Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use zeroize::Zeroizing;

use super::{ArrowColumnError, DAY_MS, floats, unit_of};
use crate::seal::plaintext::integer_bytes;
use crate::seal::{ColumnError, PlainColumn, Plaintext};

/// The plaintext encodings of every value of `array`. Nulls stay null, or with `seal_nulls` become the encoding
/// of null, so that a sealed column does not show where they are.
pub fn encode_array(array: &dyn Array, pad_to: Option<u32>, seal_nulls: bool) -> Result<PlainColumn, ArrowColumnError> {
    let column = PlainColumn::with_capacity(array.len(), array.len() * 16);
    let mut encoder = Encoder {
        column,
        pad_to,
        seal_nulls,
    };
    encoder.array(array)?;
    Ok(encoder.column)
}

struct Encoder {
    column: PlainColumn,
    pad_to: Option<u32>,
    seal_nulls: bool,
}

impl Encoder {
    fn array(&mut self, array: &dyn Array) -> Result<(), ArrowColumnError> {
        match array.data_type() {
            DataType::Null => Ok((0..array.len()).try_for_each(|_| self.null())?),
            DataType::Boolean => self.each(&array.as_boolean(), |value, put| put(Plaintext::Bool(value))),
            DataType::Int8 => self.integers::<Int8Type>(array),
            DataType::Int16 => self.integers::<Int16Type>(array),
            DataType::Int32 => self.integers::<Int32Type>(array),
            DataType::Int64 => self.integers::<Int64Type>(array),
            DataType::UInt8 => self.integers::<UInt8Type>(array),
            DataType::UInt16 => self.integers::<UInt16Type>(array),
            DataType::UInt32 => self.integers::<UInt32Type>(array),
            DataType::UInt64 => self.integers::<UInt64Type>(array),
            DataType::Float16 => self.floats::<Float16Type>(array, |value| floats::widen_f16(value.to_bits())),
            DataType::Float32 => self.floats::<Float32Type>(array, |value| floats::widen_f32(value.to_bits())),
            DataType::Float64 => self.floats::<Float64Type>(array, f64::to_bits),
            DataType::Decimal32(_, scale) => self.decimals::<Decimal32Type>(array, *scale),
            DataType::Decimal64(_, scale) => self.decimals::<Decimal64Type>(array, *scale),
            DataType::Decimal128(_, scale) => self.decimals::<Decimal128Type>(array, *scale),
            DataType::Decimal256(_, scale) => self.wide_decimals(array, *scale),
            DataType::Utf8 => self.each(&array.as_string::<i32>(), |text, put| put(Plaintext::Utf8(text))),
            DataType::LargeUtf8 => self.each(&array.as_string::<i64>(), |text, put| put(Plaintext::Utf8(text))),
            DataType::Utf8View => self.each(&array.as_string_view(), |text, put| put(Plaintext::Utf8(text))),
            DataType::Binary => self.each(&array.as_binary::<i32>(), |bytes, put| put(Plaintext::Bytes(bytes))),
            DataType::LargeBinary => self.each(&array.as_binary::<i64>(), |bytes, put| put(Plaintext::Bytes(bytes))),
            DataType::BinaryView => self.each(&array.as_binary_view(), |bytes, put| put(Plaintext::Bytes(bytes))),
            DataType::FixedSizeBinary(_) => {
                self.each(&array.as_fixed_size_binary(), |bytes, put| put(Plaintext::Bytes(bytes)))
            }
            DataType::Dictionary(_, _) => self.dictionary(array),
            _ => self.temporal(array),
        }
    }

    fn temporal(&mut self, array: &dyn Array) -> Result<(), ArrowColumnError> {
        match array.data_type() {
            DataType::Timestamp(unit, zone) => {
                let counts = match unit {
                    TimeUnit::Second => array.as_primitive::<TimestampSecondType>().values(),
                    TimeUnit::Millisecond => array.as_primitive::<TimestampMillisecondType>().values(),
                    TimeUnit::Microsecond => array.as_primitive::<TimestampMicrosecondType>().values(),
                    TimeUnit::Nanosecond => array.as_primitive::<TimestampNanosecondType>().values(),
                };
                let (unit, zone) = (unit_of(*unit), zone.as_deref());
                self.rows(array, |row| Plaintext::Timestamp {
                    unit,
                    count: counts[row],
                    zone,
                })
            }
            DataType::Date32 => self.primitives::<Date32Type>(array, Plaintext::Date),
            DataType::Date64 => self.primitives::<Date64Type>(array, date_of_millis),
            DataType::Time32(TimeUnit::Second) => self.times::<Time32SecondType>(array, TimeUnit::Second),
            DataType::Time32(_) => self.times::<Time32MillisecondType>(array, TimeUnit::Millisecond),
            DataType::Time64(TimeUnit::Microsecond) => {
                self.times::<Time64MicrosecondType>(array, TimeUnit::Microsecond)
            }
            DataType::Time64(_) => self.times::<Time64NanosecondType>(array, TimeUnit::Nanosecond),
            DataType::Duration(unit) => {
                let counts = match unit {
                    TimeUnit::Second => array.as_primitive::<DurationSecondType>().values(),
                    TimeUnit::Millisecond => array.as_primitive::<DurationMillisecondType>().values(),
                    TimeUnit::Microsecond => array.as_primitive::<DurationMicrosecondType>().values(),
                    TimeUnit::Nanosecond => array.as_primitive::<DurationNanosecondType>().values(),
                };
                let unit = unit_of(*unit);
                self.rows(array, |row| Plaintext::Duration {
                    unit,
                    count: counts[row],
                })
            }
            other => Err(ArrowColumnError::Unsupported {
                data_type: other.clone(),
            }),
        }
    }

    fn integers<T: ArrowPrimitiveType<Native: Into<i128>>>(
        &mut self,
        array: &dyn Array,
    ) -> Result<(), ArrowColumnError> {
        self.each(&primitive::<T>(array), |value, put| {
            put(Plaintext::Integer(&Zeroizing::new(integer_bytes(value.into()))));
        })
    }

    fn floats<T: ArrowPrimitiveType>(
        &mut self,
        array: &dyn Array,
        bits: impl Fn(T::Native) -> u64,
    ) -> Result<(), ArrowColumnError> {
        self.primitives::<T>(array, |value| Plaintext::Float64(bits(value)))
    }

    fn decimals<T: ArrowPrimitiveType<Native: Into<i128>>>(
        &mut self,
        array: &dyn Array,
        scale: i8,
    ) -> Result<(), ArrowColumnError> {
        self.each(&primitive::<T>(array), |value, put| {
            put(Plaintext::Decimal {
                scale,
                unscaled: &Zeroizing::new(integer_bytes(value.into())),
            });
        })
    }

    fn wide_decimals(&mut self, array: &dyn Array, scale: i8) -> Result<(), ArrowColumnError> {
        self.each(&primitive::<Decimal256Type>(array), |value, put| {
            let bytes = Zeroizing::new(value.to_be_bytes());
            put(Plaintext::Decimal {
                scale,
                unscaled: shortest(&*bytes),
            });
        })
    }

    fn times<T: ArrowPrimitiveType<Native: Into<i64>>>(
        &mut self,
        array: &dyn Array,
        unit: TimeUnit,
    ) -> Result<(), ArrowColumnError> {
        self.primitives::<T>(array, |count| Plaintext::Time {
            unit: unit_of(unit),
            count: count.into(),
        })
    }

    fn primitives<T: ArrowPrimitiveType>(
        &mut self,
        array: &dyn Array,
        plaintext: impl Fn(T::Native) -> Plaintext<'static>,
    ) -> Result<(), ArrowColumnError> {
        self.each(&primitive::<T>(array), |value, put| put(plaintext(value)))
    }

    /// Dictionaries by value: which values are equal must not show.
    fn dictionary(&mut self, array: &dyn Array) -> Result<(), ArrowColumnError> {
        let dictionary = array.as_any_dictionary();
        let values = encode_array(dictionary.values(), self.pad_to, false)?;
        if dictionary.values().is_empty() {
            return Ok((0..array.len()).try_for_each(|_| self.null())?);
        }
        let view = values.view();
        for (row, key) in dictionary.normalized_keys().into_iter().enumerate() {
            match view.get(key) {
                Some(encoding) if array.is_valid(row) => self.column.push(encoding)?,
                _ => self.null()?,
            }
        }
        Ok(())
    }

    fn rows<'a>(
        &mut self,
        array: &dyn Array,
        plaintext: impl Fn(usize) -> Plaintext<'a>,
    ) -> Result<(), ArrowColumnError> {
        for row in 0..array.len() {
            if array.is_null(row) {
                self.null()?;
            } else {
                self.put(plaintext(row))?;
            }
        }
        Ok(())
    }

    /// Encodes every value with `write`, which hands exactly one plaintext to its second argument.
    fn each<A: ArrayAccessor>(
        &mut self,
        array: &A,
        write: impl Fn(A::Item, &mut dyn FnMut(Plaintext<'_>)),
    ) -> Result<(), ArrowColumnError> {
        for row in 0..array.len() {
            if array.is_null(row) {
                self.null()?;
                continue;
            }
            let mut result = Ok(());
            write(array.value(row), &mut |plaintext| result = self.put(plaintext));
            result?;
        }
        Ok(())
    }

    fn put(&mut self, plaintext: Plaintext<'_>) -> Result<(), ColumnError> {
        let pad_to = self.pad_to;
        self.column
            .push_with(plaintext.encoded_len_bound(pad_to), |out| plaintext.encode(pad_to, out))
    }

    fn null(&mut self) -> Result<(), ColumnError> {
        if self.seal_nulls {
            self.put(Plaintext::Null)
        } else {
            self.column.push_null()
        }
    }
}

fn primitive<T: ArrowPrimitiveType>(array: &dyn Array) -> &PrimitiveArray<T> {
    array.as_primitive::<T>()
}

/// A `Date64` is a date if it is whole days, as its specification demands, else a local timestamp.
fn date_of_millis(millis: i64) -> Plaintext<'static> {
    match i32::try_from(millis / DAY_MS) {
        Ok(days) if millis % DAY_MS == 0 => Plaintext::Date(days),
        _ => Plaintext::Timestamp {
            unit: unit_of(TimeUnit::Millisecond),
            count: millis,
            zone: None,
        },
    }
}

/// Two's complement without redundant leading bytes; at least one byte stays.
fn shortest(bytes: &[u8]) -> &[u8] {
    let redundant = |pair: &&[u8]| (pair[0] == 0 && pair[1] < 0x80) || (pair[0] == 0xff && pair[1] >= 0x80);
    &bytes[bytes.windows(2).take_while(redundant).count()..]
}
