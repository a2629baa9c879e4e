//! The operations for GPUs, on the CPU in f64 with the kernels' plain twins, against candle's own
//! gradients of the reference implementation.

use super::*;
use crate::kernels::Kernels;
use crate::objectives::kind::Family;
use crate::ops::activation::Activation;
use crate::ops::block::{BlockShape, PARAMETERS};
use crate::ops::reference::{self, Tensors};
use candle_core::{DType, Device, Tensor, Var};

const WIDTH: usize = 24;
const OPTIONS: DeviceOptions = DeviceOptions { kernels: Kernels::Plain, recompute: false };

/// Pseudo-random numbers in -1..1, as f64.
fn noise(shape: &[usize], seed: u32) -> Var {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(state >> 8) / f64::from(1 << 23) - 1.0
    };
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| next()).collect();
    Var::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    norm(&(a - b).unwrap()) / norm(b).max(1e-12)
}

/// Compares values, and the gradients of `variables` when the results' gradient is noise.
fn check(what: &str, got: &Tensor, want: &Tensor, variables: &[&Var]) {
    assert!(distance(got, want) < 1e-6, "{what}: {}", distance(got, want));
    let weights = noise(got.dims(), 99).detach();
    let gradients = |out: &Tensor| (out * &weights).unwrap().sum_all().unwrap().backward().unwrap();
    let (got_all, want_all) = (gradients(got), gradients(want));
    for (i, variable) in variables.iter().enumerate() {
        let d = distance(got_all.get(variable).unwrap(), want_all.get(variable).unwrap());
        assert!(d < 1e-6, "{what}: gradient {i}: {d}");
    }
}

/// The blocks of the reference on parameters that are parts of `params`.
fn reference_blocks(x: &Tensor, params: &Tensor, shape: BlockShape, span: Span) -> Tensor {
    let mut x = x.reshape((span.batch, span.len, shape.width)).unwrap();
    let mask = |query: usize, key: usize| if key > query { f64::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f64> = (0..span.len * span.len).map(|i| mask(i / span.len, i % span.len)).collect();
    let mask = Tensor::from_vec(mask, (span.len, span.len), &Device::Cpu).unwrap();
    for layer in 0..params.elem_count() / shape.parameters_len() {
        let ranges = shape.ranges().into_iter().zip(PARAMETERS);
        let tensors = ranges.map(|(range, (name, rows, columns))| {
            let start = layer * shape.parameters_len() + range.start;
            let dims = [rows * shape.width, columns * shape.width];
            let dims = if columns == 0 { &dims[..1] } else { &dims[..] };
            (format!("b.{name}"), params.narrow(0, start, range.len()).unwrap().reshape(dims).unwrap())
        });
        let tensors: Tensors = tensors.collect();
        let mask = span.causal.then_some(&mask);
        x = reference::block(&x, &tensors, "b", shape.heads, mask, shape.activation).unwrap();
    }
    x.reshape(((), shape.width)).unwrap()
}

#[test]
fn stacks_match_the_reference() {
    for (causal, activation) in [(false, Activation::Gelu), (true, Activation::QuickGelu)] {
        let shape = BlockShape { width: WIDTH, heads: 3, activation };
        let span = Span { batch: 3, len: 7, causal };
        let x = noise(&[21, WIDTH], 1);
        let params = noise(&[2 * shape.parameters_len()], 2);
        let params_tensor = (params.as_tensor() * 0.3).unwrap();
        let want = reference_blocks(&x, &params_tensor, shape, span);
        for recompute in [false, true] {
            let options = DeviceOptions { recompute, ..OPTIONS };
            let got = stack(&x, &params_tensor, shape, span, options).unwrap();
            check(&format!("causal {causal}, recompute {recompute}"), &got, &want, &[&x, &params]);
            let (x, params) = (x.as_detached_tensor(), params_tensor.detach());
            let evaluated = stack(&x, &params, shape, span, options).unwrap();
            assert!(evaluated.sorted_nodes().is_empty(), "evaluation builds no graph");
            assert!(distance(&evaluated, &want.detach()) < 1e-6);
        }
    }
}

#[test]
fn layer_norm_matches_the_reference() {
    let (x, gain, bias) = (noise(&[4, 5, WIDTH], 1), noise(&[WIDTH], 2), noise(&[WIDTH], 3));
    let tensors: Tensors =
        [("n.weight", &gain), ("n.bias", &bias)].map(|(n, v)| (n.to_owned(), v.as_tensor().clone())).into();
    let want = reference::layer_norm(&x, &tensors, "n").unwrap();
    let got = layer_norm(&x, &gain, &bias, OPTIONS).unwrap();
    check("layer norm", &got, &want, &[&x, &gain, &bias]);
}

#[test]
fn embeddings_match_the_reference() {
    let (table, positions) = (noise(&[11, WIDTH], 1), noise(&[6, WIDTH], 2));
    let ids = Tensor::new(&[[3u32, 3, 10, 0, 3], [1, 0, 0, 0, 10]], &Device::Cpu).unwrap();
    let rows = table.index_select(&ids.flatten_all().unwrap(), 0).unwrap().reshape((2, 5, WIDTH)).unwrap();
    let want = rows.broadcast_add(&positions.narrow(0, 0, 5).unwrap()).unwrap();
    let got = embed(&ids, &table, &positions, DType::F64, OPTIONS).unwrap();
    check("embedding", &got, &want.reshape((10, WIDTH)).unwrap(), &[&table, &positions]);
    let beyond = Tensor::new(&[[11u32]], &Device::Cpu).unwrap();
    assert!(embed(&beyond, &table, &positions, DType::F64, OPTIONS).is_err());
}

#[test]
fn the_contrastive_loss_matches_the_reference() {
    let unit = |seed| {
        let features = noise(&[13, 8], seed);
        Var::from_tensor(&reference::normalise(&features).unwrap().detach()).unwrap()
    };
    let (image, text) = (unit(1), unit(2));
    let scale = Var::new(1.5f64, &Device::Cpu).unwrap();
    let tensors: Tensors = [("logit_scale".to_owned(), scale.as_tensor().clone())].into();
    let Family::Pairs(objective) = crate::objectives::Objective::CONTRASTIVE.kind().family() else {
        panic!("the contrastive objective compares pairs")
    };
    let want = objective.reference_loss(&image, &text, &tensors).unwrap();
    let got = objective.device_loss(&image, &text, &tensors, OPTIONS).unwrap();
    check("contrastive", &got, &want, &[&image, &text, &scale]);
    assert!(got.backward().is_err(), "backward can run only once");
}

/// A build or a device without kernels refuses them by name.
#[cfg(not(feature = "cuda"))]
#[test]
fn kernels_are_refused_where_there_are_none() {
    let options = DeviceOptions { kernels: Kernels::Fused, ..OPTIONS };
    let (x, gain) = (noise(&[2, WIDTH], 1), noise(&[WIDTH], 2));
    let error = layer_norm(&x, &gain, &gain, options).unwrap_err().to_string();
    assert!(error.contains("--features cuda"), "{error}");
    assert!(crate::kernels::sums_of_squares(&[gain.as_tensor().clone()]).is_err());
}
