//! Writes sample records as NDJSON: `cargo run -p sealflow-samples --example generate -- 7 20`.

use std::io::{self, Write as _};

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let (Some(Ok(seed)), Some(Ok(n))) = (args.next(), args.next()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "usage: generate SEED COUNT",
        ));
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    for record in sealflow_samples::generate(seed, n) {
        out.write_all(&record.value)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}
