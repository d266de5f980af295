//! The text of `_extra`: what of a record has no column of its own, as one JSON object (`docs/format.md`, "What has no
//! column of its own").

use std::ops::Range;

use zeroize::Zeroizing;

/// The member of an object in `_extra` with its members that stood there before: `[{"name":value},…]`.
pub const DUPLICATES: &str = "$duplicates";

/// A text that grows and is cut back; what it held is wiped.
#[derive(Default)]
pub(super) struct ExtraText {
    bytes: Zeroizing<Vec<u8>>,
}

/// Members of one object that stood there before: ranges of their names and values.
pub(super) type Again = Vec<(Range<usize>, Range<usize>)>;

impl ExtraText {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Cuts it back to an earlier length.
    pub(super) fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }

    pub(super) fn write(&mut self, text: &[u8]) {
        self.reserve(text.len());
        self.bytes.extend_from_slice(text);
    }

    /// Puts the name of a member before its value, which is the text from `start` on.
    pub(super) fn name_before(&mut self, start: usize, is_first: bool, name: &[u8]) {
        let room = self.room_at(start, name.len() + 2);
        room[0] = if is_first { b'{' } else { b',' };
        room[1..=name.len()].copy_from_slice(name);
        room[name.len() + 1] = b':';
    }

    /// Puts the beginning of a list before the text from `start` on: for each of `count` elements before it, a null.
    pub(super) fn list_before(&mut self, start: usize, count: usize) {
        let room = self.room_at(start, 1 + count * 5);
        room[0] = b'[';
        for null in room[1..].chunks_exact_mut(5) {
            null.copy_from_slice(b"null,");
        }
    }

    /// Moves the text from `start` on by `len` bytes, which are to be filled.
    fn room_at(&mut self, start: usize, len: usize) -> &mut [u8] {
        self.reserve(len);
        let end = self.bytes.len();
        self.bytes.resize(end + len, 0);
        self.bytes.copy_within(start..end, start + len);
        &mut self.bytes[start..start + len]
    }

    /// The members that stood there before.
    pub(super) fn again(&mut self, is_first: bool, record: &[u8], again: Again) {
        self.write(if is_first { b"{\"" } else { b",\"" });
        self.write(DUPLICATES.as_bytes());
        self.write(b"\":");
        let mut before: &[u8] = b"[";
        for (name, value) in again {
            self.write(before);
            self.write(b"{");
            self.write(&record[name]);
            self.write(b":");
            self.write(&record[value]);
            self.write(b"}");
            before = b",";
        }
        self.write(b"]");
    }

    /// Makes room by moving to a larger buffer, whose old one is wiped, instead of a silent `realloc`.
    fn reserve(&mut self, room: usize) {
        let wanted = self.bytes.len() + room;
        if wanted > self.bytes.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(wanted.next_power_of_two()));
            larger.extend_from_slice(&self.bytes);
            self.bytes = larger;
        }
    }
}
