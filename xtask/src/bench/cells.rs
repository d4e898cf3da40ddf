//! What is measured, and what is aimed at.

use rmsnorm_cuda::Dtype;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Contiguous rows of one type, a weight and dw of that type: `bf16:32768x4096`; `bf16:32768x4096+residual` with a residual in forward and
/// a dz in backward; `…+stream` with these, but residual, z, dz and dx in f32; `…+bias` with a bias and db of that type; `…+moved` with x, y, dy and dx one to four elements off 16 bytes, each by another number;
/// `…+heads40` as 40 heads with a weight each, x and dx being packed with 8 more that nobody touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Cell {
    pub(super) dtype: Dtype,
    pub(super) rows: usize,
    pub(super) hidden: usize,
    pub(super) residual: bool,
    pub(super) stream: bool,
    pub(super) bias: bool,
    pub(super) moved: bool,
    pub(super) heads: usize,
}

impl Cell {
    fn new(dtype: Dtype, rows: usize, hidden: usize) -> Cell {
        Cell { dtype, rows, hidden, residual: false, stream: false, bias: false, moved: false, heads: 1 }
    }

    /// 2^28 bytes a tensor.
    fn large(dtype: Dtype, hidden: usize) -> Cell {
        Cell::new(dtype, (1 << 28) / dtype.bytes() / hidden, hidden)
    }

    /// Size of x, and of y and dy; without a stream of dx.
    pub(super) fn tensor_bytes(&self) -> usize {
        self.rows * self.hidden * self.dtype.bytes()
    }

    /// Whether it has nothing beside them.
    fn is_plain(&self) -> bool {
        self.extras().is_empty()
    }

    /// What it has beside rows and a weight, as it is written after the shape, in this order.
    pub(super) fn extras(&self) -> String {
        let residual = self.residual && !self.stream;
        let extras = [(residual, "+residual"), (self.stream, "+stream"), (self.bias, "+bias"), (self.moved, "+moved")];
        let heads = if self.heads > 1 { format!("+heads{}", self.heads) } else { String::new() };
        extras.into_iter().filter_map(|(has, name)| has.then_some(name)).chain([heads.as_str()]).collect()
    }
}

impl FromStr for Cell {
    type Err = String;

    fn from_str(text: &str) -> Result<Cell, String> {
        let wrong = || {
            let extras = "[+residual|+stream][+bias][+moved][+headsN]";
            format!("{text:?} is no cell; a cell is TYPE:ROWSxHIDDEN{extras}, as in bf16:32768x4096")
        };
        let (dtype, shape) = text.split_once(':').ok_or_else(wrong)?;
        let (shape, extras) = shape.split_at(shape.find('+').unwrap_or(shape.len()));
        let (rows, hidden) = shape.split_once('x').ok_or_else(wrong)?;
        let dtype = Dtype::ALL.into_iter().find(|d| d.to_string() == dtype).ok_or_else(wrong)?;
        let (rows, hidden) = (rows.parse().map_err(|_| wrong())?, hidden.parse().map_err(|_| wrong())?);
        let elements = usize::checked_mul(rows, hidden).filter(|n| (1..=ELEMENTS_MAX).contains(n));
        elements.ok_or_else(|| format!("{text} has no elements or more than 2^32"))?;
        let [residual, stream, bias, moved] =
            ["+residual", "+stream", "+bias", "+moved"].map(|extra| extras.contains(extra));
        let heads = extras.split_once("+heads").map_or(Ok(1), |(_, heads)| heads.parse()).map_err(|_| wrong())?;
        let cell = Cell { residual: residual || stream, stream, bias, moved, heads, ..Cell::new(dtype, rows, hidden) };
        let is_whole = heads > 0 && rows.is_multiple_of(heads);
        if is_whole && cell.extras() == extras { Ok(cell) } else { Err(wrong()) }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}x{}{}", self.dtype, self.rows, self.hidden, self.extras())
    }
}

impl TryFrom<String> for Cell {
    type Error = String;

    fn try_from(text: String) -> Result<Cell, String> {
        text.parse()
    }
}

impl From<Cell> for String {
    fn from(cell: Cell) -> String {
        cell.to_string()
    }
}

/// Which of the two calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Direction {
    Forward,
    Backward,
}

impl Direction {
    pub(super) const BOTH: [Direction; 2] = [Direction::Forward, Direction::Backward];

    /// Tensors of rows × hidden that must move: x and y, or x, dy and dx; residual and z, or dz.
    pub(super) fn tensors(self, residual: bool) -> usize {
        match self {
            _ if residual => 4,
            Direction::Forward => 2,
            Direction::Backward => 3,
        }
    }

    /// The least that must move.
    pub(super) fn bytes(self, cell: Cell) -> usize {
        let element = cell.dtype.bytes();
        let wide = if cell.stream { Dtype::F32.bytes() - element } else { 0 };
        // Residual and z; z, dz and dx.
        let streamed = if self == Direction::Forward { 2 } else { 3 };
        self.tensors(cell.residual) * cell.tensor_bytes() + streamed * cell.rows * cell.hidden * wide
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Direction::Forward => "forward",
            Direction::Backward => "backward",
        })
    }
}

/// How much of the ceiling is aimed at, as a fraction.
pub(super) struct Target {
    pub(super) what: &'static str,
    pub(super) applies: fn(Cell) -> bool,
    pub(super) forward: f64,
    pub(super) backward: f64,
}

/// A cell without a line here has no target.
pub(super) const TARGETS: [Target; 12] = [
    Target {
        what: "heads of 128 with a weight each, out of packed rows",
        applies: |c| c.heads > 1 && c.hidden == 128 && is_large(c),
        forward: 0.90,
        backward: 0.90,
    },
    Target {
        what: "rows that do not begin on 16 bytes, N 1001 to 8191, tensors of 256 MB and more",
        applies: |c| (1001..=8191).contains(&c.hidden) && (c.moved || c.hidden % 2 == 1) && is_large(c),
        forward: 0.85,
        backward: 0.82,
    },
    Target {
        what: "with a residual, N 1024 to 8192, tensors of 256 MB and more",
        applies: |c| c.residual && !c.stream && (1024..=8192).contains(&c.hidden) && is_large(c),
        forward: 0.95,
        backward: 0.92,
    },
    Target {
        what: "f32, N 16384, tensors of 256 MB and more",
        applies: |c| c.is_plain() && c.dtype == Dtype::F32 && c.hidden == 16384 && is_large(c),
        forward: 0.97,
        backward: 0.92,
    },
    Target {
        what: "N 512 to 16384, multiples of 8, tensors of 256 MB and more",
        applies: |c| c.is_plain() && (512..=16384).contains(&c.hidden) && c.hidden.is_multiple_of(8) && is_large(c),
        forward: 0.97,
        backward: 0.95,
    },
    Target {
        what: "N 64, tensors of 256 MB and more",
        applies: |c| c.is_plain() && c.hidden == 64 && is_large(c),
        forward: 0.965,
        backward: 0.945,
    },
    Target {
        what: "N 128 and 256, tensors of 256 MB and more",
        applies: |c| c.is_plain() && [128, 256].contains(&c.hidden) && is_large(c),
        forward: 0.97,
        backward: 0.945,
    },
    Target {
        what: "N 32768, 65536 and 131072, tensors of 256 MB and more",
        applies: |c| c.is_plain() && [32768, 65536, 131_072].contains(&c.hidden) && is_large(c),
        forward: 0.95,
        backward: 0.92,
    },
    Target {
        what: "4096×4096, 4096×7168 and 16384×1000",
        applies: |c| c.is_plain() && [(4096, 4096), (4096, 7168), (16384, 1000)].contains(&(c.rows, c.hidden)),
        forward: 0.93,
        backward: 0.86,
    },
    Target {
        what: "512×4096 and 256×4096",
        applies: |c| c.is_plain() && [(512, 4096), (256, 4096)].contains(&(c.rows, c.hidden)),
        forward: 0.92,
        backward: 0.7,
    },
    Target {
        what: "1×4096, 8×4096, 64×4096 and 8×8192: 1.2 times the copy, 1.35 times two reads and one write",
        applies: |c| c.is_plain() && [(1, 4096), (8, 4096), (64, 4096), (8, 8192)].contains(&(c.rows, c.hidden)),
        forward: 1.0 / 1.2,
        backward: 1.0 / 1.35,
    },
    Target {
        what: "1×16384: 1.35 times the copy, 1.5 times two reads and one write",
        applies: |c| c.is_plain() && (c.rows, c.hidden) == (1, 16384),
        forward: 1.0 / 1.35,
        backward: 1.0 / 1.5,
    },
];

/// The fraction of the ceiling that is aimed at.
pub(super) fn target(cell: Cell, direction: Direction) -> Option<f64> {
    let target = TARGETS.iter().find(|target| (target.applies)(cell))?;
    Some(match direction {
        Direction::Forward => target.forward,
        Direction::Backward => target.backward,
    })
}

/// Whether the memory alone decides: ceilings of such cells are held against the theoretical rate.
pub(super) fn is_large(cell: Cell) -> bool {
    cell.tensor_bytes() >= 256_000_000
}

/// A report of a GPU that leaves one of these out is partial. 2^28 bytes a tensor where the rows are many.
pub(super) fn required_cuda() -> Vec<Cell> {
    let mut cells = Vec::new();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        cells.extend(MIDDLE.map(|hidden| Cell::large(dtype, hidden)));
        cells.extend([4096, 7168].map(|hidden| Cell::new(dtype, 4096, hidden)));
    }
    cells.extend(NARROW_AND_WIDE.map(|hidden| Cell::large(Dtype::Bf16, hidden)));
    cells.push(Cell::large(Dtype::F32, 65536));
    cells.extend(ODD_AND_FEW_ROWS.map(|(rows, hidden)| Cell::new(Dtype::Bf16, rows, hidden)));
    cells
}

/// What is measured on a GPU if no cell is named: also those that reports of older versions lack.
#[cfg(any(feature = "cuda", test))]
pub(super) fn default_cuda() -> Vec<Cell> {
    let mut cells = required_cuda();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        cells.extend(FURTHER.map(|hidden| Cell::large(dtype, hidden)));
    }
    cells.extend(FURTHER_FEW_ROWS.map(|(rows, hidden)| Cell::new(Dtype::Bf16, rows, hidden)));
    cells.extend(WITH_RESIDUAL.map(|hidden| Cell { residual: true, ..Cell::large(Dtype::Bf16, hidden) }));
    cells.extend(WITH_RESIDUAL.map(|hidden| Cell { residual: true, stream: true, ..Cell::large(Dtype::Bf16, hidden) }));
    cells.push(Cell { bias: true, ..Cell::large(Dtype::Bf16, 4096) });
    cells.extend(ODD.map(|(dtype, rows, hidden)| Cell::new(dtype, rows, hidden)));
    cells.push(Cell { moved: true, ..Cell::large(Dtype::Bf16, 4096) });
    cells.push(Cell { heads: 40, ..Cell::new(Dtype::Bf16, 40 << 15, 128) });
    let mut seen = std::collections::HashSet::new();
    cells.retain(|cell| seen.insert(*cell));
    cells
}

/// The same for a report of a CPU.
pub(super) fn required_cpu() -> Vec<Cell> {
    let hiddens = MIDDLE.into_iter().filter(|&hidden| hidden.is_power_of_two() && hidden >= 1024);
    hiddens.flat_map(|hidden| [Dtype::F32, Dtype::Bf16].map(|dtype| Cell::large(dtype, hidden))).collect()
}

/// Whether `--quick` measures it.
pub(super) fn is_quick(cell: Cell) -> bool {
    QUICK.contains(&cell.to_string().as_str())
}

const MIDDLE: [usize; 10] = [512, 1024, 2048, 3072, 4096, 5120, 6144, 7168, 8192, 16384];
const NARROW_AND_WIDE: [usize; 5] = [64, 128, 32768, 65536, 131072];
const ODD_AND_FEW_ROWS: [(usize, usize); 5] = [(8192, 4097), (16384, 1000), (512, 4096), (64, 4096), (1, 4096)];
#[cfg(any(feature = "cuda", test))]
const FURTHER: [usize; 6] = [64, 128, 256, 32768, 65536, 131_072];
#[cfg(any(feature = "cuda", test))]
const FURTHER_FEW_ROWS: [(usize, usize); 4] = [(256, 4096), (8, 4096), (8, 8192), (1, 16384)];
#[cfg(any(feature = "cuda", test))]
const WITH_RESIDUAL: [usize; 4] = [1024, 2048, 4096, 8192];
/// Rows that do not begin on 16 bytes.
#[cfg(any(feature = "cuda", test))]
const ODD: [(Dtype, usize, usize); 5] = [
    (Dtype::Bf16, 32768, 4097),
    (Dtype::Bf16, 131_072, 1001),
    (Dtype::Bf16, 65536, 2047),
    (Dtype::Bf16, 16384, 8191),
    (Dtype::F32, 16384, 4097),
];
/// Of `--quick`: the usual size, another type, small ones.
const QUICK: [&str; 4] = ["bf16:32768x4096", "f32:8192x8192", "bf16:4096x4096", "bf16:1x4096"];
const ELEMENTS_MAX: usize = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn cell(text: &str) -> Cell {
        text.parse().unwrap()
    }

    #[test]
    fn a_cell_is_what_it_prints() {
        let cells = default_cuda();
        assert!(cells.iter().all(|c| cell(&c.to_string()) == *c));
        assert_eq!(cells.iter().collect::<HashSet<_>>().len(), cells.len());
        for wrong in [
            "bf16",
            "bf16:4x",
            "f64:1x1",
            "bf16:0x8",
            "bf16:-1x8",
            "f32:4294967296x4294967296",
            "f32:1x1x1",
            "f32:1x1+what",
            "f32:1x1+moved+bias",
            "f32:8x1+heads1",
            "f32:8x1+heads3",
            "f32:8x1+heads",
        ] {
            assert!(wrong.parse::<Cell>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_required_cells_are_those_that_were_compared_before() {
        let cells: Vec<String> = required_cuda().iter().map(Cell::to_string).collect();
        assert_eq!(cells.len(), 3 * 12 + 5 + 1 + 5);
        for added in [
            "bf16:32768x4096+residual",
            "bf16:65536x2047",
            "bf16:32768x4096+moved",
            "f16:1024x131072",
            "bf16:32768x4096+bias",
            "bf16:1310720x128+heads40",
        ] {
            assert!(default_cuda().contains(&cell(added)), "{added}");
        }
        for known in [
            "bf16:2097152x64",
            "bf16:26214x5120",
            "bf16:18724x7168",
            "bf16:1024x131072",
            "bf16:8192x4097",
            "bf16:1x4096",
            "f32:16384x4096",
            "f32:8192x8192",
            "f32:1024x65536",
            "f16:43690x3072",
        ] {
            assert!(cells.iter().any(|c| c == known), "{known}");
        }
        assert!(QUICK.iter().all(|quick| cells.contains(&quick.to_string())));
        assert!(required_cpu().len() == 10 && required_cpu().contains(&cell("f32:65536x1024")));
    }

    #[test]
    fn targets() {
        let both = |text| Direction::BOTH.map(|direction| target(cell(text), direction));
        assert_eq!(both("bf16:32768x4096"), [Some(0.97), Some(0.95)]);
        assert_eq!(both("f32:21845x3072"), [Some(0.97), Some(0.95)]);
        assert_eq!(both("f16:262144x512"), [Some(0.97), Some(0.95)]);
        assert_eq!(both("f32:4096x16384"), [Some(0.97), Some(0.92)]);
        assert_eq!(both("bf16:8192x16384"), [Some(0.97), Some(0.95)]);
        assert_eq!(both("bf16:1048576x128"), [Some(0.97), Some(0.945)]);
        assert_eq!(both("bf16:4096x32768"), [Some(0.95), Some(0.92)]);
        assert_eq!(both("bf16:4096x7168"), [Some(0.93), Some(0.86)]);
        assert_eq!(both("f32:4096x4096"), [Some(0.93), Some(0.86)]);
        assert_eq!(both("bf16:512x4096"), [Some(0.92), Some(0.7)]);
        assert_eq!(both("bf16:16384x8192+residual"), [Some(0.95), Some(0.92)]);
        for odd in ["bf16:32768x4097", "bf16:16384x8191", "f32:16384x4097", "bf16:32768x4096+moved"] {
            assert_eq!(both(odd), [Some(0.85), Some(0.82)], "{odd}");
        }
        for none in ["bf16:8192x4097", "bf16:32768x4096+bias", "bf16:1024x4096"] {
            assert_eq!(both(none), [None, None], "{none}");
        }
        let with_target = required_cuda().iter().filter(|c| target(**c, Direction::Forward).is_some()).count();
        assert_eq!(with_target, 46);
    }
}
