//! What is written down of every step.

/// One step of a training, as a row of the `train_log` table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogRow {
    /// The step, counted from 1.
    pub step: u64,
    /// Pairs seen so far.
    pub samples_seen: u64,
    /// Epochs done, with fractions.
    pub epoch: f64,
    /// Loss of the step's batch, before the step.
    pub loss: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Logarithm of the similarities' factor, after the step.
    pub logit_scale: f64,
    /// Global norm of the gradients, before clipping.
    pub grad_norm: f64,
    /// Pairs a second of this step, waiting for data included.
    pub samples_per_second: f64,
    /// When the step ended: microseconds since 1970, UTC.
    pub wall: i64,
}

/// Numbers of a row in a checkpoint.
pub const COLUMNS: usize = 9;

impl LogRow {
    /// The row as numbers; all are exact in f64.
    pub fn to_numbers(&self) -> [f64; COLUMNS] {
        [
            self.step as f64,
            self.samples_seen as f64,
            self.epoch,
            self.loss,
            self.lr,
            self.logit_scale,
            self.grad_norm,
            self.samples_per_second,
            self.wall as f64,
        ]
    }

    /// The counterpart of [`to_numbers`](Self::to_numbers); `None` when there are not as many.
    pub fn from_numbers(numbers: &[f64]) -> Option<Self> {
        let &[step, samples_seen, epoch, loss, lr, logit_scale, grad_norm, samples_per_second, wall] =
            numbers
        else {
            return None;
        };
        let (step, samples_seen, wall) = (step as u64, samples_seen as u64, wall as i64);
        Some(Self { step, samples_seen, epoch, loss, lr, logit_scale, grad_norm, samples_per_second, wall })
    }
}
