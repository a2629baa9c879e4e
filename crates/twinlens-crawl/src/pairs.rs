//! What identifies a pair, and batches of pairs.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringBuilder};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use sha2::{Digest, Sha256};
use twinlens_dataset::contracts;
use twinlens_pipeline::rejects;

/// The identity of a pair: the first 32 hexadecimal digits of SHA-256 of the URL, a zero byte, the
/// caption.
pub fn uid(url: &str, caption: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(url);
    hash.update([0]);
    hash.update(caption);
    hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One row of a source: a pair, or what was refused in its place.
#[derive(Debug, Clone, Copy, Default)]
pub struct Row<'a> {
    /// The image.
    pub url: Option<&'a str>,
    /// The text.
    pub caption: Option<&'a str>,
    /// The page.
    pub page_url: Option<&'a str>,
    /// Where the text stands.
    pub text_source: Option<&'a str>,
    /// Further columns, in the order of the builder's schema.
    pub more: &'a [Option<String>],
    /// The code and the detail of a reject.
    pub refused: Option<(&'a str, &'a str)>,
}

/// Builds batches of the contract's texts, further string columns, and the reserved columns of
/// rejects.
#[derive(Debug)]
pub struct Rows {
    stage: String,
    schema: SchemaRef,
    columns: Vec<StringBuilder>,
    rows: usize,
}

impl Rows {
    /// A builder for `stage` whose rows have `more` columns beside the contract's.
    pub fn new(stage: &str, more: &[String]) -> Self {
        let schema = rejects::schema_with_reserved(&schema(more));
        let columns = schema.fields().iter().map(|_| StringBuilder::new()).collect();
        Self { stage: stage.into(), schema, columns, rows: 0 }
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The schema of the batches.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Adds a row. A reject is no pair: its uid is a hash of its page and its detail, which names
    /// its place.
    pub fn push(&mut self, row: Row<'_>) {
        let uid = match row.refused {
            None => uid(row.url.unwrap_or_default(), row.caption.unwrap_or_default()),
            Some((_, detail)) => uid(row.page_url.unwrap_or_default(), detail),
        };
        let texts = [Some(uid.as_str()), row.url, row.caption, row.page_url, row.text_source];
        // A malformed row has no values at all.
        let more =
            row.more.iter().map(Option::as_deref).chain(std::iter::repeat(None)).take(self.columns.len() - 8);
        let (code, detail) = row.refused.unzip();
        let reserved = [code.map(|_| self.stage.as_str()), code, detail];
        let values = texts.into_iter().chain(more).chain(reserved);
        for (column, value) in self.columns.iter_mut().zip(values) {
            column.append_option(value);
        }
        self.rows += 1;
    }

    /// The rows so far as a batch; the builder is empty then.
    pub fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        self.rows = 0;
        let columns = self.columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef).collect();
        RecordBatch::try_new(self.schema.clone(), columns)
    }
}

/// The schema of a source: the contract's texts and further string columns.
pub fn schema(more: &[String]) -> SchemaRef {
    use arrow::datatypes::{DataType, Field, Schema};
    let texts = contracts::pair_texts();
    let mut fields: Vec<Field> = texts.fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.extend(more.iter().map(|name| Field::new(name, DataType::Utf8, true)));
    Arc::new(Schema::new(fields))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uid_is_fixed() {
        // printf 'http://example.org/a.png\0a cat' | sha256sum
        assert_eq!(uid("http://example.org/a.png", "a cat"), "532e932821cfbcbc922137df4fb4b08d");
        assert_ne!(uid("ab", "c"), uid("a", "bc"));
    }
}
