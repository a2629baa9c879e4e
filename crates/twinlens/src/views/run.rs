//! The tables of a run that views read, found by their columns.

use serde_json::Value;
use twinlens_dataset::protocol::Variant;
use twinlens_dataset::{Dataset, MAIN};
use twinlens_pipeline::{Product, Registry};

use crate::syntax::identifier;

/// Columns that identify a table of accuracies.
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
/// Columns that identify a table of classes.
const PER_CLASS: &[&str] = &["set", "prompts", "class_id", "class_name", "n", "correct"];
/// Columns that identify a table of predictions.
const PREDICTIONS: &[&str] = &["set", "prompts", "example", "label", "predicted", "score"];
/// Columns that identify a table of pairs.
const PAIRS: &[&str] = &["uid", "caption"];

pub(crate) struct Run<'a> {
    datasets: &'a [Dataset],
    registry: &'a Registry,
}

/// A table of a dataset.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    pub dataset: &'a Dataset,
    pub table: &'a str,
}

impl<'a> Table<'a> {
    /// The quoted SQL name.
    pub(crate) fn sql(&self) -> String {
        let stage = identifier(self.stage());
        if self.table == MAIN { stage } else { format!("{stage}.{}", identifier(self.table)) }
    }

    pub(crate) fn stage(&self) -> &'a str {
        &self.dataset.state().begin.stage
    }

    fn has(&self, columns: &[&str]) -> bool {
        let schema = self.dataset.schema(self.table);
        schema.is_ok_and(|schema| columns.iter().all(|column| schema.field_with_name(column).is_ok()))
    }

    /// SQL for a column, or null if the table does not have it.
    pub(crate) fn column_or_null(&self, name: &str, kind: &str) -> String {
        if self.has(&[name]) { identifier(name) } else { format!("cast(null as {kind})") }
    }

    /// Like [`Table::column_or_null`], with the column's name as alias.
    pub(crate) fn aliased_column(&self, name: &str, kind: &str) -> String {
        format!("{} as {}", self.column_or_null(name, kind), identifier(name))
    }
}

impl<'a> Run<'a> {
    pub(crate) fn new(datasets: &'a [Dataset], registry: &'a Registry) -> Self {
        Self { datasets, registry }
    }

    fn product(&self, dataset: &Dataset) -> Option<Product> {
        self.registry.product(&dataset.state().begin.kind)
    }

    /// The datasets of the stages that train models.
    pub(crate) fn trainings(&self) -> Vec<&'a Dataset> {
        self.datasets.iter().filter(|dataset| self.product(dataset) == Some(Product::Model)).collect()
    }

    /// The tables that have these columns, except the results of queries, which would be counted
    /// twice.
    pub(crate) fn tables_with(&self, columns: &[&str]) -> Vec<Table<'a>> {
        let datasets = self.datasets.iter().filter(|dataset| self.product(dataset) != Some(Product::Report));
        let tables = datasets.flat_map(|dataset| dataset.tables().map(move |table| Table { dataset, table }));
        tables.filter(|table| table.has(columns)).collect()
    }

    pub(crate) fn accuracies(&self) -> Vec<Table<'a>> {
        self.tables_with(ACCURACY)
    }

    /// Tables with the number of correct predictions per class.
    pub(crate) fn per_class(&self) -> Vec<Table<'a>> {
        self.tables_with(PER_CLASS)
    }

    /// Predictions of stages that also have tables of classes.
    pub(crate) fn predictions(&self) -> Vec<Table<'a>> {
        let classes = self.per_class();
        let named = |table: &Table<'_>| classes.iter().any(|other| other.stage() == table.stage());
        self.tables_with(PREDICTIONS).into_iter().filter(named).collect()
    }

    /// The classes of the same stage.
    pub(crate) fn classes_of(&self, table: &Table<'_>) -> Option<Table<'a>> {
        self.per_class().into_iter().find(|classes| classes.stage() == table.stage())
    }

    /// SQL for the texts of queries with the columns `query_id` and `query`, from the first table
    /// that has them.
    pub(crate) fn query_texts(&self) -> Option<String> {
        if let Some(stats) = self.tables_with(&["query_id", "query"]).first() {
            return Some(format!("select query_id, query from {}", stats.sql()));
        }
        let list = self.tables_with(&["id", "text", "origin", "score"]);
        list.first().map(|list| format!("select id as query_id, text as query from {}", list.sql()))
    }

    /// The model of an evaluation, as in the option of its stage.
    pub(crate) fn model_of(&self, evaluation: &Table<'_>) -> Option<String> {
        let training = self.training_of(evaluation).map(|training| training.state().begin.stage.clone());
        training.or_else(|| Some(option(evaluation.dataset, "model")?.to_string()))
    }

    fn training_of(&self, evaluation: &Table<'_>) -> Option<&'a Dataset> {
        let model = option(evaluation.dataset, "model")?;
        let producer = self.producer(model, evaluation.dataset);
        producer.filter(|training| self.product(training) == Some(Product::Model))
    }

    /// The dataset that `reader` read by this name. For a swept stage, the variant with the same
    /// settings.
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
        let matches = |dataset: &&Dataset| {
            let begin = &dataset.state().begin;
            begin.stage == name
                || begin.family() == name && settings(dataset).iter().all(|setting| known.contains(setting))
        };
        self.datasets.iter().find(matches)
    }

    /// The pairs that the model of an evaluation was trained on, if they have these columns.
    pub(crate) fn pairs_of(&self, evaluation: &Table<'_>, columns: &[&str]) -> Option<Table<'a>> {
        let training = self.training_of(evaluation)?;
        // The first one of several inputs.
        let first = || options(training)?.get("inputs")?.get(0)?.get("input")?.as_str();
        let input = option(training, "input").or_else(first)?;
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

/// A text option of the stage that made a dataset.
fn option<'a>(dataset: &'a Dataset, name: &str) -> Option<&'a str> {
    options(dataset)?.get(name).and_then(Value::as_str)
}
