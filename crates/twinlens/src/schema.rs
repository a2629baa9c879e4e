//! `twinlens schema`: the contracts and the JSON Schema of pipeline files, as they are published in `schemas/`.

use std::io::Write;
use std::path::Path;

use datafusion::arrow::datatypes::Schema;
use serde_json::{Value, json};
use twinlens_dataset::contracts;
use twinlens_dataset::storage;
use twinlens_pipeline::config;
use twinlens_pipeline::suggest::did_you_mean;

use crate::cli::SchemaArgs;
use crate::errors::Failure;
use crate::text::counted;
use crate::{registry, types};

/// The name of the JSON Schema of pipeline files.
const PIPELINE: &str = "pipeline";

/// Lists, prints or writes the published schemas.
pub fn command(args: &SchemaArgs) -> Result<(), Failure> {
    match (&args.name, &args.write) {
        (_, Some(dir)) => write_all(dir),
        (Some(name), None) => print(name),
        (None, None) => list(),
    }
}

fn list() -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let contracts = contracts::all();
    let width = contracts.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(PIPELINE.len());
    for (name, schema) in contracts {
        writeln!(out, "{name:width$}  {}", counted(schema.fields().len() as u64, "column"))?;
    }
    writeln!(out, "{PIPELINE:width$}  the JSON Schema of pipeline files")?;
    Ok(out.flush()?)
}

fn print(name: &str) -> Result<(), Failure> {
    let Some(text) = published().into_iter().find(|one| one.name == name).map(|one| one.text) else {
        let known: Vec<&str> = contracts::all().into_iter().map(|(name, _)| name).chain([PIPELINE]).collect();
        let hint = did_you_mean(name, known.iter().copied());
        let hint = hint.unwrap_or_else(|| format!("the schemas are {}", known.join(", ")));
        return Err(Failure::user(format!("there is no schema `{name}`")).hint(hint));
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn write_all(dir: &Path) -> Result<(), Failure> {
    for schema in published() {
        let path = dir.join(schema.file);
        storage::write(&path, schema.text.as_bytes())?;
        writeln!(std::io::stderr(), "{}", path.display())?;
    }
    Ok(())
}

struct Published {
    name: &'static str,
    file: String,
    text: String,
}

fn published() -> Vec<Published> {
    let contracts = contracts::all().into_iter().map(|(name, schema)| Published {
        name,
        file: format!("{name}.json"),
        text: pretty(&contract(name, &schema)),
    });
    let pipeline = Published {
        name: PIPELINE,
        file: "pipeline.schema.json".into(),
        text: pretty(&config::json_schema(&registry::all())),
    };
    contracts.chain([pipeline]).collect()
}

fn contract(name: &str, schema: &Schema) -> Value {
    let columns: Vec<Value> = (schema.fields().iter())
        .map(|field| json!({ "name": field.name(), "type": types::name(field.data_type()), "nullable": field.is_nullable() }))
        .collect();
    json!({ "contract": name, "version": contracts::VERSION, "columns": columns })
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
