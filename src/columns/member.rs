//! Takes one member out of a JSON object whose value's place is known, with its name and one comma.

use std::ops::Range;

/// The bytes to cut out of `text`, valid JSON, so that the member whose value is at `value` is gone and the rest is
/// valid: name, colon, value, and the comma before them or, for what is now the first member, the one behind.
///
/// Members are cut in order; `cut` is the end of what has already been cut or replaced before this one. `None` if no
/// member's value is at `value`.
#[must_use]
pub fn member_range(text: &[u8], value: Range<usize>, cut: usize) -> Option<Range<usize>> {
    let colon = before(text, value.start)?;
    let close = before(text, colon)?;
    if text[colon] != b':' || text[close] != b'"' {
        return None;
    }
    let name = opening_quote(text, close)?;
    let previous = before(text, name)?;
    match text[previous] {
        b',' if previous >= cut => Some(previous..value.end),
        // The comma before it went with an earlier member, so that it is the first one now.
        b',' | b'{' => Some(name..behind_comma(text, value.end)),
        _ => None,
    }
}

/// The last byte before `at` that is no white space.
fn before(text: &[u8], at: usize) -> Option<usize> {
    text.get(..at)?.iter().rposition(|byte| !is_space(*byte))
}

/// The quote that opens the string whose closing quote is at `close`. In a string, every quote has an odd number of
/// backslashes before it; before the opening quote there are none.
fn opening_quote(text: &[u8], close: usize) -> Option<usize> {
    let mut end = close;
    loop {
        let quote = text.get(..end)?.iter().rposition(|byte| *byte == b'"')?;
        let backslashes = text[..quote].iter().rev().take_while(|byte| **byte == b'\\').count();
        if backslashes % 2 == 0 {
            return Some(quote);
        }
        end = quote;
    }
}

/// The place behind the comma that follows at `at`, and the white space after it; `at` if none follows.
fn behind_comma(text: &[u8], at: usize) -> usize {
    let space = |at: usize| text[at..].iter().take_while(|byte| is_space(**byte)).count();
    let comma = at + space(at);
    match text.get(comma) {
        Some(b',') => comma + 1 + space(comma + 1),
        _ => at,
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::super::{Found, Locator, splice};
    use super::*;

    /// `json` without the members of those names.
    fn without(json: &str, names: &[&str]) -> String {
        let path = |name: &&str| serde_json::to_string(name).unwrap().parse().unwrap();
        let paths: Vec<_> = names.iter().map(path).collect();
        let mut found = Found::default();
        let locator = Locator::new(&paths, &[]).unwrap();
        locator.locate(json.as_bytes(), &mut found).unwrap();
        let mut cut = 0;
        let mut ranges = Vec::new();
        for hit in &found.hits {
            let range = member_range(json.as_bytes(), hit.range(), cut).unwrap();
            cut = range.end;
            ranges.push((range, &b""[..]));
        }
        let mut out = Vec::new();
        splice(json.as_bytes(), ranges.into_iter(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_member_goes_with_one_comma_wherever_it_stands() {
        for (json, rest) in [
            (r#"{"a":1,"x":2}"#, r#"{"a":1}"#),
            (r#"{"x":2,"a":1}"#, r#"{"a":1}"#),
            (r#"{"x":2}"#, "{}"),
            (r#"{ "x" : 2 , "a" : 1 }"#, r#"{ "a" : 1 }"#),
            (r#"{ "a" : 1 , "x" : 2 , "b" : 3 }"#, r#"{ "a" : 1  , "b" : 3 }"#),
            ("{\n  \"a\": 1,\n  \"x\": 2\n}", "{\n  \"a\": 1\n}"),
            (r#"{"x":1,"y":2}"#, "{}"),
            (r#"{"x":1,"y":2,"a":3}"#, r#"{"a":3}"#),
            (r#"{"x":1, "y":2, "x":3, "a":4}"#, r#"{"a":4}"#),
            (r#"{"x":1,"a":2,"y":3}"#, r#"{"a":2}"#),
            (r#"{"\u0078":{"x":1},"a":",\"x\":"}"#, r#"{"a":",\"x\":"}"#),
        ] {
            assert_eq!(without(json, &["x", "y"]), rest, "{json}");
        }
    }

    #[test]
    fn a_name_with_quotes_and_backslashes_goes_as_a_whole() {
        for name in ["\"", "\\", "\\\"", "\\\\\"", "a\\", "\",\"b\":\"", "{", ""] {
            let spelled = serde_json::to_string(name).unwrap();
            let json = format!("{{\"before\":\"\\\\\",{spelled}:1,\"after\":2}}");
            assert_eq!(without(&json, &[name]), r#"{"before":"\\","after":2}"#, "{json}");
        }
    }

    #[test]
    fn what_is_no_member_is_not_taken_out() {
        for (json, at) in [("[1,2]", 3..4), ("7", 0..1), (r#"["a",2]"#, 5..6)] {
            assert_eq!(member_range(json.as_bytes(), at, 0), None, "{json}");
        }
    }

    proptest! {
        #[test]
        fn the_rest_of_an_object_stays(
            members in proptest::collection::btree_map("[a-z\"\\\\,:{ ]{0,4}", any::<(u8, bool)>(), 0..8),
            pretty: bool,
        ) {
            let object: Map<String, Value> = members.iter().map(|(name, (n, _))| (name.clone(), (*n).into())).collect();
            let gone: Vec<&str> = members.iter().filter(|(_, (_, goes))| *goes).map(|(name, _)| name.as_str()).collect();
            let json = if pretty { serde_json::to_string_pretty(&object) } else { serde_json::to_string(&object) }.unwrap();
            let mut expected = object;
            expected.retain(|name, _| !gone.contains(&name.as_str()));
            let rest: Value = serde_json::from_str(&without(&json, &gone)).unwrap();
            prop_assert_eq!(rest, Value::Object(expected));
        }

        #[test]
        fn no_place_of_any_text_breaks_it(text in "\\PC{0,20}|[\":,{}\\\\ a]{0,20}", a in 0usize..30, b in 0usize..30, cut in 0usize..30) {
            let (start, end) = (a.min(b).min(text.len()), a.max(b).min(text.len()));
            let _ = member_range(text.as_bytes(), start..end, cut);
        }
    }
}
