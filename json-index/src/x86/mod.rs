//! The kernels for x86-64. All that is `unsafe` is in `memory` and in the two calls here.

/// Functions for processors of which [`has_avx512`] is true.
macro_rules! on_avx512 {
    ($($(#[$more:meta])* $visible:vis fn $name:ident($($given:tt)*) $(-> $result:ty)? $body:block)*) => {
        $($(#[$more])*
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,vpclmulqdq,pclmulqdq,popcnt,bmi1,bmi2,lzcnt")]
        $visible fn $name($($given)*) $(-> $result)? $body)*
    };
}

/// Functions for processors of which [`has_avx2`] is true.
macro_rules! on_avx2 {
    ($($(#[$more:meta])* $visible:vis fn $name:ident($($given:tt)*) $(-> $result:ty)? $body:block)*) => {
        $($(#[$more])*
        #[inline]
        #[target_feature(enable = "avx2,pclmulqdq,popcnt,bmi1,bmi2,lzcnt")]
        $visible fn $name($($given)*) $(-> $result)? $body)*
    };
}

mod avx2;
mod avx512;
mod memory;

pub(crate) use avx512::Part;
pub(crate) use memory::prefetch;

use crate::Room;
use crate::scan::Summary;

/// Whether this processor has what the functions of `avx512` are compiled for.
pub(crate) fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("vpclmulqdq")
}

/// Whether this processor has what the functions of `avx2` are compiled for.
pub(crate) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("pclmulqdq")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
}

#[allow(unsafe_code)] // the way into code for AVX-512
pub(crate) fn by_avx512(text: &[u8], room: &mut Room) -> Option<Summary> {
    // SAFETY: `Index::on` keeps this kernel only where `has_avx512`.
    unsafe { avx512::index(text, room) }
}

#[allow(unsafe_code)] // the way into code for AVX2
pub(crate) fn by_avx2(text: &[u8], room: &mut Room) -> Option<Summary> {
    // SAFETY: `Index::on` keeps this kernel only where `has_avx2`.
    unsafe { avx2::index(text, room) }
}
