//! The work: a column of values, sealed and opened whole or value by value.

use std::time::Instant;

use sealflow_benchmarks::Error;
use sealflow_benchmarks::measure::{Contender, Cost, cpu_time};
use sealflow_kernel::{Aads, Batch, Cipher, Kernel, NONCE_LEN, OVERHEAD, PREFIX_LEN, SealedBatch, TAG_LEN, Values};

use super::peers::Peer;
use super::{KEY, Work};

const PREFIX: [u8; PREFIX_LEN] = [2; PREFIX_LEN];
const START: [u8; NONCE_LEN] = [3; NONCE_LEN];
/// As long as the AAD of a label like `payment.cards[*].number`.
const AAD: [u8; 60] = [7; 60];
/// The id of a row: as long, with its own length, as a path and a short id.
const ROW: [u8; 20] = [8; 20];
/// So much of a column that it and its sealed form stay in the second cache of a core.
const BYTES: usize = 256 << 10;
/// A kernel's caller gives it thousands of values.
const MOST_VALUES: usize = 4_096;
/// Bytes of a round: a millisecond or so of the fastest.
const ROUND_BYTES: usize = 8 << 20;

/// Values without nulls, and the same sealed.
pub(super) struct Column {
    offsets: Vec<i32>,
    bytes: Vec<u8>,
    sealed_offsets: Vec<i32>,
    sealed: Vec<u8>,
    /// The row of each value, if it has one: offsets and bytes.
    rows: Option<(Vec<i32>, Vec<u8>)>,
    passes: u32,
}

impl Column {
    /// Values of `size` bytes.
    pub(super) fn equal(size: usize) -> Result<Self, Error> {
        let count = (BYTES / (size + OVERHEAD)).clamp(1, MOST_VALUES);
        Self::of((0..count).map(|_| size), false)
    }

    /// Values of 0 to 2 `size` bytes, each length as likely as any other.
    pub(super) fn mixed(size: usize) -> Result<Self, Error> {
        let count = (BYTES / (size + OVERHEAD)).clamp(1, MOST_VALUES);
        let mut state = 1_u64;
        let lens = (0..count).map(|_| {
            // Knuth's MMIX generator; its high bits are good.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % (2 * size + 1)
        });
        Self::of(lens, false)
    }

    /// The same values, each with an AAD of its own.
    pub(super) fn with_rows(&self) -> Result<Self, Error> {
        let lens = self.offsets.windows(2).map(|pair| range(pair).len());
        Self::of(lens, true)
    }

    fn of(lens: impl Iterator<Item = usize>, with_rows: bool) -> Result<Self, Error> {
        let (mut offsets, mut sealed_offsets) = (vec![0], vec![0]);
        let (mut end, mut sealed_end) = (0, 0);
        for len in lens {
            end += len;
            sealed_end += len + OVERHEAD;
            offsets.push(i32::try_from(end)?);
            sealed_offsets.push(i32::try_from(sealed_end)?);
        }
        let rows = (0..offsets.len()).map(|n| i32::try_from(n * ROW.len()));
        let rows: Vec<i32> = rows.collect::<Result<_, _>>()?;
        let ids = ROW.repeat(offsets.len() - 1);
        let mut column = Self {
            passes: u32::try_from((ROUND_BYTES / sealed_end).max(1))?,
            offsets,
            bytes: (0..end).map(|n| n as u8).collect(),
            sealed_offsets,
            sealed: Vec::with_capacity(sealed_end),
            rows: with_rows.then_some((rows, ids)),
        };
        let cipher = Cipher::on(Kernel::Portable, &KEY);
        let mut sealed = Vec::new();
        column.by_kernel(Work::Seal, &cipher, &mut sealed, &mut Vec::new())?;
        column.sealed = sealed;
        Ok(column)
    }

    /// A contender that does `run` so many times that it can be measured; its cost is that of one value.
    pub(super) fn contender<'a>(&self, name: &str, mut run: impl FnMut() -> Result<(), Error> + 'a) -> Contender<'a> {
        let (passes, values) = (self.passes, f64::from(self.passes) * (self.offsets.len() - 1) as f64);
        Contender::elsewhere(name, move || {
            let (cpu, wall) = (cpu_time(), Instant::now());
            for _ in 0..passes {
                run()?;
            }
            Ok(Cost {
                cpu: cpu_time().saturating_sub(cpu).as_secs_f64() / values,
                wall: wall.elapsed().as_secs_f64() / values,
                peak_memory: None,
            })
        })
    }

    /// What the work is to write.
    pub(super) fn wanted(&self, work: Work) -> &[u8] {
        match work {
            Work::Seal => &self.sealed,
            Work::Open => &self.bytes,
        }
    }

    /// Seals or opens it by a kernel; `out` then has the bytes.
    pub(super) fn by_kernel(
        &self,
        work: Work,
        cipher: &Cipher,
        out: &mut Vec<u8>,
        opened: &mut Vec<bool>,
    ) -> Result<(), Error> {
        out.clear();
        opened.clear();
        let values = Values::new(None, &self.offsets, &self.bytes).ok_or("no column")?;
        let aads = match &self.rows {
            Some((offsets, ids)) => Aads::Each {
                fixed: &AAD,
                rows: Values::new(None, offsets, ids).ok_or("no column")?,
            },
            None => Aads::Same(&AAD),
        };
        let done = match work {
            Work::Seal => cipher.seal(
                &Batch {
                    prefix: PREFIX,
                    start: START,
                    aads,
                    values,
                },
                out,
            ),
            Work::Open => {
                let values = Values::new(None, &self.sealed_offsets, &self.sealed).ok_or("no column")?;
                cipher.open(&SealedBatch { aads, values }, out, opened)
            }
        };
        done.map_err(|error| format!("the column is refused: {error:?}"))?;
        // The bytes are compared once, before the first round.
        if opened.iter().all(|opened| *opened) {
            Ok(())
        } else {
            Err("a value did not open".into())
        }
    }

    /// The same value by value; `out` is to have [`Column::room`] bytes, and `aad` is working memory.
    pub(super) fn by_peer<P: Peer>(
        &self,
        work: Work,
        peer: &P,
        out: &mut [u8],
        aad: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let (plain, sealed) = (self.offsets.windows(2), self.sealed_offsets.windows(2));
        aad.clear();
        aad.extend_from_slice(&AAD);
        let mut at = 0;
        for (n, (plain, sealed)) in plain.zip(sealed).enumerate() {
            let (plain, sealed) = (&self.bytes[range(plain)], &self.sealed[range(sealed)]);
            if self.rows.is_some() {
                aad.truncate(AAD.len());
                aad.extend_from_slice(&(ROW.len() as u32).to_le_bytes());
                aad.extend_from_slice(&ROW);
            }
            let done = match work {
                Work::Seal => {
                    let nonce = nonce(n);
                    let (header, body) = out[at..at + plain.len() + OVERHEAD].split_at_mut(PREFIX_LEN + NONCE_LEN);
                    header[..PREFIX_LEN].copy_from_slice(&PREFIX);
                    header[PREFIX_LEN..].copy_from_slice(&nonce);
                    at += plain.len() + OVERHEAD;
                    peer.seal(nonce, aad, plain, body)
                }
                Work::Open => {
                    let (header, body) = sealed.split_at(PREFIX_LEN + NONCE_LEN);
                    let mut nonce = [0; NONCE_LEN];
                    nonce.copy_from_slice(&header[PREFIX_LEN..]);
                    // The tag's place is the next value's.
                    let place = &mut out[at..at + body.len()];
                    at += plain.len();
                    peer.open(nonce, aad, body, place)
                }
            };
            if !done {
                return Err("a value was refused".into());
            }
        }
        Ok(())
    }

    /// Bytes that [`Column::by_peer`] writes into.
    pub(super) fn room(&self, work: Work) -> usize {
        self.wanted(work).len() + TAG_LEN
    }
}

fn range(pair: &[i32]) -> std::ops::Range<usize> {
    pair[0] as usize..pair[1] as usize
}

/// The nonce of value n.
fn nonce(n: usize) -> [u8; NONCE_LEN] {
    let mut nonce = START;
    let low = u32::from_be_bytes([START[8], START[9], START[10], START[11]]).wrapping_add(n as u32);
    nonce[8..].copy_from_slice(&low.to_be_bytes());
    nonce
}
