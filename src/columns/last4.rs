//! The last four characters of a JSON value, of which enough stays unsaid.

use zeroize::Zeroizing;

use super::json::{string_value, write_string};

/// Shorter values are not told anything of: four characters of seven are too much.
pub const LAST4_SHORTEST: usize = 8;

/// The JSON string of the last four characters (Unicode scalar values) of a JSON string that has at least
/// [`LAST4_SHORTEST`] of them, or of the last four digits of a JSON integer that has as many. `None` for all else:
/// shorter ones, numbers with a fraction or an exponent, strings with half a surrogate pair, other types.
#[must_use]
pub fn last4(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    match text.first()? {
        b'"' => {
            let value = Zeroizing::new(string_value(text)?.into_owned());
            // The eighth character from the end is there if eight are.
            value.char_indices().rev().nth(LAST4_SHORTEST - 1)?;
            let (start, _) = value.char_indices().rev().nth(3)?;
            Some(json_string(&value[start..]))
        }
        _ => {
            let digits = text.strip_prefix(b"-").unwrap_or(text);
            if digits.len() < LAST4_SHORTEST || !digits.iter().all(u8::is_ascii_digit) {
                return None;
            }
            let last = std::str::from_utf8(&digits[digits.len() - 4..]).ok()?;
            Some(json_string(last))
        }
    }
}

fn json_string(text: &str) -> Zeroizing<Vec<u8>> {
    // Six bytes for each character at most, and the quotes: never grown, which would leave a copy.
    let mut json = Zeroizing::new(Vec::with_capacity(text.len() * 6 + 2));
    write_string(text, &mut json);
    json
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(text: &str) -> Option<String> {
        last4(text.as_bytes()).map(|json| String::from_utf8(json.to_vec()).unwrap())
    }

    #[test]
    fn the_last_four_characters_of_long_strings_and_integers_are_told() {
        for (text, expected) in [
            (r#""4111111111111234""#, r#""1234""#),
            (r#""12345678""#, r#""5678""#),
            (r#""\u0031234567\u0038""#, r#""5678""#),
            (r#""1234😀é\"\u0000""#, r#""😀é\"\u0000""#),
            ("12345678", r#""5678""#),
            ("-12345670", r#""5670""#),
            ("123456789012345678901234567890123456789012345", r#""2345""#),
        ] {
            assert_eq!(told(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn of_short_values_and_of_other_types_nothing_is_told() {
        for text in [
            r#""1234567""#,
            r#""😀😀😀😀😀😀😀""#,
            r#""\u0031\u0032\u0033""#,
            r#""12345678\ud800""#,
            r#""""#,
            "1234567",
            "-1234567",
            "12345678.0",
            "1234567e8",
            "null",
            "true",
            r#"["12345678"]"#,
            r#"{"a":"12345678"}"#,
            "",
        ] {
            assert_eq!(told(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn four_characters_are_told_of_every_string_of_eight_or_more(text: String) {
            let json = serde_json::to_string(&text).unwrap();
            let characters: Vec<char> = text.chars().collect();
            let expected = (characters.len() >= 8).then(|| characters[characters.len() - 4..].iter().collect::<String>());
            let told = told(&json).map(|json| serde_json::from_str::<String>(&json).unwrap());
            prop_assert_eq!(told, expected);
        }
    }
}
