//! Finds columns by an index of the record's tokens: what [`Locator`](super::Locator) tries first.
//!
//! Its twin walks byte by byte (`locate.rs`). This one gives up on whatever it does not like, and the twin then decides,
//! and says what is wrong and where; so what is refused, and how, is the twin's alone. What this one accepts, the twin
//! accepts, with the same occurrences: property tests and fuzzing compare them.
//!
//! How tokens may follow each other is checked for 64 at once. Only brackets are taken one by one; and names, in objects
//! that columns or fields lie in.

use sealflow_json_index::{Group, Kernel, Tokens};

use super::locate::{FieldHit, Found, Frame, offset};
use super::paths::{Meaning, Node};

/// What nests deeper is the twin's, which goes on to [`MAX_DEPTH`](super::MAX_DEPTH).
const DEEPEST: usize = 64;

/// The irregularity is not named: the twin finds it.
pub(super) struct GivesUp;

type Walked<T = ()> = Result<T, GivesUp>;

/// Whether the index is faster than the twin: not without SIMD.
pub(super) fn is_worth_it() -> bool {
    Kernel::of_machine() != Kernel::Portable
}

/// Finds every occurrence in `record`, or gives up; `found` is to be cleared then.
pub(super) fn locate(nodes: &[Node], record: &[u8], found: &mut Found) -> Walked {
    let mut index = found.index.take().unwrap_or_default();
    let walked = walk(nodes, record, index.read(record), found);
    found.index = Some(index);
    walked
}

fn walk(nodes: &[Node], record: &[u8], tokens: Option<Tokens<'_>>, found: &mut Found) -> Walked {
    let tokens = tokens.ok_or(GivesUp)?;
    if !tokens.is_ascii && simdutf8::basic::from_utf8(record).is_err() {
        return Err(GivesUp);
    }
    let walk = Walk {
        nodes,
        text: record,
        tokens,
        found,
        whole: Whole::Nothing,
    };
    walk.document()
}

/// What a container is whose inside is nobody's, and whose end is waited for.
#[derive(Clone, Copy)]
enum Whole {
    Nothing,
    Column {
        column: u16,
        start: usize,
    },
    /// A range of [`Found::fields`].
    Fields {
        first: usize,
        count: usize,
    },
}

struct Walk<'a> {
    nodes: &'a [Node],
    text: &'a [u8],
    tokens: Tokens<'a>,
    found: &'a mut Found,
    whole: Whole,
}

/// How the tokens of a group follow those before.
struct Sequence {
    /// What no object has: an element without a name.
    not_in_object: u64,
    /// What no array has.
    not_in_array: u64,
    /// Tokens that begin a value in an array, unless it has names.
    elements: u64,
}

impl Sequence {
    /// Tokens of a run that its container, the lowest of `objects`, does not have.
    #[inline(always)]
    fn ill(&self, run: u64, objects: u64) -> u64 {
        // All bits in an object. A branch here would often be guessed wrongly.
        let in_object = (objects & 1).wrapping_neg();
        (self.not_in_object & in_object | self.not_in_array & !in_object) & run
    }
}

/// The kinds of the two tokens before a group.
#[derive(Default)]
struct Before {
    object: u64,
    array: u64,
    colon: u64,
    comma: u64,
    string: u64,
    value_end: u64,
    object_twice: u64,
    comma_twice: u64,
}

impl Before {
    /// Checks what every container wants of its tokens.
    fn sequence(&mut self, group: &Group) -> Walked<Sequence> {
        let Group {
            objects,
            object_ends,
            arrays,
            array_ends,
            colons,
            commas,
            strings,
            scalars,
        } = *group;
        let after_object = objects << 1 | self.object;
        let after_array = arrays << 1 | self.array;
        let after_colon = colons << 1 | self.colon;
        let after_comma = commas << 1 | self.comma;
        let after_string = strings << 1 | self.string;
        let ends = object_ends | array_ends | strings | scalars;
        let after_end = ends << 1 | self.value_end;
        // `{"` or `,"` is before.
        let after_first = after_string & (objects << 2 | self.object_twice);
        let after_next = after_string & (commas << 2 | self.comma_twice);
        *self = Self {
            object: objects >> 63,
            array: arrays >> 63,
            colon: colons >> 63,
            comma: commas >> 63,
            string: strings >> 63,
            value_end: ends >> 63,
            object_twice: objects >> 62,
            comma_twice: commas >> 62,
        };
        let values = objects | arrays | strings | scalars;
        let fault = values & !(after_array | after_colon | after_comma | (strings & after_object))
            | object_ends & !(after_object | after_end)
            | array_ends & !(after_array | after_end)
            | commas & !after_end
            | colons & !(after_first | after_next)
            | after_first & !colons;
        if fault != 0 {
            return Err(GivesUp);
        }
        Ok(Sequence {
            not_in_object: after_comma & !strings | after_next & !colons | array_ends,
            not_in_array: colons | object_ends,
            elements: values & (after_array | after_comma),
        })
    }
}

impl<'a> Walk<'a> {
    fn document(mut self) -> Walked {
        let Tokens {
            positions,
            groups,
            plain_names,
            ..
        } = self.tokens;
        let (text, count) = (self.text, positions.len());
        // A document that is no container is seldom, and the twin's.
        if groups
            .first()
            .is_none_or(|first| (first.objects | first.arrays) & 1 == 0)
        {
            return Err(GivesUp);
        }
        // As if a colon stood before.
        let mut before = Before {
            colon: 1,
            ..Before::default()
        };
        // One bit per open container, 1 = object; the innermost lowest.
        let (mut objects, mut depth) = (0_u64, 0);
        // Of the open containers the outermost ones, which are looked into, and the node of the innermost of these.
        let (mut frames, mut node) = (0, &self.nodes[0]);
        // The container that begins with that token belongs to that node.
        let mut next = (0, 0);
        for (n, group) in groups.iter().enumerate() {
            let base = 64 * n;
            let sequence = before.sequence(group)?;
            let opening = group.objects | group.arrays;
            let mut brackets = opening | group.object_ends | group.array_ends;
            // What is left of the group.
            let mut rest = u64::MAX;
            loop {
                if depth > frames {
                    // Nobody looks in here: only brackets count, until what surrounds it goes on. Branches for what each
                    // bracket is would often be guessed wrongly.
                    let (mut is_ill, mut is_too_deep, mut ends) = (0, false, false);
                    loop {
                        let run = rest & (brackets ^ brackets.wrapping_sub(1));
                        is_ill |= sequence.ill(run, objects);
                        if brackets == 0 {
                            break;
                        }
                        let bracket = brackets & brackets.wrapping_neg();
                        rest &= !run;
                        let opens = opening & bracket != 0;
                        is_too_deep |= opens & (depth == DEEPEST);
                        depth = if opens { depth + 1 } else { depth - 1 };
                        let inner = objects << 1 | u64::from(group.objects & bracket != 0);
                        objects = if opens { inner } else { objects >> 1 };
                        ends = depth == frames;
                        if ends {
                            break;
                        }
                        brackets ^= bracket;
                    }
                    if is_ill != 0 || is_too_deep {
                        return Err(GivesUp);
                    }
                    if !ends {
                        break;
                    }
                    let token = base + brackets.trailing_zeros() as usize;
                    brackets &= brackets.wrapping_sub(1);
                    self.end_whole(token)?;
                    if depth == 0 && token + 1 != count {
                        return Err(GivesUp);
                    }
                    continue;
                }
                // A run is what one container has up to the next bracket, and that.
                let run = rest & (brackets ^ brackets.wrapping_sub(1));
                if sequence.ill(run, objects) != 0 {
                    return Err(GivesUp);
                }
                if objects & 1 == 1 {
                    let mut colons = run & group.colons;
                    // Most names are told from those that lead on by their first byte.
                    let firsts = if plain_names { node.firsts() } else { u64::MAX };
                    while colons != 0 {
                        let colon = base + colons.trailing_zeros() as usize;
                        colons &= colons - 1;
                        let name = *positions.get(colon.wrapping_sub(1)).ok_or(GivesUp)?;
                        let first = text.get(name as usize + 1).ok_or(GivesUp)?;
                        if firsts >> (first & 63) & 1 == 0 {
                            continue;
                        }
                        if let Some(member) = self.member(node, colon)? {
                            self.value(colon + 1, member, &mut next)?;
                        }
                    }
                } else if depth > 0 {
                    self.elements(base, run & sequence.elements, node, &mut next)?;
                }
                if brackets == 0 {
                    break;
                }
                let bracket = brackets & brackets.wrapping_neg();
                let token = base + brackets.trailing_zeros() as usize;
                rest &= !run;
                brackets ^= bracket;
                if opening & bracket != 0 {
                    if depth == DEEPEST {
                        return Err(GivesUp);
                    }
                    let is_object = group.objects & bracket != 0;
                    objects = objects << 1 | u64::from(is_object);
                    depth += 1;
                    if next.0 == token && self.enter(next.1, is_object, token)? {
                        frames += 1;
                        node = &self.nodes[next.1 as usize];
                    }
                } else {
                    // The first bracket opens, so that there is a frame that this closes.
                    node = self.leave(token)?;
                    frames -= 1;
                    depth -= 1;
                    objects >>= 1;
                    if depth == 0 && token + 1 != count {
                        return Err(GivesUp);
                    }
                }
            }
        }
        if depth == 0 { Ok(()) } else { Err(GivesUp) }
    }

    /// Where the member leads whose colon is that token.
    #[inline(never)]
    fn member(&mut self, node: &Node, colon: usize) -> Walked<Option<u32>> {
        let Some([name, colon]) = self.tokens.positions.get(colon - 1..=colon) else {
            return Err(GivesUp);
        };
        let (start, mut end) = (*name as usize, *colon as usize);
        if self.text.get(end.wrapping_sub(1)) != Some(&b'"') {
            end = self.end_before(end);
        }
        let raw = self.text.get(start + 1..end - 1).ok_or(GivesUp)?;
        if self.tokens.plain_names {
            return Ok(node.plain_member(raw));
        }
        self.special_member(node, start, raw)
    }

    /// The same where names may have escapes, dots or `[` in them.
    #[inline(never)]
    fn special_member(&mut self, node: &Node, start: usize, raw: &[u8]) -> Walked<Option<u32>> {
        match self.found.meaning(node, start, raw, raw.contains(&b'\\')) {
            Ok(Meaning::Node(node)) => Ok(Some(node)),
            Ok(Meaning::Other) => Ok(None),
            _ => Err(GivesUp),
        }
    }

    /// Takes elements of the array that the innermost frame is.
    fn elements(&mut self, base: usize, mut elements: u64, node: &Node, next: &mut (usize, u32)) -> Walked {
        // A frame for an array is only opened at a node with `each`.
        let each = node.each.unwrap_or_default();
        while elements != 0 {
            let token = base + elements.trailing_zeros() as usize;
            elements &= elements - 1;
            if let Some(frame) = self.found.frames.last_mut() {
                // Elements begun, this one with them.
                frame.position += 1;
            }
            self.value(token, each, next)?;
        }
        Ok(())
    }

    /// Takes the value that begins with that token and belongs to that node; if it is a container, it begins with the
    /// next bracket, and is taken there.
    #[inline]
    fn value(&mut self, token: usize, node: u32, next: &mut (usize, u32)) -> Walked {
        let positions = self.tokens.positions;
        match (self.tokens.kinds.get(token), positions.get(token..token + 2)) {
            (Some(b'{' | b'['), _) => {
                *next = (token, node);
                Ok(())
            }
            (Some(_), Some([start, next])) => self.scalar(node, *start as usize, *next as usize),
            _ => Err(GivesUp),
        }
    }

    /// Takes a string, number or literal, after which the next token begins at `next`.
    #[inline(never)]
    fn scalar(&mut self, node: u32, start: usize, next: usize) -> Walked {
        let (node, end) = (&self.nodes[node as usize], self.end_before(next));
        if let Some(column) = node.column {
            return self.found.hit(column, start, end).map_err(|_| GivesUp);
        }
        if node.expects_container() && self.text[start..end] != *b"null" {
            return Err(GivesUp);
        }
        for field in &node.fields {
            self.found.fields.push(FieldHit {
                field: *field,
                start: offset(start),
                end: offset(end),
            });
        }
        Ok(())
    }

    /// Where the token ends before that which begins at `at`.
    fn end_before(&self, mut at: usize) -> usize {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = at.checked_sub(1).and_then(|last| self.text.get(last)) {
            at -= 1;
        }
        at
    }

    /// Goes into the container that begins with that token, or waits for its end: whether it has a frame.
    fn enter(&mut self, node_id: u32, is_object: bool, token: usize) -> Walked<bool> {
        let (node, start) = (&self.nodes[node_id as usize], self.tokens.positions[token] as usize);
        if let Some(column) = node.column {
            self.whole = Whole::Column { column, start };
            return Ok(false);
        }
        let (fits, enters) = if is_object {
            (
                node.column_in_members || !node.column_in_elements,
                node.looks_into_members(),
            )
        } else {
            (node.column_in_elements || !node.column_in_members, node.each.is_some())
        };
        if !fits {
            return Err(GivesUp);
        }
        let (first, count) = (self.found.fields.len(), node.fields.len());
        for field in &node.fields {
            self.found.fields.push(FieldHit {
                field: *field,
                start: offset(start),
                end: offset(start),
            });
        }
        if enters {
            self.found.frames.push(Frame {
                node: node_id,
                position: 0,
                is_object,
                first_field: offset(first),
                fields: offset(count),
            });
        } else if count > 0 {
            self.whole = Whole::Fields { first, count };
        }
        Ok(enters)
    }

    /// Leaves the innermost frame, whose last token is that; the node of the one around it.
    fn leave(&mut self, token: usize) -> Walked<&'a Node> {
        let frame = self.found.frames.pop().ok_or(GivesUp)?;
        let end = self.tokens.positions[token] as usize + 1;
        self.found
            .end_fields(frame.first_field as usize, frame.fields as usize, end);
        let around = self.found.frames.last().map_or(0, |frame| frame.node);
        Ok(&self.nodes[around as usize])
    }

    /// The end of a container in the innermost frame that has none itself.
    fn end_whole(&mut self, token: usize) -> Walked {
        let end = self.tokens.positions[token] as usize + 1;
        match std::mem::replace(&mut self.whole, Whole::Nothing) {
            Whole::Nothing => Ok(()),
            Whole::Column { column, start } => self.found.hit(column, start, end).map_err(|_| GivesUp),
            Whole::Fields { first, count } => {
                self.found.end_fields(first, count, end);
                Ok(())
            }
        }
    }
}

/// What the two walkers find in `record`, for tests: panics unless what this one accepts is what the twin finds, on every
/// kernel, and unless it accepts what it should. The twin's result.
#[cfg(any(test, feature = "testing"))]
pub(super) fn compared(locator: &super::Locator, record: &[u8]) -> Result<Found, super::Unlocatable> {
    let mut by_bytes = Found::default();
    let wanted = locator.locate_bytewise(record, &mut by_bytes);
    for kernel in Kernel::all() {
        let mut found = Found::default();
        found.index = Some(Box::new(sealflow_json_index::Index::on(kernel)));
        // Twice, so that what the first leaves behind does not matter.
        for _ in 0..2 {
            let accepted = locator.locate_indexed(record, &mut found);
            assert!(!accepted || wanted.is_ok(), "{kernel:?} accepts what is refused");
            assert!(
                accepted || wanted.is_err() || !is_for_index(record),
                "{kernel:?} gives up on what is right"
            );
            if accepted {
                assert!(found.has_same(&by_bytes), "{kernel:?} finds something else");
            }
        }
    }
    let mut found = Found::default();
    let located = locator.locate(record, &mut found);
    assert_eq!(located, wanted, "the result is the twin's");
    assert!(
        located.is_err() || found.has_same(&by_bytes),
        "what is found is the twin's"
    );
    wanted.map(|()| by_bytes)
}

/// Whether a record that is right is one that this walker takes: a container, not nested too deep.
#[cfg(any(test, feature = "testing"))]
fn is_for_index(record: &[u8]) -> bool {
    let first = super::grammar::space(record, 0);
    let (mut depth, mut deepest, mut at) = (0, 0, first);
    while let Some(byte) = record.get(at) {
        match byte {
            b'"' => {
                let Ok(string) = super::grammar::string(record, at + 1) else {
                    return false;
                };
                at = string.end;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
        at += 1;
    }
    matches!(record.get(first), Some(b'{' | b'[')) && deepest <= DEEPEST && record.len() <= sealflow_json_index::MOST
}
