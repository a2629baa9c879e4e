//! Distances, noise, batches and models for tests.

use candle_core::{DType, Device, Tensor};
use twinlens_model::{Clip, ClipConfig};

pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// |a - b| / max(|b|, floor) of vectors.
pub(crate) fn distance(a: &[f64], b: &[f64], floor: f64) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(floor)
}

pub(crate) fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Pseudo-random numbers in -1..1.
pub(crate) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Pixels and token ids. Texts have 2 tokens up to the whole context; the end token is the last of
/// the vocabulary.
pub(crate) fn batch(config: &ClipConfig, n: usize) -> (Tensor, Tensor) {
    let side = config.vision.image_size();
    let pixels = Tensor::from_vec(noise(n * 3 * side * side, 5), (n, 3, side, side), &Device::Cpu).unwrap();
    let (context, vocab) = (config.text.context, config.text.vocab);
    let ids = (0..n).flat_map(|i| {
        let words = i % (context - 1);
        (0..context).map(move |t| match t {
            0 => vocab as u32 - 2,
            t if t <= words => ((i * 7 + t * 13) % (vocab - 3)) as u32,
            t if t == words + 1 => vocab as u32 - 1,
            _ => 0,
        })
    });
    (pixels, Tensor::from_vec(ids.collect::<Vec<u32>>(), (n, context), &Device::Cpu).unwrap())
}

/// A model with perturbed biases and gains: the initial zeros and ones would hide missing
/// gradients.
pub(crate) fn model(config: ClipConfig) -> Clip {
    let clip = Clip::new(config, 7).unwrap();
    for (i, (name, variable)) in clip.variables().iter().chain(clip.buffers()).enumerate() {
        let shift =
            Tensor::from_vec(noise(variable.elem_count(), i as u32), variable.shape(), &Device::Cpu).unwrap();
        let size = if name.contains("bn") || name.contains("running") { 0.3 } else { 0.05 };
        variable.set(&(variable.as_tensor() + (shift * size).unwrap()).unwrap().detach()).unwrap();
    }
    clip
}
