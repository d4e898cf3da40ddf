//! bound.rs against the page that proves it: each formula of `docs/numerics.md` as it stands there, by its section, with operands of
//! such sizes that every term of it matters somewhere.

mod simulation;

use rmsnorm_ref::bound::{self, BackwardRow, ColumnSums, SLACK, Scale};
use rmsnorm_ref::{Allowed, Format};
use simulation::Random;

const U: f64 = 1.0 / (1u64 << 24) as f64;
const ETA: f64 = U * U * U * U * U * U / 64.0;

/// 1 + θ − 1 loses 2^-53 of 1, and so 2^-29 of u; a missing product of two small numbers would be u of it.
const CLOSE: f64 = 1e-8;

#[test]
fn rstd_as_in_section_3() {
    assert_eq!(ETA.to_bits(), 2f64.powi(-150).to_bits());
    let mut random = Random(31);
    for exponent in -300..256 {
        for depth in [1, 7, 500, 1 << 21] {
            let v = (1.0 + random.unit()) * 2f64.powi(exponent);
            let rstd = v.powf(-0.5);
            let Rho { before, rho } = rho(v, depth);
            close(bound::relative_rstd(v, depth), rho, "rho");
            close(error(bound::rstd(v, depth)), before * rstd, "rstd");
        }
    }
}

#[test]
fn y_as_in_sections_4_and_5() {
    let mut random = Random(32);
    for _ in 0..20_000 {
        let Element { x, scale, .. } = element(&mut random);
        let (rho, w, o) = (1e-6 * random.unit(), scale.weight.abs(), scale.relative);
        let e_x = rho * x.abs() + rnd((1.0 + rho) * x.abs());
        let a = if scale.multiplies { w * (1.0 + o) * e_x + o * (x * w).abs() } else { rho * x.abs() };
        let e = a + rnd((x * w).abs() + a);
        close(error(bound::y(x, rho, scale, None, Format::F32)), a, "y in f32");
        close(error(bound::y(x, rho, scale, None, Format::Bf16)), e, "y in bf16");
        // Of the size of the product, which it may cancel, and far from it.
        let bias = -x * scale.weight * [1.0 + 1e-6, 0.5, 1e30, 1e-30][random.below(4)];
        let (y, w) = (x * scale.weight + bias, if scale.multiplies { w } else { 1.0 });
        let a = if x * w == 0.0 { 0.0 } else { w * (1.0 + o) * e_x + o * (x * w).abs() + 2f64.powi(-52) * y.abs() };
        let e = if x * w == 0.0 { 0.0 } else { a + rnd(y.abs() + a) };
        close(error(bound::y(x, rho, scale, Some(bias), Format::F32)), a, "y with a bias in f32");
        close(error(bound::y(x, rho, scale, Some(bias), Format::Bf16)), e, "y with a bias in bf16");
        close(bound::x_hat_error(x, rho), e_x, "x_hat");
    }
}

/// y of the h that explains it, dw of what the exact x is rounded to.
#[test]
fn rounded_twice_as_in_sections_5_and_7() {
    let mut random = Random(37);
    for (narrow, digits) in [(Format::F16, 10), (Format::Bf16, 7)] {
        for _ in 0..20_000 {
            let Element { scale, dy, .. } = element(&mut random);
            // Half of the h have a neighbour within the error of x_hat.
            let h = (1.0 + random.below(1 << digits) as f64 * 2f64.powi(-digits)).copysign(dy);
            let (rho, ulp) = (1e-6 * random.unit(), 2f64.powi(-digits).copysign(h));
            let e_x = rho * (h + 0.5 * ulp).abs() + rnd((1.0 + rho) * (h + 0.5 * ulp).abs());
            let at_the_edge = random.below(2) == 0;
            let x = if at_the_edge { h + 0.5 * ulp - 0.5 * e_x.copysign(h) } else { h + 0.1 * ulp };
            for (h, explains) in [(h, true), (h + ulp, at_the_edge), (h - ulp, false)] {
                let (y, o) = (h * scale.weight, scale.relative);
                let e = if scale.multiplies { o * y.abs() + rnd(y.abs() * (1.0 + o)) } else { 0.0 };
                let allowed = |format| bound::y_rounded_twice(x, rho, scale, None, narrow, format, format.round(y));
                let Allowed::Near { exact, error, .. } = allowed(narrow) else { panic!("no interval") };
                assert!(exact == y || !explains || format_neighbours(narrow, exact, y, error), "{exact:e} for {y:e}");
                if exact == y && explains {
                    close(error / SLACK, e, "y");
                }
            }
            let mut sums = ColumnSums::default();
            sums.add_rounded(bound::rounded_x_hat(x, rho, narrow), dy);
            let spread = if at_the_edge { ulp.abs() } else { 0.0 };
            let a = (dy * h).abs();
            let e_dw = (1.0 + gamma(3)) * (dy.abs() * spread + if dy == 0.0 { 0.0 } else { ETA }) + gamma(3) * a;
            let Allowed::Near { exact, error, .. } = sums.dw(3, Format::Bf16) else { panic!("no interval") };
            assert_eq!(exact, dy * h);
            close(error / SLACK, e_dw, "dw");
        }
    }
}

/// Whether two values, one of them with an error, have a stored value in common: then either explains it.
fn format_neighbours(format: Format, a: f64, b: f64, error: f64) -> bool {
    let stored = format.round(b);
    format.round(a - error) <= stored && stored <= format.round(a + error)
}

#[test]
fn dx_as_in_section_6() {
    let mut random = Random(33);
    for _ in 0..20_000 {
        let row: Vec<Element> = (0..1 + random.below(4)).map(|_| element(&mut random)).collect();
        let (n, depth, rho) = (row.len() as f64, 1 + random.below(300) as u64, 1e-4 * random.unit());
        let rstd = 2f64.powi(random.below(100) as i32 - 50);
        let sum = |term: &dyn Fn(&Element) -> f64| row.iter().map(term).sum::<f64>();
        let wdy = |e: &Element| e.dy * e.scale.weight;
        let of_wdy = |e: &Element| match e.scale.multiplies {
            true => ((1.0 + e.scale.relative) * (1.0 + U) - 1.0, ETA),
            false => (0.0, 0.0),
        };
        let g = |e: &Element| (1.0 + of_wdy(e).0) * (1.0 + U) * (1.0 + gamma(depth)) - 1.0;
        let underflow = |e: &Element| {
            let (relative, eta) = of_wdy(e);
            let of_factors = ETA * (1.0 + relative) * wdy(e).abs() + eta * (1.0 + rho) * (1.0 + U) * e.x.abs();
            if wdy(e) * e.x == 0.0 { 0.0 } else { of_factors + eta * ETA + ETA }
        };
        let c = sum(&|e| wdy(e) * e.x) / n;
        let h = (1.0 + rho) * sum(&|e| g(e) * (wdy(e) * e.x).abs()) + (1.0 + gamma(depth)) * sum(&underflow);
        let e_c = h / n + rnd((1.0 + rho) * c.abs() + h / n);
        let items = row.iter().map(|e| (e.x, e.dy, e.scale));
        let shared = BackwardRow::new(rstd, rho, depth, items);
        for e in &row {
            let (w, xc, (relative, eta)) = (wdy(e), e.x * c, of_wdy(e));
            let e_wdy = if w == 0.0 { 0.0 } else { relative * w.abs() + eta };
            let x_rounding = rnd((1.0 + rho) * e.x.abs());
            let b = e_wdy + (1.0 + rho) * (e.x.abs() * e_c + c.abs() * x_rounding) + x_rounding * e_c;
            let most = (w - xc).abs() + (2.0 * rho + rho * rho) * xc.abs() + b;
            let t = if e.x == 0.0 { 0.0 } else { rnd(most) };
            let shares = rho * (w - 3.0 * xc).abs() + (3.0 * rho.powi(2) + rho.powi(3)) * xc.abs();
            let a = rstd * (shares + (1.0 + rho) * (b + t));
            let dx = (w - xc) * rstd;
            let allowed = |dz, format| error(shared.dx(dx, e.x, e.dy, e.scale, dz, format));
            close(allowed(None, Format::F32), a, "dx in f32");
            close(allowed(None, Format::F16), a + rnd(dx.abs() + a), "dx in f16");
            close(allowed(Some(-0.5 * dx), Format::F32), a, "dx with dz in f32");
            close(allowed(Some(-0.5 * dx), Format::F16), a + rnd((0.5 * dx).abs() + a), "dx with dz in f16");
            let stored_as_infinity =
                BackwardRow::new(2f64.powi(129), rho, depth, row.iter().map(|e| (e.x, e.dy, e.scale)));
            let dx = (w - xc) * 2f64.powi(129);
            let a = a / rstd * 2f64.powi(129);
            let allowed = |dz| error(stored_as_infinity.dx(dx, e.x, e.dy, e.scale, dz, Format::F32));
            close(allowed(None), a, "dx of a row whose rstd is +Inf");
            close(allowed(Some(-0.5 * dx)), a + U * (dx.abs() + a), "dx with dz of such a row");
        }
    }
}

#[test]
fn dw_and_db_as_in_sections_7_and_12() {
    let mut random = Random(34);
    for _ in 0..20_000 {
        let column: Vec<(Element, f64)> =
            (0..1 + random.below(5)).map(|_| (element(&mut random), 1e-5 * random.unit())).collect();
        let depth = random.below(300) as u64 + 2;
        let sum = |term: &dyn Fn(&Element, f64) -> f64| column.iter().map(|(e, rho)| term(e, *rho)).sum::<f64>();
        let f = |rho: f64| (1.0 + rho) * (1.0 + U) - 1.0;
        let a = |e: &Element| (e.dy * e.x).abs();
        let factors = sum(&|e, rho| f(rho) * a(e));
        let underflow = ETA * sum(&|e, _| if a(e) == 0.0 { 0.0 } else { e.dy.abs() + 1.0 });
        let (magnitude, dw) = (sum(&|e, _| a(e)), sum(&|e, _| e.dy * e.x));
        let e_dw = |gamma: f64| (1.0 + gamma) * (factors + underflow) + gamma * magnitude;
        let e_db = |gamma: f64| gamma * sum(&|e, _| e.dy.abs());
        let walked =
            U * U * depth as f64 * (dw * dw + sum(&|e, _| a(e).powi(2))) + sum(&|e, rho| (f(rho) * a(e)).powi(2));
        // Merged from two halves, in place of one after the other.
        let mut sums = ColumnSums::default();
        let mut rest = ColumnSums::default();
        for (i, (e, rho)) in column.iter().enumerate() {
            if i % 2 == 0 { &mut sums } else { &mut rest }.add(e.x, *rho, e.dy);
        }
        sums.merge(&rest);
        close(error(sums.dw(depth, Format::F32)), e_dw(gamma(depth - 1)), "dw in f32");
        close(error(sums.dw(depth, Format::F16)), e_dw(gamma(depth)), "dw in f16");
        close(error(sums.db(depth, Format::F32)), e_db(gamma(depth - 2)), "db in f32");
        close(error(sums.db(depth, Format::F16)), e_db(gamma(depth - 1)), "db in f16");
        if magnitude > 0.0 {
            let alarm = 8.0 * walked.sqrt() + dw.abs() * factors / magnitude + (1.0 + gamma(depth)) * underflow;
            close(sums.dw_alarm(depth) / SLACK, alarm, "alarm");
        }
    }
}

struct Rho {
    /// Of rstd before its last rounding.
    before: f64,
    rho: f64,
}

fn rho(v: f64, depth: u64) -> Rho {
    let folded = gamma(depth + 2);
    let tau = match v {
        v if v < 2f64.powi(-127) => 0.0,
        v if v < 2f64.powi(103) => 2.0 * ETA * (1.0 + folded) / v,
        _ => 2f64.powi(-51),
    };
    let root = 1.0 + 0.5 * (folded + tau) / (1.0 - folded - tau);
    let (divided, stored) = (root / (1.0 - U) - 1.0, root * (1.0 + U) / (1.0 - U) - 1.0);
    let rstd = v.powf(-0.5);
    if rstd < 2f64.powi(-125) {
        Rho { before: stored, rho: stored + ETA / rstd }
    } else {
        Rho { before: divided, rho: stored }
    }
}

fn gamma(k: u64) -> f64 {
    k as f64 * U / (1.0 - k as f64 * U)
}

fn rnd(a: f64) -> f64 {
    if a == 0.0 { 0.0 } else { f64::max(U * a, ETA) }
}

struct Element {
    x: f64,
    dy: f64,
    scale: Scale,
}

/// Of ordinary size, tiny so that underflow decides, or 0.
fn element(random: &mut Random) -> Element {
    let exponents = [0, 0, 3, -70, -130];
    let mut value = || match random.below(8) {
        0 => 0.0,
        k => f64::from(random.at(exponents[k % 5])),
    };
    let (x, dy, weight) = (value(), value(), value());
    let scale = match random.below(3) {
        0 => Scale { weight: 1.0, relative: 0.0, multiplies: false },
        1 => Scale { weight, relative: 0.0, multiplies: true },
        _ => Scale { weight, relative: U, multiplies: true },
    };
    Element { x, dy, scale }
}

fn error(allowed: Allowed) -> f64 {
    match allowed {
        Allowed::Near { error, .. } => error / SLACK,
        other => panic!("{other:?}"),
    }
}

fn close(code: f64, page: f64, what: &str) {
    assert!((code - page).abs() <= CLOSE * page.abs(), "{what}: the code has {code:e}, the page {page:e}");
}
