//! The GPUs that are planned for.

/// What a plan needs to know of a GPU. Never reaches a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// Number of multiprocessors.
    pub sm_count: u32,
    /// Most threads resident on one multiprocessor.
    pub threads_per_sm: u32,
    /// Most shared memory that one block can have.
    pub block_shared_bytes: u32,
    /// Size of the L2 cache.
    pub l2_bytes: u32,
    /// What the memory's clock and width come to, in bytes a microsecond. 0: unknown.
    pub memory_bytes_per_us: u32,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
}

impl Arch {
    /// NVIDIA A100 (80 GB).
    pub const A100: Arch = Arch {
        sm_count: 108,
        threads_per_sm: 2048,
        block_shared_bytes: 163 << 10,
        l2_bytes: 40 << 20,
        memory_bytes_per_us: 2_039_000,
        compute_capability: (8, 0),
    };
    /// NVIDIA A10.
    pub const A10: Arch = Arch {
        sm_count: 72,
        threads_per_sm: 1536,
        block_shared_bytes: 99 << 10,
        l2_bytes: 6 << 20,
        memory_bytes_per_us: 600_000,
        compute_capability: (8, 6),
    };
    /// NVIDIA L40S.
    pub const L40S: Arch = Arch {
        sm_count: 142,
        threads_per_sm: 1536,
        block_shared_bytes: 99 << 10,
        l2_bytes: 96 << 20,
        memory_bytes_per_us: 864_000,
        compute_capability: (8, 9),
    };
    /// NVIDIA H200.
    pub const H200: Arch = Arch {
        sm_count: 132,
        threads_per_sm: 2048,
        block_shared_bytes: 227 << 10,
        l2_bytes: 60 << 20,
        memory_bytes_per_us: 4_814_000,
        compute_capability: (9, 0),
    };
    /// NVIDIA B200.
    pub const B200: Arch = Arch {
        sm_count: 148,
        threads_per_sm: 2048,
        block_shared_bytes: 227 << 10,
        l2_bytes: 126 << 20,
        memory_bytes_per_us: 8_000_000,
        compute_capability: (10, 0),
    };
    /// NVIDIA GeForce RTX 5090.
    pub const RTX_5090: Arch = Arch {
        sm_count: 170,
        threads_per_sm: 1536,
        block_shared_bytes: 99 << 10,
        l2_bytes: 96 << 20,
        memory_bytes_per_us: 1_792_000,
        compute_capability: (12, 0),
    };
    /// Every architecture named here.
    pub const ALL: [(&'static str, Arch); 6] = [
        ("A100", Arch::A100),
        ("A10", Arch::A10),
        ("L40S", Arch::L40S),
        ("H200", Arch::H200),
        ("B200", Arch::B200),
        ("RTX 5090", Arch::RTX_5090),
    ];
}
