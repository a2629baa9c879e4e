//! Steps of training with the model's operations for GPUs.

use crate::{Failure, Options};
use candle_core::{DType, Tensor, Var};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;
use twinlens_model::kernels::plain::{self, AdamWState};
use twinlens_model::kernels::{self, AdamWFactors, AdamWStep, Kernels};
use twinlens_model::weights::{to_bytes, write_atomically};
use twinlens_model::{Clip, ClipConfig, Pass};

/// As in `train_peer.py`.
const RATE: f64 = 5e-4;
const DECAY: f64 = 0.2;
/// Steps that are not measured.
const WARM: usize = 3;

/// AdamW with its moments on the device.
struct Optimizer {
    variables: Vec<(String, Var)>,
    m: Vec<Tensor>,
    v: Vec<Tensor>,
    kernels: Kernels,
    step: u64,
}

impl Optimizer {
    fn new(clip: &Clip) -> Result<Self, Failure> {
        let variables: Vec<_> = clip.variables().iter().map(|(n, v)| (n.clone(), v.clone())).collect();
        let zeros = || variables.iter().map(|(_, v)| v.zeros_like()).collect::<Result<Vec<_>, _>>();
        Ok(Self { m: zeros()?, v: zeros()?, kernels: clip.kernels(), step: 0, variables })
    }

    fn step(&mut self, gradients: Vec<Tensor>) -> Result<(), Failure> {
        self.step += 1;
        let factors = AdamWFactors { beta1: 0.9, beta2: 0.98, eps: 1e-6, step: self.step, scale: 1.0 };
        let rate = |v: &Var| (RATE, if v.rank() >= 2 { DECAY } else { 0.0 });
        if self.kernels == Kernels::Fused {
            let weights = self.variables.iter().map(|(_, v)| v.as_detached_tensor()).collect();
            let rates = self.variables.iter().map(|(_, v)| rate(v)).collect();
            let (m, v) = (self.m.clone(), self.v.clone());
            return Ok(kernels::adamw(&AdamWStep { weights, gradients, m, v, rates }, &factors)?);
        }
        for (i, (_, variable)) in self.variables.iter().enumerate() {
            let (m, v) = (self.m[i].clone(), self.v[i].clone());
            let state = AdamWState { weights: variable.as_detached_tensor(), m, v };
            let next = plain::adamw(&state, &gradients[i], rate(variable), &factors)?;
            variable.set(&next.weights)?;
            (self.m[i], self.v[i]) = (next.m, next.v);
        }
        Ok(())
    }
}

fn on_device(options: &Options, clip: Clip) -> Result<Clip, Failure> {
    let mut clip = clip.to_device(&options.device, options.precision)?;
    if let Some(kernels) = options.kernels {
        clip.set_kernels(kernels)?;
    }
    Ok(clip)
}

/// The loss, and the gradients in the order of the variables.
fn gradients(clip: &Clip, pixels: &Tensor, ids: &Tensor) -> Result<(Tensor, Vec<Tensor>), Failure> {
    let loss = clip.loss(pixels, ids)?;
    let store = loss.backward()?;
    let of = |(name, v): (&String, &Var)| {
        store.get(v).map(Tensor::contiguous).ok_or(format!("{name} has no gradient"))
    };
    let all = clip.variables().iter().map(of).collect::<Result<Result<Vec<_>, _>, _>>()??;
    Ok((loss, all))
}

pub(crate) fn values(options: &Options, model: &str, batches: &str, out: &str) -> Result<(), Failure> {
    let clip = on_device(options, Clip::load(Path::new(model))?)?;
    let tensors = candle_core::safetensors::load(batches, &candle_core::Device::Cpu)?;
    let (pixels, ids) = (&tensors["pixels"], tensors["ids"].to_dtype(DType::U32)?);
    let batch = |i: usize| -> Result<_, Failure> {
        let i = i % pixels.dim(0)?;
        Ok((pixels.get(i)?.contiguous()?, ids.get(i)?.contiguous()?))
    };
    let (first_pixels, first_ids) = batch(0)?;
    let mut found = BTreeMap::new();
    found.insert("image".to_owned(), clip.image_features(&first_pixels, Pass::Evaluate)?);
    found.insert("text".to_owned(), clip.text_features(&first_ids, Pass::Evaluate)?);
    let (_, first) = gradients(&clip, &first_pixels, &first_ids)?;
    let named = clip.variables().keys().zip(first);
    found.extend(named.map(|(name, gradient)| (format!("gradients/{name}"), gradient)));
    let (mut optimizer, mut losses) = (Optimizer::new(&clip)?, Vec::new());
    for step in 0..options.steps {
        let (pixels, ids) = batch(step)?;
        let (loss, gradients) = gradients(&clip, &pixels, &ids)?;
        losses.push(loss.to_scalar::<f32>()?);
        optimizer.step(gradients)?;
        clip.clamp_logit_scale()?;
    }
    let last = *losses.last().ok_or("--steps must be at least 1")?;
    found.insert("losses".to_owned(), Tensor::new(losses, &candle_core::Device::Cpu)?);
    let found: BTreeMap<String, Tensor> = found
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.detach().to_device(&candle_core::Device::Cpu)?)))
        .collect::<Result<_, Failure>>()?;
    write_atomically(Path::new(out), &to_bytes(&found, None)?)?;
    println!("{}", json!({ "steps": options.steps, "last_loss": last, "kernels": name(clip.kernels()) }));
    Ok(())
}

pub(crate) fn name(kernels: Kernels) -> &'static str {
    match kernels {
        Kernels::Plain => "plain",
        Kernels::Fused => "fused",
    }
}

pub(crate) fn steps(options: &Options, model: &str, batch: usize) -> Result<(), Failure> {
    let mut config: ClipConfig =
        if model.starts_with('{') { serde_json::from_str(model)? } else { ClipConfig::preset(model)? };
    config.text.vocab = config.text.vocab.max(1000);
    let (side, context, vocab) = (config.vision.image_size(), config.text.context, config.text.vocab);
    let clip = on_device(options, Clip::new(config, 17)?)?;
    let pixels = Tensor::randn(0f32, 1.0, (batch, 3, side, side), &options.device)?;
    let id = |i: usize| if i % context == context - 1 { vocab - 1 } else { 1 + i * 31 % (vocab - 2) };
    let ids: Vec<u32> = (0..batch * context).map(|i| id(i) as u32).collect();
    let ids = Tensor::from_vec(ids, (batch, context), &candle_core::Device::Cpu)?;
    let (mut optimizer, mut times) = (Optimizer::new(&clip)?, Vec::new());
    for step in 0..WARM + options.steps {
        options.device.synchronize()?;
        let start = Instant::now();
        let (_, gradients) = gradients(&clip, &pixels, &ids)?;
        options.device.synchronize()?;
        let forward_backward = start.elapsed().as_secs_f64();
        optimizer.step(gradients)?;
        options.device.synchronize()?;
        if step >= WARM {
            times.push([forward_backward, start.elapsed().as_secs_f64()]);
        }
    }
    let median = |column: usize| {
        let mut values: Vec<f64> = times.iter().map(|row| row[column]).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).map_or(f64::NAN, |seconds| 1000.0 * seconds)
    };
    let (gradient, step) = (median(0), median(1));
    println!(
        "{}",
        json!({
            "batch": batch, "precision": options.precision.name(), "kernels": name(clip.kernels()),
            "gradient_ms": gradient, "step_ms": step, "samples_per_second": 1000.0 * batch as f64 / step,
        })
    );
    Ok(())
}
