//! Each kernel against its plain twin on the device.

use crate::{Failure, Options};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::time::Instant;
use twinlens_model::Activation;
use twinlens_model::kernels::plain::{Attended, Norm};
use twinlens_model::kernels::{AttentionSizes, Kernels};

/// Calls that are timed.
const CALLS: u32 = 20;

type Run<'a> = Box<dyn Fn(Kernels) -> candle_core::Result<Vec<Tensor>> + 'a>;

fn distance(a: &Tensor, b: &Tensor) -> Result<f64, Failure> {
    let values = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>();
    let (a, b) = (values(a)?, values(b)?);
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    Ok(norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-12))
}

fn microseconds(device: &Device, run: impl Fn() -> candle_core::Result<Vec<Tensor>>) -> Result<f64, Failure> {
    run()?;
    device.synchronize()?;
    let start = Instant::now();
    for _ in 0..CALLS {
        run()?;
    }
    device.synchronize()?;
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS))
}

/// The inputs of all cases, as on the device.
struct Inputs {
    device: Device,
    dtype: DType,
}

impl Inputs {
    fn large(&self, shape: &[usize]) -> candle_core::Result<Tensor> {
        Tensor::randn(0f32, 1.0, shape, &self.device)?.to_dtype(self.dtype)
    }

    fn vector(&self, len: usize) -> candle_core::Result<Tensor> {
        Tensor::randn(0f32, 1.0, len, &self.device)
    }
}

pub(crate) fn kernels(options: &Options) -> Result<(), Failure> {
    let has_kernels = Kernels::support(&options.device, DType::BF16);
    let (rows, width) = if options.small { (37, 96) } else { (51_200, 768) };
    for dtype in [DType::F32, DType::BF16] {
        let inputs = Inputs { device: options.device.clone(), dtype };
        for (name, run) in
            layers(&inputs, rows, width)?.into_iter().chain(attentions(&inputs, options.small)?)
        {
            let plain = run(Kernels::Plain)?;
            let plain_us = microseconds(&options.device, || run(Kernels::Plain))?;
            let mut line = json!({ "kernel": name, "storage": dtype.as_str(), "plain_us": plain_us });
            if has_kernels {
                let fused = run(Kernels::Fused)?;
                let distances = fused.iter().zip(&plain).map(|(a, b)| distance(a, b));
                let worst = distances.collect::<Result<Vec<_>, _>>()?.into_iter().fold(0.0, f64::max);
                line["distance"] = json!(worst);
                line["fused_us"] = json!(microseconds(&options.device, || run(Kernels::Fused))?);
            }
            println!("{line}");
        }
    }
    Ok(())
}

fn layers(inputs: &Inputs, rows: usize, width: usize) -> candle_core::Result<Vec<(String, Run<'static>)>> {
    let (x, delta, dy) =
        (inputs.large(&[rows, width])?, inputs.large(&[rows, width])?, inputs.large(&[rows, width])?);
    let (gain, bias, shift) = (inputs.vector(width)?, inputs.vector(width)?, inputs.vector(width)?);
    let logits = inputs.large(&[rows.min(4096), rows.min(4096)])?;
    let table = Tensor::randn(0f32, 1.0, (1000, width), &inputs.device)?;
    let ids: Vec<u32> = (0..rows).map(|i| if i % 3 == 0 { 0 } else { (i * 31 % 1000) as u32 }).collect();
    let numbers = Tensor::new(&ids[..], &inputs.device)?;
    let dtype = inputs.dtype;
    let mut cases: Vec<(String, Run<'static>)> = Vec::new();
    let (x1, dy1, gain1) = (x.clone(), dy.clone(), gain.clone());
    cases.push((
        "add_layer_norm".into(),
        Box::new(move |kernels| {
            let norm = Norm { gain: &gain1, bias: &bias };
            let normed = kernels.add_norm(&x1, Some((&delta, &shift)), norm)?;
            // The gradient of what the plain twin normalised, so that roundings do not add up.
            let plain = Kernels::Plain.add_norm(&x1, Some((&delta, &shift)), norm)?;
            let (d, [a, b, c]) = kernels.add_norm_backward(&plain, &gain1, &dy1, Some(&x1))?;
            Ok(vec![normed.sum, normed.y, d, a, b, c])
        }),
    ));
    for activation in [Activation::Gelu, Activation::QuickGelu] {
        let (x, dy, gain) = (x.clone(), dy.clone(), gain.clone());
        cases.push((
            format!("bias_activation {activation:?}"),
            Box::new(move |kernels| {
                let y = kernels.bias_activation(&x, &gain, activation)?;
                let (dx, d_bias) = kernels.bias_activation_backward(&x, &gain, &dy, activation)?;
                Ok(vec![y, dx, d_bias])
            }),
        ));
    }
    cases.push((
        "contrastive_gradient".into(),
        Box::new(move |kernels| {
            let sums = kernels.row_log_sums(&logits)?;
            let (g, shares) = kernels.contrastive_gradient(&logits, &sums, &sums, 0)?;
            Ok(vec![sums, g, shares])
        }),
    ));
    cases.push((
        "embedding".into(),
        Box::new(move |kernels| {
            let positions = table.narrow(0, 0, 1)?;
            let out = kernels.embed(&numbers, &table, &positions, 1, dtype)?;
            Ok(vec![out, kernels.embedding_gradient(&dy, &ids, 1000)?, kernels.column_sums(&x)?])
        }),
    ));
    Ok(cases)
}

fn attentions(inputs: &Inputs, small: bool) -> candle_core::Result<Vec<(String, Run<'static>)>> {
    let mut cases: Vec<(String, Run<'static>)> = Vec::new();
    for (len, causal) in [(50, false), (197, false), (257, false), (77, true)] {
        let (batch, heads, depth) = if small { (2, 2, 16) } else { (256, 12, 64) };
        let s = AttentionSizes { batch, len, heads, depth, causal };
        let (tokens, width) = (batch * len, heads * depth);
        let qkv = inputs.large(&[tokens, 3 * width])?;
        let (bias, d_out) = (inputs.vector(3 * width)?, inputs.large(&[tokens, width])?);
        cases.push((
            format!("attention {len}"),
            Box::new(move |kernels| {
                let (out, log_sums) = kernels.attention(&qkv, &bias, s)?;
                let attended = Attended { qkv: &qkv, bias: &bias, out: &out, log_sums: &log_sums };
                let d_qkv = kernels.attention_backward(attended, &d_out, s)?;
                Ok(vec![out, log_sums, d_qkv])
            }),
        ));
    }
    Ok(cases)
}
