//! The activations of CLIP's feed-forward layers, and their gradients.

use super::simd::{exp, vectorised};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Activation between the two feed-forward layers of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x sigmoid(1.702 x), as in OpenAI's weights and the paper's code.
    #[default]
    QuickGelu,
    /// x Phi(x), exact (erf), as in open_clip's own weights.
    Gelu,
}

impl Activation {
    /// `y[i] = f(x[i])`.
    pub fn forward(self, x: &[f32], y: &mut [f32]) {
        match self {
            Self::QuickGelu => quick_gelu(x, y),
            Self::Gelu => gelu(x, y),
        }
    }

    /// `y[i] = f(x[i])` and `d[i] *= f'(x[i])`.
    pub fn backward(self, x: &[f32], y: &mut [f32], d: &mut [f32]) {
        match self {
            Self::QuickGelu => quick_gelu_backward(x, y, d),
            Self::Gelu => gelu_backward(x, y, d),
        }
    }
}

const SHARPNESS: f32 = 1.702;

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Phi(x), the normal distribution function, and its density. erf by Abramowitz and Stegun 7.1.26
/// (error below 1.5e-7), which shares exp(-x^2 / 2) with the density.
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let gauss = exp(-0.5 * x * x);
    let t = 1.0 / (x.abs() * std::f32::consts::FRAC_1_SQRT_2).mul_add(0.327_591_1, 1.0);
    let p = 1.061_405_4_f32.mul_add(t, -1.453_152_1);
    let p = p.mul_add(t, 1.421_413_8);
    let p = p.mul_add(t, -0.284_496_72);
    let p = p.mul_add(t, 0.254_829_6);
    let tail = 0.5 * p * t * gauss;
    (if x < 0.0 { tail } else { 1.0 - tail }, gauss * 0.398_942_3)
}

vectorised! {
    fn quick_gelu<'a>(x: &'a [f32], y: &'a mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * sigmoid(SHARPNESS * x);
        }
    }
}

vectorised! {
    fn quick_gelu_backward<'a>(x: &'a [f32], y: &'a mut [f32], d: &'a mut [f32]) {
        for ((y, d), &x) in y.iter_mut().zip(d).zip(x) {
            let s = sigmoid(SHARPNESS * x);
            *y = x * s;
            *d *= s * (SHARPNESS * x).mul_add(1.0 - s, 1.0);
        }
    }
}

vectorised! {
    fn gelu<'a>(x: &'a [f32], y: &'a mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * normal(x).0;
        }
    }
}

vectorised! {
    fn gelu_backward<'a>(x: &'a [f32], y: &'a mut [f32], d: &'a mut [f32]) {
        for ((y, d), &x) in y.iter_mut().zip(d).zip(x) {
            let (phi, density) = normal(x);
            *y = x * phi;
            *d *= x.mul_add(density, phi);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the formulas in f64; derivatives by central differences.
    #[test]
    fn values_and_derivatives_match_the_formulas() {
        // erf in f64 by its series, accurate in the range below.
        fn erf(x: f64) -> f64 {
            let mut term = x;
            let mut total = x;
            for n in 1..200 {
                term *= -x * x / n as f64;
                total += term / (2 * n + 1) as f64;
            }
            total * 2.0 / std::f64::consts::PI.sqrt()
        }
        type Exact = fn(f64) -> f64;
        let exact: [(Activation, Exact); 2] = [
            (Activation::QuickGelu, |x| x / (1.0 + (-1.702 * x).exp())),
            (Activation::Gelu, |x| x * 0.5 * (1.0 + erf(x / 2f64.sqrt()))),
        ];
        let xs: Vec<f32> = (-50..=50).map(|i| i as f32 * 0.1).collect();
        for (activation, f) in exact {
            let (mut y, mut y2, mut d) = (vec![0.0; xs.len()], vec![0.0; xs.len()], vec![2.0; xs.len()]);
            activation.forward(&xs, &mut y);
            activation.backward(&xs, &mut y2, &mut d);
            assert_eq!(y, y2);
            for (i, &x) in xs.iter().enumerate() {
                let x = f64::from(x);
                let slope = 2.0 * (f(x + 1e-5) - f(x - 1e-5)) / 2e-5;
                assert!((f64::from(y[i]) - f(x)).abs() < 1e-6, "{activation:?}({x})");
                assert!((f64::from(d[i]) - slope).abs() < 4e-6, "{activation:?}'({x})");
            }
        }
    }
}
