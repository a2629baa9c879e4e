//! The fused model against its plain twin in f64: values, and the gradient of every variable.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use candle_core::{DType, Device, Tensor, Var};
use std::collections::BTreeMap;
use twinlens_model::{Activation, Clip, ClipConfig, TextConfig, VisionConfig, reference};

fn config(activation: Activation) -> ClipConfig {
    ClipConfig {
        embed: 24,
        vision: VisionConfig { image_size: 20, patch: 4, width: 32, layers: 3, heads: 2 },
        text: TextConfig { context: 12, vocab: 50, width: 48, layers: 2, heads: 3 },
        activation,
    }
}

/// Numbers in -1..1 without a pattern that a model could be symmetric in.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Pixels and token ids; texts of 2 tokens up to the whole context, end token 49.
fn batch(config: &ClipConfig, n: usize) -> (Tensor, Tensor) {
    let side = config.vision.image_size;
    let pixels = Tensor::from_vec(noise(n * 3 * side * side, 5), (n, 3, side, side), &Device::Cpu).unwrap();
    let context = config.text.context;
    let ids = (0..n).flat_map(|i| {
        let words = i % (context - 1);
        (0..context).map(move |t| match t {
            0 => 48,
            t if t <= words => ((i * 7 + t * 13) % 47) as u32,
            t if t == words + 1 => 49,
            _ => 0,
        })
    });
    (pixels, Tensor::from_vec(ids.collect::<Vec<u32>>(), (n, context), &Device::Cpu).unwrap())
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// |a - b| / |b|, both as vectors.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied()).max(1e-12)
}

/// A model whose biases and gains are not those of the start, which would hide a gradient that is left out.
fn model(activation: Activation) -> Clip {
    let clip = Clip::new(config(activation), 7).unwrap();
    for (i, variable) in clip.variables().values().enumerate() {
        let shift =
            Tensor::from_vec(noise(variable.elem_count(), i as u32), variable.shape(), &Device::Cpu).unwrap();
        variable.set(&(variable.as_tensor() + (shift * 0.05).unwrap()).unwrap().detach()).unwrap();
    }
    clip
}

#[test]
fn the_fused_model_is_its_plain_twin() {
    for activation in [Activation::QuickGelu, Activation::Gelu] {
        let clip = model(activation);
        let config = clip.config();
        let (pixels, ids) = batch(config, 40);

        let twins: BTreeMap<String, Var> = clip
            .variables()
            .iter()
            .map(|(name, v)| {
                (name.clone(), Var::from_tensor(&v.to_dtype(DType::F64).unwrap().detach()).unwrap())
            })
            .collect();
        let tensors = twins.iter().map(|(name, v)| (name.clone(), v.as_tensor().clone())).collect();
        let image = reference::encode_image(&tensors, config, &pixels.to_dtype(DType::F64).unwrap()).unwrap();
        let text = reference::encode_text(&tensors, config, &ids).unwrap();
        let loss = reference::contrastive_loss(&image, &text, &tensors["logit_scale"]).unwrap();
        let expected = loss.backward().unwrap();

        let close = |a: &Tensor, b: &Tensor| distance(&values(a), &values(b)) < 2e-6;
        assert!(close(&clip.encode_image(&pixels).unwrap(), &image));
        assert!(close(&clip.encode_text(&ids).unwrap(), &text));
        let fused = clip.loss(&pixels, &ids).unwrap();
        assert!(close(&fused, &loss), "{fused:?} {loss:?}");
        let gradients = fused.backward().unwrap();
        for (name, variable) in clip.variables() {
            let (got, want) = (gradients.get(variable).unwrap(), expected.get(&twins[name]).unwrap());
            let mut want = values(want);
            if name.ends_with("in_proj_bias") {
                // The keys' bias moves all scores of a query alike: its gradient is 0 but for rounding.
                let third = want.len() / 3;
                assert!(want[third..2 * third].iter().all(|x| x.abs() < 1e-9));
                want[third..2 * third].fill(0.0);
            }
            let d = distance(&values(got), &want);
            assert!(d < 2e-5, "{activation:?} {name}: {d}");
            assert!(
                values(got).iter().all(|x| x.is_finite()) && values(got).iter().any(|x| *x != 0.0),
                "{name}"
            );
        }
        assert!(fused.backward().is_err(), "activations serve one backward pass");
    }
}

#[test]
fn results_do_not_depend_on_threads_or_on_what_ran_before() {
    let clip = model(Activation::QuickGelu);
    let run = |n: usize| {
        let (pixels, ids) = batch(clip.config(), n);
        let loss = clip.loss(&pixels, &ids).unwrap();
        let gradients = loss.backward().unwrap();
        let of = |v: &Var| gradients.get(v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bits: Vec<u32> = clip.variables().values().flat_map(of).map(f32::to_bits).collect();
        (loss.to_scalar::<f32>().unwrap().to_bits(), bits)
    };
    let first = run(40);
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        // Another batch between leaves its numbers in the kept buffers.
        assert_ne!(pool.install(|| run(23)), first);
        assert!(pool.install(|| run(40)) == first, "{threads} threads");
    }
}

#[test]
fn evaluation_builds_no_graph() {
    let clip = model(Activation::QuickGelu);
    let (pixels, ids) = batch(clip.config(), 3);
    for features in [clip.encode_image(&pixels).unwrap(), clip.encode_text(&ids).unwrap()] {
        assert!(features.sorted_nodes().is_empty(), "a variable is reachable");
        let lengths = values(&features.sqr().unwrap().sum(1).unwrap());
        assert!(lengths.iter().all(|l| (l - 1.0).abs() < 1e-5));
    }
}

#[test]
fn a_fresh_model_loses_about_the_logarithm_of_the_batch() {
    let clip = Clip::new(ClipConfig::preset("vit-tiny-48").unwrap(), 1).unwrap();
    let (pixels, ids) = batch(clip.config(), 64);
    let loss = clip.loss(&pixels, &ids).unwrap().to_scalar::<f32>().unwrap();
    assert!((loss - 64f32.ln()).abs() < 1.0, "{loss}");
}

#[test]
fn files_hold_the_whole_model() {
    let dir = tempfile::tempdir().unwrap();
    let clip = model(Activation::Gelu);
    clip.save(dir.path()).unwrap();
    let read = Clip::load(dir.path()).unwrap();
    assert_eq!((read.config(), read.weights_hash()), (clip.config(), clip.weights_hash()));
    assert_eq!(clip.weights_hash().len(), 64);

    let other = tempfile::tempdir().unwrap();
    Clip::new(ClipConfig::preset("vit-tiny-48").unwrap(), 1).unwrap().save(other.path()).unwrap();
    std::fs::copy(other.path().join("config.json"), dir.path().join("config.json")).unwrap();
    let error = Clip::load(dir.path()).err().unwrap().to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("`ln_final.bias` is [48], not [128]"),
        "{error}"
    );
    std::fs::write(dir.path().join("model.safetensors"), b"short").unwrap();
    let error = Clip::load(dir.path()).err().unwrap().to_string();
    assert!(error.contains("model.safetensors") && error.contains("damaged"), "{error}");
}

#[test]
fn wrong_inputs_are_named() {
    let clip = model(Activation::Gelu);
    let (pixels, ids) = batch(clip.config(), 2);
    let error = |r: twinlens_model::Result<Tensor>| r.unwrap_err().to_string();
    assert!(error(clip.encode_image(&pixels.narrow(2, 0, 8).unwrap())).contains("[batch, 3, 20, 20]"));
    assert!(error(clip.encode_text(&pixels)).contains("token ids"));
    assert!(error(clip.encode_text(&(ids * 3.0).unwrap())).contains("ids below 50"));
    assert!(clip.encode_image(&pixels.narrow(0, 0, 0).unwrap()).is_err());
}
