//! The training log.

/// One step of a training, as a row of the `train_log` table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogRow {
    /// Counted from 1.
    pub step: u64,
    pub samples_seen: u64,
    /// Fractional epochs so far.
    pub epoch: f64,
    /// Loss of the step's batch, before the step.
    pub loss: f64,
    pub lr: f64,
    /// Natural logarithm of the scale of similarities, after the step.
    pub logit_scale: f64,
    /// Global norm of the gradients, before clipping.
    pub grad_norm: f64,
    /// Includes the time spent waiting for data.
    pub samples_per_second: f64,
    /// End of the step, in microseconds since 1970 UTC.
    pub wall: i64,
}

/// Numbers per row in a checkpoint.
pub(crate) const COLUMNS: usize = 9;

impl LogRow {
    /// The row as numbers; all are exact as f64.
    pub(crate) fn to_numbers(self) -> [f64; COLUMNS] {
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

    /// The inverse of [`to_numbers`](Self::to_numbers); `None` if their count is wrong.
    pub(crate) fn from_numbers(numbers: &[f64]) -> Option<Self> {
        let &[step, samples_seen, epoch, loss, lr, logit_scale, grad_norm, samples_per_second, wall] =
            numbers
        else {
            return None;
        };
        let (step, samples_seen, wall) = (step as u64, samples_seen as u64, wall as i64);
        Some(Self { step, samples_seen, epoch, loss, lr, logit_scale, grad_norm, samples_per_second, wall })
    }
}
