//! Secrets that were read from configuration are taken out of everything that is printed.
//!
//! A second line: types already hide secrets in `Debug`, and messages name places. This catches what others say
//! in our name, such as a library's log line that repeats its configuration.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::{PoisonError, RwLock};

use zeroize::Zeroizing;

/// What stands where a secret stood.
const HIDDEN: &str = "[redacted]";

/// Shorter ones are no secrets, and would hide half of every line.
const SHORTEST: usize = 4;

static SECRETS: RwLock<Vec<Zeroizing<String>>> = RwLock::new(Vec::new());

/// From now on `secret` is hidden in messages and log lines, as it is and as JSON and `Debug` spell it.
pub(crate) fn hide(secret: &str) {
    if secret.len() < SHORTEST {
        return;
    }
    let quoted = Zeroizing::new(format!("{secret:?}"));
    let json = Zeroizing::new(serde_json::Value::from(secret).to_string());
    let mut spellings = vec![Zeroizing::new(secret.to_owned())];
    spellings.extend([quoted, json].map(|text| Zeroizing::new(text[1..text.len() - 1].to_owned())));
    // A multi-line secret (PEM) is also printed line by line.
    let lines = secret
        .lines()
        .filter(|line| line.len() >= 16 && !line.starts_with("-----"));
    spellings.extend(lines.map(|line| Zeroizing::new(line.to_owned())));
    let mut known = SECRETS.write().unwrap_or_else(PoisonError::into_inner);
    for spelling in spellings {
        if !known.contains(&spelling) {
            known.push(spelling);
        }
    }
    // The longest first, so that no tail of one stays because another is its beginning.
    known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
}

/// `text` without the secrets.
pub(crate) fn redacted(text: &str) -> Cow<'_, str> {
    let known = SECRETS.read().unwrap_or_else(PoisonError::into_inner);
    let mut out = Cow::Borrowed(text);
    for secret in known.iter() {
        if out.contains(secret.as_str()) {
            out = Cow::Owned(out.replace(secret.as_str(), HIDDEN));
        }
    }
    out
}

/// A writer of whole lines to standard error, without the secrets.
///
/// The log's formatter hands each event over in one piece, so no secret is cut in two.
pub(crate) struct StandardError;

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        io::stderr().lock().write_all(redacted(&text).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_hidden_in_every_spelling_that_a_log_line_may_have() {
        let secret = "hunter2 \"of\" the\\redaction\ttest";
        hide(secret);
        for line in [
            format!("password={secret};"),
            format!("{:?}", [secret]),
            serde_json::json!({ "password": secret }).to_string(),
        ] {
            let shown = redacted(&line);
            assert!(shown.contains(HIDDEN) && !shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn the_tail_of_a_longer_secret_does_not_stay() {
        hide("redaction-abcd");
        hide("redaction-abcd-tail");
        assert_eq!(redacted("x redaction-abcd-tail y"), "x [redacted] y");
    }

    #[test]
    fn what_is_no_secret_stays_as_it_is() {
        hide("abc");
        assert!(matches!(
            redacted("an abc in a line"),
            Cow::Borrowed("an abc in a line")
        ));
    }
}
