//! `twinlens plan`: the stages, their tables, and what a run would do with each and why.

mod graph;
mod stages;

use std::io::Write;

use twinlens_pipeline::Registry;
use twinlens_pipeline::config::Pipeline;
use twinlens_pipeline::files::Files;
use twinlens_pipeline::run::directory::identity;
use twinlens_pipeline::run::plan::{self, Decision};

use crate::cli::{PlanArgs, PlanFormat};
use crate::continued::Request;
use crate::errors::Failure;
use crate::text::{counted, printable};
use crate::{continued, env, hub, location, secrets};
pub(crate) use stages::StagePlan;
use stages::{Column, decision, stages};

pub(crate) fn execute(args: &PlanArgs, registry: &Registry) -> Result<(), Failure> {
    let request = Request { file: &args.pipeline, set: &args.set.values, stage: args.continued.as_deref() };
    let pipeline =
        continued::open(request, registry, |pipeline| location::run_dir(args.dir.as_deref(), pipeline))?;
    let stages = stage_plans(&pipeline, args.dir.as_deref(), args.until.as_deref(), args.max_rows)?;
    let text = match args.format {
        PlanFormat::Table if args.columns => printable(&text(&stages, details)),
        PlanFormat::Table => printable(&text(&stages, |_, _, _| String::new())),
        PlanFormat::Mermaid => graph::mermaid(&stages),
        PlanFormat::Dot => graph::dot(&stages),
        PlanFormat::Json => {
            let json = serde_json::to_string_pretty(&stages)
                .map_err(|error| Failure::internal(error.to_string()))?;
            json + "\n"
        }
    };
    let mut out = std::io::stdout().lock();
    // What a stage stands for has the values of its options.
    out.write_all(secrets::hide(&text).as_bytes())?;
    Ok(out.flush()?)
}

/// What a run would do with each stage.
pub(crate) fn stage_plans(
    pipeline: &Pipeline,
    dir: Option<&str>,
    until: Option<&str>,
    max_rows: Option<u64>,
) -> Result<Vec<StagePlan>, Failure> {
    let dir = location::run_dir(dir, pipeline)?;
    if let Some(other) = identity(&dir)?.filter(|name| *name != pipeline.name) {
        let message = format!("{dir} holds a run of the pipeline `{other}`, not of `{}`", pipeline.name);
        return Err(Failure::user(message).hint("choose another directory with --dir"));
    }
    let files = Files { base: pipeline.base.clone(), scratch: env::cache_dir(), hub: hub::open() };
    let units = plan::plan(pipeline, &dir, &files, until, max_rows)?;
    Ok(stages(pipeline, &units)?)
}

/// A line for each stage, with what `details` says below it.
fn text(stages: &[StagePlan], details: fn(&StagePlan, &[StagePlan], usize) -> String) -> String {
    let width = |text: fn(&StagePlan) -> usize| stages.iter().map(text).max().unwrap_or(0);
    let (names, kinds) = (width(|stage| stage.stage.len()), width(|stage| stage.kind.len()));
    let mut text = String::new();
    for stage in stages {
        text += &format!("{:names$}  {:kinds$}  {}\n", stage.stage, stage.kind, decision(stage));
        if let Some(replaces) = &stage.replaces {
            text += &format!("{:names$}    {replaces}\n", "");
        }
        text += &details(stage, stages, names + 4);
    }
    let (mut reused, mut resumed, mut built) = (0, 0, 0);
    for stage in stages.iter().filter(|stage| !stage.is_fused()) {
        match stage.decision {
            Decision::Reuse { .. } => reused += 1,
            Decision::Resume { .. } => resumed += 1,
            Decision::Run { .. } => built += 1,
        }
    }
    text + &format!(
        "\n{}: {built} to build, {resumed} to resume, {reused} to reuse\n",
        counted(reused + resumed + built, "dataset")
    )
}

/// The settings, inputs, presets, columns and side tables of a stage.
fn details(stage: &StagePlan, stages: &[StagePlan], indent: usize) -> String {
    let mut text = String::new();
    if let Some(variant) = &stage.variant {
        let values = variant.settings.iter().map(|s| format!("{}.{} = {}", s.stage, s.option, s.value));
        text += &wrapped(&values.collect::<Vec<_>>(), indent);
    }
    let inputs: Vec<&str> = stage.inputs.iter().map(|read| read.input.as_str()).collect();
    if !inputs.is_empty() {
        text += &format!("{:indent$}reads {}\n", "", inputs.join(", "));
    }
    for line in &stage.stands_for {
        text += &format!("{:indent$}{line}\n", "");
    }
    text += &wrapped(&columns(stage, stages), indent);
    if !stage.side_tables.is_empty() {
        text += &format!("{:indent$}side tables {}\n", "", stage.side_tables.join(", "));
    }
    text
}

/// The columns of a stage. If it has all columns of its first input, those are summarised by the
/// input's name.
fn columns(stage: &StagePlan, stages: &[StagePlan]) -> Vec<String> {
    let first = stage.inputs.first().filter(|read| read.stage() == Some(&read.input));
    let before = first.and_then(|read| stages.iter().find(|stage| stage.stage == read.input));
    let before = before.filter(|before| before.columns.iter().all(|column| stage.columns.contains(column)));
    let known = |column: &&Column| before.is_some_and(|before| before.columns.contains(column));
    let own = stage.columns.iter().filter(|column| !known(column));
    let all = before.map(|before| format!("all columns of {}", before.stage));
    all.into_iter().chain(own.map(|column| format!("{} {}", column.name, column.kind))).collect()
}

/// Items separated by commas, in lines of at most 100 columns.
fn wrapped(items: &[String], indent: usize) -> String {
    let mut text = String::new();
    let mut line = String::new();
    for (index, item) in items.iter().enumerate() {
        let item = if index + 1 < items.len() { format!("{item}, ") } else { item.clone() };
        if !line.is_empty() && indent + line.len() + item.len() > 100 {
            text += &format!("{:indent$}{}\n", "", line.trim_end());
            line.clear();
        }
        line += &item;
    }
    if !line.is_empty() {
        text += &format!("{:indent$}{}\n", "", line.trim_end());
    }
    text
}
