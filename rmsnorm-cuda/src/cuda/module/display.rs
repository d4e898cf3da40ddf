//! Modules as text: all that distinguishes them.

use std::fmt;

use super::{Module, RowKind};
use crate::Dtype;

impl fmt::Display for RowKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RowKind { class, dtype, weight, zero_centred, twice, aligned, exact, grouping, any_width } = self;
        write!(f, "{class} {dtype} weight={}", weight.map_or("none".into(), |w| w.to_string()))?;
        f.write_str(if *zero_centred { "+1" } else { "" })?;
        f.write_str(if *twice { " rounded twice" } else { "" })?;
        f.write_str(if *exact {
            " exact"
        } else if *aligned {
            " aligned"
        } else {
            " unaligned"
        })?;
        f.write_str(if *any_width { " of any width" } else { "" })?;
        write!(f, "{grouping}")
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Module::Forward { rows, staged, blocks_per_sm, rows_at_once, residual, y, bias } => {
                let added = Added { dtype: rows.dtype, residual: *residual, bias: *bias, y: *y };
                let staged = if *staged { " staged" } else { "" };
                write!(f, "forward{added} {rows}{staged} {rows_at_once} at once {blocks_per_sm}/SM")
            }
            Module::ForwardFew { rows, shares, blocks_per_sm, residual, y, bias } => {
                let added = Added { dtype: rows.dtype, residual: *residual, bias: *bias, y: *y };
                write!(f, "forward of few rows{added} {rows} blocks a row {shares} {blocks_per_sm}/SM")
            }
            Module::Backward { rows, source, blocks_per_sm, dy, dz, dx } => {
                let gradients = Gradients { dtype: rows.dtype, dy: *dy, dz: *dz, dx: *dx };
                write!(f, "backward{gradients} {rows} {source} {blocks_per_sm}/SM")
            }
            Module::BackwardFew { rows, dw, span, blocks_per_sm, dy, dz, dx } => {
                let gradients = Gradients { dtype: rows.dtype, dy: *dy, dz: *dz, dx: *dx };
                write!(f, "backward of few rows{gradients} {rows} dw={dw} span {span} {blocks_per_sm}/SM")
            }
            Module::BiasPartials { dtype, aligned, grouping } => {
                write!(f, "sums of dy {dtype}{}{grouping}", if *aligned { " aligned" } else { " unaligned" })
            }
            Module::Fold { dw, per_head } => write!(f, "fold {dw}{}", if *per_head { " of heads" } else { "" }),
        }
    }
}

/// What forward adds, and of which types, as text.
struct Added {
    dtype: Dtype,
    residual: Option<[Dtype; 2]>,
    bias: Option<Dtype>,
    y: Dtype,
}

impl fmt::Display for Added {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.residual {
            Some([x, residual]) if x == self.dtype && residual == self.dtype => f.write_str(" with a residual")?,
            Some([x, residual]) => write!(f, " of {x} with a residual of {residual}")?,
            None => {}
        }
        self.bias.map_or(Ok(()), |dtype| write!(f, " with a bias of {dtype}"))?;
        if self.y == self.dtype { Ok(()) } else { write!(f, " to {}", self.y) }
    }
}

/// What backward reads and writes beside x, as text.
struct Gradients {
    dtype: Dtype,
    dy: Dtype,
    dz: Option<Dtype>,
    dx: Dtype,
}

impl fmt::Display for Gradients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_other = |of: &Dtype| *of != self.dtype;
        Some(self.dy).filter(is_other).map_or(Ok(()), |dy| write!(f, " of {dy}"))?;
        match self.dz {
            Some(dz) if is_other(&dz) => write!(f, " with a dz of {dz}")?,
            Some(_) => f.write_str(" with dz")?,
            None => {}
        }
        Some(self.dx).filter(is_other).map_or(Ok(()), |dx| write!(f, " to {dx}"))
    }
}
