//! A set ready to be read: its classes, and the label of each row.

use std::collections::BTreeSet;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use twinlens_dataset::Dataset;
use twinlens_pipeline::{InputData, RunContext};

use crate::error::EvalError;
use crate::images::{Examples, NO_LABEL, Reject, UNKNOWN_LABEL};
use crate::inputs::input;
use crate::prompts::{PromptOptions, PromptSet};
use crate::set::{ClassOptions, Classes, LabelColumn, Labels, SetFault, SetOptions, list_items};

const LABEL_ROWS: usize = 8192;
/// The optional column with the classes that are not annotated, in multi-label sets.
pub(crate) const IGNORED: &str = "ignored_labels";

/// The classes of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Truth {
    Single(usize),
    /// `ignored`: not annotated.
    Multi {
        present: Vec<usize>,
        ignored: Vec<usize>,
    },
}

impl Truth {
    pub(crate) fn single(&self) -> Option<usize> {
        match self {
            Truth::Single(class) => Some(*class),
            Truth::Multi { .. } => None,
        }
    }
}

/// The label of a row.
pub(crate) struct RowLabel {
    pub class: Result<Truth, Reject>,
    /// For the set's hash.
    pub text: String,
}

/// Converts a fault to an error of the set.
pub(crate) fn set_error(set: &SetOptions) -> impl Fn(SetFault) -> EvalError {
    let name = set.name.value().clone();
    move |fault| EvalError::set(&name, fault.why, fault.hint)
}

/// The distinct labels of a table, sorted, without those that will be rejected.
fn distinct_labels(
    cx: &RunContext,
    dataset: &Dataset,
    table: &str,
    labels: &Labels,
) -> Result<Vec<String>, EvalError> {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for chunk in Examples::new(dataset, table, &[labels.column()], LABEL_ROWS, usize::MAX) {
        cx.check_cancelled()?;
        let batch = chunk?.batch;
        let Some(column) = batch.column_by_name(labels.column()) else { continue };
        let column = labels.read(column)?;
        for row in 0..batch.num_rows() {
            if let Ok(Some(label)) = column.get(row)
                && !seen.contains(label)
            {
                seen.insert(label.into());
            }
        }
    }
    Ok(seen.into_iter().collect())
}

/// The classes of a set: those listed, those of another table, the class names of integer labels,
/// or the distinct labels.
pub(crate) fn read_classes(
    cx: &RunContext,
    set: &SetOptions,
    inputs: &[InputData],
    own: &InputData,
    labels: &Labels,
) -> Result<Classes, EvalError> {
    let names = match set.classes.as_ref().map(|classes| classes.value()) {
        Some(ClassOptions::List(names)) => names.clone(),
        Some(ClassOptions::From(_)) => {
            let other = set.classes_input().map_or(Ok(own), |other| input(inputs, &other))?;
            let schema = other.dataset.schema(&other.table)?;
            let labels =
                Labels::new(&schema, labels.column(), labels.class_names()).map_err(set_error(set))?;
            distinct_labels(cx, &other.dataset, &other.table, &labels)?
        }
        None => match labels.class_names() {
            Some(names) => names.to_vec(),
            None => distinct_labels(cx, &own.dataset, &own.table, labels)?,
        },
    };
    let classes = Classes::new(names, &set.names).map_err(set_error(set))?;
    classes.with_synonyms(&set.synonyms).map_err(set_error(set))
}

/// A set whose label column and classes are known.
pub(crate) struct SetReader {
    pub options: SetOptions,
    pub labels: Labels,
    pub classes: Classes,
}

impl SetReader {
    /// Reads the schema of the set's input and the classes.
    pub(crate) fn open(cx: &RunContext, inputs: &[InputData], set: &SetOptions) -> Result<Self, EvalError> {
        let own = input(inputs, &set.input)?;
        let schema = own.dataset.schema(&own.table)?;
        let class_names = set.class_names.as_ref().map(|names| names.as_slice());
        let labels = Labels::new(&schema, set.label.value(), class_names).map_err(set_error(set))?;
        let classes = read_classes(cx, set, inputs, own, &labels)?;
        Ok(Self { options: set.clone(), labels, classes })
    }

    pub(crate) fn name(&self) -> &str {
        self.options.name.value()
    }

    /// The prompt set of an option, with the set's own templates if it names them.
    pub(crate) fn resolve(&self, prompts: &PromptOptions) -> Result<PromptSet, EvalError> {
        let own = self.options.templates.as_ref().map(|templates| templates.as_slice());
        prompts.resolve(own).map_err(|(why, hint)| EvalError::set(self.name(), why, hint))
    }

    pub(crate) fn labels(&self, batch: &RecordBatch) -> Result<Vec<RowLabel>, EvalError> {
        let name = self.labels.column();
        let column = batch.column_by_name(name);
        let column = column
            .ok_or_else(|| EvalError::set(self.name(), format!("a shard lacks the column `{name}`"), None))?;
        let read = self.labels.read(column)?;
        let ignored = batch.column_by_name(IGNORED).filter(|_| self.labels.is_multi_label());
        let ignored_read = ignored.map(|column| self.labels.read(column)).transpose()?;
        let null = || Reject { code: NO_LABEL, detail: "the label is null".into() };
        let label = |row: usize| {
            if !self.labels.is_multi_label() {
                let (text, class) = self.class(&read, row);
                return RowLabel { text, class: class.map(Truth::Single) };
            }
            let Some((text, present)) = self.label_list(&read, column, row) else {
                return RowLabel { text: String::new(), class: Err(null()) };
            };
            let ignored = ignored.zip(ignored_read.as_ref());
            let ignored = ignored.and_then(|(column, read)| self.label_list(read, column, row));
            let ignored = ignored.map_or(Ok(Vec::new()), |(_, ignored)| ignored);
            let class = present.and_then(|present| Ok(Truth::Multi { present, ignored: ignored? }));
            RowLabel { text, class }
        };
        Ok((0..batch.num_rows()).map(label).collect())
    }

    /// An item of the column, as text and as a class.
    fn class(&self, column: &LabelColumn<'_>, item: usize) -> (String, Result<usize, Reject>) {
        let unknown = |detail: String| Err(Reject { code: UNKNOWN_LABEL, detail });
        match column.get(item) {
            Err(detail) => (detail.clone(), unknown(detail)),
            Ok(None) => (String::new(), Err(Reject { code: NO_LABEL, detail: "the label is null".into() })),
            Ok(Some(label)) => {
                let none = || unknown(format!("the label `{label}` is not one of the classes"));
                (label.into(), self.classes.id(label).map_or_else(none, Ok))
            }
        }
    }

    /// The labels of a row of a list column; `None` if null.
    fn label_list(
        &self,
        read: &LabelColumn<'_>,
        column: &ArrayRef,
        row: usize,
    ) -> Option<(String, Result<Vec<usize>, Reject>)> {
        let items: Vec<_> = list_items(column, row)?.map(|item| self.class(read, item)).collect();
        let text = items.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join("\0");
        Some((text, items.into_iter().map(|(_, class)| class).collect()))
    }

    /// Name and class of each example, for single-label sets; `first` is the index of the first
    /// row.
    pub(crate) fn examples(
        &self,
        batch: &RecordBatch,
        first: u64,
    ) -> Result<Vec<(String, Option<usize>)>, EvalError> {
        let labels = self.labels(batch)?;
        let class = |label: &RowLabel| label.class.as_ref().ok().and_then(Truth::single);
        Ok((labels.iter().enumerate())
            .map(|(row, label)| (example_name(batch, row, first), class(label)))
            .collect())
    }
}

/// The name of an example in the results: its uid, or its index in the table.
pub(crate) fn example_name(batch: &RecordBatch, row: usize, first: u64) -> String {
    uid(batch, row).map_or_else(|| (first + row as u64).to_string(), str::to_string)
}

pub(crate) fn uid(batch: &RecordBatch, row: usize) -> Option<&str> {
    let uids = batch.column_by_name("uid")?.as_string_opt::<i32>()?;
    uids.is_valid(row).then(|| uids.value(row))
}
