//! Keys and headers of a batch, many in one buffer.

use bytes::{Bytes, BytesMut};

/// Bytes of the first buffer, and of the largest one.
const SIZES: (usize, usize) = (256, 64 << 10);

/// Copies short texts into buffers that they share: they ask for memory once for many.
#[derive(Default)]
pub(super) struct Pool {
    free: BytesMut,
    next: usize,
}

impl Pool {
    pub(super) fn copy(&mut self, text: &[u8]) -> Bytes {
        if self.free.capacity() < text.len() {
            self.next = (self.next * 2).clamp(SIZES.0, SIZES.1);
            self.free = BytesMut::with_capacity(self.next.max(text.len()));
        }
        self.free.extend_from_slice(text);
        self.free.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_all_lengths_are_kept_beside_each_other() {
        let mut pool = Pool::default();
        let texts = (0..400).chain([70_000, 3]).map(|len| vec![len as u8; len]);
        let copied: Vec<(Vec<u8>, Bytes)> = texts.map(|text| (text.clone(), pool.copy(&text))).collect();
        assert!(copied.iter().all(|(text, copy)| text == copy));
    }
}
