//! `twinlens eval`: evaluates weights on evaluation sets, without a pipeline file.
//!
//! It builds a pipeline in memory that reads, embeds and scores each set, and runs it like any
//! other: it can be resumed, and new prompts reuse the embeddings.

use std::collections::BTreeSet;
use std::io::{BufWriter, IsTerminal};
use std::path::{Path, PathBuf};

use serde_json::json;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::{Dataset, MAIN};
use twinlens_eval::prompts::{PromptOptions, Space, TemplateSet};
use twinlens_eval::sets::{self, Declaration, Task, catalog};
use twinlens_model::weights::FOLDER_FILES;
use twinlens_model::{Clip, ClipConfig};
use twinlens_pipeline::config::{self, InputSchemas, Overrides, Pipeline};
use twinlens_pipeline::files::Files;
use twinlens_pipeline::hub::is_hub_name;
use twinlens_pipeline::run::{self, Settings};
use twinlens_pipeline::{Registry, RunError};

use crate::cli::{EvalArgs, RowFormat};
use crate::errors::Failure;
use crate::run::{run_watched, settings, shell_quote};
use crate::sql::rows::RowWriter;
use crate::text::{Paint, counted, seconds};
use crate::{env, hub};

/// The value of `--sets` for all declared sets.
const ALL: &str = "all";
/// The stage whose table is printed at the end.
const RESULTS: &str = "results";

pub(crate) fn execute(args: &EvalArgs, registry: &Registry) -> Result<(), Failure> {
    if args.format == RowFormat::Parquet && std::io::stdout().is_terminal() {
        return Err(Failure::user("cannot write Parquet to a terminal")
            .hint("redirect it, or choose another --format"));
    }
    let weights = if is_hub_name(&args.weights) {
        hub::open().model(&args.weights, &FOLDER_FILES)?
    } else {
        absolute_dir(&args.weights)?
    };
    let (config, _) = Clip::describe(&weights).map_err(|error| Failure::user(error.to_string()))?;
    let prompts = prompts(&args.prompts)?;
    let (sets, missing) = find_sets(args)?;
    let text = pipeline(args, &prompts, &weights, &config, &sets)?;
    let pipeline = check(&text, registry)?;
    let dir = args.dir.clone().unwrap_or_else(|| default_dir(&args.weights));
    let settings = Settings { fresh: args.fresh, ..settings(&args.engine, Some(&dir), &pipeline)? };
    let done = run_watched(&pipeline, &settings, &args.engine, async |settings, watcher, cancel| {
        Ok(run::run(&pipeline, registry, settings, watcher, cancel).await?)
    })?;
    done.watcher.end(&json!({
        "event": "run_finished", "seconds": done.elapsed.as_secs_f64(), "sets": sets.len(),
        "missing": missing.iter().map(|set| &set.name).collect::<Vec<_>>(),
    }));
    print(&Dataset::open(settings.dir.join(RESULTS))?, args.format)?;
    done.watcher.print_summary(&summary(args, &sets, &missing, &settings, seconds(done.elapsed)));
    Ok(())
}

fn current_dir() -> Result<PathBuf, Failure> {
    std::env::current_dir().map_err(|error| Failure::io(".", error))
}

/// The absolute path of a directory.
fn absolute_dir(text: &str) -> Result<PathBuf, Failure> {
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
fn prompts(args: &[String]) -> Result<Vec<PromptOptions>, Failure> {
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

fn prompt(options: &PromptOptions) -> String {
    match options {
        PromptOptions::Text(text) => string(text),
        PromptOptions::Own(own) => {
            format!("{{ name = {}, templates = {} }}", string(&own.name), strings(&own.templates))
        }
    }
}

/// A set whose data exist.
struct AvailableSet {
    /// The name or file in `--sets`.
    name: String,
    set: Declaration,
    root: PathBuf,
    /// The name of its stage.
    stage: String,
}

/// The requested sets whose data exist, and those whose data do not.
fn find_sets(args: &EvalArgs) -> Result<(Vec<AvailableSet>, Vec<Declaration>), Failure> {
    let files = Files { base: current_dir()?, scratch: env::cache_dir(), hub: hub::open() };
    let all = args.sets.iter().any(|name| name == ALL);
    let names: Vec<String> =
        if all { catalog::names().map(String::from).collect() } else { args.sets.clone() };
    let data = absolute_dir(&args.data)?;
    let (mut available, mut missing, mut stages) = (Vec::new(), Vec::new(), BTreeSet::new());
    for name in names {
        let set = sets::declared(&files, &name).map_err(Failure::from)?;
        let Some(data) = sets::find(&set, &data) else {
            missing.push(set);
            continue;
        };
        let mut stage: String = set
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
            .collect();
        while !stages.insert(stage.clone()) {
            stage.push('_');
        }
        available.push(AvailableSet { name, set, root: data.root, stage });
    }
    if available.is_empty() {
        let failure = Failure::user(format!("no evaluation set is in {}", args.data));
        return Err(failure.hint(match &missing[..] {
            [one] => one.how_to_get.clone(),
            _ => "`twinlens sets NAME` describes how to download one".into(),
        }));
    }
    Ok((available, missing))
}

/// A TOML string: JSON strings are valid in TOML.
fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn strings<'a>(texts: impl IntoIterator<Item = &'a String>) -> String {
    let all: Vec<String> = texts.into_iter().map(|text| string(text)).collect();
    format!("[{}]", all.join(", "))
}

fn pipeline(
    args: &EvalArgs,
    prompts: &[PromptOptions],
    weights: &Path,
    config: &ClipConfig,
    sets: &[AvailableSet],
) -> Result<String, Failure> {
    let model = string(&format!("{}/", weights.display()));
    let data = string(&format!("{}/", absolute_dir(&args.data)?.display()));
    let mut text = "name = \"eval\"\n".to_string();
    let (mut classified, mut retrieved) = (Vec::new(), Vec::new());
    for available in sets {
        let AvailableSet { name, set, stage, .. } = available;
        let name = if name.ends_with(".toml") {
            string(&current_dir()?.join(name).display().to_string())
        } else {
            string(name)
        };
        text += &format!("\n[stages.{stage}]\nkind = \"evaluation-set\"\nset = {name}\ndata = {data}\n");
        text += &format!(
            "\n[stages.{stage}_vectors]\nkind = \"embed\"\ninput = \"{stage}\"\nmodel = {model}\nwidth = {}\nbatch_size = {}\n",
            config.embed, args.batch_size
        );
        match set.task {
            Task::Retrieval => retrieved.push(format!(
                "{{ name = {}, input = \"{stage}_vectors\", captions = \"captions\" }}",
                string(&set.name)
            )),
            Task::Classification | Task::MultiLabel => classified.push(classification(available)?),
        }
    }
    let mut results = Vec::new();
    if !classified.is_empty() {
        text += &format!(
            "\n[stages.zero_shot]\nkind = \"zero-shot\"\nmodel = {model}\nbatch_size = {}\n",
            args.batch_size
        );
        text += &format!("sets = [\n    {}\n]\n", classified.join(",\n    "));
        if !prompts.is_empty() {
            text += &format!("prompts = [{}]\n", prompts.iter().map(prompt).collect::<Vec<_>>().join(", "));
        }
        results.push("zero_shot");
    }
    if !retrieved.is_empty() {
        text += &format!(
            "\n[stages.retrieval]\nkind = \"retrieval\"\nmodel = {model}\nbatch_size = {}\n",
            args.batch_size
        );
        text += &format!("sets = [\n    {}\n]\n", retrieved.join(",\n    "));
        results.push("retrieval");
    }
    let columns = "set, split, task, prompts, metric, value, ci_low, ci_high, chance, n";
    let all: Vec<String> = results.iter().map(|stage| format!("select {columns} from {stage}")).collect();
    let query = format!("select * from ({}) order by set, task, metric, prompts", all.join(" union all "));
    text += &format!("\n[stages.{RESULTS}]\nkind = \"sql\"\nquery = {}\n", string(&query));
    Ok(text)
}

/// A set as an option of a `zero-shot` stage, with the classes bound by its data.
fn classification(available: &AvailableSet) -> Result<String, Failure> {
    let set = &available.set;
    let opened =
        sets::open(set, &set.split, &available.root).map_err(|error| Failure::from(RunError::from(error)))?;
    let written = opened.written();
    let classes = &written.bound.classes;
    let multi_label = set.task == Task::MultiLabel;
    let mut options = vec![
        format!("name = {}", string(&set.name)),
        format!("input = \"{}_vectors\"", available.stage),
        format!("split = {}", string(&set.split)),
        format!("label = \"{}\"", if multi_label { "labels" } else { "class_name" }),
        format!(
            "{} = {}",
            if multi_label { "class_names" } else { "classes" },
            strings(classes.iter().map(|class| &class.name))
        ),
    ];
    let with_synonyms = classes.iter().filter(|class| !class.synonyms.is_empty());
    let synonyms: Vec<String> = with_synonyms
        .map(|class| format!("{} = {}", string(&class.name), strings(&class.synonyms)))
        .collect();
    if !synonyms.is_empty() {
        options.push(format!("synonyms = {{ {} }}", synonyms.join(", ")));
    }
    if !written.templates.is_empty() {
        options.push(format!("templates = {}", strings(&written.templates)));
    }
    if let Some(metric) = set.main_metric() {
        options.push(format!("main_metric = \"{}\"", metric.name()));
    }
    Ok(format!("{{ {} }}", options.join(", ")))
}

/// The checked pipeline. Arguments were checked before, so an error here is a bug, and shows the
/// text.
fn check(text: &str, registry: &Registry) -> Result<Pipeline, Failure> {
    let base = current_dir()?;
    let path = base.join("eval.toml");
    let files = Files { base, scratch: env::cache_dir(), hub: hub::open() };
    config::check(&path, text, registry, &Overrides::default(), &InputSchemas::of(&files))
        .map_err(|report| Failure::report(report.render(Paint::stderr().is_on())))
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
                args.data,
                names.join(", ")
            );
        }
    } else {
        for set in missing {
            text += &format!("\nnot in {}: {}: {}", args.data, set.name, set.how_to_get);
        }
    }
    text + &format!("\nquery it with: twinlens sql {}", shell_quote(&settings.dir.to_string()))
}
