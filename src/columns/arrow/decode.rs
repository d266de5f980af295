//! Plaintext encodings to Arrow arrays, exactly or not at all.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, BinaryBuilder, BinaryViewBuilder, BooleanBuilder, FixedSizeBinaryBuilder,
    LargeBinaryBuilder, LargeStringBuilder, NullArray, PrimitiveBuilder, StringBuilder, StringViewBuilder,
};
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, DecimalType,
    DurationMicrosecondType, DurationMillisecondType, DurationNanosecondType, DurationSecondType, Float16Type,
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Time32MillisecondType, Time32SecondType,
    Time64MicrosecondType, Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type, i256,
};

use super::{ArrowColumnError, DAY_MS, floats, unit_of};
use crate::seal::plaintext::integer_value;
use crate::seal::{ByteColumn, Plaintext};

/// An array of type `to` with the values of `column`, whose values are plaintext encodings; a null or the
/// encoding of null is null. A value that `to` does not hold exactly is refused with its row.
pub fn decode_array(column: &ByteColumn<'_>, to: &DataType) -> Result<ArrayRef, ArrowColumnError> {
    let decoder = Decoder { column, to };
    match to {
        DataType::Null => decoder.nulls(),
        DataType::Boolean => decoder.booleans(),
        DataType::Int8 => decoder.integers::<Int8Type>(),
        DataType::Int16 => decoder.integers::<Int16Type>(),
        DataType::Int32 => decoder.integers::<Int32Type>(),
        DataType::Int64 => decoder.integers::<Int64Type>(),
        DataType::UInt8 => decoder.integers::<UInt8Type>(),
        DataType::UInt16 => decoder.integers::<UInt16Type>(),
        DataType::UInt32 => decoder.integers::<UInt32Type>(),
        DataType::UInt64 => decoder.integers::<UInt64Type>(),
        DataType::Float16 => decoder.floats::<Float16Type>(|bits| {
            floats::narrow_f16(bits).map(<Float16Type as ArrowPrimitiveType>::Native::from_bits)
        }),
        DataType::Float32 => decoder.floats::<Float32Type>(|bits| floats::narrow_f32(bits).map(f32::from_bits)),
        DataType::Float64 => decoder.floats::<Float64Type>(|bits| Some(f64::from_bits(bits))),
        DataType::Decimal32(p, s) => decoder.decimals::<Decimal32Type>(*p, *s, narrow),
        DataType::Decimal64(p, s) => decoder.decimals::<Decimal64Type>(*p, *s, narrow),
        DataType::Decimal128(p, s) => decoder.decimals::<Decimal128Type>(*p, *s, integer_value),
        DataType::Decimal256(p, s) => decoder.decimals::<Decimal256Type>(*p, *s, i256_value),
        DataType::Dictionary(_, values) => decoder.dictionary(values),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => decoder.texts(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            decoder.binaries()
        }
        _ => decoder.temporal(),
    }
}

struct Decoder<'a> {
    column: &'a ByteColumn<'a>,
    to: &'a DataType,
}

impl<'a> Decoder<'a> {
    fn temporal(&self) -> Result<ArrayRef, ArrowColumnError> {
        match self.to {
            DataType::Timestamp(unit, zone) => {
                let zone = zone.as_deref();
                match unit {
                    TimeUnit::Second => self.timestamps::<TimestampSecondType>(*unit, zone),
                    TimeUnit::Millisecond => self.timestamps::<TimestampMillisecondType>(*unit, zone),
                    TimeUnit::Microsecond => self.timestamps::<TimestampMicrosecondType>(*unit, zone),
                    TimeUnit::Nanosecond => self.timestamps::<TimestampNanosecondType>(*unit, zone),
                }
            }
            DataType::Date32 => self.primitives::<Date32Type>(|value| match value {
                Plaintext::Date(days) => Some(days),
                _ => None,
            }),
            DataType::Date64 => self.primitives::<Date64Type>(millis_of_date),
            DataType::Time32(TimeUnit::Second) => self.times::<Time32SecondType>(TimeUnit::Second),
            DataType::Time32(TimeUnit::Millisecond) => self.times::<Time32MillisecondType>(TimeUnit::Millisecond),
            DataType::Time64(TimeUnit::Microsecond) => self.times::<Time64MicrosecondType>(TimeUnit::Microsecond),
            DataType::Time64(TimeUnit::Nanosecond) => self.times::<Time64NanosecondType>(TimeUnit::Nanosecond),
            DataType::Duration(unit) => match unit {
                TimeUnit::Second => self.durations::<DurationSecondType>(*unit),
                TimeUnit::Millisecond => self.durations::<DurationMillisecondType>(*unit),
                TimeUnit::Microsecond => self.durations::<DurationMicrosecondType>(*unit),
                TimeUnit::Nanosecond => self.durations::<DurationNanosecondType>(*unit),
            },
            other => Err(ArrowColumnError::Unsupported {
                data_type: other.clone(),
            }),
        }
    }

    fn nulls(&self) -> Result<ArrayRef, ArrowColumnError> {
        self.each(|row, value| match value {
            None => Ok(()),
            Some(_) => Err(self.mismatch(row)),
        })?;
        Ok(Arc::new(NullArray::new(self.column.len())))
    }

    fn booleans(&self) -> Result<ArrayRef, ArrowColumnError> {
        let mut builder = BooleanBuilder::with_capacity(self.column.len());
        self.each(|row, value| {
            match value {
                None => builder.append_null(),
                Some(Plaintext::Bool(value)) => builder.append_value(value),
                Some(_) => return Err(self.mismatch(row)),
            }
            Ok(())
        })?;
        Ok(Arc::new(builder.finish()))
    }

    fn integers<T: ArrowPrimitiveType<Native: TryFrom<i128>>>(&self) -> Result<ArrayRef, ArrowColumnError> {
        self.primitives::<T>(|value| match value {
            Plaintext::Integer(bytes) => narrow(bytes),
            _ => None,
        })
    }

    fn floats<T: ArrowPrimitiveType>(
        &self,
        value: impl Fn(u64) -> Option<T::Native>,
    ) -> Result<ArrayRef, ArrowColumnError> {
        self.primitives::<T>(|plaintext| match plaintext {
            Plaintext::Float64(bits) => value(bits),
            _ => None,
        })
    }

    fn decimals<T: DecimalType>(
        &self,
        precision: u8,
        scale: i8,
        value: impl Fn(&[u8]) -> Option<T::Native>,
    ) -> Result<ArrayRef, ArrowColumnError> {
        self.primitives::<T>(|plaintext| match plaintext {
            Plaintext::Decimal { scale: found, unscaled } if found == scale => {
                value(unscaled).filter(|value| T::validate_decimal_precision(*value, precision, scale).is_ok())
            }
            _ => None,
        })
    }

    fn timestamps<T: ArrowPrimitiveType<Native = i64>>(
        &self,
        wanted: TimeUnit,
        wanted_zone: Option<&str>,
    ) -> Result<ArrayRef, ArrowColumnError> {
        self.primitives::<T>(|value| match value {
            Plaintext::Timestamp { unit, count, zone } if unit == unit_of(wanted) && zone == wanted_zone => Some(count),
            _ => None,
        })
    }

    fn times<T: ArrowPrimitiveType<Native: TryFrom<i64>>>(
        &self,
        wanted: TimeUnit,
    ) -> Result<ArrayRef, ArrowColumnError> {
        self.primitives::<T>(|value| match value {
            Plaintext::Time { unit, count } if unit == unit_of(wanted) => count.try_into().ok(),
            _ => None,
        })
    }

    fn durations<T: ArrowPrimitiveType<Native = i64>>(&self, wanted: TimeUnit) -> Result<ArrayRef, ArrowColumnError> {
        self.primitives::<T>(|value| match value {
            Plaintext::Duration { unit, count } if unit == unit_of(wanted) => Some(count),
            _ => None,
        })
    }

    fn primitives<T: ArrowPrimitiveType>(
        &self,
        read: impl Fn(Plaintext<'_>) -> Option<T::Native>,
    ) -> Result<ArrayRef, ArrowColumnError> {
        // The match in `decode_array` pairs `T` with `to`, which `with_data_type` insists on.
        let mut builder = PrimitiveBuilder::<T>::with_capacity(self.column.len()).with_data_type(self.to.clone());
        self.each(|row, value| {
            match value {
                None => builder.append_null(),
                Some(value) => builder.append_value(read(value).ok_or_else(|| self.mismatch(row))?),
            }
            Ok(())
        })?;
        Ok(Arc::new(builder.finish()))
    }

    fn texts(&self) -> Result<ArrayRef, ArrowColumnError> {
        let values = self.column.len();
        let bytes = self.column.value_bytes();
        match self.to {
            DataType::LargeUtf8 => {
                let mut builder = LargeStringBuilder::with_capacity(values, bytes);
                self.each_text(|text| builder.append_option(text))?;
                Ok(Arc::new(builder.finish()))
            }
            DataType::Utf8View => {
                let mut builder = StringViewBuilder::with_capacity(values);
                self.each_text(|text| builder.append_option(text))?;
                Ok(Arc::new(builder.finish()))
            }
            _ => {
                // A column holds less than 2 GiB, so 32-bit offsets do not overflow.
                let mut builder = StringBuilder::with_capacity(values, bytes);
                self.each_text(|text| builder.append_option(text))?;
                Ok(Arc::new(builder.finish()))
            }
        }
    }

    fn each_text(&self, mut take: impl FnMut(Option<&str>)) -> Result<(), ArrowColumnError> {
        self.each(|row, value| {
            match value {
                None => take(None),
                Some(Plaintext::Utf8(text)) => take(Some(text)),
                Some(_) => return Err(self.mismatch(row)),
            }
            Ok(())
        })
    }

    fn binaries(&self) -> Result<ArrayRef, ArrowColumnError> {
        let values = self.column.len();
        let bytes = self.column.value_bytes();
        match self.to {
            DataType::FixedSizeBinary(width) => self.fixed_binaries(*width),
            DataType::LargeBinary => {
                let mut builder = LargeBinaryBuilder::with_capacity(values, bytes);
                self.each_binary(|bytes| builder.append_option(bytes))?;
                Ok(Arc::new(builder.finish()))
            }
            DataType::BinaryView => {
                let mut builder = BinaryViewBuilder::with_capacity(values);
                self.each_binary(|bytes| builder.append_option(bytes))?;
                Ok(Arc::new(builder.finish()))
            }
            _ => {
                let mut builder = BinaryBuilder::with_capacity(values, bytes);
                self.each_binary(|bytes| builder.append_option(bytes))?;
                Ok(Arc::new(builder.finish()))
            }
        }
    }

    fn each_binary(&self, mut take: impl FnMut(Option<&[u8]>)) -> Result<(), ArrowColumnError> {
        self.each(|row, value| {
            match value {
                None => take(None),
                Some(Plaintext::Bytes(bytes)) => take(Some(bytes)),
                Some(_) => return Err(self.mismatch(row)),
            }
            Ok(())
        })
    }

    fn fixed_binaries(&self, width: i32) -> Result<ArrayRef, ArrowColumnError> {
        if width < 0 {
            return Err(ArrowColumnError::Unsupported {
                data_type: self.to.clone(),
            });
        }
        let mut builder = FixedSizeBinaryBuilder::with_capacity(self.column.len(), width);
        self.each(|row, value| {
            match value {
                None => builder.append_null(),
                Some(Plaintext::Bytes(bytes)) => builder.append_value(bytes).map_err(|_| self.mismatch(row))?,
                Some(_) => return Err(self.mismatch(row)),
            }
            Ok(())
        })?;
        Ok(Arc::new(builder.finish()))
    }

    fn dictionary(&self, values: &DataType) -> Result<ArrayRef, ArrowColumnError> {
        let array = decode_array(self.column, values)?;
        // The cast's own message may hold a value; it fails when the keys are too few.
        arrow::compute::cast(&array, self.to).map_err(|_| ArrowColumnError::TooLarge { to: self.to.clone() })
    }

    /// Hands every value over with its row, nulls of both kinds as `None`.
    fn each(
        &self,
        mut take: impl FnMut(usize, Option<Plaintext<'a>>) -> Result<(), ArrowColumnError>,
    ) -> Result<(), ArrowColumnError> {
        for (row, encoding) in self.column.iter().enumerate() {
            let plaintext = encoding.map(Plaintext::decode).transpose()?;
            take(row, plaintext.filter(|plaintext| *plaintext != Plaintext::Null))?;
        }
        Ok(())
    }

    fn mismatch(&self, row: usize) -> ArrowColumnError {
        ArrowColumnError::Mismatch {
            row,
            to: self.to.clone(),
        }
    }
}

fn narrow<N: TryFrom<i128>>(bytes: &[u8]) -> Option<N> {
    integer_value(bytes)?.try_into().ok()
}

fn i256_value(bytes: &[u8]) -> Option<i256> {
    let fill = if *bytes.first()? >= 0x80 { 0xff } else { 0 };
    let mut wide = [fill; 32];
    wide[32usize.checked_sub(bytes.len())?..].copy_from_slice(bytes);
    Some(i256::from_be_bytes(wide))
}

fn millis_of_date(value: Plaintext<'_>) -> Option<i64> {
    match value {
        Plaintext::Date(days) => Some(i64::from(days) * DAY_MS),
        Plaintext::Timestamp {
            unit,
            count,
            zone: None,
        } if unit == unit_of(TimeUnit::Millisecond) => Some(count),
        _ => None,
    }
}
