//! What one call launches, as plain data: no GPU is asked and nothing is launched here, so a machine without one can check it.

use arrayvec::ArrayVec;

use super::arguments::{
    BackwardArguments, BackwardFewArguments, BiasArguments, Cells, FoldArguments, ForwardArguments,
};
use super::module::{Grouping, Module, RowKind, source_type};
use super::place::{DeviceMemory, Matrix, group};
use crate::order::{column_order, row_order};
use crate::plan::{self, BIAS_THREADS, BackwardPlan, BiasPlan, Calls, Fold, ForwardPlan, Launch, Source, Tuning};
use crate::view::{Table, has_two_levels, is_in_place};
use crate::{
    Backward, BiasGradient, Dtype, Error, Forward, Rounding, Rows, Vector, WeightGradient, WeightOffset,
};

/// One thing that a stream is given to do.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "nearly every step is a kernel, and no call allocates")]
pub enum Step {
    /// Zero bytes.
    Clear {
        /// First byte.
        address: u64,
        /// How many.
        bytes: usize,
    },
    /// A kernel.
    Kernel(Kernel),
}

/// A launch of one kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kernel {
    /// What it is compiled for.
    pub module: Module,
    /// Its name in the module.
    pub name: &'static str,
    /// Blocks of the grid.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// The arguments, in order.
    pub arguments: Cells,
}

/// What one call does, in order: at most three steps for dx and dw, and two for db.
pub type Steps = ArrayVec<Step, 5>;

/// What decides how a forward call is launched.
fn kind_of_forward(call: &Forward<DeviceMemory, DeviceMemory>, table: &Table) -> Calls {
    Calls {
        weight: call.weight.map(|w| w.data.dtype),
        weight_offset: call.weight_offset,
        rounding: call.rounding,
        bias: call.bias.map(|b| b.data.dtype),
        residual: call.residual.as_ref().map(|sum| [call.x.data.dtype, sum.residual.data.dtype]),
        y: call.y.data.dtype,
        ..kind_of(table, (call.rows, call.heads(), call.hidden), call.normalised())
    }
}

/// The same of a backward call.
fn kind_of_backward(call: &Backward<DeviceMemory, DeviceMemory>, table: &Table) -> Calls {
    Calls {
        weight: call.weight.map(|w| w.data.dtype),
        weight_offset: call.weight_offset,
        rounding: call.rounding,
        dw: call.dw.as_ref().map(|gradient| gradient.dw.data.dtype),
        db: call.db.as_ref().map(|gradient| gradient.db.data.dtype),
        dy: call.dy.data.dtype,
        dz: call.dz.as_ref().map(|dz| dz.data.dtype),
        dx: call.dx.data.dtype,
        ..kind_of(table, (call.rows, call.heads(), call.hidden), call.x.data.dtype)
    }
}

/// What the operands say by themselves.
fn kind_of(table: &Table, (rows, heads, hidden): (usize, usize, usize), dtype: Dtype) -> Calls {
    Calls {
        heads,
        aligned: table.iter().all(|line| !line.in_packs || line.is_aligned()),
        in_place: is_in_place(table),
        two_levels: heads == 1 && has_two_levels(table),
        ..Calls::new((rows / heads, hidden), dtype)
    }
}

/// What a checked forward call does, in order.
pub fn forward(call: &Forward<DeviceMemory, DeviceMemory>, tuning: &Tuning) -> Result<Steps, Error> {
    let table = call.checked()?;
    let mut steps = Steps::new();
    if call.rows == 0 {
        return Ok(steps);
    }
    let calls = kind_of_forward(call, &table);
    let plan = plan::forward(&calls, tuning);
    let ForwardPlan { rows: launch, blocks_per_sm, rows_at_once, shared_bytes, shares } = plan;
    let shape = call.shape();
    let [x, y] = [Matrix::of(&call.x, shape), Matrix::of(&call.y, shape)];
    let sum = call.residual.as_ref();
    let residual = Matrix::of_any(sum.map(|sum| &sum.residual), shape);
    let z = Matrix::of_any(sum.map(|sum| &sum.z), shape);
    let (inner, reciprocal) = group(shape);
    let arguments = ForwardArguments {
        x: x.pointer,
        x_stride: x.stride,
        residual: residual.pointer,
        residual_stride: residual.stride,
        z_out: z.pointer,
        z_out_stride: z.stride,
        weight: call.weight.map_or(0, |w| w.pointer()),
        y: y.pointer,
        y_stride: y.stride,
        rstd: call.rstd.map_or(0, |r| r.pointer()),
        rows: call.rows as u64,
        hidden_given: call.hidden as u64,
        chains: row_order(call.hidden).chains as u64,
        eps: u64::from(call.eps.to_bits()),
        bias: call.bias.map_or(0, |b| b.pointer()),
        inner,
        reciprocal,
        x_jump: x.jump,
        residual_jump: residual.jump,
        z_out_jump: z.jump,
        y_jump: y.jump,
    };
    let Calls { weight, bias, residual, y, .. } = calls;
    let rows = row_kind(&launch, &calls, weight.is_some() || bias.is_some() || y != calls.dtype);
    let (module, name) = match shares {
        Some(shares) => (Module::ForwardFew { rows, shares, blocks_per_sm, residual, y, bias }, "forward_few"),
        None => {
            let staged = plan.is_staged();
            (Module::Forward { rows, staged, blocks_per_sm, rows_at_once, residual, y, bias }, "forward")
        }
    };
    steps.push(Step::Kernel(Kernel {
        module,
        name,
        blocks: launch.blocks,
        threads: launch.class.threads(),
        shared_bytes,
        arguments: arguments.cells(),
    }));
    Ok(steps)
}

/// What a checked backward call does, in order.
pub fn backward(call: &Backward<DeviceMemory, DeviceMemory>, tuning: &Tuning) -> Result<Steps, Error> {
    let table = call.checked()?;
    let mut steps = Steps::new();
    if call.rows == 0 {
        // All zero bytes are +0.0 in every element type, and no scratch is read.
        let gradients = [call.dw.as_ref().map(|g| &g.dw), call.db.as_ref().map(|g| &g.db)];
        let clear = |sums: &Vector<DeviceMemory>| Step::Clear {
            address: sums.pointer(),
            bytes: call.heads() * call.hidden * sums.data.dtype.bytes(),
        };
        steps.extend(gradients.into_iter().flatten().map(clear));
        return Ok(steps);
    }
    let calls = kind_of_backward(call, &table);
    let plan = plan::backward(&calls, tuning);
    // First what reads all rows: they may be those of dx.
    if let (Some(plan), Some(BiasGradient { db, scratch })) = (plan.bias, &call.db) {
        let partials = bias_partials(call, &calls, &plan, scratch);
        steps.extend([partials, folds(&calls, plan.fold, scratch, db)].map(Step::Kernel));
    }
    // Each of the partial rows below a fold's `nodes` has a first group below G, so the launches before it write it in full.
    if let (Some(span), Some(gradient)) = (plan.span, &call.dw) {
        steps.push(Step::Kernel(few_rows(call, gradient, &calls, &plan, span)));
    } else {
        let over_rows = over_rows(call, &calls, &plan);
        if let (Some(blocks), Some(_)) = (plan.columns, &call.dw) {
            let blocks = blocks * calls.heads as u32;
            steps.push(Step::Kernel(Kernel { name: "columns", blocks, ..over_rows }));
        }
        steps.push(Step::Kernel(over_rows));
        if let Some(WeightGradient { dw, scratch }) = &call.dw {
            steps.push(Step::Kernel(folds(&calls, plan.fold, scratch, dw)));
        }
    }
    Ok(steps)
}

/// The partial rows of db.
fn bias_partials(
    call: &Backward<DeviceMemory, DeviceMemory>,
    calls: &Calls,
    &BiasPlan { aligned, lanes, blocks, .. }: &BiasPlan,
    scratch: &Vector<DeviceMemory>,
) -> Kernel {
    let dy = Matrix::of_heads(&call.dy, call.shape(), calls);
    let (inner, reciprocal) = group(call.shape());
    let arguments = BiasArguments {
        dy: dy.pointer,
        dy_stride: dy.stride,
        partial: scratch.pointer(),
        rows: calls.rows as u64,
        groups: column_order(calls.rows, calls.hidden).groups as u64,
        hidden: call.hidden as u64,
        lanes: lanes.into(),
        inner,
        reciprocal,
        dy_jump: dy.jump,
    };
    let module = Module::BiasPartials { dtype: calls.dy, aligned, grouping: grouping(calls) };
    let (arguments, blocks) = (arguments.cells(), blocks * calls.heads as u32);
    Kernel { module, name: "bias_partials", blocks, threads: BIAS_THREADS, shared_bytes: 0, arguments }
}

/// dw or db from its partial rows.
fn folds(calls: &Calls, fold: Fold, partials: &Vector<DeviceMemory>, sums: &Vector<DeviceMemory>) -> Kernel {
    let Fold { nodes, level, warps, blocks } = fold;
    let arguments = FoldArguments {
        partial: partials.pointer(),
        dw: sums.pointer(),
        nodes: nodes.into(),
        level: level.into(),
        hidden: calls.hidden as u64,
        inner: calls.heads as u64,
        groups: column_order(calls.rows, calls.hidden).groups as u64,
    };
    Kernel {
        module: Module::Fold { dw: sums.data.dtype, per_head: calls.per_head() },
        name: "fold_partials",
        blocks: blocks * calls.heads as u32,
        threads: 32 * warps,
        shared_bytes: 0,
        arguments: arguments.cells(),
    }
}

/// Where the matrices of a backward call lie.
struct BackwardMatrices {
    x: Matrix,
    dy: Matrix,
    dz: Matrix,
    dx: Matrix,
}

impl BackwardMatrices {
    fn of(call: &Backward<DeviceMemory, DeviceMemory>, calls: &Calls) -> BackwardMatrices {
        let of = |rows: &Rows<DeviceMemory>| Matrix::of_heads(rows, call.shape(), calls);
        let dz = call.dz.as_ref().map_or(Matrix::default(), of);
        BackwardMatrices { x: of(&call.x), dy: of(&call.dy), dz, dx: of(&call.dx) }
    }
}

/// dx, and the partial rows of held rows.
fn over_rows(call: &Backward<DeviceMemory, DeviceMemory>, calls: &Calls, plan: &BackwardPlan) -> Kernel {
    let launch = &plan.rows;
    let (stages, pace, shared_bytes) = match plan.source {
        Source::Ring { stages, pace, shared_bytes, .. } => (stages, pace, shared_bytes),
        Source::Cluster { stages, shared_bytes } => (stages, 0, shared_bytes),
        _ => (0, 0, 0),
    };
    let apart = matches!(plan.source, Source::Ring { apart: true, .. });
    let BackwardMatrices { x, dy, dz, dx } = BackwardMatrices::of(call, calls);
    let (inner, reciprocal) = group(call.shape());
    let arguments = BackwardArguments {
        x: x.pointer,
        x_stride: x.stride,
        dy: dy.pointer,
        dy_stride: dy.stride,
        dz: dz.pointer,
        dz_stride: dz.stride,
        weight: call.weight.map_or(0, |w| w.pointer()),
        rstd_given: call.rstd.pointer(),
        dx: dx.pointer,
        dx_stride: dx.stride,
        partial: call.dw.as_ref().map_or(0, |gradient| gradient.scratch.pointer()),
        rows: calls.rows as u64,
        groups: plan.column.groups as u64,
        hidden_given: call.hidden as u64,
        chains: row_order(call.hidden).chains as u64,
        dot_chains: row_order(call.hidden).dot_chains as u64,
        stages: stages.into(),
        pace: pace.into(),
        inner,
        reciprocal,
        x_jump: x.jump,
        dy_jump: dy.jump,
        dz_jump: dz.jump,
        dx_jump: dx.jump,
    };
    Kernel {
        module: Module::Backward {
            rows: row_kind(launch, calls, calls.dw.is_some()),
            source: source_type(plan.source),
            blocks_per_sm: plan.blocks_per_sm,
            dy: calls.dy,
            dz: calls.dz,
            dx: calls.dx,
        },
        name: "backward",
        blocks: launch.blocks * calls.heads as u32,
        threads: if apart { launch.class.apart().threads() } else { launch.class.threads() },
        shared_bytes,
        arguments: arguments.cells(),
    }
}

/// dx and dw of few rows.
fn few_rows(
    call: &Backward<DeviceMemory, DeviceMemory>,
    gradient: &WeightGradient<DeviceMemory>,
    calls: &Calls,
    plan: &BackwardPlan,
    span: u32,
) -> Kernel {
    let launch = &plan.rows;
    let BackwardMatrices { x, dy, dz, dx } = BackwardMatrices::of(call, calls);
    let (inner, reciprocal) = group(call.shape());
    let arguments = BackwardFewArguments {
        x: x.pointer,
        x_stride: x.stride,
        dy: dy.pointer,
        dy_stride: dy.stride,
        dz: dz.pointer,
        dz_stride: dz.stride,
        weight: call.weight.map_or(0, |w| w.pointer()),
        rstd: call.rstd.pointer(),
        dx: dx.pointer,
        dx_stride: dx.stride,
        dw: gradient.dw.pointer(),
        rows: calls.rows as u64,
        groups: plan.column.groups as u64,
        hidden_given: call.hidden as u64,
        inner,
        reciprocal,
        x_jump: x.jump,
        dy_jump: dy.jump,
        dz_jump: dz.jump,
        dx_jump: dx.jump,
    };
    Kernel {
        module: Module::BackwardFew {
            rows: row_kind(launch, calls, calls.dw.is_some()),
            dw: gradient.dw.data.dtype,
            span,
            blocks_per_sm: plan.blocks_per_sm,
            dy: calls.dy,
            dz: calls.dz,
            dx: calls.dx,
        },
        name: "backward_few",
        blocks: launch.blocks * calls.heads as u32,
        threads: launch.class.threads(),
        shared_bytes: 0,
        arguments: arguments.cells(),
    }
}

/// `multiplies`: whether the rounding of x_hat shows. Where it does not, as in f32, the kernels are those that round once.
fn row_kind(launch: &Launch, calls: &Calls, multiplies: bool) -> RowKind {
    RowKind {
        class: launch.class,
        dtype: calls.dtype,
        weight: calls.weight,
        zero_centred: calls.weight.is_some() && calls.weight_offset == WeightOffset::One,
        twice: multiplies && calls.rounding == Rounding::Twice && calls.dtype != Dtype::F32,
        aligned: launch.aligned,
        exact: launch.exact,
        grouping: grouping(calls),
        any_width: false,
    }
}

fn grouping(calls: &Calls) -> Grouping {
    match calls.two_levels {
        _ if calls.per_head() => Grouping::Heads,
        true => Grouping::Levels,
        false => Grouping::None,
    }
}
