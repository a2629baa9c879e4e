//! Results of evaluations during training.

use serde::{Deserialize, Serialize};
use twinlens_pipeline::evaluation::Measured;

/// One metric of one evaluation set at one step, as a row of the `evaluations` table.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The last step before the evaluation.
    pub step: u64,
    pub measured: Measured,
}

/// Numbers per measurement in a checkpoint.
pub(crate) const NUMBERS: usize = 6;

#[derive(Serialize, Deserialize)]
struct Names(String, String, String);

/// Names as JSON, and numbers that a checkpoint stores exactly.
pub(crate) fn to_parts(all: &[Measurement]) -> (String, Vec<f64>) {
    let names = all.iter().map(|m| &m.measured);
    let names: Vec<_> = names.map(|m| Names(m.set.clone(), m.prompts.clone(), m.metric.clone())).collect();
    let numbers = all.iter().flat_map(|Measurement { step, measured: m }| {
        [*step as f64, m.value, m.ci_low, m.ci_high, m.chance, m.n as f64]
    });
    (serde_json::json!(names).to_string(), numbers.collect())
}

/// The inverse of [`to_parts`]; `None` if names and numbers do not match.
pub(crate) fn from_parts(names: &str, numbers: &[Vec<f64>]) -> Option<Vec<Measurement>> {
    let names: Vec<Names> = serde_json::from_str(names).ok()?;
    if names.len() != numbers.len() {
        return None;
    }
    let one = |(Names(set, prompts, metric), numbers): (Names, &Vec<f64>)| {
        let &[step, value, ci_low, ci_high, chance, n] = &numbers[..] else { return None };
        let measured = Measured { set, prompts, metric, value, ci_low, ci_high, chance, n: n as u64 };
        Some(Measurement { step: step as u64, measured })
    };
    names.into_iter().zip(numbers).map(one).collect()
}

/// The first metric of each step, by which steps are compared.
pub(crate) fn by_step(all: &[Measurement]) -> impl Iterator<Item = (u64, f64)> {
    let first = |(i, m): &(usize, &Measurement)| *i == 0 || all[i - 1].step != m.step;
    all.iter().enumerate().filter(first).map(|(_, m)| (m.step, m.measured.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_every_bit() {
        let one = |step, metric: &str, value| Measurement {
            step,
            measured: Measured {
                set: "groups".into(),
                prompts: "a \"{}\"".into(),
                metric: metric.into(),
                value,
                ci_low: value / 3.0,
                ci_high: 1.0,
                chance: 0.1,
                n: 747,
            },
        };
        let all = [one(5, "top1", 0.1 + 0.2), one(5, "top5", 0.9), one(10, "top1", 1.0 / 7.0)];
        let (names, numbers) = to_parts(&all);
        let rows: Vec<Vec<f64>> = numbers.chunks(NUMBERS).map(<[f64]>::to_vec).collect();
        assert_eq!(from_parts(&names, &rows).unwrap(), all);
        assert!(from_parts(&names, &rows[..2]).is_none() && from_parts("{", &rows).is_none());
        assert_eq!(by_step(&all).collect::<Vec<_>>(), [(5, 0.1 + 0.2), (10, 1.0 / 7.0)]);
    }
}
