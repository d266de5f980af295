//! The whole sealing transform on one thread, keys in memory, against what one would write instead; and its parts. By fields
//! sealed, record size, records in a batch, and cores.

mod check;
mod data;
mod parts;
mod peers;

use std::time::Instant;

use sealflow_benchmarks::Error;
use sealflow_benchmarks::engine::Engine;
use sealflow_benchmarks::measure::{Contender, Cost, Samples, cpu_time, interleaved};
use sealflow_benchmarks::report::{Comparison, Row, figure, write};
use sealflow_benchmarks::size::{pairs, scaled};
use sealflow_benchmarks::stats::Estimate;

use data::Data;
use peers::{Expert, Peer, Tree};

const PAIRS: usize = 21;
const BATCH: usize = 1_024;
const FIELDS: [usize; 4] = [1, 4, 8, 16];
const RECORD_BYTES: [usize; 7] = [200, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576];
const BATCHES: [usize; 5] = [1, 16, 128, 1_024, 8_192];
/// The standing values of what is not varied.
const FIELDS_EACH: usize = 4;
const BYTES_EACH: usize = 1_024;
/// Bytes of a round where records grow.
const ROUND_BYTES: usize = 8 << 20;
const OURS: &str = "sealflow";
/// The standing values, in words.
const SPREAD: &str = "records of 1 KB, 4 fields";

/// What the cost of a round is divided by.
#[derive(Clone, Copy)]
enum Per {
    Record,
    Byte,
}

pub(crate) fn run() -> Result<(), Error> {
    let records = usize::try_from(scaled(8_192))?;
    whole(records)?;
    by_fields(records)?;
    by_size()?;
    by_batch(records)?;
    by_cores(records)?;
    // Last, and apart: millions of small blocks, freed in any order, are what others would then have to clear up.
    against_trees(records)
}

fn whole(records: usize) -> Result<(), Error> {
    let data = Data::payments(records);
    let samples = measured(vec![
        ours(OURS, &data, &data.policy(), BATCH, Per::Record)?,
        peer::<Expert>(&data, BATCH, Per::Record)?,
        parts::locate(&data)?,
        parts::all_but_locate(&data, BATCH)?,
        ours(
            "sealflow, padded and bound to rows",
            &data,
            sealflow_samples::POLICY_YAML,
            BATCH,
            Per::Record,
        )?,
    ])?;
    compare("sample payments, 4 columns", &samples)?;
    let [ours, expert, locate, rest, _] = samples.as_slice() else {
        return Err("another number of sides".into());
    };
    speed_up("sample payments", ours, expert)?;
    let rest = pairwise(rest, locate, |rest, locate| rest / locate)?;
    let difference = pairwise(ours, locate, |whole, locate| (whole - locate) / locate)?;
    let what = "in times of locating";
    figure("transform", what, "seal, base64 and splice alone", "times", rest)?;
    figure("transform", what, "all but locating", "times", difference)
}

fn against_trees(records: usize) -> Result<(), Error> {
    let payments = Data::payments(records);
    let spread = Data::spread(records, FIELDS_EACH, BYTES_EACH);
    for (what, data) in [("sample payments", payments), (SPREAD, spread)] {
        let samples = measured(vec![
            ours(OURS, &data, &data.policy(), BATCH, Per::Record)?,
            peer::<Tree>(&data, BATCH, Per::Record)?,
        ])?;
        compare(&format!("{what}, against a tree"), &samples)?;
        let [ours, tree] = samples.as_slice() else {
            return Err("another number of sides".into());
        };
        speed_up(what, ours, tree)?;
    }
    Ok(())
}

fn speed_up(what: &str, ours: &Samples, peer: &Samples) -> Result<(), Error> {
    let faster = pairwise(ours, peer, |ours, peer| peer / ours)?;
    let contender = format!("{what}, over {}", peer.name);
    figure("transform", "speed-up of the whole", &contender, "times", faster)
}

fn by_fields(records: usize) -> Result<(), Error> {
    let mut samples = Vec::new();
    for fields in FIELDS {
        let data = Data::spread(records, fields, BYTES_EACH);
        let sides = both(&data, Per::Record)?
            .into_iter()
            .map(|side| side.at("sealed fields", fields as f64));
        let measured = measured(sides.collect())?;
        if let [ours, expert] = measured.as_slice()
            && fields == FIELDS_EACH
        {
            speed_up(SPREAD, ours, expert)?;
        }
        samples.extend(measured);
    }
    compare("by sealed fields, records of 1 KB", &samples)
}

fn by_size() -> Result<(), Error> {
    let mut samples = Vec::new();
    for bytes in RECORD_BYTES {
        let count = usize::try_from(scaled(ROUND_BYTES as u64))? / bytes;
        let data = Data::spread(count.clamp(1, 8_192), FIELDS_EACH, bytes);
        let sides = both(&data, Per::Byte)?
            .into_iter()
            .map(|side| side.at("record bytes", bytes as f64));
        samples.extend(measured(sides.collect())?);
    }
    rates("by record size, 4 sealed fields", &samples, |cost| cost.cpu)
}

fn by_batch(records: usize) -> Result<(), Error> {
    let data = Data::payments(records);
    let mut samples = Vec::new();
    for batch in BATCHES {
        let sides = [
            ours(OURS, &data, &data.policy(), batch, Per::Record)?,
            peer::<Expert>(&data, batch, Per::Record)?,
        ];
        let sides = sides.into_iter().map(|side| side.at("records per batch", batch as f64));
        samples.extend(measured(sides.collect())?);
    }
    compare("by batch, sample payments", &samples)
}

/// A thread a core, each with an engine of its own; wall time.
fn by_cores(records: usize) -> Result<(), Error> {
    let data = Data::payments(records);
    let most = std::thread::available_parallelism()?.get();
    let mut samples = Vec::new();
    for cores in [1, 2, 4, 8].into_iter().filter(|cores| *cores <= most) {
        let sides = vec![on_cores(&data, cores)?.at("cores", cores as f64)];
        samples.extend(measured(sides)?);
    }
    rates("by cores, sample payments", &samples, |cost| cost.wall)
}

fn measured(sides: Vec<Contender<'_>>) -> Result<Vec<Samples>, Error> {
    interleaved(pairs(PAIRS), 1, sides)
}

fn both(data: &Data, per: Per) -> Result<Vec<Contender<'_>>, Error> {
    Ok(vec![
        ours(OURS, data, &data.policy(), BATCH, per)?,
        peer::<Expert>(data, BATCH, per)?,
    ])
}

fn ours<'a>(name: &str, data: &'a Data, policy: &str, batch: usize, per: Per) -> Result<Contender<'a>, Error> {
    let engine = Engine::new(policy)?;
    check::ours(data, &engine)?;
    Ok(Contender::elsewhere(name, move || {
        timed(data, per, || {
            for batch in data.records.chunks(batch) {
                std::hint::black_box(engine.seal_all(batch)?);
            }
            Ok(())
        })
    }))
}

/// One buffer for the output of a batch, used again.
fn peer<P: Peer + 'static>(data: &Data, batch: usize, per: Per) -> Result<Contender<'_>, Error> {
    check::peer::<P>(data)?;
    let (mut peer, mut out, mut ends) = (P::new(data.paths())?, Vec::new(), Vec::new());
    Ok(Contender::elsewhere(P::NAME, move || {
        timed(data, per, || {
            for batch in data.records.chunks(batch) {
                out.clear();
                ends.clear();
                for record in batch.iter().filter_map(|record| record.value.as_deref()) {
                    peer.seal(record, &mut out)?;
                    ends.push(out.len());
                }
                std::hint::black_box((&out, &ends));
            }
            Ok(())
        })
    }))
}

fn on_cores(data: &Data, cores: usize) -> Result<Contender<'_>, Error> {
    let engines: Result<Vec<Engine>, Error> = (0..cores).map(|_| Engine::new(&data.policy())).collect();
    let engines = engines?;
    for engine in &engines {
        engine.seal_all(&data.records)?;
    }
    Ok(Contender::elsewhere(OURS, move || {
        let shares = data.records.chunks(data.records.len().div_ceil(cores));
        timed(data, Per::Byte, || {
            std::thread::scope(|scope| {
                for (engine, share) in engines.iter().zip(shares) {
                    scope.spawn(move || {
                        for batch in share.chunks(BATCH) {
                            std::hint::black_box(engine.seal_all(batch).is_ok());
                        }
                    });
                }
            });
            Ok(())
        })
    }))
}

/// What `run` takes, by record or by byte of input.
fn timed(data: &Data, per: Per, run: impl FnOnce() -> Result<(), Error>) -> Result<Cost, Error> {
    let (cpu, wall) = (cpu_time(), Instant::now());
    run()?;
    let (cpu, wall) = (cpu_time().saturating_sub(cpu), wall.elapsed());
    let parts = match per {
        Per::Record => data.records.len(),
        Per::Byte => data.bytes(),
    };
    Ok(Cost {
        cpu: cpu.as_secs_f64() / parts as f64,
        wall: wall.as_secs_f64() / parts as f64,
        peak_memory: None,
    })
}

fn compare(what: &str, samples: &[Samples]) -> Result<(), Error> {
    let comparison = Comparison {
        section: "transform",
        what,
        unit: "ns per record",
        factor: 1e9,
        baseline: OURS,
    };
    comparison.write(samples)
}

/// Writes how much of input was sealed in a second. `of` picks the time that counts.
fn rates(what: &str, samples: &[Samples], of: fn(&Cost) -> f64) -> Result<(), Error> {
    println!("transform: {what} (GB/s)");
    for side in samples {
        let rate = |time: fn(&Cost) -> f64| Estimate::of(side.costs.iter().map(|cost| 1e-9 / time(cost)).collect());
        let base = samples
            .iter()
            .find(|base| base.name == OURS && base.at == side.at && side.name != OURS);
        let ratio = base.map(|base| {
            let pairs = side.costs.iter().zip(&base.costs);
            Estimate::of(pairs.map(|(side, base)| of(base) / of(side)).collect())
        });
        write(&Row {
            section: "transform".to_owned(),
            what: what.to_owned(),
            contender: side.name.clone(),
            parameter: side.at.map(|(parameter, _)| parameter.to_owned()),
            at: side.at.map(|(_, value)| value),
            unit: "GB/s".to_owned(),
            value: rate(of).ok_or("no samples")?,
            wall: rate(|cost| cost.wall),
            baseline: base.map(|base| base.name.clone()),
            ratio: ratio.flatten(),
            wall_ratio: None,
        })?;
    }
    Ok(())
}

fn pairwise(a: &Samples, b: &Samples, of: fn(f64, f64) -> f64) -> Result<Estimate, Error> {
    let pairs = a.costs.iter().zip(&b.costs);
    Ok(Estimate::of(pairs.map(|(a, b)| of(a.cpu, b.cpu)).collect()).ok_or("no samples")?)
}
