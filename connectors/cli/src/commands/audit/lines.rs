//! The lines of a file, of standard input or of a topic, one at a time, with a cap on what a line may take.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use sealflow::audit::line::MAX_LINE_BYTES;
use sealflow_kafka::read_topic;

use crate::audit::Place;
use crate::commands::read::TopicUrl;
use crate::failure::{Failure, Result};
use crate::term::note;

/// How long silent brokers are waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// The log that is looked at
#[derive(Debug, clap::Args)]
pub(super) struct LogArgs {
    /// The log: a file, `-` for standard input, or kafka://HOST:PORT[,HOST:PORT…]/TOPIC
    #[arg(value_name = "FILE|TOPIC")]
    place: Place,
    /// librdkafka property for a topic, such as security.protocol=SSL; may be repeated
    #[arg(long = "property", value_name = "KEY=VALUE")]
    properties: Vec<String>,
}

impl LogArgs {
    /// As [`each`]. A topic is read up to the end that it has now; each of its chains is in one partition, so in order.
    pub(super) fn each(&self, take: impl FnMut(&[u8])) -> Result<u64> {
        match &self.place {
            Place::File(path) => each(path, take),
            Place::Topic(url) => each_of_topic(url, &self.properties, take),
        }
    }

    /// What it is called in messages.
    pub(super) fn name(&self) -> String {
        match &self.place {
            Place::File(path) => path.display().to_string(),
            Place::Topic(url) => format!("topic {}", url.topic),
        }
    }
}

fn each_of_topic(url: &TopicUrl, properties: &[String], mut take: impl FnMut(&[u8])) -> Result<u64> {
    let reading = url.reading(None, properties)?;
    let left_out = read_topic(&reading, PATIENCE, |record| {
        take(record.value.as_deref().unwrap_or_default());
        ControlFlow::Continue(())
    })?;
    if left_out > 0 {
        note(format_args!(
            "{left_out} records were left out: their headers are none of ours"
        ));
    }
    Ok(0)
}

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
