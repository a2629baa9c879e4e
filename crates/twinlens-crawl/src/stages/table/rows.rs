//! From the values of a row to pairs or a reject.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringBuilder};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;

use twinlens_dataset::secret_urls::has_credentials;

use super::options::CaptionRule;
use super::records::Refusal;
use crate::net::FetchErrorKind;
use crate::pairs::{PairBatchBuilder, PairRow};

/// The captions of a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Captions<'a> {
    None,
    One(Cow<'a, str>),
    List(Vec<Cow<'a, str>>),
}

impl<'a> Captions<'a> {
    /// Those of a column of text, which holds a JSON list where the rule asks for lists.
    pub(super) fn of_text(text: &'a str, rule: Option<CaptionRule>) -> Self {
        if rule.is_some()
            && text.trim_start().starts_with('[')
            && let Ok(list) = serde_json::from_str::<Vec<String>>(text)
        {
            return Self::List(list.into_iter().map(Cow::Owned).collect());
        }
        Self::One(Cow::Borrowed(text))
    }
}

/// The values of a row.
#[derive(Debug)]
pub(super) struct Row<'a> {
    pub(super) url: Option<Cow<'a, str>>,
    pub(super) captions: Captions<'a>,
    pub(super) page_url: Option<Cow<'a, str>>,
    pub(super) text_source: Option<Cow<'a, str>>,
    /// Of the kept columns, as text.
    pub(super) kept: Vec<Option<Cow<'a, str>>>,
}

/// Turns rows of a file into pairs and rejects.
pub(super) struct RowPusher {
    pub(super) pairs: PairBatchBuilder,
    pub(super) rule: Option<CaptionRule>,
    /// Whether rows have no captions.
    pub(super) is_image_only: bool,
}

impl RowPusher {
    /// Adds the pairs of a row, or its reject. Returns how many rows they are.
    pub(super) fn push(&mut self, row: &Row<'_>, location: &dyn Fn() -> String) -> usize {
        let given = |value: &Option<Cow<'_, str>>| -> Option<String> {
            value.as_deref().filter(|value| !value.trim().is_empty()).map(String::from)
        };
        let (page_url, text_source) = (given(&row.page_url), given(&row.text_source));
        let url = row.url.as_deref().map(str::trim).filter(|url| !url.is_empty());
        if url.is_some_and(has_credentials) {
            let detail = format!("{}: the URL has a user or a password", location());
            self.reject(FetchErrorKind::Credentials.code(), &detail);
            return 1;
        }
        let mut captions: Vec<&str> = match &row.captions {
            Captions::None => Vec::new(),
            Captions::One(text) => vec![text],
            Captions::List(texts) => texts.iter().map(AsRef::as_ref).collect(),
        };
        captions.retain(|caption| !caption.trim().is_empty());
        if self.rule == Some(CaptionRule::First) {
            captions.truncate(1);
        }
        let base = PairRow {
            url,
            page_url: page_url.as_deref(),
            text_source: Some(text_source.as_deref().unwrap_or("table")),
            ..PairRow::default()
        };
        if url.is_none() {
            let detail = format!("{}: no URL", location());
            let caption = captions.first().copied();
            self.pairs.push(PairRow { caption, reject: Some(("no_url", &detail)), ..base });
            1
        } else if self.is_image_only {
            self.pairs.push(base);
            1
        } else if captions.is_empty() {
            let detail = format!("{}: no caption", location());
            self.pairs.push(PairRow { reject: Some(("no_caption", &detail)), ..base });
            1
        } else {
            for caption in &captions {
                self.pairs.push(PairRow { caption: Some(caption), ..base });
            }
            captions.len()
        }
    }

    /// Adds a reject.
    pub(super) fn reject(&mut self, code: &str, detail: &str) {
        self.pairs.push(PairRow {
            text_source: Some("table"),
            reject: Some((code, detail)),
            ..PairRow::default()
        });
    }
}

/// Batches of rows whose kept columns are text until a batch is full.
pub(super) struct TextBatch {
    pub(super) rows: RowPusher,
    kept: Vec<StringBuilder>,
    kinds: Vec<DataType>,
}

impl TextBatch {
    /// `kinds` are the types of the kept columns.
    pub(super) fn new(rows: RowPusher, kinds: Vec<DataType>) -> Self {
        Self { rows, kept: kinds.iter().map(|_| StringBuilder::new()).collect(), kinds }
    }

    pub(super) fn push(&mut self, row: Result<Row<'_>, Refusal>, location: &dyn Fn() -> String) {
        match row {
            Ok(row) => {
                let rows = self.rows.push(&row, location);
                for (column, value) in self.kept.iter_mut().zip(&row.kept) {
                    (0..rows).for_each(|_| column.append_option(value.as_deref()));
                }
            }
            Err((code, why)) => {
                self.rows.reject(code, &format!("{}: {why}", location()));
                self.kept.iter_mut().for_each(StringBuilder::append_null);
            }
        }
    }

    /// Takes the rows so far as a batch.
    pub(super) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let strict = CastOptions { safe: false, ..CastOptions::default() };
        let typed = |(column, kind): (&mut StringBuilder, &DataType)| -> Result<ArrayRef, ArrowError> {
            cast_with_options(&(Arc::new(column.finish()) as ArrayRef), kind, &strict)
        };
        let kept = self.kept.iter_mut().zip(&self.kinds).map(typed).collect::<Result<_, _>>()?;
        self.rows.pairs.finish_with(kept)
    }
}
