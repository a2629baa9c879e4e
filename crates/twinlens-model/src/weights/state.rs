//! The variables and buffers of a model by name: their shapes, fresh ones, and those of a file.

use crate::config::ClipConfig;
use crate::error::{ModelError, Result};
use crate::variables::Variables;
use candle_core::{DType, Device, Tensor, Var};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Name and shape of every variable of a model.
pub fn shapes(config: &ClipConfig) -> BTreeMap<String, Vec<usize>> {
    let variables = config.declarations().into_iter().flat_map(|declared| declared.0);
    variables.map(|(name, (shape, _))| (name, shape)).collect()
}

/// Name and length of every buffer of a model: the running statistics of its batch norms, which are
/// not trained but saved with the weights.
pub fn buffers(config: &ClipConfig) -> BTreeMap<String, usize> {
    config.vision.tower().running().into_iter().collect()
}

/// Fresh variables.
pub(crate) fn fresh(config: &ClipConfig, seed: u64) -> Result<Variables> {
    let [image, others] = config.declarations();
    let mut variables = image.create(seed)?;
    variables.extend(others.create(seed)?);
    Ok(variables)
}

/// Fresh buffers: mean 0, variance 1.
pub(crate) fn fresh_buffers(config: &ClipConfig) -> Result<Variables> {
    let buffer = |(name, len): (String, usize)| {
        let value = if name.ends_with("running_var") { 1f32 } else { 0.0 };
        Ok((name, Var::from_vec(vec![value; len], len, &Device::Cpu)?))
    };
    buffers(config).into_iter().map(buffer).collect()
}

/// Takes the variables and buffers of `config` from `tensors`, which were read from `path`; widens
/// half precision to f32.
///
/// # Errors
/// `Weights`, with the names that are missing, unknown, or have another shape.
pub(super) fn take(
    mut tensors: HashMap<String, Tensor>,
    config: &ClipConfig,
    path: &Path,
) -> Result<(Variables, Variables)> {
    let mut problems = Vec::new();
    let mut take = |name: String, shape: &[usize]| -> Result<Option<(String, Var)>> {
        match tensors.remove(&name) {
            None => problems.push(format!("`{name}` is missing")),
            Some(tensor) if tensor.dims() != shape => {
                problems.push(format!("`{name}` is {:?}, not {shape:?}", tensor.dims()));
            }
            Some(tensor) => {
                let tensor = tensor.to_dtype(DType::F32)?.contiguous()?;
                // A single bad value makes all sums so.
                if tensor.sum_all()?.to_scalar::<f32>()?.is_finite() || is_finite(&tensor)? {
                    return Ok(Some((name, Var::from_tensor(&tensor)?)));
                }
                problems.push(format!("`{name}` holds NaN or infinite values: its training diverged"));
            }
        }
        Ok(None)
    };
    let (mut variables, mut running) = (Variables::new(), Variables::new());
    for (name, shape) in shapes(config) {
        variables.extend(take(name, &shape)?);
    }
    for (name, len) in buffers(config) {
        running.extend(take(name, &[len])?);
    }
    let mut unknown: Vec<_> = tensors.into_keys().collect();
    unknown.sort();
    problems.extend(unknown.iter().map(|name| format!("`{name}` does not belong to this model")));
    if !unknown.is_empty()
        && variables.is_empty()
        && let Some((prefix, _)) = unknown[0].split_once('.')
        && unknown.iter().all(|name| name.starts_with(&format!("{prefix}.")))
    {
        problems.insert(0, format!("all its names begin with `{prefix}.`"));
    }
    let hidden = problems.len().saturating_sub(5);
    problems.truncate(5);
    let problem = match (problems.is_empty(), hidden) {
        (true, _) => return Ok((variables, running)),
        (_, 0) => problems.join("; "),
        _ => format!("{}; and {hidden} more", problems.join("; ")),
    };
    Err(ModelError::Weights { path: path.to_owned(), problem })
}

fn is_finite(tensor: &Tensor) -> Result<bool> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| value.is_finite()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objectives::Objective;
    use crate::variables::Init;
    use sha2::{Digest, Sha256};

    fn declared(config: &ClipConfig) -> BTreeMap<String, (Vec<usize>, Init)> {
        config.declarations().into_iter().flat_map(|declared| declared.0).collect()
    }

    fn preset(name: &str) -> ClipConfig {
        ClipConfig::preset(name).unwrap()
    }

    /// A hash of names, shapes and the first 1,000 initial values of every variable.
    fn hash_initial_weights(config: &ClipConfig) -> String {
        let mut hasher = Sha256::new();
        for (name, (shape, init)) in declared(config) {
            hasher.update(format!("{name}{shape:?}"));
            let values = init.values(&name, 3).take(shape.iter().product::<usize>().min(1000));
            hasher.update(values.flat_map(f32::to_le_bytes).collect::<Vec<_>>());
        }
        hex::encode(hasher.finalize())
    }

    /// Published results depend on the initial weights, so they must never change.
    #[test]
    fn initial_weights_are_pinned() {
        let expected = include_str!("../../tests/parity/initial_weights.txt");
        let models = ClipConfig::presets().into_iter().map(|name| (name, preset(name)));
        let objectives = Objective::ALL
            .iter()
            .map(|&objective| (objective.name(), ClipConfig { objective, ..preset("vit-tiny-32") }));
        let hashes = models
            .chain(objectives)
            .map(|(name, config)| format!("{name} {}\n", hash_initial_weights(&config)));
        assert_eq!(hashes.collect::<String>(), expected);
    }

    /// Mean, standard deviation and largest magnitude.
    fn moments(values: &[f32]) -> (f64, f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let deviation = (values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n).sqrt();
        (mean, deviation, values.iter().fold(0.0, |a, x| f64::max(a, f64::from(x.abs()))))
    }

    fn initial_moments(declared: &BTreeMap<String, (Vec<usize>, Init)>, name: &str) -> (f64, f64, f64) {
        let (shape, init) = &declared[name];
        moments(&init.values(name, 3).take(shape.iter().product()).collect::<Vec<_>>())
    }

    /// Every variable's mean, standard deviation and kind of distribution, against open_clip's
    /// (`tests/parity/make_init.py`).
    #[test]
    fn initial_distributions_are_open_clips() {
        for model in ["vit-tiny-48", "rn-tiny-64"] {
            let mut declared = declared(&preset(model));
            let table = include_str!("../../tests/parity/init.csv").lines().skip(1);
            for line in table.filter(|line| line.starts_with(model)) {
                let row: Vec<_> = line.split(',').collect();
                let name = row[1];
                let [count, mean, deviation, peak] =
                    [2, 3, 4, 5].map(|column: usize| row[column].parse::<f64>().unwrap());
                let (got_mean, got, got_peak) = initial_moments(&declared, name);
                let n = declared[name].0.iter().product::<usize>() as f64;
                // Six standard errors of two estimated deviations, and of two means.
                let relative = (0.5 / n + 0.5 / count).sqrt();
                assert!((got - deviation).abs() <= 6.0 * deviation * relative + 1e-7, "{line}: {got}");
                let error = 6.0 * deviation * (1.0 / n + 1.0 / count).sqrt();
                assert!((got_mean - mean).abs() <= error + 1e-5 * mean.abs(), "{line}: {got_mean}");
                if deviation > 0.0 {
                    // A uniform distribution ends at sqrt(3) deviations; a normal one does not.
                    let bounded = peak < 1.8;
                    assert!(!bounded || got_peak < 1.75 * deviation, "{line}: {got_peak}, too wide");
                    assert!(
                        bounded || n < 100.0 || got_peak > 1.8 * deviation,
                        "{line}: {got_peak}, too narrow"
                    );
                }
                declared.remove(name);
            }
            assert!(declared.is_empty(), "not in the table: {:?}", declared.keys());
        }
    }

    /// The variables that open_clip lacks start as the papers of their objectives say.
    #[test]
    fn initial_distributions_of_other_objectives() {
        let moments = |objective, name: &str| {
            initial_moments(&declared(&ClipConfig { objective, ..preset("vit-tiny-48") }), name)
        };
        assert_eq!(moments(Objective::SIGMOID, "logit_bias").0, -10.0);
        assert!((moments(Objective::SIGMOID, "logit_scale").0 - 10f64.ln()).abs() < 1e-6);
        let width = 128f64.powf(-0.5);
        for (objective, name, want) in [
            (Objective::BAG_OF_WORDS, "words.weight", width / 3f64.sqrt()),
            (Objective::BAG_OF_WORDS, "words.bias", width / 3f64.sqrt()),
            (Objective::CAPTION, "caption.image_projection", width),
        ] {
            let (_, got, _) = moments(objective, name);
            assert!((got - want).abs() < 0.05 * want, "{name}: {got}, not {want}");
        }
    }

    #[test]
    fn random_streams_depend_on_seed_and_name() {
        let draw = |name, seed| Init::Normal(1.0).values(name, seed).take(100).collect::<Vec<_>>();
        assert_eq!(draw("visual.proj", 1), draw("visual.proj", 1));
        assert_ne!(draw("visual.proj", 1), draw("visual.proj", 2));
        assert_ne!(draw("visual.proj", 1), draw("text_projection", 1));
    }
}
