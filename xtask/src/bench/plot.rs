//! A report as a page of its own: plots as inline SVG, what was found, and the table. It loads nothing.

use super::cells::{Direction, is_large};
use super::report::{Line, Report};
use super::show::{HEADER, NUMBERS, findings, head, row, us};
use rmsnorm_cuda::Dtype;
use std::collections::BTreeSet;

/// The page.
pub(super) fn page(report: &Report) -> String {
    let list = |items: &[String]| -> String { items.iter().map(|item| format!("<li>{}</li>", escape(item))).collect() };
    let found: String = findings(report)
        .iter()
        .map(|(title, items)| {
            let items = if items.is_empty() { vec!["none".to_string()] } else { items.clone() };
            format!("<h2>{}</h2><ul>{}</ul>\n", escape(title), list(&items))
        })
        .collect();
    let figures: String = panels(report).iter().map(Panel::figure).collect();
    let class = |column: usize| if NUMBERS.contains(&column) { " class=n" } else { "" };
    let cells = |tag: &str, cells: &[String]| -> String {
        let each = cells.iter().enumerate();
        each.map(|(column, text)| format!("<{tag}{}>{}</{tag}>", class(column), escape(text))).collect()
    };
    let rows: String = report
        .lines()
        .iter()
        .map(|line| {
            let missed = if line.met() == Some(false) || !line.faster().is_empty() { " class=bad" } else { "" };
            format!("<tr{missed}>{}</tr>\n", cells("td", &row(line, report.machine.gpu.as_ref())))
        })
        .collect();
    format!(
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>rmsnorm bench</title><style>{STYLE}</style></head><body>\n<h1>rmsnorm bench</h1>\n<ul>{}</ul>\n\
         <p>A fraction is the time of the ceiling (the fastest plain read and write of the same bytes in the same run) over the \
         time of the call; 1 is the speed of the memory. Small grey bars: what is aimed at. Point at a mark for its numbers.</p>\n\
         <div class=panels>{figures}</div>\n{found}<h2>Every cell</h2>\n<div class=wide><table><thead><tr>{}</tr></thead>\n\
         <tbody>{rows}</tbody></table></div>\n</body></html>\n",
        list(&head(report).iter().map(|line| line.replace('`', "")).collect::<Vec<_>>()),
        cells("th", &HEADER.map(String::from)),
    )
}

/// What there is to plot in a report.
fn panels(report: &Report) -> Vec<Panel> {
    let lines = report.lines();
    let mut panels = Vec::new();
    for direction in Direction::BOTH {
        let series = Dtype::ALL.iter().zip(1..);
        let series = series.map(|(dtype, colour)| ours(&lines, *dtype, direction, &dtype.to_string(), colour));
        panels.push(fractions(format!("{direction}, every type"), series.collect(), &lines, direction));
    }
    let libraries: BTreeSet<&str> =
        lines.iter().flat_map(|line| &line.peers).map(|peer| peer.library.as_str()).collect();
    for dtype in Dtype::ALL {
        for direction in Direction::BOTH {
            let mut series = vec![ours(&lines, dtype, direction, "this", 0)];
            series.extend(
                libraries.iter().zip(1..).map(|(library, colour)| theirs(&lines, dtype, direction, library, colour)),
            );
            if series.iter().skip(1).any(|series| !series.points.is_empty()) {
                panels.push(fractions(format!("{direction}, {dtype}, beside others"), series, &lines, direction));
            }
        }
    }
    panels.extend(Direction::BOTH.iter().map(|direction| over_rows(report, &lines, *direction, &libraries)));
    panels.retain(|panel| panel.series.iter().any(|series| series.points.len() > 1));
    panels
}

fn of_width<'a>(lines: &'a [Line], dtype: Dtype, direction: Direction) -> impl Iterator<Item = &'a Line<'a>> {
    lines.iter().filter(move |line| line.cell().dtype == dtype && line.direction == direction && is_large(line.cell()))
}

fn ours(lines: &[Line], dtype: Dtype, direction: Direction, name: &str, colour: usize) -> Series {
    let points = of_width(lines, dtype, direction).map(|line| Point {
        x: line.cell().hidden as f64,
        y: line.fraction,
        says: format!("{} {direction}: {:.3}, {} µs", line.cell(), line.fraction, us(line.us())),
    });
    Series::new(name, colour, points.collect())
}

fn theirs(lines: &[Line], dtype: Dtype, direction: Direction, library: &str, colour: usize) -> Series {
    let points = of_width(lines, dtype, direction).filter_map(|line| {
        let us_median = line.peers.iter().find(|peer| peer.library == library)?.timing.us_median;
        let y = line.worst.ceiling.timing.us_median / us_median;
        let says = format!("{library} {} {direction}: {y:.3}, {} µs", line.cell(), us(us_median));
        Some(Point { x: line.cell().hidden as f64, y, says })
    });
    Series::new(library, colour, points.collect())
}

fn fractions(title: String, series: Vec<Series>, lines: &[Line], direction: Direction) -> Panel {
    let all = || series.iter().flat_map(|series| &series.points);
    let least = all().map(|point| point.y).fold(0.8, f64::min);
    let most = all().map(|point| point.y).fold(1.0, f64::max);
    let shown: BTreeSet<usize> = all().map(|point| point.x as usize).collect();
    let marks = lines.iter().filter(|line| line.direction == direction && is_large(line.cell()));
    let marks = marks.filter(|line| shown.contains(&line.cell().hidden));
    let marks = marks.filter_map(|line| Some((line.cell().hidden as f64, line.target?))).collect();
    let ticks = |from: i32, to: i32| (from..=to).map(|tenth| f64::from(tenth) / 10.0);
    let (from, to) = ((least * 10.0).floor() as i32, (most * 10.0 - 1e-9).ceil() as i32);
    Panel {
        title: format!("{title}; tensors of 256 MB and more"),
        x: Axis::powers("hidden (N), elements", all().map(|point| point.x), 2.0),
        y: Axis {
            label: "fraction of the ceiling".into(),
            log: false,
            from: f64::from(from) / 10.0,
            to: most.max(f64::from(to.min(10)) / 10.0) + 0.02,
            ticks: ticks(from, to.min(10)).map(|y| (y, format!("{y:.1}"))).collect(),
        },
        series,
        marks,
    }
}

/// Time over the number of rows, at the width of which most numbers of rows were measured.
fn over_rows(report: &Report, lines: &[Line], direction: Direction, libraries: &BTreeSet<&str>) -> Panel {
    let of = |dtype: Dtype, hidden: usize| -> Vec<&Line> {
        let same =
            |line: &&Line| line.cell().dtype == dtype && line.cell().hidden == hidden && line.direction == direction;
        let mut of: Vec<_> = lines.iter().filter(same).collect();
        of.sort_by_key(|line| line.cell().rows);
        of
    };
    let widths: BTreeSet<_> = lines.iter().map(|line| (line.cell().hidden, line.cell().dtype)).collect();
    let most = widths.into_iter().max_by_key(|&(hidden, dtype)| (of(dtype, hidden).len(), dtype == Dtype::Bf16));
    let (hidden, dtype) = most.unwrap_or((1, Dtype::Bf16));
    let cells = of(dtype, hidden);
    let series = |name: &str, colour: usize, time: &dyn Fn(&Line) -> Option<f64>| {
        let point = |line: &&Line| {
            let y = time(line)?;
            Some(Point {
                x: line.cell().rows as f64,
                y,
                says: format!("{name}, {} {direction}: {} µs", line.cell(), us(y)),
            })
        };
        Series::new(name, colour, cells.iter().filter_map(point).collect())
    };
    let mut all = vec![
        series("this", 0, &|line| Some(line.us())),
        series("ceiling", COLOURS - 2, &|line| Some(line.worst.ceiling.timing.us_median)),
    ];
    if let Some(gpu) = &report.machine.gpu {
        all.push(series("bare launch", COLOURS - 1, &|_| Some(gpu.bare_launch.us_median)));
    }
    all.extend(libraries.iter().zip(1..).map(|(library, colour)| {
        let of_library =
            |line: &Line| line.peers.iter().find(|peer| peer.library == *library).map(|peer| peer.timing.us_median);
        series(library, colour, &of_library)
    }));
    let points = || all.iter().flat_map(|series: &Series| &series.points);
    Panel {
        title: format!("{direction}, {dtype}, {hidden} columns: time over rows"),
        x: Axis::powers("rows (M)", points().map(|point| point.x), 8.0),
        y: Axis::powers("µs", points().map(|point| point.y), 10.0),
        series: all,
        marks: Vec::new(),
    }
}

struct Panel {
    title: String,
    x: Axis,
    y: Axis,
    series: Vec<Series>,
    /// Places of targets.
    marks: Vec<(f64, f64)>,
}

struct Axis {
    label: String,
    log: bool,
    from: f64,
    to: f64,
    ticks: Vec<(f64, String)>,
}

struct Series {
    name: String,
    colour: usize,
    /// By x.
    points: Vec<Point>,
}

struct Point {
    x: f64,
    y: f64,
    says: String,
}

impl Series {
    fn new(name: &str, colour: usize, mut points: Vec<Point>) -> Series {
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        Series { name: name.into(), colour: colour % COLOURS, points }
    }
}

impl Axis {
    /// A logarithmic axis from one power of `base` to another, around all of `values`.
    fn powers(label: &str, values: impl Iterator<Item = f64> + Clone, base: f64) -> Axis {
        let exponent = |v: f64| (v.ln() / base.ln() * 1e9).round() / 1e9;
        let from = exponent(values.clone().fold(f64::INFINITY, f64::min)).floor();
        let to = exponent(values.fold(0.0, f64::max)).ceil();
        let (from, to) = if from.is_finite() && to > from { (from, to) } else { (0.0, 1.0) };
        let ticks = (from as i32..=to as i32).map(|power| base.powi(power));
        let ticks = ticks.map(|tick| (tick, short(tick)));
        Axis { label: label.into(), log: true, from: base.powf(from), to: base.powf(to), ticks: ticks.collect() }
    }

    /// Where `value` lies between the ends, as 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let f = |v: f64| if self.log { v.ln() } else { v };
        (f(value) - f(self.from)) / (f(self.to) - f(self.from))
    }
}

impl Panel {
    fn figure(&self) -> String {
        let x = |value: f64| LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM);
        let mut svg = String::new();
        for (value, text) in &self.x.ticks {
            let (x, bottom) = (x(*value), HEIGHT - BOTTOM);
            svg += &format!(
                "<path class=grid d=\"M{x:.1} {TOP}V{bottom}\"/><text class=x x={x:.1} y={}>{text}</text>",
                bottom + 17.0
            );
        }
        for (value, text) in &self.y.ticks {
            let y = y(*value);
            svg += &format!(
                "<path class=grid d=\"M{LEFT} {y:.1}H{}\"/><text class=y x={} y={:.1}>{text}</text>",
                WIDTH - RIGHT,
                LEFT - 7.0,
                y + 4.0
            );
        }
        svg += &format!(
            "<text class=x x={} y={}>{}</text><text class=x transform=\"translate(13 {})rotate(-90)\">{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 5.0,
            self.x.label,
            (TOP + HEIGHT - BOTTOM) / 2.0,
            self.y.label
        );
        for (at, target) in &self.marks {
            svg += &format!("<path class=target d=\"M{:.1} {:.1}h16\"/>", x(*at) - 8.0, y(*target));
        }
        let mut legend = String::new();
        let drawn = self.series.iter().filter(|series| !series.points.is_empty());
        for series in drawn {
            let (colour, mark) = (series.colour, MARKS[series.colour % MARKS.len()]);
            let path: Vec<String> = series.points.iter().map(|p| format!("{:.1} {:.1}", x(p.x), y(p.y))).collect();
            svg += &format!("<g class=c{colour}><path class=line d=\"M{}\"/>", path.join("L"));
            for point in &series.points {
                svg += &format!(
                    "<g transform=\"translate({:.1} {:.1})\"><title>{}</title>{}</g>",
                    x(point.x),
                    y(point.y),
                    escape(&point.says),
                    mark
                );
            }
            svg += "</g>";
            legend += &format!(
                "<span><svg width=26 height=12 viewBox=\"-13 -6 26 12\" class=c{}><path class=line d=\"M-13 0H13\"/>{}</svg> {}</span>",
                colour,
                mark,
                escape(&series.name)
            );
        }
        format!(
            "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=img aria-label=\"{}\">{svg}</svg>\
             <div class=legend>{legend}</div></figure>\n",
            escape(&self.title),
            escape(&self.title)
        )
    }
}

/// 1024 as 1k, 0.1 as 0.1.
fn short(value: f64) -> String {
    match value {
        v if v >= 1024.0 && v % 1024.0 == 0.0 => format!("{}k", v / 1024.0),
        v => format!("{}", (v * 1e6).round() / 1e6),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 44.0;
const COLOURS: usize = 8;
const MARKS: [&str; 4] = [
    "<circle r=3.5 />",
    "<path d=\"M-3 -3h6v6h-6z\"/>",
    "<path d=\"M0 -4.5L4 3.5H-4z\"/>",
    "<path d=\"M0 -4.5L4.5 0L0 4.5L-4.5 0z\"/>",
];
/// Colours that differ in lightness too, for either background.
const STYLE: &str = "
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1b1b;--dim:#666;--grid:#e3e3e3;--bad:#fbe9e4;
--c0:#0b62a8;--c1:#c24e00;--c2:#0f8a63;--c3:#9b3d8c;--c4:#8a6d00;--c5:#3aa0d8;--c6:#444;--c7:#c0392b}
@media(prefers-color-scheme:dark){:root{--bg:#16181b;--fg:#e6e6e6;--dim:#a0a0a0;--grid:#33373c;--bad:#43261f;
--c0:#62b0f0;--c1:#f09050;--c2:#4cc9a0;--c3:#df9ad2;--c4:#dcc050;--c5:#9bd4f2;--c6:#bbb;--c7:#f08a7e}}
body{font:15px/1.45 system-ui,sans-serif;background:var(--bg);color:var(--fg);max-width:1240px;margin:1.5rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:1.6rem}ul{padding-left:1.2rem}li{overflow-wrap:anywhere}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:1rem 2rem}
figure{margin:0}figcaption{font-weight:600}figure>svg{width:100%;height:auto}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;padding-left:3.5rem;font-size:.9rem}
text{font-size:12px;fill:var(--dim)}text.x{text-anchor:middle}text.y{text-anchor:end}
.grid{stroke:var(--grid);fill:none}.target{stroke:var(--dim);stroke-width:3;opacity:.7}
.line{fill:none;stroke:currentColor;stroke-width:1.8}.c0 .line{stroke-width:2.6}g[class^=c],svg[class^=c]{fill:currentColor}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}
.c4{color:var(--c4)}.c5{color:var(--c5)}.c6{color:var(--c6)}.c7{color:var(--c7)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.15rem .6rem;text-align:left;border-bottom:1px solid var(--grid);white-space:nowrap}.n{text-align:right}
tr.bad{background:var(--bad)}
";
