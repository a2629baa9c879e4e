//! Runs one task on one set: fits classifiers on the training examples and evaluates them on the
//! test examples.

use sha2::{Digest, Sha256};
use twinlens_dataset::SplitWriter;
use twinlens_pipeline::{InputData, RunContext, RunError};

use super::few_shot;
use super::lbfgs::Stop;
use super::logistic::{Examples, Linear};
use super::neighbours::Neighbours;
use super::options::{Probe, ProbeSet, Task};
use super::source::{Row, Source};
use super::sweep;
use crate::error::EvalError;
use crate::inputs::input;
use crate::ledger::RejectedRow;
use crate::metrics::{Metric, Tally, top_k};
use crate::model::preprocess_hash;
use crate::prompts::list_hash;
use crate::results::{ALL, MetricRow, Prediction, Provenance, ResultWriter};
use crate::vectors::EmbeddingOrigin;

/// Runs one task; returns its split, ready to be committed.
pub(super) fn run(
    options: &Probe,
    cx: &RunContext,
    inputs: &[InputData],
    set: &ProbeSet,
    task: Task,
    split: SplitWriter,
) -> Result<SplitWriter, RunError> {
    let start = cx.clock.micros();
    let source = Source::open(options, cx, inputs, set)?;
    let results = ResultWriter::new(&set.name, split);
    let hash = Sha256::new_with_prefix(b"twinlens evaluation set 1");
    let mut pass = Pass { source, task, results, start, hash };
    let mut fitted = pass.fit()?;
    pass.test(&mut fitted)?;
    match task {
        Task::FewShot => pass.write_curve(&fitted)?,
        Task::LinearProbe | Task::Knn => fitted.iter().try_for_each(|fitted| pass.write(fitted))?,
    }
    Ok(pass.results.into_split())
}

/// A fitted classifier, and its name in the results.
struct Fitted {
    name: String,
    classifier: Classifier,
    tally: Tally,
}

enum Classifier {
    Linear(Linear),
    Neighbours(Neighbours),
}

impl Classifier {
    /// The scores `[n, classes]` of vectors `[n, width]`; higher is better.
    fn scores(&self, values: &[f32]) -> Result<Vec<f64>, EvalError> {
        match self {
            Self::Linear(linear) => linear.logits(values),
            Self::Neighbours(neighbours) => neighbours.votes(values),
        }
    }
}

struct Pass<'a> {
    source: Source<'a>,
    task: Task,
    results: ResultWriter,
    start: i64,
    /// The hash of the images and labels of the test examples.
    hash: Sha256,
}

impl Pass<'_> {
    fn fit(&self) -> Result<Vec<Fitted>, EvalError> {
        let train = self.source.load(&self.source.set.train)?;
        if train.is_empty() {
            return Err(EvalError::set(&self.source.set.name, "it has no labelled training example", None));
        }
        match self.task {
            Task::LinearProbe => Ok(vec![self.linear(train)?]),
            Task::Knn => {
                let k = *self.source.options.neighbours;
                let neighbours = Neighbours::new(&train, self.source.classes.len(), k)?;
                Ok(vec![self.fitted(format!("k = {k}"), Classifier::Neighbours(neighbours))])
            }
            Task::FewShot => self.few_shot(&train),
        }
    }

    fn fitted(&self, name: String, classifier: Classifier) -> Fitted {
        Fitted { name, classifier, tally: Tally::new(self.source.classes.len()) }
    }

    fn linear(&self, train: Examples) -> Result<Fitted, EvalError> {
        let (classes, cx) = (self.source.classes.len(), self.source.cx);
        let (fit, validation, all) = match &self.source.set.validation {
            Some(part) => {
                let validation = self.source.load(part)?;
                let mut all = train.clone();
                all.values.extend(&validation.values);
                all.labels.extend(&validation.labels);
                (train, validation, all)
            }
            None => {
                let (fit, held) = self.source.hold_out(&train.labels);
                (train.of(&fit), train.of(&held), train)
            }
        };
        let l2 = if validation.is_empty() {
            1.0
        } else {
            sweep::choose(&fit, &validation, classes, || Ok(cx.check_cancelled()?))?
        };
        let linear = Linear::fit(&all, classes, l2, None, Stop::default())?;
        if !linear.converged {
            let set = self.source.set.name.value();
            cx.progress.note(format!("set `{set}`: the linear probe did not converge"));
        }
        Ok(self.fitted(format!("l2 = {l2:.3e}"), Classifier::Linear(linear)))
    }

    fn few_shot(&self, train: &Examples) -> Result<Vec<Fitted>, EvalError> {
        let (options, cx, set) = (self.source.options, self.source.cx, self.source.set.name.value());
        let mut fitted = Vec::new();
        for shots in options.shots.iter() {
            for repeat in 0..*options.repeats {
                let mut rng = cx.rng(&format!("few-shot/{set}/{shots}/{repeat}"));
                let check_cancelled = || Ok(cx.check_cancelled()?);
                let linear =
                    few_shot::fit(train, self.source.classes.len(), *shots, &mut rng, check_cancelled)?;
                let name = format!("{shots} {}", if *shots == 1 { "shot" } else { "shots" });
                fitted.push(self.fitted(name, Classifier::Linear(linear)));
            }
        }
        Ok(fitted)
    }

    /// Evaluates the test examples; writes rejects and, except for few-shot curves (one set per
    /// draw would be too many), predictions.
    fn test(&mut self, fitted: &mut [Fitted]) -> Result<(), EvalError> {
        let Self { source, task, results, hash, .. } = self;
        let (set, classes) = (source.set.name.value(), source.classes.len());
        let mut n = 0;
        source.rows(&source.set.test, |rows, batch, places| {
            let (mut values, mut examples, mut refused) = (Vec::new(), Vec::new(), Vec::new());
            for (at, row) in rows.iter().enumerate() {
                match &row.labelled {
                    Ok((class, vector)) => {
                        hash.update(row.hash);
                        hash.update((*class as u64).to_le_bytes());
                        values.extend(*vector);
                        examples.push((name_of(row), *class));
                    }
                    Err((code, detail)) => {
                        let detail = format!("set `{set}`, {}: {detail}", places.location(row.number));
                        refused.push(RejectedRow { row: at as u32, code, detail });
                    }
                }
            }
            n += examples.len();
            results.rejects(source.cx, batch, &refused)?;
            for fitted in fitted.iter_mut() {
                let scores = fitted.classifier.scores(&values)?;
                let mut predictions = Vec::with_capacity(examples.len());
                for (scores, (example, label)) in scores.chunks_exact(classes).zip(&examples) {
                    let scores: Vec<f32> = scores.iter().map(|score| *score as f32).collect();
                    let ranked = top_k(&scores, 5);
                    fitted.tally.add(*label, &ranked);
                    let score = ranked.first().map_or(f32::NAN, |best| scores[*best]);
                    predictions.push(Prediction { example, label: Some(*label), ranked, score });
                }
                if *task != Task::FewShot {
                    results.predictions(&fitted.name, &predictions)?;
                }
            }
            Ok(())
        })?;
        match n {
            0 => Err(EvalError::set(
                set,
                format!("`{}` has no labelled example", source.set.test.name()),
                None,
            )),
            _ => Ok(()),
        }
    }

    /// The applicable metrics, main metric first.
    fn metrics(&self) -> impl Iterator<Item = Metric> {
        let (main, classes) = (self.source.set.main_metric(), self.source.classes.len());
        let others = Metric::ALL.into_iter().filter(move |metric| *metric != main);
        std::iter::once(main).chain(others).filter(move |metric| metric.applies(classes))
    }

    fn write(&mut self, fitted: &Fitted) -> Result<(), EvalError> {
        let (set, classes) = (self.source.set.name.value(), &self.source.classes);
        let mut rng = self.source.cx.rng(&format!("bootstrap/{set}/{}", self.task.name()));
        let measure = |metric: Metric| {
            let (value, interval) = (fitted.tally.value(metric)?, fitted.tally.interval(metric, &mut rng)?);
            let chance = metric.chance(classes.len())?;
            Some(MetricRow { metric: metric.name().into(), value, interval, chance })
        };
        let rows: Vec<MetricRow> = self.metrics().filter_map(measure).collect();
        self.results.per_class(&fitted.name, classes.names(), &fitted.tally)?;
        self.accuracy(&fitted.name, fitted.tally.total(), &rows)
    }

    /// Writes the points of a curve: the mean over the draws for each number of shots.
    fn write_curve(&mut self, fitted: &[Fitted]) -> Result<(), EvalError> {
        for drawings in fitted.chunk_by(|a, b| a.name == b.name) {
            let n = drawings[0].tally.total();
            let measure = |metric: Metric| {
                let values: Option<Vec<f64>> =
                    drawings.iter().map(|fitted| fitted.tally.value(metric)).collect();
                let (value, interval) = few_shot::mean(&values?, n)?;
                let chance = metric.chance(self.source.classes.len())?;
                Some(MetricRow { metric: metric.name().into(), value, interval, chance })
            };
            let rows: Vec<MetricRow> = self.metrics().filter_map(measure).collect();
            self.accuracy(&drawings[0].name, n, &rows)?;
        }
        Ok(())
    }

    fn accuracy(&mut self, name: &str, n: u64, rows: &[MetricRow]) -> Result<(), EvalError> {
        let set = self.source.set;
        if let Some(first) = rows.first() {
            let (of, task) = (set.name.value(), self.task.name());
            self.source.cx.progress.note(format!("{of}, {task} ({name}): {}", first.summary(n)));
        }
        let origin = EmbeddingOrigin::of(
            &input(self.source.inputs, &set.train)?.dataset,
            &self.source.embedding_model,
        );
        let from = Provenance {
            model: &origin.model,
            checkpoint: None,
            split: set.test.name(),
            task: self.task.name(),
            prompts: name,
            set_hash: &hex::encode(self.hash.clone().finalize()),
            classes_hash: &self.source.classes.hash(),
            prompts_hash: &list_hash(&[name.to_string()]),
            weights_hash: &origin.weights,
            preprocess_hash: &preprocess_hash(&origin.preprocessing),
            precision: origin.precision.as_deref(),
            part: ALL,
            n,
            seconds: self.source.cx.clock.seconds_since(self.start),
        };
        self.results.accuracy(&from, rows)
    }
}

/// The name of an example: its uid, or its row number.
fn name_of(row: &Row<'_>) -> String {
    row.uid.map_or_else(|| row.number.to_string(), str::to_string)
}
