//! `twinlens schema`: the table contracts and the JSON Schema of pipeline files, as published in
//! `schemas/`.

use std::io::Write;
use std::path::Path;

use datafusion::arrow::datatypes::{Field, Schema};
use serde::Serialize;
use twinlens_dataset::contracts;
use twinlens_dataset::types;
use twinlens_eval::sets;
use twinlens_pipeline::Registry;
use twinlens_pipeline::config;
use twinlens_pipeline::suggest::did_you_mean;

use crate::cli::SchemaArgs;
use crate::errors::Failure;
use crate::text::{counted, one_line};
use crate::{output, views};

/// The names of the JSON Schemas of pipeline files, and of files that declare evaluation sets.
const PIPELINE: &str = "pipeline";
const EVALUATION_SET: &str = "evaluation-set";

pub(crate) fn execute(args: &SchemaArgs, registry: &Registry) -> Result<(), Failure> {
    match (&args.name, &args.write) {
        (_, Some(dir)) => write_all(dir, registry),
        (Some(name), None) if name == views::SCHEMA => explain_views(),
        (Some(name), None) => print(name, registry),
        (None, None) => list(),
    }
}

fn list() -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let contracts = contracts::all();
    let width = contracts.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(EVALUATION_SET.len());
    for (name, schema) in contracts {
        writeln!(out, "{name:width$}  {}", counted(schema.fields().len() as u64, "column"))?;
    }
    writeln!(out, "{PIPELINE:width$}  the JSON Schema of pipeline files")?;
    writeln!(out, "{EVALUATION_SET:width$}  the JSON Schema of files that declare an evaluation set")?;
    writeln!(out, "{:width$}  the SQL views over a run", views::SCHEMA)?;
    Ok(out.flush()?)
}

fn explain_views() -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let texts: Vec<String> = views::ALL.iter().map(|view| view.help() + &view.requirements()).collect();
    out.write_all(texts.join("\n").as_bytes())?;
    Ok(out.flush()?)
}

fn print(name: &str, registry: &Registry) -> Result<(), Failure> {
    let Some(text) =
        published(registry)?.into_iter().find(|schema| schema.name == name).map(|schema| schema.text)
    else {
        let others = [PIPELINE, EVALUATION_SET, views::SCHEMA];
        let known: Vec<&str> = contracts::all().into_iter().map(|(name, _)| name).chain(others).collect();
        let hint = did_you_mean(name, known.iter().copied());
        let hint = hint.unwrap_or_else(|| format!("the schemas are {}", known.join(", ")));
        return Err(Failure::user(format!("unknown schema `{name}`")).hint(hint));
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn write_all(dir: &Path, registry: &Registry) -> Result<(), Failure> {
    for schema in published(registry)? {
        let path = dir.join(schema.file);
        output::write(&path, schema.text.as_bytes())?;
        writeln!(std::io::stderr(), "{}", one_line(&path.display().to_string()))?;
    }
    Ok(())
}

struct Published {
    name: &'static str,
    file: String,
    text: String,
}

fn published(registry: &Registry) -> Result<Vec<Published>, Failure> {
    let mut all = Vec::new();
    for (name, schema) in contracts::all() {
        all.push(Published { name, file: format!("{name}.json"), text: pretty(&contract(name, &schema))? });
    }
    for (name, schema) in
        [(PIPELINE, config::json_schema(registry)), (EVALUATION_SET, sets::declaration_schema())]
    {
        all.push(Published { name, file: format!("{name}.schema.json"), text: pretty(&schema)? });
    }
    Ok(all)
}

#[derive(Serialize)]
struct Contract<'a> {
    contract: &'a str,
    version: u32,
    columns: Vec<Column<'a>>,
}

#[derive(Serialize)]
struct Column<'a> {
    name: &'a str,
    r#type: String,
    nullable: bool,
}

fn contract<'a>(name: &'a str, schema: &'a Schema) -> Contract<'a> {
    let column = |field: &'a Field| Column {
        name: field.name(),
        r#type: types::name(field.data_type()),
        nullable: field.is_nullable(),
    };
    let columns = schema.fields().iter().map(|field| column(field.as_ref())).collect();
    Contract { contract: name, version: contracts::version(name), columns }
}

fn pretty(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::internal(error.to_string()))?;
    Ok(text + "\n")
}
