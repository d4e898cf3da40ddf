//! Where the rows of a tensor lie.

use candle_core::{Layout, Result, Tensor};
use rmsnorm_cuda::Rows;

/// Rows of one or two levels: all that a call can be told of a layout. In elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) rows: usize,
    /// Rows of a group; 1 of one level.
    pub(crate) inner: usize,
    pub(crate) hidden: usize,
    offset: usize,
    row_stride: usize,
    outer_stride: Option<usize>,
}

impl Place {
    /// The rows along the last dimension, if their elements are neighbours, and one stride leads from each to the next, or two do, of which one steps over
    /// all that the other does.
    pub(crate) fn of(layout: &Layout) -> Option<Self> {
        let ((&hidden, leading), (&step, strides)) = (layout.dims().split_last()?, layout.stride().split_last()?);
        let offset = layout.start_offset();
        let place = |rows, row_stride| Place { rows, inner: 1, hidden, offset, row_stride, outer_stride: None };
        let rows = leading.iter().product();
        if rows == 0 {
            return Some(place(0, hidden));
        }
        // From the innermost dimension outwards; one that steps over just what is inside it is of that level.
        let mut levels: Vec<(usize, usize)> = Vec::new();
        for (&dim, &stride) in leading.iter().zip(strides).rev().filter(|(dim, _)| **dim > 1) {
            match levels.last_mut() {
                Some((count, inside)) if *count * *inside == stride => *count *= dim,
                _ => levels.push((dim, stride)),
            }
        }
        let place = match levels[..] {
            [] => place(rows, hidden),
            [(_, stride)] if stride == 0 || stride >= hidden => place(rows, stride),
            [(inner, stride), (outer, outer_stride)] => {
                let [(count, near), (_, far)] = match stride <= outer_stride {
                    true => [(inner, stride), (outer, outer_stride)],
                    false => [(outer, outer_stride), (inner, stride)],
                };
                let is_nested = near >= hidden && (count - 1) * near + hidden <= far;
                is_nested.then(|| Place { inner, outer_stride: Some(outer_stride), ..place(rows, stride) })?
            }
            _ => return None,
        };
        (hidden < 2 || step == 1).then_some(place)
    }

    /// The same of a tensor; of a copy of it where its layout is another.
    pub(crate) fn in_tensor(tensor: &Tensor) -> Result<(Tensor, Self)> {
        match Place::of(tensor.layout()) {
            Some(place) => Ok((tensor.clone(), place)),
            None => Place::in_copy(tensor),
        }
    }

    /// The same, for a call in which other rows lie at `other`: its groups are of one size.
    pub(crate) fn beside(other: Place, tensor: &Tensor) -> Result<(Tensor, Self)> {
        match Place::in_tensor(tensor)? {
            (_, Place { inner, .. }) if inner > 1 && other.inner > 1 && inner != other.inner => Place::in_copy(tensor),
            found => Ok(found),
        }
    }

    fn in_copy(tensor: &Tensor) -> Result<(Tensor, Self)> {
        let copy = tensor.contiguous()?;
        let place = Place::of(copy.layout());
        let place = place.ok_or_else(|| candle_core::Error::msg("RMSNorm needs a last dimension to work along"))?;
        Ok((copy, place))
    }

    /// The rows in the memory that they lie in.
    pub(crate) fn rows_of<D>(self, data: D) -> Rows<D> {
        let Place { offset, row_stride, outer_stride, .. } = self;
        Rows { data, offset, row_stride, outer_stride }
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
        let one =
            |rows, offset, row_stride| Place { rows, inner: 1, hidden: 4, offset, row_stride, outer_stride: None };
        let at = |rows, offset, row_stride| Some(one(rows, offset, row_stride));
        assert_eq!(place(&[4], &[1], 7), at(1, 7, 4));
        assert_eq!(place(&[2, 3, 4], &[12, 4, 1], 0), at(6, 0, 4));
        assert_eq!(place(&[2, 3, 4], &[36, 12, 1], 8), at(6, 8, 12)); // a slice of rows of 12
        assert_eq!(place(&[2, 1, 4], &[10, 99, 1], 0), at(2, 0, 10)); // nothing steps along a dimension of one
        assert_eq!(place(&[5, 3, 4], &[0, 0, 1], 0), at(15, 0, 0)); // one row, seen often
        assert_eq!(place(&[0, 4], &[1, 1], 3), at(0, 3, 4));
        assert_eq!(place(&[3, 1], &[5, 9], 0), Some(Place { hidden: 1, ..one(3, 0, 5) }));
    }

    #[test]
    fn rows_of_two_levels() {
        let at = |(rows, inner), offset, row_stride, outer| {
            Some(Place { rows, inner, hidden: 4, offset, row_stride, outer_stride: Some(outer) })
        };
        assert_eq!(place(&[2, 3, 4], &[4, 8, 1], 0), at((6, 3), 0, 8, 4)); // heads first
        assert_eq!(place(&[5, 3, 4], &[36, 4, 1], 12), at((15, 3), 12, 4, 36)); // the second of three in a packed buffer
        assert_eq!(place(&[2, 5, 3, 4], &[180, 36, 4, 1], 12), at((30, 3), 12, 4, 36)); // the same in batches
        assert_eq!(place(&[1, 3, 5, 4], &[999, 4, 12, 1], 0), at((15, 5), 0, 12, 4)); // heads first of a batch of one
    }

    #[test]
    fn other_layouts() {
        assert_eq!(place(&[], &[], 0), None);
        assert_eq!(place(&[3, 4], &[1, 3], 0), None); // transposed
        assert_eq!(place(&[3, 4], &[0, 0], 0), None); // what `sum_all` gives back
        assert_eq!(place(&[2, 3, 5, 4], &[120, 4, 24, 1], 0), None); // three levels
        assert_eq!(place(&[2, 3, 4], &[0, 4, 1], 0), None); // a group seen often
        assert_eq!(place(&[2, 3, 4], &[8, 4, 1], 0), None); // groups that overlap
        assert_eq!(place(&[2, 3, 4], &[4, 7, 1], 0), None);
        assert_eq!(place(&[3, 4], &[2, 1], 0), None); // rows that overlap
    }

    #[test]
    fn copies_only_what_must_be() -> Result<()> {
        let packed = Tensor::arange(0f32, 24.0, &Device::Cpu)?.reshape((2, 12))?;
        let (view, place) = Place::in_tensor(&packed.narrow(1, 4, 4)?)?;
        assert_eq!((view.is_contiguous(), place.rows, place.offset, place.row_stride), (false, 2, 4, 12));
        let (copy, place) = Place::in_tensor(&packed.t()?)?;
        assert_eq!((copy.is_contiguous(), place.rows, place.offset, place.row_stride), (true, 12, 0, 2));
        let turned = |shape: (usize, usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu)?.transpose(0, 1);
        let (threes, twos) = (turned((3, 2, 4))?, turned((2, 3, 4))?);
        let at = Place::in_tensor(&threes)?.1;
        let inner = |tensor| Ok::<_, candle_core::Error>(Place::beside(at, tensor)?.1.inner);
        assert_eq!((at.inner, inner(&threes)?, inner(&twos)?, Place::in_tensor(&twos)?.1.inner), (3, 3, 1, 2));
        assert!(Place::in_tensor(&Tensor::zeros((), DType::F32, &Device::Cpu)?).is_err());
        Ok(())
    }
}
