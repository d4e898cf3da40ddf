//! What a plan is made for, and what it says.

use super::{Arch, Class, ColumnOrder, KEPT_MAX};
use crate::{Dtype, Rounding, WeightOffset};

/// What decides how a call is launched: its shape, its types, and whether its rows are aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// Number of rows; of heads with a weight each those of one head.
    pub rows: usize,
    /// Heads that have a weight each; 1: all rows have the same.
    pub heads: usize,
    /// Length of a row.
    pub hidden: usize,
    /// Element type of what is normalised: of x, or of the z of a forward call with a residual.
    pub dtype: Dtype,
    /// Element type of the weight, if there is one.
    pub weight: Option<Dtype>,
    /// As in the calls.
    pub weight_offset: WeightOffset,
    /// As in the calls.
    pub rounding: Rounding,
    /// Element type of the weight's gradient, if it is computed.
    pub dw: Option<Dtype>,
    /// Element type of forward's bias, if there is one.
    pub bias: Option<Dtype>,
    /// Element type of the bias's gradient, if it is computed.
    pub db: Option<Dtype>,
    /// Element types of x and of the residual, if forward is given one.
    pub residual: Option<[Dtype; 2]>,
    /// Element type of y.
    pub y: Dtype,
    /// Element type of dy.
    pub dy: Dtype,
    /// Element type of dz, if backward is given one.
    pub dz: Option<Dtype>,
    /// Element type of dx.
    pub dx: Dtype,
    /// Whether every row of every operand, weight and scratch too, begins on 16 bytes. So it is in whole buffers of cudarc's
    /// with rows of a multiple of 16 bytes.
    pub aligned: bool,
    /// Whether an output has the rows of an input. What is prepared is prepared for both: few rows then have the kernels of more.
    pub in_place: bool,
    /// Whether rows of an operand, of those of a head, lie in two levels that no one stride tells. There are at least four of them, and what is prepared does not ask how many
    /// a group has.
    pub two_levels: bool,
}

impl Calls {
    /// Of aligned rows of one type, y rounded once, without anything that may be absent: no weight, no bias, no gradient of either, no residual, no `dz`; not in place; of one
    /// level. The rest by struct update.
    pub const fn new((rows, hidden): (usize, usize), dtype: Dtype) -> Self {
        Calls {
            rows,
            heads: 1,
            hidden,
            dtype,
            weight: None,
            weight_offset: WeightOffset::Zero,
            rounding: Rounding::Once,
            dw: None,
            bias: None,
            db: None,
            residual: None,
            y: dtype,
            dy: dtype,
            dz: None,
            dx: dtype,
            aligned: true,
            in_place: false,
            two_levels: false,
        }
    }

    /// Those of all heads.
    pub(super) fn all_rows(&self) -> usize {
        self.rows.saturating_mul(self.heads)
    }

    /// Whether there is a weight, or would be, for each of several heads.
    pub(crate) fn per_head(&self) -> bool {
        self.heads > 1
    }

    /// Whether forward adds something to x, or to its product with the weight.
    pub(super) fn adds(&self) -> bool {
        self.residual.is_some() || self.bias.is_some()
    }

    /// Element types of the rows of a direction.
    fn of_rows(&self, direction: Direction) -> impl Iterator<Item = Dtype> {
        let [beside, optional] = match direction {
            Direction::Forward => [[self.y, self.dtype], self.residual.unwrap_or([self.dtype; 2])],
            Direction::Backward => [[self.dy, self.dx], [self.dz.unwrap_or(self.dtype), self.dtype]],
        };
        beside.into_iter().chain(optional)
    }

    /// Whether they differ. Then rows have the plainest kernels: what passes shared memory as it is, or is copied in bulk, has one type.
    #[doc(hidden)]
    pub fn are_mixed(&self, direction: Direction) -> bool {
        self.of_rows(direction).any(|dtype| dtype != self.dtype)
    }

    /// The widest of them, for which a class is chosen: registers decide.
    #[doc(hidden)]
    pub fn widest(&self, direction: Direction) -> Dtype {
        self.of_rows(direction).max_by_key(|dtype| dtype.bytes()).unwrap_or(self.dtype)
    }

    /// Whether a weight takes no more registers in forward than x.
    pub(super) fn has_little_weight(&self) -> bool {
        self.weight.is_none_or(|w| w.bytes() <= self.widest(Direction::Forward).bytes())
    }
}

/// The GPU to plan for, and what is chosen otherwise than by the plan: for measurements, and for checks that it changes no bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// The GPU.
    pub arch: Arch,
    /// One of [`variants`](super::variants) for forward; ignored for rows that it cannot work on.
    pub forward: Option<Class>,
    /// The same for backward.
    pub backward: Option<Class>,
    /// Stages of backward's ring, if so many fit. 0: no ring.
    pub stages: Option<u32>,
    /// Hundredths of the memory's nominal rate that backward keeps to. 0: no limit.
    pub rate_percent: Option<u32>,
    /// Blocks of each kernel over rows, rounded up to whole clusters. (Forward's have one row each, unless here
    /// stands what no grid can have.)
    pub blocks: Option<u32>,
    /// Whether few rows may have kernels of their own: in forward, and backward in one launch. They have not where anything else is chosen for
    /// that direction.
    pub few_rows: bool,
    /// Blocks that share a row in forward, whose kernel is then that of few rows however many there are. Ignored where it cannot be.
    pub shares: Option<u32>,
}

impl Tuning {
    /// What the plan for `arch` chooses.
    pub const fn of(arch: Arch) -> Self {
        Tuning {
            arch,
            forward: None,
            backward: None,
            stages: None,
            rate_percent: None,
            blocks: None,
            few_rows: true,
            shares: None,
        }
    }
}

/// Which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// y and rstd.
    Forward,
    /// dx and dw.
    Backward,
}

impl Direction {
    /// Both.
    pub const BOTH: [Direction; 2] = [Direction::Forward, Direction::Backward];
}

/// How a kernel over rows is launched, and, with the types, what it is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// How threads share rows.
    pub class: Class,
    /// Whether every pack of every operand lies on 16 bytes.
    pub aligned: bool,
    /// Whether a row is all that the class holds: then the kernel knows its width.
    pub exact: bool,
    /// Blocks.
    pub blocks: u32,
}

/// Where backward has a row from in its two passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From memory, and from registers.
    Kept,
    /// From memory twice.
    Reread,
    /// From shared memory, where rows arrive ahead of their turn.
    Ring {
        /// Stages of each team.
        stages: u32,
        /// Rows of x and dy in each, 1 or 2, which the team works on at once.
        rows: u32,
        /// Least time from one stage of a team to its next, in 1/256 ns (source.cuh, Pace). 0: none.
        pace: u32,
        /// Shared memory of all stages of a block.
        shared_bytes: u32,
        /// Whether dw's sums, and what is read ahead, have threads of their own.
        apart: bool,
    },
    /// From shared memory, where slices of rows arrive ahead of their turn; a cluster shares a row.
    Cluster {
        /// Slices of x and dy for each block.
        stages: u32,
        /// Shared memory of a block.
        shared_bytes: u32,
    },
}

impl Source {
    /// That of rows in global memory: kept between the two passes where few enough registers hold them.
    pub(crate) const fn in_memory(class: Class) -> Self {
        if class.packs * class.pack <= KEPT_MAX { Source::Kept } else { Source::Reread }
    }
}

/// How the partial rows of a backward call are folded to dw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fold {
    /// Partial rows.
    pub nodes: u32,
    /// A warp folds 2^level of them, of 32 columns.
    pub level: u32,
    /// Warps of a block, which then fold what each came to.
    pub warps: u32,
    /// Blocks.
    pub blocks: u32,
}

/// How the partial rows of db are computed, and folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BiasPlan {
    /// Whether dy is read 16 bytes at once.
    pub aligned: bool,
    /// Threads of a block that share a row: a power of two, at most 32. The others have further row groups.
    pub lanes: u32,
    /// Blocks.
    pub blocks: u32,
    /// From partial rows to db.
    pub fold: Fold,
}

/// What a forward call launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardPlan {
    /// The kernel.
    pub rows: Launch,
    /// So many blocks must fit a multiprocessor: the compiler may not take more registers.
    pub blocks_per_sm: u32,
    /// Rows that a team has on their way at once.
    pub rows_at_once: u32,
    /// Dynamic shared memory of a block: that of a cluster, where it holds its part of a row; of teams whose rows are staged, two rows each.
    pub shared_bytes: u32,
    /// Blocks that share a row, where rows are few: each reads the row and writes a part of y.
    pub shares: Option<u32>,
}

impl ForwardPlan {
    /// Whether rows come to shared memory and go from there, team by team.
    pub(crate) fn is_staged(&self) -> bool {
        self.shared_bytes > 0 && !self.rows.class.is_clustered()
    }
}

/// What a backward call launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackwardPlan {
    /// Decides the bits of dw.
    pub column: ColumnOrder,
    /// The kernel over rows.
    pub rows: Launch,
    /// Where it has them from.
    pub source: Source,
    /// So many blocks must fit a multiprocessor.
    pub blocks_per_sm: u32,
    /// Blocks of the kernel `columns`, which streamed rows need for dw.
    pub columns: Option<u32>,
    /// From partial rows to dw.
    pub fold: Fold,
    /// Row groups that a thread folds, where few rows are one launch: `rows` then computes dw as well, and there is no other for it.
    pub span: Option<u32>,
    /// The launches for db, if it is asked for.
    pub bias: Option<BiasPlan>,
}
