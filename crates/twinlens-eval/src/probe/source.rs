//! Reads the labelled embeddings of a set: its training, validation and test parts.

use arrow::array::{Array, AsArray, RecordBatch};
use rand::seq::SliceRandom;
use twinlens_pipeline::{Input, InputData, RunContext};

use super::logistic::Examples;
use super::options::{Probe, ProbeSet, SEVERAL};
use crate::error::EvalError;
use crate::images::Examples as Rows;
use crate::images::{NO_EMBEDDING, NO_LABEL, UNKNOWN_LABEL};
use crate::inputs::input;
use crate::set::{Classes, Labels, SetFault};
use crate::set_reader::read_classes;
use crate::vectors::{EMBEDDING, EMBEDDING_MODEL, IMAGE_HASH, Vectors, check_embedding_model};

/// Rows per chunk.
const ROWS: usize = 4096;

/// The parts of one set, and its classes.
pub(super) struct Source<'a> {
    pub options: &'a Probe,
    pub cx: &'a RunContext,
    pub inputs: &'a [InputData],
    pub set: &'a ProbeSet,
    pub classes: Classes,
    /// The identity of the model that made the embeddings; all parts must have the same.
    pub embedding_model: String,
}

/// The class and embedding of a row, or the code and detail of its reject.
pub(super) type Labelled<'a> = Result<(usize, &'a [f32]), (&'static str, String)>;

/// One row of a part.
pub(super) struct Row<'a> {
    /// Its number in the part, from 0.
    pub number: u64,
    pub uid: Option<&'a str>,
    /// The hash of its image; empty if unknown.
    pub hash: &'a str,
    pub labelled: Labelled<'a>,
}

impl<'a> Source<'a> {
    pub(super) fn open(
        options: &'a Probe,
        cx: &'a RunContext,
        inputs: &'a [InputData],
        set: &'a ProbeSet,
    ) -> Result<Self, EvalError> {
        let train = input(inputs, &set.train)?;
        let labels = labels(set, train)?;
        let classes = read_classes(cx, &set.as_set(), inputs, train, &labels)?;
        let embedding_model = embedding_model(set, train)?;
        Ok(Self { options, cx, inputs, set, classes, embedding_model })
    }

    /// Reads a part chunk by chunk; `take` gets the rows, their batch, and the reader that locates
    /// them.
    pub(super) fn rows(
        &self,
        part: &Input,
        mut take: impl FnMut(&[Row<'_>], &RecordBatch, &Rows<'_>) -> Result<(), EvalError>,
    ) -> Result<(), EvalError> {
        let data = input(self.inputs, part)?;
        let labels = labels(self.set, data)?;
        let columns =
            ["uid", "url", "caption", "page_url", labels.column(), EMBEDDING, EMBEDDING_MODEL, IMAGE_HASH];
        let mut chunks = Rows::new(&data.dataset, &data.table, &columns, ROWS, self.cx.bytes_in_flight);
        while let Some(chunk) = chunks.next().transpose()? {
            self.cx.check_cancelled()?;
            let batch = &chunk.batch;
            check_embedding_model(batch, &self.embedding_model).map_err(|(why, _)| {
                let hint = "all parts of a set must be embedded by the same model".to_string();
                EvalError::set(&self.set.name, format!("`{}`: {why}", part.name()), Some(hint))
            })?;
            let lacks = |column: &str| {
                EvalError::set(&self.set.name, format!("`{}` has no column `{column}`", part.name()), None)
            };
            let vectors = Vectors::from_column(batch, EMBEDDING).ok_or_else(|| lacks(EMBEDDING))?;
            let column = batch.column_by_name(labels.column()).ok_or_else(|| lacks(labels.column()))?;
            let column = labels.read(column)?;
            let text = |name: &str, row: usize| {
                let column = batch.column_by_name(name)?.as_string_opt::<i32>()?;
                column.is_valid(row).then(|| column.value(row))
            };
            let labelled = |row: usize| {
                let label = column.get(row).map_err(|detail| (UNKNOWN_LABEL, detail))?;
                let label = label.ok_or_else(|| (NO_LABEL, "the label is null".to_string()))?;
                let class = self.classes.id(label);
                let class = class.ok_or_else(|| {
                    (UNKNOWN_LABEL, format!("the label `{label}` is not one of the classes"))
                })?;
                let vector =
                    vectors.get(row).ok_or_else(|| (NO_EMBEDDING, "the embedding is null".to_string()))?;
                Ok::<_, (&'static str, String)>((class, vector))
            };
            let row = |row: usize| Row {
                number: chunk.first + row as u64,
                uid: text("uid", row),
                hash: text(IMAGE_HASH, row).unwrap_or_default(),
                labelled: labelled(row),
            };
            take(&(0..batch.num_rows()).map(row).collect::<Vec<_>>(), batch, &chunks)?;
        }
        Ok(())
    }

    /// The labelled examples of a part: all, or `max_examples` rows drawn at random. Rows without
    /// label or embedding are skipped.
    pub(super) fn load(&self, part: &Input) -> Result<Examples, EvalError> {
        let rows = input(self.inputs, part)?.rows();
        let most = *self.options.max_examples as u64;
        let (set, part_name) = (self.set.name.value(), part.name());
        let chosen = (rows > most).then(|| {
            let mut rng = self.cx.rng(&format!("examples/{set}/{part_name}"));
            let mut chosen = rand::seq::index::sample(&mut rng, rows as usize, most as usize).into_vec();
            chosen.sort_unstable();
            self.cx.progress.note(format!("set `{set}`: {most} of {rows} rows of `{part_name}` are used"));
            chosen
        });
        let wanted = |number: u64| {
            chosen.as_ref().is_none_or(|chosen| chosen.binary_search(&(number as usize)).is_ok())
        };
        let mut examples = Examples::default();
        self.rows(part, |rows, _, _| {
            for row in rows.iter().filter(|row| wanted(row.number)) {
                if let Ok((class, vector)) = &row.labelled {
                    examples.values.extend(*vector);
                    examples.width = vector.len();
                    examples.labels.push(*class);
                }
            }
            Ok(())
        })?;
        Ok(examples)
    }

    /// Splits training examples into training and validation indices: `validation_share` of each
    /// class is held out, but never a whole class.
    pub(super) fn hold_out(&self, labels: &[usize]) -> (Vec<usize>, Vec<usize>) {
        let mut rng = self.cx.rng(&format!("validation/{}", self.set.name.value()));
        let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); self.classes.len()];
        labels.iter().enumerate().for_each(|(example, label)| of_class[*label].push(example));
        let (mut fit, mut held) = (Vec::new(), Vec::new());
        for mut own in of_class {
            own.shuffle(&mut rng);
            let share = (own.len() as f64 * *self.options.validation_share).round() as usize;
            held.extend(own.drain(..share.min(own.len().saturating_sub(1))));
            fit.extend(own);
        }
        fit.sort_unstable();
        held.sort_unstable();
        (fit, held)
    }
}

fn labels(set: &ProbeSet, part: &InputData) -> Result<Labels, EvalError> {
    let schema = part.dataset.schema(&part.table)?;
    let names = set.class_names.as_ref().map(|names| names.as_slice());
    let refuse =
        |fault: SetFault| EvalError::set(&set.name, format!("`{}`: {}", part.name, fault.why), fault.hint);
    let labels = Labels::new(&schema, &set.label, names).map_err(refuse)?;
    if labels.is_multi_label() { Err(EvalError::set(&set.name, SEVERAL, None)) } else { Ok(labels) }
}

/// The identity of the model that made the embeddings of a part, from its first row.
fn embedding_model(set: &ProbeSet, part: &InputData) -> Result<String, EvalError> {
    let refuse = |why: &str| {
        let hint = "put an `embed` stage before this one".to_string();
        EvalError::set(&set.name, format!("`{}` {why}", part.name), Some(hint))
    };
    let first = Rows::range(&part.dataset, &part.table, 0..1, &[EMBEDDING_MODEL], 1, usize::MAX)
        .next()
        .transpose()?;
    let first = first.ok_or_else(|| refuse("has no rows"))?.batch;
    let column = first.column_by_name(EMBEDDING_MODEL).and_then(|column| column.as_string_opt::<i32>());
    let column = column.filter(|column| column.is_valid(0));
    Ok(column.ok_or_else(|| refuse("does not record which model made its embeddings"))?.value(0).to_string())
}
