//! Columns through every kernel of the machine: each value is bit for bit what `aes-gcm` and `aws-lc-rs` make of it, and opens
//! again, but for the one that somebody changed.
//!
//! An input says what kernels branch on: how many values, their lengths, which are null, the nonce, the AADs. Key and
//! plaintext, on which nothing may branch, are drawn from a number made of the whole input.
#![no_main]

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use libfuzzer_sys::fuzz_target;
use sealflow_kernel::{Aads, Batch, Cipher, KEY_LEN, Kernel, NONCE_LEN, OVERHEAD, PREFIX_LEN, SealedBatch, Values};

const PREFIX: [u8; PREFIX_LEN] = *b"prefix of nineteen.";
const MOST_LEN: usize = 4_096;
/// Plaintext of one input: more of it only makes executions rare.
const MOST_BYTES: usize = 24 * 1_024;

fuzz_target!(|bytes: &[u8]| {
    let column = Column::read(&mut Draw::new(bytes));
    let by_aes_gcm = column.sealed_by(aes_gcm(&column.key));
    assert!(by_aes_gcm == column.sealed_by(aws_lc(&column.key)));
    let sealed_column = SealedColumn::of(&column, &by_aes_gcm);
    for kernel in Kernel::all() {
        let cipher = Cipher::on(kernel, &column.key);
        assert_eq!(cipher.kernel(), kernel);
        let sealed = column.sealed(&cipher);
        if sealed != by_aes_gcm {
            let first = sealed.iter().zip(&by_aes_gcm).position(|(ours, theirs)| ours != theirs);
            panic!("{kernel:?}: differs at {first:?}, {column:?}");
        }
        let (plain, opens) = sealed_column.opened(&cipher, &column);
        if plain != sealed_column.plain || opens != sealed_column.opens {
            panic!("{kernel:?}: opens otherwise, {:?}, {column:?}", column.change);
        }
    }
});

/// What is sealed.
struct Column {
    key: [u8; KEY_LEN],
    start: [u8; NONCE_LEN],
    aad: Vec<u8>,
    /// The row of each value, if they have one.
    rows: Option<Vec<Vec<u8>>>,
    validity: Option<Vec<u8>>,
    offsets: Vec<i32>,
    bytes: Vec<u8>,
    /// Opened from the last to the first, so that nonces descend.
    reversed: bool,
    change: Change,
}

/// What happens to a sealed value before it is opened.
#[derive(Clone, Copy, Debug)]
struct Change {
    kind: u8,
    /// Which value, modulo their number.
    value: usize,
    /// Where in it, modulo its length.
    at: usize,
}

/// Sealed values, of which at most one was changed, and what they are to open as.
struct SealedColumn {
    validity: Vec<u8>,
    offsets: Vec<i32>,
    bytes: Vec<u8>,
    /// Which value of the column each is.
    order: Vec<usize>,
    plain: Vec<u8>,
    opens: Vec<bool>,
    /// The value that is opened with another AAD.
    misbound: Option<usize>,
}

impl Column {
    fn read(draw: &mut Draw<'_>) -> Self {
        let mode = draw.byte();
        let has_nulls = mode & 1 != 0;
        let (has_rows, long_rows) = (mode & 2 != 0, mode & 6 == 6);
        // Mostly few, sometimes more than a kernel takes at once.
        let count = match draw.byte() {
            few @ ..224 => usize::from(few % 25),
            many => usize::from(many - 224) + 2 * usize::from(draw.byte()),
        };
        let start = draw.bytes(NONCE_LEN);
        let aad_len = usize::from(draw.byte());
        let standing = draw.length();
        let kind = draw.byte();
        let change = Change {
            kind: kind % 4,
            value: draw.length(),
            at: draw.length(),
        };
        // An array that is a slice of another begins later.
        let before = usize::from(mode >> 5);
        let (mut offsets, mut validity) = (vec![before as i32], vec![0; count.div_ceil(8)]);
        let mut end = before;
        for n in 0..count {
            let len = match mode >> 3 & 3 {
                0 => standing,
                1 => usize::from(draw.byte() % 41),
                2 => standing.saturating_add_signed(isize::from(draw.byte() % 33) - 16),
                _ => match draw.byte() {
                    short @ ..160 => usize::from(short % 40),
                    160..240 => usize::from(draw.byte()),
                    _ => draw.length(),
                },
            };
            end += len.min(MOST_LEN).min(MOST_BYTES + before - end);
            offsets.push(end as i32);
            // Nulls keep their bytes, which nobody may look at.
            let null = has_nulls && draw.byte() % 4 == 0;
            validity[n / 8] |= u8::from(!null) << (n % 8);
        }
        let row = |draw: &mut Draw<'_>| {
            let len = usize::from(draw.byte());
            if long_rows { 4 * len } else { len % 90 }
        };
        let lens: Vec<usize> = (0..if has_rows { count } else { 0 }).map(|_| row(draw)).collect();
        draw.rest = &[];
        Self {
            key: draw.bytes(KEY_LEN).try_into().unwrap(),
            start: start.try_into().unwrap(),
            aad: draw.bytes(aad_len),
            rows: has_rows.then(|| lens.iter().map(|len| draw.bytes(*len)).collect()),
            validity: has_nulls.then_some(validity),
            offsets,
            bytes: draw.bytes(end),
            reversed: kind & 4 != 0,
            change,
        }
    }

    fn values(&self) -> Values<'_> {
        Values::new(self.validity.as_deref(), &self.offsets, &self.bytes).unwrap()
    }

    fn sealed(&self, cipher: &Cipher) -> Vec<u8> {
        let mut out = b"before".to_vec();
        let rows = self.rows.as_ref().map(|rows| Rows::of(rows.iter().cloned()));
        let batch = Batch {
            prefix: PREFIX,
            start: self.start,
            aads: self.aads(rows.as_ref()),
            values: self.values(),
        };
        cipher.seal(&batch, &mut out).unwrap();
        assert!(out.starts_with(b"before"));
        out.split_off(6)
    }

    fn aads<'a>(&'a self, rows: Option<&'a Rows>) -> Aads<'a> {
        match rows {
            None => Aads::Same(&self.aad),
            Some(rows) => Aads::Each {
                fixed: &self.aad,
                rows: Values::new(Some(&rows.validity), &rows.offsets, &rows.bytes).unwrap(),
            },
        }
    }

    /// The same, value by value: `seal` encrypts in place and returns the tag.
    fn sealed_by(&self, seal: impl Fn([u8; NONCE_LEN], &[u8], &mut [u8]) -> [u8; 16]) -> Vec<u8> {
        let mut start = [0; 16];
        start[4..].copy_from_slice(&self.start);
        let values = self.values();
        let mut out = Vec::with_capacity(self.bytes.len() + values.len() * OVERHEAD);
        for n in 0..values.len() {
            let Some(value) = values.get(n) else { continue };
            let nonce = u128::from_be_bytes(start).wrapping_add(n as u128).to_be_bytes();
            let nonce: [u8; NONCE_LEN] = nonce[4..].try_into().unwrap();
            let row = self.rows.as_ref().map(|rows| &rows[n]);
            let own = row.map_or(Vec::new(), |row| [&(row.len() as u32).to_le_bytes()[..], row].concat());
            out.extend_from_slice(&PREFIX);
            out.extend_from_slice(&nonce);
            let from = out.len();
            out.extend_from_slice(value);
            let tag = seal(nonce, &[&self.aad[..], &own].concat(), &mut out[from..]);
            out.extend_from_slice(&tag);
        }
        out
    }
}

/// Rows as a column: empty ones are null, and others stand before the first and behind the last.
struct Rows {
    validity: Vec<u8>,
    offsets: Vec<i32>,
    bytes: Vec<u8>,
}

impl Rows {
    fn of(rows: impl Iterator<Item = Vec<u8>>) -> Self {
        let mut this = Self {
            validity: Vec::new(),
            offsets: vec![3],
            bytes: b"abc".to_vec(),
        };
        for (n, row) in rows.enumerate() {
            if n % 8 == 0 {
                this.validity.push(0);
            }
            this.validity[n / 8] |= u8::from(!row.is_empty()) << (n % 8);
            this.bytes.extend(row);
            this.offsets.push(this.bytes.len() as i32);
        }
        this.bytes.extend(b"and more");
        this
    }
}

impl SealedColumn {
    /// From all sealed values of the column, one behind the other.
    fn of(column: &Column, sealed: &[u8]) -> Self {
        let (values, mut each, mut rest) = (column.values(), Vec::new(), sealed);
        for n in 0..values.len() {
            let (value, behind) = rest.split_at(values.get(n).map_or(0, |value| value.len() + OVERHEAD));
            each.push(value);
            rest = behind;
        }
        let count = values.len();
        let mut this = Self {
            validity: vec![0; count.div_ceil(8)],
            offsets: vec![0],
            bytes: Vec::with_capacity(sealed.len()),
            order: (0..count).collect(),
            plain: Vec::with_capacity(column.bytes.len()),
            opens: Vec::with_capacity(count),
            misbound: None,
        };
        if column.reversed {
            this.order.reverse();
        }
        for (place, &n) in this.order.iter().enumerate() {
            let (from, plain) = (this.bytes.len(), values.get(n));
            this.bytes.extend_from_slice(each[n]);
            let mut opens = plain.is_some();
            let mut kept = plain.map_or(0, <[u8]>::len);
            match plain {
                None => this.bytes.extend_from_slice(b"null"),
                Some(_) => {
                    this.validity[place / 8] |= 1 << (place % 8);
                    let Change { kind, value, at } = column.change;
                    let len = each[n].len();
                    let (at, is_it) = (at % len, value % count == n);
                    match kind {
                        1 if is_it => {
                            this.bytes[from + at] ^= 1 << (at % 8);
                            // Whose the prefix is, whoever opens has to know.
                            opens = at < PREFIX_LEN;
                        }
                        2 if is_it => {
                            this.bytes.truncate(from + at);
                            kept = at.saturating_sub(OVERHEAD);
                            opens = false;
                        }
                        3 if is_it && column.rows.is_some() => {
                            this.misbound = Some(n);
                            opens = false;
                        }
                        _ => {}
                    }
                }
            }
            match plain {
                Some(plain) if opens => this.plain.extend_from_slice(plain),
                _ => this.plain.resize(this.plain.len() + kept, 0),
            }
            this.opens.push(opens);
            this.offsets.push(this.bytes.len() as i32);
        }
        this
    }

    fn opened(&self, cipher: &Cipher, column: &Column) -> (Vec<u8>, Vec<bool>) {
        let (mut out, mut opened) = (b"before".to_vec(), vec![true]);
        let row = |rows: &[Vec<u8>], n: usize| {
            let mut row = rows[n].clone();
            row.extend((self.misbound == Some(n)).then_some(0));
            row
        };
        let rows = column.rows.as_ref();
        let rows = rows.map(|rows| Rows::of(self.order.iter().map(|n| row(rows, *n))));
        let batch = SealedBatch {
            aads: column.aads(rows.as_ref()),
            values: Values::new(Some(&self.validity), &self.offsets, &self.bytes).unwrap(),
        };
        cipher.open(&batch, &mut out, &mut opened).unwrap();
        assert!(out.starts_with(b"before") && opened[0]);
        (out.split_off(6), opened.split_off(1))
    }
}

/// Lengths say what an input is; its bytes do not.
impl std::fmt::Debug for Column {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lens: Vec<i32> = self.offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let rows = self
            .rows
            .as_ref()
            .map(|rows| rows.iter().map(Vec::len).collect::<Vec<_>>());
        write!(
            f,
            "lengths {lens:?}, valid {:?}, AAD {} and {rows:?}, nonce {:?}",
            self.validity,
            self.aad.len(),
            self.start
        )
    }
}

fn aes_gcm(key: &[u8; KEY_LEN]) -> impl Fn([u8; NONCE_LEN], &[u8], &mut [u8]) -> [u8; 16] {
    let cipher = Aes256Gcm::new(key.into());
    move |nonce, aad, text| {
        let tag = cipher.encrypt_inout_detached(&nonce.into(), aad, text.into()).unwrap();
        tag.into()
    }
}

fn aws_lc(key: &[u8; KEY_LEN]) -> impl Fn([u8; NONCE_LEN], &[u8], &mut [u8]) -> [u8; 16] {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).unwrap());
    move |nonce, aad, text| {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(aad), text).unwrap();
        tag.as_ref().try_into().unwrap()
    }
}

/// The bytes of an input, then those of a generator (SplitMix64) that the input seeds.
struct Draw<'a> {
    rest: &'a [u8],
    state: u64,
}

impl<'a> Draw<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        // FNV-1a
        let state = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { rest: bytes, state }
    }

    fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else {
            return self.number() as u8;
        };
        self.rest = rest;
        *first
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let (given, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        let mut bytes = given.to_vec();
        bytes.resize(count, 0);
        for chunk in bytes[given.len()..].chunks_mut(8) {
            chunk.copy_from_slice(&self.number().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }

    /// 0 to 4,096.
    fn length(&mut self) -> usize {
        (usize::from(self.byte()) | usize::from(self.byte()) << 8) % (MOST_LEN + 1)
    }
}
