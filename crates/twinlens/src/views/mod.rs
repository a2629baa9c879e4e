//! Views over a run: the questions that everybody asks, as tables.
//!
//! A view is made of the tables that have the columns of its contract, whatever their stages are
//! called; it is there only when they are. It is `views.NAME`, and plain `NAME` where no stage has
//! that name.

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

use crate::errors::Failure;
pub use run::{Run, Table, literal};

/// The schema in which all views stand.
pub const SCHEMA: &str = "views";

/// What there is to be known of a view.
pub struct View {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a sentence.
    pub about: &'static str,
    /// What a run must have for it.
    pub needs: &'static str,
    /// Its columns, and what they mean.
    pub columns: &'static [(&'static str, &'static str)],
    made_of: Made,
}

/// What a view is made of.
enum Made {
    /// A query over the tables of a run; none where it lacks them.
    Query(fn(&Run<'_>) -> Option<String>),
    /// A table of the program's own.
    Published,
    /// A table that every run has.
    Always,
}

impl View {
    /// Its name, what it is and its columns, for people.
    pub fn explained(&self) -> String {
        let width = self.columns.iter().map(|(column, _)| column.len()).max().unwrap_or(0);
        let columns = self.columns.iter().map(|(column, about)| format!("  {column:width$}  {about}\n"));
        format!("{}: {}\n{}", self.name, self.about, columns.collect::<String>())
    }

    /// What it needs, for people.
    pub fn needed(&self) -> String {
        match self.made_of {
            Made::Query(_) => format!("  needs {}\n", self.needs),
            Made::Published | Made::Always => String::new(),
        }
    }
}

const STAGE: (&str, &str) = ("stage", "the evaluation");
const MODEL: (&str, &str) = ("model", "the stage that trained it, or its folder");
const SET: (&str, &str) = ("set", "the evaluation set");
const PROMPTS: (&str, &str) = ("prompts", "the prompts that class names were put into");
const N: (&str, &str) = ("n", "examples");
const PART: (&str, &str) = ("part", "all, or the part of the set that training did not see");

/// All views.
pub const ALL: &[View] = &[
    View {
        name: "leaderboard",
        about: "Every accuracy of the run, ranked within its set and metric",
        needs: "a table of accuracies, as a `zero-shot` stage leaves",
        columns: &[
            SET,
            ("task", "zero-shot, linear-probe, retrieval"),
            ("metric", "what is measured"),
            ("rank", "1 is the best of this set, task and metric"),
            MODEL,
            PROMPTS,
            ("value", "the accuracy"),
            ("ci_low", "the lower end of its 95 % interval"),
            ("ci_high", "the upper end"),
            ("chance", "what guessing gets"),
            ("times_chance", "value / chance"),
            N,
            PART,
            STAGE,
            ("checkpoint", "the state of the training"),
            ("split", "train, test, ..."),
        ],
        made_of: Made::Query(evaluation::leaderboard),
    },
    View {
        name: "prompt_gain",
        about: "What prompts gain over the bare class name, with a paired interval where single predictions are kept",
        needs: "a table of accuracies with the prompts `{}` among others",
        columns: &[
            STAGE,
            MODEL,
            SET,
            ("metric", "what is measured"),
            PROMPTS,
            ("value", "the accuracy with these prompts"),
            ("bare", "the accuracy with the name alone"),
            ("gain", "value - bare"),
            ("gain_low", "the lower end of its 95 % interval on the same examples; of top1 alone"),
            ("gain_high", "the upper end"),
            ("p", "the chance of such a gain or loss, were the two equally good (McNemar)"),
            N,
            PART,
        ],
        made_of: Made::Query(evaluation::prompt_gain),
    },
    View {
        name: "confusions",
        about: "Which class was taken for which other, and how often",
        needs: "tables of predictions and of classes, as a `zero-shot` stage leaves",
        columns: &[
            STAGE,
            MODEL,
            SET,
            PROMPTS,
            ("class_name", "what it is"),
            ("predicted_name", "what it was taken for"),
            ("times", "how many examples"),
            ("of_examples", "of how many of the class"),
        ],
        made_of: Made::Query(evaluation::confusions),
    },
    View {
        name: "class_support",
        about: "Each class's accuracy beside the training pairs whose matched queries name it",
        needs: "a table of classes, the training of the model on pairs with `query_ids`, and the texts of queries (`queries = ...` of a `balance` stage, or a `queries` stage)",
        columns: &[
            STAGE,
            MODEL,
            SET,
            PROMPTS,
            ("class_id", "the label"),
            ("class_name", "the class"),
            N,
            ("correct", "examples that were right"),
            ("accuracy", "correct / n"),
            ("ci_low", "the lower end of its 95 % interval (Wilson)"),
            ("ci_high", "the upper end"),
            ("training_pairs", "pairs that matched a query which is the whole name"),
            ("related_pairs", "pairs that matched a query which is some words of the name"),
        ],
        made_of: Made::Query(lineage::class_support),
    },
    View {
        name: "lineage",
        about: "From a class to the queries that name it, the training pairs that matched them, and their pages; a class without any has one row of nulls",
        needs: "what `class_support` needs",
        columns: &[
            STAGE,
            MODEL,
            SET,
            ("class_id", "the label; of a prediction: its `label` or `predicted`"),
            ("class_name", "the class"),
            ("query_id", "a query that is some words of the name"),
            ("query", "its text"),
            ("whole_name", "whether it is the whole name"),
            ("uid", "a training pair that matched it"),
            ("caption", "its caption"),
            ("url", "its image"),
            ("page_url", "the page that it was found on"),
        ],
        made_of: Made::Query(lineage::lineage),
    },
    View {
        name: "funnel",
        about: "The rows that each stage was given, kept, and refused by code",
        needs: "nothing",
        columns: &[
            ("position", "the order of the stages"),
            ("stage", "the stage"),
            ("outcome", "in, kept, or the code of a reject"),
            ("rows", "how many"),
        ],
        made_of: Made::Always,
    },
    View {
        name: "published",
        about: "Known zero-shot accuracies of OpenAI's and open_clip's models",
        needs: "nothing",
        columns: &[
            ("model", "the shape, as `twinlens model list` names it"),
            ("weights", "whose weights, or what they were trained on"),
            SET,
            ("metric", "what is measured"),
            ("value", "the accuracy"),
            ("source", "where it is published"),
        ],
        made_of: Made::Published,
    },
];

/// The view of that name.
pub fn named(name: &str) -> Option<&'static View> {
    ALL.iter().find(|view| view.name == name)
}

/// Adds the views that a run has the tables for to its session.
pub async fn register(session: &SessionContext, datasets: &[Dataset]) -> Result<(), Failure> {
    if let Some(catalog) = session.catalog("datafusion") {
        catalog.register_schema(SCHEMA, Arc::new(MemorySchemaProvider::new()))?;
    }
    let run = Run::new(datasets);
    for view in ALL {
        let table: Arc<dyn TableProvider> = match view.made_of {
            Made::Query(query) => match query(&run) {
                Some(query) => session.sql(&query).await?.into_view(),
                None => continue,
            },
            Made::Published => published()?,
            Made::Always => session.table_provider(view.name).await?,
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

/// Why a table of that name is not there, where it is that of a view.
pub fn missing(name: &str) -> Option<String> {
    let view = named(name)?;
    Some(format!("the view `{name}` needs {}", view.needs))
}
