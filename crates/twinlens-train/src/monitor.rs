//! Detects from the log that a training does not converge or diverges.

use crate::error::{Result, TrainError};
use crate::log::LogRow;

/// Steps over which the loss is averaged.
pub(crate) const WINDOW: usize = 100;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Monitor {
    /// Steps of warm-up.
    pub(crate) warmup: u64,
    /// The loss of guessing, if known.
    pub(crate) chance: Option<f64>,
}

fn mean(rows: &[LogRow]) -> f64 {
    rows.iter().map(|row| row.loss).sum::<f64>() / rows.len() as f64
}

/// The mean loss of the last window. The log must not be empty.
pub(crate) fn recent_loss(log: &[LogRow]) -> f64 {
    mean(&log[log.len().saturating_sub(WINDOW)..])
}

impl Monitor {
    /// Checks the log of all steps so far whenever a window of steps is full.
    ///
    /// # Errors
    /// `NotConverging` if the loss is that of guessing after enough steps to learn; `Diverged` if
    /// it fell and is now as high as at the start.
    pub(crate) fn check(&self, log: &[LogRow]) -> Result<()> {
        let step = log.len() as u64;
        if !log.len().is_multiple_of(WINDOW) || log.is_empty() {
            return Ok(());
        }
        let windows: Vec<f64> = log.chunks(WINDOW).map(mean).collect();
        let (first, now) = (windows[0], windows[windows.len() - 1]);
        let enough_steps = self.warmup.max(4 * WINDOW as u64) + 2 * WINDOW as u64;
        if let Some(chance) = self.chance
            && step == enough_steps.next_multiple_of(WINDOW as u64)
            && now > 0.99 * chance
        {
            return Err(TrainError::NotConverging { step, window: WINDOW, loss: now, chance });
        }
        let (best, low) = windows
            .iter()
            .enumerate()
            .fold((0, f64::INFINITY), |best, (i, loss)| if *loss < best.1 { (i, *loss) } else { best });
        // The loss rose by nine tenths of a substantial fall: more than the noise of batches.
        if first - low > 0.2 * first.abs() && now - low > 0.9 * (first - low) {
            let best = (best as u64 + 1) * WINDOW as u64;
            return Err(TrainError::Diverged { step, window: WINDOW, loss: now, low, best, first });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(losses: impl IntoIterator<Item = f64>) -> Vec<LogRow> {
        let row = |(i, loss)| LogRow {
            step: i as u64 + 1,
            samples_seen: 0,
            epoch: 0.0,
            loss,
            lr: 0.0,
            logit_scale: 0.0,
            grad_norm: 0.0,
            samples_per_second: 0.0,
            wall: 0,
        };
        losses.into_iter().enumerate().map(row).collect()
    }

    /// The first step at which the check fails.
    fn first_error(monitor: Monitor, losses: &[f64]) -> Option<(usize, TrainError)> {
        let log = log(losses.iter().copied());
        (1..=log.len()).find_map(|n| Some((n, monitor.check(&log[..n]).err()?)))
    }

    #[test]
    fn errors_are_reported_at_the_right_step() {
        let monitor = Monitor { warmup: 50, chance: Some(4.0) };
        let falling = |n: usize| (0..n).map(|i| 4.0 * (-(i as f64) / 300.0).exp()).collect::<Vec<_>>();
        assert!(first_error(monitor, &falling(1500)).is_none());
        // A single bad batch is not an error.
        let mut spike = falling(1500);
        spike[950] = 40.0;
        assert!(first_error(monitor, &spike).is_none());

        let flat = vec![4.0; 900];
        let Some((600, TrainError::NotConverging { .. })) = first_error(monitor, &flat) else {
            panic!("{:?}", first_error(monitor, &flat))
        };
        assert!(matches!(first_error(Monitor { warmup: 950, ..monitor }, &vec![4.0; 1300]), Some((1200, _))));
        assert!(first_error(Monitor { chance: None, ..monitor }, &flat).is_none());

        let diverging: Vec<f64> = falling(800).into_iter().chain(vec![4.0; 300]).collect();
        let (step, error) = first_error(monitor, &diverging).unwrap();
        assert_eq!(step, 900);
        let text = error.to_string();
        assert!(text.contains("step 800") && text.contains("half the lr"), "{text}");
    }
}
