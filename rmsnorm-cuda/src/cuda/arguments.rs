//! The parameters of each kernel, in the order of the cells that a launch fills.

use super::module::Grouping;

/// The arguments of a launch, in order; one of four bytes lies in the low half of its cell. Cells past the last are 0.
pub(super) type Cells = [u64; ARGUMENTS_MAX];

/// As many cells as the longest list of parameters.
pub(super) const ARGUMENTS_MAX: usize = 24;

/// A kernel's parameters, behind the semicolon those that it has where rows are grouped alone; and a struct with a cell for each.
macro_rules! arguments {
    ($(#[$doc:meta])* $name:ident: $type0:literal $field0:ident $(, $type:literal $field:ident)+; $($of_groups:ident),*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default)]
        pub(super) struct $name {
            pub(super) $field0: u64,
            $(pub(super) $field: u64,)+
            $(pub(super) $of_groups: u64,)*
        }

        impl $name {
            /// What is behind the semicolon.
            #[allow(dead_code, reason = "kernels over rows have a list of both directions")]
            pub(super) const OF_GROUPS: &[&str] = &[$(stringify!($of_groups)),*];

            /// The list in C++.
            pub(super) fn parameters(grouping: Grouping) -> String {
                let always = concat!($type0, " ", stringify!($field0) $(, ", ", $type, " ", stringify!($field))+);
                let of_groups = concat!($(", u64 ", stringify!($of_groups)),*);
                format!("{always}{}", if grouping == Grouping::None { "" } else { of_groups })
            }

            pub(super) fn cells(&self) -> Cells {
                let mut cells = [0; ARGUMENTS_MAX];
                let all = [self.$field0 $(, self.$field)+ $(, self.$of_groups)*];
                cells[..all.len()].copy_from_slice(&all);
                cells
            }
        }
    };
}

arguments! {
    /// Of `forward` and `forward_few`. Streamed rows alone need `chains`.
    ForwardArguments:
    "const X*" x, "u64" x_stride, "const R*" residual, "u64" residual_stride, "T*" z_out, "u64" z_out_stride, "const W*" weight, "Y*" y, "u64" y_stride, "float*" rstd, "u64" rows, "u32" hidden_given,
    "u32" chains, "float" eps, "const B*" bias;
    inner, reciprocal, x_jump, residual_jump, z_out_jump, y_jump
}

arguments! {
    /// Of `backward` and `columns`. Rows that no team holds alone need the chains, a ring alone `stages` and `pace`.
    BackwardArguments:
    "const T*" x, "u64" x_stride, "const DY*" dy, "u64" dy_stride, "const DZ*" dz, "u64" dz_stride,
    "const W*" weight, "const float*" rstd_given, "DX*" dx, "u64" dx_stride,
    "float*" partial, "u64" rows, "u64" groups, "u32" hidden_given, "u32" chains, "u32" dot_chains, "u32" stages, "u32" pace;
    inner, reciprocal, x_jump, dy_jump, dz_jump, dx_jump
}

arguments! {
    /// Of `backward_few`.
    BackwardFewArguments:
    "const T*" x, "u64" x_stride, "const DY*" dy, "u64" dy_stride, "const DZ*" dz, "u64" dz_stride,
    "const W*" weight, "const float*" rstd, "DX*" dx, "u64" dx_stride, "DW*" dw, "u64" rows, "u64" groups, "u32" hidden_given;
    inner, reciprocal, x_jump, dy_jump, dz_jump, dx_jump
}

arguments! {
    /// Of `bias_partials`.
    BiasArguments:
    "const T*" dy, "u64" dy_stride, "float*" partial, "u64" rows, "u64" groups, "u32" hidden, "u32" lanes;
    inner, reciprocal, dy_jump
}

arguments! {
    /// Of `fold_partials`.
    FoldArguments: "const float*" partial, "DW*" dw, "u32" nodes, "u32" level, "u32" hidden;
    inner, groups
}
