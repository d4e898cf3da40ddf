//! Plans as text: all that distinguishes them.

use std::fmt;

use super::{BackwardPlan, ForwardPlan, Launch, Source};

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Launch { class, aligned, exact, blocks } = self;
        let kind = match (*exact, *aligned) {
            (true, _) => " exact",
            (_, true) => "",
            _ => " unaligned",
        };
        write!(f, "{class} ×{blocks}{kind}")
    }
}

impl fmt::Display for ForwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ForwardPlan { rows, blocks_per_sm, rows_at_once, shared_bytes: _, shares } = self;
        write!(f, "{rows}")?;
        if *rows_at_once > 1 {
            write!(f, " {rows_at_once} at once")?;
        }
        if self.is_staged() {
            write!(f, " staged")?;
        }
        if *blocks_per_sm > 1 {
            write!(f, " {blocks_per_sm}/SM")?;
        }
        shares.map_or(Ok(()), |shares| write!(f, " few rows, blocks a row {shares}"))
    }
}

impl fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BackwardPlan { column, rows, source, blocks_per_sm, columns, fold, span, bias } = self;
        let db = bias.map_or(String::new(), |db| format!(" db {}×{} fold {}", db.lanes, db.blocks, db.fold.nodes));
        write!(f, "G{} {rows}", column.groups)?;
        if let Some(span) = span {
            return write!(f, " {blocks_per_sm}/SM one launch, span {span}{db}");
        }
        match source {
            Source::Kept => f.write_str(" kept")?,
            Source::Reread => f.write_str(" reread")?,
            Source::Cluster { stages, .. } => write!(f, " ring {stages}")?,
            Source::Ring { stages, rows, pace, apart, .. } => {
                write!(f, " ring {stages}")?;
                f.write_str(if *rows > 1 { " of two rows" } else { "" })?;
                f.write_str(if *apart { " sums apart" } else { "" })?;
                if *pace > 0 {
                    write!(f, " pace {:.2} µs", f64::from(*pace) / 256e3)?;
                }
            }
        }
        if *blocks_per_sm > 1 {
            write!(f, " {blocks_per_sm}/SM")?;
        }
        if let Some(blocks) = columns {
            write!(f, " columns ×{blocks}")?;
        }
        write!(f, " fold {}{db}", fold.nodes)
    }
}
