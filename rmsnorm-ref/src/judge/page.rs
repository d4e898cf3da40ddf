//! The report as one page that needs no other file: verdicts first, then for each output where it is off and by how much.

use super::folder::{Cell, FolderReport};
use super::mistakes::short;
use super::report::{CaseReport, MapReport, OutputReport, Report, Verdict, Worst, figure};
use std::fmt::Write;

/// Maps of more cases than this are left out: a page of a folder shows those that are outside.
const DETAILED: usize = 40;

pub(crate) fn of(report: &Report) -> String {
    let mut body = headline(report.verdict, &report.file, outside_in_words(report.cases.iter()));
    if let Some(comparison) = &report.comparison {
        let _ = write!(
            body,
            "<h2>Beside {}</h2><table><tr><th>output<th>differs<th>first<th>at most",
            text(&comparison.second)
        );
        for d in &comparison.outputs {
            let first = d
                .first
                .as_ref()
                .map_or("bit-equal".into(), |(row, column, a, b)| format!("row {row}, column {column}: {a}, {b}"));
            let ulp = d.most_ulp.map_or(String::new(), |ulp| format!("{ulp} ULP"));
            let _ = write!(
                body,
                "<tr><td>{} {}<td>{} of {}<td>{first}<td>{ulp}",
                text(&d.case),
                d.output,
                d.different,
                d.elements
            );
        }
        body.push_str("</table>");
        if let Some(pattern) = &comparison.pattern {
            let _ = write!(body, "<p class=looks>The pattern says {}.", text(pattern));
        }
    }
    for case in &report.cases {
        body.push_str(&section(case, None));
    }
    whole(&report.file, &body)
}

pub(crate) fn of_folder(report: &FolderReport) -> String {
    let reports = || report.cases.iter().filter_map(|case| case.report.as_ref());
    let mut body = headline(report.verdict, &report.folder, outside_in_words(reports()));
    body.push_str("<h2>By class of bugs</h2><table><tr><th>class<th>output<th>elements outside<th>of<th>cases outside<th>of<th>of these only beyond f32's range of squares");
    for (class, outputs) in report.table() {
        for (output, cell) in outputs {
            let Cell { cases, cases_outside, beyond_only, elements, outside } = cell;
            let mark = if outside > 0 { " class=bad" } else { "" };
            let _ = write!(
                body,
                "<tr{mark}><td>{class}<td>{output}<td class=n>{outside}<td class=n>{elements}<td class=n>{cases_outside}<td class=n>{cases}<td class=n>{beyond_only}"
            );
        }
    }
    body.push_str("</table>");
    let missing: Vec<_> = report.cases.iter().filter(|case| case.report.is_none()).collect();
    if !missing.is_empty() {
        let _ = write!(body, "<h2>Not judged</h2><ul>");
        for case in missing {
            let _ = write!(body, "<li>{}: {}", text(&case.name), text(case.missing.as_deref().unwrap_or("no outputs")));
        }
        body.push_str("</ul>");
    }
    let outside = report.cases.iter().filter(|case| case.report.as_ref().is_some_and(|r| r.verdict != Verdict::Right));
    for (shown, case) in outside.enumerate() {
        match &case.report {
            Some(report) if shown < DETAILED => {
                body.push_str(&section(report, Some(&format!("class {}: {}", case.class, case.reason))))
            }
            _ => {
                let _ = write!(body, "<p>{} is outside as well; JSON has it.", text(&case.name));
            }
        }
    }
    whole(&report.folder, &body)
}

fn headline(verdict: Verdict, file: &str, words: String) -> String {
    let class = if verdict == Verdict::Right { "good" } else { "wrong" };
    format!("<h1 class={class}>{}</h1><p><b>{}</b>. {words}", text(&verdict.to_string()), text(file))
}

fn outside_in_words<'a>(cases: impl Iterator<Item = &'a CaseReport>) -> String {
    let (mut elements, mut outside, mut judged, mut with) = (0, 0, 0, 0);
    for case in cases {
        judged += 1;
        with += usize::from(case.verdict != Verdict::Right);
        elements += case.outputs.iter().map(|output| output.elements).sum::<u64>();
        outside += case.outputs.iter().map(|output| output.outside).sum::<u64>();
    }
    format!("{outside} of {elements} elements are outside the bound, in {with} of {judged} cases.")
}

fn section(case: &CaseReport, reason: Option<&str>) -> String {
    let mut html = String::new();
    let name = if case.name.is_empty() { "The case" } else { &case.name };
    let _ = write!(
        html,
        "<h2>{} <span class={}>{}</span></h2>",
        text(name),
        mark(case.verdict),
        text(&case.verdict.to_string())
    );
    if let Some(reason) = reason {
        let _ = write!(html, "<p>{}", text(reason));
    }
    let order = if case.any_order {
        "sums in any order".into()
    } else {
        format!("at most {} roundings along a row, {} down a column", case.heights.0, case.heights.1)
    };
    let _ = write!(
        html,
        "<p>{} × {}, x in {}, eps {}{}, {order}.",
        case.rows,
        case.hidden,
        case.x,
        short(case.eps),
        if case.offset == 0.0 { "" } else { ", weight + 1" }
    );
    for looks in &case.looks_like {
        let _ = write!(html, "<p class=looks>Looks like: {}.", text(&looks.sentence));
    }
    for note in &case.notes {
        let _ = write!(html, "<p class=note>{}.", text(note));
    }
    for output in &case.outputs {
        html.push_str(&panel(output));
    }
    html
}

fn mark(verdict: Verdict) -> &'static str {
    if verdict == Verdict::Right { "good" } else { "wrong" }
}

fn panel(output: &OutputReport) -> String {
    let mut html = String::new();
    let verdict = output.verdict;
    let _ = write!(
        html,
        "<section><h3>{} <small>{}</small> <span class={}>{}</span></h3>",
        output.name,
        output.stored,
        mark(verdict),
        text(&verdict.to_string())
    );
    let _ = write!(html, "<p>{} of {} outside", output.outside, output.elements);
    for (count, what) in [
        (output.beyond_plain_range_outside, "of these where a plain kernel's intermediates leave the range of f32"),
        (output.nan, "NaN"),
        (output.infinite, "infinite"),
        (output.zeros_outside, "of what is outside are 0"),
        (output.unbounded, "without a bound"),
        (output.may_overflow, "may overflow"),
        (output.one_value_allowed, "of which one value alone is right"),
        (output.alarms, "alarms: more than random rounding explains, no verdict"),
    ] {
        if count > 0 {
            let _ = write!(html, "; {count} {what}");
        }
    }
    html.push('.');
    if let Some(worst) = &output.worst {
        let Worst { row, column, computed, exact, least, most, of_bound, ulp } = worst;
        let _ = write!(
            html,
            "<p>Worst: {} of the bound, {} ULP, at row {row}, column {column}: {computed:e}; exact {exact:e}, right from {least:e} to {most:e}.",
            figure(*of_bound),
            figure(*ulp)
        );
    }
    if let Some(signed) = output.mean_signed_ulp {
        let _ = write!(html, " Mean signed error {} ULP.", figure(signed));
    }
    if let Some((rows, first, last)) = output.rows_outside
        && !["dw", "db"].contains(&output.name)
    {
        let _ = write!(html, " Rows with something outside: {rows}, from {first} to {last}.");
    }
    if let Some((columns, first, last)) = output.columns_outside {
        let _ = write!(html, " Columns: {columns}, from {first} to {last}.");
    }
    let _ = write!(
        html,
        "<div class=row><figure>{}<figcaption>where: the largest error / bound of each cell, rows down; light to dark is 0 to 1, red outside</figcaption></figure>",
        map(&output.map)
    );
    let _ = write!(
        html,
        "<figure>{}<figcaption>elements by error / bound, logarithmic; the last bar is outside</figcaption></figure></div></section>",
        histogram(&output.histogram)
    );
    html
}

/// Colours of error/bound in eighths, light to dark; what is outside is red.
const COLOURS: [&str; 9] =
    ["#f2f5f9", "#dfe8f2", "#c7d7e9", "#a9c2dd", "#87a9ce", "#638dbb", "#4470a2", "#2b5283", "#d22f27"];

fn map(map: &MapReport) -> String {
    let (width, height) = (480.0, if map.down == 1 { 40.0 } else { 160.0 });
    let (across, down) = (map.across.max(1), map.down.max(1));
    let colour = |cell: f32| if cell > 1.0 { 8 } else { (cell * 8.0).min(7.0) as usize };
    let mut svg = format!(
        "<svg viewBox='0 0 {across} {down}' width={width} height={height} preserveAspectRatio=none shape-rendering=crispEdges>"
    );
    for (row, cells) in map.cells.chunks(across).enumerate() {
        // Neighbours of one colour are one rectangle.
        let mut from = 0;
        for column in 1..=cells.len() {
            if column == cells.len() || colour(cells[column]) != colour(cells[from]) {
                let fill = COLOURS[colour(cells[from])];
                let _ = write!(svg, "<rect x={from} y={row} width={} height=1 fill='{fill}'/>", column - from);
                from = column;
            }
        }
    }
    svg + "</svg>"
}

fn histogram(bins: &[u64]) -> String {
    let (width, height) = (340.0, 160.0);
    let most = bins.iter().copied().max().unwrap_or(1).max(1) as f64;
    let bar = width / bins.len() as f64;
    let mut svg = format!("<svg viewBox='0 0 {width} {height}' width={width} height={height}>");
    for (i, count) in bins.iter().enumerate().filter(|(_, count)| **count > 0) {
        let tall = (height - 20.0) * ((*count as f64).ln_1p() / most.ln_1p()).max(0.02);
        let fill = if i + 1 == bins.len() { COLOURS[8] } else { COLOURS[6] };
        let (x, y) = (i as f64 * bar, height - 16.0 - tall);
        let _ = write!(
            svg,
            "<rect x={x:.1} y={y:.1} width={:.1} height={tall:.1} fill='{fill}'><title>{count}</title></rect>",
            bar - 2.0
        );
    }
    let end = width - bar;
    let _ = write!(
        svg,
        "<text x=0 y={0}>0</text><text x={1:.0} y={0}>½</text><text x={2:.0} y={0}>1</text></svg>",
        height - 3.0,
        end / 2.0,
        end - 8.0
    );
    svg
}

fn text(raw: &str) -> String {
    raw.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn whole(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>RMSNorm judged: {}</title><style>\
         body{{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:62em;padding:0 1em;color:#1c2430}}\
         h1{{font-size:2.2em;margin:0}}h2{{margin-top:2em;border-top:1px solid #ccd3dc;padding-top:.6em}}h3{{margin:.8em 0 0}}\
         .good{{color:#1d7a3c}}.wrong{{color:#d22f27}}small{{color:#667}}.looks{{background:#fff4d6;padding:.5em .8em;border-left:4px solid #e0a100}}\
         figcaption{{max-width:36em}}.note,figcaption{{color:#566}}table{{border-collapse:collapse}}td,th{{padding:.15em .7em;border-bottom:1px solid #dde3ea;text-align:left}}\
         td.n{{text-align:right;font-variant-numeric:tabular-nums}}tr.bad td{{background:#fde8e6}}.row{{display:flex;flex-wrap:wrap;gap:1.5em}}figure{{margin:.6em 0}}svg{{background:#fff;border:1px solid #dde3ea}}\
         svg text{{font-size:12px;fill:#556}}figcaption{{font-size:13px}}</style>{body}</html>\n",
        text(title)
    )
}
