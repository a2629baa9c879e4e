//! The uid of a pair, and batches of pairs.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringBuilder};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use twinlens_dataset::contracts;
use twinlens_dataset::secret_urls::without_credentials;
use twinlens_pipeline::rejects;

pub(crate) use twinlens_dataset::contracts::pair_uid as uid;

/// One row of a source: a pair or a reject.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PairRow<'a> {
    pub(crate) url: Option<&'a str>,
    pub(crate) caption: Option<&'a str>,
    pub(crate) page_url: Option<&'a str>,
    pub(crate) text_source: Option<&'a str>,
    /// Extra columns in the order of the builder's schema.
    pub(crate) extra: &'a [Option<String>],
    /// Code and detail of a reject.
    pub(crate) reject: Option<(&'a str, &'a str)>,
}

/// Columns of the contract.
const TEXTS: usize = 5;

/// Builds batches of the contract's text columns, extra string columns, and the reserved reject
/// columns.
#[derive(Debug)]
pub(crate) struct PairBatchBuilder {
    stage: String,
    schema: SchemaRef,
    columns: Vec<StringBuilder>,
    rows: usize,
}

impl PairBatchBuilder {
    /// `extra` are the columns besides the contract's.
    pub(crate) fn new(stage: &str, extra: &[String]) -> Self {
        let schema = rejects::schema_with_reserved(&schema(extra));
        let columns = schema.fields().iter().map(|_| StringBuilder::new()).collect();
        Self { stage: stage.into(), schema, columns, rows: 0 }
    }

    /// `schema` has the contract's columns, others whose values [`PairBatchBuilder::finish_with`]
    /// gets, and the reserved ones.
    pub(crate) fn with_schema(stage: &str, schema: &SchemaRef) -> Self {
        let columns = (0..TEXTS + rejects::RESERVED.len()).map(|_| StringBuilder::new()).collect();
        Self { stage: stage.into(), schema: schema.clone(), columns, rows: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds a row. The uid of a reject is a hash of its page and its detail, which contains its
    /// location.
    pub(crate) fn push(&mut self, row: PairRow<'_>) {
        let uid = match row.reject {
            None => uid(row.url.unwrap_or_default(), row.caption.unwrap_or_default()),
            Some((_, detail)) => uid(row.page_url.unwrap_or_default(), detail),
        };
        // Sources that fetch by a URL with credentials refuse it; elsewhere it only says whence.
        let url = row.url.map(without_credentials);
        let page_url = row.page_url.map(without_credentials);
        let texts = [Some(uid.as_str()), url.as_deref(), row.caption, page_url.as_deref(), row.text_source];
        // A malformed row has no values.
        let extra = row
            .extra
            .iter()
            .map(Option::as_deref)
            .chain(std::iter::repeat(None))
            .take(self.columns.len() - 8);
        let (code, detail) = row.reject.unzip();
        let reserved = [code.map(|_| self.stage.as_str()), code, detail];
        let values = texts.into_iter().chain(extra).chain(reserved);
        for (column, value) in self.columns.iter_mut().zip(values) {
            column.append_option(value);
        }
        self.rows += 1;
    }

    /// Takes the rows so far as a batch.
    pub(crate) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        self.finish_with(Vec::new())
    }

    /// Takes the rows so far as a batch; `others` are the values of columns behind the contract's.
    pub(crate) fn finish_with(&mut self, others: Vec<ArrayRef>) -> Result<RecordBatch, ArrowError> {
        self.rows = 0;
        let mut columns: Vec<ArrayRef> =
            self.columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
        columns.splice(TEXTS..TEXTS, others);
        RecordBatch::try_new(self.schema.clone(), columns)
    }
}

/// The schema of a source: the contract's text columns and extra string columns.
pub(crate) fn schema(extra: &[String]) -> SchemaRef {
    use arrow::datatypes::{DataType, Field, Schema};
    let texts = contracts::pair_texts();
    let mut fields: Vec<Field> = texts.fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.extend(extra.iter().map(|name| Field::new(name, DataType::Utf8, true)));
    Arc::new(Schema::new(fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uid_is_stable() {
        // printf 'http://example.org/a.png\0a cat' | sha256sum
        assert_eq!(uid("http://example.org/a.png", "a cat"), "532e932821cfbcbc922137df4fb4b08d");
        assert_ne!(uid("ab", "c"), uid("a", "bc"));
    }
}
