//! What a kernel is compiled for, and the source that this makes. Rust alone writes what both languages must know: the constants of a
//! plan, and the parameters of each kernel.

mod display;

use super::arguments::{BackwardArguments, BackwardFewArguments, BiasArguments, FoldArguments, ForwardArguments};
pub use super::grouping::Grouping;
use super::grouping::{ROW_GROUPING, grouping_constants};
use crate::Dtype;
use crate::plan::cluster::{CLUSTER_BYTES, CLUSTER_STAGES_MAX, keeps_weight, lead};
use crate::plan::{
    BEYOND, BIAS_THREADS, Class, FEW_ROWS_MAX, FOLD_COLUMNS, FOLD_LEVEL_MAX, FOLD_WARPS_MAX, RING_STAGES_MAX, Source, stage_rows,
};

/// What one module is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Module {
    /// `forward`.
    Forward {
        /// How it works on rows.
        rows: RowKind,
        /// Whether rows come to shared memory and go from there: needs compute capability 9.0.
        staged: bool,
        /// Blocks that must fit a multiprocessor.
        blocks_per_sm: u32,
        /// Rows that a team has on their way at once.
        rows_at_once: u32,
        /// Element types of x and of the residual, if one is added to it.
        residual: Option<[Dtype; 2]>,
        /// Element type of y.
        y: Dtype,
        /// Element type of the bias, if there is one.
        bias: Option<Dtype>,
    },
    /// `forward_few`.
    ForwardFew {
        /// How it works on rows.
        rows: RowKind,
        /// Blocks that share a row.
        shares: u32,
        /// Blocks that must fit a multiprocessor.
        blocks_per_sm: u32,
        /// Element types of x and of the residual, if one is added to it.
        residual: Option<[Dtype; 2]>,
        /// Element type of y.
        y: Dtype,
        /// Element type of the bias, if there is one.
        bias: Option<Dtype>,
    },
    /// `backward` and, for streamed rows, `columns`.
    Backward {
        /// How it works on rows.
        rows: RowKind,
        /// Where it has them from: a type of source.cuh.
        source: &'static str,
        /// Blocks that must fit a multiprocessor.
        blocks_per_sm: u32,
        /// Element type of dy.
        dy: Dtype,
        /// Element type of what is added to dx, if anything is.
        dz: Option<Dtype>,
        /// Element type of dx.
        dx: Dtype,
    },
    /// `backward_few`.
    BackwardFew {
        /// How it works on rows.
        rows: RowKind,
        /// Element type of dw.
        dw: Dtype,
        /// Row groups that a thread folds.
        span: u32,
        /// Blocks that must fit a multiprocessor.
        blocks_per_sm: u32,
        /// Element type of dy.
        dy: Dtype,
        /// Element type of what is added to dx, if anything is.
        dz: Option<Dtype>,
        /// Element type of dx.
        dx: Dtype,
    },
    /// `bias_partials`.
    BiasPartials {
        /// Element type of dy.
        dtype: Dtype,
        /// Whether it is read 16 bytes at once.
        aligned: bool,
        /// How its rows are grouped.
        grouping: Grouping,
    },
    /// `fold_partials`.
    Fold {
        /// Element type of dw, or db.
        dw: Dtype,
        /// Whether there is one for each head.
        per_head: bool,
    },
}

/// What kernels over rows are compiled for in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowKind {
    /// How threads share a row.
    pub class: Class,
    /// Element type of what is normalised.
    pub dtype: Dtype,
    /// Element type of the weight, if there is one.
    pub weight: Option<Dtype>,
    /// Whether one is added to the weight.
    pub zero_centred: bool,
    /// Whether x_hat is rounded before the weight, or dy, multiplies it.
    pub twice: bool,
    /// Whether every row of every operand begins on 16 bytes and is a multiple of a pack long.
    pub aligned: bool,
    /// Whether `hidden` is all that the class holds, and so a constant.
    pub exact: bool,
    /// How rows are grouped.
    pub grouping: Grouping,
    /// Whether a row may be narrower than the packs before a thread's last.
    pub any_width: bool,
}

/// In place of such a type: backward_apart.cu.
const APART: &str = "apart";

/// The type of source.cuh that is meant. `Ringed` needs compute capability 9.0; so does a cluster, which is its own source and needs aligned rows.
pub(super) fn source_type(source: Source) -> &'static str {
    match source {
        Source::Kept => "InMemory<true>",
        Source::Reread => "InMemory<false>",
        Source::Ring { apart: true, .. } => APART,
        Source::Ring { rows: 2, .. } => "Ringed<2>",
        Source::Ring { .. } => "Ringed<1>",
        Source::Cluster { .. } => "cluster",
    }
}

impl Module {
    /// Whether its kernels use dynamic shared memory.
    pub fn has_dynamic_shared_memory(&self) -> bool {
        self.cluster() > 1
            || matches!(self, Module::Backward { source: "Ringed<1>" | "Ringed<2>" | APART, .. } | Module::Forward { staged: true, .. })
    }

    /// Blocks of a cluster of its kernels over rows. 1: no clusters.
    pub fn cluster(&self) -> u32 {
        self.class().map_or(1, |class| class.cluster)
    }

    /// The module that does the same on every layout of rows, of any GPU that plans as compute capability 8.0 does: what is compiled ahead.
    pub fn portable(self) -> Self {
        // One module for all widths that share an order; a streamed row has any in any case.
        let portable = |rows: RowKind| {
            let class = rows.class.widest();
            RowKind { class, aligned: false, exact: false, any_width: class.packs > 1, ..rows }
        };
        match self {
            // How many blocks must fit a multiprocessor depends on what is given up here, and is speed alone.
            Module::Forward { rows, rows_at_once, residual, y, bias, .. } => {
                // Each row at once makes a module longer, and the bundle is to stay below the registry's 10 MB.
                let (rows, rows_at_once) = (portable(rows), rows_at_once.min(2));
                Module::Forward { rows, staged: false, blocks_per_sm: 1, rows_at_once, residual, y, bias }
            }
            Module::Backward { rows, source, dy, dz, dx, .. } => {
                let rows = portable(rows);
                let source = if rows.any_width { source_type(Source::in_memory(rows.class)) } else { source };
                Module::Backward { rows, source, blocks_per_sm: 1, dy, dz, dx }
            }
            // Few rows are planned as others are, for their kernels take nothing but aligned rows.
            Module::ForwardFew { .. }
            | Module::BackwardFew { .. }
            | Module::BiasPartials { .. }
            | Module::Fold { .. } => self,
        }
    }

    /// Names of the kernels in it.
    pub fn kernels(&self) -> &'static [&'static str] {
        match self {
            Module::Forward { .. } => &["forward"],
            Module::ForwardFew { .. } => &["forward_few"],
            Module::Backward { rows, .. } if rows.class.is_streamed() => &["backward", "columns"],
            Module::Backward { .. } => &["backward"],
            Module::BackwardFew { .. } => &["backward_few"],
            Module::BiasPartials { .. } => &["bias_partials"],
            Module::Fold { .. } => &["fold_partials"],
        }
    }

    /// The class of its kernels over rows.
    pub fn class(&self) -> Option<Class> {
        match self {
            Module::Forward { rows, .. }
            | Module::ForwardFew { rows, .. }
            | Module::Backward { rows, .. }
            | Module::BackwardFew { rows, .. } => Some(rows.class),
            Module::BiasPartials { .. } | Module::Fold { .. } => None,
        }
    }

    /// The complete source: the constants of this module and the files of this crate.
    pub fn source(&self) -> String {
        self.source_with(PTX)
    }

    /// The same with another text in place of `ptx.cuh`.
    pub(super) fn source_with(&self, instructions: &str) -> String {
        let (constants, kernels) = match *self {
            Module::Fold { dw, per_head } => {
                let grouping = if per_head { Grouping::Heads } else { Grouping::None };
                let constants = format!(
                    "typedef {} DW;\nconstexpr unsigned FOLD_COLUMNS = {FOLD_COLUMNS}, FOLD_WARPS_MAX = {FOLD_WARPS_MAX}, \
                     FOLD_LEVEL_MAX = {FOLD_LEVEL_MAX};\n\
                     #define FOLD_PARAMETERS {}\n{}",
                    c(dw),
                    FoldArguments::parameters(grouping),
                    grouping_constants(grouping, false, FoldArguments::OF_GROUPS)
                );
                (constants, format!("{LEVELS}\n{FOLD}"))
            }
            Module::BiasPartials { dtype, aligned, grouping } => {
                let constants = format!(
                    "typedef {} T;\nconstexpr bool ALIGNED = {aligned};\nconstexpr u32 THREADS = {BIAS_THREADS};\n\
                     #define BIAS_PARAMETERS {}\n{}",
                    c(dtype),
                    BiasArguments::parameters(grouping),
                    grouping_constants(grouping, grouping == Grouping::Levels, BiasArguments::OF_GROUPS)
                );
                (constants, format!("{LEVELS}\n{BIAS}"))
            }
            Module::Forward { rows, staged, blocks_per_sm, rows_at_once, residual, y, bias } => {
                let own = format!("ROWS = {rows_at_once}, BEYOND = {BEYOND}");
                let constants = rows.forward_constants((residual, y), bias, blocks_per_sm, &own);
                let kernels = match rows.class {
                    class if class.is_streamed() => format!("{LEVELS}\n{ROWS}\n{FORWARD_STREAMED}"),
                    class if class.is_clustered() => format!("{LEVELS}\n{ROWS}\n{CLUSTER}\n{FORWARD_CLUSTER}"),
                    _ if staged => format!("{LEVELS}\n{ROWS}\n{ARRIVING}\n{FORWARD_STAGED}"),
                    _ => format!("{LEVELS}\n{ROWS}\n{FORWARD}"),
                };
                (constants, kernels)
            }
            Module::ForwardFew { rows, shares, blocks_per_sm, residual, y, bias } => {
                let constants = rows.forward_constants((residual, y), bias, blocks_per_sm, &format!("SHARES = {shares}"));
                (constants, format!("{LEVELS}\n{ROWS}\n{FORWARD_FEW}"))
            }
            Module::Backward { rows, source, blocks_per_sm, dy, dz, dx } => {
                let rows = if source == APART { RowKind { class: rows.class.apart(), ..rows } } else { rows };
                let ring = rows.ring_constants(dz.is_some());
                let constants = format!(
                    "{}{}\
                     constexpr u32 BLOCKS_PER_SM = {blocks_per_sm}, {ring};\n#define BACKWARD_PARAMETERS {}\n",
                    rows.backward_types(dy, dz, dx),
                    bias_constants(None),
                    BackwardArguments::parameters(rows.grouping)
                );
                let kernels = match rows.class {
                    class if class.is_streamed() => format!("{LEVELS}\n{ROWS}\n{BACKWARD_STREAMED}"),
                    class if class.is_clustered() => format!("{LEVELS}\n{ROWS}\n{CLUSTER}\n{BACKWARD_CLUSTER}"),
                    _ if source == APART => format!("{LEVELS}\n{ROWS}\n{ARRIVING}\n{SOURCE}\n{BACKWARD_APART}"),
                    _ => format!("{LEVELS}\n{ROWS}\n{ARRIVING}\n{SOURCE}\ntypedef {source} Source;\n{BACKWARD}"),
                };
                (rows.constants(rows.grouping == Grouping::Levels) + &constants, kernels)
            }
            Module::BackwardFew { rows, dw, span, blocks_per_sm, dy, dz, dx } => {
                let constants = format!(
                    "typedef {} DW;\n{}{}\
                     constexpr u32 BLOCKS_PER_SM = {blocks_per_sm}, SPAN = {span}, FEW_ROWS_MAX = {FEW_ROWS_MAX};\n\
                     #define BACKWARD_FEW_PARAMETERS {}\n",
                    c(dw),
                    rows.backward_types(dy, dz, dx),
                    bias_constants(None),
                    BackwardFewArguments::parameters(rows.grouping)
                );
                (rows.constants(rows.grouping == Grouping::Levels) + &constants, format!("{LEVELS}\n{ROWS}\n{BACKWARD_FEW}"))
            }
        };
        format!("{instructions}\n{ARITH}\n{constants}{kernels}")
    }
}

impl RowKind {
    /// Of a forward kernel, with what is its own among the numbers.
    fn forward_constants(
        &self,
        (residual, y): (Option<[Dtype; 2]>, Dtype),
        bias: Option<Dtype>,
        blocks_per_sm: u32,
        own: &str,
    ) -> String {
        // Forward takes the rows of heads in the order in which they lie.
        let (rows, bias) = (self.constants(self.grouping != Grouping::None), bias_constants(bias));
        let parameters = ForwardArguments::parameters(self.grouping);
        let [x, r] = residual.unwrap_or([self.dtype; 2]).map(c);
        let (y, has_residual) = (c(y), residual.is_some());
        format!(
            "{rows}typedef {x} X;\ntypedef {r} R;\ntypedef {y} Y;\ntypedef T DY;\ntypedef T DZ;\n\
             constexpr bool HAS_RESIDUAL = {has_residual}, HAS_DZ = false;\n{bias}\
             constexpr u32 BLOCKS_PER_SM = {blocks_per_sm}, {own};\n#define FORWARD_PARAMETERS {parameters}\n"
        )
    }

    /// What backward reads and writes beside x.
    fn backward_types(&self, dy: Dtype, dz: Option<Dtype>, dx: Dtype) -> String {
        let (has_dz, [dy, dz, dx]) = (dz.is_some(), [dy, dz.unwrap_or(self.dtype), dx].map(c));
        format!(
            "typedef T X;\ntypedef T R;\ntypedef {dy} DY;\ntypedef {dz} DZ;\ntypedef {dx} DX;\nconstexpr bool HAS_DZ = {has_dz};\n"
        )
    }

    /// Of backward's ring, that of a team or that of a cluster.
    fn ring_constants(&self, dz: bool) -> String {
        if !self.class.is_clustered() {
            return format!("STAGES_MAX = {RING_STAGES_MAX}, STAGE_ROWS = {}, BEYOND = {BEYOND}", stage_rows(dz));
        }
        let keeps_weight = u32::from(keeps_weight(self.class, self.weight));
        format!("LEAD = {}, KEEPS_WEIGHT = {keeps_weight}", lead(self.class, self.dtype))
    }

    fn constants(&self, two_levels: bool) -> String {
        let RowKind { class, dtype, weight, zero_centred, twice, aligned, exact, grouping, any_width } = *self;
        let Class { cluster, team, teams, pack, packs, sets } = class;
        let of_cluster = match class.is_clustered() {
            true => {
                format!("constexpr u32 CLUSTER_BYTES = {CLUSTER_BYTES}, STAGES_MAX = {CLUSTER_STAGES_MAX};\n")
            }
            false => String::new(),
        };
        let (t, w, has_weight) = (c(dtype), c(weight.unwrap_or(dtype)), weight.is_some());
        format!(
            "typedef {t} T;\ntypedef {w} W;\n\
             constexpr bool HAS_WEIGHT = {has_weight}, ZERO_CENTRED = {zero_centred}, TWICE = {twice}, ALIGNED = {aligned}, FILLED = {}, EXACT = {exact};\n\
             constexpr u32 TEAM = {team}, TEAMS = {teams}, PACK = {pack}, PACKS = {packs}, SETS = {sets}, CLUSTER = {cluster};\n{of_cluster}{}",
            !any_width,
            grouping_constants(grouping, two_levels, ROW_GROUPING)
        )
    }
}

fn bias_constants(bias: Option<Dtype>) -> String {
    format!("typedef {} B;\nconstexpr bool HAS_BIAS = {};\n", bias.map_or("T", c), bias.is_some())
}

/// The C++ name of an element type.
fn c(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
    }
}

/// The kernel sources of this crate, in the order in which they are read.
pub const SOURCES: [(&str, &str); 21] = [
    ("ptx.cuh", PTX),
    ("arith.cuh", ARITH),
    ("levels.cuh", LEVELS),
    ("rows.cuh", include_str!("../kernels/rows.cuh")),
    ("pack.cuh", include_str!("../kernels/pack.cuh")),
    ("reduce.cuh", include_str!("../kernels/reduce.cuh")),
    ("arriving.cuh", ARRIVING),
    ("forward.cu", FORWARD),
    ("forward_staged.cu", FORWARD_STAGED),
    ("forward_few.cu", FORWARD_FEW),
    ("forward_streamed.cu", FORWARD_STREAMED),
    ("source.cuh", SOURCE),
    ("backward.cu", BACKWARD),
    ("backward_apart.cu", BACKWARD_APART),
    ("backward_streamed.cu", BACKWARD_STREAMED),
    ("cluster.cuh", CLUSTER),
    ("forward_cluster.cu", FORWARD_CLUSTER),
    ("backward_cluster.cu", BACKWARD_CLUSTER),
    ("backward_few.cu", BACKWARD_FEW),
    ("bias.cu", BIAS),
    ("fold.cu", FOLD),
];

const PTX: &str = include_str!("../kernels/ptx.cuh");
const ARITH: &str = include_str!("../arith.cuh");
const LEVELS: &str = include_str!("../kernels/levels.cuh");
const ROWS: &str = concat!(include_str!("../kernels/rows.cuh"), include_str!("../kernels/pack.cuh"), include_str!("../kernels/reduce.cuh"));
const SOURCE: &str = include_str!("../kernels/source.cuh");
const ARRIVING: &str = include_str!("../kernels/arriving.cuh");
const FORWARD_STAGED: &str = include_str!("../kernels/forward_staged.cu");
const FORWARD: &str = include_str!("../kernels/forward.cu");
const FORWARD_FEW: &str = include_str!("../kernels/forward_few.cu");
const FORWARD_STREAMED: &str = include_str!("../kernels/forward_streamed.cu");
const BACKWARD: &str = include_str!("../kernels/backward.cu");
const BACKWARD_APART: &str = include_str!("../kernels/backward_apart.cu");
const BACKWARD_STREAMED: &str = include_str!("../kernels/backward_streamed.cu");
const CLUSTER: &str = include_str!("../kernels/cluster.cuh");
const FORWARD_CLUSTER: &str = include_str!("../kernels/forward_cluster.cu");
const BACKWARD_CLUSTER: &str = include_str!("../kernels/backward_cluster.cu");
const BACKWARD_FEW: &str = include_str!("../kernels/backward_few.cu");
const BIAS: &str = include_str!("../kernels/bias.cu");
const FOLD: &str = include_str!("../kernels/fold.cu");
