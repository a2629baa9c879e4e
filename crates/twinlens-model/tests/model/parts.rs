//! Shares of a batch, recomputed activations, and parts of models that are frozen or copied.

use crate::common::{batch, distance, model, values};
use candle_core::{Device, Tensor, Var};
use std::path::Path;
use twinlens_model::{
    Activation, Block, Clip, ClipConfig, Features, Objective, Pass, ResNetConfig, Share, TextConfig, Tower,
    VitConfig,
};

fn vit(objective: Objective) -> ClipConfig {
    ClipConfig {
        embed: 24,
        vision: VitConfig { image_size: 20, patch: 4, width: 32, layers: 3, heads: 2 }.into(),
        text: TextConfig { context: 12, vocab: 50, width: 48, layers: 2, heads: 3 },
        activation: Activation::QuickGelu,
        objective,
    }
}

fn resnet() -> ClipConfig {
    let tower = ResNetConfig { image_size: 64, width: 6, stages: [1, 2, 1, 1], heads: 3 };
    ClipConfig { vision: tower.into(), ..vit(Objective::CONTRASTIVE) }
}

/// However a batch is split, its shares add up to the loss and the gradients of the fused
/// operation.
#[test]
fn shares_add_up_to_the_loss() {
    const N: usize = 150;
    for objective in [Objective::CONTRASTIVE, Objective::SIGMOID] {
        let clip = model(vit(objective));
        let (pixels, ids) = batch(clip.config(), N);
        let image = Var::from_tensor(&clip.encode_image(&pixels).unwrap()).unwrap();
        let text = Var::from_tensor(&clip.encode_text(&ids).unwrap()).unwrap();
        let loss = clip.loss_of_features(&image, &text).unwrap();
        let expected = loss.backward().unwrap();
        let (image_values, text_values) = (image.as_detached_tensor(), text.as_detached_tensor());
        for cuts in [&[0, N][..], &[0, 1, 70, N]] {
            let all =
                |own: std::ops::Range<usize>| Features { image: &image_values, text: &text_values, own };
            let owns = || cuts.windows(2).map(|cut| cut[0]..cut[1]);
            let sums: Vec<_> = owns().map(|own| clip.log_sums(&all(own)).unwrap()).collect();
            let sums = [0, 1].map(|side| sums.iter().flat_map(|s| s[side].clone()).collect::<Vec<f32>>());
            let shares: Vec<_> = owns().map(|own| clip.share(&all(own), &sums).unwrap()).collect();

            let total: f64 = shares.iter().map(|share| share.loss).sum();
            assert!((total - values(&loss)[0]).abs() < 1e-6 * total, "{objective:?} {total}");
            let own = |side: fn(&twinlens_model::Share) -> &Tensor| {
                shares.iter().flat_map(move |s| values(side(s)))
            };
            for (variable, got) in
                [(&image, own(|s| &s.image).collect::<Vec<_>>()), (&text, own(|s| &s.text).collect())]
            {
                let d = distance(&got, &values(expected.get(variable).unwrap()), 1e-12);
                assert!(d < 1e-6, "{objective:?}: {d}");
            }
            for (i, (name, _)) in shares[0].scalars.iter().enumerate() {
                let got: f64 = shares.iter().map(|share| f64::from(share.scalars[i].1)).sum();
                let want = values(expected.get(&clip.variables()[*name]).unwrap())[0];
                assert!((got - want).abs() < 1e-6 * want.abs().max(0.1), "{name}: {got} {want}");
            }
        }
    }
    let words = model(vit(Objective::CAPTION));
    assert!(words.adds_up().unwrap_err().to_string().contains("objective"));
    let (image, text) = (Tensor::zeros((3, 24), candle_core::DType::F32, &Device::Cpu).unwrap(), 3);
    let features = Features { image: &image, text: &image, own: 0..text };
    assert!(words.log_sums(&features).unwrap_err().to_string().contains("objective"));
}

/// Blocks of pairs, of which no two ranges of rows need be equal, add up to the share of the rows.
#[test]
fn shares_of_blocks_add_up() {
    const N: usize = 150;
    let clip = model(vit(Objective::SIGMOID));
    assert!(clip.adds_up().unwrap());
    let (pixels, ids) = batch(clip.config(), N);
    let (image, text) = (clip.encode_image(&pixels).unwrap(), clip.encode_text(&ids).unwrap());
    let own = 30..101;
    let empty = [Vec::new(), Vec::new()];
    let whole = clip.share(&Features { image: &image, text: &text, own: own.clone() }, &empty).unwrap();
    let rows = |range: std::ops::Range<usize>| {
        [&image, &text].map(|side| side.narrow(0, range.start, range.len()).unwrap())
    };
    let [own_image, own_text] = rows(own.clone());
    let own = Block { image: &own_image, text: &own_text, first: own.start };
    let mut sum: Option<Share> = None;
    for range in [30..101, 0..30, 101..102, 102..N] {
        let first = range.start;
        let [image, text] = rows(range);
        let share = clip.block_share(own, Block { image: &image, text: &text, first }, N).unwrap();
        match &mut sum {
            Some(sum) => sum.add(&share).unwrap(),
            None => sum = Some(share),
        }
    }
    let sum = sum.unwrap();
    assert!((sum.loss - whole.loss).abs() < 1e-9 * whole.loss);
    for (sum, whole) in [(&sum.image, &whole.image), (&sum.text, &whole.text)] {
        assert!(distance(&values(sum), &values(whole), 1e-12) < 1e-6);
    }
    for ((name, sum), (_, whole)) in sum.scalars.iter().zip(&whole.scalars) {
        assert!((sum - whole).abs() < 1e-5 * whole.abs(), "{name}: {sum} {whole}");
    }

    let beyond = Block { first: N - 1, ..own };
    assert!(clip.block_share(own, beyond, N).is_err());
    let contrastive = model(vit(Objective::CONTRASTIVE));
    assert!(contrastive.block_share(own, own, N).is_err());
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Loss and gradients in bits.
fn step(clip: &Clip, n: usize) -> Vec<Option<Vec<u32>>> {
    let (pixels, ids) = batch(clip.config(), n);
    let loss = clip.loss(&pixels, &ids).unwrap();
    let gradients = loss.backward().unwrap();
    let all = clip.variables().values().map(|v| gradients.get(v).map(bits));
    all.chain([Some(bits(&loss))]).collect()
}

#[test]
fn recomputed_activations_are_bit_identical() {
    for objective in [Objective::CONTRASTIVE, Objective::CAPTION] {
        let mut clip = model(vit(objective));
        let kept = step(&clip, 30);
        clip.set_recompute(true);
        let (pixels, _) = batch(clip.config(), 40);
        for _ in 0..2 {
            assert!(step(&clip, 30) == kept, "{objective:?}");
            // A pass without a graph uses the same memory in between.
            clip.image_features(&pixels, Pass::Preview).unwrap();
        }
        assert!(step(&clip.replica().unwrap(), 30) == kept, "{objective:?}");
    }
}

/// Frozen variables get no gradient, and the gradients of the others do not change.
#[test]
fn only_frozen_parts_lose_their_gradients() {
    let bottom = [
        "visual.conv1",
        "visual.class_embedding",
        "visual.positional_embedding",
        "visual.ln_pre",
        "visual.transformer.resblocks.0",
        "visual.transformer.resblocks.1",
    ];
    let cases: [(ClipConfig, &[&str], Option<Tower>); 7] = [
        // Blocks below the first trained one are only evaluated.
        (vit(Objective::CONTRASTIVE), &bottom, None),
        (vit(Objective::CONTRASTIVE), &["visual"], Some(Tower::Image)),
        (vit(Objective::SIGMOID), &["text", "logit_bias"], Some(Tower::Text)),
        (
            vit(Objective::CONTRASTIVE),
            &["logit_scale", "visual.conv1", "visual.transformer.resblocks.0"],
            None,
        ),
        (vit(Objective::BAG_OF_WORDS), &["visual"], Some(Tower::Image)),
        (vit(Objective::CAPTION), &["text"], Some(Tower::Text)),
        (resnet(), &["visual"], Some(Tower::Image)),
    ];
    for (config, parts, tower) in cases {
        let mut clip = model(config.clone());
        let free = step(&clip, 20);
        let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
        clip = model(config);
        clip.freeze(&parts).unwrap();
        let before = clip.buffers().values().map(|v| bits(v)).collect::<Vec<_>>();
        let frozen = step(&clip, 20);
        for ((name, free), frozen) in clip.variables().keys().zip(&free).zip(&frozen) {
            let is_frozen = parts.iter().any(|part| twinlens_model::covers(part, name));
            assert_eq!(frozen.is_none(), is_frozen, "{name} {parts:?}");
            // A frozen ResNet is evaluated, which gives other features.
            let same = clip.buffers().is_empty();
            assert!(is_frozen || !same || frozen == free, "{name} {parts:?}");
        }
        assert_eq!(clip.trainable().len(), frozen.iter().flatten().count() - 1);
        assert_eq!(clip.buffers().values().map(|v| bits(v)).collect::<Vec<_>>(), before);
        for one in [Tower::Image, Tower::Text] {
            assert_eq!(clip.is_tower_frozen(one), tower == Some(one), "{parts:?}");
        }
    }
    let mut clip = model(resnet());
    let names: Vec<String> = clip.variables().keys().cloned().collect();
    for (parts, expected) in [
        (&["visual.layer1".to_owned()][..], "frozen as a whole"),
        (&["vision".to_owned()], "no variable of this model is part of `vision`"),
        (&names, "nothing is left"),
    ] {
        let error = clip.freeze(parts).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn parts_are_copied_from_another_model() {
    let from = Path::new("b32");
    let (clip, other) =
        (Clip::new(vit(Objective::CONTRASTIVE), 1).unwrap(), model(vit(Objective::CONTRASTIVE)));
    let towers = ["visual".to_owned()];
    clip.copy_from(&other, Some(&towers), from).unwrap();
    for (name, variable) in clip.variables() {
        let same = bits(variable) == bits(&other.variables()[name]);
        assert_eq!(same, name.starts_with("visual."), "{name}");
    }
    clip.copy_from(&other, None, from).unwrap();
    assert_eq!(clip.weights_hash(), other.weights_hash());
    let (net, trained) = (Clip::new(resnet(), 1).unwrap(), model(resnet()));
    net.copy_from(&trained, Some(&towers), from).unwrap();
    assert!(net.buffers().iter().all(|(name, v)| bits(v) == bits(&trained.buffers()[name])));

    let changed = |change: &dyn Fn(&mut ClipConfig)| {
        let mut config = vit(Objective::CONTRASTIVE);
        change(&mut config);
        let error = Clip::new(config, 1).unwrap().copy_from(&other, None, from).unwrap_err().to_string();
        assert!(error.contains("b32") && error.contains("from_parts"), "{error}");
        error
    };
    let vocab = changed(&|config| config.text.vocab = 60);
    assert!(vocab.contains("`token_embedding.weight` has shape [50, 48] there and [60, 48] here"), "{vocab}");
    assert!(changed(&|config| config.text.heads = 2).contains("3 heads there and 2 here"));
    assert!(changed(&|config| config.activation = Activation::Gelu).contains("QuickGelu"));
    assert!(changed(&|config| config.objective = Objective::SIGMOID).contains("`logit_bias` is missing"));
    let deep = changed(&|config| config.text.layers = 3);
    assert!(deep.contains("`transformer.resblocks.2") && deep.contains("and 9 more"), "{deep}");
}
