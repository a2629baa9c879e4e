//! The columns of a file that are read, found by their names.

use super::options::{CaptionRule, Columns, KeptColumn};
use crate::stages::column_names::{CAPTIONS, PATHS, URLS};
use crate::stages::common::is_url;

/// What is read.
#[derive(Debug, Clone, Default)]
pub(super) struct ColumnSelection {
    pub(super) columns: Columns,
    pub(super) captions: Option<CaptionRule>,
    pub(super) keep: Vec<KeptColumn>,
}

/// What to do about columns of equal names in a file with a header.
pub(super) const RENAME: &str = "name the columns of the file: `header = [...]`, without its own";

/// A message and a hint.
pub(super) type Complaint = (String, String);

impl ColumnSelection {
    /// Whether a file without a column of captions is an error.
    pub(super) fn needs_captions(&self) -> bool {
        self.captions != Some(CaptionRule::None)
    }

    /// The names to try for URL, caption, page and text source. The first that is in a file must
    /// be of text, and the first with a value counts.
    pub(super) fn candidates(&self) -> [Vec<&str>; 4] {
        fn names<'a>(name: &'a Option<String>, usual: &[&'static str]) -> Vec<&'a str> {
            name.as_ref().map_or_else(|| usual.to_vec(), |name| vec![name])
        }
        let columns = &self.columns;
        let captions = if self.needs_captions() { CAPTIONS } else { &[] };
        [
            names(&columns.url, &[URLS, PATHS].concat()),
            names(&columns.caption, captions),
            names(&columns.page_url, &["page_url"]),
            names(&columns.text_source, &["text_source"]),
        ]
    }

    /// The columns of a file with these names. `rename` says what to do about equal ones.
    ///
    /// # Errors
    /// A required column is missing, or a name occurs twice.
    pub(super) fn resolve(&self, names: &[String], rename: &str) -> Result<FoundColumns, Complaint> {
        let find = |wanted: &str| -> Result<Option<usize>, Complaint> {
            let mut found = names.iter().enumerate().filter(|(_, name)| *name == wanted);
            match (found.next(), found.next()) {
                (_, Some(_)) => Err((format!("two columns have the name `{wanted}`"), rename.into())),
                (first, None) => Ok(first.map(|(index, _)| index)),
            }
        };
        let all = |wanted: &[&str]| -> Result<Vec<usize>, Complaint> {
            wanted.iter().filter_map(|name| find(name).transpose()).collect()
        };
        let required = |wanted: &[&str]| match all(wanted)? {
            found if found.is_empty() => Err(self.missing(wanted, names)),
            found => Ok(found),
        };
        let [url, caption, page_url, text_source] = self.candidates();
        let optional = |name: &Option<String>, wanted: &[&str]| {
            if name.is_some() { required(wanted) } else { all(wanted) }
        };
        let url = match all(if self.columns.url.is_none() { URLS } else { &url })? {
            found if found.is_empty() => required(&url)?,
            found => found,
        };
        let caption = match all(&caption)? {
            found if found.is_empty() && self.columns.caption.is_some() => required(&caption)?,
            // A list of images.
            found if found.is_empty() && self.needs_captions() && names.len() > 1 => {
                return Err(self.missing(&caption, names));
            }
            found => found,
        };
        Ok(FoundColumns {
            url,
            caption,
            page_url: optional(&self.columns.page_url, &page_url)?,
            text_source: optional(&self.columns.text_source, &text_source)?,
            kept: (self.keep.iter())
                .map(|kept| Ok(required(&[&kept.source])?[0]))
                .collect::<Result<_, Complaint>>()?,
        })
    }

    /// The complaint that a file has none of these columns.
    pub(super) fn missing(&self, wanted: &[&str], names: &[String]) -> Complaint {
        let wanted_names: Vec<String> = wanted.iter().map(|name| format!("`{name}`")).collect();
        let message = format!("no column {}; there are: {}", wanted_names.join(" or "), names.join(", "));
        let [_, caption, ..] = self.candidates();
        let hint = match names {
            [only] if only.contains([';', '\t', '|', ',']) => {
                "set `delimiter` to the character between the names".into()
            }
            _ if wanted == caption && self.columns.caption.is_none() => {
                "name it: `columns = { caption = \"...\" }`, or set `captions = \"none\"`".into()
            }
            _ => "name the columns: `columns = { url = \"...\", caption = \"...\" }`".to_string(),
        };
        (message, hint)
    }
}

/// The columns of a file by their indices; of several, the first with a value counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct FoundColumns {
    pub(super) url: Vec<usize>,
    /// None in a list of images.
    pub(super) caption: Vec<usize>,
    pub(super) page_url: Vec<usize>,
    pub(super) text_source: Vec<usize>,
    pub(super) kept: Vec<usize>,
}

/// Names the columns of a file without a header, which is recognized by a URL in its first row. Of
/// two columns (CC3M: caption and URL; CC12M: URL and caption) the other one is the caption.
pub(super) fn infer_header(first: &[String]) -> Option<Vec<String>> {
    let url = first.iter().position(|field| is_url(field))?;
    let name = |column: usize| match column {
        _ if column == url => "url".to_string(),
        _ if first.len() == 2 => "caption".to_string(),
        _ => format!("column_{}", column + 1),
    };
    Some((0..first.len()).map(name).collect())
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
        let selection = ColumnSelection::default();
        for (list, header, url, caption) in lists {
            let header: Vec<String> = header.split(',').map(String::from).collect();
            let found = selection.resolve(&header, RENAME).unwrap();
            let name = |columns: &[usize]| header[columns[0]].clone();
            assert_eq!((name(&found.url), name(&found.caption)), (url.into(), caption.into()), "{list}");
        }
    }

    #[test]
    fn missing_columns_are_named_with_a_way_out() {
        let complaint = |selection: &ColumnSelection, header: &[&str]| {
            let header: Vec<String> = header.iter().map(ToString::to_string).collect();
            selection.resolve(&header, RENAME).err().map(|(message, hint)| format!("{message} | {hint}"))
        };
        let none = ColumnSelection { captions: Some(CaptionRule::None), ..ColumnSelection::default() };
        let any = ColumnSelection::default();
        let cases: [(&ColumnSelection, &[&str], Option<&str>); 6] = [
            (&any, &["url"], None),
            (&any, &["url;caption"], Some("set `delimiter`")),
            (&any, &["nothing", "here"], Some("there are: nothing, here | name the columns")),
            (&any, &["url", "sentence"], Some("captions = \"none\"")),
            (&none, &["url", "caption"], None),
            (&any, &["url", "caption", "url"], Some("two columns have the name `url`")),
        ];
        for (selection, header, expected) in cases {
            let found = complaint(selection, header);
            let fits = |found: &String| expected.is_some_and(|expected| found.contains(expected));
            assert!(found.as_ref().map_or(expected.is_none(), fits), "{header:?}: {found:?}");
        }
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
