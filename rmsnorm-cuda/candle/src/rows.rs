//! Where the rows of a tensor lie.

use candle_core::{Layout, Result, Tensor};

/// Rows at one stride: all that a call can be told of a layout. In elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) rows: usize,
    pub(crate) hidden: usize,
    pub(crate) offset: usize,
    pub(crate) row_stride: usize,
}

impl Place {
    /// The rows along the last dimension, if one stride leads from each to the next, and their elements are neighbours.
    pub(crate) fn of(layout: &Layout) -> Option<Self> {
        let ((&hidden, leading), (&step, strides)) = (layout.dims().split_last()?, layout.stride().split_last()?);
        let place = |rows, row_stride| Place { rows, hidden, offset: layout.start_offset(), row_stride };
        let rows = leading.iter().product();
        if rows == 0 {
            return Some(place(0, hidden));
        }
        // From the innermost dimension outwards: each steps over all of those inside it.
        let mut at = None;
        for (&dim, &stride) in leading.iter().zip(strides).rev().filter(|(dim, _)| **dim > 1) {
            let (_, span) = *at.get_or_insert((stride, stride));
            if stride != span {
                return None;
            }
            at = at.map(|(row_stride, span)| (row_stride, span * dim));
        }
        let row_stride = at.map_or(hidden, |(row_stride, _)| row_stride);
        let apart = row_stride == 0 || row_stride >= hidden;
        (apart && (hidden < 2 || step == 1)).then(|| place(rows, row_stride))
    }

    /// The same of a tensor; of a copy of it where its layout is another.
    pub(crate) fn in_tensor(tensor: &Tensor) -> Result<(Tensor, Self)> {
        if let Some(place) = Place::of(tensor.layout()) {
            return Ok((tensor.clone(), place));
        }
        let copy = tensor.contiguous()?;
        let place = Place::of(copy.layout());
        let place = place.ok_or_else(|| candle_core::Error::msg("RMSNorm needs a last dimension to work along"))?;
        Ok((copy, place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Shape};

    fn place(dims: &[usize], strides: &[usize], offset: usize) -> Option<Place> {
        Place::of(&Layout::new(Shape::from(dims), strides.to_vec(), offset))
    }

    #[test]
    fn rows_at_one_stride() {
        let at = |rows, offset, row_stride| Some(Place { rows, hidden: 4, offset, row_stride });
        assert_eq!(place(&[4], &[1], 7), at(1, 7, 4));
        assert_eq!(place(&[2, 3, 4], &[12, 4, 1], 0), at(6, 0, 4));
        assert_eq!(place(&[2, 3, 4], &[36, 12, 1], 8), at(6, 8, 12)); // a slice of rows of 12
        assert_eq!(place(&[2, 1, 4], &[10, 99, 1], 0), at(2, 0, 10)); // nothing steps along a dimension of one
        assert_eq!(place(&[5, 3, 4], &[0, 0, 1], 0), at(15, 0, 0)); // one row, seen often
        assert_eq!(place(&[0, 4], &[1, 1], 3), at(0, 3, 4));
        assert_eq!(place(&[3, 1], &[5, 9], 0), Some(Place { rows: 3, hidden: 1, offset: 0, row_stride: 5 }));
    }

    #[test]
    fn other_layouts() {
        assert_eq!(place(&[], &[], 0), None);
        assert_eq!(place(&[3, 4], &[1, 3], 0), None); // transposed
        assert_eq!(place(&[3, 4], &[0, 0], 0), None); // what `sum_all` gives back
        assert_eq!(place(&[2, 3, 4], &[4, 8, 1], 0), None); // two strides
        assert_eq!(place(&[2, 3, 4], &[0, 4, 1], 0), None);
        assert_eq!(place(&[3, 4], &[2, 1], 0), None); // rows that overlap
    }

    #[test]
    fn copies_only_what_must_be() -> Result<()> {
        let packed = Tensor::arange(0f32, 24.0, &Device::Cpu)?.reshape((2, 12))?;
        let (view, place) = Place::in_tensor(&packed.narrow(1, 4, 4)?)?;
        assert_eq!((view.is_contiguous(), place), (false, Place { rows: 2, hidden: 4, offset: 4, row_stride: 12 }));
        let (copy, place) = Place::in_tensor(&packed.t()?)?;
        assert_eq!((copy.is_contiguous(), place), (true, Place { rows: 12, hidden: 2, offset: 0, row_stride: 2 }));
        assert!(Place::in_tensor(&Tensor::zeros((), DType::F32, &Device::Cpu)?).is_err());
        Ok(())
    }
}
