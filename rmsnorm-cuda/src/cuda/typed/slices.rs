//! cudarc's memory of each element type as one type.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};

use crate::{bf16, f16};

/// Memory of a GPU that is read: from `&CudaSlice`, `&CudaView` or `&CudaViewMut` of `f32`, `f16` or `bf16`.
#[derive(Clone, Copy)]
pub struct GpuSlice<'a>(pub(super) Read<'a>);

/// Memory of a GPU that is written: from `&mut CudaSlice` or `&mut CudaViewMut` of `f32`, `f16` or `bf16`.
pub struct GpuSliceMut<'a>(pub(super) Write<'a>);

// Made of cudarc's own types only. Its traits are safe to implement, and nobody vouches for what others return from them.
#[derive(Clone, Copy)]
pub(super) enum Read<'a> {
    F32(&'a dyn DevicePtr<f32>),
    F16(&'a dyn DevicePtr<f16>),
    Bf16(&'a dyn DevicePtr<bf16>),
}

pub(super) enum Write<'a> {
    F32(&'a mut dyn DevicePtrMut<f32>),
    F16(&'a mut dyn DevicePtrMut<f16>),
    Bf16(&'a mut dyn DevicePtrMut<bf16>),
}

macro_rules! from_cudarc {
    ($($outer:ident from &$lifetime:lifetime $($memory:ty),+ => $variant:path;)*) => {$($(
        impl<$lifetime> From<$memory> for $outer<$lifetime> {
            fn from(data: $memory) -> Self {
                $outer($variant(data))
            }
        }
    )+)*};
}

from_cudarc! {
    GpuSlice from &'a &'a CudaSlice<f32>, &'a CudaView<'_, f32>, &'a CudaViewMut<'_, f32> => Read::F32;
    GpuSlice from &'a &'a CudaSlice<f16>, &'a CudaView<'_, f16>, &'a CudaViewMut<'_, f16> => Read::F16;
    GpuSlice from &'a &'a CudaSlice<bf16>, &'a CudaView<'_, bf16>, &'a CudaViewMut<'_, bf16> => Read::Bf16;
    GpuSliceMut from &'a &'a mut CudaSlice<f32>, &'a mut CudaViewMut<'_, f32> => Write::F32;
    GpuSliceMut from &'a &'a mut CudaSlice<f16>, &'a mut CudaViewMut<'_, f16> => Write::F16;
    GpuSliceMut from &'a &'a mut CudaSlice<bf16>, &'a mut CudaViewMut<'_, bf16> => Write::Bf16;
}

impl GpuSlice<'_> {
    pub(super) fn len(&self) -> usize {
        match self.0 {
            Read::F32(data) => data.len(),
            Read::F16(data) => data.len(),
            Read::Bf16(data) => data.len(),
        }
    }
}

impl GpuSliceMut<'_> {
    pub(super) fn len(&self) -> usize {
        match &self.0 {
            Write::F32(data) => data.len(),
            Write::F16(data) => data.len(),
            Write::Bf16(data) => data.len(),
        }
    }
}
