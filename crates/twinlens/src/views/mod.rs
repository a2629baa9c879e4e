//! SQL views over a run.
//!
//! A view reads the tables that have certain columns, whatever their stages are called, and exists
//! only if they do. Its name is `views.NAME`, and also `NAME` if no stage has that name.

mod evaluation;
mod lineage;
mod run;

use std::io::Cursor;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::csv::ReaderBuilder;
use datafusion::arrow::csv::reader::Format;
use datafusion::catalog::{MemorySchemaProvider, TableProvider};
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use twinlens_dataset::Dataset;
use twinlens_pipeline::Registry;

use crate::errors::Failure;
pub(crate) use run::{Run, Table};

/// The schema of all views.
pub(crate) const SCHEMA: &str = "views";

pub(crate) struct View {
    pub name: &'static str,
    pub summary: &'static str,
    /// What a run must have for the view to exist.
    pub needs: &'static str,
    /// Names and descriptions.
    pub columns: &'static [(&'static str, &'static str)],
    source: Source,
}

enum Source {
    /// A query over the tables of a run; `None` if tables are missing.
    Query(fn(&Run<'_>) -> Option<String>),
    /// The built-in table of published accuracies.
    Published,
    /// A table that every run has.
    System,
}

impl View {
    /// Name, summary and columns.
    pub(crate) fn help(&self) -> String {
        let width = self.columns.iter().map(|(column, _)| column.len()).max().unwrap_or(0);
        let columns = self.columns.iter().map(|(column, text)| format!("  {column:width$}  {text}\n"));
        format!("{}: {}\n{}", self.name, self.summary, columns.collect::<String>())
    }

    /// What the view needs, if it does not always exist.
    pub(crate) fn requirements(&self) -> String {
        match self.source {
            Source::Query(_) => format!("  needs {}\n", self.needs),
            Source::Published | Source::System => String::new(),
        }
    }
}

const STAGE: (&str, &str) = ("stage", "the evaluation stage");
const MODEL: (&str, &str) = ("model", "the stage that trained the model, or its directory");
const SET: (&str, &str) = ("set", "the evaluation set");
const PROMPTS: (&str, &str) = ("prompts", "the prompt templates");
const N: (&str, &str) = ("n", "number of examples");
const PART: (&str, &str) = ("part", "all, or the part of the set that was not in the training data");

/// All views.
pub(crate) const ALL: &[View] = &[
    View {
        name: "leaderboard",
        summary: "Every accuracy of the run, ranked within its set and metric; with a column for each swept option",
        needs: "a table of accuracies, such as that of a `zero-shot` stage",
        columns: &[
            SET,
            ("task", "zero-shot, linear-probe, retrieval"),
            ("metric", "the metric"),
            ("rank", "1 is the best for this set, task and metric"),
            MODEL,
            PROMPTS,
            ("value", "the accuracy"),
            ("ci_low", "lower end of the 95 % confidence interval"),
            ("ci_high", "upper end"),
            ("chance", "the accuracy of guessing"),
            ("times_chance", "value / chance"),
            N,
            PART,
            STAGE,
            ("checkpoint", "the checkpoint of the training"),
            ("split", "train, test, ..."),
        ],
        source: Source::Query(evaluation::leaderboard),
    },
    View {
        name: "prompt_gain",
        summary: "Gain of prompts over the bare class name, with a paired interval if predictions are stored",
        needs: "a table of accuracies with the prompts `{}` and others",
        columns: &[
            STAGE,
            MODEL,
            SET,
            ("metric", "the metric"),
            PROMPTS,
            ("value", "the accuracy with these prompts"),
            ("bare", "the accuracy with the bare class name"),
            ("gain", "value - bare"),
            ("gain_low", "lower end of the paired 95 % interval; only for top1"),
            ("gain_high", "upper end"),
            ("p", "p-value (McNemar)"),
            N,
            PART,
        ],
        source: Source::Query(evaluation::prompt_gain),
    },
    View {
        name: "confusions",
        summary: "How often one class was predicted as another",
        needs: "tables of predictions and classes, such as those of a `zero-shot` stage",
        columns: &[
            STAGE,
            MODEL,
            SET,
            PROMPTS,
            ("class_name", "the true class"),
            ("predicted_name", "the predicted class"),
            ("times", "number of such examples"),
            ("of_examples", "number of examples of the class"),
        ],
        source: Source::Query(evaluation::confusions),
    },
    View {
        name: "class_support",
        summary: "Accuracy of each class, and training pairs that matched queries in its name",
        needs: "a table of classes, a model trained on pairs with `query_ids`, and the texts of queries (`queries = ...` of a `balance` stage, or a `queries` stage)",
        columns: &[
            STAGE,
            MODEL,
            SET,
            PROMPTS,
            ("class_id", "the label"),
            ("class_name", "the class"),
            N,
            ("correct", "number of correct predictions"),
            ("accuracy", "correct / n"),
            ("ci_low", "lower end of the 95 % confidence interval (Wilson)"),
            ("ci_high", "upper end"),
            ("training_pairs", "pairs that matched the whole name"),
            ("related_pairs", "pairs that matched a part of the name"),
        ],
        source: Source::Query(lineage::class_support),
    },
    View {
        name: "lineage",
        summary: "From classes to queries in their names, training pairs that matched these, and their pages; a class without pairs has one row with nulls",
        needs: "what `class_support` needs",
        columns: &[
            STAGE,
            MODEL,
            SET,
            ("class_id", "the label; joins with `label` or `predicted` of predictions"),
            ("class_name", "the class"),
            ("query_id", "a query that is part of the name"),
            ("query", "its text"),
            ("whole_name", "whether the query is the whole name"),
            ("uid", "a training pair that matched the query"),
            ("caption", "the caption of the pair"),
            ("url", "the URL of the image"),
            ("page_url", "the page on which the pair was found"),
        ],
        source: Source::Query(lineage::lineage),
    },
    View {
        name: "funnel",
        summary: "Input rows, kept rows and rejects by code of each stage",
        needs: "nothing",
        columns: &[
            ("position", "the order of the stages"),
            ("stage", "the stage"),
            ("outcome", "in, kept, or a reject code"),
            ("rows", "number of rows"),
        ],
        source: Source::System,
    },
    View {
        name: "published",
        summary: "Published zero-shot accuracies of OpenAI's and open_clip's models",
        needs: "nothing",
        columns: &[
            ("model", "the name of the configuration, as in `twinlens model list`"),
            ("weights", "publisher or training data of the weights"),
            SET,
            ("metric", "the metric"),
            ("value", "the accuracy"),
            ("source", "the publication"),
        ],
        source: Source::Published,
    },
];

pub(crate) fn named(name: &str) -> Option<&'static View> {
    ALL.iter().find(|view| view.name == name)
}

/// Registers the views for which the run has the tables.
pub(crate) async fn register(
    session: &SessionContext,
    datasets: &[Dataset],
    registry: &Registry,
) -> Result<(), Failure> {
    if let Some(catalog) = session.catalog("datafusion") {
        catalog.register_schema(SCHEMA, Arc::new(MemorySchemaProvider::new()))?;
    }
    let run = Run::new(datasets, registry);
    for view in ALL {
        let table: Arc<dyn TableProvider> = match view.source {
            Source::Query(query) => match query(&run) {
                Some(query) => session.sql(&query).await?.into_view(),
                None => continue,
            },
            Source::Published => published()?,
            Source::System => session.table_provider(view.name).await?,
        };
        session.register_table(format!("{SCHEMA}.{}", view.name), table.clone())?;
        if !session.table_exist(view.name)? {
            session.register_table(view.name, table)?;
        }
    }
    Ok(())
}

fn published() -> Result<Arc<dyn TableProvider>, DataFusionError> {
    let text = include_bytes!("published.csv");
    let format = Format::default().with_header(true);
    let (schema, _) = format.infer_schema(Cursor::new(text), None)?;
    let schema = Arc::new(schema);
    let reader = ReaderBuilder::new(schema.clone()).with_format(format).build(Cursor::new(text))?;
    let batches = reader.collect::<Result<Vec<RecordBatch>, _>>()?;
    Ok(Arc::new(MemTable::try_new(schema, vec![batches])?))
}

/// Why a view is missing, if `name` is a view.
pub(crate) fn missing_reason(name: &str) -> Option<String> {
    let view = named(name)?;
    Some(format!("the view `{name}` needs {}", view.needs))
}
