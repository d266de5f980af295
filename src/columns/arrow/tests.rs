use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::TimeUnit;
use arrow::datatypes::*;
use arrow_schema::extension::{EXTENSION_TYPE_METADATA_KEY, EXTENSION_TYPE_NAME_KEY, ExtensionType};
use proptest::prelude::*;

use super::format::{format_of, parse_format};
use super::*;
use crate::seal::{PlainColumn, SealedColumn};

/// Encodes and decodes; compares data types, validity and bits.
fn assert_round_trip(array: &dyn Array) {
    for (pad_to, seal_nulls) in [(None, false), (Some(32), true)] {
        let column = encode_array(array, pad_to, seal_nulls).unwrap();
        assert_eq!(column.view().len(), array.len());
        let nulls = column.view().iter().filter(Option::is_none).count();
        assert_eq!(nulls, if seal_nulls { 0 } else { array.logical_null_count() });
        let back = decode_array(&column.view(), array.data_type()).unwrap();
        assert_eq!(back.data_type(), array.data_type());
        assert_eq!(bits(&back), bits(&array.slice(0, array.len())));
    }
}

/// Every value as bytes: floats compare by their bits.
fn bits(array: &dyn Array) -> Vec<Option<Vec<u8>>> {
    let column = encode_array(array, None, false).unwrap();
    column.view().iter().map(|value| value.map(<[u8]>::to_vec)).collect()
}

fn of<T: ArrowPrimitiveType>(values: Vec<Option<T::Native>>, data_type: &DataType) -> PrimitiveArray<T> {
    PrimitiveArray::<T>::from_iter(values).with_data_type(data_type.clone())
}

macro_rules! integers_round_trip {
    ($($native:ident $type:ident),*) => {
        proptest! {
            $(#[test]
            fn $native(values: Vec<Option<$native>>) {
                assert_round_trip(&of::<$type>(values.clone(), &$type::DATA_TYPE));
                let array = of::<$type>(values, &$type::DATA_TYPE);
                let column = encode_array(&array, None, false).unwrap();
                let back = decode_array(&column.view(), array.data_type()).unwrap();
                prop_assert_eq!(back.as_primitive::<$type>(), &array);
            })*
        }
    };
}

mod integers_come_back {
    use super::*;
    integers_round_trip!(i8 Int8Type, i16 Int16Type, i32 Int32Type, i64 Int64Type, u8 UInt8Type, u16 UInt16Type, u32 UInt32Type, u64 UInt64Type);
}

proptest! {
    #[test]
    fn floats_come_back_bit_for_bit(narrow: Vec<Option<u32>>, wide: Vec<Option<u64>>, half: Vec<Option<u16>>) {
        type Half = <Float16Type as ArrowPrimitiveType>::Native;
        let f32s: Float32Array = narrow.iter().map(|bits| bits.map(f32::from_bits)).collect();
        let back = decode_array(&encode_array(&f32s, None, false).unwrap().view(), &DataType::Float32).unwrap();
        let back: Vec<Option<u32>> = back.as_primitive::<Float32Type>().iter().map(|v| v.map(f32::to_bits)).collect();
        prop_assert_eq!(back, narrow);
        let f64s: Float64Array = wide.iter().map(|bits| bits.map(f64::from_bits)).collect();
        let back = decode_array(&encode_array(&f64s, None, false).unwrap().view(), &DataType::Float64).unwrap();
        let back: Vec<Option<u64>> = back.as_primitive::<Float64Type>().iter().map(|v| v.map(f64::to_bits)).collect();
        prop_assert_eq!(back, wide);
        let f16s: Float16Array = half.iter().map(|bits| bits.map(Half::from_bits)).collect();
        let back = decode_array(&encode_array(&f16s, None, false).unwrap().view(), &DataType::Float16).unwrap();
        let back: Vec<Option<u16>> = back.as_primitive::<Float16Type>().iter().map(|v| v.map(Half::to_bits)).collect();
        prop_assert_eq!(back, half);
    }

    #[test]
    fn text_and_binary_come_back_in_every_layout(texts: Vec<Option<String>>, blobs: Vec<Option<Vec<u8>>>, fixed: Vec<Option<[u8; 5]>>) {
        assert_round_trip(&StringArray::from_iter(texts.clone()));
        assert_round_trip(&LargeStringArray::from_iter(texts.clone()));
        assert_round_trip(&StringViewArray::from_iter(texts.clone()));
        assert_round_trip(&BinaryArray::from_iter(blobs.clone()));
        assert_round_trip(&LargeBinaryArray::from_iter(blobs.clone()));
        assert_round_trip(&BinaryViewArray::from_iter(blobs));
        let fixed = FixedSizeBinaryArray::try_from_sparse_iter_with_size(fixed.iter().map(Option::as_ref), 5).unwrap();
        assert_round_trip(&fixed);
        let dictionary: DictionaryArray<Int32Type> = texts.iter().map(Option::as_deref).collect();
        assert_round_trip(&dictionary);
        let text = decode_array(&encode_array(&dictionary, None, false).unwrap().view(), &DataType::Utf8).unwrap();
        prop_assert_eq!(text.as_string::<i32>(), &StringArray::from_iter(texts));
    }

    #[test]
    fn decimals_come_back_with_their_scale(small: Vec<Option<i32>>, wide: Vec<Option<i64>>, scale in -5i8..9) {
        let clamp = |value: i64, digits: u32| value % 10i64.pow(digits);
        let small: Vec<Option<i32>> = small.into_iter().map(|v| v.map(|v| v % 1_000_000_000)).collect();
        assert_round_trip(&of::<Decimal32Type>(small, &DataType::Decimal32(9, scale)));
        assert_round_trip(&of::<Decimal64Type>(wide.iter().map(|v| v.map(|v| clamp(v, 18))).collect(), &DataType::Decimal64(18, scale)));
        assert_round_trip(&of::<Decimal128Type>(wide.iter().map(|v| v.map(|v| i128::from(v) * i128::from(v))).collect(), &DataType::Decimal128(38, scale)));
        let huge = |v: i64| i256::from_i128(i128::from(v) * i128::from(v)).wrapping_mul(i256::from_i128(i128::from(v)));
        assert_round_trip(&of::<Decimal256Type>(wide.iter().map(|v| v.map(huge)).collect(), &DataType::Decimal256(76, scale)));
    }

    #[test]
    fn dates_and_times_come_back_with_unit_and_zone(counts: Vec<Option<i64>>, days: Vec<Option<i32>>, zone in prop::option::of("[+]0[0-9]:30|UTC|Europe/Berlin")) {
        let zone: Option<Arc<str>> = zone.map(Into::into);
        assert_round_trip(&of::<TimestampSecondType>(counts.clone(), &DataType::Timestamp(TimeUnit::Second, zone.clone())));
        assert_round_trip(&of::<TimestampMillisecondType>(counts.clone(), &DataType::Timestamp(TimeUnit::Millisecond, zone.clone())));
        assert_round_trip(&of::<TimestampMicrosecondType>(counts.clone(), &DataType::Timestamp(TimeUnit::Microsecond, zone.clone())));
        assert_round_trip(&of::<TimestampNanosecondType>(counts.clone(), &DataType::Timestamp(TimeUnit::Nanosecond, zone)));
        assert_round_trip(&of::<DurationSecondType>(counts.clone(), &DataType::Duration(TimeUnit::Second)));
        assert_round_trip(&of::<DurationMillisecondType>(counts.clone(), &DataType::Duration(TimeUnit::Millisecond)));
        assert_round_trip(&of::<DurationMicrosecondType>(counts.clone(), &DataType::Duration(TimeUnit::Microsecond)));
        assert_round_trip(&of::<DurationNanosecondType>(counts.clone(), &DataType::Duration(TimeUnit::Nanosecond)));
        assert_round_trip(&of::<Time64MicrosecondType>(counts.clone(), &DataType::Time64(TimeUnit::Microsecond)));
        assert_round_trip(&of::<Time64NanosecondType>(counts.clone(), &DataType::Time64(TimeUnit::Nanosecond)));
        assert_round_trip(&of::<Time32SecondType>(days.clone(), &DataType::Time32(TimeUnit::Second)));
        assert_round_trip(&of::<Time32MillisecondType>(days.clone(), &DataType::Time32(TimeUnit::Millisecond)));
        assert_round_trip(&of::<Date32Type>(days.clone(), &DataType::Date32));
        assert_round_trip(&of::<Date64Type>(counts, &DataType::Date64));
        assert_round_trip(&of::<Date64Type>(days.iter().map(|d| d.map(|d| i64::from(d) * DAY_MS)).collect(), &DataType::Date64));
    }

    #[test]
    fn sealed_columns_come_back_from_arrow(values: Vec<Option<Vec<u8>>>, skip in 0usize..3) {
        let mut column = SealedColumn::with_capacity(0, 0);
        for value in &values {
            match value {
                Some(value) => column.push(value).unwrap(),
                None => column.push_null().unwrap(),
            }
        }
        let array = sealed_array(&column.view());
        let back = sealed_column(&array).unwrap();
        prop_assert!(back.view().iter().eq(values.iter().map(Option::as_deref)));
        // A slice, whose validity does not start at a byte.
        let skip = skip.min(array.len());
        let back = sealed_column(&array.slice(skip, array.len() - skip)).unwrap();
        prop_assert!(back.view().iter().eq(values[skip..].iter().map(Option::as_deref)));
    }
}

#[test]
fn booleans_nulls_and_slices_come_back() {
    let booleans = BooleanArray::from(vec![Some(true), None, Some(false), Some(true)]);
    assert_round_trip(&booleans);
    assert_round_trip(&booleans.slice(1, 3));
    assert_round_trip(&NullArray::new(3));
    assert_round_trip(&Int64Array::from(vec![Some(1), None, Some(-3)]).slice(1, 2));
    assert_round_trip(&TimestampSecondArray::from(vec![Some(1), None, Some(-3)]).slice(1, 2));
    assert_round_trip(&DictionaryArray::<Int8Type>::from_iter([Some("a"), None, Some("a"), Some("b")]).slice(1, 3));
    assert_round_trip(&DictionaryArray::<Int8Type>::from_iter([None::<&str>, None]));
}

#[test]
fn equal_values_of_a_dictionary_and_a_plain_array_encode_alike() {
    let texts = [Some("a"), None, Some("a"), Some("b")];
    assert_eq!(
        bits(&DictionaryArray::<Int8Type>::from_iter(texts)),
        bits(&StringArray::from_iter(texts))
    );
}

#[test]
fn nested_arrays_are_refused_by_name() {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1)])]);
    let error = encode_array(&list, None, false).err().unwrap();
    assert!(matches!(error, ArrowColumnError::Unsupported { .. }));
    assert!(error.to_string().contains("List"), "{error}");
    let column = PlainColumn::with_capacity(0, 0);
    assert!(decode_array(&column.view(), list.data_type()).is_err());
}

#[test]
fn a_value_that_does_not_fit_is_refused_with_its_row() {
    let column = encode_array(&Int64Array::from(vec![Some(1), Some(300)]), None, false).unwrap();
    let to = |data_type| decode_array(&column.view(), &data_type).err();
    assert_eq!(
        to(DataType::UInt8),
        Some(ArrowColumnError::Mismatch {
            row: 1,
            to: DataType::UInt8
        })
    );
    for other in [
        DataType::Utf8,
        DataType::Binary,
        DataType::Boolean,
        DataType::Float64,
        DataType::Date32,
        DataType::Null,
        DataType::FixedSizeBinary(1),
        DataType::Decimal128(10, 0),
        DataType::Timestamp(TimeUnit::Second, None),
        DataType::Time32(TimeUnit::Second),
        DataType::Duration(TimeUnit::Second),
    ] {
        assert_eq!(
            to(other.clone()),
            Some(ArrowColumnError::Mismatch { row: 0, to: other })
        );
    }
    assert!(to(DataType::Time32(TimeUnit::Nanosecond)).is_some());
    let decimals = of::<Decimal128Type>(vec![Some(12_345)], &DataType::Decimal128(5, 2));
    let column = encode_array(&decimals, None, false).unwrap();
    assert!(decode_array(&column.view(), &DataType::Decimal128(4, 2)).is_err());
    assert!(decode_array(&column.view(), &DataType::Decimal128(5, 1)).is_err());
    assert!(decode_array(&column.view(), &DataType::Decimal32(5, 2)).is_ok());
}

fn metadata(sealed_type: SealedType) -> SealedMetadata {
    SealedMetadata {
        label: "user.email".to_owned(),
        sealed_type,
    }
}

#[test]
fn a_sealed_field_says_label_and_type() {
    let field = sealed_field("email", metadata(SealedType::Arrow(DataType::Utf8))).unwrap();
    assert_eq!(field.metadata()[EXTENSION_TYPE_NAME_KEY], "sealflow.sealed");
    assert_eq!(
        field.metadata()[EXTENSION_TYPE_METADATA_KEY],
        r#"{"label":"user.email","type":"u"}"#
    );
    let sealed = field.try_extension_type::<Sealed>().unwrap();
    assert_eq!(sealed.metadata(), &metadata(SealedType::Arrow(DataType::Utf8)));
    let field = sealed_field("email", metadata(SealedType::Json)).unwrap();
    assert_eq!(
        field.try_extension_type::<Sealed>().unwrap().metadata().sealed_type,
        SealedType::Json
    );
    let list = DataType::new_list(DataType::Utf8, true);
    assert!(sealed_field("email", metadata(SealedType::Arrow(list))).is_err());
}

#[test]
fn the_wrong_storage_or_metadata_is_refused() {
    for storage in [
        DataType::Utf8,
        DataType::LargeBinary,
        DataType::BinaryView,
        DataType::FixedSizeBinary(47),
    ] {
        assert!(
            Sealed::try_new(&storage, metadata(SealedType::Json)).is_err(),
            "{storage}"
        );
    }
    for text in [
        None,
        Some(""),
        Some("{}"),
        Some(r#"{"label":"a"}"#),
        Some(r#"{"label":"a","type":"x"}"#),
        Some("[1]"),
    ] {
        assert!(Sealed::deserialize_metadata(text).is_err(), "{text:?}");
    }
}

#[test]
fn every_type_that_can_be_sealed_has_a_name_that_reads_back() {
    let berlin = Some(Arc::from("Europe/Berlin"));
    for (name, data_type) in [
        ("l", DataType::Int64),
        ("vu", DataType::Utf8View),
        ("w:16", DataType::FixedSizeBinary(16)),
        ("d:10,2", DataType::Decimal128(10, 2)),
        ("d:10,-2,256", DataType::Decimal256(10, -2)),
        ("d:9,0,32", DataType::Decimal32(9, 0)),
        ("d:9,0,64", DataType::Decimal64(9, 0)),
        ("tsm:Europe/Berlin", DataType::Timestamp(TimeUnit::Millisecond, berlin)),
        ("tsn:", DataType::Timestamp(TimeUnit::Nanosecond, None)),
        ("tts", DataType::Time32(TimeUnit::Second)),
        ("ttm", DataType::Time32(TimeUnit::Millisecond)),
        ("ttn", DataType::Time64(TimeUnit::Nanosecond)),
        ("tDu", DataType::Duration(TimeUnit::Microsecond)),
        ("tdm", DataType::Date64),
    ] {
        assert_eq!(format_of(&data_type).as_deref(), Some(name));
        assert_eq!(parse_format(name), Some(data_type));
    }
    assert_eq!(
        format_of(&DataType::Dictionary(
            Box::new(DataType::Int8),
            Box::new(DataType::Utf8)
        ))
        .as_deref(),
        Some("u")
    );
    for name in [
        "",
        "x",
        "w:",
        "w:-1",
        "d:1",
        "d:1,2,3",
        "d:1,2,128,1",
        "ts",
        "tsx:",
        "tD",
        "tt",
        "ttss",
    ] {
        assert_eq!(parse_format(name), None, "{name}");
    }
}
