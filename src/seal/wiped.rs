//! Plaintext of whole columns, wiped on drop.

use std::ops::{Deref, DerefMut};

/// A vector of bytes that is wiped on drop, to the end of its capacity, as `Zeroizing<Vec<u8>>` is, but not byte by byte. As with
/// that, what it leaves behind when it grows is not.
pub(super) struct Wiped(Vec<u8>);

impl Wiped {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        // It has that capacity, and does not move.
        self.0.resize(self.0.capacity(), 0);
        zeroize::zeroize_bytes(&mut self.0);
    }
}

impl Deref for Wiped {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for Wiped {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}
