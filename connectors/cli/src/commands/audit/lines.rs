//! The lines of a file or of standard input, one at a time, with a cap on what a line may take.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use sealflow::audit::line::MAX_LINE_BYTES;

use crate::failure::{Failure, Result};

/// Hands every whole line to `take`, without its end. Returns how many bytes stand after the last end of a line.
///
/// Of a line that is too long for an audit log only the first bytes are handed on: enough to see that it is none.
pub(super) fn each(path: &Path, mut take: impl FnMut(&[u8])) -> Result<u64> {
    let failed = |error: io::Error| Failure::io("read", path, &error);
    let mut input: Box<dyn BufRead> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::with_capacity(1 << 16, File::open(path).map_err(failed)?))
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        let most = MAX_LINE_BYTES as u64 + 2;
        let read = (&mut input).take(most).read_until(b'\n', &mut line).map_err(failed)?;
        if line.last() == Some(&b'\n') {
            line.pop();
            take(&line);
        } else if (read as u64) < most {
            return Ok(read as u64);
        } else {
            take(&line);
            skip_line(&mut input).map_err(failed)?;
        }
    }
}

fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let there = input.fill_buf()?;
        if there.is_empty() {
            return Ok(());
        }
        if let Some(end) = there.iter().position(|byte| *byte == b'\n') {
            input.consume(end + 1);
            return Ok(());
        }
        let all = there.len();
        input.consume(all);
    }
}
