//! One prompt set of one evaluation set: its classifier, what has been counted, and the metrics
//! that come of it.

use twinlens_pipeline::RunContext;

use super::select::HeldOut;
use super::tables::Measured;
use crate::metrics::calibration::{Calibration, confidence};
use crate::metrics::ranking::{Presence, Scores};
use crate::metrics::{Metric, Tally, top_k};
use crate::prompts::{Classifier, PromptSet};
use crate::set::SetOptions;
use crate::trust::{Confusion, Warning};

/// One prompt set of one evaluation set.
pub struct Variant {
    pub prompts: PromptSet,
    pub classifier: Classifier,
    pub tally: Tally,
    pub confusion: Confusion,
    pub calibration: Calibration,
    /// Every score, where a metric needs them all: of two classes, or of several classes an image.
    pub scores: Option<Scores>,
    /// An example may have several classes.
    pub several: bool,
    /// Examples that are left out, since the templates were chosen on them, and how many there
    /// were.
    pub held_out: Option<HeldOut>,
    pub left_out: u64,
    /// Of those that were not trained on, and of those that were.
    pub parts: Option<[Tally; 2]>,
    pub warnings: Vec<Warning>,
    /// Seconds of encoding the prompts and of scoring.
    pub seconds: f64,
}

impl Variant {
    pub fn new(
        prompts: PromptSet,
        classifier: Classifier,
        classes: usize,
        several: bool,
        seconds: f64,
    ) -> Self {
        let (tally, confusion) = (Tally::new(classes), Confusion::new(classes));
        let (calibration, warnings) = (Calibration::default(), Vec::new());
        let scores = (several || classes == 2).then(|| Scores::new(classes));
        Self {
            prompts,
            classifier,
            tally,
            confusion,
            calibration,
            scores,
            several,
            held_out: None,
            left_out: 0,
            parts: None,
            warnings,
            seconds,
        }
    }

    /// Counts an example of class `label`. `scale`: that of the model's similarities, where it was
    /// trained with one.
    pub fn count(&mut self, label: usize, cosines: &[f32], ranked: &[usize], scale: Option<f32>) {
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

    /// Counts an example of several classes. In the table `per_class` it is right for a class that
    /// is there and among the highest scores, as many as there are classes in the example.
    pub fn count_several(&mut self, present: &[usize], ignored: &[usize], cosines: &[f32]) {
        let presence = |class: usize| match (present.contains(&class), ignored.contains(&class)) {
            (true, _) => Presence::Present,
            (false, true) => Presence::Ignored,
            (false, false) => Presence::Absent,
        };
        if let Some(all) = &mut self.scores {
            all.add(cosines.iter().enumerate().map(|(class, score)| (*score, presence(class))));
        }
        self.tally.add_several(present, &top_k(cosines, present.len().max(1)));
    }

    /// Examples that were counted.
    pub fn examples(&self) -> u64 {
        match &self.scores {
            Some(scores) if self.several => scores.examples() as u64,
            _ => self.tally.total(),
        }
    }
}

/// What metrics are computed from.
#[derive(Clone, Copy)]
pub struct Counts<'a> {
    pub tally: &'a Tally,
    pub scores: Option<&'a Scores>,
}

/// Every metric that applies, the main one first; none without examples.
pub fn measure(
    cx: &RunContext,
    set: &str,
    options: &SetOptions,
    variant: &Variant,
    counts: Counts<'_>,
) -> Vec<Measured> {
    let Counts { tally, scores } = counts;
    let classes = tally.examples().len();
    let several = variant.several;
    let main = options.main_metric.unwrap_or(if several { Metric::Map } else { Metric::Top1 });
    let others = Metric::ALL.into_iter().filter(|metric| *metric != main);
    let applies = |metric: &Metric| if several { metric.is_multi_label() } else { metric.applies(classes) };
    let metrics = std::iter::once(main).chain(others).filter(applies);
    // A stream of its own for each row: another prompt set more must not move the intervals of the
    // others.
    let mut rng = cx.rng(&format!("bootstrap/{set}/{}", variant.prompts.name));
    let mut measured = |metric: Metric| {
        let (value, interval, chance) = match metric {
            Metric::RocAuc | Metric::Map | Metric::Map11Point => scores?.measure(metric, &mut rng)?,
            _ => (tally.value(metric)?, tally.interval(metric, &mut rng)?, metric.chance(classes)?),
        };
        Some(Measured { metric: metric.name().into(), value, interval, chance })
    };
    metrics.filter_map(&mut measured).collect()
}
