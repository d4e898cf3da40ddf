//! The formulas in f64: cases computed by hand, and every gradient against central differences on asymmetric data.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, Zip, arr1, arr2, s};
use rmsnorm_ref::{Forward, backward, forward, layer_norm_backward, layer_norm_forward};

#[test]
fn forward_by_hand() {
    // mean(x²) = (49 + 1)/2 = 25, rstd = 1/5; then 4 + 12 = 16, rstd = 1/4, weights 1.5 and −2.
    let Forward { rstd, x_hat, y } = forward(arr2(&[[7.0, -1.0]]).view(), Some(arr1(&[2.0, 3.0]).view()), 0.0, 0.0);
    assert_eq!(rstd, arr1(&[0.2]));
    close(&x_hat, &arr2(&[[1.4, -0.2]]), 1e-15);
    close(&y, &arr2(&[[2.8, -0.6]]), 1e-15);
    let zero_centred = forward(arr2(&[[2.0, -2.0]]).view(), Some(arr1(&[0.5, -3.0]).view()), 1.0, 12.0);
    assert_eq!(zero_centred.rstd, arr1(&[0.25]));
    assert_eq!(zero_centred.y, arr2(&[[0.75, 1.0]]));
    assert_eq!(forward(arr2(&[[2.0, -2.0]]).view(), None, 1.0, 12.0).y, arr2(&[[0.5, -0.5]]));
}

#[test]
fn backward_by_hand() {
    // rstd = 1/4, x_hat = (½, −½), wdy = (8, −2), c = (4 + 1)/2 = 2.5, t = (6.75, −0.75).
    let (x, dy, weight) = (arr2(&[[2.0, -2.0]]), arr2(&[[4.0, 2.0]]), arr1(&[2.0, -1.0]));
    let gradients = backward(x.view(), dy.view(), Some(weight.view()), 0.0, 12.0);
    assert_eq!(gradients.dx, arr2(&[[1.6875, -0.1875]]));
    assert_eq!(gradients.dw, arr1(&[2.0, -1.0]));
    assert_eq!(gradients.db, arr1(&[4.0, 2.0]));
}

#[test]
fn layer_norm_by_hand() {
    // mean 3, x − mean = (−4, 4), variance 16, eps 9, rstd = 1/5, x_hat = (−0.8, 0.8).
    let (x, weight, bias) = (arr2(&[[-1.0, 7.0]]), arr1(&[5.0, 10.0]), arr1(&[1.0, 2.0]));
    let norm = layer_norm_forward(x.view(), Some(weight.view()), Some(bias.view()), 9.0);
    assert_eq!(norm.rstd, arr1(&[0.2]));
    close(&norm.y, &arr2(&[[-3.0, 10.0]]), 1e-14);
}

#[test]
fn no_rows_give_empty_outputs_and_zero_sums() {
    let none = Array2::<f64>::zeros((0, 3));
    assert_eq!(forward(none.view(), None, 0.0, 1e-5).y.dim(), (0, 3));
    let gradients = backward(none.view(), none.view(), None, 0.0, 1e-5);
    assert_eq!((gradients.dx.dim(), gradients.dw, gradients.db), ((0, 3), Array1::zeros(3), Array1::zeros(3)));
}

#[test]
fn degenerate_rows() {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let x = arr2(&[[0.0, 0.0], [inf, 1.0], [nan, 1.0]]);
    let Forward { rstd, y, .. } = forward(x.view(), None, 0.0, 0.0);
    assert_eq!((rstd[0], rstd[1], y[[1, 1]]), (inf, 0.0, 0.0));
    assert!(rstd[2].is_nan() && [y[[0, 0]], y[[0, 1]], y[[1, 0]], y[[2, 0]], y[[2, 1]]].iter().all(|y| y.is_nan()));
    assert_eq!(forward(x.slice(s![..1, ..]), None, 0.0, 1e-5).y, arr2(&[[0.0, 0.0]]));
}

#[test]
fn extreme_rows_neither_overflow_nor_underflow() {
    let (max, least) = (f64::from(f32::MAX), f64::from(f32::from_bits(1)));
    for magnitude in [max, 1e30, 1e-30, least] {
        let x = arr2(&[[magnitude, -magnitude, magnitude]]);
        let dy = arr2(&[[max, max, -max]]);
        let weight = arr1(&[max, max, max]);
        let norm = forward(x.view(), Some(weight.view()), 0.0, 0.0);
        close(&norm.x_hat, &arr2(&[[1.0, -1.0, 1.0]]), 1e-15);
        let gradients = backward(x.view(), dy.view(), Some(weight.view()), 0.0, 0.0);
        // wdy/max² = (1, 1, −1), c = −1/3, t = (4/3, 2/3, −2/3).
        let expected = arr2(&[[4.0, 2.0, -2.0]]) / 3.0;
        close(&(gradients.dx / (max * max) * magnitude), &expected, 1e-14);
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    for (rows, hidden) in [(1, 1), (1, 7), (3, 5), (4, 12)] {
        let (x, dy, weight, bias) = data(rows, hidden);
        for (weight, offset) in [(None, 0.0), (Some(weight.view()), 0.0), (Some(weight.view()), 1.0)] {
            let gradients = backward(x.view(), dy.view(), weight, offset, 0.03);
            let loss = |x: &Array2<f64>, weight: Option<ArrayView1<f64>>, bias: ArrayView1<f64>| {
                let y = forward(x.view(), weight, offset, 0.03).y + bias.insert_axis(Axis(0));
                (&y * &dy).sum()
            };
            let zero = Array1::zeros(hidden);
            close(&gradients.dx, &slope(&x, |x| loss(x, weight, zero.view())), 1e-8);
            let ones = weight.map_or(Array1::ones(hidden), |w| w.to_owned());
            let dw = slope(&ones.insert_axis(Axis(0)), |w| loss(&x, Some(w.row(0)), zero.view()));
            close(&gradients.dw.insert_axis(Axis(0)), &dw, 1e-8);
            let db = slope(&zero.clone().insert_axis(Axis(0)), |b| loss(&x, weight, b.row(0)));
            close(&gradients.db.insert_axis(Axis(0)), &db, 1e-8);
        }
        let gradients = layer_norm_backward(x.view(), dy.view(), Some(weight.view()), 0.03);
        let loss = |x: ArrayView2<f64>, weight: ArrayView1<f64>, bias: ArrayView1<f64>| {
            (&layer_norm_forward(x, Some(weight), Some(bias), 0.03).y * &dy).sum()
        };
        close(&gradients.dx, &slope(&x, |x| loss(x.view(), weight.view(), bias.view())), 1e-8);
        let dw = slope(&weight.clone().insert_axis(Axis(0)), |w| loss(x.view(), w.row(0), bias.view()));
        close(&gradients.dw.insert_axis(Axis(0)), &dw, 1e-8);
        let db = slope(&bias.clone().insert_axis(Axis(0)), |b| loss(x.view(), weight.view(), b.row(0)));
        close(&gradients.db.insert_axis(Axis(0)), &db, 1e-8);
    }
}

/// Asymmetric, of both signs, nothing uniform, no power of two.
fn data(rows: usize, hidden: usize) -> (Array2<f64>, Array2<f64>, Array1<f64>, Array1<f64>) {
    let wave = |i: usize, j: usize, f: f64| ((1.3 + i as f64) * f + j as f64 * (f + 0.7)).sin() + 0.31 * f;
    (
        Array2::from_shape_fn((rows, hidden), |(i, j)| 1.7 * wave(i, j, 1.1)),
        Array2::from_shape_fn((rows, hidden), |(i, j)| wave(i, j, 2.3)),
        Array1::from_shape_fn(hidden, |j| wave(5, j, 0.9)),
        Array1::from_shape_fn(hidden, |j| wave(7, j, 1.9)),
    )
}

/// Central differences of `loss` in each element of `at`.
fn slope(at: &Array2<f64>, loss: impl Fn(&Array2<f64>) -> f64) -> Array2<f64> {
    let step = 1e-5;
    Array2::from_shape_fn(at.dim(), |index| {
        let moved = |by: f64| {
            let mut values = at.clone();
            values[index] += by;
            loss(&values)
        };
        (moved(step) - moved(-step)) / (2.0 * step)
    })
}

fn close(computed: &Array2<f64>, expected: &Array2<f64>, tolerance: f64) {
    assert_eq!(computed.dim(), expected.dim());
    Zip::from(computed).and(expected).for_each(|c, e| {
        assert!((c - e).abs() <= tolerance * e.abs().max(1.0), "{c} is not {e}");
    });
}
