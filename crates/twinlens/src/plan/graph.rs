//! A plan as a graph for Mermaid and Graphviz. Fused stages are in one box.

use std::collections::BTreeMap;

use super::stages::{StagePlan, decision};
use twinlens_pipeline::run::plan::Decision;

/// The stages of each dataset, in order, with their node numbers.
fn boxes(stages: &[StagePlan]) -> BTreeMap<usize, Vec<(usize, &StagePlan)>> {
    let place = |name: &str| stages.iter().position(|stage| stage.stage == name).unwrap_or(stages.len());
    let mut boxes: BTreeMap<usize, Vec<(usize, &StagePlan)>> = BTreeMap::new();
    for (number, stage) in stages.iter().enumerate() {
        boxes.entry(place(&stage.dataset)).or_default().push((number, stage));
    }
    boxes
}

/// Source node, target node, and the name of the table if it is not the source's main table.
fn edges(stages: &[StagePlan]) -> Vec<(usize, usize, Option<&str>)> {
    let mut edges = Vec::new();
    for (to, stage) in stages.iter().enumerate() {
        for read in &stage.inputs {
            if let Some(from) =
                read.stage().and_then(|name| stages.iter().position(|stage| stage.stage == name))
            {
                edges.push((from, to, (stages[from].stage != read.input).then_some(read.input.as_str())));
            }
        }
    }
    edges
}

/// Inputs that are not stages (files and `funnel`): node number, name, target node.
fn external_inputs(stages: &[StagePlan]) -> Vec<(usize, &str, usize)> {
    let read =
        stages.iter().enumerate().flat_map(|(to, stage)| stage.inputs.iter().map(move |read| (read, to)));
    let external = read.filter(|(read, _)| read.stage().is_none());
    external.enumerate().map(|(index, (read, to))| (stages.len() + index, read.input.as_str(), to)).collect()
}

fn class(stage: &StagePlan) -> &'static str {
    match stage.decision {
        Decision::Reuse { .. } => "reuse",
        Decision::Resume { .. } => "resume",
        Decision::Run { .. } => "run",
    }
}

/// A Mermaid flowchart.
pub(super) fn mermaid(stages: &[StagePlan]) -> String {
    let quoted = |text: &str| {
        text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;")
    };
    let mut text = String::from("flowchart LR\n");
    for (last, members) in boxes(stages) {
        let inside = members.len() > 1;
        if inside {
            text += &format!("  subgraph p{last}[\"{}\"]\n", quoted(&stages[last].dataset));
        }
        for (number, stage) in members {
            let indent = if inside { "    " } else { "  " };
            text += &format!(
                "{indent}s{number}[\"{}<br/>{}\"]:::{}\n",
                quoted(&stage.stage),
                stage.kind,
                class(stage)
            );
        }
        if inside {
            text += "  end\n";
        }
    }
    for (number, name, _) in external_inputs(stages) {
        text += &format!("  s{number}[(\"{}\")]\n", quoted(name));
    }
    for (from, to, label) in edges(stages) {
        let label = label.map(|label| format!("|\"{}\"|", quoted(label))).unwrap_or_default();
        text += &format!("  s{from} -->{label} s{to}\n");
    }
    for (number, _, to) in external_inputs(stages) {
        text += &format!("  s{number} --> s{to}\n");
    }
    text + "  classDef reuse fill:#dfd,stroke:#393\n  classDef resume fill:#ffd,stroke:#993\n  classDef run fill:#ddf,stroke:#339\n"
}

/// A Graphviz digraph.
pub(super) fn dot(stages: &[StagePlan]) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let mut text = String::from("digraph pipeline {\n  rankdir=LR;\n  node [shape=box, style=filled];\n");
    for (last, members) in boxes(stages) {
        let inside = members.len() > 1;
        if inside {
            text +=
                &format!("  subgraph cluster_{last} {{\n    label=\"{}\";\n", quoted(&stages[last].dataset));
        }
        for (number, stage) in members {
            let color = match class(stage) {
                "reuse" => "palegreen",
                "resume" => "lightyellow",
                _ => "lightblue",
            };
            let label = format!("{}\\n{}\\n{}", quoted(&stage.stage), stage.kind, quoted(&decision(stage)));
            text += &format!(
                "  {}s{number} [label=\"{label}\", fillcolor={color}];\n",
                if inside { "  " } else { "" }
            );
        }
        if inside {
            text += "  }\n";
        }
    }
    for (number, name, _) in external_inputs(stages) {
        text += &format!("  s{number} [label=\"{}\", shape=cylinder, style=solid];\n", quoted(name));
    }
    for (from, to, label) in edges(stages) {
        let label = label.map(|label| format!(" [label=\"{}\"]", quoted(label))).unwrap_or_default();
        text += &format!("  s{from} -> s{to}{label};\n");
    }
    for (number, _, to) in external_inputs(stages) {
        text += &format!("  s{number} -> s{to};\n");
    }
    text + "}\n"
}
