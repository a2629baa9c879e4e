//! Operations against candle's plain ones, where a whole model is too small to reach: pieces, groups, several chunks.

use super::batch_norm;
use super::conv_norm::{LayerShape, conv_norm};
use super::cross_entropy::linear_cross_entropy;
use super::linear::linear;
use super::pool::{average_pool, query_attention};
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

fn close(got: &Tensor, want: &Tensor, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let (got, want) = (numbers(got), numbers(want));
    let size = want.iter().map(|x| x * x).sum::<f64>().sqrt();
    let apart = got.iter().zip(&want).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    assert!(apart <= 2e-6 * size + 1e-9, "{what}: {apart} of {size}");
}

type Call<'a> = &'a dyn Fn(&[&Tensor]) -> Result<Tensor>;

/// Values, and the gradient of every operand for a random gradient of the result, of `fused` in f32 and `plain` in f64.
fn agree(what: &str, shapes: &[&[usize]], fused: Call<'_>, plain: Call<'_>) {
    let operands: Vec<Var> = shapes.iter().zip(1..).map(|(shape, seed)| noise(shape, seed)).collect();
    let wide: Vec<Var> =
        operands.iter().map(|v| Var::from_tensor(&v.to_dtype(DType::F64).unwrap()).unwrap()).collect();
    let got = fused(&operands.iter().map(Var::as_tensor).collect::<Vec<_>>()).unwrap();
    let want = plain(&wide.iter().map(Var::as_tensor).collect::<Vec<_>>()).unwrap();
    close(&got, &want, what);
    let weights = noise(want.dims(), 99);
    let weighted = |t: &Tensor| (t * weights.to_dtype(t.dtype())?)?.sum_all()?.backward();
    let (got, want) = (weighted(&got).unwrap(), weighted(&want).unwrap());
    for (i, (operand, wide)) in operands.iter().zip(&wide).enumerate() {
        close(got.get(operand).unwrap(), want.get(wide).unwrap(), &format!("{what}, operand {i}"));
    }
}

#[test]
fn linear_layers_of_every_path() {
    // One group of rows; several; a matrix so large that rows are one group again; more than two dimensions.
    for (x, w) in
        [(&[7, 5][..], [3, 5]), (&[9001, 24], [40, 24]), (&[5000, 512], [520, 512]), (&[3, 4, 6], [2, 6])]
    {
        let what = format!("linear {x:?} {w:?}");
        let plain: Call<'_> = &|o| o[0].broadcast_matmul(&o[1].t()?)?.broadcast_add(o[2]);
        agree(&what, &[x, &w, &[w[0]]], &|o| linear(o[0], o[1], Some(o[2])), plain);
        agree(&what, &[x, &w], &|o| linear(o[0], o[1], None), &|o| o[0].broadcast_matmul(&o[1].t()?));
    }
}

#[test]
fn layers_of_a_residual_network() {
    // Kernels of 1 and 3; odd and even sides, a side of 1; so many patches that images go in several chunks.
    for (batch, side, channels, output, kernel, stride) in [
        (2, 5, 3, 4, 3, 1),
        (2, 5, 3, 4, 3, 2),
        (3, 6, 2, 5, 3, 2),
        (9, 1, 4, 3, 3, 1),
        (3, 2, 4, 3, 3, 2),
        (7, 64, 16, 6, 3, 1),
        (3, 5, 6, 4, 1, 1),
        (12, 20, 24, 8, 1, 1),
    ] {
        let len = output * channels * kernel * kernel;
        let (x, params) = ([batch, side, side, channels], [len + 2 * output]);
        let out_side = usize::div_ceil(side, stride);
        let out = [batch, out_side, out_side, output];
        let shape = LayerShape { kernel, stride, output };
        for (relu, added) in [(false, false), (true, false), (true, true)] {
            let plain = |o: &[&Tensor]| -> Result<Tensor> {
                let w = o[1].narrow(0, 0, len)?.reshape((output, channels, kernel, kernel))?;
                let [gain, bias] = [0, 1].map(|i| o[1].narrow(0, len + i * output, output));
                let x = o[0].permute((0, 3, 1, 2))?.contiguous()?.conv2d(&w, kernel / 2, stride, 1, 1)?;
                let x = x.permute((0, 2, 3, 1))?.contiguous()?;
                let centred = x.broadcast_sub(&x.mean_keepdim((0, 1, 2))?)?;
                let scale = (centred.sqr()?.mean_keepdim((0, 1, 2))? + 1e-5)?.sqrt()?;
                let y = centred.broadcast_div(&scale)?.broadcast_mul(&gain?)?.broadcast_add(&bias?)?;
                let y = if added { (y + o[2])? } else { y };
                if relu { &y * y.gt(0.0)?.to_dtype(y.dtype())? } else { Ok(y) }
            };
            let fused = |o: &[&Tensor]| -> Result<Tensor> {
                Ok(conv_norm(o[0], o[1], shape, added.then(|| o[2]), relu, None)?.0)
            };
            let what = format!("{shape:?} on {x:?}, relu {relu}, added {added}");
            let shapes: [&[usize]; 3] = [&x, &params, &out];
            agree(&what, &shapes[..if added { 3 } else { 2 }], &fused, &plain);
        }
    }
    let (x, params) = (noise(&[1, 4, 5, 2], 1), noise(&[60], 2));
    assert!(
        conv_norm(&x, &params, LayerShape { kernel: 3, stride: 1, output: 3 }, None, true, None).is_err()
    );
}

/// A far mean: the variance is computed around it, not from sums of squares.
#[test]
fn batch_norm_keeps_its_digits_far_from_zero() {
    let x = (noise(&[4000, 2], 1).as_tensor() + 1000.0).unwrap();
    let rows = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (_, statistics) = batch_norm::forward(&rows, &[1.0; 2], &[0.0; 2], None, false, None);
    let x = x.to_dtype(DType::F64).unwrap();
    let mean = x.mean_keepdim(0).unwrap();
    let variance = numbers(&x.broadcast_sub(&mean).unwrap().sqr().unwrap().mean(0).unwrap());
    for (got, want) in statistics.variance.iter().zip(variance) {
        assert!((f64::from(*got) - want).abs() < 1e-4 * want, "{got} {want}");
    }
}

#[test]
fn pooling_by_averages_and_by_attention() {
    let plain: Call<'_> =
        &|o| o[0].permute((0, 3, 1, 2))?.contiguous()?.avg_pool2d(2)?.permute((0, 2, 3, 1))?.contiguous();
    agree("average", &[&[3, 6, 6, 5]], &|o| average_pool(o[0]), plain);
    assert!(average_pool(&noise(&[1, 5, 5, 2], 1)).is_err());

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
fn words_are_predicted_in_pieces() {
    // 90,000 words: 46 rows at a time.
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
