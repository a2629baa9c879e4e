//! Fused operations against candle's basic ones, at sizes that no small model reaches: several
//! pieces, groups and chunks.

use super::batch_norm::{Moments, Statistics};
use super::conv::Conv;
use super::cross_entropy::linear_cross_entropy;
use super::linear::linear;
use super::pool::query_attention;
use super::trunk::{Block, Buffers, Trunk, resnet};
use candle_core::{D, DType, Device, Result, Tensor, Var};

fn noise(shape: &[usize], seed: u64) -> Var {
    let n = shape.iter().product::<usize>();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    Var::from_vec((0..n).map(|_| next()).collect(), shape, &Device::Cpu).unwrap()
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn close(got: &Tensor, want: &Tensor, what: &str, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (numbers(got), numbers(want));
    let size = want.iter().map(|x| x * x).sum::<f64>().sqrt();
    let difference = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    assert!(difference <= tolerance * size + 1e-9, "{what}: {difference} of {size}");
}

type Call<'a> = &'a dyn Fn(&[&Tensor]) -> Result<Tensor>;

/// Compares `fused` in f32 with `reference` in f64: values, and the gradient of every operand for a
/// random gradient of the result.
fn agree(what: &str, shapes: &[&[usize]], fused: Call<'_>, reference: Call<'_>) {
    agree_within(what, shapes, fused, reference, 2e-6);
}

fn agree_within(what: &str, shapes: &[&[usize]], fused: Call<'_>, reference: Call<'_>, tolerance: f64) {
    let operands: Vec<Var> = shapes.iter().zip(1..).map(|(shape, seed)| noise(shape, seed)).collect();
    let wide: Vec<Var> =
        operands.iter().map(|v| Var::from_tensor(&v.to_dtype(DType::F64).unwrap()).unwrap()).collect();
    let got = fused(&operands.iter().map(Var::as_tensor).collect::<Vec<_>>()).unwrap();
    let want = reference(&wide.iter().map(Var::as_tensor).collect::<Vec<_>>()).unwrap();
    close(&got, &want, what, tolerance);
    let weights = noise(want.dims(), 99);
    let weighted = |t: &Tensor| (t * weights.to_dtype(t.dtype())?)?.sum_all()?.backward();
    let (got, want) = (weighted(&got).unwrap(), weighted(&want).unwrap());
    for (i, (operand, wide)) in operands.iter().zip(&wide).enumerate() {
        close(got.get(operand).unwrap(), want.get(wide).unwrap(), &format!("{what}, operand {i}"), tolerance);
    }
}

#[test]
fn linear_layers_on_every_code_path() {
    // One group of rows; several groups; a matrix so large that one group suffices; three
    // dimensions.
    for (x, w) in
        [(&[7, 5][..], [3, 5]), (&[9001, 24], [40, 24]), (&[5000, 512], [520, 512]), (&[3, 4, 6], [2, 6])]
    {
        let what = format!("linear {x:?} {w:?}");
        let plain: Call<'_> = &|o| o[0].broadcast_matmul(&o[1].t()?)?.broadcast_add(o[2]);
        agree(&what, &[x, &w, &[w[0]]], &|o| linear(o[0], o[1], Some(o[2])), plain);
        agree(&what, &[x, &w], &|o| linear(o[0], o[1], None), &|o| o[0].broadcast_matmul(&o[1].t()?));
    }
}

/// Convolution, batch norm and relu of channels-first images, in candle's operations.
fn reference_layer(x: &Tensor, conv: Conv, params: &Tensor, relu: bool) -> Result<Tensor> {
    let Conv { kernel, stride, channels, out, .. } = conv;
    let w = params.narrow(0, 0, conv.weights_len())?.reshape((out, channels, kernel, kernel))?;
    let part = |i: usize| params.narrow(0, conv.weights_len() + i * out, out)?.reshape((1, out, 1, 1));
    let x = x.conv2d(&w, kernel / 2, stride, 1, 1)?;
    let centred = x.broadcast_sub(&x.mean_keepdim((0, 2, 3))?)?;
    let scale = (centred.sqr()?.mean_keepdim((0, 2, 3))? + 1e-5)?.sqrt()?;
    let y = centred.broadcast_div(&scale)?.broadcast_mul(&part(0)?)?.broadcast_add(&part(1)?)?;
    if relu { &y * y.gt(0.0)?.to_dtype(y.dtype())? } else { Ok(y) }
}

/// Odd numbers of channels, images in a tile and pixels in a row; blocks with and without a
/// shortcut convolution, pooled and not; several groups of images; a single output pixel.
#[test]
fn residual_networks_of_odd_sizes() {
    let conv = |kernel, stride, side, channels, out| Conv { kernel, stride, side, channels, out };
    let block = |side: usize, [input, inner, out]: [usize; 3], pooled: bool, has_shortcut: bool| {
        let half = if pooled { side / 2 } else { side };
        let main =
            [conv(1, 1, side, input, inner), conv(3, 1, side, inner, inner), conv(1, 1, half, inner, out)];
        Block { main, shortcut: has_shortcut.then(|| conv(1, 1, half, input, out)), pooled }
    };
    let small = Trunk {
        stem: vec![conv(3, 2, 8, 3, 5), conv(3, 1, 4, 5, 19)],
        blocks: vec![block(2, [19, 10, 19], false, false), block(2, [19, 9, 33], true, true)],
    };
    let wide = Trunk {
        stem: vec![conv(3, 2, 23, 3, 8), conv(3, 1, 12, 8, 16)],
        blocks: vec![block(6, [16, 24, 40], false, true), block(6, [40, 7, 40], false, false)],
    };
    for (trunk, batch) in [(small, 37), (wide, 5)] {
        let size = trunk.stem[0].side;
        let len = trunk.parameters_len();
        let reference = |o: &[&Tensor]| -> Result<Tensor> {
            let mut start = 0;
            let mut next = |conv: Conv| {
                let len = conv.weights_len() + 2 * conv.out;
                start += len;
                o[0].narrow(0, start - len, len)
            };
            let mut x = noise(&[batch, 3, size, size], 7).to_dtype(o[0].dtype())?;
            for &conv in &trunk.stem {
                x = reference_layer(&x, conv, &next(conv)?, true)?;
            }
            x = x.avg_pool2d(2)?;
            for block in &trunk.blocks {
                let pooled = |x: &Tensor| if block.pooled { x.avg_pool2d(2) } else { Ok(x.clone()) };
                let [first, second, third] = block.main;
                let y = reference_layer(&x, first, &next(first)?, true)?;
                let y = pooled(&reference_layer(&y, second, &next(second)?, true)?)?;
                let y = reference_layer(&y, third, &next(third)?, false)?;
                let shortcut = match block.shortcut {
                    Some(conv) => reference_layer(&pooled(&x)?, conv, &next(conv)?, false)?,
                    None => x,
                };
                x = (y + shortcut)?.relu()?;
            }
            x.permute((0, 2, 3, 1))?.contiguous()
        };
        let fused = |o: &[&Tensor]| -> Result<Tensor> {
            let pixels = noise(&[batch, 3, size, size], 7).as_detached_tensor();
            Ok(resnet(&pixels, o[0], trunk.clone(), None, &Buffers::default(), true)?.0)
        };
        agree_within(&format!("{trunk:?}"), &[&[len]], &fused, &reference, 1e-5);
        let wrong = noise(&[len + 1], 1);
        assert!(fused(&[&wrong]).is_err());
    }
}

/// A far mean: the variance is computed around it, not from sums of squares.
#[test]
fn batch_norm_is_accurate_far_from_zero() {
    let x = (noise(&[4000, 2], 1).as_tensor() + 1000.0).unwrap();
    let rows = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let parts: Vec<Moments> = rows.chunks(2 * 300).map(|rows| Moments::new(rows, 2)).collect();
    let statistics = Statistics::merge(&parts);
    let x = x.to_dtype(DType::F64).unwrap();
    let mean = x.mean_keepdim(0).unwrap();
    let variance = numbers(&x.broadcast_sub(&mean).unwrap().sqr().unwrap().mean(0).unwrap());
    for (got, want) in statistics.variance.iter().zip(variance) {
        assert!((f64::from(*got) - want).abs() < 1e-4 * want, "{got} {want}");
    }
}

#[test]
fn attention_pooling() {
    let (batch, tokens, heads, depth) = (4, 7, 3, 5);
    let width = heads * depth;
    let plain: Call<'_> = &|o| {
        let split = |x: Tensor| x.reshape((batch, (), heads, depth))?.transpose(1, 2)?.contiguous();
        let q = split(o[0].reshape((batch, 1, width))?)?;
        let [k, v] = [0, 1].map(|i| split(o[1].narrow(D::Minus1, i * width, width)?.contiguous()?));
        let scores = (q.matmul(&k?.t()?.contiguous()?)? / (depth as f64).sqrt())?;
        let attended = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v?)?;
        attended.transpose(1, 2)?.reshape((batch, width))
    };
    let shapes: [&[usize]; 2] = [&[batch, width], &[batch, tokens, 2 * width]];
    agree("attention", &shapes, &|o| query_attention(o[0], o[1], heads), plain);
}

#[test]
fn words_are_predicted_in_chunks_of_rows() {
    // With 90,000 words, 46 rows at a time.
    for (rows, words) in [(5, 11), (101, 90_000)] {
        let bag = |row: usize| (0..row % 4).map(|i| (row * 7919 + i * 104_729) % words).collect::<Vec<_>>();
        let targets: Vec<Vec<u32>> =
            (0..rows).map(|r| bag(r).into_iter().map(|t| t as u32).collect()).collect();
        let counted = targets.iter().filter(|t| !t.is_empty()).count() as f64;
        let plain: Call<'_> = &|o| {
            let logits = o[0].matmul(&o[1].t()?)?.broadcast_add(o[2])?;
            let mut shares = vec![0f64; rows * words];
            for (row, targets) in targets.iter().enumerate() {
                for target in targets {
                    shares[row * words + *target as usize] += 1.0 / targets.len() as f64;
                }
            }
            let shares = Tensor::from_vec(shares, (rows, words), &Device::Cpu)?;
            (candle_nn::ops::log_softmax(&logits, D::Minus1)? * shares)?.sum_all()?.neg()? / counted
        };
        let fused: Call<'_> = &|o| linear_cross_entropy(o[0], o[1], o[2], targets.clone(), true);
        agree(&format!("{words} words"), &[&[rows, 6], &[words, 6], &[words]], fused, plain);
    }
    let (x, w, bias) = (noise(&[1, 2], 1), noise(&[3, 2], 2), noise(&[3], 3));
    assert!(linear_cross_entropy(&x, &w, &bias, vec![vec![3]], true).is_err(), "beyond the vocabulary");
}
