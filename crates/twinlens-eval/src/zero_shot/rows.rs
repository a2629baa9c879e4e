//! The rows of a set's table: its classes, and the label of each row.

use std::collections::BTreeSet;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use twinlens_dataset::Dataset;
use twinlens_pipeline::{InputData, RunContext};

use crate::error::EvalError;
use crate::images::{Examples, NO_LABEL, Refusal, UNKNOWN_LABEL};
use crate::model::input;
use crate::set::{ClassFault, ClassOptions, Classes, LabelColumn, Labels, SetOptions, items_of};

/// Rows of a label column that are read at a time.
const LABEL_ROWS: usize = 8192;
/// The column of lists with the classes that nobody decided on, where a set has one.
pub const IGNORED: &str = "ignored_labels";

/// The classes of an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Truth {
    /// One.
    One(usize),
    /// Those that are there, and those that nobody decided on.
    Several { present: Vec<usize>, ignored: Vec<usize> },
}

impl Truth {
    /// The class of an example that has one.
    pub fn one(&self) -> Option<usize> {
        match self {
            Truth::One(class) => Some(*class),
            Truth::Several { .. } => None,
        }
    }
}

/// The label of a row, as one set reads it.
pub struct Labelled {
    pub class: Result<Truth, Refusal>,
    /// As it goes into the set's hash.
    pub text: String,
}

/// Refuses a set for a reason that names the class or column.
pub fn refuse(set: &SetOptions) -> impl Fn(ClassFault) -> EvalError {
    let name = set.name.value().clone();
    move |fault| EvalError::set(&name, fault.why, fault.hint)
}

/// The distinct labels of a table, sorted. Labels outside the class names are left to become
/// rejects.
fn distinct(
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

/// The classes of a set: those listed, those of another table, those that name integer labels, or
/// the distinct labels.
pub fn classes(
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
            let labels = Labels::new(&schema, labels.column(), labels.class_names()).map_err(refuse(set))?;
            distinct(cx, &other.dataset, &other.table, &labels)?
        }
        None => match labels.class_names() {
            Some(names) => names.to_vec(),
            None => distinct(cx, &own.dataset, &own.table, labels)?,
        },
    };
    let classes = Classes::new(names, &set.names).map_err(refuse(set))?;
    classes.with_synonyms(&set.synonyms).map_err(refuse(set))
}

/// Reads the rows of a set's table.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub labels: &'a Labels,
    pub classes: &'a Classes,
    pub set: &'a SetOptions,
}

impl Rows<'_> {
    /// The label of each row.
    pub fn label(&self, batch: &RecordBatch) -> Result<Vec<Labelled>, EvalError> {
        let name = self.labels.column();
        let column = batch.column_by_name(name);
        let column = column.ok_or_else(|| {
            EvalError::set(&self.set.name, format!("a shard lacks the column `{name}`"), None)
        })?;
        let read = self.labels.read(column)?;
        let ignored = batch.column_by_name(IGNORED).filter(|_| self.labels.several());
        let ignored_read = ignored.map(|column| self.labels.read(column)).transpose()?;
        let null = || Refusal { code: NO_LABEL, detail: "the label is null".into() };
        let one = |row: usize| {
            if !self.labels.several() {
                let (text, class) = self.class(&read, row);
                return Labelled { text, class: class.map(Truth::One) };
            }
            let (text, present) = match self.several(&read, column, row) {
                Some(found) => found,
                None => return Labelled { text: String::new(), class: Err(null()) },
            };
            let ignored = ignored.zip(ignored_read.as_ref());
            let ignored = ignored.and_then(|(column, read)| self.several(read, column, row));
            let ignored = ignored.map_or(Ok(Vec::new()), |(_, ignored)| ignored);
            let class = present.and_then(|present| Ok(Truth::Several { present, ignored: ignored? }));
            Labelled { text, class }
        };
        Ok((0..batch.num_rows()).map(one).collect())
    }

    /// The label at a place of the column, as text and as a class.
    fn class(&self, column: &LabelColumn<'_>, place: usize) -> (String, Result<usize, Refusal>) {
        let unknown = |detail: String| Err(Refusal { code: UNKNOWN_LABEL, detail });
        match column.get(place) {
            Err(detail) => (detail.clone(), unknown(detail)),
            Ok(None) => (String::new(), Err(Refusal { code: NO_LABEL, detail: "the label is null".into() })),
            Ok(Some(label)) => {
                let none = || unknown(format!("the label `{label}` is none of the classes"));
                (label.into(), self.classes.id(label).map_or_else(none, Ok))
            }
        }
    }

    /// The labels of a row of lists; `None` for null.
    fn several(
        &self,
        read: &LabelColumn<'_>,
        column: &ArrayRef,
        row: usize,
    ) -> Option<(String, Result<Vec<usize>, Refusal>)> {
        let items: Vec<_> = items_of(column, row)?.map(|item| self.class(read, item)).collect();
        let text = items.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join("\0");
        Some((text, items.into_iter().map(|(_, class)| class).collect()))
    }

    /// The name of each row's example, and its class where it has one. `first` is the number of the
    /// first row.
    pub fn examples(
        &self,
        batch: &RecordBatch,
        first: u64,
    ) -> Result<Vec<(String, Option<usize>)>, EvalError> {
        let labels = self.label(batch)?;
        let class = |labelled: &Labelled| labelled.class.as_ref().ok().and_then(Truth::one);
        Ok((labels.iter().enumerate())
            .map(|(row, label)| (example(batch, row, first), class(label)))
            .collect())
    }
}

/// What the results call the example of a row: its uid, or its number in the table, from 0.
pub fn example(batch: &RecordBatch, row: usize, first: u64) -> String {
    uid(batch, row).map_or_else(|| (first + row as u64).to_string(), str::to_string)
}

/// The uid of a row, where it has one.
pub fn uid(batch: &RecordBatch, row: usize) -> Option<&str> {
    let uids = batch.column_by_name("uid")?.as_string_opt::<i32>()?;
    uids.is_valid(row).then(|| uids.value(row))
}
