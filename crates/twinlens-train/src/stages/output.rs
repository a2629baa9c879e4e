//! The outputs of a training: log and evaluations as tables, weights as files.

use super::errors::{engine, model_error, train_error};
use crate::checkpoint::Checkpoints;
use crate::continuation::STATE_FILE;
use crate::hooks::TrainOutput;
use crate::log::LogRow;
use crate::measure::Measurement;
use crate::options::TrainOptions;
use crate::snapshot::kept_file;
use datafusion::arrow::array::{
    ArrayRef, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use twinlens_dataset::{SplitWriter, contracts};
use twinlens_model::weights::{PREPROCESSING_FILE, write_atomically};
use twinlens_model::{CONFIG_FILE, Clip, TOKENIZER_FILE, Tokenizer, WEIGHTS_FILE};
use twinlens_pipeline::RunError;

/// The weights of the last step, if the model is their moving average.
pub(crate) const LAST_FILE: &str = "last.safetensors";

/// The log by the contract `train_log`.
pub(crate) fn log_batch(log: &[LogRow], changes: &BTreeMap<u64, String>) -> Result<RecordBatch, RunError> {
    let ints = |f: fn(&LogRow) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(log.iter().map(|r| f(r) as i64)))
    };
    let floats = |f: fn(&LogRow) -> f64| -> ArrayRef {
        Arc::new(Float32Array::from_iter_values(log.iter().map(|r| f(r) as f32)))
    };
    let wall = TimestampMicrosecondArray::from_iter_values(log.iter().map(|r| r.wall)).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        ints(|r| r.step),
        ints(|r| r.samples_seen),
        Arc::new(Float64Array::from_iter_values(log.iter().map(|r| r.epoch))),
        floats(|r| r.loss),
        floats(|r| r.lr),
        floats(|r| r.logit_scale),
        floats(|r| r.grad_norm),
        floats(|r| r.samples_per_second),
        Arc::new(wall),
        Arc::new(log.iter().map(|r| changes.get(&r.step)).collect::<StringArray>()),
    ];
    RecordBatch::try_new(contracts::train_log(), columns).map_err(engine)
}

/// Evaluations by the contract `evaluations`.
pub(crate) fn evaluations_batch(
    measurements: &[Measurement],
    options: &TrainOptions,
) -> Result<RecordBatch, RunError> {
    let ints = |f: &dyn Fn(&Measurement) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(measurements.iter().map(|m| f(m) as i64)))
    };
    let texts = |f: fn(&Measurement) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(measurements.iter().map(f)))
    };
    let floats = |f: fn(&Measurement) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(measurements.iter().map(f)))
    };
    let columns: Vec<ArrayRef> = vec![
        ints(&|m| m.step),
        ints(&|m| options.pairs_seen(m.step)),
        texts(|m| &m.measured.set),
        texts(|m| &m.measured.prompts),
        texts(|m| &m.measured.metric),
        floats(|m| m.measured.value),
        floats(|m| m.measured.ci_low),
        floats(|m| m.measured.ci_high),
        floats(|m| m.measured.chance),
        ints(&|m| m.measured.n),
    ];
    RecordBatch::try_new(contracts::evaluations(), columns).map_err(engine)
}

/// What a training leaves besides its tables.
pub(crate) struct ModelFiles<'a> {
    /// The weights of the last step.
    pub(crate) clip: &'a Clip,
    pub(crate) output: &'a TrainOutput,
    /// Whether to take the weights of the best step.
    pub(crate) best: bool,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) checkpoints: &'a Checkpoints,
}

impl ModelFiles<'_> {
    /// Writes the model and its tokenizer as artifacts of the split, by way of the work directory.
    /// The model has the weights of the last step, their moving average (then the last step's are a
    /// separate file), or those of the best step.
    pub(crate) fn write(&self, work: &Path, split: &mut SplitWriter) -> Result<(), RunError> {
        let folder = work.join("model");
        std::fs::create_dir_all(&folder).map_err(|error| RunError::io(&folder, error))?;
        let mut publish = |from: &Path, name: &str| {
            let to = split.artifact(name);
            std::fs::rename(from, &to).map_err(|error| RunError::io(from, error))
        };
        if self.output.ema.is_some() {
            self.clip.save(&folder).map_err(model_error)?;
            publish(&folder.join(WEIGHTS_FILE), LAST_FILE)?;
        }
        let model = self.output.ema.as_ref().unwrap_or(self.clip);
        if self.best {
            let weights = self.checkpoints.best().map_err(train_error)?;
            model.set_state(&weights).map_err(model_error)?;
        }
        model.save(&folder).map_err(model_error)?;
        self.tokenizer.save(&folder.join(TOKENIZER_FILE)).map_err(model_error)?;
        for name in [CONFIG_FILE, PREPROCESSING_FILE, WEIGHTS_FILE, TOKENIZER_FILE] {
            publish(&folder.join(name), name)?;
        }
        if let Some(state) = &self.output.state {
            let path = folder.join(STATE_FILE);
            write_atomically(&path, state).map_err(model_error)?;
            publish(&path, STATE_FILE)?;
        }
        for (step, path) in self.checkpoints.kept().map_err(train_error)? {
            // A link: a kill before the commit must not cost the weights of a step that is over.
            let to = split.artifact(&kept_file(step));
            let linked = std::fs::hard_link(&path, &to).or_else(|_| std::fs::copy(&path, &to).map(drop));
            linked.map_err(|error| RunError::io(&path, error))?;
        }
        Ok(())
    }
}
