//! Kinds of stages for the tests of pipeline files: one per kind of work.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::dataframe::DataFrame;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::columns::{ColumnType, Required};
use crate::context::{Inputs, RunContext};
use crate::error::RunError;
use crate::located::{Input, Located};
use crate::ports::Ports;
use crate::registry::Registry;
use crate::stage::{Frames, Job, Output, Product, Query, Rows, SortKey, Source, StageKind, Work};

pub(super) fn registry() -> Registry {
    let mut registry =
        Registry::default().with::<List>().with::<Keep>().with::<Report>().with::<Learn>().with::<Pair>();
    registry.add_site("gallery");
    registry
}

fn pairs() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("caption", DataType::Utf8, true),
        Field::new("width", DataType::Int32, true),
    ]))
}

/// Reads lists of pairs.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListOptions {
    /// The files to read.
    files: Vec<Located<String>>,
    /// The most rows.
    #[serde(default)]
    max_rows: Option<u32>,
}

struct List;

impl StageKind for List {
    type Options = ListOptions;
    const NAME: &'static str = "list";
    const EXAMPLE: &'static str = "[stages.pages]\nkind = \"list\"\nfiles = [\"pairs.csv\"]";
    const VERSION: u32 = 1;

    fn plan(options: ListOptions, ports: &mut Ports<'_>) -> Option<Work> {
        options.files.iter().for_each(|file| ports.file(file));
        ports.output(pairs(), SortKey::AsGiven);
        Some(Work::source(List))
    }
}

#[async_trait]
impl Source for List {
    type Split = String;
    async fn splits(&self, _: &RunContext) -> Result<Vec<String>, RunError> {
        Ok(vec![])
    }
    async fn read(&self, _: &RunContext, _: &String) -> Result<DataFrame, RunError> {
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
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
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

/// Keeps the rows for which a predicate is true.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeepOptions {
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
    /// A column that is needed.
    #[serde(default)]
    column: Option<Located<String>>,
}

fn one() -> f64 {
    1.0
}

struct Keep;

impl StageKind for Keep {
    type Options = KeepOptions;
    const NAME: &'static str = "keep";
    const EXAMPLE: &'static str = "[stages.kept]\nkind = \"keep\"\ninput = \"pages\"\nwhere = \"width > 3\"";
    const VERSION: u32 = 1;

    fn plan(options: KeepOptions, ports: &mut Ports<'_>) -> Option<Work> {
        let input = ports.rows(&options.input);
        ports.output(ports.schema(&input), SortKey::columns(["caption"]));
        ports.predicate(&options.predicate, &input);
        if let Some(column) = &options.column {
            ports.column(&input, column, ColumnType::Integer, Required::Hint("ask for another"));
        }
        Some(Work::rows(Keep))
    }
}

#[async_trait]
impl Rows for Keep {
    async fn transform(&self, _: &RunContext, rows: DataFrame, _: &Inputs) -> Result<DataFrame, RunError> {
        Ok(rows)
    }
}

/// A query over other stages.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReportOptions {
    /// The tables that the query reads.
    tables: Vec<Input>,
    /// The query.
    query: Located<String>,
}

struct Report;

impl StageKind for Report {
    type Options = ReportOptions;
    const NAME: &'static str = "report";
    const EXAMPLE: &'static str =
        "[stages.top]\nkind = \"report\"\ntables = [\"kept\"]\nquery = \"select 1\"";
    const VERSION: u32 = 1;
    const PRODUCT: Product = Product::Report;

    fn plan(options: ReportOptions, ports: &mut Ports<'_>) -> Option<Work> {
        for table in &options.tables {
            let table = ports.table(table);
            ports.reads_all_variants(&table);
        }
        let schema = ports.query(&options.query);
        ports.output(schema, SortKey::AsGiven);
        Some(Work::query(Report))
    }
}

#[async_trait]
impl Query for Report {
    async fn tables(&self, _: &RunContext, _: &Inputs) -> Result<Frames, RunError> {
        Err(RunError::Internal("never run".into()))
    }
}

/// Learns from pairs.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LearnOptions {
    /// The pairs to learn from.
    input: Input,
    /// How often all pairs are seen.
    #[serde(default = "three")]
    epochs: u32,
    /// The name of the model.
    #[serde(default)]
    model: Option<String>,
    /// The model to begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<Input>,
}

fn three() -> u32 {
    3
}

struct Learn;

impl StageKind for Learn {
    type Options = LearnOptions;
    const NAME: &'static str = "learn";
    const EXAMPLE: &'static str = "[stages.clip]\nkind = \"learn\"\ninput = \"kept\"";
    const VERSION: u32 = 1;
    const PRODUCT: Product = Product::Model;

    fn plan(options: LearnOptions, ports: &mut Ports<'_>) -> Option<Work> {
        ports.table(&options.input);
        if let Some(from) = &options.from {
            ports.model(from);
        }
        let side = Schema::new(vec![
            Field::new("class", DataType::Utf8, true),
            Field::new("good", DataType::Boolean, true),
        ]);
        ports.output(pairs(), SortKey::AsGiven);
        ports.side_table("per_class", SchemaRef::from(side));
        Some(Work::job(Learn))
    }
}

#[async_trait]
impl Job for Learn {
    async fn run(&self, _: &RunContext, _: &Inputs, _: &mut Output) -> Result<(), RunError> {
        Ok(())
    }
}

/// Makes something of two tables.
#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PairOptions {
    /// One.
    left: Input,
    /// The other.
    right: Input,
}

struct Pair;

impl StageKind for Pair {
    type Options = PairOptions;
    const NAME: &'static str = "pair";
    const EXAMPLE: &'static str = "[stages.both]\nkind = \"pair\"\nleft = \"a\"\nright = \"b\"";
    const VERSION: u32 = 1;

    fn plan(options: PairOptions, ports: &mut Ports<'_>) -> Option<Work> {
        ports.table(&options.left);
        ports.table(&options.right);
        ports.output(pairs(), SortKey::AsGiven);
        Some(Work::job(Pair))
    }
}

#[async_trait]
impl Job for Pair {
    async fn run(&self, _: &RunContext, _: &Inputs, _: &mut Output) -> Result<(), RunError> {
        Ok(())
    }
}
