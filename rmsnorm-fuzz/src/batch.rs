//! Property 6: a row does not depend on its batch.

use crate::buffer::Fill;
use crate::case::{Case, DwKind};
use crate::finding::{Evidence, Finding, Stop, demand_equal};
use crate::operands::Operands;
use crate::subject::Subject;

/// *A row alone gives the same bits as in any batch, at any position*: batches of the sizes at which others dispatch, each
/// position holding some row of the case. One batch has `dw` asked for and the next not, which must not matter either.
pub(crate) fn batch(subject: &Subject, case: &Case) -> Finding {
    let executor = &*subject.executor;
    if case.rows == 0 {
        return Err(Stop::NotApplicable("there is no row".into()));
    }
    let mut evidence = Evidence::default();
    let want = Operands::new(case, Fill::Nan).run(executor)?;
    for (i, rows) in BATCHES.into_iter().enumerate() {
        if rows * case.hidden > MOST_ELEMENTS.max(case.elements()) {
            evidence.exclude("batches above the limit of elements", 1);
            continue;
        }
        // Alone: a few rows, each by itself. In a batch: every position.
        let positions = if rows == 1 { 4 } else { 1 };
        for position in 0..positions {
            let source = |i: usize| (i * 5 + rows + position * (case.rows / 4)) % case.rows;
            let dw = if i % 2 == 0 { DwKind::Absent } else { case.dw };
            let got = Operands::with_rows(&Case { dw, ..*case }, Fill::Plausible, rows, source).run(executor)?;
            evidence.count(got.elements());
            let what = format!("in a batch of {rows} rows, row i being row (5i + {}) of the case", source(0));
            demand_equal(what, want.row_difference(&got, source))?;
        }
    }
    Ok(evidence)
}

/// Numbers of rows at which other implementations switch kernels.
const BATCHES: [usize; 8] = [1, 2, 3, 17, 255, 256, 257, 4096];
const MOST_ELEMENTS: usize = 1 << 18;
