//! Checkpoints: the whole state of a training in one safetensors file.
//!
//! A checkpoint holds weights and moments by name, the moving average of the weights, the log and
//! the evaluations so far; its metadata holds the step and an identifier of the training. Data and
//! random draws depend only on seed and step. Files are written to a temporary name, fsynced and
//! renamed, so no partial checkpoint is ever visible. Their names end in the CRC-32 of their
//! content: a damaged one is never resumed from. Only the newest few are kept.
//!
//! The directory also holds weights without state: of the best step, and of every `keep_every`
//! steps. A training that resumes from an earlier checkpoint writes the same files again.

use crate::error::{Result, TrainError};
use crate::log::{COLUMNS, LogRow};
use crate::measure::{self, Measurement};
use crate::optimizer::{AdamW, Moments};
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use twinlens_model::reference::Tensors;
use twinlens_model::{Clip, weights};

/// The state of a training, besides the weights.
pub struct TrainState {
    /// The optimiser, which counts the steps.
    pub adam: AdamW,
    /// The moving average of the weights, if enabled.
    pub ema: Option<Clip>,
    /// One row per step.
    pub log: Vec<LogRow>,
    pub measurements: Vec<Measurement>,
}

/// The directory of a training's checkpoints.
pub struct Checkpoints {
    dir: PathBuf,
    /// Identifies the training: its options, data and model.
    run: String,
    keep: usize,
}

impl Checkpoints {
    /// Creates `dir`, which keeps the newest `keep` checkpoints. `run` identifies the training;
    /// checkpoints of another training are rejected.
    ///
    /// # Errors
    /// `Io` if the directory cannot be created.
    pub fn new(dir: &Path, run: String, keep: usize) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(TrainError::io(dir))?;
        // Or else a power cut may take the directory with all checkpoints.
        if let Some(parent) = dir.parent() {
            std::fs::File::open(parent).and_then(|parent| parent.sync_all()).map_err(TrainError::io(dir))?;
        }
        Ok(Self { dir: dir.to_owned(), run, keep: keep.max(1) })
    }

    /// The files whose names begin with `prefix`, oldest first.
    fn files(&self, prefix: &str) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(TrainError::io(&self.dir))? {
            let path = entry.map_err(TrainError::io(&self.dir))?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with(prefix) && name.ends_with(".safetensors") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Writes the state after `state.adam.step` steps.
    ///
    /// # Errors
    /// `Io`, with the path.
    pub(crate) fn save(&self, clip: &Clip, state: &TrainState) -> Result<()> {
        let mut tensors = BTreeMap::new();
        let means = state.ema.iter().flat_map(Clip::state);
        let named = clip.state().into_iter().map(|(name, t)| (format!("weights/{name}"), t));
        tensors.extend(named.chain(means.map(|(name, t)| (format!("ema/{name}"), t))));
        let device = &Device::Cpu;
        for (name, moments) in &state.adam.moments {
            tensors.insert(format!("m/{name}"), Tensor::from_slice(&moments.m, moments.m.len(), device)?);
            tensors.insert(format!("v/{name}"), Tensor::from_slice(&moments.v, moments.v.len(), device)?);
        }
        let rows: Vec<f64> = state.log.iter().flat_map(|row| row.to_numbers()).collect();
        tensors.insert("log".into(), Tensor::from_vec(rows, (state.log.len(), COLUMNS), device)?);
        let (names, numbers) = measure::to_parts(&state.measurements);
        tensors.insert(
            "measured".into(),
            Tensor::from_vec(numbers, (state.measurements.len(), measure::NUMBERS), device)?,
        );
        let step = state.adam.step;
        let metadata = [("step", step.to_string()), ("run", self.run.clone()), ("measured", names)];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
        let bytes = weights::to_bytes(&tensors, Some(HashMap::from(metadata)))?;
        self.write(&format!("step-{step:010}"), &bytes)?;
        let files = self.files("step-")?;
        for old in &files[..files.len().saturating_sub(self.keep)] {
            std::fs::remove_file(old).map_err(TrainError::io(old))?;
        }
        Ok(())
    }

    /// Restores `clip` and `state` from the newest sound checkpoint, if there is one. Returns the
    /// errors of newer ones.
    ///
    /// # Errors
    /// `Checkpoint` if all are damaged, or one belongs to another training.
    pub fn restore(&self, clip: &Clip, state: &mut TrainState) -> Result<Vec<TrainError>> {
        let mut skipped = Vec::new();
        for path in self.files("step-")?.into_iter().rev() {
            match read_sealed(&path) {
                Ok(bytes) => {
                    self.restore_from(&path, &bytes, clip, state)?;
                    return Ok(skipped);
                }
                Err(error @ TrainError::Checkpoint { .. }) => skipped.push(error),
                Err(error) => return Err(error),
            }
        }
        match skipped.is_empty() {
            true => Ok(skipped),
            false => Err(skipped.swap_remove(0)),
        }
    }

    fn restore_from(&self, path: &Path, bytes: &[u8], clip: &Clip, state: &mut TrainState) -> Result<()> {
        let damaged = |problem: String| TrainError::Checkpoint { path: path.into(), problem };
        let broken = |e: &dyn std::fmt::Display| damaged(format!("not a checkpoint, or damaged ({e})"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| broken(&e))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        if metadata.get("run") != Some(&self.run) {
            return Err(damaged("it belongs to a training with other options or data".into()));
        }
        let step = metadata
            .get("step")
            .and_then(|s| s.parse().ok())
            .ok_or_else(|| damaged("its step is missing".into()))?;
        let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|e| broken(&e))?;
        let get = |name: String| tensors.get(&name).ok_or_else(|| damaged(format!("`{name}` is missing")));
        for (part, model) in [("weights", Some(clip)), ("ema", state.ema.as_ref())] {
            for (name, variable) in model.iter().flat_map(|m| m.variables().iter().chain(m.buffers())) {
                variable.set(&get(format!("{part}/{name}"))?.to_device(variable.device())?)?;
            }
        }
        for (name, moments) in &mut state.adam.moments {
            let (m, v) = (get(format!("m/{name}"))?.to_vec1()?, get(format!("v/{name}"))?.to_vec1()?);
            *moments = Moments { m, v };
        }
        state.adam.step = step;
        let rows = get("log".into())?.to_vec2::<f64>()?;
        let rows = rows.iter().map(|row| LogRow::from_numbers(row));
        state.log = rows.collect::<Option<_>>().ok_or_else(|| damaged("its log is damaged".into()))?;
        let names = metadata.get("measured").map_or("[]", String::as_str);
        let numbers = get("measured".into())?.to_vec2::<f64>()?;
        state.measurements = measure::from_parts(names, &numbers)
            .ok_or_else(|| damaged("its evaluations are damaged".into()))?;
        Ok(())
    }

    /// Writes the weights of the best step so far, replacing earlier ones.
    ///
    /// # Errors
    /// `Io`, with the path.
    pub(crate) fn save_best(&self, clip: &Clip, step: u64) -> Result<()> {
        self.write_weights(clip, &format!("best-{step:010}"))?;
        let files = self.files("best-")?;
        for old in &files[..files.len() - 1] {
            std::fs::remove_file(old).map_err(TrainError::io(old))?;
        }
        Ok(())
    }

    /// Writes the weights of a step, to be kept permanently.
    ///
    /// # Errors
    /// `Io`, with the path.
    pub(crate) fn save_kept(&self, clip: &Clip, step: u64) -> Result<()> {
        self.write_weights(clip, &format!("kept-{step:010}"))
    }

    fn write_weights(&self, clip: &Clip, name: &str) -> Result<()> {
        self.write(name, &weights::to_bytes(&clip.state(), None)?)
    }

    /// Writes a file; the name of a step is that of one file.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.dir.join(format!("{name}-{:08x}.safetensors", crc32fast::hash(bytes)));
        weights::write_atomically(&path, bytes)?;
        // A training that resumes from an earlier checkpoint writes the same bytes again; others
        // under this name are damaged.
        for other in self.files(&format!("{name}-"))?.into_iter().filter(|other| *other != path) {
            std::fs::remove_file(&other).map_err(TrainError::io(&other))?;
        }
        Ok(())
    }

    /// The weights of the best step, by name.
    ///
    /// # Errors
    /// `Io` or `Model` if they cannot be read.
    pub(crate) fn best(&self) -> Result<Tensors> {
        let missing = || TrainError::Checkpoint {
            path: self.dir.clone(),
            problem: "the weights of the best step are missing".into(),
        };
        let path = self.files("best-")?.pop().ok_or_else(missing)?;
        let tensors = candle_core::safetensors::load_buffer(&read_sealed(&path)?, &Device::Cpu)?;
        Ok(tensors.into_iter().collect())
    }

    /// The files of [`save_kept`](Self::save_kept) with their steps, oldest first.
    ///
    /// # Errors
    /// `Io`, with the directory.
    pub(crate) fn kept(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut kept = Vec::new();
        for path in self.files("kept-")? {
            let step = seal(&path).and_then(|(name, _)| name.strip_prefix("kept-")?.parse().ok());
            let Some(step) = step else { continue };
            read_sealed(&path)?;
            kept.push((step, path));
        }
        Ok(kept)
    }
}

/// The name of a file and the CRC-32 of its content.
fn seal(path: &Path) -> Option<(&str, u32)> {
    let (name, crc) = path.file_stem()?.to_str()?.rsplit_once('-')?;
    Some((name, u32::from_str_radix(crc, 16).ok().filter(|_| crc.len() == 8)?))
}

/// Reads a file that has the CRC-32 of its content in its name.
fn read_sealed(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(TrainError::io(path))?;
    let problem = match seal(path) {
        Some((_, crc)) if crc == crc32fast::hash(&bytes) => return Ok(bytes),
        Some(_) => "damaged: its content is not what was written",
        None => "its name does not end in the CRC-32 of its content",
    };
    Err(TrainError::Checkpoint { path: path.into(), problem: problem.into() })
}
