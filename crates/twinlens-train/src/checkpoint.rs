//! Checkpoints: everything that the rest of a training depends on, in one safetensors file.
//!
//! Weights and moments by name, the log so far, and in the metadata the step and what training they belong to. The data
//! and every random draw are functions of seed and step. A file is written beside, fsynced and renamed: it is whole or it
//! is not there. The last few are kept.

use crate::error::{Result, TrainError};
use crate::log::{COLUMNS, LogRow};
use crate::optimizer::{AdamW, Moments};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use twinlens_model::{Clip, weights};

/// The folder of one training's checkpoints.
pub struct Checkpoints {
    dir: PathBuf,
    /// What training these belong to: options, data and model.
    run: String,
    keep: usize,
}

impl Checkpoints {
    /// Checkpoints in `dir`, which is created; the last `keep` stay. `run` names the training: a checkpoint of another
    /// is refused.
    ///
    /// # Errors
    /// `Io` when the folder cannot be made.
    pub fn new(dir: &Path, run: String, keep: usize) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(TrainError::io(dir))?;
        Ok(Self { dir: dir.to_owned(), run, keep: keep.max(1) })
    }

    /// The files, oldest first.
    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(TrainError::io(&self.dir))? {
            let path = entry.map_err(TrainError::io(&self.dir))?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with("step-") && name.ends_with(".safetensors") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Writes the state after `adam.step` steps.
    ///
    /// # Errors
    /// `Io`, with the file's name.
    pub fn save(&self, clip: &Clip, adam: &AdamW, log: &[LogRow]) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in clip.state() {
            tensors.insert(format!("weights/{name}"), tensor);
        }
        let device = &Device::Cpu;
        for (name, moments) in &adam.moments {
            tensors.insert(format!("m/{name}"), Tensor::from_slice(&moments.m, moments.m.len(), device)?);
            tensors.insert(format!("v/{name}"), Tensor::from_slice(&moments.v, moments.v.len(), device)?);
        }
        let rows: Vec<f64> = log.iter().flat_map(LogRow::to_numbers).collect();
        tensors.insert("log".into(), Tensor::from_vec(rows, (log.len(), COLUMNS), device)?);
        let metadata = [("step".to_owned(), adam.step.to_string()), ("run".to_owned(), self.run.clone())];
        let bytes = weights::to_bytes(&tensors, Some(HashMap::from(metadata)))?;
        weights::write_whole(&self.dir.join(format!("step-{:010}.safetensors", adam.step)), &bytes)?;
        let files = self.files()?;
        for old in &files[..files.len().saturating_sub(self.keep)] {
            std::fs::remove_file(old).map_err(TrainError::io(old))?;
        }
        Ok(())
    }

    /// Puts the newest checkpoint into `clip` and `adam` and returns the log up to it; nothing happens where there is
    /// none.
    ///
    /// # Errors
    /// `Checkpoint` when it is damaged or of another training.
    pub fn restore(&self, clip: &Clip, adam: &mut AdamW) -> Result<Vec<LogRow>> {
        let Some(path) = self.files()?.pop() else { return Ok(Vec::new()) };
        let bytes = std::fs::read(&path).map_err(TrainError::io(&path))?;
        let damaged = |problem: String| TrainError::Checkpoint { path: path.clone(), problem };
        let broken = |e: &dyn std::fmt::Display| damaged(format!("not a checkpoint, or a damaged one ({e})"));
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(&e))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        if metadata.get("run") != Some(&self.run) {
            return Err(damaged("it belongs to a training with other options or data".into()));
        }
        let step = metadata
            .get("step")
            .and_then(|s| s.parse().ok())
            .ok_or_else(|| damaged("it names no step".into()))?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|e| broken(&e))?;
        let get = |name: String| tensors.get(&name).ok_or_else(|| damaged(format!("`{name}` is missing")));
        for (name, buffer) in clip.buffers() {
            buffer.set(get(format!("weights/{name}"))?)?;
        }
        for (name, variable) in clip.variables() {
            variable.set(get(format!("weights/{name}"))?)?;
            let (m, v) = (get(format!("m/{name}"))?.to_vec1()?, get(format!("v/{name}"))?.to_vec1()?);
            adam.moments.insert(name.clone(), Moments { m, v });
        }
        adam.step = step;
        let rows = get("log".into())?.to_vec2::<f64>()?;
        rows.iter()
            .map(|row| LogRow::from_numbers(row).ok_or_else(|| damaged("its log is damaged".into())))
            .collect()
    }
}
