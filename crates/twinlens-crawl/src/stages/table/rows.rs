//! From the values of a row to pairs or a reject.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{ArrayRef, ListBuilder, RecordBatch, StringBuilder};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;

use twinlens_dataset::samples::Refusal;
use twinlens_dataset::secret_urls::has_credentials;

use super::list_text::ListText;
use super::options::CaptionRule;
use crate::net::FetchErrorKind;
use crate::pairs::{PairBatchBuilder, PairRow};
use crate::stages::local::TablePaths;

/// The captions of a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum RowCaptions<'a> {
    None,
    One(Cow<'a, str>),
    List(Vec<Cow<'a, str>>),
    /// Not a caption, and why.
    Refused(&'static str),
}

impl<'a> RowCaptions<'a> {
    /// Those of a column of text, which may hold a list as text.
    pub(super) fn of_text(text: &'a str, rule: Option<CaptionRule>) -> Self {
        match ListText::of(text) {
            ListText::Text => Self::One(Cow::Borrowed(text)),
            ListText::List(list) if rule.is_some() => Self::List(list.into_iter().map(Cow::Owned).collect()),
            ListText::List(_) => Self::Refused("the caption is a list: set `captions`"),
            ListText::Broken => Self::Refused("the caption looks like a list, and cannot be read as one"),
        }
    }
}

/// The values of a row.
#[derive(Debug)]
pub(super) struct Row<'a> {
    pub(super) url: Option<Cow<'a, str>>,
    pub(super) captions: RowCaptions<'a>,
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
    /// What paths mean where URLs are expected.
    pub(super) paths: Arc<TablePaths>,
    /// Whether [invisible](twinlens_text::drop_invisible) characters stay in captions.
    pub(super) keep_invisible: bool,
    /// The column of all captions, if there is one.
    pub(super) lists: Option<ListBuilder<StringBuilder>>,
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
        let resolved = url.map(|url| self.paths.resolve(url)).transpose();
        let captions = self.clean(&row.captions);
        let refused = match row.captions {
            RowCaptions::Refused(why) if !self.is_image_only => Some(why),
            _ => None,
        };
        let refusal = match &resolved {
            Err((code, why)) => Some((*code, why.as_str())),
            Ok(None) => Some(("no_url", "no URL")),
            Ok(_) if refused.is_some() => refused.map(|why| ("wrong_type", why)),
            Ok(_) if captions.is_empty() && !self.is_image_only => Some(("no_caption", "no caption")),
            Ok(_) => None,
        };
        let base = PairRow {
            url: resolved.as_ref().map_or(url, Option::as_deref),
            page_url: page_url.as_deref(),
            text_source: Some(text_source.as_deref().unwrap_or("table")),
            ..PairRow::default()
        };
        if let Some((code, why)) = refusal {
            let detail = format!("{}: {why}", location());
            let caption = captions.first().map(AsRef::as_ref);
            self.pairs.push(PairRow { caption, reject: Some((code, &detail)), ..base });
            self.append_list(&[]);
            return 1;
        }
        if self.is_image_only {
            self.pairs.push(base);
            self.append_list(&[]);
            return 1;
        }
        let rows = if self.rule == Some(CaptionRule::Each) { captions.len() } else { 1 };
        for caption in &captions[..rows] {
            self.pairs.push(PairRow { caption: Some(caption), ..base });
            self.append_list(&captions);
        }
        rows
    }

    /// The captions that are not blank.
    fn clean<'r>(&self, captions: &'r RowCaptions<'_>) -> Vec<Cow<'r, str>> {
        let captions: &[Cow<'_, str>] = match captions {
            RowCaptions::None | RowCaptions::Refused(_) => &[],
            RowCaptions::One(text) => std::slice::from_ref(text),
            RowCaptions::List(texts) => texts,
        };
        let clean = |text: &'r Cow<'_, str>| -> Cow<'r, str> {
            let text: &'r str = text.as_ref();
            if self.keep_invisible { text.into() } else { twinlens_text::drop_invisible(text) }
        };
        captions.iter().map(clean).filter(|caption| !caption.trim().is_empty()).collect()
    }

    /// Ends a row in the column of all captions, if there is one.
    fn append_list(&mut self, captions: &[Cow<'_, str>]) {
        if let Some(lists) = &mut self.lists {
            captions.iter().for_each(|caption| lists.values().append_value(caption));
            lists.append(!captions.is_empty());
        }
    }

    /// Adds a reject.
    pub(super) fn reject(&mut self, code: &str, detail: &str) {
        self.pairs.push(PairRow {
            text_source: Some("table"),
            reject: Some((code, detail)),
            ..PairRow::default()
        });
        self.append_list(&[]);
    }

    /// Takes the rows so far as a batch; `kept` are the kept columns.
    pub(super) fn finish(&mut self, mut kept: Vec<ArrayRef>) -> Result<RecordBatch, ArrowError> {
        kept.extend(self.lists.as_mut().map(|lists| Arc::new(lists.finish()) as ArrayRef));
        self.pairs.finish_with(kept)
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
        self.rows.finish(kept)
    }
}
