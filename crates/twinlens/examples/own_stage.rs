//! A program with a source, a row stage and a SQL function of its own, besides everything that
//! `twinlens` has:
//!
//!     cargo run -p twinlens --example own_stage -- run pipeline.toml

use std::fmt::{self, Display, Formatter};
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use twinlens::datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use twinlens::datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use twinlens::datafusion::dataframe::DataFrame;
use twinlens::datafusion::functions::expr_fn::{character_length, upper};
use twinlens::datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf, ident, lit};
use twinlens::pipeline::rejects::{reject_where, with_reserved};
use twinlens::pipeline::{
    Input, Inputs, Ports, Required, Rows, RunContext, RunError, SortKey, Source, StageKind, Work,
};

/// Makes rows of counted sheep.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sheep {
    /// How many flocks.
    flocks: u32,
    /// Sheep per flock.
    size: u32,
}

/// One split of the source.
#[derive(Debug, Serialize, Deserialize)]
struct Flock(u32);

impl Display for Flock {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "flock {}", self.0)
    }
}

fn sheep_schema() -> SchemaRef {
    Arc::new(Schema::new(["uid", "caption"].map(|name| Field::new(name, DataType::Utf8, true)).to_vec()))
}

impl StageKind for Sheep {
    type Options = Self;
    const NAME: &'static str = "sheep";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = "[stages.sheep]\nkind = \"sheep\"\nflocks = 2\nsize = 3\n";

    fn plan(options: Self, ports: &mut Ports<'_>) -> Option<Work> {
        ports.output(sheep_schema(), SortKey::columns(["uid"]));
        Some(Work::source(options))
    }
}

#[async_trait]
impl Source for Sheep {
    type Split = Flock;

    async fn splits(&self, _: &RunContext) -> Result<Vec<Flock>, RunError> {
        Ok((0..self.flocks).map(Flock).collect())
    }

    async fn read(&self, cx: &RunContext, Flock(flock): &Flock) -> Result<DataFrame, RunError> {
        let uids = (0..self.size).map(|sheep| format!("{flock}-{sheep}"));
        let captions = (0..self.size).map(|sheep| format!("{}sheep", "big ".repeat(sheep as usize)));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(uids)),
            Arc::new(StringArray::from_iter_values(captions)),
        ];
        let batch = RecordBatch::try_new(sheep_schema(), columns)
            .map_err(|error| RunError::Internal(error.to_string()))?;
        with_reserved(cx.session.read_batch(batch)?)
    }
}

/// Writes a column in capital letters; rows whose text is too long are rejected.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Shout {
    /// The rows.
    input: Input,
    /// The column to change.
    column: twinlens::pipeline::Located<String>,
    /// The most characters.
    max_length: u32,
}

impl StageKind for Shout {
    type Options = Self;
    const NAME: &'static str = "shout";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str =
        "[stages.loud]\nkind = \"shout\"\ninput = \"sheep\"\ncolumn = \"caption\"\nmax_length = 9\n";

    fn plan(options: Self, ports: &mut Ports<'_>) -> Option<Work> {
        let input = ports.rows(&options.input);
        ports.text(&input, &options.column, Required::Yes);
        ports.computes(options.column.value());
        ports.output(ports.schema(&input), SortKey::columns(["uid"]));
        Some(Work::rows(options))
    }
}

#[async_trait]
impl Rows for Shout {
    async fn transform(&self, cx: &RunContext, rows: DataFrame, _: &Inputs) -> Result<DataFrame, RunError> {
        let text = || ident(self.column.as_str());
        let is_long = character_length(text()).gt(lit(i64::from(self.max_length)));
        let rows = reject_where(rows, &cx.stage, is_long, "too_long", character_length(text()))?;
        Ok(rows.with_column(&self.column, upper(text()))?)
    }
}

/// `vowels(text)`: how many of its letters are vowels.
fn vowels() -> ScalarUDF {
    let count = |text: &str| text.chars().filter(|c| "aeiouAEIOU".contains(*c)).count() as i64;
    create_udf(
        "vowels",
        vec![DataType::Utf8],
        DataType::Int64,
        Volatility::Immutable,
        Arc::new(move |arguments: &[ColumnarValue]| {
            let texts = ColumnarValue::values_to_arrays(arguments)?;
            let texts = texts[0].as_string::<i32>();
            let counts: Int64Array = texts.iter().map(|text| text.map(count)).collect();
            Ok(ColumnarValue::Array(Arc::new(counts)))
        }),
    )
}

fn main() -> ExitCode {
    let mut registry = twinlens::registry().with::<Sheep>().with::<Shout>();
    registry.add_function(vowels());
    twinlens::main(registry)
}
