//! From the values of a row to a pair or a reject.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use twinlens_pipeline::RunError;

use super::{Columns, Reading};
use crate::pairs::{Row, Rows};

/// Usual names of the URL's column, the likeliest first: img2dataset, DataComp, COYO, CC2 (`url`),
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
/// Usual names of the caption's column, the likeliest first: img2dataset (`caption`), LAION
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

/// Names for the columns of a file without a header, if its first row shows that it has none: a web
/// address stands in it. Of two columns (CC3M: caption and URL; CC12M: URL and caption) the other
/// one is the caption.
pub(super) fn headerless(first: &[String]) -> Option<Vec<String>> {
    let is_url = |field: &String| field.starts_with("http://") || field.starts_with("https://");
    let url = first.iter().position(is_url)?;
    let name = |column: usize| match column {
        _ if column == url => "url".to_string(),
        _ if first.len() == 2 => "caption".to_string(),
        _ => format!("column_{}", column + 1),
    };
    Some((0..first.len()).map(name).collect())
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

/// Where the values of a row stand in the batches of a file.
pub(super) struct FileColumns<'a> {
    file: &'a str,
    /// For each value of [`Values`], the place among the file's columns, and its name.
    columns: Vec<Option<(usize, String)>>,
}

impl<'a> FileColumns<'a> {
    /// The columns of a file with this schema.
    ///
    /// # Errors
    /// The user's: the column that is not there.
    pub(super) fn of(reading: &'a Reading, schema: &Schema) -> Result<Self, RunError> {
        let there: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let found = reading.wanted.find(&there).map_err(|why| reading.fault(why))?;
        let named = |place: Option<usize>| place.map(|place| (place, there[place].clone()));
        Ok(Self { file: &reading.file.name, columns: found.into_iter().map(named).collect() })
    }

    /// The places of the columns that are read.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> {
        self.columns.iter().flatten().map(|(place, _)| *place)
    }

    /// Adds the rows of a batch. `number` is that of the next row.
    pub(super) fn push(&self, rows: &mut Rows, batch: &RecordBatch, number: &mut u64) {
        // Values that are no text (bytes that are not UTF-8) become null, and so rejects.
        let text =
            |name: &str| batch.column_by_name(name).and_then(|column| cast(column, &DataType::Utf8).ok());
        let texts = self.columns.iter().map(|column| column.as_ref().and_then(|(_, name)| text(name)));
        let columns: Vec<Option<ArrayRef>> = texts.collect();
        for row in 0..batch.num_rows() {
            let value = |column: &ArrayRef| {
                let column = column.as_string::<i32>();
                column.is_valid(row).then(|| column.value(row).to_string())
            };
            let values: Values = columns.iter().map(|column| column.as_ref().and_then(value)).collect();
            push(rows, Ok(values), &format!("{} row {number}", self.file));
            *number += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_of_known_lists_are_recognised() {
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
        let wanted = Wanted { columns: Columns::default(), keep: Vec::new() };
        for (list, header, url, caption) in lists {
            let header: Vec<String> = header.split(',').map(String::from).collect();
            let found = wanted.find(&header).unwrap();
            let name = |place: usize| found[place].map(|column| header[column].as_str());
            assert_eq!((name(0), name(1)), (Some(url), Some(caption)), "{list}");
        }
        assert!(wanted.find(&["a".to_string()]).is_err());
    }

    #[test]
    fn a_file_without_a_header_is_known_by_its_first_row() {
        let names = |row: &str| headerless(&row.split('\t').map(String::from).collect::<Vec<_>>());
        let owned = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names("a very typical bus station\thttp://a/b.jpg"), owned(&["caption", "url"]), "CC3M");
        assert_eq!(names("https://a/b.jpg\tMetal wall art"), owned(&["url", "caption"]), "CC12M");
        assert_eq!(names("7\thttp://a/b.jpg\tx"), owned(&["column_1", "url", "column_3"]));
        assert_eq!(names("url\tcaption"), None);
    }
}
