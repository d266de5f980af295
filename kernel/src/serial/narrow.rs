//! Registers of one block.

macro_rules! on_these {
    ($($code:tt)*) => { with_aes! { inline, $($code)* } };
}

macro_rules! never_inlined {
    ($($code:tt)*) => { with_aes! { inline(never), $($code)* } };
}

/// What the two say with these registers.
mod registers {
    pub(super) use crate::serial::lanes::{
        Lane as Register, add, and, exclusive_or, last_round, load, multiply_high, multiply_low, ones, round, select,
        shuffle, start, store, swap, zero,
    };

    use crate::serial::lanes::Lane;

    /// Blocks of a register.
    pub(super) const WIDTH: usize = 1;

    on_these! {
        pub(in crate::serial) fn all(x: Lane) -> Register {
            x
        }

        /// 0, 1, …
        pub(in crate::serial) fn count() -> Register {
            zero()
        }

        /// The block in the first lane, nothing in the others.
        pub(in crate::serial) fn first(x: Lane) -> Register {
            x
        }

        pub(in crate::serial) fn fold(x: Register) -> Lane {
            x
        }
    }
}

#[path = "column.rs"]
mod column;
#[path = "long.rs"]
mod long;
pub(super) use column::column;
