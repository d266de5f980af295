//! The kernels alone, on whole columns, against libraries called once per value: by length, with an AAD for each value, and
//! with lengths mixed.
//!
//! Peers are called as well as they can be: one buffer for the whole column, allocated once, in which each value gets the
//! same prefix, nonce, ciphertext and tag. Before anything is measured each must have written the same bytes.

mod column;
mod goals;
mod peers;

use sealflow_benchmarks::Error;
use sealflow_benchmarks::measure::{Contender, Samples, interleaved};
use sealflow_benchmarks::report::Comparison;
use sealflow_benchmarks::size::pairs;
use sealflow_kernel::{Cipher, Kernel};

use column::Column;
use peers::{AwsLc, Peer, Ring, RustCrypto};

const PAIRS: usize = 31;
const SIZES: [usize; 7] = [16, 32, 64, 128, 1_024, 16_384, 1_048_576];
const SIZES_WITH_ROWS: [usize; 4] = [16, 64, 128, 1_024];
const SIZES_MIXED: [usize; 4] = [16, 32, 64, 128];
const KEY: [u8; 32] = [1; 32];

#[derive(Clone, Copy, PartialEq)]
enum Work {
    Seal,
    Open,
}

pub(crate) fn run() -> Result<(), Error> {
    let (mut sealing, mut opening) = (Vec::new(), Vec::new());
    for size in SIZES {
        let column = Column::equal(size)?;
        // In one run, since their ratio counts too.
        let mut sides = all(&column, Work::Seal)?;
        let count = sides.len();
        sides.extend(all(&column, Work::Open)?);
        let mut samples = measured(sides, size)?;
        opening.extend(samples.split_off(count));
        sealing.append(&mut samples);
    }
    let fastest = name(Kernel::of_machine());
    write("seal a value", &fastest, &sealing)?;
    write("open a value", &fastest, &opening)?;

    let mut rows = Vec::new();
    for size in SIZES_WITH_ROWS {
        rows.extend(measured(all(&Column::equal(size)?.with_rows()?, Work::Seal)?, size)?);
    }
    write("seal a value bound to its row", &fastest, &rows)?;

    let mut goals = goals::of_lengths(&sealing, &opening);
    for kernel in Kernel::all() {
        let mut samples = Vec::new();
        for size in SIZES_MIXED {
            samples.extend(mixed(kernel, size)?);
        }
        let name = name(kernel);
        write(&format!("lengths mixed and equal, {name}"), "seal equal", &samples)?;
        goals.extend(goals::of_mixed(&name, &samples));
    }
    goals::write(&goals)
}

/// What a kernel is called in tables.
fn name(kernel: Kernel) -> String {
    format!("{kernel:?}").to_lowercase()
}

fn write(what: &str, baseline: &str, samples: &[Samples]) -> Result<(), Error> {
    let comparison = Comparison {
        section: "kernel",
        what,
        unit: "ns per value",
        factor: 1e9,
        baseline,
    };
    comparison.write(samples)
}

fn measured(sides: Vec<Contender<'_>>, size: usize) -> Result<Vec<Samples>, Error> {
    let sides = sides.into_iter().map(|side| side.at("plaintext bytes", size as f64));
    interleaved(pairs(PAIRS), 2, sides.collect())
}

/// All kernels and all peers.
fn all(column: &Column, work: Work) -> Result<Vec<Contender<'_>>, Error> {
    let mut sides = Vec::new();
    for kernel in Kernel::all() {
        sides.push(by_kernel(&name(kernel), kernel, column, work)?);
    }
    sides.push(by_peer::<Ring>(column, work)?);
    sides.push(by_peer::<AwsLc>(column, work)?);
    sides.push(by_peer::<RustCrypto>(column, work)?);
    Ok(sides)
}

fn by_kernel<'a>(name: &str, kernel: Kernel, column: &'a Column, work: Work) -> Result<Contender<'a>, Error> {
    let (cipher, mut out, mut opened) = (Cipher::on(kernel, &KEY), Vec::new(), Vec::new());
    column.by_kernel(work, &cipher, &mut out, &mut opened)?;
    if out != column.wanted(work) {
        return Err(format!("{name} writes other bytes").into());
    }
    Ok(column.contender(name, move || {
        column.by_kernel(work, &cipher, &mut out, &mut opened)?;
        std::hint::black_box(&out);
        Ok(())
    }))
}

fn by_peer<P: Peer + 'static>(column: &Column, work: Work) -> Result<Contender<'_>, Error> {
    let (peer, mut out, mut aad) = (P::new(&KEY)?, vec![0; column.room(work)], Vec::new());
    column.by_peer(work, &peer, &mut out, &mut aad)?;
    let wanted = column.wanted(work);
    if &out[..wanted.len()] != wanted {
        return Err(format!("{} writes other bytes", P::NAME).into());
    }
    Ok(column.contender(P::NAME, move || {
        column.by_peer(work, &peer, &mut out, &mut aad)?;
        std::hint::black_box(&out);
        Ok(())
    }))
}

/// Columns of the same mean length, with equal and with mixed lengths.
fn mixed(kernel: Kernel, size: usize) -> Result<Vec<Samples>, Error> {
    let (equal, mixed) = (Column::equal(size)?, Column::mixed(size)?);
    let sides = vec![
        by_kernel("seal equal", kernel, &equal, Work::Seal)?,
        by_kernel("seal mixed", kernel, &mixed, Work::Seal)?,
        by_kernel("open equal", kernel, &equal, Work::Open)?,
        by_kernel("open mixed", kernel, &mixed, Work::Open)?,
    ];
    measured(sides, size)
}
