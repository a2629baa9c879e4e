//! From the values of a row to a pair or a reject.

use crate::pairs::{Row, Rows};

use super::Columns;

/// Usual names of the URL's column, the likeliest first.
const URLS: &[&str] = &["url", "URL", "image_url", "IMAGE_URL", "img_url", "image_link", "image"];
/// Usual names of the caption's column.
const CAPTIONS: &[&str] =
    &["caption", "CAPTION", "TEXT", "text", "alt", "ALT", "alt_text", "title", "description"];

/// What is wanted of each row.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) columns: Columns,
    pub(super) keep: Vec<String>,
}

/// Names under which a value is looked for; the first that is there counts.
pub(super) type Names<'a> = Vec<&'a str>;

impl Wanted {
    /// For each value of [`Values`], the names of its column, and whether it must be there.
    pub(super) fn names(&self) -> Vec<(Names<'_>, bool)> {
        fn of<'a>(name: &'a Option<String>, usual: &[&'static str], must: bool) -> (Names<'a>, bool) {
            match name {
                Some(name) => (vec![name.as_str()], true),
                None => (usual.to_vec(), must),
            }
        }
        let columns = &self.columns;
        let mut names = vec![
            of(&columns.url, URLS, true),
            of(&columns.caption, CAPTIONS, true),
            of(&columns.page_url, &["page_url"], false),
            of(&columns.text_source, &["text_source"], false),
        ];
        names.extend(self.keep.iter().map(|name| (vec![name.as_str()], true)));
        names
    }

    /// The place of each value among the columns of a file.
    ///
    /// # Errors
    /// The column that is not there.
    pub(super) fn find(&self, there: &[String]) -> Result<Vec<Option<usize>>, String> {
        let place = |name: &str| there.iter().position(|column| column == name);
        let find = |(names, must): (Names<'_>, bool)| match names.iter().find_map(|name| place(name)) {
            None if must => {
                let names = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
                Err(format!("no column {names}; there are: {}", there.join(", ")))
            }
            place => Ok(place),
        };
        self.names().into_iter().map(find).collect()
    }
}

/// The values of one row: URL, caption, page, source of the text, then those that are kept.
pub(super) type Values = Vec<Option<String>>;

/// Adds a row: a pair when it has both URL and caption, else a reject with its place.
pub(super) fn push(rows: &mut Rows, values: Result<Values, (&'static str, String)>, place: &str) {
    let empty = Vec::new();
    let (values, mut refused) = match values {
        Ok(values) => (values, None),
        Err((code, why)) => (empty, Some((code, format!("{place}: {why}")))),
    };
    let value =
        |index: usize| values.get(index).and_then(Option::as_deref).filter(|value| !value.trim().is_empty());
    let (url, caption) = (value(0).map(str::trim), value(1));
    if refused.is_none() && url.is_none() {
        refused = Some(("no_url", format!("{place}: no URL")));
    } else if refused.is_none() && caption.is_none() {
        refused = Some(("no_caption", format!("{place}: no caption")));
    }
    rows.push(Row {
        url,
        caption,
        page_url: value(2),
        text_source: Some(value(3).unwrap_or("table")),
        more: values.get(4..).unwrap_or_default(),
        refused: refused.as_ref().map(|(code, detail)| (*code, detail.as_str())),
    });
}
