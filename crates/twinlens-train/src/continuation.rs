//! Continues a training with other options: the state of the earlier one becomes the first
//! checkpoint of the new one, which resumes from it.

use crate::checkpoint::{self, CHANGES, Checkpoints, Content, STEPS, TrainState};
use crate::error::{Result, TrainError};
use crate::log::LogRow;
use crate::moments::Moments;
use crate::options::Batches;
use std::collections::BTreeMap;
use std::path::Path;
use twinlens_model::Clip;

/// The state that a finished training leaves beside its model.
pub const STATE_FILE: &str = "state.safetensors";

/// The content of [`STATE_FILE`]: a checkpoint without the times in its log, so that equal
/// trainings leave equal files.
pub(crate) fn to_bytes(
    clip: &Clip,
    state: &TrainState,
    moments: &BTreeMap<String, Moments>,
) -> Result<Vec<u8>> {
    let timeless = |row: &LogRow| LogRow { samples_per_second: 0.0, wall: 0, ..*row };
    let log: Vec<LogRow> = state.log.iter().map(timeless).collect();
    checkpoint::to_bytes((clip, moments), state, &log, "")
}

/// The state of a training that another one continues.
pub struct Earlier {
    content: Content,
    /// One row per step; of a finished training without times.
    pub log: Vec<LogRow>,
}

impl Earlier {
    /// Reads the state of a finished training.
    ///
    /// # Errors
    /// `Io`, or `Checkpoint` if it is damaged.
    pub fn finished(file: &Path) -> Result<Self> {
        let bytes = std::fs::read(file).map_err(TrainError::io(file))?;
        Self::new(Content::parse(file, &bytes)?)
    }

    /// Reads the newest sound checkpoint of an unfinished training; `None` if there is none.
    ///
    /// # Errors
    /// `Io`.
    pub fn unfinished(checkpoints: &Path) -> Result<Option<Self>> {
        for file in checkpoint::files(checkpoints, STEPS)?.into_iter().rev() {
            if let Ok(bytes) = checkpoint::read_sealed(&file) {
                return Self::new(Content::parse(&file, &bytes)?).map(Some);
            }
        }
        Ok(None)
    }

    fn new(content: Content) -> Result<Self> {
        let log = content.log()?;
        if log.len() as u64 != content.step()? {
            return Err(content.damaged("its log has not as many rows as there were steps"));
        }
        Ok(Self { content, log })
    }

    /// Its steps, in batches of these sizes.
    pub fn batches(&self) -> Vec<Batches> {
        let (mut parts, mut seen) = (Vec::<Batches>::new(), 0);
        for row in &self.log {
            let size = row.samples_seen.saturating_sub(seen) as usize;
            seen = row.samples_seen;
            match parts.last_mut() {
                Some(part) if part.size == size => part.steps += 1,
                _ => parts.push(Batches { steps: 1, size }),
            }
        }
        parts
    }

    /// Writes it as the first checkpoint of a training of `clip`. `change` says what is different
    /// from its last step on.
    ///
    /// # Errors
    /// `Options` if it is the state of another model or has no moments of a variable. `Io`.
    pub fn begin(
        mut self,
        checkpoints: &Checkpoints,
        clip: &Clip,
        has_ema: bool,
        change: Option<String>,
    ) -> Result<()> {
        self.check(clip)?;
        let tensors = &mut self.content.tensors;
        let trainable = clip.trainable();
        tensors.retain(|name, _| match name.split_once('/') {
            Some(("m" | "v", variable)) => trainable.contains_key(variable),
            Some(("ema", _)) => has_ema,
            _ => true,
        });
        if has_ema && !tensors.keys().any(|name| name.starts_with("ema/")) {
            // An average that begins now begins with the weights of now.
            let weights = tensors.iter().filter_map(|(name, tensor)| {
                Some((format!("ema/{}", name.strip_prefix("weights/")?), tensor.clone()))
            });
            let averages: Vec<_> = weights.collect();
            tensors.extend(averages);
        }
        let mut changes = self.content.changes()?;
        changes.extend(change.map(|change| (self.log.len() as u64 + 1, change)));
        self.content.metadata.insert(CHANGES.into(), serde_json::json!(changes).to_string());
        self.content.set_log(&self.log)?;
        checkpoints.adopt(self.content)
    }

    fn check(&self, clip: &Clip) -> Result<()> {
        let tensors = &self.content.tensors;
        for (name, own) in clip.state() {
            let problem = match tensors.get(&format!("weights/{name}")) {
                None => format!("it has no `{name}`"),
                Some(theirs) if theirs.dims() != own.dims() => {
                    format!("its `{name}` is {:?}, not {:?}", theirs.dims(), own.dims())
                }
                Some(_) => continue,
            };
            let message = format!("the training to continue is of another model: {problem}");
            return Err(TrainError::Options(message));
        }
        let has_moments = |name: &String| tensors.contains_key(&format!("m/{name}"));
        match clip.trainable().keys().find(|name| !has_moments(name)) {
            None => Ok(()),
            Some(name) => Err(TrainError::Options(format!(
                "the training to continue had `{name}` frozen, so there are no moments of it; freeze it again, or leave out \
                 `optimizer`"
            ))),
        }
    }
}
