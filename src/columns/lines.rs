//! Lines of a newline-delimited JSON text, as ranges: content and line end apart, so that both can be put back.

use std::ops::Range;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What stands on the line, without its end; may be empty.
    pub content: Range<usize>,
    /// `\n`, `\r\n`, or nothing at the end of the text.
    pub ending: Range<usize>,
}

/// The lines of `text`, which together cover every byte of it. A last line without an end counts; after a
/// last line end there is no further, empty line.
pub fn lines(text: &[u8]) -> impl Iterator<Item = Line> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == text.len() {
            return None;
        }
        let start = at;
        let newline = text[start..].iter().position(|byte| *byte == b'\n').map(|n| start + n);
        let (mut content_end, end) = newline.map_or((text.len(), text.len()), |newline| (newline, newline + 1));
        if newline.is_some() && text[start..content_end].ends_with(b"\r") {
            content_end -= 1;
        }
        at = end;
        Some(Line {
            content: start..content_end,
            ending: content_end..end,
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn contents(text: &str) -> Vec<&str> {
        lines(text.as_bytes()).map(|line| &text[line.content]).collect()
    }

    #[test]
    fn lines_end_with_newline_crlf_or_the_text() {
        assert_eq!(contents("a\nb\r\n\nc"), ["a", "b", "", "c"]);
        assert_eq!(contents("a\n"), ["a"]);
        assert_eq!(contents(""), [""; 0]);
        assert_eq!(contents("\r\n\r"), ["", "\r"]);
        assert_eq!(contents("a\rb\n"), ["a\rb"]);
    }

    proptest! {
        #[test]
        fn lines_cover_every_byte_in_order(text in "[a\r\n]{0,40}") {
            let mut at = 0;
            for line in lines(text.as_bytes()) {
                prop_assert_eq!(line.content.start, at);
                prop_assert_eq!(line.content.end, line.ending.start);
                prop_assert!(!text[line.content].contains('\n'));
                at = line.ending.end;
            }
            prop_assert_eq!(at, text.len());
        }
    }
}
