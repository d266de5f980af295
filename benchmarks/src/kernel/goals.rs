//! What the kernels were built to reach, as multiples of the same round's peers.

use sealflow_benchmarks::Error;
use sealflow_benchmarks::measure::Samples;
use sealflow_benchmarks::report::figure;
use sealflow_benchmarks::stats::Estimate;
use sealflow_kernel::Kernel;

use super::name;

/// What, who, and the ratio.
pub(super) type Goal = (&'static str, String, Estimate);

const FASTER: &str = "speed-up over calls per value";
const OPENING: &str = "opening, in speeds of sealing";
const MIXED: &str = "mixed lengths, in times of equal ones";

/// (peer, bytes): the better of two where two are named.
const AGAINST: &[(&[&str], f64)] = &[
    (&["aes-gcm"], 16.0),
    (&["ring"], 16.0),
    (&["ring"], 32.0),
    (&["ring"], 64.0),
    (&["ring"], 128.0),
    (&["ring", "aws-lc-rs"], 16_384.0),
    (&["ring", "aws-lc-rs"], 1_048_576.0),
];

pub(super) fn of_lengths(sealing: &[Samples], opening: &[Samples]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for kernel in Kernel::all().into_iter().map(name) {
        for (peers, bytes) in AGAINST {
            let of_peer = |peer: &&str| ratio(find(sealing, peer, *bytes)?, find(sealing, &kernel, *bytes)?);
            let better = peers
                .iter()
                .filter_map(of_peer)
                .min_by(|a, b| a.median.total_cmp(&b.median));
            let against = format!("{kernel} over {}, {bytes} B", peers.join(" or "));
            goals.extend(better.map(|better| (FASTER, against, better)));
        }
        for bytes in [16.0, 64.0, 1_024.0, 16_384.0] {
            let both = find(sealing, &kernel, bytes).zip(find(opening, &kernel, bytes));
            let speed = both.and_then(|(seal, open)| ratio(seal, open));
            goals.extend(speed.map(|speed| (OPENING, format!("{kernel}, {bytes} B"), speed)));
        }
    }
    goals
}

pub(super) fn of_mixed(kernel: &str, samples: &[Samples]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for side in samples {
        let (Some(work), Some((_, bytes))) = (side.name.strip_suffix(" mixed"), side.at) else {
            continue;
        };
        let equal = find(samples, &format!("{work} equal"), bytes);
        let times = equal.and_then(|equal| ratio(side, equal));
        goals.extend(times.map(|times| (MIXED, format!("{kernel}, {work}, {bytes} B"), times)));
    }
    goals
}

pub(super) fn write(goals: &[Goal]) -> Result<(), Error> {
    for what in [FASTER, OPENING, MIXED] {
        for (_, who, estimate) in goals.iter().filter(|goal| goal.0 == what) {
            figure("kernel", what, who, "times", *estimate)?;
        }
    }
    Ok(())
}

fn find<'a>(samples: &'a [Samples], name: &str, at: f64) -> Option<&'a Samples> {
    let is_it = |side: &&Samples| side.name == name && side.at.is_some_and(|(_, bytes)| bytes == at);
    samples.iter().find(is_it)
}

/// Pair by pair.
fn ratio(of: &Samples, to: &Samples) -> Option<Estimate> {
    let pairs = of.costs.iter().zip(&to.costs);
    Estimate::of(pairs.map(|(of, to)| of.cpu / to.cpu).collect())
}
