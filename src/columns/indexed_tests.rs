//! Both walkers against each other, and against `serde_json` for what is JSON at all.

#![allow(clippy::unwrap_used)] // the lint's exception for tests does not reach their helpers

use proptest::prelude::*;

use super::indexed::compared;
use super::{Locator, Unlocatable};
use crate::policy::ColumnPath;

/// Policies: columns, fields.
const POLICIES: [(&[&str], &[&str]); 6] = [
    (&["a", "b.c", "d[*].e", "f[*][*]"], &["x", "b.y"]),
    (&["b.\"c.d\"", "g.h.i"], &["a", "a[*]", "a[*].b"]),
    (&["[*].a", "b"], &["[*].b", "[*].c"]),
    (&["[*]"], &["x", "b.c"]),
    (&[], &["a.b.c", "b", "d[*]", "[*]"]),
    (
        &[
            "name_of_nine",
            "a.bb",
            "a.ccc",
            "a.dddd",
            "a.eeeee",
            "a.f",
            "a.g",
            "a.h",
            "a.i",
            "a.j",
        ],
        &["\"é\"", "a.\"\""],
    ),
];

fn locators() -> Vec<Locator> {
    let paths = |texts: &[&str]| -> Vec<ColumnPath> { texts.iter().map(|text| text.parse().unwrap()).collect() };
    let locator = |(columns, fields): &(&[&str], &[&str])| Locator::new(&paths(columns), &paths(fields)).unwrap();
    POLICIES.iter().map(locator).collect()
}

fn check(locators: &[Locator], record: &[u8]) {
    let is_json =
        std::str::from_utf8(record).is_ok() && serde_json::from_slice::<serde::de::IgnoredAny>(record).is_ok();
    for locator in locators {
        match compared(locator, record) {
            Ok(_) => assert!(is_json, "what is no JSON is taken"),
            // Stricter than JSON, on purpose.
            Err(
                Unlocatable::TooDeep { .. }
                | Unlocatable::TooManyValues
                | Unlocatable::WrongType { .. }
                | Unlocatable::FlattenedName { .. }
                | Unlocatable::AmbiguousName { .. },
            ) => {}
            Err(error) => assert!(!is_json, "JSON is refused: {error}"),
        }
    }
}

/// What stands at every offset of a block: in a string, as a number's digits, and as white space before it.
#[test]
fn tokens_at_every_offset_of_a_block() {
    let locators = locators();
    for pad in (0..132).chain(4_060..4_100) {
        for what in [
            r#""a":"x\"y","b":{"c":1}"#,
            r#""a":"\\","b":{"c":"\\\\"}"#,
            r#""\u0061":1.5e-07,"b" : {"c.d":[]}"#,
            r#""a":-0,"d":[{"e":null},{"e":true}]"#,
            r#""a":"\ud83d\ude00é","x":false"#,
            r#""f":[[1,2],[],[{}]],"g":{"h":{"i":"…"}}"#,
            r#""a":01"#,
            r#""a":"\x""#,
            r#""a" "b""#,
            r#""a":1,"#,
            r#""a":tru"#,
            r#""a":[1,"b":2]"#,
            r#""a":{"b",1}"#,
            r#""a":1}"#,
            "\"a\":\"\t\"",
        ] {
            for record in [
                format!("{{\"p\":\"{}\",{what}}}", "p".repeat(pad)),
                format!("{{{}{what} }}", " ".repeat(pad)),
                format!("{{\"p\":1{},{what}}}\n", "0".repeat(pad)),
                format!("{{\"{}\":[],{what}}}", "\\\\".repeat(pad / 2)),
            ] {
                check(&locators, record.as_bytes());
            }
        }
    }
}

#[test]
fn tokens_at_every_place_of_a_group() {
    let locators = locators();
    for before in 0..140 {
        let zeros = "0,".repeat(before);
        for what in [
            r#"{"a":1,"a":{"b":2}}"#,
            r#"{"a":[1,{"c":"x"}],"b":"y"}"#,
            r#"{"b":1,"c":{}},null,[]"#,
            r#"{"a"}"#,
            r#"{"a":1,"b"}"#,
            r#"["a":1]"#,
            r#"{"a":1:2}"#,
            r#"{1:2}"#,
            "{,}",
            "[,]",
            "[1 2]",
            "}",
            r#""a":1"#,
            "[[]",
        ] {
            check(&locators, format!("[{zeros}{what},1]").as_bytes());
            check(&locators, format!("[{zeros}{what}]").as_bytes());
            check(&locators, format!("{{\"p\":[{zeros}{what}],\"b\":1}}").as_bytes());
        }
    }
}

#[test]
fn every_two_tokens_in_every_container() {
    let locators = locators();
    let tokens = ["{", "}", "[", "]", ":", ",", "\"a\"", "1", "null", "\"b\":", ""];
    for around in [
        ("", ""),
        ("[", "]"),
        ("{", "}"),
        ("{\"a\":", "}"),
        ("[1,", ",1]"),
        ("{\"a\":1,", ",\"c\":2}"),
        ("[{\"a\":[", "]}]"),
    ] {
        for first in tokens {
            for second in tokens {
                for third in tokens {
                    let (before, after) = around;
                    check(&locators, format!("{before}{first}{second} {third}{after}").as_bytes());
                }
            }
        }
    }
}

#[test]
fn nesting_that_the_index_leaves_to_its_twin() {
    let locators = locators();
    for depth in [1, 62, 63, 64, 65, 127, 128, 129, 300] {
        check(
            &locators,
            format!("{}{}", "[".repeat(depth), "]".repeat(depth)).as_bytes(),
        );
        check(
            &locators,
            format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1)).as_bytes(),
        );
        check(
            &locators,
            format!("{}1{}", "{\"b\":".repeat(depth), "}".repeat(depth)).as_bytes(),
        );
        check(
            &locators,
            format!("{}1{}", "{\"b\":[".repeat(depth), "]}".repeat(depth)).as_bytes(),
        );
        check(&locators, "[".repeat(depth).as_bytes());
    }
}

fn any_string() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[ -!#-Z^-~]{0,12}",
        1 => prop::sample::select(vec![
            "\\\"", "\\\\", "\\/", "\\n", "\\u0000", "\\u00e9", "\\ud83d\\ude00", "\\ud800", "é", "😀", "{", "}", "[", "]",
            ":", ",", ".",
        ]).prop_map(str::to_owned),
        1 => (0_usize..130).prop_map(|run| "\\\\".repeat(run)),
        1 => (0_usize..130).prop_map(|run| "a".repeat(run)),
    ];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
}

fn any_space() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => Just(String::new()),
        1 => "[ \n\t\r]{1,3}",
        1 => (0_usize..70).prop_map(|run| " ".repeat(run)),
    ]
}

/// JSON of the names and shapes that the policies are about.
fn any_record() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        6 => prop::sample::select(vec![
            "a", "b", "c", "d", "e", "f", "g", "h", "i", "x", "y", "\\u0061", "\\u0062", "c.d", "c\\u002ed", "b.c", "g.h",
            "d[0]", "\\ud800", "a\\u0000", "", "name_of_nine", "bb", "ccc", "eeeee", "é", "j",
        ]).prop_map(|name| format!("\"{name}\"")),
        1 => any_string(),
    ];
    let leaf = prop_oneof![
        2 => prop::sample::select(vec!["null", "true", "false", "0", "-1", "12.50", "1e9", "-0.1E-02", "[]", "{}"])
            .prop_map(str::to_owned),
        1 => "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
        1 => any_string(),
    ];
    leaf.prop_recursive(6, 60, 6, move |inner| {
        let members = prop::collection::vec((name.clone(), any_space(), inner.clone(), any_space()), 0..6);
        let object = members.prop_map(|members| {
            let member = |(name, space, value, more): &(String, String, String, String)| {
                format!("{space}{name}{more}:{space}{value}{more}")
            };
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
        });
        let elements = prop::collection::vec((any_space(), inner), 0..6);
        let array = elements.prop_map(|elements| {
            let element = |(space, value): &(String, String)| format!("{space}{value}{space}");
            format!("[{}]", elements.iter().map(element).collect::<Vec<_>>().join(","))
        });
        prop_oneof![3 => object, 1 => array]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn records_are_walked_alike(record in any_record()) {
        check(&locators(), record.as_bytes());
    }

    #[test]
    fn damaged_records_are_walked_alike(
        record in any_record(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0..5, any::<u8>(), any::<prop::sample::Index>()), 1..4),
    ) {
        let mut record = record.into_bytes();
        for (at, how, byte, from) in damage {
            let at = at.index(record.len() + 1);
            // A byte of the record itself, a bit of it turned, or any.
            let own = record.get(from.index(record.len().max(1))).copied().unwrap_or(byte);
            match (how, record.get_mut(at)) {
                (0, _) => record.insert(at, own),
                (1, _) => record.insert(at, byte),
                (2, Some(here)) => *here = own,
                (3, Some(here)) => *here ^= 1 << (byte % 8),
                (_, Some(_)) => { record.remove(at); }
                _ => {}
            }
        }
        check(&locators(), &record);
    }

    #[test]
    fn pieces_of_json_are_walked_alike(record in "([\\[\\]{}:, \"]|\"a\"|\"b\":|1|null|\\\\|é){0,40}") {
        check(&locators(), record.as_bytes());
    }
}
