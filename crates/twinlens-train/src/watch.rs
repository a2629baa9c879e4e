//! Trainings that go wrong, seen in their log: nothing was learned, or what was learned is lost.

use crate::error::{Result, TrainError};
use crate::log::LogRow;

/// Steps whose loss is averaged.
pub const WINDOW: usize = 100;

/// What a watch knows of a training.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// Steps of warm-up.
    pub warmup: u64,
    /// The loss that guessing gets, where that is known.
    pub chance: Option<f64>,
}

fn mean(rows: &[LogRow]) -> f64 {
    rows.iter().map(|row| row.loss).sum::<f64>() / rows.len() as f64
}

/// The mean loss of the last steps, of which there is at least one.
pub fn recent_loss(log: &[LogRow]) -> f64 {
    mean(&log[log.len().saturating_sub(WINDOW)..])
}

impl Watch {
    /// Looks at the log of all steps so far, when a window of steps is full.
    ///
    /// # Errors
    /// `Stuck` where the loss is that of guessing although there was time to learn; `Relapsed`
    /// where it fell and is now as high as at the start.
    pub fn check(&self, log: &[LogRow]) -> Result<()> {
        let step = log.len() as u64;
        if !log.len().is_multiple_of(WINDOW) || log.is_empty() {
            return Ok(());
        }
        let windows: Vec<f64> = log.chunks(WINDOW).map(mean).collect();
        let (first, now) = (windows[0], windows[windows.len() - 1]);
        let had_time = self.warmup.max(4 * WINDOW as u64) + 2 * WINDOW as u64;
        if let Some(chance) = self.chance
            && step == had_time.next_multiple_of(WINDOW as u64)
            && now > 0.99 * chance
        {
            return Err(TrainError::Stuck { step, window: WINDOW, loss: now, chance });
        }
        let (best, low) = windows
            .iter()
            .enumerate()
            .fold((0, f64::INFINITY), |best, (i, loss)| if *loss < best.1 { (i, *loss) } else { best });
        // Nine tenths of what was learned are gone, and that was not little: no noise of a batch.
        if first - low > 0.2 * first.abs() && now - low > 0.9 * (first - low) {
            let best = (best as u64 + 1) * WINDOW as u64;
            return Err(TrainError::Relapsed { step, window: WINDOW, loss: now, low, best, first });
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

    /// The first step at which the watch speaks.
    fn stops(watch: Watch, losses: &[f64]) -> Option<(usize, TrainError)> {
        let log = log(losses.iter().copied());
        (1..=log.len()).find_map(|n| Some((n, watch.check(&log[..n]).err()?)))
    }

    #[test]
    fn it_speaks_when_it_should_and_not_before() {
        let watch = Watch { warmup: 50, chance: Some(4.0) };
        let falling = |n: usize| (0..n).map(|i| 4.0 * (-(i as f64) / 300.0).exp()).collect::<Vec<_>>();
        assert!(stops(watch, &falling(1500)).is_none());
        // One bad batch, even a very bad one, is none of its business.
        let mut spike = falling(1500);
        spike[950] = 40.0;
        assert!(stops(watch, &spike).is_none());

        let flat = vec![4.0; 900];
        let Some((600, TrainError::Stuck { .. })) = stops(watch, &flat) else {
            panic!("{:?}", stops(watch, &flat))
        };
        assert!(matches!(stops(Watch { warmup: 950, ..watch }, &vec![4.0; 1300]), Some((1200, _))));
        assert!(stops(Watch { chance: None, ..watch }, &flat).is_none());

        let relapse: Vec<f64> = falling(800).into_iter().chain(vec![4.0; 300]).collect();
        let (step, error) = stops(watch, &relapse).unwrap();
        assert_eq!(step, 900);
        let text = error.to_string();
        assert!(text.contains("step 800") && text.contains("lower lr"), "{text}");
    }
}
