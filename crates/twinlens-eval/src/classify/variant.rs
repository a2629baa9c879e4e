//! One prompt set of one evaluation set: classifier, counts and metrics.

use twinlens_pipeline::RunContext;

use super::held_out::HeldOut;
use crate::error::EvalError;
use crate::metrics::calibration::{Calibration, confidence};
use crate::metrics::ranking::{Presence, Scores};
use crate::metrics::{Metric, Tally, top_k};
use crate::prompts::{Classifier, PromptSet, TextEncoder, build_classifier};
use crate::results::MetricRow;
use crate::set::SetOptions;
use crate::set_reader::{SetReader, Truth};
use crate::trust::{Confusion, Warning};

/// One prompt set of one evaluation set.
pub(crate) struct Variant {
    pub prompts: PromptSet,
    pub classifier: Classifier,
    pub tally: Tally,
    pub confusion: Confusion,
    pub calibration: Calibration,
    /// All scores, for ranking metrics: in multi-label sets, or with two classes.
    pub scores: Option<Scores>,
    pub multi_label: bool,
    /// Examples used for template selection, which are excluded, and their number.
    pub held_out: Option<HeldOut>,
    pub excluded: u64,
    /// Of clean and of overlapping examples.
    pub parts: Option<[Tally; 2]>,
    pub warnings: Vec<Warning>,
    /// Time for encoding the prompts and scoring.
    pub seconds: f64,
}

impl Variant {
    /// Encodes the prompts of a set.
    pub(crate) fn new(
        reader: &SetReader,
        prompts: PromptSet,
        texts: TextEncoder<'_>,
    ) -> Result<Self, EvalError> {
        let classes = reader.classes.len();
        let multi_label = reader.labels.is_multi_label();
        Ok(Self {
            classifier: build_classifier(texts, &reader.classes.all_names(), &prompts)?,
            prompts,
            tally: Tally::new(classes),
            confusion: Confusion::new(classes),
            calibration: Calibration::default(),
            scores: (multi_label || classes == 2).then(|| Scores::new(classes)),
            multi_label,
            held_out: None,
            excluded: 0,
            parts: None,
            warnings: Vec::new(),
            seconds: 0.0,
        })
    }

    /// Whether an example was used for template selection; counts it if so.
    pub(crate) fn excludes(&mut self, example: &str) -> bool {
        let excluded = self.held_out.is_some_and(|held_out| held_out.contains(example));
        self.excluded += u64::from(excluded);
        excluded
    }

    /// Counts an example. `scale` turns cosines into logits, if the model has one.
    pub(crate) fn count(&mut self, truth: &Truth, scores: &[f32], ranked: &[usize], scale: Option<f32>) {
        match truth {
            Truth::Single(label) => self.count_single(*label, scores, ranked, scale),
            Truth::Multi { present, ignored } => self.count_multi_label(present, ignored, scores),
        }
    }

    fn count_single(&mut self, label: usize, cosines: &[f32], ranked: &[usize], scale: Option<f32>) {
        self.tally.add(label, ranked);
        if let (Some(all), [first, second]) = (&mut self.scores, cosines) {
            let presence = |class: usize| if class == label { Presence::Present } else { Presence::Absent };
            all.add([(first - second, presence(0)), (second - first, presence(1))]);
        }
        let Some(best) = ranked.first() else { return };
        self.confusion.add(label, *best);
        if self.classifier.gives_probabilities() {
            self.calibration.add(f64::from(cosines[*best]), *best == label);
        } else if let Some(scale) = scale {
            self.calibration.add(confidence(cosines, *best, scale), *best == label);
        }
    }

    /// In the table `per_class` a label is correct if it is among the
    /// k highest scores, for an example with k labels.
    fn count_multi_label(&mut self, present: &[usize], ignored: &[usize], cosines: &[f32]) {
        let presence = |class: usize| {
            if present.contains(&class) {
                Presence::Present
            } else if ignored.contains(&class) {
                Presence::Ignored
            } else {
                Presence::Absent
            }
        };
        if let Some(all) = &mut self.scores {
            all.add(cosines.iter().enumerate().map(|(class, score)| (*score, presence(class))));
        }
        self.tally.add_multi_label(present, &top_k(cosines, present.len().max(1)));
    }

    /// Number of examples counted.
    pub(crate) fn examples(&self) -> u64 {
        match &self.scores {
            Some(scores) if self.multi_label => scores.examples() as u64,
            _ => self.tally.total(),
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Counts<'a> {
    pub tally: &'a Tally,
    pub scores: Option<&'a Scores>,
}

/// All metrics that apply, the main one first; empty without examples.
pub(crate) fn measure(
    cx: &RunContext,
    set: &str,
    options: &SetOptions,
    variant: &Variant,
    counts: Counts<'_>,
) -> Vec<MetricRow> {
    let Counts { tally, scores } = counts;
    let classes = tally.examples().len();
    let multi_label = variant.multi_label;
    let main = options.main_metric.unwrap_or(if multi_label { Metric::Map } else { Metric::Top1 });
    let others = Metric::ALL.into_iter().filter(|metric| *metric != main);
    let applies =
        |metric: &Metric| if multi_label { metric.is_multi_label() } else { metric.applies(classes) };
    let metrics = std::iter::once(main).chain(others).filter(applies);
    // A separate stream for each prompt set: adding one must not change the intervals of the
    // others.
    let mut rng = cx.rng(&format!("bootstrap/{set}/{}", variant.prompts.name));
    let mut measured = |metric: Metric| {
        let (value, interval, chance) = match metric {
            Metric::RocAuc | Metric::Map | Metric::Map11Point => scores?.measure(metric, &mut rng)?,
            _ => (tally.value(metric)?, tally.interval(metric, &mut rng)?, metric.chance(classes)?),
        };
        Some(MetricRow { metric: metric.name().into(), value, interval, chance })
    };
    metrics.filter_map(&mut measured).collect()
}
