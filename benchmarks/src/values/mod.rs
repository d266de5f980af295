//! Time per value: whole columns through Sealflow, against libraries called once per value with a fresh nonce,
//! as their users call them.

mod peers;

use sealflow::seal::{ColumnContext, OpeningKey, PlainColumn, SealedValue, SealingKey, UsageLimits};
use sealflow::secret::SecretBytes;
use sealflow_benchmarks::Error;
use sealflow_benchmarks::measure::{Contender, interleaved};
use sealflow_benchmarks::report::Comparison;
use sealflow_benchmarks::size::pairs;

use peers::{AwsLc, OpenSsl, OpenSslOneCall, Peer, Ring, RustCrypto};

const VALUES: usize = 8_192;
const PAIRS: usize = 15;
const SIZES: [usize; 5] = [16, 32, 64, 128, 1_024];
/// As long as the AAD of a label like `payment.cards[*].number`.
const AAD: [u8; 80] = [7; 80];
const KEY: [u8; 32] = [1; 32];
const NO_LIMIT: UsageLimits = UsageLimits {
    batches: u64::MAX,
    values: u64::MAX,
    bytes: u64::MAX,
};

pub(crate) fn run() -> Result<(), Error> {
    let (mut sealing, mut opening) = (Vec::new(), Vec::new());
    for size in SIZES {
        sealing.extend(seal(size)?);
        opening.extend(open(size)?);
    }
    for (what, samples) in [("seal a value", sealing), ("open a value", opening)] {
        let comparison = Comparison {
            section: "values",
            what,
            unit: "ns per value",
            factor: 1e9 / VALUES as f64,
            baseline: "sealflow",
        };
        comparison.write(&samples)?;
    }
    Ok(())
}

fn context() -> ColumnContext<'static> {
    ColumnContext {
        dataset: "payments",
        label: "payment.cards[*].number",
        column: 3,
        rows: None,
    }
}

fn plain(size: usize) -> Result<PlainColumn, Error> {
    let mut plain = PlainColumn::with_capacity(VALUES, VALUES * size);
    for _ in 0..VALUES {
        plain.push(&vec![6; size])?;
    }
    Ok(plain)
}

fn seal(size: usize) -> Result<Vec<sealflow_benchmarks::measure::Samples>, Error> {
    let key = SealingKey::from_generated(&SecretBytes::new(KEY.to_vec()), NO_LIMIT)?;
    let plain = plain(size)?;
    let ours = Contender::here("sealflow", || {
        drop(std::hint::black_box(key.seal(&context(), plain.view())));
    });
    let contenders = vec![
        ours,
        sealing::<RustCrypto>(size)?,
        sealing::<Ring>(size)?,
        sealing::<AwsLc>(size)?,
        sealing::<OpenSsl>(size)?,
        sealing::<OpenSslOneCall>(size)?,
    ];
    let contenders = contenders
        .into_iter()
        .map(|side| side.at("plaintext bytes", size as f64));
    interleaved(pairs(PAIRS), 1, contenders.collect())
}

fn open(size: usize) -> Result<Vec<sealflow_benchmarks::measure::Samples>, Error> {
    let secret = SecretBytes::new(KEY.to_vec());
    let key = SealingKey::from_generated(&secret, NO_LIMIT)?;
    let opening_key = OpeningKey::from_unwrapped(&secret, key.id())?;
    let sealed = key.seal(&context(), plain(size)?.view())?;
    let ours = Contender::here("sealflow", || {
        let mut opener = opening_key.opener(context().dataset, context().label);
        let mut out = Vec::with_capacity(VALUES * size);
        for value in sealed.view().iter().flatten() {
            if let Ok(SealedValue::Randomised {
                nonce, ciphertext, tag, ..
            }) = SealedValue::parse(value)
            {
                let _ = std::hint::black_box(opener.open(nonce, ciphertext, tag, None, &mut out));
            }
        }
        std::hint::black_box(out);
    });
    let contenders = vec![
        ours,
        opening::<RustCrypto>(size)?,
        opening::<Ring>(size)?,
        opening::<AwsLc>(size)?,
        opening::<OpenSsl>(size)?,
        opening::<OpenSslOneCall>(size)?,
    ];
    let contenders = contenders
        .into_iter()
        .map(|side| side.at("plaintext bytes", size as f64));
    interleaved(pairs(PAIRS), 1, contenders.collect())
}

/// A peer that seals as many values, each into a buffer of its own: nonce, ciphertext, tag.
fn sealing<P: Peer + 'static>(size: usize) -> Result<Contender<'static>, Error> {
    let mut peer = P::new(&KEY)?;
    let values = vec![vec![6; size]; VALUES];
    let mut counter = 0;
    Ok(Contender::here(P::NAME, move || {
        for value in &values {
            let mut out = Vec::with_capacity(size + 28);
            out.extend_from_slice(&next_nonce(&mut counter));
            out.extend_from_slice(value);
            peer.seal(&AAD, &mut out);
            std::hint::black_box(out);
        }
    }))
}

/// A peer that opens as many values, each into a buffer of its own.
fn opening<P: Peer + 'static>(size: usize) -> Result<Contender<'static>, Error> {
    let mut peer = P::new(&KEY)?;
    let mut sealed = vec![6; 12 + size];
    peer.seal(&AAD, &mut sealed);
    let mut check = sealed.clone();
    if !peer.open(&AAD, &mut check) || check[12..12 + size] != vec![6; size] {
        return Err(format!("{} does not open what it sealed", P::NAME).into());
    }
    let values = vec![sealed; VALUES];
    Ok(Contender::here(P::NAME, move || {
        for value in &values {
            let mut out = value.clone();
            std::hint::black_box(peer.open(&AAD, &mut out));
            std::hint::black_box(out);
        }
    }))
}

fn next_nonce(counter: &mut u128) -> [u8; 12] {
    *counter += 1;
    let mut nonce = [0; 12];
    nonce.copy_from_slice(&counter.to_be_bytes()[4..]);
    nonce
}
