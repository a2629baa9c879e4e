//! The options of the stage `probe`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_pipeline::{Input, Located};

use crate::metrics::Metric;
use crate::set::SetOptions;

/// Trains classifiers on labelled embeddings and reports their accuracy. The rows follow the
/// contract `accuracy`; their column `prompts` describes the classifier (`l2 = 0.316`, `k = 20`, `4
/// shots`).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// The evaluation sets.
    pub(super) sets: Located<Vec<ProbeSet>>,
    /// The tasks to run on each set.
    #[serde(default = "tasks")]
    pub(super) tasks: Vec<Task>,
    /// Number of nearest neighbours that vote.
    #[serde(default = "neighbours")]
    pub(super) neighbours: Located<usize>,
    /// Examples per class in the few-shot probes: one point of the curve each.
    #[serde(default = "shots")]
    pub(super) shots: Located<Vec<usize>>,
    /// Number of random draws per few-shot probe; the mean is reported.
    #[serde(default = "repeats")]
    pub(super) repeats: Located<usize>,
    /// The share of the training examples on which the penalty is chosen, for sets without
    /// `validation`.
    #[serde(default = "validation_share")]
    pub(super) validation_share: Located<f64>,
    /// Maximum training examples per set, which are held in memory; drawn at random if there are
    /// more.
    #[serde(default = "max_examples")]
    pub(super) max_examples: Located<usize>,
}

/// A set with training and test examples, all embedded by the same model.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProbeSet {
    /// The name of the set in the results.
    pub(super) name: Located<String>,
    /// The training examples: an `embed` stage, or a table derived from one.
    pub(super) train: Input,
    /// The test examples.
    pub(super) test: Input,
    /// Examples on which the penalty of the linear probe is chosen; the probe is then fitted again
    /// on these and the training examples. [default: the same share of each class of the training
    /// examples]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) validation: Option<Input>,
    /// The label column: the name of the class, or an integer that indexes `class_names`.
    pub(super) label: Located<String>,
    /// For integer labels: the name of label 0, of label 1, and so on. [default: the `ClassLabel`
    /// names that Hugging Face's `datasets` writes into a Parquet file]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) class_names: Option<Located<Vec<String>>>,
    /// The main metric, reported first. [default: top1]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) main_metric: Option<Located<Metric>>,
}

impl ProbeSet {
    pub(super) fn main_metric(&self) -> Metric {
        self.main_metric.as_ref().map_or(Metric::Top1, |metric| *metric.value())
    }

    /// The training examples as a set of the `zero-shot` stage.
    pub(super) fn as_set(&self) -> SetOptions {
        SetOptions::labels_only(
            self.name.clone(),
            self.train.clone(),
            self.label.clone(),
            self.class_names.clone(),
        )
    }
}

/// A task of the `probe` stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Task {
    /// Logistic regression by L-BFGS, with the L2 penalty chosen as in the CLIP paper.
    LinearProbe,
    /// The nearest training examples vote, weighted by their cosine similarity.
    Knn,
    /// Linear probes trained on a few examples per class.
    FewShot,
}

impl Task {
    /// The spelling in tables and options.
    pub(super) fn name(self) -> &'static str {
        match self {
            Task::LinearProbe => "linear-probe",
            Task::Knn => "knn",
            Task::FewShot => "few-shot",
        }
    }
}

fn tasks() -> Vec<Task> {
    vec![Task::LinearProbe, Task::Knn, Task::FewShot]
}
fn neighbours() -> Located<usize> {
    Located::without_span(20)
}
fn shots() -> Located<Vec<usize>> {
    Located::without_span(vec![1, 2, 4, 8, 16])
}
fn repeats() -> Located<usize> {
    Located::without_span(5)
}
fn validation_share() -> Located<f64> {
    Located::without_span(0.2)
}
fn max_examples() -> Located<usize> {
    Located::without_span(50_000)
}

/// The error for a label column of lists.
pub(super) const SEVERAL: &str = "probes need sets with one class per image";
