//! The one shape that all numbers have: what `benchmarks/plots.py` and the results in `benchmarks/results/` read.
//!
//! A row goes to standard output as a line of a table, and to the file named by `SEALFLOW_REPORT` as JSON.

use std::io::Write as _;

use serde::Serialize;

use crate::Error;
use crate::measure::{Cost, Samples};
use crate::stats::Estimate;

/// One number with its interval.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The benchmark: the name that `ONLY=` takes.
    pub section: String,
    /// What was done, in a few words; rows of one (section, what) are plotted together.
    pub what: String,
    /// Who did it.
    pub contender: String,
    /// The varied parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// Its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<f64>,
    /// Unit of `value`, `cpu` and `wall`.
    pub unit: String,
    /// The number that counts: CPU time where time was measured.
    pub value: Estimate,
    /// Wall time in the same unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall: Option<Estimate>,
    /// Whom the ratios are to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// Pair by pair: this contender's value divided by the baseline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Estimate>,
    /// The same of wall time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wall_ratio: Option<Estimate>,
}

/// Names and units of a comparison.
pub struct Comparison<'a> {
    /// The benchmark.
    pub section: &'a str,
    /// What was done.
    pub what: &'a str,
    /// Unit after the multiplication.
    pub unit: &'a str,
    /// From seconds of a round to the unit.
    pub factor: f64,
    /// The contender that the others are divided by, at the same value of the parameter.
    pub baseline: &'a str,
}

impl Comparison<'_> {
    /// Writes one row per contender.
    pub fn write(&self, samples: &[Samples]) -> Result<(), Error> {
        println!("{}: {} ({})", self.section, self.what, self.unit);
        for side in samples {
            let base = samples
                .iter()
                .find(|other| other.name == self.baseline && other.at == side.at)
                .filter(|base| base.name != side.name);
            let of =
                |pick: fn(&Cost) -> f64| Estimate::of(side.costs.iter().map(|cost| pick(cost) * self.factor).collect());
            let ratio = |pick: fn(&Cost) -> f64| {
                let pairs = side.costs.iter().zip(&base?.costs);
                Estimate::of(pairs.map(|(ours, base)| pick(ours) / pick(base)).collect())
            };
            let row = Row {
                section: self.section.to_owned(),
                what: self.what.to_owned(),
                contender: side.name.clone(),
                parameter: side.at.map(|(parameter, _)| parameter.to_owned()),
                at: side.at.map(|(_, value)| value),
                unit: self.unit.to_owned(),
                value: of(|cost| cost.cpu).ok_or("no samples")?,
                wall: of(|cost| cost.wall),
                baseline: base.map(|base| base.name.clone()),
                ratio: ratio(|cost| cost.cpu),
                wall_ratio: ratio(|cost| cost.wall),
            };
            write(&row)?;
        }
        Ok(())
    }
}

/// Writes a number that is not a time of a round, without wall time or ratio.
pub fn figure(section: &str, what: &str, contender: &str, unit: &str, value: Estimate) -> Result<(), Error> {
    write(&Row {
        section: section.to_owned(),
        what: what.to_owned(),
        contender: contender.to_owned(),
        parameter: None,
        at: None,
        unit: unit.to_owned(),
        value,
        wall: None,
        baseline: None,
        ratio: None,
        wall_ratio: None,
    })
}

/// A number that does not vary: a count.
#[must_use]
pub fn exactly(value: f64) -> Estimate {
    Estimate {
        median: value,
        low: value,
        high: value,
        confidence: 1.0,
        samples: 1,
    }
}

/// Prints the row, and appends it to the report.
pub fn write(row: &Row) -> Result<(), Error> {
    let mut line = format!("  {:<34} ", row.contender);
    if row.wall.is_none() {
        // A number that stands alone: no heading says what it is.
        line = format!("  {:<60} ", format!("{}: {}", row.what, row.contender));
    }
    if let (Some(parameter), Some(at)) = (&row.parameter, row.at) {
        line += &format!("{:<26}", format!("{parameter} {at}"));
    }
    line += &format!("{} {}", interval(&row.value), row.unit);
    if let Some(wall) = &row.wall {
        line += &format!(", wall {}", interval(wall));
    }
    if let (Some(ratio), Some(baseline)) = (&row.ratio, &row.baseline) {
        line += &format!(
            "; {:.2}x {baseline} ({:.2} to {:.2})",
            ratio.median, ratio.low, ratio.high
        );
    }
    println!("{line}");
    let Some(path) = std::env::var_os("SEALFLOW_REPORT") else {
        return Ok(());
    };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(file, "{}", serde_json::to_string(row)?)?;
    Ok(())
}

fn interval(estimate: &Estimate) -> String {
    if estimate.low == estimate.high {
        return short(estimate.median);
    }
    format!(
        "{} ({} to {})",
        short(estimate.median),
        short(estimate.low),
        short(estimate.high)
    )
}

/// Three or so significant digits.
fn short(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}
