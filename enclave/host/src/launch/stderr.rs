//! What worker and NSM write to standard error, line by line: bounded, and without characters that could fake other log lines.

use std::io::Read;
use std::sync::Arc;

/// Longest line, in bytes. The rest of it is left out.
pub const MOST_LINE: usize = 1024;

/// Most lines of one worker. What follows is read and thrown away, so that the worker does not wait for it.
pub const MOST_LINES: usize = 1000;

/// Who wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The worker, or the starter before it.
    Worker,
    /// The software NSM.
    Nsm,
}

/// Takes lines.
pub type Lines = Arc<dyn Fn(Source, &str) + Send + Sync>;

/// Lines go to the log.
pub(super) fn to_log() -> Lines {
    Arc::new(|source, line| match source {
        Source::Worker => tracing::warn!(line, "the enclave worker wrote to standard error"),
        Source::Nsm => tracing::warn!(line, "the software NSM wrote to standard error"),
    })
}

/// Reads until the end, in a thread of its own.
pub(super) fn forward(source: Source, stderr: impl Read + Send + 'static, lines: Lines) {
    std::thread::spawn(move || read(source, stderr, &lines));
}

fn read(source: Source, mut stderr: impl Read, lines: &Lines) {
    let mut line = Vec::with_capacity(MOST_LINE);
    let mut cut = false;
    let mut written = 0;
    let mut write = |line: &mut Vec<u8>, cut: &mut bool| {
        written += 1;
        if written <= MOST_LINES {
            lines(source, &printable(line, *cut));
        } else if written == MOST_LINES + 1 {
            lines(source, "too many lines: no more of them are shown");
        }
        line.clear();
        *cut = false;
    };
    let mut buffer = [0; 4096];
    while let Ok(count) = stderr.read(&mut buffer) {
        if count == 0 {
            break;
        }
        for byte in &buffer[..count] {
            match byte {
                b'\n' => write(&mut line, &mut cut),
                _ if line.len() < MOST_LINE => line.push(*byte),
                _ => cut = true,
            }
        }
    }
    if !line.is_empty() {
        write(&mut line, &mut cut);
    }
}

fn printable(line: &[u8], cut: bool) -> String {
    let mut text = String::with_capacity(line.len());
    for character in String::from_utf8_lossy(line).chars() {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    if cut {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn lines_of(bytes: &[u8]) -> Vec<String> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let into = seen.clone();
        let lines: Lines = Arc::new(move |_, line| into.lock().unwrap().push(line.to_owned()));
        read(Source::Worker, bytes, &lines);
        let seen = seen.lock().unwrap();
        seen.clone()
    }

    #[test]
    fn lines_come_one_by_one() {
        assert_eq!(
            lines_of(b"one\ntwo\n\nlast without an end"),
            ["one", "two", "", "last without an end"]
        );
        assert!(lines_of(b"").is_empty());
    }

    #[test]
    fn long_lines_are_cut_and_too_many_are_left_out() {
        let long = lines_of(&[&[b'x'; 3 * MOST_LINE][..], b"\nshort\n"].concat());
        assert_eq!(long, ["x".repeat(MOST_LINE) + "…", "short".to_owned()]);
        let many = lines_of("line\n".repeat(10 * MOST_LINES).as_bytes());
        assert_eq!(many.len(), MOST_LINES + 1);
        assert!(many[MOST_LINES].starts_with("too many lines"));
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        assert_eq!(lines_of(b"\x1b[31mred\rover\n"), ["\\u{1b}[31mred\\rover"]);
    }
}
