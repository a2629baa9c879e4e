//! What a stage does when it runs: one of seven sorts of [`Work`].

use std::fmt::{self, Debug, Display, Formatter};

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::dataframe::DataFrame;
use datafusion::logical_expr::{SortExpr, ident};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use twinlens_dataset::{Dataset, SplitWriter};

use crate::columns::ColumnType;
use crate::context::{InputData, Inputs, RunContext};
use crate::error::RunError;
use crate::passes::{Passes, SplitRows};
use crate::rejects;
use crate::run::output::Output;

/// The order of the rows in the shards of a stage's main table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SortKey {
    /// As the stage gives them. A plan then runs on one thread, so that the order repeats.
    #[default]
    AsGiven,
    /// By these columns, as far as the table has them. If it lacks the first one, which tells rows
    /// apart, its own first column comes first, and its other columns last.
    Columns(Vec<String>),
}

impl SortKey {
    /// The order by some columns.
    pub fn columns<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self::Columns(names.into_iter().map(Into::into).collect())
    }

    /// The keys by which the rows of a table are sorted. A column of a nested type is none.
    pub fn keys(&self, schema: &Schema) -> Vec<SortExpr> {
        let Self::Columns(names) = self else { return Vec::new() };
        let sortable = |field: &Field| {
            is_sortable(field.data_type()) && !rejects::RESERVED.contains(&field.name().as_str())
        };
        let all = schema.fields().iter().filter(|field| sortable(field));
        let all: Vec<&str> = all.map(|field| field.name().as_str()).collect();
        let named = names.iter().map(String::as_str).filter(|name| all.contains(name));
        let identified = names.first().is_some_and(|first| all.contains(&first.as_str()));
        let keys: Vec<&str> = if identified {
            named.collect()
        } else {
            all.first().copied().into_iter().chain(named).chain(all.iter().copied()).collect()
        };
        let distinct = keys.iter().enumerate().filter(|(at, name)| !keys[..*at].contains(name));
        distinct.map(|(_, name)| ident(*name).sort(true, true)).collect()
    }
}

/// Whether rows can be sorted by a column of that type.
pub fn is_sortable(kind: &DataType) -> bool {
    kind.is_primitive() || ColumnType::Text.accepts(kind) || kind == &DataType::Boolean
}

/// What a stage does when it runs.
pub enum Work {
    /// Row by row; fusable.
    Rows(Box<dyn Rows>),
    /// Rows out of files, in splits; the head of a fused plan.
    Source(ErasedSource),
    /// Row by row, in splits that the stage writes itself.
    Splits(Box<dyn Splits>),
    /// Passes over all rows of its input.
    Passes(Box<dyn Passes>),
    /// One plan over all rows of its input.
    Whole(Box<dyn Whole>),
    /// One plan over whole tables.
    Query(Box<dyn Query>),
    /// Anything else.
    Job(Box<dyn Job>),
}

impl Work {
    /// A row stage.
    pub fn rows(rows: impl Rows + 'static) -> Self {
        Work::Rows(Box::new(rows))
    }

    /// A source.
    pub fn source(source: impl Source + 'static) -> Self {
        Work::Source(ErasedSource(Box::new(Erased(source))))
    }

    /// A stage that writes its splits itself.
    pub fn splits(splits: impl Splits + 'static) -> Self {
        Work::Splits(Box::new(splits))
    }

    /// A stage that looks at all rows of its input before it decides.
    pub fn passes(passes: impl Passes + 'static) -> Self {
        Work::Passes(Box::new(passes))
    }

    /// A stage over all rows of its input.
    pub fn whole(whole: impl Whole + 'static) -> Self {
        Work::Whole(Box::new(whole))
    }

    /// A query over whole tables.
    pub fn query(query: impl Query + 'static) -> Self {
        Work::Query(Box::new(query))
    }

    /// A job.
    pub fn job(job: impl Job + 'static) -> Self {
        Work::Job(Box::new(job))
    }
}

impl Debug for Work {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Work::Rows(_) => "Rows",
            Work::Source(_) => "Source",
            Work::Splits(_) => "Splits",
            Work::Passes(_) => "Passes",
            Work::Whole(_) => "Whole",
            Work::Query(_) => "Query",
            Work::Job(_) => "Job",
        })
    }
}

/// A stage that turns each row into a row or a reject. It never drops a row: it sets the reserved
/// columns with [`crate::rejects::reject_where`] (or fills them itself) and passes rows that are
/// already rejected through untouched. The runner checks for every split that rows in = rows out +
/// rejects.
#[async_trait]
pub trait Rows: Send + Sync {
    /// The plan. `rows` are those of [`crate::Ports::rows`], with the reserved columns of
    /// [`crate::rejects`]; so must the result be.
    async fn transform(
        &self,
        cx: &RunContext,
        rows: DataFrame,
        inputs: &Inputs,
    ) -> Result<DataFrame, RunError>;
}

/// A stage that turns each row into a row or a reject, as [`Rows`] does, but cannot be a plan of
/// the engine: it computes over many rows at a time (a model, batches of images). Its splits are
/// made where those of row stages are.
#[async_trait]
pub trait Splits: Send + Sync {
    /// Gets ready to make splits, once in a process. Rows may be taken over from `earlier`, if the
    /// stage declares [`crate::Ports::takes_over`]: a dataset of the same options, and the same
    /// inputs but for the rows.
    async fn open(
        &self,
        cx: &RunContext,
        inputs: &Inputs,
        earlier: Option<&Dataset>,
    ) -> Result<Box<dyn SplitMaker>, RunError>;
}

/// Makes splits.
#[async_trait]
pub trait SplitMaker: Send + Sync {
    /// Writes the rows of a split and its rejects, in an order that does not depend on threads.
    async fn make(
        &self,
        cx: &RunContext,
        rows: SplitRows<'_>,
        split: SplitWriter,
    ) -> Result<SplitWriter, RunError>;

    /// How many rows were taken over so far.
    fn taken_over(&self) -> u64 {
        0
    }
}

/// A stage whose rows come out of files.
#[async_trait]
pub trait Source: Send + Sync {
    /// What to read for one split. It is serialised, and may be read by another process. Its text
    /// is the label of the split: `captions.csv rows 0..10000`.
    type Split: Serialize + DeserializeOwned + Display + Send + Sync;

    /// All splits, in a fixed order: the same files give the same splits, so that a resumed run
    /// knows what is done.
    async fn splits(&self, cx: &RunContext) -> Result<Vec<Self::Split>, RunError>;

    /// The rows of one split: the columns of the output and the reserved columns of
    /// [`crate::rejects`] (add them with [`crate::rejects::with_reserved`]). A row that cannot be
    /// read is a reject.
    async fn read(&self, cx: &RunContext, split: &Self::Split) -> Result<DataFrame, RunError>;
}

/// A stage that needs all rows of its input in one place. Each of them becomes a row or a reject,
/// as in [`Rows`].
#[async_trait]
pub trait Whole: Send + Sync {
    /// The tables. `input` is that of [`crate::Ports::rows`]; the main table has the reserved
    /// columns of [`crate::rejects`]. The plans may spill; they run one after another, so cache
    /// nothing large.
    async fn tables(&self, cx: &RunContext, input: &InputData, inputs: &Inputs) -> Result<Frames, RunError>;
}

/// A stage that computes tables from tables. It has no rejects, and its number of rows is not known
/// in advance.
#[async_trait]
pub trait Query: Send + Sync {
    /// The tables. The plans run one after another.
    async fn tables(&self, cx: &RunContext, inputs: &Inputs) -> Result<Frames, RunError>;
}

/// A stage that is not a plan: it reads its inputs and commits through [`Output`].
#[async_trait]
pub trait Job: Send + Sync {
    /// Runs or resumes: `output` knows which splits are committed, and has a work folder that
    /// survives a kill. Returns [`RunError::Interrupted`] soon after `cx.cancel` fires, with
    /// everything worth keeping saved.
    async fn run(&self, cx: &RunContext, inputs: &Inputs, output: &mut Output) -> Result<(), RunError>;

    /// The part of a rank other than 0, while rank 0 runs the job: for jobs that declare
    /// [`crate::Ports::ranks`]. Returns [`RunError::Interrupted`] if rank 0 was interrupted.
    async fn follow(&self, cx: &RunContext, _: &Inputs) -> Result<(), RunError> {
        Err(RunError::Internal(format!("`{}` is not a job of several ranks", cx.stage)))
    }
}

/// The plans of a stage's tables.
#[derive(Debug)]
pub struct Frames {
    pub(crate) main: DataFrame,
    pub(crate) side: Vec<(&'static str, DataFrame)>,
}

impl Frames {
    /// The main table alone.
    pub fn main(main: DataFrame) -> Self {
        Self { main, side: Vec::new() }
    }

    /// The rows of the main table: for tests of a running stage.
    pub async fn main_table(self) -> Result<Vec<RecordBatch>, RunError> {
        Ok(self.main.collect().await?)
    }

    /// Adds a side table. Its rows are written in the order in which the plan gives them.
    pub fn with(mut self, name: &'static str, frame: DataFrame) -> Self {
        self.side.push((name, frame));
        self
    }
}

/// A split of a source whose type is erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSplit {
    /// The label of the split.
    pub label: String,
    /// The source's own description.
    pub value: Value,
}

/// A [`Source`] whose type of splits is erased.
pub struct ErasedSource(Box<dyn AnySource>);

impl ErasedSource {
    /// All splits, in a fixed order.
    pub async fn splits(&self, cx: &RunContext) -> Result<Vec<SourceSplit>, RunError> {
        self.0.splits(cx).await
    }

    /// The rows of one split.
    pub async fn read(&self, cx: &RunContext, split: &SourceSplit) -> Result<DataFrame, RunError> {
        self.0.read(cx, split).await
    }
}

#[async_trait]
trait AnySource: Send + Sync {
    async fn splits(&self, cx: &RunContext) -> Result<Vec<SourceSplit>, RunError>;
    async fn read(&self, cx: &RunContext, split: &SourceSplit) -> Result<DataFrame, RunError>;
}

struct Erased<S>(S);

#[async_trait]
impl<S: Source> AnySource for Erased<S> {
    async fn splits(&self, cx: &RunContext) -> Result<Vec<SourceSplit>, RunError> {
        let splits =
            self.0.splits(cx).await?.into_iter().map(|split| {
                Ok(SourceSplit { label: split.to_string(), value: serde_json::to_value(&split)? })
            });
        splits.collect::<serde_json::Result<_>>().map_err(not_a_split)
    }

    async fn read(&self, cx: &RunContext, split: &SourceSplit) -> Result<DataFrame, RunError> {
        self.0.read(cx, &S::Split::deserialize(&split.value).map_err(not_a_split)?).await
    }
}

fn not_a_split(error: serde_json::Error) -> RunError {
    RunError::Internal(format!("the description of a split cannot be serialised: {error}"))
}
