use super::*;
use candle_core::Device;

fn variables() -> Variables {
    let var = |values: &[f32], shape: &[usize]| {
        Var::from_tensor(&Tensor::from_slice(values, shape, &Device::Cpu).unwrap()).unwrap()
    };
    [
        ("bias".to_owned(), var(&[1.0, -2.0], &[2])),
        ("weight".to_owned(), var(&[1.0, -2.0, 0.5, 3.0], &[2, 2])),
    ]
    .into()
}

/// The gradient of the bias is 3 b, that of the weight 3 w^2.
fn gradients(variables: &Variables) -> Gradients {
    let cube = |v: &Var| v.as_tensor().sqr().unwrap().mul(v.as_tensor()).unwrap().sum_all().unwrap();
    let square = (variables["bias"].sqr().unwrap().sum_all().unwrap() * 1.5).unwrap();
    Gradients::from_store(variables, &(square + cube(&variables["weight"])).unwrap().backward().unwrap())
        .unwrap()
}

/// The formula of `torch.optim.AdamW` in f64, for three steps; the bias has no decay.
#[test]
fn steps_match_pytorch() {
    let variables = variables();
    let mut adam = AdamW::new(&variables, AdamWOptions::default());
    let mut expected: Vec<(f64, f64, f64, f64)> =
        [(1.0, 0.0), (-2.0, 0.0), (1.0, 0.2), (-2.0, 0.2), (0.5, 0.2), (3.0, 0.2)]
            .map(|(w, d)| (w, d, 0.0, 0.0))
            .into();
    for t in 1..=3 {
        let lr = 0.01 * f64::from(t);
        adam.step(&variables, &gradients(&variables), lr).unwrap();
        for (i, (w, decay, m, v)) in expected.iter_mut().enumerate() {
            let g = if i < 2 { 3.0 * *w } else { 3.0 * *w * *w };
            *w *= 1.0 - lr * *decay;
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.98 * *v + 0.02 * g * g;
            let (c1, c2) = (1.0 - 0.9f64.powi(t), 1.0 - 0.98f64.powi(t));
            *w -= lr / c1 * *m / (v.sqrt() / c2.sqrt() + 1e-6);
        }
    }
    let got = variables.values().flat_map(|v| v.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    for (got, (want, ..)) in got.zip(&expected) {
        assert!((f64::from(got) - want).abs() < 1e-6 * want.abs(), "{got} {want}");
    }
}

#[test]
fn tensor_ops_make_the_same_step() {
    let (fused, by_ops) = (variables(), variables());
    let options = AdamWOptions::default();
    let mut adam = AdamW::new(&fused, options);
    let mut kept = BTreeMap::new();
    for step in 1..=3 {
        let found = gradients(&by_ops);
        for (name, variable) in &by_ops {
            let decay = if variable.rank() >= 2 { options.weight_decay } else { 0.0 };
            let mut zero = Moments { m: vec![0.0; 4], v: vec![0.0; 4] };
            zero.m.truncate(variable.elem_count());
            zero.v.truncate(variable.elem_count());
            let moments = Mutex::new(&mut zero);
            let update = Update { moments, options, scale: 1.0, lr: 0.01, decay, step };
            let gradient = found.get(name).unwrap();
            let weights = variable.as_detached_tensor();
            let (changed, moments) =
                update.with_tensor_ops(&weights, gradient, kept.get(name).cloned()).unwrap();
            variable.set(&changed).unwrap();
            kept.insert(name.clone(), moments);
        }
        adam.step(&fused, &gradients(&fused), 0.01).unwrap();
    }
    adam.on_device = kept;
    let moments = adam.moments.clone();
    adam.copy_from_device().unwrap();
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs() + 1e-9);
    for (name, variable) in &fused {
        let numbers = |v: &Var| v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (got, want) = (numbers(&by_ops[name]), numbers(variable));
        assert!(close(&got, &want), "{name}: {got:?} for {want:?}");
        let (got, want) = (&adam.moments[name], &moments[name]);
        assert!(close(&got.m, &want.m) && close(&got.v, &want.v), "{name}");
    }
}

#[test]
fn gradients_are_clipped_by_their_global_norm() {
    let variables = variables();
    let mut adam = AdamW::new(&variables, AdamWOptions { clip_grad_norm: Some(1.0), ..Default::default() });
    let norm = adam.step(&variables, &gradients(&variables), 0.1).unwrap();
    let expected: f64 = [3.0, -6.0, 3.0, 12.0, 0.75, 27.0f64].iter().map(|g| g * g).sum::<f64>().sqrt();
    assert!((norm - expected).abs() < 1e-5 * expected);
    let m = f64::from(adam.moments["weight"].m[3]);
    assert!((m - 0.1 * 27.0 / expected).abs() < 1e-6, "{m}");
}

/// The first step of Adam without decay has the size of the learning rate, for any gradient.
#[test]
fn towers_have_their_own_learning_rates() {
    let names = ["logit_scale", "ln_final.bias", "visual.ln_post.bias"];
    let one = || Var::from_slice(&[1f32], 1, &Device::Cpu).unwrap();
    let variables: Variables = names.map(|name| (name.to_owned(), one())).into();
    let options = AdamWOptions { image_rate: 0.1, text_rate: 2.0, eps: 0.0, ..Default::default() };
    let mut gradients = Gradients::default();
    names.iter().for_each(|name| gradients.insert(name, Tensor::new(&[3f32], &Device::Cpu).unwrap()));
    AdamW::new(&variables, options).step(&variables, &gradients, 0.01).unwrap();
    for (name, step) in names.into_iter().zip([0.01, 0.02, 0.001]) {
        let got = variables[name].to_vec1::<f32>().unwrap()[0];
        assert!((got - (1.0 - step)).abs() < 1e-6, "{name}: {got}");
    }
}

#[test]
fn gradients_are_added_and_reduced_in_buckets() {
    let variables = variables();
    let once = gradients(&variables);
    let store = (variables["bias"].sqr().unwrap().sum_all().unwrap()).backward().unwrap();
    let mut sum = gradients(&variables);
    sum.add(&variables, &store).unwrap();
    let double = |piece: &mut [f32]| {
        piece.iter_mut().for_each(|x| *x *= 2.0);
        Ok(())
    };
    sum.reduce(3, double).unwrap();
    let numbers = |g: &Gradients, name| g.get(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(numbers(&sum, "bias"), [2.0 * (3.0 + 2.0), 2.0 * (-6.0 - 4.0)]);
    assert_eq!(sum.get("weight").unwrap().dims(), [2, 2]);
    let twice: Vec<f32> = numbers(&once, "weight").iter().map(|x| 2.0 * x).collect();
    assert_eq!(numbers(&sum, "weight"), twice);
}

#[test]
fn a_nan_gradient_changes_nothing() {
    let variables = variables();
    variables["bias"].set(&Tensor::new(&[f32::NAN, 1.0], &Device::Cpu).unwrap()).unwrap();
    let before = variables["weight"].to_vec2::<f32>().unwrap();
    let mut adam = AdamW::new(&variables, AdamWOptions::default());
    let error = adam.step(&variables, &gradients(&variables), 0.1).unwrap_err();
    assert!(matches!(error, StepError::NotFinite { variable, .. } if variable == "bias"));
    assert_eq!((variables["weight"].to_vec2::<f32>().unwrap(), adam.step), (before, 0));
}
