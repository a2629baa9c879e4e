//! What a stage is.
//!
//! A kind of stage is one struct: its fields are the options in the TOML table (`serde` with
//! `deny_unknown_fields`, `schemars` for the editor's completion), and it implements [`Stage`]
//! (object safe: what the graph needs) and [`StageKind`] (the constants). A stage is pure until it
//! is run: building and checking one never does I/O.
//!
//! There are four sorts of [`Work`]: [`Rows`] (a row in, a row or a reject out; fused with its
//! neighbours into one plan), [`Source`] (rows out of nothing, in splits), [`Whole`] (one plan over
//! all of the input) and [`Job`] (all else: a crawl, a training, an evaluation; commits by itself).

use std::collections::BTreeMap;
use std::fmt::Debug;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::dataframe::DataFrame;
use datafusion::prelude::SessionContext;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::{InputData, RunContext};
use crate::error::{Fault, RunError};
use crate::located::{Input, Located};
pub use crate::run::output::Output;

/// The tables that a stage leaves: the main one and its side tables (`query_stats`, `per_class`).
/// `rejects` is not named here: the runner adds it.
#[derive(Debug, Clone)]
pub struct Tables {
    /// Schema of the main table, which bears the stage's name in SQL.
    pub main: SchemaRef,
    /// Schemas of the side tables by name.
    pub side: BTreeMap<&'static str, SchemaRef>,
}

impl Tables {
    /// A main table alone.
    pub fn main(main: SchemaRef) -> Self {
        Self { main, side: BTreeMap::new() }
    }

    /// Adds a side table.
    pub fn with(mut self, name: &'static str, schema: SchemaRef) -> Self {
        self.side.insert(name, schema);
        self
    }
}

/// What `check` knows of one input.
#[derive(Debug, Clone)]
pub struct InputTables {
    /// As written in the file.
    pub input: Input,
    /// The kind of the stage that is named; `None` for a path.
    pub kind: Option<&'static str>,
    /// The schema of the table that is named. `None` for a path, whose schema is known only when
    /// the file is opened.
    pub schema: Option<SchemaRef>,
}

impl InputTables {
    /// A fault that points at the place where this input is named.
    pub fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::at(self.input.0.span(), message)
    }
}

/// What a stage may use to check itself: a planner that knows every function, and no data.
pub struct CheckContext {
    /// A session with the functions of the registry and no tables.
    pub session: SessionContext,
}

/// One node of a pipeline, built from its TOML table.
pub trait Stage: Debug + Send + Sync {
    /// The stages or files that this one reads, in a fixed order; [`Stage::tables`] and the work
    /// get them in that order. For [`Rows`] the first one is the stream that is transformed.
    fn inputs(&self) -> Vec<Input>;

    /// Files outside the run that this stage reads (relative to the pipeline file; globs allowed; a
    /// name that ends in `/` is a local folder with all that is below it): size and time of change
    /// are part of the fingerprint, and a missing one is reported before anything runs.
    fn files(&self) -> Vec<Located<String>> {
        Vec::new()
    }

    /// Files and folders like those of [`Stage::files`] that this stage reads where they are there,
    /// and does without where they are not: one that comes, goes or changes is part of the
    /// fingerprint. Names, no patterns.
    fn may_read(&self) -> Vec<String> {
        Vec::new()
    }

    /// Names of the side tables, known before any schema is.
    fn side_tables(&self) -> &'static [&'static str] {
        &[]
    }

    /// What an option of one word stands for (a preset), a line each: `plan` shows it.
    fn stands_for(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether it reads the variants of a swept stage as one table with their values as columns,
    /// instead of being made once for each.
    fn gathers(&self) -> bool {
        matches!(self.work(), Work::Whole(whole) if !whole.conserves())
    }

    /// Whether the stage may begin while its first input is still being made: it then reads what is
    /// committed, waits for more, and knows by the manifest when there will be no more. The runner
    /// starts it beside that input, where its other inputs allow it.
    fn follows(&self) -> bool {
        false
    }

    /// Checks the options against the inputs and says what tables come out. No I/O. All faults at
    /// once.
    fn tables(&self, cx: &CheckContext, inputs: &[InputTables]) -> Result<Tables, Vec<Fault>>;

    /// What is done when it runs.
    fn work(&self) -> Work<'_>;
}

/// A kind of stage, as the registry knows it.
pub trait StageKind: Stage + DeserializeOwned + Serialize + JsonSchema + Sized + 'static {
    /// The value of `kind` in the TOML table.
    const KIND: &'static str;
    /// What it does, in one sentence.
    const ABOUT: &'static str;
    /// A TOML table `[stages.NAME]` that a test parses.
    const EXAMPLE: &'static str;
    /// The version of the stage's logic: raise it when the same options and input give another
    /// output.
    const VERSION: u32;
}

/// The sorts of work.
#[derive(Clone, Copy)]
pub enum Work<'a> {
    /// Row by row; fusable.
    Rows(&'a dyn Rows),
    /// Rows out of files, in splits; the head of a fused plan.
    Source(&'a dyn Source),
    /// One plan over whole inputs.
    Whole(&'a dyn Whole),
    /// Anything else.
    Job(&'a dyn Job),
}

/// A stage that turns each row into a row or a reject. Never drops a row: it sets the reserved
/// columns with [`crate::rejects::reject_where`] (or fills them itself) and passes rows that are
/// already rejected through untouched. Rows in = rows out, for every split: the runner checks the
/// sum.
#[async_trait]
pub trait Rows: Send + Sync {
    /// The most rows of a split, where the stage needs small ones (fetching: what is redone after a
    /// crash).
    fn split_rows(&self) -> Option<usize> {
        None
    }

    /// The columns that the stage computes. Where its input has one of that name, the values are
    /// replaced, and the stage before it is not fused: its own rows could no longer be read back.
    fn computes(&self) -> Vec<String> {
        Vec::new()
    }

    /// The plan. `input` has the input's columns and the reserved columns of [`crate::rejects`]; so
    /// must the result. `others` are the inputs after the first.
    async fn plan(
        &self,
        cx: &RunContext,
        input: DataFrame,
        others: &[InputData],
    ) -> Result<DataFrame, RunError>;
}

/// One split of a source, as the source itself describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSplit {
    /// For people: `captions.csv rows 0..10000`.
    pub label: String,
    /// What to read: indices that only the source understands.
    pub file: String,
    /// First row.
    pub start: u64,
    /// Row after the last; `u64::MAX` for the end of the file.
    pub end: u64,
}

/// A stage whose rows come out of files.
#[async_trait]
pub trait Source: Send + Sync {
    /// All splits, in a fixed order: the same files give the same splits, so that a resumed run
    /// knows what is done.
    async fn splits(&self, cx: &RunContext) -> Result<Vec<SourceSplit>, RunError>;

    /// The rows of one split: the columns of [`Stage::tables`] and the reserved columns of
    /// [`crate::rejects`] (add them with [`crate::rejects::with_reserved`]); a row that cannot be
    /// read is a reject.
    async fn read(&self, cx: &RunContext, split: &SourceSplit) -> Result<DataFrame, RunError>;
}

/// A stage that needs all of its input at once.
#[async_trait]
pub trait Whole: Send + Sync {
    /// Whether rows in = rows out + rejects must hold (dedup, balance), or not (sql).
    fn conserves(&self) -> bool {
        true
    }

    /// The tables: `("data", main)`, then side tables by name, and `("rejects", ..)` when there are
    /// any: the input's columns and the reserved columns. The plans may spill; they run one after
    /// another, so cache nothing large.
    async fn plan(
        &self,
        cx: &RunContext,
        inputs: &[InputData],
    ) -> Result<Vec<(&'static str, DataFrame)>, RunError>;
}

/// A stage that does something else than a plan: it reads its inputs and commits through
/// [`Output`].
#[async_trait]
pub trait Job: Send + Sync {
    /// Runs, or goes on: `output` knows which splits are committed, and has a work folder that
    /// survives a kill. Returns [`RunError::Interrupted`] soon after `cx.cancel` fires, with
    /// everything worth keeping saved.
    async fn run(&self, cx: &RunContext, inputs: &[InputData], output: &mut Output) -> Result<(), RunError>;
}
