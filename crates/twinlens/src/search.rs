//! `twinlens search`: the images of a run that are nearest to a text or another image.
//!
//! The embeddings to search and their model are found through the manifests.

use std::io::{BufWriter, IsTerminal};
use std::path::{Path, PathBuf};

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, MAIN, manifest};
use twinlens_eval::model::Model;
use twinlens_eval::vectors::{EMBEDDING_MODEL, has_embeddings};
use twinlens_eval::{Embed, EvalError, search};
use twinlens_model::weights::FOLDER_FILES;
use twinlens_pipeline::hub::is_hub_name;
use twinlens_pipeline::suggest::{did_you_mean, list_names};
use twinlens_pipeline::{RunError, StageKind, run};

use crate::cli::{RowFormat, SearchArgs};
use crate::errors::Failure;
use crate::sql::rows::RowWriter;
use crate::{hub, models};

/// The columns that are shown by default, if they exist.
const DEFAULT_COLUMNS: [&str; 6] = ["caption", "class_name", "label", "url", "page_url", "uid"];

pub(crate) fn execute(args: &SearchArgs) -> Result<(), Failure> {
    if args.format == RowFormat::Parquet && std::io::stdout().is_terminal() {
        return Err(Failure::user("cannot write Parquet to a terminal")
            .hint("redirect it, or choose another --format"));
    }
    let dir = crate::location::parse_location(&args.dir)?;
    let all = datasets(&dir)?;
    let dataset = choose(&all, args.dataset.as_deref(), &dir)?;
    let folder = match &args.model {
        Some(model) if is_hub_name(model) => hub::open().model(model, &FOLDER_FILES)?,
        Some(model) => PathBuf::from(model),
        None => model_of(&all, dataset, &dir)?,
    };
    let model = Model::load(folder.display().to_string(), &folder, Default::default()).map_err(failure)?;
    let query = match (&args.image, &args.text) {
        (Some(file), _) => {
            let bytes = std::fs::read(file).map_err(|error| Failure::io(file, error))?;
            search::image(&model, &bytes).map_err(|error| {
                let failure = failure(error);
                Failure { message: format!("{}: {}", file.display(), failure.message), ..failure }
            })?
        }
        (None, Some(text)) => search::text(&model, text).map_err(failure)?,
        (None, None) => {
            return Err(Failure::user("no text to search for").hint("give a text, or --image FILE"));
        }
    };
    let columns: Vec<&str> = match &args.columns {
        Some(columns) => columns.iter().map(String::as_str).collect(),
        None => DEFAULT_COLUMNS.to_vec(),
    };
    check_columns(dataset, args.columns.as_deref())?;
    let k = usize::from(args.top);
    let found = search::nearest(dataset, MAIN, &query, &model.identity(), k, &columns).map_err(failure)?;
    print(&found, args.format)
}

fn print(found: &RecordBatch, format: RowFormat) -> Result<(), Failure> {
    let mut writer = RowWriter::new(format, Box::new(BufWriter::new(std::io::stdout())), &found.schema())?;
    writer.write(found)?;
    writer.finish()
}

fn failure(error: EvalError) -> Failure {
    RunError::from(error).into()
}

/// The datasets of a run directory; or a single dataset or Parquet file.
fn datasets(dir: &Location) -> Result<Vec<Dataset>, Failure> {
    if dir.as_local().is_some_and(Path::is_file) {
        return Ok(vec![Dataset::from_parquet(dir.clone())?]);
    }
    if manifest::exists(dir)? {
        return Ok(vec![Dataset::open(dir.clone())?]);
    }
    crate::status::pipeline_of(dir)?;
    Ok(run::datasets(dir)?)
}

fn name(dataset: &Dataset) -> &str {
    &dataset.state().begin.stage
}

/// The dataset to search: the named one, or the only one that has embeddings, or the only one of an
/// `embed` stage.
fn choose<'a>(all: &'a [Dataset], named: Option<&str>, dir: &Location) -> Result<&'a Dataset, Failure> {
    let embedded = |dataset: &&Dataset| dataset.schema(MAIN).is_ok_and(|schema| has_embeddings(&schema));
    let candidates: Vec<&Dataset> = all.iter().filter(embedded).collect();
    let names = || candidates.iter().map(|dataset| name(dataset));
    if let Some(named) = named {
        return candidates.iter().find(|dataset| name(dataset) == named).copied().ok_or_else(|| {
            let hint = did_you_mean(named, names());
            let hint = hint.unwrap_or_else(|| format!("embeddings are in {}", list_names(names())));
            Failure::user(format!("`{named}` is not a dataset with embeddings in {dir}")).hint(hint)
        });
    }
    let of_embed_stages: Vec<&Dataset> =
        candidates.iter().filter(|dataset| dataset.state().begin.kind == Embed::NAME).copied().collect();
    match (&candidates[..], &of_embed_stages[..]) {
        ([one], _) | (_, [one]) => Ok(*one),
        ([], _) => {
            Err(Failure::user(format!("{dir} has no embeddings"))
                .hint("add an `embed` stage to the pipeline"))
        }
        _ => Err(Failure::user(format!("{dir} has several datasets with embeddings"))
            .hint(format!("choose one with --dataset: {}", list_names(names())))),
    }
}

/// The directory of the model of a dataset's embeddings: that of the `embed` stage whose embeddings
/// have the same model identity.
fn model_of(all: &[Dataset], dataset: &Dataset, dir: &Location) -> Result<PathBuf, Failure> {
    let unknown =
        |message: String| Failure::user(message).hint("name the directory of the model with --model");
    let identity = model_identity(dataset)?;
    let mut embeds = all.iter().filter(|other| other.state().begin.kind == Embed::NAME);
    let mut found = None;
    for other in &mut embeds {
        if name(other) == name(dataset) || (identity.is_some() && model_identity(other)? == identity) {
            found = Some(other);
            break;
        }
    }
    let Some(embed) = found else {
        return Err(unknown(format!(
            "no `embed` stage of this run produced the embeddings of `{}`",
            name(dataset)
        )));
    };
    let option = embed.state().begin.recipe.pointer("/options/model").and_then(|model| model.as_str());
    let model = option.ok_or_else(|| unknown(format!("the manifest of `{}` names no model", name(embed))))?;
    if is_hub_name(model) {
        return Ok(hub::open().model(model, &FOLDER_FILES)?);
    }
    if !model.contains('/') {
        // A stage of the same run as the dataset.
        let sibling =
            embed.location().display_path().parent().map(|run| Location::from(run.join(model).as_path()));
        let location = if manifest::exists(&dir.join(model))? { Some(dir.join(model)) } else { sibling };
        let training = location.map(Dataset::open).transpose()?;
        let training =
            training.ok_or_else(|| unknown(format!("the training `{model}` is not in this run")))?;
        return models::of_training(&training);
    }
    // A path is relative to the pipeline file, which is mostly above the run directory.
    let above = dir.as_local().map(|dir| std::path::absolute(dir).unwrap_or(dir.into()));
    let above = above.iter().flat_map(|dir| dir.ancestors());
    let mut places = [Path::new("")].into_iter().chain(above).map(|folder| folder.join(model));
    places.find(|path| path.exists()).ok_or_else(|| {
        unknown(format!(
            "the model `{model}` is neither in the current directory nor above the run directory"
        ))
    })
}

/// The model identity in the first row of a dataset.
fn model_identity(dataset: &Dataset) -> Result<Option<String>, Failure> {
    let Some(first) = ShardReader::range(dataset, MAIN, 0..1, &[EMBEDDING_MODEL], 1).next().transpose()?
    else {
        return Ok(None);
    };
    let column = first.column_by_name(EMBEDDING_MODEL).and_then(|column| column.as_string_opt::<i32>());
    Ok(column.filter(|column| column.is_valid(0)).map(|column| column.value(0).to_string()))
}

fn check_columns(dataset: &Dataset, columns: Option<&[String]>) -> Result<(), Failure> {
    let schema = dataset.schema(MAIN)?;
    let names = || schema.fields().iter().map(|field| field.name().as_str());
    for column in columns.into_iter().flatten() {
        if schema.field_with_name(column).is_err() {
            let hint = did_you_mean(column, names())
                .unwrap_or_else(|| format!("the columns are {}", list_names(names())));
            return Err(Failure::user(format!("`{}` has no column `{column}`", name(dataset))).hint(hint));
        }
    }
    Ok(())
}
