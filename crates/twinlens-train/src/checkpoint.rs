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
use crate::moments::Moments;
use crate::optimizer::AdamW;
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use twinlens_model::reference::Tensors;
use twinlens_model::{Clip, weights};

/// What the names of checkpoints begin with.
pub(crate) const STEPS: &str = "step-";
/// Parts of a checkpoint.
pub(crate) const CHANGES: &str = "changes";
const STATE: &str = "state";
const STEP: &str = "step";
const RUN: &str = "run";
const MEASURED: &str = "measured";
const LOG: &str = "log";

/// The state of a training, besides the weights.
pub struct TrainState {
    /// The optimiser, which counts the steps.
    pub adam: AdamW,
    /// The moving average of the weights, if enabled.
    pub ema: Option<Clip>,
    /// One row per step.
    pub log: Vec<LogRow>,
    pub measurements: Vec<Measurement>,
    /// What changed when the training was continued, by the first step after it.
    pub changes: BTreeMap<u64, String>,
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

    fn files(&self, prefix: &str) -> Result<Vec<PathBuf>> {
        files(&self.dir, prefix)
    }

    /// Writes the state after `state.adam.step` steps, with the moments of all variables.
    ///
    /// # Errors
    /// `Io`, with the path.
    pub(crate) fn save(&self, clip: &Clip, state: &TrainState, moments: &AllMoments) -> Result<()> {
        let (step, bytes) = (state.adam.step, to_bytes((clip, moments), state, &state.log, &self.run)?);
        self.write(&format!("{STEPS}{step:010}"), &bytes)?;
        let files = self.files(STEPS)?;
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
        for path in self.files(STEPS)?.into_iter().rev() {
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
        let content = Content::parse(path, bytes)?;
        if content.metadata.get(RUN) != Some(&self.run) {
            return Err(damaged("it belongs to a training with other options or data".into()));
        }
        let get =
            |name: String| content.tensors.get(&name).ok_or_else(|| damaged(format!("`{name}` is missing")));
        for (part, model) in [("weights", Some(clip)), ("ema", state.ema.as_ref())] {
            for (name, variable) in model.iter().flat_map(|m| m.variables().iter().chain(m.buffers())) {
                variable.set(&get(format!("{part}/{name}"))?.to_device(variable.device())?)?;
            }
        }
        for (name, moments) in &mut state.adam.moments {
            let (m, v) = (get(format!("m/{name}"))?.to_vec1()?, get(format!("v/{name}"))?.to_vec1()?);
            *moments = Moments { m, v };
        }
        state.adam.step = content.step()?;
        state.log = content.log()?;
        state.measurements = content.measurements()?;
        state.changes = content.changes()?;
        Ok(())
    }

    /// Whether no checkpoint exists, not even a damaged one.
    ///
    /// # Errors
    /// `Io`, with the directory.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.files(STEPS)?.is_empty())
    }

    /// Writes the content of a checkpoint of another training as one of this training.
    ///
    /// # Errors
    /// `Io`, with the path.
    pub(crate) fn adopt(&self, mut content: Content) -> Result<()> {
        let step = content.step()?;
        content.metadata.insert(RUN.into(), self.run.clone());
        let tensors: BTreeMap<String, Tensor> = content.tensors.into_iter().collect();
        self.write(&format!("{STEPS}{step:010}"), &serialise(&tensors, &content.metadata)?)
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

/// The checkpoints in `dir` whose names begin with `prefix`, oldest first.
pub(crate) fn files(dir: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(TrainError::io(dir))? {
        let path = entry.map_err(TrainError::io(dir))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with(prefix) && name.ends_with(".safetensors") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The moments of all variables, by name.
type AllMoments = BTreeMap<String, Moments>;

/// A state as the content of a file.
pub(crate) fn to_bytes(
    (clip, moments): (&Clip, &AllMoments),
    state: &TrainState,
    log: &[LogRow],
    run: &str,
) -> Result<Vec<u8>> {
    let mut tensors = BTreeMap::new();
    let means = state.ema.iter().flat_map(Clip::state);
    let named = clip.state().into_iter().map(|(name, t)| (format!("weights/{name}"), t));
    tensors.extend(named.chain(means.map(|(name, t)| (format!("ema/{name}"), t))));
    let device = &Device::Cpu;
    for (name, moments) in moments {
        tensors.insert(format!("m/{name}"), Tensor::from_slice(&moments.m, moments.m.len(), device)?);
        tensors.insert(format!("v/{name}"), Tensor::from_slice(&moments.v, moments.v.len(), device)?);
    }
    tensors.insert(LOG.into(), log_tensor(log)?);
    let (names, numbers) = measure::to_parts(&state.measurements);
    tensors.insert(
        MEASURED.into(),
        Tensor::from_vec(numbers, (state.measurements.len(), measure::NUMBERS), device)?,
    );
    let changes = serde_json::json!(state.changes).to_string();
    let step = state.adam.step.to_string();
    let metadata = [(STEP, step), (RUN, run.into()), (MEASURED, names), (CHANGES, changes)];
    serialise(&tensors, &metadata.map(|(key, value)| (key.to_owned(), value)).into())
}

/// The entries of the header are in no order: one entry makes the same bytes each time.
fn serialise(tensors: &BTreeMap<String, Tensor>, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let text = serde_json::json!(metadata).to_string();
    Ok(weights::to_bytes(tensors, Some(HashMap::from([(STATE.to_owned(), text)])))?)
}

/// A checkpoint in memory.
pub(crate) struct Content {
    path: PathBuf,
    pub(crate) tensors: HashMap<String, Tensor>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Content {
    /// `path` is for errors.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let broken = |e: &dyn std::fmt::Display| {
            let problem = format!("not a checkpoint, or damaged ({e})");
            TrainError::Checkpoint { path: path.into(), problem }
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| broken(&e))?;
        let metadata = header.metadata().as_ref().and_then(|entries| entries.get(STATE));
        let metadata = metadata.map_or("{}", String::as_str);
        let metadata = serde_json::from_str(metadata).map_err(|e| broken(&e))?;
        let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu).map_err(|e| broken(&e))?;
        Ok(Self { path: path.into(), tensors, metadata })
    }

    pub(crate) fn damaged(&self, what: &str) -> TrainError {
        TrainError::Checkpoint { path: self.path.clone(), problem: what.into() }
    }

    pub(crate) fn step(&self) -> Result<u64> {
        let step = self.metadata.get(STEP).and_then(|step| step.parse().ok());
        step.ok_or_else(|| self.damaged("its step is missing"))
    }

    fn numbers(&self, name: &str) -> Result<Vec<Vec<f64>>> {
        let tensor = self.tensors.get(name).ok_or_else(|| self.damaged(&format!("`{name}` is missing")))?;
        Ok(tensor.to_vec2::<f64>()?)
    }

    pub(crate) fn log(&self) -> Result<Vec<LogRow>> {
        let rows = self.numbers(LOG)?.iter().map(|row| LogRow::from_numbers(row)).collect::<Option<_>>();
        rows.ok_or_else(|| self.damaged("its log is damaged"))
    }

    pub(crate) fn set_log(&mut self, log: &[LogRow]) -> Result<()> {
        self.tensors.insert(LOG.into(), log_tensor(log)?);
        Ok(())
    }

    fn measurements(&self) -> Result<Vec<Measurement>> {
        let names = self.metadata.get(MEASURED).map_or("[]", String::as_str);
        let measurements = measure::from_parts(names, &self.numbers(MEASURED)?);
        measurements.ok_or_else(|| self.damaged("its evaluations are damaged"))
    }

    /// In a checkpoint from before there were any, none.
    pub(crate) fn changes(&self) -> Result<BTreeMap<u64, String>> {
        let text = self.metadata.get(CHANGES).map_or("{}", String::as_str);
        serde_json::from_str(text).map_err(|_| self.damaged("its list of changes is damaged"))
    }
}

fn log_tensor(log: &[LogRow]) -> Result<Tensor> {
    let rows: Vec<f64> = log.iter().flat_map(|row| row.to_numbers()).collect();
    Ok(Tensor::from_vec(rows, (log.len(), COLUMNS), &Device::Cpu)?)
}

/// The name of a file and the CRC-32 of its content.
fn seal(path: &Path) -> Option<(&str, u32)> {
    let (name, crc) = path.file_stem()?.to_str()?.rsplit_once('-')?;
    Some((name, u32::from_str_radix(crc, 16).ok().filter(|_| crc.len() == 8)?))
}

/// Reads a file that has the CRC-32 of its content in its name.
pub(crate) fn read_sealed(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(TrainError::io(path))?;
    let problem = match seal(path) {
        Some((_, crc)) if crc == crc32fast::hash(&bytes) => return Ok(bytes),
        Some(_) => "damaged: its content is not what was written",
        None => "its name does not end in the CRC-32 of its content",
    };
    Err(TrainError::Checkpoint { path: path.into(), problem: problem.into() })
}
