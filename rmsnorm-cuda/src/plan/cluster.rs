//! What the blocks of a cluster need, and where they can work.

use super::class::{Class, stages_in_table};
use super::{Arch, Calls, GRID_MAX, Tuning, is_aligned};
use crate::Dtype;

/// Whether clusters of this class can work on such rows on this GPU: not before compute capability 9.0, nor from 12.0 on, where blocks have
/// too little shared memory. How many are resident at once is the GPU's affair: the tables say how many an H200 holds. One that
/// holds fewer takes longer in proportion, and one with fewer multiprocessors is planned for as many as share the groups equally.
pub(super) fn fits(class: Class, calls: &Calls, arch: &Arch) -> bool {
    is_aligned(class, calls)
        && ((9, 0)..(12, 0)).contains(&arch.compute_capability)
        && arch.block_shared_bytes >= CLUSTER_SHARED_BYTES
        && arch.sm_count >= class.cluster
        && calls.all_rows() <= GRID_MAX / class.cluster as usize
}

/// Bytes that a block of a cluster has of a row in one pack of each thread.
pub(super) fn slice_bytes(class: Class, dtype: Dtype) -> u32 {
    class.team * class.pack * dtype.bytes() as u32
}

/// Packs of the next row that a block of a cluster takes before the second pass over this one: half of them, or one where the ring has no
/// room for more.
pub(crate) fn lead(class: Class, dtype: Dtype) -> u32 {
    if class.pack as usize * dtype.bytes() > 16 { 1 } else { class.packs.div_ceil(2) }
}

/// Whether the threads of a cluster's blocks have registers for the weight beside the column sums: 96 KiB of a multiprocessor's, or 48 where
/// 1024 threads share them.
pub(crate) fn keeps_weight(class: Class, weight: Option<Dtype>) -> bool {
    let bytes = class.threads() as usize * (class.packs * class.pack) as usize * (4 + weight.map_or(0, Dtype::bytes));
    bytes <= if class.threads() < 1024 { 96 << 10 } else { 48 << 10 }
}

/// Shared memory that the weight takes otherwise.
pub(super) fn weight_bytes(class: Class, calls: &Calls) -> u32 {
    match calls.weight {
        Some(dtype) if !keeps_weight(class, calls.weight) => class.packs * slice_bytes(class, dtype),
        _ => 0,
    }
}

/// Stages of the ring of a block of a cluster: at least as many as it has to hold at once.
pub(super) fn stages(class: Class, calls: &Calls, tuning: &Tuning) -> u32 {
    let planned = stages_in_table(calls.hidden, calls.dtype);
    let room = CLUSTER_SHARED_BYTES - CLUSTER_BYTES - weight_bytes(class, calls);
    let fit = room / (2 * slice_bytes(class, calls.dtype));
    let most = fit.min(CLUSTER_STAGES_MAX);
    tuning.stages.unwrap_or(planned).clamp(class.packs + lead(class, calls.dtype), most)
}

/// Most shared memory of a block of a cluster: what it can have on the GPUs that these kernels are for.
pub(super) const CLUSTER_SHARED_BYTES: u32 = 227 << 10;

/// What lies in front of the slices of rows in it (cluster.cuh).
pub(crate) const CLUSTER_BYTES: u32 = 2 << 10;

/// Most stages of a cluster's ring, and slices of a row in forward.
pub(crate) const CLUSTER_STAGES_MAX: u32 = 16;
