//! AdamW (Loshchilov and Hutter 2019) with parameter groups.
//!
//! Variables are updated in place, in the order of their names, in f32. Gains, biases and the
//! temperature (everything with fewer than two dimensions) have no weight decay, as in open_clip.
//! Each tower can have its own learning rate.

use crate::error::{Result, TrainError};
use crate::moments::Moments;
use crate::shard::Shard;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, Layout, Storage, Tensor, Var, bail};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use twinlens_model::Tower;
use twinlens_model::kernels::plain::{self, AdamWState};
use twinlens_model::kernels::{self, AdamWFactors, AdamWStep, Kernels};
use twinlens_model::weights::Variables;
use twinlens_ranks::Collective;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of variables with two dimensions or more.
    pub weight_decay: f64,
    /// Maximum global norm of the gradients.
    pub clip_grad_norm: Option<f64>,
    /// Factor on the learning rate of the image tower's variables.
    pub image_rate: f64,
    /// Factor on the learning rate of the text tower's variables.
    pub text_rate: f64,
}

impl Default for AdamWOptions {
    /// The paper's values for vision transformers.
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-6,
            weight_decay: 0.2,
            clip_grad_norm: None,
            image_rate: 1.0,
            text_rate: 1.0,
        }
    }
}

impl AdamWOptions {
    /// Weight decay of a variable, and the factor on its learning rate.
    fn group(&self, name: &str, variable: &Var) -> (f64, f64) {
        let rate = match Tower::of(name) {
            Some(Tower::Image) => self.image_rate,
            Some(Tower::Text) => self.text_rate,
            None => 1.0,
        };
        (if variable.rank() >= 2 { self.weight_decay } else { 0.0 }, rate)
    }
}

/// Gradients by name of the variable.
#[derive(Debug, Default)]
pub struct Gradients(BTreeMap<String, Tensor>);

impl Gradients {
    /// The gradients of one backward pass.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn from_store(variables: &Variables, store: &GradStore) -> candle_core::Result<Self> {
        let mut gradients = Self::default();
        gradients.add(variables, store)?;
        Ok(gradients)
    }

    /// Adds the gradients of another backward pass.
    ///
    /// # Errors
    /// If shapes do not match.
    pub(crate) fn add(&mut self, variables: &Variables, store: &GradStore) -> candle_core::Result<()> {
        for (name, variable) in variables {
            let Some(more) = store.get(variable) else { continue };
            let sum = match self.0.get(name) {
                Some(gradient) => (gradient + more)?,
                None => more.clone(),
            };
            self.0.insert(name.clone(), sum);
        }
        Ok(())
    }

    pub(crate) fn insert(&mut self, name: &str, gradient: Tensor) {
        self.0.insert(name.to_owned(), gradient);
    }

    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.0.get(name)
    }

    /// Takes out the gradients of the variables that `is_taken` names.
    pub(crate) fn split_off(&mut self, is_taken: impl Fn(&str) -> bool) -> Self {
        let all = std::mem::take(&mut self.0).into_iter();
        let (taken, left) = all.partition(|(name, _)| is_taken(name));
        self.0 = left;
        Self(taken)
    }

    /// Adds the gradients of other variables.
    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Applies `sum` to all numbers in the order of names, at most `bucket` at a time.
    ///
    /// # Errors
    /// Those of `sum`.
    pub(crate) fn reduce(&mut self, bucket: usize, sum: impl Fn(&mut [f32]) -> Result<()>) -> Result<()> {
        let mut flat = Vec::with_capacity(self.0.values().map(Tensor::elem_count).sum());
        for gradient in self.0.values() {
            flat.extend(gradient.flatten_all()?.to_vec1::<f32>()?);
        }
        flat.chunks_mut(bucket).try_for_each(sum)?;
        let mut rest = &flat[..];
        for gradient in self.0.values_mut() {
            let (own, tail) = rest.split_at(gradient.elem_count());
            rest = tail;
            *gradient = Tensor::from_slice(own, gradient.shape(), gradient.device())?;
        }
        Ok(())
    }
}

/// The optimiser with its state.
#[derive(Clone, Debug)]
pub struct AdamW {
    options: AdamWOptions,
    /// Completed steps.
    pub step: u64,
    /// By name of the variable; of the numbers of `shard` alone.
    pub moments: BTreeMap<String, Moments>,
    /// This rank's part of the moments, if they are divided among ranks.
    shard: Option<Shard>,
    /// Both moments of variables on a GPU, kept there: newer than `moments` until
    /// [`AdamW::copy_from_device`].
    on_device: BTreeMap<String, [Tensor; 2]>,
    /// What makes the step on a GPU.
    kernels: Kernels,
}

/// Numbers that one thread updates at a time, and whose squares are summed separately.
const PIECE: usize = 16 * 1024;

/// The variables of a step that is made in one launch.
struct FusedStep {
    variables: AdamWStep,
    factors: AdamWFactors,
}

impl FusedStep {
    fn new(factors: AdamWFactors) -> Self {
        Self { variables: AdamWStep::default(), factors }
    }

    fn add(&mut self, [weights, gradient, m, v]: [&Tensor; 4], rate_and_decay: (f64, f64)) {
        self.variables.weights.push(weights.clone());
        self.variables.gradients.push(gradient.clone());
        self.variables.m.push(m.clone());
        self.variables.v.push(v.clone());
        self.variables.rates.push(rate_and_decay);
    }

    fn run(&self) -> candle_core::Result<()> {
        if self.variables.weights.is_empty() {
            Ok(())
        } else {
            kernels::adamw(&self.variables, &self.factors)
        }
    }
}

/// The update of one variable.
struct Update<'a> {
    moments: Mutex<&'a mut Moments>,
    options: AdamWOptions,
    /// Factor on the gradient.
    scale: f32,
    lr: f64,
    decay: f64,
    step: u64,
}

impl AdamW {
    /// An optimiser for these variables before the first step.
    pub fn new(variables: &Variables, options: AdamWOptions) -> Self {
        let fresh = |v: &Var| Moments { m: vec![0.0; v.elem_count()], v: vec![0.0; v.elem_count()] };
        let moments = variables.iter().map(|(name, v)| (name.clone(), fresh(v))).collect();
        let (on_device, kernels) = (BTreeMap::new(), Kernels::Plain);
        Self { options, step: 0, moments, shard: None, on_device, kernels }
    }

    /// Chooses what makes the step on a GPU: one launch for all variables, or candle's operations
    /// for each.
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        Self { kernels, ..self }
    }

    /// Keeps the moments of this rank's part alone: of `rank` among `ranks`.
    pub(crate) fn divide(&mut self, (rank, ranks): (usize, usize)) {
        if ranks == 1 {
            return;
        }
        let shard = Shard::new(&self.moments, (rank, ranks));
        for (name, moments) in &mut self.moments {
            moments.keep(shard.own(name));
        }
        self.shard = Some(shard);
    }

    /// Whether the moments are divided among ranks.
    pub(crate) fn is_divided(&self) -> bool {
        self.shard.is_some()
    }

    /// Makes a step. Returns the global norm of the gradients before clipping.
    ///
    /// # Errors
    /// If a gradient is missing or not finite; then nothing has changed.
    pub fn step(&mut self, variables: &Variables, gradients: &Gradients, lr: f64) -> Result<f64, StepError> {
        let (checked, norm) = self.check(variables, gradients)?;
        let scale = self.options.clip_grad_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0));
        self.step += 1;
        let mut fused = FusedStep::new(self.factors(scale as f32));
        for ((name, variable), gradient) in variables.iter().zip(&checked) {
            let Some(moments) = self.moments.get_mut(name) else {
                return Err(StepError::Tensor(candle_core::Error::msg(format!("{name} has no moments"))));
            };
            let (decay, rate) = self.options.group(name, variable);
            let own = self.shard.as_ref().map(|shard| shard.own(name));
            if own.as_ref().is_some_and(Range::is_empty) {
                continue;
            }
            // A view of the same storage.
            let of = |tensor: &Tensor| match &own {
                Some(own) => tensor.flatten_all()?.narrow(0, own.start, own.len()),
                None => Ok(tensor.clone()),
            };
            let (weights, gradient) = (of(&variable.as_detached_tensor())?, of(gradient)?);
            let update = Update {
                moments: Mutex::new(moments),
                options: self.options,
                scale: scale as f32,
                lr: lr * rate,
                decay,
                step: self.step,
            };
            if variable.device().is_cpu() {
                weights.inplace_op2(&gradient, &update)?;
            } else if self.kernels == Kernels::Fused {
                let kept = match self.on_device.get(name) {
                    Some(kept) => kept.clone(),
                    None => update.upload(&weights)?,
                };
                fused.add([&weights, &gradient, &kept[0], &kept[1]], (update.lr, decay));
                self.on_device.insert(name.clone(), kept);
            } else {
                let kept = self.on_device.remove(name);
                let (changed, kept) = update.with_tensor_ops(&weights, &gradient, kept)?;
                weights.flatten_all()?.slice_set(&changed.flatten_all()?, 0, 0)?;
                self.on_device.insert(name.clone(), kept);
            }
        }
        fused.run()?;
        Ok(norm)
    }

    /// The gradients in the order of the variables, and their global norm.
    fn check(&self, variables: &Variables, gradients: &Gradients) -> Result<(Vec<Tensor>, f64), StepError> {
        let missing = |name: &String| candle_core::Error::msg(format!("{name} has no gradient"));
        let of = |name: &String| gradients.get(name).ok_or_else(|| missing(name))?.contiguous();
        let all = variables.keys().map(of).collect::<candle_core::Result<Vec<Tensor>>>()?;
        let squares = match self.kernels {
            Kernels::Fused => kernels::sums_of_squares(&all)?,
            Kernels::Plain => all.iter().map(sum_of_squares).collect::<candle_core::Result<_>>()?,
        };
        for (name, &value) in variables.keys().zip(&squares) {
            if !value.is_finite() {
                return Err(StepError::NotFinite { variable: name.clone(), value });
            }
        }
        Ok((all, squares.iter().sum::<f64>().sqrt()))
    }

    fn factors(&self, scale: f32) -> AdamWFactors {
        let AdamWOptions { beta1, beta2, eps, .. } = self.options;
        AdamWFactors { beta1, beta2, eps, step: self.step, scale }
    }

    /// Copies the moments of variables on a GPU to `moments`. Call it before reading `moments`.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub(crate) fn copy_from_device(&mut self) -> Result<(), StepError> {
        for (name, [m, v]) in &self.on_device {
            let [m, v] = [m, v].map(|moment| moment.flatten_all()?.to_vec1());
            self.moments.insert(name.clone(), Moments { m: m?, v: v? });
        }
        Ok(())
    }

    /// Gives the others the weights that this rank updated, and takes theirs, if moments are
    /// divided.
    ///
    /// # Errors
    /// If another rank has exited.
    pub(crate) fn share_weights(&self, variables: &Variables, ranks: &dyn Collective) -> Result<()> {
        self.shard.as_ref().map_or(Ok(()), |shard| shard.share_weights(variables, ranks))
    }

    /// The moments of all variables, as they were at the last [`AdamW::copy_from_device`]. If they
    /// are divided, all ranks call it at the same point, and rank 0 alone gets them.
    ///
    /// # Errors
    /// If another rank has exited.
    pub(crate) fn whole(&self, ranks: &dyn Collective) -> Result<Cow<'_, BTreeMap<String, Moments>>> {
        Ok(match &self.shard {
            Some(shard) => Cow::Owned(shard.whole(&self.moments, ranks)?),
            None => Cow::Borrowed(&self.moments),
        })
    }
}

/// Why a step failed.
#[derive(Debug)]
pub enum StepError {
    /// A gradient is infinite or NaN.
    NotFinite {
        variable: String,
        /// The sum of squares of its gradient.
        value: f64,
    },
    /// A defect.
    Tensor(candle_core::Error),
}

impl From<candle_core::Error> for StepError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error)
    }
}

impl From<StepError> for TrainError {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Tensor(error) => Self::Tensor(error),
            StepError::NotFinite { variable, value } => {
                Self::Tensor(candle_core::Error::msg(format!("gradient of {variable}: {value}")))
            }
        }
    }
}

fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("AdamW needs contiguous gradients"),
    }
}

fn sum_of_squares(tensor: &Tensor) -> candle_core::Result<f64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Ok(f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?));
    };
    let squares = |piece: &[f32]| piece.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
    // Fixed pieces added in order give the same bits for any number of threads.
    let pieces: Vec<f64> = numbers(storage, layout)?.par_chunks(PIECE).map(squares).collect();
    Ok(pieces.into_iter().sum())
}

impl Update<'_> {
    /// The same step in candle's operations, for any device: used on GPUs, and the reference for
    /// the CPU implementation below. Takes and returns weights and both moments; if `kept` is
    /// `None`, these are those of the last checkpoint.
    fn with_tensor_ops(
        &self,
        weights: &Tensor,
        gradient: &Tensor,
        kept: Option<[Tensor; 2]>,
    ) -> candle_core::Result<(Tensor, [Tensor; 2])> {
        let [m, v] = match kept {
            Some(kept) => kept,
            None => self.upload(weights)?,
        };
        let AdamWOptions { beta1, beta2, eps, .. } = self.options;
        let factors = AdamWFactors { beta1, beta2, eps, step: self.step, scale: self.scale };
        let state = AdamWState { weights: weights.clone(), m, v };
        let AdamWState { weights, m, v } = plain::adamw(&state, gradient, (self.lr, self.decay), &factors)?;
        Ok((weights, [m, v]))
    }

    /// The moments of the last checkpoint, on the device of `weights`.
    fn upload(&self, weights: &Tensor) -> candle_core::Result<[Tensor; 2]> {
        let moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let [m, v] = [&moments.m, &moments.v]
            .map(|moment| Tensor::from_slice(moment, weights.shape(), weights.device()));
        Ok([m?, v?])
    }
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        w: &mut CpuStorage,
        w_at: &Layout,
        g: &CpuStorage,
        g_at: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(w), Some((start, end))) = (w, w_at.contiguous_offsets()) else {
            bail!("AdamW needs contiguous f32 variables");
        };
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let Moments { m, v } = &mut **moments;
        let AdamWOptions { beta1, beta2, eps, .. } = self.options;
        let (b1, b2, eps) = (beta1 as f32, beta2 as f32, eps as f32);
        let keep = (1.0 - self.lr * self.decay) as f32;
        let rate = (self.lr / (1.0 - beta1.powf(self.step as f64))) as f32;
        let root = ((1.0 - beta2.powf(self.step as f64)).sqrt()) as f32;
        let pieces = w[start..end].par_chunks_mut(PIECE).zip(numbers(g, g_at)?.par_chunks(PIECE));
        pieces.zip(m.par_chunks_mut(PIECE)).zip(v.par_chunks_mut(PIECE)).for_each(|(((w, g), m), v)| {
            for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                let g = g * self.scale;
                *m = b1 * *m + (1.0 - b1) * g;
                *v = b2 * *v + (1.0 - b2) * g * g;
                *w = *w * keep - rate * *m / (v.sqrt() / root + eps);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
