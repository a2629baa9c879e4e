//! `twinlens model`: named model configurations with their parameters and FLOPs.

use std::io::Write;

use twinlens_model::{CatalogEntry, ClipConfig, catalog};
use twinlens_pipeline::suggest::did_you_mean;

use crate::cli::ModelCommand;
use crate::errors::Failure;
use crate::table::TableWriter;

pub(crate) fn execute(command: &ModelCommand) -> Result<(), Failure> {
    match command {
        ModelCommand::List => list(),
        ModelCommand::Show { name } => show(name),
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
    let config = ClipConfig::preset(name).map_err(|error| {
        let hint = did_you_mean(name, ClipConfig::presets());
        Failure::user(error.to_string())
            .hint(hint.unwrap_or_else(|| "`twinlens model list` lists them".into()))
    })?;
    let json = serde_json::to_string_pretty(&config).map_err(|error| Failure::user(error.to_string()))?;
    Ok(writeln!(std::io::stdout().lock(), "{json}")?)
}
