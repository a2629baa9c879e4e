//! `twinlens model`: named model configurations with their parameters and FLOPs, and models for
//! other programs.

use std::fs;
use std::io::Write;
use std::path::Path;

use twinlens_dataset::storage::local;
use twinlens_eval::model::Model;
use twinlens_model::{CatalogEntry, ForeignFormat, ModelError, catalog, export};
use twinlens_pipeline::RunError;

use crate::cli::{ModelCommand, ModelExportArgs, ModelFormat};
use crate::errors::Failure;
use crate::model_cost;
use crate::models;
use crate::table::TableWriter;

pub(crate) fn execute(command: &ModelCommand) -> Result<(), Failure> {
    match command {
        ModelCommand::List => list(),
        ModelCommand::Show { name } => show(name),
        ModelCommand::Export(ModelExportArgs { model, out, to }) => {
            let to = match to {
                ModelFormat::HuggingFace => ForeignFormat::HuggingFace,
                ModelFormat::OpenClip => ForeignFormat::OpenClip,
            };
            write(&open(model)?, out, to)
        }
        ModelCommand::Cost(args) => model_cost::execute(args),
    }
}

fn list() -> Result<(), Failure> {
    let names =
        ["model", "pixels", "embed", "image M", "text M", "parameters M", "image GFLOP", "GFLOP per pair"];
    let right = [false, true, true, true, true, true, true, true];
    let mut table = TableWriter::with_columns(std::io::stdout().lock(), &names, &right);
    for CatalogEntry { name, config, profile, .. } in catalog() {
        let millions = |count: u64| format!("{:.2}", count as f64 / 1e6);
        // Three significant digits at all sizes.
        let giga = |flops: u64| match flops as f64 / 1e9 {
            large if large >= 10.0 => format!("{large:.1}"),
            small => format!("{small:.3}"),
        };
        table.row(vec![
            name.into(),
            config.vision.image_size().to_string(),
            config.embed.to_string(),
            millions(profile.image_parameters),
            millions(profile.text_parameters),
            millions(profile.parameters()),
            giga(profile.image_flops),
            giga(profile.flops()),
        ])?;
    }
    drop(table.finish()?);
    Ok(())
}

fn show(name: &str) -> Result<(), Failure> {
    let config = models::preset(name)?;
    let json = serde_json::to_string_pretty(&config).map_err(|error| Failure::user(error.to_string()))?;
    Ok(writeln!(std::io::stdout().lock(), "{json}")?)
}

/// Loads a model by its name.
pub(crate) fn open(name: &str) -> Result<Model, Failure> {
    Model::load(name.into(), &models::folder(name)?, Default::default())
        .map_err(|error| RunError::from(error).into())
}

/// Writes a model for another program into a new directory, which appears when it is complete.
pub(crate) fn write(model: &Model, out: &Path, to: ForeignFormat) -> Result<(), Failure> {
    let io = |error| Failure::io(out, error);
    let is_new = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if !is_new {
        return Err(Failure::user(format!("{} exists, and is not an empty directory", out.display()))
            .hint("name a new directory"));
    }
    let unfinished = local::unfinished(out);
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(io)?;
    }
    local::create_dir(&unfinished)?;
    export(&model.clip, &model.tokenizer, &unfinished, to).map_err(|error| refusal(&error))?;
    Ok(local::publish(out)?)
}

/// What another program cannot read is not a bug.
fn refusal(error: &ModelError) -> Failure {
    Failure::user(error.to_string())
}
