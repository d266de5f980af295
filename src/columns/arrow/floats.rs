//! Narrow floats as float64 bits and back, every NaN payload included.
//!
//! Hardware conversions make signalling NaNs quiet; these work on the bits.

/// The float64 with the value of these float32 bits; NaNs keep sign and payload.
pub(super) fn widen_f32(bits: u32) -> u64 {
    let value = f32::from_bits(bits);
    if value.is_nan() {
        return widened_nan(u64::from(bits >> 31), u64::from(bits & 0x7f_ffff), 23);
    }
    f64::from(value).to_bits()
}

/// The float32 that widens to these bits, if there is one.
pub(super) fn narrow_f32(bits: u64) -> Option<u32> {
    let value = f64::from_bits(bits);
    let narrow = if value.is_nan() {
        let payload = u32::try_from((bits & MANTISSA) >> (52 - 23)).ok()?;
        sign(bits) << 31 | 0xff << 23 | payload
    } else {
        (value as f32).to_bits()
    };
    (widen_f32(narrow) == bits).then_some(narrow)
}

/// The float64 with the value of these float16 bits; NaNs keep sign and payload.
pub(super) fn widen_f16(bits: u16) -> u64 {
    let sign = u64::from(bits >> 15);
    let exponent = bits >> 10 & 0x1f;
    let mantissa = u64::from(bits & 0x3ff);
    match exponent {
        0x1f if mantissa != 0 => widened_nan(sign, mantissa, 10),
        0x1f => sign << 63 | EXPONENT,
        // Subnormal: mantissa · 2^-24, which a float64 holds exactly.
        0 => sign << 63 | (mantissa as f64 * 2f64.powi(-24)).to_bits(),
        _ => sign << 63 | (u64::from(exponent) + 1023 - 15) << 52 | mantissa << (52 - 10),
    }
}

/// The float16 that widens to these bits, if there is one.
pub(super) fn narrow_f16(bits: u64) -> Option<u16> {
    let sign = u16::try_from(sign(bits)).ok()? << 15;
    let magnitude = f64::from_bits(bits & !(1 << 63));
    let narrow = if magnitude.is_nan() || magnitude.is_infinite() {
        sign | 0x1f << 10 | u16::try_from((bits & MANTISSA) >> (52 - 10)).ok()?
    } else if magnitude < 2f64.powi(-14) {
        // Truncates what is not exact; the comparison below refuses that.
        sign | (magnitude * 2f64.powi(24)) as u16
    } else if magnitude < 65_536.0 {
        let exponent = u16::try_from((bits & EXPONENT) >> 52).ok()? + 15 - 1023;
        sign | exponent << 10 | u16::try_from((bits & MANTISSA) >> (52 - 10)).ok()?
    } else {
        return None;
    };
    (widen_f16(narrow) == bits).then_some(narrow)
}

const MANTISSA: u64 = (1 << 52) - 1;
const EXPONENT: u64 = 0x7ff << 52;

fn widened_nan(sign: u64, payload: u64, payload_bits: u32) -> u64 {
    sign << 63 | EXPONENT | payload << (52 - payload_bits)
}

fn sign(bits: u64) -> u32 {
    u32::from(bits >> 63 == 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_float16_comes_back_and_has_its_value() {
        for bits in 0..=u16::MAX {
            assert_eq!(narrow_f16(widen_f16(bits)), Some(bits), "{bits:#06x}");
        }
        assert_eq!(f64::from_bits(widen_f16(0x3c00)), 1.0);
        assert_eq!(f64::from_bits(widen_f16(0xfbff)), -65504.0);
        assert_eq!(f64::from_bits(widen_f16(0x0001)), 5.960_464_477_539_063e-8);
        for inexact in [0.1, 65_520.0, 1e300, 2f64.powi(-25), 2049.0] {
            assert_eq!(narrow_f16(inexact.to_bits()), None, "{inexact}");
        }
    }

    #[test]
    fn signalling_nans_stay_signalling() {
        for bits in [0x7f80_0001_u32, 0xff80_0001, 0x7fc0_0000, 0x7fff_ffff, 0x7fa0_0000] {
            assert_eq!(narrow_f32(widen_f32(bits)), Some(bits), "{bits:#x}");
        }
        assert_eq!(widen_f32(0x7f80_0001) & 1 << 51, 0);
        assert_eq!(narrow_f32(f64::NAN.to_bits() | 1), None);
    }

    proptest! {
        #[test]
        fn every_float32_comes_back(bits: u32) {
            prop_assert_eq!(narrow_f32(widen_f32(bits)), Some(bits));
        }

        #[test]
        fn a_float64_narrows_exactly_or_not_at_all(bits: u64) {
            prop_assert!(narrow_f32(bits).is_none_or(|narrow| widen_f32(narrow) == bits));
            prop_assert!(narrow_f16(bits).is_none_or(|narrow| widen_f16(narrow) == bits));
        }
    }
}
