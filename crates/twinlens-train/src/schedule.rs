//! The learning rate schedule.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Along half a cosine down to 0 at the last step.
    #[default]
    Cosine,
    /// It stays: a training may be continued at any step as if it had been longer from the start.
    Constant,
}

/// Linear warm-up, then what its kind says.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub kind: ScheduleKind,
    /// The highest rate.
    pub peak: f64,
    /// Steps of warm-up.
    pub warmup: u64,
    /// Total steps, including warm-up.
    pub steps: u64,
}

impl Schedule {
    /// The rate of step `step`, counted from 0, as open_clip computes it.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        if self.kind == ScheduleKind::Constant {
            return self.peak;
        }
        let done = (step - self.warmup) as f64 / (self.steps.saturating_sub(self.warmup)).max(1) as f64;
        0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()) * self.peak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_rises_linearly_and_falls_along_a_cosine() {
        let schedule = Schedule { kind: ScheduleKind::Cosine, peak: 2.0, warmup: 4, steps: 14 };
        let expected = [(0, 0.5), (3, 2.0), (4, 2.0), (9, 1.0), (14, 0.0), (99, 0.0)];
        for (step, rate) in expected {
            assert!((schedule.rate(step) - rate).abs() < 1e-12, "{step}");
        }
        assert_eq!(Schedule { peak: 1.0, warmup: 0, steps: 1, ..schedule }.rate(0), 1.0);
        assert_eq!(Schedule { peak: 1.0, warmup: 9, steps: 3, ..schedule }.rate(2), 3.0 / 9.0);
        let constant = Schedule { kind: ScheduleKind::Constant, ..schedule };
        assert_eq!([0, 3, 4, 99].map(|step| constant.rate(step)), [0.5, 2.0, 2.0, 2.0]);
    }
}
