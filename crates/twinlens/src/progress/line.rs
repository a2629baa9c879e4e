//! The text of the progress line of a running stage: rows done, speed, time left.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use twinlens_pipeline::run::events::{Counters, Event};

use crate::text::{bytes, count, counted, seconds};

/// Speed is measured over this time.
const WINDOW: Duration = Duration::from_secs(10);

pub(super) struct Line {
    /// `row` or `page`.
    unit: &'static str,
    counters: Arc<Counters>,
    /// Rows done at each time; the oldest sample is at most [`WINDOW`] old.
    samples: VecDeque<(Instant, u64)>,
    training: Option<Training>,
}

/// The last step of a training.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Training {
    pub(crate) step: u64,
    pub(crate) steps: u64,
    pub(crate) loss: f32,
    pub(crate) lr: f32,
    pub(crate) samples_per_second: f32,
}

impl Line {
    pub(super) fn new(counters: Arc<Counters>, now: Instant) -> Self {
        let done = counters.done.load(Ordering::Relaxed);
        Self { unit: "row", counters, samples: [(now, done)].into(), training: None }
    }

    pub(super) fn event(&mut self, event: &Event) {
        match event {
            Event::StageStarted { unit, .. } => self.unit = unit,
            &Event::TrainStep { step, steps, loss, lr, samples_per_second, .. } => {
                if self.training.is_none() {
                    // Earlier samples counted rows, and a resumed training does not start at step
                    // 0.
                    self.samples.clear();
                }
                self.training = Some(Training { step, steps, loss, lr, samples_per_second });
            }
            _ => {}
        }
    }

    pub(super) fn training(&self) -> Option<Training> {
        self.training.clone()
    }

    pub(super) fn text(&mut self, now: Instant) -> String {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (mut done, mut total) = (read(&self.counters.done), read(&self.counters.total));
        if let Some(training) = &self.training {
            (done, total) = (training.step, training.steps);
        }
        let speed = self.speed(now, done);
        let mut parts = Vec::new();
        match &self.training {
            Some(Training { step, steps, loss, lr, samples_per_second }) => {
                parts.push(format!("step {}/{}", count(*step), count(*steps)));
                parts.push(format!("loss {loss:.3}  lr {lr:.1e}  {samples_per_second:.0} pairs/s"));
            }
            None if total > 0 => parts.push(format!("{}/{} {}s", count(done), count(total), self.unit)),
            None => parts.push(counted(done, self.unit)),
        }
        if self.training.is_none() && speed >= 0.5 {
            parts.push(format!("{}/s", count(speed.round() as u64)));
        }
        match read(&self.counters.bytes) {
            0 => {}
            read => parts.push(bytes(read)),
        }
        match read(&self.counters.rejects) {
            0 => {}
            rejects => parts.push(counted(rejects, "reject")),
        }
        if total > done && speed > 0.0 {
            let left = Duration::try_from_secs_f64((total - done) as f64 / speed).unwrap_or(Duration::MAX);
            if left < Duration::from_secs(360_000) {
                parts.push(format!("{} left", seconds(left)));
            }
        }
        parts.join("  ")
    }

    /// Rows (or steps) per second over [`WINDOW`].
    fn speed(&mut self, now: Instant, done: u64) -> f64 {
        self.samples.push_back((now, done));
        while self.samples.len() > 2 && now.duration_since(self.samples[1].0) > WINDOW {
            self.samples.pop_front();
        }
        let (then, before) = self.samples[0];
        let time = now.duration_since(then).as_secs_f64();
        if time > 0.0 { (done - before) as f64 / time } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_and_time_left_are_shown() {
        let counters = Arc::new(Counters::default());
        let start = Instant::now();
        let mut line = Line::new(counters.clone(), start);
        assert_eq!(line.text(start), "0 rows");
        counters.total.store(3000, Ordering::Relaxed);
        counters.done.store(1000, Ordering::Relaxed);
        counters.bytes.store(5 << 20, Ordering::Relaxed);
        counters.rejects.store(1, Ordering::Relaxed);
        let text = line.text(start + Duration::from_secs(10));
        assert_eq!(text, "1,000/3,000 rows  100/s  5.0 MiB  1 reject  20.0s left");
        // Nothing happened for twenty seconds: the speed is 0.
        for second in 11..=30 {
            line.text(start + Duration::from_secs(second));
        }
        assert_eq!(line.text(start + Duration::from_secs(31)), "1,000/3,000 rows  5.0 MiB  1 reject");
        line.event(&Event::StageStarted {
            stage: "pages".into(),
            kind: "crawl".into(),
            product: twinlens_pipeline::Product::Table,
            unit: "page",
            fused: vec![],
            splits_done: 0,
        });
        assert_eq!(line.text(start + Duration::from_secs(32)), "1,000/3,000 pages  5.0 MiB  1 reject");
    }

    #[test]
    fn training_shows_its_loss() {
        let start = Instant::now();
        let mut line = Line::new(Arc::new(Counters::default()), start);
        let step = |step| Event::TrainStep {
            stage: "clip".into(),
            step,
            steps: 2000,
            loss: 3.4567,
            lr: 4.8e-4,
            samples_per_second: 511.6,
            logit_scale: 14.0,
            grad_norm: 0.5,
        };
        line.event(&step(100));
        line.text(start);
        line.event(&step(120));
        let text = line.text(start + Duration::from_secs(4));
        assert_eq!(text, "step 120/2,000  loss 3.457  lr 4.8e-4  512 pairs/s  6m 16s left");
    }
}
