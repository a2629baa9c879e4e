//! From the values of a row to a pair or a reject.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pairs::{PairBatchBuilder, PairRow};

/// Usual names of the URL column, the likeliest first: img2dataset, DataComp, COYO, CC2 (`url`),
/// LAION (`URL`), Conceptual Captions on the hub, SBU, RedCaps, WIT (`image_url`), YFCC, Unsplash.
pub(in super::super) const URLS: &[&str] = &[
    "url",
    "URL",
    "Url",
    "image_url",
    "IMAGE_URL",
    "img_url",
    "image_link",
    "image_src",
    "photo_image_url",
    "downloadurl",
    "image",
];
/// Usual names of the caption column, the likeliest first: img2dataset (`caption`), LAION
/// (`TEXT`), DataComp, COYO (`text`), CC2 (`alt`), WIT (`caption_reference_description`).
pub(in super::super) const CAPTIONS: &[&str] = &[
    "caption",
    "CAPTION",
    "Caption",
    "TEXT",
    "text",
    "alt",
    "ALT",
    "alt_text",
    "caption_reference_description",
    "raw_caption",
    "title",
    "description",
];

/// Names of the columns. By default the usual names are tried: those of LAION, COYO, CC3M, CC12M,
/// DataComp and img2dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Columns {
    /// The URL of the image.
    pub(super) url: Option<String>,
    /// The caption.
    pub(super) caption: Option<String>,
    /// The page that contains the image.
    pub(super) page_url: Option<String>,
    /// Where on the page the caption was.
    pub(super) text_source: Option<String>,
}

/// The columns to read.
#[derive(Debug, Clone)]
pub(super) struct ColumnSelection {
    pub(super) columns: Columns,
    pub(super) keep: Vec<String>,
}

/// Names to try for a column; the first that exists counts.
pub(super) type CandidateNames<'a> = Vec<&'a str>;

impl ColumnSelection {
    /// For each value of [`RowValues`], the names to try, and whether the column is required.
    pub(super) fn names(&self) -> Vec<(CandidateNames<'_>, bool)> {
        fn candidates<'a>(
            name: &'a Option<String>,
            usual: &[&'static str],
            is_required: bool,
        ) -> (CandidateNames<'a>, bool) {
            match name {
                Some(name) => (vec![name.as_str()], true),
                None => (usual.to_vec(), is_required),
            }
        }
        let columns = &self.columns;
        let mut names = vec![
            candidates(&columns.url, URLS, true),
            candidates(&columns.caption, CAPTIONS, true),
            candidates(&columns.page_url, &["page_url"], false),
            candidates(&columns.text_source, &["text_source"], false),
        ];
        names.extend(self.keep.iter().map(|name| (vec![name.as_str()], true)));
        names
    }

    /// The index of each value's column in a file.
    ///
    /// # Errors
    /// Names the missing column.
    pub(super) fn resolve(&self, columns: &[String]) -> Result<Vec<Option<usize>>, String> {
        let index = |name: &&str| columns.iter().position(|column| column == name);
        let resolve = |(names, is_required): (CandidateNames<'_>, bool)| match names.iter().find_map(index) {
            None if is_required => {
                let names = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
                Err(format!("no column {names}; there are: {}", columns.join(", ")))
            }
            found => Ok(found),
        };
        self.names().into_iter().map(resolve).collect()
    }
}

/// Names the columns of a file without a header, which is recognized by a URL in its first row. Of
/// two columns (CC3M: caption and URL; CC12M: URL and caption) the other one is the caption.
pub(super) fn infer_header(first: &[String]) -> Option<Vec<String>> {
    let is_url = |field: &String| field.starts_with("http://") || field.starts_with("https://");
    let url = first.iter().position(is_url)?;
    let name = |column: usize| match column {
        _ if column == url => "url".to_string(),
        _ if first.len() == 2 => "caption".to_string(),
        _ => format!("column_{}", column + 1),
    };
    Some((0..first.len()).map(name).collect())
}

/// The values of one row: URL, caption, page, text source, then the kept columns.
pub(super) type RowValues = Vec<Option<String>>;

/// Adds a row: a pair if it has URL and caption, otherwise a reject with its location.
pub(super) fn push_row(
    rows: &mut PairBatchBuilder,
    values: Result<RowValues, (&'static str, String)>,
    location: &str,
) {
    let empty = Vec::new();
    let (values, mut reject) = match values {
        Ok(values) => (values, None),
        Err((code, why)) => (empty, Some((code, format!("{location}: {why}")))),
    };
    let value =
        |index: usize| values.get(index).and_then(Option::as_deref).filter(|value| !value.trim().is_empty());
    let (url, caption) = (value(0).map(str::trim), value(1));
    if reject.is_none() && url.is_none() {
        reject = Some(("no_url", format!("{location}: no URL")));
    } else if reject.is_none() && caption.is_none() {
        reject = Some(("no_caption", format!("{location}: no caption")));
    }
    rows.push(PairRow {
        url,
        caption,
        page_url: value(2),
        text_source: Some(value(3).unwrap_or("table")),
        extra: values.get(4..).unwrap_or_default(),
        reject: reject.as_ref().map(|(code, detail)| (*code, detail.as_str())),
    });
}

/// The selected columns of a file.
pub(super) struct FileColumns<'a> {
    file: &'a str,
    /// For each value of [`RowValues`], the index and name of its column.
    columns: Vec<Option<(usize, String)>>,
}

impl<'a> FileColumns<'a> {
    /// # Errors
    /// Names the missing column.
    pub(super) fn new(file: &'a str, selection: &ColumnSelection, schema: &Schema) -> Result<Self, String> {
        let columns: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let found = selection.resolve(&columns)?;
        let named = |index: Option<usize>| index.map(|index| (index, columns[index].clone()));
        Ok(Self { file, columns: found.into_iter().map(named).collect() })
    }

    /// The indices of the columns to read.
    pub(super) fn indices(&self) -> impl Iterator<Item = usize> {
        self.columns.iter().flatten().map(|(index, _)| *index)
    }

    /// Adds the rows of a batch. `number` is the number of the next row.
    pub(super) fn push_batch(&self, rows: &mut PairBatchBuilder, batch: &RecordBatch, number: &mut u64) {
        // Values that are not text (bytes that are not UTF-8) become null, and the row is rejected.
        let text =
            |name: &str| batch.column_by_name(name).and_then(|column| cast(column, &DataType::Utf8).ok());
        let texts = self.columns.iter().map(|column| column.as_ref().and_then(|(_, name)| text(name)));
        let columns: Vec<Option<ArrayRef>> = texts.collect();
        for row in 0..batch.num_rows() {
            let value = |column: &ArrayRef| {
                let column = column.as_string::<i32>();
                column.is_valid(row).then(|| column.value(row).to_string())
            };
            let values: RowValues = columns.iter().map(|column| column.as_ref().and_then(value)).collect();
            push_row(rows, Ok(values), &format!("{} row {number}", self.file));
            *number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_known_lists_are_found() {
        let lists = [
            ("LAION-400M", "SAMPLE_ID,URL,TEXT,HEIGHT,WIDTH,LICENSE,NSFW,similarity", "URL", "TEXT"),
            (
                "LAION-5B",
                "URL,TEXT,WIDTH,HEIGHT,similarity,hash,punsafe,pwatermark,AESTHETIC_SCORE",
                "URL",
                "TEXT",
            ),
            ("LAION-COCO", "URL,TEXT,top_caption,all_captions,WIDTH,HEIGHT", "URL", "TEXT"),
            ("Re-LAION", "key,url,caption,similarity,hash,punsafe,pwatermark", "url", "caption"),
            (
                "COYO-700M",
                "id,url,text,width,height,image_phash,text_length,word_count,clip_similarity_vitb32",
                "url",
                "text",
            ),
            (
                "DataComp",
                "uid,url,text,original_width,original_height,clip_b32_similarity_score,face_bboxes,sha256",
                "url",
                "text",
            ),
            ("CC2", "uid,url,alt,cc_filename,page_url", "url", "alt"),
            ("CC3M on the hub", "image_url,caption,labels,MIDs,confidence_scores", "image_url", "caption"),
            (
                "img2dataset",
                "url,caption,key,status,error_message,width,height,exif,sha256",
                "url",
                "caption",
            ),
            ("SBU", "image_url,user_id,caption", "image_url", "caption"),
            ("RedCaps", "image_id,author,image_url,raw_caption,caption,subreddit", "image_url", "caption"),
            (
                "WIT",
                "language,page_url,image_url,page_title,caption_reference_description",
                "image_url",
                "caption_reference_description",
            ),
        ];
        let selection = ColumnSelection { columns: Columns::default(), keep: Vec::new() };
        for (list, header, url, caption) in lists {
            let header: Vec<String> = header.split(',').map(String::from).collect();
            let found = selection.resolve(&header).unwrap();
            let name = |location: usize| found[location].map(|column| header[column].as_str());
            assert_eq!((name(0), name(1)), (Some(url), Some(caption)), "{list}");
        }
        assert!(selection.resolve(&["a".to_string()]).is_err());
    }

    #[test]
    fn a_missing_header_is_recognized_by_the_first_row() {
        let names = |row: &str| infer_header(&row.split('\t').map(String::from).collect::<Vec<_>>());
        let owned = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names("a very typical bus station\thttp://a/b.jpg"), owned(&["caption", "url"]), "CC3M");
        assert_eq!(names("https://a/b.jpg\tMetal wall art"), owned(&["url", "caption"]), "CC12M");
        assert_eq!(names("7\thttp://a/b.jpg\tx"), owned(&["column_1", "url", "column_3"]));
        assert_eq!(names("url\tcaption"), None);
    }
}
