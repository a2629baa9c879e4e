//! Builds the rows of the contracts `scaling` and `scaling_fit` from models and accuracies.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::error::ArrowError;
use twinlens_dataset::contracts;

use super::fit::Fit;
use crate::metrics::Interval;

/// A model and its cost.
#[derive(Debug, Clone)]
pub(super) struct Costed {
    pub name: String,
    /// Of the forward pass of one pair.
    pub gflops: f64,
    /// Pairs seen in training.
    pub samples: Option<i64>,
    /// The value that the error is fitted over.
    pub compute: f64,
}

/// The error of a model on a set with some prompts.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub set: String,
    pub prompts: String,
    pub metric: String,
    pub model: String,
    pub error: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
}

/// The role of a model in a fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A point of the fit.
    Fitted,
    /// Left out of the fit as one of the largest.
    HeldOut,
    /// Not trained, or not evaluated.
    Predicted,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Fitted => "fit",
            Role::HeldOut => "held_out",
            Role::Predicted => "predicted",
        }
    }
}

/// A model and its prediction by the fit.
#[derive(Debug, Clone)]
pub(super) struct Row {
    key: Key,
    model: Costed,
    role: Role,
    measured: Option<Measured>,
    predicted: Option<f64>,
    interval: Option<Interval>,
}

impl Row {
    /// Whether the measured error is within the predicted interval; `None` for a point of the fit.
    fn within(&self) -> Option<bool> {
        let (interval, measured) = (self.interval?, self.measured.as_ref()?);
        (self.role != Role::Fitted).then(|| (interval.low..=interval.high).contains(&measured.error))
    }
}

/// Set, prompts, metric.
type Key = (String, String, String);

/// One fit, or the reason why there is none.
#[derive(Debug, Clone)]
pub(super) struct Fitted {
    key: Key,
    compute: &'static str,
    points: usize,
    fit: Result<Fit, String>,
    smallest: Option<f64>,
    largest: Option<f64>,
}

/// Fits each set, prompt set and metric without the `hold_out` largest sizes. Rows are sorted by
/// size.
pub(super) fn build(
    models: &[Costed],
    measured: &[Measured],
    hold_out: usize,
    compute: &'static str,
) -> (Vec<Row>, Vec<Fitted>) {
    let mut keys: BTreeMap<Key, Vec<&Measured>> = BTreeMap::new();
    for row in measured {
        keys.entry((row.set.clone(), row.prompts.clone(), row.metric.clone())).or_default().push(row);
    }
    let (mut rows, mut fits) = (Vec::new(), Vec::new());
    for (key, measured) in keys {
        let group = Group::new(models, &measured, hold_out);
        let fit = Fit::new(&group.points());
        rows.extend(group.rows(&key, fit.as_ref().ok()));
        let sizes: Vec<f64> = group.points().iter().map(|(compute, _)| *compute).collect();
        fits.push(Fitted {
            key,
            compute,
            points: sizes.len(),
            fit,
            smallest: sizes.iter().copied().reduce(f64::min),
            largest: sizes.iter().copied().reduce(f64::max),
        });
    }
    (rows, fits)
}

/// Models with their measured errors, sorted by size.
struct Group<'a> {
    members: Vec<(&'a Costed, Option<&'a Measured>, Role)>,
}

impl<'a> Group<'a> {
    fn new(models: &'a [Costed], measured: &[&'a Measured], hold_out: usize) -> Self {
        let of = |model: &Costed| {
            measured.iter().filter(|row| row.model == model.name).copied().collect::<Vec<_>>()
        };
        let mut sizes: Vec<f64> =
            models.iter().filter(|model| !of(model).is_empty()).map(|model| model.compute).collect();
        sizes.sort_by(f64::total_cmp);
        sizes.dedup();
        let held_out = &sizes[sizes.len().saturating_sub(hold_out)..];
        let mut members = Vec::new();
        for model in models {
            let outcomes = of(model);
            if outcomes.is_empty() {
                members.push((model, None, Role::Predicted));
            }
            let role = if held_out.contains(&model.compute) { Role::HeldOut } else { Role::Fitted };
            members.extend(outcomes.into_iter().map(|outcome| (model, Some(outcome), role)));
        }
        members.sort_by(|(a, ..), (b, ..)| a.compute.total_cmp(&b.compute).then_with(|| a.name.cmp(&b.name)));
        Self { members }
    }

    fn points(&self) -> Vec<(f64, f64)> {
        let fitted = self.members.iter().filter(|(_, _, role)| *role == Role::Fitted);
        fitted.filter_map(|(model, outcome, _)| Some((model.compute, outcome.as_ref()?.error))).collect()
    }

    fn rows(&self, key: &Key, fit: Option<&Fit>) -> Vec<Row> {
        let row = |&(model, outcome, role): &(&Costed, Option<&Measured>, Role)| Row {
            key: key.clone(),
            model: model.clone(),
            role,
            measured: outcome.cloned(),
            predicted: fit.map(|fit| fit.error(model.compute)),
            interval: fit.and_then(|fit| fit.prediction(model.compute)),
        };
        self.members.iter().map(row).collect()
    }
}

fn texts<T>(rows: &[T], text: fn(&T) -> &str) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(rows.iter().map(text)))
}

fn floats<T>(rows: &[T], value: impl Fn(&T) -> Option<f64>) -> ArrayRef {
    Arc::new(Float64Array::from_iter(rows.iter().map(value)))
}

/// Rows of the contract `scaling`.
pub(super) fn rows(rows: &[Row]) -> Result<RecordBatch, ArrowError> {
    let outcome =
        |value: fn(&Measured) -> Option<f64>| floats(rows, move |row: &Row| value(row.measured.as_ref()?));
    RecordBatch::try_new(
        contracts::scaling(),
        vec![
            texts(rows, |row| &row.key.0),
            texts(rows, |row| &row.key.1),
            texts(rows, |row| &row.key.2),
            texts(rows, |row| &row.model.name),
            floats(rows, |row| Some(row.model.gflops)),
            Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.model.samples))),
            floats(rows, |row| Some(row.model.compute)),
            texts(rows, |row| row.role.name()),
            outcome(|measured| Some(measured.error)),
            outcome(|measured| measured.low),
            outcome(|measured| measured.high),
            floats(rows, |row| row.predicted),
            floats(rows, |row| row.interval.map(|interval| interval.low)),
            floats(rows, |row| row.interval.map(|interval| interval.high)),
            Arc::new(BooleanArray::from_iter(rows.iter().map(Row::within))),
        ],
    )
}

/// Rows of the contract `scaling_fit`.
pub(super) fn fits(fits: &[Fitted]) -> Result<RecordBatch, ArrowError> {
    let of = |value: fn(&Fit) -> Option<f64>| floats(fits, move |row: &Fitted| value(row.fit.as_ref().ok()?));
    let note = fits.iter().map(|row| row.fit.as_ref().err().map(String::as_str));
    RecordBatch::try_new(
        contracts::scaling_fit(),
        vec![
            texts(fits, |row| &row.key.0),
            texts(fits, |row| &row.key.1),
            texts(fits, |row| &row.key.2),
            texts(fits, |row| row.compute),
            Arc::new(Int64Array::from_iter_values(fits.iter().map(|row| row.points as i64))),
            of(|fit| Some(fit.ln_a.exp())),
            of(|fit| Some(fit.b)),
            of(|fit| Some(fit.b_interval()?.low)),
            of(|fit| Some(fit.b_interval()?.high)),
            of(|fit| fit.residual),
            of(|fit| fit.r2),
            floats(fits, |row| row.smallest),
            floats(fits, |row| row.largest),
            Arc::new(StringArray::from_iter(note)),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::util::pretty::pretty_format_batches;

    #[test]
    fn the_largest_model_is_predicted_and_not_fitted() {
        let sized = |name: &str, gflops: f64| Costed {
            name: name.into(),
            gflops,
            samples: Some(10),
            compute: gflops,
        };
        let models = [
            sized("b", 2.0),
            sized("a", 1.0),
            sized("a2", 1.0),
            sized("d", 8.0),
            sized("c", 4.0),
            sized("e", 16.0),
        ];
        let outcome = |model: &str, set: &str, error: f64| Measured {
            set: set.into(),
            prompts: "{}".into(),
            metric: "top1".into(),
            model: model.into(),
            error,
            low: Some(error - 0.1),
            high: None,
        };
        let mut measured: Vec<Measured> = [("a", 0.8), ("a2", 0.81), ("b", 0.41), ("c", 0.2), ("d", 0.1)]
            .map(|(model, error)| outcome(model, "s", error))
            .into();
        measured.extend([outcome("a", "none", 0.0), outcome("b", "none", 0.5), outcome("c", "none", 0.2)]);
        let (found, fitted) = build(&models, &measured, 1, "forward");
        let roles: Vec<(&str, &str)> =
            found.iter().map(|row| (row.model.name.as_str(), row.role.name())).collect();
        let names = ["a", "a2", "b", "c", "d", "e"];
        let of_set = |roles: [&'static str; 6]| names.into_iter().zip(roles).collect::<Vec<_>>();
        assert_eq!(roles[..6], of_set(["fit", "predicted", "fit", "held_out", "predicted", "predicted"]));
        assert_eq!(roles[6..], of_set(["fit", "fit", "fit", "fit", "held_out", "predicted"]));
        assert!(fitted[0].fit.is_err() && found[3].predicted.is_none());
        assert!((found[10].predicted.unwrap() - 0.1).abs() < 0.01, "{:?}", found[10]);
        assert_eq!((found[10].within(), found[11].within(), found[9].within()), (Some(true), None, None));
        let text = pretty_format_batches(&[fits(&fitted).unwrap()]).unwrap().to_string();
        assert!(text.contains("no logarithm") && text.contains("forward"), "{text}");
        assert_eq!(rows(&found).unwrap().num_rows(), 12);
    }
}
