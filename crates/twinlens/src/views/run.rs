//! What a run has for the views: its tables by what they hold, wherever they come from.

use serde_json::Value;
use twinlens_dataset::protocol::Variant;
use twinlens_dataset::{Dataset, MAIN};

/// Columns by which a table of accuracies is known.
const ACCURACY: &[&str] = &[
    "model",
    "set",
    "task",
    "prompts",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "chance",
    "n",
    "weights_hash",
];
/// Columns by which a table of classes is known.
const PER_CLASS: &[&str] = &["set", "prompts", "class_id", "class_name", "n", "correct"];
/// Columns by which a table of predictions is known.
const PREDICTIONS: &[&str] = &["set", "prompts", "example", "label", "predicted", "score"];
/// Columns by which a table of pairs is known.
const PAIRS: &[&str] = &["uid", "caption"];

/// The datasets of a run.
pub struct Run<'a> {
    datasets: &'a [Dataset],
}

/// A table of a dataset that a view reads.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    /// The dataset.
    pub dataset: &'a Dataset,
    /// The table of it.
    pub table: &'a str,
}

impl<'a> Table<'a> {
    /// As SQL names it.
    pub fn sql(&self) -> String {
        let stage = quoted(self.stage());
        if self.table == MAIN { stage } else { format!("{stage}.{}", quoted(self.table)) }
    }

    /// The stage that it is of.
    pub fn stage(&self) -> &'a str {
        &self.dataset.state().begin.stage
    }

    fn has(&self, columns: &[&str]) -> bool {
        let schema = self.dataset.schema(self.table);
        schema.is_ok_and(|schema| columns.iter().all(|column| schema.field_with_name(column).is_ok()))
    }

    /// A column's value, or null where the table has none of the name.
    pub fn value(&self, name: &str, kind: &str) -> String {
        if self.has(&[name]) { quoted(name) } else { format!("cast(null as {kind})") }
    }

    /// A column, or nulls of its name.
    pub fn column(&self, name: &str, kind: &str) -> String {
        format!("{} as {}", self.value(name, kind), quoted(name))
    }
}

/// A name as SQL takes it, whatever it is.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Text as SQL takes it.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl<'a> Run<'a> {
    /// The run of these datasets.
    pub fn new(datasets: &'a [Dataset]) -> Self {
        Self { datasets }
    }

    /// The tables that have these columns. What a query of the pipeline made of others would be
    /// counted twice.
    pub fn with(&self, columns: &[&str]) -> Vec<Table<'a>> {
        let made = self.datasets.iter().filter(|dataset| dataset.state().begin.kind != "sql");
        let tables = made.flat_map(|dataset| dataset.tables().map(move |table| Table { dataset, table }));
        tables.filter(|table| table.has(columns)).collect()
    }

    /// Accuracies, of every stage that leaves them.
    pub fn accuracies(&self) -> Vec<Table<'a>> {
        self.with(ACCURACY)
    }

    /// Classes with how many of their examples were right.
    pub fn per_class(&self) -> Vec<Table<'a>> {
        self.with(PER_CLASS)
    }

    /// Predictions, of stages that also leave classes.
    pub fn predictions(&self) -> Vec<Table<'a>> {
        let classes = self.per_class();
        let named = |table: &Table<'_>| classes.iter().any(|other| other.stage() == table.stage());
        self.with(PREDICTIONS).into_iter().filter(named).collect()
    }

    /// The classes of the same stage.
    pub fn classes_of(&self, table: &Table<'_>) -> Option<Table<'a>> {
        self.per_class().into_iter().find(|classes| classes.stage() == table.stage())
    }

    /// The texts of queries, as a query with the columns `query_id` and `query`: of the first table
    /// that has them.
    pub fn query_texts(&self) -> Option<String> {
        if let Some(stats) = self.with(&["query_id", "query"]).first() {
            return Some(format!("select query_id, query from {}", stats.sql()));
        }
        let list = self.with(&["id", "text", "origin", "score"]);
        list.first().map(|list| format!("select id as query_id, text as query from {}", list.sql()))
    }

    /// The name of the model that an evaluation is of, as its stage names it.
    pub fn model_of(&self, evaluation: &Table<'_>) -> Option<String> {
        let training = self.training_of(evaluation).map(|training| training.state().begin.stage.clone());
        training.or_else(|| Some(option(evaluation.dataset, "model")?.to_string()))
    }

    fn training_of(&self, evaluation: &Table<'_>) -> Option<&'a Dataset> {
        let model = option(evaluation.dataset, "model")?;
        self.producer(model, evaluation.dataset).filter(|training| training.state().begin.kind == "train")
    }

    /// The dataset that a stage read under this name: of a swept stage, the variant that goes with
    /// the reader.
    fn producer(&self, name: &str, reader: &Dataset) -> Option<&'a Dataset> {
        let settings = |dataset: &Dataset| {
            dataset
                .state()
                .begin
                .variant
                .as_ref()
                .map_or(vec![], |variant: &Variant| variant.settings.clone())
        };
        let known = settings(reader);
        let fits = |dataset: &&Dataset| {
            let begin = &dataset.state().begin;
            begin.stage == name
                || begin.family() == name && settings(dataset).iter().all(|setting| known.contains(setting))
        };
        self.datasets.iter().find(fits)
    }

    /// The pairs that the model of an evaluation was trained on, with the columns that
    /// `pair_columns` asks for.
    pub fn pairs_of(&self, evaluation: &Table<'_>, columns: &[&str]) -> Option<Table<'a>> {
        let training = self.training_of(evaluation)?;
        // Of several inputs, the first.
        let several = || options(training)?.get("inputs")?.get(0)?.get("input")?.as_str();
        let input = option(training, "input").or_else(several)?;
        let (stage, table) = input.split_once('.').unwrap_or((input, MAIN));
        let dataset = self.producer(stage, training)?;
        let table = dataset.tables().find(|name| *name == table)?;
        let table = Table { dataset, table };
        (table.has(PAIRS) && table.has(columns)).then_some(table)
    }
}

/// The options of the stage that made a dataset.
fn options(dataset: &Dataset) -> Option<&Value> {
    dataset.state().begin.recipe.get("options")
}

/// One of them, where it is text.
fn option<'a>(dataset: &'a Dataset, name: &str) -> Option<&'a str> {
    options(dataset)?.get(name).and_then(Value::as_str)
}
