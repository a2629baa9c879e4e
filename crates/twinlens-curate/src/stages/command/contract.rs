//! The row contract: what a program may answer, and how answers become columns.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, StringArray, UInt32Array,
    new_null_array,
};
use datafusion::arrow::compute::kernels::zip::zip;
use datafusion::arrow::compute::{take, take_record_batch};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use twinlens_dataset::types;
use twinlens_pipeline::rejects::{CODE, DETAIL, RESERVED, STAGE};

use super::types::conform;

pub(super) const UID: &str = "uid";

/// A breach of the contract.
#[derive(Debug, thiserror::Error)]
pub(super) enum Breach {
    /// Every answer would break it again: the program and the options do not fit.
    #[error("{0}")]
    Mismatch(String),
    /// Rows are lost, repeated or invented: a new process may do better.
    #[error("{0}")]
    Rows(String),
    #[error(transparent)]
    Arrow(#[from] ArrowError),
}

/// The columns that a program adds or replaces.
#[derive(Debug, Clone)]
pub(super) struct RowContract {
    pub(super) stage: String,
    /// Sorted by name.
    pub(super) declared: Vec<(String, DataType)>,
    /// The columns of the output, with the reserved ones.
    pub(super) output: SchemaRef,
}

/// A checked answer: one row per row that was sent, in the same order.
#[derive(Debug)]
pub(super) struct Answer {
    /// In the order of [`RowContract::declared`].
    columns: Vec<ArrayRef>,
    codes: StringArray,
    details: StringArray,
}

impl RowContract {
    /// Checks the columns of an answer; `sent` are the columns that may come back unchanged.
    pub(super) fn check_columns(&self, answer: &Schema, sent: &Schema) -> Result<(), Breach> {
        let is_declared = |name: &str| self.declared.iter().any(|(declared, _)| declared == name);
        for (index, field) in answer.fields().iter().enumerate() {
            let name = field.name().as_str();
            if answer.fields()[..index].iter().any(|earlier| earlier.name() == name) {
                return Err(Breach::Mismatch(format!("its answer has two columns `{name}`")));
            }
            let is_known = name == CODE || name == DETAIL || sent.field_with_name(name).is_ok();
            if !is_known && !is_declared(name) {
                return Err(Breach::Mismatch(format!(
                    "its answer has a column `{name}`, which `columns` does not declare"
                )));
            }
        }
        match self.declared.iter().find(|(name, _)| answer.field_with_name(name).is_err()) {
            Some((name, _)) => Err(Breach::Mismatch(format!(
                "its answer lacks the column `{name}`, which `columns` declares"
            ))),
            None => Ok(()),
        }
    }

    /// Checks the answer to `sent`, and brings its rows in the order of `sent`.
    pub(super) fn check(&self, sent: &RecordBatch, answer: RecordBatch) -> Result<Answer, Breach> {
        self.check_columns(answer.schema_ref(), sent.schema_ref())?;
        let answer = match (sent.column_by_name(UID), answer.column_by_name(UID)) {
            (Some(sent), Some(answered)) => match matching(sent, answered)? {
                Some(order) => take_record_batch(&answer, &order)?,
                None => answer,
            },
            _ if sent.num_rows() == answer.num_rows() => answer,
            _ => {
                return Err(Breach::Rows(format!(
                    "it answered {} rows with {}",
                    sent.num_rows(),
                    answer.num_rows()
                )));
            }
        };
        for (field, column) in answer.schema_ref().fields().iter().zip(answer.columns()) {
            let name = field.name().as_str();
            let Some(before) = sent.column_by_name(name) else { continue };
            let is_declared = self.declared.iter().any(|(declared, _)| declared == name);
            if !is_declared && conform(column, before.data_type()).as_ref() != Some(before) {
                return Err(Breach::Mismatch(format!(
                    "it changed the column `{name}`, which `columns` does not declare"
                )));
            }
        }
        self.columns(&answer)
    }

    /// The output for rows that a program made.
    pub(super) fn made(&self, made: &RecordBatch) -> Result<RecordBatch, Breach> {
        self.check_columns(made.schema_ref(), &Schema::empty())?;
        let answer = self.columns(made)?;
        let options = RecordBatchOptions::new().with_row_count(Some(made.num_rows()));
        let none = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options)?;
        Ok(self.output(&none, &vec![true; made.num_rows()].into(), &answer)?)
    }

    /// The columns of an answer whose rows need no matching.
    fn columns(&self, answer: &RecordBatch) -> Result<Answer, Breach> {
        let column = |(name, expected): &(String, DataType)| {
            let column = &answer[name.as_str()];
            conform(column, expected).ok_or_else(|| {
                Breach::Mismatch(format!(
                    "its column `{name}` is of type {}, but `columns` declares {}",
                    types::name(column.data_type()),
                    types::name(expected)
                ))
            })
        };
        let text = |name: &str| -> Result<StringArray, Breach> {
            let Some(column) = answer.column_by_name(name) else {
                return Ok(StringArray::new_null(answer.num_rows()));
            };
            let texts = conform(column, &DataType::Utf8).ok_or_else(|| {
                let actual = types::name(column.data_type());
                Breach::Mismatch(format!("its column `{name}` is of type {actual}, not string"))
            })?;
            Ok(texts.as_string::<i32>().clone())
        };
        let columns = self.declared.iter().map(column).collect::<Result<Vec<_>, _>>()?;
        let (codes, details) = (text(CODE)?, text(DETAIL)?);
        if let Some(code) = codes.iter().flatten().find(|code| !is_code(code)) {
            return Err(Breach::Mismatch(format!(
                "`{code}` cannot be a reject code: expected lower-case letters, digits and `_`"
            )));
        }
        Ok(Answer { columns, codes, details })
    }

    /// The output for `rows`, which have the input's columns and the reserved ones; `answer` is for
    /// those of them that are not rejected yet, marked in `sent`.
    pub(super) fn output(
        &self,
        rows: &RecordBatch,
        sent: &BooleanArray,
        answer: &Answer,
    ) -> Result<RecordBatch, ArrowError> {
        let answer = if sent.false_count() == 0 { None } else { Some(answer.spread(sent)?) }.map_or_else(
            || (answer.columns.clone(), answer.codes.clone(), answer.details.clone()),
            |answer| (answer.columns, answer.codes, answer.details),
        );
        let (columns, codes, details) = answer;
        let rejected: BooleanArray = codes.iter().map(|code| Some(code.is_some())).collect();
        let any_rejected = rejected.true_count() > 0;
        // Where a row is rejected, now or before, it keeps the values that it had.
        let replaced: BooleanArray = sent
            .iter()
            .zip(&rejected)
            .map(|(sent, rejected)| Some(sent == Some(true) && rejected != Some(true)))
            .collect();
        let output = self.output.fields().iter().map(|field| {
            let name = field.name().as_str();
            let before = rows.column_by_name(name);
            if RESERVED.contains(&name) {
                let before =
                    before.cloned().unwrap_or_else(|| Arc::new(StringArray::new_null(rows.num_rows())));
                let now: ArrayRef = match name {
                    STAGE => Arc::new(StringArray::from_iter_values(std::iter::repeat_n(
                        &self.stage,
                        rows.num_rows(),
                    ))),
                    CODE => Arc::new(codes.clone()),
                    _ => Arc::new(details.clone()),
                };
                return if any_rejected { zip(&rejected, &now, &before) } else { Ok(before) };
            }
            match (self.declared.iter().position(|(declared, _)| declared == name), before) {
                (Some(at), Some(before))
                    if before.data_type() == field.data_type() && replaced.false_count() > 0 =>
                {
                    zip(&replaced, &columns[at], before)
                }
                (Some(at), _) => Ok(columns[at].clone()),
                (None, Some(before)) => Ok(before.clone()),
                (None, None) => Err(ArrowError::SchemaError(format!("the input lacks the column `{name}`"))),
            }
        });
        RecordBatch::try_new(self.output.clone(), output.collect::<Result<_, _>>()?)
    }
}

impl Answer {
    /// `count` rows of nulls.
    pub(super) fn nulls(contract: &RowContract, count: usize) -> Self {
        let nulls = StringArray::new_null(count);
        let columns = contract.declared.iter().map(|(_, kind)| new_null_array(kind, count)).collect();
        Self { columns, codes: nulls.clone(), details: nulls }
    }

    /// The answer with null rows where `sent` is false.
    fn spread(&self, sent: &BooleanArray) -> Result<Self, ArrowError> {
        let mut next = 0;
        let indices: UInt32Array = sent
            .iter()
            .map(|sent| {
                (sent == Some(true)).then(|| {
                    next += 1;
                    next - 1
                })
            })
            .collect();
        let columns = self.columns.iter().map(|column| take(column, &indices, None));
        Ok(Self {
            columns: columns.collect::<Result<_, _>>()?,
            codes: take(&self.codes, &indices, None)?.as_string::<i32>().clone(),
            details: take(&self.details, &indices, None)?.as_string::<i32>().clone(),
        })
    }
}

/// Whether a text can be a reject code.
fn is_code(code: &str) -> bool {
    !code.is_empty() && code.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// For each row that was sent, the row of its answer; `None` if they are in the same order. Of rows
/// with the same uid, the first answer belongs to the first row.
fn matching(sent: &ArrayRef, answered: &ArrayRef) -> Result<Option<UInt32Array>, Breach> {
    let answered = conform(answered, &DataType::Utf8)
        .ok_or_else(|| Breach::Mismatch("its column `uid` is not of type string".into()))?;
    let sent = conform(sent, &DataType::Utf8).ok_or_else(|| Breach::Mismatch("`uid` is not text".into()))?;
    let (sent, answered) = (sent.as_string::<i32>(), answered.as_string::<i32>());
    if sent == answered {
        return Ok(None);
    }
    let mut rows: HashMap<Option<&str>, Vec<u32>> = HashMap::new();
    for (row, uid) in answered.iter().enumerate().rev() {
        rows.entry(uid).or_default().push(row as u32);
    }
    let shown = |uid: Option<&str>| uid.map_or("null".into(), |uid| format!("`{uid}`"));
    let order = sent.iter().map(|uid| {
        let row = rows.get_mut(&uid).and_then(Vec::pop);
        row.ok_or_else(|| Breach::Rows(format!("it lost the row with the uid {}", shown(uid))))
    });
    let order = order.collect::<Result<Vec<_>, _>>()?;
    let mut left: Vec<_> =
        rows.into_iter().filter(|(_, rows)| !rows.is_empty()).map(|(uid, _)| uid).collect();
    left.sort_unstable();
    match left.first() {
        Some(uid) if sent.iter().any(|sent| sent == *uid) => {
            Err(Breach::Rows(format!("it answered the row with the uid {} more than once", shown(*uid))))
        }
        Some(uid) => {
            Err(Breach::Rows(format!("it answered a row with the uid {}, which was not sent", shown(*uid))))
        }
        None => Ok(Some(order.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::{Float32Array, Float64Array};
    use datafusion::arrow::datatypes::Field;
    use twinlens_pipeline::rejects::schema_with_reserved;

    fn texts(values: &[&str]) -> ArrayRef {
        Arc::new(values.iter().map(|text| (!text.is_empty()).then_some(*text)).collect::<StringArray>())
    }

    fn contract() -> RowContract {
        let fields = [("uid", DataType::Utf8), ("caption", DataType::Utf8), ("score", DataType::Float32)];
        let fields = fields.map(|(name, kind)| Field::new(name, kind, true)).to_vec();
        RowContract {
            stage: "scores".into(),
            declared: vec![("caption".into(), DataType::Utf8), ("score".into(), DataType::Float32)],
            output: schema_with_reserved(&Schema::new(fields)),
        }
    }

    fn sent(uids: &[&str]) -> RecordBatch {
        RecordBatch::try_from_iter([("uid", texts(uids)), ("caption", texts(&vec!["a dog"; uids.len()]))])
            .unwrap()
    }

    fn scores(count: usize) -> ArrayRef {
        Arc::new(Float32Array::from_iter_values((0..count).map(|row| row as f32)))
    }

    #[test]
    fn breaches_are_named() {
        let row = |name: &'static str, column: ArrayRef| (name, column);
        let caption = || row("caption", texts(&["x", "y"]));
        let doubles: ArrayRef = Arc::new(Float64Array::from(vec![0.5, 0.5]));
        let two = || row("score", scores(2));
        for (answer, expected) in [
            (
                vec![caption(), two(), row("mood", texts(&["", ""]))],
                "a column `mood`, which `columns` does not",
            ),
            (vec![two()], "lacks the column `caption`"),
            (
                vec![caption(), row("score", doubles)],
                "`score` is of type float64, but `columns` declares float32",
            ),
            (vec![row("caption", texts(&["x"])), row("score", scores(1))], "answered 2 rows with 1"),
            (vec![caption(), two(), row("uid", texts(&["a", "a"]))], "lost the row with the uid `b`"),
            (vec![caption(), two(), row("uid", texts(&["a", "c"]))], "lost the row with the uid `b`"),
            (
                vec![
                    row("caption", texts(&["x", "y", "z"])),
                    row("score", scores(3)),
                    row("uid", texts(&["a", "b", "b"])),
                ],
                "the uid `b` more than once",
            ),
            (vec![caption(), two(), row("reject_code", texts(&["Bad code", ""]))], "`Bad code` cannot be"),
            (vec![caption(), two(), row("reject_code", scores(2))], "`reject_code` is of type float32"),
        ] {
            let answer = RecordBatch::try_from_iter(answer).unwrap();
            let message = contract().check(&sent(&["a", "b"]), answer).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let mut contract = contract();
        contract.declared.remove(0);
        let answer = RecordBatch::try_from_iter([caption(), two()]).unwrap();
        let message = contract.check(&sent(&["a", "b"]), answer).unwrap_err().to_string();
        assert!(message.contains("changed the column `caption`"), "{message}");
        let echo = RecordBatch::try_from_iter([("caption", texts(&["a dog", "a dog"])), two()]).unwrap();
        assert!(contract.check(&sent(&["a", "b"]), echo).is_ok());
    }

    #[test]
    fn answers_are_matched_by_uid_and_rejected_rows_keep_their_values() {
        let rows = RecordBatch::try_from_iter([
            ("uid", texts(&["a", "b", "b", "c"])),
            ("caption", texts(&["1", "2", "3", "4"])),
            ("reject_stage", texts(&["", "", "", "before"])),
            ("reject_code", texts(&["", "", "", "filtered"])),
            ("reject_detail", texts(&["", "", "", "why"])),
        ])
        .unwrap();
        let answer = RecordBatch::try_from_iter([
            ("score", scores(3)),
            ("caption", texts(&["B", "B again", "A"])),
            ("uid", texts(&["b", "b", "a"])),
            ("reject_code", texts(&["", "nsfw", ""])),
        ])
        .unwrap();
        let contract = contract();
        let answer = contract.check(&sent(&["a", "b", "b"]), answer).unwrap();
        let live = BooleanArray::from(vec![true, true, true, false]);
        let output = contract.output(&rows, &live, &answer).unwrap();
        assert_eq!(&output["caption"], &texts(&["A", "B", "3", "4"]));
        assert_eq!(&output["reject_stage"], &texts(&["", "", "scores", "before"]));
        assert_eq!(&output["reject_code"], &texts(&["", "", "nsfw", "filtered"]));
        assert_eq!(&output["reject_detail"], &texts(&["", "", "", "why"]));
        let expected: ArrayRef = Arc::new(Float32Array::from(vec![Some(2.0), Some(0.0), Some(1.0), None]));
        assert_eq!(&output["score"], &expected);
    }
}
