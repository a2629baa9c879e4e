//! Ranks that are processes: what they tell each other besides the sums of a step.
//!
//! All ranks pass through the same points in the same order, so that each knows what the others
//! send. Rank 0 keeps the log, evaluates, and writes checkpoints; the others get their state from
//! it, so they need no files of an earlier training.

use crate::batch::BatchSource;
use crate::error::Result;
use crate::moments::Moments;
use crate::optimizer::AdamW;
use crate::options::TrainOptions;
use candle_core::{Tensor, Var};
use std::sync::Arc;
use twinlens_model::Clip;
use twinlens_ranks::{Collective, RankError};

/// The processes that train together, of which this is one.
#[derive(Clone, Debug)]
pub struct Processes {
    pub ranks: Arc<dyn Collective>,
    /// Threads that this one computes on.
    pub threads: usize,
}

impl Processes {
    /// Checks that all ranks are about to do the same, and gives all the state of rank 0.
    ///
    /// # Errors
    /// `Ranks` if a rank has other options, other data or another model, or has exited.
    pub(crate) fn begin(
        &self,
        (clip, adam): (&Clip, &mut AdamW),
        options: &TrainOptions,
        data: &dyn BatchSource,
    ) -> Result<()> {
        // Each rank may prefetch what its memory holds.
        let options = TrainOptions { prefetch_bytes: 0, ..options.clone() };
        self.agree("options", &format!("{options:?} {:?}", clip.config()))?;
        self.agree("data", &data.identity()?)?;
        let names: Vec<&String> = adam.moments.keys().collect();
        self.agree("trainable variables", &format!("{names:?}"))?;
        self.share_state(clip, adam)
    }

    /// Checks that all ranks have the same text.
    fn agree(&self, what: &str, own: &str) -> Result<()> {
        let all = self.ranks.all_gather_bytes(own.as_bytes())?;
        let Some(rank) = all.iter().position(|other| *other != all[0]) else { return Ok(()) };
        let text = |rank: usize| String::from_utf8_lossy(&all[rank]).into_owned();
        let message = format!("rank {rank} has other {what}: {}; rank 0 has {}", text(rank), text(0));
        let hint = "all ranks must run the same program on the same pipeline file and the same files";
        Err(RankError::setup(message, hint).into())
    }

    fn share_state(&self, clip: &Clip, adam: &mut AdamW) -> Result<()> {
        let mut step = adam.step.to_le_bytes().to_vec();
        self.ranks.broadcast_bytes(&mut step)?;
        let step = step.try_into().map_err(|_| RankError::OutOfStep("the step of rank 0".into()))?;
        adam.step = u64::from_le_bytes(step);
        for variable in clip.variables().values().chain(clip.buffers().values()) {
            self.share_variable(variable)?;
        }
        adam.copy_from_device()?;
        for Moments { m, v } in adam.moments.values_mut() {
            self.ranks.broadcast(m)?;
            self.ranks.broadcast(v)?;
        }
        Ok(())
    }

    fn share_variable(&self, variable: &Var) -> Result<()> {
        let mut values = variable.flatten_all()?.to_vec1::<f32>()?;
        self.ranks.broadcast(&mut values)?;
        if self.ranks.rank() > 0 {
            variable.set(&Tensor::from_vec(values, variable.shape(), variable.device())?)?;
        }
        Ok(())
    }

    /// Gives all ranks the rows that any has rejected, before rank 0 writes a checkpoint: no later
    /// run would see them again.
    pub(crate) fn exchange_rejects(&self, data: &dyn BatchSource) -> Result<()> {
        for rejects in self.ranks.all_gather_bytes(&data.take_rejects()?)? {
            data.merge_rejects(&rejects)?;
        }
        Ok(())
    }

    /// Checks that the replicas of all ranks are the same, as they must be if each computed the
    /// same steps: a damaged memory or another processor would otherwise go unnoticed.
    pub(crate) fn check_replicas(&self, clip: &Clip) -> Result<()> {
        let mut hash = crc32fast::Hasher::new();
        for variable in clip.variables().values() {
            for value in variable.flatten_all()?.to_vec1::<f32>()? {
                hash.update(&value.to_le_bytes());
            }
        }
        let hash = hash.finalize().to_le_bytes();
        let all = self.ranks.all_gather_bytes(&hash)?;
        let Some(rank) = all.iter().position(|other| *other != all[0]) else { return Ok(()) };
        let message = format!("rank {rank} computed other weights than rank 0");
        let hint = "use the same kind of processor for all ranks, and check the memory of that machine; the \
                    same command resumes from the last checkpoint";
        Err(RankError::setup(message, hint).into())
    }
}
