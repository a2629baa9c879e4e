//! The inputs of `train`: options, checks, and resolution to files and datasets.

use crate::data::{CAPTIONS_HINT, Captions, Columns, Source, holds_captions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens_dataset::storage::Location;
use twinlens_pipeline::hub::is_hub_name;
use twinlens_pipeline::{
    ColumnName, ColumnType, Input, Inputs, Located, Ports, Required, RunContext, RunError, TableInput,
};

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

/// Where pairs come from.
pub(crate) enum PairsInput {
    /// A pattern, a tar file, or a dataset of the hub.
    Files(String),
    Table(TableInput),
}

impl PairsInput {
    /// Declares the input, and checks its columns of captions and images.
    pub(crate) fn declare(
        ports: &mut Ports<'_>,
        input: &Input,
        columns: &Columns,
        (caption, image): (&Located<String>, &Located<String>),
    ) -> Self {
        if is_files(input) {
            // Files of the hub do not change while they are in the cache.
            if !is_hub_name(input.name()) {
                ports.file(&input.0);
            }
            return Self::Files(input.name().into());
        }
        let table = ports.table(input);
        let schema = ports.schema(&table);
        let name = schema.as_ref().map_or(caption.as_str(), |schema| columns.caption_in(schema));
        let caption = &Located::new(name.to_string(), caption.span());
        let kind = schema.as_ref().and_then(|schema| schema.field_with_name(caption).ok());
        let is_list = kind.is_some_and(|field| {
            let holds = |captions| holds_captions(field.data_type(), captions);
            !holds(None) && holds(Some(Captions::First))
        });
        let hint = format!("to use one text of each list, set {CAPTIONS_HINT}");
        let required = if is_list { Required::Hint(&hint) } else { Required::Yes };
        let caption = ColumnName::from(caption).of_option("caption");
        ports.column(&table, caption, caption_type(columns.captions), required);
        let hint = Required::Hint("put a `fetch` stage before this one");
        let image = ColumnName::from(image).of_option("image");
        ports.column(&table, image, ColumnType::EncodedImage, hint);
        Self::Table(table)
    }

    /// The source of the pairs; with `follow`, a dataset is read while it grows.
    pub(crate) fn source(&self, cx: &RunContext, inputs: &Inputs, follow: bool) -> Result<Source, RunError> {
        let table = match self {
            Self::Files(pattern) => return Ok(Source::Files(files(cx, pattern)?)),
            Self::Table(table) => inputs.get(table),
        };
        if table.view.is_some() {
            return Err(RunError::user(format!("`{}` is not a dataset of pairs", table.name)));
        }
        Ok(if follow {
            Source::Growing(table.dataset.location().clone(), table.table.clone())
        } else {
            Source::table(&table.dataset, &table.table)
        })
    }
}

/// What the column of captions may hold.
fn caption_type(captions: Option<Captions>) -> ColumnType {
    match captions {
        None => ColumnType::Other("text", |kind| holds_captions(kind, None)),
        Some(_) => {
            ColumnType::Other("text, or lists of texts", |kind| holds_captions(kind, Some(Captions::First)))
        }
    }
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
