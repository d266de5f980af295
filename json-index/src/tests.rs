//! Every kernel against a reference that goes byte by byte, and so against each other.

use proptest::prelude::*;

use super::*;

/// (position, kind) of each token, whether names are plain, whether all is ASCII.
type Read = Option<(Vec<(u32, Kind)>, bool, bool)>;

fn by(kernel: Kernel, index: &mut Index, text: &[u8]) -> Read {
    assert_eq!(index.kernel(), kernel);
    let tokens = index.read(text)?;
    let mut groups = vec![Group::default(); tokens.kinds.len().div_ceil(BLOCK)];
    for (n, kind) in tokens.kinds.iter().enumerate() {
        let group = &mut groups[n / BLOCK];
        let of_kind = match kind {
            b'{' => &mut group.objects,
            b'}' => &mut group.object_ends,
            b'[' => &mut group.arrays,
            b']' => &mut group.array_ends,
            b':' => &mut group.colons,
            b',' => &mut group.commas,
            b'"' => &mut group.strings,
            _ => &mut group.scalars,
        };
        *of_kind |= 1 << (n % BLOCK);
    }
    assert_eq!(tokens.groups, groups);
    let list = tokens.positions.iter().copied().zip(tokens.kinds.iter().copied());
    Some((list.collect(), tokens.plain_names, tokens.is_ascii))
}

/// Byte by byte. What ends at a quote or with the text may lack a last digit: no document has that.
fn naive(text: &[u8]) -> Read {
    let (mut tokens, mut plain, mut at) = (Vec::new(), true, 0);
    while at < text.len() {
        let start = at;
        match text[at] {
            b' ' | b'\t' | b'\n' | b'\r' => at += 1,
            kind @ (b'{' | b'}' | b'[' | b']' | b':' | b',') => {
                tokens.push((start as u32, kind));
                at += 1;
            }
            b'"' => {
                tokens.push((start as u32, b'"'));
                at = string_end(text, at + 1)?;
                let special = text[start..at].iter().any(|byte| matches!(byte, b'.' | b'[' | b'\\'));
                plain &= !(special && matches!(after(text, at), Some(b':' | b' ' | b'\t' | b'\n' | b'\r')));
            }
            _ => {
                tokens.push((start as u32, SCALAR));
                let ends = |byte: &u8| b" \t\n\r{}[]:,\"".contains(byte);
                at = start + text[start..].iter().position(ends).unwrap_or(text.len() - start);
                let next = after(text, at);
                let scalar = &text[start..at];
                if scalar.iter().all(|byte| b"0123456789.-".contains(byte)) {
                    let with_digit = [scalar, b"0"].concat();
                    let lacks_digit = matches!(next, None | Some(b'"')) && is_number(&with_digit);
                    if !(is_number(scalar) || lacks_digit) {
                        return None;
                    }
                } else {
                    let is_right = is_number(scalar) || [&b"true"[..], b"false", b"null"].contains(&scalar);
                    if !is_right || matches!(next, Some(b'"' | b':' | b'{' | b'[')) {
                        return None;
                    }
                }
            }
        }
    }
    Some((tokens, plain, text.is_ascii()))
}

/// The last block is filled up with spaces.
fn after(text: &[u8], at: usize) -> Option<u8> {
    let filled = (!text.len().is_multiple_of(BLOCK)).then_some(b' ');
    text.get(at).copied().or(filled)
}

fn string_end(text: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => match text.get(at + 1)? {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at += 2,
                b'u' => {
                    let digits = text.get(at + 2..at + 6)?;
                    if !digits.iter().all(u8::is_ascii_hexdigit) {
                        return None;
                    }
                    at += 6;
                }
                _ => return None,
            },
            0..0x20 => return None,
            _ => at += 1,
        }
    }
}

fn is_number(text: &[u8]) -> bool {
    let rest = text.strip_prefix(b"-").unwrap_or(text);
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut at = digits(rest);
    if at == 0 || (rest[0] == b'0' && at > 1) {
        return false;
    }
    if rest.get(at) == Some(&b'.') {
        let more = digits(&rest[at + 1..]);
        if more == 0 {
            return false;
        }
        at += 1 + more;
    }
    if let Some(b'e' | b'E') = rest.get(at) {
        at += 1;
        if let Some(b'+' | b'-') = rest.get(at) {
            at += 1;
        }
        let more = digits(&rest[at..]);
        if more == 0 {
            return false;
        }
        at += more;
    }
    at == rest.len()
}

/// All kernels, each with an index that is used again and again.
fn indexes() -> Vec<(Kernel, Index)> {
    Kernel::all()
        .into_iter()
        .map(|kernel| (kernel, Index::on(kernel)))
        .collect()
}

fn check(indexes: &mut [(Kernel, Index)], text: &[u8]) {
    let wanted = naive(text);
    // No document has a string right after a number, or ends with one: a digit that it lacks may be missed there, and a
    // point of it pass as one of the string.
    let lax = |(at, kind): &(u32, Kind)| *kind == b'"' && *at > 0 && b"0123456789.-".contains(&text[*at as usize - 1]);
    let lax = matches!(text, [.., b'.' | b'-']) || wanted.iter().any(|(tokens, ..)| tokens.iter().any(lax));
    // A place that is right, if there is one.
    let place = text.iter().position(|byte| matches!(byte, b'e' | b'E')).unwrap_or(0);
    for (kernel, index) in indexes {
        index.poison(place as u32);
        let mut read = by(*kernel, index, text);
        if lax && let (Some(read), Some(wanted)) = (&mut read, &wanted) {
            read.1 |= wanted.1;
        }
        assert!(
            read == wanted || (lax && read.is_none()),
            "{kernel:?}: {:?}: {read:?}, not {wanted:?}",
            String::from_utf8_lossy(text)
        );
    }
}

const PIECES: [&str; 58] = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    " ",
    "\n",
    "\t\r",
    "\"\"",
    "\"a\"",
    "\"a.b\"",
    "\"a[0]\"",
    "\"{}[]:,\"",
    "\"\\\"\"",
    "\"\\\\\"",
    "\"\\\\\\\"\"",
    "\"\\u00e9\"",
    "\"\\u00g0\"",
    "\"\\u12\"",
    "\"\\x\"",
    "\"é😀\"",
    "\"\u{1f}\"",
    "\"\n\"",
    "\"\u{7f}\"",
    "\"a\":",
    "\"a.b\" :",
    "\"\\n\":",
    "0",
    "-0",
    "7",
    "-12",
    "01",
    "-01",
    "00",
    "1.5",
    "0.05",
    "10.20",
    "1.",
    ".5",
    "-.5",
    "1.2.3",
    "1-2",
    "--1",
    "-",
    "1e5",
    "1E+05",
    "1e-05",
    "1.5e-300",
    "1e",
    "1e5.5",
    "e5",
    "+1",
    "true",
    "false",
    "null",
    "nul",
    "truex",
];
const MORE_PIECES: [&str; 16] = [
    "-true", "-e5", ".null", "1e-5-3", "True", "true1", "1true", "é", "\u{a0}", "\\", "\\\"", "\u{0}", "'a'", "-\"a\"",
    "1.\"a\"", "tru",
];

#[test]
fn every_piece_is_read_alike_at_every_offset_around_the_ends_of_blocks() {
    let mut indexes = indexes();
    for piece in PIECES.iter().chain(&MORE_PIECES) {
        for pad in (0..130).chain(4030..4100) {
            // A string, white space, digits and backslashes before.
            for before in [
                format!("[\"{}\",", "a".repeat(pad)),
                " ".repeat(pad),
                format!("[{},", "1".repeat(pad)),
                format!("\"{}", "\\".repeat(pad)),
                format!("[1.{},-", "0".repeat(pad)),
            ] {
                for after in ["", ",", "]", " ", "\"", "\":1"] {
                    check(&mut indexes, format!("{before}{piece}{after}").as_bytes());
                }
            }
        }
    }
}

#[test]
fn as_many_words_as_a_block_has_room_for_are_all_checked() {
    let mut indexes = indexes();
    // With room for all, so that none grows.
    check(&mut indexes, " ".repeat(10_000).as_bytes());
    for piece in PIECES.iter().chain(&MORE_PIECES) {
        for word in ["1e1,", "1E+1,", "true,", "a,"] {
            for pad in 0..68 {
                for count in [14, 15, 16, 17, 31, 32, 33] {
                    let text = format!("[{}{}{piece},1]", " ".repeat(pad), word.repeat(count));
                    check(&mut indexes, text.as_bytes());
                }
            }
        }
    }
}

#[test]
fn runs_of_backslashes_escape_by_their_parity() {
    let mut indexes = indexes();
    for run in 0..200 {
        for pad in 0..66 {
            let text = format!("[\"{}{}\",1]", "a".repeat(pad), "\\".repeat(run));
            check(&mut indexes, text.as_bytes());
        }
    }
}

#[test]
fn an_index_grows_and_is_used_again() {
    let mut indexes = indexes();
    for count in [1, 100, 5_000, 300_000, 3, 2_000_000, 7] {
        let text = format!("[{}1]", "[".repeat(count / 2));
        check(&mut indexes, text.as_bytes());
        check(&mut indexes, format!("[{}1]", "1e1,".repeat(count / 4)).as_bytes());
    }
    let mut longest = vec![b' '; MOST];
    longest[MOST - 1] = b'{';
    for (_, index) in &mut indexes {
        assert_eq!(
            index.read(&longest).map(|tokens| tokens.positions.to_vec()),
            Some(vec![MOST as u32 - 1])
        );
    }
    longest.push(b' ');
    for (_, index) in &mut indexes {
        assert!(index.read(&longest).is_none());
    }
}

#[test]
fn the_kernel_is_one_that_is_there() {
    let all = Kernel::all();
    assert!(all.contains(&Kernel::Portable) && all.contains(&Kernel::of_machine()));
    assert_eq!(Kernel::named("portable"), Some(Kernel::Portable));
    assert_eq!(Kernel::named("none"), None);
    for kernel in [Kernel::Portable, Kernel::Avx2, Kernel::Avx512] {
        let on = Index::on(kernel).kernel();
        assert_eq!(
            on,
            if all.contains(&kernel) {
                kernel
            } else {
                Kernel::Portable
            }
        );
    }
}

fn any_text() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(PIECES.iter().chain(&MORE_PIECES).copied().collect::<Vec<_>>());
    let right = prop::sample::select(PIECES[..17].to_vec());
    let padded = (prop_oneof![4 => right, 1 => piece], 0_usize..70, 0_u8..8).prop_map(|(piece, pad, how)| match how {
        0 => format!("\"{}\",{piece}", "a".repeat(pad)),
        1 => format!("{}{piece}", " ".repeat(pad)),
        _ => piece.to_owned(),
    });
    prop::collection::vec(padded, 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn texts_are_read_alike(text in any_text()) {
        check(&mut indexes(), &text);
    }

    #[test]
    fn damaged_texts_are_read_alike(text in any_text(), at: prop::sample::Index, byte: u8, how in 0..3) {
        let mut text = text;
        let at = at.index(text.len() + 1);
        match how {
            0 => text.insert(at, byte),
            1 if at < text.len() => text[at] = byte,
            _ if at < text.len() => { text.remove(at); }
            _ => {}
        }
        check(&mut indexes(), &text);
    }

    #[test]
    fn any_bytes_are_read_alike(text: Vec<u8>, of_json in "[-+{}\\[\\]:,\"\\\\ \n0-9.eEtrufalsn]{0,200}") {
        let mut indexes = indexes();
        check(&mut indexes, &text);
        check(&mut indexes, of_json.as_bytes());
    }
}
