//! One training step on one rank: the gradients of a batch and the optimiser's update.
//!
//! A batch that is a single micro-batch on one rank uses [`Clip::loss`]. Otherwise each rank
//! processes its rows of the batch in micro-batches (gradient caching). The result is the same up
//! to rounding, except that batch norm uses the statistics of a micro-batch (the same in both
//! passes), and that running statistics are updated once per micro-batch and averaged over ranks
//! after the step.

use crate::batch::Batch;
use crate::error::{Result, TrainError};
use crate::optimizer::{AdamW, Gradients, StepError};
use crate::schedule::Schedule;
use candle_core::Tensor;
use twinlens_model::weights::Variables;
use twinlens_model::{Block, Clip, Features, Pass, Tower};
use twinlens_ranks::Collective;

/// Makes the steps of one rank.
pub struct Stepper<'a> {
    /// The rank's replica.
    pub clip: &'a Clip,
    /// The trainable variables.
    pub variables: Variables,
    pub ranks: &'a dyn Collective,
    /// Pairs per forward pass.
    pub micro_batch: usize,
    pub schedule: Schedule,
    /// Whether to abandon the step; all ranks do if one says so.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

/// The numbers of a completed step.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Loss of the whole batch, before the step.
    pub loss: f64,
    pub lr: f64,
    /// Global norm of the gradients, before clipping.
    pub grad_norm: f64,
}

/// A rank's share of a step.
struct Share {
    loss: f64,
    /// Of the rank's own rows.
    gradients: Gradients,
    /// Other variables', summed over all ranks already.
    summed: Gradients,
}

/// Numbers per all-reduce.
const BUCKET: usize = 1 << 22;

impl Stepper<'_> {
    /// Makes a step on this rank's rows of a batch. `None` if it was abandoned, without side
    /// effects.
    ///
    /// # Errors
    /// `NotFinite` if loss or gradients are; the caller sets `previous_loss`.
    pub fn step(&self, adam: &mut AdamW, batch: &Batch) -> Result<Option<Step>> {
        let running = self.running_statistics()?;
        let Some((loss, gradients)) = self.gradients(batch)? else {
            self.set_running_statistics(&running)?;
            return Ok(None);
        };
        let lr = self.schedule.rate(adam.step);
        let step = adam.step + 1;
        let not_finite = |what: String, value: f64| TrainError::NotFinite {
            step,
            what,
            value,
            previous_loss: f64::NAN,
            lr,
            logit_scale: f64::from(self.clip.logit_scale()),
        };
        if !loss.is_finite() {
            return Err(not_finite("the loss".into(), loss));
        }
        let grad_norm = match adam.step(&self.variables, &gradients, lr) {
            Ok(norm) => norm,
            Err(StepError::NotFinite { variable, value }) => {
                return Err(not_finite(format!("the gradient of {variable}"), value));
            }
            Err(StepError::Tensor(error)) => return Err(error.into()),
        };
        adam.share_weights(&self.variables, self.ranks)?;
        if !self.clip.is_frozen("logit_scale") {
            self.clip.clamp_logit_scale()?;
        }
        if self.ranks.size() > 1 && !running.is_empty() {
            let mut sums = self.running_statistics()?;
            self.ranks.all_reduce_sum(&mut sums)?;
            let ranks = self.ranks.size() as f32;
            sums.iter_mut().for_each(|sum| *sum /= ranks);
            self.set_running_statistics(&sums)?;
        }
        Ok(Some(Step { loss, lr, grad_norm }))
    }

    /// The loss of the whole batch and its gradients, equal on all ranks. `None` if the step was
    /// abandoned.
    pub fn gradients(&self, batch: &Batch) -> Result<Option<(f64, Gradients)>> {
        let rows = batch.ids.dim(0)?;
        if self.ranks.size() == 1 && self.micro_batch >= rows {
            let loss = self.clip.loss(&batch.pixels, &batch.ids)?;
            let value = f64::from(loss.to_scalar::<f32>()?);
            // Returning drops the graph, which holds every activation.
            return Ok(Some((value, Gradients::from_store(&self.variables, &loss.backward()?)?)));
        }
        let micro = self.micro_batch.min(rows);
        let parts = (0..rows).step_by(micro).map(|first| batch.rows(first, micro.min(rows - first)));
        let parts: Vec<Batch> = parts.collect::<Result<_>>()?;
        let share = if self.clip.config().objective.embeds_texts() {
            self.embedding_gradients(&parts)?
        } else {
            self.prediction_gradients(&parts)?
        };
        let Some(Share { loss, mut gradients, summed }) = share else { return Ok(None) };
        let mut loss = [loss as f32];
        self.ranks.all_reduce_sum(&mut loss)?;
        self.sum(&mut gradients)?;
        gradients.extend(summed);
        Ok(Some((f64::from(loss[0]), gradients)))
    }

    /// Sums gradients over all ranks.
    fn sum(&self, gradients: &mut Gradients) -> Result<()> {
        if self.ranks.size() == 1 {
            return Ok(());
        }
        gradients.reduce(BUCKET, |bucket| Ok(self.ranks.all_reduce_sum(bucket)?))
    }

    /// This rank's share of loss and gradients for an objective that compares embeddings. Those of
    /// the image tower are complete before the last backward pass of the text tower begins, and are
    /// summed meanwhile.
    fn embedding_gradients(&self, parts: &[Batch]) -> Result<Option<Share>> {
        // The first part keeps its graph; the other parts need a second forward pass.
        let mut features = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            if self.should_stop()? {
                return Ok(None);
            }
            let pass = if index == 0 { Pass::Train } else { Pass::Preview };
            features.push([self.encode(Tower::Image, part, pass)?, self.encode(Tower::Text, part, pass)?]);
        }
        let own = |tower: usize| -> Result<Tensor> {
            let parts: Vec<Tensor> = features.iter().map(|f: &[Tensor; 2]| f[tower].detach()).collect();
            Ok(Tensor::cat(&parts, 0)?)
        };
        let own = [own(0)?, own(1)?];
        let mut kept = features.into_iter().next();
        let share = if self.ranks.size() > 1 && self.clip.adds_up()? {
            self.ring_share(&own)?
        } else {
            self.gathered_share(&own)?
        };
        let (mut gradients, mut summed) = (Gradients::default(), Gradients::default());
        let mut row = 0;
        for (number, part) in parts.iter().enumerate() {
            if row > 0 && self.should_stop()? {
                return Ok(None);
            }
            let (images, texts) =
                kept.take().map_or((None, None), |[images, texts]| (Some(images), Some(texts)));
            let rows = part.ids.dim(0)?;
            let of_images = share.image.narrow(0, row, rows)?;
            let of_texts = share.text.narrow(0, row, rows)?;
            self.backward(&mut gradients, (Tower::Image, part), images, &of_images)?;
            if number + 1 < parts.len() {
                self.backward(&mut gradients, (Tower::Text, part), texts, &of_texts)?;
            } else {
                summed = gradients.split_off(|name| Tower::of(name) == Some(Tower::Image));
                // No other operation of the ranks is called meanwhile.
                std::thread::scope(|scope| {
                    let sum = scope.spawn(|| self.sum(&mut summed));
                    let text = self.backward(&mut gradients, (Tower::Text, part), texts, &of_texts);
                    sum.join().map_err(|_| TrainError::Panicked("training"))??;
                    text
                })?;
            }
            row += rows;
        }
        for (name, value) in share.scalars {
            if self.variables.contains_key(name) {
                gradients.insert(name, Tensor::new(value, self.clip.device())?);
            }
        }
        Ok(Some(Share { loss: share.loss, gradients, summed }))
    }

    /// The share of this rank's features (`[rows, embed]` of images and texts), compared with those
    /// of all ranks.
    fn gathered_share(&self, own: &[Tensor; 2]) -> Result<twinlens_model::Share> {
        let (image, text) = (self.gather(&own[0])?, self.gather(&own[1])?);
        let rows = own[0].dim(0)?;
        let first = rows * self.ranks.rank();
        let all = Features { image: &image, text: &text, own: first..first + rows };
        let [images, texts] = self.clip.log_sums(&all)?;
        let log_sums = [self.ranks.all_gather(&images)?, self.ranks.all_gather(&texts)?];
        Ok(self.clip.share(&all, &log_sums)?)
    }

    /// As [`gathered_share`](Self::gathered_share), for an objective whose shares add up: the
    /// features of the other ranks pass by in a ring, so that no rank holds those of all (Zhai et
    /// al. 2023, section 3.2). Those of the next rank come while these are compared.
    fn ring_share(&self, own: &[Tensor; 2]) -> Result<twinlens_model::Share> {
        let (rank, size) = (self.ranks.rank(), self.ranks.size());
        let shape @ (rows, _) = own[0].dims2()?;
        let mut passing = Tensor::stack(own, 0)?.flatten_all()?.to_vec1::<f32>()?;
        let mut share: Option<twinlens_model::Share> = None;
        for turn in 0..size {
            let (images, texts) = passing.split_at(passing.len() / 2);
            let tensor = |values: &[f32]| Tensor::from_slice(values, shape, own[0].device());
            let others = [tensor(images)?, tensor(texts)?];
            let others = block(&others, (rank + size - turn) % size * rows);
            let (compared, next) = std::thread::scope(|scope| {
                let next = (turn + 1 < size).then(|| scope.spawn(|| self.ranks.shift(&passing)));
                (
                    self.clip.block_share(block(own, rank * rows), others, rows * size),
                    next.map(|next| next.join()),
                )
            });
            let compared = compared?;
            match &mut share {
                Some(share) => share.add(&compared)?,
                None => share = Some(compared),
            }
            if let Some(next) = next {
                passing = next.map_err(|_| TrainError::Panicked("training"))??;
            }
        }
        share.ok_or(TrainError::Panicked("training"))
    }

    /// Adds the gradients of a tower's variables, from those of its features. `kept` are the
    /// features with their graph; else they are computed again.
    fn backward(
        &self,
        gradients: &mut Gradients,
        (tower, part): (Tower, &Batch),
        kept: Option<Tensor>,
        of_features: &Tensor,
    ) -> Result<()> {
        if self.clip.is_tower_frozen(tower) {
            return Ok(());
        }
        let features = match kept {
            Some(kept) => kept,
            None => self.encode(tower, part, Pass::Train)?,
        };
        let of_features = of_features.to_device(features.device())?;
        // A scalar with the same gradient with respect to the features as the loss.
        let surrogate = (features * of_features)?.sum_all()?;
        Ok(gradients.add(&self.variables, &surrogate.backward()?)?)
    }

    fn encode(&self, tower: Tower, part: &Batch, pass: Pass) -> Result<Tensor> {
        Ok(match tower {
            Tower::Image => self.clip.image_features(&part.pixels, pass)?,
            Tower::Text => self.clip.text_features(&part.ids, pass)?,
        })
    }

    /// Gathers the features of all ranks.
    fn gather(&self, own: &Tensor) -> Result<Tensor> {
        if self.ranks.size() == 1 {
            return Ok(own.clone());
        }
        let (rows, embed) = own.dims2()?;
        let all = self.ranks.all_gather(&own.flatten_all()?.to_vec1::<f32>()?)?;
        Ok(Tensor::from_vec(all, (rows * self.ranks.size(), embed), own.device())?)
    }

    /// This rank's share of loss and gradients for an objective that predicts words: the mean of
    /// the parts' losses, weighted by their number of predictions.
    fn prediction_gradients(&self, parts: &[Batch]) -> Result<Option<Share>> {
        let counts = parts.iter().map(|part| Ok(self.clip.predictions(&part.ids)? as f32));
        let counts: Vec<f32> = counts.collect::<Result<_>>()?;
        let mut total = [counts.iter().sum::<f32>()];
        self.ranks.all_reduce_sum(&mut total)?;
        let (mut sum, mut gradients) = (0.0, Gradients::default());
        for (part, count) in parts.iter().zip(counts) {
            if self.should_stop()? {
                return Ok(None);
            }
            let loss = (self.clip.loss(&part.pixels, &part.ids)? * f64::from(count / total[0].max(1.0)))?;
            sum += f64::from(loss.to_scalar::<f32>()?);
            gradients.add(&self.variables, &loss.backward()?)?;
        }
        Ok(Some(Share { loss: sum, gradients, summed: Gradients::default() }))
    }

    /// Whether to abandon the step. All ranks call it at the same point.
    fn should_stop(&self) -> Result<bool> {
        Ok(self.ranks.any((self.stop)())?)
    }

    /// All running statistics, concatenated.
    fn running_statistics(&self) -> Result<Vec<f32>> {
        let buffers = self.clip.buffers().values();
        Ok(buffers.map(|b| b.to_vec1::<f32>()).collect::<candle_core::Result<Vec<_>>>()?.concat())
    }

    fn set_running_statistics(&self, values: &[f32]) -> Result<()> {
        let mut rest = values;
        for buffer in self.clip.buffers().values() {
            let (own, tail) = rest.split_at(buffer.elem_count());
            rest = tail;
            buffer.set(&Tensor::from_slice(own, buffer.shape(), buffer.device())?)?;
        }
        Ok(())
    }
}

/// Features from a row of the batch on.
fn block([image, text]: &[Tensor; 2], first: usize) -> Block<'_> {
    Block { image, text, first }
}
