//! How bodies are written: integers little-endian, byte strings behind their length (u32), lists behind their count (u32).

use zeroize::Zeroizing;

/// Bytes that are not what they should be. It does not say what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of this protocol")]
pub struct Malformed;

/// Room that is made first, in bytes.
const SMALLEST: usize = 256;

/// Appends the parts of a body. Bodies hold credentials and records: what one outgrows is wiped, and so is the body when it is dropped.
/// `Debug` shows nothing of it.
#[derive(Default)]
pub struct Writer(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Writer({} bytes)", self.0.len())
    }
}

impl Writer {
    /// An empty body with room for `bytes`.
    #[must_use]
    pub fn with_room(bytes: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// The number of what follows. More than 2^32 - 1 of anything do not fit into a frame: the reader refuses what comes of it.
    pub fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    /// Bytes behind their length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.put(bytes);
    }

    /// Bytes whose length the reader knows.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.put(bytes);
    }

    /// Text behind its length.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// What may be absent: a byte, then what is there.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    /// The body.
    #[must_use]
    pub fn finish(self) -> Zeroizing<Vec<u8>> {
        self.0
    }

    /// The one place at which a body grows. A `Vec` that grows by itself leaves what it held in memory that is free.
    fn put(&mut self, bytes: &[u8]) {
        let needed = self.0.len().saturating_add(bytes.len());
        if needed > self.0.capacity() {
            let room = needed.max(self.0.capacity().saturating_mul(2)).max(SMALLEST);
            let mut larger = Zeroizing::new(Vec::with_capacity(room));
            larger.extend_from_slice(&self.0);
            // The smaller one is wiped as it is dropped.
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
    }
}

/// Takes a body apart. Nothing is allocated for what is not there. `Debug` shows nothing of it.
#[derive(Clone, Copy)]
pub struct Reader<'a>(&'a [u8]);

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({} bytes)", self.0.len())
    }
}

impl<'a> Reader<'a> {
    /// Of a whole body.
    #[must_use]
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.raw(N)?.try_into().map_err(|_| Malformed)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A number of things of at least `each` bytes, of which there are at most `most`: no more than the rest of the body can hold.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn count(&mut self, most: usize, each: usize) -> Result<usize, Malformed> {
        let count = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
        let needed = count.checked_mul(each).ok_or(Malformed)?;
        if count > most || needed > self.0.len() {
            return Err(Malformed);
        }
        Ok(count)
    }

    /// Bytes behind their length, at most `most`.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn bytes(&mut self, most: usize) -> Result<&'a [u8], Malformed> {
        let len = self.count(most, 1)?;
        self.raw(len)
    }

    /// Text behind its length, at most `most` bytes.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn text(&mut self, most: usize) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes(most)?).map_err(|_| Malformed)
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// [`Malformed`] for all but 0 and 1.
    pub fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    /// What may be absent.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Malformed>) -> Result<Option<T>, Malformed> {
        match self.flag()? {
            true => read(self).map(Some),
            false => Ok(None),
        }
    }

    /// That nothing follows.
    ///
    /// # Errors
    /// [`Malformed`]
    pub fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use super::*;

    #[test]
    fn a_body_that_outgrows_its_room_is_the_same_body() {
        let mut body = Writer::default();
        for n in 0..10_000_u32 {
            body.u32(n);
            body.text("canary");
        }
        let body = body.finish();
        let mut from = Reader::new(&body);
        for n in 0..10_000 {
            assert_eq!((from.u32(), from.text(6)), (Ok(n), Ok("canary")));
        }
        from.end().unwrap();
    }

    #[test]
    fn a_body_never_moves_in_the_room_that_it_was_given() {
        let mut body = Writer::with_room(4_096);
        let (at, capacity) = (body.0.as_ptr(), body.0.capacity());
        for n in 0..256 {
            body.u64(n);
            body.raw(&[7; 8]);
        }
        assert_eq!(
            (body.0.as_ptr(), body.0.capacity(), body.0.len()),
            (at, capacity, 4_096)
        );
        // And what has no room moves whole.
        body.u8(1);
        assert!(body.0.capacity() >= 8_192);
        let end = body.0.as_ptr();
        let finished = body.finish();
        assert_eq!(
            (finished.as_ptr(), finished.len()),
            (end, 4_097),
            "not copied to be handed out"
        );
    }

    #[test]
    fn bodies_grow_in_one_place_and_are_wiped() {
        let source = include_str!("wire.rs");
        let code = source.split("#[cfg(test)]").next().unwrap();
        let writer = &code[code.find("impl Writer").unwrap()..code.find("/// Takes a body apart").unwrap()];
        let into = |what: &str| writer.matches(what).count();
        assert_eq!((into("self.0.extend_from_slice"), into("self.0 = larger")), (1, 1));
        for other in [
            "self.0.push",
            "self.0.extend(",
            "self.0.resize",
            "self.0.append",
            "self.0.reserve",
            "self.0.write",
        ] {
            assert_eq!(into(other), 0, "{other}");
        }
        // The type says that both are wiped: the old room when it is replaced, the last one when it is dropped.
        fn is_wiped<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        is_wiped(&Writer::default().finish());
    }
}
