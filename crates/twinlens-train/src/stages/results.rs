//! What a training leaves: its log and measurements as tables, its weights as files.

use super::{engine, model_error, train_error};
use crate::checkpoint::Checkpoints;
use crate::log::LogRow;
use crate::measure::Measurement;
use crate::trainer::Trained;
use datafusion::arrow::array::{
    ArrayRef, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use std::path::Path;
use std::sync::Arc;
use twinlens_dataset::{SplitWriter, contracts};
use twinlens_model::{CONFIG_FILE, Clip, TOKENIZER_FILE, Tokenizer, WEIGHTS_FILE};
use twinlens_pipeline::RunError;

/// The weights of the last step, where the model itself is their running mean.
pub const LAST_FILE: &str = "last.safetensors";

/// The log as a batch of the contract `train_log`.
pub fn log_batch(log: &[LogRow]) -> Result<RecordBatch, RunError> {
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
    ];
    RecordBatch::try_new(contracts::train_log(), columns).map_err(engine)
}

/// Measurements as a batch of the contract `evaluations`.
pub fn measured_batch(measured: &[Measurement], batch_size: usize) -> Result<RecordBatch, RunError> {
    let ints = |f: &dyn Fn(&Measurement) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(measured.iter().map(|m| f(m) as i64)))
    };
    let texts = |f: fn(&Measurement) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(measured.iter().map(f)))
    };
    let floats = |f: fn(&Measurement) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(measured.iter().map(f)))
    };
    let columns: Vec<ArrayRef> = vec![
        ints(&|m| m.step),
        ints(&|m| m.step * batch_size as u64),
        texts(|m| &m.what.set),
        texts(|m| &m.what.prompts),
        texts(|m| &m.what.metric),
        floats(|m| m.what.value),
        floats(|m| m.what.ci_low),
        floats(|m| m.what.ci_high),
        floats(|m| m.what.chance),
        ints(&|m| m.what.n),
    ];
    RecordBatch::try_new(contracts::evaluations(), columns).map_err(engine)
}

/// Writes the model and its tokenizer as artifacts of the split: the weights of the last step,
/// their running mean where one was kept (the last step's beside it), or those of the best step.
pub fn write_model(
    clip: &Clip,
    trained: &Trained,
    best: bool,
    tokenizer: &Tokenizer,
    checkpoints: &Checkpoints,
    work: &Path,
    split: &mut SplitWriter,
) -> Result<(), RunError> {
    let folder = work.join("model");
    std::fs::create_dir_all(&folder).map_err(|error| RunError::io(&folder, error))?;
    let mut publish = |from: &Path, name: &str| {
        let to = split.artifact(name);
        std::fs::rename(from, &to).map_err(|error| RunError::io(from, error))
    };
    if trained.ema.is_some() {
        clip.save(&folder).map_err(model_error)?;
        publish(&folder.join(WEIGHTS_FILE), LAST_FILE)?;
    }
    let model = trained.ema.as_ref().unwrap_or(clip);
    if best {
        let weights = checkpoints.best().map_err(train_error)?;
        model.set_state(&weights).map_err(model_error)?;
    }
    model.save(&folder).map_err(model_error)?;
    tokenizer.save(&folder.join(TOKENIZER_FILE)).map_err(model_error)?;
    for name in [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE] {
        publish(&folder.join(name), name)?;
    }
    for (step, path) in checkpoints.kept().map_err(train_error)? {
        publish(&path, &format!("step-{step:010}.safetensors"))?;
    }
    Ok(())
}
