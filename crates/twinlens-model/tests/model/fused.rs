//! The fused model against its reference implementation in f64: values, and the gradient of every
//! variable, for both image towers and every objective.

use crate::common::{batch, distance, model, values};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::BTreeMap;
use twinlens_model::{
    Activation, Clip, ClipConfig, Objective, Pass, Precision, ResNetConfig, TextConfig, VitConfig, reference,
};

fn vit(activation: Activation, objective: Objective) -> ClipConfig {
    ClipConfig {
        embed: 24,
        vision: VitConfig { image_size: 20, patch: 4, width: 32, layers: 3, heads: 2 }.into(),
        text: TextConfig { context: 12, vocab: 50, width: 48, layers: 2, heads: 3 },
        activation,
        objective,
    }
}

fn resnet(objective: Objective) -> ClipConfig {
    let tower = ResNetConfig { image_size: 64, width: 6, stages: [1, 2, 1, 1], heads: 3 };
    ClipConfig { vision: tower.into(), ..vit(Activation::QuickGelu, objective) }
}

/// The variables and running statistics in f64.
fn reference_variables(clip: &Clip) -> BTreeMap<String, Var> {
    let widen = |v: &Var| Var::from_tensor(&v.to_dtype(DType::F64).unwrap().detach()).unwrap();
    clip.variables().iter().chain(clip.buffers()).map(|(name, v)| (name.clone(), widen(v))).collect()
}

fn check(config: ClipConfig, n: usize, tolerance: f64) {
    let what = format!("{config:?}");
    let clip = model(config);
    let config = clip.config();
    let (pixels, ids) = batch(config, n);
    let wide = pixels.to_dtype(DType::F64).unwrap();
    let wide_variables = reference_variables(&clip);
    let tensors = wide_variables.iter().map(|(name, v)| (name.clone(), v.as_tensor().clone())).collect();
    let close = |a: &Tensor, b: &Tensor| distance(&values(a), &values(b), 1e-12) < tolerance / 10.0;

    let image = reference::encode_image(&tensors, config, &wide, true).unwrap();
    assert!(close(&clip.encode_image(&pixels).unwrap(), &image), "{what}");
    let image = reference::encode_image(&tensors, config, &wide, false).unwrap();
    assert!(close(&clip.image_features(&pixels, Pass::Preview).unwrap(), &image), "{what}");
    if config.objective.embeds_texts() {
        let text = reference::encode_text(&tensors, config, &ids).unwrap();
        assert!(close(&clip.encode_text(&ids).unwrap(), &text), "{what}");
    }
    let loss = reference::loss(&tensors, config, &wide, &ids).unwrap();
    let expected = loss.backward().unwrap();
    let fused = clip.loss(&pixels, &ids).unwrap();
    assert!(close(&fused, &loss), "{fused:?} {loss:?} {what}");
    let gradients = fused.backward().unwrap();
    for (name, variable) in clip.variables() {
        let (got, want) = (gradients.get(variable).unwrap(), expected.get(&wide_variables[name]).unwrap());
        let (got, mut want) = (values(got), values(want));
        // The keys' bias shifts all scores of a query equally, so its gradient is 0 up to rounding.
        let len = want.len();
        let zeros = if name.ends_with("in_proj_bias") {
            len / 3..2 * len / 3
        } else {
            0..if name.ends_with("k_proj.bias") { len } else { 0 }
        };
        assert!(want[zeros.clone()].iter().all(|x| x.abs() < 1e-9), "{name}");
        want[zeros].fill(0.0);
        let d = distance(&got, &want, 1e-2);
        assert!(d < tolerance, "{name}: {d} {what}");
    }
    assert!(fused.backward().is_err(), "backward can run only once");
}

#[test]
fn the_fused_vision_transformer_matches_the_reference() {
    for activation in [Activation::QuickGelu, Activation::Gelu] {
        check(vit(activation, Objective::CONTRASTIVE), 40, 2e-5);
    }
}

#[test]
fn the_fused_resnet_matches_the_reference() {
    // Few images: with more inputs to relus, more are so close to 0 that their signs differ between
    // f32 and f64.
    check(resnet(Objective::CONTRASTIVE), 6, 1e-4);
}

#[test]
fn the_fused_objectives_match_the_reference() {
    for objective in [Objective::SIGMOID, Objective::BAG_OF_WORDS, Objective::CAPTION] {
        check(vit(Activation::Gelu, objective), 40, 2e-5);
    }
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The GPU's code path on the CPU: basic operations in half precision, with weights and gradients
/// in f32.
#[test]
fn half_precision_is_close() {
    let both = &[Precision::Bf16, Precision::F16][..];
    for (config, precisions) in [
        (vit(Activation::Gelu, Objective::CONTRASTIVE), both),
        (vit(Activation::Gelu, Objective::CAPTION), both),
        // candle's convolution on the CPU does not support bf16.
        (resnet(Objective::SIGMOID), &both[1..]),
        (resnet(Objective::BAG_OF_WORDS), &both[1..]),
    ] {
        for &precision in precisions {
            let what = format!("{precision:?} {config:?}");
            let full = model(config.clone());
            let half = model(config.clone()).to_device(&Device::Cpu, precision).unwrap();
            let (pixels, ids) = batch(&config, 16);
            let [image, near] = [&full, &half].map(|clip| clip.encode_image(&pixels).unwrap());
            assert_eq!(near.dtype(), DType::F32);
            assert!(cosine(&values(&image), &values(&near)) > 0.999, "{what}");
            let scores = [&full, &half].map(|clip| values(&clip.score(&image, &ids).unwrap()));
            assert!(distance(&scores[1], &scores[0], 1e-12) < 5e-2, "{what}");

            let [loss, near] = [&full, &half].map(|clip| clip.loss(&pixels, &ids).unwrap());
            assert!(distance(&values(&near), &values(&loss), 1e-12) < 2e-2, "{what}");
            let (gradients, near) = (loss.backward().unwrap(), near.backward().unwrap());
            let (mut all, mut all_near) = (Vec::new(), Vec::new());
            for (name, variable) in full.variables() {
                let gradient = near.get(&half.variables()[name]).unwrap();
                assert_eq!(gradient.dtype(), DType::F32);
                all.extend(values(gradients.get(variable).unwrap()));
                all_near.extend(values(gradient));
            }
            assert!(cosine(&all, &all_near) > 0.99, "{what}: {}", cosine(&all, &all_near));
            assert!(distance(&all_near, &all, 1e-12) < 0.2, "{what}");
            for (name, buffer) in full.buffers() {
                let moved = values(&half.buffers()[name]);
                assert!(distance(&moved, &values(buffer), 1e-2) < 2e-2, "{name}: {what}");
            }
        }
    }
}

/// Nothing cuts the graph: every variable of every small model and objective is trained.
#[test]
fn every_variable_receives_a_gradient() {
    let mut configs: Vec<ClipConfig> = Objective::ALL.iter().copied().map(resnet).collect();
    configs.extend(Objective::ALL.iter().map(|&objective| vit(Activation::Gelu, objective)));
    let tiny = ClipConfig::presets().into_iter().filter(|name| name.contains("tiny"));
    configs.extend(tiny.map(|name| {
        let mut config = ClipConfig::preset(name).unwrap();
        config.text.vocab = 300;
        config
    }));
    assert_eq!(configs.len(), 8 + 9);
    for config in configs {
        let clip = model(config);
        let (pixels, ids) = batch(clip.config(), 6);
        let gradients = clip.loss(&pixels, &ids).unwrap().backward().unwrap();
        for (name, variable) in clip.variables() {
            let gradient = gradients.get(variable).unwrap_or_else(|| panic!("{name}: {:?}", clip.config()));
            let gradient = values(gradient);
            assert!(gradient.iter().all(|x| x.is_finite()), "{name}: {:?}", clip.config());
            assert!(gradient.iter().any(|x| *x != 0.0), "{name}: {:?}", clip.config());
        }
    }
}

/// For objectives that predict words, the loss of a single pair is its negative score.
#[test]
fn scores_match_the_loss_of_single_pairs() {
    for objective in [Objective::BAG_OF_WORDS, Objective::CAPTION] {
        let clip = model(vit(Activation::Gelu, objective));
        let (pixels, ids) = batch(clip.config(), 5);
        let scores = clip.score(&clip.encode_image(&pixels).unwrap(), &ids).unwrap();
        assert_eq!(scores.dims(), [5, 5]);
        for i in 0..5 {
            for j in 1..5 {
                let (image, text) = (pixels.narrow(0, i, 1).unwrap(), ids.narrow(0, j, 1).unwrap());
                let loss = values(&clip.loss(&image, &text).unwrap())[0];
                // j words and the end token are predicted; the caption's loss is the mean over
                // them.
                let predictions = if objective == Objective::CAPTION { (j + 1) as f64 } else { 1.0 };
                let score = f64::from(scores.get(i).unwrap().get(j).unwrap().to_scalar::<f32>().unwrap());
                assert!((score + loss * predictions).abs() < 1e-4, "{objective:?} {i} {j}: {score} {loss}");
            }
        }
        assert!(clip.encode_text(&ids).unwrap_err().to_string().contains("objective"));
    }
}

/// Only training updates the running statistics, and they are saved with the model.
#[test]
fn only_training_updates_running_statistics() {
    let clip = model(resnet(Objective::CONTRASTIVE));
    let (pixels, ids) = batch(clip.config(), 8);
    let before = clip.weights_hash();
    let evaluated = values(&clip.encode_image(&pixels).unwrap());
    let previewed = values(&clip.image_features(&pixels, Pass::Preview).unwrap());
    assert_eq!(clip.weights_hash(), before);
    assert!(distance(&evaluated, &previewed, 1e-12) > 1e-3);
    for _ in 0..100 {
        clip.loss(&pixels, &ids).unwrap();
    }
    assert_ne!(clip.weights_hash(), before);
    // After many updates the running statistics equal the batch's, except for the unbiased
    // variance.
    let evaluated = values(&clip.encode_image(&pixels).unwrap());
    assert!(distance(&evaluated, &previewed, 1e-12) < 0.1);
    let dir = tempfile::tempdir().unwrap();
    clip.save(dir.path()).unwrap();
    let read = Clip::load(dir.path()).unwrap();
    assert_eq!(read.weights_hash(), clip.weights_hash());
    assert_eq!(values(&read.encode_image(&pixels).unwrap()), evaluated);
}

#[test]
fn results_do_not_depend_on_threads_or_on_what_ran_before() {
    for config in [
        vit(Activation::QuickGelu, Objective::CAPTION),
        vit(Activation::Gelu, Objective::CONTRASTIVE),
        resnet(Objective::BAG_OF_WORDS),
    ] {
        let clip = model(config);
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
            // Another batch in between leaves its values in the reused buffers.
            assert_ne!(pool.install(|| run(23)), first);
            assert!(pool.install(|| run(40)) == first, "{threads} threads: {:?}", clip.config());
        }
    }
}

/// What is embedded with others, in any batch and place, has the bits that it has alone: rows that
/// were embedded at another time can be taken over.
#[test]
fn an_embedding_does_not_depend_on_the_batch() {
    let wide = |config: ClipConfig| {
        let vision = VitConfig { image_size: 20, patch: 4, width: 136, layers: 2, heads: 2 }.into();
        let text = TextConfig { context: 12, vocab: 50, width: 68, layers: 2, heads: 2 };
        ClipConfig { embed: 160, vision, text, ..config }
    };
    let narrow = vit(Activation::Gelu, Objective::CONTRASTIVE);
    let tiny = ClipConfig { embed: 3, ..resnet(Objective::CONTRASTIVE) };
    for config in [wide(narrow.clone()), narrow, resnet(Objective::CONTRASTIVE), tiny] {
        let what = format!("{config:?}");
        let clip = model(config);
        let (pixels, ids) = batch(clip.config(), 41);
        let rows = |batch: &Tensor, first: usize, count: usize| batch.narrow(0, first, count).unwrap();
        let embed = |first: usize, count: usize| {
            let image = clip.encode_image(&rows(&pixels, first, count)).unwrap();
            let text = clip.encode_text(&rows(&ids, first, count)).unwrap();
            [image, text].map(|both| both.to_vec2::<f32>().unwrap())
        };
        let all = embed(0, 41);
        for (first, count) in [(0, 1), (40, 1), (3, 2), (5, 7), (1, 40), (20, 12)] {
            let some = embed(first, count);
            for tower in 0..2 {
                assert!(some[tower] == all[tower][first..first + count], "{tower} {first} {count} {what}");
            }
        }
    }
}

#[test]
fn evaluation_builds_no_graph() {
    let clip = model(vit(Activation::QuickGelu, Objective::CONTRASTIVE));
    let (pixels, ids) = batch(clip.config(), 3);
    for features in [clip.encode_image(&pixels).unwrap(), clip.encode_text(&ids).unwrap()] {
        assert!(features.sorted_nodes().is_empty(), "a variable is reachable");
        let lengths = values(&features.sqr().unwrap().sum(1).unwrap());
        assert!(lengths.iter().all(|l| (l - 1.0).abs() < 1e-5));
    }
}

#[test]
fn the_loss_of_a_fresh_model_is_about_ln_batch() {
    let clip = Clip::new(ClipConfig::preset("vit-tiny-48").unwrap(), 1).unwrap();
    let (pixels, ids) = batch(clip.config(), 64);
    let loss = clip.loss(&pixels, &ids).unwrap().to_scalar::<f32>().unwrap();
    assert!((loss - 64f32.ln()).abs() < 1.0, "{loss}");
}

#[test]
fn saved_models_load_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let clip = model(vit(Activation::Gelu, Objective::CONTRASTIVE));
    clip.save(dir.path()).unwrap();
    let read = Clip::load(dir.path()).unwrap();
    assert_eq!((read.config(), read.weights_hash()), (clip.config(), clip.weights_hash()));
    assert_eq!(clip.weights_hash().len(), 64);

    let other = tempfile::tempdir().unwrap();
    Clip::new(ClipConfig::preset("vit-tiny-48").unwrap(), 1).unwrap().save(other.path()).unwrap();
    for name in ["config.json", "preprocessor_config.json"] {
        std::fs::copy(other.path().join(name), dir.path().join(name)).unwrap();
    }
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
fn errors_name_the_wrong_input() {
    let clip = model(vit(Activation::Gelu, Objective::CONTRASTIVE));
    let (pixels, ids) = batch(clip.config(), 2);
    let error = |r: twinlens_model::Result<Tensor>| r.unwrap_err().to_string();
    assert!(error(clip.encode_image(&pixels.narrow(2, 0, 8).unwrap())).contains("[batch, 3, 20, 20]"));
    assert!(error(clip.encode_text(&pixels)).contains("token ids"));
    assert!(error(clip.encode_text(&(ids * 3.0).unwrap())).contains("ids below 50"));
    assert!(clip.encode_image(&pixels.narrow(0, 0, 0).unwrap()).is_err());
}
