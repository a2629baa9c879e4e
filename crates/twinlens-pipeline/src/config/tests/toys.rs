//! Kinds of stages for the tests of pipeline files: one per kind of work.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::{InputData, RunContext};
use crate::error::{Fault, RunError};
use crate::located::{Input, Located};
use crate::registry::Registry;
use crate::stage::{
    CheckContext, InputTables, Job, Output, Rows, Source, SourceSplit, Stage, StageKind, Tables, Whole, Work,
};

pub(super) fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add::<List>();
    registry.add::<Keep>();
    registry.add::<Report>();
    registry.add::<Learn>();
    registry.add::<Pair>();
    registry.add_site("gallery");
    registry
}

fn pairs() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("caption", DataType::Utf8, true),
        Field::new("width", DataType::Int32, true),
    ]))
}

/// Rows out of files.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    /// The files to read.
    files: Vec<String>,
    /// The most rows.
    #[serde(default)]
    max_rows: Option<u32>,
}

impl Stage for List {
    fn inputs(&self) -> Vec<Input> {
        vec![]
    }
    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        Ok(Tables::main(pairs()))
    }
    fn work(&self) -> Work<'_> {
        Work::Source(self)
    }
}

impl StageKind for List {
    const KIND: &'static str = "list";
    const ABOUT: &'static str = "Reads lists of pairs.";
    const EXAMPLE: &'static str = "[stages.pages]\nkind = \"list\"\nfiles = [\"pairs.csv\"]";
    const VERSION: u32 = 1;
}

#[async_trait]
impl Source for List {
    async fn splits(&self, _: &RunContext) -> Result<Vec<SourceSplit>, RunError> {
        Ok(vec![])
    }
    async fn read(&self, _: &RunContext, _: &SourceSplit) -> Result<DataFrame, RunError> {
        Err(RunError::Internal("never run".into()))
    }
}

/// How a box is fitted.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Shortest,
    Longest,
}

/// A box.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Resize {
    /// Its side, in pixels.
    size: u32,
    /// How it is fitted.
    #[serde(default = "shortest")]
    mode: Mode,
}

fn shortest() -> Mode {
    Mode::Shortest
}

/// Keeps rows.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Keep {
    /// The rows to filter.
    input: Input,
    /// A SQL predicate.
    #[serde(rename = "where")]
    predicate: Located<String>,
    /// A box for the images.
    #[serde(default)]
    resize: Option<Resize>,
    /// The share that is kept.
    #[serde(default = "one")]
    share: f64,
    /// Widths that are allowed.
    #[serde(default)]
    widths: Vec<u16>,
    /// Says more.
    #[serde(default)]
    verbose: bool,
    /// A word for the log.
    #[serde(default)]
    note: String,
}

fn one() -> f64 {
    1.0
}

impl Stage for Keep {
    fn inputs(&self) -> Vec<Input> {
        vec![self.input.clone()]
    }
    fn tables(&self, cx: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let schema = inputs[0].schema.clone().unwrap_or_else(pairs);
        cx.predicate(&self.predicate, &schema).map_err(|fault| vec![fault])?;
        Ok(Tables::main(schema))
    }
    fn work(&self) -> Work<'_> {
        Work::Rows(self)
    }
}

impl StageKind for Keep {
    const KIND: &'static str = "keep";
    const ABOUT: &'static str = "Keeps the rows for which a predicate is true.";
    const EXAMPLE: &'static str = "[stages.kept]\nkind = \"keep\"\ninput = \"pages\"\nwhere = \"width > 3\"";
    const VERSION: u32 = 1;
}

#[async_trait]
impl Rows for Keep {
    async fn plan(&self, _: &RunContext, input: DataFrame, _: &[InputData]) -> Result<DataFrame, RunError> {
        Ok(input)
    }
}

/// A query over other stages.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Report {
    /// The tables that the query reads.
    tables: Vec<Input>,
    /// The query.
    query: Located<String>,
}

impl Stage for Report {
    fn inputs(&self) -> Vec<Input> {
        self.tables.clone()
    }
    fn tables(&self, cx: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let known: Vec<_> = (inputs.iter())
            .map(|input| (input.input.name().to_string(), input.schema.clone().unwrap_or_else(pairs)))
            .collect();
        cx.query(&self.query, &known).map(Tables::main).map_err(|fault| vec![fault])
    }
    fn work(&self) -> Work<'_> {
        Work::Whole(self)
    }
}

impl StageKind for Report {
    const KIND: &'static str = "report";
    const ABOUT: &'static str = "A query over other stages.";
    const EXAMPLE: &'static str =
        "[stages.top]\nkind = \"report\"\ntables = [\"kept\"]\nquery = \"select 1\"";
    const VERSION: u32 = 1;
}

#[async_trait]
impl Whole for Report {
    fn conserves(&self) -> bool {
        false
    }
    async fn plan(
        &self,
        _: &RunContext,
        _: &[InputData],
    ) -> Result<Vec<(&'static str, DataFrame)>, RunError> {
        Ok(vec![])
    }
}

/// Something that is trained.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Learn {
    /// The pairs to learn from.
    input: Input,
    /// How often all pairs are seen.
    #[serde(default = "three")]
    epochs: u32,
    /// The name of the model.
    #[serde(default)]
    model: Option<String>,
}

fn three() -> u32 {
    3
}

impl Stage for Learn {
    fn inputs(&self) -> Vec<Input> {
        vec![self.input.clone()]
    }
    fn side_tables(&self) -> &'static [&'static str] {
        &["per_class"]
    }
    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        let side = Schema::new(vec![
            Field::new("class", DataType::Utf8, true),
            Field::new("good", DataType::Boolean, true),
        ]);
        Ok(Tables::main(pairs()).with("per_class", side.into()))
    }
    fn work(&self) -> Work<'_> {
        Work::Job(self)
    }
}

impl StageKind for Learn {
    const KIND: &'static str = "learn";
    const ABOUT: &'static str = "Learns from pairs.";
    const EXAMPLE: &'static str = "[stages.clip]\nkind = \"learn\"\ninput = \"kept\"";
    const VERSION: u32 = 1;
}

#[async_trait]
impl Job for Learn {
    async fn run(&self, _: &RunContext, _: &[InputData], _: &mut Output) -> Result<(), RunError> {
        Ok(())
    }
}

/// Something that is made of two tables.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Pair {
    /// One.
    left: Input,
    /// The other.
    right: Input,
}

impl Stage for Pair {
    fn inputs(&self) -> Vec<Input> {
        vec![self.left.clone(), self.right.clone()]
    }
    fn tables(&self, _: &CheckContext, _: &[InputTables]) -> Result<Tables, Vec<Fault>> {
        Ok(Tables::main(pairs()))
    }
    fn work(&self) -> Work<'_> {
        Work::Job(self)
    }
}

impl StageKind for Pair {
    const KIND: &'static str = "pair";
    const ABOUT: &'static str = "Makes something of two tables.";
    const EXAMPLE: &'static str = "[stages.both]\nkind = \"pair\"\nleft = \"a\"\nright = \"b\"";
    const VERSION: u32 = 1;
}

#[async_trait]
impl Job for Pair {
    async fn run(&self, _: &RunContext, _: &[InputData], _: &mut Output) -> Result<(), RunError> {
        Ok(())
    }
}
