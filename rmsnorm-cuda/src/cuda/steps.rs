//! What one call launches, as plain data: no GPU is asked and nothing is launched here, so a machine without one can check it.

use super::compile::Module;
use crate::plan::{Arch, Class, Launch, Plan, Variant, plan_variant};
use crate::{Backward, Dtype, Error, Forward, Operand, Rows, Vector, WeightOffset};

/// A range of device memory as an operand.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMemory {
    /// Element type.
    pub dtype: Dtype,
    /// Address of the first element.
    pub address: u64,
    /// Number of elements.
    pub elements: usize,
}

impl Operand for DeviceMemory {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn elements(&self) -> usize {
        self.elements
    }
    fn address(&self) -> u64 {
        self.address
    }
}

impl Rows<DeviceMemory> {
    fn pointer(&self) -> u64 {
        self.data.address + (self.offset * self.data.dtype.bytes()) as u64
    }

    fn is_aligned(&self) -> bool {
        // A single row may have any stride, also one that overflows.
        self.pointer().is_multiple_of(16) && (self.row_stride % 16 * self.data.dtype.bytes()).is_multiple_of(16)
    }
}

impl Vector<DeviceMemory> {
    fn pointer(&self) -> u64 {
        self.data.address + (self.offset * self.data.dtype.bytes()) as u64
    }

    fn is_aligned(&self) -> bool {
        self.pointer().is_multiple_of(16)
    }
}

/// What decides only speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speed {
    /// The GPU to plan for.
    pub arch: Arch,
    /// Blocks of each kernel over rows, instead of the plan's number.
    pub blocks: Option<u32>,
    /// What else is chosen otherwise than by the plan, where it fits.
    pub variant: Variant,
}

impl Speed {
    /// What the plan for `arch` chooses.
    pub fn of(arch: Arch) -> Self {
        Speed { arch, blocks: None, variant: Variant::default() }
    }

    /// The plan with what was chosen otherwise.
    pub fn plan(&self, rows: usize, hidden: usize, dtype: Dtype) -> Plan {
        let mut plan = plan_variant(rows, hidden, dtype, &self.arch, &self.variant);
        for launch in [&mut plan.forward, &mut plan.backward] {
            launch.blocks = self.blocks.unwrap_or(launch.blocks);
        }
        plan
    }
}

/// One thing that a stream is given to do.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    /// The arguments, in order; one of four bytes lies in the low half of its cell. Cells past the last are 0.
    pub arguments: [u64; ARGUMENTS_MAX],
}

/// As many cells as the longest list of parameters, that of `backward`.
pub const ARGUMENTS_MAX: usize = 14;

/// What a checked forward call does, in order.
pub fn forward(call: &Forward<DeviceMemory, DeviceMemory>, speed: &Speed) -> Result<Vec<Step>, Error> {
    call.check()?;
    if call.rows == 0 {
        return Ok(Vec::new());
    }
    let dtype = call.x.data.dtype;
    let plan = speed.plan(call.rows, call.hidden, dtype);
    let (launch, blocks) = (plan.backward, plan.forward.blocks);
    let aligned = call.hidden.is_multiple_of(launch.class.pack as usize)
        && call.x.is_aligned()
        && call.y.is_aligned()
        && call.weight.is_none_or(|w| w.is_aligned());
    let arguments = [
        call.x.pointer(),
        call.x.row_stride as u64,
        call.weight.map_or(0, |w| w.pointer()),
        call.y.pointer(),
        call.y.row_stride as u64,
        call.rstd.map_or(0, |r| r.pointer()),
        call.rows as u64,
        call.hidden as u64,
        u64::from(call.eps.to_bits()),
        plan.row.chains as u64, // for streamed rows
    ];
    Ok(vec![Step::Kernel(Kernel {
        module: rows_module(&launch, dtype, call.weight, call.weight_offset, aligned, call.hidden),
        name: "forward",
        blocks,
        threads: launch.class.threads(),
        shared_bytes: 0,
        arguments: cells(&arguments),
    })])
}

/// What a checked backward call does, in order.
pub fn backward(call: &Backward<DeviceMemory, DeviceMemory>, speed: &Speed) -> Result<Vec<Step>, Error> {
    call.check()?;
    if call.rows == 0 {
        // All zero bytes are +0.0 in every element type, and no scratch is read.
        let clear = |dw: &Vector<DeviceMemory>| Step::Clear {
            address: dw.pointer(),
            bytes: call.hidden * dw.data.dtype.bytes(),
        };
        return Ok(call.dw.iter().map(|gradient| clear(&gradient.dw)).collect());
    }
    let dtype = call.x.data.dtype;
    let plan = speed.plan(call.rows, call.hidden, dtype);
    let launch = plan.backward;
    let aligned = call.hidden.is_multiple_of(launch.class.pack as usize)
        && [&call.x, &call.dy, &call.dx].into_iter().all(Rows::is_aligned)
        && call.weight.is_none_or(|w| w.is_aligned())
        && call.dw.as_ref().is_none_or(|g| g.scratch.is_aligned());
    let partial = call.dw.as_ref().map_or(0, |g| g.scratch.pointer());
    let mut arguments = vec![
        call.x.pointer(),
        call.x.row_stride as u64,
        call.dy.pointer(),
        call.dy.row_stride as u64,
        call.weight.map_or(0, |w| w.pointer()),
        call.rstd.pointer(),
        call.dx.pointer(),
        call.dx.row_stride as u64,
        partial,
        call.rows as u64,
        plan.column.groups as u64,
        call.hidden as u64,
    ];
    match launch.class.packs {
        0 => arguments.push(plan.row.chains as u64),
        _ => arguments.extend([u64::from(launch.stages), u64::from(launch.pace)]),
    }
    let over_rows = Kernel {
        module: rows_module(&launch, dtype, call.weight, call.weight_offset, aligned, call.hidden),
        name: "backward",
        blocks: launch.blocks,
        threads: launch.class.threads(),
        // For each team, `stages` rows of x and dy.
        shared_bytes: if aligned {
            launch.class.teams * launch.stages * (2 * call.hidden * dtype.bytes()) as u32
        } else {
            0
        },
        arguments: cells(&arguments),
    };
    let mut steps = vec![Step::Kernel(over_rows)];
    let Some(gradient) = &call.dw else { return Ok(steps) };
    if launch.class.packs == 0 {
        // Takes the arguments of `backward`.
        let tiles = call.hidden.div_ceil((launch.class.pack * launch.class.threads()) as usize);
        let blocks = speed.blocks.unwrap_or((tiles * plan.column.groups) as u32);
        steps.push(Step::Kernel(Kernel { name: "columns", blocks, ..over_rows }));
    }
    // Each of the partial rows below `nodes` has a first group below G, so the launches above write it in full.
    let nodes = plan.column.groups.div_ceil(launch.class.teams as usize) as u64;
    let level = nodes.next_power_of_two().ilog2().saturating_sub(5);
    steps.push(Step::Kernel(Kernel {
        module: Module::Fold { dw: gradient.dw.data.dtype },
        name: "fold_partials",
        blocks: call.hidden.div_ceil(32) as u32,
        threads: 1024,
        shared_bytes: 0,
        arguments: cells(&[partial, gradient.dw.pointer(), nodes, u64::from(level), call.hidden as u64]),
    }));
    Ok(steps)
}

fn rows_module(
    launch: &Launch,
    dtype: Dtype,
    weight: Option<Vector<DeviceMemory>>,
    weight_offset: WeightOffset,
    aligned: bool,
    hidden: usize,
) -> Module {
    let weight = weight.map(|w| w.data.dtype);
    let Class { lanes, pack, packs, .. } = launch.class;
    Module::Rows {
        class: launch.class,
        dtype,
        weight,
        zero_centred: weight.is_some() && weight_offset == WeightOffset::One,
        aligned,
        ring: aligned && launch.stages > 0,
        exact: aligned && hidden == (lanes * pack * packs) as usize,
    }
}

fn cells(arguments: &[u64]) -> [u64; ARGUMENTS_MAX] {
    let mut cells = [0; ARGUMENTS_MAX];
    cells[..arguments.len()].copy_from_slice(arguments);
    cells
}
