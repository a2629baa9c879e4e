//! The inputs of `train`: options, checks, and resolution to files and datasets.

use super::columns::{column, text_column};
use crate::data::{Columns, Input as TrainInput, Source};
use datafusion::arrow::datatypes::{DataType, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::storage::{Location, is_url};
use twinlens_dataset::types::holds_image_bytes;
use twinlens_pipeline::hub::is_hub_name;
use twinlens_pipeline::{Fault, Input, InputData, InputTables, Located, RunContext, RunError};

/// One of several inputs.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Weighted {
    /// Pairs, as in the option `input`.
    pub(crate) input: Input,
    /// How often each of its pairs is seen per epoch, relative to the other inputs.
    #[serde(default = "one")]
    pub(crate) weight: Located<f64>,
}

fn one() -> Located<f64> {
    Located::without_span(1.0)
}

/// Whether decoded images are cached in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cache {
    /// If pairs are seen more than once, up to 4 GiB.
    #[default]
    Auto,
    /// All images.
    Decoded,
    /// No images.
    None,
}

impl Cache {
    /// Maximum bytes of the file.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Auto => 4 << 30,
            Self::Decoded => u64::MAX,
            Self::None => 0,
        }
    }
}

/// Whether an input names files instead of a dataset: a pattern, a tar file, or a dataset of the
/// hub.
pub(crate) fn is_files(input: &Input) -> bool {
    let name = input.name();
    name.contains(['*', '?']) || name.ends_with(".tar") || is_hub_name(name)
}

/// Whether an input names a local directory or a model of the hub, instead of a stage or a dataset
/// in an object store.
pub(crate) fn is_directory(input: &Input) -> bool {
    let name = input.name();
    is_hub_name(name) || input.is_path() && !is_url(name)
}

/// Faults of the caption and image columns of an input whose tables are known.
pub(crate) fn faults(tables: &InputTables, caption: &Located<String>, image: &Located<String>) -> Vec<Fault> {
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
            Err(fault.label("expected struct<bytes, path> or binary"))
        }
        Err(fault) => Err(fault.hint("put a `fetch` stage before this one")),
    }
}

/// Resolves inputs. `datasets` are the opened datasets among them; `follow` reads them while they
/// grow.
pub(crate) fn resolve(
    cx: &RunContext,
    inputs: &[(Input, f64)],
    datasets: &[InputData],
    follow: bool,
    columns: &Columns,
) -> Result<Vec<TrainInput>, RunError> {
    let source = |input: &Input| -> Result<Source, RunError> {
        if is_files(input) {
            return Ok(Source::Files(files(cx, input.name())?));
        }
        let found = datasets.iter().find(|data| data.name == input.name() && data.view.is_none());
        let missing = || RunError::user(format!("`{}` is not a dataset of pairs", input.name()));
        let data = found.ok_or_else(missing)?;
        Ok(if follow {
            Source::Growing(data.dataset.location().clone(), data.table.clone())
        } else {
            Source::table(&data.dataset, &data.table)
        })
    };
    let resolve = |(input, weight): &(Input, f64)| {
        Ok(TrainInput { source: source(input)?, columns: columns.clone(), weight: *weight })
    };
    inputs.iter().map(resolve).collect()
}

/// The files of a pattern, which must be Parquet or tar files.
fn files(cx: &RunContext, pattern: &str) -> Result<Vec<Location>, RunError> {
    let files = cx.files.expand(pattern)?;
    let other = files.iter().find(|file| ![".tar", ".parquet"].iter().any(|end| file.name().ends_with(end)));
    match other {
        None => Ok(files),
        Some(file) => Err(RunError::user_with_hint(
            format!("{file} is neither Parquet nor a tar file"),
            "end the pattern in .parquet or .tar; decompress tar files, since images are already compressed",
        )),
    }
}
