//! What `train` reads: its options, their checks, and the places that they name.

use super::{column, text_column};
use crate::data::{Columns, Input as Source, Place};
use datafusion::arrow::datatypes::{DataType, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::shard::holds_image_bytes;
use twinlens_dataset::storage::{Location, is_url};
use twinlens_pipeline::hub::is_hub_name;
use twinlens_pipeline::{Fault, Input, InputData, InputTables, Located, RunContext, RunError};

/// One of several inputs.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Weighted {
    /// As the option `input`.
    pub input: Input,
    /// How often its pairs are seen in an epoch: with 2 twice as often as those of an input with 1.
    #[serde(default = "one")]
    pub weight: Located<f64>,
}

fn one() -> Located<f64> {
    Located::without_span(1.0)
}

/// Whether decoded images are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// Where pairs are seen more than once, up to 4 GiB.
    #[default]
    Auto,
    /// All of them.
    Decoded,
    /// None.
    None,
}

impl Cache {
    /// Most bytes of the file.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Auto => 4 << 30,
            Self::Decoded => u64::MAX,
            Self::None => 0,
        }
    }
}

/// Whether an input is no dataset but files by their names: a pattern, tar files, or what the hub
/// has.
pub fn is_files(input: &Input) -> bool {
    let name = input.name();
    name.contains(['*', '?']) || name.ends_with(".tar") || is_hub_name(name)
}

/// Whether a tokenizer is no stage and no dataset of an object store, but a folder here or on the
/// hub.
pub fn is_folder(tokenizer: &Input) -> bool {
    let name = tokenizer.name();
    is_hub_name(name) || tokenizer.is_path() && !is_url(name)
}

/// What is wrong with an input whose tables are known: its columns of captions and images.
pub fn faults(tables: &InputTables, caption: &Located<String>, image: &Located<String>) -> Vec<Fault> {
    let Some(schema) = &tables.schema else { return Vec::new() };
    let at = |option: &Located<String>| match option.span() {
        span if span.is_empty() => tables.input.0.span(),
        span => span,
    };
    let mut faults: Vec<Fault> = text_column(schema, caption, at(caption)).err().into_iter().collect();
    faults.extend(image_column(schema, image, at(image)).err());
    faults
}

fn image_column(schema: &Schema, name: &str, span: std::ops::Range<usize>) -> Result<(), Fault> {
    match column(schema, name, span.clone()) {
        Ok(DataType::Struct(fields)) if fields.find("bytes").is_some() => Ok(()),
        Ok(other) if holds_image_bytes(other) => Ok(()),
        Ok(other) => {
            let fault = Fault::at(span, format!("the column `{name}` is of type {other}"));
            Err(fault.label("expected struct<bytes, path>, or binary"))
        }
        Err(fault) => Err(fault.hint("put a `fetch` stage before this one")),
    }
}

/// Where the inputs are. `given` are the datasets among them, `grows` whether the first of them
/// does.
pub fn places(
    cx: &RunContext,
    wanted: &[(Input, f64)],
    given: &[InputData],
    grows: bool,
    columns: &Columns,
) -> Result<Vec<Source>, RunError> {
    let place = |input: &Input| -> Result<Place, RunError> {
        if is_files(input) {
            return Ok(Place::Files(files(cx, input.name())?));
        }
        let found = given.iter().find(|data| data.name == input.name() && data.view.is_none());
        let missing = || RunError::user(format!("`{}` has no pairs to train on", input.name()));
        let data = found.ok_or_else(missing)?;
        Ok(match grows {
            true => Place::Growing(data.dataset.location().clone(), data.table.clone()),
            false => Place::table(&data.dataset, &data.table),
        })
    };
    let source = |(input, weight): &(Input, f64)| {
        Ok(Source { place: place(input)?, columns: columns.clone(), weight: *weight })
    };
    wanted.iter().map(source).collect()
}

/// The files of a pattern: all Parquet, or all tar.
fn files(cx: &RunContext, pattern: &str) -> Result<Vec<Location>, RunError> {
    let files = cx.files.expand(pattern)?;
    let strange =
        files.iter().find(|file| ![".tar", ".parquet"].iter().any(|end| file.name().ends_with(end)));
    match strange {
        None => Ok(files),
        Some(file) => Err(RunError::user_with_hint(
            format!("{file} is neither Parquet nor a tar file"),
            "let the pattern end in .parquet or .tar; decompress tar files, images are compressed already",
        )),
    }
}
