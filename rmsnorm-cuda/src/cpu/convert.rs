//! Conversions that vectorise.

use crate::Slice;
use crate::arith::Element;
use half::{bf16, f16};

/// [`Element::widen`] and [`Element::store`] without a library call.
pub(super) trait Packed: Element {
    #[inline(always)]
    fn unpack(self) -> f32 {
        self.widen()
    }
    /// `number` promises that the value is not NaN.
    fn pack(value: f32, number: bool) -> Self;
    /// What a slice holds that is known to be of this type.
    fn of(data: Slice<'_>) -> &[Self];
}

impl Packed for f32 {
    fn of(data: Slice<'_>) -> &[Self] {
        if let Slice::F32(data) = data { data } else { unreachable!("checked: f32") }
    }
    #[inline(always)]
    fn pack(value: f32, number: bool) -> Self {
        if number { value } else { Self::store(value) }
    }
}

impl Packed for bf16 {
    fn of(data: Slice<'_>) -> &[Self] {
        if let Slice::Bf16(data) = data { data } else { unreachable!("checked: bf16") }
    }
    #[inline(always)]
    fn pack(value: f32, number: bool) -> Self {
        let bits = value.to_bits();
        let rounded = bf16::from_bits((bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16);
        if number { rounded } else { Self::store(value) }
    }
}

/// `half` asks for every element what the processor can do. These are the same conversions as arithmetic on bits.
impl Packed for f16 {
    fn of(data: Slice<'_>) -> &[Self] {
        if let Slice::F16(data) = data { data } else { unreachable!("checked: f16") }
    }
    #[inline(always)]
    fn unpack(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = (bits & 0x7fff) << 13;
        // The exponent is rebased by 112, and once more for Inf and NaN. A subnormal gets the exponent of the least normal
        // number and a leading one, which the subtraction takes away again.
        let rebased = magnitude + if magnitude < 0x1f << 23 { 112 << 23 } else { 224 << 23 };
        let subnormal = f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23);
        let value = if magnitude < 1 << 23 { subnormal.to_bits() } else { rebased };
        f32::from_bits(value | (bits & 0x8000) << 16)
    }
    #[inline(always)]
    fn pack(value: f32, number: bool) -> Self {
        let sign = value.to_bits() >> 16 & 0x8000;
        let magnitude = value.to_bits() & 0x7fff_ffff;
        // As for bf16; 65520 and more become infinite. Below 2^-14 an addition rounds: 0.5 has its last place at 2^-24.
        let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5_f32.to_bits();
        let finite = if magnitude < 113 << 23 { subnormal } else { normal.min(0x7c00) };
        f16::from_bits(if !number && magnitude > 0x7f80_0000 { 0x7fff } else { (sign | finite) as u16 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_are_those_of_element() {
        fn check(v: f32) {
            for number in [false, !v.is_nan()] {
                assert_eq!(f16::pack(v, number).to_bits(), f16::store(v).to_bits(), "{v:e}");
                assert_eq!(bf16::pack(v, number).to_bits(), bf16::store(v).to_bits(), "{v:e}");
                assert_eq!(f32::pack(v, number).to_bits(), f32::store(v).to_bits(), "{v:e}");
            }
        }
        for bits in 0..=u16::MAX {
            let v = f16::from_bits(bits);
            assert_eq!(f32::store(v.unpack()).to_bits(), f32::store(v.widen()).to_bits(), "{bits:#x}");
            // Around every f16 and bf16 and around every half-way point between two.
            for (value, half) in [(v.widen(), 1 << 12), (bf16::from_bits(bits).widen(), 1 << 15)] {
                for near in [0, half].into_iter().flat_map(|by| [-1, 0, 1].map(|step| by + step)) {
                    check(f32::from_bits(value.to_bits().wrapping_add_signed(near)));
                }
            }
        }
        for bits in (0..=u32::MAX).step_by(1009) {
            check(f32::from_bits(bits));
        }
    }
}
