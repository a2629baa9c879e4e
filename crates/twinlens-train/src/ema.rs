//! An exponential moving average of the weights, which often evaluates better than the weights
//! themselves (Polyak and Juditsky 1992).
//!
//! mean += (1 - d) (weights - mean) after each step, with d = min(decay, (1 + step) / (10 + step)),
//! so that the mean forgets the initial weights faster (as in TensorFlow's
//! ExponentialMovingAverage). Computed in f32, also for running statistics.

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, bail};
use rayon::prelude::*;
use twinlens_model::Clip;

/// Numbers that one thread updates at a time.
const PIECE: usize = 16 * 1024;

/// Moves `mean` towards `clip` after step `step`, counted from 1.
pub(crate) fn update(mean: &Clip, clip: &Clip, decay: f64, step: u64) -> Result<()> {
    let decay = decay.min((1.0 + step as f64) / (10.0 + step as f64));
    let means = mean.variables().iter().chain(mean.buffers());
    for ((_, mean), (name, new)) in means.zip(clip.variables().iter().chain(clip.buffers())) {
        if clip.is_frozen(name) {
            continue;
        }
        let new = new.as_detached_tensor();
        if mean.device().is_cpu() {
            mean.inplace_op2(&new, &EmaUpdate((1.0 - decay) as f32))?;
        } else {
            let old = mean.as_detached_tensor();
            mean.set(&(&old + ((new - &old)? * (1.0 - decay))?)?)?;
        }
    }
    Ok(())
}

/// The operation with its `1 - decay`.
struct EmaUpdate(f32);

impl InplaceOp2 for EmaUpdate {
    fn name(&self) -> &'static str {
        "ema"
    }

    fn cpu_fwd(
        &self,
        mean: &mut CpuStorage,
        mean_at: &Layout,
        new: &CpuStorage,
        new_at: &Layout,
    ) -> Result<()> {
        let (CpuStorage::F32(mean), CpuStorage::F32(new)) = (mean, new) else {
            bail!("the mean of weights needs f32 variables");
        };
        let (Some((m0, m1)), Some((n0, n1))) = (mean_at.contiguous_offsets(), new_at.contiguous_offsets())
        else {
            bail!("the mean of weights needs contiguous variables");
        };
        let pieces = mean[m0..m1].par_chunks_mut(PIECE).zip(new[n0..n1].par_chunks(PIECE));
        pieces.for_each(|(mean, new)| mean.iter_mut().zip(new).for_each(|(m, n)| *m += self.0 * (n - *m)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use twinlens_model::ClipConfig;

    #[test]
    fn the_mean_is_updated_by_its_formula() {
        let clip = Clip::new(ClipConfig::preset("vit-tiny-48").unwrap(), 1).unwrap();
        let mean = clip.replica().unwrap();
        let scale = |clip: &Clip| f64::from(clip.logit_scale());
        let mut expected = scale(&clip);
        for step in 1..=30 {
            let variable = &clip.variables()["logit_scale"];
            variable.set(&(variable.as_tensor() + 0.1).unwrap()).unwrap();
            update(&mean, &clip, 0.7, step).unwrap();
            let decay = f64::min(0.7, (1.0 + step as f64) / (10.0 + step as f64));
            expected = decay * expected + (1.0 - decay) * scale(&clip);
        }
        assert!((scale(&mean) - expected).abs() < 1e-5 && scale(&clip) - expected > 0.1);
        assert_ne!(mean.weights_hash(), clip.weights_hash());
    }
}
