//! What a plan shows of each stage.

use serde::Serialize;
use twinlens_dataset::protocol::Variant;
use twinlens_dataset::types;
use twinlens_pipeline::RunError;
use twinlens_pipeline::config::{Pipeline, Resolved};
use twinlens_pipeline::run::plan::{Decision, Unit};

use crate::text::counted;

#[derive(Debug, Serialize)]
pub(crate) struct StagePlan {
    pub stage: String,
    pub kind: &'static str,
    /// The sweep options that the stage depends on, and their values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<Variant>,
    pub inputs: Vec<Input>,
    /// What presets expand to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stands_for: Vec<String>,
    /// The stage whose dataset holds this one's rows: itself, or the one that it is fused into.
    pub dataset: String,
    #[serde(flatten)]
    pub decision: Decision,
    /// What happens to the dataset of another recipe that has the name now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaces: Option<String>,
    pub columns: Vec<Column>,
    pub side_tables: Vec<&'static str>,
}

impl StagePlan {
    pub(super) fn is_fused(&self) -> bool {
        self.stage != self.dataset
    }
}

/// An input: its name, and the stages it comes from (none for a file, many for `funnel`).
#[derive(Debug, Serialize)]
pub(crate) struct Input {
    pub input: String,
    pub stages: Vec<String>,
}

impl Input {
    /// The stage that the input names.
    pub(super) fn stage(&self) -> Option<&str> {
        let named = |stage: &&String| self.input.split('.').next() == Some(stage.as_str());
        self.stages.iter().find(named).map(String::as_str)
    }
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Column {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
}

/// The stages in the order of the pipeline.
pub(super) fn stages(pipeline: &Pipeline, units: &[Unit]) -> Result<Vec<StagePlan>, RunError> {
    let mut stages: Vec<(usize, StagePlan)> = Vec::new();
    for unit in units {
        for &index in &unit.nodes {
            let node = &pipeline.nodes[index];
            let columns = node.main()?.fields().iter();
            stages.push((
                index,
                StagePlan {
                    stage: node.name.clone(),
                    kind: node.kind,
                    variant: node.variant.clone(),
                    inputs: (node.inputs.iter())
                        .map(|input| describe_input(pipeline, input.input.name(), &input.resolved))
                        .collect(),
                    stands_for: node.plan.notes.clone(),
                    dataset: pipeline.nodes[unit.last()].name.clone(),
                    decision: unit.decision.clone(),
                    replaces: unit.change_in_words(pipeline).filter(|_| index == unit.last()),
                    columns: columns
                        .map(|f| Column { name: f.name().clone(), kind: types::name(f.data_type()) })
                        .collect(),
                    side_tables: node.plan.side.keys().copied().collect(),
                },
            ));
        }
    }
    stages.sort_by_key(|(index, _)| *index);
    Ok(stages.into_iter().map(|(_, stage)| stage).collect())
}

fn describe_input(pipeline: &Pipeline, input: &str, resolved: &Resolved) -> Input {
    let stages: Vec<String> =
        resolved.nodes().iter().map(|node| pipeline.nodes[*node].name.clone()).collect();
    // For a swept stage, name the variant.
    let input = match (resolved, stages.first(), input.split_once('.')) {
        (Resolved::Stage { .. }, Some(stage), None) if is_stage(pipeline, input) => stage.clone(),
        (Resolved::Stage { .. }, Some(stage), Some((_, table))) => format!("{stage}.{table}"),
        _ => input.into(),
    };
    Input { input, stages }
}

/// Whether a name is a stage, not a side table.
fn is_stage(pipeline: &Pipeline, name: &str) -> bool {
    pipeline.nodes.iter().any(|node| node.family() == name)
}

pub(super) fn decision(stage: &StagePlan) -> String {
    if stage.is_fused() {
        return format!("fused into {}", stage.dataset);
    }
    match &stage.decision {
        Decision::Reuse { rows } => format!("reuse: {}", counted(*rows, "row")),
        Decision::Resume { splits } => format!("resume: {} done", counted(*splits, "split")),
        Decision::Run { why } => format!("run: {why}"),
    }
}
