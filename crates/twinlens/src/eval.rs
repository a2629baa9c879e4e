//! `twinlens eval`: evaluates weights on evaluation sets, without a pipeline file.
//!
//! It builds a pipeline in memory that reads, embeds and scores each set, and runs it like any
//! other: it can be resumed, and new prompts reuse the embeddings.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, IsTerminal};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use twinlens_curate::stages::Sql;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::{Dataset, MAIN};
use twinlens_eval::prompts::{PromptOptions, Space, TemplateSet};
use twinlens_eval::sets::{self, Declaration, LocatedSet, Task, Written, catalog};
use twinlens_eval::{Embed, EvaluationSet, Retrieval, ZeroShot};
use twinlens_model::weights::FOLDER_FILES;
use twinlens_model::{Clip, ClipConfig};
use twinlens_pipeline::config::{Argument, InputSchemas, Pipeline, PipelineValues, StageValues};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::hub::is_hub_name;
use twinlens_pipeline::run::{self, Settings};
use twinlens_pipeline::{Registry, RunError, StageKind};

use crate::checkpoint::Checkpoint;
use crate::cli::{EvalArgs, RowFormat};
use crate::errors::Failure;
use crate::run::{check_rejected, run_watched, settings};
use crate::sql::rows::RowWriter;
use crate::text::{counted, seconds, shell_quote};
use crate::{env, hub, secrets};

/// The value of `--sets` for all declared sets.
const ALL: &str = "all";
/// The stage whose table is printed at the end.
const RESULTS: &str = "results";
/// The stages that score sets of classes, and of captions.
const ZERO_SHOT: &str = "zero_shot";
const RETRIEVAL: &str = "retrieval";

pub(crate) fn execute(args: &EvalArgs, registry: &Registry) -> Result<(), Failure> {
    if args.format == RowFormat::Parquet && std::io::stdout().is_terminal() {
        return Err(Failure::user("cannot write Parquet to a terminal")
            .hint("redirect it, or choose another --format"));
    }
    let checkpoint = Checkpoint::of(&args.weights)?;
    let weights = match &checkpoint {
        Some(checkpoint) => checkpoint.folder.clone(),
        None if is_hub_name(&args.weights) => hub::open().model(&args.weights, &FOLDER_FILES)?,
        None => absolute_dir(&args.weights)?,
    };
    let (config, _) = Clip::describe(&weights).map_err(|error| Failure::user(error.to_string()))?;
    let prompts = prompts(&args.prompts)?;
    let (sets, missing) = find_sets(&args.sets, args.data.as_deref())?;
    let values = Builder::new(args, &weights)?.build(&prompts, &config, &sets)?;
    let pipeline = check(values, registry)?;
    let dir = args.dir.clone().unwrap_or_else(|| default_dir(&args.weights));
    let settings = Settings { fresh: args.fresh, ..settings(&args.engine, Some(&dir), &pipeline)? };
    let done = run_watched(&pipeline, &settings, &args.engine, async |settings, watcher, cancel| {
        Ok(run::run(&pipeline, registry, settings, watcher, cancel).await?)
    })?;
    done.watcher.end(&json!({
        "event": "run_finished", "seconds": done.elapsed.as_secs_f64(), "sets": sets.len(),
        "missing": missing.iter().map(|set| &set.name).collect::<Vec<_>>(),
    }));
    check_rejected(&done.value)?;
    print(&Dataset::open(settings.dir.join(RESULTS))?, args.format)?;
    done.watcher.print_summary(&summary(args, &sets, &missing, &settings, seconds(done.elapsed)));
    Ok(())
}

pub(crate) fn current_dir() -> Result<PathBuf, Failure> {
    std::env::current_dir().map_err(|error| Failure::io(".", error))
}

/// The absolute path of a directory.
pub(crate) fn absolute_dir(text: &str) -> Result<PathBuf, Failure> {
    let path = Path::new(text);
    let absolute = path.canonicalize().map_err(|error| Failure::io(path, error))?;
    if absolute.is_dir() {
        Ok(absolute)
    } else {
        Err(Failure::user(format!("{text} is not a directory"))
            .hint("name the directory that holds config.json and the weights"))
    }
}

/// The value of `--prompts` as options of a `zero-shot` stage: templates, names of template sets,
/// and template sets from files.
pub(crate) fn prompts(args: &[String]) -> Result<Vec<PromptOptions>, Failure> {
    let mut all = Vec::new();
    for text in args {
        let options = match text.strip_prefix('@') {
            None => PromptOptions::Text(text.clone()),
            Some(file) => {
                let path = Path::new(file);
                let lines = std::fs::read_to_string(path).map_err(|error| Failure::io(path, error))?;
                let templates =
                    lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
                let name =
                    path.file_stem().map_or_else(|| file.into(), |stem| stem.to_string_lossy().into_owned());
                PromptOptions::Own(TemplateSet { name, templates, space: Space::default(), select: None })
            }
        };
        if let Err((why, hint)) = options.resolve(None) {
            let failure = Failure::user(format!("--prompts: {why}"));
            return Err(hint.into_iter().fold(failure, Failure::hint));
        }
        all.push(options);
    }
    Ok(all)
}

/// A set whose data exist.
pub(crate) struct AvailableSet {
    /// The name or file in `--sets`.
    pub name: String,
    pub set: Declaration,
    pub root: PathBuf,
    /// The name of its stage.
    pub stage: String,
}

impl AvailableSet {
    /// Its classes and templates.
    pub(crate) fn written(&self) -> Result<Written, Failure> {
        let opened = sets::open(&self.set, &self.set.split, &self.root);
        Ok(opened.map_err(|error| Failure::from(RunError::from(error)))?.written())
    }
}

/// The requested sets whose data exist, and those whose data do not.
pub(crate) fn find_sets(
    sets: &[String],
    data_dir: Option<&str>,
) -> Result<(Vec<AvailableSet>, Vec<Declaration>), Failure> {
    let files = Files { base: current_dir()?, scratch: env::cache_dir(), hub: hub::open() };
    let all = sets.iter().any(|name| name == ALL);
    let names: Vec<String> = if all { catalog::names().map(String::from).collect() } else { sets.to_vec() };
    let data = data_dir.map(absolute_dir).transpose()?;
    if let (None, Some(name)) = (&data, names.iter().find(|name| !sets::is_data(name))) {
        let name = if all { ALL } else { name };
        let failure = Failure::user(format!("the set `{name}` needs --data, the directory with its data"));
        return Err(
            failure.hint("a directory with a directory of images per class has a `/`: --sets ./my-classes/")
        );
    }
    let (mut available, mut missing) = (Vec::new(), Vec::new());
    // The names that other stages have.
    let mut stages = BTreeSet::from([ZERO_SHOT, RETRIEVAL, RESULTS].map(String::from));
    for name in names {
        let LocatedSet { set, root } = sets::locate(&files, &name, data.as_deref(), None)?;
        let Some(root) = root else {
            missing.push(set);
            continue;
        };
        let mut stage: String = set
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
            .collect();
        while [stage.clone(), vectors(&stage)].iter().any(|name| stages.contains(name)) {
            stage.push('_');
        }
        stages.extend([stage.clone(), vectors(&stage)]);
        available.push(AvailableSet { name, set, root, stage });
    }
    if available.is_empty() {
        let failure = Failure::user(format!("no evaluation set is in {}", data_dir.unwrap_or_default()));
        return Err(failure.hint(match &missing[..] {
            [one] => one.how_to_get.clone(),
            _ => "`twinlens sets NAME` describes how to download one".into(),
        }));
    }
    Ok((available, missing))
}

/// The directory with the data, for messages.
fn data_of(args: &EvalArgs) -> &str {
    args.data.as_deref().unwrap_or_default()
}

/// The results, whose table is printed.
const COLUMNS: &str = "set, split, task, prompts, metric, value, ci_low, ci_high, chance, n";

/// The pipeline of a call.
struct Builder<'a> {
    args: &'a EvalArgs,
    values: PipelineValues,
    /// The model, and its argument.
    model: (String, Argument),
    /// The directory with the data of the sets, and its argument.
    data: Option<(String, Argument)>,
    batch_size: Argument,
}

impl<'a> Builder<'a> {
    fn new(args: &'a EvalArgs, weights: &Path) -> Result<Self, Failure> {
        let mut values = PipelineValues::new("eval");
        let model = (format!("{}/", weights.display()), values.argument("--weights", &args.weights));
        let data = match &args.data {
            Some(given) => {
                let folder = absolute_dir(given)?;
                Some((format!("{}/", folder.display()), values.argument("--data", given)))
            }
            None => None,
        };
        let batch_size = values.argument("--batch-size", &args.batch_size.to_string());
        Ok(Self { args, values, model, data, batch_size })
    }

    /// Reads, embeds and scores each set.
    fn build(
        mut self,
        prompts: &[PromptOptions],
        config: &ClipConfig,
        sets: &[AvailableSet],
    ) -> Result<PipelineValues, Failure> {
        let (mut classified, mut retrieved) = (Vec::new(), Vec::new());
        for available in sets {
            let from = self.set(available, config)?;
            match available.set.task {
                Task::Retrieval => retrieved.push((retrieval(available), from)),
                Task::Classification | Task::MultiLabel => {
                    classified.push((classification(available, &available.written()?), from));
                }
            }
        }
        let mut results = Vec::new();
        if !classified.is_empty() {
            let prompts: Vec<(Value, Argument)> = (self.args.prompts.iter().zip(prompts))
                .map(|(given, prompts)| (json!(prompts), self.values.argument("--prompts", given)))
                .collect();
            let stage = self.evaluation(ZERO_SHOT, ZeroShot::NAME, classified);
            if !prompts.is_empty() {
                stage.items("prompts", prompts);
            }
            results.push(ZERO_SHOT);
        }
        if !retrieved.is_empty() {
            self.evaluation(RETRIEVAL, Retrieval::NAME, retrieved);
            results.push(RETRIEVAL);
        }
        let all: Vec<String> = results.iter().map(|stage| format!("select {COLUMNS} from {stage}")).collect();
        let query =
            format!("select * from ({}) order by set, task, metric, prompts", all.join(" union all "));
        let from = self.values.argument("--sets", &self.args.sets.join(","));
        self.values.stage(RESULTS, Sql::NAME, from).option("query", query, from);
        Ok(self.values)
    }

    /// The stages that read and embed a set; its argument.
    fn set(&mut self, available: &AvailableSet, config: &ClipConfig) -> Result<Argument, Failure> {
        let AvailableSet { name, stage, .. } = available;
        let set = if name.ends_with(".toml") {
            current_dir()?.join(name).display().to_string()
        } else {
            name.clone()
        };
        let from = self.values.argument("--sets", name);
        let model = self.model.clone();
        let data = self.data.clone().filter(|_| !sets::is_data(name));
        let values = self.values.stage(stage, EvaluationSet::NAME, from).option("set", set, from);
        if let Some((data, from)) = data {
            values.option("data", data, from);
        }
        self.values
            .stage(&vectors(stage), Embed::NAME, from)
            .option("input", stage.as_str(), from)
            .option("model", model.0, model.1)
            .option("width", config.embed, model.1)
            .option("batch_size", self.args.batch_size, self.batch_size);
        Ok(from)
    }

    /// The stage that scores sets.
    fn evaluation(&mut self, name: &str, kind: &str, sets: Vec<(Value, Argument)>) -> &mut StageValues {
        let (model, from) = self.model.clone();
        self.values
            .stage(name, kind, from)
            .option("model", model, from)
            .option("batch_size", self.args.batch_size, self.batch_size)
            .items("sets", sets)
    }
}

/// The stage that embeds the set that a stage reads.
fn vectors(stage: &str) -> String {
    format!("{stage}_vectors")
}

/// A set as an option of a `retrieval` stage.
pub(crate) fn retrieval(available: &AvailableSet) -> Value {
    json!({
        "name": available.set.name,
        "input": vectors(&available.stage),
        "captions": "captions",
    })
}

/// A set as an option of a `zero-shot` stage, with the classes bound by its data.
pub(crate) fn classification(available: &AvailableSet, written: &Written) -> Value {
    let set = &available.set;
    let classes = &written.bound.classes;
    let names: Vec<&String> = classes.iter().map(|class| &class.name).collect();
    let multi_label = set.task == Task::MultiLabel;
    let synonyms: BTreeMap<&String, &Vec<String>> = (classes.iter())
        .filter(|class| !class.synonyms.is_empty())
        .map(|class| (&class.name, &class.synonyms))
        .collect();
    json!({
        "name": set.name,
        "input": vectors(&available.stage),
        "split": set.split,
        "label": if multi_label { "labels" } else { "class_name" },
        "classes": (!multi_label).then_some(&names),
        "class_names": multi_label.then_some(&names),
        "synonyms": synonyms,
        "templates": Some(&written.templates).filter(|templates| !templates.is_empty()),
        "main_metric": set.main_metric().map(|metric| metric.name()),
    })
}

fn check(values: PipelineValues, registry: &Registry) -> Result<Pipeline, Failure> {
    let base = current_dir()?;
    let files = Files { base: base.clone(), scratch: env::cache_dir(), hub: hub::open() };
    let pipeline = values
        .check(&base, registry, &InputSchemas::of(&files))
        .map_err(|report| Failure::report(Box::new(report)))?;
    secrets::learn(&pipeline.secrets);
    Ok(pipeline)
}

fn default_dir(weights: &str) -> String {
    let name = Path::new(weights).file_name().map(|name| name.to_string_lossy().into_owned());
    format!("runs/eval-{}", name.as_deref().unwrap_or("model"))
}

fn print(results: &Dataset, format: RowFormat) -> Result<(), Failure> {
    let schema = results.schema(MAIN)?;
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let mut writer = RowWriter::new(format, Box::new(BufWriter::new(std::io::stdout())), &schema)?;
    for batch in ShardReader::new(results, MAIN, &columns, 1024) {
        writer.write(&batch?)?;
    }
    writer.finish()
}

fn summary(
    args: &EvalArgs,
    sets: &[AvailableSet],
    missing: &[Declaration],
    settings: &Settings,
    time: String,
) -> String {
    let mut text = format!("{} in {time}", counted(sets.len() as u64, "set"));
    if args.sets.iter().any(|name| name == ALL) {
        let names: Vec<&str> = missing.iter().map(|set| set.name.as_str()).collect();
        if !names.is_empty() {
            text += &format!(
                "\nnot in {}: {} (`twinlens sets NAME` describes how to download one)",
                data_of(args),
                names.join(", ")
            );
        }
    } else {
        for set in missing {
            text += &format!("\nnot in {}: {}: {}", data_of(args), set.name, set.how_to_get);
        }
    }
    text + &format!("\nquery it with: twinlens sql {}", shell_quote(&settings.dir.to_string()))
}
